"""A GPU that is not there: Triton's own launcher on a driver that runs PTX on the CPU.

    device = enable("sm_90")
    with device.watching() as launches:
        y = library.norm(x)                        # CPU tensors now say "cuda"
    [ran.errors for ran in launches], launches[0].counts, device.unwritten(y)

`enable` changes the process for good. What it replaces, and why:

    torch, Tensor, torch.cuda    see `normtriton.perf.emulator.pretend`
    torch.empty and its kind     their tensors get memory of their own (`normtriton.perf.emulator.memory`)
    Triton's active driver       its CudaDriver, on a libcuda.so.1 that is the executor: arguments, grid, cluster and
                                 shared memory are those of a real launch
    CudaDriver's load_binary     hands the executor the PTX that a binary was made of
    CompiledKernel.__init__      notes which PTX that is
    CudaLauncher.__init__        launches pass through `Device.launch`
    CUDABackend.make_cubin       with assemble=False: the binary is the PTX's text, kept in a cache folder of its own

Triton keeps compiled kernels in memory by the number of the device, so there is one target in a process.
"""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import contextmanager
from functools import wraps
from threading import RLock
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import triton
from triton.backends.nvidia import compiler as nvidia_compiler
from triton.backends.nvidia import driver as nvidia
from triton.compiler.compiler import CompiledKernel
from triton.runtime import driver

from normtriton.runtime import cache, compiling

from ..count import cubin
from . import pretend
from .executor import Executor
from .memory import Memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor

    from .executor import Report
    from .pretend import Profile

#: The first release of Triton whose launcher and driver are known here.
LAUNCHER = (3, 9)
_EMPTY = {
    torch: ("empty", "empty_like", "empty_strided", "empty_permuted"),
    torch.Tensor: ("new_empty", "new_empty_strided"),
}


class Ran(NamedTuple):
    """A launch that was made.

    Attributes:
        kernel: its name.
        counts: executed warp instructions and accesses, see `Executor.counts`.
        reports: what was found.
        seconds: that the executor took; nothing of a GPU.
        error: what the launch raised, or nothing.
        threads: of a thread block.
        cluster: thread blocks of a cluster.
        handle: of the program in `Executor.programs`.
    """

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
        """The reports that are no mere notes."""
        return [report for report in self.reports if report.error]


class Device:
    """The emulated GPU.

    Attributes:
        profile: what it says of itself.
        executor: runs PTX; `Executor.configure` sets seed and checks.
        memory: of tensors that were made empty.
        launches: that were made, outside of `watching`.
        edit: changes the PTX of modules that are loaded, to plant a fault; None for none.
        timer: a `timer.Timer`: launches are not run but timed, into ``timed``; None to run them.
        timed: what the timer gave.
    """

    def __init__(self, profile: Profile, timing: Any = None) -> None:
        """``timing``: see `enable`."""
        self.profile = profile
        self.executor = Executor()
        self.executor.lib.emulator_device(10 * profile.capability[0] + profile.capability[1], profile.sms)
        self.memory = Memory()
        self.launches: list[Ran] = []
        self.edit: Callable[[str], str] | None = None
        self.timer: Any = None
        self.timed: list[Any] = []
        self.turn = RLock()  # the executor runs one launch after the other
        self._texts: dict[bytes, Mapping[str, Any]] = {}  # of each stage of the compiler, by the binary made of them
        self._binaries: dict[int, bytes] = {}  # by handle
        if timing is not None:
            from .timer import Timer  # noqa: PLC0415  its library is compiled where it is wanted

            self.timer = Timer(timing)
            self.executor.lib.emulator_note(1)

    def own(self, tensor: Tensor) -> Tensor:
        """A copy of a tensor in memory of its own, of the same strides."""
        return self.memory.own(tensor)

    def unwritten(self, tensor: Tensor) -> int:
        """How many elements of a tensor, made empty, nothing has written."""
        return self.memory.unwritten(tensor)

    @contextmanager
    def watching(self) -> Iterator[list[Ran]]:
        """The launches made inside, which whoever watches outside does not see."""
        before, self.launches = self.launches, []
        try:
            yield self.launches
        finally:
            self.launches = before

    def launch(self, make: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Make a launch by Triton's launcher, whose driver runs or times it here, and keep what was seen."""
        with self.turn:
            return self._run(make, args) if self.timer is None else self._time(make, args)

    def _run(self, make: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        executor = self.executor
        executor.memory(self.memory.open(_tensors(args)))
        executor.lib.emulator_clear()
        began, error, before = time.perf_counter(), "", executor.lib.emulator_launches()
        try:
            return make(*args)
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}"
            raise
        finally:
            seconds = time.perf_counter() - began
            self.memory.close()
            if executor.lib.emulator_launches() > before:  # an empty grid does not come to the driver
                self._keep(seconds, error)
            elif error:
                self.launches.append(Ran("", {}, [], seconds, error, 0, 1, 0))

    def _keep(self, seconds: float, error: str) -> None:
        executor, handle = self.executor, self.executor.lib.emulator_last()
        program = executor.programs[handle]
        counts, reports = executor.counts(), executor.reports()
        self.launches.append(
            Ran(program.name, counts, reports, seconds, error, program.threads, program.cluster, handle)
        )

    def _time(self, make: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        executor = self.executor
        before = executor.lib.emulator_launches()
        result = make(*args)
        if executor.lib.emulator_launches() > before:
            (*grid, threads, cluster, shared), parameters = executor.noted()
            handle = executor.lib.emulator_last()
            name, binary = executor.programs[handle].name, self._binaries[handle]
            self.timed.append(self.timer.launch(name, binary, tuple(grid), threads // 32, cluster, shared, parameters))
        return result

    def texts(self, ran: Ran) -> Mapping[str, Any]:
        """What the compiler made of a launch's kernel, by stage: "ttir", "ttgir", "llir", "ptx"."""
        return self._texts[_digest(self._binaries[ran.handle])]

    def note(self, binary: bytes, texts: Mapping[str, Any]) -> None:
        """Note the texts, PTX the last, that a binary was made of."""
        self._texts[_digest(binary)] = texts

    def load(self, binary: bytes) -> None:
        """Have the driver's next module be the PTX of a binary, edited if a fault is to be planted.

        Raises:
            RuntimeError: Triton has not compiled this binary.
        """
        texts = self._texts.get(_digest(binary))
        if texts is None:
            raise RuntimeError("the emulated device runs PTX, and this binary has none: Triton did not compile it")
        text = texts["ptx"]
        handle = self.executor.load(self.edit(text) if self.edit else text, self.timer is None)
        self._binaries[handle] = binary


def _digest(binary: bytes) -> bytes:
    return hashlib.sha1(binary, usedforsecurity=False).digest()


def _tensors(tree: Any) -> Iterator[Tensor]:
    """The tensors among a launch's arguments."""
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, tuple | list):
        for item in tree:
            yield from _tensors(item)


_enabled: Device | None = None


def enable(target: str, sms: int | None = None, assemble: bool = True, timing: Any = None) -> Device:
    """Emulate a GPU, from here on in this process.

    Args:
        target: "sm_80" (an A100), "sm_90" (an H100) or "sm_100" (a B200).
        sms: multiprocessors that it says it has; by default those of that GPU.
        assemble: have ptxas check the PTX, as a real launch does. Compiling takes half the time without.
        timing: a name of `timer.GPUS`, or a `timer.Gpu`: launches are not run but timed, into the device's ``timed``.

    Raises:
        CompilerMissingError: the executor cannot be built; says what to install.
        RuntimeError: a device is emulated already, kernels run in Triton's interpreter, or Triton is older than 3.9.
        ValueError: the target is none that is emulated.
    """
    global _enabled  # noqa: PLW0603  one in a process
    if _enabled is not None:
        raise RuntimeError(f"{_enabled.profile.target} is emulated already, and a process has one device")
    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < LAUNCHER:
        raise RuntimeError(
            f"the emulator stands behind the launcher of Triton 3.9 and later, not {triton.__version__}'s"
        )
    if compiling.INTERPRETED:
        raise RuntimeError("TRITON_INTERPRET=1 has Triton interpret kernels: unset it, the emulator runs compiled ones")
    device = Device(pretend.profile(target, sms), timing)
    pretend.enable(device.profile)
    if timing is None:  # what is timed has no contents
        _give_memory(device)
    if not assemble:
        _without_ptxas()
    _hook_triton(device)
    _enabled = device
    return device


def _give_memory(device: Device) -> None:
    def giving(factory: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return wraps(factory)(lambda *args, **kwargs: device.memory.give(factory(*args, **kwargs)))

    for owner, names in _EMPTY.items():
        for name in names:
            setattr(owner, name, giving(getattr(owner, name)))


def _without_ptxas() -> None:
    """The binary is the PTX itself. Nobody else may find such a binary, so it has a cache folder of its own."""
    os.environ["TRITON_CACHE_DIR"] = str(cache.folder() / "emulator" / "triton")
    nvidia_compiler.CUDABackend.make_cubin = lambda _self, src, *_: src.encode()


def _hook_triton(device: Device) -> None:
    """Have Triton's launcher come here with PTX, arguments and the configuration of each launch."""
    compiled, launcher = CompiledKernel.__init__, nvidia.CudaLauncher.__init__

    @wraps(compiled)
    def noting(self: Any, *args: Any, **kwargs: Any) -> None:
        compiled(self, *args, **kwargs)
        if "ptx" in self.asm:
            device.note(self.kernel, self.asm)

    @wraps(launcher)
    def passing(self: Any, *args: Any, **kwargs: Any) -> None:
        launcher(self, *args, **kwargs)
        submit = self.launch
        self.launch = lambda *given: device.launch(submit, given)

    active = nvidia.CudaDriver()
    load = active.utils.load_binary

    def loading(name: str, binary: bytes, *rest: Any) -> Any:
        with device.turn:
            device.load(binary)
            module, function, registers, spills, threads = load(name, binary, *rest)
            if binary.startswith(cubin.MAGIC):  # what the driver of a GPU says; a text says nothing
                registers, stack = cubin.usage(binary)
                spills = stack // 4
            return module, function, registers, spills, threads

    CompiledKernel.__init__, nvidia.CudaLauncher.__init__ = noting, passing
    active.utils.load_binary = loading
    driver.set_active(active)
