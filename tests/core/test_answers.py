"""Reading replies: every example of the text helpers' specification, and properties."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optillm.core.answers import (
    Fence,
    fences,
    final_answer,
    group_by_answer,
    group_by_similarity,
    largest,
    parse_score,
    same_answer,
    similarity,
    split_think,
    strip_think,
    tagged,
)
from optillm.core.lists import list_items


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("8", 8),
        ("8.5/10", 8.5),
        ("**Score:** 9", 9),
        ("Score: [8]", 8),
        ("Rating - 8", 8),
        ("Score: 85/100", 8.5),
        ("Score: 85", None),
        ("-2", None),
        ("inf", None),
        ("nan", None),
        ("great", None),
        ("", None),
        ("<think>maybe 3</think>Score: 6", 6),
        ("Score: 7\nExplanation: I would score step 3 lower", 7),
        ("9/10", 9),
        ("Rating: 10", 10),
        ("8 out of 10", 8),
        ("Score: -3", None),
        ("It has 3 flaws.\nScore: 4", 4),
        ("Score: 5/0", None),
    ],
)
def test_score_of_ten(text: str, score: float | None) -> None:
    assert parse_score(text, 0, 10) == score


@pytest.mark.parametrize(("text", "score"), [("80%", 0.8), ("8/10", 0.8), ("Score: 0.7", 0.7)])
def test_score_of_one(text: str, score: float) -> None:
    assert parse_score(text, 0, 1) == pytest.approx(score)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{\frac{1}{2}} it is", r"\frac{1}{2}"),
        (r"\boxed{1} then \boxed{2}", "2"),
        ("The answer is 8", "8"),
        ("Final answer: 12 apples\nbye", "12 apples"),
        ("long\n#### 42", "42"),
        ("reasoning\n(B)", "B"),
        ("42", "42"),
        ("<think>The answer is 3</think>The answer is 4", "4"),
        ("a longer text that says nothing at all about any result, really", None),
        ("", None),
        (r"\boxed{unclosed", r"\boxed{unclosed"),
    ],
)
def test_final_answer(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("0.5", "1/2"),
        ("0.5", r"\frac{1}{2}"),
        ("18", "18.0"),
        ("18", "$18.00"),
        ("1,234", "1234"),
        ("B.", "(B)"),
        ("(B)", "b"),
        ("18", "18 dollars"),
        (r"\text{blue}", "Blue"),
        ("$5$", "5."),
        ("1e3", "1000"),
        ("−5", "-5"),
        ("50%", "0.5"),
        ("[42] since 7", "42"),
    ],
)
def test_same(a: str, b: str) -> None:
    assert same_answer(a, b)
    assert same_answer(b, a)


@pytest.mark.parametrize(("a", "b"), [("-5", "5"), ("18 cm", "18 m"), ("A", "B"), ("1/0", "0"), ("1", "11")])
def test_different(a: str, b: str) -> None:
    assert not same_answer(a, b)


def test_votes_of_the_specification() -> None:
    groups = group_by_answer(["18", "$18.00", "17", "17", "18 dollars", None])
    assert groups == [[0, 1, 4], [2, 3]]
    assert largest(groups) == [0, 1, 4]
    assert largest(group_by_answer(["A", "B", "B", "A", "C"])) == [0, 3]


def test_think_in_all_its_forms() -> None:
    assert strip_think("<think>a</think>b") == "b"
    assert strip_think("a</think>b") == "b"
    assert strip_think("b<think>a") == "b"
    assert split_think("<think>a</think>b<think>c</think>d") == ("a\nc", "bd")


def test_fences_with_any_info_string() -> None:
    text = '```c++\nint x;\n```\nthen run\n~~~python title="x"\nprint(1)\n~~~\n```\nopen'
    assert fences(text) == [Fence("c++", "int x;"), Fence('python title="x"', "print(1)"), Fence("", "open")]
    assert len(fences(text, truncated=True)) == 2


def test_similarity_has_no_junk() -> None:
    table = "\n".join(f"row {i} has value {i * 7} and no name" for i in range(60))
    assert similarity(table, "Here: " + table) > 0.95


def test_texts_with_other_answers_stay_apart() -> None:
    long = "We add the numbers one after another and check the sum twice. " * 10
    texts = [long + "The answer is 8", long + "The answer is 9", long + "The answer is 9.0"]
    assert group_by_similarity(texts, 0.8) == [[0], [1, 2]]


@pytest.mark.parametrize(
    "hostile",
    [
        "<think>" * 30_000,
        "\\boxed{" * 30_000,
        "{" * 200_000,
        "9" * 200_000,
        "1e999999999",
        "score" * 40_000,
        "the answer" * 20_000,
        "```" * 60_000,
        "1/" * 100_000,
    ],
)
def test_hostile_texts_end(hostile: str) -> None:
    strip_think(hostile)
    parse_score(hostile, 0, 10)
    same_answer(final_answer(hostile) or hostile, "1")
    fences(hostile)


@given(st.text())
def test_total_and_reflexive(text: str) -> None:
    assert same_answer(text, text)
    final_answer(text)
    fences(text)
    score = parse_score(text, 0, 10)
    assert score is None or 0 <= score <= 10


@given(st.lists(st.none() | st.sampled_from(["1", "1.0", "2", "x", "X ", "2 cm"])))
def test_groups_partition_the_voters(answers: list[str | None]) -> None:
    groups = group_by_answer(answers)
    assert sorted(i for g in groups for i in g) == [i for i, a in enumerate(answers) if a is not None]
    assert [g[0] for g in groups] == sorted(g[0] for g in groups)


@pytest.mark.parametrize(
    ("text", "inner"),
    [
        ("<o>a</o> <o> b </o>", "b"),
        ("<think><o>x</o></think>none", None),
        ("<o>open", "open"),
        ("</o>", None),
        ("<o></o>", ""),
    ],
)
def test_tagged(text: str, inner: str | None) -> None:
    assert tagged(text, "o") == inner


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("Here are 3 observations:\n1. a\n\n2. b\n3) c", ["a", "b", "c"]),
        ("- a\n* b\n• c\n  10. d", ["a", "b", "c", "d"]),
        ("Observations:\nfirst\n\nsecond", ["first", "second"]),
        ("1.5 is a number\n-5 too", ["1.5 is a number", "-5 too"]),
        ("", []),
    ],
)
def test_list_items(text: str, items: list[str]) -> None:
    assert list_items(text, 10) == items
    assert list_items(text, 1) == items[:1]


def test_list_items_of_a_text_that_was_cut_off() -> None:
    assert list_items("1. a\n2. b\n3. hal", 10, cut=True) == ["a", "b"]
    assert list_items("1. a\n2. b\n", 10, cut=True) == ["a", "b"]
