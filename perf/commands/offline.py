"""Commands that need no GPU: ``traffic`` simulates bytes, ``codegen`` compiles, ``time`` predicts what a pass takes."""

from __future__ import annotations

import errno
import json
import os
import runpy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..cases.shapes import DIRECTIONS, DTYPES, LAYOUTS, LIBRARIES, Case, cells, offers
from ..cases.targets import PLANNED_FOR
from ..cli import Refusal, interruptible, json_option, names_option, progress, shapes_option, show, writing
from ..count import rivals
from ..count.l2 import MACHINES
from ..emulator import device as emulated
from ..show import render
from ..show.rows import LIBRARY
from ..time import predict
from ..time.predict import rounded
from .emulate import refuse_interpreter
from .jobs import Job, measured
from .results import THEIRS, Store

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..emulator.gpus import Gpu
    from ..show.rows import Row

#: What the command line takes beside `DTYPES`.
FLOATING = (*DTYPES, "float16", "float64")


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that all of them have."""
    processes = os.cpu_count() or 1
    for option in (
        json_option,
        click.option("--jobs", "processes", type=click.IntRange(1), default=processes, help="Processes; one a core."),
        click.option(
            "--out",
            type=click.Path(path_type=Path, file_okay=False),
            help="Keep the rows in this folder, as JSON lines; what is there and still holds is not measured again.",
        ),
        names_option("--libraries", "libraries", (LIBRARY, *LIBRARIES), LIBRARY, "Whose norms"),
        names_option("--directions", "directions", DIRECTIONS, ",".join(DIRECTIONS), "Passes"),
        names_option("--dtypes", "dtypes", FLOATING, ",".join(DTYPES), "Dtypes of x"),
        names_option(
            "--layouts", "layouts", LAYOUTS, ",".join(LAYOUTS), "Layouts of x, where it has 4 or 5 dimensions"
        ),
        shapes_option("reports"),
    ):
        command = option(command)
    return command


def _jobs(
    instrument: str,
    machines: Sequence[str],
    cases: Sequence[Case],
    layouts: Sequence[str],
    dtypes: Sequence[str],
    directions: Sequence[str],
    libraries: Sequence[str],
) -> list[Job]:
    """What is asked for.

    Raises:
        Refusal: a library that is not installed or is not measured there, or nothing at all.
    """
    for library in libraries:
        if library == LIBRARY:
            continue
        if rivals.version(library) == rivals.MISSING:
            raise Refusal(f"{library} is not installed: {rivals.remedy(library)}")
        if elsewhere := [machine for machine in machines if (instrument, machine) not in THEIRS]:
            known = ", ".join(machine for which, machine in THEIRS if which == instrument)
            raise Refusal(f"{library} is measured for {known} only, not for {', '.join(elsewhere)}")
    wanted = [
        Job(instrument, machine, library, cell, tuple(directions))
        for machine in machines
        for cell in cells(cases, layouts, dtypes)
        for library in libraries
        if library == LIBRARY or offers(library, cell.case, instrument)
    ]
    if not wanted:
        raise Refusal("nothing to measure: no such shape has such a layout, or no such library such a norm")
    return wanted


def _open(out: Path | None) -> Store | None:
    """The folder to keep rows in, if any."""
    if out is None:
        return None
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        if not os.access(out, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return Store(out)


def _run(
    wanted: Sequence[Job], out: Path | None, processes: int, as_json: bool, table: Callable[[Sequence[Row]], None]
) -> None:
    """Measure, print and keep; what is there already is only printed."""
    store = _open(out)
    rows: list[Row] = []

    def add(found: list[Row]) -> None:
        rows.extend(found)
        if as_json:
            for row in found:
                click.echo(json.dumps(row, sort_keys=True))

    def kept() -> str:
        where = "; name a folder with --out to keep them" if out is None else f" and kept in {out}"
        return f"{len(rows)} rows were measured{where}"

    todo = []
    for job in wanted:
        if store is not None and store.has(job):
            add(store.rows(job))
        else:
            todo.append(job)
    try:
        with interruptible(kept), progress(wanted[0].instrument, len(todo)) as done:
            for job, found in measured(todo, processes):
                if store is not None:
                    with writing(store.folder):
                        store.add(job, found)
                add(found)
                done(job.name)
    finally:
        if rows and not as_json:
            place = {job.name: i for i, job in enumerate(wanted)}
            table(sorted(rows, key=lambda row: place[_name(row)]))
    if failures := sum(_why(row).startswith(_FAILED) for row in rows):
        raise Refusal(f"{failures} of {len(rows)} rows could not be measured; they say why")


_FAILED = "failed: "


def _why(row: Row) -> str:
    """Why a row has no figures; nothing if it has."""
    why: str = row.get("error", "")
    return _FAILED + why if why not in ("", rivals.FORWARD_ONLY) else why


def _name(row: Row) -> str:
    """`Job.name` of a row's job."""
    return " ".join(row[key] for key in ("instrument", "machine", "library", "case", "layout", "dtype"))


def _table(
    title: str, rows: Sequence[Row], heads: Sequence[str], columns: Callable[[Row], Sequence[object]], note: str
) -> None:
    """Print rows: which cell, then columns of figures; or why there are none."""
    named = ["case", "layout", "dtype", "direction", "library", "machine"]
    named = [name for i, name in enumerate(named) if i < 4 or len({row[name] for row in rows}) > 1]
    body = [
        [
            *(row[name] for name in named),
            *([why, *"-" * (len(heads) - 1)] if (why := _why(row)) else columns(row)),
        ]
        for row in rows
    ]
    show(title, [*named, *heads], body, note)


@click.command()
@_options
@names_option("--machine", "machines", MACHINES, "H100", "GPUs to simulate")
def traffic(
    cases: tuple[Case, ...],
    machines: tuple[str, ...],
    out: Path | None,
    processes: int,
    as_json: bool,
    **chosen: tuple[str, ...],
) -> None:
    """Simulate the bytes that each pass moves; no GPU is needed.

    Launches run in Triton's interpreter for their addresses, and a model of the L2 says what crosses the memory bus.
    Figures are over the compulsory bytes: each input read once, each result written once.

    \b
    Examples:
      python -m normtriton.perf traffic --shapes layer-8192x4096
      python -m normtriton.perf traffic --shapes llm,vit --machine H100,A100 --out results
      python -m normtriton.perf traffic --shapes unet --libraries normtriton,flag-gems --json
    """  # noqa: D301  \b is click's mark of a paragraph to be left as it is

    def table(rows: Sequence[Row]) -> None:
        def columns(row: Row) -> list[object]:
            part = f"1/{row['part']}" if row["part"] > 1 else "whole"
            return [row.get("strategy", "-"), part, render.launches(row), *render.ratios(row)]

        heads = ("strategy", "part", "launches", "live", "request", "dram")
        note = (
            "Simulated. live, request (32-byte sectors) and dram are bytes over the compulsory bytes; part: what part\n"
            "of the shape ran, on as small a part of the GPU."
        )
        _table(f"Traffic on {' and '.join(machines)}, simulated", rows, heads, columns, note)

    _run(_jobs("traffic", machines, cases, **chosen), out, processes, as_json, table)


@click.command()
@_options
@names_option("--targets", "targets", PLANNED_FOR, "sm_90", "Targets to compile for")
def codegen(
    cases: tuple[Case, ...],
    targets: tuple[str, ...],
    out: Path | None,
    processes: int,
    as_json: bool,
    **chosen: tuple[str, ...],
) -> None:
    """Compile each pass for a GPU and read the code; no GPU is needed.

    Plans are those of an A100, H100, B200 or MI300X. Counts are of the program's text. Registers, spilled bytes (of a
    thread) and shared memory (of a thread block) are the most of any launch; what is resident on a multiprocessor, and
    bytes in flight there, the least of those launches that load tensors of x's size.

    \b
    Examples:
      python -m normtriton.perf codegen --shapes layer-8192x4096
      python -m normtriton.perf codegen --shapes unet --targets sm_80,sm_90,sm_100,gfx942 --out results
      python -m normtriton.perf codegen --shapes segmentation-3d --dtypes float16 --directions forward --json
    """  # noqa: D301  \b is click's mark of a paragraph to be left as it is

    def table(rows: Sequence[Row]) -> None:
        def columns(row: Row) -> list[object]:
            loading = [kernel for kernel in row["kernels"] if kernel["in_flight"]]
            first = min(loading, key=lambda kernel: kernel["in_flight"], default=None)
            busy = [first["resident_blocks"], first["resident_blocks"] * first["warps"]] if first else ["-", "-"]
            return [
                row.get("strategy", "-"), len(row["kernels"]), max(kernel["blocks"] for kernel in row["kernels"]),
                *render.code(row), render.most(row, "shared"), sum(kernel["instructions"] for kernel in row["kernels"]),
                *busy, f"{first['in_flight'] / 1024:g}" if first else "-",
            ]  # fmt: skip

        heads = ["strategy", "launches", "blocks", "registers", "spilled", "access", "shared", "instructions"]
        heads += ["resident blocks", "resident warps", "KiB in flight"]
        note = "Compiled, not run. access: the narrowest to the widest to tensors of x's size, bytes."
        _table(f"Code for {', '.join(targets)}", rows, heads, columns, note)

    _run(_jobs("code", targets, cases, **chosen), out, processes, as_json, table)


def _program(file: Path, gpu: Gpu, as_json: bool) -> None:
    """Predict the launches of a user's program; its kernels do not run, so that its results are garbage."""
    refuse_interpreter()
    device = emulated.enable(gpu.target, timing=gpu)
    runpy.run_path(str(file), run_name="__main__")
    for timed in device.timed:
        kernel = rounded(timed._asdict())
        click.echo(json.dumps(kernel) if as_json else f"{kernel['kernel']}: {'; '.join(render.launch_words(kernel))}")
    if not as_json:
        total = sum(timed.us for timed in device.timed)
        click.echo(f"{len(device.timed)} launches, {total:.1f} µs on {gpu.name}. Predicted by a model, not measured.")


@click.command("time")
@_options
@names_option("--gpu", "gpus", predict.MACHINES, "H100", "GPUs to predict for, with clusters or without")
@click.option("--launches", "each", is_flag=True, help="Say of each launch what it is and what it waits for.")
@click.option(
    "--launch", "file", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE.py",
    help='Run this program, whose tensors are on "cuda", and predict its launches, one after the other.',
)  # fmt: skip
def predicted_time(
    cases: tuple[Case, ...],
    gpus: tuple[str, ...],
    out: Path | None,
    processes: int,
    as_json: bool,
    each: bool,
    file: Path | None,
    **chosen: tuple[str, ...],
) -> None:
    """Predict the time of each pass; no GPU is needed, and nothing is measured.

    The compiled kernels run on a model of the GPU: its schedulers, caches and memory bus. GB/s are of the compulsory
    bytes: each input read once, each result written once. "of a copy" is their part of what a large copy reaches, if
    all multiprocessors share the bus; "alone", if each has its own share of it and no more. What is true lies between
    the two. docs/emulator.md says how far predictions were from published times, and what the model cannot see.

    \b
    Examples:
      python -m normtriton.perf time --shapes layer-8192x4096
      python -m normtriton.perf time --shapes group32-8x320x64x64 --gpu H100,H100-clusters-off
      python -m normtriton.perf time --shapes resnet --gpu A100,H100 --dtypes bfloat16 --launches
      python -m normtriton.perf time --shapes rms-8192x2048 --libraries normtriton,liger-kernel --out results
      python -m normtriton.perf time --launch my_kernel.py --gpu A100
    """  # noqa: D301  \b is click's mark of a paragraph to be left as it is
    if file is not None:
        if len(gpus) > 1:
            raise click.UsageError(f"--launch predicts for one GPU, not {', '.join(gpus)}")
        _program(file, predict.MACHINES[gpus[0]][0], as_json)
        return

    def table(rows: Sequence[Row]) -> None:
        def columns(row: Row) -> list[object]:
            return [
                row.get("strategy", "-"), len(row["kernels"]), f"{row['us']:.1f}", f"{row['us_alone']:.1f}",
                f"{row['gbps']:,.0f}", f"{row['of_ceiling']:.0%}", f"{row['of_ceiling_alone']:.0%}",
                render.waits(render.longest(row)),
            ]  # fmt: skip

        heads = ["strategy", "launches", "µs", "alone, µs", "GB/s", "of a copy", "alone", "warps wait for"]
        note = "Predicted by a model, not measured. Warps: those of the longest launch, parts of their time."
        _table(f"Time on {' and '.join(gpus)}, predicted", rows, heads, columns, note)
        for row in rows if each else ():
            click.echo(f"{_name(row)} {row['direction']}")
            for kernel in row.get("kernels", ()):
                click.echo(f"  {kernel['kernel']}: {'; '.join(render.launch_words(kernel))}")

    _run(_jobs("model", gpus, cases, **chosen), out, processes, as_json, table)
