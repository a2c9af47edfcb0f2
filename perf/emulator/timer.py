"""Predicted times of launches: a model of a GPU's multiprocessors runs each kernel's SASS (timing.cpp, sass.py).

    python -m normtriton.perf time --shapes layer-8192x4096 --dtypes bfloat16 --directions backward --gpu H100

or, of any launch that Triton makes, with `device.enable("sm_90", timing="H100")`: see README.md.
"""

from __future__ import annotations

import ctypes
import hashlib
import re
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import build, sass

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Gpu:
    """Parameters of a GPU. Times are in cycles of its multiprocessors, rates in bytes a second unless they say a cycle.

    From data sheets and the CUDA C++ Programming Guide (multiprocessors, sizes, rates of the pipes: table "Throughput of
    Native Arithmetic Instructions"); latencies from "Benchmarking and Dissecting the Nvidia Hopper GPU Architecture via
    Microbenchmarking" (2024) and Jia et al. (2018). Fitted to published times, and marked so: `dram`, `start`, `atomic`.
    """

    name: str
    target: str
    sms: int
    clock: float
    dram: float  # fitted: what a large copy reaches, read and written
    l2: int
    l1: int  # with shared memory
    shared: int  # of which at most
    gpc: int = 0  # multiprocessors that a cluster may lie in
    l2_rate: float = 5.5e12
    port: float = 64  # bytes a cycle from the L2 to a multiprocessor
    port_store: float = 64
    ways: int = 16
    lat_dram: float = 340  # after the L2's
    lat_l2: float = 262
    lat_l1: float = 33
    lat_shared: float = 23
    lat_shuffle: float = 23
    lat_xu: float = 22
    lat_sreg: float = 25
    lat_const: float = 30
    lat_bar: float = 16
    lat_cluster: float = 190
    lat_dsmem: float = 180
    lat_membar: float = 20
    lat_cta: float = 400  # from the last exit of a block until the next begins
    cta_gap: float = 16
    mio_depth: float = 48  # cycles of work queued before the load/store unit
    alu: float = 2  # cycles that a warp instruction takes of a scheduler's pipe
    fma: float = 1
    fmah: float = 2
    xu: float = 8
    fp64: float = 2
    uniform: float = 2
    shuffle: float = 1
    jitter: float = 200
    fetch: float = 30  # the first time that a line of instructions is come to
    seed: float = 1
    share: float = 1  # only so many-th of the multiprocessors are run, with their share of the L2 and of the DRAM
    skew: float = 300  # of the first blocks
    read_write: float = 1.0  # what writing costs of the DRAM's time beside reading
    atomic: float = 16.2  # fitted: sectors a cycle that the L2 adds to
    start: float = 1.5e-6  # fitted: of a kernel before its first and after its last instruction


GPUS = {
    "H100": Gpu("H100 SXM", "sm_90", 132, 1.755e9, 3.0e12, 50 << 20, 256 << 10, 228 << 10, gpc=16),
    "H200": Gpu("H200 SXM", "sm_90", 132, 1.755e9, 4.3e12, 50 << 20, 256 << 10, 228 << 10, gpc=16),
    "A100": Gpu(
        "A100 SXM 80 GB",
        "sm_80",
        108,
        1.41e9,
        1.73e12,
        40 << 20,
        192 << 10,
        164 << 10,
        l2_rate=4.0e12,
        fma=2,
        fp64=4,
        lat_l2=212,
        lat_dram=260,
    ),
}
#: What warps wait for: the compiler's stalls, global and local loads, shared memory and shuffles, other scoreboards, barriers of a
#: block, of a cluster, other warps that were picked, a busy pipe, the load/store unit's queue, instructions that come the first time.
_REASONS = ("fixed", "load", "shared", "other", "barrier", "cluster", "pick", "pipe", "queue", "fetch")
_PIPES = tuple(sass.PIPES)[:-1]


class Timed(NamedTuple):
    """A launch as the model saw it.

    Attributes:
        kernel: its name.
        us: microseconds, those before the first and after the last instruction included.
        cycles: of the multiprocessors, without those.
        blocks, warps, resident, registers, spills, cluster: of the launch; resident blocks a multiprocessor.
        dram_read, dram_write: bytes.
        issue_busy, dram_busy, port_busy, queue_busy: the share of the time (of all multiprocessors' schedulers).
        l1_hit, l2_hit: of the sectors that came to them.
        stalls: what warps waited for, as a share of their time: loads, shared memory and shuffles, barriers and so on.
        pipes: the share of the time that each pipe of a scheduler was busy.
        guessed: accesses and branches that depend on what the model does not compute: data, or an unknown instruction.
        sectors: of 32 bytes that global accesses touched.
    """

    kernel: str
    us: float
    cycles: float
    blocks: int
    warps: int
    resident: int
    registers: int
    spills: int
    cluster: int
    instructions: float
    dram_read: float
    dram_write: float
    issue_busy: float
    dram_busy: float
    port_busy: float
    queue_busy: float
    l1_hit: float
    l2_hit: float
    stalls: dict[str, float]
    pipes: dict[str, float]
    guessed: int
    sectors: int


_lib = None


def _library() -> Any:
    global _lib
    if _lib is None:
        _lib = ctypes.CDLL(str(build.library("model.cpp", "libmodel.so")))
        _lib.timing_names.restype = ctypes.c_char_p
        _lib.timing_new.restype = ctypes.c_void_p
    return _lib


def resident_blocks(gpu: Gpu, warps: int, registers: int, shared: int) -> int:
    """Blocks that a multiprocessor has room for."""
    a_warp = max(-(-registers // 8), 1) * 8 * 32
    a_block = -(-(shared + 1024) // 128) * 128
    return max(1, min(32, 64 // warps, 4 * (16384 // a_warp) // warps, gpu.shared // a_block))


def _l1(gpu: Gpu, shared: int) -> int:
    """What is left of the L1 beside the shared memory that the resident blocks need."""
    sizes = [k << 10 for k in (0, 8, 16, 32, 64, 100, 132, 164, 196, 228)]
    return gpu.l1 - next(s for s in sizes if s >= min(shared, gpu.shared))


class Timer:
    """A GPU whose L2 remembers what launches before have touched; `flush` forgets it."""

    def __init__(self, gpu: str | Gpu = "H100") -> None:
        self.gpu = GPUS[gpu] if isinstance(gpu, str) else gpu
        self._codes: dict[bytes, sass.Code] = {}
        self._state = None
        self.flush()

    def flush(self) -> None:
        """Begin with an L2 that holds nothing of use."""
        lib = _library()
        if self._state is not None:
            lib.timing_free(ctypes.c_void_p(self._state))
        values = np.array([float(getattr(self.gpu, n)) for n in lib.timing_names().decode().split()])
        self._state = lib.timing_new(ctypes.c_void_p(values.ctypes.data))

    def __del__(self) -> None:
        if self._state is not None and _lib is not None:
            _lib.timing_free(ctypes.c_void_p(self._state))

    def code(self, cubin: bytes) -> sass.Code:
        key = hashlib.sha1(cubin).digest()
        if key not in self._codes:
            self._codes[key] = sass.read(cubin)
        return self._codes[key]

    def launch(
        self, name: str, cubin: bytes, grid: tuple[int, ...], warps: int, cluster: int, shared: int, params: bytes
    ) -> Timed:
        """Time a launch. ``params`` is what the driver copies into constant bank 0; ``grid`` counts blocks."""
        gpu, code, lib = self.gpu, self.code(cubin), _library()
        grid = (*grid, 1, 1)[:3]
        bank = np.zeros(code.params + len(params) + 64, dtype=np.uint8)
        bank[:24] = np.array([warps * 32, 1, 1, *grid], dtype=np.uint32).view(np.uint8)
        bank[0x28:0x2C] = np.array([code.local], dtype=np.uint32).view(np.uint8)  # where the stack begins
        bank[code.params : code.params + len(params)] = np.frombuffer(params, dtype=np.uint8)
        resident = resident_blocks(gpu, warps, code.registers, shared)
        l1 = _l1(gpu, resident * (shared + 1024))
        result = np.zeros(lib.timing_result_size())
        text = ctypes.create_string_buffer(256)
        g = np.array(grid, dtype=np.uint32)

        def at(a: np.ndarray) -> ctypes.c_void_p:
            return ctypes.c_void_p(a.ctypes.data)

        if lib.timing_run(
            ctypes.c_void_p(self._state),
            at(code.rows),
            len(code.rows),
            at(g),
            warps * 32,
            cluster,
            shared,
            max(code.registers, 1) + 8,
            code.local,
            resident,
            ctypes.c_uint64(l1),
            at(bank),
            len(bank),
            at(result),
            text,
            256,
        ):
            raise RuntimeError(f"{name}: {text.value.decode()}")
        r = dict(
            zip(
                (
                    "cycles",
                    "issued",
                    "dram_read",
                    "dram_write",
                    "dram_busy",
                    "l2_bytes",
                    "l1_hits",
                    "l1_sectors",
                    "l2_hits",
                    "l2_sectors",
                    "warps",
                    "ctas",
                    "resident",
                    "used",
                    "port_busy",
                ),
                result,
                strict=False,
            )
        )
        rest = result[15:]
        reasons, pipes, mio = (
            rest[: len(_REASONS)],
            rest[len(_REASONS) : len(_REASONS) + len(_PIPES)],
            rest[len(_REASONS) + len(_PIPES)],
        )
        cycles, part = max(r["cycles"], 1), rest[len(_REASONS) + len(_PIPES) + 3]
        slots = cycles * r["used"] * 4
        total = max(reasons.sum(), 1)
        return Timed(
            name,
            cycles / gpu.clock * 1e6 + gpu.start * 1e6,
            cycles,
            int(np.prod(grid)),
            warps,
            int(r["resident"]),
            code.registers,
            code.local,
            cluster,
            r["issued"] / part,
            r["dram_read"] / part,
            r["dram_write"] / part,
            r["issued"] / slots,
            r["dram_busy"] / cycles,
            r["port_busy"] / (cycles * r["used"]),
            mio / (cycles * r["used"]),
            r["l1_hits"] / max(r["l1_sectors"], 1),
            r["l2_hits"] / max(r["l2_sectors"], 1),
            {k: float(v / total) for k, v in zip(_REASONS, reasons, strict=True) if v / total >= 0.005},
            {k.lower(): float(v / slots) for k, v in zip(_PIPES, pipes, strict=True) if v / slots >= 0.005},
            int(rest[len(_REASONS) + len(_PIPES) + 1]),
            int(r["l1_sectors"]),
        )


# ---------------------------------------------------------------------------------------------------------- parameters
def pack(ptx: str, values: list[int | float | bool]) -> bytes:
    """The parameters of a kernel as the driver lays them out; addresses and numbers in order, the rest 0."""
    entry = re.search(r"\.visible\s+\.entry\s+[\w$]+\s*\((.*?)\)", ptx, re.S)[1]
    sizes = {"8": 1, "16": 2, "32": 4, "64": 8}
    out, at = bytearray(), 0
    for i, item in enumerate(x for x in entry.split(",") if x.strip()):
        kind = re.search(r"\.param\s+(?:\.align\s+\d+\s+)?\.([a-z]+)(\d+)", item)
        size = sizes[kind[2]]
        at = -(-at // size) * size
        out.extend(bytes(at - len(out)))
        v = values[i] if i < len(values) else 0
        if kind[1] == "f":
            out += {4: np.float32, 8: np.float64, 2: np.float16}[size](v).tobytes()
        else:
            out += (int(v) & ((1 << 8 * size) - 1)).to_bytes(size, "little")
        at += size
    return bytes(out)


class Space:
    """Addresses for tensors that need no memory: meta tensors get some of their own."""

    def __init__(self) -> None:
        self.next, self.known, self.kept = 0x7F0000000000, {}, []

    def address(self, t: Any) -> int:
        if t.device.type != "meta":
            return t.data_ptr()
        storage = t.untyped_storage()
        key = storage._cdata
        if key not in self.known:
            self.known[key] = self.next
            self.kept.append(storage)
            self.next += -(-(storage.nbytes() + 512) // 4096) * 4096
        return self.known[key] + t.storage_offset() * t.element_size()
