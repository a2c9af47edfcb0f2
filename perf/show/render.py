"""The tables of README.md and docs/results.md from the files in perf/results; measures nothing.

A table stands between two comments, ``<!-- table NAME -->`` and ``<!-- end -->``; NAME is one of `TABLES`. What is
there is replaced by what the files say (`python -m normtriton.perf results --render`).
"""

from __future__ import annotations

import re
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from ..cases.shapes import (
    CASES,
    DIRECTIONS,
    DTYPES,
    FORMS,
    FUSED,
    OFFERED,
    OFFERED_AROUND,
    OTHERS,
    STEPS,
    TIMED,
    Case,
    Cell,
    cells,
)
from ..cases.targets import PLANNED_FOR
from ..time.predict import MACHINES
from .rows import LIBRARY, Files, Row, load, versions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_ROOT = Path(__file__).resolve().parents[2]
RESULTS = _ROOT / "perf" / "results"
PAGES = (_ROOT / "README.md", _ROOT / "docs" / "results.md", _ROOT / "docs" / "emulator.md")


def find(files: Files, file: str, cell: Cell, direction: str, library: str = LIBRARY) -> Row:
    """A row; one that says so if the cell was not measured."""
    row = files.get(file, {}).get((cell.case.name, cell.layout, cell.dtype, direction, library))
    return {"error": ""} if row is None else row


def missing(row: Row, done: str) -> str:
    """Why a row has no figures: what was not ``done`` to its cell; nothing if it has."""
    if "error" not in row:
        return ""
    return f"not {done}: {row['error']}" if row["error"] else f"not {done} yet"


def launches(row: Row) -> str:
    """Of Triton kernels, and of PyTorch's operations where there may be any."""
    own = row.get("pytorch")
    return str(row["launches"]) if own is None else f"{row['launches'] - own}+{own}"


def ratios(row: Row) -> list[str]:
    """Live, request and dram, over the compulsory bytes."""
    return [f"{row[name] / row['compulsory']:.2f}" for name in ("live", "request", "dram")]


def access(row: Row) -> str:
    """The narrowest and widest access to tensors of x's size."""
    widths = {int(width) for kernel in row["kernels"] for width in kernel["tensors"]}
    return " to ".join(str(width) for width in dict.fromkeys((min(widths), max(widths)))) if widths else "-"


def most(row: Row, name: str) -> int:
    """The most of any of a direction's kernels."""
    return max((int(kernel[name]) for kernel in row["kernels"]), default=0)


def code(row: Row) -> list[str]:
    """Registers, spilled bytes and access widths."""
    return [str(most(row, "registers")), str(most(row, "stack")), access(row)]


def waits(kernel: Row) -> str:
    """What the warps of a kernel wait for, most first, as parts of their time."""
    most = sorted(kernel["stalls"].items(), key=lambda item: -item[1])[:4]
    return ", ".join(f"{reason} {part:.0%}" for reason, part in most if part >= 0.02)


def longest(row: Row) -> Row:
    """The launch of a pass that is predicted to take the most of its time."""
    launch: Row = max(row["kernels"], key=lambda kernel: kernel["us"])
    return launch


def predicted_time(row: Row) -> str:
    """What is predicted of a pass: its part of a copy's rate, in brackets each multiprocessor alone, and µs."""
    absent = missing(row, "predicted")
    return absent or f"{row['of_ceiling']:.0%} ({row['of_ceiling_alone']:.0%}), {row['us']:.1f} µs"


def binds(row: Row) -> str:
    """What the longest launch of a pass keeps busy most, and what its warps wait for."""
    if "error" in row:
        return ""
    launch = longest(row)
    terms = {"DRAM": "dram", "issue slots": "issue", "L2 port": "port", "load/store queue": "queue"}
    name, part = max(((name, launch[f"{term}_busy"]) for name, term in terms.items()), key=lambda item: item[1])
    share = f"{launch['us'] / row['us']:.0%} of it: " if len(row["kernels"]) > 1 else ""
    return f"{share}{name} {part:.0%}; {waits(launch)}"


def launch_words(kernel: Row) -> list[str]:
    """A launch in words, for a line below its pass: what it is, how busy it keeps the GPU, what its warps wait for."""
    cluster = f" in clusters of {kernel['cluster']}" if kernel["cluster"] > 1 else ""
    moved = (kernel["dram_read"] + kernel["dram_write"]) / 1e6
    return [
        f"{kernel['us']:.1f} µs",
        f"{kernel['blocks']} blocks of {kernel['warps']} warps{cluster}, {kernel['resident']} resident",
        f"{kernel['registers']} registers" + (f", {kernel['spills']} bytes spilled" if kernel["spills"] else ""),
        f"DRAM {moved:.1f} MB, busy {kernel['dram_busy']:.0%}",
        f"issue slots {kernel['issue_busy']:.0%}, load/store queue {kernel['queue_busy']:.0%}",
        f"warps wait: {waits(kernel)}",
        *([f"{kernel['guessed']} addresses or branches guessed"] if kernel["guessed"] else []),
    ]


def table(heads: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table."""
    heads = list(heads)
    lines = [f"| {' | '.join(map(str, row))} |" for row in (heads, *rows)]
    return "\n".join([lines[0], "|---" * len(heads) + "|", *lines[1:]])


def made_with(files: Files, names: Iterable[str]) -> str:
    """What measured some files, in words, of the libraries that have a column."""
    rows = (row for name in names for row in files.get(name, {}).values())
    return versions(row for row in rows if row["library"] in (LIBRARY, *TIMED))


def beside(files: Files, dtype: str) -> str:
    """Ours beside other libraries', on an H100: predicted time, then bytes, then code."""
    timed, traffic, compiled = ("model-H100", "traffic-H100", "code-sm_90")
    rows = []
    for cell in cells():
        if cell.dtype != dtype:
            continue
        for direction in DIRECTIONS:
            ours = find(files, f"{traffic}.jsonl", cell, direction)
            columns = [cell.case.name, cell.layout, direction, ours.get("strategy", "-")]
            for library in (LIBRARY, *TIMED):
                suffix = "" if library == LIBRARY else "-rivals"
                if cell.case.norm not in TIMED.get(library, cell.case.norm):
                    columns.append("not offered")
                    continue
                runs, moves, made = (
                    find(files, f"{f}{suffix}.jsonl", cell, direction, library) for f in (timed, traffic, compiled)
                )
                lines = [predicted_time(runs)]
                if library in (LIBRARY, *OFFERED):
                    lines.append(missing(moves, "measured") or f"{launches(moves)}: {' / '.join(ratios(moves))}")
                    lines.append(missing(made, "compiled") or ", ".join(code(made)))
                columns.append("<br>".join(lines).replace("|", "/"))
            rows.append(columns)
    names = [f"{f}{suffix}.jsonl" for f in (timed, traffic, compiled) for suffix in ("", "-rivals")]
    text = table(("shape", "layout", "direction", "our strategy", LIBRARY, *TIMED), rows)
    return f"{dtype}. With {made_with(files, names)}.\n\n{text}"


def ours(files: Files, target: str, machine: str) -> str:
    """All figures of ours on one target, with traffic where the machine is simulated."""
    rows = []
    simulated = f"traffic-{machine}.jsonl" in files
    for cell in cells():
        for direction in DIRECTIONS:
            made = find(files, f"code-{target}.jsonl", cell, direction)
            columns: list[object] = [cell.case.name, cell.layout, cell.dtype, direction]
            if "error" in made:
                columns += [missing(made, "compiled"), *"------"]
            else:
                columns += [made["strategy"], len(made["kernels"]), f"{made['blocks']:,}", *code(made)]
                columns += [most(made, "cluster_barriers")]
            if simulated:
                moves = find(files, f"traffic-{machine}.jsonl", cell, direction)
                absent = missing(moves, "measured")
                columns += [absent, *"---"] if absent else [f"1/{moves['part']}", *ratios(moves)]
            rows.append(columns)
    heads = ["shape", "layout", "dtype", "direction", "strategy", "launches", "thread blocks", "registers", "spilled"]
    heads += ["access", "cluster barriers"] + ["part", "live", "request", "dram"] * simulated
    names = (f"code-{target}.jsonl", f"traffic-{machine}.jsonl")
    return f"Measured with {made_with(files, names)}.\n\n{table(heads, rows)}"


def times(files: Files, dtype: str, machine: str, cases: Iterable[Case]) -> str:
    """Predicted times, on a machine, of ours and of other libraries'."""
    names = (f"model-{machine}.jsonl", f"model-{machine}-rivals.jsonl")
    rows = []
    for cell in cells(cases, dtypes=(dtype,)):
        for direction in DIRECTIONS:
            columns = [cell.case.name, cell.layout, direction]
            for library in (LIBRARY, *TIMED):
                offered = cell.case.norm in TIMED.get(library, cell.case.norm)
                row = find(files, names[library != LIBRARY], cell, direction, library)
                columns.append(predicted_time(row).replace("|", "/") if offered else "not offered")
            rows.append(columns)
    text = table(("shape", "layout", "direction", LIBRARY, *TIMED), rows)
    return f"{dtype}. Predicted with {made_with(files, names)}.\n\n{text}"


def crossing(row: Row) -> float:
    """What crosses the memory bus over the compulsory bytes."""
    moved = sum(kernel["dram_read"] + kernel["dram_write"] for kernel in row["kernels"])
    return float(moved / row["compulsory"])


def moved(row: Row) -> str:
    """Launches, and what crosses the memory bus over the compulsory bytes."""
    return "" if "error" in row else f"{len(row['kernels'])}: {crossing(row):.2f}"


def less(ours: Row, theirs: Row) -> str:
    """What another's pass takes less of than ours, as figures are shown; nothing if it is nothing."""
    if "error" in ours or "error" in theirs:
        return ""
    found = [(f"{row['us']:.1f}", f"{crossing(row):.2f}", f"{len(row['kernels'])}") for row in (theirs, ours)]
    words = ("{} µs against {}", "{} of the compulsory bytes against {}", "{} launches against {}")
    pairs = zip(words, *found, strict=True)
    return ", ".join(said.format(their, our) for said, their, our in pairs if float(their) < float(our))


def fused(files: Files, dtype: str) -> str:
    """Norms with what surrounds them: ours, torch.compile's, other libraries', and PyTorch's operations one by one."""
    names = ("model-H100.jsonl", "model-H100-rivals.jsonl")
    rows, shown, lines = [], [], []
    for cell in cells(FUSED, dtypes=(dtype,)):
        kind = cell.case.norm, cell.case.around
        others = {name: kinds[kind] for name, kinds in OFFERED_AROUND.items() if kind in kinds}
        for direction in DIRECTIONS:
            ours = find(files, names[0], cell, direction)
            columns, found = [], [ours]
            for library, lacks in {"torch.compile": "", **others}.items():
                row = find(files, names[1], cell, direction, library)
                name = f"{library} ({lacks})" if lacks else library
                found.append(row)
                columns.append("<br>".join(filter(None, (name, predicted_time(row), moved(row)))))
                if taken := less(ours, row):
                    lines.append(f"- {cell.case.name}, {cell.layout}, {direction}: {name} takes {taken}.")
            mine = "<br>".join(filter(None, (predicted_time(ours), moved(ours))))
            compiled, *rest = columns
            compiled = compiled.removeprefix("torch.compile<br>")
            beside = "<br>".join(rest) or "not offered"
            rows.append([cell.case.name, cell.layout, direction, mine, compiled, beside, one_by_one(cell, direction)])
            shown += found
    head = ("norm + what surrounds it", "layout", "direction", LIBRARY, "torch.compile", "others", "PyTorch, by bytes")
    days = " and ".join(sorted({row["date"] for row in shown if "date" in row})) or "an unknown day"
    text = f"{dtype}. Predicted with {versions(shown)}. Other libraries' code was run on the model on {days}."
    return "\n\n".join(
        [text, table(head, rows), "Here another takes less than ours:", "\n".join(lines) or "- nowhere."]
    )


def step_times(files: Files, file: str, cell: Cell, library: str) -> list[float]:
    """Predicted µs of each direction; none where one is missing."""
    found = [find(files, file, cell, direction, library) for direction in DIRECTIONS]
    return [] if any("error" in row for row in found) else [row["us"] for row in found]


def training(files: Files) -> str:
    """What training steps meet: ours beside torch.compile and whichever other library takes the least in all."""
    ours, theirs = "model-H100.jsonl", "model-H100-rivals.jsonl"

    def words(times: list[float]) -> str:
        return " + ".join(f"{us:.1f}" for us in times) or "not predicted"

    rows = []
    for model, cell in STEPS.items():
        others = {library: step_times(files, theirs, cell, library) for library in OFFERED}
        least = min(filter(others.get, others), key=lambda library: sum(others[library]), default="")
        layout = "" if cell.layout == "contiguous" else f", {cell.layout}"
        columns = [
            words(step_times(files, file, cell, of)) for file, of in ((ours, LIBRARY), (theirs, "torch.compile"))
        ]
        rows.append([model, cell.case.name + layout, *columns, f"{least} {words(others.get(least, []))}".strip()])
    text = table(("model", "norm", LIBRARY, "torch.compile", "best other library"), rows)
    return f"µs forward + µs backward. Predicted with {made_with(files, (ours, theirs))}.\n\n{text}"


def one_by_one(cell: Cell, direction: str) -> str:
    """PyTorch's operations, each moving its tensors at the rate of a large copy, with 1.5 µs to start and end.

    Of a norm, forward x and y (batch norm x twice), backward x, dy and dx, and x and dy for sums.
    """
    names, stages = FORMS[cell.case.around]
    gate, after = "gate" in names, bool(stages.activation) and "gate" not in names
    if "mask" in names:
        return ""  # PyTorch has no such norm: it takes a dozen operations
    if direction == "forward":
        steps = [
            3 if cell.case.norm in ("batch", "group") else 2,
            *[3] * ("residual" in names),
            *[3] * ("skip" in names),
            *[2] * ("x_scale" in names),
            *[2, 2] * ("scale" in names),
        ]
        steps += [2] * after + [2, 3] * gate
    else:
        steps = [2, 3, *[3] * ("residual" in names), *[3] * after, *[3, 3, 3] * gate]
        steps += [2, 2, 1] * ("x_scale" in names) + [2, 2, 1, 1] * ("scale" in names)
    gpu = MACHINES["H100"][0]
    size = prod(cell.case.shape) * cell.options[0].itemsize
    us = sum(tensors * size / gpu.dram * 1e6 + 1.5 for tensors in steps)
    return f"{us:.1f} µs<br>{len(steps)}"


def predicted(files: Files, dtype: str, cases: Iterable[Case] = CASES) -> str:
    """Predicted times of ours on each machine, and what binds on an H100."""
    names = [f"model-{machine}.jsonl" for machine in MACHINES]
    rows = []
    for cell in cells(cases, dtypes=(dtype,)):
        for direction in DIRECTIONS:
            found = [find(files, name, cell, direction) for name in names]
            h100 = found[list(MACHINES).index("H100")]
            floor = "" if "error" in h100 else f"{h100['us_plain'] / h100['us']:.0%}"
            rows.append([cell.case.name, cell.layout, direction, *map(predicted_time, found), floor, binds(h100)])
    heads = ["shape", "layout", "direction", *MACHINES, "of a plain kernel, H100", "longest launch, H100"]
    return f"{dtype}. Predicted with {made_with(files, names)}.\n\n{table(heads, rows)}"


#: The tables, by the name in their comment.
TABLES: dict[str, Callable[[Files], str]] = {f"beside-{dtype}": partial(beside, dtype=dtype) for dtype in DTYPES}
TABLES |= {target: partial(ours, target=target, machine=name) for target, (name, _device) in PLANNED_FOR.items()}
TABLES |= {f"predicted-{dtype}": partial(predicted, dtype=dtype) for dtype in DTYPES}
TABLES |= {"fused": partial(fused, dtype=DTYPES[0]), "training": training}
TABLES |= {"predicted-others": partial(times, dtype=DTYPES[0], machine="H100", cases=OTHERS)}
TABLES |= {f"beside-{name}": partial(times, dtype=DTYPES[0], machine=name, cases=CASES) for name in ("H200", "A100")}


def rendered(folder: Path = RESULTS, pages: Iterable[Path] = PAGES) -> dict[Path, str]:
    """Every page's text with its tables as the files have them."""
    files = load(folder)

    def put(match: re.Match[str]) -> str:
        return f"{match[1]}\n{TABLES[match[2]](files)}\n{match[3]}"

    pattern = re.compile(r"(<!-- table (\S+) -->)\n.*?(<!-- end -->)", re.DOTALL)
    return {page: pattern.sub(put, page.read_text()) for page in pages}
