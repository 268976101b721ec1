"""Judges, through ``bon`` and ``mcts``: what they ask, what they cost, whom they prefer."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from tests.fakes import Fault, Said, ScriptedUpstream, Seen
from tests.serving import Answer, serving

pytestmark = pytest.mark.anyio

ROLES = {
    "impartial referee": "compare",
    "verifier who checks": "aspect",
    "strict examiner": "verify",
    "write checklists": "checklist",
    "mark replies": "mark",
}
SAMPLES = ("poor c0", "good c1", "fair c2")
QUALITY = {"poor": 1, "fair": 2, "good": 3}


def shown(call: Seen, mark: str) -> str:
    """The word of quality between the marks of that name."""
    found = re.search(rf"<{mark}-[0-9a-f]+>\n(\w+)", call.last)
    assert found, call.last
    return found[1]


def judged(script: Callable[[Seen], Said]) -> ScriptedUpstream:
    def whole(call: Seen) -> Said:
        return list(SAMPLES) if call.stage == "sample" else script(call)

    return ScriptedUpstream(whole, roles=ROLES)


async def best(up: ScriptedUpstream, model: str = "bon-m", **fields: object) -> Answer:
    async with up, serving(up) as proxy:
        return await proxy.ask(model, "Which one?", **fields)


def referee(call: Seen) -> Said:
    first, second = QUALITY[shown(call, "first")], QUALITY[shown(call, "second")]
    return f"Because.\n**Verdict:** {'first' if first > second else 'second'}"


async def test_pairwise_compares_every_pair_in_both_orders() -> None:
    up = judged(referee)
    answer = await best(up, bon_judge="pairwise")
    assert (answer.text, answer.info["calls"], answer.info["depth"]) == ("good c1", 1 + 6, 2)
    asked = {(shown(c, "first"), shown(c, "second")) for c in up.of("compare")}
    assert len(asked) == 6


async def test_pairwise_verdicts_that_follow_the_position_are_ties() -> None:
    assert (await best(judged(lambda c: "Verdict: first"), bon_judge="pairwise")).text == "poor c0"


async def test_pairwise_without_verdicts_leaves_the_first() -> None:
    assert (await best(judged(lambda c: "dunno"), bon_judge="pairwise")).text == "poor c0"


async def test_aspects_vote() -> None:
    def verifier(call: Seen) -> Said:
        quality = QUALITY[shown(call, "candidate")]
        return f"Verdict: {'yes' if quality == 3 or (quality == 2 and 'tone' in call.last) else 'no'}"

    up = judged(verifier)
    answer = await best(up, bon_judge="aspects", bon_judge_aspects=["the tone fits", "it is true"])
    assert (answer.text, answer.info["calls"], answer.info["depth"]) == ("good c1", 1 + 3 * 2, 2)
    up = judged(verifier)
    assert (await best(up, bon_judge="aspects")).info["calls"] == 1 + 3 * 5


async def test_verify_repeats_and_takes_the_share() -> None:
    counted: dict[str, int] = {}

    def examiner(call: Seen) -> Said:
        quality = shown(call, "candidate")
        counted[quality] = counted.get(quality, 0) + 1
        return "Verdict: yes" if counted[quality] <= QUALITY[quality] else "Verdict: no"

    answer = await best(judged(examiner), bon_judge="verify", bon_judge_samples=4)
    assert (answer.text, answer.info["calls"]) == ("good c1", 1 + 3 * 4)
    assert counted == {"poor": 4, "good": 4, "fair": 4}


async def test_verify_checks_five_times_by_default() -> None:
    assert (await best(judged(lambda c: "Verdict: no"), bon_judge="verify")).info["calls"] == 1 + 15


async def test_checklist_is_made_once_and_marked_for_each() -> None:
    def marker(call: Seen) -> Said:
        if call.stage == "checklist":
            return "Here it is:\n1. Is it right?\n2. Is it short?\n3. Is it kind?"
        assert "2. Is it short?" in call.last
        return "\n".join(
            f"{i}: {'yes' if i <= QUALITY[shown(call, 'candidate')] else 'no'}" for i in (1, 2, 3)
        )

    up = judged(marker)
    answer = await best(up, bon_judge="checklist")
    assert (answer.text, answer.info["calls"], answer.info["depth"]) == ("good c1", 1 + 1 + 3, 3)
    assert len(up.of("checklist")) == 1


@pytest.mark.parametrize("checklist", ["no list at all", Fault(status=500)])
async def test_without_a_checklist_nobody_is_rated(checklist: Said) -> None:
    answer = await best(judged(lambda c: checklist), bon_judge="checklist")
    assert (answer.text, answer.info["calls"]) == ("poor c0", 2)


@pytest.mark.parametrize(
    ("judge", "asks"),
    [("absolute", 1), ("aspects", 5), ("verify", 5), ("checklist", 2)],
)
async def test_mcts_values_nodes_by_another_judge(judge: str, asks: int) -> None:
    def script(call: Seen) -> Said:
        if call.stage == "checklist":
            return "1. Is it right?"
        quality = QUALITY[shown(call, "candidate")]
        return {"rate": f"Score: {quality}", "mark": f"1: {'yes' if quality == 3 else 'no'}"}.get(
            call.stage, f"Verdict: {'yes' if quality == 3 else 'no'}"
        )

    up = judged(script)
    answer = await best(up, f"mcts(judge={judge},simulations=3)-m")
    assert (answer.text, answer.info["calls"]) == ("good c1", 1 + 3 * asks)
    assert up.of("user") == [], "only the dialogue judge reads simulated exchanges"


async def test_mcts_has_no_pair_to_compare() -> None:
    answer = await best(judged(referee), "mcts(judge=pairwise)-m")
    assert (answer.status, answer.error["param"]) == (400, "mcts_judge")
    assert "'dialogue', 'absolute'" in answer.error["message"]


async def test_exact_needs_its_reference() -> None:
    up = judged(referee)
    answer = await best(up, bon_judge="exact")
    assert (answer.status, answer.error["param"]) == (400, "bon_judge_reference")
    assert up.calls == []


# -- judges that ask no language model --------------------------------------------------------------

ADD = "```python\ndef add(a, b):\n    return a {} b\n```"


async def test_the_requests_own_tests_decide() -> None:
    up = ScriptedUpstream(lambda c: [ADD.format(o) for o in "-+*"])
    async with up, serving(up) as proxy:
        question = "Write add.\nassert add(1, 2) == 3\nassert add(2, 2) == 4"
        answer = await proxy.ask("bon(judge=tests)-m", question)
        run = (await proxy.get(f"/v1/runs/{answer.info['run_id']}")).json
    assert (answer.text, answer.info["calls"]) == (ADD.format("+"), 1)
    assert next(r for r in run["records"] if r.get("name") == "bon.scores")["data"]["scores"] == [
        0.0,
        1.0,
        0.5,
    ]


async def test_without_tests_the_model_writes_some() -> None:
    def script(call: Seen) -> Said:
        if call.stage == "tests":
            return "```python\nassert add(5, 1) == 6\n```"
        return [ADD.format(o) for o in "-+*"]

    up = ScriptedUpstream(script, roles={"write tests": "tests"})
    async with up, serving(up) as proxy:
        answer = await proxy.ask("bon(judge=tests)-m", "Write add.")
    assert (answer.text, answer.info["calls"], answer.info["depth"]) == (ADD.format("+"), 2, 2)


async def test_mcts_takes_tests() -> None:
    up = ScriptedUpstream(lambda c: [ADD.format(o) for o in "-*+"])
    async with up, serving(up) as proxy:
        answer = await proxy.ask("mcts(judge=tests,simulations=3)-m", "Write add.\nassert add(1, 2) == 3")
    assert (answer.text, answer.info["calls"]) == (ADD.format("+"), 1)


@pytest.mark.parametrize(
    ("reference", "right"),
    [("42", "The answer is 42."), ("1/2", r"So \boxed{\frac{2}{4}}"), (r"2\sqrt{2}", r"So \boxed{\sqrt{8}}")],
)
async def test_exact_compares_as_mathematics(reference: str, right: str) -> None:
    up = ScriptedUpstream(lambda c: ["The answer is 7.", right, "no idea at all, sorry for that, I gave up"])
    async with up, serving(up) as proxy:
        answer = await proxy.ask("bon(judge=exact)-m", bon_judge_reference=reference)
    assert (answer.text, answer.info["calls"]) == (right, 1)


async def test_code_is_never_run_where_there_is_no_sandbox() -> None:
    async with ScriptedUpstream("x") as up, serving(up, sandbox="off") as proxy:
        answer = await proxy.ask("bon(judge=tests)-m")
        assert (answer.status, answer.error["code"]) == (501, "not_configured")
        assert "--sandbox" in answer.error["message"]
    assert up.calls == []


# -- a reward model ---------------------------------------------------------------------------------


class Rewards:
    """A reward model's server: the length of the last message, in the shape of one of the servers."""

    def __init__(self, shape: Callable[[float], object]) -> None:
        self.shape = shape
        self.seen: list[dict[str, object]] = []

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        async def score(request: web.Request) -> web.Response:
            body = await request.json()
            self.seen.append({**body, "key": request.headers.get("Authorization")})
            said = self.shape(len(body["messages"][-1]["content"]))
            return web.json_response(said, status=200 if said is not None else 500)

        app = web.Application()
        app.router.add_post("/score", score)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        try:
            yield f"http://{host}:{port}/score"
        finally:
            await runner.cleanup()


@pytest.mark.parametrize(
    "shape",
    [
        lambda x: {"score": x},
        lambda x: {"scores": [x]},
        lambda x: {"data": [{"index": 0, "score": x}]},
        lambda x: {"data": [{"data": [-5.0, x]}]},
    ],
)
async def test_a_reward_model_decides(shape: Callable[[float], object]) -> None:
    rewards = Rewards(shape)
    async with (
        rewards.serving() as url,
        ScriptedUpstream(lambda c: ["a", "the longest", "longer"]) as up,
        serving(up, reward_url=url, reward_key="secret", reward_model="rm") as proxy,
    ):
        answer = await proxy.ask("bon(judge=reward)-m", "Which?")
        run = (await proxy.get(f"/v1/runs/{answer.info['run_id']}")).json
    assert (answer.text, answer.info["calls"], answer.info["depth"]) == ("the longest", 4, 2)
    assert {(s["model"], s["key"]) for s in rewards.seen} == {("rm", "Bearer secret")}
    assert rewards.seen[0]["messages"][0] == {"role": "user", "content": "Which?"}  # type: ignore[index]
    scored = [r["score"] for r in run["records"] if r.get("stage") == "bon.rate"]
    assert sorted(scored) == [1.0, 6.0, 11.0]


@pytest.mark.parametrize("shape", [lambda x: None, lambda x: {"no": "score"}, lambda x: {"score": "high"}])
async def test_a_broken_reward_model_loses_nothing(shape: Callable[[float], object]) -> None:
    async with (
        Rewards(shape).serving() as url,
        ScriptedUpstream(lambda c: ["a", "b", "c"]) as up,
        serving(up, reward_url=url) as proxy,
    ):
        assert (await proxy.ask("bon(judge=reward)-m")).text == "a"


async def test_without_a_reward_model_it_is_refused() -> None:
    async with ScriptedUpstream("x") as up, serving(up) as proxy:
        answer = await proxy.ask("mcts(judge=reward)-m")
        assert (answer.status, answer.error["code"]) == (501, "not_configured")
        assert "--reward-url" in answer.error["message"]
    assert up.calls == []
