"""The user's cache folder: small files that cost a measurement to make again.

The folder may be shared, by threads, processes and machines. So a file is written whole under a name of its own and
then renamed: a reader sees the old one or the new one. What is read may be missing, cut off or someone else's.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING
from uuid import uuid4

if TYPE_CHECKING:
    from collections.abc import Iterator


def folder() -> Path:
    """``NORMTRITON_CACHE``, by default ``normtriton`` in the user's cache folder.

    Raises:
        FileNotFoundError: none is named, and the user has no home folder.
    """
    named = os.environ.get("NORMTRITON_CACHE")
    if named:
        return Path(named)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "normtriton"
    except RuntimeError as error:  # Path.home's
        raise FileNotFoundError("the user has no home folder: NORMTRITON_CACHE names a cache folder") from error


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A new path beside a file, which takes the file's place when something was written there without an error.

    Raises:
        OSError: it cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{uuid4().hex}")  # a process number is not unique in a shared folder
    try:
        yield temporary
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def write(file: Path, text: str) -> None:
    """Write a file so that a reader sees the old one or the new one.

    Raises:
        OSError: it cannot be written.
    """
    with replacing(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def appending(file: Path, mode: str = "a") -> Iterator[IO[str]]:
    """A file, opened to add to it; others who open it so wait.

    Raises:
        OSError: it cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open(mode, encoding="utf-8") as opened:
        with suppress(OSError):  # a file system without locks: of two who write at once, the last one wins
            fcntl.flock(opened, fcntl.LOCK_EX)
        yield opened


def overwrite(file: Path, text: str) -> None:
    """Write a file that a user named, which may be a link or a device, in place; of two who do so at once, one wins.

    Raises:
        OSError: it cannot be written.
    """
    with appending(file) as opened:
        if file.stat().st_size:  # a device has none
            opened.truncate(0)
        opened.write(text)


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """While a file is read, changed and replaced: others who do so wait.

    The lock is a hidden file beside it, which stays.

    Raises:
        OSError: the folder cannot be written.
    """
    lock = file.with_name(f".{file.name}.lock")
    others = lock.exists() and not os.access(lock, os.W_OK)  # another user's, in a folder of several
    with appending(lock, "r" if others else "a"):
        yield
