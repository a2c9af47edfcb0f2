"""A program: launches of a few branches, each executed and then timed; prints the sectors that both saw, as JSON.

Run as ``python tests/same_sectors.py sm_90 bfloat16 row-tail``, with names of branches; without any it takes all.
"""

import json
import sys

import torch
from normtriton.perf.cases import checks
from normtriton.perf.emulator import device as emulated
from normtriton.perf.emulator.gpus import GPUS
from normtriton.perf.emulator.timer import Timer

from normtriton.runtime import clusters


def both(device, timer):
    """Have launches executed, then noted and timed."""
    execute = device.launch

    def launch(make, args):
        result = execute(make, args)
        ran = device.launches[-1]
        device.executor.lib.emulator_note(1)
        make(*args)
        device.executor.lib.emulator_note(0)
        (*grid, threads, cluster, shared), parameters = device.executor.noted()
        binary = device._binaries[ran.handle]
        timed = timer.launch(ran.kernel, binary, tuple(grid), threads // 32, cluster, shared, parameters)
        sectors = ran.counts["ld_sectors"] + ran.counts["st_sectors"]
        row = {"kernel": ran.kernel, "cluster": cluster, "executed": sectors, "timed": timed.sectors}
        sys.stdout.write(json.dumps(row | {"guessed": timed.guessed}) + "\n")
        return result

    device.launch = launch


def main(target, dtype, *names):
    """Run branches by name."""
    device = emulated.enable(target)
    both(device, Timer(next(gpu for gpu in GPUS.values() if gpu.target == target)))
    clusters.set_mode("off" if target == "sm_80" else "on")
    for check in checks.of_branches(target != "sm_80", [dtype]):
        if not names or check.name.split()[1] in names:
            check.results(check.operands(torch.device("cpu")).fresh())


if __name__ == "__main__":
    main(*sys.argv[1:])
