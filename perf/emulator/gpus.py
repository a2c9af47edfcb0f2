"""The GPUs that times are predicted for: what the model is told of each, with unit and source.

Sources by letter:

    S  NVIDIA's data sheets and architecture whitepapers (A100 2020, H100 2022, H200 2023)
    P  CUDA C++ Programming Guide: "Technical Specifications per Compute Capability", and the table "Throughput of
       Native Arithmetic Instructions", from which the cycles of a warp on a scheduler's quarter of the lanes follow
    L  Luo et al., "Benchmarking and Dissecting the Nvidia Hopper GPU Architecture", 2024, arXiv:2402.13499
    J  Jia et al., "Dissecting the NVIDIA Volta GPU Architecture via Microbenchmarking", 2018, arXiv:1804.06826
    F  fitted to published times of copies and norms (Liger-Kernel's benchmark data on A100 and H100, cudnn-frontend's
       on H200): these say nothing of how well the model predicts them
    C  chosen: no publication says it, and no published time was fitted

Latencies of L and J are those of a pointer chase, from one load to the next. The model's are less by what it counts
apart: the way to the load/store unit, the unit's cycle, and the mean of `jitter`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """Parameters of a GPU. Cycles are those of its multiprocessors.

    Attributes:
        name: for people.
        target: of the compiler.
        sms: multiprocessors. S
        gpc_sms: multiprocessors of a GPC, in which a cluster lies; 0 has no clusters. S
        clock: cycles a second. S for the A100. An H100's boosts to 1.98e9 and drops under load: C
        dram: bytes a second, read and written, that a large copy reaches. F: 85 to 90 % of S
        l2: bytes. S
        l2_ways: lines of a set. C
        l2_rate: bytes a second. C
        port: bytes a cycle that a multiprocessor reads from the L2. S (A100: 5120 bytes a cycle in all)
        store_port: bytes a cycle that it writes to it. C, as many
        atomic: sectors of 32 bytes a cycle that the L2 adds to. F
        latency_dram: cycles from the DRAM's service to the register, besides `jitter`. L
        latency_l2: cycles of an L2 hit. L
        latency_l1: cycles of an L1 hit. L
        latency_shared: cycles of shared memory. L
        latency_shuffle: cycles of a shuffle. J
        latency_xu: cycles of a special function or a conversion. J
        latency_special: cycles to read a special register. J
        latency_constant: cycles to load from a constant bank. J
        latency_barrier: cycles from the last arrival until a block's warps go on. C
        latency_cluster_barrier: likewise of a cluster. C: about the way to another multiprocessor and back
        latency_remote_shared: cycles of another block's shared memory. L: 180
        latency_fence: cycles of a fence. C
        latency_block: cycles from the last exit of a block until its successor begins. C
        block_gap: cycles between two blocks that begin on a multiprocessor. C
        queue_depth: cycles of work that may wait before the load/store unit. C
        alu, fma, fma_heavy, xu, fp64, uniform: cycles of a scheduler's pipe for a warp instruction. P
        shuffle: cycles of the load/store unit for a shuffle. P: 32 lanes a cycle
        jitter: cycles that a DRAM access takes longer, at most; half of it in the mean. A warp waits for the last of
            its accesses, so this is the tail of a busy DRAM's latency. F on the H100: to RMS norm's backward passes of
            1024 columns in Liger-Kernel's 7c454f48, which wait for it row after row. C on the A100
        fetch: cycles until a line of instructions is there that a multiprocessor has not come to before. C
        skew: cycles that the first blocks begin apart, at most. C
        start: seconds of a kernel before its first instruction and after its last. F
        seed: of `jitter` and `skew`.
        share: one of so many multiprocessors (or clusters) is run, with its share of the L2 and the DRAM; 1 runs all.
    """

    name: str
    target: str
    sms: int
    gpc_sms: int
    clock: float
    dram: float
    l2: int
    l2_ways: int = 16
    l2_rate: float
    port: float = 64
    store_port: float = 64
    atomic: float = 16.2
    latency_dram: float
    latency_l2: float
    latency_l1: float = 33
    latency_shared: float = 23
    latency_shuffle: float = 23
    latency_xu: float = 22
    latency_special: float = 25
    latency_constant: float = 30
    latency_barrier: float = 16
    latency_cluster_barrier: float = 190
    latency_remote_shared: float = 180
    latency_fence: float = 20
    latency_block: float = 400
    block_gap: float = 16
    queue_depth: float = 48
    alu: float = 2
    fma: float
    fma_heavy: float = 2
    xu: float = 8
    fp64: float
    uniform: float = 2
    shuffle: float = 1
    jitter: float = 200
    fetch: float = 30
    skew: float = 300
    start: float = 1.5e-6
    seed: int = 1
    share: float = 1


_H100 = Gpu(
    name="H100 SXM",
    target="sm_90",
    sms=132,
    gpc_sms=16,
    clock=1.755e9,
    dram=3.0e12,
    l2=50 << 20,
    l2_rate=5.5e12,
    latency_dram=340,
    latency_l2=262,
    jitter=560,
    fma=1,
    fp64=2,
)

GPUS = {
    "A100": Gpu(
        name="A100 SXM 80 GB",
        target="sm_80",
        sms=108,
        gpc_sms=0,
        clock=1.41e9,
        dram=1.73e12,
        l2=40 << 20,
        l2_rate=4.0e12,
        latency_dram=260,
        latency_l2=212,
        fma=2,
        fp64=4,
    ),
    "H100": _H100,
    "H200": replace(_H100, name="H200 SXM", dram=4.3e12),
}
