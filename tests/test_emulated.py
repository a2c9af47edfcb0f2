"""Every branch of the plans as compiled code, executed on the emulator: right, with no finding, the same bits.

What each kernel's text says is read as well: nothing is fused unasked, and thread blocks of a cluster wait.

`make emulated` runs all dtypes, layouts and targets; here each branch has one dtype, on sm_80 every third.
"""

import pytest
import torch
from kernel_text import faults, fused
from normtriton.perf.cases import checks
from normtriton.perf.cases.branches import BRANCHES, CLUSTERED
from normtriton.perf.commands import emulate
from normtriton.perf.commands.bench import FLOATING
from oracle import close, reference

from normtriton import functional
from normtriton.runtime import apart, clusters

#: Orders in which warps run.
SEEDS = (1, 2)


def sample(target):
    """The checks of a target: branch after branch in one dtype after another, then layouts and running statistics."""
    with_clusters = target != "sm_80"
    by_dtype = [list(checks.of_branches(with_clusters, [dtype])) for dtype in FLOATING]
    branches = [one[i % len(FLOATING)] for i, one in enumerate(zip(*by_dtype, strict=True))]
    running = [check for check in checks.of_running(with_clusters, ["float32"]) if check.running == "updates"]
    around = [check for i, check in enumerate(checks.of_stages(with_clusters, ["float32"])) if i % 6 == 0]
    others = [*list(checks.of_layouts(FLOATING))[::8], *running[::6], *around]
    return [*branches, *others] if with_clusters else [*branches, *others][::3]


def pytest_generate_tests(metafunc):
    """Of the target that the tests run on."""
    if "check" in metafunc.fixturenames:
        target = metafunc.config.getoption("compiled")
        metafunc.parametrize("check", sample(target), ids=lambda check: check.name.replace(" ", "-"))


@pytest.fixture
def ran(monkeypatch):
    """The launches that checks have made."""
    seen, once = [], emulate.once

    def keeping(*args, **kwargs):
        results, launches = once(*args, **kwargs)
        seen.extend(launches)
        return results, launches

    monkeypatch.setattr(emulate, "once", keeping)
    return seen


def test_results_are_right_and_nothing_else_happens(check, device, ran):
    """Against float64, with two orders of execution, without a finding.

    Fused with an addition, a product and its rounded copy from another lane would give two lanes different sums.
    """
    mode = clusters.mode()
    clusters.set_mode("on" if check.device and check.device.clusters else "off")
    try:
        outcome = emulate.run(check, device, SEEDS)
    finally:
        clusters.set_mode(mode)
    assert not outcome.failures, "\n".join(outcome.failures)
    assert outcome.launches > 0 and outcome.instructions > 0
    for launch in {launch.handle: launch for launch in ran}.values():
        texts = device.texts(launch)
        assert fused(texts) == 0, launch.kernel
        assert faults(texts["ptx"], launch.cluster) == [], launch.kernel
    planned = check.device is not None and check.branch.forward == "clustered"
    planned = planned and check.running != "uses"  # given statistics sum nothing
    if check.dtype == "float32" or not planned:  # others may fit in a program, or not in a cluster
        assert any(launch.cluster > 1 for launch in ran) == planned


def test_the_sample_has_every_branch_and_dtype():
    """No branch is left out on sm_90, and no dtype."""
    names = {check.name.split()[1] for check in sample("sm_90") if check.name.startswith(("branch", "clusters"))}
    assert names == {*BRANCHES, *CLUSTERED}
    assert {check.dtype for check in sample("sm_90")} == {check.dtype for check in sample("sm_80")} == set(FLOATING)


#: Parts of norms whose groups extend over processes: (shape, layout, arguments of the oracle).
ACROSS = {
    "batch": ((6, 8, 5, 4), torch.channels_last, {"dims": (0, 2, 3), "spread": (1, -1, 1, 1)}),
    "rms": ((5, 48), torch.contiguous_format, {"dims": (-1,), "spread": (-1,), "centered": False}),
}


@pytest.mark.parametrize("name", ACROSS)
def test_groups_that_extend_over_processes(name, device):
    """What is told, merged and applied, of two processes with the same part and an empty one: that part's own norm."""
    shape, layout, given = ACROSS[name]
    x, dy = (torch.randn(shape).to(memory_format=layout) for _ in range(2))
    channels = shape[1]
    weight, bias = torch.randn(channels), torch.randn(channels) if name == "batch" else None
    if name == "batch":
        running = [device.own(t) for t in (torch.zeros(channels), torch.ones(channels))]
        call = functional.batch_norm_call(x, *running, weight, bias, True, 0.3, 1e-5)
    else:
        call = functional.rms_norm_call(x, (channels,), weight, 1e-5)

    def exchange(told):
        return torch.stack([torch.zeros_like(told), told, told])

    told, apply = apart.forward(call.problem, x, weight, bias, call.eps, call.dtype)
    y, found = apply(exchange(told), call.statistics)
    dtypes = weight.dtype, None if bias is None else bias.dtype
    gradients = apart.backward(call.problem, dy, x, weight, found, dtypes, exchange)
    want = reference(x, weight, bias, dy, **given)
    for got, expected in zip((y, *gradients), want[:4], strict=True):
        assert (got is None) == (expected is None)
        if got is not None:
            close(got, expected, slack=8 + 4 * want.hardness)
    if name == "batch":
        double = torch.cat([x, x]).double()
        close(running[0], 0.3 * double.mean((0, 2, 3)), slack=4)
        close(running[1], 0.7 + 0.3 * double.var((0, 2, 3)), slack=4)
