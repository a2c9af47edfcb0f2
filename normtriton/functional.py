"""The norms as functions: the names, arguments, defaults, results and errors of `torch.nn.functional`.

A CUDA or ROCm tensor always takes the Triton kernels. A CPU tensor takes them in Triton's interpreter if
``TRITON_INTERPRET=1`` was set before the import, and otherwise goes to PyTorch's own function, as does a tensor on any
other device; `normtriton.explain` says which.

What the kernels do not take goes to PyTorch's own function as well, which raises its own error or computes it: wrong
types, shapes, values and devices; dtypes other than the four below (PyTorch computes `rms_norm` of complex input, and
with integer weights); sparse, nested and quantized tensors; views that are negated when read; subclasses with a
``__torch_function__``. Where it raises nothing is written, though PyTorch alone may have updated running statistics.

Common to all: input float64, float32, float16 or bfloat16 in any strides; parameters and running statistics of any of
these dtypes, mixed as you like; statistics and arithmetic in float32, for float64 input in float64. The result has the
input's dtype and memory format, and so has the input's gradient; a parameter's gradient has the parameter's dtype. Same
input, same bits, on every run. A group's summed squares must lie within the range of the arithmetic: of float32 or
bfloat16 input beyond about 1e18 the result is the bias, or NaN. So it is of an eps beyond float32's range, see
docs/mathematics.md. Under autocast on a GPU the result's dtype is PyTorch's, see `normtriton.amp`.
"""

from __future__ import annotations

from functools import lru_cache, partial
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812  the name everyone knows it by
from torch.compiler import is_compiling
from torch.fx import Proxy
from torch.overrides import handle_torch_function, has_torch_function_variadic

from . import distributed, named
from .autograd import amp
from .autograd.call import Call
from .autograd.function import normalize_unwatched, own, tracing_state, unwatched
from .autograd.passes import refuse_shared_memory
from .autograd.ways import normalize
from .checks import Refused, check_memory, integer, number, overloaded, quiet_about_sizes, takes
from .planning import norms
from .planning.schedule import Problem
from .surroundings import Around
from .surroundings import run as surround

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor
    from typing_extensions import Unpack

    from .planning.norms import Norm
    from .runtime.launch import Statistics

__all__ = ["batch_norm", "group_norm", "instance_norm", "layer_norm", "rms_norm"]

_EPS32, _EPS64 = torch.finfo(torch.float32).eps, torch.finfo(torch.float64).eps


def _by_pytorch(function: Callable[..., Tensor], *args: Any) -> Tensor:
    """Call PyTorch's function of the same name; while `torch.fx` traces, record that this one is to be called."""
    if any(isinstance(arg, Proxy) for arg in args):
        return handle_torch_function(function, args, *args)
    return getattr(F, function.__name__)(*args)  # type: ignore[no-any-return]


def _with_copies(
    function: Callable[..., Tensor], x: Tensor, mean: Any, var: Any, weight: Any, bias: Any, updating: bool, *rest: Any
) -> Tensor:
    """Call PyTorch's own function, which may have written running statistics when it raises; so it is given copies.

    Not within transforms, which refuse to copy back to what a function captured: there PyTorch's own are written.
    """
    if torch._C._are_functorch_transforms_active():
        return function(x, mean, var, weight, bias, updating, *rest)
    statistics = [t for t in (mean, var) if isinstance(t, torch.Tensor)]
    copies = [t.clone() if isinstance(t, torch.Tensor) else t for t in (mean, var)]
    y = function(x, *copies, weight, bias, updating, *rest)
    if updating:
        with torch.no_grad():
            for t, copy in zip(statistics, (t for t in copies if t is not None), strict=True):
                t.copy_(copy)
    return y


def batch_norm(
    input: Tensor,  # noqa: A002  PyTorch's name, here and below: callers pass it by keyword
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    process_group: Any = None,
    **around: Unpack[Around],
) -> Tensor:
    """Normalize each channel over batch and space; equals `F.batch_norm` with the same arguments.

    Differs from PyTorch in that no channels are fine with parameters too, that statistics may have any shape with C
    elements, as parameters may in PyTorch, that statistics which share memory are refused in training, where PyTorch
    writes one over the other, and that the CPU gradient is right for strided parameters and statistics.

    Args:
        input: (N, C, *spatial).
        running_mean, running_var: (C,) or None, both or neither. Updated in training, ``(1 - momentum) * running +
            momentum * new`` with the unbiased variance; used for the statistics otherwise.
        weight, bias: (C,) or None.
        training: normalize by the batch's own statistics.
        momentum: weight of the new statistics, any real number.
        eps: added to the variance, so in units of input squared. Positive in training, else not negative.
        process_group: the processes that the groups extend over, as of `normtriton.normalize`.
        around: residual, scale, skip, gate, activation and the like, as of `normtriton.normalize`.
    Returns:
        (N, C, *spatial), dtype and memory format of input.
    Raises:
        ValueError: one value a channel in training, a bad eps, or only one of the running statistics.
        RuntimeError: a parameter or statistic without C elements, not floating point or on another device; statistics
            that are missing in evaluation, require a gradient, or share memory in training.
        TypeError: an argument of another type.
        NotImplementedError: input is not floating point.
    Source: Ioffe and Szegedy 2015, arXiv:1502.03167.
    """
    return counting_batch_norm(
        input, running_mean, running_var, weight, bias, training, momentum, eps, None, process_group, **around
    )


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
    process_group: Any = None,
    **around: Unpack[Around],
) -> Tensor:
    """`batch_norm`, whose kernel counts the batch on the way: ``batches``, () int64 or None, grows by one."""
    given = (running_mean, running_var, weight, bias, training, momentum, eps)
    if process_group is not None:
        return _across(
            batch_norm,
            process_group,
            (input, *given),
            (weight, bias),
            around,
            lambda u, w, b: (batch_norm_call(u, *given, batches, part=True), _flat(w), _flat(b)),
            lambda: counting_batch_norm(input, *given, batches, **around),
            partial(_per_channel_view, input),
            training,
        )
    if around:
        statistics = (running_mean, running_var)
        return _surrounded(
            batch_norm,
            (input, *given),
            (weight, bias),
            around,
            lambda: (_plain_only(batch_norm_call(input, *given, batches), *statistics), _flat(weight), _flat(bias)),
            lambda u, w, b: counting_batch_norm(u, running_mean, running_var, w, b, training, momentum, eps, batches),
            partial(_per_channel_view, input),
        )
    if not takes(input, running_mean, running_var, weight, bias):
        y = _by_pytorch(batch_norm, input, *given)
    else:
        way = SHORT if unwatched(input, running_mean, running_var, weight, bias, batches) else LONG
        try:
            call = batch_norm_call(input, *given, batches, way)
        except Refused:
            pass
        else:
            weight = weight if weight is None or weight.dim() == 1 else weight.reshape(-1)
            bias = bias if bias is None or bias.dim() == 1 else bias.reshape(-1)
            return way.normalize(input, weight, bias, call)
        y = _with_copies(F.batch_norm, input, running_mean, running_var, weight, bias, training, momentum, eps)
    if batches is not None:
        batches.add_(1)
    return y


def instance_norm(
    input: Tensor,  # noqa: A002
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    process_group: Any = None,
    **around: Unpack[Around],
) -> Tensor:
    """Normalize each channel of each sample over space; equals `F.instance_norm` with the same arguments.

    Differs from PyTorch in keeping the input's memory format, in that an empty batch or no channels are fine with
    parameters too, that parameters and statistics may have any shape with C elements, as `F.batch_norm`'s parameters
    may, and that statistics which share memory are refused when updated, where PyTorch writes one over the other. The
    weight is kept for the backward pass, as by the other norms: autograd raises if it is changed in place before.

    Args:
        input: (N, C, *spatial).
        running_mean, running_var: (C,) or None, both or neither. Updated from the average over N of the instances'
            statistics if ``use_input_stats``; used in their place otherwise.
        weight, bias: (C,) or None.
        use_input_stats: normalize by each instance's own statistics.
        momentum: weight of the new statistics.
        eps: added to the variance, so in units of input squared.
        process_group: the processes that the groups extend over, as of `normtriton.normalize`.
        around: residual, scale, skip, gate, activation and the like, as of `normtriton.normalize`.
    Returns:
        (N, C, *spatial), dtype and memory format of input.
    Raises:
        ValueError: one spatial element with ``use_input_stats``, or only one of the running statistics.
        RuntimeError, TypeError: as `batch_norm`.
        NotImplementedError: input is not floating point.
    Source: Ulyanov, Vedaldi and Lempitsky 2016, arXiv:1607.08022.
    """
    given = (running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
    if process_group is not None:
        return _across(
            instance_norm,
            process_group,
            (input, *given),
            (weight, bias),
            around,
            lambda u, w, b: (instance_norm_call(u, *given, part=True), _flat(w), _flat(b)),
            lambda: instance_norm(input, *given, **around),
            partial(_per_channel_view, input),
            use_input_stats,
        )
    if around:
        return _surrounded(
            instance_norm,
            (input, *given),
            (weight, bias),
            around,
            lambda: (
                _plain_only(instance_norm_call(input, *given), running_mean, running_var),
                _flat(weight),
                _flat(bias),
            ),
            lambda u, w, b: instance_norm(u, running_mean, running_var, w, b, use_input_stats, momentum, eps),
            partial(_per_channel_view, input),
        )
    if not takes(input, running_mean, running_var, weight, bias):
        return _by_pytorch(instance_norm, input, *given)
    way = SHORT if unwatched(input, running_mean, running_var, weight, bias) else LONG
    try:
        call = instance_norm_call(input, *given, way)
    except Refused:
        pass
    else:
        return way.normalize(input, _flat(weight), _flat(bias), call)
    return _with_copies(F.instance_norm, input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)


def layer_norm(
    input: Tensor,  # noqa: A002
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    dim: int | Sequence[int] | None = None,
    process_group: Any = None,
    **around: Unpack[Around],
) -> Tensor:
    """Normalize over the last dimensions; equals `F.layer_norm` with the same arguments.

    Differs from PyTorch in keeping the input's memory format, and in ``dim``. With it, it is `normtriton.normalize`
    over these dimensions: ``layer_norm(x, (C,), weight, bias, dim=1)`` normalizes the channels of images (N, C, H, W).

    Args:
        input: (*, *normalized_shape); with ``dim`` any shape.
        normalized_shape: sizes of the last dimensions, or of those in ``dim``.
        weight, bias: normalized_shape or None, each on its own.
        eps: added to the variance, so in units of input squared.
        dim: a dimension, or several in the order of the weight's; None for the last ones.
        process_group: the processes that the groups extend over, as of `normtriton.normalize`.
        around: residual, scale, skip, gate, activation and the like, as of `normtriton.normalize`.
    Returns:
        The shape, dtype and memory format of input.
    Raises:
        RuntimeError: shapes that do not agree, or a parameter that is not floating point or on another device.
        TypeError: an argument of another type; normalized_shape is a number.
        IndexError: ``dim`` is none of input's.
        NotImplementedError: input is not floating point.
    Source: Ba, Kiros and Hinton 2016, arXiv:1607.06450.
    """
    if dim is not None:
        return _over_dimensions(layer_norm, input, normalized_shape, weight, bias, eps, dim, process_group, around)
    if process_group is not None:
        return _across(
            layer_norm,
            process_group,
            (input, normalized_shape, weight, bias, eps),
            (weight, bias),
            around,
            lambda u, w, b: (layer_norm_call(u, normalized_shape, w, b, eps), w, b),
            lambda: layer_norm(input, normalized_shape, weight, bias, eps, **around),
            _as_it_is,
        )
    if around:
        return _surrounded(
            layer_norm,
            (input, normalized_shape, weight, bias, eps),
            (weight, bias),
            around,
            lambda: (layer_norm_call(input, normalized_shape, weight, bias, eps), weight, bias),
            lambda u, w, b: layer_norm(u, normalized_shape, w, b, eps),
            _as_it_is,
        )
    if takes(input, weight, bias):
        way = SHORT if unwatched(input, weight, bias) else LONG
        try:
            call = layer_norm_call(input, normalized_shape, weight, bias, eps, way)
        except Refused:
            pass
        else:
            return way.normalize(input, weight, bias, call)
    return _by_pytorch(layer_norm, input, normalized_shape, weight, bias, eps)


def group_norm(
    input: Tensor,  # noqa: A002
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    process_group: Any = None,
    **around: Unpack[Around],
) -> Tensor:
    """Normalize each group of channels of each sample; equals `F.group_norm` with the same arguments.

    Differs from PyTorch in keeping the input's memory format on every device.

    Args:
        input: (N, C, *spatial).
        num_groups: divides C.
        weight, bias: (C,) or None.
        eps: added to the variance, so in units of input squared.
        process_group: the processes that the groups extend over, as of `normtriton.normalize`.
        around: residual, scale, skip, gate, activation and the like, as of `normtriton.normalize`.
    Returns:
        (N, C, *spatial), dtype and memory format of input.
    Raises:
        RuntimeError: fewer than two dimensions, num_groups not positive or no divisor of C, a parameter that is not
            (C,), not floating point or on another device.
        ValueError: one value a group.
        TypeError: an argument of another type.
        ZeroDivisionError: num_groups is 0.
        NotImplementedError: input is not floating point.
    Source: Wu and He 2018, arXiv:1803.08494.
    """
    if process_group is not None:
        return _across(
            group_norm,
            process_group,
            (input, num_groups, weight, bias, eps),
            (weight, bias),
            around,
            lambda u, w, b: (group_norm_call(u, num_groups, w, b, eps, part=True), w, b),
            lambda: group_norm(input, num_groups, weight, bias, eps, **around),
            partial(_per_channel_view, input),
        )
    if around:
        return _surrounded(
            group_norm,
            (input, num_groups, weight, bias, eps),
            (weight, bias),
            around,
            lambda: (group_norm_call(input, num_groups, weight, bias, eps), weight, bias),
            lambda u, w, b: group_norm(u, num_groups, w, b, eps),
            partial(_per_channel_view, input),
        )
    if takes(input, weight, bias):
        way = SHORT if unwatched(input, weight, bias) else LONG
        try:
            call = group_norm_call(input, num_groups, weight, bias, eps, way)
        except Refused:
            pass
        else:
            return way.normalize(input, weight, bias, call)
    return _by_pytorch(group_norm, input, num_groups, weight, bias, eps)


def rms_norm(
    input: Tensor,  # noqa: A002
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    dim: int | Sequence[int] | None = None,
    process_group: Any = None,
    **around: Unpack[Around],
) -> Tensor:
    """Divide by the root mean square over the last dimensions; equals `F.rms_norm` with the same arguments.

    Differs from PyTorch in keeping the input's memory format, and in ``dim``, as of `layer_norm`. Without it, complex
    input, and weights that are complex or integer, go to PyTorch's own function on every device.

    Args:
        input: (*, *normalized_shape); with ``dim`` any shape.
        normalized_shape: sizes of the last dimensions, or of those in ``dim``.
        weight: normalized_shape or None.
        eps: added to the mean square; None is the machine epsilon of float32, for float64 input that of float64.
        dim: a dimension, or several in the order of the weight's; None for the last ones.
        process_group: the processes that the groups extend over, as of `normtriton.normalize`.
        around: residual, scale, skip, gate, activation and the like, as of `normtriton.normalize`.
    Returns:
        The shape, dtype and memory format of input.
    Raises:
        RuntimeError: shapes that do not agree, or a parameter on another device.
        ValueError: normalized_shape has more dimensions than input.
        TypeError: an argument of another type; normalized_shape is a number.
        IndexError: ``dim`` is none of input's.
        NotImplementedError: input is neither floating point nor complex.
    Source: Zhang and Sennrich 2019, arXiv:1910.07467.
    """
    if dim is not None:
        return _over_dimensions(rms_norm, input, normalized_shape, weight, None, eps, dim, process_group, around)
    if process_group is not None:
        return _across(
            rms_norm,
            process_group,
            (input, normalized_shape, weight, eps),
            (weight, None),
            around,
            lambda u, w, _b: (rms_norm_call(u, normalized_shape, w, eps), w, None),
            lambda: rms_norm(input, normalized_shape, weight, eps, **around),
            _as_it_is,
        )
    if around:
        return _surrounded(
            rms_norm,
            (input, normalized_shape, weight, eps),
            (weight, None),
            around,
            lambda: (rms_norm_call(input, normalized_shape, weight, eps), weight, None),
            lambda u, w, _b: rms_norm(u, normalized_shape, w, eps),
            _as_it_is,
        )
    if takes(input, weight):
        way = SHORT if unwatched(input, weight) else LONG
        try:
            call = rms_norm_call(input, normalized_shape, weight, eps, way)
        except Refused:
            pass
        else:
            return way.normalize(input, weight, None, call)
    if tracing_state() is not None and torch.onnx.is_in_onnx_export():
        return _rms_norm_in_parts(input, len(normalized_shape), weight, eps)
    return _by_pytorch(rms_norm, input, normalized_shape, weight, eps)


def _surrounded(
    function: Callable[..., Tensor],
    args: tuple[Any, ...],
    parameters: tuple[Tensor | None, Tensor | None],
    around: Mapping[str, Any],
    call: Callable[[], tuple[Call, Tensor | None, Tensor | None]],
    plain: Callable[..., Tensor],
    spread: Callable[[Tensor], Tensor],
) -> Tensor:
    """A norm with what surrounds it; while `torch.fx` traces, record that it is to be called."""
    if any(isinstance(arg, Proxy) for arg in (*args, *around.values())):
        return handle_torch_function(function, (*args, *around.values()), *args, **around)
    refuse = partial(_raise_pytorchs, function.__name__, args)
    return surround(function.__name__, args[0], *parameters, around, call, plain, spread, refuse)


def _raise_pytorchs(name: str, args: tuple[Any, ...]) -> None:
    """Raise what PyTorch's function raises for these arguments, if it does; nothing of theirs is written."""
    with torch.no_grad():
        getattr(F, name)(*(t.clone() if isinstance(t, torch.Tensor) else t for t in args))


def _across(
    function: Callable[..., Tensor],
    process_group: Any,
    args: tuple[Any, ...],
    parameters: tuple[Tensor | None, Tensor | None],
    around: Mapping[str, Any],
    call: Callable[..., tuple[Call, Tensor | None, Tensor | None]],
    alone: Callable[[], Tensor],
    spread: Callable[[Tensor], Tensor],
    measures: bool = True,
) -> Tensor:
    """A norm whose groups extend over processes; while `torch.fx` traces, record that it is to be called.

    Where it ``measures`` nothing, since statistics are given, it needs nobody.

    Raises:
        What PyTorch's function raises for these arguments.
        NotImplementedError: it takes them, but the kernels do not.
    """
    if any(isinstance(arg, Proxy) for arg in (*args, *around.values())):
        return handle_torch_function(function, args, *args, process_group=process_group, **around)
    name = function.__name__
    among = distributed.sharing(name, process_group) if measures else None
    if among is None:
        return args[0] if distributed.telling(process_group) else alone()

    def checked(*given: Any) -> tuple[Call, Tensor | None, Tensor | None]:
        try:
            return call(*given)
        except Refused:
            _raise_pytorchs(name, args)
            raise NotImplementedError(
                f"{name}(): process_group= takes what the kernels do, not what PyTorch's own function takes besides"
            ) from None

    return distributed.run(name, among, args[0], *parameters, around, checked, spread)


def _over_dimensions(
    function: Callable[..., Tensor],
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float | None,
    dim: int | Sequence[int],
    process_group: Any,
    around: Mapping[str, Any],
) -> Tensor:
    """Layer or RMS norm of other dimensions than the last."""
    name, centered = function.__name__, function is layer_norm
    every = (x, weight, bias, *around.values())
    if has_torch_function_variadic(*every) and overloaded(*every):
        given = (weight, bias, eps) if centered else (weight, eps)
        options = {"dim": dim, "process_group": process_group, **around}
        return handle_torch_function(function, every, x, normalized_shape, *given, **options)
    if tracing_state() is None:
        words = named.of_dimensions(name, x, dim, normalized_shape, centered)
    else:
        with quiet_about_sizes():
            words = named.of_dimensions(name, x, dim, normalized_shape, centered)
    eps = own_eps(x) if eps is None else eps
    dtype = torch.float32 if amp.upcasts(x) else None
    return named.run(name, x, words, weight, bias, eps, dtype, around, process_group)


def _as_it_is(parameter: Tensor) -> Tensor:
    return parameter


def _per_channel_view(x: Tensor, parameter: Tensor) -> Tensor:
    """One number a channel, so that it broadcasts against x."""
    return parameter.reshape(-1, *[1] * (x.dim() - 2))


def _plain_only(call: Call, *statistics: Tensor | None) -> Call:
    """The call, unless something watches its running statistics."""
    if not is_compiling() and not unwatched(*statistics):
        raise Refused
    return call


def own_eps(x: Tensor) -> float:
    """What PyTorch takes for an eps of None."""
    return _EPS64 if x.dtype == torch.float64 else _EPS32


def _rms_norm_in_parts(x: Tensor, dims: int, weight: Tensor | None, eps: float | None) -> Tensor:
    """`F.rms_norm` for the exporter to ONNX that traces: that of torch 2.13 knows what it consists of, but not it."""
    eps = own_eps(x) if eps is None else eps
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    y = wide * (wide.square().mean(tuple(range(-dims, 0)), keepdim=True) + eps).rsqrt()
    return (y if weight is None else y * weight).to(x.dtype)


def _per_channel(norm: Norm, shape: torch.Size) -> tuple[Problem, int, int]:
    """The `Problem` of an input with a channel axis, its number of channels, and of values that share statistics."""
    if len(shape) < 2:
        raise Refused
    values = prod(shape[2:]) * (1 if norm.batch_invariant else shape[0])
    return Problem(norm, tuple(shape)), shape[1], values


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
    way: Way | None = None,
    part: bool = False,
) -> Call:
    """Check `batch_norm`'s arguments, or those of a ``part`` of it, of which one value is fine; ``batches`` counts."""
    way = way or _way()
    check_memory(x, weight, bias, running_mean, running_var)
    problem, channels, values = way.per_channel(norms.BATCH, x.shape)
    eps = eps if type(eps) is float else number(eps)
    if training is True:
        if (values == 1 and not part) or eps <= 0.0:
            raise Refused
    elif eps < 0.0 or training is not False or running_mean is None:
        raise Refused
    statistics = _statistics(channels, running_mean, running_var, momentum, training, way, batches)
    _check_channels(channels, weight, bias)
    return Call(problem, eps, statistics, not training)


def instance_norm_call(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    way: Way | None = None,
    part: bool = False,
) -> Call:
    """Check `instance_norm`'s arguments, or those of a ``part`` of it."""
    way = way or _way()
    check_memory(x, weight, bias, running_mean, running_var)
    if use_input_stats is True:
        problem, channels, values = way.per_channel(norms.INSTANCE, x.shape)
        if values == 1 and not part:
            raise Refused
    elif use_input_stats is not False or running_mean is None:
        raise Refused
    else:  # with given statistics the samples differ no longer: batch norm's evaluation
        problem, channels, _ = way.per_channel(norms.BATCH, x.shape)
    statistics = _statistics(channels, running_mean, running_var, momentum, use_input_stats, way)
    _check_channels(channels, weight, bias)
    eps = eps if type(eps) is float else number(eps)
    return Call(problem, eps, statistics, not use_input_stats)


def layer_norm_call(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    way: Way | None = None,
) -> Call:
    """Check `layer_norm`'s arguments."""
    check_memory(x, weight, bias)
    return _row_call(way or _way(), norms.LAYER, x, normalized_shape, weight, bias, eps)


def rms_norm_call(
    x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, eps: float | None, way: Way | None = None
) -> Call:
    """Check `rms_norm`'s arguments."""
    check_memory(x, weight)
    eps = own_eps(x) if eps is None else eps
    return _row_call(way or _way(), norms.RMS, x, normalized_shape, weight, None, eps)


def group_norm_call(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    way: Way | None = None,
    part: bool = False,
) -> Call:
    """Check `group_norm`'s arguments, or those of a ``part`` of it."""
    check_memory(x, weight, bias)
    num_groups = num_groups if type(num_groups) is int else integer(num_groups)
    eps = eps if type(eps) is float else number(eps)
    shapes = None if weight is None else weight.shape, None if bias is None else bias.shape
    return _with_dtype(x, (way or _way()).group_problem_call(x.shape, num_groups, *shapes, eps, part))


def _group_problem_call(
    shape: torch.Size,
    num_groups: int,
    weight: torch.Size | None,
    bias: torch.Size | None,
    eps: float,
    part: bool,
) -> Call:
    """The `Call` of shapes that agree."""
    if len(shape) < 2 or num_groups <= 0 or shape[1] % num_groups:
        raise Refused
    if not part and shape[0] * shape[1] // num_groups * prod(shape[2:]) == 1:
        raise Refused
    if not {weight, bias} <= {None, shape[1:2]}:
        raise Refused
    return Call(Problem(norms.GROUP, tuple(shape), (("g", num_groups),)), eps)


def _with_dtype(x: Tensor, call: Call) -> Call:
    """The call with the dtype that autocast wants of it."""
    return call._replace(dtype=torch.float32) if amp.upcasts(x) else call


def _row_call(
    way: Way,
    norm: Norm,
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> Call:
    if type(normalized_shape) is not tuple and not isinstance(normalized_shape, list | tuple):
        raise Refused
    eps = eps if type(eps) is float else number(eps)
    shapes = None if weight is None else weight.shape, None if bias is None else bias.shape
    try:
        return _with_dtype(x, way.row_problem_call(norm, x.shape, *shapes, eps, *normalized_shape))
    except TypeError:  # what cannot be hashed is no number
        raise Refused from None


def _row_problem_call(
    norm: Norm,
    shape: torch.Size,
    weight: torch.Size | None,
    bias: torch.Size | None,
    eps: float,
    *normalized_shape: int,
) -> Call:
    """The `Call` of layer or RMS norm of shapes that agree."""
    wanted = tuple(integer(n) for n in normalized_shape)
    dims = len(wanted)
    if dims == 0 or shape[-dims:] != wanted or not {weight, bias} <= {None, wanted}:
        raise Refused
    return Call(Problem(norm, tuple(shape), (("d", dims),)), eps)


def _flat(t: Tensor | None) -> Tensor | None:
    """PyTorch takes any shape with the right number of elements."""
    return t if t is None or t.dim() == 1 else t.reshape(-1)


def _check_channels(channels: int, weight: Tensor | None, bias: Tensor | None) -> None:
    if weight is not None and weight.numel() != channels:
        raise Refused
    if bias is not None and bias.numel() != channels:
        raise Refused


def _statistics(
    channels: int,
    mean: Tensor | None,
    var: Tensor | None,
    momentum: float,
    updated: bool,
    way: Way,
    batches: Tensor | None = None,
) -> Statistics | None:
    momentum = momentum if type(momentum) is float else number(momentum)
    if mean is None or var is None:
        if mean is not var:
            raise Refused
        return None
    if mean.numel() != channels or var.numel() != channels:
        raise Refused
    if (mean.requires_grad or var.requires_grad) and torch.is_grad_enabled():
        raise Refused
    mean, var = own(mean), own(var)
    try:  # a view, never a copy: it is written
        mean, var = mean if mean.dim() == 1 else mean.view(-1), var if var.dim() == 1 else var.view(-1)
    except RuntimeError:
        raise Refused from None
    strides = mean.stride()[0], var.stride()[0]
    if (
        updated
        and channels
        and (way is SHORT or not is_compiling())  # compilers know no addresses
        and (0 in strides or torch._C._is_alias_of(mean, var))  # type: ignore[attr-defined]  # not in its stubs
    ):
        refuse_shared_memory(mean, var)
    return mean, var, *strides, () if batches is None else (batches,), momentum


class Way(NamedTuple):
    """How a call is made: of plain tensors, whose sizes are numbers, by caches; of watched ones, anew.

    A compiler warns of caches, through which it looks, and its sizes may be symbols.

    Attributes:
        normalize: runs the call.
        per_channel, row_problem_call, group_problem_call: the functions of these names.
    """

    normalize: Callable[..., Tensor]
    per_channel: Callable[..., tuple[Problem, int, int]]
    row_problem_call: Callable[..., Call]
    group_problem_call: Callable[..., Call]


SHORT = Way(
    normalize_unwatched,
    lru_cache(maxsize=4096)(_per_channel),
    lru_cache(maxsize=4096, typed=True)(_row_problem_call),  # typed: 3.0 is not 3
    lru_cache(maxsize=4096)(_group_problem_call),
)
LONG = Way(normalize, _per_channel, _row_problem_call, _group_problem_call)


def _way() -> Way:
    return LONG if is_compiling() else SHORT


_function: Any
for _function in (batch_norm, instance_norm, layer_norm, group_norm, rms_norm):
    # `torch.jit.script` asks for what to compile in its place
    _function.__prepare_scriptable__ = partial(getattr, F, _function.__name__)
