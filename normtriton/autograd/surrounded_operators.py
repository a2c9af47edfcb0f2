"""A norm with what surrounds it as operators of the dispatcher, one a direction: what compilers and exporters see.

They have shape rules and a gradient. Transforms, and derivatives of gradients, take `decomposed` in place of them.
"""

# torch.library has no types
# mypy: disable-error-code="no-untyped-call,untyped-decorator"

from __future__ import annotations

from collections.abc import Iterator, Sequence  # noqa: TC003  read at run time: schemas follow from annotations
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.library import register_fake

from ..planning.stages import Stages
from ..runtime.compiling import statistics_dtype
from ..runtime.quantized import KINDS
from .call import Call
from .operators import LIBRARY, operator, rule_from, words_of
from .passes import as_launched, on_device
from .surrounded import NAMES, Passes, Wanted, apply, of_groups, quantize, run_backward, run_forward

if TYPE_CHECKING:
    from collections.abc import Mapping


def _call(
    x: Tensor,
    words: Sequence[Any],
    stages: Sequence[Any],
    statistics: tuple[Tensor | None, Tensor | None, Tensor | None],
    constant: bool,
    momentum: float,
    eps: float,
    dtype: torch.dtype | None = None,
) -> Call:
    """The `Call` that operators are told in words."""
    told = rule_from(x, *words, eps=eps, constant=constant, dtype=dtype, momentum=momentum)
    problem = told.problem._replace(stages=Stages(*stages))
    mean, var, batches = statistics
    return Call(problem, eps, as_launched(mean, var, told, batches), constant, dtype)


def _told(call: Call) -> tuple[Any, ...]:
    """What operators are told besides tensors; they quantize nothing."""
    momentum = 0.0 if call.statistics is None else call.statistics[5]
    *stages, _quantize = call.problem.stages
    return *words_of(call.problem), *stages, call.use_running, momentum, call.eps


def _own(call: Call, x: Tensor) -> Iterator[Tensor]:
    """Room for each group's mean, rstd and number of elements, as far as they are kept."""
    groups, problem = 0 if call.use_running else call.problem.num_groups, call.problem
    for there in (problem.norm.centered, True, problem.stages.masked):
        yield x.new_empty(groups if there else 0, dtype=statistics_dtype(x))


def _forward(
    call: Call, x: Tensor, weight: Any, bias: Any, around: Mapping[str, Any]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    with on_device(x):
        y, total, *own = run_forward(call, x, weight, bias, around)
    found = (nothing if t is None else t for t, nothing in zip(own, _own(call, x), strict=True))
    return y, x.new_empty(0) if around["residual"] is None else total, *found  # type: ignore[return-value]  # five


def surround_op(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    skip: Tensor | None,
    gate: Tensor | None,
    x_scale: Tensor | None,
    mask: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    axes: str,
    over: str,
    affine: str,
    centered: bool,
    names: str,
    sizes: Sequence[int],
    activation: str,
    offset: float,
    round_first: bool,
    gate_first: bool,
    masked: bool,
    constant: bool,
    momentum: float,
    eps: float,
    dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(y, u, mean, rstd, count); u is empty without a residual, count without a mask.

    Args:
        x, weight, bias, residual, skip, gate, x_scale, mask: see `normtriton.normalize`.
        mean, var: statistics that are given, used if ``constant``.
        axes, over, affine, centered, names, sizes, constant, momentum, eps, dtype: as of ``normtriton::normalize``.
        activation, offset, round_first, gate_first, masked: see `normtriton.planning.stages.Stages`.
    """
    words, stages = (axes, over, affine, centered, names, sizes), (activation, offset, round_first, gate_first, masked)
    call = _call(x, words, stages, (mean, var, None), constant, momentum, eps, dtype)
    return _forward(call, x, weight, bias, dict(zip(NAMES, (residual, skip, gate, x_scale, mask), strict=True)))


def surround_and_update_op(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    skip: Tensor | None,
    gate: Tensor | None,
    x_scale: Tensor | None,
    mask: Tensor | None,
    mean: Tensor,
    var: Tensor,
    batches: Tensor | None,
    axes: str,
    over: str,
    affine: str,
    centered: bool,
    names: str,
    sizes: Sequence[int],
    activation: str,
    offset: float,
    round_first: bool,
    gate_first: bool,
    masked: bool,
    momentum: float,
    eps: float,
    dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`surround_op`; running statistics are updated in place, and ``batches`` grows by one."""
    words, stages = (axes, over, affine, centered, names, sizes), (activation, offset, round_first, gate_first, masked)
    call = _call(x, words, stages, (mean, var, batches), False, momentum, eps, dtype)
    return _forward(call, x, weight, bias, dict(zip(NAMES, (residual, skip, gate, x_scale, mask), strict=True)))


def surround_backward_op(
    dy: Tensor,
    dtotal: Tensor | None,
    total: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor | None,
    skip: Tensor | None,
    gate: Tensor | None,
    before: Tensor | None,
    x_scale: Tensor | None,
    mask: Tensor | None,
    count: Tensor | None,
    axes: str,
    over: str,
    affine: str,
    centered: bool,
    names: str,
    sizes: Sequence[int],
    activation: str,
    offset: float,
    round_first: bool,
    gate_first: bool,
    masked: bool,
    constant: bool,
    momentum: float,
    eps: float,
    wants_dx: bool,
    weight_dtype: torch.dtype | None,
    bias_dtype: torch.dtype | None,
    skip_dtype: torch.dtype | None,
    wants_dgate: bool,
    wants_dresidual: bool,
    x_scale_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(dx, dweight, dbias, dskip, dgate, dresidual, dx_scale); what is not wanted is empty.

    Args:
        dy, dtotal: gradients of y, and of u if it was returned.
        total: what was normalized.
        weight, bias, mean, rstd, skip, gate, before, x_scale, mask, count: what was kept, see
            `normtriton.autograd.surrounded.Passes`.
        axes to eps: as the forward pass had them.
        wants_dx to x_scale_dtype: the fields of `normtriton.autograd.surrounded.Wanted`.
    """
    words, stages = (axes, over, affine, centered, names, sizes), (activation, offset, round_first, gate_first, masked)
    given = (mean, rstd, None) if constant else (None, None, None)
    call = _call(total, words, stages, given, constant, momentum, eps)
    if constant:
        assert call.statistics is not None
        mean, rstd, *_ = call.statistics
    wants = Wanted(wants_dx, weight_dtype, bias_dtype, skip_dtype, wants_dgate, wants_dresidual, x_scale_dtype)
    kept = (total, weight, bias, mean, rstd, skip, gate, before, x_scale, mask, count)
    with on_device(total):
        found = run_backward(call, dy, dtotal, kept, wants)
    return tuple(  # type: ignore[return-value]  # seven
        total.new_empty(0) if t is None or want in (False, None) else t for t, want in zip(found, wants, strict=True)
    )


def surround_quantized_op(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    skip: Tensor | None,
    gate: Tensor | None,
    x_scale: Tensor | None,
    mask: Tensor | None,
    q_scale: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    axes: str,
    over: str,
    affine: str,
    centered: bool,
    names: str,
    sizes: Sequence[int],
    activation: str,
    offset: float,
    round_first: bool,
    gate_first: bool,
    masked: bool,
    quantize_to: str,
    constant: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """(q, scale, u); scale is empty if ``q_scale`` is given, u without a residual.

    Args:
        x to mask, mean, var, axes to masked, constant, eps: as of `surround_op`.
        q_scale: the scale, with a dimension for each of x's; None for one of each group's own.
        quantize_to: one of `normtriton.runtime.quantized.KINDS`.
    """
    words = (axes, over, affine, centered, names, sizes)
    stages = (activation, offset, round_first, gate_first, masked, quantize_to)
    call = _call(x, words, stages, (mean, var, None), constant, 0.0, eps)
    given = zip((*NAMES, "q_scale"), (residual, skip, gate, x_scale, mask, q_scale), strict=True)
    q, scale, *total = quantize(call, x, weight, bias, {name: t for name, t in given if t is not None})
    own_scale = scale if q_scale is None else x.new_empty(0, dtype=torch.float32)
    return q, own_scale, total[0] if total else x.new_empty(0)


_SURROUND = operator(surround_op)
_UPDATE = operator(surround_and_update_op, ("mean", "var", "batches"))
_BACKWARD = operator(surround_backward_op)
_QUANTIZED = operator(surround_quantized_op)


def _total(x: Tensor, residual: Tensor | None) -> Tensor:
    """The sum with a residual, without its numbers."""
    if residual is None:
        return x.new_empty(0)
    return torch.empty_like(x, dtype=torch.promote_types(x.dtype, residual.dtype))


def _results(call: Call, x: Tensor, residual: Tensor | None) -> tuple[Tensor, ...]:
    """Of a forward pass, without their numbers."""
    return torch.empty_like(x, dtype=call.dtype or x.dtype), _total(x, residual), *_own(call, x)


@register_fake(_SURROUND)
def _(x: Tensor, _weight: Any, _bias: Any, residual: Any, *rest: Any) -> tuple[Tensor, ...]:
    *_, constant, _momentum, eps, dtype = rest
    return _results(_call(x, rest[6:12], rest[12:17], (None, None, None), constant, 0.0, eps, dtype), x, residual)


@register_fake(_UPDATE)
def _(x: Tensor, _weight: Any, _bias: Any, residual: Any, *rest: Any) -> tuple[Tensor, ...]:
    *_, _momentum, eps, dtype = rest
    return _results(_call(x, rest[7:13], rest[13:18], (None, None, None), False, 0.0, eps, dtype), x, residual)


@register_fake(_QUANTIZED)
def _(x: Tensor, _weight: Any, _bias: Any, residual: Any, *rest: Any) -> tuple[Tensor, ...]:
    q_scale, words, kind = rest[4], rest[7:13], rest[18]
    problem = rule_from(x, *words).problem
    groups = x.new_empty(problem.num_groups if q_scale is None else 0, dtype=torch.float32)
    scale = of_groups(problem, groups) if q_scale is None else groups
    return torch.empty_like(x, dtype=KINDS[kind][0]), scale, _total(x, residual)


@register_fake(_BACKWARD)
def _(*args: Any) -> tuple[Tensor, ...]:
    total, gate, x_scale, wants = args[2], args[8], args[10], Wanted(*args[27:])
    shape = rule_from(total, *args[13:19]).problem.parameter_shape
    nothing = total.new_empty(0)
    return (
        torch.empty_like(total) if wants.dx else nothing,
        *(total.new_empty(0) if t is None else total.new_empty(shape, dtype=t) for t in wants[1:3]),
        total.new_empty(0) if wants.skip_dtype is None else torch.empty_like(total, dtype=wants.skip_dtype),
        torch.empty_like(total, dtype=gate.dtype) if wants.dgate else total.new_empty(0),
        torch.empty_like(total) if wants.dresidual else total.new_empty(0),
        total.new_empty(0) if wants.x_scale_dtype is None else total.new_empty(x_scale.shape, dtype=x_scale.dtype),
    )


def _forward_operator(
    call: Call, x: Tensor, weight: Any, bias: Any, around: Mapping[str, Any]
) -> tuple[Tensor, Tensor, Any, Any, Any]:
    """The forward operator, past its gradient."""
    told, tensors = _told(call), (x, weight, bias, *map(around.get, NAMES))
    with torch._C._AutoDispatchBelowAutograd():
        if call.statistics is None or call.use_running:
            given = (None, None) if call.statistics is None else call.statistics[:2]
            y, total, mean, rstd, count = _SURROUND(*tensors, *given, *told, call.dtype)
        else:
            given = (*call.statistics[:2], *(call.statistics[4] or (None,)))
            *words, _constant, momentum, eps = told
            y, total, mean, rstd, count = _UPDATE(*tensors, *given, *words, momentum, eps, call.dtype)
    centered = call.problem.norm.centered
    return y, x if around["residual"] is None else total, mean if centered else None, rstd, count


def _backward_operator(
    call: Call, dy: Tensor, dtotal: Tensor | None, kept: Sequence[Any], wants: Wanted
) -> tuple[Tensor | None, ...]:
    found = _BACKWARD(dy, dtotal, *kept, *_told(call), *wants)
    return tuple(t if want not in (False, None) else None for t, want in zip(found, wants, strict=True))


OPERATORS = Passes(_forward_operator, _backward_operator)


def _differentiated(op: Any, updates: bool) -> Any:
    """A forward operator with its gradient. Where a gradient is wanted mean and rstd are kept for it, not returned."""

    def autograd(*args: Any) -> Any:
        x, weight, bias, *tensors = args[:8]
        if not torch.is_grad_enabled() or not any(t is not None and t.requires_grad for t in args[:8]):
            with torch._C._AutoDispatchBelowAutograd():
                return op(*args)
        batches = args[10] if updates else None
        *told, eps, dtype = args[11 if updates else 10 :]
        if updates:
            *told, momentum = told
            constant = False
        else:
            *told, constant, momentum = told
        call = _call(x, told[:6], told[6:], (*args[8:10], batches), constant, momentum, eps, dtype)
        results = apply(call, OPERATORS, x, weight, bias, *tensors)
        y, total = results if tensors[0] is not None else (results, x.new_empty(0))
        return y, total, *_own(call, x)

    return autograd


LIBRARY.impl(_SURROUND, _differentiated(_SURROUND, updates=False), "Autograd")
LIBRARY.impl(_UPDATE, _differentiated(_UPDATE, updates=True), "Autograd")


def quantize_traced(
    call: Call, x: Tensor, weight: Tensor | None, bias: Tensor | None, around: Mapping[str, Tensor]
) -> tuple[Tensor, ...]:
    """`normtriton.autograd.surrounded.quantize` for a compiler that traces it: one operator."""
    tensors, q_scale = (x, weight, bias, *map(around.get, NAMES)), around.get("q_scale")
    given = (None, None) if call.statistics is None else call.statistics[:2]
    told = (*words_of(call.problem), *call.problem.stages, call.use_running, call.eps)
    q, scale, total = torch.ops.normtriton.surround_quantized(*tensors, q_scale, *given, *told)
    found = (q, scale if q_scale is None else q_scale)
    return (*found, total) if "residual" in around else found


def surround(
    call: Call, x: Tensor, weight: Tensor | None, bias: Tensor | None, around: Mapping[str, Tensor]
) -> Tensor | tuple[Tensor, Tensor]:
    """`normtriton.autograd.surrounded.surround` for a compiler that traces it: one operator."""
    told, tensors, statistics = _told(call), (x, weight, bias, *map(around.get, NAMES)), call.statistics
    if statistics is None or call.use_running:
        given = (None, None) if statistics is None else statistics[:2]
        y, total, *_ = torch.ops.normtriton.surround(*tensors, *given, *told, call.dtype)
    else:
        batches = statistics[4][0] if statistics[4] else None
        *words, _constant, momentum, eps = told
        update = torch.ops.normtriton.surround_and_update
        y, total, *_ = update(*tensors, *statistics[:2], batches, *words, momentum, eps, call.dtype)
    return (y, total) if "residual" in around else y
