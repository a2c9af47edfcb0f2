"""Compare two sets of results cell by cell: what became worse, and by how much.

``python -m normtriton.perf compare --help`` says what counts.
"""

from __future__ import annotations

import json
import sys
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from ..cli import json_option, writing
from ..show.render import most, table
from ..show.rows import DamagedError, files_of, lines

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..show.rows import Files, Row

#: Whose rows are compared.
INSTRUMENTS = ("traffic", "code", "model", "bench")
#: Figures of which one more is one too many.
EXACT = ("launches", "stack", "cluster_barriers")
#: Figures of which more is better.
MORE = ("blocks", "in flight", "narrowest access")


class Change(NamedTuple):
    """One figure of one cell that differs.

    Attributes:
        place: which instrument and machine.
        cell: case, layout, dtype, direction, library.
        figure: its name; "measured" where a cell could be measured once only.
        old, new: its values.
        worse: whether it counts as a regression.
    """

    place: str
    cell: tuple[str, ...]
    figure: str
    old: float
    new: float
    worse: bool

    @property
    def by(self) -> str:
        """The change in words: percent, or the difference where there was nothing."""
        return f"{(self.new - self.old) / self.old:+.1%}" if self.old else f"{self.new - self.old:+g}"


def figures(row: Row) -> dict[str, float]:
    """What is compared of a row, by name."""
    if "error" in row:
        return {"measured": 0}
    found = {"measured": 1.0}
    if row["instrument"] == "bench":
        return found | {"us": row["us"]}
    if row["instrument"] == "model":
        return found | {
            "predicted us": row["us"],
            "predicted us alone": row["us_alone"],
            "launches": len(row["kernels"]),
        }
    if "kernels" not in row:
        found["launches"] = row["launches"]
        return found | {name: row[name] * row["part"] for name in ("live", "request", "dram")}  # of the whole shape
    kernels = row["kernels"]
    found["launches"] = len(kernels)
    found |= {name: most(row, name) for name in ("registers", "stack", "shared", "cluster_barriers")}
    found |= {name: sum(kernel[name] for kernel in kernels) for name in ("instructions", "barriers")}
    if "blocks" in row:
        found["blocks"] = row["blocks"]
    if flying := [kernel["in_flight"] for kernel in kernels if kernel.get("in_flight")]:
        found["in flight"] = min(flying)
    if widths := [int(width) for kernel in kernels for width in kernel.get("tensors", ())]:
        found["narrowest access"] = min(widths)
    return found


def is_worse(figure: str, old: float, new: float, threshold: float) -> bool:
    """Whether a figure's change is a regression."""
    if figure == "measured":
        return new < old
    if figure in EXACT:
        return new > old
    if figure in MORE:
        return new < old * (1 - threshold)
    return new > old * (1 + threshold)


def changes(old: Files, new: Files, threshold: float) -> Iterator[Change]:
    """Every figure that differs, in cells that both have."""
    for place, rows in new.items():
        for cell, row in rows.items():
            before = old.get(place, {}).get(cell)
            if before is None:
                continue
            was, now = figures(before), figures(row)
            for figure in was.keys() & now.keys():
                if was[figure] != now[figure]:
                    worse = is_worse(figure, was[figure], now[figure], threshold)
                    if figure == "us":  # times scatter
                        worse = worse and now[figure] > before["us_high"]
                    yield Change(place, cell, figure, was[figure], now[figure], worse)


def report(found: list[Change], compared: int, alone: int) -> str:
    """The changes as Markdown, regressions first."""
    worse = [change for change in found if change.worse]
    lines = [f"{compared} cells compared, {alone} in one of the two only: {len(worse)} figures are worse."]
    if found:
        heads = ("results", "cell", "figure", "old", "new", "change", "")
        ordered = sorted(found, key=lambda change: (not change.worse, change))
        rows = [
            (c.place, " ".join(c.cell), c.figure, f"{c.old:g}", f"{c.new:g}", c.by, "worse" if c.worse else "")
            for c in ordered
        ]
        lines += ["", table(heads, rows)]
    return "\n".join(lines)


def read(path: Path) -> Files:
    """Rows of a folder or a file by instrument and machine, and by what they are of; those of `INSTRUMENTS` only.

    Raises:
        click.BadParameter: there are none, or they are no rows of results.
    """
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    try:
        found = files_of(row for file in files for row in lines(file) if row["instrument"] in INSTRUMENTS)
    except DamagedError as error:
        raise click.BadParameter(f"{path} has a line that is no row of results: {error}") from error
    if not found:
        raise click.BadParameter(f"{path} holds no results (*.jsonl); `make results` writes them to perf/results")
    return found


@click.command()
@click.argument("old", type=click.Path(exists=True, path_type=Path))
@click.argument("new", type=click.Path(exists=True, path_type=Path))
@click.option("--threshold", type=click.FloatRange(0), default=0.01, show_default=True, help="Relative change allowed.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write what is printed to this file too.")
@json_option
def command(old: Path, new: Path, threshold: float, out: Path | None, as_json: bool) -> None:
    """Compare two sets of results cell by cell; exit with status 1 if anything became worse.

    OLD and NEW are folders of JSON lines or single files, of any of the instruments: perf/results, what --out of
    `traffic`, `codegen` and `time` names, what `bench` wrote.

    Launches, spilled bytes and cluster barriers are worse if there is one more. Bytes moved, registers, shared memory,
    instructions and barriers are worse if they grow by more than the threshold; thread blocks, bytes in flight and the
    narrowest access to a big tensor, if they shrink. A time that was measured is worse if it grows by more than the
    threshold, and out of the range of quantiles that OLD has for it. A predicted time, of either bound, is worse if it
    grows by more than the threshold. A cell that could be measured and no longer can is worse; one that OLD lacks is
    only counted.

    \b
    Examples:
      python -m normtriton.perf compare perf/results ../results
      git worktree add ../before && python -m normtriton.perf compare ../before/perf/results perf/results
      python -m normtriton.perf compare before.jsonl after.jsonl --threshold 0.05
    """  # noqa: D301  \b is click's mark of a paragraph to be left as it is
    if isnan(threshold):
        raise click.BadParameter("nan is no change", param_hint="--threshold")
    before, after = read(old), read(new)
    cells = [{(place, cell) for place, rows in side.items() for cell in rows} for side in (before, after)]
    if not cells[0] & cells[1]:
        raise click.UsageError(f"{old} and {new} have no cell in common: not the same instrument, machine and shapes")
    found = list(changes(before, after, threshold))
    if as_json:
        text = "".join(json.dumps(change._asdict()) + "\n" for change in found)
    else:
        text = report(found, len(cells[0] & cells[1]), len(cells[0] ^ cells[1])) + "\n"
    click.echo(text, nl=False)
    if out is not None:
        with writing(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(text)
    if any(change.worse for change in found):
        sys.exit(1)
