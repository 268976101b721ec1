"""The library: one call, one isolated run, without a server."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from openai import AsyncOpenAI, OpenAI

import optillm
from optillm.core.trace import CallRecord, NoteRecord
from optillm.protocol.errors import InvalidRequest, UpstreamError
from optillm.upstreams.http import ClientOptions, make_client
from optillm.upstreams.openai_http import OpenAIUpstream
from tests.fakes import Said, ScriptedUpstream, Seen, ThreadedUpstream, refusal

pytestmark = pytest.mark.anyio


def anything(call: Seen) -> Said:
    if call.stage in ("rate", "eval"):
        return "Score: 5"
    return "more?" if call.stage == "user" else [f"text {i}" for i in range(call.n)]


async def test_a_base_url_with_a_key() -> None:
    async with ScriptedUpstream(anything) as up:
        solution = await optillm.solve(
            "Why?", approach="mcts", model="m", upstream=up.base_url, key="k", simulations=1, depth=0
        )
    assert solution.text == solution.texts[0] == "text 0"
    assert solution.response["choices"][0]["message"]["content"] == "text 0"
    info = solution.response["optillm"]
    assert (info["approach"], info["calls"]) == ("mcts", 2)
    assert (info["params"]["mcts"]["simulations"], info["params"]["mcts"]["depth"]) == (1, 0)
    assert len(solution.trace.calls) == 2
    assert up.calls[0].messages == [{"role": "user", "content": "Why?"}]
    assert {c.headers["Authorization"] for c in up.calls} == {"Bearer k"}


async def test_the_official_client() -> None:
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}]
    async with (
        ScriptedUpstream(anything) as up,
        AsyncOpenAI(base_url=up.base_url, api_key="of the client", max_retries=0) as client,
    ):
        solution = await optillm.solve(
            messages, approach="re2&bon", model="m", upstream=client, n=2, temperature=0.5, top_k=3
        )
    assert len(solution.texts) == 2
    assert up.calls[0].headers["Authorization"] == "Bearer of the client"
    assert up.calls[0].messages[0] == messages[0]
    assert up.calls[0].body["top_k"] == 3


async def test_an_upstream_object() -> None:
    async with ScriptedUpstream("ok") as up:
        http = make_client(ClientOptions())
        upstream = OpenAIUpstream("mine", up.base_url, None, http)
        solution = await optillm.solve("Q", model="m", upstream=upstream)
        assert solution.text == "ok"
        assert solution.trace.calls[0].upstream == "mine"
        # It stays its owner's: it was not closed.
        assert (await optillm.solve("Q", model="m", upstream=upstream)).text == "ok"


async def test_the_model_is_meant_as_it_is_written() -> None:
    async with ScriptedUpstream(anything) as up:
        await optillm.solve("Q", model="moa-gpt-4o", upstream=up.base_url)
        await optillm.solve("Q", approach="re2", model="moa-bon-x", upstream=up.base_url)
    assert [c.body["model"] for c in up.calls] == ["moa-gpt-4o", "moa-bon-x"]


async def test_names_of_parameters() -> None:
    async with ScriptedUpstream(anything) as up:
        solution = await optillm.solve("Q", approach="bon", upstream=up.base_url, model="m", best_of_n=2)
        assert solution.response["optillm"]["params"]["bon"]["n"] == 2
        # A field of every request keeps its meaning: three answers, not three candidates.
        solution = await optillm.solve("Q", approach="bon", upstream=up.base_url, model="m", n=3)
        assert len(solution.texts) == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"approach": "zzz"}, "unknown approach 'zzz'"),
        ({"approach": "mcts", "simulations": 0}, "1 to 64"),
        ({"approach": "mcts", "simulations": "two"}, "an integer"),
        ({"approach": "re2", "simulations": 2}, "unknown parameter 'simulations'"),
        ({"temperature": 7}, "temperature"),
        ({"temperature": object()}, "object is not JSON"),
        ({"optillm_budget": {"max_calls": 0}}, "max_calls"),
    ],
)
async def test_a_bad_argument(arguments: dict[str, Any], said: str) -> None:
    async with ScriptedUpstream(anything) as up:
        with pytest.raises(InvalidRequest, match=said):
            await optillm.solve("Q", model="m", upstream=up.base_url, **arguments)
        assert up.calls == []


async def test_a_name_with_two_meanings_says_which_there_are() -> None:
    async with ScriptedUpstream(anything) as up:
        with pytest.raises(InvalidRequest, match="say 'bon_judge_model' or 'mcts_judge_model'"):
            await optillm.solve("Q", approach="mcts|bon", model="m", upstream=up.base_url, judge_model="x")


@pytest.mark.parametrize(
    "messages", [[], [{"role": "robot", "content": "x"}], [{"role": "user", "content": 5}]]
)
async def test_bad_messages(messages: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"messages|role|content"):
        await optillm.solve(messages, model="m", upstream="http://127.0.0.1:9/v1")


async def test_no_upstream() -> None:
    for upstream in (None, 5, object()):
        with pytest.raises(TypeError, match="must be a base URL"):
            await optillm.solve("Q", model="m", upstream=upstream)
    with (
        OpenAI(base_url="http://127.0.0.1:9/v1", api_key="k") as client,
        pytest.raises(TypeError, match="not a synchronous one"),
    ):
        await optillm.solve("Q", model="m", upstream=client)


async def test_the_upstreams_error_is_raised() -> None:
    async with ScriptedUpstream(refusal(404, "no such model")) as up:
        with pytest.raises(UpstreamError, match="no such model") as caught:
            await optillm.solve("Q", approach="bon", model="m", upstream=up.base_url)
        assert caught.value.status == 404
        async with AsyncOpenAI(base_url=up.base_url, api_key="k", max_retries=0) as client:
            with pytest.raises(UpstreamError, match="no such model") as caught:
                await optillm.solve("Q", approach="bon", model="m", upstream=client)
            assert caught.value.status == 404


async def test_observers_see_each_record_once_when_it_has_ended() -> None:
    seen: list[Any] = []

    def observe(record: CallRecord | NoteRecord) -> None:
        if isinstance(record, CallRecord):
            assert record.ended is not None
            assert record.replies
        seen.append(record)
        if sum(getattr(r, "stage", "") == "bon.rate" for r in seen) == 2:
            others_rated.set()

    async def script(call: Seen) -> Said:
        # The first rating is answered last: what ends is not what was begun last.
        if call.stage == "rate" and "text 0" in call.text:
            await others_rated.wait()
        return anything(call)

    others_rated = asyncio.Event()

    async with ScriptedUpstream(script) as up:
        solution = await optillm.solve("Q", approach="bon", model="m", upstream=up.base_url, observer=observe)
    assert len(seen) == len(solution.trace.records)
    assert {id(r) for r in seen} == {id(r) for r in solution.trace.records}
    rated = [r.tag for r in seen if getattr(r, "stage", "") == "bon.rate"]
    assert rated[-1] == "0"


async def test_observers_see_calls_that_failed() -> None:
    seen: list[Any] = []
    async with ScriptedUpstream(refusal(404, "gone")) as up:
        with pytest.raises(UpstreamError):
            await optillm.solve("Q", approach="re2", model="m", upstream=up.base_url, observer=seen.append)
    assert ["gone" in r.error for r in seen] == [True]


async def test_solving_at_once_is_as_if_alone() -> None:
    async with ScriptedUpstream(anything) as up:
        wanted = [(1 + i % 3, i % 2) for i in range(24)]
        solutions = await asyncio.gather(
            *(
                optillm.solve(
                    f"q{i}", approach="mcts", model="m", upstream=up.base_url, simulations=s, depth=d
                )
                for i, (s, d) in enumerate(wanted)
            )
        )
    for i, ((s, d), solution) in enumerate(zip(wanted, solutions, strict=True)):
        used = solution.response["optillm"]["params"]["mcts"]
        assert (used["simulations"], used["depth"]) == (s, d)
        mine = [c for c in up.calls if f"q{i}" in c.text.split() or f"q{i}\n" in c.text + "\n"]
        assert len(mine) == solution.response["optillm"]["calls"] == 1 + s * (2 * d + 1)


async def test_budgets_hold() -> None:
    async with ScriptedUpstream(anything) as up:
        solution = await optillm.solve(
            "Q", approach="mcts", model="m", upstream=up.base_url, optillm_budget={"max_calls": 1}
        )
    assert solution.text == "text 0"
    assert solution.response["optillm"]["cut_short"] == "max_calls"
    assert len(up.calls) == 1


def test_the_synchronous_twin() -> None:
    before = threading.active_count()
    with ThreadedUpstream(ScriptedUpstream(anything)) as up:
        solution = optillm.solve_sync("Q", approach="bon", model="m", upstream=up.base_url, best_of_n=2)
    assert solution.text == "text 0"
    assert solution.response["optillm"]["calls"] == 3
    assert threading.active_count() == before


async def test_the_synchronous_twin_says_so_inside_a_loop() -> None:
    with pytest.raises(RuntimeError, match="inside an event loop"):
        optillm.solve_sync("Q", model="m", upstream="http://127.0.0.1:9/v1")
