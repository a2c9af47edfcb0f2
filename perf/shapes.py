"""Real shapes, shared by tests and reports."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from normtriton import functional

if TYPE_CHECKING:
    from normtriton.autograd import Call


class Case(NamedTuple):
    """One norm of one shape.

    Attributes:
        norm: "layer", "rms", "batch", "instance" or "group".
        shape: of the input.
        groups: of a group norm.
    """

    norm: str
    shape: tuple[int, ...]
    groups: int = 0

    @property
    def name(self) -> str:
        """For people and test ids."""
        return f"{self.norm}{self.groups or ''}-{'x'.join(map(str, self.shape))}"


#: Language models, vision transformers, ResNet-50, U-Nets, segmentation.
CASES = (
    Case("layer", (8192, 4096)),
    Case("layer", (8192, 768)),
    Case("layer", (4096, 12288)),
    Case("layer", (1024, 65536)),
    Case("layer", (8192, 1000)),
    Case("rms", (8192, 4096)),
    Case("group", (8, 320, 64, 64), 32),
    Case("group", (2, 512, 128, 128), 32),
    Case("instance", (8, 64, 256, 256)),
    Case("batch", (256, 64, 56, 56)),
    Case("batch", (32, 2048, 7, 7)),
    Case("batch", (1024, 256)),
)


def make(case: Case, dtype: torch.dtype, memory_format: torch.memory_format, device: str = "meta") -> tuple:  # type: ignore[type-arg]
    """(call, x, weight, bias) of a case, in training, parameters float32, batch norm with running statistics."""
    x = torch.empty(case.shape, dtype=dtype, device=device)
    if x.dim() == 4:
        x = x.to(memory_format=memory_format)
    features = case.shape[-1:] if case.norm in ("layer", "rms") else case.shape[1:2]
    weight, bias = torch.ones(features, device=device), torch.zeros(features, device=device)
    call: Call
    if case.norm == "layer":
        call = functional.layer_norm_call(x, features, weight, bias, 1e-5)
    elif case.norm == "rms":
        return functional.rms_norm_call(x, features, weight, None), x, weight, None
    elif case.norm == "group":
        call = functional.group_norm_call(x, case.groups, weight, bias, 1e-5)
    elif case.norm == "instance":
        call = functional.instance_norm_call(x, None, None, weight, bias, True, 0.1, 1e-5)
    else:
        mean, var = torch.zeros(features, device=device), torch.ones(features, device=device)
        batches = torch.zeros((), dtype=torch.int64, device=device)
        call = functional.batch_norm_call(x, mean, var, weight, bias, True, 0.1, 1e-5, batches)
    return call, x, weight, bias
