"""Any normalization by named axes: every pattern against the textbook, by every way, and what is refused."""

import copy
import os
import pickle
import subprocess
import sys
import warnings
from math import prod

import pytest
import torch
from cases import lay_out
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import EPS32, close
from test_library import frames
from torch import nn
from torch.func import grad, jvp, vmap

import normtriton as nt
from normtriton.autograd.composed import composed
from normtriton.planning import Problem, norms
from normtriton.planning.norms import described


def textbook(x, dims, over, affine, weight, bias, eps=1e-5, centered=True):
    """In float64: ``dims`` is a list of (name, size) for every dimension of x."""
    axes = [axis for dim in dims for axis in dim]
    names = [name for name, _ in axes]
    view = x.double().reshape([size for _, size in axes])
    shared = [i for i, name in enumerate(names) if name in over]
    mean = view.mean(shared, keepdim=True) if centered else torch.zeros((), dtype=torch.float64)
    y = (view - mean) / torch.sqrt(((view - mean) ** 2).mean(shared, keepdim=True) + eps)

    def spread(p):
        p = p.double().reshape([dict(axes)[name] for name in affine])
        order = sorted(range(len(affine)), key=lambda i: names.index(affine[i]))
        return p.permute(order).reshape([size if name in affine else 1 for name, size in axes])

    y = y if weight is None else y * spread(weight)
    y = y if bias is None else y + spread(bias)
    return y.reshape(x.shape)


def check(call, tensors, dims, over, affine, centered=True, eps=1e-5):
    """A call of (x, weight, bias) and its gradients are the textbook's."""
    x, weight, bias = leaves = [t if t is None else t.detach().requires_grad_() for t in tensors]
    y = call(x, weight, bias)
    wide = [t if t is None else t.detach().double().requires_grad_() for t in leaves]
    want = textbook(wide[0], dims, over, affine, *wide[1:], eps, centered)
    dy = torch.randn(y.shape).to(x.dtype)
    there = [i for i, t in enumerate(leaves) if t is not None]
    got = torch.autograd.grad(y, [leaves[i] for i in there], dy)
    expected = torch.autograd.grad(want, [wide[i] for i in there], dy.double())
    assert y.shape == x.shape and y.dtype == x.dtype
    unit = 2.0**-53 if x.dtype == torch.float64 else EPS32
    close(y, want, unit=unit, slack=8)
    for gradient, right, i in zip(got, expected, there, strict=True):
        assert gradient.shape == leaves[i].shape and gradient.dtype == leaves[i].dtype
        terms = 1 if i == 0 else (x.numel() / max(leaves[i].numel(), 1)) ** 0.5
        close(gradient, right, unit=unit, slack=64, scale=max(right.abs().max().item(), 4.0 * terms))


#: (pattern, keywords, shape of x, dims by name, parameters' shapes)
PATTERNS = {
    "batch": ("n c *s", {"over": "n s", "affine": "c"}, (4, 6, 5, 3), "n=4|c=6|s=5|t=3", (6,)),
    "group": ("n (g k) *s", {"over": "k s", "affine": "g k", "g": 3}, (2, 6, 5), "n=2|g=3 k=2|s=5", (6,)),
    "group-by-size": ("n (g k) *s", {"over": "s k", "affine": "g k", "k": 2}, (2, 6, 5), "n=2|g=3 k=2|s=5", (3, 2)),
    "group-by-name": ("n (g k) *s", {"over": "k s", "affine": "g", "g": 3}, (2, 6, 5), "n=2|g=3 k=2|s=5", (3,)),
    "channels": ("n c h w", {"over": "c", "affine": "c"}, (2, 10, 7, 5), "n=2|c=10|h=7|w=5", (10,)),
    "heads": ("b t (h d)", {"over": "d", "affine": "d", "h": 4, "center": False}, (2, 3, 32), "b=2|t=3|h=4 d=8", (8,)),
    "adaptive": ("b t d", {"over": "d", "affine": "b d"}, (3, 5, 8), "b=3|t=5|d=8", (3, 8)),
    "transposed": ("b t d", {"over": "d", "affine": "d b"}, (3, 5, 8), "b=3|t=5|d=8", (8, 3)),
    "each-element": ("b t d", {"over": "d", "affine": "b t d"}, (3, 5, 8), "b=3|t=5|d=8", (3, 5, 8)),
    "ghost": ("(r n) c *s", {"over": "n s", "affine": "c", "r": 2}, (6, 3, 4), "r=2 n=3|c=3|s=4", (3,)),
    "weights": ("o i *k", {"over": "i k"}, (6, 4, 3, 3), "o=6|i=4|k=3|l=3", None),
    "thirds": ("n (a b c)", {"over": "b", "affine": "a c", "a": 2, "b": 3}, (4, 24), "n=4|a=2 b=3 c=4", (2, 4)),
    "last-two": ("*m *d", {"over": "d", "affine": "d", "d": 2}, (5, 4, 6), "m=5|d=4|e=6", (4, 6)),
    "cells-of-one": ("(a b) (c d)", {"over": "d", "affine": "b d", "b": 6, "d": 1}, (6, 1), "a=1 b=6|c=1 d=1", (6, 1)),
    "samples-turned": ("n c t d", {"over": "d", "affine": "c d n"}, (2, 3, 4, 5), "n=2|c=3|t=4|d=5", (3, 5, 2)),
    "samples-apart": ("n c t d", {"over": "d", "affine": "n c d"}, (2, 3, 4, 5), "n=2|c=3|t=4|d=5", (2, 3, 5)),
    "all": ("*a", {"over": "a", "affine": "a"}, (5, 6), "a=5|b=6", (5, 6)),
}
STARS = {"s": "st", "k": "kl", "d": "de", "a": "ab"}


def parts(case):
    """(pattern, keywords, shape of x, dims, names shared, names that parameters vary along, their shape)."""
    pattern, keywords, shape, dims, sizes = PATTERNS[case]
    dims = [[(a.split("=")[0], int(a.split("=")[1])) for a in dim.split()] for dim in dims.split("|")]
    known = [name for dim in dims for name, _ in dim]

    def listed(names):
        starred = {name[1:] for name in pattern.split() if name.startswith("*")}
        return [x for name in names.split() for x in (STARS[name] if name in starred else name) if x in known]

    return pattern, keywords, shape, dims, listed(keywords["over"]), listed(keywords.get("affine", "")), sizes


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "sliced"])
@pytest.mark.parametrize("case", PATTERNS)
def test_every_pattern(case, layout):
    """Result and gradients, whatever the strides."""
    pattern, keywords, shape, dims, over, affine, sizes = parts(case)
    x = torch.randn(shape) + 1
    if layout == "transposed":
        x = x.permute(*reversed(range(x.dim()))).contiguous().permute(*reversed(range(x.dim())))
    elif layout == "sliced":
        x = torch.cat([x, x], -1)[..., ::2]
    parameters = (None, None) if sizes is None else (torch.randn(sizes), torch.randn(sizes))
    centered = keywords.get("center", True)
    call = lambda x, w, b: nt.normalize(x, pattern, weight=w, bias=b, **keywords)
    check(call, (x, *parameters), dims, over, affine, centered)
    by_pytorch = composed(*composition(x, pattern, keywords), None, None, None, None, 1e-5)
    close(nt.normalize(x, pattern, **keywords), by_pytorch.double(), slack=64)


def composition(x, pattern, keywords):
    """What `composed` takes of a call without parameters."""
    sizes = tuple((k, v) for k, v in keywords.items() if k not in ("over", "affine", "center"))
    norm = described(pattern, keywords["over"], None, keywords.get("center", True))
    return Problem(norm, tuple(x.shape), sizes), x


@st.composite
def calls(draw):
    """A pattern of up to five axes in up to four dimensions, any strides, over and affine any of them."""
    count = draw(st.integers(1, 5))
    names = [f"x{i}" for i in range(count)]
    sizes = {name: draw(st.sampled_from([1, 2, 3, 5, 8])) for name in names}
    dims, rest = [], names
    while rest:
        taken = draw(st.integers(1, min(2, len(rest))))
        dims.append(rest[:taken])
        rest = rest[taken:]
    over = draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    affine = draw(st.lists(st.sampled_from(names), unique=True))
    order = draw(st.permutations(range(len(dims))))
    return dims, sizes, over, affine, order, draw(st.booleans()), draw(st.sampled_from([torch.float32, torch.float64]))


@settings(max_examples=60, deadline=None)
@given(calls())
def test_any_pattern(drawn):
    """Whatever is kept and reduced, in whatever order in memory: forward and all gradients."""
    dims, sizes, over, affine, order, centered, dtype = drawn
    torch.manual_seed(0)
    pattern = " ".join(dim[0] if len(dim) == 1 else f"({' '.join(dim)})" for dim in dims)
    shape = [prod(sizes[name] for name in dim) for dim in dims]
    x = torch.randn([shape[i] for i in order], dtype=dtype).permute([order.index(i) for i in range(len(order))])
    x = (x * 2).detach()
    own = [sizes[name] for name in affine]
    weight, bias = (torch.randn(own, dtype=dtype) for _ in range(2)) if affine else (None, None)
    options = {"over": " ".join(over), "affine": " ".join(affine) or None, "center": centered, **sizes}
    options["eps"] = 0.1  # a group of two may have hardly any variance: rstd is to magnify little of what rounding left
    check(
        lambda x, w, b: nt.normalize(x, pattern, weight=w, bias=b, **options),
        (x, weight, bias),
        [[(name, sizes[name]) for name in dim] for dim in dims],
        over,
        affine,
        centered,
        eps=0.1,
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    """Parameters of any dtype beside x of another."""
    x, weight = torch.randn(2, 10, 7, 5, dtype=dtype), torch.randn(10)
    check(
        lambda x, w, b: nt.normalize(x, "n c h w", over="c", affine="c", weight=w, bias=b),
        (x, weight, weight.to(dtype)),
        [[("n", 2)], [("c", 10)], [("h", 7)], [("w", 5)]],
        ["c"],
        ["c"],
    )


def test_the_norms_are_cases():
    """The five norms in words have the same bits as their functions; a channels_last result stays channels_last."""
    w, b = torch.randn(6), torch.randn(6)
    for layout in ("contiguous", "channels_last"):
        x = lay_out(torch.randn(3, 6, 5, 4), layout)
        pairs = [
            (
                nt.normalize(x, "n c *s", over="n s", affine="c", weight=w, bias=b),
                nt.batch_norm(x, None, None, w, b, True),
            ),
            (nt.normalize(x, "n c *s", over="s", affine="c", weight=w, bias=b), nt.instance_norm(x, weight=w, bias=b)),
            (
                nt.normalize(x, "n (g k) *s", over="k s", affine="g k", g=3, weight=w, bias=b),
                nt.group_norm(x, 3, w, b),
            ),
        ]
        for ours, named in pairs:
            assert torch.equal(ours, named) and ours.stride() == x.stride()
    x = torch.randn(3, 5, 6)
    assert torch.equal(nt.normalize(x, "n t d", over="d", affine="d", weight=w, bias=b), nt.layer_norm(x, (6,), w, b))
    rms = nt.normalize(x, "*m d", over="d", affine="d", weight=w, center=False, eps=1e-6)
    assert torch.equal(rms, nt.rms_norm(x, (6,), w, 1e-6))


HEADS = {"over": "d", "affine": "d", "h": 4, "center": False}


@pytest.mark.parametrize("way", ["compile", "vmap", "grad", "jvp", "export", "second"])
def test_every_way(way):
    """Compilers and transforms see the operators, and give what plain calls give."""
    x, w = torch.randn(3, 2, 32, requires_grad=True), torch.randn(8, requires_grad=True)

    def call(x, w):
        return nt.normalize(x, "b t (h d)", weight=w, **HEADS)

    y = call(x, w)
    if way == "compile":
        torch.testing.assert_close(torch.compile(call, backend="aot_eager", fullgraph=True)(x, w), y, rtol=0, atol=0)
    elif way == "vmap":
        torch.testing.assert_close(vmap(lambda one: call(one[None], w)[0])(x), y)
    elif way == "grad":
        loss = lambda x, w: call(x, w).sin().sum()
        got = grad(loss, argnums=(0, 1))(x.detach(), w.detach())
        torch.testing.assert_close(got, torch.autograd.grad(loss(x, w), (x, w)))
    elif way == "jvp":
        with warnings.catch_warnings():  # importing forward mode says that `torch.jit.script` is deprecated
            warnings.simplefilter("ignore", DeprecationWarning)
            jvp(torch.sin, (x.detach(),), (x.detach(),))
        tangents = torch.randn_like(x), torch.randn_like(w)
        dims = [[("b", 3)], [("t", 2)], [("h", 4), ("d", 8)]]
        wide = lambda x, w: textbook(x, dims, "d", "d", w, None, centered=False)
        got = jvp(call, (x.detach(), w.detach()), tangents)[1]
        want = jvp(wide, (x.detach().double(), w.detach().double()), tuple(t.double() for t in tangents))[1]
        close(got, want, slack=64)
    elif way == "export":

        class Heads(nn.Module):
            def forward(self, x, w):
                return call(x, w)

        program = torch.export.export(Heads(), (x.detach(), w.detach()))
        torch.testing.assert_close(program.module()(x.detach(), w.detach()), y.detach(), rtol=0, atol=0)
    else:
        wide = x.detach().double().requires_grad_(), w.detach().double().requires_grad_()
        assert torch.autograd.gradgradcheck(call, wide)


def test_where_there_are_no_kernels():
    """PyTorch's operations take over in a trace, and without the interpreter; with results that differ by rounding."""
    x, w = torch.randn(3, 2, 32), torch.randn(8)
    call = lambda x, w: nt.normalize(x, "b t (h d)", weight=w, **HEADS)
    with pytest.warns(DeprecationWarning, match="torch.jit.trace"):
        traced = torch.jit.trace(call, (x, w), check_trace=False)
    assert "normtriton::" not in str(traced.graph)
    for batch in (x, torch.randn(5, 1, 32)):  # of any size
        torch.testing.assert_close(traced(batch, w), call(batch, w))
    code = (
        "import torch, normtriton as nt\n"
        "x, w = torch.randn(2, 6, 5, 4, requires_grad=True), torch.ones(6)\n"
        "want = torch.nn.functional.layer_norm(x.movedim(1, -1), (6,), w, w).movedim(-1, 1)\n"
        "ours = nt.normalize(x, 'n c h w', over='c', affine='c', weight=w, bias=w)\n"
        "for y in (ours, nt.layer_norm(x, (6,), w, w, dim=1)):\n"
        "    torch.testing.assert_close(y, want)\n"
        "y.sum().backward()\n"
        "half = nt.normalize(x.bfloat16(), 'n c h w', over='c')\n"
        "assert half.dtype == torch.bfloat16\n"
        "said = str(nt.explain(nt.normalize, x, 'n c h w', over='c'))\n"
        'assert "PyTorch\'s own operations" in said, said\n'
    )
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, env=environment)


def test_a_subclass_and_a_tracer_see_the_function():
    """`__torch_function__` and `torch.fx` are handed `normtriton.normalize` with its words."""
    seen = []

    class Loud(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            seen.append(func)
            return super().__torch_function__(func, types, args, kwargs or {})

    x = torch.randn(2, 3, 8)
    y = nt.normalize(x.as_subclass(Loud), "b t d", over="d")
    assert isinstance(y, Loud) and nt.normalize in seen
    y = nt.layer_norm(x.as_subclass(Loud), (3,), dim=1)
    assert isinstance(y, Loud) and nt.layer_norm in seen
    graph = torch.fx.symbolic_trace(lambda x: nt.normalize(x, "b t d", over="d", d=8))
    assert [node.target for node in graph.graph.nodes if node.op == "call_function"] == [nt.normalize]
    assert torch.equal(graph(x), nt.normalize(x, "b t d", over="d"))


X = torch.randn(4, 6, 5)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "said"),
    [
        ((X, "n c"), {"over": "c"}, RuntimeError, r"axes 'n c' are not those of shape \(4, 6, 5\), .* 3 dim.* not 2"),
        ((X, "n c s t"), {"over": "c"}, RuntimeError, "axes 'n c s t' are not those"),
        ((X, "n c s t *u"), {"over": "c"}, RuntimeError, r"axes 'n c s t \*u' are not those of .* not at least 4"),
        ((X, "n c c"), {"over": "c"}, ValueError, "axes 'n c c': 'c' names two of them"),
        ((X, "n c s"), {"over": "d"}, ValueError, "over='d': 'd' is none of the axes 'n c s'"),
        ((X, "ncs"), {"over": "c"}, ValueError, "none of the axes 'ncs', which is one word: spaces stand between"),
        ((X, "n c s"), {"over": ["c"]}, TypeError, "argument 'over' must be str, as \"n c\", not list"),
        ((X, "n c s"), {"over": "s", "affine": 1}, TypeError, "argument 'affine' must be str, as \"n c\", not int"),
        ((X, 3), {"over": "s"}, TypeError, "argument 'axes' must be str, as \"n c\", not int"),
        ((X, "n (a b c) s"), {"over": "s"}, ValueError, "give all sizes but one of 'a' or 'b' or 'c', as a=2"),
        ((X, "n ... s"), {"over": "s"}, ValueError, r"\*s for any number of dimensions, .* not '\.\.\.'"),
        ((X, "n c s"), {"over": "c c"}, ValueError, "over='c c': 'c' is named twice"),
        ((X, "n c s"), {"over": ""}, ValueError, "over='' names none of the axes 'n c s'"),
        ((X, "n c s"), {"over": "c", "affine": "e"}, ValueError, "affine='e': 'e' is none of the axes"),
        ((X, "n c-s s"), {"over": "c"}, ValueError, "axes 'n c-s s': a word is a name, .* not 'c-s'"),
        ((X, "n (c s"), {"over": "c"}, ValueError, r"axes 'n \(c s': a parenthesis is not closed"),
        ((X, "n () s"), {"over": "s"}, ValueError, r"axes 'n \(\) s': a word is a name"),
        ((X, "n (g k) s"), {"over": "s"}, ValueError, r"axes 'n \(g k\) s': give the size of 'g' or 'k', as g=2"),
        ((X, "n (g k) s"), {"over": "s", "g": 4}, RuntimeError, r"with g=4 do not fit dimension 1 of shape \(4, 6"),
        ((X, "n (g k) s"), {"over": "s", "g": 0}, RuntimeError, "with g=0 do not fit"),
        ((X, "n (g k) s"), {"over": "s", "g": 3, "k": 3}, RuntimeError, "with g=3, k=3 do not fit"),
        ((X, "n c s"), {"over": "s", "c": 7}, RuntimeError, "with c=7 do not fit dimension 1"),
        ((X, "n c s"), {"over": "s", "d": 7}, TypeError, "unexpected keyword argument 'd', .* none of 'n c s'"),
        ((X, "n (g k) s"), {"over": "s", "g": 3.0}, TypeError, "the size of axis 'g' must be an int, not float"),
        ((X, "*a *b"), {"over": "b"}, ValueError, r"axes '\*a \*b': the number of dimensions that '\*b' stands for"),
        ((X, "n c s"), {"over": "s", "weight": torch.ones(6)}, ValueError, "weight needs affine=, which of the axes"),
        (
            (X, "n c s"), {"over": "s", "affine": "c", "weight": torch.ones(5)}, RuntimeError,
            r"weight of shape \(5,\) does not vary along 'c', which is \(6,\) of axes 'n c s' and input",
        ),
        (
            (X, "n (g k) s"), {"over": "s", "affine": "g k", "g": 3, "bias": torch.ones(2, 3)}, RuntimeError,
            r"bias of shape \(2, 3\) does not vary along 'g k', which is \(3, 2\) or \(6,\)",
        ),
        ((X, "n c s"), {"over": "s", "eps": "small"}, TypeError, "argument 'eps' must be a number, not str"),
        (([1.0], "n"), {"over": "n"}, TypeError, "argument 'input' must be Tensor, not list"),
        ((X, "n c s"), {"over": "s", "affine": "c", "weight": [1.0]}, TypeError, "argument 'weight' must be Tensor"),
        ((X.int(), "n c s"), {"over": "s"}, NotImplementedError, "input is torch.int32, not one of float64"),
        ((X.to_sparse(), "n c s"), {"over": "s"}, NotImplementedError, "input is torch.sparse_coo, not strided"),
        (
            (X, "n c s"), {"over": "s", "affine": "c", "weight": torch.ones(6, dtype=torch.int)}, RuntimeError,
            "weight is torch.int32",
        ),
        (
            (X, "n c s"), {"over": "s", "affine": "c", "weight": torch.ones(6, device="meta")}, RuntimeError,
            "input is on cpu and weight on meta",
        ),
    ],
)  # fmt: skip
def test_what_is_refused(arguments, options, error, said):
    """With the pattern, the axis and the shape in the message; `explain` raises the same."""
    for function in (nt.normalize, lambda *a, **k: nt.explain(nt.normalize, *a, **k)):
        with pytest.raises(error, match=said):
            function(*arguments, **options)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("dim", "shape"), [(1, 10), ((1,), 10), (-3, 10), ((3, 1), (5, 10)), ((2, 3), (7, 5))])
def test_other_dimensions(dim, shape, layout):
    """`layer_norm` and `rms_norm`, and their modules, over any dimensions."""
    x = lay_out(torch.randn(2, 10, 7, 5) + 1, layout)
    shape = (shape,) if isinstance(shape, int) else shape
    chosen = [d % 4 for d in ((dim,) if isinstance(dim, int) else dim)]
    dims = [[(name, size)] for name, size in zip("nchw", x.shape, strict=True)]
    named = ["nchw"[d] for d in chosen]
    weight, bias = torch.randn(shape), torch.randn(shape)
    check(lambda x, w, b: nt.layer_norm(x, shape, w, b, dim=dim), (x, weight, bias), dims, named, named)
    check(lambda x, w, _: nt.rms_norm(x, shape, w, 1e-5, dim=dim), (x, weight, None), dims, named, named, False)
    layer, rms = nt.LayerNorm(shape, dim=dim), nt.RMSNorm(shape, 1e-5, dim=dim)
    layer.load_state_dict({"weight": weight, "bias": bias})
    rms.load_state_dict({"weight": weight})
    assert torch.equal(layer(x), nt.layer_norm(x, shape, weight, bias, dim=dim)) and f"dim={dim}" in repr(layer)
    assert torch.equal(rms(x), nt.rms_norm(x, shape, weight, 1e-5, dim=dim)) and layer(x).stride() == x.stride()
    for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):  # noqa: S301  our own
        assert torch.equal(again(x), layer(x)) and again.dim == layer.dim


def test_the_last_dimensions_by_number():
    """They are plain layer norm, with its bits."""
    x, w = torch.randn(3, 4, 6), torch.randn(4, 6)
    assert torch.equal(nt.layer_norm(x, (4, 6), w, dim=(1, 2)), nt.layer_norm(x, (4, 6), w))
    assert torch.equal(nt.rms_norm(x, (6,), dim=-1), nt.rms_norm(x, (6,)))


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"dim": 3}, IndexError, r"range of \[-3, 2\], but got 3"),
        ({"dim": (1, -2)}, RuntimeError, r"multiple times in dim=\(1, -2\)"),
        ({"dim": 2}, RuntimeError, r"normalized_shape=\[6\] is not the size of an input of shape .* along dim=2"),
        ({"dim": ()}, RuntimeError, r"normalized_shape=\[6\] is not"),
        ({"dim": "c"}, TypeError, "dim an int or several, not .* 'c'"),
        ({"dim": 1, "weight": torch.ones(5)}, RuntimeError, "weight of shape"),
    ],
)
def test_dimensions_that_are_refused(options, error, said):
    """In PyTorch's words where it has them."""
    for function in (nt.layer_norm, nt.rms_norm, lambda *a, **k: nt.explain(nt.rms_norm, *a, **k)):
        with pytest.raises(error, match=said):
            function(X, (6,), **options)


def test_what_torch_nn_does_not_have():
    """A module with ``dim`` is not made `torch.nn`'s by `restore`, nor compiled as it by `torch.jit.script`."""
    model = nn.Sequential(nt.LayerNorm(6, dim=1), nt.LayerNorm(6))
    report = nt.restore(model)
    assert type(model[0]) is nt.LayerNorm and type(model[1]) is nn.LayerNorm
    assert [left.reason for left in report.left_alone] == ["torch.nn's class has no dim=1"]
    with (
        pytest.warns(DeprecationWarning, match="torch.jit.script"),
        pytest.raises(NotImplementedError, match="LayerNorm, which knows no dim=1"),
    ):
        torch.jit.script(model[0])


def test_explained():
    """In the caller's words."""
    said = str(nt.explain(nt.normalize, torch.empty(2, 3, 32, device="meta"), "b t (h d)", **HEADS))
    assert "normalize of (2, 3, 32), axes 'b t (h d)': statistics over 'd', parameters along 'd'" in said
    explained = nt.explain(nt.layer_norm, torch.empty(8, 96, 56, 56, device="meta"), (96,), dim=1)
    assert explained.problem.norm == described("d0 d1 d2 d3", "d1", "d1")
    assert explained.forward.moved == explained.forward.compulsory


def test_a_sample_does_not_depend_on_its_batch():
    """Where no group extends along the first dimension."""
    x = torch.randn(5, 40, 9, 7)
    for pattern, options in (
        ("n c h w", {"over": "c"}),
        ("n (g k) *s", {"over": "k s", "g": 4}),
        ("n c h w", {"over": "h"}),
    ):
        every = nt.normalize(x, pattern, **options)
        assert all(torch.equal(nt.normalize(x[i : i + 1], pattern, **options), every[i : i + 1]) for i in range(5))
    for norm, invariant in ((norms.BATCH, False), (norms.LAYER, True), (norms.GROUP, True), (norms.INSTANCE, True)):
        assert norm.batch_invariant == invariant


def test_the_way_to_a_launch_is_short():
    """As that of the five functions."""
    x, weight = torch.randn(4, 64), torch.ones(64)
    with torch.no_grad():
        call = lambda: nt.normalize(x, "n d", over="d", affine="d", weight=weight)
        call()
        got = frames(call)
    assert got[: got.index("_without_graph")] == [
        "normalize", "run", "has_kernels", "unwatched", "prepare", "check_memory", "_laid", "_laid",
        "normalize_unwatched", "elsewhere",
    ]  # fmt: skip


def test_axes_in_any_order():
    """The words' order changes nothing but the parameters' dimensions."""
    x, weight = torch.randn(2, 3, 4, 5), torch.randn(4, 5)
    one = nt.normalize(x, "a b c d", over="c d", affine="c d", weight=weight)
    assert torch.equal(nt.normalize(x, "a b c d", over="d c", affine="c d", weight=weight), one)
    assert torch.equal(nt.normalize(x, "a b c d", over="c d", affine="d c", weight=weight.T), one)
