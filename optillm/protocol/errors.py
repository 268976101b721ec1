"""Everything that can go wrong, and how it looks on the wire.

One small tree. Code raises the class that says what happened; the faces turn it into the
OpenAI error envelope ``{"error": {"message", "type", "param", "code"}}`` in one place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any


class OptiError(Exception):
    """Base of all errors a client may see.

    Attributes:
        status: HTTP status code.
        type: the envelope's ``type``.
        code: the envelope's ``code``, or None.
        param: the request field at fault, or None.
    """

    status = 500
    type = "internal_error"
    code: str | None = None

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or type(self).code

    def envelope(self) -> dict[str, Any]:
        """The OpenAI-shaped error body."""
        error = {
            "message": _shortened(self.message, 2000),
            "type": self.type,
            "param": _shortened(self.param, 200) if self.param else self.param,
            "code": self.code,
        }
        return {"error": error}

    def headers(self) -> dict[str, str]:
        """Extra response headers of this error."""
        return {}


class InvalidRequest(OptiError):
    """The request breaks a rule; ``param`` names the field."""

    status = 400
    type = "invalid_request_error"


class Unauthorized(OptiError):
    """No key, or a wrong one, for *this* server."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"

    def headers(self) -> dict[str, str]:
        return {"WWW-Authenticate": "Bearer"}


class Forbidden(OptiError):
    """The key is good, but not for this."""

    status = 403
    type = "permission_error"


class NotFound(OptiError):
    """No such path, model, run or approach."""

    status = 404
    type = "not_found_error"


class MethodNotAllowed(OptiError):
    """The path exists, the method does not."""

    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"

    def __init__(self, message: str, allow: str) -> None:
        super().__init__(message)
        self.allow = allow

    def headers(self) -> dict[str, str]:
        return {"Allow": self.allow}


def only(method: str, *allowed: str) -> None:
    """Refuse the HTTP methods that a path does not have.

    Raises:
        MethodNotAllowed: it is not one of those allowed.
    """
    if method not in allowed:
        allow = ", ".join(allowed)
        raise MethodNotAllowed(f"{method} is not possible here; allowed: {allow}", allow)


class BodyTimeout(OptiError):
    """The client did not finish sending its request."""

    status = 408
    type = "invalid_request_error"
    code = "request_timeout"


class BodyTooLarge(OptiError):
    """The request body is over the configured size."""

    status = 413
    type = "invalid_request_error"
    code = "request_too_large"


class MissingExtra(OptiError):
    """An optional library is needed; the message is the command that installs it."""

    status = 501
    type = "not_implemented_error"
    code = "missing_extra"

    def __init__(self, extra: str, what: str) -> None:
        super().__init__(f"{what} needs an optional library: pip install 'optillm[{extra}]'")
        self.extra = extra


class SandboxUnavailable(OptiError):
    """Code has to be run, and there is nothing that could hold it; the message says what is missing."""

    status = 501
    type = "not_implemented_error"
    code = "sandbox_unavailable"


class NotConfigured(OptiError):
    """The request needs a service that this server was not given; the message says which setting."""

    status = 501
    type = "not_implemented_error"
    code = "not_configured"


class StoreError(OptiError):
    """The store is locked, full, read-only or gone; nothing that was committed is lost."""

    status = 503
    type = "api_error"
    code = "store_failed"


class Overloaded(OptiError):
    """The server is shutting down or full; try again later."""

    status = 503
    type = "overloaded_error"
    code = "overloaded"

    def __init__(self, message: str, retry_after: float = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after

    def headers(self) -> dict[str, str]:
        return {"Retry-After": f"{self.retry_after:g}"}


class UpstreamError(OptiError):
    """The upstream refused or broke.

    A 4xx keeps the upstream's status, body and Retry-After; anything else becomes 502.

    Args:
        message: one sentence with the cause.
        upstream_status: the upstream's HTTP status, or None if there was no answer.
        body: the upstream's body, at most some kilobytes of it.
        retry_after: the upstream's Retry-After header, verbatim.
    """

    status = 502
    type = "upstream_error"
    code = "upstream_error"

    def __init__(
        self,
        message: str,
        *,
        upstream_status: int | None = None,
        body: Mapping[str, Any] | None = None,
        retry_after: str | None = None,
    ) -> None:
        super().__init__(message)
        self.upstream_status = upstream_status
        self.body = body
        self.retry_after = retry_after
        if upstream_status is not None and 400 <= upstream_status < 500:
            self.status = upstream_status

    def envelope(self) -> dict[str, Any]:
        error = self.body.get("error") if self.body else None
        if self.body is None or self.status == 502 or not isinstance(error, Mapping):
            return super().envelope()
        if self.status in (401, 403):
            # So that nobody looks for the fault in the key of this server.
            error = {**error, "message": f"upstream refused its key: {error.get('message', '')}"}
            return {**self.body, "error": error}
        return dict(self.body)

    def headers(self) -> dict[str, str]:
        return {"Retry-After": self.retry_after} if self.retry_after else {}


class UpstreamEmpty(OptiError):
    """The upstream answered, but with nothing that can be used."""

    status = 502
    type = "upstream_empty"
    code = "upstream_empty"


class UpstreamTimeout(OptiError):
    """The upstream did not answer in time."""

    status = 504
    type = "upstream_timeout"
    code = "upstream_timeout"


class BudgetExceeded(OptiError):
    """The run may spend no more; the edge of the run returns the best answer so far.

    Args:
        limit: which limit ended it: ``max_calls``, ``max_tokens``, ``max_seconds``, ``max_cost``,
            ``deadline`` (the server's own) or ``shutdown``.
    """

    status = 504
    type = "budget_exceeded"

    def __init__(self, limit: str) -> None:
        super().__init__(f"the request's budget ended ({limit}) before there was an answer", code=limit)
        self.limit = limit
        if limit == "shutdown":
            self.status = 503
        elif limit == "deadline":
            # The upstream's own time-out is as long: the client sees the same, whichever is first.
            self.type = self.code = UpstreamTimeout.type
            self.message = "the upstream did not answer within the server's time for a request"
        else:
            self.status = 400
            self.param = f"optillm_budget.{limit}"


def internal_error(request_id: str) -> OptiError:
    """What a client is told of a fault of the server: nothing but where its owner finds it."""
    return OptiError(f"internal error; the server's log tells more under {request_id}")


def near_names(name: str, known: Iterable[str]) -> str:
    """``" Did you mean 'a' or 'b'?"``, or all known names if none is near."""
    names = sorted(known)
    near = get_close_matches(name[:100], names, n=3, cutoff=0.6)
    if near:
        return " Did you mean " + " or ".join(f"'{n}'" for n in near) + "?"
    return " Known: " + ", ".join(names) + "."


def _shortened(text: str, most: int) -> str:
    """A client's own words come back in errors, but not by the megabyte."""
    return text if len(text) <= most else text[: most - 1] + "…"
