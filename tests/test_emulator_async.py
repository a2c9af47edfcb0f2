"""Copies by cp.async on the emulator: a pipelined loop is right, and a deleted wait is found."""

import re

import pytest
import torch
import triton
import triton.language as tl


@triton.jit
def multiply(a, b, c, length, block: tl.constexpr, salt: tl.constexpr):  # noqa: ARG001, salt compiles anew
    """A product of matrices, whose blocks are prefetched by cp.async; "ieee" keeps it off the tensor cores."""
    i, k = tl.arange(0, block), tl.arange(0, block)
    total = tl.zeros((block, block), tl.float32)
    for s in tl.range(0, length, block, num_stages=3):
        left = tl.load(a + i[:, None] * length + s + k[None, :])
        right = tl.load(b + (s + k)[:, None] * block + i[None, :])
        total = tl.dot(left, right, total, input_precision="ieee")
    tl.store(c + i[:, None] * block + i[None, :], total)


def launch(device, seed, salt, edit=None):
    """A product of 16 x 256 and 256 x 16: the launch's findings, and whether the result is right."""
    generator = torch.Generator().manual_seed(3)
    a = device.own(torch.randn(16, 256, generator=generator))
    b = device.own(torch.randn(256, 16, generator=generator))
    c = torch.empty(16, 16)
    texts = []

    def keep(text):
        texts.append(text)
        return edit(text) if edit else text

    device.edit = keep
    device.executor.configure(seed=seed)
    try:
        with device.watching() as seen:
            multiply[(1,)](a, b, c, 256, block=16, salt=salt, enable_fp_fusion=True)
    finally:
        device.edit = None
        device.executor.configure()
    assert "cp.async.wait_group" in texts[0], "the loop is not pipelined: there is nothing to test"
    right = torch.allclose(c.double(), a.double() @ b.double(), rtol=1e-5, atol=1e-4)
    return [report.kind for ran in seen for report in ran.errors], right


def without_wait(text):
    """PTX without the waits for its copies."""
    return re.sub(r"cp\.async\.wait_group\s+\w+\s*;", "", text)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_pipelined_loop_waits_for_its_copies(device, seed):
    """Triton's own waits and barriers order every copy before its reads."""
    findings, right = launch(device, seed, salt=900 + seed)
    assert findings == []
    assert right


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_deleted_wait_is_a_race(device, seed):
    """Without its wait a copy stays pending: barriers do not help, and reading it is a race."""
    findings, _ = launch(device, seed, salt=910 + seed, edit=without_wait)
    assert set(findings) == {"race-shared"}
