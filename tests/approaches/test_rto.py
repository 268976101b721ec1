"""Round-trip optimisation: the acceptance cases of its specification, and faults at every step."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from optillm.approaches.prompting.rto import Params, equivalent
from optillm.core.params import build, params_of
from tests.fakes import Fault, Reply, Said, ScriptedUpstream, Seen, refusal
from tests.serving import Answer, serving

pytestmark = pytest.mark.anyio

CODE = "Here it is:\n```python\ndef f(x):\n    # one\n    return x + 1\n```\nCall f."
SAME = "```python\ndef f(x):\n\n    return x + 1  # plus one\n```"
OTHER = "```python\ndef f(x):\n    return x + 2\n```"
TWO = "```c++\nint f();\n```\nthen run\n```python\nx = 1\n```"


def params(**given: Any) -> Any:
    return build(Params, params_of("rto", Params), given)


def stage(call: Seen) -> str:
    if "Restate the" in call.last:
        return "q2"
    if "Two versions of a reply" in call.last:
        return "c3"
    return "c2" if call.last.startswith("Write f") else "c1"


def trip(c1: Said = CODE, q2: Said = "Write f.", c2: Said = OTHER, c3: Said = "final") -> ScriptedUpstream:
    said = {"c1": c1, "q2": q2, "c2": c2, "c3": c3}
    return ScriptedUpstream(lambda call: said[stage(call)])


async def ask(up: ScriptedUpstream, **fields: Any) -> Answer:
    async with up, serving(up) as proxy:
        return await proxy.ask("rto-test-model", fields.pop("question", "Add one."), **fields)


def stages(up: ScriptedUpstream) -> list[str]:
    return [stage(c) for c in up.calls]


async def test_same_code_with_other_comments_returns_the_first_answer_whole() -> None:
    up = trip(c2=SAME)
    answer = await ask(up)
    assert answer.text == CODE
    assert stages(up) == ["c1", "q2", "c2"]
    assert (answer.info["calls"], answer.info["depth"]) == (3, 3)


async def test_different_code_is_merged() -> None:
    up = trip()
    answer = await ask(up)
    assert answer.text == "final"
    assert stages(up) == ["c1", "q2", "c2", "c3"]
    assert (answer.info["calls"], answer.info["depth"]) == (4, 4)
    merge = up.calls[3].last
    assert merge.startswith("Add one.")
    assert f"\n{CODE}\n</version-1-" in merge
    assert f"\n{OTHER}\n</version-2-" in merge


async def test_what_each_step_sees() -> None:
    system = {"role": "system", "content": "Be terse."}
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}
    content = [{"type": "text", "text": "Add one."}, image]
    up = trip()
    await ask(up, messages=[system, {"role": "user", "content": content}], temperature=0.6, stop=["z"])
    c1, q2, c2, c3 = up.calls
    assert c1.messages == [system, {"role": "user", "content": content}]
    assert q2.messages[:2] == c1.messages
    assert q2.messages[2] == {"role": "assistant", "content": CODE}
    assert "Restate the code" in q2.last
    assert c2.messages == [system, {"role": "user", "content": "Write f."}]
    assert c3.messages[1]["content"][:2] == content
    assert [c.body["temperature"] for c in up.calls] == [0.6] * 4
    assert ["stop" in c.body for c in up.calls] == [True, False, True, True]
    assert q2.body["max_tokens"] == 4096


async def test_own_temperature_serves_when_the_client_gives_none() -> None:
    up = trip()
    await ask(up, rto_temperature=0.3)
    assert {c.body["temperature"] for c in up.calls} == {0.3}


@pytest.mark.parametrize("q2", [Reply("Write f", finish="length"), Reply(""), Fault(status=503)])
async def test_no_description_returns_the_first_answer(q2: Said) -> None:
    up = trip(q2=q2)
    answer = await ask(up)
    assert (answer.status, answer.text, len(up.calls)) == (200, CODE, 2)


@pytest.mark.parametrize("c2", [Reply(OTHER, finish="length"), Reply(None), Fault(status=500)])
async def test_no_second_version_returns_the_first_answer(c2: Said) -> None:
    up = trip(c2=c2)
    answer = await ask(up)
    assert (answer.text, len(up.calls)) == (CODE, 3)


@pytest.mark.parametrize("c3", [Reply(None), Fault(status=502)])
async def test_no_merge_returns_the_first_answer(c3: Said) -> None:
    up = trip(c3=c3)
    answer = await ask(up)
    assert (answer.status, answer.text, len(up.calls)) == (200, CODE, 4)


async def test_a_merge_that_is_cut_off_is_returned_as_such() -> None:
    choice = (await ask(trip(c3=Reply("fin", finish="length")))).json["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("fin", "length")


async def test_a_first_answer_that_is_cut_off_is_returned_at_once() -> None:
    up = trip(c1=Reply("half", finish="length"))
    answer = await ask(up)
    assert (answer.text, answer.json["choices"][0]["finish_reason"]) == ("half", "length")
    assert len(up.calls) == 1


async def test_a_tool_call_is_returned_at_once() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    up = trip(c1=Reply(None, finish="tool_calls", tool_calls=(call,)))
    choice = (await ask(up)).json["choices"][0]
    assert (choice["finish_reason"], choice["message"]["tool_calls"]) == ("tool_calls", [call])
    assert len(up.calls) == 1


async def test_an_empty_first_answer_is_an_error() -> None:
    answer = await ask(trip(c1=Reply("")))
    assert (answer.status, answer.error["code"]) == (502, "upstream_empty")


@pytest.mark.parametrize("step", ["c1", "q2", "c2", "c3"])
async def test_a_refusal_reaches_the_client(step: str) -> None:
    answer = await ask(trip(**{step: refusal(400, "context too long")}))
    assert (answer.status, "context too long" in answer.error["message"]) == (400, True)


async def test_both_fences_are_compared() -> None:
    changed = TWO.replace("int f()", "int g()")
    assert equivalent(TWO, "```c++\nint  f();\n```\n```py\nx=1\n```", params())
    assert not equivalent(TWO, changed, params())
    up = trip(c1=TWO, c2=changed)
    await ask(up)
    assert len(up.calls) == 4


async def test_text_without_code() -> None:
    up = trip(c1="Paris  is\nthe capital.", c2="Paris is the capital.")
    answer = await ask(up, question="Capital of France?")
    assert (answer.text, len(up.calls)) == ("Paris  is\nthe capital.", 3)
    assert "Restate the answer" in up.calls[1].last


@pytest.mark.parametrize(
    ("first", "second", "p", "equal"),
    [
        (CODE, SAME, params(), True),
        (CODE, SAME, params(equivalence="text"), False),
        (CODE, SAME, params(equivalence="similarity", threshold=0.5), True),
        (CODE, SAME, params(equivalence="similarity", threshold=1.0), False),
        ("4", "4.0", params(), False),
        ("```python\nx = (\n```", "```python\nx =  (\n```", params(), True),
        ("```js\n// a\nx\n```", "```js\n// b\nx\n```", params(), False),
        ("```python\nx=1\n```\n```python\ny=2\n```", "```python\nx = 1\ny = 2\n```", params(), True),
        ("```\n" + "(" * 500 + "\n```", "```\n" + "(" * 500 + "\n```", params(), True),
    ],
)
def test_equivalence(first: str, second: str, p: Params, equal: bool) -> None:
    assert equivalent(first, second, p) is equal


@pytest.mark.parametrize("most", [1, 2, 3])
async def test_a_budget_that_ends_anywhere_leaves_the_first_answer(most: int) -> None:
    up = trip()
    answer = await ask(up, optillm_budget={"max_calls": most})
    assert (answer.text, answer.info["cut_short"], len(up.calls)) == (CODE, "max_calls", most)


@pytest.mark.parametrize(
    ("name", "value"),
    [("rto_equivalence", "equal"), ("rto_threshold", 1.1), ("rto_temperature", -1), ("rto_threshold", "x")],
)
async def test_parameters_out_of_range(name: str, value: Any) -> None:
    up = trip()
    answer = await ask(up, **{name: value})
    assert (answer.status, answer.error["param"], len(up.calls)) == (400, name, 0)


async def test_too_many_calls_for_the_server() -> None:
    async with trip() as up, serving(up, max_upstream_calls=3) as proxy:
        answer = await proxy.ask("rto-test-model")
        assert (answer.status, answer.error["code"], len(up.calls)) == (400, "too_many_calls", 0)
    async with trip() as up, serving(up, max_upstream_calls=4) as proxy:
        assert (await proxy.ask("rto-test-model")).status == 200


@pytest.mark.parametrize(("c2", "text"), [(SAME, CODE), (OTHER, "The final version")])
async def test_streaming_gives_the_same_answer(c2: str, text: str) -> None:
    async with trip(c2=c2, c3="The final version") as up, serving(up) as proxy:
        chunks = [json.loads(e) for e in (await proxy.events("rto-test-model"))[:-1]]
        assert "".join(c["delta"].get("content", "") for k in chunks for c in k["choices"]) == text
        assert [bool(c.body.get("stream")) for c in up.calls] == [False, False, False, True][: len(up.calls)]


async def test_two_at_once_each_with_its_own_trip() -> None:
    def script(call: Seen) -> Said:
        marker = "marker-a" if "marker-a" in call.text else "marker-b"
        said = {"c1": CODE, "q2": f"Write f, {marker}.", "c3": f"final {marker}"}
        return said.get(stage(call)) or (SAME if marker == "marker-a" else OTHER)

    async with ScriptedUpstream(script) as up, serving(up) as proxy:
        a, b = await asyncio.gather(
            proxy.ask("rto-test-model", "marker-a"), proxy.ask("rto-test-model", "marker-b")
        )
        assert (a.text, b.text) == (CODE, "final marker-b")
        assert (len(up.stages(marker="marker-a")), len(up.stages(marker="marker-b"))) == (3, 4)
        assert (a.info["calls"], b.info["calls"]) == (3, 4)
