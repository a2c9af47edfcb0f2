"""Read PTX text into a compact table of integers that the executor (cpp/executor.cpp) runs.

An instruction is one row of `WIDTH` int32:

    op, type, type2, mode, mode2, guard, target, line, source, destinations (8), sources (10)

``op`` and ``type`` count in the enumerations at the top of cpp/executor.cpp. ``guard`` is -1 or 2 * predicate + negated. An
operand is index * 8 + file: files 0 (32 bits and less), 1 (64 bits), 2 (predicate), 4 and 5 (constants of 32 and of 64
bits), 6 (a special register); -1 is nothing. Whatever is not known raises `Unknown` with the line.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np

WIDTH = 27
DST, SRC, NDST, NSRC = 9, 17, 8, 10
R32, R64, PRED, C32, C64, SPECIAL = 0, 1, 2, 4, 5, 6

_CPP = (Path(__file__).parent / "cpp" / "executor.cpp").read_text()


def _enumeration(name: str) -> dict[str, int]:
    body = re.search(rf"enum {name} {{(.*?)}};", _CPP, re.S)[1]
    body = re.sub(r"//.*", "", body)
    return {n.strip(): i for i, n in enumerate(x for x in body.split(",") if x.strip())}


OPS, TYPES, SPECIALS, CLASSES = (_enumeration(n) for n in ("Op", "Type", "Special", "Class"))

SIZES = {
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
    "PRED": 0,
    "F8E4M3X2": 2,
    "F8E5M2X2": 2,
    "F32X2": 8,
}
_ALIAS = {"b8": "U8", "b16": "U16", "b32": "U32", "b64": "U64", "e4m3x2": "F8E4M3X2", "e5m2x2": "F8E5M2X2"}


class Unknown(Exception):
    """PTX that this tool does not know."""


class Parameter(NamedTuple):
    name: str
    size: int
    offset: int
    pointer: bool


class Program(NamedTuple):
    """A kernel as the executor takes it, and what messages need."""

    name: str
    code: np.ndarray  # (n, WIDTH) int32
    const32: np.ndarray
    const64: np.ndarray
    registers: tuple[int, int, int]  # 32 bits, 64 bits, predicates
    params: list[Parameter]
    param_bytes: int
    static_shared: int
    local: int
    threads: int  # .reqntid, 0 if not given
    cluster: int  # .reqnctapercluster, 1 if not given
    lines: list[str]
    places: list[str]  # "file:line" of the source, by ``source``
    target: str
    data: list[np.ndarray]  # constant tables


def _type(word: str, line: str) -> str:
    t = _ALIAS.get(word, word.upper())
    if t not in TYPES:
        raise Unknown(f"type {word!r} in: {line}")
    return t


class _Scope:
    def __init__(self, parent=None):
        self.parent, self.names, self.labels = parent, {}, {}

    def find(self, name):
        s = self
        while s is not None:
            if name in s.names:
                return s.names[name]
            s = s.parent
        return None


class _Reader:
    def __init__(self, text: str):
        self.text = text
        self.counts = [0, 0, 0]
        self.c32: dict[int, int] = {}
        self.c64: dict[int, int] = {}
        self.rows: list[list[int]] = []
        self.scope = _Scope()
        self.params: list[Parameter] = []
        self.param_bytes = 0
        self.symbols: dict[str, int] = {}
        self.static_shared = 0
        self.local = 0
        self.fixups: list[tuple[int, str, _Scope, str]] = []
        self.labels: dict[tuple[int, str], int] = {}
        self.files: dict[int, str] = {}
        self.places: dict[str, int] = {"?": 0}
        self.lines: list[str] = []
        self.data: list[np.ndarray] = []
        self.target, self.name, self.threads, self.cluster = "", "", 0, 1

    # ------------------------------------------------------------ structure
    def read(self, body: bool = True) -> Program:
        text = re.sub(r"/\*.*?\*/", "", self.text, flags=re.S)
        for m in re.finditer(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', text, re.M):
            self.files[int(m[1])] = m[2].rsplit("/", 1)[-1]
        self.target = re.search(r"\.target\s+(\w+)", text)[1]
        entry = re.search(r"\.visible\s+\.entry\s+([\w$]+)\s*\((.*?)\)(.*?)^\{", text, re.S | re.M)
        if entry is None:
            raise Unknown("no .visible .entry")
        if len(re.findall(r"\.entry", text)) > 1:
            raise Unknown("more than one .entry")
        self.name = entry[1]
        self._params(entry[2])
        if m := re.search(r"\.reqntid\s+(\d+)", entry[3]):
            self.threads = int(m[1])
        if m := re.search(r"\.reqnctapercluster\s+(\d+)", entry[3]):
            self.cluster = int(m[1])
        head = text[: entry.start()]
        for m in re.finditer(r"\.shared\s+\.align\s+(\d+)\s+\.b8\s+([\w$.]+)\[(\d*)\]", head):
            if m[3]:
                a = int(m[1])
                self.static_shared = -(-self.static_shared // a) * a
                self.symbols[m[2]] = self.static_shared
                self.static_shared += int(m[3])
        for m in re.finditer(r"\.extern\s+\.shared\s+\.align\s+\d+\s+\.b8\s+([\w$.]+)\[\]", head):
            self.symbols[m[1]] = -(-self.static_shared // 1024) * 1024 if self.static_shared else 0
        for m in re.finditer(
            r"\.(?:global|const)\s+\.align\s+\d+\s+\.b8\s+([\w$.]+)\[(\d+)\]\s*(?:=\s*\{([^}]*)\})?", head
        ):
            values = [int(v, 0) for v in (m[3] or "").split(",") if v.strip()]
            data = np.zeros(int(m[2]) + 16, dtype=np.uint8)
            data[: len(values)] = values
            self.data.append(data)
            self.symbols[m[1]] = data.ctypes.data
        if body:
            self._body(text[entry.end() :], text[: entry.end()].count("\n") + 1)
        for row, label, scope, line in self.fixups:
            s = scope
            while s is not None and (id(s), label) not in self.labels:
                s = s.parent
            if s is None:
                raise Unknown(f"no label {label}: {line}")
            self.rows[row][6] = self.labels[id(s), label]
        code = np.array(self.rows, dtype=np.int32).reshape(-1, WIDTH)
        return Program(
            self.name,
            np.ascontiguousarray(code),
            np.array(list(self.c32) or [0], dtype=np.uint32),
            np.array(list(self.c64) or [0], dtype=np.uint64),
            tuple(self.counts),
            self.params,
            self.param_bytes,
            self.static_shared,
            self.local,
            self.threads,
            self.cluster,
            self.lines,
            list(self.places),
            self.target,
            self.data,
        )

    def _params(self, text: str) -> None:
        at = 0
        for item in filter(None, (x.strip() for x in text.split(","))):
            m = re.match(
                r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+(\.ptr\s+\S+\s+(?:\.align\s+\d+\s+)?)?([\w$]+)(?:\[(\d+)\])?",
                item,
            )
            if m is None:
                raise Unknown(f"parameter {item!r}")
            unit = 1 if m[2] == "pred" else SIZES[_type(m[2], item)]
            size = unit * int(m[5] or 1)
            align = int(m[1] or unit)
            at = -(-at // align) * align
            self.params.append(Parameter(m[4], size, at, bool(m[3])))
            self.symbols["param " + m[4]] = at
            at += size
        self.param_bytes = at

    def _body(self, text: str, first_line: int) -> None:
        place, depth, pending, pending_line = 0, 1, "", 0
        for number, raw in enumerate(text.split("\n"), first_line):
            line = raw.split("//")[0].strip()
            if not line:
                continue
            if re.match(r"\.loc\s", line):
                m = re.match(r"\.loc\s+(\d+)\s+(\d+)", line)
                if int(m[2]) > 0:  # line 0: made up by the compiler
                    key = f"{self.files.get(int(m[1]), '?')}:{m[2]}"
                    place = self.places.setdefault(key, len(self.places))
                continue
            if line.startswith((".file", ".pragma")) and not pending:
                continue
            while line:
                if not pending:
                    if m := re.match(r"([\w$.]+):(?!:)\s*", line):
                        self.labels[id(self.scope), m[1]] = len(self.rows)
                        line = line[m.end() :]
                        continue
                    if line[0] == "{":
                        self.scope = _Scope(self.scope)
                        depth += 1
                        line = line[1:].lstrip()
                        continue
                    if line[0] == "}":
                        depth -= 1
                        if depth == 0:
                            return
                        self.scope = self.scope.parent
                        line = line[1:].lstrip()
                        continue
                    pending_line = number
                head, semi, tail = line.partition(";")
                pending = f"{pending} {head}".strip()
                line = tail.lstrip()
                if semi:
                    if pending:
                        self._statement(pending, pending_line, place)
                    pending = ""
        raise Unknown("the body has no end")

    def _statement(self, s: str, number: int, place: int) -> None:
        if s.startswith(".reg"):
            m = re.match(r"\.reg\s+\.(\w+)\s+(.*)", s, re.S)
            file = PRED if m[1] == "pred" else R64 if SIZES[_type(m[1], s)] == 8 else R32
            for name in m[2].split(","):
                name = name.strip()
                if r := re.match(r"([\w$%.]+)<(\d+)>", name):
                    base = self.counts[file]
                    self.counts[file] += int(r[2])
                    for i in range(int(r[2])):
                        self.scope.names[f"{r[1]}{i}"] = (base + i) * 8 + file
                else:
                    self.scope.names[name] = self.counts[file] * 8 + file
                    self.counts[file] += 1
            return
        if m := re.match(r"\.local\s+\.align\s+(\d+)\s+\.b8\s+([\w$]+)\[(\d+)\]", s):
            self.local = -(-self.local // int(m[1])) * int(m[1])
            self.symbols["local " + m[2]] = self.local
            self.local += int(m[3])
            return
        if m := re.match(r"\.shared\s+\.align\s+(\d+)\s+\.b8\s+([\w$]+)\[(\d+)\]", s):
            raise Unknown(f"line {number}: shared variable inside a kernel: {s}")
        if s.startswith("."):
            if s.startswith((".pragma", ".param")):
                return
            raise Unknown(f"line {number}: {s}")
        guard = -1
        if m := re.match(r"@(!?)([\w$%.]+)\s+", s):
            p = self.scope.find(m[2])
            if p is None or p & 7 != PRED:
                raise Unknown(f"line {number}: guard {m[2]}: {s}")
            guard = (p >> 3) * 2 + (m[1] == "!")
            s = s[m.end() :]
        m = re.match(r"([\w.:]+)\s*(.*)", s, re.S)
        name, rest = m[1], m[2]
        try:
            for row, label in self._encode(name.split("."), self._operands(rest), s):
                row[5] = guard
                row[7] = len(self.lines)
                row[8] = place
                if label:
                    self.fixups.append((len(self.rows), label, self.scope, s))
                self.rows.append(row)
        except Unknown as e:
            raise Unknown(f"line {number}: {e}") from None
        except (KeyError, IndexError, ValueError, TypeError, struct.error) as e:
            raise Unknown(f"line {number}: {s} ({type(e).__name__}: {e})") from None
        self.lines.append(f"{number}: {s}")

    @staticmethod
    def _operands(text: str) -> list[str]:
        out, depth, cur = [], 0, ""
        for c in text:
            if c in "{[(":
                depth += 1
            elif c in "}])":
                depth -= 1
            if c == "," and depth == 0:
                out.append(cur.strip())
                cur = ""
            else:
                cur += c
        if cur.strip():
            out.append(cur.strip())
        return out

    # ------------------------------------------------------------- operands
    def _const(self, value: int, wide: bool) -> int:
        pool = self.c64 if wide else self.c32
        value &= (1 << 64) - 1 if wide else (1 << 32) - 1
        return pool.setdefault(value, len(pool)) * 8 + (C64 if wide else C32)

    def _number(self, text: str, t: str) -> int | None:
        """The bits of a literal as a value of a type."""
        sign = text.startswith("-")
        body = text[1:] if sign else text
        if m := re.fullmatch(r"0[fF]([0-9A-Fa-f]{8})", body):
            bits = int(m[1], 16) ^ (sign << 31)
            if t == "F64":
                return struct.unpack("<Q", struct.pack("<d", struct.unpack("<f", struct.pack("<I", bits))[0]))[0]
            return bits
        if m := re.fullmatch(r"0[dD]([0-9A-Fa-f]{16})", body):
            bits = int(m[1], 16) ^ (sign << 63)
            if t == "F32":
                return struct.unpack("<I", struct.pack("<f", struct.unpack("<d", struct.pack("<Q", bits))[0]))[0]
            return bits
        if re.fullmatch(r"0[xX][0-9A-Fa-f]+U?|0[bB][01]+U?|\d+U?", body):
            body = body.rstrip("U")
            v = int(body, 0) if not re.fullmatch(r"0\d+", body) else int(body, 8)
            v = -v if sign else v
            size = SIZES[t] or 4
            return v & ((1 << 8 * max(size, 2)) - 1)
        if re.fullmatch(r"\d*\.\d+(e[+-]?\d+)?", body):
            v = float(text)
            return (
                struct.unpack("<Q", struct.pack("<d", v))[0]
                if t == "F64"
                else struct.unpack("<I", struct.pack("<f", v))[0]
            )
        return None

    def _reg(self, text: str, t: str) -> int:
        """A destination register of a type."""
        if text == "_":
            return -1
        r = self.scope.find(text)
        if r is None:
            raise Unknown(f"register {text!r}")
        want = PRED if t == "PRED" else R64 if SIZES[t] == 8 else R32
        if r & 7 != want:
            raise Unknown(f"register {text!r} does not have type {t}")
        return r

    def _src(self, text: str, t: str) -> int:
        """A source operand: register, literal, special register, or the address of a shared or local variable."""
        r = self.scope.find(text)
        if r is not None:
            want = PRED if t == "PRED" else R64 if SIZES[t] == 8 else R32
            if r & 7 != want:
                raise Unknown(f"register {text!r} does not have type {t}")
            return r
        wide = SIZES[t] == 8
        if text.startswith("%"):
            key = text[1:].replace(".", "_").upper()
            if key not in SPECIALS:
                raise Unknown(f"special register {text}")
            return SPECIALS[key] * 8 + SPECIAL
        v = self._number(text, t)
        if v is not None:
            return self._const(v, wide)
        if text in self.symbols:
            return self._const(self.symbols[text], wide)
        if "local " + text in self.symbols:
            return self._const(self.symbols["local " + text], wide)
        raise Unknown(f"operand {text!r}")

    def _address(self, text: str) -> tuple[int, int]:
        """(base operand, offset) of [base + offset]."""
        m = re.fullmatch(r"\[\s*([\w$%.]+)\s*(?:([+-])\s*(-?\w+))?\s*\]", text)
        if m is None:
            raise Unknown(f"address {text!r}")
        offset = int(m[3], 0) * (-1 if m[2] == "-" else 1) if m[3] else 0
        r = self.scope.find(m[1])
        if r is not None:
            return r, offset
        if m[1] in self.symbols:
            return self._const(0, True), self.symbols[m[1]] + offset
        if "local " + m[1] in self.symbols:
            return self._const(0, True), self.symbols["local " + m[1]] + offset
        if re.fullmatch(r"\d+|0x[0-9a-fA-F]+", m[1]):
            return self._const(int(m[1], 0), True), offset
        raise Unknown(f"address {text!r}")

    @staticmethod
    def _vector(text: str) -> list[str]:
        return [x.strip() for x in text.strip("{} \t\n").split(",")] if text.startswith("{") else [text]

    @staticmethod
    def _row(op: str, t: str = "U32", t2: str | int = 0, mode: int = 0, mode2: int = 0, d=(), s=()) -> list[int]:
        if len(d) > NDST or len(s) > NSRC:
            raise Unknown("too many operands")
        second = TYPES[t2] if isinstance(t2, str) else t2
        row = [OPS[op], TYPES[t], second, mode, mode2, -1, -1, 0, 0] + [-1] * (NDST + NSRC)
        row[DST : DST + len(d)] = d
        row[SRC : SRC + len(s)] = s
        return row

    # --------------------------------------------------------- instructions
    def _encode(self, w: list[str], o: list[str], line: str):
        """Rows for one instruction; each with the label that it jumps to, or None."""
        op = w[0]
        method = getattr(self, f"_op_{op}", None)
        if method:
            out = method(w, o, line)
            return [(out, None)] if isinstance(out[0], int) else out
        if "cc" in w:
            return [(self._carry(w, o, line), None)]
        if op in ("add", "sub", "fma") and w[-2] == "f32" and w[-1] in ("f16", "bf16"):
            return self._mixed(op, w, o, line)
        if op in _SIMPLE:
            return [(self._simple(op, w, o, line), None)]
        raise Unknown(line)

    def _mixed(self, op, w, o, line):
        """Arithmetic in f32 whose first operands, all but the last, are of half precision: converted first."""
        t = _type(w[-1], line)
        if set(w[1:-2]) - {"rn"}:
            raise Unknown(line)
        rows, src = [], []
        for x in o[1:-1]:
            wide = self.counts[R32] * 8 + R32
            self.counts[R32] += 1
            rows.append((self._row("CVT", "F32", t, 0, 0, [wide], [self._src(x, t)]), None))
            src.append(wide)
        last = self._src(o[-1], "F32")
        return [*rows, (self._row(op.upper(), "F32", 0, 0, 0, [self._reg(o[0], "F32")], [*src, last]), None)]

    def _simple(self, op, w, o, line):
        kinds, allowed = _SIMPLE[op]
        mods = w[1:-1]
        for m in mods:
            if m not in allowed:
                raise Unknown(f"modifier .{m} in: {line}")
        t = _type(w[-1], line)
        mode = 0
        if "ftz" in mods:
            mode |= 1
        if "sat" in mods:
            mode |= 2
        if "NaN" in mods:
            mode |= 4
        if "relu" in mods:
            mode |= 8
        if "approx" in mods or "full" in mods:
            mode |= 16
        if "hi" in mods:
            mode |= 32
        if "rz" in mods or "rm" in mods or "rp" in mods or "xorsign" in mods:
            raise Unknown(f"rounding in: {line}")
        name = op.upper()
        wide = {"U16": "U32", "S16": "S32", "U32": "U64", "S32": "S64"}
        td = wide[t] if "wide" in mods else t
        if "wide" in mods:
            name += "_WIDE"
        types = {"d": td, "s": t, "w": td if "wide" in mods else t, "i": "U32", "p": "PRED"}
        dest = self._reg(o[0], types[kinds[0]])
        src = [self._src(x, types[k]) for x, k in zip(o[1:], kinds[1:], strict=True)]
        return self._row(name, t, 0, mode, 0, [dest], src)

    def _carry(self, w, o, line):
        t = _type(w[-1], line)
        if t not in ("U32", "S32", "U64", "S64") or set(w[1:-1]) - {"cc", "lo", "hi"}:
            raise Unknown(line)
        kind = w[0].rstrip("c") if w[0] in ("addc", "subc", "madc") else w[0]
        mode = {"add": 0, "sub": 1, "mad": 3 if "hi" in w else 2}[kind]
        mode2 = (w[0] in ("addc", "subc", "madc")) + 2 * ("cc" in w)
        if t[0] == "S" and mode == 3:
            raise Unknown(line)
        return self._row("CARRY", t, 0, mode, mode2, [self._reg(o[0], t)], [self._src(x, t) for x in o[1:]])

    _op_addc = _op_subc = _op_madc = _carry

    def _op_mov(self, w, o, line):
        t = _type(w[-1], line)
        d, s = self._vector(o[0]), self._vector(o[1])
        if len(d) > 1 or len(s) > 1:
            n = max(len(d), len(s))
            small = {(8, 2): "U32", (8, 4): "U16", (4, 2): "U16", (4, 4): "U8", (8, 8): "U8"}[SIZES[t], n]
            if len(d) > 1:
                return self._row("UNPACK", t, small, n, 0, [self._reg(x, small) for x in d], [self._src(o[1], t)])
            return self._row("PACK", t, small, n, 0, [self._reg(o[0], t)], [self._src(x, small) for x in s])
        if t == "PRED":
            if o[1] in ("0", "-1", "1"):
                return self._row("MOVP_IMM", t, 0, int(o[1] != "0"), 0, [self._reg(o[0], t)])
            return self._row("MOVP", t, 0, 0, 0, [self._reg(o[0], t)], [self._src(o[1], t)])
        return self._row("MOV", t, 0, 0, 0, [self._reg(o[0], t)], [self._src(o[1], t)])

    def _op_cvta(self, w, o, line):
        if "to" in w:
            space = w[2]
            return self._row(
                "CVTA_TO",
                "U64",
                0,
                {"global": 0, "shared": 1, "local": 2}[space.split("::")[0]],
                0,
                [self._reg(o[0], "U64")],
                [self._src(o[1], "U64")],
            )
        space = w[1].split("::")[0]
        return self._row(
            "CVTA",
            "U64",
            0,
            {"global": 0, "shared": 1, "local": 2}[space],
            0,
            [self._reg(o[0], "U64")],
            [self._src(o[1], "U64")],
        )

    def _memory(self, w, line):
        """(space, vector length, type) of a load or store."""
        space, n, known = (
            "generic",
            1,
            {
                "relaxed",
                "acquire",
                "release",
                "volatile",
                "weak",
                "gpu",
                "sys",
                "cta",
                "cluster",
                "nc",
                "ca",
                "cg",
                "cs",
                "cv",
                "wb",
                "wt",
                "lu",
                "L1::evict_last",
                "L1::evict_first",
                "L1::no_allocate",
                "L1::evict_normal",
                "L1::evict_unchanged",
                "L2::128B",
                "L2::256B",
                "L2::64B",
                "L2::cache_hint",
                "L2::evict_first",
                "L2::evict_last",
            },
        )
        for m in w[1:-1]:
            if m in ("global", "local", "shared", "shared::cta", "shared::cluster", "param", "const"):
                space = m
            elif m in ("v2", "v4", "v8"):
                n = int(m[1:])
            elif m not in known:
                raise Unknown(f"modifier .{m} in: {line}")
        return space, n, _type(w[-1], line)

    def _data(self, text, t, dest):
        """An operand of a load or store, which may be wider than the access."""
        if text == "_":
            return -1
        r = self.scope.find(text)
        if r is None:
            if dest:
                raise Unknown(f"register {text!r}")
            return self._src(text, t)
        if r & 7 == PRED or (SIZES[t] == 8 and r & 7 != R64):
            raise Unknown(f"register {text!r} is too narrow")
        return r

    SPACES = {"global": 0, "shared": 1, "shared::cta": 1, "shared::cluster": 2, "local": 3, "generic": 4}

    def _op_ld(self, w, o, line):
        space, n, t = self._memory(w, line)
        d = [self._data(x, t, True) for x in self._vector(o[0])]
        if len(d) != n:
            raise Unknown(line)
        if space == "param":
            m = re.fullmatch(r"\[\s*([\w$]+)\s*(?:\+\s*(\d+))?\s*\]", o[1])
            at = self.symbols["param " + m[1]] + int(m[2] or 0)
            return self._row("LD_PARAM", t, 0, at, n, d)
        base, offset = self._address(o[1])
        return self._row("LD", t, self.SPACES[space], offset, n, d, [base])

    _op_ldu = _op_ld

    def _op_st(self, w, o, line):
        space, n, t = self._memory(w, line)
        base, offset = self._address(o[0])
        s = [self._data(x, t, False) for x in self._vector(o[1])]
        if len(s) != n:
            raise Unknown(line)
        return self._row("ST", t, self.SPACES[space], offset, n, [], [base, *s])

    def _op_cp(self, w, o, line):
        """cp.async: copies at once, what may come later is not modelled; a size of the source smaller than that of the copy."""
        if w[1] == "async" and w[2] in ("commit_group", "wait_group", "wait_all"):
            return self._row("NOP")
        if w[1] != "async" or w[2] not in ("ca", "cg") or "bulk" in w:
            raise Unknown(line)
        (to, at), (base, offset) = self._address(o[0]), self._address(o[1])
        n = int(o[2], 0)
        return self._row(
            "CP_ASYNC", "U8", at, offset, n, [], [base, to, *([self._src(o[3], "U32")] if len(o) > 3 else [])]
        )

    def _atom(self, w, o, line, has_result):
        known = {"relaxed", "acquire", "release", "acq_rel", "gpu", "sys", "cta", "cluster", "noftz"}
        space, what = "generic", None
        for m in w[1:-1]:
            if m in ("global", "shared", "shared::cta", "shared::cluster"):
                space = m
            elif m in ("add", "exch", "cas", "min", "max", "and", "or", "xor", "inc", "dec"):
                what = m
            elif m not in known:
                raise Unknown(f"modifier .{m} in: {line}")
        t = _type(w[-1], line)
        d = [self._data(o[0], t, True)] if has_result else [-1]
        rest = o[1:] if has_result else o
        base, offset = self._address(rest[0])
        names = ["add", "exch", "cas", "min", "max", "and", "or", "xor"]
        if what not in names or t in ("F16X2", "BF16X2", "F16", "BF16"):
            raise Unknown(line)
        mode = names.index(what) * 8 + self.SPACES[space]
        return self._row("ATOM", t, mode, offset, 1, d, [base, *(self._src(x, t) for x in rest[1:])])

    def _op_atom(self, w, o, line):
        return self._atom(w, o, line, True)

    def _op_red(self, w, o, line):
        return self._atom(w, o, line, False)

    def _matrix(self, w, line):
        trans, n = 0, 0
        for m in w[1:]:
            if m in ("x1", "x2", "x4"):
                n = int(m[1:])
            elif m == "trans":
                trans = 1
            elif m not in ("sync", "aligned", "m8n8", "shared", "shared::cta", "b16"):
                raise Unknown(line)
        return n, trans

    def _op_ldmatrix(self, w, o, line):
        n, trans = self._matrix(w, line)
        base, offset = self._address(o[1])
        return self._row("LDMATRIX", "U16", trans, offset, n, [self._reg(x, "U32") for x in self._vector(o[0])], [base])

    def _op_stmatrix(self, w, o, line):
        n, trans = self._matrix(w, line)
        base, offset = self._address(o[0])
        return self._row(
            "STMATRIX", "U16", trans, offset, n, [], [base, *(self._src(x, "U32") for x in self._vector(o[1]))]
        )

    def _op_mapa(self, w, o, line):
        t = _type(w[-1], line)
        if w[1] != "shared::cluster":
            raise Unknown(line)
        return self._row("MAPA", t, 0, 0, 0, [self._reg(o[0], t)], [self._src(o[1], t), self._src(o[2], "U32")])

    def _op_getctarank(self, w, o, line):
        if w[1] != "shared::cluster":
            raise Unknown(line)
        return self._row("GETCTARANK", "U32", 0, 0, 0, [self._reg(o[0], "U32")], [self._src(o[1], _type(w[-1], line))])

    def _op_shfl(self, w, o, line):
        if w[1] != "sync" or w[3] != "b32":
            raise Unknown(line)
        d, _, p = o[0].partition("|")
        dest = [self._reg(d.strip(), "U32"), self._reg(p.strip(), "PRED") if p else -1]
        return self._row(
            "SHFL", "U32", 0, ["up", "down", "bfly", "idx"].index(w[2]), 0, dest, [self._src(x, "U32") for x in o[1:]]
        )

    def _op_vote(self, w, o, line):
        if w[1] != "sync":
            raise Unknown(line)
        neg = o[1].startswith("!")
        src = [self._src(o[1].lstrip("!"), "PRED"), self._src(o[2], "U32")]
        mode = ["ballot", "any", "all", "uni"].index(w[2])
        t = "U32" if w[2] == "ballot" else "PRED"
        return self._row("VOTE", t, 0, mode, int(neg), [self._reg(o[0], t)], src)

    def _op_activemask(self, w, o, line):
        return self._row("ACTIVEMASK", "U32", 0, 0, 0, [self._reg(o[0], "U32")])

    def _op_elect(self, w, o, line):
        d, _, p = o[0].partition("|")
        return self._row(
            "ELECT",
            "U32",
            0,
            0,
            0,
            [self._reg(d.strip(), "U32"), self._reg(p.strip(), "PRED")],
            [self._src(o[1], "U32")],
        )

    def _op_redux(self, w, o, line):
        what = ["add", "min", "max", "and", "or", "xor"].index(w[2])
        t = _type(w[-1], line)
        if t == "F32":
            raise Unknown(line)
        return self._row("REDUX", t, 0, what, 0, [self._reg(o[0], t)], [self._src(o[1], t), self._src(o[2], "U32")])

    def _op_bar(self, w, o, line):
        if w[1:] == ["warp", "sync"]:
            return self._row("BAR_WARP", "U32", 0, 0, 0, [], [self._src(o[0], "U32")])
        words = [x for x in w[1:] if x not in ("cta", "aligned")]
        if words not in (["sync"], ["arrive"]):
            raise Unknown(line)
        aligned = int(w[0] == "bar" or "aligned" in w)
        return self._row(
            "BAR_SYNC" if words == ["sync"] else "BAR_ARRIVE",
            "U32",
            0,
            aligned,
            0,
            [],
            [self._src(x, "U32") for x in o],
        )

    def _op_barrier(self, w, o, line):
        if w[1] != "cluster":
            return self._op_bar(w, o, line)
        aligned = int("aligned" in w)
        relaxed = int("relaxed" in w)
        if set(w[3:]) - {"aligned", "relaxed", "release", "acquire"}:
            raise Unknown(line)
        return self._row({"arrive": "CLUSTER_ARRIVE", "wait": "CLUSTER_WAIT"}[w[2]], "U32", 0, aligned, relaxed)

    def _op_fence(self, w, o, line):
        return self._row("FENCE")

    _op_membar = _op_fence

    def _op_bra(self, w, o, line):
        return [(self._row("BRA"), o[0])]

    def _op_ret(self, w, o, line):
        return self._row("EXIT")

    _op_exit = _op_ret

    def _op_trap(self, w, o, line):
        return self._row("TRAP")

    def _op_call(self, w, o, line):
        return self._row("TRAP")  # a function that is not part of the text: an assertion, or printing

    def _op_nanosleep(self, w, o, line):
        return self._row("NOP")

    _op_griddepcontrol = _op_nanosleep
    _op_discard = _op_nanosleep
    _op_prefetch = _op_nanosleep

    def _op_createpolicy(self, w, o, line):
        return self._row("MOV", "U64", 0, 0, 0, [self._reg(o[0], "U64")], [self._const(0, True)])

    def _op_setp(self, w, o, line):
        cmp = w[1]
        t = _type(w[-1], line)
        mods = w[2:-1]
        boolean = next((m for m in mods if m in ("and", "or", "xor")), None)
        if set(mods) - {"and", "or", "xor", "ftz"}:
            raise Unknown(line)
        d, _, q = o[0].partition("|")
        dest = [self._reg(d.strip(), "PRED"), self._reg(q.strip(), "PRED") if q else -1]
        src = [self._src(o[1], t), self._src(o[2], t)]
        mode2 = 0
        if boolean:
            neg = o[3].startswith("!")
            src.append(self._src(o[3].lstrip("!"), "PRED"))
            mode2 = 1 + ["and", "or", "xor"].index(boolean) + 4 * neg
        if t in ("F16X2", "BF16X2"):
            raise Unknown(line)
        if "ftz" in mods:
            mode2 |= 16
        return self._row("SETP", t, 0, COMPARISONS.index(cmp), mode2, dest, src)

    def _op_set(self, w, o, line):
        raise Unknown(line)

    def _op_selp(self, w, o, line):
        t = _type(w[-1], line)
        return self._row(
            "SELP", t, 0, 0, 0, [self._reg(o[0], t)], [self._src(o[1], t), self._src(o[2], t), self._src(o[3], "PRED")]
        )

    def _op_slct(self, w, o, line):
        t, t2 = _type(w[-2], line), _type(w[-1], line)
        return self._row(
            "SLCT", t, t2, 0, 0, [self._reg(o[0], t)], [self._src(o[1], t), self._src(o[2], t), self._src(o[3], t2)]
        )

    def _op_lop3(self, w, o, line):
        return self._row(
            "LOP3", "U32", 0, int(o[4], 0), 0, [self._reg(o[0], "U32")], [self._src(x, "U32") for x in o[1:4]]
        )

    def _op_prmt(self, w, o, line):
        if len(w) != 2:
            raise Unknown(line)
        return self._row("PRMT", "U32", 0, 0, 0, [self._reg(o[0], "U32")], [self._src(x, "U32") for x in o[1:]])

    def _op_shf(self, w, o, line):
        return self._row(
            "SHF",
            "U32",
            0,
            int(w[1] == "r"),
            int(w[2] == "wrap"),
            [self._reg(o[0], "U32")],
            [self._src(x, "U32") for x in o[1:]],
        )

    def _op_bfe(self, w, o, line):
        t = _type(w[-1], line)
        return self._row(
            "BFE",
            t,
            0,
            0,
            0,
            [self._reg(o[0], t)],
            [self._src(o[1], t), self._src(o[2], "U32"), self._src(o[3], "U32")],
        )

    def _op_bfi(self, w, o, line):
        t = _type(w[-1], line)
        return self._row(
            "BFI",
            t,
            0,
            0,
            0,
            [self._reg(o[0], t)],
            [self._src(o[1], t), self._src(o[2], t), self._src(o[3], "U32"), self._src(o[4], "U32")],
        )

    def _count(self, name, w, o, line):
        t = _type(w[-1], line)
        td = "U32" if name in ("POPC", "CLZ", "BFIND") else t
        return self._row(name, t, 0, int("shiftamt" in w), 0, [self._reg(o[0], td)], [self._src(o[1], t)])

    def _op_popc(self, w, o, line):
        return self._count("POPC", w, o, line)

    def _op_clz(self, w, o, line):
        return self._count("CLZ", w, o, line)

    def _op_brev(self, w, o, line):
        return self._count("BREV", w, o, line)

    def _op_bfind(self, w, o, line):
        return self._count("BFIND", w, o, line)

    def _op_cvt(self, w, o, line):
        mods = w[1:-2]
        td, ts = _type(w[-2], line), _type(w[-1], line)
        mode = 0
        for m in mods:
            if m in ("rn", "rni"):
                mode |= 1
            elif m in ("rz", "rzi"):
                mode |= 2
            elif m in ("rm", "rmi"):
                mode |= 3
            elif m in ("rp", "rpi"):
                mode |= 4
            elif m == "sat":
                mode |= 8
            elif m == "satfinite":
                mode |= 16
            elif m == "ftz":
                mode |= 32
            elif m == "relu":
                mode |= 64
            else:
                raise Unknown(f"modifier .{m} in: {line}")
        floats = {"F16", "BF16", "F32", "F64", "F16X2", "BF16X2", "F8E4M3X2", "F8E5M2X2"}
        if td in ("F8E4M3X2", "F8E5M2X2") or ts in ("F8E4M3X2", "F8E5M2X2"):
            raise Unknown(line)
        if td in floats and ts in floats and mode & 7 not in (0, 1, 2) and not (td == ts and "i" in "".join(mods)):
            raise Unknown(line)
        integral = any(m in ("rni", "rzi", "rmi", "rpi") for m in mods)
        mode |= integral << 8
        if td in ("F16X2", "BF16X2"):
            return self._row("CVT_PACK", td, ts, mode, 0, [self._reg(o[0], td)], [self._src(x, ts) for x in o[1:]])
        # a register may be wider than the type: that of an 8 bit value has 16 or 32 bits, of an integer also more
        d = self.scope.find(o[0])
        if d is None or d & 7 == PRED:
            raise Unknown(line)
        if d & 7 != (R64 if SIZES[td] == 8 else R32):
            raise Unknown(line)
        return self._row("CVT", td, ts, mode, 0, [d], [self._src(o[1], ts)])


COMPARISONS = [
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "lo",
    "ls",
    "hi",
    "hs",
    "equ",
    "neu",
    "ltu",
    "leu",
    "gtu",
    "geu",
    "num",
    "nan",
]
_F = {"rn", "ftz", "sat", "approx", "full"}
#: Instructions whose operands all have the instruction's type ("s"), or 32 bits ("i"), and the modifiers they may have.
_SIMPLE = {
    "add": ("dss", _F),
    "sub": ("dss", _F),
    "mul": ("dss", _F | {"lo", "hi", "wide"}),
    "mad": ("dssw", _F | {"lo", "hi", "wide"}),
    "fma": ("dsss", _F | {"relu"}),
    "div": ("dss", _F),
    "rem": ("dss", set()),
    "min": ("dss", {"ftz", "NaN", "relu"}),
    "max": ("dss", {"ftz", "NaN", "relu"}),
    "abs": ("ds", {"ftz"}),
    "neg": ("ds", {"ftz"}),
    "rcp": ("ds", _F),
    "sqrt": ("ds", _F),
    "rsqrt": ("ds", _F),
    "ex2": ("ds", _F),
    "lg2": ("ds", _F),
    "sin": ("ds", _F),
    "cos": ("ds", _F),
    "tanh": ("ds", _F),
    "copysign": ("dss", set()),
    "and": ("dss", set()),
    "or": ("dss", set()),
    "xor": ("dss", set()),
    "not": ("ds", set()),
    "cnot": ("ds", set()),
    "shl": ("dsi", set()),
    "shr": ("dsi", set()),
    "sad": ("dsss", set()),
}


def read(text: str, body: bool = True) -> Program:
    """Parse the one kernel of a PTX module; without its body, only what it says of itself and of its parameters."""
    return _Reader(text).read(body)
