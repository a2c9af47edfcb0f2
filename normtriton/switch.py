"""Settings of the process: one of a few words, from the environment at first, changed by a call."""

from __future__ import annotations

import os


class Switch:
    """A setting; the first of its words is the default.

    Attributes:
        mode: the word in force.
    """

    def __init__(self, variable: str, *modes: str) -> None:
        """Read the environment's ``variable``."""
        self.variable, self.modes = variable, modes
        self.set(os.environ.get(variable, modes[0]))

    def set(self, mode: str) -> None:
        """Change the word in force.

        Raises:
            ValueError: not one of the setting's words.
        """
        if mode not in self.modes:
            raise ValueError(f"{self.variable} is one of {', '.join(self.modes)}, not {mode!r}")
        self.mode = mode
