"""A modulation, z * (1 + scale) + shift: of every norm, along whichever axes, in every way; what is refused."""

import warnings

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch.func import jvp, vmap

import normtriton as nt
from normtriton.runtime import launch


def channel(t):
    """One number a channel, as it broadcasts against images."""
    return t[:, None, None]


#: The norm, what PyTorch computes of it, the input's shape and that of its parameters.
NORMS = {
    "layer": (nt.layer_norm, lambda x, w, b: F.layer_norm(x, (8,), w, b), (3, 5, 8), 8),
    "rms": (nt.rms_norm, lambda x, w, _b: F.rms_norm(x, (8,), w, 1e-5), (3, 5, 8), 8),
    "batch": (nt.batch_norm, lambda x, w, b: F.batch_norm(x, None, None, w, b, True), (3, 6, 4, 2), 6),
    "instance": (nt.instance_norm, lambda x, w, b: F.instance_norm(x, None, None, w, b), (3, 6, 4, 2), 6),
    "group": (nt.group_norm, lambda x, w, b: F.group_norm(x, 3, w, b), (3, 6, 4, 2), 6),
    "channels": (
        lambda x, w, b, **a: nt.layer_norm(x, (6,), w, b, dim=1, **a),
        lambda x, w, b: F.layer_norm(x.movedim(1, -1), (6,), w, b).movedim(-1, 1), (3, 6, 4, 2), 6,
    ),
}  # fmt: skip


def ours(name, x, w, b, **around):
    function = NORMS[name][0]
    given = {
        "layer": ((8,), w, b), "rms": ((8,), w, 1e-5), "group": (3, w, b), "channels": (w, b),
        "batch": (None, None, w, b, True), "instance": (None, None, w, b),
    }  # fmt: skip
    return function(x, *given[name], **around)


def shapes_of(name):
    """Of a modulation: a number for each parameter, each sample, each position, each element; of scale and of shift."""
    shape, features = NORMS[name][2:]
    parameters = (features,)
    sample = (shape[0], 1, shape[2]) if len(shape) == 3 else (*shape[:2], 1, 1)
    position = (*shape[:2], 1) if len(shape) == 3 else (shape[0], 1, *shape[2:])
    return {
        "parameters": (parameters, parameters), "sample": (sample, sample), "position": (position, position),
        "element": (shape, shape), "scale alone": (sample, None), "shift alone": (None, sample),
        "two kinds": (parameters, shape), "batch": ((shape[0], *[1] * (len(shape) - 1)), sample),
    }  # fmt: skip


def cases():
    """Every norm with every kind, in one dtype, layout and set of own parameters after another."""
    for i, name in enumerate(NORMS):
        for j, kind in enumerate(shapes_of(name)):
            dtype = ("float32", "bfloat16", "float64", "float16")[(i + j) % 4]
            own = ("none", "both", "weight")[(i + j // 2) % 3]
            yield pytest.param(name, kind, dtype, own, j % 2 == 1, id=f"{name}-{kind}-{dtype}-{own}".replace(" ", "-"))


def tensors(name, kind, dtype, own, last):
    """(x, weight, bias, scale, shift), each wanting a gradient, or None."""
    shape, features = NORMS[name][2:]
    torch.manual_seed(0)
    x = torch.randn(shape).to(dtype)
    if last and x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    weight = torch.randn(features).to(dtype) if own != "none" else None
    bias = torch.randn(features).to(dtype) if own == "both" and name != "rms" else None
    modulation = (None if size is None else torch.randn(size).to(dtype) for size in shapes_of(name)[kind])
    return [None if t is None else t.detach().requires_grad_() for t in (x, weight, bias, *modulation)]


def by_pytorch(name, x, w, b, s, t):
    """The composition."""
    apart = lambda p: channel(p) if p.dim() == 1 and x.dim() == 4 else p
    z = NORMS[name][1](x, w, b)
    z = z if s is None else z * (1 + apart(s))
    return z if t is None else z + apart(t)


@pytest.mark.parametrize(("name", "kind", "dtype", "own", "last"), list(cases()))
def test_every_norm(name, kind, dtype, own, last):
    """Result and all gradients are those of the composition in float64; the kernels compute them."""
    given = tensors(name, kind, getattr(torch, dtype), own, last)
    wide = [None if t is None else t.detach().double().requires_grad_() for t in given]
    x, w, b, s, t = given
    y = ours(name, x, w, b, scale=s, shift=t)
    want = by_pytorch(name, *wide)
    assert type(y.grad_fn).__name__ == "SurroundedBackward" and y.dtype == x.dtype
    dy = torch.randn_like(y)
    leaves, wanted = ([p for p in ps if p is not None] for ps in (given, wide))
    found = [y, *torch.autograd.grad(y, leaves, dy)]
    right = [want, *torch.autograd.grad(want, wanted, dy.double())]
    eps = torch.finfo(x.dtype).eps
    for leaf, got, exact in zip([x, *leaves], found, right, strict=True):
        assert got.dtype == leaf.dtype and got.shape == exact.shape
        close = max(8 * eps, 1e-6 if x.dtype == torch.float32 else 0.0)
        torch.testing.assert_close(got.double(), exact, rtol=close, atol=close * exact.abs().max().item())


@pytest.mark.parametrize("own", [False, True], ids=["bare", "affine"])
def test_given_statistics(own):
    """In evaluation, with statistics that are given; in training they are updated as ever."""
    x, s, t = torch.randn(4, 6, 5, requires_grad=True), *(torch.randn(4, 6, 1, requires_grad=True) for _ in range(2))
    w, b = (torch.randn(6, requires_grad=True), torch.randn(6, requires_grad=True)) if own else (None, None)
    leaves = [p for p in (x, s, t, w, b) if p is not None]
    for training in (False, True):
        mean, var = torch.randn(6), torch.rand(6) + 0.5
        theirs = mean.clone(), var.clone()
        y = nt.batch_norm(x, mean, var, w, b, training, scale=s, shift=t, activation="relu")
        want = F.relu(F.batch_norm(x, *theirs, w, b, training) * (1 + s) + t)
        dy = torch.randn_like(x)
        got, right = (torch.autograd.grad(out, leaves, dy) for out in (y, want))
        torch.testing.assert_close((y, got, mean, var), (want, right, *theirs), rtol=1e-5, atol=1e-5)
    mean, var = torch.zeros(6), torch.ones(6)
    y = nt.instance_norm(x, mean, var, w, b, scale=s, shift=t)
    torch.testing.assert_close(y, F.instance_norm(x, None, None, w, b) * (1 + s) + t)
    assert mean.any()


def test_pairs():
    """A tensor and the axes that it varies along, in any order; of a part of a split dimension too."""
    x, s, t = torch.randn(2, 3, 8), torch.randn(8, 2), torch.randn(2, 3, 8)
    y = nt.normalize(x, "b t d", over="d", scale=(s, "d b"), shift=(t, "b t d"))
    torch.testing.assert_close(y, F.layer_norm(x, (8,)) * (1 + s.T[:, None]) + t)
    w, h = torch.randn(4), torch.randn(2, 2)
    y = nt.normalize(x, "b t (h d)", over="d", affine="d", h=2, weight=w, scale=(h, "b h"), shift=(w, "d"))
    want = F.layer_norm(x.unflatten(-1, (2, 4)), (4,), w) * (1 + h[:, None, :, None]) + w
    torch.testing.assert_close(y, want.flatten(-2))


def test_what_else_surrounds_it():
    """After the linear map and before skip, gate and activation; of what a residual was added to."""
    x, r, k, g = (torch.randn(3, 5, 8, requires_grad=True) for _ in range(4))
    s, t, w = (torch.randn(*size, requires_grad=True) for size in ((3, 1, 8), (3, 1, 8), (8,)))
    around = {"residual": r, "skip": k, "gate": g, "activation": "silu", "offset": 1.0}
    y, u = nt.rms_norm(x, (8,), w, 1e-5, scale=s, shift=t, **around)
    want = (F.rms_norm(x + r, (8,), 1 + w, 1e-5) * (1 + s) + t + k) * F.silu(g)
    dy, leaves = torch.randn_like(x), (x, r, k, g, s, t, w)
    got, right = (torch.autograd.grad(out, leaves, dy) for out in (y, want))
    torch.testing.assert_close((y, u, got), (want, x + r, right), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", ["compile", "vmap", "jvp", "second"])
def test_every_way(way):
    """Whatever watches takes the plain norm and PyTorch's operations."""
    x, w, b, s, t = (
        torch.randn(size, dtype=torch.float64, requires_grad=True) for size in [(2, 3, 4), 4, 4, (2, 1, 4), (2, 3, 4)]
    )

    def call(x, w, b, s, t):
        return nt.layer_norm(x, (4,), w, b, scale=s, shift=t, activation="tanh")

    def composition(x, w, b, s, t):
        return torch.tanh(F.layer_norm(x, (4,), w, b) * (1 + s) + t)

    given = (x, w, b, s, t)
    if way == "compile":
        torch.testing.assert_close(
            torch.compile(call, backend="aot_eager", fullgraph=True)(*given), composition(*given)
        )
    elif way == "vmap":
        batch = [torch.stack([p.detach(), 2 * p.detach()]) for p in given]
        torch.testing.assert_close(vmap(call)(*batch), vmap(composition)(*batch))
    elif way == "jvp":
        plain = tuple(p.detach() for p in given)
        with warnings.catch_warnings():  # importing forward mode says that `torch.jit.script` is deprecated
            warnings.simplefilter("ignore", DeprecationWarning)
            got, right = (jvp(f, plain, tuple(p.cos() for p in plain)) for f in (call, composition))
        torch.testing.assert_close(got, right)
    else:
        assert torch.autograd.gradgradcheck(call, given, fast_mode=True)


def test_one_launch(monkeypatch):
    """Of adaLN, whose scale and shift are the only parameters, as of a norm alone; a frozen one needs no more."""
    ran, run = [], launch._run
    monkeypatch.setattr(launch, "_run", lambda step, *args: (ran.append(step.kernel), run(step, *args)))
    x, s, t = (torch.randn(*size, requires_grad=True) for size in ((2, 3, 8), (2, 1, 8), (2, 1, 8)))
    nt.LayerNorm(8, elementwise_affine=False)(x, scale=s, shift=t).square().sum().backward()
    assert ran == ["forward", "backward"]


X = torch.randn(4, 6, 5)


@pytest.mark.parametrize(
    ("around", "error", "said"),
    [
        ({"scale": torch.ones(4, 6)}, RuntimeError, r"scale of shape \(4, 6\) does not broadcast against the input"),
        ({"shift": torch.ones(2, 1, 5)}, RuntimeError, r"shift of shape \(2, 1, 5\) does not broadcast"),
        ({"scale": 1.0}, TypeError, "argument 'scale' must be Tensor, not float"),
        ({"shift": torch.ones(5).long()}, RuntimeError, "shift is torch.int64"),
    ],
)
def test_what_is_refused(around, error, said):
    """In the same words by functions, modules and `explain`."""
    for function in (
        lambda **a: nt.layer_norm(X, (5,), **a),
        lambda **a: nt.normalize(X, "n c s", over="s", **a),
        lambda **a: nt.LayerNorm(5)(X, **a),
        lambda **a: nt.explain(nt.layer_norm, X, (5,), **a),
    ):
        with pytest.raises(error, match=said):
            function(**around)


def test_pairs_that_are_refused():
    """Errors name the tensor, its shape and the axes."""
    with pytest.raises(RuntimeError, match=r"scale of shape \(4, 5\) does not vary along 'n c', which is \(4, 6\)"):
        nt.normalize(X, "n c s", over="s", scale=(torch.ones(4, 5), "n c"))
    with pytest.raises(ValueError, match="'q' is none of the axes"):
        nt.normalize(X, "n c s", over="s", shift=(torch.ones(4), "q"))
    with pytest.raises(TypeError, match="argument 'scale' must be a Tensor, or a pair of one and its axes"):
        nt.normalize(X, "n c s", over="s", scale=(X,))


def test_explained():
    """The modulation is named; of adaLN each tensor is moved once."""
    x, s = torch.empty(16, 256, 1152, device="meta"), torch.empty(16, 1, 1152, device="meta")
    explained = nt.explain(nt.layer_norm, x, (1152,), scale=s, shift=s)
    assert "in the same pass: scale, shift" in str(explained)
    assert (
        explained.forward.moved == explained.forward.compulsory == 2 * x.numel() * 4 + 2 * s.numel() * 4 + 16 * 256 * 8
    )
    paired = nt.explain(nt.normalize, x, "b t d", over="d", scale=(s[:, 0], "b d"), shift=(s[:, 0], "b d"))
    assert paired.forward.moved == explained.forward.moved
