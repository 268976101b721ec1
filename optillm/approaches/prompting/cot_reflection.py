"""One call that thinks, reflects and answers in tagged sections; the client sees the answer.

The model reasons in ``<thinking>``, checks itself in ``<reflection>``, and writes its reply in
``<output>``; a single-prompt emulation of what Self-Refine (arXiv:2303.17651) and Reflexion
(arXiv:2303.11366) do with several calls, on top of chain of thought (arXiv:2201.11903). The answer
begins at the first ``<output>`` after the thinking and ends at the last closing tag, so an answer that
itself contains such tags survives. A reply without sections is returned as it is, and one cut off
inside its thinking gives the thinking without tags. The output streams live while it is written.
"""

from __future__ import annotations

import re

from optillm.core.answers import strip_think
from optillm.core.llm import LLM
from optillm.core.params import FullResponseParams, field
from optillm.core.registry import approach
from optillm.core.reply import Answer, Reply
from optillm.core.streaming import StreamView
from optillm.core.task import Task

OPEN, CLOSE, THOUGHT = "<output>", "</output>", "</thinking>"
INSTRUCTION = """\
Work in two sections. First reason step by step inside <thinking>. Before you leave that section,
check your reasoning inside a nested <reflection>: look for slips, missed cases and wrong
assumptions, and correct what you find. Then write the complete reply for the user inside <output>.
Only the <output> section is shown to the user, so nothing of the reply belongs anywhere else.

<thinking>
your reasoning
<reflection>
your check, and what you change because of it
</reflection>
</thinking>
<output>
the reply
</output>"""

_SECTION = re.compile(r"<(thinking|reflection)>(?:(?!<\1>).)*?</\1>", re.S)
_TAG = re.compile(r"</?(?:thinking|reflection|output)>")


class Params(FullResponseParams):
    """Parameters of ``cot_reflection``."""

    expose_reasoning: bool = field(
        False, "put the thinking into reasoning_content", alias="cot_expose_reasoning"
    )


def extract(text: str) -> tuple[str, str]:
    """Split a reply into (thinking, output).

    The output begins at the first ``<output>`` after the thinking and ends at the last ``</output>``:
    an answer may itself contain these tags, they are HTML elements.
    """
    text = strip_think(text)
    thinking, closed, region = text.partition(THOUGHT)
    if not closed:
        thinking, region = "", text
    before, opened, rest = region.partition(OPEN)
    if opened:
        output = rest.rpartition(CLOSE)[0] if CLOSE in rest else rest
        return _untagged(thinking + before), output.strip()
    remainder = text
    while (shorter := _SECTION.sub("", remainder)) != remainder:
        remainder = shorter
    remainder = remainder.partition("<thinking>")[0] if "<thinking>" in remainder else remainder
    if _untagged(remainder):
        return _untagged(thinking), _untagged(remainder)
    return "", _untagged(text)


class OutputView(StreamView):
    """Shows the output section as it comes; the thinking is swallowed, or shown as reasoning."""

    def __init__(self, expose: bool) -> None:
        self.expose = expose
        self.text = ""
        self.state = "thinking"
        self.seen = 0
        self.shown = False

    def feed(self, text: str) -> tuple[str, str]:
        self.text += text
        content, reasoning = "", ""
        if self.state == "thinking":
            end = self.text.find(THOUGHT, self.seen)
            # Hold back what may be the beginning of the closing tag.
            upto = end if end >= 0 else max(self.seen, len(self.text) - len(THOUGHT) + 1)
            reasoning = self.text[self.seen : upto]
            self.seen = upto
            if end >= 0:
                self.state, self.seen = "between", end + len(THOUGHT)
        if self.state == "between":
            start = self.text.find(OPEN, self.seen)
            if start >= 0:
                self.state, self.seen = "output", start + len(OPEN)
        if self.state == "output":
            content = self._settled()
        return content, _TAG.sub("", reasoning) if self.expose else ""

    def close(self, truncated: bool) -> tuple[str, str]:
        if self.state != "output":
            return extract(self.text)[1], ""
        rest = self.text[self.seen :]
        end = rest.rfind(CLOSE)
        return (rest[:end] if end >= 0 else rest).rstrip(), ""

    def _settled(self) -> str:
        """New output up to anything that may turn out to be the end."""
        if not self.shown:
            while self.seen < len(self.text) and self.text[self.seen].isspace():
                self.seen += 1
        # What follows a closing tag is part of the answer only if another one follows it.
        last = self.text.rfind(CLOSE, self.seen)
        upto = last if last >= 0 else len(self.text)
        if last < 0:
            sizes = range(min(len(CLOSE) - 1, upto - self.seen), 0, -1)
            upto -= next((size for size in sizes if self.text.endswith(CLOSE[:size])), 0)
        # White space before the closing tag is not part of the answer either.
        while upto > self.seen and self.text[upto - 1].isspace():
            upto -= 1
        out = self.text[self.seen : upto]
        self.seen = upto
        self.shown = self.shown or bool(out)
        return out


def _untagged(text: str) -> str:
    return _TAG.sub("", text).strip()


def _shown(reply: Reply, p: Params) -> Reply:
    if p.return_full_response or (reply.tool_calls and not reply.text):
        return reply
    thinking, output = extract(reply.text)
    return reply.with_text(output, thinking if p.expose_reasoning else None)


@approach(
    "cot_reflection",
    family="prompting",
    title="Chain of thought with reflection, in one call",
    paper="arXiv:2201.11903",
    calls="σ(n)",
    depth="1",
    worst=lambda p, sigma: sigma(1),
    handles_n=True,
)
async def cot_reflection(task: Task, llm: LLM, p: Params) -> Answer:
    """Think, reflect, answer; return the output section of every usable choice."""
    replies = await llm.answers(
        "cot.answer",
        task.instructed(INSTRUCTION).messages,
        task.options.n,
        temperature=0.6,
        view=StreamView if p.return_full_response else lambda: OutputView(p.expose_reasoning),
    )
    return Answer(tuple(_shown(r, p) for r in replies if r.usable))
