"""A norm whose groups extend over processes: launches on each side of what they tell each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from ..planning.schedule import backward_schedule, forward_schedule, gathered_moments, gathered_sums
from . import devices, launch
from .compiling import Running, statistics_dtype
from .launch import _in_memory, _kinds, exact_pair

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from ..planning.schedule import Problem
    from .launch import Statistics

    #: What is left of a forward pass: of what all processes told, and of the running statistics that are updated by it,
    #: it makes y and the statistics of the groups.
    Apply = Callable[[Tensor, Statistics | None], tuple[Tensor, "Found"]]


class Found(NamedTuple):
    """The statistics of groups that extend over processes, (groups,) each.

    Attributes:
        mean, correction: as an unevaluated sum; None if the mean is fixed at zero.
        rstd: 1 / sqrt(variance + eps).
        share: one element's share of its group, 1 / count.
    """

    mean: Tensor | None
    correction: Tensor | None
    rstd: Tensor
    share: Tensor


def forward(
    problem: Problem,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    dtype: torch.dtype | None,
) -> tuple[Tensor, Apply]:
    """The moments of the own part, to be told, and what is to be done with those of all processes."""
    own = statistics_dtype(x)
    y = torch.empty_like(x) if dtype is None else torch.empty_like(x, dtype=dtype)
    planes, groups = 4 if problem.norm.centered else 2, problem.num_groups
    pair = None if eps == 0.0 and problem.norm.constant_is_zero else exact_pair(eps)
    kinds = _kinds(None, x, weight, bias)
    if kinds:
        kinds = (*kinds, dtype, pair is None)
    if x.numel() == 0:
        told, schedule = x.new_zeros((planes, groups), dtype=own), None
    else:
        strides = (None if p is None else p.stride() for p in (weight, bias))
        dtypes, device = (x.dtype, None if weight is None else weight.dtype), devices.of(x)
        schedule = forward_schedule(problem, x.stride(), y.stride(), *strides, dtypes, device, "", (), True)
        told = x.new_empty((4, groups), dtype=own)
        parts = x.new_empty((4, schedule.parts), dtype=own) if schedule.merge else told
        launch._run(schedule.main, kinds, x, None, None, None, None, None, None, parts, pair, None)
        if schedule.merge:
            launch._run(schedule.merge, kinds, parts, told)
        told = told if planes == 4 else told[::3].contiguous()  # counts and squares

    def apply(heard: Tensor, statistics: Statistics | None) -> tuple[Tensor, Found]:
        found = _found(problem, heard, x, statistics, pair)
        if schedule and schedule.apply:
            given = (x, y, weight, bias, found.mean, found.rstd, None, found.correction, pair, None)
            launch._run(schedule.apply, kinds, *given)
        return y, found

    return told, apply


def _found(
    problem: Problem, heard: Tensor, x: Tensor, statistics: Statistics | None, pair: tuple[float, float] | None
) -> Found:
    """Merge the moments of all processes, and update running statistics."""
    gathered = gathered_moments(problem, len(heard), statistics is not None)
    rstd = heard.new_empty(problem.num_groups)
    share = torch.empty_like(rstd)
    mean, correction = (torch.empty_like(rstd), torch.empty_like(rstd)) if problem.norm.centered else (None, None)
    running, target = None, None
    if statistics is not None and not (x.numel() == 0 and bool((heard[:, 0] == 0).all())):  # nobody has an element
        target = running = Running(*statistics[:5], exact_pair(statistics[5]))
        torch._C._increment_version((running.mean, running.var, *running.batches))
    if running and gathered.average:  # each group writes its own; they are averaged afterwards
        target = Running(torch.empty_like(rstd), torch.empty_like(rstd), 1, 1, (), ())
    kinds = _kinds(running, x)
    if kinds:
        kinds = (*kinds, pair is None)
    launch._run(gathered.merge, kinds, heard, mean, rstd, correction, share, target, pair)
    if running and target and gathered.average:
        launch._run(gathered.average, kinds, target.mean, target.var, running)
    return Found(mean, correction, rstd, share)


def backward(
    problem: Problem,
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    found: Found,
    dtypes: tuple[torch.dtype | None, torch.dtype | None],
    exchange: Callable[[Tensor], Tensor] | None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """(dx, dweight, dbias), of the parameters those in whose ``dtypes`` they are wanted: the own elements' sums.

    Without an ``exchange`` dx is not wanted, and nobody is told anything.
    """
    if exchange is None:
        return launch.backward(problem, dy, x, weight, found.mean, found.rstd, None, 0.0, (False, *dtypes))
    own, shape, dy = statistics_dtype(x), problem.parameter_shape, _in_memory(dy)
    centered = problem.norm.centered
    told = x.new_zeros((2 if centered else 1, problem.num_groups), dtype=own)
    dx = torch.empty_like(x)
    if x.numel() == 0:
        exchange(told)
        dweight, dbias = (x.new_zeros(shape, dtype=dtype) if dtype else None for dtype in dtypes)
        return dx, dweight, dbias
    schedule = backward_schedule(
        problem,
        x.stride(),
        dy.stride(),
        dx.stride(),
        None if weight is None else weight.stride(),
        (x.dtype, None if weight is None else weight.dtype),
        devices.of(x),
        dtypes != (None, None),
        apart=True,
    )
    assert schedule.merge is not None
    assert schedule.apply is not None
    kinds = _kinds(None, x, dy, weight)
    if kinds:
        kinds += dtypes
    dweight, dbias = (x.new_empty(shape, dtype=dtype) if dtype else None for dtype in dtypes)
    sum_dyx = x.new_empty(schedule.parts, dtype=own)
    sum_dy = x.new_empty(schedule.parts, dtype=own) if schedule.sums_dy else None
    fixed, unused = (weight, found.mean, found.rstd, None), ((0.0, 0.0), None, None, None)
    if schedule.main.plan.accumulate:
        rows = [dbias, dweight]
        if schedule.rows:
            rows = [t if t is None else x.new_empty(schedule.rows, dtype=own) for t in rows]
        launch._run(schedule.main, kinds, dy, x, None, *fixed, sum_dy, sum_dyx, rows[1], rows[0], *unused)
    else:
        rows = [sum_dy, sum_dyx]
        launch._run(schedule.main, kinds, dy, x, None, *fixed, sum_dy, sum_dyx, None, None, *unused)
    w = weight if schedule.merge.group.weight else None
    also = (*rows, dbias, dweight) if schedule.merge.also else ()
    launch._run(schedule.merge, kinds, sum_dy, sum_dyx, w, told[0] if centered else None, told[-1], *also)
    heard, means = exchange(told), torch.empty_like(told)
    mean_dy = means[0] if centered else None
    merge = gathered_sums(problem, len(heard)).merge
    launch._run(merge, kinds, heard[:, 0] if centered else None, heard[:, -1], found.share, mean_dy, means[-1])
    launch._run(schedule.apply, kinds, dy, x, dx, *fixed, mean_dy, means[-1], None, None, *unused)
    return dx, dweight, dbias
