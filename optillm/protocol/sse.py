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
        self._after_cr = False

    def feed(self, piece: bytes) -> list[bytes]:
        """The payloads of the events that this piece completes."""
        if not piece:
            return []
        if self._after_cr:
            # The second half of a line end that two pieces share.
            piece = piece.removeprefix(b"\n")
        self._after_cr = piece.endswith(b"\r")
        if b"\r" in piece:
            piece = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, self._rest = (self._rest + piece).split(b"\n")
        out: list[bytes] = []
        for line in lines:
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                out.append(b"\n".join(self._data))
                self._data = []
        return out


def event(payload: bytes) -> bytes:
    """One data event; a payload of several lines becomes several data lines."""
    return b"data: " + payload.replace(b"\n", b"\ndata: ") + b"\n\n"


def comment(text: str) -> bytes:
    """A comment, which clients ignore; line ends in it become spaces."""
    return b": " + " ".join(text.split()).encode() + b"\n\n"
