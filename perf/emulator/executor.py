"""The executor: a library of C++ that runs PTX where Triton finds the CUDA driver, built once and called by ctypes."""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from normtriton.runtime.switch import whole_number

from . import build, ptx
from .encoding import enumeration

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy.typing as npt

#: What a launch is checked for; memory accesses outside of any tensor are never made, checked or not.
CHECKS = {"memory": 1, "init": 2, "shared": 4, "global": 8}
#: Bytes that a lane loads or stores at once.
WIDTHS = (1, 2, 4, 8, 16, 32)
#: Classes of instructions, in the executor's order.
CLASS_NAMES = [name.lower() for name in enumeration("Class")]
#: `Counts` of cpp/executor/findings.hpp.
_COUNTS = [
    *CLASS_NAMES,
    *(f"{kind}_{width}" for kind in ("ld", "st") for width in WIDTHS),
    *("ld_requests", "ld_sectors", "st_requests", "st_sectors"),
    *("lanes", "warps", "ctas", "clusters_run", "clusters", "total"),
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
    count: int  # type: ignore[assignment]  # a tuple's method of that name is not used
    text: str

    @property
    def error(self) -> bool:
        """Whether it is more than a note."""
        return not self.kind.startswith("note")

    def __str__(self) -> str:
        where = f" [{self.source}; PTX {self.ptx}]" if self.ptx else ""
        return f"{self.kind} x{self.count} in {self.kernel}: {self.text}{where}"


class Executor:
    """The library, loaded where Triton finds it as the CUDA driver."""

    def __init__(self) -> None:
        """Build the library if it is not there, and load it."""
        library = build.library("executor/executor.cpp", "libcuda.so.1", "-Wl,-soname,libcuda.so.1")
        os.environ["TRITON_LIBCUDA_PATH"] = str(library.parent)
        self.lib = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        self.lib.emulator_load.restype = self.lib.emulator_last.restype = ctypes.c_void_p
        self.lib.emulator_kind.restype = ctypes.c_char_p
        self.lib.emulator_launches.restype = ctypes.c_long
        integer = ctypes.c_int
        self.lib.emulator_configure.argtypes = [ctypes.c_uint64, *[integer] * 3, ctypes.c_long, *[integer] * 2]
        self.programs: dict[int, ptx.Program] = {}
        self.kinds: list[str] = []
        while (name := self.lib.emulator_kind(len(self.kinds))) is not None:
            self.kinds.append(name.decode())
        self.configure()

    def configure(
        self,
        seed: int = 1,
        checks: Iterable[str] = tuple(CHECKS),
        approx: bool = False,
        resident: int = 2,
        max_clusters: int = 0,
        quantum: int = 64,
        chaos: bool = False,
    ) -> None:
        """Set what holds for the launches that follow.

        Args:
            seed: of the scheduler; 0 runs one warp after the other, blocks in order.
            checks: of `CHECKS`.
            approx: perturb approximate instructions by as many units in the last place as PTX allows them.
            resident: clusters (or blocks) that run at a time.
            max_clusters: run so many clusters of a launch, chosen by the seed; 0 for all.
            quantum: instructions a warp runs at most before another is picked.
            chaos: loads that race in global memory give 0xFF..., so that results show whether they are used.

        Raises:
            TypeError: a number that is no integer.
            ValueError: a number that is too small, or a check that is none.
        """
        numbers = {
            "seed": (seed, 0),
            "resident": (resident, 1),
            "max_clusters": (max_clusters, 0),
            "quantum": (quantum, 1),
        }
        for name, (number, least) in numbers.items():
            whole_number(number, f"configure(): argument '{name}'", least)
        if unknown := [check for check in checks if check not in CHECKS]:
            raise ValueError(f"configure(): checks are of {', '.join(CHECKS)}, not {unknown}")
        mask = sum(CHECKS[check] for check in checks)
        self.lib.emulator_configure(seed, mask, int(approx), resident, max_clusters, quantum, int(chaos))

    def load(self, text: str, body: bool = True) -> int:
        """Parse PTX; the handle, which the next cuModuleLoadData hands out.

        Args:
            text: a module with one kernel.
            body: False for launches that are not run, which need no more than the kernel's parameters.
        """
        program = ptx.read(text, body)
        parameters = np.array([(p.size, p.offset) for p in program.params] or [(0, 0)], dtype=np.int32)
        sizes = (program.param_bytes, program.static_shared, program.local, program.threads, program.cluster)
        handle: int = self.lib.emulator_load(
            program.name.encode(),
            *(_pointer(program.code), len(program.code)),
            *(_pointer(program.const32), len(program.const32)),
            *(_pointer(program.const64), len(program.const64)),
            (ctypes.c_int32 * 3)(*program.registers),
            *(_pointer(parameters), len(program.params)),
            (ctypes.c_int32 * len(sizes))(*sizes),
        )
        for table in program.data:
            self.lib.emulator_table(ctypes.c_void_p(handle), _pointer(table), ctypes.c_uint64(len(table)))
        self.programs[handle] = program
        return handle

    def memory(self, regions: list[tuple[int, int, int, int]]) -> None:
        """What the next launch may access: (address, bytes, log2 of bytes a granule, address of a flag a granule)."""
        table = np.array(regions, dtype=np.uint64).reshape(-1, 4)
        base, size, shift, flags = (np.ascontiguousarray(column) for column in table.T)
        shift = shift.astype(np.uint32)
        self.lib.emulator_memory(len(regions), *(_pointer(column) for column in (base, size, shift, flags)))

    def noted(self) -> tuple[list[int], bytes]:
        """The last launch that was not run: grid, threads of a block, blocks of a cluster, shared bytes; parameters."""
        launch, parameters = np.zeros(6, dtype=np.uint32), np.zeros(4096, dtype=np.uint8)
        length: int = self.lib.emulator_noted(_pointer(launch), _pointer(parameters), len(parameters))
        return [int(value) for value in launch], parameters[:length].tobytes()

    def last(self) -> ptx.Program | None:
        """The program that ran last."""
        return self.programs.get(self.lib.emulator_last())

    def reports(self) -> list[Report]:
        """What the last launch was found to do."""
        program, reports = self.last(), list[Report]()
        kind, line, source, count = ctypes.c_int(), ctypes.c_int(), ctypes.c_int(), ctypes.c_uint64()
        text = ctypes.create_string_buffer(1024)
        values = [ctypes.byref(value) for value in (kind, line, source, count)]
        while self.lib.emulator_report(len(reports), *values, text, len(text)):
            assert program is not None
            there = line.value >= 0
            where = (program.lines[line.value], program.places[source.value]) if there else ("", "")
            report = Report(self.kinds[kind.value], program.name, *where, count.value, text.value.decode())
            reports.append(report)
        return reports

    def counts(self) -> dict[str, int]:
        """Executed warp instructions of the last launch, by class, and global accesses by bytes a lane."""
        raw = np.zeros(self.lib.emulator_counts_size(), dtype=np.uint64)
        self.lib.emulator_counts(_pointer(raw))
        return {name: int(value) for name, value in zip(_COUNTS, raw, strict=True)}


def _pointer(array: npt.NDArray[np.generic]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
