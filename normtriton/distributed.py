"""Norms whose groups extend over processes: what their functions do with ``process_group``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.compiler import is_compiling

from .autograd import across, across_operators
from .autograd.surrounded import decomposed
from .runtime.processes import processes, traced
from .surroundings import check_averages, surroundings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from .autograd.call import Call
    from .runtime.processes import Named, Processes


def shared(function: str, process_group: Any) -> Processes | Named | None:
    """The processes of a ``process_group``; None if there is one alone.

    Raises:
        TypeError, ValueError: as `normtriton.runtime.processes.processes`.
    """
    among = (traced if is_compiling() else processes)(function, process_group)
    return among if among.size > 1 else None


def run(
    function: str,
    among: Processes | Named,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    around: Mapping[str, Any] | None,
    checked: Callable[..., tuple[Call, Tensor | None, Tensor | None]],
    spread: Callable[[Tensor], Tensor],
) -> Tensor:
    """Normalize this process's part. What surrounds the norm is computed by PyTorch's operations.

    Args:
        function: its name.
        among: who shares the groups.
        x, weight, bias, around: of the norm.
        checked: checks a call of (u, weight, bias): its `Call`, and its parameters as `across` takes them.
        spread: makes a parameter broadcast against x.

    Raises:
        NotImplementedError: the result is to be quantized; or what `across` raises.
    """

    def plain(u: Tensor, w: Tensor | None, b: Tensor | None) -> Tensor:
        call, w, b = checked(u, w, b)
        normalize: Any = across_operators.normalize if is_compiling() else across.normalize
        return normalize(function, u, w, b, call, among)  # type: ignore[no-any-return]

    if not around:
        return plain(x, weight, bias)
    given = surroundings(function, x, weight, around, spread)
    if given.stages.quantize:
        raise NotImplementedError(f"{function}(): process_group= and quantize: quantize what it returns")
    mask = given.tensors.get("mask")

    def masked(u: Tensor, w: Tensor | None, b: Tensor | None) -> Tensor:
        call, w, b = checked(u, w, b)
        check_averages(function, call, given.stages)
        return across.masked(function, u, w, b, call, among, mask)  # type: ignore[arg-type]  # while compiling it raises

    everything = given.tensors | given.modulation
    return decomposed(plain if mask is None else masked, spread, x, weight, bias, everything, given.stages)  # type: ignore[return-value]  # two with a residual
