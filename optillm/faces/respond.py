"""From an outcome to a chat completion, its headers, and the record of its run."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from optillm.core.execute import Outcome
from optillm.core.frozen import thaw, to_json
from optillm.core.reply import Reply, parse_completion
from optillm.core.run import Run
from optillm.core.trace import CallRecord
from optillm.faces.service import Prepared


def about(prepared: Prepared, run: Run, outcome: Outcome | None = None) -> dict[str, Any]:
    """The ``optillm`` object of a response."""
    out: dict[str, Any] = {"run_id": run.id, "approach": prepared.approach}
    if prepared.routed:
        out["routed_to"] = prepared.routed_to
    out["params"] = prepared.params
    out["model"] = prepared.model
    out |= run.spent()
    if prepared.warnings:
        out["warnings"] = list(prepared.warnings)
    if outcome is not None:
        if outcome.failed:
            out["failed"] = dict(outcome.failed)
        if outcome.note:
            out.update(thaw(outcome.note))
    return out


def headers(prepared: Prepared, run: Run) -> dict[str, str]:
    """Response headers that tell what ran; calls and depth are known only at the end."""
    out = {"X-Optillm-Approach": _header_value(prepared.approach), "X-Optillm-Run": run.id}
    if prepared.routed_to is not None:
        out["X-Optillm-Routed-To"] = _header_value(prepared.routed_to)
    if prepared.warnings:
        out["X-Optillm-Warning"] = _header_value("; ".join(prepared.warnings))
    return out


def final_headers(prepared: Prepared, run: Run, info: Mapping[str, Any]) -> dict[str, str]:
    """All headers of a response that is sent when the run has ended; ``info`` is its ``optillm`` object."""
    return {
        **headers(prepared, run),
        "X-Optillm-Calls": str(info["calls"]),
        "X-Optillm-Depth": str(info["depth"]),
        "Server-Timing": f"run;dur={info['seconds'] * 1000:.1f}",
    }


def completion(prepared: Prepared, run: Run, outcome: Outcome, info: Mapping[str, Any]) -> bytes:
    """The JSON body of the response; ``info`` is its ``optillm`` object."""
    if outcome.raw is not None:
        return spliced(outcome.raw, info)
    body: dict[str, Any] = {
        "id": run.id,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": prepared.asked_model,
        "choices": choices(prepared, outcome),
        "usage": run.budget.usage.to_dict(),
    }
    if run.system_fingerprint:
        body["system_fingerprint"] = run.system_fingerprint
    body["optillm"] = info
    return to_json(body)


def spliced(raw: bytes, info: Mapping[str, Any]) -> bytes:
    """An upstream's JSON object, untouched, with an ``optillm`` member added at its end."""
    end = raw.rindex(b"}")
    return raw[:end] + b',"optillm":' + to_json(info) + b"}"


def choices(prepared: Prepared, outcome: Outcome) -> list[dict[str, Any]]:
    """The choices of all branches, in the order written."""
    return [_choice(index, *one) for index, one in enumerate(made(prepared, outcome))]


def _choice(index: int, reply: Reply, maker: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "index": index,
        "message": message(reply),
        "logprobs": thaw(reply.logprobs),
        "finish_reason": reply.finish_reason,
        **maker,
    }


def made(prepared: Prepared, outcome: Outcome) -> list[tuple[Reply, dict[str, Any]]]:
    """All replies, each with the choice's ``optillm`` member that names its branch, if there are several."""
    whole = str(prepared.job.plan)
    return [
        (reply, {} if branch.approach == whole else {"optillm": {"approach": branch.approach}})
        for branch in outcome.answers
        for reply in branch.replies
    ]


def message(reply: Reply) -> dict[str, Any]:
    """The assistant message of a choice, as the SDK's types want it."""
    out = thaw(reply.message)
    out["role"] = "assistant"
    content = out.get("content")
    # Some upstreams send parts, where the protocol has text.
    out["content"] = content if isinstance(content, str | None) else reply.text
    out.setdefault("refusal", None)
    if not out.get("tool_calls"):
        out.pop("tool_calls", None)
    if not out.get("reasoning_content") and isinstance(out.get("reasoning"), str):
        out["reasoning_content"] = out["reasoning"]
    return dict(out)


class PassedOn(msgspec.Struct, frozen=True):
    """The :func:`record` of a request that was only passed on, as a draft: its texts, and few numbers.

    Args:
        about: the ``optillm`` object of the response.
        id, created: the run's.
        call: the call, without its request and its replies.
        began: when the run began, on the clock of the call.
        request, answer: JSON texts of these.
    """

    about: Mapping[str, Any]
    id: str
    created: float
    seed: int | None
    call: CallRecord
    began: float
    request: bytes
    answer: bytes

    @classmethod
    def of(cls, run: Run, answer: bytes, info: Mapping[str, Any], created: float) -> PassedOn:
        """The draft of a run that made one call; what it holds is small, whatever was said."""
        (call,) = run.trace.calls
        bare = CallRecord(call.stage, call.unit, call.upstream, {}, call.started, call.depth)
        bare.ended, bare.usage = call.ended, call.usage
        return cls(
            info, run.id, created, run.seed_used, bare, run.trace.started, to_json(call.request), answer
        )

    @property
    def size(self) -> int:
        """See :class:`optillm.store.runs.Draft`."""
        return len(self.request) + len(self.answer) + 1000

    def json(self) -> bytes:
        """See :class:`optillm.store.runs.Draft`."""
        replies = tuple(parse_completion(self.answer).replies())
        call = replace(self.call, request=msgspec.json.decode(self.request), replies=replies)
        said = [_choice(index, reply, {}) for index, reply in enumerate(replies)]
        usage = self.call.usage.to_dict()
        return to_json(
            _record(
                self.about, self.id, self.created, self.seed, None, usage, said, [call.to_dict(self.began)]
            )
        )


def record(
    prepared: Prepared,
    run: Run,
    outcome: Outcome | None,
    info: Mapping[str, Any],
    error: str | None,
    created: float,
) -> dict[str, Any]:
    """What ``GET /v1/runs/{id}`` shows; ``info`` is the ``optillm`` object of the response."""
    said = choices(prepared, outcome) if outcome else []
    usage = run.budget.usage.to_dict()
    return _record(info, run.id, created, run.seed_used, error, usage, said, run.trace.to_list())


def _record(
    info: Mapping[str, Any],
    run_id: str,
    created: float,
    seed: int | None,
    error: str | None,
    usage: Mapping[str, Any],
    said: Sequence[Mapping[str, Any]],
    records: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    return {
        **info,
        "id": run_id,
        "object": "run",
        "created": created,
        "seed": seed,
        "error": error,
        "usage": usage,
        "choices": said,
        "records": records,
    }


def _header_value(value: str) -> str:
    """The value as printable ASCII of bearable length: nothing of a client's text can end a header."""
    if len(value) < 1000 and value.isascii() and value.isprintable():
        return value
    return "".join(c if " " <= c <= "~" else "?" for c in value[:1000])
