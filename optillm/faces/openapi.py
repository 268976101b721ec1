"""The OpenAPI description of the server, made from the wire types and the registry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec
from msgspec import Struct

from optillm.core.registry import Registry
from optillm.protocol.chat import ChatRequest
from optillm.store.exchange import Strategies
from optillm.version import __version__


class ErrorDetail(Struct):
    """What went wrong; ``param`` is the field at fault."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(Struct):
    """The body of every error."""

    error: ErrorDetail


class Usage(Struct):
    """Tokens of all upstream calls together."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int] | None = None
    completion_tokens_details: dict[str, int] | None = None


class About(Struct):
    """What the server did for a request."""

    run_id: str
    approach: str
    params: dict[str, Any]
    model: str
    calls: int
    depth: int
    seconds: float
    routed_to: str | None = None
    cost: float | None = None
    cut_short: str | None = None
    failed: dict[str, str] | None = None
    warnings: list[str] | None = None


class AnswerMessage(Struct):
    """The assistant's message."""

    role: Literal["assistant"]
    content: str | None
    refusal: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class AnswerChoice(Struct):
    """One answer."""

    index: int
    message: AnswerMessage
    finish_reason: str
    logprobs: dict[str, Any] | None = None


class ChatCompletion(Struct):
    """The answer to a request that does not stream."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[AnswerChoice]
    optillm: About
    usage: Usage | None = None
    system_fingerprint: str | None = None


class ChunkChoice(Struct):
    """Part of one answer."""

    index: int
    delta: dict[str, Any]
    finish_reason: str | None = None
    logprobs: dict[str, Any] | None = None


class ChatCompletionChunk(Struct):
    """One event of a stream."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
    optillm: About | None = None


class Model(Struct):
    """A model of an upstream."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(Struct):
    """The models of all upstreams."""

    object: Literal["list"]
    data: list[Model]


class Memory(Struct):
    """A note of a conversation; times are seconds since 1970."""

    object: Literal["memory"]
    id: int
    conversation: str
    text: str
    source: str
    created: float
    used: float


class MemoryList(Struct):
    """Notes, last used first; of more than 1000, the rest is not shown."""

    object: Literal["list"]
    data: list[Memory]
    has_more: bool


class MemoriesDeleted(Struct):
    """How many notes there were."""

    object: Literal["memories.deleted"]
    deleted: int


class StrategiesImported(Struct):
    """How many strategies were added or replaced."""

    object: Literal["strategies.imported"]
    imported: int


class StrategyDeleted(Struct):
    """The strategy is gone."""

    object: Literal["strategy.deleted"]
    id: str
    deleted: Literal[True]


def openapi(registry: Registry) -> dict[str, Any]:
    """The description, as OpenAPI 3.1."""
    types = (
        ChatRequest, ChatCompletion, ChatCompletionChunk, ModelList, Error,
        MemoryList, MemoriesDeleted, Strategies, StrategiesImported, StrategyDeleted,
    )  # fmt: skip
    _, schemas = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    for name, owners in registry.request_names.items():
        schemas["ChatRequest"]["properties"][name] = _shared([(slug, p.schema()) for slug, p in owners])
    slugs_known = "One of " + ", ".join(a.slug for a in registry) + ", or a composition: a&b, a|b."
    schemas["ChatRequest"]["properties"]["optillm_approach"]["description"] = slugs_known
    return {
        "openapi": "3.1.0",
        "info": {"title": "OptiLLM", "version": __version__, "license": {"name": "Apache-2.0"}},
        "paths": _paths(),
        "security": [{"key": []}],
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _shared(owners: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """The schema of a parameter that several approaches may have under one name."""
    help_ = "; ".join(f"{slug}: {schema.pop('description')}" for slug, schema in owners)
    different = [schema for i, (_, schema) in enumerate(owners) if schema not in [s for _, s in owners[:i]]]
    return {**(different[0] if len(different) == 1 else {"anyOf": different}), "description": help_}


def _paths() -> dict[str, Any]:
    chat = {
        "operationId": "createChatCompletion",
        "summary": "Answer a conversation",
        "requestBody": {"required": True, "content": _json(_ref("ChatRequest"))},
        "responses": {
            "200": {
                "description": "The answer; server-sent events when `stream` is true",
                "content": {
                    **_json(_ref("ChatCompletion")),
                    "text/event-stream": {"schema": _ref("ChatCompletionChunk")},
                },
            },
            "default": _failure(),
        },
    }
    return {
        "/v1/chat/completions": {"post": chat},
        "/v1/models": _operation(
            "listModels", "The models of all upstreams", _ref("ModelList"), query="approaches"
        ),
        "/v1/models/{id}": _operation("retrieveModel", "One model", _ref("Model"), path="id"),
        "/v1/approaches": _operation("listApproaches", "The techniques, with their parameters"),
        "/v1/approaches/{slug}": _operation("retrieveApproach", "One technique", path="slug"),
        "/v1/runs": _operation("listRuns", "One's own last runs"),
        "/v1/runs/{id}": _operation("retrieveRun", "The trace of a run", path="id"),
        "/v1/memories": {
            **_operation("listMemories", "What was remembered", _ref("MemoryList"), query="conversation"),
            **_operation(
                "deleteMemories",
                "Forget a conversation, or all of them and all summaries",
                _ref("MemoriesDeleted"),
                query="conversation",
                method="delete",
            ),
        },
        "/v1/strategies": {
            **_operation("exportStrategies", "The strategies that were learned", _ref("Strategies")),
            "post": {
                "operationId": "importStrategies",
                "summary": "Add strategies, or replace those of the same id",
                "requestBody": {"required": True, "content": _json(_ref("Strategies"))},
                "responses": {
                    "200": {"description": "Done", "content": _json(_ref("StrategiesImported"))},
                    "default": _failure(),
                },
            },
        },
        "/v1/strategies/{id}": _operation(
            "deleteStrategy", "Delete a strategy", _ref("StrategyDeleted"), path="id", method="delete"
        ),
        "/health": _operation("health", "The process lives", open_to_all=True),
        "/ready": _operation("ready", "An upstream answers", open_to_all=True),
        "/openapi.json": _operation("openapi", "This description"),
    }


def _operation(
    name: str,
    summary: str,
    schema: Mapping[str, Any] | None = None,
    *,
    path: str = "",
    query: str = "",
    method: str = "get",
    open_to_all: bool = False,
) -> dict[str, Any]:
    places = (("path", path), ("query", query))
    parameters = [
        {"name": named, "in": place, "required": place == "path", "schema": {"type": "string"}}
        for place, named in places
        if named
    ]
    answer = {"description": summary, "content": _json(schema or {"type": "object"})}
    operation: dict[str, Any] = {
        "operationId": name,
        "summary": summary,
        "parameters": parameters,
        "responses": {"200": answer, "default": _failure()},
    }
    if open_to_all:
        operation["security"] = []
    return {method: operation}


def _failure() -> dict[str, Any]:
    return {"description": "An error", "content": _json(_ref("Error"))}


def _json(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}
