"""The official client, sync and async, with strict validation of everything it gets.

Every approach of the registry is tried, so that techniques to come are covered as soon as they exist.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

from optillm.plugins import builtin_registry
from tests.fakes import Fault, Reply, Said, ScriptedUpstream, Seen, refusal
from tests.serving import Proxy, serving

pytestmark = pytest.mark.anyio

SLUGS = [a.slug for a in builtin_registry()]
COMPOSITIONS = [
    "re2&bon",
    "bon|moa",
    "bon&cot_reflection",
    "(re2&moa)|self_consistency",
    "mcts(simulations=1)",
]
EVERY = pytest.mark.parametrize("approach", [*SLUGS, *COMPOSITIONS])

ROOMY: Any = {"max_upstream_calls": 10_000}
"""Room for several choices of the techniques that can take more than a hundred calls for one."""

HI: Any = [{"role": "user", "content": "What is 2+2?"}]
TOOL: Any = {
    "type": "function",
    "function": {"name": "look", "parameters": {"type": "object", "properties": {"at": {"type": "string"}}}},
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"at": "the sky"}'}}
CONVERSATION: Any = [
    {"role": "system", "content": "Be kind."},
    {"role": "developer", "content": "Be brief."},
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "What is in it?"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}},
        ],
    },
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "blue"},
    {"role": "user", "content": "So?", "name": "ann"},
]
HELPFUL = """\
<thinking>Two and two.</thinking>
<output>The answer is 4</output>
1. Add the numbers.
2. Say the sum.
```python
print(2 + 2)
```
```json
{"answer": 4}
```
Score: 7
Choice: 1
Winner: A
Verdict: yes
The final answer is \\boxed{4}"""
"""Something for every helper: a score, a choice, a verdict, steps, code, JSON, an answer."""


def helpful(call: Seen) -> Said:
    """Sensible replies to any prompt: samples differ, helpers find what they look for."""
    told_by_client = call.system in ("", "Be kind.\nBe brief.")
    if told_by_client and call.last.startswith(("What is", "So?")):
        return [Reply(f"The answer is {4 + i}", reasoning="two and two") for i in range(call.n)]
    return [HELPFUL] * call.n


def choices_of(approach: str, n: int) -> int:
    return n * (approach.count("|") + 1)


def client(proxy: Proxy, **options: Any) -> AsyncOpenAI:
    given: dict[str, Any] = {"api_key": "unused", "max_retries": 0, **options}
    return AsyncOpenAI(base_url=proxy.base_url, _strict_response_validation=True, **given)


def check(reply: ChatCompletion, approach: str, n: int = 1) -> None:
    assert [c.index for c in reply.choices] == list(range(choices_of(approach, n)))
    for choice in reply.choices:
        assert choice.message.role == "assistant"
        assert choice.message.content or choice.message.tool_calls
    usage = reply.usage
    assert usage is not None
    assert 0 < usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert about(reply)["approach"] == approach


def about(answer: ChatCompletion | ChatCompletionChunk) -> Mapping[str, Any]:
    assert answer.model_extra is not None
    found: Mapping[str, Any] = answer.model_extra["optillm"]
    return found


class Collected:
    """A stream, put together chunk by chunk as a client does it by hand."""

    def __init__(self) -> None:
        self.chunks: list[ChatCompletionChunk] = []
        self.texts: dict[int, str] = {}
        self.finished: dict[int, str] = {}

    def add(self, chunk: ChatCompletionChunk) -> None:
        self.chunks.append(chunk)
        for choice in chunk.choices:
            assert choice.index not in self.finished
            if choice.index not in self.texts:
                assert choice.delta.role == "assistant"
                self.texts[choice.index] = ""
            self.texts[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                self.finished[choice.index] = choice.finish_reason


# -- every approach ------------------------------------------------------------------------------


@EVERY
async def test_async_client(approach: str) -> None:
    async with ScriptedUpstream(helpful) as up, serving(up, **ROOMY) as proxy, client(proxy) as sdk:
        for n in (1, 3):
            reply = await sdk.chat.completions.create(
                model="m", messages=HI, n=n, seed=1, extra_body={"optillm_approach": approach}
            )
            check(reply, approach, n)
            assert about(reply)["calls"] == len(up.calls)
            up.calls.clear()


@EVERY
@pytest.mark.parametrize("n", [1, 3])
async def test_async_stream(approach: str, n: int) -> None:
    async with ScriptedUpstream(helpful) as up, serving(up, **ROOMY) as proxy, client(proxy) as sdk:
        for progress in ("reasoning", "comments", "off"):
            extra = {"optillm_approach": approach, "optillm_progress": progress}
            whole = await sdk.chat.completions.create(model="m", messages=HI, n=n, seed=1, extra_body=extra)
            stream = await sdk.chat.completions.create(
                model="m",
                messages=HI,
                n=n,
                seed=1,
                extra_body=extra,
                stream=True,
                stream_options={"include_usage": True},
            )
            got = Collected()
            async for chunk in stream:
                got.add(chunk)
            assert got.texts == {c.index: c.message.content for c in whole.choices}
            assert got.finished == {c.index: c.finish_reason for c in whole.choices}
            *others, last = got.chunks
            assert last.choices == []
            assert last.usage == whole.usage
            assert all(chunk.usage is None for chunk in others)
            (told,) = [c for c in got.chunks if "optillm" in (c.model_extra or {})]
            assert about(told)["calls"] == about(whole)["calls"]


@EVERY
async def test_sync_client_plain_and_streaming(approach: str) -> None:
    def ask(url: str) -> tuple[ChatCompletion, Collected]:
        with OpenAI(base_url=url, api_key="unused", max_retries=0, _strict_response_validation=True) as sdk:
            extra = {"optillm_approach": approach}
            whole = sdk.chat.completions.create(model="m", messages=HI, seed=1, extra_body=extra)
            got = Collected()
            with sdk.chat.completions.create(
                model="m", messages=HI, seed=1, extra_body=extra, stream=True
            ) as stream:
                for chunk in stream:
                    got.add(chunk)
        return whole, got

    async with ScriptedUpstream(helpful) as up, serving(up, stream_progress="reasoning") as proxy:
        whole, got = await asyncio.to_thread(ask, proxy.base_url)
        check(whole, approach)
        assert got.texts == {c.index: c.message.content for c in whole.choices}
        assert all(chunk.usage is None for chunk in got.chunks)


@EVERY
async def test_stream_helper(approach: str) -> None:
    """The client's own accumulator, which appends choices as they come."""
    async with ScriptedUpstream(helpful) as up, serving(up, **ROOMY) as proxy, client(proxy) as sdk:
        for n in (1, 3):
            extra = {"optillm_approach": approach}
            whole = await sdk.chat.completions.create(model="m", messages=HI, n=n, seed=1, extra_body=extra)
            async with sdk.chat.completions.stream(
                model="m", messages=HI, n=n, seed=1, extra_body=extra
            ) as stream:
                final = await stream.get_final_completion()
            assert [c.message.content for c in final.choices] == [c.message.content for c in whole.choices]
            assert [c.index for c in final.choices] == [c.index for c in whole.choices]


@EVERY
@pytest.mark.parametrize("n_mode", ["ignore", "reject"])
async def test_upstreams_without_n(approach: str, n_mode: str) -> None:
    async with (
        ScriptedUpstream(helpful, n_mode=n_mode) as up,
        serving(up, **ROOMY) as proxy,
        client(proxy) as sdk,
    ):
        # What passes through gets what the upstream gives; the router may choose that.
        n = 1 if approach in ("none", "router") else 2
        reply = await sdk.chat.completions.create(
            model="m", messages=HI, n=n, extra_body={"optillm_approach": approach}
        )
        check(reply, approach, n)


@EVERY
async def test_a_conversation_with_images_and_tool_results(approach: str) -> None:
    async with ScriptedUpstream(helpful) as up, serving(up) as proxy, client(proxy) as sdk:
        reply = await sdk.chat.completions.create(
            model="m", messages=CONVERSATION, tools=[TOOL], extra_body={"optillm_approach": approach}
        )
        check(reply, approach)


@EVERY
async def test_tool_calls_plain_and_streaming(approach: str) -> None:
    def script(call: Seen) -> Said:
        if "tools" not in call.body:
            return HELPFUL
        return [Reply(None, tool_calls=(CALL,), finish="tool_calls")] * call.n

    async with ScriptedUpstream(script) as up, serving(up) as proxy, client(proxy) as sdk:
        fields: dict[str, Any] = {
            "model": "m",
            "messages": HI,
            "tools": [TOOL],
            "extra_body": {"optillm_approach": approach},
        }
        whole = await sdk.chat.completions.create(**fields)
        async with sdk.chat.completions.stream(**fields) as stream:
            final = await stream.get_final_completion()
        for choice in (*whole.choices, *final.choices):
            assert choice.finish_reason == "tool_calls"
            assert choice.message.tool_calls is not None
            (called,) = choice.message.tool_calls
            assert called.type == "function"
            assert called.id == "call_1"
            assert called.function.name == "look"
            assert called.function.arguments == '{"at": "the sky"}'


@EVERY
async def test_logprobs(approach: str) -> None:
    token = {"token": "4", "logprob": -0.1, "bytes": [52], "top_logprobs": []}
    reply = Reply("The answer is 4", logprobs={"content": [token], "refusal": None})

    def script(call: Seen) -> Said:
        return reply if call.body.get("logprobs") else HELPFUL

    async with ScriptedUpstream(script) as up, serving(up) as proxy, client(proxy) as sdk:
        fields: dict[str, Any] = {
            "model": "m",
            "messages": HI,
            "logprobs": True,
            "top_logprobs": 2,
            "extra_body": {"optillm_approach": approach},
        }
        whole = await sdk.chat.completions.create(**fields)
        seen = False
        async for chunk in await sdk.chat.completions.create(**fields, stream=True):
            seen = seen or any(c.logprobs and c.logprobs.content for c in chunk.choices)
        assert seen
        for choice in whole.choices:
            assert choice.logprobs is not None
            assert choice.logprobs.content is not None
            assert choice.logprobs.content[0].token == "4"
        asked = [c.body for c in up.calls if "logprobs" in c.body]
        assert asked
        assert all(b["top_logprobs"] == 2 for b in asked)


@EVERY
async def test_limits_and_sampling_fields_reach_the_upstream(approach: str) -> None:
    async with ScriptedUpstream(helpful) as up, serving(up) as proxy, client(proxy) as sdk:
        await sdk.chat.completions.create(
            model="m",
            messages=HI,
            max_completion_tokens=77,
            top_p=0.5,
            stop=["END"],
            frequency_penalty=0.5,
            logit_bias={"5": 1},
            metadata={"a": "b"},
            user="u",
            extra_body={"optillm_approach": approach, "brand_new": [1]},
        )
        answers = [c.body for c in up.calls if c.body.get("brand_new") == [1]]
        assert answers
        for body in answers:
            assert body["max_completion_tokens"] == 77
            assert "max_tokens" not in body
            assert (body["top_p"], body["stop"], body["user"]) == (0.5, ["END"], "u")
        assert all("optillm" not in name for c in up.calls for name in c.body)


class Sum(BaseModel):
    answer: int


@EVERY
async def test_parse_a_response_format(approach: str) -> None:
    def script(call: Seen) -> Said:
        return '{"answer": 4}' if "response_format" in call.body else HELPFUL

    async with ScriptedUpstream(script) as up, serving(up) as proxy, client(proxy) as sdk:
        extra = {"optillm_approach": approach}
        parsed = await sdk.chat.completions.parse(
            model="m", messages=HI, response_format=Sum, extra_body=extra
        )
        assert [c.message.parsed for c in parsed.choices] == [Sum(answer=4)] * choices_of(approach, 1)
        async with sdk.chat.completions.stream(
            model="m", messages=HI, response_format=Sum, extra_body=extra
        ) as stream:
            final = await stream.get_final_completion()
        assert final.choices[0].message.parsed == Sum(answer=4)
        formats = [c.body["response_format"] for c in up.calls if "response_format" in c.body]
        assert all(f["json_schema"]["name"] == "Sum" for f in formats)


async def test_a_failed_branch_does_not_confuse_the_stream_helper() -> None:
    def script(call: Seen) -> Said:
        return Fault(status=500) if call.n == 3 else "fine"

    async with ScriptedUpstream(script) as up, serving(up) as proxy, client(proxy) as sdk:
        async with sdk.chat.completions.stream(model="bon|re2-m", messages=HI) as stream:
            final = await stream.get_final_completion()
        assert [(c.index, c.message.content) for c in final.choices] == [(0, ""), (1, "fine")]


# -- names, headers, models ----------------------------------------------------------------------


@pytest.mark.parametrize("slug", SLUGS)
async def test_the_name_of_a_model_chooses(slug: str) -> None:
    async with ScriptedUpstream(helpful) as up, serving(up) as proxy, client(proxy) as sdk:
        reply = await sdk.chat.completions.create(model=f"{slug}-m", messages=HI)
        assert (about(reply)["approach"], about(reply)["model"]) == (slug, "m")
        passed = slug == "none" or about(reply).get("routed_to") == "none"
        assert reply.model == ("m" if passed else f"{slug}-m")
        assert {c.body["model"] for c in up.calls} == {"m"}


async def test_raw_response_headers() -> None:
    async with ScriptedUpstream(helpful) as up, serving(up) as proxy, client(proxy) as sdk:
        raw = await sdk.chat.completions.with_raw_response.create(
            model="bon-m", messages=HI, extra_headers={"X-Request-Id": "mine"}
        )
        reply = raw.parse()
        assert raw.headers["X-Optillm-Approach"] == "bon"
        assert raw.headers["X-Optillm-Calls"] == str(about(reply)["calls"])
        assert raw.headers["X-Optillm-Depth"] == str(about(reply)["depth"])
        assert raw.headers["X-Optillm-Run"] == reply.id == about(reply)["run_id"]
        assert raw.headers["Server-Timing"].startswith("run;dur=")
        assert raw.request_id == reply._request_id == "mine"
        async with sdk.chat.completions.with_streaming_response.create(
            model="m", messages=HI, stream=True
        ) as streaming:
            lines = [line async for line in streaming.iter_lines() if line]
        assert lines[-1] == "data: [DONE]"


async def test_models() -> None:
    names = ("m", "org/model-1")
    async with ScriptedUpstream(models=names) as up, serving(up) as proxy, client(proxy) as sdk:
        assert [m.id async for m in sdk.models.list()] == list(names)
        with_approaches = [m.id async for m in sdk.models.list(extra_query={"approaches": 1})]
        assert {f"{s}-{m}" for s in SLUGS if s != "none" for m in names} <= set(with_approaches)
        assert (await sdk.models.retrieve("org/model-1")).id == "org/model-1"
        with pytest.raises(openai.NotFoundError) as caught:
            await sdk.models.retrieve("zzz")
        assert caught.value.code == "model_not_found"


async def test_models_of_a_terse_upstream_are_complete() -> None:
    listed = Fault(status=200, body={"data": [{"id": "terse"}]})
    async with ScriptedUpstream(models=listed) as up, serving(up) as proxy, client(proxy) as sdk:
        (model,) = [m async for m in sdk.models.list()]
        assert (model.id, model.object) == ("terse", "model")
        assert (await sdk.models.retrieve("terse")).owned_by


async def test_models_while_the_upstream_is_down() -> None:
    async with (
        ScriptedUpstream(models=Fault(status=500)) as up,
        serving(up) as proxy,
        client(proxy) as sdk,
    ):
        assert [m async for m in sdk.models.list()] == []


# -- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("approach", ["none", "bon"])
@pytest.mark.parametrize(
    ("fault", "expected", "status"),
    [
        (refusal(400, "bad"), openai.BadRequestError, 400),
        (refusal(401, "who"), openai.AuthenticationError, 401),
        (refusal(403, "no"), openai.PermissionDeniedError, 403),
        (refusal(404, "gone"), openai.NotFoundError, 404),
        (refusal(409, "both"), openai.ConflictError, 409),
        (refusal(422, "what"), openai.UnprocessableEntityError, 422),
        (refusal(429, "slow", retry_after="17"), openai.RateLimitError, 429),
        (Fault(status=500), openai.InternalServerError, 502),
        (Fault("reset"), openai.InternalServerError, 502),
        (Fault("not_json"), openai.InternalServerError, 502),
        (Fault("hang"), openai.InternalServerError, 504),
    ],
    ids=lambda f: f"{f.kind}{f.status}" if isinstance(f, Fault) else None,
)
async def test_errors_of_the_upstream(
    fault: Fault, expected: type[openai.APIStatusError], status: int, approach: str, stream: bool
) -> None:
    limit = 0.2 if fault.kind == "hang" else 30
    async with (
        ScriptedUpstream(fault) as up,
        serving(up, request_timeout=limit) as proxy,
        client(proxy) as sdk,
    ):
        with pytest.raises(expected) as caught:
            await sdk.chat.completions.create(
                model="m", messages=HI, stream=stream, extra_body={"optillm_approach": approach}
            )
        error = caught.value
        assert (type(error), error.status_code) == (expected, status)
        # A hang is ended by the call's time-out or by the request's, whichever is first.
        said = fault.body["error"]["message"] if fault.body else "deadline"
        assert "upstream" in error.message.lower() or said in error.message
        assert error.type
        assert error.response.headers.get("Retry-After") == ("17" if status == 429 else None)
        assert error.request_id


async def test_errors_of_the_proxy() -> None:
    async with ScriptedUpstream() as up, serving(up, optillm_api_key="k") as proxy:
        async with client(proxy, api_key="wrong") as sdk:
            with pytest.raises(openai.AuthenticationError) as refused:
                await sdk.chat.completions.create(model="m", messages=HI)
            assert refused.value.code == "invalid_api_key"
            assert refused.value.response.headers["WWW-Authenticate"] == "Bearer"
            with pytest.raises(openai.AuthenticationError):
                await sdk.models.list()
        async with client(proxy, api_key="k") as sdk:
            with pytest.raises(openai.BadRequestError) as caught:
                await sdk.chat.completions.create(model="bon-m", messages=HI, extra_body={"best_of_n": 99})
            assert (caught.value.param, caught.value.type) == ("best_of_n", "invalid_request_error")
            assert "from 1 to 64" in caught.value.message
            with pytest.raises(openai.NotFoundError):
                await sdk.embeddings.create(model="m", input="x")
            proxy.app.drain()
            with pytest.raises(openai.InternalServerError) as busy:
                await sdk.chat.completions.create(model="m", messages=HI)
            assert busy.value.status_code == 503
        assert up.calls == []


@pytest.mark.parametrize("model", ["m", "re2-m"])
async def test_a_stream_that_breaks_raises(model: str) -> None:
    async with ScriptedUpstream(Fault("cut_stream")) as up, serving(up) as proxy, client(proxy) as sdk:
        stream = await sdk.chat.completions.create(model=model, messages=HI, stream=True)
        with pytest.raises(openai.APIError) as caught:
            async for _ in stream:
                pass
        assert "upstream" in caught.value.message


async def test_the_clients_own_retries_see_the_retry_after() -> None:
    tries: list[int] = []

    def script(call: Seen) -> Said:
        tries.append(1)
        return "fine" if len(tries) == 2 else refusal(429, "slow", retry_after="0")

    async with ScriptedUpstream(script) as up, serving(up) as proxy, client(proxy, max_retries=2) as sdk:
        reply = await sdk.chat.completions.create(model="m", messages=HI)
        assert (reply.choices[0].message.content, len(up.calls)) == ("fine", 2)


async def test_budget_and_cut_short() -> None:
    async with ScriptedUpstream(helpful) as up, serving(up) as proxy, client(proxy) as sdk:
        reply = await sdk.chat.completions.create(
            model="mcts-m", messages=HI, extra_body={"optillm_budget": {"max_calls": 3}}
        )
        assert (about(reply)["cut_short"], about(reply)["calls"], len(up.calls)) == ("max_calls", 3, 3)
