"""Batch, layer, instance, group and RMS normalization for PyTorch, from one Triton reduction kernel per direction.

Functions with the signatures of `torch.nn.functional`, modules that subclass `torch.nn`'s, `convert`, which replaces
the norms of a finished model, and `explain`, which says what a call does and why.
"""

from . import exporters  # noqa: F401  it registers itself
from .autograd import amp  # noqa: F401  settings, here and below: normtriton.amp.set_mode
from .convert.replace import convert, restore, restored
from .explain import explain
from .functional import batch_norm, group_norm, instance_norm, layer_norm, rms_norm
from .modules import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    GroupNorm,
    InstanceNorm1d,
    InstanceNorm2d,
    InstanceNorm3d,
    LayerNorm,
    RMSNorm,
    SyncBatchNorm,
)
from .named import normalize
from .planning.stages import Activation
from .runtime import cache, clusters, trial, tuned  # noqa: F401  the trial registers itself

__version__ = "0.1.0"

__all__ = [
    "Activation",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "RMSNorm",
    "SyncBatchNorm",
    "batch_norm",
    "convert",
    "explain",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "normalize",
    "restore",
    "restored",
    "rms_norm",
]


def __dir__() -> list[str]:
    """What is for users; what it is made of is imported by its full name."""
    return sorted([*__all__, "__version__", "amp", "clusters", "tuned"])
