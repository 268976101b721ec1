"""Best of n: the acceptance cases of its specification."""

from __future__ import annotations

import asyncio

import pytest

from tests.fakes import Fault, Reply, Said, ScriptedUpstream, Seen, refusal
from tests.serving import serving

pytestmark = pytest.mark.anyio


def rated(*ratings: str, candidates: tuple[Reply | str, ...] = ("c0", "c1", "c2")) -> ScriptedUpstream:
    """Candidates, and a rating for each by its text."""
    texts = [c.text if isinstance(c, Reply) else c for c in candidates]

    def script(call: Seen) -> Said:
        if call.stage == "sample":
            return list(candidates)
        return next(r for t, r in zip(texts, ratings, strict=False) if f"\n{t}\n" in call.text)

    return ScriptedUpstream(script)


async def test_highest_rating_wins() -> None:
    async with rated("3", "9/10", "Rating: 5") as up, serving(up) as proxy:
        answer = await proxy.ask("bon-test-model")
        assert answer.text == "c1"
        assert up.stages() == ["rate", "rate", "rate", "sample"]
        assert (answer.info["calls"], answer.info["depth"]) == (4, 2)


async def test_not_a_number_is_no_rating() -> None:
    async with rated("inf", "7", "nan") as up, serving(up) as proxy:
        assert (await proxy.ask("bon-test-model")).text == "c1"


async def test_all_unrated_gives_the_first() -> None:
    async with rated("great", "great", "great") as up, serving(up) as proxy:
        assert (await proxy.ask("bon-test-model")).text == "c0"


async def test_truncated_candidate_is_not_even_rated() -> None:
    candidates = (Reply("c0", finish="length"), "c1", "c2")
    async with rated("10", "6", "4", candidates=candidates) as up, serving(up) as proxy:
        answer = await proxy.ask("bon-test-model")
        assert answer.text == "c1"
        assert len(up.calls) == 3
        assert answer.json["usage"]["completion_tokens"] == 3 + 2


async def test_upstream_refusal_reaches_the_client_after_one_call() -> None:
    async with ScriptedUpstream(refusal(401, "no such key")) as up, serving(up) as proxy:
        answer = await proxy.ask("bon-test-model")
        assert answer.status == 401
        assert "upstream" in answer.error["message"]
        assert len(up.calls) == 1


async def test_upstream_that_ignores_n_is_learned() -> None:
    def script(call: Seen) -> Said:
        return "5" if call.stage == "rate" else f"c{call.body['seed']}"

    async with ScriptedUpstream(script, n_mode="ignore") as up, serving(up) as proxy:
        assert (await proxy.ask("bon-test-model", seed=10)).info["calls"] == 6
        assert (await proxy.ask("bon-test-model", seed=10)).info["calls"] == 6
        samples = up.of("sample")
        assert [c.n for c in samples] == [3, 1, 1, 1, 1, 1]
        assert sorted(c.body["seed"] for c in samples[3:]) == [10, 11, 12]


async def test_upstream_that_rejects_n_is_learned() -> None:
    def script(call: Seen) -> Said:
        return "5" if call.stage == "rate" else f"c{call.body['seed']}"

    async with ScriptedUpstream(script, n_mode="reject") as up, serving(up) as proxy:
        assert (await proxy.ask("bon-test-model", seed=1)).info["calls"] == 1 + 3 + 3
        assert (await proxy.ask("bon-test-model", seed=1)).info["calls"] == 3 + 3


async def test_equal_candidates_are_rated_once() -> None:
    async with rated("3", "9", candidates=("c0", "c1", "c1")) as up, serving(up) as proxy:
        assert (await proxy.ask("bon-test-model")).text == "c1"
        assert len(up.calls) == 3


async def test_a_failing_rating_does_not_lose_the_candidates() -> None:
    def script(call: Seen) -> Said:
        if call.stage == "sample":
            return ["c0", "c1", "c2"]
        return Fault(status=500) if "\nc1\n" in call.text else "4"

    async with ScriptedUpstream(script) as up, serving(up) as proxy:
        assert (await proxy.ask("bon-test-model")).text == "c0"


async def test_two_at_once_each_with_its_own_n() -> None:
    def script(call: Seen) -> Said:
        return "5" if call.stage == "rate" else [f"c{i}" for i in range(call.n)]

    async with ScriptedUpstream(script) as up, serving(up) as proxy:
        a, b = await asyncio.gather(
            proxy.ask("bon-test-model", "marker-a", best_of_n=2),
            proxy.ask("bon-test-model", "marker-b", best_of_n=5),
        )
        assert (len(up.stages(marker="marker-a")), len(up.stages(marker="marker-b"))) == (3, 6)
        assert (a.info["calls"], b.info["calls"]) == (3, 6)
        assert (a.info["params"]["bon"]["n"], b.info["params"]["bon"]["n"]) == (2, 5)
