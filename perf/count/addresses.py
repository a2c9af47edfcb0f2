"""Run Triton kernels for their addresses alone: Triton's interpreter, in which floating-point values are not computed.

A launch of any library's `@triton.jit` function is run program by program; integers, masks and pointers are computed as
always, every floating-point value is a zero that takes no memory, nothing is loaded and nothing is stored. So tensors
need no memory either and may be on the meta device, a tile costs a millisecond, and shapes can be real ones. It works
with and without TRITON_INTERPRET=1, for Triton 3.9.

An address must not depend on values in memory: a kernel that loads integers or pointers, or compares and swaps, is
refused.
"""

from __future__ import annotations

import dataclasses
from contextlib import contextmanager
from functools import lru_cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import FunctionRewriter, InterpretedFunction, InterpreterBuilder, TensorHandle
from triton.runtime.jit import JITFunction

from normtriton.runtime.launch import INTERPRETER

from ..swapped import swapped
from .l2 import ATOMIC, LINE, LOAD, SECTOR, STORE, Access

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Memory:
    """Gives storages addresses, 512 bytes apart as PyTorch's allocator does, in the order in which they are met."""

    def __init__(self) -> None:
        """Start empty."""
        self._bases: dict[int, int] = {}
        self._held: list[Any] = []  # so that no other storage takes its id
        self._next = 1 << 32

    def address(self, tensor: torch.Tensor) -> int:
        """Where a tensor's first element lies, in bytes."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._bases:
            self._bases[key] = self._next
            self._held.append(storage)
            self._next += -(-max(storage.nbytes(), 1) // 512) * 512
        return self._bases[key] + int(tensor.storage_offset()) * tensor.element_size()


class Recorder:
    """What the programs of one launch access.

    Attributes:
        programs: the accesses of each program, in order.
        live: bytes that unmasked lanes ask for; an atomic reads and writes.
        request: bytes of the sectors that each tile access touches, every sector once an access.
    """

    def __init__(self) -> None:
        """Start with no program."""
        self.programs: list[list[Access]] = []
        self.live = 0
        self.request = 0

    def access(self, kind: int, addresses: np.ndarray, mask: np.ndarray | None, itemsize: int) -> None:
        """Record the access of a tile."""
        if mask is not None and not mask.all():
            addresses = addresses[np.broadcast_to(mask, addresses.shape)]
        if addresses.size == 0:
            return
        sectors = distinct(addresses.ravel().view(np.int64) // SECTOR)
        times = 2 if kind == ATOMIC else 1
        self.live += addresses.size * itemsize * times
        self.request += sectors.size * SECTOR * times
        per_line = LINE // SECTOR
        lines = sectors // per_line
        first = np.flatnonzero(np.concatenate(([True], lines[1:] != lines[:-1])))
        bits = np.bitwise_or.reduceat((1 << (sectors % per_line)).astype(np.uint8), first)
        self.programs[-1].append(Access(kind, lines[first].tolist(), bits.tolist()))


def distinct(values: np.ndarray) -> np.ndarray:
    """Sorted distinct values of an array whose neighbours are often equal."""
    values = values[np.concatenate(([True], values[1:] != values[:-1]))]
    return values if bool((values[1:] > values[:-1]).all()) else np.unique(values)


@lru_cache(maxsize=4096)
def _zeros(shape: tuple[int, ...], dtype: tl.dtype) -> np.ndarray:
    return np.broadcast_to(np.zeros((), interpreter._get_np_dtype(dtype)), shape)


def nothing(dtype: tl.dtype, *like: TensorHandle) -> TensorHandle:
    """Values of a dtype and the handles' common shape that are not computed."""
    shape = like[0].data.shape
    if any(other.data.shape != shape for other in like[1:]):
        shape = np.broadcast_shapes(*(h.data.shape for h in like))
    return TensorHandle(_zeros(shape, dtype.scalar), dtype.scalar)


class AddressBuilder(InterpreterBuilder):  # type: ignore[misc]  # triton has no types
    """Triton's interpreter, in which accesses are recorded instead of made and floating-point values are zeros."""

    options: Any

    def __init__(self, recorder: Recorder) -> None:
        """Record into ``recorder``."""
        super().__init__()
        self.recorder = recorder
        # an overflow is told to device assertions, which say nothing here, and to find one takes twice the time
        self.options = dataclasses.replace(self.options, sanitize_overflow=False)

    def _record(self, kind: int, pointers: TensorHandle, mask: TensorHandle | None) -> tl.dtype:
        dtype = pointers.get_element_ty()
        itemsize = max(dtype.primitive_bitwidth // 8, 1)
        self.recorder.access(kind, pointers.data, None if mask is None else mask.data, itemsize)
        return dtype

    def create_masked_load(
        self, ptrs: TensorHandle, mask: TensorHandle | None, _other: Any, *_policy: Any
    ) -> TensorHandle:
        dtype = self._record(LOAD, ptrs, mask)
        if not dtype.is_floating():
            raise NotImplementedError(
                f"a kernel loads {dtype}: its addresses may depend on values, which are not there"
            )
        return nothing(dtype, ptrs)

    def create_load(self, ptr: TensorHandle, *policy: Any) -> TensorHandle:
        return self.create_masked_load(ptr, None, None, *policy)

    def create_masked_store(self, ptrs: TensorHandle, _value: Any, mask: TensorHandle | None, *_policy: Any) -> None:
        self._record(STORE, ptrs, mask)

    def create_store(self, ptr: TensorHandle, value: Any, *policy: Any) -> None:
        self.create_masked_store(ptr, value, None, *policy)

    def create_atomic_rmw(
        self, _op: Any, ptr: TensorHandle, val: TensorHandle, mask: TensorHandle, *_where: Any
    ) -> TensorHandle:
        self._record(ATOMIC, ptr, mask)
        return nothing(val.dtype, ptr)

    def create_atomic_cas(self, *_args: Any) -> TensorHandle:
        raise NotImplementedError("a kernel compares and swaps: what it does depends on values, which are not there")

    def create_extern_elementwise(
        self, _lib: Any, _path: Any, _symbol: Any, args: list[TensorHandle], result: tl.dtype, _pure: Any
    ) -> TensorHandle:
        return nothing(result, *args)

    def cast_impl(self, src: TensorHandle, dst_type: tl.dtype) -> TensorHandle:
        if src.dtype.scalar.is_floating() or dst_type.scalar.is_floating():
            return nothing(dst_type, src)
        return super().cast_impl(src, dst_type)

    def create_fp_to_fp(self, src: TensorHandle, dst_type: tl.dtype, _rounding: Any) -> TensorHandle:
        return nothing(dst_type, src)

    def create_select(self, cond: TensorHandle, lhs: TensorHandle, rhs: TensorHandle) -> TensorHandle:
        if lhs.dtype.scalar.is_floating():
            return nothing(lhs.dtype, cond, lhs, rhs)
        return self.ternary_op(cond, lhs, rhs, np.where)

    def create_splat(self, ret_ty: Any, arg: TensorHandle) -> TensorHandle:
        return TensorHandle(np.broadcast_to(arg.data.reshape(-1)[0], ret_ty.shape), arg.dtype.scalar)


def _like_first(_self: Any, first: TensorHandle, *others: Any) -> TensorHandle:
    return nothing(first.dtype, first, *(o for o in others if isinstance(o, TensorHandle)))


def _compare(_self: Any, first: TensorHandle, other: TensorHandle) -> TensorHandle:
    return nothing(tl.int1, first, other)


_FLOATING = """fadd fsub fmul fdiv frem fneg precise_divf approx_divf minimumf minnumf maximumf maxnumf clampf fma
    fabs cos sin exp exp2 log log2 sqrt precise_sqrt rsqrt floor ceil erf"""
for _name in _FLOATING.split():
    setattr(AddressBuilder, f"create_{_name}", _like_first)
for _order in ("LT", "LE", "GT", "GE", "EQ", "NE"):
    for _nan in "OU":
        setattr(AddressBuilder, f"create_fcmp{_nan}{_order}", _compare)


class _Reduce(interpreter.ReduceOps):  # type: ignore[misc]
    """Sums and other reductions: of floating-point values, the shape alone."""

    def apply_impl(self, operands: tuple[Any, ...]) -> Any:
        if not all(operand.dtype.is_floating() for operand in operands):
            return super().apply_impl(operands)
        shape = list(operands[0].handle.data.shape)
        if self.axis is None:
            shape = [1] * len(shape) if self.keep_dims else []
        elif self.keep_dims:
            shape[self.axis] = 1
        else:
            del shape[self.axis]
        return [_tensor(shape, operand.dtype) for operand in operands]


class _Scan(interpreter.ScanOps):  # type: ignore[misc]
    def apply_impl(self, operands: tuple[Any, ...]) -> Any:
        if not all(operand.dtype.is_floating() for operand in operands):
            return super().apply_impl(operands)
        return list(operands)


def _tensor(shape: list[int], dtype: tl.dtype) -> Any:
    handle = TensorHandle(_zeros(tuple(shape) or (1,), dtype), dtype)
    return tl.tensor(handle, tl.block_type(dtype, shape) if shape else dtype)


_rewritten: dict[Any, Callable[..., Any]] = {}


def _python(function: Any) -> Callable[..., Any]:
    """A jitted function as the Python function that the interpreter makes of it."""
    if function not in _rewritten:
        _rewritten[function] = FunctionRewriter(function).rewrite_ast()
    return _rewritten[function]


@contextmanager
def _address_mode(builder: AddressBuilder) -> Iterator[None]:
    """Let Triton's language compute addresses; jitted functions may be called as they are inside a kernel."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _python(self.fn)(*args, **kwargs)

    with (
        INTERPRETER,
        swapped(
            (interpreter, "interpreter_builder", builder),
            (interpreter, "interpreter_semantic", interpreter.TritonSemantic(builder)),
            (interpreter, "ReduceOps", _Reduce),
            (interpreter, "ScanOps", _Scan),
            (InterpretedFunction, "__call__", call),
            (JITFunction, "__call__", call),
        ),
    ):
        scope = interpreter._patch_lang(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
        try:
            yield
        finally:
            scope.restore()


def _argument(value: Any, memory: Memory) -> Any:
    """A kernel's argument as its body sees it."""
    if isinstance(value, tl.constexpr):
        value = value.value
    if isinstance(value, torch.Tensor):
        kind = tl.pointer_type(tl.int1 if value.dtype == torch.bool else getattr(tl, str(value.dtype)[6:]))
        return tl.tensor(TensorHandle(np.array([memory.address(value)], np.uint64), kind), kind)
    if isinstance(value, float):
        return tl.tensor(TensorHandle(np.array([value], np.float32), tl.float32), tl.float32)
    if isinstance(value, tuple):
        items = [_argument(item, memory) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tl.tuple(items)
    if isinstance(value, list):
        return tl.tuple([_argument(item, memory) for item in value])
    return interpreter._implicit_cvt(value)


def execute(kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any], grid: Any, memory: Memory) -> Recorder:
    """Run every program of a launch for its addresses.

    Args:
        kernel: a `@triton.jit` function, interpreted or not.
        args, kwargs: as for the launch; compiler options among the latter are ignored.
        grid: one to three numbers of programs, or a function of the arguments by name.
        memory: where tensors lie.
    """
    names = kernel.arg_names
    bound = dict(zip(names, args, strict=False)) | {name: value for name, value in kwargs.items() if name in names}
    constants = {name for name in names if "constexpr" in str(getattr(kernel.fn, "__annotations__", {}).get(name, ""))}
    shape = tuple(grid(bound) if callable(grid) else grid)
    shape += (1,) * (3 - len(shape))
    recorder = Recorder()
    builder = AddressBuilder(recorder)
    with _address_mode(builder):
        function = _python(kernel.fn)
        ready = {
            name: (value.value if isinstance(value, tl.constexpr) else value)
            if name in constants
            else _argument(value, memory)
            for name, value in bound.items()
        }
        builder.set_grid_dim(*shape)
        # x runs fastest: the order in which a GPU starts the blocks of a grid
        for z in range(shape[2]):
            for y in range(shape[1]):
                for x in range(shape[0]):
                    builder.set_grid_idx(x, y, z)
                    recorder.programs.append([])
                    function(**ready)
    return recorder


def require_triton() -> None:
    """Refuse a Triton whose interpreter is another."""
    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 9):
        raise RuntimeError(f"traffic is measured with Triton 3.9 or later, not {triton.__version__}")
