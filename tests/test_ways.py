"""However a call gets to the kernels, plain, traced, transformed or wrapped, it gives the same bits."""

import copy
import warnings

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import grad, jvp, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint
from watching import Watching
from wrapping import Wrapper, inside

import normtriton as nt

#: no float32 is one of these, and variances are 1e-6, so that what is lost of them is seen
EPS, MOMENTUM = 1.2345678912345e-6, 0.1234567891234567
#: (call of x, weight, bias, mean, var; shape of x; does it write statistics)
NORMS = {
    "batch": (lambda x, w, b, m, v: nt.batch_norm(x, m, v, w, b, True, MOMENTUM, EPS), (3, 4, 5), True),
    "batch-evaluating": (lambda x, w, b, m, v: nt.batch_norm(x, m, v, w, b, False, MOMENTUM, EPS), (3, 4, 5), False),
    "instance": (lambda x, w, b, m, v: nt.instance_norm(x, m, v, w, b, True, MOMENTUM, EPS), (3, 4, 5), True),
    "instance-evaluating": (
        lambda x, w, b, m, v: nt.instance_norm(x, m, v, w, b, False, MOMENTUM, EPS), (3, 4, 5), False,
    ),
    "group": (lambda x, w, b, _m, _v: nt.group_norm(x, 2, w, b, EPS), (3, 4, 5), False),
    "layer": (lambda x, w, b, _m, _v: nt.layer_norm(x, (4,), w, b, EPS), (3, 4), False),
    "rms": (lambda x, w, _b, _m, _v: nt.rms_norm(x, (4,), w, EPS), (3, 4), False),
}  # fmt: skip
each_norm = pytest.mark.parametrize("name", NORMS)
#: every norm in float64, which eps and momentum are for, and in one of the narrower dtypes, which differ in casts alone
DTYPES = {
    torch.float64: tuple(NORMS),
    torch.float32: ("batch", "instance-evaluating", "layer"),
    torch.bfloat16: ("batch-evaluating", "instance", "group", "rms"),
}
each_norm_and_dtype = pytest.mark.parametrize(("dtype", "name"), [(t, name) for t in DTYPES for name in DTYPES[t]])


def tensors(name, dtype):
    """(x, weight, bias, mean, var), dy."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    shape = NORMS[name][1]
    given = [1e-3 * random(*shape), random(4), random(4), 1e-3 * random(4), 1e-6 * random(4).exp(), random(*shape)]
    *given, dy = (t.to(dtype) for t in given)
    return given, dy


def short(call, given, dy, run=None):
    """(y, dx, dweight, dbias, mean, var) of plain tensors; ``run`` calls the norm."""
    leaves = [t.requires_grad_() for t in given[:3]]
    y = (run or call)(*given)
    return y, *torch.autograd.grad(y, leaves, dy, allow_unused=True), *given[3:]


def under_no_grad(call, given, _dy):
    with torch.no_grad():
        return call(*given), None, None, None, *given[3:]


def by_vjp(call, given, dy):
    y, pull = vjp(lambda *leaves: call(*leaves, *given[3:]), *given[:3])
    return y, *pull(dy), *given[3:]


def by_grad(call, given, dy):
    found = grad(lambda *leaves: (call(*leaves, *given[3:]) * dy).sum(), (0, 1, 2))(*given[:3])
    return None, *found, *given[3:]


def by_jvp(call, given, dy):
    y, _change = jvp(lambda x: call(x, *given[1:]), (given[0],), (dy,))
    return y, None, None, None, *given[3:]


def dual(call, given, dy):
    with forward_ad.dual_level():
        y = call(forward_ad.make_dual(given[0], dy), *given[1:])
        return forward_ad.unpack_dual(y).primal, None, None, None, *given[3:]


def by_vmap(call, given, _dy):
    twice = [torch.stack([t, t]) for t in given]
    y = vmap(call)(*twice)
    return y[1], None, None, None, twice[3][1], twice[4][1]


def by_vmap_of_vjp(call, given, dy):
    twice = [torch.stack([t, t]) for t in (*given, dy)]
    y, dx, dweight, dbias = vmap(lambda *t: by_vjp(call, t[:5], t[5])[:4])(*twice)
    return y[1], dx[1], dweight[1], dbias[1], twice[3][1], twice[4][1]


def watched(call, given, dy):
    with Watching():
        return short(call, given, dy)


def traced(call, given, _dy):
    graph = make_fx(call)(*(t.clone() for t in given))
    return graph(*given), None, None, None, *given[3:]


def traced_gradients(call, given, dy):
    graph = make_fx(lambda *t: by_vjp(call, t[:5], t[5])[:4])(*(t.clone() for t in (*given, dy)))
    return *graph(*given, dy), *given[3:]


def with_graph(call, given, dy):
    leaves = [t.requires_grad_() for t in given[:3]]
    y = call(*given)
    return y, *torch.autograd.grad(y, leaves, dy, create_graph=True, allow_unused=True), *given[3:]


def recomputed(call, given, dy):
    def run(*t):
        return checkpoint(lambda *leaves: call(*leaves, *t[3:]), *t[:3], use_reentrant=False)

    *found, _mean, _var = short(call, given, dy, run)
    return *found, None, None  # updated twice, as PyTorch's are


def wrapped(call, given, dy):
    return tuple(None if t is None else inside(t) for t in short(call, [Wrapper(t) for t in given], Wrapper(dy)))


def compiled(call, given, dy):
    torch._dynamo.reset()
    return short(call, given, dy, torch.compile(call, backend="aot_eager", fullgraph=True))


def compiled_gradients(call, given, dy):
    torch._dynamo.reset()
    run = torch.compile(lambda *t: by_vjp(call, t[:5], t[5])[:4], backend="aot_eager", fullgraph=True)
    return *run(*given, dy), *given[3:]


WAYS = [
    *(under_no_grad, by_vjp, by_grad, by_jvp, dual, by_vmap, by_vmap_of_vjp, watched, traced, traced_gradients),
    *(with_graph, recomputed, wrapped),
]


@pytest.fixture(autouse=True, scope="module")
def _forward_ad_is_loaded():
    """PyTorch's first dual number loads decompositions by a deprecated way of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with forward_ad.dual_level():
            forward_ad.make_dual(torch.ones(1), torch.ones(1))


def same_bits(way, name, dtype):
    """Whether a way gives what the short one does; a gradient that does not exist is zero under `torch.func`."""
    call, _shape, writes = NORMS[name]
    given, dy = tensors(name, dtype)
    before = [t.clone() for t in given[3:]]
    want = short(call, [t.clone() for t in given], dy)
    assert torch.equal(want[4], before[0]) != writes
    got = way(call, [t.clone() for t in given], dy)
    for what, a, b in zip(("y", "dx", "dweight", "dbias", "mean", "var"), got, want, strict=True):
        if a is not None:
            b = torch.zeros_like(a) if b is None else b  # noqa: PLW2901
            assert a.dtype == b.dtype
            if way is by_vmap_of_vjp:  # two calls at once may be planned otherwise than one
                unit = torch.finfo(dtype).eps
                torch.testing.assert_close(a, b, rtol=4 * unit, atol=4 * unit * b.abs().max().item())
            else:
                assert torch.equal(a.detach(), b.detach()), what


@each_norm_and_dtype
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_every_way_gives_the_same_bits(way, name, dtype):
    """Results, gradients and running statistics, of eps and momentum that no float32 holds."""
    same_bits(way, name, dtype)


@each_norm
@pytest.mark.parametrize("way", [compiled, compiled_gradients], ids=lambda way: way.__name__)
def test_compiled_ways_give_the_same_bits(way, name):
    """A compiler's too, and those of a transform that is compiled."""
    same_bits(way, name, torch.float64)


@each_norm
def test_an_exported_program_gives_the_same_bits(name):
    """`torch.export`, in evaluation and training."""
    call, _shape, _writes = NORMS[name]
    given, _dy = tensors(name, torch.float64)

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", given[3].clone())
            self.register_buffer("var", given[4].clone())

        def forward(self, x, weight, bias):
            return call(x, weight, bias, self.mean, self.var)

    module = Module()
    program = torch.export.export(copy.deepcopy(module), tuple(given[:3])).module()
    assert torch.equal(program(*given[:3]), module(*given[:3]))
    assert torch.equal(program.mean, module.mean) and torch.equal(program.var, module.var)


@each_norm
@pytest.mark.parametrize("position", ["x", "weight", "bias", "mean", "var", "dy"])
def test_a_wrapped_tensor_in_one_place(name, position):
    """One of a call's tensors is a wrapper, the others are plain: the same numbers, forward and backward."""
    call, _shape, _writes = NORMS[name]
    given, dy = tensors(name, torch.float64)
    want = short(call, [t.clone() for t in given], dy)
    places = dict(zip(("x", "weight", "bias", "mean", "var"), (t.clone() for t in given), strict=True), dy=dy)
    places[position] = Wrapper(places[position])
    *given, dy = places.values()
    got = short(call, given, dy)
    for a, b in zip(got, want, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.equal(inside(a.detach()), b.detach())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["weight", "bias", "running_mean", "running_var", "num_batches_tracked", "input"])
def test_a_wrapped_tensor_of_a_module(name, training):
    """Batch norm's parameters, buffers and its counter, each alone."""
    results = []
    for wraps in (False, True):
        torch.manual_seed(0)
        module, x = nt.BatchNorm1d(4).train(training), torch.randn(3, 4, 5)
        if wraps and name == "input":
            x = Wrapper(x)
        elif wraps and name in module._buffers:
            module._buffers[name] = Wrapper(module._buffers[name])
        elif wraps:
            setattr(module, name, torch.nn.Parameter(Wrapper(getattr(module, name).detach())))
        results.append([inside(t.detach()) for t in (module(x), *module.buffers())])
    assert all(map(torch.equal, *results))
