"""What surrounds a norm, of one tile: what comes before its statistics, and what comes after its linear map.

Of a norm alone these functions load, return or store what they are given. Each stage has its formula and its derivative
here and nowhere else; `normtriton.planning.stages` says in which order they stand.

    u = x * act(gate)                    if ``gate_first``
    u = u * x_scale
    u = u + residual                     stored, in the dtype of ``total``, and normalized as it was stored
    z = x̂ * (offset + weight) + bias
    z = z + skip
    y = act(z), or with a gate z * act(gate), unless that came first
    y = 0 where a mask is false
    q = the code of y / q_scale, or of y divided by the group's own scale
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .activations import activate, slope
from .cluster import first_of_cells
from .memory import (
    Operand,
    load,
    load_first,
    load_parameter,
    load_spread,
    load_tile,
    load_truth,
    rounded,
    store_entries,
    store_tile,
)
from .places import first_elements, group_entries, num_elements
from .quantize import code, largest
from .sums import max_tile


class Around(NamedTuple):
    """Pointers of the tensors around a norm, forward.

    Which of them there are a `Grouping` says, which has strides of those alone; any other tensor takes the place of
    one that is not there. (Triton 3.6 cannot compare tuples that hold a None, nor return one from a function.)

    Attributes:
        residual: added to x before the norm.
        total: where the sum goes.
        skip: added after the linear map.
        gate: what it gives is multiplied with it, or x is.
        x_scale: x is multiplied with it.
        mask: truth values; where it is false an element takes no part.
        count: how many elements of each group take part, at ``group.stats``: written, backward read.
        q_scale: what y is divided by where it is quantized, if that is given.
        own_scale: else where each group's goes, at ``group.stats``.
    """

    residual: Any
    total: Any
    skip: Any
    gate: Any
    x_scale: Any
    mask: Any
    count: Any
    q_scale: Any
    own_scale: Any


class Behind(NamedTuple):
    """Pointers of the tensors around a norm, backward, as `Around`.

    Attributes:
        bias: which the input of the activation is computed with.
        skip, gate, x_scale, mask, count: as they were.
        before: x, where it was multiplied with something and a residual was added to it.
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
    x_scale: Any
    mask: Any
    count: Any


@triton.jit
def multiplied(x, given, at, plan: tl.constexpr):
    """X * act(gate), if that comes first, * x_scale, of one tile."""
    if plan.gate_first:
        gate = load_tile(Operand(given.around.gate, given.strides.gate), at, x.dtype, plan)
        x *= activate(gate, plan)
    return scaled(x, given, at, plan)


@triton.jit
def scaled(x, given, at, plan: tl.constexpr):
    """X * x_scale, of one tile, if there is one."""
    if given.strides.x_scale is not None:
        x *= load_spread(Operand(given.around.x_scale, given.strides.x_scale), at, x.dtype, plan.x_scale_reduced, plan)
    return x


@triton.jit
def taking_part(given, at, plan: tl.constexpr):
    """Which elements of a tile take part, with a mask around the norm."""
    return load_truth(Operand(given.around.mask, given.strides.mask), at, plan.mask_reduced, plan)


@triton.jit
def masked(values, given, at, plan: tl.constexpr):
    """Values of one tile; 0 where a mask is false, whatever they were."""
    if plan.masked:
        values = tl.where(taking_part(given, at, plan), values, 0.0)
    return values


@triton.jit
def number_of(given, where, group, dtype: tl.constexpr, plan: tl.constexpr):
    """How many elements each group's sums are of, backward: at least one."""
    if plan.masked and not plan.constant:
        number = load(given.around.count, where.offsets, where.mask, dtype, 1.0)
    else:
        number = num_elements(group, dtype)
    return number


@triton.jit
def load_input(given, at, dtype: tl.constexpr, plan: tl.constexpr):
    """What is normalized, of one tile; a sum is stored on the way."""
    x = multiplied(load_tile(given.x, at, dtype, plan), given, at, plan)
    if given.strides.residual is not None:
        residual = load_tile(Operand(given.around.residual, given.strides.residual), at, dtype, plan)
        x = rounded(x + residual, given.around.total.dtype.element_ty)
        store_tile(Operand(given.around.total, given.strides.total), at, x, plan)
    return x


@triton.jit
def load_input_again(given, at, dtype: tl.constexpr, plan: tl.constexpr):
    """What is normalized, of a tile that this launch or one before it has stored the sum of."""
    if given.strides.total is not None:
        x = load_tile(Operand(given.around.total, given.strides.total), at, dtype, plan)
    else:
        x = multiplied(load_tile(given.x, at, dtype, plan), given, at, plan)
    return x


@triton.jit
def load_first_input(given, block, dtype: tl.constexpr, plan: tl.constexpr):
    """An element of each group that is normalized, the same for all programs that share it: (block_kept, 1, 1)."""
    x = load_first(given.x, block, dtype, plan)
    if plan.gate_first:
        gate = load_first(Operand(given.around.gate, given.strides.gate), block, dtype, plan)
        x *= activate(gate, plan)
    x = scaled(x, given, first_elements(block), plan)
    if given.strides.residual is not None:
        x += load_first(Operand(given.around.residual, given.strides.residual), block, dtype, plan)
        x = rounded(x, given.around.total.dtype.element_ty)
    return x


@triton.jit
def add_skip(z, given, at, plan: tl.constexpr):
    """Z + skip, of one tile, if there is one."""
    if given.strides.skip is not None:
        z += load_tile(Operand(given.around.skip, given.strides.skip), at, z.dtype, plan)
    return z


@triton.jit
def finish(z, given, at, plan: tl.constexpr):
    """Y, from what the linear map gives, of one tile."""
    z = add_skip(z, given, at, plan)
    if not plan.gate_first:
        if given.strides.gate is not None:
            gate = load_tile(Operand(given.around.gate, given.strides.gate), at, z.dtype, plan)
            z *= activate(gate, plan)
        else:
            z = activate(z, plan)
    return masked(z, given, at, plan)


@triton.jit
def coded(y, given, block, at, plan: tl.constexpr):
    """Y of one tile as it is stored: itself, or quantized."""
    if plan.quantize != "":
        y = y.to(tl.float32)
        if given.strides.q_scale is not None:
            scale = load_spread(
                Operand(given.around.q_scale, given.strides.q_scale), at, tl.float32, plan.q_scale_reduced, plan
            )
            scale = tl.where(at.mask, scale, 1.0)
        else:  # the tile is the whole group
            scale = max_tile(tl.where(at.mask, tl.abs(y), 0.0), plan) / largest(plan)
            scale = tl.where(scale == 0.0, 1.0, scale)
            where = first_of_cells(group_entries(given.strides.stats, block, plan), block, plan)
            store_entries(given.around.own_scale, where, scale, plan)
        y = code(y / scale, plan)
    return y


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
    if not plan.gate_first and (plan.activation != "" or given.strides.gate is not None):
        if given.weight.pointer is not None:
            w = load_factor(given.weight, at, dtype, plan)
        if given.strides.bias is not None:
            b = load_parameter(Operand(given.around.bias, given.strides.bias), at, dtype, plan)
    return w, b


@triton.jit
def pull_back(g, xhat, linear, given, at, plan: tl.constexpr, stores: tl.constexpr):
    """The gradient of what the linear map gives, from dy; ``stores`` those of skip and gate besides."""
    if not plan.gate_first:
        if given.strides.gate is not None:
            gate = load_tile(Operand(given.around.gate, given.strides.gate), at, g.dtype, plan)
            if stores and given.strides.dgate is not None:
                z = add_skip(xhat * linear[0] + linear[1], given, at, plan)
                dgate = masked(g * z * slope(gate, plan), given, at, plan)
                store_tile(Operand(given.around.dgate, given.strides.dgate), at, dgate, plan)
            g *= activate(gate, plan)
        elif plan.activation != "":
            g *= slope(add_skip(xhat * linear[0] + linear[1], given, at, plan), plan)
    g = masked(g, given, at, plan)
    if stores and given.strides.dskip is not None:
        store_tile(Operand(given.around.dskip, given.strides.dskip), at, g, plan)
    return g


@triton.jit
def load_kept(given, at, dtype: tl.constexpr, plan: tl.constexpr):
    """What was normalized, of one tile, in the backward pass: it was kept, or is x and what it was multiplied with."""
    x = load_tile(given.x, at, dtype, plan)
    if given.strides.before is None:
        x = multiplied(x, given, at, plan)
    return x


@triton.jit
def store_input_gradient(d, given, at, plan: tl.constexpr):
    """Dx of one tile: what comes through the norm, and what comes from the sum that was returned; multiplied as x."""
    d = masked(d, given, at, plan)
    if given.strides.dtotal is not None:
        d += load_tile(Operand(given.around.dtotal, given.strides.dtotal), at, d.dtype, plan)
    if given.strides.dresidual is not None:
        store_tile(Operand(given.around.dresidual, given.strides.dresidual), at, d, plan)
    d = scaled(d, given, at, plan)
    if plan.gate_first:
        gate = load_tile(Operand(given.around.gate, given.strides.gate), at, d.dtype, plan)
        if given.strides.dgate is not None:
            if given.strides.before is not None:
                x = load_tile(Operand(given.around.before, given.strides.before), at, d.dtype, plan)
            else:
                x = load_tile(given.x, at, d.dtype, plan)
            dgate = d * x * slope(gate, plan)
            if given.strides.before is None:
                dgate = masked(dgate, given, at, plan)
            store_tile(Operand(given.around.dgate, given.strides.dgate), at, dgate, plan)
        d *= activate(gate, plan)
    store_tile(given.dx, at, d, plan)
