"""Tasks without instructions on the form of their answer."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optillm.approaches.planning.question_only import question_only, without_form
from optillm.core.frozen import thaw
from optillm.core.task import Task
from tests.approaches.common import pictured

OPTIONS = "Which is the capital of France?\n\nA) Paris\nB) Rome"
CODE = "```python\nclass Solution:\n    # The last line of your answer\n    def add(a, b):\n```"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (
            "Answer the following multiple choice question. The last line of your response should be of the "
            "following format: 'Answer: $LETTER' (without quotes) where LETTER is one of ABCD. Think step by "
            f"step before answering.\n\n{OPTIONS}",
            f"Think step by step before answering.\n\n{OPTIONS}",
        ),
        (f"{OPTIONS}\nAnswer with the option's letter from the given choices directly.", OPTIONS),
        (f"{OPTIONS}\n\nRespond with only a single letter. Take your time.", f"{OPTIONS}\n\nTake your time."),
        ("What is 2+2? Put your final answer within \\boxed{}.", "What is 2+2?"),
        ("Reason step by step, and put your final answer within \\boxed{}.\nFind x.", "Find x."),
        (
            "### Question:\nAdd numbers.\n\n### Format: You will use the following starter code to write the "
            "solution to the problem and enclose your code within delimiters.\n"
            f"{CODE}\n\n### Answer: (use the provided format with backticks)\n",
            f"### Question:\nAdd numbers.\n\n{CODE}",
        ),
        (
            "Add.\n### Format: Read the numbers from stdin. Enclose your code within delimiters as follows.\n"
            "```python\n# YOUR CODE HERE\n```\n### Answer:\n",
            "Add.\nRead the numbers from stdin.",
        ),
    ],
)
def test_form_goes_and_the_question_stays(text: str, left: str) -> None:
    assert without_form(text) == left
    assert without_form(left) == left


@pytest.mark.parametrize(
    "text",
    [
        "",
        OPTIONS,
        CODE,
        "Is the last line of your answer always right?",
        "Write a program that prints the answer. Give the answer in metres.",
        "What did she answer with a smile?",
        "Put your final answer within \\boxed{}.",
        "Translate: she took the last  line.  Then she left\n\n\n\nat 3.5 p.m.",
    ],
)
def test_other_texts_are_left_alone(text: str) -> None:
    assert without_form(text) == text


@given(st.text(alphabet="aA .!?:\n#`'\\\"", max_size=80))
def test_texts_that_say_nothing_of_form_do_not_change(text: str) -> None:
    assert without_form(text) == text


PIECES = (
    "Put the answer within \\boxed{}. ",
    "### Format: x ",
    "Why? ",
    "\n",
    "```\n",
    "A) b\n",
    "...\n",
    "Go. ",
)


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_once_is_enough(text: str) -> None:
    once = without_form(text)
    assert without_form(once) == once or not once.strip()
    assert bool(once.strip()) == bool(text.strip())


@pytest.mark.parametrize("content", [OPTIONS, pictured(OPTIONS), None, []])
def test_a_task_without_form_is_the_same_object(content: Any) -> None:
    task = Task.of(
        [{"role": "system", "content": "Answer with a letter."}, {"role": "user", "content": content}]
    )
    assert question_only(task) is task


def test_only_the_text_of_the_last_question_changes() -> None:
    form = "Answer with the letter only."
    before = [{"role": "user", "content": f"a {form}"}, {"role": "assistant", "content": form}]
    last = {"role": "user", "content": pictured(f"{OPTIONS}\n{form}"), "name": "Eve"}
    changed = [thaw(m.raw) for m in question_only(Task.of([*before, last])).messages]
    assert changed == [*before, {**last, "content": pictured(OPTIONS)}]


def test_a_question_that_is_only_form_stays() -> None:
    task = Task.of([{"role": "user", "content": [{"type": "text", "text": "Answer with the letter only."}]}])
    assert question_only(task) is task
