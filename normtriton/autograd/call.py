"""A call of a norm, checked: what every way to the kernels is told."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

    from ..planning.schedule import Problem
    from ..runtime.launch import Statistics


class Call(NamedTuple):
    """One call of a norm, checked: what `normalize` needs besides tensors that may want a gradient.

    Attributes:
        problem: the norm and the shape.
        eps: added to the variance.
        statistics: running statistics, to be updated or used.
        use_running: whether they take the place of the input's own statistics.
        dtype: the result's; None for the input's.
    """

    problem: Problem
    eps: float
    statistics: Statistics | None = None
    use_running: bool = False
    dtype: torch.dtype | None = None
