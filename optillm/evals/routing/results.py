"""Results of techniques on questions: a JSON object per line, for one question and one technique.

The same lines train the router (``optillm train-router``); docs/router.md tells what each field means.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from optillm.core.task import Options, Task
from optillm.protocol.errors import near_names

Share = Annotated[float, Meta(ge=0, le=1)]
Amount = Annotated[float, Meta(ge=0)]
Text = Annotated[str, Meta(min_length=1)]


class ResultsError(ValueError):
    """A results file that cannot be read; the message names file, line and field."""


class Result(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """How a technique did on a question.

    Args:
        prompt: the question, or its chat messages.
        approach: the technique, as it is written in requests; ``none`` is a plain reply.
        score: how good the answer was, 0 to 1; the mean, if it was asked several times.
        calls: upstream calls, each sample counted as one.
        tokens: of prompts and replies together.
        cost: in money, if known.
        model: who answered.
        kind: of the question, if known: questions of one kind are held out together.
        runs: how often it was asked.
        seconds: of one run, if measured.
    """

    prompt: Text | Annotated[tuple[dict[str, Any], ...], Meta(min_length=1)]
    approach: Text
    score: Share
    calls: Amount
    tokens: Amount
    model: Text
    cost: Amount | None = None
    kind: str | None = None
    runs: Annotated[int, Meta(ge=1)] = 1
    seconds: Amount | None = None

    @property
    def key(self) -> str:
        """What makes two lines results on the same question."""
        prompt = self.prompt if isinstance(self.prompt, str) else json.dumps(self.prompt, sort_keys=True)
        return f"{self.model}\n{prompt}"

    @property
    def task(self) -> Task:
        """The question as a technique gets it."""
        messages = [{"role": "user", "content": self.prompt}] if isinstance(self.prompt, str) else self.prompt
        return Task.of(messages, Options())


def read(paths: Iterable[Path]) -> list[Result]:
    """All results of some files; empty lines do not count.

    Raises:
        ResultsError: a file cannot be read, or a line is not a result.
    """
    return [result for path in paths for result in _file(path)]


def write(path: Path, results: Iterable[Result]) -> None:
    """A file of results, a line each."""
    path.write_bytes(b"".join(msgspec.json.encode(r) + b"\n" for r in results))


def _file(path: Path) -> Iterable[Result]:
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ResultsError(f"cannot read {path}: {error.strerror}") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield _line(line, f"{path}, line {number}")


def _line(line: bytes, where: str) -> Result:
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise ResultsError(f"{where}: not JSON: {error}") from None
    if not isinstance(fields, Mapping):
        raise ResultsError(f"{where}: not a JSON object")
    names: Sequence[str] = Result.__struct_fields__
    for name in fields:
        if name not in names:
            raise ResultsError(f"{where}: unknown field '{str(name)[:60]}'.{near_names(str(name), names)}")
    try:
        result = msgspec.convert(fields, Result)
    except msgspec.ValidationError as error:
        said, _, place = str(error).partition(" - at `$.")
        field = f"'{place.rstrip('`')}': " if place else ""
        raise ResultsError(f"{where}: {field}{said}") from None
    if not isinstance(result.prompt, str) and not all(isinstance(m.get("role"), str) for m in result.prompt):
        raise ResultsError(f"{where}: 'prompt': every message needs a role")
    return result
