"""A grouping is arithmetic: it partitions the tensor, whatever the norm, the shape and the strides."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from normtriton.planning import norms
from normtriton.planning.grouping import contiguous
from normtriton.planning.norms import Norm, name_axes
from normtriton.planning.plan import Device, Tunings
from normtriton.planning.schedule import Problem, backward_schedule, forward_schedule, tunings

NORMS = {
    "batch": norms.BATCH,
    "instance": norms.INSTANCE,
    "group": norms.GROUP,
    "layer": norms.LAYER,
    "over-channels": Norm("n c *s", over="c", affine="c"),
    "per-head": Norm("b t h d", over="d", affine="d"),
    "batch-over-time": Norm("n t *s", over="n s t", affine="t"),
}
#: Tables of one tuning for everything.
TUNED = [Tunings({}, tuning) for tuning in tunings()]


def offsets(sizes, strides):
    """Offsets of all indices over axes."""
    return [sum(i * s for i, s in zip(index, strides, strict=True)) for index in product(*map(range, sizes))]


def members(group, operand):
    """For each group index, for each element: (address of the operand, of the parameter, of the statistics)."""

    def along_kept(s, q):
        if group.cells == 1:
            return q * s.kept
        return q // group.cells * s.kept + q % group.cells * s.cell

    result = {}
    for outer in product(*map(range, group.outer)):
        for q in range(group.kept):
            for walk in product(*map(range, group.walk)):
                for r1, r2 in product(range(group.r1), range(group.r2)):

                    def address(s, outer=outer, q=q, walk=walk, r1=r1, r2=r2):
                        return (
                            sum(i * j for i, j in zip(outer, s.outer, strict=True))
                            + along_kept(s, q)
                            + sum(i * j for i, j in zip(walk, s.walk, strict=True))
                            + r1 * s.r1
                            + r2 * s.r2
                        )

                    result.setdefault(address(group.stats), []).append((address(operand), address(group.weight)))
    return result


@st.composite
def problems(draw):
    name = draw(st.sampled_from(sorted(NORMS)))
    norm = NORMS[name]
    ndim = {"per-head": 4}.get(name) or draw(st.integers(2, 5))
    shape = [draw(st.integers(1, 4)) for _ in range(ndim)]
    sizes = ()
    if name == "group":
        g = draw(st.integers(1, 3))
        shape[1] = g * draw(st.integers(1, 3))
        sizes = (("g", g),)
    if name == "layer":
        sizes = (("d", draw(st.integers(1, ndim))),)
    order = draw(st.permutations(range(ndim)))
    gaps = [draw(st.integers(1, 2)) for _ in range(ndim)]
    strides, step = [0] * ndim, 1
    for dim in order:
        strides[dim] = step * gaps[dim]
        step = strides[dim] * shape[dim]
    return Problem(norm, tuple(shape), sizes), tuple(strides), order


@settings(max_examples=300, deadline=None)
@given(problems())
def test_every_element_belongs_to_exactly_one_group(drawn):
    """A grouping partitions the tensor: nothing twice, nothing left out, and every parameter index is right."""
    problem, x, order = drawn
    sizes = dict(problem.sizes)
    y, step = [0] * len(x), 1
    for dim in order:
        y[dim], step = step, step * problem.shape[dim]
    weight = contiguous(problem.parameter_shape)
    schedule = forward_schedule(problem, x, tuple(y), weight, weight, (torch.float32, None), Device(132))
    group = (schedule.apply or schedule.main).group
    assert group.numel == step

    dims = name_axes(problem.norm.axes, problem.shape, sizes)
    keys = [(a.name, a.ordinal) for dim in dims for a in dim]
    extents = [a.size for dim in dims for a in dim]
    want = {}
    stats, parameter = problem.dense(problem.kept), problem.parameter(weight)
    address = problem.tensor(x)
    for index in product(*map(range, extents)):
        at = dict(zip(keys, index, strict=True))
        where = sum(i * address[k] for k, i in at.items())
        w = sum(i * parameter.get(k, 0) for k, i in at.items())
        want.setdefault(sum(i * stats.get(k, 0) for k, i in at.items()), []).append((where, w))
    got = members(group, group.x)
    assert {k: sorted(v) for k, v in got.items()} == {k: sorted(v) for k, v in want.items()}


@pytest.mark.parametrize(
    ("problem", "x", "expected"),
    [
        (Problem(norms.BATCH, (6, 5, 4, 3)), (60, 12, 3, 1), ((), 5, 6, 12, (0, 12, 0), (60, 1))),
        (Problem(norms.BATCH, (6, 5, 4, 3)), (60, 1, 15, 5), ((), 5, 1, 72, (0, 1, 0), (0, 5))),
        (Problem(norms.INSTANCE, (6, 5, 4, 3)), (60, 12, 3, 1), ((6,), 5, 1, 12, (60, 12, 0), (0, 1))),
        (Problem(norms.GROUP, (6, 10, 4, 3), (("g", 5),)), (120, 12, 3, 1), ((6,), 5, 2, 12, (120, 24, 0), (12, 1))),
        (Problem(norms.LAYER, (6, 5, 8), (("d", 1),)), (40, 8, 1), ((), 30, 1, 8, (0, 8, 0), (0, 1))),
    ],
    ids=["batch", "batch channels_last", "instance", "group", "layer"],
)
def test_the_table_of_strides(problem, x, expected):
    """The five norms are the strides that docs/design.md says they are."""
    weight = contiguous(problem.parameter_shape)
    group = forward_schedule(problem, x, x, weight, weight, (torch.float32, None), Device(132)).main.group
    outer = group.x.outer[0] if group.outer else 0
    got = (group.outer, group.kept, group.r1, group.r2, (outer, group.x.kept, group.x.cell), (group.x.r1, group.x.r2))
    assert got == expected


@settings(max_examples=150, deadline=None)
@given(
    problems(),
    st.sampled_from([torch.bfloat16, torch.float32, torch.float64]),
    st.builds(Device, st.sampled_from([1, 4, 132]), st.booleans(), st.none() | st.sampled_from(TUNED)),
)
def test_plans_cover_the_tensor(drawn, dtype, device):
    """Tiles are powers of two and cover every axis; chunks are never empty; grids fit the hardware."""
    problem, _x, order = drawn
    y, step = [0] * len(problem.shape), 1
    for dim in order:
        y[dim], step = step, step * problem.shape[dim]
    weight = contiguous(problem.parameter_shape)
    forward = forward_schedule(problem, tuple(y), tuple(y), weight, weight, (dtype, None), device)
    backward = backward_schedule(problem, tuple(y), tuple(y), tuple(y), weight, (dtype, None), device, True)
    for step_ in (*forward.launches, *backward.launches):
        plan, group = step_.plan, step_.group
        for block in (plan.block_kept, plan.block_r1, plan.block_r2):
            assert block & (block - 1) == 0 and block > 0
        assert 0 < step_.grid[0] < 2**31 and 0 < step_.grid[1] < 2**16
        if plan.stage == "resident":
            assert plan.block_r1 >= group.r1 and plan.block_r2 >= group.r2 and not group.walk


def test_huge_tensors_are_planned():
    """More than 2**31 elements, in one group and in many."""
    for shape in ((1, 1, 2**32), (2**26, 1, 64), (8, 2**20, 512)):
        problem = Problem(norms.BATCH, shape)
        strides = contiguous(shape)
        schedule = forward_schedule(
            problem, strides, strides, (1,), (1,), (torch.bfloat16, None), Device(132, clusters=True)
        )
        assert schedule.main.group.numel == shape[0] * shape[1] * shape[2]
        assert all(0 < step.grid[0] < 2**31 and 0 < step.grid[1] < 2**16 for step in schedule.launches)


def of_image(shape, last):
    """Strides of an image, contiguous or channels_last."""
    n, c, h, w = shape
    return (c * h * w, 1, w * c, c) if last else contiguous((n, c, h, w))


@pytest.mark.parametrize(
    ("problem", "last", "direction", "rides"),
    [
        (Problem(norms.BATCH, (256, 64, 56, 56)), False, "forward", True),
        (Problem(norms.BATCH, (256, 64, 56, 56)), True, "forward", False),  # of 64 columns, 500 parts each
        (Problem(norms.BATCH, (256, 64, 56, 56)), False, "backward", True),
        (Problem(norms.GROUP, (3, 512, 128, 128), (("g", 32),)), False, "backward", True),  # cells and a weight
        (Problem(norms.GROUP, (3, 512, 128, 128), (("g", 32),)), True, "backward", False),  # several groups a block
        (Problem(norms.INSTANCE, (3, 5, 300, 300)), False, "forward", True),
        (Problem(norms.LAYER, (3, 2, 2, 60001), (("d", 1),)), False, "backward", True),
    ],
)
def test_apply_merges_what_is_little(problem, last, direction, rides):
    """Its tile has all parts of a group, and a group's number is where its statistics are, in either grouping."""
    x, weight = of_image(problem.shape, last), contiguous(problem.parameter_shape)
    if direction == "forward":
        schedule = forward_schedule(problem, x, x, weight, weight, (torch.bfloat16, None), Device(132))
    else:
        schedule = backward_schedule(problem, x, x, x, weight, (torch.bfloat16, None), Device(132), True)
    assert schedule.strategy == "split" and bool(schedule.apply.into) == rides == (schedule.merge is None)
    if direction == "backward":
        assert bool(schedule.apply.also) == rides and (rides or schedule.merge.kernel == "sum_twice")
    if rides:
        group, plan = schedule.apply.into
        assert plan.block_r1 >= group.r1 and plan.block_r2 >= group.r2
        assert plan.block_kept == schedule.apply.plan.block_kept
        for number in range(problem.num_groups):
            outer, q = divmod(number, group.kept)
            where = q * group.stats.kept
            for size, stride in zip(group.outer, group.stats.outer, strict=True):
                outer, index = divmod(outer, size)
                where += index * stride
            assert where == number
