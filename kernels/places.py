"""Which elements: where a program's groups and tiles lie, as indices, masks and offsets. Nothing is loaded here.

A tile has three dimensions (kept, r1, r2), see `normtriton.planning.grouping.Grouping`. Index vectors are int64, so
that a tensor may hold more than 2**31 elements; the extra address arithmetic was 6 SASS instructions in 297 for a row
of 4096.

Triton knows of an integer argument that 16 divides it, or nothing. So strides come in units of ``plan.vector``
elements and are multiplied back here, by a constant: the compiler sees the alignment of a row of 1000 and loads 16
bytes at once.

It also compiles anew for an argument of 1 and for multiples of 16. Sizes, which a batch may change, are therefore
handed over as odd numbers, 2 * size + 1, and halved here.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl


class Along(NamedTuple):
    """A linear index over axes, listed with the fastest first, and their sizes."""

    index: Any
    sizes: Any


class Block(NamedTuple):
    """A block of groups.

    Attributes:
        outer: the index along the outer axes, `Along`.
        q: indices along the kept axis, (block_kept,).
        exists: which of them there are.
        chunk: the part of their elements that a program is for, if several share them.
        first: the first of ``q``.
    """

    outer: Any
    q: Any
    exists: Any
    chunk: Any
    first: Any


class Place(NamedTuple):
    """Where a tile's elements are: a `Block`, and the part of its groups that the tile holds.

    Attributes:
        outer, q, exists: as of the block.
        walk: the index along the walked axes, `Along`.
        r1, r2: indices along the two reduced axes, (block_r1,) and (block_r2,).
        in1, in2: which of these there are.
        mask: which elements there are, (block_kept, block_r1, block_r2).
        size: elements of a group that the tile holds, float32.
    """

    outer: Any
    q: Any
    exists: Any
    walk: Any
    r1: Any
    r2: Any
    in1: Any
    in2: Any
    mask: Any
    size: Any


class Entries(NamedTuple):
    """Where an operand's elements are: offsets, and which of them there are."""

    offsets: Any
    mask: Any


@triton.jit
def distance(along, strides):
    """The offset of an index `Along` axes."""
    offset = tl.zeros((), tl.int64)
    index = along.index
    for axis in tl.static_range(len(along.sizes)):
        offset += (index % (along.sizes[axis] >> 1)).to(tl.int64) * strides[axis]
        index = index // (along.sizes[axis] >> 1)
    return offset


@triton.jit
def num_elements(group, dtype: tl.constexpr):
    """Elements that share statistics."""
    return tl.zeros((), dtype) + (group.count >> 1)


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
def num_tiles(group, plan: tl.constexpr):
    """Tiles along the reduced axes."""
    tiles = tl.zeros((), tl.int32) + tl.cdiv((group.r2 >> 1) * plan.r2_unit, plan.block_r2) * tl.cdiv(
        (group.r1 >> 1), plan.block_r1
    )
    for axis in tl.static_range(len(group.walk)):
        tiles *= group.walk[axis] >> 1
    return tiles


@triton.jit
def block_at(block, chunk, group, plan: tl.constexpr):
    """A block of groups by its number, and a chunk of theirs."""
    blocks = tl.cdiv((group.kept >> 1) * plan.kept_unit, plan.span)
    if len(group.outer) == 0:
        outer = block * 0
    else:
        outer = block // blocks
        block = block % blocks
    first = block.to(tl.int64) * plan.span
    q = first + tl.arange(0, plan.block_kept)
    if plan.even_kept:
        exists = tl.full((plan.block_kept,), True, tl.int1)
    else:
        exists = q < (group.kept >> 1) * plan.kept_unit
        if plan.span < plan.block_kept:
            exists = exists & (tl.arange(0, plan.block_kept) < plan.span)
    return Block(Along(outer, group.outer), q, exists, chunk, first)


@triton.jit
def no_block():
    """A block for what no group changes: one index along the kept axis, for all of them."""
    q = tl.arange(0, 1)
    return Block(Along(0, ()), q, q == 0, 0, 0)


class Swept(NamedTuple):
    """The blocks of groups that a program sweeps."""

    first: Any
    last: Any
    step: Any


@triton.jit
def blocks_of_a_sample(group, plan: tl.constexpr):
    """Blocks of groups that have one index along the outer axes."""
    return tl.cdiv((group.kept >> 1) * plan.kept_unit, plan.span).to(tl.int32)


@triton.jit
def programs_of_a_sample(group, plan: tl.constexpr):
    """Programs along the grid's first axis for each of them."""
    return tl.num_programs(0) // (num_blocks(group, plan) // blocks_of_a_sample(group, plan))


@triton.jit
def unchanging_block(group, plan: tl.constexpr):
    """A `Block` for what no group changes that a program sweeps."""
    block = no_block()
    if plan.per_sample:
        sample = tl.program_id(0) // programs_of_a_sample(group, plan)
        block = Block(Along(sample, group.outer), block.q, block.exists, 0, 0)
    return block


@triton.jit
def swept_blocks(group, plan: tl.constexpr):
    """The blocks of a program along the grid's first axis: every so many of all, or of its own sample's."""
    if plan.per_sample:
        step, blocks = programs_of_a_sample(group, plan), blocks_of_a_sample(group, plan)
        sample = tl.program_id(0) // step
        swept = Swept(sample * blocks + tl.program_id(0) % step, (sample + 1) * blocks, step)
    else:
        swept = Swept(tl.program_id(0), num_blocks(group, plan), tl.num_programs(0))
    return swept


@triton.jit
def groups_of(block, group, parts, plan: tl.constexpr):
    """The groups of a block as a block of the `Grouping` of their partial results, whose plan is given.

    Statistics and partial results are dense, with their axes in one order. So the offset of a group's statistics is its
    number in both groupings; where all of a block is one group it has one.
    """
    number = distance(block.outer, group.stats.outer) + block.first * group.stats.kept
    number = number.to(tl.int32)  # groups that programs share are few; a division of 64 bits takes 70 instructions
    if len(parts.outer) == 0:
        outer, first = number * 0, number
    else:
        kept = ((parts.kept >> 1) * plan.kept_unit).to(tl.int32)
        outer, first = number // kept, number % kept
    q = first.to(tl.int64) + tl.arange(0, plan.block_kept)
    exists = q < (parts.kept >> 1) * plan.kept_unit
    return Block(Along(outer, parts.outer), q, exists, block.chunk, first)


@triton.jit
def saved_here(block, group, plan: tl.constexpr):
    """Which of a block's groups a program saves something of: all, if it has their first chunk; (block_kept, 1, 1)."""
    end = tl.where(block.chunk == 0, (group.kept >> 1) * plan.kept_unit, 0)
    return (block.q < end)[:, None, None]


@triton.jit
def own_block(group, plan: tl.constexpr):
    """The block of groups, and the chunk of theirs, that this program is for.

    The programs of stage "apply" take them from the last to the first, so that they begin with what the launch before
    left in the cache. Both numbers are read at once: read when it was needed, the second one took three registers.
    """
    block, chunk = tl.program_id(0), tl.program_id(1)
    if plan.stage == "apply":
        block, chunk = tl.num_programs(0) - 1 - block, tl.num_programs(1) - 1 - chunk
    return block_at(block, chunk, group, plan)


@triton.jit
def own_tiles(block, group, plan: tl.constexpr):
    """The run of tiles, first to last, that are a block's chunk."""
    tiles = num_tiles(group, plan)
    share = tl.cdiv(tiles, tl.num_programs(1))
    first = tl.minimum(block.chunk * share, tiles)
    return first, tl.minimum(first + share, tiles)


@triton.jit
def cube(kept, r1, r2):
    """One mask over the tile from a mask along each axis."""
    return kept[:, None, None] & r1[None, :, None] & r2[None, None, :]


@triton.jit
def within_rows(mask, r1, r2, group, plan: tl.constexpr):
    """A tile's mask. Of rows dealt out to thread blocks, the last one's may be fewer."""
    if plan.shares_rows and not plan.even_r2:
        within = r1[:, None] * (group.r2 >> 1) + r2[None, :] < (group.count >> 1) // plan.cells
        mask = mask & within[None, :, :]
    return mask


@triton.jit
def in_tile(index, tiles, size, block: tl.constexpr):
    """Indices of an axis that its tile of this number holds: a whole block, but of the last tile what is left."""
    return tl.where(index + 1 < tiles, block, size - (tiles - 1) * block).to(tl.int32)


@triton.jit
def tile_at(t, block, group, plan: tl.constexpr):
    """Tile t along the reduced axes of a block's groups; of a resident one the only tile is 0.

    Every tile of a walk takes these instructions, so they divide as little as they can, and without a sign.
    """
    size1, size2 = (group.r1 >> 1), (group.r2 >> 1) * plan.r2_unit
    n1, n2 = tl.cdiv(size1, plan.block_r1).to(tl.uint32), tl.cdiv(size2, plan.block_r2).to(tl.uint32)
    t = (tl.zeros((), tl.int32) + t).to(tl.uint32)
    index1, index2, walked = t * 0, t * 0, t * 0
    if plan.tiled == "r2":
        index2 = t
    elif plan.tiled == "all":
        index1 = t // n2
        index2 = t - index1 * n2
        if len(group.walk) > 0:
            walked = index1 // n1
            index1 -= walked * n1
    start1, start2 = index1.to(tl.int64) * plan.block_r1, index2.to(tl.int64) * plan.block_r2
    r1 = start1 + tl.arange(0, plan.block_r1)
    r2 = start2 + tl.arange(0, plan.block_r2)
    if plan.even_r1:
        in1 = tl.full((plan.block_r1,), True, tl.int1)
        held1 = tl.full((), plan.block_r1, tl.int32)
    else:
        in1 = r1 < size1
        held1 = in_tile(index1, n1, size1, plan.block_r1)
    if plan.even_r2:
        in2 = tl.full((plan.block_r2,), True, tl.int1)
        held2 = tl.full((), plan.block_r2, tl.int32)
    else:
        in2 = r2 < size2
        held2 = in_tile(index2, n2, size2, plan.block_r2)
    walk = Along(walked.to(tl.int32), group.walk)
    mask = within_rows(cube(block.exists, in1, in2), r1, r2, group, plan)
    return Place(block.outer, block.q, block.exists, walk, r1, r2, in1, in2, mask, (held1 * held2).to(tl.float32))


@triton.jit
def first_elements(block):
    """The first element of each of a block's groups."""
    index = tl.arange(0, 1)
    there = index == 0
    walk, exists = Along(0, ()), block.exists
    return Place(block.outer, block.q, exists, walk, index, index, there, there, exists[:, None, None], 1.0)


@triton.jit
def along_parameters(at, plan: tl.constexpr):
    """The part of a tile along which the parameters vary: along the other axes, one index."""
    r1, in1, r2, in2 = at.r1, at.in1, at.r2, at.in2
    if not plan.affine_r1:
        r1 = tl.arange(0, 1)
        in1 = r1 == 0
    if not plan.affine_r2:
        r2 = tl.arange(0, 1)
        in2 = r2 == 0
    return Place(at.outer, at.q, at.exists, at.walk, r1, r2, in1, in2, cube(at.exists, in1, in2), at.size)


@triton.jit
def tensor_offsets(strides, at, plan: tl.constexpr):
    """Offsets, in elements, of a tile of a tensor of full size: (block_kept, block_r1, block_r2)."""
    base = distance(at.outer, strides.outer) + distance(at.walk, strides.walk)
    step = strides.cell if plan.cells > 1 else strides.kept
    row = base + (at.r1 * strides.r1)[None, :, None]
    if plan.vector_axis == "kept":
        offsets = at.q[:, None, None] * step + (row + (at.r2 * strides.r2)[None, None, :]) * plan.vector
    else:
        offsets = (row + (at.q * step)[:, None, None]) * plan.vector + at.r2[None, None, :] * strides.r2
    return offsets


@triton.jit
def group_offsets(strides, at, plan: tl.constexpr):
    """Offsets of an operand that varies along the kept axes alone: (block_kept, 1, 1)."""
    base = distance(at.outer, strides.outer)
    if plan.cells > 1:
        offsets = base + (at.q // plan.cells) * strides.kept + (at.q % plan.cells) * strides.cell
    else:
        offsets = base + at.q * strides.kept
    return offsets[:, None, None]


@triton.jit
def cell_offsets(strides, at, plan: tl.constexpr):
    """`group_offsets` of an operand of which a cell is one run: no division, whose result a cluster would exchange."""
    if plan.block_groups > 0:
        offsets = (distance(at.outer, strides.outer) + at.q * strides.cell)[:, None, None]
    else:
        offsets = group_offsets(strides, at, plan)
    return offsets


@triton.jit
def group_entries(strides, block, plan: tl.constexpr):
    """The entry of each of a block's groups: (block_kept, 1, 1)."""
    return Entries(group_offsets(strides, block, plan), block.exists[:, None, None])


@triton.jit
def spread_entries(strides, at, reduced: tl.constexpr, plan: tl.constexpr):
    """The entries of a tensor that broadcasts against those of full size, for a tile.

    They are (block_kept, block_r1, block_r2) if it varies along the ``reduced`` axes, else `group_entries`.
    """
    offsets, there = group_offsets(strides, at, plan), at.exists[:, None, None]
    if reduced:
        offsets += distance(at.walk, strides.walk)
        offsets = offsets + (at.r1 * strides.r1)[None, :, None] + (at.r2 * strides.r2)[None, None, :]
        there = at.mask
    return Entries(offsets, there)


@triton.jit
def parameter_entries(strides, at, plan: tl.constexpr):
    """The entries of partial gradients, for what `along_parameters` left of a tile."""
    offsets = group_offsets(strides, at, plan)
    offsets += (at.r1 * strides.r1)[None, :, None] + (at.r2 * strides.r2)[None, None, :]
    return Entries(offsets, at.mask)


@triton.jit
def row_entries(row, strides, at):
    """Where a row of one entry for each index along the reduced axes lies: (block_r1, block_r2).

    With a first dimension of one, sm_80 exchanged what is stored through shared memory: 4 barriers more.
    """
    offsets = row + distance(at.walk, strides.walk)
    offsets += (at.r1 * strides.r1)[:, None] + (at.r2 * strides.r2)[None, :]
    return Entries(offsets, at.in1[:, None] & at.in2[None, :])


@triton.jit
def reduced_entries(strides, at):
    """The entries of an operand that varies along the reduced axes alone: (1, block_r1, block_r2)."""
    base = distance(at.outer, strides.outer) + distance(at.walk, strides.walk)
    offsets = base + (at.r1 * strides.r1)[None, :, None] + (at.r2 * strides.r2)[None, None, :]
    return Entries(offsets, at.in1[None, :, None] & at.in2[None, None, :])
