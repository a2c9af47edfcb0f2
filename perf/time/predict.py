"""Predicted times of passes: a model of a GPU runs the compiled kernels of each (`normtriton.perf.emulator.timer`).

A prediction is never a measurement; docs/emulator.md says what it was compared with, and what it cannot see. A pass's
launches go through the model one after the other, beginning with an L2 that holds nothing of use. A pass is predicted
twice, since it is not known how evenly multiprocessors share the bus:

    us        all multiprocessors share the L2 and the bus: while some reduce, others have more of it
    us_alone  a multiprocessor has its own share and no more: what it leaves idle while it reduces is lost

A kernel whose loads overlap with its arithmetic has both alike. Persistent kernels were found nearer to the second.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from normtriton.explain import NOTHING, around_backward, around_forward, whole
from normtriton.planning.plan import Device
from normtriton.runtime import compiling

from ..count.codegen import compile_launch, compiler, flat
from ..count.traffic import compulsory_bytes, distinct_bytes
from ..emulator.gpus import GPUS
from ..emulator.timer import Space, Timer, pack

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from normtriton.autograd.call import Call

    from ..count.launches import Planned, Recorded
    from ..emulator.gpus import Gpu
    from ..emulator.timer import Timed

#: What results are predicted for, by name: a GPU, and whether plans have its clusters.
MACHINES = {name: (gpu, True) for name, gpu in GPUS.items()} | {"H100-clusters-off": (GPUS["H100"], False)}
#: Of tensors of more elements a quarter of the multiprocessors is run, with a quarter of the L2 and of the bus.
WHOLE = 8_000_000
#: Two predicted times of a pass that are closer than this part of them are not told apart: about what the model was off
#: in the median against published times (docs/validation.md), of forward and of not persistent backward passes.
MARGIN = {"forward": 0.04, "backward": 0.15}


class Kernel(NamedTuple):
    """A compiled kernel, and all that a launch of it needs.

    Attributes:
        name: the kernel's.
        cubin: its binary.
        grid: thread blocks, those of clusters counted singly.
        warps: of a thread block.
        cluster: thread blocks of a cluster.
        shared: bytes of a thread block.
        params: the parameters as the driver lays them out.
    """

    name: str
    cubin: bytes
    grid: tuple[int, ...]
    warps: int
    cluster: int
    shared: int
    params: bytes


def kernel(compiled: Any, args: Iterable[Any], grid: Iterable[int], space: Space) -> Kernel:
    """What the model takes of a launch of any Triton kernel.

    Args:
        compiled: by Triton, for an NVIDIA target.
        args: all of the kernel's arguments, in its order.
        grid: programs.
        space: gives addresses to tensors, which may have no memory.
    """
    kinds = flat(tuple(compiled.src.signature.values()))
    given = [arg for arg, kind in zip(flat(tuple(args)), kinds, strict=False) if kind != "constexpr"]
    values = [space.address(arg) if isinstance(arg, torch.Tensor) else 0 if arg is None else arg for arg in given]
    about = compiled.metadata
    first, *rest = (*grid, 1, 1)[:3]
    return Kernel(
        about.name,
        compiled.asm["cubin"],
        (first * about.num_ctas, *rest),
        about.num_warps,
        about.num_ctas,
        about.shared,
        pack(compiled.asm["ptx"], values),
    )


def ours(recorded: Recorded, target: str, space: Space) -> Kernel:
    """A launch of normtriton's, compiled."""
    compiled = compile_launch(recorded, target)
    return kernel(compiled, (*recorded.args, *compiling.constants(recorded.launch)), recorded.launch.grid, space)


@lru_cache(maxsize=16)
def timer(gpu: Gpu, share: float) -> Timer:
    """The model of a GPU, of which one part in ``share`` is run."""
    return Timer(replace(gpu, share=share))


def device_of(gpu: Gpu, clusters: bool = True) -> Device:
    """What plans are made for."""
    return Device(gpu.sms, clusters=clusters and gpu.gpc_sms > 0, compiler=compiler(gpu.target))


class Predicted(NamedTuple):
    """What is predicted of a pass.

    Attributes:
        us, us_alone: µs, see the head of this file; what launching costs the GPU is in them, the host is not.
        gbps: compulsory bytes over ``us``, in GB/s.
        of_ceiling, of_ceiling_alone: compulsory bytes at the rate of a large copy, over ``us`` and ``us_alone``.
        compulsory: bytes, each input read once, each result written once.
        kernels: `Timed` of each launch as a dictionary, all multiprocessors running.
    """

    us: float
    us_alone: float
    gbps: float
    of_ceiling: float
    of_ceiling_alone: float
    compulsory: int
    kernels: list[dict[str, Any]]


def share_of(numel: int) -> float:
    """Which part of the multiprocessors stands for all of them, for tensors of so many elements."""
    return 4 if numel > WHOLE else 1


def run(gpu: Gpu, kernels: Iterable[Kernel], numel: int) -> tuple[list[Timed], float]:
    """Predict launches one after the other: what is said of each, and the µs of all with each multiprocessor alone."""
    kernels = list(kernels)
    together, alone = timer(gpu, share_of(numel)), timer(gpu, gpu.sms)
    for model in (together, alone):
        model.flush()
    found = [together.launch(*one) for one in kernels]
    return found, sum(alone.launch(*one).us for one in kernels)


def predicted(gpu: Gpu, found: list[Timed], alone: float, size: int) -> Predicted:
    """Sum up launches that together must move ``size`` bytes; ``alone`` is µs."""
    us = sum(one.us for one in found)
    copied = size / gpu.dram * 1e6
    rates = rounded({"gbps": size / us / 1e3, "of_ceiling": copied / us, "of_ceiling_alone": copied / alone})
    return Predicted(
        us=rounded(us),
        us_alone=rounded(alone),
        **rates,
        compulsory=size,
        kernels=[rounded(one._asdict()) for one in found],
    )


def rounded(value: Any) -> Any:
    """Numbers to four digits behind the point, in whatever holds them."""
    if isinstance(value, float):
        return round(float(value), 4)
    if isinstance(value, dict):
        return {name: rounded(held) for name, held in value.items()}
    return value


def compulsory(
    direction: str,
    call: Call,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    around: Mapping[str, torch.Tensor] = NOTHING,
) -> int:
    """Bytes of a call, and of what surrounds it, with each input read once and each result written once."""
    running = 0 if call.statistics is None else distinct_bytes(*call.statistics[:2])
    beside = around_forward(x, around) if direction == "forward" else around_backward(call, x, around)
    return compulsory_bytes(direction, x, weight, bias, running=running) + whole(beside)


def figures(gpu: Gpu, plan: Planned, direction: str) -> Predicted:
    """Predict one direction of a planned case."""
    space = Space()
    kernels = [ours(recorded, gpu.target, space) for recorded in plan.launches[direction]]
    size = compulsory(direction, plan.call, plan.x, plan.weight, plan.bias, plan.around)
    return predicted(gpu, *run(gpu, kernels, prod(plan.x.shape)), size)


__all__ = [
    "GPUS",
    "MACHINES",
    "MARGIN",
    "Kernel",
    "Predicted",
    "device_of",
    "figures",
    "kernel",
    "ours",
    "predicted",
    "run",
]
