"""What the commands of ``python -m normtriton.perf`` share: shapes, options, progress, and how they end.

A command is a `click.Command`; it is imported when it is asked for.
"""

from __future__ import annotations

import json
import os
import pkgutil
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from normtriton.runtime import cache

from .cases.shapes import SETS, Case

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

#: What runs them, after ``python -m``.
PROGRAM = __package__

#: Where each command is: what needs a GPU, what does not, and what reads results.
COMMANDS = {
    "bench": "commands.bench:command",
    "autotune": "commands.autotune:command",
    "selfcheck": "commands.selfcheck:command",
    "traffic": "commands.offline:traffic",
    "codegen": "commands.offline:codegen",
    "time": "commands.offline:predicted_time",
    "emulate": "commands.emulate:command",
    "validate": "commands.validation:command",
    "results": "commands.results:command",
    "report": "commands.report:command",
    "compare": "commands.compare:command",
}


class Refusal(click.ClickException):
    """A command cannot go on: the cause and the remedy, without a traceback."""


class Commands(click.Group):
    """The commands, each imported when it is asked for."""

    def list_commands(self, _context: click.Context) -> list[str]:
        """In the order of `COMMANDS`."""
        return list(COMMANDS)

    def get_command(self, _context: click.Context, name: str) -> click.Command | None:
        """Import one."""
        if name not in COMMANDS:
            return None
        try:
            command = pkgutil.resolve_name(f"{__package__}.{COMMANDS[name]}")
        except ModuleNotFoundError as error:
            if error.name is None or error.name.startswith("normtriton"):
                raise
            raise Refusal(f"{name} needs {error.name}: pip install 'normtriton[perf]'") from error
        assert isinstance(command, click.Command)
        return command


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def main() -> None:
    """Measure, tune and compare normalization layers, on a GPU or without one."""


class Shapes(click.ParamType[tuple[Case, ...]]):
    """Names of shape sets and of cases, with commas between: "llm,group32-8x320x64x64"."""

    name = "shapes"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> tuple[Case, ...]:
        """The cases, each once, in the order of their names."""
        if isinstance(value, tuple):
            return value
        found: dict[Case, None] = {}
        try:
            for name in value.split(","):
                found |= dict.fromkeys(SETS[name] if name in SETS else (Case.named(name),))
        except ValueError as error:
            self.fail(f"{error}; or one of the sets {', '.join(SETS)}", param, context)
        return tuple(found)


def shapes_option(default: str) -> Callable[[Any], Any]:
    """The option ``--shapes``."""
    text = f"Shape sets ({', '.join(SETS)}) and cases such as group32-8x320x64x64, with commas between."
    return click.option("--shapes", "cases", type=Shapes(), default=default, show_default=True, help=text)


class Names(click.ParamType[tuple[str, ...]]):
    """Some of a few names, with commas between."""

    name = "names"

    def __init__(self, known: Iterable[str]) -> None:
        """Those that there are."""
        self.known = tuple(known)

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> tuple[str, ...]:
        """The names, each once."""
        names = value if isinstance(value, tuple) else tuple(dict.fromkeys(value.split(",")))
        for name in names:
            if name not in self.known:
                self.fail(f"{name!r} is none of {', '.join(self.known)}", param, context)
        return names


def names_option(flag: str, parameter: str, known: Iterable[str], default: str, what: str) -> Callable[[Any], Any]:
    """An option for some of a few names; ``what`` they are, for people."""
    known = tuple(known)
    text = f"{what}: {', '.join(known)}; with commas between."
    return click.option(flag, parameter, type=Names(known), default=default, show_default=True, help=text)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON lines instead of a table.")


def show(title: str, heads: Sequence[str], rows: Iterable[Sequence[object]], note: str) -> None:
    """Print a table as wide as it is: a narrow terminal breaks its lines, not its words."""
    table = Table(title=title, caption=note, box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left")
    for head in heads:
        table.add_column(head, no_wrap=True)
    for row in rows:
        table.add_row(*map(str, row))
    Console(width=1000).print(table)


class Lines:
    """JSON lines, on disk as soon as they are there: a run that is stopped keeps what it measured."""

    def __init__(self, file: Path | None, resume: bool = False) -> None:
        """Begin a file anew, or ``resume`` with the rows that are there; with None, keep nothing.

        Raises:
            Refusal: it cannot be written, or holds something else.
        """
        self.rows: list[dict[str, Any]] = []
        self._file = file
        if file is not None:
            with writing(file), cache.appending(file):
                text = file.read_bytes() if resume else b""
                whole = text[: text.rfind(b"\n") + 1]  # without a last row that was cut off
                self.rows = _rows(file, whole.splitlines(), text[len(whole) :])
                if len(whole) != file.stat().st_size:
                    os.truncate(file, len(whole))

    def add(self, row: dict[str, Any]) -> None:
        """Keep a row."""
        self.rows.append(row)
        if self._file is not None:
            with writing(self._file), cache.appending(self._file) as file:
                file.write(json.dumps(row, sort_keys=True) + "\n")


def _rows(file: Path, lines: list[bytes], cut_off: bytes) -> list[dict[str, Any]]:
    """The rows of a file's lines; the rest may be the beginning of one."""
    try:
        rows = [json.loads(line) for line in lines if line]
    except ValueError:
        rows = [None]
    if not all(isinstance(row, dict) for row in rows) or cut_off[:1] not in (b"", b"{"):
        raise Refusal(f"{file} holds other things than rows of results: name another file with --out")
    return rows


@contextmanager
def writing(path: Path, option: str = "--out") -> Iterator[None]:
    """Around what writes a file that an option names: where it cannot, the command ends with the reason."""
    try:
        yield
    except OSError as error:
        raise Refusal(f"{path} cannot be written: {error.strerror}; name another place with {option}") from error


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[str], None]]:
    """A bar with the time left, on a terminal; to be called with what is done, after each step."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[now]}"),
    )  # fmt: skip
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total, now="")
        yield lambda now: bar.update(task, advance=1, now=now)


@contextmanager
def interruptible(kept: Callable[[], str]) -> Iterator[None]:
    """Around a long run: Ctrl-C ends it with the status of an interrupt, and says what was kept."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo(f"\nstopped; {kept()}", err=True)
        sys.exit(130)
