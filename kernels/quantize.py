"""Quantized numbers: values in, codes of one byte out, rounded to nearest even and saturated.

Integers make the codes. Compiled for sm_80, Triton 3.9 converts to no float8_e4m3fn.
"""

import triton
import triton.language as tl

#: 1.5 * 2**23: added to a smaller number it leaves the nearest integer, even where two are near, in the last digits.
ROUNDER = tl.constexpr(12582912.0)
ROUNDER_BITS = tl.constexpr(0x4B400000)


@triton.jit
def largest(plan: tl.constexpr):
    """The largest number that there is a code for."""
    if plan.quantize == "float8_e4m3fn":
        most = 448.0
    elif plan.quantize == "float8_e5m2":
        most = 57344.0
    else:
        most = 127.0
    return most


@triton.jit
def nearest_integer(values):
    """Float32 below 2**22 as int32."""
    return (values + ROUNDER).to(tl.int32, bitcast=True) - ROUNDER_BITS


@triton.jit
def code(values, plan: tl.constexpr):
    """Codes, int32, of float32. NaN is float8's NaN, and the integer 0."""
    there = values == values
    if plan.quantize == "int8":
        values = tl.where(there, tl.minimum(tl.maximum(values, -128.0), 127.0), 0.0)
        codes = nearest_integer(values)
    else:
        digits: tl.constexpr = 3 if plan.quantize == "float8_e4m3fn" else 2
        bias: tl.constexpr = 7 if plan.quantize == "float8_e4m3fn" else 15
        unit: tl.constexpr = 2.0 ** (bias + digits - 1)  # of the numbers below the normal ones
        size = tl.minimum(tl.abs(values), largest(plan))
        bits = size.to(tl.int32, bitcast=True)
        rounded = bits + ((1 << (22 - digits)) - 1) + ((bits >> (23 - digits)) & 1)
        normal = (rounded >> (23 - digits)) - ((127 - bias) << digits)
        codes = tl.where(size < 2.0 ** (1 - bias), nearest_integer(tl.minimum(size * unit, 16.0)), normal)
        negative = values.to(tl.int32, bitcast=True) < 0
        codes = tl.where(there, codes, 0x7F) | tl.where(negative, 0x80, 0)
    return codes
