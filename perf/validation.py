"""``python -m normtriton.perf validate``: predicted times beside published ones.

    for v in 0.3.0 0.6.1 0.8.0 0.8.2; do pip install --no-deps --target liger/$v liger-kernel==$v; done
    python -m normtriton.perf validate --liger 0.3.0=liger/0.3.0 --liger 0.6.1=liger/0.6.1 ... --out validation.jsonl

Published times are in perf/published. Each is of a commit; the releases named there have the same kernels.
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

from . import cli, inductor, render, rivals, timed
from .emulator.timer import GPUS, Timer
from .shapes import Case, Cell

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from .emulator.timer import Gpu, Timed
    from .render import Row

PUBLISHED = Path(__file__).parent / "published"
PAGE = Path(__file__).parent.parent / "docs" / "validation.md"

#: Microseconds that a measurement adds to what the kernels take. A pair of events around a launch, or around the replay
#: of a graph, adds the time between the launches; a profiler's times are the kernels' own. Fitted: to the smallest
#: forward pass of each GPU.
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

#: Errors above this are to be explained.
FAR = 15.0


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
        return f"{self.library} {self.release or self.commit} {self.norm}-{shape} {self.dtype} {self.direction} {self.gpu}"


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
        return inductor.timed(one, timer, (cell.direction,), **INDUCTOR)[cell.direction]
    assert folder is not None
    with imported(folder):
        return timed.passes(lambda: liger(cell), timer, (cell.direction,))[cell.direction]


def kind(cell: Published, found: Sequence[Timed], gpu: Gpu) -> str:
    """Which of the kinds a cell is that errors are summed up by."""
    if any(step.spills for step in found):
        return "spills"
    if cell.us < FEW:
        return f"less than {FEW:g} µs"
    if cell.direction == "forward":
        return "forward"
    longest = max(found, key=lambda step: step.us)
    return "backward, persistent" if 0 < longest.blocks <= gpu.sms * longest.resident else "backward, a program a row"


def error(predicted: float, measured: float) -> float:
    """Percent by which a prediction is too long."""
    return 100 * (predicted / measured - 1)


def predict(cell: Published, folder: Path | None) -> Row:
    """A row: what was published, and what the model says."""
    began = time.perf_counter()
    gpu = GPUS[cell.gpu]
    share = 4 if cell.rows * cell.columns > LARGE else 1
    found = steps(cell, folder, replace(gpu, share=share))
    alone = steps(cell, folder, replace(gpu, share=gpu.sms))
    added = ADDED[cell.timed_by, cell.gpu]
    us, alone_us = (sum(float(step.us) for step in passed) + added for passed in (found, alone))
    return {
        **cell._asdict(), "name": cell.name, "predicted": us, "alone": alone_us, "added": added, "share": share,
        "error": error(us, cell.us), "alone_error": error(alone_us, cell.us), "kind": kind(cell, found, gpu),
        "steps": [[step.kernel, float(step.us), int(step.blocks), int(step.spills)] for step in found],
        "triton": triton.__version__, "torch": torch.__version__, "seconds": time.perf_counter() - began,
    }  # fmt: skip
