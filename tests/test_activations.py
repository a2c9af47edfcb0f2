"""Activations of a caller's own: compiled in, differentiated, told apart; what is refused."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
import triton
import triton.language as tl

import normtriton as nt
from normtriton.planning.stages import ACTIVATIONS


@triton.jit
def clipped(z, most: tl.constexpr):
    return tl.minimum(z, most)


@triton.jit
def squared(z):
    return tl.where(z > 0.0, clipped(z, 2.0) * clipped(z, 2.0), 0.0)


@triton.jit
def slope_of_squared(z):
    return tl.where((z > 0.0) & (z < 2.0), 2.0 * z, 0.0)


@triton.jit
def cubed(z):
    return z * z * z


@triton.jit
def slope_of_cubed(z):
    return 3.0 * z * z


def by_pytorch(z):
    return z.clamp(0, 2).square()


SQUARED = nt.Activation(squared, slope_of_squared, by_pytorch)
CUBED = nt.Activation(cubed, slope_of_cubed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("around", [(), ("gate",), ("skip",)], ids=str)
def test_its_own(around, dtype):
    """Value and gradients, after the norm and of a gate; by the kernels."""
    x = torch.randn(4, 6, 5).to(dtype).requires_grad_()
    tensors = {name: torch.randn(4, 6, 5).to(dtype).requires_grad_() for name in around}
    y = nt.group_norm(x, 3, activation=SQUARED, **tensors)
    assert type(y.grad_fn).__name__ == "SurroundedBackward"
    wide = {name: t.detach().double().requires_grad_() for name, t in {"x": x, **tensors}.items()}
    z = F.group_norm(wide["x"], 3) + wide.get("skip", 0.0)
    want = z * by_pytorch(wide["gate"]) if around == ("gate",) else by_pytorch(z)
    dy = torch.randn_like(y)
    got, right = (
        torch.autograd.grad(y, [x, *tensors.values()], dy),
        torch.autograd.grad(want, [*wide.values()], dy.double()),
    )
    eps = torch.finfo(dtype).eps
    for a, b in zip((y, *got), (want, *right), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=16 * eps, atol=32 * eps * b.abs().max().item())


def test_two_are_told_apart():
    """One after the other, of one module after another; what explain says."""
    x = torch.randn(4, 8)
    for activation, function in ((SQUARED, by_pytorch), (CUBED, lambda z: z**3), (SQUARED, by_pytorch)):
        module = nt.LayerNorm(8, activation=activation)
        torch.testing.assert_close(module(x), function(F.layer_norm(x, (8,))), rtol=1e-4, atol=1e-5)
    assert "activation squared" in str(nt.explain(nt.layer_norm, x, (8,), activation=SQUARED))
    assert SQUARED != CUBED and nt.Activation(squared, slope_of_squared, by_pytorch) == SQUARED


def test_other_ways():
    """Second derivatives and compiled functions take PyTorch's operations; without them that is refused."""
    x = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)

    def second(call):
        (g,) = torch.autograd.grad(call(x).sum(), x, create_graph=True)
        return torch.autograd.grad(g.square().sum(), x)[0]

    torch.testing.assert_close(
        second(lambda x: nt.layer_norm(x, (8,), activation=SQUARED)),
        second(lambda x: by_pytorch(F.layer_norm(x, (8,)))),
    )
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: nt.layer_norm(x, (8,), activation=SQUARED), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), by_pytorch(F.layer_norm(x, (8,))))
    with pytest.raises(NotImplementedError, match=r"Activation\(cubed, ...\) has no function"):
        second(lambda x: nt.layer_norm(x, (8,), activation=CUBED))


def test_what_is_refused():
    """What is neither a name nor an Activation, and says which there are."""
    with pytest.raises(ValueError, match=f"activation is one of {ACTIVATIONS[0]}.*, or an Activation, not 'no_such'"):
        nt.layer_norm(torch.randn(2, 8), (8,), activation="no_such")


COMPILED = """
import torch, triton, triton.language as tl
from normtriton.perf.count import codegen
from normtriton.perf.count.launches import launches_of
from normtriton.perf.cases.targets import H100
import normtriton as nt
from normtriton import functional

@triton.jit
def act(z):
    return {value}

@triton.jit
def slope(z):
    return 2.0 * z

x = torch.empty(64, 512, device="meta")
call = functional.layer_norm_call(x, (512,), None, None, 1e-5)
stages = call.problem.stages._replace(activation=nt.Activation(act, slope))
call = call._replace(problem=call.problem._replace(stages=stages))
launches = launches_of(call, x, None, None, codegen.planned_for("sm_90"))
for target in ("sm_80", "gfx942"):
    for direction in launches.values():
        for step in direction:
            kernel = codegen.compile_launch(step, target)
            assert codegen.read_code(kernel).stack == 0
            print(target, kernel.hash, codegen.compile_key(step, target))
"""


def test_compiled(tmp_path):
    """For every kind of target without a spill; another source is another kernel, where caches look."""
    said = []
    for i, value in enumerate(("z * z", "z * z + 1.0")):
        (script := tmp_path / f"same_{i}.py").write_text(COMPILED.format(value=value))
        env = os.environ | {"TRITON_INTERPRET": "0"}
        said.append(
            subprocess.run([sys.executable, script], check=True, capture_output=True, text=True, env=env).stdout
        )
    first, other = (text.splitlines() for text in said)
    assert len(first) == 4 and all(a != b for a, b in zip(first, other, strict=True))
