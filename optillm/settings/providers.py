"""The upstream that flags and variables select, when the config file names none."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Mapping

from optillm.settings.model import SettingsError, UpstreamSettings
from optillm.upstreams.llamacpp import find_packaged_model

log = logging.getLogger("optillm")

_OURS = frozenset({"OPTILLM_API_KEY", "AZURE_OPENAI_API_KEY"})


def installed(what: str) -> bool:
    """Whether ``litellm``, or the ``embedded`` model with its engine, is installed."""
    if what == "embedded":
        return find_packaged_model() is not None and importlib.util.find_spec("xllamacpp") is not None
    return importlib.util.find_spec(what) is not None


def select(
    base_url: str, environ: Mapping[str, str], has: Callable[[str], bool] = installed
) -> UpstreamSettings:
    """First present wins: Cerebras, OpenAI, Azure, a base URL, LiteLLM, the embedded model.

    ``OPTILLM_API_KEY`` needs no line of its own: it selects the local engine only when none of the
    others is there, and so does its absence.

    Args:
        base_url: as set by flag, variable or file; empty if it is not.
        environ: the variables.
        has: see :func:`installed`.

    Raises:
        SettingsError: there is none; says what to set.
    """
    if key := environ.get("CEREBRAS_API_KEY"):
        return UpstreamSettings("cerebras", "openai", base_url or "https://api.cerebras.ai/v1", key)
    if key := environ.get("OPENAI_API_KEY"):
        return UpstreamSettings("openai", "openai", base_url or "https://api.openai.com/v1", key)
    if (key := environ.get("AZURE_OPENAI_API_KEY")) or _azure_without_key(environ):
        return _azure(base_url, key, environ)
    if base_url:
        return UpstreamSettings("upstream", "openai", base_url)
    keys = [name for name in sorted(environ) if name.endswith("_API_KEY") and name not in _OURS]
    keys = [name for name in keys if environ[name]]
    if keys and has("litellm"):
        return UpstreamSettings("litellm", "litellm")
    if has("embedded"):
        if keys:
            log.warning(
                "serving the embedded model: %s would need LiteLLM (pip install 'optillm[litellm]')",
                ", ".join(keys),
            )
        return UpstreamSettings("embedded", "llamacpp")
    litellm = f" {', '.join(keys)} would need LiteLLM: pip install 'optillm[litellm]'." if keys else ""
    raise SettingsError(
        "no upstream: set --base-url, or OPENAI_API_KEY, CEREBRAS_API_KEY or AZURE_OPENAI_API_KEY, or "
        f"[upstreams] in a --config file, or install the embedded model (make demo does).{litellm}"
    )


def _azure_without_key(environ: Mapping[str, str]) -> bool:
    """Managed identity: the resource is named, but no key is given."""
    return bool(environ.get("AZURE_API_VERSION") and environ.get("AZURE_API_BASE"))


def _azure(base_url: str, key: str | None, environ: Mapping[str, str]) -> UpstreamSettings:
    endpoint, version = base_url or environ.get("AZURE_API_BASE"), environ.get("AZURE_API_VERSION")
    if not endpoint or not version:
        missing = "AZURE_API_VERSION" if endpoint else "AZURE_API_BASE"
        raise SettingsError(f"AZURE_OPENAI_API_KEY needs {missing} to be set as well")
    return UpstreamSettings("azure", "azure", endpoint, key or None, version)
