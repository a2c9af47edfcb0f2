"""What surrounds a norm, in one pass over memory: every stage, norm, branch of the plan and way; what is refused."""

import os
import subprocess
import sys
import warnings
from itertools import cycle

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from cases import SMALL
from normtriton.perf.cases import checks
from normtriton.perf.cases.branches import DEVICE
from normtriton.perf.cases.checks import Check
from normtriton.perf.cases.oracle import ACTIVATIONS
from normtriton.perf.cases.shapes import FORMS, Form
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch.func import functional_call, grad, jvp, vmap
from torch.utils.checkpoint import checkpoint

import normtriton as nt
from normtriton.autograd.surrounded import ACTIVATION_FUNCTIONS
from normtriton.planning.stages import ACTIVATIONS as NAMES
from normtriton.planning.stages import Stages
from normtriton.runtime import launch

CPU = torch.device("cpu")
#: What models put around a norm, and where one finds it.
COMBINATIONS = {
    "pre-norm": Form(("residual",), Stages()),  # Llama, GPT, ViT
    "llama": Form(("residual",), Stages(round_first=True)),
    "gemma": Form((), Stages(offset=1.0)),
    "gemma-residual": Form(("residual",), Stages(offset=1.0, round_first=True)),
    "norm-act": Form((), Stages(activation="relu")),  # ResNet's first two
    "norm-skip-act": Form(("skip",), Stages(activation="relu")),  # ResNet's last
    "norm-skip": Form(("skip",), Stages()),
    "silu": Form((), Stages(activation="silu")),  # diffusion U-Nets, EfficientNet
    "gelu": Form((), Stages(activation="gelu")),
    "leaky": Form((), Stages(activation="leaky_relu")),  # GANs, nnU-Net
    "hardswish": Form((), Stages(activation="hardswish")),  # MobileNet
    "gated": Form(("gate",), Stages(activation="silu")),  # Mamba 2, after the norm
    "gated-sigmoid": Form(("gate",), Stages(activation="sigmoid")),
    "gated-alone": Form(("gate",), Stages()),
    "gate-first": Form(("gate",), Stages(activation="silu", gate_first=True)),  # Mamba 2, before the norm
    "gate-first-residual": Form(("residual", "gate"), Stages(activation="sigmoid", gate_first=True)),
    "residual-act": Form(("residual",), Stages(activation="tanh")),
    "all": Form(("residual", "skip", "gate"), Stages(activation="gelu_tanh", offset=1.0)),
}


def combined():
    """Each combination with each norm, in one layout and dtype after another."""
    dtypes, layouts = (
        cycle(["float32", "bfloat16", "float64", "float16"]),
        cycle(["contiguous", "channels_last", "sliced"]),
    )
    for around in COMBINATIONS:
        for name in ("layer", "rms-2", "batch", "instance", "group"):
            branch = SMALL[name]._replace(layout=next(layouts))
            yield Check(f"{around}-{name}", branch, next(dtypes), DEVICE, around=around)


def outcome(check):
    given = check.operands(CPU)
    fresh = given.fresh()
    return checks.wrong([check.results(fresh)], check.wanted(given), given)


@pytest.mark.parametrize("check", list(combined()), ids=lambda check: check.name)
def test_what_models_use(check, monkeypatch):
    """Result and all gradients, as the composition gives them in float64."""
    monkeypatch.setitem(FORMS, check.around, COMBINATIONS[check.around])
    assert not outcome(check)


def reaching():
    """Every second branch of the plan with something around it, in one dtype after another: `make emulated` has all."""
    every = [list(checks.of_stages(True, [dtype])) for dtype in ("float32", "bfloat16", "float16", "float64")]
    return [one[i // 2 % len(every)] for i, one in enumerate(zip(*every, strict=True)) if i % 2 == 0]


@pytest.mark.parametrize("check", reaching(), ids=lambda check: check.name.replace(" ", "-"))
def test_every_branch(check):
    """Resident, clustered, streamed, split, swept, constant statistics."""
    assert not outcome(check)


def test_the_branches_are_all_there():
    """Each strategy is reached, and each of `FORMS`."""
    reached = {(check.branch.forward, check.branch.backward) for check in reaching()}
    assert {"resident", "streamed", "split", "clustered"} <= {strategy for pair in reached for strategy in pair}
    assert {check.around for check in reaching()} == set(FORMS) - {"modulated"}


SPECIAL = [
    0.0,
    -0.0,
    1e-30,
    -1e-3,
    0.09,
    -0.11,
    0.5,
    -1.0,
    3.0,
    -3.0,
    20.0,
    -20.0,
    88.0,
    -90.0,
    float("inf"),
    -float("inf"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_activations(name, dtype):
    """As PyTorch's functions, and their gradients, from tiny to infinite values and NaN."""
    # what a norm with weight 0 gives is its bias
    bias = torch.tensor([*SPECIAL, float("nan"), *torch.linspace(-6, 6, 47).tolist()], dtype=dtype)
    x, weight = torch.randn(3, 64, dtype=dtype), torch.zeros(64, dtype=dtype)
    ours, theirs = bias.clone().requires_grad_(), bias.double().requires_grad_()
    y = nt.layer_norm(x, (64,), weight, ours, activation=name)
    by_pytorch = {
        "leaky_relu": F.leaky_relu, "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"), "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
    }  # fmt: skip
    want = by_pytorch.get(name, getattr(F, name, None))(theirs)
    (got_slope,), (slope,) = (torch.autograd.grad(t.sum(), p) for t, p in ((y, ours), (want, theirs)))
    close = {"rtol": 2e-6, "atol": 3e-7} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-14}
    # far out PyTorch's own derivatives are NaN, or are not, by how they are written
    torch.testing.assert_close(y[0].double(), want, equal_nan=True, **close)
    finite = theirs.detach().abs() < 80
    torch.testing.assert_close(got_slope.double()[finite] / 3, slope[finite], rtol=3e-6, atol=3e-7)
    assert got_slope[16].isnan() == slope[16].isnan()  # relu and leaky_relu pass a gradient on where x is NaN


@pytest.fixture
def launches(monkeypatch):
    """The kernels that were launched."""
    ran, run = [], launch._run
    monkeypatch.setattr(launch, "_run", lambda step, *args: (ran.append(step.kernel), run(step, *args)))
    return ran


def test_one_pass(launches):
    """A launch forward, and backward none beside those of the norm alone."""
    x, r, s, g = (torch.randn(4, 6, 5, 3, requires_grad=True) for _ in range(4))
    w, b = torch.ones(6, requires_grad=True), torch.zeros(6, requires_grad=True)
    y, u = nt.group_norm(x, 3, w, b, residual=r, skip=s, gate=g, activation="silu")
    assert launches == ["forward"]
    torch.autograd.grad((y.sum() + u.sum()), (x, r, s, g, w, b))
    assert launches == ["forward", "backward", "sum_parts"]


@pytest.mark.parametrize("first", [False, True], ids=["gate-last", "gate-first"])
@pytest.mark.parametrize("wanted", ["x", "residual", "skip", "gate", "weight", "bias"])
def test_a_gradient_alone(wanted, first):
    """Of each tensor, when nothing else wants one; nothing else gets one."""
    tensors = {name: torch.randn(3, 7, 16) for name in ("x", "residual", "skip", "gate")}
    tensors |= {name: torch.randn(16) for name in ("weight", "bias")}
    tensors[wanted].requires_grad_()

    def call(function, x, weight, bias, **around):
        return function(x, (16,), weight, bias, **around)

    y, u = call(nt.layer_norm, **tensors, activation="silu", gate_first=first)
    dy = torch.randn_like(y)
    got = torch.autograd.grad(y, tensors[wanted], dy)[0]
    gate = F.silu(tensors["gate"])
    total = (tensors["x"] * gate if first else tensors["x"]) + tensors["residual"]
    want = F.layer_norm(total, (16,), tensors["weight"], tensors["bias"]) + tensors["skip"]
    want = want if first else want * gate
    torch.testing.assert_close(got, torch.autograd.grad(want, tensors[wanted], dy)[0], rtol=1e-4, atol=1e-4)
    assert u.requires_grad == (wanted in ("x", "residual", *(["gate"] if first else [])))


def test_the_sum_alone_is_used():
    """A gradient that comes by u, and none by y."""
    x, r, w = torch.randn(3, 16, requires_grad=True), torch.randn(3, 16, requires_grad=True), torch.ones(16)
    _y, u = nt.rms_norm(x, (16,), w.requires_grad_(), residual=r)
    dx, dr, dw = torch.autograd.grad(u.sum(), (x, r, w), allow_unused=True)
    assert torch.equal(dx, torch.ones_like(x)) and torch.equal(dr, dx) and dw is None
    g = torch.randn(3, 16, requires_grad=True)
    _y, u = nt.rms_norm(x, (16,), w, residual=r, gate=g, activation="silu", gate_first=True)
    got, want = (torch.autograd.grad(t.sum(), (x, r, g)) for t in (u, x * F.silu(g) + r))
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("around", [("skip",), ("gate",), ("residual", "skip"), ("residual", "skip", "gate")])
@pytest.mark.parametrize("first", [False, True], ids=["gate-last", "gate-first"])
def test_a_frozen_batch_norm(around, first):
    """Given statistics, and parameters that want no gradient: the one launch writes the gradients of what is around."""
    x, w, b = torch.randn(4, 6, 50, requires_grad=True), torch.randn(6), torch.randn(6)
    mean, var = torch.randn(6), torch.rand(6) + 0.5
    tensors = {name: torch.randn(4, 6, 50, requires_grad=True) for name in around}
    y = nt.batch_norm(x, mean, var, w, b, activation="silu", gate_first=first, **tensors)
    u = x * F.silu(tensors["gate"]) if first and "gate" in tensors else x
    u = u + tensors.get("residual", 0.0)
    want = F.batch_norm(u, mean, var, w, b) + tensors.get("skip", 0.0)
    if "gate" not in tensors:
        want = F.silu(want)
    elif not first:
        want = want * F.silu(tensors["gate"])
    y = y[0] if "residual" in around else y
    dy = torch.randn_like(x)
    got, right = (torch.autograd.grad(t, (x, *tensors.values()), dy) for t in (y, want))
    torch.testing.assert_close(y, want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got, right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtypes", [("bfloat16", "float32"), ("float32", "bfloat16"), ("float16", "bfloat16")])
def test_other_dtypes_around(dtypes):
    """A residual stream in float32 beside bfloat16, and the like: u has the dtype of the sum, y that of x."""
    own, other = (getattr(torch, name) for name in dtypes)
    x, w = torch.randn(5, 32, dtype=own, requires_grad=True), torch.randn(32, requires_grad=True)
    r, s, g = (torch.randn(5, 32, dtype=other, requires_grad=True) for _ in range(3))
    y, u = nt.rms_norm(x, (32,), w, 1e-6, residual=r, skip=s, gate=g, activation="silu")
    assert y.dtype == own and u.dtype == torch.promote_types(own, other) and torch.equal(u, x + r)
    wide = [t.detach().double().requires_grad_() for t in (x, w, r, s, g)]
    total = wide[0] + wide[2] + (u.detach().double() - wide[0] - wide[2]).detach()
    want = (F.rms_norm(total, (32,), wide[1], 1e-6) + wide[3]) * F.silu(wide[4])
    dy = torch.randn_like(y)
    eps = max(torch.finfo(own).eps, torch.finfo(other).eps)
    torch.testing.assert_close(y.double(), want, rtol=2 * eps, atol=2 * eps)
    for leaf, got, right in zip(
        (x, w, r, s, g), torch.autograd.grad(y, (x, w, r, s, g), dy), torch.autograd.grad(want, wide, dy.double()),
        strict=True,
    ):  # fmt: skip
        assert got.dtype == leaf.dtype
        torch.testing.assert_close(got.double(), right, rtol=4 * eps, atol=4 * eps * right.abs().max().item())


def call(x, r, s, g, w, b, **more):
    return nt.group_norm(x, 2, w, b, residual=r, skip=s, gate=g, activation="silu", offset=1.0, **more)


def composition(x, r, s, g, w, b):
    u = x + r
    return (F.group_norm(u, 2, 1 + w, b) + s) * F.silu(g), u


def call_gate_first(*given):
    return call(*given, gate_first=True)


def composition_gate_first(x, r, s, g, w, b):
    u = x * F.silu(g) + r
    return F.group_norm(u, 2, 1 + w, b) + s, u


ORDERS = {"gate-last": (call, composition), "gate-first": (call_gate_first, composition_gate_first)}


def operands(dtype=torch.float64, shape=(3, 4, 5)):
    tensors = [torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(4)]
    return [*tensors, *(torch.randn(shape[1], dtype=dtype, requires_grad=True) for _ in range(2))]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("way", ["compile", "export", "vmap", "grad", "jvp", "second", "checkpoint", "penalty"])
def test_every_way(way, order):
    """Whatever watches takes the plain norm and PyTorch's operations: the same results, derivatives of any order."""
    call, composition = ORDERS[order]
    given = operands()
    plain = [t.detach() for t in given]
    want = composition(*given)
    if way == "compile":
        torch.testing.assert_close(torch.compile(call, backend="aot_eager", fullgraph=True)(*given), want)
    elif way == "export":

        class Block(nn.Module):
            def forward(self, *given):
                return call(*given)

        torch.testing.assert_close(torch.export.export(Block(), tuple(plain)).module()(*plain), call(*plain))
    elif way == "vmap":
        batch = [torch.stack([t, 2 * t]) for t in plain]
        torch.testing.assert_close(vmap(call)(*batch), vmap(composition)(*batch))
    elif way == "grad":
        got, right = (
            grad(lambda *t, f=f: sum(y.sin().sum() for y in f(*t)), argnums=tuple(range(6)))(*plain)
            for f in (call, composition)
        )
        torch.testing.assert_close(got, right)
    elif way == "jvp":
        with warnings.catch_warnings():  # importing forward mode says that `torch.jit.script` is deprecated
            warnings.simplefilter("ignore", DeprecationWarning)
            got, right = (jvp(f, tuple(plain), tuple(t.cos() for t in plain)) for f in (call, composition))
        torch.testing.assert_close(got, right)
    elif way == "second":
        given = operands(shape=(2, 4, 3))
        assert torch.autograd.gradcheck(call, given, fast_mode=True)
        assert torch.autograd.gradgradcheck(call, given, fast_mode=True)
    elif way == "checkpoint":
        got = torch.autograd.grad(checkpoint(call, *given, use_reentrant=False)[0].sum(), given)
        torch.testing.assert_close(got, torch.autograd.grad(want[0].sum(), given))
    elif order == "gate-first":  # without a residual, and with nothing else that wants a gradient
        f = lambda x, g: nt.layer_norm(x, (5,), gate=g, activation="tanh", gate_first=True)
        assert torch.autograd.gradgradcheck(f, (given[0], given[3]), fast_mode=True)
        assert torch.autograd.gradgradcheck(lambda g: call(*plain[:3], g, *plain[4:]), given[3:4], fast_mode=True)
    else:  # a gradient penalty, for which dskip and dbias come from what was not kept
        f = lambda x, s, b: nt.layer_norm(x, (5,), None, b, skip=s)
        x, s, b = given[0], given[2], torch.randn(5, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradgradcheck(f, (x, s, b), fast_mode=True)


def test_where_there_are_no_kernels():
    """PyTorch's operations take over on a CPU without the interpreter."""
    code = (
        "import torch, normtriton as nt, torch.nn.functional as F\n"
        "x, r, w = torch.randn(2, 6, 5, requires_grad=True), torch.randn(2, 6, 5), torch.randn(6)\n"
        "y, u = nt.group_norm(x, 3, w, w, residual=r, activation='silu', offset=1.0)\n"
        "torch.testing.assert_close((y, u), (F.silu(F.group_norm(x + r, 3, 1 + w, w)), x + r))\n"
        "y, u = nt.group_norm(x, 3, w, w, residual=r, round_first=True)\n"
        "torch.testing.assert_close((y, u), (F.group_norm(x + r, 3, w, w), x + r))\n"
        "y = nt.normalize(x, 'n c s', over='s', affine='s c', weight=torch.ones(5, 6), skip=r, round_first=True)\n"
        "torch.testing.assert_close(y, F.layer_norm(x, (5,)) + r)\n"
        "m = nt.BatchNorm1d(6, activation='relu')\n"
        "torch.testing.assert_close(m(x, skip=r), F.relu(F.batch_norm(x, None, None, None, None, True) + r))\n"
        "assert m.num_batches_tracked == 1 and m.running_mean.any()\n"
    )
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, env=environment)


FUNCTIONS = {
    "batch_norm": lambda x, **a: nt.batch_norm(x, None, None, None, None, True, **a),
    "instance_norm": nt.instance_norm,
    "layer_norm": lambda x, **a: nt.layer_norm(x, (5,), **a),
    "layer_norm-dim": lambda x, **a: nt.layer_norm(x, (6,), dim=1, **a),
    "rms_norm": lambda x, **a: nt.rms_norm(x, (5,), **a),
    "group_norm": lambda x, **a: nt.group_norm(x, 3, **a),
    "normalize": lambda x, **a: nt.normalize(x, "n c s", over="c", **a),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_tracers(name):
    """`torch.fx` records the call and what surrounds it, `torch.jit.trace` PyTorch's operations; nothing is lost."""
    x, r, s = (torch.randn(4, 6, 5) for _ in range(3))

    def call(x, r, s):
        return FUNCTIONS[name](x, residual=r, skip=s, activation="silu")

    want = call(x, r, s)
    graph = torch.fx.symbolic_trace(call)
    (node,) = [node for node in graph.graph.nodes if node.op == "call_function"]
    assert (
        node.target is getattr(nt, name.partition("-")[0]) and {"residual", "skip", "activation"} <= node.kwargs.keys()
    )
    torch.testing.assert_close(graph(x, r, s), want, rtol=0, atol=0)
    in_part = torch.fx.symbolic_trace(lambda s: FUNCTIONS[name](x, skip=s, activation="silu"))
    torch.testing.assert_close(in_part(s), FUNCTIONS[name](x, skip=s, activation="silu"), rtol=0, atol=0)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        traced = torch.jit.trace(call, (x, r, s), check_trace=False)
    own = [w for w in seen if w.category is torch.jit.TracerWarning and "normtriton" in w.filename]
    assert not own  # PyTorch's own functions ask for sizes, too
    torch.testing.assert_close(traced(x, r, s), want)


@pytest.mark.parametrize("kind", ["zero", "negated", "expanded"])
def test_gradients_that_are_not_what_their_memory_says(kind):
    """Of both results: autograd hands on what has no memory, or is negated when read."""
    x, r, w = (torch.randn(3, 8, requires_grad=True) for _ in range(3))
    made = {
        "zero": lambda: torch._efficientzerotensor((3, 8)),
        "negated": lambda: torch._neg_view(torch.arange(24.0).reshape(3, 8)),
        "expanded": lambda: torch.ones(()).expand(3, 8),
    }[kind]
    y, u = nt.layer_norm(x, (8,), residual=r, skip=w, activation="silu")
    total = x + r
    want = F.silu(F.layer_norm(total, (8,)) + w), total
    got, right = (torch.autograd.grad(t, (x, r, w), (made(), made())) for t in ((y, u), want))
    torch.testing.assert_close(got, right, rtol=1e-4, atol=1e-4)


X = torch.randn(4, 6, 5)


@pytest.mark.parametrize(
    ("around", "error", "said"),
    [
        ({"residue": X}, TypeError, "got an unexpected keyword argument 'residue'"),
        ({"activation": "swish"}, ValueError, "activation is one of relu, .* hardswish, or an Activation, not 'swish'"),
        ({"offset": "one"}, TypeError, "offset must be a number, not str"),
        ({"skip": X[:1]}, RuntimeError, r"skip of shape \(1, 6, 5\) has not the shape of the input, \(4, 6, 5\)"),
        ({"gate": [1.0]}, TypeError, "argument 'gate' must be Tensor, not list"),
        ({"residual": X.int()}, RuntimeError, "residual is torch.int32, not one of float64"),
        ({"residual": X.to("meta")}, RuntimeError, "input is on cpu and residual on meta"),
    ],
)
def test_what_is_refused(around, error, said):
    """By every function in the same words, before anything is written; `explain` says the same."""
    mean, var = torch.zeros(6), torch.ones(6)
    for function in (
        lambda **a: nt.batch_norm(X, mean, var, None, None, True, **a),
        lambda **a: nt.instance_norm(X, **a),
        lambda **a: nt.layer_norm(X, (5,), **a),
        lambda **a: nt.layer_norm(X, (6,), dim=1, **a),
        lambda **a: nt.rms_norm(X, (5,), **a),
        lambda **a: nt.group_norm(X, 3, **a),
        lambda **a: nt.normalize(X, "n c s", over="c", **a),
        lambda **a: nt.explain(nt.layer_norm, X, (5,), **a),
        lambda **a: nt.LayerNorm(5)(X, **a),
    ):
        with pytest.raises(error, match=said):
            function(**around)
    assert not mean.any()


def test_what_pytorch_refuses():
    """A bad norm has PyTorch's error, whatever surrounds it."""
    with pytest.raises(RuntimeError, match="divisible by num_groups"):
        nt.group_norm(X, 4, activation="silu")
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        nt.batch_norm(torch.randn(1, 6), None, None, None, None, True, activation="relu")
    with pytest.raises(TypeError, match="must be Tensor"):
        nt.layer_norm([1.0], (1,), activation="relu")


MODULES = {
    "GroupNorm": (lambda **s: nt.GroupNorm(3, 6, **s), (4, 6, 5, 3)),
    "BatchNorm2d": (lambda **s: nt.BatchNorm2d(6, **s), (4, 6, 5, 3)),
    "BatchNorm1d": (lambda **s: nt.BatchNorm1d(6, **s), (4, 6)),
    "InstanceNorm2d": (lambda **s: nt.InstanceNorm2d(6, affine=True, **s), (4, 6, 5, 3)),
    "InstanceNorm1d-unbatched": (lambda **s: nt.InstanceNorm1d(6, affine=True, **s), (6, 7)),
    "LayerNorm": (lambda **s: nt.LayerNorm(6, **s), (4, 5, 6)),
    "LayerNorm-dim": (lambda **s: nt.LayerNorm(6, dim=1, **s), (4, 6, 5)),
    "RMSNorm": (lambda **s: nt.RMSNorm(6, 1e-6, **s), (4, 5, 6)),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules(name):
    """Settings in the constructor, tensors in the call; state dicts as before, and running statistics too."""
    make, shape = MODULES[name]
    torch.manual_seed(0)
    x, s = torch.randn(shape, requires_grad=True), torch.randn(shape)
    plain, module = make(), make(activation="relu")
    assert "activation='relu'" in repr(module) and "activation" not in repr(plain)
    for parameter in plain.parameters():
        nn.init.normal_(parameter)
    module.load_state_dict(plain.state_dict())
    torch.testing.assert_close(module(x, skip=s), F.relu(plain(x) + s))
    torch.testing.assert_close(dict(module.named_buffers()), dict(plain.named_buffers()))
    y, u = module(x, residual=s)
    torch.testing.assert_close((y, u), (F.relu(plain(x + s)), x + s))
    counting = make(offset=1.0)
    assert not counting.weight.any() and torch.equal(counting(x), make()(x))
    with torch.no_grad():
        torch.testing.assert_close(module.eval()(x), F.relu(plain.eval()(x)))


def test_settings_of_a_module_are_checked():
    with pytest.raises(ValueError, match=r"LayerNorm\(\): activation is one of relu"):
        nt.LayerNorm(6, activation="swish")
    with pytest.raises(TypeError, match="offset must be a number, not str"):
        nt.GroupNorm(2, 6, offset="one")
    with pytest.raises(TypeError, match="unexpected keyword argument 'dim'"):
        nt.GroupNorm(2, 6, dim=1)


def test_what_torch_nn_does_not_have():
    """Nothing makes `torch.nn`'s of a module with an activation, and drops it."""
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nt.BatchNorm2d(6, activation="relu"), nt.BatchNorm2d(6))
    assert [left.reason for left in nt.restore(model).left_alone] == ["torch.nn's class has no activation='relu'"]
    for fuse in (nn.utils.fuse_conv_bn_eval, nn.utils.fusion.fuse_conv_bn_eval):
        with pytest.raises(NotImplementedError, match="BatchNorm2d, which knows no activation='relu'"):
            fuse(model[0].eval(), model[1].eval())
    assert isinstance(nn.utils.fuse_conv_bn_eval(model[0], nt.BatchNorm2d(6).eval()), nn.Conv2d)
    with pytest.raises(NotImplementedError, match="convert_sync_batchnorm makes torch"):
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert isinstance(nn.SyncBatchNorm.convert_sync_batchnorm(model[2]), nn.SyncBatchNorm)


def test_a_module_as_a_function():
    """`torch.func.functional_call`, with what surrounds it."""
    module, x, s = nt.LayerNorm(6, activation="silu"), torch.randn(3, 6), torch.randn(3, 6)
    weights = {"weight": torch.full((6,), 2.0), "bias": torch.ones(6)}
    y = functional_call(module, weights, (x,), {"skip": s})
    torch.testing.assert_close(y, F.silu(F.layer_norm(x, (6,), *weights.values()) + s))


def test_saved_for_backward():
    """U, mean and rstd; of what the caller holds, what a gradient needs; never what can be computed again."""
    saved = []

    def bytes_of(**around):
        saved.clear()
        x, w = torch.randn(8, 512, requires_grad=True), torch.ones(512, requires_grad=True)
        around = {
            k: torch.randn(8, 512) if v is True and k in ("skip", "residual", "gate") else v for k, v in around.items()
        }
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
            nt.layer_norm(x, (512,), w, w, **around)
        return sum(t.numel() for t in saved if t is not None)

    row = 8 * 512
    assert bytes_of(skip=True) == bytes_of(residual=True) == row + 512 + 16
    assert bytes_of(activation="gelu") == row + 2 * 512 + 16
    assert bytes_of(activation="gelu", skip=True) == bytes_of(gate=True) == 2 * row + 2 * 512 + 16
    assert bytes_of(gate=True, gate_first=True) == 2 * row + 512 + 16


def test_explained():
    """The stages in words, and their bytes: each tensor once, where the norm is on chip."""
    x = torch.empty(64, 4096, dtype=torch.bfloat16, device="meta")
    w = torch.empty(4096, dtype=torch.bfloat16, device="meta")
    alone = nt.explain(nt.rms_norm, x, (4096,), w)
    explained = nt.explain(nt.rms_norm, x, (4096,), w, residual=x, offset=1.0)
    assert "in the same pass: residual, offset 1.0" in str(explained) and "in the same pass" not in str(alone)
    tensor = 64 * 4096 * 2
    assert explained.forward.compulsory == explained.forward.moved == alone.forward.compulsory + 2 * tensor
    assert explained.backward.compulsory == alone.backward.compulsory + tensor
    gated = nt.explain(nt.rms_norm, x, (4096,), w, gate=x, activation="silu")
    assert gated.forward.compulsory == alone.forward.compulsory + tensor
    assert gated.backward.compulsory == alone.backward.compulsory + 2 * tensor


def test_names_of_activations():
    """The oracle knows each of them."""
    assert {"", *NAMES} == set(ACTIVATIONS) == set(ACTIVATION_FUNCTIONS)


@pytest.fixture
def traced():
    """A compiler that runs what it was given, and the library's operators in what it was given, by graph."""
    graphs = []

    def note(graph, _inputs):
        calls = [node for node in graph.graph.nodes if node.op == "call_function"]
        named = [str(target) for node in calls for target in (node.target, *node.args[:1])]
        graphs.append([name.split(".")[1] for name in named if name.startswith("normtriton.")])
        return make_boxed_func(graph.forward)

    return graphs, aot_autograd(fw_compiler=note)


def compiled(traced, function, *given):
    """What a compiled function gives, gradients too."""
    torch._dynamo.reset()
    made = torch.compile(function, backend=traced[1], fullgraph=True)(*given)
    made = made if isinstance(made, tuple) else (made,)
    return made, torch.autograd.grad(made, given, [torch.ones_like(y) for y in made])


def by_group(x, r, s, g, w, b):
    return nt.group_norm(x, 2, w, b, residual=r, skip=s, gate=g, activation="silu", offset=1.0)


def by_rows_gate_first(x, r, g, w):
    return nt.rms_norm(x, (5,), w, residual=r, gate=g, activation="silu", gate_first=True)


def by_named_axes(x, s, t):
    return nt.normalize(x, "b t d", over="d", scale=(s, "b d"), shift=(t, "b d"), activation="gelu")


def random(*sizes):
    return [torch.randn(size, requires_grad=True) for size in sizes]


@pytest.mark.parametrize(
    ("function", "sizes"),
    [
        (by_group, [(3, 4, 5)] * 4 + [4, 4]),
        (by_rows_gate_first, [(3, 4, 5)] * 3 + [5]),
        (by_named_axes, [(3, 4, 5), (3, 5), (3, 5)]),
    ],
)
def test_one_operator(traced, function, sizes):
    """`torch.compile` sees one operator a direction, and the results have the bits of a call."""
    given = random(*sizes)
    ys, gradients = compiled(traced, function, *given)
    assert traced[0] == [["surround"], ["surround_backward"]]
    want = function(*given)
    want = want if isinstance(want, tuple) else (want,)
    right = torch.autograd.grad(want, given, [torch.ones_like(y) for y in want])
    torch.testing.assert_close((ys, gradients), (want, right), rtol=0, atol=0)


@pytest.mark.parametrize("training", [True, False])
def test_one_operator_with_running_statistics(traced, training):
    """Which it updates in place, or uses, and it counts the batch."""
    x, s = random((4, 6, 5), (4, 6, 5))
    ours, plain = (nt.BatchNorm1d(6, activation="relu").train(training) for _ in range(2))
    ys, gradients = compiled(traced, lambda x, s: ours(x, skip=s), x, s)
    forward = "surround_and_update" if training else "surround"
    assert [len(graph) for graph in traced[0]] == [1, 1] and traced[0][0] == [forward]
    y = plain(x, skip=s)
    right = torch.autograd.grad(y, (x, s), torch.ones_like(y))
    torch.testing.assert_close((ys, gradients), ((y,), right), rtol=0, atol=0)
    torch.testing.assert_close(dict(ours.named_buffers()), dict(plain.named_buffers()), rtol=0, atol=0)


def test_a_compiled_transform():
    """A batch of calls within a compiled function is decomposed."""
    x = torch.randn(2, 3, 8)
    call = vmap(lambda x: nt.layer_norm(x, (8,), skip=x, activation="silu"))
    torch._dynamo.reset()
    got = torch.compile(call, backend="aot_eager", fullgraph=True)(x)
    torch.testing.assert_close(got, F.silu(F.layer_norm(x, (8,)) + x))


@pytest.mark.parametrize("operator", ["surround", "surround_and_update"])
def test_operators_are_as_they_say(operator):
    """Schemas, shape rules and gradients, by PyTorch's own check."""
    x, skip, r = random((4, 6, 5), (4, 6, 5), (4, 6, 5))
    words = ("n c *s", "n s", "c", True, "", [])
    stages = ("relu", 0.0, False, False, True)
    x_scale, mask = random((1, 6, 1))[0], torch.rand(4, 1, 5) > 0.3
    tensors = (x, None, None, r, skip, None, x_scale, mask)
    if operator == "surround":
        args = (*tensors, None, None, *words, *stages, False, 0.0, 1e-5, None)
    else:
        args = (*tensors, torch.zeros(6), torch.ones(6), None, *words, *stages, 0.1, 1e-5, None)
    op = getattr(torch.ops.normtriton, operator).default
    torch.library.opcheck(op, args, test_utils=("test_schema", "test_faketensor", "test_autograd_registration"))
