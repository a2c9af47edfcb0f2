"""The norms, each described by its axes. Adding a norm is adding a line here.

A pattern has one word a dimension: ``n`` names it, ``(g k)`` splits it in two, ``*s`` stands for any number of
dimensions that all play the part of ``s``.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def words(pattern: str) -> list[tuple[str, ...]]:
    """The names in each word of a pattern, one dimension after the other; a starred name keeps its star.

    Raises:
        ValueError: it is no pattern.
    """
    found: list[tuple[str, ...]] = []
    split: list[str] | None = None
    for part in pattern.replace("(", " ( ").replace(")", " ) ").split():
        if part == "(" and split is None:
            split = []
        elif part == ")" and split:
            found.append(tuple(split))
            split = None
        elif part.isidentifier() and split is not None:
            split.append(part)
        elif part.removeprefix("*").isidentifier() and split is None:
            found.append((part,))
        else:
            raise ValueError(
                f"axes {pattern!r}: a word is a name, as n, or *s for any number of dimensions, or several names in "
                f"parentheses, not {part!r}"
            )
    if split is not None:
        raise ValueError(f"axes {pattern!r}: a parenthesis is not closed")
    return found


def names(pattern: str) -> list[str]:
    """The names of a pattern's axes, in order."""
    return [name.removeprefix("*") for word in words(pattern) for name in word]


class Norm(NamedTuple):
    """Which axes share statistics, and which axes the parameters vary along."""

    axes: str  #: the input's dimensions
    over: str  #: names of the axes that share statistics
    affine: str  #: the parameters' dimensions, in the same words
    centered: bool = True  #: False fixes the mean at zero (root mean square)

    @property
    def batch_invariant(self) -> bool:
        """True if a sample's result may not depend on its batch: no group extends along the first dimension."""
        return not {name.removeprefix("*") for name in words(self.axes)[0]} & set(self.over.split())

    @property
    def constant_is_zero(self) -> bool:
        """True if a group whose elements are all alike becomes 0 where eps is 0, as rstd is taken to be 0; else NaN.

        So it is in PyTorch for what its batch norm computes, where a group's elements share their parameters
        (``InvStd`` in ATen/native/cuda/Normalization.cuh; seen on the CPU in 2.13).
        """
        return not {*names(self.affine)} & {*self.over.split()}


BATCH = Norm("n c *s", over="n s", affine="c")
INSTANCE = Norm("n c *s", over="s", affine="c")
GROUP = Norm("n (g k) *s", over="k s", affine="(g k)")
LAYER = Norm("*m *d", over="d", affine="*d")
RMS = LAYER._replace(centered=False)


def described(axes: str, over: str, affine: str | None = None, centered: bool = True) -> Norm:
    """A norm in a caller's words: as `Norm`, but that ``affine`` lists axes, in any order.

    Raises:
        ValueError: no pattern; or an axis that is unknown, named twice or missing.
    """
    known = names(axes)
    lists = {"over": names(over), "affine": names(affine or "")}
    for name in known:
        if known.count(name) > 1:
            raise ValueError(f"axes {axes!r}: {name!r} names two of them")
    for which, chosen in lists.items():
        for name in chosen:
            if name not in known:
                apart = ", which is one word: spaces stand between axes" if len(words(axes)) == 1 else ""
                raise ValueError(f"{which}={' '.join(chosen)!r}: {name!r} is none of the axes {axes!r}{apart}")
            if chosen.count(name) > 1:
                raise ValueError(f"{which}={' '.join(chosen)!r}: {name!r} is named twice")
    if not lists["over"]:
        raise ValueError(f"over={over!r} names none of the axes {axes!r}: which of them share statistics?")

    def kept_of(word: tuple[str, ...]) -> str:
        chosen = [name for name in word if name.removeprefix("*") in lists["affine"]]
        return f"({' '.join(chosen)})" if len(chosen) == len(word) > 1 else " ".join(chosen)

    return Norm(
        " ".join(f"({' '.join(word)})" if len(word) > 1 else word[0] for word in words(axes)),
        " ".join(name for name in known if name in lists["over"]),
        " ".join(filter(None, map(kept_of, words(axes)))),
        centered,
    )


class NamedAxis(NamedTuple):
    """One axis of a tensor after its pattern is applied."""

    name: str
    ordinal: int  #: tells apart the axes that one starred word stands for
    size: int
    step: int  #: elements of the dimension's own stride between neighbours; above 1 in the outer parts of a split


def name_axes(pattern: str, shape: Sequence[int], sizes: Mapping[str, int]) -> list[list[NamedAxis]]:
    """Split ``shape`` into named axes, a list for every dimension.

    (Products are of lists: compilers trace it, and know no others.)

    Args:
        pattern: one word a dimension, see the module's docstring.
        shape: the tensor's shape.
        sizes: what the shape does not tell: of a split ``(g k)`` all sizes but one; for the last of two starred words,
            the number of its dimensions.
    Raises:
        ValueError: a size is missing.
        RuntimeError: the shape is not one of the pattern's.
    """
    tokens = words(pattern)
    stars = [token[0] for token in tokens if token[0].startswith("*")]
    for star in stars[1:]:
        if star[1:] not in sizes:
            raise ValueError(f"axes {pattern!r}: the number of dimensions that {star!r} stands for is missing")
    lengths = {star: sizes[star[1:]] for star in stars[1:]}
    free = len(shape) - (len(tokens) - len(stars)) - sum(lengths.values())
    if stars:
        lengths[stars[0]] = free
    if free < 0 or (free and not stars) or any(length < 0 for length in lengths.values()):
        raise RuntimeError(
            f"axes {pattern!r} are not those of shape {tuple(shape)}, which has {len(shape)} dimensions and not "
            f"{f'at least {len(tokens) - len(stars)}' if stars else len(tokens)}"
        )

    dims: list[list[NamedAxis]] = []
    for token in tokens:
        if token[0] in lengths:
            name = token[0][1:]
            dims += [[NamedAxis(name, i, shape[len(dims) + i], 1)] for i in range(lengths[token[0]])]
            continue
        size = shape[len(dims)]
        missing = [name for name in token if name not in sizes]
        if len(missing) > 1:
            which = f"{'the size' if len(missing) == 2 else 'all sizes but one'} of {' or '.join(map(repr, missing))}"
            raise ValueError(f"axes {pattern!r}: give {which}, as {missing[0]}=2")
        known = prod([sizes[name] for name in token if name in sizes])
        extents = {name: sizes[name] if name in sizes else size // known if known else 0 for name in token}
        if prod([*extents.values()]) != size or any(extent < 0 for extent in extents.values()):
            given = ", ".join(f"{name}={sizes[name]}" for name in token if name in sizes)
            where = f"dimension {len(dims)} of shape {tuple(shape)}"
            raise RuntimeError(f"axes {pattern!r} with {given} do not fit {where}")
        steps = [prod([*extents.values()][i + 1 :]) for i in range(len(token))]
        dims.append([NamedAxis(name, 0, extents[name], step) for name, step in zip(token, steps, strict=True)])
    return dims
