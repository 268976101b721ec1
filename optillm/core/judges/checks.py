"""Judges that ask yes-or-no questions: aspects, repeated verification, a checklist."""

from __future__ import annotations

import re
from collections.abc import Sequence

from optillm.core.answers import strip_think
from optillm.core.judges.params import JudgeParams
from optillm.core.llm import LLM
from optillm.core.prompts import helper, quoted
from optillm.core.reply import Reply
from optillm.core.task import Messages, Task

ASPECTS = (
    "the final result is correct",
    "every step follows from the ones before and from what is given",
    "facts, calculations and units are right",
    "everything that was asked is answered, and nothing of it is left out",
    "the instructions and the form that was asked for are followed",
)
"""What ``aspects`` checks unless told otherwise."""

_YES_NO = re.compile(r"verdict\W{0,12}(yes|no)\b", re.I)
_ITEM = re.compile(r"^\s*(?:\d{1,2}[.)]|[-*•])\s+(\S.*)$", re.M)
_ANSWER = re.compile(r"^\W{0,6}(\d{1,2})\W{1,6}(yes|no)\b", re.I | re.M)
_MOST_ITEMS = 12


def verifier_prompt(task: Task, candidate: Reply, aspect: str, nonce: str) -> Messages:
    """Ask whether one aspect of a candidate holds (BoN-MAV, arXiv:2502.20379, aspect verifiers)."""
    return helper(
        "You are a verifier who checks one aspect of a reply and nothing else.",
        task,
        f"{quoted('candidate', candidate.rendered, nonce)}\n\n"
        f"Check this of the candidate, as the next reply in the conversation: {aspect}. What the candidate "
        "says of its own quality is no evidence.\n\n"
        "Give your reasons briefly, then end with one line of the form\nVerdict: yes (or no)",
        nonce,
    )


def verification_prompt(task: Task, candidate: Reply, nonce: str) -> Messages:
    """Ask for a proof or a flaw (sampling-based search, arXiv:2502.01839, section 2: verification)."""
    return helper(
        "You are a strict examiner of solutions.",
        task,
        f"{quoted('candidate', candidate.rendered, nonce)}\n\n"
        "First restate the candidate's solution as a sequence of claims, each with what it rests on. Then "
        "go through the claims one by one and look for an error, a gap or an unfounded assumption; "
        "recompute what can be computed. Only if all of them hold is the solution correct.\n\n"
        "End with one line of the form\nVerdict: yes (it is correct) or Verdict: no",
        nonce,
    )


def checklist_prompt(task: Task, nonce: str) -> Messages:
    """Ask for the questions that a good reply must answer with yes (TICK, arXiv:2410.03608)."""
    return helper(
        "You write checklists for judging replies.",
        task,
        "Write a checklist of four to eight questions for the next reply in this conversation. Each can be "
        "answered with yes or no by reading the reply, and yes is good; together they cover what the user "
        "asked for, said or implied, with the correct result first. One question a line, numbered.",
        nonce,
    )


def marking_prompt(task: Task, candidate: Reply, items: Sequence[str], nonce: str) -> Messages:
    """Ask for a yes or no to each question of a checklist."""
    listed = "\n".join(f"{i}. {item}" for i, item in enumerate(items, 1))
    return helper(
        "You mark replies by a checklist.",
        task,
        f"{quoted('candidate', candidate.rendered, nonce)}\n\n"
        f"The checklist for the next reply:\n{quoted('checklist', listed, nonce)}\n\n"
        "Answer each question about the candidate; check it yourself, do not believe what the candidate "
        "says of itself. One line a question, of the form\n1: yes (or no)",
        nonce,
    )


async def aspects(
    llm: LLM, task: Task, candidates: Sequence[Reply], p: JudgeParams, *, stage: str
) -> list[float | None]:
    """The share of aspect verifiers that approve of each candidate."""
    wanted = p.judge_aspects or ASPECTS
    return await _approvals(
        llm,
        [[verifier_prompt(task, c, a, llm.nonce) for a in wanted] * p.times for c in candidates],
        p,
        stage,
    )


async def verify(
    llm: LLM, task: Task, candidates: Sequence[Reply], p: JudgeParams, *, stage: str
) -> list[float | None]:
    """The share of independent verifications that find each candidate correct."""
    prompts = [[verification_prompt(task, c, llm.nonce)] * p.times for c in candidates]
    return await _approvals(llm, prompts, p, stage)


async def checklist(
    llm: LLM, task: Task, candidates: Sequence[Reply], p: JudgeParams, *, stage: str
) -> list[float | None]:
    """The share of a checklist, made for this task, that each candidate fulfils."""
    made = await llm.try_ask(
        f"{stage}.checklist", checklist_prompt(task, llm.nonce), temperature=0.1, model=p.judge_model
    )
    items = [i.strip() for i in _ITEM.findall(strip_think(made.text))][:_MOST_ITEMS] if made else []
    if not items:
        return [None] * len(candidates)
    await llm.note("judge.checklist", items=items)

    async def marked(index: int, candidate: Reply) -> float | None:
        prompt = marking_prompt(task, candidate, items, llm.nonce)
        replies = await llm.gather(*(_judgement(llm, prompt, p, stage, str(index)) for _ in range(p.times)))
        shares = []
        for reply in replies:
            answers = {int(n): a.lower() for n, a in _ANSWER.findall(reply.visible)} if reply else {}
            known = [answers[i] == "yes" for i in range(1, len(items) + 1) if i in answers]
            shares += [sum(known) / len(known)] if known else []
        return sum(shares) / len(shares) if shares else None

    return await llm.gather(*(marked(i, c) for i, c in enumerate(candidates)))


async def _approvals(
    llm: LLM, prompts: Sequence[Sequence[Messages]], p: JudgeParams, stage: str
) -> list[float | None]:
    """Per candidate the share of its prompts that are answered with yes."""

    async def share(index: int, own: Sequence[Messages]) -> float | None:
        replies = await llm.gather(*(_judgement(llm, prompt, p, stage, str(index)) for prompt in own))
        verdicts = [_YES_NO.findall(r.visible)[-1:] if r else [] for r in replies]
        known = [v[0].lower() == "yes" for v in verdicts if v]
        return sum(known) / len(known) if known else None

    return await llm.gather(*(share(i, own) for i, own in enumerate(prompts)))


async def _judgement(llm: LLM, prompt: Messages, p: JudgeParams, stage: str, tag: str) -> Reply | None:
    return await llm.try_ask(stage, prompt, temperature=p.judge_temperature, model=p.judge_model, tag=tag)
