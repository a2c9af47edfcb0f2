"""Whether thread-block clusters may be used: up to eight thread blocks that hold a group together and read it once.

A cluster needs an NVIDIA GPU of compute capability 9.0 to 11.x and Triton 3.9. ``NORMTRITON_CLUSTERS``, or `set_mode`:

    auto    use them where a trial on the device agreed with the results of separate launches (the default)
    on      use them wherever they are supported, without a trial; in Triton's interpreter too, which has no clusters
            but runs the same plans
    off     never

A trial is one pass of a small norm, in clusters and without. Each of the `FORMS` that clusters take has a trial of its
own, once for a device and a Triton version, when its first launch is to be made. The verdict is kept in a file of its
own in ``NORMTRITON_CACHE``, by default ``normtriton`` in the user's cache folder. Where it cannot be kept, each process
makes a trial. A form that is not trusted takes separate launches. A launch that fails all the same is warned of once,
made again without clusters, and no other is tried.
"""

from __future__ import annotations

import warnings
from contextlib import suppress
from hashlib import sha256
from threading import RLock
from typing import TYPE_CHECKING

import torch
import triton

from . import cache
from .switch import Switch, changed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ..planning.schedule import Launch

#: The forms that clusters take, see `form_of`: what thread blocks exchange differs, so each is trusted for itself.
FORMS = (
    *("rows forward", "columns forward", "cells forward"),
    *("rows backward", "swept rows backward", "columns backward", "cells backward"),
)

#: Makes a trial of a form on a device. `normtriton.runtime.trial`, which launches and so stands above this module, puts
#: its own here; without one nothing is trusted.
trial: Callable[[int, str], bool] = lambda _index, _form: False

_switch = Switch("NORMTRITON_CLUSTERS", "auto", "on", "off")
refused: set[int] = set()  #: devices on which a launch failed; -1 is the interpreter's
_verdicts: dict[tuple[int, str], bool] = {}  #: by device and form
_trying: set[tuple[int, str]] = set()  #: of which a trial runs
_lock = RLock()  #: one thread makes a trial, whose own launches ask again; the others wait for the verdict
#: A verdict as its file has it, behind the key. Nothing else is one: no file of another key, and none that is cut off.
_WORDS = {True: "results agree", False: "results differ"}


def mode() -> str:
    """The setting in force: "auto", "on" or "off"."""
    return _switch.mode


def set_mode(mode: str) -> None:
    """Change the setting for the calls that follow.

    Raises:
        ValueError: not one of the three.
    """
    _switch.set(mode)
    changed()


def compiles() -> bool:
    """Whether this Triton compiles sums across a cluster: 3.8 fails on some, 3.7 on all."""
    return tuple(int(part) for part in triton.__version__.split(".")[:2]) >= (3, 9)


def supported(index: int) -> bool:
    """Whether a device has clusters that this Triton compiles for. Those of 12.x are reported both ways upstream."""
    if torch.version.hip is not None or not compiles():
        return False
    return (9, 0) <= torch.cuda.get_device_capability(index) < (12, 0)


def allowed(index: int) -> bool:
    """Whether plans for a device may use clusters, if a trial, made when the first one is to run, does not object."""
    if _switch.mode == "off" or index in refused or not supported(index):
        return False
    return _switch.mode == "on" or any(_verdicts.get((index, form), True) for form in FORMS)


def form_of(step: Launch) -> str:
    """Which of the `FORMS` a clustered launch has.

    A cluster holds a row, and exchanges its sums; or sweeps rows, and leaves partial gradients; or it holds columns,
    whose rows its thread blocks share; or the cells of several groups, whose sums are joined.
    """
    plan = step.plan
    if plan.block_groups > 0:
        return f"cells {step.kernel}"
    if plan.shares_rows:
        return f"columns {step.kernel}"
    return f"swept rows {step.kernel}" if plan.accumulate else f"rows {step.kernel}"


def trusted(index: int, form: str) -> bool:
    """Whether a clustered launch of a form may be made on a device now. Makes the trial if there was none."""
    return index not in refused and (_switch.mode == "on" or _verdict(index, form))


def refuse(index: int, error: BaseException) -> None:
    """Note that a clustered launch failed on a device: no other is tried."""
    if index not in refused:
        warnings.warn(
            f"normtriton: a launch in thread-block clusters failed on cuda:{index} ({error}); it and all that follow "
            f"take separate launches instead. NORMTRITON_CLUSTERS=off avoids the attempt.",
            RuntimeWarning,
            stacklevel=2,
        )
    refused.add(index)
    changed()


def verdict_file(key: str) -> Path:
    """Where a verdict is kept. It has the file to itself: a process that writes another one cannot lose it."""
    return cache.folder() / "clusters" / f"{sha256(key.encode()).hexdigest()[:16]}.txt"


def _read(key: str) -> bool | None:
    try:
        text = verdict_file(key).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    return next((verdict for verdict, words in _WORDS.items() if text == f"{key}: {words}\n"), None)


def _write(key: str, verdict: bool) -> None:
    with suppress(OSError):  # a folder that cannot be written costs a trial in every process, nothing else
        cache.write(verdict_file(key), f"{key}: {_WORDS[verdict]}\n")


def _verdict(index: int, form: str) -> bool:
    subject = index, form
    if subject in _verdicts:
        return _verdicts[subject]
    with _lock:
        if subject in _trying:
            return True  # for the trial's own launches
        if subject not in _verdicts:
            device = f"{torch.cuda.get_device_name(index)}, CUDA {torch.version.cuda}, Triton {triton.__version__}"
            key = f"{device}, {form}"
            verdict = _read(key)
            if verdict is None:
                if torch.cuda.is_current_stream_capturing():
                    return False  # a trial waits for the device, which a capture forbids
                _trying.add(subject)
                try:
                    verdict = trial(index, form)
                finally:
                    _trying.discard(subject)
                _write(key, verdict)
            _verdicts[subject] = verdict
            if not verdict:
                changed()
        return _verdicts[subject]
