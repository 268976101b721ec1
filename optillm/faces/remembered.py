"""What techniques remember, for its owner to look at, take along and delete: memories and strategies."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from typing import Any
from urllib.parse import parse_qs

from optillm.protocol.errors import NotFound, only
from optillm.store.exchange import exported, imported
from optillm.store.states import StoredState

MEMORIES = "/v1/memories"
STRATEGIES = "/v1/strategies"
ONE_STRATEGY = STRATEGIES + "/"

SHOWN = 1000
"""Memories in one answer; the last used ones."""

Body = Callable[[], Awaitable[bytes]]


def is_remembered(path: str) -> bool:
    """Whether a path is one of these."""
    return path in (MEMORIES, STRATEGIES) or path.startswith(ONE_STRATEGY)


async def remembered(
    method: str, path: str, query: bytes, body: Body, state: StoredState
) -> tuple[int, Mapping[str, Any]]:
    """Answer a request for the memories or strategies of a tenant.

    Args:
        method, path, query: what is asked.
        body: reads the request's body.
        state: the tenant's.

    Raises:
        OptiError: a wrong method, a bad document, or the store does not answer.
    """
    if path == MEMORIES:
        only(method, "GET", "HEAD", "DELETE")
        given = parse_qs(query.decode("latin-1"), keep_blank_values=True).get("conversation")
        conversation = given[-1] if given else None
        return 200, await (_forget if method == "DELETE" else _memories)(state, conversation)
    if path == STRATEGIES:
        only(method, "GET", "HEAD", "POST")
        if method != "POST":
            return 200, exported(await state.strategies())
        new = imported(await body())
        await state.replace_strategies([s.id for s in new], new)
        return 200, {"object": "strategies.imported", "imported": len(new)}
    only(method, "DELETE")
    name = path.removeprefix(ONE_STRATEGY)
    if not await state.delete_strategy(name):
        raise NotFound(f"there is no strategy '{name}'", code="unknown_strategy")
    return 200, {"object": "strategy.deleted", "id": name, "deleted": True}


async def _memories(state: StoredState, conversation: str | None) -> Mapping[str, Any]:
    found = await state.latest_notes(conversation, SHOWN + 1)
    shown = [{"object": "memory", "conversation": name, **asdict(note)} for name, note in found[:SHOWN]]
    return {"object": "list", "data": shown, "has_more": len(found) > SHOWN}


async def _forget(state: StoredState, conversation: str | None) -> Mapping[str, Any]:
    return {"object": "memories.deleted", "deleted": await state.delete_notes(conversation)}
