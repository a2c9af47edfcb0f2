"""Facts of the PTX that clusters rest on: how thread blocks wait for one another, and who may have clusters at all."""

import re

import pytest
import torch
from kernel_text import faults
from normtriton.perf.cases.branches import CLUSTERED, CLUSTERS
from normtriton.perf.cases.shapes import LAYOUTS as FORMATS
from normtriton.perf.cases.shapes import Case, make
from normtriton.perf.count.codegen import compile_launch
from normtriton.perf.count.launches import launches_of

from normtriton.runtime import clusters

if not clusters.compiles():
    pytest.skip("clusters need Triton 3.9", allow_module_level=True)

ARRIVE, WAIT = "barrier.cluster.arrive", "barrier.cluster.wait"


def kernels(branch, target):
    """The compiled kernels of a branch, forward and backward, with the sizes of their clusters."""
    made = make(Case(branch.norm, branch.shape, branch.groups), torch.float32, FORMATS[branch.layout])
    launches = [step for steps in launches_of(*made, CLUSTERS).values() for step in steps]
    return [(compile_launch(step, target).asm["ptx"], step.launch.plan.ctas) for step in launches]


@pytest.mark.slow
@pytest.mark.parametrize("branch", CLUSTERED.values(), ids=CLUSTERED)
def test_thread_blocks_of_a_cluster_wait_for_one_another(branch):
    """For a B200. Those of an H100 are executed, in test_emulated.py; listed shapes of both are in test_compile.py."""
    found = kernels(branch, "sm_100")
    assert branch.forward != "clustered" or any(size > 1 for _ptx, size in found)
    assert not [fault for ptx, size in found for fault in faults(ptx, size)]


def test_a_missing_barrier_is_found():
    """The check sees each fault that it is there for."""
    ptx, size = next((ptx, size) for ptx, size in kernels(CLUSTERED["row"], "sm_90") if size > 1)
    both = rf"{ARRIVE}\S*;\s*{WAIT}\S*;"
    *_, last = re.finditer(both, ptx)
    assert faults(ptx, size) == []
    without = ptx[: last.start()] + ptx[last.end() :]
    assert faults(without, size) == ["a block may end before others have used its memory"]
    early = ptx.replace(ARRIVE, f"ld.shared::cluster.b32 %r1, [%r1];\n{ARRIVE}", 1)
    assert "memory of another block is used before any barrier" in faults(early, size)
    relaxed = ptx.replace(ARRIVE, f"{ARRIVE}.relaxed", 1)
    assert faults(relaxed, size) == ["a relaxed arrival without a fence before it"]
    assert "an arrival is not followed by its wait" in faults(ptx.replace(f"{WAIT}.aligned;", "", 1), size)
    some = ptx.replace(f"{ARRIVE}.aligned", ARRIVE, 1)
    assert faults(some, size) == ["a barrier that some threads of a warp may miss"]
    assert faults(ptx, 2 * size) == ["a cluster of another size"]
    alone = "blocks of a cluster do not read each other's memory, or a block alone does"
    assert faults(ptx, 1) == ["a cluster of another size", alone]


@pytest.mark.parametrize(
    ("capability", "allowed"), [((8, 0), False), ((8, 9), False), ((9, 0), True), ((10, 0), True), ((11, 0), True),
                                ((12, 0), False), ((12, 1), False)],
)  # fmt: skip
def test_who_may_have_clusters(capability, allowed, monkeypatch):
    """Compute capability 9.0 to 11.x: those of 12.x are reported both ways."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _index: capability)
    monkeypatch.setattr(torch.version, "hip", None)
    assert clusters.supported(0) is allowed
