"""The command ``selfcheck``: whether the library is right on this machine, and what a bug report needs."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click
import torch

from normtriton.runtime import cache, clusters

from ..cases.checks import Check, of_branches, of_layouts, wrong
from ..cases.shapes import DIRECTIONS, Case, Cell
from ..cases.targets import TARGETS
from ..cli import PROGRAM, Refusal, interruptible, json_option, progress, writing
from ..count.codegen import compile_launch, planned_for, read_code
from ..count.launches import planned
from ..show.rows import LIBRARY
from ..time import gpu
from ..time.providers import installed
from .bench import FLOATING, Machine, measured, why

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..show.rows import Row

#: Real shapes: checked and timed on a GPU, as the machine plans them.
TIMED = (
    Cell(Case("layer", (8192, 4096)), "contiguous", "bfloat16"),
    Cell(Case("rms", (8192, 4096)), "contiguous", "bfloat16"),
    Cell(Case("group", (8, 320, 64, 64), 32), "contiguous", "bfloat16"),
    Cell(Case("group", (8, 320, 64, 64), 32), "channels_last", "bfloat16"),
    Cell(Case("instance", (8, 64, 128, 128)), "contiguous", "float32"),
    Cell(Case("batch", (32, 256, 56, 56)), "channels_last", "bfloat16"),
)
#: Real shapes that are compiled for every target where there is no GPU.
COMPILED = (TIMED[0], TIMED[3], Cell(Case("batch", (32, 2048, 7, 7)), "contiguous", "float32"))
#: The parts that take a process each, and its TRITON_INTERPRET: Triton reads that when it is imported.
PARTS = {"interpreted": "1", "compiled": "0"}


class Outcome(NamedTuple):
    """What was found: nothing if all was right."""

    check: str
    failures: list[str]


def checks(with_clusters: bool) -> list[Check]:
    """Every branch of the plan, then every norm, layout and dtype: each norm in each layout and in each dtype."""
    return [*of_branches(with_clusters), *of_layouts(FLOATING)]


def outcome(check: Check, device: torch.device, times: int = 1) -> Outcome:
    """Run a check; more than once, the bits are compared too."""
    try:
        given = check.operands(device).fresh()
        want = check.wanted(given)
        failures = wrong([check.results(given) for _ in range(times)], want, given)
    except Exception as error:  # noqa: BLE001  whatever it is, it is a finding
        failures = [why(error)]
    return Outcome(check.name, failures)


def compiled(target: str, cell: Cell) -> Outcome:
    """Compile a real shape's kernels for a target that is not there, and look for spilled registers."""
    failures = []
    try:
        device = planned_for(target)
        device = device._replace(clusters=device.clusters and clusters.compiles())
        for direction, steps in planned(cell.case, *cell.options, device, torch.float32).launches.items():
            spilled = ((step.launch.kernel, read_code(compile_launch(step, target)).stack) for step in steps)
            failures += [f"{direction}: {kernel} spills {stack} bytes a thread" for kernel, stack in spilled if stack]
    except Exception as error:  # noqa: BLE001  as above
        failures.append(why(error))
    return Outcome(f"compile {cell.case.name} {cell.layout} {cell.dtype} for {target}", failures)


def part(name: str, select: str) -> Iterator[Outcome]:
    """The outcomes of one of `PARTS`, in a process that is made for it."""
    if name == "interpreted":
        for check in checks(with_clusters=True):
            if select in check.name:
                yield outcome(check, torch.device("cpu"))
        return
    for target in TARGETS:
        for cell in COMPILED:
            if select in f"compile {cell.case.name}":
                yield compiled(target, cell)


def elsewhere(name: str, select: str) -> Iterator[Outcome]:
    """The outcomes of one of `PARTS`, from a process of its own."""
    command = (sys.executable, "-m", PROGRAM, "selfcheck", "--part", name, "--select", select)
    environment = os.environ | {"TRITON_INTERPRET": PARTS[name]}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            yield Outcome(**json.loads(line))
    if process.returncode:
        yield Outcome(f"the {name} checks", [f"their process ended with status {process.returncode}"])


class Report(NamedTuple):
    """What was found.

    Attributes:
        facts: of the machine and the versions.
        missing: why there is no GPU, or nothing.
        environment: the variables that change what the library does.
        outcomes: of the checks that were made.
        times: rows of the benchmark.
        warned: what the library warned of meanwhile.
        complete: whether nothing stopped it.
    """

    facts: dict[str, Any]
    missing: str
    environment: dict[str, str]
    outcomes: list[Outcome]
    times: list[Row]
    warned: list[str]
    complete: bool

    @property
    def failures(self) -> dict[str, list[str]]:
        """What is wrong, by check."""
        found = {outcome.check: outcome.failures for outcome in self.outcomes if outcome.failures}
        for row in self.times:
            if row["library"] == LIBRARY and row.get("error", "out of memory") != "out of memory":
                cell = " ".join(row[key] for key in ("case", "layout", "dtype", "direction"))
                found[f"bench {cell}"] = [row["error"]]
        return found

    @property
    def verdict(self) -> str:
        """In a sentence."""
        where = "without a GPU" if self.missing else f"on {self.facts['machine']}"
        made = f"{len(self.outcomes)} checks {where}{'' if self.complete else ', stopped before the end'}"
        if self.failures:
            return f"WRONG: {len(self.failures)} failures in {made}"
        return f"{'right' if self.outcomes else 'nothing known'}: {made}"

    def text(self) -> str:
        """To be pasted into a bug report."""
        facts = self.facts
        known = ("normtriton", "commit", "torch", "triton", "cuda", "hip")
        machine = self.missing or (
            f"{facts['machine']}, {facts['sms']} multiprocessors, driver {facts['driver']}, "
            f"clusters {facts['clusters']}, tunings from {facts['tuned'] or 'no table'}"
        )
        lines = [
            f"selfcheck: {self.verdict}",
            ", ".join(f"{name} {facts[name]}" for name in known if facts[name] is not None),
            f"Python {platform.python_version()}, {platform.platform()}",
            machine,
            "environment: " + (" ".join(map("=".join, self.environment.items())) or "nothing set"),
            *(f"warned: {text}" for text in self.warned),
        ]
        for check, failures in self.failures.items():
            lines += [f"{check}:", *(f"    {failure}" for failure in failures)]
        for row in self.times:
            cell = " ".join(f"{row[key]:{width}}" for key, width in (("case", 24), ("layout", 13), ("direction", 8)))
            time = row.get("error") or f"{row['us']:9.1f} µs, {row['of_ceiling']:.0%} of a copy, by {row['method']}"
            lines.append(f"{cell} {row['dtype']} {row['library']:10} {time}")
        return "\n".join(lines)


def environment() -> dict[str, str]:
    """The variables of this library and of Triton."""
    return {name: value for name, value in sorted(os.environ.items()) if name.startswith(("NORMTRITON_", "TRITON_"))}


@click.command()
@click.option("--select", default="", metavar="TEXT", help="Only checks whose name contains this.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the report to this file too.")
@click.option("--part", "only", type=click.Choice([*PARTS]), hidden=True)
@json_option
def command(select: str, out: Path | None, only: str | None, as_json: bool) -> None:
    """Check that the library is right on this machine, and print what a bug report needs.

    On a GPU: every branch of the plan, every norm, layout and dtype against float64, forward and backward, twice, with
    the same bits; then a few real shapes, checked and timed beside PyTorch. The first time most of it is Triton's
    compiler, at work on some 280 kernels.

    Without a GPU: the same checks in Triton's interpreter, and real shapes compiled for four targets without a spilled
    register, in two minutes or so.

    The exit status is 1 if anything is wrong.

    \b
    Examples:
      python -m normtriton.perf selfcheck
      python -m normtriton.perf selfcheck --select "group-cells" --out report.txt
    """  # noqa: D301  \b is click's mark of a paragraph to be left as it is
    if only:
        for found in part(only, select):
            click.echo(json.dumps(found._asdict()))
        return
    if out is not None:  # before minutes of work
        with writing(out):
            out.open("a").close()
    try:
        device, missing = gpu.find(), ""
    except Refusal as error:
        device, missing = torch.device("cpu"), f"no GPU was checked: {error.message}"
        click.echo(f"{missing}\nchecked instead: the kernels in Triton's interpreter, and compiled", err=True)
    outcomes: list[Outcome] = []
    times: list[Row] = []
    facts: dict[str, Any] = gpu.versions()
    complete = False
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            with interruptible(lambda: f"{len(outcomes)} checks were made"):
                if missing:
                    _without_gpu(select, outcomes)
                else:
                    with gpu.working(device):
                        facts |= gpu.facts(device)
                        _on_gpu(device, facts, select, outcomes, times)
                complete = True
        finally:
            warned = list(dict.fromkeys(str(w.message) for w in heard if "normtriton" in str(w.message)))
            report = Report(facts, missing, environment(), outcomes, times, warned, complete)
            _print(report, out, as_json)
    if report.failures:
        sys.exit(1)


def _on_gpu(
    device: torch.device, facts: dict[str, Any], select: str, outcomes: list[Outcome], times: list[Row]
) -> None:
    wanted = [check for check in checks(facts["clusters"] == "used") if select in check.name]
    cells = [cell for cell in TIMED if select in f"bench {cell.case.name}"]
    with progress("selfcheck", len(wanted) + len(cells)) as done:
        for check in wanted:
            outcomes.append(outcome(check, device, times=2))
            done(check.name)
        providers, _missing = installed((LIBRARY, "torch"))
        machine = Machine(device, facts, gpu.ceiling(device) if cells else 0.0)
        for cell in cells:
            times.extend(measured(cell, DIRECTIONS, providers, machine))
            done(cell.case.name)


def _without_gpu(select: str, outcomes: list[Outcome]) -> None:
    total = sum(select in check.name for check in checks(with_clusters=True))
    total += len(TARGETS) * sum(select in f"compile {cell.case.name}" for cell in COMPILED)
    with progress("selfcheck", total) as done:
        for name in PARTS:
            for found in elsewhere(name, select):
                outcomes.append(found)
                done(found.check)


def _print(report: Report, out: Path | None, as_json: bool) -> None:
    text = report.text()
    if as_json:
        judged: dict[str, Any] = {"verdict": report.verdict, "failures": report.failures}
        judged["outcomes"] = [outcome._asdict() for outcome in report.outcomes]
        text = json.dumps(report._asdict() | judged, sort_keys=True)
    click.echo(text if as_json else f"```text\n{text}\n```\n{report.verdict}")
    if out is not None:
        with writing(out):
            cache.overwrite(out, text + "\n")
