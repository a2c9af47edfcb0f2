"""Norms whose groups extend over processes: what their functions do with ``process_group``."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.compiler import is_compiling

from .autograd import across, across_operators
from .autograd.surrounded import after, before, decomposed
from .planning.stages import ALONE
from .runtime.processes import processes, traced
from .surroundings import Surroundings, check_averages, surroundings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from torch import Tensor

    from .autograd.call import Call
    from .runtime.processes import Named, Processes


class Started:
    """A call that has told the other processes what it measured, and has not waited for what they tell.

    The call is made twice, with this in the place of its process group: to tell, and to finish.

    Attributes:
        among: the processes of the group; None without one.
        telling: whether the call is being made to tell.
        told: what it told; None before, and where nobody is told.
    """

    def __init__(self, name: str, call: Callable[..., Any], tensors: Iterable[Any], process_group: Any) -> None:
        """Make the first ``call``, of a function or module of this ``name``; ``tensors`` are what it reads."""
        if is_compiling():
            raise NotImplementedError(f"{name}.start(): compilers do not trace it")
        self.among = None if process_group is None else processes(name, process_group)
        self.telling = True
        self.told: across.Told | None = None
        self._name = name
        self._call: Callable[..., Any] | None = call
        own = [t for t in tensors if isinstance(t, torch.Tensor)]
        self._versions = [(t, t._version) for t in own if not t.is_inference()]
        self._modes: list[Callable[[], Any]] = [partial(torch.set_grad_enabled, torch.is_grad_enabled())]
        for device in {t.device.type for t in own}:
            if torch.amp.is_autocast_available(device):
                options = torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
                self._modes.append(partial(torch.autocast, device, *options))
        call(self)
        self.telling = False

    def finish(self) -> Any:
        """Wait for what the others told, and return the call's result; once.

        Running statistics are updated here. Gradient mode and autocast are those of the start.

        Raises:
            RuntimeError: a tensor of the call was changed in place since it was started, or it is finished already; or
                another process has made another call, or is gone, as of the call itself.
        """
        if self._call is None:
            raise RuntimeError(f"{self._name}: a started call is finished once, and this one is already")
        for t, version in self._versions:
            if t._version != version:
                raise RuntimeError(
                    f"{self._name}: one of the tensors of a started call has been modified by an inplace operation: "
                    f"[{t.type()} {[*t.shape]}] is at version {t._version}; expected version {version} instead"
                )
        call, self._call, self._versions = self._call, None, []
        with ExitStack() as stack:
            for mode in self._modes:
                stack.enter_context(mode())
            return call(self)


def shared(function: str, process_group: Any) -> Processes | Named | None:
    """The processes of a ``process_group``; None if there is one alone.

    Raises:
        TypeError, ValueError: as `normtriton.runtime.processes.processes`.
    """
    among = (traced if is_compiling() else processes)(function, process_group)
    return among if among.size > 1 else None


def sharing(function: str, process_group: Any) -> Processes | Named | Started | None:
    """`shared`, or the started call in the place of a ``process_group``."""
    if isinstance(process_group, Started):
        return process_group if process_group.among and process_group.among.size > 1 else None
    return shared(function, process_group)


def telling(process_group: Any) -> bool:
    """Whether a call is made to tell, and not for its result."""
    return isinstance(process_group, Started) and process_group.telling


def run(
    function: str,
    among: Processes | Named | Started,
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
        among: who shares the groups; of a call that is made to tell, x is returned.
        x, weight, bias, around: of the norm.
        checked: checks a call of (u, weight, bias): its `Call`, and its parameters as `across` takes them.
        spread: makes a parameter broadcast against x.

    Raises:
        NotImplementedError: the result is to be quantized, or a call with a mask started; or what `across` raises.
    """
    given = surroundings(function, x, weight, around, spread) if around else Surroundings({}, {}, ALONE)
    if given.stages.quantize:
        raise NotImplementedError(f"{function}(): process_group= and quantize: quantize what it returns")
    mask, everything = given.tensors.get("mask"), given.tensors | given.modulation

    if isinstance(among, Started):
        if mask is not None:
            raise NotImplementedError(f"{function}(): a call with a mask has three collectives, and is not started")
        if among.telling:
            u, w, b = before(x, weight, bias, everything, given.stages)
            call, w, b = checked(u, w, b)
            among.told = across.start(function, u, w, b, call, cast("Processes", among.among))
            return x
        told, among.told = cast("across.Told", among.told), None
        call, *_ = checked(told.x, told.weight, told.bias)
        y = across.finish(told, call)
        return after(y, told.x, spread, x, weight, bias, everything, given.stages)  # type: ignore[return-value]

    def plain(u: Tensor, w: Tensor | None, b: Tensor | None) -> Tensor:
        call, w, b = checked(u, w, b)
        normalize: Any = across_operators.normalize if is_compiling() else across.normalize
        return normalize(function, u, w, b, call, among)  # type: ignore[no-any-return]

    def masked(u: Tensor, w: Tensor | None, b: Tensor | None) -> Tensor:
        call, w, b = checked(u, w, b)
        check_averages(function, call, given.stages)
        return across.masked(function, u, w, b, call, among, mask)  # type: ignore[arg-type]  # while compiling it raises

    if not around:
        return plain(x, weight, bias)
    return decomposed(plain if mask is None else masked, spread, x, weight, bias, everything, given.stages)  # type: ignore[return-value]  # two with a residual
