"""An external reward model: a conversation in, one number out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from wreq import Client

from optillm.protocol.errors import UpstreamError
from optillm.upstreams.http import post_json


class HTTPRewardModel:
    """A reward model behind a URL that takes ``{"model": …, "messages": [...]}``.

    The conversation ends with the candidate as the assistant's turn. Read are the shapes that servers of
    reward models send: ``{"score": x}``, ``{"scores": [x]}``, ``{"data": [{"score": x}]}`` and vLLM's
    pooling answer ``{"data": [{"data": [x]}]}`` (of several numbers the last, that of the last token).

    Args:
        url: where conversations are posted.
        key: sent as Bearer, if any.
        model: the name to send; empty sends none.
        client: the process's HTTP client.
        timeout: seconds for a whole call.
    """

    name = "reward"

    def __init__(
        self, url: str, client: Client, *, key: str = "", model: str = "", timeout: float = 60
    ) -> None:
        self._url, self._client, self._model, self._timeout = url, client, model, timeout
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    async def score(self, messages: Sequence[Mapping[str, Any]]) -> float:
        """The reward, on the model's own scale.

        Raises:
            UpstreamError: it refused, or sent no finite number.
            UpstreamTimeout: it did not answer in time.
        """
        body: dict[str, Any] = {"messages": messages}
        if self._model:
            body["model"] = self._model
        data = await post_json(
            self._client, self._url, body, self._headers, seconds=self._timeout, whom="the reward model"
        )
        found = _number(_decoded(data))
        if found is None:
            raise UpstreamError(f"the reward model sent no score: {data[:120].decode(errors='replace')!r}")
        return found


def _decoded(data: bytes) -> Any:
    try:
        return msgspec.json.decode(data)
    except msgspec.DecodeError:
        return None


def _number(value: Any) -> float | None:
    """The number in any of the shapes that are read; None if there is none."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, list) and value:
        return _number(value[-1])
    if isinstance(value, dict):
        return next((_number(value[k]) for k in ("score", "scores", "reward", "data") if k in value), None)
    return None
