"""Read a cubin into the rows of integers that the model runs: cpp/model/code.hpp says what stands in one.

What is read is nvdisasm's text, and the control bits of each instruction: cycles to stall, the scoreboards that it sets
when it has written or read, those that it waits for. They are the compiler's own schedule, so which loads are in flight
together is not guessed. Names are those of "CUDA Binary Utilities", section "Instruction Set Reference".
"""

from __future__ import annotations

import re
import struct
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from triton import knobs

from . import liveness

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray


class UnknownSassError(RuntimeError):
    """SASS that cannot be followed: an unknown kind of address, jump or barrier."""


# ----------------------------------------------------------------------------------------------- what code.hpp says
_CODE = re.sub(r"//.*", "", (Path(__file__).parent / "cpp" / "model" / "code.hpp").read_text())


def _body(kind: str, name: str) -> str:
    found = re.search(rf"{kind} {name} {{(.*?)}};", _CODE, re.DOTALL)
    assert found is not None, name
    return found[1]


def _enumeration(name: str) -> dict[str, int]:
    items = [item.split("=") for item in _body("enum", name).split(",") if item.strip()]
    return {item[0].strip(): int(item[1]) if item[1:] else at for at, item in enumerate(items)}


OPERATIONS, PIPES, KINDS, SPECIAL, SPACES, MODES = map(
    _enumeration, ("Operation", "Pipe", "OperandKind", "SpecialRegister", "Space", "Mode")
)
_FIELDS = re.findall(r"s32 (\w+);", _body("struct", "Row"))
_CONSTANTS = _enumeration("Constant")
_COMPARISONS, _FUNCTIONS, _SHUFFLES, _VOTES, _LOGIC = (
    {name.rstrip("_"): value for name, value in _enumeration(kind).items()}
    for kind in ("Comparison", "Function", "Shuffle", "Vote", "Logic")
)


# ---------------------------------------------------------------------------------------------------------- results
class Operand(NamedTuple):
    """An operand of an instruction.

    Attributes:
        kind: of `KINDS`.
        value: a register's number, or as code.hpp says.
        modifiers: 1 negated, 2 inverted, 4 absolute.
    """

    kind: str
    value: int
    modifiers: int = 0


@dataclass
class Row:
    """An instruction, its fields as in code.hpp; names stand for enumerations.

    Attributes:
        text: as nvdisasm has it.
        modes: of `MODES`.
        destination_registers, source_registers: that the first destination and each source cover.
        predicates: that P2R reads and R2P writes besides.
    """

    text: str
    operation: str = "NOP"
    pipe: str = "NONE"
    modes: tuple[str, ...] = ()
    choice: int = 0
    guard: int = -1
    target: int = -1
    stall: int = 0
    write_scoreboard: int = _CONSTANTS["NO_SCOREBOARD"]
    read_scoreboard: int = _CONSTANTS["NO_SCOREBOARD"]
    wait: int = 0
    live: bool = False
    space: str = "GLOBAL"
    width: int = 0
    base: int = _CONSTANTS["ZERO_REGISTER"]
    base_wide: bool = False
    uniform_base: int = _CONSTANTS["ZERO_UNIFORM"]
    offset: int = 0
    scale: int = 0
    destinations: list[Operand] = field(default_factory=list)
    sources: list[Operand] = field(default_factory=list)
    predicates: list[Operand] = field(default_factory=list)
    destination_registers: int = 1
    source_registers: int = 1

    @property
    def words(self) -> int:
        """Registers that an access of this width moves."""
        return max(1, self.width // 4)

    def has(self, *modes: str) -> bool:
        """Whether it has one of these modes."""
        return any(mode in self.modes for mode in modes)

    def encode(self) -> list[int]:
        """The integers of code.hpp's Row."""
        named = {
            "operation": OPERATIONS[self.operation],
            "pipe": PIPES[self.pipe],
            "mode": sum(MODES[mode] for mode in self.modes),
            "space": SPACES[self.space],
        }
        fields = [named[name] if name in named else int(getattr(self, name)) for name in _FIELDS]
        destinations, sources = self.destinations, self.sources
        empty = Operand("EMPTY", 0)
        for operand in destinations + [empty] * (_CONSTANTS["DESTINATIONS"] - len(destinations)):
            fields += [KINDS[operand.kind], operand.value]
        for operand in sources + [empty] * (_CONSTANTS["SOURCES"] - len(sources)):
            fields += [KINDS[operand.kind], operand.value, operand.modifiers]
        return fields


class Code(NamedTuple):
    """A kernel as the model takes it.

    Attributes:
        rows: (instructions, fields) int32.
        lines: the text of each instruction.
        registers: a thread.
        local: bytes of local memory a thread: spills.
        parameters: offset of the parameters in constant bank 0.
    """

    rows: NDArray[np.int32]
    lines: list[str]
    registers: int
    local: int
    parameters: int


# --------------------------------------------------------------------------------------------------------- operands
#: Registers: the letters before their number, and what the name of the constant one means.
_REGISTERS = {"R": ("REG", "Z", 255), "UR": ("UREG", "Z", 63), "P": ("PREG", "T", 7), "UP": ("UPREG", "T", 7)}
_PREDICATES, _VALUES = ("PREG", "UPREG"), ("REG", "UREG")


def _register(text: str) -> Operand | None:
    match = re.fullmatch(r"(U?[RP])(\d+|[ZT])", text)
    if match is None:
        return None
    kind, constant, number = _REGISTERS[match[1]]
    return Operand(kind, number if match[2] == constant else int(match[2]))


def _integer(text: str) -> int | None:
    match = re.fullmatch(r"(-?)0x([0-9a-f]+)", text)
    return None if match is None else int(match[1] + match[2], 16)


def _float(text: str, kind: str = "f") -> int | None:
    """The bits of a float's text; the kind is struct's."""
    named = re.sub(r"[QS]NAN", "nan", text).replace("INF", "inf")
    try:
        return int.from_bytes(struct.pack(f"<{kind}", float(named)), "little")
    except (ValueError, OverflowError):
        return None


def _operand(text: str, labels: dict[str, int]) -> Operand:
    """Read one operand."""
    text = re.sub(r"\.(reuse|H0_H0|H1_H1|H0|H1|64|B\d|ROW|COL|F32x2\S*)", "", text)
    modifiers = 0
    if text.startswith("-") and not re.match(r"-[\d.+]|-INF|-QNAN", text):
        modifiers, text = 1, text[1:]
    if text.startswith(("~", "!")):
        modifiers, text = modifiers | 2, text[1:]
    if text.startswith("|"):
        modifiers, text = modifiers | 4, text.strip("|")
    if (register := _register(text)) is not None:
        return register._replace(modifiers=modifiers)
    if (integer := _integer(text)) is not None:
        return Operand("IMM", integer & 0xFFFFFFFF, modifiers)
    if match := re.fullmatch(r"c\[0x([0-9a-f]+)\]\s*\[0x([0-9a-f]+)\]", text):
        return Operand("CONST", int(match[1], 16) << 20 | int(match[2], 16), modifiers)
    if text.startswith("SR"):
        name = text.removeprefix("SR_").replace(".", "_")
        return Operand("SPECIAL", SPECIAL.get(name, SPECIAL["UNKNOWN_SPECIAL"]), modifiers)
    if match := re.search(r"\(([.\w$]+)\)", text):
        return Operand("LABEL", labels.get(match[1], -1), modifiers)
    if match := re.fullmatch(r"SB(\d)", text):
        return Operand("IMM", int(match[1]), modifiers)
    bits = _float(text)
    return Operand("OTHER", 0, modifiers) if bits is None else Operand("IMM", bits, modifiers)


def _split(text: str) -> list[str]:
    """The operands' texts: what commas outside of brackets separate."""
    return [part.strip() for part in re.findall(r"(?:\[[^\]]*\]|\([^)]*\)|[^,\[(])+", text) if part.strip()]


class _Address(NamedTuple):
    """Fields of `Row`, of an address."""

    base: int
    base_wide: bool
    uniform_base: int
    offset: int
    scale: int


def _address(text: str) -> _Address:
    """Read an address such as desc[UR4][R2.64+-0x10] or [R3.X4+UR5+0x20].

    Raises:
        UnknownSassError: it has another term.
    """
    found = _Address(_CONSTANTS["ZERO_REGISTER"], False, _CONSTANTS["ZERO_UNIFORM"], 0, 1)
    inside = re.findall(r"\[([^\]]*)\]", text)[-1].replace("+-", "-").replace("-", "+-")
    for term in filter(None, (part.strip().replace(".reuse", "") for part in inside.split("+"))):
        name, _, suffix = term.partition(".")
        register, integer = _register(name), _integer(term)
        if register is not None and register.kind == "REG":
            scale = int(suffix[1:]) if suffix.startswith("X") else 1
            found = found._replace(base=register.value, base_wide=suffix == "64", scale=scale)
        elif register is not None and register.kind == "UREG":
            found = found._replace(uniform_base=register.value)
        elif integer is not None:
            found = found._replace(offset=found.offset + integer)
        else:
            raise UnknownSassError(f"address {text}")
    return found


# ----------------------------------------------------------------------------------------------------- instructions
#: The operation and the pipe of instructions by their names, without modifiers.
_TABLE = {
    ("IADD3", "ALU"): "IADD3 VIADD",
    ("IMAD", "FMAH"): "IMAD",
    ("LEA", "ALU"): "LEA",
    ("LOP3", "ALU"): "LOP3",
    ("PLOP3", "ALU"): "PLOP3",
    ("SHF", "ALU"): "SHF",
    ("ISETP", "ALU"): "ISETP",
    ("FSETP", "ALU"): "FSETP",
    ("SEL", "ALU"): "SEL FSEL",
    ("MINMAX", "ALU"): "VIMNMX IMNMX",
    ("VIADDMNMX", "ALU"): "VIADDMNMX",
    ("IABS", "ALU"): "IABS",
    ("PRMT", "ALU"): "PRMT",
    ("SGXT", "ALU"): "SGXT",
    ("MOV", "ALU"): "MOV R2UR",
    ("CS2R", "ALU"): "CS2R",
    ("P2R", "ALU"): "P2R",
    ("R2P", "ALU"): "R2P",
    ("VOTE", "ALU"): "VOTE VOTEU",
    ("I2F", "ALU"): "I2FP",
    ("OPAQUE", "ALU"): "BMSK FMNMX FSET F2FP HSETP2 HMNMX2",
    ("FADD", "FMA"): "FADD",
    ("FMUL", "FMA"): "FMUL",
    ("FFMA", "FMA"): "FFMA",
    ("OPAQUE", "FMA"): "HADD2 HMUL2 HFMA2",
    ("OPAQUE", "FP64"): "DADD DMUL DFMA DSETP DMNMX",
    ("I2F", "XU"): "I2F",
    ("F2I", "XU"): "F2I",
    ("MUFU", "XU"): "MUFU",
    ("FCHK", "XU"): "FCHK",
    ("POPC", "XU"): "POPC",
    ("OPAQUE", "XU"): "F2F FRND FLO BREV",
    ("MOV", "UNIFORM"): "UMOV",
    ("IADD3", "UNIFORM"): "UIADD3",
    ("IMAD", "UNIFORM"): "UIMAD",
    ("LEA", "UNIFORM"): "ULEA",
    ("LOP3", "UNIFORM"): "ULOP3",
    ("PLOP3", "UNIFORM"): "UPLOP3",
    ("SHF", "UNIFORM"): "USHF",
    ("ISETP", "UNIFORM"): "UISETP",
    ("SEL", "UNIFORM"): "USEL",
    ("PRMT", "UNIFORM"): "UPRMT",
    ("SGXT", "UNIFORM"): "USGXT",
    ("LDC", "UNIFORM"): "ULDC",
    ("LDC", "MIO"): "LDC",
    ("S2R", "MIO"): "S2R S2UR",
    ("SHFL", "MIO"): "SHFL",
    ("OPAQUE", "MIO"): "REDUX",
    ("LD", "MIO"): "LDG LD LDS LDL",
    ("ST", "MIO"): "STG ST STS STL",
    ("ATOM", "MIO"): "ATOM ATOMG ATOMS RED",
    ("LDSM", "MIO"): "LDSM STSM",
    ("LDGSTS", "MIO"): "LDGSTS",
    ("LDGDEPBAR", "MIO"): "LDGDEPBAR",
    ("BAR", "MIO"): "BAR",
    ("CLUSTER_ARRIVE", "MIO"): "UCGABAR_ARV",
    ("CLUSTER_WAIT", "NONE"): "UCGABAR_WAIT",
    ("DEPBAR", "NONE"): "DEPBAR",
    ("MEMBAR", "NONE"): "MEMBAR",
    ("BRA", "BRANCH"): "BRA",
    ("EXIT", "BRANCH"): "EXIT",
    ("CALL", "BRANCH"): "CALL",
    ("RET", "BRANCH"): "RET",
    (
        "NOP",
        "NONE",
    ): "NOP BSSY BSYNC ERRBAR CGAERRBAR CCTL WARPSYNC YIELD BREAK NANOSLEEP BMOV BPT ACQBULK PREEXIT FENCE",
}
_BY_NAME = {name: key for key, names in _TABLE.items() for name in names.split()}
#: Jumps whose target is no label.
_UNFOLLOWED = ("BRX", "BRXU", "JMP", "JMX", "JMXU")
_SPACE_OF = {
    name: space
    for space, names in {
        "SHARED": "LDS STS ATOMS LDSM STSM",
        "GENERIC": "LD ST ATOM",
        "LOCAL": "LDL STL",
        "GLOBAL": "LDG STG ATOMG RED LDGSTS",
    }.items()
    for name in names.split()
}
_WIDTHS = {"64": 8, "128": 16, "F32x4": 16, "F32x2": 8, "U8": 1, "S8": 1, "U16": 2, "S16": 2}
#: Types that conversions between float32 and 32-bit integers do not have.
_OTHER_TYPES = ("U64", "S64", "F64", "U8", "S8", "U16", "S16", "F16")


class _Parsed(NamedTuple):
    """An instruction's text in parts."""

    name: str
    modifiers: tuple[str, ...]
    texts: list[str]
    operands: list[Operand]

    def of(self, kinds: Iterable[str]) -> list[Operand]:
        """The operands of some kinds."""
        return [operand for operand in self.operands if operand.kind in kinds]

    def modes(self, **modifiers: str) -> tuple[str, ...]:
        """The modes of which the instruction has a modifier, e.g. ``WIDE="WIDE"``, or one of several in one string."""
        return tuple(mode for mode, names in modifiers.items() if any(name in self.modifiers for name in names.split()))


def _none(_row: Row, _parsed: _Parsed) -> None:
    """Read no operands."""


def _plain(row: Row, parsed: _Parsed) -> None:
    """Read one destination, then sources."""
    row.destinations, row.sources = parsed.operands[:1], parsed.operands[1:]


def _opaque(row: Row, parsed: _Parsed) -> None:
    """Read what has a result that is not computed."""
    row.operation = "UNKNOWN" if parsed.name not in _BY_NAME else "OPAQUE"
    predicates = [operand for operand in parsed.operands[:2] if operand.kind in _PREDICATES]
    first = len(predicates) or 1
    row.destinations, row.sources = parsed.operands[:first], parsed.operands[first:]
    if parsed.name in ("DADD", "DMUL", "DFMA") or any("64" in modifier for modifier in parsed.modifiers):
        row.destination_registers = row.source_registers = 2
    if parsed.name == "HFMA2" and parsed.texts[1].lstrip("-").startswith("RZ") and len(parsed.texts) == 5:
        halves = [_float(text, "e") for text in parsed.texts[3:]]  # a way to move a constant
        if halves[0] is not None and halves[1] is not None:
            row.operation, row.sources = "MOV", [Operand("IMM", halves[0] << 16 | halves[1])]


def _memory(row: Row, parsed: _Parsed) -> None:
    """Read an access to memory."""
    row.space = _SPACE_OF[parsed.name]
    row.width = next((_WIDTHS[name] for name in reversed(parsed.modifiers) if name in _WIDTHS), 4)
    at = next(i for i, text in enumerate(parsed.texts) if "[" in text and not text.startswith("c["))
    row.modes = parsed.modes(SIGN_EXTENDED="S8 S16")
    past_l1 = "STRONG" in parsed.modifiers or ("NA" in parsed.modifiers and "CONSTANT" not in parsed.modifiers)
    if row.operation == "LDGSTS":
        _copy(row, parsed, at)
        past_l1 = "BYPASS" in parsed.modifiers
    else:
        row.base, row.base_wide, row.uniform_base, row.offset, row.scale = _address(parsed.texts[at])
        _moved(row, parsed, [operand for i, operand in enumerate(parsed.operands) if i != at])
    if past_l1:
        row.modes += ("PAST_L1",)


def _copy(row: Row, parsed: _Parsed, at: int) -> None:
    """Read cp.async: an address in shared memory, then a global one, and perhaps a predicate: copy, or write zeros."""
    row.base, row.base_wide, row.uniform_base, row.offset, row.scale = _address(parsed.texts[at + 1])
    to = _address(parsed.texts[at])
    row.sources = [Operand("REG", to.base), Operand("UREG", to.uniform_base), Operand("IMM", to.offset & 0xFFFFFFFF)]
    row.sources += [operand for operand in parsed.operands[at + 2 :] if operand.kind in _PREDICATES][:1]


def _moved(row: Row, parsed: _Parsed, others: list[Operand]) -> None:
    """Tell what an access writes and reads, of its operands besides the address."""
    values = [operand for operand in others if operand.kind in _VALUES]
    registers = [operand for operand in others if operand.kind == "REG"]
    if row.operation == "LDSM":  # matrices of 8 rows: a register of each lane each
        row.width = 4 * next((int(name) for name in parsed.modifiers if name in ("2", "4")), 1)
    if row.operation == "ST" or parsed.name == "STSM":
        row.sources, row.source_registers = values[:1], row.words
    elif parsed.name == "RED":
        row.sources = registers
    else:
        row.destinations, row.destination_registers = registers[:1], row.words
        row.sources = registers[1:] if row.operation == "ATOM" else []


def _predicated(row: Row, parsed: _Parsed) -> None:
    """Read a jump, an exit or a barrier of a cluster, which may have a predicate besides its guard."""
    row.sources = parsed.of(_PREDICATES)[:1]
    row.target = next((operand.value for operand in parsed.of(["LABEL"])), -1)
    if row.operation in ("BRA", "CALL") and row.target < 0:
        raise UnknownSassError(f"no target: {row.text}")


def _return(row: Row, parsed: _Parsed) -> None:
    row.sources, row.source_registers = parsed.operands[:1], 2


def _wait_for_copies(row: Row, parsed: _Parsed) -> None:
    row.sources = [*parsed.operands, Operand("IMM", 0)][:2]


def _barrier(row: Row, parsed: _Parsed) -> None:
    if parsed.modifiers[0] not in ("SYNC", "ARV"):
        raise UnknownSassError(f"barrier: {row.text}")
    row.modes = parsed.modes(NOT_WAITING="ARV")
    row.sources = parsed.operands[:2]


def _sum(row: Row, parsed: _Parsed) -> None:
    """Read IADD3, IMAD, LEA: a destination, predicates that carry out, sources, and predicates that carry in."""
    rest = parsed.operands[1:]
    out = next(i for i, operand in enumerate(rest) if operand.kind not in _PREDICATES)
    row.destinations = [parsed.operands[0], *rest[:out]]
    sources = [operand for operand in rest[out:] if operand.kind not in _PREDICATES]
    carries = [operand for operand in rest[out:] if operand.kind in _PREDICATES]
    zero = Operand("REG", _CONSTANTS["ZERO_REGISTER"])
    if parsed.name == "VIADD":
        sources.append(zero)
    row.modes = parsed.modes(CARRY="X", HIGH="HI")
    if row.operation == "LEA":
        row.modes += parsed.modes(SIGN_EXTENDED="SX32")
        if not row.has("HIGH") or row.has("SIGN_EXTENDED"):
            sources.insert(2, zero)  # the upper half of what is shifted
    elif row.operation == "IMAD":
        row.modes += parsed.modes(WIDE="WIDE", UNSIGNED="U32")
        row.destination_registers = 2 if row.has("WIDE") else 1
    row.sources = sources + (carries if row.has("CARRY") else [])


def _logic(row: Row, parsed: _Parsed) -> None:
    """Read LOP3: perhaps a predicate, a destination, three sources, the truth table, a predicate."""
    first, *rest = parsed.operands
    row.destinations = [first]
    if first.kind in _PREDICATES:
        row.destinations, rest = [rest[0], first], rest[1:]
    row.sources, row.choice = [*rest[:3], *rest[4:5]], rest[3].value


def _predicate_logic(row: Row, parsed: _Parsed) -> None:
    row.destinations, row.sources = parsed.operands[:2], parsed.operands[2:5]
    row.choice = parsed.operands[5].value | parsed.operands[6].value << 8


def _comparison(row: Row, parsed: _Parsed) -> None:
    row.destinations, row.sources = parsed.operands[:2], parsed.operands[2:]
    logic = next(value for name, value in _LOGIC.items() if name in parsed.modifiers)
    row.choice = _COMPARISONS[parsed.modifiers[0]] | logic << 4
    row.modes = parsed.modes(UNSIGNED="U32", EXTENDED="EX")


def _predicate_bits(row: Row, parsed: _Parsed) -> None:
    """Read P2R and R2P: which predicates, and in which byte of the register they stand."""
    mask = next((operand.value for operand in reversed(parsed.of(["IMM"]))), 0x7F)
    byte = next((int(text[-1]) for text in parsed.texts if re.search(r"\.B\d$", text)), 0)
    row.choice = mask & 0x7F | byte << 8
    row.predicates = [Operand("PREG", i) for i in range(7) if mask >> i & 1]
    if row.operation == "P2R":
        row.destinations = parsed.operands[:1]
        row.sources = [operand for operand in parsed.operands[2:] if operand.kind in _VALUES][:1]
    else:
        row.sources = parsed.of(_VALUES)[:1]


def _shuffle(row: Row, parsed: _Parsed) -> None:
    inside, to, *row.sources = parsed.operands
    row.destinations = [to, inside]
    row.choice = _SHUFFLES[parsed.modifiers[0]]


def _vote(row: Row, parsed: _Parsed) -> None:
    row.destinations, row.sources = parsed.operands[:-1], parsed.operands[-1:]
    row.choice = _VOTES[{"EQ": "UNI"}.get(parsed.modifiers[0], parsed.modifiers[0])]


def _shift(row: Row, parsed: _Parsed) -> None:
    _plain(row, parsed)
    row.modes = parsed.modes(LEFT="L", HIGH="HI", ARITHMETIC="S32 S64", LONG="U64 S64", WRAPPED="W")


def _signed(row: Row, parsed: _Parsed) -> None:
    _plain(row, parsed)
    row.modes = parsed.modes(UNSIGNED="U32")


def _conversion(row: Row, parsed: _Parsed) -> None:
    if any(name in _OTHER_TYPES for name in parsed.modifiers):
        _opaque(row, parsed)
        return
    _plain(row, parsed)
    row.modes = parsed.modes(UNSIGNED="U32", ROUNDED_UP="RP")


def _function(row: Row, parsed: _Parsed) -> None:
    if parsed.modifiers[0] not in _FUNCTIONS:
        _opaque(row, parsed)
        return
    _plain(row, parsed)
    row.choice = _FUNCTIONS[parsed.modifiers[0]]


def _constant(row: Row, parsed: _Parsed) -> None:
    """Read LDC and CS2R."""
    if row.operation == "LDC" and not parsed.of(["CONST"]):  # at an address that is computed
        _opaque(row, parsed)
        return
    _plain(row, parsed)
    row.width = next((_WIDTHS[name] for name in ("64", "U8", "S8", "U16", "S16") if name in parsed.modifiers), 4)
    if row.operation == "CS2R" and "32" not in parsed.modifiers:
        row.width = 8
    row.destination_registers = row.words
    row.modes = parsed.modes(SIGN_EXTENDED="S8 S16")


def _move(row: Row, parsed: _Parsed) -> None:
    row.destinations, row.sources = parsed.operands[:1], parsed.operands[1:2]  # a third is a mask of bytes: all


#: How an operation's operands are read; `_plain` where nothing else is said.
_READERS: dict[str, Callable[[Row, _Parsed], None]] = {
    **dict.fromkeys(("LD", "ST", "ATOM", "LDSM", "LDGSTS"), _memory),
    **dict.fromkeys(("BRA", "CALL", "EXIT", "MEMBAR", "CLUSTER_ARRIVE", "CLUSTER_WAIT", "LDGDEPBAR"), _predicated),
    **dict.fromkeys(("IADD3", "IMAD", "LEA"), _sum),
    **dict.fromkeys(("ISETP", "FSETP"), _comparison),
    **dict.fromkeys(("P2R", "R2P"), _predicate_bits),
    **dict.fromkeys(("MINMAX", "VIADDMNMX", "SGXT"), _signed),
    **dict.fromkeys(("I2F", "F2I"), _conversion),
    **dict.fromkeys(("LDC", "CS2R"), _constant),
    **dict.fromkeys(("UNKNOWN", "OPAQUE"), _opaque),
    "NOP": _none,
    "RET": _return,
    "DEPBAR": _wait_for_copies,
    "BAR": _barrier,
    "LOP3": _logic,
    "PLOP3": _predicate_logic,
    "SHFL": _shuffle,
    "VOTE": _vote,
    "SHF": _shift,
    "MUFU": _function,
    "MOV": _move,
}


def _decode(text: str, control: int, labels: dict[str, int]) -> Row:
    """Read an instruction.

    Args:
        text: without its semicolon.
        control: the upper 64 of the instruction's 128 bits.
        labels: the rows that they stand before.

    Raises:
        UnknownSassError: it cannot be followed.
    """
    row = Row(text)
    row.stall, row.write_scoreboard = control >> 41 & 15, control >> 46 & 7
    row.read_scoreboard, row.wait = control >> 49 & 7, control >> 52 & 63
    if match := re.match(r"@(!?)(U?P[\dT])\s+", text):
        guard = _register(match[2])
        assert guard is not None
        row.guard = guard.value << 2 | (guard.kind == "UPREG") << 1 | (match[1] == "!")
        text = text[match.end() :]
    name, _, rest = text.partition(" ")
    name, *modifiers = name.split(".")
    if name in _UNFOLLOWED:
        raise UnknownSassError(f"a jump to an address: {row.text}")
    row.operation, row.pipe = _BY_NAME.get(name, ("UNKNOWN", "ALU"))
    texts = _split(rest)
    parsed = _Parsed(name, tuple(modifiers), texts, [_operand(part, labels) for part in texts])
    _READERS.get(row.operation, _plain)(row, parsed)
    row.destinations = row.destinations[: _CONSTANTS["DESTINATIONS"]]
    row.sources = row.sources[: _CONSTANTS["SOURCES"]]
    return row


# ----------------------------------------------------------------------------------------------------------- cubins
def _tool(name: str, *args: str) -> str:
    path = Path(knobs.nvidia.nvdisasm.path).with_name(name)
    return subprocess.run([str(path), *args], capture_output=True, text=True, check=True).stdout


def _instructions(text: str) -> tuple[list[tuple[str, int]], dict[str, int]]:
    """The instructions of nvdisasm's text, (text, control), and the labels before them."""
    items: list[tuple[str, int]] = []
    labels: dict[str, int] = {}
    instruction = ""
    for line in text.split(".text.", 1)[1].splitlines()[1:]:
        if re.match(r"\s*\.section\s+(?!\.text)", line):
            break
        if label := re.match(r"\s*([.\w$]+):\s*$", line):
            labels[label[1]] = len(items)
        elif first := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;\s*/\* 0x[0-9a-f]+ \*/", line):
            instruction = first[1].strip().strip("{}").strip()
        elif instruction and (second := re.match(r"\s*/\* 0x([0-9a-f]+) \*/", line)):
            items.append((instruction, int(second[1], 16)))
            instruction = ""
    return items, labels


def read(cubin: bytes) -> Code:
    """Decode the one kernel of a cubin.

    Raises:
        UnknownSassError: it cannot be followed.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = _tool("nvdisasm", "-hex", "-c", file.name)
        usage = _tool("cuobjdump", "-res-usage", "-elf", file.name)
    bank = re.search(r"EIATTR_PARAM_CBANK.*?Value:\s+\S+\s+0x([0-9a-f]+)", usage, re.DOTALL)
    assert bank is not None
    numbers = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    return encode(*_instructions(text), numbers["REG"], numbers["STACK"] + numbers["LOCAL"], int(bank[1], 16) & 0xFFFF)


def encode(items: list[tuple[str, int]], labels: dict[str, int], registers: int, local: int, parameters: int) -> Code:
    """Make rows of instructions, (text, control); the rest as in `Code`."""
    while items and items[-1][0] == "NOP":
        items = items[:-1]
    rows = [_decode(text, control, labels) for text, control in items]
    liveness.mark(rows)
    encoded = np.array([row.encode() for row in rows], dtype=np.int64).astype(np.uint32).view(np.int32)
    return Code(np.ascontiguousarray(encoded), [row.text for row in rows], registers, local, parameters)
