"""What can be counted without a GPU: launches, addresses, traffic, registers, instructions; ours and other libraries'.

Every figure here is exact, or simulated by a model of the cache. Times stand in `normtriton.perf.time`.
"""
