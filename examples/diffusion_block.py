"""A diffusion transformer block with adaLN-zero (Peebles and Xie 2023, arXiv:2212.09748), in PyTorch and in normtriton.

The layer norms of such a block have no weight of their own. Each sample is scaled, shifted and gated by vectors that
are computed from its time and its label. normtriton takes these vectors with the input, and so computes gate, residual
sum, norm, scale and shift in one pass over memory. Both models start from the same weights and see the same batches.

    python examples/diffusion_block.py
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
WIDTH, HEADS = 32, 4
LABELS, TOKENS, VALUES = 4, 16, 8  # an image is TOKENS patches of VALUES numbers


class Attention(nn.Module):
    """Self-attention of (batch, tokens, width)."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Return what each token gathers from all of them."""
        q, k, v = self.qkv(x).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """The block in plain PyTorch."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.attention = Attention()
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU("tanh"), nn.Linear(4 * WIDTH, WIDTH))
        self.norm1, self.norm2 = (nn.LayerNorm(WIDTH, eps=1e-6, elementwise_affine=False) for _ in range(2))
        self.condition = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, 6 * WIDTH))
        for parameter in self.condition.parameters():
            nn.init.zeros_(parameter)  # so that the block first passes x on unchanged

    def modulation(self, c: Tensor) -> tuple[Tensor, ...]:
        """Return two of shift, scale and gate, each (batch, 1, width)."""
        return self.condition(c)[:, None].chunk(6, dim=2)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Take x (batch, tokens, width) and the condition c (batch, width), return (batch, tokens, width)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c)
        x = x + gate1 * self.attention(self.norm1(x) * (1 + scale1) + shift1)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class OurBlock(Block):
    """The same block with normtriton: what surrounds a norm is given with its input."""

    def __init__(self) -> None:
        """Replace the norms."""
        super().__init__()
        self.norm1, self.norm2 = (nt.LayerNorm(WIDTH, eps=1e-6, elementwise_affine=False) for _ in range(2))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """The second norm scales the attention by its gate, adds x, and returns this sum beside its result."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c)
        y = self.attention(self.norm1(x, scale=scale1, shift=shift1))
        y, x = self.norm2(y, x_scale=gate1, residual=x, scale=scale2, shift=shift2)
        return x + gate2 * self.mlp(y)


class Denoiser(nn.Module):
    """Predict the velocity from an image to noise, at a point between the two."""

    def __init__(self, block: type[Block]) -> None:
        """Make the layers around one block of a class."""
        super().__init__()
        self.read, self.write = nn.Linear(VALUES, WIDTH), nn.Linear(WIDTH, VALUES)
        self.time, self.label = nn.Linear(1, WIDTH), nn.Embedding(LABELS, WIDTH)
        self.block = block()

    def forward(self, noisy: Tensor, time: Tensor, label: Tensor) -> Tensor:
        """Take noisy (batch, tokens, values), time (batch, 1) and label (batch,), return (batch, tokens, values)."""
        return self.write(self.block(self.read(noisy), self.time(time) + self.label(label)))


def make_batches(steps: int, batch: int) -> list[tuple[Tensor, ...]]:
    """Images of one color for each label, mixed with noise at a random time; the velocity is what the model learns."""
    generator = torch.Generator().manual_seed(0)
    colors = 2 * torch.randn(LABELS, 1, VALUES, generator=generator)
    label = torch.arange(batch) % LABELS
    batches: list[tuple[Tensor, ...]] = []
    for _ in range(steps):
        time, noise = torch.rand(batch, 1, generator=generator), torch.randn(batch, TOKENS, VALUES, generator=generator)
        velocity = noise - colors[label]
        batches.append((colors[label] + time[:, None] * velocity, time, label, velocity))
    return batches


def train(model: nn.Module, batches: list[tuple[Tensor, ...]]) -> list[float]:
    """Return the loss of each step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for batch in batches:
        noisy, time, label, velocity = (t.to(DEVICE) for t in batch)
        loss = F.mse_loss(model(noisy, time, label), velocity)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def main(steps: int = 10, batch: int = 8) -> tuple[list[float], list[float]]:
    """Train both models; print and return their losses."""
    torch.manual_seed(0)
    plain, ours = Denoiser(Block).to(DEVICE), Denoiser(OurBlock).to(DEVICE)
    ours.load_state_dict(plain.state_dict())
    batches = make_batches(steps, batch)
    losses = train(plain, batches), train(ours, batches)

    print("step   PyTorch  normtriton  difference")
    for step, (theirs, own) in enumerate(zip(*losses, strict=True)):
        print(f"{step:4}  {theirs:8.5f}    {own:8.5f}    {abs(own - theirs):.1e}")
    return losses


if __name__ == "__main__":
    main()
