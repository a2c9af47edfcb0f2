"""PyTorch's own test databases, each section a test. `make conformance` prints the same as a table."""

import pytest
from conformance import SECTIONS, run_section

COMPOSED = ("torch.func", "composite compliance")
#: Minutes in all, so that one input of those which the others are part of is run here.
DEEPEST = ("torch.func vjpvjp", "torch.func jvpvjp", "torch.func vjpvmap", "torch.func vmapjvpvjp")
#: The functions beneath the modules have all dtypes.
OF_MODULES = ("float32", "bfloat16")
HERE = [
    s
    for s in SECTIONS
    if (s.dtype in OF_MODULES if s.kind == "module inputs" else not s.kind.startswith(COMPOSED))
    or (s.kind in DEEPEST and s.dtype == "float64")
]


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # PyTorch's first dual number does so
@pytest.mark.parametrize("section", HERE, ids=str)
def test_databases(section):
    """Every input passes, and they are as many as PyTorch has."""
    total, failures = run_section(section, every=100 if section.kind in DEEPEST else 1)
    assert not failures, f"{len(failures)} of {total}:\n" + "\n".join(failures)
