"""A GPU, what it is, and how long something takes on it.

Times are of work with a cold L2, without the host's part: runs are captured in a CUDA graph, each after the buffer with
which `triton.testing.do_bench` flushes the cache, between two events that the graph records. (The flush writes zeros;
a run may have to wait until some of them are in memory.) What cannot be captured (it waits for the device, say) is
timed by ``do_bench`` itself, and `Times.method` says so: there a run that the host takes longer to enqueue than the
device takes for the flush and the run, about 100 µs, is as slow as the host.
"""

from __future__ import annotations

import gc
import shutil
import subprocess
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import triton
from triton.runtime import driver
from triton.testing import do_bench

import normtriton
from normtriton.runtime import clusters, compiling, tuned

from ..cli import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: Runs in a captured graph.
CAPTURED = 20
#: Times a run is enqueued to learn the host's time.
ENQUEUED = 50
#: Bytes that the ceiling's copy reads at least, and how many times the L2 it is.
COPIED, CACHES = 1 << 29, 8


class Times(NamedTuple):
    """How long a run takes, with a cold L2.

    Attributes:
        us: the median, in µs, as the next two.
        us_low, us_high: the 20th and the 80th percentile.
        method: "graph", without the host's time, or "stream", see the module.
    """

    us: float
    us_low: float
    us_high: float
    method: str


def find() -> torch.device:
    """The current GPU.

    Raises:
        Refusal: there is none, or Triton would not use it.
    """
    if compiling.INTERPRETED:
        raise Refusal("TRITON_INTERPRET=1 has Triton run kernels on the CPU: unset it to use a GPU")
    if torch.version.cuda is None and torch.version.hip is None:
        raise Refusal(f"torch {torch.__version__} is built for the CPU: install one for CUDA or ROCm")
    if not torch.cuda.is_available():
        raise Refusal("torch sees no GPU: look at nvidia-smi or rocm-smi, and at CUDA_VISIBLE_DEVICES")
    return torch.device("cuda", torch.cuda.current_device())


@contextmanager
def working(device: torch.device) -> Iterator[None]:
    """Around all that is to be timed: a stream of its own.

    The default stream cannot be captured, and autograd makes a backward pass on the stream of its forward pass.
    """
    with torch.cuda.device(device), torch.cuda.stream(torch.cuda.Stream(device)):  # type: ignore[no-untyped-call]  # no types
        yield


def facts(device: torch.device) -> dict[str, Any]:
    """What a result depends on besides the call: the machine, the table of tunings and the versions."""
    properties = torch.cuda.get_device_properties(device)
    index, sms = torch.cuda.current_device() if device.index is None else device.index, properties.multi_processor_count
    table = tuned.table_for(index, sms)
    plans = {"clusters": _clusters(index), "tuned": table.source if table else ""}
    return {"machine": properties.name, "sms": sms, "driver": _driver()} | plans | versions()


def versions() -> dict[str, Any]:
    """Of the software; ``commit`` is None outside a checkout."""
    built = {"torch": torch.__version__, "cuda": torch.version.cuda, "hip": torch.version.hip}
    return built | {"triton": triton.__version__, "normtriton": normtriton.__version__, "commit": _commit()}


def _driver() -> str | None:
    """The version of the GPU's driver, where the kernel shows it."""
    file = Path("/sys/module", "nvidia" if torch.version.hip is None else "amdgpu", "version")
    return file.read_text().strip() if file.exists() else None


def _commit() -> str | None:
    """The checkout's commit, with a "+" if files that it knows have changed."""
    root, git = Path(__file__).parents[2], shutil.which("git")
    if git is None or not (root / ".git").exists():
        return None

    def ask(*arguments: str) -> str:
        return subprocess.run([git, "-C", root, *arguments], check=False, capture_output=True, text=True).stdout.strip()

    commit = ask("rev-parse", "--short=12", "HEAD")
    return commit + ("+" if ask("status", "--porcelain", "-uno") else "") if commit else None


def _clusters(index: int) -> str:
    """Whether plans use thread-block clusters there; makes the trial if there was none."""
    if not clusters.supported(index):
        return "not supported"
    if clusters.mode() == "off":
        return "off"
    doubtful = [form for form in clusters.FORMS if not clusters.trusted(index, form)]
    if not doubtful:
        return "used"
    return "not trusted" if len(doubtful) == len(clusters.FORMS) else f"used, but not for {', '.join(doubtful)}"


def time(run: Callable[[], Any], device: torch.device, ms: float = 100.0) -> Times:
    """How long a run takes on the device; call it under `working`.

    Args:
        run: enqueues the work, on the current stream.
        device: where.
        ms: how long to measure, about.
    """
    run()  # compiles, tunes and tries clusters, none of which may be captured
    torch.cuda.synchronize(device)
    try:
        times, method = _replayed(run, device, ms), "graph"
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # it cannot be captured; whatever else is wrong with it is raised below
        torch.cuda.synchronize(device)
        times, method = [1e3 * t for t in do_bench(run, rep=ms, return_mode="all")], "stream"
    fifths = quantiles(times, n=5, method="inclusive") if len(times) > 1 else times * 4
    return Times(median(times), fifths[0], fifths[3], method)


def _replayed(run: Callable[[], Any], device: torch.device, ms: float) -> list[float]:
    """µs of each of many runs that are replayed from a graph."""
    cache = driver.active.get_empty_cache_for_benchmark()
    event = partial(torch.cuda.Event, enable_timing=True, external=True)
    events = [(event(), event()) for _ in range(CAPTURED)]
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.current_stream(device)
    gc.disable()  # a compiled kernel that is collected unloads its module, which a capture does not survive
    try:
        with torch.cuda.graph(graph, stream=stream):
            for start, end in events:
                driver.active.clear_cache(cache)
                start.record()
                run()
                end.record()
    finally:
        gc.enable()
    times = []
    spent, replays = 0.0, -1  # the first is to warm up
    while replays < 1 or spent < ms / 1e3:
        began = perf_counter()
        graph.replay()
        torch.cuda.synchronize(device)
        replays += 1
        if replays:
            spent += perf_counter() - began
            times += [1e3 * start.elapsed_time(end) for start, end in events]
    return times


def host_us(run: Callable[[], Any], device: torch.device) -> float:
    """µs that the host takes to enqueue a run on an idle device, without waiting for it: the median."""
    times = []
    for _ in range(ENQUEUED):
        torch.cuda.synchronize(device)
        began = perf_counter()
        run()
        times.append(1e6 * (perf_counter() - began))
    torch.cuda.synchronize(device)
    return median(times)


def ceiling(device: torch.device) -> float:
    """GB/s, read and written, of copying one tensor far larger than the L2 to another."""
    size = max(COPIED, CACHES * torch.cuda.get_device_properties(device).L2_cache_size)
    here, there = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    return 2 * size / time(lambda: there.copy_(here), device).us / 1e3
