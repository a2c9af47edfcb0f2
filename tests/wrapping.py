"""A tensor that only holds another, as quantized, sharded or lazy ones do."""

import torch
from torch.utils._pytree import tree_map_only


class Wrapper(torch.Tensor):
    """No memory of its own: what is done to it is done to the one inside."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=inner.device
        )

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        args, kwargs = tree_map_only(cls, lambda t: t.inner, (args, kwargs or {}))
        return tree_map_only(torch.Tensor, cls, func(*args, **kwargs))


def inside(t):
    """The tensor that a wrapper holds, or a plain one."""
    return t.inner if isinstance(t, Wrapper) else t
