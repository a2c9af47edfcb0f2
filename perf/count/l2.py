"""A model of a GPU's second-level cache: which bytes of a sequence of launches cross the memory bus. Pure Python.

The model, kept simple on purpose:

- Lines of 128 bytes, each of four sectors of 32 bytes, as NVIDIA's. A missing sector is fetched on its own; a line
  takes its whole place. Strict least-recently-used order over the whole cache, no sets, no hashing, no prefetch.
- A written sector stays until its line is evicted, or to the end of the pass, and is then written to memory once. It is
  not fetched first: the kernels write whole sectors but for the ends of odd rows.
- Programs start in the order of the grid. As many are resident as their warps leave room for (`Machine.slots`); these
  take turns, one tile access each, and the next program starts where one ends. Nothing waits for anything else.
- The cache is empty when a pass starts, and lives on from one of its launches to the next.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple

from normtriton.planning.plan import Device

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: Bytes that are fetched or written at least.
SECTOR = 32
#: Bytes that are evicted together.
LINE = 128

LOAD, STORE, ATOMIC = range(3)


class Machine(NamedTuple):
    """What traffic depends on of a GPU.

    Attributes:
        name: for people.
        sms: multiprocessors.
        l2: bytes of the second-level cache.
        warps: warps that are resident on a multiprocessor.
        programs: programs (thread blocks) that are, at most.
        clusters: whether programs can form clusters.
    """

    name: str
    sms: int
    l2: int
    warps: int = 64
    programs: int = 32
    clusters: bool = True

    @property
    def device(self) -> Device:
        """What plans depend on of it."""
        return Device(self.sms, self.clusters)

    def slots(self, num_warps: int, ctas: int = 1) -> int:
        """Programs resident at once, from their warps alone: registers may allow fewer."""
        each = max(min(self.programs, self.warps // num_warps), 1)
        return max(self.sms * each // ctas, 1)

    def scaled(self, by: int) -> Machine:
        """The same machine with so many times fewer multiprocessors and bytes of cache."""
        return self._replace(name=f"1/{by} of {self.name}", sms=max(self.sms // by, 1), l2=self.l2 // by)


H100 = Machine("H100", 132, 50 << 20)
A100 = Machine("A100", 108, 40 << 20, clusters=False)
#: Its L2 as the driver reports it: 126.5 MiB, github.com/pytorch/ao/pull/4002. Nothing is simulated on it.
B200 = Machine("B200", 148, 253 << 19)
MACHINES = {"H100": H100, "A100": A100}


class Access(NamedTuple):
    """One access of one program to a tile.

    Attributes:
        kind: LOAD, STORE or ATOMIC.
        lines: addresses / `LINE` of the lines touched.
        sectors: a bit for each sector touched, of each of these lines.
    """

    kind: int
    lines: Sequence[int]
    sectors: Sequence[int]


class L2:
    """The cache; ``fetched`` and ``written`` count sectors between it and memory."""

    def __init__(self, size: int) -> None:
        """Start empty, with room for ``size`` bytes."""
        self.room = max(size // LINE, 1)
        self.lines: OrderedDict[int, int] = OrderedDict()  # sectors present, and shifted by four those to be written
        self.fetched = 0
        self.written = 0

    def access(self, access: Access) -> None:
        """Touch the lines of an access."""
        lines, room, store = self.lines, self.room, access.kind != LOAD
        fetched = 0
        for line, sectors in zip(access.lines, access.sectors, strict=True):
            held = lines.get(line)
            if held is None:
                held = 0
                if len(lines) >= room:
                    self.written += (lines.popitem(last=False)[1] >> 4).bit_count()
            else:
                lines.move_to_end(line)
            if access.kind != STORE:
                fetched += (sectors & ~held).bit_count()
            lines[line] = held | sectors | (sectors << 4 if store else 0)
        self.fetched += fetched

    def flush(self) -> None:
        """Write what is still to be written."""
        for line, held in self.lines.items():
            self.written += (held >> 4).bit_count()
            self.lines[line] = held & 15

    def empty(self) -> None:
        """Write what is still to be written, and keep nothing."""
        self.flush()
        self.lines.clear()

    @property
    def moved(self) -> int:
        """Bytes fetched and written so far."""
        return SECTOR * (self.fetched + self.written)


def interleave(programs: Sequence[Sequence[Access]], slots: int) -> Iterator[Access]:
    """Accesses in the order in which resident programs make them."""
    waiting = iter(programs)
    resident = [iter(program) for _slot, program in zip(range(slots), waiting, strict=False)]
    while resident:
        going = []
        for program in resident:
            current: Iterator[Access] | None = program
            while current is not None:
                access = next(current, None)
                if access is not None:
                    yield access
                    going.append(current)
                    break
                following = next(waiting, None)
                current = None if following is None else iter(following)
        resident = going
