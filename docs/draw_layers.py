"""Draw the layers of the package from the contract that `make lint` holds them to.

    python docs/draw_layers.py [--out DIR]

writes layers.svg. Each box is a contract of ``.importlinter``; a row may import the rows below it, and no other. What
a folder is for is the first sentence of its own docstring.
"""

from __future__ import annotations

import argparse
import ast
from configparser import ConfigParser
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: Folders that stand elsewhere than their name in the package says.
ELSEWHERE = {"normtriton.kernels": "kernels", "normtriton.perf": "perf"}
ROW, WIDTH, NAMES = 26, 900, 190


def contracts() -> dict[str, tuple[str, list[list[str]]]]:
    """Each container's title, and its layers from the highest to the lowest."""
    config = ConfigParser()
    config.read(ROOT / ".importlinter")
    found = {}
    for section in config.sections():
        if "layers" in config[section]:
            rows = [line.split(" | ") for line in config[section]["layers"].split("\n") if line]
            found[config[section]["containers"]] = config[section]["name"], rows
    return found


def source(module: str) -> Path:
    """The file of a module."""
    head = next((name for name in ELSEWHERE if module == name or module.startswith(f"{name}.")), None)
    path = ROOT / (module.replace(head, ELSEWHERE[head], 1) if head else module).replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def purpose(module: str) -> str:
    """The first line of a module's docstring."""
    return (ast.get_docstring(ast.parse(source(module).read_text())) or "").split("\n")[0]


def svg() -> str:
    """The drawing."""
    parts, y = [], 10
    for container, (title, rows) in contracts().items():
        parts.append(f'<text x="10" y="{y + 16}" class="title">{escape(container)}: {escape(title)}</text>')
        y += ROW
        for row in rows:
            for column, name in enumerate(row):
                each = (WIDTH - 20) // len(row)
                x = 10 + column * each
                parts.append(f'<rect x="{x}" y="{y}" width="{each - 4}" height="{ROW - 4}" rx="4"/>')
                text = purpose(f"{container}.{name}")
                room = (each - 20) // 6 if len(row) > 1 else (each - NAMES) // 6
                text = text if len(text) <= room else f"{text[: room - 1]}…"
                parts.append(f'<text x="{x + 8}" y="{y + 15}" class="name">{escape(name)}</text>')
                if len(row) == 1:
                    parts.append(f'<text x="{x + NAMES - 60}" y="{y + 15}">{escape(text)}</text>')
            y += ROW
        y += 12
    style = (
        "text{font:12px sans-serif;fill:#222}.title{font-weight:bold}.name{font-family:monospace}"
        "rect{fill:#eef3fa;stroke:#8aa4c8}"
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" width="{WIDTH}" height="{y}">'
    ground = f'<path d="M0 0H{WIDTH}V{y}H0Z" fill="#fff"/>'
    return "\n".join([head, f"<style>{style}</style>", ground, *parts, "</svg>"]) + "\n"


def main() -> None:
    """Write the drawing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    (parser.parse_args().out / "layers.svg").write_text(svg())


if __name__ == "__main__":
    main()
