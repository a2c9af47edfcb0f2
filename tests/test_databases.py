"""PyTorch's own test databases, each section a test. `make conformance` prints the same as a table."""

import pytest
from conformance import SECTIONS, run_section


@pytest.mark.parametrize("section", SECTIONS, ids=str)
def test_databases(section):
    """Every input passes, and they are as many as PyTorch has."""
    total, failures = run_section(section)
    assert not failures, f"{len(failures)} of {total}:\n" + "\n".join(failures)
