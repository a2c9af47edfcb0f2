"""Other libraries' kernels compiled and timed: a made-up release of liger-kernel, and torch.compile's kernels."""

from __future__ import annotations

import json
import sys

import pytest
from click.testing import CliRunner
from normtriton.perf import cli
from normtriton.perf.cases.shapes import Case, Cell
from normtriton.perf.commands import validation
from normtriton.perf.commands.jobs import Job, figures
from normtriton.perf.commands.validation import Published
from normtriton.perf.count import rivals
from normtriton.perf.emulator.timer import Timer
from normtriton.perf.show.rows import LIBRARY
from normtriton.perf.time import timed

TINY = Published(
    "liger-kernel", "9.9", "0000000", "a file", "rms", "forward", 64, 256, "float32", "H100", 10.0, "events", ""
)

KERNEL = """
import torch
import triton
import triton.language as tl


@triton.jit
def scale(x, w, y, n: tl.constexpr):
    row = tl.program_id(0)
    at = tl.arange(0, n)
    tl.store(y + row * n + at, tl.load(x + row * n + at) * tl.load(w + at))


class LigerRMSNormFunction:
    @staticmethod
    def forward(ctx, x, w, eps):
        assert x.is_cuda
        y = torch.empty_like(x)
        scale[(x.shape[0],)](x, w, y, x.shape[1])
        ctx.save_for_backward(x, w)
        return y

    @staticmethod
    def backward(ctx, dy):
        x, w = ctx.saved_tensors
        scale[(x.shape[0],)](dy, w, x, x.shape[1])
        return x, dy.sum(0)
"""


@pytest.fixture
def release(tmp_path):
    """A folder with a library that has the names of liger-kernel."""
    ops = tmp_path / "liger_kernel" / "ops"
    ops.mkdir(parents=True)
    (tmp_path / "liger_kernel" / "__init__.py").touch()
    (ops / "__init__.py").touch()
    (ops / "rms_norm.py").write_text(KERNEL)
    return tmp_path


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_tiny_cell_is_predicted(release, direction):
    """A made-up library is imported from its folder and timed, kernel and PyTorch's sum, and nothing of it stays."""
    found = validation.predict(TINY._replace(direction=direction), release)
    kernels = [step[0] for step in found["steps"]]
    assert kernels == (["scale"] if direction == "forward" else ["scale", "aten::sum"])
    assert found["steps"][0][1:] == [pytest.approx(found["steps"][0][1]), 64, 0]
    assert found["predicted"] == pytest.approx(5.0 + sum(step[1] for step in found["steps"]), abs=0.02)
    assert 1.5 < found["steps"][0][1] < 10
    assert str(release) not in sys.path
    assert not any(name.startswith("liger_kernel") for name in sys.modules)


def test_the_command_predicts_once_and_names_what_is_missing(release, tmp_path, monkeypatch):
    """A second run predicts nothing; a release that is not there is named with the way to get it."""
    other = TINY._replace(release="9.8")
    monkeypatch.setattr(validation, "published", lambda: [TINY, other])
    out = tmp_path / "out.jsonl"
    asked = ["validate", "--liger", f"9.9={release}", "--out", str(out), "--json"]
    first = CliRunner().invoke(cli.main, asked)
    assert first.exit_code == 0, first.output
    assert "1 cells are not predicted" in first.output and "liger-kernel==9.8" in first.output
    shown = json.loads(first.output.splitlines()[0])
    assert (shown["release"], shown["us"], shown["kind"]) == ("9.9", 10.0, "less than 15 µs")
    monkeypatch.setattr(validation, "predict", lambda *_: pytest.fail("it is there already"))
    again = CliRunner().invoke(cli.main, asked)
    assert again.exit_code == 0 and json.loads(again.output.splitlines()[0]) == shown


def test_a_plain_kernel_is_the_floor():
    """It moves the bytes of a pass and computes nothing, so that no single launch is predicted faster."""
    cell = Cell(Case.named("layer-512x1024"), "contiguous", "bfloat16")
    found = figures(Job("model", "H100", LIBRARY, cell))
    assert all(found[direction]["us_plain"] < found[direction]["us"] for direction in found)
    assert 1.5 < found["forward"]["us_plain"] < found["backward"]["us_plain"] < 5


@pytest.mark.parametrize(
    "norm", ["layer-64x256", "rms-64x256", "group4-2x16x8x8", "instance-2x16x8x8", "batch-4x16x8x8"]
)
def test_torch_compile_s_kernels_are_timed(norm):
    """Inductor generates Triton kernels of every norm for a GPU that is not there, forward and backward."""
    rivals.prepare(addresses=False)
    found = timed.timed("torch.compile", Cell(Case.named(norm), "contiguous", "float32"), Timer("H100"))
    assert list(found) == ["forward", "backward"]
    for steps in found.values():
        assert steps and all(step.kernel.startswith(("triton_", "aten::")) for step in steps)
        assert all(1 < step.us < 20 for step in steps)
    x = 64 * 256 * 4 if norm.endswith("64x256") else 4 * 2 * 16 * 64 * (2 if norm.startswith("batch") else 1)
    read = [sum(step.dram_read for step in found[direction]) for direction in found]
    assert read[0] >= x and read[1] >= 2 * x  # x, then dy and x
