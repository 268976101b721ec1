"""Estimated tokens: additive, sane for every script, and near the embedded model's own count."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optillm.core.task import Task
from optillm.core.tokens import IMAGE_TOKENS, count, message_tokens, weigh
from optillm.upstreams.embedding import local_embedder
from optillm.upstreams.llamacpp import PACKAGED_NAME

SAMPLES = {
    "english": "The committee announced on Tuesday that it had found the proposal unacceptable. ",
    "german": "Die Untersuchungen wurden am Dienstag fortgesetzt, als die Behörden dies ankündigten. ",
    "russian": "Расследование продолжалось во вторник, когда об этом объявили власти. ",
    "arabic": "استمرت التحقيقات يوم الثلاثاء عندما أعلن المسؤولون ذلك ",
    "chinese": "调查于周二继续进行，当时官员宣布委员会认为该提案不可接受。",
    "japanese": "調査は火曜日も続けられ、委員会がその提案を受け入れられないと判断した。",
    "korean": "당국자들은 위원회가 그 제안을 받아들일 수 없다고 발표했다. ",
    "hindi": "जांच मंगलवार को जारी रही जब अधिकारियों ने घोषणा की। ",
    "thai": "การสอบสวนดำเนินต่อไปในวันอังคารเมื่อเจ้าหน้าที่ประกาศ",
    "code": "def add(a: int, b: int) -> int:\n    return sum((a, b))\n\n",
    "json": json.dumps({"id": 12, "tags": ["a", "b"], "ok": True}, indent=2),
    "hash": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08 ",
    "numbers": "3.14159265 2718281828 17, 42; 1024 ",
}


@pytest.fixture(scope="module")
def engine() -> Any:
    """The embedded model, which tells how many tokens it read."""
    return local_embedder(PACKAGED_NAME)._load()


@pytest.mark.parametrize("kind", SAMPLES)
def test_near_the_count_of_a_real_vocabulary(kind: str, engine: Any) -> None:
    text = SAMPLES[kind] * 5
    true = engine.handle_embeddings({"input": text})["usage"]["prompt_tokens"]
    assert 0.5 * true <= count(text) <= 2 * true, (count(text), true)


def test_english_is_never_underestimated(engine: Any) -> None:
    text = SAMPLES["english"] * 10
    assert count(text) >= engine.handle_embeddings({"input": text})["usage"]["prompt_tokens"]


@given(st.text(), st.text())
def test_additive_but_for_runs_without_spaces(a: str, b: str) -> None:
    apart = weigh(a) + weigh(b)
    joined = len((a + b).encode("utf-8", "replace"))
    assert apart - 1e-6 <= weigh(a + b) <= apart + 0.36 * joined


@given(st.text(min_size=1))
def test_every_text_has_a_token(text: str) -> None:
    assert count(text) >= 1


def test_nothing_has_none_and_half_a_character_is_no_error() -> None:
    assert count("") == 0
    assert count("\ud800") >= 1


def test_images_and_tool_calls_count() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}}
    call = {"id": "1", "function": {"name": "look", "arguments": json.dumps({"q": "word " * 100})}}
    task = Task.of(
        [
            {"role": "user", "content": [{"type": "text", "text": "hi"}, picture]},
            {"role": "assistant", "content": None, "tool_calls": [call]},
        ]
    )
    assert IMAGE_TOKENS < message_tokens(task.messages[0]) < IMAGE_TOKENS + 20
    assert message_tokens(task.messages[1]) > 100
