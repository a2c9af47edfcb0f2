"""Per-sample gradients by `torch.func`, as private training takes them (Abadi et al. 2016, arXiv:1607.00133).

``vmap(grad(loss))`` gives the gradient of each sample's loss. normtriton's kernels take all samples at once: a batch of
calls is one call with one more axis, so a norm is one launch however many samples there are. A loop over the samples
shows that the gradients are right. Then each is clipped, and their mean with noise updates the model.

    python examples/per_sample_gradients.py
"""

from __future__ import annotations

import os

import torch
import torch.nn.functional as F  # noqa: N812  the name everyone knows it by
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # runs the kernels on the CPU, slowly; set before the import

import normtriton as nt

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CLASSES, CLIP, NOISE, LEARNING_RATE = 4, 1.0, 0.1, 0.5


def network() -> nn.Module:
    """No batch norm, since with it a sample's loss would depend on the others."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nt.GroupNorm(4, 8, activation="silu"),
        nn.Flatten(),
        nn.Linear(8 * 8 * 8, 16),
        nt.LayerNorm(16, activation="silu"),
        nn.Linear(16, CLASSES),
    )


def per_sample_gradients(model: nn.Module, images: Tensor, classes: Tensor) -> dict[str, Tensor]:
    """Return the gradient of each parameter for each sample, (batch, *parameter.shape), by its name."""

    def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, parameters, (image[None],)), label[None])

    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return vmap(grad(loss), in_dims=(None, 0, 0))(parameters, images, classes)


def gradients_by_a_loop(model: nn.Module, images: Tensor, classes: Tensor) -> dict[str, Tensor]:
    """Return the same, by a backward pass for each sample."""
    parameters = dict(model.named_parameters())
    losses = (F.cross_entropy(model(image[None]), label[None]) for image, label in zip(images, classes, strict=True))
    each = [torch.autograd.grad(loss, tuple(parameters.values())) for loss in losses]
    return {name: torch.stack(rows) for name, *rows in zip(parameters, *each, strict=True)}


@torch.no_grad()
def update(model: nn.Module, gradients: dict[str, Tensor]) -> Tensor:
    """Step along the mean of the gradients, each clipped to the norm CLIP, with noise; return their norms (batch,)."""
    norms = torch.cat([g.flatten(1) for g in gradients.values()], dim=1).norm(dim=1)
    factors = (CLIP / norms).clamp(max=1.0)
    for name, parameter in model.named_parameters():
        clipped = torch.einsum("n,n...->...", factors, gradients[name])
        noise = NOISE * CLIP * torch.randn_like(parameter)
        parameter.sub_(LEARNING_RATE * (clipped + noise) / len(norms))
    return norms


def main(steps: int = 3, batch: int = 8) -> list[float]:
    """Train, and print the largest gradients; return the largest distance from a loop, relative, for each step."""
    if torch.cuda.is_available():
        torch.backends.cudnn.allow_tf32 = False  # it would round the convolutions to 1e-3
    torch.manual_seed(0)
    model = network().to(DEVICE)
    images = torch.randn(batch, 3, 8, 8, device=DEVICE)
    classes = torch.arange(batch, device=DEVICE) % CLASSES

    distances = []
    print("step    loss  norms of the gradients  distance from a loop")
    for step in range(steps):
        with torch.no_grad():
            loss = F.cross_entropy(model(images), classes)
        gradients = per_sample_gradients(model, images, classes)
        by_loop = gradients_by_a_loop(model, images, classes)
        distances.append(max(((gradients[n] - g).abs().max() / g.abs().max()).item() for n, g in by_loop.items()))
        norms = update(model, gradients)
        print(f"{step:4}  {loss:6.4f}  {norms.min():8.3f} to {norms.max():6.3f}  {distances[-1]:20.1e}")
    return distances


if __name__ == "__main__":
    main()
