"""A GPU that is not there, for tests of the commands that need one: it is the CPU, and every time is made up."""

from contextlib import nullcontext

import torch

FACTS = {
    "machine": "made-up GPU", "sms": 2, "driver": "0", "clusters": "used", "tuned": "", "torch": "0", "cuda": "0",
    "hip": None, "triton": "0", "normtriton": "0", "commit": None,
}  # fmt: skip


def pretend(monkeypatch, gpu):
    """Put the made-up GPU in place of `normtriton.perf.time.gpu`'s; returns the runs that were timed."""
    timed = []

    def time(run, _device):
        timed.append(run())
        return gpu.Times(10.0, 9.0, 12.0, "made up")

    monkeypatch.setattr(gpu, "find", lambda: torch.device("cpu"))
    monkeypatch.setattr(gpu, "working", lambda _device: nullcontext())
    monkeypatch.setattr(gpu, "facts", lambda _device: dict(FACTS))
    monkeypatch.setattr(gpu, "ceiling", lambda _device: 100.0)
    monkeypatch.setattr(gpu, "time", time)
    monkeypatch.setattr(gpu, "host_us", lambda _run, _device: 5.0)
    return timed
