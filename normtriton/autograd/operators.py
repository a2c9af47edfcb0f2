"""The norms as operators of the dispatcher, `torch.ops.normtriton.*`: what compilers, modes and transforms see.

One operator a direction, told which norm by its axes, as `normtriton.planning.norms.Norm` describes it, so that one
they have not heard of needs nothing here. They have shape rules (fake kernels), derivatives of any order in both modes
and batching rules; a third operator updates running statistics in place, as PyTorch's own does. Plain tensors don't
come this way: an operator registered from Python that does nothing took 16 µs of the host, an autograd function 5
(torch 2.13.0, one core of a shared machine).
"""

# torch.library has no types
# mypy: disable-error-code="no-untyped-call,untyped-decorator"

from __future__ import annotations

from collections.abc import Callable, Sequence  # noqa: TC003  read at run time: schemas follow from annotations
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd.forward_ad import _set_fwd_grad_enabled
from torch.library import Library, infer_schema, register_fake, register_vmap

from ..planning.norms import Norm
from ..planning.schedule import Problem
from ..runtime import compiling
from ..runtime.compiling import statistics_dtype
from .derivatives import Passes, Rule, normalize_backward, normalize_jvp, pull_back_backward, pull_back_jvp, wanted
from .passes import front, rule_of, run_normalize, run_pull_back, vmap_normalize, vmap_pull_back

LIBRARY = Library("normtriton", "DEF")
_DEVICES = ("CUDA", "CPU") if compiling.INTERPRETED else ("CUDA",)
_transforms = torch._C._are_functorch_transforms_active
_is_fwd_grad_enabled = torch._C._is_fwd_grad_enabled


def rule_from(
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
    """What an operator is told besides tensors."""
    norm = Norm(axes, over, affine, centered)
    problem = Problem(norm, tuple(x.shape), tuple(zip(names.split(), sizes, strict=True)))
    return Rule(problem, eps, **more)


def words_of(problem: Problem) -> tuple[Any, ...]:
    """A problem as the operators take it."""
    norm, sizes = problem.norm, problem.sizes
    return (*norm, " ".join(name for name, _ in sizes), [size for _, size in sizes])


def operator(
    function: Callable[..., Any],
    mutates: tuple[str, ...] = (),
    overload: str = "",
    devices: tuple[str, ...] = _DEVICES,
) -> Any:
    """Define an operator by the function that is its kernel."""
    name = function.__name__.removesuffix("_op")
    full = f"{name}.{overload}" if overload else name
    schema = infer_schema(function, mutates_args=mutates)
    LIBRARY.define(full + schema, tags=(torch.Tag.pt2_compliant_tag,))
    for device in devices:
        LIBRARY.impl(full, function, device)
    return getattr(getattr(torch.ops.normtriton, name), overload or "default")


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
        axes, over, affine, centered: see `normtriton.planning.norms.Norm`.
        names, sizes: of the axes that the shape does not tell, such as "g" and the number of groups.
        constant: normalize by the running statistics.
        momentum: of the running statistics.
        eps: added to the variance.
        dtype: of y; None for that of x.
    """
    words = (axes, over, affine, centered, names, sizes)
    rule = rule_from(x, *words, eps=eps, constant=constant, dtype=dtype, momentum=momentum)
    if constant or mean is None or var is None:
        return *run_normalize(x, weight, bias, mean, var, rule), x.new_empty(0), x.new_empty(0)
    new = mean.clone(), var.clone()
    return *run_normalize(x, weight, bias, *new, rule), *new


def normalize_and_update_op(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    batches: Tensor | None,
    axes: str,
    over: str,
    affine: str,
    centered: bool,
    names: str,
    sizes: Sequence[int],
    momentum: float,
    eps: float,
    dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(y, mean, rstd), as of `normalize_op`; running statistics are updated in place, and ``batches`` grows by one.

    Transforms know how to go through it: of a change in place of what a function captured they say that it is none of
    its arguments', and refuse it, unless it is within an operator.
    """
    words = (axes, over, affine, centered, names, sizes)
    return run_normalize(
        x, weight, bias, mean, var, rule_from(x, *words, eps=eps, dtype=dtype, momentum=momentum), batches
    )


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
    return run_pull_back(dy, x, weight, mean, rstd, rule_from(x, *words, eps=eps, constant=constant, wants=wants))


_WRITTEN = ("mean", "var", "batches")
_NORMALIZE = operator(normalize_op)
_UPDATE = operator(normalize_and_update_op, _WRITTEN)
#: The same for `torch.func.functionalize`, which needs to be told how to take a change in place out. A compiler does
#: that by itself and puts it back in the end, unless it has been told: so this is another operator.
_UPDATE_FUNCTIONALIZED = operator(normalize_and_update_op, _WRITTEN, "functionalized")
_BACKWARD = operator(normalize_backward_op)


def _empty_like_results(x: Tensor, rule: Rule) -> tuple[Tensor, ...]:
    """(y, mean, rstd) of a forward pass, without their numbers."""
    groups = 0 if rule.constant else rule.problem.num_groups
    own = (x.new_empty(n, dtype=statistics_dtype(x)) for n in (groups if rule.problem.norm.centered else 0, groups))
    return torch.empty_like(x, dtype=rule.dtype or x.dtype), *own


@register_fake("normtriton::normalize")
def _(x: Tensor, _weight: Any, _bias: Any, mean: Any, var: Any, *rest: Any) -> tuple[Tensor, ...]:
    *words, constant, _momentum, _eps, dtype = rest
    updated = not constant and mean is not None and var is not None
    new = (torch.empty_like(mean), torch.empty_like(var)) if updated else (x.new_empty(0), x.new_empty(0))
    return *_empty_like_results(x, rule_from(x, *words, constant=constant, dtype=dtype)), *new


@register_fake(_UPDATE_FUNCTIONALIZED)
@register_fake(_UPDATE)
def _(x: Tensor, _weight: Any, _bias: Any, _mean: Any, _var: Any, _batches: Any, *rest: Any) -> tuple[Tensor, ...]:
    *words, _momentum, _eps, dtype = rest
    return _empty_like_results(x, rule_from(x, *words, dtype=dtype))


@register_fake("normtriton::normalize_backward")
def _(_dy: Tensor, x: Tensor, _weight: Any, _mean: Any, _rstd: Any, *rest: Any) -> tuple[Tensor, ...]:
    *words, _constant, _eps, wants_dx, weight_dtype, bias_dtype = rest
    shape = rule_from(x, *words).problem.parameter_shape
    gradients = (x.new_empty(shape, dtype=t) if t else x.new_empty(0) for t in (weight_dtype, bias_dtype))
    return torch.empty_like(x) if wants_dx else x.new_empty(0), *gradients


def _functionalizes() -> bool:
    """Whether `torch.func.functionalize` is at work, at any level."""
    if torch.compiler.is_compiling() or not _transforms():
        return False
    levels = torch._C._functorch.get_interpreter_stack() or ()
    return any(level.key() == torch._C._functorch.TransformType.Functionalize for level in levels)


def _normalize(
    x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, rule: Rule, batches: Tensor | None = None
) -> Any:
    if mean is None or rule.constant:
        own = (*words_of(rule.problem), rule.constant, rule.momentum, rule.eps, rule.dtype)
        return torch.ops.normtriton.normalize(x, weight, bias, mean, var, *own)[:3]
    update = torch.ops.normtriton.normalize_and_update
    overload = update.functionalized if _functionalizes() else update.default
    return overload(x, weight, bias, mean, var, batches, *words_of(rule.problem), rule.momentum, rule.eps, rule.dtype)


def _pull_back(dy: Tensor, x: Tensor, weight: Any, mean: Any, rstd: Any, rule: Rule) -> Any:
    own = (*words_of(rule.problem), rule.constant, rule.eps, *rule.wants)
    return torch.ops.normtriton.normalize_backward(dy, x, weight, mean, rstd, *own)


PASSES = Passes(_normalize, _pull_back)


class _Level(NamedTuple):
    """An operator at one level of transforms: the dispatcher's keys, and the caller's modes, which it hands on."""

    operator: Any
    keys: Any
    grad: bool
    forward_grad: bool


class _Derivatives(torch.autograd.Function):
    """An operator with its derivatives, called with its `_Level` and its arguments."""

    @staticmethod
    def forward(level: _Level, *args: Any) -> Any:
        modes = torch.set_grad_enabled(level.grad), _set_fwd_grad_enabled(level.forward_grad)
        with modes[0], modes[1], torch._C._AutoDispatchBelowAutograd():
            return level.operator.redispatch(level.keys & torch._C._after_autograd_keyset, *args)


class _Normalize(_Derivatives):
    """Both forward operators; y and rstd can be differentiated."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        level, x, weight, bias, mean, var, *rest = inputs
        if level.operator is _NORMALIZE:
            *words, constant, _momentum, eps, dtype = rest
        else:
            _batches, *words, _momentum, eps, dtype = rest
            constant = False
        _y, own_mean, rstd, *new = output
        ctx.set_materialize_grads(False)
        ctx.rule = rule_from(x, *words, eps=eps, constant=constant, dtype=dtype)
        ctx.dtypes = (None if weight is None else weight.dtype, None if bias is None else bias.dtype)
        ctx.mark_non_differentiable(own_mean, *((rstd,) if constant else ()), *new)
        saved = (x, weight, *((mean, var) if constant else (own_mean, rstd)))
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)
        ctx.counts = len(inputs), len(new)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, _dmean: Any, drstd: Tensor | None, *_new: Any) -> tuple[Any, ...]:
        rule = replace(ctx.rule, wants=wanted(ctx.needs_input_grad[1:], ctx.dtypes))
        gradients = normalize_backward(PASSES, rule, ctx.saved_tensors, dy, drstd)
        return None, *gradients, *(None,) * (ctx.counts[0] - 4)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Any, ...]:
        dx, dweight, dbias, dmean, dvar = tangents[1:6]
        if ctx.rule.constant and (dmean is not None or dvar is not None):
            raise RuntimeError(
                "batch_norm is not differentiable wrt running_mean and running_var, they cannot have forward grad "
                "defined"
            )
        change, rstd_change = normalize_jvp(PASSES, ctx.rule, ctx.saved_tensors, dx, dweight, dbias)
        return change, None, rstd_change, *(None,) * ctx.counts[1]


class _PullBack(_Derivatives):
    """The backward operator."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _level, dy, x, weight, mean, rstd, *words, constant, eps, wants_dx, weight_dtype, bias_dtype = inputs
        wants = (wants_dx, weight_dtype, bias_dtype)
        ctx.set_materialize_grads(False)
        ctx.rule = rule_from(x, *words, eps=eps, constant=constant, wants=wants)
        ctx.mark_non_differentiable(*(t for t, want in zip(output, wants, strict=True) if want in (False, None)))
        ctx.save_for_backward(dy, x, weight, mean, rstd)
        ctx.save_for_forward(dy, x, weight, mean, rstd)
        ctx.count = len(inputs)

    @staticmethod
    def backward(ctx: Any, v: Any, vweight: Any, vbias: Any) -> tuple[Any, ...]:
        needs = ctx.needs_input_grad[1:4]
        gradients = pull_back_backward(PASSES, ctx.rule, ctx.saved_tensors, v, vweight, vbias, needs)
        return None, *gradients, *(None,) * (ctx.count - 4)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Any, ...]:
        return pull_back_jvp(PASSES, ctx.rule, ctx.saved_tensors, *tangents[1:4])


def _register_derivatives(operator: Any, function: type[_Derivatives]) -> None:
    """Give an operator its derivatives.

    `torch.library.register_autograd` drops the tangents of forward mode and refuses `torch.func.grad` (torch 2.13).
    Within the dispatcher each transform has its turn, so that the function is always applied to one level alone, as
    PyTorch's own derivatives are.
    """
    apply = super(torch.autograd.Function, function).apply  # type: ignore[misc]  # it is, in C++

    def autograd(keys: Any, *args: Any) -> Any:
        if function is _Normalize and torch.is_grad_enabled():
            for name, t in (("running_mean", args[3]), ("running_var", args[4])):
                if t is not None and t.requires_grad:
                    raise RuntimeError(
                        f"normalize is not differentiable with respect to argument '{name}'. This input cannot have "
                        "requires_grad True."
                    )
        with enable_single_level_autograd_function():
            return apply(_Level(operator, keys, torch.is_grad_enabled(), _is_fwd_grad_enabled()), *args)

    LIBRARY.impl(operator, autograd, "Autograd", with_keyset=True)


_register_derivatives(_NORMALIZE, _Normalize)
_register_derivatives(_UPDATE, _Normalize)
_register_derivatives(_UPDATE_FUNCTIONALIZED, _Normalize)
_register_derivatives(_BACKWARD, _PullBack)


@register_vmap("normtriton::normalize")
def _(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
    x, weight, bias, mean, var, *words, constant, momentum, eps, dtype = args
    rule = rule_from(x, *words, eps=eps, constant=constant, dtype=dtype, momentum=momentum)
    if constant or mean is None:
        new = [x.new_empty((info.batch_size, 0)) for _ in range(2)]
    else:
        given = zip((mean, var), in_dims[3:5], strict=True)
        mean, var = new = [front(t, dim, info.batch_size).clone() for t, dim in given]  # type: ignore[union-attr]
        in_dims = (*in_dims[:3], 0, 0)
    results, dims = vmap_normalize(_normalize, info.batch_size, in_dims, x, weight, bias, mean, var, rule)
    return (*results, *new), (*dims, 0, 0)


def _update_of_a_batch(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
    x, weight, bias, mean, var, batches, *words, momentum, eps, dtype = args
    if batches is not None:
        batches.add_(1)
    rule = rule_from(x, *words, eps=eps, dtype=dtype, momentum=momentum)
    return vmap_normalize(_normalize, info.batch_size, in_dims, x, weight, bias, mean, var, rule)


for _update in (_UPDATE, _UPDATE_FUNCTIONALIZED):
    register_vmap(_update, _update_of_a_batch)


@register_vmap("normtriton::normalize_backward")
def _(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
    dy, x, weight, mean, rstd, *words, constant, eps, wants_dx, weight_dtype, bias_dtype = args
    rule = rule_from(x, *words, eps=eps, constant=constant, wants=(wants_dx, weight_dtype, bias_dtype))
    return vmap_pull_back(_pull_back, info.batch_size, in_dims, dy, x, weight, mean, rstd, rule)


def _functionalized(*args: Any) -> Any:
    """The update where changes in place are taken out: of statistics that `torch.func.functionalize` knows, or not."""
    x, weight, bias, mean, var, batches, *rest = args
    if torch._is_functional_tensor(mean) and torch._is_functional_tensor(var):
        if batches is not None:
            batches.add_(1)
        *words, momentum, eps, dtype = rest
        more = (*words, False, momentum, eps, dtype)
        *results, new_mean, new_var = torch.ops.normtriton.normalize(x, weight, bias, mean, var, *more)
        mean.copy_(new_mean)
        var.copy_(new_var)
        return tuple(results)

    def inside(t: Any) -> Any:
        if not isinstance(t, Tensor) or not torch._is_functional_tensor(t):
            return t
        torch._sync(t)  # type: ignore[attr-defined]  # not in its stubs
        return torch._from_functional_tensor(t)

    with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.Functionalize)):
        results = _UPDATE_FUNCTIONALIZED(*map(inside, args))
    return tuple(map(torch._to_functional_tensor, results))


LIBRARY.impl(_UPDATE_FUNCTIONALIZED, _functionalized, "Functionalize")


def counts_batches() -> bool:
    """Whether a kernel may count batches: not where a transform, or an exported program, is to see an addition."""
    return not _transforms() and not torch.compiler.is_exporting()


def normalize(x: Tensor, weight: Tensor | None, bias: Tensor | None, call: Any) -> Tensor:
    """`normtriton.autograd.normalize` by the operators."""
    statistics, rule = call.statistics, rule_of(call)
    mean, var, batches = (None, None, ()) if statistics is None else (*statistics[:2], statistics[4])
    if mean is None or var is None or rule.constant or not torch.compiler.is_exporting():
        return PASSES.normalize(x, weight, bias, mean, var, rule, *batches)[0]
    assert not batches  # `counts_batches`
    # an exported program holds changes in place of buffers at its end, as PyTorch's operations
    own = (*words_of(rule.problem), False, rule.momentum, rule.eps, rule.dtype)
    y, _mean, _rstd, *new = torch.ops.normtriton.normalize(x, weight, bias, mean, var, *own)
    mean.copy_(new[0])
    var.copy_(new[1])
    return y  # type: ignore[no-any-return]  # operators have no types
