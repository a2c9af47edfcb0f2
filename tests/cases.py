"""The branches of the plan, and what the textbook's oracle needs to know of each."""

from normtriton.perf.cases.branches import BRANCHES as CASES
from normtriton.perf.cases.branches import CLUSTERED, LAYOUTS, SMALL, lay_out
from normtriton.perf.cases.branches import Branch as Case

__all__ = ["BUILT", "CASES", "CLUSTERED", "LAYOUTS", "SMALL", "Case", "lay_out", "textbook"]


def textbook(case):
    """Keyword arguments of `oracle.reference`."""
    ndim = len(case.shape)
    channel = (1, -1, *[1] * (ndim - 2))
    if case.norm in ("layer", "rms"):
        dims = tuple(range(ndim - case.dims, ndim))
        return {"dims": dims, "spread": case.features(), "centered": case.norm == "layer"}
    if case.norm == "channels":
        return {"dims": (1,), "spread": channel}
    if case.norm == "adaptive":
        return {"dims": (2,), "spread": (case.shape[0], 1, -1)}
    if case.norm == "batch":
        return {"dims": (0, *range(2, ndim)), "spread": channel}
    if case.norm == "instance":
        return {"dims": tuple(range(2, ndim)), "spread": channel}
    return {"dims": (2,), "spread": channel, "split": (case.shape[0], case.groups, -1)}


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
