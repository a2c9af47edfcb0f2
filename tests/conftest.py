"""Tests run in Triton's interpreter; those of compiled kernels need a process without it: `make test` runs all.

    TRITON_INTERPRET=1    kernels are interpreted (the default)
    TRITON_INTERPRET=0    kernels are compiled, and not run
    --compiled TARGET     kernels are compiled, and run on the emulator

`WAYS` says which files are for which.
"""

import os
import zlib

import pytest

TARGETS = ("sm_80", "sm_90", "sm_100")
#: What runs a file, where that is not the interpreter alone.
WAYS = {
    "test_compile.py": ("compiled",),
    "test_compile_sweep.py": ("compiled",),
    "test_baseline.py": ("compiled", "interpreted"),
    "test_ptx.py": ("compiled",),
    "test_model.py": ("compiled",),
    "test_timed.py": ("compiled",),
    "test_emulator.py": ("emulated",),
    "test_emulator_async.py": ("emulated",),
    "test_emulated.py": ("emulated",),
    "test_norms.py": ("emulated", "interpreted"),
    "test_exactness.py": ("emulated", "interpreted"),
    "test_running.py": ("emulated", "interpreted"),
    "test_clusters.py": ("emulated", "interpreted"),
    "test_extremes.py": ("emulated", "interpreted"),
    "test_threads.py": ("emulated", "interpreted"),
}
#: Findings of loads that race: with --chaos they give garbage, so that the test itself shows whether it is used.
RACES = ("race-global", "cross-program")
_DEVICE = pytest.StashKey()


def pytest_addoption(parser):
    """How kernels are run."""
    group = parser.getgroup("emulator")
    group.addoption("--compiled", choices=TARGETS, help="run kernels compiled for a target, on the emulator")
    group.addoption("--seed", type=int, default=1, help="of the emulator's scheduler (default: 1)")
    group.addoption("--chaos", action="store_true", help="loads that race give garbage, and only results count")


def pytest_configure(config):
    """Say how kernels run before anything imports them: Triton decides when they are defined."""
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        return  # xdist's own process runs no test, and imports neither torch nor Triton
    target = config.getoption("compiled")
    if target is None:
        os.environ.setdefault("TRITON_INTERPRET", "1")
        if os.environ["TRITON_INTERPRET"] == "1":
            from interpreter_speed import speed_up

            speed_up()
        return
    # as interpreted: clusters where a test asks for them, few multiprocessors so that small tensors reach every plan
    os.environ |= {"TRITON_INTERPRET": "0", "NORMTRITON_CLUSTERS": "off"}
    from normtriton.perf.emulator.device import enable

    config.stash[_DEVICE] = enable(target, sms=2, assemble=False)  # ptxas has its say in test_compile.py
    _schedule(config)


def _schedule(config):
    config.stash[_DEVICE].executor.configure(seed=config.getoption("seed"), chaos=config.getoption("chaos"))


def pytest_ignore_collect(collection_path, config):
    """Collect what can run this way."""
    if not collection_path.name.startswith("test_"):
        return None
    interpreted = os.environ["TRITON_INTERPRET"] == "1"
    way = "emulated" if config.getoption("compiled") else "interpreted" if interpreted else "compiled"
    return way not in WAYS.get(collection_path.name, ("interpreted",)) or None


@pytest.fixture(autouse=True)
def _seed(request):
    """Every test has its own seed, from its name."""
    import torch

    torch.manual_seed(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture
def device(request):
    """The emulated device, which a test may configure."""
    yield request.config.stash[_DEVICE]
    _schedule(request.config)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """A test fails whose launches, watched by nobody else, did something wrong on the emulated device."""
    device = item.config.stash.get(_DEVICE, None)
    if device is None:
        return (yield)
    with device.watching() as launches:
        result = yield
    allowed = RACES if item.config.getoption("chaos") else ()
    found = [str(report) for ran in launches for report in ran.errors if report.kind not in allowed]
    if found:
        pytest.fail("\n".join([f"{len(found)} findings:", *found[:10]]), pytrace=False)
    return result
