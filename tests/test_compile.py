"""What the plans of real shapes ask for compiles for real GPUs, with no spill and with 16-byte accesses. No GPU needed.

Runs in a process of its own, without TRITON_INTERPRET=1; see conftest.py.
"""

import re
import subprocess
from collections import Counter
from itertools import product
from math import gcd, prod
from pathlib import Path

import pytest
import torch
import triton
from kernel_text import faults, fused
from normtriton.perf.cases.shapes import CASES, Case, make
from normtriton.perf.cases.targets import H100, H100_CLUSTERS, TARGETS
from normtriton.perf.count.codegen import (
    compile_key,
    compile_launch,
    compiler,
    facts,
    planned_for,
    read_code,
    tensor_accesses,
)
from normtriton.perf.count.cubin import usage
from normtriton.perf.count.launches import Recorded, launches_across, launches_of, planned, recording
from normtriton.perf.count.occupancy import resident_blocks

from normtriton.autograd.surrounded import quantize
from normtriton.explain import backward_direction, forward_direction
from normtriton.planning import plan as planning
from normtriton.planning.plan import UNTUNED, Tuning, Tunings
from normtriton.planning.stages import Stages
from normtriton.runtime.clusters import compiles
from normtriton.runtime.compiling import standing_in
from normtriton.runtime.quantized import KINDS

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
#: What takes `make sweep`: more of the same.
SLOW = pytest.mark.slow
SHAPES = [*CASES, Case("layer", (64, 4096)), Case("rms", (64, 768))]  # and few rows


def cells(cases):
    """(case, dtype, layout) of cases in all that they have; and whether it is an odd one, so that half have each."""
    for i, case in enumerate(cases):
        for j, dtype in enumerate(DTYPES):
            for k, layout in enumerate(FORMATS if len(case.shape) == 4 else ("contiguous",)):
                yield case, dtype, layout, (i + j + k) % 2


def left_out(target, odd):
    """Whether a cell waits for `make sweep`: what an A100 leaves out a B200 has, and the other way round."""
    return {"sm_80": not odd, "sm_100": odd}.get(target, False)


def named(case, *others, slow=False):
    """A test's parameters, with a name for people."""
    return pytest.param(case, *others, id="-".join((case.name, *others)), marks=[SLOW] * bool(slow))


def narrowest(case, dtype, layout):
    """Bytes of the widest access that the layout allows."""
    if case.shape[-1] == 7 and layout == "contiguous":  # rows of 49 elements start anywhere
        return DTYPES[dtype].itemsize
    return 16


def widest(plan, itemsize):
    """Bytes of the widest access that rows and the tiles' places in them allow."""
    return itemsize * (gcd(plan.vector, plan.span) if plan.vector_axis == "kept" else plan.vector)


def on(target, clusters=True):
    """An H100's multiprocessors with a target's compiler, and clusters where Triton compiles them."""
    return H100._replace(clusters=clusters and compiles(), compiler=compiler(target))


#: Norms of real shapes with what stands around them.
AROUND = [
    (Case("rms", (8192, 4096), around="llama"), "contiguous"),
    (Case("layer", (8192, 768), around="residual"), "contiguous"),
    (Case("rms", (8192, 4096), around="gate"), "contiguous"),
    (Case("rms", (8192, 4096), around="gate-first"), "contiguous"),
    (Case("layer", (8192, 768), around="gelu"), "contiguous"),
    (Case("group", (8, 320, 64, 64), 32, "silu"), "contiguous"),
    (Case("group", (8, 320, 64, 64), 32, "silu"), "channels_last"),
    (Case("group", (2, 512, 128, 128), 32, "silu"), "contiguous"),
    (Case("batch", (256, 64, 56, 56), around="skip-relu"), "contiguous"),
    (Case("batch", (256, 64, 56, 56), around="skip-relu"), "channels_last"),
    (Case("instance", (8, 64, 256, 256), around="all"), "contiguous"),
    (Case("layer", (8192, 768), around="mask"), "contiguous"),
    (Case("batch", (256, 64, 56, 56), around="mask"), "contiguous"),
    (Case("batch", (256, 64, 56, 56), around="mask"), "channels_last"),
    (Case("instance", (8, 64, 256, 256), around="mask"), "contiguous"),
    (Case("group", (8, 320, 64, 64), 32, "mask"), "channels_last"),
    (Case("rms", (8192, 4096), around="x-scale"), "contiguous"),
    (Case("batch", (256, 64, 56, 56), around="x-scale"), "channels_last"),
    (Case("layer", (8192, 768), around="x-scale-alone"), "contiguous"),
]


@pytest.mark.parametrize(
    ("case", "dtype", "layout", "target"),
    [
        named(
            case,
            dtype,
            layout,
            target,
            slow=(i + j + k) % (8 if "scale" in case.around or "mask" in case.around else 3),
        )
        for i, (case, layout) in enumerate(AROUND)
        for j, dtype in enumerate(DTYPES)
        for k, target in enumerate(TARGETS)
    ],
)
def test_what_surrounds_a_norm(case, dtype, layout, target):
    """It fits beside the norm: nothing is spilled, accesses are as wide, and nothing is fused that was not to be."""
    launches = planned(case, DTYPES[dtype], FORMATS[layout], machine(target)[1]).launches
    for direction, recorded, kernel, code in read(launches, target):
        plan = recorded.launch.plan
        what = (direction, recorded.launch.kernel, plan, code)
        assert fused(kernel.asm) == 0 and code.stack == 0, what
        if recorded.launch.kernel == direction and plan.ctas == 1:
            assert narrowest(case, dtype, layout) in code.loads, what


@pytest.mark.parametrize(
    ("case", "kind", "given", "target"),
    [
        pytest.param(case, kind, given, target, marks=[SLOW] * bool((i + 2 * j + k) % 4))
        for i, (kind, given) in enumerate(product(KINDS, (False, True)))
        for j, case in enumerate((Case("rms", (8192, 4096)), Case("group", (8, 320, 64, 64), 32)))
        for k, target in enumerate(TARGETS)
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_quantized(case, kind, given, target):
    """By a given scale, or by the group's own: in one launch where the group is on chip; no spill."""
    call, x, weight, bias = make(case, torch.bfloat16, torch.contiguous_format)
    around = {"q_scale": x.new_empty([1] * x.dim(), dtype=torch.float32)} if given else {}
    problem = call.problem._replace(stages=Stages(quantize=kind))
    with recording(machine(target)[1]) as launches:
        quantize(call._replace(problem=problem), x, weight, bias, around)
    assert len(launches) == 1 or (case.norm == "group" and not planned_for(target).clusters)
    for _direction, _recorded, kernel, code in read({"forward": launches}, target):
        assert code.stack == 0 and fused(kernel.asm) == 0, code


@pytest.mark.parametrize("case", [Case("group", (8, 320, 64, 64), 32), Case("batch", (32, 256, 14, 14))], ids=str)
def test_quantized_columns(case):
    """Whose rows a cluster's thread blocks share: by each group's own scale, in one launch without a spill."""
    call, x, weight, bias = make(case, torch.bfloat16, torch.channels_last)
    problem = call.problem._replace(stages=Stages(quantize="float8_e4m3fn"))
    with recording(machine("sm_90")[1]) as launches:
        quantize(call._replace(problem=problem), x, weight, bias, {})
    ((_direction, _recorded, kernel, code),) = read({"forward": launches}, "sm_90")
    assert code.stack == 0 and fused(kernel.asm) == 0, code


def kept(passed):
    """Bytes of a thread that a tile may spill: 0, or what the least of those spills that the planner asked about."""
    return min((int(re.search(r": spills (\d+) bytes", line)[1]) for line in passed), default=0)


def read(directions, target):
    """Each launch with its direction, its compiled kernel and what is read out of that."""
    for direction, launches in directions.items():
        for recorded in launches:
            kernel = compile_launch(recorded, target)
            yield direction, recorded, kernel, read_code(kernel)


#: What spills without clusters, in the first proposal: it is faster so than read twice.
SPILLS = Case("layer", (4096, 12288))


def steps(directions):
    """The launches of both passes, without their tensors."""
    return {direction: [recorded.launch for recorded in launches] for direction, launches in directions.items()}


def machine(name):
    """(target, device, dtype of parameters, None for x's): a target's own device, or an H100 without clusters."""
    if name == "sm_90-alone":
        return "sm_90", on("sm_90", clusters=False), torch.float32
    return name, planned_for(name)._replace(clusters=on(name).clusters and planned_for(name).clusters), None


@pytest.mark.parametrize(
    ("case", "dtype", "layout", "name"),
    [
        named(case, dtype, layout, name, slow=left_out(name, odd))
        for case, dtype, layout, odd in cells(SHAPES)
        for name in (*TARGETS, "sm_90-alone")
    ],
)
def test_real_shapes(case, dtype, layout, name):
    """No spill but one that costs less than a second read, wide accesses, no float64 where none is wanted.

    Of every shape that results are kept of, the first proposal is what runs: bytes are counted of that too.
    """
    target, device, parameters = machine(name)
    made = make(case, DTYPES[dtype], FORMATS[layout], parameters=parameters)
    directions = {"forward": forward_direction, "backward": backward_direction}
    passed = {which: direction(*made, device).schedule.passed for which, direction in directions.items()}
    launches = launches_of(*made, device)
    if case in CASES and not parameters and compiles():
        assert not any(passed.values()) or (case == SPILLS and not device.clusters), passed
        assert steps(launches) == steps(launches_of(*made, device._replace(compiler=None))), passed
    for direction, recorded, kernel, code in read(launches, target):
        plan = recorded.launch.plan
        what = (direction, recorded.launch.kernel, plan, code)
        assert fused(kernel.asm) == 0, what
        assert code.stack in (0, kept(passed[direction])), what
        text = kernel.asm.get("ptx") or kernel.asm["amdgcn"]
        assert ".f64" not in text and "_f64" not in text, what
        if recorded.launch.kernel != direction:
            continue  # a finalizer: its buffers are small
        wanted = widest(plan, DTYPES[dtype].itemsize) if plan.ctas > 1 else narrowest(case, dtype, layout)
        assert wanted in code.loads, what  # statistics, parameters and the count of batches take others
        widths = {a.width for a in tensor_accesses(kernel, recorded.args, prod(case.shape))}
        # AMD's warps have 64 lanes: columns that ride with a sweep are fewer than these could take 16 bytes of
        assert widths == {wanted} or (target == "gfx942" and recorded.launch.also and widths == {8, 16}), what
        if wanted == 16 and dtype == "bfloat16" and parameters:
            assert min(code.loads) >= 4 and min(code.stores) >= 4, what  # no element goes alone
        if plan.stage != "measure" and not plan.stats_reduced:
            assert wanted in code.stores, what


#: Parts of norms whose groups extend over processes: (case, layout, processes).
ACROSS = [
    (Case("batch", (32, 256, 14, 14)), "contiguous", 8),
    (Case("batch", (256, 64, 56, 56)), "channels_last", 3),
    (Case("group", (2, 512, 128, 128), 32), "channels_last", 2),
    (Case("layer", (8192, 768)), "contiguous", 8),
    (Case("rms", (4096, 1024)), "contiguous", 16),
]


@pytest.mark.parametrize(
    ("case", "dtype", "layout", "processes", "target"),
    [
        pytest.param(*one, id=f"{case.name}-{dtype}-{layout}-{target}", marks=[SLOW] * bool((3 * i + j + k) % 8))
        for i, (case, layout, processes) in enumerate(ACROSS)
        for j, dtype in enumerate((*DTYPES, "float64"))
        for k, target in enumerate(TARGETS)
        for one in [(case, dtype, layout, processes, target)]
    ],
)
def test_groups_that_extend_over_processes(case, dtype, layout, processes, target):
    """Nothing is spilled between what is measured, told and applied."""
    call, *tensors = make(case, getattr(torch, dtype), FORMATS[layout])
    mean, var = torch.empty(2, case.shape[1], device="meta")
    if case.norm == "batch":
        call = call._replace(statistics=(mean, var, 1, 1, (), 0.1))
    launches = launches_across(call, *tensors, processes, machine(target)[1])
    kernels = [recorded.launch.kernel for recorded in launches["forward"]]
    assert kernels[0] == kernels[-1] == "forward" and "merge_processes" in kernels
    for direction, recorded, kernel, code in read(launches, target):
        assert fused(kernel.asm) == 0 and code.stack == 0, (direction, recorded.launch, code)


CLUSTERED = [
    # forward and backward, forward only
    *(Case("layer", (64, n)) for n in (65536, 50000, 98304, 262144)),
    Case("rms", (64, 65536)),
    *(Case("batch", (n, 64, 56, 56)) for n in (16, 32, 64)),
    Case("batch", (1024 * 64, 64)),
    Case("instance", (8, 64, 256, 256)),
    Case("instance", (8, 64, 300, 300)),
    *(Case("group", (2, 512, n, 128), 32) for n in (32, 64, 128)),
    Case("group", (8, 320, 64, 64), 32),
    Case("group", (4, 640, 31, 31), 32),
    Case("batch", (32, 2048, 7, 7)),
    Case("batch", (31, 2048, 7, 7)),  # rows that the thread blocks do not divide evenly
    Case("batch", (32, 1024, 14, 14)),
    Case("instance", (8, 64, 64, 64)),
]

#: The clustered ones in channels_last: columns that fit, and group norm.
CLUSTERED_LAST = [(n, 2048, 7, 7) for n in (31, 32)] + [(32, 1024, 14, 14), (8, 64, 64, 64)]
CLUSTERED_LAST += [(2, 512, n, 128) for n in (32, 64, 128)] + [(8, 320, 64, 64), (4, 640, 31, 31)]
#: Those that are not in clusters where they are contiguous: they fit in a program, or are too few or too large.
NOT_CLUSTERED = [*CLUSTERED_LAST[:4], (1024 * 64, 64)]


@pytest.mark.skipif(not compiles(), reason="clusters need Triton 3.9")
@pytest.mark.parametrize(
    ("case", "dtype", "layout", "target", "parameters"),
    [
        named(case, dtype, layout, target, parameters, slow=left_out(target, odd) or parameters != dtype)
        for case, dtype, layout, odd in cells(CLUSTERED)
        for target, parameters in dict.fromkeys([("sm_90", dtype), ("sm_90", "float32"), ("sm_100", dtype)])
    ],
)
def test_clusters(case, dtype, layout, target, parameters):
    """A cluster's programs do not spill, move as much at once as can be and wait for each other at most six times."""
    clustered = 0
    made = make(case, DTYPES[dtype], FORMATS[layout], parameters=DTYPES[parameters])
    for direction, recorded, kernel, code in read(launches_of(*made, on(target)), target):
        plan = recorded.launch.plan
        what = (direction, plan, code)
        assert code.stack == 0, what
        assert faults(kernel.asm["ptx"], plan.ctas) == [], what
        wide = widest(plan, DTYPES[dtype].itemsize)
        if recorded.launch.kernel == direction:
            assert {a.width for a in tensor_accesses(kernel, recorded.args, prod(case.shape))} == {wide}, what
        if plan.ctas > 1:
            clustered += 1
            assert code.cluster_barriers <= 6, what
            assert max(code.loads) >= wide and max(code.stores) >= wide, what
            joined = plan.block_groups > 0  # tiles of several groups of 10 or 20 channels
            assert wide == 16 or case.shape[-1] % 2 or (joined and wide >= 4), what
    expected = case.shape not in NOT_CLUSTERED
    if layout == "channels_last":  # eight float32 columns, one sector, of 1568 rows fit in a program
        expected = case.shape in CLUSTERED_LAST and (dtype == "bfloat16" or case.shape[-1] != 7)
    assert (clustered > 0) == expected


#: Shapes whose backward pass is clustered: 2048 rows of 64 channels, or 4096 of 32.
JOINED = [(dtype, shape) for shape in ((8, 320, 32, 64), (8, 320, 64, 64), (4, 640, 31, 31)) for dtype in DTYPES]


@pytest.mark.skipif(not compiles(), reason="clusters need Triton 3.9")
@pytest.mark.parametrize("target", ["sm_90", "sm_100"])
@pytest.mark.parametrize(("dtype", "shape"), JOINED)
def test_joined_cells(dtype, shape, target):
    """Group norm of 10 or 20 channels_last channels a group: both passes are one cluster's, by the limits above."""
    case = Case("group", shape, 32)
    made = make(case, DTYPES[dtype], torch.channels_last)
    first = {direction: launches[:1] for direction, launches in launches_of(*made, on(target)).items()}
    for direction, recorded, kernel, code in read(first, target):
        assert recorded.launch.plan.block_groups and recorded.launch.plan.ctas > 1
        assert code.stack == 0 and code.cluster_barriers <= 6, code
        span = 30 if shape[2:] == (64, 64) and direction == "backward" else 60
        wide = {60: 4, 30: 2}[span] * DTYPES[dtype].itemsize  # the largest power of two that divides a tile's channels
        assert recorded.launch.plan.span == span
        assert {a.width for a in tensor_accesses(kernel, recorded.args, prod(shape))} == {wide}, code


#: Rows, images and columns of odd sizes, whose elements have an address each.
NARROW = [Case("layer", (64, n)) for n in (5119, 20481, 32767, 36001)]
NARROW += [Case("group", (4, 320, *size), 32) for size in ((31, 31), (63, 65))]
NARROW += [Case("batch", shape) for shape in ((100, 256, 7, 7), (256, 64, 7, 7), (512, 513))]


@pytest.mark.parametrize("target", ["sm_90", pytest.param("sm_80", marks=SLOW)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", NARROW, ids=lambda case: case.name)
def test_tiles_that_spill_give_way(case, dtype, target):
    """No launch spills whose tile could give way, and what was passed over did spill."""
    device = on(target, clusters=target != "sm_80")
    made = make(case, DTYPES[dtype], torch.contiguous_format)
    for name, direction in (("forward", forward_direction), ("backward", backward_direction)):
        schedule = direction(*made, device).schedule
        launches = launches_of(*made, device)[name]
        stacks = [read_code(compile_launch(recorded, target)).stack for recorded in launches]
        assert max(stacks) in (0, kept(schedule.passed)), schedule


def disassembled(cubin, path):
    """(registers, stack, loads and stores by bytes, barriers, instructions) as NVIDIA's tool reads them."""
    path.write_bytes(cubin)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    told = subprocess.run([tool, "-res-usage", "-sass", path], check=True, capture_output=True, text=True).stdout
    numbers = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", told)}
    names = [name.split(".") for name in re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_.]+)", told)]
    sizes = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}

    def widths(operation):
        accesses = [parts for first, *parts in names if first == operation]
        return Counter(next((sizes[part] for part in parts if part in sizes), 4) for parts in accesses)

    barriers = sum(name[0] == "BAR" for name in names)
    return numbers["REG"], numbers["STACK"] + numbers["LOCAL"], widths("LDG"), widths("STG"), barriers, len(names)


@pytest.mark.parametrize("target", [target for target in TARGETS if target.startswith("sm_")])
def test_what_a_cubin_says(target, tmp_path):
    """Registers, stack and instructions read out of the file are those that NVIDIA's own tool reads."""
    seen = Counter()
    every = [Case("batch", (256, 64, 56, 56)), Case("layer", (64, 4096)), Case("batch", (512, 513))]
    for case in every if target == "sm_90" else every[:1]:
        for launches in launches_of(*make(case, torch.bfloat16, torch.contiguous_format)).values():
            for recorded in launches:
                kernel = compile_launch(recorded, target)
                code = read_code(kernel)
                read_out = (code.registers, code.stack, code.loads, code.stores, code.barriers, code.instructions)
                assert read_out == disassembled(kernel.asm["cubin"], tmp_path / "kernel.cubin")
                assert usage(kernel.asm["cubin"]) == read_out[:2]
                seen += code.loads
    assert set(seen) == {2, 4, 8, 16}
    with pytest.raises(ValueError, match="not a cubin"):
        usage(b"#!/bin/sh")


HELD = [*CASES[:6], CASES[8], CASES[10], Case("instance", (8, 64, 64, 64)), Case("group", (8, 320, 32, 32), 32)]


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("case", HELD, ids=lambda case: case.name)
def test_the_planner_compiles_what_runs(case, layout):
    """What the compiler is asked about is the launch's own kernel, so that asking compiles nothing more."""
    if layout == "channels_last" and len(case.shape) != 4:
        return
    asked = {}

    def note(step, dtypes, operands):
        asked[step.kernel] = Recorded(step, standing_in(step, dtypes, operands))
        return compiler("sm_90")(step, dtypes, operands)

    call, x, weight, bias = make(case, torch.bfloat16, FORMATS[layout], parameters=torch.float32)
    held = [
        launches[0]
        for launches in launches_of(call, x, weight, bias, on("sm_90")._replace(compiler=note)).values()
        if launches[0].launch.plan.stage == "resident"
    ]
    assert held or layout == "channels_last"
    for recorded in held:
        assert compile_key(recorded, "sm_90") == compile_key(asked[recorded.launch.kernel], "sm_90")


#: Tunings that go farthest from what the planner chooses, each with a pass that it changes.
TUNED = {
    "many-a-thread": (Case("layer", (2048, 4000)), "contiguous", "forward", Tuning(per_thread=64)),
    "many-a-thread-of-two": (Case("instance", (4, 64, 63, 65)), "contiguous", "backward", Tuning(per_thread=64)),
    "few-in-a-sweep": (Case("layer", (2048, 1000)), "contiguous", "backward", Tuning(sweep_elements=1024)),
    "nothing-ahead-in-a-sweep": (Case("layer", (2048, 1000)), "contiguous", "backward", Tuning(depth=1)),
    "a-small-cluster": (Case("layer", (64, 8200)), "contiguous", "forward", Tuning(on_chip="cluster")),
    "narrow-columns": (Case("batch", (64, 256, 14, 14)), "channels_last", "backward", Tuning(column_bytes=64)),
}


@pytest.mark.skipif(not compiles(), reason="clusters need Triton 3.9")
@pytest.mark.parametrize(("case", "layout", "direction", "tuning"), TUNED.values(), ids=TUNED)
def test_tuned_plans(case, layout, direction, tuning):
    """What a table may choose neither spills nor loses its wide accesses."""
    made = make(case, torch.bfloat16, FORMATS[layout])
    own, tuned = (
        launches_of(*made, on("sm_90")._replace(tuned=table))[direction] for table in (None, Tunings({}, tuning))
    )
    assert tuned[0].launch != own[0].launch
    code = read_code(compile_launch(tuned[0], "sm_90"))
    assert code.stack == 0 and code.cluster_barriers <= 6, code
    assert max(code.loads) >= 2 * tuned[0].launch.plan.vector, code


#: A row held by a program, a loop over rows, and loops within a group that a program has a share of.
IN_FLIGHT = [Case("layer", (8192, 4096)), Case("instance", (8, 64, 256, 256))]


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
@pytest.mark.parametrize("case", IN_FLIGHT, ids=lambda case: case.name)
def test_bytes_in_flight(case, target):
    """A thread block has a tile of x on the way, and one of dy, as many as its loop is ahead; AMD's may be doubled."""
    for direction, launches in launches_of(*make(case, torch.bfloat16, torch.contiguous_format)).items():
        for recorded in launches:
            step = recorded.launch
            kernel = compile_launch(recorded, target)
            found = facts(kernel, step.kernel, target, step.grid, recorded.args, prod(case.shape))
            tile = step.plan.block_kept * step.plan.block_r1 * step.plan.block_r2 * 2
            tensors = {"forward": 1, "backward": 2}[direction] if step.kernel == direction else 0
            tensors *= max(step.plan.depth - 1, 1)
            tiles = found["in_flight"] / found["resident_blocks"] / tile
            assert tiles in ({tensors} if target == "sm_90" else {tensors, 2 * tensors}), (step, found)
            assert found["blocks"] == prod(step.grid)


#: Sweeps by rows in a tile, elements a thread, width of an access, and stage.
SWEEPS = [Case("layer", (8192, n)) for n in (256, 768, 1001, 4096, 8191, 12288)] + [Case("rms", (8192, 4096))]


@pytest.mark.parametrize(
    ("case", "dtype", "target"),
    [
        named(case, dtype, target, slow=left_out(target, odd))
        for case, dtype, _layout, odd in cells(SWEEPS)
        for target in TARGETS
    ],
)
def test_sweeps_fill_multiprocessors(case, dtype, target):
    """A sweep starts as many programs as are resident at once; or fewer, if these have enough bytes on the way."""
    device = on(target, clusters=target in ("sm_90", "sm_100"))
    made = make(case, DTYPES[dtype], torch.contiguous_format)
    recorded = launches_of(*made, device)["backward"][0]
    step, plan = recorded.launch, recorded.launch.plan
    code = read_code(compile_launch(recorded, target))
    spills = kept(backward_direction(*made, device).schedule.passed)
    assert code.stack == (0 if device.clusters or case.shape[1] != SPILLS.shape[1] else spills), code
    if target == "gfx942":
        return
    room = resident_blocks(target, step.num_warps, code.registers, code.shared)
    tile = 2 * plan.block_kept * plan.block_r1 * plan.block_r2 // plan.ctas * DTYPES[dtype].itemsize
    assert step.programs <= room, code
    enough = step.programs * tile * (plan.depth - 1) >= planning.IN_FLIGHT
    assert enough or step.programs in (room, UNTUNED.programs_per_sm), code
    assert step.grid[0] * step.grid[1] * plan.ctas <= step.programs * device.sms
    assert plan.depth == 1 or code.shared >= tile * (plan.depth - 1) or plan.vector == 1, code


@pytest.mark.parametrize("alignment", [8, 4, 2])
def test_narrower_alignments(alignment):
    """Rows that 4 or 8 bytes divide are read 4 or 8 bytes at once."""
    from normtriton.functional import layer_norm_call

    width = 1000 + alignment // 2
    x = torch.empty(64, width, dtype=torch.bfloat16, device="meta")
    call = layer_norm_call(x, (width,), None, None, 1e-5)
    (recorded,) = launches_of(call, x, None, None)["forward"]
    code = read_code(compile_launch(recorded, "sm_90"))
    assert max(code.loads) == alignment and max(code.stores) == max(alignment, 4)


def test_float64_compiles():
    """The same kernels, in float64."""
    for case in CASES[4:6]:
        directions = launches_of(*make(case, torch.float64, torch.contiguous_format))
        assert all(code.stack == 0 for *_, code in read(directions, "sm_90"))


def compiled(cases, layout, device):
    """Keys of all kernels that these cases compile, forward and backward."""
    return {
        compile_key(recorded, "sm_90")
        for case in cases
        for launches in launches_of(*make(case, torch.bfloat16, layout), device).values()
        for recorded in launches
    }


def resnet50(batch):
    """The shapes of its batch norms, for images of 224 x 224."""
    sizes = [(64, 112)]
    for stage, (width, size) in enumerate(((64, 56), (128, 28), (256, 14), (512, 7))):
        sizes += [(width, size), (4 * width, size)] + [(width, 2 * size)] * (stage > 0)
    return [Case("batch", (batch, channels, size, size)) for channels, size in dict.fromkeys(sizes)]


#: (layout, clusters) -> kernels compiled by a first batch of 64; then by twice that, whose contiguous tiles are others;
#: then by any of 100, 127 and 65.
COMPILES = {
    ("contiguous", True): (13, 8, 0),
    ("contiguous", False): (18, 6, 0),
    ("channels_last", True): (12, 2, 2),
    ("channels_last", False): (10, 0, 2),
}


@pytest.mark.parametrize(("layout", "clusters"), COMPILES)
def test_resnet_compiles_little(layout, clusters):
    """A training step's batch norms share kernels, and a further batch size compiles next to none."""
    first, double, further = COMPILES[layout, clusters]
    device = H100_CLUSTERS if clusters else H100
    seen = compiled(resnet50(64), FORMATS[layout], device)
    assert len(seen) == first <= 40
    doubled = compiled(resnet50(128), FORMATS[layout], device)
    assert len(doubled - seen) == double
    new = [compiled(resnet50(n), FORMATS[layout], device) - seen - doubled for n in (100, 127, 65)]
    assert max(map(len, new)) == further <= 4


def test_sequence_lengths_compile_little():
    """RMS norm of a language model: forward, backward and its sum for any length; two more where rows are few."""
    from normtriton.functional import rms_norm_call

    def kernels(rows):
        x = torch.empty(rows, 4096, dtype=torch.bfloat16, device="meta")
        w = torch.empty(4096, dtype=torch.bfloat16, device="meta")
        steps = launches_of(rms_norm_call(x, (4096,), w, 1e-6), x, w, None)
        return {compile_key(recorded, "sm_90") for launches in steps.values() for recorded in launches}

    lengths = set().union(*(kernels(rows) for rows in (16, 100, 128, 1000, 2048, 4096, 8192)))
    assert len(lengths) == 4  # of few rows the sum is one of columns, in the same launch
    assert len(lengths.union(*(kernels(rows) for rows in (1, 2, 7, 15)))) <= 6


#: Every pair of a target, parameters or none, a layout and a dtype.
RARER = (
    ("sm_90", True, "contiguous", torch.bfloat16),
    ("sm_90", False, "channels_last", torch.float64),
    ("gfx942", True, "channels_last", torch.float64),
    ("gfx942", False, "contiguous", torch.float64),
    ("gfx942", False, "channels_last", torch.bfloat16),
)
ALL = product(("sm_90", "gfx942"), (True, False), FORMATS, (torch.bfloat16, torch.float64))


@pytest.mark.parametrize(
    ("target", "affine", "layout", "dtype"),
    [pytest.param(*call, marks=[SLOW] * (call not in RARER)) for call in ALL],
    ids=str,
)
def test_rarer_calls(target, affine, layout, dtype):
    """Evaluation, tracked instance norm, no parameters, unmerged axes, float64: all compile, none spills."""
    from normtriton import functional

    x = torch.empty(4, 48, 24, 24, dtype=dtype, device="meta").to(memory_format=FORMATS[layout])
    big = torch.empty(2, 48, 200, 200, dtype=dtype, device="meta").to(memory_format=FORMATS[layout])
    w = torch.ones(48, device="meta") if affine else None
    mean, var = (torch.ones(48, device="meta", dtype=torch.float64) for _ in range(2))
    row = torch.empty(64, 48, dtype=dtype, device="meta")
    calls = [
        (functional.batch_norm_call(x, mean, var, w, w, False, 0.1, 1e-5), x),
        (functional.batch_norm_call(big, mean, var, w, w, True, 0.1, 1e-5), big),
        (functional.instance_norm_call(big, mean, var, w, w, True, 0.1, 1e-5), big),
        (functional.group_norm_call(x, 8, w, w, 1e-5), x),
        (functional.group_norm_call(x[:, :, ::2, ::2], 8, w, w, 1e-5), x[:, :, ::2, ::2]),
        (functional.group_norm_call(row, 8, w, w, 1e-5), row),
        (functional.layer_norm_call(row, (48,), w, w, 1e-5), row),
    ]
    device = on(target, clusters=False)
    passes = [launches for call, tensor in calls for launches in launches_of(call, tensor, w, w, device).values()]
    for _pass, recorded, kernel, code in read(dict(enumerate(passes)), target):
        assert code.stack == 0 and fused(kernel.asm) == 0, (recorded.launch, code)


@pytest.mark.parametrize("norm", ["layer", "instance", "group", "group-cells", "long"])
def test_the_batch_is_not_compiled_in(norm):
    """Tiles, and so the order of every sum that y and dx need, are the same in any batch of a batch-invariant norm."""
    shapes = {
        "layer": Case("layer", (1, 64)),
        "long": Case("layer", (1, 400000)),
        "instance": Case("instance", (1, 3, 8, 8)),
        "group": Case("group", (1, 320, 64, 64), 4),
        "group-cells": Case("group", (1, 320, 64, 64), 32),
    }
    layout = torch.channels_last if norm == "group-cells" else torch.contiguous_format
    case, seen = shapes[norm], set()
    for batch in (1, 2, 7, 64):
        directions = launches_of(*make(case._replace(shape=(batch, *case.shape[1:])), torch.bfloat16, layout))
        steps = [r.launch for launches in directions.values() for r in launches]
        if steps[-1].kernel == "sum_parts":  # the parameters' gradients are sums over the batch
            steps.pop()
        steps = [
            s._replace(kernel="sum_parts") if s.kernel == "sum_twice" else s for s in steps
        ]  # what dx needs comes first in both
        blocks = [(s.kernel, s.plan.stage, s.plan.block_kept, s.plan.block_r1, s.plan.block_r2) for s in steps]
        seen.add((*blocks, *(s.num_warps for s in steps), *((s.plan.vector, s.plan.vector_axis) for s in steps)))
    assert len(seen) == 1
