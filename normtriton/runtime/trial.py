"""A trial of thread-block clusters on a device: whether what they compute is what separate launches do."""

from __future__ import annotations

import warnings
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from ..planning import norms
from ..planning.plan import Device
from ..planning.schedule import Problem
from . import clusters, launch


class Sample(NamedTuple):
    """A small norm whose pass a cluster makes in one of the `normtriton.clusters.FORMS`, in bfloat16."""

    problem: Problem
    channels_last: bool = False


#: Multiprocessors that the samples are planned for: as few as small samples fill.
SMS = 2

_ROWS = Sample(Problem(norms.INSTANCE, (1, 2, 256, 192)))
_COLUMNS = Sample(Problem(norms.BATCH, (5, 16, 20, 20)), channels_last=True)
_CELLS = Sample(Problem(norms.GROUP, (1, 60, 16, 16), (("g", 10),)), channels_last=True)
SAMPLES = {
    "rows forward": _ROWS,
    "rows backward": _ROWS,
    "swept rows backward": Sample(Problem(norms.LAYER, (3, 12288), (("d", 1),))),
    "columns forward": _COLUMNS,
    "columns backward": _COLUMNS,
    "cells forward": _CELLS,
    "cells backward": _CELLS,
}


def tensors(sample: Sample, where: torch.device | str) -> tuple[Tensor, Tensor, Tensor]:
    """(x, dy, weight). No two elements of a group lie alike, so that a thread block that lost its share would show."""
    shape = sample.problem.shape
    x = torch.arange(prod(shape), device=where).mul_(40503).remainder_(65521).view(shape)
    dy = x.flip(0, -1).remainder(251)
    x, dy = (t.to(torch.bfloat16) for t in (x, dy))
    if sample.channels_last:
        x, dy = (t.to(memory_format=torch.channels_last) for t in (x, dy))
    shape = sample.problem.parameter_shape
    weight = torch.arange(prod(shape), device=where).mul_(40503).remainder_(251).sub_(125).div(125.0).view(shape)
    return x, dy, weight


def results(sample: Sample, form: str, device: Device, where: torch.device | str) -> list[Tensor]:
    """What the pass that a form belongs to gives, planned for a device."""
    problem, eps = sample.problem, 1e-5
    x, dy, weight = tensors(sample, where)
    if form.endswith("forward"):
        found: tuple[Tensor | None, ...] = launch.forward(problem, x, weight, weight, eps, None, False, device=device)
    else:
        alone = device._replace(clusters=False)
        _y, mean, rstd = launch.forward(problem, x, weight, weight, eps, None, False, device=alone)
        wants = (True, torch.float32, torch.float32)
        found = launch.backward(problem, dy, x, weight, mean, rstd, None, eps, wants, device)
    return [t.float() for t in found if t is not None]


def trial(index: int, form: str) -> bool:
    """Make a form's pass in clusters and without, on a device, and compare."""
    where = f"cuda:{index}"
    try:
        both = [results(SAMPLES[form], form, Device(SMS, clustered), where) for clustered in (True, False)]
        torch.cuda.synchronize(index)
    except Exception as error:  # noqa: BLE001  whatever a driver or compiler raises, the answer is no
        warnings.warn(f"normtriton: a trial of thread-block clusters failed: {error}", RuntimeWarning, stacklevel=2)
        return False
    # a lost share is an error of the size of the results; rounding, of bfloat16's last digit
    return index not in clusters.refused and all(
        bool(((a - b).abs() <= 2e-2 * b.abs() + 2e-3 * b.abs().max()).all()) for a, b in zip(*both, strict=True)
    )


clusters.trial = trial
