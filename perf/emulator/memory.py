"""Memory of the emulated device: where each tensor lies, and which of its elements were ever written.

A tensor that is made empty gets memory of its own, with nothing else near (`RED_ZONE` bytes on either side) and full of
a value that no computation is likely to give. Kernels may access the elements of the tensors that a launch is handed,
and nothing between or beside them.
"""

from __future__ import annotations

import ctypes
import weakref
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

#: Bytes before and behind each tensor that was made empty.
RED_ZONE = 4096
#: Bytes that addresses of new tensors are multiples of, as the CUDA allocator's.
ALIGNMENT = 512
#: The byte that empty memory is full of: NaN in every floating-point dtype; another one for integers and truth values.
POISON, POISON_INTEGER = 0xFF, 0xDB
#: What the executor (``cpp/executor/program.hpp``) knows of an element: a kernel may access it; it has a value.
VALID, INITIALIZED = 1, 2


#: Memory that a launch may access, as `Executor.memory` takes it: address, bytes, log2 of the bytes that one flag
#: stands for, and the address of the flags, a byte each.
Region: TypeAlias = tuple[int, int, int, int]


class _Block:
    """Memory of a tensor that was made empty."""

    def __init__(self, address: int, size: int, itemsize: int, poison: int) -> None:
        self.address, self.size, self.itemsize, self.poison = address, size, itemsize, poison
        self.initialized = np.zeros(size // itemsize, dtype=bool)
        self.full = False

    def look(self) -> None:
        """Note the elements that PyTorch has written: they are no longer poison."""
        if not self.full:
            memory = np.ctypeslib.as_array((ctypes.c_uint8 * self.size).from_address(self.address))
            self.initialized |= (memory.reshape(-1, self.itemsize) != self.poison).any(1)
            self.full = bool(self.initialized.all())

    def fill(self) -> None:
        """Note that every element has a value, even one that looks like poison."""
        self.initialized[:] = True
        self.full = True


class Memory:
    """All blocks, and the regions of the launch that runs."""

    def __init__(self) -> None:
        """Nothing yet."""
        self._blocks: dict[int, _Block] = {}  # by address
        self._flags: list[tuple[_Block | None, np.ndarray[Any, Any]]] = []  # of the launch, held while it runs

    def give(self, tensor: Tensor) -> Tensor:
        """Move a new tensor, made empty, into memory of its own. Tensors without memory stay as they are."""
        if not _plain(tensor) or tensor.numel() == 0:
            return tensor
        itemsize = tensor.element_size()
        size = _span(tensor) * itemsize
        poison = POISON if tensor.is_floating_point() or tensor.is_complex() else POISON_INTEGER
        room = np.full(size + 2 * RED_ZONE + ALIGNMENT, poison, dtype=np.uint8)
        start = -(-(room.ctypes.data + RED_ZONE) // ALIGNMENT) * ALIGNMENT
        flat = torch.frombuffer(room, dtype=torch.uint8, count=size, offset=start - room.ctypes.data)
        with torch.no_grad():
            tensor.set_(flat.untyped_storage(), 0, tensor.size(), tensor.stride())
        assert tensor.data_ptr() == start
        self._blocks[start] = _Block(start, size, itemsize, poison)
        weakref.finalize(room, self._blocks.pop, start, None)
        return tensor

    def own(self, tensor: Tensor) -> Tensor:
        """A copy of a tensor in memory of its own, of the same strides; an expanded one is copied without."""
        if tensor.numel() and not all(tensor.stride()):
            return tensor.clone(memory_format=torch.preserve_format)
        copy = self.give(torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype))
        copy.copy_(tensor.detach())
        if (block := self._blocks.get(copy.data_ptr())) is not None:
            block.fill()
        return copy

    def unwritten(self, tensor: Tensor) -> int:
        """How many elements of a tensor, made empty, nothing has written."""
        block = self._blocks.get(tensor.untyped_storage().data_ptr())
        if block is None or tensor.numel() == 0:
            return 0
        block.look()
        written = torch.from_numpy(block.initialized)
        return int((~written.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())).sum())

    def open(self, tensors: Iterable[Tensor]) -> list[Region]:
        """What a launch may access: the elements of its tensors. `close` it after the launch."""
        by_storage: dict[int, list[Tensor]] = {}
        for tensor in tensors:
            if tensor.numel():
                by_storage.setdefault(tensor.untyped_storage().data_ptr(), []).append(tensor)
        self._flags = []
        return [self._region(address, views) for address, views in by_storage.items()]

    def _region(self, address: int, views: Sequence[Tensor]) -> Region:
        size = views[0].untyped_storage().nbytes()
        block = self._blocks.get(address)
        sizes = {view.element_size() for view in views} | ({block.itemsize} if block else set())
        exact = len(sizes) == 1  # views of several dtypes: any byte may be accessed, and counts as written
        itemsize = sizes.pop() if exact else 1
        flags = np.zeros(size // itemsize + 1, dtype=np.uint8)
        if exact:
            for view in views:
                _elements(flags, view).bitwise_or_(VALID)
        else:
            flags |= VALID
        if block is not None and exact:
            block.look()
            flags[: len(block.initialized)] |= block.initialized * np.uint8(INITIALIZED)
        else:
            flags |= INITIALIZED
        self._flags.append((block if exact else None, flags))
        return address, size, itemsize.bit_length() - 1, flags.ctypes.data

    def close(self) -> None:
        """Note what the launch has written."""
        for block, flags in self._flags:
            if block is not None:
                block.initialized |= (flags[: len(block.initialized)] & INITIALIZED) != 0
        self._flags = []


def _plain(tensor: Tensor) -> bool:
    """Whether a tensor has memory that may be exchanged: not one that a transform or a compiler looks at."""
    if type(tensor) is not torch.Tensor or tensor.is_meta or tensor.layout != torch.strided or tensor.is_quantized:
        return False
    return not torch._C._functorch.is_functorch_wrapped_tensor(tensor) and torch._C._get_tracing_state() is None


def _span(tensor: Tensor) -> int:
    """Elements from the first to the last of a tensor."""
    return 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))


def _elements(flags: np.ndarray[Any, Any], view: Tensor) -> Tensor:
    """The flags of a view's elements, each once."""
    kept = [(n, s) for n, s in zip(view.shape, view.stride(), strict=True) if s != 0]
    return torch.from_numpy(flags).as_strided([n for n, _ in kept], [s for _, s in kept], view.storage_offset())
