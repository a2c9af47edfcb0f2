"""What mkdocs is told to do besides: pages from elsewhere, links out of docs/, and formulas that need no network.

Links are written for the repository, relative to the file that they stand in. On the site README.md is the first page.
A link to a file that is no page becomes its name, since the site does not hold the source.
"""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
#: Pages that stand outside of docs/.
ELSEWHERE = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
NAMES = {ROOT / source: page for page, source in ELSEWHERE.items()}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that stand elsewhere."""
    for page, source in ELSEWHERE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Turn links towards the site, and GitHub's fences around formulas to dollars."""
    folder = ROOT if page.file.src_uri in ELSEWHERE else DOCS

    def turned(match: re.Match[str]) -> str:
        text, path, anchor = match.groups()
        file = (folder / path).resolve()
        if file in NAMES:
            return f"{text}({NAMES[file]}{anchor or ''})"
        if file.is_relative_to(DOCS):
            return f"{text}({file.relative_to(DOCS)}{anchor or ''})"
        return text[1:-1] if file.exists() else match[0]  # which mkdocs then complains of

    markdown = re.sub(r"(\[[^\]\n]+\])\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)", turned, markdown)
    return re.sub(r"^```math\n(.*?)^```$", r"$$\n\1$$", markdown, flags=re.DOTALL | re.MULTILINE)


def on_page_content(html: str, **_: Any) -> str:
    """Turn TeX to MathML, which browsers draw themselves."""

    def drawn(match: re.Match[str]) -> str:
        return convert(unescape(match["tex"]), display="inline" if match["kind"] == "(" else "block")

    formula = r'<(span|div) class="arithmatex">\\(?P<kind>[(\[])(?P<tex>.*?)\\[)\]]</\1>'
    return re.sub(formula, drawn, html, flags=re.DOTALL)
