"""What is kept, allocated, launched and said; and that a norm is its axes."""

import os
import re
import runpy
import subprocess
import sys
from math import inf, nan
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cases import CASES, lay_out
from normtriton.perf.cases.shapes import CASES as REAL
from normtriton.perf.cases.shapes import make
from normtriton.perf.count.launches import recording
from oracle import close, reference
from torch.utils._python_dispatch import TorchDispatchMode

import normtriton as nt
from normtriton.autograd import Call, normalize
from normtriton.planning import Norm, Problem
from normtriton.planning.plan import Device
from normtriton.runtime import devices, launch
from normtriton.runtime.switch import Switch

ROOT = Path(__file__).resolve().parents[1]


def test_a_new_norm_is_its_axes():
    """Layer norm over channels (LayerNorm2d), forward and backward, from one line."""
    over_channels = Norm("n c *s", over="c", affine="c")

    for layout in ("contiguous", "channels_last", "sliced"):
        x = lay_out(torch.randn(3, 10, 7, 5), layout).requires_grad_()
        weight, bias = torch.randn(10, requires_grad=True), torch.randn(10, requires_grad=True)
        y = normalize(x, weight, bias, Call(Problem(over_channels, tuple(x.shape)), 1e-6))
        dy = torch.randn(x.shape)
        y.backward(dy)
        want = reference(x, weight, bias, dy, dims=(1,), spread=(1, -1, 1, 1), eps=1e-6)
        close(y, want.y)
        close(x.grad, want.dx, slack=8 * want.hardness, scale=2 * want.dx.abs().max().item())
        close(weight.grad, want.dweight, scale=20)
        close(bias.grad, want.dbias, scale=20)


def test_a_norm_with_parameters_for_each_sample():
    """Parameters that differ between samples (adaptive layer norm) need no new kernel either."""
    adaptive = Norm("b t d", over="d", affine="b d")
    x = torch.randn(2, 3, 8, requires_grad=True)
    weight, bias = torch.randn(2, 8, requires_grad=True), torch.randn(2, 8, requires_grad=True)
    y = normalize(x, weight, bias, Call(Problem(adaptive, (2, 3, 8)), 1e-5))
    dy = torch.randn(x.shape)
    y.backward(dy)
    want = reference(x, weight, bias, dy, dims=(2,), spread=(2, 1, 8))
    close(y, want.y)
    close(x.grad, want.dx, slack=8, scale=2 * want.dx.abs().max().item())
    close(weight.grad, want.dweight, scale=20)
    close(bias.grad, want.dbias, scale=20)


class Allocations(TorchDispatchMode):
    """Bytes of every tensor that an operation returns anew."""

    def __init__(self):
        super().__init__()
        self.sizes = []
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.names.append(func.name())
        if isinstance(out, torch.Tensor):
            self.sizes.append(out.numel() * out.itemsize)
        return out


@pytest.mark.parametrize("name", CASES)
def test_saved_for_backward(name):
    """x, weight, mean and rstd, and nothing else."""
    case = CASES[name]
    x = lay_out(torch.randn(case.shape), case.layout).requires_grad_()
    weight, bias = torch.ones(case.features(), requires_grad=True), None
    if case.norm != "rms":
        bias = torch.ones(case.features(), requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        case.run(x, weight, bias)
    groups = case.explain(x, weight, bias).forward.schedule.num_groups
    assert sorted(t.numel() for t in kept) == sorted(
        [x.numel(), weight.numel(), *[groups] * (1 if case.norm == "rms" else 2)]
    )


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("case", REAL, ids=lambda c: c.name)
def test_partial_buffers_are_small(case, layout):
    """Nothing is allocated but results and, above 16 MB, buffers under 1 % of x; no operation of PyTorch's runs.

    Of layer and RMS norm's gradients, whose every element is another parameter's, a row for each multiprocessor is
    kept besides: that is 1 % from 26,400 rows of float32 on (132 multiprocessors), and more below.
    """
    if layout == "channels_last" and len(case.shape) != 4:
        return
    call, x, weight, bias = make(
        case, torch.float32, getattr(torch, {"contiguous": "contiguous_format"}.get(layout, layout))
    )
    size, results = x.numel() * 4, 4 * (2 * weight.numel() + 2 * call.problem.num_groups)
    rows = 132 * 8 * weight.numel() if case.norm in ("layer", "rms") else 0
    y, mean, rstd = torch.empty_like(x), *(torch.empty(call.problem.num_groups, device="meta") for _ in range(2))
    wants = (True, torch.float32, None if bias is None else torch.float32)
    for direction in ("forward", "backward"):
        with recording(), Allocations() as allocations:
            if direction == "forward":
                launch.forward(call.problem, x, weight, bias, call.eps, call.statistics, call.use_running)
            else:
                launch.backward(call.problem, y, x, weight, mean, rstd, None, call.eps, wants)
        assert set(allocations.names) <= {"aten::empty_like", "aten::new_empty"}
        assert sum(s >= size for s in allocations.sizes) == 1  # y or dx
        if size > 16 * 2**20:
            merged = 4 * 2 * call.problem.num_groups
            assert sum(s for s in allocations.sizes if s < size) <= results + merged + size // 100 + rows


@pytest.mark.parametrize("rows", [2, 9])
def test_a_sum_that_no_gradient_needs(rows):
    """RMS norm's dx does without the sum of dy: it is neither written nor added up from memory that nobody wrote."""
    x, weight = torch.empty(rows, 60001, device="meta"), torch.empty(60001, device="meta")
    call = nt.functional.rms_norm_call(x, weight.shape, weight, None)
    with recording(Device(132)) as launches:
        launch.backward(
            call.problem, x, x, weight, None, torch.empty(rows), None, call.eps, (True, torch.float32, None)
        )
    assert [step.launch.kernel for step in launches] == ["backward", "backward"]
    for step in launches:
        arguments = dict(zip(launch.KERNELS["backward"].arg_names, step.args, strict=False))
        assert arguments["sum_dy"] is None and arguments["sum_dyx"] is not None


@pytest.mark.parametrize(
    ("name", "forward", "backward"),
    [
        ("row", 1, 1),
        ("many-rows", 1, 2),
        ("batch-r1", 1, 1),
        ("batch-streamed", 1, 1),
        ("batch-split", 2, 2),
        ("instance", 1, 2),
        ("group", 1, 2),
        ("group-cells", 3, 3),
        ("row-split", 2, 2),
    ],
)
def test_launches(name, forward, backward, monkeypatch):
    """As many launches as the plan says, and no more."""
    case, ran = CASES[name], []
    run = launch._run
    monkeypatch.setattr(launch, "_run", lambda step, *args: (ran.append(step.kernel), run(step, *args)))
    x = lay_out(torch.randn(case.shape), case.layout).requires_grad_()
    weight, bias = torch.ones(case.features(), requires_grad=True), torch.ones(case.features(), requires_grad=True)
    y = case.run(x, weight, bias)
    assert len(ran) == forward
    y.backward(lay_out(torch.randn(y.shape), case.layout))
    assert len(ran) == forward + backward


def test_gradients_that_nobody_wants_cost_nothing(monkeypatch):
    """A frozen input or frozen parameters: no dx is written, no partial gradient is kept."""
    ran = []
    run = launch._run
    monkeypatch.setattr(launch, "_run", lambda step, *args: (ran.append(step), run(step, *args)))
    x, w = torch.randn(9, 64), torch.randn(64)
    nt.layer_norm(x, (64,), w.requires_grad_()).backward(torch.randn(9, 64))
    nt.layer_norm(x.requires_grad_(), (64,), w.detach()).backward(torch.randn(9, 64))
    assert [step.plan.accumulate for step in ran if step.kernel == "backward"] == [True, False]


def test_names_for_users():
    """What a shell completes: not what the library is made of."""
    assert {*nt.__all__, "amp", "clusters", "tuned"} < {*dir(nt)} and "planning" not in dir(nt)


def test_explain_says_it_in_words():
    """Grouping, strategy and reason, tile, launches, bytes; on a CPU tensor and for a GPU that is not there."""
    x = torch.empty(256, 64, 56, 56, dtype=torch.bfloat16, device="meta")
    text = str(nt.explain(nt.batch_norm, x, None, None, training=True))
    for word in ("statistics over 'n s'", "split", "why:", "tile", "warps", "launches", "bytes moved", "1.5"):
        assert word in text
    assert "interpreter" in str(nt.explain(nt.layer_norm, torch.randn(3, 8), (8,)))


@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        *(("sms", value, ValueError) for value in (0, -1, np.int64(-132), np.int64(0))),
        *(("sms", value, TypeError) for value in (1.5, 132.0, True, "132", nan, inf, [132], np.float32(132))),
        *(("clusters", value, TypeError) for value in (0, 1, 1.0, "yes", "on", [], torch.tensor(1), nt)),
    ],
)
def test_explain_checks_its_own_arguments(argument, value, error):
    """An error of PyTorch's type, which names the argument and the value, whatever the norm."""
    x = torch.empty(4, 6, 8, device="meta")
    for function, *rest in ((nt.layer_norm, (8,)), (nt.rms_norm, (8,)), (nt.group_norm, 2), (nt.instance_norm,)):
        with pytest.raises(error, match=rf"^explain\(\): argument '{argument}' must be .*{re.escape(str(value))}"):
            nt.explain(function, x, *rest, **{argument: value})


def test_explain_takes_any_integer():
    """As PyTorch does: NumPy's, and a tensor of one."""
    x = torch.empty(4, 6, 8, device="meta")
    for sms in (108, np.int64(108), torch.tensor(108)):
        assert nt.explain(nt.layer_norm, x, (8,), sms=sms).device == Device(108, nt.clusters.compiles())
    assert nt.explain(nt.layer_norm, x, (8,), sms=1, clusters=False).device == Device(1)


@pytest.mark.parametrize(
    ("name", "arguments", "named"),
    [
        ("layer_norm", ((8,), 1.5), {}),
        ("layer_norm", (8,), {}),
        ("layer_norm", ((7,),), {}),
        ("layer_norm", ((8,),), {"esp": 1}),
        ("layer_norm", ((8,),), {"smss": 108}),
        ("layer_norm", ((8,), None, None, 1e-5, 1, 2), {}),
        ("layer_norm", (), {}),
        ("layer_norm", ((8,),), {"eps": "1e-5"}),
        ("rms_norm", ((8,),), {"bias": None}),
        ("rms_norm", ((8,), 1), {}),
        ("group_norm", (), {}),
        ("group_norm", (True,), {}),
        ("group_norm", (0,), {}),
        ("group_norm", (4,), {}),
        ("group_norm", (2,), {"num_group": 2}),
        ("instance_norm", (None, None, None, None, False), {}),
        ("instance_norm", (None, None, None, None, "yes"), {}),
        ("batch_norm", (None,), {}),
        ("batch_norm", (None, None), {"train": True}),
        ("batch_norm", (None, None, None, None, 1), {}),
        ("batch_norm", (None, None, None, None, True), {"momentum": None}),
        ("batch_norm", (None, None, None, None, True), {"eps": 0.0}),
    ],
)
def test_explain_raises_what_the_function_raises(name, arguments, named):
    """The same type and the same text, of the interpreter's input and of one that goes to PyTorch."""
    function = getattr(nt, name)
    for x in (torch.randn(4, 6, 8), torch.empty(4, 6, 8, device="meta"), [1.0], None, 3, torch.ones(4, 6, 8).int()):
        with pytest.raises(Exception) as own:  # noqa: PT011  whichever it is
            function(x, *arguments, **named)
        with pytest.raises(own.type, match=f"^{re.escape(str(own.value))}$"):
            nt.explain(function, x, *arguments, **named)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (
            nt.LayerNorm(8),
            r"the module LayerNorm; this may be explain\(normtriton.layer_norm, ...\), with the module's",
        ),
        (torch.nn.BatchNorm2d(8), r"the module BatchNorm2d; this may be explain\(normtriton.batch_norm, ...\), with"),
        (torch.nn.Linear(2, 2), "the module Linear$"),
        (nt.RMSNorm, r"normtriton.modules.RMSNorm; this may be explain\(normtriton.rms_norm, ...\)$"),
        (
            torch.nn.functional.layer_norm,
            r"torch.nn.functional.layer_norm; this may be explain\(normtriton.layer_norm, ...",
        ),
        (torch.group_norm, r"<built-in .* group_norm .*; this may be explain\(normtriton.group_norm, ...\)$"),
        (nt.functional.layer_norm_call, r"normtriton.functional.layer_norm_call; this may be"),
        (nt.convert, r"normtriton.convert.replace.convert$"),
        ("layer_norm", "'layer_norm'; this may be"),
        (3, "3$"),
        (None, "None$"),
    ],
)
def test_explain_says_which_function_was_meant(function, said):
    """A module, PyTorch's own function, or anything else."""
    with pytest.raises(TypeError, match=rf"^explain\(\) takes batch_norm, .* of normtriton, not {said}"):
        nt.explain(function, torch.randn(3, 8), (8,))


@pytest.mark.parametrize("switch", [nt.clusters, nt.amp], ids=["clusters", "autocast"])
def test_a_switch_takes_its_words_alone(switch, monkeypatch):
    """ValueError for another word, TypeError for none, and the setting stays; an empty variable says nothing."""
    before = switch.mode()
    for mode in ("ON", "", "auto ", "1"):
        with pytest.raises(ValueError, match=f"is one of .*, not {mode!r}"):
            switch.set_mode(mode)
    for mode in (True, 1, None, nan, ["on"], np.array(["on"]), b"on"):
        with pytest.raises(TypeError, match=f"is one of .*, not {re.escape(repr(mode))}"):
            switch.set_mode(mode)
    assert switch.mode() == before
    monkeypatch.setenv("NORMTRITON_SOMETHING", "")
    assert Switch("NORMTRITON_SOMETHING", "first", "second").mode == "first"


@pytest.mark.parametrize("case", REAL, ids=lambda c: c.name)
def test_bytes_of_the_plan(case):
    """Resident plans read once; no plan moves more than two reads and a write."""
    call, x, weight, bias = make(case, torch.float32, torch.contiguous_format)
    from normtriton.explain import backward_direction, forward_direction

    forward, backward = (
        forward_direction(call, x, weight, bias, Device(132)),
        backward_direction(call, x, weight, bias, Device(132)),
    )
    assert forward.moved / forward.compulsory <= (1.0 if forward.schedule.strategy == "resident" else 1.52)
    assert backward.moved / backward.compulsory <= (1.14 if backward.schedule.strategy == "resident" else 1.72)


def test_without_interpreter_a_cpu_tensor_goes_to_pytorch():
    """The same model runs where there is neither GPU nor interpreter, and explain says how."""
    code = (
        "import torch, normtriton as nt; x = torch.randn(4, 6, 3);"
        "assert torch.equal(nt.GroupNorm(2, 6)(x), torch.nn.GroupNorm(2, 6)(x));"
        "assert 'torch.nn.functional.group_norm' in str(nt.explain(nt.group_norm, x, 2))"
    )
    env = {**os.environ, "TRITON_INTERPRET": "0"}
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, env=env)


def kind_of(arg):
    """Triton's word for an argument's type."""
    if isinstance(arg, tuple):
        return tuple(map(kind_of, arg))
    return "*fp32" if isinstance(arg, torch.Tensor) else {int: "i32", float: "fp32"}.get(type(arg), "constexpr")


class FakeCompiled:
    """Stands for a compiled kernel: notes what it is launched with, by which way."""

    function, packed_metadata = "function", "metadata"

    def __init__(self):
        self.launched, self.described = [], []
        self.run = SimpleNamespace(
            launch=lambda *args: self.launched.append(args),
            launch_cooperative_grid=False, launch_pdl=False, kernel_signature="signature",
            global_scratch_size=0, profile_scratch_size=0,
        )  # fmt: skip

    def take(self, args):
        """Have been compiled for such arguments."""
        self.src = SimpleNamespace(signature=dict(enumerate(map(kind_of, args))))
        self.run.arg_annotations = [f"note of {kind}" for kind in self.src.signature.values()]

    def __getitem__(self, grid):
        return lambda *args: self.described.append((grid, args))


class FakeKernel:
    """Stands for a jitted kernel: counts what takes Triton's own way."""

    def __init__(self):
        self.compiled, self.kernel = [], FakeCompiled()

    def __getitem__(self, grid):
        def run(*args, **options):
            self.compiled.append((grid, args, options))
            self.kernel.take(args)
            return self.kernel

        return run


@pytest.fixture
def fake_kernel(monkeypatch):
    """A forward kernel that only counts, launched as on a CUDA device."""
    kernel = FakeKernel()
    monkeypatch.setattr(launch, "_LOOKED_UP", True)
    monkeypatch.setitem(launch.KERNELS, "forward", kernel)
    active = SimpleNamespace(get_current_device=lambda: 0, get_current_stream=lambda _device: "stream")
    monkeypatch.setattr(launch, "driver", SimpleNamespace(active=active))
    monkeypatch.setattr(launch, "_ready", {})
    return kernel


def leaves(tree):
    """What a tuple of tuples holds."""
    return [leaf for item in tree for leaf in leaves(item)] if isinstance(tree, tuple) else [tree]


def test_a_launch_is_looked_up_the_second_time(fake_kernel):
    """By device, dtypes, what is None, integers and alignment: all that Triton specializes on."""
    call, x, weight, bias = make(REAL[0]._replace(shape=(4, 64)), torch.float32, torch.contiguous_format, "cpu")
    for _ in range(3):
        launch.forward(call.problem, x, weight, bias, call.eps, None, False)
    launched = fake_kernel.kernel.launched
    assert (len(fake_kernel.compiled), len(launched)) == (1, 2)
    (grid, args, options), again = fake_kernel.compiled[0], launched[0]
    assert again[:8] == (*grid, 1, "stream", "function", False, False, "metadata")
    assert again[8:13] == (*[None] * 5,) and again[14] == "signature"  # neither hooks nor memory besides the arguments
    *tensors, group, _plan, _into, _into_plan = args
    numbers = [leaf for leaf in leaves(group) if type(leaf) is int]
    assert options["num_warps"] == 1 and [type(a) for a in again[-1][: len(tensors)]] == [type(a) for a in tensors]
    assert [*again[-1][len(tensors) :]] == numbers and numbers  # the grouping's that are not compiled in
    assert again[13] == [*map("note of {}".format, map(kind_of, tensors)), *["note of *fp32"] * len(numbers)]
    for other in (
        (x.double(), weight, bias),
        (x, weight.half(), bias),
        (x, weight, None),
        (x, None, None),
    ):
        before = len(fake_kernel.compiled)
        for _ in range(2):
            launch.forward(call.problem, *other, call.eps, None, False)
        assert len(fake_kernel.compiled) == before + 1, other
    odd = torch.zeros(257)[1:].view(4, 64)  # 4 bytes off: Triton's own way, every time
    before = len(fake_kernel.compiled)
    for _ in range(2):
        launch.forward(call.problem, odd, weight, bias, call.eps, None, False)
    assert len(fake_kernel.compiled) == before + 2


@pytest.mark.parametrize("need", ["global_scratch_size", "profile_scratch_size", "gsan_enabled"])
def test_a_kernel_that_needs_memory_of_its_own(need, fake_kernel):
    """Triton's own launcher finds it: an instrumented kernel's, for one."""
    setattr(fake_kernel.kernel.run, need, 128)
    call, x, weight, bias = make(REAL[0]._replace(shape=(4, 64)), torch.float32, torch.contiguous_format, "cpu")
    for _ in range(2):
        launch.forward(call.problem, x, weight, bias, call.eps, None, False)
    assert (len(fake_kernel.kernel.described), fake_kernel.kernel.launched) == (1, [])


@pytest.mark.parametrize("known", [True, False])
def test_a_profiler_is_told_of_every_launch(known, fake_kernel, monkeypatch):
    """While a hook is set, and with a Triton whose launcher is not known, launches go through Triton's own launcher."""
    monkeypatch.setattr(launch, "_LAUNCHER_KNOWN", known)
    call, x, weight, bias = make(REAL[0]._replace(shape=(4, 64)), torch.float32, torch.contiguous_format, "cpu")
    hooks = SimpleNamespace(launch_enter_hook=SimpleNamespace(calls=[]), launch_exit_hook=SimpleNamespace(calls=[]))
    monkeypatch.setattr(launch, "_hooks", hooks)
    told = []
    for hook in (hooks.launch_enter_hook.calls, hooks.launch_exit_hook.calls):
        for calls in ([], [print]):
            hook[:] = calls
            before = len(fake_kernel.kernel.described)
            launch.forward(call.problem, x, weight, bias, call.eps, None, False)
            told.append(len(fake_kernel.kernel.described) - before)
        hook.clear()
    assert told == ([0, 1, 0, 1] if known else [0, 1, 1, 1])  # the very first one compiles


def test_the_first_gradients_dtypes_choose_a_kernel(fake_kernel, monkeypatch):
    """Parameter gradients in another dtype, or not wanted, are another compiled kernel."""
    monkeypatch.setitem(launch.KERNELS, "backward", fake_kernel)
    monkeypatch.setitem(launch.KERNELS, "sum_parts", FakeKernel())
    call, x, weight, _bias = make(REAL[0]._replace(shape=(4, 64)), torch.float32, torch.contiguous_format, "cpu")
    mean, rstd = torch.zeros(4), torch.ones(4)
    for wants in ((True, torch.float32, torch.float32), (True, torch.float16, torch.float32), (True, None, None)):
        before = len(fake_kernel.compiled)
        for _ in range(2):
            launch.backward(call.problem, x, x, weight, mean, rstd, None, call.eps, wants)
        assert len(fake_kernel.compiled) == before + 1, wants


def test_running_statistics_are_part_of_the_key(monkeypatch):
    """Their dtypes, strides, count and momentum choose a kernel; their values do not."""
    monkeypatch.setattr(launch, "_LOOKED_UP", True)
    mean, var, x = torch.zeros(8), torch.ones(8), torch.zeros(4, 8)

    def key(**changes):
        running = launch.Running(mean, var, 1, 1, (), (0.1, 0.0))._replace(**changes)
        return launch._kinds(running, x, None)

    assert key() == key(momentum=(0.2, 0.0)) == key(mean=var)
    count = torch.zeros((), dtype=torch.int64)
    keys = [
        key(),
        key(mean=mean.half()),
        key(mean_stride=2),
        key(var_stride=2),
        key(momentum=()),
        key(batches=(count,)),
    ]
    assert len(set(keys)) == len(keys)
    assert key(var=torch.zeros(9)[1:]) is None


def test_a_tensor_on_another_gpu(monkeypatch):
    """Triton launches on the current device, so that it is made x's."""
    from contextlib import nullcontext

    entered = []
    monkeypatch.setattr(devices, "elsewhere", lambda _x: True)
    monkeypatch.setattr(torch.cuda, "device", lambda index: entered.append(index) or nullcontext())
    x = torch.randn(4, 8)
    torch.testing.assert_close(nt.layer_norm(x, (8,)), torch.nn.functional.layer_norm(x, (8,)))
    assert entered == [-1]


def frames(function):
    """Names of this library's Python functions that a call enters."""
    home, names = str(Path(nt.__file__).parent), []

    def enter(frame, event, _arg):
        if event == "call" and frame.f_code.co_filename.startswith(home):
            names.append(frame.f_code.co_name)

    sys.setprofile(enter)
    try:
        function()
    finally:
        sys.setprofile(None)
    return names


@pytest.mark.usefixtures("fake_kernel")
def test_the_way_to_a_launch_is_short():
    """Every Python function on it takes host time, 0.1 µs at least: none is added unseen. A timing would be noise."""
    x, weight, bias = torch.randn(4, 64, requires_grad=True), torch.ones(64), torch.zeros(64)
    for _ in range(2):
        nt.layer_norm(x, (64,), weight, bias)
    checks = ["layer_norm", "takes", "has_kernels", "unwatched", "layer_norm_call", "check_memory", "_row_call"]
    checks += ["_with_dtype", "upcasts", "normalize_unwatched", "elsewhere"]
    launches = ["forward", "of", "_kinds", "statistics_dtype", "_run", "launch"]
    assert frames(lambda: nt.layer_norm(x, (64,), weight, bias)) == [*checks, "forward", *launches]  # autograd's first
    with torch.no_grad():
        assert frames(lambda: nt.layer_norm(x, (64,), weight, bias)) == [*checks, "_without_graph", *launches]


def test_the_drawing_shows_the_layers():
    """The committed drawing is that of the contract."""
    drawn = runpy.run_path(str(ROOT / "docs" / "draw_layers.py"))["svg"]()
    assert (ROOT / "docs" / "layers.svg").read_text() == drawn, "run `python docs/draw_layers.py`"
