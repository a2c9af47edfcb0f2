"""Results as rows: how they are read, what they must have, and in which order they are shown.

A result is a row of JSON: one cell (a case in a layout and a dtype) and direction, of one library, measured by one
instrument on one machine. "traffic" simulates, "code" compiles, "model" predicts a time, "bench" times on a GPU.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ..cases.shapes import DIRECTIONS, DTYPES, LIBRARIES, cells
from ..cases.targets import PLANNED_FOR
from ..count.l2 import MACHINES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

Row = dict[str, Any]
#: Rows by what they are kept under (a file, an instrument and machine), and by what they are of.
Files = dict[str, dict[tuple[str, ...], Row]]

#: The name of our own rows.
LIBRARY = "normtriton"

#: What says which result a row is.
NAMED = ("instrument", "machine", "library", "case", "norm", "layout", "dtype", "direction")
#: What a row has beside that, unless it has an "error".
FIGURES = {
    "traffic": ("live", "request", "dram", "compulsory", "launches", "part", "shape", "torch", "triton"),
    "code": ("kernels", "torch", "triton"),
    "model": ("us", "us_alone", "of_ceiling", "of_ceiling_alone", "compulsory", "kernels", "torch", "triton"),
    "bench": ("us", "torch", "triton"),
}

#: What is said of a time that nobody measured.
PREDICTED = "predicted by a model, not measured"
#: How the figures of instruments that need no GPU came about.
HOW = {"traffic": "simulated", "code": "compiled", "model": PREDICTED, "autotune-predicted": PREDICTED}


class DamagedError(ValueError):
    """A line of a file that is no result: where, and why."""


def lines(file: Path) -> Iterator[Row]:
    """The rows of a file.

    Raises:
        DamagedError: a line that is no result.
    """
    for number, line in enumerate(file.read_text().splitlines(), 1):
        try:
            row = json.loads(line)
            check(row)
        except ValueError as error:
            raise DamagedError(f"{file}, line {number}: {error}") from error
        yield row


def key(row: Row) -> tuple[str, ...]:
    """What tells the rows of one instrument and machine apart."""
    return row["case"], row["layout"], row["dtype"], row["direction"], row["library"]


def load(folder: Path) -> Files:
    """The rows of a folder's files, by file.

    Raises:
        DamagedError: a line that is no result.
    """
    return {file.name: {key(row): row for row in lines(file)} for file in sorted(folder.glob("*.jsonl"))}


def read(files: Iterable[Path]) -> list[Row]:
    """All rows of some files; of two rows of one result the later counts.

    Raises:
        DamagedError: a line that is no result.
    """
    rows: dict[tuple[Any, ...], Row] = {}
    for file in files:
        for number, row in enumerate(lines(file)):
            known = row["instrument"] in FIGURES
            rows[tuple(row[name] for name in NAMED) if known else (str(file), number)] = row
    return list(rows.values())


def check(row: Any) -> None:
    """Refuse what is no result.

    Raises:
        ValueError: what is missing.
    """
    if not isinstance(row, dict) or "instrument" not in row:
        raise ValueError('not a result: it has no "instrument"')
    if row["instrument"] in FIGURES:
        needed = (*NAMED, *(() if "error" in row else FIGURES[row["instrument"]]))
        if absent := [name for name in needed if name not in row]:
            raise ValueError(f'not a result of "{row["instrument"]}": it has no {", ".join(absent)}')
        if row["direction"] not in DIRECTIONS:
            raise ValueError(f"not a result: its direction is {row['direction']!r}, not {' or '.join(DIRECTIONS)}")


def place(row: Row) -> tuple[str, str]:
    """What stands at one place of a chart."""
    return row["case"], row["layout"]


def ordered(rows: Iterable[Row]) -> list[Row]:
    """In the order of `cells`, then as they come; forward before backward, ours before others'."""
    rows = list(rows)
    places = [(cell.case.name, cell.layout) for cell in cells()] + [place(row) for row in rows]
    rank = {name: at for at, name in reversed(list(enumerate(places)))}
    libraries = list(dict.fromkeys((LIBRARY, *LIBRARIES, *(row["library"] for row in rows))))
    known = dtypes(rows)

    def order(row: Row) -> tuple[int, ...]:
        where = known.index(row["dtype"]), rank[place(row)], DIRECTIONS.index(row["direction"])
        return (*where, libraries.index(row["library"]))

    return sorted(rows, key=order)


def dtypes(rows: Iterable[Row]) -> list[str]:
    """Those of some rows, in the order of the tables."""
    found = {row["dtype"]: None for row in rows}
    return [dtype for dtype in DTYPES if dtype in found] + [dtype for dtype in found if dtype not in DTYPES]


def flat(row: Row) -> dict[str, object]:
    """A row without structure: {"shape": "8192x4096", "kernels.0.registers": 128, ...}."""

    def walk(name: str, value: Any) -> Iterator[tuple[str, object]]:
        if isinstance(value, dict):
            for inner, held in value.items():
                yield from walk(f"{name}.{inner}", held)
        elif isinstance(value, list) and not all(isinstance(one, int) for one in value):
            for at, held in enumerate(value):
                yield from walk(f"{name}.{at}", held)
        else:
            yield name, "x".join(map(str, value)) if isinstance(value, list) else value

    return dict(item for name, value in row.items() for item in walk(name, value))


def result(row: Row) -> tuple[str, str, str, str]:
    """Which cell and direction a row is of."""
    return row["case"], row["layout"], row["dtype"], row["direction"]


def of(rows: Iterable[Row], instrument: str) -> dict[str, list[Row]]:
    """An instrument's rows, by machine: those that we know, then others as they come."""
    found: dict[str, list[Row]] = {name: [] for name in (*MACHINES, *PLANNED_FOR)}
    for row in rows:
        if row["instrument"] == instrument:
            found.setdefault(row["machine"], []).append(row)
    return {machine: rows for machine, rows in found.items() if rows}


def by_library(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows by library, ours first."""
    found: dict[str, list[Row]] = {}
    for row in ordered(rows):
        found.setdefault(row["library"], []).append(row)
    return {library: found[library] for library in sorted(found, key=lambda name: name != LIBRARY)}


def files_of(rows: Iterable[Row]) -> Files:
    """Rows by instrument and machine."""
    files: Files = {}
    for row in rows:
        files.setdefault(f"{row['instrument']} {row['machine']}", {})[key(row)] = row
    return files


def versions(rows: Iterable[Row]) -> str:
    """What measured some rows, in words."""
    good = [row for row in rows if "error" not in row and row["instrument"] in FIGURES]
    found = sorted({(what, row[what]) for row in good for what in ("triton", "torch")})
    found += sorted({(row["library"], row["version"]) for row in good if "version" in row})
    return ", ".join(f"{what} {version}" for what, version in found) or "nothing was measured"
