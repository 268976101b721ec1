"""The chat-completions request: strict types for every field of the OpenAI SDK."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from optillm.protocol.errors import InvalidRequest
from optillm.protocol.explain import explain_json, explain_value, nested_over


class _URL(Struct):
    url: str
    detail: str | None = None


class _Audio(Struct):
    data: str
    format: str


class Text(Struct, tag="text"):
    """A text part."""

    text: str


class Image(Struct, tag="image_url"):
    """An image part."""

    image_url: _URL


class InputAudio(Struct, tag="input_audio"):
    """An audio part."""

    input_audio: _Audio


class File(Struct, tag="file"):
    """A file part."""

    file: dict[str, Any]


class Refusal(Struct, tag="refusal"):
    """A refusal part of an assistant message."""

    refusal: str


Part = Text | Image | InputAudio | File | Refusal


class _Function(Struct):
    name: str
    arguments: str


class _ToolCall(Struct):
    id: str
    type: str = "function"
    function: _Function | None = None
    custom: dict[str, Any] | None = None


class System(Struct, tag_field="role", tag="system"):
    """A system message."""

    content: str | list[Part] | None = None


class Developer(Struct, tag_field="role", tag="developer"):
    """A developer message."""

    content: str | list[Part] | None = None


class User(Struct, tag_field="role", tag="user"):
    """A user message."""

    content: str | list[Part] | None = None


class Assistant(Struct, tag_field="role", tag="assistant"):
    """An assistant message."""

    content: str | list[Part] | None = None
    tool_calls: list[_ToolCall] | None = None
    function_call: _Function | None = None


class Tool(Struct, tag_field="role", tag="tool"):
    """A tool's result."""

    tool_call_id: str
    content: str | list[Part] | None = None


class Function(Struct, tag_field="role", tag="function"):
    """An old-style function's result."""

    name: str
    content: str | list[Part] | None = None


class _FunctionDefinition(Struct):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class _ToolDefinition(Struct):
    type: str
    function: _FunctionDefinition | None = None


class _ResponseFormat(Struct):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: dict[str, Any] | None = None


class _StreamOptions(Struct):
    include_usage: bool | None = None


class Budget(Struct, forbid_unknown_fields=True):
    """``optillm_budget``: what the request may spend."""

    max_calls: Annotated[int, Meta(ge=1)] | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    max_seconds: Annotated[float, Meta(gt=0)] | None = None
    max_cost: Annotated[float, Meta(gt=0)] | None = None


class Nested(Struct, forbid_unknown_fields=True):
    """``optillm``: everything for us in one object."""

    approach: str | None = None
    budget: Budget | None = None
    params: dict[str, Any] | None = None


_Penalty = Annotated[float, Meta(ge=-2, le=2)] | None


class ChatRequest(Struct):
    """A request body. Unknown fields are allowed, and kept in the body itself."""

    messages: Annotated[list[System | Developer | User | Assistant | Tool | Function], Meta(min_length=1)]
    model: str | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    frequency_penalty: _Penalty = None
    presence_penalty: _Penalty = None
    logit_bias: dict[str, float] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: str | list[str] | None = None
    tools: list[_ToolDefinition] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    functions: list[_FunctionDefinition] | None = None
    function_call: str | dict[str, Any] | None = None
    response_format: _ResponseFormat | None = None
    reasoning_effort: str | None = None
    modalities: list[str] | None = None
    audio: dict[str, Any] | None = None
    prediction: dict[str, Any] | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    user: str | None = None
    web_search_options: dict[str, Any] | None = None
    verbosity: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    optillm_approach: str | None = None
    optillm_budget: Budget | None = None
    optillm_progress: Literal["reasoning", "comments", "off"] | None = None
    optillm: Nested | UnsetType | None = UNSET


MAX_DEPTH = 100
"""How deep arrays and objects of a body may lie in each other."""

_DECODER = msgspec.json.Decoder()


def parse_request(body: bytes) -> tuple[dict[str, Any], ChatRequest]:
    """Read a request body: the JSON object as sent, and its typed view.

    Raises:
        InvalidRequest: not JSON, not an object, or a field of the wrong type or range.
    """
    try:
        raw = _DECODER.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise explain_json(error, body) from None
    if not isinstance(raw, dict):
        raise InvalidRequest("the body must be a JSON object", code="invalid_json")
    # Counting is cheap; only a body with many brackets can be deep, and is looked at.
    if body.count(b"{") + body.count(b"[") > MAX_DEPTH and nested_over(raw, MAX_DEPTH):
        raise InvalidRequest(f"the body is nested more than {MAX_DEPTH} levels deep", code="invalid_json")
    if raw.get("messages") is None:
        raise InvalidRequest("'messages' is required: an array of at least one message", param="messages")
    try:
        return raw, msgspec.convert(raw, ChatRequest, strict=True)
    except msgspec.ValidationError as error:
        raise explain_value(error, raw, ChatRequest) from None
