"""Operators, compilers, exporters, fake tensors; autocast and checkpoints; and that plain calls pay for none of it."""

import copy
import operator
import warnings
from contextlib import contextmanager

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._functorch import config as functorch_config
from torch._inductor import config as inductor_config
from torch._inductor.graph import GraphLowering
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint
from watching import Watching

import normtriton as nt
from normtriton.autograd import amp
from normtriton.autograd.call import Call
from normtriton.autograd.ways import normalize
from normtriton.planning.norms import BATCH, GROUP, LAYER, RMS, Norm
from normtriton.planning.schedule import Problem
from normtriton.runtime import compiling, launch

OPERATOR, BACKWARD = torch.ops.normtriton.normalize, torch.ops.normtriton.normalize_backward
UPDATE = torch.ops.normtriton.normalize_and_update.default

#: module, and the shapes of inputs in turn: the first is compiled for, the second makes its sizes symbols
MODULES = {
    "layer": (lambda: nt.LayerNorm(6), [(4, 3, 6), (5, 2, 6), (9, 4, 6)]),
    "rms": (lambda: nt.RMSNorm(6), [(4, 3, 6), (5, 2, 6), (9, 4, 6)]),
    "group": (lambda: nt.GroupNorm(2, 6), [(2, 6, 3, 4), (3, 6, 4, 3), (5, 6, 2, 7)]),
    "instance": (
        lambda: nt.InstanceNorm1d(3, affine=True, track_running_stats=True),
        [(2, 3, 4), (3, 3, 5), (4, 3, 7)],
    ),
    "batch": (lambda: nt.BatchNorm2d(3), [(2, 3, 4, 5), (3, 3, 2, 7), (4, 3, 6, 2)]),
    "batch-averaging": (lambda: nt.BatchNorm1d(3, momentum=None), [(2, 3, 4), (3, 3, 5), (4, 3, 7)]),
    "batch-untracked": (lambda: nt.BatchNorm1d(3, track_running_stats=False), [(4, 3), (5, 3), (9, 3)]),
}
each_module = pytest.mark.parametrize("name", MODULES)


def build(name, *, training=True):
    """A module whose parameters are no ones and zeros."""
    torch.manual_seed(0)
    module = MODULES[name][0]().train(training)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    return module


def step(module, x, run=None):
    """y, and what a backward pass leaves in x, parameters and buffers."""
    x = x.clone().requires_grad_()
    module.zero_grad()
    y = (module if run is None else run)(x)
    y.backward(torch.linspace(-1, 1, y.numel()).reshape(y.shape))
    return y.detach(), x.grad, [p.grad for p in module.parameters()], [b.clone() for b in module.buffers()]


def arguments(norm, x, weight, *, running=False, constant=False, names="", sizes=(), dtype=None):
    """The operator's."""
    given = (torch.randn(6), torch.rand(6) + 0.5) if running else (None, None)
    bias = None if norm == RMS else weight.detach().clone().requires_grad_()
    return (x, weight, bias, *given, *norm, names, list(sizes), constant, 0.1, 1e-5, dtype)


@pytest.mark.parametrize(
    ("norm", "shape", "more"),
    [
        (LAYER, (4, 6), {"names": "d", "sizes": [1]}),
        (LAYER, (4, 6), {"names": "d", "sizes": [1], "dtype": torch.float64}),
        (RMS, (4, 6), {"names": "d", "sizes": [1]}),
        (GROUP, (2, 6, 3, 3), {"names": "g", "sizes": [2]}),
        (BATCH, (2, 6, 3, 3), {}),
        (BATCH, (2, 6, 3, 3), {"running": True}),
        (BATCH, (2, 6, 3, 3), {"running": True, "constant": True}),
    ],
    ids=["layer", "layer-upcast", "rms", "group", "batch", "batch-updating", "batch-evaluating"],
)
def test_the_operators(norm, shape, more):
    """PyTorch's own checks: schema, autograd registration, fake kernel, and that AOTAutograd gives the same."""
    x = torch.randn(shape)
    x = x.to(memory_format=torch.channels_last) if len(shape) == 4 else x
    inputs = arguments(norm, x.requires_grad_(), torch.randn(6, requires_grad=True), **more)
    opcheck(OPERATOR, inputs)
    x, weight, _bias, mean, var, *words, constant, _momentum, eps, _dtype = inputs
    statistics = (mean, var) if constant else [t.detach() for t in OPERATOR(*inputs)[1:3]]
    dy = torch.randn(shape, requires_grad=True)
    opcheck(BACKWARD, (dy, x, weight, *statistics, *words, constant, eps, True, torch.float32, None))
    opcheck(BACKWARD, (dy, x, weight, *statistics, *words, constant, eps, False, None, torch.float64))
    if mean is not None and not constant:
        for batches in (None, torch.tensor(0)):
            opcheck(UPDATE, (*inputs[:5], batches, *words, 0.1, eps, None))


@each_module
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluating"])
def test_compiled(name, training):
    """One graph without a break, two compilations for any number of sizes, and eager's very bits."""
    if name == "batch-averaging" and training:
        pytest.skip("the cumulative average needs the count as a number: a graph break, with torch.nn's module too")
    torch._dynamo.reset()
    module = build(name, training=training)
    eager, counter = copy.deepcopy(module), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    for shape in MODULES[name][1]:
        x = torch.randn(shape)
        got, want = step(module, x, compiled), step(eager, x)
        torch.testing.assert_close(got, want, rtol=0, atol=0)
    assert counter.frame_count <= 2


@each_module
def test_compiled_once_for_all_sizes(name):
    """Told that sizes change, a compiler is done after the first."""
    torch._dynamo.reset()
    module, counter = build(name, training=False), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, fullgraph=True, backend=counter, dynamic=True)
    compiled(torch.randn(MODULES[name][1][0]))
    first = counter.frame_count  # 2 with an eps: a compiler starts over once it has learnt that a number is fixed
    for shape in MODULES[name][1]:
        x = torch.randn(shape)
        assert torch.equal(compiled(x), module(x))
    assert counter.frame_count == first


@pytest.fixture
def lowered(monkeypatch):
    """The graphs that inductor makes code of: after it has put changes in place back."""
    graphs, start = [], GraphLowering.__init__

    def record(self, graph, *args, **kwargs):
        graphs.append(graph)
        start(self, graph, *args, **kwargs)

    monkeypatch.setattr(GraphLowering, "__init__", record)
    torch._dynamo.reset()
    uncached = inductor_config.patch(fx_graph_cache=False), functorch_config.patch(enable_autograd_cache=False)
    with uncached[0], uncached[1], warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of what inductor imports
        yield graphs


IN_PLACE = {
    "batch": (lambda dtype: nt.BatchNorm2d(6, dtype=dtype), (2, 6, 3, 4)),
    "batch-averaging": (lambda dtype: nt.BatchNorm1d(6, momentum=None, dtype=dtype), (3, 6)),
    "instance": (lambda dtype: nt.InstanceNorm1d(6, affine=True, track_running_stats=True, dtype=dtype), (2, 6, 4)),
}


@pytest.mark.parametrize(
    ("name", "dtype", "gradients"),
    [
        ("batch", torch.float32, True),
        ("batch", torch.bfloat16, False),
        ("batch-averaging", torch.float32, True),
        ("instance", torch.float64, True),
    ],
)
def test_a_compiled_step_changes_statistics_in_place(name, dtype, gradients, lowered, monkeypatch):
    """Inductor's code copies no statistic, and counts no batch beside the kernel: eager's launches, nothing else."""
    make, shape = IN_PLACE[name]
    module, run, launched = make(dtype), launch._run, []
    monkeypatch.setattr(launch, "_run", lambda launch, *args: (launched.append(launch), run(launch, *args)))
    eager, compiled = copy.deepcopy(module), torch.compile(module, fullgraph=name != "batch-averaging")
    x, launches, results = torch.randn(shape, dtype=dtype), [], []
    for which, call in ((eager, eager), (module, compiled)):
        for _ in range(2):
            launched.clear()
            results.append(step(which, x, call) if gradients else (call(x).detach(), list(which.buffers())))
        launches.append([*launched])
    torch.testing.assert_close(results[3], results[1], rtol=0, atol=0)
    assert launches[0] == launches[1]
    nodes = [node for graph in lowered for node in graph.graph.nodes if node.op == "call_function"]
    updates = [node for node in nodes if node.target == UPDATE]
    assert updates
    others = {node.target for node in nodes} - {operator.getitem, BACKWARD.default, *(node.target for node in updates)}
    # the graph's end says what was changed: by the update itself, so a copy of each statistic to itself, no code
    copies = [node for node in nodes if node.target == torch.ops.aten.copy_.default]
    counted = {torch.ops.aten.add.Tensor} if name == "batch-averaging" else set()
    assert others <= {torch.ops.aten.copy_.default, *counted}
    assert all(node.args[0] is node.args[1] or node.args[1].target in counted for node in copies)


def test_compiled_with_a_cumulative_average():
    """Not one graph, but the same numbers."""
    torch._dynamo.reset()
    module = build("batch-averaging")
    eager, compiled = copy.deepcopy(module), torch.compile(module, backend="aot_eager")
    for shape in MODULES["batch-averaging"][1]:
        x = torch.randn(shape)
        torch.testing.assert_close(step(module, x, compiled), step(eager, x), rtol=0, atol=0)


@each_module
def test_exported(name):
    """`torch.export`, the batch's size left open."""
    module, shapes = build(name, training=False), MODULES[name][1]
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(module, (torch.randn(shapes[0]),), dynamic_shapes=({0: batch},))
    assert "normtriton.normalize" in program.graph_module.code
    x = torch.randn(7, *shapes[0][1:])
    torch.testing.assert_close(program.module()(x), module(x), rtol=0, atol=0)


def test_a_compiled_norm_of_ones_own():
    """The operator has heard of no norm, so it takes any."""
    torch._dynamo.reset()
    over_channels = Norm("n c *s", over="c", affine="c")
    weight = torch.randn(6)

    def norm(x):
        return normalize(x, weight, None, Call(Problem(over_channels, tuple(x.shape)), 1e-5))

    x = torch.randn(2, 6, 3)
    got = torch.compile(norm, fullgraph=True, backend="aot_eager")(x)
    assert torch.equal(got, norm(x))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_fake_tensors(device, layout):
    """Shapes, strides, dtypes and devices with no GPU; a build without CUDA cannot keep a graph of its tensors."""
    with FakeTensorMode(), torch.set_grad_enabled(device == "cpu"):
        x = torch.empty(2, 6, 4, 4, dtype=torch.bfloat16, device=device).to(memory_format=layout).requires_grad_()
        module = nt.GroupNorm(2, 6, device=device)
        y = module(x)
        results = [y]
        if device == "cpu":
            y.sum().backward()
            results.append(x.grad)
            assert module.weight.grad.dtype == torch.float32
    for t in results:
        assert (t.shape, t.dtype, t.device.type, t.stride()) == (x.shape, x.dtype, device, x.stride())


def test_traced_by_make_fx():
    """A graph of operators, in which nothing was computed beforehand."""
    graph = make_fx(lambda x: nt.rms_norm(x, (6,)))(torch.randn(4, 6))
    assert "normtriton.normalize" in graph.code
    x = torch.randn(4, 6)
    assert torch.equal(graph(x), nt.rms_norm(x, (6,)))


def test_modes_see_the_operator():
    """Whatever watches the dispatcher sees a norm as one operation; and the result is the same."""
    x = torch.randn(4, 6)
    with Watching() as watching:
        y = nt.layer_norm(x, (6,))
    assert watching.names == ["normtriton::normalize"]
    assert torch.equal(y, nt.layer_norm(x, (6,)))


def test_plain_calls_go_the_short_way(monkeypatch):
    """An operator's host time is paid by those who need one."""
    monkeypatch.setattr(torch.ops.normtriton, "normalize", None)
    x = torch.randn(4, 6, requires_grad=True)
    nt.layer_norm(x, (6,)).sum().backward()
    with torch.no_grad():
        nt.BatchNorm1d(6)(x)


def test_a_default_device_is_no_reason_to_leave(monkeypatch):
    """`torch.set_default_device` is a mode that overloads every function; the kernels are taken all the same."""
    monkeypatch.setattr(torch.nn.functional, "layer_norm", None)
    with torch.device("cpu"):
        nt.layer_norm(torch.randn(4, 6), (6,), torch.ones(6))


def test_operators_of_a_cpu_are_refused(monkeypatch):
    """Without the interpreter an operator has no kernel for a CPU, and says so; the functions take PyTorch's."""
    monkeypatch.setattr(compiling, "INTERPRETED", False)
    torch._dynamo.reset()
    x = torch.randn(4, 6)
    compiled = torch.compile(lambda x: nt.layer_norm(x, (6,)), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), torch.nn.functional.layer_norm(x, (6,)))


@contextmanager
def autocast_of_a_gpu(dtype):
    """`torch.autocast("cuda")`, which warns and does nothing where there is none."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", dtype)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])


AMP_CALLS = {
    "layer": lambda f, x, w: f.layer_norm(x, (4,), w),
    "rms": lambda f, x, w: f.rms_norm(x, (4,), w),
    "group": lambda f, x, w: f.group_norm(x, 2, w),
    "batch": lambda f, x, w: f.batch_norm(x, None, None, w, None, True),
    "instance": lambda f, x, w: f.instance_norm(x, None, None, w),
}


@pytest.mark.parametrize("name", AMP_CALLS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_on_a_gpu(name, dtype):
    """The dtypes that PyTorch returns, seen by fake tensors."""
    with FakeTensorMode(), torch.no_grad(), autocast_of_a_gpu(dtype):
        x, weight = torch.empty(2, 4, 4, dtype=dtype, device="cuda"), torch.empty(4, device="cuda")
        got, want = (AMP_CALLS[name](f, x, weight) for f in (nt, torch.nn.functional))
    assert got.dtype == want.dtype


@pytest.mark.parametrize("name", ["layer", "rms", "group"])
def test_upcast_results(name, monkeypatch):
    """Half precision in, float32 out, as if the input had been float32; an option keeps the input's dtype."""
    monkeypatch.setattr(amp, "upcasts", lambda x: x.dtype in amp._HALF and amp.mode() == "pytorch")
    x = torch.randn(2, 4, 4, dtype=torch.bfloat16, requires_grad=True)
    weight, dy = torch.randn(4, requires_grad=True), torch.randn(2, 4, 4)
    y = AMP_CALLS[name](nt, x, weight)
    dx, dweight = torch.autograd.grad(y, (x, weight), dy)
    wide = x.detach().float().requires_grad_()
    want = AMP_CALLS[name](nt, wide, weight)
    want_dx, want_dweight = torch.autograd.grad(want, (wide, weight), dy)
    assert y.dtype == torch.float32
    assert torch.equal(y, want)
    assert torch.equal(dx, want_dx.bfloat16())
    assert torch.equal(dweight, want_dweight)
    amp.set_mode("input")
    try:
        assert AMP_CALLS[name](nt, x, weight).dtype == torch.bfloat16
    finally:
        amp.set_mode("pytorch")
    with pytest.raises(ValueError, match="pytorch, input, not 'half'"):
        amp.set_mode("half")


def test_autocast_on_a_cpu():
    """There all five keep the input's dtype."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert nt.layer_norm(torch.randn(4, 6).bfloat16(), (6,)).dtype == torch.bfloat16


def test_a_scaled_loss():
    """float16 with a scaler: the step is the one without."""
    weights = []
    for scaler in (torch.amp.GradScaler("cpu", init_scale=1024.0), torch.amp.GradScaler("cpu", enabled=False)):
        module = build("layer")
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        y = module(torch.linspace(-1, 2, 72).reshape(4, 3, 6).square().half())
        scaler.scale(y.float().square().mean()).backward()
        scaler.step(optimizer)
        scaler.update()
        weights.append(module.weight.detach())
    torch.testing.assert_close(*weights, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoint(reentrant):
    """Recomputed in the backward pass, with the same gradients."""
    results = []
    for wrap in (lambda f, x: f(x), lambda f, x: checkpoint(f, x, use_reentrant=reentrant)):
        module = build("layer")
        x = torch.linspace(-1, 2, 72).reshape(4, 3, 6).square().requires_grad_()
        wrap(module, x).square().sum().backward()
        results.append((x.grad, module.weight.grad))
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_changes_in_place_are_noticed():
    """The result may be changed, as it is not kept; the input may not."""
    x = torch.randn(4, 6, requires_grad=True)
    base = x * 1
    y = nt.layer_norm(base, (6,))
    y.add_(1)
    y.sum().backward(retain_graph=True)
    base.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    running = torch.zeros(6), torch.ones(6)
    y = nt.batch_norm(x * 1, *running)
    running[0].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
