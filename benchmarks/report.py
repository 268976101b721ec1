"""The part of docs/performance.md between its marks, from the figures of one run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START, END = "<!-- figures of make bench: start -->", "<!-- figures of make bench: end -->"


@dataclass(frozen=True)
class Row:
    """One line of the speed table.

    Args:
        name: what was measured.
        old, litellm: what OptiLLM 0.4.0 and the LiteLLM proxy took, on another day.
        target: in words.
        value: what was measured now, in words.
        met: whether that is the target or better.
    """

    name: str
    old: str
    litellm: str
    target: str
    value: str
    met: bool


def rows(figures: Mapping[str, Any]) -> list[Row]:
    """The speed table."""
    passing, memory = figures["passthrough"], figures["memory"]["optillm"]
    start, block = figures["startup"], figures["blocking"]
    rps, added = passing["rps"]["optillm"], passing["added_p50_ms"]
    of_direct, of_echo = passing["of_direct"], passing["of_echo"]
    out = [
        Row(
            f"pass-through, requests/s with {passing['clients']} clients, one worker",
            "42", "85", "≥ 1,500", f"{rps:,.0f}", rps >= 1500,
        ),
        Row(
            "the same, of calling the upstream directly",
            "", "", "≥ 35 %", f"{of_direct:.0%}", of_direct >= 0.35,
        ),
        Row("the same, of the bare echo proxy", "", "", "≥ 70 %", f"{of_echo:.0%}", of_echo >= 0.7),
        Row("added p50 with one client", "32 ms", "14 ms", "≤ 1 ms", f"{added:.2f} ms", added <= 1),
    ]  # fmt: skip
    for slug, old, target in (("self_consistency", 5.7, 1.2), ("bon", 4.6, 2.2), ("mcts", 15.1, 4.4)):
        wall = figures["techniques"]["table"][slug]["wall_over_latency"]
        name = f"`{slug}`, wall time over upstream latency, upstream without `n`"
        out.append(Row(name, f"{old}", "", f"≤ {target}", f"{wall:.2f}", wall <= target))
    idle, each = memory["idle_mb"], memory["per_request_kb"]
    first, imported, gap = start["first_answer_seconds"], start["import_seconds"], block["wall_ms"]
    each_name = f"memory per request, {figures['memory']['in_flight']:,} in flight"
    gap_name = f"longest standstill of the loop, {block['requests']} `mcts` with 8 simulations at once"
    out += [
        Row("memory, idle", "663 MB", "336 MB", "≤ 70 MB", f"{idle:.0f} MB", idle <= 70),
        Row(each_name, "", "", "≤ 60 kB", f"{each:.0f} kB", each <= 60),
        Row("start to first answer", "11.5 s", "7.4 s", "≤ 1 s", f"{first:.2f} s", first <= 1),
        Row("import", "", "", "≤ 0.4 s", f"{imported:.2f} s", imported <= 0.4),
        Row(gap_name, "", "", "< 20 ms", f"{gap:.0f} ms", gap < 20),
    ]
    return out


def text(figures: Mapping[str, Any]) -> str:
    """Markdown of all figures."""
    machine, passing = figures["machine"], figures["passthrough"]
    lines = [
        f"Measured on a machine with {machine['cores']} cores, {machine['system']}, "
        f"Python {machine['python']}, OptiLLM {machine['optillm']}.",
        "",
        "| | OptiLLM 0.4.0 | LiteLLM proxy | target | measured | |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows(figures):
        mark = "✓" if row.met else "missed"
        lines.append(f"| {row.name} | {row.old} | {row.litellm} | {row.target} | **{row.value}** | {mark} |")
    lines += [
        "",
        f"In the same run the upstream itself answered {passing['rps']['direct']:,.0f} requests/s and the "
        f"bare echo proxy {passing['rps']['echo']:,.0f}. The echo proxy reached "
        f"{passing['echo_of_direct']:.0%} of direct calls. A request cost the server "
        f"{passing['cpu_us']['optillm']:.0f} µs of CPU time, the echo proxy "
        f"{passing['cpu_us']['echo']:.0f} µs; the echo proxy added {passing['echo_added_p50_ms']:.2f} ms at "
        "one client and took "
        f"{figures['memory']['echo']['per_request_kb']:.0f} kB per request in flight.",
        "",
        "![Pass-through, and every technique against its chain of calls](performance.svg)",
        "",
        "| technique | upstream honours `n`: calls | depth | wall / (depth × latency) "
        "| one choice per call: calls | depth | wall / (depth × latency) |",
        "|---|---|---|---|---|---|---|",
    ]
    for slug, modes in figures["techniques"]["every"].items():
        lines.append(f"| `{slug}` | {_cells(modes['native'])} | {_cells(modes['fanout'])} |")
    return "\n".join(lines)


def _cells(figure: Mapping[str, Any]) -> str:
    if "fault" in figure:
        return f"– | – | not measured: {figure['fault'][:80].replace('|', ' ').strip()}"
    return f"{figure['calls']} | {figure['depth']} | {figure['wall_over_chain']:.2f}"


def write(page: Path, figures: Mapping[str, Any]) -> None:
    """Replace what is between the marks of a page.

    Raises:
        ValueError: it has no marks.
    """
    before, _, rest = page.read_text().partition(START)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"{page} has no marks for the figures")
    page.write_text(f"{before}{START}\n{text(figures)}\n{END}{after}")
