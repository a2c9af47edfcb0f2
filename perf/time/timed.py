"""Other libraries' norms as the model of time sees them: their launches, and PyTorch's operations in between.

A library's own Python code runs on tensors without memory (`normtriton.perf.count.rivals`). Each launch of a Triton
kernel is compiled for the GPU and goes to the model of time, in order, so that a launch finds in the L2 what the
launches before it have left there. Each of PyTorch's operations is charged as `stream`: the model knows no code of
theirs. All times are predicted.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from triton.runtime.jit import JITFunction

from ..cases.shapes import DIRECTIONS, make
from ..count import rivals
from ..count.codegen import mock, pretending
from ..count.l2 import Machine
from ..count.traffic import distinct_bytes
from ..emulator.timer import Space, Timed, Timer
from ..swapped import swapped
from .predict import compulsory, kernel, predicted, share_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch

    from ..cases.shapes import Cell
    from ..emulator.gpus import Gpu
    from .predict import Predicted

_compile = JITFunction.run


def machine(gpu: Gpu) -> Machine:
    """What libraries are told of a GPU."""
    return Machine(gpu.name, gpu.sms, gpu.l2, clusters=gpu.target != "sm_80")


def stream(gpu: Gpu, name: str, read: int, written: int) -> Timed:
    """The time of an operation of which only the bytes are known.

    It moves them at the rate of a large copy, and takes as long as any kernel to start and to end. A reduction with
    little parallelism, as that of a hundred rows, takes longer.
    """
    seconds = (read + written) / gpu.dram + gpu.start
    return Timed(
        kernel=f"aten::{name}", us=seconds * 1e6, cycles=(read + written) / gpu.dram * gpu.clock,
        blocks=0, warps=0, resident=0, registers=0, spills=0, cluster=1, instructions=0.0,
        dram_read=float(read), dram_write=float(written), issue_busy=0.0, dram_busy=1.0, port_busy=0.0, queue_busy=0.0,
        l1_hit=0.0, l2_hit=0.0, stalls={}, pipes={}, guessed=0, sectors=0,
    )  # fmt: skip


class Timing:
    """Times the launches of one pass on a `Timer`, from an L2 that holds nothing of use; ``steps`` are what it saw."""

    def __init__(self, timer: Timer, space: Space, quiet: bool = False) -> None:
        """Begin; ``space`` gives tensors their addresses, a forward and its backward pass share one.

        ``quiet``: time nothing.
        """
        self.timer, self.space, self.quiet = timer, space, quiet
        self.machine = machine(timer.gpu)
        self.steps: list[Timed] = []
        self._begun = False

    def launch(self, kernel: Any, args: tuple[Any, ...], grid: Any, **options: Any) -> None:
        """Compile and time one launch of any `@triton.jit` kernel."""
        if self.quiet:
            return
        compiled = compiled_launch(kernel, args, self.timer.gpu.target, grid, options)
        values = dict(zip(kernel.arg_names, args, strict=False)) | options
        ordered = [values.get(name) for name in kernel.arg_names]
        self.step(compiled, ordered, grid(values) if callable(grid) else grid)

    def step(self, compiled: Any, args: Sequence[Any], grid: Sequence[int]) -> None:
        """Time one launch of a compiled kernel; ``args`` in the order of its parameters, constants among them."""
        self._begin()
        self.steps.append(time_compiled(self.timer, self.space, compiled, args, grid))

    def stream(self, name: str, read: Sequence[torch.Tensor], written: Sequence[torch.Tensor]) -> None:
        """Charge one of PyTorch's operations."""
        if self.quiet:
            return
        self._begin()
        self.steps.append(stream(self.timer.gpu, name, distinct_bytes(*read), distinct_bytes(*written)))

    def _begin(self) -> None:
        if not self._begun:
            self.timer.flush()
            self._begun = True


def compiled_launch(kernel: Any, args: tuple[Any, ...], target: str, grid: Any, options: dict[str, Any]) -> Any:
    """Triton's compiled kernel for a launch of a `@triton.jit` function."""
    given = {name: mock(value) for name, value in options.items()}
    with pretending(target), swapped((JITFunction, "run", _compile)):
        return _compile(kernel, *map(mock, args), grid=grid, warmup=True, **given)


def time_compiled(timer: Timer, space: Space, compiled: Any, args: Sequence[Any], grid: Sequence[int]) -> Timed:
    """Time one launch of a compiled kernel on what the timer's L2 holds."""
    return timer.launch(*kernel(compiled, args, grid, space))


def passes(
    run: Callable[[], rivals.Passes], timer: Timer, directions: Sequence[str] = DIRECTIONS
) -> dict[str, list[Timed]]:
    """Time what ``run`` does, a forward pass, and what the function that it returns does, the backward pass if any."""
    space = Space()
    forward, backward = (Timing(timer, space, quiet=direction not in directions) for direction in DIRECTIONS)
    with rivals.recording(forward):
        _y, gradients = run()
    there = DIRECTIONS if gradients is not None else DIRECTIONS[:1]
    if gradients is not None and "backward" in directions:
        with rivals.recording(backward):
            gradients()
    return {d: one.steps for d, one in zip(there, (forward, backward), strict=False) if d in directions}


def timed(
    library: str,
    cell: Cell,
    timer: Timer,
    directions: Sequence[str] = DIRECTIONS,
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, list[Timed]]:
    """Time a cell of another library: {"forward": [...], "backward": [...]}, a `Timed` a step; what it has of them.

    `normtriton.perf.count.rivals.prepare` comes first, once in a process. Each pass begins with an L2 that holds
    nothing of use. Of several configurations that liger-kernel or flag-gems would measure, the middle one of the list
    is taken; of Inductor's, the one that the model predicts to be fastest; ``settings`` are Inductor's, beside its own.
    """
    if library == "torch.compile":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what its modules have to say of each other
            from . import inductor  # noqa: PLC0415  a compiler that nothing else here needs

        return inductor.timed(cell, timer, directions, **settings)
    case, dtype, layout = cell.case, *cell.options
    given = rivals.tensors(case, dtype, layout)
    return passes(lambda: rivals.RUNS[library](case.norm)(*given, case), timer, directions)


def figures(library: str, gpu: Gpu, cell: Cell) -> dict[str, Predicted]:
    """Predict a cell of another library, as `normtriton.perf.time.predict.figures` does ours, by direction."""
    call, x, weight, bias = make(cell.case, *cell.options)
    share = share_of(x.numel())
    together, alone = (timed(library, cell, Timer(replace(gpu, share=part))) for part in (share, gpu.sms))
    return {
        direction: predicted(
            gpu, together[direction], sum(step.us for step in alone[direction]),
            compulsory(direction, call, x, weight, bias, cell.case.tensors(x)),
        )
        for direction in together
    }  # fmt: skip
