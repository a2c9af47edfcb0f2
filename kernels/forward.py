"""The forward kernel: statistics of each group, then the linear map."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .cluster import first_of_cells
from .memory import Operand, load_constant, load_parameter, rounded, store_tile
from .places import Entries, group_entries, groups_of, num_elements, own_block, own_tiles, saved_here, tile_at
from .stages import coded, factor, finish, load_factor, load_first_input, load_input, load_input_again
from .statistics import (
    Saved,
    load_statistics,
    measure,
    merge_parts,
    moments_of,
    save_parts,
    save_statistics,
)


class Operands(NamedTuple):
    """The tensors of a forward pass, each an `Operand`; pointers of those `Around` it, and where these lie."""

    x: Any
    y: Any
    weight: Any
    bias: Any
    around: Any
    strides: Any


class Map(NamedTuple):
    """What is loaded of y = x̂ * weight + bias once for each group: factor and summand of x - mean."""

    scale: Any
    shift: Any


@triton.jit
def load_map(given, rstd, block, plan: tl.constexpr):
    """(rstd * weight, bias) of each group, (block_kept, 1, 1); rstd alone if `write` reads the parameters."""
    scale, shift = rstd, tl.zeros_like(rstd)
    if not (plan.affine_reduced or plan.shares_rows or plan.round_first):
        if given.weight.pointer is not None:
            scale *= factor(load_constant(given.weight, block, rstd.dtype, plan), plan)
        if given.bias.pointer is not None:
            shift = load_constant(given.bias, block, rstd.dtype, plan)
    return Map(scale, shift)


@triton.jit
def write(given, x, statistics, linear, block, at, plan: tl.constexpr):
    """Y = (x - mean) * rstd * weight + bias, for one tile, and what follows; ``linear`` is what `load_map` made.

    Where a cluster shares rows `load_map` leaves the parameters to it: a product of rstd and a weight in half precision
    is exchanged between thread blocks, and they wait once more.
    """
    if plan.centered:
        x = (x - statistics.mean) - statistics.correction
    scale, shift = linear.scale, linear.shift
    if plan.affine_reduced or plan.shares_rows or plan.round_first:
        x *= scale
        if plan.round_first:
            x = rounded(x, given.x.pointer.dtype.element_ty)
        scale, shift = 1.0, 0.0
        if given.weight.pointer is not None:
            scale = load_factor(given.weight, at, x.dtype, plan)
        if given.bias.pointer is not None:
            shift = load_parameter(given.bias, at, x.dtype, plan)
    y = x * scale if given.bias.pointer is None else tl.fma(x, scale, shift)
    store_tile(given.y, at, coded(finish(y, given, at, plan), given, block, at, plan), plan)


@triton.jit
def write_tiles(given, statistics, block, group, dtype: tl.constexpr, plan: tl.constexpr):
    """`write` the tiles that this program walks, from the last to the first."""
    first, last = own_tiles(block, group, plan)
    linear = load_map(given, statistics.rstd, block, plan)
    for i in tl.range(last - first):
        at = tile_at(last - 1 - i, block, group, plan)
        if plan.constant:  # nothing was measured before
            x = load_input(given, at, dtype, plan)
        else:
            x = load_input_again(given, at, dtype, plan)
        write(given, x, statistics, linear, block, at, plan)


@triton.jit
def merge_statistics(saved, parts, block, group, into, plan: tl.constexpr, into_plan: tl.constexpr):
    """`Statistics` of each of a block's groups, merged from their parts.

    Every program that shares a group merges the same parts alike; the one with the first chunk saves what it finds.
    """
    found = merge_parts(parts, groups_of(block, group, into, into_plan), into, into_plan)
    where = Entries(group_entries(group.stats, block, plan).offsets, saved_here(block, group, plan))
    return save_statistics(saved, where, found, plan)


@triton.jit
def normalize_forward(
    x, y, weight, bias, mean, rstd, running, parts, eps, around,
    group, plan: tl.constexpr, into, into_plan: tl.constexpr,
):  # fmt: skip
    """Normalize every group of x into y.

    Args:
        x, y: the tensors, at ``group.x`` and ``group.y``.
        weight, bias: parameters or None, at ``group.weight`` and ``group.bias``.
        mean, rstd: statistics of each group, at ``group.stats``, float32 or float64. Written, but read by stage
            "apply". ``mean`` is None if it is fixed at zero.
        running: `Running` statistics to update, or with ``plan.constant`` to use; or None.
        parts: stage "measure" writes each group's (count, mean, correction, squares) there, (4, *parts, chunks); stage
            "apply" reads them there, or if another launch has merged them what float32 cannot hold of each group's
            mean, (groups,).
        eps: added to the variance, see `exact`; None for 0 in a norm that makes 0 of a constant group.
        around: pointers of the tensors `Around` the norm, or None.
        group, plan: `Grouping` and `Plan`.
        into, into_plan: of the parts that stage "apply" merges; None if it merges none.

    Grid: (blocks of groups, chunks of a group). Stages: "resident", the tile is the whole group and is read once;
    "streamed", a program walks its groups twice, backwards the second time to meet what the cache still holds;
    "measure" and "apply", these two walks as two launches, in which several programs share a group.
    """
    dtype: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    given = Operands(
        Operand(x, group.x), Operand(y, group.y), Operand(weight, group.weight), Operand(bias, group.bias),
        around, group,
    )  # fmt: skip
    saved = Saved(mean, rstd, parts, running, eps, around.count if plan.masked else None)
    block = own_block(group, plan)
    where = group_entries(group.stats, block, plan)
    origin = load_first_input(given, block, dtype, plan) if eps is None else None

    if plan.stage == "resident":
        at = tile_at(0, block, group, plan)
        tile = load_input(given, at, dtype, plan)
        found = moments_of(given, tile, at, num_elements(group, dtype), origin, plan)
        statistics = save_statistics(saved, first_of_cells(where, block, plan), found, plan)
        linear = load_map(given, statistics.rstd, block, plan)
        write(given, tile, statistics, linear, block, at, plan)
    elif plan.stage == "streamed":
        found = measure(given, origin, block, group, dtype, plan)
        statistics = save_statistics(saved, where, found, plan)
        if group.total is not None:
            tl.debug_barrier()  # what a thread reads again, another may have stored
        write_tiles(given, statistics, block, group, dtype, plan)
    elif plan.stage == "measure":
        found = measure(given, origin, block, group, dtype, plan)
        save_parts(parts, group_entries(group.parts, block, plan), found, group, plan)
    elif into_plan is not None:
        statistics = merge_statistics(saved, parts, block, group, into, plan, into_plan)
        write_tiles(given, statistics, block, group, dtype, plan)
    else:
        statistics = load_statistics(saved, where, dtype, plan)
        write_tiles(given, statistics, block, group, dtype, plan)
