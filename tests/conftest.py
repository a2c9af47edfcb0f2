"""Tests run in Triton's interpreter; those that compile need a process without it: `make test` runs both."""

import os
import zlib
from pathlib import Path

os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
import torch

INTERPRETED = os.environ["TRITON_INTERPRET"] == "1"
COMPILING = ["test_compile.py", "test_compile_sweep.py", "test_timed.py"]
EITHER = ["test_baseline.py"]
EVERY = [file.name for file in Path(__file__).parent.glob("test_*.py")]
collect_ignore = COMPILING if INTERPRETED else [name for name in EVERY if name not in COMPILING + EITHER]


@pytest.fixture(autouse=True)
def _seed(request):
    """Every test has its own seed, from its name."""
    torch.manual_seed(zlib.crc32(request.node.nodeid.encode()))
