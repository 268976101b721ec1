"""The OpenAI protocol, as its own client sees it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai import AsyncOpenAI, BadRequestError
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tests.fakes import Fault, Reply, Said, ScriptedUpstream, Seen
from tests.serving import Proxy, serving

pytestmark = pytest.mark.anyio

TECHNIQUES = ["none", "re2", "cot_reflection", "bon", "moa", "self_consistency", "mcts", "re2&bon", "bon|moa"]
CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"at": "the sky"}'}}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
CONVERSATION: list[dict[str, Any]] = [
    {"role": "system", "content": "Be kind."},
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


def anything(call: Seen) -> Said:
    if call.stage in ("rate", "eval"):
        return "Score: 5"
    return [f"text {i}" for i in range(call.n)]


def client_of(proxy: Proxy) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=proxy.base_url, api_key="unused", max_retries=0)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("technique", TECHNIQUES)
async def test_answers_pass_strict_validation(technique: str, n: int) -> None:
    async with ScriptedUpstream(anything) as up, serving(up) as proxy:
        answer = await proxy.ask("m", optillm_approach=technique, n=n)
        # Strict: JSON types as they are; the sdk's own classes say what they must be.
        completion = ChatCompletion.model_validate_json(json.dumps(answer.json), strict=True)
        assert len(completion.choices) == n * (2 if "|" in technique else 1)
        assert [c.index for c in completion.choices] == list(range(len(completion.choices)))
        assert completion.usage is not None
        assert (
            completion.usage.total_tokens
            == completion.usage.prompt_tokens + completion.usage.completion_tokens
        )


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("technique", TECHNIQUES)
async def test_streams_pass_strict_validation_and_say_the_same(technique: str, n: int) -> None:
    async with ScriptedUpstream(anything) as up, serving(up, stream_progress="reasoning") as proxy:
        whole = await proxy.ask("m", optillm_approach=technique, n=n)
        events = await proxy.events(
            "m", optillm_approach=technique, n=n, stream_options={"include_usage": True}
        )
        assert events[-1] == "[DONE]"
        texts: dict[int, str] = {}
        finished: list[int] = []
        for event in events[:-1]:
            chunk = ChatCompletionChunk.model_validate_json(event, strict=True)
            for choice in chunk.choices:
                texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
                finished += [choice.index] * (choice.finish_reason is not None)
        assert [texts[i] for i in sorted(texts)] == whole.texts
        assert sorted(finished) == sorted(texts)
        usage = json.loads(events[-2])
        assert usage["choices"] == []
        assert usage["usage"] == whole.json["usage"] or technique == "none"
        firsts = [json.loads(e)["choices"][0] for e in events[:1]]
        assert firsts[0]["delta"]["role"] == "assistant"


async def test_official_client_plain_and_streaming() -> None:
    async with ScriptedUpstream(anything) as up, serving(up) as proxy, client_of(proxy) as client:
        reply = await client.chat.completions.create(
            model="mcts(simulations=1)-m", messages=[{"role": "user", "content": "x"}]
        )
        assert reply.choices[0].message.content == "text 0"
        assert reply.model_extra is not None
        assert reply.model_extra["optillm"]["calls"] == 4
        stream = await client.chat.completions.create(
            model="moa-m", messages=[{"role": "user", "content": "x"}], stream=True
        )
        text = ""
        async for chunk in stream:
            text += chunk.choices[0].delta.content or ""
        assert text == "text 0"
        with pytest.raises(BadRequestError) as caught:
            await client.chat.completions.create(model="m", messages=[], n=0)
        assert caught.value.param == "messages"


@pytest.mark.parametrize("technique", ["none", "bon", "moa", "self_consistency", "mcts"])
async def test_a_conversation_arrives_unchanged(technique: str) -> None:
    async with ScriptedUpstream(anything) as up, serving(up) as proxy:
        await proxy.ask("m", messages=CONVERSATION, tools=[TOOL], optillm_approach=technique)
        assert up.calls[0].messages == CONVERSATION
        assert up.calls[0].body["tools"] == [TOOL]


async def test_labels_in_an_answer_are_just_text() -> None:
    said = "User: hello. Assistant: hi"
    async with ScriptedUpstream(said) as up, serving(up) as proxy:
        for technique in ("none", "re2", "bon", "moa", "mcts", "cot_reflection", "self_consistency"):
            assert (await proxy.ask("m", optillm_approach=technique)).text == said


async def test_unknown_fields_pass_through_to_answers_only() -> None:
    async with ScriptedUpstream(anything) as up, serving(up) as proxy:
        await proxy.ask("bon-m", brand_new={"a": [1]}, user="u", logit_bias={"1": 2})
        for call in up.calls:
            answers = call.stage == "sample"
            assert (call.body.get("brand_new") == {"a": [1]}) is answers
            assert ("user" in call.body, "logit_bias" in call.body) == (answers, answers)


async def test_pass_through_sends_the_body_as_it_is_and_returns_it_untouched() -> None:
    async with ScriptedUpstream(Reply("x", extra={"annotations": []})) as up, serving(up) as proxy:
        answer = await proxy.ask("m", n=2, logprobs=True, top_logprobs=3, metadata={"a": "b"})
        assert up.calls[0].body == {
            "model": "m",
            "messages": [{"role": "user", "content": "What is 2+2?"}],
            "n": 2,
            "logprobs": True,
            "top_logprobs": 3,
            "metadata": {"a": "b"},
        }
        info = answer.json.pop("optillm")
        assert answer.json["id"] == "chatcmpl-up"
        assert set(answer.json) == {"id", "object", "created", "model", "choices", "usage"}
        assert (info["calls"], info["approach"]) == (1, "none")


async def test_pass_through_streams_tool_calls_as_the_upstream_does() -> None:
    reply = Reply(None, tool_calls=(CALL,), finish="tool_calls", logprobs={"content": []})
    async with ScriptedUpstream(reply) as up, serving(up) as proxy:
        body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": True}
        async with proxy.http.post(up.base_url + "/chat/completions", json=body) as response:
            direct = [e.removeprefix("data: ") for e in (await response.text()).split("\n\n") if e]
        events = await proxy.events("m", "x")
        assert events[-1] == direct[-1] == "[DONE]"
        mine, theirs = ([json.loads(e) for e in es[:-1]] for es in (events, direct))
        assert mine[-1].pop("optillm")["calls"] == 1
        assert mine == theirs


@pytest.mark.parametrize("technique", ["re2", "moa"])
async def test_techniques_stream_tool_calls(technique: str) -> None:
    reply = Reply(None, tool_calls=(CALL,), finish="tool_calls")
    async with ScriptedUpstream(reply) as up, serving(up) as proxy, client_of(proxy) as client:
        async with client.chat.completions.stream(
            model=f"{technique}-m", messages=[{"role": "user", "content": "x"}]
        ) as stream:
            final = await stream.get_final_completion()
        assert final.choices[0].finish_reason == "tool_calls"
        assert final.choices[0].message.tool_calls is not None
        assert final.choices[0].message.tool_calls[0].function.arguments == CALL["function"]["arguments"]  # type: ignore[index]


@pytest.mark.parametrize("technique", ["bon", "self_consistency", "mcts"])
async def test_a_tool_call_can_win(technique: str) -> None:
    def script(call: Seen) -> Said:
        if call.stage in ("rate", "eval"):
            return "Score: 1"
        return Reply(None, tool_calls=(CALL,), finish="tool_calls") if "tools" in call.body else "more?"

    async with ScriptedUpstream(script) as up, serving(up) as proxy:
        answer = await proxy.ask("m", optillm_approach=technique, tools=[TOOL])
        choice = answer.json["choices"][0]
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["tool_calls"] == [CALL]
        judged = [c for c in up.calls if c.stage == "rate"]
        assert all('"arguments"' in c.text for c in judged)


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
async def test_reasoning_under_both_names(field: str) -> None:
    reply = Reply("4", reasoning="2+2 is four, clearly", reasoning_field=field)
    async with ScriptedUpstream(reply) as up, serving(up) as proxy:
        answer = await proxy.ask("re2-m")
        assert answer.json["choices"][0]["message"]["reasoning_content"] == "2+2 is four, clearly"
        events = [json.loads(e) for e in (await proxy.events("re2-m"))[:-1]]
        deltas = [c["delta"] for e in events for c in e["choices"]]
        assert "".join(d.get("reasoning_content", "") for d in deltas) == "2+2 is four, clearly"


async def test_usage_sums_every_call_with_details() -> None:
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 3},
    }
    upstream = ScriptedUpstream(lambda c: Reply(f"Score: {len(c.text)}", usage=usage))
    async with upstream as up, serving(up, n_mode="fanout") as proxy:
        answer = await proxy.ask("moa-m")
        assert answer.json["usage"] == {
            "prompt_tokens": 50,
            "completion_tokens": 25,
            "total_tokens": 75,
            "prompt_tokens_details": {"cached_tokens": 20},
            "completion_tokens_details": {"reasoning_tokens": 15},
        }


async def test_visible_thinking_is_counted_as_reasoning() -> None:
    text = "<think>" + "x" * 41 + "</think>4"
    async with ScriptedUpstream(Reply(text, usage={"completion_tokens": 100})) as up, serving(up) as proxy:
        details = (await proxy.ask("re2-m")).json["usage"]["completion_tokens_details"]
        assert details["reasoning_tokens"] == 11


async def test_max_completion_tokens_beats_max_tokens_and_keeps_its_name() -> None:
    async with ScriptedUpstream(anything) as up, serving(up) as proxy:
        await proxy.ask("bon-m", max_tokens=5, max_completion_tokens=7)
        sample = up.calls[0].body
        assert (sample.get("max_tokens"), sample["max_completion_tokens"]) == (None, 7)
        assert up.calls[1].body["max_completion_tokens"] == 2048
        await proxy.ask("bon-m")
        assert up.calls[-4].body["max_tokens"] == 4096


async def test_headers() -> None:
    async with ScriptedUpstream(anything) as up, serving(up) as proxy:
        answer = await proxy.post(
            {"model": "bon-m", "messages": [{"role": "user", "content": "x"}]}, headers={"X-Request-Id": "me"}
        )
        head = answer.headers
        assert (head["X-Request-Id"], head["X-Optillm-Approach"]) == ("me", "bon")
        assert (head["X-Optillm-Calls"], head["X-Optillm-Depth"]) == ("4", "2")
        assert head["X-Optillm-Run"] == answer.json["id"] == answer.info["run_id"]
        assert head["Server-Timing"].startswith("run;dur=")


async def test_progress_as_reasoning_as_comments_or_not() -> None:
    async with ScriptedUpstream(anything) as up, serving(up, stream_progress="reasoning") as proxy:
        seen = "".join(
            c["delta"].get("reasoning_content", "")
            for e in (await proxy.events("bon-m"))[:-1]
            for c in json.loads(e)["choices"]
        )
        assert "bon.sample" in seen
        assert "bon.scores" in seen
        comments = [e for e in await proxy.events("bon-m", optillm_progress="comments") if e[0] == ":"]
        assert any("bon.rate" in c for c in comments)
        assert not any(
            "bon." in e for e in await proxy.events("bon-m", optillm_progress="off") if e[0] == ":"
        )


async def test_chain_hands_on_the_question_with_the_answer_as_material() -> None:
    async with (
        ScriptedUpstream(lambda c: "first" if len(up.calls) == 1 else "second") as up,
        serving(up) as proxy,
    ):
        answer = await proxy.ask("self_consistency(samples=1)&re2-m")
        assert answer.text == "second"
        assert up.calls[1].last.startswith("What is 2+2?")
        assert "\nfirst\n" in up.calls[1].last
        assert answer.info["depth"] == 2


async def test_chain_of_a_rewriter_costs_no_call() -> None:
    async with ScriptedUpstream(anything) as up, serving(up) as proxy:
        answer = await proxy.ask("re2&bon-m")
        assert answer.info["calls"] == 4
        assert up.calls[0].last.count("What is 2+2?") == 2


async def test_side_by_side_with_one_failing_branch() -> None:
    def script(call: Seen) -> Said:
        # re2 asks for one sample, bon for three.
        return Fault(status=500) if call.n == 3 else anything(call)

    async with ScriptedUpstream(script) as up, serving(up) as proxy:
        answer = await proxy.ask("bon|re2-m")
        assert answer.status == 200
        assert [c["optillm"]["approach"] for c in answer.json["choices"]] == ["re2"]
        assert "500" in answer.info["failed"]["bon"]


async def test_side_by_side_n_times_each_in_the_order_written() -> None:
    async with ScriptedUpstream(anything) as up, serving(up) as proxy:
        answer = await proxy.ask("self_consistency|re2-m", n=2)
        assert [c["optillm"]["approach"] for c in answer.json["choices"]] == ["self_consistency"] * 2 + [
            "re2"
        ] * 2


async def test_pipelines_of_one_request_have_their_own_seeds() -> None:
    async with ScriptedUpstream(anything) as up, serving(up) as proxy:
        await proxy.ask("self_consistency-m", n=2, seed=5)
        assert sorted(c.body["seed"] for c in up.calls) == [5, 1005]
