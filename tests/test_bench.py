"""The command that times norms side by side, on a made-up GPU: what is checked, what is kept, and what goes wrong."""

import importlib
import json
import sys
from functools import partial
from types import ModuleType, SimpleNamespace

import pytest
import torch
import triton
from click.testing import CliRunner
from made_up import pretend
from normtriton.perf.cases.oracle import differences, expected, named
from normtriton.perf.cases.shapes import Case, Cell
from normtriton.perf.commands import bench
from normtriton.perf.commands.bench import command, compulsory, operands
from normtriton.perf.show.rows import key, load
from normtriton.perf.time import gpu, providers
from normtriton.perf.time.providers import PROVIDERS, by_name, installed

from normtriton.planning.plan import Tunings

F = torch.nn.functional
TRITON = tuple(int(part) for part in triton.__version__.split(".")[:2])
CASES = {
    "layer": Case("layer", (6, 8)),
    "rms": Case("rms", (6, 8)),
    "batch": Case("batch", (3, 4, 5, 2)),
    "instance": Case("instance", (2, 4, 3, 2, 2)),
    "group": Case("group", (2, 6, 3, 3), 3),
}


@pytest.fixture
def made_up(monkeypatch):
    """Times are made up here."""
    return pretend(monkeypatch, gpu)


def run(tmp_path, *arguments):
    """The command's result, and the rows that it kept."""
    file = tmp_path / "results" / "bench.jsonl"
    result = CliRunner().invoke(command, [*arguments, "--out", str(file)])
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return result, rows


def check(norm, case, layout="contiguous", dtype="float32"):
    """What is wrong with a library's norm."""
    given = operands(Cell(case, layout, dtype), torch.device("cpu"))
    want = expected(partial(by_name, F, case), given)
    given = given.fresh()
    y, gradients = norm(given)
    return differences(named(y, gradients(), given), want, given)


def test_every_library_layout_and_direction_has_a_row(made_up, tmp_path):
    """Rows are what reports and comparisons read; the kernels run in the interpreter, and are timed."""
    names = "rms-4x16,group2-2x4x3x3"
    result, rows = run(tmp_path, "--shapes", names, "--dtypes", "bfloat16", "--providers", "normtriton,torch")
    assert result.exit_code == 0, result.output
    assert len(rows) == (1 + 2) * 2 * 2 == len({key(row) for row in rows}) == len(made_up)
    first = rows[0]
    assert (first["instrument"], first["machine"], first["library"]) == ("bench", "made-up GPU", "normtriton")
    assert (first["us"], first["us_low"], first["us_high"], first["method"]) == (10.0, 9.0, 12.0, "made up")
    assert first["bytes"] == 2 * (2 * 4 * 16 + 16)
    assert first["gbps"] == pytest.approx(first["bytes"] / 10e-6 / 1e9)
    assert (first["ceiling_gbps"], first["of_ceiling"]) == (100.0, pytest.approx(first["gbps"] / 100))
    assert (first["host_us"], first["version"]) == (5.0, PROVIDERS["normtriton"].version())
    assert load(tmp_path / "results")  # as others read them
    assert "9.0 to 12.0" in result.output and "100 GB/s" in result.output and "channels_last" in result.output


@pytest.mark.usefixtures("made_up")
def test_json_lines_and_a_file_of_the_machines_name(tmp_path, monkeypatch):
    """Without --out rows are kept under the machine's name; --json prints them."""
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(
        command, ["--shapes", "layer-2x8", "--providers", "torch", "--directions", "backward", "--json"]
    )
    (row,) = [json.loads(line) for line in result.stdout.splitlines()]
    assert row == json.loads((tmp_path / "bench-made-up-GPU.jsonl").read_text())
    assert row["direction"] == "backward"


@pytest.mark.skipif(TRITON < (3, 9), reason="traffic is measured with Triton 3.9 or later")
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_compulsory_bytes_are_those_of_traffic(direction):
    """The byte model has one definition."""
    from normtriton.perf.count.l2 import H100
    from normtriton.perf.count.traffic import measure

    for norm, layout in (("batch", torch.channels_last), ("rms", torch.contiguous_format)):
        case = CASES[norm]
        given = operands(Cell(case, "contiguous", "float32"), torch.device("cpu"))
        _strategy, traffic = measure(case, torch.float32, layout, H100)[direction]
        assert compulsory(given, direction) == traffic.compulsory


def broken(result):
    """A library whose ``result`` is off by a hundredth."""

    def norm(case):
        def run(given):
            y, gradients = PROVIDERS["torch"].norm(case)(given)
            off = {"y": 0, "dx": 1, "dweight": 2}[result]

            def wrong():
                return tuple(g * (1.01 if i == off else 1) for i, g in enumerate(gradients(), 1))

            return (y * 1.01 if result == "y" else y), wrong

        return run

    return PROVIDERS["torch"]._replace(norm=norm)


@pytest.mark.parametrize("result", ["y", "dx", "dweight"])
def test_a_wrong_library_is_not_timed(made_up, tmp_path, monkeypatch, result):
    """It says by how much it is wrong, in both directions; the others are timed."""
    monkeypatch.setitem(providers.PROVIDERS, "quack", broken(result))
    names = "torch,quack"
    done, rows = run(tmp_path, "--shapes", "rms-4x16", "--dtypes", "float32", "--providers", names)
    assert done.exit_code == 1 and "2 of 4 rows have no time" in done.output
    assert [row["error"].startswith(f"wrong: {result} is off by") for row in rows if row["library"] == "quack"] == [
        True
    ] * 2
    assert len(made_up) == 2 and all("us" in row for row in rows if row["library"] == "torch")


def test_a_result_that_is_not_a_number_is_wrong():
    """NaN is no small difference, and a result of another shape is none at all."""
    case = CASES["layer"]
    nan = float("nan")
    assert check(lambda given: (given.x * nan, lambda: tuple(given.inputs.values())), case)[0].error == float("inf")
    given = operands(Cell(case, "contiguous", "float32"), torch.device("cpu"))
    with pytest.raises(ValueError, match="has shape"):
        differences({"y": given.x[:1]}, {"y": given.x.double()}, given)


@pytest.mark.usefixtures("made_up")
def test_out_of_memory_is_said_and_the_run_goes_on(tmp_path, monkeypatch):
    """In a library, while it is timed, or in the inputs themselves."""

    def too_large(*_args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setitem(providers.PROVIDERS, "quack", PROVIDERS["quack"]._replace(norm=too_large, modules=()))
    done, rows = run(tmp_path, "--shapes", "rms-4x16", "--providers", "quack,torch", "--directions", "forward")
    assert [row.get("error") for row in rows] == ["out of memory", None] and done.exit_code == 1

    calls = []

    def time(_run, _device):
        calls.append(1)
        return too_large() if len(calls) == 1 else gpu.Times(1, 1, 1, "made up")

    monkeypatch.setattr(gpu, "time", time)
    _done, rows = run(tmp_path, "--shapes", "rms-4x16", "--providers", "torch")
    assert [(row["direction"], row.get("error")) for row in rows] == [("forward", "out of memory"), ("backward", None)]

    real = bench.operands

    def inputs(cell, device):
        return too_large() if cell.case.shape[0] == 9 else real(cell, device)

    monkeypatch.setattr(bench, "operands", inputs)
    _done, rows = run(tmp_path, "--shapes", "rms-9x16,rms-4x16", "--providers", "torch", "--directions", "forward")
    assert [row.get("error") for row in rows] == ["out of memory", None]
    _done, rows = run(tmp_path, "--shapes", "rms-9x16", "--providers", "torch,quack", "--directions", "forward")
    assert "Nothing was timed" in _done.output and len(rows) == 2


@pytest.mark.usefixtures("made_up")
def test_any_other_error_is_said_too(tmp_path, monkeypatch):
    """An error of a library's is its own."""

    def refuse(_case):
        raise NotImplementedError("no such\n norm")

    monkeypatch.setitem(providers.PROVIDERS, "torch", PROVIDERS["torch"]._replace(norm=refuse))
    _done, rows = run(tmp_path, "--shapes", "rms-4x16", "--providers", "torch", "--directions", "forward")
    assert rows[0]["error"] == "NotImplementedError: no such norm"


@pytest.mark.usefixtures("made_up")
def test_what_was_measured_is_kept_when_stopped(tmp_path, monkeypatch):
    """Ctrl-C ends with the status of an interrupt; rows are on disk, and printed."""
    calls = []

    def time(_run, _device):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return gpu.Times(1, 1, 1, "made up")

    monkeypatch.setattr(gpu, "time", time)
    done, rows = run(tmp_path, "--shapes", "rms-4x16,rms-5x16", "--providers", "torch")
    assert done.exit_code == 130 and len(rows) == 2
    assert "stopped; 2 rows are in" in done.output and "made-up GPU, driver 0" in done.output


@pytest.mark.usefixtures("made_up")
def test_what_cannot_be_measured_is_refused(tmp_path, monkeypatch):
    """A shape without a layout, a library without a norm, a file that cannot be."""
    assert "nothing to measure" in run(tmp_path, "--shapes", "rms-4x16", "--layouts", "channels_last")[0].output
    monkeypatch.setitem(providers.PROVIDERS, "quack", PROVIDERS["quack"]._replace(modules=()))
    assert "nothing to measure" in run(tmp_path, "--shapes", "layer-4x16", "--providers", "quack")[0].output
    (tmp_path / "results").write_text("a file where a folder would be")
    assert "name another place with --out" in run(tmp_path, "--shapes", "rms-4x16", "--providers", "torch")[0].output


@pytest.mark.usefixtures("made_up")
def test_a_missing_library_is_said_once(tmp_path, monkeypatch):
    """Not hidden, and no reason to stop."""
    monkeypatch.setitem(sys.modules, "quack.rmsnorm", None)
    done, rows = run(tmp_path, "--shapes", "rms-4x16,rms-5x16", "--providers", "torch,quack", "--directions", "forward")
    assert (
        done.exit_code == 0 and done.output.count("without quack") == 1 and "pip install quack-kernels" in done.output
    )
    assert {row["library"] for row in rows} == {"torch"}


@pytest.mark.usefixtures("made_up")
def test_a_library_has_rows_of_its_own_norms(tmp_path, monkeypatch):
    """QuACK has no layer norm with gradients: there is nothing to say of it."""
    monkeypatch.setitem(providers.PROVIDERS, "quack", PROVIDERS["torch"]._replace(norms=("rms",)))
    done, rows = run(tmp_path, "--shapes", "rms-4x16,layer-4x16", "--providers", "torch,quack")
    assert done.exit_code == 0
    assert {(row["norm"], row["library"]) for row in rows} == {("rms", "torch"), ("rms", "quack"), ("layer", "torch")}


def test_a_library_that_breaks_when_imported_is_missing(monkeypatch):
    """Whatever it raises is said."""

    def broken(_name):
        raise RuntimeError("no device of mine")

    monkeypatch.setattr(providers.importlib, "import_module", broken)
    assert installed(["flag-gems"]) == ({}, {"flag-gems": "RuntimeError: no device of mine"})


# The other libraries, made up: the names that the adapters use, computed by PyTorch.


def liger():
    """liger-kernel's functions."""

    class LigerLayerNormFunction:
        apply = staticmethod(lambda x, w, b, eps: F.layer_norm(x, w.shape, w, b, eps))

    class LigerRMSNormFunction:
        @staticmethod
        def apply(x, w, eps, offset, casting_mode, in_place):
            assert (offset, casting_mode, in_place) == (0.0, "llama", False)
            return F.rms_norm(x, w.shape, w, eps)

    class LigerGroupNormFunction:
        @staticmethod
        def apply(x, w, b, channels, groups, eps):
            assert channels == x.shape[1]
            return F.group_norm(x, groups, w, b, eps)

    return {"liger_kernel.ops": locals()}


def flag_gems():
    """FlagGems' operators, some of which autograd does not know."""

    def layer_norm(x, shape, w, b, eps):
        return torch.ops.aten.native_layer_norm(x, shape, w, b, eps)

    def layer_norm_backward(dy, x, shape, mean, rstd, w, b, mask):
        return torch.ops.aten.native_layer_norm_backward(dy, x, shape, mean, rstd, w, b, mask)

    def group_norm(x, w, b, n, c, space, groups, eps):
        return torch.ops.aten.native_group_norm(x, w, b, n, c, space, groups, eps)

    def group_norm_backward(dy, x, mean, rstd, w, n, c, space, groups, mask):
        return torch.ops.aten.native_group_norm_backward(dy, x, mean, rstd, w, n, c, space, groups, mask)

    def batch_norm(x, w, b, mean, var, training, momentum, eps):
        return torch.ops.aten.native_batch_norm(x, w, b, mean, var, training, momentum, eps)

    def batch_norm_backward(dy, x, w, mean, var, save_mean, save_rstd, training, eps, mask):
        return torch.ops.aten.native_batch_norm_backward(dy, x, w, mean, var, save_mean, save_rstd, training, eps, mask)

    return {
        "flag_gems": {},
        "flag_gems.ops.layernorm": {"layer_norm": layer_norm, "layer_norm_backward": layer_norm_backward},
        "flag_gems.ops.groupnorm": {"group_norm": group_norm, "group_norm_backward": group_norm_backward},
        "flag_gems.ops.batch_norm": {"batch_norm": batch_norm, "batch_norm_backward": batch_norm_backward},
        "flag_gems.ops.rms_norm": {"rms_norm": F.rms_norm},
        "flag_gems.fused.instance_norm": {
            "instance_norm": lambda x, w, b, eps: F.instance_norm(x, None, None, w, b, True, 0.1, eps)
        },
    }


def quack():
    """QuACK's."""
    return {"quack.rmsnorm": {"rmsnorm": lambda x, weight, eps: F.rms_norm(x, weight.shape, weight, eps)}}


def apex():
    """Apex's."""
    functions = {
        "fused_layer_norm_affine": lambda x, w, b, shape, eps: F.layer_norm(x, shape, w, b, eps),
        "fused_rms_norm_affine": lambda x, w, shape, eps: F.rms_norm(x, shape, w, eps),
    }
    return {"apex.normalization.fused_layer_norm": functions, "fused_layer_norm_cuda": {}}


OTHERS = {"liger-kernel": liger, "flag-gems": flag_gems, "quack": quack, "apex": apex}


@pytest.mark.parametrize(
    ("library", "norm"), [(library, norm) for library in OTHERS for norm in PROVIDERS[library].norms]
)
def test_an_adapter_calls_its_library(library, norm, monkeypatch):
    """Each hands over what the library takes, and gives back results and gradients in the order of the inputs."""
    for name, contents in OTHERS[library]().items():
        module = ModuleType(name)
        vars(module).update(contents)
        for parent in (name.rsplit(".", depth)[0] for depth in range(name.count(".") + 1)):
            monkeypatch.setitem(sys.modules, parent, sys.modules.get(parent) or ModuleType(parent))
        monkeypatch.setitem(sys.modules, name, module)
    found, missing = installed([library])
    assert not missing
    assert check(found[library].norm(CASES[norm]), CASES[norm]) == []


@pytest.mark.parametrize("norm", CASES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_our_norm_and_pytorchs_are_right(norm, layout):
    """In any layout, volumes too; running statistics are among the results."""
    for library in ("normtriton", "torch"):
        assert check(PROVIDERS[library].norm(CASES[norm]), CASES[norm], layout) == []


def test_torch_compile_compiles_the_whole_norm(monkeypatch):
    """Gradients can be asked for twice."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    case = CASES["rms"]
    with importlib.import_module("torch._functorch.config").patch(donated_buffer=True):
        norm = PROVIDERS["torch.compile"].norm(case)
        assert check(norm, case) == []
        given = operands(Cell(case, "contiguous", "float32"), torch.device("cpu"))
        _y, gradients = norm(given)
        assert all(map(torch.equal, gradients(), gradients()))


# The real timing, with PyTorch's CUDA made up.


class Cuda:
    """Notes what is asked of it; every run takes a made-up 2 ms."""

    def __init__(self, monkeypatch, capture=None):
        self.log, self.capture, self.ran = [], capture, 0
        cuda = torch.cuda
        for name, value in {
            "Event": partial(self.event),
            "CUDAGraph": lambda: SimpleNamespace(replay=lambda: self.log.append("replay")),
            "graph": self.graph,
            "synchronize": lambda _device=None: self.log.append("wait"),
            "current_stream": lambda _device=None: "a stream",
        }.items():
            monkeypatch.setattr(cuda, name, value)
        stand_in = SimpleNamespace(
            get_empty_cache_for_benchmark=lambda: "a cache", clear_cache=lambda _cache: self.log.append("flush")
        )
        monkeypatch.setattr(gpu, "driver", SimpleNamespace(active=stand_in))
        clock = iter(range(10**6))
        monkeypatch.setattr(gpu, "perf_counter", lambda: next(clock) / 100)  # 10 ms from one look to the next
        monkeypatch.setattr(gpu, "do_bench", self.do_bench)

    def event(self, *, enable_timing, external):
        assert enable_timing and external
        return SimpleNamespace(record=lambda: self.log.append("event"), elapsed_time=lambda _end: 0.002)

    def graph(self, _graph, stream):
        assert stream == "a stream"
        cuda = self

        class Capture:
            def __enter__(self):
                cuda.log.append("capture")

            def __exit__(self, *_error):
                if cuda.capture is not None:
                    raise cuda.capture
                cuda.log.append("captured")

        return Capture()

    def do_bench(self, _run, rep, return_mode):
        assert return_mode == "all"
        return [0.003, 0.004, 0.009][: max(int(rep), 1)]

    def run(self):
        self.log.append("run")


def test_runs_are_replayed_from_a_graph(monkeypatch):
    """Each after a flush, between two events, for as long as was asked; the first replay does not count."""
    cuda = Cuda(monkeypatch)
    found = gpu.time(cuda.run, torch.device("cuda", 0), ms=25)
    assert found == gpu.Times(2.0, 2.0, 2.0, "graph")
    captured = cuda.log[cuda.log.index("capture") + 1 : cuda.log.index("captured")]
    assert captured == ["flush", "event", "run", "event"] * gpu.CAPTURED
    assert cuda.log[0] == "run" and cuda.log.count("replay") == 1 + 3  # of 10 ms each
    assert gpu.time(cuda.run, torch.device("cuda", 0), ms=0) == found  # one replay counts, however short the time


def test_what_cannot_be_captured_is_timed_on_the_stream(monkeypatch):
    """And says so; but no memory is no memory."""
    device = torch.device("cuda", 0)
    found = gpu.time(Cuda(monkeypatch, RuntimeError("operation not permitted")).run, device)
    assert found == gpu.Times(4.0, pytest.approx(3.4), pytest.approx(7.0), "stream")
    assert gpu.time(Cuda(monkeypatch, RuntimeError("no")).run, device, ms=1) == gpu.Times(3.0, 3.0, 3.0, "stream")
    with pytest.raises(torch.OutOfMemoryError):
        gpu.time(Cuda(monkeypatch, torch.OutOfMemoryError("none left")).run, device)


def test_the_host_is_timed_without_waiting(monkeypatch):
    """From an idle device to the end of the call; made-up clocks tick 10 ms."""
    cuda = Cuda(monkeypatch)
    assert gpu.host_us(cuda.run, torch.device("cuda", 0)) == pytest.approx(10_000)
    assert cuda.log == ["wait", "run"] * gpu.ENQUEUED + ["wait"]


def test_the_ceiling_is_a_copy_far_above_the_cache(monkeypatch):
    """Bytes read and written, over the time of a copy."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: SimpleNamespace(L2_cache_size=1000))
    monkeypatch.setattr(gpu, "COPIED", 4000)
    monkeypatch.setattr(gpu, "time", lambda run, _device: run() is not None and gpu.Times(2.0, 2, 2, "made up"))
    assert gpu.ceiling(torch.device("cpu")) == pytest.approx(2 * 8000 / 2e-6 / 1e9)


def test_work_goes_on_a_stream_of_its_own(monkeypatch):
    """Which the default one is not, as a graph must have it."""
    entered = []

    class Entered:
        def __init__(self, what):
            self.what = what

        def __enter__(self):
            entered.append(self.what)

        def __exit__(self, *_error):
            entered.append(f"left {self.what}")

    monkeypatch.setattr(torch.cuda, "device", lambda device: Entered(str(device)))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: f"a stream of {device}")
    monkeypatch.setattr(torch.cuda, "stream", Entered)
    with gpu.working(torch.device("cuda", 1)):
        assert entered == ["cuda:1", "a stream of cuda:1"]
    assert len(entered) == 4


def test_a_gpu_is_found_or_refused(monkeypatch, tmp_path):
    """Each refusal names the cause and the remedy, and ends the command with status 1."""
    done, rows = run(tmp_path)
    assert done.exit_code == 1 and "TRITON_INTERPRET=1" in done.output and "unset it" in done.output and not rows
    monkeypatch.setattr(gpu.compiling, "INTERPRETED", False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    assert "built for the CPU" in run(tmp_path)[0].output
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "CUDA_VISIBLE_DEVICES" in run(tmp_path)[0].output
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    assert gpu.find() == torch.device("cuda", 2)


def test_the_facts_of_a_machine(monkeypatch):
    """What a result depends on: the GPU, its driver, whether clusters are used, the versions."""
    properties = SimpleNamespace(name="made-up GPU", multi_processor_count=3)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: properties)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(gpu.tuned, "table_for", lambda *_where: None)
    clusters = gpu.clusters
    device, verdicts = torch.device("cuda"), []
    monkeypatch.setattr(clusters, "supported", lambda index: index != 1)
    monkeypatch.setattr(clusters, "trusted", lambda index, form: index == 0 or (index == 3 and form != "cells forward"))
    monkeypatch.setattr(clusters._switch, "mode", "auto")
    verdicts = [gpu.facts(torch.device("cuda", index))["clusters"] for index in range(4)]
    monkeypatch.setattr(clusters._switch, "mode", "off")
    verdicts.append(gpu.facts(device)["clusters"])
    assert verdicts == ["used", "not supported", "not trusted", "used, but not for cells forward", "off"]
    facts = gpu.facts(device)
    assert (facts["machine"], facts["sms"], facts["torch"]) == ("made-up GPU", 3, torch.__version__)
    assert facts["tuned"] == ""
    monkeypatch.setattr(gpu.tuned, "table_for", lambda *where: Tunings({}, source="there") if where == (0, 3) else None)
    assert [gpu.facts(torch.device("cuda", index))["tuned"] for index in range(2)] == ["there", ""]
    assert {"driver", "cuda", "hip", "triton", "normtriton", "commit"} < facts.keys()


def test_the_driver_and_the_commit(monkeypatch, tmp_path):
    """Where they can be known: a kernel that shows its module, a checkout that git knows."""
    import subprocess

    real = gpu.Path

    def elsewhere(*parts):
        return real(tmp_path, *parts[1:]) if parts[0] == "/sys/module" else real(*parts)

    monkeypatch.setattr(gpu, "Path", elsewhere)
    assert gpu._driver() is None
    for name in ("nvidia", "amdgpu"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "version").write_text("570.1\n")
        assert gpu._driver() == "570.1"
        (tmp_path / name / "version").unlink()
        monkeypatch.setattr(torch.version, "hip", "7.0")

    monkeypatch.setattr(gpu, "__file__", str(tmp_path / "perf" / "time" / "gpu.py"))
    assert gpu._commit() is None  # no checkout

    def git(*arguments):
        subprocess.run(["git", "-C", tmp_path, "-c", "user.name=n", "-c", "user.email=e", *arguments], check=True)

    git("init", "-q")
    assert gpu._commit() is None  # nothing committed
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-q", "-m", "one")
    clean = gpu._commit()
    (tmp_path / "a").write_text("2")
    assert len(clean) == 12 and gpu._commit() == clean + "+"
    monkeypatch.setattr(gpu.shutil, "which", lambda _name: None)
    assert gpu._commit() is None
