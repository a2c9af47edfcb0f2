"""Running statistics as PyTorch keeps them, and evaluation with them, forward and backward."""

import copy

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  the name everyone knows it by
from cases import BUILT, lay_out
from torch import nn
from watching import Watching

import normtriton as nt
from normtriton.autograd import function as autograd
from normtriton.runtime import launch

SHAPES = {"resident": (6, 5, 7, 7), "split": (6, 3, 100, 100), "streamed": (6, 5, 100, 100), "2d": (9, 4)}


@pytest.mark.parametrize("momentum", [0.1, 1.0, 0.0, -0.5])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_batch_norm_updates(shape, layout, momentum):
    """(1 - momentum) * running + momentum * new, with the n / (n - 1) variance, in every strategy."""
    x = lay_out(torch.randn(shape) * 3 + 1, layout)
    mean, var = torch.randn(shape[1]), torch.rand(shape[1]) + 1
    want_mean, want_var = mean.clone(), var.clone()
    versions = mean._version, var._version
    nt.batch_norm(x, mean, var, training=True, momentum=momentum)
    F.batch_norm(
        x.double(), want_mean := want_mean.double(), want_var := want_var.double(), training=True, momentum=momentum
    )
    torch.testing.assert_close(mean.double(), want_mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(var.double(), want_var, rtol=1e-5, atol=1e-5)
    assert (mean._version, var._version) > versions  # autograd sees the change


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_running_statistics_of_any_dtype_and_stride(dtype):
    """Also half precision, strided, and shaped (1, C)."""
    x = torch.randn(4, 6, 5)
    mean, var = torch.zeros(12, dtype=dtype)[::2], torch.ones(1, 6, dtype=dtype)
    nt.batch_norm(x, mean, var, training=True, momentum=0.5)
    want_mean, want_var = torch.zeros(6), torch.ones(6)
    F.batch_norm(x, want_mean, want_var, training=True, momentum=0.5)
    rtol = 2 * torch.finfo(dtype).eps + 1e-6
    torch.testing.assert_close(mean.float(), want_mean, rtol=rtol, atol=1e-6)
    torch.testing.assert_close(var[0].float(), want_var, rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("shape", [(4, 6, 5, 5), (3, 2, 260, 260)], ids=["resident", "split"])
def test_instance_norm_averages_over_the_batch(shape):
    """Running statistics of instance norm are blended with the instances' average."""
    x = torch.randn(shape) * torch.arange(1.0, shape[0] + 1).view(-1, 1, 1, 1)
    mean, var = torch.randn(shape[1]), torch.rand(shape[1]) + 1
    want_mean, want_var = mean.double(), var.double()
    y = nt.instance_norm(x, mean, var)
    want = F.instance_norm(x.double(), want_mean, want_var)
    torch.testing.assert_close(y.double(), want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mean.double(), want_mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(var.double(), want_var, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("function", [nt.batch_norm, nt.instance_norm])
@pytest.mark.parametrize("shape", [(6, 5, 7, 7), (2, 3, 90, 100)], ids=["one tile", "many tiles"])
def test_evaluation(shape, function, layout, affine):
    """The running statistics are constants: forward and all gradients, eps in float32 or not."""
    x, dy = torch.randn(shape), torch.randn(shape)
    mean, var = torch.randn(shape[1]), torch.rand(shape[1]) + 0.5
    leaves = [lay_out(x, layout).requires_grad_()]
    if affine:
        leaves += [torch.randn(shape[1], requires_grad=True), torch.randn(shape[1], requires_grad=True)]
    want_leaves = [leaf.detach().double().requires_grad_() for leaf in leaves]
    name = "training" if function is nt.batch_norm else "use_input_stats"
    y = function(leaves[0], mean, var, *leaves[1:], **{name: False})
    y.backward(dy)
    want = F.batch_norm(want_leaves[0], mean.double(), var.double(), *want_leaves[1:])
    want.backward(dy.double())
    torch.testing.assert_close(y.double(), want, rtol=1e-5, atol=1e-5)
    for leaf, other in zip(leaves, want_leaves, strict=True):
        torch.testing.assert_close(leaf.grad.double(), other.grad, rtol=1e-5, atol=1e-4)


def test_training_after_evaluation_is_noticed():
    """A backward pass through statistics that have since changed is refused, as in PyTorch."""
    norm = nt.BatchNorm2d(3).eval()
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    y = norm(x)
    norm.train()(torch.randn(2, 3, 4, 4))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


STATEFUL = [name for name in BUILT if "Batch" in name or "Instance" in name]


@pytest.mark.parametrize("name", BUILT)
def test_module_equals_torch(name):
    """Same constructor, representation, state and results; a subclass, so that nothing else has to change."""
    args, shape = BUILT[name]
    ours, theirs = getattr(nt, name)(*args), getattr(nn, name)(*args)
    assert isinstance(ours, getattr(nn, name))
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert ours.state_dict()._metadata == theirs.state_dict()._metadata
    theirs.load_state_dict(ours.state_dict())
    copied = copy.deepcopy(ours)
    for module in (ours, theirs, copied):
        module.double()
    for _ in range(2):
        x = torch.randn(shape, dtype=torch.float64)
        want = theirs(x)
        torch.testing.assert_close(ours(x), want)
        torch.testing.assert_close(copied(x), want)
    for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize(
    "options",
    [
        {"momentum": None},
        {"track_running_stats": False},
        {"affine": False},
        {"track_running_stats": True, "affine": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", STATEFUL)
def test_stateful_module_options(name, options):
    """Momentum None, no tracking, no parameters: training and evaluation, as PyTorch."""
    args, shape = BUILT[name]
    ours, theirs = (getattr(m, name)(*args, dtype=torch.float64, **options) for m in (nt, nn))
    for training in (True, True, False):
        ours.train(training)
        theirs.train(training)
        x = torch.randn(shape, dtype=torch.float64)
        torch.testing.assert_close(ours(x), theirs(x))
        for a, b in zip(ours.buffers(), theirs.buffers(), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("way", ["short", "operator"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_kernel_counts_the_batch(shape, way, monkeypatch):
    """In every strategy, once, without an addition of PyTorch's; autograd sees the change."""
    if way == "operator" and not launch.INTERPRETED:
        pytest.skip("the emulator's tensors are a CPU's to PyTorch, whose operators have no such kernel")
    if way == "short":
        monkeypatch.setattr(autograd, "_modes", lambda: 0)  # or the norm would notice that it is watched
    norm = (nt.BatchNorm1d if len(shape) == 2 else nt.BatchNorm2d)(shape[1])
    x = torch.randn(shape)
    version = norm.num_batches_tracked._version
    with Watching() as watching:
        norm(x)
        norm(x)
    assert norm.num_batches_tracked == 2 and norm.num_batches_tracked._version > version
    assert not any("add" in name for name in watching.names)  # the interpreter's own copies aside
    assert watching.names.count("normtriton::normalize_and_update") == (2 if way == "operator" else 0)


@pytest.mark.parametrize("reason", ["empty", "raises", "cumulative", "other dtype"])
def test_batches_that_no_kernel_counts(reason):
    """Empty ones, those of a call that raises, and those whose number the momentum needs, are counted all the same."""
    ours, theirs = (m.BatchNorm1d(3, momentum=None if reason == "cumulative" else 0.1) for m in (nt, nn))
    x = torch.randn((0, 3, 4) if reason == "empty" else (5, 3, 4))
    for norm in (ours, theirs):
        if reason == "other dtype":
            norm.num_batches_tracked = norm.num_batches_tracked.int()
        if reason == "raises":
            norm.weight = nn.Parameter(torch.ones(4))
            with pytest.raises(RuntimeError, match="weight should contain 3 elements not 4"):
                norm(x)
        else:
            norm(x)
    assert ours.num_batches_tracked == theirs.num_batches_tracked == 1
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)


@pytest.mark.parametrize("kind", ["LayerNorm", "BatchNorm1d"])
def test_parameters_that_were_replaced(kind):
    """A parametrized weight is no longer among the parameters; the module finds it, and its buffers."""
    ours, theirs = getattr(nt, kind)(4), getattr(nn, kind)(4)
    for norm in (ours, theirs):
        torch.nn.utils.parametrize.register_parametrization(norm, "weight", nn.Softplus())
    x = torch.randn(3, 4)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(dict(ours.named_buffers()), dict(theirs.named_buffers()))
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def test_tracking_switched_off_after_construction():
    """Training does not update, evaluation still uses the buffers; the batch is counted even if the call raises."""
    ours, theirs = nt.BatchNorm1d(3), nn.BatchNorm1d(3)
    for module in (ours, theirs):
        with pytest.raises(ValueError, match="more than 1 value"):
            module(torch.randn(1, 3))
        assert module.num_batches_tracked == 1
        module.track_running_stats = False
        module(torch.randn(4, 3))
        assert module.running_mean.abs().max() == 0
    x = torch.randn(4, 3)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def test_unbatched_instance_norm():
    """Input without a batch axis gets one."""
    x = torch.randn(6, 4, 3)
    torch.testing.assert_close(nt.InstanceNorm2d(6)(x), nn.InstanceNorm2d(6)(x))


def test_convert_sync_batchnorm():
    """PyTorch's own conversion takes our batch norm for what it is."""
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nt.BatchNorm2d(6))
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert type(converted[1]) is nn.SyncBatchNorm
    assert converted[1].running_mean is model[1].running_mean
