"""Read the kernel of a PTX module: its head, its variables, its statements, and where each comes from in the source.

What an instruction's words and operands mean stands in `instructions`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .encoding import SIZES, WIDTH, Operands, Row, Scope, UnknownError, file_of, type_of
from .instructions import encode

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["Parameter", "Program", "UnknownError", "read"]


class Parameter(NamedTuple):
    """A parameter of a kernel; its bytes, and where they stand among all."""

    name: str
    size: int
    offset: int
    pointer: bool


class Program(NamedTuple):
    """A kernel as the executor takes it, and what messages need.

    Attributes:
        code: rows of instructions, as in cpp/executor/program.hpp.
        registers: how many there are of 32 bits, of 64 bits, and predicates.
        param_bytes, static_shared, local: bytes of all parameters, of shared memory, of a thread's local memory.
        threads: of a block, as the kernel requires; 0 if it does not.
        cluster: blocks of a cluster, as the kernel requires; 1 if it does not.
        lines: of PTX, by an instruction's ``line``.
        places: of the source, "file:line", by an instruction's ``source``.
        data: constant tables, which the code has the addresses of.
    """

    name: str
    code: npt.NDArray[np.int32]
    const32: npt.NDArray[np.uint32]
    const64: npt.NDArray[np.uint64]
    registers: tuple[int, int, int]
    params: list[Parameter]
    param_bytes: int
    static_shared: int
    local: int
    threads: int
    cluster: int
    lines: list[str]
    places: list[str]
    target: str
    data: list[npt.NDArray[np.uint8]]


def read(text: str, body: bool = True) -> Program:
    """Parse the one kernel of a PTX module; without its body, only what it says of itself and of its parameters.

    Raises:
        UnknownError: the emulator does not know something in it.
    """
    return _Reader(re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)).read(body)


def _align(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment


#: Where a row has the target of a branch.
_TARGET = 6


class _Jump(NamedTuple):
    row: int
    label: str
    scope: Scope


class _Reader:
    """What is known of a module so far."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.operands = Operands()
        self.rows: list[list[int]] = []
        self.jumps: list[_Jump] = []
        self.lines: list[str] = []
        self.files = {
            m[1]: m[2].rsplit("/", 1)[-1] for m in re.finditer(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', text, re.MULTILINE)
        }
        self.places = {"?": 0}
        self.place = 0
        self.params: list[Parameter] = []
        self.param_bytes = self.static_shared = self.local = 0
        self.data: list[npt.NDArray[np.uint8]] = []

    def read(self, body: bool) -> Program:
        entries = list(
            re.finditer(r"\.visible\s+\.entry\s+([\w$]+)\s*\((.*?)\)(.*?)^\{", self.text, re.DOTALL | re.MULTILINE)
        )
        if len(entries) != 1 or len(re.findall(r"\.entry", self.text)) != 1:
            raise UnknownError("not one .visible .entry")
        name, parameters, directives = entries[0].groups()
        self._read_parameters(parameters)
        self._read_variables(self.text[: entries[0].start()])
        if body:
            self._read_body(self.text[entries[0].end() :], self.text[: entries[0].end()].count("\n") + 1)
            self._resolve_jumps()
        return Program(
            name=name,
            code=np.array(self.rows, dtype=np.int32).reshape(-1, WIDTH),
            const32=np.array(list(self.operands.constants32) or [0], dtype=np.uint32),
            const64=np.array(list(self.operands.constants64) or [0], dtype=np.uint64),
            registers=(self.operands.counts[0], self.operands.counts[1], self.operands.counts[2]),
            params=self.params,
            param_bytes=self.param_bytes,
            static_shared=self.static_shared,
            local=self.local,
            threads=_directive(directives, "reqntid", 0),
            cluster=_directive(directives, "reqnctapercluster", 1),
            lines=self.lines,
            places=list(self.places),
            target="".join(re.findall(r"\.target\s+(\w+)", self.text)[:1]),
            data=self.data,
        )

    # ------------------------------------------------------------------------------------------------ the head
    def _read_parameters(self, text: str) -> None:
        for item in filter(None, (part.strip() for part in text.split(","))):
            pointer = r"(\.ptr\s+\S+\s+(?:\.align\s+\d+\s+)?)?"
            pattern = rf"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+{pointer}([\w$]+)(?:\[(\d+)\])?"
            found = re.match(pattern, item)
            if found is None:
                raise UnknownError(f"parameter {item!r}")
            alignment, kind, points, name, count = found.groups()
            unit = SIZES[type_of(kind)] or 1
            offset = _align(self.param_bytes, int(alignment or unit))
            self.params.append(Parameter(name, unit * int(count or 1), offset, bool(points)))
            self.operands.symbols[f"param {name}"] = offset
            self.param_bytes = offset + unit * int(count or 1)

    def _read_variables(self, text: str) -> None:
        """Shared memory of a fixed size, then the extern array, which a launch gives beyond; constant tables."""
        symbols = self.operands.symbols
        for alignment, name, size in re.findall(r"\.shared\s+\.align\s+(\d+)\s+\.b8\s+([\w$.]+)\[(\d+)\]", text):
            symbols[name] = _align(self.static_shared, int(alignment))
            self.static_shared = symbols[name] + int(size)
        for name in re.findall(r"\.extern\s+\.shared\s+\.align\s+\d+\s+\.b8\s+([\w$.]+)\[\]", text):
            symbols[name] = _align(self.static_shared, 1024)
        tables = r"\.(?:global|const)\s+\.align\s+\d+\s+\.b8\s+([\w$.]+)\[(\d+)\]\s*(?:=\s*\{([^}]*)\})?"
        for name, size, values in re.findall(tables, text):
            given = [int(value, 0) for value in values.split(",") if value.strip()]
            table = np.zeros(int(size) + 16, dtype=np.uint8)
            table[: len(given)] = given
            self.data.append(table)
            symbols[name] = table.ctypes.data

    # ------------------------------------------------------------------------------------------------ the body
    def _read_body(self, text: str, first_line: int) -> None:
        """Split lines into statements, labels and braces. A statement may go over several lines."""
        scopes, statement, began = 1, "", 0
        for number, raw in enumerate(text.split("\n"), first_line):
            line = raw.split("//")[0].strip()
            if self._read_place(line) or (not statement and line.startswith((".file", ".pragma"))):
                continue
            while line:
                if not statement:
                    began = number
                    if line[0] in "{}":
                        scopes += 1 if line[0] == "{" else -1
                        if scopes == 0:
                            return
                        parent = self.operands.scope.parent
                        self.operands.scope = Scope(self.operands.scope) if line[0] == "{" else parent or Scope()
                        line = line[1:].lstrip()
                        continue
                    if label := re.match(r"([\w$.]+):(?!:)\s*", line):
                        self.operands.scope.labels[label[1]] = len(self.rows)
                        line = line[label.end() :]
                        continue
                part, end, line = line.partition(";")
                statement, line = f"{statement} {part}".strip(), line.lstrip()
                if end:
                    self._read_statement(statement, began)
                    statement = ""
        raise UnknownError("the body has no end")

    def _read_place(self, line: str) -> bool:
        """Where what follows comes from in the source. Line 0 is made up by the compiler: the place stays."""
        found = re.match(r"\.loc\s+(\d+)\s+(\d+)", line)
        if found and found[2] != "0":
            key = f"{self.files.get(found[1], '?')}:{found[2]}"
            self.place = self.places.setdefault(key, len(self.places))
        return bool(found)

    def _read_statement(self, text: str, number: int) -> None:
        try:
            if text.startswith(".reg"):
                self._declare_registers(text)
            elif text.startswith(".local"):
                self._declare_local(text)
            elif text and not text.startswith((".pragma", ".param")):
                self._add_instruction(text, number)
        except UnknownError as error:
            raise UnknownError(f"line {number}: {text} ({error})") from None

    def _declare_registers(self, text: str) -> None:
        found = re.match(r"\.reg\s+\.(\w+)\s+(.*)", text, re.DOTALL)
        if found is None:
            raise UnknownError("registers")
        file, names = file_of(type_of(found[1])), self.operands.scope.names
        for name in (part.strip() for part in found[2].split(",")):
            if many := re.fullmatch(r"([\w$%.]+)<(\d+)>", name):
                names.update((f"{many[1]}{k}", self.operands.new_register(file)) for k in range(int(many[2])))
            else:
                names[name] = self.operands.new_register(file)

    def _declare_local(self, text: str) -> None:
        found = re.match(r"\.local\s+\.align\s+(\d+)\s+\.b8\s+([\w$]+)\[(\d+)\]", text)
        if found is None:
            raise UnknownError("local variable")
        offset = _align(self.local, int(found[1]))
        self.operands.symbols[found[2]] = offset
        self.local = offset + int(found[3])

    def _add_instruction(self, text: str, number: int) -> None:
        guard, instruction = self._read_guard(text)
        found = re.match(r"([\w.:]+)\s*(.*)", instruction, re.DOTALL)
        if found is None:
            raise UnknownError("instruction")
        rows: list[Row] = encode(found[1], _split_operands(found[2]), self.operands)
        for row in rows:
            if row.label:
                self.jumps.append(_Jump(len(self.rows), row.label, self.operands.scope))
            self.rows.append(row.integers(guard, len(self.lines), self.place))
        self.lines.append(f"{number}: {instruction}")

    def _read_guard(self, text: str) -> tuple[int, str]:
        """The guard of an instruction, 2 * predicate + negated or -1, and the rest of it."""
        found = re.match(r"@(!?)([\w$%.]+)\s+", text)
        if found is None:
            return -1, text
        predicate = self.operands.register(found[2], "PRED")
        return (predicate >> 3) * 2 + bool(found[1]), text[found.end() :]

    def _resolve_jumps(self) -> None:
        for row, label, scope in self.jumps:
            place = scope.find_label(label)
            if place is None:
                raise UnknownError(f"no label {label}")
            self.rows[row][_TARGET] = place


def _directive(text: str, name: str, otherwise: int) -> int:
    found = re.search(rf"\.{name}\s+(\d+)", text)
    return int(found[1]) if found else otherwise


def _split_operands(text: str) -> list[str]:
    """The operands of an instruction: commas inside of braces and brackets do not part them."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "{[(") - (character in "}])")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]
