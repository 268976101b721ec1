"""The tree of rStar: slots of actions, UCT, waves, backpropagation, the choice. Knows no model.

A node is a step towards the answer, taken by one of five actions. Which actions may follow is a matter of
the action before; each is a slot of the node, and slots that nobody has claimed come before every child.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from optillm.core.answers import group_by_answer, same_answer

Action = Literal["A1", "A2", "A3", "A4", "A5"]

FOLLOWING: Mapping[Action | None, tuple[Action, ...]] = MappingProxyType(
    {
        None: ("A1", "A3", "A5", "A2"),
        "A5": ("A1", "A3", "A2"),
        "A3": ("A1", "A3", "A4", "A2"),
        "A4": ("A1", "A3", "A2"),
        "A1": ("A1", "A2"),
        "A2": (),
    }
)
"""The actions allowed after each (None: after the question), in the order in which they are tried."""
REPEATED: tuple[Action, ...] = ("A1", "A3")
"""The actions that a node may have several children by."""

_SENTENCE = re.compile(r"(?<=[.!?。！？])\s+|\n+")


def slots(action: Action | None, level: int, depth: int, width: int) -> list[Action]:
    """The children that a node may have, in the order in which they are tried.

    Args:
        action: which made the node; None for the root.
        level: of the node; the root's is 0.
        depth: levels of the tree below the root, the last of which holds A2 alone.
        width: children by A1 and by A3.
    """
    allowed = FOLLOWING[action]
    if level == depth - 1:
        return ["A2"] if "A2" in allowed else []
    return [*allowed, *(a for _ in range(width - 1) for a in REPEATED if a in allowed)]


@dataclass(eq=False)
class Node:
    """A step, with what the search knows of it.

    Args:
        action: what made it; None for the root.
        parent: the step before.
        free: its slots that nobody has claimed.
        text: what the model wrote; empty until it has.
        answer: the final answer that it states, or None.
        terminal: nothing follows it.
        pending: claimed, and not yet rewarded.
        reward: of a terminal node.
    """

    action: Action | None
    parent: Node | None
    free: list[Action]
    level: int = 0
    path: tuple[int, ...] = ()
    children: list[Node] = field(default_factory=list)
    text: str = ""
    answer: str | None = None
    truncated: bool = False
    terminal: bool = False
    pending: bool = False
    reward: float = 0.0
    visits: int = 0
    value: float = 0.0
    virtual: int = 0

    @property
    def mean(self) -> float:
        """The mean reward of the rollouts through this node."""
        return self.value / self.visits if self.visits else 0.0

    @property
    def lineage(self) -> list[Node]:
        """The nodes from the first step down to this one; the root is none."""
        nodes: list[Node] = []
        node: Node = self
        while node.parent is not None:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]

    def uct(self, c: float) -> float:
        """Upper confidence bound; virtual visits count as visits without a reward."""
        visits = self.visits + self.virtual
        if visits == 0 or self.parent is None:
            return math.inf
        around = self.parent.visits + self.parent.virtual
        return self.value / visits + c * math.sqrt(math.log(max(around, 1)) / visits)


class Tree:
    """The search tree.

    Args:
        depth: levels below the root.
        width: children by A1 and by A3 per node.
        c: exploration of UCT.
    """

    def __init__(self, depth: int, width: int, c: float) -> None:
        self.depth, self.width, self.c = depth, width, c
        self.root = Node(None, None, slots(None, 0, depth, width))

    def wave(self, size: int) -> list[Node]:
        """The starts of up to ``size`` rollouts that may run side by side; fewer when all else is pending.

        A start is a new node, to be written by the model, or a terminal one that UCT has led to again,
        whose reward counts once more.
        """
        starts: list[Node] = []
        while len(starts) < size:
            start = self._select()
            if start is None:
                break
            starts.append(start)
            self._virtual(start, 1)
        for start in starts:
            self._virtual(start, -1)
        return starts

    def follow(self, node: Node, rng: random.Random) -> Node | None:
        """The next node of a simulation: a random action but A2, and A2 where nothing else may follow."""
        if node.terminal or not node.free:
            return None
        going_on = list(dict.fromkeys(a for a in node.free if a != "A2"))
        return self._claim(node, rng.choice(going_on) if going_on else "A2")

    def backpropagate(self, leaf: Node, reward: float) -> None:
        """Add a rollout's reward to its leaf and to all nodes above, the root included."""
        node: Node | None = leaf
        while node is not None:
            node.visits += 1
            node.value += reward
            node.pending = False
            node = node.parent

    def nodes(self) -> Iterator[Node]:
        """All nodes but the root, a node before its children."""
        stack = self.root.children[::-1]
        while stack:
            node = stack.pop()
            yield node
            stack += node.children[::-1]

    def to_dict(self) -> list[dict[str, Any]]:
        """JSON of all nodes but the root."""
        return [
            {
                "path": ".".join(map(str, n.path)),
                "action": n.action,
                "visits": n.visits,
                "mean": n.mean,
                "answer": n.answer,
                "text": n.text[:200],
            }
            for n in self.nodes()
        ]

    def _select(self) -> Node | None:
        node = self.root
        while not node.terminal:
            if node.free:
                return self._claim(node, node.free[0])
            known = [child for child in node.children if not child.pending]
            if not known:
                return None
            # Of equals the first.
            node = max(known, key=lambda child: child.uct(self.c))
        return node

    def _claim(self, node: Node, action: Action) -> Node:
        node.free.remove(action)
        level = node.level + 1
        child = Node(
            action,
            node,
            slots(action, level, self.depth, self.width),
            level,
            (*node.path, len(node.children)),
            pending=True,
        )
        node.children.append(child)
        return child

    def _virtual(self, node: Node | None, amount: int) -> None:
        while node is not None:
            node.virtual += amount
            node = node.parent


def agreement(answer: str | None, terminals: Sequence[Node]) -> float:
    """The share of terminal nodes with the same answer."""
    if answer is None or not terminals:
        return 0.0
    return sum(n.answer is not None and same_answer(answer, n.answer) for n in terminals) / len(terminals)


def prefix_of(steps: Sequence[str], share: float) -> list[str]:
    """The beginning of a path, at least its last step (of a single step the last sentence) left out."""
    if len(steps) > 1:
        return list(steps[: min(len(steps) - 1, max(1, round(share * len(steps))))])
    sentences = [s for s in _SENTENCE.split(steps[0]) if s.strip()] if steps else []
    kept = min(len(sentences) - 1, max(1, round(share * len(sentences))))
    return [" ".join(sentences[:kept])] if kept > 0 else []


@dataclass
class Candidate:
    """A path that ends with an answer.

    Args:
        rollout: which one found it, from 0.
        consistent: the discriminator reaches its answer too; None if it was not asked.
    """

    node: Node
    rollout: int
    consistent: bool | None = None

    @property
    def answer(self) -> str:
        """The final answer."""
        return self.node.answer or ""


def select(candidates: Sequence[Candidate]) -> tuple[Candidate, list[dict[str, object]]]:
    """The candidate to answer with, and the votes: answers with the summed reward of their paths.

    Only consistent candidates vote, or all if none is. Of answers with equal reward the one with more
    paths wins, then the one found first; of its paths the one with the highest mean value.
    """
    pool = [c for c in candidates if c.consistent] or list(candidates)
    groups = [[pool[i] for i in group] for group in group_by_answer([c.answer for c in pool])]

    def weight(group: Sequence[Candidate]) -> tuple[float, int, int]:
        return sum(c.node.reward for c in group), len(group), -min(c.rollout for c in group)

    votes: list[dict[str, object]] = [
        {"answer": g[0].answer, "reward": weight(g)[0], "paths": len(g)} for g in groups
    ]
    best = max(groups, key=weight)
    return max(best, key=lambda c: (c.node.mean, -c.rollout)), votes
