"""PyTorch's own test databases, each section a test. `make conformance` prints the same as a table."""

import pytest
from conformance import SECTIONS, run_section


@pytest.mark.parametrize("section", SECTIONS, ids=str)
def test_databases(section):
    """Every input passes, and there are some."""
    total, failures = run_section(section)
    assert total > 0
    assert not failures, f"{len(failures)} of {total}:\n" + "\n".join(failures)
