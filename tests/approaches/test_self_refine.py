"""Self-refine: feedback and refinement in turn, with the whole history, until nothing is left."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from optillm.approaches.refining.self_refine import satisfied, self_refine
from tests.approaches.common import calls_a_tool, images, params, pictured, streamed, tool, tool_call, worst
from tests.fakes import Fault, Reply, Said, ScriptedUpstream, Seen, refusal
from tests.serving import serving

ROLES = {"feedback on a reply": "feedback"}


def version_in(call: Seen) -> int:
    """How many versions a prompt shows."""
    return call.text.count("<version-")


def refining(
    feedback: Said | None = None, refined: dict[int, Said] | None = None, first: Said = "draft 0"
) -> ScriptedUpstream:
    """Versions named draft 0, draft 1…; feedback that finds a fault in each and gives it 5."""

    def script(call: Seen) -> Said:
        if call.stage == "feedback":
            faulty = call.last.partition("draft ")[2][:1]
            return f"fault of {faulty}\nScore: 5\nRefine: yes" if feedback is None else feedback
        number = version_in(call)
        return (refined or {}).get(number, f"draft {number}") if number else first

    return ScriptedUpstream(script, roles=ROLES)


@pytest.mark.parametrize(
    ("text", "done"),
    [
        ("Score: 5\nRefine: yes", False),
        ("Score: 5\nRefine: no", True),
        ("Score: 9/10\nRefine: yes", True),
        ("**Refine:** No.", True),
        ("I would refine no line of it.\nScore: 3", False),
        ("Refine: no\nOn second thought:\nRefine: yes", False),
        ("it is fine", False),
        ("", False),
    ],
)
def test_stop_condition(text: str, done: bool) -> None:
    assert satisfied(text, params(self_refine)) is done


@pytest.mark.anyio
async def test_the_whole_history_is_shown_to_every_refinement() -> None:
    async with refining() as up, serving(up) as proxy:
        answer = await proxy.ask("self_refine-test-model", "Write a line.", self_refine_iterations=3)
        assert answer.text == "draft 3"
        assert (answer.info["calls"], answer.info["depth"], len(up.calls)) == (7, 7, 7)
        refinements = [c for c in up.of("sample") if version_in(c)]
        for k, call in enumerate(refinements, 1):
            assert call.last.startswith("Write a line.")
            shown = [t for i in range(4) for t in (f"\ndraft {i}\n", f"\nfault of {i}\n") if t in call.last]
            assert shown == [t for i in range(k) for t in (f"\ndraft {i}\n", f"\nfault of {i}\n")]
        # Feedback looks at the latest version only.
        assert [c.last.count("<version-") for c in up.of("feedback")] == [1, 1, 1]
    assert worst(self_refine, iterations=3) == 7


@pytest.mark.anyio
@pytest.mark.parametrize("good", ["All is well.\nScore: 7\nRefine: no", "Score: 9.5\nRefine: yes"])
async def test_good_feedback_ends_the_loop(good: str) -> None:
    async with refining(feedback=good) as up, serving(up) as proxy:
        answer = await proxy.ask("self_refine-test-model")
        assert (answer.text, answer.info["calls"], up.stages()) == ("draft 0", 2, ["feedback", "sample"])


@pytest.mark.anyio
async def test_the_threshold_is_the_client_s() -> None:
    async with refining() as up, serving(up) as proxy:
        assert (await proxy.ask("self_refine-test-model", self_refine_threshold=5)).info["calls"] == 2
        assert (await proxy.ask("self_refine-test-model", self_refine_threshold=5.5)).info["calls"] == 7


@pytest.mark.anyio
@pytest.mark.parametrize("lost", [Reply(""), Reply(None), Fault(status=503), Fault("not_json")])
async def test_lost_feedback_leaves_the_version(lost: Said) -> None:
    async with refining(feedback=lost) as up, serving(up) as proxy:
        answer = await proxy.ask("self_refine-test-model")
        assert (answer.text, len(up.calls)) == ("draft 0", 2)


@pytest.mark.anyio
async def test_feedback_in_the_wrong_format_still_refines() -> None:
    async with refining(feedback="It could be shorter.") as up, serving(up) as proxy:
        answer = await proxy.ask("self_refine-test-model", self_refine_iterations=1)
        assert (answer.text, answer.info["calls"]) == ("draft 1", 3)


@pytest.mark.anyio
@pytest.mark.parametrize("lost", [Reply(""), Fault(status=500)])
@pytest.mark.parametrize("at", [1, 2, 3])
async def test_a_lost_refinement_leaves_the_version_before(lost: Said, at: int) -> None:
    async with refining(refined={at: lost}) as up, serving(up) as proxy:
        answer = await proxy.ask("self_refine-test-model", self_refine_iterations=3)
        assert (answer.text, len(up.calls)) == (f"draft {at - 1}", 1 + 2 * at)


@pytest.mark.anyio
async def test_truncated_last_version_says_so() -> None:
    async with refining(refined={1: Reply("half", finish="length")}) as up, serving(up) as proxy:
        answer = await proxy.ask("self_refine-test-model", self_refine_iterations=1)
        choice = answer.json["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("half", "length")


@pytest.mark.anyio
async def test_no_usable_reply_is_an_error() -> None:
    async with refining(first=Reply("")) as up, serving(up) as proxy:
        answer = await proxy.ask("self_refine-test-model")
        assert (answer.status, answer.error["code"], len(up.calls)) == (502, "upstream_empty", 1)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("first", "refined", "calls"), [(calls_a_tool(), {}, 1), ("draft 0", {1: calls_a_tool()}, 3)]
)
async def test_a_tool_call_is_handed_on_at_once(first: Said, refined: dict[int, Said], calls: int) -> None:
    async with refining(first=first, refined=refined) as up, serving(up) as proxy:
        answer = await proxy.ask("self_refine-test-model", tools=[tool()])
        choice = answer.json["choices"][0]
        assert (choice["message"]["tool_calls"], choice["finish_reason"]) == ([tool_call()], "tool_calls")
        assert len(up.calls) == calls
        assert not any("tools" in c.body for c in up.of("feedback"))


@pytest.mark.anyio
async def test_conversation_and_images_are_untouched() -> None:
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": pictured("Q")},
    ]
    async with refining() as up, serving(up) as proxy:
        await proxy.ask("self_refine-test-model", messages=messages, self_refine_iterations=1)
        assert [images(c.messages) for c in up.calls] == [1, 1, 1]
        assert up.calls[0].messages == messages
        assert up.calls[2].messages[1]["content"][:2] == messages[1]["content"]


@pytest.mark.anyio
@pytest.mark.parametrize("stage", ["first", "feedback", "refined"])
async def test_a_refusal_reaches_the_client(stage: str) -> None:
    said: Any = {1: refusal(401, "no")} if stage == "refined" else refusal(401, "no")
    async with refining(**{stage: said}) as up, serving(up) as proxy:
        assert (await proxy.ask("self_refine-test-model")).status == 401


@pytest.mark.anyio
@pytest.mark.parametrize(("calls", "text"), [(1, 0), (2, 0), (3, 1), (4, 1), (5, 2), (6, 2), (7, 3)])
async def test_a_budget_leaves_the_last_version(calls: int, text: int) -> None:
    async with refining() as up, serving(up) as proxy:
        answer = await proxy.ask("self_refine-test-model", optillm_budget={"max_calls": calls})
        assert (answer.text, len(up.calls)) == (f"draft {text}", calls)
        assert answer.info.get("cut_short") == ("max_calls" if calls < 7 else None)


@pytest.mark.anyio
async def test_a_budget_prefers_a_complete_version() -> None:
    async with refining(refined={1: Reply("half", finish="length")}) as up, serving(up) as proxy:
        answer = await proxy.ask("self_refine-test-model", optillm_budget={"max_calls": 3})
        assert (answer.text, answer.info["cut_short"]) == ("draft 0", "max_calls")


@pytest.mark.anyio
async def test_the_last_refinement_streams_live() -> None:
    async with refining() as up, serving(up) as proxy:
        assert streamed(await proxy.events("self_refine-test-model", self_refine_iterations=2)) == "draft 2"
        assert [bool(c.body.get("stream")) for c in up.calls] == [False] * 4 + [True]


@pytest.mark.anyio
async def test_a_stream_that_ends_early_gives_the_same_answer() -> None:
    async with refining(feedback="Refine: no") as up, serving(up) as proxy:
        assert streamed(await proxy.events("self_refine-test-model")) == "draft 0"


@pytest.mark.anyio
async def test_n_choices_are_n_pipelines() -> None:
    async with refining() as up, serving(up) as proxy:
        answer = await proxy.ask("self_refine-test-model", n=2, self_refine_iterations=1)
        assert (answer.texts, answer.info["calls"], answer.info["depth"]) == (["draft 1"] * 2, 6, 3)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("iterations", 0),
        ("iterations", 9),
        ("threshold", 11),
        ("threshold", "high"),
        ("feedback_temperature", -1),
    ],
)
async def test_bad_parameters_make_no_call(field: str, value: Any) -> None:
    async with refining() as up, serving(up) as proxy:
        answer = await proxy.ask("self_refine-test-model", **{f"self_refine_{field}": value})
        assert (answer.status, answer.error["param"], up.calls) == (400, f"self_refine_{field}", [])


@pytest.mark.anyio
async def test_two_at_once_each_with_its_own_number() -> None:
    async with refining() as up, serving(up) as proxy:
        one, two = await asyncio.gather(
            proxy.ask("self_refine-test-model", "marker-a", self_refine_iterations=1),
            proxy.ask("self_refine-test-model", "marker-b", self_refine_iterations=3),
        )
        assert (one.text, two.text) == ("draft 1", "draft 3")
        assert (len(up.stages(marker="marker-a")), len(up.stages(marker="marker-b"))) == (3, 7)
