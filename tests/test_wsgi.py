"""The WSGI bridge takes all settings of the environment, those of plugins included."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from optillm.settings import SettingsError
from optillm.wsgi import create_app
from tests.fakes import ScriptedUpstream, ThreadedUpstream

PLUGIN = """
from optillm.core.params import ApproachParams, field
from optillm.core.registry import approach
from optillm.core.reply import Answer

class Params(ApproachParams):
    times: int = field(1, "samples", ge=1, le=9)

@approach("mine", family="x", title="Mine", calls="?", depth="1")
async def mine(task, llm, p: Params):
    return Answer(tuple(await llm.sample("mine", task.messages, p.times))[-1:])
"""


def test_settings_of_plugins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(PLUGIN)
    monkeypatch.setenv("OPTILLM_PLUGINS_DIR", str(tmp_path))
    monkeypatch.setenv("OPTILLM_APPROACH", "mine")
    monkeypatch.setenv("OPTILLM_MINE_TIMES", "2")
    monkeypatch.setenv("OPTILLM_LOG_CONVERSATIONS", "true")
    monkeypatch.setenv("OPTILLM_CONVERSATION_LOG_DIR", str(tmp_path / "log"))
    said: list[str] = []
    with ThreadedUpstream(ScriptedUpstream(["a", "b"])) as up:
        monkeypatch.setenv("OPTILLM_BASE_URL", up.base_url)
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x"}]}).encode()
        environ: dict[str, Any] = {
            "REQUEST_METHOD": "POST", "PATH_INFO": "/v1/chat/completions", "SCRIPT_NAME": "",
            "QUERY_STRING": "", "SERVER_NAME": "h", "SERVER_PORT": "80", "SERVER_PROTOCOL": "HTTP/1.1",
            "CONTENT_LENGTH": str(len(body)), "CONTENT_TYPE": "application/json",
            "wsgi.url_scheme": "http", "wsgi.input": io.BytesIO(body), "REMOTE_ADDR": "h", "REMOTE_PORT": "1",
        }  # fmt: skip
        app = create_app()
        data = b"".join(app(environ, lambda status, headers, info=None: said.append(status)))
        app.close()
    assert said == ["200 OK"]
    answer = json.loads(data)
    assert answer["choices"][0]["message"]["content"] == "b"
    assert answer["optillm"]["params"] == {"mine": {"times": 2}}
    # What waited to be written when it was closed is there.
    (logged,) = (tmp_path / "log").glob("*.jsonl")
    assert json.loads(logged.read_text())["run_id"] == answer["optillm"]["run_id"]


def test_a_bad_setting_stops_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTILLM_PORT", "x")
    with pytest.raises(SettingsError, match="OPTILLM_PORT must be an integer"):
        create_app()
