"""The one differentiable operation behind every norm, the short way.

`normalize` takes it for plain tensors that nothing watches, which is nearly every call. Whatever traces, transforms or
replaces tensors (compilers, `torch.func`, forward-mode derivatives, tensor subclasses) goes by
`normtriton.autograd.operators`: the same kernels, at a few times the host time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.autograd import forward_ad

from ..runtime import compiling, devices, launch
from . import operators
from .passes import rule_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from .call import Call


_is_compiling = torch.compiler.is_compiling
tracing_state = torch._C._get_tracing_state
_modes = torch._C._len_torch_dispatch_stack
_transforms = torch._C._are_functorch_transforms_active
_is_included = torch._C._dispatch_tls_is_dispatch_key_included
_VMAP_MODE = torch._C._dispatch_key_parse("VmapMode")
_PLAIN = (torch.Tensor, torch.nn.Parameter, type(None))


def has_kernels(x: Tensor) -> bool:
    """Whether a tensor takes the Triton kernels rather than PyTorch's own functions.

    None does while `torch.jit.trace` records: its graphs leave Python, where the kernels are.
    """
    return (x.is_cuda or (compiling.INTERPRETED and x.is_cpu)) and tracing_state() is None


def unwatched(x: Any, a: Any = None, b: Any = None, c: Any = None, d: Any = None, e: Any = None) -> bool:
    """Whether the tensors of a call are plain, and nothing traces or transforms what happens to them.

    (By name, since a loop over them took 0.1 µs more.)
    """
    return (
        not _is_compiling()
        and type(x) in _PLAIN
        and type(a) in _PLAIN
        and type(b) in _PLAIN
        and type(c) in _PLAIN
        and type(d) in _PLAIN
        and type(e) in _PLAIN
        and not _modes()
        and not _transforms()
        and forward_ad._current_level < 0
    )


class Normalize(torch.autograd.Function):
    """Keeps x, weight, mean and rstd for the backward pass, and nothing else."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, call: Call) -> Tensor:
        problem, eps, statistics, use_running, dtype = call
        y, mean, rstd = launch.forward(problem, x, weight, bias, eps, statistics, use_running, dtype)
        ctx.kept = call, None if bias is None else bias.dtype
        if use_running:
            assert statistics is not None
            mean, rstd, *_ = statistics
        ctx.save_for_backward(x, weight, mean, rstd)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd = ctx.saved_tensors
        call, bias_dtype = ctx.kept
        wants_dx, wants_dweight, wants_dbias, _ = ctx.needs_input_grad
        wants = (wants_dx, weight.dtype if wants_dweight else None, bias_dtype if wants_dbias else None)
        problem, eps, statistics, use_running, _dtype = call
        # grad mode is on in a backward pass whose own graph is wanted; autograd's ``is_grads_batched`` and gradcheck
        # batch by the vmap before `torch.func`'s, which operators go through one call after the other
        if torch.is_grad_enabled() or not unwatched(dy) or _is_included(_VMAP_MODE):
            found = operators.PASSES.pull_back(dy, x, weight, mean, rstd, rule_of(call, wants))
            return *(t if want not in (False, None) else None for t, want in zip(found, wants, strict=True)), None
        if use_running:
            statistics, mean, rstd = (mean, rstd, *statistics[2:]), None, None
        else:
            statistics = None
        return *launch.backward(problem, dy, x, weight, mean, rstd, statistics, eps, wants), None


def normalize(x: Tensor, weight: Tensor | None, bias: Tensor | None, call: Call) -> Tensor:
    """Normalize x, which takes the kernels, as ``call`` says: the short way, or by operators."""
    statistics = (*call.statistics[:2], *call.statistics[4]) if call.statistics else ()
    if unwatched(x, weight, bias, *statistics):
        return normalize_unwatched(x, weight, bias, call)
    return operators.normalize(x, weight, bias, call)


#: `Normalize.apply` without the frames of `torch.autograd.Function.apply`, 2 of its 17 µs: they look for transforms, of
#: which there are none, and for what a transform that has ended left behind, which `own` unwraps.
_apply: Callable[..., Tensor] = super(torch.autograd.Function, Normalize).apply
own: Callable[[Tensor], Tensor] = torch._C._functorch.unwrap_if_dead


def normalize_unwatched(x: Tensor, weight: Tensor | None, bias: Tensor | None, call: Call) -> Tensor:
    """`normalize` of tensors that are `unwatched`. The gradient's device is autograd's care."""
    x = own(x)
    weight = weight if weight is None else own(weight)
    bias = bias if bias is None else own(bias)
    run = _apply if torch.is_grad_enabled() else _without_graph
    if devices.elsewhere(x):
        with torch.cuda.device(x.get_device()):
            return run(x, weight, bias, call)
    return run(x, weight, bias, call)


def _without_graph(x: Tensor, weight: Tensor | None, bias: Tensor | None, call: Call) -> Tensor:
    problem, eps, statistics, use_running, dtype = call
    return launch.forward(problem, x, weight, bias, eps, statistics, use_running, dtype)[0]
