"""Which elements: every norm as integer strides. Pure integers, no torch, no device.

An element's address is a sum over axes of index times stride. A `Grouping` sorts the axes of a norm into those that are
*kept* (an index there picks the group, the elements that share statistics) and those that are *reduced* (an index there
picks an element of the group), and gives every operand its strides along them. A kernel that is handed a `Grouping`
knows all it needs of a norm.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


class Axis(NamedTuple):
    """One axis of the normalized tensor."""

    size: int
    over: bool  #: its elements share statistics
    fixed: bool  #: its size belongs to the model (the parameters vary along it), so it may be compiled in
    strides: Mapping[str, int]  #: elements, for every operand; 0 where the operand does not vary


class Strides(NamedTuple):
    """One operand's strides in elements, along a `Grouping`'s axes; 0 where the operand does not vary."""

    outer: tuple[int, ...]
    kept: int
    cell: int
    walk: tuple[int, ...]
    r1: int
    r2: int


_NOWHERE = Strides((), 0, 0, (), 0, 0)


class Grouping(NamedTuple):
    """The axes of one reduction and where each operand's elements lie along them.

    A kernel works on tiles of three dimensions, (kept, r1, r2), the axes nearest each other in memory. Whatever axes
    remain are walked one index at a time: ``outer`` beyond ``kept`` and ``walk`` beyond ``r1``; they are listed with
    the fastest first, and are empty but for layouts whose axes do not merge.

    ``kept`` may be a flat run of two axes, the group and its ``cells``: an index q along it is group q // cells, cell
    q % cells. Then the tensors step by ``cell`` along the run, and the small operands may tell the two apart.
    """

    outer: tuple[int, ...]
    kept: int
    cells: int
    walk: tuple[int, ...]
    r1: int
    r2: int
    count: int  # type: ignore[assignment]  # the field's word; no one counts in a Grouping
    #: elements that share statistics
    x: Strides | None = None
    y: Strides | None = None
    dy: Strides | None = None
    dx: Strides | None = None
    weight: Strides | None = None
    bias: Strides | None = None
    stats: Strides | None = None
    parts: Strides | None = None
    residual: Strides | None = None
    total: Strides | None = None
    skip: Strides | None = None
    gate: Strides | None = None
    dtotal: Strides | None = None
    dskip: Strides | None = None
    dgate: Strides | None = None
    before: Strides | None = None
    dresidual: Strides | None = None
    x_scale: Strides | None = None
    mask: Strides | None = None
    q_scale: Strides | None = None
    #: May the sizes of (kept, r1, r2) be compiled in? A kernel is handed None instead, and that must come last: Triton
    #: 3.6 brings the type of a nested tuple up to date only when a constant that follows it is set.
    fixed: tuple[bool, bool, bool] | None = None

    @property
    def tensors(self) -> tuple[Strides, ...]:
        """The operands of full size; of a reduction of partial results, those."""
        whole = (self.x, self.y, self.dy, self.dx, self.residual, self.total, self.skip, self.gate)
        behind = (self.before, self.dtotal, self.dskip, self.dgate, self.dresidual)
        there = tuple(s for s in (*whole, *behind) if s is not None)
        return there or (self.parts or _NOWHERE,)

    @property
    def loaded(self) -> int:
        """How many tensors of full size a pass reads."""
        read = (self.x, self.dy, self.residual, self.skip, self.gate, self.before, self.dtotal)
        return sum(s is not None for s in read)

    @property
    def reduced(self) -> int:
        """Elements along the reduced axes."""
        return prod(self.walk) * self.r1 * self.r2

    @property
    def numel(self) -> int:
        """Elements in the tensor."""
        return prod(self.outer) * self.kept * self.reduced

    @property
    def vector_axis(self) -> str:
        """The tile axis along which every tensor is contiguous: "kept", "r2" or "" if there is none."""
        if self.r2 > 1 and all(s.r2 == 1 for s in self.tensors):
            return "r2"
        step = "cell" if self.cells > 1 else "kept"
        if self.kept > 1 and all(getattr(s, step) == 1 for s in self.tensors):
            return "kept"
        return ""

    def vector(self, limit: int) -> int:
        """The largest power of two, up to ``limit``, that divides every stride but the contiguous one, and its extent.

        So many neighbouring elements can be moved by one instruction.
        """
        return self._vector(limit, self.tensors) if self.vector_axis else 1

    def mask_vector(self, limit: int) -> int:
        """The same of the mask: 1 if it is not contiguous along the tensors' axis, or there is none."""
        axis, mask = self.vector_axis, self.mask
        beside = axis and mask is not None and self.cells == 1 and getattr(mask, axis) == 1
        return self._vector(limit, (mask,)) if beside and mask else 1

    def _vector(self, limit: int, tensors: Iterable[Strides]) -> int:
        axis = self.vector_axis
        steps = [self.kept if axis == "kept" else self.r2]
        for s in tensors:
            steps += [*s.outer, *s.walk, s.r1]
            steps += [s.r2] if axis == "kept" else [s.cell if self.cells > 1 else s.kept]
        vector = limit
        while any(step % vector for step in steps):
            vector //= 2
        return vector

    def deal_rows(self, shares: int) -> Grouping:
        """The same elements with r2 dealt out in equal runs, the last of them shorter if need be; r1 picks the run."""
        assert self.r1 == 1, self
        rows = -(-self.r2 // shares)
        strides: dict[str, Any] = {
            name: s._replace(r1=s.r2 * rows) for name, s in self._asdict().items() if isinstance(s, Strides)
        }
        fixed = self.fixed and (self.fixed[0], True, self.fixed[2])
        return self._replace(r1=shares, r2=rows, fixed=fixed, **strides)


def merge(outer: Axis, inner: Axis) -> Axis | None:
    """Two neighbouring axes as one, if every operand allows it."""
    if outer.over != inner.over or (outer.fixed != inner.fixed and not outer.over):
        return None  # what is kept of the model stays apart from what is kept of the batch: tiles follow the first
    if any(outer.strides[name] != stride * inner.size for name, stride in inner.strides.items()):
        return None
    return Axis(outer.size * inner.size, outer.over, outer.fixed and inner.fixed, inner.strides)


def outermost(axis: Axis, axes: Sequence[Axis]) -> Axis:
    """An axis of size 1, whose strides may be any number, with those of an axis beyond all others."""
    if axis.size != 1:
        return axis
    return axis._replace(
        strides={
            name: max([1, *(a.size * a.strides[name] for a in axes if a.size != 1)]) if stride else 0
            for name, stride in axis.strides.items()
        }
    )


def _flat_run(kept: list[Axis], tensors: Sequence[str]) -> bool:
    """Whether the two innermost kept axes are one contiguous run in every tensor, though not for the small operands."""
    if len(kept) < 2:
        return False
    outer, inner = kept[-2:]
    return all(inner.strides[name] == 1 and outer.strides[name] == inner.size for name in tensors)


def build(axes: Sequence[Axis], *, tensors: Sequence[str], leader: str, count: int | None = None) -> Grouping:
    """Sort axes into a `Grouping`: drop those of size 1, order by the leader's strides, merge what merges.

    A batch of one sample keeps its axis, so that it takes the kernels of any other batch.

    Args:
        axes: in any order; all with the same operands in ``strides``.
        tensors: the operands of full size, whose addresses are worth keeping simple.
        leader: the tensor whose strides set the order. One that is written, since its strides are never 0.
        count: elements that share statistics, if that is more than the axes reduced here.
    """
    operands = list(axes[0].strides) if axes else [*tensors]
    ordered = sorted(
        (outermost(a, axes) for a in axes if a.size != 1 or not (a.over or a.fixed)), key=lambda a: -a.strides[leader]
    )
    merged: list[Axis] = []
    for axis in ordered:
        whole = merge(merged[-1], axis) if merged else None
        if whole:
            merged[-1] = whole
        else:
            merged.append(axis)

    unit = Axis(1, over=False, fixed=True, strides=dict.fromkeys(operands, 0))
    nothing = unit._replace(fixed=False)  # a kept axis that this batch happens not to have
    kept = [a for a in merged if not a.over]
    reduced = [unit, unit, *(a for a in merged if a.over)]
    walk, (r1, r2) = [a for a in reduced[:-2] if a is not unit][::-1], reduced[-2:]
    if _flat_run(kept, tensors):
        *outer, group, cell = kept
    else:
        *outer, group, cell = [*(kept or [nothing]), unit]
    outer = outer[::-1]

    def strides(name: str) -> Strides:
        return Strides(
            tuple(a.strides[name] for a in outer),
            group.strides[name],
            cell.strides[name],
            tuple(a.strides[name] for a in walk),
            r1.strides[name],
            r2.strides[name],
        )

    return Grouping(
        outer=tuple(a.size for a in outer),
        kept=group.size * cell.size,
        cells=cell.size,
        walk=tuple(a.size for a in walk),
        r1=r1.size,
        r2=r2.size,
        count=count if count is not None else prod(a.size for a in reduced),
        fixed=(group.fixed and cell.fixed, r1.fixed, r2.fixed),
        **{name: strides(name) for name in operands},
    )


def contiguous(sizes: Sequence[int]) -> tuple[int, ...]:
    """Row-major strides for these sizes."""
    strides: list[int] = []
    step = 1
    for size in reversed(sizes):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def spread(dims: Sequence[Sequence[Any]], strides: Sequence[int]) -> dict[tuple[str, int], int]:
    """A tensor's strides by named axis: {(name, ordinal): stride}."""
    return {
        (axis.name, axis.ordinal): axis.step * stride for dim, stride in zip(dims, strides, strict=True) for axis in dim
    }
