"""Second stages: what the programs that shared a group left in a buffer becomes one result. Sums in a fixed order.

The buffer is a tensor like any other, so a `Grouping` says which of its elements belong together (operand ``parts``).
"""

import triton
import triton.language as tl

from .memory import Operand, load, load_first, load_parameter, store
from .places import (
    block_at,
    group_entries,
    num_blocks,
    num_elements,
    num_tiles,
    own_block,
    own_tiles,
    tensor_offsets,
    tile_at,
)
from .statistics import Moments, Saved, combine, save_statistics, update_running
from .sums import sum_tile


@triton.jit
def merged_tile(parts, plane, pivot, at, group, plan: tl.constexpr):
    """`Moments` of each group over a tile of its parts; their mean is ``pivot`` and the correction."""
    dtype: tl.constexpr = parts.dtype.element_ty
    offsets = tensor_offsets(group.parts, at, plan)
    n = load(parts, offsets, at.mask, dtype)
    mean = load(parts + plane, offsets, at.mask, dtype)
    correction = load(parts + plane * 2, offsets, at.mask, dtype)
    squares = load(parts + plane * 3, offsets, at.mask, dtype)
    relative = tl.where(n == 0.0, 0.0, (mean - pivot) + correction)
    total = sum_tile(n, plan)
    whole = tl.where(total == 0.0, 1.0, total)
    correction = sum_tile(relative * n, plan) / whole
    deviation = relative - correction
    return Moments(total, pivot, correction, sum_tile(squares + deviation * deviation * n, plan))


@triton.jit(do_not_specialize=["plane"])
def merge_moments(parts, plane, mean, rstd, correction, running, eps, group, plan: tl.constexpr):
    """Merge (count, mean, correction, squares) of every part into each group's statistics.

    Args:
        parts: (4, ...) moments, at ``group.parts`` in each of four planes, ``plane`` elements apart.
        mean, rstd: results, at ``group.stats``; ``mean`` is None if it is fixed at zero.
        correction: what the rounded mean misses of the exact one, at ``group.stats``.
        running, eps: as in `normalize_forward`.

    Grid: (blocks of groups, 1). Means stay relative to the group's first part: subtracting absolute float32 means lost
    up to 9 % of a standard deviation where the mean was a million of them, relative ones 2e-7.
    """
    dtype: tl.constexpr = parts.dtype.element_ty
    block = own_block(group, plan)
    where = group_entries(group.stats, block, plan)
    first, last = own_tiles(block, group, plan)
    pivot = load_first(Operand(parts + plane, group.parts), block, dtype, plan)
    zeros = tl.full((plan.block_kept, 1, 1), 0.0, dtype)
    found = Moments(zeros, zeros, zeros, zeros)
    for i in tl.range(last - first):
        at = tile_at(first + i, block, group, plan)
        found = combine(found, merged_tile(parts, plane, pivot, at, group, plan))
    total = found.mean + found.correction
    count = tl.where(where.mask, found.count, 1.0)
    saved = Saved(mean, rstd, None, running, eps)
    save_statistics(saved, where, Moments(count, found.mean, found.correction, found.squares), plan)
    if mean is not None:
        store(correction, where.offsets, (found.mean - total) + found.correction, where.mask)


@triton.jit
def sum_buffer(parts, weight, out, block, group, plan: tl.constexpr):
    """One of the sums of `sum_parts`, for one block of results; None of them if ``out`` is."""
    if out is not None:
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
        where = group_entries(group.stats, block, plan)
        store(out, where.offsets, sum_tile(total, plan), where.mask)


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
def sum_twice(
    sum_dy, sum_dyx, weight, dy_out, dyx_out, row_dy, row_dyx, dbias, dweight, group, also, plan: tl.constexpr,
    also_plan: tl.constexpr,
):  # fmt: skip
    """What dx needs and the parameter gradients, which do not wait for each other: two `sum_parts` in one launch.

    Args:
        sum_dy, sum_dyx, weight, dy_out, dyx_out, group, plan: of the one.
        row_dy, row_dyx, dbias, dweight, also, also_plan: of the other, which has no weight.

    Grid: (blocks of results of both, 1).
    """
    number = tl.program_id(0)
    blocks = num_blocks(group, plan)
    if number < blocks:
        block = block_at(number, 0, group, plan)
        sum_buffer(sum_dy, weight, dy_out, block, group, plan)
        sum_buffer(sum_dyx, weight, dyx_out, block, group, plan)
    else:
        row_block = block_at(number - blocks, 0, also, also_plan)
        sum_buffer(row_dy, None, dbias, row_block, also, also_plan)
        sum_buffer(row_dyx, None, dweight, row_block, also, also_plan)


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
