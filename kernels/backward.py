"""The backward kernel: the forward's reduction again, of the gradient.

With x̂ = (x - mean) * rstd and n elements a group, y = x̂ * weight + bias has

    dx      = rstd * (weight * dy - (sum1 + x̂ * sum2) / n)
    sum1    = Σ weight * dy,  sum2 = Σ weight * dy * x̂      over a group
    dbias   = Σ dy,           dweight = Σ dy * x̂            over the elements that share a parameter

Where a parameter is constant within a group, the group's Σ dy and Σ dy * x̂ serve both.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .cluster import cell_entries, sum_cells, sum_groups
from .finalize import sum_into, sum_of_parts
from .memory import (
    Operand,
    load,
    load_constant,
    load_raw,
    store,
    store_entries,
    widen,
)
from .places import (
    along_parameters,
    block_at,
    group_entries,
    groups_of,
    num_blocks,
    num_elements,
    own_block,
    own_tiles,
    parameter_entries,
    reduced_entries,
    row_entries,
    swept_blocks,
    tile_at,
    unchanging_block,
)
from .stages import (
    factor,
    linear_of,
    load_factor,
    load_kept,
    masked,
    number_of,
    pull_back,
    store_input_gradient,
)
from .statistics import Saved, load_statistics, no_statistics
from .sums import Sums, sum_tile, sum_tiles, sum_where_constant, with_products


class Operands(NamedTuple):
    """The tensors of a backward pass.

    Attributes:
        dy, x, dx, weight: each an `Operand`.
        saved: statistics, at ``group.stats``.
        sums: pointers to each group's two sums.
        dbias, dweight: pointers to parameter gradients, or to partial sums of them, at ``group.parts``.
        around, strides: pointers of the tensors `Behind` it, and where these lie.
    """

    dy: Any
    x: Any
    dx: Any
    weight: Any
    saved: Any
    sums: Any
    dbias: Any
    dweight: Any
    around: Any
    strides: Any


@triton.jit
def load_normalized(dy, given, statistics, at, plan: tl.constexpr):
    """(dy, x̂) of one tile. Both are 0 outside the mask or meet a dy that is.

    Dy is converted last: converted as soon as it was loaded, layer norm of 4096 bfloat16 took two registers more.
    """
    dtype: tl.constexpr = statistics.rstd.dtype
    g = load_raw(dy, at, plan)
    x = load_kept(given, at, dtype, plan)
    if plan.centered:
        x -= statistics.mean
    return widen(g, dtype), masked(x * statistics.rstd, given, at, plan)


@triton.jit
def load_both(given, statistics, at, plan: tl.constexpr, stores: tl.constexpr):
    """(the gradient of what the linear map gives, x̂) of one tile; ``stores`` gradients of what comes after the map.

    The gradient of skip is the same: a walk that comes after the one that stored it reads it in the place of dy.
    """
    if given.strides.dskip is not None and not stores:
        g, xhat = load_normalized(Operand(given.around.dskip, given.strides.dskip), given, statistics, at, plan)
    else:
        g, xhat = load_normalized(given.dy, given, statistics, at, plan)
        linear = linear_of(given, at, g.dtype, plan)
        g = pull_back(g, xhat, linear, given, at, plan, stores)
    return g, xhat


@triton.jit
def load_weight(given, block, dtype: tl.constexpr, plan: tl.constexpr):
    """The weight of each group, (block_kept, 1, 1); 1 if there is none, it varies within a group or is not needed."""
    w = tl.full((plan.block_kept, 1, 1), 1.0, dtype)
    if given.weight.pointer is not None and not plan.affine_reduced and (plan.stage != "measure" or plan.constant):
        w = factor(load_constant(given.weight, block, dtype, plan), plan)
    return w


@triton.jit
def weigh(given, g, w, at, plan: tl.constexpr):
    """Weight * dy, of a tile or of what `along_parameters` left of one; ``w`` is what `load_weight` loaded of it."""
    if given.weight.pointer is not None:
        if plan.affine_reduced:
            g *= load_factor(given.weight, at, g.dtype, plan)
        else:
            g *= w
    return g


@triton.jit
def derivative(g, xhat, sums, n, rstd, plan: tl.constexpr):
    """Dx = rstd * (g - (sum1 + x̂ * sum2) / n), where g is weight * dy."""
    mean1, mean2 = sums.dy / n, sums.dyx / n
    if not plan.constant:
        if plan.centered:
            g -= tl.fma(xhat, mean2, mean1)
        else:
            g = tl.fma(xhat, -mean2, g)
    return g * rstd


@triton.jit
def save_sums(given, where, sums):
    """Store a chunk's two sums: (groups, chunks)."""
    offsets = where.offsets * tl.num_programs(1) + tl.program_id(1)
    if given.sums.dy is not None:
        store(given.sums.dy, offsets, sums.dy, where.mask)
    store(given.sums.dyx, offsets, sums.dyx, where.mask)


@triton.jit
def load_sums(given, where, dtype: tl.constexpr, plan: tl.constexpr):
    """Each group's two sums; 0 where dx needs none."""
    sum1, sum2 = 0.0, 0.0
    if not plan.constant:
        if plan.centered:
            sum1 = load(given.sums.dy, where.offsets, where.mask, dtype)
        sum2 = load(given.sums.dyx, where.offsets, where.mask, dtype)
    return Sums(sum1, sum2)


@triton.jit
def store_gradients(given, where, sums, plan: tl.constexpr):
    """Store parameter gradients, or partial sums of them, if they are wanted."""
    store_entries(given.dbias, where, sums.dy, plan)
    store_entries(given.dweight, where, sums.dyx, plan)


@triton.jit
def sum_swept(g, xhat, plan: tl.constexpr):
    """Each group's two sums over a tile; where no mean is subtracted, dx needs the second alone."""
    if plan.centered:
        sum1, sum2 = sum_tiles(g, g * xhat, plan)
    else:
        sum1, sum2 = 0.0, sum_tile(g * xhat, plan)
    return Sums(sum1, sum2)


@triton.jit
def sweep(given, group, dtype: tl.constexpr, plan: tl.constexpr):
    """One tile of parameters, many groups: the parameters stay in registers, their gradients gather there.

    Stage "resident" takes the two sums of a group from its tile; "measure" leaves those of each tile at
    ``group.stats`` times the number of tiles. A program leaves one row of partial parameter gradients. With
    ``plan.per_sample`` each index along the outer axes has parameters, and so many programs, of its own.
    """
    shape: tl.constexpr = (plan.block_kept, plan.block_r1, plan.block_r2)
    own = tile_at(tl.program_id(1), unchanging_block(group, plan), group, plan)
    n = num_elements(group, dtype)
    if given.weight.pointer is not None:
        w = load_factor(given.weight, own, dtype, plan)
    linear = linear_of(given, own, dtype, plan)
    if given.dweight is not None:
        dweight = tl.full(shape, 0.0, dtype)
    if given.dbias is not None:
        dbias = tl.full(shape, 0.0, dtype)
    run = swept_blocks(group, plan)
    for number in tl.range(run.first, run.last, run.step, num_stages=plan.depth):
        block = block_at(tl.zeros((), tl.int32) + number, tl.program_id(1), group, plan)
        at = tile_at(block.chunk, block, group, plan)
        where = group_entries(group.stats, block, plan)
        statistics = load_statistics(given.saved, where, dtype, plan)
        elements = n
        if plan.masked:
            elements = number_of(given, where, group, dtype, plan)
        g, xhat = load_normalized(given.dy, given, statistics, at, plan)
        g = pull_back(g, xhat, linear, given, at, plan, True)
        if given.dweight is not None:
            dweight = tl.fma(g, xhat, dweight)
        if given.dbias is not None:
            dbias += g
        if given.dx.pointer is not None or given.sums.dyx is not None:
            if given.weight.pointer is not None:
                g *= w
            sums = sum_swept(g, xhat, plan)
            if plan.stage == "measure":
                save_sums(given, where, sums)
            else:
                store_input_gradient(derivative(g, xhat, sums, elements, statistics.rstd, plan), given, at, plan)
    where = row_entries(tl.program_id(0).to(tl.int64) * (group.count >> 1), group.parts, own)
    if given.dweight is not None:
        store(given.dweight, where.offsets, tl.sum(dweight, 0), where.mask)
    if given.dbias is not None:
        store(given.dbias, where.offsets, tl.sum(dbias, 0), where.mask)


@triton.jit
def resident(given, statistics, block, group, plan: tl.constexpr):
    """Stage "resident": the tile is the whole group, and its sums are those of the parameters, weighted those of dx."""
    n = number_of(given, group_entries(group.stats, block, plan), group, statistics.rstd.dtype, plan)
    at = tile_at(0, block, group, plan)
    g, xhat = load_both(given, statistics, at, plan, True)
    alike = along_parameters(at, plan)
    if plan.affine_r2:
        sum1, sum2 = sum_where_constant(g, g * xhat, plan)
    else:
        pairs, products = with_products(g, xhat, plan)
        sum1, sum2 = sum_where_constant(pairs, products, plan)
    store_gradients(given, parameter_entries(group.parts, alike, plan), Sums(sum1, sum2), plan)
    if given.dx.pointer is not None:
        w = load_weight(given, block, g.dtype, plan)
        g = weigh(given, g, w, at, plan)
        sum1, sum2 = weigh(given, sum1, w, alike, plan), weigh(given, sum2, w, alike, plan)
        sum1, sum2 = sum_tiles(sum1, sum2, plan)
        store_input_gradient(derivative(g, xhat, Sums(sum1, sum2), n, statistics.rstd, plan), given, at, plan)


@triton.jit
def resident_cells(given, statistics, block, group, plan: tl.constexpr):
    """Stage "resident" for groups of several cells, whose sums a cluster exchanges once.

    Each cell's are partial gradients of its parameters; weighted and summed over a group's, they are what dx needs.
    """
    n = number_of(given, group_entries(group.stats, block, plan), group, statistics.rstd.dtype, plan)
    at = tile_at(0, block, group, plan)
    g, xhat = load_both(given, statistics, at, plan, True)
    sum1, sum2 = sum_cells(g, g * xhat, plan)
    store_gradients(given, cell_entries(group.parts, block), Sums(sum1, sum2), plan)
    if given.dx.pointer is not None:
        if given.weight.pointer is not None:
            where = cell_entries(given.weight.strides, block)
            w = factor(load(given.weight.pointer, where.offsets, where.mask, g.dtype), plan)
            sum1, sum2 = sum1 * w, sum2 * w
        sum1, sum2 = sum_groups(sum1, sum2, plan)
        g = weigh(given, g, load_weight(given, block, g.dtype, plan), at, plan)
        store_input_gradient(derivative(g, xhat, Sums(sum1, sum2), n, statistics.rstd, plan), given, at, plan)


@triton.jit
def sum_walked(given, statistics, w, block, group, plan: tl.constexpr):
    """The two sums over the tiles that this program walks, weighted if the weight varies along them.

    With ``plan.stats_reduced`` each element has statistics of its own. Constant statistics need no sums for dx, so that
    it is written on the way.
    """
    dtype: tl.constexpr = statistics.rstd.dtype
    sum1 = tl.full((plan.block_kept, plan.block_r1, plan.block_r2), 0.0, dtype)
    sum2 = sum1
    first, last = own_tiles(block, group, plan)
    for i in tl.range(last - first):
        at = tile_at(first + i, block, group, plan)
        own = statistics
        if plan.stats_reduced:
            own = load_statistics(given.saved, reduced_entries(group.stats, at), dtype, plan)
        g, xhat = load_both(given, own, at, plan, True)
        if plan.affine_reduced:
            g = weigh(given, g, w, at, plan)
        sum1 += g
        sum2 = tl.fma(g, xhat, sum2)
        if plan.constant and given.dx.pointer is not None:
            g = weigh(given, g, w, at, plan)
            store_input_gradient(derivative(g, xhat, Sums(0.0, 0.0), 1.0, own.rstd, plan), given, at, plan)
    return Sums(sum_tile(sum1, plan), sum_tile(sum2, plan))


@triton.jit
def write_tiles(given, statistics, w, sums, group, plan: tl.constexpr):
    """Dx of the tiles that this program walks, from the last to the first."""
    block = own_block(group, plan)
    n = number_of(given, group_entries(group.stats, block, plan), group, statistics.rstd.dtype, plan)
    first, last = own_tiles(block, group, plan)
    for i in tl.range(last - first):
        at = tile_at(last - 1 - i, block, group, plan)
        g, xhat = load_both(given, statistics, at, plan, plan.constant)  # nothing was summed before
        g = weigh(given, g, w, at, plan)
        store_input_gradient(derivative(g, xhat, sums, n, statistics.rstd, plan), given, at, plan)


@triton.jit
def streamed(given, statistics, block, group, plan: tl.constexpr):
    """Stage "streamed": a walk for the sums, a walk for dx."""
    w = load_weight(given, block, statistics.rstd.dtype, plan)
    sums = sum_walked(given, statistics, w, block, group, plan)
    store_gradients(given, group_entries(group.parts, block, plan), sums, plan)
    if given.dx.pointer is not None:
        if given.strides.dskip is not None:
            tl.debug_barrier()  # what a thread reads again, another may have stored
        if not plan.affine_reduced:
            sums = Sums(sums.dy * w, sums.dyx * w)
        write_tiles(given, statistics, w, sums, group, plan)


@triton.jit
def measure(given, statistics, block, group, plan: tl.constexpr):
    """Stage "measure": the first of these walks."""
    w = load_weight(given, block, statistics.rstd.dtype, plan)
    sums = sum_walked(given, statistics, w, block, group, plan)
    save_sums(given, group_entries(group.parts, block, plan), sums)


@triton.jit
def merge_sums(given, block, group, into, into_plan: tl.constexpr):
    """Each group's two sums, merged from their parts."""
    groups = groups_of(block, group, into, into_plan)
    weight = given.weight.pointer if into.weight is not None else None
    return sum_of_parts(given.sums, weight, groups, into, into_plan)


@triton.jit
def apply(given, statistics, block, group, into, plan: tl.constexpr, into_plan: tl.constexpr):
    """Stage "apply": the second of these walks."""
    dtype: tl.constexpr = statistics.rstd.dtype
    w = load_weight(given, block, dtype, plan)
    if into_plan is not None:
        sums = merge_sums(given, block, group, into, into_plan)
    else:
        sums = load_sums(given, group_entries(group.stats, block, plan), dtype, plan)
    write_tiles(given, statistics, w, sums, group, plan)


@triton.jit
def sum_rows(rows, dbias, dweight, group, plan: tl.constexpr):
    """Parameter gradients from rows of partial ones, each block of them by one program of whatever launch this is."""
    first = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    for number in tl.range(first, num_blocks(group, plan), tl.num_programs(0) * tl.num_programs(1)):
        block = block_at(tl.zeros((), tl.int32) + number, 0, group, plan)
        sum_into(Sums(dbias, dweight), rows, None, block, group, plan)


@triton.jit
def sweep_beside_columns(rows, columns, group, also, dtype: tl.constexpr, plan: tl.constexpr, also_plan: tl.constexpr):
    """`sweep` by one program for each block, and the parameters' gradients straight from x and dy by those after them.

    Args:
        rows, columns: operands of the one, without gradients, and of the other, without dx.
        group, plan, also, also_plan: of the one and of the other.
    """
    number = tl.program_id(0) - num_blocks(group, plan)
    if number < 0:
        sweep(rows, group, dtype, plan)
    else:
        streamed(columns, no_statistics(dtype), block_at(number, 0, also, also_plan), also, also_plan)


@triton.jit
def normalize_backward(
    dy, x, dx, weight, mean, rstd, running, sum_dy, sum_dyx, dweight, dbias, eps, row_dy, row_dyx, behind,
    group, plan: tl.constexpr, into, into_plan: tl.constexpr, also, also_plan: tl.constexpr,
):  # fmt: skip
    """The gradients of `normalize_forward`.

    Args:
        dy, x, dx: the tensors, at ``group.dy``, ``group.x``, ``group.dx``; dx is None if it is not wanted.
        weight: parameters or None, at ``group.weight``.
        mean, rstd: saved statistics, at ``group.stats``; ``mean`` is None if it is fixed at zero.
        running, eps: with ``plan.constant`` the statistics used in place of them, else None.
        sum_dy, sum_dyx: each group's two sums. Stage "measure" writes those of a chunk, (*parts, chunks); stage "apply"
            reads them there, or if another launch has merged them at ``group.stats``. Weighted, but in "measure" where
            the weight is constant within a group.
        dweight, dbias: parameter gradients, or partial sums of them, at ``group.parts``; None if not wanted.
        row_dy, row_dyx: partial gradients of the parameters, which stage "apply" sums.
        behind: pointers of the tensors `Behind` the norm, or None.
        group, plan: `Grouping` and `Plan`.
        into, into_plan: of the parts that stage "apply" merges; None if it merges none.
        also, also_plan: of the parameter gradients that are summed in the same launch, by stage "apply" from
            ``row_dy`` and ``row_dyx``, beside `sweep` from x and dy by programs of their own; or None.

    Grid: (blocks of groups, chunks of a group), and for `sweep` (rows of partial sums, tiles). The stages are
    those of `normalize_forward`.
    """
    dtype: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    given = Operands(
        Operand(dy, group.dy), Operand(x, group.x), Operand(dx, group.dx), Operand(weight, group.weight),
        Saved(mean, rstd, None, running, eps, None), Sums(sum_dy, sum_dyx), dbias, dweight, behind, group,
    )  # fmt: skip
    if plan.accumulate and also_plan is not None:
        rows = Operands(
            given.dy, given.x, given.dx, given.weight, given.saved, given.sums, None, None, behind, group
        )  # fmt: skip
        if also.weight is None:  # columns need none but for what comes after it
            weight = None
        columns = Operands(
            Operand(dy, also.dy), Operand(x, also.x), Operand(None, also.dx), Operand(weight, also.weight),
            given.saved, given.sums, dbias, dweight, behind, also,
        )  # fmt: skip
        sweep_beside_columns(rows, columns, group, also, dtype, plan, also_plan)
    elif plan.accumulate:
        sweep(given, group, dtype, plan)
    else:
        block = own_block(group, plan)
        where = group_entries(group.stats, block, plan)
        if plan.stats_reduced:
            statistics = no_statistics(dtype)
        else:
            statistics = load_statistics(given.saved, where, dtype, plan)
        if plan.block_groups > 0:
            resident_cells(given, statistics, block, group, plan)
        elif plan.stage == "resident":
            resident(given, statistics, block, group, plan)
        elif plan.stage == "streamed":
            streamed(given, statistics, block, group, plan)
        elif plan.stage == "measure":
            measure(given, statistics, block, group, plan)
        else:
            apply(given, statistics, block, group, into, plan, into_plan)
            if also_plan is not None:
                sum_rows(Sums(row_dy, row_dyx), dbias, dweight, also, also_plan)
