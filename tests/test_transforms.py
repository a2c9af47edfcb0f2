"""Derivatives of any order and in any mode, and `torch.func`: as far as PyTorch's own norms go, with its results."""

import warnings

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

import normtriton as nt
from normtriton.autograd.call import Call
from normtriton.autograd.ways import normalize
from normtriton.planning.norms import Norm
from normtriton.planning.schedule import Problem
from normtriton.runtime import launch

F = torch.nn.functional


def given(*sizes, seed=0):
    """Numbers in float64."""
    return torch.randn(*sizes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


MEAN, VAR = given(2, seed=1), given(2, seed=2).exp()
#: ours and PyTorch's of (x, weight, bias), and the shapes of x and of the parameters
NORMS = {
    "batch": (lambda f, x, w, b: f.batch_norm(x, None, None, w, b, True), (3, 2, 2), (2,)),
    "batch-evaluating": (lambda f, x, w, b: f.batch_norm(x, MEAN, VAR, w, b), (2, 2, 2), (2,)),
    "instance": (lambda f, x, w, b: f.instance_norm(x, None, None, w, b), (2, 2, 3), (2,)),
    "group": (lambda f, x, w, b: f.group_norm(x, 2, w, b), (2, 4, 2), (4,)),
    "layer": (lambda f, x, w, b: f.layer_norm(x, (4,), w, b), (3, 4), (4,)),
    "rms": (lambda f, x, w, _b: f.rms_norm(x, (4,), w, 1e-5), (3, 4), (4,)),
}
each_norm = pytest.mark.parametrize("name", NORMS)


@pytest.fixture(autouse=True, scope="module")
def _forward_ad_is_loaded():
    """PyTorch's first dual number loads decompositions by a deprecated way of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with torch.autograd.forward_ad.dual_level():
            torch.autograd.forward_ad.make_dual(torch.ones(1), torch.ones(1))


def arguments(name, *, batch=None):
    """x, weight, bias of a norm, with a batch of calls in front of those named."""
    _call, shape, features = NORMS[name]
    sizes = {"x": shape, "weight": features, "bias": features}
    return [
        given(*((5,) if key in (batch or ()) else ()), *size, seed=i) for i, (key, size) in enumerate(sizes.items())
    ]


def both(name):
    """The norm as ours and as PyTorch's, of (x, weight, bias)."""
    call = NORMS[name][0]
    return lambda *args: call(nt, *args), lambda *args: call(F, *args)


def agree(got, want):
    """Equal but for float64's rounding."""
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@each_norm
def test_first_and_second_derivatives(name):
    """Reverse, forward, forward over reverse, and either for a batch of directions, against finite differences."""
    ours, _theirs = both(name)
    inputs = [t.requires_grad_() for t in arguments(name)][: 2 if name == "rms" else 3]
    call = (lambda x, w: ours(x, w, None)) if name == "rms" else ours
    assert gradcheck(
        call, inputs, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True, fast_mode=True
    )
    assert gradgradcheck(call, inputs, check_fwd_over_rev=True, check_batched_grad=True, fast_mode=True)


@pytest.mark.parametrize("layout", ["channels_last", "sliced"])
def test_second_derivatives_in_other_layouts(layout):
    """Group norm without parameters, where x, dy and their gradients have strides."""
    x = given(2, 4, 2, 3)
    x = x.to(memory_format=torch.channels_last) if layout == "channels_last" else given(2, 8, 2, 3)[:, ::2]
    assert gradgradcheck(lambda x: nt.group_norm(x, 2), x.detach().requires_grad_(), fast_mode=True)


def by_the_textbook(name, x, weight, bias):
    """The norm composed of PyTorch's operations."""
    shape = (1, -1, *(1,) * (x.dim() - 2))
    if name == "batch-evaluating":
        mean, var = MEAN.reshape(shape), VAR.reshape(shape)
        view = x
    else:
        dims = {"batch": (0, 2), "group": (2, 3)}.get(name, (-1,))
        view = x.reshape(2, 2, 2, 2) if name == "group" else x
        mean = view.mean(dims, keepdim=True) if name != "rms" else 0.0
        var = ((view - mean) ** 2).mean(dims, keepdim=True)
    y = ((view - mean) / (var + 1e-5).sqrt()).reshape(x.shape) * weight.reshape(shape)
    return y if name == "rms" else y + bias.reshape(shape)


@each_norm
def test_third_derivatives(name):
    """Every part has derivatives again. PyTorch 2.13 itself is wrong here for batch, instance and layer norm."""
    results = []
    for norm in (both(name)[0], lambda *args: by_the_textbook(name, *args)):
        x, weight, bias = (t.requires_grad_() for t in arguments(name))
        total = norm(x, weight, bias).sin().sum()
        for _ in range(3):
            (slope,) = torch.autograd.grad(total, x, create_graph=True)
            total = (slope * given(*x.shape, seed=7)).sum()
        results.append(slope)
    agree(*results)


@each_norm
def test_double_backward_in_half_precision(name):
    """A penalty on the gradient trains in bfloat16 too."""
    results = []
    for norm, dtype in zip(both(name), (torch.bfloat16, torch.float64), strict=True):
        x, weight, bias = (t.bfloat16().to(dtype).requires_grad_() for t in arguments(name))
        dy = given(*x.shape, seed=8).bfloat16().to(dtype)
        if name == "batch-evaluating":
            y = (nt if dtype == torch.bfloat16 else F).batch_norm(x, MEAN.to(dtype), VAR.to(dtype), weight, bias)
        else:
            y = norm(x, weight, bias)
        (slope,) = torch.autograd.grad(y, x, dy, create_graph=True)
        (slope * given(*x.shape, seed=9).bfloat16().to(dtype)).sum().backward()
        results.append([weight.grad] if x.grad is None else [x.grad, weight.grad])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=0.05, atol=0.05 * want.abs().max().item())


@each_norm
@pytest.mark.parametrize("batch", ["x", "weight", "x weight", "x weight bias"])
def test_vmap(name, batch):
    """A batch of calls is one call with one more axis, whichever of its arguments are batched."""
    args = arguments(name, batch=batch.split())
    dims = tuple(0 if key in batch.split() else None for key in ("x", "weight", "bias"))
    ours, theirs = both(name)
    got, want = (vmap(norm, in_dims=dims)(*args) for norm in (ours, theirs))
    agree(got, want)


def test_vmap_along_another_dimension_and_twice():
    """The batch may lie anywhere, and there may be two."""
    x = given(4, 5, 6)
    agree(vmap(lambda t: nt.layer_norm(t, (6,)), in_dims=1, out_dims=1)(x), F.layer_norm(x, (6,)))
    nested = vmap(vmap(lambda t: nt.rms_norm(t, (6,), eps=1e-5)))(x)
    agree(nested, F.rms_norm(x, (6,), eps=1e-5))


@each_norm
def test_gradients_of_each_sample(name):
    """Per-sample gradients, vmap of grad: every call has its own gradients of shared parameters."""
    args = arguments(name, batch=["x"])
    results = [
        vmap(grad(lambda x, w, b, norm=norm: norm(x, w, b).sin().sum(), argnums=(0, 1)), in_dims=(0, None, None))(*args)
        for norm in both(name)
    ]
    agree(*results)


@each_norm
def test_jvp_jacobians_hessian(name):
    """Forward mode, both Jacobians and forward over reverse."""
    x, weight, bias = arguments(name)
    ours, theirs = both(name)
    tangents = tuple(given(*t.shape, seed=20 + i) for i, t in enumerate((x, weight, bias)))
    agree(jvp(ours, (x, weight, bias), tangents), jvp(theirs, (x, weight, bias), tangents))
    agree(jacfwd(ours)(x, weight, bias), jacrev(theirs)(x, weight, bias))
    agree(jacrev(ours)(x, weight, bias), jacfwd(theirs)(x, weight, bias))

    def loss(norm):
        return lambda w: norm(x, w, bias).sin().sum()

    agree(hessian(loss(ours))(weight), hessian(loss(theirs))(weight))
    small = x[:2, ..., :2] if name in ("batch", "instance", "group") else x[:1]
    agree(
        hessian(lambda t: ours(t, weight, bias).sin().sum())(small),
        hessian(lambda t: theirs(t, weight, bias).sin().sum())(small),
    )


@pytest.mark.parametrize("norm", ["batch_norm", "instance_norm"])
def test_running_statistics_under_vmap(norm):
    """Each call updates its own; those that calls share are refused, as by PyTorch, and stay as they are."""
    x = given(5, 3, 2, 2)
    results = []
    for functions in (nt, F):
        mean, var = given(5, 2, seed=1), given(5, 2, seed=2).exp()
        y = vmap(lambda *args, f=functions: getattr(f, norm)(*args, None, None, True))(x, mean, var)
        results.append((y, mean, var))
    agree(*results)

    mean, var = MEAN.clone(), VAR.clone()
    with pytest.raises(RuntimeError):
        vmap(lambda x: getattr(nt, norm)(x, mean, var, None, None, True))(x)
    assert torch.equal(mean, MEAN)
    assert torch.equal(var, VAR)


def test_given_statistics_under_vmap():
    """In evaluation every call may have its own statistics."""
    x, mean, var = given(5, 3, 4, 2), given(5, 4, seed=1), given(5, 4, seed=2).exp()
    weight = given(4, seed=3)
    got, want = (vmap(lambda *args, f=f: f.batch_norm(*args, weight))(x, mean, var) for f in (nt, F))
    agree(got, want)


def test_running_statistics_under_grad():
    """A step in functions' style: parameters and buffers are arguments, and the statistics are updated once."""
    results = []
    for kind in (nt.BatchNorm1d, torch.nn.BatchNorm1d):
        module = kind(4).double()

        def loss(parameters, buffers, module=module):
            return functional_call(module, (parameters, buffers), (given(3, 4, 2),)).sin().sum(), buffers

        results.append(grad(loss, has_aux=True)(dict(module.named_parameters()), dict(module.named_buffers())))
    agree(*results)


def test_what_a_transform_leaves_behind():
    """A tensor kept from within a transform that has ended is what it stood for."""
    x, weight, kept = given(3, 4), given(4, seed=3), []
    grad(lambda *args: kept.extend(args) or (args[0] * args[1]).sum())(x, weight)
    for args in ((kept[0], weight), (x, kept[1]), kept):
        agree(*(f.layer_norm(args[0], (4,), args[1], args[1]) for f in (nt, F)))


def test_a_jacobian_vectorized_by_autograd():
    """`torch.autograd.functional` batches by a vmap that autograd functions cannot see through."""
    x = given(3, 4)
    got, want = (
        torch.autograd.functional.jacobian(lambda t, f=f: f.layer_norm(t, (4,)), x, vectorize=True) for f in (nt, F)
    )
    agree(got, want)


def test_a_norm_of_ones_own():
    """Layer norm over channels goes through transforms by its axes alone."""
    over_channels = Norm("n c *s", over="c", affine="c")

    def norm(x, weight):
        return normalize(x, weight, None, Call(Problem(over_channels, tuple(x.shape)), 1e-5))

    def want(x, weight):
        return F.layer_norm(x.movedim(1, -1), (4,), weight).movedim(-1, 1)

    x, weight = given(5, 2, 4, 3), given(5, 4, seed=1)
    agree(vmap(norm)(x, weight), vmap(want)(x, weight))
    assert gradgradcheck(norm, (x[0].requires_grad_(), weight[0].requires_grad_()), fast_mode=True)


def test_no_work_for_what_wants_no_gradient(monkeypatch):
    """Frozen parameters and a frozen input cost nothing, in a second derivative neither."""
    asked = []
    real = launch.backward
    monkeypatch.setattr(launch, "backward", lambda *args: asked.append(args[8]) or real(*args))
    x, weight = given(3, 4).requires_grad_(), given(4, seed=1)
    y = nt.layer_norm(x, (4,), weight)
    (slope,) = torch.autograd.grad(y.sin().sum(), x, create_graph=True)
    slope.sum().backward()
    assert asked
    assert all(wants == (True, None, None) for wants in asked)
    asked.clear()
    weight.requires_grad_()
    nt.layer_norm(x.detach(), (4,), weight).sum().backward()
    assert asked == [(False, torch.float64, None)]


@each_norm
@pytest.mark.parametrize("kind", ["negated", "zero"])
def test_gradients_that_are_not_what_their_memory_says(name, kind):
    """Autograd may hand on a view that is negated when read, or zeros without memory."""
    results = []
    for norm in both(name):
        x, weight, bias = (t.requires_grad_() for t in arguments(name))
        if kind == "negated":
            dy = torch.complex(given(*x.shape, seed=5), given(*x.shape, seed=6)).conj().imag
            assert dy.is_neg()
        elif results:  # PyTorch's own group norm reads memory there that nobody wrote (torch 2.13, CPU)
            dy = torch.zeros_like(x)
        else:
            dy = torch._efficientzerotensor(x.shape, dtype=x.dtype)
        results.append(torch.autograd.grad(norm(x, weight, bias), (x, weight), dy))
    agree(*results)


X = given(2, 3, 4, seed=30)
#: what transforms make of a function, given it and x
TRANSFORMS = {
    "grad": lambda f, x: grad(lambda t: f(t).sin().sum())(x),
    "vjp": lambda f, x: torch.func.vjp(f, x)[1](x),
    "jvp": lambda f, x: jvp(f, (x,), (x.cos(),)),
    "jvp of vjp": lambda f, x: jvp(lambda t: torch.func.vjp(f, t)[1](x), (x,), (x.cos(),)),
    "vjp of vjp": lambda f, x: torch.func.vjp(lambda t: torch.func.vjp(f, t)[1](x), x)[1]((x.cos(),)),
    "grad of grad": lambda f, x: grad(lambda t: grad(lambda u: f(u).sin().sum())(t).sin().sum())(x),
    "jacrev": lambda f, x: jacrev(f)(x),
    "jacfwd": lambda f, x: jacfwd(f)(x),
    "hessian": lambda f, x: hessian(lambda t: f(t).sin().sum())(x[:2, :, :2]),
    "functionalize": lambda f, x: torch.func.functionalize(f)(x),
    "functionalize of grad": lambda f, x: torch.func.functionalize(grad(lambda t: f(t).sin().sum()))(x),
    "grad of functionalize": lambda f, x: grad(lambda t: torch.func.functionalize(f)(t).sin().sum())(x),
    "make_fx of grad": lambda f, x: torch.fx.experimental.proxy_tensor.make_fx(grad(lambda t: f(t).sin().sum()))(x),
}


@pytest.mark.parametrize("how", TRANSFORMS)
@pytest.mark.parametrize("norm", ["batch_norm", "instance_norm"])
def test_captured_statistics_are_updated(how, norm):
    """Statistics that a transformed function finds, not among its arguments: PyTorch's numbers, and as often."""
    results = []
    for f in (nt, F):
        mean, var = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
        version = mean._version
        made = TRANSFORMS[how](lambda t, f=f, m=mean, v=var: getattr(f, norm)(t, m, v, None, None, True), X)
        made = () if how == "make_fx of grad" else made
        assert f is F or mean._version > version  # autograd is told; PyTorch's batch norm does not
        results.append((made, mean, var))
    agree(*results)


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node")  # by PyTorch's own tracing
@pytest.mark.parametrize("norm", ["batch_norm", "instance_norm"])
def test_a_linearized_function(norm):
    """`torch.func.linearize` traces the derivative of the operator."""
    got, want = (
        torch.func.linearize(lambda t, f=f: getattr(f, norm)(t, None, None, None, None, True), X)[1](X.cos())
        for f in (nt, F)
    )
    agree(got, want)


@pytest.mark.parametrize("kind", ["BatchNorm1d", "InstanceNorm1d"])
@pytest.mark.parametrize("how", ["captured", "given", "given without a momentum"])
def test_modules_with_statistics_under_grad(kind, how):
    """As `torch.nn`'s: what it updates is updated, what it refuses to is refused with its words."""
    results = []
    for library in (nt, torch.nn):
        momentum = None if "without" in how else 0.1
        module = getattr(library, kind)(3, affine=True, track_running_stats=True, momentum=momentum).double()
        buffers, parameters = dict(module.named_buffers()), dict(module.named_parameters())

        def loss(p, b, t, module=module):
            return functional_call(module, (p, b), (t,)).sin().sum()

        try:
            if how == "captured":
                results.append((grad(lambda t, module=module: module(t).sin().sum())(X), buffers))
            else:
                results.append((grad(loss)(parameters, buffers, X), buffers))
        except RuntimeError as error:
            results.append((str(error), buffers))
    if isinstance(results[1][0], str):
        assert results[0][0] == results[1][0]
    else:
        agree(results[0][0], results[1][0])
    agree(results[0][1], results[1][1])


def shared(norm, library, **batched):
    """A batch of calls that share what is not named."""
    tensors = {"x": X, "mean": torch.zeros(3), "var": torch.ones(3), "weight": given(3)}
    tensors = {key: torch.stack([t.double()] * 2) if key in batched else t.double() for key, t in tensors.items()}
    dims = tuple(0 if key in batched else None for key in tensors)
    call = vmap(lambda x, m, v, w: getattr(library, norm)(x, m, v, w, None, True), in_dims=dims)
    return call, tensors


@pytest.mark.parametrize("norm", ["batch_norm", "instance_norm"])
@pytest.mark.parametrize("batched", [("x",), ("x", "mean"), ("x", "var"), ("x", "weight")])
def test_shared_statistics_are_refused_in_pytorchs_words(norm, batched):
    """Several inputs would update one statistic; nothing is written."""
    words = []
    for library in (nt, F):
        call, tensors = shared(norm, library, **dict.fromkeys(batched))
        before = {key: t.clone() for key, t in tensors.items()}
        with pytest.raises(RuntimeError) as raised:
            call(*tensors.values())
        words.append(str(raised.value))
        agree(tensors, before)
    assert words[0] == words[1]


@pytest.mark.parametrize("norm", ["batch_norm", "instance_norm"])
@pytest.mark.parametrize("dims", [(0, 0), (1, 1), (0, 1)])
@pytest.mark.parametrize("nested", [False, True])
def test_each_call_updates_its_own_statistics(norm, dims, nested):
    """Wherever their batch lies, in memory that is no vector, under one vmap or two: as calls one after the other."""
    x = torch.stack([X, X.cos()])
    stats = [
        torch.stack([given(3, seed=i), given(3, seed=i + 9)], dim=d).abs() for i, d in zip((1, 2), dims, strict=True)
    ]
    rows = [[t.select(d, i).clone() for t, d in zip(stats, dims, strict=True)] for i in range(2)]
    ys = [getattr(nt, norm)(t, *row, None, None, True) for t, row in zip(x, rows, strict=True)]
    call = vmap(lambda *args: getattr(nt, norm)(*args, None, None, True), in_dims=(0, *dims))
    y = vmap(call, in_dims=-1)(*(t.unsqueeze(-1) for t in (x, *stats)))[0] if nested else call(x, *stats)
    agree(y, torch.stack(ys))
    for t, d, *each in zip(stats, dims, *rows, strict=True):
        agree(t, torch.stack(each, dim=d))


def test_statistics_that_share_memory_under_vmap():
    """An expanded batch of statistics is one statistic."""
    mean, var = torch.zeros(3).expand(2, 3), torch.ones(2, 3)
    with pytest.raises(RuntimeError, match="single memory location"):
        vmap(lambda *args: nt.batch_norm(*args, None, None, True))(torch.stack([X, X]).float(), mean, var)
    assert torch.equal(var, torch.ones(2, 3))


@pytest.mark.parametrize("norm", ["batch_norm", "instance_norm"])
@pytest.mark.parametrize("which", [(0,), (1,), (0, 1)])
def test_statistics_have_no_derivatives_in_evaluation(norm, which):
    """Neither tangents nor gradients are dropped without a word: PyTorch's type of error."""
    stats = [torch.zeros(3).double(), torch.ones(3).double()]

    def call(library, x, *own):
        every = list(stats)
        for i, t in zip(which, own, strict=True):
            every[i] = t
        return getattr(library, norm)(x, *every, None, None, False)

    own = tuple(stats[i] for i in which)
    for library in (nt, F):
        with pytest.raises(RuntimeError, match="not differentiable"):
            jvp(lambda *t, f=library: call(f, *t), (X, *own), (X, *own))
        with pytest.raises(RuntimeError, match="not differentiable"):
            grad(lambda *t, f=library: call(f, X, *t).sum())(*own)
    with pytest.raises(RuntimeError, match="not differentiable"):  # PyTorch drops these
        jvp(lambda *t: call(nt, X, *t), own, own)
    with pytest.raises(RuntimeError, match="not differentiable"):
        grad(lambda *t: vmap(lambda x: call(nt, x, *t))(torch.stack([X, X])).sum())(*own)


@pytest.mark.parametrize("norm", ["batch_norm", "instance_norm"])
def test_statistics_that_are_updated_change_no_result(norm):
    """In training the result does not depend on them: a tangent of theirs adds nothing, as in PyTorch."""
    results = []
    for f in (nt, F):
        primals = (X, torch.zeros(3, dtype=X.dtype), torch.ones(3, dtype=X.dtype))
        tangents = tuple(t.cos() for t in primals)
        results.append(jvp(lambda x, m, v, f=f: getattr(f, norm)(x, m, v, None, None, True), primals, tangents))
    agree(*results)


def test_a_statistic_that_a_transform_left_behind():
    """As other tensors kept from within a transform that has ended."""
    results = []
    for f in (nt, F):
        mean, var, kept = torch.zeros(3).double(), torch.ones(3).double(), []
        grad(lambda t, *own, kept=kept: kept.extend(own) or t.sum())(X, mean, var)
        results.append((f.batch_norm(X, *kept, training=True), mean, var))
    agree(*results)


@each_norm
def test_tangents_of_a_gradient_alone(name):
    """A backward pass, without a graph, of a dy that has a tangent."""
    ours, _theirs = both(name)
    x, weight, bias = (t.requires_grad_() for t in arguments(name))
    y, dy, change = ours(x, weight, bias), given(*x.shape, seed=5), given(*x.shape, seed=6)
    with torch.autograd.forward_ad.dual_level():
        (dx,) = torch.autograd.grad(y, x, torch.autograd.forward_ad.make_dual(dy, change), retain_graph=True)
        got = torch.autograd.forward_ad.unpack_dual(dx).tangent
    agree(got, torch.autograd.grad(y, x, change)[0])


@pytest.mark.parametrize("name", ["batch", "instance", "group", "layer", "rms"])
def test_a_weight_changed_between_the_passes(name):
    """It is kept for the backward pass, not copied: autograd notices, as it does for PyTorch's other norms."""
    ours, theirs = both(name)
    for norm in (ours,) if name == "instance" else (ours, theirs):
        x, weight, bias = (t.requires_grad_() for t in arguments(name))
        y = norm(x, weight, bias)
        with torch.no_grad():
            weight.add_(1.0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()
