"""Settings: what a caller may choose besides a call's own arguments, checked before anything is done with it."""

from __future__ import annotations

import os
from operator import index
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

#: Called when a setting changes.
_followers: list[Callable[[], None]] = []


def follow(forget: Callable[[], None]) -> Callable[[], None]:
    """Have a function called whenever a setting changes: it forgets what followed from the settings before."""
    _followers.append(forget)
    return forget


def changed() -> None:
    """Say that a setting has changed, or what is known of a device."""
    for forget in _followers:
        forget()


def whole_number(value: Any, what: str, least: int = 1) -> int:
    """A setting that is an integer: Python's, NumPy's, or a tensor of one; but no bool.

    Args:
        value: as it was given.
        what: the function and its argument, for messages: "explain(): argument 'sms'".
        least: the smallest that there is.
    Raises:
        TypeError: no integer.
        ValueError: too small.
    """
    try:
        number = None if isinstance(value, bool) else index(value)
    except TypeError:
        number = None
    if number is None:
        raise TypeError(f"{what} must be int, not {type(value).__name__}: {value!r}")
    if number < least:
        raise ValueError(f"{what} must be at least {least}, but got {number}")
    return number


def yes_or_no(value: Any, what: str) -> bool:
    """A setting that is a bool; ``what`` as `whole_number`'s.

    Raises:
        TypeError: no bool.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{what} must be bool, not {type(value).__name__}: {value!r}")
    return value


class Switch:
    """A setting of the process: one of a few words, from the environment at first, changed by a call.

    The first of its words is the default.

    Attributes:
        mode: the word in force.
    """

    def __init__(self, variable: str, *modes: str) -> None:
        """Read the environment's ``variable``; an empty one says nothing."""
        self.variable, self.modes = variable, modes
        self.set(os.environ.get(variable) or modes[0])

    def set(self, mode: str) -> None:
        """Change the word in force.

        Raises:
            TypeError: no word.
            ValueError: not one of the setting's words.
        """
        if isinstance(mode, str) and mode in self.modes:
            self.mode = mode
            return
        kind = ValueError if isinstance(mode, str) else TypeError
        raise kind(f"{self.variable} is one of {', '.join(self.modes)}, not {mode!r}")
