"""The command ``emulate``: run compiled kernels without a GPU, with the checks of a sanitizer.

Work is done in processes of its own, `work`, whose tensors say that they are on a GPU
(`normtriton.perf.emulator.device`).
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple

import click
import torch

from normtriton.runtime import clusters, compiling, launch

from ..cases import checks
from ..cli import PROGRAM, Lines, Refusal, interruptible, json_option, names_option, progress
from ..emulator import device as emulated
from ..swapped import swapped
from .bench import FLOATING, why

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ..cases.checks import Check
    from ..cases.oracle import Operands
    from ..emulator.device import Device, Ran

#: What is executed; clusters where the target has them.
TARGETS = ("sm_80", "sm_90", "sm_100")
#: Kinds of findings that are no faults where the values that were read make no difference.
RACES = ("race-global", "cross-program")


class Outcome(NamedTuple):
    """What a check gave.

    Attributes:
        check: its name.
        failures: wrong results, bits that depend on the order of execution, findings; nothing if all was right.
        notes: findings that are no faults.
        launches: kernels that ran, for each seed.
        instructions: that warps executed, for each seed.
        seconds: that all of it took.
    """

    check: str
    failures: list[str]
    notes: list[str]
    launches: int
    instructions: int
    seconds: float


def chosen(kinds: Sequence[str], target: str, dtypes: Sequence[str], select: str) -> list[Check]:
    """The checks that are asked for."""
    with_clusters = target != "sm_80"
    found = [check for kind in kinds for check in checks.KINDS[kind](with_clusters, dtypes)]
    return [check for check in found if select in check.name]


def run(check: Check, device: Device, seeds: Sequence[int], approx: bool = False) -> Outcome:
    """Run a check once for each seed of the scheduler: the results must be right, and the same bits."""
    began = time.perf_counter()
    failures: list[str] = []
    notes: list[str] = []
    ran: list[Ran] = []
    try:
        given = own(check.operands(torch.device("cpu")), device)
        want = check.wanted(given)
        results = []
        for seed in seeds:
            found, seen = once(check, given, device, seed=seed, approx=approx)
            results.append(found)
            ran += seen
            failures += [f"seed {seed}: {name}: {n} elements are not written" for name, n in unwritten(found, device)]
        runs = results[:1] if approx else results  # approximations are off by the seed
        failures += checks.wrong(runs, want, given)
        reports = list(dict.fromkeys(report for one in ran for report in one.reports))
        errors = [report for report in reports if report.error]
        notes = [str(report) for report in reports if not report.error]
        if errors and all(report.kind in RACES for report in errors) and harmless(check, given, device, results[0]):
            notes += [f"discarded: {report}" for report in errors]
            errors = []
        failures += map(str, errors)
    except Exception as error:  # noqa: BLE001  whatever it is, it is a finding
        failures.append(why(error))
    instructions = sum(one.counts.get("total", 0) for one in ran)
    each = max(len(seeds), 1)
    return Outcome(
        check.name, failures, notes, len(ran) // each, instructions // each, round(time.perf_counter() - began, 2)
    )


def own(given: Operands, device: Device) -> Operands:
    """The operands in memory of their own, so that an access beside one hits nothing else."""
    tensors = (given.x, given.weight, given.bias, given.dy, given.dtotal, *given.around.values())
    x, weight, bias, dy, dtotal, *around = (t if t is None or _has_gaps(t) else device.own(t) for t in tensors)
    assert x is not None
    assert dy is not None
    beside = {name: t for name, t in zip(given.around, around, strict=True) if t is not None}
    return given._replace(x=x, weight=weight, bias=bias, dy=dy, dtotal=dtotal, around=beside)


def _has_gaps(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a view of some elements of another, or of one element many times."""
    return tensor.numel() * tensor.element_size() != tensor.untyped_storage().nbytes()


def once(
    check: Check, given: Operands, device: Device, **configuration: Any
) -> tuple[dict[str, torch.Tensor], list[Ran]]:
    """The results of one run, the saved statistics among them, and its launches."""
    saved: dict[str, torch.Tensor] = {}
    forward = launch.forward

    def keeping(*arguments: Any, **options: Any) -> Any:
        y, mean, rstd = forward(*arguments, **options)
        saved.update({name: t for name, t in (("saved mean", mean), ("saved rstd", rstd)) if t is not None})
        return y, mean, rstd

    device.executor.configure(**configuration)
    try:
        with device.watching() as seen, swapped((launch, "forward", keeping)):
            fresh = given.fresh()
            mean, variance = (r if r is None else device.own(r) for r in fresh.running)
            fresh = fresh._replace(running=(mean, variance))
            found = check.results(fresh)
    finally:
        device.executor.configure()
    return found | saved, seen


def unwritten(results: dict[str, torch.Tensor], device: Device) -> Iterator[tuple[str, int]]:
    """Results that have elements that nothing has written, and how many."""
    for name, result in results.items():
        if count := device.unwritten(result):
            yield name, count


def harmless(check: Check, given: Operands, device: Device, first: dict[str, torch.Tensor]) -> bool:
    """Whether nothing changes if values that race are garbage: then they are read, and thrown away."""
    for seed in (0, 3):
        found, _seen = once(check, given, device, seed=seed, chaos=True)
        if not all(checks.same(first[name], found[name]) for name in first):
            return False
    return True


def work(target: str, part: str, wanted: Sequence[Check], seeds: Sequence[int], approx: bool, quick: bool) -> None:
    """Run every n-th check in this process, and print outcomes as JSON lines; ``part`` is "I/N"."""
    device = emulated.enable(target, assemble=not quick)
    torch.set_num_threads(1)
    clusters.set_mode("on" if target != "sm_80" else "off")
    index, count = map(int, part.split("/"))
    for check in wanted[index::count]:
        click.echo(json.dumps(run(check, device, seeds, approx)._asdict()))


def spread(arguments: Sequence[str], processes: int) -> Iterator[Outcome]:
    """The outcomes of all checks as they come, from processes of their own."""
    outcomes: SimpleQueue[Outcome | None] = SimpleQueue()

    def follow(index: int) -> None:
        command = [sys.executable, "-m", PROGRAM, "emulate", *arguments, "--part", f"{index}/{processes}"]
        environment = os.environ | {"TRITON_INTERPRET": "0"}
        try:
            with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
                assert process.stdout is not None
                for line in process.stdout:
                    outcomes.put(Outcome(**json.loads(line)))
            if process.returncode:
                outcomes.put(Outcome(f"process {index}", [f"ended with status {process.returncode}"], [], 0, 0, 0.0))
        finally:
            outcomes.put(None)

    with ThreadPoolExecutor(processes) as threads:
        for index in range(processes):
            threads.submit(follow, index)
        left = processes
        while left:
            outcome = outcomes.get()
            if outcome is None:
                left -= 1
            else:
                yield outcome


def script(file: Path, target: str, seeds: Sequence[int], quick: bool) -> list[Outcome]:
    """Run a user's program, once for each seed; an outcome for each launch that it makes.

    Raises:
        Refusal: its kernels would be interpreted.
    """
    refuse_interpreter()
    device = emulated.enable(target, assemble=not quick)
    found = []
    for seed in seeds:
        device.executor.configure(seed=seed)
        failures = []
        with device.watching() as seen:
            try:
                runpy.run_path(str(file), run_name="__main__")
            except Exception as error:  # noqa: BLE001  a user's program may raise anything
                failures.append(f"{type(error).__name__}: {error}")
        for number, one in enumerate(seen, 1):
            name = f"seed {seed}, launch {number}: {one.kernel}"
            reports = [report for report in one.reports if report.error]
            notes = [str(report) for report in one.reports if not report.error]
            total = one.counts.get("total", 0)
            found.append(Outcome(name, [*map(str, reports)], notes, 1, total, round(one.seconds, 2)))
        if failures:
            found.append(Outcome(f"seed {seed}: {file.name}", failures, [], 0, 0, 0.0))
    return found


def refuse_interpreter() -> None:
    """Where this very process is to compile kernels.

    Raises:
        Refusal: Triton interprets them.
    """
    if compiling.INTERPRETED:
        raise Refusal("TRITON_INTERPRET=1 has Triton interpret kernels: unset it to have them compiled")


def say(outcome: Outcome, show: int) -> None:
    """Print an outcome."""
    size = (
        f"{outcome.launches} launches, {outcome.instructions / 1e6:.2f} million instructions, {outcome.seconds:.1f} s"
    )
    click.echo(f"{'WRONG' if outcome.failures else 'right'}  {outcome.check}: {size}")
    for text in outcome.failures[:show]:
        click.echo(f"       {text}")
    if len(outcome.failures) > show:
        click.echo(f"       and {len(outcome.failures) - show} more")


class Seeds(click.ParamType[tuple[int, ...]]):
    """Whole numbers with commas between."""

    name = "seeds"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> tuple[int, ...]:
        """The numbers."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(int(number) for number in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not whole numbers with commas between", param, context)


@click.command()
@click.option("--target", type=click.Choice(TARGETS), default="sm_90", show_default=True, help="What to compile for.")
@names_option("--kinds", "kinds", checks.KINDS, "branches", "Kinds of checks")
@names_option("--dtypes", "dtypes", FLOATING, ",".join(FLOATING), "Dtypes of x")
@click.option("--select", default="", metavar="TEXT", help="Only checks whose name contains this.")
@click.option(
    "--seeds", type=Seeds(), default="1,2", show_default=True, help="Of the scheduler; 0 runs warps in order."
)
@click.option("--approx", is_flag=True, help="Let approximate instructions be off by as much as PTX allows.")
@click.option("--quick", is_flag=True, help="Do not assemble the PTX: half the time to compile.")
@click.option("--launch", "file", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE.py",
              help='Run this program, whose tensors are on "cuda", instead of checks of the library.')  # fmt: skip
@click.option("--jobs", "processes", type=click.IntRange(1), default=os.cpu_count() or 1, help="Processes; one a core.")
@click.option("--show", type=click.IntRange(1), default=6, show_default=True, help="Findings printed of a check.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="A file of JSON lines, begun anew.")
@click.option("--part", hidden=True)
@json_option
def command(
    target: str,
    kinds: tuple[str, ...],
    dtypes: tuple[str, ...],
    select: str,
    seeds: tuple[int, ...],
    approx: bool,
    quick: bool,
    file: Path | None,
    processes: int,
    show: int,
    out: Path | None,
    part: str | None,
    as_json: bool,
) -> None:
    """Run compiled kernels on the CPU and look for what they do wrong; no GPU is needed.

    Triton compiles for the target, its own launcher launches, and an emulator executes the PTX, one warp instruction
    after another in an order that a seed decides. It reports accesses out of bounds, reads of memory that nothing
    wrote, races, barriers that are missing or divergent, and writes of different values to one place, with the line of
    the kernel's source. Results and gradients are compared with float64's, and must have the same bits for each seed.
    The exit status is 1 if anything is wrong.

    \b
    Kinds of checks:
      branches   every branch of the plan, on two multiprocessors
      layouts    every norm in each layout, and in each dtype
      running    batch and instance norm with running statistics, updated and used
      real       shapes near those of models, as an A100, H100 or B200 plans them

    \b
    Examples:
      python -m normtriton.perf emulate
      python -m normtriton.perf emulate --target sm_80 --kinds branches,running --dtypes float32
      python -m normtriton.perf emulate --select group-cells --seeds 1,2,3,4
      python -m normtriton.perf emulate --launch my_kernel.py
    """  # noqa: D301  \b is click's mark of a paragraph to be left as it is
    if part is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # standard output is for outcomes; what Triton warns of is known
            work(target, part, chosen(kinds, target, dtypes, select), seeds, approx, quick)
        return
    lines = Lines(out)
    outcomes: list[Outcome] = []

    def add(outcome: Outcome) -> None:
        outcomes.append(outcome)
        lines.add({"target": target, **outcome._asdict()})
        if as_json:
            click.echo(json.dumps(outcome._asdict(), sort_keys=True))
        elif outcome.failures or file is not None:
            say(outcome, show)

    with interruptible(lambda: f"{len(outcomes)} checks were made"):
        if file is not None:
            for outcome in script(file, target, seeds, quick):
                add(outcome)
        else:
            wanted = chosen(kinds, target, dtypes, select)
            if not wanted:
                raise Refusal(f"no check of {', '.join(kinds)} has {select!r} in its name")
            arguments = [
                "--target",
                target,
                "--kinds",
                ",".join(kinds),
                "--dtypes",
                ",".join(dtypes),
                "--select",
                select,
            ]
            arguments += ["--seeds", ",".join(map(str, seeds)), *["--approx"] * approx, *["--quick"] * quick]
            with progress("emulate", len(wanted)) as done:
                for outcome in spread(arguments, min(processes, len(wanted))):
                    add(outcome)
                    done(outcome.check)
            if len(outcomes) < len(wanted):
                raise Refusal(f"only {len(outcomes)} of {len(wanted)} checks were made")
    failures = sum(bool(outcome.failures) for outcome in outcomes)
    if not as_json:
        launches = sum(outcome.launches for outcome in outcomes)
        kept = "WRONG" if failures else "right"
        click.echo(
            f"{kept}: {failures} of {len(outcomes)} have findings; {launches} launches for each of {len(seeds)} seeds"
        )
    if failures:
        sys.exit(1)
