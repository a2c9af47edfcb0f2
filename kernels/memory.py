"""Loads and stores, all of them: what is loaded takes the dtype of the arithmetic, what is stored is rounded.

`load` and `store` move what offsets and a mask say, the others an operand of some kind; who takes `load_raw` calls
`widen`. Nothing is computed here, and where elements are is said in `places`.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from . import INTERPRETED
from .cluster import by_rows, for_each_block, from_rows, in_first_block
from .places import Entries, cell_offsets, distance, first_elements, spread_entries, tensor_offsets


class Operand(NamedTuple):
    """A tensor: its pointer, None if it is not there, and its `Strides`."""

    pointer: Any
    strides: Any


@triton.jit
def widen(values, dtype: tl.constexpr):
    """What was loaded, in the dtype of the arithmetic.

    The interpreter converts bfloat16's subnormal numbers wrongly, so there it is done by hand: they are the upper half
    of a float32.
    """
    if INTERPRETED and values.dtype.scalar == tl.bfloat16:
        bits = values.to(tl.int16, bitcast=True).to(tl.int32) << 16
        values = bits.to(tl.float32, bitcast=True)
    return values.to(dtype)


@triton.jit
def load(pointer, offsets, mask, dtype: tl.constexpr, other: tl.constexpr = 0.0):
    """Elements in the dtype of the arithmetic; ``other`` outside the mask."""
    return widen(tl.load(pointer + offsets, mask=mask, other=other), dtype)


@triton.jit
def narrow(values, dtype: tl.constexpr):
    """Values in a tensor's dtype, rounded to nearest even.

    Hardware rounds so. The interpreter would truncate float32 to bfloat16, subnormal numbers to others, so there it is
    done by hand.
    """
    if INTERPRETED and dtype == tl.bfloat16:
        values = values.to(tl.float32)
        bits = values.to(tl.int32, bitcast=True)
        upper = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        values = tl.where(values == values, upper, 0x7FC0).to(tl.int16).to(tl.bfloat16, bitcast=True)
    return values.to(dtype)


@triton.jit
def rounded(values, dtype: tl.constexpr):
    """Values as they will be read after they were stored in a tensor of this dtype."""
    return widen(narrow(values, dtype), values.dtype)


@triton.jit
def store(pointer, offsets, values, mask):
    """Round to the pointer's dtype and store."""
    tl.store(pointer + offsets, narrow(values, pointer.dtype.element_ty), mask=mask)


@triton.jit
def count_up(pointer, mask):
    """Add 1 to an integer."""
    tl.store(pointer, tl.load(pointer, mask=mask, other=0) + 1, mask=mask)


@triton.jit
def load_rows(pointer, offsets, mask, plan: tl.constexpr):
    """A tile as it is in memory, 0 outside the mask."""
    return from_rows(tl.load(pointer + by_rows(offsets, plan), mask=by_rows(mask, plan), other=0), plan)


@triton.jit
def load_raw(operand, at, plan: tl.constexpr):
    """A tile of a tensor of full size as it is in memory, 0 outside the mask."""
    return load_rows(operand.pointer, tensor_offsets(operand.strides, at, plan), at.mask, plan)


@triton.jit
def load_tile(operand, at, dtype: tl.constexpr, plan: tl.constexpr):
    """A tile of a tensor of full size in the dtype of the arithmetic."""
    return widen(load_raw(operand, at, plan), dtype)


@triton.jit
def load_where(pointer, offsets, mask, reduced: tl.constexpr, plan: tl.constexpr):
    """What `spread_entries` say, as it is in memory: a tile, or a number a group."""
    if reduced:
        values = load_rows(pointer, offsets, mask, plan)
    else:
        values = tl.load(pointer + offsets, mask=mask, other=0)
    return values


@triton.jit
def load_spread(operand, at, dtype: tl.constexpr, reduced: tl.constexpr, plan: tl.constexpr):
    """A tile of a tensor that broadcasts against those of full size; a number a group if it has no ``reduced`` axis."""
    where = spread_entries(operand.strides, at, reduced, plan)
    return widen(load_where(operand.pointer, where.offsets, where.mask, reduced, plan), dtype)


@triton.jit
def load_truth(operand, at, reduced: tl.constexpr, plan: tl.constexpr):
    """The same of truth values, a byte each; false outside the tile.

    So many of them are loaded at once as of a tensor of full size. By sixteen, a thread would be given sixteen elements
    of each tensor, more than it stores at once, and threads would exchange them.
    """
    where = spread_entries(operand.strides, at, reduced, plan)
    offsets = where.offsets
    if plan.mask_vector > 1:
        run: tl.constexpr = (1, 1, plan.mask_vector) if plan.vector_axis == "r2" else (plan.mask_vector, 1, 1)
        offsets = tl.max_contiguous(tl.multiple_of(offsets, run), run)
    there = load_where(operand.pointer, offsets, where.mask, reduced, plan) != 0
    if not reduced:
        there = there & at.mask
    return there


@triton.jit
def load_first(operand, block, dtype: tl.constexpr, plan: tl.constexpr):
    """An element of each group, the same for all programs that share it: (block_kept, 1, 1)."""
    at = first_elements(block)
    return load(operand.pointer, tensor_offsets(operand.strides, at, plan), at.mask, dtype)


@triton.jit
def store_tile(operand, at, values, plan: tl.constexpr):
    """Store a tile of a tensor of full size."""
    offsets = tensor_offsets(operand.strides, at, plan)
    store(operand.pointer, by_rows(offsets, plan), by_rows(values, plan), by_rows(at.mask, plan))


@triton.jit
def load_constant(operand, block, dtype: tl.constexpr, plan: tl.constexpr):
    """A parameter that is constant within a group: (block_kept, 1, 1)."""
    return load(operand.pointer, cell_offsets(operand.strides, block, plan), block.exists[:, None, None], dtype)


@triton.jit
def load_parameter(operand, at, dtype: tl.constexpr, plan: tl.constexpr):
    """A parameter for a tile: (block_kept, 1, 1) where it is constant within a group.

    Along r2 it takes the tile's whole shape: loaded as a vector and broadcast afterwards, it is converted from its own
    register layout to the tile's through shared memory (11 barriers against 3 for float32 beside bfloat16).
    """
    offsets = cell_offsets(operand.strides, at, plan)
    there = at.exists[:, None, None]
    if plan.affine_reduced:
        offsets += distance(at.walk, operand.strides.walk) + (at.r1 * operand.strides.r1)[None, :, None]
        there = there & at.in1[None, :, None]
    if plan.affine_r2:
        offsets += (at.r2 * operand.strides.r2)[None, None, :]
        there = at.mask
    return load(operand.pointer, offsets, there, dtype)


@triton.jit
def stored_once(where, plan: tl.constexpr):
    """Where one entry for each group is read and stored: by one thread block of a cluster that shares its rows."""
    return Entries(for_each_block(where.offsets, plan), in_first_block(where.mask, plan))


@triton.jit
def store_entries(pointer, where, values, plan: tl.constexpr):
    """Store what a tile has left of each group, if there is a pointer."""
    if pointer is not None:
        once = stored_once(where, plan)
        store(pointer, once.offsets, for_each_block(values, plan), once.mask)
