"""The ways from a call to the kernels, and derivatives: plain tensors, operators, DTensors.

`normalize` of a checked `Call` takes the right one.
"""

from .call import Call
from .ways import normalize

__all__ = ["Call", "normalize"]
