"""Make plain CPU tensors say they are on ``cuda:0``.

Libraries branch on ``x.is_cuda`` / ``x.device.type`` and size grids from
``torch.cuda.get_device_properties(...).multi_processor_count``; on a CPU-only
build they would otherwise take another road than on a GPU (Liger, for one,
launches its backward with a single program).  ``enable()`` patches, at the
Python level only:

* ``Tensor.device / is_cuda / is_cpu / get_device``,
* the ``device=`` keyword of factories and of ``Tensor.to / cuda / new_*``
  (a cuda device is rewritten to cpu: memory stays ordinary host memory),
* the ``torch.cuda`` queries libraries use (properties, capability, stream, ...).

Cost it adds to a host-time measurement: one Python property per ``.device``
and one Python wrapper per factory call; ``hostcost.py`` measures and prints it.
"""

from __future__ import annotations

import contextlib
import types

import torch

PROFILES = {
    #            SMs, cc,      smem/SM,   L2,         DRAM B/s, warp
    "a100": dict(sms=108, cc=(8, 0), smem=167936, smem_block=166912, l2=40 << 20, bw=2.039e12, clock=1.41e9),
    "h100": dict(sms=132, cc=(9, 0), smem=233472, smem_block=232448, l2=50 << 20, bw=3.35e12, clock=1.755e9),
    "b200": dict(sms=148, cc=(10, 0), smem=233472, smem_block=232448, l2=126 << 20, bw=8.0e12, clock=1.9e9),
}
_state = {"on": False, "profile": None}
DEV = torch.device("cuda", 0)
_CPU = torch.device("cpu")


def _is_cuda_dev(d):
    if d is None:
        return False
    if isinstance(d, torch.device):
        return d.type == "cuda"
    if isinstance(d, str):
        return d.startswith("cuda")
    return isinstance(d, int)


def set_sms(n: int):
    """Change the SM count the fake device reports (grids sized from it scale)."""
    _state["profile"]["sms"] = n


def profile():
    return _state["profile"]


class _Props:
    """Object returned by torch.cuda.get_device_properties."""

    def __getattr__(self, k):
        p = _state["profile"]
        table = dict(
            name="NVIDIA H100 (emulated)",
            multi_processor_count=p["sms"],
            major=p["cc"][0],
            minor=p["cc"][1],
            warp_size=32,
            max_threads_per_multi_processor=2048,
            regs_per_multiprocessor=65536,
            total_memory=80 << 30,
            L2_cache_size=p["l2"],
            shared_memory_per_block=49152,
            shared_memory_per_block_optin=p["smem_block"],
            shared_memory_per_multiprocessor=p["smem"],
            is_integrated=0,
            is_multi_gpu_board=0,
            gcnArchName="",
            uuid="emulated",
        )
        try:
            return table[k]
        except KeyError:
            raise AttributeError(k)


class _Stream:
    cuda_stream = 0
    device = DEV

    def synchronize(self):
        pass

    def wait_stream(self, *_):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *a):
        return False


class _NoDev:
    """torch.cuda.device / device_of / stream stand-in (a no-op context)."""

    def __init__(self, *a):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *a):
        return False


class _Event:
    def __init__(self, *a, **k):
        pass

    def record(self, *a):
        pass

    def synchronize(self):
        pass

    def elapsed_time(self, other):
        return 1.0

    def query(self):
        return True


def enable(name="h100", sms=None):
    if _state["on"]:
        if sms:
            set_sms(sms)
        return
    _state["on"] = True
    _state["profile"] = dict(PROFILES[name])
    if sms:
        _state["profile"]["sms"] = sms

    T = torch.Tensor
    T.device = property(lambda self: DEV)
    T.is_cuda = property(lambda self: True)
    T.is_cpu = property(lambda self: False)
    T.get_device = lambda self: 0

    def fix_kw(fn):
        def wrapped(*a, **k):
            d = k.get("device")
            if d is not None and _is_cuda_dev(d):
                k["device"] = _CPU
            return fn(*a, **k)

        wrapped.__name__ = getattr(fn, "__name__", "factory")
        wrapped.__wrapped__ = fn
        return wrapped

    for n in (
        "empty",
        "zeros",
        "ones",
        "full",
        "rand",
        "randn",
        "randint",
        "randperm",
        "arange",
        "tensor",
        "as_tensor",
        "empty_like",
        "zeros_like",
        "ones_like",
        "full_like",
        "rand_like",
        "randn_like",
        "empty_strided",
        "scalar_tensor",
        "linspace",
        "eye",
        "empty_permuted",
    ):
        setattr(torch, n, fix_kw(getattr(torch, n)))
    for n in ("new_empty", "new_zeros", "new_ones", "new_full", "new_tensor", "new_empty_strided"):
        setattr(T, n, fix_kw(getattr(T, n)))
    orig_to = T.to

    def to(self, *a, **k):
        if _is_cuda_dev(k.get("device")):
            k = dict(k, device=_CPU)
        if a and (isinstance(a[0], torch.device) or isinstance(a[0], str)) and _is_cuda_dev(a[0]):
            a = (_CPU,) + a[1:]
        if not a and not k:
            return self
        return orig_to(self, *a, **k)

    T.to = to
    T.cuda = lambda self, *a, **k: self

    C = torch.cuda
    props = _Props()
    C.is_available = lambda: True
    C.is_initialized = lambda: True
    C._lazy_init = lambda: None
    C.init = lambda: None
    C.device_count = lambda: 1
    C.current_device = lambda: 0
    C.set_device = lambda d: None
    C.get_device_properties = lambda d=None: props
    C.get_device_capability = lambda d=None: _state["profile"]["cc"]
    C.get_device_name = lambda d=None: props.name
    C.is_bf16_supported = lambda *a, **k: True
    C.synchronize = lambda *a: None
    C.is_current_stream_capturing = lambda: False
    C.empty_cache = lambda: None
    s = _Stream()
    C.current_stream = lambda *a: s
    C.default_stream = lambda *a: s
    C.device = _NoDev
    C.device_of = _NoDev
    C.stream = _NoDev
    C.Event = _Event
    if not hasattr(torch._C, "_cuda_getCurrentRawStream"):
        torch._C._cuda_getCurrentRawStream = lambda i: 0
    if torch.version.cuda is None:
        torch.version.cuda = "12.8"
