"""Facts of the PTX that clusters rest on: how thread blocks wait for one another, and who may have clusters at all."""

import re

import pytest
import torch
from normtriton.perf.cases.branches import CLUSTERED, CLUSTERS
from normtriton.perf.cases.shapes import LAYOUTS as FORMATS
from normtriton.perf.cases.shapes import Case, make
from normtriton.perf.count.codegen import compile_launch
from normtriton.perf.count.launches import launches_of

from normtriton.runtime import clusters

if not clusters.compiles():
    pytest.skip("clusters need Triton 3.9", allow_module_level=True)

ARRIVE, WAIT = "barrier.cluster.arrive", "barrier.cluster.wait"


def steps(ptx):
    """What a kernel does with the memory and the barriers of its cluster, in the order of its text."""
    patterns = {
        "read": r"ld\.shared::cluster",
        "write": r"(st|red|atom)\S*\.shared::cluster",
        "arrive": r"barrier\.cluster\.arrive",
        "wait": r"barrier\.cluster\.wait",
        "fence": r"fence\S*\.cluster",
        "end": r"ret;",
    }
    return [
        (name, line.strip())
        for line in ptx.splitlines()
        for name, pattern in patterns.items()
        if re.match(rf"\s*(@\S+\s+)?{pattern}", line)
    ]


def faults(ptx):
    """What is wrong with how thread blocks of a cluster wait for one another; nothing if all is right."""
    found = []
    names = [name for name, _line in steps(ptx) if name != "fence"]
    shared = [at for at, name in enumerate(names) if name in ("read", "write")]
    if any(pair != ["arrive", "wait"] for pair in zip_pairs([n for n in names if n in ("arrive", "wait")])):
        found.append("an arrival is not followed by its wait")
    if shared and "wait" not in names[: shared[0]]:
        found.append("memory of another block is used before any barrier")
    if shared and "wait" not in names[shared[-1] :]:
        found.append("a block may end before others have used its memory")
    relaxed = [at for at, (name, line) in enumerate(steps(ptx)) if name == "arrive" and ".relaxed" in line]
    if any(at == 0 or steps(ptx)[at - 1][0] != "fence" for at in relaxed):
        found.append("a relaxed arrival without a fence before it")
    if any("aligned" not in line for name, line in steps(ptx) if name in ("arrive", "wait")):
        found.append("a barrier that some threads of a warp may miss")
    return found


def zip_pairs(items):
    """Neighbours two by two; what is left alone has no partner."""
    return [items[at : at + 2] for at in range(0, len(items), 2)]


def kernels(branch, target):
    """The compiled kernels of a branch, forward and backward, with their plans."""
    made = make(Case(branch.norm, branch.shape, branch.groups), torch.float32, FORMATS[branch.layout])
    launches = [step for steps in launches_of(*made, CLUSTERS).values() for step in steps]
    return [(step.launch.plan, compile_launch(step, target)) for step in launches]


@pytest.mark.parametrize("target", ["sm_90", "sm_100"])
@pytest.mark.parametrize("branch", CLUSTERED.values(), ids=CLUSTERED)
def test_thread_blocks_of_a_cluster_wait_for_one_another(branch, target):
    """Before they use another's memory, and before they end; what they wrote is visible then."""
    found = kernels(branch, target)
    assert branch.forward != "clustered" or any(plan.ctas > 1 for plan, _kernel in found)
    for plan, kernel in found:
        size = re.search(r"\.reqnctapercluster\s+(\d+)", kernel.asm["ptx"])
        assert int(size[1] if size else 1) == plan.ctas == kernel.metadata.num_ctas
        assert not faults(kernel.asm["ptx"]), plan
        assert (plan.ctas > 1) == any(name == "read" for name, _line in steps(kernel.asm["ptx"]))


def test_a_missing_barrier_is_found():
    """The check sees each fault that it is there for."""
    branch = CLUSTERED["row"]
    ptx = next(k.asm["ptx"] for plan, k in kernels(branch, "sm_90") if plan.ctas > 1)
    both = rf"{ARRIVE}\S*;\s*{WAIT}\S*;"
    *_, last = re.finditer(both, ptx)
    assert faults(ptx) == []
    assert faults(ptx[: last.start()] + ptx[last.end() :]) == ["a block may end before others have used its memory"]
    early = ptx.replace(ARRIVE, f"ld.shared::cluster.b32 %r1, [%r1];\n{ARRIVE}", 1)
    assert "memory of another block is used before any barrier" in faults(early)
    assert faults(ptx.replace(ARRIVE, f"{ARRIVE}.relaxed", 1)) == ["a relaxed arrival without a fence before it"]
    assert "an arrival is not followed by its wait" in faults(ptx.replace(f"{WAIT}.aligned;", "", 1))
    assert faults(ptx.replace(f"{ARRIVE}.aligned", ARRIVE, 1)) == ["a barrier that some threads of a warp may miss"]


@pytest.mark.parametrize(
    ("capability", "allowed"), [((8, 0), False), ((8, 9), False), ((9, 0), True), ((10, 0), True), ((11, 0), True),
                                ((12, 0), False), ((12, 1), False)],
)  # fmt: skip
def test_who_may_have_clusters(capability, allowed, monkeypatch):
    """Compute capability 9.0 to 11.x: those of 12.x are reported both ways."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _index: capability)
    monkeypatch.setattr(torch.version, "hip", None)
    assert clusters.supported(0) is allowed
