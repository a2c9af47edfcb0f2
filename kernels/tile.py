"""Steps that every kernel shares: which tile a program owns, where its elements lie, how they are loaded and stored.

A tile has three dimensions (kept, r1, r2), see `normtriton.planning.grouping.Grouping`. Index vectors are int64, so
that a tensor may hold more than 2**31 elements; the extra address arithmetic was 6 SASS instructions in 297 for a row
of 4096.

Triton knows of an integer argument that 16 divides it, or nothing. So strides come in units of ``plan.vector``
elements and are multiplied back here, by a constant: the compiler sees the alignment of a row of 1000 and loads 16
bytes at once.

It also compiles anew for an argument of 1 and for multiples of 16. Sizes, which a batch may change, are therefore
handed over as odd numbers, 2 * size + 1, and halved here.

No function returns from inside an ``if``: Triton compiles what follows one, whether it is reached or not.
"""

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def unravel(index, sizes, strides):
    """The offset of a linear index over axes listed with the fastest first."""
    offset = tl.zeros((), tl.int64)
    for axis in tl.static_range(len(sizes)):
        offset += (index % (sizes[axis] >> 1)).to(tl.int64) * strides[axis]
        index = index // (sizes[axis] >> 1)
    return offset


@triton.jit
def own_share(plan: tl.constexpr):
    """(block of groups, chunk of a group) that this program is for.

    The programs of stage "apply" take them from the last to the first, so that they begin with what the launch before
    left in the cache.
    """
    block, chunk = tl.program_id(0), tl.program_id(1)
    if plan.stage == "apply":
        block, chunk = tl.num_programs(0) - 1 - block, tl.num_programs(1) - 1 - chunk
    return block, chunk


@triton.jit
def num_blocks(group, plan: tl.constexpr):
    """Blocks of groups in the whole tensor."""
    blocks = tl.zeros((), tl.int32) + tl.cdiv((group.kept >> 1) * plan.kept_unit, plan.span)
    for axis in tl.static_range(len(group.outer)):
        blocks *= group.outer[axis] >> 1
    return blocks


@triton.jit
def num_cells(group, plan: tl.constexpr):
    """Indices along all kept axes."""
    cells = tl.zeros((), tl.int64) + (group.kept >> 1) * plan.kept_unit
    for axis in tl.static_range(len(group.outer)):
        cells *= group.outer[axis] >> 1
    return cells


@triton.jit
def locate(block, group, plan: tl.constexpr):
    """A block's linear index over the outer axes, its indices along the kept axis and which of them exist."""
    blocks = tl.cdiv((group.kept >> 1) * plan.kept_unit, plan.span)
    if len(group.outer) == 0:
        outer = block * 0
    else:
        outer = block // blocks
        block = block % blocks
    q = block.to(tl.int64) * plan.span + tl.arange(0, plan.block_kept)
    if plan.even_kept:
        exists = tl.full((plan.block_kept,), True, tl.int1)
    else:
        exists = q < (group.kept >> 1) * plan.kept_unit
        if plan.span < plan.block_kept:
            exists = exists & (tl.arange(0, plan.block_kept) < plan.span)
    return outer, q, exists


@triton.jit
def num_tiles(group, plan: tl.constexpr):
    """Tiles along the reduced axes."""
    tiles = tl.zeros((), tl.int32) + tl.cdiv((group.r2 >> 1) * plan.r2_unit, plan.block_r2) * tl.cdiv(
        (group.r1 >> 1), plan.block_r1
    )
    for axis in tl.static_range(len(group.walk)):
        tiles *= group.walk[axis] >> 1
    return tiles


@triton.jit
def chunk_of_tiles(chunk, group, plan: tl.constexpr):
    """The run of tiles, first to last, that one of the programs sharing a group walks."""
    tiles = num_tiles(group, plan)
    share = tl.cdiv(tiles, tl.num_programs(1))
    first = tl.minimum(chunk * share, tiles)
    return first, tl.minimum(first + share, tiles)


@triton.jit
def reduced_tile(t, group, plan: tl.constexpr):
    """Tile t along the reduced axes: its walk index, indices along r1 and r2, masks of both, and its size."""
    n1 = tl.cdiv((group.r1 >> 1), plan.block_r1)
    n2 = tl.cdiv((group.r2 >> 1) * plan.r2_unit, plan.block_r2)
    start2 = (t % n2).to(tl.int64) * plan.block_r2
    start1 = (t // n2 % n1).to(tl.int64) * plan.block_r1
    r1 = start1 + tl.arange(0, plan.block_r1)
    r2 = start2 + tl.arange(0, plan.block_r2)
    if plan.even_r1:
        in1 = tl.full((plan.block_r1,), True, tl.int1)
        size1 = start1 * 0 + plan.block_r1
    else:
        in1 = r1 < (group.r1 >> 1)
        size1 = tl.minimum((group.r1 >> 1) - start1, plan.block_r1)
    if plan.even_r2:
        in2 = tl.full((plan.block_r2,), True, tl.int1)
        size2 = start2 * 0 + plan.block_r2
    else:
        in2 = r2 < (group.r2 >> 1) * plan.r2_unit
        size2 = tl.minimum((group.r2 >> 1) * plan.r2_unit - start2, plan.block_r2)
    return t // (n1 * n2), r1, r2, in1, in2, (size1 * size2).to(tl.float32)


@triton.jit
def cube(kept, r1, r2):
    """One mask over the tile from a mask along each axis."""
    return kept[:, None, None] & r1[None, :, None] & r2[None, None, :]


@triton.jit
def resident_mask(exists, r1, r2, in1, in2, group, plan: tl.constexpr):
    """`cube`, for the tile that is the whole group. Of rows dealt out to thread blocks, the last one's may be fewer."""
    mask = cube(exists, in1, in2)
    if plan.shares_rows and not plan.even_r2:
        within = r1[:, None] * (group.r2 >> 1) + r2[None, :] < (group.count >> 1) // plan.cells
        mask = mask & within[None, :, :]
    return mask


@triton.jit
def tensor_offsets(group, strides, outer, walk, q, r1, r2, plan: tl.constexpr):
    """Offsets, in elements, of a tile of a tensor of full size: (block_kept, block_r1, block_r2)."""
    base = unravel(outer, group.outer, strides.outer) + unravel(walk, group.walk, strides.walk)
    step = strides.cell if plan.cells > 1 else strides.kept
    row = base + (r1 * strides.r1)[None, :, None]
    if plan.vector_axis == "kept":
        offsets = q[:, None, None] * step + (row + (r2 * strides.r2)[None, None, :]) * plan.vector
    else:
        offsets = (row + (q * step)[:, None, None]) * plan.vector + r2[None, None, :] * strides.r2
    return offsets


@triton.jit
def small_offsets(group, strides, outer, q, plan: tl.constexpr):
    """Offsets of an operand that varies along the kept axes alone: (block_kept, 1, 1)."""
    base = unravel(outer, group.outer, strides.outer)
    if plan.cells > 1:
        offsets = base + (q // plan.cells) * strides.kept + (q % plan.cells) * strides.cell
    else:
        offsets = base + q * strides.kept
    return offsets[:, None, None]


@triton.jit
def reduced_offsets(group, strides, outer, walk, r1, r2):
    """Offsets of an operand that varies along the reduced axes alone: (1, block_r1, block_r2)."""
    base = unravel(outer, group.outer, strides.outer) + unravel(walk, group.walk, strides.walk)
    return base + (r1 * strides.r1)[None, :, None] + (r2 * strides.r2)[None, None, :]


@triton.jit
def by_rows(values, plan: tl.constexpr):
    """A tile, or its offsets or mask, as it is loaded and stored: (r1, r2, kept) if a cluster shares its rows.

    Triton deals the first dimension out to the thread blocks. With kept there, each has a piece of every row, of 4 to 8
    bytes.
    """
    if plan.shares_rows:
        values = tl.permute(values, (1, 2, 0))
    return values


@triton.jit
def for_each_block(values, plan: tl.constexpr):
    """An operand of shape (block_kept, 1, 1) as it is stored: once for each thread block that shares the rows.

    Dealt out to them instead, its addresses would be exchanged between thread blocks (10 cluster barriers against 6).
    """
    if plan.shares_rows:
        values = by_rows(tl.broadcast_to(values, (values.shape[0], plan.ctas, values.shape[2])), plan)
    return values


@triton.jit
def in_first_block(exists, plan: tl.constexpr):
    """The mask of a store that `for_each_block` prepares. One thread block stores: what it replaces is read before."""
    mask = for_each_block(exists, plan)
    if plan.shares_rows:
        mask = mask & (tl.arange(0, plan.ctas) == 0)[:, None, None]
    return mask


@triton.jit
def widen(values, dtype: tl.constexpr):
    """What was loaded, in the dtype of the arithmetic.

    The interpreter converts bfloat16's subnormal numbers wrongly, so there it is done by hand: they are the upper half
    of a float32.
    """
    if INTERPRETED and values.dtype.scalar == tl.bfloat16:
        bits = values.to(tl.int16, bitcast=True).to(tl.int32) << 16
        values = bits.to(tl.float32, bitcast=True)
    return values.to(dtype)


@triton.jit
def load_tensor(pointer, offsets, mask, plan: tl.constexpr):
    """A tile of a tensor of full size, 0 outside the mask."""
    values = tl.load(pointer + by_rows(offsets, plan), mask=by_rows(mask, plan), other=0.0)
    if plan.shares_rows:
        values = tl.permute(values, (2, 0, 1))
    return values


@triton.jit
def load_constant(pointer, strides, group, outer, q, exists, dtype: tl.constexpr, plan: tl.constexpr):
    """A parameter that is constant within a group, (block_kept, 1, 1), in the dtype of the arithmetic."""
    offsets = parameter_offsets(group, strides, outer, q, plan)
    return widen(tl.load(pointer + offsets, mask=exists[:, None, None], other=0.0), dtype)


@triton.jit
def parameter_offsets(group, strides, outer, q, plan: tl.constexpr):
    """`small_offsets` of a parameter."""
    if plan.block_groups > 0:  # one run too: the result of a division would be exchanged between thread blocks
        offsets = (unravel(outer, group.outer, strides.outer) + q * strides.cell)[:, None, None]
    else:
        offsets = small_offsets(group, strides, outer, q, plan)
    return offsets


@triton.jit
def load_parameter(
    pointer, strides, group, outer, walk, q, r1, r2, exists, mask, dtype: tl.constexpr, plan: tl.constexpr
):
    """A parameter in the dtype of the arithmetic: (block_kept, 1, 1) where it is constant within a group.

    Along r2 it takes the tile's whole shape: loaded as a vector and broadcast afterwards, it is converted from its own
    register layout to the tile's through shared memory (11 barriers against 3 for float32 beside bfloat16).
    """
    offsets = parameter_offsets(group, strides, outer, q, plan)
    there = exists[:, None, None]
    if plan.affine_reduced:
        offsets += unravel(walk, group.walk, strides.walk) + (r1 * strides.r1)[None, :, None]
        there = there & (r1 < (group.r1 >> 1))[None, :, None]
    if plan.affine_r2:
        offsets += (r2 * strides.r2)[None, None, :]
        there = mask
    return widen(tl.load(pointer + offsets, mask=there, other=0.0), dtype)


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
def belongs(plan: tl.constexpr):
    """Which of a tile's groups each of its cells belongs to, (block_kept, 1, block_groups)."""
    group = tl.arange(0, plan.block_kept) // plan.cells
    return group[:, None, None] == tl.arange(0, plan.block_groups)[None, None, :]


@triton.jit
def join_cells(values, plan: tl.constexpr):
    """A group's sums over its cells and a thread block's rows, (1, ctas, block_groups): groups take the place of r2.

    One sum for all groups: one after the other they took 16 cluster barriers, a matrix of cells by cells 28.
    """
    return tl.sum(tl.where(belongs(plan), tl.sum(values, 2, keep_dims=True), 0.0), 0, keep_dims=True)


@triton.jit
def to_cells(sums, plan: tl.constexpr):
    """Each cell's group's sum, (block_kept, 1, 1)."""
    return tl.sum(tl.where(belongs(plan), sums, 0.0), 2, keep_dims=True)


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
        sums = to_cells(tl.sum(join_cells(values, plan), 1, keep_dims=True), plan)
    else:
        flat = summands(values, plan)
        sums = spread_out(tl.sum(flat, len(flat.shape) - 1, keep_dims=True), values.shape[0])
    return sums


@triton.jit
def add_pairs(a, b, other_a, other_b):
    """The sums of two pairs."""
    return a + other_a, b + other_b


@triton.jit
def sum_pair(a, b, axis: tl.constexpr, plan: tl.constexpr):
    """Sums of two tensors along an axis, dimensions kept. In a cluster, one exchange for both, as it waits for each.

    Elsewhere pairs only take more registers: compiled, group norm of 16 x 4096 elements spilled 136 bytes. And the
    interpreter adds pairs one by one in Python.
    """
    if plan.ctas > 1 and not INTERPRETED:
        sum_a, sum_b = tl.reduce((a, b), axis, add_pairs, keep_dims=True)
    else:
        sum_a, sum_b = tl.sum(a, axis, keep_dims=True), tl.sum(b, axis, keep_dims=True)
    return sum_a, sum_b


@triton.jit
def sum_cells(a, b, plan: tl.constexpr):
    """Sums of two tiles over a cluster's rows, for each cell, which take the place of r2: (1, 1, block_kept).

    Spread out over the threads that have summed rows, they take 4 cluster barriers; 64 columns as they were took 11.
    """
    same = tl.arange(0, plan.block_kept)[:, None, None] == tl.arange(0, plan.block_kept)[None, None, :]
    a, b = sum_pair(a, b, 2, plan)
    a, b = sum_pair(tl.where(same, a, 0.0), tl.where(same, b, 0.0), 0, plan)
    return sum_pair(a, b, 1, plan)


@triton.jit
def sum_groups(a, b, plan: tl.constexpr):
    """Two such sums over the cells of each cell's group: (block_kept, 1, 1)."""
    group = tl.arange(0, plan.block_kept) // plan.cells
    same = group[:, None, None] == group[None, None, :]
    return sum_pair(tl.where(same, a, 0.0), tl.where(same, b, 0.0), 2, plan)


@triton.jit
def sum_tiles(a, b, plan: tl.constexpr):
    """`sum_tile` of two tiles."""
    if plan.block_groups > 0:
        sum_a, sum_b = sum_pair(join_cells(a, plan), join_cells(b, plan), 1, plan)
        sum_a, sum_b = to_cells(sum_a, plan), to_cells(sum_b, plan)
    else:
        flat_a, flat_b = summands(a, plan), summands(b, plan)
        sum_a, sum_b = sum_pair(flat_a, flat_b, len(flat_a.shape) - 1, plan)
        sum_a, sum_b = spread_out(sum_a, a.shape[0]), spread_out(sum_b, a.shape[0])
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


@triton.jit
def exact(pair, dtype: tl.constexpr):
    """A Python number handed over as two float32 that add up to it, since float arguments are float32."""
    if dtype == tl.float64:
        value = tl.cast(pair[0], tl.float64) + tl.cast(pair[1], tl.float64)
    else:
        value = pair[0]
    return value


@triton.jit
def store(pointer, offsets, values, mask):
    """Round to the pointer's dtype, to nearest even, and store.

    Hardware rounds so. The interpreter would truncate float32 to bfloat16, subnormal numbers to others, so there it is
    done by hand.
    """
    dtype = pointer.dtype.element_ty
    if INTERPRETED and dtype == tl.bfloat16:
        values = values.to(tl.float32)
        bits = values.to(tl.int32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        values = tl.where(values == values, rounded, 0x7FC0).to(tl.int16).to(tl.bfloat16, bitcast=True)
    tl.store(pointer + offsets, values.to(dtype), mask=mask)


@triton.jit
def store_tensor(pointer, offsets, values, mask, plan: tl.constexpr):
    """`store` a tile of a tensor of full size."""
    store(pointer, by_rows(offsets, plan), by_rows(values, plan), by_rows(mask, plan))


@triton.jit
def store_sums(pointer, offsets, values, mask, plan: tl.constexpr):
    """`store` what a tile has left of each group, (block_kept, 1, 1)."""
    store(pointer, for_each_block(offsets, plan), for_each_block(values, plan), in_first_block(mask, plan))
