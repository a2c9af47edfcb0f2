"""Measure every cell that needs no GPU, keep the figures in perf/results, and render the tables of README.md and docs.

    python -m normtriton.perf results [--rivals] [--select NAME] [--instrument NAME] [--fresh] [--jobs N]
    python -m normtriton.perf results --render

A cell is a norm of `normtriton.perf.cases.shapes` in a layout and a dtype. Three instruments work on it: "traffic"
simulates what its launches move on an H100 and an A100 (`normtriton.perf.count.traffic`); "code" compiles them for
sm_80, sm_90, sm_100 and gfx942, each planned for a device of that kind, and reads the code
(`normtriton.perf.count.codegen`); "model" predicts their time on an H100, with and without clusters, an H200 and an
A100 (`normtriton.perf.time.predict`). ``--rivals`` does the same to the other libraries that are installed
(`normtriton.perf.count.rivals`): for an H100 and sm_90; their time also, in bfloat16, on an H200 and an A100. Times on
an H100 are also predicted of other shapes, and of norms with what surrounds them: beside torch.compile's code, and
beside those libraries that compute it in a norm's own pass. A row of another library says on which day its code ran.

Results are JSON lines, one a cell and direction, in a file for each instrument and machine. What is there already is
kept if it was measured with the same versions, plans, kernels and instruments; so a run that was stopped goes on where
it was, and ``--fresh`` measures anew. A cell that fails says why in place of its figures, and is tried again next time.
"""

from __future__ import annotations

import json
import os
import time
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import click

from normtriton.runtime import cache

from ..cases.shapes import DIRECTIONS, DTYPES, FUSED, LIBRARIES, OTHERS, cells, offers
from ..cli import Refusal
from ..count import rivals
from ..show import render
from ..show.rows import LIBRARY, key, load
from ..time.predict import MACHINES
from .jobs import Job, made_from, measured

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from ..cases.shapes import Cell

#: The instruments that need no GPU.
INSTRUMENTS = ("traffic", "code", "model")
#: Instruments and machines of other libraries and of ours; first those of other libraries.
THEIRS = ("code", "sm_90"), ("traffic", "H100"), ("model", "H100"), ("model", "H200"), ("model", "A100")
OURS = (
    *THEIRS,
    *(("code", target) for target in ("sm_80", "sm_100", "gfx942")),
    ("traffic", "A100"),
    *(("model", name) for name in MACHINES if ("model", name) not in THEIRS),
)


def cells_of(instrument: str, machine: str, library: str = LIBRARY) -> list[Cell]:
    """What is measured: the cells of the reports; in bfloat16 alone `OTHERS`, and other libraries not on an H100."""
    if (instrument, machine) == ("model", "H100"):
        return cells() + cells(OTHERS + FUSED, dtypes=DTYPES[:1])
    return cells(dtypes=DTYPES[:1]) if library != LIBRARY and instrument == "model" else cells()


def jobs(select: str, others: bool, only: str = "") -> Iterator[Job]:
    """All that there is to measure, of cases whose name contains ``select``; by the instrument ``only``, or by all."""
    installed = [library for library in LIBRARIES if others and rivals.version(library) != rivals.MISSING]
    for library in (LIBRARY, *installed):
        for instrument, machine in OURS if library == LIBRARY else THEIRS:
            for cell in cells_of(instrument, machine, library):
                there = library == LIBRARY or offers(library, cell.case, instrument)
                if there and select in cell.case.name and only in ("", instrument):
                    yield Job(instrument, machine, library, cell)


class Store:
    """The files of results: rows by file and by what they are of. Written whole after each job, in the cells' order."""

    def __init__(self, folder: Path) -> None:
        """Read what is there."""
        self.folder = folder
        self.files = load(folder)

    def has(self, job: Job) -> bool:
        """Whether a job's results are there, and are still those that it would give."""
        return all(row is not None and row["made_from"] == made_from(job) for row in self._held(job))

    def rows(self, job: Job) -> list[dict[str, Any]]:
        """A job's results that are there."""
        return [row for row in self._held(job) if row is not None]

    def _held(self, job: Job) -> list[dict[str, Any] | None]:
        rows = job.rows({direction: {} for direction in DIRECTIONS})
        return [self.files.get(job.file, {}).get(key(row)) for row in rows]

    def add(self, job: Job, rows: list[dict[str, Any]]) -> None:
        """Keep a job's results."""
        held = self.files.setdefault(job.file, {})
        held |= {key(row): row for row in rows}
        order = _order()
        known_first = sorted(held, key=lambda key: order.get(key, len(order)))
        text = "".join(json.dumps(held[key], sort_keys=True) + "\n" for key in known_first)
        cache.write(self.folder / job.file, text)


@lru_cache
def _order() -> dict[tuple[str, ...], int]:
    """The place of each row that is committed; others follow, in the order in which they came."""
    keys = (
        (cell.case.name, cell.layout, cell.dtype, direction, library)
        for cell in cells_of("model", "H100")
        for direction in DIRECTIONS
        for library in (LIBRARY, *LIBRARIES)
    )
    return {key: place for place, key in enumerate(keys)}


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
        click.echo(f"{done}/{len(wanted)} {time.monotonic() - began:.0f} s  {job.name}  {why}", err=True)
    return failures


@click.command()
@click.option("--rivals", "others", is_flag=True, help="Measure the other libraries that are installed, too.")
@click.option("--select", default="", metavar="NAME", help="Only cases whose name contains this.")
@click.option("--instrument", default="", type=click.Choice(["", *INSTRUMENTS]), help="Only this one.")
@click.option("--fresh", is_flag=True, help="Measure what is there already, too.")
@click.option("--jobs", "processes", default=os.cpu_count() or 1, help="Processes.  [default: one a core]")
@click.option("--render", "only_render", is_flag=True, help="Measure nothing: render what is there.")
def command(others: bool, select: str, instrument: str, fresh: bool, processes: int, only_render: bool) -> None:
    """Measure every cell that needs no GPU, keep the figures in perf/results, and render the tables of the docs.

    Only in a checkout of the project. What is there already is kept if it was measured with the same versions, plans,
    kernels and instruments, so a run that was stopped goes on where it was. A cell that fails says why in place of its
    figures, and is tried again next time.

    \b
    Examples:
      python -m normtriton.perf results
      python -m normtriton.perf results --rivals --instrument model
      python -m normtriton.perf results --render
    """  # noqa: D301  \b is click's mark of a paragraph to be left as it is
    if not all(page.exists() for page in render.PAGES):
        raise Refusal(f"results are kept in a checkout of the project, which {render.PAGES[0].parent} is not")
    failures = 0
    if not only_render:
        store = Store(render.RESULTS)
        every = list(jobs(select, others, instrument))
        wanted = every if fresh else [job for job in every if not store.has(job)]
        click.echo(f"{len(every) - len(wanted)} of {len(every)} cells are measured already", err=True)
        failures = update(store, wanted, processes)
    for file, text in render.rendered().items():
        file.write_text(text)
    if failures:
        raise Refusal(f"{failures} cells failed; their rows say why")
