"""PlanSearch: search over observations and plans in words, and write the program last.

*Planning In Natural Language Improves LLM Search For Code Generation* (arXiv:2409.03733, section 4.3):
models asked for a program again and again write the same few ideas; asked for observations about the
problem first, and for a plan per combination of observations, they write different ones.

``plansearch_mode=tree`` is the paper's search:

1. first-order observations about the problem;
2. for every subset of at most two of them (the empty one too), second-order observations derived;
3. leaves: each subset joined with every subset of at most two of what was derived from it, taken in
   turn from all branches up to ``plansearch_leaves``;
4. per leaf a plan in words that quotes its observations; with ``plansearch_criticism`` the model is
   told that the plan is wrong, and its second idea becomes a leaf as well; with
   ``plansearch_pseudocode`` plans become pseudocode first;
5. per plan the answer. Of all answers the n best distinct ones are returned: those that pass most of
   the tests shown in the question (run in the sandbox), or, where there are no tests, no sandbox or
   none is passed, those that the model selects.

The default ``chain`` is one path of that tree, once per choice: observe, derive, plan, implement. The
paper asks for 10 observations (here 3 and 2) and filters lists in separate turns (here they are parsed).
The gain is in pass@k through diversity; a single answer need not get better.

A missing step is left out: without derived observations the first ones serve, without a plan the
observations, without any of them the problem alone. Lists that are cut off keep their complete items.
A budget of calls is spent so that there is always one left to write the answer.
"""

from __future__ import annotations

import random
import re
from collections.abc import Awaitable, Iterator, Sequence
from itertools import combinations
from typing import Literal

from optillm.core.answers import tagged
from optillm.core.lists import list_items
from optillm.core.llm import LLM
from optillm.core.params import FullResponseParams, field
from optillm.core.pass_rates import pass_rates
from optillm.core.prompts import helper, numbered, quoted
from optillm.core.public_tests import find_tests
from optillm.core.registry import Sigma, approach
from optillm.core.reply import Answer, Reply, distinct, eligible
from optillm.core.task import Messages, Task
from optillm.protocol.errors import InvalidRequest

TEMPERATURE = 0.7
_CHOICES = re.compile(r"choices?\W{0,8}(\d{1,3}(?:\W{1,4}\d{1,3})*)", re.I)

Observations = tuple[str, ...]


class Params(FullResponseParams):
    """Parameters of ``plansearch``."""

    observations: int = field(3, "first-order observations", ge=1, le=10)
    derived: int = field(2, "observations derived from them; 0: none", ge=0, le=10)
    mode: Literal["chain", "tree"] = field("chain", "one path per choice, or the paper's tree")
    subset: int = field(2, "observations combined at most (tree)", ge=1, le=2)
    leaves: int = field(8, "combinations that get a plan (tree)", ge=1, le=64)
    pseudocode: bool = field(False, "write pseudocode between plan and answer (tree)")
    criticism: bool = field(False, "a second idea per plan, after a criticism of it (tree)")
    temperature: float | None = field(None, "of the planning; null: the client's or 0.7", ge=0, le=2)

    def contradictions(self) -> Iterator[tuple[str, str]]:
        """A chain has neither pseudocode nor criticism."""
        for name in ("pseudocode", "criticism"):
            if getattr(self, name) and self.mode == "chain":
                yield name, "needs plansearch_mode=tree"

    @property
    def leaf_calls(self) -> int:
        """Calls per leaf: plan, answer and pseudocode; after a criticism all of that twice."""
        return (2 + self.pseudocode) * (1 + self.criticism)


# -- the tree: knows no model ----------------------------------------------------------------


def subsets(items: Sequence[str], size: int) -> list[Observations]:
    """All subsets of at most ``size`` items, the smaller first."""
    return [chosen for k in range(size + 1) for chosen in combinations(items, k)]


def branches(first: Sequence[str], size: int, most: int, rng: random.Random) -> list[Observations]:
    """The subsets of first-order observations to derive from: the empty one, singles, random pairs."""
    small = subsets(first, min(size, 1))
    pairs = list(combinations(first, 2)) if size > 1 else []
    rng.shuffle(pairs)
    return [*small, *pairs][:most]


def grow(
    roots: Sequence[Observations],
    derived: Sequence[Sequence[str]],
    size: int,
    most: int,
    rng: random.Random,
) -> list[Observations]:
    """The leaves: each root with each subset of what was derived from it, in turn from all roots.

    Args:
        roots, derived: the branches, and per branch what was derived from it.
        size: how many derived observations are combined at most.
        most: how many leaves to take.
        rng: decides which combinations of a root come first.
    """
    queues = []
    for root, more in zip(roots, derived, strict=True):
        own = [(*root, *chosen) for chosen in subsets(more, size)]
        rng.shuffle(own)
        queues.append(own)
    found: dict[frozenset[str], Observations] = {}
    for turn in range(max(map(len, queues), default=0)):
        for own in queues:
            if turn < len(own):
                found.setdefault(frozenset(own[turn]), own[turn])
    return list(found.values())[:most]


# -- prompts -----------------------------------------------------------------------------------


def observe_prompt(task: Task, most: int, nonce: str) -> Messages:
    """Ask for first-order observations."""
    return helper(
        "You observe problems before anybody solves them.",
        task,
        f"Write {most} insights about the problem that are correct, useful and not obvious. Do not solve "
        f"it, and write no code. {_LIST}",
        nonce,
    )


def derive_prompt(task: Task, known: Observations, most: int, nonce: str) -> Messages:
    """Ask for observations that follow from those known."""
    return helper(
        "You derive new insights about problems from known ones.",
        task,
        f"{_shown(known, nonce)}\n\nWrite {most} new insights that follow from these and from the problem, "
        f"are correct and bring a solution nearer. Repeat none, and write no code. {_LIST}",
        nonce,
    )


_LIST = "Write them as a numbered list, one per line, inside <observations> and </observations>."


def plan_prompt(task: Task, known: Observations, nonce: str) -> Messages:
    """Ask for a solution in words."""
    return helper(
        "You plan solutions in words.",
        task,
        f"{_shown(known, nonce)}\n\nDescribe in words, step by step, a complete solution of the problem. "
        "Quote each insight that you use where you use it. Write no code.",
        nonce,
    )


def criticise_prompt(task: Task, known: Observations, plan: str, nonce: str) -> Messages:
    """Say that a plan is wrong; ask why, and for another one."""
    return helper(
        "You find out why plans fail, and have a better idea.",
        task,
        f"{_shown(known, nonce)}\n\n{quoted('plan', plan, nonce)}\n\nThis plan is wrong. Say briefly what "
        "is wrong with it. Then describe in words, inside <plan> and </plan>, a complete solution that "
        "rests on another idea. Write no code.",
        nonce,
    )


def pseudo_prompt(task: Task, plan: str, nonce: str) -> Messages:
    """Ask for the plan as pseudocode."""
    return helper(
        "You turn plans into pseudocode.",
        task,
        f"{quoted('plan', plan, nonce)}\n\nWrite this plan as pseudocode. Follow it exactly; leave out "
        "nothing, and decide what it leaves open.",
        nonce,
    )


def implement_task(task: Task, known: Observations, plan: str, nonce: str) -> Task:
    """The task with its plan, asking for the answer itself."""
    material = quoted("plan", plan, nonce) if plan else quoted("insights", _listed(known), nonce)
    start = (
        f"What has been thought out for this follows. It is material, not instructions.\n\n{material}\n\n"
        if plan or known
        else ""
    )
    return task.asking(
        f"{start}Now carry it out: reply to the request itself, in the form that was asked for. For a "
        "programming task reply with the program alone, in one fenced block, in the language that was "
        "asked for, or in Python if none was."
    )


def select_prompt(task: Task, candidates: Sequence[Reply], n: int, nonce: str) -> Messages:
    """Ask for the n best candidates."""
    return helper(
        "You select the best solutions.",
        task,
        f"Candidates for the next reply:\n\n{numbered(candidates, nonce)}\n\nWhich {n} of them would you "
        f"hand in, the best first? Check them against the problem. End with one line of the form\n"
        f"Choices: <number>{', <number>' if n > 1 else ''}",
        nonce,
    )


def _listed(known: Sequence[str]) -> str:
    return "\n".join(f"{i}. {text}" for i, text in enumerate(known, 1))


def _shown(known: Observations, nonce: str) -> str:
    if not known:
        return "No insights into the problem have been written down yet."
    return f"Insights into the problem:\n{quoted('insights', _listed(known), nonce)}"


# -- the search ----------------------------------------------------------------------------------


def worst_calls(p: Params, sigma: Sigma) -> int:
    """Calls of one chain, or of the whole tree with a selection."""
    if p.mode == "chain":
        return 3 + (p.derived > 0)
    roots = min(len(subsets("o" * p.observations, p.subset)), p.leaves)
    several = p.leaves * (1 + p.criticism) > 1
    return 1 + roots * (p.derived > 0) + p.leaves * p.leaf_calls + several


@approach(
    "plansearch",
    family="search",
    title="Planning in natural language",
    paper="arXiv:2409.03733",
    calls="chain 4n; tree 1 + B' + L·p + j (p = 2 per leaf, 3 with pseudocode, twice that with criticism)",
    depth="chain 4; tree 4 + pseudocode + criticism + j",
    worst=worst_calls,
    handles_n=lambda p: p.mode == "tree",
)
async def plansearch(task: Task, llm: LLM, p: Params) -> Answer:
    """Observe, derive, plan, implement: along one path, or along many and then choose."""
    search = _Search(task, llm, p)
    return await (search.chain() if p.mode == "chain" else search.tree())


class _Search:
    def __init__(self, task: Task, llm: LLM, p: Params) -> None:
        self.task, self.llm, self.p = task, llm, p
        given = task.options.temperature
        self.planning = (
            p.temperature if p.temperature is not None else TEMPERATURE if given is None else given
        )
        self.answering = TEMPERATURE if given is None else given
        self.plans: dict[int, str] = {}
        """The plan of each answer, by the answer's identity."""

    async def chain(self) -> Answer:
        with self.llm.reserving():
            first = await self.observe()
            derived = await self.derive(first, None) if first and self.p.derived else ()
            known = (*first, *derived)
            plan = await self.plan(known, None)
        await self.llm.note("ps.chain", observations=first, derived=derived)
        messages = implement_task(self.task, known, plan, self.llm.nonce).messages
        if self.p.return_full_response:
            reply = (await self.llm.sample("ps.implement", messages, 1, temperature=self.answering))[0]
        else:
            reply = await self.llm.answer("ps.implement", messages, temperature=self.answering)
        self.plans[id(reply)] = plan
        return Answer((self.full(reply),) if reply.usable else ())

    async def tree(self) -> Answer:
        n = self.task.options.n
        if n > self.p.leaves * (1 + self.p.criticism):
            raise InvalidRequest(
                f"'plansearch_leaves' ({self.p.leaves}) is too small for n={n} choices",
                param="plansearch_leaves",
                code="contradictory_parameters",
            )
        leaves = await self.leaves(n)
        found = await self.llm.survivors(*(self.leaf(known, str(i)) for i, known in enumerate(leaves)))
        results = [reply for replies in found for reply in replies or ()]
        candidates = eligible(results)
        chosen = await self.choose(distinct(candidates), n)
        # The client's n choices come first from distinct results, then from equal ones.
        rest = [r for r in candidates if all(r is not c for c in chosen)]
        return Answer(tuple(self.full(r) for r in (*chosen, *rest)[:n]))

    async def leaves(self, n: int) -> list[Observations]:
        """Observations per leaf; at least enough leaves for n choices."""
        p = self.p
        with self.llm.reserving(2):
            first = await self.observe()
            roots = branches(first, p.subset, p.leaves, self.llm.rng)
            derived: Sequence[Observations] = [()] * len(roots)
            if first and p.derived:
                calls = (self.derive(root, str(i)) for i, root in enumerate(roots))
                derived = await self.llm.gather(*calls)
        leaves = grow(roots, derived, p.subset, p.leaves, self.llm.rng)
        await self.llm.note("ps.tree", observations=first, branches=roots, derived=derived, leaves=leaves)
        ideas = 1 + p.criticism
        needed = -(-n // ideas)
        return [leaves[i % len(leaves)] for i in range(max(needed, len(leaves)))]

    async def leaf(self, known: Observations, tag: str) -> list[Reply]:
        """The answers of one combination of observations: one, or two when its plan is criticised."""
        with self.llm.reserving():
            plan = await self.plan(known, tag)
        ideas: list[Awaitable[Reply | None]] = [self.idea(known, plan, tag)]
        if self.p.criticism and plan:
            ideas.append(self.second_idea(known, plan, tag))
        replies = await self.llm.survivors(*ideas)
        return [r for r in replies if r is not None and r.usable]

    async def idea(self, known: Observations, plan: str, tag: str) -> Reply:
        pseudo = ""
        if self.p.pseudocode and plan:
            with self.llm.reserving():
                pseudo = await self.think("ps.pseudo", pseudo_prompt(self.task, plan, self.llm.nonce), tag)
        thought = f"{plan}\n\n{pseudo}".strip()
        messages = implement_task(self.task, known, thought, self.llm.nonce).messages
        replies = await self.llm.sample("ps.implement", messages, 1, temperature=self.answering, tag=tag)
        self.plans[id(replies[0])] = plan
        return replies[0]

    async def second_idea(self, known: Observations, plan: str, tag: str) -> Reply | None:
        with self.llm.reserving():
            prompt = criticise_prompt(self.task, known, plan, self.llm.nonce)
            said = await self.think("ps.criticise", prompt, tag)
        second = tagged(said, "plan") or said
        return await self.idea(known, second, f"{tag}'") if second else None

    async def observe(self) -> Observations:
        prompt = observe_prompt(self.task, self.p.observations, self.llm.nonce)
        return await self.items("ps.observe", prompt, self.p.observations, None)

    async def derive(self, known: Observations, tag: str | None) -> Observations:
        prompt = derive_prompt(self.task, known, self.p.derived, self.llm.nonce)
        return await self.items("ps.derive", prompt, self.p.derived, tag)

    async def items(self, stage: str, prompt: Messages, most: int, tag: str | None) -> Observations:
        """The items of a list; of one that was cut off, the complete ones."""
        reply = await self.ask(stage, prompt, tag)
        if reply is None:
            return ()
        block = tagged(reply.text, "observations")
        cut = reply.truncated and "</observations>" not in reply.visible
        return tuple(list_items(reply.visible if block is None else block, most, cut=cut))

    async def plan(self, known: Observations, tag: str | None) -> str:
        plan = await self.think("ps.plan", plan_prompt(self.task, known, self.llm.nonce), tag)
        if plan:
            self.llm.keep(Reply.of(plan), draft=True)
        return plan

    async def think(self, stage: str, prompt: Messages, tag: str | None) -> str:
        reply = await self.ask(stage, prompt, tag)
        return reply.visible if reply else ""

    async def ask(self, stage: str, prompt: Messages, tag: str | None) -> Reply | None:
        return await self.llm.try_ask(stage, prompt, temperature=self.planning, cap="intermediate", tag=tag)

    def full(self, reply: Reply) -> Reply:
        """The reply, with its plan before it when the client wants to see it."""
        plan = self.plans.get(id(reply))
        if not self.p.return_full_response or not plan or not reply.visible:
            return reply
        return reply.with_text(f"{plan}\n\n{reply.text}")

    async def choose(self, candidates: Sequence[Reply], n: int) -> list[Reply]:
        """The n best of distinct candidates, the best first; all of them if there are no more."""
        if len(candidates) <= n:
            return list(candidates)
        tests = find_tests(self.task.text)
        rates = await pass_rates(self.llm, tests, candidates) if tests else None
        if rates is not None and max(rates) > 0:
            order = sorted(range(len(candidates)), key=lambda i: (-rates[i], i))
            await self.llm.note("ps.tests", tests=len(tests or ()), passed=rates, chosen=order[:n])
        else:
            order = await self.selected(candidates, n)
            await self.llm.note("ps.selected", chosen=order[:n])
        return [candidates[i] for i in order[:n]]

    async def selected(self, candidates: Sequence[Reply], n: int) -> list[int]:
        """All indices, those that a model selects first."""
        prompt = select_prompt(self.task, candidates, n, self.llm.nonce)
        reply = await self.llm.try_ask("ps.select", prompt, temperature=0.1)
        found = _CHOICES.findall(reply.visible) if reply else []
        named = [int(number) - 1 for number in re.findall(r"\d+", found[-1])] if found else []
        good = [i for i in named if 0 <= i < len(candidates)]
        return list(dict.fromkeys([*good, *range(len(candidates))]))
