"""The two passes of a norm on plain tensors, and on batches of them: what every longer way to the kernels ends in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from . import launch
from .derivatives import Rule
from .launch import Running, exact_pair, statistics_dtype

if TYPE_CHECKING:
    from torch import Tensor

    from .autograd import Call
    from .derivatives import Wants
    from .norms import Norm


def rule_of(call: Call, wants: Wants = (True, None, None)) -> Rule:
    """What a call tells the passes besides tensors."""
    return Rule(call.problem, call.eps, call.use_running, call.dtype, wants)


def on_device(x: Tensor) -> AbstractContextManager[Any]:
    """Launches go to x's GPU."""
    return torch.cuda.device(x.get_device()) if launch.elsewhere(x) else nullcontext()


def _running(mean: Tensor | None, var: Tensor | None, momentum: float = 0.0) -> Running | None:
    if mean is None or var is None:
        return None
    return Running(mean, var, mean.stride(0), var.stride(0), (), exact_pair(momentum))


def run_normalize(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    rule: Rule,
    momentum: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the forward pass of plain tensors; (y, mean, rstd), what does not exist empty.

    Running statistics are used if ``rule.constant``, and updated otherwise.
    """
    running = _running(mean, var, momentum)
    with on_device(x):
        y, *own = launch.forward(rule.problem, x, weight, bias, rule.eps, running, rule.constant, rule.dtype)
    groups = 0 if rule.constant else rule.problem.num_groups
    sizes = (groups if rule.problem.norm.centered else 0, groups)
    own_mean, rstd = (
        x.new_empty(size, dtype=statistics_dtype(x)) if t is None else t for t, size in zip(own, sizes, strict=True)
    )
    return y, own_mean, rstd


def run_pull_back(
    dy: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor | None, rstd: Tensor | None, rule: Rule
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the backward pass of plain tensors; (dx, dweight, dbias), what is not wanted empty."""
    running = None
    if rule.constant:
        running, mean, rstd = _running(mean, rstd), None, None
    elif not rule.problem.norm.centered:
        mean = None
    with on_device(x):
        gradients = launch.backward(rule.problem, dy, x, weight, mean, rstd, running, rule.eps, rule.wants)
    dx, dweight, dbias = (x.new_empty(0) if t is None else t for t in gradients)
    return dx, dweight, dbias


def with_batch(norm: Norm, affine: bool) -> Norm:
    """A norm with one more axis in front, which separates groups; ``affine``: the parameters too."""
    name = "v"
    while name in norm.axes.replace("(", " ").replace(")", " ").split():
        name += "v"
    return norm._replace(axes=f"{name} {norm.axes}", affine=f"{name} {norm.affine}" if affine else norm.affine)


def batched(rule: Rule, size: int, affine: bool) -> Rule:
    """The rule for so many calls at once."""
    problem = rule.problem
    return replace(rule, problem=problem._replace(norm=with_batch(problem.norm, affine), shape=(size, *problem.shape)))


def _front(t: Tensor | None, dim: int | None, size: int) -> Tensor | None:
    """A tensor with its batch first; a view."""
    if t is None:
        return None
    return t.unsqueeze(0).expand(size, *t.shape) if dim is None else t.movedim(dim, 0)


def _flat(t: Tensor | None, dim: int | None, size: int) -> Tensor | None:
    """Statistics of a batch of calls, one after the other."""
    front = _front(t, dim, size)
    return None if front is None else front.reshape(-1).contiguous()  # a single one, expanded, is reshaped to a view


def vmap_normalize(normalize: Any, size: int, in_dims: Any, *args: Any) -> tuple[Any, Any]:
    """``normalize`` of a batch of calls."""
    x, weight, bias, mean, var, rule = args
    x_dim, weight_dim, bias_dim, mean_dim, var_dim = in_dims[:5]
    affine = any(dim is not None for dim in in_dims[1:5])
    if affine:  # statistics that are given vary as the parameters do
        weight, bias = _front(weight, weight_dim, size), _front(bias, bias_dim, size)
        mean, var = _flat(mean, mean_dim, size), _flat(var, var_dim, size)
    y, *own = normalize(_front(x, x_dim, size), weight, bias, mean, var, batched(rule, size, affine))
    return (y, *(t.reshape(size, t.numel() // size) for t in own)), (0, 0, 0)


def vmap_pull_back(pull_back: Any, size: int, in_dims: Any, *args: Any) -> tuple[Any, Any]:
    """``pull_back`` of a batch of calls: each has its own gradients of the parameters."""
    dy, x, weight, mean, rstd, rule = args
    dy_dim, x_dim, weight_dim, mean_dim, rstd_dim = in_dims[:5]
    given = rule.constant and (mean_dim is not None or rstd_dim is not None)
    affine = given or weight_dim is not None or rule.wants[1] is not None or rule.wants[2] is not None
    if affine:
        weight = _front(weight, weight_dim, size)
    if affine or not rule.constant:
        mean, rstd = _flat(mean, mean_dim, size), _flat(rstd, rstd_dim, size)
    more = batched(rule, size, affine)
    gradients = pull_back(_front(dy, dy_dim, size), _front(x, x_dim, size), weight, mean, rstd, more)
    wanted = [wants not in (False, None) for wants in rule.wants]
    return tuple(t if w else t.new_empty((size, 0)) for t, w in zip(gradients, wanted, strict=True)), (0, 0, 0)
