"""A Llama block (Touvron et al. 2023, arXiv:2302.13971) with query and key norms, in PyTorch and in normtriton.

Such a model adds each layer's output to a residual stream and normalizes the sum for the next layer. normtriton
computes both in one pass over memory: ``y, stream = norm(x, residual=stream)``. Queries and keys are normalized in each
head, as in Qwen 3 (arXiv:2505.09388), by naming the axes. Both models start from the same weights and see the same
batches.

    python examples/llama_block.py
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
WIDTH, HEADS, EPS = 32, 4, 1e-6
WORDS, LENGTH = 16, 12


def rotate(x: Tensor) -> Tensor:
    """Rotary position embedding (Su et al. 2021, arXiv:2104.09864) of x (batch, heads, tokens, d)."""
    tokens, half = x.shape[2], x.shape[3] // 2
    frequency = 10000.0 ** (-torch.arange(half, device=x.device) / half)
    angle = torch.arange(tokens, device=x.device)[:, None] * frequency
    a, b = x.chunk(2, dim=3)
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], dim=3)


class Attention(nn.Module):
    """Causal self-attention with normalized queries and keys, in plain PyTorch."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in "qkvo")
        self.query_weight, self.key_weight = (nn.Parameter(torch.ones(WIDTH // HEADS)) for _ in "qk")

    def head_norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """RMS norm of each head of x (batch, tokens, heads * d); all heads share the weight (d,)."""
        return F.rms_norm(x.unflatten(2, (HEADS, -1)), weight.shape, weight, EPS).flatten(2)

    def forward(self, x: Tensor) -> Tensor:
        """Take and return (batch, tokens, width)."""
        q, k = self.head_norm(self.query(x), self.query_weight), self.head_norm(self.key(x), self.key_weight)
        q, k, v = (t.unflatten(2, (HEADS, -1)).transpose(1, 2) for t in (q, k, self.value(x)))
        y = F.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(2))


class OurAttention(Attention):
    """The same with normtriton."""

    def head_norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """``(h d)`` splits the last dimension into heads; ``center=False`` makes it an RMS norm."""
        return nt.normalize(x, "b t (h d)", over="d", affine="d", h=HEADS, center=False, weight=weight, eps=EPS)


class GatedMLP(nn.Module):
    """Two linear layers, the first of which is gated (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.gate, self.up = (nn.Linear(WIDTH, 2 * WIDTH, bias=False) for _ in range(2))
        self.down = nn.Linear(2 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Take and return (..., width)."""
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Model(nn.Module):
    """A language model with one block, in plain PyTorch."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.word, self.head = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WORDS, bias=False)
        self.attention, self.mlp = Attention(), GatedMLP()
        self.norm1, self.norm2, self.norm3 = (nn.RMSNorm(WIDTH, eps=EPS) for _ in range(3))

    def forward(self, words: Tensor) -> Tensor:
        """Take (batch, tokens), return the logits of each next word, (batch, tokens, WORDS)."""
        stream = self.word(words)
        stream = stream + self.attention(self.norm1(stream))
        stream = stream + self.mlp(self.norm2(stream))
        return self.head(self.norm3(stream))


class OurModel(Model):
    """The same model with normtriton: a norm adds to the stream, and returns it beside its result."""

    def __init__(self) -> None:
        """Replace the norms."""
        super().__init__()
        self.attention = OurAttention()
        self.norm1, self.norm2, self.norm3 = (nt.RMSNorm(WIDTH, eps=EPS) for _ in range(3))

    def forward(self, words: Tensor) -> Tensor:
        """Take (batch, tokens), return the logits of each next word, (batch, tokens, WORDS)."""
        stream = self.word(words)
        y, stream = self.norm2(self.attention(self.norm1(stream)), residual=stream)
        y, _ = self.norm3(self.mlp(y), residual=stream)
        return self.head(y)


def make_batches(steps: int, batch: int) -> list[Tensor]:
    """Sequences that count on by 1 or 2 from a random word, so that two words tell the next."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randint(WORDS, (steps, batch, 1), generator=generator)
    stride = torch.randint(1, 3, (steps, batch, 1), generator=generator)
    return list((start + stride * torch.arange(LENGTH + 1)) % WORDS)


def train(model: nn.Module, batches: list[Tensor]) -> list[float]:
    """Return the loss of each step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    losses = []
    for batch in batches:
        words = batch.to(DEVICE)
        loss = F.cross_entropy(model(words[:, :-1]).flatten(0, 1), words[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def main(steps: int = 10, batch: int = 8) -> tuple[list[float], list[float]]:
    """Train both models; print and return their losses."""
    torch.manual_seed(0)
    plain, ours = Model().to(DEVICE), OurModel().to(DEVICE)
    ours.load_state_dict(plain.state_dict())
    batches = make_batches(steps, batch)
    losses = train(plain, batches), train(ours, batches)

    print("step   PyTorch  normtriton  difference")
    for step, (theirs, own) in enumerate(zip(*losses, strict=True)):
        print(f"{step:4}  {theirs:8.5f}    {own:8.5f}    {abs(own - theirs):.1e}")
    return losses


if __name__ == "__main__":
    main()
