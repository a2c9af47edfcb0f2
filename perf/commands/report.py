"""``python -m normtriton.perf report``: results as a page, as pictures, as Markdown and as CSV; measures nothing."""

from __future__ import annotations

import csv
import io
import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click
from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from normtriton import __version__

from .. import cli, show
from ..cases.shapes import DIRECTIONS
from ..show import render
from ..show.contents import counted, gather
from ..show.draw import figures, marks, pictures
from ..show.rows import HOW, DamagedError, flat, read

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from matplotlib.figure import Figure

    from ..show.parts import Report
    from ..show.rows import Row

FORMATS = ("html", "png", "md", "csv")


class Made(NamedTuple):
    """A file of a report: its name, what writes it, and of which format it is."""

    name: str
    format: str
    write: Callable[[Path], object]


def page(report: Report) -> str:
    """The report as one page that needs nothing else."""
    environment = Environment(
        loader=PackageLoader(show.__name__),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    data = json.dumps({chart.name: figures(chart) for chart in report.charts}, separators=(",", ":"))
    return environment.get_template("report.html").render(
        report=report,
        plotly=get_plotlyjs(),
        figures=data.replace("<", "\\u003c"),
        dtypes=list(dict.fromkeys(dtype for chart in report.charts for dtype in chart.dtypes)),
        directions=DIRECTIONS,
        marks=marks,
        version=__version__,
    )


def markdown(report: Report) -> str:
    """The report's facts and tables, for a pull request."""
    facts = "\n".join(f"- {what}: {said}" for what, said in report.facts)
    parts = [f"## {report.title}", f"**{report.caution}**", facts]
    if report.verdicts:
        heads = ("beside", "results", "ours moves fewer bytes", "the same (1 %)", "more", "others")
        rows = [
            (f"{v.library}, {v.where}", v.total, v.fewer, v.same, v.more,
             "; ".join(f"{what}: {a} and {b}" for what, a, b in v.facts))
            for v in report.verdicts
        ]  # fmt: skip
        parts.append(render.table(heads, rows))
    for section in report.sections:
        parts += [f"### {section.title}", section.text]
        for table in section.tables:
            parts.append(
                f"<details><summary>{table.title}: {len(table.lines)}</summary>\n\n{table.markdown()}\n\n</details>"
            )
    return "\n\n".join(parts) + "\n"


def comma_separated(rows: list[Row]) -> str:
    """All rows, flat, each with how it came about."""
    found = [{"how": HOW.get(row["instrument"], "from the machine it names"), **flat(row)} for row in rows]
    file = io.StringIO()
    writer = csv.DictWriter(file, list(dict.fromkeys(name for row in found for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return file.getvalue()


def made(rows: list[Row], report: Report, formats: tuple[str, ...], name: str) -> Iterator[Made]:
    """The files of a report; the page, Markdown and CSV have the name."""
    texts = {"html": partial(page, report), "md": partial(markdown, report), "csv": partial(comma_separated, rows)}
    for form in formats:
        if form in texts:
            yield Made(f"{name}.{form}", form, partial(put, texts[form]))
        else:
            for chart in report.charts:
                for picture, draw in pictures(chart):
                    yield Made(f"{picture}.png", form, partial(save, draw))


def put(text: Callable[[], str], path: Path) -> None:
    """Write a text."""
    path.write_text(text(), encoding="utf-8")


def save(draw: Callable[[], Figure], path: Path) -> None:
    """Write a picture."""
    draw().savefig(path)


def find(given: tuple[Path, ...]) -> list[Row]:
    """The rows of files and folders.

    Raises:
        Refusal: one is not there, holds no results, or is damaged.
    """
    files = []
    for path in given or (render.RESULTS,):
        found = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        if not found or not path.exists():
            why = "holds no results (*.jsonl)" if path.is_dir() else "does not exist"
            raise cli.Refusal(
                f"{path} {why}; `make results` in a checkout writes those that need no GPU to perf/results, and"
                " `python -m normtriton.perf bench --out FILE` writes those of one"
            )
        files += found
    try:
        rows = read(files)
    except DamagedError as error:
        raise cli.Refusal(f"{error}; remove the line, or measure again") from error
    except (OSError, UnicodeDecodeError) as error:
        raise cli.Refusal(f"results cannot be read: {error}; name files of JSON lines") from error
    if not rows:
        raise cli.Refusal(f"no results in {', '.join(map(str, files))}: the files are empty; measure first")
    return rows


def target(out: Path, formats: tuple[str, ...] | None) -> tuple[Path, str, tuple[str, ...]]:
    """The folder to write to, the name of what is one file, and the formats."""
    form = out.suffix.removeprefix(".")
    if out.is_dir() or form not in FORMATS:
        return out, "report", formats or ("html",)
    if form == "png":
        raise click.UsageError("pictures are several files: name a folder, as in --format png --out pictures")
    if formats not in (None, (form,)):
        raise click.UsageError(f"{out} is one file, of format {form}: name a folder to write {', '.join(formats)}")
    return out.parent, out.stem, (form,)


@click.command(epilog="""\b
Examples:
  python -m normtriton.perf report                                what is in perf/results, as report/report.html
  python -m normtriton.perf report --out results.md               tables for a pull request
  python -m normtriton.perf report --format png --out pictures    for papers and slides
  python -m normtriton.perf report perf/results h100.jsonl --format html,csv --title "H100, measured"
""")  # fmt: skip
@click.argument("results", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), default="report", show_default=True, metavar="FOLDER|FILE",
    help="Where to write: a folder, or a file that ends in .html, .md or .csv.",
)  # fmt: skip
@click.option(
    "--format", "formats", type=cli.Names(FORMATS), default=None, metavar="html,png,md,csv",
    help="What to write, with commas between; more than one needs a folder.  [default: html, or FILE's]",
)  # fmt: skip
@click.option("--title", default="Normalization layers: results", show_default=True, help="What stands above it.")
@cli.json_option
def command(results: tuple[Path, ...], out: Path, formats: tuple[str, ...] | None, title: str, as_json: bool) -> None:
    """Turn results into a page, pictures, Markdown tables or CSV.

    RESULTS are files of JSON lines and folders of them, [default: perf/results]. What was timed on a GPU, predicted,
    simulated and compiled stands apart, and each says so. Of two rows of one result the later counts.

    The page needs no network: plots to hover, tables to sort by their heads.
    """
    folder, name, chosen = target(out, formats)
    rows = find(results)
    report = gather(rows, title)
    files = list(made(rows, report, chosen, name))
    written: list[Made] = []
    with cli.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with (
        cli.interruptible(lambda: f"{len(written)} of {len(files)} files are in {folder}"),
        cli.progress("writing", len(files)) as step,
    ):
        for file in files:
            with cli.writing(folder / file.name):
                file.write(folder / file.name)
            written.append(file)
            step(file.name)
    for file in written:
        path = folder / file.name
        said = {"file": str(path), "format": file.format, "bytes": path.stat().st_size, "rows": len(rows)}
        click.echo(json.dumps(said) if as_json else f"{path}")
    if not as_json:
        click.echo(f"{counted(len(rows), 'result')}. {report.caution}")
