"""The store of a process: opened when it is first used."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from optillm.protocol.errors import MissingExtra
from optillm.store.places import check, installed

if TYPE_CHECKING:
    from optillm.store.database import Database
    from optillm.store.rows import Rows

T = TypeVar("T")


class Store:
    """Where a process keeps what outlives a request. Of one event loop.

    Args:
        url: empty for memory, ``sqlite:///PATH`` or ``postgresql://USER:PASSWORD@HOST/DATABASE``.

    Raises:
        SettingsError: it is known already that this cannot be opened.
    """

    def __init__(self, url: str = "") -> None:
        check(url)
        self.url = url
        self._opening = asyncio.Lock()
        self._open: Database | None = None

    async def read(self, tenant: str, work: Callable[[Rows], Awaitable[T]]) -> T:
        """See :meth:`optillm.store.database.Database.read`."""
        return await (await self.database()).read(tenant, work)

    async def write(self, tenant: str, work: Callable[[Rows], Awaitable[T]]) -> T:
        """See :meth:`optillm.store.database.Database.write`."""
        return await (await self.database()).write(tenant, work)

    async def database(self) -> Database:
        """The open database.

        Raises:
            StoreError: it cannot be opened; the next use tries again.
            MissingExtra: its driver is not installed.
        """
        async with self._opening:
            if self._open is None:
                # Imported aside: it takes as long as a model call, and requests are under way.
                kind = await asyncio.to_thread(_imported)
                self._open = await kind.open(self.url)
            return self._open

    async def aclose(self) -> None:
        """Close it, if it was opened."""
        async with self._opening:
            if self._open is not None:
                await self._open.aclose()
                self._open = None


def _imported() -> type[Database]:
    if not installed():
        raise MissingExtra("store", "what is remembered")
    from optillm.store.database import Database

    return Database
