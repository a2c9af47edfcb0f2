"""Predicted time of a kernel that moves the bytes of a pass and computes nothing: the floor of any single launch.

Small tensors are far from the rate of a large copy: a launch starts, its first loads come back, its last stores leave.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from ..emulator.timer import Space
from .predict import kernel, run
from .timed import compiled_launch

if TYPE_CHECKING:
    from ..cases.shapes import Cell
    from ..emulator.gpus import Gpu

#: 16 bytes of bfloat16 a thread, twice, in 4 warps.
BLOCK = 2048


@triton.jit  # type: ignore[untyped-decorator]  # Triton's is untyped
def copy(x, y, n, block: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201  for Triton's compiler
    """Write x to y, both of n elements."""
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    tl.store(y + at, tl.load(x + at, mask=at < n), mask=at < n)


@triton.jit  # type: ignore[untyped-decorator]  # Triton's is untyped
def add(x, dy, dx, n, block: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201  as above
    """Write x + dy to dx, all of n elements."""
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    tl.store(dx + at, tl.load(x + at, mask=at < n) + tl.load(dy + at, mask=at < n), mask=at < n)


def us(gpu: Gpu, cell: Cell, direction: str) -> float:
    """Predicted µs: forward x is read and y written, backward x and dy are read and dx written."""
    elements = prod(cell.case.shape)
    tensors = [torch.empty(elements, dtype=cell.options[0], device="meta") for _ in range(3)]
    function, args = (copy, tensors[:2]) if direction == "forward" else (add, tensors)
    given, grid = (*args, elements), (triton.cdiv(elements, BLOCK),)
    options = {"block": BLOCK, "num_warps": 4, "enable_fp_fusion": False}
    compiled = compiled_launch(function, given, gpu.target, grid, options)
    (found,), _alone = run(gpu, [kernel(compiled, (*given, BLOCK), grid, Space())], elements)
    return found.us
