"""The launches of a call, collected instead of made: what every instrument that needs no GPU begins with."""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003  of a tuple's fields
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from normtriton.autograd.surrounded import NAMES, Wanted, run_backward, run_forward
from normtriton.explain import NOTHING, backward_direction, computes_again, forward_direction
from normtriton.modulation import NAMES as MODULATION
from normtriton.runtime import apart, devices, launch

from ..cases.shapes import make
from ..cases.targets import H100

if TYPE_CHECKING:
    from collections.abc import Iterator

    from normtriton.autograd.call import Call
    from normtriton.planning.plan import Device
    from normtriton.planning.schedule import Launch

    from ..cases.shapes import Case


class Recorded(NamedTuple):
    """A launch with the arguments it was made with."""

    launch: Launch
    args: tuple[Any, ...]


@contextmanager
def recording(device: Device = H100) -> Iterator[list[Recorded]]:
    """Collect launches instead of making them, planned for a device. Not for use among threads."""
    launches: list[Recorded] = []
    before = launch._run, launch._run_clustered, devices.of

    def record(step: Launch, _kinds: object, *args: Any) -> bool:
        launches.append(Recorded(step, args))
        return True

    launch._run = launch._run_clustered = record  # type: ignore[assignment]  # mypy would have the very functions
    devices.of = lambda x: device  # noqa: ARG005  called by position
    try:
        yield launches
    finally:
        launch._run, launch._run_clustered, devices.of = before


def launches_of(
    call: Call,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    device: Device = H100,
    around: Mapping[str, torch.Tensor] = NOTHING,
) -> dict[str, list[Recorded]]:
    """The launches of a checked call, {"forward": ..., "backward": ...}, with the tensors ``around`` it.

    Tensors may be on the meta device.
    """
    given = dict.fromkeys(NAMES) | dict(around)
    with recording(device) as forward:
        _y, total, mean, rstd, count = run_forward(call, x, weight, bias, given)
    stages, again = call.problem.stages, computes_again(call, around)
    multiplies = stages.gate_first or "x_scale" in around
    if call.use_running:
        assert call.statistics is not None
        mean, rstd, *_ = call.statistics
    skip = given["skip"] if again else None
    before = x if multiplies and "residual" in around else None
    kept = (total, weight, bias if again else None, mean, rstd, skip, given["gate"], before)
    beside = (given["x_scale"], given["mask"], count)
    dtypes = {name: None if t is None else t.dtype for name, t in {**given, "weight": weight, "bias": bias}.items()}
    first = stages.gate_first
    wants = Wanted(
        True,
        dtypes["weight"],
        dtypes["bias"],
        dtypes["skip"] if again else None,
        given["gate"] is not None,
        "x_scale" in around or (first and "residual" in around),
        dtypes["x_scale"],
    )
    with recording(device) as backward:
        dy = torch.empty_like(total)
        run_backward(call, dy, torch.empty_like(total) if "residual" in around else None, (*kept, *beside), wants)
    return {"forward": forward, "backward": backward}


def launches_across(
    call: Call, x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, processes: int, device: Device
) -> dict[str, list[Recorded]]:
    """`launches_of` a part of a call whose groups extend over so many processes. Nothing is told."""

    def exchange(told: torch.Tensor) -> torch.Tensor:
        return told.new_empty((processes, *told.shape))

    with recording(device) as forward:
        told, apply = apart.forward(call.problem, x, weight, bias, call.eps, call.dtype)
        _y, found = apply(exchange(told), call.statistics)
    dtypes = [None if p is None else p.dtype for p in (weight, bias)]
    with recording(device) as backward:
        apart.backward(call.problem, torch.empty_like(x), x, weight, found, (dtypes[0], dtypes[1]), exchange)
    return {"forward": forward, "backward": backward}


class Planned(NamedTuple):
    """A case as a device would run it: the checked call and its tensors, and by direction the strategy and launches.

    The tensors that surround it come last.
    """

    call: Call
    x: torch.Tensor
    weight: torch.Tensor | None
    bias: torch.Tensor | None
    strategies: dict[str, str]
    launches: dict[str, list[Recorded]]
    around: Mapping[str, torch.Tensor] = NOTHING


def planned(
    case: Case,
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    device: Device,
    parameters: torch.dtype | None = None,
) -> Planned:
    """Plan a case for a device, forward and backward; with parameters of x's dtype, or another."""
    made = call, x, weight, bias = make(case, dtype, memory_format, parameters=parameters)
    around = {name: t for name, t in case.tensors(x).items() if name not in MODULATION}  # they are weight and bias
    strategies = {
        "forward": forward_direction(*made, device, around=around).schedule.strategy,
        "backward": backward_direction(*made, device, around=around).schedule.strategy,
    }
    return Planned(call, x, weight, bias, strategies, launches_of(*made, device, around), around)
