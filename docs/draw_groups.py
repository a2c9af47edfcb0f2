"""Draw which elements share statistics, as Wu and He 2018 do in their Figure 2 (arXiv:1803.08494), from the library.

    python docs/draw_groups.py [--out DIR]

writes groups.svg and groups.png. The colored elements are read out of the library's own `Grouping` objects: a group's
addresses are listed through the strides and turned back into indices (n, c, hw).
"""

from __future__ import annotations

import argparse
from itertools import product
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib as mpl
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from normtriton.planning import norms
from normtriton.planning.grouping import contiguous
from normtriton.planning.schedule import Problem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from normtriton.planning.grouping import Grouping
    from normtriton.planning.norms import Norm

Element = tuple[int, int, int]
Point = tuple[float, float]
Color = tuple[float, float, float]

#: The tensor drawn: N samples, C channels, H * W positions.
SHAPE: Element = (6, 6, 6)
#: How far one sample lies behind the one before it, in widths and heights of an element.
DEPTH: Point = (0.5, 0.36)

MEMBER, OTHER, LINE, INK = "#2f74d0", "#e6eaf0", "#5c6673", "#1f2630"
#: Brightness of the three visible sides.
FRONT, SIDE, TOP = 1.0, 0.84, 1.1


class Panel(NamedTuple):
    """One cube of the picture."""

    title: str
    norm: Norm
    sizes: tuple[tuple[str, int], ...] = ()  #: what the shape does not tell, see `normtriton.planning.norms.name_axes`


PANELS = (
    Panel("Batch norm", norms.BATCH),
    Panel("Layer norm", norms.LAYER, (("d", 2),)),
    Panel("Instance norm", norms.INSTANCE),
    Panel("Group norm", norms.GROUP, (("g", 2),)),
    Panel("RMS norm", norms.RMS, (("d", 2),)),
)


def statistics_grouping(panel: Panel) -> Grouping:
    """Ask the library for the `Grouping` of a contiguous tensor under a norm."""
    problem = Problem(panel.norm, SHAPE, panel.sizes)
    return problem.grouping("x", problem.over, ("x",), {"x": problem.tensor(contiguous(SHAPE))})


def offsets(sizes: Sequence[int], strides: Sequence[int]) -> list[int]:
    """List the address of every index over these axes, in elements."""
    return [sum(i * s for i, s in zip(index, strides, strict=True)) for index in product(*map(range, sizes))]


def all_groups(group: Grouping) -> list[set[int]]:
    """List the addresses of every group's elements."""
    x = group.x
    assert x is not None
    kept = (*group.outer, group.kept // group.cells)
    reduced = (group.cells, *group.walk, group.r1, group.r2)
    starts = offsets(kept, (*x.outer, x.kept))
    steps = offsets(reduced, (x.cell, *x.walk, x.r1, x.r2))
    return [{start + step for step in steps} for start in starts]


def element_at(address: int) -> Element:
    """Find the indices (n, c, hw) of an address in a contiguous tensor."""
    n, c, hw = ((address // stride) % size for size, stride in zip(SHAPE, contiguous(SHAPE), strict=True))
    return n, c, hw


def members(panel: Panel) -> set[Element]:
    """Find the elements of one group: that of the first sample's last channel, a corner one sees."""
    groups = [{element_at(address) for address in group} for group in all_groups(statistics_grouping(panel))]
    assert sum(map(len, groups)) == len(set.union(*groups)) == prod(SHAPE), "every element is in exactly one group"
    corner = (0, SHAPE[1] - 1, 0)
    return next(group for group in groups if corner in group)


def project(n: float, c: float, hw: float) -> Point:
    """Find where a corner of the cube lies on the page: channels to the right, positions up, samples to the back."""
    return c + n * DEPTH[0], hw + n * DEPTH[1]


def shade(color: str, brightness: float) -> Color:
    """Make a color lighter or darker."""
    r, g, b = (min(part * brightness, 1.0) for part in to_rgb(color))
    return r, g, b


def visible_faces(group: set[Element]) -> list[tuple[list[Point], Color]]:
    """List the outlines and colors of the little faces on the three sides that one sees."""
    samples, channels, positions = SHAPE
    faces = []

    def add(element: Element, brightness: float, corners: Sequence[tuple[int, int, int]]) -> None:
        color = shade(MEMBER if element in group else OTHER, brightness)
        n, c, hw = element
        faces.append(([project(n + dn, c + dc, hw + dhw) for dn, dc, dhw in corners], color))

    for c, hw in product(range(channels), range(positions)):
        add((0, c, hw), FRONT, [(0, 0, 0), (0, 1, 0), (0, 1, 1), (0, 0, 1)])
    for n, hw in product(range(samples), range(positions)):
        add((n, channels - 1, hw), SIDE, [(0, 1, 0), (1, 1, 0), (1, 1, 1), (0, 1, 1)])
    for n, c in product(range(samples), range(channels)):
        add((n, c, positions - 1), TOP, [(0, 0, 1), (0, 1, 1), (1, 1, 1), (1, 0, 1)])
    return faces


def caption(panel: Panel) -> tuple[str, ...]:
    """Put the norm's own description in words, and what the elements of a group have in common."""
    what = "mean, variance" if panel.norm.centered else "mean square"
    given = "".join(f", {name} = {size}" for name, size in panel.sizes if f"*{name}" not in panel.norm.axes)
    count = statistics_grouping(panel).count
    return f"axes  {panel.norm.axes}", f"over  {panel.norm.over}{given}", what, f"of {count} elements"


def draw_panel(axes: Axes, panel: Panel) -> None:
    """Draw one cube with its title, the names of its axes and its caption."""
    outlines, colors = zip(*visible_faces(members(panel)), strict=True)
    axes.add_collection(PolyCollection(outlines, facecolors=colors, edgecolors=LINE, linewidths=0.7, joinstyle="round"))
    samples, channels, positions = SHAPE
    right, top = project(samples, channels, positions)
    middle = right / 2
    side, bottom = project(samples / 2, channels, 0)

    def write(x: float, y: float, text: str, size: int, **style: Any) -> None:
        axes.text(x, y, text, color=INK, fontsize=size, ha="center", **style)

    write(middle, top + 0.5, panel.title, 14, weight="bold")
    write(channels / 2, -0.35, "C", 12, va="top")
    write(-0.65, positions / 2, "H, W", 12, va="center", rotation=90)
    write(side + 0.6, bottom - 0.5, "N", 12, va="center")
    for i, line in enumerate(caption(panel)):
        write(middle, -2.2 - 0.95 * i, line, 12, va="baseline")
    axes.set_xlim(-1.2, right + 0.3)
    axes.set_ylim(-5.4, top + 1.5)
    axes.set_aspect("equal")
    axes.axis("off")


def draw() -> Figure:
    """Draw all cubes side by side, on white."""
    figure = Figure(figsize=(2.5 * len(PANELS), 3.75), facecolor="white")
    for i, panel in enumerate(PANELS):
        draw_panel(figure.add_subplot(1, len(PANELS), i + 1), panel)
    figure.subplots_adjust(left=0.005, right=0.995, bottom=0.0, top=1.0, wspace=0.02)
    return figure


def main() -> None:
    """Write the picture as SVG, and as PNG for pages that show no SVG."""
    parser = argparse.ArgumentParser(description="Draw which elements share statistics under each norm.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write to")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    mpl.rcParams["svg.hashsalt"] = "normtriton"  # the same identifiers on every run
    figure = draw()
    figure.savefig(out / "groups.svg", metadata={"Date": None})
    figure.savefig(out / "groups.png", dpi=160, metadata={"Software": None})


if __name__ == "__main__":
    main()
