"""What a GPU would run, without one: compile a launch for a real target and read registers, spills and access widths.

The compiler is Triton's own, and the assembler comes with the triton package. Not under TRITON_INTERPRET=1.
"""

from __future__ import annotations

import functools
import re
from bisect import bisect
from collections import Counter, defaultdict
from contextlib import contextmanager
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from triton.runtime import driver
from triton.runtime.jit import MockTensor, compute_cache_key

from normtriton.planning.plan import Code as Compiled
from normtriton.runtime import compiling

from ..cases.targets import PLANNED_FOR, TARGETS
from .cubin import instructions, usage
from .launches import Recorded
from .occupancy import resident_blocks

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from triton.backends.compiler import GPUTarget

    from normtriton.planning.plan import Device, Dtypes
    from normtriton.planning.schedule import Launch


class Code(NamedTuple):
    """Facts of one compiled kernel.

    Attributes:
        registers: vector registers a thread.
        stack: bytes of local memory a thread: spills, and arrays that did not fit in registers.
        shared: bytes of shared memory a thread block.
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
    return compiling.options(step.num_warps, TARGETS[target].backend == "cuda", step.plan.ctas, step.programs)


def compile_launch(recorded: Recorded, target: str) -> Any:
    """Triton's compiled kernel for a launch."""
    step = recorded.launch
    with pretending(target):
        return compiling.KERNELS[step.kernel].warmup(
            *map(mock, recorded.args), *compiling.constants(step), grid=step.grid, **_options(step, target)
        )


class Compiler:
    """A target's compiler, as the planner asks it: `normtriton.runtime.compiling.Compiler` without the GPU."""

    def __init__(self, target: str) -> None:
        """The compiler for one of the `TARGETS`."""
        self.target = target

    def __call__(self, step: Launch, dtypes: Dtypes, operands: tuple[str, ...]) -> Compiled:
        """What becomes of a launch whose tile holds whole groups."""
        kernel = compile_launch(Recorded(step, compiling.standing_in(step, dtypes, operands)), self.target)
        if "cubin" in kernel.asm:
            return Compiled(*usage(kernel.asm["cubin"]), kernel.metadata.shared)
        code = read_code(kernel)
        return Compiled(code.registers, code.stack, code.shared)


@functools.cache
def compiler(target: str) -> Compiler | None:
    """The one `Compiler` of a target, so that plans made with it are cached; None where kernels are interpreted."""
    return None if compiling.INTERPRETED else Compiler(target)


def planned_for(target: str) -> Device:
    """The device that a target's kernels are planned for, with its compiler."""
    return PLANNED_FOR[target][1]._replace(compiler=compiler(target))


def compile_key(recorded: Recorded, target: str) -> tuple[str, str]:
    """Where Triton looks for the compiled kernel of a launch: each key is one compilation. Compiles nothing."""
    step = recorded.launch
    kernel = compiling.KERNELS[step.kernel]
    with pretending(target) as device:
        _kernels, keys, _target, _backend, binder = kernel.device_caches[device.get_current_device()]
        _bound, specialization, options = binder(
            *map(mock, recorded.args), *compiling.constants(step), debug=False, **_options(step, target)
        )
    return step.kernel, compute_cache_key(keys, specialization, options)


def read_code(kernel: Any) -> Code:
    """Read the facts out of a compiled kernel."""
    return _read_nvidia(kernel) if "cubin" in kernel.asm else _read_amd(kernel)


def flat(tree: Any) -> list[Any]:
    """The leaves of nested tuples."""
    return [leaf for item in tree for leaf in flat(item)] if isinstance(tree, tuple | list) else [tree]


class TensorAccess(NamedTuple):
    """An instruction that accesses a large tensor.

    Attributes:
        load: it does not store.
        width: bytes a thread.
        stretch: which stretch of the program's text it stands in; a loop's body is one, what is between loops another.
    """

    load: bool
    width: int
    stretch: int


class _Dialect(NamedTuple):
    """How to find accesses in a program's text: regular expressions.

    Attributes:
        text: Triton's name of the text.
        accesses: kind, width and address of an access; the first that matches.
        argument: an address, and the number of the argument that it is.
        flow: a line that computes something, from its second to last name to its first.
        name: of a value.
        label: where one may jump to.
        jump: a label that one jumps to.
    """

    text: str
    accesses: tuple[str, ...]
    argument: str
    flow: str
    name: str
    label: str
    jump: str


_PTX = _Dialect(
    text="ptx",
    accesses=(
        r"\b(?P<kind>ld|st)\.global\S*?(?P<width>(?:\.v\d)?\.[busf]\d+)\s.*\[\s*(?P<address>%rd\d+)",
        r"\b(?P<kind>cp)\.async\.\S*global\S*\s.*\[\s*(?P<address>%rd\d+).*\], (?P<width>0x[0-9a-f]+)",
    ),
    argument=r"ld\.param\.\S+\s+(%rd\d+), \[\w+_param_(\d+)\]",
    flow="",
    name=r"%rd\d+",
    label=r"(\$L__BB\w+):",
    jump=r"\bbra\S*\s+(\$L__BB\w+)",
)
#: Of AMD's assembly the registers are used again and again, so LLVM's text is read, where each value has a name.
_LLVM = _Dialect(
    text="llir",
    accesses=(
        r"raw\.ptr\.buffer\.(?P<kind>load|store)\.(?P<width>\w+)\(.*?ptr addrspace\(8\) (?P<address>%[\w.]+)",
        r"\b(?P<kind>load|store) (?P<width><\d+ x \w+>|\w+)[ ,].*ptr addrspace\(1\) (?P<address>%[\w.]+)",
    ),
    argument=r"(?!)",  # none is loaded: they are %0, %1 and so on
    flow=r"^\s+%[\w.]+ = ",
    name=r"%[\w.]+",
    label=r"([\w.]+):",
    jump=r"label %([\w.]+)",
)
_BITS = {"bfloat": "16", "half": "16", "float": "32", "double": "64"}


def _width(kind: str) -> int:
    """Bytes of a type such as .v4.b32, v4i32 or <8 x bfloat>, or of a copy such as 0x10."""
    if kind.startswith("0x"):
        return int(kind, 16)
    for name, bits in _BITS.items():
        kind = kind.replace(name, bits)
    return prod(map(int, re.findall(r"\d+", kind))) // 8


def tensor_accesses(kernel: Any, args: Sequence[Any], numel: int) -> list[TensorAccess]:
    """The instructions that access tensors of at least so many elements.

    An address belongs to all arguments that it was computed from.

    Args:
        kernel: compiled.
        args: the launch's arguments in the order of the kernel's parameters, or the first of them.
        numel: elements; statistics and parameters have fewer.
    """
    kinds = flat(tuple(kernel.src.signature.values()))
    given = [arg for arg, kind in zip(flat(tuple(args)), kinds, strict=False) if kind != "constexpr"]
    large = {i for i, arg in enumerate(given) if isinstance(arg, torch.Tensor) and arg.numel() >= numel}
    dialect = _PTX if "ptx" in kernel.asm else _LLVM
    origins: defaultdict[str, set[int]] = defaultdict(set)
    if dialect is _LLVM:
        origins.update({f"%{i}": {i} for i in range(len(given))})
    labels: dict[str, int] = {}
    accesses: list[tuple[str, str, str, int]] = []
    flows: list[tuple[str, list[str]]] = []
    loops: list[tuple[int, int]] = []  # from a label to the jump back to it
    for at, line in enumerate(kernel.asm[dialect.text].splitlines()):
        if label := re.match(dialect.label, line):
            labels[label[1]] = at
        loops += [(labels[to], at) for to in re.findall(dialect.jump, line) if to in labels]
        if access := next(filter(None, (re.search(pattern, line) for pattern in dialect.accesses)), None):
            accesses.append((access["kind"], access["width"], access["address"], at))
        elif parameter := re.search(dialect.argument, line):
            origins[parameter[1]].add(int(parameter[2]))
        elif re.match(dialect.flow, line) and len(names := re.findall(dialect.name, line)) > 1:
            flows.append((names[0], names[1:]))
    size = -1
    while size != (size := sum(map(len, origins.values()))):  # loops carry addresses around
        for to, sources in flows:
            origins[to].update(*(origins[source] for source in sources))
    cuts = sorted(cut for first, last in loops for cut in (first, last + 1))
    return [
        TensorAccess(not kind.startswith("st"), _width(width), bisect(cuts, at))
        for kind, width, address, at in accesses
        if origins[address] & large
    ]


def loaded_at_once(accesses: Sequence[TensorAccess]) -> int:
    """Bytes that a thread loads in that stretch of the text that loads most: it need not wait for one before the next.

    A loop's body is a stretch, of which one round counts (a compiler may have made one of two iterations); so is what
    stands before, between and after loops.
    """
    loaded: Counter[int] = Counter()
    for access in accesses:
        loaded[access.stretch] += access.width * access.load
    return max(loaded.values(), default=0)


def facts(kernel: Any, name: str, target: str, grid: Sequence[int], args: Sequence[Any], numel: int) -> dict[str, Any]:
    """What is recorded of one compiled kernel.

    `Code` by name, and

        blocks           thread blocks of the launch, those of clusters counted singly
        warps            of a thread block
        resident_blocks  thread blocks that a multiprocessor has room for, by its warps, registers and shared memory
        tensors          how many instructions access tensors of x's size with how many bytes
        in_flight        bytes in flight a multiprocessor: those of such tensors that a thread loads at once
                         (`loaded_at_once`) times the threads that are resident
    """
    code = read_code(kernel)
    accesses = tensor_accesses(kernel, args, numel)
    about = kernel.metadata
    room = resident_blocks(target, about.num_warps, code.registers, code.shared)
    found = {
        "kernel": name,
        **code._asdict(),
        "blocks": prod(grid) * about.num_ctas,
        "warps": about.num_warps,
        "resident_blocks": room,
        "tensors": Counter(access.width for access in accesses),
        "in_flight": loaded_at_once(accesses) * room * about.num_warps * TARGETS[target].warp_size,
    }
    return {
        key: {str(k): n for k, n in sorted(value.items())} if isinstance(value, Counter) else value
        for key, value in found.items()
    }


def _read_nvidia(kernel: Any) -> Code:
    cubin = kernel.asm["cubin"]
    registers, stack = usage(cubin)
    loads, stores, barriers, total = instructions(cubin)
    return Code(
        registers=registers,
        stack=stack,
        shared=kernel.metadata.shared,
        loads=loads,
        stores=stores,
        barriers=barriers,
        cluster_barriers=kernel.asm["ptx"].count("barrier.cluster.wait"),
        instructions=total,
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
        shared=kernel.metadata.shared,
        loads=widths("load"),
        stores=widths("store"),
        barriers=sum(name.startswith("s_barrier") for name in code),
        cluster_barriers=0,
        instructions=len(code),
    )
