"""The command ``autotune``: measure what else the planner could choose, and keep what is faster in a tuned table.

Without a GPU a model predicts the times instead (`normtriton.perf.time.predict`); such a table stands apart and says
so.

``python -m normtriton.perf autotune --help`` says how; `normtriton.tuned` what such a table is.
"""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click
import torch
import triton

from normtriton import __version__
from normtriton.explain import backward_direction, forward_direction
from normtriton.planning.plan import UNTUNED, Device, Subject, Tuning, Tunings
from normtriton.planning.schedule import candidates
from normtriton.runtime import clusters, launch, tuned

from ..cases import oracle
from ..cases.shapes import DIRECTIONS, DTYPES, LAYOUTS, Case, Cell, cells, make
from ..cli import Lines, Refusal, interruptible, json_option, names_option, progress, shapes_option, show, writing
from ..show.rows import LIBRARY
from ..time import gpu, predict
from ..time.providers import by_name
from .bench import FLOATING, operands
from .jobs import Job, instrument_version, measured

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from normtriton.planning.schedule import Launch, Schedule

    from ..show.rows import Row

#: What rows are told apart by, besides what is measured; a row of another value is measured anew.
VERSIONS = ("instrument", "machine", "sms", "clusters", "torch", "triton", "kernels", "model")
#: The instrument of rows whose times were predicted, and what such a row has beside its name.
PREDICTED = "autotune-predicted"
FIGURES = ("us", "us_alone", "error")


class Task(NamedTuple):
    """One direction of one cell, and the plans to be measured of it.

    Attributes:
        cell: which norm.
        direction: "forward" or "backward".
        device: what it is planned for, without a table.
        plans: the launches of each candidate, the planner's own first.
        subject: what a tuning of it is for.
    """

    cell: Cell
    direction: str
    device: Device
    plans: dict[Tuning, tuple[Launch, ...]]
    subject: Subject

    @classmethod
    def of(cls, cell: Cell, direction: str, device: Device) -> Task:
        """Plan one."""
        found = candidates(partial(_schedule, cell, direction), device)
        subject = found[UNTUNED].subject
        assert subject is not None, cell  # no layout here has the batch contiguous
        return cls(cell, direction, device, {tuning: made.launches for tuning, made in found.items()}, subject)

    def planned(self, tuning: Tuning) -> tuple[Launch, ...]:
        """The launches of a tuning, which may be another task's candidate."""
        return self.plans.get(tuning) or _schedule(self.cell, self.direction, with_tuning(self.device, tuning)).launches

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.cell.case.name} {self.cell.layout} {self.cell.dtype} {self.direction}"

    def row(self, tuning: Tuning) -> Row:
        """What is measured, as rows say it."""
        case, layout, dtype = self.cell
        named = {"case": case.name, "norm": case.norm, "shape": list(case.shape), "groups": case.groups}
        named |= {"layout": layout, "dtype": dtype, "direction": self.direction, "tuning": tuning.chosen}
        return {"library": LIBRARY, "subject": list(self.subject), **named}


def with_tuning(device: Device, tuning: Tuning) -> Device:
    """The device with a table that has this tuning for everything."""
    return device._replace(tuned=Tunings({}, tuning))


def _schedule(cell: Cell, direction: str, device: Device) -> Schedule:
    call, x, weight, bias = make(cell.case, *cell.options)
    planned = forward_direction if direction == "forward" else backward_direction
    return planned(call, x, weight, bias, device).schedule


class Given:
    """A cell's tensors on a GPU, and what float64 makes of them.

    Attributes:
        case: which norm.
        tensors: random ones.
        running: the running statistics among them, as the kernels take them.
        want: all results in float64.
        stats: mean and rstd, for the backward pass.
    """

    def __init__(self, cell: Cell, where: torch.device, device: Device) -> None:
        """Make them; the statistics by the planner's own choice for a device."""
        self.case, self.tensors = cell.case, operands(cell, where)
        self.problem = make(cell.case, *cell.options)[0].problem
        self.eps = oracle.EPS
        self.want = oracle.expected(partial(by_name, oracle.Textbook, cell.case), self.tensors)
        mean, variance = self.tensors.running
        self.running = None if mean is None or variance is None else (mean, variance, 1, 1, (), 0.1)
        self.stats = self.forward(device)[1:]

    def forward(self, device: Device) -> tuple[Any, ...]:
        """(y, mean, rstd), as planned for a device."""
        x, weight, bias = self.tensors[:3]
        return launch.forward(self.problem, x, weight, bias, self.eps, self.running, False, device=device)

    def backward(self, device: Device) -> tuple[Any, ...]:
        """(dx, dweight, dbias), as planned for a device."""
        x, weight, bias, dy = self.tensors[:4]
        wants = (True, None if weight is None else weight.dtype, None if bias is None else bias.dtype)
        mean, rstd = self.stats
        return launch.backward(self.problem, dy, x, weight, mean, rstd, None, self.eps, wants, device)

    def differences(self, direction: str, device: Device) -> list[oracle.Difference]:
        """What a plan gets wrong."""
        if direction == "backward":
            got = dict(zip(("dx", "dweight", "dbias"), self.backward(device), strict=True))
        else:
            mean, variance = self.tensors.running
            if mean is not None and variance is not None:  # as they were before any other run
                mean.zero_()
                variance.fill_(1.0)
            got = {"y": self.forward(device)[0], "running mean": mean, "running variance": variance}
        want = {name: right for name, right in self.want.items() if got.get(name) is not None}
        return oracle.differences(got, want, self.tensors)


def measure(given: Given, task: Task, tuning: Tuning, where: torch.device) -> dict[str, Any]:
    """Check a candidate, then time it: its figures, or what is wrong with it."""
    device = with_tuning(task.device, tuning)
    if wrong := given.differences(task.direction, device):
        return {"error": "; ".join(map(str, wrong))}
    if given.tensors.x.get_device() in clusters.refused and any(step.plan.ctas > 1 for step in task.plans[tuning]):
        return {"error": "the device refused its cluster"}
    run = partial(given.forward if task.direction == "forward" else given.backward, device)
    return gpu.time(run, where)._asdict()


def failure(error: BaseException) -> dict[str, Any]:
    """What is kept of a candidate that raised."""
    return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}


def still_works(where: torch.device) -> bool:
    """Whether a device can be used; after an invalid access nothing works in the process any more."""
    try:
        torch.zeros(1, device=where).item()
    except Exception:  # noqa: BLE001  torch's errors are of several types
        return False
    return True


class Sweep:
    """Rows by what they are of, as they are measured.

    Attributes:
        lines: the rows' file.
        facts: of the machine and the versions, which every row says.
    """

    def __init__(self, lines: Lines, facts: dict[str, Any], fresh: bool) -> None:
        """Take up what is there of these versions, or begin afresh. What ran out of memory is tried again."""
        self.lines, self.facts = lines, facts
        self.found: dict[str, Row] = {}
        for row in () if fresh else lines.rows:
            same = all(row.get(name) == facts.get(name) for name in VERSIONS)
            if same and not row.get("error", "").startswith("OutOfMemory"):
                self.found[_key(row)] = row

    def has(self, task: Task, tuning: Tuning) -> Row | None:
        """A candidate's row."""
        return self.found.get(_key(task.row(tuning)))

    def add(self, task: Task, tuning: Tuning, figures: dict[str, Any]) -> None:
        """Keep a candidate's figures."""
        row = {**self.facts, **task.row(tuning), **figures}
        self.found[_key(row)] = row
        self.lines.add(row)

    def run(self, tasks: Sequence[Task], where: torch.device, done: Callable[[str], None]) -> None:
        """Measure what is not there.

        Raises:
            Refusal: the device does not work any more.
        """
        given: tuple[Cell | None, Given | None] = None, None
        for task in tasks:
            for tuning in task.plans:
                if self.has(task, tuning):
                    continue
                try:
                    if given[0] != task.cell:
                        given = None, None  # its memory comes first
                        given = task.cell, Given(task.cell, where, task.device)
                    assert given[1] is not None
                    figures = measure(given[1], task, tuning, where)
                except Exception as error:  # noqa: BLE001  whatever it is, the other candidates go on
                    figures = failure(error)
                self.add(task, tuning, figures)
                if "error" in figures:
                    torch.cuda.empty_cache()
                    if not still_works(where):
                        raise Refusal(
                            f"{where} does not work any more after {task.name}, {tuning}: {figures['error']}. "
                            f"The same command goes on with the next one"
                        )
                done(task.name)

    def predict(self, tasks: Sequence[Task], processes: int, done: Callable[[str], None]) -> None:
        """Predict what is not there. Nothing is run, so that no result is compared."""
        todo = {
            Job("model", self.facts["machine"], LIBRARY, task.cell, (task.direction,), tuning): (task, tuning)
            for task in tasks
            for tuning in task.plans
            if not self.has(task, tuning)
        }
        for job, (row,) in measured(list(todo), processes):
            task, tuning = todo[job]
            self.add(task, tuning, {name: row[name] for name in FIGURES if name in row})
            done(task.name)

    @property
    def rule(self) -> Rule:
        """What a choice is made by."""
        return BY_MODEL if self.facts["instrument"] == PREDICTED else BY_CLOCK

    def earlier(self, tasks: Sequence[Task]) -> list[Task]:
        """What was measured before, whole, and shares an entry with these: other batches of the same norms."""
        subjects = {json.dumps(task.subject) for task in tasks}
        asked = {(task.cell, task.direction) for task in tasks}
        there = dict.fromkeys(
            (Cell(Case.named(row["case"]), row["layout"], row["dtype"]), row["direction"])
            for row in self.found.values()
            if json.dumps(row.get("subject")) in subjects
        )
        found = [Task.of(*pair, tasks[0].device) for pair in there if pair not in asked]
        return [task for task in found if all(self.has(task, tuning) for tuning in task.plans)]


def _key(row: Row) -> str:
    names = ("case", "layout", "dtype", "direction", "tuning")
    return json.dumps([row.get(name) for name in names], sort_keys=True)


def total(rows: Iterable[Row], name: str = "us") -> float:
    """The µs of some shapes together."""
    return float(sum(row[name] for row in rows))


class Rule(NamedTuple):
    """What a choice is made by.

    Attributes:
        faster: whether rows of some shapes are faster together than the planner's own choice, beyond the times' error.
        slower: whether a row is slower than the planner's own.
        error: of the times, in words.
    """

    faster: Callable[[list[Row], list[Row]], bool]
    slower: Callable[[Row, Row], bool]
    error: str


#: Measured times: the ranges of quantiles do not overlap.
BY_CLOCK = Rule(
    lambda rows, own: total(rows, "us_high") < total(own, "us_low"),
    lambda row, own: row["us_low"] > own["us_high"],
    "the noise",
)
#: Predicted times: by `predict.MARGIN` if multiprocessors share the bus, and not slower if each has its share alone.
#: The same launches have the same times, so that there is no noise.
BY_MODEL = Rule(
    lambda rows, own: (
        total(rows) < total(own) * (1 - predict.MARGIN[own[0]["direction"]])
        and total(rows, "us_alone") <= total(own, "us_alone")
    ),
    lambda row, own: row["us"] > own["us"] or row["us_alone"] > own["us_alone"],
    "the model's error",
)


class Choice(NamedTuple):
    """What is chosen for one subject, and why.

    Attributes:
        tuning: None where it could not be decided: the planner's own choice has no time.
        why: in words.
        rows: of each task the planner's row and the chosen tuning's, by the task's name.
    """

    tuning: Tuning | None
    why: str
    rows: dict[str, tuple[Row, Row]]


def choose(tasks: Sequence[Task], sweep: Sweep) -> Choice:
    """The tuning of the smallest total over all shapes that share a subject.

    It must be faster than the planner's own choice in total, and slower for none of the shapes, by the sweep's rule.
    """
    rule = sweep.rule
    timed: list[dict[tuple[Launch, ...], Row]] = []
    for task in tasks:
        known = {plan: sweep.has(task, tuning) for tuning, plan in task.plans.items()}
        timed.append({plan: row for plan, row in known.items() if row is not None and "us" in row})

    def rows_of(tuning: Tuning) -> list[Row] | None:
        rows = [there.get(task.planned(tuning)) for task, there in zip(tasks, timed, strict=True)]
        return None if None in rows else [row for row in rows if row]

    own = rows_of(UNTUNED)
    if own is None:
        return Choice(None, "the planner's own choice has no time", {})
    best, why = own, f"nothing else is faster by more than {rule.error}"
    chosen = UNTUNED
    for tuning in dict.fromkeys(tuning for task in tasks for tuning in task.plans):
        rows = rows_of(tuning)
        if rows is None or not rule.faster(rows, own) or total(rows) >= total(best):
            continue
        slower = [r["case"] for r, b in zip(rows, own, strict=True) if rule.slower(r, b)]
        if slower:
            if chosen == UNTUNED:
                why = f"{tuning} is faster in total, but slower for {', '.join(slower)}"
            continue
        best, chosen = rows, tuning
        why = f"faster by more than {rule.error}"
        why += f", in total of {len(tasks)} shapes that share an entry" if len(tasks) > 1 else ""
    names = [task.name for task in tasks]
    return Choice(chosen, why, dict(zip(names, zip(own, best, strict=True), strict=True)))


def chosen(tasks: Sequence[Task], sweep: Sweep) -> dict[Subject, Choice]:
    """A choice for each subject."""
    sharing: dict[Subject, list[Task]] = {}
    for task in tasks:
        sharing.setdefault(task.subject, []).append(task)
    return {subject: choose(some, sweep) for subject, some in sharing.items()}


def keep(table: Path, device: str, sms: int, choices: dict[Subject, Choice], model: str | None) -> str:
    """Write what was chosen beside the entries that are there; what became of those, in words.

    Raises:
        Refusal: the file is there and no table, or cannot be written.
    """
    entries: dict[Subject, tuple[Tuning, Any] | None] = {}
    for subject, choice in choices.items():
        if choice.tuning is None:
            continue
        entries[subject] = None
        if choice.tuning != UNTUNED:
            own, best = ([pair[i] for pair in choice.rows.values()] for i in range(2))
            times: dict[str, Any] = {"planner_us": total(own), "us": total(best), "cases": [*choice.rows]}
            if model is not None:
                alone = {"planner_us_alone": total(own, "us_alone"), "us_alone": total(best, "us_alone")}
                times |= {**alone, "model": model}
            entries[subject] = choice.tuning, times
    by = None if model is None else f"by version {model} of the model, not measured"
    try:
        with writing(table, "--table"):
            count, gone = tuned.write(table, device, sms, entries, by)
    except tuned.Refused as reason:
        raise Refusal(f"{table} {reason}: remove it, or name another with --table") from reason
    return f"{table} has {count} entries for {device}.{gone and f' What it had {gone}.'}"


def summary(tasks: Sequence[Task], choices: dict[Subject, Choice], sweep: Sweep) -> list[Row]:
    """What tuning gains, a row a task."""
    rows = []
    for task in tasks:
        choice = choices[task.subject]
        row = task.row(choice.tuning or UNTUNED) | {name: sweep.facts[name] for name in VERSIONS if name in sweep.facts}
        row |= {"why": choice.why, "candidates": len(task.plans)}
        row["failed"] = sum("error" in (sweep.has(task, tuning) or {}) for tuning in task.plans)
        if task.name in choice.rows:
            own, best = choice.rows[task.name]
            row |= {"planner_us": own["us"], "us": best["us"], "gain": own["us"] / best["us"]}
        rows.append(row)
    return rows


def _table(rows: Sequence[Row], machine: str, predicted: bool) -> None:
    note = "A cold L2. Failed: candidates that say why in their rows."
    if predicted:
        note = f"Predicted by a model, not measured: candidates were compiled, and not run.\n{note}"
    heads = ("case", "layout", "dtype", "direction", "planner, µs", "tuned, µs", "gain", "tuning", "why", "failed")
    show(
        f"What tuning gains over the planner's own choice, {machine}",
        heads,
        [
            (
                *(row[name] for name in ("case", "layout", "dtype", "direction")),
                *([f"{row['planner_us']:.1f}", f"{row['us']:.1f}", f"{row['gain']:.2f} x"] if "us" in row else "---"),
                Tuning.of(row["tuning"]),
                row["why"],
                f"{row['failed']} of {row['candidates']}",
            )
            for row in rows
        ],
        note,
    )


class Aim(NamedTuple):
    """What is tuned for, and where times come from.

    Attributes:
        name: the device as tables name it.
        device: what is planned for.
        facts: what every row says.
        run: gives a sweep what it lacks of some tasks.
        model: the version of the model that predicts; None where times are measured.
    """

    name: str
    device: Device
    facts: dict[str, Any]
    run: Callable[[Sweep, Sequence[Task], Callable[[str], None]], None]
    model: str | None = None


def measuring() -> Aim:
    """Tune for the GPU that is here, by its clock."""
    where = gpu.find()
    facts = gpu.facts(where) | {"instrument": "autotune", "kernels": tuned.kernels_version()}

    def run(sweep: Sweep, tasks: Sequence[Task], done: Callable[[str], None]) -> None:
        with gpu.working(where):
            sweep.run(tasks, where, done)

    index = torch.empty(0, device=where).get_device()
    return Aim(tuned.device_name(index), Device(facts["sms"], facts["clusters"] == "used"), facts, run)


def predicting(name: str, processes: int) -> Aim:
    """Tune for a GPU of a kind, by a model of it."""
    one = predict.GPUS[name]
    device, model = predict.device_of(one), instrument_version("model")
    facts = {"instrument": PREDICTED, "machine": name, "sms": one.sms, "model": model, "normtriton": __version__}
    facts |= {"clusters": "used" if device.clusters else "not supported", "torch": torch.__version__}
    facts |= {"triton": triton.__version__, "kernels": tuned.kernels_version()}

    def run(sweep: Sweep, tasks: Sequence[Task], done: Callable[[str], None]) -> None:
        sweep.predict(tasks, processes, done)

    return Aim(f"{name}, {one.target}", device, facts, run, model)


def table_of(named: Path | None, predicted: bool) -> Path:
    """The table to write: the one that is named, or that is read.

    Raises:
        Refusal: predicted times for the table of measured ones, or the other way round.
    """
    setting = tuned.setting()
    try:
        default = tuned.default_file()
    except FileNotFoundError:
        default = None
    table = named or (default if setting in ("", "off") else Path(setting))
    if table is None:
        raise Refusal("the user has no home folder to keep a table in: name one with --table")
    if predicted and default and table.resolve() == default.resolve():
        raise Refusal(f"{table} is for measured times: name another table for predicted ones with --table")
    try:
        tuned.apart(table, predicted)
    except tuned.Refused as reason:
        raise Refusal(f"{table} {reason}: remove it, or name another with --table") from reason
    return table


@click.command()
@shapes_option("reports")
@names_option("--dtypes", "dtypes", FLOATING, ",".join(DTYPES), "Dtypes of x")
@names_option("--layouts", "layouts", LAYOUTS, ",".join(LAYOUTS), "Layouts of x, where it has 4 or 5 dimensions")
@names_option("--directions", "directions", DIRECTIONS, ",".join(DIRECTIONS), "Passes")
@click.option(
    "--table",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The tuned table; by default the one that normtriton reads, in the user's cache folder.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Keep the rows there, as JSON lines; by default in autotune.jsonl beside the table.",
)
@click.option("--fresh", is_flag=True, help="Measure what is there already, too.")
@click.option(
    "--predict",
    "model",
    type=click.Choice(list(predict.GPUS)),
    help="Rank by times that a model of this GPU predicts, without a GPU; needs --table. Candidates are not run.",
)
@click.option(
    "--jobs", "processes", type=click.IntRange(1), default=os.cpu_count() or 1, help="Processes that predict."
)
@json_option
def command(
    cases: tuple[Case, ...],
    dtypes: tuple[str, ...],
    layouts: tuple[str, ...],
    directions: tuple[str, ...],
    table: Path | None,
    out: Path | None,
    fresh: bool,
    model: str | None,
    processes: int,
    as_json: bool,
) -> None:
    """Measure what else the planner could choose on this GPU, and keep what is faster.

    Every candidate is compared with PyTorch's result in float64 before it is timed. What is faster than the planner's
    own choice by more than the noise (the ranges between the 20th and the 80th percentile do not overlap) becomes an
    entry of the tuned table, from which normtriton plans from then on; NORMTRITON_TUNED=off leaves the table aside. An
    entry is for a group's size, layout and dtype, not for a batch, so that shapes may share one: then their times are
    added up, with those of earlier runs, and none of them may become slower. Entries for other groups and other devices
    stay.

    A run that is stopped goes on where it was. A candidate that fails is noted, and the others are measured.

    With --predict a model of a GPU predicts the times, and no GPU is needed. Nothing is measured, and no candidate is
    run or compared with float64. An entry must be predicted to be faster by more than the model's error (4 % forward,
    15 % backward) if multiprocessors share the memory bus, and not slower if each has its share of it alone. Its table
    has no measured times, and is used only where NORMTRITON_TUNED names it, on every GPU of that kind.

    \b
    Examples:
      python -m normtriton.perf autotune --shapes llm --dtypes bfloat16
      python -m normtriton.perf autotune --shapes layer-8192x4096,layer-64x4096 --directions backward
      python -m normtriton.perf autotune --shapes unet --layouts channels_last --table tuned.json --json
      python -m normtriton.perf autotune --shapes llm --predict H100 --table predicted.json
    """  # noqa: D301  \b is click's mark of a paragraph to be left as it is
    aim = measuring() if model is None else predicting(model, processes)
    table = table_of(table, aim.model is not None)
    rows_file = table.with_name(f"{aim.facts['instrument']}.jsonl") if out is None else out
    sweep = Sweep(Lines(rows_file, resume=True), aim.facts, fresh)

    def kept() -> str:
        return f"{len(sweep.found)} rows are kept: the same command goes on from there. {table} is as it was"

    with interruptible(kept):
        pairs = [(cell, direction) for cell in cells(cases, layouts, dtypes) for direction in directions]
        if not pairs:
            raise Refusal("nothing to measure: no such shape has such a layout")
        tasks = []
        with progress("planning", len(pairs)) as done:
            for cell, direction in pairs:
                tasks.append(Task.of(cell, direction, aim.device))
                done(tasks[-1].name)
        missing = sum(sweep.has(task, tuning) is None for task in tasks for tuning in task.plans)
        with progress("autotune", missing) as done:
            aim.run(sweep, tasks, done)
    choices = chosen([*tasks, *sweep.earlier(tasks)], sweep)
    note = keep(table, aim.name, aim.device.sms, choices, aim.model)
    rows = summary(tasks, choices, sweep)
    if as_json:
        for row in rows:
            click.echo(json.dumps(row, sort_keys=True))
    else:
        _table(rows, aim.facts["machine"], aim.model is not None)
    click.echo(note, err=True)
