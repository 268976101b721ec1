"""Router: choose the technique for each question, by what it is expected to gain and to cost.

A small model, trained on how techniques did on other questions, looks at the prompt (words, length, digits,
code, form of the question, script) and predicts for each technique the chance of a good answer and the cost.
The technique runs that has the most of *score − λ · cost*, where a cost of 1 is that of one plain reply and
λ = (1 − effort)⁴: at effort 1 only the score counts, at 0.7 ten more replies must bring 8 points of 100, at
0 the cheapest wins. So compute goes where it helps, as in compute-optimal scaling (arXiv:2408.03314): easy
questions get one reply, those of medium difficulty samples and a vote, hard ones a search with a verifier,
and questions where nothing helps one reply again. The question costs no call.

When it is less sure of its choice than ``router_confidence``, self-consistency runs: the chance that the
choice does at least as well was calibrated on questions of kinds that were not trained on.

``auto`` is another name of it: ``auto-gpt-4o``, or ``optillm_approach: auto`` in a request where neither the
server nor the name of the model chooses something.

Which techniques it can choose depends on the model; the one that comes with the package knows those whose
gain follows from sampling, judging or computing (see the page on the router). What this server cannot run
(no sandbox), what could take more calls than the server or the budget allows, and what
``router_approaches`` leaves out is no candidate. Parameters of the chosen technique are honoured; those of
the others are ignored with a warning. In a composition the question of the client decides, before anything
runs, and plain pass-through is no candidate. When the model cannot be used, the server's default runs, with
a warning. The trace shows all expectations; ``optillm.routed_to`` and ``X-Optillm-Routed-To`` the choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from optillm.core.params import ApproachParams, field
from optillm.core.registry import routing
from optillm.core.routing.features import features
from optillm.core.routing.model import FALLBACK, Confidence, Estimate
from optillm.core.routing.scene import Decision, Scene
from optillm.core.task import Task
from optillm.protocol.errors import InvalidRequest


class Params(ApproachParams):
    """Parameters of ``router``."""

    effort: float = field(0.7, "what a better answer may cost: 0 the cheapest, 1 the best", ge=0, le=1)
    approaches: tuple[str, ...] = field(
        (), "the only candidates, by name or as the model spells them; empty: all that it knows", le=64
    )
    confidence: float = field(0.5, "with less of it self_consistency runs", ge=0, le=1)


def price(effort: float) -> float:
    """λ: the score that one more plain reply must bring."""
    return float((1 - effort) ** 4)


def best(estimates: Sequence[Estimate], price: float) -> Estimate:
    """The candidate with the most score left after its cost; of equals the cheaper one."""
    return max(estimates, key=lambda e: (e.score - price * e.cost, -e.cost))


def rival_of(choice: Estimate, estimates: Sequence[Estimate], price: float) -> Estimate | None:
    """With whom a choice is compared to tell how sure it is: the fall-back, else the next best."""
    others = [e for e in estimates if e is not choice]
    return next((e for e in others if e.approach == FALLBACK), best(others, price) if others else None)


@dataclass(frozen=True)
class Pick:
    """Who is picked, how sure that is, and why."""

    choice: Estimate
    confidence: float
    reason: str


def pick(
    estimates: Sequence[Estimate], confidence: Confidence, familiar: float, price: float, threshold: float
) -> Pick:
    """The best candidate for its price, or the fall-back if that is not sure.

    Args:
        estimates: of those who can run, one or more.
        confidence: of the model.
        familiar: how familiar the prompt is to it, 0 to 1.
        price: λ.
        threshold: the confidence below which the fall-back is picked.
    """
    choice = best(estimates, price)
    rival = rival_of(choice, estimates, price)
    if rival is None:
        return Pick(choice, 1.0, "the only candidate")
    sure = confidence.of(margin(choice, rival, price), familiar)
    if rival.approach == FALLBACK and sure < threshold:
        return Pick(rival, sure, "not sure enough that another one is better")
    return Pick(choice, sure, "the best score for its cost")


def margin(choice: Estimate, rival: Estimate, price: float) -> float:
    """By how much a choice is expected to be worth more than its rival."""
    return (choice.score - price * choice.cost) - (rival.score - price * rival.cost)


@routing(
    "router",
    family="routing",
    title="Router: the technique that fits the question",
    paper="arXiv:2408.03314",
    calls="those of the chosen technique",
    depth="that of the chosen technique",
)
def router(task: Task, p: Params, scene: Scene) -> Decision:
    """Estimate every candidate, take the best for its price, or the fall-back if that is not sure."""
    seen, costs = features(task), price(p.effort)
    estimates = scene.model.estimates(seen)
    left_out = _left_out(p, scene)
    able = [e for e in estimates if e.approach not in left_out]
    # Where the budget is too small for any of them, the cheapest gets furthest.
    rivals = [e for e in able if e.approach not in scene.dear] or sorted(able, key=lambda e: e.cost)[:1]
    if not rivals:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise InvalidRequest(
            f"the router has no technique to choose from: {reasons}",
            param="router_approaches",
            code="no_candidate",
        )
    familiar = scene.model.familiar(seen)
    picked = pick(rivals, scene.model.confidence, familiar, costs, p.confidence)
    alone = next(e for e in estimates if e.approach == scene.model.baseline)
    return Decision(
        picked.choice.approach,
        {
            "choice": picked.choice.approach,
            "reason": picked.reason,
            "confidence": round(picked.confidence, 4),
            "effort": p.effort,
            "price": round(costs, 6),
            "difficulty": round(1 - alone.score, 4),
            "familiar": round(familiar, 4),
            "candidates": [_shown(e, alone, costs) for e in rivals],
            "left_out": {**{e.approach: scene.dear[e.approach] for e in able if e not in rivals}, **left_out},
        },
    )


def _left_out(p: Params, scene: Scene) -> dict[str, str]:
    """Who is no candidate, and why.

    Raises:
        InvalidRequest: a name that the model does not know.
    """
    known = scene.model.approaches
    for name in p.approaches:
        if not any(named(name, approach) for approach in known):
            raise InvalidRequest(
                f"the router knows nothing of '{name[:100]}'; it knows {', '.join(known)}",
                param="router_approaches",
                code="unknown_candidate",
            )
    unwanted = {
        approach: "not in router_approaches"
        for approach in known
        if p.approaches and not any(named(name, approach) for name in p.approaches)
    }
    return {**dict(scene.closed), **unwanted}


def named(name: str, approach: str) -> bool:
    """Whether a name means a candidate: spelled out, or by its slug alone."""
    spelled, meant = "".join(name.split()), "".join(approach.split())
    return spelled == meant or spelled == meant.partition("(")[0]


def _shown(e: Estimate, alone: Estimate, price: float) -> dict[str, float | str]:
    return {
        "approach": e.approach,
        "score": round(e.score, 4),
        "gain": round(e.score - alone.score, 4),
        "cost": round(e.cost, 2),
        "worth": round(e.score - price * e.cost, 4),
    }
