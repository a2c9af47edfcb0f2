"""The command that checks a machine: on a made-up GPU and without one, with right kernels and with broken ones."""

import errno
import json
import os
import sys
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from made_up import pretend
from normtriton.perf.cases import checks as kinds
from normtriton.perf.cases.branches import CLUSTERS, DEVICE, LAYOUTS, SMALL, Branch
from normtriton.perf.cases.shapes import DIRECTIONS, NORMS, Case, Cell
from normtriton.perf.commands import selfcheck
from normtriton.perf.commands.selfcheck import checks, command
from normtriton.perf.time import gpu

import normtriton as nt
from normtriton.planning.plan import Device
from normtriton.runtime import cache, clusters, devices, launch


def few(monkeypatch):
    """Leave one check of each kind, small."""
    monkeypatch.setattr(kinds, "BRANCHES", {"row": Branch("layer", (3, 40), "", "")})
    monkeypatch.setattr(kinds, "CLUSTERED", {"wide": Branch("layer", (1, 33000), "", "")})
    monkeypatch.setattr(kinds, "SMALL", {"rms": Branch("rms", (2, 3, 8), "", "")})
    monkeypatch.setattr(selfcheck, "TIMED", (Cell(Case("rms", (4, 16)), "contiguous", "bfloat16"),))
    monkeypatch.setattr(kinds, "LAYOUTS", ("sliced",))


@pytest.fixture
def made_up(monkeypatch):
    """A GPU that is made up, and few checks."""
    few(monkeypatch)
    monkeypatch.setattr(clusters, "refused", set())
    return pretend(monkeypatch, gpu)


def run(*arguments):
    """The command's result."""
    return CliRunner().invoke(command, arguments)


def test_every_norm_layout_and_dtype_is_checked():
    """Each norm in every layout, and in every dtype; the branches of the plan besides."""
    found = checks(with_clusters=True)
    for norm in NORMS:
        mine = [check for check in found if check.branch.norm == norm and check.device is None]
        assert {check.branch.layout for check in mine} == set(LAYOUTS)
        assert {check.dtype for check in mine} == {"bfloat16", "float16", "float32", "float64"}
    assert len(found) > len(checks(with_clusters=False)) > len(SMALL) * len(LAYOUTS)
    assert len({check.name for check in found}) == len(found)


@pytest.mark.usefixtures("made_up")
def test_on_a_gpu(monkeypatch):
    """Every kind of check runs as it is planned; the report has the machine, the times and the environment."""
    monkeypatch.setenv("NORMTRITON_CACHE", "/somewhere")
    monkeypatch.setattr(devices, "of", lambda _x: Device(7))
    planned, forward, mode = [], launch.forward, clusters.mode()

    def spy(problem, x, *args, **kwargs):
        planned.append(devices.of(x))
        return forward(problem, x, *args, **kwargs)

    monkeypatch.setattr(launch, "forward", spy)
    done = run()
    assert done.exit_code == 0, done.output
    assert "right: 3 checks on made-up GPU" in done.output
    assert "made-up GPU, 2 multiprocessors, driver 0, clusters used, tunings from no table" in done.output
    assert "NORMTRITON_CACHE=/somewhere" in done.output
    assert done.output.count("10.0 µs") == 4  # two directions, beside PyTorch
    assert planned[:6] == [DEVICE] * 2 + [CLUSTERS] * 2 + [Device(7)] * 2  # each check twice
    assert clusters.mode() == mode


@pytest.mark.usefixtures("made_up")
def test_wrong_kernels_are_found(monkeypatch, tmp_path):
    """The exit status is 1; the report says what is off and by how much, and is kept."""
    real = nt.layer_norm
    monkeypatch.setattr(nt, "layer_norm", lambda *args: real(*args) * 1.001)
    done = run("--out", str(tmp_path / "report.txt"))
    assert done.exit_code == 1 and "WRONG: 2 failures in 3 checks" in done.output
    kept = (tmp_path / "report.txt").read_text()
    assert "branch row:\n    y is off by" in kept and "where" in kept and kept.strip() in done.output


@pytest.mark.usefixtures("made_up")
def test_a_wrong_benchmark_is_a_failure_and_one_without_memory_is_none(monkeypatch):
    """PyTorch's rows are for comparison only."""
    real = nt.rms_norm
    monkeypatch.setattr(nt, "rms_norm", lambda *args: real(*args) * 1.1)
    found = json.loads(run("--select", "bench", "--json").stdout)
    assert set(found["failures"]) == {f"bench rms-4x16 contiguous bfloat16 {d}" for d in DIRECTIONS}

    def too_large(*_args):
        raise torch.OutOfMemoryError("none left")

    monkeypatch.setattr(nt, "rms_norm", too_large)
    done = run("--select", "bench")
    assert done.exit_code == 0 and "nothing known: 0 checks" in done.output and "out of memory" in done.output


@pytest.mark.usefixtures("made_up")
def test_bits_that_change_and_errors_are_failures(monkeypatch):
    """A result that differs from run to run is a bug, however small the difference."""
    real, calls = nt.layer_norm, []

    def unsteady(*args):
        calls.append(1)
        return real(*args) * (1 + 1e-7 * (len(calls) % 2))

    monkeypatch.setattr(nt, "layer_norm", unsteady)
    done = run("--select", "branch row")
    assert done.exit_code == 1 and "y differs in its bits from one run to the next" in done.output

    def refuse(*_args):
        raise RuntimeError("an illegal memory access")

    monkeypatch.setattr(nt, "layer_norm", refuse)
    assert "RuntimeError: an illegal memory access" in run("--select", "branch row").output


@pytest.mark.usefixtures("made_up")
def test_what_the_library_warns_of_is_reported(monkeypatch):
    """A refused cluster launch, say: the results are right all the same."""
    monkeypatch.setattr(clusters, "trusted", lambda _index, _form: clusters.refuse(-1, RuntimeError("no clusters")))
    done = run("--select", "clusters")
    assert done.exit_code == 0 and "warned: normtriton: a launch in thread-block clusters failed" in done.output


@pytest.mark.usefixtures("made_up")
def test_a_stopped_check_reports_what_was_made(monkeypatch):
    """Ctrl-C ends with the status of an interrupt."""
    real = selfcheck.outcome

    def stop(check, *args, **kwargs):
        if check.name.startswith("layout"):
            raise KeyboardInterrupt
        return real(check, *args, **kwargs)

    monkeypatch.setattr(selfcheck, "outcome", stop)
    done = run()
    assert done.exit_code == 130 and "2 checks on made-up GPU, stopped before the end" in done.output


def test_an_unwritable_report_is_refused(tmp_path, made_up):
    """Before anything is checked, with the reason and the remedy."""
    done = run("--out", str(tmp_path / "no" / "report.txt"))
    assert done.exit_code == 1 and "name another place with --out" in done.output and not made_up
    assert "checks on" not in done.output


@pytest.mark.usefixtures("made_up")
def test_a_report_that_cannot_be_kept_is_printed(tmp_path, monkeypatch):
    """A disk may be full by then."""

    def full(_file, _text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cache, "overwrite", full)
    done = run("--select", "branch row", "--out", str(tmp_path / "report.txt"))
    assert done.exit_code == 1 and "right: 1 checks on made-up GPU" in done.output
    assert "cannot be written: No space left on device" in done.output


def test_two_reports_in_one_file_do_not_mix(tmp_path):
    """The last one is whole, whatever the lengths; a link stays one, and a device may be named."""
    file, link = tmp_path / "report.txt", tmp_path / "link"
    link.symlink_to(file)
    texts = [letter * 5000 * (i + 1) for i, letter in enumerate("abcd")]
    threads = [Thread(target=lambda t=text: [cache.overwrite(link, t) for _ in range(50)]) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert file.read_text() in texts and link.is_symlink()
    cache.overwrite(Path(os.devnull), "a report")


def test_without_a_gpu_two_processes_check_instead():
    """One interprets, as Triton reads its switch when it is imported, one compiles; both are real here."""
    done = run("--select", "branch one-row")
    assert done.exit_code == 0, done.output
    assert "no GPU was checked: TRITON_INTERPRET=1" in done.output
    assert "right: 1 checks without a GPU" in done.output


def test_a_process_that_dies_is_a_failure(monkeypatch):
    """Its checks were not made."""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    done = run()
    assert done.exit_code == 1 and done.output.count("their process ended with status 1") == 2
    found = json.loads(run("--json").stdout)
    assert found["outcomes"][0] == {
        "check": "the interpreted checks",
        "failures": ["their process ended with status 1"],
    }


def test_the_interpreted_part(monkeypatch):
    """A line of JSON for each check, as it is made."""
    few(monkeypatch)
    done = run("--part", "interpreted")
    names = [json.loads(line)["check"] for line in done.stdout.splitlines()]
    assert names == ["branch row", "clusters wide", "layout rms sliced bfloat16"] and done.exit_code == 0
    assert clusters.mode() == os.environ.get("NORMTRITON_CLUSTERS", "auto")


def test_the_compiled_part(monkeypatch):
    """A spilled register is a failure, as is what the compiler raises; the compiler is made up."""
    monkeypatch.setattr(selfcheck, "COMPILED", (Cell(Case("layer", (64, 512)), "contiguous", "float32"),))
    stacks = {"sm_80": 0, "sm_90": 8, "sm_100": 0}

    def compile_launch(_step, target):
        return stacks[target]

    monkeypatch.setattr(selfcheck, "compile_launch", compile_launch)
    monkeypatch.setattr(selfcheck, "read_code", lambda stack: SimpleNamespace(stack=stack))
    found = [json.loads(line)["failures"] for line in run("--part", "compiled").stdout.splitlines()]
    assert found[0] == found[2] == [] and found[3] == ["KeyError: 'gfx942'"]
    assert found[1][0] == "forward: forward spills 8 bytes a thread" and found[1][1].startswith("backward: backward")
