"""The two passes of a norm on plain tensors, and on batches of them: what every longer way to the kernels ends in.

Running statistics have the shape of the parameters here, one more axis in front for each `vmap`. Of an axis along which
they do not vary they have one.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from ..planning.norms import names
from ..runtime import devices, launch
from ..runtime.compiling import statistics_dtype
from .derivatives import Rule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from ..planning.norms import Norm
    from ..runtime.launch import Statistics
    from .call import Call
    from .derivatives import Wants

#: PyTorch's own words for it.
_UNBATCHED = (
    "Batch norm got a batched tensor as input while the running_mean or running_var, which will be updated in place, "
    "were not batched.\nIf you are using a module and do not need eval mode, please set `track_running_stats` to be "
    "False.If you are using a prebuilt module and do not need eval mode, please see the functorch website for "
    "resources on how to patch your module to work with vmap"
)


def rule_of(call: Call, wants: Wants = (True, None, None)) -> Rule:
    """What a call tells the passes besides tensors."""
    momentum = 0.0 if call.statistics is None else call.statistics[5]
    return Rule(call.problem, call.eps, call.use_running, call.dtype, wants, momentum)


def on_device(x: Tensor) -> AbstractContextManager[Any]:
    """Launches go to x's GPU."""
    return torch.cuda.device(x.get_device()) if devices.elsewhere(x) else nullcontext()


def refuse_shared_memory(mean: Tensor, var: Tensor) -> None:
    """Refuse statistics of which one element is another: they are to be written.

    Raises:
        RuntimeError: an element of one is another of its own, or one of the other's.
    """
    for t in (mean, var):
        if any(size > 1 and stride == 0 for size, stride in zip(t.shape, t.stride(), strict=True)):
            raise RuntimeError(
                "unsupported operation: more than one element of the written-to tensor refers to a single memory "
                "location. Please clone() the tensor before performing the operation."
            )
    if torch._C._is_alias_of(mean, var) and _overlap(mean, var):  # type: ignore[attr-defined]  # not in its stubs
        raise RuntimeError(
            "unsupported operation: some elements of running_mean and running_var refer to a single memory "
            "location. Please clone() one of them before performing the operation."
        )


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Whether two views of one storage have a byte in common."""
    if not (a.numel() and b.numel()):
        return False
    first, second = _addresses(a), _addresses(b)
    if max(first) + a.itemsize <= min(second) or max(second) + b.itemsize <= min(first):
        return False
    taken = {start + i for start in first for i in range(a.itemsize)}
    return any(start + i in taken for start in second for i in range(b.itemsize))


def _addresses(t: Tensor) -> list[int]:
    """Of every element, in bytes from the storage's first."""
    found = [int(t.storage_offset())]
    for size, stride in zip(t.shape, t.stride(), strict=True):
        found = [start + i * stride for start in found for i in range(size)]
    return [start * t.itemsize for start in found]


def as_launched(
    mean: Tensor | None, var: Tensor | None, rule: Rule, batches: Tensor | None = None
) -> Statistics | None:
    """As the launcher takes them; in memory of their own where the caller's is no vector."""
    if mean is None or var is None:
        return None
    shape = rule.problem.parameter_shape
    flat = [t if t.dim() == 1 else t.expand(shape).contiguous().view(-1) for t in (mean, var)]
    return flat[0], flat[1], flat[0].stride(0), flat[1].stride(0), () if batches is None else (batches,), rule.momentum


def _update(statistics: Sequence[Tensor], given: Sequence[Tensor], shape: Sequence[int]) -> None:
    """Write what the launcher made of copies. Autograd must notice."""
    for new, old in zip(statistics, given, strict=True):
        if new.data_ptr() != old.data_ptr():
            old.copy_(new.view(shape)[tuple(slice(size) for size in old.shape)])
    torch.autograd.graph.increment_version(tuple(given))


def run_normalize(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    rule: Rule,
    batches: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the forward pass of plain tensors; (y, mean, rstd), what does not exist empty.

    Running statistics are used if ``rule.constant``, and updated otherwise; ``batches`` counts the updates.
    """
    problem = rule.problem
    updated = (mean, var) if mean is not None and var is not None and not rule.constant and x.numel() else None
    if updated:
        refuse_shared_memory(*updated)
    statistics = as_launched(mean, var, rule, batches)
    with on_device(x):
        y, *own = launch.forward(problem, x, weight, bias, rule.eps, statistics, rule.constant, rule.dtype)
    if updated and updated[0].dim() > 1:
        _update(statistics[:2], updated, problem.parameter_shape)  # type: ignore[index]  # made of the same two
    groups = 0 if rule.constant else problem.num_groups
    sizes = (groups if problem.norm.centered else 0, groups)
    own_mean, rstd = (
        x.new_empty(size, dtype=statistics_dtype(x)) if t is None else t for t, size in zip(own, sizes, strict=True)
    )
    return y, own_mean, rstd


def run_pull_back(
    dy: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor | None, rstd: Tensor | None, rule: Rule
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the backward pass of plain tensors; (dx, dweight, dbias), what is not wanted empty."""
    statistics = None
    if rule.constant:
        statistics, mean, rstd = as_launched(mean, rstd, rule), None, None
    elif not rule.problem.norm.centered:
        mean = None
    with on_device(x):
        gradients = launch.backward(rule.problem, dy, x, weight, mean, rstd, statistics, rule.eps, rule.wants)
    dx, dweight, dbias = (x.new_empty(0) if t is None else t for t in gradients)
    return dx, dweight, dbias


def with_batch(norm: Norm, affine: bool) -> Norm:
    """A norm with one more axis in front, which separates groups; ``affine``: the parameters too."""
    name = "v"
    while name in names(norm.axes):
        name += "v"
    return norm._replace(axes=f"{name} {norm.axes}", affine=f"{name} {norm.affine}" if affine else norm.affine)


def batched(rule: Rule, size: int, affine: bool) -> Rule:
    """The rule for so many calls at once."""
    problem = rule.problem
    return replace(rule, problem=problem._replace(norm=with_batch(problem.norm, affine), shape=(size, *problem.shape)))


def _one(t: Tensor | None, dim: int | None) -> Tensor | None:
    """A tensor with its batch first, of one where it has none; a view."""
    if t is None:
        return None
    return t.unsqueeze(0) if dim is None else t.movedim(dim, 0)


def front(t: Tensor | None, dim: int | None, size: int) -> Tensor | None:
    """A tensor with its batch first; a view."""
    one = _one(t, dim)
    return None if one is None else one.expand(size, *one.shape[1:])


def _flat(t: Tensor | None, dim: int | None, size: int) -> Tensor | None:
    """Statistics of the groups of a batch of calls, one after the other."""
    every = front(t, dim, size)
    return None if every is None else every.reshape(-1).contiguous()  # a single one, expanded, is reshaped to a view


def vmap_normalize(normalize: Any, size: int, in_dims: Any, *args: Any) -> tuple[Any, Any]:
    """``normalize`` of a batch of calls.

    Raises:
        RuntimeError: calls of different input would update the same running statistics.
    """
    x, weight, bias, mean, var, rule = args
    x_dim, weight_dim, bias_dim, mean_dim, var_dim = in_dims[:5]
    if mean is not None and not rule.constant and x_dim is not None and (mean_dim is None or var_dim is None):
        raise RuntimeError(_UNBATCHED)
    affine = any(dim is not None for dim in in_dims[1:5]) or (mean is not None and not rule.constant)
    if affine:  # statistics that are given vary as the parameters do
        weight, bias = front(weight, weight_dim, size), front(bias, bias_dim, size)
        mean, var = _one(mean, mean_dim), _one(var, var_dim)
    y, *own = normalize(front(x, x_dim, size), weight, bias, mean, var, batched(rule, size, affine))
    return (y, *(t.reshape(size, t.numel() // size) for t in own)), (0, 0, 0)


def vmap_pull_back(pull_back: Any, size: int, in_dims: Any, *args: Any) -> tuple[Any, Any]:
    """``pull_back`` of a batch of calls: each has its own gradients of the parameters."""
    dy, x, weight, mean, rstd, rule = args
    dy_dim, x_dim, weight_dim, mean_dim, rstd_dim = in_dims[:5]
    given = rule.constant and (mean_dim is not None or rstd_dim is not None)
    affine = given or weight_dim is not None or rule.wants[1] is not None or rule.wants[2] is not None
    if affine:
        weight = front(weight, weight_dim, size)
    if not rule.constant:
        mean, rstd = _flat(mean, mean_dim, size), _flat(rstd, rstd_dim, size)
    elif affine:
        mean, rstd = _one(mean, mean_dim), _one(rstd, rstd_dim)
    more = batched(rule, size, affine)
    gradients = pull_back(front(dy, dy_dim, size), front(x, x_dim, size), weight, mean, rstd, more)
    wanted = [wants not in (False, None) for wants in rule.wants]
    return tuple(t if w else t.new_empty((size, 0)) for t, w in zip(gradients, wanted, strict=True)), (0, 0, 0)
