"""How many thread blocks a multiprocessor has room for, and how much L1 that leaves. Pure integers."""

from __future__ import annotations

from math import ceil
from typing import NamedTuple


class Limits(NamedTuple):
    """What a multiprocessor (of AMD's: a compute unit) has, and in what pieces it gives it away.

    Attributes:
        warps: resident warps (of AMD's: wavefronts), at most.
        blocks: resident thread blocks of more than one warp, at most.
        registers: of 32 bits, in a quarter of the multiprocessor; a warp stays in one.
        lanes: threads of a warp.
        step: registers a thread, which are given in multiples of this.
        shared: bytes of shared memory.
        shared_step: bytes, likewise.
        reserved: bytes of it that each thread block takes besides its own.
    """

    warps: int
    blocks: int
    registers: int
    lanes: int
    step: int
    shared: int
    shared_step: int
    reserved: int


#: NVIDIA: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"; steps are those of the
#: occupancy calculator (cuda_occupancy.h). AMD: LLVM's AMDGPUBaseInfo.cpp for gfx942, where a thread block of more than
#: one wavefront takes one of 16 barriers.
LIMITS = {
    "sm_80": Limits(64, 32, 16384, 32, 8, 164 << 10, 128, 1 << 10),
    "sm_90": Limits(64, 32, 16384, 32, 8, 228 << 10, 128, 1 << 10),
    "sm_100": Limits(64, 32, 16384, 32, 8, 228 << 10, 128, 1 << 10),
    "gfx942": Limits(32, 16, 32768, 64, 8, 64 << 10, 512, 0),
}
#: Resident thread blocks of one warp, at most, on all of these.
SINGLE = 32


def resident_blocks(target: str, warps: int, registers: int, shared: int) -> int:
    """Thread blocks resident on a multiprocessor at once.

    Args:
        target: one of `LIMITS`.
        warps: of a thread block.
        registers: a thread.
        shared: bytes of a thread block.
    """
    limits = LIMITS[target]
    a_warp = max(ceil(registers / limits.step), 1) * limits.step * limits.lanes
    fits = [limits.blocks if warps > 1 else SINGLE, limits.warps // warps, 4 * (limits.registers // a_warp) // warps]
    a_block = ceil((shared + limits.reserved) / limits.shared_step) * limits.shared_step
    if a_block:
        fits.append(limits.shared // a_block)
    return min(fits)


#: NVIDIA's L1 and shared memory are one memory: KiB of it, and what shared memory may take of them. CUDA C++
#: Programming Guide, "Compute Capabilities", section "Shared Memory" of each.
_UNIFIED = {
    "sm_80": (192, (0, 8, 16, 32, 64, 100, 132, 164)),
    "sm_90": (256, (0, 8, 16, 32, 64, 100, 132, 164, 196, 228)),
    "sm_100": (256, (0, 8, 16, 32, 64, 100, 132, 164, 196, 228)),
}


def l1_bytes(target: str, blocks: int, shared: int) -> int:
    """Bytes of a multiprocessor's L1 beside the shared memory of its resident thread blocks.

    The driver gives shared memory the smallest share that holds them.

    Args:
        target: of NVIDIA's.
        blocks: resident.
        shared: bytes of a thread block.
    """
    kib, shares = _UNIFIED[target]
    needed = min(blocks * (shared + LIMITS[target].reserved), shares[-1] << 10)
    return (kib - next(share for share in shares if share << 10 >= needed)) << 10
