"""What people read: code blocks run, commands exist, links lead somewhere, figures are those of the results."""

import re
from itertools import chain
from pathlib import Path
from textwrap import dedent

import click
import pytest
from normtriton.perf.cli import main

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {str(page.relative_to(ROOT)): page.read_text() for page in PAGES}
each_page = pytest.mark.parametrize("page", TEXTS)
#: Commands of perf that stand in the pages: in a line of their own, or between backticks.
PERF = re.compile(r"(?:^    |`)python -m normtriton\.perf (\w[^`#|\n]*)", re.MULTILINE)


def blocks(text):
    """The Python code of a page, of its lists too."""
    return map(dedent, re.findall(r"^ *```python\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE))


BLOCKS = [
    pytest.param(block, id=f"{Path(page).stem}-{number}")
    for page, text in TEXTS.items()
    for number, block in enumerate(blocks(text))
]


@pytest.mark.parametrize("block", BLOCKS)
def test_code_runs(block, capsys, tmp_path):
    """Each block by itself, from a file, where Triton reads kernels; it prints what the lines behind "# > " say."""
    (file := tmp_path / "block.py").write_text(block)
    exec(compile(block, file, "exec"), {"__name__": "block"})  # noqa: S102  our own
    printed = capsys.readouterr().out
    for line in re.findall(r"^# > (.*)$", block, re.MULTILINE):
        assert line in printed, printed


def test_there_is_code():
    """The patterns above find what there is: a page that shows a call, and every block that is opened."""
    assert len(BLOCKS) == sum(text.count("```python\n") for text in TEXTS.values()) >= 12
    assert sum("\n# > " in block for block in chain.from_iterable(map(blocks, TEXTS.values()))) >= 3


@each_page
def test_commands_exist(page):
    """Targets of make, commands of perf and their options, programs."""
    text = TEXTS[page]
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for target in re.findall(r"(?:^    |`)make ([\w-]+)", text, re.MULTILINE):
        assert target in targets, target
    for program in re.findall(r"(?:^    |`)(?:\w*/)*python ((?:examples|docs|tests)/\w+\.py)", text, re.MULTILINE):
        assert (ROOT / program).is_file(), program
    for words in (found.split() for found in PERF.findall(text)):
        command = main.get_command(click.Context(main), words[0])
        assert command, words
        options = {name for p in command.params if isinstance(p, click.Option) for name in p.opts}
        assert {word for word in words if word.startswith("--")} <= options, words


def test_commands_are_found():
    """In lines of their own, and between backticks."""
    assert len(PERF.findall(TEXTS["docs/results.md"])) >= 5
    assert PERF.findall("see `python -m normtriton.perf time --shapes unet` and") == ["time --shapes unet"]


def anchors(text):
    """What a link can lead to within a page, as GitHub and the site name it."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_links_lead_somewhere(page):
    """To a file of the repository, and to a heading of it."""
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```|`[^`\n]*`", "", TEXTS[page], flags=re.DOTALL)):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), link
        assert not anchor or anchor in anchors(file.read_text()), link


#: Three lines of 120 characters.
LONGEST = 360


def sentences(text):
    """What is read of a page: paragraphs, items and cells by sentence; no code, no formulas, not where links lead."""
    hidden = r"^ *```.*?^ *```$|\n\n(?:    [^\n]*\n)+|<!--.*?-->|\$\$.*?\$\$|^#[^\n]*$"
    text = re.sub(hidden, "\n\n", re.sub(r"(\])\([^)]*\)", r"\1", text), flags=re.DOTALL | re.MULTILINE)
    parts = re.split(r"\n\s*\n|\||^ *(?:[-*]|\d+\.) ", text, flags=re.MULTILINE)
    return [s for part in parts for s in re.split(r"(?<=[.?!])[*)\"]* (?![a-z])", " ".join(part.split()))]


@each_page
def test_sentences_are_short(page):
    """None is longer than three lines."""
    assert [sentence for sentence in sentences(TEXTS[page]) if len(sentence) > LONGEST] == []


def test_sentences_are_found():
    """Across lines, in items and in cells; not in code."""
    text = "# A\nOne\ntwo. Three [four](five).\n\n    code.\n\n- six. **Seven.** Eight\n  nine\n\n| a. B | c |\n|--|\n"
    assert [s for s in sentences(text) if s.strip("- ")] == [
        "One two.", "Three [four].", "six.", "**Seven.", "Eight nine", "a.", "B", "c",
    ]  # fmt: skip
    assert len(max(sentences(f"A{' very' * 80} long sentence. A short one."), key=len)) > LONGEST


def test_the_readme_is_short():
    """One screen or two."""
    assert len(TEXTS["README.md"].splitlines()) <= 150


@pytest.mark.parametrize("page", ["docs/moving-over.md", "docs/trust.md"])
def test_figures_are_those_of_the_results(page):
    """Each predicted time of a table, and each "µs" in the text, stands in docs/results.md."""
    text = TEXTS[page]
    known = {*re.findall(r"([\d.]+) µs", TEXTS["docs/results.md"])}
    rows = [line for line in text.splitlines() if re.search(r"\| (?:[^|]*, )?(?:forward|backward) \|", line)]
    figures = [*re.findall(r"\b(\d+\.\d)\b", "\n".join(rows)), *re.findall(r"([\d.]+) µs", text)]
    assert len(figures) >= 10
    assert {*figures} <= known
