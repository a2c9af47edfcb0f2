"""Rows of integers, as the executor takes instructions, and the operands in them.

cpp/executor/program.hpp says what the integers mean and has the enumerations, which are read from it here. An operand
is 8 * index + file: a register, a constant from a pool, or a special register; -1 is none.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from pathlib import Path

_HEADER = (Path(__file__).parent / "cpp" / "executor" / "program.hpp").read_text()


class UnknownError(Exception):
    """PTX that the emulator does not know; the message has its line."""


def enumeration(name: str) -> dict[str, int]:
    """The names of an ``enum class`` of program.hpp, with their numbers."""
    found = re.search(rf"enum class {name} : s32 {{(.*?)}};", _HEADER, re.DOTALL)
    assert found is not None
    names = re.sub(r"//.*", "", found[1]).split(",")
    return {n.strip(): i for i, n in enumerate(names)}


OPERATIONS, TYPES, SPECIALS, FILES = (enumeration(n) for n in ("Op", "Type", "Special", "File"))
REGISTER32, REGISTER64, PREDICATE = (FILES[n] for n in ("REGISTER32", "REGISTER64", "PREDICATE"))

#: Bytes of a type; values of 8 and 16 bits stand in registers of 32.
SIZES = {
    "PRED": 0,
    "U8": 1,
    "S8": 1,
    "U16": 2,
    "S16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "S32": 4,
    "F32": 4,
    "F16X2": 4,
    "BF16X2": 4,
    "U64": 8,
    "S64": 8,
    "F64": 8,
    "F32X2": 8,
}
_UNTYPED = {"b8": "U8", "b16": "U16", "b32": "U32", "b64": "U64"}

NOTHING = -1
DESTINATIONS, SOURCES = 8, 10
WIDTH = 9 + DESTINATIONS + SOURCES


def type_of(word: str) -> str:
    """The name in `TYPES` of a type as PTX writes it."""
    name = _UNTYPED.get(word, word.upper())
    if name not in TYPES:
        raise UnknownError(f"type .{word}")
    return name


def file_of(kind: str) -> int:
    """The file of registers that holds a type."""
    return PREDICATE if kind == "PRED" else REGISTER64 if SIZES[kind] == 8 else REGISTER32


@dataclass
class Row:
    """An instruction; the fields are those of program.hpp, ``label`` is where a branch goes."""

    operation: str
    type: str = "U32"
    destinations: list[int] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)
    type2: int = 0
    mode: int = 0
    mode2: int = 0
    target: int = NOTHING
    label: str = ""

    def integers(self, guard: int, line: int, source: int) -> list[int]:
        """The row as the executor takes it."""
        if len(self.destinations) > DESTINATIONS or len(self.sources) > SOURCES:
            raise UnknownError("too many operands")
        head = [OPERATIONS[self.operation], TYPES[self.type], self.type2, self.mode, self.mode2]
        return [
            *(*head, guard, self.target, line, source),
            *(*self.destinations, *[NOTHING] * (DESTINATIONS - len(self.destinations))),
            *(*self.sources, *[NOTHING] * (SOURCES - len(self.sources))),
        ]


class Scope:
    """Names of registers and labels between two braces."""

    def __init__(self, parent: Scope | None = None) -> None:
        """A scope inside of its parent."""
        self.parent = parent
        self.names: dict[str, int] = {}
        self.labels: dict[str, int] = {}

    def find(self, name: str) -> int | None:
        """The register of a name, here or outside."""
        if name in self.names or self.parent is None:
            return self.names.get(name)
        return self.parent.find(name)

    def find_label(self, name: str) -> int | None:
        """The row that a label stands before."""
        if name in self.labels or self.parent is None:
            return self.labels.get(name)
        return self.parent.find_label(name)


class Operands:
    """What the operands of a kernel's instructions refer to: registers, constants, variables.

    Attributes:
        counts: registers of each file.
        constants32, constants64: the index of each constant in its pool.
        symbols: addresses of variables; offsets of parameters, as "param NAME".
        scope: the braces that are open.
    """

    def __init__(self) -> None:
        """Nothing is declared yet."""
        self.counts = {REGISTER32: 0, REGISTER64: 0, PREDICATE: 0}
        self.constants32: dict[int, int] = {}
        self.constants64: dict[int, int] = {}
        self.symbols: dict[str, int] = {}
        self.scope = Scope()

    def new_register(self, file: int) -> int:
        """A register that has no name yet."""
        self.counts[file] += 1
        return (self.counts[file] - 1) * 8 + file

    def register(self, text: str, kind: str) -> int:
        """A register that holds a type; ``_`` is none."""
        if text == "_":
            return NOTHING
        operand = self.scope.find(text)
        if operand is None:
            raise UnknownError(f"register {text!r}")
        if operand & 7 != file_of(kind):
            raise UnknownError(f"register {text!r} does not have type {kind}")
        return operand

    def source(self, text: str, kind: str) -> int:
        """A register, literal, special register, or the address of a variable."""
        if self.scope.find(text) is not None:
            return self.register(text, kind)
        if text.startswith("%"):
            name = text[1:].replace(".", "_").upper()
            if name not in SPECIALS:
                raise UnknownError(f"special register {text}")
            return SPECIALS[name] * 8 + FILES["SPECIAL"]
        value = literal(text, kind)
        if value is None:
            value = self.symbols.get(text)
        if value is None:
            raise UnknownError(f"operand {text!r}")
        return self.constant(value, SIZES[kind] == 8)

    def data(self, text: str, kind: str) -> int:
        """A value that is loaded, stored or converted: its register may be wider than the type."""
        operand = self.scope.find(text)
        if operand is None:
            return NOTHING if text == "_" else self.source(text, kind)
        if operand & 7 == PREDICATE or (SIZES[kind] == 8 and operand & 7 != REGISTER64):
            raise UnknownError(f"register {text!r} is too narrow")
        return operand

    def address(self, text: str) -> tuple[int, int]:
        """The base operand and the offset of ``[base + offset]``."""
        found = re.fullmatch(r"\[\s*([\w$%.]+)\s*(?:([+-])\s*(-?\w+))?\s*\]", text)
        if found is None:
            raise UnknownError(f"address {text!r}")
        base, sign, digits = found.groups()
        offset = int(digits or "0", 0) * (-1 if sign == "-" else 1)
        operand = self.scope.find(base)
        if operand is not None:
            return operand, offset
        if base in self.symbols:
            return self.constant(0, wide=True), self.symbols[base] + offset
        if re.fullmatch(r"\d+|0x[0-9a-fA-F]+", base):
            return self.constant(int(base, 0), wide=True), offset
        raise UnknownError(f"address {text!r}")

    def constant(self, value: int, wide: bool) -> int:
        """A constant of 64 or of 32 bits."""
        pool = self.constants64 if wide else self.constants32
        value &= (1 << 64) - 1 if wide else (1 << 32) - 1
        return pool.setdefault(value, len(pool)) * 8 + FILES["CONSTANT64" if wide else "CONSTANT32"]


def literal(text: str, kind: str) -> int | None:
    """The bits of a literal as a value of a type; None if it is no literal (PTX ISA)."""
    sign, digits = text.startswith("-"), text.removeprefix("-")
    if found := re.fullmatch(r"0[fF]([0-9A-Fa-f]{8})", digits):
        bits = int(found[1], 16) ^ sign << 31
        return _double_bits(_float(bits)) if kind == "F64" else bits
    if found := re.fullmatch(r"0[dD]([0-9A-Fa-f]{16})", digits):
        bits = int(found[1], 16) ^ sign << 63
        return _float_bits(_double(bits)) if kind == "F32" else bits
    if re.fullmatch(r"0[xX][0-9A-Fa-f]+U?|0[bB][01]+U?|\d+U?", digits):
        digits = digits.rstrip("U")
        value = int(digits, 8 if re.fullmatch(r"0\d+", digits) else 0)
        return (-value if sign else value) & (1 << 8 * max(SIZES[kind] or 4, 2)) - 1
    if re.fullmatch(r"\d*\.\d+(e[+-]?\d+)?", digits):
        return _double_bits(float(text)) if kind == "F64" else _float_bits(float(text))
    return None


def _float(bits: int) -> float:
    value: float = struct.unpack("<f", struct.pack("<I", bits))[0]
    return value


def _double(bits: int) -> float:
    value: float = struct.unpack("<d", struct.pack("<Q", bits))[0]
    return value


def _float_bits(value: float) -> int:
    return int.from_bytes(struct.pack("<f", value), "little")


def _double_bits(value: float) -> int:
    return int.from_bytes(struct.pack("<d", value), "little")
