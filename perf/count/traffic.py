"""What the kernels ask of memory, measured without a GPU: every access of every program, and a model of the L2 cache.

`measure` runs the launches that a GPU's plan asks for in Triton's interpreter, addresses only
(`normtriton.perf.count.addresses`). All figures are simulated; "x" is bytes over the compulsory bytes: each input read
once, each result written once (x, weight and bias, y; backward dy, x and weight, dx, dweight and dbias).

    live      bytes that unmasked lanes ask for, parameters read again by every program included
    request   bytes of the 32-byte sectors that each tile access touches: near live if accesses are coalesced
    dram      bytes between memory and the L2 of `normtriton.perf.count.l2`, empty when a pass starts

Real shapes are run in part (`fraction`): so many times fewer samples, or channels of a batch or instance norm, on a
machine with so many times fewer multiprocessors and so much less L2, so that rows for each multiprocessor and tensors
against the cache are those of the real shape.

Not shown: time, how a warp's lanes coalesce (see `normtriton.perf.count.codegen` for access widths), the first-level
cache.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

from normtriton.runtime import compiling

from ..cases.shapes import DIRECTIONS
from .addresses import Memory, execute, require_triton
from .l2 import L2, SECTOR, Access, Machine, interleave
from .launches import planned

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from ..cases.shapes import Case
    from .launches import Recorded

#: Parts of a real shape that may be run in its place, the smallest first, and how much of x parameters may then be, as
#: they do not shrink with it.
PARTS = (16, 8, 4, 2)
PARAMETERS = 1 / 32


class Step(NamedTuple):
    """What one launch moves, bytes: live, request, and between memory and L2 until it ends."""

    kernel: str
    programs: int
    live: int
    request: int
    dram: int
    pytorch: bool = False  #: an operation of PyTorch's, not a Triton kernel


class Traffic(NamedTuple):
    """What one pass moves.

    Attributes:
        steps: its launches.
        dram: bytes between memory and L2, with what is written back at the end.
        compulsory: bytes with each input read once and each result written once.
    """

    steps: tuple[Step, ...]
    dram: int
    compulsory: int

    def figures(self) -> dict[str, int]:
        """What is recorded of it: launches, and bytes."""
        sums = {name: sum(getattr(step, name) for step in self.steps) for name in ("live", "request")}
        return {"launches": len(self.steps), "dram": self.dram, "compulsory": self.compulsory, **sums}

    @property
    def live(self) -> float:
        """Bytes asked for, over compulsory."""
        return sum(step.live for step in self.steps) / self.compulsory

    @property
    def request(self) -> float:
        """Bytes of sectors touched, over compulsory."""
        return sum(step.request for step in self.steps) / self.compulsory

    @property
    def x_dram(self) -> float:
        """Bytes between memory and L2, over compulsory."""
        return self.dram / self.compulsory


class Pass:
    """Collects the launches of one pass on a machine whose L2 is empty at first; if ``cold``, before every launch."""

    def __init__(self, machine: Machine, cold: bool = False) -> None:
        """Start with no launch and an empty cache."""
        require_triton()
        self.machine, self.memory, self.cache, self.cold = machine, Memory(), L2(machine.l2), cold
        self.steps: list[Step] = []

    def launch(
        self, kernel: Any, args: tuple[Any, ...], grid: Any, num_warps: int = 4, ctas: int = 1, **kwargs: Any
    ) -> Step:
        """Run one launch of any `@triton.jit` kernel."""
        ran = execute(kernel, args, kwargs, grid, self.memory)
        slots = self.machine.slots(num_warps, ctas)
        return self._step(kernel.fn.__name__, ran.programs, slots, ran.live, ran.request)

    def stream(self, name: str, read: Sequence[torch.Tensor], written: Sequence[torch.Tensor]) -> Step:
        """Charge one of PyTorch's operations: it reads and writes whole tensors side by side, in pieces of 64 KiB."""
        spans = [
            (kind, self.memory.address(t), distinct_bytes(t)) for kind, ts in ((0, read), (1, written)) for t in ts
        ]
        pieces = max((-(-size // 65536) for _kind, _base, size in spans), default=0)
        programs, request = [], 0
        for piece in range(pieces):
            program = []
            for kind, base, size in spans:
                first = (base + size * piece // pieces) // SECTOR
                last = (base + size * (piece + 1) // pieces - 1) // SECTOR
                lines = range(first // 4, last // 4 + 1)
                bits = [15] * len(lines)
                if bits:
                    bits[0] &= 15 << first % 4
                    bits[-1] &= 15 >> (3 - last % 4)
                program.append(Access(kind, lines, bits))
                request += SECTOR * (last - first + 1)
            programs.append(program)
        return self._step(name, programs, self.machine.slots(8), sum(size for *_, size in spans), request, pytorch=True)

    def _step(
        self, name: str, programs: list[list[Access]], slots: int, live: int, request: int, pytorch: bool = False
    ) -> Step:
        if self.cold:
            self.cache.empty()
        before = self.cache.moved
        for access in interleave(programs, slots):
            self.cache.access(access)
        step = Step(name, len(programs), live, request, self.cache.moved - before, pytorch)
        self.steps.append(step)
        return step

    def end(self, compulsory: int) -> Traffic:
        """Write back what the cache holds, and sum up."""
        self.cache.flush()
        return Traffic(tuple(self.steps), self.cache.moved, compulsory)


def distinct_bytes(*tensors: torch.Tensor | None) -> int:
    """Bytes of the tensors' distinct elements: an expanded dimension counts once."""
    total = 0
    for t in tensors:
        if t is not None:
            size = t.element_size()
            for extent, stride in zip(t.shape, t.stride(), strict=True):
                size *= extent if stride else 1
            total += size
    return total


def compulsory_bytes(direction: str, x: torch.Tensor, *parameters: torch.Tensor | None, running: int = 0) -> int:
    """Bytes of a pass that reads each input once and writes each result once.

    Args:
        direction: "forward" or "backward".
        x: the input; y, dy and dx are as large.
        parameters: weight and bias; backward, their gradients are written and the weight is read.
        running: bytes of running statistics, which forward reads and writes.
    """
    if direction == "forward":
        return distinct_bytes(x, x, *parameters) + 2 * running
    return distinct_bytes(x, x, x, *parameters[:1], *parameters)


def _without_count(arg: Any) -> Any:
    """Running statistics that do not count batches: integers are not loaded here, and the count is 16 bytes."""
    return arg._replace(batches=()) if isinstance(arg, compiling.Running) else arg


def run(launches: Sequence[Recorded], machine: Machine, compulsory: int, cold: bool = False) -> Traffic:
    """Measure a pass of this library."""
    here = Pass(machine, cold)
    for step, args in launches:
        kernel = compiling.KERNELS[step.kernel]
        here.launch(
            kernel, (*map(_without_count, args), *compiling.constants(step)), step.grid, step.num_warps, step.plan.ctas
        )
    return here.end(compulsory)


def fraction(case: Case, dtype: torch.dtype, layout: torch.memory_format, machine: Machine) -> tuple[Case, int]:
    """The smallest part of a case that runs the same kernels on as small a part of the machine, and how small it is.

    It has fewer samples; or of a batch or instance norm fewer channels, where fewer samples would make other groups, or
    there are too few.
    """

    def kernels(case: Case, machine: Machine) -> tuple[Any, int]:
        directions = planned(case, dtype, layout, machine.device).launches.values()
        steps = [recorded.launch for direction in directions for recorded in direction]
        walks = [(step.plan, step.num_warps) for step in steps if step.kernel in ("forward", "backward")]
        same = [step.kernel for step in steps], walks  # the other kernels are small, and follow
        return same, sum(prod(direction[0].launch.grid) for direction in directions)

    whole, programs = kernels(case, machine)
    tensors = planned(case, dtype, layout, machine.device)
    parameters = distinct_bytes(tensors.weight, tensors.bias)
    for by in PARTS:
        for axis in range(1 + (case.norm in ("batch", "instance"))):
            if case.shape[axis] % by:
                continue
            size = case.shape[axis] // by
            small = case._replace(shape=(*case.shape[:axis], size, *case.shape[axis + 1 :]))
            same, few = kernels(small, machine.scaled(by))
            little = parameters * by <= PARAMETERS * distinct_bytes(tensors.x)
            if little and same == whole and abs(few * by / programs - 1) <= 1 / 8:  # 132 multiprocessors / 16 are 8
                return small, by
    return case, 1


def measure(
    case: Case,
    dtype: torch.dtype,
    layout: torch.memory_format,
    machine: Machine,
    directions: Sequence[str] = DIRECTIONS,
    cold: bool = False,
) -> dict[str, tuple[str, Traffic]]:
    """{"forward": (strategy, traffic), "backward": ...} of a case, planned for the machine.

    With ``cold`` the cache is emptied before every launch, as if tensors were much larger than it.
    """
    call, x, weight, bias, strategies, launches, _around = planned(case, dtype, layout, machine.device)
    running = 0 if call.statistics is None else distinct_bytes(*call.statistics[:2])
    found = {}
    for direction in directions:
        compulsory = compulsory_bytes(direction, x, weight, bias, running=running)
        found[direction] = strategies[direction], run(launches[direction], machine, compulsory, cold)
    return found
