"""Second stages: what the programs that shared a group left in a buffer becomes one result. Sums in a fixed order.

The buffer is a tensor like any other, so a `Grouping` says which of its elements belong together (operand ``parts``).
"""

import triton
import triton.language as tl

from .forward import combine, save_statistics, update_running
from .tile import (
    chunk_of_tiles,
    cube,
    load_parameter,
    locate,
    num_blocks,
    num_tiles,
    reduced_tile,
    small_offsets,
    store,
    sum_tile,
    tensor_offsets,
)


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
    outer, q, exists = locate(tl.program_id(0), group, plan)
    there = exists[:, None, None]
    first, last = chunk_of_tiles(tl.program_id(1), group, plan)
    origin = tensor_offsets(group, group.parts, outer, first, q, tl.arange(0, 1), tl.arange(0, 1), plan)
    pivot = tl.load(parts + plane + origin, mask=there, other=0.0)
    count = tl.full((plan.block_kept, 1, 1), 0.0, dtype)
    m = count
    c = count
    squares = count
    for i in tl.range(last - first):
        walk, r1, r2, in1, in2, _size = reduced_tile(first + i, group, plan)
        mask = cube(exists, in1, in2)
        at = tensor_offsets(group, group.parts, outer, walk, q, r1, r2, plan)
        n = tl.load(parts + at, mask=mask, other=0.0)
        part_m = tl.load(parts + plane + at, mask=mask, other=0.0)
        part_c = tl.load(parts + plane * 2 + at, mask=mask, other=0.0)
        part_squares = tl.load(parts + plane * 3 + at, mask=mask, other=0.0)
        relative = tl.where(n == 0.0, 0.0, (part_m - pivot) + part_c)
        tile_n = sum_tile(n, plan)
        whole = tl.where(tile_n == 0.0, 1.0, tile_n)
        tile_c = sum_tile(relative * n, plan) / whole
        deviation = relative - tile_c
        tile_squares = sum_tile(part_squares + deviation * deviation * n, plan)
        count, m, c, squares = combine(count, m, c, squares, tile_n, pivot, tile_c, tile_squares)
    index = small_offsets(group, group.stats, outer, q, plan)
    total = m + c
    count = tl.where(there, count, 1.0)
    save_statistics(mean, rstd, running, index, total, squares / count, count, eps, there, plan)
    if mean is not None:
        tl.store(correction + index, (m - total) + c, mask=there)


@triton.jit
def sum_buffer(parts, weight, out, block, group, plan: tl.constexpr):
    """One of the sums of `sum_parts`, for one block of results; None of them if ``out`` is."""
    if out is not None:
        dtype: tl.constexpr = parts.dtype.element_ty
        outer, q, exists = locate(block, group, plan)
        total = tl.full((plan.block_kept, plan.block_r1, plan.block_r2), 0.0, dtype)
        for t in tl.range(num_tiles(group, plan)):
            walk, r1, r2, in1, in2, _size = reduced_tile(tl.zeros((), tl.int32) + t, group, plan)
            mask = cube(exists, in1, in2)
            at = tensor_offsets(group, group.parts, outer, walk, q, r1, r2, plan)
            part = tl.load(parts + at, mask=mask, other=0.0)
            if weight is not None:
                w = load_parameter(weight, group.weight, group, outer, walk, q, r1, r2, exists, mask, dtype, plan)
                total = tl.fma(part, w, total)
            else:
                total += part
        store(out, small_offsets(group, group.stats, outer, q, plan), sum_tile(total, plan), exists[:, None, None])


@triton.jit
def sum_parts(first_parts, second_parts, weight, first_out, second_out, group, plan: tl.constexpr):
    """Sum two buffers of partial sums, weighted or not: parameter gradients, or the sums that dx needs.

    Args:
        first_parts, second_parts: partial sums at ``group.parts``.
        weight: None, or factors at ``group.weight``.
        first_out, second_out: their sums at ``group.stats``, in their own dtypes; or None.

    Grid: (blocks of results, 1).
    """
    sum_buffer(first_parts, weight, first_out, tl.program_id(0), group, plan)
    sum_buffer(second_parts, weight, second_out, tl.program_id(0), group, plan)


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
    block = tl.program_id(0)
    blocks = num_blocks(group, plan)
    if block < blocks:
        sum_buffer(sum_dy, weight, dy_out, block, group, plan)
        sum_buffer(sum_dyx, weight, dyx_out, block, group, plan)
    else:
        sum_buffer(row_dy, None, dbias, block - blocks, also, also_plan)
        sum_buffer(row_dyx, None, dweight, block - blocks, also, also_plan)


@triton.jit
def average_running(mean, variance, running, group, plan: tl.constexpr):
    """Blend the average of several groups' statistics into the running ones: instance norm's, over the batch.

    Args:
        mean, variance: of each group, the variance unbiased, at ``group.parts``.
        running: `Running` statistics, at ``group.stats`` times their own stride.

    Grid: (blocks of running statistics, 1).
    """
    dtype: tl.constexpr = mean.dtype.element_ty
    outer, q, exists = locate(tl.program_id(0), group, plan)
    first, last = chunk_of_tiles(tl.program_id(1), group, plan)
    sum_mean = tl.full((plan.block_kept, plan.block_r1, plan.block_r2), 0.0, dtype)
    sum_variance = sum_mean
    for i in tl.range(last - first):
        walk, r1, r2, in1, in2, _size = reduced_tile(first + i, group, plan)
        mask = cube(exists, in1, in2)
        at = tensor_offsets(group, group.parts, outer, walk, q, r1, r2, plan)
        sum_mean += tl.load(mean + at, mask=mask, other=0.0)
        sum_variance += tl.load(variance + at, mask=mask, other=0.0)
    n = tl.zeros((), dtype) + (group.count >> 1)
    index = small_offsets(group, group.stats, outer, q, plan)
    average, unbiased = sum_tile(sum_mean, plan) / n, sum_tile(sum_variance, plan) / n
    update_running(running, index, average, unbiased, None, exists[:, None, None])
