"""Allocate and launch; decide nothing. What is launched, and how, is a `Schedule`."""

from __future__ import annotations

from ctypes import c_float
from functools import lru_cache
from math import isfinite
from threading import RLock
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
import triton
from triton.runtime import driver

from ..kernels.stages import Around, Behind
from ..planning.schedule import Problem, backward_schedule, forward_schedule
from ..planning.stages import OF_GROUPS
from . import clusters, devices
from .compiling import INTERPRETED, KERNELS, NVIDIA, Running, constants, handed, options, statistics_dtype

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from torch import Tensor

    from ..planning.plan import Device
    from ..planning.schedule import Launch, Schedule

#: Running statistics of a call: mean and variance, flat, their strides, what counts their updates, and the momentum.
#: The last but one holds a tensor, () int64, or nothing. (A named tuple took 0.2 µs to make, this one 0.04.)
Statistics: TypeAlias = "tuple[Tensor, Tensor, int, int, tuple[Tensor, ...], float]"


@lru_cache(maxsize=4096)
def exact_pair(value: float) -> tuple[float, float]:
    """A float64 as two float32 whose sum it is to 48 bits: what a kernel's float argument can carry.

    Here alone are eps and momentum split. Everywhere else they are numbers, so that every way to the kernels is given
    the same ones.
    """
    high = c_float(value).value
    return high, value - high if isfinite(high) else 0.0


#: Held by a thread that runs programs in Triton's interpreter. It keeps the index of the program that runs, and what it
#: puts in the place of `triton.language`'s functions, in globals: two launches at once gave wrong numbers.
INTERPRETER = RLock()


def _in_turn(kernel: Any, grid: tuple[int, int]) -> Callable[..., Any]:
    """Triton's own way to a launch. In the interpreter it waits for other threads' launches; compiled ones need not."""
    if not INTERPRETED:
        return kernel[grid]  # type: ignore[no-any-return]  # triton has no types

    def start(*args: Any, **options: Any) -> Any:
        with INTERPRETER:
            return kernel[grid](*args, **options)

    return start


class _Ready:
    """A launch that was made before, and its compiled kernels by `_kinds`."""

    def __init__(self, launch: Launch) -> None:
        self.launch = launch  # held, so that no other takes its id
        self.constants = constants(launch)
        self.options = options(launch.num_warps, NVIDIA, launch.plan.ctas, launch.programs)
        self.start = _in_turn(KERNELS[launch.kernel], launch.grid)
        self.compiled: dict[Kinds, Callable[[tuple[Any, ...]], None]] = {}


_ready: dict[int, _Ready] = {}
_hooks = triton.knobs.runtime


def _handed(values: Iterable[Any], types: Iterable[Any]) -> Iterator[Any]:
    """The values that a compiled kernel is handed: one by one, without those that are compiled in."""
    for value, kind in zip(values, types, strict=True):
        if isinstance(kind, tuple):
            yield from _handed(value, kind)
        elif kind != "constexpr":
            yield value


def _launcher(kernel: Any, grid: tuple[int, int], constants: tuple[Any, ...]) -> Callable[[tuple[Any, ...]], None]:
    """A compiled kernel on a grid, which takes the arguments before the ``constants``.

    Triton's own ``kernel[grid]`` describes each launch to profilers and looks for memory that a kernel may need besides
    its arguments. Without either a launch takes 2 µs, not 4.7 (13 arguments, a driver that does nothing). It takes 1.1
    where the constants' numbers are found once: Triton would walk through their tuples in every launch.
    """
    x, y = grid
    described = kernel[(x, y, 1)]
    run = kernel.run
    needs = ("global_scratch_size", "profile_scratch_size", "gsan_enabled")
    if not _LAUNCHER_KNOWN or any(getattr(run, need, False) for need in needs):
        return lambda args: described(*args, *constants)
    submit, function, metadata = run.launch, kernel.function, kernel.packed_metadata
    grids, pdl, signature = run.launch_cooperative_grid, run.launch_pdl, run.kernel_signature
    kinds = [*kernel.src.signature.values()]
    given = len(kinds) - len(constants)
    numbers = tuple(_handed(constants, kinds[given:]))
    number = next(note for note, kind in zip(run.arg_annotations, kinds, strict=True) if kind[0] == "*")
    notes = [*run.arg_annotations[:given], *[number] * len(numbers)]
    stream = driver.active.get_current_stream
    device = driver.active.get_current_device()

    def launch(args: tuple[Any, ...]) -> None:
        if getattr(_hooks.launch_enter_hook, "calls", True) or getattr(_hooks.launch_exit_hook, "calls", True):
            described(*args, *constants)
        else:
            every, to = (*args, *numbers), stream(device)
            # one by one, since unpacking tuples took 0.2 µs more
            submit(x, y, 1, to, function, grids, pdl, metadata, None, None, None, None, None, notes, signature, every)

    return launch


#: Whether the arguments of what a compiled kernel's ``run`` calls are those read in Triton 3.7 to 3.9.
_LAUNCHER_KNOWN = (3, 7) <= tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 10)

#: What tells the compiled kernels of one launch apart, or None if they cannot be looked up.
Kinds: TypeAlias = "tuple[Any, ...] | None"


def _kinds(running: Running | None, x: Tensor, a: Tensor | None = None, b: Tensor | None = None) -> Kinds:
    """The device and dtypes of the caller's tensors; what Triton specializes on besides follows from the launch.

    The tensors that a launch is handed beside the caller's are new, so at addresses that 16 bytes divide, and their
    dtypes follow. A tensor of the caller's at another address is rare: that call goes Triton's own way. So do those in
    the interpreter, which compiles nothing, and on ROCm, whose kernels differ by the sizes of tensors too.
    """
    if not _LOOKED_UP:
        return None
    addresses = x.data_ptr()  # by name, since a loop over the tensors took 0.3 µs more
    a_dtype = b_dtype = None
    if a is not None:
        a_dtype = a.dtype
        addresses |= a.data_ptr()
    if b is not None:
        b_dtype = b.dtype
        addresses |= b.data_ptr()
    kinds: tuple[Any, ...] = (x.get_device(), x.dtype, a_dtype, b_dtype)
    if running is not None:
        mean, var, mean_stride, var_stride, batches, momentum = running
        kinds += (mean.dtype, var.dtype, mean_stride, var_stride, len(batches), len(momentum))
        addresses |= mean.data_ptr() | var.data_ptr()
    return None if addresses & 15 else kinds


_LOOKED_UP = NVIDIA and not INTERPRETED


def _kinds_around(kinds: Kinds, around: Mapping[str, Tensor]) -> Kinds:
    """`_kinds` with those of the tensors around a norm."""
    if kinds is None or any(t.data_ptr() & 15 for t in around.values()):
        return None
    return (*kinds, *around, *(t.dtype for t in around.values()))


def _in_memory(gradient: Tensor) -> Tensor:
    """A gradient as its memory says: autograd may hand on one that has none, or is negated when read."""
    return gradient.clone() if gradient._is_zerotensor() or gradient.is_neg() else gradient


def _layouts(around: Mapping[str, Tensor]) -> tuple[Any, ...]:
    """What a schedule is told of the tensors around a norm, backward with the bias last."""
    strides = tuple((name, t.stride()) for name, t in around.items() if name not in ("bias", *OF_GROUPS))
    return (strides, around["bias"].stride()) if "bias" in around else (strides,)


def _run(launch: Launch, kinds: Kinds, *args: Any) -> None:
    """Launch. Triton's own way there takes most of a small call, so from the second time on the kernel is looked up."""
    ready = _ready.get(id(launch))
    if ready is None:
        if len(_ready) >= 8192:  # as many as there are schedules
            _ready.clear()
        ready = _ready[id(launch)] = _Ready(launch)
    compiled = ready.compiled.get(kinds)
    if compiled:
        compiled(args)
        return
    kernel = ready.start(*args, *ready.constants, **ready.options)
    if kinds:
        ready.compiled[kinds] = _launcher(kernel, launch.grid, ready.constants)


def _run_clustered(launch: Launch, kinds: Kinds, *args: Any) -> bool:
    """Whether a launch in clusters was trusted and accepted; if not, nothing was written."""
    index = next(arg for arg in args if isinstance(arg, torch.Tensor)).get_device()
    if not clusters.trusted(index, clusters.form_of(launch)):
        return False
    try:
        _run(launch, kinds, *args)
    except (RuntimeError, triton.TritonError) as error:
        clusters.refuse(index, error)
        return False
    return True


class NotOnChip(Exception):  # noqa: N818  of a plan, not an error
    """A group's result is asked for at once, and no program has it."""


def forward(
    problem: Problem,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    statistics: Statistics | None,
    use_running: bool,
    dtype: torch.dtype | None = None,
    device: Device | None = None,
    around: Mapping[str, Tensor] | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(y, mean, rstd); mean is None if it is fixed at zero, both are if the running statistics are used.

    ``dtype`` is y's, None for x's. ``around`` are the tensors that surround the norm, those that broadcast against x
    expanded to its shape; a total and numbers of groups among them are written.

    Raises:
        NotOnChip: nothing is written, for want of each group's largest value.
    """
    y = torch.empty_like(x) if dtype is None else torch.empty_like(x, dtype=dtype)
    if y.numel() == 0:
        return y, None, None
    pair: tuple[float, float] | None
    pair, running, mode = exact_pair(eps), None, ""
    if statistics is not None:
        running = Running(*statistics[:5], exact_pair(statistics[5]))
        mode = "use" if use_running else "update"
    schedule = forward_schedule(
        problem,
        x.stride(),
        y.stride(),
        None if weight is None else weight.stride(),
        None if bias is None else bias.stride(),
        (x.dtype, None if weight is None else weight.dtype),
        device or devices.of(x),
        mode,
        *(_layouts(around) if around else ()),
    )
    if around and "own_scale" in around and not schedule.holds_groups:
        raise NotOnChip
    kinds = _kinds(running, x, weight, bias)
    if kinds and dtype:
        kinds += (dtype,)
    beside = None
    if around:
        kinds, beside = _kinds_around(kinds, around), handed(Around, around, x)
    if use_running:
        _run(schedule.main, kinds, x, y, weight, bias, None, None, running, None, pair, beside)
        return y, None, None
    own, groups = statistics_dtype(x), schedule.num_groups
    rstd = x.new_empty(groups, dtype=own)
    mean = torch.empty_like(rstd) if problem.norm.centered else None

    if pair[0] == 0.0 and problem.norm.constant_is_zero:
        pair = None
        kinds = kinds and (*kinds, pair)
    target = running
    if running is not None:  # autograd must notice that they change in place
        torch._C._increment_version((running.mean, running.var, *running.batches))
    if schedule.parameters:  # each group writes its own; they are averaged afterwards
        target = Running(x.new_empty(groups, dtype=own), x.new_empty(groups, dtype=own), 1, 1, (), ())
    if schedule.strategy == "clustered":
        if not _run_clustered(schedule.main, kinds, x, y, weight, bias, mean, rstd, target, None, pair, beside):
            without = devices.of(x)._replace(clusters=False)
            return forward(problem, x, weight, bias, eps, statistics, use_running, dtype, without, around)
    elif not schedule.apply:
        _run(schedule.main, kinds, x, y, weight, bias, mean, rstd, target, None, pair, beside)
    else:
        parts = x.new_empty((4, schedule.parts), dtype=own)
        _run(schedule.main, kinds, x, None, None, None, None, None, None, parts, pair, beside)
        if schedule.merge:
            correction = x.new_empty(groups, dtype=own) if mean is not None else None
            count = around.get("count") if around else None
            _run(schedule.merge, kinds, parts, mean, rstd, correction, target, pair, count)
            _run(schedule.apply, kinds, x, y, weight, bias, mean, rstd, None, correction, pair, beside)
        else:
            _run(schedule.apply, kinds, x, y, weight, bias, mean, rstd, target, parts, pair, beside)
    if schedule.parameters:
        _run(schedule.parameters, kinds, target.mean, target.var, running)  # type: ignore[union-attr]  # both set above
    return y, mean, rstd


def backward(
    problem: Problem,
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor | None,
    statistics: Statistics | None,
    eps: float,
    wants: tuple[bool, torch.dtype | None, torch.dtype | None],
    device: Device | None = None,
    around: Mapping[str, Tensor] | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """(dx, dweight, dbias); ``wants`` says whether dx is wanted, and in which dtypes the other two, if they are.

    ``around`` are the tensors that surround the norm, and the bias, where what comes after it is computed again; dskip
    and dgate among them are written.
    """
    wants_dx, weight_dtype, bias_dtype = wants
    if dy._is_zerotensor() or dy.is_neg():  # by name, since a call took 0.1 µs
        dy = _in_memory(dy)
    if around and "dtotal" in around:
        around = {**around, "dtotal": _in_memory(around["dtotal"])}
    dx = torch.empty_like(x)
    if dx.numel() == 0:
        shape = problem.parameter_shape
        dweight, dbias = (x.new_zeros(shape, dtype=dtype) if dtype else None for dtype in (weight_dtype, bias_dtype))
        return dx if wants_dx else None, dweight, dbias
    parameters = weight_dtype is not None or bias_dtype is not None
    schedule = backward_schedule(
        problem,
        x.stride(),
        dy.stride(),
        dx.stride(),
        None if weight is None else weight.stride(),
        (x.dtype, None if weight is None else weight.dtype),
        device or devices.of(x),
        parameters,
        wants_dx,
        statistics is not None,
        *(_layouts(around) if around else ()),
    )
    shape = schedule.parameter_shape
    dweight = x.new_empty(*shape, dtype=weight_dtype) if weight_dtype else None  # a tuple took 0.4 µs more
    dbias = x.new_empty(*shape, dtype=bias_dtype) if bias_dtype else None
    running = None if statistics is None else Running(*statistics[:5], exact_pair(statistics[5]))
    kinds = _kinds(running, x, dy, weight)
    if kinds:
        kinds += wants
    beside = None
    if around:
        kinds, beside = _kinds_around(kinds, around), handed(Behind, around, x)
    written = dx if wants_dx else None
    given = (dy, x, written, weight, mean, rstd, running, exact_pair(eps), dweight, dbias, beside, kinds)
    if schedule.strategy == "clustered":
        if not _launch_backward(schedule, given, _run_clustered):
            without = devices.of(x)._replace(clusters=False)
            return backward(problem, dy, x, weight, mean, rstd, statistics, eps, wants, without, around)
    else:
        _launch_backward(schedule, given, _run)
    return written, dweight, dbias


#: What a backward pass is given: dy, x, dx, weight, mean, rstd, running statistics, eps, dweight, dbias, the tensors
#: around it, and `Kinds`.
Given: TypeAlias = (
    "tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None, Running | None, "
    "tuple[float, float], Tensor | None, Tensor | None, Any, Kinds]"
)


def _launch_backward(schedule: Schedule, given: Given, run: Callable[..., bool | None]) -> bool:
    """Make the launches, the first one by ``run``; false if it was refused."""
    dy, x, dx, weight, mean, rstd, running, eps, dweight, dbias, beside, kinds = given
    dtype = statistics_dtype(x)
    fixed = (weight, mean, rstd, running)
    rows: tuple[Tensor | None, Tensor | None] = (dbias, dweight)
    if schedule.columns:
        rows = (None, None)
    elif schedule.rows:
        rows = tuple(t if t is None else x.new_empty(schedule.rows, dtype=dtype) for t in rows)  # type: ignore[assignment]  # two
    sums: tuple[Tensor | None, ...]
    if not schedule.parts:
        sums = (None, None, rows[1], rows[0])
        if run(schedule.main, kinds, dy, x, dx, *fixed, *sums, eps, None, None, beside) is False:
            return False
    else:
        sum_dyx = x.new_empty(schedule.parts, dtype=dtype)
        sum_dy = x.new_empty(schedule.parts, dtype=dtype) if schedule.sums_dy else None
        if schedule.main.plan.accumulate:
            sums = (sum_dy, sum_dyx, rows[1], rows[0])
            _run(schedule.main, kinds, dy, x, None, *fixed, *sums, eps, None, None, beside)
        else:
            _run(schedule.main, kinds, dy, x, dx, *fixed, sum_dy, sum_dyx, None, None, eps, None, None, beside)
            rows = sum_dy, sum_dyx
        merged: tuple[Tensor | None, ...] = (sum_dy, sum_dyx)
        if schedule.merge:
            merged = tuple(t if t is None else x.new_empty(schedule.num_groups, dtype=dtype) for t in merged)
            w = weight if schedule.merge.group.weight else None
            also = (*rows, dbias, dweight) if schedule.merge.also else ()
            _run(schedule.merge, kinds, sum_dy, sum_dyx, w, *merged, *also)
        if schedule.apply:
            gradients = (dweight, dbias, eps, *rows) if schedule.apply.also else (None, None, eps, None, None)
            _run(schedule.apply, kinds, dy, x, dx, *fixed, *merged, *gradients, beside)
    if schedule.parameters:
        _run(schedule.parameters, kinds, *rows, None, dbias, dweight)
    if schedule.columns:
        w = weight if schedule.columns.group.weight else None
        _run(schedule.columns, kinds, dy, x, None, w, mean, rstd, *(None,) * 3, dweight, dbias, *(None,) * 3, beside)
    return True
