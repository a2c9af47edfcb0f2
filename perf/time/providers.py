"""The libraries whose norms are timed side by side, each by a small adapter.

A norm is given its tensors and returns its result and a function that computes the gradients, which may be called again
and again: the backward pass alone. Most go by autograd, with the graph kept. FlagGems' layer, group and batch norm have
no autograd of their own: there it is the operator of the backward pass.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

import normtriton

from ..cases.oracle import EPS, Operands, call, gradients
from ..cases.shapes import NORMS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import TypeAlias

    from torch import Tensor

    from ..cases.shapes import Case

Result: TypeAlias = "tuple[Tensor, Callable[[], tuple[Tensor, ...]]]"
Norm: TypeAlias = "Callable[[Operands], Result]"


class Provider(NamedTuple):
    """A library.

    Attributes:
        norm: the norm of a case, made anew for each cell.
        norms: those that it has.
        modules: what is imported of it.
        package: its distribution.
        source: how it is installed.
    """

    norm: Callable[[Case], Norm]
    norms: tuple[str, ...]
    modules: tuple[str, ...]
    package: str
    source: str

    def version(self) -> str | None:
        """The distribution's, if it has one."""
        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            return None


def differentiable(function: Callable[[Operands], Tensor]) -> Norm:
    """A norm that autograd knows."""

    def run(given: Operands) -> Result:
        y = function(given)
        return y, partial(gradients, y, given)

    return run


def by_name(functions: Any, case: Case, given: Operands) -> Tensor:
    """A norm of `torch.nn.functional`, or of what has its functions."""
    features = case.shape[-1:] if case.norm in ("layer", "rms") else case.shape[1:2]
    return call(functions, case.norm, features, case.groups, given.x, given.weight, given.bias, given.running)


def _functions(functions: Any) -> Callable[[Case], Norm]:
    return lambda case: differentiable(partial(by_name, functions, case))


def _compiled(case: Case) -> Norm:
    torch.compiler.reset()  # past eight shapes of one function it would no longer compile
    importlib.import_module("torch._functorch.config").donated_buffer = False  # type: ignore[attr-defined]  # buffers that are given away cannot be asked for gradients twice

    compiled = torch.compile(partial(by_name, torch.nn.functional, case), dynamic=False, fullgraph=True)
    return differentiable(compiled)


def _liger(case: Case) -> Norm:
    ops = importlib.import_module("liger_kernel.ops")

    def function(given: Operands) -> Any:
        x, weight, bias, *_ = given
        if case.norm == "layer":
            return ops.LigerLayerNormFunction.apply(x, weight, bias, EPS)
        if case.norm == "rms":  # as in Llama; in place it would write dx over dy
            return ops.LigerRMSNormFunction.apply(x, weight, EPS, 0.0, "llama", False)
        return ops.LigerGroupNormFunction.apply(x, weight, bias, case.shape[1], case.groups, EPS)

    return differentiable(function)


def _flag_gems(case: Case) -> Norm:
    if case.norm == "rms":
        ops = importlib.import_module("flag_gems.ops.rms_norm")
        return differentiable(lambda given: ops.rms_norm(given.x, case.shape[-1:], given.weight, EPS))
    if case.norm == "instance":
        ops = importlib.import_module("flag_gems.fused.instance_norm")
        return differentiable(lambda given: ops.instance_norm(given.x, given.weight, given.bias, eps=EPS))
    ops = importlib.import_module(
        f"flag_gems.ops.{case.norm}norm" if case.norm != "batch" else "flag_gems.ops.batch_norm"
    )
    every = (True, True, True)

    @torch.no_grad()
    def run(given: Operands) -> Result:
        x, w, b, dy, running = given[:5]
        if case.norm == "layer":
            y, mean, rstd = ops.layer_norm(x, case.shape[-1:], w, b, EPS)
            return y, lambda: ops.layer_norm_backward(dy, x, case.shape[-1:], mean, rstd, w, b, every)
        if case.norm == "group":
            sizes = (*case.shape[:2], x[0, 0].numel(), case.groups)
            y, mean, rstd = ops.group_norm(x, w, b, *sizes, EPS)
            return y, lambda: ops.group_norm_backward(dy, x, mean, rstd, w, *sizes, every)
        y, mean, rstd = ops.batch_norm(x, w, b, *running, True, 0.1, EPS)
        return y, lambda: ops.batch_norm_backward(dy, x, w, *running, mean, rstd, True, EPS, every)

    return run


def _quack(_case: Case) -> Norm:
    quack = importlib.import_module("quack.rmsnorm")
    return differentiable(lambda given: quack.rmsnorm(given.x, given.weight, eps=EPS))


def _apex(case: Case) -> Norm:
    apex = importlib.import_module("apex.normalization.fused_layer_norm")

    def function(given: Operands) -> Any:
        x, weight, bias, *_ = given
        if case.norm == "layer":
            return apex.fused_layer_norm_affine(x, weight, bias, case.shape[-1:], EPS)
        return apex.fused_rms_norm_affine(x, weight, case.shape[-1:], EPS)

    return differentiable(function)


#: By name. QuACK's layer norm has no backward pass. Another package has the name "apex", too.
PROVIDERS = {
    "normtriton": Provider(_functions(normtriton), NORMS, ("normtriton",), "normtriton", ""),
    "torch": Provider(_functions(torch.nn.functional), NORMS, ("torch",), "torch", ""),
    "torch.compile": Provider(_compiled, NORMS, ("torch",), "torch", ""),
    "liger-kernel": Provider(
        _liger, ("layer", "rms", "group"), ("liger_kernel.ops",), "liger-kernel", "pip install liger-kernel"
    ),
    "flag-gems": Provider(
        _flag_gems, NORMS, ("flag_gems", "flag_gems.fused.instance_norm"), "flag-gems", "pip install flag-gems"
    ),
    "quack": Provider(_quack, ("rms",), ("quack.rmsnorm",), "quack-kernels", "pip install quack-kernels"),
    "apex": Provider(
        _apex,
        ("layer", "rms"),
        ("apex.normalization.fused_layer_norm", "fused_layer_norm_cuda"),
        "apex",
        "https://github.com/NVIDIA/apex",
    ),
}


def installed(names: Iterable[str]) -> tuple[dict[str, Provider], dict[str, str]]:
    """Those of `PROVIDERS` that are there, and of the others why not."""
    found, missing = {}, {}
    for name in names:
        provider = PROVIDERS[name]
        try:
            for module in provider.modules:
                importlib.import_module(module)
        except ImportError as error:
            missing[name] = f"{error} ({provider.source})"
        except Exception as error:  # noqa: BLE001  some look for a GPU that they know, and raise what they like
            missing[name] = f"{type(error).__name__}: {error}"
        else:
            found[name] = provider
    return found, missing
