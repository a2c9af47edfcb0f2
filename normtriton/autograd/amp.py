"""What dtype a half-precision norm returns under autocast on a GPU.

There PyTorch runs layer, RMS and group norm in float32 and returns it; batch and instance norm keep the input's dtype,
as do all five under autocast on a CPU. The kernels compute in float32 anyway, so only what is written differs: twice
the bytes. ``NORMTRITON_AUTOCAST``, or `set_mode`:

    pytorch  float32 where PyTorch returns it (the default)
    input    the input's dtype: half the bytes written, and no cast before the next matrix product
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..runtime.switch import Switch

if TYPE_CHECKING:
    from torch import Tensor

_HALF = (torch.bfloat16, torch.float16)
_switch = Switch("NORMTRITON_AUTOCAST", "pytorch", "input")


def mode() -> str:
    """The setting in force: "pytorch" or "input"."""
    return _switch.mode


def set_mode(mode: str) -> None:
    """Change the setting for the calls that follow.

    Raises:
        ValueError: not one of the two.
    """
    _switch.set(mode)


def upcasts(x: Tensor) -> bool:
    """Whether a norm that PyTorch runs in float32 under autocast is to return float32 for this input."""
    return x.dtype in _HALF and torch.is_autocast_enabled("cuda") and x.is_cuda and _switch.mode == "pytorch"
