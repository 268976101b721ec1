"""Techniques from elsewhere: installed packages, plugin files, and plugins of the old kind."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from optillm.core.registry import Registry
from optillm.plugins import builtin_registry, load_registry
from tests.fakes import Reply, Said, ScriptedUpstream, Seen, refusal
from tests.serving import serving

pytestmark = pytest.mark.anyio

HEAD = "SLUG = 'old'\ndef run(system_prompt, initial_query, client, model"
ASK = """
def ask(client, model, text, **more):
    return client.chat.completions.create(
        model=model, messages=[{'role': 'user', 'content': text}], **more)
"""


def plugin(folder: Path, source: str, name: str = "old.py", **options: Any) -> Registry:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(textwrap.dedent(source))
    return load_registry(str(folder), **options)


async def answered(registry: Registry, script: Any = "ok", model: str = "old-m", **fields: Any) -> Any:
    async with ScriptedUpstream(script) as up, serving(up, registry=registry) as proxy:
        return await proxy.ask(model, **fields), up.calls


# -- what a plugin is given -------------------------------------------------------------------


async def test_one_turn_is_given_as_it_is(tmp_path: Path) -> None:
    registry = plugin(tmp_path, HEAD + "):\n    return repr((system_prompt, initial_query, model)), 0")
    answer, calls = await answered(
        registry,
        messages=[
            {"role": "system", "content": "One."},
            {"role": "developer", "content": "Two."},
            {"role": "user", "content": [{"type": "text", "text": "User: x"}]},
        ],
    )
    assert answer.text == repr(("One.\n\nTwo.", "User: x", "m"))
    assert calls == []
    assert answer.info["calls"] == 0


async def test_several_turns_are_given_with_labels(tmp_path: Path) -> None:
    registry = plugin(tmp_path, HEAD + "):\n    return initial_query, 0")
    turns = [("user", "a"), ("assistant", "b"), ("user", "c")]
    answer, _ = await answered(registry, messages=[{"role": r, "content": t} for r, t in turns])
    assert answer.text == "User: a\nAssistant: b\nUser: c"


async def test_request_config_and_messages_are_private_copies(tmp_path: Path) -> None:
    source = """
        import json
        SLUG = 'old'
        def run(system_prompt, initial_query, client, model, request_config=None, messages=None):
            before = json.dumps([request_config, messages], sort_keys=True)
            request_config['stop'].append('changed'); request_config.clear(); messages.clear()
            return before, 0
    """
    registry = plugin(tmp_path, source)
    messages = [{"role": "user", "content": "x", "name": "ann"}]
    fields = {"temperature": 0.5, "stop": ["a"], "brand_new": {"a": [1]}}
    async with ScriptedUpstream() as up, serving(up, registry=registry) as proxy:
        answers = [await proxy.ask("old-m", messages=messages, n=2, **fields) for _ in range(2)]
    for answer in answers:
        for text in answer.texts:
            assert json.loads(text) == [{**fields, "n": 1}, messages]


# -- what it may return -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("returned", "texts"),
    [
        ("'a', 3", ["a"]),
        ("'a'", ["a"]),
        ("['a', 'b'], 3", ["a", "b"]),
        ("['a', 'b']", ["a", "b"]),
        ("{'choices': [{'message': {'content': 'a'}, 'finish_reason': 'length'}]}, 3", ["a"]),
        ("ask(client, model, 'x'), 3", ["ok"]),
        ("ask(client, model, 'x', n=2).model_dump(), 3", ["ok", "ok"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["def", "async def"])
async def test_whatever_it_returns(tmp_path: Path, returned: str, texts: list[str], kind: str) -> None:
    source = ASK + HEAD.replace("def", kind) + f"):\n    return {returned}"
    answer, _ = await answered(plugin(tmp_path, source))
    assert (answer.status, answer.texts) == (200, texts)
    if "length" in returned:
        assert answer.json["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ("return '', 0", 502, "upstream_empty"),
        ("return None", 502, "upstream_empty"),
        ("return [], 0", 502, "upstream_empty"),
        ("return {'no': 'choices'}, 0", 500, "plugin_failed"),
        ("raise ValueError('key-of-somebody')", 500, "plugin_failed"),
        ("raise SystemExit(1)", 500, "plugin_failed"),
    ],
)
async def test_no_answer(tmp_path: Path, body: str, status: int, code: str) -> None:
    answer, _ = await answered(plugin(tmp_path, HEAD + f"):\n    {body}"))
    assert (answer.status, answer.error["code"]) == (status, code)
    assert "key-of-somebody" not in answer.error["message"]


async def test_one_that_fails_beside_others_does_not_take_them_along(tmp_path: Path) -> None:
    registry = plugin(tmp_path, HEAD + "):\n    raise ValueError")
    answer, _ = await answered(registry, model="old|re2-m")
    assert (answer.status, answer.texts) == (200, ["ok"])
    assert "ValueError" in answer.info["failed"]["old"]


async def test_an_upstream_refusal_keeps_its_status(tmp_path: Path) -> None:
    registry = plugin(tmp_path, ASK + HEAD + "):\n    return ask(client, model, 'x'), 0")
    answer, _ = await answered(registry, refusal(404, "no such model"))
    assert (answer.status, answer.error["message"]) == (404, "no such model")


# -- its client -------------------------------------------------------------------------------


async def test_the_client_looks_like_the_sdk(tmp_path: Path) -> None:
    source = """
        import json
        from openai import NOT_GIVEN
        SLUG = 'old'
        def run(system_prompt, initial_query, client, model):
            reply = client.chat.completions.create(
                model=model, messages=[{'role': 'user', 'content': initial_query}], n=2, temperature=0.25,
                max_tokens=9, seed=NOT_GIVEN, stop=None, timeout=5, extra_headers={}, extra_body={'top_k': 3})
            choice = reply.choices[1]
            again = client.chat.completions.create(model='other', messages=[choice.message])
            piece = next(iter(client.chat.completions.create(
                model=model, messages=[{'role': 'user', 'content': 'x'}], stream=True)))
            return json.dumps({
                'text': choice.message.content, 'role': choice.message.role, 'why': choice.finish_reason,
                'tools': choice.message.tool_calls, 'usage': reply.usage.completion_tokens,
                'total': reply.usage.total_tokens, 'dump': reply.model_dump()['choices'][0]['message'],
                'json': json.loads(reply.model_dump_json())['object'], 'item': reply['model'],
                'more': hasattr(reply, 'usage'), 'again': again.choices[0].message.content,
                'piece': piece.choices[0].delta.content,
            }), reply.usage.completion_tokens
    """

    def script(call: Seen) -> Said:
        return [f"{call.body['model']} {i}" for i in range(call.n)]

    answer, calls = await answered(plugin(tmp_path, source), script)
    assert json.loads(answer.text) == {
        "text": "m 1", "role": "assistant", "why": "stop", "tools": None, "usage": 4, "total": 7,
        "dump": {"role": "assistant", "content": "m 0"}, "json": "chat.completion", "item": "m",
        "more": True, "again": "other 0", "piece": "m 0",
    }  # fmt: skip
    assert calls[0].body == {
        "model": "m", "messages": [{"role": "user", "content": "What is 2+2?"}], "n": 2,
        "temperature": 0.25, "max_tokens": 9, "stop": None, "top_k": 3,
    }  # fmt: skip
    assert calls[1].messages == [{"role": "assistant", "content": "m 1"}]
    assert "stream" not in calls[2].body


async def test_calls_are_counted_and_traced_with_their_depth(tmp_path: Path) -> None:
    source = (
        ASK
        + "from concurrent.futures import ThreadPoolExecutor\n"
        + HEAD
        + """):
    first = ask(client, model, 'one').choices[0].message.content
    with ThreadPoolExecutor(3) as pool:
        rest = list(pool.map(lambda i: ask(client, model, f'two {i}').usage.total_tokens, range(3)))
    ask(client, model, 'three')
    return f'{first} {rest}', 99
"""
    )
    waiting: list[Seen] = []
    all_there = asyncio.Event()

    async def script(call: Seen) -> Said:
        if "two" in call.text:
            # Answered only when all three are there: they do run at the same time.
            waiting.append(call)
            if len(waiting) == 3:
                all_there.set()
            await all_there.wait()
        return Reply("ok", usage={"prompt_tokens": 10, "completion_tokens": 1})

    async with ScriptedUpstream(script) as up, serving(up, registry=plugin(tmp_path, source)) as proxy:
        answer = await proxy.ask("old-m")
        run = (await proxy.get(f"/v1/runs/{answer.info['run_id']}")).json
    assert answer.text == "ok [11, 11, 11]"
    assert (answer.info["calls"], answer.info["depth"]) == (5, 3)
    assert answer.json["usage"]["total_tokens"] == 55
    assert [(r["unit"], r["depth"]) for r in run["records"]] == [
        ("old", 1), ("old", 2), ("old", 2), ("old", 2), ("old", 3),
    ]  # fmt: skip
    assert run["records"][4]["request"]["messages"] == [{"role": "user", "content": "three"}]


async def test_usage_is_that_of_the_calls_own_fan_out(tmp_path: Path) -> None:
    """Each create() asks for its own number of samples, all at once; none sees another's tokens."""
    source = (
        ASK
        + "from concurrent.futures import ThreadPoolExecutor\n"
        + HEAD
        + """):
    with ThreadPoolExecutor(4) as pool:
        used = pool.map(lambda n: ask(client, model, f'marker{n}', n=n).usage.completion_tokens, (1, 2, 3, 4))
        return str(list(used)), 0
"""
    )

    def script(call: Seen) -> Said:
        return Reply("ok", usage={"completion_tokens": 10 ** (int(call.text[-1]) - 1)})

    async with (
        ScriptedUpstream(script) as up,
        serving(up, registry=plugin(tmp_path, source), n_mode="fanout") as proxy,
    ):
        answer = await proxy.ask("old-m")
    assert answer.text == "[1, 20, 300, 4000]"
    assert answer.json["usage"]["completion_tokens"] == 4321
    assert answer.info["calls"] == 10


async def test_the_budget_holds_and_the_best_so_far_is_returned(tmp_path: Path) -> None:
    source = """
        SLUG = 'old'
        def run(system_prompt, initial_query, client, model):
            try:
                for i in range(9):
                    messages = [{'role': 'user', 'content': str(i)}]
                    client.chat.completions.create(model=model, messages=messages)
            except Exception as error:
                raise ValueError('my own words') from error
    """
    answer, calls = await answered(
        plugin(tmp_path, source), lambda c: f"reply {c.text}", optillm_budget={"max_calls": 3}
    )
    assert (answer.status, answer.text) == (200, "reply 0")
    assert answer.info["cut_short"] == "max_calls"
    assert len(calls) == 3


@pytest.mark.parametrize("kind", ["def", "async def"])
async def test_a_client_that_leaves_ends_the_call_and_the_next_one_is_refused(
    tmp_path: Path, kind: str
) -> None:
    source = f"""
        from pathlib import Path
        SLUG = 'old'
        {kind} run(system_prompt, initial_query, client, model):
            try:
                client.chat.completions.create(model=model, messages=[{{'role': 'user', 'content': 'x'}}])
            finally:
                try:
                    client.chat.completions.create(model=model, messages=[{{'role': 'user', 'content': 'y'}}])
                except RuntimeError as error:
                    Path({str(tmp_path / "seen.txt")!r}).write_text(str(error))
    """
    gate = asyncio.Event()

    async def script(call: Seen) -> Said:
        await gate.wait()
        return "ok"

    async with ScriptedUpstream(script) as up, serving(up, registry=plugin(tmp_path, source)) as proxy:
        body = {"model": "old-m", "messages": [{"role": "user", "content": "x"}]}
        async with aiohttp.ClientSession() as leaving:
            request = asyncio.ensure_future(leaving.post(proxy.url + "/v1/chat/completions", json=body))
            await up.until(lambda: up.in_flight == 1)
            threads = [t for t in threading.enumerate() if t.name == "plugin-old"]
            request.cancel()
        await up.until(lambda: up.in_flight == 0)
        for thread in threads:
            await asyncio.to_thread(thread.join, 30)
        assert len(up.calls) == 1
        assert up.calls[0].outcome == "cancelled"
        assert (tmp_path / "seen.txt").read_text() == "the request has ended"


async def test_a_request_at_once_is_as_if_alone(tmp_path: Path) -> None:
    source = (
        ASK
        + HEAD
        + """, request_config):
    texts = [ask(client, model, f'{initial_query} {i}').choices[0].message.content
             for i in range(request_config['top_k'])]
    return '|'.join(texts), 0
"""
    )
    registry = plugin(tmp_path, source)
    async with ScriptedUpstream(lambda c: c.text) as up, serving(up, registry=registry) as proxy:
        answers = await asyncio.gather(*(proxy.ask("old-m", f"q{i}", top_k=1 + i % 4) for i in range(24)))
    for i, answer in enumerate(answers):
        assert answer.text == "|".join(f"q{i} {j}" for j in range(1 + i % 4))
        assert answer.info["calls"] == answer.info["depth"] == 1 + i % 4


# -- loading ----------------------------------------------------------------------------------


def errors(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR)


def test_both_folders_are_read_and_others_are_not(tmp_path: Path) -> None:
    for name, slug in (("a.py", "a"), ("optillm/plugins/a.py", "b"), ("_c.py", "c"), ("sub/d.py", "d")):
        plugin(tmp_path, f"SLUG = {slug!r}\ndef run(s, q, c, m):\n    return 'x', 0", name)
    found = {a.slug for a in load_registry(str(tmp_path))} - {a.slug for a in builtin_registry()}
    assert found == {"a", "b"}


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import math\n\nimport no_such_module_1\n", "line 3: ModuleNotFoundError: No module named"),
        ("x = 1\ny = (\n", "line 2: SyntaxError"),
        ("def f():\n    raise ValueError('no')\nf()\n", "line 2: ValueError: no"),
        ("import sys\nsys.exit(1)\n", "line 2: SystemExit: 1"),
        ("x = 1\n", "neither an Approach nor SLUG and run"),
        ("SLUG = 'my-slug'\ndef run(s, q, c, m): pass\n", "'my-slug' cannot be a name"),
        ("SLUG = 'auto'\ndef run(s, q, c, m): pass\n", "'auto' cannot be a name"),
    ],
)
def test_a_file_that_fails_is_reported_and_the_others_load(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, source: str, said: str
) -> None:
    (tmp_path / "bad.py").write_text(source)
    registry = plugin(tmp_path, HEAD + "):\n    return 'x', 0", "good.py")
    assert "old" in registry
    assert str(tmp_path / "bad.py") in errors(caplog)
    assert said in errors(caplog)


def test_a_plugin_may_use_dataclasses(tmp_path: Path) -> None:
    source = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass A:\n    x: int\n" + HEAD + "):\n    return 'x', 0"
    )
    assert "old" in plugin(tmp_path, source)


def test_a_built_in_name_is_taken_only_with_the_flag(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = "SLUG = 'bon'\ndef run(s, q, c, m):\n    return 'x', 0"
    assert plugin(tmp_path, source)["bon"].family == "sampling"
    assert "'bon' is the name of a built-in approach (--allow-override)" in errors(caplog)
    assert plugin(tmp_path, source, allow_override=True)["bon"].family == "plugin"


def test_two_plugins_of_one_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.py", "b.py"):
        plugin(tmp_path, f'"""{name}"""\n' + HEAD + "):\n    return 'x', 0", name)
    caplog.clear()
    assert load_registry(str(tmp_path))["old"].title == "a.py"
    assert f"'old' is the name of plugin {tmp_path / 'a.py'}" in errors(caplog)


NEW = """
    from optillm.core.params import ApproachParams, field
    from optillm.core.registry import approach
    from optillm.core.reply import Answer, eligible

    class Params(ApproachParams):
        samples: int = field(3, "candidates", ge=1, le=16)

    @approach("shortest", family="sampling", title="The shortest", calls="σ(samples)", depth="1",
              worst=lambda p, sigma: sigma(p.samples))
    async def shortest(task, llm, p: Params):
        found = eligible(await llm.sample("shortest.sample", task.messages, p.samples))
        return Answer((min(found, key=lambda r: len(r.text)),))
"""


async def test_a_technique_in_a_file(tmp_path: Path) -> None:
    registry = plugin(tmp_path, NEW)
    answer, calls = await answered(
        registry, lambda c: ["x" * (5 - i) for i in range(c.n)], "shortest-m", shortest_samples=4
    )
    assert (answer.text, calls[0].n) == ("xx", 4)


def test_an_installed_package_brings_its_techniques(tmp_path: Path) -> None:
    """A real distribution, found by its metadata, in a process of its own."""
    site = tmp_path / "site"
    info = site / "shortest-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "my_shortest.py").write_text(textwrap.dedent(NEW))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shortest\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[optillm.approaches]\nshortest = my_shortest:shortest\n"
        "broken = my_missing:thing\nwrong = my_shortest:Params\n"
    )
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "from optillm.cli.main import main; sys.exit(main(['approaches']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "shortest           The shortest  [σ(samples); depth 1]" in done.stdout
    assert "bon " in done.stdout
    assert "entry point my_missing:thing cannot be loaded" in done.stderr
    assert "entry point my_shortest:Params is not an Approach" in done.stderr
