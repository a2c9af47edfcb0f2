"""From a norm's shapes and strides to the launches that compute it. Pure integers, cached.

Strategies, forward and backward:

    resident    a tile holds whole groups: one launch, one read
    streamed    a program walks its groups twice: one launch, two reads
    split       several programs share a group: measure, merge, apply: two reads
    constant    the statistics are given: one elementwise launch

The order in which a group is summed depends on the group's own size and layout, never on how many groups there are,
where the groups lie within one sample (`Norm.batch_invariant`). Batch norm may fill the GPU instead.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil, prod
from typing import NamedTuple

from . import plan as planning
from .grouping import Axis, Grouping, build, contiguous, spread
from .norms import Norm, name_axes
from .plan import Plan, Tile, make_plan

type_strides = tuple[int, ...]
Key = tuple[str, int]


class Problem(NamedTuple):
    """One norm of one shape: all that is known before a stride is."""

    norm: Norm
    shape: tuple[int, ...]
    sizes: tuple[tuple[str, int], ...] = ()

    @property
    def axes(self) -> dict[Key, int]:
        """The size of every named axis."""
        dims = name_axes(self.norm.axes, self.shape, dict(self.sizes))
        return {(a.name, a.ordinal): a.size for dim in dims for a in dim}

    def tensor(self, strides: type_strides) -> dict[Key, int]:
        """Strides of a tensor of full size, by axis."""
        return spread(name_axes(self.norm.axes, self.shape, dict(self.sizes)), strides)

    @property
    def parameter_shape(self) -> tuple[int, ...]:
        """The shape of weight and bias."""
        names = {word.strip("()*") for word in self.norm.affine.split()}
        dims = name_axes(self.norm.axes, self.shape, dict(self.sizes))
        return tuple(prod(a.size for a in dim) for dim in dims if dim[0].name in names)

    def parameter(self, strides: type_strides) -> dict[Key, int]:
        """Strides of a parameter, by axis."""
        return spread(name_axes(self.norm.affine, self.parameter_shape, dict(self.sizes)), strides)

    @property
    def affine(self) -> tuple[Key, ...]:
        """The axes that the parameters vary along."""
        return tuple(self.parameter(contiguous(self.parameter_shape)))

    @property
    def over(self) -> tuple[Key, ...]:
        """The axes that share statistics."""
        names = set(self.norm.over.split())
        return tuple(key for key in self.axes if key[0] in names)

    @property
    def kept(self) -> tuple[Key, ...]:
        """The axes that do not."""
        return tuple(key for key in self.axes if key not in self.over)

    @property
    def cells(self) -> tuple[Key, ...]:
        """The axes along which neither the statistics nor the parameters are summed."""
        return tuple(key for key in self.axes if key in self.kept or key in self.affine)

    @property
    def summed(self) -> tuple[Key, ...]:
        """The axes along which every group sums for its parameters on its own: those that are no cell's."""
        return tuple(key for key in self.axes if key not in self.cells)

    @property
    def num_groups(self) -> int:
        """How many groups there are."""
        return prod(self.axes[key] for key in self.kept)

    def dense(self, keys: tuple[Key, ...]) -> dict[Key, int]:
        """Row-major strides of a buffer with these axes."""
        return dict(zip(keys, contiguous([self.axes[key] for key in keys]), strict=True))

    def grouping(
        self, leader: str, over: tuple[Key, ...], tensors: tuple[str, ...], operands: dict[str, dict[Key, int] | None]
    ) -> Grouping:
        """The `Grouping` of a launch: these axes are reduced, these operands take part."""
        present = {name: strides for name, strides in operands.items() if strides is not None}
        axes = [
            Axis(size, key in over, key in self.affine, {name: s.get(key, 0) for name, s in present.items()})
            for key, size in self.axes.items()
        ]
        return build(axes, tensors=tensors, leader=leader, count=prod(self.axes[key] for key in self.over))


SPLIT: Key = ("split", 0)


def merging(problem: Problem, rows: int, kept: tuple[Key, ...], cells: tuple[Key, ...], **operands: dict[Key, int]) -> Grouping:
    """The `Grouping` of a buffer of partial results, (rows, *cells), merged over the rows and all axes not kept."""
    sizes = {SPLIT: rows} | {key: problem.axes[key] for key in cells}
    parts = dict(zip(sizes, contiguous(list(sizes.values())), strict=True))
    strides = {"parts": parts, **operands}
    axes = [
        Axis(size, key not in kept, key in problem.affine, {name: s.get(key, 0) for name, s in strides.items()})
        for key, size in sizes.items()
    ]
    return build(axes, tensors=("parts",), leader="parts")


class Launch(NamedTuple):
    """One kernel launch."""

    kernel: str
    group: Grouping
    plan: Plan
    grid: tuple[int, int]
    num_warps: int


class Schedule(NamedTuple):
    """The launches of one direction of one norm, and the buffers between them.

    Attributes:
        strategy: "resident", "streamed", "split" or "constant".
        reason: why, in words.
        main: the launch that writes y or dx; the first one if there are two.
        merge: merges what ``main`` measured, into statistics or into the sums that dx needs; or None.
        apply: the second launch of a split, or None.
        parameters: sums partial parameter gradients (backward), or averages running statistics (forward); or None.
        chunks: programs that share a group.
        parts: elements of one plane of the buffer of partial statistics or sums; 0 if there is none.
        rows: elements of one plane of the buffer of partial parameter gradients; 0 if they need none of their own.
        num_groups: elements of the saved statistics.
    """

    strategy: str
    reason: str
    main: Launch
    merge: Launch | None = None
    apply: Launch | None = None
    parameters: Launch | None = None
    chunks: int = 1
    parts: int = 0
    rows: int = 0
    num_groups: int = 0

    @property
    def launches(self) -> tuple[Launch, ...]:
        """In order."""
        return tuple(launch for launch in (self.main, self.merge, self.apply, self.parameters) if launch)


def finalizer(kernel: str, group: Grouping) -> Launch:
    """The launch of a second stage: few groups, many programs, small tiles."""
    lanes = 32 if group.vector_axis == "kept" else 1
    kept = min(lanes, planning.power_of_two(group.kept))
    r2 = min(planning.power_of_two(group.r2), 2048 // kept)
    r1 = min(planning.power_of_two(group.r1), max(2048 // (kept * r2), 1))
    tile = Tile(kept, r1, r2, 4)
    return Launch(kernel, group, make_plan(group, tile, "merge", 4), (tile.blocks(group), 1), tile.num_warps)


def _main(kernel: str, group: Grouping, tile: Tile, stage: str, itemsize: int, grid: tuple[int, int], **flags: bool) -> Launch:
    return Launch(kernel, group, make_plan(group, tile, stage, itemsize, **flags), grid, tile.num_warps)


def share(problem: Problem, group: Grouping, tile: Tile, itemsize: int, sms: int) -> int:
    """Programs that share a group."""
    if problem.norm.batch_invariant:
        return planning.chunks_by_size(group, tile, itemsize)
    return planning.chunks_to_fill(group, tile, sms)


@lru_cache(maxsize=4096)
def forward_schedule(
    problem: Problem,
    x: type_strides,
    y: type_strides,
    weight: type_strides | None,
    bias: type_strides | None,
    itemsize: int,
    sms: int,
    running: str = "",
) -> Schedule:
    """The launches of a forward pass.

    Args:
        problem: norm and shape.
        x, y, weight, bias: strides in elements; None for a parameter that is missing.
        itemsize: bytes of an element of x.
        sms: multiprocessors of the device.
        running: "use" them as constants, "update" them, or neither.
    """
    flags = {"centered": problem.norm.centered, "constant": running == "use"}
    # the running statistics have one entry a channel; without a batch axis among the kept, that is one a group
    channels = tuple(key for key in problem.kept if key in problem.affine)
    averaged = running == "update" and channels != problem.kept
    stats = problem.dense(channels if running == "use" else problem.kept)
    tensors = {"x": problem.tensor(x), "y": problem.tensor(y)}
    small = {
        "weight": None if weight is None else problem.parameter(weight),
        "bias": None if bias is None else problem.parameter(bias),
        "stats": stats,
    }
    group = problem.grouping("y", problem.over, ("x", "y"), tensors | small | {"parts": stats})
    average = None
    if averaged:
        own = problem.dense(channels)
        sizes = {key: problem.axes[key] for key in problem.kept}
        axes = [
            Axis(size, key not in channels, key in problem.affine, {"parts": stats[key], "stats": own.get(key, 0)})
            for key, size in sizes.items()
        ]
        average = finalizer("average_running", build(axes, tensors=("parts",), leader="parts"))
    done = {"parameters": average, "num_groups": problem.num_groups}

    if running == "use":
        tile = planning.looped_tile(group, itemsize)
        chunks = planning.even_chunks(tile.tiles(group), 1 << 30)
        main = _main("forward", group, tile, "apply", itemsize, (tile.blocks(group), chunks), **flags)
        return Schedule("constant", "the statistics are given, so that nothing is summed", main, **done)

    scattered = _scattered(problem, group, y, itemsize)
    tile = planning.resident_tile(group, itemsize, planning.RESIDENT_FORWARD)
    if tile and not scattered:
        main = _main("forward", group, tile, "resident", itemsize, (tile.blocks(group), 1), **flags)
        reason = f"{group.count} elements a group fit in the registers of {tile.num_warps} warps"
        return Schedule("resident", reason, main, **done)

    if not scattered:
        tile = planning.looped_tile(group, itemsize)
        chunks = share(problem, group, tile, itemsize, sms)
        if chunks == 1:
            main = _main("forward", group, tile, "streamed", itemsize, (tile.blocks(group), 1), **flags)
            reason = f"{group.count} elements a group are too many for registers; {tile.blocks(group)} programs walk them"
            return Schedule("streamed", reason, main, **done)

    # several programs share a group, or a group's elements are too scattered to be walked as one
    keys = problem.cells if scattered else problem.kept
    over = tuple(key for key in problem.over if key not in keys)
    measured = problem.grouping("y", over, ("x", "y"), tensors | {"stats": problem.dense(keys), "parts": problem.dense(keys)})
    applied = problem.grouping("y", over, ("x", "y"), tensors | small)
    tile, apply_tile = planning.looped_tile(measured, itemsize), planning.looped_tile(applied, itemsize)
    chunks = share(problem, measured, tile, itemsize, sms)
    merged = merging(problem, chunks, problem.kept, keys, stats=stats)
    reason = (
        f"neighbours in memory belong to different groups, so that cells of {measured.count // merged_cells(problem, keys)} elements are measured "
        f"and merged"
        if scattered
        else f"{group.count} elements a group are walked by {chunks} programs"
    )
    return Schedule(
        "split",
        reason,
        main=_main("forward", measured, tile, "measure", itemsize, (tile.blocks(measured), chunks), **flags),
        merge=finalizer("merge_moments", merged),
        apply=_main("forward", applied, apply_tile, "apply", itemsize, (apply_tile.blocks(applied), apply_chunks(applied, apply_tile)), **flags),
        chunks=chunks,
        parts=chunks * prod(problem.axes[key] for key in keys),
        **done,
    )


def apply_chunks(group: Grouping, tile: Tile) -> int:
    """Programs along the reduced axes for an elementwise launch: a few tiles each."""
    tiles = tile.tiles(group)
    return planning.even_chunks(tiles, ceil(tiles / 4))


def merged_cells(problem: Problem, keys: tuple[Key, ...]) -> int:
    """Cells that make up a group."""
    return prod(problem.axes[key] for key in keys if key in problem.over)


def _scattered(problem: Problem, group: Grouping, strides: type_strides, itemsize: int) -> bool:
    """Whether a group's neighbours in memory are so few that its rows would be read in pieces of sectors.

    So with channels_last group norm: C / G channels of one group, then those of the next. Taking each channel for a
    cell of its own, merged afterwards, reads whole rows instead.
    """
    steps = problem.tensor(strides)
    nearest = min((key for key in problem.over if problem.axes[key] > 1), key=steps.__getitem__, default=None)
    if nearest not in problem.affine or not problem.summed or group.vector_axis != "r2":
        return False
    row = group.r2 * itemsize
    fits = planning.resident_tile(group, itemsize, planning.RESIDENT_FORWARD) is not None
    return row % 32 != 0 if fits else row < planning.COLUMN_BYTES or row % 32 != 0


@lru_cache(maxsize=4096)
def backward_schedule(
    problem: Problem,
    x: type_strides,
    dy: type_strides,
    dx: type_strides,
    weight: type_strides | None,
    itemsize: int,
    sms: int,
    parameters: bool,
    wants_dx: bool = True,
    constant: bool = False,
) -> Schedule:
    """The launches of a backward pass.

    Args:
        problem: norm and shape.
        x, dy, dx, weight: strides in elements.
        itemsize: bytes of an element of x.
        sms: multiprocessors of the device.
        parameters: whether dweight or dbias is wanted.
        wants_dx: whether dx is.
        constant: whether the forward pass used the running statistics.
    """
    flags = {"centered": problem.norm.centered, "constant": constant}
    channels = tuple(key for key in problem.kept if key in problem.affine)
    stats = problem.dense(channels if constant else problem.kept)
    tensors = {"x": problem.tensor(x), "dy": problem.tensor(dy), "dx": problem.tensor(dx)}
    names = ("x", "dy", "dx")
    w = None if weight is None else problem.parameter(weight)
    gradient = problem.parameter(contiguous(problem.parameter_shape))
    cells = problem.cells
    gathers = parameters and not problem.summed
    # a parameter's own sum is complete in one group if no kept axis is left to sum over
    complete = all(key in problem.affine for key in cells)
    num_groups = problem.num_groups

    def group_for(over: tuple[Key, ...], parts: dict[Key, int], weight: dict[Key, int] | None = w) -> Grouping:
        return problem.grouping("dx", over, names, tensors | {"weight": weight, "stats": stats, "parts": parts})

    def sum_rows(rows: int, keys: tuple[Key, ...]) -> Launch:
        """Sum (rows, *keys) partial gradients into the parameters'."""
        return finalizer("sum_parts", merging(problem, rows, problem.affine, keys, stats=gradient))

    if gathers:
        if any(key in problem.affine for key in problem.kept):
            raise NotImplementedError(
                f"parameters along {problem.norm.affine!r}, partly kept and partly among {problem.norm.over!r}, "
                f"have no gradient yet"
            )
        group = group_for(problem.over, gradient)
        tile = planning.resident_tile(group, itemsize, planning.RESIDENT_ACCUMULATE, planning.RESIDENT_ACCUMULATE)
        if tile:
            rows = min(tile.blocks(group), sms)
            main = _main("backward", group, tile, "resident", itemsize, (rows, 1), accumulate=True, **flags)
            return Schedule(
                "resident",
                f"{group.count} elements a group fit in registers beside the parameters and their gradients; "
                f"{rows} programs leave a row of partial gradients each",
                main,
                parameters=sum_rows(rows, problem.affine) if rows > 1 else None,
                rows=rows * group.count if rows > 1 else 0,
                num_groups=num_groups,
            )
        return _gathered_split(problem, group_for, w, stats, itemsize, sms, wants_dx, flags, sum_rows, gradient)

    parts = gradient if complete else problem.dense(cells)
    rows = 0 if complete or not parameters else prod(problem.axes[key] for key in cells)
    reduce_rows = sum_rows(1, cells) if rows else None
    if constant:
        group = group_for(problem.over, parts)
        tile = planning.looped_tile(group, itemsize, tensors=2)
        if not parameters:
            main = _main("backward", group, tile, "apply", itemsize, (tile.blocks(group), apply_chunks(group, tile)), **flags)
            return Schedule("constant", "the statistics are given, so that nothing is summed", main, num_groups=num_groups)
        chunks = planning.chunks_to_fill(group, tile, sms)
        main = _main("backward", group, tile, "measure", itemsize, (tile.blocks(group), chunks), **flags)
        return Schedule(
            "constant",
            f"the statistics are given; {chunks} programs a channel sum the parameters' gradients",
            main,
            parameters=sum_rows(chunks, cells),
            chunks=chunks,
            parts=chunks * prod(problem.axes[key] for key in cells),
            num_groups=num_groups,
        )

    group = group_for(problem.over, parts)
    scattered = _scattered(problem, group, dx, itemsize)
    tile = planning.resident_tile(group, itemsize, planning.RESIDENT_BACKWARD)
    if tile and not scattered:
        main = _main("backward", group, tile, "resident", itemsize, (tile.blocks(group), 1), **flags)
        reason = f"{group.count} elements a group, of x and of dy, fit in the registers of {tile.num_warps} warps"
        return Schedule("resident", reason, main, parameters=reduce_rows, rows=rows, num_groups=num_groups)

    mixed = scattered or (parameters and any(key in problem.affine for key in problem.over))
    if not mixed:
        tile = planning.looped_tile(group, itemsize, tensors=2)
        chunks = share(problem, group, tile, itemsize, sms)
        if chunks == 1:
            main = _main("backward", group, tile, "streamed", itemsize, (tile.blocks(group), 1), **flags)
            reason = f"{group.count} elements a group are too many for registers; {tile.blocks(group)} programs walk them"
            return Schedule("streamed", reason, main, parameters=reduce_rows, rows=rows, num_groups=num_groups)

    keys = cells if mixed else problem.kept
    over = tuple(key for key in problem.over if key not in keys)
    measured = group_for(over, problem.dense(keys))
    tile = planning.looped_tile(measured, itemsize, tensors=2)
    chunks = share(problem, measured, tile, itemsize, sms)
    weights = {} if w is None or measured_weighted(problem, keys) else {"weight": w}
    merge = merging(problem, chunks, problem.kept, keys, stats=stats, **weights)
    return Schedule(
        "split",
        f"{group.count} elements a group are walked by {chunks * merged_cells(problem, keys)} programs",
        main=_main("backward", measured, tile, "measure", itemsize, (tile.blocks(measured), chunks), **flags),
        merge=finalizer("sum_parts", merge) if wants_dx else None,
        apply=_main("backward", measured, tile, "apply", itemsize, (tile.blocks(measured), apply_chunks(measured, tile)), **flags)
        if wants_dx
        else None,
        parameters=sum_rows(chunks, keys) if parameters else None,
        chunks=chunks,
        parts=chunks * prod(problem.axes[key] for key in keys),
        num_groups=num_groups,
    )


def measured_weighted(problem: Problem, keys: tuple[Key, ...]) -> bool:
    """Whether the measuring launch applies the weight itself: it varies within what that launch sums."""
    return any(key in problem.affine and key not in keys for key in problem.over)


def _gathered_split(problem, group_for, w, stats, itemsize, sms, wants_dx, flags, sum_rows, gradient) -> Schedule:  # type: ignore[no-untyped-def]
    """Groups too large for registers whose parameters vary within them: sum, then sweep the groups tile by tile."""
    group = group_for(problem.over, gradient)
    tile = planning.looped_tile(group, itemsize, tensors=2)
    tiles = tile.tiles(group)
    rows = max(min(tile.blocks(group), 2 * sms // tiles), 1)
    sweep = _main("backward", group, tile, "apply", itemsize, (rows, tiles), accumulate=True, **flags)
    done = {
        "parameters": sum_rows(rows, problem.affine) if rows > 1 else None,
        "rows": rows * group.count if rows > 1 else 0,
        "num_groups": problem.num_groups,
    }
    if not wants_dx:
        return Schedule("split", f"{tiles} programs share a group, {rows} of them its parameters", sweep, **done)
    measured = group_for(problem.over, stats)
    walk = planning.looped_tile(measured, itemsize, tensors=2)
    chunks = share(problem, measured, walk, itemsize, sms)
    return Schedule(
        "split",
        f"{group.count} elements a group are summed by {chunks} programs, then swept by {tiles}, "
        f"{rows} rows of partial gradients each",
        main=_main("backward", measured, walk, "measure", itemsize, (walk.blocks(measured), chunks), **flags),
        merge=finalizer("sum_parts", merging(problem, chunks, problem.kept, problem.kept, stats=stats)) if chunks > 1 else None,
        apply=sweep,
        chunks=chunks,
        parts=chunks * problem.num_groups,
        **done,
    )
