"""Small shapes and layouts, each named for the branch of the plan that it reaches: for checks, on a GPU or without.

A branch is reached on two multiprocessors (`DEVICE`, or `CLUSTERS`); calls can be planned for these anywhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

import normtriton
from normtriton.planning.plan import Device

from .oracle import EPS, call

if TYPE_CHECKING:
    from types import ModuleType

    from torch import Tensor

    from normtriton.explain import Explanation

#: What the branches are planned for: few multiprocessors, so that small tensors are many.
DEVICE, CLUSTERS = Device(2), Device(2, clusters=True)


class Branch(NamedTuple):
    """A norm of one shape in one layout.

    Attributes:
        norm: "layer", "rms", "batch", "instance" or "group"; "channels" is layer norm of them, "adaptive" is layer norm
            with parameters for each sample.
        shape: of the input.
        forward, backward: the strategies that it must reach, in float32.
        layout: one of `LAYOUTS`.
        groups: of a group norm.
        dims: normalized dimensions of layer and RMS norm.
    """

    norm: str
    shape: tuple[int, ...]
    forward: str
    backward: str
    layout: str = "contiguous"
    groups: int = 0
    dims: int = 1

    def features(self) -> tuple[int, ...]:
        """The parameters' shape."""
        if self.norm == "adaptive":
            return self.shape[0], self.shape[-1]
        return self.shape[-self.dims :] if self.norm in ("layer", "rms") else self.shape[1:2]

    def run(
        self,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float = EPS,
        functions: ModuleType = normtriton,
    ) -> Tensor:
        """The norm of x, without running statistics; ``functions`` has `torch.nn.functional`'s."""
        return call(functions, self.norm, self.features(), self.groups, x, weight, bias, eps=eps)

    def explain(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Explanation:
        """What the library says of it, on two multiprocessors."""
        names = {"channels": "layer_norm", "adaptive": "normalize"}
        function = getattr(normtriton, names.get(self.norm, f"{self.norm}_norm"))
        arguments: dict[str, tuple[Any, ...]] = {
            "channels": (self.features(), weight, bias),
            "adaptive": ("b t d",),
            "layer": (self.features(), weight, bias),
            "rms": (self.features(), weight),
            "batch": (None, None, weight, bias, True),
            "instance": (None, None, weight, bias),
            "group": (self.groups, weight, bias),
        }
        options: dict[str, dict[str, Any]] = {
            "channels": {"dim": 1},
            "adaptive": {"over": "d", "affine": "b d", "weight": weight, "bias": bias},
        }
        named = options.get(self.norm, {})
        given = arguments[self.norm]
        return normtriton.explain(function, x, *given, sms=DEVICE.sms, clusters=DEVICE.clusters, **named)


def lay_out(values: Tensor, layout: str) -> Tensor:
    """The same values in another memory layout."""
    if layout == "contiguous":
        return values
    if layout == "channels_last":
        formats = {4: torch.channels_last, 5: torch.channels_last_3d}
        if values.dim() in formats:
            return values.to(memory_format=formats[values.dim()])
        return values.transpose(1, -1).contiguous().transpose(1, -1)
    if layout == "transposed":
        return values.transpose(0, 1).contiguous().transpose(0, 1)
    if layout == "sliced":  # every dimension with a gap, so that no two axes merge
        room = values.new_full([2 * n + 1 for n in values.shape], float("nan"))
        view = room[tuple(slice(1, 1 + 2 * n, 2) for n in values.shape)]
        return view.copy_(values)
    assert layout == "expanded", layout
    return values[:1].expand(values.shape)


LAYOUTS = ("contiguous", "channels_last", "transposed", "sliced", "expanded")

BRANCHES = {
    "row": Branch("layer", (5, 2048), "resident", "resident"),
    "few-rows": Branch("layer", (3, 3000), "resident", "resident"),
    "few-rows-last": Branch("layer", (2, 3, 20, 30), "resident", "resident", "channels_last", dims=3),
    "rms-few-rows": Branch("rms", (2, 5001), "resident", "resident"),
    "row-tail": Branch("layer", (7, 1000), "resident", "resident"),
    "rows-share-a-tile": Branch("layer", (37, 60), "resident", "resident"),
    "row-prime": Branch("layer", (3, 1009), "resident", "resident"),
    "many-rows": Branch("layer", (300, 250), "resident", "resident"),
    "rms-many-rows": Branch("rms", (257, 128), "resident", "resident"),
    "row-of-one": Branch("layer", (5, 1), "resident", "resident"),
    "one-row": Branch("layer", (300,), "resident", "resident"),
    "row-of-one-program": Branch("layer", (3, 9001), "resident", "resident"),
    "row-too-long-for-gradients": Branch("layer", (3, 20000), "resident", "split"),
    "row-split": Branch("layer", (3, 60001), "split", "split"),
    "rows-of-two-dims": Branch("layer", (3, 4, 5, 6), "resident", "resident", dims=2),
    "rows-of-three-dims": Branch("layer", (2, 6, 5, 7), "resident", "resident", "channels_last", dims=3),
    "rms": Branch("rms", (7, 1000), "resident", "resident"),
    "rms-split": Branch("rms", (2, 60001), "split", "split"),
    "batch-2d": Branch("batch", (50, 24), "resident", "resident"),
    "batch-r1": Branch("batch", (6, 5, 7, 7), "resident", "resident"),
    "batch-1d": Branch("batch", (4, 3, 11), "resident", "resident"),
    "batch-3d": Branch("batch", (2, 3, 4, 5, 3), "resident", "resident"),
    "batch-3d-last": Branch("batch", (2, 3, 4, 5, 3), "resident", "resident", "channels_last"),
    "batch-one-sample": Branch("batch", (1, 5, 7, 7), "resident", "resident"),
    "batch-streamed": Branch("batch", (6, 5, 100, 100), "streamed", "streamed"),
    "batch-split": Branch("batch", (6, 3, 100, 100), "split", "split"),
    "batch-column": Branch("batch", (6, 8, 7, 7), "resident", "resident", "channels_last"),
    "batch-column-split": Branch("batch", (6, 40, 50, 50), "split", "split", "channels_last"),
    "batch-column-streamed": Branch("batch", (3, 132, 29, 29), "streamed", "streamed", "channels_last"),
    "instance": Branch("instance", (3, 8, 9, 9), "resident", "resident"),
    "instance-1d": Branch("instance", (3, 2, 17), "resident", "resident"),
    "instance-3d": Branch("instance", (2, 3, 4, 5, 3), "resident", "resident"),
    "instance-column": Branch("instance", (3, 8, 9, 9), "resident", "resident", "channels_last"),
    "instance-streamed": Branch("instance", (2, 2, 135, 135), "resident", "streamed"),
    "instance-split": Branch("instance", (1, 2, 260, 260), "split", "split"),
    "group": Branch("group", (2, 20, 9, 9), "resident", "resident", groups=4),
    "group-2d": Branch("group", (5, 12), "resident", "resident", groups=3),
    "group-of-one": Branch("group", (2, 6, 5, 5), "resident", "resident", groups=6),
    "one-group": Branch("group", (3, 6, 5, 5), "resident", "resident", groups=1),
    "group-3d": Branch("group", (2, 6, 3, 4, 5), "resident", "resident", groups=2),
    "group-sums-split": Branch("group", (1, 6, 80, 90), "resident", "split", groups=2),
    "group-split": Branch("group", (1, 20, 109, 109), "split", "split", groups=4),
    "group-cells": Branch("group", (2, 20, 9, 9), "split", "split", "channels_last", groups=4),
    "group-cells-shared": Branch("group", (1, 40, 49, 49), "split", "split", "channels_last", groups=4),
    "group-column-rows": Branch("group", (2, 32, 6, 6), "resident", "resident", "channels_last", groups=2),
    "channels": Branch("channels", (2, 40, 9, 11), "resident", "resident"),
    "adaptive": Branch("adaptive", (2, 70, 600), "resident", "resident"),
    "adaptive-too-long-for-gradients": Branch("adaptive", (1, 33, 17000), "resident", "split"),
    "instance-column-even": Branch("instance", (1, 8, 96, 96), "split", "split", "channels_last"),
}

#: Those of thread-block clusters, reached on `CLUSTERS`.
CLUSTERED = {
    "row": Branch("layer", (2, 65536), "clustered", "clustered"),
    "row-tail": Branch("layer", (3, 50001), "clustered", "clustered"),
    "rms": Branch("rms", (2, 60000), "clustered", "clustered"),
    "row-forward-only": Branch("layer", (2, 70000), "clustered", "split"),
    "batch": Branch("batch", (7, 2, 80, 80), "clustered", "clustered"),
    "instance": Branch("instance", (1, 2, 210, 210), "clustered", "clustered"),
    "group": Branch("group", (2, 12, 60, 64), "clustered", "clustered", groups=2),
    "group-last": Branch("group", (1, 32, 60, 50), "clustered", "clustered", "channels_last", groups=2),
    "batch-column": Branch("batch", (33, 64, 7, 9), "clustered", "clustered", "channels_last"),
    "batch-column-even": Branch("batch", (16, 24, 16, 16), "clustered", "clustered", "channels_last"),
    "batch-column-sector": Branch("batch", (5, 16, 40, 31), "clustered", "clustered", "channels_last"),
    "instance-column": Branch("instance", (2, 24, 50, 61), "clustered", "clustered", "channels_last"),
    "instance-column-one-short": Branch("instance", (1, 16, 63, 65), "clustered", "clustered", "channels_last"),
    "instance-few-columns": Branch("instance", (2, 6, 70, 61), "clustered", "clustered", "channels_last"),
    "group-cells": Branch("group", (2, 40, 30, 31), "clustered", "clustered", "channels_last", groups=4),
    "group-cells-blocks": Branch("group", (1, 60, 16, 16), "clustered", "clustered", "channels_last", groups=10),
    "group-cells-two-blocks": Branch("group", (1, 80, 21, 20), "clustered", "clustered", "channels_last", groups=4),
    "group-cells-many-rows": Branch("group", (1, 20, 100, 83), "clustered", "split", "channels_last", groups=2),
    "adaptive": Branch("adaptive", (2, 3, 50000), "clustered", "clustered"),
    "batch-too-large": Branch("batch", (9, 2, 180, 181), "split", "split"),
}

#: Every norm over every kind of axes, small: for layouts and dtypes.
SMALL = {
    "layer": Branch("layer", (4, 6, 5, 7), "", "", dims=1),
    "layer-3": Branch("layer", (3, 6, 5, 4), "", "", dims=3),
    "rms-2": Branch("rms", (3, 6, 5, 4), "", "", dims=2),
    "batch": Branch("batch", (4, 6, 5, 7), "", ""),
    "instance": Branch("instance", (4, 6, 5, 7), "", ""),
    "group": Branch("group", (4, 6, 5, 7), "", "", groups=2),
    "group-5d": Branch("group", (2, 6, 3, 4, 5), "", "", groups=2),
    "batch-5d": Branch("batch", (2, 3, 3, 4, 5), "", ""),
}

#: Shapes near those of models, small enough for a program that runs one instruction after another.
REAL = {
    "layer-300x4096": Branch("layer", (300, 4096), "", ""),
    "layer-300x768": Branch("layer", (300, 768), "", ""),
    "layer-64x4096": Branch("layer", (64, 4096), "", ""),
    "layer-2x65536": Branch("layer", (2, 65536), "", ""),
    "rms-300x4096": Branch("rms", (300, 4096), "", ""),
} | {
    f"{name} {layout}": branch._replace(layout=layout)
    for layout in ("contiguous", "channels_last")
    for name, branch in {
        "group32-1x320x64x64": Branch("group", (1, 320, 64, 64), "", "", groups=32),
        "batch-8x64x56x56": Branch("batch", (8, 64, 56, 56), "", ""),
        "batch-32x256x7x7": Branch("batch", (32, 256, 7, 7), "", ""),
        "instance-2x64x64x64": Branch("instance", (2, 64, 64, 64), "", ""),
    }.items()
}
