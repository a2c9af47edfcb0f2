"""``python -m normtriton.perf``: see `normtriton.perf.cli`."""

from __future__ import annotations

import sys

try:
    from .cli import main
except ModuleNotFoundError as error:
    if error.name not in ("click", "rich"):
        raise
    sys.exit(f"{error.name} is not installed: in a copy of the repository, pip install '.[perf]'")

if __name__ == "__main__":
    main(prog_name="python -m normtriton.perf")
