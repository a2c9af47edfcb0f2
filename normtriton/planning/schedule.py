"""From a norm's shapes and strides to the launches that compute it. Pure integers, cached.

Strategies, forward and backward:

    resident    a tile holds whole groups: one launch, one read
    clustered   a cluster of thread blocks holds one group: one launch, one read
    streamed    a program walks its groups twice: one launch, two reads
    split       several programs share a group: measure, merge, apply: two reads
    constant    the statistics are given: one elementwise launch

The order in which a group is summed depends on the group's own size and layout, never on how many groups there are,
where the groups lie within one sample (`Norm.batch_invariant`). Batch norm may fill the GPU instead.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from itertools import chain, product
from math import ceil, prod
from typing import TYPE_CHECKING, NamedTuple

from . import plan as planning
from .grouping import Axis, Grouping, build, contiguous, spread
from .norms import Norm, name_axes, words
from .plan import KNOBS, UNTUNED, Device, Plan, Subject, Tile, Tuning, Tunings, make_plan
from .stages import ALONE, SPREAD, WRITTEN, Activation, Stages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .plan import Dtypes
    from .stages import Around

type_strides = tuple[int, ...]
Key = tuple[str, int]


class Problem(NamedTuple):
    """One norm of one shape, and what surrounds it: all that is known before a stride is."""

    norm: Norm
    shape: tuple[int, ...]
    sizes: tuple[tuple[str, int], ...] = ()
    stages: Stages = ALONE

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
        sizes, shape = self.axes, []
        for word in words(self.norm.affine):
            star = word[0].startswith("*")
            shape += [size for (name, _), size in sizes.items() if name == word[0][1:]] if star else []
            shape += [] if star else [prod([sizes[name, 0] for name in word])]
        return tuple(shape)

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
        return prod([self.axes[key] for key in self.kept])

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
        return build(axes, tensors=tensors, leader=leader, count=prod([self.axes[key] for key in self.over]))


SPLIT: Key = ("split", 0)


def merging(
    problem: Problem,
    chunks: int,
    kept: tuple[Key, ...],
    cells: tuple[Key, ...],
    operands: dict[str, dict[Key, int]],
    rows: bool = False,
) -> Grouping:
    """The `Grouping` of a buffer of partial results, (*cells, chunks), merged over the chunks and all axes not kept.

    With ``rows`` it is (chunks, *cells), or where each sample has parameters (*samples, chunks, *cells). Otherwise a
    group's parts lie together, however many groups there are.
    """
    sizes = {key: problem.axes[key] for key in cells}
    if rows:
        samples = {key: size for key, size in sizes.items() if key in problem.kept}
        sizes = samples | {SPLIT: chunks} | {key: size for key, size in sizes.items() if key not in samples}
    else:
        sizes |= {SPLIT: chunks}
    parts = dict(zip(sizes, contiguous(list(sizes.values())), strict=True))
    strides = {"parts": parts, **operands}
    axes = [
        Axis(size, key not in kept, key in problem.affine, {name: s.get(key, 0) for name, s in strides.items()})
        for key, size in sizes.items()
    ]
    return build(axes, tensors=("parts",), leader="parts")


class Launch(NamedTuple):
    """One kernel launch, and what its programs do besides.

    Attributes:
        kernel: its name.
        group, plan, grid: what is computed, how many at a time, by how many programs.
        num_warps: of a program.
        into: of *apply*, the parts of their own groups that its programs merge; None if there are none.
        also: parameter gradients that are summed in the same launch; None if there are none.
        programs: so many that a multiprocessor shall have room for.
    """

    kernel: str
    group: Grouping
    plan: Plan
    grid: tuple[int, int]
    num_warps: int
    into: tuple[Grouping, Plan] | None = None
    also: tuple[Grouping, Plan] | None = None
    programs: int = 1


class Schedule(NamedTuple):
    """The launches of one direction of one norm, and the buffers between them.

    Attributes:
        strategy: "resident", "clustered", "streamed", "split" or "constant".
        reason: why, in words.
        main: the launch that writes y or dx; the first one if there are two.
        merge: merges what ``main`` measured, into statistics, or into the sums that dx needs; None where ``apply``
            does.
        apply: the second launch of a split, or None.
        parameters: sums partial parameter gradients (backward), or averages running statistics (forward); or None.
        columns: sums parameter gradients straight from x and dy, read again; None where ``main`` does, or if there
            are none.
        chunks: programs that share a group.
        parts: elements of one plane of the buffer of partial statistics or sums; 0 if there is none.
        rows: elements of one plane of the buffer of partial parameter gradients; 0 if they need none of their own.
        num_groups: elements of the saved statistics.
        parameter_shape: of weight and bias.
        subject: what a tuning of it is for; None where it may have none.
        tuning: the tuning that was found for it; None for the planner's own choice.
        passed: tiles that were proposed before, each with what its code would have been.
    """

    strategy: str
    reason: str
    main: Launch
    merge: Launch | None = None
    apply: Launch | None = None
    parameters: Launch | None = None
    columns: Launch | None = None
    chunks: int = 1
    parts: int = 0
    rows: int = 0
    num_groups: int = 0
    parameter_shape: tuple[int, ...] = ()
    subject: Subject | None = None
    tuning: Tuning | None = None
    passed: tuple[str, ...] = ()

    @property
    def holds_groups(self) -> bool:
        """Whether a program, or a cluster, has a whole group's result at once."""
        return self.main.plan.stage == "resident"

    @property
    def sums_dy(self) -> bool:
        """Whether a split backward pass keeps each group's sum of dy: a sweep that subtracts no mean leaves it out."""
        return self.main.plan.centered or not self.main.plan.accumulate

    @property
    def launches(self) -> tuple[Launch, ...]:
        """In order."""
        steps = (self.main, self.merge, self.apply, self.parameters, self.columns)
        return tuple(launch for launch in steps if launch)


def finalizer(kernel: str, group: Grouping, num_warps: int = planning.LOOP_WARPS, stages: Stages = ALONE) -> Launch:
    """The launch of a second stage: few groups, many programs, small tiles.

    Tiles and access widths follow neither the number of parts nor that of groups, so that few kernels serve them all.
    Where programs of another launch do this work, of fewer warps than most, their tiles are smaller. (Compiled: tiles
    of four warps in one spilled 224 bytes a thread in float64.) Of the ``stages`` those `of_parts` count.
    """
    columns = group.vector_axis == "kept"
    kept = 32 if columns else 1
    room, long = (1024, 64) if group.r1 > 1 else (2048, 256)
    room = room * min(num_warps, planning.LOOP_WARPS) // planning.LOOP_WARPS
    r2 = min(long if group.r2 > 1 else 1, room // kept)
    r1 = min(64 if group.r1 > 1 else 1, max(room // (kept * r2), 1))
    tile = Tile(kept, r1, r2, planning.warps(kept * r1 * r2, 2, most=8))
    plan = make_plan(group, tile, "merge", merge_access(group), stages=of_parts(stages))
    return Launch(kernel, group, plan, (tile.blocks(group), 1), tile.num_warps)


def of_parts(stages: Stages | Plan) -> Stages:
    """What is needed where parts are merged: what weights them, and whether some are of no elements."""
    return ALONE._replace(offset=stages.offset, masked=stages.masked)


def merge_access(group: Grouping) -> int:
    """The size of an element that plans are made for: parts are read one by one, so that accesses follow no batch."""
    return 4 if group.vector_axis == "kept" else 16


def together(first: Launch, second: Launch) -> Launch:
    """Two finalizers of the same buffers in one launch.

    With the first one's warps: the order of its sums follows them, and they must not follow the second's batch.
    """
    blocks = first.grid[0] + second.grid[0]
    return first._replace(kernel="sum_twice", grid=(blocks, 1), also=(second.group, second.plan))


def riding(apply: Launch, merge: Launch) -> Launch | None:
    """*apply* with programs that merge the parts of their own groups, in place of the launch before it.

    None if they are too many for that, or the groups do not lie side by side.
    """
    group = merge.group
    tile = planning.riding_tile(apply.group, apply.plan.block_kept, group)
    stages = of_parts(merge.plan)
    return tile and apply._replace(into=(group, make_plan(group, tile, "merge", merge_access(group), stages=stages)))


def second_stage(merge: Launch, apply: Launch, gradients: Launch | None, apart: bool) -> tuple[Launch | None, Launch]:
    """What follows the first launch of a split backward pass; parameter gradients, if any, are summed on the way.

    With ``apart`` sums travel to other processes. What comes back are means, of one number each.
    """
    rides = None if apart else riding(apply, merge)
    if rides:
        sums = gradients and finalizer(gradients.kernel, gradients.group, rides.num_warps)
        return None, rides._replace(also=sums and (sums.group, sums.plan))
    apply = apply._replace(group=apply.group._replace(count=1)) if apart else apply
    return together(merge, gradients) if gradients else merge, apply


def apply_chunks(group: Grouping, tile: Tile) -> int:
    """Programs along the reduced axes for an elementwise launch: a few tiles each."""
    tiles = tile.tiles(group)
    return planning.even_chunks(tiles, ceil(tiles / 4))


class Pass(NamedTuple):
    """One direction of one norm, on the way to its `Schedule`: what its launches have in common.

    Attributes:
        problem: norm and shape.
        kernel: "forward" or "backward".
        tensors: strides of the tensors of full size; the one that is written comes last.
        weight: strides of the weight, or None.
        bias: strides of the bias, or None.
        dtypes: of x and of the parameters.
        device: what plans depend on of the device.
        constant: whether the statistics are given.
        operands: what takes part besides the tensors of full size, or is wanted.
        passed: tiles that were passed over, since their code would spill; filled on the way.
        spread: strides of what broadcasts against the tensors.
        apart: whether groups are shared with other processes, so that what is measured is merged before it is applied.
        subject: what a tuning is for; None where there may be none.
        tuned: what the device's table has for the subject, or None.
    """

    problem: Problem
    kernel: str
    tensors: dict[str, dict[Key, int]]
    weight: dict[Key, int] | None
    bias: dict[Key, int] | None
    dtypes: Dtypes
    device: Device
    constant: bool
    operands: tuple[str, ...]
    passed: list[str]
    spread: dict[str, dict[Key, int]]
    apart: bool = False
    subject: Subject | None = None
    tuned: Tuning | None = None

    def looked_up(self) -> Pass:
        """With the tuning that the device's table has, if there is one."""
        table = self.device.tuned
        activation = self.problem.stages.activation
        named = activation.name if isinstance(activation, Activation) else activation
        subject = self.about(" ".join(filter(None, (*self.operands, named))))
        return self._replace(subject=subject, tuned=table.find(subject) if table else None)

    @property
    def itemsize(self) -> int:
        """Bytes of an element of x."""
        return self.dtypes[0].itemsize  # type: ignore[no-any-return]  # of a dtype nothing else is known here

    @property
    def tuning(self) -> Tuning:
        """What plans are made with."""
        return self.tuned or UNTUNED

    def about(self, operands: str) -> Subject | None:
        """What a tuning is for; None where the batch is the contiguous axis, which the planner itself minds."""
        group = self.group(self.problem.over)
        own = group.fixed is not None and group.fixed[0]
        if group.vector_axis == "kept" and not own:
            return None
        norm = self.problem.norm
        return Subject(
            self.kernel,
            f"({norm.axes}) over ({norm.over}), parameters ({norm.affine}){'' if norm.centered else ', mean 0'}",
            operands,
            self.itemsize,
            group.kept if own else 0,
            group.walk,
            group.r1,
            group.r2,
            group.vector_axis,
            group.vector(16 // self.itemsize),
            self.device.clusters,
        )

    @property
    def channels(self) -> tuple[Key, ...]:
        """The axes of the running statistics."""
        return tuple(key for key in self.problem.kept if key in self.problem.affine)

    @property
    def stats(self) -> dict[Key, int]:
        """Strides of the statistics."""
        return self.problem.dense(self.channels if self.constant else self.problem.kept)

    def group(self, over: tuple[Key, ...], parts: dict[Key, int] | None = None) -> Grouping:
        """The `Grouping` that reduces these axes, with these strides of partial results."""
        operands: dict[str, dict[Key, int] | None] = {**self.tensors}
        operands |= self.spread | {"weight": self.weight, "bias": self.bias, "stats": self.stats, "parts": parts}
        return self.problem.grouping([*self.tensors][-1], over, tuple(self.tensors), operands)

    def tile(self, group: Grouping) -> Tile:
        """One of many tiles."""
        return planning.looped_tile(group, self.itemsize, self.tuning)

    def launch(
        self, group: Grouping, tile: Tile, stage: str, grid: tuple[int, int], accumulate: bool = False
    ) -> Launch:
        """A launch of the direction's kernel."""
        norm, stages = self.problem.norm, self.problem.stages
        flags = {"centered": norm.centered, "constant": self.constant, "accumulate": accumulate}
        if tile.shares_rows:
            group = group.deal_rows(tile.ctas)
        plan = make_plan(group, tile, stage, self.itemsize, sample=norm.batch_invariant, stages=stages, **flags)
        return Launch(self.kernel, group, plan, grid, tile.num_warps, programs=tile.programs)

    def walk(self, group: Grouping, stage: str, chunks: int = 1) -> Launch:
        """A launch whose programs walk the tiles of a group, so many programs each group."""
        tile = self.tile(group)
        if self.kernel == "forward" and stage != "apply":
            tile = planning.measured_ahead(group, tile, self.itemsize, self.tuning)
        return self.launch(group, tile, stage, (tile.blocks(group), chunks))

    def apply(self, group: Grouping, chunks: int = 0) -> Launch:
        """An elementwise launch; in as many chunks as another, so that it can walk them the other way round."""
        tile = self.tile(group)
        shared = planning.even_chunks(tile.tiles(group), chunks) if chunks else apply_chunks(group, tile)
        return self.walk(group, "apply", shared)

    def chunks(self, group: Grouping) -> int:
        """Programs that share a group."""
        tile = self.tile(group)
        if self.problem.norm.batch_invariant:
            return planning.chunks_by_size(group, tile, self.itemsize, self.tuning)
        return planning.chunks_to_fill(group, tile, self.itemsize, self.device.sms, self.tuning)

    def on_chip(
        self, group: Grouping, limit: int, cluster_limit: int, target: int = 1024, accumulate: bool = False
    ) -> Launch | None:
        """The launch whose tiles hold whole groups, a program's or a cluster's; None if none can, or none should."""
        holder = self.tuning.on_chip
        if self.apart or holder == "nothing" or self.scattered(group, held=True):
            return None
        tiles = planning.resident_tiles(group, self.itemsize, limit, target, self.tuning)
        if self.device.clusters and holder != "program":
            # batch norm may let the batch decide, and fills three quarters of the multiprocessors at least
            fill = 0 if self.problem.norm.batch_invariant else ceil(self.device.sms * 3 / 4)
            shared = planning.cluster_tiles(group, self.itemsize, cluster_limit, fill, self.tuning)
            small = group.reduced * self.itemsize <= planning.PROGRAM_BYTES
            if holder == "cluster":
                small = group.reduced < planning.LEAST_CLUSTERED
            tiles = chain(tiles, shared) if small else chain(shared, tiles)
        return self.first_that_fits(group, tiles, accumulate)

    def joined(self, cells: Grouping, cluster_limit: int) -> Launch | None:
        """The launch whose clusters hold whole groups of several cells, or None."""
        if self.apart or not self.device.clusters or self.tuning.on_chip in ("program", "nothing"):
            return None
        return self.first_that_fits(cells, planning.cluster_cells(cells, self.itemsize, cluster_limit, self.tuning))

    def first_that_fits(self, group: Grouping, tiles: Iterator[Tile], accumulate: bool = False) -> Launch | None:
        """The launch with the first of the tiles that its code keeps in registers.

        The compiler is asked, if there is one. What it is asked depends on nothing that a batch changes, and so does
        the tile. Where every tile spills, the one that spills least, or None: a few bytes of a thread stay in the L1,
        but a group that is not held is read again.
        """
        least: tuple[float, Launch] | None = None
        if accumulate:
            tiles = (
                t for tile in tiles for t in planning.overlaps(group, tile, self.itemsize, self.device, self.tuning)
            )
        for tile in tiles:
            step = self.launch(group, tile, "resident", (tile.blocks(group), 1), accumulate)
            if self.device.compiler is None:
                return step
            code = self.device.compiler(step, self.dtypes, self.operands)
            if code and not code.spills:
                return step
            self.passed.append(f"{tile}: {f'spills {code.spills} bytes a thread' if code else 'does not fit'}")
            if code:
                again = tile.kept * tile.r1 * tile.r2 * self.itemsize * (len(self.tensors) - 1)
                part = code.spills * 32 * tile.num_warps * tile.ctas / again
                if part <= planning.MOST_SPILLED and (least is None or part < least[0]):
                    least = part, step
        return least and least[1]

    def held(self, step: Launch, operands: str = "") -> tuple[str, str]:
        """The strategy of a launch whose tiles hold whole groups, and the reason in words."""
        strategy, where = "resident", counted(step.num_warps, "warp")
        if step.plan.ctas > 1:
            strategy, where = "clustered", f"{step.plan.ctas} thread blocks of {where}, one cluster"
        return strategy, f"{step.group.count} elements a group{operands} fit in the registers of {where}"

    def scattered(self, group: Grouping, held: bool) -> bool:
        """Whether a group's neighbours in memory are so few that its rows would be read in pieces of sectors.

        So with channels_last group norm: C / G channels of one group, then those of the next. Taking each channel for
        a cell of its own, merged afterwards, reads whole rows instead. ``held``: the group is on chip, and read once.
        """
        problem = self.problem
        steps = [*self.tensors.values()][-1]
        nearest = min((key for key in problem.over if problem.axes[key] > 1), key=steps.__getitem__, default=None)
        if nearest not in problem.affine or not problem.summed or group.vector_axis != "r2":
            return False
        row = group.r2 * self.itemsize
        return row % 32 != 0 if held else row < planning.COLUMN_BYTES or row % 32 != 0

    def without(self, kept: tuple[Key, ...]) -> tuple[Key, ...]:
        """The axes to reduce if these are kept."""
        return tuple(key for key in self.problem.over if key not in kept)

    def size(self, keys: tuple[Key, ...]) -> int:
        """Elements of a buffer with these axes."""
        return prod(self.problem.axes[key] for key in keys)


def around_strides(problem: Problem, around: Around) -> tuple[dict[str, dict[Key, int]], dict[str, dict[Key, int]]]:
    """Strides of what surrounds a norm: of what broadcasts against x, and of the tensors of its size."""
    named = {name: problem.tensor(strides) for name, strides in around}
    spread = {name: named.pop(name) for name in SPREAD if name in named}
    return spread, named


@lru_cache(maxsize=4096)
def forward_schedule(
    problem: Problem,
    x: type_strides,
    y: type_strides,
    weight: type_strides | None,
    bias: type_strides | None,
    dtypes: Dtypes,
    device: Device,
    running: str = "",
    around: Around = (),
    apart: bool = False,
) -> Schedule:
    """The launches of a forward pass, from strides in elements.

    ``running`` says what becomes of running statistics: "use" them as constants, "update" them, or neither. ``around``
    are the tensors that surround the norm. ``apart``: between measuring and applying, moments travel to other
    processes.
    """
    spread, beside = around_strides(problem, around)
    tensors = {"x": problem.tensor(x), **beside, "y": problem.tensor(y)}
    w, b = (None if p is None else problem.parameter(p) for p in (weight, bias))
    surrounding = [name for name, _ in around]
    operands = tuple(filter(None, ("weight" if w else "", "bias" if b else "", running, *surrounding)))
    one = Pass(
        problem, "forward", tensors, w, b, dtypes, device, running == "use", operands, [], spread, apart
    ).looked_up()
    group = one.group(problem.over)
    if one.constant:
        schedule = Schedule("constant", "the statistics are given, so that nothing is summed", one.apply(group))
        return schedule._replace(subject=one.subject, tuning=one.tuned)

    # one entry a channel: unless that is one a group, the groups' statistics are averaged
    average = average_over(problem, one.channels) if running == "update" and one.channels != problem.kept else None
    main = one.on_chip(group, planning.RESIDENT_FORWARD, planning.CLUSTER_FORWARD)
    scattered = main is None and one.scattered(group, held=False)
    if scattered:  # whole rows of cells, joined on chip
        main = one.joined(one.group(one.without(problem.cells)), planning.CLUSTER_FORWARD)
    if main:
        schedule = Schedule(*one.held(main), main)
    elif not scattered and not apart and one.chunks(group) == 1:
        main = one.walk(group, "streamed")
        reason = f"{group.count} elements a group are too many for registers; {main.grid[0]} programs walk them"
        schedule = Schedule("streamed", reason, main)
    else:
        schedule = split_forward(one, scattered)
    return schedule._replace(
        parameters=average,
        num_groups=problem.num_groups,
        subject=one.subject,
        tuning=one.tuned,
        passed=tuple(one.passed),
    )


def split_forward(one: Pass, scattered: bool) -> Schedule:
    """Measure the parts of a group, merge them, apply: if several programs share it, or its rows are too short."""
    problem = one.problem
    keys = problem.cells if scattered else problem.kept
    over = one.without(keys)
    measured = one._replace(weight=None, bias=None).group(over, problem.dense(keys))
    chunks = one.chunks(measured)
    count = one.size(problem.over)
    if scattered:
        reason = f"neighbours in memory belong to different groups: cells of {measured.reduced} elements are merged"
    else:
        reason = f"{count} elements a group are walked by {chunks} programs"
    merged = merging(problem, chunks, problem.kept, keys, {"stats": one.stats})
    merge = finalizer("join_moments" if one.apart else "merge_moments", merged, stages=problem.stages)
    apply = one.apply(one.group(over), chunks)
    if one.apart:
        alone = chunks == 1 and not scattered
        return Schedule(
            "split",
            f"groups extend over processes: {reason}",
            main=one.walk(measured, "measure", chunks),
            merge=None if alone else merge,
            apply=apply,
            chunks=chunks,
            parts=chunks * one.size(keys),
        )
    rides = riding(apply, merge)
    return Schedule(
        "split",
        reason,
        main=one.walk(measured, "measure", chunks),
        merge=None if rides else merge,
        apply=rides or apply,
        chunks=chunks,
        parts=chunks * one.size(keys),
    )


def average_over(problem: Problem, channels: tuple[Key, ...]) -> Launch:
    """The launch that averages every group's statistics into those of the channels."""
    each, own = problem.dense(problem.kept), problem.dense(channels)
    axes = [
        Axis(
            problem.axes[key],
            key not in channels,
            key in problem.affine,
            {"parts": each[key], "stats": own.get(key, 0)},
        )
        for key in problem.kept
    ]
    return finalizer("average_running", build(axes, tensors=("parts",), leader="parts"))


def from_processes(problem: Problem, processes: int, planes: int, operands: dict[str, dict[Key, int]]) -> Grouping:
    """The `Grouping` of what all processes have told, (processes, planes, *kept), merged over the processes."""
    groups = problem.dense(problem.kept)
    strides = {"parts": {**groups, SPLIT: planes * problem.num_groups}, "stats": groups, **operands}
    sizes = {SPLIT: processes} | {key: problem.axes[key] for key in problem.kept}
    axes = [
        Axis(size, key == SPLIT, key in problem.affine, {name: s.get(key, 0) for name, s in strides.items()})
        for key, size in sizes.items()
    ]
    return build(axes, tensors=("parts",), leader="parts")


class Gathered(NamedTuple):
    """The launches between processes, of whatever elements each has.

    Attributes:
        planes: numbers a group that a process tells.
        merge: merges what all have told.
        average: averages running statistics (forward), or None.
    """

    planes: int
    merge: Launch
    average: Launch | None = None


def counted(number: int, word: str, plural: str = "s") -> str:
    """So many of something, in words."""
    return f"{number} {word}{plural if number != 1 else ''}"


@lru_cache(maxsize=4096)
def gathered_moments(problem: Problem, processes: int, updates: bool) -> Gathered:
    """What follows the exchange of moments; ``updates`` says whether there are running statistics."""
    planes = 4 if problem.norm.centered else 2
    channels = tuple(key for key in problem.kept if key in problem.affine)
    average = average_over(problem, channels) if updates and channels != problem.kept else None
    return Gathered(planes, finalizer("merge_processes", from_processes(problem, processes, planes, {})), average)


@lru_cache(maxsize=4096)
def gathered_sums(problem: Problem, processes: int) -> Gathered:
    """What follows the exchange of sums: they become means."""
    planes = 2 if problem.norm.centered else 1
    group = from_processes(problem, processes, planes, {"weight": problem.dense(problem.kept)})
    return Gathered(planes, finalizer("sum_parts", group))


@lru_cache(maxsize=4096)
def backward_schedule(
    problem: Problem,
    x: type_strides,
    dy: type_strides,
    dx: type_strides,
    weight: type_strides | None,
    dtypes: Dtypes,
    device: Device,
    parameters: bool,
    wants_dx: bool = True,
    constant: bool = False,
    around: Around = (),
    bias: type_strides | None = None,
    apart: bool = False,
) -> Schedule:
    """The launches of a backward pass, from strides in elements.

    ``parameters`` says whether dweight or dbias is wanted, ``wants_dx`` whether dx is, ``constant`` whether the forward
    pass used the running statistics. ``around`` are the tensors that surround the norm; ``bias`` is needed where what
    comes after it is computed again. ``apart``: as of `forward_schedule`; what is applied are means in place of sums.
    """
    spread, beside = around_strides(problem, around)
    tensors = {"x": problem.tensor(x), "dy": problem.tensor(dy), **beside, "dx": problem.tensor(dx)}
    w, b = (None if p is None else problem.parameter(p) for p in (weight, bias))
    wanted = {"weight": w, "bias": b, "gradients": parameters, "dx": wants_dx, "use": constant}
    operands = (*(name for name, there in wanted.items() if there), *(name for name, _ in around))
    one = Pass(problem, "backward", tensors, w, b, dtypes, device, constant, operands, [], spread, apart).looked_up()
    # No group sums for a parameter on its own: gather over many groups, while they all have the same parameters. Where
    # they do not (group norm without space), every element is a cell, and its partial gradient goes through memory.
    if constant:
        schedule = constant_backward(one, parameters)
    elif parameters and gathers(one):
        schedule = gathering_backward(one, wants_dx)
    else:
        schedule = summing_backward(one, parameters, wants_dx)
    return schedule._replace(
        num_groups=problem.num_groups,
        parameter_shape=problem.parameter_shape,
        subject=one.subject,
        tuning=one.tuned,
        passed=tuple(one.passed),
    )


def sum_gradients(problem: Problem, chunks: int, keys: tuple[Key, ...], rows: bool = False) -> Launch:
    """The launch that sums partial gradients, (*keys, chunks) or (chunks, *keys), into the parameters'."""
    gradient = problem.parameter(contiguous(problem.parameter_shape))
    return finalizer("sum_parts", merging(problem, chunks, problem.affine, keys, {"stats": gradient}, rows))


def constant_backward(one: Pass, parameters: bool) -> Schedule:
    """The statistics are given: dx is elementwise, and is written while the parameters' gradients are summed."""
    problem, cells = one.problem, one.problem.cells
    group = one.group(one.without(cells), problem.dense(cells))
    if not parameters:
        return Schedule("constant", "the statistics are given, so that nothing is summed", one.apply(group))
    chunks = planning.chunks_to_fill(group, one.tile(group), one.itemsize, one.device.sms, one.tuning)
    return Schedule(
        "constant",
        f"the statistics are given; {chunks} programs a channel sum the parameters' gradients",
        one.walk(group, "measure", chunks),
        parameters=sum_gradients(problem, chunks, cells),
        chunks=chunks,
        parts=chunks * one.size(cells),
    )


def parameter_columns(one: Pass, num_warps: int = 0) -> Launch | None:
    """The launch that sums a parameter's gradients along its column of x and dy; None if columns lie scattered.

    With ``num_warps`` it is for programs of so many.
    """
    problem = one.problem
    over = tuple(key for key in problem.axes if key not in problem.affine)
    tensors = {name: strides for name, strides in one.tensors.items() if name not in WRITTEN}
    operands: dict[str, dict[Key, int] | None] = {**tensors, **one.spread, "stats": one.stats}
    operands["parts"] = problem.parameter(contiguous(problem.parameter_shape))
    if problem.stages.computes_again("gate" in tensors):  # what comes after the linear map is computed again
        operands |= {"weight": one.weight, "bias": one.bias}
    group = problem.grouping([*tensors][-1], over, tuple(tensors), operands)
    if group.vector_axis != "kept":
        return None
    tile = one.tile(group._replace(r2=1 << 20))  # the same however many rows there are, so that they compile nothing
    if num_warps:
        tile = tile._replace(r2=max(tile.r2 * min(num_warps, tile.num_warps) // tile.num_warps, 1), num_warps=num_warps)
    return one.launch(group, tile, "streamed", (tile.blocks(group), 1))


def gathers(one: Pass) -> bool:
    """Whether many groups share parameters, and none sums for them on its own, as in layer norm.

    So it is where each sample has parameters of its own, too, if samples lie apart in memory (then no tile has groups
    of two) and in the order that the parameters' gradient has.
    """
    problem = one.problem
    if problem.summed or not any(key not in problem.affine for key in problem.kept):
        return False
    if not any(key in problem.affine for key in problem.kept):
        return True
    gradient = problem.parameter(contiguous(problem.parameter_shape))
    group = one.group(problem.over, gradient)
    parts, dense = group.parts, problem.dense(problem.over)
    assert parts is not None
    rows = tuple(group.count * prod(group.outer[:i]) for i in range(len(group.outer)))
    apart = parts.kept == parts.cell == 0 and parts.outer == rows
    return apart and all(gradient[key] == stride for key, stride in dense.items())


def gathering_backward(one: Pass, wants_dx: bool) -> Schedule:
    """Groups have the same parameters, as in layer norm: programs sweep many groups and gather their gradients."""
    problem = one.problem
    group = one.group(problem.over, problem.parameter(contiguous(problem.parameter_shape)))
    own = any(key in problem.affine for key in problem.kept)
    samples = prod(group.outer) if own else 1
    halved = one.tuning._replace(per_thread=one.tuning.per_thread // 2)
    # where no cluster can hold a group, a program that spills a little is faster than two reads
    most = planning.RESIDENT_ACCUMULATE if one.device.clusters else planning.RESIDENT_BACKWARD
    limits = most, planning.CLUSTER_ACCUMULATE
    held = one._replace(tuned=halved).on_chip(group, *limits, one.tuning.sweep_elements, accumulate=True)
    tile = planning.swept_tile(group, one.itemsize, one.tuning)
    tiles = 1 if held else tile.tiles(group)
    if tiles >= 1 << 16:
        raise NotImplementedError(
            f"groups of {group.count} elements, each with its own parameters, have no gradient yet"
        )
    if held:
        sweep = held
    else:
        tile = next(planning.overlaps(group, tile, one.itemsize, one.device, one.tuning))
        sweep = one.launch(group, tile, "measure", (tile.blocks(group), tiles), accumulate=True)
    blocks, ctas, sms = sweep.grid[0], sweep.plan.ctas, one.device.sms
    if own:  # whatever the number of samples
        most = max(group.kept // planning.SWEPT_GROUPS, 1)
        rows = planning.even_chunks(blocks // samples, min(most, max(sms * sweep.programs // (tiles * ctas), 1)))
        sweep = sweep._replace(plan=replace(sweep.plan, per_sample=True))
    else:
        rows = planning.even_chunks(blocks, sms * sweep.programs // (tiles * ctas))
        # one a multiprocessor where two would leave rows of more than a sixth of x, dy and dx (float32, moved twice)
        if ctas * tiles == 1 and rows > problem.num_groups * 3 * one.itemsize // 96:
            rows = planning.even_chunks(blocks, sms)
    sweep = sweep._replace(grid=(samples * rows, tiles))
    gradients = sum_gradients(problem, rows, problem.affine, rows=True) if rows > 1 else None
    size = samples * rows * group.count if rows > 1 else 0
    each = " of each sample" if own else ""
    left = (
        f"{rows} programs{each} leave a row of partial gradients each"
        if rows > 1
        else "each parameter's gradient is one program's sum"
    )
    if held:
        strategy, reason = one.held(held, " beside the parameters and their gradients")
        columns = parameter_columns(one, 0 if held.plan.ctas > 1 else held.num_warps)
        # a row of two float32 for each parameter, written and read, or x and dy once more (one row less: the last may
        # be of fewer groups than the others, and an odd number of them should not take other kernels for it)
        again = 2 * problem.num_groups * one.itemsize
        few = (rows - 1) * (16 if problem.norm.centered else 8) >= again
        few = few or (held.plan.ctas == 1 and problem.num_groups < planning.FEW_ROWS)
        few = few and not own
        if wants_dx and columns and rows > 1 and few:
            # the same tile and the same kernel, so that dx does not depend on the batch
            sweep = sweep._replace(grid=(blocks, 1))
            reason += "; so few groups that their columns are read once more for the parameters' gradients"
            if held.plan.ctas == 1:  # neither waits for the other
                also = (columns.group, columns.plan)
                sweep, columns = sweep._replace(grid=(blocks + columns.grid[0], 1), also=also), None
            return Schedule(strategy, reason, sweep, columns=columns)
        return Schedule(strategy, f"{reason}; {left}", sweep, parameters=gradients, rows=size)
    merge, apply = None, None
    if wants_dx:
        merge = finalizer("sum_parts", merging(problem, tiles, problem.kept, problem.kept, {"stats": one.stats}))
        apply = one.apply(one.group(problem.over, one.stats))
        merge, apply = second_stage(merge, apply, gradients, one.apart)
    return Schedule(
        "split",
        f"{group.count} elements a group are swept in {tiles} tiles; {left}",
        sweep,
        merge=merge,
        apply=apply,
        parameters=None if wants_dx else gradients,
        chunks=tiles,
        parts=tiles * problem.num_groups if wants_dx else 0,
        rows=size,
    )


def summing_backward(one: Pass, parameters: bool, wants_dx: bool) -> Schedule:
    """A group's sums over its cells serve dx and the parameters both, as in batch, instance and group norm."""
    problem, cells = one.problem, one.problem.cells
    # a cell's sum is the gradient itself if there is one cell a parameter
    complete = all(key in problem.affine for key in cells if problem.axes[key] > 1)
    parts = problem.parameter(contiguous(problem.parameter_shape)) if complete else problem.dense(cells)
    rows = 0 if complete or not parameters else one.size(cells)
    reduce = sum_gradients(problem, 1, cells) if rows else None
    group = one.group(problem.over, parts)
    main = one.on_chip(group, planning.RESIDENT_BACKWARD, planning.CLUSTER_BACKWARD)
    scattered = main is None and one.scattered(group, held=False)
    if scattered:
        main = one.joined(one.group(one.without(cells), parts), planning.CLUSTER_BACKWARD)
    if main:
        return Schedule(*one.held(main, ", of x and of dy,"), main, parameters=reduce, rows=rows)
    mixed = scattered or (parameters and any(key in problem.affine for key in problem.over))
    if not mixed and not one.apart and one.chunks(group) == 1:
        main = one.walk(group, "streamed")
        reason = f"{group.count} elements a group are too many for registers; {main.grid[0]} programs walk them"
        return Schedule("streamed", reason, main, parameters=reduce, rows=rows)

    keys = cells if mixed else problem.kept
    measured = one.group(one.without(keys), problem.dense(keys))
    chunks = one.chunks(measured)
    # the measuring launch has weighted its sums already if the weight varies within what it sums
    weighted = any(key in problem.affine and key not in keys for key in problem.over)
    operands = {"stats": one.stats} if one.weight is None or weighted else {"stats": one.stats, "weight": one.weight}
    gradients = sum_gradients(problem, chunks, keys) if parameters else None
    merge, apply = None, None
    if wants_dx:
        merged = merging(problem, chunks, problem.kept, keys, operands)
        merge = finalizer("sum_parts", merged, stages=problem.stages)
        merge, apply = second_stage(merge, one.apply(measured, chunks), gradients, one.apart)
    return Schedule(
        "split",
        f"{group.count} elements a group are walked by {chunks * (group.count // measured.reduced)} programs",
        main=one.walk(measured, "measure", chunks),
        merge=merge,
        apply=apply,
        parameters=None if wants_dx else gradients,
        chunks=chunks,
        parts=chunks * one.size(keys),
    )


@lru_cache(maxsize=1)
def tunings() -> tuple[Tuning, ...]:
    """What is measured: anything that may hold a group, with two more knobs turned at most; fewest turned first."""
    every = (Tuning(*values) for values in product(*KNOBS.values()))  # type: ignore[arg-type]  # in the knobs' order
    few = [tuning for tuning in every if len({*tuning.chosen} - {"on_chip"}) <= 2]
    return tuple(sorted(few, key=lambda tuning: len(tuning.chosen)))


def candidates(schedule: Callable[[Device], Schedule], device: Device) -> dict[Tuning, Schedule]:
    """What the planner can make of a call, each by the first of the `tunings` to give it; its own choice is the first.

    Args:
        schedule: makes the call's schedule for a device.
        device: whose own table is left aside.
    """
    found: dict[tuple[Launch, ...], tuple[Tuning, Schedule]] = {}
    for tuning in tunings():
        made = schedule(device._replace(tuned=Tunings({}, tuning)))
        found.setdefault(made.launches, (tuning, made))
    return dict(found.values())
