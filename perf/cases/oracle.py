"""What a norm should give, by its formula in float64, and how far from it a library may be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from normtriton.planning.stages import Stages

#: Added to variances and mean squares.
EPS = 1e-5
#: Roundings to x's dtype that a result may have seen, and roundings of the arithmetic.
ROUNDINGS, ARITHMETIC = 2, 64


class Operands(NamedTuple):
    """The tensors of a call and of its backward pass.

    Attributes:
        x, dy: of the call's shape; x wants a gradient, as weight and bias do.
        weight, bias: None where the norm has none.
        running: mean and variance, to be updated.
        around: tensors that surround the norm, by name; but for a mask they want gradients.
        dtotal: the gradient of the sum with a residual.
    """

    x: Tensor
    weight: Tensor | None
    bias: Tensor | None
    dy: Tensor
    running: tuple[Tensor | None, Tensor | None] = (None, None)
    around: Mapping[str, Tensor] = {}
    dtotal: Tensor | None = None

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What wants a gradient, by the gradient's name."""
        named = {"dx": self.x, "dweight": self.weight, "dbias": self.bias}
        named |= {f"d{name}": tensor for name, tensor in self.around.items() if name != "mask"}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def fresh(self) -> Operands:
        """The same, with running statistics, and where gradients go, of its own."""
        x, weight, bias = (None if t is None else t.detach().requires_grad_() for t in self[:3])
        mean, variance = (None if r is None else r.clone() for r in self.running)
        around = {name: t.detach().requires_grad_(name != "mask") for name, t in self.around.items()}
        assert x is not None
        return self._replace(x=x, weight=weight, bias=bias, running=(mean, variance), around=around)

    def wide(self) -> Operands:
        """The same in float64, and contiguous."""

        def widen(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.detach().double().contiguous()

        x, weight, bias, dy = map(widen, self[:4])
        mean, variance = map(widen, self.running)
        around = {name: t if name == "mask" else t.detach().double().contiguous() for name, t in self.around.items()}
        assert x is not None
        assert dy is not None
        return Operands(x, weight, bias, dy, (mean, variance), around, widen(self.dtotal)).fresh()


def call(
    functions: Any,
    norm: str,
    features: Sequence[int],
    groups: int,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running: tuple[Tensor | None, Tensor | None] = (None, None),
    eps: float = EPS,
    training: bool = True,
    **around: Any,
) -> Tensor:
    """A norm, in ``training`` or with running statistics, by `torch.nn.functional` or by what has its functions.

    ``around`` is what surrounds it, for the functions that take it; with a residual two tensors are returned.
    """
    if norm == "layer":
        y = functions.layer_norm(x, features, weight, bias, eps, **around)
    elif norm == "rms":
        y = functions.rms_norm(x, features, weight, eps, **around)
    elif norm == "batch":
        y = functions.batch_norm(x, *running, weight, bias, training, 0.1, eps, **around)
    elif norm == "instance":
        y = functions.instance_norm(x, *running, weight, bias, training, 0.1, eps, **around)
    elif norm == "channels":
        y = functions.layer_norm(x, features, weight, bias, eps, dim=1, **around)
    elif norm == "adaptive":
        around |= {"over": "d", "affine": "b d", "weight": weight, "bias": bias, "eps": eps}
        y = functions.normalize(x, "b t d", **around)
    else:
        y = functions.group_norm(x, groups, weight, bias, eps, **around)
    return y  # type: ignore[no-any-return]  # the functions' types are not known


class Textbook:
    """`torch.nn.functional`'s five norms by their formulas, in plain operations: gradients are autograd's.

    In float64 they are more exact than PyTorch's functions (2.13 on the CPU). Those compute x * rstd - mean * rstd,
    which of a group of one element is not 0.
    """

    @classmethod
    def _mean(cls, x: Tensor, dims: Any) -> Tensor:
        return x.mean(dims, keepdim=True)

    @classmethod
    def _count(cls, x: Tensor, dims: Any) -> Any:
        """How many elements a mean is of."""
        return x.numel() // x.sum(dims).numel()

    @classmethod
    def layer_norm(
        cls, x: Tensor, shape: Sequence[int], weight: Any, bias: Any, eps: float, dim: int | None = None
    ) -> Tensor:
        """Over the last dimensions, or another."""
        if dim is not None:
            return cls._apply(x - cls._mean(x, dim), (dim,), _channel(x), weight, bias, eps)
        dims = tuple(range(-len(shape), 0))
        return cls._apply(x - cls._mean(x, dims), dims, shape, weight, bias, eps)

    @classmethod
    def normalize(cls, x: Tensor, axes: str, *, over: str, affine: str, weight: Any, bias: Any, eps: float) -> Tensor:
        """Layer norm of (b, t, d) with parameters for each b."""
        assert (axes, over, affine) == ("b t d", "d", "b d")
        return cls._apply(x - cls._mean(x, -1), (-1,), (x.shape[0], 1, -1), weight, bias, eps)

    @classmethod
    def rms_norm(cls, x: Tensor, shape: Sequence[int], weight: Any, eps: float) -> Tensor:
        """As layer norm, with the mean fixed at zero."""
        return cls._apply(x, tuple(range(-len(shape), 0)), shape, weight, None, eps)

    @classmethod
    def group_norm(cls, x: Tensor, groups: int, weight: Any, bias: Any, eps: float) -> Tensor:
        """Over the channels of a group, and space."""
        parts = x.reshape(x.shape[0], groups, -1)
        deviation = parts - cls._mean(parts, 2)
        variance = cls._mean(deviation.square(), 2)
        return cls._scale((deviation / (variance + eps).sqrt()).reshape(x.shape), _channel(x), weight, bias)

    @classmethod
    def batch_norm(
        cls, x: Tensor, mean: Any, variance: Any, weight: Any, bias: Any, training: bool, momentum: float, eps: float
    ) -> Tensor:
        """Over the batch and space."""
        dims = (0, *range(2, x.dim()))
        return cls._running(x, dims, mean, variance, weight, bias, training, momentum, eps)

    @classmethod
    def instance_norm(
        cls, x: Tensor, mean: Any, variance: Any, weight: Any, bias: Any, training: bool, momentum: float, eps: float
    ) -> Tensor:
        """Over space."""
        return cls._running(x, tuple(range(2, x.dim())), mean, variance, weight, bias, training, momentum, eps)

    @classmethod
    def _running(
        cls, x: Tensor, dims: tuple[int, ...], mean: Any, variance: Any, weight: Any, bias: Any, training: bool,
        momentum: float, eps: float,
    ) -> Tensor:  # fmt: skip
        if not training:
            deviation = (x - mean.reshape(_channel(x))) / (variance.reshape(_channel(x)) + eps).sqrt()
            return cls._scale(deviation, _channel(x), weight, bias)
        own = cls._mean(x, dims)
        if mean is not None:
            with torch.no_grad():
                count = cls._count(x, dims)
                unbiased = cls._mean((x - own).square(), dims) * (count / (count - 1))
                for running, new in ((mean, own), (variance, unbiased)):
                    running.mul_(1 - momentum).add_(momentum * new.transpose(0, 1).reshape(x.shape[1], -1).mean(1))
        return cls._apply(x - own, dims, _channel(x), weight, bias, eps)

    @classmethod
    def _apply(
        cls, deviation: Tensor, dims: tuple[int, ...], shape: Sequence[int], weight: Any, bias: Any, eps: float
    ) -> Tensor:
        variance = cls._mean(deviation.square(), dims)
        return cls._scale(deviation / (variance + eps).sqrt(), shape, weight, bias)

    @staticmethod
    def _scale(xhat: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None) -> Tensor:
        y = xhat if weight is None else xhat * weight.reshape(shape)
        return y if bias is None else y + bias.reshape(shape)


def of_those_that(mask: Tensor, shape: Sequence[int]) -> type[Textbook]:
    """`Textbook` for x of this shape, with statistics of the elements where a mask is true."""

    class Masked(Textbook):
        @classmethod
        def _mean(cls, x: Tensor, dims: Any) -> Tensor:
            there = mask.expand(*shape).reshape(x.shape)
            return torch.where(there, x, 0.0).sum(dims, keepdim=True) / cls._count(x, dims).clamp(min=1)

        @classmethod
        def _count(cls, x: Tensor, dims: Any) -> Tensor:
            return mask.expand(*shape).reshape(x.shape).sum(dims, keepdim=True)

    return Masked


def _channel(x: Tensor) -> tuple[int, ...]:
    """The shape in which one value a channel meets x."""
    return (1, x.shape[1], *(1,) * (x.dim() - 2))


def surrounded(norm: Callable[[Tensor, Any], Tensor], given: Operands, dtype: torch.dtype, stages: Stages) -> Any:
    """A norm of (u, weight) with what surrounds it, by the formulas of `normtriton.normalize`.

    A sum with a residual is rounded to ``dtype``, as a library keeps it; its gradient is that of the sum.
    """
    u, around = given.x, given.around
    act = ACTIVATIONS[str(stages.activation)]
    if stages.gate_first:
        u = u * act(around["gate"])
    u = u * around["x_scale"] if "x_scale" in around else u
    if "residual" in around:
        u = u + around["residual"]
        u = u + (u.detach().to(dtype).double() - u.detach())
    weight = None if given.weight is None else given.weight + stages.offset
    z = norm(u, weight)
    z = z + around["skip"] if "skip" in around else z
    if not stages.gate_first:
        z = z * act(around["gate"]) if "gate" in around else act(z)
    z = torch.where(around["mask"], z, 0.0) if "mask" in around else z
    return (z, u) if "residual" in around else z


#: By their formulas.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "": lambda z: z,
    "relu": lambda z: z.clamp(min=0),
    "leaky_relu": lambda z: torch.where(z > 0, z, 0.01 * z),
    "silu": lambda z: z * torch.sigmoid(z),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "gelu": lambda z: z * 0.5 * (1 + torch.erf(z / 2**0.5)),
    "gelu_tanh": lambda z: z * 0.5 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (z + 0.044715 * z**3))),
    "hardswish": lambda z: z * (z + 3).clamp(0, 6) / 6,
}


def gradients(y: Any, given: Operands) -> tuple[Tensor, ...]:
    """Of the inputs, by autograd, which may be asked again; of a norm with a residual both results count."""
    wanted = list(given.inputs.values())
    if isinstance(y, tuple):
        return torch.autograd.grad(y, wanted, (given.dy, given.dtotal), retain_graph=True)
    return torch.autograd.grad(y, wanted, given.dy, retain_graph=True)


def named(y: Any, grads: Sequence[Tensor], given: Operands) -> dict[str, Tensor]:
    """All results of a call and of its backward pass."""
    results = dict(zip(("y", "total"), y if isinstance(y, tuple) else (y,), strict=False))
    found = {name: t.detach() for name, t in results.items()} | dict(zip(given.inputs, grads, strict=True))
    names = ("running mean", "running variance")
    return found | {name: r for name, r in zip(names, given.running, strict=True) if r is not None}


def expected(run: Callable[[Operands], Tensor], given: Operands) -> dict[str, Tensor]:
    """All results in float64; ``run`` calls a function of `Textbook`."""
    wide = given.wide()
    y = run(wide)
    return named(y, gradients(y, wide), wide)


class Difference(NamedTuple):
    """A result that is farther from float64's than rounding explains: its worst element."""

    result: str
    error: float
    allowed: float

    def __str__(self) -> str:
        return f"{self.result} is off by {self.error:.2g} where {self.allowed:.2g} is allowed"


def differences(got: Mapping[str, Tensor], want: Mapping[str, Tensor], given: Operands) -> list[Difference]:
    """The results that are wrong.

    An element may be off by `ROUNDINGS` units in the last place of x's dtype, or of its own if that is coarser, and
    `ARITHMETIC` roundings of the arithmetic (float32, for float64 that), relative to its own size plus the root mean
    square of the whole result: sums cancel, and their terms set the scale. Of a parameter's gradient this scale is at
    least that of a sum of as many values as random as dy.
    """

    def rms(values: Tensor) -> float:
        return values.double().square().mean().sqrt().item()

    dtype = given.x.dtype
    arithmetic = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps / 2
    wrong = []
    for result, right in want.items():
        value = got[result]
        if value.shape != right.shape:
            raise ValueError(f"{result} has shape {tuple(value.shape)}, not {tuple(right.shape)}")
        scale = rms(right)
        if result in ("dweight", "dbias", "dx_scale"):
            scale = max(scale, (given.x.numel() / right.numel()) ** 0.5 * rms(given.dy))
        kinds = [torch.finfo(kind) for kind in (dtype, value.dtype)]
        unit = ROUNDINGS * max(kind.eps for kind in kinds) + ARITHMETIC * arithmetic
        allowed = unit * (right.abs() + scale) + max(kind.tiny for kind in kinds)
        error = (value.double() - right).abs().nan_to_num(nan=float("inf"))
        worst = int((error / allowed).argmax())
        off, limit = error.reshape(-1)[worst].item(), allowed.reshape(-1)[worst].item()
        if off > limit:
            wrong.append(Difference(result, off, limit))
    return wrong
