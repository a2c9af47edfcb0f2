"""Which values the model must compute: those that addresses, guards and branches need. Liveness, backwards, from them.

A kernel's floats decide nothing about its time, so most of its instructions are only counted. What loads and stores
move through shared or local memory is followed as well: a store there is needed as soon as a load there is.

A set of values is an integer, a bit for each: 256 registers, 64 uniform ones, 8 predicates, 8 uniform ones, and the
words of a thread's stack, which hold what was spilled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .sass import Operand, Row

#: Where the bits of a kind begin, and which of its values is a constant.
_CELLS = {"REG": (0, 255), "UREG": (256, 63), "PREG": (320, 7), "UPREG": (328, 7)}
_STACK = 336
#: The register that holds a thread's stack.
_STACK_POINTER = 1

_MEMORY = ("LD", "ST", "ATOM", "LDSM", "LDGSTS")
#: Whether one of these goes on, and where, depends on all that they read.
_DECIDING = ("BRA", "EXIT", "CALL", "RET", "BAR")
#: Whether one of these happens changes the time.
_TIMED = (*_MEMORY, *_DECIDING, "CLUSTER_ARRIVE", "CLUSTER_WAIT", "DEPBAR", "LDGDEPBAR")


@dataclass
class _Effect:
    """What an instruction does with values, as sets.

    Attributes:
        defines: it writes them, in some lanes at least.
        kills: it writes them in all lanes.
        uses: it reads them to define what it defines.
        guard: decides in which lanes.
        needs: it needs them whatever becomes of its result.
        stores: what it writes to shared memory.
        loads_shared: its result comes from there.
        following: the rows that may come next.
    """

    defines: int = 0
    kills: int = 0
    uses: int = 0
    guard: int = 0
    needs: int = 0
    stores: int = 0
    loads_shared: bool = False
    following: tuple[int, ...] = ()


def _cells(kind: str, value: int, count: int = 1) -> int:
    """The set of a register and those after it."""
    if kind not in _CELLS:
        return 0
    first, constant = _CELLS[kind]
    return 0 if value == constant else ((1 << count) - 1) << (first + value)


def _read(row: Row, at: int, source: Operand) -> int:
    wide = row.source_registers if row.operation in ("RET", "OPAQUE") else 1
    if row.operation == "IMAD" and row.has("WIDE", "HIGH") and at == 2:
        wide = 2
    return _cells(source.kind, source.value, wide)


def _address(row: Row) -> int:
    """What the address of an access is made of."""
    pair = row.base_wide or row.space == "GENERIC"
    uniform_pair = row.base_wide and row.space != "SHARED"
    return _cells("REG", row.base, 2 if pair else 1) | _cells("UREG", row.uniform_base, 2 if uniform_pair else 1)


def _stored(row: Row) -> int:
    return _cells(row.sources[0].kind, row.sources[0].value, row.source_registers) if row.sources else 0


def _memory(row: Row, effect: _Effect) -> None:
    """Add what an access to memory needs."""
    effect.needs |= _address(row)
    if row.operation == "LDGSTS":
        effect.needs |= effect.uses
    if row.space in ("SHARED", "GENERIC"):
        effect.loads_shared = row.operation == "LD"
        effect.stores = _stored(row) if row.operation == "ST" else 0
    if row.space == "LOCAL" and row.base == _STACK_POINTER:
        words = ((1 << row.words) - 1) << (_STACK + max(0, row.offset) // 4)
        if row.operation == "ST":
            effect.uses, effect.defines = _stored(row), words
        else:
            effect.uses = words


def _effect(row: Row) -> _Effect:
    """What an instruction does with values."""
    effect = _Effect()
    if row.guard >= 0:
        effect.guard = _cells("UPREG" if row.guard & 2 else "PREG", row.guard >> 2)
    for at, to in enumerate(row.destinations):
        effect.defines |= _cells(to.kind, to.value, row.destination_registers if at == 0 else 1)
    for at, source in enumerate(row.sources):
        effect.uses |= _read(row, at, source)
    several = 0
    for predicate in row.predicates:
        several |= _cells(predicate.kind, predicate.value)
    if row.operation == "P2R":
        effect.uses |= several
    else:
        effect.defines |= several
    if row.operation == "FCHK":  # whether a division needs its slow path: never
        effect.uses = 0
    if row.operation in _TIMED:
        effect.needs = effect.guard
    if row.operation in _DECIDING:
        effect.needs |= effect.uses
    if row.operation in _MEMORY:
        _memory(row, effect)
    effect.kills = effect.defines if row.guard < 0 else 0
    return effect


def _following(rows: list[Row], at: int, after_calls: tuple[int, ...]) -> tuple[int, ...]:
    """The rows that may come after one."""
    row = rows[at]
    if row.operation == "RET":
        found = after_calls
    elif row.operation == "EXIT":
        found = (at + 1,) if row.guard >= 0 or row.sources else ()
    elif row.operation == "CALL":
        found = (row.target, at + 1)
    elif row.operation == "BRA":
        found = (row.target, at + 1) if row.guard >= 0 or row.sources else (row.target,)
    else:
        found = (at + 1,)
    return tuple(to for to in found if to < len(rows))


def _needed(effects: list[_Effect], shared: bool) -> list[bool]:
    """Whether the result of each row is needed. ``shared``: what is stored to shared memory is, too."""
    before = [0] * len(effects)
    needed = [False] * len(effects)
    changed = True
    while changed:
        changed = False
        for at in range(len(effects) - 1, -1, -1):
            effect = effects[at]
            live = 0
            for to in effect.following:
                live |= before[to]
            needed[at] = bool(live & effect.defines)
            if needed[at]:
                live = live & ~effect.kills | effect.uses | effect.guard
            live |= effect.needs
            if shared:
                live |= effect.stores
            if live != before[at]:
                before[at] = live
                changed = True
    return needed


def mark(rows: list[Row]) -> None:
    """Set `live` of the rows whose results the model must compute."""
    effects = [_effect(row) for row in rows]
    after_calls = tuple(at + 1 for at, row in enumerate(rows) if row.operation == "CALL")
    for at, effect in enumerate(effects):
        effect.following = _following(rows, at, after_calls)
    needed = _needed(effects, shared=False)
    shared = any(effect.loads_shared and live for effect, live in zip(effects, needed, strict=True))
    if shared:
        needed = _needed(effects, shared=True)
    for row, effect, live in zip(rows, effects, needed, strict=True):
        row.live = live or (shared and bool(effect.stores))
