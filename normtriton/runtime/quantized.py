"""Quantized numbers in PyTorch's operations: what `normtriton.kernels.quantize` makes in the kernels' pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

#: What there is, by name, and the largest number of each.
KINDS = {
    "float8_e4m3fn": (torch.float8_e4m3fn, 448.0),
    "float8_e5m2": (torch.float8_e5m2, 57344.0),
    "int8": (torch.int8, 127.0),
}


def scale_of(largest: Tensor, kind: str) -> Tensor:
    """The scale with which a largest absolute value becomes the largest number; 1 where all is 0."""
    return torch.where(largest == 0, 1.0, largest.float() / KINDS[kind][1])


def codes(y: Tensor, scale: Tensor, kind: str) -> Tensor:
    """Y / scale, rounded as PyTorch's cast rounds, and saturated; NaN is the integer 0."""
    dtype, most = KINDS[kind]
    values = y.float() / scale.float()
    if kind == "int8":
        return values.nan_to_num(nan=0.0).round().clamp(-most - 1, most).to(dtype)
    return values.clamp(-most, most).to(dtype)
