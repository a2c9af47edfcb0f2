"""`convert(model, fuse=True)`: what is joined with a norm, what is not and why, and that all else stays as it was."""

import copy
import inspect
import pickle
import random
import warnings
from collections import Counter, OrderedDict
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  the name everyone knows it by
from oracle import close
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.utils import parametrize

import normtriton as nt
from normtriton.convert import fuse
from normtriton.convert.replace import Report
from normtriton.runtime import compiling, launch


@pytest.fixture
def kernels(monkeypatch):
    """The kernels launched so far."""
    launched, run = [], launch._run
    monkeypatch.setattr(launch, "_run", lambda what, *args: (launched.append(what.kernel), run(what, *args))[1])
    return launched


@pytest.fixture
def joined(monkeypatch):
    """What surrounded each norm that ran with something, and "apart" for each that could not."""
    seen, run = [], nt.modules.Leaf.surrounded
    for cls in {nt.modules.Leaf}:
        monkeypatch.setattr(
            cls, "surrounded", lambda self, x, around: (seen.append({*around}), run(self, x, around))[1]
        )
    return seen


class Llama(nn.Module):
    """As transformers' LlamaRMSNorm."""

    def __init__(self, n, eps=1e-6):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(n)), eps

    def forward(self, hidden_states):
        x = hidden_states.float() if hidden_states.dtype != torch.float64 else hidden_states
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * x.to(hidden_states.dtype)


class Residual(nn.Module):
    """As torchvision's BasicBlock."""

    def __init__(self, c=4, norm=nn.BatchNorm2d, shortcut=False):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c, c, 1, bias=False), norm(c)
        self.conv2, self.bn2 = nn.Conv2d(c, c, 1, bias=False), norm(c)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = nn.Sequential(nn.Conv2d(c, c, 1), norm(c)) if shortcut else None

    def forward(self, x):
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class PreNorm(nn.Module):
    """As the blocks of ViT and Llama: a sum, and its norm."""

    def __init__(self, n=6, norm=nn.LayerNorm):
        super().__init__()
        self.norm1, self.mix, self.norm2, self.mlp = norm(n), nn.Linear(n, n), norm(n), nn.Linear(n, n)

    def forward(self, x):
        x = x + self.mix(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PostNorm(PreNorm):
    """As BERT's, and then Swin's."""

    def forward(self, x):
        x = self.norm1(torch.add(self.mix(x), x))
        return x.add(self.norm2(self.mlp(x)))


class Functional(PreNorm):
    """With functions and methods for activations, dropout that heeds the training flag, and lists of modules."""

    def __init__(self, n=6, norm=nn.LayerNorm):
        super().__init__(n, norm)
        self.norms, self.p = nn.ModuleList([norm(n), norm(n)]), 0.5

    def forward(self, x):
        x = F.gelu(self.norm1(x), approximate="tanh")
        x = F.dropout(x, self.p, self.training)
        for norm in self.norms:
            x = self.mix(x.sigmoid() + norm(x))
        return torch.tanh(self.norm2(x))


def sequential(norm, act):
    return nn.Sequential(norm, act)


IMAGES, WORDS = (2, 4, 5, 3), (2, 3, 6)
MODELS = {
    "batch relu": (sequential(nn.BatchNorm2d(4), nn.ReLU(inplace=True)), IMAGES, ["0 with relu"]),
    "group silu": (sequential(nn.GroupNorm(2, 4), nn.SiLU()), IMAGES, ["0 with silu"]),
    "instance leaky": (sequential(nn.InstanceNorm2d(4, affine=True), nn.LeakyReLU()), IMAGES, ["0 with leaky_relu"]),
    "layer gelu": (sequential(nn.LayerNorm(6), nn.GELU("tanh")), WORDS, ["0 with gelu_tanh"]),
    "rms hardswish": (sequential(nn.RMSNorm(6, 1e-5), nn.Hardswish()), WORDS, ["0 with hardswish"]),
    "llama gelu": (sequential(Llama(6), nn.GELU()), WORDS, ["0 with gelu"]),
    "resnet": (Residual(), IMAGES, ["bn1 with relu", "bn2 with skip and relu"]),
    "resnet, shortcut": (Residual(shortcut=True), IMAGES, ["bn1 with relu", "bn2 with skip and relu"]),
    "vit": (PreNorm(), WORDS, ["norm2 with residual"]),
    "llama": (PreNorm(norm=Llama), WORDS, ["norm2 with residual"]),
    "bert": (PostNorm(), WORDS, ["norm1 with residual", "norm2 with skip"]),
    "functional": (
        Functional().eval(),
        WORDS,
        ["norm1 with gelu_tanh", "norms.0 with skip", "norms.1 with skip", "norm2 with tanh"],
    ),
}


def model(name):
    """A model with parameters that matter, a shape, and what is joined in it."""
    module, shape, words = MODELS[name]
    module = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
    return module, shape, words


@pytest.mark.parametrize("name", MODELS)
def test_results_and_gradients_are_the_models(name, kernels, joined):
    """In float64, but for rounding; by one launch for each norm, with what surrounds it."""
    module, shape, words = model(name)
    exact = copy.deepcopy(module).double()
    report = nt.convert(module, fuse=True)
    (change,) = report.fused
    assert change.name == "" and change.function == ", ".join(words) and not report.not_fused

    joined.clear()
    kernels.clear()
    x, dy = torch.randn(shape, requires_grad=True), torch.randn(shape)
    y = module(x)
    assert kernels.count("forward") == len(report.converted)
    assert len(joined) == len(words) - ("Llama" in repr(module)) * len(words)  # these have a method of their own
    y.backward(dy)
    x64 = x.detach().double().requires_grad_()
    want = exact(x64)
    want.backward(dy.double())
    close(y, want.detach(), slack=24)
    for leaf, other in zip((x, *module.parameters()), (x64, *exact.parameters()), strict=True):
        assert (leaf.grad is None) == (other.grad is None)
        if leaf.grad is not None:  # some cancel, so that nothing but rounding is left
            close(leaf.grad, other.grad, slack=400, scale=other.grad.abs().max().item() + 0.1)
    for ours, theirs in zip(module.buffers(), exact.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs.to(ours.dtype))


@pytest.mark.parametrize("name", MODELS)
def test_without_kernels_it_gives_the_same_bits(name, monkeypatch):
    """Where there are none, PyTorch's own functions compute what they did."""
    monkeypatch.setattr(compiling, "INTERPRETED", False)
    module, shape, _ = model(name)
    other, x = copy.deepcopy(module), torch.randn(shape)
    assert nt.convert(module, fuse=True).fused
    assert torch.equal(module(x), other(x))


@pytest.mark.parametrize("name", ["batch relu", "resnet", "llama"])
def test_all_but_classes_stays_and_comes_back(name):
    """The same objects in the same places, with keys, flags and hooks; restored, the same bits."""
    module, shape, _ = model(name)
    ran = []
    module.register_forward_hook(lambda *_: ran.append("ran"))
    module[0].eval() if name == "batch relu" else module.eval()
    parts, classes = list(module.modules()), [type(part) for part in module.modules()]
    before = list(module.state_dict()), [vars(part).keys() for part in parts], [p.training for p in parts], repr(module)
    x = torch.randn(shape)
    want = module(x)
    nt.convert(module, fuse=True)
    assert list(module.modules()) == parts and isinstance(module, classes[0]) and type(module) is not classes[0]
    assert inspect.signature(module.forward) == inspect.signature(classes[0].forward.__get__(module))
    after = list(module.state_dict()), [vars(part).keys() for part in parts], [p.training for p in parts], repr(module)
    assert before == after
    torch.testing.assert_close(module(x), want)
    assert ran == ["ran"] * 2
    assert nt.convert(module, fuse=True) == Report(), "a second time there is nothing to do"
    with nt.restored(module):
        assert [type(part) for part in parts] == classes and torch.equal(module(x), want)
    assert type(module) is not classes[0]
    report = nt.restore(module)
    assert [type(part) for part in parts] == classes and torch.equal(module(x), want)
    assert "" in {change.name for change in report.converted}


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
@pytest.mark.parametrize("name", ["resnet", "llama", "functional"])
def test_copies(name, way, joined):
    """They compute as the model does, also in a process that never converted, and can be restored."""
    module, shape, _ = model(name)
    kind, x = type(module), torch.randn(shape)
    nt.convert(module, fuse=True)
    want = module(x)
    with patch.dict("normtriton.convert.replace._derivations", clear=True):
        other = copy.deepcopy(module) if way == "deepcopy" else pickle.loads(pickle.dumps(module))  # noqa: S301  our own
        count = len(joined)
        assert torch.equal(other(x), want) and (name == "llama" or len(joined) > count)
        nt.restore(other)
        assert type(other) is kind and type(module) is not kind


# What is not joined.


class Twice(PreNorm):
    def forward(self, x):
        y = self.norm1(x)
        return F.relu(y) + y


class Deciding(PreNorm):
    def forward(self, x):
        return F.relu(self.norm1(x)) if x.sum() > 0 else x


class Drawing(PreNorm):
    def forward(self, x):
        return F.relu(self.norm1(x)) if random.random() < 0.5 else x  # noqa: S311  as LayerDrop


class Drawn(PreNorm):
    def forward(self, x):
        return F.relu(self.norm1(x)) + torch.rand(6)


class Remembering(PreNorm):
    def forward(self, x):
        self.last = x
        return F.relu(self.norm1(x))


class Overwriting(PreNorm):
    """What the norm keeps for its backward pass changes before the sum."""

    def forward(self, x):
        x = x * 1
        y = self.norm1(x)
        x.mul_(2)
        return F.relu(y + x)


class Asking(PreNorm):
    """What a graph would be if no tensor came."""

    def forward(self, x):
        y = F.relu(self.norm1(x))
        return y if isinstance(x, torch.Tensor) else y + 1


class Naming(PreNorm):
    """As models of transformers: what it returns is no plain dictionary."""

    def forward(self, x):
        return OrderedDict(y=F.relu(self.norm1(x)))


class Reaching(PreNorm):
    def forward(self, x):
        return F.relu(self.norm1(F.linear(x, self.mix.weight)))


class Many(PreNorm):
    def forward(self, *x):
        return F.relu(self.norm1(x[0]))


def hooked():
    module = PreNorm()
    module.norm2.register_forward_hook(lambda *_: None)
    return module


def replaced():
    module = PreNorm()
    module.forward = lambda x: x
    return module


APART = {
    "used twice": (Twice, ("norm1", nt.LayerNorm, "is not joined with its activation: its result is used 2 times")),
    "hooked": (hooked, ("norm2", nt.LayerNorm, "is not joined with what surrounds it: hooks look at what is between")),
    "another activation": (
        lambda: nn.Sequential(nn.LayerNorm(6), nn.Softplus()),
        ("0", nt.LayerNorm, "is not joined with its activation: Softplus is none of relu, "),
    ),
    "a parameter of its own": (
        lambda: nn.Sequential(nn.LayerNorm(6), nn.PReLU()),
        ("0", nt.LayerNorm, "is not joined with its activation: PReLU is none of relu, "),
    ),
    "control flow": (Deciding, ("", Deciding, "torch.fx cannot trace it: TraceError: symbolically traced variables")),
    "random numbers": (Drawing, ("", Drawing, "its forward draws random numbers")),
    "a random tensor": (Drawn, ("", Drawn, "its forward draws random numbers")),
    "state": (Remembering, ("", Remembering, "its forward changes its attributes, or makes tensors of its own")),
    "in place": (
        Overwriting,
        ("", Overwriting, "no input was found on which it can be tried: RuntimeError: one of the variables needed"),
    ),
    "kinds": (Asking, ("", Asking, "in a trial its result differs by ")),
    "another kind": (Naming, ("", Naming, "in a trial it returned another kind of object")),
    "parts of parts": (Reaching, ("", Reaching, "its forward takes weight from a Linear")),
    "arguments": (Many, ("", Many, "its forward takes (*x), where an input was expected")),
    "replaced": (replaced, ("", PreNorm, "its forward was replaced on the object")),
}


@pytest.mark.parametrize("name", APART)
def test_what_is_not_joined_and_why(name, joined):
    """The report says so, the norm is converted all the same, and the model computes what it did."""
    make, (where, kind, reason) = APART[name]
    module = make()
    cls, x = type(module), torch.randn(WORDS)
    random.seed(1)
    torch.manual_seed(1)
    want = module(x)
    report = nt.convert(module, fuse=True)
    (left,) = report.not_fused
    assert left[:2] == (where, kind) and left.reason.startswith(reason), left
    assert not report.fused and type(module) is cls and report.converted
    assert f"not fused: 1\n  1 x {kind.__module__}.{kind.__qualname__}: {reason}" in str(report)
    random.seed(1)
    torch.manual_seed(1)
    torch.testing.assert_close(module(x), want)
    assert not joined or name in ("in place", "kinds", "another kind")  # in their trials


def test_what_has_nothing_around_its_norm_is_not_mentioned():
    """Neither a norm before a linear map, nor a module whose norms are elsewhere."""
    report = nt.convert(nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 6))), fuse=True)
    assert len(report.converted) == 1 and not report.fused and not report.not_fused
    assert nt.convert(nn.Linear(6, 6), fuse=True) == Report()


def test_without_fuse_nothing_is_joined():
    """As before."""
    report = nt.convert(Residual())
    assert len(report.converted) == 2 and not report.fused and not report.not_fused


def test_include_and_exclude():
    """A norm is joined in a module if both are chosen; what is excluded is not mentioned."""
    made = lambda: nn.ModuleDict({"a": Residual(), "b": Residual()})
    assert [c.name for c in nt.convert(made(), include="a", fuse=True).fused] == ["a"]
    (change,) = nt.convert(made(), exclude=["a", "b.bn1"], fuse=True).fused
    assert (change.name, change.function) == ("b", "bn2 with skip and relu")
    assert not nt.convert(made(), include="*.bn2", fuse=True).fused
    module = made()
    assert len(nt.convert(module, exclude="b").converted) == 2
    assert [c.name for c in nt.convert(module, fuse=True).fused] == ["a", "b"]


def test_the_report_is_readable():
    """A line for all modules of which the same is to be said."""
    module = nn.ModuleList([Residual(), Residual(), Twice()])
    assert str(nt.convert(module, fuse=True)).splitlines()[-4:] == [
        "fused: 2",
        "  2 x test_fuse.Residual, bn1 with relu, bn2 with skip and relu: 0, 1",
        "not fused: 1",
        "  1 x normtriton.modules.LayerNorm: is not joined with its activation: its result is used 2 times: 2.norm1",
    ]


class Assigning(PreNorm):
    """Sums in place, of what was given, and an assignment to a part."""

    def forward(self, x):
        x += 1
        x *= 2
        y = F.silu(self.norm1(x))
        y[..., 0] = 3.0
        return y


def test_what_is_changed_in_place_is_changed(joined):
    """For the caller, too."""
    module, other = fused(Assigning())
    x = torch.randn(WORDS)
    given = [x.clone(), x.clone()]
    joined.clear()
    torch.testing.assert_close(module(given[0]), other(given[1]))
    assert torch.equal(*given) and not torch.equal(given[0], x)
    assert joined == [{"activation"}]


# Where something is not as it was when it was traced.


def fused(module):
    """A module that is, and one that is not."""
    other = copy.deepcopy(module)
    assert nt.convert(module, fuse=True).fused
    return module, other


def test_the_training_flag_is_heeded(joined):
    """A dropout that is asked to drop when the module trains."""
    module, other = fused(Functional().train())
    joined.clear()
    x = torch.randn(WORDS)
    for training in (True, False, True):
        torch.manual_seed(3)
        want = other.train(training)(x)
        torch.manual_seed(3)
        torch.testing.assert_close(module.train(training)(x), want)
    assert len(joined) == 3 * 4


def changed_attribute(module):
    module.p = 0.25


def changed_child(module):
    module.mix = nn.Sequential(module.mix, nn.Tanh())


def changed_norm(module):
    module.norm1 = nn.Identity()


def changed_list(module):
    module.norms.append(nn.LayerNorm(6))


@pytest.mark.parametrize("change", [changed_attribute, changed_child, changed_norm, changed_list])
def test_what_was_changed_since_is_heeded(change, joined):
    """Then the module's own forward runs."""
    module, other = fused(Functional().train())
    for one in (module, other):
        torch.manual_seed(5)
        change(one)
    joined.clear()
    x = torch.randn(WORDS)
    torch.manual_seed(3)
    want = other(x)
    torch.manual_seed(3)
    torch.testing.assert_close(module(x), want)
    assert not joined


def test_hooks_that_were_added_since_see_what_they_saw(joined):
    """Of a norm, and of its activation: the steps are taken one by one."""
    x, seen = torch.randn(IMAGES), []
    module, other = fused(Residual())
    for one in (module, other):
        one.bn2.register_forward_hook(lambda _m, _x, y: seen.append(y.detach().clone()))
        one.relu.register_forward_pre_hook(lambda _m, x: seen.append(x[0].detach().clone()))
    joined.clear()
    torch.testing.assert_close(module(x), other(x))
    assert len(seen) == 6 and not joined
    torch.testing.assert_close(seen[:3], seen[3:])


def test_a_sum_that_broadcasts_or_widens_is_taken_apart(joined):
    """What the trial did not see: another shape or dtype of what is added."""

    class Adding(PreNorm):
        def forward(self, x, y):
            return F.relu(self.norm1(x) + y)

    module, other = fused(Adding())
    x = torch.randn(WORDS)
    joined.clear()
    torch.testing.assert_close(module(x, x), other(x, x))
    assert joined == [{"activation", "skip"}]
    for y in (torch.randn(6), torch.randn(WORDS).double()):
        got, want = module(x, y), other(x, y)
        assert got.dtype == want.dtype
        torch.testing.assert_close(got, want)
    assert len(joined) == 1


class Timed(nn.Module):
    """As diffusers' ResnetBlock2D: an argument that may be None."""

    def __init__(self):
        super().__init__()
        self.norm, self.act, self.time = nn.GroupNorm(2, 4), nn.SiLU(), nn.Linear(3, 4)

    def forward(self, x, temb, *args, **kwargs):
        if len(args) > 0 or kwargs.get("scale") is not None:
            return x
        if temb is not None:
            x = x + self.time(self.act(temb))[:, :, None, None]
        return self.act(self.norm(x))


def test_arguments_that_may_be_none(joined):
    """Each kind of call was traced; further arguments take the module's own forward."""
    module, other = fused(Timed())
    x, temb = torch.randn(IMAGES), torch.randn(2, 3)
    joined.clear()
    for arguments in ((x, temb), (x, None)):
        torch.testing.assert_close(module(*arguments), other(*arguments))
    torch.testing.assert_close(module(x, temb=temb), other(x, temb))
    assert joined == [{"activation"}] * 3
    assert module(x, temb, 1) is module(x, temb, scale=2) is x
    assert len(joined) == 3
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'temb'"):
        module(x)


class Attention(nn.Linear):
    def forward(self, hidden_states, mask=None, cache=None):
        cache.append(mask)
        return super().forward(hidden_states), None


class Decoder(PreNorm):
    """As transformers' LlamaDecoderLayer: what it is given goes on to the attention."""

    def __init__(self):
        super().__init__()
        self.mix = Attention(6, 6)

    def forward(self, hidden_states, mask=None, cache=None, **kwargs):
        y, _ = self.mix(self.norm1(hidden_states), mask=mask, cache=cache, **kwargs)
        x = hidden_states + y
        return x + self.mlp(self.norm2(x))


def test_arguments_that_are_passed_on(joined):
    """They may be anything, if the code does not depend on them."""
    module, other = fused(Decoder())
    x, cache = torch.randn(WORDS), []
    joined.clear()
    for mask in (None, x, "causal"):
        torch.testing.assert_close(module(x, mask=mask, cache=cache), other(x, mask, cache))
    assert joined == [{"residual"}] * 3 and len(cache) == 6


class CrossAttending(Decoder):
    """As transformers' GPT2Block: one of its arguments decides what is done."""

    def forward(self, hidden_states, mask=None, memory=None, cache=None):
        y, _ = self.mix(self.norm1(hidden_states), mask=mask, cache=cache)
        x = hidden_states + y
        if memory is not None:
            x = x + self.mlp(memory)
        return x + self.mlp(self.norm2(x))


def test_an_argument_that_decides(joined):
    """There is code for both cases, and the others may be anything in each."""
    module, other = fused(CrossAttending())
    x, memory, cache = torch.randn(WORDS), torch.randn(WORDS), []
    joined.clear()
    for mask in (None, x, "causal"):
        for given in (None, memory):
            torch.testing.assert_close(module(x, mask, given, cache=cache), other(x, mask, given, cache))
    assert joined == [{"residual"}] * 6 and len(cache) == 12
    row = torch.randn(6)  # a sum that broadcasts
    torch.testing.assert_close(module(x, x, row, cache), other(x, x, row, cache))
    assert len(joined) == 6


# Others who look at modules.


def test_one_graph_for_compilers():
    """`torch.compile` and `torch.export` see the norm with what surrounds it; a fused block trains as it did."""
    module, shape, _ = model("resnet")
    module, other = fused(module)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    x, dy = torch.randn(shape), torch.randn(shape)
    for run in (compiled, other):
        run(x).backward(dy)
    assert counter.frame_count == 1
    targets = Counter(str(node.target) for node in counter.graphs[0].graph.nodes) if hasattr(counter, "graphs") else {}
    assert not any("relu" in target for target in targets)
    for ours, theirs in zip(module.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)
    module.bn1.momentum = 0.2
    exported = torch.export.export(module.eval(), (x,))
    torch.testing.assert_close(exported.module()(x), module(x))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # it is what users still have
def test_tracers_and_scripts_take_the_original():
    """`torch.jit` compiles the module's own forward, and `torch.fx` records it."""
    module, other = fused(Residual().eval())
    x = torch.randn(IMAGES)
    want = other.eval()(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        for run in (torch.jit.script(module), torch.jit.trace(module, x), torch.fx.symbolic_trace(module)):
            torch.testing.assert_close(run(x), want)


def test_autocast_and_half_precision():
    """The results have the dtypes that they had."""
    module, other = fused(Residual())
    x = torch.randn(IMAGES)
    with torch.autocast("cpu", torch.bfloat16):
        got, want = module(x), other(x)
    assert got.dtype == want.dtype
    torch.testing.assert_close(got, want, rtol=0.02, atol=0.05)
    got, want = (one.bfloat16()(x.bfloat16()) for one in (module, other))
    assert got.dtype == want.dtype
    torch.testing.assert_close(got, want, rtol=0.02, atol=0.05)


class Watched(nn.Linear):
    runs = []  # noqa: RUF012  shared on purpose

    def forward(self, x):
        self.runs.append(x.device.type)
        return super().forward(x)


@pytest.mark.parametrize("where", ["cpu", "meta"])
def test_nothing_notices_a_trial(where):
    """What a module calls does not run, but for its shapes on the meta device; one trial does for all of a kind."""
    fuse._verdicts.clear()
    Watched.runs.clear()
    module = nn.Sequential(*(nn.Sequential(Watched(6, 6), nn.LayerNorm(6), nn.ReLU()) for _ in range(9))).to(where)
    state, numbers = [(id(p), p._version, p.grad) for p in module.parameters()], random.getstate()
    fired = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda m, _x: pytest.fail("a hook ran") if any(m is part for part in module.modules()) else None
    )
    drawn = torch.get_rng_state()
    report = nt.convert(module, fuse=True)
    fired.remove()
    assert len(report.fused) == 9 and set(Watched.runs) == {"meta"} and len(Watched.runs) < 30
    assert torch.equal(drawn, torch.get_rng_state()) and numbers == random.getstate()
    assert state == [(id(p), p._version, p.grad) for p in module.parameters()]


def test_parametrized_modules():
    """A norm or another part that is parametrized stays so; a module that is itself is not traced."""
    module = sequential(nn.LayerNorm(6), nn.ReLU())
    parametrize.register_parametrization(module[0], "weight", nn.Identity())
    module, other = fused(module)
    x = torch.randn(WORDS)
    torch.testing.assert_close(module(x), other(x))
    module = Residual()
    module.gain = nn.Parameter(torch.ones(1))
    parametrize.register_parametrization(module, "gain", nn.Identity())
    assert not nt.convert(module, fuse=True).fused


# Norms that are one module with what surrounds them.


class Gated(nn.Module):
    """As transformers' Qwen3NextRMSNormGated; the gate may have another activation."""

    act = staticmethod(F.silu)

    def __init__(self, n):
        super().__init__()
        self.weight, self.variance_epsilon, self.activation = nn.Parameter(torch.ones(n)), 1e-6, "silu"

    def normalized(self, x, groups=1):
        x = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(-1, (groups, -1))
        return (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)).flatten(-2)

    def forward(self, hidden_states, gate=None):
        y = self.weight * self.normalized(hidden_states).to(hidden_states.dtype)
        if gate is not None:
            y = y * self.act(gate.to(torch.promote_types(gate.dtype, torch.float32)))
        return y.to(hidden_states.dtype)


class GatedBySigmoid(Gated):
    """As KimiLinearRMSNormGated."""

    act = staticmethod(torch.sigmoid)


class GatedFirst(Gated):
    """As MambaRMSNormGated: of groups, whose size is told."""

    def __init__(self, n, group_size=4):
        super().__init__(n)
        self.group_size = group_size

    def forward(self, hidden_states, gate=None):
        dtype = hidden_states.dtype
        if gate is not None:
            hidden_states = hidden_states * F.silu(gate.to(torch.promote_types(dtype, torch.float32)))
        groups = hidden_states.shape[-1] // self.group_size
        return self.weight * self.normalized(hidden_states, groups).to(dtype)


class GroupedFirst(GatedFirst):
    """As FalconH1RMSNormGated: their number is told, and they come before the gate."""

    def __init__(self, n):
        super().__init__(n)
        del self.group_size
        self.n_groups = 3

    def forward(self, hidden_states, gate):
        return (self.weight * self.normalized(hidden_states, self.n_groups) * F.silu(gate)).to(hidden_states.dtype)


class ReturningTheSum(Gated):
    """As inference engines': the sum comes back for the next block."""

    def forward(self, x, residual=None):
        total = x if residual is None else x + residual
        y = (self.weight * self.normalized(total)).to(x.dtype)
        return y if residual is None else (y, total)


class FromOneGated(Gated):
    """A weight that counts from one, and a gate without an activation."""

    def forward(self, x, z):
        return ((1.0 + self.weight) * self.normalized(x) * z).to(x.dtype)


RMS = "RMS norm of the last dimension"
WITHIN = {
    "silu": (Gated, f"{RMS}, times silu(gate)"),
    "sigmoid": (GatedBySigmoid, f"{RMS}, times sigmoid(gate)"),
    "first, groups": (GatedFirst, "RMS norm of groups of the last dimension of the product with silu(gate)"),
    "groups": (GroupedFirst, "RMS norm of groups of the last dimension, times silu(gate)"),
    "sum": (ReturningTheSum, f"{RMS} of the sum with residual, and the sum"),
    "from one": (FromOneGated, f"{RMS}, times 1 + weight, times z"),
}


@pytest.mark.parametrize("name", WITHIN)
def test_norms_of_two_tensors_are_recognized(name, kernels):
    """Results and gradients are the module's in float64, by one launch; without the second it is the module's own."""
    cls, function = WITHIN[name]
    module = cls(12)
    with torch.no_grad():
        module.weight.add_(torch.randn(12) * 0.2)
    exact = copy.deepcopy(module).double()
    assert nt.convert(module).left_alone and type(module) is cls
    (change,) = nt.convert(module, fuse=True).converted
    assert change.function == function and isinstance(module, cls)
    inputs, dy = [torch.randn(2, 3, 12, requires_grad=True) for _ in range(2)], torch.randn(2, 3, 12)
    inputs64 = [t.detach().double().requires_grad_() for t in inputs]
    second = list(inspect.signature(cls.forward).parameters)[2]
    got, want = module(inputs[0], **{second: inputs[1]}), exact(*inputs64)
    assert kernels == ["forward"]
    got, want = (y if isinstance(y, tuple) else (y,) for y in (got, want))
    dys = [dy, dy.flip(0)][: len(got)]
    torch.autograd.backward(got, dys)
    torch.autograd.backward(want, [d.double() for d in dys])
    for ours, theirs in zip(got, want, strict=True):
        close(ours, theirs.detach(), slack=24)
    for leaf, other in zip((*inputs, *module.parameters()), (*inputs64, *exact.parameters()), strict=True):
        close(leaf.grad, other.grad, slack=200)

    kernels.clear()
    x = torch.randn(3, 12)
    if inspect.signature(cls.forward).parameters[second].default is None:
        assert torch.equal(module(x), cls.forward(module, x))
    else:
        with pytest.raises(TypeError, match=f"missing 1 required positional argument: '{second}'"):
            module(x)
    other = [t.to(torch.bfloat16) for t in (x, x)]
    assert torch.equal(torch.stack(list(module(x, other[1]))), torch.stack(list(cls.forward(module, x, other[1]))))
    assert not kernels
    twin = pickle.loads(pickle.dumps(module))  # noqa: S301  our own
    torch.testing.assert_close(twin(x, x), cls.forward(module, x, x))
    assert kernels == ["forward"]
    nt.restore(module)
    assert type(module) is cls


def test_a_second_tensor_of_another_use_is_left_alone():
    """The nearest is told."""

    class Mixing(Gated):
        def forward(self, x, gate):
            return self.weight * self.normalized(x) * F.softplus(gate)

    (left,) = nt.convert(Mixing(12), fuse=True).left_alone
    assert left.reason.startswith(f"no norm known; nearest is {RMS}") and "its result for float32 input" in left.reason


class BatchNormAct2d(nn.BatchNorm2d):
    """As timm's."""

    def __init__(self, n, act=nn.SiLU):
        super().__init__(n)
        self.drop, self.act = nn.Identity(), act()

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


class GroupNormAct(nn.GroupNorm):
    def __init__(self, n):
        super().__init__(2, n)
        self.act = nn.ReLU()

    def forward(self, x):
        return self.act(F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps))


class Doubling(BatchNormAct2d):
    def forward(self, x):
        return 2 * super().forward(x)


def test_norms_with_their_activation_within(kernels):
    """By one launch, in training and evaluation, with the statistics that they kept; a hook sees the activation."""
    module = nn.ModuleList([BatchNormAct2d(4), BatchNormAct2d(4, nn.Identity), GroupNormAct(4), Doubling(4)])
    other, classes = copy.deepcopy(module), [type(one) for one in module]
    report = nt.convert(module, fuse=True)
    assert [change.function for change in report.converted] == [
        *("as normtriton.BatchNorm2d with silu", "as normtriton.BatchNorm2d", "as normtriton.GroupNorm with relu"),
    ]
    (left,) = report.left_alone
    assert left.name == "3" and left.reason.startswith("in a trial its result differs by ")
    for training in (True, False):
        for ours, theirs in zip(module[:3], other[:3], strict=True):
            kernels.clear()
            x, dy = torch.randn(IMAGES, requires_grad=True), torch.randn(IMAGES)
            got, want = (one.train(training)(x) for one in (ours, theirs))
            assert kernels == ["forward"]
            torch.testing.assert_close(got, want)
            grads = [torch.autograd.grad(y, [x, *one.parameters()], dy) for y, one in ((got, ours), (want, theirs))]
            torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(dict(ours.named_buffers()), dict(theirs.named_buffers()))
    kernels.clear()
    for one in (module[0].train(), other[0].train()):
        one.eps, one.momentum = 0.5, 0.3  # which are read when it runs
    torch.testing.assert_close(module[0](x), other[0](x))
    torch.testing.assert_close(module[0].running_var, other[0].running_var)
    assert kernels == ["forward"]
    seen = []
    module[0].act.register_forward_hook(lambda _m, x, _y: seen.append(x[0]))
    copy.deepcopy(module)[0](x)
    assert len(seen) == 1
    nt.restore(module)
    assert [type(one) for one in module] == classes


def test_attributes_that_are_called_as_settings():
    """What the library's class would take for a setting is left alone; a recognized class keeps its own attributes."""

    class Wide(nn.LayerNorm):
        def forward(self, x):
            return F.layer_norm(x.float(), self.normalized_shape, self.weight, self.bias, self.eps).to(x.dtype)

    module = nn.ModuleList([nn.LayerNorm(6), nn.LayerNorm(6), nn.LayerNorm(6), Llama(6), Wide(6)])
    module[0].activation, module[1].dim, module[3].activation, module[4].dim = "gelu", 1, "gelu", 6
    module[2].offset = nn.Linear(1, 1)
    x = torch.randn(WORDS)
    want, classes = [one(x) for one in module], [type(one) for one in module]
    report = nt.convert(module)
    assert [change.name for change in report.converted] == ["3", "4"]
    assert [left.reason for left in report.left_alone] == [
        f"has attributes that normtriton.LayerNorm takes for settings: {name}"
        for name in ("activation", "dim", "offset")
    ]
    torch.testing.assert_close([one(x) for one in module], want)
    assert repr(module[3]) == "Llama()" and nt.restore(module).converted
    assert [type(one) for one in module] == classes
