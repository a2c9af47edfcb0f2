"""Tracers, scripts and exporters: PyTorch's operators where a graph leaves Python, leaves in fx, ONNX's operators."""

import copy
import io
import pickle
import warnings
from collections import Counter
from contextlib import redirect_stdout
from functools import partial

import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  the name everyone knows it by
from cases import BUILT
from torch import fx, nn
from torch.ao.quantization import fuse_modules, fuse_modules_qat, get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import prepare_fx
from torch.nn.utils import fuse_conv_bn_eval, prune

import normtriton as nt
from normtriton.runtime import launch

pytestmark = [  # PyTorch warns of its own ways of exporting, and of what it uses itself
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),  # as often as of torch.nn's, which is tested
    pytest.mark.filterwarnings("ignore:(It is recommended|Exporting a model while|ONNX Preprocess):UserWarning"),
    pytest.mark.filterwarnings("ignore:Please use quant_min:UserWarning"),
]

#: ONNX's standard operators, by the module that becomes one
STANDARD = {
    **dict.fromkeys(("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "of a batch norm"), "BatchNormalization"),
    **dict.fromkeys(("InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d"), "InstanceNormalization"),
    **dict.fromkeys(("LayerNorm", "of a layer norm"), "LayerNormalization"),
    "GroupNorm": "GroupNormalization",
    **dict.fromkeys(("RMSNorm", "rms of one's own"), "RMSNormalization"),
}


class Rms(nn.Module):
    """As transformers writes it."""

    def __init__(self, n):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n))
        self.variance_epsilon = 1e-6

    def forward(self, hidden_states):
        variance = hidden_states.to(torch.float32).pow(2).mean(-1, keepdim=True)
        return self.weight * (hidden_states * torch.rsqrt(variance + self.variance_epsilon))


class LayerNorm2d(nn.Module):
    """Of the channels, for which neither PyTorch nor ONNX has an operator."""

    def __init__(self, n):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(n)), nn.Parameter(torch.zeros(n))
        self.eps = 1e-6

    def forward(self, x):
        mean = x.mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt((x - mean).pow(2).mean(1, keepdim=True) + self.eps)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class Layer(nn.LayerNorm):
    """A class of one's own that keeps the forward."""


class Batch(nn.BatchNorm2d):
    """The same, with statistics."""


def converted(module):
    """A norm of another class, which `convert` derives one from."""
    assert len(nt.convert(module).converted) == 1
    return module


MODULES = {
    **{name: (partial(getattr(nt, name), *arguments), shape) for name, (arguments, shape) in BUILT.items()},
    "averaging": (lambda: nt.BatchNorm1d(6, momentum=None), (5, 6, 4)),
    "tracking": (lambda: nt.InstanceNorm2d(6, affine=True, track_running_stats=True), (5, 6, 4, 3)),
    "of a layer norm": (lambda: converted(Layer(6)), (4, 6)),
    "of a batch norm": (lambda: converted(Batch(6)), (4, 6, 3, 3)),
    "rms of one's own": (lambda: converted(Rms(6)), (4, 6)),
    "channels of one's own": (lambda: converted(LayerNorm2d(6)), (4, 6, 3, 3)),
}
each_module = pytest.mark.parametrize("name", MODULES)
each_mode = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluating"])


def build(name, *, training=False):
    """The module in a model, with parameters and statistics that matter; and an input."""
    make, shape = MODULES[name]
    module = make().train(training)
    with torch.no_grad():
        for t in (*module.parameters(), *module.buffers()):
            if t.is_floating_point():
                t.add_(torch.rand_like(t) * 0.5)
    return nn.Sequential(nn.Identity(), module).train(training), torch.randn(shape)


def more(x):
    """Another input, of another batch size."""
    return torch.randn(7, *x.shape[1:])


@pytest.fixture
def kernels(monkeypatch):
    """The kernels launched so far."""
    launched, run = [], launch._run
    monkeypatch.setattr(launch, "_run", lambda what, *args: (launched.append(what.kernel), run(what, *args))[1])
    return launched


def same(got, want, name=""):
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5, msg=lambda text: f"{name}: {text}")


def same_buffers(got, want):
    """Running statistics, by name."""
    theirs = dict(want.named_buffers())
    for name, buffer in got.named_buffers():
        same(buffer, theirs[name])


FUNCTIONS = {
    "batch": lambda f, x, w: f.batch_norm(x, None, None, w, None, True),
    "instance": lambda f, x, w: f.instance_norm(x, None, None, w),
    "layer": lambda f, x, w: f.layer_norm(x, [4], w),
    "group": lambda f, x, w: f.group_norm(x, 2, w),
    "rms": lambda f, x, w: f.rms_norm(x, [4], w),
}
each_function = pytest.mark.parametrize("function", FUNCTIONS)


# torch.jit: the graph leaves Python, so it is of PyTorch's operators


@each_mode
@each_module
def test_a_trace_is_of_pytorchs_operators(name, training, kernels):
    """Checked by PyTorch, for other batch sizes too; running statistics are updated; without a kernel."""
    if name == "averaging" and training:
        pytest.skip("a trace holds the cumulative average's factor fast, with torch.nn's module too")
    model, x = build(name, training=training)
    other = copy.deepcopy(model)
    traced = torch.jit.trace(model, x, check_trace=not training)  # a check runs the module twice
    assert "normtriton::" not in str(traced.inlined_graph)
    other(x)
    x = more(x)
    kernels.clear()
    got = traced(x)
    assert not kernels
    same(got, other(x))
    same_buffers(traced, other)


@each_mode
@each_module
def test_a_script_is_of_pytorchs_operators(name, training, kernels):
    """Compiled from PyTorch's forward, or the original class's; the model stays as it was, and a saved file runs."""
    model, x = build(name, training=training)
    kind, other = type(model[1]), copy.deepcopy(model)
    scripted = torch.jit.script(model)
    assert type(model[1]) is kind
    file = io.BytesIO()
    torch.jit.save(scripted, file)
    file.seek(0)
    loaded = torch.jit.load(file)
    got = loaded(x)
    assert not kernels
    same(got, other(x))
    same_buffers(loaded, other)


@pytest.mark.parametrize("name", BUILT)
def test_a_trace_warns_as_that_of_pytorchs_module(name):
    """Of Python's decisions by sizes, as often; and it holds no batch size that PyTorch's does not."""
    (arguments, shape), warned = BUILT[name], []
    for library in (nt, nn):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.jit.trace(getattr(library, name)(*arguments).eval(), torch.randn(shape))
        warned.append(sum(issubclass(w.category, torch.jit.TracerWarning) for w in caught))
    assert warned[0] == warned[1]


@each_function
def test_functions_in_a_trace(function):
    """The very operator that PyTorch's function traces to."""
    x, w = torch.randn(2, 4, 4), torch.rand(4)
    traced, theirs = (torch.jit.trace(lambda x, w, f=f: FUNCTIONS[function](f, x, w), (x, w)) for f in (nt, F))
    names = [[node.kind() for node in t.inlined_graph.nodes()] for t in (traced, theirs)]
    assert names[0] == names[1]
    assert torch.equal(traced(x, w), theirs(x, w))


def test_functions_in_a_script():
    """A script that calls the library's functions calls PyTorch's."""

    @torch.jit.script
    def norms(x, w):
        y = nt.batch_norm(x, None, None, w, training=True) + nt.instance_norm(x, weight=w)
        return y + nt.layer_norm(x, [4], w) + nt.group_norm(x, 2, w) + nt.rms_norm(x, [4], w)

    x, w = torch.randn(2, 4, 4), torch.rand(4)
    same(norms(x, w), sum(function(nt, x, w) for function in FUNCTIONS.values()))
    assert torch.equal(torch.jit.script(nt.layer_norm)(x, [4]), F.layer_norm(x, [4]))


def test_a_trace_frozen_and_optimized():
    """Batch norm is folded into the convolution before it, as PyTorch's is."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nt.BatchNorm2d(4)).eval()
    x = torch.randn(2, 3, 5, 5)
    traced = torch.jit.trace(model, x)
    frozen = torch.jit.freeze(traced)
    assert "batch_norm" not in str(torch.jit.optimize_for_inference(traced).graph)
    same(frozen(x), model(x))


# torch.fx: modules stay leaves, functions stay calls


@each_mode
@each_module
def test_a_module_is_a_leaf(name, training, kernels):
    """A traced model calls it, and so the kernels; copied, pickled, interpreted, transformed and recompiled too."""
    model, x = build(name, training=training)
    graph = fx.symbolic_trace(model)
    (node,) = (node for node in graph.graph.nodes if node.op == "call_module" and node.target == "1")
    assert graph.get_submodule(node.target) is model[1]
    pickled = pickle.loads(pickle.dumps(graph))  # noqa: S301  our own
    copies = [copy.deepcopy(graph), pickled, fx.Transformer(copy.deepcopy(graph)).transform()]
    copies[0].recompile()
    want = model(x)
    for other in (*copies, fx.Interpreter(copy.deepcopy(copies[0]))):
        kernels.clear()
        got = other.run(x) if isinstance(other, fx.Interpreter) else other(x)
        assert "forward" in kernels
        if not training:
            assert torch.equal(got, want)


class Tracer(fx.Tracer):
    """Leaves by name, as feature extraction and quantization choose them."""

    def is_leaf_module(self, m, module_qualified_name):
        return isinstance(m, nn.Linear) or super().is_leaf_module(m, module_qualified_name)


def test_hooks_of_a_leaf_run_when_the_graph_does():
    """Not while it is traced, and once a call; a pruned module's mask is a hook."""
    model, ran = nn.Sequential(nn.Linear(4, 4), nt.LayerNorm(4)), []
    model[1].register_forward_pre_hook(lambda _module, args: (args[0] * 2 + 1,))
    model[1].register_forward_hook(lambda _module, _args, y: (ran.append(type(y)), y * 3)[1])
    prune.random_unstructured(model[1], "weight", 0.5)
    graph = fx.GraphModule(model, Tracer().trace(model))
    assert not ran
    x = torch.randn(3, 4)
    got = graph(x)
    assert ran == [torch.Tensor]
    assert torch.equal(got, model(x))


def test_arguments_by_name_and_a_module_that_is_the_root():
    """A leaf is called as it was; a root is looked into, as PyTorch's is, and calls the library's function."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = converted(Rms(4))

        def forward(self, x):
            return self.norm(hidden_states=x)

    x, model = torch.randn(3, 4), Model()
    graph = fx.symbolic_trace(model)
    assert "self.norm(hidden_states = x)" in graph.code and torch.equal(graph(x), model(x))
    root = nt.LayerNorm(4)
    graph = fx.symbolic_trace(root)
    assert [node.target for node in graph.graph.nodes if node.op == "call_function"] == [nt.layer_norm]
    assert torch.equal(graph(x), root(x))
    for kind in (nt.BatchNorm1d, nn.BatchNorm1d):
        with pytest.raises(fx.proxy.TraceError, match="control flow"):
            fx.symbolic_trace(kind(4))


@each_function
def test_a_function_stays_a_call(function, kernels):
    """Of the library's function, so that the graph takes the kernels; pickled too."""
    run = FUNCTIONS[function]
    graph = fx.symbolic_trace(lambda x, w: run(nt, x, w))
    assert [n.target for n in graph.graph.nodes if n.op == "call_function"] == [getattr(nt, f"{function}_norm")]
    x, w = torch.randn(2, 4, 4), torch.rand(4)
    want = run(nt, x, w)
    kernels.clear()
    pickled = pickle.loads(pickle.dumps(graph))  # noqa: S301  our own
    assert torch.equal(pickled(x, w), want) and kernels == ["forward"]


# quantization and fusing: by exact classes


class Convolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()

    def forward(self, x):
        return self.relu(self.bn(self.conv(x)))


def pair(*, training=False):
    """A model and its converted copy."""
    model = Convolution().train(training)
    other = copy.deepcopy(model)
    nt.convert(other)
    return model, other


@each_mode
@pytest.mark.parametrize("names", [["conv", "bn"], ["conv", "bn", "relu"], ["bn", "relu"]], ids="-".join)
def test_fused_for_quantization(names, training):
    """`fuse_modules` knows the library's batch norms; the model that was not to be changed keeps its own."""
    model, other = pair(training=training)
    run = fuse_modules_qat if training else fuse_modules
    want, got = run(model, names), run(other, names)
    assert [type(m) for m in got.modules()] == [type(m) for m in want.modules()] and type(other.bn) is nt.BatchNorm2d
    x = torch.randn(2, 3, 5, 5)
    same(got(x), want(x))


def fused(model, _x):
    from torch.fx.experimental.optimization import fuse  # warns of its own classes as they are made

    return fuse(model)


@pytest.mark.parametrize(
    "tool",
    [
        fused,
        lambda model, x: prepare_fx(model, get_default_qconfig_mapping("fbgemm"), (x,)),
    ],
    ids=["fuse", "prepare_fx"],
)
def test_tools_that_know_exact_classes(tool):
    """Within `restored` they find what they find in the original; outside the norm stays a leaf."""
    model, other = pair()
    x = torch.randn(2, 3, 5, 5)
    with nt.restored(other):
        got = tool(other, x)
    want = tool(model, x)
    assert [str(n.target) for n in got.graph.nodes] == [str(n.target) for n in want.graph.nodes]
    same(got(x), want(x))
    assert type(other.bn) is nt.BatchNorm2d
    assert "bn" in [n.target for n in tool(other, x).graph.nodes]


def test_a_batch_norm_folded_by_its_numbers():
    """`fuse_conv_bn_eval` asks for no class."""
    model, other = pair()
    x = torch.randn(2, 3, 5, 5)
    same(fuse_conv_bn_eval(other.conv, other.bn)(x), model.bn(model.conv(x)))


# torch.export and ONNX


class Many(nn.Module):
    """Several modules, each with an input of its own: one export for all."""

    def __init__(self, names, *, training):
        super().__init__()
        built = [build(name, training=training) for name in names]
        self.all = nn.ModuleList(model for model, _x in built)
        self.inputs = tuple(x for _model, x in built)
        self.train(training)

    def forward(self, *xs):
        return [module(x) for module, x in zip(self.all, xs, strict=True)]

    def others(self):
        return [more(x) for x in self.inputs]

    def open_batches(self):
        return (tuple({0: torch.export.Dim(f"n{i}", min=2)} for i in range(len(self.inputs))),)


@pytest.mark.parametrize(("training", "strict"), [(True, False), (False, False), (True, True)])
def test_an_export_carries_the_operator(training, strict):
    """Saved, loaded and decomposed, with other batch sizes: the same results and running statistics."""
    names = ["BatchNorm2d", "tracking", "LayerNorm", "rms of one's own"] if strict else list(MODULES)
    if training and not strict:
        names.remove("averaging")  # its count would have to be a number, torch.nn's too
    model = Many(names, training=training)
    program = torch.export.export(
        copy.deepcopy(model), model.inputs, dynamic_shapes=model.open_batches(), strict=strict
    )
    assert program.graph_module.code.count("normtriton.normalize.default") == len(names)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file)
    table = torch.export.default_decompositions()
    table.update(torch._decomp.get_decompositions([torch.ops.normtriton.normalize]))
    decomposed = program.run_decompositions(table)
    assert "normtriton" in loaded.run_decompositions().graph_module.code
    assert "normtriton" not in decomposed.graph_module.code
    xs = model.others()
    wants = model(*xs)
    for module in (loaded.module(), decomposed.module()):
        for name, got, want in zip(names, module(*xs), wants, strict=True):
            same(got, want, name)
        same_buffers(module, model)


class Around(nn.Module):
    """Norms with what surrounds them: before, after, by vectors of each sample, with a mask."""

    def __init__(self):
        super().__init__()
        self.group, self.batch = nt.GroupNorm(2, 4, activation="silu"), nt.BatchNorm2d(4, activation="relu").eval()

    def forward(self, x, r, mask, s):
        y, u = self.group(x, residual=r, mask=mask, x_scale=s)
        return nt.layer_norm(self.batch(y, skip=u), (5,), torch.ones(5), scale=s, shift=s, gate=r, activation="sigmoid")


@pytest.mark.parametrize("strict", [False, True], ids=["traced", "strict"])
def test_an_export_carries_what_surrounds_a_norm(strict):
    """In the one operator, which decomposes into PyTorch's; and in ONNX."""
    model = Around()
    x, r = torch.randn(2, 4, 3, 5), torch.randn(2, 4, 3, 5)
    given = x, r, torch.rand(2, 1, 3, 5) > 0.3, torch.randn(2, 4, 1, 1)
    want = model(*given)
    program = torch.export.export(model, given, strict=strict)
    assert program.graph_module.code.count("normtriton.surround.default") == 3
    table = torch.export.default_decompositions()
    table.update(torch._decomp.get_decompositions([torch.ops.normtriton.normalize, torch.ops.normtriton.surround]))
    decomposed = program.run_decompositions(table)
    assert "normtriton" not in decomposed.graph_module.code
    for made in (program.module(), decomposed.module()):
        same(made(*given), want)
    if not strict:
        same(run_onnx(to_onnx(model, given, "export", 23), *given)[0], want)


class Quantized(nn.Module):
    """Norms with quantized results: by a scale of each group's own, with a sum, and by one that is given."""

    def forward(self, x, r, s):
        q, scale, u = nt.group_norm(x, 2, residual=r, quantize="int8", quantize_scale="group")
        y, _ = nt.rms_norm(x, (5,), skip=r, activation="silu", quantize="int8", quantize_scale=s)
        return q, scale, u, y


@pytest.mark.parametrize("strict", [False, True], ids=["traced", "strict"])
def test_an_export_carries_quantized_results(strict):
    """In the one operator, which decomposes into PyTorch's; and in ONNX."""
    model, given = Quantized(), (torch.randn(2, 4, 3, 5), torch.randn(2, 4, 3, 5), torch.tensor(0.02))
    want = model(*given)
    program = torch.export.export(model, given, strict=strict)
    assert program.graph_module.code.count("normtriton.surround_quantized.default") == 2
    table = torch.export.default_decompositions()
    operators = torch.ops.normtriton
    table.update(torch._decomp.get_decompositions([operators.normalize, operators.surround_quantized]))
    decomposed = program.run_decompositions(table)
    assert "normtriton" not in decomposed.graph_module.code
    ways = [program.module()(*given), decomposed.module()(*given)]
    if not strict:
        ways.append(run_onnx(to_onnx(model, given, "export", 23), *given))
    for q, scale, u, y in ways:
        same(scale, want[1])
        same(u, want[2])
        for got, right in ((q, want[0]), (y, want[3])):  # a tie may tip
            assert got.dtype == torch.int8 and (got.int() - right.int()).abs().sum() <= 1


def to_onnx(model, inputs, way, opset, shapes=None):
    """A model in ONNX: by a trace, by `torch.export`, or from an exported program."""
    if way == "trace":
        file = io.BytesIO()
        names = [f"x{i}" for i in range(len(inputs))]
        axes = {name: {0: f"batch of {name}"} for name in names}
        torch.onnx.export(
            model, inputs, file, dynamo=False, opset_version=opset, input_names=names,
            dynamic_axes=axes if shapes else None, training=torch.onnx.TrainingMode.PRESERVE,
        )  # fmt: skip
        return onnx.load_from_string(file.getvalue())
    with redirect_stdout(io.StringIO()):
        if way == "program":
            program = torch.export.export(model, inputs, dynamic_shapes=shapes)
            return torch.onnx.export(program, dynamo=True, opset_version=opset).model_proto
        return torch.onnx.export(
            model, inputs, dynamo=True, opset_version=opset, dynamic_shapes=shapes
        ).model_proto  # fmt: skip


def run_onnx(proto, *xs):
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    given = {i.name: x.numpy() for i, x in zip(proto.graph.input, xs, strict=True)}
    return [torch.from_numpy(y) for y in session.run(None, given)]


@pytest.mark.parametrize("way", ["trace", "export", "program"])
def test_onnx_has_its_standard_operators(way):
    """By either exporter, and run by ONNX's runtime; where ONNX has an operator for a norm, it is that one."""
    names = [name for name in MODULES if (name, way) != ("tracking", "trace")]  # PyTorch's exporter refuses that
    model = Many(names, training=False)
    proto = to_onnx(copy.deepcopy(model), model.inputs, way, 17 if way == "trace" else 23, model.open_batches())
    made = Counter(node.op_type for node in proto.graph.node)
    for operator, number in Counter(STANDARD[name] for name in names if name in STANDARD).items():
        # that exporter knows ONNX up to version 17, which has no group and no RMS norm yet
        assert (way == "trace" and operator in ("GroupNormalization", "RMSNormalization")) or made[operator] >= number
    xs = model.others()
    for name, got, want in zip(names, run_onnx(proto, *xs), model(*xs), strict=True):
        same(got, want.detach(), name)


@pytest.mark.parametrize("way", ["trace", "export"])
def test_onnx_of_training_norms(way):
    """The batch's own statistics, where that of PyTorch's batch norm by `torch.export` takes the running ones."""
    model = Many(["BatchNorm2d", "of a batch norm", "InstanceNorm1d"], training=True)
    proto = to_onnx(copy.deepcopy(model), model.inputs, way, 17 if way == "trace" else 18, model.open_batches())
    xs = model.others()
    for got, want in zip(run_onnx(proto, *xs), model(*xs), strict=True):
        same(got, want.detach())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_decomposed(dtype):
    """With float32 parameters, which neither PyTorch's functions nor ONNX mix."""
    for name in ("BatchNorm2d", "InstanceNorm2d", "LayerNorm", "GroupNorm", "RMSNorm", "channels of one's own"):
        model, x = build(name)
        program = torch.export.export(model, (x.to(dtype),))
        table = torch._decomp.get_decompositions([torch.ops.normtriton.normalize])
        got, want = program.run_decompositions(table).module()(x.to(dtype)), model(x.to(dtype))
        torch.testing.assert_close(got, want, rtol=2 * torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)


# whole models


class ResNet(nn.Module):
    """He et al. 2015, arXiv:1512.03385: a stem and a block, small."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.conv1, self.bn1 = nn.Conv2d(6, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, 1, 1, bias=False), Batch(8)
        self.shortcut = nn.Sequential(nn.Conv2d(6, 8, 1, 2, bias=False), nn.BatchNorm2d(8))
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x)
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return self.head(F.relu(y + self.shortcut(x)).mean((2, 3)))


class ConvNeXt(nn.Module):
    """Liu et al. 2022, arXiv:2201.03545: a stem, a block and a head, small."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 2, 2), LayerNorm2d(6))
        self.depthwise, self.norm = nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.LayerNorm(6)
        self.wide, self.narrow, self.scale = nn.Linear(6, 12), nn.Linear(12, 6), nn.Parameter(torch.ones(6) * 0.5)
        self.last, self.head = Layer(6), nn.Linear(6, 5)

    def forward(self, x):
        x = self.stem(x)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale * self.narrow(F.gelu(self.wide(y)))
        return self.head(self.last((x + y.permute(0, 3, 1, 2)).mean((2, 3))))


class ViT(nn.Module):
    """Dosovitskiy et al. 2020, arXiv:2010.11929: patches and a block, small."""

    def __init__(self):
        super().__init__()
        self.patches, self.place = nn.Conv2d(3, 8, 3, 3), nn.Parameter(torch.randn(4, 8))
        self.norm1, self.qkv, self.out = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.norm2, self.mlp = nn.LayerNorm(8), nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.norm, self.head = nn.RMSNorm(8), nn.Linear(8, 5)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2) + self.place
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        x = x + self.mlp(self.norm2(x))
        return self.head(self.norm(x).mean(1))


class UNet(nn.Module):
    """Ronneberger et al. 2015, arXiv:1505.04597, with the group norms of diffusion models, and an instance norm."""

    def __init__(self):
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(3, 4, 3, padding=1), nn.GroupNorm(2, 4)
        self.down, self.norm2 = nn.Conv2d(4, 8, 3, stride=2, padding=1), nn.GroupNorm(2, 8)
        self.up, self.norm3 = nn.ConvTranspose2d(8, 4, 2, 2), nn.InstanceNorm2d(4, affine=True)
        self.last = nn.Conv2d(8, 3, 1)

    def forward(self, x):
        x = F.silu(self.norm1(self.first(x)))
        y = self.up(F.silu(self.norm2(self.down(x))))
        return self.last(torch.cat([x, F.silu(self.norm3(y))], 1))


NETWORKS = {"resnet": ResNet, "convnext": ConvNeXt, "vit": ViT, "unet": UNet}
NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, LayerNorm2d)


def norms_in(graph):
    return sum(isinstance(graph.get_submodule(n.target), NORMS) for n in graph.graph.nodes if n.op == "call_module")


def in_onnx(model, x, way, opset):
    proto = to_onnx(model, (x,), way, opset)
    return lambda x: run_onnx(proto, x)[0]


TOOLS = {
    "trace": torch.jit.trace,
    "script": lambda model, _x: torch.jit.script(model),
    "fx": lambda model, _x: fx.symbolic_trace(model),
    "export": lambda model, x: torch.export.export(model, (x,)).module(),
    "onnx by a trace": lambda model, x: in_onnx(model, x, "trace", 17),
    "onnx by torch.export": lambda model, x: in_onnx(model, x, "export", 23),
}


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name, tool):
    """A converted model of each kind goes through each tool, and computes what it does in eager mode."""
    model = NETWORKS[name]().eval()
    number = len(nt.convert(model).converted)
    x = torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        want = model(x)
        made = TOOLS[tool](model, x)
        if tool == "fx":
            assert norms_in(made) == number
        same(made(x), want)
        assert torch.equal(model(x), want)


# replicas of data-parallel training


@each_mode
@each_module
def test_replicas(name, training):
    """Of `torch.nn.DataParallel`: parameters are plain attributes there."""
    model, x = build(name, training=training)
    module = model[1]
    replica = module._replicate_for_data_parallel()
    for theirs, own in ((module._parameters, replica._parameters), (module._buffers, replica._buffers)):
        for key, t in theirs.items():  # as `torch.nn.parallel.replicate` sets them
            own.update({key: None}) if t is None else setattr(replica, key, t.detach().clone())
    assert torch.equal(replica(x), module(x))
