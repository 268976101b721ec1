"""Which approach runs on which model: the precedence, and the names."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes import Said, ScriptedUpstream, Seen
from tests.serving import serving

pytestmark = pytest.mark.anyio

TAG = "<optillm_approach>{}</optillm_approach>"


def anything(call: Seen) -> Said:
    if call.stage in ("rate", "eval"):
        return "Score: 5"
    return [f"text {i}" for i in range(call.n)]


# tag, body, model, server default -> approach, upstream's model
PRECEDENCE = [
    (None, None, "m", "auto", "none", "m"),
    (None, None, "re2-m", "auto", "re2", "m"),
    (None, None, "m", "re2", "re2", "m"),
    (None, None, "bon-m", "re2", "re2", "m"),
    (None, "bon", "m", "auto", "bon", "m"),
    (None, "bon", "re2-m", "auto", "bon", "m"),
    (None, "bon", "m", "re2", "bon", "m"),
    (None, "bon", "re2-m", "moa", "bon", "m"),
    (None, "auto", "re2-m", "auto", "re2", "m"),
    (None, "none", "re2-m", "auto", "none", "m"),
    (None, "none", "m", "re2", "none", "m"),
    ("moa", None, "m", "auto", "moa", "m"),
    ("moa", None, "re2-m", "auto", "moa", "m"),
    ("moa", None, "m", "re2", "moa", "m"),
    ("moa", "bon", "m", "auto", "moa", "m"),
    ("moa", "bon", "re2-m", "mcts", "moa", "m"),
    ("re2 & bon", None, "m", "auto", "re2&bon", "m"),
    (None, "bon(n=2)", "m", "auto", "bon(n=2)", "m"),
    (" re2 ", None, "m", "auto", "re2", "m"),
    (None, None, "re2-listed", "auto", "none", "re2-listed"),
    (None, "bon", "re2-listed", "auto", "bon", "re2-listed"),
    ("none", "bon", "moa-m", "auto", "none", "m"),
    (None, None, "", "re2", "re2", "gpt-4o-mini"),
    (None, None, "", "auto", "none", "gpt-4o-mini"),
    ("auto", "bon", "m", "auto", "bon", "m"),
]


@pytest.mark.parametrize(("tag", "body", "model", "server", "approach", "upstream_model"), PRECEDENCE)
async def test_precedence(
    tag: str | None, body: str | None, model: str, server: str, approach: str, upstream_model: str
) -> None:
    fields: dict[str, Any] = {"optillm_approach": body} if body else {}
    question = (TAG.format(tag) if tag else "") + "What is 2+2?"
    async with (
        ScriptedUpstream(anything, models=("m", "re2-listed")) as up,
        serving(up, approach=server) as proxy,
    ):
        answer = await proxy.ask(model or None, question, **fields)  # type: ignore[arg-type]
        assert answer.status == 200, answer.json
        assert answer.info["approach"] == approach
        assert {c.body["model"] for c in up.calls} == {upstream_model}
        assert "optillm_approach" not in up.calls[0].text + str(up.calls[0].body.keys())


NAMES: list[tuple[str, tuple[str, ...], Any]] = [
    ("gpt-4o-mini", (), ("none", "gpt-4o-mini")),
    ("moa-gpt-4o", (), ("moa", "gpt-4o")),
    ("re2-7b", (), ("re2", "7b")),
    ("re2-7b", ("re2-7b",), ("none", "re2-7b")),
    ("bon-re2-7b", ("re2-7b",), ("bon", "re2-7b")),
    ("moa-bon-x", (), "moa&bon-x"),
    ("re2&moa-x", (), ("re2&moa", "x")),
    ("bon|re2-x", (), ("bon|re2", "x")),
    ("re2|zzz-x", (), "zzz"),
    ("zzz&re2-x", (), "zzz"),
    ("mcts(simulations=4,depth=2)-x", (), ("mcts(simulations=4,depth=2)", "x")),
    ("mcts(mcts_simulations=4)-x", (), ("mcts(simulations=4)", "x")),
    ("mcts(simulations=0)-x", (), "1 to 64"),
    ("mcts(simulations=)-x", (), "position 18"),
    ("mcts(rollouts=2)-x", (), "no parameter 'rollouts'"),
    ("(re2&bon)|moa-x", (), ("(re2&bon)|moa", "x")),
    ("-x", (), ("none", "-x")),
    ("moa-", (), ("none", "moa-")),
    ("moa", (), ("none", "moa")),
    ("none-x", (), ("none", "x")),
    ("none&re2-x", (), "cannot be part"),
    ("auto", (), ("none", "auto")),
    ("auto-x", ("auto-x",), ("none", "auto-x")),
    ("moa-meta-llama/Llama-3", (), ("moa", "meta-llama/Llama-3")),
]


@pytest.mark.parametrize(("name", "listed", "expected"), NAMES)
async def test_names(name: str, listed: tuple[str, ...], expected: Any) -> None:
    async with ScriptedUpstream(anything, models=listed) as up, serving(up) as proxy:
        answer = await proxy.ask(name)
        if isinstance(expected, str):
            assert answer.status == 400
            assert expected in answer.error["message"]
            assert up.calls == []
        else:
            assert (answer.info["approach"], answer.info["model"]) == expected
            assert answer.json["model"] == (name if expected[0] != "none" else answer.info["model"])


async def test_the_last_tag_counts_and_all_are_removed_from_text_parts_too() -> None:
    messages = [
        {"role": "system", "content": TAG.format("moa") + "Be kind."},
        {"role": "user", "content": TAG.format("bon") + "One"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": [{"type": "text", "text": "a " + TAG.format("re2") + " b"}]},
    ]
    async with ScriptedUpstream(anything) as up, serving(up) as proxy:
        answer = await proxy.ask(messages=messages)
        assert answer.info["approach"] == "re2"
        sent = up.calls[0].messages
        assert (sent[0]["content"], sent[1]["content"]) == ("Be kind.", "One")
        assert sent[3]["content"][0] == {"type": "text", "text": "a  b"}


async def test_a_dead_model_list_does_not_break_a_prefix() -> None:
    from tests.fakes import Fault

    async with ScriptedUpstream(anything, models=Fault(status=500)) as up, serving(up) as proxy:
        assert (await proxy.ask("re2-m")).info["approach"] == "re2"


@pytest.mark.parametrize(
    "nested",
    [
        {"params": {"mcts_simulations": 3}},
        {"params": {"simulations": 3}},
        {"params": {"mcts": {"simulations": 3}}},
    ],
)
async def test_everything_in_one_object(nested: dict[str, Any]) -> None:
    async with ScriptedUpstream(anything) as up, serving(up) as proxy:
        answer = await proxy.ask("m", optillm={"approach": "mcts", **nested})
        assert answer.info["params"]["mcts"]["simulations"] == 3
        assert answer.info["calls"] == 10
        assert all("optillm" not in c.body for c in up.calls)


async def test_arguments_in_the_name_beat_the_body_which_beats_the_server() -> None:
    async with ScriptedUpstream(anything) as up, serving(up, params={"bon": {"n": 4}}) as proxy:
        assert (await proxy.ask("bon-m")).info["params"]["bon"]["n"] == 4
        assert (await proxy.ask("bon-m", best_of_n=3)).info["params"]["bon"]["n"] == 3
        assert (await proxy.ask("bon(n=2)-m", best_of_n=3)).info["params"]["bon"]["n"] == 2


async def test_parameters_of_what_does_not_run_are_ignored_with_a_warning() -> None:
    async with ScriptedUpstream(anything) as up, serving(up) as proxy:
        answer = await proxy.ask("re2-m", best_of_n=7)
        assert "best_of_n ignored" in answer.headers["X-Optillm-Warning"]
        assert "best_of_n" not in up.calls[0].body


@pytest.mark.parametrize(
    ("model", "said"),
    [("moa-bon-x", "moa&bon-x"), ("re2|zzz-x", "zzz"), ("mcts(simulations=0)-x", "1 to 64")],
)
async def test_a_bad_prefix_is_no_part_of_a_name_even_beside_an_explicit_approach(
    model: str, said: str
) -> None:
    async with ScriptedUpstream(anything) as up, serving(up) as proxy:
        answer = await proxy.ask(model, optillm_approach="re2")
        assert (answer.status, answer.error["param"]) == (
            400,
            "model" if "(" not in model else "mcts_simulations",
        )
        assert said in answer.error["message"]
        assert up.calls == []
    async with ScriptedUpstream(anything, models=(model,)) as up, serving(up) as proxy:
        assert (await proxy.ask(model, optillm_approach="re2")).info["model"] == model


@pytest.mark.parametrize(
    ("model", "calls"),
    [("m", [3]), ("re2-m", [3]), ("self_consistency(samples=2)-m", [2, 2, 2]), ("re2|none-m", None)],
)
async def test_the_servers_n_counts_once_and_the_requests_beats_it(model: str, calls: Any) -> None:
    async with ScriptedUpstream(anything) as up, serving(up, n=3) as proxy:
        answer = await proxy.ask(model)
        if calls is None:
            assert answer.status == 400
            return
        assert len(answer.texts) == 3
        assert [c.n for c in up.calls] == calls
        up.calls.clear()
        assert len((await proxy.ask(model, n=1)).texts) == 1
        assert len(up.calls) == 1


async def test_every_ignored_parameter_is_named_in_the_header_and_the_body() -> None:
    nested = {"params": {"mcts": {"depth": 2}, "moa_layers": 2}}
    async with ScriptedUpstream(anything) as up, serving(up) as proxy:
        answer = await proxy.ask("none-m", best_of_n=7, optillm=nested)
        assert answer.headers["X-Optillm-Warning"] == "; ".join(answer.info["warnings"])
        assert answer.info["warnings"] == [
            "best_of_n ignored: bon not running",
            "optillm.params.mcts.depth ignored: mcts not running",
            "optillm.params.moa_layers ignored: moa not running",
        ]
        assert set(up.calls[0].body) == {"model", "messages"}
        assert "X-Optillm-Warning" not in (await proxy.ask("bon-m", best_of_n=2)).headers
