"""Facts of the model of time, on small launches. No GPU needed.

Runs in a process of its own, without TRITON_INTERPRET=1; see conftest.py.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl
from normtriton.perf.cases import shapes, targets
from normtriton.perf.count import codegen
from normtriton.perf.count.launches import launches_of
from normtriton.perf.emulator import sass
from normtriton.perf.emulator.gpus import GPUS
from normtriton.perf.emulator.timer import Space, Timer, pack
from triton.compiler import ASTSource

BLOCK = 1024
#: Addresses of x, of indices and of y.
X, INDICES, Y = 1 << 40, 1 << 41, 1 << 42


@triton.jit
def copy(x, indices, y, n, BLOCK: tl.constexpr):  # noqa: ARG001, N803  one signature for both
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i, mask=i < n), mask=i < n)


@triton.jit
def gather(x, indices, y, n, BLOCK: tl.constexpr):  # noqa: N803
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    j = tl.load(indices + i, mask=i < n, other=0)
    tl.store(y + i, tl.load(x + j, mask=i < n), mask=i < n)


@triton.jit
def backwards(x, indices, y, n, BLOCK: tl.constexpr):  # noqa: ARG001, N803
    i = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i, mask=i < n), mask=i < n)


@triton.jit
def columns(x, indices, y, n, BLOCK: tl.constexpr):  # noqa: ARG001, N803
    row, column = tl.arange(0, BLOCK) // 16, tl.arange(0, BLOCK) % 16
    i = (row * tl.num_programs(0) + tl.program_id(0)) * 12 + column  # 48 bytes: half of what ends within a sector
    tl.store(y + i, tl.load(x + i, mask=(column < 12) & (i < n)), mask=(column < 12) & (i < n))


@cache
def compiled(kernel, target):
    """(cubin, PTX, shared bytes) of a kernel of this file."""
    signature = {"x": "*fp32", "indices": "*i32", "y": "*fp32", "n": "i32", "BLOCK": "constexpr"}
    aligned = {(i,): [["tt.divisibility", 16]] for i in range(4)}
    with codegen.pretending(target):
        source = ASTSource(kernel, signature, {(4,): BLOCK}, aligned)
        made = triton.compile(
            source, target=targets.TARGETS[target], options={"num_warps": 4, "enable_fp_fusion": True}
        )
    return made.asm["cubin"], made.asm["ptx"], made.metadata.shared


def timed(kernel, elements, timer, x=X, flush=True):
    """Time a kernel of this file, from a flushed L2 unless it is to find what is there."""
    cubin, ptx, shared = compiled(kernel, timer.gpu.target)
    if flush:
        timer.flush()
    grid = (triton.cdiv(elements, BLOCK), 1, 1)
    return timer.launch("kernel", cubin, grid, 4, 1, shared, pack(ptx, [x, INDICES, Y, elements]))


@pytest.mark.parametrize("gpu", GPUS)
def test_a_large_copy_reaches_the_ceiling(gpu):
    """`dram` is what a copy far above the L2 reaches: its cycles are those of the bytes, and little besides."""
    elements = 24 << 20
    result = timed(copy, elements, Timer(gpu))
    rate = 8 * elements / (result.cycles / GPUS[gpu].clock)
    assert 0.97 <= rate / GPUS[gpu].dram <= 1


def test_a_copy_moves_its_bytes():
    """What streams through is read and written once: as many bytes, and as many sectors."""
    elements = 1 << 20
    result = timed(copy, elements, Timer("H100"))
    assert result.dram_read == result.dram_write == 4 * elements
    assert result.sectors == 2 * 4 * elements // 32
    assert result.guessed == 0


@pytest.mark.parametrize("blocks", [1000, 1001, 1400])
@pytest.mark.parametrize("second", [copy, backwards], ids=["forwards", "backwards"])
@pytest.mark.parametrize("share", [1, 4])
def test_a_second_launch_finds_what_the_first_read(share, second, blocks):
    """Also where a part of the blocks stands for all, from whichever end the second launch takes them."""
    timer = Timer(replace(GPUS["H100"], share=share))
    first = timed(copy, blocks * BLOCK, timer)
    assert first.dram_read == pytest.approx(4 * blocks * BLOCK, rel=0.05)
    assert timed(second, blocks * BLOCK, timer, flush=False).dram_read < 0.05 * first.dram_read


@pytest.mark.parametrize("share", [1, 4])
def test_neighbours_share_a_sector(share):
    """Also where a part of the blocks stands for all: what ends within a sector is read again from the L2 at most."""
    blocks = 1024
    read = timed(columns, blocks * BLOCK, Timer(replace(GPUS["H100"], share=share))).dram_read
    assert read == pytest.approx(4 * 12 * (BLOCK // 16) * blocks, rel=0.05)


def test_two_runs_agree():
    """The model has no randomness but its seed's."""
    first, second = (timed(copy, 1 << 18, Timer("A100")) for _ in range(2))
    assert first == second


def test_another_seed_is_another_run():
    """The seed is used."""
    first, second = (timed(copy, 1 << 18, Timer(replace(GPUS["A100"], seed=seed))) for seed in (1, 2))
    assert first.cycles != second.cycles


def test_addresses_that_depend_on_data_are_guessed():
    """An index that was loaded is an address that the model cannot know: each such access of a warp is counted."""
    result = timed(gather, 1 << 16, Timer("H100"))
    assert result.guessed >= (1 << 16) / 128  # 32 lanes of at most 4 elements
    assert timed(copy, 1 << 16, Timer("H100")).guessed == 0


@pytest.mark.parametrize("case", ["layer-2048x4096", "rms-2048x1000"])
def test_a_share_is_never_faster(case):
    """A multiprocessor that cannot use what others leave is no faster than all together, from a flushed L2.

    But for 1 %: other blocks begin at other random times.
    """
    for launches in cell(case, "H100").values():
        whole, share = (launched(launches[0], replace(GPUS["H100"], share=share)) for share in (1, 132))
        assert share.cycles >= 0.99 * whole.cycles


def cell(name, gpu):
    """The launches of a case in bfloat16."""
    made = shapes.make(shapes.Case.named(name), torch.bfloat16, torch.contiguous_format)
    return launches_of(*made, targets.PLANNED_FOR[GPUS[gpu].target][1])


def launched(recorded, gpu):
    """Time a recorded launch."""
    from normtriton.runtime import compiling

    kernel = codegen.compile_launch(recorded, gpu.target)
    kinds = codegen.flat(tuple(kernel.src.signature.values()))
    args = codegen.flat((*recorded.args, *compiling.constants(recorded.launch)))
    given = [arg for arg, kind in zip(args, kinds, strict=False) if kind != "constexpr"]
    space, about = Space(), kernel.metadata
    values = [space.address(a) if isinstance(a, torch.Tensor) else a or 0 for a in given]
    x, *rest = recorded.launch.grid
    params = pack(kernel.asm["ptx"], values)
    grid = (x * about.num_ctas, *rest)
    return Timer(gpu).launch(
        about.name, kernel.asm["cubin"], grid, about.num_warps, about.num_ctas, about.shared, params
    )


def hand_made(instruction):
    """A kernel of four instructions whose address is what one of them made."""
    texts = ["MOV R2, 0x1000", "MOV R3, RZ", instruction, "LDG.E R4, [R2.64]", "EXIT"]
    control = 4 << 41 | 7 << 46 | 7 << 49  # four cycles, no scoreboards
    return sass.encode([(text, control) for text in texts], {}, 8, 0, 0x210)


@pytest.mark.parametrize(
    ("instruction", "guessed"), [("IADD3 R2, R2, 0x10, RZ", 0), ("NEWOP R2, R2, 0x10", 1), ("FLO.U32 R2, R2", 1)]
)
def test_unknown_instructions_are_guessed(instruction, guessed):
    """An address that an instruction made which the model does not compute is counted."""
    assert Timer("H100").run("kernel", hand_made(instruction), (1, 1, 1), 1, 1, 0, b"").guessed == guessed


def test_jumps_that_cannot_be_followed():
    """A jump to an address in a register is an error, not a guess."""
    with pytest.raises(sass.UnknownSassError, match="BRX"):
        hand_made("BRX R2 -0x10")


@pytest.mark.parametrize(("target", "dtype"), [("sm_80", "float32"), ("sm_90", "bfloat16")])
def test_the_model_touches_what_the_executor_touches(target, dtype):
    """The same sectors of global memory, though one runs SASS and the other PTX; next to nothing is guessed."""
    program = Path(__file__).with_name("same_sectors.py")
    command = [sys.executable, "-W", "ignore", program, target, dtype, "row", "batch-column-sector", "group-cells"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) > 4 and any(row["cluster"] > 1 for row in rows) == (target == "sm_90")
    for row in rows:  # the assembler may join two loads of one sector
        assert row["timed"] == pytest.approx(row["executed"], rel=0.02), row
        assert row["guessed"] <= 1, row
