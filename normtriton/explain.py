"""What the library would do for a call, and why, in words."""

from __future__ import annotations

import inspect
from contextlib import suppress
from functools import partial
from math import prod
from types import FunctionType, MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from . import distributed, functional, named
from .autograd.function import has_kernels
from .autograd.surrounded import expanded
from .checks import Refused
from .modulation import along, modulated
from .planning.plan import Device
from .planning.schedule import Problem, backward_schedule, counted, forward_schedule, gathered_moments, gathered_sums
from .planning.stages import ALONE, SPREAD
from .runtime import clusters as switch
from .runtime import compiling, devices
from .runtime.processes import wire_bytes
from .runtime.switch import whole_number, yes_or_no
from .surroundings import Around, surroundings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from .autograd.call import Call
    from .planning.schedule import Gathered, Launch, Schedule
    from .planning.stages import Stages

#: Multiprocessors that calls are planned for which no GPU runs.
H100_SMS = 132
#: The names of what surrounds a norm.
_SURROUNDING = (*Around.__annotations__, "lengths")
NOTHING: Mapping[str, Tensor] = MappingProxyType({})
_CHECKS: dict[str, Callable[..., Call]] = {
    "batch_norm": functional.batch_norm_call,
    "instance_norm": functional.instance_norm_call,
    "layer_norm": functional.layer_norm_call,
    "group_norm": functional.group_norm_call,
    "rms_norm": functional.rms_norm_call,
}
_FUNCTIONS: dict[str, Callable[..., Tensor]] = {name: getattr(functional, name) for name in _CHECKS}
_FUNCTIONS["normalize"] = named.normalize


class Direction(NamedTuple):
    """One direction of a call.

    Attributes:
        schedule: the launches.
        moved: bytes that all launches read and write, every access counted.
        compulsory: bytes with every distinct input read once and every result written once.
        gathered: the launches that take what all processes tell, if groups extend over processes.
        wire: bytes that this process then receives of the others.
    """

    schedule: Schedule
    moved: int
    compulsory: int
    gathered: Gathered | None = None
    wire: int = 0

    @property
    def launches(self) -> tuple[Launch, ...]:
        """All launches, in order."""
        steps = self.schedule.launches
        if self.gathered is None:
            return steps
        before = [step for step in steps if step is not self.schedule.apply]
        after = [step for step in (self.gathered.merge, self.gathered.average, self.schedule.apply) if step]
        return (*before, *after)


class Explanation(NamedTuple):
    """What a call does; ``str()`` says it in words.

    Attributes:
        name: the function called.
        route: "triton", "interpreter" or "torch".
        problem: the norm and the shape.
        forward, backward: either direction; the schedules are those a GPU would run, whatever the route.
        device: what they are planned for.
        around: the names of what surrounds the norm and is not in ``problem``.
        processes: how many processes its groups extend over.
    """

    name: str
    route: str
    problem: Problem
    forward: Direction
    backward: Direction
    device: Device
    around: tuple[str, ...] = ()
    processes: int = 1

    def __str__(self) -> str:
        without = _pytorchs(self.name if self.processes == 1 else "")
        routes = {
            "triton": "the Triton kernels, on the GPU",
            "interpreter": "the Triton kernels, in Triton's interpreter on the CPU",
            "torch": f"{without}, since the input is not on a GPU; a GPU would run what follows",
        }
        norm = self.problem.norm
        table = self.device.tuned
        predicted = "predicted time, " if table and table.predicted else ""
        whose = " of an H100" if self.route != "triton" and self.device.sms == H100_SMS else ""
        clusters = f"{'with' if self.device.clusters else 'without'} thread-block clusters"
        tuned = f", tuned by {predicted}{table.source}" if table else ""
        lines = [
            (
                f"{self.name} of {self.problem.shape}, axes {norm.axes!r}: statistics over {norm.over!r}, "
                f"{f'parameters along {norm.affine!r}' if norm.affine else 'no parameters'}"
            ),
            f"runs: {routes[self.route]}",
            f"planned for {self.device.sms} multiprocessors{whose}, {clusters}{tuned}",
        ]
        stages = self.problem.stages
        settings = _settings(stages)
        if self.around or settings:
            where = "in the same pass" if self.processes == 1 else "around it, by PyTorch's operations"
            lines.insert(1, f"{where}: {', '.join((*self.around, *settings))}")
        for name, direction in (("forward", self.forward), ("backward", self.backward)):
            schedule, launches = direction.schedule, direction.launches
            lines.append(
                f"{name}: {schedule.strategy}, {counted(len(launches), 'launch', 'es')}, "
                f"{direction.moved:,} bytes moved, "
                f"{direction.moved / direction.compulsory:.2f} x the compulsory {direction.compulsory:,}"
            )
            lines.append(f"  why: {schedule.reason}")
            lines += [f"  passed over: {tile}" for tile in schedule.passed]
            if schedule.tuning:
                lines.append(f"  tuned{' by predicted time' if predicted else ''}: {schedule.tuning}")
            if direction.gathered:
                others = self.processes - 1
                lines.append(
                    f"  on the wire: {direction.wire // others:,} bytes from each of "
                    f"{counted(others, 'other process', 'es')}, in one collective"
                )
            lines += [f"  {_describe(step)}" for step in launches]
            if stages.quantize:
                if "q_scale" not in self.around and not schedule.holds_groups:
                    lines.append("  no program holds a group: y is stored, and PyTorch's operations quantize it")
                lines.append("backward: none, what is quantized has no gradient")
                break
        return "\n".join(lines)


def _settings(stages: Stages) -> list[str]:
    """The settings that differ from a plain norm's."""
    settings = {name: value for name, value in stages._asdict().items() if name != "masked"}  # the mask is named
    return [f"{name} {getattr(v, 'name', v)}" for name, v in settings.items() if v != getattr(ALONE, name)]


def _pytorchs(name: str) -> str:
    """What computes a call where there are no kernels."""
    return f"torch.nn.functional.{name}" if name in _CHECKS else "PyTorch's own operations"


def _describe(step: Launch) -> str:
    group, plan = step.group, step.plan
    kept = " x ".join(str(n) for n in (*reversed(group.outer), group.kept))
    reduced = " x ".join(str(n) for n in (*reversed(group.walk), group.r1, group.r2))
    axis = {"kept": "along the kept axis", "r2": "along the reduced axis", "": "one by one"}[plan.vector_axis]
    stage = f" ({plan.stage})" if step.kernel in ("forward", "backward") else ""
    cells = f", {group.cells} of them a group" if group.cells > 1 else ""
    shared = f" in each of {plan.ctas} thread blocks" if plan.ctas > 1 else ""
    merges = f"; merges {step.into[0].reduced} parts of each of its groups" if step.into else ""
    gradients = "; sums the parameters' gradients besides" if step.also else ""
    ahead = f", {counted(plan.depth - 1, 'tile')} ahead" if plan.depth > 1 else ""
    room = f", {step.programs} a multiprocessor" if plan.accumulate else ""
    return (
        f"{step.kernel}{stage}: {kept} kept{cells}, {reduced} reduced; tile {plan.block_kept} x {plan.block_r1} x "
        f"{plan.block_r2}, {counted(step.num_warps, 'warp')}{shared}{ahead}, "
        f"grid {step.grid[0]} x {step.grid[1]}{room}; {plan.vector} elements an access {axis}{merges}{gradients}"
    )


def _merged_parts(apply: Launch | None) -> int:
    """How many parts all programs of *apply* read to merge their own groups'."""
    if apply is None or apply.into is None:
        return 0
    group, plan = apply.into
    return prod(apply.grid) * plan.block_kept * group.reduced


def forward_direction(
    call: Call,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    device: Device,
    y: Tensor | None = None,
    around: Mapping[str, Tensor] = NOTHING,
    processes: int = 1,
) -> Direction:
    """The forward pass of a checked call, with the tensors ``around`` it; of groups that extend over ``processes``."""
    y = torch.empty_like(x, device="meta") if y is None else y
    beside = around_forward(x, around)
    mode = "" if call.statistics is None else "use" if call.use_running else "update"
    strides = [None if p is None else p.stride() for p in (weight, bias)]
    dtypes, layouts = dtypes_of(x, weight), layouts_of(x, beside)
    apart = processes > 1
    schedule = forward_schedule(
        call.problem, x.stride(), y.stride(), *strides, dtypes, device, "" if apart else mode, layouts, apart
    )
    parameters = sum(p.numel() * p.itemsize for p in (weight, bias) if p is not None)
    if call.statistics is not None:
        parameters += sum(t.numel() * t.itemsize for t in call.statistics[:2]) * (1 if call.use_running else 2)
    size = statistics_size(x)
    stats = 0 if call.use_running else schedule.num_groups * size * (2 if call.problem.norm.centered else 1)
    result = x.itemsize if not call.problem.stages.quantize else 1
    compulsory = x.numel() * (x.itemsize + result) + parameters + stats + whole(beside)
    walked = {"u": beside.get("total", x)}
    if call.problem.stages.gate_first and "total" not in beside:
        walked["gate"] = around["gate"]
    again = whole(walked) if schedule.strategy in ("streamed", "split") else 0
    moved = compulsory + again + 4 * (schedule.parts + _merged_parts(schedule.apply)) * size
    groups = schedule.num_groups * size
    if apart:
        gathered = gathered_moments(call.problem, processes, bool(mode))
        if schedule.merge:
            moved += 4 * (schedule.parts * size + groups)
        # statistics and correction come back; what one element's share of a group is waits for the backward pass
        moved += gathered.planes * processes * groups + stats + groups * 3
        moved += 4 * groups if gathered.average else 0
        wire = wire_bytes(gathered.planes, schedule.num_groups, size, processes)
        return Direction(schedule, moved, compulsory, gathered, wire)
    if schedule.merge:  # statistics and correction come back
        moved += 4 * schedule.parts * size + stats + groups * 2
    if schedule.parameters:
        moved += 4 * groups
    return Direction(schedule, moved, compulsory)


def whole(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of tensors."""
    return sum(t.numel() * t.itemsize for t in tensors.values())


def around_forward(x: Tensor, around: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that a forward pass moves besides x and y."""
    beside = dict(around)
    if "residual" in around:
        dtype = torch.promote_types(x.dtype, around["residual"].dtype)
        beside["total"] = torch.empty_like(x, dtype=dtype, device="meta")
    return beside


def layouts_of(x: Tensor, beside: Mapping[str, Tensor]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """What the planner is told of the tensors around x."""
    return tuple((name, t.stride()) for name, t in expanded(x, beside).items())


def computes_again(call: Call, around: Mapping[str, Tensor]) -> bool:
    """Whether a backward pass computes again what an activation or a gate was applied to."""
    return call.problem.stages.computes_again("gate" in around)


def around_backward(call: Call, x: Tensor, around: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that a backward pass moves besides x, dy and dx, if every gradient is wanted."""
    beside: dict[str, Tensor] = {}
    first = call.problem.stages.gate_first
    for name in ("skip", "gate") if computes_again(call, around) else ("gate",) if first else ():
        if name in around:
            beside[name] = around[name]
            beside[f"d{name}"] = torch.empty_like(x, dtype=around[name].dtype, device="meta")
    multiplies = first or "x_scale" in around
    if "residual" in around:
        beside["dtotal"] = torch.empty_like(x, device="meta")
        if multiplies:
            beside["before"] = x
    if "x_scale" in around or (first and "residual" in around):
        beside["dresidual"] = torch.empty_like(x, device="meta")
    return beside | {name: around[name] for name in SPREAD if name in around}


def dtypes_of(x: Tensor, weight: Tensor | None) -> tuple[torch.dtype, torch.dtype | None]:
    """What the planner is told of dtypes."""
    return x.dtype, None if weight is None else weight.dtype


def statistics_size(x: Tensor) -> int:
    """Bytes of one number of the statistics."""
    return compiling.statistics_dtype(x).itemsize


def backward_direction(
    call: Call,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    device: Device,
    dy: Tensor | None = None,
    around: Mapping[str, Tensor] = NOTHING,
    processes: int = 1,
) -> Direction:
    """The backward pass of a checked call, for a gradient in the memory format of the result."""
    x = around_forward(x, around).get("total", x)  # what was normalized
    dx = torch.empty_like(x, device="meta")
    dy = dx if dy is None else dy
    beside = around_backward(call, x, around)
    parameters = [p for p in (weight, bias) if p is not None]
    schedule = backward_schedule(
        call.problem,
        x.stride(),
        dy.stride(),
        dx.stride(),
        None if weight is None else weight.stride(),
        dtypes_of(x, weight),
        device,
        bool(parameters),
        True,
        call.use_running,
        layouts_of(x, beside),
        bias.stride() if bias is not None and computes_again(call, around) else None,
        processes > 1,
    )
    size = statistics_size(x)
    gradients = sum(p.numel() * p.itemsize for p in parameters)
    stats = schedule.num_groups * size * (2 if call.problem.norm.centered else 1)
    tensor = x.numel() * x.itemsize
    weights = 0 if weight is None else weight.numel() * weight.itemsize
    compulsory = 3 * tensor + gradients + weights + stats + whole(beside)
    twice = 2 * tensor + whole({name: t for name, t in beside.items() if name in ("skip", "gate")})
    again = twice if schedule.strategy in ("streamed", "split") else 0
    sums = 2 if schedule.sums_dy else 1  # that dx needs of each group
    moved = compulsory + again + 2 * len(parameters) * schedule.rows * size
    moved += sums * (schedule.parts + _merged_parts(schedule.apply)) * size
    if schedule.apply:
        moved += stats
    if schedule.merge:
        moved += sums * (schedule.parts + 2 * schedule.num_groups) * size
    if not schedule.rows and (schedule.parameters or any(step.also for step in schedule.launches[1:])):
        moved += sums * schedule.parts * size  # summed once more, for the parameters
    if schedule.columns or schedule.main.also:
        moved += 2 * tensor + stats
    if "x_scale" in around:  # its gradient takes a walk of its own
        moved += 2 * tensor + (whole({"gate": around["gate"]}) if call.problem.stages.gate_first else 0)
    if processes > 1:
        gathered = gathered_sums(call.problem, processes)
        moved += (gathered.planes * (processes + 1) + 1) * schedule.num_groups * size
        wire = wire_bytes(gathered.planes, schedule.num_groups, size, processes)
        return Direction(schedule, moved, compulsory, gathered, wire)
    return Direction(schedule, moved, compulsory)


def _not_ours(function: Any) -> str:
    """What `explain` says of a function that it does not know, with the one that it may be."""
    if isinstance(function, torch.nn.Module):
        name = type(function).__name__
        said, how = f"the module {name}", ", with the module's input and parameters"
    else:
        name = getattr(function, "__name__", repr(function))
        named = isinstance(function, FunctionType | type)
        said, how = f"{function.__module__}.{function.__qualname__}" if named else repr(function), ""
    near = next((norm for norm in _FUNCTIONS if norm.replace("_", "") in name.replace("_", "").lower()), None)
    hint = f"; this may be explain(normtriton.{near}, ...){how}" if near else ""
    return f"explain() takes {', '.join(_FUNCTIONS)} of normtriton, not {said}{hint}"


def _checked(name: str, x: Any, given: dict[str, Any], part: bool) -> tuple[Call | None, Tensor | None, Tensor | None]:
    """A call, or a ``part`` of one, and its parameters as the kernels are handed them; no call, if they do not."""
    weight, bias = given.get("weight"), given.get("bias")
    if not isinstance(x, torch.Tensor):
        return None, weight, bias
    if name == "normalize" or given.get("dim") is not None:
        eps = functional.own_eps(x) if given["eps"] is None else given["eps"]
        call, weight, bias, fits = named.prepare(name, x, _words(name, x, given), weight, bias, eps)
        return call if fits else None, weight, bias
    given = {key: value for key, value in given.items() if key != "dim"}
    if part and name in ("batch_norm", "instance_norm", "group_norm"):
        given["part"] = True
    with suppress(Refused):
        call = _CHECKS[name](x, **given)
        if name in ("batch_norm", "instance_norm"):
            weight, bias = (p if p is None or p.dim() == 1 else p.reshape(-1) for p in (weight, bias))
        return call, weight, bias
    return None, weight, bias


def _words(name: str, x: Tensor, given: dict[str, Any]) -> named.Words:
    """A call by named axes."""
    if name == "normalize":
        sizes = tuple(given["sizes"].items())
        return named.Words(given["axes"], given["over"], given["affine"], given["center"], sizes)
    return named.of_dimensions(name, x, given["dim"], given["normalized_shape"], name == "layer_norm")


def explain(
    function: Callable[..., Tensor], *args: Any, sms: int | None = None, clusters: bool | None = None, **kwargs: Any
) -> Explanation:
    """Say what a call would do: grouping, strategy and why, tiles, warps, launches, bytes moved. Runs nothing.

    Args:
        function: one of the library's functions, as `normtriton.layer_norm`.
        args, kwargs: its arguments; tensors may be on the meta device.
        sms: multiprocessors to plan for; by default those of the input's GPU, without one 132, an H100's.
        clusters: whether to plan with thread-block clusters; by default as on the input's GPU, without one unless
            `normtriton.clusters` has them off.
    Raises:
        TypeError: function is not one of the library's, or sms or clusters of another type.
        ValueError: sms is less than 1; or there is nothing to explain, of an empty input or of what PyTorch's own
            function takes.
        What the function itself raises for these arguments.

    Bytes are counted from the plan: whole tensors once a walk, partial results written and read once; a cache is not
    assumed, so a second walk that hits the L2 is counted in full.
    """
    name = getattr(function, "__name__", "")
    if name not in _FUNCTIONS or _FUNCTIONS[name] is not function:
        raise TypeError(_not_ours(function))
    sms = None if sms is None else whole_number(sms, "explain(): argument 'sms'")
    clusters = None if clusters is None else yes_or_no(clusters, "explain(): argument 'clusters'")
    try:
        bound = inspect.signature(function).bind(*args, **kwargs)
    except TypeError:
        function(*args, **kwargs)  # raises in its own words
        raise
    bound.apply_defaults()
    arguments = bound.arguments
    x = arguments.pop("input")
    around = {key: arguments.pop(key) for key in _SURROUNDING if key in arguments} | arguments.pop("around", {})
    around = {k: v for k, v in around.items() if k not in _SURROUNDING or isinstance(v, torch.Tensor) or v}
    group = arguments.pop("process_group")
    among = None if group is None else distributed.shared(name, group)
    call, weight, bias = _checked(name, x, arguments, among is not None)
    processes = among.size if among and call and not call.use_running else 1
    tensors: dict[str, Tensor] = {}
    modulation: dict[str, Tensor] = {}
    stages = ALONE
    if call is not None and around:
        if name == "normalize":
            around = named.along_axes(name, x, _words(name, x, arguments), around)
        tensors, modulation, stages = surroundings(name, x, weight, around, partial(along, call.problem))
        if processes == 1:
            call = call._replace(problem=call.problem._replace(stages=stages))
            try:
                call, weight, bias = modulated(call, weight, bias, modulation)
            except Refused:
                raise ValueError(f"nothing to explain: {_pytorchs(name)} and others take this call") from None
    if call is None:
        statistics = {
            k: t.clone() for k, t in arguments.items() if k.startswith("running") and isinstance(t, torch.Tensor)
        }
        function(x, **{**arguments, **statistics, **around})  # raises, or PyTorch's function takes it
        raise ValueError(f"nothing to explain: {_pytorchs(name)} takes this call")
    route = "torch" if not has_kernels(x) else "triton" if x.is_cuda else "interpreter"
    device = devices.of(x) if x.is_cuda else Device(H100_SMS, switch.compiles() and switch.mode() != "off")
    if sms is not None and sms != device.sms:
        device = Device(sms, device.clusters)  # another device, for which no table was made
    if clusters is not None:
        device = device._replace(clusters=clusters)
    if x.numel() == 0:
        raise ValueError(f"nothing to explain: input of shape {tuple(x.shape)} is empty and launches nothing")
    beside = tensors if processes == 1 else NOTHING
    return Explanation(
        name,
        route,
        call.problem,
        forward_direction(call, x, weight, bias, device, around=beside, processes=processes),
        backward_direction(call, x, weight, bias, device, around=beside, processes=processes),
        device,
        (*tensors, *modulation, *(() if processes == 1 else _settings(stages))),
        processes,
    )
