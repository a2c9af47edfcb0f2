"""The disassembler, run once for all kernels of a test: it takes 0.3 s to start, and next to nothing for a kernel.

`normtriton.perf.count.codegen` runs it for each kernel. `disassemble` hands it the instructions of several kernels for
one target as one, and keeps what `codegen.read_code` asks for later: `test_disassembled_together` compares the two.
"""

import re
import struct
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

from normtriton.perf.count import codegen

_known = {}
_alone = codegen._disassemble


def speed_up():
    """Have `codegen.read_code` look at what was disassembled together first."""
    codegen._disassemble = lambda cubin: _known.get(cubin) or _alone(cubin)


def disassemble(kernels):
    """Disassemble the kernels among these that are new, all for one target."""
    targets = {kernel.asm["cubin"]: kernel.asm["ptx"] for kernel in kernels if "cubin" in kernel.asm}
    new = [cubin for cubin in targets if cubin not in _known]
    if not new:
        return
    (target,) = {re.search(r"\.target sm_(\w+)", targets[cubin])[1] for cubin in new}
    codes = [instructions(cubin) for cubin in new]
    listing = run("nvdisasm", b"".join(codes), "--binary", f"SM{target}")
    names = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_.]+)", listing)
    assert len(names) == sum(map(len, codes)) // 16  # bytes of an instruction
    for cubin, code in zip(new, codes, strict=True):
        count = len(code) // 16
        numbers = re.findall(r"(REG|STACK|LOCAL):(\d+)", run("cuobjdump", cubin, "-res-usage"))
        _known[cubin] = {key: int(value) for key, value in numbers}, Counter(names[:count])
        names = names[count:]


def run(tool, content, *arguments):
    """What one of Triton's tools prints of a file."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(content)
        command = [codegen._tool(tool), *arguments, file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def instructions(cubin):
    """The code of an ELF file: its sections whose names begin with ".text." (System V ABI, chapter 4)."""
    (headers,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names = struct.unpack_from("<HHH", cubin, 0x3A)
    sections = [struct.unpack_from("<II4Q", cubin, headers + i * size) for i in range(count)]
    return b"".join(
        cubin[start : start + length]
        for name, _kind, _flags, _address, start, length in sections
        if cubin.startswith(b".text.", sections[names][4] + name)
    )
