"""A small residual network (He et al. 2015, arXiv:1512.03385), in PyTorch and in normtriton.

A residual block adds a skip connection between its last batch norm and the activation. normtriton computes norm, sum
and activation in one pass over memory: ``BatchNorm2d(c, activation="relu")(x, skip=identity)``. Images are in
channels_last, and no copy is made. Both models start from the same weights and see the same batches.

    python examples/residual_network.py
"""

from __future__ import annotations

import os

import torch
import torch.nn.functional as F  # noqa: N812  the name everyone knows it by
from torch import Tensor, nn

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # runs the kernels on the CPU, slowly; set before the import

import normtriton as nt

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CLASSES, CHANNELS = 4, 8


class Network(nn.Module):
    """A stem, one residual block and a linear layer, in plain PyTorch."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (
            nn.Conv2d(channels, CHANNELS, 3, padding=1, bias=False) for channels in (3, CHANNELS, CHANNELS)
        )
        self.norm1, self.norm2, self.norm3 = (nn.BatchNorm2d(CHANNELS) for _ in range(3))
        self.head = nn.Linear(CHANNELS, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Take (batch, 3, height, width), return (batch, classes)."""
        identity = F.relu(self.norm1(self.conv1(image)))
        x = F.relu(self.norm2(self.conv2(identity)))
        x = F.relu(self.norm3(self.conv3(x)) + identity)
        return self.head(x.mean((2, 3)))


class OurNetwork(Network):
    """The same network with normtriton: a norm has its activation, and takes the skip connection with its input."""

    def __init__(self) -> None:
        """Replace the norms."""
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nt.BatchNorm2d(CHANNELS, activation="relu") for _ in range(3))

    def forward(self, image: Tensor) -> Tensor:
        """Take (batch, 3, height, width), return (batch, classes)."""
        identity = self.norm1(self.conv1(image))
        x = self.norm2(self.conv2(identity))
        x = self.norm3(self.conv3(x), skip=identity)
        return self.head(x.mean((2, 3)))


def make_batches(steps: int, batch: int) -> list[tuple[Tensor, Tensor]]:
    """Images (batch, 3, 8, 8), one pattern for each class with noise on it, and their classes (batch,)."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randn(CLASSES, 3, 8, 8, generator=generator)
    classes = torch.arange(batch) % CLASSES
    noise = torch.randn(steps, batch, 3, 8, 8, generator=generator)
    return [((patterns[classes] + 0.3 * n).to(memory_format=torch.channels_last), classes) for n in noise]


def train(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> list[float]:
    """Return the loss of each step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    losses = []
    for images, classes in batches:
        loss = F.cross_entropy(model(images.to(DEVICE)), classes.to(DEVICE))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def main(steps: int = 10, batch: int = 8) -> tuple[list[float], list[float]]:
    """Train both models; print and return their losses."""
    if torch.cuda.is_available():
        torch.backends.cudnn.allow_tf32 = False  # it would round the convolutions to 1e-3
    torch.manual_seed(0)
    plain, ours = Network().to(DEVICE), OurNetwork().to(DEVICE)
    ours.load_state_dict(plain.state_dict())
    batches = make_batches(steps, batch)
    losses = train(plain, batches), train(ours, batches)

    print("step   PyTorch  normtriton  difference")
    for step, (theirs, own) in enumerate(zip(*losses, strict=True)):
        print(f"{step:4}  {theirs:8.5f}    {own:8.5f}    {abs(own - theirs):.1e}")
    drift = max((a - b).abs().max().item() for a, b in zip(plain.buffers(), ours.buffers(), strict=True))
    print(f"largest difference of a running statistic: {drift:.1e}")
    return losses


if __name__ == "__main__":
    main()
