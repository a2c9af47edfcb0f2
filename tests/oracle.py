"""What a norm should give, in float64, by the textbook; and how far from it rounding may take a result."""

from typing import NamedTuple

import torch

EPS32 = 2.0**-24


class Gradients(NamedTuple):
    y: torch.Tensor
    dx: torch.Tensor
    dweight: torch.Tensor | None
    dbias: torch.Tensor | None
    hardness: float  #: the largest |mean| in standard deviations: digits that a float32 mean costs x - mean


def reference(x, weight, bias, dy, *, dims, spread, split=None, eps=1e-5, centered=True):
    """Results and gradients in float64 by autograd.

    Args:
        dims: dimensions that share statistics, counted after ``split``.
        spread: the shape that broadcasts a parameter against x.
        split: shape to view x in while normalizing, for group norm.
    """
    x, dy = x.detach().double().requires_grad_(), dy.double()
    weight, bias = (p if p is None else p.detach().double().requires_grad_() for p in (weight, bias))
    view = x if split is None else x.reshape(split)
    mean = view.mean(dims, keepdim=True) if centered else torch.zeros((), dtype=torch.float64)
    variance = ((view - mean) ** 2).mean(dims, keepdim=True)  # biased
    y = ((view - mean) / torch.sqrt(variance + eps)).reshape(x.shape)
    if weight is not None:
        y = y * weight.reshape(spread)
    if bias is not None:
        y = y + bias.reshape(spread)
    y.backward(dy)
    hardness = (mean.abs() / torch.sqrt(variance + eps)).max().item()
    grads = (None if p is None else p.grad for p in (weight, bias))
    return Gradients(y.detach(), x.grad, *grads, hardness)


def close(got, want, *, slack=0.0, scale=None, unit=EPS32):
    """Whether ``got`` is ``want`` but for rounding.

    Its own dtype's rounding, and 8 roundings of the arithmetic (``unit``, by default float32's) relative to the largest
    value, plus ``slack`` of them for what the case is known to lose.
    """
    largest = want.abs().max().item() if scale is None else scale
    own = torch.finfo(got.dtype).eps / 2
    allowed = (8 + slack) * unit * largest + own * want.abs() + torch.finfo(got.dtype).tiny
    error = (got.double() - want).abs()
    assert (error <= allowed).all(), f"error {(error / allowed).max().item():.2f} times the allowed"
