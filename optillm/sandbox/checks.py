"""What a run may be asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath


def check_run(timeout: float, memory_mb: int, files: Mapping[str, bytes], scratch_mb: int) -> None:
    """Refuse what cannot be run.

    Raises:
        ValueError: says which argument is wrong, and how.
    """
    if not 0 < timeout <= 3600:
        raise ValueError(f"timeout must be over 0 and at most 3600 seconds, not {timeout!r}")
    if not 16 <= memory_mb <= 65536:
        raise ValueError(f"memory_mb must be from 16 to 65536, not {memory_mb!r}")
    for name in files:
        path = PurePosixPath(name)
        parts = path.parts
        if not parts or path.is_absolute() or ".." in parts or "\0" in name or len(parts) > 16:
            raise ValueError(f"files: {name!r} is not a relative path inside the scratch folder")
    if sum(map(len, files.values())) > scratch_mb << 20:
        raise ValueError(f"files: more than the {scratch_mb} MiB of the scratch folder")
