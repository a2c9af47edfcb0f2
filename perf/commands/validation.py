r"""``python -m normtriton.perf validate``: predicted times beside published ones, and what that says of the model.

    for v in 0.3.0 0.6.1 0.8.0 0.8.2; do pip install --no-deps --target liger/$v liger-kernel==$v; done
    python -m normtriton.perf validate --liger 0.3.0=liger/0.3.0 --liger 0.6.1=liger/0.6.1 \
        --liger 0.8.0=liger/0.8.0 --liger 0.8.2=liger/0.8.2

Published times are in perf/published, each with its source. Liger-kernel's were measured at a commit; the release named
beside it has the same kernels. The compiler that made the published times is not known; here it is the one installed.
"""

from __future__ import annotations

import csv
import importlib
import importlib.metadata
import json
import re
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import click
import torch
import triton

from .. import cli
from ..cases.shapes import Case, Cell
from ..count import rivals
from ..emulator.gpus import GPUS
from ..emulator.timer import Timer
from ..show import render
from ..time import timed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from ..emulator.gpus import Gpu
    from ..emulator.timer import Timed
    from ..show.rows import Row

PUBLISHED = Path(__file__).parents[1] / "published"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "validation.md"

#: Microseconds that a measurement adds to what the kernels take. Of the replay of a graph: the published times of a
#: forward and of a backward pass are together so much longer than that of both in one (median of large cells). Events
#: around launches: fitted, with layer norm's forward passes. A profiler's times are the kernels' own.
ADDED = {("events", "H100"): 5.0, ("graph", "H100"): 4.0, ("events", "A100"): 9.0, ("profiler", "H200"): 0.0}

#: The modules of liger-kernel's `ops` by norm.
MODULES = {"layer": "layer_norm", "rms": "rms_norm", "add-rms": "fused_add_rms_norm"}

#: Elements of x above which a fourth of the multiprocessors is run, with a fourth of the L2 and of the memory bus.
LARGE = 8_000_000

#: What Inductor is asked for. The published backward passes move as many bytes as a kernel for dx and one for the
#: parameters' gradients do; fusing the two is newer, and makes other kernels than were timed.
INDUCTOR = {"triton.mix_order_reduction": False}

#: Below so many microseconds, starting and ending a kernel is most of what there is to predict.
FEW = 15.0

#: Errors of more percent than this are listed by name.
FAR = 15.0

_KEPT = PUBLISHED / "predicted.jsonl"


class Published(NamedTuple):
    """A time that its authors measured.

    Attributes:
        library: "liger-kernel", or "torch.compile".
        release: of the library, with the kernels that were timed; empty where the source does not say.
        commit: of the source, which added the time.
        file: of the source.
        norm: "layer", "rms", or "add-rms": a residual is added first.
        direction: "forward" or "backward".
        rows, columns: of x; each row is normalized.
        dtype: of x and of its parameters.
        gpu: "A100", "H100" or "H200".
        us: microseconds, the median.
        timed_by: "events", "graph" (events around a graph's replay) or "profiler" (the kernels' own time).
        fitted: the parameter that this time may have been used for, or nothing.
    """

    library: str
    release: str
    commit: str
    file: str
    norm: str
    direction: str
    rows: int
    columns: int
    dtype: str
    gpu: str
    us: float
    timed_by: str
    fitted: str

    @property
    def name(self) -> str:
        """For people, and to find it again: two models may have the same shape."""
        shape = f"{self.rows}x{self.columns}"
        parts = (
            self.library,
            self.release or self.commit,
            f"{self.norm}-{shape}",
            self.dtype,
            self.direction,
            self.gpu,
        )
        return " ".join(parts)


def published(folder: Path = PUBLISHED) -> list[Published]:
    """The times of all files."""
    found = []
    for file in sorted(folder.glob("*.csv")):
        with file.open(newline="") as lines:
            for row in csv.DictReader(lines):
                numbers = {"rows": int(row["rows"]), "columns": int(row["columns"]), "us": float(row["us"])}
                found.append(Published(**{**row, **numbers}))  # type: ignore[arg-type]  # the rest is text
    return found


# ------------------------------------------------------------------------------------------------------- liger-kernel
@contextmanager
def imported(path: Path) -> Iterator[None]:
    """Another release of liger-kernel, in a folder, in place of one that may be imported."""

    def forget() -> dict[str, Any]:
        ours = [name for name in sys.modules if name.split(".")[0] == "liger_kernel"]
        return {name: sys.modules.pop(name) for name in ours}

    before = forget()
    sys.path.insert(0, str(path))
    try:
        rivals.prepare(addresses=False)
        yield
    finally:
        sys.path.remove(str(path))
        forget()
        sys.modules.update(before)


class _Context(SimpleNamespace):
    """What autograd would hand a function's forward and backward pass; within autograd tensors tell their device."""

    def save_for_backward(self, *tensors: torch.Tensor | None) -> None:
        """Keep them."""
        self.saved_tensors = tensors


def liger(cell: Published) -> tuple[Any, Callable[[], Any]]:
    """Run a cell's forward pass as the library's modules do; returns what it gives, and the backward pass."""
    dtype, context = getattr(torch, cell.dtype), _Context()
    x, residual, dy, dsum = (torch.empty(cell.rows, cell.columns, dtype=dtype, device="meta") for _ in range(4))
    weight, bias = (torch.empty(cell.columns, dtype=dtype, device="meta") for _ in range(2))
    ops = importlib.import_module(f"liger_kernel.ops.{MODULES[cell.norm]}")
    if cell.norm == "layer":
        function = ops.LigerLayerNormFunction
        return function.forward(context, x, weight, bias, 1e-6), lambda: function.backward(context, dy)
    if cell.norm == "rms":
        function = ops.LigerRMSNormFunction
        return function.forward(context, x, weight, 1e-6), lambda: function.backward(context, dy)
    function = ops.LigerFusedAddRMSNormFunction

    def backward() -> Any:
        dx, *others = function.backward(context, dy, dsum)
        return dx.clone(), *others  # one tensor is the gradient of two, so autograd copies it for one of them

    return function.forward(context, x, residual, weight, 1e-6), backward


# ------------------------------------------------------------------------------------------------------- predictions
def steps(cell: Published, folder: Path | None, gpu: Gpu) -> list[Timed]:
    """The steps of a cell on a GPU, timed; ``folder`` holds the release of liger-kernel."""
    timer = Timer(gpu)
    if cell.library == "torch.compile":
        case = Case(cell.norm, (cell.rows, cell.columns))
        one = Cell(case, "contiguous", cell.dtype)
        return timed.timed(cell.library, one, timer, (cell.direction,), INDUCTOR)[cell.direction]
    assert folder is not None
    with imported(folder):
        return timed.passes(lambda: liger(cell), timer, (cell.direction,))[cell.direction]


def kind(cell: Published, steps: Sequence[Sequence[Any]]) -> str:
    """Which of the kinds that errors are summed up by a cell is; ``steps``: (kernel, µs, blocks, spilled bytes)."""
    if any(spills for _kernel, _us, _blocks, spills in steps):
        return "spills"
    if cell.us < FEW:
        return f"less than {FEW:g} µs"
    if cell.direction == "forward":
        return "forward"
    _kernel, _us, blocks, _spills = max(steps, key=lambda step: step[1])
    return "backward, persistent" if 0 < blocks <= GPUS[cell.gpu].sms else "backward, others"


def error(predicted: float, measured: float) -> float:
    """Percent by which a prediction is too long."""
    return 100 * (predicted / measured - 1)


def predict(cell: Published, folder: Path | None) -> Row:
    """A row: what the model says of a cell, with all multiprocessors on the bus and with one alone on its share."""
    began = time.perf_counter()
    gpu = GPUS[cell.gpu]
    share = 4 if cell.rows * cell.columns > LARGE else 1
    found, alone = (steps(cell, folder, replace(gpu, share=part)) for part in (share, gpu.sms))
    added = ADDED[cell.timed_by, cell.gpu]
    us, alone_us = (round(sum(float(step.us) for step in passed) + added, 2) for passed in (found, alone))
    return {
        "name": cell.name, "predicted": us, "alone": alone_us, "share": share,
        "steps": [[step.kernel, round(float(step.us), 2), int(step.blocks), int(step.spills)] for step in found],
        "triton": triton.__version__, "torch": torch.__version__.split("+")[0],
        "seconds": round(time.perf_counter() - began, 1),
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- tables
class Compared(NamedTuple):
    """A published time beside what the model says.

    Attributes:
        cell: the published time.
        predicted, alone: microseconds, what the measurement adds included.
        kind: of `kind`.
    """

    cell: Published
    predicted: float
    alone: float
    kind: str

    @property
    def error(self) -> float:
        """Percent, with all multiprocessors."""
        return error(self.predicted, self.cell.us)

    @property
    def alone_error(self) -> float:
        """Percent, with one multiprocessor on its share."""
        return error(self.alone, self.cell.us)

    @property
    def between(self) -> bool:
        """Whether the published time lies between the two bounds."""
        return min(self.predicted, self.alone) <= self.cell.us <= max(self.predicted, self.alone)


def compared(cells: Iterable[Published], rows: Iterable[Row]) -> list[Compared]:
    """The cells that have a prediction."""
    found = {row["name"]: row for row in rows}
    pairs = [(cell, found[cell.name]) for cell in cells if cell.name in found]
    return [Compared(cell, row["predicted"], row["alone"], kind(cell, row["steps"])) for cell, row in pairs]


def medians(rows: Sequence[Compared]) -> list[tuple[str, int, float, float, int]]:
    """Of each kind, of cells not fitted: (kind, cells, median of |error|, the same of one alone, cells in between)."""
    free = [row for row in rows if not row.cell.fitted]
    kinds = sorted({row.kind for row in free})
    summed = []
    for name, some in [*((k, [r for r in free if r.kind == k]) for k in kinds), ("all", free)]:
        if some:
            first, second = median(abs(r.error) for r in some), median(abs(r.alone_error) for r in some)
            summed.append((name, len(some), first, second, sum(r.between for r in some)))
    return summed


HEADS = ("kind", "cells not fitted", "median error, %", "of one alone, %", "published between the two")


def summary_table(rows: Sequence[Compared]) -> str:
    """`medians` as Markdown."""
    return render.table(HEADS, ((k, n, f"{e:.1f}", f"{a:.1f}", b) for k, n, e, a, b in medians(rows)))


def cell_table(rows: Sequence[Compared]) -> str:
    """Every cell as Markdown."""
    heads = ["library", "commit", "norm", "direction", "shape", "dtype", "GPU", "published, µs", "predicted, µs"]
    heads += ["error, %", "one alone, µs", "error, %", "kind", "fitted"]
    return render.table(
        heads,
        (
            (f"{c.library} {c.release}".strip(), c.commit, c.norm, c.direction, f"{c.rows}x{c.columns}", c.dtype, c.gpu,
             f"{c.us:.1f}", f"{r.predicted:.1f}", f"{r.error:+.1f}", f"{r.alone:.1f}", f"{r.alone_error:+.1f}", r.kind,
             c.fitted or "no")
            for r in rows for c in (r.cell,)
        ),
    )  # fmt: skip


def rendered(page: str, rows: Sequence[Compared]) -> str:
    """A page's text with its tables as the rows have them."""
    tables = {"medians": summary_table, "cells": cell_table}

    def put(match: re.Match[str]) -> str:
        return f"{match[1]}\n{tables[match[2]](rows)}\n{match[3]}"

    return re.sub(r"(<!-- table (\S+) -->)\n.*?(<!-- end -->)", put, page, flags=re.DOTALL)


# ------------------------------------------------------------------------------------------------------------ command
class Release(click.ParamType[tuple[str, Path]]):
    """A release of liger-kernel and where it is: 0.8.2=FOLDER."""

    name = "VERSION=FOLDER"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> tuple[str, Path]:
        """The pair; the folder is one that Python can import from."""
        if isinstance(value, tuple):
            return value
        version, found, folder = value.partition("=")
        path = Path(folder)
        if not found or not (path / "liger_kernel" / "ops").is_dir():
            self.fail(f"{value!r} is not VERSION=FOLDER with liger_kernel in the folder", param, context)
        return version, path


def lacking(cells: Iterable[Published], folders: dict[str, Path]) -> dict[str, int]:
    """The releases of liger-kernel that are not there, and how many cells want each."""
    wanted = [cell.release for cell in cells if cell.library == "liger-kernel" and cell.release not in folders]
    return {release: wanted.count(release) for release in dict.fromkeys(wanted)}


@click.command()
@click.option(
    "--liger", "releases", type=Release(), multiple=True, help="Where a release is, or a checkout of its code."
)
@click.option("--select", default="", metavar="TEXT", help="Only cells with this in their name.")
@click.option("--fresh", is_flag=True, help="Predict anew what --out has already.")
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), default=_KEPT,
    show_default="perf/published/predicted.jsonl",
    help="Keep predictions here, as JSON lines.",
)  # fmt: skip
@click.option(
    "--page", type=click.Path(path_type=Path, dir_okay=False), help="Render a page's tables, as docs/validation.md."
)
@cli.json_option
def command(
    releases: tuple[tuple[str, Path], ...], select: str, fresh: bool, out: Path, page: Path | None, as_json: bool
) -> None:
    """Predict every published time that the model can see, and print both; no GPU is needed.

    Errors are of predictions with all multiprocessors on the memory bus, and of one multiprocessor alone on its share:
    a kernel that cannot use what others leave of the bus lies nearer to the second. Cells that a parameter of a GPU may
    have been fitted to are named so, and do not count in the medians.

    Predicting takes twenty minutes; what --out has is not predicted again.

    \b
    Examples:
      python -m normtriton.perf validate
      python -m normtriton.perf validate --liger 0.8.2=liger/0.8.2 --select "0.8.2 rms-8192x2048" --out tried.jsonl
      python -m normtriton.perf validate --page docs/validation.md
    """  # noqa: D301  \b is click's mark of a paragraph to be left as it is
    if select and page is not None:
        raise click.UsageError("--page shows every cell: leave out --select")
    cells = [cell for cell in published() if select in cell.name]
    kept = cli.Lines(out, resume=not fresh)
    folders = dict(releases)
    done = {row["name"] for row in kept.rows}
    todo = [cell for cell in cells if cell.name not in done]
    missing = lacking(todo, folders)
    ready = [cell for cell in todo if cell.release not in missing]
    with (
        cli.interruptible(lambda: f"{len(kept.rows)} predictions are in {out}"),
        cli.progress("predicting", len(ready)) as step,
    ):
        for cell in ready:
            kept.add(predict(cell, folders.get(cell.release)))
            step(cell.name)
    rows = compared(cells, kept.rows)
    if as_json:
        for row in rows:
            said = {"predicted": row.predicted, "alone": row.alone, "kind": row.kind}
            click.echo(json.dumps({**row.cell._asdict(), **said}))
    else:
        _print(rows)
    if page is not None:
        with cli.writing(page, "--page"):
            page.write_text(rendered(page.read_text(), rows))
    for release, count in missing.items():
        click.echo(
            f"{count} cells are not predicted: pip install --no-deps --target liger/{release} liger-kernel=={release},"
            f" then --liger {release}=liger/{release}", err=True,
        )  # fmt: skip


def _print(rows: Sequence[Compared]) -> None:
    """Print the tables."""
    heads = ("cell", "published, µs", "predicted, µs", "error, %", "one alone, µs", "error, %", "kind", "fitted")
    body = [
        (r.cell.name, f"{r.cell.us:.1f}", f"{r.predicted:.1f}", f"{r.error:+.1f}", f"{r.alone:.1f}",
         f"{r.alone_error:+.1f}", r.kind, r.cell.fitted or "no")
        for r in rows
    ]  # fmt: skip
    cli.show("Predicted beside published times", heads, body, f"Predicted with Triton {triton.__version__}.")
    cli.show("Medians", HEADS, [(k, n, f"{e:.1f}", f"{a:.1f}", b) for k, n, e, a, b in medians(rows)], "")
    far = [f"{r.cell.name}: {r.error:+.0f}" for r in rows if abs(r.error) > FAR]
    click.echo("\n".join([f"{len(far)} cells are off by more than {FAR:g} %:", *far]))
