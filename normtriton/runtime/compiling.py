"""A launch as Triton takes it: kernel, constants and options; and what a device's compiler makes of it.

Nothing is launched here, and no memory is allocated.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import triton
import triton.language as tl
from triton.runtime.jit import MockTensor

from ..kernels.backward import normalize_backward
from ..kernels.finalize import (
    average_running,
    join_moments,
    merge_moments,
    merge_processes,
    sum_parts,
    sum_twice,
)
from ..kernels.forward import normalize_forward
from ..kernels.stages import Around, Behind
from ..planning.plan import Code

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from ..planning.grouping import Grouping, Strides
    from ..planning.plan import Dtypes
    from ..planning.schedule import Launch

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


#: Whether the GPUs are NVIDIA's: AMD's otherwise.
NVIDIA = torch.version.hip is None

#: The fields of a `Grouping` that hold an operand's strides.
OPERANDS = (
    "x", "y", "dy", "dx", "weight", "bias", "stats", "parts",
    "residual", "total", "skip", "gate", "before", "dtotal", "dskip", "dgate", "dresidual",
    "x_scale", "mask", "q_scale",
)  # fmt: skip

KERNELS = {
    "forward": normalize_forward,
    "backward": normalize_backward,
    "merge_moments": merge_moments,
    "join_moments": join_moments,
    "merge_processes": merge_processes,
    "sum_parts": sum_parts,
    "sum_twice": sum_twice,
    "average_running": average_running,
}

#: What a kernel may do besides, by the field of `Launch` that says so, in the order of its arguments.
BESIDE = {"forward": ("into",), "backward": ("into", "also"), "sum_twice": ("also",)}


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


def handed(kind: type[Around | Behind], tensors: Mapping[str, Any], otherwise: Any) -> Around | Behind | None:
    """The tensors around a norm as a kernel takes them; None if there are none."""
    return kind(*(tensors.get(name, otherwise) for name in kind._fields)) if tensors else None


def kernel_group(launch: Launch) -> Grouping:
    """A launch's `Grouping` as its kernel takes it.

    Tensors' strides, and the extent of the contiguous axis, are in units of ``plan.vector``. Sizes are odd numbers, see
    `normtriton.kernels.places`. A stride of 0 is compiled in, and so are reduced sizes that belong to the model. Of
    joined cells their number is too (compiled, float32 columns of 4096 rows spilled 8 bytes without), and the stride
    between rows (predicted, up to 9 % less time: many narrow accesses share what holds their addresses).
    """
    group, plan = launch.group, launch.plan
    step = "cell" if group.cells > 1 else "kept"
    contiguous = {"kept": step, "r2": "r2"}.get(plan.vector_axis)
    fixed_kept, fixed_r1, fixed_r2 = group.fixed or (False, False, False)

    def constant(value: int, fixed: bool = False) -> Any:
        # the interpreter gains nothing from it, and before 3.9 mistakes it for a tensor of another kind
        return tl.constexpr(value) if not INTERPRETED and (fixed or value == 0) else value

    def row_stride(name: str, unit: int) -> bool:
        return name == "r2" and plan.block_groups > 0 and unit > 1

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
            **{name: constant(value, row_stride(name, unit)) for name, value in scaled.items()},
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
    """The last arguments of a launch's kernel: its `Grouping` and its `Plan`, and those of what it does beside."""
    held: list[Any] = [kernel_group(launch), launch.plan]
    for field in BESIDE.get(launch.kernel, ()):
        beside = getattr(launch, field)
        if beside is None:
            held += [None, None]
        else:
            group, plan = beside
            held += [kernel_group(launch._replace(group=group, plan=plan)), plan]
    return tuple(held)


def statistics_dtype(x: Tensor) -> torch.dtype:
    """float32, for float64 that."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def standing_in(launch: Launch, dtypes: Dtypes, operands: tuple[str, ...]) -> tuple[Any, ...]:
    """The tensors of a launch whose tile holds whole groups: no memory, but dtypes, at addresses that 16 bytes divide.

    Partial gradients have the dtype of the arithmetic, as most batches leave them: what a small batch compiles in their
    place must not change the plan.
    """
    x, own = MockTensor(dtypes[0]), MockTensor(statistics_dtype(MockTensor(dtypes[0])))
    weight, bias = (MockTensor(dtypes[1] or dtypes[0]) if name in operands else None for name in ("weight", "bias"))
    mean, eps = own if launch.plan.centered else None, (1e-5, 0.0)
    there = {name: bias if name == "bias" else x for name in operands if name in {*Around._fields, *Behind._fields}}
    if "mask" in there:
        there |= {"mask": MockTensor(torch.uint8), "count": own}
    if launch.plan.quantize:
        there["own_scale"] = MockTensor(torch.float32)
    if launch.kernel == "forward":
        there.pop("bias", None)
        running = Running(own, own, 1, 1, (MockTensor(torch.int64),), (0.1, 0.0)) if "update" in operands else None
        y = MockTensor(torch.uint8) if launch.plan.quantize else x
        return x, y, weight, bias, mean, own, running, None, eps, handed(Around, there, x)
    dweight = own if "gradients" in operands else None
    dbias = dweight if launch.plan.centered else None
    behind = handed(Behind, there, x)
    return x, x, x, weight, mean, own, None, None, None, dweight, dbias, eps, None, None, behind


class Compiler:
    """A GPU's compiler, as the planner asks it: what it makes of a launch whose tile holds whole groups."""

    def __init__(self, index: int) -> None:
        """The compiler of the GPU of this number."""
        self.index = index

    def __call__(self, launch: Launch, dtypes: Dtypes, operands: tuple[str, ...]) -> Code | None:
        """The code; None if it takes more shared memory or threads than there are.

        The launch itself then finds the kernel compiled, unless other tensors' dtypes differ from those that stand in,
        or few rows have it sum columns besides.
        """
        chosen = options(launch.num_warps, NVIDIA, launch.plan.ctas, launch.programs)
        arguments = standing_in(launch, dtypes, operands)
        with torch.cuda.device(self.index):
            kernel = KERNELS[launch.kernel].warmup(*arguments, *constants(launch), grid=launch.grid, **chosen)
            try:
                kernel._init_handles()
            except triton.OutOfResources:
                return None
        return Code(kernel.n_regs, 4 * kernel.n_spills, kernel.metadata.shared)
