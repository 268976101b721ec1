"""The agents of a run of ``mars``, and how they write."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from optillm.approaches.agents.mars_config import Config
from optillm.approaches.agents.mars_prompts import rigorous
from optillm.approaches.agents.population import Solution, best_of
from optillm.approaches.agents.task_kind import Form, presented
from optillm.core.llm import LLM, error_text
from optillm.core.reply import Answer, Reply
from optillm.core.task import Task
from optillm.protocol.errors import UpstreamError

TEMPERATURES = (0.3, 0.6, 1.0)
EFFORTS = ("low", "medium", "high")
_LIMIT = re.compile(r"max_(?:completion_)?tokens|context (?:length|window|size)", re.I)


@dataclass(frozen=True)
class Agent:
    """One agent: what it writes differs from the others' by its temperature and its effort."""

    number: int
    temperature: float
    effort: str


class Team:
    """What the phases of one run share.

    Args:
        task: what was asked.
        llm: the model that all agents speak through.
        config: the configuration.
        form: how solutions are asked for and read.
    """

    def __init__(self, task: Task, llm: LLM, config: Config, form: Form) -> None:
        self.asked = task
        self.task = rigorous(task, form.kind)
        self.llm, self.config, self.form = llm, config, form
        self.agents = tuple(
            Agent(i, TEMPERATURES[i % len(TEMPERATURES)], EFFORTS[i % len(EFFORTS)])
            for i in range(config.agents)
        )
        self.strategies: tuple[str, ...] = ()
        self._limit: int | None = config.max_tokens

    async def write(
        self,
        stage: str,
        task: Task,
        agent: Agent,
        *,
        tag: str,
        scale: float = 1.0,
        temperature: float | None = None,
        effort: str | None = None,
        offset: int = 0,
    ) -> Reply:
        """One reply of an agent, with the client's options.

        Args:
            stage, tag: for the trace.
            task: with what the agent is to do.
            scale: of the agent's temperature.
            temperature: in place of the agent's.
            effort: in place of the agent's.
            offset: shifts the seed among samples of one prompt.

        Raises:
            OptiError: there is none.
        """
        wanted = temperature if temperature is not None else round(agent.temperature * scale, 3)
        reasons = self.config.p.use_reasoning_api

        async def sample(limit: int | None) -> Reply:
            replies = await self.llm.sample(
                stage,
                task.messages,
                1,
                temperature=wanted,
                max_tokens=limit,
                defaults={"reasoning_effort": effort or agent.effort} if reasons else {},
                offset=offset,
                tag=tag,
            )
            return replies[0]

        limit = self._limit
        try:
            return await sample(limit)
        except UpstreamError as error:
            own = limit == self.config.max_tokens and self.config.p.max_tokens is None
            refused = error.upstream_status == 400 and _LIMIT.search(error_text(error)) is not None
            if not (own and refused) or self.llm.options.limit_field:
                raise
        # The preset's limit is more than this model has: the server's own is tried in its place.
        if self._limit is not None:
            self._limit = None
            await self.llm.note("mars.limit_refused", max_tokens=limit)
        return await sample(None)

    def solution(self, name: str, author: Agent, reply: Reply, stage: int) -> Solution:
        """A reply as a member of the population."""
        return Solution(name, author.number, reply, self.form.answer(reply), stage)

    def show(self, reply: Reply) -> Reply:
        """A reply as the client gets it."""
        p = self.config.p
        return presented(reply, self.form, full=p.return_full_response, tags=p.use_thinking_tags)

    def keep(self, population: Sequence[Solution]) -> None:
        """Say what the answer is if the run must end now."""
        if population:
            self.llm.keep(self.show(best_of(population, self.config.passes).reply))

    def answer(self, reply: Reply) -> Answer:
        """The run's answer."""
        return Answer((self.show(reply),))
