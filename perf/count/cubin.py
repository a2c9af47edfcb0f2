"""What a cubin says of its kernel, read out of the file itself: NVIDIA's tools take 0.3 s to start, for each kernel.

Sections ``.nv.info`` hold attributes: a format, a number, a size, and for the format used here two words, a symbol and
a value. Sections ``.text.`` hold the code, 16 bytes an instruction. Its lowest nine bits are the operation, whatever
kinds of operands follow; of an access of memory bits 73 to 75 are the width. (Seen in cubins of sm_80 to sm_100, and as
`cuobjdump -elf`, `-res-usage` and `-sass` name them; NVIDIA documents it nowhere. `test_what_a_cubin_says` compares.)
"""

from __future__ import annotations

import struct
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

MAGIC = b"\x7fELF"  #: how a cubin, an ELF file, begins
_SIZED = 4  #: EIFMT_SVAL, an attribute of so many bytes
_FRAME, _REGISTERS = 0x11, 0x2F  #: EIATTR_FRAME_SIZE, EIATTR_REGCOUNT
_SECTION = struct.Struct("<IIQQQQIIQQ")
_LDG, _STG, _BAR = 0x181, 0x186, 0x11D  #: operations: load and store global memory, a barrier of the thread block
_WIDTHS = (1, 1, 2, 2, 4, 8, 16)  #: bytes of U8, S8, U16, S16, and of 32, 64 and 128 bits


class Instructions(NamedTuple):
    """How many of each kind a kernel's text has.

    Attributes:
        loads, stores: those that access global memory, by bytes of a thread.
        barriers: barriers of a thread block.
        total: all of them.
    """

    loads: Counter[int]
    stores: Counter[int]
    barriers: int
    total: int


def _sections(cubin: bytes) -> Iterator[tuple[str, bytes]]:
    """Names and contents of an ELF file's sections."""
    (start,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names = struct.unpack_from("<HHH", cubin, 0x3A)
    headers = [_SECTION.unpack_from(cubin, start + i * size) for i in range(count)]
    text = headers[names][4]
    for name, _type, _flags, _address, offset, length, *_ in headers:
        yield cubin[text + name : cubin.index(b"\0", text + name)].decode(), cubin[offset : offset + length]


def instructions(cubin: bytes) -> Instructions:
    """Count the instructions of a cubin's one kernel."""
    found: Counter[tuple[int, int]] = Counter()
    for name, content in _sections(cubin):
        if name.startswith(".text."):
            found.update((low & 0x1FF, high >> 9 & 7) for low, high in struct.iter_unpack("<QQ", content))

    def widths(operation: int) -> Counter[int]:
        held: Counter[int] = Counter()
        for (other, width), count in found.items():
            if other == operation:
                held[_WIDTHS[width]] += count
        return held

    barriers = sum(count for (operation, _width), count in found.items() if operation == _BAR)
    return Instructions(widths(_LDG), widths(_STG), barriers, found.total())


def usage(cubin: bytes) -> tuple[int, int]:
    """(registers a thread, bytes of stack a thread) of a cubin's one kernel.

    Raises:
        ValueError: this is no cubin, or it does not say.
    """
    if not cubin.startswith(MAGIC):
        raise ValueError("not a cubin: it does not begin as an ELF file does")
    found: dict[int, int] = {}
    for name, content in _sections(cubin):
        if name != ".nv.info":
            continue
        at = 0
        while at + 4 <= len(content):
            layout, attribute, size = struct.unpack_from("<BBH", content, at)
            at += 4
            if layout == _SIZED:
                if attribute in (_FRAME, _REGISTERS):
                    found[attribute] = struct.unpack_from("<I", content, at + 4)[0]
                at += size
    if _REGISTERS not in found:
        raise ValueError("this cubin does not say how many registers its kernel takes")
    return found[_REGISTERS], found.get(_FRAME, 0)
