"""The commands that need no GPU, and the arithmetic behind what they print."""

import json
from itertools import pairwise

import pytest
import torch
import triton

if tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 9):
    pytest.skip("results are measured with Triton 3.9 or later", allow_module_level=True)

from click.testing import CliRunner
from normtriton.perf.cases.shapes import SETS, Case, Cell, cells, make
from normtriton.perf.cases.targets import PLANNED_FOR, TARGETS
from normtriton.perf.cli import COMMANDS, main
from normtriton.perf.commands import offline
from normtriton.perf.commands.jobs import Job, failed
from normtriton.perf.count import rivals
from normtriton.perf.count.codegen import TensorAccess, loaded_at_once
from normtriton.perf.count.occupancy import LIMITS, resident_blocks
from normtriton.perf.show.rows import LIBRARY
from normtriton.perf.time.predict import GPUS, device_of

TINY = "layer-64x256"
INSTRUMENTS = ("traffic", "codegen", "time")


def run(*arguments):
    """The command's exit status, and what it printed: results, and messages."""
    ran = CliRunner().invoke(main, [*map(str, arguments)])
    return ran.exit_code, ran.stdout, ran.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_help(name):
    """Every command shows how it is called."""
    status, text, _said = run(name, "--help")
    assert status == 0
    assert f"Examples:\n    python -m normtriton.perf {name}" in text


@pytest.mark.parametrize("name", INSTRUMENTS)
@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--shapes", "llm,lstm-8x8", "or one of the sets"),
        ("--dtypes", "int8", "'int8' is none of bfloat16, float32"),
        ("--layouts", "transposed", "none of contiguous, channels_last"),
    ],
)
def test_unknown_names(name, option, value, said):
    """What there is not is refused, with what there is."""
    status, _text, message = run(name, option, value)
    assert status == 2
    assert said in " ".join(message.split())


@pytest.mark.parametrize("name", INSTRUMENTS)
def test_a_folder_that_cannot_be_written(name, tmp_path):
    """Before anything is measured, with the remedy."""
    (tmp_path / "file").touch()
    status, _text, said = run(name, "--out", tmp_path / "file" / "out")
    assert status == 1
    assert "cannot be written" in said and "--out" in said


def test_nothing_to_measure():
    """A layout that the shapes cannot have, a library that is not there, or not for such a GPU."""
    status, _text, said = run("traffic", "--shapes", TINY, "--layouts", "channels_last")
    assert status == 1 and "nothing to measure" in said


def test_other_libraries(monkeypatch):
    """One that is not installed says how to install it; one that is, where it is measured."""
    monkeypatch.setattr(rivals, "version", lambda _library: rivals.MISSING)
    status, _text, said = run("traffic", "--libraries", "liger-kernel")
    assert status == 1 and "pip install --no-deps liger-kernel" in said
    status, _text, said = run("time", "--libraries", "stable-fast", "--shapes", "fused")
    assert status == 1 and "git clone" in said and "PYTHONPATH" in said
    monkeypatch.setattr(rivals, "version", lambda _library: "1.0")
    status, _text, said = run("traffic", "--libraries", "stable-fast", "--shapes", "fused")
    assert status == 1 and "nothing to measure" in said
    status, _text, said = run("codegen", "--libraries", "liger-kernel", "--targets", "sm_80,sm_90")
    assert status == 1 and "not for sm_80" in said


MOVED = {"strategy": "resident", "part": 1, "launches": 1, "live": 2, "request": 2, "dram": 2, "compulsory": 2}


def interrupted(wanted, _processes):
    """Stands for `measured`: one cell, of made-up figures, then Ctrl-C."""
    yield wanted[0], wanted[0].rows(dict.fromkeys(wanted[0].directions, MOVED))
    raise KeyboardInterrupt


def test_an_interrupt_keeps_what_was_measured(monkeypatch, tmp_path):
    """Ctrl-C ends a run with its own status; rows are on disk and in the table."""
    monkeypatch.setattr(offline, "measured", interrupted)
    status, text, said = run("traffic", "--shapes", "llm", "--directions", "forward", "--out", tmp_path)
    assert status == 130
    assert f"1 rows were measured and kept in {tmp_path}" in said
    assert text.count(" forward ") == 1
    (row,) = map(json.loads, (tmp_path / "traffic-H100.jsonl").read_text().splitlines())
    assert row["dram"] == 2


def test_a_cell_that_fails(monkeypatch, tmp_path):
    """It says why in its place, the others have their figures, and the status tells."""

    def measured(wanted, _processes):
        yield wanted[0], failed(wanted[0], ValueError("no luck"))
        yield wanted[1], wanted[1].rows(dict.fromkeys(wanted[1].directions, MOVED))

    monkeypatch.setattr(offline, "measured", measured)
    status, text, said = run("traffic", "--shapes", TINY, "--out", tmp_path)
    assert status == 1
    assert "failed: ValueError: no luck" in text and "1.00" in text
    assert "2 of 4 rows could not be measured" in said


def test_a_pass_that_a_library_does_not_have_is_no_failure(monkeypatch):
    """It says so in its place, and the status is that of a success."""

    def measured(wanted, _processes):
        figures = {"us": 5.0, "us_alone": 6.0, "of_ceiling": 0.5, "of_ceiling_alone": 0.4, "gbps": 1000.0}
        launch = {"kernel": "k", "us": 5.0, "stalls": {}, "dram_read": 100, "dram_write": 0, "guessed": 0, "cluster": 1}
        launch |= dict.fromkeys(("blocks", "warps", "resident", "registers", "spills"), 1)
        launch |= {f"{name}_busy": 0.5 for name in ("dram", "issue", "port", "queue")}
        figures |= {"compulsory": 100, "kernels": [launch]}
        yield wanted[0], wanted[0].rows({"forward": figures, "backward": {"error": rivals.FORWARD_ONLY}})

    monkeypatch.setattr(offline, "measured", measured)
    monkeypatch.setattr(rivals, "version", lambda _library: "1.0")
    asked = ("--shapes", "layer-64x256+residual", "--dtypes", "bfloat16", "--libraries", "flag-gems")
    status, text, said = run("time", *asked)
    assert status == 0, said
    assert " it has no backward pass " in text and "failed" not in text


def test_a_cell_through_both(monkeypatch, tmp_path):
    """JSON lines that parse; what is kept is not measured again."""
    asked = ("--shapes", TINY, "--dtypes", "float16", "--directions", "forward", "--jobs", "1", "--out", tmp_path)
    status, text, _said = run("codegen", *asked, "--targets", "gfx942,sm_90", "--json")
    assert status == 0
    amd, nvidia = map(json.loads, text.splitlines())
    assert (amd["machine"], nvidia["machine"]) == ("gfx942", "sm_90")
    for row in (amd, nvidia):
        (kernel,) = row["kernels"]
        assert kernel["in_flight"] == kernel["resident_blocks"] * 64 * 256 * 2 / kernel["blocks"]  # rows, dealt out
        assert set(kernel["tensors"]) == {"16"}
    status, text, _said = run("traffic", *asked, "--json")
    assert status == 0
    (row,) = map(json.loads, text.splitlines())
    assert (row["dtype"], row["launches"], row["compulsory"]) == ("float16", 1, 2 * 64 * 256 * 2 + 2 * 256 * 2)
    monkeypatch.setattr(offline, "measured", lambda wanted, _processes: iter(pairwise(wanted)))
    status, text, _said = run("traffic", *asked)
    assert status == 0
    assert f" {row['dram'] / row['compulsory']:.2f} " in text


def test_volumes():
    """Every shape of the set for segmentation is planned in both layouts; channels_last is PyTorch's for volumes."""
    found = cells(SETS["segmentation-3d"], dtypes=["float16"])
    assert len(found) == 2 * len(SETS["segmentation-3d"])
    assert {cell.options[1] for cell in found} == {torch.contiguous_format, torch.channels_last_3d}
    _call, x, _weight, _bias = make(found[1].case, *found[1].options)
    assert x.is_contiguous(memory_format=torch.channels_last_3d) and x.dtype == torch.float16


@pytest.mark.parametrize(
    ("target", "warps", "registers", "shared", "blocks"),
    [
        ("sm_90", 4, 128, 16, 4),  # 65536 registers / (4 x 32 x 128)
        ("sm_90", 8, 72, 0, 3),  # a quarter has 16384 / (32 x 72) = 7 warps, all have 28
        ("sm_90", 8, 65, 0, 3),  # as 72: registers are given by eights
        ("sm_80", 4, 32, 40 << 10, 4),  # 164 KiB / (40 + 1)
        ("sm_90", 4, 32, 40 << 10, 5),  # 228 KiB / (40 + 1)
        ("sm_100", 16, 32, 0, 4),  # 64 warps
        ("sm_100", 1, 16, 0, 32),
        ("gfx942", 8, 76, 0, 3),  # of a SIMD's 512 registers for a lane, 80 for each of 6 wavefronts
        ("gfx942", 4, 32, 20 << 10, 3),  # 64 KiB
        ("gfx942", 2, 32, 0, 16),  # barriers
        ("gfx942", 1, 32, 0, 32),
    ],
)
def test_occupancy(target, warps, registers, shared, blocks):
    """Thread blocks that a multiprocessor has room for, computed by hand from the vendors' tables."""
    assert resident_blocks(target, warps, registers, shared) == blocks


def test_loops_count_once():
    """Of the stretches of a program's text, that which loads most is in flight; stores are not."""
    accesses = [TensorAccess(True, 16, 0), TensorAccess(True, 16, 1), TensorAccess(True, 8, 1)]
    assert loaded_at_once([*accesses, TensorAccess(False, 16, 1)]) == 24
    assert loaded_at_once([]) == 0


def test_every_target_has_its_gpu():
    """Limits for each target; a GPU whose times are predicted is planned for as its target is, where that names it."""
    assert set(LIMITS) == set(TARGETS) == set(PLANNED_FOR)
    modelled = {GPUS[name].target: device_of(GPUS[name]) for name, _device in PLANNED_FOR.values() if name in GPUS}
    assert modelled == {target: device for target, (name, device) in PLANNED_FOR.items() if name in GPUS}
    assert len(modelled) == 2
    assert all(LIMITS[name].lanes == target.warp_size for name, target in TARGETS.items())


def test_directions_of_a_job():
    """A job for one pass has the rows of that alone."""
    job = Job("traffic", "H100", LIBRARY, Cell(Case("layer", (64, 256)), "contiguous", "float32"), ("backward",))
    assert [row["direction"] for row in job.rows({"forward": {}, "backward": {}})] == ["backward"]
