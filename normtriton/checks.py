"""Which calls the kernels take: what functions ask of their arguments before anything runs."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from numbers import Real
from operator import index
from typing import TYPE_CHECKING, Any

import torch
from torch.compiler import is_compiling
from torch.jit._trace import TracerWarning
from torch.overrides import _get_overloaded_args, has_torch_function_variadic

from .autograd.function import has_kernels

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

DTYPES = frozenset((torch.float32, torch.bfloat16, torch.float16, torch.float64))
_STRIDED = torch.strided


class Refused(Exception):  # noqa: N818  an answer, not an error
    """The kernels do not take this call: PyTorch's own function is to raise its error, or to compute it."""


def overloaded(x: Any, *others: Any) -> bool:
    """Whether an argument has a `__torch_function__` of its own, where `has_torch_function_variadic` says it may."""
    # a mode, such as that of `torch.set_default_device`, makes plain tensors seem overloaded
    return any(type(t) is not torch.Tensor for t in _get_overloaded_args((x, *others)))


def takes(x: Tensor, *others: Tensor | None) -> bool:
    """Whether a call may take the kernels, as far as the input's device and `__torch_function__` say."""
    if has_torch_function_variadic(x, *others) and overloaded(x, *others):
        return False
    return isinstance(x, torch.Tensor) and has_kernels(x)


def check_tensor(function: str, name: str, t: Any, x: Tensor) -> None:
    """Say what is wrong with a tensor of a call: x, or what is to go with x.

    Raises:
        TypeError: no tensor.
        NotImplementedError: not strided; x of a dtype that is not floating point.
        RuntimeError: another tensor of such a dtype, or on another device.
    """
    if not isinstance(t, torch.Tensor):
        raise TypeError(f"{function}(): argument '{name}' must be Tensor, not {type(t).__name__}")
    if t.is_nested or t.layout is not _STRIDED:
        raise NotImplementedError(f"{function}(): {name} is {'nested' if t.is_nested else t.layout}, not strided")
    if t.dtype not in DTYPES:
        kind = NotImplementedError if t is x else RuntimeError
        raise kind(f"{function}(): {name} is {t.dtype}, not one of float64, float32, float16 and bfloat16")
    if t.device != x.device:
        raise RuntimeError(
            f"{function}(): expected all tensors to be on the same device, but input is on {x.device} and {name} "
            f"on {t.device}"
        )


@contextmanager
def quiet_about_sizes() -> Iterator[None]:
    """While `torch.jit.trace` records, sizes are tensors, and it warns of every question about them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TracerWarning)
        yield


def check_memory(x: Tensor, *others: Tensor | None) -> None:
    """Refuse dtypes that the kernels do not take, several devices, and tensors that are not what their memory says."""
    if x.dtype not in DTYPES or x.layout is not _STRIDED or x.is_nested:
        raise Refused
    device, watches_signs = x.device, not is_compiling()  # compilers have no views that are negated
    negated = watches_signs and x.is_neg()
    try:
        for t in others:
            if t is None:
                continue
            if t.dtype not in DTYPES or t.device != device or t.layout is not _STRIDED:
                raise Refused
            negated = negated or (watches_signs and t.is_neg())
    except AttributeError:  # no tensor
        raise Refused from None
    if negated:
        raise Refused


def number(value: Any) -> float:
    """A number that is no float, as PyTorch takes it: an integer, NumPy's, or a tensor of one without dimensions."""
    if not isinstance(value, Real) and not (isinstance(value, torch.Tensor) and value.dim() == 0):
        raise Refused
    try:
        return float(value)
    except (OverflowError, RuntimeError, TypeError):  # too large, on the meta device, complex
        raise Refused from None


def integer(value: Any) -> int:
    """An integer as PyTorch takes it: Python's, NumPy's, or a tensor of one; but no bool."""
    if type(value) is int:
        return value
    try:
        if isinstance(value, bool):
            raise Refused
        return index(value)
    except TypeError:
        raise Refused from None
