"""What a GPU would run, without one: compile a launch for a real target and read registers, spills and access widths.

The compiler is Triton's own; the assembler and the tools that read its output come with the triton package. Not under
TRITON_INTERPRET=1.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter, defaultdict
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import MockTensor, compute_cache_key

from normtriton import launch
from normtriton.plan import Device

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from normtriton.autograd import Call
    from normtriton.schedule import Launch

#: The targets every kernel is compiled for.
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


#: What plans are made for unless another device is named.
H100 = Device(132)
H100_CLUSTERS = Device(132, clusters=True)

#: The device that a target's results are planned for, by name: A100, H100, B200 and MI300X.
PLANNED_FOR = {
    "sm_80": ("A100", Device(108)),
    "sm_90": ("H100", H100_CLUSTERS),
    "sm_100": ("B200", Device(148, clusters=True)),
    "gfx942": ("MI300X", Device(304)),
}


class Code(NamedTuple):
    """Facts of one compiled kernel.

    Attributes:
        registers: vector registers a thread.
        stack: bytes of local memory a thread: spills, and arrays that did not fit in registers.
        shared: bytes of shared memory a program.
        loads, stores: how many instructions access global memory with how many bytes each.
        barriers: barriers of a thread block.
        cluster_barriers: barriers of a whole cluster.
        instructions: instructions in the program's text.
    """

    registers: int
    stack: int
    shared: int
    loads: Counter[int]
    stores: Counter[int]
    barriers: int
    cluster_barriers: int
    instructions: int


class Recorded(NamedTuple):
    """A launch with the arguments it was made with."""

    launch: Launch
    args: tuple[Any, ...]


@contextmanager
def recording(device: Device = H100) -> Iterator[list[Recorded]]:
    """Collect launches instead of making them, planned for a device. Not for use among threads."""
    launches: list[Recorded] = []
    before = launch._run, launch._run_clustered, launch.device_of

    def record(step: Launch, _kinds: object, *args: Any) -> bool:
        launches.append(Recorded(step, args))
        return True

    launch._run = launch._run_clustered = record  # type: ignore[assignment]  # mypy would have the very functions
    launch.device_of = lambda x: device  # noqa: ARG005  called by position
    try:
        yield launches
    finally:
        launch._run, launch._run_clustered, launch.device_of = before


def launches_of(
    call: Call, x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, device: Device = H100
) -> dict[str, list[Recorded]]:
    """The launches of a checked call, {"forward": ..., "backward": ...}. Tensors may be on the meta device."""
    problem = call.problem
    with recording(device) as forward:
        _y, mean, rstd = launch.forward(problem, x, weight, bias, call.eps, call.running, call.use_running)
    running = call.running if call.use_running else None
    dtypes = [None if p is None else p.dtype for p in (weight, bias)]
    with recording(device) as backward:
        dy = torch.empty_like(x)
        launch.backward(problem, dy, x, weight, mean, rstd, running, call.eps, (True, dtypes[0], dtypes[1]))
    return {"forward": forward, "backward": backward}


class _Driver:
    """Stands for a device of a given kind; enough to compile, not to launch."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> str:
        return str(self.target)  # a key for Triton's cache of compiled kernels

    def get_current_stream(self, _device: object = None) -> int:
        return 0


def mock(value: Any) -> Any:
    """An argument without its tensors: their dtype, at an aligned address."""
    if isinstance(value, torch.Tensor):
        return MockTensor(value.dtype)
    if isinstance(value, tuple):
        items = [mock(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value


@contextmanager
def pretending(target: str) -> Iterator[_Driver]:
    """Have Triton believe that the current device is a target."""
    active, stand_in = driver._active, _Driver(TARGETS[target])
    driver.set_active(stand_in)
    try:
        yield stand_in
    finally:
        driver._active = active


def _options(step: Launch, target: str) -> dict[str, Any]:
    return launch.options(step.num_warps, TARGETS[target].backend == "cuda", step.plan.ctas)


def compile_launch(recorded: Recorded, target: str) -> Any:
    """Triton's compiled kernel for a launch."""
    step = recorded.launch
    with pretending(target):
        return launch.KERNELS[step.kernel].warmup(
            *map(mock, recorded.args), *launch.constants(step), grid=step.grid, **_options(step, target)
        )


def compile_key(recorded: Recorded, target: str) -> tuple[str, str]:
    """Where Triton looks for the compiled kernel of a launch: each key is one compilation. Compiles nothing."""
    step = recorded.launch
    kernel = launch.KERNELS[step.kernel]
    with pretending(target) as device:
        _kernels, keys, _target, _backend, binder = kernel.device_caches[device.get_current_device()]
        _bound, specialization, options = binder(
            *map(mock, recorded.args), *launch.constants(step), debug=False, **_options(step, target)
        )
    return step.kernel, compute_cache_key(keys, specialization, options)


def read_code(kernel: Any) -> Code:
    """Read the facts out of a compiled kernel."""
    return _read_nvidia(kernel) if "cubin" in kernel.asm else _read_amd(kernel)


def flat(tree: Any) -> list[Any]:
    """The leaves of nested tuples."""
    return [leaf for item in tree for leaf in flat(item)] if isinstance(tree, tuple | list) else [tree]


def tensor_accesses(kernel: Any, args: Sequence[Any], numel: int) -> Counter[int]:
    """How many instructions access tensors of at least so many elements with how many bytes each; NVIDIA only.

    Read from PTX: an address belongs to the parameters that any of its registers was computed from.

    Args:
        kernel: compiled.
        args: the launch's arguments in the order of the kernel's parameters, or the first of them.
        numel: elements; statistics and parameters have fewer.
    """
    kinds = flat(tuple(kernel.src.signature.values()))
    given = [arg for arg, kind in zip(flat(tuple(args)), kinds, strict=False) if kind != "constexpr"]
    large = {i for i, arg in enumerate(given) if isinstance(arg, torch.Tensor) and arg.numel() >= numel}
    origins: defaultdict[str, set[int]] = defaultdict(set)
    accesses: list[tuple[str, str]] = []
    flows: list[tuple[str, list[str]]] = []
    for line in kernel.asm["ptx"].splitlines():
        access = re.search(r"\b(?:ld|st)\.global\S*?((?:\.v\d)?\.[busf]\d+)\s.*\[\s*(%rd\d+)", line)
        parameter = re.search(r"ld\.param\.\S+\s+(%rd\d+), \[\w+_param_(\d+)\]", line)
        if access:
            accesses.append((access[1], access[2]))
        elif parameter:
            origins[parameter[1]].add(int(parameter[2]))
        else:
            registers = re.findall(r"%rd\d+", line)
            if len(registers) > 1:
                flows.append((registers[0], registers[1:]))
    size = -1
    while size != (size := sum(map(len, origins.values()))):  # loops carry addresses around
        for to, sources in flows:
            origins[to].update(*(origins[source] for source in sources))
    found: Counter[int] = Counter()
    for width, address in accesses:
        if origins[address] & large:
            found[prod(map(int, re.findall(r"\d+", width))) // 8] += 1
    return found


def facts(kernel: Any, name: str, args: Sequence[Any], numel: int) -> dict[str, Any]:
    """What is recorded of one compiled kernel: `Code` by name, and the bytes of accesses to large tensors if known."""
    widths = {"tensors": tensor_accesses(kernel, args, numel)} if "ptx" in kernel.asm else {}
    code = read_code(kernel)._asdict() | widths
    return {"kernel": name} | {
        key: {str(k): n for k, n in sorted(value.items())} if isinstance(value, Counter) else value
        for key, value in code.items()
    }


def _tool(name: str) -> str:
    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)


def _read_nvidia(kernel: Any) -> Code:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage, sass = (
            subprocess.run([_tool("cuobjdump"), flag, file.name], check=True, capture_output=True, text=True).stdout
            for flag in ("-res-usage", "-sass")
        )
    numbers = {key: int(value) for key, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", usage)}
    lines = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_.]+)", sass)

    def widths(opcode: str) -> Counter[int]:
        found: Counter[int] = Counter()
        for name in lines:
            if name.split(".")[0] == opcode:
                parts = name.split(".")
                bits = next((int(p) for p in parts if p in ("64", "128")), 32)
                bits = next((int(p[1:]) for p in parts if p in ("U8", "S8", "U16", "S16")), bits)
                found[bits // 8] += 1
        return found

    return Code(
        registers=numbers.get("REG", 0),
        stack=numbers.get("STACK", 0) + numbers.get("LOCAL", 0),
        shared=numbers.get("SHARED", 0),
        loads=widths("LDG"),
        stores=widths("STG"),
        barriers=sum(name.startswith("BAR.") for name in lines),
        cluster_barriers=kernel.asm["ptx"].count("barrier.cluster.wait"),
        instructions=len(lines),
    )


_AMD_WIDTHS = {
    "ubyte": 1,
    "sbyte": 1,
    "byte": 1,
    "ushort": 2,
    "sshort": 2,
    "short": 2,
    "dword": 4,
    "dwordx": 4,
    "dwordx2": 8,
}
_AMD_WIDTHS |= {"dwordx3": 12, "dwordx4": 16}


def _read_amd(kernel: Any) -> Code:
    text = kernel.asm["amdgcn"]
    numbers = {key: int(value) for key, value in re.findall(r"\.(\w+):\s+(\d+)\s*$", text, re.MULTILINE)}
    code = [line.split()[0] for line in text.splitlines() if re.match(r"^\t[a-z]+_", line)]

    def widths(kind: str) -> Counter[int]:
        found: Counter[int] = Counter()
        for name in code:
            match = re.match(rf"(?:global|buffer)_{kind}_([a-z]+(?:\d)?)", name)
            if match:
                found[_AMD_WIDTHS[match[1]]] += 1
        return found

    return Code(
        registers=numbers.get("vgpr_count", 0),
        stack=numbers.get("private_segment_fixed_size", 0) + 4 * numbers.get("vgpr_spill_count", 0),
        shared=numbers.get("group_segment_fixed_size", 0),
        loads=widths("load"),
        stores=widths("store"),
        barriers=sum(name.startswith("s_barrier") for name in code),
        cluster_barriers=0,
        instructions=len(code),
    )
