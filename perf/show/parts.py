"""What a report is made of, whatever it is written as: tables, charts of cells, sections."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from . import render
from .rows import dtypes, ordered, place

if TYPE_CHECKING:
    from collections.abc import Callable

    from .rows import Row


class Cell(NamedTuple):
    """One cell of a table: what is sorted by, None if there is nothing, and what is shown."""

    value: float | str | None
    text: str
    best: bool = False


class Head(NamedTuple):
    """A column's head: its name, whether it has numbers, and what it stands under together with its neighbours."""

    name: str
    numeric: bool = False
    group: str = ""

    @property
    def full(self) -> str:
        """The name where there is no second line for the group."""
        return f"{self.group}, {self.name}" if self.group else self.name


class Column(NamedTuple):
    """A figure in a table: its name, how it is shown, whether less of it is better, and whether it is a number."""

    name: str
    cell: Callable[[Row], Cell]
    less: bool = False
    numeric: bool = True


class Line(NamedTuple):
    """A row of a table, and the dtype it is of."""

    dtype: str
    cells: list[Cell]


class Table(NamedTuple):
    """A table; ``name`` is its id."""

    name: str
    title: str
    heads: list[Head]
    lines: list[Line]

    @property
    def groups(self) -> list[tuple[str, int]]:
        """What stands above the heads, and over how many."""
        return [(group, len(list(heads))) for group, heads in groupby(self.heads, lambda head: head.group)]

    def markdown(self) -> str:
        """As Markdown."""
        rows = [[cell.text.replace("|", "/") for cell in line.cells] for line in self.lines]
        return render.table([head.full for head in self.heads], rows)


class Metric(NamedTuple):
    """A figure of a result.

    Attributes:
        name: for a button.
        label: for an axis, with the unit.
        of: reads it from a row.
        form: a format specification.
        log: whether its axis is logarithmic; what is 0 stands at 1 then.
        floor: where its axis begins, unless a figure is less.
        between: reads from a row what it lies between, both None where it does not say.
        ends: what it lies between, in words.
    """

    name: str
    label: str
    of: Callable[[Row], float | None]
    form: str = ",.0f"
    log: bool = False
    floor: float = 0
    between: tuple[Callable[[Row], float | None], ...] = ()
    ends: str = ""


class Point(NamedTuple):
    """A figure to be drawn: which place of the chart, its value, and between what it lies."""

    place: int
    value: float
    row: Row
    low: float | None = None
    high: float | None = None


class Chart(NamedTuple):
    """Figures side by side: a place for each case and layout, a mark for each of several series.

    Attributes:
        name: its id.
        title, note: what is seen, and what produced it.
        metrics: figures to choose from.
        series: rows by name.
    """

    name: str
    title: str
    note: str
    metrics: tuple[Metric, ...]
    series: dict[str, list[Row]]

    @property
    def places(self) -> list[tuple[str, str]]:
        """(case, layout), in the order of the tables."""
        return list(dict.fromkeys(place(row) for row in ordered(row for rows in self.series.values() for row in rows)))

    @property
    def dtypes(self) -> list[str]:
        """Of all its rows, in the order of the tables."""
        return dtypes(row for rows in self.series.values() for row in rows)

    def points(self, metric: Metric, dtype: str, direction: str) -> dict[str, list[Point]]:
        """What is drawn, by series; of a series without figures nothing."""
        places = {name: at for at, name in enumerate(self.places)}
        found: dict[str, list[Point]] = {}
        for name, rows in self.series.items():
            points = []
            for row in rows:
                if (row["dtype"], row["direction"]) != (dtype, direction) or "error" in row:
                    continue
                value = metric.of(row)
                if value is not None:
                    points.append(Point(places[place(row)], value, row, *(end(row) for end in metric.between)))
            found[name] = sorted(points, key=lambda point: point.place)
        return found


class Verdict(NamedTuple):
    """How ours compare with another library, over the results that both have.

    Attributes:
        library: with its version.
        where: the GPU that was simulated.
        dtypes: of the results.
        fewer, same, more: results in which ours moves fewer bytes than theirs, over the compulsory bytes of each.
        facts: other comparisons: what, ours, theirs.
    """

    library: str
    where: str
    dtypes: str
    fewer: int
    same: int
    more: int
    facts: list[tuple[str, str, str]]

    @property
    def total(self) -> int:
        """Results compared."""
        return self.fewer + self.same + self.more


class Section(NamedTuple):
    """A part of the report; ``short`` is for links to it."""

    name: str
    short: str
    title: str
    text: str
    charts: list[Chart]
    tables: list[Table]


class Report(NamedTuple):
    """All that is said.

    Attributes:
        title: of the page.
        facts: what was measured on what, or simulated by what, with versions: instrument and sentence.
        timed: whether anything was timed on a GPU.
        caution: what the figures are not.
        verdicts: one for each other library.
        sections: the rest.
    """

    title: str
    facts: list[tuple[str, str]]
    timed: bool
    caution: str
    verdicts: list[Verdict]
    sections: list[Section]

    @property
    def charts(self) -> list[Chart]:
        """Of all sections."""
        return [chart for section in self.sections for chart in section.charts]
