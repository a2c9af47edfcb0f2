"""Sums of tiles, in a fixed order. Values in, values out: nothing here knows where elements lie.

Across the thread blocks of a cluster the sums of `cluster` take over.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from . import INTERPRETED
from .cluster import max_joined, sum_joined, sum_joined_pair, sum_pair


class Sums(NamedTuple):
    """Σ dy and Σ dy * x̂, weighted or not; or pointers to them."""

    dy: Any
    dyx: Any


@triton.jit
def summands(values, plan: tl.constexpr):
    """A tile with all that is to be summed along its last axis: (block_kept, r1 * r2).

    So a thread adds its own elements before any are exchanged: 27 shuffles against 432 for a sum along one axis after
    the other. A single group becomes (r1 * r2,): across a cluster, (1, r1 * r2) takes more exchanges, or does not
    compile. Where r1 is 1 a tile stays as it is: Triton 3.6 spilled 6632 bytes after a reshape of (4, 1, 256), none
    without. Where a cluster shares the rows of many columns, each thread block sums its own first: (block_kept, ctas).
    """
    if plan.shares_rows:
        flat = tl.sum(values, 2)
    elif values.shape[0] == 1:
        flat = tl.reshape(values, (values.shape[1] * values.shape[2],))
    elif values.shape[1] == 1:
        flat = values
    else:
        flat = tl.reshape(values, (values.shape[0], values.shape[1] * values.shape[2]))
    return flat


@triton.jit
def spread_out(sums, kept: tl.constexpr):
    """Sums along the last axis of what `summands` made, as (kept, 1, 1).

    By a new axis where there is one to sum for each of several groups: after a reshape Triton 3.6 computes with the
    whole tile in every thread, and spilled 12 KB of it.
    """
    if len(sums.shape) == 2:
        sums = sums[:, :, None]
    elif len(sums.shape) == 1:
        sums = tl.reshape(sums, (kept, 1, 1))
    return sums


@triton.jit
def sum_tile(values, plan: tl.constexpr):
    """Sums over (r1, r2), and over the cells of a group, dimensions kept: (block_kept, 1, 1)."""
    if plan.block_groups > 0:
        sums = sum_joined(values, plan)
    else:
        flat = summands(values, plan)
        sums = spread_out(tl.sum(flat, len(flat.shape) - 1, keep_dims=True), values.shape[0])
    return sums


@triton.jit
def max_tile(values, plan: tl.constexpr):
    """The largest of each group's values in a tile, and of a group's cells: (block_kept, 1, 1)."""
    if plan.block_groups > 0:
        largest = max_joined(values, plan)
    else:
        if plan.shares_rows:
            flat = tl.max(values, 2)
        else:
            flat = summands(values, plan)
        largest = spread_out(tl.max(flat, len(flat.shape) - 1, keep_dims=True), values.shape[0])
    return largest


@triton.jit
def sum_tiles(a, b, plan: tl.constexpr):
    """`sum_tile` of two tiles."""
    if plan.block_groups > 0:
        sum_a, sum_b = sum_joined_pair(a, b, plan)
    else:
        flat_a, flat_b = summands(a, plan), summands(b, plan)
        sum_a, sum_b = sum_pair(flat_a, flat_b, len(flat_a.shape) - 1, plan)
        sum_a, sum_b = spread_out(sum_a, a.shape[0]), spread_out(sum_b, a.shape[0])
    return sum_a, sum_b


@triton.jit
def sum_where_constant(a, b, plan: tl.constexpr):
    """Sum two tiles over the axes along which the parameters are constant, dimensions kept."""
    if plan.affine_r1 and plan.affine_r2:
        sum_a, sum_b = a, b
    elif plan.affine_r1 or plan.affine_r2:
        sum_a, sum_b = sum_pair(a, b, 2 if plan.affine_r1 else 1, plan)
    else:
        sum_a, sum_b = sum_tiles(a, b, plan)
    return sum_a, sum_b


@triton.jit
def with_products(a, b, plan: tl.constexpr):
    """(a, a * b) of two tiles, to be summed along r2; of one group, a thread's neighbours are added already.

    The first of two products is rounded, the second one fused with the addition. That takes the instructions that
    multiplying and adding one by one would take if the compiler fused them, and their registers: compiled, the squares
    of 16384 elements took 64 instead of 75, so that a multiprocessor has room for two programs. Not in the interpreter:
    numpy's sums then lose more of what is small beside an outlier (2.16 roundings instead of 1.42, in the mean of 60
    draws; executed as compiled code it is 1.09 instead of 1.04).
    """
    if plan.vector_axis == "r2" and plan.vector > 1 and a.shape[0] == 1 and not INTERPRETED:
        pairs: tl.constexpr = (a.shape[0], a.shape[1], a.shape[2] // 2, 2)
        first_a, second_a = tl.split(tl.reshape(a, pairs))
        first_b, second_b = tl.split(tl.reshape(b, pairs))
        a, products = first_a + second_a, tl.fma(second_a, second_b, first_a * first_b)
    else:
        products = a * b
    return a, products
