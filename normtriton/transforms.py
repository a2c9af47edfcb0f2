"""The norms under `torch.func` and forward-mode derivatives, and derivatives of derivatives.

The two passes as autograd functions that every transform knows how to go through: `vmap` adds an axis to the norm's
description, so that the kernels take a batch of calls as one; the derivatives are `normtriton.derivatives`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from . import operators
from .derivatives import Axes, Passes, normalize_backward, normalize_jvp, pull_back_backward, pull_back_jvp, wanted
from .passes import rule_of, run_normalize, run_pull_back, vmap_normalize, vmap_pull_back

if TYPE_CHECKING:
    from torch import Tensor

    from .autograd import Call
    from .derivatives import Wants


class Normalize(torch.autograd.Function):
    """(y, mean, rstd) of (x, weight, bias, given_mean, given_var, rule); y and rstd can be differentiated."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
        return run_normalize(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, weight, bias, *given, rule = inputs
        _y, mean, rstd = output
        ctx.set_materialize_grads(False)
        ctx.rule = rule
        ctx.dtypes = (None if weight is None else weight.dtype, None if bias is None else bias.dtype)
        ctx.mark_non_differentiable(*((mean, rstd) if rule.constant else (mean,)))
        saved = (x, weight, *(given if rule.constant else (mean, rstd)))
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, _dmean: Any, drstd: Tensor | None) -> tuple[Any, ...]:
        rule = replace(ctx.rule, wants=wanted(ctx.needs_input_grad, ctx.dtypes))
        return *normalize_backward(PASSES, rule, ctx.saved_tensors, dy, drstd), None, None, None

    @staticmethod
    def jvp(ctx: Any, dx: Any, dweight: Any, dbias: Any, *_given: Any) -> tuple[Any, ...]:
        change, rstd_change = normalize_jvp(PASSES, ctx.rule, ctx.saved_tensors, dx, dweight, dbias)
        return change, None, rstd_change

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
        return vmap_normalize(Normalize.apply, info.batch_size, in_dims, *args)


class PullBack(torch.autograd.Function):
    """(dx, dweight, dbias) of (dy, x, weight, mean, rstd, rule)."""

    @staticmethod
    def of(
        dy: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor | None, rstd: Tensor | None, call: Call, wants: Wants
    ) -> tuple[Tensor | None, ...]:
        """The gradients that are wanted, of `normtriton.autograd.Normalize`, with a graph of their own."""
        gradients = PASSES.pull_back(dy, x, weight, mean, rstd, rule_of(call, wants))
        return tuple(t if w not in (False, None) else None for t, w in zip(gradients, wants, strict=True))

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
        return run_pull_back(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *saved, rule = inputs
        ctx.set_materialize_grads(False)
        ctx.rule = rule
        ctx.mark_non_differentiable(*(t for t, w in zip(output, rule.wants, strict=True) if w in (False, None)))
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    @staticmethod
    def backward(ctx: Any, v: Any, vweight: Any, vbias: Any) -> tuple[Any, ...]:
        needs = ctx.needs_input_grad[:3]
        return *pull_back_backward(PASSES, ctx.rule, ctx.saved_tensors, v, vweight, vbias, needs), None, None, None

    @staticmethod
    def jvp(ctx: Any, ddy: Any, dx: Any, dweight: Any, *_statistics: Any) -> tuple[Any, ...]:
        return pull_back_jvp(PASSES, ctx.rule, ctx.saved_tensors, ddy, dx, dweight)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
        return vmap_pull_back(PullBack.apply, info.batch_size, in_dims, *args)


_VMAP_MODE = torch._C._dispatch_key_parse("VmapMode")
_is_included = torch._C._dispatch_tls_is_dispatch_key_included


def old_vmap() -> bool:
    """Whether the vmap before `torch.func`'s is at work: autograd's ``is_grads_batched`` and gradcheck use it.

    It hides from autograd functions what it batches. The operators it calls for one after the other.
    """
    return _is_included(_VMAP_MODE)


def _normalize(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    return (operators.PASSES.normalize if old_vmap() else Normalize.apply)(*args)


def _pull_back(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    return (operators.PASSES.pull_back if old_vmap() else PullBack.apply)(*args)


PASSES = Passes(_normalize, _pull_back)


def update_running(x: Tensor, call: Call) -> None:
    """Running statistics as the kernel updates them, by operations that every transform knows."""
    running = call.running
    assert running is not None
    axes = Axes(call.problem)
    view = axes.split(x.detach())
    mean, var = view.mean(axes.over, keepdim=True), view.var(axes.over, correction=1, keepdim=True)
    momentum = sum(running.momentum)
    channels = [i for i in axes.shared if i not in axes.over]  # groups that share a parameter are averaged
    for target, new in ((running.mean, mean), (running.var, var)):
        new = (new.mean(channels) if channels else new).reshape(target.shape)  # noqa: PLW2901  the same statistic
        # one write, so that nothing is changed if a transform refuses it
        target.copy_(target.to(new.dtype) * (1.0 - momentum) + new * momentum)


def normalize(x: Tensor, weight: Tensor | None, bias: Tensor | None, call: Call) -> Tensor:
    """`normtriton.autograd.normalize` under transforms."""
    given = (call.running.mean, call.running.var) if call.use_running and call.running else (None, None)
    y: Tensor = Normalize.apply(x, weight, bias, *given, rule_of(call))[0]  # type: ignore[no-untyped-call]
    if x.numel() and call.running is not None and not call.use_running:
        update_running(x, call)
    return y
