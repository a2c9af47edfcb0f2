"""A norm whose groups extend over processes: every process measures its part, tells the others, and applies.

By the kernels; where there are none, by PyTorch's operations of the same formula. A backward pass whose own graph is
wanted is composed of PyTorch's operations, and of sums over processes that can be differentiated.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ..runtime import apart
from ..runtime.apart import Found
from ..runtime.compiling import statistics_dtype
from ..runtime.processes import summed
from .composed import blend
from .derivatives import Axes
from .function import has_kernels, own, unwatched
from .passes import on_device

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from ..planning.schedule import Problem
    from ..runtime.apart import Apply
    from ..runtime.launch import Statistics
    from ..runtime.processes import Processes
    from .call import Call
    from .derivatives import Wants

    #: Waits for what all processes told, and updates running statistics by it: y, and the statistics of whole groups.
    Hear = Callable[[Statistics | None], tuple[Tensor, Found]]


@lru_cache(maxsize=4096)
def signature(problem: Problem, dtype: torch.dtype, eps: float, gradient: bool, updates: bool, masked: bool) -> str:
    """What all processes of a call have in common, in words."""
    kept = " x ".join(f"{name} {problem.axes[name, i]}" for name, i in problem.kept) or "one group"
    norm = problem.norm
    return (
        f"({norm.axes}) over ({norm.over}){'' if norm.centered else ' about 0'}, {kept}, {dtype}, eps {eps}"
        f"{', of a mask' if masked else ''}{', updating statistics' if updates else ''}"
        f"{'' if gradient else ', no gradient of the input'}"
    )


class Told(NamedTuple):
    """A norm of a part that is measured and told, and not normalized yet.

    Attributes:
        x, weight, bias: of the norm.
        among: who is told.
        hear: gives what is left to compute.
    """

    x: Tensor
    weight: Tensor | None
    bias: Tensor | None
    among: Processes
    hear: Hear


class Across(torch.autograd.Function):
    """Keeps x, weight, and the statistics of whole groups."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, call: Call, told: Told) -> Tensor:
        y, found = told.hear(call.statistics)
        ctx.kept = call, told.among, None if bias is None else bias.dtype
        ctx.save_for_backward(x, weight, found.mean, found.rstd, found.share)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd, share = ctx.saved_tensors
        call, among, bias_dtype = ctx.kept
        needs = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled() or not unwatched(dy):
            return *_backward_composed(dy, x, weight, share, call, among, bias_dtype, needs), None, None
        wants = needs[0], weight.dtype if needs[1] else None, bias_dtype if needs[2] else None
        found = Found(mean, None, rstd, share)
        return *backward(call.problem, dy, x, weight, found, wants, among), None, None


def normalize(
    function: str, x: Tensor, weight: Tensor | None, bias: Tensor | None, call: Call, among: Processes
) -> Tensor:
    """Normalize this process's part of x, as ``call`` says.

    Raises:
        NotImplementedError: tensors that are not plain, or something that watches them.
        RuntimeError: the processes did not call alike.
    """
    return finish(start(function, x, weight, bias, call, among), call)


def start(function: str, x: Tensor, weight: Tensor | None, bias: Tensor | None, call: Call, among: Processes) -> Told:
    """What of `normalize` comes before it waits for the others.

    Raises:
        As `normalize`, if the others do not agree to the call.
    """
    _refuse_watched(function, x, weight, bias)
    weight, bias = (None if t is None else own(t) for t in (weight, bias))
    gradient = x.requires_grad and torch.is_grad_enabled()
    x = own(x)
    return Told(x, weight, bias, among, tell(call, x, weight, bias, among, gradient))


def finish(told: Told, call: Call) -> Tensor:
    """The rest of `normalize`."""
    return Across.apply(told.x, told.weight, told.bias, call, told)  # type: ignore[no-any-return, no-untyped-call]


def _refuse_watched(function: str, *tensors: Tensor | None) -> None:
    if not unwatched(*tensors):
        raise NotImplementedError(
            f"{function}(): process_group= takes plain tensors, outside of compilers, transforms and forward mode"
        )


def _agreed(call: Call, x: Tensor, among: Processes, gradient: bool, masked: bool = False) -> str:
    """The signature of a call, on which all processes agree."""
    said = signature(call.problem, x.dtype, call.eps, gradient, call.statistics is not None, masked)
    among.agree(said)
    return said


def tell(call: Call, x: Tensor, weight: Tensor | None, bias: Tensor | None, among: Processes, gradient: bool) -> Hear:
    """Measure x and tell it; ``gradient`` says whether x will have one."""
    if call.problem.num_groups == 0:  # nobody has anything to tell
        nothing = x.new_empty(0, dtype=statistics_dtype(x))
        found = Found(nothing, None, nothing.clone(), nothing.clone())
        return lambda _statistics: (torch.empty_like(x, dtype=call.dtype), found)
    said = _agreed(call, x, among, gradient)
    run = apart.forward if has_kernels(x) else _forward
    with on_device(x):
        told, apply = run(call.problem, x, weight, bias, call.eps, call.dtype)
        heard = among.tell(told, said)

    def hear(statistics: Statistics | None) -> tuple[Tensor, Found]:
        with on_device(x):
            return apply(heard(), statistics)

    return hear


def backward(
    problem: Problem, dy: Tensor, x: Tensor, weight: Tensor | None, found: Found, wants: Wants, among: Processes
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """(dx, dweight, dbias), as far as they are wanted."""
    wants_dx, *dtypes = wants
    run = apart.backward if has_kernels(x) else _backward
    with on_device(x):
        return run(problem, dy, x, weight, found, (dtypes[0], dtypes[1]), among.gather if wants_dx else None)


@torch.no_grad()
def _forward(
    problem: Problem,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    dtype: torch.dtype | None,
) -> tuple[Tensor, Apply]:
    """`apart.forward` by PyTorch's operations."""
    axes, centered = Axes(problem), problem.norm.centered
    view = axes.split(x)
    groups = view.new_zeros([1 if i in axes.over else size for i, size in enumerate(axes.sizes)])
    count, mean, correction = torch.full_like(groups, axes.count), groups, groups
    if centered and axes.count:
        mean = axes.mean(view)
        correction = axes.mean(view - mean)
    squares = ((view - mean) - correction).square().sum(axes.over, keepdim=True)
    told = (count, mean, correction, squares) if centered else (count, squares)

    def apply(heard: Tensor, statistics: Statistics | None) -> tuple[Tensor, Found]:
        counts, squares = heard[:, 0], heard[:, -1]
        total = counts.sum(0)
        n = total.clamp(min=1)  # of no element
        mean = correction = torch.zeros_like(total)
        if centered:
            pivot = torch.where(counts > 0, heard[:, 1], -torch.inf).amax(0)
            pivot = torch.where(pivot == -torch.inf, 0.0, pivot)
            relative = torch.where(counts > 0, (heard[:, 1] - pivot) + heard[:, 2], 0.0)
            shift = (relative * counts).sum(0) / n
            squares = squares + (relative - shift).square() * counts
            mean = pivot + shift
            correction = (pivot - mean) + shift
        variance = squares.sum(0) / n
        rstd = (variance + eps).rsqrt()
        if eps == 0.0 and problem.norm.constant_is_zero:
            rstd = torch.where(variance == 0.0, 0.0, rstd)
        found = Found(mean if centered else None, correction if centered else None, rstd, 1 / n)
        if statistics is not None and bool((total > 0).all()):
            _update(axes, statistics, mean, variance * (total / (total - 1)))
        y = ((view - axes.groups(mean)) - axes.groups(correction)) * axes.groups(rstd)
        y = y if weight is None else y * axes.spread(weight)
        y = y if bias is None else y + axes.spread(bias)
        return torch.empty_like(x, dtype=dtype).copy_(y.reshape(x.shape)), found

    return torch.stack([t.reshape(-1) for t in told]), apply


def _update(axes: Axes, statistics: Statistics, mean: Tensor, variance: Tensor) -> None:
    """Blend groups' statistics into the running ones, averaged over those of a channel."""
    running_mean, running_var, _, _, batches, momentum = statistics
    averaged = [i for i in axes.shared if i not in axes.over]
    for running, groups in ((running_mean, mean), (running_var, variance)):
        new = axes.groups(groups)
        new = new.mean(averaged) if averaged else new
        running.copy_(running.to(new.dtype) * (1 - momentum) + new.reshape(-1) * momentum)
    for count in batches:
        count.add_(1)


def _backward(
    problem: Problem,
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    found: Found,
    dtypes: tuple[torch.dtype | None, torch.dtype | None],
    exchange: Callable[[Tensor], Tensor] | None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """`apart.backward` by PyTorch's operations."""
    axes, g = Axes(problem), dy.reshape(Axes(problem).sizes).to(statistics_dtype(x))
    rstd, centered = axes.groups(found.rstd), found.mean is not None
    mean = axes.groups(found.mean) if found.mean is not None else 0.0
    xhat = (axes.split(x) - mean) * rstd
    dweight, dbias = (
        None if dtype is None else axes.for_parameters(t, dtype) for t, dtype in ((g * xhat, dtypes[0]), (g, dtypes[1]))
    )
    if exchange is None:
        return None, dweight, dbias
    g = g if weight is None else g * axes.spread(weight)
    sums = [g, g * xhat] if centered else [g * xhat]
    told = torch.stack([t.sum(axes.over, keepdim=True).reshape(-1) for t in sums])
    means = [axes.groups(t * found.share) for t in exchange(told).sum(0)]
    dx = (g - xhat * means[-1] - (means[0] if centered else 0.0)) * rstd
    return torch.empty_like(x).copy_(dx.reshape(x.shape)), dweight, dbias


class Composed(NamedTuple):
    """A result, and the mean and variance of each group with a dimension for each axis."""

    y: Tensor
    mean: Tensor
    variance: Tensor


def composed(
    call: Call,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    share: Tensor,
    among: Processes,
    there: Tensor | None = None,
) -> Composed:
    """The norm of PyTorch's operations and of sums over processes: one for the mean and one for the variance.

    Statistics are of the elements that are ``there``; a ``share`` is one element's of its group.
    """

    def left(t: Tensor) -> Tensor:
        return t if there is None else torch.where(there, t, 0.0)

    axes = Axes(call.problem)
    view, each = left(axes.split(x)), axes.groups(share)
    mean = torch.zeros_like(each)
    if call.problem.norm.centered:
        mean = summed(among, view.sum(axes.over, keepdim=True)) * each
        view = left(view - mean)
    variance = summed(among, view.square().sum(axes.over, keepdim=True)) * each
    y = view * (variance + call.eps).rsqrt()
    y = y if weight is None else y * axes.spread(weight)
    y = y if bias is None else y + axes.spread(bias)
    return Composed(y.reshape(x.shape).to(call.dtype or x.dtype), mean, variance)


def masked(
    function: str,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    call: Call,
    among: Processes,
    mask: Tensor,
) -> Tensor:
    """`normalize` of the elements where a mask is true, `composed`: their number is told besides.

    Raises:
        As `normalize`.
    """
    _refuse_watched(function, x, weight, bias, mask)
    axes = Axes(call.problem)
    there = axes.truth(mask)
    _agreed(call, x, among, x.requires_grad and torch.is_grad_enabled(), masked=True)
    count = among.gather(there.sum(axes.over, keepdim=True).to(statistics_dtype(x))).sum(0)
    found = composed(call, x, weight, bias, 1 / count.clamp(min=1), among, there)
    if call.statistics is not None:
        blend(axes, call.statistics, count, found.mean, found.variance)
    return found.y


def _backward_composed(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    share: Tensor,
    call: Call,
    among: Processes,
    bias_dtype: torch.dtype | None,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, ...]:
    """The gradients as functions that can be differentiated."""
    with torch.enable_grad():
        bias = None
        if bias_dtype is not None:
            bias = torch.zeros(call.problem.parameter_shape, dtype=bias_dtype, device=x.device, requires_grad=True)
        u, w, b = aliases = [None if t is None else t.view_as(t) for t in (x, weight, bias)]
        assert u is not None
        y = composed(call, u, w, b, share, among).y
        inputs = [t if need else None for t, need in zip(aliases, needs, strict=True)]
        found = iter(torch.autograd.grad(y, [t for t in inputs if t is not None], dy, create_graph=True))
        return tuple(None if t is None else next(found) for t in inputs)
