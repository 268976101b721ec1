"""The documentation's pages that are made from the code."""

from __future__ import annotations

from collections.abc import Mapping

from optillm.core.params import Param
from optillm.core.registry import Approach, Registry

MADE = "This page is made from the code by `make techniques`."


def pages(registry: Registry) -> Mapping[str, str]:
    """The pages about techniques: ``index.md``, and one per technique, by file name."""
    return {"index.md": _index(registry), **{f"{a.slug}.md": _page(a) for a in registry}}


def _index(registry: Registry) -> str:
    lines = [
        "# Techniques",
        "",
        MADE,
        "",
        "σ(k) is what k samples of one prompt cost: one call if the upstream honours `n`, else k. Depth is "
        "the longest chain of calls that each wait for the one before: what a request's time depends on.",
        "",
        "| technique | what it does | family | source | calls | depth | in a chain |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| [`{a.slug}`]({a.slug}.md) | {a.title} | {a.family} | {a.paper} | {_cell(a.calls)} "
        f"| {_cell(a.depth)} | hands on its {a.produces} |"
        for a in registry
    ]
    return "\n".join(lines) + "\n"


def _page(a: Approach) -> str:
    lines = [f"# {a.slug}", "", f"**{a.title}.** {a.paper}".strip(), "", _prose(a.about), "", MADE, ""]
    lines += [f"Upstream calls: {a.calls}", "", f"Depth: {a.depth}", "", "## Parameters", ""]
    if not a.params:
        return "\n".join([*lines, "None."]) + "\n"
    lines += [
        "| request field | in a name | default | takes | flag | variable | meaning |",
        "|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *(_row(p) for p in a.params)]) + "\n"


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


def _prose(docstring: str) -> str:
    """A docstring as Markdown: its code marks are doubled."""
    return docstring.replace("``", "`")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
