"""The conversation log: its format, its limits, and what a crash leaves."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import aiohttp
import pytest

from optillm.core.budget import Limits
from optillm.core.run import Caps, Run
from optillm.observe.conversations import ConversationLog, Entry
from optillm.settings import Key, sha256
from optillm.upstreams.capabilities import Capabilities
from tests.fakes import Said, ScriptedUpstream, Seen, refusal
from tests.serving import serving

pytestmark = pytest.mark.anyio

FIELDS = [
    "timestamp", "request_id", "approach", "model", "client_request", "provider_calls", "final_response",
    "total_duration_ms", "error", "tenant", "run_id", "usage",
]  # fmt: skip


def anything(call: Seen) -> Said:
    return "Score: 5" if call.stage in ("rate", "eval") else [f"text {i}" for i in range(call.n)]


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted(folder.glob("*")) for line in path.read_text().splitlines()]


def entry(created: float = 0.0, **request: Any) -> Entry:
    def nowhere(model: str) -> Any:
        raise NotImplementedError

    made = Run(
        id="chatcmpl-0123456789abcdef", tenant="t", model="m", resolve=nowhere, learned=Capabilities(),
        caps=Caps(), limits=Limits(),
    )  # fmt: skip
    return Entry(created, "none", "m", request, made, None, None, MappingProxyType({}))


async def test_one_object_per_request(tmp_path: Path) -> None:
    settings: Any = {"log_conversations": True, "conversation_log_dir": str(tmp_path)}
    async with ScriptedUpstream(anything) as up:
        async with serving(up, **settings) as proxy:
            answer = await proxy.ask("bon-m", best_of_n=2, user="ann")
            streamed = await proxy.events("none-m")
        plain, stream = lines(tmp_path)
    (path,) = tmp_path.glob("*")
    assert re.fullmatch(r"conversations_\d{4}-\d\d-\d\d\.jsonl", path.name)
    assert list(plain) == FIELDS
    stamp = datetime.fromisoformat(plain["timestamp"])
    assert stamp.utcoffset() is not None
    assert stamp.tzinfo == UTC
    assert path.name == f"conversations_{stamp.date().isoformat()}.jsonl"
    assert re.fullmatch(r"req_[0-9a-f]{8}", plain["request_id"])
    assert (plain["approach"], plain["model"], plain["tenant"]) == ("bon", "m", "default")
    assert (plain["run_id"], plain["error"]) == (answer.info["run_id"], None)
    assert plain["client_request"] == {
        "model": "bon-m", "messages": [{"role": "user", "content": "What is 2+2?"}],
        "best_of_n": 2, "user": "ann",
    }  # fmt: skip
    assert plain["usage"] == answer.json["usage"]
    assert isinstance(plain["total_duration_ms"], int)
    calls = plain["provider_calls"]
    assert [list(c) for c in calls] == [["call_number", "timestamp", "request", "response"]] * 3
    assert [c["call_number"] for c in calls] == [1, 2, 3]
    assert calls[0]["timestamp"] >= plain["timestamp"]
    assert calls[0]["request"] == up.calls[0].body
    assert [c["message"]["content"] for c in calls[0]["response"]["choices"]] == ["text 0", "text 1"]
    assert calls[0]["response"]["usage"]["total_tokens"] > 0
    final = plain["final_response"]
    assert final["choices"][0]["message"]["content"] == answer.text
    assert (final["id"], final["usage"]) == (answer.json["id"], answer.json["usage"])
    assert stream["final_response"]["choices"][0]["message"]["content"] == "text 0"
    assert streamed[-1] == "[DONE]"


async def test_requests_that_fail_or_are_left(tmp_path: Path) -> None:
    gate = asyncio.Event()

    async def script(call: Seen) -> Said:
        if "leave" in call.text:
            await gate.wait()
        return refusal(404, "no such model")

    settings: Any = {"log_conversations": True, "conversation_log_dir": str(tmp_path)}
    async with ScriptedUpstream(script) as up, serving(up, **settings) as proxy:
        await proxy.ask("bon-m")
        body = {"model": "m", "messages": [{"role": "user", "content": "leave"}]}
        async with aiohttp.ClientSession() as leaving:
            request = asyncio.ensure_future(leaving.post(proxy.url + "/v1/chat/completions", json=body))
            await up.until(lambda: up.in_flight == 1)
            request.cancel()
        await up.until(lambda: up.in_flight == 0)
    failed, left = lines(tmp_path)
    assert "no such model" in failed["error"]
    assert failed["final_response"] is None
    assert "no such model" in failed["provider_calls"][0]["response"]["error"]["message"]
    assert left["error"] == "the client went away"
    assert left["provider_calls"][0]["response"] == {"error": {"message": "CancelledError"}}


async def test_secrets_are_blacked_out_and_tenants_are_named(tmp_path: Path) -> None:
    settings: Any = {"log_conversations": True, "conversation_log_dir": str(tmp_path)}
    keys = (Key("team", sha256("server-secret")),)
    async with ScriptedUpstream(anything) as up, serving(up, keys=keys, **settings) as proxy:
        messages = [{"role": "user", "content": "x"}]
        body = {"model": "m", "messages": messages, "metadata": {"Authorization": "s-1"}, "api_key": "s-2"}
        await proxy.post(body, headers={"Authorization": "Bearer server-secret"})
    (logged,) = lines(tmp_path)
    assert logged["tenant"] == "team"
    assert logged["client_request"]["metadata"] == {"Authorization": "[redacted]"}
    assert logged["provider_calls"][0]["request"]["api_key"] == "[redacted]"
    text = json.dumps(logged)
    assert not any(secret in text for secret in ("server-secret", "upstream-key", "s-1", "s-2"))


async def test_one_file_per_utc_day(tmp_path: Path) -> None:
    log = ConversationLog(str(tmp_path))
    log.start()
    midnight = datetime(2031, 5, 6, tzinfo=UTC).timestamp()
    for created in (midnight - 0.001, midnight, midnight + 86399):
        log.put(entry(created))
    await log.aclose()
    counts = {p.name: len(p.read_text().splitlines()) for p in tmp_path.glob("*")}
    assert counts == {"conversations_2031-05-05.jsonl": 1, "conversations_2031-05-06.jsonl": 2}
    assert lines(tmp_path)[0]["timestamp"] == "2031-05-05T23:59:59.999000+00:00"


async def test_an_overflow_is_counted_and_nobody_waits(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = ConversationLog(str(tmp_path), size=2)
    log.start()
    # The writer has had no turn yet.
    for i in range(5):
        log.put(entry(number=i))
    assert log.lost == 3
    await log.aclose()
    assert [line["client_request"]["number"] for line in lines(tmp_path)] == [0, 1]
    assert "3 entries were not written" in caplog.text


async def test_part_of_a_line_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = tmp_path / "conversations_1970-01-01.jsonl"
    path.write_text('{"whole": 1}\n{"timestamp": "19')
    log = ConversationLog(str(tmp_path))
    log.start()
    log.put(entry(number=1))
    log.put(entry(number=2))
    await log.aclose()
    first, broken, *rest = path.read_text().splitlines()
    assert (first, broken) == ('{"whole": 1}', '{"timestamp": "19')
    assert [json.loads(line)["client_request"]["number"] for line in rest] == [1, 2]


async def test_an_entry_that_cannot_be_written_does_not_end_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = ConversationLog(str(tmp_path))
    log.start()
    log.put(entry(bad=object()))
    log.put(entry(number=2))
    await log.aclose()
    assert [line["client_request"] for line in lines(tmp_path)] == [{"number": 2}]
    assert log.lost == 1
    assert any(r.levelno == logging.WARNING and "TypeError" in r.getMessage() for r in caplog.records)


async def test_a_log_that_never_started_closes() -> None:
    log = ConversationLog("/nowhere", size=1)
    log.put(entry())
    await log.aclose()


async def test_lines_of_processes_stay_whole(tmp_path: Path) -> None:
    code = (
        "import asyncio, sys; from tests.observe.test_conversations import ConversationLog, entry\n"
        "async def main():\n"
        f"    log = ConversationLog({str(tmp_path)!r})\n"
        "    log.start()\n"
        "    for i in range(50):\n"
        "        log.put(entry(number=i, text=sys.argv[1] * 50_000))\n"
        "    await log.aclose()\n"
        "asyncio.run(main())"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", code, letter], stderr=subprocess.PIPE)  # noqa: ASYNC220
        for letter in "abc"
    ]
    assert [(w.communicate()[1], w.returncode) for w in writers] == [(b"", 0)] * 3
    requests = [line["client_request"] for line in lines(tmp_path)]
    assert len(requests) == 150
    assert {len(r["text"]) for r in requests} == {50_000}
    assert all(len(set(r["text"])) == 1 for r in requests)
