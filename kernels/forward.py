"""The forward kernel: statistics of each group, then the linear map."""

import triton
import triton.language as tl

from .tile import (
    chunk_of_tiles,
    cube,
    exact,
    for_each_block,
    in_first_block,
    load_constant,
    load_parameter,
    load_tensor,
    locate,
    num_cells,
    own_share,
    reduced_tile,
    resident_mask,
    small_offsets,
    store,
    store_tensor,
    sum_tile,
    sum_tiles,
    tensor_offsets,
    widen,
    with_products,
)


@triton.jit
def first_element(x, group, outer, q, exists, dtype: tl.constexpr, plan: tl.constexpr):
    """An element of each group, the same for all that share it: (block_kept, 1, 1)."""
    only = tl.arange(0, 1)
    at = tensor_offsets(group, group.x, outer, outer * 0, q, only, only, plan)
    return widen(tl.load(x + at, mask=exists[:, None, None], other=0.0), dtype)


@triton.jit
def moments(x, mask, count, origin, plan: tl.constexpr):
    """Mean, as an unevaluated sum of two numbers, and summed squared deviations of each group's elements in a tile.

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
        correction, squares = sum_tiles(deviation, squares, plan)
        correction = correction / count
        squares = squares - count * correction * correction
        squares = tl.where(squares < 0.0, 0.0, squares)  # `where` lets NaN pass, a maximum may not
    else:
        _x, squares = with_products(x, x, plan)
        squares = sum_tile(squares, plan)
        mean = tl.zeros_like(squares)
        correction = mean
    return mean, correction, squares


@triton.jit
def combine(count, mean, correction, squares, tile_count, tile_mean, tile_correction, tile_squares):
    """Chan's rule for the moments of two sets, with means relative to the first tile's: large ones cost no digits."""
    total = count + tile_count
    part = tile_count / tl.where(total == 0.0, 1.0, total)
    mean = tl.where(count == 0.0, tile_mean, mean)
    delta = ((tile_mean - mean) + tile_correction) - correction
    correction += delta * part
    squares += tile_squares + delta * delta * (count * part)
    return total, mean, correction, squares


@triton.jit
def measure(x, first, last, origin, group, outer, q, exists, dtype: tl.constexpr, plan: tl.constexpr):
    """(count, mean, correction, squares) of each group over tiles first to last."""
    count = tl.zeros((), dtype)
    mean = tl.full((plan.block_kept, 1, 1), 0.0, dtype)
    correction = mean
    squares = mean
    for i in tl.range(last - first):
        walk, r1, r2, in1, in2, size = reduced_tile(first + i, group, plan)
        mask = cube(exists, in1, in2)
        at = tensor_offsets(group, group.x, outer, walk, q, r1, r2, plan)
        tile = widen(tl.load(x + at, mask=mask, other=0.0), dtype)
        size = size.to(dtype)
        tile_mean, tile_correction, tile_squares = moments(tile, mask, size, origin, plan)
        count, mean, correction, squares = combine(
            count, mean, correction, squares, size, tile_mean, tile_correction, tile_squares
        )
    return count, mean, correction, squares


@triton.jit
def save_parts(parts, chunk, cells, count, mean, correction, squares, exists, group, plan: tl.constexpr):
    """Store a chunk's moments: (4, cells, chunks)."""
    plane = num_cells(group, plan) * tl.num_programs(1)
    parts += cells * tl.num_programs(1) + chunk
    tl.store(parts, count, mask=exists)
    tl.store(parts + plane, mean, mask=exists)
    tl.store(parts + plane * 2, correction, mask=exists)
    tl.store(parts + plane * 3, squares, mask=exists)


@triton.jit
def update_running(running, index, mean, variance, count, mask):
    """Blend a group's mean and unbiased variance into the running ones; without momentum, write them as they are.

    ``count`` is the number of elements behind the variance, or None if the variance is unbiased already.
    """
    mean_at, var_at = index * running.mean_stride, index * running.var_stride
    unbiased = variance if count is None else variance * (count / (count - 1.0))
    if len(running.momentum) > 0:
        m = exact(running.momentum, mean.dtype)
        old_mean = widen(tl.load(running.mean + mean_at, mask=mask, other=0.0), mean.dtype)
        old_var = widen(tl.load(running.var + var_at, mask=mask, other=0.0), mean.dtype)
        mean = old_mean * (1.0 - m) + mean * m
        unbiased = old_var * (1.0 - m) + unbiased * m
    store(running.mean, mean_at, mean, mask)
    store(running.var, var_at, unbiased, mask)
    if len(running.batches) > 0:  # one program counts
        first = tl.program_id(0) == 0
        tl.store(running.batches[0], tl.load(running.batches[0], mask=first, other=0) + 1, mask=first)


@triton.jit
def save_statistics(mean_out, rstd_out, running, index, mean, variance, count, eps, exists, plan: tl.constexpr):
    """Store each group's mean and 1 / sqrt(variance + eps), (block_kept, 1, 1), and return the latter."""
    if eps is None:
        rstd = tl.where(variance == 0.0, 0.0, 1.0 / tl.sqrt(tl.where(variance == 0.0, 1.0, variance)))
    else:
        rstd = 1.0 / tl.sqrt(variance + exact(eps, variance.dtype))
    index, exists = for_each_block(index, plan), in_first_block(exists, plan)
    mean, variance = for_each_block(mean, plan), for_each_block(variance, plan)
    if mean_out is not None:
        tl.store(mean_out + index, mean, mask=exists)
    tl.store(rstd_out + index, for_each_block(rstd, plan), mask=exists)
    if running is not None:
        update_running(running, index, mean, variance, count, exists)
    return rstd


@triton.jit
def load_statistics(mean, rstd, correction, running, index, eps, exists, dtype: tl.constexpr, plan: tl.constexpr):
    """(mean, correction, rstd) of each group: from an earlier launch, or from the running statistics."""
    if plan.constant:
        m = widen(tl.load(running.mean + index * running.mean_stride, mask=exists, other=0.0), dtype)
        variance = widen(tl.load(running.var + index * running.var_stride, mask=exists, other=1.0), dtype)
        r = 1.0 / tl.sqrt(variance + exact(eps, dtype))
        c = tl.zeros_like(m)
    else:
        r = tl.load(rstd + index, mask=exists, other=0.0)
        m = tl.load(mean + index, mask=exists, other=0.0) if plan.centered else tl.zeros_like(r)
        c = tl.load(correction + index, mask=exists, other=0.0) if correction is not None else tl.zeros_like(r)
    return m, c, r


@triton.jit
def load_map(weight, bias, rstd, group, outer, q, exists, plan: tl.constexpr):
    """(rstd * weight, bias) of each group, (block_kept, 1, 1); rstd alone if `write` reads the parameters."""
    scale, shift = rstd, tl.zeros_like(rstd)
    if not (plan.affine_reduced or plan.shares_rows):
        if weight is not None:
            scale *= load_constant(weight, group.weight, group, outer, q, exists, rstd.dtype, plan)
        if bias is not None:
            shift = load_constant(bias, group.bias, group, outer, q, exists, rstd.dtype, plan)
    return scale, shift


@triton.jit
def write(
    y, weight, bias, scale, shift, x, mean, correction, group, outer, walk, q, r1, r2, exists, mask, plan: tl.constexpr
):
    """Y = (x - mean) * rstd * weight + bias, for one tile; ``scale`` and ``shift`` are what `load_map` made of them.

    Where a cluster shares rows `load_map` leaves the parameters to it: a product of rstd and a weight in half precision
    is exchanged between thread blocks, and they wait once more.
    """
    if plan.centered:
        x = (x - mean) - correction
    if plan.affine_reduced or plan.shares_rows:
        x *= scale
        scale, shift = 1.0, 0.0
        if weight is not None:
            scale = load_parameter(weight, group.weight, group, outer, walk, q, r1, r2, exists, mask, x.dtype, plan)
        if bias is not None:
            shift = load_parameter(bias, group.bias, group, outer, walk, q, r1, r2, exists, mask, x.dtype, plan)
    value = x * scale if bias is None else tl.fma(x, scale, shift)
    store_tensor(y, tensor_offsets(group, group.y, outer, walk, q, r1, r2, plan), value, mask, plan)


@triton.jit
def normalize_forward(x, y, weight, bias, mean, rstd, running, parts, eps, group, plan: tl.constexpr):
    """Normalize every group of x into y.

    Args:
        x, y: the tensors, at ``group.x`` and ``group.y``.
        weight, bias: parameters or None, at ``group.weight`` and ``group.bias``.
        mean, rstd: statistics of each group, at ``group.stats``, float32 or float64. Written, but read by stage
            "apply". ``mean`` is None if it is fixed at zero.
        running: `Running` statistics to update, or with ``plan.constant`` to use; or None.
        parts: stage "measure" writes each group's (count, mean, correction, squares) there, (4, *parts, chunks); stage
            "apply" reads what float32 cannot hold of each group's mean, (groups,).
        eps: added to the variance, see `exact`; None for 0 in a norm that makes 0 of a constant group.
        group, plan: `Grouping` and `Plan`.

    Grid: (blocks of groups, chunks of a group). Stages: "resident", the tile is the whole group and is read once;
    "streamed", a program walks its groups twice, backwards the second time to meet what the cache still holds;
    "measure" and "apply", these two walks as two launches, in which several programs share a group.
    """
    dtype: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    block, chunk = own_share(plan)
    outer, q, exists = locate(block, group, plan)
    there = exists[:, None, None]
    index = small_offsets(group, group.stats, outer, q, plan)
    origin = first_element(x, group, outer, q, exists, dtype, plan) if eps is None else None

    if plan.stage == "resident":
        walk, r1, r2, in1, in2, _size = reduced_tile(chunk * 0, group, plan)
        mask = resident_mask(exists, r1, r2, in1, in2, group, plan)
        tile = widen(load_tensor(x, tensor_offsets(group, group.x, outer, walk, q, r1, r2, plan), mask, plan), dtype)
        count = tl.zeros((), dtype) + (group.count >> 1)
        m, c, squares = moments(tile, mask, count, origin, plan)
        if plan.block_groups > 0:
            there = there & (q % plan.cells == 0)[:, None, None]  # of a group's cells, the first stores its statistics
        r = save_statistics(mean, rstd, running, index, m + c, squares / count, count, eps, there, plan)
        scale, shift = load_map(weight, bias, r, group, outer, q, exists, plan)
        write(y, weight, bias, scale, shift, tile, m, c, group, outer, walk, q, r1, r2, exists, mask, plan)
    else:
        first, last = chunk_of_tiles(chunk, group, plan)
        if plan.stage == "apply":
            m, c, r = load_statistics(mean, rstd, parts, running, index, eps, there, dtype, plan)
        else:
            count, m, c, squares = measure(x, first, last, origin, group, outer, q, exists, dtype, plan)
            if plan.stage == "measure":
                cells = small_offsets(group, group.parts, outer, q, plan)
                save_parts(parts, chunk, cells, count, m, c, squares, there, group, plan)
            else:
                r = save_statistics(mean, rstd, running, index, m + c, squares / count, count, eps, there, plan)
        if plan.stage != "measure":
            scale, shift = load_map(weight, bias, r, group, outer, q, exists, plan)
            for i in tl.range(last - first):
                walk, r1, r2, in1, in2, _size = reduced_tile(last - 1 - i, group, plan)
                mask = cube(exists, in1, in2)
                at = tensor_offsets(group, group.x, outer, walk, q, r1, r2, plan)
                tile = widen(tl.load(x + at, mask=mask, other=0.0), dtype)
                write(y, weight, bias, scale, shift, tile, m, c, group, outer, walk, q, r1, r2, exists, mask, plan)
