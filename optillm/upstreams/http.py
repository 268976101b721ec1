"""The process's HTTP client.

wreq, which does its work outside Python: a call takes half the CPU time of a client in pure Python, and a
cancelled call closes its connection at once.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
from wreq import Client, Response, exceptions, redirect
from wreq.dns import DnsOptions
from wreq.runtime import Runtime

from optillm.core.frozen import to_json
from optillm.protocol.errors import OptiError, UpstreamError, UpstreamTimeout

NOT_REACHED = (
    exceptions.ConnectionError,
    exceptions.ProxyConnectionError,
    exceptions.TlsError,
    exceptions.BuilderError,
)
"""Errors of a request that was never sent."""
FAILED = (
    *NOT_REACHED,
    exceptions.ConnectionResetError,
    exceptions.RequestError,
    exceptions.BodyError,
    exceptions.DecodingError,
    exceptions.TimeoutError,
)
"""All errors of a request."""

_REASON = re.compile(r'(?:message|error): "([^"]+)"|kind: Tls.*?reason: "?([^",}]+)|"([^"]{4,})"')
_WORDS = (
    ("IncompleteMessage", "the connection was closed before the answer"),
    ("IncompleteBody", "the connection was closed within the answer"),
    ("ConnectionReset", "the connection was reset"),
    ("dns error", "the host cannot be found"),
    ("CERTIFICATE", "certificate verify failed"),
)


@dataclass(frozen=True)
class ClientOptions:
    """How servers are talked to.

    Args:
        connect_timeout: seconds until a connection stands.
        read_timeout: seconds between two pieces of an answer.
        verify: check certificates.
        bundle: path of PEM certificates to trust besides the system's; empty for none.
        proxied: follow the proxy variables of the environment.
    """

    connect_timeout: float = 5.0
    read_timeout: float = 300.0
    verify: bool = True
    bundle: str = ""
    proxied: bool = True


def make_client(options: ClientOptions) -> Client:
    """A client with a pool of connections of any number; knows no cookies, follows no redirects.

    Raises:
        OptiError: the bundle holds no certificates.
    """
    return Client(
        # One thread does all the work, so that calls leave in the order in which they are made.
        runtime=Runtime(workers=1, work_steal=False),
        http1_only=True,
        redirect=redirect.Policy.none(),
        referer=False,
        no_proxy=not options.proxied,
        connect_timeout=timedelta(seconds=options.connect_timeout),
        read_timeout=timedelta(seconds=options.read_timeout),
        pool_idle_timeout=timedelta(seconds=60),
        dns_options=DnsOptions(system_dns=True),
        tls_verify=_trusted(options),
    )


def _trusted(options: ClientOptions) -> bool | Path:
    if not options.verify:
        return False
    if not options.bundle:
        # What Python trusts on this machine; else the client's own list.
        system = ssl.get_default_verify_paths().cafile
        return Path(system) if system else True
    try:
        # The client itself passes over what is no certificate.
        ssl.create_default_context(cafile=options.bundle)
    except OSError as error:
        raise OptiError(
            f"--ssl-cert-path: {options.bundle} is not a bundle of PEM certificates ({error})"
        ) from None
    return Path(options.bundle)


def timed_out(error: BaseException) -> bool:
    """Whether it took too long, be it to connect, to answer, or between two pieces of an answer."""
    return isinstance(error, exceptions.TimeoutError) or "TimedOut" in str(error)


def cause(error: BaseException) -> str:
    """Why a request failed, in a few words and without its URL."""
    said = str(error)
    for sign, words in _WORDS:
        if sign in said:
            return words
    found = _REASON.search(said)
    return next((g for g in found.groups() if g), "") if found else said.split(" ", 1)[0]


def without_keys(body: bytes, sent: Mapping[str, str]) -> bytes:
    """An error body in which the key that was sent, should the upstream repeat it, is blacked out."""
    for key in (sent.get("Authorization", "").removeprefix("Bearer "), sent.get("api-key", "")):
        # A shorter one is a stand-in, and may be a word of the answer.
        if len(key) >= 8:
            body = body.replace(key.encode(), b"[redacted]")
    return body


def error_message(body: Mapping[str, Any] | None) -> str:
    """The message in an error body, whatever its shape."""
    error = (body or {}).get("error", body)
    if isinstance(error, Mapping):
        return str(error.get("message") or error.get("detail") or "")
    return str(error or "")


async def post_json(
    client: Client, url: str, body: Any, headers: Mapping[str, str], *, seconds: float, whom: str
) -> bytes:
    """Post a JSON body; the answer's body.

    Args:
        seconds: for the whole call.
        whom: how to name the server in errors.

    Raises:
        UpstreamError: it refused, or cannot be reached.
        UpstreamTimeout: it did not answer in time.
    """
    sent = {"Content-Type": "application/json", **headers}
    try:
        response = await client.post(
            url,
            headers=sent,
            body=to_json(body),
            timeout=timedelta(seconds=seconds),
        )
        data = bytes(await response.bytes())
    except FAILED as error:
        if timed_out(error):
            raise UpstreamTimeout(f"{whom} did not answer in time") from error
        raise UpstreamError(f"{whom} cannot be reached: {cause(error)}") from error
    if response.status.as_int() != 200:
        raise UpstreamError(f"{whom} answered {response.status.as_int()}: {_said(without_keys(data, sent))}")
    return data


def _said(body: bytes) -> str:
    try:
        parsed = msgspec.json.decode(body)
    except msgspec.DecodeError:
        parsed = None
    return (error_message(parsed) if isinstance(parsed, dict) else "") or "nothing"


def header(response: Response, name: str) -> str | None:
    """A header of printable ASCII; anything else is none."""
    value = response.headers.get(name)
    text = bytes(value).decode("latin-1") if value is not None else ""
    return text if text.isascii() and text.isprintable() and text else None
