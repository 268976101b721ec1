"""The documentation's pages that are made from the code."""

from __future__ import annotations

from optillm.core.params import Param
from optillm.core.registry import Registry


def techniques_page(registry: Registry) -> str:
    """docs/techniques.md: every technique with its parameters, formulas and names."""
    lines = [
        "# Techniques",
        "",
        "This page is made from the code by `make techniques`.",
        "",
        "σ(k) is what k samples of one prompt cost: one call if the upstream honours `n`, else k.",
        "",
        "| technique | what it does | source | calls | depth | in a chain |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| [`{a.slug}`](#{a.slug}) | {a.title} | {a.paper} | {_cell(a.calls)} | {_cell(a.depth)} "
        f"| hands on its {a.produces} |"
        for a in registry
    ]
    for a in registry:
        lines += ["", f"## {a.slug}", "", f"{a.title}. {a.paper}".strip(), ""]
        if not a.params:
            lines += ["No parameters."]
            continue
        lines += [
            "| request field | in a name | default | takes | flag | variable | meaning |",
            "|---|---|---|---|---|---|---|",
        ]
        lines += [_row(p) for p in a.params]
    return "\n".join(lines) + "\n"


def _row(p: Param) -> str:
    cells = (
        f"`{p.request_name}`",
        f"`{p.slug}({p.name}=…)`",
        f"`{p.default}`",
        p.accepts,
        f"`{p.flag_names[0]}`",
        f"`{p.env_names[-1]}`",
        p.rule.help,
    )
    return "| " + " | ".join(_cell(c) for c in cells) + " |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
