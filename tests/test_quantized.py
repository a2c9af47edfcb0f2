"""Results quantized in the same pass: codes against PyTorch's casts, scales, every norm and way; what is refused."""

import os
import subprocess
import sys
import warnings

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from normtriton.perf.cases.branches import CLUSTERED, CLUSTERS
from normtriton.perf.cases.checks import planned_for

import normtriton as nt
from normtriton.runtime import launch
from normtriton.runtime.quantized import KINDS, codes


def every_number(kind):
    """Float32 around every number there is, around what lies between two, and special ones."""
    if kind == "int8":
        numbers = torch.arange(-130.0, 131.0)
    else:
        numbers = torch.arange(256, dtype=torch.uint8).view(KINDS[kind][0]).float()
        numbers = numbers[numbers.isfinite()].sort().values
    between = (numbers[1:] + numbers[:-1]) / 2
    around = torch.cat([numbers, between, numbers.sign() * 1e30, torch.tensor([1e-12, -1e-12, 0.0, -0.0])])
    some = torch.cat([around, torch.nextafter(around, around + 1e9), torch.nextafter(around, around - 1e9)])
    some = some[some != 0]  # whose sign the norm decides
    return torch.cat([some, torch.tensor([float("inf"), -float("inf"), float("nan")])])


@pytest.mark.parametrize("kind", KINDS)
def test_codes(kind):
    """Bit for bit those of PyTorch's cast, saturated; NaN is NaN, or the integer 0."""
    bias = every_number(kind)  # what a norm with weight 0 gives
    n = bias.numel()
    q, scale = nt.layer_norm(
        torch.randn(2, n), (n,), torch.zeros(n), bias, quantize=kind, quantize_scale=torch.tensor([1.0])
    )
    want = codes(bias, torch.tensor(1.0), kind)
    assert q.dtype == KINDS[kind][0] and torch.equal(q[0].view(torch.uint8), q[1].view(torch.uint8))
    differ = (q[0].view(torch.uint8) != want.view(torch.uint8)) & ~(bias.isnan())
    assert not differ.any(), (bias[differ], q[0][differ].float(), want[differ].float())
    assert q[0][bias.isnan()].float().isnan().all() == (kind != "int8")
    assert scale.shape == (1, 1)


def near(q, scale, y, kind):
    """Whether q * scale is y, as near as numbers of the kind lie."""
    value, most = q.double() * scale.double(), KINDS[kind][1]
    digits = {"float8_e4m3fn": 3, "float8_e5m2": 2, "int8": 0}[kind]
    # half a unit in the last place, or of the smallest numbers; what float32 loses may tip a tie
    unit = y.abs() * 2.0**-digits if digits else torch.zeros_like(y)
    least = {"float8_e4m3fn": 2.0**-9, "float8_e5m2": 2.0**-16, "int8": 1.0}[kind]
    bound = torch.maximum(unit, least * scale.double().expand(y.shape)) * 0.5001 + 1e-6 * y.abs().max()
    inside = (y.abs() <= most * scale.double()).expand(y.shape)
    return ((value - y).abs() <= bound)[inside].all()


NORMS = {
    "layer": ("b t d", "d", (3, 5, 24)),
    "batch": ("n c *s", "n s", (3, 6, 4, 2)),
    "instance": ("n c *s", "s", (3, 6, 4, 2)),
    "group": ("n (g k) *s", "k s", (3, 6, 4, 2)),
    "long": ("b d", "d", (2, 40000)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize(("name", "kind"), list(zip([*NORMS, *NORMS], [*KINDS, *KINDS, *KINDS], strict=False)))
def test_every_norm(name, kind, dtype):
    """By a scale of each group's own, and by one that is given; the group's largest value has the largest code."""
    axes, over, shape = NORMS[name]
    sizes = {"g": 3} if name == "group" else {}
    x, skip = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    if name == "instance":
        x = x.contiguous(memory_format=torch.channels_last)
    around = {"skip": skip, "activation": "silu"}
    wide = {"skip": skip.double(), "activation": "silu"}
    y = nt.normalize(x.double(), axes, over=over, **sizes, **wide)
    q, scale = nt.normalize(x, axes, over=over, quantize=kind, quantize_scale="group", **sizes, **around)
    assert q.shape == x.shape and q.stride() == x.stride() and scale.dtype == torch.float32
    assert near(q, scale, y, kind)
    split = (3, 3, 2, 4, 2) if name == "group" else shape
    dims = {"layer": 2, "batch": (0, 2, 3), "instance": (2, 3), "group": (2, 3, 4), "long": 1}[name]
    largest = y.reshape(split).abs().amax(dims, keepdim=True) / KINDS[kind][1]
    torch.testing.assert_close(scale.double().expand(shape), largest.expand(split).reshape(shape), rtol=1e-5, atol=0)
    given = scale.mean() * 2
    q, returned = nt.normalize(x, axes, over=over, quantize=kind, quantize_scale=given, **sizes, **around)
    assert near(q, given, y, kind) and returned.numel() == 1


def test_one_launch(monkeypatch):
    """With the group on chip nothing follows the norm; else its result is stored once, and quantized."""
    ran, run = [], launch._run
    monkeypatch.setattr(launch, "_run", lambda step, *args: (ran.append(step.kernel), run(step, *args)))
    x, r = torch.randn(4, 64), torch.randn(4, 64)
    q, scale, u = nt.RMSNorm(64).requires_grad_(False)(x, residual=r, quantize="int8", quantize_scale="group")
    assert ran == ["forward"] and torch.equal(u, x + r) and scale.shape == (4, 1)
    said = str(nt.explain(nt.rms_norm, x, (64,), quantize="int8", quantize_scale="group"))
    assert "quantize int8" in said and "backward: none" in said and "no program holds" not in said
    long = torch.empty(2, 100_000, device="meta")
    said = str(nt.explain(nt.rms_norm, long, (100_000,), quantize="int8", quantize_scale="group", clusters=False))
    assert "no program holds a group: y is stored" in said
    assert near(q, scale, F.rms_norm(u.double(), (64,), eps=torch.finfo(torch.float32).eps), "int8")


def test_a_cluster(monkeypatch):
    """Thread blocks that share a group find its largest value together."""
    ran, run = [], launch._run_clustered
    monkeypatch.setattr(launch, "_run_clustered", lambda step, *args: (ran.append(step.plan.ctas), run(step, *args))[1])
    x = torch.randn(2, 40000)
    with planned_for(CLUSTERS):
        q, scale = nt.rms_norm(x, (40000,), quantize="float8_e4m3fn", quantize_scale="group")
    assert min(ran) > 1  # where nothing is trusted yet, a trial runs before it
    y = F.rms_norm(x.double(), (40000,), eps=torch.finfo(torch.float32).eps)
    torch.testing.assert_close(scale[:, 0].double(), y.abs().amax(1) / 448, rtol=1e-5, atol=0)
    assert near(q, scale, y, "float8_e4m3fn")


@pytest.mark.parametrize("name", ["batch-column", "instance-column-one-short", "group-cells", "group-cells-blocks"])
def test_columns_of_a_cluster(monkeypatch, name):
    """Thread blocks that share the rows of columns, or of groups of several of them, find each one's largest value."""
    ran, run = [], launch._run_clustered
    monkeypatch.setattr(launch, "_run_clustered", lambda step, *args: (ran.append(step.plan), run(step, *args))[1])
    branch = CLUSTERED[name]
    x = torch.randn(branch.shape).contiguous(memory_format=torch.channels_last)
    axes, over, sizes = {
        "batch": ("n c *s", "n s", {}),
        "instance": ("n c *s", "s", {}),
        "group": ("n (g k) *s", "k s", {"g": branch.groups, "affine": "(g k)"}),
    }[branch.norm]
    with planned_for(CLUSTERS):
        q, scale = nt.normalize(x, axes, over=over, **sizes, quantize="int8", quantize_scale="group")
    assert ran and all(plan.shares_rows and (plan.block_groups > 0) == (branch.norm == "group") for plan in ran)
    y = nt.normalize(x.double(), axes, over=over, **sizes)
    split = (x.shape[0], branch.groups, -1, *x.shape[2:]) if branch.groups else x.shape
    dims = {"batch": (0, 2, 3), "instance": (2, 3), "group": (2, 3, 4)}[branch.norm]
    largest = y.reshape(split).abs().amax(dims, keepdim=True).expand(y.reshape(split).shape).reshape(x.shape) / 127
    torch.testing.assert_close(scale.double().expand(x.shape), largest, rtol=1e-5, atol=0)
    assert near(q, scale, y, "int8")


def test_zeros_and_masks():
    """A group of zeros has scale 1; what a mask leaves out has code 0, and no part in a scale."""
    q, scale = nt.layer_norm(torch.zeros(2, 8), (8,), quantize="int8", quantize_scale="group")
    assert not q.any() and (scale == 1).all()
    x, mask = torch.randn(2, 8), torch.rand(2, 8) > 0.5
    x[~mask] = torch.nan
    q, scale = nt.layer_norm(x, (8,), mask=mask, quantize="int8", quantize_scale="group")
    y = nt.layer_norm(x, (8,), mask=mask)
    assert not q[~mask].any() and near(q, scale, y.double(), "int8")


@pytest.mark.parametrize("shape", [(3, 0), (0, 4)], ids=str)
def test_of_no_element(shape):
    """A group of no element has scale 1, as one of zeros."""
    q, scale = nt.normalize(torch.empty(shape), "b d", over="d", quantize="int8", quantize_scale="group")
    assert q.shape == shape and q.dtype == torch.int8 and torch.equal(scale, torch.ones(shape[0], 1))


def test_a_scale_of_float32(monkeypatch):
    """Of a float64 result: by the kernels, like any other."""
    ran, run = [], launch._run
    monkeypatch.setattr(launch, "_run", lambda step, *args: (ran.append(step.kernel), run(step, *args)))
    x, given = torch.randn(3, 16, dtype=torch.float64), torch.tensor(0.02)
    q, scale = nt.layer_norm(x, (16,), quantize="int8", quantize_scale=given)
    assert ran == ["forward"] and scale.dtype == torch.float32
    assert near(q, scale, F.layer_norm(x, (16,)), "int8")


def of_groups(x, s, r):
    return nt.group_norm(x * s + r, 2, quantize="float8_e4m3fn", quantize_scale="group", activation="silu")


def of_rows(x, s, r):
    return nt.rms_norm(x, (5,), s[0, 0], residual=r, mask=r > 0, quantize="float8_e5m2", quantize_scale="group")


def of_a_scale(x, s, r):
    return nt.normalize(x, "b c t", over="t", x_scale=s, skip=r, scale=s, quantize="int8", quantize_scale=s[0, 0, 0])


def of_given_statistics(x, s, r):
    mean, var = torch.zeros(4), torch.ones(4)
    return nt.batch_norm(x * s, mean, var, gate=r, activation="silu", quantize="int8", quantize_scale="group")


def long(x, s, r):
    x, r = (t.repeat(1, 1, 20_000) for t in (x + s, r))  # on no chip
    return nt.layer_norm(x, (100_000,), residual=r, quantize="int8", quantize_scale="group")


def recorded(backend):
    """A compiler, and the library's operators in each graph that it was given."""
    graphs = []

    def compiler(graph, inputs):
        names = [str(node.target).split(".") for node in graph.graph.nodes]
        graphs.append([name[1] for name in names if name[0] == "normtriton"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of what inductor imports
            return torch._dynamo.lookup_backend(backend)(graph, inputs)

    return compiler, graphs


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize(
    ("call", "backend"),
    [
        *((call, "aot_eager") for call in (of_groups, of_rows, of_a_scale, of_given_statistics, long)),
        (of_rows, "inductor"),
    ],
)
def test_one_operator(call, backend, dynamic):
    """Is what a compiler sees, and the results have the bits, dtypes and strides of a call."""
    torch._dynamo.reset()
    compiler, graphs = recorded(backend)
    compiled = torch.compile(call, backend=compiler, fullgraph=True, dynamic=dynamic)
    for n in (3, 6) if dynamic else (3,):
        given = torch.randn(n, 4, 5), torch.rand(1, 1, 5) + 0.1, torch.randn(n, 4, 5)
        with torch._dynamo.config.patch(error_on_recompile=n == 6):
            made, want = compiled(*given), call(*given)
        assert [(t.dtype, t.shape, t.stride()) for t in made] == [(t.dtype, t.shape, t.stride()) for t in want]
        for got, right in zip(made, want, strict=True):
            assert torch.equal(got.float(), right.float())
    assert {*map(tuple, graphs)} == {("surround_quantized",)}


def test_compiled_running_statistics():
    """Are updated as a call updates them; PyTorch's operations quantize."""
    x = torch.randn(3, 4, 5)
    ours, eager = (nt.BatchNorm1d(4, affine=False) for _ in range(2))
    torch._dynamo.reset()
    compiler, graphs = recorded("aot_eager")
    q, scale = torch.compile(ours, backend=compiler, fullgraph=True)(x, quantize="int8", quantize_scale="group")
    want, right = eager(x, quantize="int8", quantize_scale="group")
    assert graphs == [["normalize_and_update"]] and (q != want).sum() <= 1
    torch.testing.assert_close(scale, right)
    torch.testing.assert_close(dict(ours.named_buffers()), dict(eager.named_buffers()))


@pytest.mark.parametrize("given", [False, True], ids=["group", "given"])
@pytest.mark.parametrize("shape", [(3, 4, 5), (0, 4, 5), (2, 2, 100_000)], ids=str)
def test_the_operator_is_as_it_says(shape, given):
    """Schema, shape rule and dispatch, by PyTorch's own check; with an open size of the batch, too."""
    x, r, scale = torch.randn(shape), torch.randn(shape), torch.full((1, 1, 1), 0.1) if given else None
    tensors = (x, None, None, r if given else None, r, None, None, r > 0)
    words, stages = ("n c *s", "s", "c", True, "", []), ("relu", 0.0, False, False, True, "int8")
    op = torch.ops.normtriton.surround_quantized.default
    torch.library.opcheck(op, (*tensors, scale, None, None, *words, *stages, False, 1e-5))


def test_without_kernels():
    """On a CPU: PyTorch's operations, compiled too."""
    code = """
import torch, normtriton as nt
x = torch.randn(3, 5, 8)
q, s = nt.normalize(x, "b t d", over="d", quantize="int8", quantize_scale="group")
y = torch.nn.functional.layer_norm(x, (8,))
assert s.shape == (3, 5, 1) and (q * s - y).abs().max() <= s.max() * 0.51
q, _, u = nt.layer_norm(x, (8,), residual=x, quantize="int8", quantize_scale=torch.tensor(0.1))
assert (q * 0.1 - torch.nn.functional.layer_norm(2 * x, (8,))).abs().max() <= 0.051 and torch.equal(u, 2 * x)
call = lambda x: nt.group_norm(x, 5, quantize="int8", quantize_scale="group")
made, want = torch.compile(call, backend="aot_eager", fullgraph=True)(x), call(x)
assert all(map(torch.equal, made, want))
"""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, env=env)


def test_what_is_refused():
    """In words that name the values, before anything runs."""
    x = torch.randn(2, 8)
    with pytest.raises(ValueError, match="quantize is one of float8_e4m3fn, float8_e5m2, int8, not 'int4'"):
        nt.layer_norm(x, (8,), quantize="int4", quantize_scale="group")
    with pytest.raises(ValueError, match="quantize goes with quantize_scale"):
        nt.layer_norm(x, (8,), quantize="int8")
    with pytest.raises(ValueError, match="quantize goes with quantize_scale"):
        nt.layer_norm(x, (8,), quantize_scale="group")
    with pytest.raises(ValueError, match="'tensor'"):
        nt.layer_norm(x, (8,), quantize="int8", quantize_scale="tensor")
    with pytest.raises(RuntimeError, match=r"quantize_scale of shape \(3,\) does not broadcast"):
        nt.layer_norm(x, (8,), quantize="int8", quantize_scale=torch.ones(3))
    with pytest.raises(RuntimeError, match=r"no gradient: call it under torch\.no_grad"):
        nt.LayerNorm(8)(x, quantize="int8", quantize_scale="group")
