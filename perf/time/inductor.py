"""torch.compile's kernels without a GPU: Inductor generates code for a CUDA device on a build of PyTorch for CPUs.

Three steps make a norm a list of launches.

1. Forward and backward pass are traced into one graph, on fake tensors that say they are on a GPU. Autograd needs a
   CUDA build for such tensors, so the operators that it would run are written out (`joint`). The partitioner of
   AOTAutograd cuts the graph in two.
2. Inductor compiles both graphs as on a GPU, whose properties it is told (`_pretended`), to Python modules.
3. A module runs, under `normtriton.perf.count.rivals.recording`, on tensors without memory. Its Triton kernels are
   launches of a `@triton.jit` function like those of any library, and what it leaves to PyTorch is charged like theirs.

Inductor times the configurations of a kernel and takes the fastest. Here the model of time takes the fastest: each is
timed on one multiprocessor with its share of the L2 and of the memory bus, from an L2 that holds nothing of use.
"""

from __future__ import annotations

import functools
from contextlib import contextmanager
from dataclasses import replace
from math import prod
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._guards import TracingContext, tracing
from torch._inductor import config as inductor_config
from torch._inductor.async_compile import AsyncCompile
from torch._inductor.codecache import PyCodeCache
from torch._inductor.compile_fx import compile_fx_inner
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.fx_passes import joint_graph
from torch._inductor.graph import GraphLowering
from torch._inductor.runtime import triton_helpers, triton_heuristics
from torch._inductor.runtime.hints import DeviceProperties
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from ..cases.shapes import DIRECTIONS, FORMS
from ..count import rivals
from ..count.codegen import pretending
from ..count.occupancy import LIMITS
from ..emulator.timer import Space, Timer
from ..swapped import swapped
from . import timed as model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch.fx import GraphModule

    Pull = Callable[[Any], Any]

    from ..cases.shapes import Cell
    from ..emulator.gpus import Gpu
    from ..emulator.timer import Timed

_GPU = torch.device("cuda", 0)

#: No processes, and no kernels or choices from earlier runs.
_SETTINGS = {"compile_threads": 1, "force_disable_caches": True}


_STREAM = "_cuda_getCurrentRawStream"


class _NoGuard:
    """Stands for `torch.cuda.device` and what else makes a device the current one."""

    def __init__(self, *_args: object) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_error: object) -> None:
        pass


@contextmanager
def _pretended(gpu: Gpu) -> Iterator[None]:
    """PyTorch believes that it has a GPU, as far as Inductor asks."""
    number = int(gpu.target.removeprefix("sm_"))
    told = DeviceProperties(
        type="cuda", index=0, multi_processor_count=gpu.sms, cc=number, major=number // 10, warp_size=32,
        regs_per_multiprocessor=65536, max_threads_per_multi_processor=2048, max_threads_per_block=1024,
    )  # fmt: skip
    properties = SimpleNamespace(
        name=gpu.name, multi_processor_count=gpu.sms, major=number // 10, minor=number % 10, warp_size=32,
        L2_cache_size=gpu.l2, total_memory=80 << 30, regs_per_multiprocessor=65536, gcnArchName="",
        max_threads_per_multi_processor=2048, shared_memory_per_block=49152,
        shared_memory_per_block_optin=LIMITS[gpu.target].shared,
    )  # fmt: skip
    changes: list[tuple[Any, str, Any]] = [
        (DeviceProperties, "create", staticmethod(lambda _device: told)),
        (torch.cuda, "is_available", lambda: True),
        (torch.cuda, "device_count", lambda: 1),
        (torch.cuda, "current_device", lambda: 0),
        (torch.cuda, "set_device", lambda _device: None),
        (torch.cuda, "device", _NoGuard),
        (torch.cuda, "_DeviceGuard", _NoGuard),
        (torch.cuda, "_lazy_init", lambda: None),
        (torch.cuda, "get_device_properties", lambda *_: properties),
        (torch.cuda, "get_device_capability", lambda *_: divmod(number, 10)),
        (torch.cuda, "get_rng_state", lambda *_: torch.empty(0, dtype=torch.uint8)),
        (torch.cuda, "set_rng_state", lambda *_: None),
        (joint_graph, "lazy_init", lambda *_: None),  # patterns of attention and products, traced on a GPU
        (triton_helpers, "set_driver_to_gpu", lambda: None),
    ]
    if not hasattr(torch._C, _STREAM):  # builds for CPUs lack it, and generated code imports it
        setattr(torch._C, _STREAM, lambda _device: 0)
    with swapped(*changes), pretending(gpu.target):
        yield


# -------------------------------------------------------------------------------------------- from norms to graphs
def joint(cell: Cell) -> Callable[[list[Any], list[Any]], tuple[list[Any], list[Any]]]:
    """Forward and backward pass of a norm as autograd runs them on a GPU: the operators below `torch.nn.functional`.

    The function takes ([x, weight, bias, running_mean, running_var], [dy]), as many as the norm has, with the tensors
    around it after them, and returns ([y], gradients).
    """
    case, ops = cell.case, torch.ops.aten
    every = [True, True, True]
    channels, groups = case.shape[1], case.groups

    def contiguous(t: Any) -> Any:
        return t if cell.layout == "contiguous" else ops.clone(t, memory_format=torch.contiguous_format)

    def layer(primals: list[Any], pull: Pull) -> tuple[Any, list[Any]]:
        x, weight, bias = primals if len(primals) == 3 else (*primals, None, None)
        wanted = [True, weight is not None, bias is not None]
        y, mean, rstd = ops.native_layer_norm(x, case.shape[-1:], weight, bias, 1e-5)
        gradients = ops.native_layer_norm_backward(pull(y), x, case.shape[-1:], mean, rstd, weight, bias, wanted)
        return y, [t for t in gradients if t is not None]

    def rms(primals: list[Any], pull: Pull) -> tuple[Any, list[Any]]:
        x, weight = primals
        y, rstd = ops._fused_rms_norm(x, weight.shape, weight, 1e-6)
        return y, ops._fused_rms_norm_backward(pull(y), x, weight.shape, rstd, weight, every[:2])

    def group(primals: list[Any], pull: Pull) -> tuple[Any, list[Any]]:
        x, weight, bias = primals
        x = contiguous(x)
        sizes = case.shape[0], channels, prod(case.shape[2:]), groups
        y, mean, rstd = ops.native_group_norm(x, weight, bias, *sizes, 1e-5)
        return y, ops.native_group_norm_backward(contiguous(pull(y)), x, mean, rstd, weight, *sizes, every)

    def batch(primals: list[Any], pull: Pull) -> tuple[Any, list[Any]]:
        x, weight, bias, *running = primals
        y, mean, rstd, *updated = ops._native_batch_norm_legit_functional(x, weight, bias, *running, True, 0.1, 1e-5)
        gradients = ops.native_batch_norm_backward(pull(y), x, weight, *running, mean, rstd, True, 1e-5, every)
        for old, new in zip(running, updated, strict=True):
            ops.copy_(old, new)
        return y, gradients

    def instance(primals: list[Any], pull: Pull) -> tuple[Any, list[Any]]:
        x, weight, bias = primals
        count = case.shape[0]

        def flat(t: Any) -> Any:
            return ops.view(contiguous(t), (1, count * channels, *case.shape[2:]))

        flat_x = flat(x)
        weights = [ops.repeat(p, (count,)) for p in (weight, bias)]
        y, mean, rstd = ops._native_batch_norm_legit.no_stats(flat_x, *weights, True, 0.1, 1e-5)
        y = ops.view(y, case.shape)
        dx, *others = ops.native_batch_norm_backward(
            flat(pull(y)), flat_x, weights[0], None, None, mean, rstd, True, 1e-5, every
        )
        sums = [ops.sum(ops.view(d, (count, channels)), [0]) for d in others]
        return y, [ops.view(dx, case.shape), *sums]

    pass_ = {"layer": layer, "rms": rms, "group": group, "batch": batch, "instance": instance}[case.norm]

    def run(primals: list[Any], tangents: list[Any]) -> tuple[list[Any], list[Any]]:
        if case.around:
            return surrounded(pass_, case.around, primals, tangents)
        y, gradients = pass_(primals, lambda _y: tangents[0])
        return [y], list(gradients)

    return run


def surrounded(pass_: Any, around: str, primals: list[Any], tangents: list[Any]) -> tuple[list[Any], list[Any]]:
    """A norm with what surrounds it, written out as autograd runs it; the last primals are the tensors around it."""
    ops: Any = torch.ops.aten
    names, stages = FORMS[around]
    if "mask" in names:
        raise ValueError(f"{around}: what torch.compile makes of it is not written out here")
    count = len(primals) - len(names)
    primals, beside = primals[:count], dict(zip(names, primals[count:], strict=True))
    x = primals[0]
    results: list[Any] = []
    others: dict[str, Any] = {}

    # by operators that need no GPU's kernels to be traced
    def act(z: Any) -> Any:
        factor = ops.gt(z, 0.0) if stages.activation == "relu" else ops.sigmoid(z)
        return ops.mul(z, factor)

    def slope(g: Any, z: Any) -> Any:
        if stages.activation == "relu":
            return ops.mul(g, ops.gt(z, 0.0))
        s = ops.sigmoid(z)
        return ops.mul(g, ops.mul(s, ops.add(ops.mul(z, ops.rsub(s, 1.0)), 1.0)))

    def shared(g: Any, like: Any) -> Any:
        """The gradient of what broadcasts against x."""
        return ops.sum(g, [i for i, size in enumerate(like.shape) if size == 1], True)

    u = ops.mul(x, act(beside["gate"])) if stages.gate_first else x
    multiplied = u
    u = ops.mul(u, beside["x_scale"]) if "x_scale" in beside else u
    u = ops.add(u, beside["residual"]) if "residual" in beside else u

    def pull(y: Any) -> Any:
        """The gradient of the norm's result, by what follows it."""
        z = ops.add(y, beside["skip"]) if "skip" in beside else y
        g = tangents[0]
        if "scale" in beside:
            factor = ops.add(beside["scale"], 1.0)
            results.append(ops.add(ops.mul(y, factor), beside["shift"]))
            others["scale"], others["shift"] = shared(ops.mul(g, y), factor), shared(g, factor)
            return ops.mul(g, factor)
        if "gate" in beside and not stages.gate_first:
            factor = act(beside["gate"])
            results.append(ops.mul(z, factor))
            others["gate"] = slope(ops.mul(g, z), beside["gate"])
            g = ops.mul(g, factor)
        elif stages.activation and not stages.gate_first:
            results.append(act(z))
            g = slope(g, results[0] if stages.activation == "relu" else z)
        else:
            results.append(z)
        if "skip" in beside:
            others["skip"] = g
        return g

    _y, (dx, *parameters) = pass_([u, *primals[1:]], pull)
    if "residual" in beside:
        results.append(u)
        dx = others["residual"] = ops.add(dx, tangents[1])
    if "x_scale" in beside:
        others["x_scale"] = shared(ops.mul(dx, multiplied), beside["x_scale"])
        dx = ops.mul(dx, beside["x_scale"])
    if stages.gate_first:
        others["gate"] = slope(ops.mul(dx, x), beside["gate"])
        dx = ops.mul(dx, act(beside["gate"]))
    return results, [dx, *parameters, *(others[name] for name in names)]


def inputs(cell: Cell) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """What `joint` takes, on a GPU; parameters and running statistics have x's dtype. Under a fake mode."""
    dtype, layout = cell.options
    case = cell.case
    features = case.shape[-1] if case.norm in ("layer", "rms") else case.shape[1]
    x, dy = (torch.empty(case.shape, dtype=dtype, device=_GPU, memory_format=layout) for _ in range(2))
    count = {"rms": 1, "batch": 4}.get(case.norm, 2)
    if "scale" in case.tensors(x):  # a norm without parameters of its own
        count = 0
    parameters = [torch.empty(features, dtype=dtype, device=_GPU) for _ in range(count)]
    around = list(case.tensors(x).values())
    tangents = [dy, torch.empty_like(x)] if "residual" in case.tensors(x) else [dy]
    return [x, *parameters, *around], tangents


def graphs(cell: Cell, mode: FakeTensorMode) -> list[tuple[GraphModule, list[Any]]]:
    """The graphs of the forward and of the backward pass that AOTAutograd would hand to Inductor, with their inputs."""
    with mode:
        given = inputs(cell)
        whole = make_fx(joint(cell), decomposition_table=select_decomp_table())(*given)
    for i, node in enumerate(whole.graph.find_nodes(op="placeholder")):  # by these names it is told which they are
        node.target = node.name = f"primals_{i + 1}" if i < len(given[0]) else f"tangents_{i - len(given[0]) + 1}"
    joint_graph.joint_graph_passes(whole)
    halves = min_cut_rematerialization_partition(whole, given, compiler="inductor", num_fwd_outputs=len(given[1]))
    return [(half, [node.meta["val"] for node in half.graph.find_nodes(op="placeholder")]) for half in halves]


# ------------------------------------------------------------------------------------------ from code to launches
class _Kernel:
    """One of Inductor's kernels: it launches the configuration that the model predicts to be fastest."""

    def __init__(self, name: str, source: str, gpu: Gpu) -> None:
        self.tuner = getattr(PyCodeCache.load(source), name)
        self.gpu = replace(gpu, share=gpu.sms)
        self._choices: dict[tuple[Any, ...], Any] = {}

    def run(self, *args: Any, stream: object) -> None:  # noqa: ARG002  the generated code names it
        """Launch it; what happens then is `rivals.recording`'s."""
        key = tuple((tuple(a.shape), a.stride()) if isinstance(a, torch.Tensor) else a for a in args)
        if key not in self._choices:
            self._choices[key] = self._fastest(args)
        chosen = self._choices[key]
        self.tuner.fn.run(*args, grid=self._grid(chosen, args), **chosen.all_kwargs())

    def _grid(self, chosen: Any, args: tuple[Any, ...]) -> tuple[int, int, int]:
        given = dict(zip(self.tuner.fn.arg_names, args, strict=False)) | chosen.kwargs
        rule = triton_heuristics.GridExpr.from_meta(self.tuner.inductor_meta, chosen)
        return rule.eval_slow(given)

    def _fastest(self, args: tuple[Any, ...]) -> Any:
        """The configuration of least predicted time."""
        if len(self.tuner.configs) == 1:
            return self.tuner.configs[0]

        def us(config: Any) -> float:
            with rivals.aside():
                alone = model.Timing(Timer(self.gpu), Space())
                alone.launch(self.tuner.fn, args, self._grid(config, args), **config.all_kwargs())
            return float(alone.steps[0].us)

        return min(self.tuner.configs, key=us)


def generated(graph: GraphModule, example: list[Any], mode: FakeTensorMode, backward: bool, gpu: Gpu) -> Any:
    """The function that Inductor makes of a graph; it takes a list of arguments, and runs under `rivals.recording`."""
    modules: list[Any] = []
    compiled = GraphLowering._compile_to_module_lines

    def keep(self: GraphLowering, code: Any) -> Any:
        modules.append(compiled(self, code))
        return modules[-1]

    kernel = functools.cache(lambda name, source: _Kernel(name, source, gpu))
    load = lambda _self, name, source, device_str="cuda": kernel(name, source)  # noqa: ARG005  as it is called
    with (
        swapped((GraphLowering, "_compile_to_module_lines", keep), (AsyncCompile, "triton", load)),
        tracing(TracingContext(mode)),
        V.set_fake_mode(mode),
    ):
        compile_fx_inner(graph, example, is_backward=backward)
    made = modules[-1]
    made.empty_strided_cuda = lambda size, stride, dtype: torch.empty_strided(size, stride, dtype=dtype, device="meta")
    return made.call


def passes(cell: Cell, gpu: Gpu, **settings: Any) -> dict[str, Callable[[], Any]]:
    """The forward and the backward pass of a cell, each to be run under `rivals.recording`.

    ``settings`` are those of `torch._inductor.config`, other than its own.
    """
    mode = FakeTensorMode()
    with _pretended(gpu), inductor_config.patch({**_SETTINGS, **settings}):
        made = [
            (generated(graph, example, mode, direction == "backward", gpu), example)
            for direction, (graph, example) in zip(DIRECTIONS, graphs(cell, mode), strict=True)
        ]

    def ready(call: Callable[[list[Any]], Any], example: list[Any]) -> Callable[[], Any]:
        def run() -> Any:
            with _pretended(gpu):
                return call([_meta(t) for t in example])

        return run

    return {direction: ready(*one) for direction, one in zip(DIRECTIONS, made, strict=True)}


def _meta(t: Any) -> Any:
    """A tensor like a fake one, on the meta device."""
    if not isinstance(t, torch.Tensor):
        return t
    return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta")


def timed(cell: Cell, timer: Timer, directions: Sequence[str] = DIRECTIONS, **settings: Any) -> dict[str, list[Timed]]:
    """Time a cell: {"forward": [...], "backward": [...]}, a `Timed` a step."""
    found = {}
    for direction, run in passes(cell, timer.gpu, **settings).items():
        if direction in directions:
            one = model.Timing(timer, Space())
            with rivals.recording(one):
                run()
            found[direction] = one.steps
    return found
