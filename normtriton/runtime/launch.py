"""Allocate and launch; decide nothing. What is launched, and how, is a `Schedule`."""

from __future__ import annotations

from ctypes import c_float
from functools import lru_cache
from math import isfinite
from threading import RLock
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
import triton
import triton.language as tl
from triton.runtime import driver

from ..kernels.backward import normalize_backward
from ..kernels.finalize import average_running, merge_moments, sum_parts, sum_twice
from ..kernels.forward import normalize_forward
from ..planning.schedule import Problem, backward_schedule, forward_schedule
from . import clusters, devices

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from ..planning.grouping import Grouping, Strides
    from ..planning.plan import Device
    from ..planning.schedule import Launch, Schedule

#: Whether the kernels run in Triton's interpreter, on the CPU. Decided when they were defined.
INTERPRETED = bool(triton.knobs.runtime.interpret)


@lru_cache(maxsize=64)
def options(num_warps: int, nvidia: bool, ctas: int = 1, programs: int = 1) -> dict[str, Any]:
    """Compiler options of a launch.

    The compiler fuses no a * b + c into one rounding, as it would by default up to Triton 3.9: it would fuse the last
    product before a sum over a warp's lanes with the sum's first addition, so that two lanes add a rounded and an exact
    product and get different sums. Where one rounding is wanted, `tl.fma` says so. Loops are not pipelined through
    shared memory unless one says so itself (`Plan.depth`): several programs an SM hide the latency. NVIDIA's assembler
    is told that it may use all registers that so many ``programs`` can have: left alone it aims at an occupancy and
    spills one or two to meet it.
    """
    chosen: dict[str, Any] = {"num_warps": num_warps, "num_stages": 1, "enable_fp_fusion": False}
    if nvidia and ctas == 1:  # in clusters the assembler does without: told so, it took 128 registers instead of 63
        chosen["maxnreg"] = min(64 * 1024 // (32 * num_warps * programs), 255)
    if ctas > 1:
        chosen["num_ctas"] = ctas
    return chosen


_NVIDIA = torch.version.hip is None

#: The fields of a `Grouping` that hold an operand's strides.
OPERANDS = ("x", "y", "dy", "dx", "weight", "bias", "stats", "parts")

KERNELS = {
    "forward": normalize_forward,
    "backward": normalize_backward,
    "merge_moments": merge_moments,
    "sum_parts": sum_parts,
    "sum_twice": sum_twice,
    "average_running": average_running,
}


#: Running statistics of a call: mean and variance, flat, their strides, what counts their updates, and the momentum.
#: The last but one holds a tensor, () int64, or nothing. (A named tuple took 0.2 µs to make, this one 0.04.)
Statistics: TypeAlias = "tuple[Tensor, Tensor, int, int, tuple[Tensor, ...], float]"


class Running(NamedTuple):
    """`Statistics` as the kernels take them; with an empty momentum they are overwritten.

    ``batches`` is no tensor or None: Triton 3.6 cannot compare tuples that hold a None.
    """

    mean: Any
    var: Any
    mean_stride: int
    var_stride: int
    batches: tuple[Any, ...]
    momentum: tuple[float, ...]  # as `exact_pair` makes it


@lru_cache(maxsize=4096)
def exact_pair(value: float) -> tuple[float, float]:
    """A float64 as two float32 whose sum it is to 48 bits: what a kernel's float argument can carry.

    Here alone are eps and momentum split. Everywhere else they are numbers, so that every way to the kernels is given
    the same ones.
    """
    high = c_float(value).value
    return high, value - high if isfinite(high) else 0.0


def kernel_group(launch: Launch) -> Grouping:
    """A launch's `Grouping` as its kernel takes it.

    Tensors' strides, and the extent of the contiguous axis, are in units of ``plan.vector``. Sizes are odd numbers, see
    `normtriton.kernels.places`. A stride of 0 is compiled in, and so are reduced sizes that belong to the model. (The
    number of joined cells too: compiled, float32 columns of 4096 rows spilled 8 bytes without.)
    """
    group, plan = launch.group, launch.plan
    step = "cell" if group.cells > 1 else "kept"
    contiguous = {"kept": step, "r2": "r2"}.get(plan.vector_axis)
    fixed_kept, fixed_r1, fixed_r2 = group.fixed or (False, False, False)

    def constant(value: int, fixed: bool = False) -> Any:
        # the interpreter gains nothing from it, and before 3.9 mistakes it for a tensor of another kind
        return tl.constexpr(value) if not INTERPRETED and (fixed or value == 0) else value

    def size(value: int, fixed: bool = False) -> Any:
        return constant(2 * value + 1, fixed)

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
        outer=tuple(map(size, group.outer)),
        kept=size(group.kept // plan.kept_unit, fixed_kept and plan.block_groups > 0),
        cells=0,  # the plan has it
        walk=tuple(map(size, group.walk)),
        r1=size(group.r1, fixed_r1),
        r2=size(group.r2 // plan.r2_unit, fixed_r2),
        count=size(group.count, group.fixed is not None and fixed_r1 and fixed_r2 and not group.walk),
        fixed=None,
        **operands,
    )


def constants(launch: Launch) -> tuple[Any, ...]:
    """The last arguments of a launch's kernel: its `Grouping` and its `Plan`, or both of two reductions."""
    if launch.also is None:
        return kernel_group(launch), launch.plan
    group, plan = launch.also
    return kernel_group(launch), kernel_group(launch._replace(group=group, plan=plan)), launch.plan, plan


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
        self.options = options(launch.num_warps, _NVIDIA, launch.plan.ctas, launch.programs)
        self.start = _in_turn(KERNELS[launch.kernel], launch.grid)
        self.compiled: dict[Kinds, Callable[..., None]] = {}


_ready: dict[int, _Ready] = {}
_hooks = triton.knobs.runtime


def _launcher(kernel: Any, grid: tuple[int, int]) -> Callable[..., None]:
    """A compiled kernel on a grid.

    Triton's own ``kernel[grid]`` describes each launch to profilers and looks for memory that a kernel may need besides
    its arguments. Without either a launch takes 2 µs, not 4.7 (13 arguments, a driver that does nothing).
    """
    x, y = grid
    described = kernel[(x, y, 1)]
    run = kernel.run
    needs = ("global_scratch_size", "profile_scratch_size", "gsan_enabled")
    if not _LAUNCHER_KNOWN or any(getattr(run, need, False) for need in needs):
        return described  # type: ignore[no-any-return]  # triton has no types
    submit, function, metadata = run.launch, kernel.function, kernel.packed_metadata
    ways, types = (run.launch_cooperative_grid, run.launch_pdl), (run.arg_annotations, run.kernel_signature)
    stream = driver.active.get_current_stream
    device = driver.active.get_current_device()

    def launch(*args: Any) -> None:
        if getattr(_hooks.launch_enter_hook, "calls", True) or getattr(_hooks.launch_exit_hook, "calls", True):
            described(*args)
        else:
            submit(x, y, 1, stream(device), function, *ways, metadata, None, None, None, None, None, *types, args)

    return launch


#: Whether the arguments of what a compiled kernel's ``run`` calls are those read in Triton 3.7 to 3.9.
_LAUNCHER_KNOWN = (3, 7) <= tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 10)

#: What tells the compiled kernels of one launch apart, or None if they cannot be looked up.
Kinds: TypeAlias = "tuple[Any, ...] | None"


def _kinds(running: Running | None, *given: Tensor | None) -> Kinds:
    """The device and dtypes of the caller's tensors; what Triton specializes on besides follows from the launch.

    The tensors that a launch is handed beside the caller's are new, so at addresses that 16 bytes divide, and their
    dtypes follow. A tensor of the caller's at another address is rare: that call goes Triton's own way. So do those in
    the interpreter, which compiles nothing, and on ROCm, whose kernels differ by the sizes of tensors too.
    """
    if not _LOOKED_UP:
        return None
    kinds: list[Any] = []
    addresses = 0
    for tensor in given:
        if tensor is None:
            kinds.append(None)
        else:
            kinds.append(tensor.dtype)
            addresses |= tensor.data_ptr()
    if running is not None:
        mean, var, *strides, batches, momentum = running
        kinds += (mean.dtype, var.dtype, *strides, len(batches), len(momentum))
        addresses |= mean.data_ptr() | var.data_ptr()
    kinds.append(given[0].get_device())  # type: ignore[union-attr]  # x comes first
    return None if addresses & 15 else tuple(kinds)


_LOOKED_UP = _NVIDIA and not INTERPRETED


def _run(launch: Launch, kinds: Kinds, *args: Any) -> None:
    """Launch. Triton's own way there takes most of a small call, so from the second time on the kernel is looked up."""
    ready = _ready.get(id(launch))
    if ready is None:
        if len(_ready) >= 8192:  # as many as there are schedules
            _ready.clear()
        ready = _ready[id(launch)] = _Ready(launch)
    compiled = ready.compiled.get(kinds)
    if compiled:
        compiled(*args, *ready.constants)
        return
    kernel = ready.start(*args, *ready.constants, **ready.options)
    if kinds:
        ready.compiled[kinds] = _launcher(kernel, launch.grid)


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


def statistics_dtype(x: Tensor) -> torch.dtype:
    """float32, for float64 that."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


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
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(y, mean, rstd); mean is None if it is fixed at zero, both are if the running statistics are used.

    ``dtype`` is y's, None for x's.
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
        x.itemsize,
        device or devices.of(x),
        mode,
    )
    kinds = _kinds(running, x, weight, bias)
    if kinds and dtype:
        kinds += (dtype,)
    if use_running:
        _run(schedule.main, kinds, x, y, weight, bias, None, None, running, None, pair)
        return y, None, None
    own, groups = statistics_dtype(x), schedule.num_groups
    rstd = x.new_empty(groups, dtype=own)
    mean = torch.empty_like(rstd) if problem.norm.centered else None

    if pair[0] == 0.0 and problem.norm.constant_is_zero:
        pair = None
        kinds = kinds and (*kinds, pair)
    target = running
    if running is not None:  # autograd must notice that they change in place
        torch.autograd.graph.increment_version((running.mean, running.var, *running.batches))
    if schedule.parameters:  # each group writes its own; they are averaged afterwards
        target = Running(x.new_empty(groups, dtype=own), x.new_empty(groups, dtype=own), 1, 1, (), ())
    if schedule.strategy == "clustered":
        if not _run_clustered(schedule.main, kinds, x, y, weight, bias, mean, rstd, target, None, pair):
            return forward(
                problem, x, weight, bias, eps, statistics, use_running, dtype, devices.of(x)._replace(clusters=False)
            )
    elif not schedule.apply:
        _run(schedule.main, kinds, x, y, weight, bias, mean, rstd, target, None, pair)
    else:
        assert schedule.merge is not None
        parts = x.new_empty((4, schedule.parts), dtype=own)
        correction = x.new_empty(groups, dtype=own) if mean is not None else None
        _run(schedule.main, kinds, x, None, None, None, None, None, None, parts, pair)
        _run(schedule.merge, kinds, parts, schedule.parts, mean, rstd, correction, target, pair)
        _run(schedule.apply, kinds, x, y, weight, bias, mean, rstd, None, correction, pair)
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
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """(dx, dweight, dbias); ``wants`` says whether dx is wanted, and in which dtypes the other two, if they are."""
    wants_dx, weight_dtype, bias_dtype = wants
    dy = dy.clone() if dy._is_zerotensor() else dy.resolve_neg()  # what autograd may hand on: no memory, or negated
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
        x.itemsize,
        device or devices.of(x),
        parameters,
        wants_dx,
        statistics is not None,
    )
    shape = schedule.parameter_shape
    dweight = x.new_empty(shape, dtype=weight_dtype) if weight_dtype else None
    dbias = x.new_empty(shape, dtype=bias_dtype) if bias_dtype else None
    running = None if statistics is None else Running(*statistics[:5], exact_pair(statistics[5]))
    kinds = _kinds(running, x, dy, weight)
    if kinds:
        kinds += wants
    given = Given(dy, x, dx if wants_dx else None, weight, mean, rstd, running, exact_pair(eps), dweight, dbias, kinds)
    if schedule.strategy == "clustered":
        if not _launch_backward(schedule, given, _run_clustered):
            return backward(
                problem, dy, x, weight, mean, rstd, statistics, eps, wants, devices.of(x)._replace(clusters=False)
            )
    else:
        _launch_backward(schedule, given, _run)
    return given.dx, dweight, dbias


class Given(NamedTuple):
    """The tensors of a backward pass."""

    dy: Tensor
    x: Tensor
    dx: Tensor | None
    weight: Tensor | None
    mean: Tensor | None
    rstd: Tensor | None
    running: Running | None
    eps: tuple[float, float]
    dweight: Tensor | None
    dbias: Tensor | None
    kinds: Kinds


def _launch_backward(schedule: Schedule, given: Given, run: Callable[..., bool | None]) -> bool:
    """Make the launches, the first one by ``run``; false if it was refused."""
    dy, x, dx, weight, mean, rstd, running, eps, dweight, dbias, kinds = given
    dtype = statistics_dtype(x)
    fixed = (weight, mean, rstd, running)
    row_dy, row_dyx = dbias, dweight
    if schedule.columns:
        row_dy = row_dyx = None
    elif schedule.rows:
        row_dy = x.new_empty(schedule.rows, dtype=dtype) if dbias is not None else None
        row_dyx = x.new_empty(schedule.rows, dtype=dtype) if dweight is not None else None
    if not schedule.parts:
        if run(schedule.main, kinds, dy, x, dx, *fixed, None, None, row_dyx, row_dy, eps) is False:
            return False
    else:
        sum_dyx = x.new_empty(schedule.parts, dtype=dtype)
        sum_dy = x.new_empty(schedule.parts, dtype=dtype) if schedule.sums_dy else None
        if schedule.main.plan.accumulate:
            _run(schedule.main, kinds, dy, x, None, *fixed, sum_dy, sum_dyx, row_dyx, row_dy, eps)
        else:
            _run(schedule.main, kinds, dy, x, dx, *fixed, sum_dy, sum_dyx, None, None, eps)
            row_dy, row_dyx = sum_dy, sum_dyx
        merged: tuple[Tensor | None, ...] = (sum_dy, sum_dyx)
        if schedule.merge:
            merged = tuple(t if t is None else x.new_empty(schedule.num_groups, dtype=dtype) for t in merged)
            w = weight if schedule.merge.group.weight else None
            gradients = (row_dy, row_dyx, dbias, dweight) if schedule.merge.also else ()
            _run(schedule.merge, kinds, sum_dy, sum_dyx, w, *merged, *gradients)
        if schedule.apply:
            _run(schedule.apply, kinds, dy, x, dx, *fixed, *merged, None, None, eps)
    if schedule.parameters:
        _run(schedule.parameters, kinds, row_dy, row_dyx, None, dbias, dweight)
    if schedule.columns:
        _run(schedule.columns, kinds, dy, x, None, None, mean, rstd, None, None, None, dweight, dbias, None)
    return True
