"""Request bodies: every field, and every way to get one wrong."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optillm.protocol.chat import MAX_DEPTH, ChatRequest, parse_request
from optillm.protocol.errors import InvalidRequest

HI: list[Any] = [{"role": "user", "content": "hi"}]
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
FUNCTION = {"name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True}

GOOD: dict[str, list[Any]] = {
    "model": ["m", "", None],
    "n": [1, 128, None],
    "stream": [True, False, None],
    "stream_options": [{"include_usage": True}, {"include_usage": None, "new": 1}, None],
    "temperature": [0, 1, 2.0, None],
    "top_p": [0, 0.5, 1, None],
    "max_tokens": [1, 10**9, None],
    "max_completion_tokens": [1, None],
    "frequency_penalty": [-2, 2, None],
    "presence_penalty": [-2, 2, None],
    "logit_bias": [{"50256": -100}, {}, None],
    "logprobs": [True, None],
    "top_logprobs": [0, 20, None],
    "seed": [0, -(2**63), 2**63 - 1, None],
    "stop": ["x", ["x", "y"], [], None],
    "tools": [[], [{"type": "function", "function": FUNCTION}], [{"type": "custom", "custom": {}}], None],
    "tool_choice": ["auto", {"type": "function", "function": {"name": "f"}}, None],
    "parallel_tool_calls": [False, None],
    "functions": [[FUNCTION], None],
    "function_call": ["auto", {"name": "f"}, None],
    "response_format": [
        {"type": "text"},
        {"type": "json_object"},
        {"type": "json_schema", "json_schema": {"name": "x"}},
        None,
    ],
    "reasoning_effort": ["low", None],
    "modalities": [["text", "audio"], None],
    "audio": [{"voice": "a", "format": "wav"}, None],
    "prediction": [{"type": "content", "content": "x"}, None],
    "metadata": [{"a": "b"}, None],
    "store": [True, None],
    "service_tier": ["auto", None],
    "user": ["u", None],
    "web_search_options": [{}, None],
    "verbosity": ["low", None],
    "safety_identifier": ["x", None],
    "prompt_cache_key": ["x", None],
    "optillm_approach": ["re2", None],
    "optillm_budget": [{"max_calls": 1, "max_tokens": 1, "max_seconds": 0.1, "max_cost": 0.1}, {}, None],
    "optillm_progress": ["reasoning", "comments", "off", None],
    "optillm": [{"approach": "re2", "budget": {"max_calls": 1}, "params": {}}, {}, None],
}


def fields(name: str) -> list[Any]:
    return [pytest.param(name, value, id=f"{name}={value!r:.30}") for value in GOOD[name]]


def test_every_field_is_tried() -> None:
    assert set(GOOD) | {"messages"} == {f.encode_name for f in msgspec.structs.fields(ChatRequest)}


@pytest.mark.parametrize(("name", "value"), [p for name in GOOD for p in fields(name)])
def test_field_is_accepted(name: str, value: Any) -> None:
    raw, _ = parse_request(json.dumps({"messages": HI, name: value}).encode())
    assert raw[name] == value


@pytest.mark.parametrize("name", [n for n in GOOD if n not in ("stop",)])
def test_field_of_a_wrong_type_is_named(name: str) -> None:
    wrong: Any = [5] if isinstance(GOOD[name][0], str | dict | bool | int | float) else 5
    error = refused({"messages": HI, name: wrong})
    assert error.param in (name, f"{name}[0]")
    assert f"'{error.param}' must be " in error.message


@pytest.mark.parametrize(
    "message",
    [
        {"role": "system", "content": "x", "name": "n"},
        {"role": "developer", "content": [{"type": "text", "text": "x"}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u", "detail": "low"}}]},
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "d", "format": "wav"}}]},
        {"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}},
        {
            "role": "assistant",
            "content": "x",
            "refusal": None,
            "audio": {"id": "a"},
            "reasoning_content": "r",
        },
        {"role": "tool", "tool_call_id": "c1", "content": "x"},
        {"role": "function", "name": "f", "content": None},
    ],
)
def test_message_is_accepted_and_kept_as_it_is(message: dict[str, Any]) -> None:
    raw, _ = parse_request(json.dumps({"messages": [message]}).encode())
    assert raw["messages"] == [message]


# a body -> the field that is named, and the whole message
MESSAGES: list[tuple[dict[str, Any], str, str]] = [
    ({}, "messages", "'messages' is required: an array of at least one message"),
    ({"messages": []}, "messages", "'messages' must be an array of at least 1 item, not an empty array"),
    ({"messages": HI, "n": 0}, "n", "'n' must be an integer from 1 to 128, not 0"),
    ({"messages": HI, "n": 1.5}, "n", "'n' must be an integer from 1 to 128, not 1.5"),
    ({"messages": HI, "n": 10**30}, "n", f"'n' must be an integer from 1 to 128, not {10**30}"),
    (
        {"messages": HI, "temperature": "hot"},
        "temperature",
        "'temperature' must be a number from 0 to 2, not \"hot\"",
    ),
    ({"messages": HI, "max_tokens": 0}, "max_tokens", "'max_tokens' must be an integer of at least 1, not 0"),
    ({"messages": HI, "stream": "yes"}, "stream", "'stream' must be true or false, not \"yes\""),
    ({"messages": HI, "stop": 5}, "stop", "'stop' must be a string or an array, not 5"),
    ({"messages": HI, "stop": ["a", 1]}, "stop[1]", "'stop[1]' must be a string, not 1"),
    (
        {"messages": HI, "response_format": {"type": "xml"}},
        "response_format.type",
        "'response_format.type' must be one of json_object, json_schema, text, not \"xml\"",
    ),
    (
        {"messages": HI, "optillm_budget": {"max_call": 1}},
        "optillm_budget",
        "'optillm_budget' has no field 'max_call'. Did you mean 'max_calls' or 'max_cost'?",
    ),
    (
        {"messages": HI, "optillm_budget": {"max_seconds": 0}},
        "optillm_budget.max_seconds",
        "'optillm_budget.max_seconds' must be a number above 0, not 0",
    ),
    (
        {"messages": [{"role": "robot", "content": "x"}]},
        "messages[0].role",
        "'messages[0].role' must be one of system, developer, user, assistant, tool, function, not \"robot\"",
    ),
    (
        {"messages": [{"content": "x"}]},
        "messages[0]",
        "'messages[0]' needs the field 'role': one of system, developer, user, assistant, tool, function",
    ),
    (
        {"messages": [*HI, {"role": "user", "content": [{"type": "smell"}]}]},
        "messages[1].content[0].type",
        "'messages[1].content[0].type' must be one of text, image_url, input_audio, file, refusal, "
        'not "smell"',
    ),
    (
        {"messages": [{"role": "tool", "content": "x"}]},
        "messages[0]",
        "'messages[0]' needs the field 'tool_call_id'",
    ),
    (
        {"messages": [{"role": "user", "content": {"a": 1}}]},
        "messages[0].content",
        "'messages[0].content' must be a string or an array, not an object",
    ),
    (
        {"messages": HI, "tools": [{"type": "function", "function": {}}]},
        "tools[0].function",
        "'tools[0].function' needs the field 'name'",
    ),
]


@pytest.mark.parametrize(("body", "param", "message"), MESSAGES)
def test_message_says_the_field_what_it_takes_and_what_it_got(
    body: dict[str, Any], param: str, message: str
) -> None:
    error = refused(body)
    assert (error.param, error.message, error.status) == (param, message, 400)


NOT_JSON: list[tuple[bytes, str | None, str]] = [
    (b"", None, "the body is empty; it must be a JSON object"),
    (b" \n", None, "the body is empty; it must be a JSON object"),
    (b"{", None, "the body is not valid JSON"),
    (b"\xff\xfe", None, "the body is not valid JSON"),
    (b'{"model": "\xed\xa0\x80"}', "model", "half of a surrogate pair"),
    (b"[]", None, "the body must be a JSON object"),
    (b"null", None, "the body must be a JSON object"),
    (b'{"top_p": NaN}', "top_p", "'top_p' must be a finite number, not NaN"),
    (b'{"mcts": {"c": -Infinity}}', "mcts.c", "'mcts.c' must be a finite number, not infinity"),
    (b'{"a": [0, 1e999]}', "a[1]", "'a[1]' must be a finite number, not infinity"),
    (
        b'{"messages": [{"role": "user", "content": "\\ud83d"}]}',
        "messages[0].content",
        "half of a surrogate pair",
    ),
    (b"[" * 100_000, None, "the body is not valid JSON"),
    (b'{"a":' * 50_000, None, "the body is not valid JSON"),
    (b'{"a":' + b"[" * 900 + b"]" * 900 + b"}", None, f"nested more than {MAX_DEPTH} levels deep"),
    (b'{"a":' * 400 + b"1" + b"}" * 400, None, f"nested more than {MAX_DEPTH} levels deep"),
]


@pytest.mark.parametrize(("body", "param", "words"), NOT_JSON)
def test_not_json(body: bytes, param: str | None, words: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_request(body)
    assert (caught.value.code, caught.value.param) == ("invalid_json", param)
    assert words in caught.value.message


@pytest.mark.parametrize("extra", [0, 1])
def test_the_deepest_body(extra: int) -> None:
    # The body itself is the first level; many flat brackets are not depth.
    inside = MAX_DEPTH - 1 + extra
    body = b'{"messages":[{"role":"user","content":"x"}],"flat":[' + b"[]," * 200 + b'{}],"deep":'
    body += b"[" * inside + b"]" * inside + b"}"
    if extra:
        with pytest.raises(InvalidRequest):
            parse_request(body)
    else:
        parse_request(body)


def test_the_last_of_duplicate_keys_counts_in_both_views() -> None:
    raw, request = parse_request(b'{"messages":[{"role":"user","content":"x"}],"n":0,"n":2}')
    assert raw["n"] == request.n == 2


def test_huge_integers_in_unknown_fields_are_kept() -> None:
    raw, _ = parse_request(json.dumps({"messages": HI, "brand_new": 10**40}).encode())
    assert raw["brand_new"] == 10**40


def test_what_a_client_wrote_comes_back_shortened() -> None:
    error = refused({"messages": HI, "n": "x" * 10_000})
    assert len(error.message) < 200
    key = "k" * 10_000
    error = refused({"messages": HI, "optillm": {key: 1}})
    assert len(json.dumps(error.envelope())) < 3000


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from([*GOOD, "messages"]), JSON)
def test_any_value_of_any_field_is_accepted_or_explained(name: str, value: Any) -> None:
    accepted_or_explained({"messages": HI, name: value})


@given(st.dictionaries(st.sampled_from(["role", "content", "tool_calls", "function_call", "name"]), JSON))
def test_any_message_is_accepted_or_explained(message: dict[str, Any]) -> None:
    accepted_or_explained({"messages": [{"role": "assistant"} | message]})


@given(st.binary(max_size=60))
def test_any_bytes_are_accepted_or_explained(body: bytes) -> None:
    error = error_of(body)
    assert error is None or error.message


def accepted_or_explained(body: dict[str, Any]) -> None:
    error = error_of(json.dumps(body).encode())
    if error is not None:
        assert error.status == 400
        # The decoder's own words have some.
        assert "`" not in error.message or "`" in json.dumps(body)
        assert json.dumps(error.envelope())


def error_of(body: bytes) -> InvalidRequest | None:
    try:
        parse_request(body)
    except InvalidRequest as error:
        return error
    return None


def refused(body: dict[str, Any]) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse_request(json.dumps(body).encode())
    return caught.value
