"""Bad input: PyTorch's exception type, a message that names the values, and nothing written."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  the name everyone knows it by

import normtriton as nt

X = torch.randn(4, 6, 3, 3)
O5, O6 = torch.ones(5), torch.ones(6)

BAD = {
    "one value": ("batch_norm", (torch.randn(1, 3), None, None), {"training": True}, r"\[1, 3\]"),
    "eps zero": ("batch_norm", (X, None, None), {"training": True, "eps": 0.0}, "0.0"),
    "eps negative": ("batch_norm", (X, O6, O6), {"eps": -1.0}, "-1.0"),
    "no statistics": ("batch_norm", (X, None, None), {}, "running_mean"),
    "no variance": ("batch_norm", (X, O6, None), {}, "running_var"),
    "one statistic": ("batch_norm", (X, O6, None), {"training": True}, "both"),
    "mean size": ("batch_norm", (X, O5, O6), {"training": True}, "6.*5"),
    "var size": ("batch_norm", (X, O6, O5), {"training": True}, "6.*5"),
    "weight size": ("batch_norm", (X, None, None, O5), {"training": True}, "6.*5"),
    "bias size": ("batch_norm", (X, None, None, O6, O5), {"training": True}, "6.*5"),
    "momentum": ("batch_norm", (X, O6, O6), {"training": True, "momentum": None}, "NoneType"),
    "integers": ("batch_norm", (X.int(), None, None), {"training": True}, "int"),
    "complex": ("batch_norm", (X.to(torch.complex64), None, None), {"training": True}, "complex"),
    "gradient": ("batch_norm", (X, torch.ones(6, requires_grad=True), O6), {"training": True}, "running_mean"),
    "instance one element": ("instance_norm", (torch.randn(4, 6, 1),), {}, r"\[4, 6, 1\]"),
    "instance 2d": ("instance_norm", (torch.randn(4, 6),), {}, r"\[4, 6\]"),
    "instance statistics": ("instance_norm", (X,), {"use_input_stats": False}, "running_mean"),
    "instance one statistic": ("instance_norm", (X, O6), {}, "both"),
    "instance weight": ("instance_norm", (X,), {"weight": O5}, "weight"),
    "instance integers": ("instance_norm", (X.int(),), {}, "int"),
    "instance momentum": ("instance_norm", (X, O6, O6), {"momentum": None}, "NoneType"),
    "layer empty shape": ("layer_norm", (X, ()), {}, r"\[\]"),
    "layer weight": ("layer_norm", (X, (3,), O5), {}, r"\[5\].*\[3\]"),
    "layer bias": ("layer_norm", (X, (3,), None, O5), {}, r"\[5\].*\[3\]"),
    "layer shape": ("layer_norm", (X, (4,)), {}, r"\[4\]"),
    "layer number": ("layer_norm", (X, 3), {}, "int"),
    "layer long shape": ("layer_norm", (torch.randn(3), (2, 3)), {}, r"\[2, 3\]"),
    "layer integers": ("layer_norm", (X.int(), (3,)), {}, "int"),
    "rms long shape": ("rms_norm", (torch.randn(3), (2, 3)), {}, "2"),
    "rms shape": ("rms_norm", (X, (4,)), {}, "4"),
    "rms weight": ("rms_norm", (X, (3,), O5), {}, r"\[5\].*\[3\]"),
    "rms number": ("rms_norm", (X, 3), {}, "int"),
    "rms integers": ("rms_norm", (X.int(), (3,)), {}, "int"),
    "group 1d": ("group_norm", (torch.randn(4), 2), {}, "1"),
    "group divisor": ("group_norm", (X, 4), {}, "num_groups=4"),
    "group negative": ("group_norm", (X, -2), {}, "-2"),
    "group zero": ("group_norm", (X, 0), {}, "zero"),
    "group fraction": ("group_norm", (X, 2.5), {}, "float"),
    "group weight": ("group_norm", (X, 2, O5), {}, r"\[5\]"),
    "group weight 2d": ("group_norm", (X, 2, torch.ones(1, 6)), {}, r"\[1, 6\]"),
    "group one value": ("group_norm", (torch.randn(1, 6), 6), {}, "1"),
    "group integers": ("group_norm", (X.int(), 2), {}, "int"),
}


@pytest.mark.parametrize(("name", "args", "kwargs", "message"), BAD.values(), ids=BAD)
def test_error_is_pytorchs(name, args, kwargs, message):
    """The type that PyTorch raises for the same call, and the values in the message."""
    before = [a.clone() for a in args if isinstance(a, torch.Tensor)]
    with pytest.raises(Exception) as theirs:  # noqa: PT011  whatever it is, ours must be it
        getattr(F, name)(*args, **kwargs)
    with pytest.raises(type(theirs.value), match=message) as ours:
        getattr(nt, name)(*args, **kwargs)
    assert type(ours.value) is type(theirs.value)
    for tensor, old in zip((a for a in args if isinstance(a, torch.Tensor)), before, strict=True):
        assert torch.equal(tensor, old)


def test_another_device():
    """A parameter elsewhere than the input names both devices."""
    with pytest.raises(RuntimeError, match=r"cpu.*meta"):
        nt.layer_norm(X, (3,), torch.ones(3, device="meta"))


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
