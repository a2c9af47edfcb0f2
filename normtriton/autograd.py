"""The one differentiable operation behind every norm, the short way.

`normalize` takes it for a plain tensor that nothing watches, which is nearly every call. Whatever traces, transforms or
replaces tensors (compilers, `torch.func`, forward-mode derivatives, tensor subclasses) goes by `normtriton.operators`
or `normtriton.transforms`: the same kernels, at a few times the host time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.autograd import forward_ad

from . import launch, operators, sharded, transforms

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from .launch import Running
    from .schedule import Problem


class Call(NamedTuple):
    """One call of a norm, checked: what `normalize` needs besides tensors that may want a gradient.

    Attributes:
        problem: the norm and the shape.
        eps: two numbers that add up to it, see `normtriton.launch.exact_pair`.
        running: running statistics, to be updated or used.
        use_running: whether they take the place of the input's own statistics.
        dtype: the result's; None for the input's.
    """

    problem: Problem
    eps: tuple[float, float]
    running: Running | None = None
    use_running: bool = False
    dtype: torch.dtype | None = None


_is_compiling = torch.compiler.is_compiling
tracing_state = torch._C._get_tracing_state
_modes = torch._C._len_torch_dispatch_stack
_transforms = torch._C._are_functorch_transforms_active
_PLAIN = (torch.Tensor, torch.nn.Parameter)


def has_kernels(x: Tensor) -> bool:
    """Whether a tensor takes the Triton kernels rather than PyTorch's own functions.

    None does while `torch.jit.trace` records: its graphs leave Python, where the kernels are.
    """
    return (x.is_cuda or (launch.INTERPRETED and x.is_cpu)) and tracing_state() is None


def unwatched(x: Any) -> bool:
    """Whether x is a plain tensor, and nothing traces or transforms what happens to it."""
    return (
        not _is_compiling()
        and type(x) in _PLAIN
        and not _modes()
        and not _transforms()
        and forward_ad._current_level < 0
    )


class Normalize(torch.autograd.Function):
    """Keeps x, weight, mean and rstd for the backward pass, and nothing else."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, call: Call) -> Tensor:
        problem, eps, running, use_running, dtype = call
        y, mean, rstd = launch.forward(problem, x, weight, bias, eps, running, use_running, dtype)
        ctx.call = call
        ctx.weight_dtype = None if weight is None else weight.dtype
        ctx.bias_dtype = None if bias is None else bias.dtype
        if use_running:
            assert running is not None
            ctx.save_for_backward(x, weight, running.mean, running.var)
        else:
            ctx.save_for_backward(x, weight, mean, rstd)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd = ctx.saved_tensors
        wants_dx, wants_dweight, wants_dbias, _ = ctx.needs_input_grad
        wants = (wants_dx, ctx.weight_dtype if wants_dweight else None, ctx.bias_dtype if wants_dbias else None)
        problem, eps, running, use_running, _dtype = ctx.call
        # grad mode is on in a backward pass whose own graph is wanted
        if torch.is_grad_enabled() or _transforms() or transforms.old_vmap():
            return *transforms.PullBack.of(dy, x, weight, mean, rstd, ctx.call, wants), None
        if use_running:
            running = running._replace(mean=mean, var=rstd)
            mean = rstd = None
        else:
            running = None
        return *launch.backward(problem, dy, x, weight, mean, rstd, running, eps, wants), None


def normalize(x: Tensor, weight: Tensor | None, bias: Tensor | None, call: Call) -> Tensor:
    """Normalize x, which takes the kernels, as ``call`` says."""
    if unwatched(x):
        return normalize_unwatched(x, weight, bias, call)
    if not _is_compiling():
        if _transforms() or forward_ad._current_level >= 0:
            return transforms.normalize(x, weight, bias, call)
        if sharded.is_sharded(x):
            return sharded.normalize(x, weight, bias, call)
    return operators.normalize(x, weight, bias, call)


#: `Normalize.apply` without the frames of `torch.autograd.Function.apply`, 2 of its 17 µs: they look for transforms, of
#: which there are none, and for what a transform that has ended left behind, which `_own` unwraps.
_apply: Callable[..., Tensor] = super(torch.autograd.Function, Normalize).apply
_own: Callable[[Tensor], Tensor] = torch._C._functorch.unwrap_if_dead


def normalize_unwatched(x: Tensor, weight: Tensor | None, bias: Tensor | None, call: Call) -> Tensor:
    """`normalize` of a tensor that is `unwatched`. The gradient's device is autograd's care."""
    x = _own(x)
    weight = weight if weight is None else _own(weight)
    bias = bias if bias is None else _own(bias)
    run = _apply if torch.is_grad_enabled() else _without_graph
    if launch.elsewhere(x):
        with torch.cuda.device(x.get_device()):
            return run(x, weight, bias, call)
    return run(x, weight, bias, call)


def _without_graph(x: Tensor, weight: Tensor | None, bias: Tensor | None, call: Call) -> Tensor:
    problem, eps, running, use_running, dtype = call
    return launch.forward(problem, x, weight, bias, eps, running, use_running, dtype)[0]
