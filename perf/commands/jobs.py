"""One cell measured by one instrument, and many of them side by side.

Three instruments need no GPU. "traffic" simulates what the launches of a cell move (`normtriton.perf.count.traffic`);
"code" compiles them for a target, planned for a device of that kind, and reads the code
(`normtriton.perf.count.codegen`); "model" predicts their time by running that code on a model of a GPU
(`normtriton.perf.time.predict`). Each measures our norms or another library's (`normtriton.perf.count.rivals`). A cell
that fails says why in place of its figures.
"""

from __future__ import annotations

import ast
import multiprocessing
import os
import signal
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import triton

from normtriton import kernels  # type: ignore[attr-defined]  # not for mypy, see pyproject.toml
from normtriton.planning.plan import UNTUNED, Tuning, Tunings
from normtriton.runtime import compiling, launch

from ..cases.shapes import DIRECTIONS, Cell
from ..count import rivals
from ..count.codegen import compile_launch, facts, planned_for
from ..count.l2 import MACHINES
from ..count.launches import planned
from ..count.traffic import fraction, measure
from ..show.rows import LIBRARY
from ..time import plain, predict, timed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from normtriton.planning.plan import Device

_TORCH = torch.__version__.split("+")[0]  # how it was built does not matter here


#: The files of `normtriton.perf` that an instrument's figures depend on.
SOURCES = {
    "traffic": ("count/addresses.py", "count/l2.py", "count/traffic.py"),
    "code": ("count/codegen.py", "count/occupancy.py"),
    "model": (
        *("count/codegen.py", "count/occupancy.py", "time/plain.py", "time/predict.py"),
        *(f"emulator/{name}.py" for name in ("gpus", "liveness", "sass", "timer")),
        *("emulator/cpp/model.cpp", "emulator/cpp/model/*.hpp"),
    ),
}


class Job(NamedTuple):
    """One cell to be measured by one instrument.

    Attributes:
        instrument: "traffic", "code" or "model".
        machine: the GPU or the target.
        library: whose norm.
        cell: which.
        directions: "forward", "backward" or both.
        tuning: what our plans of instrument "model" are made with.
    """

    instrument: str
    machine: str
    library: str
    cell: Cell
    directions: tuple[str, ...] = DIRECTIONS
    tuning: Tuning = UNTUNED

    @property
    def file(self) -> str:
        """Where its results are kept."""
        return f"{self.instrument}-{self.machine}{'' if self.library == LIBRARY else '-rivals'}.jsonl"

    @property
    def kind(self) -> str:
        """What its process must be made ready for: other libraries' code is imported in two ways."""
        return "" if self.library == LIBRARY else self.instrument

    @property
    def name(self) -> str:
        """For people."""
        case, layout, dtype = self.cell
        return f"{self.instrument} {self.machine} {self.library} {case.name} {layout} {dtype}"

    def rows(self, figures: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
        """Its results as they are kept: which cell, of what, and the figures of each direction."""
        case, layout, dtype = self.cell
        shared = {"case": case.name, "norm": case.norm, "shape": case.shape, "groups": case.groups, "layout": layout}
        shared |= {"dtype": dtype, "library": self.library, "instrument": self.instrument, "machine": self.machine}
        shared |= {"triton": triton.__version__, "torch": _TORCH, "made_from": made_from(self)}
        if self.library != LIBRARY:
            shared |= {"version": rivals.version(self.library), "date": f"{datetime.now(UTC):%Y-%m-%d}"}
        return [{**shared, "direction": direction, **figures[direction]} for direction in self.directions]


def device_of(job: Job) -> Device:
    """What a job's plans are made for."""
    if job.instrument == "traffic":
        return MACHINES[job.machine].device
    if job.instrument == "model":
        device = predict.device_of(*predict.MACHINES[job.machine])
        return device if job.tuning == UNTUNED else device._replace(tuned=Tunings({}, job.tuning))
    return planned_for(job.machine)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


@lru_cache
def _source(*files: Path) -> str:
    """What files do: of Python's without layout, comments, docstrings, and where they stand."""
    trees = [ast.parse(file.read_text()) for file in files if file.suffix == ".py"]
    others = [file.read_text() for file in files if file.suffix != ".py"]
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(body := getattr(node, "body", None), list):
            body[:] = [n for n in body if not isinstance(n, ast.Import | ast.ImportFrom) and not _is_text(n)]
    return "\n".join([*map(ast.dump, trees), *others])


@lru_cache
def instrument_version(instrument: str) -> str:
    """A short name for what an instrument does."""
    here = Path(__file__).parents[1]
    sources = [file for pattern in SOURCES[instrument] for file in sorted(here.glob(pattern))]
    return sha256(_source(*sources).encode()).hexdigest()[:16]


@lru_cache(maxsize=4096)
def made_from(job: Job) -> str:
    """A short name for all that a cell's figures depend on: versions, plans, kernels and instruments."""
    here = Path(__file__).parents[1]
    sources = [file for pattern in SOURCES[job.instrument] for file in sorted(here.glob(pattern))]
    parts = [triton.__version__, _TORCH, _source(*sources)]
    if job.library != LIBRARY:
        theirs = ("count/rivals.py", *(("time/timed.py", "time/inductor.py") if job.instrument == "model" else ()))
        parts += [rivals.version(job.library), _source(*(here / name for name in theirs))]
    else:
        launches = planned(job.cell.case, *job.cell.options, device_of(job)).launches
        own = sorted(Path(kernels.__file__).parent.glob("*.py"))
        parts += [
            _source(*own, Path(compiling.__file__), Path(launch.__file__)),
            repr([r.launch for steps in launches.values() for r in steps]),
        ]
    return sha256("\n".join(parts).encode()).hexdigest()[:16]


def figures(job: Job) -> dict[str, dict[str, Any]]:
    """Measure a cell: {"forward": ..., "backward": ...}."""
    case, dtype, layout = job.cell.case, *job.cell.options
    if job.library != LIBRARY and job.instrument == "model":
        times = timed.figures(job.library, predict.MACHINES[job.machine][0], job.cell)
        none = {"error": rivals.FORWARD_ONLY}
        return {d: times[d]._asdict() if d in times else none for d in job.directions}
    if job.library != LIBRARY:
        return rivals.figures(job.library, job.instrument, job.machine, job.cell)  # both, whatever is asked for
    if job.instrument == "traffic":
        machine = MACHINES[job.machine]
        small, by = fraction(case, dtype, layout, machine)
        return {
            direction: {"strategy": strategy, "part": by, **traffic.figures()}
            for direction, (strategy, traffic) in measure(
                small, dtype, layout, machine.scaled(by), job.directions
            ).items()
        }
    plan = planned(case, dtype, layout, device_of(job))
    if job.instrument == "model":
        gpu, _clusters = predict.MACHINES[job.machine]
        return {
            direction: {
                "strategy": plan.strategies[direction],
                "us_plain": predict.rounded(plain.us(gpu, job.cell, direction)),
                **predict.figures(gpu, plan, direction)._asdict(),
            }
            for direction in job.directions
        }
    found = {}
    for direction in job.directions:
        steps = plan.launches[direction]
        main = steps[0].launch
        found[direction] = {
            "strategy": plan.strategies[direction],
            "blocks": main.grid[0] * main.grid[1] * main.plan.ctas,
            "kernels": [
                facts(
                    compile_launch(step, job.machine),
                    step.launch.kernel,
                    job.machine,
                    step.launch.grid,
                    step.args,
                    plan.x.numel(),
                )
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
    return [row | {"made_from": ""} for row in job.rows({direction: {"error": why} for direction in DIRECTIONS})]


def prepare(kind: str) -> None:
    """Get a worker ready for jobs of one kind, and to go without a word when it is interrupted."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    torch.set_num_threads(1)
    if kind:
        rivals.prepare(addresses=kind == "traffic")


def measured(wanted: Sequence[Job], processes: int) -> Iterator[tuple[Job, list[dict[str, Any]]]]:
    """The results of jobs as they come, measured side by side in processes that compile.

    A process that dies (of memory, say) takes the others' jobs with it; those are done again, each on its own.
    """
    kinds: dict[str, list[Job]] = {}
    for job in wanted:
        kinds.setdefault(job.kind, []).append(job)
    for kind, todo in kinds.items():
        left = dict.fromkeys(todo)
        with _pool(kind, min(processes, len(todo))) as workers:
            waiting = _submit(workers, todo)
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
            with _pool(kind, 1) as alone:
                try:
                    yield job, next(iter(_submit(alone, [job]))).result()
                except BrokenProcessPool as error:
                    yield job, failed(job, error)


def _pool(kind: str, count: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(count, mp_context=context, initializer=prepare, initargs=(kind,))


def _submit(workers: ProcessPoolExecutor, todo: Sequence[Job]) -> dict[Future[list[dict[str, Any]]], Job]:
    """Hand out jobs. Processes start here: not under the interpreter, without which addresses are found too."""
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "0"
    try:
        return {workers.submit(work, job): job for job in todo}
    finally:
        del os.environ["TRITON_INTERPRET"]
        if before is not None:
            os.environ["TRITON_INTERPRET"] = before
