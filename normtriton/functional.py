"""The norms as functions: the names, arguments, defaults, results and errors of `torch.nn.functional`.

A CUDA or ROCm tensor always takes the Triton kernels. A CPU tensor takes them in Triton's interpreter if
``TRITON_INTERPRET=1`` was set before the import, and otherwise goes to PyTorch's own function, as does a tensor on any
other device; `normtriton.explain` says which.

Common to all: input float64, float32, float16 or bfloat16 in any strides; parameters and running statistics of any of
these dtypes, mixed as you like; statistics and arithmetic in float32, for float64 input in float64. The result has the
input's dtype and memory format, and so has the input's gradient; a parameter's gradient has the parameter's dtype. Same
input, same bits, on every run. Under autocast on a GPU the result's dtype is PyTorch's, see `normtriton.amp`.
"""

from __future__ import annotations

from functools import lru_cache, partial
from math import prod
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812  the name everyone knows it by

from . import amp, norms
from .autograd import Call, has_kernels, normalize, normalize_unwatched, unwatched
from .launch import Running, exact_pair
from .schedule import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

__all__ = ["batch_norm", "group_norm", "instance_norm", "layer_norm", "rms_norm"]

_DTYPES = frozenset((torch.float32, torch.bfloat16, torch.float16, torch.float64))


def batch_norm(
    input: Tensor,  # noqa: A002  PyTorch's name, here and below: callers pass it by keyword
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Normalize each channel over batch and space; equals `F.batch_norm` with the same arguments.

    Differs from PyTorch in that an empty batch is fine with and without parameters, and that the CPU gradient is right
    for strided parameters and statistics.

    Args:
        input: (N, C, *spatial).
        running_mean, running_var: (C,) or None, both or neither. Updated in training, ``(1 - momentum) * running +
            momentum * new`` with the unbiased variance; used for the statistics otherwise.
        weight, bias: (C,) or None.
        training: normalize by the batch's own statistics.
        momentum: weight of the new statistics, any real number.
        eps: added to the variance, so in units of input squared. Positive in training, else not negative.
    Returns:
        (N, C, *spatial), dtype and memory format of input.
    Raises:
        ValueError: one value a channel in training, a bad eps, or only one of the running statistics.
        RuntimeError: a parameter or statistic without C elements or on another device, statistics that are missing in
            evaluation or require a gradient.
        NotImplementedError: input is not floating point.
    Source: Ioffe and Szegedy 2015, arXiv:1502.03167.
    """
    if unwatched(input):
        return counting_batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps, None)
    if not has_kernels(input):
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    call = batch_norm_call(input, running_mean, running_var, weight, bias, training, momentum, eps, None, ANEW)
    return normalize(input, _flat(weight), _flat(bias), call)


def counting_batch_norm(
    input: Tensor,  # noqa: A002
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    batches: Tensor | None,
) -> Tensor:
    """`batch_norm` by the kernels, which count the batch on the way: ``batches``, () int64, grows by one."""
    call = batch_norm_call(input, running_mean, running_var, weight, bias, training, momentum, eps, batches)
    return normalize_unwatched(input, _flat(weight), _flat(bias), call)


def instance_norm(
    input: Tensor,  # noqa: A002
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Normalize each channel of each sample over space; equals `F.instance_norm` with the same arguments.

    Differs from PyTorch in keeping the input's memory format, and in that an empty batch is fine with parameters.

    Args:
        input: (N, C, *spatial).
        running_mean, running_var: (C,) or None, both or neither. Updated from the average over N of the instances'
            statistics if ``use_input_stats``; used in their place otherwise.
        weight, bias: (C,) or None.
        use_input_stats: normalize by each instance's own statistics.
        momentum: weight of the new statistics.
        eps: added to the variance, so in units of input squared.
    Returns:
        (N, C, *spatial), dtype and memory format of input.
    Raises:
        ValueError: one spatial element with ``use_input_stats``, or only one of the running statistics.
        RuntimeError: as `batch_norm`.
        NotImplementedError: input is not floating point.
    Source: Ulyanov, Vedaldi and Lempitsky 2016, arXiv:1607.08022.
    """
    given = (running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
    if unwatched(input):
        return normalize_unwatched(input, _flat(weight), _flat(bias), instance_norm_call(input, *given))
    if not has_kernels(input):
        return F.instance_norm(input, *given)
    return normalize(input, _flat(weight), _flat(bias), instance_norm_call(input, *given, ANEW))


def layer_norm(
    input: Tensor,  # noqa: A002
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Normalize over the last dimensions; equals `F.layer_norm` with the same arguments.

    Differs from PyTorch in keeping the input's memory format.

    Args:
        input: (*, *normalized_shape).
        normalized_shape: sizes of the last dimensions.
        weight, bias: normalized_shape or None, each on its own.
        eps: added to the variance, so in units of input squared.
    Returns:
        (*, *normalized_shape), dtype and memory format of input.
    Raises:
        RuntimeError: shapes that do not agree, or a parameter on another device.
        TypeError: normalized_shape is a number.
        NotImplementedError: input is not floating point.
    Source: Ba, Kiros and Hinton 2016, arXiv:1607.06450.
    """
    if unwatched(input):
        return normalize_unwatched(input, weight, bias, layer_norm_call(input, normalized_shape, weight, bias, eps))
    if not has_kernels(input):
        return F.layer_norm(input, normalized_shape, weight, bias, eps)
    return normalize(input, weight, bias, layer_norm_call(input, normalized_shape, weight, bias, eps, ANEW))


def group_norm(
    input: Tensor,  # noqa: A002
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Normalize each group of channels of each sample; equals `F.group_norm` with the same arguments.

    Differs from PyTorch in keeping the input's memory format on every device.

    Args:
        input: (N, C, *spatial).
        num_groups: divides C.
        weight, bias: (C,) or None.
        eps: added to the variance, so in units of input squared.
    Returns:
        (N, C, *spatial), dtype and memory format of input.
    Raises:
        RuntimeError: fewer than two dimensions, num_groups not positive or no divisor of C, a parameter that is not
            (C,) or on another device.
        ValueError: one value a group.
        ZeroDivisionError: num_groups is 0.
        NotImplementedError: input is not floating point.
    Source: Wu and He 2018, arXiv:1803.08494.
    """
    if unwatched(input):
        return normalize_unwatched(input, weight, bias, group_norm_call(input, num_groups, weight, bias, eps))
    if not has_kernels(input):
        return F.group_norm(input, num_groups, weight, bias, eps)
    return normalize(input, weight, bias, group_norm_call(input, num_groups, weight, bias, eps, ANEW))


def rms_norm(
    input: Tensor,  # noqa: A002
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """Divide by the root mean square over the last dimensions; equals `F.rms_norm` with the same arguments.

    Differs from PyTorch in keeping the input's memory format, and in not taking complex input.

    Args:
        input: (*, *normalized_shape).
        normalized_shape: sizes of the last dimensions.
        weight: normalized_shape or None.
        eps: added to the mean square; None is the machine epsilon of float32, for float64 input that of float64.
    Returns:
        (*, *normalized_shape), dtype and memory format of input.
    Raises:
        RuntimeError: shapes that do not agree, or a parameter on another device.
        ValueError: normalized_shape has more dimensions than input.
        TypeError: normalized_shape is a number.
        NotImplementedError: input is not floating point.
    Source: Zhang and Sennrich 2019, arXiv:1910.07467.
    """
    if unwatched(input):
        return normalize_unwatched(input, weight, None, rms_norm_call(input, normalized_shape, weight, eps))
    if not has_kernels(input):
        return F.rms_norm(input, normalized_shape, weight, eps)
    return normalize(input, weight, None, rms_norm_call(input, normalized_shape, weight, eps, ANEW))


def batch_norm_call(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    batches: Tensor | None = None,
    make: Make | None = None,
) -> Call:
    """Check `batch_norm`'s arguments; ``batches`` counts them."""
    make = make or CACHED
    shape = x.shape
    if training and shape[0] * prod(shape[2:]) == 1:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {shape}")
    if training and eps <= 0.0:
        raise ValueError(f"batch_norm eps must be positive during training, but got {eps}")
    if eps < 0.0:
        raise ValueError(f"batch_norm eps must be non-negative, but got {eps}")
    _check_momentum("batch_norm", momentum)
    if not training:
        for name, statistic in (("running_mean", running_mean), ("running_var", running_var)):
            if statistic is None:
                raise RuntimeError(f"{name} must be defined in evaluation mode")
    channels = shape[1] if x.dim() > 1 else 0
    running = _check_running("batch_norm", x, channels, running_mean, running_var, momentum, make, batches)
    _check_channels(x, channels, weight, bias)
    _check_input("batch_norm", x, weight, bias, running_mean, running_var)
    return Call(make.problem(norms.BATCH, tuple(shape)), make.pair(eps), running, not training)


def instance_norm_call(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    make: Make | None = None,
) -> Call:
    """Check `instance_norm`'s arguments."""
    make = make or CACHED
    shape = x.shape
    if use_input_stats and prod(shape[2:]) == 1:
        raise ValueError(f"Expected more than 1 spatial element when training, got input size {shape}")
    _check_momentum("instance_norm", momentum)
    if not use_input_stats and (running_mean is None or running_var is None):
        raise RuntimeError("Expected running_mean and running_var to be defined when use_input_stats is false")
    channels = shape[1] if x.dim() > 1 else 0
    running = _check_running("instance_norm", x, channels, running_mean, running_var, momentum, make)
    _check_channels(x, channels, weight, bias)
    _check_input("instance_norm", x, weight, bias, running_mean, running_var)
    # with given statistics the samples differ no longer: batch norm's evaluation
    norm = norms.INSTANCE if use_input_stats else norms.BATCH
    return Call(make.problem(norm, tuple(shape)), make.pair(eps), running, not use_input_stats)


def layer_norm_call(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    make: Make | None = None,
) -> Call:
    """Check `layer_norm`'s arguments."""
    shapes = None if weight is None else weight.shape, None if bias is None else bias.shape
    call = (make or CACHED).row_call("layer_norm", x.shape, _dims("layer_norm", normalized_shape), shapes, eps)
    _check_input("layer_norm", x, weight, bias)
    return call._replace(dtype=torch.float32) if amp.upcasts(x) else call


def rms_norm_call(
    x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, eps: float | None, make: Make | None = None
) -> Call:
    """Check `rms_norm`'s arguments."""
    if eps is None:
        eps = torch.finfo(torch.float64 if x.dtype == torch.float64 else torch.float32).eps
    shapes = None if weight is None else weight.shape, None
    call = (make or CACHED).row_call("rms_norm", x.shape, _dims("rms_norm", normalized_shape), shapes, eps)
    _check_input("rms_norm", x, weight)
    return call._replace(dtype=torch.float32) if amp.upcasts(x) else call


def group_norm_call(
    x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float, make: Make | None = None
) -> Call:
    """Check `group_norm`'s arguments."""
    shapes = None if weight is None else weight.shape, None if bias is None else bias.shape
    call = (make or CACHED).group_call(x.shape, num_groups, shapes, eps)
    _check_input("group_norm", x, weight, bias)
    return call._replace(dtype=torch.float32) if amp.upcasts(x) else call


def _group_call(
    shape: torch.Size,
    num_groups: int,
    parameters: tuple[torch.Size | None, torch.Size | None],
    eps: float,
    pair: Callable[[float], tuple[float, float]] = exact_pair,
) -> Call:
    """The `Call` of shapes that agree; parameters are weight's and bias's."""
    if len(shape) < 2:
        raise RuntimeError(f"Expected at least 2 dimensions for input tensor but received {len(shape)}")
    if not isinstance(num_groups, int):
        raise TypeError(f"group_norm(): num_groups must be int, not {type(num_groups).__name__}")
    size = [shape[0] * shape[1] // num_groups, num_groups, *shape[2:]]
    if size[0] * prod(size[2:]) == 1:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {size}")
    if num_groups < 0:
        raise RuntimeError(f"Expected num groups to be greater than 0, got {num_groups}")
    if shape[1] % num_groups:
        raise RuntimeError(
            f"Expected number of channels in input to be divisible by num_groups, but got input of shape "
            f"{list(shape)} and num_groups={num_groups}"
        )
    for name, parameter in zip(("weight", "bias"), parameters, strict=True):
        if parameter is not None and parameter != (shape[1],):
            raise RuntimeError(
                f"Expected {name} to be a vector of size equal to the number of channels in input, but got {name} of "
                f"shape {list(parameter)} and input of shape {list(shape)}"
            )
    return Call(Problem(norms.GROUP, tuple(shape), (("g", num_groups),)), pair(eps))


def _flat(t: Tensor | None) -> Tensor | None:
    """PyTorch takes any shape with the right number of elements."""
    return t if t is None or t.dim() == 1 else t.reshape(-1)


def _check_momentum(name: str, momentum: float) -> None:
    if not isinstance(momentum, int | float):
        raise TypeError(f"{name}(): argument 'momentum' must be float, not {type(momentum).__name__}")


def _check_running(
    name: str,
    x: Tensor,
    channels: int,
    mean: Tensor | None,
    var: Tensor | None,
    momentum: float,
    make: Make,
    batches: Tensor | None = None,
) -> Running | None:
    if (mean is None) != (var is None):
        raise ValueError("running_mean and running_var must either both be None or neither be None")
    if mean is None or var is None:
        return None
    for what, t in (("running_mean", mean), ("running_var", var)):
        if t.numel() != channels:
            raise RuntimeError(f"{what} should contain {channels} elements not {t.numel()}; input is {list(x.shape)}")
        if t.requires_grad:
            raise RuntimeError(
                f"{name} is not differentiable with respect to {what}, which must not require a gradient"
            )
    # a view, never a copy: it is written
    mean, var = mean if mean.dim() == 1 else mean.view(-1), var if var.dim() == 1 else var.view(-1)
    counter = () if batches is None else (batches,)
    return Running(mean, var, mean.stride(0), var.stride(0), counter, make.pair(momentum))


def _check_channels(x: Tensor, channels: int, weight: Tensor | None, bias: Tensor | None) -> None:
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is not None and parameter.numel() != channels:
            raise RuntimeError(
                f"{name} should contain {channels} elements not {parameter.numel()}; input is {list(x.shape)}"
            )


def _dims(name: str, normalized_shape: Sequence[int]) -> tuple[int, ...]:
    if isinstance(normalized_shape, int):
        raise TypeError(f"{name}(): argument 'normalized_shape' must be tuple of ints, not int")
    return tuple(normalized_shape)


def _row_call(
    name: str,
    shape: torch.Size,
    wanted: tuple[int, ...],
    parameters: tuple[torch.Size | None, torch.Size | None],
    eps: float,
    pair: Callable[[float], tuple[float, float]] = exact_pair,
) -> Call:
    """The `Call` of layer or RMS norm of shapes that agree; parameters are weight's and bias's."""
    if name == "rms_norm" and len(wanted) > len(shape):
        raise ValueError(f"Input tensor must have at least {len(wanted)} dimensions, but got {len(shape)}")
    if not wanted:
        raise RuntimeError(
            "Expected normalized_shape to be at least 1-dimensional, i.e., containing at least one element, but got "
            "normalized_shape = []"
        )
    for what, parameter in zip(("weight", "bias"), parameters, strict=True):
        if parameter is not None and parameter != wanted:
            raise RuntimeError(
                f"Expected {what} to be of same shape as normalized_shape, but got {what} of shape "
                f"{list(parameter)} and normalized_shape = {list(wanted)}"
            )
    if shape[len(shape) - len(wanted) :] != wanted or len(shape) < len(wanted):
        raise RuntimeError(
            f"Given normalized_shape={list(wanted)}, expected input with shape "
            f"[*, {', '.join(map(str, wanted))}], but got input of size{list(shape)}"
        )
    norm = norms.LAYER if name == "layer_norm" else norms.RMS
    return Call(Problem(norm, tuple(shape), (("d", len(wanted)),)), pair(eps))


def _check_input(name: str, x: Tensor, *others: Tensor | None) -> None:
    if x.dtype not in _DTYPES:
        raise NotImplementedError(f'"{name}" not implemented for {x.dtype}')
    device = x.device
    for other in others:
        if other is None:
            continue
        if other.dtype not in _DTYPES:
            raise NotImplementedError(f'"{name}" not implemented for a parameter or statistic of {other.dtype}')
        if other.device != device:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found at least two devices, {device} and "
                f"{other.device}!"
            )


class Make(NamedTuple):
    """What a `Call` is made by: of plain tensors' sizes from a cache, of a compiler's, which may be symbols, anew."""

    problem: Callable[..., Problem]
    pair: Callable[[float], tuple[float, float]]
    row_call: Callable[..., Call]
    group_call: Callable[..., Call]


CACHED = Make(
    lru_cache(maxsize=4096)(Problem),
    lru_cache(exact_pair),
    lru_cache(maxsize=4096)(_row_call),
    lru_cache(maxsize=4096, typed=True)(_group_call),
)


def _whole(value: float) -> tuple[float, float]:
    """A number that is not split yet: the operator does it, where no compiler looks on."""
    return float(value), 0.0


ANEW = Make(Problem, _whole, partial(_row_call, pair=_whole), partial(_group_call, pair=_whole))
