"""The population of MARS: ranks, groups, succession, votes and verdicts; no model."""

from __future__ import annotations

import random
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optillm.approaches.agents.population import (
    Solution,
    Verdict,
    Word,
    agreeing,
    best_of,
    choose,
    consensus,
    groups,
    ranked,
    succession,
)
from optillm.approaches.agents.task_kind import kind_of
from optillm.approaches.agents.verification import read_verdict, verifier_of
from optillm.core.reply import Reply

WORDS = st.sampled_from([*get_args(Word), None])


@st.composite
def populations(draw: st.DrawFn) -> list[Solution]:
    """One to eight solutions of up to four agents."""

    def one(index: int) -> Solution:
        finish = draw(st.sampled_from(["stop", "stop", "length"]))
        words = draw(st.lists(WORDS, max_size=4))
        return Solution(
            name=str(index),
            author=draw(st.integers(0, 3)),
            reply=Reply.of(f"text {index}", finish),
            answer=draw(st.sampled_from(["7", "7.0", "9", None])),
            stage=draw(st.integers(0, 3)),
            verdicts=tuple(Verdict(0, word, "") for word in words),
        )

    return [one(i) for i in range(draw(st.integers(1, 8)))]


@given(populations(), st.integers(1, 3))
def test_the_best_is_complete_if_any_is_and_verified_if_any_is(
    population: list[Solution], passes: int
) -> None:
    assert sorted(s.name for s in ranked(population)) == sorted(s.name for s in population)
    assert ranked(population)[0].reply.truncated == all(s.reply.truncated for s in population)
    best, winner = best_of(population, passes), choose(population, passes)
    verified = [s for s in population if s.verified(passes)]
    if verified:
        assert best in verified
        assert winner == (best, "verified")
    else:
        complete = [s for s in population if not s.reply.truncated]
        votes = [len(g) for g in agreeing(complete)]
        assert (winner[1] == "vote") == (max(votes, default=0) > 1)
        assert best.reply.truncated == (not complete)


@given(populations(), st.integers(1, 3), st.integers(1, 5), st.randoms(use_true_random=False))
def test_groups_are_members_and_each_only_once(
    population: list[Solution], count: int, size: int, rng: random.Random
) -> None:
    made = groups(population, count, size, rng)
    assert len(made) == count
    for group in made:
        names = [s.name for s in group]
        assert len(set(names)) == len(names) == min(size, len(population))
        assert set(names) <= {s.name for s in population}
    assert [s.name for s in made[0]] == [s.name for s in ranked(population)][:size]
    if count > 1:
        # As many authors as there can be.
        authors = {s.author for s in population}
        assert len({s.author for s in made[1]}) == min(len(authors), len(made[1]))
        # And others than the best, unless there are none.
        best = {s.name for s in made[0]}
        assert {s.name for s in made[1]} != best or len(population) == len(best)


@given(populations(), populations(), st.integers(0, 8))
def test_the_new_stay_and_the_worst_leave(old: list[Solution], new: list[Solution], leaving: int) -> None:
    new = [Solution(f"new {s.name}", s.author, s.reply, s.answer) for s in new]
    size = max(len(old), len(new))
    replaced = old[:leaving]
    after = succession(old, new, size, replaced)
    assert after[-len(new) :] == new
    stayed = [s for s in after if s in old]
    assert not any(s in replaced for s in stayed)
    assert len(after) == min(size, len(new) + len(old) - len(replaced))
    candidates = [s for s in ranked(old) if s not in replaced]
    assert {s.name for s in stayed} == {s.name for s in candidates[: size - len(new)]}


def verified(name: str, answer: str | None) -> Solution:
    return Solution(name, 0, Reply.of(name), answer, 0, (Verdict(1, "correct", ""),) * 2)


def test_consensus_is_of_verified_solutions_with_one_answer() -> None:
    rejected = Solution("x", 0, Reply.of("x"), "7", 0, (Verdict(1, "incorrect", ""),))
    assert not consensus([], 2, 1)
    assert not consensus([verified("a", "7"), rejected], 2, 2)
    assert not consensus([verified("a", "7"), verified("b", "9")], 2, 2)
    assert consensus([verified("a", "7"), verified("b", "7.0")], 2, 2)
    assert consensus([verified("a", None), verified("b", None)], 2, 2)


def test_a_verdict_in_between_breaks_the_run_and_none_does_not() -> None:
    def run(*words: Word | None) -> int:
        return Solution("a", 0, Reply.of("a"), None, 0, tuple(Verdict(1, w, "") for w in words)).run

    assert run("correct", "incorrect", "correct") == 1
    assert run("correct", None, "correct") == 2
    assert run("correct", "incomplete") == 0


@given(st.integers(0, 15), st.integers(0, 30), st.integers(2, 16))
def test_a_verifier_is_another_agent_and_all_take_their_turn(author: int, check: int, agents: int) -> None:
    author %= agents
    assert verifier_of(author, check, agents) != author
    turns = {verifier_of(author, check + i, agents) for i in range(agents - 1)}
    assert turns == set(range(agents)) - {author}


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("Verdict: CORRECT", "correct"),
        ("**Verdict:** INCORRECT", "incorrect"),
        ("verdict - `INCOMPLETE`.", "incomplete"),
        ("Verdict: the solution is CORRECT", "correct"),
        ("Verdict: not correct", "incorrect"),
        ("Verdict: CORRECT\nNo, wait.\nVerdict: INCORRECT", "incorrect"),
        ("All is well.\nCORRECT", "correct"),
        ("**INCOMPLETE**", "incomplete"),
        ("It is correct, I think.", None),
        ("Verdict: <CORRECT, INCORRECT or INCOMPLETE>", None),
        ("Verdict: unsure", None),
        ("Verdict: complete", None),
        ("", None),
    ],
)
def test_verdicts_are_read(text: str, word: Word | None) -> None:
    assert read_verdict(text) == word


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("Write a Python function that reverses a list.", "code"),
        (
            'import math\n\ndef f(xs: list[int]) -> int:\n    """ Sum.\n    >>> f([1])\n    1\n    """',
            "code",
        ),
        ("Natalia sold clips to 48 friends. How many clips did she sell?", "math"),
        ("Find $x$ such that $x^2 = 2$.", "math"),
        ("Prove that there are infinitely many primes.", "math"),
        ("Who was Ada Lovelace?", "general"),
        ("Write a movie script about a robot.", "general"),
        ("What does this function do?", "general"),
    ],
)
def test_kinds_of_questions(question: str, kind: str) -> None:
    assert kind_of(question) == kind
