"""Checks of solutions by agents that did not write them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from optillm.approaches.agents.mars_prompts import check_prompt
from optillm.approaches.agents.population import Solution, Verdict, Word
from optillm.approaches.agents.team import Team

TEMPERATURE = 0.3
_VERDICT = re.compile(
    r"verdict\W{0,12}(?:(?:(?:the|this)\s(?:solution|answer)\s)?is\W{1,6})?(?P<no>not\W{1,6}|in)?"
    # A list of the words is the form repeated, and no verdict.
    r"(?P<word>correct|complete)\b(?!\W{1,3}(?:or\W{1,3})?in(?:correct|complete)\b)",
    re.I,
)
_ALONE = re.compile(r"\W*(?P<no>in)?(?P<word>correct|complete)\W*", re.I)


def read_verdict(text: str) -> Word | None:
    """The verdict of a check's last "Verdict:" line, or of a last line that is the word alone."""
    found = list(_VERDICT.finditer(text))
    lines = text.strip().splitlines() or [""]
    match = found[-1] if found else _ALONE.fullmatch(lines[-1])
    if match is None:
        return None
    denied, word = match["no"] is not None, match["word"].lower()
    if word == "complete":
        return "incomplete" if denied else None
    return "incorrect" if denied else "correct"


def verifier_of(author: int, check: int, agents: int) -> int:
    """The agent that makes a solution's check of this number: the others in turn, never the author."""
    return (author + 1 + check % (agents - 1)) % agents


async def verify(team: Team, solutions: Sequence[Solution]) -> list[Solution]:
    """All solutions with their checks, in the same order; they are checked side by side."""
    return await team.llm.gather(*(verify_one(team, s) for s in solutions))


async def verify_one(team: Team, solution: Solution) -> Solution:
    """A solution with its checks.

    As many as are required in a row are made side by side; then one at a time, while it is not verified
    and still can be.
    """
    c = team.config
    first = await team.llm.gather(*(check(team, solution, i) for i in range(c.passes)))
    solution = solution.checked(first)
    while not solution.verified(c.passes):
        left = c.attempts - len(solution.verdicts)
        if left < c.passes - solution.run or team.llm.run.budget.ended:
            break
        solution = solution.checked([await check(team, solution, len(solution.verdicts))])
    return solution


async def check(team: Team, solution: Solution, number: int) -> Verdict:
    """One check of a solution; without a verdict if it fails or cannot be read."""
    verifier = verifier_of(solution.author, number, team.config.agents)
    prompt = check_prompt(
        team.asked,
        solution,
        verifier=verifier,
        agents=team.config.agents,
        number=number,
        nonce=team.llm.nonce,
    )
    reply = await team.llm.try_ask(
        "mars.verify",
        prompt,
        cap="intermediate",
        temperature=TEMPERATURE,
        tag=f"{solution.name}/{number} by {verifier}",
    )
    if reply is None:
        return Verdict(verifier, None, "")
    return Verdict(verifier, read_verdict(reply.visible), reply.visible)
