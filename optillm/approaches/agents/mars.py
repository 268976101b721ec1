"""MARS: several agents explore, aggregate, learn from each other, verify and improve, then one answer.

Agents are the same model at different temperatures (0.3, 0.6, 1.0 in turn) and reasoning efforts (low,
medium, high). A run has six phases:

1. *Exploration.* Each agent solves the task, all at once. With aggregation they write on, in turn, until the
   population has P solutions. The client's system prompt and turns stay as they are; an instruction to be
   rigorous that fits the kind of question (mathematics, program, anything else) is added.
2. *Aggregation.* T loops; each makes up to three new solutions, all at once, from groups of K: the best, the
   most diverse by author, random ones. They take the place of the worst.
3. *Strategies.* The strategy of each agent's best solution is written down; then each agent writes its
   solution anew, knowing the two best strategies of the others.
4. *Verification.* Each solution is checked by agents that did not write it: CORRECT, INCORRECT or
   INCOMPLETE, with issues and suggestions. It is verified by v CORRECT in a row out of m checks at most. The
   first v checks of all solutions are made at once, further ones only while they can still verify it.
5. *Improvement.* While too few solutions are verified, and there is no consensus among those that are, the
   author of each other solution corrects it by what its checks said, and the new text is checked again.
6. *Synthesis.* The best verified solution is the answer; without one, an answer that two or more solutions
   give, in the most confirmed of them; without that, one call writes the answer from all solutions and their
   verdicts.

Where it comes from: the solve, verify and improve loops reported for the mathematical olympiad (Huang and
Yang, arXiv:2507.15855), and Recursive Self-Aggregation (Venkatraman et al., arXiv:2509.26626, section 3) for
phase 2. RSA rewrites the whole population in each step, from random subsets, and does not verify; here a
loop renews at most three solutions, and not all are drawn at random. Strategies between agents belong to
this system alone.

The presets: ``default``, and ``lightweight`` for programs and small budgets (two agents, one check each, no
aggregation, no strategies), which a token limit of 4000 or less also means, unless a preset is named; the
trace says so (``mars.config``). Parameters are fields of their own (``mars_num_agents``), or stand under
their short names in one object, ``mars_config``; a field of its own wins.

What the client gets: for a program the code block, for mathematics the paragraph with the final answer, else
the whole reply; ``mars_answer_extraction_mode`` decides otherwise. Proofs and formatted replies
(``response_format``) are never cut down. What led to the answer is in ``reasoning_content``, or with
``return_full_response`` between ``<think>`` tags in the content.

Use it for hard problems with a right answer, when time and tokens are at hand: 30 calls at least with the
defaults, in 7 steps.

An agent that fails is left out; a solution whose rewriting fails, is empty, or is cut off where it was
complete, stays, with its verdicts. A check without a readable verdict counts as made and says nothing. When
most agents call a tool, the call that most of them make is the answer. When the budget ends, it is the best
solution so far, chosen as in phase 6 without the call. If the model refuses the preset's token limit, the
server's own default is sent in its place.
"""

from __future__ import annotations

from collections.abc import Sequence

from optillm.approaches.agents import mars_prompts as prompts
from optillm.approaches.agents.mars_config import Params, resolve, worst_calls
from optillm.approaches.agents.population import (
    Solution,
    agreeing,
    best_of,
    choose,
    consensus,
    fit,
    groups,
    latest_of,
    ranked,
    succession,
)
from optillm.approaches.agents.task_kind import form_of
from optillm.approaches.agents.team import Agent, Team
from optillm.approaches.agents.verification import verify, verify_one
from optillm.core.llm import LLM
from optillm.core.registry import approach
from optillm.core.reply import Answer
from optillm.core.task import Task

ENHANCED, IMPROVED = 0.9, 0.8
"""Of the author's temperature."""
SYNTHESIS_TEMPERATURE = 0.3
SHOWN_STRATEGIES = 2


@approach(
    "mars",
    family="agents",
    title="Multi-agent reasoning with verification",
    paper="arXiv:2509.26626, arXiv:2507.15855",
    calls=(
        "S + T·g + 2A + c + Σ over rounds (u + c_u) + y, with S = max(A, P) solutions, g = min(S div K, 3) "
        "groups, S = A and no T·g without aggregation, no 2A without strategies; v to m checks per solution "
        "(c = S·v to S·m), u unverified solutions per round, at most I rounds, y = 1 when neither verified "
        "nor voted. Defaults: 30 to 157; lightweight: 4 to 19"
    ),
    depth=(
        "1 + T + 2 + k + rounds·(1 + k) + y, with k = 1 to m−v+1 checks one after another, no T without "
        "aggregation, no 2 without strategies. Defaults: 7 to 24; lightweight: 2 to 10"
    ),
    worst=worst_calls,
)
async def mars(task: Task, llm: LLM, p: Params) -> Answer:
    """Explore, aggregate, exchange strategies, verify, improve, synthesise."""
    team = await assemble(task, llm, p)
    population = await explore(team)
    if not population:
        return Answer(())
    if called := tool_call(population):
        return team.answer(called.reply)
    population = await aggregate(team, population)
    population = await exchange(team, population)
    population = await verified(team, population)
    population = await improve(team, population)
    return await synthesise(team, population)


async def assemble(task: Task, llm: LLM, p: Params) -> Team:
    """The agents and their configuration."""
    named = llm.options.limit_field
    config = resolve(p, llm.options.fields[named] if named else None)
    form = form_of(task, p.answer_extraction_mode)
    because = "named" if p.preset else "token limit" if config.preset == "lightweight" else "default"
    await llm.note(
        "mars.config",
        preset=config.preset,
        because=because,
        agents=config.agents,
        population=config.population,
        kind=form.kind,
        extracts=form.extracts,
    )
    return Team(task, llm, config, form)


async def explore(team: Team) -> list[Solution]:
    """Phase 1: the agents solve the task, in turn until the population is full, all at once."""

    async def one(index: int) -> Solution:
        agent = team.agents[index % len(team.agents)]
        reply = await team.write("mars.explore", team.task, agent, tag=str(index), offset=index)
        return team.solution(f"explore.{index}", agent, reply, 0)

    found = await team.llm.survivors(*(one(i) for i in range(team.config.population)))
    population = [s for s in found if s is not None and s.reply.usable]
    team.keep(population)
    await team.llm.note("mars.explored", solutions=[s.told for s in population])
    return population


def tool_call(population: Sequence[Solution]) -> Solution | None:
    """The solution whose tool call is made most often, if most of them call a tool."""
    calling = [s for s in population if s.reply.tool_calls]
    return agreeing(calling)[0][0] if 2 * len(calling) > len(population) else None


async def aggregate(team: Team, population: list[Solution]) -> list[Solution]:
    """Phase 2: loops of new solutions made of groups of old ones, which take the place of the worst."""
    c, llm = team.config, team.llm
    for loop in range(1, c.loops + 1):
        if llm.run.budget.ended:
            break
        chosen = groups(population, c.groups, c.group_size, llm.rng)

        async def one(index: int, group: Sequence[Solution], loop: int = loop) -> Solution | None:
            agent = team.agents[((loop - 1) * c.groups + index) % len(team.agents)]
            asked = prompts.aggregation(team.task, group, llm.nonce)
            stage = f"mars.aggregate[{loop}]"
            writing = team.write(stage, asked, agent, tag=str(index), effort="high", offset=index)
            reply = await llm.attempt(writing)
            good = reply is not None and all(fit(s.reply, reply) for s in group[:1])
            return team.solution(f"aggregate.{loop}.{index}", agent, reply, loop) if reply and good else None

        made = await llm.gather(*(one(i, group) for i, group in enumerate(chosen)))
        population = succession(population, [s for s in made if s], c.population)
        team.keep(population)
        await llm.note(
            f"mars.aggregated[{loop}]",
            groups=[[s.name for s in group] for group in chosen],
            population=[s.told for s in population],
        )
    return population


async def exchange(team: Team, population: list[Solution]) -> list[Solution]:
    """Phase 3: the agents write down their strategies, and write anew with the best of the others'."""
    c, llm = team.config, team.llm
    if not c.extracts or llm.run.budget.ended:
        return population
    owned = [(a, s) for a in team.agents if (s := latest_of(population, a.number))]
    written = await llm.gather(*(_strategy(team, agent, own) for agent, own in owned))
    place = {s.name: i for i, s in enumerate(ranked(population))}
    known = sorted(
        (
            (place[own.name], agent.number, text)
            for (agent, own), text in zip(owned, written, strict=True)
            if text
        )
    )
    team.strategies = tuple(text for _, _, text in known)
    await llm.note("mars.strategies", best_first=[number for _, number, _ in known])
    if not c.enhances or llm.run.budget.ended:
        return population
    others = {
        agent.number: [text for _, number, text in known if number != agent.number][:SHOWN_STRATEGIES]
        for agent, _ in owned
    }
    made = await llm.gather(
        *(_enhanced(team, agent, own, others[agent.number]) for agent, own in owned if others[agent.number])
    )
    new = [(old, s) for old, s in made if s]
    population = succession(population, [s for _, s in new], c.population, [old for old, _ in new])
    team.keep(population)
    await llm.note("mars.enhanced", population=[s.told for s in population])
    return population


async def _strategy(team: Team, agent: Agent, own: Solution) -> str | None:
    prompt = prompts.strategy_prompt(team.asked, own, agent.number, team.config.agents, team.llm.nonce)
    reply = await team.llm.try_ask(
        "mars.strategy", prompt, temperature=agent.temperature, tag=str(agent.number)
    )
    return reply.visible if reply and reply.visible else None


async def _enhanced(
    team: Team, agent: Agent, own: Solution, strategies: Sequence[str]
) -> tuple[Solution, Solution | None]:
    """The agent's old solution, and the new one if there is one."""
    asked = prompts.enhancement(team.task, own, strategies, team.llm.nonce)
    writing = team.write("mars.enhance", asked, agent, tag=str(agent.number), scale=ENHANCED)
    reply = await team.llm.attempt(writing)
    if reply is None or not fit(own.reply, reply):
        return own, None
    return own, team.solution(f"enhance.{agent.number}", agent, reply, own.stage + 1)


async def verified(team: Team, population: list[Solution]) -> list[Solution]:
    """Phase 4: every solution with its checks."""
    if team.llm.run.budget.ended:
        return population
    population = await verify(team, population)
    team.keep(population)
    await team.llm.note("mars.verdicts", solutions=[s.told for s in population])
    return population


async def improve(team: Team, population: list[Solution]) -> list[Solution]:
    """Phase 5: authors correct what their checks object to, until enough is verified or nothing changes."""
    for round_number in range(1, team.config.iterations + 1):
        if settled(team, population) or team.llm.run.budget.ended:
            break
        before = population
        population = await team.llm.gather(*(_improved(team, s, round_number) for s in population))
        team.keep(population)
        await team.llm.note(f"mars.improved[{round_number}]", solutions=[s.told for s in population])
        if all(old is new for old, new in zip(before, population, strict=True)):
            break
    return population


def settled(team: Team, population: Sequence[Solution]) -> bool:
    """Whether enough solutions are verified, or those that are agree."""
    c = team.config
    if sum(s.verified(c.passes) for s in population) >= c.min_verified:
        return True
    return c.p.early_termination and consensus(population, c.passes, c.consensus)


async def _improved(team: Team, own: Solution, round_number: int) -> Solution:
    """What the author makes of a solution that was objected to, checked anew; else the solution itself."""
    if own.verified(team.config.passes) or not own.objections:
        return own
    author = team.agents[own.author]
    asked = prompts.improvement(team.task, own, team.llm.nonce)
    stage = f"mars.improve[{round_number}]"
    writing = team.write(stage, asked, author, tag=own.name, scale=IMPROVED, effort="high")
    reply = await team.llm.attempt(writing)
    if reply is None or not fit(own.reply, reply) or reply.rendered == own.reply.rendered:
        return own
    name = f"{own.name.partition('+')[0]}+{round_number}"
    return await verify_one(team, team.solution(name, author, reply, own.stage + 1))


async def synthesise(team: Team, population: Sequence[Solution]) -> Answer:
    """Phase 6: the best verified solution, the vote's, or one made of all."""
    llm, passes = team.llm, team.config.passes
    winner, because = choose(population, passes)
    if winner is not None:
        await llm.note("mars.choice", because=because, winner=winner.name, answer=winner.answer)
        return team.answer(winner.reply)
    asked = prompts.synthesis(team.task, ranked(population), team.strategies, llm.nonce)
    given = llm.options.temperature
    temperature = SYNTHESIS_TEMPERATURE if given is None else given
    reply = await llm.attempt(
        team.write("mars.synthesis", asked, team.agents[0], tag="0", temperature=temperature, effort="high")
    )
    best = best_of(population, passes)
    if reply is None or not fit(best.reply, reply):
        await llm.note("mars.choice", because="best so far", winner=best.name, answer=best.answer)
        return team.answer(best.reply)
    await llm.note("mars.choice", because="synthesis", winner="synthesis", answer=team.form.answer(reply))
    return team.answer(reply)
