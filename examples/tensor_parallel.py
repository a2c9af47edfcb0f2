"""A transformer block whose hidden dimension is split over the processes: the features of tokens, and the weights.

RMS norm takes its mean square over all parts: ``RMSNorm(features, process_group=group)``. Linear layers come in pairs
(Shoeybi et al. 2019, arXiv:1909.08053). The first of a pair takes all features and computes a part of the outputs: some
heads of the attention, some units of the MLP. The second takes this part, and what processes make of it is summed.
Beside its part, each process trains the whole block in plain PyTorch, from the same weights and on the same batches.

On CPUs the norms take PyTorch's operations. With ``TRITON_INTERPRET=1`` they run the kernels, which takes a minute.

    python -m torch.distributed.run --nproc-per-node 2 examples/tensor_parallel.py
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812  the name everyone knows it by
from torch import Tensor, nn

import normtriton as nt

if TYPE_CHECKING:
    from collections.abc import Callable

WIDTH, HEADS, EPS = 32, 4, 1e-6  # 1, 2 or 4 processes share the heads


def gather(x: Tensor) -> Tensor:
    """Join the parts of the last dimension that the processes hold."""
    parts = [torch.empty(x.shape) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts, dim=-1)


def add_up(x: Tensor) -> Tensor:
    """Sum over the processes, of which each keeps its part of the last dimension."""
    parts = [part.contiguous() for part in x.chunk(dist.get_world_size(), dim=-1)]
    total = torch.empty_like(parts[0])
    dist.reduce_scatter(total, parts)
    return total


class Collective(torch.autograd.Function):
    """A collective, and the one that its gradient takes: of `gather` this is `add_up`, and of `add_up` `gather`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, collective: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Return ``collective(x)``."""
        ctx.back = back
        return collective(x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of x."""
        return ctx.back(dy), None, None


class Block(nn.Module):
    """The whole block in plain PyTorch; with ``parts``, the layers of one of so many processes."""

    def __init__(self, parts: int = 1) -> None:
        """Make the layers."""
        super().__init__()
        heads, units = WIDTH // parts, 4 * WIDTH // parts  # the widths of a process's heads and of its MLP
        self.norm1, self.norm2 = (nn.RMSNorm(WIDTH, eps=EPS) for _ in range(2))
        self.query, self.key, self.value = (nn.Linear(WIDTH, heads, bias=False) for _ in "qkv")
        self.out = nn.Linear(heads, WIDTH, bias=False)
        self.up, self.down = nn.Linear(WIDTH, units, bias=False), nn.Linear(units, WIDTH, bias=False)

    def attention(self, x: Tensor) -> Tensor:
        """Take and return (batch, tokens, WIDTH)."""
        layers = self.query, self.key, self.value
        q, k, v = (layer(x).unflatten(2, (-1, WIDTH // HEADS)).transpose(1, 2) for layer in layers)
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))

    def mlp(self, x: Tensor) -> Tensor:
        """Take and return (batch, tokens, WIDTH)."""
        return self.down(F.silu(self.up(x)))

    def forward(self, x: Tensor) -> Tensor:
        """Take and return (batch, tokens, features)."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PartOfBlock(Block):
    """One process's part of the block: it normalizes and adds to its own features."""

    def __init__(self, parts: int) -> None:
        """Replace the norms."""
        super().__init__(parts)
        self.norm1, self.norm2 = (nt.RMSNorm(WIDTH // parts, eps=EPS, process_group=dist.group.WORLD) for _ in range(2))

    def attention(self, x: Tensor) -> Tensor:
        """Take and return (batch, tokens, WIDTH / parts)."""
        y = super().attention(Collective.apply(x, gather, add_up))
        return Collective.apply(y, add_up, gather)

    def mlp(self, x: Tensor) -> Tensor:
        """Take and return (batch, tokens, WIDTH / parts)."""
        y = super().mlp(Collective.apply(x, gather, add_up))
        return Collective.apply(y, add_up, gather)


def train(rank: int, size: int, steps: int = 4, batch: int = 4, tokens: int = 6) -> float:
    """Train the whole block and its parts; the largest difference of a result, or of a parameter after its gradient."""

    def own(t: Tensor, name: str = "") -> Tensor:
        """Return this process's part of the last dimension; of the weight of a pair's first layer, of the rows."""
        return t.chunk(size, dim=0 if name.startswith(("query", "key", "value", "up")) else -1)[rank]

    torch.manual_seed(0)
    whole, part = Block(), PartOfBlock(size)
    part.load_state_dict({name: own(t, name) for name, t in whole.state_dict().items()})
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9) for net in (whole, part)]
    difference = 0.0
    for step in range(steps):
        x = torch.randn(batch, tokens, WIDTH)
        mean = x.cumsum(1) / torch.arange(1, tokens + 1)[:, None]  # of all tokens so far: what the block learns
        y, ours = whole(x), part(own(x))
        loss = F.mse_loss(y, mean)
        for value, optimizer in zip((loss, F.mse_loss(ours, own(mean)) / size), optimizers, strict=True):
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        pairs = [(t, own(whole.get_parameter(name), name)) for name, t in part.named_parameters()]
        difference = max(difference, *((a - b).abs().max().item() for a, b in [*pairs, (ours, own(y))]))
        if rank == 0:
            print(f"step {step}: loss of the whole block {loss:.6f}, largest difference so far {difference:.1e}")
    return difference


def main() -> None:
    """Train, and print how far the parts are from the whole block."""
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    print(f"rank {rank} of {size}: differs from one process by {train(rank, size):.1e} at most")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
