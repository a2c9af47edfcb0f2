"""A small ResNet on several processes, whose batch norms share their statistics: as one process with the whole batch.

torchrun --nproc-per-node 2 examples/data_parallel.py
"""

import copy

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import normtriton as nt


class Block(nn.Module):
    """Two convolutions and what they were given."""

    def __init__(self, channels: int) -> None:
        """Make both."""
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.first_norm = nt.BatchNorm2d(channels, activation="relu")
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.second_norm = nt.BatchNorm2d(channels, activation="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of the same shape."""
        y = self.first_norm(self.first(x))
        return self.second_norm(self.second(y), skip=x)


def network() -> nn.Module:
    """Images of three channels to ten classes."""
    stem = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()
    return nn.Sequential(*stem, Block(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


def train(rank: int, size: int, steps: int = 3, images: int = 4, pixels: int = 4) -> float:
    """Train on so many images a process, and on all of them; the largest difference of a parameter or a statistic."""
    torch.manual_seed(0)
    alone = network()
    shared = DistributedDataParallel(nt.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(alone)))
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.1) for net in (alone, shared)]
    loss = nn.CrossEntropyLoss()
    for step in range(steps):
        x, labels = torch.randn(size, images, 3, pixels, pixels), torch.randint(10, (size, images))
        whole = loss(alone(x.flatten(0, 1)), labels.flatten())
        part = loss(shared(x[rank]), labels[rank])  # gradients are averaged by DistributedDataParallel
        for value, optimizer in zip((whole, part), optimizers, strict=True):
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        if rank == 0:
            print(f"step {step}: loss of the whole batch {whole.item():.4f}, of the first part {part.item():.4f}")
    ours, theirs = shared.module.state_dict(), alone.state_dict()
    return max((ours[key].double() - theirs[key]).abs().max().item() for key in theirs)


if __name__ == "__main__":
    dist.init_process_group("gloo")
    difference = train(dist.get_rank(), dist.get_world_size())
    print(f"rank {dist.get_rank()}: differs from one process by {difference:.1e} at most")
    dist.destroy_process_group()
