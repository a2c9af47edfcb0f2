"""The Triton kernels: `forward.normalize_forward`, `backward.normalize_backward` and the finalizers in `finalize`.

No kernel knows a norm by its name. Each is handed a `Grouping` (which elements, as integers) and a `Plan` (how many at
a time, known when compiling), and the steps they share are in `tile`.

Triton decides when a kernel is defined whether it is compiled or interpreted, so `TRITON_INTERPRET=1` must be set
before this package is first imported.
"""
