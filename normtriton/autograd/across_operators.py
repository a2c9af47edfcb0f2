"""A norm whose groups extend over processes as operators of the dispatcher: what `torch.compile` sees of it.

One a direction, each with its collective within. They have shape rules and a gradient, and are for compilers alone:
transforms and derivatives of gradients know nothing of processes.
"""

# torch.library has no types
# mypy: disable-error-code="no-untyped-call,untyped-decorator"

from __future__ import annotations

from collections.abc import Sequence  # noqa: TC003  read at run time: schemas follow from annotations
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.library import register_autograd, register_fake

from ..runtime.apart import Found
from ..runtime.compiling import statistics_dtype
from ..runtime.processes import named
from . import across
from .call import Call
from .derivatives import wanted
from .operators import operator, rule_from, words_of
from .passes import as_launched

if TYPE_CHECKING:
    from ..planning.schedule import Problem
    from ..runtime.processes import Named


def across_op(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    group: str,
    gradient: bool,
    axes: str,
    over: str,
    affine: str,
    centered: bool,
    names: str,
    sizes: Sequence[int],
    momentum: float,
    eps: float,
    dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(y, mean, rstd, share, running_mean, running_var); what does not exist is empty.

    Args:
        x, weight, bias: this process's part.
        mean, var: running statistics; the last two results are what they become.
        group: the name of the processes' group.
        gradient: whether the backward pass tells the others anything.
        axes, over, affine, centered, names, sizes, momentum, eps, dtype: as of ``normtriton::normalize``.
    """
    rule = rule_from(x, axes, over, affine, centered, names, sizes, eps=eps, dtype=dtype, momentum=momentum)
    new = () if mean is None or var is None else (mean.clone(), var.clone())
    statistics = as_launched(*new, rule, None) if new else None
    call = Call(rule.problem, eps, statistics, dtype=dtype)
    y, found = across.tell(call, x, weight, bias, named(group), gradient)(statistics)
    own = x.new_empty(0, dtype=statistics_dtype(x)) if found.mean is None else found.mean
    return y, own, found.rstd, found.share, *(new or (x.new_empty(0), x.new_empty(0)))


def across_backward_op(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor,
    share: Tensor,
    group: str,
    axes: str,
    over: str,
    affine: str,
    centered: bool,
    names: str,
    sizes: Sequence[int],
    wants_dx: bool,
    weight_dtype: torch.dtype | None,
    bias_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dweight, dbias); what is not wanted is empty.

    Args:
        dy: gradient of y.
        x, weight, mean, rstd, share: as the forward pass had and gave them; no mean if it is fixed at zero.
        group, axes, over, affine, centered, names, sizes: as of the forward pass.
        wants_dx, weight_dtype, bias_dtype: as of ``normtriton::normalize_backward``.
    """
    problem = rule_from(x, axes, over, affine, centered, names, sizes).problem
    wants, found = (wants_dx, weight_dtype, bias_dtype), Found(mean, None, rstd, share)
    gradients = across.backward(problem, dy, x, weight, found, wants, named(group))
    return tuple(x.new_empty(0) if t is None else t for t in gradients)  # type: ignore[return-value]  # three


_FORWARD = operator(across_op, devices=("CUDA", "CPU"))
_BACKWARD = operator(across_backward_op, devices=("CUDA", "CPU"))


def _statistics(x: Tensor, problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, rstd and share, without their numbers."""
    own, groups = statistics_dtype(x), problem.num_groups
    mean = x.new_empty(groups if problem.norm.centered else 0, dtype=own)
    return mean, x.new_empty(groups, dtype=own), x.new_empty(groups, dtype=own)


@register_fake(_FORWARD)
def _(x: Tensor, _weight: Any, _bias: Any, mean: Any, var: Any, *rest: Any) -> tuple[Tensor, ...]:
    _group, _gradient, *words, _momentum, _eps, dtype = rest
    new = (x.new_empty(0) if t is None else torch.empty_like(t) for t in (mean, var))
    y = torch.empty_like(x, dtype=dtype or x.dtype)
    return y, *_statistics(x, rule_from(x, *words).problem), *new


@register_fake(_BACKWARD)
def _(_dy: Tensor, x: Tensor, _weight: Any, _mean: Any, _rstd: Any, _share: Any, *rest: Any) -> tuple[Tensor, ...]:
    _group, *words, wants_dx, weight_dtype, bias_dtype = rest
    shape = rule_from(x, *words).problem.parameter_shape
    gradients = (x.new_empty(shape, dtype=t) if t else x.new_empty(0) for t in (weight_dtype, bias_dtype))
    return torch.empty_like(x) if wants_dx else x.new_empty(0), *gradients


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, _mean, _var, group, _gradient, *words, _momentum, _eps, _dtype = inputs
    _y, mean, rstd, share, *new = output
    ctx.told, ctx.centered = (group, *words), words[3]
    ctx.dtypes = tuple(None if t is None else t.dtype for t in (weight, bias))
    ctx.mark_non_differentiable(mean, rstd, share, *new)
    ctx.save_for_backward(x, weight, mean, rstd, share)


def _backward(ctx: Any, dy: Tensor, *_others: Any) -> tuple[Any, ...]:
    x, weight, mean, rstd, share = ctx.saved_tensors
    wants = wanted(ctx.needs_input_grad, ctx.dtypes)
    found = _BACKWARD(dy, x, weight, mean if ctx.centered else None, rstd, share, *ctx.told, *wants)
    gradients = (t if want not in (False, None) else None for t, want in zip(found, wants, strict=True))
    return *gradients, *(None,) * (len(ctx.needs_input_grad) - 3)


register_autograd(_FORWARD, _backward, setup_context=_keep)


def normalize(
    _function: str, x: Tensor, weight: Tensor | None, bias: Tensor | None, call: Call, among: Named
) -> Tensor:
    """`normtriton.autograd.across.normalize` for a compiler that traces it: one operator."""
    mean, var, batches = (None, None, ()) if call.statistics is None else (*call.statistics[:2], call.statistics[4])
    momentum = 0.0 if call.statistics is None else call.statistics[5]
    gradient = x.requires_grad and torch.is_grad_enabled()
    told = among.name, gradient, *words_of(call.problem), momentum, call.eps, call.dtype
    y, _mean, _rstd, _share, *new = torch.ops.normtriton.across(x, weight, bias, mean, var, *told)
    if mean is not None and var is not None:
        mean.copy_(new[0])
        var.copy_(new[1])
    for count in batches:
        count.add_(1)
    return y  # type: ignore[no-any-return]  # operators have no types
