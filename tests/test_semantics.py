"""What PyTorch does, case by case, both libraries called beside each other; the same headings as docs/pytorch.md.

Bad input is in test_errors.py, running statistics in test_running.py, layouts and dtypes in test_norms.py, PyTorch's
own samples in test_databases.py.
"""

import copy
import inspect
import io
import pickle
import re
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  the name everyone knows it by
from cases import BUILT, lay_out
from conformance import MODULES, exception_of
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import normtriton as nt

FUNCTIONS = ("batch_norm", "instance_norm", "layer_norm", "group_norm", "rms_norm")
DTYPES = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
BATCH, INSTANCE = [n for n in MODULES if "Batch" in n], [n for n in MODULES if "Instance" in n]
#: A call of each function on (4, 6, 3, 3): arguments after the input.
CALLS = {
    "batch_norm": {"running_mean": None, "running_var": None, "training": True},
    "instance_norm": {},
    "layer_norm": {"normalized_shape": (3,)},
    "group_norm": {"num_groups": 2},
    "rms_norm": {"normalized_shape": (3,)},
}


def both(name, *args, **options):
    """Our module and PyTorch's, with the same parameters and buffers."""
    ours, theirs = (getattr(library, name)(*args, **options) for library in (nt, nn))
    with torch.no_grad():
        for tensor in (*ours.parameters(), *(b for b in ours.buffers() if b.is_floating_point())):
            tensor.copy_(torch.rand_like(tensor) + 0.5)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def warned(call):
    """(the result, categories and texts of the warnings)."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = call()
    return result, [(w.category, str(w.message)) for w in caught]


def test_docs_name_tests_that_exist():
    """Every line of docs/pytorch.md names its test."""
    here = Path(__file__).parent
    file, text = None, (here.parent / "docs" / "pytorch.md").read_text()
    named = re.findall(r"`(?:(test_\w+\.py))?::(test_\w+)`", text)
    assert len(named) > 40
    for given, test in named:
        file = given or file
        assert re.search(rf"^def {test}\(", (here / file).read_text(), re.MULTILINE), f"{file}::{test}"


# -- signatures


@pytest.mark.parametrize("name", FUNCTIONS)
def test_signature_of_a_function(name):
    """Names, order, kinds and defaults; what is ours alone is keyword-only, and off by default."""
    ours, theirs = (inspect.signature(getattr(library, name)).parameters.values() for library in (nt, F))
    own = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)
    ours, more = [p for p in ours if p.kind not in own], [p for p in ours if p.kind is p.KEYWORD_ONLY]
    assert [(p.name, p.kind, p.default) for p in ours] == [(p.name, p.kind, p.default) for p in theirs]
    assert all(p.default is None for p in more)


@pytest.mark.parametrize("name", MODULES)
def test_signature_of_a_module(name):
    """The constructor is PyTorch's own, but for what is keyword-only and off; forward takes the same names."""
    ours, theirs = getattr(nt, name), getattr(nn, name)
    made, taken = inspect.signature(theirs).parameters, inspect.signature(ours).parameters
    more = [p for key, p in taken.items() if key not in made]
    assert all(p.kind is p.KEYWORD_ONLY and p.default in (None, 0.0, False) for p in more)
    kept = [p for key, p in taken.items() if key in made]
    assert [(p.name, p.kind, p.default) for p in kept] == [(p.name, p.kind, p.default) for p in made.values()]
    taken = [key for key, p in inspect.signature(ours.forward).parameters.items() if p.kind is not p.VAR_KEYWORD]
    assert taken == list(inspect.signature(theirs.forward).parameters)


@pytest.mark.parametrize("name", MODULES)
def test_bias_is_where_pytorch_has_it(name):
    """Keyword-only on batch, instance and group norm, positional on layer norm, none on RMS norm."""
    args, _ = BUILT[name]
    options = {"affine": True} if name in INSTANCE else {}
    calls = {
        "keyword": lambda m: m(*args, **options, bias=False),
        "positional": lambda m: m(*args, 1e-5, True, False),
    }
    for call in calls.values():
        ours, theirs = (exception_of(lambda m=m, c=call: c(getattr(m, name))) for m in (nt, nn))
        assert type(ours) is type(theirs)
        if theirs is None:
            ours, theirs = (call(getattr(m, name)) for m in (nt, nn))
            assert repr(ours) == repr(theirs) and list(ours.state_dict()) == list(theirs.state_dict())


# -- batch_norm


def test_batch_norm_is_the_formula():
    """The result by the biased variance, the running variance by n / (n - 1)."""
    x, mean, var, m = torch.randn(4, 3, 5, dtype=torch.float64), torch.zeros(3), torch.ones(3), 0.3
    mean, var = mean.double(), var.double()
    y = nt.batch_norm(x, mean, var, training=True, momentum=m)
    rows = x.transpose(0, 1).reshape(3, -1)
    want = (rows - rows.mean(1, True)) / (rows.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(y.transpose(0, 1).reshape(3, -1), want)
    torch.testing.assert_close(mean, m * rows.mean(1))
    torch.testing.assert_close(var, (1 - m) + m * rows.var(1))


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_counts_elements_only(training):
    """Parameters of shape (1, C) or (C, 1, 1) are taken, and their gradients have that shape.

    PyTorch's CPU takes them forward, and raises backward.
    """
    x, dy, results = torch.randn(4, 6, 3), torch.randn(4, 6, 3), []
    for library, shapes in ((nt, ((1, 6), (6, 1, 1))), (F, ((6,), (6,)))):
        weight, bias = (torch.linspace(1, 2, 6).view(s).clone().requires_grad_() for s in shapes)
        y = library.batch_norm(x, torch.zeros(6), torch.ones(6), weight, bias, training)
        y.backward(dy)
        assert (weight.grad.shape, bias.grad.shape) == shapes
        results.append((y, weight.grad.view(6), bias.grad.view(6)))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_gradients_of_strided_vectors(training):
    """Strided vectors give what contiguous ones give; PyTorch's CPU gradient is wrong for them."""
    x, dy = torch.randn(4, 6, 3), torch.randn(4, 6, 3)
    vectors = torch.rand(3, 6) + 0.5
    results = []
    for stride in (1, 3):
        room = torch.zeros(3, 6 * stride)
        weight, mean, var = (room[i, ::stride].copy_(vectors[i]) for i in range(3))
        leaf, weight = x.clone().requires_grad_(), weight.detach().requires_grad_()
        y = nt.batch_norm(leaf, mean, var, weight, None, training)
        results.append((y, *torch.autograd.grad(y, (leaf, weight), dy)))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("momentum", [0.0, 1.0, -3.0, 2.5, float("inf"), float("nan")])
def test_batch_norm_takes_any_momentum(momentum):
    """Also one outside of [0, 1], and what is no finite number."""
    x, results = torch.randn(4, 6, 3), []
    for library in (nt, F):
        statistics = torch.zeros(6), torch.ones(6)
        library.batch_norm(x, *statistics, training=True, momentum=momentum)
        results.append(statistics)
    torch.testing.assert_close(*results, equal_nan=True)


def test_statistics_made_in_inference_mode():
    """Written in inference mode, and outside of it as PyTorch writes them."""
    outcomes = []
    for library in (nt, F):
        with torch.inference_mode():
            statistics = torch.zeros(6), torch.ones(6)
            library.batch_norm(torch.ones(4, 6), *statistics, training=True)
        outside = exception_of(lambda m=library, s=statistics: m.batch_norm(torch.ones(4, 6), *s, training=True))
        outcomes.append((type(outside), *(s.tolist() for s in statistics)))
    assert outcomes[0][0] is outcomes[1][0]
    torch.testing.assert_close(*(torch.tensor(o[1:]) for o in outcomes))


# -- instance_norm


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_no_variance_and_no_eps_by_every_way():
    """Under transforms, operators and second derivatives too a constant channel gives what it gives in PyTorch."""
    x, v, dy, weight = torch.randn(3, 2, 5), torch.randn(3, 2, 5), torch.randn(3, 2, 5), torch.randn(2)
    x[:, 1] = 0.7

    def everything(library):
        def norm(x, weight):
            return library.instance_norm(x, None, None, weight, eps=0.0)

        leaf = x.clone().requires_grad_()
        (dx,) = torch.autograd.grad(norm(leaf, weight), leaf, dy, create_graph=True)
        y, pull_back = torch.func.vjp(norm, x, weight)
        return {
            "second derivative": torch.autograd.grad(dx, leaf, v)[0],
            "vjp": torch.stack([y, pull_back(dy)[0]]),
            "vmap": torch.func.vmap(norm, (0, None))(torch.stack([x, x]), weight),
            "jvp": torch.func.jvp(norm, (x, weight), (v, torch.zeros(2)))[1],
            "traced": make_fx(norm)(x, weight)(x, weight),
        }

    ours, theirs = everything(nt), everything(F)
    for name, found in ours.items():
        assert (found[..., 1, :] == 0).all(), name
        assert torch.allclose(found, theirs[name], rtol=1e-4, atol=1e-5), name


@pytest.mark.parametrize("affine", [True, False])
def test_instance_norm_is_batch_norm_of_one_sample(affine):
    """On (1, N * C, ...)."""
    x, w, b = torch.randn(3, 4, 5, 2), *(torch.randn(4) if affine else None for _ in range(2))
    y = nt.instance_norm(x, None, None, w, b)
    repeated = (None if p is None else p.repeat(3) for p in (w, b))
    want = nt.batch_norm(x.view(1, 12, 5, 2), None, None, *repeated, training=True)
    torch.testing.assert_close(y, want.view(x.shape))


def test_instance_norm_of_one_sample_and_a_gradient_in_channels_last():
    """The gradient of a contiguous one: PyTorch's own is wrong there (2.13 on the CPU)."""
    x, dy = torch.randn(1, 4, 3, 5), torch.randn(1, 4, 3, 5)
    found = []
    for library, gradient in ((nt, dy.to(memory_format=torch.channels_last)), (F, dy)):
        leaf = x.clone().requires_grad_()
        library.instance_norm(leaf).backward(gradient)
        found.append(leaf.grad)
    assert torch.allclose(*found, atol=1e-5)


def test_instance_norm_reads_and_leaves_given_statistics():
    """With use_input_stats=False."""
    x, mean, var = torch.randn(3, 4, 5), torch.randn(4), torch.rand(4) + 0.5
    before = mean.clone(), var.clone(), mean._version, var._version
    torch.testing.assert_close(
        nt.instance_norm(x, mean, var, use_input_stats=False), F.instance_norm(x, mean, var, use_input_stats=False)
    )
    assert torch.equal(mean, before[0]) and torch.equal(var, before[1])
    assert (mean._version, var._version) == before[2:]


@pytest.mark.parametrize("eps", [0.0, -0.1])
def test_eps_that_is_not_positive(eps):
    """Legal but for batch norm; NaN where the root is not real."""
    x = torch.randn(3, 4, 5)
    x[0] *= 0.05
    for name in FUNCTIONS[1:]:
        arguments = CALLS[name] | ({"normalized_shape": (5,)} if "normalized_shape" in CALLS[name] else {})
        y, want = (getattr(library, name)(x, **arguments, eps=eps) for library in (nt, F))
        assert y.isnan().any() == (eps < 0)
        torch.testing.assert_close(y, want, equal_nan=True)


# -- layer_norm and rms_norm


@pytest.mark.parametrize("shape", [(3, 5), [3, 5], torch.Size([3, 5])], ids=lambda s: type(s).__name__)
def test_normalized_shape(shape):
    """A tuple, list or Size; and a bias without a weight."""
    x, bias = torch.randn(2, 3, 5), torch.randn(3, 5)
    torch.testing.assert_close(nt.layer_norm(x, shape, bias=bias), F.layer_norm(x, shape, bias=bias))
    torch.testing.assert_close(nt.rms_norm(x, shape), F.rms_norm(x, shape))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_rms_norm_without_eps(dtype):
    """The machine epsilon of float32, for float64 that of float64: PyTorch's, seen in rows that are small."""
    x = (torch.randn(7, 33, dtype=torch.float64) * 2e-4).to(dtype)
    eps = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    want = F.rms_norm(x.double(), (33,), eps=eps)
    assert (want - F.rms_norm(x.double(), (33,), eps=0.0)).abs().max() > (0.1 if dtype != torch.float64 else 1e-10)
    for y in (nt.rms_norm(x, (33,)), nt.RMSNorm(33, dtype=dtype)(x)):
        tolerance = 16 * torch.finfo(dtype).eps
        torch.testing.assert_close(y.detach().double(), want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0), (2, 0, 3)], ids=str)
@pytest.mark.parametrize("name", ["layer_norm", "rms_norm"])
def test_rows_that_are_empty(name, shape):
    """No rows, or no features, with and without parameters, forward and backward."""
    results = []
    for library in (nt, F):
        leaves = [torch.zeros(shape, requires_grad=True)]
        leaves += [torch.ones(shape[1:], requires_grad=True) for _ in range(2 if name == "layer_norm" else 1)]
        y = getattr(library, name)(leaves[0], shape[1:], *leaves[1:])
        y.backward(torch.zeros(shape))
        results.append((y, *(leaf.grad for leaf in leaves)))
    torch.testing.assert_close(*results)


def test_complex_rms_norm():
    """PyTorch's own function, forward and backward; the module too, with a complex weight."""
    x, dy = (torch.randn(4, 6, dtype=torch.complex64) for _ in range(2))
    ours, theirs = both("RMSNorm", 6, dtype=torch.complex64)
    results = []
    for call in (lambda t: nt.rms_norm(t, (6,)), lambda t: F.rms_norm(t, (6,)), ours, theirs):
        leaf = x.clone().requires_grad_()
        y = call(leaf)
        y.backward(dy)
        results.append((y.detach(), leaf.grad))
    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(results[2], results[3])
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)


# -- modules


@pytest.mark.parametrize(("groups", "channels"), [(3, 4), (0, 4), (-2, 4), (5, 13)])
def test_group_norm_constructor(groups, channels):
    """The channels are to be divisible, which the constructor says."""
    ours, theirs = (exception_of(lambda m=m: m.GroupNorm(groups, channels)) for m in (nt, nn))
    assert (type(ours), str(ours)) == (type(theirs), str(theirs))


@pytest.mark.parametrize("name", [*BATCH, *INSTANCE])
def test_dimensions_of_a_module_are_checked(name):
    """One dimension too many, and too few; the text is PyTorch's, no batch is counted."""
    ours, theirs = both(name, 6, track_running_stats=True)
    for shape in ((6,), (5, 6, 4, 3, 2, 2), (6, 6)):
        errors = [exception_of(lambda m=m, s=shape: m(torch.randn(s))) for m in (ours, theirs)]
        assert (type(errors[0]), str(errors[0])) == (type(errors[1]), str(errors[1]))
        assert ours.num_batches_tracked == theirs.num_batches_tracked


@pytest.mark.parametrize("name", BATCH)
def test_evaluation_without_tracking(name):
    """Uses the batch's statistics, and raises on one value as in training."""
    ours, theirs = (m.eval() for m in both(name, 6, track_running_stats=False))
    _, shape = BUILT[name]
    x = torch.randn(shape)
    torch.testing.assert_close(ours(x), theirs(x))
    one = torch.randn(1, 6, *[1] * (len(shape) - 2))
    errors = [exception_of(lambda m=m: m(one)) for m in (ours, theirs)]
    assert isinstance(errors[0], ValueError) and str(errors[0]) == str(errors[1])


@pytest.mark.parametrize("name", BATCH)
def test_cumulative_average(name):
    """momentum=None is 1 / num_batches_tracked: after each batch the statistics are the average of all."""
    ours, theirs = both(name, 6, momentum=None)
    _, shape = BUILT[name]
    for m in (ours, theirs):
        m.reset_running_stats()
    means = []
    for _ in range(3):
        x = torch.randn(shape)
        torch.testing.assert_close(ours(x), theirs(x))
        means.append(x.transpose(0, 1).reshape(6, -1).mean(1))
        torch.testing.assert_close(ours.running_mean, torch.stack(means).mean(0), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(list(ours.buffers()), list(theirs.buffers()))


@pytest.mark.parametrize("momentum", [None, 0.1])
@pytest.mark.parametrize("name", INSTANCE)
def test_instance_norm_counts_no_batches(name, momentum):
    """num_batches_tracked stays 0, and a momentum of None is 0: nothing is ever learned."""
    ours, theirs = both(name, 6, momentum=momentum, track_running_stats=True)
    x = torch.randn(BUILT[name][1])
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(list(ours.buffers()), list(theirs.buffers()))
    assert ours.num_batches_tracked == 0


@pytest.mark.parametrize("tracking", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("name", INSTANCE)
def test_instance_norm_without_a_batch_axis(name, affine, tracking):
    """It gets one, and loses it: result, gradient, statistics."""
    ours, theirs = both(name, 6, affine=affine, track_running_stats=tracking)
    x, results = torch.randn(BUILT[name][1][1:]), []
    dy = torch.randn(x.shape)
    for module in (ours, theirs):
        leaf = x.clone().requires_grad_()
        y = module(leaf)
        y.backward(dy)
        results.append((y, leaf.grad, *module.buffers(), *(p.grad for p in module.parameters())))
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("name", INSTANCE)
def test_instance_norm_of_other_channels(name, batched):
    """A ValueError if there are parameters for them, else a warning; PyTorch's text."""
    x = torch.randn((5, 4, 4, 3, 2)[: len(BUILT[name][1])])
    x = x if batched else x[0]
    errors = [exception_of(lambda m=m: m(x)) for m in both(name, 6, affine=True)]
    assert isinstance(errors[0], ValueError) and str(errors[0]) == str(errors[1])
    (y, ours), (want, theirs) = (warned(lambda m=m: m(x)) for m in both(name, 6))
    assert ours == theirs and [category for category, _ in ours] == [UserWarning]
    torch.testing.assert_close(y, want)


@pytest.mark.parametrize("name", MODULES)
def test_representation(name):
    """extra_repr, with bias where PyTorch shows it."""
    args, _ = BUILT[name]
    affine = {"elementwise_affine": False} if name in ("LayerNorm", "RMSNorm") else {"affine": False}
    options = [{}, {"eps": 0.5}, affine, *([{"bias": False}] if name != "RMSNorm" else [])]
    for each in options:
        ours, theirs = (getattr(m, name)(*args, **each) for m in (nt, nn))
        assert repr(ours) == repr(theirs)
        assert ("bias=" in repr(ours)) == (name != "RMSNorm")


@pytest.mark.parametrize("name", MODULES)
def test_state_dict_goes_both_ways(name):
    """Keys, versions, values; saved from either, loaded into the other."""
    args, _ = BUILT[name]
    ours, theirs = both(name, *args)
    assert ours._version == theirs._version == (2 if name in (*BATCH, *INSTANCE) else 1)
    assert ours.state_dict()._metadata == theirs.state_dict()._metadata
    for saved, other in ((ours, getattr(nn, name)(*args)), (theirs, getattr(nt, name)(*args))):
        file = io.BytesIO()
        torch.save(saved.state_dict(), file)
        file.seek(0)
        other.load_state_dict(torch.load(file))
        torch.testing.assert_close(dict(other.state_dict()), dict(saved.state_dict()))


@pytest.mark.parametrize("version", [None, 1, 2])
@pytest.mark.parametrize("name", [*BATCH, *INSTANCE])
def test_older_state_dicts(name, version):
    """A missing count of batches is 0 before version 2; statistics that are no longer kept are an error by name."""
    results = []
    for library in (nt, nn):
        module = getattr(library, name)(6, track_running_stats=True)
        state = module.state_dict()
        del state["num_batches_tracked"]
        state._metadata[""] = {} if version is None else {"version": version}
        outcomes = [str(exception_of(lambda m=module, s=state: m.load_state_dict(s)))]
        untracked = getattr(library, name)(6, track_running_stats=False)
        state = module.state_dict()
        state._metadata[""] = {} if version is None else {"version": version}
        outcomes.append(str(exception_of(lambda m=untracked, s=state: m.load_state_dict(s))))
        results.append(outcomes)
    assert results[0] == results[1]
    assert (results[0][0] == "None") == (version in (None, 1))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("name", MODULES)
def test_conversion_to_a_dtype(name, dtype):
    """`.to(dtype)` converts parameters and statistics but not the count of batches; the module still runs."""
    args, shape = BUILT[name]
    options = {"track_running_stats": True, "affine": True} if name in (*BATCH, *INSTANCE) else {}
    ours, theirs = (m.to(dtype) for m in both(name, *args, **options))
    dtypes = {key: t.dtype for key, t in ours.state_dict().items()}
    assert dtypes == {key: t.dtype for key, t in theirs.state_dict().items()}
    assert all((d == torch.int64) if key == "num_batches_tracked" else (d == dtype) for key, d in dtypes.items())
    x = torch.randn(shape, dtype=torch.float64).to(dtype)
    y, want = ours(x), theirs.double()(x.double())  # PyTorch in float64, of the same numbers
    tolerance = 8 * torch.finfo(dtype).eps
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), want, rtol=tolerance, atol=4 * tolerance)
    for a, b in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", MODULES)
def test_half_is_a_conversion(name):
    """`.half()`, `.bfloat16()` and `.double()`, and the constructor's dtype, agree with PyTorch's."""
    args, _ = BUILT[name]
    for change in (nn.Module.half, nn.Module.bfloat16, nn.Module.double):
        ours, theirs = (change(m) for m in both(name, *args))
        assert [t.dtype for t in ours.state_dict().values()] == [t.dtype for t in theirs.state_dict().values()]
    ours, theirs = (getattr(m, name)(*args, dtype=torch.float16, device="meta") for m in (nt, nn))
    pairs = zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True)
    assert all((a.dtype, a.device) == (b.dtype, b.device) for a, b in pairs)


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "save"])
@pytest.mark.parametrize("name", MODULES)
def test_copies(name, way):
    """A copy is of our class, equal, independent and works."""
    args, shape = BUILT[name]
    ours, _ = both(name, *args)
    if way == "save":
        file = io.BytesIO()
        torch.save(ours, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    else:
        other = copy.deepcopy(ours) if way == "deepcopy" else pickle.loads(pickle.dumps(ours))  # noqa: S301  our own
    assert type(other) is type(ours) and repr(other) == repr(ours)
    tensors = dict(ours.state_dict())
    torch.testing.assert_close(dict(other.state_dict()), tensors)
    assert all(t.data_ptr() != tensors[key].data_ptr() for key, t in other.state_dict().items())
    x = torch.randn(shape)
    assert torch.equal(other(x), ours(x))


@pytest.mark.parametrize("name", BATCH)
def test_conversion_to_sync_batch_norm(name):
    """PyTorch's conversion shares parameters and buffers and keeps training, eps, momentum and qconfig."""
    norm = getattr(nt, name)(6, eps=0.5, momentum=0.3).eval()
    norm.qconfig = "a qconfig"
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(norm))[0]
    assert type(converted) is nn.SyncBatchNorm
    for key in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        assert getattr(converted, key) is getattr(norm, key)
    assert (converted.eps, converted.momentum, converted.training, converted.qconfig) == (0.5, 0.3, False, "a qconfig")


# -- dtypes


@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_half_input_and_float_parameters(name, low):
    """Result and input gradient in the input's dtype, parameters' gradients in float32, as PyTorch."""
    n = 3 if "normalized_shape" in CALLS[name] else 6
    named = ("weight",) if name == "rms_norm" else ("weight", "bias")
    dtypes = []
    for library in (nt, F):
        x = torch.randn(4, 6, 3, 3).to(low).requires_grad_()
        parameters = {key: torch.ones(n, requires_grad=True) for key in named}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's RMS norm says that it cannot fuse this
            y = getattr(library, name)(x, **CALLS[name], **parameters)
        y.backward(torch.ones_like(y))
        dtypes.append((y.dtype, x.grad.dtype, *(p.grad.dtype for p in parameters.values())))
    assert dtypes[0] == dtypes[1] == (low, low, *[torch.float32] * len(named))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_cpu_autocast_changes_nothing(name, dtype):
    """All five stay in the input's dtype."""
    x = torch.randn(4, 6, 3, 3, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        y, want = (getattr(library, name)(x, **CALLS[name]) for library in (nt, F))
    assert y.dtype == want.dtype == dtype


# -- memory format


@pytest.mark.parametrize("name", [name for name in MODULES if name[-2:] in ("2d", "3d", "rm")])
def test_memory_format_is_kept(name):
    """By every norm, in the result and in the gradient, where PyTorch keeps it in some."""
    args, shape = BUILT[name]
    args = (shape[1:],) if name in ("LayerNorm", "RMSNorm") else args
    form = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    ours, theirs = both(name, *args)
    leaf = lay_out(torch.randn(shape), "channels_last").requires_grad_()
    y, want = ours(leaf), theirs(leaf)
    assert y.is_contiguous(memory_format=form)
    assert want.is_contiguous(memory_format=form) == (name in BATCH or name in ("GroupNorm", "RMSNorm"))
    (gradient,) = torch.autograd.grad(y, leaf, torch.randn(shape))
    assert gradient.is_contiguous(memory_format=form)
    torch.testing.assert_close(y, want)
