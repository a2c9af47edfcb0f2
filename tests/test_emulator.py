"""The emulator: small kernels of many kinds against PyTorch, and planted faults that it must find."""

import inspect
import re
from contextlib import contextmanager
from functools import partial

import emulator_kernels as kernels
import pytest
import torch
from normtriton.perf.emulator import build
from normtriton.perf.emulator import device as emulator

from normtriton.runtime import compiling

F32, F64, F16, BF16 = torch.float32, torch.float64, torch.float16, torch.bfloat16


@pytest.fixture(params=[1, 2], ids=["seed-1", "seed-2"])
def seeded(request, device):
    """The device under two schedules."""
    device.executor.configure(seed=request.param)
    return device


def run(kernel, programs, *args, **options):
    """Launch. Triton 3.9 warns where nothing is said of fused multiply-add."""
    kernel[(programs,)](*args, **options, enable_fp_fusion=True)


def needs(device, ctas):
    """Skip what needs clusters where there are none."""
    if ctas > 1 and device.profile.capability < (9, 0):
        pytest.skip("clusters are of compute capability 9.0 on")


def close(device, got, want, tolerance=1e-5):
    """Whether a result was written as a whole, and is right but for rounding."""
    assert device.unwritten(got) == 0
    scale = want.abs() + want.square().mean().sqrt()
    assert ((got.double() - want).abs() / scale).max().item() <= tolerance


def test_arithmetic_with_a_mask(seeded):
    """The last program has fewer elements."""
    x, y, z = torch.randn(600), torch.randn(600), torch.empty(600)
    run(kernels.add, 3, x, y, z, 600, block=256)
    assert torch.equal(z, x + y) and seeded.unwritten(z) == 0


@pytest.mark.parametrize(
    ("ctas", "warps", "dtype"),
    [(1, 1, F32), (1, 8, F32), (1, 4, F64), (2, 4, F32), (8, 1, F64)],
    ids=["warp", "block", "block-fp64", "cluster-of-2", "cluster-of-8-fp64"],
)
def test_sums(ctas, warps, dtype, seeded):
    """Over a warp, a thread block and a cluster."""
    needs(seeded, ctas)
    x, y = torch.randn(3, 1000, dtype=dtype), torch.empty(3, dtype=dtype)
    run(kernels.total, 3, x, y, 1000, block=1024, num_ctas=ctas, num_warps=warps)
    close(seeded, y, x.double().sum(1), 1e-13 if dtype == F64 else 1e-5)


@pytest.mark.parametrize(("ctas", "dtype"), [(1, F32), (2, F32), (8, BF16)], ids=str)
def test_one_sum_after_another(ctas, dtype, seeded):
    """The second sum reuses the memory of the first."""
    needs(seeded, ctas)
    n = 1800
    x, y, mean, rstd = torch.randn(2, n).to(dtype), torch.empty(2, n, dtype=dtype), torch.empty(2), torch.empty(2)
    run(kernels.moments, 2, x, mean, rstd, y, n, block=2048, num_ctas=ctas)
    close(seeded, y, torch.nn.functional.layer_norm(x.double(), (n,)), 8e-3 if dtype == BF16 else 1e-5)
    close(seeded, mean, x.double().mean(1))


@pytest.mark.parametrize(("ctas", "rows", "cols"), [(1, 32, 32), (1, 4, 256), (2, 32, 32)])
def test_conversions_of_layouts(ctas, rows, cols, seeded):
    """Sums along both axes of one tile."""
    needs(seeded, ctas)
    x, y = torch.randn(rows, cols), torch.empty(rows, cols)
    run(kernels.columns, 1, x, y, rows=rows, cols=cols, num_ctas=ctas)
    wide = x.double()
    close(seeded, y, wide * wide.sum(0) - wide.sum(1, keepdim=True))


@pytest.mark.parametrize("ctas", [1, 4])
def test_sums_along_each_of_three_axes(ctas, seeded):
    """Of one tile, in one kernel."""
    needs(seeded, ctas)
    x, results = torch.randn(8, 4, 32), (torch.empty(4, 32), torch.empty(8, 32), torch.empty(8, 4))
    run(kernels.cube, 1, x, *results, depth=8, height=4, width=32, num_ctas=ctas)
    for axis, result in enumerate(results):
        close(seeded, result, x.double().sum(axis))


@pytest.mark.parametrize(("ctas", "dtype"), [(1, BF16), (2, F32)], ids=str)
def test_transposition(ctas, dtype, seeded):
    """Through shared memory, of another block too."""
    needs(seeded, ctas)
    x, y = torch.randn(32, 64).to(dtype), torch.empty(64, 32, dtype=dtype)
    run(kernels.transpose, 1, x, y, rows=32, cols=64, num_ctas=ctas)
    assert torch.equal(y, x.t().contiguous())


@pytest.mark.parametrize("dtype", [F32, F16], ids=str)
def test_softmax(dtype, seeded):
    """A maximum, exponentials, a sum and a division."""
    x, y = torch.randn(3, 777).to(dtype), torch.empty(3, 777, dtype=dtype)
    run(kernels.softmax, 3, x, y, 777, block=1024)
    close(seeded, y, x.double().softmax(1), 1e-3 if dtype == F16 else 1e-5)


def test_matrix_product(seeded):
    """By broadcasting."""
    x, y, z = torch.randn(16, 32), torch.randn(32, 16), torch.empty(16, 16)
    run(kernels.matmul, 1, x, y, z, rows=16, cols=16, inner=32)
    close(seeded, z, x.double() @ y.double())


FLOATS = (F32, F16, BF16, F64)
INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64)


@pytest.mark.usefixtures("seeded")
@pytest.mark.parametrize(
    ("source", "targets"), [*((s, FLOATS) for s in (*FLOATS, torch.int8, torch.int64)), (F32, INTEGERS[1:])], ids=str
)
def test_conversions_of_dtypes(source, targets):
    """As PyTorch rounds them: subnormal numbers, ties, and what is too large."""
    x = torch.randn(500, dtype=F64) * torch.logspace(-12, 12, 500, base=4, dtype=F64)
    if not source.is_floating_point or targets != FLOATS:
        x = x.clamp(-100, 100)
    x[:7] = torch.tensor([0.0, -0.0, 1.0, -1.0, 1.00390625, 1.01171875, 1.0009765625 / 2])
    x = x.to(source)
    ys = tuple(torch.empty(500, dtype=target) for target in targets)
    run(kernels.convert, 2, x, ys, 500, block=256)
    for y in ys:
        assert torch.equal(y, x.to(y.dtype)), y.dtype


@pytest.mark.usefixtures("seeded")
def test_integers():
    """Division towards zero, shifts, and the upper half of a product."""
    x = torch.randint(-(2**31), 2**31 - 1, (500,), dtype=torch.int32)
    y = torch.randint(1, 2**20, (500,), dtype=torch.int32) * (2 * torch.randint(0, 2, (500,), dtype=torch.int32) - 1)
    z = torch.empty_like(x)
    run(kernels.integers, 2, x, y, z, 500, block=256)
    a, b = x.long(), y.long()
    quotient = torch.div(a, b, rounding_mode="trunc")
    left = (quotient * 3 + a - quotient * b) ^ (((a << 3) & 0xFFFFFFFF) & (b >> 2)) | torch.minimum(a, b)
    high = [((i & 0xFFFFFFFF) * (j & 0xFFFFFFFF)) >> 32 for i, j in zip(a.tolist(), b.tolist(), strict=True)]
    want = torch.where(a > b, left, torch.tensor(high))
    assert torch.equal(z, ((want + 2**31) % 2**32 - 2**31).to(torch.int32))


@pytest.mark.usefixtures("seeded")
def test_a_register_that_is_wider_than_the_type():
    """Is converted from its lower half."""
    x = torch.randint(-(2**62), 2**62, (500,))
    y = torch.empty_like(x)
    run(kernels.lower_halves, 2, x, y, 500, block=256)
    assert torch.equal(y, x.to(torch.int32).long())


def test_elementary_functions(seeded):
    """Exponential, logarithm, roots, sine and cosine."""
    x, y = torch.randn(500), torch.empty(500)
    run(kernels.elementary, 2, x, y, 500, block=256)
    v = x.double()
    want = (-v * v).exp() + (1 + v * v).log() + (1 + v.abs()).rsqrt() + v.sin() * v.cos()
    close(seeded, y, want + v.floor() + v.abs().sqrt() + v / 3)


def test_a_loop_with_a_branch(seeded):
    """As often as an argument says."""
    x, y = torch.randn(1000), torch.empty(128)
    run(kernels.loop, 1, x, y, 1000, 8, block=128)
    v = torch.nn.functional.pad(x.double(), (0, 24)).view(8, 128)
    close(seeded, y, v[::2].sum(0) - v[1::2].sum(0))


def test_scan(seeded):
    """A cumulative sum over several warps."""
    x, y = torch.randn(1024), torch.empty(1024)
    run(kernels.scan, 1, x, y, block=1024)
    close(seeded, y, x.double().cumsum(0))


@pytest.mark.usefixtures("seeded")
def test_atomics():
    """Programs add to the same elements."""
    x, y = torch.arange(1000, dtype=torch.int32), torch.zeros(8, dtype=torch.int32)
    run(kernels.add_atomically, 4, x, y, 1000, block=256)
    assert torch.equal(y, x.view(-1, 8).sum(0).to(torch.int32))


@pytest.mark.usefixtures("seeded")
def test_the_place_of_the_largest():
    """A reduction of pairs."""
    x, y = torch.randn(4, 700), torch.empty(4, dtype=torch.int32)
    run(kernels.largest, 4, x, y, 700, block=1024)
    assert torch.equal(y.long(), x.argmax(1))


# ---- planted faults


def findings(device, faulty):
    """What is found in the launches of a function. A launch that cannot go on raises, too."""
    with device.watching() as launches:
        try:
            faulty()
        except RuntimeError:
            assert any(ran.error for ran in launches)
    return [report for ran in launches for report in ran.errors]


@contextmanager
def edited(device, kernel, edit):
    """A kernel whose PTX is changed when it is loaded, which it is anew."""
    kernel.device_caches.clear()
    device.edit = edit
    try:
        yield
    finally:
        device.edit = None
        kernel.device_caches.clear()


def without(pattern, which):
    """An edit that deletes one of the matches."""

    def edit(text):
        match = list(re.finditer(pattern, text))[which]
        return text[: match.start()] + text[match.end() :]

    return edit


def replaced(pattern, by):
    """An edit that replaces the first match."""

    def edit(text):
        changed, count = re.subn(pattern, by, text, count=1)
        assert count, pattern
        return changed

    return edit


def moments(ctas=1):
    x, y, mean, rstd = torch.randn(2, 1800), torch.empty(2, 1800), torch.empty(2), torch.empty(2)
    run(kernels.moments, 2, x, mean, rstd, y, 1800, block=2048, num_ctas=ctas)


def columns():
    run(kernels.columns, 1, torch.randn(32, 32), torch.empty(32, 32), rows=32, cols=32, num_ctas=1)


def transpose():
    run(kernels.transpose, 1, torch.randn(32, 64), torch.empty(64, 32), rows=32, cols=64, num_ctas=1)


def copy(x, y, loaded, stored):
    run(kernels.copy, 4, x, y, loaded, stored, block=256)


#: Faults of a kernel or of its arguments: what must be found, and a function that has it.
WRONG = {
    "load-out-of-bounds": ("out-of-bounds", lambda: copy(torch.randn(1000), torch.empty(1000), 1001, 1000)),
    "store-out-of-bounds": ("out-of-bounds", lambda: copy(torch.randn(1024), torch.empty(1000), 1000, 1001)),
    "load-between-a-views-elements": (
        "out-of-bounds",
        lambda: copy(torch.randn(2000)[::2], torch.empty(1000), 1000, 1000),
    ),
    "uninitialised-read": ("uninitialised-read", lambda: copy(torch.empty(1000), torch.empty(1000), 1000, 1000)),
    "uninitialised-read-of-integers": (
        "uninitialised-read",
        lambda: copy(torch.empty(1000, dtype=torch.int16), torch.empty(1000, dtype=torch.int16), 1000, 1000),
    ),
    "double-write": ("double-write", lambda: run(kernels.overwrite, 4, torch.randn(256), torch.empty(256), block=256)),
    "cross-program-read": (
        "cross-program",
        lambda: run(kernels.neighbours, 4, torch.randn(1024), torch.empty(1024), block=256),
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_faults_of_kernels_are_found(name, device):
    """Wrong masks, wrong strides, and programs that get in each other's way."""
    kind, faulty = WRONG[name]
    assert kind in {report.kind for report in findings(device, faulty)}


BARRIER = r"bar\.sync\s+0;"
ARRIVE, WAIT = r"barrier\.cluster\.arrive\S*;", r"barrier\.cluster\.wait\S*;"
CLUSTER_BARRIER = rf"{ARRIVE}\s*{WAIT}"
HALF = "{{ .reg .pred q; .reg .b32 t; mov.u32 t, {0}; setp.lt.u32 q, t, {1}; @q {2} }}"
#: Faults of PTX: what must be found, the kernel, its launch, and the edit that plants the fault.
MUTANTS = {
    "misaligned-vector": (
        "misaligned",
        transpose,
        replaced(r"(ld\.global\.v4\S+ [^;]*\+) 0 \]", r"\1 4 ]"),
    ),
    **{
        f"barrier-deleted-{name}-{which}": ("race-shared", function, without(BARRIER, which))
        for name, function, which in (
            ("sums", moments, 0),
            ("sums", moments, 1),
            ("sums", moments, -1),
            ("layouts", columns, 0),
            ("layouts", columns, -1),
            ("transposition", transpose, 0),
        )
    },
    "barrier-divergent": ("barrier", moments, replaced(BARRIER, HALF.format("%laneid", 16, "bar.sync 0;"))),
    "deadlock": ("deadlock", moments, replaced(BARRIER, HALF.format("%tid.x", 32, "bar.sync 1, 64;") + " bar.sync 0;")),
    "shuffle-with-an-absent-lane": (
        "shuffle",
        moments,
        replaced(r"shfl\.sync\.bfly\.b32\s+%r\d+, %r\d+, 16, 31, -1;", HALF.format("%laneid", 16, r"\g<0>")),
    ),
    **{
        f"cluster-{name}": (kind, partial(moments, 2), edit)
        for name, kind, edit in (
            ("barrier-deleted-0", "race-shared", without(CLUSTER_BARRIER, 0)),
            ("barrier-deleted-1", "race-shared", without(CLUSTER_BARRIER, 1)),
            ("no-barrier-before-exit", "exit-before-access", without(CLUSTER_BARRIER, -1)),
            ("relaxed-arrival", "race-shared", replaced(r"barrier\.cluster\.arrive", r"\g<0>.relaxed")),
            ("arrival-without-wait", "barrier", without(WAIT, 0)),
            (
                "absent-rank",
                "out-of-bounds",
                replaced(r"(mapa\.shared::cluster\.u32\s+%r\d+, %r\d+,) %r\d+;", r"\1 7;"),
            ),
        )
    },
}


@pytest.mark.parametrize("name", MUTANTS)
def test_faults_of_ptx_are_found(name, device):
    """Barriers, vectors, shuffles and ranks that a compiler might get wrong."""
    kind, faulty, edit = MUTANTS[name]
    needs(device, 2 if name.startswith("cluster") else 1)
    kernel = getattr(kernels, getattr(faulty, "func", faulty).__name__)
    with edited(device, kernel, edit):
        assert kind in {report.kind for report in findings(device, faulty)}
    assert not findings(device, faulty)


def test_unwritten_output(device):
    """A result of which one element was forgotten."""
    y = torch.empty(1000)
    copy(torch.randn(1000), y, 1000, 999)
    assert device.unwritten(y) == 1 and device.unwritten(y[:999]) == 0


def test_a_copy_of_its_own_is_initialised(device):
    """Values that look like memory never written are values all the same."""
    x = torch.full((1000,), -1, dtype=torch.int32).view(F32)  # NaN: every bit is set
    assert not findings(device, lambda: copy(device.own(x), torch.empty(1000), 1000, 1000))


def test_findings_say_where(device):
    """The line of the kernel's source and that of PTX."""
    (found,) = findings(device, lambda: copy(torch.randn(1000), torch.empty(1000), 1001, 1000))
    lines, first = inspect.getsourcelines(kernels.copy.fn)
    line = first + next(i for i, text in enumerate(lines) if text.endswith("# beyond\n"))
    assert found.source == f"emulator_kernels.py:{line}" and "ld.global" in found.ptx
    assert "4 bytes" in found.text and found.source in str(found)


def test_racing_values_are_garbage_with_chaos(device):
    """So that a result shows whether it depends on them."""
    results = []
    for chaos in (False, True):
        device.executor.configure(chaos=chaos)
        x, y = torch.zeros(1024), torch.empty(1024)
        assert findings(device, lambda x=x, y=y: run(kernels.neighbours, 4, x, y, block=256))
        results.append(y.isnan().any().item())
    assert results == [False, True]


@pytest.mark.xfail(raises=pytest.fail.Exception, strict=True, reason="its launch accesses what it may not")
def test_findings_fail_a_test():
    """Any test's, if nobody else watches its launches."""
    copy(torch.randn(1000), torch.empty(1000), 1001, 1000)


# ---- the device and its library


def test_one_device_in_a_process(device, monkeypatch):
    """Another is refused, as is one for kernels that are interpreted, and a GPU that is not known."""
    with pytest.raises(RuntimeError, match=f"{device.profile.target} is emulated already"):
        emulator.enable("sm_90")
    monkeypatch.setattr(emulator, "_enabled", None)
    with pytest.raises(ValueError, match="'sm_70'; there are sm_80, sm_90, sm_100"):
        emulator.enable("sm_70")
    for sms, error in ((0, ValueError), (-1, ValueError), (True, TypeError), (1.5, TypeError), ("132", TypeError)):
        with pytest.raises(error, match=rf"^enable\(\): argument 'sms' must be .*{sms}"):
            emulator.enable("sm_90", sms=sms)
    monkeypatch.setattr(compiling, "INTERPRETED", True)
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET=1"):
        emulator.enable("sm_90")


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        *(
            (name, value, TypeError)
            for name in ("seed", "resident", "max_clusters", "quantum")
            for value in (True, 1.5, None)
        ),
        *(
            (name, value, ValueError)
            for name, value in (("seed", -1), ("resident", 0), ("max_clusters", -1), ("quantum", 0))
        ),
        ("checks", ("race-global", "typo"), ValueError),
    ],
)
def test_settings_of_the_executor_are_checked(name, value, error, device):
    """Nothing blocks would run, and a check that is none would be missed."""
    with pytest.raises(error, match=rf"^configure\(\): .*{name}.*"):
        device.executor.configure(**{name: value})


def test_tensors_say_where_they_are(device):
    """On the emulated GPU, but for those that have no memory."""
    here, meta = torch.empty(1, device="cuda"), torch.empty(1, device="meta")
    assert here.is_cuda and not here.is_cpu and here.device == torch.device("cuda:0") and here.get_device() == 0
    assert not meta.is_cuda and meta.device.type == "meta"
    assert here.to("cuda", F64).dtype == F64 and here.cuda() is here
    properties = torch.cuda.get_device_properties(0)
    assert (properties.major, properties.minor) == torch.cuda.get_device_capability() == device.profile.capability
    assert properties.multi_processor_count == device.profile.sms


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A small source in place of the emulator's, and an empty cache."""
    (tmp_path / "small.cpp").write_text('extern "C" int one() { return 1; }')
    monkeypatch.setattr(build, "SOURCES", tmp_path)
    monkeypatch.setenv("NORMTRITON_CACHE", str(tmp_path / "cache"))
    return tmp_path / "small.cpp"


@pytest.mark.parametrize(
    ("compiler", "message"), [("absent-g++", r"no absent-g\+\+: install g\+\+"), ("false", r"C\+\+17")]
)
def test_a_missing_compiler(compiler, message, source, monkeypatch):
    """The error says what to install."""
    monkeypatch.setenv("CXX", compiler)
    with pytest.raises(build.CompilerMissingError, match=message):
        build.library(source.name, "small.so")


def test_a_library_is_built_once(source, monkeypatch):
    """And again when its source changes."""
    built = build.library(source.name, "small.so")
    compiler = build.subprocess.run
    monkeypatch.setattr(build.subprocess, "run", lambda *_args, **_kwargs: pytest.fail("compiled again"))
    assert build.library(source.name, "small.so") == built and built.exists()
    monkeypatch.setattr(build.subprocess, "run", compiler)
    source.write_text(source.read_text().replace("1", "2"))
    assert build.library(source.name, "small.so") != built
