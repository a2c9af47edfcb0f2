"""What is registered with PyTorch's tools, so that they take the library's norms as they take `torch.nn`'s.

ONNX's exporter decomposes what it has no translation for, by the table of all decompositions: so it turns
``torch.ops.normtriton.normalize``, ``surround`` and ``surround_quantized`` into PyTorch's own operators, and these into
ONNX's. Fusing before quantization looks modules up by their exact classes. `DistributedDataParallel` refuses
`torch.nn.SyncBatchNorm` on the CPU. A tracer of `torch.fx` knows the modules that it does not look into by where their
class is defined, so it is told of the library's here: a check in each call of a module would take 0.3 µs.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from functools import wraps
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812  the name everyone knows it by
from torch import nn
from torch._decomp import register_decomposition
from torch.fx import Proxy, Tracer
from torch.nn.parallel import DistributedDataParallel

from .autograd.composed import composed, measured
from .autograd.derivatives import Axes
from .autograd.operators import rule_from
from .autograd.surrounded import NAMES, decomposed, multiplied, quantized
from .convert.replace import LIBRARY, restore
from .modules import Leaf, SyncBatchNorm
from .planning import norms
from .planning.stages import Stages
from .runtime.compiling import statistics_dtype

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from .planning.schedule import Problem

    Maybe = Tensor | None


@register_decomposition(torch.ops.normtriton.normalize.default)
def normalize(x: Tensor, weight: Maybe, bias: Maybe, mean: Maybe, var: Maybe, *rest: Any) -> tuple[Tensor, ...]:
    """`normtriton.autograd.operators.normalize_op` in PyTorch's operators."""
    *words, constant, momentum, eps, dtype = rest
    problem = rule_from(x, *words).problem
    used = (mean, var) if constant else (None, None)
    common = x.dtype  # PyTorch's functions, and ONNX, take few mixtures
    for t in (weight, bias, *used):
        common = common if t is None else torch.promote_types(common, t.dtype)
    given = (None if t is None else t.to(common) for t in (x, weight, bias, *used))
    y = _OPERATORS.get(problem.norm, composed)(problem, *given, eps).to(dtype or x.dtype)

    if constant:
        return y, *(x.new_empty(0) for _ in range(4))
    axes = Axes(problem)
    own_mean, own_var = measured(axes, x)
    own = own_mean.reshape(-1) if problem.norm.centered else x.new_empty(0), (own_var + eps).rsqrt().reshape(-1)
    if mean is None or var is None:
        return y, *own, x.new_empty(0), x.new_empty(0)
    new = own_mean.mean(axes.shared), own_var.mean(axes.shared) * (axes.count / (axes.count - 1))
    return y, *own, *(t + momentum * (n - t).to(t.dtype) for t, n in zip((mean, var), new, strict=True))


@register_decomposition(torch.ops.normtriton.surround.default)
def surround(
    x: Tensor,
    weight: Maybe,
    bias: Maybe,
    residual: Maybe,
    skip: Maybe,
    gate: Maybe,
    x_scale: Maybe,
    mask: Maybe,
    mean: Maybe,
    var: Maybe,
    *rest: Any,
) -> tuple[Tensor, ...]:
    """`normtriton.autograd.surrounded_operators.surround_op` in PyTorch's operators."""
    *told, constant, momentum, eps, dtype = rest
    words, stages = told[:6], Stages(*told[6:])
    problem = rule_from(x, *words).problem
    axes = Axes(problem)

    def plain(u: Tensor, w: Maybe, b: Maybe) -> Tensor:
        if mask is None:
            return normalize(u, w, b, mean, var, *words, constant, momentum, eps, dtype)[0]
        used = (mean, var) if constant else (None, None)
        return composed(problem, u, w, b, *used, eps, mask).to(dtype or u.dtype)

    given = dict(zip(NAMES, (residual, skip, gate, x_scale, mask), strict=True))
    around = {name: t for name, t in given.items() if t is not None}
    made = decomposed(plain, axes.broadcast, x, weight, bias, around, stages)
    y, total = made if isinstance(made, tuple) else (made, x.new_empty(0))
    nothing = x.new_empty(0, dtype=statistics_dtype(x))
    if constant:
        return y, total, nothing, nothing, nothing
    there = None if mask is None else axes.truth(mask)
    u = total if residual is not None else multiplied(x, around, stages)
    own_mean, own_var = measured(axes, u, there)
    count = nothing if there is None else there.sum(axes.over).clamp(min=1).to(nothing.dtype).reshape(-1)
    return (
        y,
        total,
        own_mean.reshape(-1) if problem.norm.centered else nothing,
        (own_var + eps).rsqrt().reshape(-1),
        count,
    )


@register_decomposition(torch.ops.normtriton.surround_quantized.default)
def surround_quantized(
    x: Tensor,
    weight: Maybe,
    bias: Maybe,
    residual: Maybe,
    skip: Maybe,
    gate: Maybe,
    x_scale: Maybe,
    mask: Maybe,
    q_scale: Maybe,
    mean: Maybe,
    var: Maybe,
    *rest: Any,
) -> tuple[Tensor, ...]:
    """`normtriton.autograd.surrounded_operators.surround_quantized_op` in PyTorch's operators."""
    *told, kind, constant, eps = rest
    tensors = (x, weight, bias, residual, skip, gate, x_scale, mask, mean, var)
    y, total, *_ = surround(*tensors, *told, constant, 0.0, eps, statistics_dtype(x))
    problem = rule_from(x, *told[:6]).problem._replace(stages=Stages(*told[6:])._replace(quantize=kind))
    q, scale = quantized(y, problem, q_scale)
    return q, scale if q_scale is None else x.new_empty(0, dtype=torch.float32), total


def _batch_norm(_: Problem, x: Tensor, weight: Maybe, bias: Maybe, mean: Maybe, var: Maybe, eps: float) -> Tensor:
    # a training one is given no statistics: ONNX's exporter, of torch 2.13, would normalize by them
    return F.batch_norm(x, mean, var, weight, bias, training=mean is None, eps=eps)


def _instance_norm(_: Problem, x: Tensor, weight: Maybe, bias: Maybe, _mean: Maybe, _var: Maybe, eps: float) -> Tensor:
    return F.instance_norm(x, None, None, weight, bias, eps=eps)


def _group_norm(p: Problem, x: Tensor, weight: Maybe, bias: Maybe, _mean: Maybe, _var: Maybe, eps: float) -> Tensor:
    return F.group_norm(x, dict(p.sizes)["g"], weight, bias, eps)


def _layer_norm(p: Problem, x: Tensor, weight: Maybe, bias: Maybe, _mean: Maybe, _var: Maybe, eps: float) -> Tensor:
    return F.layer_norm(x, list(p.parameter_shape), weight, bias, eps)


def _rms_norm(p: Problem, x: Tensor, weight: Maybe, _bias: Maybe, _mean: Maybe, _var: Maybe, eps: float) -> Tensor:
    return F.rms_norm(x, list(p.parameter_shape), weight, eps)


#: The norms that PyTorch has an operator for.
_OPERATORS: dict[norms.Norm, Callable[..., Tensor]] = {
    norms.BATCH: _batch_norm,
    norms.INSTANCE: _instance_norm,
    norms.GROUP: _group_norm,
    norms.LAYER: _layer_norm,
    norms.RMS: _rms_norm,
}


def _restoring(fuse: Callable[..., Any]) -> Callable[..., Any]:
    """One of PyTorch's ways to fuse modules, for the library's: what it makes holds, and checks for, `torch.nn`'s."""

    def fuse_restored(is_qat: bool, *fused: nn.Module) -> Any:
        for module in fused:
            restore(module)
        return fuse(is_qat, *fused)

    return fuse_restored


with suppress(ImportError):  # PyTorch is to do without this module one day
    from torch.ao.quantization.fuser_method_mappings import _DEFAULT_OP_LIST_TO_FUSER_METHOD as _FUSERS

    for _pattern, _fuse in list(_FUSERS.items()):
        _FUSERS.setdefault(tuple(LIBRARY.get(kind, kind) for kind in _pattern), _restoring(_fuse))


def _refusing(original: Callable[..., Any], norm: int) -> Callable[..., Any]:
    """One of PyTorch's functions that takes a norm for `torch.nn`'s, the argument of this number."""

    @wraps(original)
    def refuse(*args: Any, **kwargs: Any) -> Any:
        for given in args[norm : norm + 1]:
            for module in given.modules() if isinstance(given, torch.nn.Module) else ():
                if isinstance(module, nn.modules.batchnorm._BatchNorm) and _beyond(module):
                    raise NotImplementedError(
                        f"{original.__name__} makes torch.nn's of a {type(module).__name__}, which knows no "
                        f"{_beyond(module)}"
                    )
        return original(*args, **kwargs)

    return refuse


def _beyond(module: nn.Module) -> str:
    return module.beyond_torch() if isinstance(module, Leaf) else ""


_fuse_conv_bn_eval = nn.utils.fuse_conv_bn_eval
for _module in list(sys.modules.values()):  # it is imported by name
    if isinstance(_module, ModuleType) and vars(_module).get("fuse_conv_bn_eval") is _fuse_conv_bn_eval:
        vars(_module)["fuse_conv_bn_eval"] = _refusing(_fuse_conv_bn_eval, 1)
_to_sync = _refusing(nn.SyncBatchNorm.convert_sync_batchnorm, 0)
nn.SyncBatchNorm.convert_sync_batchnorm = staticmethod(_to_sync)  # type: ignore[method-assign]  # it was bound to the class


def _on_the_cpu(original: Callable[..., None]) -> Callable[..., None]:
    """What `DistributedDataParallel` says of a `SyncBatchNorm` on the CPU: not of the library's, which works there."""

    @wraps(original)
    def handle(self: DistributedDataParallel, module: nn.Module) -> None:
        synced = [m for m in module.modules() if isinstance(m, nn.SyncBatchNorm)]
        if self.device_type != "cpu" or not all(isinstance(m, SyncBatchNorm) for m in synced):
            original(self, module)

    return handle


_refuse_the_cpu = _on_the_cpu(DistributedDataParallel._passing_sync_batchnorm_handle)
DistributedDataParallel._passing_sync_batchnorm_handle = _refuse_the_cpu  # type: ignore[method-assign]


def _is_leaf(original: Callable[..., bool]) -> Callable[..., bool]:
    """`Tracer.is_leaf_module`, to which the library's modules are leaves too."""

    @wraps(original)
    def is_leaf_module(self: Tracer, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Leaf) or original(self, m, module_qualified_name)

    return is_leaf_module


def _call(original: Callable[..., Any]) -> Callable[..., Any]:
    """`Tracer.call_module`, for tracers that decide on their own what a leaf is, as quantization's does."""

    @wraps(original)
    def call_module(self: Tracer, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        # `torch.export`'s tracer comes by with tensors, and records what is done to them
        if isinstance(m, Leaf) and any(isinstance(arg, Proxy) for arg in (*args, *kwargs.values())):
            return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)
        return original(self, m, forward, args, kwargs)

    return call_module


Tracer.is_leaf_module = _is_leaf(Tracer.is_leaf_module)  # type: ignore[method-assign]
Tracer.call_module = _call(Tracer.call_module)  # type: ignore[method-assign]
