"""What kernels are compiled and planned for, unless another device is named: facts without code."""

from __future__ import annotations

from triton.backends.compiler import GPUTarget

from normtriton.planning.plan import Device

#: The targets every kernel is compiled for.
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


#: What plans are made for unless another device is named.
H100 = Device(132)
H100_CLUSTERS = Device(132, clusters=True)

#: The device that a target's results are planned for, by name: A100, H100, B200 and MI300X.
PLANNED_FOR = {
    "sm_80": ("A100", Device(108)),
    "sm_90": ("H100", H100_CLUSTERS),
    "sm_100": ("B200", Device(148, clusters=True)),
    "gfx942": ("MI300X", Device(304)),
}
