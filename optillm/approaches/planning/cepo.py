"""Cerebras planning and optimisation: plan, carry out, reconcile, answer; the best of several such answers.

CePO (Cerebras, "CePO: Empowering Llama with reasoning using test-time compute", 2024) makes
``cepo_bestofn_n`` completions at once and returns the best. For each of them:

1. a plan is written in steps, with how sure the model is of each step and of its own ability to carry it
   out; the question is shown twice, as in re-reading (arXiv:2309.06275);
2. the plan is carried out in the same conversation, with more care where confidence was low. A plan or an
   execution that a token limit cuts off is dropped. Of at most ``cepo_planning_m`` attempts the first
   ``cepo_planning_n`` that get to their end are kept. If none does, the question is answered directly;
3. what came of the plans is compared, contradictions are resolved, and a final step-by-step solution is
   written;
4. from it the reply is written, to the request as the user made it, with its instructions on form. Before
   this step, multiple-choice and code-format instructions are left out: they disturb reasoning.

The completions are then rated ([[0]] or [[1]] each), compared in all ordered pairs, or put to the vote of
their final answers; of equals the first wins. With ``cepo_use_plan_diversity`` one call lists as many
approaches as there are completions, and each plans along its own; when two tries give no such list, they
plan without.

Which attempts are kept: with ``cepo_launch=lazy`` as many begin as are wanted and each dropped one is
followed by the next, so that no call is in vain. With ``eager`` all begin at once; as soon as enough have got
to their end the rest is cancelled. Of those that have got to their end by then, the first ones by index are
kept. If the request has a seed, the rest is not cancelled: all attempts come to their end before the first
ones by index are kept, so that the same seed makes the same calls and keeps the same plans, whichever was
quick. (By default these are 18 calls at once: with ``--max-concurrency`` under that, some wait.)

Reasoning effort "high" is asked for, except for the list of approaches, until the model is found to refuse
the field; that is remembered for the model and not written into anybody's parameters. With
``cepo_use_reasoning_fallback`` a call that is cut off, answered 400, or fails for good is made again with
"medium", the direct answer after that with "low". The client's own ``reasoning_effort`` holds for the calls
that write a reply (the direct answer, step 4).

Each step has its own temperature and token limit, by preset (``default``; ``qwen3`` and ``gptoss`` for
those models) or set one by one; in the calls that write a reply, what the client says of temperature and
limit beats the preset, not a parameter that was set. The server takes defaults from a YAML file
(``--cepo-config-file``): a request's parameter beats a flag or variable, which beats the file, which beats
the preset.

When step 3 fails or is cut off, the first response goes on to step 4; when step 4 fails, what step 3 wrote
is the completion. A completion without any text is left out. A judge's verdict that cannot be read counts
as -1, of a pair as half a point each. The end of a budget leaves the most finished text so far.

Use it for hard problems of mathematics, code and knowledge, where one plan is easily wrong and calls are
cheap: the default takes up to 48.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from optillm.approaches.planning.cepo_calls import DIRECT_LEVELS, EFFORT, LEVELS, efforts, insist, most_tries
from optillm.approaches.planning.cepo_presets import Params, Preset
from optillm.approaches.planning.cepo_prompts import (
    EXECUTE,
    approaches_prompt,
    plan_prompt,
    read_approaches,
    reconcile_prompt,
    solve_prompt,
    writing,
)
from optillm.approaches.planning.cepo_rating import best, worst_ratings
from optillm.approaches.planning.question_only import question_only
from optillm.core.llm import LLM
from optillm.core.racing import first_good
from optillm.core.registry import Sigma, approach
from optillm.core.reply import Answer, Reply
from optillm.core.task import Messages, Task, assistant, user

DIRECT_TOP_P = 0.95
PLAN, EXECUTION, SOLUTION = 1, 2, 3
"""How finished a text is."""


def worst(p: Params, sigma: Sigma) -> int:
    """Calls at most: every attempt fails in its last step, and every call is made as often as can be."""
    c, tries = p.config, most_tries(p)
    attempts = c.planning_m * (2 if c.planning_max_tokens_step1 else 1) * tries
    steps = bool(c.planning_max_tokens_step3) + bool(c.planning_max_tokens_step4)
    completion = attempts + most_tries(p, DIRECT_LEVELS) + steps * tries
    return 2 * p.use_plan_diversity + p.bestofn_n * completion + worst_ratings(p, p.bestofn_n)


@dataclass
class _Completions:
    """The completions of one run.

    Args:
        task: what was asked.
        bare: the same without instructions on form.
    """

    task: Task
    bare: Task
    llm: LLM
    p: Params
    c: Preset
    finished: int = 0
    """How finished the text is that was kept for the end of the budget."""

    async def approaches(self) -> list[str]:
        """Step 0: an approach for each completion, empty texts for none."""
        prompt = approaches_prompt(self.bare, self.p.bestofn_n, self.llm.nonce)
        for tried in range(2):
            with self.llm.reserving():
                reply = await self.llm.try_ask(
                    "cepo.approaches",
                    prompt,
                    temperature=self.p.temperature_step0,
                    max_tokens=self.p.max_tokens_step0,
                    offset=tried,
                )
            ways = read_approaches(reply.text, self.p.bestofn_n) if reply else []
            if ways:
                await self.llm.note("cepo.approaches", approaches=ways)
                return ways
        return [""] * self.p.bestofn_n

    async def complete(self, b: int, way: str) -> tuple[Reply, bool]:
        """Completion number b, and whether it got to its last step.

        Raises:
            OptiError: it has no text at all.
        """

        async def attempt(index: int) -> Reply | None:
            return await self.attempt(b, index, way)

        with self.llm.reserving():
            executions = await first_good(
                attempt,
                self.c.planning_m,
                self.c.planning_n,
                eager=self.p.launch == "eager",
                reproducible=self.task.options.seed is not None,
            )
        responses = list(executions.values()) or [await self.direct(b)]
        solution = await self.reconcile(b, responses)
        reply = await self.write(b, solution)
        await self.llm.note(
            "cepo.completion",
            completion=b,
            attempts=list(executions),
            direct=not executions,
            reconciled=solution is not responses[0],
        )
        if self.c.print_output:
            await self.llm.note(
                "cepo.output",
                completion=b,
                responses=[r.rendered for r in responses],
                solution=solution.rendered,
                reply=reply.rendered if reply else None,
            )
        return reply or solution, reply is not None

    async def attempt(self, b: int, index: int, way: str) -> Reply | None:
        """Steps 1 and 2: one plan, carried out; None if it failed or was cut off."""
        c, tag, offset = self.c, f"{b}.{index}", b * self.c.planning_m + index
        if c.planning_max_tokens_step1:
            messages = plan_prompt(self.bare, way, self.llm.nonce)
            plan = await self.think(
                "cepo.plan",
                messages,
                c.planning_temperature_step1,
                c.planning_max_tokens_step1,
                offset,
                tag,
            )
            if plan is None:
                return None
            self.keep(plan, PLAN)
            messages = (*messages, assistant(plan.visible), user(EXECUTE))
        else:
            messages = solve_prompt(self.bare, way, self.llm.nonce)
        execution = await self.think(
            "cepo.execute",
            messages,
            c.planning_temperature_step2,
            c.planning_max_tokens_step2,
            offset,
            tag,
        )
        if execution is not None:
            self.keep(execution, EXECUTION)
        return execution

    async def direct(self, b: int) -> Reply:
        """The fall-back: the question answered without a plan."""
        fields = {} if "top_p" in self.task.options.fields else {"top_p": DIRECT_TOP_P}
        return await self.reply(
            "cepo.direct",
            self.task.messages,
            (self.p.planning_temperature_direct_resp, self.c.planning_temperature_direct_resp),
            (self.p.planning_max_tokens_direct_resp, self.c.planning_max_tokens_direct_resp),
            b,
            levels=DIRECT_LEVELS,
            fields=fields,
        )

    async def reconcile(self, b: int, responses: Sequence[Reply]) -> Reply:
        """Step 3: one solution out of the responses; the first of them if that fails."""
        c = self.c
        if not c.planning_max_tokens_step3:
            return responses[0]
        with self.llm.reserving(1 if c.planning_max_tokens_step4 else 0):
            solution = await self.think(
                "cepo.reconcile",
                reconcile_prompt(self.bare, responses, self.llm.nonce),
                c.planning_temperature_step3,
                c.planning_max_tokens_step3,
                b,
                str(b),
            )
        if solution is None:
            return responses[0]
        self.keep(solution, SOLUTION)
        return solution

    async def write(self, b: int, solution: Reply) -> Reply | None:
        """Step 4: the reply to the request as it was made; None if that fails."""
        if not self.c.planning_max_tokens_step4:
            return solution
        return await self.llm.attempt(
            self.reply(
                "cepo.answer",
                writing(self.task, solution, self.llm.nonce).messages,
                (self.p.planning_temperature_step4, self.c.planning_temperature_step4),
                (self.p.planning_max_tokens_step4, self.c.planning_max_tokens_step4),
                b,
            )
        )

    async def think(
        self, stage: str, messages: Messages, temperature: float, limit: int, offset: int, tag: str
    ) -> Reply | None:
        """A call whose text is not for the user; None if it failed or was cut off."""

        async def make(fields: Mapping[str, Any]) -> Reply:
            return await self.llm.ask(
                stage,
                messages,
                temperature=temperature,
                max_tokens=limit,
                fields=fields,
                offset=offset,
                tag=tag,
            )

        reply = await self.llm.attempt(insist(self.llm, self.p, make, levels=efforts(self.p, LEVELS)))
        return None if reply is None or reply.truncated or not reply.visible else reply

    async def reply(
        self,
        stage: str,
        messages: Messages,
        temperature: tuple[float | None, float],
        limit: tuple[int | None, int],
        b: int,
        *,
        levels: Sequence[str] = LEVELS,
        fields: Mapping[str, Any] | None = None,
    ) -> Reply:
        """A call that writes a reply, with the client's options.

        Of temperature and limit what was set goes first, then the client's, then the preset's.

        Args:
            temperature, limit: what was set, or None, and the value in force.
        """
        options = self.task.options
        own_temperature = temperature[0] is not None or options.temperature is None
        own_limit = limit[0] is not None or options.limit_field is None

        async def make(more: Mapping[str, Any]) -> Reply:
            replies = await self.llm.sample(
                stage,
                messages,
                1,
                temperature=temperature[1] if own_temperature else None,
                max_tokens=limit[1] if own_limit else None,
                fields={**(fields or {}), **more},
                offset=b,
                tag=str(b),
            )
            return replies[0]

        given = options.fields.get(EFFORT) is not None
        wanted = (None,) if given else efforts(self.p, levels)
        return await insist(self.llm, self.p, make, levels=wanted)

    def keep(self, reply: Reply, finished: int) -> None:
        """Have a text returned should the budget end, unless a more finished one is kept."""
        if finished > self.finished:
            self.finished = finished
            self.llm.keep(reply, draft=True)


@approach(
    "cepo",
    family="planning",
    title="Cerebras planning and optimisation",
    paper="Cerebras blog, 2024",
    calls="δ + B·(2M' + f + s3 + s4) + R: δ = 1 with plan diversity (2 if its first list is no use), M' "
    "attempts really run (1 call each without step 1), f = 1 without a complete attempt, s3 and s4 = 1 "
    "unless switched off, R = B (absolute), B(B-1) (pairwise), 0 (majority, or one completion); retries come "
    "on top",
    depth="δ + 2 + f + s3 + s4 + 1 for a rating; more where an attempt is lazily replaced or a call retried",
    worst=worst,
    reduce=best,
    worst_reduce=worst_ratings,
)
async def cepo(task: Task, llm: LLM, p: Params) -> Answer:
    """Plan and answer several times at once, return the best."""
    await llm.note("cepo.config", preset=p.preset, **asdict(p.config))
    run = _Completions(task, question_only(task), llm, p, p.config)
    ways = await run.approaches() if p.use_plan_diversity else [""] * p.bestofn_n
    drawn = await llm.survivors(*(run.complete(b, way) for b, way in enumerate(ways)))
    completions = [c for c in drawn if c is not None]
    if llm.run.budget.cut_short:
        # What a budget stopped half-way does not compete with what got to its end.
        completions = [c for c in completions if c[1]] or completions
    return await best(task, llm, p, [reply for reply, _ in completions])
