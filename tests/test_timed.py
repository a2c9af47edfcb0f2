"""Other libraries' kernels compiled and timed: a made-up release of liger-kernel, and torch.compile's kernels."""

from __future__ import annotations

import json
import subprocess
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


SCALE = KERNEL.partition("class")[0]

#: What libraries that have no backward pass are asked for, with their names: made up, by package and module.
FORWARD_ONLY = {
    "stable-fast": (
        "sfast/triton/ops/group_norm.py",
        """
def group_norm_silu_forward(x, groups, w, b, eps):
    y = torch.empty_like(x)
    scale[(groups,)](x, w, y, w.numel())
    return y, None, None
""",
        "group4-2x16x8x8+silu",
    ),
    "flag-gems": (
        "flag_gems/fused/skip_layernorm.py",
        """
def skip_layer_norm(x, residual, shape, w, b):
    y = torch.empty_like(x)
    scale[(x.shape[0],)](x, w, y, w.numel())
    return y
""",
        "layer-64x256+residual",
    ),
}


@pytest.fixture(params=FORWARD_ONLY)
def forward_only(request, tmp_path, monkeypatch):
    """(library, case, commit) of a checkout on the path whose packages cannot be imported as they are."""
    path, function, case = FORWARD_ONLY[request.param]
    package = path.split("/")[0]
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text(SCALE + function)
    for folder in file.relative_to(tmp_path).parents[:-1]:
        extension = "raise ImportError" if folder.name in ("sfast", "triton") else ""
        (tmp_path / folder / "__init__.py").write_text(extension)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e"]
    for asked in (["init", "-q"], ["add", "."], ["commit", "-qm", "made up"]):
        subprocess.run([*git, *asked], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout
    monkeypatch.syspath_prepend(str(tmp_path))
    before = {name: sys.modules.pop(name) for name in [*sys.modules] if name.split(".")[0] == package}
    rivals._commit.cache_clear()
    yield request.param, case, commit[:8]
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        del sys.modules[name]
    sys.modules.update(before)
    rivals._commit.cache_clear()


def test_a_library_without_a_backward_pass_says_so(forward_only):
    """Its forward pass is predicted; a checkout's version is its commit, and of its packages only the module runs."""
    library, case, commit = forward_only
    if library == "stable-fast":
        assert rivals.version(library) == commit
    rivals.prepare(addresses=False)
    job = Job("model", "H100", library, Cell(Case.named(case), "contiguous", "bfloat16"))
    found = figures(job)
    assert [kernel["kernel"] for kernel in found["forward"]["kernels"]] == ["scale"]
    assert found["backward"] == {"error": "it has no backward pass"}
    assert "error" not in job.rows(found)[0] and job.rows(found)[1]["made_from"]
