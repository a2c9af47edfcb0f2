"""What is to be done: norms by their axes, groupings, tiles, launches. Pure integers; neither torch nor triton.

A `Problem` is a `Norm` of a shape.
"""

from .norms import Norm
from .schedule import Problem

__all__ = ["Norm", "Problem"]
