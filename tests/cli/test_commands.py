"""The ``optillm`` command, as it is typed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from optillm.cli.main import main, print_record
from optillm.core.reply import Reply
from optillm.core.trace import CallRecord, NoteRecord
from optillm.core.usage import Usage
from optillm.plugins import builtin_registry
from optillm.version import __version__
from tests.fakes import Said, ScriptedUpstream, Seen, ThreadedUpstream


def run(*argv: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, without any provider's variable."""
    kept = {k: v for k, v in os.environ.items() if not k.endswith("_API_KEY") and "OPTILLM" not in k}
    return subprocess.run(
        [sys.executable, "-m", "optillm", *argv],
        env={**kept, **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def anything(call: Seen) -> Said:
    if call.stage in ("rate", "eval"):
        return "Score: 5"
    return [f"text {i}" for i in range(call.n)]


@pytest.mark.parametrize("argv", [["--version"], ["serve", "--version"], ["ask", "--version"]])
def test_version(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 0
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize("argv", [["--help"], ["serve", "--help"], ["ask", "--help"]])
def test_help(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(argv)
    said = capsys.readouterr().out
    assert f"usage: optillm {argv[0] if argv[0] != '--help' else 'serve'}" in said
    assert "--mcts-simulations" in said
    assert "optillm ask QUESTION" in said


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["frobnicate"], "optillm: unknown command 'frobnicate'; one of serve, ask, approaches"),
        (["--port", "x"], "optillm: --port must be an integer"),
        (["serve", "--port", "x"], "optillm: --port must be an integer"),
        (["ask"], "optillm: the following arguments are required: question"),
        (["ask", "Q", "--prot", "1"], "optillm: unknown argument '--prot'"),
    ],
)
def test_a_mistake_is_one_sentence(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(said)
    assert captured.err.count("\n") == 1


def test_approaches(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["approaches"]) == 0
    listed = capsys.readouterr().out
    for approach in builtin_registry():
        assert re.search(rf"^{approach.slug} +{re.escape(approach.title)}  \[", listed, re.M)
    assert main(["approaches", "--markdown", str(tmp_path / "pages")]) == 0
    for approach in builtin_registry():
        page = (tmp_path / "pages" / f"{approach.slug}.md").read_text()
        for param in approach.params:
            assert f"`{param.request_name}`" in page


def test_ask_with_its_trace() -> None:
    with ThreadedUpstream(ScriptedUpstream(anything)) as up:
        argv = ("ask", "Why?", "--trace", "--best-of-n", "2", "--base-url", up.base_url, "--model", "bon-m")
        done = run(*argv, OPTILLM_BON_TEMPERATURE="0.25")
    assert (done.returncode, done.stderr) == (0, "")
    *lines, summary = done.stdout.rstrip().split("\n")
    assert re.match(r"  bon\.sample  \d+\.\d\d s, \d+ tokens: text 0 \| text 1$", lines[0])
    assert sorted(line.split()[1] for line in lines[1:3]) == ["@0", "@1"]
    assert lines[3].startswith("  * bon.scores ")
    assert lines[4] == "text 0"
    assert summary.startswith("bon on m: 3 calls, depth 2, ")
    # Every setting of the server holds.
    assert (up.calls[0].body["n"], up.calls[0].body["temperature"]) == (2, 0.25)


def test_ask_without_its_trace_prints_the_answer_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPTILLM_APPROACH", "re2")
    with ThreadedUpstream(ScriptedUpstream(anything)) as up:
        assert main(["ask", "Why?", "--base-url", up.base_url]) == 0
    assert capsys.readouterr().out == "text 0\n"
    assert up.calls[0].text.count("Why?") == 2


def test_ask_tells_what_the_upstream_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", "Why?", "--base-url", "http://127.0.0.1:9/v1", "--retries", "0"]) == 2
    assert "cannot be reached" in capsys.readouterr().err


def test_a_trace_is_printed_by_depth_with_failures(capsys: pytest.CaptureFixture[str]) -> None:
    call: dict[str, Any] = {"unit": "u", "upstream": "up", "request": {}, "started": 1.0, "depth": 2}
    print_record(
        CallRecord("u.x", tag="t", ended=1.5, replies=(Reply.of("a\n b"),), usage=Usage(2, 3), **call)
    )
    print_record(CallRecord("u.y", ended=1.5, error="it broke", **call))
    print_record(NoteRecord("u.z", "u", 2.0, {"scores": [1]}))
    assert capsys.readouterr().out.split("\n") == [
        "    u.x @t  0.50 s, 5 tokens: a b",
        "    u.y  0.50 s, 0 tokens: failed: it broke",
        "  * u.z {'scores': [1]}",
        "",
    ]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_what_cannot_be_opened_stops_the_start(tmp_path: Path, workers: str) -> None:
    (tmp_path / "file").write_text("")
    store = f"sqlite:///{tmp_path}/file/runs.db"
    done = run("--base-url", "http://h/v1", "--port", "0", "--store", store, "--workers", workers)
    assert done.returncode in (2, 3)
    assert "--store: cannot open" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_library_stops_the_start(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text('[upstreams.a]\nkind = "llamacpp"\nmodel_path = "/nowhere.gguf"\n')
    done = run("serve", "--config", str(config), "--port", "0", "--workers", "2")
    assert done.returncode == 3
    assert "there is no model file /nowhere.gguf" in done.stderr


def test_the_log_has_no_keys(tmp_path: Path) -> None:
    """At the most talkative level, through a request that the upstream refuses."""
    with ThreadedUpstream(ScriptedUpstream(anything)) as up:
        environ = {"OPENAI_API_KEY": "secret-of-upstream", "OPTILLM_API_KEY": "secret-of-server"}
        argv = ["--base-url", up.base_url, "--log", "debug", "--port", "0", "--log-conversations"]
        argv += ["--conversation-log-dir", str(tmp_path)]
        serving = subprocess.Popen(
            [sys.executable, "-m", "optillm", *argv],
            env={**os.environ, **environ},
            stderr=subprocess.PIPE,
            text=True,
        )
        assert serving.stderr is not None
        said, port = "", None
        while port is None:
            line = serving.stderr.readline()
            assert line, said
            said += line
            found = re.search(r"127\.0\.0\.1:(\d+)", line)
            port = found[1] if found else None
        code = (
            "from openai import OpenAI\n"
            f"c = OpenAI(base_url='http://127.0.0.1:{port}/v1', api_key='secret-of-server')\n"
            "print(c.chat.completions.create(model='re2-m', messages=[{'role': 'user', 'content': 'x'}]))"
        )
        asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        serving.send_signal(signal.SIGTERM)
        said += serving.communicate(timeout=30)[1]
    assert "text 0" in asked.stdout
    assert up.calls[0].headers["Authorization"] == "Bearer secret-of-upstream"
    (logged,) = tmp_path.glob("*.jsonl")
    assert "secret" not in said + logged.read_text()
