"""A mask, and a scale of the input before the norm: of every norm, in every way; what is refused."""

import os
import re
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from normtriton.perf.cases.oracle import of_those_that
from torch.func import grad, vmap

import normtriton as nt
from normtriton.autograd.surrounded import NAMES
from normtriton.runtime import launch

#: The axes, those that share statistics, those of the parameters, and the input's shape.
NORMS = {
    "layer": ("b t d", "d", "d", (3, 5, 8)),
    "batch": ("n c *s", "n s", "c", (3, 6, 4, 2)),
    "instance": ("n c *s", "s", "c", (3, 6, 4, 2)),
    "group": ("n (g k) *s", "k s", "g k", (3, 6, 4, 2)),
}
SIZES = {"group": {"g": 3}}


def by_hand(name, x, w, b, mask):
    """The norm of the elements that a mask lets through, in plain operations."""
    split = x.reshape(3, 3, 2, *x.shape[2:]) if name.startswith("group") else x
    there = mask.expand(x.shape).reshape(split.shape)
    dims = {"layer": (2,), "batch": (0, 2, 3), "instance": (2, 3), "group": (2, 3, 4), "groups": (2, 3)}[name]
    count = there.sum(dims, keepdim=True).clamp(min=1)
    mean = torch.where(there, split, 0.0).sum(dims, keepdim=True) / count
    deviation = torch.where(there, split - mean, 0.0)
    y = (deviation / (deviation.square().sum(dims, keepdim=True) / count + 1e-5).sqrt()).reshape(x.shape)
    spread = (lambda p: p) if name == "layer" else lambda p: p.reshape(-1, *[1] * (x.dim() - 2))
    return torch.where(mask, y * spread(w) + spread(b), 0.0)


def operands(name, dtype=torch.float32):
    """(x, weight, bias, mask); what the mask leaves out is NaN, and of the first sample it leaves nothing."""
    shape = NORMS[name][3]
    x = torch.randn(shape) + 2
    mask = torch.rand(shape if name == "layer" else (shape[0], 1, *shape[2:])) > 0.4
    mask[0] = False
    x = torch.where(mask, x, torch.nan).to(dtype).requires_grad_()
    features = shape[-1] if name == "layer" else shape[1]
    return x, *(torch.randn(features).to(dtype).requires_grad_() for _ in range(2)), mask


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", NORMS)
def test_every_norm(name, dtype, last):
    """Statistics are of what takes part; what does not gives 0, and gets no gradient, whatever it holds."""
    x, w, b, mask = operands(name, dtype)
    if last and x.dim() == 4:
        x = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    axes, over, affine, _ = NORMS[name]
    y = nt.normalize(x, axes, over=over, affine=affine, weight=w, bias=b, mask=mask, **SIZES.get(name, {}))
    assert type(y.grad_fn).__name__ == "SurroundedBackward"
    wide = [t.detach().double().requires_grad_() for t in (x.nan_to_num(5.0), w, b)]
    want = by_hand(name, *wide, mask)
    dy = torch.randn_like(y)
    found = (y, *torch.autograd.grad(y, (x, w, b), dy))
    right = (want, *torch.autograd.grad(want, wide, dy.double()))
    eps = torch.finfo(dtype).eps
    for got, exact in zip(found, right, strict=True):
        torch.testing.assert_close(got.double(), exact, rtol=12 * eps, atol=24 * eps * exact.abs().max().item())
    assert not y[~mask.expand(y.shape)].any() and not found[1][~mask.expand(y.shape)].any()


def test_running_statistics():
    """Batch norm's follow the mask: momentum, the count that is unbiased by, and channels with nothing left."""
    x = torch.randn(4, 3, 10)
    mask = torch.rand(4, 3, 10) > 0.5
    mask[:, 1] = False
    mean, var = torch.randn(3), torch.rand(3) + 0.5
    before = mean.clone(), var.clone()
    nt.batch_norm(x, mean, var, training=True, mask=mask, momentum=0.3)
    for c in (0, 2):
        some = x[:, c][mask[:, c]]
        torch.testing.assert_close(mean[c], 0.7 * before[0][c] + 0.3 * some.mean())
        torch.testing.assert_close(var[c], 0.7 * before[1][c] + 0.3 * some.var())
    assert mean[1] == before[0][1] and var[1] == before[1][1]
    module = nt.BatchNorm1d(3)
    module(x, mask=mask)
    assert module.num_batches_tracked == 1 and module.running_mean[1] == 0
    y = module.eval()(x, mask=mask)
    want = torch.where(mask, F.batch_norm(x, module.running_mean, module.running_var), 0.0)
    torch.testing.assert_close(y, want)


def test_padding_on_the_left():
    """A first tile, and a first part, of no elements cost a large mean no digits."""
    x = torch.randn(2, 3, 40000, dtype=torch.float64).add(1e4).float()
    x[0, :, :30000] = torch.nan
    mask = ~x[:, :1].isnan()
    y = nt.instance_norm(x, mask=mask)
    right = of_those_that(mask, x.shape)
    want = right.instance_norm(x.nan_to_num(0.0).double(), None, None, None, None, True, 0.1, 1e-5)
    torch.testing.assert_close(y.double(), torch.where(mask, want, 0.0), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("size", [8, 40000], ids=["resident", "split"])
def test_a_constant_without_eps(size):
    """What a group of one value, large and not exact in its mean, leaves is 0, wherever its first element lies."""
    x, mask = torch.full((2, 3, size), 1e4 / 3), torch.rand(2, 1, size) > 0.3
    mask[..., : size // 3] = False
    x = torch.where(mask, x, torch.nan)
    y = nt.instance_norm(x, eps=0.0, mask=mask)
    assert not y.any()  # as PyTorch's on a CPU without a mask
    x[..., -1], mask[..., -1] = 1e4 / 3 + 1, True
    y = nt.instance_norm(x, eps=0.0, mask=mask)
    want = of_those_that(mask, x.shape).instance_norm(x.nan_to_num(0.0).double(), None, None, None, None, True, 0.1, 0)
    torch.testing.assert_close(y.double(), torch.where(mask, want, 0.0), rtol=2e-4, atol=2e-6)


def test_lengths():
    """So many first elements along an axis."""
    x, lengths = torch.randn(3, 5, 4), torch.tensor([2, 0, 5])
    y = nt.normalize(x, "b t d", over="t", lengths=(lengths, "b t"))
    for i, length in enumerate(lengths.tolist()):
        want = F.pad(F.instance_norm(x[i : i + 1, :length].mT) if length else x.new_zeros(1, 4, 0), (0, 5 - length))
        torch.testing.assert_close(y[i : i + 1].mT, want)
    with_mask = nt.normalize(x, "b t d", over="t", mask=(torch.arange(5) < lengths[:, None], "b t"))
    assert torch.equal(y, with_mask)
    assert nt.explain(nt.normalize, x, "b t d", over="t", lengths=(lengths, "b t")).around == ("mask",)


@pytest.mark.parametrize("around", [("mask",), ("x_scale",), ("x_scale", "residual"), NAMES], ids="-".join)
def test_other_ways(around):
    """Second derivatives, a batch of calls, and PyTorch's operations on a CPU give the same."""
    x = torch.randn(3, 6, 4, dtype=torch.float64, requires_grad=True)
    whole = {name: torch.randn_like(x, requires_grad=True) for name in ("residual", "skip", "gate")}
    every = whole | {"x_scale": torch.randn(6, 1, dtype=torch.float64, requires_grad=True)}
    every["mask"] = torch.rand(3, 1, 4) > 0.3
    given = {name: every[name] for name in around}
    leaves = [x, *(t for t in given.values() if t.requires_grad)]

    def norm(x, **around):
        y = nt.group_norm(x, 3, activation="silu", **around)
        return sum(t.square().sum() for t in y) if isinstance(y, tuple) else y.square().sum()

    def call(x, *others):
        names = [name for name in around if name != "mask"]
        return norm(x, **dict(zip(names, others, strict=True)), **({"mask": given["mask"]} if "mask" in around else {}))

    def twice(call):
        gradients = torch.autograd.grad(call(*leaves), leaves, create_graph=True)
        return *gradients, *torch.autograd.grad(sum(t.square().sum() for t in gradients), leaves)

    def written_out(x, *others):
        t = dict(zip([name for name in around if name != "mask"], others, strict=True))
        u = x * t.get("x_scale", 1.0) + t.get("residual", 0.0)
        if "mask" in around:
            z = by_hand("groups", u, x.new_ones(6), x.new_zeros(6), given["mask"])
        else:
            z = F.group_norm(u, 3)
        z = z + t.get("skip", 0.0)
        y = z * F.silu(t["gate"]) if "gate" in around else F.silu(z)
        y = torch.where(given["mask"], y, 0.0) if "mask" in around else y
        return y.square().sum() + (u.square().sum() if "residual" in around else 0.0)

    torch.testing.assert_close(twice(call), twice(written_out))
    xs = torch.randn(2, *x.shape, dtype=torch.float64)
    got = vmap(grad(call), (0, *[None] * (len(leaves) - 1)))(xs, *leaves[1:])
    for i in range(2):
        (want,) = torch.autograd.grad(call(leaf := xs[i].clone().requires_grad_(), *leaves[1:]), leaf)
        torch.testing.assert_close(got[i], want)


def test_without_kernels():
    """On a CPU outside the interpreter PyTorch's operations compute both, running statistics too."""
    code = """
import torch, normtriton as nt
x = torch.randn(4, 3, 10); mask = torch.rand(4, 1, 10) > 0.5; s = torch.randn(3, 1, requires_grad=True)
m = nt.BatchNorm1d(3)
y = m(torch.where(mask, x, torch.nan), mask=mask, x_scale=s)
some = (x * s).transpose(0, 1)[mask.transpose(0, 1).expand(3, 4, 10)].view(3, -1)
torch.testing.assert_close(m.running_mean, 0.1 * some.mean(1).detach())
torch.testing.assert_close(m.running_var, 0.9 + 0.1 * some.var(1).detach())
want = (some - some.mean(1, keepdim=True)) / (some.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
torch.testing.assert_close(y.transpose(0, 1)[mask.transpose(0, 1).expand(3, 4, 10)].view(3, -1), want)
assert torch.autograd.grad(y.square().sum(), s)[0].isfinite().all() and m.num_batches_tracked == 1
"""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, env=env)


@pytest.mark.parametrize("shape", [(6, 1), (1,), (3, 1, 1), (3, 6, 4), (6,)], ids=str)
def test_a_scale_of_each_kind(shape):
    """Of each channel, sample, element, or of all; its gradient, and that of the input, with and without a residual."""
    x, r, s = (torch.randn(size, requires_grad=True) for size in ((3, 6, 4), (3, 6, 4), shape))
    spread = s[:, None] if shape == (6,) else s
    for residual in (None, r):
        y = nt.group_norm(x, 2, x_scale=s, residual=residual)
        u = x * spread if residual is None else x * spread + residual
        want = F.group_norm(u, 2)
        y, total = (y, None) if residual is None else y
        if total is not None:
            torch.testing.assert_close(total, u)
        dy = torch.randn_like(x)
        leaves = [t for t in (x, s, residual) if t is not None]
        got, right = (torch.autograd.grad(out, leaves, dy) for out in (y, want))
        torch.testing.assert_close((y, got), (want, right), rtol=1e-4, atol=1e-4)
        for i, leaf in enumerate(leaves):  # alone
            alone = [t if j == i else t.detach() for j, t in enumerate(leaves)]
            y = nt.group_norm(alone[0], 2, x_scale=alone[1], residual=None if residual is None else alone[2])
            y = y if residual is None else y[0]
            torch.testing.assert_close(torch.autograd.grad(y, leaf, dy)[0], got[i])


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize(
    "shape", [(3, 6, 1, 1), (3, 1, 1, 1), (1, 6, 1, 1), (1, 1, 5, 8), (3, 6, 5, 8), (3, 1, 1, 8)], ids=str
)
@pytest.mark.parametrize("name", ["batch", "instance", "group"])
def test_a_mask_of_each_kind(name, shape, last):
    """Of each channel, sample, position or element: loaded once a group, or with the tile."""
    x, w, b, mask = torch.randn(3, 6, 5, 8), torch.randn(6), torch.randn(6), torch.rand(shape) > 0.4
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    axes, over, affine, _ = NORMS[name]
    leaves = [t.requires_grad_() for t in (x, w, b)]
    y = nt.normalize(x, axes, over=over, affine=affine, weight=w, bias=b, mask=mask, **SIZES.get(name, {}))
    wide = [t.detach().double().requires_grad_() for t in leaves]
    want, dy = by_hand(name, *wide, mask), torch.randn_like(y)
    got, right = torch.autograd.grad(y, leaves, dy), torch.autograd.grad(want, wide, dy.double())
    for found, exact in zip((y, *got), (want, *right), strict=True):
        torch.testing.assert_close(found.double(), exact, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("shape", "strides", "reduced", "vector"),
    [
        ((4, 6, 64), (384, 64, 1), True, 8),
        ((4, 1, 64), (64, 64, 1), True, 8),
        ((4, 6, 1), (6, 1, 1), False, 1),  # of tokens
        ((4, 6, 64), (390, 65, 1), True, 1),  # rows that start anywhere
        ((4, 6, 64), (384, 1, 6), True, 1),
    ],
    ids=["whole", "spread", "tokens", "odd-rows", "turned"],
)
def test_how_a_mask_is_loaded(shape, strides, reduced, vector):
    """As many elements at once as of x, where they lie side by side; once a group, where it is constant within one."""
    x = torch.empty(4, 6, 64, dtype=torch.bfloat16, device="meta")
    mask = torch.empty_strided(shape, strides, dtype=torch.bool, device="meta")
    for direction in nt.explain(nt.layer_norm, x, (64,), mask=mask)[3:5]:
        plan = direction.schedule.main.plan
        assert (plan.masked, plan.mask_reduced, plan.mask_vector, plan.vector) == (True, reduced, vector, 8)


def test_the_residual_alone_twice():
    """A second derivative by the residual, where nothing that x is made of wants one."""
    x, s = torch.randn(3, 8, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    r = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    calls = (
        lambda: nt.layer_norm(x, (8,), x_scale=s, residual=r)[0],
        lambda: F.layer_norm(x * s + r, (8,)),
    )
    twice = []
    for call in calls:
        (g,) = torch.autograd.grad(call().pow(3).sum(), r, create_graph=True)
        twice.append(torch.autograd.grad(g.square().sum(), r)[0])
    torch.testing.assert_close(*twice)


def test_launches(monkeypatch):
    """A mask takes none of its own; the gradient of a scale takes two."""
    ran, run = [], launch._run
    monkeypatch.setattr(launch, "_run", lambda step, *args: (ran.append(step.kernel), run(step, *args)))
    x, s = torch.randn(3, 6, 4, requires_grad=True), torch.randn(6, 1, requires_grad=True)
    y = nt.instance_norm(x, mask=torch.rand(3, 1, 4) > 0.5)
    torch.autograd.grad(y.sum(), x)
    assert ran == ["forward", "backward"]
    ran.clear()
    torch.autograd.grad(nt.instance_norm(x, x_scale=s).sum(), (x, s))
    assert ran == ["forward", "backward", "backward", "sum_parts"]


#: Arguments after x, (3, 6, 4), that PyTorch's functions refuse.
WRONG = {
    "layer_norm": ((9,),),
    "rms_norm": ((9,),),
    "group_norm": (4,),
    "batch_norm": (torch.zeros(5), torch.ones(5)),
    "instance_norm": (None, None, torch.ones(5)),
}


def test_what_is_refused():
    """In words that name the values, before anything runs."""
    x, mean, var = torch.randn(3, 6, 4), torch.zeros(6), torch.ones(6)
    good = torch.ones(3, 1, 4, dtype=torch.bool)
    with pytest.raises(TypeError, match=r"mask must be a Tensor of torch\.bool, not torch\.float32"):
        nt.instance_norm(x, mask=good.float())
    with pytest.raises(RuntimeError, match=r"mask of shape \(3, 4\) does not broadcast .* \(3, 6, 4\)"):
        nt.instance_norm(x, mask=good[:, 0])
    with pytest.raises(RuntimeError, match=r"x_scale of shape \(5,\) does not broadcast"):
        nt.instance_norm(x, x_scale=torch.ones(5))
    with pytest.raises(NotImplementedError, match="running statistics are not updated by groups with a mask"):
        nt.instance_norm(x, mean, var, mask=good)
    assert not mean.any()
    for around in ({"mask": good}, {"quantize": "int8", "quantize_scale": "group"}):  # PyTorch's words, as without
        for name, args in WRONG.items():
            with pytest.raises(Exception) as theirs:  # noqa: PT011  the next line compares them
                getattr(F, name)(x, *args)
            with pytest.raises(type(theirs.value), match=re.escape(str(theirs.value))):
                getattr(nt, name)(x, *args, **around)
    words = ("n c s", "s")
    with pytest.raises(ValueError, match="mask and lengths say the same"):
        nt.normalize(x, words[0], over=words[1], mask=good, lengths=(torch.ones(3, dtype=torch.int64), "n s"))
    with pytest.raises(TypeError, match=r"lengths must be integers, not torch\.float32"):
        nt.normalize(x, words[0], over=words[1], lengths=(torch.ones(3), "n s"))
    with pytest.raises(TypeError, match="'lengths' must be a pair"):
        nt.normalize(x, words[0], over=words[1], lengths=torch.ones(3))
    with pytest.raises(ValueError, match="lengths needs the axis"):
        nt.normalize(x, words[0], over=words[1], lengths=(torch.ones(3, dtype=torch.int64), ""))
