"""Nothing became worse than the committed results: a few cheap cells, measured anew and compared as `compare` does.

Interpreted, what they move; compiled (TRITON_INTERPRET=0), their code, for each target, and predicted times.
"""

import json
import os

import pytest
import triton

if tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 9):
    pytest.skip("results are measured with Triton 3.9 or later", allow_module_level=True)

from normtriton.perf.cases.shapes import Case, Cell
from normtriton.perf.cases.targets import PLANNED_FOR
from normtriton.perf.commands.compare import changes, read
from normtriton.perf.commands.jobs import Job, figures
from normtriton.perf.count.l2 import MACHINES
from normtriton.perf.count.launches import planned
from normtriton.perf.show.render import RESULTS
from normtriton.perf.show.rows import LIBRARY, key

GROUP = Cell(Case("group", (8, 320, 64, 64), 32), "contiguous", "bfloat16")
BATCH = Cell(Case("batch", (1024, 256)), "contiguous", "float32")
TRAFFIC = [
    Job("traffic", "H100", LIBRARY, GROUP),  # resident, then clustered
    Job("traffic", "A100", LIBRARY, GROUP, ("backward",)),  # split
    *(Job("traffic", machine, LIBRARY, BATCH) for machine in MACHINES),
]
CODE = [Job("code", target, LIBRARY, GROUP) for target in PLANNED_FOR]  # as on an H100, or as on an A100
MODEL = [Job("model", "H100", LIBRARY, cell) for cell in (GROUP, BATCH)]
SAMPLE = TRAFFIC if os.environ["TRITON_INTERPRET"] == "1" else CODE + MODEL
#: What a figure may grow by. Predictions are exact too, but the least change of a schedule moves them.
THRESHOLD = {"traffic": 0.0, "code": 0.0, "model": 0.01}


def regressions(rows, committed):
    """What is worse in rows of a job than in those that are committed, in words; by more than `THRESHOLD`."""
    rows = json.loads(json.dumps(rows))
    place = f"{rows[0]['instrument']} {rows[0]['machine']}"
    new = {key(row): row for row in rows}
    allowed = THRESHOLD[rows[0]["instrument"]]
    worse = [change for change in changes(committed, {place: new}, allowed) if change.worse]
    return [
        f"{place}: {' '.join(c.cell)}: {c.figure} {c.old:g}, now {c.new:g} ({c.by}); "
        "if that is meant, `make results` measures the baseline anew"
        for c in worse
    ]


@pytest.fixture(scope="module")
def committed():
    """The committed results."""
    return read(RESULTS)


@pytest.mark.parametrize("job", SAMPLE, ids=lambda job: job.name)
def test_nothing_is_worse_than_committed(job, committed):
    """Not one more byte, launch, spilled byte or instruction, and no predicted time that is 1 % longer."""
    held = committed[f"{job.instrument} {job.machine}"]
    for row in job.rows({direction: {} for direction in job.directions}):
        assert key(row) in held, f"{job.name} is not in the baseline; `make results` measures it"
        before = held[key(row)]
        if (before["triton"], before["torch"]) != (row["triton"], row["torch"]):
            pytest.skip(f"the baseline is of triton {before['triton']}, torch {before['torch']}")
    found = regressions(job.rows(figures(job)), committed)
    assert not found, "\n".join(found)


def test_the_sample_reaches_every_strategy():
    """A group held by a program, by a cluster, and by none."""
    devices = {name: machine.device for name, machine in MACHINES.items()}
    devices |= {target: device for target, (_gpu, device) in PLANNED_FOR.items()}
    reached = {
        planned(job.cell.case, *job.cell.options, devices[job.machine]).strategies[direction]
        for job in (TRAFFIC if SAMPLE is TRAFFIC else CODE)
        for direction in job.directions
    }
    assert reached == {"resident", "clustered", "split"}


def test_a_regression_is_found(committed):
    """One more byte of DRAM traffic fails, and says of which cell, and how to accept it; so does a longer time."""
    place = "traffic H100"
    row = next(row for row in committed[place].values() if "error" not in row and row["library"] == LIBRARY)
    assert regressions([row], committed) == []
    (said,) = regressions([row | {"dram": row["dram"] + 1}], committed)
    assert said.startswith(f"{place}: {row['case']} {row['layout']} {row['dtype']} {row['direction']} {LIBRARY}: dram")
    assert "make results" in said
    row = next(row for row in committed["model H100"].values() if "error" not in row and row["library"] == LIBRARY)
    assert regressions([row | {"us": 1.009 * row["us"]}], committed) == []
    (said,) = regressions([row | {"us": 1.011 * row["us"]}], committed)
    assert "predicted us" in said
