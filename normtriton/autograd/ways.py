"""Which way a call takes to the kernels, where it is not the short one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from . import function, sharded

if TYPE_CHECKING:
    from torch import Tensor

    from .call import Call

_is_compiling = torch.compiler.is_compiling
_transforms = torch._C._are_functorch_transforms_active


def normalize(x: Tensor, weight: Tensor | None, bias: Tensor | None, call: Call) -> Tensor:
    """Normalize x, which takes the kernels, as ``call`` says: by parts, if the tensors are sharded."""
    statistics = call.statistics[:2] if call.statistics else (None, None)
    if not _is_compiling() and not _transforms() and any(map(sharded.is_sharded, (x, weight, bias, *statistics))):
        return sharded.normalize(x, weight, bias, call)
    return function.normalize(x, weight, bias, call)
