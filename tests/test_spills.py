"""Tiles whose code would spill give way to the next ones, whatever compiler says so; pure integers."""

import sys

import pytest
import torch

import normtriton as nt
from normtriton.planning import norms
from normtriton.planning.grouping import contiguous
from normtriton.planning.plan import Code, Device
from normtriton.planning.schedule import Problem, backward_schedule, forward_schedule

#: (norm, shape, strides of x): a row, images held by one program, columns, and cells that a cluster joins.
SHAPES = {
    "row": (Problem(norms.LAYER, (64, 8192), (("d", 1),)), (8192, 1)),
    "long-row": (Problem(norms.LAYER, (64, 65536), (("d", 1),)), (65536, 1)),
    "small-rows": (Problem(norms.LAYER, (64, 100), (("d", 1),)), (100, 1)),
    "images": (Problem(norms.INSTANCE, (4, 64, 50, 50)), (160000, 2500, 50, 1)),
    "columns": (Problem(norms.BATCH, (8, 64, 7, 7)), (3136, 1, 448, 64)),
    "cells": (Problem(norms.GROUP, (2, 320, 32, 32), (("g", 32),)), (327680, 1, 10240, 320)),
}


def tile_of(step):
    """(elements, warps, ctas) of a launch."""
    plan = step.plan
    return plan.block_kept * plan.block_r1 * plan.block_r2, step.num_warps, plan.ctas


class Compiler:
    """A compiler whose code spills as a rule says, by (elements, warps, ctas); notes what it was asked."""

    def __init__(self, spills):
        self.spills, self.asked = spills, []

    def __call__(self, step, dtypes, operands):
        tile = tile_of(step)
        self.asked.append((*tile, dtypes, operands))
        spills = self.spills(*tile)
        return None if spills is None else Code(100, spills, 0)


def both(name, compiler):
    """The schedules of a shape, forward and backward, for an H100 with this compiler."""
    problem, strides = SHAPES[name]
    weight = contiguous(problem.parameter_shape)
    device, dtypes = Device(132, clusters=True, compiler=compiler), (torch.bfloat16, torch.float32)
    forward = forward_schedule(problem, strides, strides, weight, weight, dtypes, device)
    return forward, backward_schedule(problem, strides, strides, strides, weight, dtypes, device, True)


@pytest.mark.parametrize("name", SHAPES)
def test_a_compiler_that_never_spills_changes_nothing(name):
    """The first proposal is what is planned without a compiler; it alone is asked about, with dtypes and operands."""
    compiler = Compiler(lambda *_tile: 0)
    asked, planned = both(name, compiler), both(name, None)
    assert [s.launches for s in asked] == [s.launches for s in planned] and not any(s.passed for s in asked)
    assert [question[3:] for question in compiler.asked] == [
        ((torch.bfloat16, torch.float32), ("weight", "bias")),
        ((torch.bfloat16, torch.float32), ("weight", "gradients", "dx")),
    ]


@pytest.mark.parametrize("name", SHAPES)
def test_the_first_tile_that_does_not_spill(name):
    """Every tile before it is named with what it spills; no tile that spills runs where another is there."""
    firsts = [s.main for s in both(name, None)]
    refused = set(map(tile_of, firsts))
    for schedule in both(name, Compiler(lambda *tile: 4096 if tile in refused else 0)):
        assert schedule.passed and all(line.endswith(": spills 4096 bytes a thread") for line in schedule.passed)
        assert schedule.main.plan.stage != "resident" or tile_of(schedule.main) not in refused


@pytest.mark.parametrize("answer", [1 << 20, None])
@pytest.mark.parametrize("name", SHAPES)
def test_nothing_is_held_where_nothing_fits(name, answer):
    """Where each tile spills more than is read again, or takes more than a thread block may, groups are read twice."""
    for schedule in both(name, Compiler(lambda *_tile: answer)):
        assert schedule.strategy in ("streamed", "split") and schedule.passed
        what = "does not fit" if answer is None else f"spills {answer} bytes a thread"
        assert all(line.endswith(what) for line in schedule.passed)


def test_a_little_spilled_is_less_than_a_second_read():
    """Where every tile spills, the one that spills least of its elements is kept, if that is under half of them."""
    forward, _backward = both("long-row", Compiler(lambda _elements, warps, ctas: 16 if warps * ctas > 64 else 48))
    assert forward.strategy == "clustered" and len(forward.passed) > 1
    least = min(int(line.split("spills ")[1].split()[0]) for line in forward.passed)
    assert least == 16 and forward.main.num_warps * forward.main.plan.ctas > 16
    assert 2 * 16 * 32 * forward.main.num_warps * forward.main.plan.ctas <= 65536 * 2


@pytest.mark.parametrize("batch", [1, 2, 7, 64])
def test_no_batch_changes_the_question(batch):
    """What the compiler is asked of a batch-invariant norm is the same in any batch, and so is the tile."""
    seen = []
    for size in (3, batch):
        compiler = Compiler(lambda elements, *_shared: 8 * (elements > 4096))
        strides, weight = (8192, 1), (1,)
        device, dtypes = Device(132, compiler=compiler), (torch.float32, torch.float32)
        problem = Problem(norms.LAYER, (size, 8192), (("d", 1),))
        made = forward_schedule(problem, strides, strides, weight, weight, dtypes, device)
        back = backward_schedule(problem, strides, strides, strides, weight, dtypes, device, True)
        seen.append((compiler.asked, made.main.plan, back.main.plan, made.passed, back.passed))
    assert seen[0] == seen[1]


def test_explain_says_what_was_passed_over(monkeypatch):
    """Which tile, and what it would have spilled."""
    compiler = Compiler(lambda _elements, warps, _ctas: 40 * (warps < 16))
    monkeypatch.setattr(sys.modules[nt.explain.__module__], "Device", lambda *args: Device(*args, compiler=compiler))
    text = str(nt.explain(nt.layer_norm, torch.empty(64, 8192, device="meta"), (8192,)))
    assert "  passed over: 1 x 1 x 8192 in 8 warps: spills 40 bytes a thread\n" in text
