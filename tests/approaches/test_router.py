"""The router: what it chooses, why, what it tells, and what cannot be chosen."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from optillm.approaches.routing.router import best, named, pick, price
from optillm.core.routing.features import BUCKETS, DENSE, WORDS, features
from optillm.core.routing.model import (
    SHIPPED,
    Confidence,
    Estimate,
    Head,
    ModelFileError,
    RoutingModel,
    load,
    render,
)
from optillm.core.task import Task
from optillm.core.tools import Tools
from optillm.library import solve
from tests.fakes import Reply, Said, ScriptedUpstream, Seen
from tests.serving import Answer, Proxy, serving

pytestmark = pytest.mark.anyio

SURE, UNSURE = Confidence(9.0, 0.0, 0.0), Confidence(-9.0, 0.0, 0.0)
CODE = "Write a function.\n```python\n```"
"""A question that the models of these tests tell from others by its code."""
PLAIN = "What is 2+2?"


def head(approach: str, score: float, cost: float, *, with_code: float | None = None) -> Head:
    """A candidate with one score for questions with code and another one for all else."""
    other = score if with_code is None else with_code
    dense = tuple(float(name == "code") for name in DENSE)
    return Head(
        approach=approach,
        bias=0.0,
        dense=dense,
        hashed=(0.0,) * BUCKETS,
        steps=((0.0, score), (1.0, other)),
        cost_bias=0.0,
        cost_dense=(0.0,) * len(DENSE),
        cost_range=(cost, cost),
    )


def model(*heads: Head, confidence: Confidence = SURE) -> RoutingModel:
    return RoutingModel(heads, heads[0].approach, confidence, bytes(WORDS // 8), {})


def written(folder: Path, *heads: Head, confidence: Confidence = SURE) -> str:
    """A model's file."""
    return changed(folder, model(*heads, confidence=confidence), {})


def changed(folder: Path, some: RoutingModel, changes: Mapping[str, Any]) -> str:
    """A model's file with something in its JSON changed."""
    path = folder / "model.json"
    path.write_text(json.dumps({**json.loads(render(some)), **changes}))
    return str(path)


NONE, SC = head("none", 0.5, 1), head("self_consistency", 0.6, 5)
BON = head("bon", 0.4, 6, with_code=0.9)


def anything(call: Seen) -> Said:
    if call.stage == "rate":
        return "Score: 5"
    return [f"The answer is {i}" for i in range(call.n)]


def choice(answer: Answer) -> Mapping[str, Any]:
    return {"approach": answer.info["approach"], "to": answer.info.get("routed_to")}


async def why(proxy: Proxy, answer: Answer) -> Any:
    """What the router says in the trace about its only choice."""
    run = (await proxy.get(f"/v1/runs/{answer.info['run_id']}")).json
    (note,) = [r["data"] for r in run["records"] if r["kind"] == "note" and r["name"] == "router.choice"]
    return note


# -- the decision --------------------------------------------------------------------------------


def test_the_price_of_a_reply_falls_with_effort() -> None:
    assert (price(0), price(1)) == (1, 0)
    assert price(0.7) == pytest.approx(0.0081)
    assert price(0.2) > price(0.5) > price(0.9)


def test_the_best_is_worth_most_after_its_cost() -> None:
    cheap, dear = Estimate("none", 0.6, 1), Estimate("mcts", 0.9, 30)
    assert best((cheap, dear), 0.0) is dear
    assert best((cheap, dear), 0.3 / 29 - 1e-9) is dear
    assert best((cheap, dear), 0.3 / 29 + 1e-9) is cheap
    same = Estimate("bon", 0.9, 6)
    assert best((dear, same), 0.0) is same


def test_an_unsure_choice_gives_way_to_the_fall_back() -> None:
    some = (Estimate("none", 0.6, 1), Estimate("self_consistency", 0.61, 5), Estimate("bon", 0.9, 6))
    curve = Confidence(-1.0, 10.0, 1.0)
    sure = curve.of((0.9 - 0.01 * 6) - (0.61 - 0.01 * 5), 0.5)
    assert pick(some, curve, 0.5, 0.01, sure - 0.01).choice.approach == "bon"
    assert pick(some, curve, 0.5, 0.01, sure + 0.01).choice.approach == "self_consistency"
    assert pick(some, curve, 0.5, 0.01, sure + 0.01).confidence == pytest.approx(sure)
    # Nothing to fall back on, or nothing else.
    assert pick((some[0], some[2]), UNSURE, 0.5, 0.01, 1.0).choice.approach == "bon"
    assert pick(some[:1], UNSURE, 0.5, 0.01, 1.0).confidence == 1
    assert pick(some[1:2], UNSURE, 0.5, 0.01, 1.0).choice.approach == "self_consistency"


def test_names_of_candidates() -> None:
    assert named("bon", "bon(n=8,judge=verify)")
    assert named("bon( n=8, judge=verify )", "bon(n=8,judge=verify)")
    assert not named("bon(n=4)", "bon(n=8,judge=verify)")
    assert not named("bo", "bon")


# -- what runs -----------------------------------------------------------------------------------


async def test_the_question_decides(tmp_path: Path) -> None:
    path = written(tmp_path, NONE, BON, confidence=SURE)
    async with ScriptedUpstream(anything) as up, serving(up, router_model=path) as proxy:
        plain = await proxy.ask("router-m", PLAIN)
        assert choice(plain) == {"approach": "router", "to": "none"}
        assert (plain.info["model"], plain.info["calls"], len(up.calls)) == ("m", 1, 1)
        assert up.calls[0].body == {"model": "m", "messages": [{"role": "user", "content": PLAIN}]}
        assert plain.headers["X-Optillm-Approach"] == "router"
        assert plain.headers["X-Optillm-Routed-To"] == "none"
        up.calls.clear()
        coded = await proxy.ask("m", CODE, optillm_approach="router")
        assert choice(coded) == {"approach": "router", "to": "bon"}
        assert up.stages() == ["rate", "rate", "rate", "sample"]
        assert coded.info["params"]["bon"]["n"] == 3
        assert coded.info["params"]["router"] == {"effort": 0.7, "approaches": [], "confidence": 0.5}
        assert coded.headers["X-Optillm-Routed-To"] == "bon"
        assert "X-Optillm-Routed-To" not in (await proxy.ask("m", CODE, optillm_approach="bon")).headers


async def test_the_trace_tells_why(tmp_path: Path) -> None:
    path = written(tmp_path, NONE, SC, BON, head("z3", 0.99, 2))
    async with (
        ScriptedUpstream(anything) as up,
        serving(up, router_model=path, sandbox="off") as proxy,
    ):
        answer = await proxy.ask("router-m", CODE)
        said = await why(proxy, answer)
        assert (said["choice"], said["reason"]) == ("bon", "the best score for its cost")
        assert (said["effort"], said["price"], said["difficulty"]) == (0.7, 0.0081, 0.5)
        assert said["confidence"] == pytest.approx(1, abs=1e-3)
        assert said["candidates"] == [
            {"approach": "none", "score": 0.5, "gain": 0, "cost": 1, "worth": 0.4919},
            {"approach": "self_consistency", "score": 0.6, "gain": 0.1, "cost": 5, "worth": 0.5595},
            {"approach": "bon", "score": 0.9, "gain": 0.4, "cost": 6, "worth": 0.8514},
        ]
        assert list(said["left_out"]) == ["z3"]
        assert "--sandbox" in said["left_out"]["z3"]


async def test_effort_of_the_request_and_of_the_server(tmp_path: Path) -> None:
    path = written(tmp_path, NONE, SC)
    async with (
        ScriptedUpstream(anything) as up,
        serving(up, router_model=path, params={"router": {"effort": 0.0}}) as proxy,
    ):
        assert (await proxy.ask("router-m")).info["routed_to"] == "none"
        assert (await proxy.ask("router-m", router_effort=0.9)).info["routed_to"] == "self_consistency"
        assert (await proxy.ask("router(effort=0.9)-m")).info["routed_to"] == "self_consistency"
        nested = {"approach": "router", "params": {"effort": 0.9}}
        assert (await proxy.ask("m", optillm=nested)).info["routed_to"] == "self_consistency"


async def test_low_confidence_falls_back(tmp_path: Path) -> None:
    path = written(tmp_path, NONE, SC, BON, confidence=UNSURE)
    async with ScriptedUpstream(anything) as up, serving(up, router_model=path) as proxy:
        answer = await proxy.ask("router-m", CODE)
        assert answer.info["routed_to"] == "self_consistency"
        assert (await why(proxy, answer))["reason"].startswith("not sure enough")
        assert (await proxy.ask("router-m", CODE, router_confidence=0)).info["routed_to"] == "bon"
        only = await proxy.ask("router-m", CODE, router_approaches=["none", "bon"])
        assert only.info["routed_to"] == "bon"


async def test_only_the_candidates_that_are_wanted(tmp_path: Path) -> None:
    verify = head("bon(n=8,judge=verify)", 0.95, 6)
    path = written(tmp_path, NONE, SC, BON, verify)
    async with ScriptedUpstream(anything) as up, serving(up, router_model=path) as proxy:
        assert (await proxy.ask("router-m", CODE)).info["routed_to"] == "bon(n=8,judge=verify)"
        for names, to in (
            (["none", "self_consistency"], "self_consistency"),
            (["none"], "none"),
            (["bon( n=8, judge=verify )"], "bon(n=8,judge=verify)"),
        ):
            answer = await proxy.ask("router-m", CODE, router_approaches=names)
            assert answer.info["routed_to"] == to
        up.calls.clear()
        unknown = await proxy.ask("router-m", CODE, router_approaches=["none", "moa"])
        assert (unknown.status, unknown.error["param"]) == (400, "router_approaches")
        assert (
            "'moa'; it knows none, self_consistency, bon, bon(n=8,judge=verify)" in unknown.error["message"]
        )
        assert up.calls == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"router_effort": 1.1}, "router_effort"),
        ({"router_effort": "high"}, "router_effort"),
        ({"router_confidence": -0.1}, "router_confidence"),
        ({"router_approaches": "bon"}, "router_approaches"),
        ({"best_of_n": 0}, "best_of_n"),
        ({"bon_judge": "exact"}, "bon_judge_reference"),
    ],
)
async def test_bad_parameters_cost_no_call(tmp_path: Path, fields: dict[str, Any], param: str) -> None:
    path = written(tmp_path, NONE, BON)
    async with ScriptedUpstream(anything) as up, serving(up, router_model=path) as proxy:
        answer = await proxy.ask("router-m", **fields)
        assert (answer.status, answer.error["param"]) == (400, param)
        assert up.calls == []


async def test_parameters_of_the_chosen_one_are_honoured(tmp_path: Path) -> None:
    path = written(tmp_path, NONE, BON)
    async with ScriptedUpstream(anything) as up, serving(up, router_model=path) as proxy:
        answer = await proxy.ask("router-m", CODE, best_of_n=2, mcts_depth=3, temperature=0.5)
        assert answer.info["params"]["bon"]["n"] == 2
        assert up.stages() == ["rate", "rate", "sample"]
        assert answer.info["warnings"] == ["mcts_depth ignored: mcts not running"]
        up.calls.clear()
        # Another one runs: said, and not sent on.
        plain = await proxy.ask("router-m", PLAIN, best_of_n=2)
        assert plain.info["warnings"] == ["parameters of bon ignored (n): routed to none"]
        assert "best_of_n" not in up.calls[0].body


async def test_a_parameter_beats_the_spelling_of_a_candidate(tmp_path: Path) -> None:
    path = written(tmp_path, NONE, head("bon(n=8,judge=verify)", 0.9, 6))
    async with ScriptedUpstream(anything) as up, serving(up, router_model=path) as proxy:
        answer = await proxy.ask("router-m", best_of_n=2)
        assert answer.info["routed_to"] == "bon(judge=verify)"
        assert answer.info["params"]["bon"]["n"] == 2


# -- what cannot run -----------------------------------------------------------------------------


async def test_what_takes_too_many_calls_is_no_candidate(tmp_path: Path) -> None:
    path = written(tmp_path, NONE, SC, BON)
    async with (
        ScriptedUpstream(anything) as up,
        serving(up, router_model=path, max_upstream_calls=5, n_mode="fanout") as proxy,
    ):
        answer = await proxy.ask("router-m", CODE)
        assert answer.info["routed_to"] == "self_consistency"
        left_out = (await why(proxy, answer))["left_out"]
        assert left_out == {"bon": "it can take 6 upstream calls, and 5 are allowed"}
        # Twice as many answers, twice as many calls.
        assert (await proxy.ask("router-m", CODE, n=2)).info["routed_to"] == "none"
        nobody = await proxy.ask("router-m", CODE, router_approaches=["bon"])
        assert (nobody.status, nobody.error["code"]) == (400, "no_candidate")
        assert "bon: it can take 6 upstream calls" in nobody.error["message"]


async def test_a_budget_leaves_out_what_would_be_cut_short(tmp_path: Path) -> None:
    path = written(tmp_path, NONE, SC, BON)
    async with ScriptedUpstream(anything) as up, serving(up, router_model=path, n_mode="fanout") as proxy:
        answer = await proxy.ask("router-m", CODE, optillm_budget={"max_calls": 3})
        assert (answer.info["routed_to"], answer.info["calls"]) == ("none", 1)
        # Too small for all that is wanted: the cheapest goes as far as it gets.
        short = await proxy.ask(
            "router-m", CODE, router_approaches=["bon", "self_consistency"], optillm_budget={"max_calls": 3}
        )
        assert (short.info["routed_to"], short.info["calls"]) == ("self_consistency", 3)
        assert short.info["cut_short"] == "max_calls"


async def test_the_router_never_routes_to_itself_nor_to_what_is_not_there(tmp_path: Path) -> None:
    others = (
        head("router", 0.99, 1),
        head("auto", 0.99, 1),
        head("re2&router", 0.99, 1),
        head("gone", 0.99, 1),
    )
    path = written(tmp_path, NONE, *others)
    async with ScriptedUpstream(anything) as up, serving(up, router_model=path) as proxy:
        answer = await proxy.ask("router-m")
        assert answer.info["routed_to"] == "none"
        left_out = (await why(proxy, answer))["left_out"]
        assert list(left_out) == ["router", "auto", "re2&router", "gone"]
        assert left_out["router"] == left_out["re2&router"] == "it routes itself"
        assert "unknown approach 'gone'" in left_out["gone"]


# -- auto ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model_name", "body", "server", "approach"),
    [
        ("m", None, "auto", "none"),
        ("m", "auto", "auto", "router"),
        ("auto-m", None, "auto", "router"),
        ("auto(effort=0)-m", None, "auto", "router(effort=0.0)"),
        ("re2-m", "auto", "auto", "re2"),
        ("m", "auto", "re2", "re2"),
        ("auto", None, "auto", "none"),
        ("auto-listed", None, "auto", "none"),
        ("m", None, "router", "router"),
        ("m", "none", "router", "none"),
        ("auto&re2-m", None, "auto", "router&re2"),
    ],
)
async def test_auto(tmp_path: Path, model_name: str, body: str | None, server: str, approach: str) -> None:
    path = written(tmp_path, NONE, SC)
    fields = {"optillm_approach": body} if body else {}
    async with (
        ScriptedUpstream(anything, models=("m", "auto-listed")) as up,
        serving(up, router_model=path, approach=server) as proxy,
    ):
        answer = await proxy.ask(model_name, **fields)
        assert answer.status == 200, answer.json
        assert answer.info["approach"] == approach
        assert ("routed_to" in answer.info) == ("router" in approach)


# -- compositions, n, streams --------------------------------------------------------------------


async def test_in_a_composition(tmp_path: Path) -> None:
    path = written(tmp_path, head("none", 0.99, 1), SC, BON)
    async with ScriptedUpstream(anything) as up, serving(up, router_model=path) as proxy:
        chain = await proxy.ask("re2&router-m", PLAIN)
        assert choice(chain) == {"approach": "re2&router", "to": "re2&self_consistency"}
        assert (await why(proxy, chain))["left_out"]["none"].startswith("plain pass-through")
        assert PLAIN in up.calls[0].last
        assert "again" in up.calls[0].last.lower()
        beside = await proxy.ask("(router|re2)-m", CODE)
        assert choice(beside) == {"approach": "router|re2", "to": "bon|re2"}
        assert [c["optillm"]["approach"] for c in beside.json["choices"]] == ["bon", "re2"]
        # Of two routers each has its own parameters.
        two = await proxy.ask("(router(effort=0)|router)>bon-m", CODE)
        assert two.info["routed_to"] == "(self_consistency|bon)>bon"
        assert two.info["params"]["router(effort=0.0)"]["effort"] == 0
        assert two.info["params"]["router"]["effort"] == 0.7


async def test_n_and_a_stream(tmp_path: Path) -> None:
    path = written(tmp_path, NONE, BON)
    async with ScriptedUpstream(anything) as up, serving(up, router_model=path) as proxy:
        several = await proxy.ask("router-m", CODE, n=2)
        assert len(several.texts) == 2
        for question, to in ((CODE, "bon"), (PLAIN, "none")):
            whole = await proxy.ask("router-m", question, seed=1)
            events = await proxy.events("router-m", question, seed=1)
            chunks = [json.loads(e) for e in events[:-1]]
            text = "".join(c["delta"].get("content") or "" for e in chunks for c in e["choices"])
            assert text == whole.text
            (info,) = [e["optillm"] for e in chunks if e.get("optillm")]
            assert info["routed_to"] == whole.info["routed_to"] == to


async def test_tools_and_images_go_on_untouched(tmp_path: Path) -> None:
    path = written(tmp_path, NONE, BON)
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    content = [{"type": "text", "text": PLAIN}, image]
    up = ScriptedUpstream(Reply(None, finish="tool_calls", tool_calls=(call,)))
    async with up, serving(up, router_model=path) as proxy:
        answer = await proxy.ask("router-m", content, tools=[tool])
        assert answer.json["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "look"
        assert up.calls[0].messages[0]["content"] == content
        assert up.calls[0].body["tools"] == [tool]


# -- the model's file ----------------------------------------------------------------------------


async def test_an_unknown_version_is_an_error_at_the_start_and_then_the_default(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = changed(tmp_path, model(NONE, BON), {"version": 2})
    for server, to, calls in (
        ("auto", "none", 1),
        ("self_consistency", "self_consistency", 1),
        ("auto", "none", 1),
    ):
        caplog.clear()
        async with (
            ScriptedUpstream(anything) as up,
            serving(up, router_model=path, approach=server) as proxy,
        ):
            answer = await proxy.ask("m", CODE, optillm_approach="router")
            (record,) = [r for r in caplog.records if r.levelname == "ERROR"]
            assert (
                "has version 2 with features 1, and this version of OptiLLM reads version 1" in record.message
            )
            assert path in record.message
            assert (answer.status, answer.info["routed_to"]) == (200, to)
            assert (answer.info["approach"], answer.info["calls"]) == ("router", calls)
            (warning,) = answer.info["warnings"]
            assert warning.startswith(f"not routed, '{to}' instead: the routing model")
            assert "version 2" in answer.headers["X-Optillm-Warning"]
            assert (await why(proxy, answer))["choice"] == to


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": "other"}, "not a routing model: its format is 'other'"),
        ({"features": 9}, "features 9"),
        ({"version": "1"}, "not a routing model"),
        ({"dense": ["chars"]}, "is damaged: its features have other names"),
        ({"baseline": "mcts"}, "include the baseline 'mcts'"),
        ({"seen": "00"}, "'seen' must be"),
        ({"seen": "zz"}, "'seen' must be"),
        ({"candidates": "none"}, "is damaged"),
        ({"confidence": {}}, "is damaged"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    path = Path(changed(tmp_path, model(NONE, BON), changes))
    with pytest.raises(ModelFileError) as caught:
        load(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dense": [0.0]}, "needs"),
        ({"steps": [[1.0, 0.5], [1.0, 0.6]]}, "must rise"),
        ({"steps": []}, "must rise"),
        ({"cost_range": [0.0, 1.0]}, "over 0"),
        ({"hashed": {str(BUCKETS): 1.0}}, "bucket"),
        ({"hashed": {"x": 1.0}}, "bucket"),
        ({"approach": "bon"}, "must differ"),
    ],
)
def test_a_candidate_that_cannot_be_used(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    data = json.loads(render(model(BON, NONE)))
    data["candidates"][1].update(change)
    path = tmp_path / "model.json"
    path.write_text(json.dumps(data))
    with pytest.raises(ModelFileError, match=said):
        load(path)


def test_not_there_and_not_json(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"cannot read the routing model .*absent: No such file"):
        load(tmp_path / "absent")
    (tmp_path / "x").write_bytes(b"\xff{")
    with pytest.raises(ModelFileError, match="is not a routing model"):
        load(tmp_path / "x")


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    some = model(NONE, SC, BON, confidence=Confidence(0.1, 2.0, 3.0))
    path = tmp_path / "model.json"
    path.write_bytes(render(some))
    assert load(path) == some
    again = render(load(path))
    path.write_bytes(again)
    assert load(path) == some
    assert render(load(path)) == again


def test_the_shipped_model() -> None:
    assert SHIPPED.stat().st_size < 300_000
    shipped = load(SHIPPED)
    assert {"none", "self_consistency"} <= set(shipped.approaches)
    assert shipped.baseline == "none"
    assert {"trained", "questions", "models", "held_out"} <= set(shipped.metadata)
    seen = features(Task.of([{"role": "user", "content": "What is 3 + 4?"}]))
    for estimate in shipped.estimates(seen):
        assert 0 <= estimate.score <= 1
        assert estimate.cost > 0


# -- isolation, and the library ------------------------------------------------------------------


async def test_two_requests_at_once_are_routed_each_by_its_own(tmp_path: Path) -> None:
    path = written(tmp_path, NONE, SC, BON)
    async with ScriptedUpstream(anything) as up, serving(up, router_model=path) as proxy:
        asked: list[tuple[str, dict[str, Any], str, int]] = [
            ("marker-a " + CODE, {"best_of_n": 2}, "bon", 3),
            ("marker-b " + CODE, {"best_of_n": 4}, "bon", 5),
            ("marker-c " + CODE, {"router_approaches": ["none"]}, "none", 1),
            ("marker-d " + PLAIN, {"router_effort": 0.9, "sc_samples": 3}, "self_consistency", 1),
        ]
        answers = await asyncio.gather(*(proxy.ask("router-m", q, **fields) for q, fields, _, _ in asked))
        for (question, _, to, calls), answer in zip(asked, answers, strict=True):
            assert (answer.info["routed_to"], answer.info["calls"]) == (to, calls)
            assert len(up.stages(marker=question[:8])) == calls


async def test_the_library_routes_by_the_shipped_model() -> None:
    seen: list[Any] = []
    async with ScriptedUpstream(anything) as up:
        solution = await solve(
            "Hello, how are you?",
            approach="router",
            model="m",
            upstream=up.base_url,
            tools=Tools(),
            observer=seen.append,
            router_approaches=["none"],
        )
        assert solution.response["optillm"]["routed_to"] == "none"
        assert seen[0].name == "router.choice"
        assert seen[0].data["candidates"][0]["approach"] == "none"
        assert solution.text == "The answer is 0"
