"""What ``rlm`` keeps between two calls of its model: the session in the sandbox, and the conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from optillm.core.prompts import quoted
from optillm.core.task import Message, assistant, user
from optillm.core.tools import Calls, Outcome, Session

CONTEXT_FILE = "context.txt"
QUERY, QUERIES, RECURSE, FINAL = "query", "queries", "recurse", "final"
"""What code asks the server for."""

BYTES_PER_TOKEN = 3
"""Careful: English has 4, Chinese and Japanese 3 and more, digits and code about 3."""

_SHOWN_ERROR = 1500
"""Characters of the end of an error that the model sees."""
_CONDENSED = 240
"""Bytes that are left of each half of a round that there is no room for."""
_OVERHEAD = 32
"""Bytes that a message costs beside its text."""

_PRELUDE = f"""
def _begin(ask):
    space = globals()

    def llm_query(prompt):
        return ask({QUERY!r}, str(prompt))

    def llm_queries(prompts):
        return ask({QUERIES!r}, [str(prompt) for prompt in prompts])

    def rlm_query(question, text):
        return ask({RECURSE!r}, [str(question), str(text)])

    def FINAL(answer):
        ask({FINAL!r}, str(answer))

    def FINAL_VAR(name):
        if isinstance(name, str) and name not in space:
            raise NameError(f"there is no variable {{name!r}}")
        FINAL(space[name] if isinstance(name, str) else name)

    names = [llm_query, llm_queries, rlm_query, FINAL, FINAL_VAR]
    space.update({{function.__name__: function for function in names}})
    with open({CONTEXT_FILE!r}, encoding="utf-8", newline="") as file:
        space["context"] = file.read()

_begin(ask)
del _begin, ask
"""


class Repl:
    """A session with the document and the functions that the model was told about.

    Args:
        session: of the sandbox, with the document in :data:`CONTEXT_FILE`.
        calls: answers what code asks.
    """

    def __init__(self, session: Session, calls: Calls) -> None:
        self._session, self._calls = session, calls
        self._ready = False

    async def load(self) -> None:
        """Load the document ahead of the first block; if that fails, the block will tell."""
        self._ready = (await self._session.run(_PRELUDE)).ok

    async def run(self, code: str) -> Outcome:
        """Run a block; after one that has ended the process, in a fresh one."""
        if not self._ready:
            begun = await self._session.run(_PRELUDE)
            if not begun.ok:
                return begun
        outcome = await self._session.run(code, calls=self._calls)
        self._ready = outcome.alive
        return outcome


def files_of(document: str) -> Mapping[str, bytes]:
    """The document as the session's file."""
    return MappingProxyType({CONTEXT_FILE: document.encode(errors="replace")})


def told(outcome: Outcome, timeout: float, most: int, nonce: str) -> str:
    """What the model gets to know of a block that was run.

    Args:
        outcome: what it ended with.
        timeout: seconds that it may have run.
        most: characters of the output to show.
        nonce: the run's mark around data.
    """
    how = {
        "ok": "The code ran.",
        "output": "The code ran. It printed more than anybody will see: print less.",
        "error": "The code failed.",
        "timeout": f"The code was stopped: it ran longer than {timeout:g} seconds.",
        "memory": "The code ran out of memory.",
        "killed": "The code was ended.",
    }[outcome.status]
    lines = [how]
    if not outcome.alive:
        lines.append("All variables are lost but `context`, which is as it was.")
    printed = clip(outcome.stdout, most)
    lines.append(quoted("output", printed, nonce) if printed.strip() else "It printed nothing.")
    if outcome.stderr.strip():
        lines.append(quoted("error", outcome.stderr[-_SHOWN_ERROR:], nonce))
    return "\n".join(lines)


def clip(text: str, most: int) -> str:
    """The text, or its beginning and its end with a word about what is missing between."""
    if len(text) <= most:
        return text
    head = most * 2 // 3
    tail = most - head
    return f"{text[:head]}\n[... {len(text) - most} characters left out ...]\n{text[len(text) - tail :]}"


def clip_bytes(text: str, most: int) -> str:
    """:func:`clip` to at most so many bytes of UTF-8, the word about what is missing included."""
    if size(text) <= most:
        return text
    # No text has more characters than bytes; what cannot be in the result need not be looked at.
    low, high = 0, min(len(text), most)
    while low < high:
        middle = (low + high + 1) // 2
        if size(clip(text, middle)) <= most:
            low = middle
        else:
            high = middle - 1
    return clip(text, low) if low else ""


def size(text: str) -> int:
    """Bytes of UTF-8."""
    return len(text.encode(errors="replace"))


@dataclass(frozen=True, slots=True)
class Round:
    """What the model said, and what it was told then."""

    said: str
    told: str

    @property
    def bytes(self) -> int:
        """What it costs of the window."""
        return size(self.said) + size(self.told) + 2 * _OVERHEAD

    def shrunk(self, most: int) -> Round:
        """The same round in at most so many bytes, a third of them for the model's own words."""
        rest = max(0, most - 2 * _OVERHEAD)
        said = clip_bytes(self.said, max(rest // 3, rest - size(self.told)))
        return Round(said, clip_bytes(self.told, rest - size(said)))


def fitted(rounds: Sequence[Round], most: int) -> tuple[list[Round], int]:
    """The rounds that fit into so many bytes, the newest above all; and how many older ones do not.

    The newest is cut if it has to be. Older ones are whole while there is room for all after them and for
    the rest condensed; then they are condensed; the oldest are left out.
    """
    kept: list[Round] = []
    left = most
    condensing = False
    for i, this in enumerate(reversed(rounds)):
        if i == 0 and this.bytes > left:
            this = this.shrunk(left)
        elif i > 0:
            older = min(len(rounds) - 1 - i, 8)
            condensing = condensing or this.bytes > left - older * 2 * (_CONDENSED + _OVERHEAD)
            if condensing:
                this = this.shrunk(2 * (_CONDENSED + _OVERHEAD))
        if this.bytes > left:
            break
        kept.append(this)
        left -= this.bytes
    return kept[::-1], len(rounds) - len(kept)


def conversation(opening: Sequence[Message], rounds: Sequence[Round], most: int) -> tuple[Message, ...]:
    """The root model's messages in at most so many bytes.

    Args:
        opening: what it is told first; always there.
        rounds: all rounds so far.
        most: bytes for everything.
    """
    room = most - sum(size(m.text) + _OVERHEAD for m in opening)
    kept, missing = fitted(rounds, room - 2 * _OVERHEAD - 160)
    turns = [m for r in kept for m in (assistant(r.said or "[left out]"), user(r.told or "[left out]"))]
    if missing and turns:
        gone = f"[{missing} earlier rounds are not shown; the variables are there]"
        turns = [assistant(gone), user("Go on."), *turns]
    return (*opening, *turns)
