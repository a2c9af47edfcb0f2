"""Faults that other libraries shipped in norms with something around them: named, so that they are never ours."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

import normtriton as nt


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_chained_modulated_norms(compiled):
    """pytorch/pytorch#193061: the gradient of one table that scales and shifts two norms in a chain, over the batch."""
    width = 16
    table = torch.randn(4, width, requires_grad=True)
    x, mix = torch.randn(1, 6, width, requires_grad=True), torch.randn(width, width)

    def chain(norm, x, table, mix):
        shift1, scale1, shift2, scale2 = table[None].unbind(1)
        y = x + norm(x, scale1, shift1) @ mix
        return y + norm(y, scale2, shift2)

    def ours(x, scale, shift):
        return nt.layer_norm(x, (width,), scale=scale, shift=shift)

    def by_hand(x, scale, shift):
        return F.layer_norm(x, (width,)) * (1 + scale) + shift

    run = lambda x, table: chain(ours, x, table, mix)
    if compiled:
        torch._dynamo.reset()
        run = torch.compile(run, backend="aot_eager", fullgraph=True)
    wide = [t.detach().double().requires_grad_() for t in (x, table)]
    y, want = run(x, table), chain(by_hand, *wide, mix.double())
    dy = torch.randn_like(y)
    got, right = torch.autograd.grad(y, (x, table), dy), torch.autograd.grad(want, wide, dy.double())
    torch.testing.assert_close([t.double() for t in (y, *got)], [want, *right], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("first", [False, True], ids=["gate-last", "gate-first"])
def test_a_gated_norm_before_a_linear_layer(first):
    """fla-org/flash-linear-attention#1071 and #63: the linear layer's gradient is of what was gated, in both orders."""
    x, gate = (torch.randn(5, 16, requires_grad=True) for _ in range(2))
    with torch.no_grad():
        gate[0] = 0.0  # nothing passes, so nothing of these rows may reach the gradient of the layer
    norm, linear = nt.RMSNorm(16, eps=1e-6, activation="silu", gate_first=first), nn.Linear(16, 4, bias=False)
    leaves = [x, gate, norm.weight, linear.weight]
    y = linear(norm(x, gate=gate))
    wide = [t.detach().double().requires_grad_() for t in leaves]
    u = wide[0] * F.silu(wide[1]) if first else wide[0]
    z = F.rms_norm(u, (16,), wide[2], 1e-6)
    want = F.linear(z if first else z * F.silu(wide[1]), wide[3])
    dy = torch.randn_like(y)
    got, right = torch.autograd.grad(y, leaves, dy), torch.autograd.grad(want, wide, dy.double())
    # a row of zeros has a derivative of 1 / sqrt(eps)
    torch.testing.assert_close(
        [t.double() for t in (y, *got)], [want, *right], rtol=1e-4, atol=1e-4 if not first else 1e-2
    )
