"""A GPU without a GPU: runs the PTX that Triton emits, with a sanitizer's checks, and predicts times from its SASS.

    device.py       Triton's own launcher on a driver that runs, or times, each launch
    pretend.py      CPU tensors say that they are on a GPU
    memory.py       which elements a launch may access, and which were written

    ptx.py          reads a module of PTX; instructions.py and encoding.py make rows of integers of it
    executor.py     the rows are run by cpp/executor: instructions, vector clocks, findings, a CUDA driver's functions

    sass.py         reads a cubin: instructions with the compiler's schedule; liveness.py marks what has to be computed
    timer.py        the rows are timed by cpp/model: warps, pipes, caches, the memory bus
    gpus.py         what the model is told of each GPU

    build.py        compiles the C++ on first use

What is executed knows no time, and what is timed computes no results. docs/emulator.md says how to use both.
"""
