"""The results that are kept, the pages rendered from them, and the command that measures them."""

import json
import os

import pytest
import triton

if tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 9):
    pytest.skip("results are measured with Triton 3.9 or later", allow_module_level=True)

from normtriton.perf.cases.shapes import FUSED, OFFERED, OFFERED_AROUND, Case, Cell, cells, offers
from normtriton.perf.commands import jobs as running
from normtriton.perf.commands import results
from normtriton.perf.commands.jobs import Job, failed, made_from, measured
from normtriton.perf.commands.results import Store, jobs, update
from normtriton.perf.count import rivals
from normtriton.perf.show import render
from normtriton.perf.show.rows import FIGURES, LIBRARY, NAMED, key, load

ROW = next(cell for cell in cells() if cell.case.name == "layer-8192x4096")
COLUMNS = next(cell for cell in cells() if cell.case.name == "batch-1024x256")


def test_pages_show_what_the_files_say():
    """The committed tables are those that the committed results render to, and none is left out."""
    for page, text in render.rendered().items():
        assert page.read_text() == text, f"{page.name}: run `python -m normtriton.perf results --render`"
    pages = "".join(page.read_text() for page in render.PAGES)
    assert all(f"<!-- table {name} -->" in pages for name in render.TABLES)


def test_every_cell_of_the_tables_is_measured():
    """In every layout, dtype and direction; and of the rest none has failed."""
    files = load(render.RESULTS)
    for job in jobs("", others=False):
        for direction in ("forward", "backward"):
            row = render.find(files, job.file, job.cell, direction)
            shown = (job.instrument, job.machine) in results.THEIRS
            assert "error" not in row or not (shown or row["error"]), (job.name, row)


def fake(job, **figures):
    """Rows of a job whose figures are made up."""
    known = dict.fromkeys(set(FIGURES[job.instrument]) - {"shape", "torch", "triton"}, 1)
    return job.rows({d: {**known, "strategy": "resident", **figures} for d in ("forward", "backward")})


def test_a_table_says_what_is_missing():
    """What no one offers, what was not measured, and why a measurement failed."""
    moved = {"part": 8, "live": 20, "request": 30, "dram": 10, "compulsory": 10}
    ours = fake(Job("traffic", "H100", LIBRARY, ROW), **moved)
    theirs = failed(Job("traffic", "H100", "liger-kernel", ROW), ValueError("no | luck"))
    files = {
        f"traffic-H100{suffix}.jsonl": {key(row): json.loads(json.dumps(row)) for row in rows}
        for suffix, rows in (("", ours), ("-rivals", theirs))
    }
    lines = {tuple(line.split(" | ")[:3]): line for line in render.beside(files, ROW.dtype).splitlines()}
    row = lines["| layer-8192x4096", "contiguous", "forward"]
    assert "not predicted yet<br>1: 2.00 / 3.00 / 1.00<br>not compiled yet" in row
    assert "not predicted yet<br>not measured: ValueError: no / luck<br>" in row
    row = lines["| batch-1024x256", "contiguous", "backward"]
    assert row.endswith(
        "| not offered | not predicted yet<br>not measured yet<br>not compiled yet | not predicted yet |"
    )


def test_the_best_other_library_takes_the_least_in_all():
    """Of those whose two passes are predicted; where there is none the table says so."""
    taken = {"liger-kernel": (9.0, 1.0), "flag-gems": (4.0, 4.0), "torch.compile": (7.0, 7.0)}
    rows = []
    for library, times in taken.items():
        forward, backward = fake(Job("model", "H100", library, ROW))
        rows += [{**row, "us": us} for row, us in zip((forward, backward), times, strict=True)]
    alone, _missing = fake(Job("model", "H100", "flag-gems", render.STEPS["Llama"]))
    lines = render.training({"model-H100-rivals.jsonl": {key(row): row for row in (*rows, alone)}}).splitlines()
    assert "| transformer | layer-8192x4096 | not predicted | 7.0 + 7.0 | flag-gems 4.0 + 4.0 |" in lines
    assert "| Llama | rms-8192x4096 | not predicted | not predicted | not predicted |" in lines


def test_a_table_says_what_binds():
    """Of the longest launch: its part of the pass, what is busiest, and what its warps wait for."""
    busy = {"dram_busy": 0.5, "issue_busy": 0.75, "port_busy": 0.1, "queue_busy": 0.2}
    launches = [{"us": us, **busy, "stalls": {"barrier": 0.3, "dram": 0.01}} for us in (3.0, 1.0)]
    times = {"us": 4.0, "us_alone": 5.0, "of_ceiling": 0.5, "of_ceiling_alone": 0.4, "us_plain": 3.0}
    (row, _) = fake(Job("model", "H100", LIBRARY, ROW), **times, kernels=launches)
    lines = render.predicted({"model-H100.jsonl": {key(row): row}}, ROW.dtype).splitlines()
    (line,) = (line for line in lines if line.startswith("| layer-8192x4096 | contiguous | forward"))
    assert "| not predicted yet | 50% (40%), 4.0 µs | not predicted yet |" in line  # an A100 comes before
    assert line.endswith("| 75% | 75% of it: issue slots 75%; barrier 30% |")


def test_what_is_measured_is_kept(tmp_path, monkeypatch):
    """A second run measures nothing; other versions, or a failure, are measured again."""
    wanted = [Job("traffic", "H100", LIBRARY, cell) for cell in (COLUMNS, ROW)]
    store = Store(tmp_path)
    bad = ValueError("no luck")
    assert update(store, wanted, 1, lambda todo, _n: [(todo[0], fake(todo[0])), (todo[1], failed(todo[1], bad))]) == 1
    again = Store(tmp_path)
    assert [again.has(job) for job in wanted] == [True, False]
    assert update(again, wanted[1:], 1, lambda todo, _n: [(todo[0], fake(todo[0]))]) == 0
    assert all(Store(tmp_path).has(job) for job in wanted)
    lines = [json.loads(line) for line in (tmp_path / "traffic-H100.jsonl").read_text().splitlines()]
    assert [row["case"] for row in lines] == [ROW.case.name] * 2 + [COLUMNS.case.name] * 2  # in the cells' order
    assert all([*row] == sorted(row) for row in lines)
    monkeypatch.setattr(running, "_TORCH", "0.1")
    made_from.cache_clear()
    assert not any(Store(tmp_path).has(job) for job in wanted)
    made_from.cache_clear()


def test_a_change_of_plan_is_measured_again(monkeypatch):
    """A plan's constant counts; a comment in a kernel does not."""
    from normtriton.planning import plan, schedule

    job = Job("traffic", "A100", LIBRARY, Cell(ROW.case, "contiguous", "float32"))
    made_from.cache_clear()
    before = made_from(job)
    monkeypatch.setattr(plan, "PER_THREAD", plan.PER_THREAD // 2)
    monkeypatch.setattr(plan, "RESIDENT_FORWARD", 1024)
    for cached in (made_from, schedule.forward_schedule):
        cached.cache_clear()
    assert made_from(job) != before
    monkeypatch.undo()
    for cached in (made_from, schedule.forward_schedule):
        cached.cache_clear()
    assert made_from(job) == before


def test_source_without_comments(tmp_path):
    """Comments, docstrings and layout are not what a file does."""
    plain, dressed, other = tmp_path / "a.py", tmp_path / "b.py", tmp_path / "c.py"
    plain.write_text("def f(x):\n    return x + 1\n")
    dressed.write_text('"""Doc."""\n\n\ndef f(x):\n    """Doc."""\n    return (x  # one\n        + 1)\n')
    other.write_text("def f(x):\n    return x + 2\n")
    assert running._source(plain) == running._source(dressed) != running._source(other)


def die_of_columns(job):
    """Stands for `work`, in a worker: one cell takes the process with it, another raises nothing and has figures."""
    if job.cell.case.norm == "batch":
        os._exit(1)
    return fake(job)


def test_a_cell_that_dies_does_not_stop_the_rest(monkeypatch):
    """A worker that is killed costs its own cell, which says so."""
    monkeypatch.setattr(running, "work", die_of_columns)
    todo = [Job("traffic", "H100", LIBRARY, cell) for cell in (COLUMNS, ROW)]
    done = dict(measured(todo, 1))
    assert "BrokenProcessPool" in done[todo[0]][0]["error"]
    assert done[todo[1]][0]["launches"] == 1


def test_what_is_offered_is_measured():
    """Every library of the table has a way to be run."""
    from normtriton.perf.count.rivals import RUNS

    assert set(RUNS) == {*OFFERED, *OFFERED_AROUND}


@pytest.mark.parametrize(
    ("library", "case", "model", "traffic"),
    [
        ("flag-gems", "layer-8192x768", True, True),
        ("flag-gems", "layer-8192x768+residual", True, False),
        ("flag-gems", "rms-8192x4096+gate", False, False),
        ("stable-fast", "group32-8x320x64x64+silu", True, False),
        ("stable-fast", "group32-8x320x64x64", False, False),
        ("torch.compile", "rms-8192x4096+gate", True, False),
    ],
)
def test_what_surrounds_a_norm_is_another_offer(library, case, model, traffic):
    """A library's norm says nothing of what it computes around one, at which the model alone can look."""
    assert [offers(library, Case.named(case), which) for which in ("model", "traffic")] == [model, traffic]


def test_the_fused_table_hides_nothing(monkeypatch):
    """It says what a library lacks, whether it offers anything or no backward pass, and where it takes less."""
    cell = Cell(Case.named("layer-8192x768+residual"), "contiguous", "bfloat16")
    assert cell.case in FUSED

    def row(library, us, moved):
        kernel = {"dram_read": moved, "dram_write": 0}
        times = {"us": us, "us_alone": us, "of_ceiling": 0.5, "of_ceiling_alone": 0.4, "compulsory": 100}
        return fake(Job("model", "H100", library, cell), **times, kernels=[kernel])

    monkeypatch.setattr(rivals, "version", lambda _library: "1.0")
    monkeypatch.setattr(rivals, "_commit", lambda _package: "1.0")
    forward, backward = row("flag-gems", 7.0, 75)
    backward = {"error": rivals.FORWARD_ONLY} | {name: backward[name] for name in NAMED}
    ours, theirs = row(LIBRARY, 8.0, 100), (forward, backward)
    files = {
        f"model-H100{suffix}.jsonl": {key(row): row for row in rows}
        for suffix, rows in (("", ours), ("-rivals", theirs))
    }
    text = render.fused(files, "bfloat16")
    assert f"Other libraries' code was run on the model on {forward['date']}." in text and "flag-gems 1.0" in text
    lines = {tuple(line.split(" | ")[:3]): line for line in text.splitlines()}
    forward, backward = (lines["| layer-8192x768+residual", "contiguous", of] for of in ("forward", "backward"))
    assert "| flag-gems (without the sum)<br>50% (40%), 7.0 µs<br>1: 0.75 |" in forward
    assert "| flag-gems (without the sum)<br>not predicted: it has no backward pass |" in backward
    assert "| not offered |" in lines["| layer-64x197x768+x-scale", "contiguous", "forward"]
    less = "takes 7.0 µs against 8.0, 0.75 of the compulsory bytes against 1.00."
    assert text.endswith(
        f"\n\nHere another takes less than ours:\n\n"
        f"- layer-8192x768+residual, contiguous, forward: flag-gems (without the sum) {less}"
    )
    assert render.fused({}, "bfloat16").endswith("\n- nowhere.")
