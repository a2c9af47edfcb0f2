"""Other libraries' functions replaced for a while."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def swapped(*changes: tuple[Any, str, Any]) -> Iterator[None]:
    """Attributes set for a while."""
    before = [(where, name, getattr(where, name)) for where, name, _value in changes]
    for where, name, value in changes:
        setattr(where, name, value)
    try:
        yield
    finally:
        for where, name, value in before:
            setattr(where, name, value)
