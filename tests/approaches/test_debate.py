"""Multi-agent debate: independent replies, rounds of revision, a vote or a closing reply."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optillm.approaches.sampling.debate import debate, vote
from optillm.core.reply import Reply as CoreReply
from tests.approaches.common import calls_a_tool, images, pictured, streamed, tool, tool_call, worst
from tests.fakes import Fault, Reply, Said, ScriptedUpstream, Seen, refusal
from tests.serving import serving

ROLES = {"summarise the replies": "summary"}
Updates = dict[tuple[int, str], Said]


def turn(call: Seen) -> int:
    """Which round a call belongs to; 0 is the first reply."""
    return call.text.count("Other agents were given")


def own(call: Seen) -> str:
    """The first reply of the agent whose turn it is."""
    return next(str(m["content"]) for m in call.messages if m["role"] == "assistant")


def is_closing(call: Seen) -> bool:
    return "Several agents have debated" in call.last


def debating(
    first: Sequence[Reply | str] = ("a: 1", "b: 2", "c: 2"),
    updates: Updates | None = None,
    summary: Said = "They differ.",
    final: Said = "CLOSED",
) -> ScriptedUpstream:
    """Agents known by their first reply; ``updates`` by round and agent, else they keep to it."""

    def script(call: Seen) -> Said:
        if call.stage == "summary":
            return summary
        if is_closing(call):
            return final
        if turn(call):
            return (updates or {}).get((turn(call), own(call)), own(call))
        if call.n == 1:
            return first[int(call.body.get("seed", 0)) % len(first)]
        return list(first)

    return ScriptedUpstream(script, roles=ROLES)


def answers(*texts: str) -> tuple[str, ...]:
    return tuple(f"{t}\nThe answer is {t}" for t in texts)


@pytest.mark.anyio
async def test_agents_read_the_others_and_the_majority_wins() -> None:
    first = answers("1", "2", "3")
    changed = "The answer is 2"
    updates: Updates = {(1, first[0]): changed, (2, first[0]): changed, (2, first[2]): "The answer is 7"}
    async with debating(first, updates) as up, serving(up) as proxy:
        answer = await proxy.ask("debate-test-model", "Q?", debate_rounds=2)
        assert answer.text == "The answer is 2"
        assert (answer.info["calls"], answer.info["depth"], len(up.calls)) == (7, 3, 7)
        for call in up.calls[1:4]:
            assert [m["role"] for m in call.messages] == ["user", "assistant", "user"]
            # The others' replies, and not the agent's own, are shown as candidates.
            assert [t for t in first if f"\n{t}\n" in call.last] == [t for t in first if t != own(call)]
        second = [c for c in up.calls if turn(c) == 2]
        assert all(c.messages[0]["content"] == "Q?" and len(c.messages) == 5 for c in second)
        assert sum(">\nThe answer is 2\n" in c.last for c in second) == 2


@pytest.mark.anyio
async def test_without_a_majority_a_closing_reply_settles_it() -> None:
    async with debating(answers("1", "2", "3")) as up, serving(up) as proxy:
        answer = await proxy.ask("debate-test-model", debate_rounds=1)
        assert (answer.text, answer.info["calls"], answer.info["depth"]) == ("CLOSED", 5, 3)
        assert up.calls[-1].last.count("<candidate-") == 3
    async with debating(answers("1", "2", "3")) as up, serving(up) as proxy:
        answer = await proxy.ask("debate-test-model", debate_rounds=1, debate_final="vote")
        assert (answer.text, answer.info["calls"]) == (answers("1")[0], 4)
    async with debating(answers("2", "2", "2")) as up, serving(up) as proxy:
        answer = await proxy.ask("debate-test-model", debate_rounds=1, debate_final="synthesis")
        assert (answer.text, answer.info["calls"]) == ("CLOSED", 5)


@pytest.mark.anyio
async def test_replies_without_short_answers_are_settled_by_a_closing_reply() -> None:
    long = tuple(f"{c} is a long reply about many things\nin several lines" for c in "abc")
    async with debating(long) as up, serving(up) as proxy:
        assert (await proxy.ask("debate-test-model", debate_rounds=1)).text == "CLOSED"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("fields", "calls", "depth"),
    [
        ({"agents": 3, "rounds": 2}, 3 + 6 + 1, 4),
        ({"agents": 2, "rounds": 1, "summarize": True}, 2 + 4 + 1, 4),
        ({"agents": 4, "rounds": 2, "final": "vote"}, 4 + 8, 3),
        ({"agents": 2, "rounds": 3, "models": ["m1", "m2"]}, 2 + 6 + 1, 5),
    ],
)
async def test_calls_and_depth_at_worst(fields: dict[str, Any], calls: int, depth: int) -> None:
    async with debating(answers("1", "2", "3", "4")) as up, serving(up, n_mode="fanout") as proxy:
        named = {f"debate_{k}": v for k, v in fields.items()}
        answer = await proxy.ask("debate-test-model", seed=0, **named)
        assert (answer.info["calls"], answer.info["depth"], len(up.calls)) == (calls, depth, calls)
    assert worst(debate, **{**fields, "models": tuple(fields.get("models", ()))}) == calls


@pytest.mark.anyio
async def test_upstream_that_ignores_n() -> None:
    async with debating(answers("1", "2", "2")) as up, serving(up) as proxy:
        up.n_mode = "ignore"
        answer = await proxy.ask("debate-test-model", seed=0, debate_rounds=1)
        assert (answer.text, answer.info["calls"]) == (answers("2")[0], 6)


@pytest.mark.anyio
async def test_summaries_stand_for_the_others() -> None:
    async with debating(summary="SUM") as up, serving(up) as proxy:
        await proxy.ask("debate-test-model", debate_summarize=True, debate_rounds=1)
        updates = [c for c in up.calls if turn(c)]
        assert all("\nSUM\n" in c.last and "<candidate-" not in c.last for c in updates)
        assert [c.last.count("<candidate-") for c in up.of("summary")] == [2, 2, 2]


@pytest.mark.anyio
@pytest.mark.parametrize("lost", [Reply(""), Fault(status=500)])
async def test_without_a_summary_the_replies_are_shown(lost: Said) -> None:
    async with debating(summary=lost) as up, serving(up) as proxy:
        await proxy.ask("debate-test-model", debate_summarize=True, debate_rounds=1)
        assert all("<candidate-1-" in c.last for c in up.calls if turn(c))


@pytest.mark.anyio
async def test_firm_agents_are_told_to_be_firm() -> None:
    async with debating() as up, serving(up) as proxy:
        await proxy.ask("debate-test-model", debate_stance="firm", debate_rounds=1)
        assert sum("Keep to your own reply unless" in c.last for c in up.calls) == 3


@pytest.mark.anyio
async def test_each_agent_keeps_its_model() -> None:
    async with debating(answers("1", "2", "3")) as up, serving(up) as proxy:
        await proxy.ask("debate-test-model", debate_models=["m1", "m2"], debate_rounds=2, seed=0)
        spoke = {(own(c)[0], c.body["model"]) for c in up.calls if turn(c)}
        assert spoke == {("1", "m1"), ("2", "m2"), ("3", "m1")}


@pytest.mark.anyio
@pytest.mark.parametrize("lost", [Reply(""), Fault(status=503)])
async def test_an_agent_without_an_update_keeps_its_reply(lost: Said) -> None:
    first = answers("1", "2", "2")
    async with debating(first, {(1, first[1]): lost}) as up, serving(up) as proxy:
        assert (await proxy.ask("debate-test-model", debate_rounds=1)).text == first[1]


@pytest.mark.anyio
async def test_agents_without_a_first_reply_take_no_part() -> None:
    async with debating(("The answer is 1", Reply(""), "The answer is 1")) as up, serving(up) as proxy:
        assert (await proxy.ask("debate-test-model", debate_rounds=1)).info["calls"] == 3
    async with debating(("only", Reply(""), Reply(None))) as up, serving(up) as proxy:
        answer = await proxy.ask("debate-test-model")
        assert (answer.text, answer.info["calls"]) == ("only", 1)
    async with debating((Reply(""),) * 3) as up, serving(up) as proxy:
        answer = await proxy.ask("debate-test-model")
        assert (answer.status, answer.error["code"]) == (502, "upstream_empty")


@pytest.mark.anyio
async def test_a_model_that_is_down_does_not_end_the_debate() -> None:
    up = debating(answers("1", "1", "1"))
    inner = up.script
    assert callable(inner)
    up.script = lambda call: Fault(status=500) if call.body["model"] == "down" else inner(call)
    async with up, serving(up) as proxy:
        answer = await proxy.ask("debate-test-model", debate_models=["m1", "down", "m3"], debate_rounds=1)
        assert (answer.status, answer.info["calls"]) == (200, 5)


@pytest.mark.anyio
async def test_a_truncated_reply_has_no_vote_beside_complete_ones() -> None:
    cut = Reply("The answer is 1", finish="length")
    first = answers("1", "2", "1")
    updates: Updates = {(1, first[0]): cut, (1, first[1]): "The answer is 2"}
    async with debating((*first[:2], "x\nThe answer is 2"), updates) as up, serving(up) as proxy:
        assert (await proxy.ask("debate-test-model", debate_rounds=1)).text == "The answer is 2"


@pytest.mark.anyio
async def test_a_tool_call_is_a_vote() -> None:
    first: list[Reply | str] = [calls_a_tool(), calls_a_tool(), "The answer is 3"]
    up = debating(first)
    up.script = lambda call: calls_a_tool() if turn(call) else list(first)
    async with up, serving(up) as proxy:
        answer = await proxy.ask("debate-test-model", tools=[tool()], debate_rounds=1)
        assert answer.json["choices"][0]["message"]["tool_calls"] == [tool_call()]
        assert answer.json["choices"][0]["finish_reason"] == "tool_calls"
        assert all("tools" in c.body for c in up.calls)
        assert not any("tool_calls" in m for c in up.calls for m in c.messages)


@pytest.mark.anyio
@pytest.mark.parametrize("lost", [Reply(""), Fault(status=500)])
async def test_a_lost_closing_reply_leaves_the_vote(lost: Said) -> None:
    first = answers("1", "2", "3")
    async with debating(first, final=lost) as up, serving(up) as proxy:
        assert (await proxy.ask("debate-test-model", debate_rounds=1)).text == first[0]


@pytest.mark.anyio
async def test_conversation_and_images_are_untouched() -> None:
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": pictured("Q")},
    ]
    async with debating() as up, serving(up) as proxy:
        await proxy.ask("debate-test-model", messages=messages, debate_final="synthesis", debate_rounds=1)
        assert [images(c.messages) for c in up.calls] == [1] * 5
        assert all(c.messages[:2] == messages for c in up.calls[:4])


@pytest.mark.anyio
async def test_a_refusal_reaches_the_client() -> None:
    no = refusal(401, "no")
    long = tuple(f"{c} is long\nand has lines" for c in "abc")
    for up in (ScriptedUpstream(no), debating(long, {(1, long[1]): no}), debating(long, final=no)):
        async with up, serving(up) as proxy:
            assert (await proxy.ask("debate-test-model", seed=0)).status == 401


@pytest.mark.anyio
@pytest.mark.parametrize("calls", [1, 2, 3, 4, 5, 6])
async def test_a_budget_votes_on_the_latest_replies(calls: int) -> None:
    first = answers("1", "2", "2")
    async with debating(first) as up, serving(up) as proxy:
        answer = await proxy.ask("debate-test-model", optillm_budget={"max_calls": calls})
        assert (answer.text, answer.info["cut_short"], len(up.calls)) == (first[1], "max_calls", calls)


@pytest.mark.anyio
async def test_the_closing_reply_streams_live_and_a_vote_streams_the_same_answer() -> None:
    async with debating(answers("1", "2", "3")) as up, serving(up) as proxy:
        assert streamed(await proxy.events("debate-test-model", debate_rounds=1)) == "CLOSED"
        assert [bool(c.body.get("stream")) for c in up.calls] == [False] * 4 + [True]
    async with debating(answers("1", "2", "2")) as up, serving(up) as proxy:
        assert streamed(await proxy.events("debate-test-model")) == answers("2")[0]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("agents", 1),
        ("agents", 17),
        ("rounds", 0),
        ("rounds", 9),
        ("stance", "mild"),
        ("models", "m"),
        ("final", 1),
    ],
)
async def test_bad_parameters_make_no_call(field: str, value: Any) -> None:
    async with debating() as up, serving(up) as proxy:
        answer = await proxy.ask("debate-test-model", **{f"debate_{field}": value})
        assert (answer.status, answer.error["param"], up.calls) == (400, f"debate_{field}", [])


@pytest.mark.anyio
async def test_a_debate_too_large_for_the_server_makes_no_call() -> None:
    async with debating() as up, serving(up, max_upstream_calls=100) as proxy:
        answer = await proxy.ask("debate-test-model", debate_agents=16, debate_rounds=8)
        assert (answer.status, answer.error["code"], up.calls) == (400, "too_many_calls", [])


@pytest.mark.anyio
async def test_two_at_once_each_with_its_own_shape() -> None:
    async with debating(answers("2", "2", "2", "2")) as up, serving(up, n_mode="fanout") as proxy:
        await asyncio.gather(
            proxy.ask("debate-test-model", "marker-a", debate_agents=2, debate_rounds=1),
            proxy.ask("debate-test-model", "marker-b", debate_agents=4, debate_rounds=2),
        )
        assert (len(up.stages(marker="marker-a")), len(up.stages(marker="marker-b"))) == (4, 12)


@given(st.lists(st.sampled_from(["1", "2", "3", "long words\nwithout an answer"]), min_size=1, max_size=9))
def test_a_vote_is_settled_only_by_most_votes(said: list[str]) -> None:
    replies = [CoreReply.of(s) for s in said]
    winner, settled = vote(replies)
    counts = {s: said.count(s) for s in set(said) if len(s) == 1}
    if counts:
        assert counts[winner.text] == max(counts.values())
        assert winner is replies[said.index(winner.text)]
    only = list(counts.values()).count(max(counts.values(), default=0)) == 1
    assert settled == (only and 2 * sum(counts.values()) >= len(said))
