"""Any norm in PyTorch's own operations, by its axes: for what has no kernels, and for exporters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .derivatives import Axes

if TYPE_CHECKING:
    from torch import Tensor

    from ..planning.schedule import Problem


def measured(axes: Axes, x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and the variance of each group, with a dimension for each axis."""
    view = axes.split(x)
    mean = axes.mean(view)
    mean = mean if axes.problem.norm.centered else torch.zeros_like(mean)
    return mean, axes.mean((view - mean).square())


def composed(
    problem: Problem,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    eps: float,
) -> Tensor:
    """X normalized, by given statistics if there are any; in the dtype of the arithmetic."""
    axes = Axes(problem)
    own = measured(axes, x) if mean is None or var is None else (axes.spread(mean), axes.spread(var))
    y = (axes.split(x) - own[0]) * (own[1] + eps).rsqrt()
    y = y if weight is None else y * axes.spread(weight)
    y = y if bias is None else y + axes.spread(bias)
    return y.reshape(x.shape)
