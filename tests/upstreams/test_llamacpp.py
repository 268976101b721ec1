"""The embedded engine with the real model; answers are short, so that it takes seconds."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import optillm
from optillm.core.upstream import Call
from optillm.protocol.errors import BudgetExceeded, OptiError, UpstreamError
from optillm.upstreams.llamacpp import LlamaCppUpstream, embedded, find_packaged_model
from tests.upstreams.servers import call


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """One loop for the module: the engine is loaded once."""
    return "asyncio"


pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def engine(anyio_backend: str) -> AsyncIterator[LlamaCppUpstream]:
    path = find_packaged_model()
    assert path is not None
    out = LlamaCppUpstream(path, context=1024, slots=2, threads=1)
    yield out
    await out.aclose()


def short(text: str = "Say hi.", *, run: str = "run", most: int = 6, **fields: Any) -> Call:
    return call(text, run=run, **{"max_tokens": most, "temperature": 0.8, "seed": 1, **fields})


async def asked(engine: LlamaCppUpstream, given: Call) -> dict[str, Any]:
    out: dict[str, Any] = json.loads(await engine.complete(given))
    return out


def texts(body: dict[str, Any]) -> list[str]:
    return [c["message"]["content"] for c in body["choices"]]


async def streamed(engine: LlamaCppUpstream, given: Call) -> tuple[dict[int, str], dict[int, str], Any]:
    """Texts and finish reasons by choice, and the usage."""
    said: dict[int, str] = {}
    ends: dict[int, str] = {}
    usage = None
    async for payload in engine.stream(given):
        event = json.loads(payload)
        assert event["object"] == "chat.completion.chunk"
        usage = event.get("usage") or usage
        for choice in event["choices"]:
            index = choice["index"]
            said[index] = said.get(index, "") + (choice["delta"].get("content") or "")
            if choice["finish_reason"]:
                ends[index] = choice["finish_reason"]
    return said, ends, usage


async def test_a_completion(engine: LlamaCppUpstream) -> None:
    body = await asked(engine, short())
    assert body["object"] == "chat.completion"
    assert body["model"] == engine.name
    assert texts(body)[0]
    assert body["choices"][0]["finish_reason"] == "length"
    usage = body["usage"]
    assert usage["completion_tokens"] == 6
    assert usage["total_tokens"] == usage["prompt_tokens"] + 6
    assert usage["prompt_tokens"] > 3


async def test_the_seed_decides(engine: LlamaCppUpstream) -> None:
    first = texts(await asked(engine, short("Tell a story.", most=12, seed=5)))
    again = texts(await asked(engine, short("Tell a story.", most=12, seed=5)))
    other = texts(await asked(engine, short("Tell a story.", most=12, seed=6)))
    assert first == again != other


async def test_two_choices_are_the_two_seeds(engine: LlamaCppUpstream) -> None:
    both = await asked(engine, short("Tell a story.", most=12, seed=5, n=2))
    second = texts(await asked(engine, short("Tell a story.", most=12, seed=6)))
    assert [c["index"] for c in both["choices"]] == [0, 1]
    assert texts(both)[0] != texts(both)[1] == second[0]
    assert both["usage"]["completion_tokens"] == 24


async def test_a_stream_is_the_same_as_the_whole(engine: LlamaCppUpstream) -> None:
    given: dict[str, Any] = {"most": 8, "n": 2}
    whole = await asked(engine, short(**given))
    said, ends, usage = await streamed(engine, short(**given, stream_options={"include_usage": True}))
    assert said == dict(enumerate(texts(whole)))
    assert ends == {0: "length", 1: "length"}
    assert {k: usage[k] for k in whole["usage"]} == whole["usage"]
    assert (await streamed(engine, short(most=2)))[2] is None


async def test_max_completion_tokens(engine: LlamaCppUpstream) -> None:
    given = Call({**short().body, "max_tokens": 50, "max_completion_tokens": 3}, "run")
    assert (await asked(engine, given))["usage"]["completion_tokens"] == 3


async def test_stop(engine: LlamaCppUpstream) -> None:
    whole = texts(await asked(engine, short("Tell a story.", most=12)))[0]
    word = whole.split()[2]
    cut = await asked(engine, short("Tell a story.", most=12, stop=[word]))
    assert texts(cut)[0] == whole[: whole.index(word)]
    assert cut["choices"][0]["finish_reason"] == "stop"


async def test_logprobs(engine: LlamaCppUpstream) -> None:
    body = await asked(engine, short(most=3, logprobs=True, top_logprobs=2))
    tokens = body["choices"][0]["logprobs"]["content"]
    assert "".join(t["token"] for t in tokens).strip() == texts(body)[0].strip()
    for token in tokens:
        assert -math.inf < token["logprob"] <= 0
        assert len(token["top_logprobs"]) == 2


async def test_a_schema_shapes_the_answer(engine: LlamaCppUpstream) -> None:
    schema = {
        "type": "object",
        "properties": {"yes": {"type": "boolean"}},
        "required": ["yes"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": True}}
    body = await asked(engine, short("Is water wet?", most=24, response_format=wanted))
    assert isinstance(json.loads(texts(body)[0])["yes"], bool)


async def test_tools_are_taken(engine: LlamaCppUpstream) -> None:
    """The packaged model's template knows no tools, so that it answers in words; a larger one calls."""
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    body = await asked(engine, short("Weather in Oslo?", tools=[tool], tool_choice="auto"))
    assert texts(body)[0]
    assert body["choices"][0]["finish_reason"] == "length"


async def test_more_calls_than_slots(engine: LlamaCppUpstream) -> None:
    calls = [asked(engine, short(f"Count to {i}.", run=f"run {i}", most=3)) for i in range(7)]
    bodies = await asyncio.gather(*calls)
    assert [b["usage"]["completion_tokens"] for b in bodies] == [3] * 7


@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_cancelled_frees_its_slot_and_is_not_waited_for(
    engine: LlamaCppUpstream, stream: bool
) -> None:
    """Even in the middle of a long prompt: its caller goes on while the engine still reads."""
    work = engine.complete if not stream else lambda given: streamed(engine, given)
    long = [short(f"{i} " + "and so on " * 250, run="long", most=400) for i in range(2)]
    tasks = [asyncio.ensure_future(work(given)) for given in long]
    while engine._scheduler.in_flight < 2:  # noqa: ASYNC110
        await asyncio.sleep(0)
    steps = 0
    for task in tasks:
        task.cancel()
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0)
        steps += 1
    # The loop's own turns, not the engine's batches.
    assert steps < 50
    assert engine._scheduler.in_flight == 2
    # Both slots come free, long before 400 tokens have been written.
    both = await asyncio.gather(*(asked(engine, short(run=f"next {i}", most=2)) for i in range(2)))
    assert [b["usage"]["completion_tokens"] for b in both] == [2, 2]


async def test_leaving_a_stream_frees_its_slot(engine: LlamaCppUpstream) -> None:
    for _ in range(3):
        events = engine.stream(short(most=500))
        await anext(events)
        await events.aclose()
    assert (await asked(engine, short(most=2)))["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"messages": [{"role": "user", "content": "word " * 1500}]}, "context"),
        ({"temperature": "hot"}, "temperature"),
        ({"messages": 5}, "messages"),
    ],
)
async def test_what_the_engine_refuses(
    engine: LlamaCppUpstream, stream: bool, fields: dict[str, Any], says: str
) -> None:
    given = Call({**short().body, **fields}, "run")
    with pytest.raises(UpstreamError, match=says) as caught:
        await (streamed(engine, given) if stream else engine.complete(given))
    assert caught.value.status == 400
    assert engine._scheduler.in_flight <= 1


async def test_its_list(engine: LlamaCppUpstream) -> None:
    assert [m["id"] for m in await engine.models()] == ["smollm2-135m-instruct"]


async def test_a_technique_on_it(engine: LlamaCppUpstream) -> None:
    solution = await optillm.solve(
        "Hi.", approach="re2", model="m", upstream=engine, n=2, max_tokens=3, seed=3
    )
    assert len(solution.texts) == 2
    assert solution.response["optillm"]["calls"] == 1
    assert solution.response["usage"]["completion_tokens"] == 6


async def test_a_budget_that_ends_while_the_prompt_is_read(engine: LlamaCppUpstream) -> None:
    """The engine needs seconds for the prompt; the request ends when it was told to."""
    long = "something else " * 350
    with pytest.raises(BudgetExceeded) as caught:
        await optillm.solve(long, model="m", upstream=engine, optillm_budget={"max_seconds": 0.1})
    assert caught.value.limit == "max_seconds"
    assert engine._scheduler.in_flight == 1
    # And the engine is free for others soon.
    assert (await asked(engine, short(most=2)))["usage"]["completion_tokens"] == 2


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(OptiError, match="there is no model file"):
        embedded(str(tmp_path / "none.gguf"))


def test_not_a_gguf(tmp_path: Path) -> None:
    path = tmp_path / "other.gguf"
    path.write_bytes(b"something else")
    with pytest.raises(OptiError, match="is not a GGUF file"):
        embedded(str(path))


async def test_a_broken_gguf(tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF" + b"junk" * 100)
    broken = embedded(str(path))
    for _ in range(2):
        with pytest.raises(UpstreamError, match=r"cannot load broken\.gguf"):
            await broken.complete(short())
    await broken.aclose()


async def test_a_closed_engine_refuses() -> None:
    path = find_packaged_model()
    assert path is not None
    closed = LlamaCppUpstream(path)
    await closed.aclose()
    with pytest.raises(UpstreamError, match="closed"):
        await closed.complete(short())
