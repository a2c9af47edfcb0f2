"""The Triton kernels: `forward.normalize_forward`, `backward.normalize_backward` and the finalizers in `finalize`.

No kernel knows a norm by its name. Each is handed a `Grouping` (which elements, as integers) and a `Plan` (how many at
a time, known when compiling). A file uses those above it:

    places       which elements: indices, masks, offsets
    cluster      what only thread-block clusters need
    memory       loads and stores
    sums         reductions of tiles
    statistics   mean and variance of groups: measured, merged, kept
    forward, backward, finalize     the kernels

What always travels together is a NamedTuple. One that may hold a None is made by a kernel and handed down, but neither
returned nor assigned in a loop: Triton 3.6 can do neither with a None.

No function returns from inside an ``if``: Triton compiles what follows one, whether it is reached or not.

Triton decides when a kernel is defined whether it is compiled or interpreted, so `TRITON_INTERPRET=1` must be set
before this package is first imported.
"""

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))
