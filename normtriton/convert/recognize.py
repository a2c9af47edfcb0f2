"""Which norm a module computes, told from its structure and proved on numbers.

Model libraries write norms of their own. Their names say little: some round before they multiply by the weight, some
multiply by 1 + weight, some return another dtype. So a name decides nothing here. A module whose structure is a norm's
(see `structure_of`) runs beside each function of `FUNCTIONS` on small inputs, and is recognized if every result and
every gradient agrees but for rounding.
"""

from __future__ import annotations

import inspect
import re
import warnings
from contextlib import ExitStack, contextmanager
from itertools import product
from sys import float_info
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from ..autograd.surrounded import ACTIVATION_FUNCTIONS
from ..planning import norms
from ..planning.norms import Norm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor


class Function(NamedTuple):
    """A norm that a module may compute, with one parameter for each element along one dimension.

    Attributes:
        norm: its axes.
        axis: the dimension that the parameters vary along.
        grouped: whether an attribute of the module splits that dimension.
    """

    norm: Norm
    axis: int
    grouped: bool = False


_CHANNELS = Norm("n c *s", over="c", affine="c")

#: What is recognized, by the name that a report gives it.
FUNCTIONS = {
    "RMS norm of the last dimension": Function(norms.RMS, -1),
    "layer norm of the last dimension": Function(norms.LAYER, -1),
    "layer norm of the channels": Function(_CHANNELS, 1),
    "RMS norm of the channels": Function(_CHANNELS._replace(centered=False), 1),
    "group norm": Function(norms.GROUP, 1, grouped=True),
    "RMS norm of groups of the last dimension": Function(
        Norm("*m (g k)", "k", "(g k)", centered=False), -1, grouped=True
    ),
}

#: The dtypes of an input, of the parameters (None if there are none) and of the result.
Dtypes: TypeAlias = "tuple[torch.dtype, torch.dtype | None, torch.dtype]"


class Second(NamedTuple):
    """A second tensor that a forward takes, and what becomes of it.

    Attributes:
        name: of the argument.
        role: "gate"; or "residual", which the input is added to, and the sum returned too.
        activation: of the gate.
        first: whether the gate comes before the norm.
    """

    name: str
    role: str
    activation: str = ""
    first: bool = False

    def __str__(self) -> str:
        if self.role == "residual":
            return f" of the sum with {self.name}, and the sum"
        gate = f"{self.activation}({self.name})" if self.activation else self.name
        return f" of the product with {gate}" if self.first else f", times {gate}"


class Recognized(NamedTuple):
    """What a module computes, as far as it was seen.

    Attributes:
        function: a key of `FUNCTIONS`.
        from_one: whether it multiplies by 1 + weight.
        eps: the attribute that holds eps.
        parameters: those it has of "weight" and "bias".
        input: the name of its forward's argument.
        size: without parameters, elements along the dimension that would have them, if no other number will do; else 0.
        ndims: numbers of dimensions of an input that it takes.
        dtypes: the mixtures of dtypes that it takes, and what it returns for them.
        groups: the attribute that tells how many groups there are, or how large one is.
        second: a second tensor.
    """

    function: str
    from_one: bool
    eps: str
    parameters: tuple[str, ...]
    input: str
    size: int
    ndims: tuple[int, ...]
    dtypes: tuple[Dtypes, ...]
    groups: str = ""
    second: Second | None = None

    def __str__(self) -> str:
        uniform = {x for x, parameters, _ in self.dtypes if parameters in (x, None)}
        missing = [str(dtype) for dtype in _DTYPES if dtype not in uniform]
        exceptions = f", except in {', '.join(missing)}" if missing and self.dtypes else ""
        second = "" if self.second is None else str(self.second)
        return self.function + (", times 1 + weight" if self.from_one else "") + second + exceptions


def count_groups(attribute: str, value: int, size: int) -> int:
    """The number of groups that an attribute tells, which may hold how large one is."""
    return size // value if _has_word(attribute, "size") else value


class Structure(NamedTuple):
    """A module that looks like a norm: all that its forward can depend on, besides the parameters' values."""

    cls: type[nn.Module]
    attributes: dict[str, Any]
    parameters: tuple[str, ...]
    absent: tuple[str, ...]  #: parameters that are registered as None
    size: int  #: elements of each parameter; 0 without parameters
    epsilons: tuple[str, ...]  #: the attributes that could be its eps
    input: str
    second: str = ""  #: a second argument

    def key(self) -> tuple[Any, ...]:
        """Equal for modules that compute the same."""
        attributes = repr(sorted(self.attributes.items()))
        return self.cls, self.cls.forward, attributes, self.parameters, self.absent, self.size, self.second


def names_eps(name: str) -> bool:
    """Whether an attribute's name is one for eps, such as "norm_eps" and "variance_epsilon", and not "steps"."""
    return _has_word(name, "eps|epsilon")


def _has_word(name: str, words: str) -> bool:
    return re.search(rf"(^|_)({words})(_|$)", name.lower()) is not None


INTERNAL = {*vars(nn.Module()), "_compiled_call_impl"}
_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device, torch.memory_format)
_TENSORS = ("weight", "bias")


def is_plain(value: Any) -> bool:
    """Whether an attribute is a number, a string or the like, or several of these, and so no state."""
    return all(map(is_plain, value)) if isinstance(value, tuple | list) else isinstance(value, _PLAIN)


#: What a report adds of a norm that may be more.
_UNTRIED = ", which convert tries to fuse with fuse=True"


def structure_of(module: nn.Module, fuse: bool = False) -> Structure | str:
    """The structure of a module that may be a norm, or why it is none.

    It must have no submodules, no buffers, no parameters but one-dimensional ``weight`` and ``bias``, no attributes but
    numbers, strings and the like, one of which is eps, and a forward that takes an input and nothing else, or with
    ``fuse`` a second.
    """
    arguments = list(inspect.signature(type(module).forward).parameters.values())[1:]
    taken = f"its forward takes ({', '.join(map(str, arguments))})"
    gated = len(arguments) > 1 and "gated" in type(module).__name__.lower()
    wanted = 2 if fuse and len(arguments) == 2 else 1
    if wanted == 1 and (gated or any(_has_word(argument.name, "gate|gates|gating") for argument in arguments)):
        return f"is a norm with {'more than ' * fuse}a gate{_UNTRIED * (not fuse)}: {taken}"
    if activations := list(_activations(module)):
        why = ", and derives from none of torch.nn's" if fuse else _UNTRIED
        return f"is a norm with an activation{why}: {', '.join(activations)}"
    if module._modules:
        return f"has submodules: {', '.join(module._modules)}"
    if module._buffers:
        return f"keeps buffers: {', '.join(module._buffers)}"
    tensors = {name: tensor for name, tensor in module._parameters.items() if tensor is not None}
    if others := tensors.keys() - set(_TENSORS):
        return f"has parameters that are not weight or bias: {', '.join(sorted(others))}"
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if any(len(shape) != 1 for shape in shapes.values()) or len({*shapes.values()}) > 1 or (0,) in shapes.values():
        return f"has parameters of shape {shapes}, where one dimension was expected"
    attributes = {name: value for name, value in vars(module).items() if name not in INTERNAL}
    if others := {name for name, value in attributes.items() if not is_plain(value)}:
        return f"has attributes that may be state: {', '.join(sorted(others))}"
    epsilons = [name for name, value in attributes.items() if names_eps(name) and _may_be_eps(value)]
    if not epsilons:
        return "has no attribute that could be its eps"
    kinds = {argument.kind for argument in arguments}
    if len(arguments) != wanted or kinds != {inspect.Parameter.POSITIONAL_OR_KEYWORD}:
        return f"{taken}, where one input was expected"
    parameters = tuple(name for name in _TENSORS if name in tensors)
    size = next(iter(tensors.values())).shape[0] if tensors else 0
    absent = tuple(name for name, tensor in module._parameters.items() if tensor is None)
    named = [argument.name for argument in arguments]
    return Structure(type(module), attributes, parameters, absent, size, tuple(epsilons), *named)


def _may_be_eps(value: Any) -> bool:
    """Whether a value can be added to a variance: whatever its size, since it is tried."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0.0 <= value <= float_info.max


def _activations(module: nn.Module) -> Iterator[str]:
    """Activations among a module's parts: what is named for one, and PyTorch's under any name."""
    for name, part in (*module._modules.items(), *vars(module).items()):
        named = callable(part) and _has_word(name, "act|activation|nonlinearity")
        if named or type(part).__module__ == nn.ReLU.__module__:
            yield f"{name} ({getattr(part, '__name__', type(part).__name__)})"


_verdicts: dict[tuple[Any, ...], Recognized | str] = {}


def recognize(structure: Structure) -> Recognized | str:
    """What modules of a structure compute, or how that differs from every function known.

    The module itself is not run: another of its class is, with the same attributes and with parameters of its own on
    the CPU. So it may be on any device, "meta" too, and neither it, its hooks nor the random number generators notice.
    """
    key = structure.key()
    if key not in _verdicts:
        with undisturbed():
            _verdicts[key] = _verdict(structure)
    return _verdicts[key]


def _verdict(structure: Structure) -> Recognized | str:
    verdicts = [_verdict_with(structure, eps) for eps in structure.epsilons]
    found = [verdict for verdict in verdicts if isinstance(verdict, Recognized)]
    if len(found) > 1:  # of one value: which of them it reads cannot be seen
        return f"has {len(found)} attributes that could be its eps: {', '.join(verdict.eps for verdict in found)}"
    return found[0] if found else verdicts[0]


def _verdict_with(structure: Structure, eps: str) -> Recognized | str:
    """The verdict if this attribute is eps."""
    if structure.size:
        return _Probe(structure, structure.size, eps).verdict()
    verdict = _Probe(structure, 24, eps).verdict()  # any number should do
    for value in structure.attributes.values():  # unless it is told one
        size = value[0] if isinstance(value, tuple | list) and len(value) == 1 else value
        if isinstance(verdict, str) and isinstance(size, int) and size > 1:
            told = _Probe(structure, size, eps).verdict()
            verdict = verdict if isinstance(told, str) else told._replace(size=size)
    return verdict


@contextmanager
def undisturbed() -> Iterator[None]:
    """Run as if nothing had been switched on, and leave nothing behind."""
    with ExitStack() as stack:
        stack.enter_context(_disable_current_modes())  # fake tensors, for one
        stack.enter_context(torch.device("cpu"))
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast("cpu", enabled=False))
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # no user asked for this run
        yield


class Differs(Exception):  # noqa: N818  not an error
    """A result that is not the function's.

    Attributes:
        by: the result's largest difference, relative to its largest value; 0 if only the gradient differs, infinite if
            there is nothing to compare.
    """

    def __init__(self, by: float, what: str) -> None:
        """Say what differs, and by how much."""
        super().__init__(what)
        self.by = by


_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def unit(*dtypes: torch.dtype) -> float:
    """The coarsest rounding among dtypes and float32, in which most modules compute what they are given in float64."""
    return max(torch.finfo(dtype).eps for dtype in (torch.float32, *dtypes)) / 2


def compare(what: str, got: Tensor, want: Tensor, allowed: float, scale: Tensor | None = None) -> None:
    """Raise if a result, or a gradient whose terms have a scale, is another than wanted."""
    error, largest = (got.detach().double() - want).abs().max(), (want if scale is None else scale).abs().max()
    by = (error / largest.clamp(min=torch.finfo().tiny)).item()
    if not by <= allowed:
        message = f"{what} differs by {by:.1e} of the largest value, where rounding explains {allowed:.1e}"
        raise Differs(by if scale is None else 0.0, message)


class _Probe:
    """A module of a structure, and inputs to run it on."""

    def __init__(self, structure: Structure, size: int, eps: str) -> None:
        self.structure = structure
        self.size = size
        self.eps_name = eps
        self.generator = torch.Generator().manual_seed(0)
        self.eps = float(structure.attributes[eps])
        self.error = ""  #: what the module last raised

    def randn(self, *shape: int) -> Tensor:
        """Normal random numbers, float64."""
        return torch.randn(shape, generator=self.generator, dtype=torch.float64, device="cpu")

    def verdict(self) -> Recognized | str:
        """What the module computes, or how that differs from every function known."""
        found: list[Recognized] = []
        nearest, least = "", float("inf")
        for tried in self.candidates():
            try:
                if ndims := tuple(self.ndims(tried)):
                    found.append(tried._replace(ndims=ndims, dtypes=tuple(self.dtypes(tried, ndims[0]))))
                    if len(ndims) == len(self.shapes(FUNCTIONS[tried.function])) or tried.second:
                        break
            except Differs as difference:
                if not nearest or difference.by < least:
                    nearest, least = f"no norm known; nearest is {tried}, but {difference}", difference.by
        if found:  # of two dimensions, several are the same
            return max(found, key=lambda function: len(function.ndims))
        return nearest or f"took none of the inputs that a norm takes: {self.error}"

    def candidates(self) -> Iterator[Recognized]:
        """What the module may compute, the likeliest first."""
        structure = self.structure
        seconds: list[Second | None] = [None]
        if name := structure.second:
            acts = sorted(ACTIVATION_FUNCTIONS, key=lambda act: act != "silu")
            seconds = [Second(name, "gate", act, first) for act, first in product(acts, (False, True))]
            seconds.append(Second(name, "residual"))
        for (function, known), second in product(FUNCTIONS.items(), seconds):
            for groups, from_one in product(self.groupings() if known.grouped else [""], (False, True)):
                if (second and known.axis == 1) or (from_one and "weight" not in structure.parameters):
                    continue
                common = self.eps_name, structure.parameters, structure.input, 0, (), ()
                yield Recognized(function, from_one, *common, groups, second)

    def groupings(self) -> list[str]:
        """The attributes that may tell of groups."""
        found = []
        for name, value in self.structure.attributes.items():
            if _has_word(name, "group|groups") and type(value) is int and value > 0 == self.size % value:
                found.append(name)
        return found

    def shapes(self, function: Function) -> list[tuple[int, ...]]:
        """Inputs of the function, with differing numbers of dimensions."""
        n = self.size
        a, b = [size for size in (2, 3, 4) if size != n][:2]  # so that the dimensions cannot be confused
        if function.axis == -1:
            return [(n,), (b, n), (a, b, n), (a, 1, b, n), (1, a, 1, b, n)]
        return [(b, n), (a, n, b), (a, n, b, a), (1, n, b, 1, a)]

    def ndims(self, found: Recognized) -> Iterator[int]:
        """Numbers of dimensions that the module takes; raises if a result or a gradient is not the function's."""
        for shape in self.shapes(FUNCTIONS[found.function]):
            uneven = self.randn(*shape) + 0.5
            uneven.view(-1)[uneven.numel() // 2] = 300.0  # in case something is clipped
            # as eps is, so that its place tells; not so small that float32 cannot hold the cube of rstd, of a gradient
            small = self.randn(*shape) * max(self.eps, 1e-20) ** 0.5
            if all([self.agrees(found, uneven, training=True), self.agrees(found, small, training=False)]):
                yield len(shape)

    def agrees(self, found: Recognized, x: Tensor, training: bool) -> bool:
        """Whether the module takes x, in float32; raises if its result or a gradient is not the function's."""
        inputs = {name: t.float().requires_grad_() for name, t in self.inputs(found, x).items()}
        x = inputs["input"]
        parameters = self.parameters(torch.float32)
        y = self.run(found, inputs, parameters, training)
        if y is None:
            return False
        leaves = {**inputs, **parameters}
        exact = {name: leaf.detach().double().requires_grad_() for name, leaf in leaves.items()}
        want = self.formula(found, exact)
        where = f"for float32 input of shape {tuple(x.shape)}"
        if y.dtype != torch.float32:
            raise Differs(float("inf"), f"its result {where} is {y.dtype}")
        compare(f"its result {where}", y, want.detach(), 32 * unit())
        dy = self.randn(*x.shape)
        wants = torch.autograd.grad(want, list(exact.values()), dy)
        # terms that may cancel in the input's gradient, but do so no more exactly than they were rounded
        terms = torch.autograd.grad(self.formula(found, exact, constant=True), [exact[name] for name in inputs], dy)
        scales = dict(zip(exact, (*terms, *wants[len(inputs) :]), strict=True))
        gots: Sequence[Tensor | None] = [None] * len(wants)
        if y.requires_grad:
            try:
                gots = torch.autograd.grad(y, list(leaves.values()), dy.float(), allow_unused=True)
            except Exception as error:
                raise Differs(0.0, f"its backward raises {type(error).__name__}: {error}") from error
        for name, got, gradient in zip(leaves, gots, wants, strict=True):
            if got is None:
                raise Differs(0.0, f"it has no gradient of its {name}")
            compare(f"the gradient of its {name} {where}", got, gradient, 256 * unit(), scales[name])
        return True

    def dtypes(self, found: Recognized, ndim: int) -> Iterator[Dtypes]:
        """The mixtures of dtypes that the module takes, and for which its result is the function's.

        Some compute in half precision what they are given in it, and lose digits.
        """
        (shape,) = (shape for shape in self.shapes(FUNCTIONS[found.function]) if len(shape) == ndim)
        for x_dtype, dtype in product(_DTYPES, _DTYPES if self.structure.parameters else (None,)):
            given, parameters = self.inputs(found, self.randn(*shape) + 0.5), self.parameters(dtype or x_dtype)
            inputs = {name: t.to(x_dtype) for name, t in given.items()}
            exact = {name: leaf.double() for name, leaf in {**inputs, **parameters}.items()}
            try:
                y = self.run(found, inputs, parameters, training=True)
                if y is not None:
                    allowed = 8 * unit(x_dtype, dtype or x_dtype, y.dtype) + 32 * unit()
                    compare("its result", y, self.formula(found, exact), allowed)
                    yield x_dtype, dtype, y.dtype
            except Differs:
                continue

    def parameters(self, dtype: torch.dtype) -> dict[str, nn.Parameter]:
        """Parameters as the module has them, of random values."""
        names = self.structure.parameters
        return {name: nn.Parameter((self.randn(self.size) + 0.2).to(dtype)) for name in names}

    def inputs(self, found: Recognized, x: Tensor) -> dict[str, Tensor]:
        """What the module is given: x, or terms of it; and a gate."""
        if found.second is None:
            return {"input": x}
        second = self.randn(*x.shape)
        return (
            {"input": x - x / 4, "second": x / 4} if found.second.role == "residual" else {"input": x, "second": second}
        )

    def run(
        self, found: Recognized, inputs: dict[str, Tensor], parameters: dict[str, nn.Parameter], training: bool
    ) -> Tensor | None:
        """The module's result; None if it raises, or spreads its parameters to another shape: it does not take x."""
        x = inputs["input"]
        module = object.__new__(self.structure.cls)
        nn.Module.__init__(module)
        vars(module).update(self.structure.attributes, training=training)
        module._parameters.update(dict.fromkeys(self.structure.absent))
        module._parameters.update(parameters)
        before = self.state(module, x)
        forward: Callable[..., Any] = self.structure.cls.forward
        try:
            y = forward(module, *inputs.values())
        except Exception as error:  # noqa: BLE001  whatever a module raises for what it does not take
            self.error = self.error or f"{type(error).__name__}: {error}"
            return None
        if self.state(module, x) != before:
            raise Differs(float("inf"), "its forward changes its input, parameters or attributes")
        if found.second and found.second.role == "residual" and isinstance(y, tuple | list) and len(y) == 2:
            y, total = y
            allowed = 2 * unit(x.dtype)
            compare("its second result", total, inputs["input"].detach().double() + inputs["second"].double(), allowed)
        if not isinstance(y, torch.Tensor) or not y.is_floating_point():
            what = y.dtype if isinstance(y, torch.Tensor) else f"a {type(y).__name__}"
            raise Differs(float("inf"), f"its result is {what}")
        if y.shape != x.shape:
            self.error = self.error or f"its result is of shape {tuple(y.shape)} for input of shape {tuple(x.shape)}"
            return None
        return y

    @staticmethod
    def state(module: nn.Module, x: Tensor) -> Any:
        """What a forward might change."""
        tensors = [x, *(p for p in module._parameters.values() if p is not None), *module._buffers.values()]
        attributes = [(name, value if is_plain(value) else type(value)) for name, value in vars(module).items()]
        return repr(attributes), [(id(t), None if t is None else t._version) for t in tensors]

    def formula(self, found: Recognized, tensors: dict[str, Tensor], constant: bool = False) -> Tensor:
        """What the function gives, in float64; its gradient is as if the statistics were constants if ``constant``."""
        function = FUNCTIONS[found.function]
        x, weight, bias = tensors["input"], tensors.get("weight"), tensors.get("bias")
        if found.second and found.second.role == "residual":
            x = x + tensors["second"]
        elif found.second:
            gate = ACTIVATION_FUNCTIONS[found.second.activation](tensors["second"])
            x = x * gate if found.second.first else x
        view, axis = x, function.axis
        if function.grouped:
            groups = count_groups(found.groups, self.structure.attributes[found.groups], self.size)
            view, axis = x.reshape(*x.shape[: axis % x.dim()], groups, -1), -1
        statistics = view.detach() if constant else view
        mean = statistics.mean(axis, keepdim=True) * function.norm.centered
        variance = (statistics - mean).square().mean(axis, keepdim=True)
        y = ((view - mean) / torch.sqrt(variance + self.eps)).view(x.shape)
        spread = [-1] + [1] * (x.dim() - 2 if function.axis == 1 else 0)
        if weight is not None:
            y = y * (weight + found.from_one).view(spread)
        y = y if bias is None else y + bias.view(spread)
        return y * gate if found.second and found.second.role == "gate" and not found.second.first else y
