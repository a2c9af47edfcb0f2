"""A norm with what surrounds it, in one pass over memory forward and one backward.

Plain tensors come here, and by `normtriton.autograd.surrounded_operators` what `torch.compile` traces. Whatever else
watches or replaces tensors, and derivatives of gradients, are decomposed into the plain norm and PyTorch's own
operations (`decomposed`): exact, at their cost.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812  the name everyone knows it by

from ..planning.norms import Norm
from ..planning.schedule import Problem
from ..planning.stages import ALONE, SPREAD, Activation
from ..runtime import devices, launch
from ..runtime.compiling import statistics_dtype
from ..runtime.quantized import KINDS, codes, scale_of
from .composed import composed
from .derivatives import Axes
from .function import normalize, own, unwatched
from .passes import on_device

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from ..planning.stages import Stages
    from .call import Call

#: The tensors around a norm, in the order of the formula.
NAMES = ("residual", "skip", "gate", "x_scale", "mask")

ACTIVATION_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "": lambda z: z,
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "hardswish": F.hardswish,
}


def in_operations(activation: str | Activation) -> Callable[[Tensor], Tensor]:
    """An activation in PyTorch's operations.

    Raises:
        NotImplementedError: a caller's own has none.
    """
    if not isinstance(activation, Activation):
        return ACTIVATION_FUNCTIONS[activation]
    if activation.function is None:
        raise NotImplementedError(
            f"the kernels do not take this call, and Activation({activation.name}, ...) has no function of PyTorch's "
            "operations, its third argument"
        )
    return activation.function


def decomposed(
    plain: Callable[..., Tensor],
    spread: Callable[[Tensor], Tensor],
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    around: Mapping[str, Tensor],
    stages: Stages,
) -> Tensor | tuple[Tensor, Tensor]:
    """What `surround` computes, in PyTorch's operations.

    ``plain`` is the norm of (u, weight, bias), which minds a mask; ``spread`` makes a parameter broadcast against x.
    """
    given = before(x, weight, bias, around, stages)
    return after(plain(*given), given[0], spread, x, weight, bias, around, stages)


def before(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, around: Mapping[str, Tensor], stages: Stages
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """What `decomposed` hands to the norm alone: (u, weight, bias)."""
    in_operations(stages.activation)  # raises before anything is updated
    if "mask" in around and "residual" not in around:  # what takes no part may be NaN
        x = torch.where(around["mask"], x, 0.0)
    u = multiplied(x, around, stages)
    u = u + around["residual"] if "residual" in around else u
    if stages.round_first and weight is not None:
        return u, None, None
    return u, weight + stages.offset if weight is not None and stages.offset else weight, bias


def after(
    y: Tensor,
    u: Tensor,
    spread: Callable[[Tensor], Tensor],
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    around: Mapping[str, Tensor],
    stages: Stages,
) -> Tensor | tuple[Tensor, Tensor]:
    """What `decomposed` makes of the norm alone, y of u."""
    activate = in_operations(stages.activation)
    if stages.round_first and weight is not None:
        y = y.to(x.dtype) * spread(weight + stages.offset if stages.offset else weight)
        y = y if bias is None else y + spread(bias)
    dtype = y.dtype
    y = y * (1.0 + around["scale"]) if "scale" in around else y
    y = y + around["shift"] if "shift" in around else y
    y = y + around["skip"] if "skip" in around else y
    if not stages.gate_first:
        y = y * activate(around["gate"]) if "gate" in around else activate(y)
    y = torch.where(around["mask"], y, 0.0) if "mask" in around else y
    y = y.to(dtype)
    return (y, u) if "residual" in around else y


def multiplied(x: Tensor, around: Mapping[str, Tensor], stages: Stages) -> Tensor:
    """X with what it is multiplied with before the norm."""
    u = x * in_operations(stages.activation)(around["gate"]) if stages.gate_first else x
    return u * around["x_scale"] if "x_scale" in around else u


def norm_of(call: Call, mask: Tensor | None) -> Callable[..., Tensor]:
    """The norm alone of (u, weight, bias), in operations that can be differentiated; of what a mask lets through."""
    if mask is None:
        return lambda u, weight, bias: normalize(u, weight, bias, call)
    mean, var = call.statistics[:2] if call.use_running and call.statistics is not None else (None, None)

    def masked(u: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return composed(call.problem, u, weight, bias, mean, var, call.eps, mask).to(call.dtype or u.dtype)

    return masked


class Wanted(NamedTuple):
    """The gradients that a backward pass is to write: whether, or in which dtypes."""

    dx: bool
    weight_dtype: torch.dtype | None
    bias_dtype: torch.dtype | None
    skip_dtype: torch.dtype | None
    dgate: bool
    dresidual: bool
    x_scale_dtype: torch.dtype | None


class Passes(NamedTuple):
    """The two passes of a norm and what surrounds it.

    Attributes:
        forward: of (call, x, weight, bias, what surrounds it by name), giving (y, what was normalized, mean, rstd, how
            many elements of each group a mask let through).
        backward: of (call, dy, dtotal, what was kept, `Wanted`), giving (dx, dweight, dbias, dskip, dgate, dresidual,
            dx_scale); None for what is not wanted. Kept are what was normalized, weight, bias, mean and rstd or the
            statistics that were given, skip, gate, x before it was multiplied, x_scale, mask, and that number.
    """

    forward: Callable[..., tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]]
    backward: Callable[..., tuple[Tensor | None, ...]]


def run_forward(
    call: Call, x: Tensor, weight: Tensor | None, bias: Tensor | None, given: Mapping[str, Tensor | None]
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Launch the forward pass of plain tensors."""
    problem, eps, statistics, use_running, dtype = call
    around = expanded(x, given)
    if problem.stages.masked and not use_running:
        around["count"] = x.new_empty(problem.num_groups, dtype=statistics_dtype(x))
    total = x
    if "residual" in around:
        kind = torch.promote_types(x.dtype, around["residual"].dtype)
        total = around["total"] = torch.empty_like(x, dtype=kind)
    y, mean, rstd = launch.forward(problem, x, weight, bias, eps, statistics, use_running, dtype, None, around)
    return y, total, mean, rstd, around.get("count")


def expanded(x: Tensor, given: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """What there is of the tensors around x, as launches take it: in its shape, and truth values as bytes."""
    around = {name: t for name, t in given.items() if t is not None}
    for name in SPREAD:
        if name in around:
            t = around[name].expand(x.shape)
            around[name] = t.view(torch.uint8) if name == "mask" else t
    return around


def scale_gradient(
    dtotal: Tensor,
    x: Tensor,
    gate: Tensor | None,
    mask: Tensor | None,
    x_scale: Tensor,
    dtype: torch.dtype,
    stages: Stages,
) -> Tensor:
    """The gradient of x_scale, which broadcasts against x: what is multiplied with it, times the gradient of the sum.

    That is summed as a weight's gradient is, of a norm whose statistics are given: 0 and 1. What a mask leaves out may
    be NaN, and is left out here too.
    """
    varies = [i for i, size in enumerate(x_scale.shape) if size != 1] or [0]
    alike = [i for i in range(x.dim()) if i not in varies]
    axes, over, affine = (" ".join(f"d{i}" for i in dims) for dims in (range(x.dim()), alike, varies))
    before = ALONE._replace(masked=mask is not None)
    if stages.gate_first:
        before = before._replace(activation=stages.activation, gate_first=True)
    problem = Problem(Norm(axes, over, affine, centered=False), tuple(x.shape), (), before)
    one = x.new_ones((), dtype=statistics_dtype(x)).expand(prod(problem.parameter_shape))
    around = expanded(x, {"gate": gate if stages.gate_first else None, "mask": mask})
    wants = False, one.dtype if x_scale.numel() == 1 else dtype, None
    statistics = one, one, 0, 0, (), 0.0
    _, found, _ = launch.backward(problem, dtotal, x, None, None, None, statistics, 0.0, wants, None, around)
    assert found is not None
    return (found.sum().to(dtype) if x_scale.numel() == 1 else found).reshape(x_scale.shape)


def run_backward(
    call: Call, dy: Tensor, dtotal: Tensor | None, kept: Sequence[Any], wants: Wanted
) -> tuple[Tensor | None, ...]:
    """Launch the backward pass of plain tensors."""
    total, weight, bias, mean, rstd, skip, gate, before, x_scale, mask, count = kept
    problem, eps, statistics, use_running, _dtype = call
    if use_running:
        assert statistics is not None
        statistics, mean, rstd = (mean, rstd, *statistics[2:]), None, None
    else:
        statistics = None
    given = {"skip": skip, "gate": gate, "before": before, "dtotal": dtotal, "bias": bias}
    around = expanded(total, given | {"x_scale": x_scale, "mask": mask, "count": count})
    if wants.skip_dtype is not None:
        around["dskip"] = torch.empty_like(total, dtype=wants.skip_dtype)
    if wants.dgate:
        around["dgate"] = torch.empty_like(total, dtype=gate.dtype)
    if wants.dresidual:
        around["dresidual"] = torch.empty_like(total)
    gradients = launch.backward(problem, dy, total, weight, mean, rstd, statistics, eps, wants[:3], None, around)
    dx_scale = None
    if wants.x_scale_dtype is not None:
        x = total if before is None else before
        left_out = mask if dtotal is None and before is None else None
        dtype, stages = wants.x_scale_dtype, problem.stages
        dx_scale = scale_gradient(around["dresidual"], x, gate, left_out, x_scale, dtype, stages)
    return *gradients, *(around.get(name) for name in ("dskip", "dgate", "dresidual")), dx_scale


KERNELS = Passes(run_forward, run_backward)


class Surrounded(torch.autograd.Function):
    """Keeps what was normalized, the parameters, mean and rstd, and of the tensors around it those a gradient needs."""

    @staticmethod
    def forward(
        ctx: Any,
        call: Call,
        passes: Passes,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        skip: Tensor | None,
        gate: Tensor | None,
        x_scale: Tensor | None,
        mask: Tensor | None,
    ) -> Any:
        given = dict(zip(NAMES, (residual, skip, gate, x_scale, mask), strict=True))
        y, total, mean, rstd, count = passes.forward(call, x, weight, bias, given)
        stages = call.problem.stages
        again = stages.computes_again(gate is not None)
        if call.use_running:
            assert call.statistics is not None
            mean, rstd, *_ = call.statistics
        ctx.set_materialize_grads(False)
        ctx.again, ctx.call, ctx.passes = again, call, passes
        ctx.dtypes = [None if t is None else t.dtype for t in (x, weight, bias, residual, skip, x_scale)]
        needs = ctx.needs_input_grad
        ctx.multiplies = stages.gate_first or x_scale is not None
        if residual is not None and not (needs[2] or needs[5] or (stages.gate_first and needs[7]) or needs[8]):
            ctx.mark_non_differentiable(total)
        before = x if ctx.multiplies and residual is not None else None
        kept = (bias if again else None, mean, rstd, skip if again else None)
        ctx.save_for_backward(total, weight, *kept, gate, before, x_scale, mask, count)
        return y if residual is None else (y, total)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dtotal: Tensor | None = None) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad[2:]
        if dy is None and dtotal is not None and ctx.multiplies:
            dy = torch.zeros_like(dtotal)
        if dy is None:
            found: tuple[Tensor | None, ...] = (dtotal, None, None, None, None, dtotal, None)
        elif torch.is_grad_enabled() or (ctx.passes is KERNELS and not unwatched(dy, dtotal)):
            found = _backward_decomposed(ctx, dy, dtotal, needs)
        else:
            found = _backward(ctx, dy, dtotal, needs)
        dx, dweight, dbias, dskip, dgate, dresidual, dx_scale = found
        x_dtype, _, _, residual_dtype, skip_dtype, _ = ctx.dtypes
        return (
            None,
            None,
            _cast(dx, x_dtype, needs[0]),
            dweight,
            dbias,
            _cast(dresidual, residual_dtype, needs[3]),
            _cast(dskip, skip_dtype, needs[4]),
            dgate if needs[5] else None,
            dx_scale if needs[6] else None,
            None,
        )


def _cast(gradient: Tensor | None, dtype: torch.dtype | None, wanted: bool) -> Tensor | None:
    """A gradient that several tensors share, as one of them takes it."""
    if gradient is None or dtype is None or not wanted:
        return None
    return gradient if gradient.dtype == dtype else gradient.to(dtype)


def _backward(ctx: Any, dy: Tensor, dtotal: Tensor | None, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """(dx, dweight, dbias, dskip, dgate, dresidual, dx_scale) by the kernels; what equals another is that one."""
    first, (_, weight_dtype, bias_dtype, _, skip_dtype, x_scale_dtype) = ctx.call.problem.stages.gate_first, ctx.dtypes
    kept = ctx.saved_tensors
    before = kept[7]
    wants = Wanted(
        needs[0] or needs[3] or (first and needs[5]) or needs[6],
        weight_dtype if needs[1] else None,
        bias_dtype if needs[2] else None,
        skip_dtype if ctx.again and needs[4] else None,
        needs[5],
        needs[6] or (before is not None and needs[3]),
        x_scale_dtype if needs[6] else None,
    )
    dx, dweight, dbias, dskip, dgate, dresidual, dx_scale = ctx.passes.backward(ctx.call, dy, dtotal, kept, wants)
    if wants.skip_dtype is None and needs[4]:
        mask = kept[9]
        dskip = dy if mask is None else torch.where(mask, dy, 0.0)
    return dx, dweight, dbias, dskip, dgate, dresidual if wants.dresidual else dx, dx_scale


def _backward_decomposed(
    ctx: Any, dy: Tensor, dtotal: Tensor | None, needs: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """The same as functions that can be differentiated: of what was normalized, since it was kept."""
    total, weight, bias, _mean, _rstd, skip, gate, before, x_scale, mask, _count = ctx.saved_tensors
    call = ctx.call._replace(problem=ctx.call.problem._replace(stages=ALONE))
    if not call.use_running:
        call = call._replace(statistics=None)
    axes, stages = Axes(call.problem), ctx.call.problem.stages._replace(round_first=False)
    _, _, bias_dtype, _, skip_dtype, _ = ctx.dtypes
    with torch.enable_grad():
        # gradients of sums follow whatever was added, so that nothing of it was kept
        if bias is None and bias_dtype is not None:
            bias = torch.zeros(call.problem.parameter_shape, dtype=bias_dtype, device=dy.device, requires_grad=True)
        if skip is None and skip_dtype is not None:
            skip = torch.zeros_like(total, dtype=skip_dtype, requires_grad=True)
        summed = before is not None
        through, first = stages, summed and stages.gate_first
        if first:  # of the sum, which was kept; what x was multiplied with follows below
            stages = stages._replace(activation="", gate_first=False)
        # aliases: the way from the sum to where it comes from leads to weight and gate, too, and by this node
        given = total, weight, bias, skip, None if first else gate, None if summed else x_scale
        u, w, b, s, g, f = aliases = [None if t is None else t.view_as(t) for t in given]
        around = {"skip": s, "gate": g, "x_scale": f, "mask": mask}
        there = {name: t for name, t in around.items() if t is not None}
        assert u is not None
        y = decomposed(norm_of(call, mask), axes.broadcast, u, w, b, there, stages)
        wanted = needs[0] or needs[3] or needs[6] or (first and needs[5]), *needs[1:3], *needs[4:7]
        inputs = [t if want else None for want, t in zip(wanted, aliases, strict=True)]
        leaves = [t for t in inputs if t is not None]
        found = iter(torch.autograd.grad(y, leaves, dy, create_graph=True))
        gradients = [None if t is None else next(found) for t in inputs]
        if dtotal is not None and gradients[0] is not None:
            gradients[0] = gradients[0] + dtotal
        dresidual = gradients[0]
        if summed and dresidual is not None:
            factors = {"gate": gate} if first else {}
            factors |= {} if x_scale is None else {"x_scale": x_scale}
            product = multiplied(before, factors, through)
            sources = {name: t for name, t in {"x": before, **factors}.items() if t.requires_grad}
            of: dict[str, Tensor] = {}
            if sources:
                along = dresidual.to(product.dtype)
                parts = torch.autograd.grad(product, [*sources.values()], along, create_graph=True)
                of = dict(zip(sources, parts, strict=True))
            gradients[0] = of.get("x")
            gradients[4:] = of.get("gate") if first else gradients[4], of.get("x_scale")
    dx, dweight, dbias, dskip, dgate, dx_scale = gradients
    return dx, dweight, dbias, dskip, dgate, dresidual, dx_scale


def of_groups(problem: Problem, statistic: Tensor) -> Tensor:
    """A number for each group, as it broadcasts against x."""
    return Axes(problem).beside(Axes(problem).groups(statistic))


def quantized(y: Tensor, problem: Problem, q_scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """(q, scale) of a result, in PyTorch's operations; without a scale by each group's largest value."""
    kind, axes = problem.stages.quantize, Axes(problem)
    if q_scale is None:
        view = y.reshape(axes.sizes).abs()
        largest = view.amax(axes.over) if axes.count else view.sum(axes.over)  # of no element 0
        q_scale = of_groups(problem, scale_of(largest, kind).reshape(-1))
    return codes(y, q_scale, kind), q_scale


def quantize(
    call: Call, x: Tensor, weight: Tensor | None, bias: Tensor | None, around: Mapping[str, Tensor]
) -> tuple[Tensor, ...]:
    """`surround` with a quantized result, which has no gradient: (q, scale), and what was normalized of a sum.

    Where each group's own scale is wanted and no program holds a group, the result is stored in the dtype of the
    arithmetic, and PyTorch's operations quantize it.
    """
    problem = call.problem
    kind, _ = KINDS[problem.stages.quantize]
    x, weight, bias = (t if t is None else own(t) for t in (x, weight, bias))  # type: ignore[assignment]  # x is there
    given = {name: own(t) for name, t in around.items()}
    q_scale = given.get("q_scale")
    if q_scale is None:
        room = x.new_empty if x.numel() else x.new_ones  # of no element nothing is launched
        given["own_scale"] = room(problem.num_groups, dtype=torch.float32)
    with torch.no_grad(), on_device(x):
        try:
            codes_, total, *_ = run_forward(call._replace(dtype=torch.uint8), x, weight, bias, given)
            q = codes_.view(kind)
            scale = of_groups(problem, given["own_scale"]) if q_scale is None else q_scale
        except launch.NotOnChip:
            del given["own_scale"]
            plain = problem._replace(stages=problem.stages._replace(quantize=""))
            wide = call._replace(problem=plain, dtype=statistics_dtype(x))
            y, total, *_ = run_forward(wide, x, weight, bias, given)
            q, scale = quantized(y, problem, None)
    return (q, scale, total) if "residual" in around else (q, scale)


#: `Surrounded.apply` without its own look for transforms, of which there are none.
apply: Callable[..., Any] = super(torch.autograd.Function, Surrounded).apply


def surround(
    call: Call,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    around: Mapping[str, Tensor],
) -> Tensor | tuple[Tensor, Tensor]:
    """Normalize plain tensors with what surrounds the norm, as ``call`` says; (y, u) if there is a residual."""
    x, others = own(x), [None if t is None else own(t) for t in (weight, bias, *map(around.get, NAMES))]
    if devices.elsewhere(x):
        with torch.cuda.device(x.get_device()):
            return apply(call, KERNELS, x, *others)  # type: ignore[no-any-return]  # autograd has no types
    return apply(call, KERNELS, x, *others)  # type: ignore[no-any-return]
