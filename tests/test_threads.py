"""Several threads at once: each has the results of a thread alone, bit for bit, on its first launches too."""

import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from cases import CASES, SMALL, lay_out
from normtriton.perf.codegen import launches_of
from normtriton.perf.shapes import CASES as REAL
from normtriton.perf.shapes import make

import normtriton as nt
from normtriton import clusters, launch

THREADS = 4


@pytest.fixture(autouse=True)
def _no_launch_was_made(monkeypatch):
    """Threads take turns after every few instructions, and nothing is ready for them."""
    monkeypatch.setattr(launch, "_ready", {})
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def together(work):
    """What ``work`` gives for each number in threads of its own, all at once."""
    ready = Barrier(THREADS)

    def begin(number):
        ready.wait()
        return work(number)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(begin, range(THREADS)))


def same(work):
    """Whether threads have what one after the other have."""
    at_once = together(work)
    for number, found in enumerate(at_once):
        for name, (a, b) in enumerate(zip(found, work(number), strict=True)):
            assert torch.equal(a, b), f"thread {number}, result {name}"


def inputs(number, shape, *features):
    """Tensors of a thread's own."""
    generator = torch.Generator().manual_seed(number)
    return [torch.randn(s, generator=generator).requires_grad_() for s in (shape, *features)]


def test_the_smallest_input():
    """Group norm of (6, 4, 40): a grid of several programs."""
    same(lambda number: [nt.group_norm(inputs(number, (6, 4, 40))[0], 2).detach()])


EVERY = {name: SMALL[name] for name in ("layer", "rms-2", "batch", "instance", "group")} | {
    "split": CASES["group-cells"]
}


@pytest.mark.parametrize("case", EVERY.values(), ids=EVERY)
def test_every_norm(case):
    """Forward and backward, each norm, and several launches for one."""

    def work(number):
        x, weight, bias, dy = inputs(number, case.shape, case.features(), case.features(), case.shape)
        y = case.run(lay_out(x, case.layout), weight, bias)
        y.backward(dy.detach())
        return [y.detach(), x.grad, weight.grad, *([bias.grad] if case.norm != "rms" else [])]

    same(work)


def test_every_norm_beside_the_others():
    """Threads that launch different kernels."""
    cases = [SMALL[name] for name in ("layer", "rms-2", "batch", "group")]

    def work(number):
        x, weight, dy = inputs(number, cases[number].shape, cases[number].features(), cases[number].shape)
        y = cases[number].run(x, weight, None)
        y.backward(dy.detach())
        return [y.detach(), x.grad, weight.grad]

    same(work)


def test_running_statistics():
    """Modules that update and count, one a thread, and one in evaluation that all share."""
    shared = nt.BatchNorm2d(6).eval()

    def work(number):
        x, dy = inputs(number, (4, 6, 5, 7), (4, 6, 5, 7))
        own = nt.BatchNorm2d(6)
        y = shared(own(x))
        (dx,) = torch.autograd.grad(y, x, dy.detach())
        return [y.detach(), dx, own.running_mean, own.running_var, own.num_batches_tracked]

    same(work)


def test_addresses_beside_launches(pytestconfig):
    """Threads that run kernels for their addresses alone, in the same interpreter, take their turns too."""
    if pytestconfig.getoption("compiled") or not clusters.compiles():
        pytest.skip("addresses are found by the interpreter, of Triton 3.9")
    from normtriton.perf import l2, traffic

    call, *tensors = make(REAL[0]._replace(shape=(64, 256)), torch.float32, torch.contiguous_format)
    launches = launches_of(call, *tensors)["forward"]

    def work(number):
        if number % 2:
            return [torch.tensor(traffic.run(launches, l2.H100, 1).dram)]
        x, weight = inputs(number, (9, 64), (64,))
        return [nt.rms_norm(x, (64,), weight).detach()]

    same(work)
