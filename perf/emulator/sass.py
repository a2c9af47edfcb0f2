"""Read a cubin into rows of integers that the timing model (timing.cpp) runs.

What is read is nvdisasm's text and the control bits of each instruction, bits 105 to 121 of its 128: cycles to stall, the
scoreboards that it sets when it has written or read, those that it waits for. They are the compiler's own schedule, so
which loads are in flight together is not guessed. Of values only those are computed that addresses, predicates and
branches need (`_live`). Of what it cannot compute the model keeps a mark, and counts addresses and branches that bear it.
"""

from __future__ import annotations

import re
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

_CPP = (Path(__file__).parent / "cpp" / "model.cpp").read_text()


def _enumeration(name: str) -> dict[str, int]:
    body = re.sub(r"//.*", "", re.search(rf"enum {name} {{(.*?)}};", _CPP, re.S)[1])
    return {n.strip(): i for i, n in enumerate(x for x in body.split(",") if x.strip())}


OPS, PIPES, KINDS, SPECIALS = (_enumeration(n) for n in ("Op", "Pipe", "Operand", "Special"))
ND, NS = 4, 7
FIELDS = (
    "op",
    "pipe",
    "mode",
    "guard",
    "target",
    "stall",
    "wbar",
    "rbar",
    "wait",
    "live",
    "space",
    "width",
    "base",
    "base_wide",
    "ubase",
    "offset",
    "scale",
)
WIDTH = len(FIELDS) + 2 * ND + 3 * NS
_AT = {f: i for i, f in enumerate(FIELDS)}


class Unknown(Exception):
    """SASS that this tool does not know."""


class Code(NamedTuple):
    """A kernel as the timing model takes it.

    Attributes:
        rows: (n, WIDTH) int64.
        lines: the text of each instruction.
        registers: a thread.
        local: bytes of local memory a thread: spills.
        params: offset of parameters in constant bank 0.
        shared: static shared memory that the driver reserves included.
    """

    rows: np.ndarray
    lines: list[str]
    registers: int
    local: int
    params: int
    shared: int


#: Instructions by name: (operation, pipe). What is not here is looked up without its modifiers.
_TABLE = {
    "IADD3": "IADD3 ALU",
    "VIADD": "IADD3 ALU",
    "IMAD": "IMAD FMAH",
    "LEA": "LEA ALU",
    "LOP3": "LOP3 ALU",
    "PLOP3": "PLOP3 ALU",
    "SHF": "SHF ALU",
    "ISETP": "ISETP ALU",
    "SEL": "SEL ALU",
    "VIMNMX": "MINMAX ALU",
    "IMNMX": "MINMAX ALU",
    "VIADDMNMX": "VIADDMNMX ALU",
    "IABS": "IABS ALU",
    "PRMT": "PRMT ALU",
    "SGXT": "SGXT ALU",
    "BMSK": "JUNK ALU",
    "MOV": "MOV ALU",
    "UMOV": "MOV UNIFORM",
    "UIADD3": "IADD3 UNIFORM",
    "UIMAD": "IMAD UNIFORM",
    "ULEA": "LEA UNIFORM",
    "ULOP3": "LOP3 UNIFORM",
    "UPLOP3": "PLOP3 UNIFORM",
    "USHF": "SHF UNIFORM",
    "UISETP": "ISETP UNIFORM",
    "USEL": "SEL UNIFORM",
    "UPRMT": "PRMT UNIFORM",
    "USGXT": "SGXT UNIFORM",
    "ULDC": "LDC UNIFORM",
    "LDC": "LDC MIO",
    "CS2R": "CS2R ALU",
    "S2R": "S2R MIO",
    "S2UR": "S2R MIO",
    "R2UR": "R2UR ALU",
    "FADD": "FADD FMA",
    "FMUL": "FMUL FMA",
    "FFMA": "FFMA FMA",
    "FSETP": "FSETP ALU",
    "FSEL": "SEL ALU",
    "FMNMX": "JUNK ALU",
    "FSET": "JUNK ALU",
    "FCHK": "FCHK XU",
    "MUFU": "MUFU XU",
    "I2F": "I2F XU",
    "F2I": "F2I XU",
    "F2F": "JUNK XU",
    "FRND": "JUNK XU",
    "I2FP": "I2FP ALU",
    "F2FP": "JUNK ALU",
    "FLO": "JUNK XU",
    "POPC": "POPC XU",
    "BREV": "JUNK XU",
    "HADD2": "JUNK FMA",
    "HMUL2": "JUNK FMA",
    "HFMA2": "HFMA2 FMA",
    "HSETP2": "JUNK ALU",
    "HMNMX2": "JUNK ALU",
    "DADD": "JUNK FP64",
    "DMUL": "JUNK FP64",
    "DFMA": "JUNK FP64",
    "DSETP": "JUNK FP64",
    "DMNMX": "JUNK FP64",
    "P2R": "P2R ALU",
    "R2P": "R2P ALU",
    "VOTE": "VOTE ALU",
    "VOTEU": "VOTE ALU",
    "SHFL": "SHFL MIO",
    "REDUX": "JUNK MIO",
    "LDG": "LD MIO",
    "LD": "LD MIO",
    "LDS": "LD MIO",
    "LDL": "LD MIO",
    "STG": "ST MIO",
    "ST": "ST MIO",
    "STS": "ST MIO",
    "STL": "ST MIO",
    "ATOM": "ATOM MIO",
    "ATOMG": "ATOM MIO",
    "ATOMS": "ATOM MIO",
    "RED": "ATOM MIO",
    "LDSM": "LDSM MIO",
    "STSM": "LDSM MIO",
    "LDGSTS": "LDGSTS MIO",
    "LDGDEPBAR": "LDGDEPBAR MIO",
    "DEPBAR": "DEPBAR NONE",
    "MEMBAR": "MEMBAR NONE",
    "BAR": "BAR MIO",
    "UCGABAR_ARV": "CGA_ARRIVE MIO",
    "UCGABAR_WAIT": "CGA_WAIT NONE",
    "BRA": "BRA BRANCH",
    "EXIT": "EXIT BRANCH",
    "CALL": "CALL BRANCH",
    "RET": "RET BRANCH",
}
_NOTHING = {
    "NOP",
    "BSSY",
    "BSYNC",
    "ERRBAR",
    "CGAERRBAR",
    "CCTL",
    "WARPSYNC",
    "YIELD",
    "BREAK",
    "NANOSLEEP",
    "BMOV",
    "BPT",
    "ACQBULK",
    "PREEXIT",
    "DEPBAR_",
    "UCGABAR_",
    "FENCE",
}
_COMPARE = ["F", "LT", "EQ", "LE", "GT", "NE", "GE", "T", "NUM", "NAN", "LTU", "EQU", "LEU", "GTU", "NEU", "GEU"]
_MUFU = ["RCP", "SQRT", "RSQ", "EX2", "LG2", "SIN", "COS", "TANH"]


def _tool(name: str, *args: str) -> str:
    from triton import knobs

    path = Path(knobs.nvidia.nvdisasm.path).with_name(name)
    return subprocess.run([str(path), *args], capture_output=True, text=True, check=True).stdout


def _operands(text: str) -> list[str]:
    out, depth, cur = [], 0, ""
    for c in text:
        depth += c in "[("
        depth -= c in "])"
        if c == "," and not depth:
            out.append(cur.strip())
            cur = ""
        else:
            cur += c
    return out + [cur.strip()] if cur.strip() else out


def _float_bits(text: str) -> int:
    text = text.replace("QNAN", "nan").replace("SNAN", "nan").replace("INF", "inf")
    return struct.unpack("<I", struct.pack("<f", float(text)))[0]


def _operand(text: str, line: str, labels: dict[str, int]) -> tuple[int, int, int]:
    """(kind, value, modifiers): 1 negated, 2 inverted, 4 absolute."""
    text = re.sub(r"\.(reuse|H0_H0|H1_H1|H0|H1|64|B\d|ROW|COL|F32x2\S*)", "", text)
    mods = 0
    if text.startswith("-") and not re.match(r"-[\d.+]|-0x|-INF|-QNAN", text):
        mods, text = 1, text[1:]
    if text.startswith("~"):
        mods, text = mods | 2, text[1:]
    if text.startswith("!"):
        mods, text = mods | 2, text[1:]
    if text.startswith("|"):
        mods, text = mods | 4, text.strip("|")
    if m := re.fullmatch(r"R(\d+|Z)", text):
        return KINDS["REG"], 255 if m[1] == "Z" else int(m[1]), mods
    if m := re.fullmatch(r"UR(\d+|Z)", text):
        return KINDS["UREG"], 63 if m[1] == "Z" else int(m[1]), mods
    if m := re.fullmatch(r"P(\d|T)", text):
        return KINDS["PREG"], 7 if m[1] == "T" else int(m[1]), mods
    if m := re.fullmatch(r"UP(\d|T)", text):
        return KINDS["UPREG"], 7 if m[1] == "T" else int(m[1]), mods
    if m := re.fullmatch(r"(-?)0x([0-9a-fA-F]+)", text):
        return KINDS["IMM"], (-int(m[2], 16) if m[1] else int(m[2], 16)) & 0xFFFFFFFF, mods
    if m := re.fullmatch(r"c\[0x([0-9a-f]+)\]\s*\[0x([0-9a-f]+)\]", text):
        return KINDS["CONST"], int(m[1], 16) << 20 | int(m[2], 16), mods
    if m := re.fullmatch(r"c\[0x([0-9a-f]+)\]\s*\[(R\d+)(?:\+0x([0-9a-f]+))?\]", text):
        return KINDS["OTHER"], 0, mods
    if text.startswith("SR"):
        return (
            KINDS["SPECIAL"],
            SPECIALS.get(text.removeprefix("SR_").replace(".", "_"), SPECIALS["UNKNOWN_SPECIAL"]),
            mods,
        )
    if m := re.search(r"\(([.\w$]+)\)", text):
        return KINDS["LABEL"], labels.get(m[1], -1), mods
    if m := re.fullmatch(r"(SB|B)(\d)", text):
        return KINDS["IMM"], int(m[2]), mods
    try:
        return KINDS["IMM"], _float_bits(text), mods
    except ValueError:
        return KINDS["OTHER"], 0, mods


def _address(text: str) -> tuple[int, int, int, int, int]:
    """(register, is wide, uniform register, offset, the register's factor) of an address; 255 and 63 are none."""
    inside = re.findall(r"\[([^\]]*)\]", text)[-1]
    reg, wide, ureg, offset, scale = 255, 0, 63, 0, 1
    for term in re.split(r"\+(?!-)|(?<=\w)(?=-)", inside.replace("+-", "-")):
        term = term.strip().replace(".reuse", "")
        if not term:
            continue
        if m := re.fullmatch(r"R(\d+|Z)(\.\w+)?", term):
            reg, wide = 255 if m[1] == "Z" else int(m[1]), int(m[2] == ".64")
            scale = int(m[2][2:]) if m[2] and m[2].startswith(".X") else 1
        elif m := re.fullmatch(r"UR(\d+|Z)", term):
            ureg = 63 if m[1] == "Z" else int(m[1])
        elif m := re.fullmatch(r"(-?)0x([0-9a-f]+)", term):
            offset += -int(m[2], 16) if m[1] else int(m[2], 16)
        else:
            raise Unknown(f"address {text}")
    return reg, wide, ureg, offset, scale


class _Row:
    def __init__(self) -> None:
        self.f = dict.fromkeys(FIELDS, 0) | dict(guard=-1, target=-1, wbar=7, rbar=7, base=255, ubase=63, live=1)
        self.dst: list[tuple[int, int]] = []
        self.src: list[tuple[int, int, int]] = []
        self.wide_dst = self.wide_src = 1  # registers that each operand covers
        self.preds: list[tuple[int, int, int]] = []  # predicates besides that P2R reads and R2P writes
        self.text = ""

    def encode(self) -> list[int]:
        d = self.dst + [(0, 0)] * (ND - len(self.dst))
        s = self.src + [(0, 0, 0)] * (NS - len(self.src))
        return [self.f[k] for k in FIELDS] + [x for p in d for x in p] + [x for p in s for x in p]


def _decode(text: str, high: int, labels: dict[str, int]) -> _Row:
    r = _Row()
    r.text = text
    f = r.f
    f["stall"], f["wbar"], f["rbar"], f["wait"] = high >> 41 & 15, high >> 46 & 7, high >> 49 & 7, high >> 52 & 63
    line = text
    if m := re.match(r"@(!?)(U?)P(\d|T)\s+", text):
        f["guard"] = (7 if m[3] == "T" else int(m[3])) << 2 | bool(m[2]) << 1 | (m[1] == "!")
        text = text[m.end() :]
    name, _, rest = text.partition(" ")
    words = name.split(".")
    root, mods = words[0], words[1:]
    if root in _NOTHING or root.startswith(("BSSY", "BSYNC")):
        f["op"], f["pipe"] = OPS["NOP"], PIPES["NONE"]
        return r
    if root not in _TABLE:
        f["op"], f["pipe"] = OPS["UNKNOWN"], PIPES["ALU"]
        return r
    op, pipe = _TABLE[root].split()
    f["op"], f["pipe"] = OPS[op], PIPES[pipe]
    texts = _operands(rest)
    mode = 0
    if op in ("LD", "ST", "ATOM", "LDSM", "LDGSTS"):
        f["space"] = {
            "LDG": 0,
            "STG": 0,
            "ATOMG": 0,
            "RED": 0,
            "LDGSTS": 0,
            "LDS": 1,
            "STS": 1,
            "ATOMS": 1,
            "LDSM": 1,
            "STSM": 1,
            "LD": 2,
            "ST": 2,
            "ATOM": 2,
            "LDL": 3,
            "STL": 3,
        }[root]
        width = 4
        for w in mods:
            width = {"64": 8, "128": 16, "F32x4": 16, "F32x2": 8, "U8": 1, "S8": 1, "U16": 2, "S16": 2}.get(w, width)
        if op == "LDSM":
            width = 4 * next((int(w) for w in mods if w in ("2", "4")), 1)
        f["width"] = width
        mode = ("S8" in mods or "S16" in mods) | ("STRONG" in mods or "CONSTANT" not in mods and "NA" in mods) << 1
        at = next(i for i, t in enumerate(texts) if "[" in t and not t.startswith("c["))
        if op == "LDGSTS":  # shared address, then global; the size that is zero-filled is a predicate
            f["base"], f["base_wide"], f["ubase"], f["offset"], f["scale"] = _address(texts[at + 1])
            sb, _, su, so, _ = _address(texts[at])
            r.src = [(KINDS["REG"], sb, 0), (KINDS["UREG"], su, 0), (KINDS["IMM"], so & 0xFFFFFFFF, 0)]
            r.src += [
                x
                for x in (_operand(t, line, labels) for t in texts[at + 2 :])
                if x[0] in (KINDS["PREG"], KINDS["UPREG"])
            ][:1]
            mode |= 4 * ("BYPASS" in mods)
        else:
            f["base"], f["base_wide"], f["ubase"], f["offset"], f["scale"] = _address(texts[at])
        count = max(1, width // 4)
        others = [_operand(t, line, labels) for i, t in enumerate(texts) if i != at]
        if op in ("LD", "LDSM") and root != "STSM":
            r.dst = [x[:2] for x in others if x[0] == KINDS["REG"]][:1]
            r.wide_dst = count
        elif op == "ST" or root == "STSM":
            r.src = [x for x in others if x[0] in (KINDS["REG"], KINDS["UREG"])][:1]
            r.wide_src = count
        elif op == "ATOM":
            regs = [x for x in others if x[0] == KINDS["REG"]]
            if root != "RED" and regs:
                r.dst, regs = [regs[0][:2]], regs[1:]
            r.src = regs
        f["mode"] = mode
        return r
    ops = [_operand(t, line, labels) for t in texts]
    pred = (KINDS["PREG"], KINDS["UPREG"])
    regs = (KINDS["REG"], KINDS["UREG"])
    if op == "BRA" or op == "CALL":
        f["target"] = next((v for k, v, _ in ops if k == KINDS["LABEL"]), -1)
        r.src = [x for x in ops if x[0] in pred][:1]
    elif op in ("EXIT", "MEMBAR", "CGA_ARRIVE", "CGA_WAIT", "LDGDEPBAR"):
        f["mode"] = int(op == "MEMBAR" and "GPU" in mods)
        r.src = [x for x in ops if x[0] in pred][:1]
    elif op == "RET":
        r.src, r.wide_src = ops[:1], 2
    elif op == "DEPBAR":
        r.src = (ops + [(KINDS["IMM"], 0, 0)])[:2]
    elif op == "BAR":
        if mods[0] not in ("SYNC", "ARV"):
            raise Unknown(line)
        f["mode"] = int(mods[0] == "ARV")
        r.src = ops[:2]
    elif op in ("IADD3", "LEA") or (op == "IMAD"):
        r.dst, at = [ops[0][:2]], 1
        while ops[at][0] in pred:
            r.dst.append(ops[at][:2])
            at += 1
        sources = [x for x in ops[at:] if x[0] not in pred]
        carries = [x for x in ops[at:] if x[0] in pred]
        if root == "VIADD":
            sources.append((KINDS["REG"], 255, 0))
        x = "X" in mods
        if op == "LEA":
            hi, sx = "HI" in mods, "SX32" in mods
            shift = sources[-1]
            if not hi:
                sources = [sources[0], sources[1], (KINDS["REG"], 255, 0), shift]
            elif sx:
                sources = [sources[0], sources[1], (KINDS["REG"], 255, 0), shift]
            mode = hi | sx << 1 | x << 2
        elif op == "IADD3":
            mode = x << 2
        else:
            wide, hi, unsigned = "WIDE" in mods, "HI" in mods, "U32" in mods
            mode = wide | hi << 1 | x << 2 | unsigned << 3
            r.wide_dst = 2 if wide else 1
            if any(m in mods for m in ("MOV", "IADD", "U32", "SHL")) and not wide and not hi:
                f["pipe"] = PIPES["UNIFORM" if root[0] == "U" else "FMAH"]
        r.src = sources + (carries if x else [])
    elif op == "LOP3":
        if ops[0][0] in pred:
            r.dst, at = [ops[1][:2], ops[0][:2]], 2
        else:
            r.dst, at = [ops[0][:2]], 1
        mode = ops[at + 3][1]
        r.src = ops[at : at + 3] + ops[at + 4 : at + 5]
    elif op == "PLOP3":
        r.dst = [x[:2] for x in ops[:2]]
        r.src = ops[2:5]
        mode = ops[5][1] | ops[6][1] << 8
    elif op in ("ISETP", "FSETP"):
        r.dst = [x[:2] for x in ops[:2]]
        r.src = ops[2:]
        boolean = next(i for i, b in enumerate(("AND", "OR", "XOR")) if b in mods)
        mode = _COMPARE.index(mods[0]) | boolean << 4 | ("U32" in mods) << 6 | ("EX" in mods) << 7
    elif op in ("P2R", "R2P"):  # mode: which predicates, from which byte on
        mask = next((v for k, v, _ in reversed(ops) if k == KINDS["IMM"]), 0x7F)
        byte = next((int(b) for b in re.findall(r"\.B(\d)", text)), 0)
        mode = mask & 0x7F | byte << 8
        some = [(pred[0], i, 0) for i in range(7) if mask >> i & 1]
        if op == "P2R":
            r.dst, r.src, r.preds = [ops[0][:2]], [x for x in ops[2:] if x[0] in regs][:1], some
        else:
            r.dst, r.src, r.preds = [], [x for x in ops if x[0] in regs][:1], some
    elif op == "SHFL":
        r.dst = [ops[1][:2], ops[0][:2]]
        r.src = ops[2:]
        mode = ("UP", "DOWN", "BFLY", "IDX").index(mods[0])
    elif op == "VOTE":
        r.dst = [x[:2] for x in ops[:-1]]
        r.src = ops[-1:]
        mode = ("ANY", "ALL", "EQ").index(mods[0])
    else:
        first = 1
        if op == "JUNK" and ops and ops[0][0] in pred:
            first = sum(1 for x in ops[:2] if x[0] in pred)
        r.dst = [x[:2] for x in ops[:first]]
        r.src = ops[first:]
        if op == "SHF":
            mode = (
                ("L" in mods)
                | ("HI" in mods) << 1
                | ("S32" in mods or "S64" in mods) << 2
                | ("U64" in mods or "S64" in mods) << 3
                | ("W" in mods) << 4
            )
        elif op == "MUFU":
            mode = _MUFU.index(mods[0]) if mods[0] in _MUFU else 15
        elif op in ("I2F", "I2FP", "F2I"):
            mode = (
                int("U32" in mods)
                | ("RP" in mods) << 1
                | any(x in mods for x in ("U64", "S64", "F64", "U8", "S8", "U16", "S16", "F16")) << 2
            )
        elif op in ("MINMAX", "VIADDMNMX", "SGXT"):
            mode = int("U32" in mods)
        elif op in ("LDC", "CS2R"):
            r.wide_dst = 2 if "64" in mods or (op == "CS2R" and "32" not in mods) else 1
            f["width"] = next((n for w, n in (("64", 8), ("U8", 1), ("S8", 1), ("U16", 2), ("S16", 2)) if w in mods), 4)
            mode = int("S8" in mods or "S16" in mods)
            if op == "LDC" and not any(x[0] == KINDS["CONST"] for x in r.src):
                f["op"] = OPS["JUNK"]
        elif op == "HFMA2":  # only as a move of a constant: -RZ, RZ, high, low
            imm = [t for t in texts[3:]]
            if len(imm) == 2 and texts[1].lstrip("-").startswith("RZ"):
                try:
                    h = [
                        struct.unpack("<H", struct.pack("<e", float(x.replace("INF", "inf").replace("QNAN", "nan"))))[0]
                        for x in imm
                    ]
                    f["op"], r.src = OPS["MOV"], [(KINDS["IMM"], h[0] << 16 | h[1], 0)]
                except (ValueError, OverflowError):
                    f["op"] = OPS["JUNK"]
            else:
                f["op"] = OPS["JUNK"]
        elif op == "MOV" and len(ops) > 2 and ops[2][1] != 15 and ops[2][0] == KINDS["IMM"]:
            r.src = ops[1:2]
        if op == "JUNK" and any(k in name for k in ("64", "DADD", "DMUL", "DFMA")):
            r.wide_dst = r.wide_src = 2
    f["mode"] = mode
    r.dst, r.src = r.dst[:ND], r.src[:NS]
    return r


_ALWAYS = (
    "LD",
    "ST",
    "ATOM",
    "LDSM",
    "LDGSTS",
    "BRA",
    "EXIT",
    "CALL",
    "RET",
    "BAR",
    "CGA_ARRIVE",
    "CGA_WAIT",
    "DEPBAR",
    "LDGDEPBAR",
)


def _live(rows: list[_Row]) -> None:
    """Mark what addresses, guards and branches need: liveness, backwards, from them."""
    names = {v: k for k, v in OPS.items()}
    regs, uregs = KINDS["REG"], KINDS["UREG"]
    pregs, upregs = KINDS["PREG"], KINDS["UPREG"]

    def cells(kind: int, value: int, count: int) -> int:
        if kind == regs:
            return 0 if value == 255 else ((1 << count) - 1) << value
        if kind == uregs:
            return 0 if value == 63 else ((1 << count) - 1) << (256 + value)
        if kind == pregs:
            return 0 if value == 7 else 1 << (320 + value)
        if kind == upregs:
            return 0 if value == 7 else 1 << (328 + value)
        return 0

    n = len(rows)
    defs, uses, sinks, guard = [0] * n, [0] * n, [0] * n, [0] * n
    after_calls = [i + 1 for i, r in enumerate(rows) if names[r.f["op"]] == "CALL" and i + 1 < n]
    next_of: list[list[int]] = []
    kills = [0] * n
    loads_shared = [0] * n
    stores_shared = []
    for i, r in enumerate(rows):
        f, name = r.f, names[r.f["op"]]
        g = f["guard"]
        guard[i] = cells(upregs if g & 2 else pregs, g >> 2, 1) if g >= 0 else 0
        for j, (k, v) in enumerate(r.dst):
            defs[i] |= cells(k, v, r.wide_dst if j == 0 else 1)
        kills[i] = defs[i] if g < 0 else 0
        for j, (k, v, _) in enumerate(r.src):
            wide = r.wide_src if name in ("RET", "JUNK") else 1
            if name == "IMAD" and f["mode"] & 3 and j == 2:
                wide = 2
            uses[i] |= cells(k, v, wide)
        for k, v, _ in r.preds:
            if name == "P2R":
                uses[i] |= cells(k, v, 1)
            else:
                defs[i] |= cells(k, v, 1)
                kills[i] = defs[i] if g < 0 else 0
        if name == "FCHK":  # whether a division needs its slow path: never
            uses[i] = 0
        if name in _ALWAYS:
            sinks[i] = guard[i]
            if name in ("BRA", "EXIT", "CALL", "RET", "BAR"):
                sinks[i] |= uses[i]
            if name in ("LD", "ST", "ATOM", "LDSM", "LDGSTS"):
                sinks[i] |= cells(regs, f["base"], 2 if f["base_wide"] or f["space"] == 2 else 1) | cells(
                    uregs, f["ubase"], 2 if f["base_wide"] and f["space"] != 1 else 1
                )
                if name == "LDGSTS":
                    sinks[i] |= uses[i]
                if name in ("LD", "LDSM") and f["space"] in (1, 2):
                    loads_shared[i] = defs[i]
                if name == "ST" and f["space"] in (1, 2):
                    stores_shared.append(i)
                if f["space"] == 3 and f["base"] == 1:  # the stack's words, like registers
                    words = ((1 << max(1, f["width"] // 4)) - 1) << (400 + max(0, f["offset"]) // 4)
                    if name == "ST":
                        uses[i] = cells(r.src[0][0], r.src[0][1], r.wide_src) if r.src else 0
                        defs[i], kills[i] = words, words if g < 0 else 0
                    else:
                        uses[i] = words
        if name == "EXIT":
            to = [i + 1] if g >= 0 else []
        elif name == "RET":
            to = after_calls
        elif name in ("BRA", "CALL"):
            to = [f["target"]] if f["target"] >= 0 else []
            if g >= 0 or r.src or name == "CALL":
                to = [*to, i + 1]
        else:
            to = [i + 1]
        next_of.append([t for t in to if t < n])
    shared_needed = False
    while True:
        before = [0] * n
        live = [False] * n
        changed = True
        while changed:
            changed = False
            for i in range(n - 1, -1, -1):
                after = 0
                for t in next_of[i]:
                    after |= before[t]
                needed = bool(after & defs[i])
                live[i] = needed
                b = after & ~kills[i] if needed else after
                b |= sinks[i]
                if needed:
                    b |= uses[i] | guard[i]
                    if not kills[i]:
                        b |= after
                if shared_needed and i in stores_shared_set:
                    b |= cells(rows[i].src[0][0], rows[i].src[0][1], rows[i].wide_src) if rows[i].src else 0
                if b != before[i]:
                    before[i] = b
                    changed = True
        if shared_needed:
            break
        if not any(live[i] and loads_shared[i] for i in range(n)):
            break
        shared_needed, stores_shared_set = True, set(stores_shared)  # now all that is stored there is kept
    for i, r in enumerate(rows):
        name = names[r.f["op"]]
        if name in ("LD", "ST") and r.f["space"] != 0:
            r.f["live"] = int(live[i] or (name == "ST" and shared_needed and r.f["space"] != 3))
        else:
            r.f["live"] = int(live[i] or (name in _ALWAYS and name != "LD"))


def read(cubin: bytes) -> Code:
    """Decode the one kernel of a cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = _tool("nvdisasm", "-hex", "-c", file.name)
        usage = _tool("cuobjdump", "-res-usage", file.name)
        elf = _tool("cuobjdump", "-elf", file.name)
    m = re.search(r"EIATTR_PARAM_CBANK.*?Value:\s+\S+\s+0x([0-9a-f]+)", elf, re.S)
    params = int(m[1], 16) & 0xFFFF
    numbers = {k: int(v) for k, v in re.findall(r"(REG|STACK|LOCAL|SHARED):(\d+)", usage)}
    section = text.split(".text.", 1)[1]
    section = section[section.index("\n") :]
    items: list[tuple[str, int]] = []
    labels: dict[str, int] = {}
    lines = section.splitlines()
    i = 0
    while i < len(lines):
        line = lines[i]
        if m := re.match(r"\s*\.section\s+(\S+)", line):
            if not m[1].startswith(".text"):
                break
        elif m := re.match(r"\s*([.\w$]+):\s*$", line):
            labels[m[1]] = len(items)
        elif m := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;\s*/\* 0x([0-9a-f]+) \*/", line):
            h = re.search(r"/\* 0x([0-9a-f]+) \*/", lines[i + 1])
            items.append((m[1].strip().strip("{}").strip(), int(h[1], 16)))
            i += 1
        i += 1
    while items and items[-1][0] == "NOP":
        items.pop()
    rows = [_decode(t, h, labels) for t, h in items]
    _live(rows)
    encoded = np.array([r.encode() for r in rows], dtype=np.int64)
    return Code(
        np.ascontiguousarray(encoded),
        [t for t, _ in items],
        numbers.get("REG", 0),
        numbers.get("STACK", 0) + numbers.get("LOCAL", 0),
        params,
        numbers.get("SHARED", 0),
    )
