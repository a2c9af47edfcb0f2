"""One table of what real shapes cost: bytes counted from the plans, and facts read from the compiled kernels. No GPU.

    python -m normtriton.perf.table [--target sm_90] [--dtype bfloat16] [--no-clusters] > perf/results/sm_90-bfloat16.md

"x" is bytes moved over compulsory bytes, every access of every launch counted and no cache assumed. Registers are the
most of any launch, local memory and cluster barriers likewise; accesses are the widest to x, y, dy or dx.
"""

from __future__ import annotations

import argparse

import torch
import triton

from normtriton.explain import backward_direction, forward_direction
from normtriton.plan import Device

from .codegen import TARGETS, compile_launch, launches_of, read_code
from .shapes import CASES, make


def rows(target: str, dtype: torch.dtype, device: Device) -> list[str]:
    """A Markdown row for every shape, layout and direction."""
    table = []
    for case in CASES:
        for layout in (torch.contiguous_format, torch.channels_last)[: 1 + (len(case.shape) == 4)]:
            call, x, weight, bias = make(case, dtype, layout)
            directions = {
                "forward": forward_direction(call, x, weight, bias, device),
                "backward": backward_direction(call, x, weight, bias, device),
            }
            for name, recorded in launches_of(call, x, weight, bias, device).items():
                codes = [read_code(compile_launch(step, target)) for step in recorded]
                direction, plan = directions[name], recorded[0].launch.plan
                blocks = recorded[0].launch.grid[0] * recorded[0].launch.grid[1] * plan.ctas
                cells = (
                    case.name,
                    "channels_last" if layout == torch.channels_last else "contiguous",
                    name,
                    direction.schedule.strategy,
                    len(recorded),
                    f"{direction.moved / direction.compulsory:.2f}",
                    f"{blocks:,}",
                    max(code.registers for code in codes),
                    max(code.stack for code in codes),
                    max(codes[0].loads),
                    max(code.cluster_barriers for code in codes),
                )
                table.append(f"| {' | '.join(map(str, cells))} |")
    return table


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--target", choices=TARGETS, default="sm_90")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32", "float64"), default="bfloat16")
    parser.add_argument("--sms", type=int, default=132, help="multiprocessors to plan for (default: an H100's)")
    parser.add_argument("--no-clusters", action="store_true", help="plan without thread-block clusters")
    chosen = parser.parse_args()
    clusters = not chosen.no_clusters and chosen.target in ("sm_90", "sm_100")
    print(  # noqa: T201  a report, here and below
        f"Compiled for {chosen.target} by Triton {triton.__version__}, {chosen.dtype} with float32 parameters, planned "
        f"for {chosen.sms} multiprocessors {'with' if clusters else 'without'} clusters. Nothing was run.\n"
    )
    heads = (
        "shape", "layout", "direction", "strategy", "launches", "x", "thread blocks", "registers", "local bytes",
        "access bytes", "cluster barriers",
    )  # fmt: skip
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")  # noqa: T201
    for row in rows(chosen.target, getattr(torch, chosen.dtype), Device(chosen.sms, clusters)):
        print(row, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
