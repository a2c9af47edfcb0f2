"""What the kernels ask of memory, measured without a GPU: every access of every program, and a model of the L2 cache.

    python -m normtriton.perf.traffic [--dtype bfloat16] [--machine H100] [--no-clusters] [--select NAME] [--full]

runs the launches that a GPU's plan asks for in Triton's interpreter, addresses only (`normtriton.perf.addresses`), and
prints a Markdown table. All figures are simulated; "x" is bytes over the compulsory bytes: each input read once, each
result written once (x, weight and bias, y; backward dy, x and weight, dx, dweight and dbias).

    live      bytes that unmasked lanes ask for, parameters read again by every program included
    request   bytes of the 32-byte sectors that each tile access touches: near live if accesses are coalesced
    dram      bytes between memory and the L2 of `normtriton.perf.l2`, empty when a pass starts

Shapes marked 1/k have k times fewer samples on a machine with k times fewer multiprocessors and k times less L2, so
that rows for each multiprocessor and tensors against the cache are those of the real shape. ``--full`` runs the real
shapes.

Not shown: time, how a warp's lanes coalesce (see `normtriton.perf.codegen` for access widths), the first-level cache.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import triton

from normtriton import launch
from normtriton.plan import Device

from .addresses import Memory, execute, require_triton
from .codegen import launches_of
from .l2 import L2, MACHINES, SECTOR, Access, Machine, interleave
from .shapes import CASES, Case, make

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .codegen import Recorded

#: How many times fewer samples are run of a real shape, by name; a batch norm's strategy must not change by it,
#: and parameters do not shrink with the cache: they must stay small against it.
SCALES = {
    "layer-8192x4096": 8,
    "layer-8192x768": 8,
    "layer-4096x12288": 8,
    "layer-8192x1000": 8,
    "rms-8192x4096": 8,
    "group32-8x320x64x64": 8,
    "group32-2x512x128x128": 2,
    "instance-8x64x256x256": 8,
    "batch-256x64x56x56": 2,
}


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
    """Collects the launches of one pass on a machine whose L2 is empty at first."""

    def __init__(self, machine: Machine) -> None:
        """Start with no launch and an empty cache."""
        require_triton()
        self.machine, self.memory, self.cache = machine, Memory(), L2(machine.l2)
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


def run(launches: Sequence[Recorded], machine: Machine, compulsory: int) -> Traffic:
    """Measure a pass of this library."""
    here = Pass(machine)
    for step, args in launches:
        kernel = launch.KERNELS[step.kernel]
        here.launch(kernel, (*args, *launch.constants(step)), step.grid, step.num_warps, step.plan.ctas)
    return here.end(compulsory)


def scaled(case: Case, by: int) -> Case:
    """The case with so many times fewer samples."""
    return case._replace(shape=(max(case.shape[0] // by, 1), *case.shape[1:]))


def measure(
    case: Case, dtype: torch.dtype, layout: torch.memory_format, machine: Machine, clusters: bool = True
) -> dict[str, tuple[str, Traffic]]:
    """{"forward": (strategy, traffic), "backward": ...} of a case, planned for the machine."""
    from normtriton.explain import backward_direction, forward_direction  # noqa: PLC0415  needs the whole library

    device = Device(machine.sms, clusters)
    call, x, weight, bias = make(case, dtype, layout)
    if call.running is not None:  # integers are not loaded here, and the count of batches is 16 bytes
        call = call._replace(running=call.running._replace(batches=()))
    launches = launches_of(call, x, weight, bias, device)
    parameters = distinct_bytes(weight, bias)
    running = 0 if call.running is None else 2 * distinct_bytes(call.running.mean, call.running.var)
    compulsory = {
        "forward": distinct_bytes(x, x) + parameters + running,
        "backward": distinct_bytes(x, x, x, weight) + parameters,
    }
    directions = {
        "forward": forward_direction(call, x, weight, bias, device),
        "backward": backward_direction(call, x, weight, bias, device),
    }
    return {
        name: (directions[name].schedule.strategy, run(steps, machine, compulsory[name]))
        for name, steps in launches.items()
    }


def layouts(case: Case) -> tuple[torch.memory_format, ...]:
    """The memory formats that a case's input can have."""
    return (torch.contiguous_format, torch.channels_last)[: 1 + (len(case.shape) == 4)]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32", "float64"), default="bfloat16")
    parser.add_argument("--machine", choices=MACHINES, default="H100")
    parser.add_argument("--no-clusters", action="store_true", help="plan without thread-block clusters")
    parser.add_argument("--select", default="", help="only cases whose name contains this")
    parser.add_argument("--full", action="store_true", help="the real shapes, not fractions of them: slow")
    chosen = parser.parse_args()
    machine = MACHINES[chosen.machine]
    clusters = not chosen.no_clusters and machine.name != "A100"
    print(  # noqa: T201  a report, here and below
        f"Simulated, not run on a GPU: addresses from Triton {triton.__version__}'s interpreter, {chosen.dtype} with "
        f"float32 parameters, {machine.sms} multiprocessors and {machine.l2 >> 20} MB of L2 (the {machine.name}'s), "
        f"{'with' if clusters else 'without'} clusters. 1/k: k times fewer samples, multiprocessors and bytes of L2.\n"
    )
    heads = ("shape", "scale", "layout", "direction", "strategy", "launches", "live x", "request x", "dram x")
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")  # noqa: T201
    for case in CASES:
        if chosen.select not in case.name:
            continue
        by = 1 if chosen.full else SCALES.get(case.name, 1)
        for layout in layouts(case):
            small, dtype = scaled(case, by), getattr(torch, chosen.dtype)
            for direction, (strategy, traffic) in measure(small, dtype, layout, machine.scaled(by), clusters).items():
                cells = (
                    case.name, f"1/{by}", str(layout)[6:].replace("_format", ""), direction, strategy,
                    len(traffic.steps), *(f"{v:.2f}" for v in (traffic.live, traffic.request, traffic.x_dram)),
                )  # fmt: skip
                print(f"| {' | '.join(map(str, cells))} |", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
