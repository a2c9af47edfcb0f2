"""What a report says of results: which figures are shown beside which, and what is said of them.

It knows of no format: `normtriton.perf.show.draw` draws its charts, `normtriton.perf.commands.report` writes the rest.
"""

from __future__ import annotations

from itertools import groupby
from statistics import median
from typing import TYPE_CHECKING, Any

from ..time.predict import MARGIN
from . import render
from .parts import Cell, Chart, Column, Head, Line, Metric, Report, Section, Table, Verdict
from .rows import FIGURES, HOW, LIBRARY, PREDICTED, Row, by_library, dtypes, flat, of, ordered, result, versions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

#: Two figures closer than this are the same.
SAME = 0.01


def over_compulsory(name: str) -> Callable[[Row], float]:
    """Reads bytes over the compulsory bytes."""
    return lambda row: row[name] / row["compulsory"]


def narrowest(row: Row) -> float | None:
    """Bytes of the narrowest access to tensors of x's size, where that is known."""
    return min((int(width) for kernel in row["kernels"] for width in kernel.get("tensors", ())), default=None)


def in_flight(row: Row) -> float | None:
    """Bytes that a multiprocessor has asked for at once, in the launch that has the fewest."""
    return min((kernel["in_flight"] for kernel in row["kernels"] if kernel.get("in_flight")), default=None)


DRAM = Metric("DRAM", "bytes between memory and L2, over compulsory", over_compulsory("dram"), ".2f", True, 1)
MOVED = (
    DRAM,
    Metric("sectors", "bytes of 32-byte sectors touched, over compulsory", over_compulsory("request"), ".2f", True, 1),
    Metric("lanes", "bytes that unmasked lanes ask for, over compulsory", over_compulsory("live"), ".2f", True, 1),
    Metric("launches", "launches, with PyTorch's operations", lambda row: row["launches"]),
)  # fmt: skip
REGISTERS = Metric("registers", "registers a thread, the most of any launch", lambda row: render.most(row, "registers"))
SPILLED = Metric(
    "spilled", "bytes spilled a thread, the most of any launch", lambda row: render.most(row, "stack"), log=True
)
COMPILED = (
    REGISTERS,
    SPILLED,
    Metric("access", "bytes of the narrowest access to tensors of x's size", narrowest, log=True),
    Metric("instructions", "instructions in the text of all kernels",
           lambda row: sum(kernel["instructions"] for kernel in row["kernels"]), log=True),
)  # fmt: skip
BY_TARGET = (
    REGISTERS,
    Metric("in flight", "bytes in flight of a multiprocessor, the least of any launch", in_flight, log=True),
    Metric("thread blocks", "thread blocks of the first launch", lambda row: row.get("blocks"), log=True),
    Metric("launches", "launches", lambda row: len(row["kernels"])),
    Metric("cluster barriers", "barriers of a cluster, the most of any launch",
           lambda row: render.most(row, "cluster_barriers")),
)  # fmt: skip
TIME = Metric(
    "time", "µs on the GPU", lambda row: row["us"], ",.1f", log=True,
    between=(lambda row: row.get("us_low"), lambda row: row.get("us_high")), ends="20th to 80th percentile",
)  # fmt: skip
TIMED = (
    Metric("of the ceiling", "compulsory bytes moved, % of the measured ceiling",
           lambda row: None if row.get("of_ceiling") is None else 100 * row["of_ceiling"], ".0f"),
    TIME,
    Metric("host", "µs on the host for a call", lambda row: row.get("host_us"), ",.1f", True),
)  # fmt: skip

#: Between what a predicted figure lies: see `normtriton.perf.time.predict`.
BOUNDS = "multiprocessors that share the bus, to each alone with its share"
OF_A_COPY = Metric(
    "of a copy", "predicted % of the rate of a large copy", lambda row: 100 * row["of_ceiling"], ".0f",
    between=(lambda row: 100 * row["of_ceiling"], lambda row: 100 * row["of_ceiling_alone"]), ends=BOUNDS,
)  # fmt: skip
MODELLED = (
    OF_A_COPY,
    Metric("predicted time", "µs on the GPU, predicted", lambda row: row["us"], ",.1f", log=True,
           between=(lambda row: row["us"], lambda row: row["us_alone"]), ends=BOUNDS),
)  # fmt: skip

CELL_HEADS = [Head("shape"), Head("layout"), Head("dtype"), Head("direction")]

BYTES = (
    "Bytes over the compulsory bytes: each input read once, each result written once; 1 is the least. DRAM is what"
    " crosses the memory bus, sectors what tile accesses touch of 32-byte sectors, lanes what unmasked lanes ask for."
    " Launches are of Triton kernels + PyTorch's operations. Parameters have x's dtype. NHWC is channels_last."
)
CODE = (
    "Registers and spilled bytes of a thread are the most of any launch. Spilled bytes go through memory. The access is"
    " the narrowest to a tensor of x's size: 16 bytes is the widest there is. The code of PyTorch's operations is not"
    " looked at."
)
TIMES = (
    "Times of a pass, measured. Of the ceiling: the compulsory bytes over the time, against the bandwidth that a copy"
    " reached on the same GPU. The bars of a time are its 20th and 80th percentiles, its mark is the median."
)
TARGETS = (
    "Our kernels, planned and compiled for each target, and simulated where there is a model of its L2. A part of 1/16"
    " has 16 times fewer samples, on a machine with 16 times fewer multiprocessors and bytes of L2. Accesses are to"
    " tensors of x's size; on gfx942 the widest load of all."
)
PREDICTIONS = (
    "Predicted by a model, not measured: the compiled kernels of a pass run on a model of the GPU, from a cold L2"
    " (normtriton.perf.time.predict). Each pass is predicted twice. A mark stands where all multiprocessors share the"
    " memory bus; its bar ends where each has its own share of it and no more. Of a copy: the compulsory bytes over"
    " the time, against the rate of a large copy. Warps: what those of the longest launch wait for, in parts of their"
    " time."
)


def charted(name: str, title: str, note: str, metrics: Iterable[Metric], series: dict[str, list[Row]]) -> list[Chart]:
    """A chart of those metrics that any row has; none if there is none."""
    rows = [row for found in series.values() for row in found if "error" not in row]
    known = tuple(metric for metric in metrics if any(metric.of(row) is not None for row in rows))
    return [Chart(name, title, note, known, series)] if known else []


def text(value: object) -> Cell:
    """A cell of words."""
    return Cell(str(value), str(value))


def number(value: float | None, form: str = ",.0f") -> Cell:
    """A cell of a number, or of none."""
    return Cell(None, "-") if value is None else Cell(value, format(value, form))


def named(row: Row) -> list[Cell]:
    """The cells under `CELL_HEADS`."""
    return [text(row[name]) for name in ("case", "layout", "dtype", "direction")]


def beside(name: str, title: str, rows: list[Row], columns: Sequence[Column]) -> Table:
    """A table with a line for each cell and direction, and under each figure a column for each library.

    Of figures of which less is better the least is marked, where they are not all the same.
    """
    libraries = list(by_library(rows))
    heads = [*CELL_HEADS, *[Head("our strategy")] * any("strategy" in row for row in rows)]
    lines = []
    for _cell, found in groupby(ordered(rows), result):
        by = {row["library"]: row for row in found}
        first = next(iter(by.values()))
        line = [*named(first), text(by.get(LIBRARY, {}).get("strategy", "-"))][: len(heads)]
        for column in columns:
            shown = [absent(by, library) or column.cell(by[library]) for library in libraries]
            line += marked(shown) if column.less else shown
        lines.append(Line(first["dtype"], line))
    heads += [Head(library, column.numeric, column.name) for column in columns for library in libraries]
    return Table(name, title, heads, lines)


def marked(cells: list[Cell]) -> list[Cell]:
    """Mark the least, and what is the same as it, unless all are."""
    values = [cell.value for cell in cells if isinstance(cell.value, (int, float))]
    least = min(values, default=0) * (1 + SAME)
    if all(value <= least for value in values):
        return cells
    return [cell._replace(best=isinstance(cell.value, (int, float)) and cell.value <= least) for cell in cells]


def absent(by: dict[str, Row], library: str) -> Cell | None:
    """What stands for figures that are not there."""
    if library not in by:
        return Cell(None, "-")
    return Cell(None, "failed") if "error" in by[library] else None


def launches(row: Row) -> Cell:
    """Triton's, and PyTorch's operations."""
    return Cell(row["launches"], render.launches(row))


def cell_of(metric: Metric) -> Callable[[Row], Cell]:
    """Shows a metric."""
    return lambda row: number(metric.of(row), metric.form)


def listed(words: Iterable[str]) -> str:
    """Words with commas and an "and"."""
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def facts(rows: list[Row]) -> Iterator[tuple[str, str]]:
    """What was measured on what, or simulated by what."""
    said = {
        "bench": "{n} timed on {machines}. {versions}.",
        "traffic": "{n} simulated for {machines}: addresses from Triton's interpreter, bytes from a model of"
        " the L2 (strict LRU), empty when a pass starts. {versions}.",
        "code": "{n} compiled for {machines} by Triton's compiler, and read from the code. {versions}.",
        "model": "{n} predicted for {machines} by a model that runs the compiled kernels, not measured. {versions}.",
    }
    for instrument, sentence in said.items():
        machines = of(rows, instrument)
        if machines:
            mine = [row for found in machines.values() for row in found]
            names = listed(gpu(found) if instrument == "bench" else name for name, found in machines.items())
            yield instrument, sentence.format(n=counted(len(mine), "result"), machines=names, versions=versions(mine))
    if others := sorted({row["instrument"] for row in rows} - FIGURES.keys()):
        yield "other", f"{counted(sum(row['instrument'] in others for row in rows), 'row')} of {listed(others)}."


def gpu(rows: list[Row]) -> str:
    """A GPU with its driver."""
    drivers = sorted({row["driver"] for row in rows if row.get("driver")})
    return f"{rows[0]['machine']} (driver {', '.join(drivers)})" if drivers else str(rows[0]["machine"])


def from_a_machine(rows: list[Row]) -> list[str]:
    """The instruments that neither simulate nor compile nor predict."""
    return sorted({row["instrument"] for row in rows} - HOW.keys())


def caution(rows: list[Row]) -> str:
    """What the figures are not."""
    predicted = any(HOW.get(row["instrument"]) == PREDICTED for row in rows)
    if measured := from_a_machine(rows):
        said = (
            f"Figures of {listed(measured)} are from the machine that they name."
            f" All others are simulated{', predicted' * predicted} or compiled, not run on a GPU."
        )
    else:
        said = (
            "Nothing here was timed on a GPU: no kernel has run on one for this report, and no figure is a measured"
            " time."
        )
    return said + f" Some times are {PREDICTED}." * predicted


def counted(number: int, what: str) -> str:
    """How many of what."""
    return f"{number:,} {what}{'s' * (number != 1)}"


def verdicts(rows: list[Row]) -> Iterator[Verdict]:
    """How ours compare with each other library's, in what was simulated and compiled."""
    for machine, found in of(rows, "traffic").items():
        for library in [name for name in by_library(found) if name != LIBRARY]:
            pairs = paired(found, library)
            if not pairs:
                continue
            ratio = [DRAM.of(b) / DRAM.of(a) for a, b in pairs]  # type: ignore[operator]  # it is always known
            fewer, more = sum(r > 1 + SAME for r in ratio), sum(r < 1 / (1 + SAME) for r in ratio)
            said = [compare("launches, median", pairs, lambda row: row["launches"], median, "g")]
            said += [compare("DRAM over compulsory, most", pairs, DRAM.of, max, ".2f")]
            for target, compiled in of(rows, "code").items():
                if both := paired(compiled, library):
                    said.append(compare(f"results that spill, {target}", both, spills, sum, "d"))
            for name, modelled in of(rows, "model").items():
                if both := paired(modelled, library):
                    said.append(compare(f"% of a copy, predicted, {name}, median", both, OF_A_COPY.of, median, ".0f"))
                    said.append(wins(f"predicted faster, {name}", both))
            version = {row["version"] for _ours, row in pairs if "version" in row}
            name = " ".join((library, *sorted(version)))
            kinds = listed(dtypes(row for row, _theirs in pairs))
            yield Verdict(name, machine, kinds, fewer, len(pairs) - fewer - more, more, said)


def paired(rows: list[Row], library: str) -> list[tuple[Row, Row]]:
    """The results that both we and another library have: our row, and theirs."""
    ours, theirs = (
        {result(row): row for row in rows if row["library"] == name and "error" not in row}
        for name in (LIBRARY, library)
    )
    return [(ours[cell], theirs[cell]) for cell in ours.keys() & theirs.keys()]


def faster(row: Row, than: Row) -> bool:
    """Whether a pass is predicted to be faster by more than the model's error."""
    return bool(row["us"] < than["us"] * (1 - MARGIN[row["direction"]]))


def wins(what: str, pairs: list[tuple[Row, Row]]) -> tuple[str, str, str]:
    """How often ours is predicted to be faster, and how often theirs is."""
    return what, *(str(sum(faster(*pair[::step]) for pair in pairs)) for step in (1, -1))  # type: ignore[return-value]


def spills(row: Row) -> bool:
    """Whether any kernel does."""
    return render.most(row, "stack") > 0


def compare(
    what: str,
    pairs: list[tuple[Row, Row]],
    figure: Callable[[Row], Any],
    over: Callable[[Iterable[Any]], Any],
    form: str,
) -> tuple[str, str, str]:
    """One figure of ours and theirs, over all pairs."""
    ours, theirs = (format(over([figure(row) for row in side]), form) for side in zip(*pairs, strict=True))
    return what, ours, theirs


def beside_sections(rows: list[Row]) -> Iterator[Section]:
    """Ours and other libraries': bytes and launches, then code."""
    moved = [Column(metric.name, cell_of(metric), less=True) for metric in MOVED[:3]]
    moved.append(Column("launches", launches, less=True))
    made = [Column(metric.name, cell_of(metric), less=metric is SPILLED) for metric in COMPILED]
    for instrument, name, title, words, metrics, columns in (
        ("traffic", "bytes", "Bytes moved", BYTES, MOVED, moved),
        ("code", "code", "Registers and spills", CODE, COMPILED, made),
    ):
        charts: list[Chart] = []
        tables = []
        for machine, found in of(rows, instrument).items():
            libraries = by_library(found)
            if len(libraries) > 1:
                verb = "Simulated for" if instrument == "traffic" else "Compiled for"
                note = f"{verb} {machine}. {versions(found)}."
                charts += charted(f"{name}-{machine}", f"{title}, {machine}", note, metrics, libraries)
                tables.append(beside(f"table-{name}-{machine}", f"{title}, {machine}", found, columns))
        if charts:
            yield Section(name, title, f"{title}, beside other libraries", words, charts, tables)


def identifier(name: str) -> str:
    """A name as a part of an id."""
    return "".join(letter if letter.isalnum() else "-" for letter in name)


def times(rows: list[Row]) -> Iterator[Section]:
    """What was timed."""
    charts: list[Chart] = []
    tables = []
    for machine, found in of(rows, "bench").items():
        name = identifier(machine)
        note = f"Timed on {gpu(found)}. {versions(found)}."
        charts += charted(f"times-{name}", f"Times, {machine}", note, TIMED, by_library(found))
        columns = [Column(metric.name, cell_of(metric), less=metric is TIME) for metric in TIMED]
        tables.append(beside(f"table-times-{name}", f"Times, {machine}", found, columns))
    if tables:
        yield Section("times", "Times", "Times", TIMES, charts, tables)


def targets(rows: list[Row]) -> Iterator[Section]:
    """Ours, by target."""
    own = [row for row in rows if row["library"] == LIBRARY]
    code, traffic = of(own, "code"), of(own, "traffic")
    charts: list[Chart] = []
    tables = []
    if code:
        every = [row for found in code.values() for row in found]
        charts += charted("targets-code", "Our code, by target", f"Compiled. {versions(every)}.", BY_TARGET, code)
        heads = [Head("target"), *CELL_HEADS, Head("strategy")]
        shown = ("launches", "thread blocks", "registers", "spilled", "access", "barriers", "cluster barriers")
        heads += [Head(name, numeric=True) for name in shown]
        tables.append(Table("table-targets-code", "Our code, by target", heads, [*map(made_line, ordered(every))]))
    if traffic:
        every = [row for found in traffic.values() for row in found]
        note = f"Simulated. {versions(every)}."
        charts += charted("targets-traffic", "Bytes ours move, by GPU", note, MOVED, traffic)
        heads = [Head("GPU"), *CELL_HEADS, Head("strategy"), Head("part", numeric=True), Head("launches", numeric=True)]
        heads += [Head(metric.name, numeric=True) for metric in MOVED[:3]]
        title = "Bytes ours move, by GPU"
        tables.append(Table("table-targets-traffic", title, heads, [*map(moved_line, ordered(every))]))
    if tables:
        yield Section("targets", "By target", "By target", TARGETS, charts, tables)


def made_line(row: Row) -> Line:
    """A line of our code's table."""
    shown = [text(row["machine"]), *named(row), text(row.get("strategy", "-"))]
    if "error" in row:
        return Line(row["dtype"], [*shown, *[Cell(None, "failed")] * 7])
    figures = [number(len(row["kernels"])), number(row.get("blocks"))]
    figures += [number(render.most(row, name)) for name in ("registers", "stack")]
    width = render.access(row)
    figures += [Cell(None if width == "-" else int(width.split()[0]), width)]
    figures += [number(render.most(row, name)) for name in ("barriers", "cluster_barriers")]
    return Line(row["dtype"], shown + figures)


def moved_line(row: Row) -> Line:
    """A line of our traffic's table."""
    shown = [text(row["machine"]), *named(row), text(row.get("strategy", "-"))]
    if "error" in row:
        return Line(row["dtype"], [*shown, *[Cell(None, "failed")] * 5])
    figures = [Cell(1 / row["part"], f"1/{row['part']}"), launches(row)]
    return Line(row["dtype"], shown + figures + [cell_of(metric)(row) for metric in MOVED[:3]])


def predictions(rows: list[Row]) -> Iterator[Section]:
    """What passes are predicted to take, on each GPU that there is a model of."""
    charts: list[Chart] = []
    tables = []
    for machine, found in of(rows, "model").items():
        note = f"{machine}, {PREDICTED}. {versions(found)}."
        title = f"Predicted times, {machine}"
        charts += charted(f"predicted-{identifier(machine)}", title, note, MODELLED, by_library(found))
        columns = [
            Column("predicted µs", lambda row: number(row["us"], ",.1f"), less=True),
            Column("alone, µs", lambda row: number(row["us_alone"], ",.1f"), less=True),
            Column("GB/s", lambda row: number(row["compulsory"] / row["us"] / 1e3)),
            Column("% of a copy", cell_of(OF_A_COPY)),
            Column("warps wait for", lambda row: text(render.waits(render.longest(row))), numeric=False),
        ]
        tables.append(beside(f"table-predicted-{identifier(machine)}", f"{title}, {PREDICTED}", found, columns))
    if tables:
        yield Section("predicted", "Predicted times", f"Times {PREDICTED}", PREDICTIONS, charts, tables)


def failed(rows: list[Row]) -> Section:
    """What has no figures, and why."""
    wrong = ordered(row for row in rows if "error" in row)
    heads = [Head("instrument"), Head("machine"), Head("library"), *CELL_HEADS, Head("cause")]
    lines = [
        Line(row["dtype"], [text(row[name]) for name in ("instrument", "machine", "library")] + named(row)
             + [text(row["error"])])
        for row in wrong
    ]  # fmt: skip
    tables = [Table("table-failed", "Cells that failed", heads, lines)] if lines else []
    said = f"{len(wrong):,} of {counted(len(rows), 'result')} without figures." if wrong else "None."
    return Section("failed", "Failed", "Cells that failed", said, [], tables)


def other(rows: list[Row]) -> Iterator[Section]:
    """Rows of other instruments, as they are."""
    tables = []
    for instrument in sorted({row["instrument"] for row in rows}):
        found = [flat(row) for row in rows if row["instrument"] == instrument]
        names = list(dict.fromkeys(name for row in found for name in row))
        numeric = {n for n in names if all(isinstance(row.get(n, 0), (int, float)) for row in found)}
        lines = [
            Line(str(row.get("dtype", "")), [
                Cell(row.get(name), f"{row.get(name, '-')}") if name in numeric else text(row.get(name, "-"))  # type: ignore[arg-type]  # a number
                for name in names
            ])
            for row in found
        ]  # fmt: skip
        tables.append(Table(f"table-{instrument}", instrument, [Head(n, n in numeric) for n in names], lines))
    if tables:
        yield Section("other", "Other rows", "Other rows", "As they are in the files.", [], tables)


def gather(rows: list[Row], title: str) -> Report:
    """All that a report says of rows."""
    known = [row for row in rows if row["instrument"] in FIGURES]
    sections = [*times(known), *beside_sections(known), *targets(known), *predictions(known), failed(known)]
    sections += other([row for row in rows if row["instrument"] not in FIGURES])
    return Report(title, [*facts(rows)], bool(from_a_machine(rows)), caution(rows), [*verdicts(known)], sections)
