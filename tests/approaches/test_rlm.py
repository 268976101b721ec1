"""rlm: the input is a variable in a session; the scripted root model really explores it."""

from __future__ import annotations

import asyncio
import io
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optillm.approaches.context.rlm import rlm
from optillm.approaches.context.rlm_session import Round, clip_bytes, conversation, fitted, size
from optillm.approaches.context.rlm_texts import divide, statement_of
from optillm.core.reply import Reply as CoreReply
from optillm.core.task import Task, system, user
from tests.approaches.common import images, pictured, streamed, worst
from tests.fakes import Fault, Reply, Said, ScriptedUpstream, Seen, refusal
from tests.sandbox.processes import descendants, settled
from tests.serving import Answer, Proxy, serving

pytestmark = pytest.mark.anyio

ROLES = {"explore a long text": "root", "piece of text that it comes with": "sub"}


def repl(code: str) -> str:
    return f"I look.\n```repl\n{code}\n```"


def exploring(*replies: Said, sub: Any = "found", last: Said = "last") -> ScriptedUpstream:
    """The root's replies by their place; the last again after that. Sub-calls by a function of the call."""
    said: list[Seen] = []

    def script(call: Seen) -> Any:
        if call.stage == "root":
            said.append(call)
            return replies[min(len(said), len(replies)) - 1]
        if call.stage == "sub":
            return sub(call) if callable(sub) else sub
        return last

    return ScriptedUpstream(script, roles=ROLES)


Ask = Callable[..., Awaitable[Answer]]
Server = tuple[ScriptedUpstream, Proxy]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """For one event loop in this module."""
    return "asyncio"


@pytest.fixture(scope="module")
async def server(anyio_backend: str) -> AsyncIterator[Server]:
    """One server with one sandbox, for starting it takes seconds; each test brings its script."""
    async with ScriptedUpstream(roles=ROLES) as up, serving(up, max_upstream_calls=2000) as proxy:
        yield up, proxy


@pytest.fixture
def ask(server: Server) -> Ask:
    shared, proxy = server

    async def ask(up: ScriptedUpstream, question: Any = "What?", **fields: Any) -> Answer:
        shared.script, shared.calls, shared.peak = up.script, up.calls, 0
        return await proxy.ask("rlm-test-model", question, **fields)

    return ask


def parts(document: str, question: str) -> str:
    return f"{document}<CONTEXT_END>{question}"


def stages(up: ScriptedUpstream) -> list[str]:
    return [c.stage for c in up.calls]


# -- the paper's loop ----------------------------------------------------------------------------


async def test_a_needle_in_a_million_tokens(ask: Ask, server: Server) -> None:
    """The root greps; nothing of the document but what was printed is in any prompt or in the trace."""
    words = [f"filler{i % 997}" for i in range(400_000)]
    words.insert(271_828, "\nthe launch code is 7-3-1 (needle)\n")
    document = " ".join(words)
    assert len(document) > 4_000_000 * 0.9
    up = exploring(
        repl("at = context.find('needle')\nprint(len(context), context[at - 40 : at + 10])"),
        repl("import re\ncode = re.search(r'code is (\\S+)', context)[1]\nFINAL_VAR('code')"),
    )
    body = {
        "model": "rlm-test-model",
        "messages": [{"role": "user", "content": parts(document, "The code?")}],
    }
    shared, proxy = server
    shared.script, shared.calls = up.script, up.calls
    data = io.BytesIO(json.dumps(body).encode())
    async with proxy.http.post(f"{proxy.base_url}/chat/completions", data=data) as response:
        answer = Answer(response.status, response.headers, await response.json())
    assert answer.text == "7-3-1"
    assert stages(up) == ["root", "root"]
    assert (answer.info["calls"], answer.info["depth"]) == (2, 2)
    assert str(len(document)) in up.calls[1].last
    assert "the launch code is 7-3-1" in up.calls[1].last
    assert all(len(c.text) < 24_000 for c in up.calls)
    run = (await proxy.get(f"/v1/runs/{answer.info['run_id']}")).json
    assert [r["name"] for r in run["records"] if r["kind"] == "note"] == ["rlm.context", "rlm.ran", "rlm.ran"]
    assert len(json.dumps(run)) < 60_000


async def test_forty_chunks_side_by_side(ask: Ask, server: Server) -> None:
    shared, _ = server
    document = "".join(
        f"[part {i}] the value of part {i} is {i * i}.\n" + "x" * 400 + "\n" for i in range(40)
    )
    gate = asyncio.Event()
    up = exploring(
        repl(
            "chunks = context.split('[part ')[1:]\n"
            "out = llm_queries([f'Value in this? {c}' for c in chunks])\nprint(sum(map(int, out)))"
        ),
        "The sum is clear.\nFINAL(20540)",
        sub=lambda call: _value(call),
    )

    async def _value(call: Seen) -> Said:
        if shared.in_flight == 16:
            gate.set()
        await asyncio.wait_for(gate.wait(), 30)
        found = re.search(r"is (\d+)\.", call.last)
        assert found is not None
        return found[1]

    answer = await ask(up, parts(document, "Sum of all values?"))
    assert answer.text == "20540"
    assert stages(up).count("sub") == 40
    assert shared.peak == 16
    assert (answer.info["calls"], answer.info["depth"]) == (42, 3)
    assert f"\n{sum(i * i for i in range(40))}\n" in up.calls[-1].last


async def test_one_query_after_the_other(ask: Ask) -> None:
    up = exploring(
        repl("a = llm_query('first: ' + context[:5])\nb = llm_query('second: ' + a)\nFINAL(b)"),
        sub=lambda call: f"<think>hm</think>re {call.last}",
    )
    answer = await ask(up, parts("abcdefgh", "Q?"))
    assert answer.text == "re second: re first: abcde"
    assert (answer.info["calls"], answer.info["depth"]) == (3, 3)
    assert up.of("sub")[0].messages[-1] == {"role": "user", "content": "first: abcde"}


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("FINAL(42)", "42"),
        ("So it is.\n\nFINAL(The answer (short) is 42)\nThat is all.", "The answer (short) is 42"),
        ('FINAL("in quotes")', "in quotes"),
        ("**FINAL(bold)**", "bold"),
        ("FINAL(Use this:\n```python\nprint(1)\n```\n)", "Use this:\n```python\nprint(1)\n```"),
        ("<think>FINAL(no)</think>FINAL(yes, it is)", "yes, it is"),
        (repl("x = 6 * 7") + "\nFINAL_VAR(x)", "42"),
        (repl("x = 6 * 7") + "\nFINAL(x)", "42"),
        (repl("x = 6 * 7") + "\nFINAL(Paris)", "Paris"),
        (repl("x = 6 * 7\nFINAL_VAR(x)"), "42"),
        (repl("x = 'words'\nFINAL_VAR('x')"), "words"),
        (repl("FINAL(context[-3:])"), "doc"),
        ("```python\nFINAL('run me')\n```", "run me"),
    ],
)
async def test_ways_to_state_the_answer(ask: Ask, said: str, expected: str) -> None:
    up = exploring(said)
    answer = await ask(up, parts("a doc", "Q?"))
    assert (answer.text, stages(up)) == (expected, ["root"])


# -- what goes wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("x = (", "SyntaxError: '(' was never closed"),
        ("1 / 0", "ZeroDivisionError"),
        ("FINAL_VAR('nothing')", "there is no variable 'nothing'"),
        ("FINAL('  ')", "an answer has from 1 to"),
        ("llm_query('  ')", "a prompt is empty"),
        ("llm_query(context * 10)", "a prompt has 40000 bytes; 18247 fit"),
        ("llm_queries(['a'] * 65)", "64 calls are left, not 65"),
        ("rlm_query('q', 'text')", "there is no rlm_query at this depth"),
        ("x = bytearray(1 << 40)", "The code ran out of memory."),
        ("print('y' * (2 << 20))", "It printed more than anybody will see"),
        ("x = 1", "It printed nothing."),
        ("import os\nos._exit(0)", "All variables are lost but `context`"),
        ("open('/etc/passwd')", "FileNotFoundError"),
        ("import socket\nsocket.create_connection(('127.0.0.1', 80))", "PermissionError"),
    ],
)
async def test_failures_are_told_to_the_model(ask: Ask, code: str, told: str) -> None:
    up = exploring(repl("kept = 5"), repl(code), repl("FINAL(globals().get('kept', len(context)))"))
    answer = await ask(up, parts("z" * 4000, "Q?"))
    assert stages(up) == ["root"] * 3
    assert told in up.calls[2].last, up.calls[2].last
    assert answer.text == ("4000" if "_exit" in code else "5")
    assert not any(p in up.calls[2].text for p in ("site-packages", "/home/", "/root/"))


async def test_an_endless_loop_is_stopped_and_told(ask: Ask) -> None:
    await ask(exploring("FINAL(warm)"))
    before = descendants()
    up = exploring(repl("kept = 1\nwhile True: pass"), repl("FINAL(kept)"))
    answer = await ask(up, parts("a", "Q?"), rlm_timeout=1)
    assert answer.text == "1"
    assert "The code was stopped: it ran longer than 1 seconds." in up.calls[1].last
    assert settled(until=lambda now: now <= before) <= before


HOSTILE = (
    "import os, struct, json\ndef say(kind, body): os.write(3, struct.pack('!cI', kind, len(body)) + body)\n"
)


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("while True: os.write(3, bytes(65536))", "The code was ended."),
        ("say(b'?', b'[' * 5000000)\nprint(os.read(3, 99))", "a request is a name and JSON"),
        ("print(1)\nask('evil', 1)", "NameError: name 'ask' is not defined"),
        ("say(b'?', json.dumps(['evil', 1]).encode())\nprint(os.read(3, 99))", "nothing of that kind"),
        (
            "say(b'?', json.dumps(['queries', {'a': 1}]).encode())\nprint(os.read(3, 99))",
            "nothing of that kind",
        ),
        ("say(b'?', json.dumps(['recurse', ['a']]).encode())\nprint(os.read(3, 99))", "nothing of that kind"),
        ("say(b'?', json.dumps(['final', 5]).encode())\nprint(os.read(3, 99))", "nothing of that kind"),
        (
            "while True:\n    try: llm_query('x' * 10**5)\n    except RuntimeError: pass",
            "The code was ended.",
        ),
    ],
)
async def test_hostile_blocks_cost_no_call(ask: Ask, code: str, told: str) -> None:
    up = exploring(repl(HOSTILE + code), repl("FINAL('fine: ' + context)"))
    answer = await ask(up, parts("doc", "Q?"))
    assert (answer.text, stages(up)) == ("fine: doc", ["root", "root"])
    assert told in up.calls[1].last, up.calls[1].last


async def test_failed_queries_are_none_or_raise(ask: Ask) -> None:
    def sub(call: Seen) -> Said:
        said: dict[str, Said] = {"a": Fault(status=500), "b": "B", "c": Reply("")}
        return said[call.last]

    up = exploring(
        repl("print(llm_queries(['a', 'b', 'c']))"),
        repl("try:\n    llm_query('a')\nexcept RuntimeError as error:\n    FINAL(f'caught: {error}')"),
        sub=sub,
    )
    answer = await ask(up, parts("doc", "Q?"))
    assert "[None, 'B', None]" in up.calls[4].last
    assert answer.text == "caught: the model gave no answer"
    assert answer.info["calls"] == 6


async def test_a_refused_query_is_the_clients_error(ask: Ask) -> None:
    answer = await ask(exploring(repl("llm_query('a')"), sub=refusal(401, "no")), parts("doc", "Q?"))
    assert answer.status == 401


async def test_an_answer_beside_failing_code_does_not_count(ask: Ask) -> None:
    up = exploring(repl("1 / 0") + "\nFINAL(a guess)", "FINAL(better)")
    assert (await ask(up, parts("doc", "Q?"))).text == "better"
    assert "the answer beside it does not count" in up.calls[1].last
    # It is kept for the case that nothing better comes.
    up = exploring(repl("1 / 0") + "\nFINAL(a guess)", last=Fault(status=500))
    assert (await ask(up, parts("doc", "Q?"), rlm_rounds=1)).text == "a guess"


async def test_no_code_is_asked_for_once_again(ask: Ask) -> None:
    up = exploring("Hm.", "It is 5.")
    answer = await ask(up, parts("doc", "Q?"))
    assert (answer.text, stages(up)) == ("It is 5.", ["root", "root"])
    assert "no complete ```repl block" in up.calls[1].last
    up = exploring("Hm.", repl("print(context)"), Reply("It is", finish="length"))
    answer = await ask(up, parts("doc", "Q?"))
    assert (answer.text, len(up.calls)) == ("It is", 3)
    assert answer.json["choices"][0]["finish_reason"] == "length"


async def test_a_model_that_never_ends_gets_a_last_call(ask: Ask) -> None:
    up = exploring(repl("print('clue', len(context))"), last="From clues.")
    answer = await ask(up, parts("doc", "Why?"), rlm_rounds=3, messages=[
        {"role": "system", "content": "Answer in French."},
        {"role": "user", "content": parts("doc", "Why?")},
    ], temperature=0.3)  # fmt: skip
    assert (answer.text, stages(up)) == ("From clues.", ["root"] * 3 + ["sample"])
    last = up.calls[-1]
    assert last.system == "Answer in French."
    assert "Why?" in last.last
    assert last.last.count("clue 3") == 3
    assert last.body["temperature"] == 0.3
    assert "temperature" not in up.calls[0].body
    assert "Answer in French." in up.calls[0].messages[1]["content"]


async def test_worst_is_reached(ask: Ask) -> None:
    up = exploring(
        repl("for i in range(5):\n    try: print(llm_query(str(i)))\n    except RuntimeError: break")
    )
    answer = await ask(up, parts("doc", "Q?"), rlm_rounds=2, rlm_calls=3)
    assert answer.info["calls"] == worst(rlm, rounds=2, calls=3) == 6
    assert "0 calls are left" in up.calls[-2].last


async def test_root_errors(ask: Ask) -> None:
    answer = await ask(exploring(Fault(status=500)), parts("doc", "Q?"))
    assert answer.status == 502
    answer = await ask(exploring(refusal(403, "no")), parts("doc", "Q?"))
    assert answer.status == 403
    # After something was found, the last call is made.
    answer = await ask(exploring(repl("print(1)"), Fault(status=500)), parts("doc", "Q?"))
    assert answer.text == "last"
    answer = await ask(exploring(repl("print(1)"), last=Reply("")), parts("doc", "Q?"), rlm_rounds=1)
    assert (answer.status, answer.error["code"]) == (502, "upstream_empty")


# -- limits, budgets, streams --------------------------------------------------------------------


@pytest.mark.parametrize("calls", range(1, 7))
async def test_a_budget_leaves_a_call_for_the_answer(ask: Ask, calls: int) -> None:
    up = exploring(repl("print(llm_queries(['a', 'b']))"), repl("print('more')"), "FINAL(whole)")
    answer = await ask(up, parts("doc", "Q?"), optillm_budget={"max_calls": calls})
    assert len(up.calls) == min(calls, 5)
    assert answer.text == ("whole" if calls >= 6 else "last")
    assert (answer.info.get("cut_short") == "max_calls") == (calls < 6)
    if calls == 3:
        assert "['found', None]" in up.calls[-1].last or "[None, 'found']" in up.calls[-1].last


async def test_when_time_is_up_what_was_printed_is_the_answer(ask: Ask) -> None:
    up = exploring(repl("print('the clue')"), Fault("hang"))
    answer = await ask(up, parts("doc", "Q?"), optillm_budget={"max_seconds": 2})
    assert (answer.text, answer.info["cut_short"]) == ("the clue", "max_seconds")


async def test_streaming_gives_the_same_answer(ask: Ask, server: Server) -> None:
    _, proxy = server
    for up in (exploring(repl("FINAL(context)")), exploring(repl("print(1)"), last="a longer answer")):
        plain = await ask(up, parts("the doc", "Q?"), rlm_rounds=1)
        events = await proxy.events("rlm-test-model", parts("the doc", "Q?"), rlm_rounds=1)
        assert streamed(events) == plain.text


@pytest.mark.parametrize(
    "fields",
    [{"rlm_rounds": 0}, {"rlm_rounds": 51}, {"rlm_depth": 4}, {"rlm_calls": -1}, {"rlm_context_window": 100}],
)
async def test_parameters_out_of_range(ask: Ask, fields: dict[str, Any]) -> None:
    up = exploring("FINAL(1)")
    answer = await ask(up, parts("doc", "Q?"), **fields)
    assert (answer.status, answer.error["param"], up.calls) == (400, next(iter(fields)), [])


@pytest.mark.parametrize("text", ["<CONTEXT_END>What?", "doc<CONTEXT_END>  "])
async def test_an_empty_input_or_question(ask: Ask, text: str) -> None:
    up = exploring("FINAL(1)")
    answer = await ask(up, text)
    assert (answer.status, answer.error["param"], up.calls) == (400, "messages", [])


async def test_without_a_sandbox_nothing_is_asked() -> None:
    async with exploring("FINAL(1)") as up, serving(up, sandbox="off") as proxy:
        answer = await proxy.ask("rlm-test-model", "Q?")
    assert (answer.status, up.calls) == (501, [])
    assert "--sandbox" in answer.error["message"]


async def test_long_conversations_stay_inside_the_window(ask: Ask) -> None:
    up = exploring(repl("print('é' * 6000)\n# " + "c" * 3000), last="done")
    answer = await ask(up, parts("日本" * 5000, "質問" * 900), rlm_rounds=12)
    assert answer.text == "done"
    assert all(len(c.text.encode()) <= 3 * (8192 - 2048) for c in up.of("root"))
    assert len(up.calls[-1].text.encode()) <= 3 * 4096
    assert "earlier rounds are not shown" in up.of("root")[-1].text


async def test_the_window_is_the_upstream_s_own() -> None:
    up = exploring(repl("print('x' * 9000)"), last="done")
    up.models = [{"id": "tells", "max_model_len": 4096}, {"id": "tiny", "max_model_len": 2048}]
    async with up, serving(up) as proxy:
        answer = await proxy.ask("rlm-tells", parts("document", "What?"), rlm_rounds=6)
        assert answer.text == "done"
        assert all(len(c.text.encode()) <= 3 * 2048 for c in up.calls)
        made = len(up.calls)
        refused = await proxy.ask("rlm-tiny", parts("document", "What?"))
        assert (refused.status, refused.error["code"]) == (400, "window_too_small")
        assert refused.error["param"] == "rlm_context_window"
        assert len(up.calls) == made


# -- recursion, models, isolation ----------------------------------------------------------------


def inner(call: Seen) -> bool:
    return "Inner?\n</question" in call.messages[1]["content"]


async def test_depth_two(ask: Ask) -> None:
    """The code's rlm_query is a run on its text, with a session of its own."""

    def script(call: Seen) -> Said:
        if call.stage == "sub":
            return "a sub-answer"
        if not inner(call):
            if len([c for c in up.calls if c.stage == "root" and not inner(c)]) == 1:
                return repl("mine = 1\nprint(rlm_query('Inner?', context[4:]))\nprint(mine)")
            return "FINAL(outer done)"
        if len([c for c in up.calls if c.stage == "root" and inner(c)]) == 1:
            return repl("print('mine' in globals(), context)")
        return repl("FINAL(llm_query('x'))")

    up = ScriptedUpstream(script, roles=ROLES)
    answer = await ask(up, parts("the document", "Outer?"), rlm_depth=2)
    assert answer.text == "outer done"
    assert (answer.info["calls"], answer.info["depth"]) == (5, 5)
    assert "False document" in up.calls[2].last
    assert "a sub-answer\n1\n" in up.calls[-1].last
    # The inner run may not go deeper; the outer one was told that it may.
    assert "rlm_query(question, text)" in up.calls[0].system
    assert "rlm_query(question, text)" not in up.calls[1].system
    assert "61 calls are left" in up.calls[-1].last


async def test_calls_of_inner_runs_count(ask: Ask) -> None:
    def script(call: Seen) -> Said:
        if call.stage == "root" and inner(call):
            return repl("print('clue')")
        if call.stage == "root":
            return repl("print(rlm_query('Inner?', context))")
        return "last"

    up = ScriptedUpstream(script, roles=ROLES)
    answer = await ask(up, parts("doc", "Outer?"), rlm_depth=2, rlm_calls=3, rlm_rounds=2)
    assert answer.info["calls"] == worst(rlm, rounds=2, calls=3) == 6
    assert "no answer was reached" in up.calls[-1].last
    assert "clue" in up.calls[-1].last


async def test_the_sub_model(ask: Ask) -> None:
    up = exploring(repl("FINAL(llm_query('a'))"))
    await ask(up, parts("doc", "Q?"), rlm_sub_model="small")
    assert [c.body["model"] for c in up.calls] == ["test-model", "small"]


async def test_two_requests_do_not_meet(ask: Ask) -> None:
    def script(call: Seen) -> Said:
        if call.stage == "sub":
            return f"said {call.last}"
        return repl("x = context\nFINAL(llm_query(x) + str(globals().get('y')))\ny = 1")

    up = ScriptedUpstream(script, roles=ROLES)
    answers = await asyncio.gather(*(ask(up, parts(f"document {i}", f"marker-{i}-?")) for i in range(8)))
    assert [a.text for a in answers] == [f"said document {i}None" for i in range(8)]
    assert all(a.info["calls"] == 2 for a in answers)


# -- pure parts ----------------------------------------------------------------------------------


def test_input_and_question() -> None:
    long = "word " * 1000

    def divided(*messages: dict[str, Any]) -> tuple[str, str]:
        material = divide(Task.of(messages), "<CONTEXT_END>")
        return material.question, material.document

    def said(content: Any, role: str = "user") -> dict[str, Any]:
        return {"role": role, "content": content}

    texts = [{"type": "text", "text": long}, {"type": "text", "text": "Why?"}]
    assert divided(said("Why?")) == ("Why?", "Why?")
    assert divided(said("doc<CONTEXT_END>a<CONTEXT_END>Why?")) == ("Why?", "doc<CONTEXT_END>a")
    assert divided(said(texts)) == ("Why?", long)
    assert divided(said(long)) == ("", long)
    question, document = divided(said("Hi"), said("Hello", "assistant"), said(texts))
    assert question == "Why?"
    assert document == f"[user]\nHi\n\n[assistant]\nHello\n\n{long}"
    assert divided(said("Hi"), said("Hello", "assistant"), said("Why?"))[1].endswith("Hello")
    assert divide(Task.of([said("Be nice.", "system"), said("Why?")]), "").rules == ("Be nice.",)
    shown = divide(Task.of([said("START" + long + "END?")]), "<CONTEXT_END>").asked
    assert shown.startswith("START")
    assert shown.endswith("END?")
    assert len(shown) < 4100


async def test_images_are_seen_by_the_root(ask: Ask) -> None:
    up = exploring("FINAL(1)")
    await ask(up, pictured(parts("doc", "Q?")))
    assert images(up.calls[0].messages) == 1


def test_reading_replies() -> None:
    def read(text: str, finish: str = "stop") -> tuple[tuple[str, ...], str | None, str | None]:
        s = statement_of(CoreReply.of(text, finish))
        return s.code, s.answer, s.variable

    assert read("words") == ((), None, None)
    assert read("```repl\na\n```\nand\n```repl\nb\n```") == (("a", "b"), None, None)
    assert read("```repl\na\n```\n```python\nb\n```") == (("a",), None, None)
    assert read("```\na\n```") == (("a",), None, None)
    assert read("```json\na\n```") == ((), None, None)
    assert read("```repl\na", "length") == ((), None, None)
    assert read("Later I write `FINAL(x)`. Now wait.") == ((), None, None)
    assert read("FINAL(f(1) = 2)\nas f(x) = 2x (see above)") == ((), "f(1) = 2", None)
    assert read("FINAL(no end") == ((), "no end", None)
    assert read("FINAL_VAR( 'x' )") == ((), None, "x")
    assert read("FINAL()") == ((), None, None)
    assert read("FINAL(\"a\" + 'b')") == ((), "\"a\" + 'b'", None)


texts = st.text(st.sampled_from("ab \né日"), max_size=400)


@given(st.lists(st.builds(Round, texts, texts), max_size=12), st.integers(0, 4000))
def test_the_conversation_fits(rounds: list[Round], most: int) -> None:
    kept, missing = fitted(rounds, most)
    assert sum(r.bytes for r in kept) <= most
    assert len(kept) + missing == len(rounds)
    if sum(r.bytes for r in rounds) + 9 * 600 <= most:
        assert kept == rounds
    opening = (system("rules"), user("question"))
    messages = conversation(opening, rounds, most + 500)
    assert messages[:2] == opening
    assert [m.role for m in messages[2:]] == ["assistant", "user"] * (len(messages) // 2 - 1)
    assert sum(size(m.text) for m in messages) <= most + 500


@given(texts, st.integers(0, 500))
def test_clipping_by_bytes(text: str, most: int) -> None:
    clipped = clip_bytes(text, most)
    assert size(clipped) <= most
    assert clipped == text or size(text) > most
