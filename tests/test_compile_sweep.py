"""Plans that nobody listed: a seeded sample of shapes compiles for each target and spills what plans say. Slow.

    make sweep                       # NORMTRITON_SWEEP shapes for each target, 60 unless it is set

Runs in a process of its own, without TRITON_INTERPRET=1; see conftest.py.
"""

import math
import os
import random

import pytest
import torch
from normtriton.perf.cases.shapes import LAYOUTS, Case, Cell
from normtriton.perf.cases.targets import H100, H100_CLUSTERS, TARGETS
from normtriton.perf.count.codegen import compile_launch, compiler, read_code
from normtriton.perf.count.launches import planned

from normtriton.explain import backward_direction, forward_direction
from normtriton.runtime.clusters import compiles

COUNT = int(os.environ.get("NORMTRITON_SWEEP", "60"))
#: Widths of rows, and numbers of channels and of positions, that plans branch on or that people have.
WIDE = (65536, 65537, 131072, 262144)
POSITIONS = ((7, 7), (14, 14), (1, 49), (31, 31), (64, 64), (56, 56), (100, 101), (128, 128), (180, 181), (1, 1))


def number(rng, most):
    """A power of two, its neighbour, or any number."""
    power = 1 << rng.randint(3, int(math.log2(most)))
    return rng.choice([power, power + 1, power - 1, rng.randint(1, most), 2 * rng.randint(1, most // 2)])


def cell(rng):
    """A norm of a shape, in a layout and a dtype."""
    norm = rng.choice(["layer", "rms", "batch", "instance", "group"])
    dtype = rng.choice(["bfloat16", "bfloat16", "float32", "float32", "float64"])
    rows = rng.choice([1, 7, 64, 1000, 8192])
    if norm in ("layer", "rms"):
        width = rng.choice(WIDE) if rng.random() < 0.2 else number(rng, 1 << 17)
        return Cell(Case(norm, (rows, width)), "contiguous", dtype)
    channels = number(rng, 1024)
    groups = rng.choice([g for g in range(1, channels + 1) if channels % g == 0]) if norm == "group" else 0
    size = rng.choice(POSITIONS if norm == "batch" and rows > 1 else [p for p in POSITIONS if p != (1, 1)])
    batch = rng.choice([1, 2, 31, 32, 64]) if norm != "batch" else rng.choice([8, 31, 32, 128])
    return Cell(Case(norm, (batch, channels, *size), groups), rng.choice([*LAYOUTS]), dtype)


def sample(target):
    """The target's own shapes, and what dtype parameters have: others for each, the same on every run."""
    rng = random.Random(target)  # noqa: S311  a sample, not a secret
    return [(cell(rng), rng.choice([None, torch.float32])) for _ in range(COUNT)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "cell", "parameters"),
    [
        pytest.param(target, cell, parameters, id=f"{target}-{cell.case.name}-{cell.layout}-{cell.dtype}-{parameters}")
        for target in TARGETS
        for cell, parameters in sample(target)
    ],
)
def test_no_plan_spills(target, cell, parameters):
    """Every launch, forward and backward, with clusters where the target has them.

    What a plan passed over and kept all the same, since no tile fits and reading twice costs more, it says.
    """
    device = H100_CLUSTERS if target in ("sm_90", "sm_100") and compiles() else H100
    device = device._replace(compiler=compiler(target))
    plan = planned(cell.case, *cell.options, device, parameters)
    for name, direction in (("forward", forward_direction), ("backward", backward_direction)):
        passed = direction(plan.call, plan.x, plan.weight, plan.bias, device).schedule.passed
        known = {0, *(int(line.split(": spills ")[1].split()[0]) for line in passed if ": spills " in line)}
        for recorded in plan.launches[name]:
            code = read_code(compile_launch(recorded, target))
            assert code.stack in known, (name, recorded.launch.kernel, code.stack, recorded.launch.plan, code)
