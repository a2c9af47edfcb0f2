"""What only thread-block clusters need: how the thread blocks share a tile, and sums that cross them.

Of any other plan these functions return what they are given, or the plain sum. Loads and stores stand in `memory`.

Triton deals the first dimension of a tile out to the thread blocks of a cluster. A tile is (kept, r1, r2); where a
cluster holds columns, ``plan.shares_rows``, r1 picks the thread block.
"""

import triton
import triton.language as tl

from . import INTERPRETED
from .places import Entries, distance


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
def from_rows(values, plan: tl.constexpr):
    """What `by_rows` turned, as it was."""
    if plan.shares_rows:
        values = tl.permute(values, (2, 0, 1))
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
def sum_joined(values, plan: tl.constexpr):
    """Sums of a tile over whole groups of several cells, for each cell: (block_kept, 1, 1)."""
    return to_cells(tl.sum(join_cells(values, plan), 1, keep_dims=True), plan)


@triton.jit
def max_joined(values, plan: tl.constexpr):
    """The largest value of a tile's groups of several cells, for each cell: (block_kept, 1, 1)."""
    of_cells = tl.where(belongs(plan), tl.max(values, 2, keep_dims=True), -float("inf"))
    return to_cells(tl.max(tl.max(of_cells, 0, keep_dims=True), 1, keep_dims=True), plan)


@triton.jit
def sum_joined_pair(a, b, plan: tl.constexpr):
    """`sum_joined` of two tiles."""
    sum_a, sum_b = sum_pair(join_cells(a, plan), join_cells(b, plan), 1, plan)
    return to_cells(sum_a, plan), to_cells(sum_b, plan)


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
def cell_entries(strides, block):
    """The entry of each of a block's cells, where r2 would be: (1, 1, block_kept)."""
    offsets = distance(block.outer, strides.outer) + (block.q * strides.cell)[None, None, :]
    return Entries(offsets, block.exists[None, None, :])


@triton.jit
def first_of_cells(where, block, plan: tl.constexpr):
    """Of `group_entries`, the one that a group stores if it is joined of several cells: its first cell's."""
    mask = where.mask
    if plan.block_groups > 0:
        mask = mask & (block.q % plan.cells == 0)[:, None, None]
    return Entries(where.offsets, mask)
