"""Encode instructions of PTX as rows of integers: what their words and operands mean.

`SIGNATURES` has the instructions that need no more than the types of their operands; each of the others has a function
in `ENCODERS`. What they do is in the PTX ISA, version 8.8.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from .encoding import NOTHING, REGISTER32, SIZES, TYPES, Operands, Row, UnknownError, enumeration, type_of

if TYPE_CHECKING:
    from collections.abc import Callable

_SPACES = {name.lower(): value for name, value in enumeration("Space").items()}
SPACES = {**_SPACES, "shared::cta": _SPACES["shared"], "shared::cluster": _SPACES["cluster"]}
_COMBINE, _SHUFFLE, _VOTE, _BOOLEAN, _COMPARISON, _ROUNDING = (
    {name.lower(): value for name, value in enumeration(kind).items()}
    for kind in ("Combine", "Shuffle", "Vote", "Boolean", "Comparison", "Rounding")
)
_CARRY = enumeration("Carry")
_MODIFIERS = {name: 1 << value for name, value in enumeration("Modifier").items()}
#: Bits of the modifiers that change a result; others are only allowed.
MODIFIER_BITS = {
    **{word: _MODIFIERS[word.upper()] for word in ("ftz", "sat", "relu", "hi", "satfinite")},
    "NaN": _MODIFIERS["NaN"],
    "approx": _MODIFIERS["APPROX"],
    "full": _MODIFIERS["APPROX"],
}


class Instruction(NamedTuple):
    """An instruction as it is written.

    Attributes:
        words: of its name, ``["ld", "global", "b32"]``.
        texts: its operands.
        operands: what they refer to.
    """

    words: list[str]
    texts: list[str]
    operands: Operands

    @property
    def type(self) -> str:
        """The type that the name ends with."""
        return type_of(self.words[-1])

    @property
    def modifiers(self) -> list[str]:
        """The words between the operation and the type."""
        return self.words[1:-1]

    def register(self, k: int, kind: str) -> int:
        """Operand k, which is written."""
        return self.operands.register(self.texts[k], kind)

    def source(self, k: int, kind: str) -> int:
        """Operand k, which is read."""
        return self.operands.source(self.texts[k], kind)

    def sources(self, first: int, *kinds: str) -> list[int]:
        """The operands from the first one on, a type for each."""
        return [self.operands.source(text, kind) for text, kind in zip(self.texts[first:], kinds, strict=True)]

    def pair(self, k: int, kind: str) -> list[int]:
        """The destinations ``d|p``: p is a predicate that may be missing."""
        first, _, second = self.texts[k].partition("|")
        return [
            self.operands.register(first.strip(), kind),
            self.operands.register(second.strip(), "PRED") if second else NOTHING,
        ]

    def negatable(self, k: int) -> tuple[int, bool]:
        """The predicate ``p`` or ``!p``, and whether it is negated."""
        text = self.texts[k]
        return self.operands.source(text.removeprefix("!"), "PRED"), text.startswith("!")

    def allow(self, words: set[str]) -> None:
        """Raise if there is a modifier that is not known."""
        for word in self.modifiers:
            if word not in words:
                raise UnknownError(f"modifier .{word}")


def encode(name: str, texts: list[str], operands: Operands) -> list[Row]:
    """The rows of an instruction.

    Raises:
        UnknownError: it is not known, or one of its modifiers, types or operands is not.
    """
    instruction = Instruction(name.split("."), texts, operands)
    operation = instruction.words[0]
    try:
        if operation in ENCODERS:
            return ENCODERS[operation](instruction)
        if "cc" in instruction.words:
            return _with_carry(instruction)
        if operation in ("add", "sub", "fma") and instruction.words[-2] == "f32" and instruction.type != "F32":
            return _mixed(instruction)
        if operation in ("min", "max") and len(texts) == 4:
            return _of_three(instruction)
        if operation in SIGNATURES:
            return _by_signature(instruction)
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise UnknownError(f"{type(error).__name__}: {error}") from None
    raise UnknownError(f"operation {operation}")


# --------------------------------------------------------------------------------------------------------- by signature
_ROUNDED = {"rn", "ftz", "sat"}
_APPROXIMATE = _ROUNDED | {"approx", "full"}
_INTEGER = {"lo", "hi", "wide"}
#: Types of the operands, and the modifiers there may be. "d", "s": destination and source of the instruction's type;
#: "w": the destination's; "D", "i": 32 bits; "p": a predicate.
SIGNATURES: dict[str, tuple[str, set[str]]] = {
    **dict.fromkeys(("add", "sub"), ("dss", _ROUNDED)),
    "mul": ("dss", _ROUNDED | _INTEGER),
    "mad": ("dssw", _ROUNDED | _INTEGER),
    "fma": ("dsss", _ROUNDED | {"relu"}),
    "div": ("dss", _APPROXIMATE),
    **dict.fromkeys(("rem", "copysign", "and", "or", "xor"), ("dss", set())),
    **dict.fromkeys(("min", "max"), ("dss", {"ftz", "NaN", "relu"})),
    **dict.fromkeys(("abs", "neg"), ("ds", {"ftz"})),
    **dict.fromkeys(("rcp", "sqrt", "rsqrt", "ex2", "lg2", "sin", "cos", "tanh"), ("ds", _APPROXIMATE)),
    **dict.fromkeys(("not", "brev"), ("ds", set())),
    **dict.fromkeys(("shl", "shr"), ("dsi", set())),
    "selp": ("dssp", set()),
    **dict.fromkeys(("popc", "clz"), ("Ds", set())),
    "bfind": ("Ds", {"shiftamt"}),
    "bfe": ("dsii", set()),
    "bfi": ("dssii", set()),
    "prmt": ("dsss", set()),
    "activemask": ("d", set()),
}
_WIDE = {"U16": "U32", "S16": "S32", "U32": "U64", "S32": "S64"}


def _by_signature(i: Instruction) -> list[Row]:
    operation = i.words[0]
    signature, allowed = SIGNATURES[operation]
    i.allow(allowed)
    wide = "wide" in i.modifiers
    to = _WIDE[i.type] if wide else i.type
    kinds = [{"d": to, "w": to, "s": i.type, "D": "U32", "i": "U32", "p": "PRED"}[letter] for letter in signature]
    mode = sum({MODIFIER_BITS.get(word, 0) for word in i.modifiers}) | ("shiftamt" in i.modifiers)
    name = operation.upper() + ("_WIDE" if wide else "")
    return [Row(name, i.type, [i.register(0, kinds[0])], i.sources(1, *kinds[1:]), mode=mode)]


def _of_three(i: Instruction) -> list[Row]:
    """The least or greatest of three, which sm_100 has: of two first, then of that and the third."""
    i.allow(SIGNATURES[i.words[0]][1])
    mode = sum({MODIFIER_BITS.get(word, 0) for word in i.modifiers})
    two = i.operands.new_register(REGISTER32)
    first, second, third = i.sources(1, i.type, i.type, i.type)
    name = i.words[0].upper()
    return [
        Row(name, i.type, [two], [first, second], mode=mode),
        Row(name, i.type, [i.register(0, i.type)], [two, third], mode=mode),
    ]


def _mixed(i: Instruction) -> list[Row]:
    """Arithmetic in f32 whose operands but the last are of half precision: those are converted first."""
    if set(i.words[1:-2]) - {"rn"}:
        raise UnknownError("modifier")
    rows = []
    for k in range(1, len(i.texts) - 1):
        register = i.operands.new_register(REGISTER32)
        rows.append(Row("CVT", "F32", [register], [i.source(k, i.type)], type2=TYPES[i.type]))
    converted = [row.destinations[0] for row in rows]
    last = i.operands.source(i.texts[-1], "F32")
    return [*rows, Row(i.words[0].upper(), "F32", [i.register(0, "F32")], [*converted, last])]


def _with_carry(i: Instruction) -> list[Row]:
    """Arithmetic on numbers of several registers."""
    operation = i.words[0]
    takes = operation in ("addc", "subc", "madc")
    kind = (operation[:-1] if takes else operation).upper()
    if kind == "MAD":
        kind += "_HI" if "hi" in i.words else "_LO"
    i.allow({"cc", "lo", "hi"})
    if i.type not in ("U32", "S32", "U64", "S64") or (i.type.startswith("S") and kind == "MAD_HI"):
        raise UnknownError(f"type {i.type}")
    sources = i.sources(1, *[i.type] * (len(i.texts) - 1))
    mode2 = takes + 2 * ("cc" in i.words)
    return [Row("CARRY", i.type, [i.register(0, i.type)], sources, mode=_CARRY[kind], mode2=mode2)]


# ----------------------------------------------------------------------------------------------------- moves, addresses
def _elements(text: str) -> list[str]:
    """The texts in braces, or the one that has none."""
    return [part.strip() for part in text.strip("{} \t\n").split(",")] if text.startswith("{") else [text]


#: The type of a part, by the type's bytes and the number of parts.
_PARTS = {(8, 2): "U32", (8, 4): "U16", (4, 2): "U16", (4, 4): "U8", (8, 8): "U8"}


def _move(i: Instruction) -> list[Row]:
    to, of = _elements(i.texts[0]), _elements(i.texts[1])
    if len(to) > 1 or len(of) > 1:
        return _move_parts(i, to, of)
    if i.type == "PRED" and i.texts[1] in ("0", "1", "-1"):
        return [Row("SET_PREDICATE", i.type, [i.register(0, i.type)], mode=int(i.texts[1] != "0"))]
    return [Row("MOV_PREDICATE" if i.type == "PRED" else "MOV", i.type, [i.register(0, i.type)], i.sources(1, i.type))]


def _move_parts(i: Instruction, to: list[str], of: list[str]) -> list[Row]:
    count = max(len(to), len(of))
    part = _PARTS[SIZES[i.type], count]
    if len(to) > 1:
        registers = [i.operands.register(text, part) for text in to]
        return [Row("UNPACK", i.type, registers, i.sources(1, i.type), type2=TYPES[part], mode=count)]
    parts = [i.operands.source(text, part) for text in of]
    return [Row("PACK", i.type, [i.register(0, i.type)], parts, type2=TYPES[part], mode=count)]


def _convert_address(i: Instruction) -> list[Row]:
    to = i.words[1] == "to"
    space = SPACES[i.words[2 if to else 1].split("::")[0]]
    return [Row("CVTA_TO" if to else "CVTA", "U64", [i.register(0, "U64")], i.sources(1, "U64"), type2=space)]


def _map_address(i: Instruction) -> list[Row]:
    i.allow({"shared::cluster"})
    return [Row("MAPA", i.type, [i.register(0, i.type)], i.sources(1, i.type, "U32"))]


def _policy(i: Instruction) -> list[Row]:
    """createpolicy: how long a cache keeps something changes no result."""
    return [Row("MOV", "U64", [i.register(0, "U64")], [i.operands.constant(0, wide=True)])]


# --------------------------------------------------------------------------------------------------------------- memory
_ORDER = {"relaxed", "acquire", "release", "acq_rel", "volatile", "weak", "gpu", "sys", "cta", "cluster"}
_CACHE = {
    *("nc", "ca", "cg", "cs", "cv", "wb", "wt", "lu"),
    *("L1::evict_last", "L1::evict_first", "L1::no_allocate", "L1::evict_normal", "L1::evict_unchanged"),
    *("L2::64B", "L2::128B", "L2::256B", "L2::cache_hint", "L2::evict_first", "L2::evict_last"),
}
_VECTORS = {"v2": 2, "v4": 4, "v8": 8}


def _space_of(i: Instruction) -> str:
    return next((word for word in i.modifiers if word in SPACES), "generic")


def _check_access(i: Instruction, elements: int) -> None:
    i.allow({*SPACES, "param", "const", *_ORDER, *_CACHE, *_VECTORS})
    if elements != next((_VECTORS[word] for word in i.modifiers if word in _VECTORS), 1):
        raise UnknownError(f"{elements} elements")


def _load(i: Instruction) -> list[Row]:
    to = [i.operands.data(text, i.type) for text in _elements(i.texts[0])]
    _check_access(i, len(to))
    if "param" in i.modifiers:
        return [_load_parameter(i, to)]
    base, offset = i.operands.address(i.texts[1])
    return [Row("LD", i.type, to, [base], SPACES[_space_of(i)], offset, len(to))]


def _load_parameter(i: Instruction, to: list[int]) -> Row:
    found = re.fullmatch(r"\[\s*([\w$]+)\s*(?:\+\s*(\d+))?\s*\]", i.texts[1])
    if found is None:
        raise UnknownError(f"parameter {i.texts[1]!r}")
    offset = i.operands.symbols[f"param {found[1]}"] + int(found[2] or 0)
    return Row("LD_PARAM", i.type, to, mode=offset, mode2=len(to))


def _store(i: Instruction) -> list[Row]:
    values = [i.operands.data(text, i.type) for text in _elements(i.texts[1])]
    _check_access(i, len(values))
    base, offset = i.operands.address(i.texts[0])
    return [Row("ST", i.type, [], [base, *values], SPACES[_space_of(i)], offset, len(values))]


def _copy(i: Instruction) -> list[Row]:
    """cp.async and its groups; bulk copies, which tensor memory has, are not known."""
    kind = i.words[2]
    if i.words[1] != "async" or "bulk" in i.words or "mbarrier" in i.words:
        raise UnknownError("copy")
    if kind == "commit_group":
        return [Row("CP_ASYNC_COMMIT")]
    if kind == "wait_group":
        return [Row("CP_ASYNC_WAIT", mode=int(i.texts[0], 0))]
    if kind == "wait_all":
        return [Row("CP_ASYNC_COMMIT"), Row("CP_ASYNC_WAIT", mode=0)]
    if kind not in ("ca", "cg"):
        raise UnknownError(f"cp.async.{kind}")
    (to, to_offset), (source, source_offset) = i.operands.address(i.texts[0]), i.operands.address(i.texts[1])
    size = [i.source(3, "U32")] if len(i.texts) > 3 else []
    row = Row("CP_ASYNC", "U8", [], [source, to, *size], mode=source_offset, mode2=int(i.texts[2], 0), target=to_offset)
    return [row]


def _atomic(i: Instruction) -> list[Row]:
    i.allow({*SPACES, *_COMBINE, *_ORDER, "noftz"})
    if i.type in ("F16X2", "BF16X2", "F16", "BF16"):
        raise UnknownError(f"atomics of {i.type}")
    how = next(_COMBINE[word] for word in i.modifiers if word in _COMBINE)
    has_result = i.words[0] == "atom"
    to = [i.operands.data(i.texts[0], i.type)] if has_result else [NOTHING]
    base, offset = i.operands.address(i.texts[has_result])
    values = i.sources(has_result + 1, *[i.type] * (len(i.texts) - has_result - 1))
    return [Row("ATOM", i.type, to, [base, *values], SPACES[_space_of(i)], offset, how)]


_MATRICES = {"x1": 1, "x2": 2, "x4": 4}


def _matrix(i: Instruction) -> list[Row]:
    """Matrices of 8 x 8 values of 16 bits: ldmatrix and stmatrix."""
    i.allow({*_MATRICES, "trans", "sync", "aligned", "m8n8", "shared", "shared::cta"})
    count = next(_MATRICES[word] for word in i.modifiers if word in _MATRICES)
    loads = i.words[0] == "ldmatrix"
    base, offset = i.operands.address(i.texts[loads])
    registers = [i.operands.register(text, "U32") for text in _elements(i.texts[not loads])]
    to, sources = (registers, [base]) if loads else ([], [base, *registers])
    return [Row(i.words[0].upper(), "U16", to, sources, int("trans" in i.modifiers), offset, count)]


# ------------------------------------------------------------------------------------------------------ lanes of a warp
def _shuffle(i: Instruction) -> list[Row]:
    if i.words[1] != "sync" or i.words[3] != "b32":
        raise UnknownError("shuffle")
    sources = i.sources(1, *["U32"] * 4)
    return [Row("SHFL", "U32", i.pair(0, "U32"), sources, mode=_SHUFFLE[i.words[2]])]


def _vote(i: Instruction) -> list[Row]:
    kind = "U32" if i.words[2] == "ballot" else "PRED"
    predicate, negated = i.negatable(1)
    sources = [predicate, i.source(2, "U32")]
    return [Row("VOTE", kind, [i.register(0, kind)], sources, mode=_VOTE[i.words[2]], mode2=int(negated))]


def _elect(i: Instruction) -> list[Row]:
    return [Row("ELECT", "U32", i.pair(0, "U32"), i.sources(1, "U32"))]


def _reduce(i: Instruction) -> list[Row]:
    """redux.sync, of integers, and the least or greatest of floats."""
    known = ["redux", "sync", i.words[2], *["NaN"] * ("NaN" in i.words), i.words[-1]]
    if i.words != known or (i.type == "F32" and i.words[2] not in ("min", "max")):
        raise UnknownError("redux")
    mode, nan = _COMBINE[i.words[2]], int("NaN" in i.words)
    return [Row("REDUX", i.type, [i.register(0, i.type)], i.sources(1, i.type, "U32"), mode=mode, mode2=nan)]


# ---------------------------------------------------------------------------------------------------- barriers, control
def _barrier(i: Instruction) -> list[Row]:
    if i.words[1] == "cluster":
        return _cluster_barrier(i)
    if i.words[1:] == ["warp", "sync"]:
        return [Row("BAR_WARP", sources=i.sources(0, "U32"))]
    kind = [word for word in i.words[1:] if word not in ("cta", "aligned")]
    if kind not in (["sync"], ["arrive"]):
        raise UnknownError("barrier")
    aligned = i.words[0] == "bar" or "aligned" in i.words
    sources = i.sources(0, *["U32"] * len(i.texts))
    return [Row(f"BAR_{kind[0].upper()}", sources=sources, mode=int(aligned))]


def _cluster_barrier(i: Instruction) -> list[Row]:
    modifiers = set(i.words[3:])
    if modifiers - {"aligned", "relaxed", "release", "acquire"}:
        raise UnknownError("cluster barrier")
    name = {"arrive": "CLUSTER_ARRIVE", "wait": "CLUSTER_WAIT"}[i.words[2]]
    return [Row(name, mode=int("aligned" in modifiers), mode2=int("relaxed" in modifiers))]


def _branch(i: Instruction) -> list[Row]:
    return [Row("BRA", label=i.texts[0])]


def _plain(operation: str) -> Callable[[Instruction], list[Row]]:
    """An encoder of instructions whose operands do not matter."""
    return lambda _: [Row(operation)]


# ----------------------------------------------------------------------------------------------------- comparison, bits
def _compare(i: Instruction) -> list[Row]:
    comparison, *rest = i.modifiers
    if set(rest) - {"and", "or", "xor", "ftz"} or i.type in ("F16X2", "BF16X2"):
        raise UnknownError("setp")
    boolean = next((word for word in rest if word in _BOOLEAN), "none")
    sources, negated = [i.source(1, i.type), i.source(2, i.type)], False
    if boolean != "none":
        operand, negated = i.negatable(3)
        sources.append(operand)
    mode2 = negated + 2 * ("ftz" in rest)
    return [Row("SETP", i.type, i.pair(0, "PRED"), sources, _BOOLEAN[boolean], _COMPARISON[comparison], mode2)]


def _look_up_logic(i: Instruction) -> list[Row]:
    sources = [i.source(k, "U32") for k in (1, 2, 3)]
    return [Row("LOP3", "U32", [i.register(0, "U32")], sources, mode=int(i.texts[4], 0))]


def _shift_pair(i: Instruction) -> list[Row]:
    right, wrap = i.words[1] == "r", i.words[2] == "wrap"
    return [Row("SHF", "U32", [i.register(0, "U32")], i.sources(1, *["U32"] * 3), mode=int(right), mode2=int(wrap))]


# ----------------------------------------------------------------------------------------------------------- conversion
_FLOATS = {"F16", "BF16", "F32", "F64", "F16X2", "BF16X2"}


def _convert(i: Instruction) -> list[Row]:
    *modifiers, to, of = i.words[1:]
    to, of = type_of(to), type_of(of)
    mode, rounding, integral = 0, "none", False
    for word in modifiers:
        if word.removesuffix("i") in _ROUNDING:
            rounding, integral = word.removesuffix("i"), word.endswith("i")
        elif word in ("sat", "satfinite", "ftz", "relu"):
            mode |= MODIFIER_BITS[word]
        else:
            raise UnknownError(f"modifier .{word}")
    if {to, of} <= _FLOATS and rounding in ("rm", "rp") and not (integral and to == of):
        raise UnknownError(f"rounding .{rounding}")
    mode |= _MODIFIERS["INTEGRAL"] if integral else 0
    pair = to in ("F16X2", "BF16X2")
    sources = [i.operands.data(text, of) for text in i.texts[1 : 3 if pair else 2]]
    name = "CVT_PACK" if pair else "CVT"
    return [Row(name, to, [i.register(0, to)], sources, TYPES[of], mode, _ROUNDING[rounding])]


#: Instructions with functions of their own. A call is of what is not part of the text: an assertion, or printing.
ENCODERS: dict[str, Callable[[Instruction], list[Row]]] = {
    "mov": _move,
    "cvta": _convert_address,
    "mapa": _map_address,
    "createpolicy": _policy,
    "ld": _load,
    "st": _store,
    "cp": _copy,
    "atom": _atomic,
    "red": _atomic,
    "ldmatrix": _matrix,
    "stmatrix": _matrix,
    "shfl": _shuffle,
    "vote": _vote,
    "elect": _elect,
    "redux": _reduce,
    "bar": _barrier,
    "barrier": _barrier,
    "bra": _branch,
    **dict.fromkeys(("fence", "membar"), _plain("FENCE")),
    **dict.fromkeys(("ret", "exit"), _plain("EXIT")),
    **dict.fromkeys(("trap", "call"), _plain("TRAP")),
    **dict.fromkeys(("nanosleep", "griddepcontrol", "discard", "prefetch"), _plain("NOP")),
    "setp": _compare,
    "lop3": _look_up_logic,
    "shf": _shift_pair,
    "cvt": _convert,
    **dict.fromkeys(("addc", "subc", "madc"), _with_carry),
}
