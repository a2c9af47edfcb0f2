"""The norms as operators of the dispatcher, `torch.ops.normtriton.*`: what compilers, exporters and modes see.

One operator a direction, told which norm by its axes, as `normtriton.norms.Norm` describes it, so that one they have
not heard of needs nothing here. They have shape rules (fake kernels), derivatives of any order and batching rules.
Plain tensors don't come this way: an operator registered from Python that does nothing took 16 µs of the host, an
autograd function 5 (torch 2.13.0, one core of a shared machine).
"""

from __future__ import annotations

from collections.abc import Sequence  # noqa: TC003  read at run time: the operators' schemas follow from annotations
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op, register_autograd, register_fake, register_vmap

from . import launch
from .derivatives import Passes, Rule, normalize_backward, pull_back_backward, wanted
from .launch import exact_pair, statistics_dtype
from .norms import Norm
from .passes import rule_of, run_normalize, run_pull_back, vmap_normalize, vmap_pull_back
from .schedule import Problem

_DEVICES = ("cuda", "cpu") if launch.INTERPRETED else ("cuda",)


def _rule(
    x: Tensor,
    axes: str,
    over: str,
    affine: str,
    centered: bool,
    names: str,
    sizes: Sequence[int],
    *,
    eps: float = 0.0,
    **more: Any,
) -> Rule:
    """What an operator is told besides tensors; eps is yet to be split, which a compiler's number cannot be."""
    norm = Norm(axes, over, affine, centered)
    problem = Problem(norm, tuple(x.shape), tuple(zip(names.split(), sizes, strict=True)))
    return Rule(problem, (eps, 0.0), **more)


def _words(rule: Rule) -> tuple[Any, ...]:
    """A problem as the operators take it."""
    norm, sizes = rule.problem.norm, rule.problem.sizes
    return (*norm, " ".join(name for name, _ in sizes), [size for _, size in sizes])


@custom_op("normtriton::normalize", mutates_args=(), device_types=_DEVICES)
def normalize_op(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    axes: str,
    over: str,
    affine: str,
    centered: bool,
    names: str,
    sizes: Sequence[int],
    constant: bool,
    momentum: float,
    eps: float,
    dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(y, mean, rstd, running_mean, running_var); what does not exist is empty.

    Args:
        x: any shape, strides and floating dtype.
        weight, bias: in the shape of ``affine``.
        mean, var: running statistics, used if ``constant``; else the last two results are what they become.
        axes, over, affine, centered: see `normtriton.norms.Norm`.
        names, sizes: of the axes that the shape does not tell, such as "g" and the number of groups.
        constant: normalize by the running statistics.
        momentum: of the running statistics.
        eps: added to the variance.
        dtype: of y; None for that of x.
    """
    words = (axes, over, affine, centered, names, sizes)
    rule = replace(_rule(x, *words, constant=constant, dtype=dtype), eps=exact_pair(eps))
    if constant or mean is None or var is None:
        return *run_normalize(x, weight, bias, mean, var, rule), x.new_empty(0), x.new_empty(0)
    new = mean.clone(), var.clone()
    return *run_normalize(x, weight, bias, *new, rule, momentum), *new


@register_fake("normtriton::normalize")  # type: ignore[untyped-decorator]  # here and below: torch has no types for it
def _(x: Tensor, _weight: Any, _bias: Any, mean: Any, var: Any, *rest: Any) -> tuple[Tensor, ...]:
    *words, constant, _momentum, _eps, dtype = rest
    problem = _rule(x, *words).problem
    groups = 0 if constant else problem.num_groups
    own = (x.new_empty(n, dtype=statistics_dtype(x)) for n in (groups if problem.norm.centered else 0, groups))
    updated = not constant and mean is not None and var is not None
    new = (torch.empty_like(mean), torch.empty_like(var)) if updated else (x.new_empty(0), x.new_empty(0))
    return torch.empty_like(x, dtype=dtype or x.dtype), *own, *new


@custom_op("normtriton::normalize_backward", mutates_args=(), device_types=_DEVICES)
def normalize_backward_op(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor | None,
    axes: str,
    over: str,
    affine: str,
    centered: bool,
    names: str,
    sizes: Sequence[int],
    constant: bool,
    eps: float,
    wants_dx: bool,
    weight_dtype: torch.dtype | None,
    bias_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dweight, dbias); what is not wanted is empty.

    Args:
        dy: gradient of y.
        x, weight: as they were given.
        mean, rstd: of the forward pass; the running mean and variance if ``constant``.
        axes, over, affine, centered, names, sizes, constant, eps: as the forward pass had them.
        wants_dx: whether dx is wanted.
        weight_dtype, bias_dtype: of the parameters' gradients; None if one is not wanted.
    """
    words, wants = (axes, over, affine, centered, names, sizes), (wants_dx, weight_dtype, bias_dtype)
    rule = replace(_rule(x, *words, constant=constant, wants=wants), eps=exact_pair(eps))
    return run_pull_back(dy, x, weight, mean, rstd, rule)


@register_fake("normtriton::normalize_backward")  # type: ignore[untyped-decorator]
def _(_dy: Tensor, x: Tensor, _weight: Any, _mean: Any, _rstd: Any, *rest: Any) -> tuple[Tensor, ...]:
    *words, _constant, _eps, wants_dx, weight_dtype, bias_dtype = rest
    shape = _rule(x, *words).problem.parameter_shape
    gradients = (x.new_empty(shape, dtype=t) if t else x.new_empty(0) for t in (weight_dtype, bias_dtype))
    return torch.empty_like(x) if wants_dx else x.new_empty(0), *gradients


def _normalize(x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, rule: Rule) -> Any:
    own = (*_words(rule), rule.constant, 0.0, sum(rule.eps), rule.dtype)
    return torch.ops.normtriton.normalize(x, weight, bias, mean, var, *own)[:3]


def _pull_back(dy: Tensor, x: Tensor, weight: Any, mean: Any, rstd: Any, rule: Rule) -> Any:
    own = (*_words(rule), rule.constant, sum(rule.eps), *rule.wants)
    return torch.ops.normtriton.normalize_backward(dy, x, weight, mean, rstd, *own)


PASSES = Passes(_normalize, _pull_back)


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, mean, var, *words, constant, _momentum, eps, dtype = inputs
    _y, own_mean, rstd, *new = output
    rule = _rule(x, *words, eps=eps, constant=constant, dtype=dtype)
    ctx.rule, ctx.dtypes = rule, (None if weight is None else weight.dtype, None if bias is None else bias.dtype)
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(own_mean, *((rstd,) if constant else ()), *new)
    ctx.save_for_backward(x, weight, *((mean, var) if constant else (own_mean, rstd)))


def _forward_backward(ctx: Any, dy: Tensor | None, _dmean: Any, drstd: Tensor | None, *_new: Any) -> tuple[Any, ...]:
    rule = replace(ctx.rule, wants=wanted(ctx.needs_input_grad, ctx.dtypes))
    return *normalize_backward(PASSES, rule, ctx.saved_tensors, dy, drstd), *(None,) * 12


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    dy, x, weight, mean, rstd, *words, constant, eps, wants_dx, weight_dtype, bias_dtype = inputs
    wants = (wants_dx, weight_dtype, bias_dtype)
    ctx.rule = _rule(x, *words, eps=eps, constant=constant, wants=wants)
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*(t for t, want in zip(output, wants, strict=True) if want in (False, None)))
    ctx.save_for_backward(dy, x, weight, mean, rstd)


def _backward_backward(ctx: Any, v: Any, vweight: Any, vbias: Any) -> tuple[Any, ...]:
    needs = ctx.needs_input_grad[:3]
    return *pull_back_backward(PASSES, ctx.rule, ctx.saved_tensors, v, vweight, vbias, needs), *(None,) * 13


register_autograd("normtriton::normalize", _forward_backward, setup_context=_save_forward)
register_autograd("normtriton::normalize_backward", _backward_backward, setup_context=_save_backward)


@register_vmap("normtriton::normalize")  # type: ignore[untyped-decorator]
def _(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
    x, weight, bias, mean, var, *words, constant, _momentum, eps, dtype = args
    if not constant and mean is not None:
        raise NotImplementedError("vmap of torch.ops.normtriton.normalize does not update running statistics")
    rule = _rule(x, *words, eps=eps, constant=constant, dtype=dtype)
    results, dims = vmap_normalize(_normalize, info.batch_size, in_dims, x, weight, bias, mean, var, rule)
    nothing = x.new_empty((info.batch_size, 0))
    return (*results, nothing, nothing.clone()), (*dims, 0, 0)


@register_vmap("normtriton::normalize_backward")  # type: ignore[untyped-decorator]
def _(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
    dy, x, weight, mean, rstd, *words, constant, eps, wants_dx, weight_dtype, bias_dtype = args
    rule = _rule(x, *words, eps=eps, constant=constant, wants=(wants_dx, weight_dtype, bias_dtype))
    return vmap_pull_back(_pull_back, info.batch_size, in_dims, dy, x, weight, mean, rstd, rule)


def normalize(x: Tensor, weight: Tensor | None, bias: Tensor | None, call: Any) -> Tensor:
    """`normtriton.autograd.normalize` by the operators."""
    running, rule = call.running, rule_of(call)
    given = (None, None) if running is None else (running.mean, running.var)
    momentum = 0.0 if running is None else sum(running.momentum)
    y, _mean, _rstd, *new = torch.ops.normtriton.normalize(
        x, weight, bias, *given, *_words(rule), rule.constant, momentum, sum(rule.eps), rule.dtype
    )
    if running is not None and not rule.constant:
        running.mean.copy_(new[0])
        running.var.copy_(new[1])
    return y  # type: ignore[no-any-return]  # operators have no types
