"""What surrounds a norm, of one tile: what comes before its statistics, and what comes after its linear map.

Of a norm alone these functions load, return or store what they are given. Each stage has its formula and its derivative
here and nowhere else; `normtriton.planning.stages` says in which order they stand.

    u = x * act(gate)                    if ``gate_first``
    u = u + residual                     stored, in the dtype of ``total``, and normalized as it was stored
    z = x̂ * (offset + weight) + bias
    z = z + skip
    y = act(z), or with a gate z * act(gate), unless that came first
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .activations import activate, slope
from .memory import Operand, load_first, load_parameter, load_tile, rounded, store_tile


class Around(NamedTuple):
    """The tensors around a norm, forward: pointers as they are handed over, an `Operand` each within the kernel.

    An operand that is not there has no pointer. Handed over, any other tensor takes its place, and a `Grouping` has no
    strides of it: Triton 3.6 cannot compare tuples that hold a None.

    Attributes:
        residual: added to x before the norm.
        total: where the sum goes.
        skip: added after the linear map.
        gate: what it gives is multiplied with it, or x is.
    """

    residual: Any
    total: Any
    skip: Any
    gate: Any


class Behind(NamedTuple):
    """The tensors around a norm, backward, as `Around`.

    Attributes:
        bias: which the input of the activation is computed with.
        skip, gate: as they were.
        before: x, where it was multiplied with a gate and a residual was added to it.
        dtotal: the gradient of the sum that was returned.
        dskip, dgate, dresidual: gradients.
    """

    bias: Any
    skip: Any
    gate: Any
    before: Any
    dtotal: Any
    dskip: Any
    dgate: Any
    dresidual: Any


@triton.jit
def present(pointer, strides):
    """An operand, which takes part if it has strides."""
    if strides is None:
        operand = Operand(None, None)
    else:
        operand = Operand(pointer, strides)
    return operand


@triton.jit
def around_forward(pointers, group):
    """`Around` from its pointers, or None."""
    if pointers is None:
        nothing = Operand(None, None)
        around = Around(nothing, nothing, nothing, nothing)
    else:
        around = Around(
            present(pointers.residual, group.residual), present(pointers.total, group.total),
            present(pointers.skip, group.skip), present(pointers.gate, group.gate),
        )  # fmt: skip
    return around


@triton.jit
def around_backward(pointers, group):
    """`Behind` from its pointers, or None."""
    if pointers is None:
        nothing = Operand(None, None)
        behind = Behind(nothing, nothing, nothing, nothing, nothing, nothing, nothing, nothing)
    else:
        behind = Behind(
            present(pointers.bias, group.bias), present(pointers.skip, group.skip), present(pointers.gate, group.gate),
            present(pointers.before, group.before), present(pointers.dtotal, group.dtotal),
            present(pointers.dskip, group.dskip), present(pointers.dgate, group.dgate),
            present(pointers.dresidual, group.dresidual),
        )  # fmt: skip
    return behind


@triton.jit
def gated(x, gate, at, plan: tl.constexpr):
    """X * act(gate), of one tile, if that comes first."""
    if plan.gate_first:
        x *= activate(load_tile(gate, at, x.dtype, plan), plan.activation)
    return x


@triton.jit
def load_input(given, at, dtype: tl.constexpr, plan: tl.constexpr):
    """What is normalized, of one tile; a sum is stored on the way."""
    x = gated(load_tile(given.x, at, dtype, plan), given.around.gate, at, plan)
    if given.around.residual.pointer is not None:
        total = given.around.total
        x = rounded(x + load_tile(given.around.residual, at, dtype, plan), total.pointer.dtype.element_ty)
        store_tile(total, at, x, plan)
    return x


@triton.jit
def load_input_again(given, at, dtype: tl.constexpr, plan: tl.constexpr):
    """What is normalized, of a tile that this launch or one before it has stored the sum of."""
    if given.around.residual.pointer is not None:
        x = load_tile(given.around.total, at, dtype, plan)
    else:
        x = gated(load_tile(given.x, at, dtype, plan), given.around.gate, at, plan)
    return x


@triton.jit
def load_first_input(given, block, dtype: tl.constexpr, plan: tl.constexpr):
    """An element of each group that is normalized, the same for all programs that share it: (block_kept, 1, 1)."""
    x = load_first(given.x, block, dtype, plan)
    if plan.gate_first:
        x *= activate(load_first(given.around.gate, block, dtype, plan), plan.activation)
    if given.around.residual.pointer is not None:
        x += load_first(given.around.residual, block, dtype, plan)
        x = rounded(x, given.around.total.pointer.dtype.element_ty)
    return x


@triton.jit
def finish(around, z, at, plan: tl.constexpr):
    """Y, from what the linear map gives, of one tile."""
    if around.skip.pointer is not None:
        z += load_tile(around.skip, at, z.dtype, plan)
    if not plan.gate_first:
        if around.gate.pointer is not None:
            z *= activate(load_tile(around.gate, at, z.dtype, plan), plan.activation)
        else:
            z = activate(z, plan.activation)
    return z


@triton.jit
def factor(w, plan: tl.constexpr):
    """What a weight multiplies by: offset + weight."""
    if plan.offset != 0.0:
        w += plan.offset
    return w


@triton.jit
def load_factor(operand, at, dtype: tl.constexpr, plan: tl.constexpr):
    """`factor` of the weight for a tile."""
    return factor(load_parameter(operand, at, dtype, plan), plan)


@triton.jit
def linear_of(given, at, dtype: tl.constexpr, plan: tl.constexpr):
    """(weight, bias) for a tile, as far as what comes after them has to be computed again; else numbers."""
    w, b = 1.0, 0.0
    if not plan.gate_first and (plan.activation != "" or given.behind.gate.pointer is not None):
        if given.weight.pointer is not None:
            w = load_factor(given.weight, at, dtype, plan)
        if given.behind.bias.pointer is not None:
            b = load_parameter(given.behind.bias, at, dtype, plan)
    return w, b


@triton.jit
def followed(behind, xhat, linear, at, plan: tl.constexpr):
    """Z again, of one tile: what the activation, or the gate, was applied to."""
    z = xhat * linear[0] + linear[1]
    if behind.skip.pointer is not None:
        z += load_tile(behind.skip, at, xhat.dtype, plan)
    return z


@triton.jit
def pull_back(behind, g, xhat, linear, at, plan: tl.constexpr, stores: tl.constexpr):
    """The gradient of what the linear map gives, from dy; ``stores`` those of skip and gate besides."""
    if plan.gate_first:
        pass
    elif behind.gate.pointer is not None:
        gate = load_tile(behind.gate, at, g.dtype, plan)
        if stores and behind.dgate.pointer is not None:
            z = followed(behind, xhat, linear, at, plan)
            store_tile(behind.dgate, at, g * z * slope(gate, plan.activation), plan)
        g *= activate(gate, plan.activation)
    elif plan.activation != "":
        g *= slope(followed(behind, xhat, linear, at, plan), plan.activation)
    if stores and behind.dskip.pointer is not None:
        store_tile(behind.dskip, at, g, plan)
    return g


@triton.jit
def load_kept(given, at, dtype: tl.constexpr, plan: tl.constexpr):
    """What was normalized, of one tile, in the backward pass: it was kept, or is x and a gate."""
    x = load_tile(given.x, at, dtype, plan)
    if given.behind.before.pointer is None:
        x = gated(x, given.behind.gate, at, plan)
    return x


@triton.jit
def store_input_gradient(given, at, d, plan: tl.constexpr):
    """Dx of one tile: what comes through the norm, and what comes from the sum that was returned; through a gate."""
    behind = given.behind
    if behind.dtotal.pointer is not None:
        d += load_tile(behind.dtotal, at, d.dtype, plan)
    if plan.gate_first:
        if behind.dresidual.pointer is not None:
            store_tile(behind.dresidual, at, d, plan)
        gate = load_tile(behind.gate, at, d.dtype, plan)
        if behind.dgate.pointer is not None:
            if behind.before.pointer is not None:
                x = load_tile(behind.before, at, d.dtype, plan)
            else:
                x = load_tile(given.x, at, d.dtype, plan)
            store_tile(behind.dgate, at, d * x * slope(gate, plan.activation), plan)
        d *= activate(gate, plan.activation)
    store_tile(given.dx, at, d, plan)
