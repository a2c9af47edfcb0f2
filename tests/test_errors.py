"""Bad input: PyTorch's exception, in type and text, and nothing written; and what PyTorch is wrong about."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  the name everyone knows it by
from conformance import exception_of

import normtriton as nt


def ones(*shape, **options):
    return torch.ones(*shape, **options)


def x4():
    return torch.randn(4, 6, 3, 3)


#: A valid call of each function on an input of shape (4, 6, 3, 3): arguments after it.
FIVE = {
    "batch_norm": {"running_mean": ones(6), "running_var": 2 * ones(6), "training": True},
    "batch_norm in evaluation": {"running_mean": ones(6), "running_var": 2 * ones(6)},
    "instance_norm": {"running_mean": ones(6), "running_var": 2 * ones(6)},
    "instance_norm in evaluation": {"running_mean": ones(6), "running_var": 2 * ones(6), "use_input_stats": False},
    "layer_norm": {"normalized_shape": (3,)},
    "group_norm": {"num_groups": 2},
    "rms_norm": {"normalized_shape": (3,)},
}
TRAINING = {"training": True}

INPUTS = {
    "integers": lambda x: x.int(),
    "booleans": lambda x: x.bool(),
    "complex": lambda x: x.to(torch.complex64),
    "float8": lambda x: x.to(torch.float8_e4m3fn),
    "an array": lambda x: x.numpy(),
    "a list": lambda x: x.tolist(),
    "None": lambda _: None,
    "a number": lambda _: 1.0,
    "sparse": lambda x: x.to_sparse(),
    "compressed": lambda x: x[:, :, 0, 0].to_sparse_csr(),
    "of mkldnn": lambda x: x.to_mkldnn(),
    "quantized": lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.quint8),
    "nested": lambda x: torch.nested.nested_tensor([x[0], x[1]]),
    "jagged": lambda x: torch.nested.nested_tensor([x[0, 0], x[0, 1, :2]], layout=torch.jagged),
    "on meta": lambda x: x.to("meta"),
    "negated when read": torch._neg_view,
    "a scalar": lambda x: x[0, 0, 0, 0],
    "one-dimensional": lambda x: x[0, :, 0, 0],
    "two-dimensional": lambda x: x[:, :, 0, 0],
    "without samples": lambda x: x[:0],
    "without space": lambda x: x[..., :0],
}
#: In place of an argument that is a vector of n ones.
TENSORS = {
    "integers": lambda n: ones(n).int(),
    "booleans": lambda n: ones(n).bool(),
    "complex": lambda n: ones(n).to(torch.complex64),
    "float8": lambda n: ones(n).to(torch.float8_e4m3fn),
    "an array": lambda n: np.ones(n, np.float32),
    "a list": lambda n: [1.0] * n,
    "a number": lambda _: 1.0,
    "on meta": lambda n: ones(n, device="meta"),
    "sparse": lambda n: ones(n).to_sparse(),
    "quantized": lambda n: torch.quantize_per_tensor(ones(n), 0.1, 0, torch.quint8),
    "negated when read": lambda n: torch._neg_view(-ones(n) * 2),
    "too many": lambda n: ones(n + 1),
    "a scalar": lambda _: torch.tensor(1.0),
    "empty": lambda _: ones(0),
}
NUMBERS = [
    *(None, "a", 1j, True, 1, 0, -1, -1.0, 0.0, float("nan"), float("inf"), 10**400),
    *(np.float32(0.1), np.float64(0.1), torch.tensor(0.1), torch.tensor([0.1, 0.2]), torch.tensor(0.1, device="meta")),
]
BOOLEANS = [None, 1, 0, "a", 2.0, torch.tensor(True), np.bool_(True)]
GROUPS = [
    *(2.0, 2.5, "a", None, True, 0, -2, -1, 4, 12, 10**30, [2], (2,)),
    *(np.int64(2), np.float32(2), torch.tensor(2), torch.tensor(2.0)),
]
SHAPES = [
    *(3, 3.0, "3", None, True, (), [], [3], (3, 3), (4, 6, 3, 3), (1, 4, 6, 3, 3), (4,), (-3,), (0,), (3.0,), ("3",)),
    *((True,), (None,), ((3,),), ([3],), (10**30,), {3}, {3: 1}, range(3, 4), torch.Size([3]), np.array([3])),
    *((np.int64(3),), torch.tensor([3]), torch.tensor(3), [torch.tensor(3)]),
]


def cases():
    """(id, function, arguments)."""
    for key, arguments in FIVE.items():
        name, *_ = key.split()
        for kind, change in INPUTS.items():
            yield f"{key}: input {kind}", name, lambda c=change, a=arguments: {"input": c(x4()), **a}
        named = ("weight",) if name == "rms_norm" else ("weight", "bias")
        for vector in (*named, *(s for s in ("running_mean", "running_var") if s in arguments)):
            n = 3 if "normalized_shape" in arguments else 6
            for kind, make in TENSORS.items():
                yield (
                    f"{key}: {vector} {kind}",
                    name,
                    lambda v=vector, m=make, a=arguments, n=n: {
                        "input": x4(),
                        **a,
                        v: m(n),
                    },
                )
        numbers = {"eps": NUMBERS, "momentum": NUMBERS if "running_mean" in arguments else []}
        flag = {"batch_norm": "training", "instance_norm": "use_input_stats"}.get(name)
        numbers |= {flag: BOOLEANS} if flag else {}
        numbers |= {"num_groups": GROUPS} if name == "group_norm" else {}
        numbers |= {"normalized_shape": SHAPES} if "normalized_shape" in arguments else {}
        for argument, values in numbers.items():
            for value in values:
                yield (
                    f"{key}: {argument} {value!r}",
                    name,
                    lambda g=argument, v=value, a=arguments: {
                        "input": x4(),
                        **a,
                        g: v,
                    },
                )


CASES = {name: rest for name, *rest in cases()}
#: Calls with more than one mistake: which is found first is PyTorch's order. (function, arguments)
ORDER = {
    "one value, eps": ("batch_norm", (torch.randn(1, 3), None, None), {**TRAINING, "eps": 0.0}),
    "one value, integers": ("batch_norm", (torch.randn(1, 3).int(), None, None), TRAINING),
    "one value, momentum": ("batch_norm", (torch.randn(1, 3), None, None), {**TRAINING, "momentum": None}),
    "one value, weight": ("batch_norm", (torch.randn(1, 3), None, None, ones(4)), TRAINING),
    "eps, momentum": ("batch_norm", (x4(), None, None), {**TRAINING, "eps": 0.0, "momentum": None}),
    "eps, no statistics": ("batch_norm", (x4(), None, None), {"eps": -1.0}),
    "no statistics": ("batch_norm", (x4(), None, None), {}),
    "no mean": ("batch_norm", (x4(), None, ones(6)), {}),
    "no variance": ("batch_norm", (x4(), ones(6), None), {}),
    "no mean in training": ("batch_norm", (x4(), None, ones(6)), TRAINING),
    "no variance in training": ("batch_norm", (x4(), ones(6), None), TRAINING),
    "mean, no variance": ("batch_norm", (x4(), ones(5), None), TRAINING),
    "everything": ("batch_norm", (x4(), ones(5), ones(5), ones(5), ones(5)), TRAINING),
    "weight, bias": ("batch_norm", (x4(), ones(6), ones(6), ones(5), ones(5)), TRAINING),
    "no dimensions": ("batch_norm", (torch.randn(()), None, None), TRAINING),
    "no channels": ("batch_norm", (torch.randn(3), None, None), TRAINING),
    "instance one value": ("instance_norm", (torch.randn(4, 6, 1),), {}),
    "instance one value, integers": ("instance_norm", (torch.randn(4, 6, 1).int(),), {}),
    "instance two dimensions": ("instance_norm", (torch.randn(4, 6),), {}),
    "instance no mean": ("instance_norm", (x4(), None, ones(6)), {}),
    "instance no variance": ("instance_norm", (x4(), ones(6), None), {}),
    "instance mean, no variance": ("instance_norm", (x4(), ones(5), None), {}),
    "instance no statistics": ("instance_norm", (x4(),), {"use_input_stats": False}),
    "instance no statistics, weight": ("instance_norm", (x4(), None, None, ones(5)), {"use_input_stats": False}),
    "layer shape, weight": ("layer_norm", (x4(), (4,), ones(5)), {}),
    "layer shape, bias": ("layer_norm", (x4(), (4,), ones(4), ones(5)), {}),
    "layer shape, integers": ("layer_norm", (x4().int(), (4,)), {}),
    "layer too long": ("layer_norm", (torch.randn(3), (2, 3)), {}),
    "layer of a scalar": ("layer_norm", (torch.randn(()), ()), {}),
    "layer weight with more dimensions": ("layer_norm", (x4(), (3,), ones(1, 3)), {}),
    "rms shape, weight": ("rms_norm", (x4(), (4,), ones(5)), {}),
    "rms too long": ("rms_norm", (torch.randn(3), (2, 3)), {}),
    "rms too long, weight": ("rms_norm", (torch.randn(3), (2, 3), ones(5)), {}),
    "rms of a scalar": ("rms_norm", (torch.randn(()), ()), {}),
    "group one value": ("group_norm", (torch.randn(1, 6), 6), {}),
    "group one value, weight": ("group_norm", (torch.randn(1, 6), 6, ones(5)), {}),
    "group negative, weight": ("group_norm", (x4(), -2, ones(5)), {}),
    "group divisor, weight": ("group_norm", (x4(), 4, ones(5)), {}),
    "group divisor, integers": ("group_norm", (x4().int(), 4), {}),
    "group dimensions, zero": ("group_norm", (torch.randn(4), 0), {}),
    "group weight, bias": ("group_norm", (x4(), 2, ones(5), ones(5)), {}),
    "group weight with more dimensions": ("group_norm", (x4(), 2, ones(1, 6)), {}),
}


def outcome(library, name, args, kwargs):
    """(result or None, exception or None) of a call that, if it raises, may have written nothing."""
    torch.manual_seed(0)
    tensors = [t for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor) and t.layout is torch.strided]
    tensors = [t for t in tensors if not t.is_nested]
    before = [(t.detach().clone(), t._version) for t in tensors]
    results = []
    error = exception_of(lambda: results.append(getattr(library, name)(*args, **kwargs)))
    if error is not None and library is nt:
        for tensor, (old, version) in zip(tensors, before, strict=True):
            assert tensor._version == version
            assert tensor.is_meta or torch.equal(tensor.detach(), old)
    return results[0] if results else None, error


def same(ours, theirs):
    """The same exception, or results of the same dtype, shape and values."""
    (y, error), (want, expected) = ours, theirs
    assert type(error) is type(expected), f"{error!r}, not {expected!r}"
    if error is not None:
        symbols = re.compile(r"\bj\d+")  # of jagged sizes, numbered anew for each tensor
        assert symbols.sub("j", str(error)) == symbols.sub("j", str(expected))
        return
    assert (y.dtype, y.layout, y.device) == (want.dtype, want.layout, want.device)
    if y.is_nested:
        y, want = (torch.nested.to_padded_tensor(t, 0.0) for t in (y, want))
    if not y.is_meta:
        torch.testing.assert_close(y, want, equal_nan=True)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta", "ignore:.*is in prototype stage")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor", "ignore:Casting complex values to real")
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # PyTorch warns once
@pytest.mark.parametrize("case", CASES)
def test_a_bad_argument(case):
    """Each argument of a wrong type, dtype, layout, device, size or value, in each function: what PyTorch does.

    Most raise. Those that do not are what PyTorch takes too: numbers of NumPy, tensors as numbers, sparse input.
    """
    name, make = CASES[case]
    theirs = outcome(F, name, (), make_own(make))
    same(outcome(nt, name, (), make_own(make)), theirs)


def make_own(make):
    """Arguments with statistics of their own."""
    torch.manual_seed(1)
    return {k: v.clone() if k.startswith("running") and isinstance(v, torch.Tensor) else v for k, v in make().items()}


@pytest.mark.parametrize("case", ORDER)
def test_which_mistake_is_found_first(case):
    """Several mistakes in a call: PyTorch's order decides."""
    name, args, kwargs = ORDER[case]
    theirs = outcome(F, name, args, kwargs)
    assert theirs[1] is not None
    same(outcome(nt, name, args, kwargs), theirs)


@pytest.mark.parametrize("leaf", [True, False], ids=["leaf", "computed"])
@pytest.mark.parametrize("statistic", ["running_mean", "running_var"])
@pytest.mark.parametrize("key", [key for key in FIVE if "batch" in key or "instance" in key])
def test_statistics_that_require_a_gradient(key, statistic, leaf):
    """Refused in PyTorch's words, and taken where no gradient is recorded."""

    def arguments():
        t = torch.full((6,), 2.0, requires_grad=True)
        return {**make_own(lambda: {"input": x4(), **FIVE[key]}), statistic: t if leaf else t * 1}

    name, *_ = key.split()
    theirs = outcome(F, name, (), arguments())
    assert isinstance(theirs[1], RuntimeError)
    same(outcome(nt, name, (), arguments()), theirs)
    with torch.no_grad():
        same(outcome(nt, name, (), arguments()), outcome(F, name, (), arguments()))


def _shared(kind):
    """running_mean and running_var that share memory."""
    s, narrow = torch.ones(6), torch.ones(1).expand(6)
    return {
        "same": (s, s),
        "view": (s, s.view(6)),
        "detached": (s, s.detach()),
        "shifted": (t := torch.ones(7))[:6] is not None and (t[:6], t[1:]),
        "other dtype": (s, s.view(torch.float16)[:6]),
        "expanded mean": (narrow, s),
        "expanded variance": (s, narrow),
    }[kind]


@pytest.mark.parametrize("name", ["batch_norm", "instance_norm"])
@pytest.mark.parametrize(
    "kind", ["same", "view", "detached", "shifted", "other dtype", "expanded mean", "expanded variance"]
)
def test_statistics_that_share_memory(kind, name):
    """Refused where they would be written, since PyTorch writes one over the other; read as they are."""
    flag = {"batch_norm": "training", "instance_norm": "use_input_stats"}[name]
    mean, var = _shared(kind)
    _, error = outcome(nt, name, (x4(), mean, var), {flag: True})
    assert isinstance(error, RuntimeError) and "single memory location" in str(error)
    if kind != "other dtype":  # PyTorch takes but one
        args = (x4(), mean, var, None, None, False)
        torch.testing.assert_close(getattr(nt, name)(*args), getattr(F, name)(*args))


def test_statistics_side_by_side():
    """Statistics that share a buffer but no element are taken: rows, halves, every other element."""
    rows, both = torch.rand(2, 6), torch.rand(12)
    x = x4()
    for mean, var in ((rows[0], rows[1]), (both[:6], both[6:]), (both[6:], both[:6]), (both[::2], both[1::2])):
        want_mean, want_var = mean.clone(), var.clone()
        want = F.batch_norm(x, want_mean, want_var, training=True)
        torch.testing.assert_close(nt.batch_norm(x, mean, var, training=True), want)
        torch.testing.assert_close((mean, var), (want_mean, want_var))
    one = torch.ones(1).expand(1)
    nt.batch_norm(torch.randn(4, 1), one.clone(), one.clone(), training=True)
    with pytest.raises(RuntimeError, match="single memory location"):
        nt.batch_norm(torch.randn(4, 1), one, one, training=True)
    assert one.item() == 1


#: What PyTorch refuses and the library takes: (function, arguments, PyTorch's exception, the same call that it takes).
TAKEN = {
    "batch norm, mean of shape (1, C)": ("batch_norm", {"running_mean": ones(1, 6)}, RuntimeError),
    "batch norm, variance of shape (C, 1)": ("batch_norm", {"running_var": ones(6, 1)}, RuntimeError),
    "instance norm, mean of shape (1, C)": ("instance_norm", {"running_mean": ones(1, 6)}, RuntimeError),
    "instance norm, weight of shape (1, C)": ("instance_norm", {"weight": ones(1, 6)}, RuntimeError),
    "batch norm, float64 weight": ("batch_norm", {"weight": ones(6).double()}, RuntimeError),
    "batch norm, float16 variance": ("batch_norm", {"running_var": 2 * ones(6).half()}, RuntimeError),
    "instance norm, float64 weight": ("instance_norm", {"weight": ones(6).double()}, RuntimeError),
    "layer norm, float16 weight": ("layer_norm", {"weight": ones(3).half()}, RuntimeError),
    "group norm, float64 bias": ("group_norm", {"bias": ones(6).double()}, RuntimeError),
}


@pytest.mark.parametrize("case", TAKEN)
def test_what_pytorch_refuses_and_we_take(case):
    """Shapes with the right number of elements, and any mixture of floating dtypes."""
    name, change, kind = TAKEN[case]
    torch.manual_seed(1)
    x = x4()
    assert isinstance(exception_of(lambda: getattr(F, name)(x, **make_own(lambda: {**FIVE[name], **change}))), kind)
    y = getattr(nt, name)(x, **make_own(lambda: {**FIVE[name], **change}))
    flat = {k: v.float().reshape(-1) for k, v in change.items()}
    torch.testing.assert_close(y, getattr(F, name)(x, **make_own(lambda: {**FIVE[name], **flat})))


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("shape", [(4, 0, 3), (0, 0, 3), (0, 6, 3), (4, 0), (0, 6)], ids=str)
@pytest.mark.parametrize("name", ["batch_norm", "instance_norm", "instance_norm in evaluation"])
def test_no_channels_and_no_samples(name, shape, affine):
    """Empty in, empty out, also where PyTorch raises an IndexError for parameters.

    Statistics stay as they are; PyTorch's instance norm makes them NaN if there are no samples.
    """
    flags = {"batch_norm": TRAINING, "instance_norm": {}}.get(name, {"use_input_stats": False})
    name, *_ = name.split()
    c = shape[1]
    vectors = {"running_mean": ones(c), "running_var": ones(c)}
    copies = {k: v.clone() for k, v in vectors.items()}
    vectors |= {"weight": ones(c, requires_grad=True), "bias": ones(c, requires_grad=True)} if affine else {}
    theirs = exception_of(lambda: getattr(F, name)(torch.randn(shape), **{**vectors, **copies}, **flags))
    if isinstance(theirs, ValueError):  # no spatial axis
        assert str(theirs) == str(exception_of(lambda: getattr(nt, name)(torch.randn(shape), **vectors, **flags)))
        return
    assert theirs is None or (type(theirs) is IndexError and affine)
    x = torch.randn(shape, requires_grad=True)
    y = getattr(nt, name)(x, **vectors, **flags)
    y.backward(torch.empty(shape))
    assert y.shape == x.grad.shape == shape
    assert all(torch.equal(vectors[k].grad, torch.zeros(c)) for k in ("weight", "bias") if affine)
    assert all(torch.equal(vectors[k], ones(c)) for k in copies)


def test_a_subclass_with_its_own_torch_function():
    """It sees PyTorch's function, as its author expects; a mode that is no subclass leaves the kernels alone."""
    seen = []

    class Logged(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            seen.append(function)
            return super().__torch_function__(function, types, args, kwargs or {})

    x = torch.randn(3, 8)
    y = nt.layer_norm(x.as_subclass(Logged), (8,))
    assert F.layer_norm in seen and type(y) is Logged
    with torch.device("cpu"):
        assert torch.equal(nt.layer_norm(x, (8,)), nt.layer_norm(x, (8,)))


def test_explain_of_a_bad_call():
    """It raises what the function raises, or says whose the call is."""
    with pytest.raises(ValueError, match="more than 1 value"):
        nt.explain(nt.batch_norm, torch.randn(1, 3), None, None, training=True)
    with pytest.raises(ValueError, match=r"torch\.nn\.functional\.rms_norm takes"):
        nt.explain(nt.rms_norm, torch.randn(2, 3, dtype=torch.complex64), (3,))


@pytest.mark.parametrize(
    "call",
    [
        lambda x, w: nt.batch_norm(x, None, None, w, w, training=True),
        lambda x, w: nt.instance_norm(x, None, None, w, w),
        lambda x, w: nt.group_norm(x, 3, w, w),
    ],
    ids=["batch", "instance", "group"],
)
@pytest.mark.parametrize("shape", [(0, 6, 3), (4, 6, 0)], ids=str)
def test_empty_input(call, shape):
    """Nothing in, nothing out; parameters' gradients are zero and statistics untouched."""
    x, w = torch.randn(shape, requires_grad=True), torch.ones(6, requires_grad=True)
    y = call(x, w)
    y.backward(torch.empty(shape))
    assert y.shape == shape and x.grad.shape == shape and torch.equal(w.grad, torch.zeros(6))


def test_empty_rows_and_features():
    """Layer and RMS norm of no rows, and of rows without features."""
    for shape, features in (((0, 3), 3), ((3, 0), 0)):
        assert nt.layer_norm(torch.randn(shape), (features,), torch.ones(features)).shape == shape
        assert nt.rms_norm(torch.randn(shape), (features,), torch.ones(features)).shape == shape


def test_empty_batch_leaves_running_statistics():
    """No batch, no update."""
    mean, var = torch.randn(6), torch.rand(6)
    before = mean.clone(), var.clone()
    nt.batch_norm(torch.randn(0, 6, 3), mean, var, training=True)
    assert torch.equal(mean, before[0]) and torch.equal(var, before[1])


def test_explaining_a_call_that_pytorch_takes():
    """It says so, and changes no statistics; of one that nobody takes, PyTorch's error."""
    x = torch.randn(4, 3, 5, dtype=torch.complex64).conj().imag
    mean, var = torch.zeros(3), torch.ones(3)
    with pytest.raises(ValueError, match=r"torch\.nn\.functional\.batch_norm takes this call"):
        nt.explain(nt.batch_norm, x, mean, var, training=True)
    assert mean.eq(0).all() and var.eq(1).all()
    with pytest.raises(RuntimeError, match="running_mean should contain 3 elements not 2"):
        nt.explain(nt.batch_norm, x, mean[:2], var, training=True)
