"""Measure every cell that needs no GPU, keep the figures in perf/results, and render the tables of README.md and docs.

    python -m normtriton.perf.results [--rivals] [--select NAME] [--fresh] [--jobs N]
    python -m normtriton.perf.results --render

A cell is a norm of `normtriton.perf.shapes` in a layout and a dtype. It is measured by two instruments: "traffic"
simulates what its launches move on an H100 and an A100 (`normtriton.perf.traffic`); "code" compiles them for sm_80,
sm_90, sm_100 and gfx942, each planned for a device of that kind, and reads the code (`normtriton.perf.codegen`).
``--rivals`` does the same, for an H100 and sm_90, to the other libraries that are installed (`normtriton.perf.rivals`).

Results are JSON lines, one a cell and direction, in a file for each instrument and machine. What is there already is
kept if it was measured with the same versions, plans, kernels and instruments; so a run that was stopped goes on where
it was, and ``--fresh`` measures anew. A cell that fails says why in place of its figures, and is tried again next time.
"""

from __future__ import annotations

import argparse
import ast
import json
import multiprocessing
import os
import sys
import time
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import triton

from normtriton import kernels, launch  # type: ignore[attr-defined]  # kernels: not for mypy, see pyproject.toml

from . import render, rivals
from .codegen import PLANNED_FOR, compile_launch, facts
from .l2 import MACHINES
from .shapes import OFFERED, Cell, cells, planned
from .traffic import fraction, measure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

#: Instruments and machines of other libraries and of ours; first what the README shows.
THEIRS = ("code", "sm_90"), ("traffic", "H100")
OURS = (*THEIRS, ("code", "sm_80"), ("code", "sm_100"), ("code", "gfx942"), ("traffic", "A100"))

_TORCH = torch.__version__.split("+")[0]  # how it was built does not matter here


class Job(NamedTuple):
    """One cell to be measured by one instrument, forward and backward.

    Attributes:
        instrument: "traffic" or "code".
        machine: the GPU or the target.
        library: whose norm.
        cell: which.
    """

    instrument: str
    machine: str
    library: str
    cell: Cell

    @property
    def file(self) -> str:
        """Where its results are kept."""
        return f"{self.instrument}-{self.machine}{'' if self.library == render.LIBRARY else '-rivals'}.jsonl"

    @property
    def kind(self) -> str:
        """What its process must be made ready for: other libraries' code is imported in two ways."""
        return "" if self.library == render.LIBRARY else self.instrument

    @property
    def name(self) -> str:
        """For people."""
        case, layout, dtype = self.cell
        return f"{self.instrument} {self.machine} {self.library} {case.name} {layout} {dtype}"

    def rows(self, figures: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
        """Its results as they are kept: which cell, of what, and the figures of either direction."""
        case, layout, dtype = self.cell
        shared = {"case": case.name, "norm": case.norm, "shape": case.shape, "groups": case.groups, "layout": layout}
        shared |= {"dtype": dtype, "library": self.library, "instrument": self.instrument, "machine": self.machine}
        shared |= {"triton": triton.__version__, "torch": _TORCH, "made_from": made_from(self)}
        if self.library != render.LIBRARY:
            shared["version"] = rivals.version(self.library)
        return [{**shared, "direction": direction, **found} for direction, found in figures.items()]


def jobs(select: str, others: bool) -> Iterator[Job]:
    """All that there is to measure, of cases whose name contains ``select``."""
    installed = [library for library in OFFERED if others and rivals.version(library) != rivals.MISSING]
    for library in (render.LIBRARY, *installed):
        for instrument, machine in OURS if library == render.LIBRARY else THEIRS:
            for cell in cells():
                if select in cell.case.name and cell.case.norm in OFFERED.get(library, cell.case.norm):
                    yield Job(instrument, machine, library, cell)


@lru_cache
def _source(*files: Path) -> str:
    """What Python files do: without layout, comments and docstrings."""
    trees = [ast.parse(file.read_text()) for file in files]
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(body := getattr(node, "body", None), list):
            body[:] = [n for n in body if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))]
    return "\n".join(map(ast.dump, trees))


@lru_cache(maxsize=4096)
def made_from(job: Job) -> str:
    """A short name for all that a cell's figures depend on: versions, plans, kernels and instruments."""
    here = Path(__file__).parent
    names = ("addresses", "l2", "traffic") if job.instrument == "traffic" else ("codegen",)
    parts = [triton.__version__, _TORCH, _source(*(here / f"{name}.py" for name in names))]
    if job.library != render.LIBRARY:
        parts += [rivals.version(job.library), _source(here / "rivals.py")]
    else:
        device = MACHINES[job.machine].device if job.instrument == "traffic" else PLANNED_FOR[job.machine][1]
        launches = planned(job.cell.case, *job.cell.options, device).launches
        own = sorted(Path(kernels.__file__).parent.glob("*.py"))
        parts += [_source(*own, Path(launch.__file__)), repr([r.launch for steps in launches.values() for r in steps])]
    return sha256("\n".join(parts).encode()).hexdigest()[:16]


def figures(job: Job) -> dict[str, dict[str, Any]]:
    """Measure a cell: {"forward": ..., "backward": ...}."""
    case, dtype, layout = job.cell.case, *job.cell.options
    if job.library != render.LIBRARY:
        return rivals.figures(job.library, job.instrument, job.machine, job.cell)
    if job.instrument == "traffic":
        machine = MACHINES[job.machine]
        small, by = fraction(case, dtype, layout, machine)
        return {
            direction: {"strategy": strategy, "part": by, **traffic.figures()}
            for direction, (strategy, traffic) in measure(small, dtype, layout, machine.scaled(by)).items()
        }
    plan = planned(case, dtype, layout, PLANNED_FOR[job.machine][1])
    found = {}
    for direction, steps in plan.launches.items():
        main = steps[0].launch
        found[direction] = {
            "strategy": plan.strategies[direction],
            "blocks": main.grid[0] * main.grid[1] * main.plan.ctas,
            "kernels": [
                facts(compile_launch(step, job.machine), step.launch.kernel, step.args, plan.x.numel())
                for step in steps
            ],
        }
    return found


def work(job: Job) -> list[dict[str, Any]]:
    """Measure a cell, or say why it could not be."""
    try:
        return job.rows(figures(job))
    except Exception as error:  # noqa: BLE001  whatever it is, the other cells go on
        return failed(job, error)


def failed(job: Job, error: BaseException) -> list[dict[str, Any]]:
    """What is kept of a cell that could not be measured."""
    while error.__cause__ is not None:
        error = error.__cause__
    why = f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
    return [row | {"made_from": ""} for row in job.rows({d: {"error": why} for d in ("forward", "backward")})]


def prepare(kind: str) -> None:
    """Get a worker ready for jobs of one kind."""
    torch.set_num_threads(1)
    if kind:
        rivals.prepare(addresses=kind == "traffic")


def measured(todo: Sequence[Job], processes: int) -> Iterator[tuple[Job, list[dict[str, Any]]]]:
    """The results of jobs of one kind as they come, measured side by side in processes that compile.

    A process that dies (of memory, say) takes the others' jobs with it; those are done again, each on its own.
    """
    start = multiprocessing.get_context("spawn")
    os.environ["TRITON_INTERPRET"] = "0"  # addresses are found either way
    left = dict.fromkeys(todo)

    def pool(count: int) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(count, mp_context=start, initializer=prepare, initargs=(todo[0].kind,))

    with pool(min(processes, len(todo))) as workers:
        waiting: dict[Future[list[dict[str, Any]]], Job] = {workers.submit(work, job): job for job in todo}
        try:
            for done in as_completed(waiting):
                try:
                    rows = done.result()
                except BrokenProcessPool:
                    continue
                del left[waiting[done]]
                yield waiting[done], rows
        except BaseException:
            workers.shutdown(wait=False, cancel_futures=True)
            raise
    for job in left:
        with pool(1) as alone:
            try:
                yield job, alone.submit(work, job).result()
            except BrokenProcessPool as error:
                yield job, failed(job, error)


class Store:
    """The files of results: rows by file and by what they are of. Written whole after each job, in the cells' order."""

    def __init__(self, folder: Path) -> None:
        """Read what is there."""
        self.folder = folder
        self.files = render.load(folder)

    def has(self, job: Job) -> bool:
        """Whether a job's results are there, and are still those that it would give."""
        rows = [self.files.get(job.file, {}).get(render.key(row)) for row in job.rows({"forward": {}, "backward": {}})]
        return all(row is not None and row["made_from"] == made_from(job) for row in rows)

    def add(self, job: Job, rows: list[dict[str, Any]]) -> None:
        """Keep a job's results."""
        held = self.files.setdefault(job.file, {})
        held |= {render.key(row): row for row in rows}
        order = [
            (cell.case.name, cell.layout, cell.dtype, direction, library)
            for cell in cells()
            for direction in ("forward", "backward")
            for library in (render.LIBRARY, *OFFERED)
        ]
        text = "".join(json.dumps(held[key], sort_keys=True) + "\n" for key in order if key in held)
        temporary = self.folder / f"{job.file}.{os.getpid()}"
        temporary.write_text(text)
        temporary.replace(self.folder / job.file)


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
    failures = done = 0
    began = time.monotonic()
    kinds: dict[str, list[Job]] = {}
    for job in wanted:
        kinds.setdefault(job.kind, []).append(job)
    for todo in kinds.values():
        for job, rows in run(todo, processes):
            store.add(job, rows)
            done += 1
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
    parser.add_argument("--fresh", action="store_true", help="measure what is there already, too")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one a core)")
    parser.add_argument("--render", action="store_true", help="measure nothing: render what is there")
    chosen = parser.parse_args()
    failures = 0
    if not all(page.exists() for page in render.PAGES):
        sys.exit(f"results are kept in a checkout of the project, which {render.PAGES[0].parent} is not")
    if not chosen.render:
        store = Store(render.RESULTS)
        every = list(jobs(chosen.select, chosen.rivals))
        wanted = every if chosen.fresh else [job for job in every if not store.has(job)]
        say(f"{len(every) - len(wanted)} of {len(every)} cells are measured already")
        failures = update(store, wanted, chosen.jobs)
    for file, text in render.rendered().items():
        file.write_text(text)
    if failures:
        sys.exit(f"{failures} cells failed; their rows say why")


if __name__ == "__main__":
    main()
