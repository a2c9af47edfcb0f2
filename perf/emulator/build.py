"""Compiles the C++ beside this file, once for each source and processor, into the user's cache folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from normtriton.runtime import cache

SOURCES = Path(__file__).parent / "cpp"
#: x * y + z is rounded twice, as PTX has it rounded: only `fma` is rounded once.
FLAGS = (
    *("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-w"),
    *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fno-strict-aliasing", "-fwrapv"),
)


class CompilerMissingError(RuntimeError):
    """There is no C++ compiler, or it does not compile C++17."""


def library(source: str, name: str, *flags: str) -> Path:
    """The shared library of a source in `SOURCES`, compiled if it is not there for this source and this processor.

    Raises:
        CompilerMissingError: it cannot be compiled; says what to install.
    """
    compiler = os.environ.get("CXX") or "g++"
    texts = [file.read_bytes() for file in sorted(SOURCES.rglob("*.?pp"))]
    command = [compiler, *FLAGS, *flags]
    key = hashlib.sha256(b"\n".join([*texts, " ".join(command).encode(), _processor().encode()])).hexdigest()[:16]
    file = cache.folder() / "emulator" / key / name
    if file.exists():
        return file
    if shutil.which(compiler) is None:
        raise CompilerMissingError(
            f"the emulator needs a C++17 compiler; there is no {compiler}: install g++ or set CXX"
        )
    with cache.replacing(file) as made:
        result = subprocess.run([*command, "-o", made, SOURCES / source], check=False, capture_output=True, text=True)
        if result.returncode:
            raise CompilerMissingError(
                f"{compiler} does not compile {source}: it takes C++17, x86-64, _Float16 (g++ 12)\n"
                f"{result.stderr[:2000]}"
            )
    return file


def _processor() -> str:
    """What this machine's processor can do: code is compiled for it."""
    return next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), "")
