"""Layers for the ``kernels`` package of Hugging Face, whose ``kernelize`` has a model's norms computed by the library.

    from kernels import Mode, kernelize, use_kernel_mapping

    with use_kernel_mapping({name: {"cuda": Installed(name)} for name in Installed.names()}):
        model = kernelize(model, mode=Mode.TRAINING | Mode.TORCH_COMPILE)

``kernelize`` binds a layer's ``forward`` to each module whose class says ``use_kernel_forward_from_hub`` of the layer's
name. So a layer has no state and no constructor, and reads what it needs from the module: ``weight``, and
``variance_epsilon`` or ``eps``. The names are those that transformers gives. A repository of kernels has the layers as
its ``layers``: ``from normtriton import hub as layers``.

The result has the input's dtype, and is rounded to it once, where some of transformers' norms round before they
multiply by the weight.

Source: the rules for layers are those of ``kernels.layer.layer._validate_layer``, kernels 0.17.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn

from . import functional

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Installed", "LayerNorm", "RMSNorm", "RMSNormGated", "RMSNormZeroCentered"]


def _eps(module: Any) -> float:
    """A module's eps: transformers has two names for it."""
    eps: float = module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps
    return eps


class RMSNorm(nn.Module):
    """`normtriton.rms_norm` of the last dimension, for ``LlamaRMSNorm`` and its kin.

    Args:
        hidden_states: (*, hidden), where weight is (hidden,).
    Returns:
        The shape and dtype of hidden_states.
    """

    can_torch_compile = True
    has_backward = True

    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        weight = self.weight
        return functional.rms_norm(hidden_states, weight.shape, weight, _eps(self))


class RMSNormZeroCentered(nn.Module):
    """`RMSNorm` with a weight that counts from one, for ``Qwen3_5RMSNorm`` and its kin.

    Args:
        x: (*, hidden), where weight is (hidden,).
    Returns:
        The shape and dtype of x.
    """

    can_torch_compile = True
    has_backward = True

    def forward(self: Any, x: Tensor) -> Tensor:
        weight = self.weight
        return functional.rms_norm(x, weight.shape, weight, _eps(self), offset=1.0)


class RMSNormGated(nn.Module):
    """`RMSNorm` times ``activation(gate)``, for ``Qwen3NextRMSNormGated`` and its kin.

    The module's ``activation`` names it: one of `normtriton.normalize`'s, or "swish".

    Args:
        hidden_states: (*, hidden), where weight is (hidden,).
        gate: of that shape, and any dtype; None for the norm alone.
    Returns:
        The shape and dtype of hidden_states.
    Raises:
        ValueError: the module has another activation.
    """

    can_torch_compile = True
    has_backward = True

    def forward(self: Any, hidden_states: Tensor, gate: Tensor | None) -> Tensor:
        weight, named = self.weight, self.activation
        activation = None if gate is None else "silu" if named == "swish" else named
        return functional.rms_norm(hidden_states, weight.shape, weight, _eps(self), gate=gate, activation=activation)


class LayerNorm(nn.Module):
    """`normtriton.layer_norm`, for `torch.nn.LayerNorm`.

    Args:
        input: (*, *normalized_shape).
    Returns:
        The shape, dtype and memory format of input.
    """

    can_torch_compile = True
    has_backward = True

    def forward(self: Any, input: Tensor) -> Tensor:  # noqa: A002  PyTorch's name
        return functional.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)


_LAYERS: dict[str, type[nn.Module]] = {
    layer.__name__: layer for layer in (RMSNorm, RMSNormZeroCentered, RMSNormGated, LayerNorm)
}


class Installed(NamedTuple):
    """A layer of the installed library, in the place of one of ``kernels``' repositories.

    Attributes:
        layer_name: one of `names`.
    """

    layer_name: str

    def load(self) -> type[nn.Module]:
        """The layer."""
        return _LAYERS[self.layer_name]

    @staticmethod
    def names() -> tuple[str, ...]:
        """The names of all layers."""
        return tuple(_LAYERS)
