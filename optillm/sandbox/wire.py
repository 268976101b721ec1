"""What the server and the zygote say to each other: JSON, then the bytes of files, sizes before both."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

HEADER = struct.Struct("!II")


def frame(message: Mapping[str, Any], files: Mapping[str, bytes] = MappingProxyType({})) -> bytes:
    """A message as bytes; ``files`` go with it as they are."""
    sizes = [(name, len(data)) for name, data in files.items()]
    # Only ASCII goes over the wire, so any text that Python can hold survives it.
    body = json.dumps({**message, "files": sizes}).encode()
    return b"".join((HEADER.pack(len(body), sum(map(len, files.values()))), body, *files.values()))


def message_of(body: bytes, data: bytes) -> dict[str, Any]:
    """The message of :func:`frame`, from its two parts."""
    message: dict[str, Any] = json.loads(body)
    files: dict[str, bytes] = {}
    at = 0
    for name, size in message["files"]:
        files[name] = data[at : at + size]
        at += size
    message["files"] = files
    return message


def receive(channel: socket.socket) -> dict[str, Any] | None:
    """The next message, or None at the end.

    Raises:
        OSError: the connection broke.
    """
    parts: list[bytes] = []
    head = _exactly(channel, HEADER.size)
    for size in HEADER.unpack(head) if head is not None else ():
        part = _exactly(channel, size)
        if part is None:
            break
        parts.append(part)
    return message_of(*parts) if len(parts) == 2 else None


def _exactly(channel: socket.socket, size: int) -> bytes | None:
    data = bytearray()
    while len(data) < size:
        part = channel.recv(min(size - len(data), 1 << 20))
        if not part:
            return None
        data += part
    return bytes(data)
