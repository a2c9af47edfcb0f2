"""Any norm in PyTorch's own operations, by its axes: for what has no kernels, and for exporters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .derivatives import Axes

if TYPE_CHECKING:
    from torch import Tensor

    from ..planning.schedule import Problem
    from ..runtime.launch import Statistics


def measured(axes: Axes, x: Tensor, there: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The mean and the variance of each group, of the elements that are ``there``; with a dimension for each axis."""
    view = axes.split(x)
    if there is None:
        average = axes.mean
    else:
        count = there.to(view.dtype).sum(axes.over, keepdim=True).clamp(min=1.0)

        def average(t: Tensor) -> Tensor:
            return torch.where(there, t, 0.0).sum(axes.over, keepdim=True) / count

    mean = average(view) if axes.problem.norm.centered else axes.mean(torch.zeros_like(view))
    return mean, average((view - mean).square())


def composed(
    problem: Problem,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    eps: float,
    mask: Tensor | None = None,
) -> Tensor:
    """X normalized, by given statistics if there are any; in the dtype of the arithmetic.

    With a mask, which broadcasts against x, statistics are of the elements where it is true; 0 takes the others' place.
    """
    axes = Axes(problem)
    there = None if mask is None else axes.truth(mask)
    if there is not None:  # what takes no part may be NaN, whose gradient would be NaN too
        x = torch.where(there, x.reshape(axes.sizes), 0.0).reshape(x.shape)
    own = measured(axes, x, there) if mean is None or var is None else (axes.spread(mean), axes.spread(var))
    y = (axes.split(x) - own[0]) * (own[1] + eps).rsqrt()
    y = y if weight is None else y * axes.spread(weight)
    y = y if bias is None else y + axes.spread(bias)
    return (y if there is None else torch.where(there, y, 0.0)).reshape(x.shape)


def blend(axes: Axes, statistics: Statistics, count: Tensor, mean: Tensor, variance: Tensor) -> None:
    """Update running statistics by each channel's mean and variance, which are of ``count`` elements; by none of 0.

    The last three have a dimension for each axis.
    """
    *running, _, _, batches, momentum = statistics
    with torch.no_grad():
        unbiased = variance * (count / (count - 1).clamp(min=1))
        for kept, new in zip(running, (mean, unbiased), strict=True):
            blended = (1.0 - momentum) * axes.spread(kept) + momentum * new
            kept.copy_(torch.where(count > 0, blended, axes.spread(kept)).reshape(kept.shape))
        for updates in batches:
            updates.add_(1)
