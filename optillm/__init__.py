"""OptiLLM: better answers through inference-time compute.

As a library::

    reply = await optillm.solve("How many primes are below 100?", approach="self_consistency",
                                model="gpt-4o-mini", upstream="http://127.0.0.1:8080/v1")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from optillm.version import __version__

if TYPE_CHECKING:
    from optillm.library import Solution, solve, solve_sync

__all__ = ["Solution", "__version__", "solve", "solve_sync"]


def __getattr__(name: str) -> Any:
    # Loaded when first used, so that `import optillm` costs next to nothing.
    if name in ("Solution", "solve", "solve_sync"):
        from optillm import library

        return getattr(library, name)
    raise AttributeError(name)
