"""The norms as modules: subclasses of `torch.nn`'s, with their constructors, parameters, buffers and state dicts.

`torch.jit.script` compiles `torch.nn`'s forwards in place of the library's, see `scripted_as`.
"""

from __future__ import annotations

import inspect
import warnings  # noqa: F401  scripted functions call it so
from inspect import Parameter
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: F401, N812  scripted functions call it so
from torch import nn

from . import functional
from .autograd.operators import counts_batches
from .distributed import Started, telling
from .surroundings import check_settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor
    from typing_extensions import Unpack

    from .surroundings import Around

_Method = TypeVar("_Method", bound="Callable[..., Any]")

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "RMSNorm",
    "SyncBatchNorm",
]


def _parameter(module: nn.Module, name: str) -> Any:
    """A parameter or buffer, or None. Asking the module takes three times as long; it knows of those replaced."""
    for members in (module._parameters, module._buffers):
        if name in members:
            return members[name]
    return getattr(module, name)


def _affine(module: nn.Module) -> tuple[Any, Any]:
    """The weight and the bias: one call, where two of `_parameter` would take 0.3 µs more."""
    parameters = module._parameters
    try:
        return parameters["weight"], parameters["bias"]
    except KeyError:
        return _parameter(module, "weight"), _parameter(module, "bias")


def scripted_as(theirs: Callable[..., Any]) -> Callable[[_Method], _Method]:
    """Have `torch.jit.script` compile another function in a method's place.

    It looks for the source in what a method says it wraps, and for what that source names in the method's own module.
    """

    def mark(ours: _Method) -> _Method:
        ours.__wrapped__ = theirs  # type: ignore[attr-defined]
        return ours

    return mark


class Leaf(nn.Module):
    """A module that `torch.fx` does not look into, as it looks into none of `torch.nn`'s: `normtriton.exporters`.

    Its constructor takes settings of its own, keyword-only, which modules that were made as `torch.nn`'s have too:

        activation, offset, round_first, gate_first: see `normtriton.normalize`. What surrounds the norm and is a
            tensor, residual, x_scale, scale, shift, skip, gate and mask, is given with the input, and so is quantize:
            ``norm(x, skip=identity)``.
        process_group: the processes that the groups extend over, see `normtriton.normalize`.
        dim: of layer and RMS norm, the dimensions to normalize; None for the last ones.
    """

    # cast, since `torch.jit.script` reads the annotations of a class
    activation = cast("str | None", None)
    offset = 0.0
    round_first = False
    gate_first = False
    process_group = cast("Any", None)
    _settings = cast("tuple[str, ...]", ("activation", "offset", "round_first", "gate_first", "process_group"))

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Make `torch.nn`'s module, with settings."""
        own = {name: kwargs.pop(name) for name in self._settings if name in kwargs}
        check_settings(type(self).__name__, own)
        vars(self).update({name: tuple(value) if isinstance(value, list) else value for name, value in own.items()})
        super().__init__(*args, **kwargs)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Let `inspect` and `help` see `torch.nn`'s arguments, and those of our own."""
        super().__init_subclass__(**kwargs)
        base = next(kind for kind in cls.__mro__ if not issubclass(kind, Leaf))
        if base is not nn.Module:
            theirs = inspect.signature(base)
            own = [Parameter(n, Parameter.KEYWORD_ONLY, default=getattr(cls, n)) for n in cls._settings]
            parameters = sorted([*theirs.parameters.values(), *own], key=lambda p: p.kind)  # own ones before **kwargs
            cls.__signature__ = theirs.replace(parameters=parameters)  # type: ignore[attr-defined]  # for `inspect`

    def reset_parameters(self) -> None:
        """As `torch.nn`'s; a weight that counts from ``offset`` begins where it multiplies by 1."""
        super().reset_parameters()  # type: ignore[misc]  # of the class that this is one of
        weight = _parameter(self, "weight")
        if self.offset and weight is not None:
            with torch.no_grad():
                weight.sub_(self.offset)

    def beyond_torch(self) -> str:
        """The settings that `torch.nn`'s class of the same name does not have; empty if it computes the same."""
        changed = [name for name in self._settings if getattr(self, name) != getattr(type(self), name)]
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in changed)

    def extra_repr(self) -> str:
        return ", ".join(filter(None, (super().extra_repr(), self.beyond_torch())))

    def __prepare_scriptable__(self) -> nn.Module:
        if self.beyond_torch():
            raise NotImplementedError(
                f"torch.jit.script compiles torch.nn.{type(self).__name__}, which knows no {self.beyond_torch()}"
            )
        return self

    def start(self, x: Tensor, **around: Unpack[Around]) -> Started:
        """Begin a call whose groups extend over processes: tell them of x, and wait for nobody.

            started = norm.start(x, residual=r)
            ...                                  # the processes talk
            y, u = started.finish()              # norm(x, residual=r)

        What comes before the norm is computed, and x is measured. `finish` waits for the others, computes the rest and
        updates running statistics; a call that is not finished leaves them as they are. Where there is nobody to tell,
        as without a ``process_group``, `finish` is the whole call. Several calls may be started before the first is
        finished; all processes start and finish them in the same order.

        Args:
            x, around: as of the call. They and the parameters are not to be changed before `finish`.
        Raises:
            NotImplementedError: a mask, a compiler, or a module with hooks, which are of a call in one piece.
            What the call raises of what is wrong with its arguments, or if the others make another one.
        """
        name, training = type(self).__name__, self.training
        hooks = self._forward_pre_hooks, self._forward_hooks, self._backward_pre_hooks, self._backward_hooks
        if any(hooks) or nn.modules.module._has_any_global_hook():  # type: ignore[no-untyped-call]  # torch has no types
            raise NotImplementedError(f"{name}.start(): the module has hooks, which run in a call alone")

        def call(group: Started) -> Any:
            if self.training != training:
                raise RuntimeError(f"{name}: a call was started in {'training' if training else 'evaluation'}")
            given: Any = {**around, "process_group": group}
            return self.forward(x, **given)

        return Started(name, call, (x, *around.values(), *self.parameters()), self._shared_with())

    def _shared_with(self) -> Any:
        """The process group of a call."""
        return self.process_group

    def surrounded(self, x: Tensor, around: Around) -> Any:
        """Normalize x with what surrounds it, which most modules take by keyword."""
        return self(x, **around)

    def _surrounded(self, around: Any) -> Any:
        """What surrounds a call: what is given with it, and the settings."""
        return {name: value for name in Leaf._settings if (value := getattr(self, name))} | around


class _BatchNorm(Leaf, nn.modules.batchnorm._BatchNorm):
    @scripted_as(nn.modules.batchnorm._BatchNorm.forward)
    def forward(self, input: Tensor, **around: Unpack[Around]) -> Tensor:  # noqa: A002  PyTorch's name, here and below
        if self.process_group is not None or self.activation or self.offset or self.round_first or self.gate_first:
            around = self._surrounded(around)
        self._check_input_dim(input)  # type: ignore[no-untyped-call]  # torch has no types for it
        momentum, parameters, buffers = self.momentum, self._parameters, self._buffers
        updating, batches = self.training and self.track_running_stats, None
        try:  # a call of `_parameter` for each would take 1 µs in all
            weight, bias = parameters["weight"], parameters["bias"]
            mean, var = buffers["running_mean"], buffers["running_var"]
            if updating:
                batches = buffers["num_batches_tracked"]
        except KeyError:
            weight, bias = _parameter(self, "weight"), _parameter(self, "bias")
            mean, var = _parameter(self, "running_mean"), _parameter(self, "running_var")
            if updating:
                batches = _parameter(self, "num_batches_tracked")
        if batches is not None and not (
            self._counts_itself(input, batches, mean) or telling(around.get("process_group"))
        ):
            batches.add_(1)
            if momentum is None:  # the cumulative average
                momentum = 1.0 / float(batches)
            batches = None
        own = self.training or (mean is None and var is None)
        if not (updating or not self.training):
            mean = var = None
        momentum = 0.0 if momentum is None else momentum
        if batches is None:
            return functional.batch_norm(input, mean, var, weight, bias, own, momentum, self.eps, **around)
        given = (mean, var, weight, bias, own, momentum, self.eps, batches)
        try:
            return functional.counting_batch_norm(input, *given, **around)
        except Exception:
            batches.add_(1)  # PyTorch counts before it checks
            raise

    def _counts_itself(self, input: Tensor, batches: Tensor, mean: Tensor | None) -> bool:  # noqa: A002
        """Whether the kernel that updates the running statistics, if one does, can count the batch: a launch less."""
        return (
            self.momentum is not None
            and mean is not None
            and counts_batches()
            and input.numel() > 0
            and batches.dtype == torch.int64
            and batches.device == input.device
        )


class _InstanceNorm(Leaf, nn.modules.instancenorm._InstanceNorm):
    @scripted_as(nn.modules.instancenorm._InstanceNorm.forward)
    def forward(self, input: Tensor, **around: Unpack[Around]) -> Tensor:  # noqa: A002
        if self.process_group is not None or self.activation or self.offset or self.round_first or self.gate_first:
            around = self._surrounded(around)
        if not around:
            return super().forward(input)  # checks it, and calls the method below
        self._check_input_dim(input)  # type: ignore[no-untyped-call]  # torch has no types for it
        if input.dim() == self._get_no_batch_dim():  # type: ignore[no-untyped-call]  # torch has no types for it
            alone = {k: v.unsqueeze(0) if isinstance(v, torch.Tensor) else v for k, v in around.items()}
            y = self._normalized(input.unsqueeze(0), alone)
            return tuple(t.squeeze(0) for t in y) if isinstance(y, tuple) else y.squeeze(0)
        return self._normalized(input, around)

    @scripted_as(nn.modules.instancenorm._InstanceNorm._apply_instance_norm)
    def _apply_instance_norm(self, input: Tensor) -> Tensor:  # noqa: A002
        return self._normalized(input, {})

    def _normalized(self, x: Tensor, around: Any) -> Tensor:
        weight, bias = _affine(self)
        return functional.instance_norm(
            x,
            _parameter(self, "running_mean"),
            _parameter(self, "running_var"),
            weight,
            bias,
            self.training or not self.track_running_stats,
            0.0 if self.momentum is None else self.momentum,
            self.eps,
            **around,
        )


class BatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d`, computed by `normtriton.batch_norm`."""


class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d`, computed by `normtriton.batch_norm`."""


class BatchNorm3d(_BatchNorm, nn.BatchNorm3d):
    """`torch.nn.BatchNorm3d`, computed by `normtriton.batch_norm`."""


class SyncBatchNorm(_BatchNorm, nn.SyncBatchNorm):
    """`torch.nn.SyncBatchNorm`, computed by `normtriton.batch_norm`, with `Leaf`'s settings.

    Differs in that it takes tensors on the CPU. Parts of a batch may differ in size, and in what they hold of each
    sample; some may be empty. In evaluation, and where there is one process, nothing is sent.

    Args:
        process_group: a ProcessGroup, or a DeviceMesh of one dimension; None for all processes.
    """

    _settings = tuple(name for name in Leaf._settings if name != "process_group")  # torch.nn's class has it

    @scripted_as(nn.SyncBatchNorm.forward)
    def forward(self, input: Tensor, **around: Unpack[Around]) -> Tensor:  # noqa: A002
        given: Any = {"process_group": self._shared_with(), **around}
        return super().forward(input, **given)

    def _shared_with(self) -> Any:
        if self.training and dist.is_available() and dist.is_initialized():
            return dist.group.WORLD if self.process_group is None else self.process_group
        return None

    @classmethod
    def convert_sync_batchnorm(cls, module: nn.Module, process_group: Any = None) -> nn.Module:
        """`torch.nn.SyncBatchNorm.convert_sync_batchnorm`, to this class: of `torch.nn`'s batch norms and of these.

        Differs in that `normtriton`'s settings are kept, a ``process_group`` too if none is given.
        """
        made = module
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            group = getattr(module, "process_group", None) if process_group is None else process_group
            made = _moved(module, cls, process_group=group)
            made.converted_from = getattr(module, "converted_from", type(module))
        for name, child in module.named_children():
            made.add_module(name, cls.convert_sync_batchnorm(child, process_group))
        return made

    @staticmethod
    def revert_sync_batchnorm(module: nn.Module, otherwise: type[nn.Module] = BatchNorm2d) -> nn.Module:
        """The reverse of `convert_sync_batchnorm`, with the parameters and statistics of now.

        Args:
            module: whose `torch.nn.SyncBatchNorm`s, these and their subclasses, get back the class that they had.
            otherwise: the class of those that were made as they are, or converted by `torch.nn.SyncBatchNorm`.
        Returns:
            The module, with others in their places; another, if it is one of them itself.
        """
        made = module
        if isinstance(module, nn.SyncBatchNorm):
            made = _moved(module, getattr(module, "converted_from", otherwise))
        for name, child in module.named_children():
            made.add_module(name, SyncBatchNorm.revert_sync_batchnorm(child, otherwise))
        return made


def _moved(module: Any, kind: Any, **more: Any) -> Any:
    """A batch norm of another class with the same parameters, buffers and settings."""
    own = getattr(kind, "_settings", ())
    settings = {name: getattr(module, name) for name in own if name != "process_group" and hasattr(module, name)}
    sizes = (module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats)
    made = kind(*sizes, **settings, **more)
    for members in ("_parameters", "_buffers"):
        vars(made)[members].update(vars(module)[members])
    made.train(module.training)
    if hasattr(module, "qconfig"):
        made.qconfig = module.qconfig
    return made


class InstanceNorm1d(_InstanceNorm, nn.InstanceNorm1d):
    """`torch.nn.InstanceNorm1d`, computed by `normtriton.instance_norm`."""


class InstanceNorm2d(_InstanceNorm, nn.InstanceNorm2d):
    """`torch.nn.InstanceNorm2d`, computed by `normtriton.instance_norm`."""


class InstanceNorm3d(_InstanceNorm, nn.InstanceNorm3d):
    """`torch.nn.InstanceNorm3d`, computed by `normtriton.instance_norm`."""


class _OverDimensions(Leaf):
    dim = cast("int | tuple[int, ...] | None", None)
    _settings = (*Leaf._settings, "dim")


class LayerNorm(_OverDimensions, nn.LayerNorm):
    """`torch.nn.LayerNorm`, computed by `normtriton.layer_norm`, with `Leaf`'s settings.

    ``LayerNorm(c, dim=1)`` normalizes the channels of images, where they are.
    """

    @scripted_as(nn.LayerNorm.forward)
    def forward(self, input: Tensor, **around: Unpack[Around]) -> Tensor:  # noqa: A002
        if self.process_group is not None or self.activation or self.offset or self.round_first or self.gate_first:
            around = self._surrounded(around)
        return functional.layer_norm(input, self.normalized_shape, *_affine(self), self.eps, dim=self.dim, **around)


class GroupNorm(Leaf, nn.GroupNorm):
    """`torch.nn.GroupNorm`, computed by `normtriton.group_norm`, with `Leaf`'s settings."""

    @scripted_as(nn.GroupNorm.forward)
    def forward(self, input: Tensor, **around: Unpack[Around]) -> Tensor:  # noqa: A002
        if self.process_group is not None or self.activation or self.offset or self.round_first or self.gate_first:
            around = self._surrounded(around)
        return functional.group_norm(input, self.num_groups, *_affine(self), self.eps, **around)


class RMSNorm(_OverDimensions, nn.RMSNorm):
    """`torch.nn.RMSNorm`, computed by `normtriton.rms_norm`, with `Leaf`'s settings.

    ``RMSNorm(d)(x, residual=r)`` returns (y, x + r).
    """

    @scripted_as(nn.RMSNorm.forward)
    def forward(self, x: Tensor, **around: Unpack[Around]) -> Tensor:
        if self.process_group is not None or self.activation or self.offset or self.round_first or self.gate_first:
            around = self._surrounded(around)
        return functional.rms_norm(
            x, self.normalized_shape, _parameter(self, "weight"), self.eps, dim=self.dim, **around
        )
