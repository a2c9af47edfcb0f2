"""How many at a time: tiles, strategies and warps. Pure integers, no torch, no device; the SM count is passed in.

Every constant below gives its source. Those marked "compiled" were chosen by compiling for sm_90 with Triton 3.9 and
reading registers, spills and barriers; no GPU has timed them yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, prod
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from .stages import ALONE, Activation, Stages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from .grouping import Grouping, Strides

#: Elements of one program's tile that stay in registers from read to write. Forward holds x in float32; compiled: 40960
#: elements in 16 warps take 80 registers a thread for the tile and do not spill.
RESIDENT_FORWARD = 40 * 1024
#: Backward holds x and dy. Compiled: larger tiles spill.
RESIDENT_BACKWARD = 16 * 1024
#: Backward that gathers parameter gradients holds two more tiles. Compiled: larger tiles spill, 16 to 24 bytes a thread
#: at 12288 elements of bfloat16. Clusters then hold a group; without them a program does, up to `RESIDENT_BACKWARD`:
#: predicted for an A100, 4096 rows of 12288 take 218 µs so, and 302 read twice.
RESIDENT_ACCUMULATE = 8 * 1024
#: Elements a thread holds: enough independent loads to hide latency, few enough registers for several programs an SM.
#: Two programs of 8 warps then have 32 KB of bfloat16 on the way, an SM's share of what Little's law asks of an H100
#: (3.35 TB/s, 132 SMs, about 1 µs).
PER_THREAD = 32
#: Warps of a program, at most: 16 have 128 registers a thread.
MOST_WARPS = 16
#: Elements of a sweep's tile, unless a group has more. A thread holds half of `PER_THREAD`, since it holds parameters
#: and their gradients too. Predicted for an H100, 8192 rows of 768 in bfloat16: 16.9 µs, against 20.3 with tiles of
#: 8192 elements and 32 a thread. Fewer elements leave more rows of partial gradients.
SWEEP_ELEMENTS = 2 * 1024
#: Rounds of a sweep that are under way at once: one is computed, the tiles of two are being copied to shared memory.
#: Predicted for an H100, 8192 rows of 4096 in bfloat16: 71.9 µs with 3, 85.7 with 2, 79.6 with 1. A fourth saves none.
DEPTH = 3
#: Bytes of a multiprocessor's shared memory that such copies may take. The least that a GPU with `cp.async` has is
#: 100 KB, with clusters 227 KB (CUDA C++ Programming Guide); sums are exchanged in the rest, 16 KB a program.
COPIED_BYTES = 64 * 1024
COPIED_BYTES_CLUSTERS = 128 * 1024
#: Rows of such a tile at most. Each has statistics, which are copied too. Predicted for an H100, 8192 rows of 256 in
#: bfloat16, 8 a tile: 10.8 µs with copies, 8.9 without.
MOST_COPIED_ROWS = 4
#: Bytes of x and dy that a multiprocessor should have on the way, see `PER_THREAD`.
IN_FLIGHT = 32 * 1024
#: Registers of a multiprocessor (CUDA C++ Programming Guide), and those of a thread with the smallest tile (compiled).
SM_REGISTERS = 64 * 1024
LEAST_REGISTERS = 88
#: Registers of a thread that measures a group tile by tile, with 16 elements of each (compiled for sm_90: 80
#: to 105 without copies ahead).
WALK_REGISTERS = 96
#: Warps of a program that walks tiles. Predicted for an H100: with 8 fewer programs run side by side, and batch norm of
#: 256x64x56x56 takes up to 9 % longer.
LOOP_WARPS = 4
#: Bytes of neighbouring elements that a tile spans at least where the kept axis is the contiguous one: four sectors.
COLUMN_BYTES = 128
#: Bytes of a row from which on it has a tile to itself: one that starts and ends within a sector of 32 bytes touches
#: one sector too many, which is then a tenth.
RUN_BYTES = 320
#: Elements of one thread block's share of a tile that a cluster holds. Compiled for sm_90 and sm_100, 16 warps: more
#: spills. Half of it takes about 64 registers a thread, so that two clusters share their multiprocessors.
CLUSTER_FORWARD = 32 * 1024
CLUSTER_BACKWARD = 16 * 1024
CLUSTER_ACCUMULATE = 8 * 1024
#: Bytes of neighbouring elements that a cluster's tile of columns spans. Compiled: sums of more take more exchanges.
CLUSTER_COLUMN_BYTES = 64
#: Thread blocks of the largest cluster that every device with clusters can run.
MAX_CTAS = 8
#: Bytes of one tensor that a program may have to itself where others could share them: 8 MB then make 100 programs.
PROGRAM_BYTES = 80 * 1024
#: Programs an SM where the batch may decide: at least, two programs have 16 KB on the way; and at most.
LEAST_PROGRAMS_PER_SM = 2
MOST_PROGRAMS_PER_SM = 4
#: Elements along a row of the narrowest tile of a sweep, so that the two float32 that it leaves of each row, written
#: and read, are at most 1 % of x, dy and dx; and how many tiles a row may have: as many programs fill an H100.
SWEPT_COLUMNS = 512
SWEPT_TILES = 256
#: Bytes that a tile may spill, as a part of what is read again if no tile holds its groups. Predicted for an H100, the
#: forward pass of 8 x 320 x 63 x 65 in 32 groups, channels_last bfloat16, takes 40 µs where a quarter as many bytes
#: spill as the tile has, each stored and loaded, and 52 where the groups are read twice.
MOST_SPILLED = 0.5
#: A bound on the parts of a group, so that merging them stays small against the group.
MAX_CHUNKS = 1024
#: Parts, of all its groups, that a program of *apply* merges itself, so that no launch does it before: one for each
#: thread of 8 warps. Predicted for an H100: 16 parts take 1.2 µs of the apply of a group norm of 2 x 512 x 128 x 128,
#: where the launch takes 3.3; 1664 parts of 64 columns take 5.3, where it takes 4.6.
RIDING_PARTS = 256
#: Of fewer rows than this the columns are read once more, from the L2, and the same launch sums the parameters'
#: gradients, though rows of partial ones would be fewer bytes: those take a launch more. Predicted for an H100 in
#: bfloat16, layer norm's backward pass of 16 x 768 takes 4.4 µs instead of 8.4, of 256 x 768 5.7 instead of 8.5.
FEW_ROWS = 256
#: Groups, at least, that a program sweeps of a sample with parameters of its own, so that the rows of partial gradients
#: are few beside x, dy and dx: two float32, written and read, of each 16 groups of bfloat16 are a sixth. Predicted for
#: an H100, 16 x 256 x 1152 with parameters for each of the 16: 21.0 µs, and 25.4 with 32 groups.
SWEPT_GROUPS = 16
#: Elements of the smallest group that a cluster is measured for: of the smallest that some program cannot hold.
LEAST_CLUSTERED = 8 * 1024

#: What of a plan may be chosen by measuring, the planner's own choice first. With each of these the planner keeps to
#: the limits above, so that whatever a table of tunings says, the plan is a sound one.
KNOBS: dict[str, tuple[int | str, ...]] = {
    "per_thread": (PER_THREAD, 16, 8, 64),
    "on_chip": ("planner", "program", "cluster", "nothing"),
    "column_bytes": (COLUMN_BYTES, 64),
    "program_bytes": (PROGRAM_BYTES, 40 * 1024, 160 * 1024),
    "programs_per_sm": (LEAST_PROGRAMS_PER_SM, 1, 4),
    "sweep_elements": (SWEEP_ELEMENTS, 4 * 1024, 1024),
    "depth": (DEPTH, 1),
}


class Tuning(NamedTuple):
    """A choice of each of the `KNOBS`; by default the planner's own.

    Attributes:
        per_thread: elements a thread holds, see `PER_THREAD`; as near to it as the limits of a tile allow.
        on_chip: what holds a group that fits on chip: a "program"; a "cluster" of them, if the device has clusters;
            "nothing", so that it is read twice; or as the "planner" has it.
        column_bytes: what a tile spans of a contiguous kept axis, see `COLUMN_BYTES`.
        program_bytes: a program's share of a group that it does not have to itself, see `PROGRAM_BYTES`.
        programs_per_sm: see `LEAST_PROGRAMS_PER_SM`; twice as many are the most. Of programs that hold parameters while
            they sweep many groups, so many are the most.
        sweep_elements: of those programs' tiles, see `SWEEP_ELEMENTS`.
        depth: of their loops, see `DEPTH`.
    """

    per_thread: int = PER_THREAD
    on_chip: str = "planner"
    column_bytes: int = COLUMN_BYTES
    program_bytes: int = PROGRAM_BYTES
    programs_per_sm: int = LEAST_PROGRAMS_PER_SM
    sweep_elements: int = SWEEP_ELEMENTS
    depth: int = DEPTH

    @classmethod
    def of(cls, chosen: Mapping[str, int | str]) -> Tuning:
        """The tuning that differs from the planner's choice in these knobs.

        Raises:
            ValueError: no such knob, or not one of its values.
        """
        for knob, value in chosen.items():
            if knob not in KNOBS:
                raise ValueError(f"no knob is called {knob!r}; there are {', '.join(KNOBS)}")
            if type(value) not in (int, str) or value not in KNOBS[knob]:
                raise ValueError(f"{knob} is one of {', '.join(map(str, KNOBS[knob]))}, not {value!r}")
        return cls(**chosen)  # type: ignore[arg-type]  # of the types of the knob's values

    @property
    def chosen(self) -> dict[str, int | str]:
        """The knobs that differ from the planner's choice."""
        return {knob: value for knob, value in self._asdict().items() if value != KNOBS[knob][0]}

    def __str__(self) -> str:
        return ", ".join(f"{knob}={value}" for knob, value in self.chosen.items()) or "the planner's own choice"


UNTUNED = Tuning()


class Subject(NamedTuple):
    """What a tuning is for: one direction of a norm, its group's size and layout; never how many groups a batch has.

    So tunings may depend on the batch where a group does, as batch norm's, and nowhere else.

    Attributes:
        direction: "forward" or "backward".
        norm: its axes, in words.
        operands: what takes part besides x and y, or is wanted.
        itemsize: bytes of an element of x.
        kept: the size of the kept axis, if that is the model's; else 0.
        walk, r1, r2: sizes of the reduced axes, see `Grouping`.
        vector_axis: the contiguous one of the axes.
        vector: elements that one instruction may move.
        clusters: whether the device's clusters may be used.
    """

    direction: str
    norm: str
    operands: str
    itemsize: int
    kept: int
    walk: tuple[int, ...]
    r1: int
    r2: int
    vector_axis: str
    vector: int
    clusters: bool


class Tunings:
    """A table of tunings. Equal to itself alone, so that a `Device` that has one is told from others at no cost.

    Attributes:
        entries: by what they are for.
        otherwise: the tuning of whatever else there is; None for the planner's own choice.
        source: where it comes from, in words.
        predicted: whether it was chosen by times that a model predicted, not by measured ones.
    """

    def __init__(
        self,
        entries: Mapping[Subject, Tuning],
        otherwise: Tuning | None = None,
        source: str = "this program",
        predicted: bool = False,
    ) -> None:
        """Keep a table."""
        self.entries, self.otherwise, self.source, self.predicted = dict(entries), otherwise, source, predicted

    def find(self, subject: Subject | None) -> Tuning | None:
        """The tuning for a subject; None for the planner's own choice."""
        return self.otherwise if subject is None else self.entries.get(subject, self.otherwise)


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(n - 1, 0).bit_length()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a kernel knows when it is compiled. Nothing here changes with the batch but a tile that holds all of it.

    Attributes:
        stage: "resident", "streamed", "measure" or "apply", see `normtriton.kernels.forward.normalize_forward`.
        block_kept, block_r1, block_r2: the tile, powers of two.
        even_kept, even_r1, even_r2: whether the tile divides the axis, so that no mask is needed.
        tiled: the reduced axes along which there may be several tiles: "", "r2" (found without a division) or "all".
        cells: consecutive indices of the kept axis that belong to one group.
        vector: elements that one instruction may move; strides are handed over in this unit.
        vector_axis: the contiguous tile axis, "kept", "r2" or "".
        centered: whether the mean is subtracted.
        constant: whether the statistics are given constants (the running ones).
        affine_r1, affine_r2: whether the parameters vary along these axes.
        affine_reduced: whether they vary within a group at all.
        stats_reduced: whether the statistics vary within a group, which is the parameters' then.
        accumulate: whether programs gather parameter gradients over many groups.
        ctas: thread blocks that share the tile, as a cluster.
        shares_rows: whether they share the rows of a tile of columns, each a run of them that r1 picks.
        span: elements of the kept axis from one block to the next: below block_kept where a group would be cut.
        block_groups: groups whose cells a resident tile holds and joins, padded to a power of two; 0 if it joins none.
        depth: rounds of the loop of a sweep, or of a walk that measures, that are under way at once.
        x_scale_reduced, mask_reduced, q_scale_reduced: whether these vary within a group.
        mask_vector: elements of the mask that lie side by side, of those that one instruction may move.
        per_sample: whether a sweep's parameters vary along the outer axes, which then have programs of their own.
        activation, offset, round_first, gate_first, masked, quantize: see `normtriton.planning.stages.Stages`.
    """

    stage: str
    block_kept: int
    block_r1: int
    block_r2: int
    even_kept: bool
    even_r1: bool
    even_r2: bool
    tiled: str
    cells: int
    vector: int
    vector_axis: str
    kept_unit: int
    r2_unit: int
    centered: bool = True
    constant: bool = False
    affine_r1: bool = False
    affine_r2: bool = False
    affine_reduced: bool = False
    stats_reduced: bool = False
    accumulate: bool = False
    ctas: int = 1
    shares_rows: bool = False
    span: int = 0
    block_groups: int = 0
    depth: int = 1
    x_scale_reduced: bool = False
    mask_reduced: bool = False
    q_scale_reduced: bool = False
    mask_vector: int = 1
    per_sample: bool = False
    activation: str | Activation = ""
    offset: float = 0.0
    round_first: bool = False
    gate_first: bool = False
    masked: bool = False
    quantize: str = ""


class Code(NamedTuple):
    """What a compiler made of a launch.

    Attributes:
        registers: a thread.
        spills: bytes of a thread that did not fit in them.
        shared: bytes of shared memory a thread block.
    """

    registers: int
    spills: int
    shared: int


#: The dtype of x, and that of the parameters or None. Of them the planner knows only ``itemsize``.
Dtypes: TypeAlias = "tuple[Any, Any]"
#: Compiles a launch of these dtypes with these operands; None if the device has no room for the code. Equal to itself
#: alone, and always of the same answer.
Compiler: TypeAlias = "Callable[[Any, Dtypes, tuple[str, ...]], Code | None]"


class Device(NamedTuple):
    """What plans depend on of a device.

    Attributes:
        sms: multiprocessors.
        clusters: whether their programs may form clusters.
        tuned: a table of tunings, or None.
        compiler: says what becomes of a launch; None where nobody can be asked, and proposals are taken as they come.
    """

    sms: int
    clusters: bool = False
    tuned: Tunings | None = None
    compiler: Compiler | None = None


class Tile(NamedTuple):
    """Elements of a tile along (kept, r1, r2), powers of two, and the warps and thread blocks that share it."""

    kept: int
    r1: int
    r2: int
    num_warps: int
    ctas: int = 1
    groups: int = 0  #: groups of several cells that it joins; the rest of ``kept`` is padding
    depth: int = 1  #: such tiles that are under way at once, see `DEPTH`
    programs: int = 1  #: programs that a multiprocessor shall have room for

    def __str__(self) -> str:
        shared = f" of each of {self.ctas} thread blocks" if self.ctas > 1 else ""
        ahead = f", {self.depth - 1} ahead" if self.depth > 1 else ""
        return f"{self.kept} x {self.r1} x {self.r2} in {self.num_warps} warps{shared}{ahead}"

    @property
    def shares_rows(self) -> bool:
        """Whether a cluster holds columns, a run of their rows in each thread block."""
        return self.ctas > 1 and self.kept > 1

    def blocks(self, group: Grouping) -> int:
        """Blocks of groups in the whole tensor."""
        return prod(group.outer) * ceil(group.kept / self.span(group))

    def span(self, group: Grouping) -> int:
        """Indices along the kept axis that a block is for."""
        return self.groups * group.cells or self.kept

    def tiles(self, group: Grouping) -> int:
        """Tiles along the reduced axes of a group."""
        return prod(group.walk) * ceil(group.r1 / self.r1) * ceil(group.r2 / self.r2)


def warps(elements: int, per_thread: int = PER_THREAD, most: int = MOST_WARPS) -> int:
    """Warps for a tile of so many elements."""
    return min(max(power_of_two(elements // (32 * per_thread)), 1), most)


def _extent(size: int, fixed: bool) -> int:
    """Elements that a tile over a whole axis costs: padding is free where its size is compiled in, and rows are wide.

    (One by one, padding takes addresses too. Predicted for an H100: layer norm of 8192 x 5119 bfloat16, backward, takes
    127 µs in the warps for 8192 elements, and 149 in those for 5119.)
    """
    return size if fixed else power_of_two(size)


def _column(group: Grouping, itemsize: int, column_bytes: int) -> int:
    """The tile's width along a contiguous kept axis, 1 if it is not contiguous."""
    if group.vector_axis != "kept":
        return 1
    return min(max(column_bytes // itemsize, 1), _most(group))


def _run(group: Grouping, itemsize: int) -> int:
    """Groups whose rows lie one after the other and share sectors, so that a tile takes several; 1 if they do not.

    So with images of 7x7: a row of 49 elements of bfloat16, 98 bytes, touches four sectors. It is as many as have
    `RUN_BYTES` together, four at most, since more make few programs.
    """
    row = group.r2 * itemsize
    adjacent = group.vector_axis == "r2" and group.kept > 1 and all(s.kept == group.r2 for s in group.tensors)
    if not adjacent or row % 32 == 0 or row >= RUN_BYTES:
        return 1
    return min(power_of_two(ceil(RUN_BYTES / row)), 4, _most(group))


def _one_by_one(group: Grouping, itemsize: int) -> bool:
    """Whether elements are moved one by one, and lie in rows or columns: each takes a register for its address."""
    return group.vector(16 // itemsize) == 1 and (group.vector_axis == "kept" or group.r1 > 1)


def _room_left(limit: int, group: Grouping, *, alone: bool) -> int:
    """Elements of a tile where those that move ``alone`` take registers for addresses, or sums across rows take some.

    It is half of them. Code need not spill yet, but fewer programs have room on a multiprocessor: predicted for an
    H100, a backward pass of 32 x 320 x 31 x 31 in 32 groups takes 55 µs in the tiles that just fit, and 36 in clusters.
    """
    columns = group.vector_axis == "kept" and limit > RESIDENT_BACKWARD
    return limit // 2 if alone or columns else limit


def _most(group: Grouping) -> int:
    """The most groups that a tile may hold: as many as there are, where that is the model's matter.

    Where it is the batch's, the tile does not follow it, since the order in which a tile is summed follows its shape.
    """
    return power_of_two(group.kept) if group.fixed and group.fixed[0] else 1 << 30


def resident_tiles(
    group: Grouping, itemsize: int, limit: int, target: int = 1024, tuning: Tuning = UNTUNED
) -> Iterator[Tile]:
    """Tiles that hold whole groups, the best one first; none if groups are too large.

    A group of up to 1024 elements takes one warp, which needs no barrier; smaller groups share the tile. With a
    ``target`` more groups share it, up to so many elements. Those that follow are for a compiler to whom a tile is too
    large: more warps share it, up to the 8 that have 255 registers a thread, then it holds fewer groups.
    """
    if group.walk or group.cells > 1:
        return
    wide = 2 if itemsize == 8 else 1  # registers of an element
    alone = _one_by_one(group, itemsize)
    limit = _room_left(limit, group, alone=alone) // wide
    target //= wide
    fixed = group.fixed if group.fixed and group.vector(16 // itemsize) > 1 else (False, False, False)
    elements = _extent(group.r1, fixed[1]) * _extent(group.r2, fixed[2])
    r1, r2 = power_of_two(group.r1), power_of_two(group.r2)
    column = _column(group, itemsize, tuning.column_bytes)
    sector = min(column, max(32 // itemsize, 1))  # the least that wastes no traffic
    if sector * elements > limit:
        return
    run = _run(group, itemsize)
    while run > 1 and run * r1 * r2 > limit:
        run //= 2
    room = max(target, r1 * r2) // (r1 * r2)
    kept = max(column if column * elements <= limit else sector, run, min(room, _most(group)))
    while kept >= sector:
        num_warps = warps(kept * elements, tuning.per_thread // wide)
        # a thread holds no more elements than if 8 warps shared the largest tile. (A quarter more: 5119 take 4 warps.
        # Compiled: a tuned tile of 2 x 1000 in one, gathering, spilled 136 bytes)
        while num_warps < 8 and kept * elements > num_warps * (limit // 8) * 5 // 4:
            num_warps *= 2
        yield Tile(kept, r1, r2, num_warps)
        while num_warps < 8:
            num_warps *= 2
            yield Tile(kept, r1, r2, num_warps)
        kept //= 2


def cluster_tiles(
    group: Grouping, itemsize: int, limit: int, fill: int = 0, tuning: Tuning = UNTUNED
) -> Iterator[Tile]:
    """Tiles that one cluster holds, the best one first; none if groups are too large.

    It is one group, or where the kept axis is the contiguous one `CLUSTER_COLUMN_BYTES` of neighbouring groups, whose
    rows are dealt out evenly; or one sector of them, if they do not fit. As few thread blocks as leave each half of
    ``limit`` elements, a quarter of those that move one by one; at most `MAX_CTAS`, and at least as many as make
    ``fill`` of them in all. Those that follow have more warps or thread blocks, or fewer columns.
    """
    if group.walk or group.cells > 1:
        return
    columns = group.vector_axis == "kept"
    if columns and (group.r1 > 1 or any(s.r2 for s in (group.weight, group.bias, group.parts) if s)):
        return  # rows in two dimensions, or parameters that differ between rows
    wide = 2 if itemsize == 8 else 1  # registers of an element
    alone = _one_by_one(group, itemsize)
    # predicted for an H100: layer norm of 4096 x 36001 float32 takes 692 µs, and 874 in half as many thread blocks
    limit = _room_left(limit, group, alone=alone or (limit > CLUSTER_BACKWARD and group.vector(16 // itemsize) == 1))
    half = limit // (4 if alone else 2)
    per_thread = min(tuning.per_thread, PER_THREAD) // (2 if alone else 1)
    for span in (CLUSTER_COLUMN_BYTES, 32) if columns else (itemsize,):
        width = min(span // itemsize, _most(group))
        least = ceil(fill * width / group.numel * group.reduced)
        for ctas in (2, 4, MAX_CTAS):
            r1, r2 = power_of_two(group.r1), power_of_two(group.r2)
            if columns:
                r1, r2 = ctas, power_of_two(ceil(group.r2 / ctas))
            elements = width * r1 * r2 * wide
            if elements <= ctas * (limit if ctas == MAX_CTAS else half) and ctas >= least:
                first = warps(elements // ctas, per_thread)
                yield from (Tile(width, r1, r2, w, ctas) for w in (first, 2 * first) if w <= MOST_WARPS)


def cluster_cells(group: Grouping, itemsize: int, limit: int, tuning: Tuning = UNTUNED) -> Iterator[Tile]:
    """Tiles of whole groups of several cells that one cluster holds, the best one first; none if groups are too large.

    It is filled with groups up to a multiple of 4 bytes, and at least half of it. Thread blocks as in `cluster_tiles`.
    """
    parameters = [s for s in (group.weight, group.bias, group.parts) if s]
    flat = all(s.kept == s.cell * group.cells for s in parameters)
    if group.walk or group.r1 > 1 or group.cells == 1 or itemsize == 8 or not flat:
        return
    for width in (64, 32, 16):
        most = min(width, group.kept) // group.cells
        groups = max((n for n in range(1, most + 1) if n * group.cells * itemsize % 4 == 0), default=0)
        for ctas in (2, 4, MAX_CTAS):
            share = width * power_of_two(ceil(group.r2 / ctas))
            if 2 * groups * group.cells > width and share <= limit // (1 if ctas == MAX_CTAS else 2):
                first = warps(share, min(tuning.per_thread, PER_THREAD))
                tile = Tile(width, ctas, share // width, first, ctas, groups)
                yield from (tile._replace(num_warps=w) for w in (first, 2 * first) if w <= MOST_WARPS)


def _fit(size: int, limit: int) -> int:
    """The block for an axis that wastes least of its last tile; of those that waste under an eighth, the largest."""
    if power_of_two(size) <= limit and power_of_two(size) * 8 <= size * 9:
        return power_of_two(size)
    blocks = [1 << k for k in range(7, limit.bit_length()) if 1 << k <= max(power_of_two(size), 128)]
    waste = {b: ceil(size / b) * b / size for b in blocks}
    good = [b for b in blocks if waste[b] <= 9 / 8]
    if good:
        return max(good)
    return min(min(waste, key=lambda b: (waste[b], -b)), power_of_two(size)) if waste else power_of_two(size)


def looped_tile(group: Grouping, itemsize: int, tuning: Tuning = UNTUNED) -> Tile:
    """A tile that is one of many along the reduced axes.

    A thread keeps two sums for each of its elements, so it has half as many as `PER_THREAD`.
    """
    kept = _column(group, itemsize, tuning.column_bytes)
    room, per_thread = _room(itemsize, LOOP_WARPS, tuning)
    room //= kept
    r2 = min(_fit(group.r2, room), room)
    r1 = min(power_of_two(group.r1), max(room // r2, 1))
    return Tile(kept, r1, r2, warps(kept * r1 * r2, per_thread, most=LOOP_WARPS))


def measured_ahead(group: Grouping, tile: Tile, itemsize: int, tuning: Tuning = UNTUNED) -> Tile:
    """The tile of a walk that measures x, or its sum with a residual, with the depth of its loop.

    More than one where those of resident programs are fewer bytes than `IN_FLIGHT`, and copies take the 4 bytes that
    they need. Predicted for an H100 in bfloat16, measuring 8 x 64 x 256 x 256 in channels_last takes 34 µs instead of
    39; in float32, where tiles are twice as many bytes, 52 instead of 50.
    """
    size = tile.kept * tile.r1 * tile.r2 * itemsize * (1 if group.residual is None else 2)
    resident = SM_REGISTERS // (32 * tile.num_warps * WALK_REGISTERS)
    ahead = size * resident < IN_FLIGHT and group.vector(max(16 // itemsize, 1)) * itemsize >= 4
    return tile._replace(depth=tuning.depth if ahead else 1)


def _room(itemsize: int, num_warps: int, tuning: Tuning) -> tuple[int, int]:
    """Elements of a loop's tile of so many warps, and of a thread, which holds two values for each."""
    per_thread = min(max(tuning.per_thread, PER_THREAD // 2), PER_THREAD) // 2 // (2 if itemsize == 8 else 1)
    return num_warps * 32 * per_thread, per_thread


def swept_tile(group: Grouping, itemsize: int, tuning: Tuning = UNTUNED) -> Tile:
    """A tile of the same few columns of several groups, for programs that gather these columns' gradients of many.

    The narrower it is, the fewer programs share a column, each of which leaves a row of partial gradients, but the more
    partial sums has a group: `SWEPT_COLUMNS` at least, and at most `SWEPT_TILES` tiles a group.
    """
    tile = looped_tile(group, itemsize, tuning)
    if tile.kept > 1:
        return tile
    room, per_thread = _room(itemsize, 8, tuning)
    width = tile.r2
    while width > SWEPT_COLUMNS and tile._replace(r2=width // 2).tiles(group) <= SWEPT_TILES:
        width //= 2
    kept = min(max(room // (width * tile.r1), 1), _most(group))
    return Tile(kept, tile.r1, width, warps(kept * tile.r1 * width, per_thread, most=8))


def riding_tile(group: Grouping, block: int, parts: Grouping) -> Tile | None:
    """A tile of all parts of a block's groups, which every program of *apply* merges for itself.

    None if another launch must: they are more than `RIDING_PARTS`, or the groups' statistics do not lie side by side.

    Args:
        group: of that launch.
        block: indices along the kept axis that are a block of it.
        parts: what is merged.
    """
    assert group.stats is not None, group
    if group.cells > 1 or (block > 1 and group.stats.kept != 1):
        return None
    r1 = power_of_two(parts.r1)
    r2 = max(power_of_two(parts.r2), 32 // (block * r1) if parts.r2 > 1 else 1)  # few kernels: a warp has 32 lanes
    return Tile(block, r1, r2, 1) if block * r1 * r2 * prod(parts.walk) <= RIDING_PARTS else None


def programs_per_sm(group: Grouping, tile: Tile, itemsize: int) -> int:
    """Programs of a sweep, or thread blocks of its clusters, that a multiprocessor has registers for.

    An element takes eight: x̂, dy, a parameter, two gradients and what the sums need. Programs that write dx take more,
    except in a cluster. `tests/test_compile.py` holds this against compiled kernels.
    """
    threads = 32 * tile.num_warps
    elements = tile.kept * tile.r1 * tile.r2 // (tile.ctas * threads) * (2 if itemsize == 8 else 1)
    writes = tile.tiles(group) == 1
    registers = max(8 * elements + (24 if writes and tile.ctas == 1 else 0), LEAST_REGISTERS)
    return max(SM_REGISTERS // (threads * registers), 1)


def overlaps(group: Grouping, tile: Tile, itemsize: int, device: Device, tuning: Tuning = UNTUNED) -> Iterator[Tile]:
    """A sweep's tile with the depth of its loop and the programs that a multiprocessor is given, the best one first.

    While a program computes one tile, the next ones are on the way. Programs are as many as have registers, until they
    have `IN_FLIGHT` bytes on the way; two where a program waits, for its cluster or for a tile that it has just asked
    for. Neither number follows the batch. Copies take registers too: the tile that follows does without them.
    """
    size = group.loaded * tile.kept * tile.r1 * tile.r2 // tile.ctas * itemsize  # of x, dy and what is around them
    room = COPIED_BYTES_CLUSTERS if device.clusters else COPIED_BYTES

    def programs(depth: int) -> int:
        wanted = max(ceil(IN_FLIGHT / (size * max(depth - 1, 1))), 2 if tile.ctas > 1 or depth == 1 else 1)
        return min(programs_per_sm(group, tile, itemsize), wanted, tuning.programs_per_sm)

    copied = size * (tuning.depth - 1) * programs(tuning.depth)
    fits = tile.kept <= MOST_COPIED_ROWS and copied <= room
    for depth in dict.fromkeys((tuning.depth if fits else 1, 1)):
        yield tile._replace(depth=depth, programs=programs(depth))


def varies_within(strides: Strides | None) -> bool:
    """Whether an operand varies along the reduced axes, if there is one."""
    return strides is not None and any((*strides.walk, strides.r1, strides.r2))


def make_plan(
    group: Grouping,
    tile: Tile,
    stage: str,
    itemsize: int,
    *,
    sample: bool = False,
    stages: Stages = ALONE,
    **flags: bool,
) -> Plan:
    """The kernel's constants for a grouping and a tile.

    A tile needs no mask along an axis that it divides, if the size belongs to the model. What a batch may change is
    masked in every batch, so that the next one does not compile anew. The size of one ``sample`` is in between: images
    of another size are rare, so a tile that spans the whole axis is not masked either. (Compiled: a mask over the 16384
    rows of a channels_last group spilled 152 bytes.)
    """
    parameters = [s for s in (group.weight, group.bias, group.parts) if s is not None]
    r1 = any(s.r1 for s in parameters)
    r2 = any(s.r2 for s in parameters)
    walk = any(any(s.walk) for s in parameters)
    fixed = group.fixed or (False, False, False)
    stats_reduced = varies_within(group.stats)
    along_r2 = group.r1 == 1 and not group.walk
    sample = sample and not stats_reduced  # what is summed over samples has a batch's size
    short = tile.shares_rows and group.r1 * group.r2 * group.cells != group.count  # the last thread block's rows are
    vector = group.vector(max(16 // itemsize, 1))
    axis = group.vector_axis
    return Plan(
        stage=stage,
        block_kept=tile.kept,
        block_r1=tile.r1,
        block_r2=tile.r2,
        even_kept=tile.kept == 1 or (tile.kept == tile.span(group) and fixed[0] and group.kept % tile.kept == 0),
        even_r1=group.r1 == 1 or ((fixed[1] or sample) and group.r1 % tile.r1 == 0),
        even_r2=not short and (group.r2 == 1 or ((fixed[2] or sample) and group.r2 % tile.r2 == 0)),
        tiled="" if stage == "resident" and tile.tiles(group) == 1 else "r2" if along_r2 else "all",
        cells=group.cells,
        vector=vector,
        vector_axis=axis,
        kept_unit=vector if axis == "kept" else 1,
        r2_unit=vector if axis == "r2" else 1,
        affine_r1=r1,
        affine_r2=r2,
        affine_reduced=r1 or r2 or walk,
        stats_reduced=stats_reduced,
        ctas=tile.ctas,
        shares_rows=tile.shares_rows,
        span=tile.span(group),
        block_groups=power_of_two(tile.groups) if tile.groups else 0,
        depth=tile.depth,
        activation=stages.activation,
        offset=stages.offset,
        round_first=stages.round_first,
        gate_first=stages.gate_first,
        masked=stages.masked,
        x_scale_reduced=varies_within(group.x_scale),
        mask_reduced=varies_within(group.mask),
        q_scale_reduced=varies_within(group.q_scale),
        mask_vector=group.mask_vector(vector),
        quantize=stages.quantize,
        **flags,
    )


def chunks_by_size(group: Grouping, tile: Tile, itemsize: int, tuning: Tuning = UNTUNED) -> int:
    """Programs that share a block of groups, from the block's size alone: its bits do not depend on the batch.

    Each reads its groups' statistics and parameters and writes their sums, 52 bytes of float32 for a column forward;
    they stay within a fiftieth of x and y, in bfloat16, where a program has 640 rows of it: `PROGRAM_BYTES`.
    """
    walked = tile.kept * tile.r1 * tile.r2 * itemsize
    tiles = tile.tiles(group)
    return even_chunks(tiles, ceil(tiles / max(tuning.program_bytes // walked, 1)))


def chunks_to_fill(group: Grouping, tile: Tile, itemsize: int, sms: int, tuning: Tuning = UNTUNED) -> int:
    """Twice `chunks_by_size`, but as many as fill the multiprocessors, and hardly more; 1 if there are enough blocks.

    Predicted for an H100 in bfloat16, batch norm of 32 x 24 x 112 x 112 takes 30 µs forward in channels_last with twice
    as many, and 37 with as many.
    """
    blocks = tile.blocks(group)
    if blocks >= tuning.programs_per_sm * sms:
        return 1
    sms_each = sms * tuning.programs_per_sm / LEAST_PROGRAMS_PER_SM
    least, most = (ceil(each * sms_each / blocks) for each in (LEAST_PROGRAMS_PER_SM, MOST_PROGRAMS_PER_SM))
    return even_chunks(tile.tiles(group), min(max(2 * chunks_by_size(group, tile, itemsize, tuning), least), most))


def even_chunks(tiles: int, wanted: int) -> int:
    """The number of equal chunks, none of them empty, nearest to so many."""
    wanted = min(max(wanted, 1), tiles, MAX_CHUNKS)
    return ceil(tiles / ceil(tiles / wanted))
