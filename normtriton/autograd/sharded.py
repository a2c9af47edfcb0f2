"""DTensors: every process normalizes its own part with the kernels, where parts are made of whole groups.

Taken when `torch.distributed.tensor` was imported and x is one of its tensors. Parameters and running statistics are
replicated first, their gradients are partial sums over the processes, and x is gathered along dimensions that the
statistics or the parameters need whole: the placements that PyTorch's own layer norm has.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import torch

from ..planning.norms import name_axes
from . import function

if TYPE_CHECKING:
    from torch import Tensor

    from ..planning.schedule import Problem


def is_sharded(x: Any) -> bool:
    """Whether x is a DTensor. Imports nothing."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, module.DTensor)


def batch_dimensions(problem: Problem) -> set[int]:
    """The dimensions that neither the statistics are taken over nor the parameters vary along, nor a pattern splits."""
    needed = {*problem.over, *problem.affine}
    dims = name_axes(problem.norm.axes, problem.shape, dict(problem.sizes))
    return {i for i, dim in enumerate(dims) if len(dim) == 1 and (dim[0].name, dim[0].ordinal) not in needed}


def normalize(x: Any, weight: Any, bias: Any, call: Any) -> Tensor:
    """`normtriton.autograd.ways.normalize` of DTensors; every tensor of the call is one.

    Raises:
        RuntimeError: some of them are plain tensors; PyTorch mixes them no more than this.
    """
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard  # noqa: PLC0415  a second, and seldom needed

    statistics = call.statistics
    tensors = [x, weight, bias, *(() if statistics is None else statistics[:2])]
    if any(t is not None and not isinstance(t, DTensor) for t in tensors):
        raise RuntimeError(
            "got mixed torch.Tensor and DTensor: input, weight, bias and running statistics are DTensors if one of "
            "them is"
        )
    whole = (Replicate(),) * x.device_mesh.ndim
    free = batch_dimensions(call.problem)
    placements = tuple(p if type(p) is Shard and p.dim in free else Replicate() for p in x.placements)
    sums = [Partial() if isinstance(p, Shard) else Replicate() for p in placements]

    def local(t: Any, placements: Any, gradient: Any) -> Any:
        # redistributing to the same placements would add up the gradient's partial sums at once
        t = t if t.placements == placements else t.redistribute(placements=placements)
        return t.to_local(grad_placements=gradient)

    part = local(x, placements, placements)
    weight, bias = (p if p is None else local(p, whole, sums) for p in (weight, bias))
    if statistics is not None:
        mean, var = (local(t, whole, whole) for t in statistics[:2])
        batches = tuple(local(t, whole, whole) if isinstance(t, DTensor) else t for t in statistics[4])
        statistics = (mean, var, mean.stride(0), var.stride(0), batches, statistics[5])
    problem = call.problem._replace(shape=tuple(part.shape))
    y = function.normalize(part, weight, bias, call._replace(problem=problem, statistics=statistics))
    laid = torch.empty_like(torch.empty_strided(x.shape, x.stride(), device="meta"))
    return DTensor.from_local(y, x.device_mesh, placements, run_check=False, shape=x.shape, stride=laid.stride())
