"""The ``optillm`` command."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from optillm.core.registry import Registry
from optillm.core.trace import CallRecord
from optillm.core.usage import Usage
from optillm.plugins import builtin_registry, load_registry
from optillm.protocol.errors import OptiError
from optillm.settings import (
    Settings,
    SettingsError,
    flags_of,
    from_command_line,
    from_flags,
    parser,
    plugins_of,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one of the commands below; ``serve`` also without a word."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments[0] if arguments and not arguments[0].startswith("-") else "serve"
    rest = arguments[1:] if arguments[:1] == [command] else arguments
    commands = {
        "serve": _serve,
        "ask": _ask,
        "approaches": _approaches,
        "strategies": _strategies,
        "train-router": _train_router,
    }
    if command not in commands:
        print(f"optillm: unknown command '{command}'; one of {', '.join(commands)}", file=sys.stderr)
        return 2
    try:
        return commands[command](rest)
    except (SettingsError, OptiError) as error:
        print(f"optillm: {error}", file=sys.stderr)
        return 2


def _serve(argv: Sequence[str]) -> int:
    folder, override = plugins_of(argv)
    registry = load_registry(folder, allow_override=override)
    settings = from_command_line(argv, registry)
    level = "debug" if settings.log == "notset" else settings.log
    logging.basicConfig(level=level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s")
    for warning in settings.warnings:
        logging.getLogger("optillm").warning(warning)
    from optillm.faces.serve import serve

    return serve(settings, registry)


def _approaches(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="optillm approaches", description="List the techniques.")
    parser.add_argument("--markdown", metavar="DIR", type=Path, help="write the documentation's pages")
    options = parser.parse_args(list(argv))
    registry = builtin_registry()
    if options.markdown:
        from optillm.cli.tables import pages

        options.markdown.mkdir(parents=True, exist_ok=True)
        for name, text in pages(registry).items():
            (options.markdown / name).write_text(text)
        return 0
    for item in registry:
        print(f"{item.slug:18} {item.title}  [{item.calls}; depth {item.depth}]")
    return 0


def _strategies(argv: Sequence[str]) -> int:
    from optillm.cli.strategies import strategies

    return strategies(argv)


def _train_router(argv: Sequence[str]) -> int:
    from optillm.cli.train_router import train_router

    return train_router(argv)


def _ask(argv: Sequence[str]) -> int:
    """``optillm ask QUESTION``: one question, answered in this process, with the server's settings."""
    folder, override = plugins_of(argv)
    registry = load_registry(folder, allow_override=override)
    command_line = parser(registry, "optillm ask")
    command_line.description = "Ask one question, without a server. All settings of the server hold."
    command_line.add_argument("question")
    command_line.add_argument(
        "--trace", action="store_true", help="show each call and decision as it happens"
    )
    flags = flags_of(command_line, argv)
    return asyncio.run(_answer(from_flags(flags, registry), registry, flags["question"], flags["trace"]))


async def _answer(settings: Settings, registry: Registry, question: str, trace: bool) -> int:
    from optillm.faces.assemble import assembled
    from optillm.library import solve_with
    from optillm.store.states import StoredStates
    from optillm.store.store import Store

    ends = "" if settings.store else "what techniques remember ends with this command: --store keeps it"
    async with (
        aclosing(Store(settings.store)) as store,
        assembled(settings, registry, StoredStates(store, ends)) as (service, _),
    ):
        solution = await solve_with(service, question, observer=print_record if trace else None)
    print(solution.text)
    if trace:
        info = solution.response["optillm"]
        usage = sum((call.usage for call in solution.trace.calls), Usage())
        print(
            f"\n{info['approach']} on {info['model']}: {info['calls']} calls, depth {info['depth']}, "
            f"{usage.total} tokens, {info['seconds']:.2f} s"
        )
    return 0


def print_record(record: Any) -> None:
    """One line for one record of a trace, indented by its depth."""
    if isinstance(record, CallRecord):
        text = " | ".join(" ".join(r.visible.split())[:70] for r in record.replies)
        text = f"failed: {record.error}" if record.error is not None else text
        took = (record.ended or record.started) - record.started
        print(
            f"{'  ' * record.depth}{record.stage}{f' @{record.tag}' if record.tag else ''}"
            f"  {took:.2f} s, {record.usage.total} tokens: {text}",
            flush=True,
        )
    else:
        print(f"  * {record.name} {dict(record.data)}"[:300], flush=True)


if __name__ == "__main__":
    sys.exit(main())
