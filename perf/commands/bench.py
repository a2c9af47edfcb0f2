"""The command ``bench``: norms of several libraries, checked and then timed side by side on a GPU."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click
import torch

from ..cases.branches import lay_out
from ..cases.oracle import Operands, Textbook, differences, expected, named
from ..cases.shapes import DIRECTIONS, DTYPES, LAYOUTS, Cell, cells
from ..cli import Lines, Refusal, interruptible, json_option, names_option, progress, shapes_option, show
from ..count.traffic import compulsory_bytes, distinct_bytes
from ..show.rows import key
from ..time import gpu
from ..time.providers import PROVIDERS, Provider, by_name, installed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ..cases.shapes import Case
    from ..show.rows import Row

FLOATING = (*DTYPES, "float16", "float64")


class Machine(NamedTuple):
    """Where times are measured.

    Attributes:
        device: the GPU.
        facts: `gpu.facts` of it.
        ceiling: GB/s of a copy there.
    """

    device: torch.device
    facts: dict[str, Any]
    ceiling: float


def operands(cell: Cell, device: torch.device) -> Operands:
    """Random tensors for a cell, the same each time.

    Parameters have x's dtype in layer, RMS and group norm, where PyTorch wants it; in batch and instance norm they are
    float32, as training in mixed precision keeps them. Batch norm has running statistics, of the parameters' dtype.
    """
    case, dtype = cell.case, getattr(torch, cell.dtype)
    rng = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=rng, device=device)

    features = case.shape[-1] if case.norm in ("layer", "rms") else case.shape[1]
    own = torch.promote_types(dtype, torch.float32) if case.norm in ("batch", "instance") else dtype
    x, dy = (lay_out((random(*case.shape) + shift).to(dtype), cell.layout) for shift in (0.5, 0.0))
    weight, bias = (1 + random(features) / 4).to(own), random(features).to(own)
    running = (torch.zeros_like(bias), torch.ones_like(bias)) if case.norm == "batch" else (None, None)
    return Operands(x, weight, None if case.norm == "rms" else bias, dy, running).fresh()


def compulsory(given: Operands, direction: str) -> int:
    """Bytes with each input read once and each result written once."""
    return compulsory_bytes(direction, given.x, given.weight, given.bias, running=distinct_bytes(*given.running))


def why(error: Exception) -> str:
    """What a row says of an error."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"


def times(
    provider: Provider,
    case: Case,
    given: Operands,
    want: Mapping[str, torch.Tensor],
    directions: Sequence[str],
    machine: Machine,
) -> dict[str, dict[str, Any]]:
    """The figures of each direction of a library's norm, or why there are none; right results are timed only."""
    given = given.fresh()
    try:
        norm = provider.norm(case)
        y, gradients = norm(given)
        if wrong := differences(named(y, gradients(), given), want, given):
            return {direction: {"error": f"wrong: {'; '.join(map(str, wrong))}"} for direction in directions}
    except Exception as error:  # noqa: BLE001  whatever a library raises, the others go on
        return {direction: {"error": why(error)} for direction in directions}
    found: dict[str, dict[str, Any]] = {}
    for direction in directions:
        run = gradients if direction == "backward" else lambda: norm(given)
        try:
            time, host = gpu.time(run, machine.device), gpu.host_us(run, machine.device)
        except Exception as error:  # noqa: BLE001  as above
            found[direction] = {"error": why(error)}
            continue
        size = compulsory(given, direction)
        rate = size / time.us / 1e3
        found[direction] = time._asdict() | {
            "host_us": host, "bytes": size, "gbps": rate, "ceiling_gbps": machine.ceiling,
            "of_ceiling": rate / machine.ceiling,
        }  # fmt: skip
    return found


def measured(
    cell: Cell, directions: Sequence[str], providers: Mapping[str, Provider], machine: Machine
) -> Iterator[Row]:
    """The rows of a cell, of every library that has its norm."""
    case = cell.case
    shared = machine.facts | {"instrument": "bench", "case": case.name, "norm": case.norm, "shape": case.shape}
    shared |= {"groups": case.groups, "layout": cell.layout, "dtype": cell.dtype}
    try:
        given = operands(cell, machine.device)
        want = expected(partial(by_name, Textbook, case), given)
        failure = None
    except torch.OutOfMemoryError as error:
        failure = why(error)
    for name, provider in providers.items():
        if case.norm not in provider.norms:
            continue
        if failure is None:
            figures = times(provider, case, given, want, directions, machine)
        else:
            figures = {direction: {"error": failure} for direction in directions}
        for direction, found in figures.items():
            version = {} if provider.version() is None else {"version": provider.version()}
            yield {**shared, **version, "library": name, "direction": direction, **found}


HEADS = ("shape", "layout", "dtype", "direction", "library", "µs", "20 % to 80 %", "GB/s", "of copy", "host µs", "by")


def table(rows: Sequence[Row]) -> None:
    """Print rows for people, the libraries side by side."""
    place = {key(row)[:3]: at for at, row in reversed(list(enumerate(rows)))}
    lines = []
    for row in sorted(rows, key=lambda row: (place[key(row)[:3]], DIRECTIONS.index(row["direction"]))):
        if "error" in row:
            lines.append((*key(row), row["error"], *[""] * 5))
        else:
            between = f"{row['us_low']:.1f} to {row['us_high']:.1f}"
            rate = f"{row['gbps']:,.0f}", f"{row['of_ceiling']:.0%}"
            lines.append((*key(row), f"{row['us']:.1f}", between, *rate, f"{row['host_us']:.1f}", row["method"]))
    facts = rows[0]
    title = f"{facts['machine']}, driver {facts['driver']}, torch {facts['torch']}, triton {facts['triton']}"
    ceilings = [row["ceiling_gbps"] for row in rows if "ceiling_gbps" in row]
    note = f"A copy in the same run: {ceilings[0]:,.0f} GB/s read and written." if ceilings else "Nothing was timed."
    show(
        title,
        HEADS,
        lines,
        f"{note} A cold L2; by graph without the host's time, by stream with it where it is longer.",
    )


@click.command()
@shapes_option("llm")
@names_option("--layouts", "layouts", LAYOUTS, ",".join(LAYOUTS), "Layouts of x, where it has 4 or 5 dimensions")
@names_option("--dtypes", "dtypes", FLOATING, "bfloat16", "Dtypes of x")
@names_option("--directions", "directions", DIRECTIONS, ",".join(DIRECTIONS), "Passes")
@names_option("--providers", "names", PROVIDERS, ",".join(PROVIDERS), "Libraries, those that are installed")
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), show_default="bench-GPU.jsonl",
    help="The file of JSON lines, begun anew; each row is there as soon as it is measured.",
)  # fmt: skip
@json_option
def command(
    cases: tuple[Case, ...],
    layouts: tuple[str, ...],
    dtypes: tuple[str, ...],
    directions: tuple[str, ...],
    names: tuple[str, ...],
    out: Path | None,
    as_json: bool,
) -> None:
    """Time norms of several libraries side by side on a GPU.

    Every library's results and gradients are compared with float64's first; a wrong one is not timed. A time is the
    median with a cold L2. The forward pass is that of training; the backward pass is the gradients alone, with the
    graph kept. GB/s are of the compulsory bytes: each input read once, each result written once. Beside them stand the
    percentage of a copy's GB/s in the same run, and the host's time for a call, apart.

    \b
    Examples:
      python -m normtriton.perf bench
      python -m normtriton.perf bench --shapes unet,resnet --dtypes bfloat16,float32
      python -m normtriton.perf bench --shapes rms-8192x4096 --providers normtriton,quack --directions forward
    """  # noqa: D301  \b is click's mark of a paragraph to be left as it is
    device = gpu.find()
    providers, missing = installed(names)
    for name, reason in missing.items():
        click.echo(f"without {name}: {reason}", err=True)
    norms = {norm for provider in providers.values() for norm in provider.norms}
    wanted = [cell for cell in cells(cases, layouts, dtypes) if cell.case.norm in norms]
    if not wanted:
        raise Refusal("nothing to measure: no such shape has such a layout, or no library that is here such a norm")
    with gpu.working(device):
        facts = gpu.facts(device)
        file = Path(f"bench-{re.sub('[^A-Za-z0-9]+', '-', facts['machine'])}.jsonl") if out is None else out
        lines = Lines(file)
        try:
            with interruptible(lambda: f"{len(lines.rows)} rows are in {file}"), progress("bench", len(wanted)) as done:
                machine = Machine(device, facts, gpu.ceiling(device))
                for cell in wanted:
                    for row in measured(cell, directions, providers, machine):
                        lines.add(row)
                        if as_json:
                            click.echo(json.dumps(row, sort_keys=True))
                    done(cell.case.name)
        finally:
            if lines.rows and not as_json:
                table(lines.rows)
    if failures := sum("error" in row for row in lines.rows):
        raise Refusal(f"{failures} of {len(lines.rows)} rows have no time; they say why")
    click.echo(f"{len(lines.rows)} rows are in {file}", err=True)
