"""Programs enough for a GPU, whatever the shape: plans alone, integers."""

from math import ceil, prod

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from normtriton.planning import norms
from normtriton.planning.grouping import contiguous
from normtriton.planning.plan import Device
from normtriton.planning.schedule import Problem, forward_schedule

MB = 1 << 20
NORMS = {"batch": norms.BATCH, "instance": norms.INSTANCE, "group": norms.GROUP}
#: Thread blocks that 8 MB make at least, of 132 multiprocessors.
ENOUGH = 100
#: As many where a group is held on chip, if its elements have 4 or 8 bytes: a program holds up to 160 KB of it, a
#: cluster's thread block 128 KB. Streaming the group in smaller shares would read it twice.
HELD = 51


def sizes(most):
    """Powers of two, their neighbours, and any number."""
    powers = st.integers(0, most.bit_length() - 1).map(lambda k: 1 << k)
    return st.one_of(powers, powers.map(lambda n: n + 1), powers.map(lambda n: max(n - 1, 1)), st.integers(1, most))


@st.composite
def tensors(draw):
    """(problem, strides, bytes of an element) of an input of 8 MB or more, contiguous or channels_last."""
    dtype = draw(st.sampled_from([torch.bfloat16, torch.float32, torch.float64]))
    numel = draw(st.sampled_from([8 * MB, 8 * MB, 16 * MB, 100 * MB])) // dtype.itemsize
    name = draw(st.sampled_from(["layer", "rms", *NORMS]))
    if name in ("layer", "rms"):
        width = draw(sizes(1 << 19))
        shape = (ceil(numel / width), width)
        return Problem(norms.LAYER if name == "layer" else norms.RMS, shape, (("d", 1),)), contiguous(shape), dtype
    channels = draw(sizes(4096))
    batch, size = draw(sizes(256)), draw(sizes(1 << 16))
    if draw(st.booleans()):  # either makes up what is missing
        batch = ceil(numel / (channels * size))
    else:
        size = ceil(numel / (channels * batch))
    groups = draw(st.sampled_from([g for g in range(1, channels + 1) if channels % g == 0]))
    shape = (batch, channels, size)
    strides = contiguous(shape)
    if draw(st.booleans()):
        strides = (channels * size, 1, channels)
    return Problem(NORMS[name], shape, (("g", groups),) if name == "group" else ()), strides, dtype


@given(tensors(), st.booleans())
@settings(max_examples=500, derandomize=True, deadline=None, database=None)
def test_forward_fills_a_gpu(tensor, clusters):
    """From 8 MB on at least 100 thread blocks read x; half as many where they hold groups of long elements."""
    problem, strides, dtype = tensor
    bias = None if not problem.norm.centered else (1,)
    schedule = forward_schedule(problem, strides, strides, (1,), bias, (dtype, None), Device(132, clusters))
    blocks = prod(schedule.main.grid) * schedule.main.plan.ctas
    held = schedule.strategy in ("resident", "clustered")
    assert blocks >= (HELD if held and dtype.itemsize > 2 else ENOUGH), (schedule.strategy, schedule.reason)
