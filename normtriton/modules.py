"""The norms as modules: subclasses of `torch.nn`'s, with their constructors, parameters, buffers and state dicts.

`torch.jit.script` compiles `torch.nn`'s forwards in place of the library's, see `scripted_as`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
import torch.nn.functional as F  # noqa: F401, N812  scripted functions call it so
from torch import nn

from . import functional
from .autograd.operators import counts_batches

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

_Method = TypeVar("_Method", bound="Callable[..., Any]")

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "RMSNorm",
]


def _parameter(module: nn.Module, name: str) -> Any:
    """A parameter or buffer, or None. Asking the module takes three times as long; it knows of those replaced."""
    for members in (module._parameters, module._buffers):
        if name in members:
            return members[name]
    return getattr(module, name)


def _affine(module: nn.Module) -> tuple[Any, Any]:
    """The weight and the bias: one call, where two of `_parameter` would take 0.3 µs more."""
    parameters = module._parameters
    try:
        return parameters["weight"], parameters["bias"]
    except KeyError:
        return _parameter(module, "weight"), _parameter(module, "bias")


def scripted_as(theirs: Callable[..., Any]) -> Callable[[_Method], _Method]:
    """Have `torch.jit.script` compile another function in a method's place.

    It looks for the source in what a method says it wraps, and for what that source names in the method's own module.
    """

    def mark(ours: _Method) -> _Method:
        ours.__wrapped__ = theirs  # type: ignore[attr-defined]
        return ours

    return mark


class Leaf(nn.Module):
    """A module that `torch.fx` does not look into, as it looks into none of `torch.nn`'s: `normtriton.exporters`."""

    def beyond_torch(self) -> str:
        """The settings that `torch.nn`'s class of the same name does not have; empty if it computes the same."""
        return ""

    def __prepare_scriptable__(self) -> nn.Module:
        if self.beyond_torch():
            raise NotImplementedError(
                f"torch.jit.script compiles torch.nn.{type(self).__name__}, which knows no {self.beyond_torch()}"
            )
        return self


class _BatchNorm(Leaf, nn.modules.batchnorm._BatchNorm):
    @scripted_as(nn.modules.batchnorm._BatchNorm.forward)
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  PyTorch's name, here and below
        self._check_input_dim(input)  # type: ignore[no-untyped-call]  # torch has no types for it
        momentum, parameters, buffers = self.momentum, self._parameters, self._buffers
        updating, batches = self.training and self.track_running_stats, None
        try:  # a call of `_parameter` for each would take 1 µs in all
            weight, bias = parameters["weight"], parameters["bias"]
            mean, var = buffers["running_mean"], buffers["running_var"]
            if updating:
                batches = buffers["num_batches_tracked"]
        except KeyError:
            weight, bias = _parameter(self, "weight"), _parameter(self, "bias")
            mean, var = _parameter(self, "running_mean"), _parameter(self, "running_var")
            if updating:
                batches = _parameter(self, "num_batches_tracked")
        if batches is not None and not self._counts_itself(input, batches, mean):
            batches.add_(1)
            if momentum is None:  # the cumulative average
                momentum = 1.0 / float(batches)
            batches = None
        own = self.training or (mean is None and var is None)
        if not (updating or not self.training):
            mean = var = None
        momentum = 0.0 if momentum is None else momentum
        if batches is None:
            return functional.batch_norm(input, mean, var, weight, bias, own, momentum, self.eps)
        try:
            return functional.counting_batch_norm(input, mean, var, weight, bias, own, momentum, self.eps, batches)
        except Exception:
            batches.add_(1)  # PyTorch counts before it checks
            raise

    def _counts_itself(self, input: Tensor, batches: Tensor, mean: Tensor | None) -> bool:  # noqa: A002
        """Whether the kernel that updates the running statistics, if one does, can count the batch: a launch less."""
        return (
            self.momentum is not None
            and mean is not None
            and counts_batches()
            and input.numel() > 0
            and batches.dtype == torch.int64
            and batches.device == input.device
        )


class _InstanceNorm(Leaf, nn.modules.instancenorm._InstanceNorm):
    @scripted_as(nn.modules.instancenorm._InstanceNorm._apply_instance_norm)
    def _apply_instance_norm(self, input: Tensor) -> Tensor:  # noqa: A002
        weight, bias = _affine(self)
        return functional.instance_norm(
            input,
            _parameter(self, "running_mean"),
            _parameter(self, "running_var"),
            weight,
            bias,
            self.training or not self.track_running_stats,
            0.0 if self.momentum is None else self.momentum,
            self.eps,
        )


class BatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d`, computed by `normtriton.batch_norm`."""


class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d`, computed by `normtriton.batch_norm`."""


class BatchNorm3d(_BatchNorm, nn.BatchNorm3d):
    """`torch.nn.BatchNorm3d`, computed by `normtriton.batch_norm`."""


class InstanceNorm1d(_InstanceNorm, nn.InstanceNorm1d):
    """`torch.nn.InstanceNorm1d`, computed by `normtriton.instance_norm`."""


class InstanceNorm2d(_InstanceNorm, nn.InstanceNorm2d):
    """`torch.nn.InstanceNorm2d`, computed by `normtriton.instance_norm`."""


class InstanceNorm3d(_InstanceNorm, nn.InstanceNorm3d):
    """`torch.nn.InstanceNorm3d`, computed by `normtriton.instance_norm`."""


class _OverDimensions(Leaf):
    """What layer and RMS norm have in common: ``dim``, the dimensions that they normalize; None for the last ones."""

    # of modules that were made as torch.nn's, too; cast, since `torch.jit.script` reads annotations of a class
    dim = cast("int | tuple[int, ...] | None", None)

    def beyond_torch(self) -> str:
        return "" if self.dim is None else f"dim={self.dim}"

    def extra_repr(self) -> str:
        return ", ".join(filter(None, (super().extra_repr(), self.beyond_torch())))


def _own_dimensions(dim: int | Sequence[int] | None) -> int | tuple[int, ...] | None:
    return dim if dim is None or isinstance(dim, int) else tuple(dim)


class LayerNorm(_OverDimensions, nn.LayerNorm):
    """`torch.nn.LayerNorm`, computed by `normtriton.layer_norm`; ``dim``, keyword-only, are the dimensions it takes.

    None stands for the last ones. ``LayerNorm(c, dim=1)`` normalizes the channels of images, where they are.
    """

    def __init__(  # noqa: D107  the class says it
        self,
        normalized_shape: Any,
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        dim: int | Sequence[int] | None = None,
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, bias, device, dtype)
        self.dim = _own_dimensions(dim)

    @scripted_as(nn.LayerNorm.forward)
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return functional.layer_norm(input, self.normalized_shape, *_affine(self), self.eps, dim=self.dim)


class GroupNorm(Leaf, nn.GroupNorm):
    """`torch.nn.GroupNorm`, computed by `normtriton.group_norm`."""

    @scripted_as(nn.GroupNorm.forward)
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return functional.group_norm(input, self.num_groups, *_affine(self), self.eps)


class RMSNorm(_OverDimensions, nn.RMSNorm):
    """`torch.nn.RMSNorm`, computed by `normtriton.rms_norm`; ``dim`` as of `LayerNorm`."""

    def __init__(  # noqa: D107  the class says it
        self,
        normalized_shape: Any,
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        dim: int | Sequence[int] | None = None,
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, device, dtype)
        self.dim = _own_dimensions(dim)

    @scripted_as(nn.RMSNorm.forward)
    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, self.normalized_shape, _parameter(self, "weight"), self.eps, dim=self.dim)
