"""The comparison of predicted with published times: its data, its arithmetic and its page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from normtriton.perf import cli
from normtriton.perf.commands import validation
from normtriton.perf.commands.validation import Compared, Published
from normtriton.perf.emulator.timer import GPUS
from normtriton.perf.time import timed

TINY = Published(
    "liger-kernel", "9.9", "0000000", "a file", "rms", "forward", 64, 256, "float32", "H100", 10.0, "events", ""
)


def test_published_times_are_enough_and_whole():
    """There are at least 40 published times that no parameter was fitted to, each once, of a known GPU and method."""
    cells = validation.published()
    assert sum(not cell.fitted for cell in cells) >= 40
    assert len({cell.name for cell in cells}) == len(cells)
    assert all(cell.us > 0 and (cell.timed_by, cell.gpu) in validation.ADDED for cell in cells)
    assert {cell.direction for cell in cells} == {"forward", "backward"}
    assert all(cell.commit and cell.file for cell in cells)
    assert all(bool(cell.release) == (cell.library == "liger-kernel") for cell in cells)


def test_one_published_time_is_the_source_s():
    """RMS norm's backward pass of 8192 rows of 2048 bfloat16 took liger-kernel's Triton kernel 95.37 µs on an H100."""
    found = [c for c in validation.published() if c.name == "liger-kernel 0.8.2 rms-8192x2048 bfloat16 backward H100"]
    assert [c.us for c in found] == [95.37]


def row(us, predicted, alone, steps=(("k", 9.0, 64, 0),), **changes):
    """A made-up comparison."""
    cell = TINY._replace(us=us, **changes)
    return validation.compared([cell], [{"name": cell.name, "predicted": predicted, "alone": alone, "steps": steps}])[0]


def test_errors_have_a_sign_and_are_of_the_published_time():
    """Too long is positive; the published time is the whole."""
    one = row(20.0, 18.0, 25.0)
    assert (one.error, one.alone_error) == (pytest.approx(-10), pytest.approx(25))
    assert one.between
    assert not row(20.0, 18.0, 19.0).between


def test_medians_are_by_kind_and_without_fitted_cells():
    """A fitted cell counts nowhere; an even number has the mean of the two in the middle."""
    rows = [
        row(100.0, 110.0, 100.0),
        row(100.0, 70.0, 80.0),
        row(10.0, 15.0, 10.0),
        row(100.0, 900.0, 1.0, fitted="dram"),
    ]
    found = {name: rest for name, *rest in validation.medians(rows)}
    assert found["forward"] == [2, pytest.approx(20), pytest.approx(10), 1]
    assert found["less than 15 µs"] == [1, pytest.approx(50), pytest.approx(0), 1]
    assert found["all"] == [3, pytest.approx(30), pytest.approx(0), 2]


@pytest.mark.parametrize(
    ("direction", "us", "steps", "kind"),
    [
        ("forward", 90.0, [("k", 80.0, 4096, 0)], "forward"),
        ("forward", 9.0, [("k", 8.0, 4096, 0)], "less than 15 µs"),
        ("backward", 9.0, [("k", 8.0, 132, 16)], "spills"),
        ("backward", 90.0, [("k", 80.0, 132, 0), ("aten::sum", 3.0, 0, 0)], "backward, persistent"),
        ("backward", 90.0, [("k", 80.0, 133, 0), ("j", 3.0, 8, 0)], "backward, others"),
        ("backward", 90.0, [("k", 8.0, 132, 0), ("aten::sum", 80.0, 0, 0)], "backward, others"),
    ],
)
def test_kinds(direction, us, steps, kind):
    """A kind comes from the launches: what spills, what is short, and whether the longest is persistent."""
    assert validation.kind(TINY._replace(direction=direction, us=us), steps) == kind


def test_the_page_has_the_tables_of_the_kept_predictions():
    """docs/validation.md is what the command renders from the predictions that are kept, of every published time."""
    kept = [json.loads(line) for line in validation._KEPT.read_text().splitlines()]
    cells = validation.published()
    rows = validation.compared(cells, kept)
    assert len(rows) == len(cells) == len(kept)
    text = validation.PAGE.read_text()
    assert validation.rendered(text, rows) == text
    assert validation.rendered(text, rows[:-1]) != text


def test_a_release_is_a_folder_with_the_library(tmp_path):
    """A folder without it is refused, before anything is predicted."""
    result = CliRunner().invoke(cli.main, ["validate", "--liger", f"0.8.2={tmp_path}"])
    assert result.exit_code == 2
    assert "liger_kernel" in result.output


def test_compared_rows_have_what_the_tables_show():
    """A table has a line a cell, and says what a cell may have been fitted to."""
    rows = [row(20.0, 18.0, 25.0), row(30.0, 18.0, 25.0, fitted="dram")]
    lines = validation.cell_table(rows).splitlines()
    assert len(lines) == 4
    assert lines[2].endswith("| no |") and lines[3].endswith("| dram |")
    assert isinstance(rows[0], Compared)
    assert Path(validation.PAGE).name == "validation.md"


def test_an_operation_of_pytorch_moves_its_bytes():
    """It takes as long as a copy of so many bytes, and what any kernel takes to start and end."""
    step = timed.stream(GPUS["H100"], "sum", 2_000_000, 1_000_000)
    assert step.us == pytest.approx(1.0 + 1.5)
    assert (step.kernel, step.dram_read, step.dram_write) == ("aten::sum", 2e6, 1e6)
