"""Other libraries' norms, measured as ours are; for a library that is not installed it says so.

    pip install torch==2.13.0 triton==3.9.0
    pip install --no-deps liger-kernel flag-gems packaging PyYAML sqlalchemy
    git clone https://github.com/chengzeyi/stable-fast
    PYTHONPATH=stable-fast/src python -m normtriton.perf results --rivals

Their own Python code runs, on tensors without memory that say they are on a GPU; their launches go to
`normtriton.perf.count.traffic` or are compiled. PyTorch's operations in between (copies to contiguous, sums, casts) are
charged with whole tensors read and written; their code is not looked at. Where a library times several configurations,
the middle one of its list is taken. Parameters have x's dtype, as FlagGems saves statistics in it. stable-fast is a
checkout, and its version the commit; its packages' own code, which loads an extension for CUDA, does not run. All
figures are simulated.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import os
import subprocess
import sys
import warnings
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache
from math import prod
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.autotuner import Autotuner
from triton.runtime.jit import JITFunction

from ..cases.shapes import DIRECTIONS
from ..swapped import swapped
from .codegen import facts, mock, pretending
from .l2 import H100, MACHINES
from .traffic import Pass, compulsory_bytes, fraction

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ..cases.shapes import Case, Cell
    from .l2 import Machine

    #: A forward pass's result, and what runs the backward pass, if the library has one.
    Passes = tuple[Any, Callable[[], Any] | None]

_GPU = torch.device("cuda", 0)
_compile = JITFunction.run

#: Operations that move nothing.
_FREE = ("empty", "new_empty", "detach", "_local_scalar_dense", "sym_", "is_")


class Compiling:
    """Compiles the launches of one pass for a target, and keeps the facts of the code."""

    def __init__(self, target: str, numel: int) -> None:
        """``numel``: elements of the tensors whose accesses are of interest."""
        self.target, self.numel = target, numel
        self.machine = H100
        self.kernels: list[dict[str, Any]] = []

    def launch(self, kernel: Any, args: tuple[Any, ...], grid: Any, **options: Any) -> None:
        """Compile one launch of any `@triton.jit` kernel."""
        given = {name: mock(value) for name, value in options.items()}
        with pretending(self.target), swapped((JITFunction, "run", _compile)):
            compiled = _compile(kernel, *map(mock, args), grid=grid, warmup=True, **given)
        values = dict(zip(kernel.arg_names, args, strict=False)) | options
        ordered = [values.get(name) for name in kernel.arg_names]
        blocks = grid(values) if callable(grid) else grid
        self.kernels.append(facts(compiled, kernel.fn.__name__, self.target, blocks, ordered, self.numel))

    def stream(self, _name: str, _read: Any, _written: Any) -> None:
        """PyTorch's operations are not compiled here."""


class Recorder(Protocol):
    """What a library's launches and PyTorch's operations are sent to: a `Pass`, `Compiling` or `Timing`."""

    machine: Machine

    def launch(self, kernel: Any, args: tuple[Any, ...], grid: Any, **options: Any) -> object:
        """One launch of a `@triton.jit` kernel."""

    def stream(self, name: str, read: Sequence[torch.Tensor], written: Sequence[torch.Tensor]) -> object:
        """One of PyTorch's operations."""


class _OnGpu(TorchFunctionMode):
    """Tensors on the meta device say they are on a GPU, and what is made there is made on the meta device."""

    def __torch_function__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func == torch.Tensor.device.__get__:
            return _GPU
        if func == torch.Tensor.is_cuda.__get__:  # type: ignore[attr-defined]
            return True
        if kwargs.get("device") is not None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


class _Charge(TorchDispatchMode):
    """Charge PyTorch's operations to a pass."""

    def __init__(self, here: Recorder) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.here = here

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        views = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if views or name.startswith(_FREE):
            return out
        written = [t for t in (out if isinstance(out, tuple | list) else [out]) if isinstance(t, torch.Tensor)]
        read = [t for t in (*args, *(kwargs or {}).values()) if isinstance(t, torch.Tensor)]
        if name in ("copy_", "fill_", "zero_"):  # what is overwritten is not read
            read = read[1:]
        if name.endswith("_like") or name.startswith("new_"):  # only the shape is
            read = []
        self.here.stream(name, read, written)
        return out


@contextmanager
def recording(here: Recorder) -> Iterator[None]:
    """Every launch of a jitted kernel, and every operation of PyTorch's, goes to a pass or is compiled."""

    def run(self: Any, *args: Any, grid: Any, warmup: bool = False, **kwargs: Any) -> None:
        assert not warmup
        given = dict(kwargs)
        defaults = inspect.signature(self.fn).parameters
        for name in self.arg_names[len(args) :]:
            if name not in given and defaults[name].default is not inspect.Parameter.empty:
                given[name] = defaults[name].default
        with aside():
            here.launch(self, args, grid, **given)

    def tune(self: Any, *args: Any, **kwargs: Any) -> Any:
        config = self.configs[len(self.configs) // 2]
        return self.fn.run(*args, **{**kwargs, **config.all_kwargs()})

    capability = (9, 0) if here.machine.clusters else (8, 0)
    properties = SimpleNamespace(
        multi_processor_count=here.machine.sms, major=capability[0], minor=0, name=here.machine.name,
        total_memory=80 << 30,
        warp_size=32, L2_cache_size=here.machine.l2, max_threads_per_multi_processor=2048,
        shared_memory_per_block_optin=232448, shared_memory_per_multiprocessor=233472, gcnArchName="",
    )  # fmt: skip
    changes: list[tuple[Any, str, Any]] = [
        (JITFunction, "run", run),
        (torch.cuda, "is_available", lambda: True),
        (torch.cuda, "device_count", lambda: 1),
        (torch.cuda, "current_device", lambda: 0),
        (torch.cuda, "device", lambda *_: nullcontext()),
        (torch.cuda, "get_device_properties", lambda *_: properties),
        (torch.cuda, "get_device_capability", lambda *_: capability),
        (Autotuner, "run", tune),
    ]
    changes += [(kind, "run", tune) for kind in Autotuner.__subclasses__() if "run" in vars(kind)]
    entry = getattr(_module("flag_gems.utils.libentry"), "LibEntry", None)
    if entry is not None:
        changes.append((entry, "run", lambda self, *args, **kwargs: self.fn.run(*args, **kwargs)))
    modes = (_OnGpu(), _Charge(here))
    with swapped(*changes), modes[0], modes[1]:
        yield


@contextmanager
def aside() -> Iterator[None]:
    """Inside a recording: what happens here is not the library's, is charged to nobody, and sees tensors' storage."""
    with ExitStack() as stack:
        stack.enter_context(torch._C.DisableTorchFunction())
        stack.enter_context(torch.utils._python_dispatch._disable_current_modes())
        yield


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _unchanged(first: Any, *_others: Any, **_options: Any) -> Any:
    return first


_unchanged.__module__ = "triton.language.extra.libdevice"  # Triton asks whether it may stand in a kernel


def prepare(*, addresses: bool) -> None:
    """Import the libraries as on a machine with a GPU.

    For ``addresses`` mathematical functions of a GPU's own library become nothing; for compiling they are as they are.
    """
    for name in ("triton.language.extra.libdevice", "triton.language.extra.cuda.libdevice"):
        library = importlib.import_module(name)
        for function in dir(library) if addresses else ():
            if not function.startswith("_") and inspect.isfunction(getattr(library, function)):
                setattr(library, function, _unchanged)
    os.environ.setdefault("GEMS_VENDOR", "nvidia")
    warnings.simplefilter("ignore")  # what Triton has to say of their kernels is theirs to hear
    with swapped(
        (torch.cuda, "is_available", lambda: True),
        (torch.cuda, "device_count", lambda: 1),
        (torch.cuda, "current_device", lambda: 0),
        (torch.cuda, "get_device_capability", lambda *_: (9, 0)),
        (torch.cuda, "get_device_properties", lambda *_: SimpleNamespace(major=9, minor=0, multi_processor_count=132)),
    ):
        for name in (
            "liger_kernel.ops",
            "liger_kernel.ops.fused_add_rms_norm",
            "flag_gems",
            "flag_gems.fused.instance_norm",
        ):
            _module(name)
    for name in ("sfast", "sfast.triton"):  # their own code loads an extension for CUDA, and changes Triton
        spec = importlib.util.find_spec(name) if version("stable-fast") != MISSING else None
        if spec is not None:
            sys.modules[name] = importlib.util.module_from_spec(spec)


def _liger(norm: str) -> Callable[..., Passes]:
    def run(x: Any, w: Any, b: Any, dy: Any, case: Case) -> Passes:
        ops = importlib.import_module(f"liger_kernel.ops.{norm}_norm")
        if norm == "layer":
            y, *saved = ops.layer_norm_forward(x, w, b, 1e-5)
            return y, lambda: ops.layer_norm_backward(dy, saved[0], w, b, saved[1], saved[2])
        if case.around == "residual":
            ops, residual = importlib.import_module("liger_kernel.ops.fused_add_rms_norm"), torch.empty_like(x)
            y, u, rstd, *how = ops.fused_add_rms_norm_forward(x, residual, w, 1e-6, 0.0, "llama")
            block, warps, stages, mode = how
            du = torch.empty_like(u)
            return y, lambda: ops.fused_add_rms_norm_backward(
                dy, du, u, w, rstd, 0.0, mode, block, warps, stages, False
            )
        if norm == "rms":
            y, x2, rstd, block, warps, mode = ops.rms_norm_forward(x, w, 1e-6, 0.0, "llama", None)
            return y, lambda: ops.rms_norm_backward(dy, x2, w, rstd, 0.0, mode, block, warps, True, None)
        x = x.contiguous()
        channels = case.shape[1]
        y, x2, mean, rstd, _block = ops.group_norm_forward(x, channels, case.groups, w, b, 1e-5)
        return y, lambda: ops.group_norm_backward(dy.contiguous(), x2, w, b, mean, rstd, channels, case.groups)

    return run


def _gems(norm: str) -> Callable[..., Passes]:
    def run(x: Any, w: Any, b: Any, dy: Any, case: Case) -> Passes:
        if case.around == "residual":
            residual = torch.empty_like(x)
            if norm == "rms":
                ops = importlib.import_module("flag_gems.fused.fused_add_rms_norm")
                return ops.fused_add_rms_norm(x, residual, w.shape, w, 1e-6), None
            ops = importlib.import_module("flag_gems.fused.skip_layernorm")
            return ops.skip_layer_norm(x, residual, w.shape, w, b), None
        every = (True, True, True)
        n, c = x.shape[:2]
        space = x.numel() // (n * c)
        if norm == "layer":
            ops = importlib.import_module("flag_gems.ops.layernorm")
            y, mean, rstd = ops.layer_norm(x, w.shape, w, b)
            return y, lambda: ops.layer_norm_backward(dy, x, w.shape, mean, rstd, w, b, every)
        if norm == "rms":
            ops = importlib.import_module("flag_gems.ops.rms_norm")
            y, rstd = ops.rms_norm_forward(x, w.shape, w)
            return y, lambda: ops.rms_norm_backward(dy, x, rstd, w.shape, w)
        if norm == "group":
            ops = importlib.import_module("flag_gems.ops.groupnorm")
            y, mean, rstd = ops.group_norm(x, w, b, n, c, space, case.groups)
            return y, lambda: ops.group_norm_backward(dy, x, mean, rstd, w, n, c, space, case.groups, every)
        if norm == "batch":
            ops = importlib.import_module("flag_gems.ops.batch_norm")
            running = torch.empty(2, c, device="meta")
            y, mean, rstd = ops.batch_norm(x, w, b, running[0], running[1], True)
            return y, lambda: ops.batch_norm_backward(dy, x, w, running[0], running[1], mean, rstd, True, 1e-5, every)
        ops = importlib.import_module("flag_gems.fused.instance_norm")
        x, w, b = x.requires_grad_(), w.requires_grad_(), b.requires_grad_()
        y = ops.instance_norm(x, w, b)
        return y, lambda: torch.autograd.grad(y, (x, w, b), dy)

    return run


def _stable_fast(_norm: str) -> Callable[..., Passes]:
    def run(x: Any, w: Any, b: Any, _dy: Any, case: Case) -> Passes:
        ops = importlib.import_module("sfast.triton.ops.group_norm")
        y, _mean, _rstd = ops.group_norm_silu_forward(x, case.groups, w, b, 1e-5)
        return y, None

    return run


RUNS = {"liger-kernel": _liger, "flag-gems": _gems, "stable-fast": _stable_fast}
MISSING = "not installed"
#: What stands in place of the figures of a backward pass that a library does not have.
FORWARD_ONLY = "it has no backward pass"


def version(library: str) -> str:
    """A library's version, or that it is not installed."""
    if library == "torch.compile":
        return torch.__version__.split("+")[0]
    if library == "stable-fast":
        return _commit("sfast")
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return MISSING


def remedy(library: str) -> str:
    """How to get a library."""
    if library == "stable-fast":
        return "git clone https://github.com/chengzeyi/stable-fast, and name stable-fast/src in PYTHONPATH"
    return f"pip install --no-deps {library}"


@cache
def _commit(package: str) -> str:
    """The commit of the checkout that a package would be imported from."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return MISSING
    asked = ("git", "-C", spec.submodule_search_locations[0], "rev-parse", "--short=8", "HEAD")
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()


def tensors(case: Case, dtype: torch.dtype, layout: torch.memory_format) -> tuple[torch.Tensor, ...]:
    """(x, weight, bias, dy) of a case, on the meta device; parameters have x's dtype."""
    x, dy = (torch.empty(case.shape, dtype=dtype, device="meta").contiguous(memory_format=layout) for _ in range(2))
    features = case.shape[-1] if case.norm in ("layer", "rms") else case.shape[1]
    w, b = (torch.empty(features, dtype=dtype, device="meta") for _ in range(2))
    return x, w, b, dy


def follow(
    library: str, case: Case, dtype: torch.dtype, layout: torch.memory_format, forward: Any, backward: Any
) -> dict[str, int]:
    """Send a case's launches to a recorder for each direction, `Pass` or `Compiling`; returns the compulsory bytes."""
    x, w, b, dy = tensors(case, dtype, layout)
    parameters = (w,) if case.norm == "rms" else (w, b)
    running = 8 * w.numel() if case.norm == "batch" else 0  # in float32
    with recording(forward):
        _y, gradients = RUNS[library](case.norm)(x, w, b, dy, case)
    assert gradients is not None  # each library has both passes of a norm alone
    with recording(backward):
        gradients()
    return {direction: compulsory_bytes(direction, x, *parameters, running=running) for direction in DIRECTIONS}


def figures(library: str, instrument: str, machine: str, cell: Cell) -> dict[str, dict[str, Any]]:
    """Measure a cell as `normtriton.perf results` does ours: {"forward": ..., "backward": ...}."""
    case, dtype, layout = cell.case, *cell.options
    if instrument == "code":
        numel = prod(case.shape)
        codes = Compiling(machine, numel), Compiling(machine, numel)
        follow(library, case, dtype, layout, *codes)
        return {direction: {"kernels": code.kernels} for direction, code in zip(DIRECTIONS, codes, strict=True)}
    small, by = fraction(case, dtype, layout, MACHINES[machine])
    passes = Pass(MACHINES[machine].scaled(by)), Pass(MACHINES[machine].scaled(by))
    compulsory = follow(library, small, dtype, layout, *passes)
    found = {}
    for direction, one in zip(DIRECTIONS, passes, strict=True):
        own = sum(step.pytorch for step in one.steps)
        found[direction] = {"part": by, "pytorch": own, **one.end(compulsory[direction]).figures()}
    return found
