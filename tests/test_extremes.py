"""At the ends of what numbers can be: no variance, bfloat16's subnormal numbers, squares beyond the dtype's range."""

import pytest
import torch
import triton
import triton.language as tl
from cases import CASES, CLUSTERED, SMALL, Case, lay_out, textbook
from normtriton.kernels import memory, statistics
from oracle import EPS32, reference
from test_clusters import switch  # noqa: F401  a fixture
from test_exactness import pytorch
from test_norms import DTYPES, parameters

import normtriton as nt
from normtriton.planning.norms import INSTANCE
from normtriton.planning.plan import Device
from normtriton.planning.schedule import Problem, forward_schedule

F = torch.nn.functional
BITS = {torch.bfloat16: torch.int16, torch.float32: torch.int32, torch.float64: torch.int64}


def results(function, case, x, weight, bias, dy):
    """(y, dx, dweight, dbias), without those of parameters that are not there."""
    x = lay_out(x, case.layout).detach().requires_grad_()
    given = [p if p is None else p.detach().requires_grad_() for p in (weight, bias)]
    y = function(x, *given)
    y.backward(lay_out(dy, case.layout))
    return [y.detach(), x.grad, *(p.grad for p in given if p is not None)]


def of_both(case, x, weight, bias, eps):
    """Ours and PyTorch's `results`, of which those in channels_last are wrong for one sample."""
    dy = torch.randn(case.shape).to(x.dtype)
    contiguous = case._replace(layout="contiguous")
    return (
        results(lambda *args: case.run(*args, eps), case, x, weight, bias, dy),
        results(lambda *args: pytorch(case, *args, eps), contiguous, x, weight, bias, dy),
    )


#: What instance norm has of plans.
INSTANCES = {f"{mode} {name}": (case, mode) for mode, table in (("off", CASES), ("on", CLUSTERED))
             for name, case in table.items() if case.norm == "instance"}  # fmt: skip


@pytest.mark.parametrize(("case", "mode"), INSTANCES.values(), ids=INSTANCES)
def test_instance_norm_of_a_constant_channel_without_eps(case, mode, switch):  # noqa: F811
    """PyTorch takes rstd to be 0 there: y is the bias, dx and dweight are exactly 0; other channels are as ever."""
    switch(mode)
    x = torch.randn(case.shape)
    x[:, 1] = 0.1
    weight, bias = torch.linspace(0.5, 2, case.shape[1]), torch.randn(case.shape[1])
    ours, theirs = of_both(case, x, weight, bias, 0.0)
    y, dx, dweight, _dbias = ours
    assert (y[:, 1] == bias[1]).all() and (dx[:, 1] == 0).all() and dweight[1] == 0
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5 * b.abs().max().item())


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("value", [0.0, 0.1, -12345.678, 3e-40])
def test_a_constant_channel_of_any_value_and_dtype(value, dtype):
    """Its mean is exact, whatever the dtype."""
    case = SMALL["instance"]
    x = torch.full(case.shape, value, dtype=dtype)
    weight, bias = parameters(case, dtype)
    y, dx, dweight, _dbias = results(
        lambda *args: case.run(*args, 0.0), case, x, weight, bias, torch.randn(x.shape).to(dtype)
    )
    assert torch.equal(y, bias.detach()[:, None, None].expand(x.shape))
    assert (dx == 0).all() and (dweight == 0).all()


def test_calls_with_and_without_eps_take_turns():
    """Each has a compiled kernel of its own, which is looked up from the second time on."""
    x = torch.randn(3, 8, 9) * 1e-3
    x[:, 1] = 0.1
    for eps in (1e-5, 0.0) * 3:
        y = nt.instance_norm(x, eps=eps)
        assert (y[:, 1] == 0).all()
        assert torch.allclose(y, F.instance_norm(x, eps=eps), atol=1e-4)


@triton.jit
def mean_of(x, mean, origin, n, plan: tl.constexpr):
    at = tl.arange(0, 1024)[None, None, :]
    values = tl.load(x + at, mask=at < n, other=0.0)
    if origin is not None:
        origin = tl.load(origin + tl.arange(0, 1)[None, None, :])
    found = statistics.moments(values, at < n, tl.zeros((), tl.float32) + n, origin, plan)
    tl.store(mean + tl.arange(0, 1)[None, None, :], found.mean)


def test_a_mean_measured_from_an_element():
    """That of a constant group is the element itself, where the sum through n is not."""
    schedule = forward_schedule(
        Problem(INSTANCE, (1, 1, 999)), (999, 999, 1), (999, 999, 1), None, None, (torch.float32, None), Device(2)
    )
    apart = 0
    for value in torch.randn(20):
        x, plain, exact = value.repeat(999), torch.empty(1), torch.empty(1)
        mean_of[(1,)](x, plain, None, 999, schedule.main.plan, enable_fp_fusion=False)
        mean_of[(1,)](x, exact, x, 999, schedule.main.plan, enable_fp_fusion=False)
        assert exact == value
        apart += bool(plain != value)
    assert apart


def test_running_statistics_of_a_constant_channel():
    """They are PyTorch's."""
    x = torch.full((3, 8, 9), 0.7)
    for eps in (0.0, 1e-5):
        statistics = [[torch.ones(8), torch.full((8,), 2.0)] for _ in range(2)]
        for library, given in zip((nt, F), statistics, strict=True):
            library.instance_norm(x, *given, momentum=0.25, eps=eps)
        assert torch.allclose(*map(torch.stack, statistics))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("name", ["layer", "rms-2", "group"])
def test_other_norms_without_variance_and_eps(name, dtype):
    """Finite where PyTorch's are: nothing but dbias."""
    case = SMALL[name]
    weight, bias = parameters(case, dtype)
    ours, theirs = of_both(case, torch.zeros(case.shape, dtype=dtype), weight, bias, 0.0)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.isfinite(), b.isfinite())
    assert ours[0].isnan().all()


@pytest.mark.filterwarnings("ignore:invalid value encountered in reduce:RuntimeWarning")
@pytest.mark.parametrize("name", ["batch", "instance"])
def test_a_running_variance_of_zero_without_eps(name):
    """Given statistics have no such rule: finite where PyTorch's are, with one channel of variance 0."""
    case = SMALL[name]
    mean, var, x, dy = torch.zeros(6), torch.arange(6.0), torch.randn(case.shape), torch.randn(case.shape)
    weight, bias = parameters(case)
    found = [
        results(lambda *args, f=function: f(args[0], mean, var, *args[1:], False, eps=0.0), case, x, weight, bias, dy)
        for function in (getattr(nt, f"{name}_norm"), getattr(F, f"{name}_norm"))
    ]
    for a, b in zip(*found, strict=True):
        assert torch.equal(a.isfinite(), b.isfinite())
        assert torch.allclose(a[a.isfinite()], b[a.isfinite()], rtol=1e-4, atol=1e-4)


@triton.jit
def convert(x, y, wide: tl.constexpr):
    at = tl.program_id(0) * 4096 + tl.arange(0, 4096)
    memory.store(y, at, memory.load(x, at, at >= 0, wide), at >= 0)


def converted(values, dtype, wide=tl.float32):
    """Values loaded, widened and stored in another dtype by the kernels' own steps."""
    y = torch.empty(values.shape, dtype=dtype)
    convert[(values.numel() // 4096,)](values, y, wide, enable_fp_fusion=False)
    return y


def same_bits(a, b):
    """But for the bits of NaN."""
    kind = BITS[a.dtype]
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.view(kind)[~a.isnan()], b.view(kind)[~b.isnan()])


def test_every_bfloat16_is_loaded_and_stored():
    """All 65536, and what lies between two of them: PyTorch's conversions, subnormal numbers included."""
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16)
    assert same_bits(converted(every, torch.float32), every.float())
    assert same_bits(converted(every, torch.float64, tl.float64), every.double())
    assert same_bits(converted(every, torch.bfloat16), every)
    bits = every.float().view(torch.int32)
    between = torch.cat([bits + more for more in (1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)]).view(torch.float32)
    assert same_bits(converted(between, torch.bfloat16), between.bfloat16())
    assert same_bits(converted(between.double(), torch.bfloat16, tl.float64), between.double().bfloat16())


@pytest.mark.parametrize("small", ["x", "dy", "weight", "bias"])
@pytest.mark.parametrize("case", SMALL.values(), ids=SMALL)
def test_subnormal_numbers(case, small):
    """Of bfloat16, as any operand and in every result: exact to its last digit."""
    weight, bias = parameters(case, torch.bfloat16)
    operands = {"x": torch.randn(case.shape), "dy": torch.randn(case.shape), "weight": weight, "bias": bias}
    if operands[small] is None:
        pytest.skip("RMS norm has no bias")
    operands[small] = operands[small] * 1e-39
    x, dy, weight, bias = (t if t is None else t.detach().bfloat16() for t in operands.values())
    if small == "bias":
        x = torch.zeros_like(x)
    found = results(case.run, case, x, weight, bias, dy)
    want = reference(x, weight, bias, dy, eps=1e-5, **textbook(case))
    terms = (x.numel() / case_parameters(case)) ** 0.5
    for got, exact in zip(found, (t for t in want[:4] if t is not None), strict=True):
        largest = exact.abs().max().item()
        allowed = 2.0**-8 * exact.abs() + 16 * EPS32 * terms * max(largest, dy.abs().max().item()) + 2.0**-134
        assert ((got.double() - exact).abs() <= allowed).all()


def case_parameters(case):
    return torch.Size(case.features()).numel()


def test_subnormal_running_statistics():
    """Of bfloat16: read, blended and written."""
    x = (torch.randn(5, 4, 6) * 1e-39).bfloat16()
    mean, var = (torch.tensor([1.0, -2.0, 3.0, -4.0]) * 1e-39).bfloat16(), (torch.ones(4) * 3e-39).bfloat16()
    wide = [mean.float(), var.float()]
    F.batch_norm(x.float(), *wide, training=True, momentum=0.25)
    y, want = (f.batch_norm(x.float(), mean.float(), var.float(), eps=1e-5) for f in (nt, F))
    assert torch.allclose(nt.batch_norm(x, mean, var, eps=1e-5).float(), want, rtol=2.0**-7, atol=0)
    assert torch.allclose(y, want, rtol=1e-5, atol=0)
    nt.batch_norm(x, mean, var, training=True, momentum=0.25)
    assert torch.equal(mean, wide[0].bfloat16()) and torch.equal(var, wide[1].bfloat16())


#: Where the square is beyond the range of the statistics.
ENDS = {torch.float32: 2.0**64, torch.bfloat16: 2.0**64, torch.float64: 2.0**512}
#: A shape for each norm in which a group has 96 elements, and the dimensions of a group.
OF_96 = {
    "layer": ((3, 96), (1,)),
    "rms": ((3, 96), (1,)),
    "batch": ((4, 3, 24), (0, 2)),
    "instance": ((3, 2, 96), (2,)),
    "group": ((3, 4, 24), (1, 2)),
}


@pytest.mark.filterwarnings("ignore:overflow encountered in reduce:RuntimeWarning")
@pytest.mark.parametrize("dtype", ENDS, ids=str)
@pytest.mark.parametrize("name", OF_96)
def test_where_squares_end(name, dtype):
    """Right where a group's summed squares are just within the range; beyond, y is the bias, dx and dweight are 0.

    So is PyTorch's y. Its dx of RMS norm is wrong from 1e14 on (2.13 on the CPU).
    """
    shape, dims = OF_96[name]
    case = Case(name, shape, "", "", groups=1)
    x = torch.randn(shape, dtype=torch.float64)
    x -= x.mean(dims, keepdim=True)
    x /= x.square().sum(dims, keepdim=True).sqrt()
    weight, bias = parameters(case, dtype)
    dy = torch.randn(shape).to(dtype)

    within = (0.97 * x).to(dtype)
    want = reference(within, weight, bias, dy, eps=0.0, **textbook(case))
    found = results(case.run, case, within * ENDS[dtype], weight, bias, dy)
    found[1] *= ENDS[dtype]
    for got, exact in zip(found, want, strict=False):
        assert (got.double() - exact).abs().max() <= 16 * torch.finfo(dtype).eps * exact.abs().max()

    beyond = (1.03 * x).to(dtype) * ENDS[dtype]
    y, dx, dweight, *_dbias = results(case.run, case, beyond, weight, bias, dy)
    flat = torch.zeros(()) if bias is None else bias.detach().reshape(textbook(case)["spread"])
    assert torch.equal(y, flat.to(dtype).expand(shape))
    assert torch.equal(y, pytorch(case, beyond, weight, bias, 1e-5))
    assert not dx.any()
    assert not dweight.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", OF_96)
def test_where_eps_ends(name, dtype):
    """It is a float32, or the sum of two: up to 3.4e38 it is exact, beyond infinite; below 7e-46 it is 0."""
    case = Case(name, OF_96[name][0], "", "", groups=1)
    x = torch.randn(case.shape, dtype=dtype)
    y, want = case.run(x, None, None, 3e38), pytorch(case, x, None, None, 3e38)
    assert want.any()
    assert torch.allclose(y, want, rtol=1e-5, atol=1e-6 * want.abs().max().item())
    assert not case.run(x, None, None, 3.5e38).any()
    y = case.run(torch.zeros(case.shape), None, None, 7e-46)
    assert y.isnan().all() if name in ("layer", "rms", "group") else not y.any()
