"""What a server is told to do, frozen."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from optillm.core.frozen import empty
from optillm.core.usage import Price

SCOPES = ("chat", "models", "runs")
"""What a key may be for: asking; seeing models and techniques; seeing its tenant's runs, and seeing and
changing what was remembered for it."""


class SettingsError(ValueError):
    """A setting that stops the start; the message is one sentence for people."""


@dataclass(frozen=True)
class UpstreamSettings:
    """One named upstream.

    Args:
        name: what it is called in traces, routes and errors.
        kind: openai, azure, litellm or llamacpp.
        base_url, key, api_version: where it is and how to enter.
        model_path: of a local model.
        models: names that are routed to it; ``*`` stands for any text.
    """

    name: str
    kind: str = "openai"
    base_url: str = ""
    key: str | None = field(default=None, repr=False)
    api_version: str = ""
    model_path: str = ""
    models: tuple[str, ...] = ()


@dataclass(frozen=True)
class Key:
    """A client key.

    Args:
        tenant: whose it is; runs are kept by tenant.
        sha256: the SHA-256 of the key in hex.
        scopes: what it may be used for, of :data:`SCOPES`.
    """

    tenant: str
    sha256: str = field(repr=False)
    scopes: tuple[str, ...] = SCOPES


@dataclass(frozen=True)
class Settings:
    """All settings of a server; see ``optillm --help`` for what each does."""

    approach: str = "auto"
    model: str = "gpt-4o-mini"
    base_url: str = ""
    host: str = "127.0.0.1"
    port: int = 8000
    optillm_api_key: str = field(default="", repr=False)
    n: int = 1
    log: str = "info"
    launch_gui: bool = False
    plugins_dir: str = ""
    allow_override: bool = False
    log_conversations: bool = False
    conversation_log_dir: str = "~/.optillm/conversations"
    ssl_verify: bool = True
    ssl_cert_path: str = ""
    batch_mode: bool = False
    batch_size: int = 4
    batch_wait_ms: int = 50
    config: str = ""
    cepo_config_file: str = ""
    workers: int = 1
    max_body_mb: float = 32.0
    max_upstream_calls: int = 256
    max_concurrency: int = 16
    upstream_concurrency: int = 256
    request_timeout: float = 600.0
    connect_timeout: float = 5.0
    shutdown_timeout: float = 30.0
    store: str = field(default="", repr=False)
    sandbox: str = "auto"
    reward_url: str = ""
    reward_key: str = field(default="", repr=False)
    reward_model: str = ""
    embedding_url: str = ""
    embedding_key: str = field(default="", repr=False)
    embedding_model: str = ""
    router_model: str = ""
    stream_progress: str = "reasoning"
    forward_bearer: bool | None = None
    n_mode: str = "auto"
    retries: int = 2
    default_max_tokens: int = 4096
    helper_max_tokens: int = 2048
    intermediate_max_tokens: int = 4096
    proxied: bool = False
    """Whether the environment names a proxy for calls to upstreams."""
    store_ends: bool = False
    """Whether the store is one that ends with the server, which made it."""
    upstreams: tuple[UpstreamSettings, ...] = ()
    keys: tuple[Key, ...] = ()
    prices: Mapping[str, Price] = field(default_factory=empty)
    params: Mapping[str, Mapping[str, Any]] = field(default_factory=empty)

    @property
    def keeps_store(self) -> bool:
        """Whether what is stored outlives the server."""
        return bool(self.store) and not self.store_ends

    @property
    def guarded(self) -> bool:
        """Whether clients need a key."""
        return bool(self.optillm_api_key or self.keys)

    @property
    def forwards_bearer(self) -> bool:
        """Whether a client's own token is passed on to the upstream."""
        return not self.guarded if self.forward_bearer is None else self.forward_bearer

    @property
    def warnings(self) -> tuple[str, ...]:
        """What whoever starts the server should know, one line each."""
        out: list[str] = []
        if self.host not in ("127.0.0.1", "localhost", "::1") and not self.guarded:
            out.append(f"listening on {self.host} without a key: anybody may use the upstream")
        if not self.ssl_verify:
            out.append("CERTIFICATES OF UPSTREAMS ARE NOT VERIFIED (--no-ssl-verify)")
        if self.launch_gui:
            out.append("--launch-gui: this version has no web page yet; see /v1/approaches and /v1/runs")
        return tuple(out)


def sha256(key: str | bytes) -> str:
    """The hex SHA-256 under which a key is kept."""
    return hashlib.sha256(key.encode() if isinstance(key, str) else key).hexdigest()
