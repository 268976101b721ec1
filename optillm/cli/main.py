"""The ``optillm`` command."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optillm.core.trace import CallRecord
from optillm.plugins import builtin_registry, load_registry
from optillm.protocol.errors import OptiError
from optillm.settings import Settings, SettingsError, from_command_line, plugins_of


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command: ``serve`` (also without a word), ``ask`` or ``approaches``."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments[0] if arguments and not arguments[0].startswith("-") else "serve"
    rest = arguments[1:] if arguments[:1] == [command] else arguments
    commands = {"serve": _serve, "ask": _ask, "approaches": _approaches}
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
    settings = from_command_line(argv, load_registry(folder, allow_override=override))
    level = "debug" if settings.log == "notset" else settings.log
    logging.basicConfig(level=level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s")
    log = logging.getLogger("optillm")
    if settings.host not in ("127.0.0.1", "localhost", "::1") and not settings.guarded:
        log.warning("listening on %s without a key: anybody may use the upstream", settings.host)
    if not settings.ssl_verify:
        log.warning("CERTIFICATES OF UPSTREAMS ARE NOT VERIFIED (--no-ssl-verify)")
    if settings.launch_gui:
        log.warning("--launch-gui: this version has no web page yet; see /v1/approaches and /v1/runs")
    from optillm.faces.serve import serve

    return serve(settings)


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


def _ask(argv: Sequence[str]) -> int:
    """``optillm ask QUESTION``: one question, answered in this process."""
    parser = argparse.ArgumentParser(prog="optillm ask", description="Ask one question, without a server.")
    parser.add_argument("question")
    parser.add_argument("--approach", default="none", help="technique or composition")
    parser.add_argument("--model", default=None)
    parser.add_argument("--base-url", default="", help="upstream; else as the server would choose")
    parser.add_argument("--trace", action="store_true", help="show each call and decision as it happens")
    options = parser.parse_args(list(argv))
    flags = ["--base-url", options.base_url] if options.base_url else []
    settings = from_command_line(flags, builtin_registry())
    return asyncio.run(_answer(settings, options))


async def _answer(settings: Settings, options: argparse.Namespace) -> int:
    from optillm.faces.app import upstream_of
    from optillm.library import solve
    from optillm.upstreams.openai_http import HTTPOptions, make_session

    async with make_session() as session:
        upstream = upstream_of(settings.upstreams[0], session, HTTPOptions())
        try:
            solution = await solve(
                options.question,
                approach=options.approach,
                model=options.model or settings.model,
                upstream=upstream,
                observer=print_record if options.trace else None,
            )
        finally:
            await upstream.aclose()
    print(solution.text)
    if options.trace:
        info = solution.response["optillm"]
        print(
            f"\n{info['approach']} on {info['model']}: {info['calls']} calls, depth {info['depth']}, "
            f"{solution.response['usage']['total_tokens']} tokens, {info['seconds']:.2f} s"
        )
    return 0


def print_record(record: Any) -> None:
    """One line for one record of a trace, indented by its depth."""
    if isinstance(record, CallRecord):
        text = " | ".join(" ".join(r.visible.split())[:70] for r in record.replies)
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
