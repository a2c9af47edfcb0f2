"""Measure every cell that needs no GPU, keep the figures in perf/results, and render the tables of README.md and docs.

    python -m normtriton.perf.results [--rivals] [--select NAME] [--instrument NAME] [--fresh] [--jobs N]
    python -m normtriton.perf.results --render

A cell is a norm of `normtriton.perf.shapes` in a layout and a dtype. Three instruments work on it: "traffic" simulates
what its launches move on an H100 and an A100 (`normtriton.perf.traffic`); "code" compiles them for sm_80, sm_90, sm_100
and gfx942, each planned for a device of that kind, and reads the code (`normtriton.perf.codegen`); "model" predicts
their time on an H100 (`normtriton.perf.predict`). ``--rivals`` does the same, for an H100 and sm_90, to the other
libraries that are installed (`normtriton.perf.rivals`).

Results are JSON lines, one a cell and direction, in a file for each instrument and machine. What is there already is
kept if it was measured with the same versions, plans, kernels and instruments; so a run that was stopped goes on where
it was, and ``--fresh`` measures anew. A cell that fails says why in place of its figures, and is tried again next time.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from normtriton import cache

from . import render, rivals
from .jobs import Job, made_from, measured
from .shapes import DIRECTIONS, NORMS, TIMED, cells, offered

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

#: Instruments and machines of other libraries and of ours; first what the README shows.
THEIRS = ("code", "sm_90"), ("traffic", "H100"), ("model", "H100")
OURS = (*THEIRS, ("code", "sm_80"), ("code", "sm_100"), ("code", "gfx942"), ("traffic", "A100"))


def jobs(select: str, others: bool, only: str = "") -> Iterator[Job]:
    """All that there is to measure, of cases whose name contains ``select``; by the instrument ``only``, or by all."""
    installed = [library for library in TIMED if others and rivals.version(library) != rivals.MISSING]
    for library in (render.LIBRARY, *installed):
        for instrument, machine in OURS if library == render.LIBRARY else THEIRS:
            for cell in cells():
                norms = NORMS if library == render.LIBRARY else offered(instrument).get(library, ())
                if select in cell.case.name and cell.case.norm in norms and only in ("", instrument):
                    yield Job(instrument, machine, library, cell)


class Store:
    """The files of results: rows by file and by what they are of. Written whole after each job, in the cells' order."""

    def __init__(self, folder: Path) -> None:
        """Read what is there."""
        self.folder = folder
        self.files = render.load(folder)

    def has(self, job: Job) -> bool:
        """Whether a job's results are there, and are still those that it would give."""
        return all(row is not None and row["made_from"] == made_from(job) for row in self._held(job))

    def rows(self, job: Job) -> list[dict[str, Any]]:
        """A job's results that are there."""
        return [row for row in self._held(job) if row is not None]

    def _held(self, job: Job) -> list[dict[str, Any] | None]:
        rows = job.rows({direction: {} for direction in DIRECTIONS})
        return [self.files.get(job.file, {}).get(render.key(row)) for row in rows]

    def add(self, job: Job, rows: list[dict[str, Any]]) -> None:
        """Keep a job's results."""
        held = self.files.setdefault(job.file, {})
        held |= {render.key(row): row for row in rows}
        order = _order()
        known_first = sorted(held, key=lambda key: order.get(key, len(order)))
        text = "".join(json.dumps(held[key], sort_keys=True) + "\n" for key in known_first)
        cache.write(self.folder / job.file, text)


@lru_cache
def _order() -> dict[tuple[str, ...], int]:
    """The place of each row that is committed; others follow, in the order in which they came."""
    keys = (
        (cell.case.name, cell.layout, cell.dtype, direction, library)
        for cell in cells()
        for direction in DIRECTIONS
        for library in (render.LIBRARY, *TIMED)
    )
    return {key: place for place, key in enumerate(keys)}


def say(text: str) -> None:
    """Tell how far the work is."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201  a command


def update(
    store: Store,
    wanted: Sequence[Job],
    processes: int,
    run: Callable[[Sequence[Job], int], Iterator[tuple[Job, list[dict[str, Any]]]]] = measured,
) -> int:
    """Measure what is wanted and not there; how many cells failed."""
    failures = 0
    began = time.monotonic()
    for done, (job, rows) in enumerate(run(wanted, processes), 1):
        store.add(job, rows)
        why = rows[0].get("error", "")
        failures += bool(why)
        say(f"{done}/{len(wanted)} {time.monotonic() - began:.0f} s  {job.name}  {why}")
    return failures


def main() -> None:
    """Measure and render."""
    assert __doc__
    parser = argparse.ArgumentParser(
        prog="python -m normtriton.perf.results",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rivals", action="store_true", help="measure the other libraries that are installed, too")
    parser.add_argument("--select", default="", metavar="NAME", help="only cases whose name contains this")
    parser.add_argument("--instrument", default="", choices=("traffic", "code", "model"), help="only this one")
    parser.add_argument("--fresh", action="store_true", help="measure what is there already, too")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one a core)")
    parser.add_argument("--render", action="store_true", help="measure nothing: render what is there")
    chosen = parser.parse_args()
    failures = 0
    if not all(page.exists() for page in render.PAGES):
        sys.exit(f"results are kept in a checkout of the project, which {render.PAGES[0].parent} is not")
    if not chosen.render:
        store = Store(render.RESULTS)
        every = list(jobs(chosen.select, chosen.rivals, chosen.instrument))
        wanted = every if chosen.fresh else [job for job in every if not store.has(job)]
        say(f"{len(every) - len(wanted)} of {len(every)} cells are measured already")
        failures = update(store, wanted, chosen.jobs)
    for file, text in render.rendered().items():
        file.write_text(text)
    if failures:
        sys.exit(f"{failures} cells failed; their rows say why")


if __name__ == "__main__":
    main()
