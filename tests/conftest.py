"""Tests run in Triton's interpreter; those that compile need a process without it: `make test` runs both."""

import os
import zlib

os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
import torch

INTERPRETED = os.environ["TRITON_INTERPRET"] == "1"
COMPILING = ["test_compile.py", "test_compile_sweep.py"]
collect_ignore = COMPILING if INTERPRETED else []
collect_ignore_glob = [] if INTERPRETED else ["test_[!c]*.py", "test_c[!o]*.py", "test_con*.py"]


@pytest.fixture(autouse=True)
def _seed(request):
    """Every test has its own seed, from its name."""
    torch.manual_seed(zlib.crc32(request.node.nodeid.encode()))
