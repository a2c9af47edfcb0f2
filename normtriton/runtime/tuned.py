"""Tables of tunings: which plans were measured to be faster than the planner's own choice, on which device.

``python -m normtriton.perf autotune`` makes them; with ``--predict``, by times that a model predicted, not measured. A
file has tables of one of the two kinds only, and a predicted one is used only where it is named. It is for a kind of
GPU: that for "H100, sm_90" is for "NVIDIA H100 80GB HBM3, sm_90" too.
 ``NORMTRITON_TUNED``, or `use`, says which is read:

    nothing     ``tuned.json`` in the cache folder (`normtriton.cache`), if it is there; the interpreter reads none
    a path      that file
    off         none: the planner's own choice everywhere

A table is read when the first plan for a device is made, and asked when a plan is made, never when one is run again.
Its entries name a group's size, layout and dtype, never a batch (`normtriton.planning.plan.Subject`): layer, RMS, group
and instance norm still give a sample the same bits in any batch. A table holds choices of the planner's
(`normtriton.planning.plan.KNOBS`), no plans, and the planner keeps to its limits with each of them.

A file that is damaged, or was made by other kernels, another Triton or on other devices, is refused with one warning,
which says why, and the planner's own choice is used. `normtriton.explain` says whether a plan comes from a table.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import triton

from .. import kernels, planning  # type: ignore[attr-defined]  # kernels: not for mypy, see pyproject.toml
from ..planning.plan import Subject, Tuning, Tunings
from . import cache
from .switch import changed

if TYPE_CHECKING:
    from collections.abc import Mapping

#: The version of the files' format.
FORMAT = 1

_setting = os.environ.get("NORMTRITON_TUNED", "")


class Refused(Exception):  # noqa: N818  an answer, not an error
    """A file holds no tunings for this device and program: why."""


def setting() -> str:
    """Which table is read: "" for that in the cache folder, a path, or "off"."""
    return _setting


def use(table: str | Path) -> None:
    """Change which table the plans that follow are made with, and read it anew.

    Raises:
        TypeError: neither a string nor a path.
    """
    if not isinstance(table, str | Path):
        raise TypeError(f"use(): argument 'table' must be str or Path, not {type(table).__name__}: {table!r}")
    global _setting  # noqa: PLW0603  a setting of the process
    _setting = str(table)
    _load.cache_clear()
    changed()


def default_file() -> Path:
    """The table in the cache folder.

    Raises:
        FileNotFoundError: there is no cache folder, see `normtriton.cache.folder`.
    """
    return cache.folder() / "tuned.json"


def device_name(index: int) -> str:
    """A device as tables name it: "NVIDIA H100 80GB HBM3, sm_90"; -1 is the interpreter's."""
    if index < 0:
        return "Triton's interpreter"
    properties = torch.cuda.get_device_properties(index)
    kind = f"sm_{properties.major}{properties.minor}" if torch.version.hip is None else properties.gcnArchName
    return f"{properties.name}, {kind}"


@lru_cache(maxsize=1)
def kernels_version() -> str:
    """A short name for what a time depends on besides the device and Triton: the kernels and the planner."""
    files = [*sorted(Path(kernels.__file__).parent.glob("*.py")), *sorted(Path(planning.__file__).parent.glob("*.py"))]
    files.append(Path(__file__).with_name("launch.py"))
    return sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def versions(sms: int) -> dict[str, Any]:
    """What must be the same where a table is made and where it is read."""
    return {"sms": sms, "triton": triton.__version__, "kernels": kernels_version()}


def table_for(index: int, sms: int) -> Tunings | None:
    """The table for a device of so many multiprocessors; None if there is none, or it is refused."""
    if _setting == "off" or (index < 0 and not _setting):
        return None
    if _setting:
        return _load(Path(_setting), device_name(index), sms, named=True)
    try:
        file = default_file()
    except FileNotFoundError:  # no cache folder
        return None
    there = os.path.exists(file)  # noqa: PTH110  Path's raises where the folder may not be entered
    return _load(file, device_name(index), sms, named=False) if there else None


@lru_cache(maxsize=64)
def _load(file: Path, device: str, sms: int, *, named: bool) -> Tunings | None:
    try:
        devices = sections(file) if named else apart(file, predicted=False)
        entries = {subject: tuning for subject, (tuning, _times) in entries_of(devices, device, sms).items()}
        return Tunings(entries, source=str(file), predicted=is_predicted(devices))
    except Refused as reason:
        warnings.warn(
            f"normtriton: {file} {reason}. Plans are the planner's own choice. `python -m normtriton.perf autotune` "
            f"makes the file anew; NORMTRITON_TUNED=off leaves it aside.",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


def read(file: Path, device: str, sms: int) -> dict[Subject, tuple[Tuning, Any]]:
    """The tunings that a file has for a device, each with what was measured, or predicted, of it.

    Raises:
        Refused: it is missing, damaged, or of another device, Triton or kernels.
    """
    return entries_of(sections(file), device, sms)


def entries_of(devices: dict[str, dict[str, Any]], device: str, sms: int) -> dict[Subject, tuple[Tuning, Any]]:
    """What `read` gives, of a file's `sections`.

    Raises:
        Refused: as `read`.
    """
    kinds = [name for name in devices if "predicted" in devices[name] and _words(name) <= _words(device)]
    if device not in devices and not kinds:
        raise Refused(f"was made on {', '.join(devices) or 'no device'}, this is {device}")
    section = devices[device if device in devices else kinds[0]]
    for name, value in versions(sms).items():
        if section.get(name) != value:
            raise Refused(f"was made with {name} {section.get(name)} on this device, now it is {value}")
    entries = section.get("entries")
    if not isinstance(entries, list):
        raise Refused("is damaged: no list of entries")
    found = {}
    for number, entry in enumerate(entries):
        try:
            subject, tuning, times = _entry(**entry)
        except (TypeError, ValueError) as error:
            raise Refused(f"is damaged: entry {number}: {error}") from error
        found[subject] = tuning, times
    return found


def _words(device: str) -> set[str]:
    """What a device's name is made of: a kind of GPU has a part of it."""
    return set(re.split(r"[\s,-]+", device))


def is_predicted(devices: dict[str, dict[str, Any]]) -> bool:
    """Whether the sections of a file are of predicted times."""
    return any("predicted" in section for section in devices.values())


def apart(file: Path, predicted: bool) -> dict[str, dict[str, Any]]:
    """What a file has of each device, nothing if there is no file; refuses one of the other kind of times.

    Raises:
        Refused: it has predicted times where it is to have measured ones, or the other way round, or is no table.
    """
    try:
        devices = sections(file)
    except Refused as reason:
        if isinstance(reason.__cause__, FileNotFoundError | NotADirectoryError):
            return {}
        raise
    if devices and is_predicted(devices) != predicted:
        have, new = ("measured", "predicted") if predicted else ("predicted", "measured")
        raise Refused(f"has {have} times, and is no place for {new} ones")
    return devices


def sections(file: Path) -> dict[str, dict[str, Any]]:
    """What a file has of each device.

    Raises:
        Refused: it is missing or damaged.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise Refused(f"cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # nested too deep
        raise Refused(f"is damaged: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise Refused(f"is not in format {FORMAT} of tuned tables")
    devices = content.get("devices")
    if not isinstance(devices, dict) or not all(isinstance(section, dict) for section in devices.values()):
        raise Refused("is damaged: no devices")
    return devices


def _entry(tuning: Any, measured: Any = None, predicted: Any = None, **subject: Any) -> tuple[Subject, Tuning, Any]:
    """An entry: what it is for, the knobs that it turns, and why."""
    if not isinstance(tuning, dict) or not isinstance(subject.get("walk"), list):
        raise TypeError("a tuning turns knobs, by name, and a walk is a list")
    made = Subject(**subject | {"walk": tuple(subject["walk"])})
    hash(made)
    return made, Tuning.of(tuning), measured if predicted is None else predicted


def write(
    file: Path,
    device: str,
    sms: int,
    entries: Mapping[Subject, tuple[Tuning, Any] | None],
    predicted: str | None = None,
) -> tuple[int, str]:
    """Add a device's tunings to a file, each with what was measured, and take away those that are None.

    What else the file has stays, but for this device's entries of other versions. Several processes may do so at once.
    ``predicted`` says by what times were predicted that were not measured; the device is then a kind of GPU.

    Returns:
        How many entries the file has for the device now, and why those it had are gone, or nothing.
    Raises:
        Refused: the file is there and no table, or has times of the other kind.
        OSError: it cannot be written.
    """
    with cache.locked(file):
        devices = apart(file, predicted is not None)
        had: dict[Subject, tuple[Tuning, Any]] = {}
        gone = ""
        try:
            had = entries_of(devices, device, sms) if device in devices else {}
        except Refused as reason:
            gone = str(reason)
        kept = {subject: entry for subject, entry in {**had, **entries}.items() if entry is not None}
        kind = "measured" if predicted is None else "predicted"
        rows = [
            {**subject._asdict(), "tuning": tuning.chosen, kind: times} for subject, (tuning, times) in kept.items()
        ]
        by = {} if predicted is None else {"predicted": predicted}
        devices[device] = {**versions(sms), **by, "entries": rows}
        cache.write(file, json.dumps({"format": FORMAT, "devices": devices}, indent=1) + "\n")
    return len(kept), gone
