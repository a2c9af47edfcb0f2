"""PyTorch's own test databases against this library: `make conformance` prints passed/total and fails on any failure.

The databases come with torch (``torch.testing._internal``): op_db's sample, reference and error inputs of the five
functions and of the native operators beneath them, module_db's inputs and error inputs of the nine modules. Each input
runs forward and backward in each dtype, in Triton's interpreter, with a random gradient. Results, gradients and running
statistics are compared with what PyTorch gives for the same numbers in float64; errors by type and text. What the
databases leave out is made from their samples: strided tensors, large means, parameters of another dtype.
"""

import inspect
import os
import re
import sys
import time
import warnings
import zlib
from contextlib import nullcontext
from functools import cache, partial
from typing import NamedTuple

os.environ.setdefault("TRITON_INTERPRET", "1")

import torch
import torch.nn.functional as F  # noqa: N812  the name everyone knows it by
from interpreter_speed import speed_up
from torch import func, nn
from torch.func import jvp, vjp, vmap

import normtriton as nt
from normtriton import functional

DTYPES = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
FUNCTIONS = ("batch_norm", "layer_norm", "instance_norm", "group_norm", "rms_norm")
MODULES = (
    *("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d"),
    *("LayerNorm", "GroupNorm", "RMSNorm"),
)
#: Arguments of the native operators, by the names that the functions give them.
NATIVE = {
    "batch_norm": ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps"),
    "layer_norm": ("input", "normalized_shape", "weight", "bias", "eps"),
    "group_norm": ("input", "weight", "bias", None, None, None, "num_groups", "eps"),
}
#: What is not run, and why.
LEFT_OUT = {
    "reference inputs of batch_norm, layer_norm, instance_norm, rms_norm": "PyTorch's are its sample inputs again",
    "9 of 33 reference inputs of group_norm": "PyTorch gives three of them four times each, the same tensors",
    "error inputs of batch_norm, layer_norm, instance_norm": "PyTorch lists none; native_layer_norm's stand in for one",
    "error inputs of the InstanceNorm modules, LayerNorm, RMSNorm": "PyTorch lists none",
}
#: Valid inputs that go to PyTorch's own function, by function and shape.
PYTORCHS = {("batch_norm", (0,))}  # no channel axis and nothing to do

PARAMETERS, STATISTICS = ("input", "weight", "bias"), ("running_mean", "running_var")


class Section(NamedTuple):
    """Inputs that are counted together."""

    kind: str
    name: str
    dtype: str

    def __str__(self):
        return f"{self.kind}, {self.name}, {self.dtype}"


#: Inputs made of the samples, and the dtypes that they are made in.
MADE = {
    "noncontiguous": ("float32", "bfloat16"),
    "large mean": ("float64", "float32"),
    "parameters of another dtype": ("float16", "bfloat16"),
}
#: Compositions of transforms by the names in PyTorch's test/functorch/test_ops.py, and their dtypes.
COMPOSITIONS = {
    **dict.fromkeys(("grad", "vjp", "jvp", "vjpvjp", "jvpvjp"), ("float64", "float32")),
    **dict.fromkeys(("vjpvmap", "jvpvmap", "vmapvjp", "vmapjvp", "vmapvjpvjp", "vmapjvpvjp"), ("float64",)),
}
#: As PyTorch's tests, each of these takes every sample noncontiguous too.
NONCONTIGUOUS_TOO = ("torch.func grad", "torch.func vjp", "torch.func jvp")
COMPLIANCE = ("operator", "backward", "forward AD")
SECTIONS = [
    *(Section("sample inputs", name, dtype) for name in FUNCTIONS for dtype in DTYPES),
    *(Section("sample inputs", "batch_norm without_cudnn", dtype) for dtype in DTYPES),
    *(Section("native inputs", name, dtype) for name in NATIVE for dtype in DTYPES),
    *(Section("reference inputs", "group_norm", dtype) for dtype in DTYPES),
    *(Section(kind, name, dtype) for kind, dtypes in MADE.items() for name in FUNCTIONS for dtype in dtypes),
    *(Section("complex inputs", "rms_norm", dtype) for dtype in ("complex64", "complex128")),
    *(Section("error inputs", name, "float32") for name in ("group_norm", "rms_norm", "layer_norm")),
    *(Section("module inputs", name, dtype) for name in MODULES for dtype in DTYPES),
    *(Section("module error inputs", name, "float32") for name in MODULES if "Batch" in name or "Group" in name),
    *(
        Section(f"torch.func {check}", name, dtype)
        for check, dtypes in COMPOSITIONS.items()
        for name in FUNCTIONS
        for dtype in dtypes
    ),
    *(Section(f"composite compliance {check}", name, "float64") for check in COMPLIANCE for name in FUNCTIONS),
]

#: Inputs a dtype in torch 2.13, so that none is lost unseen.
COUNTS = {
    "sample inputs": {
        "batch_norm": 12,
        "batch_norm without_cudnn": 12,
        "layer_norm": 6,
        "instance_norm": 9,
        "group_norm": 21,
        "rms_norm": 6,
    },
    "native inputs": {"batch_norm": 10, "layer_norm": 20, "group_norm": 21},
    "reference inputs": {"group_norm": 24},
    "complex inputs": {"rms_norm": 6},
    "error inputs": {"group_norm": 2, "rms_norm": 3, "layer_norm": 4},
    "module inputs": {
        "BatchNorm1d": 16,
        "BatchNorm2d": 14,
        "BatchNorm3d": 14,
        "InstanceNorm1d": 12,
        "InstanceNorm2d": 12,
        "InstanceNorm3d": 12,
        "LayerNorm": 7,
        "GroupNorm": 10,
        "RMSNorm": 6,
    },
    "module error inputs": {"BatchNorm1d": 2, "BatchNorm2d": 2, "BatchNorm3d": 2, "GroupNorm": 2},
}


def expected(section):
    """How many inputs a section has, or None with another torch."""
    made = section.kind in MADE or section.kind.startswith(("torch.func", "composite compliance"))
    count = COUNTS["sample inputs" if made else section.kind][section.name]
    twice = section.kind in NONCONTIGUOUS_TOO
    return count * (1 + twice) if torch.__version__.startswith("2.13.") else None


# -- how far rounding may take a result ------------------------------------------------------------------------------


class Allowed(NamedTuple):
    """Absolute errors, elementwise, besides the rounding of the result itself."""

    y: torch.Tensor
    input: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    running_mean: torch.Tensor
    running_var: torch.Tensor


def allowed(name, arguments, dy, unit):
    """What float arithmetic that rounds by ``unit`` may do to a norm, from the data; all in float64.

    The terms of each sum are counted by their size, not the sum by its own: what cancels leaves its rounding behind.
    """
    x, eps = arguments["input"], arguments["eps"]
    ndim = x.dim()
    channels = (1, -1, *[1] * (ndim - 2))
    spread = arguments.get("normalized_shape", channels)
    given = not arguments.get("training", arguments.get("use_input_stats", True))
    view, dims = x.shape, tuple(range(2, ndim))
    if name in ("layer_norm", "rms_norm"):
        dims = tuple(range(ndim - len(spread), ndim))
    elif name == "batch_norm":
        dims = (0, *dims)
    elif name == "group_norm":
        view, dims = (x.shape[0], arguments["num_groups"], -1), (2,)
    rows = x.reshape(view)
    if given:
        mean, variance = (arguments[s].reshape(channels) for s in STATISTICS)
    elif name == "rms_norm":
        mean, variance = torch.zeros_like(rows.mean(dims, True)), rows.square().mean(dims, True)
    else:
        mean, variance = rows.mean(dims, True), rows.var(dims, correction=0, keepdim=True)

    def everywhere(statistic):
        return statistic.expand(rows.shape).reshape(x.shape)

    def largest(t):
        return everywhere(t.abs().reshape(view).amax(dims, True)) if not given else t.abs()

    unit = 16 * unit
    weight = 1.0 if arguments.get("weight") is None else arguments["weight"].reshape(spread)
    shift = (variance + eps).abs().clamp_min(1e-300)
    rstd, loss = everywhere(shift.rsqrt()), everywhere(1 + variance / shift)
    xhat = largest((x - everywhere(mean)) * rstd)
    error = unit * (everywhere(mean).abs() * rstd + xhat * loss)
    bias = 0.0 if arguments.get("bias") is None else arguments["bias"].reshape(spread).abs()
    g = largest(dy * weight)
    over = tuple(range(ndim - len(spread))) if "normalized_shape" in arguments else (0, *range(2, ndim))
    m = abs(arguments.get("momentum") or 0.0)
    over_channel = (0, *range(2, ndim))
    return Allowed(
        y=error * abs(weight) + unit * bias,
        input=rstd * g * (1 + xhat) * (unit * loss + error),
        weight=(dy.abs() * (error + unit * xhat)).sum(over) if over else dy.abs() * (error + unit * xhat),
        bias=unit * (dy.abs().sum(over) if over else dy.abs()),
        running_mean=m * unit * (x.abs().amax(over_channel) if ndim > 1 else x),
        running_var=m * unit * 2 * (everywhere(variance).amax(over_channel) if ndim > 1 else x),
    )


def compare(what, got, want, error):
    """Whether ``got`` is ``want`` but for ``error`` and its own rounding; NaN where PyTorch has NaN."""
    assert got.shape == want.shape, f"{what} has shape {tuple(got.shape)}, not {tuple(want.shape)}"
    got64, info = got.detach().double(), torch.finfo(got.dtype)
    assert torch.equal(got64.isfinite(), want.isfinite()), f"{what} is not finite elsewhere than PyTorch's"
    rounding = info.eps / 2 * want.abs() + info.smallest_normal * info.eps
    bad = ((got64 - want).abs() > error + rounding) & want.isfinite()
    ratio = ((got64 - want).abs() / (error + rounding))[bad]
    assert not bad.any(), f"{what} is off by {ratio.max().item():.3g} times the allowed"


# -- functions ---------------------------------------------------------------------------------------------------------


def bind(name, args, kwargs):
    """A call's arguments by name, defaults too."""
    bound = inspect.signature(getattr(F, name)).bind(*args, **kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


def copied(arguments, change=lambda t: t):
    """Arguments with their own tensors, each in its own strides."""

    def copy(t):
        if not isinstance(t, torch.Tensor):
            return t
        wanted = change(t.detach())
        if not wanted.is_contiguous() and wanted.numel():  # clone() would close the gaps
            room = torch.empty_strided(wanted.shape, wanted.stride(), dtype=wanted.dtype)
            wanted = room.copy_(wanted)
        return (wanted.clone() if wanted.is_contiguous() else wanted).requires_grad_(t.requires_grad)

    return {key: copy(value) for key, value in arguments.items()}


def default_eps(x):
    """What RMS norm takes for None."""
    return torch.finfo(torch.float64 if x.dtype == torch.float64 else torch.float32).eps


def check_function(name, arguments):
    """Forward, backward and running statistics of one call."""
    x = arguments["input"]
    ours, theirs = copied(arguments), copied(arguments, torch.Tensor.double)
    if theirs["eps"] is None:
        theirs["eps"] = default_eps(x)
    calls, versions = [], {s: ours[s]._version for s in STATISTICS if ours.get(s) is not None}
    short = functional.SHORT
    functional.SHORT = short._replace(normalize=lambda *args: calls.append(args) or short.normalize(*args))
    try:
        y = getattr(nt, name)(**ours)
    finally:
        functional.SHORT = short
    elsewhere = (name, tuple(x.shape)) in PYTORCHS
    assert bool(calls) != elsewhere, "this call was not to take this way"
    before = copied(theirs)
    want = getattr(F, name)(**theirs)
    assert y.dtype == x.dtype and (elsewhere or y.stride() == torch.empty_like(ours["input"]).stride())
    leaves = [key for key in PARAMETERS if ours.get(key) is not None]
    dy = torch.randn(want.shape, dtype=torch.float64).to(y.dtype)
    grads = torch.autograd.grad(y, [ours[key] for key in leaves], dy)
    wants = torch.autograd.grad(want, [theirs[key] for key in leaves], dy.double())
    assert elsewhere or grads[0].stride() == torch.empty_like(ours["input"]).stride()
    unit = 2.0 ** (-53 if x.dtype == torch.float64 else -24)
    limits = None
    if x.numel():
        detached = {k: v.detach() if isinstance(v, torch.Tensor) else v for k, v in before.items()}
        limits = allowed(name, detached, dy.double(), unit)
    compare("y", y, want.detach(), limits.y if limits else 0.0)
    for key, grad, wanted in zip(leaves, grads, wants, strict=True):
        assert grad.dtype == ours[key].dtype, f"the gradient of {key} has another dtype"
        compare(f"the gradient of {key}", grad, wanted, getattr(limits, key).reshape(wanted.shape) if limits else 0.0)
    for key, version in versions.items():
        changed = not torch.equal(theirs[key], before[key])
        error = getattr(limits, key) + unit * before[key].abs() * 4 if limits else 0.0
        compare(key, ours[key], theirs[key], error if changed else torch.zeros_like(theirs[key]))
        assert (ours[key]._version > version) >= changed, f"autograd is not told that {key} changes"


@cache
def databases():
    """op_db's entries by name and variant, module_db's by class. Slow to import."""
    from torch.testing._internal.common_methods_invocations import op_db
    from torch.testing._internal.common_modules import module_db

    ops = {f"{op.name} {op.variant_test_name}".strip(): op for op in op_db}
    return ops, {info.module_cls: info for info in module_db}


def function_cases(section):
    """One thunk for each of op_db's inputs."""
    ops, _ = databases()
    name, _, variant = section.name.partition(" ")
    dtype = getattr(torch, section.dtype)
    native = section.kind == "native inputs"
    op = ops[f"native_{name}" if native else f"nn.functional.{section.name}"]
    inputs = op.reference_inputs if section.kind == "reference inputs" else op.sample_inputs
    seen = {}  # holds the samples, so that no other takes their ids
    for sample in inputs("cpu", dtype, requires_grad=True):
        identity = tuple(id(v) for v in (sample.input, *sample.args, *sample.kwargs.values()))
        if identity in seen:
            continue
        seen[identity] = sample
        if section.kind == "noncontiguous":
            sample = sample.noncontiguous()  # noqa: PLW2901
        if native:
            named = zip(NATIVE[name], (sample.input, *sample.args), strict=False)
            arguments = bind(name, (), {key: value for key, value in named if key} | sample.kwargs)
        else:
            arguments = bind(name, (sample.input, *sample.args), sample.kwargs)
        if section.kind == "large mean":
            arguments["input"] = (sample.input.detach() + 1000).requires_grad_()
        if section.kind == "parameters of another dtype":
            for key in ("weight", "bias", *STATISTICS):
                if arguments.get(key) is not None:
                    arguments[key] = arguments[key].detach().float().requires_grad_(arguments[key].requires_grad)

        def run(arguments=arguments):
            with torch.backends.cudnn.flags(enabled=False) if variant else nullcontext():
                check_function(name, arguments)

        yield f"{tuple(sample.input.shape)} {sample.kwargs}", run


def complex_cases(section):
    """RMS norm of complex input is PyTorch's own."""
    op, _ = databases()[0][f"nn.functional.{section.name}"], None
    for sample in op.sample_inputs("cpu", getattr(torch, section.dtype), requires_grad=True):

        def run(sample=sample):
            results = []
            for function in (nt.rms_norm, F.rms_norm):
                torch.manual_seed(0)
                x = sample.input.detach().clone().requires_grad_()
                y = function(x, *sample.args, **sample.kwargs)
                y.backward(torch.randn_like(y))
                results.append((y.detach(), x.grad))
            assert all(map(torch.equal, *results))

        yield f"{tuple(sample.input.shape)} {sample.kwargs}", run


# -- torch.func --------------------------------------------------------------------------------------------------------


class Given(NamedTuple):
    """What a composition of transforms is given: a call's tensors, and those that derivatives are taken along."""

    primals: tuple[torch.Tensor, ...]
    statistics: tuple[torch.Tensor, ...]
    dy: torch.Tensor
    tangents: tuple[torch.Tensor, ...]
    ddy: torch.Tensor

    def flat(self):
        """Every tensor."""
        return (*self.primals, *self.statistics, self.dy, *self.tangents, self.ddy)

    def of(self, flat):
        """The same of other tensors."""
        parts, rest = [], list(flat)
        for part in self:
            count = len(part) if isinstance(part, tuple) else 1
            parts.append(tuple(rest[:count]) if isinstance(part, tuple) else rest[0])
            rest = rest[count:]
        return Given(*parts)


def by_grad(call, given):
    """Gradients of a number."""
    every = tuple(range(len(given.primals)))
    return func.grad(lambda *p: (call(*p, *given.statistics) * given.dy).sum(), every)(*given.primals)


def by_vjp(call, given):
    """The result and its gradients."""
    y, pull = vjp(lambda *p: call(*p, *given.statistics), *given.primals)
    return y, *pull(given.dy)


def by_jvp(call, given):
    """The result and its change."""
    return jvp(lambda *p: call(*p, *given.statistics), given.primals, given.tangents)


def pulling(call, given):
    """Gradients as a function of primals and dy."""
    return lambda *args: by_vjp(call, given._replace(primals=args[:-1], dy=args[-1]))[1:]


def by_vjpvjp(call, given):
    """Gradients of gradients."""
    _gradients, pull = vjp(pulling(call, given), *given.primals, given.dy)
    return pull(given.tangents)


def by_jvpvjp(call, given):
    """Gradients and their changes."""
    gradients, changes = jvp(pulling(call, given), (*given.primals, given.dy), (*given.tangents, given.ddy))
    return *gradients, *changes


def looped(function, dims):
    """`torch.vmap` by a loop."""

    def loop(*args):
        size = next(t.shape[d] for t, d in zip(args, dims, strict=True) if d is not None)
        rows = [
            function(*(t if d is None else t.select(d, i) for t, d in zip(args, dims, strict=True)))
            for i in range(size)
        ]
        return (
            torch.stack(rows) if isinstance(rows[0], torch.Tensor) else tuple(map(torch.stack, zip(*rows, strict=True)))
        )

    return loop


def vmapped(by):
    """A batch of compositions."""

    def run(call, given, dims, batch):
        return batch(lambda *flat: by(call, given.of(flat)), dims)(*given.flat())

    return run


def of_vmap(by):
    """A composition of a batch of calls."""

    def run(call, given, dims, batch):
        dims = dims[: len(given.primals) + len(given.statistics)]
        return by(batch(call, dims), given)

    return run


#: The compositions of PyTorch's test/functorch/test_ops.py, and those of a batch.
PLAIN = {"grad": by_grad, "vjp": by_vjp, "jvp": by_jvp, "vjpvjp": by_vjpvjp, "jvpvjp": by_jvpvjp}
BATCHED = {
    **{f"vmap{name}": vmapped(by) for name, by in PLAIN.items() if name != "grad"},
    **{name: of_vmap(PLAIN[name.removesuffix("vmap")]) for name in ("vjpvmap", "jvpvmap")},
}


def batches(given, check, updating):
    """Which tensors have a batch, and where: all in front, all behind, one alone."""
    count, own = len(given.flat()), len(given.primals) + len(given.statistics)
    choices = [
        (0,) * count,
        (-1,) * count,
        *(tuple(-1 if i == j else None for j in range(count)) for i in range(count)),
    ]
    for dims in choices:
        if updating and dims[0] is not None and None in dims[len(given.primals) : own]:
            continue  # refused, as by PyTorch
        if not check.endswith("vmap"):
            yield dims
        elif set(dims[:own]) != {None}:  # what derivatives are taken along follows the call's tensors
            yield *dims[:own], 0, *dims[: len(given.primals)], 0


def check_transforms(name, arguments, check):
    """One composition of transforms, of ours and of PyTorch's in float64, by a loop instead of vmap."""
    keys = [key for key in PARAMETERS if arguments.get(key) is not None]
    known = [key for key in STATISTICS if arguments.get(key) is not None]
    updating = bool(known) and arguments.get("training", arguments.get("use_input_stats", True))
    x = arguments["input"]

    def call(library):
        rest = {k: v for k, v in arguments.items() if k not in (*keys, *known)}
        if rest.get("eps", 0.0) is None:
            rest["eps"] = default_eps(x)
        return lambda *t: getattr(library, name)(**dict(zip((*keys, *known), t, strict=True)), **rest)

    primals = tuple(arguments[key].detach() for key in keys)
    statistics = tuple(arguments[key].detach() for key in known)
    given = Given(primals, statistics, torch.randn_like(x), tuple(map(torch.randn_like, primals)), torch.randn_like(x))

    def compare_runs(given, ours, theirs, compared):
        narrow = given.of([t.clone(memory_format=torch.preserve_format) for t in given.flat()])
        wide = given.of([t.double() for t in given.flat()])
        wide = wide._replace(statistics=tuple(t.clone() for t in wide.statistics))
        got, want = ours(call(nt), narrow), theirs(call(F), wide)
        pairs = [*zip(got, want, strict=True)]
        pairs += [pair for *pair, own in zip(narrow.statistics, wide.statistics, compared, strict=True) if own]
        for a, b in pairs:
            scale = b[b.isfinite()].abs().max().clamp_min(1.0) if b.isfinite().any() else 1.0
            limit = (1e-9 if x.dtype == torch.float64 else 1e-3) * scale
            torch.testing.assert_close(a.double(), b, rtol=0, atol=float(limit), equal_nan=True)

    if check in PLAIN:
        compare_runs(given, PLAIN[check], PLAIN[check], [True] * len(known))
        return
    for dims in batches(given, check, updating):
        flat = [
            t if d is None else torch.stack([t, t + 0.25 * torch.rand_like(t)], dim=d)
            for t, d in zip(given.flat(), dims, strict=True)
        ]
        ours, theirs = (partial(BATCHED[check], dims=dims, batch=batch) for batch in (vmap, looped))
        own = [d is not None for d in dims[len(primals) : len(primals) + len(known)]]
        compare_runs(given.of(flat), ours, theirs, own)


def transform_cases(section):
    """One thunk for each of op_db's sample inputs, and one for it made noncontiguous where PyTorch does that too."""
    check = section.kind.removeprefix("torch.func ")
    for sample in databases()[0][f"nn.functional.{section.name}"].sample_inputs(
        "cpu", getattr(torch, section.dtype), requires_grad=True
    ):
        for each in (sample, sample.noncontiguous()) if section.kind in NONCONTIGUOUS_TOO else (sample,):
            arguments = bind(section.name, (each.input, *each.args), each.kwargs)
            yield f"{tuple(each.input.shape)} {each.kwargs}", partial(check_transforms, section.name, arguments, check)


# -- composite compliance ----------------------------------------------------------------------------------------------


def compliance_cases(section):
    """PyTorch's checks that functions on tensors keep to operators that every subclass knows."""
    from torch.testing._internal import composite_compliance

    checks = {
        "operator": lambda op, args, kwargs: (
            composite_compliance.check_with_mode(op, args, kwargs, assert_equal),
            composite_compliance.check_all_permutations(op, args, kwargs, assert_equal),
        ),
        "backward": lambda op, args, kwargs: composite_compliance.check_backward_formula(
            op, args, kwargs, None, None, assert_equal
        ),
        "forward AD": lambda op, args, kwargs: composite_compliance.check_forward_ad_formula(
            op, args, kwargs, None, assert_equal
        ),
    }
    run = checks[section.kind.removeprefix("composite compliance ")]

    def assert_equal(a, b, equal_nan=True):
        torch.testing.assert_close(a, b, equal_nan=equal_nan)

    for sample in databases()[0][f"nn.functional.{section.name}"].sample_inputs(
        "cpu", getattr(torch, section.dtype), requires_grad="operator" not in section.kind
    ):
        args, kwargs = [sample.input, *sample.args], sample.kwargs
        yield f"{tuple(sample.input.shape)} {kwargs}", partial(run, getattr(nt, section.name), args, kwargs)


# -- errors ------------------------------------------------------------------------------------------------------------


def exception_of(call):
    """What a call raises, or None."""
    try:
        call()
    except Exception as error:  # noqa: BLE001  whatever PyTorch raises
        return error
    return None


def check_error(ours, theirs, kind, pattern):
    """The exception that the database names, which is PyTorch's in type and text."""
    raised = [exception_of(call) for call in (ours, theirs)]
    assert isinstance(raised[0], kind) and re.search(pattern, str(raised[0])), f"raised {raised[0]!r}, not {kind}"
    assert (type(raised[0]), str(raised[0])) == (type(raised[1]), str(raised[1])), f"{raised[0]!r}, not {raised[1]!r}"


def error_cases(section):
    """One thunk for each of op_db's error inputs; layer norm has only those of its native operator."""
    entry = f"native_{section.name}" if section.name == "layer_norm" else f"nn.functional.{section.name}"
    for error in databases()[0][entry].error_inputs("cpu"):
        sample = error.sample_input
        calls = (
            partial(getattr(library, section.name), sample.input, *sample.args, **sample.kwargs) for library in (nt, F)
        )
        yield error.error_regex, partial(check_error, *calls, error.error_type, error.error_regex)


def module_error_cases(section):
    """One thunk for each of module_db's error inputs, training."""
    info = databases()[1][getattr(nn, section.name)]
    options = {"device": "cpu", "dtype": torch.float32, "requires_grad": True, "training": True}
    for error in info.module_error_inputs_func(info, **options):
        constructor, forward = error.module_error_input.constructor_input, error.module_error_input.forward_input

        def call(library, constructor=constructor, forward=forward):
            module = getattr(library, section.name)(*constructor.args, **constructor.kwargs)
            module(*forward.args, **forward.kwargs)

        calls = (partial(call, library) for library in (nt, nn))
        yield error.error_regex, partial(check_error, *calls, error.error_type, error.error_regex)


# -- modules -----------------------------------------------------------------------------------------------------------


def module_call(module, x):
    """The function that a module calls, and its arguments."""
    shared = {"weight": module.weight, "eps": module.eps}
    if isinstance(module, nn.RMSNorm):
        return "rms_norm", {"input": x, "normalized_shape": module.normalized_shape, **shared}
    shared["bias"] = module.bias
    if isinstance(module, nn.LayerNorm):
        return "layer_norm", {"input": x, "normalized_shape": module.normalized_shape, **shared}
    if isinstance(module, nn.GroupNorm):
        return "group_norm", {"input": x, "num_groups": module.num_groups, **shared}
    shared |= {"running_mean": module.running_mean, "running_var": module.running_var, "momentum": 1.0}
    own = module.training or module.running_mean is None
    if isinstance(module, nn.modules.instancenorm._InstanceNorm):
        return "instance_norm", {"input": x, "use_input_stats": own, **shared}
    return "batch_norm", {"input": x, "training": own, **shared}


def check_module(name, constructor, x, dtype, training):
    """Forward, backward and buffers of one module; of one that changes, twice."""
    ours = getattr(nt, name)(*constructor.args, **constructor.kwargs, dtype=dtype)
    theirs = getattr(nn, name)(*constructor.args, **constructor.kwargs, dtype=torch.float64)
    with torch.no_grad():
        for tensor in (*ours.parameters(), *(b for b in ours.buffers() if b.is_floating_point())):
            tensor.copy_(torch.rand_like(tensor) + 0.5)
    theirs.load_state_dict(ours.state_dict())
    if getattr(theirs, "eps", 0.0) is None:
        theirs.eps = default_eps(x)
    ours.train(training)
    theirs.train(training)
    for _ in range(2 if training and theirs._buffers else 1):
        leaf, wide = x.detach().clone().requires_grad_(), x.detach().double().requires_grad_()
        batched = wide.detach().unsqueeze(0) if "Instance" in name and x.dim() < int(name[-2]) + 2 else wide.detach()
        call, arguments = module_call(theirs, batched)
        before = {k: v.detach().clone() if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
        y, want = ours(leaf), theirs(wide)
        assert y.dtype == dtype and y.stride() == leaf.stride()
        dy = torch.randn(want.shape, dtype=torch.float64).to(dtype)
        grads = torch.autograd.grad(y, [leaf, *ours.parameters()], dy)
        wants = torch.autograd.grad(want, [wide, *theirs.parameters()], dy.double())
        limits = None
        if x.numel():
            unit = 2.0 ** (-53 if dtype == torch.float64 else -24)
            limits = allowed(call, before, dy.double().reshape(batched.shape), unit)
        compare("y", y, want.detach(), limits.y.reshape(y.shape) if limits else 0.0)
        keys = ["input", *(key for key, _ in ours.named_parameters())]
        for key, grad, wanted in zip(keys, grads, wants, strict=True):
            error = getattr(limits, key).reshape(wanted.shape) if limits else 0.0
            compare(f"the gradient of {key}", grad, wanted, error)
        for (key, buffer), wanted in zip(ours.named_buffers(), theirs.buffers(), strict=True):
            if key == "num_batches_tracked":
                assert buffer.dtype == torch.int64 and buffer == wanted, f"{buffer} batches, not {wanted}"
            else:
                compare(key, buffer, wanted, getattr(limits, key) + unit * 4 * wanted.abs() if limits else 0.0)
        theirs.load_state_dict(ours.state_dict())  # each step has its own rounding only


def module_cases(section):
    """A thunk for each of module_db's inputs; two, training and evaluation, where PyTorch says that they differ."""
    info, dtype = databases()[1][getattr(nn, section.name)], DTYPES[section.dtype]
    for training in (True, False) if info.train_and_eval_differ else (True,):
        options = {"device": "cpu", "dtype": dtype, "requires_grad": True, "training": training}
        for entry in info.module_inputs_func(info, **options):
            (x,) = entry.forward_input.args
            run = partial(check_module, section.name, entry.constructor_input, x, dtype, training)
            yield f"{entry.desc} {'training' if training else 'evaluation'}", run


# -- the run -----------------------------------------------------------------------------------------------------------

MAKERS = {
    "complex inputs": complex_cases,
    "error inputs": error_cases,
    "module inputs": module_cases,
    "module error inputs": module_error_cases,
    **{f"torch.func {check}": transform_cases for check in COMPOSITIONS},
    **{f"composite compliance {check}": compliance_cases for check in COMPLIANCE},
}


def run_section(section, every=1):
    """(number of cases, failures), each failure its case and its message; of so many cases one is run."""
    torch.manual_seed(zlib.crc32(str(section).encode()))
    total, failures = 0, []
    for case, run in MAKERS.get(section.kind, function_cases)(section):
        total += 1
        try:
            if (total - 1) % every == 0:
                run()
        except Exception as error:  # noqa: BLE001  the run goes on
            failures.append(f"{section}, {case}: {type(error).__name__}: {error}")
    wanted = expected(section)
    if total != wanted and (wanted is not None or total == 0):
        failures.append(f"{section}: {total} inputs, not {wanted or 'more'}")
    return total, failures


def main():
    """Print the table."""
    speed_up()
    warnings.filterwarnings("ignore", ".*encountered in.*", RuntimeWarning)  # PyTorch's samples have negative eps
    start, results = time.perf_counter(), {section: run_section(section) for section in SECTIONS}
    rows = dict.fromkeys((section.kind, section.name) for section in SECTIONS)
    for kind, name in rows:
        cells = [
            f"{section.dtype} {total - len(failures)}/{total}"
            for section, (total, failures) in results.items()
            if section[:2] == (kind, name)
        ]
        print(f"{kind + ', ' + name:44} {', '.join(cells)}")
    print("\nleft out:")
    for what, why in LEFT_OUT.items():
        print(f"  {what}: {why}")
    failures = [failure for _, failed in results.values() for failure in failed]
    total = sum(count for count, _ in results.values())
    print(*failures, sep="\n")
    print(f"{total - len(failures)}/{total} passed in {time.perf_counter() - start:.0f} s, torch {torch.__version__}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
