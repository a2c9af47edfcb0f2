"""`convert` and `restore`: what is replaced, what stays, and what is said of the rest. Real models: test_models.py."""

import copy
import io
import pickle
import re
import warnings
from abc import ABC
from itertools import product
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  the name everyone knows it by
from oracle import close
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrize, prune

import normtriton as nt
from normtriton.convert.replace import Report
from normtriton.runtime import compiling, launch

NORMS = {
    "batch 1d": (nn.BatchNorm1d(6), (4, 6, 5)),
    "batch 2d": (nn.BatchNorm2d(6, momentum=None), (3, 6, 4, 5)),
    "batch 3d": (nn.BatchNorm3d(6, affine=False), (2, 6, 3, 2, 2)),
    "instance 1d": (nn.InstanceNorm1d(6), (4, 6, 5)),
    "instance 2d": (nn.InstanceNorm2d(6, affine=True, track_running_stats=True), (3, 6, 4, 5)),
    "instance 3d": (nn.InstanceNorm3d(6), (2, 6, 3, 2, 2)),
    "layer": (nn.LayerNorm((4, 5), bias=False), (3, 4, 5)),
    "group": (nn.GroupNorm(3, 6), (4, 6, 5)),
    "rms": (nn.RMSNorm(6), (4, 6)),
}


@pytest.fixture
def kernels(monkeypatch):
    """The kernels launched so far."""
    launched, run = [], launch._run
    monkeypatch.setattr(launch, "_run", lambda what, *args: (launched.append(what.kernel), run(what, *args))[1])
    return launched


def everything(module):
    """All that a module holds, but its class."""
    tensors = {name: id(t) for name, t in (*module.named_parameters(), *module.named_buffers())}
    return tensors, {name: value for name, value in vars(module).items() if not name.startswith("_")}, repr(module)


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_of_pytorch_changes_its_class_and_nothing_else(name, kernels):
    """The same object with the same tensors gives the same result by the kernels, and comes back."""
    module, shape = copy.deepcopy(NORMS[name][0]), NORMS[name][1]
    kind, before, x = type(module), everything(module), torch.randn(shape)
    want = copy.deepcopy(module)(x)

    report = nt.convert(module)
    assert [(c.name, c.before, c.after) for c in report.converted] == [("", kind, getattr(nt, kind.__name__))]
    assert type(module) is getattr(nt, kind.__name__) and not report.left_alone and everything(module) == before
    torch.testing.assert_close(module(x), want)
    assert kernels

    assert nt.convert(module) == Report(), "a second time there is nothing to do"
    report = nt.restore(module)
    assert [(c.name, c.after) for c in report.converted] == [("", kind)] and str(report).startswith("restored: 1\n")
    assert type(module) is kind and nt.restore(module) == Report()


def test_hooks_and_flags_stay():
    """Hooks of every kind still run, and flags are as they were."""
    ran = []
    module = nn.LayerNorm(5).eval()
    module.bias.requires_grad_(requires_grad=False)
    module.note = "mine"
    module.register_forward_pre_hook(lambda *_: ran.append("forward pre"))
    module.register_forward_hook(lambda *_: ran.append("forward"))
    module.register_full_backward_pre_hook(lambda *_: ran.append("backward pre"))
    module.register_full_backward_hook(lambda *_: ran.append("backward"))
    module.register_state_dict_pre_hook(lambda *_: ran.append("state dict pre"))
    module.register_state_dict_post_hook(lambda *_: ran.append("state dict"))
    module.register_load_state_dict_pre_hook(lambda *_: ran.append("load pre"))
    module.register_load_state_dict_post_hook(lambda *_: ran.append("load"))

    nt.convert(module)
    assert not ran and not module.training and not module.bias.requires_grad and module.note == "mine"
    module(torch.randn(3, 5, requires_grad=True)).sum().backward()
    module.load_state_dict(module.state_dict())
    assert ran == [
        *("forward pre", "forward", "backward pre", "backward", "state dict pre", "state dict", "load pre", "load"),
    ]
    assert module.bias.grad is None


def test_a_module_used_twice_stays_one():
    """It is reported once, by its first name, and references elsewhere see the change."""
    norm = nn.LayerNorm(4)
    model = nn.ModuleDict({"a": nn.Sequential(nn.Linear(4, 4), norm), "b": norm})
    elsewhere = [norm]
    (change,) = nt.convert(model).converted
    assert change.name == "a.1" and model["b"] is model["a"][1] is elsewhere[0] and type(elsewhere[0]) is nt.LayerNorm
    assert nt.restore(model).converted[0].name == "a.1" and type(norm) is nn.LayerNorm


def test_tied_parameters_stay_tied():
    """Two norms with one weight, and an optimizer that holds it."""
    model = nn.Sequential(nn.LayerNorm(4), nn.RMSNorm(4))
    model[1].weight = model[0].weight
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    nt.convert(model)
    assert model[1].weight is model[0].weight is optimizer.param_groups[0]["params"][0]
    assert len(list(model.parameters())) == 2
    model(torch.randn(3, 4)).sum().backward()
    before = model[0].weight.detach().clone()
    optimizer.step()
    assert not torch.equal(model[1].weight, before)


def small_model():
    """Norms of three kinds at three depths."""
    return nn.ModuleDict({
        "encoder": nn.ModuleList([nn.LayerNorm(4), nn.Sequential(nn.Linear(4, 4), nn.GroupNorm(2, 4))]),
        "decoder": nn.ModuleList([nn.LayerNorm(4), nn.RMSNorm(4)]),
        "norm": nn.LayerNorm(4),
    })  # fmt: skip


@pytest.mark.parametrize(
    ("include", "exclude", "names"),
    [
        (None, None, {"encoder.0", "encoder.1.1", "decoder.0", "decoder.1", "norm"}),
        ("encoder", None, {"encoder.0", "encoder.1.1"}),
        ("*coder.0", None, {"encoder.0", "decoder.0"}),
        (["*.1.1", "norm"], None, {"encoder.1.1", "norm"}),
        (nn.LayerNorm, None, {"encoder.0", "decoder.0", "norm"}),
        ((nn.RMSNorm, "encoder.1"), None, {"encoder.1.1", "decoder.1"}),
        (nn.Sequential, None, {"encoder.1.1"}),
        (None, "decoder", {"encoder.0", "encoder.1.1", "norm"}),
        (nn.LayerNorm, ["encoder", "norm"], {"decoder.0"}),
        (None, "", set()),
        ("", nn.GroupNorm, {"encoder.0", "decoder.0", "decoder.1", "norm"}),
        ([], None, set()),
    ],
)
def test_include_and_exclude(include, exclude, names):
    """Patterns and classes stand for modules with all within them; exclude goes first, and is not reported."""
    report = nt.convert(small_model(), include=include, exclude=exclude)
    assert {change.name for change in report.converted} == names and not report.left_alone


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (ValueError, "include: no module's name fits the pattern 'encode'", {"include": "encode"}),
        (ValueError, "exclude: no module's name fits", {"exclude": [nn.LayerNorm, "*.7"]}),
        (TypeError, "include takes patterns of names and classes of modules, but got 3", {"include": 3}),
        (TypeError, "exclude takes patterns .* but got <class 'int'>", {"exclude": int}),
    ],
)
def test_bad_selectors(error, message, arguments):
    """They raise before anything is changed."""
    model = small_model()
    with pytest.raises(error, match=message):
        nt.convert(model, **arguments)
    assert type(model["norm"]) is nn.LayerNorm


@pytest.mark.parametrize("function", [nt.convert, nt.restore])
def test_only_modules(function):
    """A list of modules is none."""
    with pytest.raises(TypeError, match=r"expected a torch.nn.Module, but got list"):
        function([nn.LayerNorm(4)])


def test_the_report_is_readable():
    """A line for all modules of a class, and one for each reason."""
    model = nn.ModuleDict({f"norm{i}": nn.LayerNorm(4) for i in range(7)} | {"other": nn.LocalResponseNorm(2)})
    assert str(nt.convert(model)).splitlines() == [
        "converted: 7",
        "  7 x torch.nn.modules.normalization.LayerNorm, as normtriton.LayerNorm: norm0, norm1, ..., norm6",
        "left alone: 1",
        "  1 x torch.nn.modules.normalization.LocalResponseNorm: has no attribute that could be its eps: other",
    ]
    assert str(nt.convert(nn.Linear(2, 2))) == "converted: 0"
    assert "the model itself" in str(nt.convert(nn.LayerNorm(4)))


# Norms of other libraries, in their own words.


class Rounding(nn.Module):
    """As transformers' LlamaRMSNorm: back in the input's dtype before the weight."""

    def __init__(self, n, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n))
        self.variance_epsilon = eps

    def forward(self, hidden_states):
        dtype = hidden_states.dtype
        hidden_states = hidden_states.to(torch.float32)
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        return self.weight * (hidden_states * torch.rsqrt(variance + self.variance_epsilon)).to(dtype)

    def extra_repr(self):
        return f"{tuple(self.weight.shape)}, eps={self.variance_epsilon}"


class Widening(Rounding):
    """As T5LayerNorm: what comes out depends on the weight's dtype."""

    def forward(self, hidden_states):
        variance = hidden_states.to(torch.float32).pow(2).mean(-1, keepdim=True)
        hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)
        if self.weight.dtype in (torch.float16, torch.bfloat16):
            hidden_states = hidden_states.to(self.weight.dtype)
        return self.weight * hidden_states


class FromOne(Rounding):
    """As GemmaRMSNorm: weights are kept as distances from one."""

    def forward(self, x):
        y = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return (y * (1.0 + self.weight.float())).type_as(x)


class OptionalNorm(nn.Module):
    """As diffusers' RMSNorm: with and without parameters."""

    def __init__(self, n, eps=1e-5, affine=True, bias=False):
        super().__init__()
        self.eps, self.dim = eps, torch.Size((n,))
        self.weight = nn.Parameter(torch.ones(n)) if affine else None
        self.bias = nn.Parameter(torch.zeros(n)) if bias else None

    def forward(self, x):
        y = x * torch.rsqrt(x.to(torch.float32).pow(2).mean(-1, keepdim=True) + self.eps)
        y = y.to(x.dtype) if self.weight is None else y * self.weight
        return y if self.bias is None else y + self.bias


class Float32Layer(nn.LayerNorm):
    """As diffusers' FP32LayerNorm."""

    def forward(self, inputs):
        weight, bias = (None if p is None else p.float() for p in (self.weight, self.bias))
        return F.layer_norm(inputs.float(), self.normalized_shape, weight, bias, self.eps).to(inputs.dtype)


class ByHand(nn.Module):
    """As ConvNeXt's first LayerNorm."""

    def __init__(self, n, eps=1e-6, data_format="channels_last"):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(n)), nn.Parameter(torch.zeros(n))
        self.eps, self.data_format, self.normalized_shape = eps, data_format, (n,)

    def forward(self, x):
        if self.data_format == "channels_last":
            return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        x = x - x.mean(1, keepdim=True)
        x = x / torch.sqrt(x.pow(2).mean(1, keepdim=True) + self.eps)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class Permuting(nn.LayerNorm):
    """As torchvision's LayerNorm2d, and timm's."""

    def forward(self, x):
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class PermutingRMS(Rounding):
    """As timm's RmsNorm2d."""

    def forward(self, x):
        x = F.rms_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.variance_epsilon)
        return x.permute(0, 3, 1, 2)


class OwnForward(nn.GroupNorm):
    """As timm's GroupNorm."""

    def forward(self, x):
        return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


class OneGroup(nn.GroupNorm):
    """As PoolFormer's: keeps the forward of its base."""

    def __init__(self, channels):
        super().__init__(1, channels)


LAST, CHANNELS = "of the last dimension", "of the channels"


class Abstract(nn.Module, ABC):
    """Its class has a metaclass, its eps another name, and PyTorch computes it."""

    def __init__(self, n, norm_eps=1e-5):
        super().__init__()
        self.weight, self.norm_eps, self.steps = nn.Parameter(torch.ones(n)), norm_eps, 0

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight, self.norm_eps)


KNOWN = {
    "llama": (Rounding(20), f"RMS norm {LAST}", (3, 20)),
    "t5": (Widening(20), f"RMS norm {LAST}", (2, 3, 20)),
    "gemma": (FromOne(20), f"RMS norm {LAST}, times 1 + weight", (3, 20)),
    "diffusers": (OptionalNorm(20), f"RMS norm {LAST}", (2, 2, 3, 20)),
    "diffusers, bias": (OptionalNorm(20, bias=True), f"RMS norm {LAST}", (3, 20)),
    "diffusers, no parameters": (OptionalNorm(20, affine=False), f"RMS norm {LAST}", (3, 17)),
    "diffusers, float32": (Float32Layer(20), f"layer norm {LAST}", (3, 20)),
    "diffusers, float32, no parameters": (Float32Layer(20, elementwise_affine=False), f"layer norm {LAST}", (3, 20)),
    "convnext, last": (ByHand(20), f"layer norm {LAST}", (2, 2, 3, 20)),
    "convnext, first": (ByHand(20, data_format="channels_first"), f"layer norm {CHANNELS}", (2, 20, 3, 5)),
    "torchvision": (Permuting(20), f"layer norm {CHANNELS}", (2, 20, 3, 5)),
    "timm, rms": (PermutingRMS(20), f"RMS norm {CHANNELS}", (2, 20, 3, 5)),
    "timm, group": (OwnForward(4, 20), "group norm", (2, 20, 3, 5)),
    "abstract": (Abstract(20), f"RMS norm {LAST}", (2, 3, 20)),
    "poolformer": (OneGroup(20), "as normtriton.GroupNorm", (2, 20, 3, 5)),
}


def known(name):
    """A module with parameters that matter, what it computes, and a shape."""
    module, function, shape = KNOWN[name]
    module = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape) + 0.5)
    return module, function, shape


@pytest.mark.parametrize("name", KNOWN)
def test_norms_of_other_libraries_are_recognized(name, kernels):
    """The kernels give what the original gives in float64, but for rounding, and gradients too."""
    module, function, shape = known(name)
    kind, before = type(module), everything(module)
    exact = copy.deepcopy(module).double()
    (change,) = nt.convert(module).converted
    assert change.function.startswith(function) and change.before is kind and everything(module) == before
    assert isinstance(module, kind) and type(module).__name__ == kind.__name__ and not nt.convert(module).converted

    x, dy = torch.randn(shape, requires_grad=True), torch.randn(shape)
    y = module(x)
    y.backward(dy)
    assert {"forward", "backward"} <= set(kernels)
    x64 = x.detach().double().requires_grad_()
    want = exact(x64)
    want.backward(dy.double())
    # the originals compute in float32 even what is given in float64
    close(y, want.detach(), slack=24)
    for leaf, other in zip((x, *module.parameters()), (x64, *exact.parameters()), strict=True):
        close(leaf.grad, other.grad, slack=120, scale=other.grad.abs().max().item())

    nt.restore(module)
    assert type(module) is kind and everything(module) == before


@pytest.mark.parametrize("eps", [1, 2.5, 1e4, 0.0])
@pytest.mark.parametrize("name", KNOWN)
def test_eps_may_have_any_size(name, eps, kernels):
    """Of every class: what the attribute holds is tried, not judged by its size."""
    module, function, shape = known(name)
    (attribute,) = (attribute for attribute in vars(module) if attribute in ("eps", "variance_epsilon", "norm_eps"))
    setattr(module, attribute, eps)
    exact = copy.deepcopy(module).double()
    (change,) = nt.convert(module).converted
    assert change.function.startswith(function)
    x = torch.randn(shape) * max(eps, 1) ** 0.5
    torch.testing.assert_close(module(x), exact(x.double()).float(), rtol=1e-5, atol=1e-5)
    assert kernels == ["forward"]


@pytest.mark.parametrize("others", [{"eps_mode": 1}, {"eps": 3}, {"eps": 0}, {"eps": 10**400, "norm_eps": -1.0}])
def test_other_attributes_may_be_called_eps(others, kernels):
    """The one that is read is told from results, and read when it runs; the others may hold what they like."""
    for first in (True, False):
        module = known("llama")[0]
        given = vars(module).pop("variance_epsilon")
        own = {"variance_epsilon": given}
        vars(module).update(own | others if first else others | own)
        assert nt.convert(module).converted
        vars(module).update(dict.fromkeys(others, 7.0), variance_epsilon=0.5)
        x = torch.randn(3, 20)
        torch.testing.assert_close(module(x), Rounding.forward(module, x))
    assert kernels == ["forward"] * 2


@pytest.mark.parametrize("eps", [float("inf"), float("nan"), -1.0, True, "1e-5", None, 1e300])
def test_what_cannot_be_eps(eps):
    """Added to a variance, it gives nothing, or nothing that can be tried."""
    module = Rounding(20, eps)
    (left,) = nt.convert(module).left_alone
    assert "has no attribute that could be its eps" in left.reason or eps == 1e300


@pytest.mark.parametrize("name", [name for name in KNOWN if name != "poolformer"])  # as the library's own class
def test_mixed_dtypes_come_out_as_from_the_original(name):
    """For each dtype of input and parameters, the result's dtype is the original's, or so is the exception."""
    original, _, shape = known(name)
    dtypes = torch.float64, torch.float32, torch.bfloat16, torch.float16
    for x_dtype, dtype in product(dtypes, dtypes):
        x = torch.randn(shape).to(x_dtype).requires_grad_()
        ours = copy.deepcopy(original).to(dtype)
        nt.convert(ours)
        try:
            want = copy.deepcopy(original).to(dtype)(x)
        except RuntimeError as error:
            with pytest.raises(RuntimeError, match=re.escape(str(error)[:40])):
                ours(x)
            continue
        y = ours(x)
        assert y.dtype == want.dtype, (x_dtype, dtype)
        unit = max(torch.finfo(d).eps for d in (x_dtype, dtype, y.dtype, torch.float32))
        torch.testing.assert_close(y, want, rtol=4 * unit, atol=4 * unit)
        y.backward(torch.randn(shape).to(y.dtype))
        assert x.grad.dtype == x_dtype and all(p.grad.dtype == dtype for p in ours.parameters())


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_few_channels_are_not_taken_for_another_dimension(channels):
    for module in (ByHand(channels, data_format="channels_first"), ByHand(channels)):
        (change,) = nt.convert(nn.Sequential(module)).converted
        assert change.function.startswith("layer norm " + (LAST if module.data_format == "channels_last" else CHANNELS))


class Subtle(Rounding):
    """Almost an RMS norm."""

    def normalized(self, x, eps=None):
        eps = self.variance_epsilon if eps is None else eps
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


class Bounded(Subtle):
    def forward(self, x):
        return torch.tanh(self.normalized(x))


class Clipping(Subtle):
    def forward(self, x):
        return self.normalized(x.clamp(-200, 200))


class OtherEps(Subtle):
    def forward(self, x):
        return self.normalized(x, 2e-6)


class EpsOutside(Subtle):
    def forward(self, x):
        return self.weight * x / (x.pow(2).mean(-1, keepdim=True).sqrt() + self.variance_epsilon)


class Sum(Subtle):
    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + self.variance_epsilon)


class Unbiased(Subtle):
    def forward(self, x):
        return self.weight * (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + self.variance_epsilon).sqrt()


class Magnitude(Subtle):
    def forward(self, x):
        return self.normalized(x) * self.weight.sign()


class Detached(Subtle):
    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.detach().pow(2).mean(-1, keepdim=True) + self.variance_epsilon)


class NoGradient(Subtle):
    def forward(self, x):
        return self.normalized(x).detach()


class NoBackward(Subtle):
    def forward(self, x):
        y = self.normalized(x)
        y.register_hook(Failing.forward)
        return y


class Dropping(Subtle):
    def forward(self, x):
        return F.dropout(self.normalized(x), 0.1, self.training)


class Evaluating(Subtle):
    def forward(self, x):
        return self.normalized(x) if self.training else x * self.weight


class Counting(Subtle):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return self.normalized(x)


class Caching(Subtle):
    def forward(self, x):
        self.last = x
        return self.normalized(x)


class InPlace(Subtle):
    def forward(self, x):
        y = self.normalized(x)
        x.detach().zero_()
        return y


class Coarse(Subtle):
    def forward(self, x):
        return self.normalized(x.to(torch.bfloat16).to(x.dtype))


class Half(Subtle):
    def forward(self, x):
        return self.normalized(x).half()


class Pair(Subtle):
    def forward(self, x):
        return self.normalized(x), x


class Gated(Subtle):
    def forward(self, x, gate=None):
        return self.normalized(x) if gate is None else self.normalized(x) * gate


class Failing(Subtle):
    def forward(self, x=None):  # noqa: ARG002  a norm takes it
        raise OSError("no disk")


class Many(Subtle):
    def forward(self, *x):
        return self.normalized(*x)


class Activated(Subtle):
    def __init__(self, n):
        super().__init__(n)
        self.activation = F.silu

    def forward(self, x):
        return self.activation(self.normalized(x))


class Gamma(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.gamma, self.eps = nn.Parameter(torch.ones(n)), 1e-6


class Schedule(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.weight, self.steps = nn.Parameter(torch.ones(n)), 0


class MyNorm(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.scale, self.activation = n**0.5, nn.Tanh()


class FrozenBatchNorm(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(n))


class NoEpsNorm(Subtle):
    def __init__(self, n):
        super().__init__(n)
        del self.variance_epsilon


class TwoDimensions(Subtle):
    def __init__(self, n):
        super().__init__(n)
        self.weight = nn.Parameter(torch.ones(2, n))


class BatchNormAct(nn.BatchNorm2d):
    def forward(self, x):
        return F.relu(super().forward(x))


class RMSNormGated(Subtle):
    """As mamba-ssm's: the gate has another name."""

    def forward(self, x, z=None):
        return self.normalized(x) if z is None else self.normalized(x * F.silu(z))


class Masked(Subtle):
    """A further argument that is no gate."""

    def forward(self, x, propagate=True):
        return self.normalized(x) if propagate else x


class BatchNormAct2d(nn.BatchNorm2d):
    """As timm's: one module for the norm and what follows it."""

    def __init__(self, n, act=nn.SiLU):
        super().__init__(n)
        self.drop, self.act = nn.Identity(), act()

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


class BatchNormNoAct2d(BatchNormAct2d):
    def __init__(self, n):
        super().__init__(n, nn.Identity)


class Swish(nn.Module):
    def forward(self, x):
        return x * x.sigmoid()


class GroupNormAct(nn.GroupNorm):
    """As timm's, with an activation of timm's own."""

    def __init__(self, n):
        super().__init__(4, n)
        self.drop, self.act = nn.Identity(), Swish()

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


class Followed(Subtle):
    """An activation under another name."""

    def __init__(self, n):
        super().__init__(n)
        self.last = nn.ReLU()


class Scaled(Subtle):
    """A submodule that is no activation."""

    def __init__(self, n):
        super().__init__(n)
        self.scale = nn.Linear(n, n)


class TwoEps(Rounding):
    """Which of them is read cannot be told from results."""

    def __init__(self, n):
        super().__init__(n)
        self.eps = self.variance_epsilon


GATE = "^is a norm with a gate, which convert tries to fuse with fuse=True: "
ACTIVATION = "^is a norm with an activation, which convert tries to fuse with fuse=True: "
DIFFERS = r"no norm known; nearest is RMS norm of the .*, but its result .* differs by"
NOT_NORMS = [
    (Bounded, DIFFERS),
    (Clipping, DIFFERS),
    (OtherEps, DIFFERS),
    (EpsOutside, DIFFERS),
    (Sum, DIFFERS),
    (Unbiased, "nearest is layer norm of the last dimension, but its result .* differs by"),
    (Magnitude, DIFFERS),
    (Detached, "nearest is RMS norm .* but the gradient of its input .* differs by"),
    (NoGradient, "nearest is RMS norm of the last dimension, but it has no gradient of its input"),
    (NoBackward, "nearest is RMS norm of the last dimension, but its backward raises OSError: no disk"),
    (Dropping, DIFFERS),
    (Evaluating, DIFFERS),
    (Counting, "changes its input, parameters or attributes"),
    (Caching, "changes its input, parameters or attributes"),
    (InPlace, "changes its input, parameters or attributes"),
    (Coarse, DIFFERS),
    (Half, r"its result .* is torch\.float16"),
    (Pair, "its result is a tuple"),
    (Gated, GATE + r"its forward takes \(x, gate=None\)"),
    (RMSNormGated, GATE + r"its forward takes \(x, z=None\)"),
    (Masked, r"its forward takes \(x, propagate=True\), where one input was expected"),
    (Failing, "took none of the inputs that a norm takes: OSError: no disk"),
    (Many, r"its forward takes \(\*x\)"),
    (Activated, ACTIVATION + r"activation \(silu\)"),
    (BatchNormAct2d, ACTIVATION + r"act \(SiLU\)"),
    (BatchNormNoAct2d, ACTIVATION + r"act \(Identity\)"),
    (GroupNormAct, ACTIVATION + r"act \(Swish\)"),
    (Followed, ACTIVATION + r"last \(ReLU\)"),
    (NoEpsNorm, "has no attribute that could be its eps"),
    (TwoDimensions, r"has parameters of shape \{'weight': \(2, 12\)\}, where one dimension was expected"),
    (Gamma, "has parameters that are not weight or bias: gamma"),
    (MyNorm, ACTIVATION + r"activation \(Tanh\)"),
    (Scaled, "has submodules: scale"),
    (TwoEps, "has 2 attributes that could be its eps: variance_epsilon, eps$"),
    (FrozenBatchNorm, "keeps buffers: running_mean"),
    (BatchNormAct, "keeps buffers: running_mean, running_var, num_batches_tracked"),
    (nn.LazyBatchNorm2d, "is not initialized: convert it after its first input"),
]


@pytest.mark.parametrize(("make", "reason"), NOT_NORMS, ids=[make.__name__ for make, _ in NOT_NORMS])
def test_what_is_another_function_is_left_alone_with_the_reason(make, reason):
    """A difference of any kind is found, and said."""
    module = make() if make is nn.LazyBatchNorm2d else make(12)
    report = nt.convert(nn.Sequential(module))
    (left,) = report.left_alone
    assert not report.converted and type(module) is make and left[:2] == ("0", make)
    assert re.search(reason, left.reason), left.reason
    assert left.reason in str(report)


@pytest.mark.parametrize(
    "module",
    [
        nn.Linear(4, 4),
        nn.PairwiseDistance(eps=1e-6),
        nn.Embedding(3, 4),
        nn.Sequential(nn.ReLU()),
        Schedule(4),
        nn.Flatten(),
    ],
)
def test_what_is_no_norm_is_not_mentioned(module):
    """Neither its name nor its structure is a norm's."""
    assert nt.convert(module) == Report()


def test_a_container_named_for_the_norm_within_is_not_mentioned():
    """As AdaLayerNorm, whose LayerNorm is PyTorch's: that is replaced."""

    class AdaLayerNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.norm = nn.Linear(4, 8), nn.LayerNorm(4, elementwise_affine=False)

    report = nt.convert(AdaLayerNorm())
    assert [change.name for change in report.converted] == ["norm"] and not report.left_alone


def test_a_lazy_norm_is_converted_once_it_is_initialized():
    module = nn.LazyBatchNorm2d()
    module(torch.randn(2, 3, 4, 4))
    assert nt.convert(module).converted and type(module) is nt.BatchNorm2d


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # it is what users still have
def test_scripted_modules_are_left_alone():
    model = nn.Sequential(torch.jit.script(nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4))), nn.LayerNorm(4))
    report = nt.convert(model)
    assert [change.name for change in report.converted] == ["1"]
    assert [(left.name, left.reason) for left in report.left_alone] == [("0.0", "is compiled by torch.jit")]


def test_a_forward_replaced_on_the_object_is_kept():
    """As by libraries that move weights between devices: a new class would not be asked."""
    model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4))
    for module in model:
        module.forward = lambda x, own=module.forward: own(x) + 1
    (left,) = nt.convert(model).left_alone
    assert left == ("0", nn.LayerNorm, "its forward was replaced on the object")


class Watched(Rounding):
    """Remembers, outside of itself, how often it ran."""

    runs = []  # noqa: RUF012  shared on purpose

    def forward(self, hidden_states):
        self.runs.append(hidden_states.device.type)
        torch.rand(1)
        warnings.warn("mind the probe", stacklevel=1)
        return super().forward(hidden_states)


def test_a_class_is_tried_once_and_nothing_notices():
    """Sixty modules of a configuration take one trial, which leaves modules, random numbers and hooks alone."""
    Watched.runs.clear()
    model = nn.Sequential(*(Watched(8) for _ in range(60)))
    model.register_forward_hook(lambda *_: pytest.fail("a hook ran"))
    fired = torch.nn.modules.module.register_module_forward_hook(lambda *_: pytest.fail("a global hook ran"))
    before = (
        [(id(p), p._version, p.grad) for p in model.parameters()],
        list(map(everything, model)),
        torch.get_rng_state(),
    )
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        report = nt.convert(model)
    fired.remove()
    after = (
        [(id(p), p._version, p.grad) for p in model.parameters()],
        list(map(everything, model)),
        torch.get_rng_state(),
    )
    assert len(report.converted) == 60 and before[:2] == after[:2] and torch.equal(before[2], after[2])
    tried = len(Watched.runs)
    assert 0 < tried < 60
    nt.convert(Watched(8))
    assert len(Watched.runs) == tried
    nt.convert(Watched(9))
    assert len(Watched.runs) > tried


@pytest.mark.parametrize("where", ["meta", "meta by default", "fake", "inference"])
def test_modules_that_hold_no_numbers(where):
    """The trial runs on the CPU with parameters of its own, wherever the model is."""
    Watched.runs.clear()
    if where == "meta":
        report = nt.convert(nn.Sequential(nn.LayerNorm(10), Watched(10)).to("meta"))
    elif where == "meta by default":
        with torch.device("meta"):
            report = nt.convert(nn.Sequential(nn.LayerNorm(11), Watched(11)))
    elif where == "fake":
        with FakeTensorMode():
            report = nt.convert(nn.Sequential(nn.LayerNorm(12), Watched(12)))
    else:
        with torch.inference_mode():
            report = nt.convert(nn.Sequential(nn.LayerNorm(13), Watched(13)))
    assert len(report.converted) == 2 and set(Watched.runs) == {"cpu"}


def test_a_meta_model_runs_once_it_has_numbers(kernels):
    with torch.device("meta"):
        model = nn.Sequential(nn.LayerNorm(6), Rounding(6))
    nt.convert(model)
    model = model.to_empty(device="cpu")
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    model(torch.randn(3, 6))
    assert kernels == ["forward", "forward"]


def test_what_was_not_tried_takes_the_original_forward(kernels):
    """Other shapes, and input that does not fit, give or raise what they always did."""
    module, _, shape = known("torchvision")
    nt.convert(module)
    with pytest.raises(RuntimeError, match="permute"):
        module(torch.randn(2, 20))
    with pytest.raises(RuntimeError, match=r"normalized_shape=\[20\]"):
        module(torch.randn(2, 19, 3, 5))
    with pytest.raises(AttributeError):
        module([1.0])
    assert not kernels
    module(x=torch.randn(shape))
    assert kernels == ["forward"]
    with pytest.raises(TypeError, match="unexpected keyword argument 'input'"):
        module(input=torch.randn(shape))

    module, _, _ = known("llama")
    nt.convert(module)
    assert module(hidden_states=torch.randn(1, 1, 1, 1, 1, 1, 20)).dim() == 7
    assert module(torch.randn(3, 1)).shape == (3, 20)  # spreads over the weight
    assert module(torch.randn(0, 20)).shape == (0, 20)
    assert module(torch.arange(20)).dtype == torch.float32
    assert kernels == ["forward"]

    group, _, _ = known("timm, group")
    nt.convert(group)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        nt.convert(single := OwnForward(20, 20)) and single(torch.randn(1, 20))
    with pytest.raises(RuntimeError):
        group(torch.randn(2, 18, 3))


def test_without_kernels_the_original_forward_runs(monkeypatch):
    """On a device that has none: bit for bit."""
    for name in KNOWN:
        module, _, shape = known(name)
        x = torch.randn(shape)
        want = module(x)
        nt.convert(module)
        with monkeypatch.context() as patched:
            patched.setattr(compiling, "INTERPRETED", False)
            assert torch.equal(module(x), want)


def test_eps_is_read_when_it_runs():
    module, _, shape = known("llama")
    nt.convert(module)
    module.variance_epsilon = 0.5
    x = torch.randn(shape)
    torch.testing.assert_close(module(x), Rounding.forward(module, x))


class Careful(Rounding):
    """Does something else in half precision."""

    def forward(self, hidden_states):
        if hidden_states.dtype == torch.float16:
            hidden_states = hidden_states.clamp(-1, 1)
        return super().forward(hidden_states)


def test_a_dtype_in_which_it_differs_takes_the_original_forward(kernels):
    module = Careful(12).half()
    (change,) = nt.convert(module).converted
    assert change.function == "RMS norm of the last dimension, except in torch.float16"
    x = torch.randn(3, 12).half()
    assert torch.equal(module(x), Careful.forward(module, x)) and not kernels
    module.bfloat16()(x.bfloat16())
    assert kernels == ["forward"]


class Cast(Rounding):
    """Asks autocast what to return, as ops do on a GPU."""

    def forward(self, hidden_states):
        y = super().forward(hidden_states)
        return y.to(torch.get_autocast_dtype("cpu")) if torch.is_autocast_enabled("cpu") else y


def test_autocast_is_obeyed_as_by_the_original(kernels):
    module = Cast(8)
    nt.convert(module)
    x = torch.randn(3, 8)
    for _ in range(2):
        assert module(x).dtype == torch.float32
        for dtype in (torch.bfloat16, torch.float16):
            with torch.autocast("cpu", dtype):
                y = module(x)
                assert y.dtype == dtype
                torch.testing.assert_close(y, Cast.forward(module, x))
    assert kernels == ["forward"] * 6


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # PyTorch's jvp uses it
@pytest.mark.parametrize(
    "name", ["llama", "gemma", "diffusers, float32, no parameters", "convnext, first", "timm, group"]
)
def test_recognized_norms_compile_export_and_transform(name):
    """One graph for any batch, with the library's operator in it; and `torch.func` gives what it gives originally."""
    original, _, shape = known(name)
    module = copy.deepcopy(original)
    nt.convert(module)

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    for n in (2, 3, 5):
        x, dy = torch.randn(n, *shape[1:]), torch.randn(n, *shape[1:])
        results = []
        for run in (compiled, module):
            leaf = x.clone().requires_grad_()
            y = run(leaf)
            y.backward(dy)
            results += [y.detach(), leaf.grad]
        torch.testing.assert_close(results[:2], results[2:])
    assert counter.frame_count <= 2  # one for the first batch, one for all others

    exported = torch.export.export(module, (x,))
    assert torch.ops.normtriton.normalize.default in {node.target for node in exported.graph.nodes}
    several = torch.randn(2, *shape)
    torch.testing.assert_close(torch.func.vmap(module)(several), torch.func.vmap(original)(several))
    ours, theirs = (torch.func.jvp(run, (x,), (dy,)) for run in (module, original))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["batch 2d", "instance 2d", "layer", "llama", "gemma", "timm, group", "abstract", "poolformer"]
)
@pytest.mark.parametrize("way", ["deepcopy", "copy", 0, 2, pickle.HIGHEST_PROTOCOL, "save"])
def test_copies(name, way):
    """A copy of a converted module is one, in a process that never converted too, and can be restored."""
    module, shape = NORMS[name] if name in NORMS else known(name)[::2]
    module = copy.deepcopy(module)
    kind, x = type(module), torch.randn(shape)
    nt.convert(module)
    want = copy.deepcopy(module)(x)
    with patch.dict("normtriton.convert.replace._derivations", clear=True):
        if way in ("deepcopy", "copy"):
            other = getattr(copy, way)(module)
        elif way == "save":
            file = io.BytesIO()
            torch.save(module, file)
            file.seek(0)
            other = torch.load(file, weights_only=False)
        else:
            other = pickle.loads(pickle.dumps(module, protocol=way))  # noqa: S301  our own
        assert type(other) is not kind and isinstance(other, kind)
        assert everything(other)[1:] == everything(module)[1:] and torch.equal(other(x), want)
        nt.restore(other)
        assert type(other) is kind and type(module) is not kind


class Doubled(nn.Module):
    def forward(self, x):
        return 2 * x


@pytest.mark.parametrize("norm", [nn.LayerNorm(8), OneGroup(8), Rounding(8)], ids=lambda norm: type(norm).__name__)
@pytest.mark.parametrize("first", ["convert", "parametrize"])
def test_parametrized_modules(norm, first, kernels):
    """Parametrized before or after, the module can be restored, and the parametrization be removed, in any order."""
    plain, x = copy.deepcopy(norm), torch.randn(3, 8)
    want = 2 * plain(x)
    for last in ("restore", "remove"):
        module = copy.deepcopy(norm)
        if first == "parametrize":
            parametrize.register_parametrization(module, "weight", Doubled())
            twin = copy.deepcopy(module)
        report = nt.convert(module)
        if type(norm) is Rounding and first == "parametrize":  # its structure is no norm's then
            assert report.left_alone[0].reason == "has submodules: parametrizations"
            return
        assert len(report.converted) == 1
        if first == "convert":
            parametrize.register_parametrization(module, "weight", Doubled())
        else:
            assert type(twin) is not type(module) and "normtriton" not in str(type(twin).__mro__)
        kernels.clear()
        torch.testing.assert_close(module(x), want)
        assert kernels == ["forward"]
        torch.testing.assert_close(copy.deepcopy(module)(x), want)
        if last == "restore":
            assert len(nt.restore(module).converted) == 1
            torch.testing.assert_close(module(x), want)
            parametrize.remove_parametrizations(module, "weight")
        else:
            parametrize.remove_parametrizations(module, "weight")
            kernels.clear()
            torch.testing.assert_close(module(x), want)
            assert kernels == ["forward"] and len(nt.restore(module).converted) == 1
        assert type(module) is type(norm)


def test_pruned_modules():
    """Tools of `torch.nn.utils` that work by hooks see no difference; a norm they gave buffers is no longer plain."""
    model = nn.Sequential(nn.LayerNorm(8), Rounding(8))
    for module in model:
        prune.random_unstructured(module, "weight", 3)
    report = nt.convert(model)
    assert [change.name for change in report.converted] == ["0"]
    assert report.left_alone[0].reason == "keeps buffers: weight_mask"
    x = torch.randn(3, 8)
    want = F.layer_norm(x, (8,), model[0].weight_orig * model[0].weight_mask, model[0].bias)
    torch.testing.assert_close(model[0](x), want)
    prune.remove(model[0], "weight")
    torch.testing.assert_close(model[0](x), want)


def test_restore_reaches_what_was_made_as_the_library():
    """The model then no longer needs the library; classes that users derived from it stay, and are named."""

    class Mine(nt.LayerNorm):
        pass

    model = nn.Sequential(nt.LayerNorm(4), Mine(4), nn.LayerNorm(4))
    assert nt.convert(model, include="2").converted
    report = nt.restore(model)
    assert [change.name for change in report.converted] == ["0", "2"]
    assert report.left_alone == (("1", Mine, "its class was derived from the library's"),)
    assert [type(module) for module in model] == [nn.LayerNorm, Mine, nn.LayerNorm]
    assert isinstance(report, Report)


def classes(model):
    return [type(module) for module in model.modules()]


def partly_converted():
    """The library's own, converted, derived, recognized, parametrized, shared and unconverted norms."""
    shared = nn.LayerNorm(4)
    model = nn.ModuleList([
        nn.LayerNorm(4), nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), Rounding(4),
        type("Mine", (nn.LayerNorm,), {})(4), shared, shared, nn.GroupNorm(2, 4), nt.RMSNorm(4),
    ])  # fmt: skip
    parametrize.register_parametrization(model[0], "weight", nn.Identity())
    nt.convert(model, exclude="6")
    return model


def test_restored_for_a_while():
    """Every class goes and comes back exactly, also when the block raises, within another block, and as a decorator."""
    model = partly_converted()
    before = classes(model)
    with nt.restored(model) as report:
        within = classes(model)
        assert len(report.converted) == 6 and not any(cls.__module__.startswith("normtriton") for cls in within[1:])
        assert nt.restore(model) == Report()
        with nt.restored(model):
            assert classes(model) == within
        assert classes(model) == within
        x = torch.randn(3, 4)
        assert torch.equal(model[4](x), nn.functional.layer_norm(x, (4,), model[4].weight, model[4].bias))
    assert classes(model) == before

    def failing():
        with nt.restored(model):
            raise KeyError

    with pytest.raises(KeyError):
        failing()
    assert classes(model) == before

    @nt.restored(model)
    def run():
        return classes(model)

    assert [cls.__module__ for cls in run()] == [cls.__module__ for cls in within] and classes(model) == before
    with pytest.raises(TypeError, match=r"expected a torch.nn.Module"), nt.restored([model]):
        pass


def test_what_changes_while_restored():
    """Modules parametrized within, or no longer, come back as what they are; what was converted within stays."""
    model = nn.ModuleList([nt.LayerNorm(4), nt.LayerNorm(4), nt.GroupNorm(2, 4), nn.RMSNorm(4)])
    parametrize.register_parametrization(model[1], "weight", nn.Identity())
    with nt.restored(model):
        parametrize.register_parametrization(model[0], "weight", nn.Identity())
        parametrize.remove_parametrizations(model[1], "weight")
        nt.convert(model[2])
        nt.convert(model[3])
        removed, model[3] = model[3], nn.Identity()
    assert parametrize.is_parametrized(model[0]) and isinstance(model[0], nt.LayerNorm)
    assert [type(module) for module in (*model[1:3], removed)] == [nt.LayerNorm, nt.GroupNorm, nt.RMSNorm]
    x = torch.randn(3, 4)
    torch.testing.assert_close(model[0](x), model[1](x))


def test_a_class_derived_from_the_librarys_is_not_restored():
    """It stays within the block, and the report says so."""
    model = type("Mine", (nt.LayerNorm,), {})(4)
    with nt.restored(model) as report:
        assert [left.reason for left in report.left_alone] == ["its class was derived from the library's"]


def test_state_dicts_go_both_ways():
    """Between a model, its converted twin and the twin restored, strictly."""
    model = nn.Sequential(nn.BatchNorm1d(4), nn.LayerNorm(4), FromOne(4), OneGroup(4))
    twin = copy.deepcopy(model)
    nt.convert(twin)
    twin(torch.randn(5, 4)).sum().backward()
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(parameter.grad)
    assert list(model.state_dict()) == list(twin.state_dict())
    assert model.state_dict()._metadata == twin.state_dict()._metadata
    model.load_state_dict(twin.state_dict())
    nt.restore(twin)
    twin.load_state_dict(model.state_dict())
    assert [type(module) for module in twin] == [type(module) for module in model]
