"""Shapes and layouts, each named for the branch of the plan that it reaches on two multiprocessors."""

from typing import NamedTuple

import torch

import normtriton as nt


class Case(NamedTuple):
    norm: str
    shape: tuple[int, ...]
    forward: str  #: the strategy it must reach
    backward: str
    layout: str = "contiguous"
    groups: int = 0
    dims: int = 1  #: normalized dimensions of layer and RMS norm

    def features(self):
        """The parameters' shape."""
        return self.shape[-self.dims :] if self.norm in ("layer", "rms") else self.shape[1:2]

    def oracle(self):
        """Keyword arguments of `oracle.reference`."""
        ndim = len(self.shape)
        channel = (1, -1, *[1] * (ndim - 2))
        if self.norm in ("layer", "rms"):
            dims = tuple(range(ndim - self.dims, ndim))
            return {"dims": dims, "spread": self.features(), "centered": self.norm == "layer"}
        if self.norm == "batch":
            return {"dims": (0, *range(2, ndim)), "spread": channel}
        if self.norm == "instance":
            return {"dims": tuple(range(2, ndim)), "spread": channel}
        return {"dims": (2,), "spread": channel, "split": (self.shape[0], self.groups, -1)}

    def run(self, x, weight, bias, eps=1e-5):
        """The library's function."""
        if self.norm == "layer":
            return nt.layer_norm(x, self.features(), weight, bias, eps)
        if self.norm == "rms":
            return nt.rms_norm(x, self.features(), weight, eps)
        if self.norm == "batch":
            return nt.batch_norm(x, None, None, weight, bias, training=True, eps=eps)
        if self.norm == "instance":
            return nt.instance_norm(x, None, None, weight, bias, eps=eps)
        return nt.group_norm(x, self.groups, weight, bias, eps)

    def explain(self, x, weight, bias):
        """What the library says of it, on the multiprocessors that the interpreter counts on."""
        function = getattr(nt, f"{self.norm}_norm")
        if self.norm in ("layer", "rms"):
            args = (self.features(), weight, bias) if self.norm == "layer" else (self.features(), weight)
        elif self.norm == "batch":
            args = (None, None, weight, bias, True)
        elif self.norm == "instance":
            args = (None, None, weight, bias)
        else:
            args = (self.groups, weight, bias)
        return nt.explain(function, x, *args, sms=2, clusters=False)


def lay_out(values, layout):
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
        room = torch.full([2 * n + 1 for n in values.shape], float("nan"), dtype=values.dtype)
        view = room[tuple(slice(1, 1 + 2 * n, 2) for n in values.shape)]
        return view.copy_(values)
    assert layout == "expanded", layout
    return values[:1].expand(values.shape)


LAYOUTS = ("contiguous", "channels_last", "transposed", "sliced", "expanded")

CASES = {
    "row": Case("layer", (5, 2048), "resident", "resident"),
    "few-rows": Case("layer", (3, 3000), "resident", "resident"),
    "few-rows-last": Case("layer", (2, 3, 20, 30), "resident", "resident", "channels_last", dims=3),
    "rms-few-rows": Case("rms", (2, 5001), "resident", "resident"),
    "row-tail": Case("layer", (7, 1000), "resident", "resident"),
    "rows-share-a-tile": Case("layer", (37, 60), "resident", "resident"),
    "row-prime": Case("layer", (3, 1009), "resident", "resident"),
    "row-of-one": Case("layer", (5, 1), "resident", "resident"),
    "one-row": Case("layer", (300,), "resident", "resident"),
    "row-too-long-for-gradients": Case("layer", (3, 20000), "resident", "split"),
    "row-split": Case("layer", (3, 60001), "split", "split"),
    "rows-of-two-dims": Case("layer", (3, 4, 5, 6), "resident", "resident", dims=2),
    "rows-of-three-dims": Case("layer", (2, 6, 5, 7), "resident", "resident", "channels_last", dims=3),
    "rms": Case("rms", (7, 1000), "resident", "resident"),
    "rms-split": Case("rms", (2, 60001), "split", "split"),
    "batch-2d": Case("batch", (50, 24), "resident", "resident"),
    "batch-r1": Case("batch", (6, 5, 7, 7), "resident", "resident"),
    "batch-1d": Case("batch", (4, 3, 11), "resident", "resident"),
    "batch-3d": Case("batch", (2, 3, 4, 5, 3), "resident", "resident"),
    "batch-3d-last": Case("batch", (2, 3, 4, 5, 3), "resident", "resident", "channels_last"),
    "batch-one-sample": Case("batch", (1, 5, 7, 7), "resident", "resident"),
    "batch-streamed": Case("batch", (6, 5, 100, 100), "streamed", "streamed"),
    "batch-split": Case("batch", (6, 3, 100, 100), "split", "split"),
    "batch-column": Case("batch", (6, 8, 7, 7), "resident", "resident", "channels_last"),
    "batch-column-split": Case("batch", (6, 40, 50, 50), "split", "split", "channels_last"),
    "batch-column-streamed": Case("batch", (3, 132, 29, 29), "streamed", "streamed", "channels_last"),
    "instance": Case("instance", (3, 8, 9, 9), "resident", "resident"),
    "instance-1d": Case("instance", (3, 2, 17), "resident", "resident"),
    "instance-3d": Case("instance", (2, 3, 4, 5, 3), "resident", "resident"),
    "instance-column": Case("instance", (3, 8, 9, 9), "resident", "resident", "channels_last"),
    "instance-streamed": Case("instance", (2, 2, 135, 135), "resident", "streamed"),
    "instance-split": Case("instance", (1, 2, 260, 260), "split", "split"),
    "group": Case("group", (2, 20, 9, 9), "resident", "resident", groups=4),
    "group-2d": Case("group", (5, 12), "resident", "resident", groups=3),
    "group-of-one": Case("group", (2, 6, 5, 5), "resident", "resident", groups=6),
    "one-group": Case("group", (3, 6, 5, 5), "resident", "resident", groups=1),
    "group-3d": Case("group", (2, 6, 3, 4, 5), "resident", "resident", groups=2),
    "group-sums-split": Case("group", (1, 6, 80, 90), "resident", "split", groups=2),
    "group-split": Case("group", (1, 20, 109, 109), "split", "split", groups=4),
    "group-cells": Case("group", (2, 20, 9, 9), "split", "split", "channels_last", groups=4),
    "group-cells-shared": Case("group", (1, 40, 49, 49), "split", "split", "channels_last", groups=4),
    "group-column-rows": Case("group", (2, 32, 6, 6), "resident", "resident", "channels_last", groups=2),
}

#: Each module's constructor arguments and an input shape.
BUILT = {
    "BatchNorm1d": ((6,), (5, 6, 4)),
    "BatchNorm2d": ((6,), (5, 6, 4, 3)),
    "BatchNorm3d": ((6,), (5, 6, 4, 3, 2)),
    "InstanceNorm1d": ((6,), (5, 6, 4)),
    "InstanceNorm2d": ((6,), (5, 6, 4, 3)),
    "InstanceNorm3d": ((6,), (5, 6, 4, 3, 2)),
    "LayerNorm": (((4, 3),), (5, 6, 4, 3)),
    "GroupNorm": ((3, 6), (5, 6, 4, 3)),
    "RMSNorm": ((3,), (5, 6, 4, 3)),
}
