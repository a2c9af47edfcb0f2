"""A GPU that is not there: Triton's own launcher on a driver that runs PTX, and memory that knows what was written.

`enable` first, before the library under test is imported. `pretend` makes CPU tensors answer "cuda". Tensors
that are made empty get memory of their own, with nothing else near, full of 0xFF (NaN in every
float dtype), or of 0xDB for integers.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
import weakref
from typing import Any, NamedTuple

import numpy as np

from . import pretend
from .executor import Executor, Report

PROFILES = {"sm_80": "a100", "sm_90": "h100", "sm_100": "b200"}
RED_ZONE, POISON, POISON_INTEGER = 4096, 0xFF, 0xDB
VALID, INIT, WRITTEN = 1, 2, 4


class Ran(NamedTuple):
    """A launch that was made."""

    kernel: str
    counts: dict[str, int]
    reports: list[Report]
    seconds: float
    error: str
    threads: int
    cluster: int
    handle: int

    @property
    def errors(self) -> list[Report]:
        return [r for r in self.reports if r.error]


class _Block:
    """Memory of a tensor that was made empty: which of its elements were written."""

    def __init__(self, address: int, size: int, item: int, poison: int) -> None:
        self.address, self.size, self.item, self.poison = address, size, item, poison
        self.init = np.zeros(size // item, dtype=bool)
        self.all = False

    def rescan(self) -> None:
        """Elements that PyTorch has written are no longer poison."""
        if self.all:
            return
        memory = _view(self.address, self.size).reshape(-1, self.item)
        self.init |= (memory != self.poison).any(1)
        self.all = bool(self.init.all())


def _view(address: int, size: int) -> np.ndarray:
    import ctypes

    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))


class Device:
    """The state of the pretended GPU."""

    def __init__(self) -> None:
        self.executor = Executor()
        self.launches: list[Ran] = []
        self.blocks: dict[int, _Block] = {}
        self.kernels: dict[bytes, str] = {}
        self.cubins: dict[int, bytes] = {}  # by handle
        self.edit = None  # a function of PTX text that plants bugs
        self.timer: Any = None  # a `timing.Timer`: launches are timed instead of run
        self.timed: list[Any] = []
        self._flags: list[Any] = []

    # ---------------------------------------------------------------- memory
    def give_memory(self, t: Any) -> Any:
        """Move a new empty tensor into memory of its own."""
        import torch

        if self.timer is not None:
            return t
        if type(t) is not torch.Tensor or t.is_meta or t.layout != torch.strided or t.numel() == 0 or t.is_quantized:
            return t
        if torch._C._functorch.is_functorch_wrapped_tensor(t) or torch._C._get_tracing_state() is not None:
            return t
        item = t.element_size()
        size = (1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))) * item
        poison = POISON if t.is_floating_point() else POISON_INTEGER
        room = np.full(size + 2 * RED_ZONE + 512, poison, dtype=np.uint8)
        start = -(-(room.ctypes.data + RED_ZONE) // 512) * 512
        flat = torch.frombuffer(room, dtype=torch.uint8, count=size, offset=start - room.ctypes.data)
        with torch.no_grad():
            t.set_(flat.untyped_storage(), 0, t.size(), t.stride())
        assert t.data_ptr() == start
        self.blocks[start] = _Block(start, size, item, poison)
        weakref.finalize(room, self.blocks.pop, start, None)
        return t

    def own(self, t: Any) -> Any:
        """A copy of a tensor, of the same strides, in memory of its own."""
        import torch

        if t is None:
            return None
        base = torch.empty_strided(t.shape, t.stride(), dtype=t.dtype) if all(t.stride()) or t.numel() == 0 else None
        if base is None:
            return t.clone(memory_format=torch.preserve_format)
        base.copy_(t.detach())
        if (block := self.blocks.get(base.data_ptr())) is not None:
            block.init[:] = True
            block.all = True
        return base

    def unwritten(self, t: Any) -> int:
        """How many elements of a result nothing has written."""
        block = self.blocks.get(t.untyped_storage().data_ptr())
        if block is None or t.numel() == 0:
            return 0
        block.rescan()
        import torch

        index = torch.from_numpy(block.init).as_strided(t.size(), t.stride(), t.storage_offset())
        return int((~index).sum())

    def _regions(self, tensors: list[Any]) -> list[tuple[int, int, int, int]]:
        import torch

        by_storage: dict[int, list[Any]] = {}
        for t in tensors:
            if t.numel():
                by_storage.setdefault(t.untyped_storage().data_ptr(), []).append(t)
        regions, self._flags = [], []
        for address, views in by_storage.items():
            size = views[0].untyped_storage().nbytes()
            items = {t.element_size() for t in views}
            block = self.blocks.get(address)
            exact = len(items) == 1 and (block is None or block.item in items)
            item = items.pop() if exact else 1
            flags = np.zeros(size // item + 1, dtype=np.uint8)
            if exact:
                shadow = torch.from_numpy(flags)
                for t in views:
                    kept = [(n, s) for n, s in zip(t.shape, t.stride(), strict=True) if s != 0]
                    shadow.as_strided([n for n, _ in kept], [s for _, s in kept], t.storage_offset()).bitwise_or_(VALID)
            else:
                flags |= VALID
            if block is not None and exact:
                block.rescan()
                flags[: len(block.init)] |= block.init.astype(np.uint8) * INIT
            else:
                flags |= INIT
            regions.append((address, size, item.bit_length() - 1, flags.ctypes.data))
            self._flags.append((block if exact else None, flags))
        return regions

    # -------------------------------------------------------------- launches
    def launch(self, make: Any, args: tuple[Any, ...]) -> Any:
        """Make a launch by Triton's own launcher, whose driver runs it here, and keep what was seen."""
        import torch

        tensors: list[Any] = []

        def collect(x: Any) -> None:
            if isinstance(x, torch.Tensor):
                tensors.append(x)
            elif isinstance(x, tuple | list):
                for y in x:
                    collect(y)

        if self.timer is not None:
            before = self.executor.lib.emulator_launches()
            result = make(*args)
            if self.executor.lib.emulator_launches() > before:
                *grid, threads, cluster, shared = (launch := self.executor.noted())[0]
                handle = self.executor.lib.emulator_last()
                self.timed.append(
                    self.timer.launch(
                        self.executor.last().name,
                        self.cubins[handle],
                        tuple(grid),
                        threads // 32,
                        cluster,
                        shared,
                        launch[1],
                    )
                )
            return result
        collect(args)
        self.executor.memory(self._regions(tensors))
        self.executor.lib.emulator_clear()
        began, error, before = time.perf_counter(), "", self.executor.lib.emulator_launches()
        try:
            return make(*args)
        except Exception as e:
            error = f"{type(e).__name__}: {e}"
            raise
        finally:
            for block, flags in self._flags:
                if block is not None:
                    block.init |= (flags[: len(block.init)] & INIT) != 0
            p = self.executor.last()
            if self.executor.lib.emulator_launches() > before:
                self.launches.append(
                    Ran(
                        p.name,
                        self.executor.counts(),
                        self.executor.reports(),
                        time.perf_counter() - began,
                        error,
                        p.threads,
                        p.cluster,
                        self.executor.lib.emulator_last(),
                    )
                )
            elif error:
                self.launches.append(Ran("?", {}, [], 0.0, error, 0, 1, 0))

    def load(self, cubin: bytes) -> None:
        """Have the driver's next module be the PTX that a cubin was made of."""
        key = hashlib.sha1(cubin).digest()
        if key not in self.kernels:
            raise RuntimeError("a binary whose PTX is not known")
        text = self.kernels[key]
        if self.edit:
            text = self.edit(text)
        self.cubins[self.executor.load(text, self.timer is None)] = cubin

    @contextlib.contextmanager
    def watching(self):
        """The launches made inside."""
        before, self.launches = self.launches, []
        seen = self.launches
        try:
            yield seen
        finally:
            self.launches = before + seen if len(before) < 100000 else before


device: Device | None = None


def enable(target: str = "sm_90", sms: int | None = None, assemble: bool = True, timing: Any = None) -> Device:
    """Pretend that there is a GPU. Before the library under test is imported, once in a process.

    Args:
        target: one of `PROFILES`.
        sms: multiprocessors that it says it has.
        assemble: have ptxas check the PTX, as a real launch does. Without, compiling takes half the time.
        timing: a name of `timing.GPUS`, or a `Gpu`: launches are not run but timed, into the device's ``timed``.
    """
    global device
    if device is not None:
        raise RuntimeError("enabled twice")
    os.environ.pop("TRITON_INTERPRET", None)
    os.environ.setdefault(
        "TRITON_CACHE_DIR", os.path.join(tempfile.gettempdir(), f"emulator_triton{'' if assemble else '_noas'}")
    )
    device = Device()
    if timing is not None:
        from .timer import Timer

        device.timer = Timer(timing)
        device.executor.lib.emulator_note(1)
    import torch
    import triton

    pretend.enable(PROFILES[target], sms)
    profile = pretend.profile()
    device.executor.lib.emulator_device(profile["cc"][0] * 10 + profile["cc"][1], profile["sms"])
    device.profile = profile

    def giving(f):
        def made(*args, **kwargs):
            return device.give_memory(f(*args, **kwargs))

        made.__wrapped__ = f
        return made

    for owner, names in (
        (torch, ("empty", "empty_like", "empty_strided", "empty_permuted")),
        (torch.Tensor, ("new_empty", "new_empty_strided")),
    ):
        for name in names:
            setattr(owner, name, giving(getattr(owner, name)))

    from triton.backends.nvidia import compiler as nvidia_compiler
    from triton.backends.nvidia import driver as nvidia
    from triton.compiler.compiler import CompiledKernel
    from triton.runtime import driver

    if not assemble:
        nvidia_compiler.CUDABackend.make_cubin = lambda self, src, metadata, opt, capability: src.encode()

    made = CompiledKernel.__init__

    def init(self, *args, **kwargs):
        made(self, *args, **kwargs)
        if "ptx" in self.asm:
            device.kernels[hashlib.sha1(self.kernel).digest()] = self.asm["ptx"]

    CompiledKernel.__init__ = init
    ready = nvidia.CudaLauncher.__init__

    def launcher(self, *args, **kwargs):
        ready(self, *args, **kwargs)
        submit = self.launch
        self.launch = lambda *a: device.launch(submit, a)

    nvidia.CudaLauncher.__init__ = launcher
    active = nvidia.CudaDriver()
    load = active.utils.load_binary

    def load_binary(name, kernel, *rest):
        device.load(kernel)
        return load(name, kernel, *rest)

    active.utils.load_binary = load_binary
    driver.set_active(active)
    assert triton.runtime.driver.active is active
    return device
