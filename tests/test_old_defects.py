"""What was wrong in the system that users come from, and the test that would fail on each of it.

The numbers are those of the server's specification, section 9.

1.  Request parameters in a global: ``isolation/test_reported_bug.py``, ``isolation/test_concurrent_runs.py``,
    ``isolation/test_processes.py``; settings are frozen: here.
2.  Only ``mcts_*`` per request: here, every parameter of every approach.
3.  Counters, configuration, batcher, logger as globals: ``isolation/test_no_shared_state.py``; usage of
    concurrent requests: ``isolation/test_concurrent_runs.py``. ``cepo`` wrote into its configuration what a
    model refuses: ``approaches/test_cepo_failures.py``.
4.  Conversations flattened, answers cut at "User:": ``faces/test_protocol.py``
    (``test_a_conversation_arrives_unchanged``, ``test_labels_in_an_answer_are_just_text``).
5.  Only the last system message survived: here.
6.  ``n`` one after another, and twice: here.
7.  A new HTTP client per request: here.
8.  Tokens and bodies in the debug log: here.
9.  Fake streaming: ``faces/test_stream.py``; with ``--batch-mode``: here.
10. Every error a 500 string: ``faces/test_bad_input.py``, ``faces/test_upstream_errors.py``,
    ``protocol/test_errors.py``, ``clients/test_openai_sdk.py``.
11. Missing messages answered, n = -1 accepted: ``faces/test_bad_input.py``,
    ``protocol/test_chat_request.py``.
12. Work after the client has left, no deadline: ``faces/test_stopping.py``.
13. ``moa-bon-model``, unknown slugs in compositions: ``faces/test_choose.py`` (``test_names``).
14. Async plugins leave event loops behind: here.
15. Code and configuration from the working directory: here.
16. One failing branch loses the others: ``faces/test_protocol.py``
    (``test_side_by_side_with_one_failing_branch``), ``faces/test_stream.py`` (nested and streamed).
17. Usage without prompt tokens, reasoning guessed: ``faces/test_protocol.py``
    (``test_usage_sums_every_call_with_details``, ``test_visible_thinking_is_counted_as_reasoning``);
    thinking that was cut off: here.
18. Model list per call, 500 when the upstream is down: here, and ``clients/test_openai_sdk.py``.
19. ``--ssl-verify`` inverted, bearer clients without TLS settings: here.
20. Model-written code in the server's process: nothing of the package evaluates text but the program that
    runs inside the sandbox: here. (``z3``: ``approaches/test_z3.py``, case 7; ``coc``:
    ``approaches/test_coc.py``.)
21. Start imports torch and the like: here.
"""

from __future__ import annotations

import ast
import asyncio
import dataclasses
import json
import logging
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import optillm
from optillm.core.params import Param
from optillm.plugins import builtin_registry, load_registry
from optillm.settings import load
from tests.fakes import Fault, Reply, Said, ScriptedUpstream, Seen
from tests.memory_state import MemoryStates
from tests.serving import serving

pytestmark = pytest.mark.anyio

REGISTRY = builtin_registry()
PARAMS = [pytest.param(p, id=f"{p.slug}.{p.name}") for a in REGISTRY for p in a.params]


def anything(call: Seen) -> Said:
    if call.stage in ("rate", "eval"):
        return "Score: 0.5"
    if "explore a long text" in call.system:
        return "```repl\nprint(1)\n```"
    return "more?" if call.stage == "user" else [f"text {i}" for i in range(call.n)]


def test_1_settings_cannot_be_changed() -> None:
    settings = load(["--mcts-depth", "2"], {}, REGISTRY)
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.port = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        settings.params["mcts"]["depth"] = 3  # type: ignore[index]


def another(param: Param) -> Any:
    """A good value that is not the default."""
    if param.is_group:
        return {param.members[0].name: another(param.members[0])}
    schema = param.schema()
    schema = schema.get("anyOf", [schema])[0]
    if param.request_name == "router_approaches":
        return ["none"]
    if "enum" in schema:
        return next(v for v in schema["enum"] if v != param.default)
    if schema["type"] == "boolean":
        return not param.default
    if schema["type"] == "array" and schema["items"]["type"] == "number":
        return [0.25] * schema.get("minItems", 1)
    if schema["type"] == "array":
        return ["other-model"]
    if schema["type"] == "string":
        return "other-model"
    low = schema.get("minimum", 0)
    return low if low != param.default else schema["maximum"]


@pytest.mark.parametrize("param", PARAMS)
async def test_2_every_parameter_can_be_set_by_a_request(param: Param) -> None:
    value = another(param)
    options: dict[str, Any] = {"max_upstream_calls": 10_000, "states": MemoryStates()}
    async with ScriptedUpstream(anything) as up, serving(up, **options) as proxy:
        for fields in (
            {"optillm_approach": param.slug, param.request_name: value},
            {"optillm": {"approach": param.slug, "params": {param.name: value}}},
        ):
            answer = await proxy.ask("m", **fields)
            if answer.status == 400 and answer.error["code"] == "contradictory_parameters":
                # It was read, and means nothing without another one.
                assert answer.error["param"] == param.request_name
                continue
            assert answer.status == 200, answer.json
            expected = value if param.is_group else {param.name: value}
            assert {name: answer.info["params"][param.slug][name] for name in expected} == expected
        # And it does not stay.
        answer = await proxy.ask("m", optillm_approach=param.slug)
        default = list(param.default) if isinstance(param.default, tuple) else param.default
        assert answer.info["params"][param.slug][param.name] == default


@pytest.mark.parametrize("slug", [a.slug for a in REGISTRY])
async def test_5_every_system_message_stays_in_its_place(slug: str) -> None:
    messages = [
        {"role": "system", "content": "first rule"},
        {"role": "user", "content": "hello"},
        {"role": "system", "content": "second rule"},
        {"role": "assistant", "content": "hi"},
        {"role": "user", "content": "and now?"},
    ]
    async with ScriptedUpstream(anything) as up, serving(up) as proxy:
        await proxy.ask("m", messages=messages, optillm_approach=slug, user="marked")
        # Calls that produce an answer carry the client's fields.
        answers = [c.messages for c in up.calls if c.body.get("user") == "marked"]
        assert answers
        for sent in answers:
            rules = [m["content"] for m in sent if m["role"] == "system"]
            assert rules[0].startswith("first rule")
            assert rules[1].startswith("second rule")
            if len(sent) > 3:  # the conversation itself, not a question made of it
                assert [m["role"] for m in sent[:4]] == [m["role"] for m in messages[:4]]


@pytest.mark.parametrize("slug", ["bon", "moa", "self_consistency", "mcts"])
async def test_6_n_pipelines_run_at_the_same_time(slug: str) -> None:
    """Every pipeline's first call is held back until all of them are there."""
    all_here = asyncio.Event()

    async def script(call: Seen) -> Said:
        if call.stage == "sample" and not all_here.is_set():
            if up.in_flight == 4:
                all_here.set()
            await all_here.wait()
        return anything(call)

    async with ScriptedUpstream(script) as up, serving(up) as proxy:
        answer = await asyncio.wait_for(proxy.ask("m", optillm_approach=slug, n=4), 30)
        assert len(answer.json["choices"]) == 4


@pytest.mark.parametrize(("slug", "calls"), [("re2", 1), ("cot_reflection", 1), ("none", 1), ("bon", 2 * 4)])
async def test_6_the_servers_n_counts_once(slug: str, calls: int) -> None:
    async with ScriptedUpstream(anything) as up, serving(up, n=2) as proxy:
        answer = await proxy.ask("m", optillm_approach=slug)
        # For pass-through it is the upstream's business.
        assert len(answer.json["choices"]) == 2
        assert len(up.calls) == calls


async def test_7_calls_share_one_pool_of_connections() -> None:
    async with ScriptedUpstream(anything) as up, serving(up) as proxy:
        for key in ("a", "b", "c"):
            for model in ("m", "re2-m", "moa(critique=false,proposers=2)-m"):
                body = {"model": model, "messages": [{"role": "user", "content": "x"}]}
                await proxy.post(body, headers={"Authorization": f"Bearer {key}"})
        assert len(up.calls) == 12
        (port,) = {c.port for c in up.calls}
        assert port


async def test_8_keys_and_bodies_are_not_in_the_debug_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    logging.getLogger("optillm").setLevel(logging.DEBUG)
    async with ScriptedUpstream(anything) as up, serving(up, log="debug") as proxy:
        headers = {"Authorization": "Bearer sk-secret-of-a-client"}
        body = {"model": "bon-m", "messages": [{"role": "user", "content": "a private question"}]}
        answer = await proxy.post(body, headers=headers)
        assert up.calls[0].headers["Authorization"] == "Bearer sk-secret-of-a-client"
        up.script = Fault(status=500)
        failed = await proxy.post({**body, "optillm_progress": "off"}, headers=headers)
        assert failed.status == 502
        run = await proxy.get(f"/v1/runs/{answer.info['run_id']}")
        told = json.dumps([answer.json, failed.json, run.json])
    for secret in ("sk-secret-of-a-client", "upstream-key"):
        assert secret not in caplog.text
        assert secret not in told
    assert "a private question" not in caplog.text


async def test_9_batch_mode_streams_too() -> None:
    gate = asyncio.Event()
    reply = Reply("first second", pieces=("first", " second"), gate=gate)
    async with (
        ScriptedUpstream(reply) as up,
        serving(up, batch_mode=True, batch_size=4) as proxy,
    ):
        body = {"model": "re2-m", "messages": [{"role": "user", "content": "x"}], "stream": True}
        async with proxy.http.post(proxy.base_url + "/chat/completions", json=body) as response:
            while b"first" not in await asyncio.wait_for(response.content.readuntil(b"\n\n"), 30):
                pass
            assert up.calls[0].outcome == "open"
            gate.set()
            assert (await response.read()).endswith(b"data: [DONE]\n\n")


PLUGIN = """
import asyncio

SLUG = "old_async"


async def run(system_prompt, initial_query, client, model):
    await asyncio.sleep(0)
    loop = asyncio.get_running_loop()
    left_behind = asyncio.ensure_future(asyncio.sleep(3600))
    reply = client.chat.completions.create(model=model, messages=[{"role": "user", "content": initial_query}])
    return f"{reply.choices[0].message.content} {id(loop)}", reply.usage.completion_tokens
"""


async def test_14_async_plugins_leave_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "old_async.py").write_text(PLUGIN)
    registry = load_registry(str(tmp_path))
    ours = asyncio.get_running_loop()
    async with ScriptedUpstream("hello") as up, serving(up, registry=registry) as proxy:
        answers = [await proxy.ask("old_async-m") for _ in range(3)]
        assert [a.text.split()[0] for a in answers] == ["hello"] * 3
        assert str(id(ours)) not in {a.text.split()[1] for a in answers}
        for thread in [t for t in threading.enumerate() if t.name.startswith("plugin-")]:
            # It ends by itself, though the plugin left a task that sleeps for an hour.
            await asyncio.to_thread(thread.join, 30)
            assert not thread.is_alive()
        assert asyncio.get_running_loop() is ours


async def test_15_nothing_is_read_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trap = "SLUG = 'trap'\nraise SystemExit('loaded')\ndef run(*a): pass\n"
    for folder in (tmp_path, tmp_path / "plugins", tmp_path / "optillm" / "plugins"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "trap.py").write_text(trap)
    for name in ("optillm.toml", "config.toml", "cepo_config.yaml", ".env"):
        (tmp_path / name).write_text("port = 1\nOPTILLM_PORT=1\n")
    monkeypatch.chdir(tmp_path)
    registry = load_registry()
    assert "trap" not in registry
    assert load([], {}, registry).port == 8000


async def test_17_thinking_counts_also_when_it_was_cut_off() -> None:
    reply = Reply("<think>" + "x" * 41, usage={"completion_tokens": 100}, finish="length")
    async with ScriptedUpstream(reply) as up, serving(up) as proxy:
        answer = await proxy.ask("m")
        usage = (await proxy.get(f"/v1/runs/{answer.info['run_id']}")).json["usage"]
        assert usage["completion_tokens_details"]["reasoning_tokens"] == 11
        assert usage["total_tokens"] == usage["prompt_tokens"] + 100


async def test_18_the_model_list_is_cached_and_partial() -> None:
    async with ScriptedUpstream(models=("m1", "m2")) as up, serving(up) as proxy:
        lists = [(await proxy.get("/v1/models")).json for _ in range(3)]
        assert [[m["id"] for m in one["data"]] for one in lists] == [["m1", "m2"]] * 3
        assert up.lists == 1


@pytest.mark.parametrize(
    ("argv", "environ", "verify"),
    [
        ([], {}, True),
        ([], {"OPTILLM_SSL_VERIFY": "false"}, False),
        (["--ssl-verify"], {"OPTILLM_SSL_VERIFY": "false"}, True),
        (["--no-ssl-verify"], {"OPTILLM_SSL_VERIFY": "true"}, False),
        (["--no-ssl-verify"], {"OPTILLM_SSL_VERIFY": "false"}, False),
    ],
)
def test_19_the_flag_says_what_it_means(argv: list[str], environ: dict[str, str], verify: bool) -> None:
    assert load(argv, environ, REGISTRY).ssl_verify is verify


def test_20_nothing_of_the_package_evaluates_text() -> None:
    root = Path(optillm.__file__).parent
    # What the sandbox runs, in processes of its own.
    inside = root / "sandbox"
    for path in root.rglob("*.py"):
        if path == inside / "program.py":
            continue
        text = path.read_text()
        assert inside in path.parents or "sandbox.program import" not in text, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec", "compile"), path


HEAVY = ("torch", "spacy", "transformers", "numpy", "litellm", "openai", "azure", "xllamacpp", "z3", "pandas")


def test_21_the_start_imports_nothing_heavy() -> None:
    code = (
        "import sys, optillm, optillm.cli.main, optillm.faces.app, optillm.faces.serve, optillm.plugins\n"
        "optillm.plugins.load_registry()\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_line_is_accounted_for() -> None:
    """The table above names a place for each of the 21 lines, and each place exists."""
    table = __doc__ or ""
    entries = [line for line in table.splitlines() if line[:1].isdigit()]
    assert [int(line.partition(".")[0]) for line in entries] == list(range(1, 22))
    here = Path(__file__).parent
    for word in table.replace("``", " ").split():
        if word.endswith(".py"):
            assert (here / word).is_file(), word
