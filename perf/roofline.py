"""An estimate, in µs, of the time of one pass on a GPU that nobody ran it on, and of what it waits for.

The model, kept simple on purpose. A pass takes as long as the slowest of three, and what its launches cost besides:

    dram      bytes between memory and L2, at the peak bandwidth of memory
    l2        bytes of the sectors requested, at the bandwidth of the L2: as if the first-level cache caught nothing
    latency   bytes fetched from memory, at the rate of Little's law: bytes in flight over the latency of memory.
              Thread blocks run in whole waves, so of B blocks with room for R at once, B / ceil(B / R) are in flight
    launch    launches, one after another, each as long as a kernel that has next to nothing to do

`traffic` rows give the bytes (`normtriton.perf.traffic`, simulated), `code` rows what is in flight
(`normtriton.perf.codegen`, compiled); without the latter there is no term for latency. Arithmetic, barriers, and the
latency of the L2 are left out. So it is an estimate, and nearer to a lower bound; measure with
``python -m normtriton.perf bench``.
"""

from __future__ import annotations

from math import ceil, prod
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping


class Gpu(NamedTuple):
    """What an estimate depends on of a GPU.

    Attributes:
        name: for people.
        sms: multiprocessors.
        dram: peak bandwidth of memory, bytes a µs (1 TB/s is 1e6 of them).
        l2: bandwidth of the L2 for reads, bytes a µs.
        latency: µs from a load to its data from memory, while nothing else is on the way.
        launch: µs of a kernel that moves 64 KiB, launched after another.
    """

    name: str
    sms: int
    dram: float
    l2: float
    latency: float
    launch: float


#: By name. Multiprocessors and the bandwidth of memory are the vendors' (data sheets of the A100 80GB SXM, the H100
#: SXM, HGX B200 and the Instinct MI300X). The rest was measured by others, unless it says "peak": files named below are
#: those of github.com/RRZE-HPC/gpu-benches. What was measured on another GPU says on which.
GPUS = {
    gpu.name: gpu
    for gpu in (
        # l2: gpu-l2-cache/a100_80.txt. latency: 571 cycles at 1.41 GHz, cuda-latency/a100_80.txt.
        # launch: 64 KiB at 24 GB/s, gpu-small-kernels/a100_80.txt
        Gpu("A100", 108, 2.039e6, 5.4e6, 0.405, 2.7),
        # l2: of an H200, the same chip, gpu-l2-cache/h200.txt. latency: of an H100 PCIe, 655 cycles at 1.755 GHz,
        # gpu-latency/h100_pcie.txt. launch: of an H200, 64 KiB at 26 GB/s, gpu-small-kernels/h200.txt
        Gpu("H100", 132, 3.35e6, 9.7e6, 0.373, 2.5),
        # l2: of an H200, times 148 / 132. launch: of an H200. latency: 860 cycles at 1.965 GHz, latency/README.md of
        # github.com/markdewing/AI_kernels
        Gpu("B200", 148, 8.0e6, 10.9e6, 0.438, 2.5),
        # l2: the peak, 8 dies of 16 channels of 128 bytes a cycle at 2.1 GHz, AMD CDNA 3 white paper. latency: of an
        # MI210, 664 cycles at 1.7 GHz, gpu-latency/mi210.txt. launch: of an MI210, 64 KiB at 32 GB/s,
        # gpu-small-kernels/mi210_rocm60_graph.txt
        Gpu("MI300X", 304, 5.3e6, 34.4e6, 0.391, 2.0),
    )
}


class Estimate(NamedTuple):
    """What a pass is estimated to take.

    Attributes:
        us: µs, an estimate.
        binds: the largest term: "dram", "l2", "latency" or "launch".
        terms: µs of each, by name.
    """

    us: float
    binds: str
    terms: dict[str, float]


def estimate(traffic: Mapping[str, Any], code: Mapping[str, Any] | None, gpu: Gpu) -> Estimate:
    """Estimate the time of a pass.

    Args:
        traffic: a row of `normtriton.perf.traffic`, simulated on a machine like the GPU.
        code: the row of the same cell of `normtriton.perf.codegen`, compiled for the GPU; None if there is none.
        gpu: one of `GPUS`.
    """
    dram, request = (traffic[name] * traffic["part"] for name in ("dram", "request"))  # a part ran on a part of a GPU
    terms = {"dram": dram / gpu.dram, "l2": request / gpu.l2}
    in_flight = [bytes_in_flight(kernel, gpu) for kernel in code["kernels"] if kernel.get("in_flight")] if code else []
    if in_flight:
        written = prod(traffic["shape"]) * getattr(torch, traffic["dtype"]).itemsize  # y or dx
        terms["latency"] = max(dram - written, 0) * gpu.latency / min(in_flight)
    us = max(terms.values())
    terms["launch"] = traffic["launches"] * gpu.launch
    return Estimate(us + terms["launch"], max(terms, key=lambda name: terms[name]), terms)


def bytes_in_flight(kernel: Mapping[str, Any], gpu: Gpu) -> float:
    """Bytes that all thread blocks of a kernel have asked for at once, on average over its waves."""
    waves = ceil(kernel["blocks"] / (kernel["resident_blocks"] * gpu.sms))
    return float(kernel["in_flight"] / kernel["resident_blocks"] * kernel["blocks"] / waves)
