"""A modulation, z * (1 + scale) + shift after the linear map: multiplied into the weight and the bias.

Of z = x̂ * (offset + weight) + bias it makes another linear map, whose parameters vary along more axes. So kernels know
nothing of it. Without a weight and a bias, as in adaLN, ``scale`` and ``shift`` take their places as they are; beside
them the products are computed in float32 by PyTorch's operations, which also take the gradients apart.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch.compiler import is_compiling

from .autograd.derivatives import Axes
from .checks import Refused, check_tensor
from .planning.norms import described, name_axes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from .autograd.call import Call
    from .planning.schedule import Problem

#: The tensors of a modulation.
NAMES = ("scale", "shift")


def broadcastable(function: str, name: str, t: Any, x: Tensor, spread: Callable[[Tensor], Tensor]) -> Tensor:
    """A tensor of a modulation with a dimension for each of x's, of size 1 where it does not vary.

    It broadcasts against x, or has the shape of the parameters, which ``spread`` makes broadcast against x.

    Raises:
        RuntimeError: it does neither; or it is no such tensor, see `check_tensor`.
        TypeError: it is no tensor.
    """
    check_tensor(function, name, t, x)
    view: Tensor = t
    if t.dim() != x.dim():
        try:
            view = spread(t)
        except RuntimeError:
            view = t
    if view.dim() <= x.dim():
        view = view.reshape([1] * (x.dim() - view.dim()) + [*view.shape])
        if all(size in (1, whole) for size, whole in zip(view.shape, x.shape, strict=True)):
            return view
    raise RuntimeError(
        f"{function}(): {name} of shape {tuple(t.shape)} does not broadcast against the input of shape "
        f"{tuple(x.shape)}, nor has it the shape of weight and bias"
    )


def along(problem: Problem, parameter: Tensor) -> Tensor:
    """A parameter of a problem with a dimension for each of x's, of size 1 where it does not vary."""
    axes = Axes(problem)
    return axes.beside(axes.spread(parameter))


def widened(problem: Problem, varies: tuple[bool, ...]) -> Problem:
    """The problem with parameters that vary along these dimensions too, each axis by a name of its own."""
    dims = name_axes(problem.norm.axes, problem.shape, dict(problem.sizes))
    named = [
        [(f"d{i}_{j}", (part.name, part.ordinal), part.size) for j, part in enumerate(dim)]
        for i, dim in enumerate(dims)
    ]
    words = (" ".join(name for name, _, _ in dim) for dim in named)
    axes = " ".join(f"({word})" if " " in word else word for word in words)
    over = [name for dim in named for name, key, _ in dim if key in problem.over]
    affine = [
        name for dim, too in zip(named, varies, strict=True) for name, key, _ in dim if too or key in problem.affine
    ]
    sizes = tuple((name, size) for dim in named if len(dim) > 1 for name, _, size in dim)
    norm = described(axes, " ".join(over), " ".join(affine), problem.norm.centered)
    return problem._replace(norm=norm, sizes=sizes)


_cached_widened = lru_cache(maxsize=4096)(widened)


def _split(problem: Problem, t: Tensor) -> Tensor:
    """A view with a dimension for each axis, of one with a dimension for each of x's."""
    sizes: list[int] = []
    for size, dim in zip(t.shape, name_axes(problem.norm.axes, problem.shape, dict(problem.sizes)), strict=True):
        sizes += [1] * len(dim) if size == 1 else [part.size for part in dim]
    return t.reshape(sizes)


def _channels(problem: Problem) -> list[int]:
    """The axes of running statistics, by their numbers."""
    return [i for i, key in enumerate(problem.axes) if key in problem.kept and key in problem.affine]


def _exact(t: Tensor) -> torch.dtype:
    """The dtype that products are computed in. `torch.promote_types` says the same, but an exporter records it."""
    return torch.float64 if t.dtype == torch.float64 else torch.float32


def modulated(
    call: Call, weight: Tensor | None, bias: Tensor | None, modulation: Mapping[str, Tensor]
) -> tuple[Call, Tensor | None, Tensor | None]:
    """A call with its modulation in the parameters, in the shape that its problem then has.

    Raises:
        Refused: running statistics, one for each channel, would vary along more axes.
    """
    if not modulation:
        return call, weight, bias
    scale, shift = map(modulation.get, NAMES)
    problem, stages = call.problem, call.problem.stages
    sizes = [[1 if t is None else t.shape[i] for t in (scale, shift)] for i in range(len(problem.shape))]
    wide = (widened if is_compiling() else _cached_widened)(
        problem, tuple(any(size != 1 for size in pair) for pair in sizes)
    )
    if call.statistics is not None and _channels(wide) != _channels(problem):
        raise Refused
    own = Axes(problem)
    w, b = (None if p is None else own.spread(p) for p in (weight, bias))
    s, t = (None if p is None else _split(problem, p) for p in (scale, shift))
    if s is not None:
        kind = _exact(s)
        if b is not None:
            b = b.to(kind) * (1.0 + s)
        if w is None:
            w, offset = s, 1.0
        else:
            w, offset = (stages.offset + w.to(kind)) * (1.0 + s), 0.0
        stages = stages._replace(offset=offset)
    b = t if b is None else b if t is None else b.to(_exact(t)) + t
    varying = {*wide.affine}
    room = [size if key in varying else 1 for key, size in wide.axes.items()]
    w, b = (None if p is None else p.expand(room).reshape(wide.parameter_shape) for p in (w, b))
    return call._replace(problem=wide._replace(stages=stages)), w, b
