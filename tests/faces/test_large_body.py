"""Bodies of megabytes: read beside other requests, and as strictly as small ones."""

from __future__ import annotations

import asyncio
import json

import pytest

from optillm.faces.body import LARGE, read_request
from optillm.protocol.errors import InvalidRequest
from tests.fakes import ScriptedUpstream
from tests.serving import serving

pytestmark = pytest.mark.anyio


def body(size: int, **fields: object) -> bytes:
    """A request with a text of so many characters."""
    return json.dumps(
        {"model": "m", "messages": [{"role": "user", "content": "x" * size}], **fields}
    ).encode()


@pytest.mark.parametrize(("size", "others_run"), [(10, False), (LARGE, True)])
async def test_others_are_served_while_a_large_body_is_read(size: int, others_run: bool) -> None:
    other = asyncio.create_task(asyncio.sleep(0))
    raw, request = await read_request(body(size))
    assert len(raw["messages"][0]["content"]) == size
    assert request.model == "m"
    # A read that never leaves the loop gives nobody else a turn.
    assert other.done() is others_run
    await other


async def test_a_large_body_is_checked_like_a_small_one() -> None:
    with pytest.raises(InvalidRequest) as small:
        await read_request(body(10, n=0))
    with pytest.raises(InvalidRequest) as large:
        await read_request(body(LARGE, n=0))
    assert (large.value.message, large.value.param) == (small.value.message, "n")


@pytest.mark.parametrize("approach", ["none", "re2"])
async def test_a_large_question_reaches_the_model_whole(approach: str) -> None:
    question = "A word.\n" * (LARGE // 4)
    async with ScriptedUpstream(lambda call: "yes") as up, serving(up) as proxy:
        answer = await proxy.ask(f"{approach}-m", question)
        assert answer.text == "yes"
        said = up.calls[0].body["messages"][-1]["content"]
    assert said.startswith(question)
