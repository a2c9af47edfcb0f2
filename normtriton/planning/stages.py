"""What surrounds a norm, in the same pass over memory: which tensors, in which order, and their settings.

    u = x * act(gate)                         if ``gate_first``
    u = u * x_scale
    u = u + residual                          then (y, u) is the result
    x̂ = (u - mean(u)) * rstd(u)               rounded to x's dtype, if ``round_first``
    z = x̂ * (offset + weight) + bias
    z = z * (1 + scale) + shift               the same with another weight and bias, see `normtriton.modulation`
    z = z + skip
    y = act(z), or with a gate z * act(gate), unless that came first
    y = 0 where a mask is false               statistics are of the elements where it is true
    q = y / q_scale, quantized                or by a scale of each group's own, by its largest value

`normtriton.kernels.stages` computes them.
"""

from __future__ import annotations

from collections.abc import Callable  # noqa: TC003  of a field
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

#: What an activation may be called.
ACTIVATIONS = ("relu", "leaky_relu", "silu", "sigmoid", "tanh", "gelu", "gelu_tanh", "hardswish")


@dataclass(frozen=True)
class Activation:
    """An activation of one's own, compiled into the kernels.

    >>> @triton.jit
    ... def squared_relu(z):
    ...     return tl.where(z > 0.0, z * z, 0.0)
    >>> @triton.jit
    ... def slope(z):
    ...     return tl.where(z > 0.0, 2.0 * z, 0.0)
    >>> squared = Activation(squared_relu, slope, lambda z: F.relu(z).square())

    Differs from a name in `ACTIVATIONS` in that `torch.compile` sees PyTorch's operations.

    Args:
        act: a function of ``@triton.jit``, of values in the dtype of the arithmetic, float32 or float64.
        slope: its derivative, likewise.
        function: the same of a tensor, of operations that can be differentiated: for whatever takes PyTorch's
            operations in place of the kernels. Without it these calls raise a NotImplementedError.
    """

    act: Any
    slope: Any
    function: Callable[..., Any] | None = None

    @property
    def name(self) -> str:
        """For people."""
        return str(getattr(self.act, "__name__", self.act))

    def __repr__(self) -> str:
        """With what Triton's caches tell functions apart by: their source, and that of what they call."""
        keys = (getattr(kernel, "cache_key", id(kernel)) for kernel in (self.act, self.slope))
        return f"Activation({self.name}, {', '.join(map(str, keys))})"


class Stages(NamedTuple):
    """The settings of what surrounds a norm, which are compiled in.

    Attributes:
        activation: one of `ACTIVATIONS`, or an `Activation`, of the result or of the gate; "" for none.
        offset: what the weight counts from: it multiplies by ``offset + weight``.
        round_first: whether x̂ is rounded to x's dtype before it is multiplied by the weight.
        gate_first: whether there is a gate that x is multiplied with.
        masked: whether there is a mask.
        quantize: what the result is quantized to; "" for nothing.
    """

    activation: str | Activation = ""
    offset: float = 0.0
    round_first: bool = False
    gate_first: bool = False
    masked: bool = False
    quantize: str = ""

    def computes_again(self, gate: bool) -> bool:
        """Whether a backward pass computes again what an activation, or a ``gate`` if there is one, was applied to."""
        return not self.gate_first and (bool(self.activation) or gate)


ALONE = Stages()

#: What a backward pass writes, or is given for what it writes alone.
WRITTEN = ("dtotal", "dskip", "dgate", "dresidual")

#: What broadcasts against x.
SPREAD = ("x_scale", "mask", "q_scale")

#: Around a norm, but no tensor of x's shape: a number for each group.
OF_GROUPS = ("count", "own_scale")

#: The tensors around a norm, in x's shape, and their strides in elements; of those in `SPREAD` some are 0.
Around: TypeAlias = "tuple[tuple[str, tuple[int, ...]], ...]"
