"""Layers for Hugging Face's kernels: bound to modules as ``kernelize`` binds them, and what it asks of a layer."""

import copy
import inspect
from types import MethodType

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  the name everyone knows it by
from oracle import close
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from normtriton import hub
from normtriton.runtime import launch


class LlamaRMSNorm(nn.Module):
    """As transformers'."""

    def __init__(self, n, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n))
        self.variance_epsilon = eps

    def normalized(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    def forward(self, hidden_states):
        wide = torch.promote_types(hidden_states.dtype, torch.float32)  # float64 stays, so that it can be the oracle
        return self.weight * self.normalized(hidden_states.to(wide)).to(hidden_states.dtype)


class Qwen3NextRMSNormGated(LlamaRMSNorm):
    """As transformers', the gate after the norm."""

    activation = "silu"

    def forward(self, hidden_states, gate=None):
        wide = torch.promote_types(gate.dtype, torch.float32)
        acts = {"silu": F.silu, "swish": F.silu, "sigmoid": torch.sigmoid}
        y = super().forward(hidden_states) * acts[self.activation](gate.to(wide))
        return y.to(hidden_states.dtype)


class KimiLinearRMSNormGated(Qwen3NextRMSNormGated):
    activation = "sigmoid"


class SwishGated(Qwen3NextRMSNormGated):
    activation = "swish"


class Qwen3_5RMSNorm(nn.Module):  # noqa: N801  transformers' name
    """As transformers', the weight zero-centered and eps under another name."""

    def __init__(self, n, eps=1e-6):
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.zeros(n))

    def forward(self, x):
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        y = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return (y * (1.0 + self.weight)).type_as(x)


BOUND = {
    "llama": (LlamaRMSNorm, "RMSNorm"),
    "qwen3-next": (Qwen3NextRMSNormGated, "RMSNormGated"),
    "kimi": (KimiLinearRMSNormGated, "RMSNormGated"),
    "swish": (SwishGated, "RMSNormGated"),
    "qwen3.5": (Qwen3_5RMSNorm, "RMSNormZeroCentered"),
    "torch": (nn.LayerNorm, "LayerNorm"),
}


def bound(name, n=24):
    """A module with parameters that matter, and the same to which the layer is bound."""
    cls, layer = BOUND[name]
    module = cls(n)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.3)
    ours = copy.deepcopy(module)
    ours.forward = MethodType(hub.Installed(layer).load().forward, ours)
    return module, ours


@pytest.fixture
def kernels(monkeypatch):
    """The kernels launched so far."""
    launched, run = [], launch._run
    monkeypatch.setattr(launch, "_run", lambda what, *args: (launched.append(what.kernel), run(what, *args))[1])
    return launched


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", BOUND)
def test_a_bound_layer_computes_what_the_module_does(name, dtype, kernels):
    """Results and gradients are the module's in float64; forward and backward are kernels."""
    module, ours = (m.to(dtype) for m in bound(name))
    exact = copy.deepcopy(module).double()
    count = len(inspect.signature(type(module).forward).parameters) - 1
    inputs, dy = [torch.randn(2, 3, 24, dtype=dtype) for _ in range(count)], torch.randn(2, 3, 24, dtype=dtype)
    got, want = [x.clone().requires_grad_() for x in inputs], [x.double().requires_grad_() for x in inputs]
    y, y64 = ours(*got), exact(*want)
    y.backward(dy)
    y64.backward(dy.double())
    assert y.dtype == dtype and {"forward", "backward"} <= set(kernels)
    close(y, y64.detach())
    for leaf, other in zip((*got, *ours.parameters()), (*want, *exact.parameters()), strict=True):
        close(leaf.grad, other.grad, slack=24)


@pytest.mark.parametrize("name", BOUND)
def test_what_kernelize_asks_of_a_layer(name):
    """No constructor, two members, and arguments of the same kinds: ``kernels.layer.layer._validate_layer``."""
    cls, layer = BOUND[name]
    loaded = hub.Installed(layer).load()
    assert loaded is getattr(hub, layer) and loaded.__init__ is nn.Module.__init__
    members, known = ({key for key, _ in inspect.getmembers(kind)} for kind in (loaded, nn.Module))
    assert members - known == {"can_torch_compile", "has_backward"}
    assert loaded.can_torch_compile and loaded.has_backward
    kinds = [[p.kind for p in inspect.signature(kind.forward).parameters.values()] for kind in (loaded, cls)]
    assert kinds[0] == kinds[1]


def test_installed_layers_are_told_by_their_names():
    """As repositories are: ``kernels`` copies and caches them."""
    assert set(hub.Installed.names()) == {layer for _, layer in BOUND.values()}
    one = hub.Installed("RMSNorm")
    assert (
        copy.deepcopy(one) == one and hash(one) == hash(hub.Installed("RMSNorm")) and one != hub.Installed("LayerNorm")
    )
    with pytest.raises(KeyError, match="BatchNorm"):
        hub.Installed("BatchNorm").load()


@pytest.mark.parametrize("name", ["llama", "qwen3-next", "qwen3.5"])
def test_a_bound_layer_compiles(name):
    """In one graph, as ``can_torch_compile`` says."""
    module, ours = bound(name)
    inputs = [torch.randn(3, 24) for _ in range(len(inspect.signature(type(module).forward).parameters) - 1)]
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    y = torch.compile(ours, fullgraph=True, backend=counter)(*inputs)
    assert counter.frame_count == 1
    torch.testing.assert_close(y, module(*inputs))


def test_without_a_gate_it_is_the_norm():
    """As of modules whose gate may be missing."""
    module, ours = bound("qwen3-next")
    x = torch.randn(3, 24)
    torch.testing.assert_close(ours(x, None), LlamaRMSNorm.forward(module, x))


def test_an_activation_that_is_not_known_raises():
    """It names those that are."""
    _, ours = bound("kimi")
    ours.activation = "no_such"
    with pytest.raises(ValueError, match=r"activation is one of relu, .*, not 'no_such'"):
        ours(torch.randn(3, 24), torch.randn(3, 24))
