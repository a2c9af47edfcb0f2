"""Draws the charts of a report: for a page (plotly), and as pictures for papers and slides (matplotlib).

Both draw the same: a panel for each direction, cells from the top down in the order of the tables.
"""

from __future__ import annotations

from functools import partial
from itertools import groupby
from math import floor, inf, log10
from typing import TYPE_CHECKING, Any, NamedTuple

import plotly.graph_objects as go
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from ..cases.shapes import DIRECTIONS
from .render import launch_words
from .rows import LIBRARY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from matplotlib.axes import Axes

    from .parts import Chart, Metric, Point


class Mark(NamedTuple):
    """How a series is drawn: its color on white and on black, and its shape for plotly and for matplotlib."""

    light: str
    dark: str
    symbol: str
    marker: str

    @property
    def color(self) -> str:
        """For CSS."""
        return f"light-dark({self.light}, {self.dark})"


#: Hues as Okabe and Ito's, darker for white paper; told apart by their shapes too.
MARKS = (
    Mark("#0b5fa5", "#63b0f4", "circle", "o"),
    Mark("#c65d00", "#f0a04b", "diamond", "D"),
    Mark("#00806a", "#45c4a7", "square", "s"),
    Mark("#8c4a9e", "#cf97e2", "triangle-up", "^"),
    Mark("#5d6875", "#a7b2bf", "x", "X"),
    Mark("#b3254e", "#f58ca8", "triangle-down", "v"),
    Mark("#756300", "#d2bd4c", "cross", "P"),
)
#: The marks of libraries, so that they are the same in all charts.
LIBRARIES = (LIBRARY, "liger-kernel", "flag-gems", "torch", "torch.compile", "quack", "apex")

#: Colors of all else on white paper.
MUTED, GRID, BAND = "#5b6572", "#e3e7ec", "#f3f5f8"

#: Height of a place: in pixels for each of its marks and besides, and in inches.
MARK, MARGIN, INCHES = 7.5, 6, 0.27
#: Round numbers for a logarithmic axis, by how many times its end is its begin.
STEPS: tuple[tuple[float, tuple[float, ...]], ...] = (
    (3, (1, 1.2, 1.5, 2, 3, 5, 7)),
    (15, (1, 1.5, 2, 3, 5, 7)),
    (500, (1, 2, 5)),
    (inf, (1,)),
)
#: The part of a place's height that its marks take.
SPREAD = 0.82


def marks(names: Iterable[str]) -> dict[str, Mark]:
    """A mark for each series."""
    names = list(names)
    known = {name: LIBRARIES.index(name) for name in names if name in LIBRARIES}
    free = iter([at for at in range(len(MARKS)) if at not in known.values()] + list(range(len(names))))
    return {name: MARKS[(known[name] if name in known else next(free)) % len(MARKS)] for name in names}


def label(case: str, layout: str) -> str:
    """A place's name on an axis."""
    return case if layout == "contiguous" else f"{case} {'NHWC' if layout == 'channels_last' else layout}"


class Axis(NamedTuple):
    """An axis: the same in all panels, dtypes and directions of a chart, so that they can be compared.

    Attributes:
        title: what is along it, with the unit.
        low, high: where it begins and ends.
        log: whether it is logarithmic.
        ticks: values with a label, None where even ones will do.
    """

    title: str
    low: float
    high: float
    log: bool
    ticks: dict[float, str] | None

    @classmethod
    def of(cls, chart: Chart, metric: Metric) -> Axis:
        """The axis that a chart needs for a metric."""
        values = [
            value
            for dtype in chart.dtypes
            for direction in DIRECTIONS
            for points in chart.points(metric, dtype, direction).values()
            for point in points
            for value in (point.value, point.low, point.high)
            if value is not None
        ]
        if not metric.log:
            return cls(metric.label, metric.floor, max(*values, 1) * 1.06, log=False, ticks=None)
        zero = min(values) <= 0
        low = 1 if zero else min(*values, metric.floor or inf)
        high = max(*values, 1.3 * low)
        low, high = low / (high / low) ** 0.04, high * (high / low) ** 0.06
        steps = next(steps for most, steps in STEPS if high / low < most)
        powers = range(floor(log10(low)), floor(log10(high)) + 1)
        found = [step * 10.0**power for power in powers for step in steps]
        ticks = {value: short(value) for value in found if low <= value <= high}
        return cls(metric.label, low, high, log=True, ticks=ticks | {1: "0"} if zero else ticks)

    def plotly(self) -> dict[str, Any]:
        """As plotly takes it."""
        found: dict[str, Any] = {"title": {"text": self.title}, "range": [self.low, self.high]}
        if self.log:
            found |= {"type": "log", "range": [log10(self.low), log10(self.high)]}
        if self.ticks is not None:
            found |= {"tickvals": list(self.ticks), "ticktext": list(self.ticks.values())}
        return found

    def matplotlib(self, ax: Axes) -> None:
        """Make it that of a panel."""
        ax.set(xscale="log" if self.log else "linear", xlim=(self.low, self.high))
        ax.set_xlabel(self.title, fontsize=8)
        if self.ticks is not None:
            ax.xaxis.set_ticks(list(self.ticks), list(self.ticks.values()))
            ax.xaxis.set_minor_locator(NullLocator())


def short(value: float) -> str:
    """A number for an axis: 1.5, 3,000, 20k."""
    return f"{value / 1000:g}k" if value >= 10_000 else f"{value:,g}"


def drawn(metric: Metric, value: float) -> float:
    """Where a value is drawn: a logarithmic axis has 0 at 1."""
    return max(value, 1) if metric.log and value <= 0 else value


def shift(series: int, count: int) -> float:
    """How far below the middle of its place a series is drawn."""
    return SPREAD * ((series + 0.5) / count - 0.5)


def bands(chart: Chart) -> Iterator[tuple[float, float]]:
    """Every second norm's places: from, to."""
    at = 0
    for number, (_norm, found) in enumerate(
        groupby(chart.places, lambda place: place[0].split("-")[0].rstrip("0123456789"))
    ):
        size = len(list(found))
        if number % 2 == 0:
            yield at - 0.5, at + size - 0.5
        at += size


def bytes_text(size: float) -> str:
    """Bytes, in MB."""
    return f"{size / 1e6:,.1f} MB"


def told(name: str, metric: Metric, point: Point) -> str:
    """What hovering over a mark shows."""
    row = point.row
    lines = [f"<b>{label(row['case'], row['layout'])}</b> {row['dtype']} {row['direction']}", name]
    lines.append(f"{metric.name}: <b>{format(point.value, metric.form)}</b>")
    if point.low is not None and point.high is not None:
        lines.append(f"{metric.ends}: {format(point.low, metric.form)} to {format(point.high, metric.form)}")
    if "method" in row:
        lines.append(f"timed by {row['method']}")
    if "strategy" in row:
        lines.append(f"strategy: {row['strategy']}")
    if row["instrument"] == "traffic":
        lines.append(f"DRAM {bytes_text(row['dram'])}, compulsory {bytes_text(row['compulsory'])}")
        lines += [f"of 1/{row['part']} of the shape"] * (row["part"] > 1)
    if row["instrument"] == "model":
        lines.append("predicted by a model, not measured")
        for kernel in row["kernels"]:
            words = launch_words(kernel)
            lines.append(f"<b>{kernel['kernel']}</b>: {words[0]}")
            lines += [f"  {', '.join(some)}" for some in (words[1:3], words[3:5], words[5:])]
    return "<br>".join(lines)


def figures(chart: Chart) -> dict[str, dict[str, dict[str, Any]]]:
    """A chart for plotly: by what is shown, dtype and direction."""
    return {
        metric.name: {t: {d: dots(chart, metric, t, d).to_plotly_json() for d in DIRECTIONS} for t in chart.dtypes}
        for metric in chart.metrics
    }


def dots(chart: Chart, metric: Metric, dtype: str, direction: str) -> go.Figure:
    """One panel of a chart. Colors of all but the marks are the page's."""
    series, looks = chart.points(metric, dtype, direction), marks(chart.series)
    figure = go.Figure(layout={"template": None})
    for at, (name, points) in enumerate(series.items()):
        mark = looks[name]
        figure.add_trace(
            go.Scatter(
                name=name,
                mode="markers",
                marker={"symbol": mark.symbol, "size": 8, "color": mark.light},
                meta={"color": mark.color},
                x=[drawn(metric, point.value) for point in points],
                y=[point.place + shift(at, len(series)) for point in points],
                customdata=[point.value for point in points],
                text=[told(name, metric, point) for point in points],
                hovertemplate="%{text}<extra></extra>",
                error_x=spread(points),
            )
        )
    for low, high in bands(chart):
        figure.add_shape(type="rect", xref="paper", x0=0, x1=1, y0=low, y1=high, layer="below", line_width=0)
    places = [label(*place) for place in chart.places]
    return figure.update_layout(
        xaxis=Axis.of(chart, metric).plotly(),
        yaxis={"range": [len(places) - 0.5, -0.5], "tickvals": list(range(len(places))), "ticktext": places},
        height=len(places) * (MARGIN + MARK * max(len(series), 2)) + 60,
    )


def spread(points: list[Point]) -> dict[str, Any] | None:
    """Between what points lie, as plotly takes it."""
    ends = [[end for end in (point.low, point.value, point.high) if end is not None] for point in points]
    if all(len(some) == 1 for some in ends):
        return None
    plus = [max(some) - point.value for some, point in zip(ends, points, strict=True)]
    minus = [point.value - min(some) for some, point in zip(ends, points, strict=True)]
    return {"type": "data", "array": plus, "arrayminus": minus, "symmetric": False, "thickness": 1.2, "width": 0}


def pictures(chart: Chart) -> Iterator[tuple[str, Callable[[], Figure]]]:
    """A chart for matplotlib: names of files without an ending, and what draws them."""
    for dtype in chart.dtypes:
        for metric in chart.metrics:
            yield f"{chart.name}-{metric.name.replace(' ', '-')}-{dtype}", partial(picture, chart, metric, dtype)


def picture(chart: Chart, metric: Metric, dtype: str) -> Figure:
    """A chart's figure, both directions."""
    looks, places = marks(chart.series), [label(*place) for place in chart.places]
    figure, axes = panels(f"{chart.title}: {metric.name}, {dtype}", chart.note, 1.5 + INCHES * len(places))
    for direction, ax in zip(DIRECTIONS, axes, strict=True):
        for low, high in bands(chart):
            ax.axhspan(low, high, color=BAND, lw=0, zorder=0)
        for at, (name, points) in enumerate(chart.points(metric, dtype, direction).items()):
            mark, y = looks[name], [point.place + shift(at, len(chart.series)) for point in points]
            for point, height in zip(points, y, strict=True):
                if point.low is not None and point.high is not None:
                    ax.hlines(height, point.low, point.high, color=mark.light, lw=1)
            x = [drawn(metric, point.value) for point in points]
            ax.scatter(x, y, s=22, color=mark.light, marker=mark.marker, label=name, lw=0, zorder=3)
        Axis.of(chart, metric).matplotlib(ax)
        ax.set(yticks=range(len(places)), yticklabels=places, ylim=(len(places) - 0.5, -0.5))
        ax.set_title(direction, loc="left", fontsize=9)
    legend(figure, axes[0])
    return figure


def panels(title: str, note: str, height: float) -> tuple[Figure, Sequence[Axes]]:
    """A picture of two panels, with a title and what produced it."""
    figure = Figure(figsize=(9, height), dpi=200, layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    figure.supxlabel(note, x=0.01, ha="left", fontsize=6.5, color=MUTED)
    for ax in axes:
        ax.tick_params(labelsize=7.5, length=0)
        ax.spines[:].set_visible(False)
        ax.grid(color=GRID, lw=0.6)
        ax.set_axisbelow(True)
    return figure, axes


def legend(figure: Figure, ax: Axes) -> None:
    """What the marks are, beside the title."""
    handles, names = ax.get_legend_handles_labels()
    figure.legend(handles, names, loc="upper right", ncols=len(names), fontsize=8, frameon=False)
