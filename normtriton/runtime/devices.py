"""Devices: what plans depend on of them, asked once, and where a tensor is."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from ..planning.plan import Device
from . import clusters, tuned
from .compiling import Compiler
from .switch import follow

if TYPE_CHECKING:
    from torch import Tensor

#: Multiprocessors that plans for the interpreter count on: few, since it runs one program after another.
INTERPRETER_SMS = 2


@lru_cache(maxsize=64)
def _device(index: int) -> Device:
    if index < 0:  # the interpreter's CPU
        sms, clustered = INTERPRETER_SMS, clusters.mode() == "on" and -1 not in clusters.refused
    else:
        sms = int(torch.cuda.get_device_properties(index).multi_processor_count)
        clustered = clusters.allowed(index)
    compiler = None if index < 0 else Compiler(index)
    return Device(sms, clustered, tuned.table_for(index, sms), compiler)


def of(x: Tensor) -> Device:
    """What plans depend on of x's device."""
    return _device(x.get_device())


#: Asks anew what devices can do: a setting has changed, or what is known of one.
forget = follow(_device.cache_clear)

_count = lru_cache(torch.cuda.device_count)


def elsewhere(x: Tensor) -> bool:
    """Whether x is on another GPU than the current one, on which Triton would launch."""
    return x.is_cuda and _count() > 1 and torch.cuda.current_device() != x.get_device()
