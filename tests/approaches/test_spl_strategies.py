"""What happens to strategies, as mathematics: choosing, counting, merging, pruning; and what is alike."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optillm.approaches.learning import strategies as s
from optillm.approaches.learning.learn import parse_verdicts
from optillm.approaches.learning.similarity import Nearness, Vector, cosine, words
from optillm.approaches.learning.spl import parse_type
from optillm.core.state import Strategy

WORDS = Nearness()


def strategy(id: str = "s", text: str = "look closely", **fields: Any) -> Strategy:
    return Strategy(id=id, type="word_problem", text=text, **fields)


def tried(id: str, successes: int, attempts: int, **fields: Any) -> Strategy:
    return strategy(id, fields.pop("text", id), success_count=successes, total_attempts=attempts, **fields)


@st.composite
def many(draw: st.DrawFn, most: int = 25) -> list[Strategy]:
    """Strategies of one type with few words, so that some are alike."""
    out = []
    for i in range(draw(st.integers(0, most))):
        attempts = draw(st.integers(0, 12))
        out.append(
            strategy(
                f"s{i}",
                " ".join(draw(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=6))),
                examples=tuple(draw(st.lists(st.sampled_from("uvwxyz"), unique=True, max_size=6))),
                success_count=draw(st.integers(0, attempts)),
                total_attempts=attempts,
                confidence=draw(st.floats(0, 1)),
                created=float(draw(st.integers(0, 5))),
                last_used=draw(st.none() | st.floats(0, 9)),
                reasoning_examples=tuple(draw(st.lists(st.text(max_size=3), unique=True, max_size=5))),
            )
        )
    return out


# -- what is alike -----------------------------------------------------------------------------


def test_seven_of_ten_words_in_common_are_exactly_the_threshold() -> None:
    ten = "a b c d e f g h i j"
    assert WORDS(ten, "a b c d e f g x y z") == 0.7
    assert WORDS(ten, "a b c d e f w x y z") == 0.6
    known = [strategy("s", ten)]
    assert s.most_similar(known, "a b c d e f g x y z", WORDS) is known[0]
    assert s.most_similar(known, "a b c d e f w x y z", WORDS) is None


@given(st.text(), st.text())
def test_likeness_is_symmetric_and_at_most_one(a: str, b: str) -> None:
    assert WORDS(a, b) == WORDS(b, a)
    assert 0 <= WORDS(a, b) <= 1 + 1e-12
    assert not words(a).square or WORDS(a, a) == pytest.approx(1)


@pytest.mark.parametrize(
    ("a", "b", "alike"),
    [
        ("What IS this?", "what is this", 1.0),
        ("", "", 0.0),
        ("...", "a", 0.0),
        ("Straße", "STRASSE", 1.0),
        ("东京的天气", "东京天气", 4 / math.sqrt(20)),
        ("погода в Москве", "погода в Риме", 2 / 3),
        ("what is 2+2", "东京", 0.0),
    ],
)
def test_words_of_any_language(a: str, b: str, alike: float) -> None:
    assert WORDS(a, b) == pytest.approx(alike)


def test_vectors_of_an_embedding_model_count_where_both_texts_have_one() -> None:
    near = Nearness({"a": Vector.of({0: 1.0, 1: 0.0}), "b": Vector.of({0: 3.0, 1: 4.0})})
    assert near("a", "b") == 0.6
    # "c" has none: these two are compared by their words.
    assert near("a", "c") == 0.0
    assert near("a", "a c") == pytest.approx(1 / math.sqrt(2))
    assert cosine(Vector.of({0: 1.0}), Vector.of({0: -1.0})) == -1.0


def test_a_query_is_as_near_as_the_nearest_of_text_and_examples() -> None:
    one = strategy(text="nothing", examples=("what is two", "how far"))
    assert s.similarity("how far", one, WORDS) == pytest.approx(1)
    assert s.similarity("nothing", one, WORDS) == pytest.approx(1)
    assert s.similarity("else", one, WORDS) == 0


# -- choosing ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("successes", "attempts", "inference", "learning"),
    [
        (2, 5, True, True),
        (4, 10, True, True),
        (39, 100, False, False),
        (1, 5, False, False),
        (0, 0, False, True),
        (0, 4, False, True),
        (1, 4, False, True),
        (1, 1, True, True),
    ],
)
def test_who_may_be_used(successes: int, attempts: int, inference: bool, learning: bool) -> None:
    one = tried("s", successes, attempts)
    assert (s.fit(one, learning=False), s.fit(one, learning=True)) == (inference, learning)


def test_similarity_and_confidence_rank_and_three_are_used() -> None:
    known = [
        tried("far-sure", 5, 5, text="x", confidence=0.9),
        tried("near", 5, 5, text="how far is it", confidence=0.5),
        tried("near-sure", 5, 5, text="how far is it", confidence=0.9),
        tried("far", 5, 5, text="x", confidence=0.1),
        tried("bad", 0, 9, text="how far is it", confidence=1.0),
    ]
    found = s.ranked(known, "how far is it", WORDS, learning=False)
    assert [(x.id, round(score, 9)) for score, x in found] == [
        ("near-sure", 0.95), ("near", 0.75), ("far-sure", 0.45),
    ]  # fmt: skip


@given(many(), st.booleans())
def test_what_is_used_is_fit_and_better_than_what_is_not(known: list[Strategy], learning: bool) -> None:
    found = s.ranked(known, "a b c", WORDS, learning=learning)
    able = [x for x in known if s.fit(x, learning)]
    assert len(found) == min(3, len(able))
    assert [score for score, _ in found] == sorted((score for score, _ in found), reverse=True)
    chosen = [x for _, x in found]
    assert all(x in able for x in chosen)
    left = [x for x in able if x not in chosen]
    assert all(
        (s.similarity("a b c", x, WORDS) + x.confidence) / 2 <= found[-1][0] + 1e-12 for x in left
    )  # fmt: skip


# -- counting ----------------------------------------------------------------------------------


def test_an_attempt_counts() -> None:
    one = strategy(success_count=1, total_attempts=2, confidence=0.5, created=1.0)
    after = s.attempted(one, True, "because", 9.0)
    assert (after.success_count, after.total_attempts) == (2, 3)
    assert after.confidence == pytest.approx(0.55)
    assert (after.last_used, after.last_updated, after.created) == (9.0, 9.0, 1.0)
    assert after.reasoning_examples == ("because",)
    failed = s.attempted(one, False, "because", 9.0)
    assert (failed.success_count, failed.total_attempts) == (1, 3)
    assert failed.confidence == pytest.approx(0.45)
    assert failed.reasoning_examples == ()


@given(st.lists(st.booleans(), max_size=40))
def test_attempts_add_up_and_confidence_stays_a_share(verdicts: list[bool]) -> None:
    one = strategy()
    for i, verdict in enumerate(verdicts):
        one = s.attempted(one, verdict, f"reasoning {i}", float(i))
    assert (one.success_count, one.total_attempts) == (sum(verdicts), len(verdicts))
    assert 0 <= one.confidence <= 1
    good = [f"reasoning {i}" for i, verdict in enumerate(verdicts) if verdict]
    assert list(one.reasoning_examples) == good[-5:]


def test_examples_are_the_latest_each_once() -> None:
    one = strategy()
    for i in range(12):
        one = s.exemplified(one, f"q{i}", float(i))
    assert one.examples == tuple(f"q{i}" for i in range(2, 12))
    assert s.exemplified(one, "q5", 99.0) is one
    assert s.exemplified(one, "", 99.0) is one


def test_a_new_strategy_is_not_added_beside_a_similar_one() -> None:
    known = (strategy("a", "how far is it"), strategy("b", "else"))
    new = strategy("c", "new words")
    assert s.adopted(known, new, "something different", WORDS, 5.0) == (*known, new)
    first, second = s.adopted(known, new, "how far is it then", WORDS, 5.0)
    assert (first.examples, first.last_updated, second) == (("how far is it then",), 5.0, known[1])


# -- merging, pruning --------------------------------------------------------------------------


def test_two_that_are_alike_become_one_with_what_both_have() -> None:
    ten, other = "a b c d e f g h i j", "a b c d e f w x y z"
    older = tried("old", 1, 4, text=ten, confidence=0.2, created=1.0, last_used=3.0, examples=("p", "q"))
    newer = replace(tried("new", 3, 4, text=other, confidence=0.8, created=2.0), examples=("q", "r"))
    (one,) = s.merged([older, newer], WORDS, 9.0)
    assert (one.id, one.text, one.created) == ("new", other, 2.0)
    assert (one.success_count, one.total_attempts, round(one.confidence, 9)) == (4, 8, 0.5)
    assert (one.last_used, one.last_updated) == (3.0, 9.0)
    assert one.examples == ("p", "q", "r")
    apart = replace(newer, text="a b c d e v w x y z")
    assert s.merged([older, apart], WORDS, 9.0) == (older, apart)


@given(many())
def test_merging_keeps_all_counts_and_leaves_no_two_alike(known: list[Strategy]) -> None:
    after = s.merged(known, WORDS, 9.0)
    assert sum(x.total_attempts for x in after) == sum(x.total_attempts for x in known)
    assert sum(x.success_count for x in after) == sum(x.success_count for x in known)
    assert all(WORDS(a.text, b.text) < 0.6 for a, b in combinations(after, 2))
    assert {x.id: x.text for x in after}.items() <= {x.id: x.text for x in known}.items()
    assert all(0 <= x.confidence <= 1 and len(x.examples) <= 10 for x in after)
    assert all(len(x.reasoning_examples) <= 5 for x in after)
    assert s.merged(after, WORDS, 10.0) == after


@pytest.mark.parametrize(
    ("successes", "attempts", "kept"),
    [(0, 4, True), (1, 4, True), (0, 5, False), (1, 5, False), (2, 5, True), (3, 10, True), (29, 100, False)],
)
def test_who_is_pruned(successes: int, attempts: int, kept: bool) -> None:
    assert bool(s.pruned([tried("s", successes, attempts)])) is kept


def test_the_worst_over_ten_go_and_of_equals_the_oldest() -> None:
    known = [tried(f"s{i}", 5, 10, created=float(i)) for i in range(9)]
    known += [tried("worst", 3, 10, created=99.0), tried("old", 4, 10, created=1.0)]
    known += [tried("new", 4, 10, created=2.0)]
    assert [x.id for x in s.limited(known)] == [*(f"s{i}" for i in range(9)), "new"]
    assert s.limited(known[:10]) == tuple(known[:10])


def test_a_proven_failure_goes_before_an_untried_one() -> None:
    known = [tried(f"s{i}", 5, 10) for i in range(9)] + [tried("bad", 1, 5), tried("untried", 0, 0)]
    assert [x.id for x in s.tidied(known, WORDS, 9.0)] == [*(f"s{i}" for i in range(9)), "untried"]


@given(many(40))
def test_what_is_in_order_stays_as_it_is(known: list[Strategy]) -> None:
    after = s.tidied(known, WORDS, 9.0)
    assert len(after) <= 10
    assert all(x.total_attempts < 5 or x.success_rate >= 0.3 for x in after)
    assert s.tidied(after, WORDS, 10.0) == after


# -- what models write -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Type: word_problem", "word_problem"),
        ("**Type:** Word Problem.", "word_problem"),
        ("type: `coding-problem`", "coding_problem"),
        ("Not a coding_problem, but\nType: algorithm\\_design", "algorithm_design"),
        ("It is a riddle", "general_problem"),
        ("", "general_problem"),
        ("myword_problems", "general_problem"),
    ],
)
def test_types_are_read(text: str, kind: str) -> None:
    assert parse_type(text) == kind


@pytest.mark.parametrize("kind", s.TYPES)
def test_every_type_is_read(kind: str) -> None:
    assert parse_type(f"Type: {kind}") == kind
    assert len(set(s.TYPES)) == 16


@pytest.mark.parametrize(
    ("text", "verdicts"),
    [
        ("Strategy 1: yes - clear\nStrategy 2: no - not used", {0: True, 1: False}),
        ("**Strategy 1**: Yes, it did.\n- strategy-2 - NO", {0: True, 1: False}),
        ("Strategy 3: yes\nStrategy 0: yes\nStrategy 99999: no", {}),
        ("Strategy 1: yes\nStrategy 1: no\nStrategy 2: yes\nStrategy 2: yes", {1: True}),
        ("Strategy 1: yesterday", {}),
        ("yes", {}),
    ],
)
def test_verdicts_are_read(text: str, verdicts: dict[int, bool]) -> None:
    assert parse_verdicts(text, 2) == verdicts
