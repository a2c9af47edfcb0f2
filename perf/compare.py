"""Compare two sets of results cell by cell: what became worse, by how much; exit status 1 if anything did.

    python -m normtriton.perf.compare OLD NEW [--threshold 0.01] [--json]

OLD and NEW are folders of JSON lines as `normtriton.perf.results` keeps them. For example, the checkout beside what is
committed (``git worktree add ../before``, then ``../before/perf/results perf/results``).

Launches, spilled bytes and cluster barriers are worse if there is one more. Bytes moved, registers, shared memory,
instructions and barriers are worse if they grow by more than the threshold, thread blocks and the narrowest access to a
big tensor if they shrink. A cell that could be measured and no longer can is worse; one that OLD lacks is only counted.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .render import Files, Row, load, most, table

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Figures of which one more is one too many.
EXACT = ("launches", "stack", "cluster_barriers")
#: Figures of which more is better.
MORE = ("blocks", "narrowest access")


class Change(NamedTuple):
    """One figure of one cell that differs.

    Attributes:
        file: which instrument and machine.
        cell: case, layout, dtype, direction, library.
        figure: its name; "measured" where a cell could be measured once only.
        old, new: its values.
        worse: whether it counts as a regression.
    """

    file: str
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
    if "kernels" not in row:
        return found | {name: row[name] for name in ("launches", "live", "request", "dram") if name in row}
    kernels = row["kernels"]
    found["launches"] = len(kernels)
    found |= {name: most(row, name) for name in ("registers", "stack", "shared", "cluster_barriers")}
    found |= {name: sum(kernel[name] for kernel in kernels) for name in ("instructions", "barriers")}
    if "blocks" in row:
        found["blocks"] = row["blocks"]
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
    for file, rows in new.items():
        for cell, row in rows.items():
            before = old.get(file, {}).get(cell)
            if before is None:
                continue
            was, now = figures(before), figures(row)
            for figure in was.keys() & now.keys():
                if was[figure] != now[figure]:
                    worse = is_worse(figure, was[figure], now[figure], threshold)
                    yield Change(file, cell, figure, was[figure], now[figure], worse)


def report(found: list[Change], compared: int, alone: int) -> str:
    """The changes as Markdown, regressions first."""
    worse = [change for change in found if change.worse]
    lines = [f"{compared} cells compared, {alone} in one of the two only: {len(worse)} figures are worse."]
    if found:
        heads = ("results", "cell", "figure", "old", "new", "change", "")
        ordered = sorted(found, key=lambda change: (not change.worse, change))
        rows = [
            (c.file, " ".join(c.cell), c.figure, f"{c.old:g}", f"{c.new:g}", c.by, "worse" if c.worse else "")
            for c in ordered
        ]
        lines += ["", table(heads, rows)]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Compare and print; the exit status."""
    assert __doc__
    parser = argparse.ArgumentParser(
        prog="python -m normtriton.perf.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("old", type=Path, metavar="OLD", help="a folder of results")
    parser.add_argument("new", type=Path, metavar="NEW", help="the folder to judge")
    parser.add_argument("--threshold", type=float, default=0.01, help="the relative change that counts (default: 0.01)")
    parser.add_argument("--json", action="store_true", help="print the changes as JSON lines")
    chosen = parser.parse_args(arguments)
    files = []
    for folder in (chosen.old, chosen.new):
        if not any(folder.glob("*.jsonl")):
            parser.error(f"{folder} holds no results (*.jsonl); `make results` writes them to perf/results")
        files.append(load(folder))
    old, new = files
    cells = [{(file, cell) for file, rows in side.items() for cell in rows} for side in files]
    found = list(changes(old, new, chosen.threshold))
    if chosen.json:
        for change in found:
            print(json.dumps(change._asdict()))  # noqa: T201  a report, here and below
    else:
        print(report(found, len(cells[0] & cells[1]), len(cells[0] ^ cells[1])))  # noqa: T201
    return int(any(change.worse for change in found))


if __name__ == "__main__":
    sys.exit(main())
