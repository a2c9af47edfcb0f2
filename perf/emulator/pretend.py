"""CPU tensors say that they are on ``cuda:0``, and ``torch.cuda`` describes a GPU that is not there.

Libraries ask ``x.is_cuda``, plan for ``torch.cuda.get_device_properties(...).multi_processor_count`` and enter
``torch.cuda.device(...)`` before a launch; without a GPU they would take another road. `enable` replaces, in Python
only and for the rest of the process:

    torch.Tensor    device, is_cuda, is_cpu, get_device, to, cuda: a CPU tensor's are a GPU's
    factories       of `torch` and of `torch.Tensor`: ``device="cuda"`` is the CPU, as is ``Tensor.to("cuda")``
    torch.cuda      what there is to ask: properties, capability, name, current device and stream
    torch.version   cuda, where torch was built without

PyTorch's own operators see what is there: CPU tensors. ``torch.cuda.Event`` is left as it is, so that nobody takes a
time from this device.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import wraps
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from normtriton.runtime.switch import whole_number

from ..cases.targets import PLANNED_FOR
from ..count import l2
from ..count.occupancy import LIMITS

if TYPE_CHECKING:
    from collections.abc import Callable

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
_L2 = {machine.name: machine.l2 for machine in (l2.A100, l2.H100, l2.B200)}

_FACTORIES = (
    *("empty", "zeros", "ones", "full", "rand", "randn", "randint", "randperm", "arange", "linspace", "eye"),
    *("empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like"),
    *("tensor", "as_tensor", "scalar_tensor", "empty_strided", "empty_permuted"),
)
_OWN_FACTORIES = ("new_empty", "new_zeros", "new_ones", "new_full", "new_tensor", "new_empty_strided")


class Profile(NamedTuple):
    """What a GPU says of itself.

    Attributes:
        target: "sm_90" and the like.
        name: for people.
        capability: compute capability.
        sms: multiprocessors.
        l2: bytes of the second-level cache.
    """

    target: str
    name: str
    capability: tuple[int, int]
    sms: int
    l2: int

    @property
    def properties(self) -> SimpleNamespace:
        """As ``torch.cuda.get_device_properties`` gives them."""
        limits = LIMITS[self.target]
        return SimpleNamespace(
            name=self.name,
            major=self.capability[0],
            minor=self.capability[1],
            multi_processor_count=self.sms,
            warp_size=limits.lanes,
            max_threads_per_multi_processor=limits.warps * limits.lanes,
            regs_per_multiprocessor=4 * limits.registers,
            shared_memory_per_multiprocessor=limits.shared,
            shared_memory_per_block_optin=limits.shared - limits.reserved,
            L2_cache_size=self.l2,
        )


def profile(target: str, sms: int | None = None) -> Profile:
    """The GPU of a target, with another number of multiprocessors if one is given.

    Raises:
        TypeError: sms is no integer.
        ValueError: the target is none that is emulated, or sms is less than 1.
    """
    known = [name for name in PLANNED_FOR if name.startswith("sm_")]
    if target not in known:
        raise ValueError(f"no such target: {target!r}; there are {', '.join(known)}")
    name, device = PLANNED_FOR[target]
    sms = device.sms if sms is None else whole_number(sms, "enable(): argument 'sms'")
    major, minor = divmod(int(target.removeprefix("sm_")), 10)
    return Profile(target, f"NVIDIA {name} (emulated)", (major, minor), sms, _L2[name])


def enable(gpu: Profile) -> None:
    """Have every CPU tensor, and ``torch.cuda``, answer as a GPU would."""
    _tensors()
    _cuda(gpu)
    if torch.version.cuda is None:
        torch.version.cuda = "12.8"


def _is_gpu(device: Any) -> bool:
    if isinstance(device, torch.device):
        return device.type == "cuda"
    return device.startswith("cuda") if isinstance(device, str) else isinstance(device, int)


def _made_here(factory: Callable[..., Any]) -> Callable[..., Any]:
    """A factory that makes on the CPU what is asked for on a GPU."""

    @wraps(factory)
    def made(*args: Any, **kwargs: Any) -> Any:
        if _is_gpu(kwargs.get("device")):
            kwargs["device"] = CPU
        return factory(*args, **kwargs)

    return made


def _tensors() -> None:
    tensor: Any = torch.Tensor
    where, on_cpu, to = tensor.device.__get__, tensor.is_cpu.__get__, tensor.to

    @wraps(to)
    def moved(self: Any, *args: Any, **kwargs: Any) -> Any:
        if _is_gpu(kwargs.get("device")):
            kwargs["device"] = CPU
        if args and not isinstance(args[0], int) and _is_gpu(args[0]):
            args = (CPU, *args[1:])
        return to(self, *args, **kwargs)

    tensor.device = property(lambda self: GPU if on_cpu(self) else where(self))
    tensor.is_cuda = property(on_cpu)
    tensor.is_cpu = property(lambda _self: False)
    tensor.get_device = lambda self: 0 if on_cpu(self) else -1
    tensor.to = moved
    tensor.cuda = lambda self, *_args, **_kwargs: self
    for owner, names in ((torch, _FACTORIES), (torch.Tensor, _OWN_FACTORIES)):
        for name in names:
            setattr(owner, name, _made_here(getattr(owner, name)))


def _cuda(gpu: Profile) -> None:
    stream = SimpleNamespace(
        cuda_stream=0, device=GPU, synchronize=lambda: None, wait_stream=lambda *_: None, wait_event=lambda *_: None
    )
    answers = {
        "is_available": True,
        "is_initialized": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_properties": gpu.properties,
        "get_device_capability": gpu.capability,
        "get_device_name": gpu.name,
        "is_bf16_supported": True,
        "is_current_stream_capturing": False,
        "current_stream": stream,
        "default_stream": stream,
        **dict.fromkeys(("_lazy_init", "init", "set_device", "synchronize", "empty_cache")),
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *_args, _answer=answer, **_kwargs: _answer)
    for name in ("device", "device_of", "stream"):
        setattr(torch.cuda, name, lambda *_args, **_kwargs: nullcontext())
    if not hasattr(torch._C, "_cuda_getCurrentRawStream"):
        torch._C._cuda_getCurrentRawStream = lambda device: 0  # noqa: ARG005  as its stub names it
