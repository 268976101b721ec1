"""The envelopes of errors: always the same four members, and the status that the specification names."""

from __future__ import annotations

from typing import Any

import pytest

from optillm.protocol import errors as e

ALL: list[tuple[e.OptiError, int, str, dict[str, str]]] = [
    (e.InvalidRequest("m", param="n"), 400, "invalid_request_error", {}),
    (e.Unauthorized("m"), 401, "authentication_error", {"WWW-Authenticate": "Bearer"}),
    (e.Forbidden("m"), 403, "permission_error", {}),
    (e.NotFound("m"), 404, "not_found_error", {}),
    (e.MethodNotAllowed("m", "GET, HEAD"), 405, "invalid_request_error", {"Allow": "GET, HEAD"}),
    (e.BodyTimeout("m"), 408, "invalid_request_error", {}),
    (e.BodyTooLarge("m"), 413, "invalid_request_error", {}),
    (e.OptiError("m"), 500, "internal_error", {}),
    (e.MissingExtra("azure", "Azure"), 501, "not_implemented_error", {}),
    (e.UpstreamError("m"), 502, "upstream_error", {}),
    (e.UpstreamEmpty("m"), 502, "upstream_empty", {}),
    (e.Overloaded("m", 2.5), 503, "overloaded_error", {"Retry-After": "2.5"}),
    (e.UpstreamTimeout("m"), 504, "upstream_timeout", {}),
    (e.BudgetExceeded("deadline"), 504, "upstream_timeout", {}),
    (e.BudgetExceeded("shutdown"), 503, "budget_exceeded", {}),
    (e.BudgetExceeded("max_calls"), 400, "budget_exceeded", {}),
    (e.UpstreamError("m", upstream_status=429, retry_after="7"), 429, "upstream_error", {"Retry-After": "7"}),
    (e.UpstreamError("m", upstream_status=500), 502, "upstream_error", {}),
    (e.UpstreamError("m", upstream_status=302), 502, "upstream_error", {}),
]


@pytest.mark.parametrize(("error", "status", "kind", "headers"), ALL)
def test_envelope(error: e.OptiError, status: int, kind: str, headers: dict[str, str]) -> None:
    body = error.envelope()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert (error.status, body["error"]["type"], error.headers()) == (status, kind, headers)


def test_a_budget_names_its_field() -> None:
    assert e.BudgetExceeded("max_tokens").envelope()["error"]["param"] == "optillm_budget.max_tokens"


@pytest.mark.parametrize("body", [None, {}, {"error": "text"}, {"detail": "text"}, {"error": []}])
def test_a_refusal_of_another_shape_gets_the_envelope(body: Any) -> None:
    error = e.UpstreamError("upstream 'up' answered 422: text", upstream_status=422, body=body)
    assert error.status == 422
    assert error.envelope()["error"]["message"] == "upstream 'up' answered 422: text"


def test_a_refusal_comes_back_as_it_was() -> None:
    body = {"error": {"message": "no", "type": "t", "param": "x", "code": 7, "more": [1]}, "also": "this"}
    assert e.UpstreamError("m", upstream_status=404, body=body).envelope() == body


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_is_the_upstreams(status: int) -> None:
    body = {"error": {"message": "Incorrect API key", "type": "t", "param": None, "code": "c"}}
    shown = e.UpstreamError("m", upstream_status=status, body=body).envelope()["error"]
    assert shown["message"] == "upstream refused its key: Incorrect API key"
    assert (shown["type"], shown["code"]) == ("t", "c")


def test_long_texts_are_cut() -> None:
    shown = e.InvalidRequest("m" * 10_000, param="p" * 10_000).envelope()["error"]
    assert (len(shown["message"]), len(shown["param"])) == (2000, 200)


def test_near_names() -> None:
    assert e.near_names("mtcs", ["mcts", "moa"]) == " Did you mean 'mcts'?"
    assert e.near_names("zzz", ["b", "a"]) == " Known: a, b."
    assert e.near_names("m" * 10**6, ["mcts"]) == " Known: mcts."
