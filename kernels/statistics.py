"""Mean and variance of groups: measured from tiles, merged, saved and loaded. Nothing is normalized here."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .cluster import for_each_block
from .memory import Operand, count_up, load, load_first, store, store_entries, stored_once
from .places import num_cells, num_tiles, own_tiles, tensor_offsets, tile_at
from .stages import load_input, taking_part
from .sums import max_tile, sum_tile, sum_tiles, with_products


class Moments(NamedTuple):
    """What is known of some of each group's elements.

    Attributes:
        count: how many they are.
        mean, correction: their mean, as an unevaluated sum of two numbers.
        squares: their summed squared deviations from it.
    """

    count: Any
    mean: Any
    correction: Any
    squares: Any


class Statistics(NamedTuple):
    """Each group's mean, as an unevaluated sum of two numbers, and 1 / sqrt(variance + eps)."""

    mean: Any
    correction: Any
    rstd: Any


class Saved(NamedTuple):
    """Where statistics are kept: pointers, or None.

    Attributes:
        mean, rstd: of each group; ``mean`` is None if it is fixed at zero.
        correction: what the rounded mean misses of the exact one.
        running: `Running` statistics: to be updated, or with ``plan.constant`` used in place of the others.
        eps: added to the variance, see `exact`; None for 0 in a norm that makes 0 of a constant group.
        count: how many elements of a group took part, at least 1; with ``plan.masked``.
    """

    mean: Any
    rstd: Any
    correction: Any
    running: Any
    eps: Any
    count: Any


class Run(NamedTuple):
    """Some of a block's tiles, from the first to before the last."""

    block: Any
    first: Any
    last: Any


@triton.jit
def exact(pair, dtype: tl.constexpr):
    """A Python number handed over as two float32 that add up to it, since float arguments are float32."""
    if dtype == tl.float64:
        value = tl.cast(pair[0], tl.float64) + tl.cast(pair[1], tl.float64)
    else:
        value = pair[0]
    return value


@triton.jit
def moments(x, mask, count, origin, plan: tl.constexpr):
    """`Moments` of each group's elements in a tile.

    Two passes over registers. The second corrects the first: the deviations' own mean is what rounding left of the
    mean, far below the mean's last digit, and it would otherwise stay in the variance squared. Measured from
    ``origin``, one of the elements, the mean of a constant group has no error, and its variance is exactly 0.
    """
    if plan.centered:
        if origin is None:
            mean = sum_tile(x, plan) / count
        else:
            mean = origin + sum_tile(tl.where(mask, x - origin, 0.0), plan) / count
        deviation = tl.where(mask, x - mean, 0.0)
        deviation, squares = with_products(deviation, deviation, plan)
        found = about(mean, deviation, squares, count, plan)
    else:
        _x, squares = with_products(x, x, plan)
        squares = sum_tile(squares, plan)
        mean = tl.zeros_like(squares)
        found = Moments(count, mean, mean, squares)
    return found


@triton.jit
def moments_of(given, x, at, count, origin, plan: tl.constexpr):
    """`moments` of a tile of which there are ``count`` elements a group; with a mask, of those that take part."""
    if plan.masked:
        there = taking_part(given, at, plan)
        count = sum_tile(there.to(x.dtype), plan)
        if origin is not None:  # one of those that take part
            origin = tl.where(count == 0.0, 0.0, max_tile(tl.where(there, x, -float("inf")), plan))
        found = moments(tl.where(there, x, 0.0), there, at_least_one(count), origin, plan)
        found = Moments(count, found.mean, found.correction, found.squares)
    else:
        found = moments(x, at.mask, count, origin, plan)
    return found


@triton.jit
def at_least_one(count):
    """How many, to divide by: of none 1."""
    return tl.where(count == 0.0, 1.0, count)


@triton.jit
def about(pivot, deviations, squares, count, plan: tl.constexpr):
    """`Moments` of each group from its deviations from a pivot and their squares, both still to be summed."""
    correction, squares = sum_tiles(deviations, squares, plan)
    correction = correction / count
    squares = squares - count * correction * correction
    squares = tl.where(squares < 0.0, 0.0, squares)  # `where` lets NaN pass, a maximum may not
    return Moments(count, pivot, correction, squares)


@triton.jit
def combine(a, b):
    """Chan's rule for the moments of two sets that share ``mean``: each one's own lies ``correction`` beside it.

    So a large mean costs no digits.
    """
    total = a.count + b.count
    part = b.count / tl.where(total == 0.0, 1.0, total)
    delta = b.correction - a.correction
    squares = a.squares + (b.squares + delta * delta * (a.count * part))
    return Moments(total, a.mean, a.correction + delta * part, squares)


@triton.jit
def two_sum(a, b):
    """The rounded sum of two numbers, and what it misses of the exact one (Knuth)."""
    total = a + b
    summand = total - a
    return total, (a - (total - summand)) + (b - summand)


@triton.jit
def load_part(parts, plane, offsets, mask, pivot):
    """The `Moments` of parts, with means relative to ``pivot``; of no elements outside the mask.

    Without a pivot the mean is fixed at zero, and parts are (count, squares) alone.
    """
    dtype: tl.constexpr = parts.dtype.element_ty
    count = load(parts, offsets, mask, dtype)
    if pivot is None:
        relative = tl.zeros_like(count)
        squares = load(parts + plane, offsets, mask, dtype)
    else:
        mean = load(parts + plane, offsets, mask, dtype)
        correction = load(parts + plane * 2, offsets, mask, dtype)
        squares = load(parts + plane * 3, offsets, mask, dtype)
        relative = tl.where(count == 0.0, 0.0, (mean - pivot) + correction)
    return Moments(count, tl.zeros_like(count), relative, squares)


@triton.jit
def join(found, pivot, plan: tl.constexpr):
    """The `Moments` of each group from those of its parts, (block_kept, r1, r2), with means relative to ``pivot``."""
    count = sum_tile(found.count, plan)
    total = at_least_one(count)  # of no group
    correction = sum_tile(found.correction * found.count, plan) / total
    deviation = found.correction - correction
    squares = sum_tile(found.squares + deviation * deviation * found.count, plan)
    mean = pivot + correction
    if plan.masked:
        total = count
    return Moments(total, mean, (pivot - mean) + correction, squares)


@triton.jit
def merge_about(parts, plane, pivot, block, group, plan: tl.constexpr):
    """`Moments` of each of a block's groups from parts in planes so far from each other: (block_kept, 1, 1).

    Tiles of parts are merged element by element, and summed once.
    """
    dtype: tl.constexpr = parts.dtype.element_ty
    zeros = tl.full((plan.block_kept, plan.block_r1, plan.block_r2), 0.0, dtype)
    found = Moments(zeros, zeros, zeros, zeros)
    for i in tl.range(num_tiles(group, plan)):
        at = tile_at(i, block, group, plan)
        found = combine(found, load_part(parts, plane, tensor_offsets(group.parts, at, plan), at.mask, pivot))
    if pivot is None:
        pivot = tl.zeros((), dtype)
    return join(found, pivot, plan)


@triton.jit
def merge_parts(parts, block, group, plan: tl.constexpr):
    """`Moments` of each of a block's groups from what the programs that share them left: (block_kept, 1, 1).

    Means stay relative to the group's first part: subtracting absolute float32 means lost up to 9 % of a standard
    deviation where the mean was a million of them, relative ones 2e-7.
    """
    dtype: tl.constexpr = parts.dtype.element_ty
    plane = num_cells(group, plan) * (group.count >> 1)
    if plan.masked:
        pivot = largest_mean(parts, plane, block, group, plan)  # the first part may have no element
    else:
        pivot = load_first(Operand(parts + plane, group.parts), block, dtype, plan)
    return merge_about(parts, plane, pivot, block, group, plan)


@triton.jit
def largest_mean(parts, plane, block, group, plan: tl.constexpr):
    """The largest mean of each group's parts, (block_kept, 1, 1); of empty parts none counts, and 0 if all are."""
    dtype: tl.constexpr = parts.dtype.element_ty
    most = tl.full((plan.block_kept, plan.block_r1, plan.block_r2), -float("inf"), dtype)
    for i in tl.range(num_tiles(group, plan)):
        at = tile_at(i, block, group, plan)
        offsets = tensor_offsets(group.parts, at, plan)
        mean = load(parts + plane, offsets, at.mask, dtype)
        most = tl.where((load(parts, offsets, at.mask, dtype) > 0.0) & (mean > most), mean, most)
    most = tl.max(tl.max(most, 2), 1)[:, None, None]
    return tl.where(most == -float("inf"), 0.0, most)


@triton.jit
def measure_masked(given, origin, block, group, dtype: tl.constexpr, plan: tl.constexpr):
    """`measure` of the elements that take part: tile by tile, since the first ones may have none."""
    first, last = own_tiles(block, group, plan)
    nothing = tl.full((plan.block_kept, 1, 1), 0.0, dtype)
    found = Moments(nothing, nothing, nothing, nothing)
    for i in tl.range(first, last):
        at = tile_at(i, block, group, plan)
        part = moments_of(given, load_input(given, at, dtype, plan), at, 0.0, origin, plan)
        beside = (part.mean - found.mean) + part.correction
        added = combine(found, Moments(part.count, found.mean, beside, part.squares))
        mean, correction = two_sum(added.mean, added.correction)
        found = Moments(added.count, mean, correction, added.squares)
    return found


@triton.jit
def distances(tile, pivot, at):
    """How far a tile's elements are from a pivot; 0 outside the mask.

    By a factor and not by a choice: of that LLVM made two loops, one for the lanes within the mask and one for those
    outside, which a warp runs one after the other.
    """
    return (tile - pivot) * at.mask.to(tile.dtype)


@triton.jit
def measure_run(given, pivot, run, group, dtype: tl.constexpr, plan: tl.constexpr):
    """`Moments` of each group over a run of tiles, which are summed across threads once."""
    deviations = tl.full((plan.block_kept, plan.block_r1, plan.block_r2), 0.0, dtype)
    squares, count = deviations, tl.zeros((), dtype)
    for i in tl.range(run.first, run.last, num_stages=plan.depth):
        at = tile_at(i, run.block, group, plan)
        tile = load_input(given, at, dtype, plan)
        if plan.centered:
            tile = distances(tile, pivot, at)
            deviations += tile
        squares = tl.fma(tile, tile, squares)
        count += at.size.to(dtype)
    if plan.centered:
        found = about(pivot, deviations, squares, count, plan)
    else:
        found = Moments(count, pivot, pivot, sum_tile(squares, plan))
    return found


@triton.jit
def measure(given, origin, block, group, dtype: tl.constexpr, plan: tl.constexpr):
    """`Moments` of each group over the tiles that this program walks."""
    if plan.masked:
        found = measure_masked(given, origin, block, group, dtype, plan)
    else:
        found = measure_all(given, origin, block, group, dtype, plan)
    return found


@triton.jit
def measure_all(given, origin, block, group, dtype: tl.constexpr, plan: tl.constexpr):
    """`Moments` of each group over the tiles that this program walks.

    The first tile by itself, then runs of 8, each measured from the mean of all before it and summed across threads
    once. A distance between the two is in the group's variance too, where it weighs a ninth of what it weighs in the
    run's squares at least: these lose no more than that, whatever the data. Predicted for an H100, runs of 4 take
    batch and instance norm up to 5 % longer. What is added run by run keeps what rounding leaves of it.
    """
    first, last = own_tiles(block, group, plan)
    at = tile_at(first, block, group, plan)
    found = moments(load_input(given, at, dtype, plan), at.mask, at.size.to(dtype), origin, plan)
    lost = tl.zeros_like(found.squares)
    for start in tl.range(first + 1, last, 8):
        part = measure_run(given, found.mean, Run(block, start, tl.minimum(start + 8, last)), group, dtype, plan)
        added = combine(Moments(found.count, found.mean, found.correction, tl.zeros_like(lost)), part)
        mean, correction = two_sum(added.mean, added.correction)
        squares, left = two_sum(found.squares, added.squares)
        found, lost = Moments(added.count, mean, correction, squares), lost + left
    squares = tl.where(lost == lost, found.squares + lost, found.squares)  # an infinite sum leaves NaN
    return Moments(found.count, found.mean, found.correction, squares)


@triton.jit
def save_parts(parts, where, found, group, plan: tl.constexpr):
    """Store the `Moments` of a chunk: (4, cells, chunks)."""
    plane = num_cells(group, plan) * tl.num_programs(1)
    offsets = where.offsets * tl.num_programs(1) + tl.program_id(1)
    store(parts, offsets, found.count, where.mask)
    store(parts, offsets + plane, found.mean, where.mask)
    store(parts, offsets + plane * 2, found.correction, where.mask)
    store(parts, offsets + plane * 3, found.squares, where.mask)


@triton.jit
def update_running(running, where, mean, variance, count, plan: tl.constexpr):
    """Blend a group's mean and unbiased variance into the running ones; without momentum, write them as they are.

    ``count`` is the number of elements behind the variance, or None if the variance is unbiased already. A group of
    which none take part leaves them as they are.
    """
    dtype: tl.constexpr = mean.dtype
    where = stored_once(where, plan)
    mean, variance = for_each_block(mean, plan), for_each_block(variance, plan)
    mean_at, var_at = where.offsets * running.mean_stride, where.offsets * running.var_stride
    unbiased = variance
    there = where.mask
    if plan.masked:
        count = for_each_block(count, plan)
        there = there & (count > 0.0)
        unbiased = variance * (count / at_least_one(count - 1.0))
    elif count is not None:
        unbiased = variance * (count / (count - 1.0))
    if len(running.momentum) > 0:
        m = exact(running.momentum, dtype)
        old_mean = load(running.mean, mean_at, where.mask, dtype)
        old_var = load(running.var, var_at, where.mask, dtype)
        mean = old_mean * (1.0 - m) + mean * m
        unbiased = old_var * (1.0 - m) + unbiased * m
        tl.debug_barrier()  # threads that hold a copy of an entry have read it before the one that stores does
    store(running.mean, mean_at, mean, there)
    store(running.var, var_at, unbiased, there)
    if len(running.batches) > 0:  # one program counts
        count_up(running.batches[0], (tl.program_id(0) == 0) & (tl.program_id(1) == 0))


@triton.jit
def save_statistics(saved, where, found, plan: tl.constexpr):
    """Store each group's mean and 1 / sqrt(variance + eps), (block_kept, 1, 1), and return them."""
    count = found.count
    if plan.masked:
        count = at_least_one(count)
        store_entries(saved.count, where, count, plan)
    mean, variance = found.mean + found.correction, found.squares / count
    if saved.eps is None:
        rstd = tl.where(variance == 0.0, 0.0, 1.0 / tl.sqrt(tl.where(variance == 0.0, 1.0, variance)))
    else:
        rstd = 1.0 / tl.sqrt(variance + exact(saved.eps, variance.dtype))
    store_entries(saved.mean, where, mean, plan)
    store_entries(saved.rstd, where, rstd, plan)
    if saved.running is not None:
        update_running(saved.running, where, mean, variance, found.count, plan)
    return Statistics(found.mean, found.correction, rstd)


@triton.jit
def load_statistics(saved, where, dtype: tl.constexpr, plan: tl.constexpr):
    """`Statistics` of each group: from an earlier launch, or from the running statistics."""
    if plan.constant:
        running = saved.running
        mean = load(running.mean, where.offsets * running.mean_stride, where.mask, dtype)
        variance = load(running.var, where.offsets * running.var_stride, where.mask, dtype, 1.0)
        rstd = 1.0 / tl.sqrt(variance + exact(saved.eps, dtype))
        correction = tl.zeros_like(mean)
    else:
        rstd = load(saved.rstd, where.offsets, where.mask, dtype)
        mean, correction = tl.zeros_like(rstd), tl.zeros_like(rstd)
        if plan.centered:
            mean = load(saved.mean, where.offsets, where.mask, dtype)
        if saved.correction is not None:
            correction = load(saved.correction, where.offsets, where.mask, dtype)
    return Statistics(mean, correction, rstd)


@triton.jit
def no_statistics(dtype: tl.constexpr):
    """Where each element of a group has statistics of its own, which are loaded with it."""
    nothing = tl.zeros((1, 1, 1), dtype)
    return Statistics(nothing, nothing, nothing)
