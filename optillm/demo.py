"""``make demo``: the main job on the embedded model, without any key.

Starts the server, sends three requests at the same time with the official client, and shows that
each got what its own parameters ask for.
"""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from socket import AF_INET, IPPROTO_TCP, SOCK_STREAM, socket
from typing import Any

import uvicorn
from openai import AsyncOpenAI

from optillm.core.execute import Job
from optillm.core.plan import split_model
from optillm.faces.app import App
from optillm.plugins import builtin_registry
from optillm.settings import Settings, UpstreamSettings
from optillm.upstreams.llamacpp import PACKAGED_NAME

QUESTION = "Tom has 3 boxes with 4 apples each. He eats 2 apples. How many apples are left?"


@dataclass(frozen=True)
class Order:
    """One request of the demo."""

    label: str
    model: str
    limit: int


ORDERS = (
    Order("A", f"mcts(simulations=4)-{PACKAGED_NAME}", 48),
    Order("B", f"mcts(simulations=1)-{PACKAGED_NAME}", 48),
    Order("C", f"self_consistency(samples=5)-{PACKAGED_NAME}", 96),
)


def main() -> int:
    """Run the demo; returns the exit status."""
    return asyncio.run(_demo())


async def _demo() -> int:
    settings = Settings(
        upstreams=(UpstreamSettings("embedded", "llamacpp"),),
        helper_max_tokens=64,
        intermediate_max_tokens=48,
    )
    app = App(settings, builtin_registry())
    with socket(AF_INET, SOCK_STREAM, IPPROTO_TCP) as listening:
        listening.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", interface="asgi3"))
        serving = asyncio.create_task(server.serve([listening]))
        print(f"server   {url}/v1\nmodel    {PACKAGED_NAME}, in this process, no key\nquestion {QUESTION}\n")
        try:
            async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=600) as client:
                answers = await asyncio.gather(*(_ask(client, order) for order in ORDERS))
                good = [await _report(client, order, *a) for order, a in zip(ORDERS, answers, strict=True)]
        finally:
            server.should_exit = True
            await serving
    print("each request made exactly the calls of its own parameters" if all(good) else "MISMATCH")
    return 0 if all(good) else 1


async def _ask(client: AsyncOpenAI, order: Order) -> tuple[str, dict[str, Any], float]:
    """Send a streaming request, show its progress, return answer, ``optillm`` object and seconds."""
    started = time.perf_counter()
    text, info = "", dict[str, Any]()
    stream = await client.chat.completions.create(
        model=order.model,
        messages=[{"role": "user", "content": QUESTION}],
        max_tokens=order.limit,
        seed=7,
        stream=True,
    )
    async for chunk in stream:
        info = getattr(chunk, "optillm", None) or info
        for choice in chunk.choices:
            text += choice.delta.content or ""
            for line in (getattr(choice.delta, "reasoning_content", None) or "").splitlines():
                print(f"  {time.perf_counter() - started:5.1f} s  {order.label}  {line[:90]}", flush=True)
    return text, info, time.perf_counter() - started


async def _report(client: AsyncOpenAI, order: Order, text: str, info: dict[str, Any], seconds: float) -> bool:
    run = await client.get(f"/runs/{info['run_id']}", cast_to=dict[str, Any])
    registry = builtin_registry()
    plan, _ = split_model(order.model, registry)
    expected = None
    if plan is not None:
        expected = Job(plan, registry, {}).worst(1, lambda k: 1)
    ends = sum("<END>" in str(r.get("replies")) for r in run["records"])
    exact = info["calls"] == expected or (ends and info["calls"] <= (expected or 0))
    print(f"\n{order.label}  {order.model}")
    print(f"   answer   {' '.join(text.split())[:200]}")
    print(f"   calls    {info['calls']} made, {expected} implied by its parameters, depth {info['depth']}")
    print(f"   tokens   {run['usage']['total_tokens']}   seconds {seconds:.1f}\n   tree")
    for record in run["records"]:
        if record["kind"] == "call":
            replies = " | ".join(
                " ".join((r["message"]["content"] or "").split())[:40] for r in record["replies"]
            )
            tag = f" @{record['tag']}" if record["tag"] else ""
            print(f"   {'  ' * record['depth']}{record['stage']}{tag}: {replies}")
    for record in run["records"]:
        if record["name"] == "mcts.tree" if record["kind"] == "note" else False:
            tree = record["data"]["nodes"]
    with suppress(NameError):
        for node in tree:
            print(f"   {node['path']:8} visits {node['visits']} mean {node['mean']:.2f}")
    print()
    return bool(exact)


if __name__ == "__main__":
    sys.exit(main())
