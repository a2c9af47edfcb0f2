"""Any normalization, by named axes: `normalize`, and layer and RMS norm of whichever dimensions."""

from __future__ import annotations

from functools import lru_cache, partial
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.compiler import is_compiling
from torch.overrides import handle_torch_function, has_torch_function_variadic

from . import distributed
from .autograd.call import Call
from .autograd.composed import composed
from .autograd.function import has_kernels, normalize_unwatched, tracing_state, unwatched
from .autograd.ways import normalize as normalize_watched
from .checks import Refused, check_memory, check_tensor, integer, number, overloaded, quiet_about_sizes
from .modulation import NAMES as MODULATION
from .modulation import along
from .planning.norms import described, names
from .planning.schedule import Problem
from .surroundings import run as surround

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from .distributed import Started
    from .planning.norms import Norm
    from .planning.stages import Activation
    from .runtime.processes import Named, Processes

__all__ = ["normalize"]


class Words(NamedTuple):
    """A norm in a caller's words.

    Attributes:
        axes, over, affine, centered: see `normtriton.planning.norms.described`.
        sizes: of axes that the shape does not tell.
    """

    axes: str
    over: str
    affine: str | None
    centered: bool
    sizes: tuple[tuple[str, int], ...] = ()


class Reading(NamedTuple):
    """What `Words` say of a shape.

    Attributes:
        call: the norm, the shape and eps.
        views: of weight and bias, how to permute their dimensions to x's order; None if they lie as they should.
    """

    call: Call
    views: tuple[tuple[int, ...] | None, tuple[int, ...] | None]


def _norm(words: Words) -> Norm:
    return described(*words[:4])


def _read(
    words: Words,
    shape: torch.Size,
    weight: torch.Size | None,
    bias: torch.Size | None,
    eps: float,
    called: tuple[str, str] = ("weight", "bias"),
) -> Reading:
    """Check words, sizes and the parameters' shapes; errors call the two so."""
    norm = _norm(words)
    known = names(norm.axes)
    for name, size in words.sizes:
        if name not in known:
            raise TypeError(f"normalize() got an unexpected keyword argument {name!r}, which is none of {norm.axes!r}")
        if type(size) is not int:
            raise TypeError(f"normalize(): the size of axis {name!r} must be an int, not {type(size).__name__}")
    problem = Problem(norm, tuple(shape), words.sizes)
    listed = names(words.affine or "")
    axes = problem.axes
    split = tuple(key for name in listed for key in axes if key[0] == name)
    ordered = tuple(key for key in axes if key in split)
    own, apart = problem.parameter_shape, tuple(axes[key] for key in split)
    turned = None if split == ordered and own == apart else tuple(split.index(key) for key in ordered)

    def view(name: str, given: torch.Size | None) -> tuple[int, ...] | None:
        if given is None:
            return None
        if words.affine is None:
            raise ValueError(f"normalize(): {name} needs affine=, which of the axes {norm.axes!r} it varies along")
        if given == own and split == ordered:
            return None
        if given == apart:
            return turned
        which = f"{apart} or {own}" if split == ordered and own != apart else f"{apart}"
        raise RuntimeError(
            f"normalize(): {name} of shape {tuple(given)} does not vary along {words.affine!r}, which is "
            f"{which} of axes {norm.axes!r} and input of shape {tuple(shape)}"
        )

    return Reading(Call(problem, eps), (view(called[0], weight), view(called[1], bias)))


_cached_read = lru_cache(maxsize=4096)(_read)


def _laid(parameter: Tensor | None, view: tuple[int, ...] | None, call: Call) -> Tensor | None:
    """A parameter in the order of x's axes."""
    if view is None or parameter is None:
        return parameter
    return parameter.permute(view).reshape(call.problem.parameter_shape)


def _number(eps: Any, function: str) -> float:
    try:
        return number(eps)
    except Refused:
        raise TypeError(f"{function}(): argument 'eps' must be a number, not {type(eps).__name__}") from None


def _explain_refusal(function: str, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
    """Raise what is wrong with the tensors of a call; nothing is, if one is a view that is negated when read."""
    for name, t in (("input", x), ("weight", weight), ("bias", bias)):
        if t is not None:
            check_tensor(function, name, t, x)


def _explain_words(function: str, words: Words) -> None:
    """Raise which of the axes are not given in words."""
    for name, given in (("axes", words.axes), ("over", words.over), ("affine", words.affine or "")):
        if not isinstance(given, str):
            raise TypeError(f"{function}(): argument '{name}' must be str, as \"n c\", not {type(given).__name__}")


def prepare(
    function: str, x: Tensor, words: Words, weight: Tensor | None, bias: Tensor | None, eps: float, short: bool = True
) -> tuple[Call, Tensor | None, Tensor | None, bool]:
    """Check a call; its `Call`, its parameters in the order of x's axes, and whether kernels take such tensors."""
    fits = True
    try:
        check_memory(x, weight, bias)
    except (Refused, AttributeError):
        _explain_refusal(function, x, weight, bias)
        fits = False
    eps = eps if type(eps) is float else _number(eps, function)
    shapes = None if weight is None else weight.shape, None if bias is None else bias.shape
    try:
        call, (weight_view, bias_view) = (_cached_read if short else _read)(words, x.shape, *shapes, eps)
    except (TypeError, AttributeError):
        _explain_words(function, words)
        raise
    return call, _laid(weight, weight_view, call), _laid(bias, bias_view, call), fits


def run(
    function: str,
    x: Tensor,
    words: Words,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    dtype: torch.dtype | None = None,
    around: Mapping[str, Any] | None = None,
    process_group: Any = None,
) -> Tensor:
    """Normalize x as `Words` say, by the kernels, or by PyTorch's operations where there are none.

    ``dtype`` is the result's; None for x's. ``around`` is what surrounds the norm, ``process_group`` the processes that
    its groups extend over.
    """
    if process_group is not None:
        among = distributed.sharing(function, process_group)
        if among is not None:
            return _run_across(function, among, x, words, weight, bias, eps, dtype, around)
        if distributed.telling(process_group):
            return x
    kernels, short = isinstance(x, torch.Tensor) and has_kernels(x), unwatched(x, weight, bias)
    if not kernels and tracing_state() is not None:
        with quiet_about_sizes():
            if around:
                return _run_surrounded(function, x, words, weight, bias, eps, dtype, around, short=False)
            return _composed(*prepare(function, x, words, weight, bias, eps, short=False)[:3], x, dtype)
    if around:
        return _run_surrounded(function, x, words, weight, bias, eps, dtype, around, short)
    call, weight, bias, fits = prepare(function, x, words, weight, bias, eps, short)
    if dtype is not None:
        call = call._replace(dtype=dtype)
    if kernels and fits:
        return (normalize_unwatched if short else normalize_watched)(x, weight, bias, call)
    return _composed(call, weight, bias, x, dtype)


def _composed(call: Call, weight: Tensor | None, bias: Tensor | None, x: Tensor, dtype: torch.dtype | None) -> Tensor:
    return composed(call.problem, x, weight, bias, None, None, call.eps).to(dtype or x.dtype)


#: What may be a pair of a tensor and its axes.
_PAIRS = (*MODULATION, "x_scale", "mask", "quantize_scale")


def along_axes(function: str, x: Tensor, words: Words, around: Mapping[str, Any]) -> dict[str, Any]:
    """What surrounds a call; of each pair, of a tensor and its axes, the tensor as it broadcasts against x."""
    found = dict(around)
    for name in _PAIRS:
        given = around.get(name)
        if isinstance(given, tuple):
            t, listed = _pair(function, name, given)
            if name != "mask":
                check_tensor(function, name, t, x)
            found[name] = _along(words, x, name, t, listed)
    given = found.pop("lengths", None)
    if given is not None:
        if found.get("mask") is not None:
            raise ValueError(f"{function}(): mask and lengths say the same, give one of them")
        found["mask"] = _first(function, words, x, given)
    return found


def _pair(function: str, name: str, given: Any) -> tuple[Tensor, str]:
    if len(given) != 2 or not isinstance(given[0], torch.Tensor) or not isinstance(given[1], str):
        raise TypeError(f"{function}(): argument '{name}' must be a Tensor, or a pair of one and its axes")
    return given[0], given[1]


def _along(words: Words, x: Tensor, name: str, t: Tensor, listed: str) -> Tensor:
    """A tensor that varies along the listed axes, as it broadcasts against x."""
    call, (view, _) = _read(words._replace(affine=listed), x.shape, t.shape, None, 0.0, (name, ""))
    laid = _laid(t, view, call)
    assert laid is not None
    return along(call.problem, laid)


def _first(function: str, words: Words, x: Tensor, given: Any) -> Tensor:
    """The mask of so many first elements along an axis, the last one listed.

    Raises:
        TypeError: it is no pair of integers and axes.
        ValueError, RuntimeError: axes that there are not, or of other sizes.
    """
    if not isinstance(given, tuple):
        raise TypeError(f"{function}(): argument 'lengths' must be a pair of a Tensor and its axes")
    lengths, listed = _pair(function, "lengths", given)
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise TypeError(f"{function}(): lengths must be integers, not {lengths.dtype}")
    if lengths.device != x.device:
        raise RuntimeError(f"{function}(): lengths is on {lengths.device}, the input on {x.device}")
    *_, last = listed.split() or [""]
    problem = Problem(_norm(words._replace(affine=last or None)), tuple(x.shape), words.sizes)
    size = prod(problem.parameter_shape)
    if not last:
        raise ValueError(f"{function}(): lengths needs the axis that they are lengths of, of {problem.norm.axes!r}")
    there = torch.arange(size, device=x.device) < lengths.unsqueeze(-1)
    return _along(words, x, "lengths", there, listed)


def _run_surrounded(
    function: str,
    x: Tensor,
    words: Words,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    dtype: torch.dtype | None,
    around: Mapping[str, Any],
    short: bool,
) -> Tensor:
    call, weight, bias, fits = prepare(function, x, words, weight, bias, eps, short)
    around = along_axes(function, x, words, around)
    alone = words._replace(affine=None if words.affine is None else call.problem.norm.affine)

    def checked() -> tuple[Call, Tensor | None, Tensor | None]:
        if not fits:
            raise Refused
        return call._replace(dtype=dtype), weight, bias

    return surround(
        function,
        x,
        weight,
        bias,
        around,
        checked,
        lambda u, w, b: run(function, u, alone, w, b, eps, dtype),
        partial(along, call.problem),
        lambda: None,  # `prepare` has raised it
    )


def _run_across(
    function: str,
    among: Processes | Named | Started,
    x: Tensor,
    words: Words,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    dtype: torch.dtype | None,
    around: Mapping[str, Any] | None,
) -> Tensor:
    call, weight, bias, fits = prepare(function, x, words, weight, bias, eps, short=not is_compiling())
    if not fits:
        x, weight, bias = (t if t is None else t.resolve_neg() for t in (x, weight, bias))  # type: ignore[assignment]
    call = call._replace(dtype=dtype)
    around = along_axes(function, x, words, around) if around else None
    spread = partial(along, call.problem)
    return distributed.run(function, among, x, weight, bias, around, lambda _u, w, b: (call, w, b), spread)


def normalize(
    input: Tensor,  # noqa: A002  PyTorch's name
    axes: str,
    *,
    over: str,
    affine: str | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    center: bool = True,
    residual: Tensor | None = None,
    scale: Tensor | tuple[Tensor, str] | None = None,
    shift: Tensor | tuple[Tensor, str] | None = None,
    x_scale: Tensor | tuple[Tensor, str] | None = None,
    mask: Tensor | tuple[Tensor, str] | None = None,
    lengths: tuple[Tensor, str] | None = None,
    skip: Tensor | None = None,
    gate: Tensor | None = None,
    activation: str | Activation | None = None,
    offset: float = 0.0,
    round_first: bool = False,
    gate_first: bool = False,
    quantize: str | None = None,
    quantize_scale: Tensor | tuple[Tensor, str] | str | None = None,
    process_group: Any = None,
    **sizes: int,
) -> Tensor:
    """Normalize over any axes; batch, layer, instance, group and RMS norm are cases of it.

    With ``a`` the axes in ``over``: ``(x - x.mean(a)) / sqrt(x.var(a, unbiased=False) + eps) * weight + bias``.

        normalize(x, "n c *s", over="n s", affine="c", weight=w, bias=b)              # batch norm of this batch
        normalize(x, "n (g k) *s", over="k s", affine="g k", g=32, weight=w, bias=b)  # group norm
        normalize(x, "n c h w", over="c", affine="c", weight=w, bias=b)               # layer norm over channels
        normalize(x, "b t (h d)", over="d", affine="d", h=16, center=False, weight=w) # RMS norm of each head
        normalize(x, "(r n) c *s", over="n s", affine="c", r=4)                       # ghost batch norm
        normalize(w, "o i *k", over="i k")                                            # weight standardization

    What stands around a norm in models is computed in the same pass over memory, forward and backward. With the above
    written as ``normalized(u, weight, bias)``, and every step left out that is not asked for:

        u = x * activation(gate)                      # if gate_first
        u = u * x_scale
        u = u + residual
        z = normalized(u, offset + weight, bias)      # rounded to x's dtype before the weight, if round_first
        z = z * (1 + scale) + shift
        z = z + skip
        y = activation(z), or z * activation(gate) if there is a gate that did not come first
        y = where(mask, y, 0)                         # and statistics are of the elements where mask is True
        q = (y / quantize_scale).to(quantize)         # or by a scale of each group's own

    The result is y, or (y, u) if there is a residual. u has the dtype that x + residual has, and is normalized as it
    was rounded to it. What a mask leaves out may hold anything, NaN too: it passes no gradient, but for u's. A group
    with nothing left gives zeros, and leaves running statistics as they are.

    With ``quantize`` the result is (q, scale), so that ``q * scale`` is about y, or (q, scale, u). It is made of y
    before any rounding, in the same pass; a scale of each group's own needs the group on chip, see `explain`, and is
    else made of y in float32 by PyTorch's operations. It has no gradient. `torch.compile` and transforms see PyTorch's
    operations, which round y to the input's dtype first.

    For the backward pass u (or x), the parameters, mean and rstd are kept, and of skip and gate what a gradient needs.
    `torch.compile` and `torch.export` see one operator a direction. Transforms, derivatives of gradients, float64
    beside other dtypes, and an export that updates running statistics take the plain norm and PyTorch's operations.

    Where there are no kernels (a CPU tensor outside the interpreter, `torch.jit.trace`) PyTorch's operations compute
    it. Under autocast the result keeps the input's dtype.

    Args:
        input: any shape and strides; the first dimension is taken for the batch: if ``over`` leaves it out, a sample's
            result does not depend on its batch.
        axes: one word a dimension, as of einops: ``n`` names it, ``(g k)`` splits it, ``k`` changing faster, ``*s``
            stands for any number of dimensions.
        over: names of the axes that share statistics.
        affine: names of the axes that the parameters vary along, in the order of their dimensions. Their sizes are
            taken to belong to the model and are compiled in.
        weight, bias: one number for each index along ``affine``, or None; a dimension for each axis, or one for all
            axes that a dimension of the input splits into.
        eps: added to the variance, so in units of input squared.
        center: False leaves the mean in, and takes the root mean square for the standard deviation.
        residual, skip, gate: tensors of the input's shape and of any dtype, in any strides, or None.
        scale, shift: a modulation, as of adaLN and FiLM, of any dtype: a tensor that broadcasts against the input, or
            that has the shape of weight and bias, or a pair of a tensor and the axes that it varies along, as
            ``(s, "b d")``. They make another weight and another bias: beside a weight or a bias of the norm's own,
            PyTorch's operations compute these first, in float32.
        x_scale: what x is multiplied with before a residual is added, as layer scale: given as ``scale`` is. Its
            gradient takes one launch more.
        mask: torch.bool, given as ``scale`` is: False for elements that take no part.
        lengths: in the place of a mask, integers and their axes, of which the last is the one that they are lengths
            of: with ``(l, "b t")`` the first ``l[b]`` of t take part.
        activation: "relu", "leaky_relu" (0.01), "silu", "sigmoid", "tanh", "gelu", "gelu_tanh", "hardswish", an
            `Activation` of one's own, or None.
        offset: what the weight counts from: 1 for weights that are stored as their distance from 1.
        round_first: round to the input's dtype before multiplying by the weight, as Llama does.
        gate_first: the gate comes before the norm, as in Mamba 2.
        quantize: "float8_e4m3fn", "float8_e5m2", "int8" or None: rounded as PyTorch's cast rounds, and saturated. NaN
            is 0 among integers.
        quantize_scale: given as ``scale`` is; or "group", so that each group's largest absolute value becomes the
            largest number, 448, 57344 or 127. A scale that is made is float32, and broadcasts against the input.
        process_group: a ProcessGroup, or a DeviceMesh of one dimension: the axes in ``over`` are spread over these
            processes, and ``input`` is this one's part, of any size along them, none included. The result is its part
            of what the whole tensor gives, the same formula, and so is the input's gradient. A parameter's gradient is
            summed over the own part: complete where the parameter is split with the input, elsewhere one of the
            summands that data parallelism adds up. Every process makes the same calls, with the same sizes of the other
            axes. What surrounds the norm is computed by PyTorch's operations then. See docs/processes.md.
        sizes: of axes that the shape does not tell; of two starred words, the second's number of dimensions.
    Returns:
        The shape, dtype and memory format of input; with a residual, that and what was normalized.
    Raises:
        ValueError: axes that are no pattern; a name that is unknown, repeated or missing; a size that is missing; an
            activation that is not known.
        RuntimeError: input, sizes or parameters whose shapes do not agree; a parameter on another device; a gradient of
            what is quantized.
        TypeError: an argument of another type; a size of an axis that is not there.
        NotImplementedError: input is not floating point, or not strided; or with ``process_group`` something watches
            the call.
    """
    alone = scale[0] if type(scale) is tuple and scale else scale, shift[0] if type(shift) is tuple and shift else shift
    beside = (
        x_scale[0] if type(x_scale) is tuple and x_scale else x_scale,
        mask[0] if type(mask) is tuple and mask else mask,
    )
    every = (input, weight, bias, residual, *alone, *beside, skip, gate)
    if has_torch_function_variadic(*every) and overloaded(*every):
        options: dict[str, Any] = {"over": over, "affine": affine, "weight": weight, "bias": bias, "eps": eps}
        options |= {"center": center, "residual": residual, "scale": scale, "shift": shift, "skip": skip, "gate": gate}
        options |= {"activation": activation, "x_scale": x_scale, "mask": mask, "lengths": lengths}
        options |= {"quantize": quantize, "quantize_scale": quantize_scale}
        options |= {"offset": offset, "round_first": round_first, "gate_first": gate_first}
        options |= {"process_group": process_group, **sizes}
        return handle_torch_function(normalize, every, input, axes, **options)
    words = Words(axes, over, affine, center, tuple(sizes.items()))
    around: dict[str, Any] | None = None
    nothing = residual is scale is shift is skip is gate is x_scale is mask is lengths is None
    if not nothing or activation or offset or round_first or quantize or quantize_scale is not None:
        around = {"residual": residual, "scale": scale, "shift": shift, "skip": skip, "gate": gate}
        around |= {"activation": activation, "x_scale": x_scale, "mask": mask, "lengths": lengths}
        around |= {"offset": offset, "round_first": round_first, "gate_first": gate_first}
        around |= {"quantize": quantize, "quantize_scale": quantize_scale}
    return run("normalize", input, words, weight, bias, eps, None, around, process_group)


_LETTERS = tuple(f"d{i}" for i in range(64))


def of_dimensions(
    function: str, x: Tensor, dim: int | Sequence[int], normalized_shape: Sequence[int], centered: bool
) -> Words:
    """`Words` for statistics over some dimensions, along which the parameters vary, in their order."""
    given = (dim,) if isinstance(dim, int) else dim
    try:
        wanted, shape = [integer(d) for d in given], tuple(integer(size) for size in normalized_shape)
    except (Refused, TypeError):
        raise TypeError(
            f"{function}(): normalized_shape must be a sequence of ints and dim an int or several, not "
            f"{normalized_shape!r} and {dim!r}"
        ) from None
    for d in wanted:
        if not -x.dim() <= d < x.dim():
            raise IndexError(
                f"{function}(): dimension out of range (expected to be in range of [{-x.dim()}, {x.dim() - 1}], "
                f"but got {d})"
            )
    chosen = [d % x.dim() for d in wanted]
    if len({*chosen}) < len(chosen):
        raise RuntimeError(f"{function}(): a dimension appears multiple times in dim={dim!r}")
    if not chosen or tuple(x.shape[d] for d in chosen) != shape:
        raise RuntimeError(
            f"{function}(): normalized_shape={list(shape)} is not the size of an input of shape {tuple(x.shape)} "
            f"along dim={dim!r}"
        )
    listed = " ".join(_LETTERS[d] for d in chosen)
    return Words(" ".join(_LETTERS[: x.dim()]), listed, listed, centered)
