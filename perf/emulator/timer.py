"""Predicted times of launches: the model runs a kernel's SASS on a GPU's multiprocessors, L2 and DRAM.

cpp/model.cpp says how. `Timer` is a GPU that launches are made on, `Space` gives tensors that need no memory an
address, `pack` lays a kernel's parameters out. A predicted time is no measurement; README and docs say what it was
compared with.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import re
import weakref
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..count import occupancy
from . import build, sass
from .gpus import GPUS, Gpu

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from numpy.typing import NDArray

#: What warps wait for, in the order of `Reason` in cpp/model/parameters.hpp: the compiler's own stalls; global and
#: local loads; shared memory and shuffles; other scoreboards; barriers of a block, and of a cluster; other warps that
#: were picked, or a busy pipe; the load/store unit's queue; instructions that come the first time.
REASONS = ("fixed", "load", "shared", "other", "barrier", "cluster", "pick", "queue", "fetch")
_PIPES = tuple(name.lower() for name in sass.PIPES if name != "PIPES")
_SCHEDULERS = 4
#: Shares of stalls and pipes below this are not told.
_LEAST = 0.005
#: Bytes of constant bank 0 that the compiler's code reads besides parameters: the block's and the grid's sizes, and
#: where a thread's stack begins.
_SIZES, _STACK = slice(0, 24), slice(0x28, 0x2C)
#: Registers a thread that an address may be read from beyond those a kernel has: pairs, and vectors of four.
_SPARE_REGISTERS = 8


class ModelError(RuntimeError):
    """The model cannot run a launch to its end."""


class Timed(NamedTuple):
    """A launch as the model saw it.

    Attributes:
        kernel: its name.
        us: microseconds, those before the first and after the last instruction included.
        cycles: of the multiprocessors, without those.
        blocks, warps, cluster: of the launch, of a block, and blocks of a cluster.
        resident: blocks that a multiprocessor has room for.
        registers: a thread.
        spills: bytes of local memory a thread.
        instructions: of warps.
        dram_read, dram_write: bytes.
        issue_busy, dram_busy, port_busy, queue_busy: the share of the time that they were; of all multiprocessors.
        l1_hit, l2_hit: of the sectors that came to them.
        stalls: what warps waited for, of `REASONS`, as a share of their time.
        pipes: the share of the time that each pipe of a scheduler was busy.
        guessed: accesses and branches that depend on what the model does not compute: data, or an unknown instruction.
        sectors: of 32 bytes that global accesses touched, request by request.
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


class _Shape(ctypes.Structure):
    """What a launch is besides its GPU and its code, as model.cpp has it."""

    _fields_ = (
        ("grid", ctypes.c_uint32 * 3),
        ("threads", ctypes.c_uint32),
        ("cluster", ctypes.c_uint32),
        ("shared", ctypes.c_uint32),
        ("registers", ctypes.c_uint32),
        ("local", ctypes.c_uint32),
        ("resident", ctypes.c_uint32),
        ("l1", ctypes.c_uint32),
    )


@cache
def _model() -> ctypes.CDLL:
    """The compiled model."""
    lib = ctypes.CDLL(str(build.library("model.cpp", "libmodel.so")))
    pointer, integer = ctypes.c_void_p, ctypes.c_int
    lib.model_parameters.restype = lib.model_results.restype = ctypes.c_char_p
    lib.model_new.restype, lib.model_new.argtypes = pointer, [pointer]
    lib.model_free.restype, lib.model_free.argtypes = None, [pointer]
    lib.model_launch.restype = ctypes.c_bool
    lib.model_launch.argtypes = [
        pointer, pointer, integer, ctypes.POINTER(_Shape), pointer, integer, pointer, ctypes.c_char_p, integer
    ]  # fmt: skip
    return lib


@cache
def _results() -> list[str]:
    names: bytes = _model().model_results()
    return names.decode().split()


class Timer:
    """A GPU whose L2 remembers what launches before have touched; `flush` forgets it."""

    _free: weakref.finalize[..., Timer] | None = None

    def __init__(self, gpu: str | Gpu = "H100") -> None:
        """Make one of a GPU, or of a name in `GPUS`."""
        self.gpu = GPUS[gpu] if isinstance(gpu, str) else gpu
        self._codes: dict[bytes, sass.Code] = {}
        self.flush()

    def flush(self) -> None:
        """Begin with an L2 that holds nothing of use."""
        model = _model()
        names: bytes = model.model_parameters()
        values = np.array([float(getattr(self.gpu, name)) for name in names.decode().split()])
        if self._free is not None:
            self._free()
        self._state = model.model_new(values.ctypes.data)
        self._free = weakref.finalize(self, model.model_free, self._state)

    def code(self, cubin: bytes) -> sass.Code:
        """A cubin's decoded kernel; each is read once."""
        key = hashlib.sha256(cubin).digest()
        if key not in self._codes:
            self._codes[key] = sass.read(cubin)
        return self._codes[key]

    def launch(
        self, name: str, cubin: bytes, grid: Sequence[int], warps: int, cluster: int, shared: int, params: bytes
    ) -> Timed:
        """Time a launch.

        Args:
            name: for the result.
            cubin: the kernel.
            grid: blocks along each axis, those of clusters counted singly.
            warps: of a block.
            cluster: blocks of a cluster, along x.
            shared: bytes of a block.
            params: what the driver copies into constant bank 0; see `pack`.

        Raises:
            ModelError: a block does not fit on a multiprocessor, or the kernel comes to no end.
            UnknownSassError: the kernel cannot be followed.
        """
        return self.run(name, self.code(cubin), grid, warps, cluster, shared, params)

    def run(
        self, name: str, code: sass.Code, grid: Sequence[int], warps: int, cluster: int, shared: int, params: bytes
    ) -> Timed:
        """Time a launch of a decoded kernel; as `launch`."""
        resident = occupancy.resident_blocks(self.gpu.target, warps, code.registers, shared)
        if not resident:
            raise ModelError(
                f"{name}: a block of {warps} warps with {code.registers} registers a thread and {shared} bytes of"
                f" shared memory does not fit on a multiprocessor"
            )
        x, y, z = (*grid, 1, 1)[:3]
        shape = _Shape((x, y, z), warps * 32, cluster, shared, max(code.registers, 1) + _SPARE_REGISTERS, code.local)
        shape.resident, shape.l1 = resident, occupancy.l1_bytes(self.gpu.target, resident, shared)
        constants = _constant_bank(code, warps, (x, y, z), params)
        count = len(_results())
        result = np.zeros(count + len(REASONS) + len(_PIPES))
        error = ctypes.create_string_buffer(256)
        if not _model().model_launch(
            self._state, code.rows.ctypes.data, len(code.rows), shape, constants.ctypes.data, len(constants),
            result.ctypes.data, error, len(error),
        ):  # fmt: skip
            raise ModelError(f"{name}: {error.value.decode()}")
        numbers = dict(zip(_results(), map(float, result), strict=False))
        cycles, part, used = max(numbers["cycles"], 1), numbers["part"], numbers["used_sms"]
        slots = cycles * used * _SCHEDULERS
        waited = result[count : count + len(REASONS)]
        return Timed(
            kernel=name,
            us=cycles / self.gpu.clock * 1e6 + self.gpu.start * 1e6,
            cycles=cycles,
            blocks=x * y * z,
            warps=warps,
            resident=resident,
            registers=code.registers,
            spills=code.local,
            cluster=cluster,
            instructions=numbers["issued"] / part,
            dram_read=numbers["dram_read"] / part,
            dram_write=numbers["dram_write"] / part,
            issue_busy=numbers["issued"] / slots,
            dram_busy=numbers["dram_busy"] / cycles,
            port_busy=numbers["port_busy"] / (cycles * used),
            queue_busy=numbers["queue_busy"] / (cycles * used),
            l1_hit=numbers["l1_hits"] / max(numbers["l1_sectors"], 1),
            l2_hit=numbers["l2_hits"] / max(numbers["l2_sectors"], 1),
            stalls=_shares(REASONS, waited, max(float(waited.sum()), 1)),
            pipes=_shares(_PIPES, result[count + len(REASONS) :], slots),
            guessed=int(numbers["guessed"]),
            sectors=int(numbers["l1_sectors"]),
        )


def _constant_bank(code: sass.Code, warps: int, grid: tuple[int, int, int], params: bytes) -> NDArray[np.uint8]:
    """Constant bank 0 as the driver fills it."""
    bank = np.zeros(code.parameters + len(params) + 64, dtype=np.uint8)  # an instruction may read 8 bytes at its end
    bank[_SIZES] = np.array([warps * 32, 1, 1, *grid], dtype=np.uint32).view(np.uint8)
    bank[_STACK] = np.array([code.local], dtype=np.uint32).view(np.uint8)
    bank[code.parameters : code.parameters + len(params)] = np.frombuffer(params, dtype=np.uint8)
    return bank


def _shares(names: Sequence[str], values: NDArray[np.float64], total: float) -> dict[str, float]:
    shares = {name: float(value) / total for name, value in zip(names, values, strict=True)}
    return {name: share for name, share in shares.items() if share >= _LEAST}


# ------------------------------------------------------------------------------------------------------- parameters
_FLOATS = {2: np.float16, 4: np.float32, 8: np.float64}


def pack(ptx: str, values: Sequence[float]) -> bytes:
    """The parameters of a kernel as the driver lays them out.

    Args:
        ptx: the kernel's text, whose entry says how wide each parameter is.
        values: addresses and numbers in order. Triton's own parameters come after them and are 0.
    """
    entry = re.search(r"\.visible\s+\.entry\s+[\w$]+\s*\((.*?)\)", ptx, re.DOTALL)
    assert entry is not None, "no kernel in the PTX"
    kinds = re.findall(r"\.param\s+(?:\.align\s+\d+\s+)?\.([a-z]+)(\d+)", entry[1])
    out = bytearray()
    for kind, value in zip(kinds, [*values, *[0] * (len(kinds) - len(values))], strict=True):
        letter, size = kind[0], int(kind[1]) // 8
        out += bytes(-len(out) % size)
        if letter == "f":
            out += np.array(value, dtype=_FLOATS[size]).tobytes()
        else:
            out += (int(value) & ((1 << 8 * size) - 1)).to_bytes(size, "little")
    return bytes(out)


class Space:
    """Addresses of tensors that need no memory: those on the meta device get some of their own."""

    #: As high as cudaMalloc's are, pages apart.
    _FIRST, _PAGE = 0x7F0000000000, 4096

    def __init__(self) -> None:
        """Begin with no tensor."""
        self._next = self._FIRST
        self._known: dict[int, tuple[int, torch.UntypedStorage]] = {}  # kept alive: a key is a storage's address

    def address(self, tensor: torch.Tensor) -> int:
        """Where a tensor's first element is."""
        if tensor.device.type != "meta":
            return tensor.data_ptr()
        storage = tensor.untyped_storage()
        if storage._cdata not in self._known:
            self._known[storage._cdata] = self._next, storage
            self._next += math.ceil((storage.nbytes() + 512) / self._PAGE) * self._PAGE
        return self._known[storage._cdata][0] + int(tensor.storage_offset()) * tensor.element_size()
