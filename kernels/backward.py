"""The backward kernel: the forward's reduction again, of the gradient.

With x̂ = (x - mean) * rstd and n elements a group, y = x̂ * weight + bias has

    dx      = rstd * (weight * dy - (sum1 + x̂ * sum2) / n)
    sum1    = Σ weight * dy,  sum2 = Σ weight * dy * x̂      over a group
    dbias   = Σ dy,           dweight = Σ dy * x̂            over the elements that share a parameter

Where a parameter is constant within a group, the group's Σ dy and Σ dy * x̂ serve both.
"""

import triton
import triton.language as tl

from .forward import load_statistics
from .tile import (
    chunk_of_tiles,
    cube,
    load_constant,
    load_parameter,
    load_tensor,
    locate,
    num_blocks,
    own_share,
    reduced_offsets,
    reduced_tile,
    resident_mask,
    small_offsets,
    store,
    store_sums,
    store_tensor,
    sum_cells,
    sum_groups,
    sum_pair,
    sum_tile,
    sum_tiles,
    tensor_offsets,
    unravel,
    widen,
    with_products,
)


@triton.jit
def load_tile(dy, x, group, outer, walk, q, r1, r2, mask, mean, rstd, plan: tl.constexpr):
    """(dy, x̂) of one tile. Both are 0 outside the mask or meet a dy that is."""
    g = load_tensor(dy, tensor_offsets(group, group.dy, outer, walk, q, r1, r2, plan), mask, plan)
    value = load_tensor(x, tensor_offsets(group, group.x, outer, walk, q, r1, r2, plan), mask, plan)
    value = widen(value, rstd.dtype)
    if plan.centered:
        value -= mean
    return widen(g, rstd.dtype), value * rstd


@triton.jit
def load_weight(weight, group, outer, q, exists, dtype: tl.constexpr, plan: tl.constexpr):
    """The weight of each group, (block_kept, 1, 1); 1 if there is none, it varies within a group or is not needed."""
    w = tl.full((plan.block_kept, 1, 1), 1.0, dtype)
    if weight is not None and not plan.affine_reduced and (plan.stage != "measure" or plan.constant):
        w = load_constant(weight, group.weight, group, outer, q, exists, dtype, plan)
    return w


@triton.jit
def weigh(g, w, weight, group, outer, walk, q, r1, r2, exists, mask, plan: tl.constexpr):
    """Weight * dy; ``w`` is what `load_weight` loaded of it."""
    if weight is not None:
        if plan.affine_reduced:
            g *= load_parameter(weight, group.weight, group, outer, walk, q, r1, r2, exists, mask, g.dtype, plan)
        else:
            g *= w
    return g


@triton.jit
def write(dx, g, xhat, mean1, mean2, rstd, group, outer, walk, q, r1, r2, mask, plan: tl.constexpr):
    """Dx from weight * dy and the group's sum1 / n and sum2 / n."""
    if not plan.constant:
        if plan.centered:
            g -= tl.fma(xhat, mean2, mean1)
        else:
            g = tl.fma(xhat, -mean2, g)
    store_tensor(dx, tensor_offsets(group, group.dx, outer, walk, q, r1, r2, plan), g * rstd, mask, plan)


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
def parameter_tile(r1, r2, in1, in2, exists, plan: tl.constexpr):
    """The part of a tile along which the parameters vary, as `sum_where_constant` leaves it: indices and mask."""
    if not plan.affine_r1:
        r1 = tl.arange(0, 1)
        in1 = r1 == 0
    if not plan.affine_r2:
        r2 = tl.arange(0, 1)
        in2 = r2 == 0
    return r1, r2, cube(exists, in1, in2)


@triton.jit
def sweep_groups(dy, x, dx, weight, mean, rstd, sum_dy, sum_dyx, dweight, dbias, group, plan: tl.constexpr):
    """One tile of parameters, many groups: the parameters stay in registers, their gradients gather there.

    Stage "resident" takes the two sums of a group from its tile; "measure" leaves those of each tile at
    ``group.stats`` times the number of tiles. A program leaves one row of partial parameter gradients.
    """
    dtype: tl.constexpr = rstd.dtype.element_ty
    walk, r1, r2, in1, in2, _size = reduced_tile(tl.program_id(1), group, plan)
    shape: tl.constexpr = (plan.block_kept, plan.block_r1, plan.block_r2)
    n = tl.zeros((), dtype) + (group.count >> 1)
    if weight is not None:
        nowhere = tl.program_id(0) * 0
        only = tl.arange(0, 1)  # all groups have the same: one for the whole tile
        within = cube(only == 0, in1, in2)
        w = load_parameter(weight, group.weight, group, nowhere, walk, only, r1, r2, only == 0, within, dtype, plan)
    if dweight is not None:
        gathered_dyx = tl.full(shape, 0.0, dtype)
    if dbias is not None:
        gathered_dy = tl.full(shape, 0.0, dtype)

    for block in tl.range(tl.program_id(0), num_blocks(group, plan), tl.num_programs(0)):
        outer, q, exists = locate(tl.zeros((), tl.int32) + block, group, plan)
        mask = cube(exists, in1, in2)
        index = small_offsets(group, group.stats, outer, q, plan)
        there = exists[:, None, None]
        m, _c, r = load_statistics(mean, rstd, None, None, index, None, there, dtype, plan)
        g, xhat = load_tile(dy, x, group, outer, walk, q, r1, r2, mask, m, r, plan)
        if dweight is not None:
            gathered_dyx = tl.fma(g, xhat, gathered_dyx)
        if dbias is not None:
            gathered_dy += g
        if dx is not None or sum_dyx is not None:
            if weight is not None:
                g *= w
            if plan.centered:
                sum1, sum2 = sum_tiles(g, g * xhat, plan)
            else:
                sum1, sum2 = 0.0, sum_tile(g * xhat, plan)
            if plan.stage == "measure":
                at = index * tl.num_programs(1) + tl.program_id(1)
                if plan.centered:
                    tl.store(sum_dy + at, sum1, mask=there)
                tl.store(sum_dyx + at, sum2, mask=there)
            else:
                write(dx, g, xhat, sum1 / n, sum2 / n, r, group, outer, walk, q, r1, r2, mask, plan)

    row = tl.program_id(0).to(tl.int64) * (group.count >> 1) + unravel(walk, group.walk, group.parts.walk)
    row += (r1 * group.parts.r1)[:, None] + (r2 * group.parts.r2)[None, :]
    inside = in1[:, None] & in2[None, :]
    if dweight is not None:
        store(dweight, row, tl.sum(gathered_dyx, 0), inside)
    if dbias is not None:
        store(dbias, row, tl.sum(gathered_dy, 0), inside)


@triton.jit
def sum_group(dy, x, dx, weight, w, mean, rstd, m, r, first, last, group, outer, q, exists, plan: tl.constexpr):
    """(Σ dy, Σ dy * x̂) over tiles first to last, weighted if the weight varies along them.

    The statistics are ``m`` and ``r``, or with ``plan.stats_reduced`` other ones for each element, at ``mean`` and
    ``rstd``. Constant statistics need no sums for dx, so that it is written on the way.
    """
    sum1 = tl.full((plan.block_kept, plan.block_r1, plan.block_r2), 0.0, r.dtype)
    sum2 = sum1
    for i in tl.range(last - first):
        walk, r1, r2, in1, in2, _size = reduced_tile(first + i, group, plan)
        mask = cube(exists, in1, in2)
        if plan.stats_reduced:
            at = reduced_offsets(group, group.stats, outer, walk, r1, r2)
            there = in1[None, :, None] & in2[None, None, :]
            tile_m, _c, tile_r = load_statistics(mean, rstd, None, None, at, None, there, r.dtype, plan)
        else:
            tile_m, tile_r = m, r
        g, xhat = load_tile(dy, x, group, outer, walk, q, r1, r2, mask, tile_m, tile_r, plan)
        if plan.affine_reduced:
            g = weigh(g, w, weight, group, outer, walk, q, r1, r2, exists, mask, plan)
        sum1 += g
        sum2 = tl.fma(g, xhat, sum2)
        if plan.constant and dx is not None:
            g = weigh(g, w, weight, group, outer, walk, q, r1, r2, exists, mask, plan)
            write(dx, g, xhat, 0.0, 0.0, r, group, outer, walk, q, r1, r2, mask, plan)
    return sum_tile(sum1, plan), sum_tile(sum2, plan)


@triton.jit
def resident_cells(dy, x, dx, weight, dweight, dbias, m, r, n, group, outer, q, exists, plan: tl.constexpr):
    """Stage "resident" for groups of several cells, whose sums a cluster exchanges once.

    Each cell's are partial gradients of its parameters; weighted and summed over a group's, they are what dx needs.
    """
    walk, r1, r2, in1, in2, _size = reduced_tile(tl.program_id(1) * 0, group, plan)
    mask = resident_mask(exists, r1, r2, in1, in2, group, plan)
    g, xhat = load_tile(dy, x, group, outer, walk, q, r1, r2, mask, m, r, plan)
    sum1, sum2 = sum_cells(g, g * xhat, plan)
    there = exists[None, None, :]
    at = unravel(outer, group.outer, group.parts.outer) + (q * group.parts.cell)[None, None, :]
    if dbias is not None:
        store_sums(dbias, at, sum1, there, plan)
    if dweight is not None:
        store_sums(dweight, at, sum2, there, plan)
    if dx is not None:
        if weight is not None:
            at = unravel(outer, group.outer, group.weight.outer) + (q * group.weight.cell)[None, None, :]
            w = widen(tl.load(weight + at, mask=there, other=0.0), r.dtype)
            sum1, sum2 = sum1 * w, sum2 * w
        sum1, sum2 = sum_groups(sum1, sum2, plan)
        w = load_weight(weight, group, outer, q, exists, r.dtype, plan)
        g = weigh(g, w, weight, group, outer, walk, q, r1, r2, exists, mask, plan)
        write(dx, g, xhat, sum1 / n, sum2 / n, r, group, outer, walk, q, r1, r2, mask, plan)


@triton.jit
def normalize_backward(
    dy, x, dx, weight, mean, rstd, running, sum_dy, sum_dyx, dweight, dbias, eps, group, plan: tl.constexpr
):
    """The gradients of `normalize_forward`.

    Args:
        dy, x, dx: the tensors, at ``group.dy``, ``group.x``, ``group.dx``; dx is None if it is not wanted.
        weight: parameters or None, at ``group.weight``.
        mean, rstd: saved statistics, at ``group.stats``; ``mean`` is None if it is fixed at zero.
        running, eps: with ``plan.constant`` the statistics used in place of them, else None.
        sum_dy, sum_dyx: each group's two sums. Stage "measure" writes those of a chunk, (*parts, chunks); stage "apply"
            reads them at ``group.stats``. Weighted, but in "measure" where the weight is constant within a group.
        dweight, dbias: parameter gradients, or partial sums of them, at ``group.parts``; None if not wanted.
        group, plan: `Grouping` and `Plan`.

    Grid: (blocks of groups, chunks of a group), and for `sweep_groups` (rows of partial sums, tiles). The stages are
    those of `normalize_forward`.
    """
    if plan.accumulate:
        sweep_groups(dy, x, dx, weight, mean, rstd, sum_dy, sum_dyx, dweight, dbias, group, plan)
    else:
        dtype: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
        block, chunk = own_share(plan)
        outer, q, exists = locate(block, group, plan)
        there = exists[:, None, None]
        index = small_offsets(group, group.stats, outer, q, plan)
        if plan.stats_reduced:
            m = tl.zeros((1, 1, 1), dtype)  # `sum_group` reads them
            r = m
        else:
            m, _c, r = load_statistics(mean, rstd, None, running, index, eps, there, dtype, plan)
        n = tl.zeros((), dtype) + (group.count >> 1)

        if plan.block_groups > 0:
            resident_cells(dy, x, dx, weight, dweight, dbias, m, r, n, group, outer, q, exists, plan)
        elif plan.stage == "resident":
            walk, r1, r2, in1, in2, _size = reduced_tile(chunk * 0, group, plan)
            mask = resident_mask(exists, r1, r2, in1, in2, group, plan)
            g, xhat = load_tile(dy, x, group, outer, walk, q, r1, r2, mask, m, r, plan)
            p1, p2, inside = parameter_tile(r1, r2, in1, in2, exists, plan)
            if plan.affine_r2:
                sum1, sum2 = sum_where_constant(g, g * xhat, plan)
            else:
                pairs, products = with_products(g, xhat, plan)
                sum1, sum2 = sum_where_constant(pairs, products, plan)
            at = small_offsets(group, group.parts, outer, q, plan)
            at += (p1 * group.parts.r1)[None, :, None] + (p2 * group.parts.r2)[None, None, :]
            if dbias is not None:
                store_sums(dbias, at, sum1, inside, plan)
            if dweight is not None:
                store_sums(dweight, at, sum2, inside, plan)
            if dx is not None:
                w = load_weight(weight, group, outer, q, exists, dtype, plan)
                g = weigh(g, w, weight, group, outer, walk, q, r1, r2, exists, mask, plan)
                sum1 = weigh(sum1, w, weight, group, outer, walk, q, p1, p2, exists, inside, plan)
                sum2 = weigh(sum2, w, weight, group, outer, walk, q, p1, p2, exists, inside, plan)
                sum1, sum2 = sum_tiles(sum1, sum2, plan)
                write(dx, g, xhat, sum1 / n, sum2 / n, r, group, outer, walk, q, r1, r2, mask, plan)
        else:
            first, last = chunk_of_tiles(chunk, group, plan)
            w = load_weight(weight, group, outer, q, exists, dtype, plan)
            if plan.stage == "apply":
                if plan.constant:
                    sum1, sum2 = 0.0, 0.0
                else:
                    sum1 = tl.load(sum_dy + index, mask=there, other=0.0) if plan.centered else 0.0
                    sum2 = tl.load(sum_dyx + index, mask=there, other=0.0)
            else:
                sum1, sum2 = sum_group(
                    dy, x, dx, weight, w, mean, rstd, m, r, first, last, group, outer, q, exists, plan
                )
                at = small_offsets(group, group.parts, outer, q, plan)
                if plan.stage == "measure":
                    at = at * tl.num_programs(1) + chunk
                    tl.store(sum_dy + at, sum1, mask=there)
                    tl.store(sum_dyx + at, sum2, mask=there)
                else:
                    if dbias is not None:
                        store(dbias, at, sum1, there)
                    if dweight is not None:
                        store(dweight, at, sum2, there)
                    if not plan.affine_reduced:
                        sum1, sum2 = sum1 * w, sum2 * w
            if plan.stage != "measure" and dx is not None:
                for i in tl.range(last - first):
                    walk, r1, r2, in1, in2, _size = reduced_tile(last - 1 - i, group, plan)
                    mask = cube(exists, in1, in2)
                    g, xhat = load_tile(dy, x, group, outer, walk, q, r1, r2, mask, m, r, plan)
                    g = weigh(g, w, weight, group, outer, walk, q, r1, r2, exists, mask, plan)
                    write(dx, g, xhat, sum1 / n, sum2 / n, r, group, outer, walk, q, r1, r2, mask, plan)
