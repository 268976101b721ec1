"""Compositions as they run: calls, depth, order, failures, budgets, n, streams."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from optillm.core.execute import Job
from optillm.core.llm import LLM
from optillm.core.params import ApproachParams
from optillm.core.plan import Chain, Par, Plan, Reduce, Unit, width
from optillm.core.registry import Approach, Registry, approach
from optillm.core.reply import Answer, Reply
from optillm.core.task import Message, Task, user
from optillm.library import solve
from optillm.plugins import builtin_registry
from optillm.protocol.errors import InvalidRequest
from tests.fakes import Fault, Said, ScriptedUpstream, Seen, refusal
from tests.fakes import Reply as Sent
from tests.serving import Answer as Answered
from tests.serving import Proxy, serving

pytestmark = pytest.mark.anyio


class Nothing(ApproachParams):
    """No parameters."""


def speaker(slug: str) -> Approach:
    """An approach of one call, which tells the upstream who speaks."""

    @approach(slug, family="test", title=slug, calls="1", depth="1", worst=lambda p, sigma: 1)
    async def speak(task: Task, llm: LLM, p: Nothing) -> Answer:
        return Answer((await llm.answer(f"{slug}.say", task.instructed(f"You are {slug}.").messages),))

    return speak


def rewriter(slug: str, change: Callable[[str], str]) -> Approach:
    """An approach that changes the text of every message and hands the task on."""

    def rewritten(task: Task, p: Nothing) -> Task:
        return task.with_messages(Message({**m.raw, "content": change(m.text)}) for m in task.messages)

    @approach(
        slug,
        family="test",
        title=slug,
        calls="1",
        depth="1",
        worst=lambda p, sigma: 1,
        rewrite=rewritten,
    )
    async def rewriting(task: Task, llm: LLM, p: Nothing) -> Answer:
        return Answer((await llm.answer(f"{slug}.say", rewritten(task, p).messages),))

    return rewriting


def refuse(text: str) -> str:
    raise InvalidRequest("nothing to rewrite", param="messages")


async def ponder_over(task: Task, llm: LLM, p: Nothing, candidates: Sequence[Reply]) -> Answer:
    """Ask once for each candidate, keep nothing on the way, return the last candidate."""
    for i in range(len(candidates)):
        await llm.ask(f"ponder[{i}]", (user("Well?"),))
    return Answer((candidates[-1],))


@approach(
    "ponder",
    family="test",
    title="ponder",
    calls="1",
    depth="1",
    worst=lambda p, sigma: 1,
    reduce=ponder_over,
    worst_reduce=lambda p, candidates: candidates,
)
async def ponder(task: Task, llm: LLM, p: Nothing) -> Answer:
    return Answer((await llm.answer("ponder.say", task.messages),))


async def write(task: Task, llm: LLM, p: Nothing, candidates: Sequence[Reply]) -> Answer:
    """One call, and no thought of its failure."""
    prompt = task.asking("Write the best reply to the original request.")
    return Answer((await llm.answer("scribe.write", prompt.messages),))


@approach(
    "scribe",
    family="test",
    title="scribe",
    calls="1",
    depth="1",
    worst=lambda p, sigma: 1,
    reduce=write,
    worst_reduce=lambda p, candidates: 1,
)
async def scribe(task: Task, llm: LLM, p: Nothing) -> Answer:
    return await write(task, llm, p, ())


async def look_up(task: Task, llm: LLM, p: Nothing) -> Task:
    """Ask for a hint, and hand the question on with it."""
    hint = await llm.ask("lookup.hint", (user(f"A hint for: {task.text}"),))
    llm.keep(hint, draft=True)
    if hint.text == "broken":
        await llm.ask("lookup.again", (user("Again"),))
    llm.told["lookup"] = hint.text
    return task.asking(f"Hint: {hint.text}")


@approach(
    "lookup",
    family="test",
    title="lookup",
    calls="2",
    depth="2",
    worst=lambda p, sigma: 2,
    enrich=look_up,
    worst_enrich=lambda p: 1,
)
async def lookup(task: Task, llm: LLM, p: Nothing) -> Answer:
    return Answer((await llm.answer("lookup.say", (await look_up(task, llm, p)).messages),), dict(llm.told))


SPEAKERS = ("one", "two", "three")
REGISTRY = Registry(
    [
        *builtin_registry(),
        *(speaker(s) for s in SPEAKERS),
        ponder,
        scribe,
        lookup,
        rewriter("hide", lambda text: text.replace("Alice", "[name]")),
        rewriter("shout", str.upper),
        rewriter("refuse", refuse),
    ]
)
ABLE = ", ".join(a.slug for a in REGISTRY if a.reduces)


def who(call: Seen) -> str:
    """The speaker of a call, or its stage."""
    found = re.search(r"You are (one|two|three)\.", call.system)
    if "best reply to the original request" in call.last:
        return "final"
    return found.group(1) if found else call.stage


def scripted(says: Mapping[str, Any] | None = None) -> ScriptedUpstream:
    """Each speaker says its name, every rating is 5, unless told otherwise by speaker or stage."""
    told = {
        "rate": "Score: 5",
        "eval": "Score: 0.5",
        "user": "more?",
        "critique": "K",
        "final": "F",
        **(says or {}),
    }

    def script(call: Seen) -> Any:
        said = told.get(who(call), [f"{who(call)}-{i}" for i in range(call.n)])
        return said(call) if callable(said) else said

    return ScriptedUpstream(script)


def favouring(text: str) -> Callable[[Seen], Said]:
    """A rater that likes one candidate."""
    return lambda call: "Score: 9" if f"\n{text}\n" in call.text else "Score: 2"


def spoken(up: ScriptedUpstream) -> list[str]:
    return sorted(who(c) for c in up.calls)


def heard(up: ScriptedUpstream, name: str) -> str:
    """The text of the one call of a speaker or stage."""
    (text,) = [c.text for c in up.calls if who(c) == name]
    return text


async def notes(proxy: Proxy, answer: Answered, name: str) -> list[dict[str, Any]]:
    run = (await proxy.get(f"/v1/runs/{answer.info['run_id']}")).json
    return [r["data"] for r in run["records"] if r["kind"] == "note" and r["name"] == name]


class Gate:
    """Holds a reply back until it is opened."""

    def __init__(self, then: Said = "ok") -> None:
        self.event = asyncio.Event()
        self.then = then

    async def __call__(self, call: Seen) -> Said:
        await self.event.wait()
        return self.then


# -- (a|b)>c ------------------------------------------------------------------------------------


async def test_the_reducer_rates_the_branches_answers_and_returns_the_best() -> None:
    async with scripted({"rate": favouring("two-0")}) as up, serving(up, registry=REGISTRY) as proxy:
        answer = await proxy.ask("(one|two|three)>bon-m")
        assert answer.texts == ["two-0"]
        assert spoken(up) == ["one", "rate", "rate", "rate", "three", "two"]
        assert (answer.info["calls"], answer.info["depth"]) == (6, 2)
        assert answer.info["approach"] == "(one|two|three)>bon"
        assert "failed" not in answer.info
        assert {c.body["model"] for c in up.calls} == {"m"}
        assert await notes(proxy, answer, "reduce") == [{"candidates": list(SPEAKERS), "winner": "two"}]


async def test_synthesis_of_the_branches_answers() -> None:
    async with scripted() as up, serving(up, registry=REGISTRY) as proxy:
        answer = await proxy.ask("(two|one)>moa-m")
        assert answer.texts == ["F"]
        assert spoken(up) == ["critique", "final", "one", "two"]
        assert (answer.info["calls"], answer.info["depth"]) == (4, 3)
        for stage in ("critique", "final"):
            assert re.search(
                r"<candidate-1-\w+>\ntwo-0\n.*<candidate-2-\w+>\none-0\n", heard(up, stage), re.S
            )
        # A reply that no branch wrote has no winner.
        assert await notes(proxy, answer, "reduce") == [{"candidates": ["two", "one"], "winner": None}]


async def test_vote_over_the_branches_answers() -> None:
    says = {"one": "The answer is 7", "two": "The answer is 8", "three": "So it is. The answer is 8.0"}
    async with scripted(says) as up, serving(up, registry=REGISTRY) as proxy:
        answer = await proxy.ask("(one|two|three)>self_consistency-m")
        assert answer.texts == ["The answer is 8"]
        assert (answer.info["calls"], answer.info["depth"]) == (3, 1)
        assert (await notes(proxy, answer, "reduce"))[0]["winner"] == "two"


async def test_branches_run_at_once_and_stand_in_the_order_written() -> None:
    first, last = Gate("one-0"), Gate("two-0")
    async with scripted({"one": first, "two": last}) as up, serving(up, registry=REGISTRY) as proxy:
        running = asyncio.ensure_future(proxy.ask("(one|two)>bon-m"))
        await up.until(lambda: up.in_flight == 2)
        last.event.set()
        await up.until(lambda: up.in_flight == 1)
        first.event.set()
        answer = await running
        # All are rated alike: the first one written wins, not the first to come.
        assert answer.texts == ["one-0"]
        assert (await notes(proxy, answer, "reduce"))[0]["candidates"] == ["one", "two"]


async def test_branches_of_several_calls_count_with_their_depth() -> None:
    async with scripted() as up, serving(up, registry=REGISTRY) as proxy:
        answer = await proxy.ask("((one&two&three)|bon(n=2)|one)>moa-m")
        # 3 in a row, 1 + 2 ratings, 1; then critique and synthesis.
        assert answer.info["calls"] == 3 + 3 + 1 + 2
        assert answer.info["depth"] == 3 + 2


async def test_one_candidate_needs_no_reducer() -> None:
    async with scripted() as up, serving(up, registry=REGISTRY) as proxy:
        for reducer in ("ponder", "bon(judge_samples=3)", "moa", "self_consistency(mode=llm)"):
            up.calls.clear()
            answer = await proxy.ask(f"one>{reducer}-m")
            assert (answer.texts, answer.info["calls"]) == (["one-0"], 1)
            assert (await notes(proxy, answer, "reduce"))[0]["winner"] == "one"


async def test_a_reduced_group_is_a_branch_like_any_other() -> None:
    rate = favouring("two-0")
    async with scripted({"rate": rate}) as up, serving(up, registry=REGISTRY) as proxy:
        answer = await proxy.ask("(((one|two)>bon)|three)>moa(critique=false)-m")
        assert answer.texts == ["F"]
        assert (answer.info["calls"], answer.info["depth"]) == (3 + 2 + 1, 3)
        assert "two-0" in heard(up, "final")
        assert "one-0" not in heard(up, "final")
        assert [n["candidates"] for n in await notes(proxy, answer, "reduce")] == [
            ["one", "two"],
            ["(one|two)>bon", "three"],
        ]


async def test_the_choice_carries_no_branch_when_there_is_one_answer() -> None:
    async with scripted() as up, serving(up, registry=REGISTRY) as proxy:
        assert all("optillm" not in c for c in (await proxy.ask("(one|two)>bon-m", n=2)).json["choices"])
        assert all("optillm" not in c for c in (await proxy.ask("bon-m", n=2)).json["choices"])


# -- where it can be written ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "(one|two)>bon-m"},
        {"optillm_approach": " ( one | two ) > bon "},
        {"optillm": {"approach": "one|two>bon"}},
        {"question": "What?<optillm_approach>(one|two)>bon</optillm_approach>"},
    ],
)
async def test_everywhere_an_approach_can_be_written(fields: dict[str, Any]) -> None:
    async with scripted({"rate": favouring("two-0")}) as up, serving(up, registry=REGISTRY) as proxy:
        answer = await proxy.ask(**{"model": "m", **fields})
        assert (answer.text, answer.info["approach"], answer.info["model"]) == ("two-0", "(one|two)>bon", "m")


async def test_as_the_servers_default_and_in_the_library() -> None:
    async with (
        scripted({"rate": favouring("re2")}) as up,
        serving(up, approach="(re2|bon(n=1))>bon") as proxy,
    ):
        assert (await proxy.ask("m")).info["approach"] == "(re2|bon(n=1))>bon"
        solution = await solve("What?", approach="re2|bon(n=1)>bon", model="m", upstream=up.base_url)
        assert solution.response["optillm"]["approach"] == "(re2|bon(n=1))>bon"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (
            "(one|two)>mcts",
            f"'mcts' cannot reduce several answers to one. These can: {ABLE}.",
        ),
        ("one>bon>moa", "position 8 of 'one>bon^>moa"),
        ("one|none", "position 5 of 'one|^none"),
    ],
)
async def test_what_makes_no_sense_is_refused_before_the_first_call(spec: str, words: str) -> None:
    async with scripted() as up, serving(up, registry=REGISTRY) as proxy:
        for answer in (await proxy.ask(f"{spec}-m"), await proxy.ask("m", optillm_approach=spec)):
            assert answer.status == 400
            assert words in answer.error["message"]
        assert up.calls == []


async def test_the_list_of_approaches_tells_which_reduce() -> None:
    async with scripted() as up, serving(up) as proxy:
        listed = (await proxy.get("/v1/approaches")).json["data"]
        reducers = {a["id"] for a in listed if a["reduces"]}
        assert {"bon", "moa", "self_consistency"} <= reducers
        assert not reducers & {"none", "re2", "mcts", "cot_reflection"}


# -- failures -------------------------------------------------------------------------------------


async def test_a_failed_branch_is_left_out_and_named() -> None:
    says = {"two": Fault(status=500), "rate": favouring("three-0")}
    async with scripted(says) as up, serving(up, registry=REGISTRY) as proxy:
        answer = await proxy.ask("(one|two|three)>bon-m")
        assert (answer.status, answer.texts) == (200, ["three-0"])
        assert list(answer.info["failed"]) == ["two"]
        assert "500" in answer.info["failed"]["two"]
        assert spoken(up).count("rate") == 2
        assert (await notes(proxy, answer, "reduce"))[0]["candidates"] == ["one", "three"]


async def test_the_only_branch_left_is_the_answer() -> None:
    says = {"one": Fault(status=503), "two": refusal(401, "no"), "three": "3"}
    async with scripted(says) as up, serving(up, registry=REGISTRY) as proxy:
        answer = await proxy.ask("(one|two|three)>bon-m")
        assert (answer.texts, sorted(answer.info["failed"])) == (["3"], ["one", "two"])
        assert spoken(up).count("rate") == 0


async def test_without_any_answer_it_is_the_first_error() -> None:
    says = {"one": refusal(404, "no such model"), "two": Fault(status=500)}
    async with scripted(says) as up, serving(up, registry=REGISTRY) as proxy:
        answer = await proxy.ask("(one|two)>bon-m")
        assert (answer.status, answer.error["message"]) == (404, "no such model")
        assert len(up.calls) == 2


async def test_a_reducer_that_breaks_loses_no_answer() -> None:
    says = {"one": Sent("cut", finish="length"), "final": Fault(status=500)}
    async with scripted(says) as up, serving(up, registry=REGISTRY) as proxy:
        answer = await proxy.ask("(one|two|three)>scribe-m")
        # The first complete one.
        assert (answer.status, answer.texts) == (200, ["two-0"])
        assert list(answer.info["failed"]) == ["scribe"]
        assert (await notes(proxy, answer, "reduce"))[0]["winner"] == "two"


async def test_an_upstream_that_refuses_the_reducer_is_an_error() -> None:
    async with scripted({"rate": refusal(403, "not for you")}) as up, serving(up, registry=REGISTRY) as proxy:
        answer = await proxy.ask("(one|two)>bon-m")
        assert answer.status == 403
        assert "not for you" in answer.error["message"]


async def test_a_failed_branch_in_the_middle_of_a_chain_is_named_too() -> None:
    async with scripted({"one": Fault(status=500)}) as up, serving(up, registry=REGISTRY) as proxy:
        answer = await proxy.ask("(one|two)&three-m")
        assert (answer.texts, list(answer.info["failed"])) == (["three-0"], ["one"])
        assert "\ntwo-0\n" in heard(up, "three")


async def test_a_failed_pipeline_of_several_is_named() -> None:
    def script(call: Seen) -> Said:
        return Fault(status=500) if call.body["seed"] >= 1000 else "ok"

    async with ScriptedUpstream(script) as up, serving(up, registry=REGISTRY) as proxy:
        answer = await proxy.ask("one-m", n=3, seed=1)
        assert (answer.texts, list(answer.info["failed"])) == (["ok"], ["one"])
        assert len(up.calls) == 3


async def test_a_rewriter_that_fails_fails_its_branch_only() -> None:
    async with scripted() as up, serving(up, registry=REGISTRY) as proxy:
        answer = await proxy.ask("(refuse&one)|two-m")
        assert (answer.texts, answer.info["failed"]) == (["two-0"], {"refuse&one": "nothing to rewrite"})
        alone = await proxy.ask("refuse&one-m")
        assert (alone.status, alone.error["param"]) == (400, "messages")


# -- budgets --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reducer", "most"),
    [("bon", 2), ("moa", 2), ("moa", 3), ("ponder", 2), ("ponder", 3), ("self_consistency", 2)],
)
async def test_a_budget_that_ends_before_the_reducer_leaves_a_branchs_answer(reducer: str, most: int) -> None:
    async with scripted() as up, serving(up, registry=REGISTRY) as proxy:
        answer = await proxy.ask(f"(one|two)>{reducer}-m", optillm_budget={"max_calls": most})
        assert (answer.status, answer.texts) == (200, ["one-0"])
        assert answer.info["calls"] == len(up.calls) == most
        assert "failed" not in answer.info
        assert answer.info.get("cut_short") == (None if reducer == "self_consistency" else "max_calls")


async def test_a_budget_for_one_branch_names_the_other() -> None:
    async with scripted() as up, serving(up, registry=REGISTRY) as proxy:
        answer = await proxy.ask("(one|two)>bon-m", optillm_budget={"max_calls": 1})
        assert (answer.texts, answer.info["cut_short"]) == (["one-0"], "max_calls")
        assert "max_calls" in answer.info["failed"]["two"]


async def test_a_branch_that_finished_beats_one_that_was_cut() -> None:
    # moa is cut before its synthesis and leaves a proposal; two has finished.
    async with scripted() as up, serving(up, registry=REGISTRY) as proxy:
        answer = await proxy.ask("(moa|two)>moa-m", optillm_budget={"max_calls": 3})
        assert spoken(up) == ["critique", "sample", "two"]
        assert (answer.status, answer.texts) == (200, ["two-0"])
        assert answer.info["cut_short"] == "max_calls"
        assert (await notes(proxy, answer, "reduce"))[0] == {"candidates": ["two"], "winner": "two"}
        assert list(answer.info["failed"]) == ["moa"]


async def test_without_a_branch_that_finished_the_best_so_far_counts() -> None:
    async with scripted() as up, serving(up, registry=REGISTRY) as proxy:
        answer = await proxy.ask("(moa|moa)>bon-m", optillm_budget={"max_calls": 4})
        assert (answer.texts, answer.info["cut_short"]) == (["sample-0"], "max_calls")
        assert "failed" not in answer.info


async def test_a_chain_that_is_cut_returns_one_answer_of_the_step_before() -> None:
    async with scripted() as up, serving(up, registry=REGISTRY) as proxy:
        answer = await proxy.ask("(one|two)&three-m", optillm_budget={"max_calls": 2})
        assert (answer.texts, answer.info["cut_short"]) == (["one-0"], "max_calls")
        answer = await proxy.ask("(one|two)>bon&three-m", optillm_budget={"max_calls": 4})
        assert (answer.texts, answer.info["cut_short"]) == (["one-0"], "max_calls")


@pytest.mark.parametrize(
    ("spec", "n", "worst"),
    [
        # Every sample is a call of its own here.
        ("(bon(n=4)|moa)>bon(judge_samples=9)", 1, (4 + 4) + (3 + 2) + 2 * 9),
        ("(bon(n=4)|moa)>bon(judge_samples=9)", 2, 2 * ((4 + 4) + (3 + 2) + 2 * 9)),
        ("re2&(one|two|three)>moa", 1, 3 + 2),
        ("(one|two)>self_consistency", 1, 2),
        ("(one|two)>self_consistency(mode=llm)", 3, 3 * 3),
        ("(one&(two|three))>bon", 1, 3 + 2),
        ("one>moa", 2, 2),
        ("one>ponder", 2, 2),
        ("(one|(two&(one|two)))>ponder", 1, 1 + 3 + 3),
        ("(one|two)>bon&three", 1, 2 + 2 + 1),
    ],
)
async def test_the_worst_case_is_known_before_the_first_call(spec: str, n: int, worst: int) -> None:
    options: Any = {"registry": REGISTRY, "n_mode": "fanout"}
    async with scripted() as up:
        async with serving(up, **options, max_upstream_calls=worst - 1) as proxy:
            answer = await proxy.ask(f"{spec}-m", n=n)
            assert answer.status == 400
            assert (
                f"can take {worst} upstream calls; the limit of this server is {worst - 1}"
                in (answer.error["message"])
            )
            assert up.calls == []
        async with serving(up, **options, max_upstream_calls=worst) as proxy:
            assert (await proxy.ask(f"{spec}-m", n=n)).info["calls"] <= worst


# -- n, seeds, parameters -------------------------------------------------------------------------


async def test_n_runs_the_whole_n_times() -> None:
    async with scripted() as up, serving(up, registry=REGISTRY) as proxy:
        answer = await proxy.ask("(one|two)>bon-m", n=3)
        assert answer.texts == ["one-0"] * 3
        assert (answer.info["calls"], answer.info["depth"]) == (3 * 4, 2)


async def test_whatever_runs_side_by_side_draws_its_own_samples() -> None:
    async with scripted() as up, serving(up, registry=REGISTRY) as proxy:
        for spec, calls in (("(one|one)>bon", 4), ("one|one", 4), ("(one|(two&one|one))>bon", 8)):
            up.calls.clear()
            await proxy.ask(f"{spec}-m", n=2, seed=7)
            seeds = [c.body["seed"] for c in up.calls if who(c) == "one" and "seed" in c.body]
            assert len(seeds) == len(set(seeds)), spec
            assert sum(who(c) in SPEAKERS for c in up.calls) == calls
            assert min(seeds) == 7


async def test_parameters_reach_branch_and_reducer() -> None:
    async with scripted() as up, serving(up, registry=REGISTRY) as proxy:
        spec = "(bon(n=2)|one)>bon(judge_samples=3)"
        answer = await proxy.ask(f"{spec}-m", bon_judge_temperature=0.7)
        assert answer.info["params"]["bon"]["n"] == 2
        assert answer.info["params"]["bon(judge_samples=3)"]["judge_samples"] == 3
        # The branch rates its two samples once each; the reducer rates both branches three times.
        ratings = [c for c in up.calls if who(c) == "rate"]
        assert len(ratings) == 2 + 2 * 3
        assert {c.body["temperature"] for c in ratings} == {0.7}


# -- a&b ------------------------------------------------------------------------------------------


async def test_a_chain_hands_on_the_question_and_the_answer_before() -> None:
    async with scripted() as up, serving(up, registry=REGISTRY) as proxy:
        answer = await proxy.ask("one&two&three-m", "What is 2+2?")
        assert (answer.texts, answer.info["depth"]) == (["three-0"], 3)
        assert "one-0" in heard(up, "two")
        # Not the whole history: the question, and what has been made of it last.
        assert "two-0" in heard(up, "three")
        assert "one-0" not in heard(up, "three")
        assert heard(up, "three").count("What is 2+2?") == 1


async def test_a_rewriter_changes_the_question_not_the_answers_so_far() -> None:
    async with scripted() as up, serving(up, registry=REGISTRY) as proxy:
        answer = await proxy.ask("one&re2&two-m", "What is 2+2?")
        assert answer.info["calls"] == 2
        assert heard(up, "one").count("What is 2+2?") == 1
        assert heard(up, "two").count("What is 2+2?") == 2
        assert heard(up, "two").count("one-0") == 1


async def test_a_chain_around_a_group() -> None:
    async with scripted({"rate": favouring("two-0")}) as up, serving(up, registry=REGISTRY) as proxy:
        answer = await proxy.ask("shout&(one|two)>bon&three-m", "What is it?")
        assert (answer.texts, answer.info["calls"], answer.info["depth"]) == (["three-0"], 2 + 2 + 1, 3)
        assert all("WHAT IS IT?" in c.text and "What is it?" not in c.text for c in up.calls)
        assert "two-0" in heard(up, "three")
        assert "one-0" not in heard(up, "three")


async def test_a_rewriter_before_a_group_reaches_all_of_it() -> None:
    async with scripted() as up, serving(up, registry=REGISTRY) as proxy:
        answer = await proxy.ask("hide&((one&two)|bon(n=2)|(two|three)>moa)>bon&moa-m", "Who is Alice?")
        assert answer.status == 200
        assert answer.info["depth"] == 3 + 1 + 3
        assert all("Alice" not in c.text and "[name]" in c.text for c in up.calls)


async def test_a_rewriter_in_parentheses_reaches_no_further() -> None:
    async with scripted() as up, serving(up, registry=REGISTRY) as proxy:
        await proxy.ask("((hide&one)|two)>bon&three-m", "Who is Alice?")
        assert "Alice" not in heard(up, "one")
        assert "Alice" in heard(up, "two")
        assert "Alice" in heard(up, "three")
        assert all("Alice" in c.text for c in up.calls if who(c) == "rate")


async def test_a_group_at_the_end_of_a_chain_gives_its_choices() -> None:
    async with scripted() as up, serving(up, registry=REGISTRY) as proxy:
        answer = await proxy.ask("one&(two|three)-m")
        assert answer.texts == ["two-0", "three-0"]
        assert [c["optillm"]["approach"] for c in answer.json["choices"]] == ["one&two", "one&three"]
        assert answer.info["calls"] == 3


async def test_a_question_cannot_be_multiplied_without_end() -> None:
    async with scripted() as up, serving(up, registry=REGISTRY) as proxy:
        answer = await proxy.ask("m", optillm_approach="re2(times=3)&" * 40 + "one")
        assert (answer.status, answer.error["code"]) == (400, "question_too_long")
        assert up.calls == []


# -- streams --------------------------------------------------------------------------------------


def streamed(events: list[str]) -> tuple[dict[int, str], list[int], dict[str, Any]]:
    """Content per choice, the choices in the order in which they finish, and the run's object."""
    assert events[-1] == "[DONE]"
    content: dict[int, str] = {}
    finished: list[int] = []
    chunks = [json.loads(e) for e in events[:-1]]
    for choice in (c for chunk in chunks for c in chunk["choices"]):
        content[choice["index"]] = content.get(choice["index"], "") + choice["delta"].get("content", "")
        if choice["finish_reason"]:
            finished.append(choice["index"])
    return content, finished, chunks[-1]["optillm"]


async def test_the_reducers_last_call_streams_and_no_other() -> None:
    async with scripted({"final": "The final answer"}) as up, serving(up, registry=REGISTRY) as proxy:
        content, finished, info = streamed(await proxy.events("(one|two)>moa-m"))
        assert (content, finished) == ({0: "The final answer"}, [0])
        assert {who(c): bool(c.body.get("stream")) for c in up.calls} == {
            "one": False,
            "two": False,
            "critique": False,
            "final": True,
        }
        assert (info["calls"], info["depth"]) == (4, 3)


async def test_a_selected_answer_is_shown_once() -> None:
    async with scripted({"rate": favouring("two-0")}) as up, serving(up, registry=REGISTRY) as proxy:
        content, finished, _ = streamed(await proxy.events("(one|two)>bon-m", n=2))
        assert (content, finished) == ({0: "two-0", 1: "two-0"}, [0, 1])
        assert not any(c.body.get("stream") for c in up.calls)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("one&(two|three)", ["two-0", "three-0", "two-0", "three-0"]),
        ("(one|two)|three", ["one-0", "one-0", "two-0", "two-0", "three-0", "three-0"]),
        ("(three&(one|two))|three", ["one-0", "two-0", "one-0", "two-0", "three-0", "three-0"]),
        ("((one|two)>moa)|three", ["F", "F", "three-0", "three-0"]),
    ],
)
async def test_every_choice_streams_under_its_own_index(spec: str, expected: list[str]) -> None:
    async with scripted() as up, serving(up, registry=REGISTRY) as proxy:
        content, finished, _ = streamed(await proxy.events(f"{spec}-m", n=2))
        assert content == dict(enumerate(expected))
        assert finished == list(range(len(expected)))
        assert (await proxy.ask(f"{spec}-m", n=2)).texts == expected


async def test_a_failed_branch_leaves_an_empty_choice_in_a_stream() -> None:
    async with scripted({"one": Fault(status=500)}) as up, serving(up, registry=REGISTRY) as proxy:
        content, finished, info = streamed(await proxy.events("one|two-m"))
        assert (content, finished) == ({0: "", 1: "two-0"}, [0, 1])
        assert list(info["failed"]) == ["one"]


async def test_a_reducers_stream_that_breaks_ends_with_an_error() -> None:
    async with scripted({"final": Fault("cut_stream")}) as up, serving(up, registry=REGISTRY) as proxy:
        events = await proxy.events("(one|two)>moa-m")
        assert "error" in json.loads(events[-1])
        assert "one-0" not in "".join(events)


async def test_a_reducer_that_breaks_before_it_showed_anything_falls_back() -> None:
    async with scripted({"final": Fault(status=500)}) as up, serving(up, registry=REGISTRY) as proxy:
        content, _, info = streamed(await proxy.events("(one|two)>scribe-m"))
        assert (content, list(info["failed"])) == ({0: "one-0"}, ["scribe"])


# -- any composition ------------------------------------------------------------------------------


def every_sample_differs(call: Seen) -> Said:
    """So that no candidates are merged; ratings are readable, and the simulated user goes on."""
    if who(call) in ("rate", "eval"):
        return "Score: 0.5"
    key = f"{call.text}{call.body.get('seed')}"
    return [f"text {random.Random(f'{key}{i}').getrandbits(60):x}" for i in range(call.n)]


def random_plan(rng: random.Random, depth: int) -> Plan:
    kind = rng.choice(["unit", "par", "chain", "reduce"]) if depth else "unit"
    if kind == "unit":
        return Unit(rng.choice([*SPEAKERS, "re2", "shout", "bon", "self_consistency"]))
    if kind == "reduce":
        return Reduce(random_plan(rng, depth - 1), Unit(rng.choice(["bon", "moa", "self_consistency"])))
    inner = tuple(random_plan(rng, depth - 1) for _ in range(rng.randint(2, 3)))
    return Par(inner) if kind == "par" else Chain(inner)


def longest(plan: Plan, registry: Registry) -> int:
    """The depth of a plan by its definition, when all samples of an approach come in one call."""
    if isinstance(plan, Unit):
        return 2 if plan.slug == "bon" else 1
    if isinstance(plan, Par):
        return max(longest(b, registry) for b in plan.branches)
    if isinstance(plan, Reduce):
        extra = {"bon": 1, "moa": 2, "self_consistency": 0}[plan.reducer.slug]
        return longest(plan.par, registry) + (extra if width(plan.par) > 1 else 0)
    *before, last = plan.steps
    asking = [s for s in before if not (isinstance(s, Unit) and registry[s.slug].rewrite)]
    return sum(longest(s, registry) for s in (*asking, last))


@pytest.mark.parametrize("seed", range(12))
async def test_any_composition_keeps_to_its_calls_depth_and_choices(seed: int) -> None:
    rng = random.Random(seed)
    options: Any = {"registry": REGISTRY, "max_upstream_calls": 10_000, "n_mode": "native"}
    async with ScriptedUpstream(every_sample_differs) as up, serving(up, **options) as proxy:
        for _ in range(4):
            plan, n = random_plan(rng, 3), rng.randint(1, 2)
            up.calls.clear()
            answer = await proxy.ask("m", optillm_approach=str(plan), n=n, seed=seed)
            assert answer.status == 200, answer.json
            assert len(answer.texts) == n * width(plan), plan
            assert answer.info["calls"] == len(up.calls) == Job(plan, REGISTRY, {}).worst(n, lambda k: 1), (
                plan
            )
            assert answer.info["depth"] == longest(plan, REGISTRY), plan


DOCS = Path(__file__).parents[2] / "docs" / "composition.md"
COSTS = re.findall(r"^(\S+) +(\d+) calls, depth (\d+)$", DOCS.read_text(), re.M)
ERRORS = re.findall(r"^(position \d+ of '(.+?)': .+?)…?$", DOCS.read_text(), re.M)


async def test_the_costs_in_the_documentation() -> None:
    assert len(COSTS) > 10
    async with ScriptedUpstream(every_sample_differs) as up, serving(up, n_mode="native") as proxy:
        for spec, calls, depth in COSTS:
            answer = await proxy.ask(f"{spec}-m", seed=1)
            assert (answer.info["calls"], answer.info["depth"]) == (int(calls), int(depth)), spec


async def test_the_errors_in_the_documentation() -> None:
    assert len(ERRORS) == 4
    async with scripted() as up, serving(up) as proxy:
        for message, shown in ERRORS:
            answer = await proxy.ask("m", optillm_approach=shown.replace("^", ""))
            assert answer.error["message"].startswith(message)


def test_a_plan_with_an_approach_that_cannot_tell_its_calls_has_no_worst_case() -> None:
    silent = replace(REGISTRY["one"], worst=None)
    mute = replace(REGISTRY["bon"], worst_reduce=None)
    registry = Registry(REGISTRY, [silent, mute])
    assert Job(Par((Unit("two"), Unit("one"))), registry, {}).worst(1, lambda k: k) is None
    assert (
        Job(Reduce(Par((Unit("two"), Unit("three"))), Unit("bon")), registry, {}).worst(1, lambda k: k)
        is None
    )
    assert Job(Unit("bon"), registry, {}).worst(1, lambda k: k) == 6


def hinting(hint: Said = "a hint") -> ScriptedUpstream:
    def script(call: Seen) -> Said:
        if call.last.startswith("A hint for"):
            return hint
        return f"{who(call)} knows: {call.last}"

    return ScriptedUpstream(script)


async def test_a_step_that_asks_hands_on_its_task_and_what_it_tells() -> None:
    async with hinting() as up, serving(up, registry=REGISTRY) as proxy:
        answer = await proxy.ask("lookup&one-m", "Q?")
        assert answer.text == "one knows: Q?\n\nHint: a hint"
        assert (answer.info["calls"], answer.info["depth"], answer.info["lookup"]) == (2, 2, "a hint")
        answer = await proxy.ask("lookup-m", "Q?")
        assert (answer.info["calls"], answer.info["lookup"]) == (2, "a hint")


async def test_a_step_that_asks_is_enriched_by_the_ones_before_and_once_per_choice() -> None:
    async with hinting() as up, serving(up, registry=REGISTRY) as proxy:
        answer = await proxy.ask("shout&lookup&(one|two)-m", "q?", n=2)
        said = [f"{w} knows: Q?\n\nHint: a hint" for w in ("one", "two")]
        assert sorted(answer.texts) == sorted(said * 2)
        assert len([c for c in up.calls if c.last == "A hint for: Q?"]) == 2


async def test_a_step_that_fails_fails_its_branch_only() -> None:
    async with hinting(Fault(status=500)) as up, serving(up, registry=REGISTRY) as proxy:
        answer = await proxy.ask("(lookup&one)|two-m", "Q?")
        assert answer.texts == ["two knows: Q?"]
        assert list(answer.info["failed"]) == ["lookup&one"]


async def test_a_step_cut_by_the_budget_leaves_the_best_there_was() -> None:
    budget = {"optillm_budget": {"max_calls": 1}}
    async with hinting("broken") as up, serving(up, registry=REGISTRY) as proxy:
        answer = await proxy.ask("lookup&one-m", "Q?", **budget)
        assert (answer.text, answer.info["cut_short"]) == ("broken", "max_calls")
        budget = {"optillm_budget": {"max_calls": 2}}
        answer = await proxy.ask("one&lookup&two-m", "Q?", **budget)
        assert (answer.text, answer.info["cut_short"]) == ("one knows: Q?", "max_calls")


def test_the_calls_of_a_step_that_asks_are_part_of_the_worst_case() -> None:
    chain = Chain((Unit("lookup"), Unit("re2"), Unit("one")))
    assert Job(chain, REGISTRY, {}).worst(1, lambda k: k) == 2
    silent = Registry(REGISTRY, [replace(REGISTRY["lookup"], worst_enrich=None)])
    assert Job(chain, silent, {}).worst(1, lambda k: k) is None
    assert Job(Unit("lookup"), silent, {}).worst(1, lambda k: k) == 2
