"""The one differentiable operation behind every norm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from . import launch

if TYPE_CHECKING:
    from torch import Tensor

    from .launch import Running
    from .schedule import Problem


class Call(NamedTuple):
    """One call of a norm, checked: what `normalize` needs besides tensors that may want a gradient."""

    problem: Problem
    eps: tuple[float, float]
    running: Running | None = None
    use_running: bool = False


class Normalize(torch.autograd.Function):
    """Keeps x, weight, mean and rstd for the backward pass, and nothing else."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, call: Call) -> Tensor:
        y, mean, rstd = launch.forward(call.problem, x, weight, bias, call.eps, call.running, call.use_running)
        ctx.call = call
        ctx.weight_dtype = None if weight is None else weight.dtype
        ctx.bias_dtype = None if bias is None else bias.dtype
        if call.use_running:
            assert call.running is not None
            ctx.save_for_backward(x, weight, call.running.mean, call.running.var)
        else:
            ctx.save_for_backward(x, weight, mean, rstd)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        # grad mode is on in a backward pass whose own graph is wanted
        return _refusing_a_graph(ctx, dy) if torch.is_grad_enabled() else _gradients(ctx, dy)


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, mean, rstd = ctx.saved_tensors
    wants_dx, wants_dweight, wants_dbias, _ = ctx.needs_input_grad
    call = ctx.call
    running = None
    if call.use_running:
        running = call.running._replace(mean=mean, var=rstd)
        mean = rstd = None
    wants = (wants_dx, ctx.weight_dtype if wants_dweight else None, ctx.bias_dtype if wants_dbias else None)
    return *launch.backward(call.problem, dy, x, weight, mean, rstd, running, call.eps, wants), None


#: As `_gradients`, but the results raise if they are differentiated.
_refusing_a_graph = once_differentiable(_gradients)


def normalize(x: Tensor, weight: Tensor | None, bias: Tensor | None, call: Call) -> Tensor:
    """Normalize x as ``call`` says. The gradient's device is autograd's care."""
    if launch.elsewhere(x):
        with torch.cuda.device(x.get_device()):
            return Normalize.apply(x, weight, bias, call)  # type: ignore[no-any-return, no-untyped-call]  # no types
    return Normalize.apply(x, weight, bias, call)  # type: ignore[no-any-return, no-untyped-call]  # apply has no types
