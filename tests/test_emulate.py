"""The commands that run and time compiled kernels without a GPU, as a user calls them: in processes of their own."""

import json
import os
import subprocess
import sys

import pytest
import torch
import triton
from click.testing import CliRunner
from normtriton.perf.cases import checks
from normtriton.perf.cases.oracle import Textbook
from normtriton.perf.commands import emulate
from normtriton.perf.commands.bench import FLOATING
from normtriton.perf.emulator.device import LAUNCHER
from normtriton.perf.show.rows import check

if tuple(int(part) for part in triton.__version__.split(".")[:2]) < LAUNCHER:
    pytest.skip("the emulator needs Triton 3.9 or later", allow_module_level=True)

PROGRAM = """
import torch, triton
import triton.language as tl

@triton.jit
def add(x, y, z, n, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    v = tl.load(x + i, mask=i {sign} n)  # one too many, if it is <=
    tl.store(z + i, v + tl.load(y + i, mask=i < n), mask=i < n)

x, y = torch.ones(1000, device="cuda"), torch.ones(1000, device="cuda")
z = torch.empty_like(x)
add[(8,)](x, y, z, 1000, B=128, enable_fp_fusion=False)
"""


def run(*arguments):
    """The command's exit status and what it prints."""
    command = [sys.executable, "-m", "normtriton.perf", *arguments]
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    return done.returncode, done.stdout + done.stderr


def test_a_branch_is_executed(tmp_path):
    """Compiled, run under each seed, right; rows are kept."""
    out = tmp_path / "found.jsonl"
    status, said = run(
        "emulate",
        "--select",
        "branch rows-share",
        "--dtypes",
        "float32",
        "--seeds",
        "1,2",
        "--quick",
        "--out",
        str(out),
    )
    assert status == 0 and "right: 0 of 1 have findings; 2 launches for each of 2 seeds" in said, said
    (row,) = map(json.loads, out.read_text().splitlines())
    assert row["check"] == "branch rows-share-a-tile" and row["instructions"] > 1000 and row["failures"] == []


@pytest.mark.parametrize(("sign", "status"), [("<", 0), ("<=", 1)])
def test_a_users_own_kernel(sign, status, tmp_path):
    """A finding has the line of its source, and the exit status says that there is one."""
    file = tmp_path / "mine.py"
    file.write_text(PROGRAM.format(sign=sign))
    got, said = run("emulate", "--launch", str(file), "--seeds", "1", "--quick")
    assert got == status, said
    if status:
        line = PROGRAM.splitlines().index(next(text for text in PROGRAM.splitlines() if "one too many" in text)) + 1
        assert "out-of-bounds" in said and f"mine.py:{line}" in said and "load of 4 bytes" in said, said
        assert "WRONG: 1 of 1 have findings" in said


def test_a_users_own_kernel_is_timed(tmp_path):
    """Each launch with its figures; called a prediction."""
    file = tmp_path / "mine.py"
    file.write_text(PROGRAM.format(sign="<"))
    status, said = run("time", "--launch", str(file), "--gpu", "A100")
    assert status == 0 and "add: " in said and "8 blocks of 4 warps" in said, said
    assert "on A100" in said and "Predicted by a model, not measured." in said


def test_predicted_rows(tmp_path):
    """Both bounds, the rate of the compulsory bytes, and each launch; kept rows are results like others."""
    status, said = run("time", "--shapes", "layer-64x512", "--dtypes", "bfloat16", "--out", str(tmp_path), "--launches")
    assert status == 0 and "predicted" in said and "warps wait" in said, said
    rows = [json.loads(line) for line in (tmp_path / "model-H100.jsonl").read_text().splitlines()]
    assert [row["direction"] for row in rows] == ["forward", "backward"]
    for row in rows:
        check(row)
        tensors = 2 if row["direction"] == "forward" else 3
        assert row["compulsory"] >= tensors * 64 * 512 * 2
        assert row["us"] == pytest.approx(sum(kernel["us"] for kernel in row["kernels"]), rel=1e-3)
        assert row["gbps"] == pytest.approx(row["compulsory"] / row["us"] / 1e3, rel=1e-3)
        assert 0 < row["of_ceiling"] < 1 and row["us_alone"] > 0
        assert all(kernel["guessed"] == 0 for kernel in row["kernels"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--select", "no such branch"], "no check of branches has 'no such branch' in its name"),
        (["--seeds", "one"], "'one' is not whole numbers with commas between"),
        (["--kinds", "all"], "'all' is none of branches, layouts, running, stages, real"),
        (["--target", "sm_120"], "'sm_120' is not one of"),
        (["--launch", __file__], "TRITON_INTERPRET=1 has Triton interpret kernels"),
    ],
)
def test_what_cannot_be_done_is_refused(arguments, said):
    """With the reason, before any process starts."""
    done = CliRunner().invoke(emulate.command, arguments)
    assert done.exit_code != 0 and said in done.output


def test_kinds_of_checks_have_every_norm():
    """Each kind has names of its own; running statistics are updated and used, on clusters too."""
    for name, kind in checks.KINDS.items():
        found = list(kind(True, FLOATING))
        assert len({one.name for one in found}) == len(found), name
        assert {one.dtype for one in found} == set(FLOATING), name
    running = list(checks.KINDS["running"](True, ["float32"]))
    assert {(one.branch.norm, one.running) for one in running} == {
        (norm, mode) for norm in ("batch", "instance") for mode in ("updates", "uses")
    }
    assert any(one.device.clusters for one in running)


@pytest.mark.parametrize("norm", ["layer", "rms", "batch", "instance", "group"])
def test_the_textbook_is_pytorch(norm):
    """By their formulas the norms are PyTorch's, with running statistics too."""
    x, weight, bias = torch.randn(3, 4, 5, dtype=torch.float64), torch.randn(4).double(), torch.randn(4).double()
    stats = [(torch.zeros(4).double(), torch.ones(4).double()) for _ in range(2)]
    arguments = {
        "layer": lambda _s: (x.transpose(1, 2), (4,), weight, bias, 1e-5),
        "rms": lambda _s: (x.transpose(1, 2), (4,), weight, 1e-5),
        "group": lambda _s: (x, 2, weight, bias, 1e-5),
        "batch": lambda s: (x, *s, weight, bias, True, 0.1, 1e-5),
        "instance": lambda s: (x, *s, weight, bias, True, 0.1, 1e-5),
    }[norm]
    results = [
        getattr(functions, f"{norm}_norm")(*arguments(s))
        for functions, s in zip((Textbook, torch.nn.functional), stats, strict=True)
    ]
    torch.testing.assert_close(*results)
    torch.testing.assert_close(*stats)
    if norm in ("batch", "instance"):
        used = [
            getattr(functions, f"{norm}_norm")(x, *s, weight, bias, False, 0.1, 1e-5)
            for functions, s in zip((Textbook, torch.nn.functional), stats, strict=True)
        ]
        torch.testing.assert_close(*used)


ASKING = """
import torch
from normtriton.perf.emulator.device import enable
enable("sm_90")
from normtriton.planning import norms
from normtriton.planning.plan import Device
from normtriton.planning.schedule import Problem, forward_schedule
from normtriton.runtime import devices
problem, dtypes = Problem(norms.LAYER, (4, 8192), (("d", 1),)), (torch.bfloat16, torch.float32)
step = forward_schedule(problem, (8192, 1), (8192, 1), (1,), (1,), dtypes, Device(132)).main
ask = devices.of(torch.empty(1)).compiler
print(*(ask(step._replace(num_warps=n), dtypes, ("weight", "bias"))[:2] for n in (step.num_warps, 1)))
"""


def test_a_device_says_what_its_compiler_made():
    """Registers and spills as a driver reports them: none spilled in the planner's tile, many in a single warp."""
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    command = [sys.executable, "-c", ASKING]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    held, crowded = (tuple(map(int, words.strip("()").split(", "))) for words in done.stdout.strip().split(") ("))
    assert 32 < held[0] < 128 and held[1] == 0
    assert crowded[0] == 255 and crowded[1] > 64
