"""Derivatives of the norms' two passes, composed of the passes themselves and of PyTorch's differentiable operations.

The passes are `normalize`, y = x̂ * weight + bias, and `pull_back`, its gradients (dx, dweight, dbias) for a dy. With P
for what the backward kernel does without a weight, x̂'s Jacobian, which is symmetric,

    P(g) = rstd * (g - mean(g) - x̂ * mean(g * x̂)),        means over a group,

pull_back is dx = P(weight * dy), dweight = Σ dy * x̂ and dbias = Σ dy. What is left to differentiate is P by x,

    dP(g)/dx · v = -rstd * (mean(x̂ * v) * P(g) + mean(g * x̂) * P(v) + x̂ * mean(g * P(v))),

symmetric in g and v, so that reverse mode and forward mode share it (`curvature`). It holds with the mean fixed at zero
too; where the statistics are given, P(g) = rstd * g and the curvature is zero. Every part is differentiable again, so
there are derivatives of any order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import torch

from ..planning.norms import name_axes
from ..runtime.compiling import statistics_dtype

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from ..planning.schedule import Problem

#: Whether dx is wanted, and in which dtypes dweight and dbias, if they are.
Wants: TypeAlias = "tuple[bool, torch.dtype | None, torch.dtype | None]"


def wanted(needs: Sequence[bool], parameters: Sequence[torch.dtype | None]) -> Wants:
    """The gradients that autograd needs of (x, weight, bias), given the dtypes of the last two."""
    weight, bias = (dtype if need else None for dtype, need in zip(parameters, needs[1:3], strict=True))
    return needs[0], weight, bias


@dataclass(frozen=True)
class Rule:
    """What the two passes are told besides tensors. No tuple, in which transforms would look for tensors.

    Attributes:
        problem: the norm and the shape.
        eps: added to the variance.
        constant: whether the statistics are given: then they are the running mean and variance.
        dtype: y's; None for x's.
        wants: the gradients that pull_back gives.
        momentum: of running statistics that are given and not ``constant``: they are updated.
    """

    problem: Problem
    eps: float
    constant: bool = False
    dtype: torch.dtype | None = None
    wants: Wants = (True, None, None)
    momentum: float = 0.0

    def only_dx(self) -> Rule:
        """The same, for dx alone."""
        return replace(self, wants=(True, None, None))


class Passes(NamedTuple):
    """The two passes, as functions that can be differentiated.

    Attributes:
        normalize: of (x, weight, bias, given_mean, given_var, rule), giving (y, mean, rstd); the last two flat, and
            empty where they do not exist.
        pull_back: of (dy, x, weight, mean, rstd, rule), giving (dx, dweight, dbias), empty if not wanted. Given
            statistics take the place of mean and rstd.
    """

    normalize: Callable[..., tuple[Tensor, Tensor, Tensor]]
    pull_back: Callable[..., tuple[Tensor, Tensor, Tensor]]


class Axes:
    """Views of a problem's tensors that broadcast against each other, one dimension an axis."""

    def __init__(self, problem: Problem) -> None:
        """Sort the axes of a problem."""
        axes = problem.axes
        affine = set(problem.affine)
        self.problem = problem
        self.sizes = list(axes.values())
        self.over = [i for i, key in enumerate(axes) if key in problem.over]
        self.shared = [i for i, key in enumerate(axes) if key not in affine]
        self.count = prod([self.sizes[i] for i in self.over])

    def split(self, t: Tensor) -> Tensor:
        """A tensor of full size, in the dtype of the statistics."""
        return t.reshape(self.sizes).to(statistics_dtype(t))

    def spread(self, parameter: Tensor) -> Tensor:
        """A parameter."""
        return parameter.reshape([1 if i in self.shared else size for i, size in enumerate(self.sizes)])

    def broadcast(self, parameter: Tensor) -> Tensor:
        """A parameter, as it broadcasts against x."""
        return self.spread(parameter).expand(self.sizes).reshape(self.problem.shape)

    def truth(self, mask: Tensor) -> Tensor:
        """A mask that broadcasts against x."""
        return mask.expand(self.problem.shape).reshape(self.sizes)

    def groups(self, statistic: Tensor) -> Tensor:
        """One number a group."""
        return statistic.reshape([1 if i in self.over else size for i, size in enumerate(self.sizes)])

    def beside(self, view: Tensor) -> Tensor:
        """A view with a dimension for each axis, as it broadcasts against x: of size 1 along what it does not vary."""
        problem = self.problem
        sizes: list[int] = []
        merged: list[int] = []
        for dim in name_axes(problem.norm.axes, problem.shape, dict(problem.sizes)):
            varies = any(size != 1 for size in view.shape[len(sizes) : len(sizes) + len(dim)])
            sizes += [part.size if varies else 1 for part in dim]
            merged.append(problem.shape[len(merged)] if varies else 1)
        return view.expand(sizes).reshape(merged)

    def mean(self, t: Tensor) -> Tensor:
        """Of every group."""
        return t.mean(self.over, keepdim=True)

    def for_parameters(self, t: Tensor, like: Tensor | torch.dtype) -> Tensor:
        """Sums over the elements that share a parameter."""
        total = t.sum(self.shared) if self.shared else t
        dtype = like if isinstance(like, torch.dtype) else like.dtype
        return total.reshape(self.problem.parameter_shape).to(dtype)

    def join(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        """A result of full size, with the dimensions of x."""
        return t.expand(self.sizes).reshape(self.problem.shape).to(dtype)


class Point(NamedTuple):
    """x̂ and its rstd by group, differentiable by x, and what P needs of them."""

    passes: Passes
    rule: Rule
    axes: Axes
    x: Tensor
    mean: Tensor
    rstd: Tensor

    def pull(self, dy: Tensor, weight: Tensor | None = None) -> Tensor:
        """P(weight * dy), split."""
        return self.axes.split(self.passes.pull_back(dy, self.x, weight, self.mean, self.rstd, self.rule.only_dx())[0])

    def normalized(self) -> tuple[Tensor, Tensor]:
        """x̂ and rstd, split."""
        rule = replace(self.rule, dtype=statistics_dtype(self.x))
        given = (self.mean, self.rstd) if rule.constant else (None, None)
        xhat, _mean, rstd = self.passes.normalize(self.x, None, None, *given, rule)
        return self.axes.split(xhat), rstd if rule.constant else self.axes.groups(rstd)

    def curvature(self, g: Tensor, v: Tensor, pull_g: Tensor, pull_v: Tensor) -> Tensor:
        """The derivative of P(g) by x along v; all are split."""
        xhat, rstd = self.normalized()
        mean = self.axes.mean
        return -rstd * (mean(xhat * v) * pull_g + mean(g * xhat) * pull_v + xhat * mean(g * pull_v))


def _add(*terms: Tensor | None) -> Tensor | None:
    total = None
    for term in terms:
        if term is not None:
            total = term if total is None else total + term
    return total


def normalize_backward(
    passes: Passes, rule: Rule, saved: Sequence[Tensor], dy: Tensor | None, drstd: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of normalize by x, weight and bias, from those of y and rstd."""
    x, weight, mean, rstd = saved
    wants_dx, weight_dtype, bias_dtype = rule.wants
    dx = dweight = dbias = None
    if dy is not None:
        dx, dweight, dbias = passes.pull_back(dy, x, weight, mean, rstd, rule)
    if drstd is not None and wants_dx:  # d rstd / dx = -rstd² * x̂ / n
        point = Point(passes, rule, Axes(rule.problem), x, mean, rstd)
        xhat, r = point.normalized()
        slope = -r * r * point.axes.groups(drstd) / point.axes.count * xhat
        dx = _add(dx, point.axes.join(slope, x.dtype))
    return dx if wants_dx else None, dweight if weight_dtype else None, dbias if bias_dtype else None


def normalize_jvp(
    passes: Passes, rule: Rule, saved: Sequence[Tensor], dx: Tensor | None, dweight: Tensor | None, dbias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """How y and rstd change along changes of x, weight and bias."""
    x, weight, mean, rstd = saved
    point = Point(passes, rule, axes := Axes(rule.problem), x, mean, rstd)
    dtype = rule.dtype or x.dtype
    change = rstd_change = None
    if dx is not None:
        change = point.pull(dx)
        if weight is not None:
            change = change * axes.spread(weight)
    if dweight is not None or (dx is not None and not rule.constant):
        xhat, r = point.normalized()
        if dweight is not None:
            change = _add(change, axes.spread(dweight) * xhat)
        if dx is not None and not rule.constant:
            rstd_change = (-r * r * axes.mean(xhat * axes.split(dx))).reshape(rstd.shape)
    change = _add(change, None if dbias is None else axes.spread(dbias))
    if change is None:
        change = x.new_zeros((), dtype=dtype)
    if rstd_change is None and not rule.constant:
        rstd_change = torch.zeros_like(rstd)
    return axes.join(change, dtype), rstd_change


def pull_back_backward(
    passes: Passes,
    rule: Rule,
    saved: Sequence[Tensor],
    v: Tensor | None,
    vweight: Tensor | None,
    vbias: Tensor | None,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of pull_back by dy, x and weight, from those of dx, dweight and dbias."""
    dy, x, weight, mean, rstd = saved
    wants_ddy, wants_dx, wants_dweight = needs
    point = Point(passes, rule, axes := Axes(rule.problem), x, mean, rstd)
    pull_v = None if v is None else point.pull(v)
    ddy = dx = dweight = None
    if wants_ddy:
        if pull_v is not None:
            ddy = pull_v if weight is None else pull_v * axes.spread(weight)
        if vweight is not None:
            ddy = _add(ddy, axes.spread(vweight) * point.normalized()[0])
        ddy = _add(ddy, None if vbias is None else axes.spread(vbias))
    if wants_dx:
        if vweight is not None:
            dx = point.pull(dy, vweight)
        if v is not None and pull_v is not None and not rule.constant:
            g = axes.split(dy) if weight is None else axes.split(dy) * axes.spread(weight)
            dx = _add(dx, point.curvature(g, axes.split(v), point.pull(dy, weight), pull_v))
    if wants_dweight and weight is not None and pull_v is not None:
        dweight = axes.for_parameters(axes.split(dy) * pull_v, weight)
    return (
        None if ddy is None else axes.join(ddy, dy.dtype),
        None if dx is None else axes.join(dx, x.dtype),
        dweight,
    )


def pull_back_jvp(
    passes: Passes,
    rule: Rule,
    saved: Sequence[Tensor],
    ddy: Tensor | None,
    dx: Tensor | None,
    dweight: Tensor | None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """How pull_back's results change along changes of dy, x and weight; None for those that it does not give."""
    dy, x, weight, mean, rstd = saved
    wants_dx, weight_dtype, bias_dtype = rule.wants
    point = Point(passes, rule, axes := Axes(rule.problem), x, mean, rstd)
    pull_dx = None if dx is None else point.pull(dx)
    zero = x.new_zeros((), dtype=statistics_dtype(x)).expand(axes.sizes)
    change = change_weight = change_bias = None
    if wants_dx:
        if ddy is not None:
            change = point.pull(ddy, weight)
        if dweight is not None:
            change = _add(change, point.pull(dy, dweight))
        if dx is not None and pull_dx is not None and not rule.constant:
            g = axes.split(dy) if weight is None else axes.split(dy) * axes.spread(weight)
            change = _add(change, point.curvature(g, axes.split(dx), point.pull(dy, weight), pull_dx))
        change = axes.join(zero if change is None else change, x.dtype)
    if weight_dtype:
        terms = None if ddy is None else axes.split(ddy) * point.normalized()[0]
        terms = _add(terms, None if pull_dx is None else axes.split(dy) * pull_dx)
        change_weight = axes.for_parameters(zero if terms is None else terms, weight_dtype)
    if bias_dtype:
        change_bias = axes.for_parameters(zero if ddy is None else axes.split(ddy), bias_dtype)
    return change, change_weight, change_bias
