"""Second stages: what the programs that shared a group left in a buffer becomes one result. Sums in a fixed order.

The buffer is a tensor like any other, so a `Grouping` says which of its elements belong together (operand ``parts``).
"""

import triton
import triton.language as tl

from .memory import Operand, load, load_parameter, store
from .places import (
    group_entries,
    num_elements,
    num_tiles,
    own_block,
    own_tiles,
    tensor_offsets,
    tile_at,
)
from .statistics import Saved, merge_parts, save_statistics, update_running
from .sums import sum_tile


@triton.jit
def merge_moments(parts, mean, rstd, correction, running, eps, group, plan: tl.constexpr):
    """Merge (count, mean, correction, squares) of every part into each group's statistics.

    Args:
        parts: (4, ...) moments, at ``group.parts`` in each of four planes.
        mean, rstd: results, at ``group.stats``; ``mean`` is None if it is fixed at zero.
        correction: what the rounded mean misses of the exact one, at ``group.stats``.
        running, eps: as in `normalize_forward`.

    Grid: (blocks of groups, 1).
    """
    block = own_block(group, plan)
    where = group_entries(group.stats, block, plan)
    found = merge_parts(parts, block, group, plan)
    save_statistics(Saved(mean, rstd, None, running, eps), where, found, plan)
    if mean is not None:
        store(correction, where.offsets, found.correction, where.mask)


@triton.jit
def sum_of_parts(parts, weight, block, group, plan: tl.constexpr):
    """The sums of a block's parts, weighted if there is a weight: (block_kept, 1, 1)."""
    dtype: tl.constexpr = parts.dtype.element_ty
    total = tl.full((plan.block_kept, plan.block_r1, plan.block_r2), 0.0, dtype)
    for t in tl.range(num_tiles(group, plan)):
        at = tile_at(t, block, group, plan)
        part = load(parts, tensor_offsets(group.parts, at, plan), at.mask, dtype)
        if weight is not None:
            w = load_parameter(Operand(weight, group.weight), at, dtype, plan)
            total = tl.fma(part, w, total)
        else:
            total += part
    return sum_tile(total, plan)


@triton.jit
def sum_buffer(parts, weight, out, block, group, plan: tl.constexpr):
    """One of the sums of `sum_parts`, for one block of results; None of them if ``out`` is."""
    if out is not None:
        where = group_entries(group.stats, block, plan)
        store(out, where.offsets, sum_of_parts(parts, weight, block, group, plan), where.mask)


@triton.jit
def sum_parts(first_parts, second_parts, weight, first_out, second_out, group, plan: tl.constexpr):
    """Sum two buffers of partial sums, weighted or not: parameter gradients, or the sums that dx needs.

    Args:
        first_parts, second_parts: partial sums at ``group.parts``.
        weight: None, or factors at ``group.weight``.
        first_out, second_out: their sums at ``group.stats``, in their own dtypes; or None.

    Grid: (blocks of results, 1).
    """
    block = own_block(group, plan)
    sum_buffer(first_parts, weight, first_out, block, group, plan)
    sum_buffer(second_parts, weight, second_out, block, group, plan)


@triton.jit
def average_running(mean, variance, running, group, plan: tl.constexpr):
    """Blend the average of several groups' statistics into the running ones: instance norm's, over the batch.

    Args:
        mean, variance: of each group, the variance unbiased, at ``group.parts``.
        running: `Running` statistics, at ``group.stats`` times their own stride.

    Grid: (blocks of running statistics, 1).
    """
    dtype: tl.constexpr = mean.dtype.element_ty
    block = own_block(group, plan)
    first, last = own_tiles(block, group, plan)
    sum_mean = tl.full((plan.block_kept, plan.block_r1, plan.block_r2), 0.0, dtype)
    sum_variance = sum_mean
    for i in tl.range(last - first):
        at = tile_at(first + i, block, group, plan)
        offsets = tensor_offsets(group.parts, at, plan)
        sum_mean += load(mean, offsets, at.mask, dtype)
        sum_variance += load(variance, offsets, at.mask, dtype)
    n = num_elements(group, dtype)
    average, unbiased = sum_tile(sum_mean, plan) / n, sum_tile(sum_variance, plan) / n
    update_running(running, group_entries(group.stats, block, plan), average, unbiased, None, plan)
