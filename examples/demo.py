"""Train a digit classifier with torch.nn's norms and again with normtriton's, and compare the two loss curves.

Both runs start from the same weights and see the same batches, in float32; nothing passes between them. Without a GPU
normtriton's kernels run in Triton's interpreter, which takes milliseconds a program: model and batch are small for it.
"""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest.mock import patch

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from tqdm import tqdm

# Both are read once: the first when the kernels are defined, the second when cuBLAS starts.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import normtriton
from normtriton.runtime import launch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

    from matplotlib.axes import Axes
    from torch import Tensor

    from normtriton.planning.schedule import Launch

BATCH = 12
TEST = 200  # of 1797 images
CHANNELS = (8, 16)
LEARNING_RATE = 0.05
MOMENTUM = 0.9

FIRST = 5  # steps before training has amplified rounding
FINAL = 5  # steps whose mean is the final loss, since one batch is noisy

#: Largest relative difference over the first steps: 17 roundings of a float32, which is 1.2e-7. Two right
#: implementations differ by up to 3e-7 there; doubling eps gives 4e-6 or more, an input gradient 0.1 % too large 2e-5.
FIRST_BOUND = 2e-6

#: Largest relative difference over all steps, in which training amplifies rounding.
CURVE_BOUND = 1e-3

#: One layer of each norm from `torch.nn` or `normtriton`, which share constructors, for (N, channels, size, size).
NORMS: dict[str, Callable[[ModuleType, int, int], nn.Module]] = {
    "batch": lambda library, channels, _size: library.BatchNorm2d(channels),
    "layer": lambda library, channels, size: library.LayerNorm([channels, size, size]),
    "instance": lambda library, channels, _size: library.InstanceNorm2d(channels, affine=True),
    "group": lambda library, channels, _size: library.GroupNorm(4, channels),
}

#: The library's modules subclass these, so that they find every norm of either library.
TORCH_NORMS = (nn.BatchNorm2d, nn.LayerNorm, nn.InstanceNorm2d, nn.GroupNorm)


class Data(NamedTuple):
    """Images (..., 1, 8, 8) in [0, 1] and their digits (...,), where ... is (steps, BATCH), in the test (TEST,)."""

    images: Tensor
    digits: Tensor
    test_images: Tensor
    test_digits: Tensor


class Run(NamedTuple):
    """What one training gave: the loss before each update (steps,), test accuracy, kernel launches of normtriton."""

    losses: Tensor
    accuracy: float
    launches: int

    @property
    def final_loss(self) -> float:
        """Mean of the last losses."""
        return self.losses[-FINAL:].mean().item()


class Comparison(NamedTuple):
    """The two trainings with one norm."""

    name: str
    theirs: Run
    ours: Run

    @property
    def difference(self) -> Tensor:
        """Difference between the losses relative to torch.nn's, for each step."""
        return (self.ours.losses - self.theirs.losses).abs() / self.theirs.losses.abs()

    @property
    def first(self) -> float:
        """Largest relative difference over the first steps."""
        return self.difference[:FIRST].max().item()

    @property
    def largest(self) -> float:
        """Largest relative difference over all steps."""
        return self.difference.max().item()


def load(steps: int, seed: int, device: torch.device) -> Data:
    """Load scikit-learn's digits, split them, always alike, and choose each step's images."""
    digits = load_digits()
    images = (digits.images[:, None] / 16.0).astype("float32")
    train_x, test_x, train_y, test_y = (
        torch.as_tensor(array, device=device)
        for array in train_test_split(images, digits.target, test_size=TEST, stratify=digits.target, random_state=0)
    )
    order = batches(len(train_x), steps, seed).to(device)
    return Data(train_x[order], train_y[order], test_x, test_y)


def batches(images: int, steps: int, seed: int) -> Tensor:
    """Indices of each step's images, (steps, BATCH); every image comes once before any comes again."""
    generator = torch.Generator().manual_seed(seed)
    epochs = -(-steps * BATCH // images)
    order = torch.cat([torch.randperm(images, generator=generator) for _ in range(epochs)])
    return order[: steps * BATCH].view(steps, BATCH)


def classifier(name: str, library: ModuleType) -> nn.Module:
    """Two convolutions, each with a norm of ``library``, and a linear layer; checked to hold no other norm.

    tanh, as it is smooth: where ReLU has its kink, a rounding difference could switch a gradient off.
    """
    norm, (first, second) = NORMS[name], CHANNELS
    model = nn.Sequential(
        nn.Conv2d(1, first, 5, padding=2, bias=False),
        norm(library, first, 8),
        nn.Tanh(),
        nn.Conv2d(first, second, 5, stride=2, padding=2, bias=False),
        norm(library, second, 4),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(second * 4 * 4, 10),
    )
    layers = [type(layer) for layer in model.modules() if isinstance(layer, TORCH_NORMS)]
    if len(layers) != len(CHANNELS) or not all(layer.__module__.startswith(library.__name__ + ".") for layer in layers):
        raise SystemExit(f"{name}: expected {len(CHANNELS)} norms of {library.__name__}, but the model has {layers}")
    return model


@contextmanager
def counted_launches() -> Iterator[list[str]]:
    """Collect the name of every kernel that normtriton launches."""
    names: list[str] = []
    run = launch._run  # the one place that every launch passes

    def counting(what: Launch, *args: Any) -> None:
        names.append(what.kernel)
        run(what, *args)

    with patch.object(launch, "_run", counting):
        yield names


def train(model: nn.Module, data: Data, bar: tqdm) -> Tensor:
    """Train on each step's images and return the loss before each update."""
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(data.images))
    losses = []
    for images, digits in zip(data.images, data.digits, strict=True):
        loss = nn.functional.cross_entropy(model(images), digits)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
        bar.update()
    return torch.stack(losses).double().cpu()


@torch.no_grad()
def evaluate(model: nn.Module, data: Data) -> float:
    """Fraction of the test images whose digit the model tells."""
    model.eval()
    right = model(data.test_images).argmax(1) == data.test_digits
    return float(right.double().mean())


def run_once(name: str, library: ModuleType, data: Data, seed: int, bar: tqdm) -> Run:
    """Train and test one model; the seed alone decides its first weights."""
    torch.manual_seed(seed)
    model = classifier(name, library).to(data.images.device)
    with counted_launches() as launches:
        bar.set_description(f"{name} norm, {library.__name__}")
        losses = train(model, data, bar)
        bar.set_description(f"{name} norm, {library.__name__}, test")
        accuracy = evaluate(model, data)
    return Run(losses, accuracy, len(launches))


def compare(data: Data, seed: int) -> list[Comparison]:
    """Train with each norm of each library."""
    results = []
    with tqdm(total=2 * len(NORMS) * len(data.images), unit="step", disable=None) as bar:
        for name in NORMS:
            theirs, ours = (run_once(name, library, data, seed, bar) for library in (nn, normtriton))
            results.append(Comparison(name, theirs, ours))
            if bar.disable:  # no terminal, so no bar
                print(f"{name} norm: trained with both", flush=True)
    return results


def table(results: list[Comparison]) -> str:
    """Lay the results out, a line for each norm."""
    steps = len(results[0].difference)
    shown = "{:<8}  {:>8}  {:>10}  {:>8}  {:>10}  {:>13}  {:>13}  {:>8}"
    each = "torch.nn", "normtriton"
    spans = f"first {FIRST} steps", f"all {steps} steps"
    lines = [
        shown.format("", "final", "loss", "test", "accuracy", "largest rel.", "difference of", "kernel"),
        shown.format("norm", *each, *each, *spans, "launches"),
    ]
    for result in results:
        theirs, ours = result.theirs, result.ours
        losses = f"{theirs.final_loss:.5f}", f"{ours.final_loss:.5f}"
        accuracies = f"{theirs.accuracy:.1%}", f"{ours.accuracy:.1%}"
        differences = f"{result.first:.1e}", f"{result.largest:.1e}"
        lines.append(shown.format(result.name, *losses, *accuracies, *differences, ours.launches))
    return "\n".join(lines)


def draw_losses(axes: Axes, result: Comparison) -> None:
    """Draw both loss curves, the second dashed upon the first, for they coincide."""
    axes.set_title(f"{result.name} norm")
    axes.plot(result.theirs.losses, color="#f2a65a", linewidth=4.0, label="torch.nn")
    axes.plot(result.ours.losses, color="#1f3b73", linewidth=1.2, linestyle="--", label="normtriton")
    axes.grid(alpha=0.3)


def draw_difference(axes: Axes, result: Comparison) -> None:
    """Draw the relative difference and its bounds; a step without a difference has no dot."""
    last = len(result.difference) - 1
    points = [(step, value) for step, value in enumerate(result.difference.tolist()) if value > 0.0]
    axes.semilogy([step for step, _ in points], [value for _, value in points], ".", color="#1f3b73", markersize=4)
    axes.hlines(FIRST_BOUND, 0, FIRST - 1, color="#b03030", linewidth=1.2)
    axes.hlines(CURVE_BOUND, 0, last, color="#b03030", linewidth=1.2)
    axes.text(last, CURVE_BOUND, "allowed", color="#b03030", ha="right", va="bottom")
    axes.set_ylim(1e-9, 1e-2)
    axes.set_xlabel("step (no dot: equal losses)")
    axes.grid(alpha=0.3)


def draw(results: list[Comparison], path: Path) -> None:
    """Save one panel of loss curves for each norm, and their differences below."""
    figure = Figure(figsize=(13.0, 5.5), layout="constrained")
    grid = figure.subplots(2, len(results), sharex=True, sharey="row", height_ratios=(3, 2))
    for column, result in enumerate(results):
        draw_losses(grid[0, column], result)
        draw_difference(grid[1, column], result)
    grid[0, 0].set_ylim(bottom=0.0)  # for all, once all are drawn
    grid[0, 0].set_ylabel("training loss")
    grid[1, 0].set_ylabel("relative difference")
    grid[0, 0].legend()
    figure.savefig(path, dpi=120)


def complaints(results: list[Comparison]) -> list[str]:
    """Name each norm whose curves differ by too much or did not come from normtriton's kernels; NaN is too much."""
    found = []
    for result in results:
        steps = len(result.difference)
        checks = (FIRST, result.first, FIRST_BOUND), (steps, result.largest, CURVE_BOUND)
        for span, value, bound in checks:
            if not value <= bound:
                found.append(
                    f"{result.name}: in the first {span} steps the losses differ by {value:.2e} relative, "
                    f"more than {bound:.0e}"
                )
        if result.theirs.launches:
            found.append(f"{result.name}: the torch.nn run launched {result.theirs.launches} kernels of normtriton")
        least = len(CHANNELS) * (2 * steps + 1)  # forward and backward of a step, and the test's forward
        if result.ours.launches < least:
            found.append(f"{result.name}: {result.ours.launches} kernel launches, expected at least {least}")
    return found


def step_count(text: str) -> int:
    """Parse a number of steps, at least those that have a bound of their own."""
    value = int(text)
    if value < FIRST:
        raise argparse.ArgumentTypeError(f"{value} is less than {FIRST}")
    return value


def main() -> None:
    """Run the comparison, print the table, save the picture, and fail if the curves differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--steps", type=step_count, default=40, help="updates of each training")
    parser.add_argument("--out", type=Path, default=Path("demo.png"), help="where to save the loss curves")
    parser.add_argument("--seed", type=int, default=0, help="decides the first weights and the order of the images")
    options = parser.parse_args()

    torch.use_deterministic_algorithms(mode=True)
    if torch.cuda.is_available():
        torch.backends.cudnn.allow_tf32 = False  # it would round the convolutions to 1e-3
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    where = torch.cuda.get_device_name() if device.type == "cuda" else "CPU, the kernels in Triton's interpreter"
    print(f"{options.steps} steps of {BATCH} images, {TEST} test images, on: {where}", flush=True)

    results = compare(load(options.steps, options.seed, device), options.seed)
    print(table(results))
    draw(results, options.out)
    print(f"loss curves: {options.out}")
    if found := complaints(results):
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
