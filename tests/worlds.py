"""Worlds of several processes on this machine, which talk by gloo: each runs the same function, and says what it found.

They are forked from one that has imported everything, since that takes seconds.
"""

import os
import tempfile
import warnings
from datetime import timedelta
from multiprocessing import forkserver, get_context
from pathlib import Path
from unittest.mock import patch

os.environ.setdefault("TRITON_INTERPRET", "1")
if os.environ["TRITON_INTERPRET"] == "1":
    from interpreter_speed import speed_up

    speed_up()

import torch
import torch.distributed as dist

import normtriton as nt  # noqa: F401  imported before the fork

_SERVER = get_context("forkserver")
#: The last two are imported by a backward pass, a checkpoint and a compiler: seconds in each process.
_SERVER.set_forkserver_preload(["worlds", "across_cases", "torch._dynamo", "torch._inductor.pattern_matcher"])


def _be_one(function, rank, size, store, timeout, pipe):
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", ".*encountered in.*", RuntimeWarning)  # as pyproject.toml has it
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=timedelta(seconds=timeout)
    )
    pipe.send(function(rank, size))
    pipe.close()
    dist.destroy_process_group()


def run(function, size, timeout=60.0):
    """What ``function(rank, size)`` returns in each process; None of one that died."""
    with patch.dict(os.environ, PYTHONPATH=str(Path(__file__).parent)):  # before Python 3.13 it is not told sys.path
        forkserver.ensure_running()
    with tempfile.TemporaryDirectory() as folder:
        ends = [_SERVER.Pipe(duplex=False) for _ in range(size)]
        started = [
            _SERVER.Process(target=_be_one, args=(function, rank, size, Path(folder) / "store", timeout, ends[rank][1]))
            for rank in range(size)
        ]
        for process in started:
            process.start()
        for _, theirs in ends:
            theirs.close()
        found = []
        for (ours, _), process in zip(ends, started, strict=True):
            try:
                found.append(ours.recv() if ours.poll(300) else None)
            except EOFError:
                found.append(None)
            process.join(30)
        return found
