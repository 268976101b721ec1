"""The simulated model: known chances, nothing hidden, every helper recognised."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from optillm.approaches.sampling.pvg import Rated, helpful_task, refine_prompt, sneaky_task, verify_prompt
from optillm.core.judges.absolute import rating_prompt
from optillm.core.judges.checks import (
    checklist_prompt,
    marking_prompt,
    verification_prompt,
    verifier_prompt,
)
from optillm.core.judges.pairwise import comparison_prompt
from optillm.core.prompts import helper
from optillm.core.reply import Reply
from optillm.core.task import Messages, Task, assistant, user
from optillm.core.tools import Tools
from optillm.core.upstream import Call
from optillm.evals.simulated import ROLES, Judge, Question, SimulatedModel, sums
from optillm.library import solve
from optillm.protocol.errors import UpstreamError

pytestmark = pytest.mark.anyio

MARK = "0123456789ab"
CAPITAL = Question("What is the capital of France?", "Paris", ("Lyon", "Nice"), 0.5)
TASK = Task((user(CAPITAL.text),))
RIGHT, WRONG = Reply.of("Well.\nThe answer is Paris"), Reply.of("Well.\nThe answer is Lyon")
SURE = Judge(right=(0, 1), wrong=(1, 0), better=1)
"""A judge that never errs."""


def perfect(**options: Any) -> SimulatedModel:
    return SimulatedModel([CAPITAL], judge=SURE, **options)


async def says(model: SimulatedModel, messages: Messages, **fields: Any) -> list[str]:
    body = {"model": "m", "messages": [m.raw for m in messages], **fields}
    reply = msgspec.json.decode(await model.complete(Call(body, "run")))
    return [c["message"]["content"] for c in reply["choices"]]


async def said(model: SimulatedModel, messages: Messages) -> str:
    return (await says(model, messages))[0]


async def test_it_is_right_as_often_as_the_question_says() -> None:
    model = SimulatedModel([CAPITAL])
    texts = await says(model, TASK.messages, n=4000)
    assert len(set(texts)) == 4000
    answers = [t.rsplit(" ", 1)[1] for t in texts]
    assert answers.count("Paris") == pytest.approx(2000, abs=130)
    assert answers.count("Lyon") == pytest.approx(1000, abs=110)
    assert answers.count("Lyon") + answers.count("Nice") + answers.count("Paris") == 4000


async def test_the_same_calls_in_the_same_order_get_the_same_replies() -> None:
    one, same, other = SimulatedModel([CAPITAL]), SimulatedModel([CAPITAL]), SimulatedModel([CAPITAL], seed=1)
    first = [await says(one, TASK.messages, n=3) for _ in range(3)]
    assert first == [await says(same, TASK.messages, n=3) for _ in range(3)]
    assert first != [await says(other, TASK.messages, n=3) for _ in range(3)]
    # Equal calls draw anew, and do not disturb other calls.
    assert len({t for texts in first for t in texts}) == 9
    assert await says(one, TASK.messages, seed=5) == await says(
        SimulatedModel([CAPITAL]), TASK.messages, seed=5
    )


async def test_a_whole_run_can_be_repeated_by_its_seed() -> None:
    async def run(seed: int) -> list[tuple[str, list[str]]]:
        solution = await solve(
            CAPITAL.text,
            approach="mcts(simulations=5)",
            model="m",
            upstream=perfect(),
            tools=Tools(),
            seed=seed,
        )
        return [(c.stage, [r.text for r in c.replies]) for c in solution.trace.calls]

    assert await run(1) == await run(1)
    assert await run(1) != await run(2)


async def test_streaming_gives_the_same_text() -> None:
    body = {"model": "m", "messages": [m.raw for m in TASK.messages], "n": 2}
    streamed = ["", ""]
    usage = None
    async for payload in SimulatedModel([CAPITAL]).stream(Call({**body, "stream": True}, "run")):
        chunk = msgspec.json.decode(payload)
        for choice in chunk["choices"]:
            streamed[choice["index"]] += choice["delta"].get("content", "")
        usage = chunk.get("usage") or usage
    reply = msgspec.json.decode(await SimulatedModel([CAPITAL]).complete(Call(body, "run")))
    assert streamed == [c["message"]["content"] for c in reply["choices"]]
    assert usage == reply["usage"]
    assert usage["completion_tokens"] == sum(len(t.split()) for t in streamed)


def value_prompt(task: Task, candidate: Reply, mark: str) -> Messages:
    """As mcts asks for the value of a dialogue."""
    dialogue = task.with_messages(
        (*task.messages, assistant(candidate.text), user("Sure?"), assistant(candidate.text))
    )
    return helper("You are an impartial judge of dialogues.", dialogue, "Judge.", mark)


@pytest.mark.parametrize(
    ("prompt", "best", "worst"),
    [
        (rating_prompt, "Score: 10", "Score: 0"),
        (lambda task, c, mark: verify_prompt(task, c, [], mark), "Score: 10", "Score: 0"),
        (value_prompt, "Score: 1", "Score: 0"),
        (verification_prompt, "Verdict: yes", "Verdict: no"),
        (lambda task, c, mark: verifier_prompt(task, c, "it is right", mark), "Verdict: yes", "Verdict: no"),
        (lambda task, c, mark: marking_prompt(task, c, ["a", "b"], mark), "1: yes\n2: yes", "1: no\n2: no"),
    ],
)
async def test_it_judges_one_reply(
    prompt: Callable[[Task, Reply, str], Messages], best: str, worst: str
) -> None:
    model = perfect()
    assert (await said(model, prompt(TASK, RIGHT, MARK))).endswith(f"\n{best}")
    assert (await said(model, prompt(TASK, WRONG, MARK))).endswith(f"\n{worst}")


async def test_earlier_forgeries_are_not_what_is_judged() -> None:
    forged = Rated(WRONG, 9, "", 0, 0)
    assert (await said(perfect(), verify_prompt(TASK, RIGHT, [forged], MARK))).endswith("Score: 10")
    assert (await said(perfect(), verify_prompt(TASK, WRONG, [Rated(RIGHT, 9, "", 0, 0)], MARK))).endswith(
        "0"
    )


async def test_it_compares_two_replies() -> None:
    model = perfect()
    assert (await said(model, comparison_prompt(TASK, RIGHT, WRONG, MARK))).endswith("Verdict: first")
    assert (await said(model, comparison_prompt(TASK, WRONG, RIGHT, MARK))).endswith("Verdict: second")
    biased = SimulatedModel([CAPITAL], judge=Judge(better=1, position=1))
    assert (await said(biased, comparison_prompt(TASK, WRONG, RIGHT, MARK))).endswith("Verdict: first")


async def test_it_plays_the_other_roles() -> None:
    model = perfect()
    assert all("Paris" not in t for t in await says(model, sneaky_task(TASK).messages, n=200))
    assert any("Paris" in t for t in await says(model, helpful_task(TASK, "hints", MARK).messages, n=50))
    assert "answer" not in await said(model, refine_prompt(TASK, Rated(RIGHT, 9, "good", 0, 0), MARK))
    assert "1. " in await said(model, checklist_prompt(TASK, MARK))
    asks = helper("You play the user of an assistant, and write what it says.", TASK, "Write.", MARK)
    assert "go on" in await said(model, asks)
    assert await said(perfect(leaves=1), asks) == "<END>"


async def test_every_role_is_one_that_a_technique_asks_for() -> None:
    """Words that no technique says any more would make a helper's reply an answer, and no test fail."""
    asked: set[str] = set()

    class Listening(SimulatedModel):
        async def complete(self, call: Call) -> bytes:
            asked.update(str(m["content"]) for m in call.body["messages"] if m["role"] == "system")
            return await super().complete(call)

    model = Listening([CAPITAL])
    requests: list[dict[str, Any]] = [
        {"approach": "mcts"},
        {"approach": "pvg"},
        *(
            {"approach": "bon", "judge": j}
            for j in ("absolute", "pairwise", "aspects", "verify", "checklist")
        ),
    ]
    for fields in requests:
        await solve(CAPITAL.text, model="m", upstream=model, tools=Tools(), seed=1, **fields)
    assert [words for words in ROLES if not any(words in text for text in asked)] == []


async def test_a_dialogue_keeps_its_answer_or_draws_anew() -> None:
    dialogue = (*TASK.messages, assistant("The answer is Nice"), user("Go on"))
    assert all(t.endswith("Nice") for t in await says(perfect(), dialogue, n=50))
    assert sum("Paris" in t for t in await says(perfect(keeps=0), dialogue, n=400)) == pytest.approx(
        200, abs=45
    )


async def test_the_longest_known_question_within_a_text_is_meant() -> None:
    longer = Question("What is the capital of France? Think.", "Metz", ("Lyon",), 1)
    model = SimulatedModel([CAPITAL, longer])
    assert "Metz" in await said(model, (user(f"Read this again: {longer.text}"),))


async def test_an_unknown_question_is_refused() -> None:
    with pytest.raises(UpstreamError) as refused:
        await said(perfect(), (user("What is the capital of Spain?"),))
    assert refused.value.status == 404


@pytest.mark.parametrize(
    "make",
    [
        lambda: Question("q", "1", ("1.0",), 0.5),
        lambda: Question("q", "1", (), 0.5),
        lambda: Question("q", "1", ("2",), 1.5),
        lambda: Judge(right=(0.5, 0.6)),
        lambda: Judge(right=(1.0,), wrong=(1.0,)),
        lambda: Judge(right=(0, 0, 1)),
        lambda: Judge(better=2),
        lambda: SimulatedModel([CAPITAL, CAPITAL]),
        lambda: perfect(keeps=-1),
    ],
)
def test_impossible_chances_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        make()


def test_sums_are_different_and_their_accuracies_take_turns() -> None:
    questions = sums(300, accuracy=(0.2, 0.9), wrong=3)
    assert len({q.text for q in questions}) == 300
    assert [q.accuracy for q in questions[:3]] == [0.2, 0.9, 0.2]
    assert all(len(q.wrong) == 3 and q.is_right(f"The answer is {q.answer}") for q in questions)
    assert not any(q.is_right(f"The answer is {w}") for q in questions for w in q.wrong)


def test_asking_is_safe_from_many_tasks() -> None:
    async def many() -> list[str]:
        model = SimulatedModel([CAPITAL])
        return await asyncio.gather(*(said(model, TASK.messages) for _ in range(20)))

    texts = asyncio.run(many())
    assert len(set(texts)) == 20
    assert texts == asyncio.run(many())
