"""What a cubin says of its kernel: registers and bytes of stack, read out of the file itself, without a tool.

Sections ``.nv.info`` hold attributes: a format, a number, a size, and for the format used here two words, a symbol and
a value. (Seen in cubins of sm_80 to sm_100, and as `cuobjdump -elf` and `-res-usage` name them; NVIDIA documents it
nowhere.)
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

MAGIC = b"\x7fELF"  #: how a cubin, an ELF file, begins
_SIZED = 4  #: EIFMT_SVAL, an attribute of so many bytes
_FRAME, _REGISTERS = 0x11, 0x2F  #: EIATTR_FRAME_SIZE, EIATTR_REGCOUNT
_SECTION = struct.Struct("<IIQQQQIIQQ")


def _sections(cubin: bytes) -> Iterator[tuple[str, bytes]]:
    """Names and contents of an ELF file's sections."""
    (start,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names = struct.unpack_from("<HHH", cubin, 0x3A)
    headers = [_SECTION.unpack_from(cubin, start + i * size) for i in range(count)]
    text = headers[names][4]
    for name, _type, _flags, _address, offset, length, *_ in headers:
        yield cubin[text + name : cubin.index(b"\0", text + name)].decode(), cubin[offset : offset + length]


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
