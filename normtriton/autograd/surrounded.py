"""A norm with what surrounds it, in one pass over memory forward and one backward.

Plain tensors come here, and by `normtriton.autograd.surrounded_operators` what `torch.compile` traces. Whatever else
watches or replaces tensors, and derivatives of gradients, are decomposed into the plain norm and PyTorch's own
operations (`decomposed`): exact, at their cost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812  the name everyone knows it by

from ..planning.stages import ALONE
from ..runtime import devices, launch
from .derivatives import Axes
from .function import normalize, own, unwatched

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from ..planning.stages import Stages
    from .call import Call

#: The tensors around a norm, in the order of the formula.
NAMES = ("residual", "skip", "gate")

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

    ``plain`` is the norm of (u, weight, bias), ``spread`` makes a parameter broadcast against x.
    """
    activate = ACTIVATION_FUNCTIONS[stages.activation]
    u = x * activate(around["gate"]) if stages.gate_first else x
    u = u + around["residual"] if "residual" in around else u
    if weight is not None and stages.offset:
        weight = weight + stages.offset
    if stages.round_first and weight is not None:
        y = plain(u, None, None).to(x.dtype) * spread(weight)
        y = y if bias is None else y + spread(bias)
    else:
        y = plain(u, weight, bias)
    dtype = y.dtype
    y = y * (1.0 + around["scale"]) if "scale" in around else y
    y = y + around["shift"] if "shift" in around else y
    y = y + around["skip"] if "skip" in around else y
    if not stages.gate_first:
        y = y * activate(around["gate"]) if "gate" in around else activate(y)
    y = y.to(dtype)
    return (y, u) if "residual" in around else y


class Wanted(NamedTuple):
    """The gradients that a backward pass is to write: whether, or in which dtypes."""

    dx: bool
    weight_dtype: torch.dtype | None
    bias_dtype: torch.dtype | None
    skip_dtype: torch.dtype | None
    dgate: bool
    dresidual: bool


class Passes(NamedTuple):
    """The two passes of a norm and what surrounds it.

    Attributes:
        forward: of (call, x, weight, bias, what surrounds it by name), giving (y, what was normalized, mean, rstd).
        backward: of (call, dy, dtotal, what was kept, `Wanted`), giving (dx, dweight, dbias, dskip, dgate, dresidual);
            None for what is not wanted. Kept are what was normalized, weight, bias, mean and rstd or the statistics
            that were given, skip, gate, and x before a gate.
    """

    forward: Callable[..., tuple[Tensor, Tensor, Tensor | None, Tensor | None]]
    backward: Callable[..., tuple[Tensor | None, ...]]


def run_forward(
    call: Call, x: Tensor, weight: Tensor | None, bias: Tensor | None, given: Mapping[str, Tensor | None]
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Launch the forward pass of plain tensors."""
    problem, eps, statistics, use_running, dtype = call
    around = {name: t for name, t in given.items() if t is not None}
    total = x
    if "residual" in around:
        kind = torch.promote_types(x.dtype, around["residual"].dtype)
        total = around["total"] = torch.empty_like(x, dtype=kind)
    y, mean, rstd = launch.forward(problem, x, weight, bias, eps, statistics, use_running, dtype, None, around)
    return y, total, mean, rstd


def run_backward(
    call: Call, dy: Tensor, dtotal: Tensor | None, kept: Sequence[Any], wants: Wanted
) -> tuple[Tensor | None, ...]:
    """Launch the backward pass of plain tensors."""
    total, weight, bias, mean, rstd, skip, gate, before = kept
    problem, eps, statistics, use_running, _dtype = call
    if use_running:
        assert statistics is not None
        statistics, mean, rstd = (mean, rstd, *statistics[2:]), None, None
    else:
        statistics = None
    given = {"skip": skip, "gate": gate, "before": before, "dtotal": dtotal, "bias": bias}
    around = {name: t for name, t in given.items() if t is not None}
    if wants.skip_dtype is not None:
        around["dskip"] = torch.empty_like(total, dtype=wants.skip_dtype)
    if wants.dgate:
        around["dgate"] = torch.empty_like(total, dtype=gate.dtype)
    if wants.dresidual:
        around["dresidual"] = torch.empty_like(total)
    gradients = launch.backward(problem, dy, total, weight, mean, rstd, statistics, eps, wants[:3], None, around)
    return *gradients, *(around.get(name) for name in ("dskip", "dgate", "dresidual"))


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
    ) -> Any:
        given = {"residual": residual, "skip": skip, "gate": gate}
        y, total, mean, rstd = passes.forward(call, x, weight, bias, given)
        stages = call.problem.stages
        again = stages.computes_again(gate is not None)
        if call.use_running:
            assert call.statistics is not None
            mean, rstd, *_ = call.statistics
        ctx.set_materialize_grads(False)
        ctx.again, ctx.call, ctx.passes = again, call, passes
        ctx.dtypes = [None if t is None else t.dtype for t in (x, weight, bias, residual, skip)]
        needs = ctx.needs_input_grad
        if residual is not None and not (needs[2] or needs[5] or (stages.gate_first and needs[7])):
            ctx.mark_non_differentiable(total)
        before = x if stages.gate_first and residual is not None else None
        kept = (bias if again else None, mean, rstd, skip if again else None)
        ctx.save_for_backward(total, weight, *kept, gate, before)
        return y if residual is None else (y, total)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dtotal: Tensor | None = None) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad[2:]
        if dy is None and dtotal is not None and ctx.call.problem.stages.gate_first:
            dy = torch.zeros_like(dtotal)
        if dy is None:
            found: tuple[Tensor | None, ...] = (dtotal, None, None, None, None, dtotal)
        elif torch.is_grad_enabled() or (ctx.passes is KERNELS and not unwatched(dy, dtotal)):
            found = _backward_decomposed(ctx, dy, dtotal, needs)
        else:
            found = _backward(ctx, dy, dtotal, needs)
        dx, dweight, dbias, dskip, dgate, dresidual = found
        x_dtype, _, _, residual_dtype, skip_dtype = ctx.dtypes
        return (
            None,
            None,
            _cast(dx, x_dtype, needs[0]),
            dweight,
            dbias,
            _cast(dresidual, residual_dtype, needs[3]),
            _cast(dskip, skip_dtype, needs[4]),
            dgate if needs[5] else None,
        )


def _cast(gradient: Tensor | None, dtype: torch.dtype | None, wanted: bool) -> Tensor | None:
    """A gradient that several tensors share, as one of them takes it."""
    if gradient is None or dtype is None or not wanted:
        return None
    return gradient if gradient.dtype == dtype else gradient.to(dtype)


def _backward(ctx: Any, dy: Tensor, dtotal: Tensor | None, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """(dx, dweight, dbias, dskip, dgate, dresidual) by the kernels; what is the same as another is that one."""
    first, (_, weight_dtype, bias_dtype, _, skip_dtype) = ctx.call.problem.stages.gate_first, ctx.dtypes
    kept = ctx.saved_tensors
    before = kept[-1]
    wants = Wanted(
        needs[0] or needs[3] or (first and needs[5]),
        weight_dtype if needs[1] else None,
        bias_dtype if needs[2] else None,
        skip_dtype if ctx.again and needs[4] else None,
        needs[5],
        before is not None and needs[3],
    )
    dx, dweight, dbias, dskip, dgate, dresidual = ctx.passes.backward(ctx.call, dy, dtotal, kept, wants)
    dskip = dy if wants.skip_dtype is None else dskip
    return dx, dweight, dbias, dskip, dgate, dresidual if wants.dresidual else dx


def _backward_decomposed(
    ctx: Any, dy: Tensor, dtotal: Tensor | None, needs: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """The same as functions that can be differentiated: of what was normalized, since it was kept."""
    total, weight, bias, _mean, _rstd, skip, gate, before = ctx.saved_tensors
    call = ctx.call._replace(problem=ctx.call.problem._replace(stages=ALONE))
    if not call.use_running:
        call = call._replace(statistics=None)
    axes, stages = Axes(call.problem), ctx.call.problem.stages._replace(round_first=False)
    _, _, bias_dtype, _, skip_dtype = ctx.dtypes
    with torch.enable_grad():
        # gradients of sums follow whatever was added, so that nothing of it was kept
        if bias is None and bias_dtype is not None:
            bias = torch.zeros(call.problem.parameter_shape, dtype=bias_dtype, device=dy.device, requires_grad=True)
        if skip is None and skip_dtype is not None:
            skip = torch.zeros_like(total, dtype=skip_dtype, requires_grad=True)
        first = before is not None
        if first:  # of the sum, which was kept; the gate follows below
            through, stages = stages, stages._replace(activation="", gate_first=False)
        # aliases: the way from the sum to where it comes from leads to weight and gate, too, and by this node
        given = total, weight, bias, skip, None if first else gate
        u, w, b, s, g = aliases = [None if t is None else t.view_as(t) for t in given]
        around = {name: t for name, t in (("skip", s), ("gate", g)) if t is not None}
        assert u is not None
        y = decomposed(lambda u, w, b: normalize(u, w, b, call), axes.broadcast, u, w, b, around, stages)
        wanted = needs[0] or needs[3] or (first and needs[5]), *needs[1:3], *needs[4:]
        inputs = [t if want else None for want, t in zip(wanted, aliases, strict=True)]
        there = [t for t in inputs if t is not None]
        found = iter(torch.autograd.grad(y, there, dy, create_graph=True))
        gradients = [None if t is None else next(found) for t in inputs]
        if dtotal is not None and gradients[0] is not None:
            gradients[0] = gradients[0] + dtotal
        dresidual = gradients[0]
        if first and dresidual is not None:
            factor = ACTIVATION_FUNCTIONS[through.activation](gate)
            gradients[0] = dresidual * factor
            if needs[5]:
                (gradients[4],) = torch.autograd.grad(
                    factor, gate, (dresidual * before).to(gate.dtype), create_graph=True
                )
    return *gradients, dresidual


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
