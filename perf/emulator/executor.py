"""Builds cpp/executor.cpp once, and speaks with it through ctypes."""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
from pathlib import Path
from typing import NamedTuple

import numpy as np

from . import build, ptx

#: What a launch is checked for; memory accesses outside of any tensor are never made, checked or not.
CHECKS = {"memory": 1, "init": 2, "shared": 4, "global": 8}
WIDTHS = (1, 2, 4, 8, 16, 32)
_CLASS_NAMES = [c.removeprefix("K_").lower() for c in ptx.CLASSES if c != "K_COUNT"]
_REST = [
    "ld_requests",
    "ld_sectors",
    "st_requests",
    "st_sectors",
    "lanes",
    "warps",
    "ctas",
    "clusters_run",
    "clusters",
    "total",
]


class Report(NamedTuple):
    """Something found in a launch.

    Attributes:
        kind: for example "out-of-bounds"; one that begins with "note" is no error.
        kernel: its name.
        ptx: the line of PTX.
        source: "file:line" of the kernel's source.
        count: how often.
        text: what happened the first time.
    """

    kind: str
    kernel: str
    ptx: str
    source: str
    count: int
    text: str

    @property
    def error(self) -> bool:
        return not self.kind.startswith("note")

    def __str__(self) -> str:
        where = f" [{self.source}; PTX {self.ptx}]" if self.ptx else ""
        return f"{self.kind} x{self.count} in {self.kernel}: {self.text}{where}"


class Executor:
    """The library, loaded where Triton finds it as the CUDA driver."""

    def __init__(self) -> None:
        library = build.library("executor.cpp", "libcuda.so.1", "-Wl,-soname,libcuda.so.1")
        os.environ["TRITON_LIBCUDA_PATH"] = str(library.parent)
        self.lib = lib = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        lib.emulator_load.restype = lib.emulator_last.restype = ctypes.c_void_p
        lib.emulator_kind.restype = ctypes.c_char_p
        lib.emulator_launches.restype = ctypes.c_long
        lib.emulator_configure.argtypes = [
            ctypes.c_uint64,
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_long,
            ctypes.c_int,
            ctypes.c_int,
        ]
        self.programs: dict[int, ptx.Program] = {}
        self.kinds = []
        while (name := lib.emulator_kind(len(self.kinds))) is not None:
            self.kinds.append(name.decode())
        self.configure()

    def configure(
        self,
        seed: int = 1,
        checks: tuple[str, ...] | None = None,
        approx: bool = False,
        resident: int = 2,
        max_clusters: int = 0,
        quantum: int = 64,
        chaos: bool = False,
    ) -> None:
        """Set what holds for the launches that follow.

        Args:
            seed: of the scheduler; 0 runs one warp after the other, blocks in order.
            checks: of `CHECKS`, None for all.
            approx: perturb approximate instructions by as many units in the last place as PTX allows them.
            resident: clusters (or blocks) that run at a time.
            max_clusters: run so many clusters of a launch, chosen by the seed; 0 for all.
            quantum: instructions a warp runs at most before another is picked.
            chaos: loads that race in global memory give 0xFF..., so that results show whether they are used.
        """
        mask = sum(CHECKS[c] for c in (CHECKS if checks is None else checks))
        self.lib.emulator_configure(seed, mask, int(approx), resident, max_clusters, quantum, int(chaos))

    def load(self, text: str, body: bool = True) -> int:
        """Parse PTX; the handle, which the next cuModuleLoadData hands out. Without its body for launches that are not run."""
        p = ptx.read(text, body)
        psize = np.array([x.size for x in p.params] or [0], dtype=np.int32)
        poff = np.array([x.offset for x in p.params] or [0], dtype=np.int32)

        def at(a: np.ndarray) -> ctypes.c_void_p:
            return ctypes.c_void_p(a.ctypes.data)

        handle = self.lib.emulator_load(
            p.name.encode(),
            at(p.code),
            len(p.code),
            at(p.const32),
            len(p.const32),
            at(p.const64),
            len(p.const64),
            *p.registers,
            at(psize),
            at(poff),
            len(p.params),
            p.param_bytes,
            p.static_shared,
            p.local,
            p.threads,
            p.cluster,
        )
        for table in p.data:
            self.lib.emulator_data(
                ctypes.c_void_p(handle), ctypes.c_uint64(table.ctypes.data), ctypes.c_uint64(len(table))
            )
        self.programs[handle] = p
        return handle

    def memory(self, regions: list[tuple[int, int, int, int]]) -> None:
        """What the next launch may access: (address, bytes, log2 of bytes a granule, address of a flag a granule)."""
        columns = list(zip(*regions, strict=True)) or [(), (), (), ()]
        arrays = [
            np.array(c, dtype=t) for c, t in zip(columns, (np.uint64, np.uint64, np.uint32, np.uint64), strict=True)
        ]
        self.lib.emulator_memory(len(regions), *(ctypes.c_void_p(a.ctypes.data) for a in arrays))

    def noted(self) -> tuple[list[int], bytes]:
        """The last launch that was not run: grid, threads of a block, blocks of a cluster, shared bytes; and its parameters."""
        launch, params = np.zeros(6, dtype=np.uint32), np.zeros(4096, dtype=np.uint8)
        n = self.lib.emulator_noted(
            ctypes.c_void_p(launch.ctypes.data), ctypes.c_void_p(params.ctypes.data), len(params)
        )
        return [int(v) for v in launch], params[:n].tobytes()

    def last(self) -> ptx.Program | None:
        """The program that ran last."""
        return self.programs.get(self.lib.emulator_last())

    def reports(self) -> list[Report]:
        """What the last launch was found to do."""
        out, program = [], self.last()
        kind, line, source, count = ctypes.c_int(), ctypes.c_int(), ctypes.c_int(), ctypes.c_uint64()
        text = ctypes.create_string_buffer(1024)
        while self.lib.emulator_report(len(out), *map(ctypes.byref, (kind, line, source, count)), text, 1024):
            there = line.value >= 0
            out.append(
                Report(
                    self.kinds[kind.value],
                    program.name,
                    program.lines[line.value] if there else "",
                    program.places[source.value] if there else "",
                    count.value,
                    text.value.decode(),
                )
            )
        return out

    def counts(self) -> dict[str, int]:
        """Executed warp instructions of the last launch, by class, and global accesses by bytes a lane."""
        raw = np.zeros(self.lib.emulator_counts_size(), dtype=np.uint64)
        self.lib.emulator_counts(ctypes.c_void_p(raw.ctypes.data))
        names = _CLASS_NAMES + [f"ld_{w}" for w in WIDTHS] + [f"st_{w}" for w in WIDTHS] + _REST
        assert len(names) == len(raw)
        return {n: int(v) for n, v in zip(names, raw, strict=True)}

    def line_counts(self) -> np.ndarray:
        """How often each instruction of the last program was executed by a warp."""
        out = np.zeros(len(self.last().code), dtype=np.uint64)
        self.lib.emulator_lines(ctypes.c_void_p(out.ctypes.data), len(out))
        return out


CLASS_NAMES = _CLASS_NAMES
