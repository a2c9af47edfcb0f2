"""Allocate and launch; decide nothing. What is launched, and how, is a `Schedule`."""

from __future__ import annotations

from ctypes import c_float
from functools import lru_cache
from math import isfinite
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import triton
import triton.language as tl

from .kernels.backward import normalize_backward
from .kernels.finalize import average_running, merge_moments, sum_parts
from .kernels.forward import normalize_forward
from .schedule import Problem, backward_schedule, forward_schedule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from .grouping import Grouping, Strides
    from .schedule import Launch, Schedule

#: Whether the kernels run in Triton's interpreter, on the CPU. Decided when they were defined.
INTERPRETED = bool(triton.knobs.runtime.interpret)

#: Multiprocessors that plans for the interpreter count on: few, since it runs one program after another.
INTERPRETER_SMS = 2


@lru_cache(maxsize=64)
def options(num_warps: int, nvidia: bool) -> dict[str, Any]:
    """Compiler options of a launch.

    Fusing a * b + c into one rounding is Triton's default up to 3.9 and not from 3.10 on; we want it everywhere. Loops
    are not pipelined through shared memory: several programs an SM hide the latency. NVIDIA's assembler is told that it
    may use all registers such a program can have: left alone it aims at an occupancy and spills one or two to meet it.
    """
    chosen: dict[str, Any] = {"num_warps": num_warps, "num_stages": 1, "enable_fp_fusion": True}
    if nvidia:
        chosen["maxnreg"] = min(64 * 1024 // (32 * num_warps), 255)
    return chosen


_NVIDIA = torch.version.hip is None

#: The fields of a `Grouping` that hold an operand's strides.
OPERANDS = ("x", "y", "dy", "dx", "weight", "bias", "stats", "parts")

KERNELS = {
    "forward": normalize_forward,
    "backward": normalize_backward,
    "merge_moments": merge_moments,
    "sum_parts": sum_parts,
    "average_running": average_running,
}


class Running(NamedTuple):
    """Running statistics as the kernels take them; with an empty momentum they are overwritten."""

    mean: Any
    var: Any
    mean_stride: int
    var_stride: int
    momentum: tuple[float, ...]  # as `exact_pair` makes it


def exact_pair(value: float) -> tuple[float, float]:
    """A float64 as two float32 whose sum it is to 48 bits: what a kernel's float argument can carry."""
    high = c_float(value).value
    return high, value - high if isfinite(high) else 0.0


@lru_cache(maxsize=8192)
def kernel_group(launch: Launch) -> Grouping:
    """A launch's `Grouping` as its kernel takes it.

    Tensors' strides, and the extent of the contiguous axis, are in units of ``plan.vector``. Sizes that belong to the
    model are compiled in, and so is a stride of 0.
    """
    group, plan = launch.group, launch.plan
    step = "cell" if group.cells > 1 else "kept"
    contiguous = {"kept": step, "r2": "r2"}.get(plan.vector_axis)
    fixed_kept, fixed_r1, fixed_r2 = group.fixed or (False, False, False)

    def constant(value: int, fixed: bool = False) -> Any:
        # the interpreter gains nothing from it, and before 3.9 mistakes it for a tensor of another kind
        return tl.constexpr(value) if not INTERPRETED and (fixed or value == 0) else value

    def strides(s: Strides | None) -> Any:
        if s is None:
            return None
        unit = plan.vector if any(s is tensor for tensor in group.tensors) else 1
        scaled = {
            name: value if name == contiguous else value // unit
            for name, value in s._asdict().items()
            if not isinstance(value, tuple)
        }
        return s._replace(
            outer=tuple(constant(v // unit) for v in s.outer),
            walk=tuple(constant(v // unit) for v in s.walk),
            **{name: constant(value) for name, value in scaled.items()},
        )

    operands = {name: strides(getattr(group, name)) for name in OPERANDS}
    return group._replace(
        kept=constant(group.kept // plan.kept_unit, fixed_kept),
        cells=0,  # the plan has it
        r1=constant(group.r1, fixed_r1),
        r2=constant(group.r2 // plan.r2_unit, fixed_r2),
        count=constant(group.count, group.fixed is not None and fixed_r1 and fixed_r2 and not group.walk),
        fixed=None,
        **operands,
    )


def _run(launch: Launch, *args: Any) -> None:
    KERNELS[launch.kernel][launch.grid](*args, kernel_group(launch), launch.plan, **options(launch.num_warps, _NVIDIA))


@lru_cache(maxsize=64)
def _device_sms(index: int) -> int:
    return int(torch.cuda.get_device_properties(index).multi_processor_count)


def multiprocessors(x: Tensor) -> int:
    """Multiprocessors of x's device."""
    return _device_sms(x.get_device()) if x.is_cuda else INTERPRETER_SMS


def statistics_dtype(x: Tensor) -> torch.dtype:
    """float32, for float64 that."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _strides(t: Tensor | None) -> tuple[int, ...] | None:
    return None if t is None else t.stride()


def forward(
    problem: Problem,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: tuple[float, float],
    running: Running | None,
    use_running: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(y, mean, rstd); mean is None if it is fixed at zero, both are if the running statistics are used."""
    y = torch.empty_like(x)
    if y.numel() == 0:
        return y, None, None
    mode = "" if running is None else "use" if use_running else "update"
    schedule = forward_schedule(
        problem, x.stride(), y.stride(), _strides(weight), _strides(bias), x.itemsize, multiprocessors(x), mode
    )
    if use_running:
        _run(schedule.main, x, y, weight, bias, None, None, running, None, eps)
        return y, None, None
    dtype, groups = statistics_dtype(x), schedule.num_groups
    mean = x.new_empty(groups, dtype=dtype) if problem.norm.centered else None
    rstd = x.new_empty(groups, dtype=dtype)

    target = running
    if running is not None:  # autograd must notice that they change in place
        torch.autograd.graph.increment_version((running.mean, running.var))
    if schedule.parameters:  # each group writes its own; they are averaged afterwards
        each = x.new_empty((2, groups), dtype=dtype)
        target = Running(each[0], each[1], 1, 1, ())
    if not schedule.apply:
        _run(schedule.main, x, y, weight, bias, mean, rstd, target, None, eps)
    else:
        assert schedule.merge is not None
        parts = x.new_empty((4, schedule.parts), dtype=dtype)
        correction = x.new_empty(groups, dtype=dtype) if mean is not None else None
        _run(schedule.main, x, None, None, None, None, None, None, parts, eps)
        _run(schedule.merge, parts, schedule.parts, mean, rstd, correction, target, eps)
        _run(schedule.apply, x, y, weight, bias, mean, rstd, None, correction, eps)
    if schedule.parameters:
        _run(schedule.parameters, target.mean, target.var, running)  # type: ignore[union-attr]  # both set above
    return y, mean, rstd


def backward(
    problem: Problem,
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor | None,
    running: Running | None,
    eps: tuple[float, float],
    wants: tuple[bool, torch.dtype | None, torch.dtype | None],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """(dx, dweight, dbias); ``wants`` says whether dx is wanted, and in which dtypes the other two, if they are."""
    wants_dx, weight_dtype, bias_dtype = wants
    dx = torch.empty_like(x)
    shape = problem.parameter_shape
    if dx.numel() == 0:
        dweight, dbias = (x.new_zeros(shape, dtype=dtype) if dtype else None for dtype in (weight_dtype, bias_dtype))
        return dx if wants_dx else None, dweight, dbias
    dweight = x.new_empty(shape, dtype=weight_dtype) if weight_dtype else None
    dbias = x.new_empty(shape, dtype=bias_dtype) if bias_dtype else None
    parameters = dweight is not None or dbias is not None
    schedule = backward_schedule(
        problem, x.stride(), dy.stride(), dx.stride(), _strides(weight), x.itemsize, multiprocessors(x), parameters,
        wants_dx, running is not None,
    )  # fmt: skip
    _launch_backward(schedule, dy, x, dx if wants_dx else None, weight, mean, rstd, running, eps, dweight, dbias)
    return dx if wants_dx else None, dweight, dbias


def _launch_backward(
    schedule: Schedule,
    dy: Tensor,
    x: Tensor,
    dx: Tensor | None,
    weight: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor | None,
    running: Running | None,
    eps: tuple[float, float],
    dweight: Tensor | None,
    dbias: Tensor | None,
) -> None:
    dtype = statistics_dtype(x)
    fixed: Sequence[Any] = (weight, mean, rstd, running)
    row_dy, row_dyx = dbias, dweight
    if schedule.rows:
        row_dy = x.new_empty(schedule.rows, dtype=dtype) if dbias is not None else None
        row_dyx = x.new_empty(schedule.rows, dtype=dtype) if dweight is not None else None
    if not schedule.parts:
        _run(schedule.main, dy, x, dx, *fixed, None, None, row_dyx, row_dy, eps)
    else:
        sum_dy, sum_dyx = (x.new_empty(schedule.parts, dtype=dtype) for _ in range(2))
        _run(schedule.main, dy, x, dx, *fixed, sum_dy, sum_dyx, None, None, eps)
        merged = sum_dy, sum_dyx
        if schedule.merge:
            merged = x.new_empty(schedule.num_groups, dtype=dtype), x.new_empty(schedule.num_groups, dtype=dtype)
            w = weight if schedule.merge.group.weight else None
            _run(schedule.merge, sum_dy, sum_dyx, w, *merged)
        if schedule.apply:
            _run(schedule.apply, dy, x, dx, *fixed, *merged, row_dyx, row_dy, eps)
        if not schedule.rows:
            row_dy, row_dyx = sum_dy, sum_dyx
    if schedule.parameters:
        _run(schedule.parameters, row_dy, row_dyx, None, dbias, dweight)
