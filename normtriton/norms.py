"""The norms, each described by its axes. Adding a norm is adding a line here.

A pattern has one word a dimension: ``n`` names it, ``(g k)`` splits it in two, ``*s`` stands for any number of
dimensions that all play the part of ``s``.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Norm(NamedTuple):
    """Which axes share statistics, and which axes the parameters vary along."""

    axes: str  #: the input's dimensions
    over: str  #: names of the axes that share statistics
    affine: str  #: the parameters' dimensions, in the same words
    centered: bool = True  #: False fixes the mean at zero (root mean square)

    @property
    def batch_invariant(self) -> bool:
        """True if the groups lie within one sample, so that a sample's result may not depend on its batch."""
        return "n" not in self.over.split()

    @property
    def constant_is_zero(self) -> bool:
        """True if a group whose elements are all alike becomes 0 where eps is 0, as rstd is taken to be 0; else NaN.

        So it is in PyTorch for what its batch norm computes, where a group's elements share their parameters
        (``InvStd`` in ATen/native/cuda/Normalization.cuh; seen on the CPU in 2.13).
        """
        return not {word.strip("()*") for word in self.affine.split()} & set(self.over.split())


BATCH = Norm("n c *s", over="n s", affine="c")
INSTANCE = Norm("n c *s", over="s", affine="c")
GROUP = Norm("n (g k) *s", over="k s", affine="(g k)")
LAYER = Norm("*m *d", over="d", affine="*d")
RMS = LAYER._replace(centered=False)


class NamedAxis(NamedTuple):
    """One axis of a tensor after its pattern is applied."""

    name: str
    ordinal: int  #: tells apart the axes that one starred word stands for
    size: int
    step: int  #: elements of the dimension's own stride between neighbours; above 1 in the outer half of a split


def name_axes(pattern: str, shape: Sequence[int], sizes: Mapping[str, int]) -> list[list[NamedAxis]]:
    """Split ``shape`` into named axes, a list for every dimension.

    Args:
        pattern: one word a dimension, see the module's docstring.
        shape: the tensor's shape.
        sizes: what the shape does not tell: ``g`` of a split ``(g k)``; for the last of two starred words, the number
            of its dimensions.
    """
    words = pattern.replace("( ", "(").replace(" )", ")")
    tokens: list[list[str]] = []
    for word in words.split():
        if tokens and tokens[-1][0].startswith("(") and not tokens[-1][-1].endswith(")"):
            tokens[-1].append(word)
        else:
            tokens.append([word])
    stars = [token[0] for token in tokens if token[0].startswith("*")]
    free = len(shape) - (len(tokens) - len(stars))
    lengths = dict.fromkeys(stars, 0)
    for star in stars[1:]:
        lengths[star] = sizes[star[1:]]
    if stars:
        lengths[stars[0]] = free - sum(lengths.values())

    dims: list[list[NamedAxis]] = []
    for token in tokens:
        if token[0] in lengths:
            name = token[0][1:]
            dims += [[NamedAxis(name, i, shape[len(dims) + i], 1)] for i in range(lengths[token[0]])]
        elif len(token) == 1:
            dims.append([NamedAxis(token[0], 0, shape[len(dims)], 1)])
        else:
            names = [part.strip("()") for part in token]
            outer = sizes[names[0]]
            inner = shape[len(dims)] // outer
            dims.append([NamedAxis(names[0], 0, outer, inner), NamedAxis(names[1], 0, inner, 1)])
    assert len(dims) == len(shape), (pattern, shape)
    assert prod(axis.size for dim in dims for axis in dim) == prod(shape), (pattern, shape, sizes)
    return dims
