"""The body of a request, within its limits of size and time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from optillm.core.scope import CancelScope
from optillm.protocol.chat import ChatRequest, parse_request
from optillm.protocol.errors import BodyTimeout, BodyTooLarge

BODY_SECONDS = 60.0
"""How long a client may take to send its request."""
LARGE = 256 << 10
"""Bytes of a body that is read in a thread: a megabyte takes some milliseconds, a question none."""


async def read_body(
    given: Mapping[bytes, bytes], receive: Callable[[], Awaitable[Mapping[str, Any]]], most: int
) -> bytes:
    """The whole body.

    Args:
        given: the request's headers.
        receive: the next message from the client.
        most: its bytes, at most.

    Raises:
        BodyTooLarge: it is larger.
        BodyTimeout: it did not come in time.
    """
    declared = given.get(b"content-length", b"")
    if declared.isdigit() and int(declared) > most:
        raise BodyTooLarge(f"the body is larger than {most} bytes (--max-body-mb)")
    pieces: list[bytes] = []
    size, more = 0, True
    loop = asyncio.get_running_loop()
    with CancelScope(loop) as scope:
        timer = loop.call_later(BODY_SECONDS, scope.cancel)
        try:
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise BodyTimeout("the client went away while sending")
                piece = message.get("body", b"")
                size += len(piece)
                if size > most:
                    raise BodyTooLarge(f"the body is larger than {most} bytes (--max-body-mb)")
                pieces.append(piece)
                more = message.get("more_body", False)
        finally:
            timer.cancel()
    if scope.cancelled:
        raise BodyTimeout("the request was not sent in time")
    return b"".join(pieces)


async def read_request(body: bytes) -> tuple[dict[str, Any], ChatRequest]:
    """:func:`parse_request`; other requests are served while a large body is read.

    Raises:
        InvalidRequest: see there.
    """
    return parse_request(body) if len(body) < LARGE else await asyncio.to_thread(parse_request, body)
