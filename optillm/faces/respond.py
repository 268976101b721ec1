"""From an outcome to a chat completion, its headers, and the record of its run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from optillm.core.execute import Outcome
from optillm.core.frozen import thaw, to_json
from optillm.core.reply import Reply
from optillm.core.run import Run
from optillm.faces.service import Prepared


def about(prepared: Prepared, run: Run, outcome: Outcome | None = None) -> dict[str, Any]:
    """The ``optillm`` object of a response."""
    out: dict[str, Any] = {
        "run_id": run.id,
        "approach": prepared.approach,
        **({"routed_to": prepared.routed_to} if prepared.routed else {}),
        "params": prepared.params,
        "model": prepared.model,
        **run.spent(),
    }
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


def final_headers(prepared: Prepared, run: Run) -> dict[str, str]:
    """All headers of a response that is sent when the run has ended."""
    return {
        **headers(prepared, run),
        "X-Optillm-Calls": str(run.budget.calls),
        "X-Optillm-Depth": str(run.trace.depth),
        "Server-Timing": f"run;dur={run.trace.seconds * 1000:.1f}",
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
    return [
        {
            "index": index,
            "message": message(reply),
            "logprobs": thaw(reply.logprobs),
            "finish_reason": reply.finish_reason,
            **maker,
        }
        for index, (reply, maker) in enumerate(made(prepared, outcome))
    ]


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


def record(
    prepared: Prepared,
    run: Run,
    outcome: Outcome | None,
    info: Mapping[str, Any],
    error: str | None,
    created: float,
) -> dict[str, Any]:
    """What ``GET /v1/runs/{id}`` shows; ``info`` is the ``optillm`` object of the response."""
    return {
        **info,
        "id": run.id,
        "object": "run",
        "created": created,
        "seed": run.seed_used,
        "error": error,
        "usage": run.budget.usage.to_dict(),
        "choices": choices(prepared, outcome) if outcome else [],
        "records": run.trace.to_list(),
    }


def _header_value(value: str) -> str:
    """The value as printable ASCII of bearable length: nothing of a client's text can end a header."""
    if len(value) < 1000 and value.isascii() and value.isprintable():
        return value
    return "".join(c if " " <= c <= "~" else "?" for c in value[:1000])
