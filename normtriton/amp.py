"""What dtype a half-precision norm returns under autocast on a GPU.

There PyTorch runs layer, RMS and group norm in float32 and returns it; batch and instance norm keep the input's dtype,
as do all five under autocast on a CPU. The kernels compute in float32 anyway, so only what is written differs: twice
the bytes. ``NORMTRITON_AUTOCAST``, or `set_mode`:

    pytorch  float32 where PyTorch returns it (the default)
    input    the input's dtype: half the bytes written, and no cast before the next matrix product
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

MODES = ("pytorch", "input")
_HALF = (torch.bfloat16, torch.float16)


def _valid(mode: str) -> str:
    if mode not in MODES:
        raise ValueError(f"NORMTRITON_AUTOCAST is one of {', '.join(MODES)}, not {mode!r}")
    return mode


_mode = _valid(os.environ.get("NORMTRITON_AUTOCAST", "pytorch"))


def mode() -> str:
    """The setting in force: "pytorch" or "input"."""
    return _mode


def set_mode(mode: str) -> None:
    """Change the setting for the calls that follow.

    Raises:
        ValueError: not one of the two.
    """
    global _mode  # noqa: PLW0603  one switch for the process
    _mode = _valid(mode)


def upcasts(x: Tensor) -> bool:
    """Whether a norm that PyTorch runs in float32 under autocast is to return float32 for this input."""
    return x.dtype in _HALF and torch.is_autocast_enabled("cuda") and x.is_cuda and _mode == "pytorch"
