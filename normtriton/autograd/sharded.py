"""DTensors: every process normalizes its own part with the kernels, and tells the others of statistics where it must.

Taken when `torch.distributed.tensor` was imported and x is one of its tensors. Where x is sharded along a dimension
that the statistics are taken over, the processes of that dimension of the mesh share the groups, see
`normtriton.autograd.across`. x is gathered along further such dimensions, and along those that the parameters vary
along and the statistics do not. Parameters are sharded as x is, or replicated, and then their gradients are partial
sums over the processes. Running statistics are replicated.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ..planning.norms import name_axes
from ..runtime.processes import processes
from . import across, function

if TYPE_CHECKING:
    from torch import Tensor

    from ..planning.norms import NamedAxis
    from ..planning.schedule import Problem
    from .call import Call


def is_sharded(x: Any) -> bool:
    """Whether x is a DTensor. Imports nothing."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, module.DTensor)


class Placed(NamedTuple):
    """How the tensors of a call are placed, along each dimension of the mesh.

    Attributes:
        x: placements of x and y.
        parameters: placements of weight and bias.
        gradients: placements of their gradients.
        shared: the dimension of the mesh along which groups extend; None if every process has whole groups.
    """

    x: tuple[Any, ...]
    parameters: tuple[Any, ...]
    gradients: tuple[Any, ...]
    shared: int | None


def _keys(dims: list[list[NamedAxis]]) -> list[Any]:
    """The axis of each dimension; None of one that a pattern splits."""
    return [(dim[0].name, dim[0].ordinal) if len(dim) == 1 else None for dim in dims]


def place(problem: Problem, given: tuple[Any, ...], constant: bool) -> Placed:
    """How tensors are placed whose x is ``given`` so; ``constant`` says that there are no statistics to take."""
    from torch.distributed.tensor import Partial, Replicate, Shard  # noqa: PLC0415  a second, and seldom needed

    sizes = dict(problem.sizes)
    keys = _keys(name_axes(problem.norm.axes, problem.shape, sizes))
    own = _keys(name_axes(problem.norm.affine, problem.parameter_shape, sizes))
    shared, placements = None, []
    for i, placement in enumerate(given):
        key = keys[placement.dim] if type(placement) is Shard else None
        stays = key is not None and (key not in problem.affine or key in own)
        if stays and key in problem.over and not constant:
            stays, shared = shared is None, i if shared is None else shared
        elif stays and key in problem.affine:
            stays = False
        along = Shard(own.index(key)) if stays and key in own else None
        placements.append((placement, along or Replicate(), along or Partial()) if stays else (Replicate(),) * 3)
    x, parameters, gradients = zip(*placements, strict=True)
    return Placed(x, parameters, gradients, shared)


def normalize(x: Any, weight: Any, bias: Any, call: Call) -> Tensor:
    """`normtriton.autograd.ways.normalize` of DTensors; every tensor of the call is one.

    Raises:
        RuntimeError: some of them are plain tensors; PyTorch mixes them no more than this.
    """
    from torch.distributed.tensor import DTensor, Replicate  # noqa: PLC0415

    statistics: Any = call.statistics
    tensors = [x, weight, bias, *(() if statistics is None else statistics[:2])]
    if any(t is not None and not isinstance(t, DTensor) for t in tensors):
        raise RuntimeError(
            "got mixed torch.Tensor and DTensor: input, weight, bias and running statistics are DTensors if one of "
            "them is"
        )
    whole = (Replicate(),) * x.device_mesh.ndim
    placed = place(call.problem, x.placements, call.use_running)

    def local(t: Any, placements: Any, gradient: Any) -> Any:
        # redistributing to the same placements would add up the gradient's partial sums at once
        t = t if t.placements == placements else t.redistribute(placements=placements)
        return t.to_local(grad_placements=gradient)

    part = local(x, placed.x, placed.x)
    weight, bias = (p if p is None else local(p, placed.parameters, placed.gradients) for p in (weight, bias))
    if statistics is not None:
        mean, var = (local(t, whole, whole) for t in statistics[:2])
        batches = tuple(local(t, whole, whole) if isinstance(t, DTensor) else t for t in statistics[4])
        statistics = (mean, var, mean.stride(0), var.stride(0), batches, statistics[5])
    own = call._replace(problem=call.problem._replace(shape=tuple(part.shape)), statistics=statistics)
    among = None if placed.shared is None else processes("normalize", x.device_mesh.get_group(placed.shared))
    if among is None or among.size == 1:
        y = function.normalize(part, weight, bias, own)
    else:
        y = across.normalize("normalize", part, weight, bias, own, among)
    laid = torch.empty_like(torch.empty_strided(x.shape, x.stride(), device="meta"))
    return DTensor.from_local(y, x.device_mesh, placed.x, run_check=False, shape=x.shape, stride=laid.stride())
