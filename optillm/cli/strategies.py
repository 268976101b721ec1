"""``optillm strategies``: look at what was learned, and carry it from one store to another."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path

import msgspec

from optillm.settings import SettingsError, store_of
from optillm.store.exchange import exported, imported
from optillm.store.states import StoredStates
from optillm.store.store import Store


def strategies(argv: Sequence[str]) -> int:
    """List, export or import the strategies of a tenant; returns the exit status.

    Raises:
        SettingsError: there is no store, or a file cannot be read or written.
        OptiError: a bad document, or the store does not answer.
    """
    parser = argparse.ArgumentParser(
        prog="optillm strategies", description="The strategies that were learned, of one tenant."
    )
    parser.add_argument("what", choices=("list", "export", "import"))
    parser.add_argument("file", nargs="?", help="JSON; standard output or input if left out")
    parser.add_argument("--tenant", default="default", help="name of the API key [default: 'default']")
    parser.add_argument("--store", metavar="URL", help="the server's --store [OPTILLM_STORE]")
    parser.add_argument("--config", metavar="FILE", help="the server's --config [OPTILLM_CONFIG]")
    options = parser.parse_args(list(argv))
    url = store_of(argv)
    if not url:
        raise SettingsError("strategies are in a store: --store sqlite:///PATH or postgresql://…")
    return asyncio.run(_run(url, options.tenant, options.what, options.file))


async def _run(url: str, tenant: str, what: str, file: str | None) -> int:
    async with aclosing(Store(url)) as store:
        state = StoredStates(store).of(tenant)
        if what == "import":
            new = imported(_read(file))
            await state.replace_strategies([s.id for s in new], new)
            print(f"{len(new)} strategies imported for '{tenant}'", file=sys.stderr)
            return 0
        found = await state.strategies()
    if what == "export":
        _write(file, msgspec.json.format(msgspec.json.encode(exported(found)), indent=2).decode() + "\n")
        return 0
    for s in found:
        used = f"{s.success_count}/{s.total_attempts}"
        print(f"{s.id:20} {s.type:24} {used:>9}  {' '.join(s.text.split())[:70]}")
    return 0


def _read(file: str | None) -> bytes:
    try:
        return sys.stdin.buffer.read() if file is None else Path(file).read_bytes()
    except OSError as error:
        raise SettingsError(f"cannot read {file}: {error.strerror}") from None


def _write(file: str | None, text: str) -> None:
    try:
        if file is None:
            sys.stdout.write(text)
        else:
            Path(file).write_text(text, "utf-8")
    except OSError as error:
        raise SettingsError(f"cannot write {file}: {error.strerror}") from None
