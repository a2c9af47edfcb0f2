"""A trial of thread-block clusters on a device: whether what they compute is what separate launches do."""

from __future__ import annotations

import warnings

import torch

from ..planning import norms
from ..planning.plan import Device
from ..planning.schedule import Problem
from . import clusters, launch


def trial(index: int) -> bool:
    """Run a small layer norm in clusters and without, forward and backward, and compare."""
    # every element takes part in the comparison, and no two lie alike: a program that lost its share would show
    x = torch.arange(3 * 65536, device=f"cuda:{index}").mul_(40503).remainder_(65521).view(3, 65536).to(torch.bfloat16)
    weight = x[1].float() / 65521
    dy = x.flip(0)
    problem, eps = Problem(norms.LAYER, tuple(x.shape), (("d", 1),)), 1e-5
    results = []
    try:
        for clustered in (True, False):
            device = Device(132, clustered)
            y, mean, rstd = launch.forward(problem, x, weight, weight, eps, None, False, device=device)
            wants = (True, torch.float32, torch.float32)
            gradients = launch.backward(problem, dy, x, weight, mean, rstd, None, eps, wants, device)
            results.append([t.float() for t in (y, mean, rstd, *gradients) if t is not None])
        torch.cuda.synchronize(index)
    except Exception as error:  # noqa: BLE001  whatever a driver or compiler raises, the answer is no
        warnings.warn(f"normtriton: a trial of thread-block clusters failed: {error}", RuntimeWarning, stacklevel=2)
        return False
    # a lost share is an error of the size of the results; rounding, of bfloat16's last digit
    return index not in clusters.refused and all(
        bool(((a - b).abs() <= 2e-2 * b.abs() + 2e-3 * b.abs().max()).all()) for a, b in zip(*results, strict=True)
    )


clusters.trial = trial
