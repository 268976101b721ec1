"""Monte Carlo tree search over a dialogue: replies are nodes, simulated exchanges are rollouts.

Inspired by *Monte Carlo Tree Search Boosts Reasoning via Iterative Preference Learning*
(arXiv:2405.00451), which searches at training time; this is the search alone, at inference time, over
whole replies. Each simulation selects a leaf by UCT, expands it if it was visited (the model plays the
user's next message and samples replies to it), rolls out some simulated exchanges, has a judge score
the whole dialogue from 0 to 1, and backpropagates. The most visited first reply is the answer.

The simulations of a wave run concurrently: each claims a different leaf by counting a virtual visit,
and values return in the wave's order, so the result does not depend on the order of replies. With as
many simulations as actions (three by default) every candidate is looked at once; more of them make the
search prefer what scored well. When a budget ends the search, the best reply so far is returned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field as attribute
from typing import Any, Literal

from optillm.core.answers import parse_score
from optillm.core.judges import JudgeParams, judge_calls, score
from optillm.core.llm import LLM
from optillm.core.params import field
from optillm.core.prompts import helper
from optillm.core.registry import Sigma, approach
from optillm.core.reply import Answer, Reply
from optillm.core.task import Message, Messages, Task, assistant, user
from optillm.protocol.errors import BudgetExceeded

END = "<END>"
PLEASE_CONTINUE = "Please continue."
# "dialogue" is this technique's own judge; pairwise would have nothing to compare a reply with.
Judge = Literal["dialogue", "absolute", "aspects", "verify", "checklist", "tests", "exact", "reward"]


class Params(JudgeParams):
    """Parameters of ``mcts``."""

    simulations: int = field(2, "rollouts", ge=1, le=64, flags=("--simulations",), env="OPTILLM_SIMULATIONS")
    exploration: float = field(
        0.2, "the c of UCT", ge=0, le=10, flags=("--exploration",), env="OPTILLM_EXPLORATION"
    )
    depth: int = field(
        1, "simulated exchanges per rollout", ge=0, le=8, flags=("--depth",), env="OPTILLM_DEPTH"
    )
    actions: int = field(3, "replies sampled per node", ge=2, le=16)
    parallel: int | None = field(None, "rollouts per wave; null: as many as actions", ge=1, le=16)
    tree_depth: int = field(3, "levels of replies in the tree", ge=1, le=8)
    judge: Judge = field(  # type: ignore[assignment]
        "dialogue", "what values a node: its whole simulated dialogue, or a judge of its reply alone"
    )

    @property
    def rollout_calls(self) -> int:
        """Calls of one simulation: d exchanges and a judgement of the dialogue, or the judge's own."""
        return 2 * self.depth + 1 if self.judge == "dialogue" else judge_calls(self, 1)


@dataclass(eq=False)
class Node:
    """A candidate reply, with what the search knows of it.

    The dialogue up to it is its parent's dialogue, the simulated user's message, and its reply.
    """

    path: tuple[int, ...]
    messages: Messages = ()
    reply: Reply | None = None
    level: int = 0
    terminal: bool = False
    visits: int = 0
    value: float = 0.0
    virtual: int = 0
    parent: Node | None = None
    children: list[Node] = attribute(default_factory=list)

    @property
    def mean(self) -> float:
        """The mean value of the rollouts through this node."""
        return self.value / self.visits if self.visits else 0.0

    def uct(self, exploration: float) -> float:
        """Upper confidence bound; +∞ before the first visit. Virtual visits count."""
        visits = self.visits + self.virtual
        if visits == 0 or self.parent is None:
            return math.inf
        parent = self.parent.visits + self.parent.virtual
        return self.value / visits + exploration * math.sqrt(math.log(max(parent, 1)) / visits)


class Tree:
    """The search tree: selection, expansion, backpropagation. Knows no model."""

    def __init__(self, exploration: float, depth: int) -> None:
        self.root = Node(())
        self.exploration = exploration
        self.depth = depth

    def expand(self, node: Node, dialogue: Messages, replies: Sequence[Reply]) -> None:
        """Give a node its children: the replies that may follow the dialogue."""
        for i, reply in enumerate(replies):
            said = (*dialogue, Message(reply.message))
            node.children.append(Node((*node.path, i), said, reply, node.level + 1, parent=node))

    def wave(self, size: int) -> list[Node]:
        """Claim up to ``size`` different leaves by UCT; fewer when all leaves are claimed."""
        claimed: list[Node] = []
        while len(claimed) < size:
            leaf = self._select(self.root, frozenset(claimed))
            if leaf is None:
                break
            claimed.append(leaf)
            self._virtual(leaf, 1)
        for leaf in claimed:
            self._virtual(leaf, -1)
        return claimed

    def expandable(self, leaf: Node) -> bool:
        """Whether the leaf was visited and may still grow."""
        return leaf.visits > 0 and leaf.level < self.depth and not leaf.terminal

    def backpropagate(self, node: Node | None, value: float) -> None:
        """Add a rollout's value to the node and to all above it."""
        while node is not None:
            node.visits += 1
            node.value += value
            node = node.parent

    def best(self) -> Node:
        """The root's most visited child; tie: higher mean, then lower index."""
        return max(self.root.children, key=lambda c: (c.visits, c.mean, -c.path[-1]))

    def to_dict(self) -> list[dict[str, Any]]:
        """JSON of all nodes but the root."""
        out, stack = [], list(reversed(self.root.children))
        while stack:
            node = stack.pop()
            stack.extend(reversed(node.children))
            text = node.reply.visible[:200] if node.reply else ""
            path = ".".join(map(str, node.path))
            out.append({"path": path, "visits": node.visits, "mean": node.mean, "text": text})
        return out

    def _select(self, node: Node, claimed: frozenset[Node]) -> Node | None:
        if not node.children:
            return None if node in claimed else node
        ranked = sorted(node.children, key=lambda c: (-c.uct(self.exploration), c.path[-1]))
        leaves = (self._select(child, claimed) for child in ranked)
        return next((leaf for leaf in leaves if leaf is not None), None)

    def _virtual(self, node: Node | None, amount: int) -> None:
        while node is not None:
            node.virtual += amount
            node = node.parent


def worst_calls(p: Params, sigma: Sigma) -> int:
    """σ(a), S rollouts, and one expansion for each simulation beyond a."""
    expansions = max(0, p.simulations - p.actions) if p.tree_depth > 1 else 0
    narrow = min(p.parallel or p.actions, p.simulations) < min(p.actions, p.simulations)
    if narrow and p.tree_depth > 1:
        expansions = p.simulations - 1
    return sigma(p.actions) + p.simulations * p.rollout_calls + expansions * (1 + sigma(p.actions))


@approach(
    "mcts",
    family="search",
    title="Monte Carlo tree search over the dialogue",
    paper="arXiv:2405.00451",
    calls="σ(a) + S(2d+1) + (1+σ(a))·max(0, S−a); with another judge, its calls instead of 2d+1",
    depth="2d+2 if S ≤ a; 4d+5 if a < S ≤ 2a (the judge's depth instead of 2d+1)",
    worst=worst_calls,
)
async def mcts(task: Task, llm: LLM, p: Params) -> Answer:
    """Search S rollouts deep for the reply that leads to the best dialogue."""
    samples = await llm.sample("mcts.sample", task.messages, p.actions, temperature=1)
    usable = [r for r in samples if r.usable]
    if len(usable) < 2:
        return Answer(tuple(usable))
    tree = Tree(p.exploration, p.tree_depth)
    tree.expand(tree.root, task.messages, usable)
    search = _Search(task, llm, p, tree)
    left = p.simulations
    while left > 0 and not llm.run.budget.ended:
        leaves = tree.wave(min(p.parallel or p.actions, left))
        values = await llm.gather(*(search.simulate(leaf) for leaf in leaves))
        for node, value in values:
            if value is not None:
                tree.backpropagate(node, value)
        left -= len(leaves)
        best = tree.best().reply
        if best is not None:
            llm.keep(best)
        await llm.note("mcts.tree", nodes=tree.to_dict(), best=list(tree.best().path))
    winner = tree.best().reply
    return Answer((winner,) if winner else ())


class _Search:
    def __init__(self, task: Task, llm: LLM, p: Params, tree: Tree) -> None:
        self.task, self.llm, self.p, self.tree = task, llm, p, tree

    async def simulate(self, leaf: Node) -> tuple[Node, float | None]:
        """Expand the leaf if it was visited, roll out from it, evaluate; no value if cut short."""
        try:
            node = await self._expanded(leaf) if self.tree.expandable(leaf) else leaf
            if self.p.judge != "dialogue":
                return node, await self._judged(node)
            dialogue = node.messages
            tag = ".".join(map(str, node.path))
            if not node.terminal:
                dialogue = await self._rollout(dialogue, tag)
            return node, await self._evaluate(dialogue, tag)
        except BudgetExceeded:
            return leaf, None

    async def _expanded(self, leaf: Node) -> Node:
        tag = ".".join(map(str, leaf.path))
        said = await self._next_user(leaf.messages, tag)
        if said is None:
            leaf.terminal = True
            return leaf
        dialogue = (*leaf.messages, user(said))
        replies = await self.llm.sample("mcts.sample", dialogue, self.p.actions, temperature=1, tag=tag)
        usable = [r for r in replies if r.usable]
        if not usable:
            leaf.terminal = True
            return leaf
        self.tree.expand(leaf, dialogue, usable)
        return leaf.children[0]

    async def _rollout(self, dialogue: Messages, tag: str) -> Messages:
        for _ in range(self.p.depth):
            said = await self._next_user(dialogue, tag)
            if said is None:
                break
            asked = (*dialogue, user(said))
            reply = await self.llm.attempt(self.llm.sample("mcts.reply", asked, 1, temperature=1, tag=tag))
            if reply is None or not reply[0].visible:
                break
            dialogue = (*asked, assistant(reply[0].visible))
        return dialogue

    async def _next_user(self, dialogue: Messages, tag: str) -> str | None:
        """What the user would most plausibly say next; None if they would be done."""
        prompt = helper(
            "You play the user of an assistant, and write only what that user would say.",
            self.task.with_messages(dialogue),
            "Write the message that this user would most plausibly send next. If the user would have "
            f"nothing more to say, write {END} and nothing else.",
            self.llm.nonce,
        )
        reply = await self.llm.try_ask("mcts.user", prompt, temperature=1, cap="intermediate", tag=tag)
        said = reply.visible if reply else ""
        return None if END in said else said or PLEASE_CONTINUE

    async def _judged(self, node: Node) -> float | None:
        """The judge's score of the node's reply to the dialogue before it."""
        before = self.task.with_messages(node.messages[:-1])
        replies = (node.reply,) if node.reply else ()
        (value,) = await score(self.llm, before, replies, self.p, stage="mcts.eval")
        return self._known(value)

    async def _evaluate(self, dialogue: Messages, tag: str) -> float | None:
        prompt = helper(
            "You are an impartial judge of dialogues. You give a score from 0 (useless) to 1 (perfect).",
            self.task.with_messages(dialogue),
            "Judge how well the assistant serves the user over the whole conversation: is it correct, "
            "relevant, complete and helpful, measured by the user's original question and the system "
            "message? Give your reasons briefly, then end with one line of the form\nScore: <number>",
            self.llm.nonce,
        )
        reply = await self.llm.try_ask(
            "mcts.eval", prompt, temperature=0.1, model=self.p.judge_model, tag=tag
        )
        return self._known(parse_score(reply.text, 0, 1) if reply else None)

    def _known(self, value: float | None) -> float | None:
        """A value that could not be had counts as 0.5, unless the budget took it."""
        return 0.5 if value is None and not self.llm.run.budget.ended else value
