"""Small Triton kernels of many kinds, for tests of the emulator. None is of the library."""

import triton
import triton.language as tl


@triton.jit
def add(x, y, z, n, block: tl.constexpr):
    i = tl.program_id(0) * block + tl.arange(0, block)
    tl.store(z + i, tl.load(x + i, mask=i < n) + tl.load(y + i, mask=i < n), mask=i < n)


@triton.jit
def copy(x, y, loaded, stored, block: tl.constexpr):
    """Copies elements; how many it loads and how many it stores may be wrong."""
    i = tl.program_id(0) * block + tl.arange(0, block)
    v = tl.load(x + i, mask=i < loaded)  # beyond
    tl.store(y + i, v, mask=i < stored)


@triton.jit
def overwrite(x, y, block: tl.constexpr):
    """Every program writes to the same place."""
    i = tl.arange(0, block)
    tl.store(y + i, tl.load(x + i) + tl.program_id(0))


@triton.jit
def neighbours(x, y, block: tl.constexpr):
    """Reads what the next program writes."""
    i = tl.program_id(0) * block + tl.arange(0, block)
    j = (tl.program_id(0) + 1) % tl.num_programs(0) * block + tl.arange(0, block)
    tl.store(x + i, tl.load(x + i) + 1)
    tl.store(y + i, tl.load(x + j))


@triton.jit
def total(x, y, n, block: tl.constexpr):
    i = tl.arange(0, block)
    v = tl.load(x + tl.program_id(0) * n + i, mask=i < n, other=0.0)
    tl.store(y + tl.program_id(0), tl.sum(v, 0))


@triton.jit
def softmax(x, y, n, block: tl.constexpr):
    i = tl.arange(0, block)
    v = tl.load(x + tl.program_id(0) * n + i, mask=i < n, other=-float("inf")).to(tl.float32)
    e = tl.exp(v - tl.max(v, 0))
    tl.store(y + tl.program_id(0) * n + i, (e / tl.sum(e, 0)).to(y.dtype.element_ty), mask=i < n)


@triton.jit
def moments(x, mean, rstd, y, n, block: tl.constexpr):
    """Sums one after the other, over all thread blocks of a cluster."""
    i = tl.arange(0, block)
    there = i < n
    v = tl.load(x + tl.program_id(0) * n + i, mask=there, other=0.0).to(tl.float32)
    m = tl.sum(v, 0) / n
    d = tl.where(there, v - m, 0.0)
    r = 1 / tl.sqrt(tl.sum(d * d, 0) / n + 1e-5)
    tl.store(mean + tl.program_id(0), m)
    tl.store(rstd + tl.program_id(0), r)
    tl.store(y + tl.program_id(0) * n + i, (d * r).to(y.dtype.element_ty), mask=there)


@triton.jit
def columns(x, y, rows: tl.constexpr, cols: tl.constexpr):
    """Rows times column sums, less their own sums: both axes, so that layouts are converted."""
    at = tl.arange(0, rows)[:, None] * cols + tl.arange(0, cols)[None, :]
    v = tl.load(x + at)
    down, across = tl.sum(v, 0), tl.sum(v, 1)
    tl.store(y + at, v * down[None, :] - across[:, None])


@triton.jit
def cube(x, a, b, c, depth: tl.constexpr, height: tl.constexpr, width: tl.constexpr):
    """Sums of a tensor of three dimensions along each."""
    i, j, k = tl.arange(0, depth), tl.arange(0, height), tl.arange(0, width)
    v = tl.load(x + i[:, None, None] * (height * width) + j[None, :, None] * width + k[None, None, :])
    tl.store(a + j[:, None] * width + k[None, :], tl.sum(v, 0))
    tl.store(b + i[:, None] * width + k[None, :], tl.sum(v, 1))
    tl.store(c + i[:, None] * height + j[None, :], tl.sum(v, 2))


@triton.jit
def transpose(x, y, rows: tl.constexpr, cols: tl.constexpr):
    v = tl.load(x + tl.arange(0, rows)[:, None] * cols + tl.arange(0, cols)[None, :])
    tl.store(y + tl.arange(0, cols)[:, None] * rows + tl.arange(0, rows)[None, :], tl.trans(v))


@triton.jit
def matmul(x, y, z, rows: tl.constexpr, cols: tl.constexpr, inner: tl.constexpr):
    """By broadcasting, without tensor cores."""
    m, n, k = tl.arange(0, rows), tl.arange(0, cols), tl.arange(0, inner)
    a = tl.load(x + m[:, None] * inner + k[None, :])
    b = tl.load(y + k[:, None] * cols + n[None, :])
    tl.store(z + m[:, None] * cols + n[None, :], tl.sum(a[:, :, None] * b[None, :, :], 1))


@triton.jit
def convert(x, ys, n, block: tl.constexpr):
    """To the dtype of each of several tensors."""
    i = tl.program_id(0) * block + tl.arange(0, block)
    v = tl.load(x + i, mask=i < n)
    for k in tl.static_range(len(ys)):
        tl.store(ys[k] + i, v.to(ys[k].dtype.element_ty), mask=i < n)


@triton.jit
def integers(x, y, z, n, block: tl.constexpr):
    i = tl.program_id(0) * block + tl.arange(0, block)
    a, b = tl.load(x + i, mask=i < n, other=1), tl.load(y + i, mask=i < n, other=1)
    r = (a // b * 3 + a % b) ^ ((a << 3) & (b >> 2)) | tl.minimum(a, b)
    high = tl.umulhi(a.to(tl.uint32), b.to(tl.uint32)).to(tl.int32)
    tl.store(z + i, tl.where(a > b, r, high), mask=i < n)


@triton.jit
def lower_halves(x, y, n, block: tl.constexpr):
    """The lower half of each number, with its sign: of a register that is wider than the type it is converted from."""
    i = tl.program_id(0) * block + tl.arange(0, block)
    v = tl.load(x + i, mask=i < n, other=0)
    low = tl.inline_asm_elementwise("cvt.s64.s32 $0, $1;", "=l,l", [v], tl.int64, is_pure=True, pack=1)
    tl.store(y + i, low, mask=i < n)


@triton.jit
def elementary(x, y, n, block: tl.constexpr):
    i = tl.program_id(0) * block + tl.arange(0, block)
    v = tl.load(x + i, mask=i < n, other=1.0)
    r = tl.exp(-v * v) + tl.log(1 + v * v) + tl.rsqrt(1 + tl.abs(v)) + tl.sin(v) * tl.cos(v)
    tl.store(y + i, r + tl.floor(v) + tl.sqrt_rn(tl.abs(v)) + tl.div_rn(v, 3.0), mask=i < n)


@triton.jit
def loop(x, y, n, steps, block: tl.constexpr):
    """A loop whose length is an argument, and a branch in it."""
    acc = tl.zeros((block,), tl.float32)
    for s in range(steps):
        i = s * block + tl.arange(0, block)
        v = tl.load(x + i, mask=i < n, other=0.0)
        if s % 2 == 0:
            acc += v
        else:
            acc -= v
    tl.store(y + tl.arange(0, block), acc)


@triton.jit
def scan(x, y, block: tl.constexpr):
    i = tl.arange(0, block)
    tl.store(y + i, tl.cumsum(tl.load(x + i), 0))


@triton.jit
def add_atomically(x, y, n, block: tl.constexpr):
    i = tl.program_id(0) * block + tl.arange(0, block)
    tl.atomic_add(y + i % 8, tl.load(x + i, mask=i < n, other=0), mask=i < n)


@triton.jit
def largest(x, y, n, block: tl.constexpr):
    i = tl.arange(0, block)
    v = tl.load(x + tl.program_id(0) * n + i, mask=i < n, other=-float("inf"))
    tl.store(y + tl.program_id(0), tl.argmax(v, 0))
