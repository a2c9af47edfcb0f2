"""What may surround a norm, as its functions take it by keyword: checked here, for all of them."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

import torch
from torch.compiler import is_compiling, is_exporting
from torch.overrides import has_torch_function_variadic

from .autograd.composed import blend, measured
from .autograd.derivatives import Axes
from .autograd.function import has_kernels, tracing_state, unwatched
from .autograd.sharded import is_sharded
from .autograd.surrounded import NAMES, decomposed, norm_of, quantize, quantized, surround
from .autograd.surrounded_operators import quantize_traced
from .autograd.surrounded_operators import surround as surround_traced
from .checks import Refused, check_memory, check_tensor, number, overloaded, quiet_about_sizes
from .modulation import NAMES as MODULATION
from .modulation import broadcastable, modulated
from .planning.stages import ACTIVATIONS, SPREAD, Activation, Stages
from .runtime.quantized import KINDS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from .autograd.call import Call


_transforms = torch._C._are_functorch_transforms_active


class Around(TypedDict, total=False):
    """What every function and module takes by keyword, see `normtriton.normalize`."""

    x_scale: Tensor | None
    residual: Tensor | None
    skip: Tensor | None
    gate: Tensor | None
    scale: Tensor | None
    shift: Tensor | None
    mask: Tensor | None
    quantize: str | None
    quantize_scale: Tensor | str | None
    activation: str | Activation | None
    offset: float
    round_first: bool
    gate_first: bool


class Surroundings(NamedTuple):
    """What surrounds a call, checked.

    Attributes:
        tensors: those that the kernels take, as far as they are there, by name: of x's shape, or with a dimension for
            each of x's.
        modulation: scale and shift, as far as they are there, with a dimension for each of x's.
        stages: the settings.
    """

    tensors: dict[str, Tensor]
    modulation: dict[str, Tensor]
    stages: Stages


def check_settings(function: str, given: Mapping[str, Any]) -> tuple[str | Activation, float]:
    """The activation, "" for none, and the offset.

    Raises:
        TypeError: an offset that is no number.
        ValueError: an activation that is not known.
    """
    activation, offset = given.get("activation") or "", given.get("offset", 0.0)
    if activation not in ACTIVATIONS and activation != "" and not isinstance(activation, Activation):
        known = ", ".join(ACTIVATIONS)
        raise ValueError(f"{function}(): activation is one of {known}, or an Activation, not {activation!r}")
    try:
        return activation, offset if type(offset) is float else number(offset)
    except Refused:
        raise TypeError(f"{function}(): offset must be a number, not {type(offset).__name__}") from None


def surroundings(
    function: str, x: Tensor, weight: Tensor | None, given: Mapping[str, Any], spread: Callable[[Tensor], Tensor]
) -> Surroundings:
    """Check what surrounds a call; ``spread`` makes a parameter broadcast against x.

    Raises:
        TypeError: an argument that is not known, or of another type.
        ValueError: an activation that is not known.
        RuntimeError: a tensor of another shape, or on another device, than the input.
    """
    for name in given:
        if name not in Around.__annotations__:
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}")
    activation, offset = check_settings(function, given)
    tensors = {name: given[name] for name in NAMES if given.get(name) is not None}
    if "x_scale" in tensors:
        tensors["x_scale"] = broadcastable(function, "x_scale", tensors["x_scale"], x, spread)
    if "mask" in tensors:
        tensors["mask"] = _check_mask(function, tensors["mask"], x)
    for name, t in tensors.items():
        if name in SPREAD:
            continue
        check_tensor(function, name, t, x)
        if t.shape != x.shape:
            raise RuntimeError(
                f"{function}(): {name} of shape {tuple(t.shape)} has not the shape of the input, {tuple(x.shape)}"
            )
    modulation = {
        name: broadcastable(function, name, given[name], x, spread)
        for name in MODULATION
        if given.get(name) is not None
    }
    rounds = (weight is not None or "scale" in modulation) and bool(given.get("round_first"))
    first = "gate" in tensors and bool(given.get("gate_first"))
    kind = _check_quantize(function, given)
    if kind and given["quantize_scale"] != "group":
        tensors["q_scale"] = broadcastable(function, "quantize_scale", given["quantize_scale"], x, spread)
    stages = Stages(activation, 0.0 if weight is None else offset, rounds, first, "mask" in tensors, kind)
    return Surroundings(tensors, modulation, stages)


def _check_quantize(function: str, given: Mapping[str, Any]) -> str:
    """What the result is quantized to; "" for nothing.

    Raises:
        ValueError: what there is not, or a scale without it, or it without a scale.
    """
    kind, scale = given.get("quantize") or "", given.get("quantize_scale")
    if kind not in KINDS and kind != "":
        raise ValueError(f"{function}(): quantize is one of {', '.join(KINDS)}, not {kind!r}")
    if (kind == "") != (scale is None) or (isinstance(scale, str) and scale != "group"):
        said = scale if isinstance(scale, str) or scale is None else type(scale).__name__
        raise ValueError(
            f'{function}(): quantize goes with quantize_scale, a Tensor or "group"; they are {kind or None!r}, {said!r}'
        )
    return kind


def _check_mask(function: str, mask: Any, x: Tensor) -> Tensor:
    """A mask with a dimension for each of x's.

    Raises:
        TypeError: it is no tensor of truth values.
        RuntimeError: it does not broadcast against x, or is on another device.
    """
    if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool:
        kind = mask.dtype if isinstance(mask, torch.Tensor) else type(mask).__name__
        raise TypeError(f"{function}(): mask must be a Tensor of torch.bool, not {kind}")
    if mask.device != x.device:
        raise RuntimeError(f"{function}(): mask is on {mask.device}, the input on {x.device}")
    view = mask.reshape([1] * (x.dim() - mask.dim()) + [*mask.shape])
    if view.dim() != x.dim() or any(a not in (1, b) for a, b in zip(view.shape, x.shape, strict=True)):
        raise RuntimeError(
            f"{function}(): mask of shape {tuple(mask.shape)} does not broadcast against the input of shape "
            f"{tuple(x.shape)}"
        )
    return view


def run(
    function: str,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    given: Mapping[str, Any],
    call: Callable[[], tuple[Call, Tensor | None, Tensor | None]],
    plain: Callable[..., Tensor],
    spread: Callable[[Tensor], Tensor],
    refuse: Callable[[], object],
) -> Tensor:
    """A norm with what surrounds it, (y, u) if there is a residual: by the kernels where they take it, else decomposed.

    Args:
        function: its name.
        x, weight, bias: of the norm.
        given: what surrounds it.
        call: checks the plain call; its `Call` and its parameters as the kernels take them.
        plain: the norm alone, of (u, weight, bias).
        spread: makes a parameter broadcast against x.
        refuse: raises what PyTorch's own function raises for the plain call, if it does.
    """
    if not isinstance(x, torch.Tensor):
        return plain(x, weight, bias)  # raises in its own words
    if tracing_state() is None:
        around = surroundings(function, x, weight, given, spread)
    else:
        with quiet_about_sizes():
            around = surroundings(function, x, weight, given, spread)
    if around.stages.quantize:
        return _quantized(function, x, weight, bias, around, call, plain, spread, refuse)  # type: ignore[no-any-return]  # more
    if _takes(x, weight, bias, around):
        try:
            checked, w, b = _with_surroundings(function, around, *call())
        except Refused:
            pass
        else:
            run = surround_traced if is_compiling() else surround
            return run(checked, x, w, b, around.tensors)  # type: ignore[return-value]
    everything = around.tensors | around.modulation
    if "mask" in everything:
        plain = _masked(function, _own_call(function, call, refuse)[0], everything["mask"])
    return decomposed(plain, spread, x, weight, bias, everything, around.stages)  # type: ignore[return-value]  # two, as it says


def _with_surroundings(
    function: str, around: Surroundings, call: Call, weight: Tensor | None, bias: Tensor | None
) -> tuple[Call, Tensor | None, Tensor | None]:
    """A plain call for the kernels, with what surrounds it.

    Raises:
        Refused: they do not take it.
        NotImplementedError: nothing does, see `check_averages`.
    """
    check_averages(function, call, around.stages)
    _check_traced(call, around.stages)
    problem = call.problem._replace(stages=around.stages)
    return modulated(call._replace(problem=problem), weight, bias, around.modulation)


def _own_call(
    function: str, call: Callable[[], tuple[Call, Tensor | None, Tensor | None]], refuse: Callable[[], object]
) -> tuple[Call, Tensor | None, Tensor | None]:
    """The plain call and its parameters, where PyTorch's own function cannot take its place.

    Raises:
        What PyTorch's function raises for these arguments.
        NotImplementedError: it takes them, but the library does not.
    """
    try:
        return call()
    except Refused:
        refuse()
        raise NotImplementedError(
            f"{function}(): mask and quantize take what the kernels do, not what PyTorch's own function takes besides"
        ) from None


def _quantized(
    function: str,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    around: Surroundings,
    call: Callable[[], tuple[Call, Tensor | None, Tensor | None]],
    plain: Callable[..., Tensor],
    spread: Callable[[Tensor], Tensor],
    refuse: Callable[[], object],
) -> Any:
    """(q, scale), and u if there is a residual.

    Raises:
        RuntimeError: a gradient would be wanted.
        What `_own_call` raises.
    """
    tensors, modulation, stages = around
    every = (x, weight, bias, *tensors.values(), *modulation.values())
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in every):
        raise RuntimeError(f"{function}(): what is quantized has no gradient: call it under torch.no_grad()")
    own, *parameters = _own_call(function, call, refuse)
    if _takes(x, weight, bias, around):
        with suppress(Refused):
            checked, w, b = _with_surroundings(function, around, own, *parameters)
            return (quantize_traced if is_compiling() else quantize)(checked, x, w, b, tensors)
    everything = {name: t for name, t in tensors.items() if name != "q_scale"} | modulation
    if "mask" in everything:
        plain = _masked(function, own, everything["mask"])
    made = decomposed(plain, spread, x, weight, bias, everything, stages)
    y, *total = made if isinstance(made, tuple) else (made,)
    problem = own.problem._replace(stages=stages)
    return *quantized(y, problem, tensors.get("q_scale")), *total


def _check_traced(call: Call, stages: Stages) -> None:
    """Refuse what changes in place: an exported program holds that as PyTorch's operations, at its end.

    The operator with a quantized result, which is for inference, changes nothing in place either.

    Raises:
        Refused: running statistics would.
    """
    if call.statistics is None or call.use_running:
        return
    if is_exporting() or (stages.quantize and is_compiling()):
        raise Refused


def check_averages(function: str, call: Call, stages: Stages) -> None:
    """Refuse to update running statistics with averages of groups that a mask may leave nothing of.

    Raises:
        NotImplementedError: they would be.
    """
    if stages.masked and call.statistics is not None and not call.use_running:
        problem = call.problem
        if any(key not in problem.affine for key in problem.kept):
            raise NotImplementedError(f"{function}(): running statistics are not updated by groups with a mask")


def _masked(function: str, call: Call, mask: Tensor) -> Callable[..., Tensor]:
    """The norm alone of what a mask lets through, in PyTorch's operations."""
    check_averages(function, call, Stages(masked=True))
    norm, statistics = norm_of(call, mask), call.statistics
    if statistics is None or call.use_running:
        return norm
    axes = Axes(call.problem)
    there = axes.truth(mask)

    def updating(u: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        with torch.no_grad():
            left = torch.where(there, u.reshape(axes.sizes), 0.0).reshape(u.shape)
            blend(axes, statistics, there.sum(axes.over, keepdim=True), *measured(axes, left, there))
        return norm(u, weight, bias)

    return updating


def _takes(x: Tensor, weight: Tensor | None, bias: Tensor | None, around: Surroundings) -> bool:
    """Whether the kernels take a call: plain tensors, not of float64 beside others."""
    tensors = around.tensors
    whole = (weight, bias, tensors.get("residual"), tensors.get("skip"), tensors.get("gate"))
    x_scale, mask = tensors.get("x_scale"), tensors.get("mask")
    scale, shift = map(around.modulation.get, MODULATION)
    every = (x, *whole, scale, shift, x_scale)
    if has_torch_function_variadic(*every, mask) and overloaded(*every, mask):
        return False
    if not has_kernels(x):
        return False
    if is_compiling():
        if isinstance(around.stages.activation, Activation):  # operators are told its name
            return False
        if _transforms() or any(map(is_sharded, every)):
            return False
    elif not unwatched(x, *whole) or not unwatched(scale, shift, x_scale, mask):
        return False
    try:
        check_memory(x, *every[1:])
    except Refused:
        return False
    mixed = {t.dtype == torch.float64 for name, t in tensors.items() if name not in ("mask", "q_scale")}
    return mixed <= {x.dtype == torch.float64}
