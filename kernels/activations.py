"""Activations and their derivatives: values in, values out, in the dtype of the arithmetic.

A plan names one, or has a caller's own (`normtriton.Activation`); Triton 3.6 takes no string as an argument of a
function.

NaN flows, and so do infinities, as in `torch.nn.functional`'s functions of these names.
"""

import triton
import triton.language as tl


@triton.jit
def logistic(z):
    """1 / (1 + exp(-z))."""
    return 1.0 / (1.0 + tl.exp(-z))


@triton.jit
def hyperbolic_tangent(z):
    """Tanh(z): near zero by its series, where the quotient would lose digits."""
    near: tl.constexpr = 1e-6 if z.dtype == tl.float64 else 1e-2
    t = tl.exp(-2.0 * tl.abs(z))
    quotient = (1.0 - t) / (1.0 + t)
    square = z * z
    series = z * (
        1.0 - square * (1.0 / 3.0 - square * (2.0 / 15.0 - square * (17.0 / 315.0 - square * (62.0 / 2835.0))))
    )
    return tl.where(square < near, series, tl.where(z < 0.0, -quotient, quotient))


@triton.jit
def normal_cdf(z):
    """The probability that a normal variable is less than z."""
    return 0.5 + 0.5 * tl.erf(z * 0.7071067811865476)


@triton.jit
def nearly_normal(z):
    """What gelu's approximation takes for `normal_cdf`: 0.5 + 0.5 tanh(a) = logistic(2a), of a cubic polynomial a."""
    return logistic(1.5957691216057308 * tl.fma(0.044715 * z * z, z, z))


@triton.jit
def activate(z, plan: tl.constexpr):
    """The plan's activation at z; z itself for ""."""
    if plan.activation == "relu":
        z = tl.where(z <= 0.0, 0.0, z)
    elif plan.activation == "leaky_relu":
        z = tl.where(z > 0.0, z, z * 0.01)
    elif plan.activation == "silu":
        z = z / (1.0 + tl.exp(-z))
    elif plan.activation == "sigmoid":
        z = logistic(z)
    elif plan.activation == "tanh":
        z = hyperbolic_tangent(z)
    elif plan.activation == "gelu":
        z = z * normal_cdf(z)
    elif plan.activation == "gelu_tanh":
        z = z * nearly_normal(z)
    elif plan.activation == "hardswish":
        z = z * tl.where(z <= -3.0, 0.0, tl.where(z >= 3.0, 6.0, z + 3.0)) / 6.0
    elif plan.activation != "":
        z = plan.activation.act(z)
    return z


@triton.jit
def slope(z, plan: tl.constexpr):
    """The derivative of the plan's activation at z."""
    one = tl.full(z.shape, 1.0, z.dtype)
    if plan.activation == "relu":
        d = tl.where(z <= 0.0, 0.0, one)
    elif plan.activation == "leaky_relu":
        d = tl.where(z > 0.0, one, one * 0.01)
    elif plan.activation == "silu":
        s = logistic(z)
        d = s * (1.0 + z * (1.0 - s))
    elif plan.activation == "sigmoid":
        s = logistic(z)
        d = s * (1.0 - s)
    elif plan.activation == "tanh":
        t = hyperbolic_tangent(z)
        d = 1.0 - t * t
    elif plan.activation == "gelu":
        d = tl.fma(z, tl.exp(-0.5 * z * z) * 0.3989422804014327, normal_cdf(z))
    elif plan.activation == "gelu_tanh":
        s = nearly_normal(z)
        d = s + z * s * nearly_normal(-z) * (1.5957691216057308 * tl.fma(0.134145 * z, z, 1.0))
    elif plan.activation == "hardswish":
        d = tl.where(z <= -3.0, 0.0, tl.where(z >= 3.0, 1.0, z / 3.0 + 0.5))
    elif plan.activation != "":
        d = plan.activation.slope(z)
    else:
        d = one
    return d
