"""Thread-block clusters: the plans, the switch, and what happens when a device refuses.

The interpreter runs a clustered plan as one program; compiled ones run on the emulator, with `--compiled sm_90`.
"""

import errno
import os
import warnings
from pathlib import Path
from threading import Event, Thread
from time import sleep

import pytest
import torch
import triton
from cases import CLUSTERED, lay_out
from normtriton.perf.cases.shapes import Case as Real
from normtriton.perf.cases.shapes import make
from test_norms import check, parameters

import normtriton as nt
from normtriton.planning.plan import Device
from normtriton.planning.schedule import backward_schedule, forward_schedule
from normtriton.runtime import clusters, devices, launch, trial, tuned

#: A form of clusters.
ROWS = "rows forward"


@pytest.fixture
def switch(tmp_path, monkeypatch, pytestconfig):
    """A clean switch, and a cache of its own."""
    if pytestconfig.getoption("compiled") == "sm_80":
        pytest.skip("an A100 has no clusters")
    monkeypatch.setenv("NORMTRITON_CACHE", str(tmp_path))
    monkeypatch.setattr(clusters, "_verdicts", {})
    monkeypatch.setattr(clusters, "refused", set())
    before = clusters.mode()
    devices.forget()
    yield clusters.set_mode
    clusters.set_mode(before)


@pytest.mark.parametrize("case", CLUSTERED.values(), ids=CLUSTERED)
def test_clustered_plans_give_the_textbook(case, switch):
    """On: one launch holds the group, and gives what the oracle and the separate launches give."""
    torch.manual_seed(0)
    x = lay_out(torch.randn(case.shape) * 2 + 3, case.layout)
    weight, bias = parameters(case)
    dy = lay_out(torch.randn(case.shape), case.layout)
    ran, run = [], launch._run

    def spy(step, *args):
        ran.append(step)
        run(step, *args)

    results = {}
    for mode in ("on", "off"):
        switch(mode)
        ran.clear()
        for parameter in (weight, bias):
            if parameter is not None:
                parameter.grad = None
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(launch, "_run", spy)
            results[mode] = check(case, x, weight, bias, dy)
        ctas = {step.plan.ctas for step in ran if step.kernel in ("forward", "backward")}
        wanted = {case.forward, case.backward} == {"clustered"}
        assert (min(ctas) > 1) == (wanted and mode == "on")
        assert (max(ctas) > 1) == (case.forward == "clustered" and mode == "on")
    torch.testing.assert_close(results["on"][1], results["off"][1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("affine", ["both", "weight", "bias", "frozen", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("cells", [10, 20, 3])
def test_joined_cells_backward(cells, dtype, affine, switch):
    """One launch and the sum over samples give float64's gradients, whatever the parameters, image size and dtype."""
    groups = {10: 6, 20: 2, 3: 16}[cells]
    shape = (2, groups * cells, 9, 31)
    x = lay_out(torch.randn(shape, dtype=torch.float64) * 2 + 3, "channels_last").to(dtype).requires_grad_()
    dy = lay_out(torch.randn(shape, dtype=torch.float64), "channels_last").to(dtype)
    weight = torch.rand(shape[1]) + 0.5 if affine in ("both", "weight", "frozen") else None
    bias = torch.randn(shape[1]) if affine in ("both", "bias", "frozen") else None
    inputs = [x, *(p.requires_grad_() for p in (weight, bias) if p is not None and affine != "frozen")]
    wide = [None if p is None else p.detach().double().requires_grad_() for p in (x, weight, bias)]
    want = torch.nn.functional.group_norm(wide[0], groups)  # which has no gradient for a bias alone
    for parameter, operation in zip(wide[1:], (torch.mul, torch.add), strict=True):
        want = want if parameter is None else operation(want, parameter[:, None, None])
    wanted = [p for p in wide if p is not None][: len(inputs)]
    expected = torch.autograd.grad(want, wanted, dy.double())

    switch("on")
    y = nt.group_norm(x, groups, weight, bias)
    ran, run = [], launch._run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "_run", lambda step, *args: (ran.append(step), run(step, *args)))
        got = torch.autograd.grad(y, inputs, dy)
    assert ran[0].plan.ctas > 1 and len(ran) == min(len(inputs), 2)
    eps = torch.finfo(dtype).eps
    # sums of so many products in float32, and of dx, rounded to dtype, as its own size is
    for gradient, exact in zip(got, expected, strict=True):
        rounding = eps if gradient.dtype == dtype else 2**-20
        limit = rounding * exact.abs() + 2**-20 * exact.abs().max()
        assert ((gradient.double() - exact).abs() <= limit).all()


def test_explain_says_so(switch):
    """The strategy, the size of the cluster and the setting are in words."""
    x = torch.empty(64, 65536, device="meta")
    text = str(nt.explain(nt.layer_norm, x, (65536,), sms=132, clusters=True))
    assert "forward: clustered, 1 launch," in text and "in each of 4 thread blocks" in text
    assert "with thread-block clusters" in text
    switch("off")
    text = str(nt.explain(nt.layer_norm, x, (65536,)))
    assert "clustered" not in text and "without thread-block clusters" in text


FOLLOWING = {
    "layer": Real("layer", (1, 65536)),
    "instance": Real("instance", (1, 3, 256, 256)),
    "instance-column": Real("instance", (1, 64, 64, 64)),
    "group": Real("group", (1, 32, 64, 128), 2),
    "group-cells": Real("group", (1, 320, 32, 64), 32),
}


@pytest.mark.parametrize("name", FOLLOWING)
def test_the_cluster_follows_the_group(name):
    """Of a batch-invariant norm, the batch does not change the number of thread blocks."""
    case, seen = FOLLOWING[name], set()
    layout = torch.channels_last if name in ("instance-column", "group-cells") else torch.contiguous_format
    for batch in (1, 2, 7, 64):
        call, x, *_ = make(case._replace(shape=(batch, *case.shape[1:])), torch.bfloat16, layout)
        device = Device(132, clusters=True)
        strides, dtypes = x.stride(), (torch.bfloat16, None)
        steps = forward_schedule(call.problem, strides, strides, (1,), (1,), dtypes, device).launches[:1]
        steps += backward_schedule(call.problem, strides, strides, strides, (1,), dtypes, device, True).launches[:1]
        seen.add(tuple((s.plan.ctas, s.plan.block_kept, s.plan.block_r1, s.plan.block_r2, s.num_warps) for s in steps))
    clustered = [step[0] > 1 for step in next(iter(seen))]
    assert len(seen) == 1 and clustered == [True, True]


def test_a_refused_launch_is_made_again_without(switch, monkeypatch):
    """A device that refuses: said once, the results are right, and it is not asked again."""
    switch("on")
    run, asked = launch._run, []

    def refuse(step, *args):
        if step.plan.ctas > 1:
            asked.append(step)
            raise RuntimeError("Triton Error [CUDA]: cluster misconfiguration")
        run(step, *args)

    monkeypatch.setattr(launch, "_run", refuse)
    case = CLUSTERED["batch"]
    weight, bias = parameters(case)
    mean, var = torch.zeros(2), torch.ones(2)
    x = torch.randn(case.shape)
    with pytest.warns(RuntimeWarning, match=r"cluster misconfiguration.*NORMTRITON_CLUSTERS=off"):
        y = nt.batch_norm(x, mean, var, weight, bias, training=True)
    want_mean, want_var = torch.zeros(2), torch.ones(2)
    want = torch.nn.functional.batch_norm(x, want_mean, want_var, weight, bias, training=True)
    torch.testing.assert_close(y, want)
    torch.testing.assert_close((mean, var), (want_mean, want_var))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "normtriton")  # old interpreters warn of other things
        check(case, x, weight, bias, torch.randn(case.shape))
    assert len(asked) == 1


def test_a_refused_backward_is_made_again_without(switch, monkeypatch):
    """The same for the first clustered launch being a gradient's."""
    switch("on")
    run = launch._run

    def refuse(step, *args):
        if step.plan.ctas > 1 and step.kernel == "backward":
            raise RuntimeError("no such cluster")
        run(step, *args)

    monkeypatch.setattr(launch, "_run", refuse)
    case = CLUSTERED["row"]
    x = torch.randn(case.shape)
    with pytest.warns(RuntimeWarning, match="no such cluster"):
        check(case, x, *parameters(case), torch.randn(case.shape))


def test_an_untried_device_does_without_for_now(switch, monkeypatch):
    """While a CUDA graph is captured no trial can be made: allowed, not trusted, and the plan is another."""
    switch("on")
    monkeypatch.setattr(clusters, "trusted", lambda _index, _form: False)
    case = CLUSTERED["batch"]
    check(case, torch.randn(case.shape), *parameters(case), torch.randn(case.shape))


def test_modes(switch):
    """Three words; another raises and changes nothing."""
    for mode in ("auto", "on", "off"):
        switch(mode)
        assert clusters.mode() == mode
    with pytest.raises(ValueError, match=r"auto, on, off, not 'yes'"):
        switch("yes")
    assert clusters.mode() == "off"


@pytest.fixture
def fake_device(monkeypatch):
    """A CUDA device in name only."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"Fake {index}")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(clusters, "supported", lambda index: index != 7)
    trials = []
    monkeypatch.setattr(clusters, "trial", lambda index, _form: trials.append(index) or index == 0)
    return trials


def test_auto_trusts_a_trial_and_remembers_it(switch, fake_device, tmp_path, monkeypatch):
    """One trial a device, kept in a file of its own in the cache folder; a capture waits."""
    switch("auto")
    assert (
        clusters.allowed(1)
        and clusters.trusted(0, ROWS)
        and clusters.trusted(0, ROWS)
        and not clusters.trusted(1, ROWS)
    )
    assert fake_device == [0, 1] and clusters.allowed(1) and not clusters.allowed(7)  # other forms may be
    files = list((tmp_path / "clusters").iterdir())
    said = sorted(file.read_text() for file in files)
    assert [(text[:6], text[-7:]) for text in said] == [("Fake 0", " agree\n"), ("Fake 1", "differ\n")]
    monkeypatch.setattr(clusters, "_verdicts", {})
    assert clusters.trusted(0, ROWS) and not clusters.trusted(1, ROWS)
    assert fake_device == [0, 1]  # read, not tried again
    for file in files:
        file.unlink()
    monkeypatch.setattr(clusters, "_verdicts", {})
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert not clusters.trusted(0, ROWS) and not clusters._verdicts and len(fake_device) == 2
    switch("on")
    assert clusters.trusted(1, ROWS) and clusters.allowed(1) and not clusters.allowed(7)  # not tried, but supported
    switch("auto")
    monkeypatch.setattr(clusters, "_verdicts", {(1, form): False for form in clusters.FORMS})
    assert clusters.allowed(0) and not clusters.allowed(1)
    switch("off")
    assert not clusters.allowed(0)


def remade(verdict, change, monkeypatch):
    """Whether a verdict is made anew, and kept, after its file was changed."""
    tried = []
    monkeypatch.setattr(clusters, "trial", lambda index, _form: tried.append(index) or verdict)
    key = f"Fake 0, CUDA {torch.version.cuda}, Triton {triton.__version__}, {ROWS}"
    clusters._write(key, verdict)
    file = clusters.verdict_file(key)
    change(file)
    monkeypatch.setattr(clusters, "_verdicts", {})
    assert clusters.trusted(0, ROWS) is verdict
    return tried == [0] and (file.is_dir() or clusters._read(key) is verdict)


@pytest.mark.usefixtures("fake_device")
@pytest.mark.parametrize("verdict", [True, False])
def test_a_verdict_that_is_not_whole_is_none(verdict, switch, monkeypatch):
    """Cut off anywhere, of another key, or no text at all: the trial is made again, and its verdict kept."""
    switch("auto")
    assert not remade(verdict, lambda _file: None, monkeypatch)

    def to(change):
        return lambda file: file.write_bytes(change(file.read_bytes()))

    def folder(file):
        file.unlink()
        file.mkdir()

    changes = [to(lambda text, end=end: text[:end]) for end in (0, 1, 20, -10, -1)]
    changes += [
        to(lambda text: text.replace(b"Fake 0", b"Fake 1")),
        to(lambda _: b"\xff\x00" * 99),
        to(lambda text: text * 2),
    ]
    changes += [to(lambda _: b"{}"), to(lambda _: b"true\n"), folder]
    assert all(remade(verdict, change, monkeypatch) for change in changes)


def below_a_file(monkeypatch, tmp_path):
    """A cache folder in what is a file."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NORMTRITON_CACHE", str(tmp_path / "file" / "below"))


def a_file(monkeypatch, tmp_path):
    """A cache folder that is a file."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NORMTRITON_CACHE", str(tmp_path / "file"))


def too_long(monkeypatch, tmp_path):
    """A name that no file system takes."""
    monkeypatch.setenv("NORMTRITON_CACHE", str(tmp_path / ("x" * 5000)))


def no_home(monkeypatch, _tmp_path):
    """A user without an entry in the list of users, and nothing said in the environment."""
    for name in ("NORMTRITON_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)

    def unknown(_uid):
        raise KeyError("uid not found")

    monkeypatch.setattr("pwd.getpwuid", unknown)


def read_only(monkeypatch, _tmp_path):
    """What a read-only file system says; root may write where permissions forbid it."""
    made = Path.open

    def refuse(self, mode="r", *args, **kwargs):
        if set(mode) & set("wax+"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))
        return made(self, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)


def forbidden(monkeypatch, _tmp_path):
    """A folder that may not be entered, of another user."""

    def refuse(self, *_args, **_kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    for name in ("open", "mkdir", "stat"):
        monkeypatch.setattr(Path, name, refuse)


@pytest.mark.parametrize("folder", [below_a_file, a_file, too_long, no_home, read_only, forbidden])
def test_an_unwritable_cache_costs_nothing_else(folder, switch, fake_device, tmp_path, monkeypatch):
    """The verdict holds for the process, and plans are the planner's own."""
    switch("auto")
    with monkeypatch.context() as patch:
        folder(patch, tmp_path)
        assert clusters.trusted(0, ROWS) and clusters.trusted(0, ROWS) and not clusters.trusted(1, ROWS)
        assert fake_device == [0, 1]
        patch.setattr(tuned, "_setting", "")
        patch.setattr(tuned, "device_name", lambda _index: "Fake, sm_99")
        assert tuned.table_for(0, 132) is None
    assert not list(tmp_path.rglob("*.txt")) and not list(tmp_path.rglob(".*"))


def test_a_shared_cache_that_is_read_only_is_read(switch, fake_device, tmp_path, monkeypatch):
    """A verdict that someone else has put there holds."""
    switch("auto")
    assert clusters.trusted(0, ROWS)
    monkeypatch.setattr(clusters, "_verdicts", {})
    with monkeypatch.context() as patch:
        read_only(patch, tmp_path)
        assert clusters.trusted(0, ROWS)
    assert fake_device == [0]


def test_threads_wait_for_the_trial(switch, fake_device, monkeypatch):
    """One of them makes it, and its own launches are allowed; a launch of another is not made before the verdict."""
    switch("auto")
    begun, told = Event(), []

    def trial(index, form):
        assert form == ROWS
        fake_device.append(index)
        assert clusters.trusted(index, ROWS)
        begun.set()
        sleep(0.1)
        return False

    monkeypatch.setattr(clusters, "trial", trial)
    threads = [Thread(target=lambda: told.append(clusters.trusted(0, ROWS))) for _ in range(4)]
    for thread in threads:
        thread.start()
        assert begun.wait(10)
    for thread in threads:
        thread.join()
    assert told == [False] * 4 and fake_device == [0]


def test_a_trial_that_is_interrupted_is_none(switch, fake_device, monkeypatch):
    """Whoever asks next makes one."""
    switch("auto")
    made = clusters.trial

    def interrupt(_index, _form):
        raise KeyboardInterrupt

    monkeypatch.setattr(clusters, "trial", interrupt)
    with pytest.raises(KeyboardInterrupt):
        clusters.trusted(0, ROWS)
    monkeypatch.setattr(clusters, "trial", made)
    assert clusters.trusted(0, ROWS) and fake_device == [0]


@pytest.mark.parametrize("form", clusters.FORMS)
def test_the_trial_of_a_form_compares_both_ways(form, switch, monkeypatch):
    """It launches a cluster of that form and no other, and separate launches; a share that is lost shows."""
    switch("on")  # neither the interpreter nor the emulator has a device to try
    made, run, seen, lost = trial.results, launch._run, [], False
    monkeypatch.setattr(trial, "results", lambda *args: made(*args[:3], torch.empty(0).device))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _index: None)

    def lossy(step, *args):
        run(step, *args)
        if step.plan.ctas > 1:
            seen.append(clusters.form_of(step))
            if lost:  # what a thread block that did not run would leave of y, or dx
                result = args[2 if step.kernel == "forward" else 3]
                result[..., -result.shape[-1] // 4 :] = 0

    monkeypatch.setattr(launch, "_run", lossy)
    assert clusters.trial(0, form)
    lost = True
    assert not clusters.trial(0, form)
    assert seen == [form] * 2


def test_a_form_that_is_not_trusted_does_without(switch, monkeypatch):
    """Its launches are made separately, those of other forms in clusters; the verdicts are apart."""
    switch("auto")
    monkeypatch.setattr(clusters, "supported", lambda _index: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _index: "Fake")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(clusters, "trial", lambda _index, form: form != "columns backward")
    monkeypatch.setattr(devices, "of", lambda _x: Device(2, clusters=True))
    run, seen = launch._run, []

    def watch(step, *args):
        seen.append((step.kernel, step.plan.ctas > 1))
        run(step, *args)

    monkeypatch.setattr(launch, "_run", watch)
    case = CLUSTERED["batch-column"]
    x, dy = (lay_out(torch.randn(case.shape), case.layout) for _ in range(2))
    check(case, x, *parameters(case), dy)
    assert ("forward", True) in seen and ("backward", False) in seen and ("backward", True) not in seen
    assert clusters.allowed(-1)
    assert {form: clusters.trusted(-1, form) for form in clusters.FORMS} == {
        form: form != "columns backward" for form in clusters.FORMS
    }
