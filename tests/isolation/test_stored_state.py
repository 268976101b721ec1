"""What is stored of one tenant never gets into the prompts of another: 200 interleaved requests."""

from __future__ import annotations

import asyncio
import random
import re
from typing import Any

import pytest

from optillm.settings import Key, sha256
from tests.fakes import Said, ScriptedUpstream, Seen
from tests.serving import Proxy, serving

pytestmark = pytest.mark.anyio

TENANTS = "abcdefgh"
KEYS = tuple(Key(tenant, sha256(f"key-{tenant}")) for tenant in TENANTS)
MARKER = re.compile(r"tenant-([a-h])-request-(\d+)-")
ROLES = {
    "classify problems by their type": "classify",
    "judge whether strategies helped": "judge",
    "write strategies": "write",
    "rewrite strategies": "rewrite",
    "take notes in the margin": "margin",
    "summarise conversations": "summary",
}


def script(call: Seen) -> Said:
    """Whatever is made of a prompt carries the markers that are in it."""
    marks = " ".join(dict.fromkeys(m.group() for m in MARKER.finditer(call.text)))
    match call.stage:
        case "classify":
            return "Type: word_problem"
        case "judge":
            return "Strategy 1: yes\nStrategy 2: no\nStrategy 3: yes"
        case "margin":
            return f"The password of the garden is in {marks}."
        case _:
            return f"Think of gardens and passwords, as in {marks}."


def body_of(rng: random.Random, tenant: str, number: int) -> dict[str, Any]:
    """A request that reads and writes what its tenant has stored."""
    mark = f"tenant-{tenant}-request-{number}-"
    said = f"{mark} was told about passwords and gardens. " * 30
    turns = [{"role": r, "content": said} for _ in range(3) for r in ("user", "assistant")]
    question = {"role": "user", "content": f"{mark} What is the password of the garden?"}
    same = {"role": "user", "content": "All gardens have passwords. " * 200}
    options: list[dict[str, Any]] = [
        {"model": "spl-m", "spl_learning": True, "messages": [question]},
        {"model": "spl-m", "messages": [question]},
        {
            "model": "memory-m", "messages": [*turns, question], "memory_context_window": 2048,
            "memory_chunk_tokens": 400, "max_tokens": 500,
            **rng.choice([
                {"memory_scope": "tenant"},
                # The same name for everybody: a conversation is of a tenant.
                {"memory_scope": "conversation", "memory_conversation": "the one"},
            ]),
        },
        {
            # The same text for everybody: a summary of it may be cached, but for its tenant alone.
            "model": "compact-m", "messages": [same, *turns, question], "compact_context_window": 2048,
            "compact_threshold": 0.4, "compact_keep_recent": 1,
        },
    ]  # fmt: skip
    return rng.choice(options)


async def ask(proxy: Proxy, tenant: str, body: dict[str, Any]) -> None:
    answer = await proxy.post(body, {"Authorization": f"Bearer key-{tenant}"})
    assert answer.status == 200, answer.json


async def test_tenants_never_meet(store_url: str) -> None:
    rng = random.Random(20260303)
    requests = [(tenant := rng.choice(TENANTS), body_of(rng, tenant, i)) for i in range(200)]
    async with (
        ScriptedUpstream(script, roles=ROLES, latency=0.001) as up,
        serving(up, keys=KEYS, store=store_url) as proxy,
    ):
        for start in range(0, len(requests), 40):
            await asyncio.gather(*(ask(proxy, *one) for one in requests[start : start + 40]))
            assert proxy.app._chat is not None
            await proxy.app._chat.service.afterwards.drain()
        calls = up.calls
        kept = {
            tenant: [
                (await proxy.get(path, Authorization=f"Bearer key-{tenant}")).json
                for path in ("/v1/memories", "/v1/strategies", "/v1/runs")
            ]
            for tenant in TENANTS
        }
    remembered = 0
    for call in calls:
        marks = set(MARKER.findall(call.text))
        assert len({tenant for tenant, _ in marks}) <= 1, call.text
        remembered += len({number for _, number in marks}) > 1
    assert remembered > 50, "what was stored has been used"
    for tenant, shown in kept.items():
        assert {t for t, _ in MARKER.findall(str(shown))} == {tenant}
