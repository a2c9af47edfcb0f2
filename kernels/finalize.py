"""Second stages: what the programs that shared a group left in a buffer becomes one result. Sums in a fixed order.

The buffer is a tensor like any other, so a `Grouping` says which of its elements belong together (operand ``parts``).
"""

import triton
import triton.language as tl

from .memory import Operand, load, store
from .places import (
    block_at,
    group_entries,
    num_blocks,
    num_cells,
    num_elements,
    num_tiles,
    own_block,
    own_tiles,
    tensor_offsets,
    tile_at,
)
from .stages import load_factor
from .statistics import Saved, largest_mean, merge_about, merge_parts, save_parts, save_statistics, update_running
from .sums import Sums, sum_tile


@triton.jit
def merge_moments(parts, mean, rstd, correction, running, eps, count, group, plan: tl.constexpr):
    """Merge (count, mean, correction, squares) of every part into each group's statistics.

    Args:
        parts: (4, ...) moments, at ``group.parts`` in each of four planes.
        mean, rstd: results, at ``group.stats``; ``mean`` is None if it is fixed at zero.
        correction: what the rounded mean misses of the exact one, at ``group.stats``.
        running, eps: as in `normalize_forward`.
        count: how many elements of each group took part, at ``group.stats``; None if all do.

    Grid: (blocks of groups, 1).
    """
    block = own_block(group, plan)
    where = group_entries(group.stats, block, plan)
    found = merge_parts(parts, block, group, plan)
    save_statistics(Saved(mean, rstd, None, running, eps, count), where, found, plan)
    if mean is not None:
        store(correction, where.offsets, found.correction, where.mask)


@triton.jit
def join_moments(parts, joined, group, plan: tl.constexpr):
    """Merge the moments of every part into each group's: what one process tells the others.

    Args:
        parts: as of `merge_moments`.
        joined: the result, (4, groups).

    Grid: (blocks of groups, 1).
    """
    block = own_block(group, plan)
    found = merge_parts(parts, block, group, plan)
    save_parts(joined, group_entries(group.stats, block, plan), found, group, plan)


@triton.jit
def merge_processes(parts, mean, rstd, correction, share, running, eps, group, plan: tl.constexpr):
    """`merge_moments` of what every process has told: in the order of their ranks, so with the same bits on each.

    Args:
        parts: (processes, 4, groups) moments, at ``group.parts`` in the first of four planes; (processes, 2, groups)
            counts and squares if the mean is fixed at zero.
        mean, rstd, correction, running, eps: as of `merge_moments`.
        share: one element's share of its group, 1 / count, at ``group.stats``.

    Grid: (blocks of groups, 1).
    """
    block = own_block(group, plan)
    where = group_entries(group.stats, block, plan)
    plane = num_cells(group, plan)
    pivot = None
    if mean is not None:
        pivot = largest_mean(parts, plane, block, group, plan)  # the first process may have no element
    found = merge_about(parts, plane, pivot, block, group, plan)
    save_statistics(Saved(mean, rstd, None, running, eps, None), where, found, plan)
    store(share, where.offsets, 1.0 / found.count, where.mask)
    if mean is not None:
        store(correction, where.offsets, found.correction, where.mask)


@triton.jit
def sum_of_parts(parts, weight, block, group, plan: tl.constexpr):
    """The sums of a block's parts, weighted if there is a weight: (block_kept, 1, 1); 0 where there are no parts.

    Both sums in one loop, so that the parts of both are on their way at once.
    """
    dtype: tl.constexpr = parts.dyx.dtype.element_ty if parts.dy is None else parts.dy.dtype.element_ty
    first = tl.full((plan.block_kept, plan.block_r1, plan.block_r2), 0.0, dtype)
    second = first
    for t in tl.range(num_tiles(group, plan)):
        at = tile_at(t, block, group, plan)
        offsets = tensor_offsets(group.parts, at, plan)
        w = 1.0
        if weight is not None:
            w = load_factor(Operand(weight, group.weight), at, dtype, plan)
        if parts.dy is not None:
            first = tl.fma(load(parts.dy, offsets, at.mask, dtype), w, first)
        if parts.dyx is not None:
            second = tl.fma(load(parts.dyx, offsets, at.mask, dtype), w, second)
    if parts.dy is not None:
        first = sum_tile(first, plan)
    if parts.dyx is not None:
        second = sum_tile(second, plan)
    return Sums(first, second)


@triton.jit
def sum_into(out, parts, weight, block, group, plan: tl.constexpr):
    """`sum_of_parts`, as far as there are pointers to store them at."""
    wanted = Sums(parts.dy if out.dy is not None else None, parts.dyx if out.dyx is not None else None)
    sums = sum_of_parts(wanted, weight, block, group, plan)
    where = group_entries(group.stats, block, plan)
    if out.dy is not None:
        store(out.dy, where.offsets, sums.dy, where.mask)
    if out.dyx is not None:
        store(out.dyx, where.offsets, sums.dyx, where.mask)


@triton.jit
def sum_parts(first_parts, second_parts, weight, first_out, second_out, group, plan: tl.constexpr):
    """Sum two buffers of partial sums, weighted or not: parameter gradients, or the sums that dx needs.

    Args:
        first_parts, second_parts: partial sums at ``group.parts``.
        weight: None, or factors at ``group.weight``.
        first_out, second_out: their sums at ``group.stats``, in their own dtypes; or None.

    Grid: (blocks of results, 1).
    """
    out, parts = Sums(first_out, second_out), Sums(first_parts, second_parts)
    sum_into(out, parts, weight, own_block(group, plan), group, plan)


@triton.jit
def sum_twice(
    sum_dy, sum_dyx, weight, dy_out, dyx_out, row_dy, row_dyx, dbias, dweight, group, plan: tl.constexpr, also,
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
        sum_into(Sums(dy_out, dyx_out), Sums(sum_dy, sum_dyx), weight, block, group, plan)
    else:
        row_block = block_at(number - blocks, 0, also, also_plan)
        sum_into(Sums(dbias, dweight), Sums(row_dy, row_dyx), None, row_block, also, also_plan)


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
