"""The user's cache folder: small files that cost a measurement to make again."""

from __future__ import annotations

import os
from pathlib import Path


def folder() -> Path:
    """``NORMTRITON_CACHE``, by default ``normtriton`` in the user's cache folder."""
    named = os.environ.get("NORMTRITON_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "normtriton"


def write(file: Path, text: str) -> None:
    """Write a file so that a reader sees the old one or the new one.

    Raises:
        OSError: it cannot be written.
    """
    temporary = file.with_suffix(f".{os.getpid()}")
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        temporary.write_text(text)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
