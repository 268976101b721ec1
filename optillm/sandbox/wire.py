"""What the server and the zygote say to each other: JSON with a length before it."""

from __future__ import annotations

import base64
import json
import socket
import struct
from collections.abc import Mapping
from typing import Any

HEADER = struct.Struct("!I")


def frame(message: Mapping[str, Any]) -> bytes:
    """A message as bytes."""
    # Only ASCII goes over the wire, so any text that Python can hold survives it.
    body = json.dumps(message).encode()
    return HEADER.pack(len(body)) + body


def receive(channel: socket.socket) -> dict[str, Any] | None:
    """The next message, or None at the end.

    Raises:
        OSError: the connection broke.
    """
    head = _exactly(channel, HEADER.size)
    if head is None:
        return None
    body = _exactly(channel, HEADER.unpack(head)[0])
    if body is None:
        return None
    message: dict[str, Any] = json.loads(body)
    return message


def pack_files(files: Mapping[str, bytes]) -> dict[str, str]:
    """Files as JSON text."""
    return {name: base64.b64encode(data).decode() for name, data in files.items()}


def unpack_files(files: Mapping[str, str]) -> dict[str, bytes]:
    """The files of :func:`pack_files`."""
    return {name: base64.b64decode(data) for name, data in files.items()}


def _exactly(channel: socket.socket, size: int) -> bytes | None:
    data = bytearray()
    while len(data) < size:
        part = channel.recv(min(size - len(data), 1 << 20))
        if not part:
            return None
        data += part
    return bytes(data)
