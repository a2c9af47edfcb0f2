"""Every norm against the textbook in float64: forward and all gradients, every branch of the plan, any layout."""

import pytest
import torch
from cases import CASES, LAYOUTS, SMALL, Case, lay_out, textbook
from oracle import EPS32, close, reference

import normtriton

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def parameters(case, dtype=torch.float32, affine=True):
    if not affine:
        return None, None
    weight = torch.randn(case.features()).to(dtype).requires_grad_()
    bias = torch.randn(case.features()).to(dtype).requires_grad_()
    return weight, None if case.norm == "rms" else bias


def check(case, x, weight, bias, dy, eps=1e-5):
    """Compare a case with the oracle."""
    x = x.detach().requires_grad_()
    y = case.run(x, weight, bias, eps)
    y.backward(dy)
    want = reference(x, weight, bias, dy, eps=eps, **textbook(case))
    hard = want.hardness  # backward has the mean in float32 only, as PyTorch's does
    unit = 2.0**-53 if x.dtype == torch.float64 else EPS32
    close(y, want.y, unit=unit)
    # dx is a difference: its terms, not itself, set the scale of the rounding
    close(x.grad, want.dx, unit=unit, slack=4 * hard, scale=max(want.dx.abs().max().item(), 1e-30) * 2)
    terms = (y.numel() / max(case_parameters(case), 1)) ** 0.5
    for parameter, gradient in ((weight, want.dweight), (bias, want.dbias)):
        if parameter is not None:
            scale = max(gradient.abs().max().item(), terms * dy.abs().max().item())
            close(parameter.grad, gradient, unit=unit, slack=4 * hard, scale=scale)
    assert y.dtype == x.dtype and x.grad.dtype == x.dtype
    return x, y


def case_parameters(case):
    return torch.Size(case.features()).numel()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_branch_of_the_plan(case):
    """Each branch gives the textbook's result, the same bits on every run, and the case does reach it."""
    x = lay_out(torch.randn(case.shape) * 2 + 3, case.layout)
    dy = lay_out(torch.randn(case.shape), case.layout)
    weight, bias = parameters(case)
    explained = case.explain(x, weight, bias)
    assert (explained.forward.schedule.strategy, explained.backward.schedule.strategy) == (case.forward, case.backward)
    x, y = check(case, x, weight, bias, dy)
    assert y.stride() == x.stride() and x.grad.stride() == x.stride()
    leaves = [t for t in (x, weight, bias) if t is not None]
    again = case.run(x, weight, bias)
    gradients = torch.autograd.grad(again, leaves, dy)
    assert torch.equal(again, y) and all(torch.equal(g, t.grad) for g, t in zip(gradients, leaves, strict=True))


#: Groups of one element, in each norm whose mean such a group can have.
OF_ONE = {
    "layer": Case("layer", (5, 1), "resident", "resident"),
    "layer-3": Case("layer", (37, 1, 1, 1), "resident", "resident", dims=3),
    "group": Case("group", (3, 8, 1), "resident", "resident", groups=8),
    "group-channels-last": Case("group", (3, 8, 1, 1), "resident", "resident", "channels_last", groups=8),
}


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("case", OF_ONE.values(), ids=OF_ONE)
def test_group_of_one_element(case, dtype):
    """The element is its group's mean: y is the bias and dx exactly 0, whatever the weight."""
    x = lay_out((torch.randn(case.shape) * 2 + 3).to(dtype), case.layout).requires_grad_()
    weight, bias = parameters(case)
    y = case.run(x, weight, bias)
    y.backward(torch.randn(case.shape).to(dtype))
    spread = textbook(case)["spread"]
    assert torch.equal(y, bias.reshape(spread).expand(case.shape).to(dtype))
    assert torch.equal(x.grad, torch.zeros_like(x))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("gradient", LAYOUTS)
@pytest.mark.parametrize("case", SMALL.values(), ids=SMALL)
def test_any_layout_of_input_and_gradient(case, layout, gradient):
    """The strides of x and of dy change nothing but addresses, and the result keeps x's memory format."""
    x = lay_out(torch.randn(case.shape) + 1, layout)
    x, y = check(case, x, *parameters(case), lay_out(torch.randn(case.shape), gradient))
    assert y.stride() == torch.empty_like(x).stride()


@pytest.mark.parametrize("case", SMALL.values(), ids=SMALL)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("parameter", DTYPES.values(), ids=DTYPES)
def test_mixed_dtypes(case, dtype, parameter):
    """Any dtype of x with any dtype of parameters; each gradient in its tensor's own."""
    x, dy = torch.randn(case.shape).to(dtype), torch.randn(case.shape).to(dtype)
    weight, bias = parameters(case, parameter)
    check(case, x, weight, bias, dy)
    assert weight.grad.dtype == parameter


@pytest.mark.parametrize("affine", [("weight",), ("bias",), ()], ids=str)
@pytest.mark.parametrize("case", [*SMALL.values(), CASES["group-cells"], CASES["batch-split"]], ids=lambda c: c.norm)
def test_missing_parameters(case, affine):
    """Weight and bias are each optional."""
    weight, bias = parameters(case)
    x = lay_out(torch.randn(case.shape), case.layout)
    weight, bias = (weight if "weight" in affine else None), (bias if "bias" in affine else None)
    check(case, x, weight, bias, lay_out(torch.randn(case.shape), case.layout))


@pytest.mark.parametrize("case", SMALL.values(), ids=SMALL)
def test_strided_parameters(case):
    """Parameters may be sliced or expanded."""
    x, dy = torch.randn(case.shape), torch.randn(case.shape)
    for make in (
        lambda f: torch.randn([2 * n for n in f])[tuple(slice(0, None, 2) for _ in f)],
        lambda f: torch.randn(1).expand(f),
    ):
        weight = make(case.features()).detach().requires_grad_()
        bias = None if case.norm == "rms" else torch.randn(case.features()).requires_grad_()
        check(case, x, weight, bias, dy)


@pytest.mark.parametrize(
    "name",
    [
        "row",
        "row-split",
        "batch-r1",
        "batch-streamed",
        "batch-split",
        "batch-column-split",
        "instance-split",
        "group",
        "group-split",
        "group-cells",
    ],
)
def test_a_large_mean_costs_no_digits_forward(name):
    """With a mean of a million standard deviations the result is as exact as ever; the variance does not cancel."""
    case = CASES[name]
    x = lay_out(torch.randn(case.shape) + 1e6, case.layout)
    want = reference(x, None, None, torch.randn(case.shape), eps=1e-5, **textbook(case))
    close(case.run(x, None, None), want.y)


@pytest.mark.parametrize(
    "name", ["row", "row-split", "batch-streamed", "batch-split", "batch-column-split", "group-cells"]
)
def test_outliers(name):
    """One element of 1e4 among small ones, first or last, leaves the others' digits alone."""
    case = CASES[name]
    for where in (0, -1):
        x = 1 + torch.randn(case.shape) * 0.1
        x.view(-1)[where] = 1e4
        x = lay_out(x, case.layout)
        want = reference(x, None, None, torch.randn(case.shape), **textbook(case))
        close(case.run(x, None, None), want.y)


@pytest.mark.parametrize("name", ["row", "batch-r1", "batch-split", "group-cells", "instance-streamed"])
def test_constant_groups_are_zero(name):
    """A group without variance gives exactly zero, at any mean."""
    case = CASES[name]
    x = lay_out(torch.full(case.shape, 12345.678), case.layout)
    assert case.run(x, None, None).abs().max() == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["row", "batch-split", "group-cells", "instance", "rms"])
def test_nan_and_inf_flow_as_in_pytorch(name, bad):
    """A bad element spoils what PyTorch says it spoils: its own group, and nothing else."""
    case = CASES[name]
    x = torch.randn(case.shape)
    x.view(-1)[3] = bad
    y = case.run(lay_out(x, case.layout), None, None)
    functional = torch.nn.functional
    want = {
        "layer": lambda: functional.layer_norm(x, case.features()),
        "rms": lambda: functional.rms_norm(x, case.features(), eps=1e-5),
        "batch": lambda: functional.batch_norm(x, None, None, training=True),
        "instance": lambda: functional.instance_norm(x),
        "group": lambda: functional.group_norm(x, case.groups),
    }[case.norm]()
    assert torch.equal(y.isnan(), want.isnan())
    assert torch.allclose(y, want, rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("groups", [3, 4])
def test_published_derivation(groups):
    """Rand * 10000, no parameters, eps 0: all four norms by the hand formula with the biased standard deviation."""
    tiny = torch.finfo(torch.float32).tiny
    shape = (10, 3, 5, 5) if groups == 3 else (10, 20, 5, 5)
    x = torch.rand(shape) * 10000
    functional, hand = torch.nn.functional, {}
    for name, dims in (("batch", (0, 2, 3)), ("layer", (1, 2, 3)), ("instance", (2, 3))):
        hand[name] = (x - x.mean(dims, keepdim=True)) / x.std(dims, unbiased=False, keepdim=True)
    g = 1 if groups == 3 else 4
    view = x.view(10, g, -1)
    hand["group"] = ((view - view.mean(2, keepdim=True)) / view.std(2, unbiased=False, keepdim=True)).view(shape)
    import normtriton as nt

    ours = {
        "batch": nt.batch_norm(x, None, None, training=True, eps=tiny),
        "layer": nt.layer_norm(x, shape[1:], eps=0.0),
        "instance": nt.instance_norm(x, eps=0.0),
        "group": nt.group_norm(x, g, eps=0.0),
    }
    theirs = {
        "batch": functional.batch_norm(x, None, None, training=True, eps=tiny),
        "layer": functional.layer_norm(x, shape[1:], eps=0.0),
        "instance": functional.instance_norm(x, eps=0.0),
        "group": functional.group_norm(x, g, eps=0.0),
    }
    for name, y in ours.items():
        for other in (hand[name], theirs[name]):
            assert (y - other).abs().max() < 64 * EPS32 * other.abs().max(), name


def test_few_rows_and_many_have_the_same_bits():
    """The parameters' gradients are summed in another way, and dx is the same."""
    x, dy, weight = torch.randn(300, 250), torch.randn(300, 250), torch.randn(250)
    results = []
    for rows in (3, 300):
        given = x[:rows].clone().requires_grad_()
        normtriton.layer_norm(given, (250,), weight.requires_grad_()).backward(dy[:rows])
        results.append(given.grad[:3])
    assert torch.equal(*results)


@pytest.mark.parametrize(
    "name",
    [
        "row",
        "rows-share-a-tile",
        "row-too-long-for-gradients",
        "instance-column",
        "group-cells",
        "group",
        "instance-split",
    ],
)
def test_a_sample_does_not_see_its_batch(name):
    """Bits of a sample's result and gradient are the same in a batch of 1, 2 and 5."""
    case = CASES[name]
    sample, dy = torch.randn(5, *case.shape[1:]), torch.randn(5, *case.shape[1:])
    weight, bias = parameters(case)
    results = []
    for batch in (1, 2, 5):
        x = lay_out(sample[:batch], case.layout).detach().requires_grad_()
        y = case._replace(shape=(batch, *case.shape[1:])).run(x, weight, bias)
        y.backward(lay_out(dy[:batch], case.layout))
        results.append((y[0].detach(), x.grad[0]))
    for y, dx in results[1:]:
        assert torch.equal(y, results[0][0]) and torch.equal(dx, results[0][1])
