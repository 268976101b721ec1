"""Server-sent events: reading an upstream's, writing ours."""

from __future__ import annotations

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"


class SSEDecoder:
    """Turns pieces of a byte stream into the payloads of its data events.

    Accepts all three line ends, several data lines per event, comments and fields we do not use.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, piece: bytes) -> list[bytes]:
        """The payloads of the events that this piece completes."""
        buffer = self._rest + piece
        # A carriage return at the very end may be half of a line end.
        held = b"\r" if buffer.endswith(b"\r") else b""
        buffer = buffer[: len(buffer) - len(held)]
        if b"\r" in buffer:
            buffer = buffer.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = buffer.split(b"\n")
        self._rest = rest + held
        out: list[bytes] = []
        for line in lines:
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                out.append(b"\n".join(self._data))
                self._data = []
        return out


def event(payload: bytes) -> bytes:
    """One data event."""
    return b"data: " + payload + b"\n\n"


def comment(text: str) -> bytes:
    """A comment, which clients ignore; line ends in it become spaces."""
    return b": " + " ".join(text.split()).encode() + b"\n\n"
