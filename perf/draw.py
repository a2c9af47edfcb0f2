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

from .parts import Chart, Metric, Point, Roof
from .render import LIBRARY
from .shapes import DIRECTIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from matplotlib.axes import Axes

    from .render import Row


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
INK, MUTED, GRID, BAND = "#1d2229", "#5b6572", "#e3e7ec", "#f3f5f8"

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
        return cls.logarithmic(metric.label, low / (high / low) ** 0.04, high * (high / low) ** 0.06, zero=zero)

    @classmethod
    def logarithmic(cls, title: str, low: float, high: float, *, zero: bool = False) -> Axis:
        """A logarithmic axis with round numbers; with ``zero``, what is drawn at 1 is 0."""
        ratio = high / low
        steps = next(steps for most, steps in STEPS if ratio < most)
        powers = range(floor(log10(low)), floor(log10(high)) + 1)
        found = [step * 10.0**power for power in powers for step in steps]
        ticks = {value: short(value) for value in found if low <= value <= high}
        return cls(title, low, high, log=True, ticks=ticks | {1: "0"} if zero else ticks)

    def plotly(self) -> dict[str, Any]:
        """As plotly takes it."""
        found: dict[str, Any] = {"title": {"text": self.title}, "range": [self.low, self.high]}
        if self.log:
            found |= {"type": "log", "range": [log10(self.low), log10(self.high)]}
        if self.ticks is not None:
            found |= {"tickvals": list(self.ticks), "ticktext": list(self.ticks.values())}
        return found

    def matplotlib(self, ax: Axes, which: str) -> None:
        """Make it the "x" or the "y" of a panel."""
        ax.set(**{f"{which}scale": "log" if self.log else "linear", f"{which}lim": (self.low, self.high)})
        if self.ticks is not None:
            axis = getattr(ax, f"{which}axis")
            axis.set_ticks(list(self.ticks), list(self.ticks.values()))
            axis.set_minor_locator(NullLocator())


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


def told(name: str, row: Row, lines: Sequence[str]) -> str:
    """What hovering over a mark shows."""
    first = f"<b>{label(row['case'], row['layout'])}</b> {row['dtype']} {row['direction']}"
    return "<br>".join((first, name, *lines))


def point_told(name: str, metric: Metric, point: Point) -> str:
    """What hovering over a figure shows."""
    row = point.row
    lines = [f"{metric.name}: <b>{format(point.value, metric.form)}</b>"]
    if point.low is not None and point.high is not None:
        lines.append(f"20th to 80th percentile: {format(point.low, metric.form)} to {format(point.high, metric.form)}")
    if "method" in row:
        lines.append(f"timed by {row['method']}")
    if "strategy" in row:
        lines.append(f"strategy: {row['strategy']}")
    if "compulsory" in row:
        lines.append(f"DRAM {bytes_text(row['dram'])}, compulsory {bytes_text(row['compulsory'])}")
        lines += [f"of 1/{row['part']} of the shape"] * (row.get("part", 1) > 1)
    return told(name, row, lines)


def figures(chart: Chart | Roof) -> dict[str, dict[str, dict[str, Any]]]:
    """A chart for plotly: by what is shown, dtype and direction."""
    if isinstance(chart, Roof):
        return {"": {t: {d: roof(chart, t, d).to_plotly_json() for d in DIRECTIONS} for t in chart.dtypes}}
    return {
        metric.name: {t: {d: dots(chart, metric, t, d).to_plotly_json() for d in DIRECTIONS} for t in chart.dtypes}
        for metric in chart.metrics
    }


def dots(chart: Chart, metric: Metric, dtype: str, direction: str) -> go.Figure:
    """One panel of a chart. Colors of all but the marks are the page's."""
    series, looks = chart.points(metric, dtype, direction), marks(chart.series)
    figure = go.Figure(layout={"template": None})
    for at, (name, points) in enumerate(series.items()):
        figure.add_trace(
            go.Scatter(
                x=[drawn(metric, point.value) for point in points],
                y=[point.place + shift(at, len(series)) for point in points],
                customdata=[point.value for point in points],
                text=[point_told(name, metric, point) for point in points],
                error_x=spread(points),
                **marked(name, looks[name], 8),
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


def marked(name: str, mark: Mark, size: float) -> dict[str, Any]:
    """A series of marks, as plotly takes it: what they look like, and that hovering shows their text."""
    look = {"symbol": mark.symbol, "size": size, "color": mark.light}
    shown = {"mode": "markers", "hovertemplate": "%{text}<extra></extra>"}
    return {"name": name, "marker": look, "meta": {"color": mark.color}, **shown}


def spread(points: list[Point]) -> dict[str, Any] | None:
    """Between what timed points lay, as plotly takes it."""
    if all(point.low is None or point.high is None for point in points):
        return None
    plus = [0 if point.high is None else point.high - point.value for point in points]
    minus = [0 if point.low is None else point.value - point.low for point in points]
    return {"type": "data", "array": plus, "arrayminus": minus, "symmetric": False, "thickness": 1.2, "width": 0}


def roof_points(chart: Roof, dtype: str, direction: str) -> dict[str, list[Row]]:
    """The rows of one panel of a roofline."""
    return {
        name: [row for row in rows if (row["dtype"], row["direction"]) == (dtype, direction)]
        for name, rows in chart.series.items()
    }


def roof_axes(chart: Roof) -> tuple[Axis, Axis]:
    """Compulsory MB, and TB/s."""
    rows = [row for found in chart.series.values() for row in found]
    sizes, rates = [row["bytes"] / 1e6 for row in rows], [rate(row) for row in rows]
    return (
        Axis.logarithmic("compulsory bytes, MB", min(sizes) / 1.6, max(sizes) * 1.6),
        Axis.logarithmic("over the estimated time, TB/s", min(rates) / 1.4, chart.gpu.dram * 1.25 / 1e6),
    )


def rate(row: Row) -> float:
    """Compulsory bytes over the estimated time, TB/s."""
    return float(row["bytes"] / row["us"] / 1e6)


def roof_curve(chart: Roof) -> tuple[list[float], list[float]]:
    """The roof: MB, and TB/s."""
    axis, _rates = roof_axes(chart)
    sizes = [axis.low * (axis.high / axis.low) ** (step / 60) for step in range(61)]
    return sizes, [chart.limit(size * 1e6) / 1e6 for size in sizes]


def peak(chart: Roof) -> tuple[float, str]:
    """The peak bandwidth of memory, TB/s, and in words."""
    value = chart.gpu.dram / 1e6
    return value, f"peak of memory, {chart.gpu.name}: {value:g} TB/s"


def roof(chart: Roof, dtype: str, direction: str) -> go.Figure:
    """One panel of a roofline. Later series have larger marks, below those of earlier ones, so that equal ones show."""
    figure = go.Figure(layout={"template": None})
    x, y = roof_curve(chart)
    top, words = peak(chart)
    for name, heights, line, color in (
        ("roof", y, {"width": 2}, "var(--ink)"),
        ("peak", [top] * len(x), {"width": 1, "dash": "dot"}, "var(--muted)"),
    ):
        meta = {"color": color}
        figure.add_trace(go.Scatter(name=name, x=x, y=heights, mode="lines", hoverinfo="skip", line=line, meta=meta))
    looks = marks(chart.series)
    for at, (name, rows) in reversed(list(enumerate(roof_points(chart, dtype, direction).items()))):
        figure.add_trace(
            go.Scatter(
                x=[row["bytes"] / 1e6 for row in rows],
                y=[rate(row) for row in rows],
                customdata=[row["us"] for row in rows],
                text=[told(name, row, roof_told(chart, row)) for row in rows],
                **marked(name, looks[name], 8 + 2 * at),
            )
        )
    place = {"x": log10(x[0] * 1.1), "y": log10(top), "xanchor": "left", "yanchor": "bottom"}
    figure.add_annotation(text=words, showarrow=False, **place)
    xaxis, yaxis = roof_axes(chart)
    return figure.update_layout(xaxis=xaxis.plotly(), yaxis=yaxis.plotly(), height=440)


def roof_told(chart: Roof, row: Row) -> list[str]:
    """What hovering over a mark of a roofline shows."""
    terms = ", ".join(f"{name} {us:.1f}" for name, us in row["terms"].items())
    share = rate(row) * 1e6 / chart.limit(row["bytes"])
    return [f"estimated <b>{row['us']:,.1f} µs</b>, {share:.0%} of the roof", f"{row['binds']} binds; µs: {terms}"]


def pictures(chart: Chart | Roof) -> Iterator[tuple[str, Callable[[], Figure]]]:
    """A chart for matplotlib: names of files without an ending, and what draws them."""
    for dtype in chart.dtypes:
        if isinstance(chart, Roof):
            yield f"{chart.name}-{dtype}", partial(roof_picture, chart, dtype)
        else:
            for metric in chart.metrics:
                name = f"{chart.name}-{metric.name.replace(' ', '-')}-{dtype}"
                yield name, partial(dots_picture, chart, metric, dtype)


def dots_picture(chart: Chart, metric: Metric, dtype: str) -> Figure:
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
        Axis.of(chart, metric).matplotlib(ax, "x")
        ax.set(yticks=range(len(places)), yticklabels=places, ylim=(len(places) - 0.5, -0.5))
        ax.set_xlabel(metric.label, fontsize=8)
        ax.set_title(direction, loc="left", fontsize=9)
    legend(figure, axes[0])
    return figure


def roof_picture(chart: Roof, dtype: str) -> Figure:
    """A roofline, both directions."""
    figure, axes = panels(f"{chart.title}, {dtype}", chart.note, 4.2)
    looks, (xaxis, yaxis), (top, words) = marks(chart.series), roof_axes(chart), peak(chart)
    for direction, ax in zip(DIRECTIONS, axes, strict=True):
        ax.plot(*roof_curve(chart), color=INK, lw=1.4)
        ax.axhline(top, color=MUTED, lw=0.8, ls=":")
        ax.text(xaxis.low * 1.1, top * 1.03, words, color=MUTED, fontsize=6.5)
        for at, (name, rows) in enumerate(roof_points(chart, dtype, direction).items()):
            x, y = [row["bytes"] / 1e6 for row in rows], [rate(row) for row in rows]
            mark, size = looks[name], 22 + 14 * at
            ax.scatter(x, y, size, mark.light, marker=mark.marker, label=name, ec="white", lw=0.6, zorder=9 - at)
        xaxis.matplotlib(ax, "x")
        yaxis.matplotlib(ax, "y")
        ax.set_xlabel(xaxis.title, fontsize=8)
        ax.set_title(direction, loc="left", fontsize=9)
    axes[0].set_ylabel(yaxis.title, fontsize=8)
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
