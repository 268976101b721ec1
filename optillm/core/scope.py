"""A block of work that another part of the program can end."""

from __future__ import annotations

import asyncio
from types import TracebackType


class CancelScope:
    """``with CancelScope() as scope``: what runs inside is cancelled by ``scope.cancel()``.

    The cancellation ends with the block; a cancellation of the whole task from outside goes on. Unlike
    :func:`asyncio.timeout` it needs no timer, so that it is cheap enough to put around every call.
    """

    __slots__ = ("_before", "_loop", "_task", "cancelled")

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        """``loop`` is the running one, for callers that have it at hand: asking for it is not free."""
        self.cancelled = False
        self._loop = loop
        self._task: asyncio.Task[object] | None = None
        self._before = 0

    def cancel(self) -> None:
        """End the block, if it is under way; for everybody but the task inside, which can just leave."""
        if self._task is not None and not self.cancelled:
            self.cancelled = True
            self._task.cancel()

    def __enter__(self) -> CancelScope:
        self._task = asyncio.current_task(self._loop)
        if self._task is None:
            raise RuntimeError("a cancel scope needs a task to run in")
        self._before = self._task.cancelling()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        """Swallow the cancellation that this scope asked for, and no other."""
        task, self._task = self._task, None
        if task is None or not self.cancelled:
            return False
        # As asyncio.timeout does it: whoever else wants to cancel the task still does.
        return task.uncancel() <= self._before and kind is asyncio.CancelledError
