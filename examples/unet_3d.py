"""A small 3-D U-Net (Cicek et al. 2016, arXiv:1606.06650), whose volumes are split along depth over the processes.

Each process holds a slab. A convolution needs one slice of either neighbour, which is sent. Group norm takes its
statistics over all slabs: ``GroupNorm(..., process_group=group)``. Beside its slab, each process trains a network in
plain PyTorch on the whole volumes, from the same weights.

On CPUs the norms take PyTorch's operations. With ``TRITON_INTERPRET=1`` they run the kernels, which takes a minute.

    python -m torch.distributed.run --nproc-per-node 2 examples/unet_3d.py
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812  the name everyone knows it by
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import normtriton as nt

CHANNELS, GROUPS = 4, 2
SLICES, PIXELS = 4, 8  # a slab is SLICES x PIXELS x PIXELS


def swap(first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """Send one to the process before, one to that after; return what these sent, and zeros where there is none."""
    rank, size = dist.get_rank(), dist.get_world_size()
    first, last = first.contiguous(), last.contiguous()
    before, after = torch.zeros_like(first), torch.zeros_like(last)
    operations = []
    for sent, received, peer in ((first, before, rank - 1), (last, after, rank + 1)):
        if 0 <= peer < size:
            operations += [dist.P2POp(dist.isend, sent, peer), dist.P2POp(dist.irecv, received, peer)]
    for work in dist.batch_isend_irecv(operations) if operations else ():
        work.wait()
    return before, after


class Swap(torch.autograd.Function):
    """`swap`. Its gradient is a swap too: that of a received slice goes back to the process that the slice is of."""

    @staticmethod
    def forward(_ctx: Any, first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        """Return the slices before and after."""
        return swap(first, last)

    @staticmethod
    def backward(_ctx: Any, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of first and last."""
        return swap(before, after)


class Layer(nn.Module):
    """A convolution, group norm and SiLU of the whole volume, in plain PyTorch."""

    def __init__(self, inputs: int, outputs: int) -> None:
        """Make both."""
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(GROUPS, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Take (batch, inputs, depth, height, width), return as many outputs."""
        return F.silu(self.norm(self.conv(x)))


class SlabLayer(Layer):
    """The same of a slab: neighbours give the slices around it, and all slabs share their statistics."""

    def __init__(self, inputs: int, outputs: int) -> None:
        """Replace both: depth is not padded, and the norm has its activation."""
        super().__init__(inputs, outputs)
        self.conv = nn.Conv3d(inputs, outputs, 3, padding=(0, 1, 1), bias=False)
        self.norm = nt.GroupNorm(GROUPS, outputs, activation="silu", process_group=dist.group.WORLD)

    def forward(self, x: Tensor) -> Tensor:
        """Take (batch, inputs, slices, height, width), return as many outputs."""
        before, after = Swap.apply(x[:, :, :1], x[:, :, -1:])
        return self.norm(self.conv(torch.cat([before, x, after], dim=2)))


class UNet(nn.Module):
    """Two levels, the lower of half the resolution. A slab of an even depth is halved without its neighbours."""

    def __init__(self, layer: type[Layer]) -> None:
        """Make it of layers of a class."""
        super().__init__()
        self.down = nn.Sequential(layer(1, CHANNELS), layer(CHANNELS, CHANNELS))
        self.low = nn.Sequential(layer(CHANNELS, 2 * CHANNELS), layer(2 * CHANNELS, 2 * CHANNELS))
        self.up = nn.Sequential(layer(3 * CHANNELS, CHANNELS), layer(CHANNELS, CHANNELS))
        self.head = nn.Linear(CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Take volumes (batch, 1, depth, height, width), return logits (batch, depth, height, width)."""
        skip = self.down(x)
        low = F.interpolate(self.low(F.avg_pool3d(skip, 2)), scale_factor=2.0)
        return self.head(self.up(torch.cat([skip, low], dim=1)).movedim(1, -1))[..., 0]


def make_batch(depth: int, batch: int) -> tuple[Tensor, Tensor]:
    """Balls in noise (batch, 1, depth, PIXELS, PIXELS), and which voxels are inside (batch, depth, PIXELS, PIXELS)."""
    shape = depth, PIXELS, PIXELS
    voxels = torch.cartesian_prod(*(torch.arange(n) for n in shape))
    centers = torch.rand(batch, 1, 3) * torch.tensor(shape)
    inside = ((voxels - centers).norm(dim=2) < PIXELS / 2).float().unflatten(1, shape)
    return (inside + 0.5 * torch.randn(inside.shape))[:, None], inside


def train(rank: int, size: int, steps: int = 4, batch: int = 2) -> float:
    """Train on the whole volumes and on slabs; the largest difference of a loss or of a parameter."""
    torch.manual_seed(0)
    whole, slab = UNet(Layer), UNet(SlabLayer)
    slab.load_state_dict(whole.state_dict())
    parallel = DistributedDataParallel(slab)  # gradients are averaged, as the loss is
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.2, momentum=0.9) for net in (whole, slab)]
    differences = []
    for step in range(steps):
        volumes, inside = make_batch(SLICES * size, batch)
        x, labels = volumes.chunk(size, dim=2)[rank], inside.chunk(size, dim=1)[rank]
        loss = F.binary_cross_entropy_with_logits(whole(volumes), inside)
        part = F.binary_cross_entropy_with_logits(parallel(x), labels)
        for value, optimizer in zip((loss, part), optimizers, strict=True):
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        mean = part.detach() / size
        dist.all_reduce(mean)
        differences.append(abs(mean - loss).item())
        if rank == 0:
            print(f"step {step}: loss of the whole volumes {loss:.6f}, of the slabs {mean:.6f}")
    pairs = zip(whole.parameters(), slab.parameters(), strict=True)
    return max(*differences, *((p - q).abs().max().item() for p, q in pairs))


def main() -> None:
    """Train, and print how far the slabs are from the whole volumes."""
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    print(f"rank {rank} of {size}: differs from one process by {train(rank, size):.1e} at most")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
