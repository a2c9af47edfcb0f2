"""PyTorch's own test databases, each section a test. `make conformance` prints the same as a table."""

import pytest
from conformance import SECTIONS, run_section

COMPOSED = ("torch.func", "composite compliance")  # minutes in all: one input of each section is run here


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # PyTorch's first dual number does so
@pytest.mark.parametrize("section", SECTIONS, ids=str)
def test_databases(section):
    """Every input passes, and they are as many as PyTorch has."""
    if section.kind.startswith(COMPOSED) and section.dtype == "float32":
        pytest.skip("in float64 here")
    total, failures = run_section(section, every=100 if section.kind.startswith(COMPOSED) else 1)
    assert not failures, f"{len(failures)} of {total}:\n" + "\n".join(failures)
