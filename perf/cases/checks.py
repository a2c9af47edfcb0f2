"""Calls that are checked against float64, forward and backward: which there are, and what is wrong with one.

On a GPU `normtriton.perf.commands.selfcheck` makes them, without one `normtriton.perf.commands.emulate`, on compiled
kernels. Nothing here knows where they run.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

import normtriton
from normtriton.runtime import clusters, compiling, devices

from ..swapped import swapped
from .branches import BRANCHES, CLUSTERED, CLUSTERS, DEVICE, LAYOUTS, REAL, SMALL, Branch, lay_out
from .oracle import Operands, Textbook, call, differences, expected, gradients, named, of_those_that, surrounded
from .shapes import FORMS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from torch import Tensor

    from normtriton.planning.plan import Device

    Results = dict[str, Tensor]


class Check(NamedTuple):
    """One call and its backward pass.

    Attributes:
        name: for people.
        branch: the norm, the shape and the layout.
        dtype: x's.
        device: what the call is planned for; None for the machine itself.
        parameters: dtype of weight, bias and running statistics.
        running: "updates" or "uses" running statistics, or "" without any.
        around: one of `FORMS`, or "".
    """

    name: str
    branch: Branch
    dtype: str
    device: Device | None
    parameters: str = "float32"
    running: str = ""
    around: str = ""

    def operands(self, where: torch.device) -> Operands:
        """Random tensors, always the same."""
        rng = torch.Generator(where).manual_seed(0)
        branch, dtype, own = self.branch, getattr(torch, self.dtype), getattr(torch, self.parameters)

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=rng, device=where)

        x, dy = (
            lay_out((scale * random(*branch.shape) + shift).to(dtype), branch.layout)
            for scale, shift in ((2, 3), (1, 0))
        )
        features = branch.features()
        weight, bias = random(*features).to(own), None if branch.norm == "rms" else random(*features).to(own)
        given = Operands(x, weight, bias, dy)
        if self.running:
            mean, variance = random(*features) + 3, random(*features).square() + 0.5
            given = given._replace(running=(mean.to(own), variance.to(own)))
        if self.around:
            names, rows = FORMS[self.around].tensors, branch.norm in ("layer", "rms", "adaptive")
            around = {name: lay_out(random(*branch.shape).to(dtype), branch.layout) for name in (*names, "dtotal")}
            dtotal = around.pop("dtotal")
            if "x_scale" in around:
                around["x_scale"] = random(*beside_channels(branch.shape, rows)).to(dtype)
            if "mask" in around:
                mask = random(*branch.shape if rows else (branch.shape[0], 1, *branch.shape[2:])) > -0.5
                mask[0] = False  # of a group none, or the first ones not
                around["mask"] = mask
            given = given._replace(around=around, dtotal=dtotal)
        return given

    def run(self, functions: Any, given: Operands) -> Tensor:
        """The norm, by `torch.nn.functional` or by what has its functions."""
        branch, training = self.branch, self.running != "uses"

        def norm(x: Tensor, weight: Tensor | None, **around: Any) -> Tensor:
            where = functions, branch.norm, branch.features(), branch.groups
            return call(*where, x, weight, given.bias, given.running, training=training, **around)

        if not self.around:
            return norm(given.x, given.weight)
        stages = FORMS[self.around].stages
        if functions is Textbook and "mask" in given.around:
            functions = of_those_that(given.around["mask"], branch.shape)
        if isinstance(functions, type):
            return surrounded(norm, given, getattr(torch, self.dtype), stages)  # type: ignore[no-any-return]  # or two
        settings = {name: value for name, value in stages._asdict().items() if name != "masked"}
        return norm(given.x, given.weight, **given.around, **settings)

    def results(self, given: Operands) -> Results:
        """All results of normtriton's, planned for the check's device."""
        with planned_for(self.device):
            y = self.run(normtriton, given)
            return named(y, gradients(y, given), given)

    def wanted(self, given: Operands) -> Results:
        """All results in float64."""
        return expected(partial(self.run, Textbook), given)


def beside_channels(shape: Sequence[int], rows: bool) -> tuple[int, ...]:
    """The shape of one number for each channel, which broadcasts; of ``rows`` they are the last dimension."""
    return (shape[-1],) if rows else (shape[1], *(1,) * (len(shape) - 2))


def wrong(runs: Sequence[Results], want: Mapping[str, Tensor], given: Operands) -> list[str]:
    """What is wrong with the results of one or more runs of a check: values of the first, bits of the others."""
    found = [str(difference) for difference in differences(runs[0], want, given)]
    return found + [
        f"{result} differs in its bits from one run to the next"
        for result in want
        if not all(same(runs[0][result], run[result]) for run in runs[1:])
    ]


def same(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors have the same values; one NaN is as good as another."""
    return torch.equal(first.nan_to_num(nan=12345.0), second.nan_to_num(nan=12345.0))


@contextmanager
def planned_for(device: Device | None) -> Iterator[None]:
    """Have calls planned for a device, whatever they run on."""
    before = clusters.mode()
    if device is None:
        yield
        return
    if device.clusters and compiling.INTERPRETED:
        clusters.set_mode("on")  # without a trial, which only a GPU can make
    try:
        with swapped((devices, "of", lambda _x: device)):
            yield
    finally:
        if clusters.mode() != before:
            clusters.set_mode(before)


def of_branches(with_clusters: bool, dtypes: Iterable[str] = ("float32",)) -> Iterator[Check]:
    """Every branch of the plan, in each dtype."""
    for dtype in dtypes:
        own = "float64" if dtype == "float64" else "float32"
        said = "" if dtype == "float32" else f" {dtype}"
        for name, branch in BRANCHES.items():
            yield Check(f"branch {name}{said}", branch, dtype, DEVICE, own)
        for name, branch in CLUSTERED.items() if with_clusters else ():
            yield Check(f"clusters {name}{said}", branch, dtype, CLUSTERS, own)


def of_layouts(dtypes: Sequence[str]) -> Iterator[Check]:
    """Every norm in each layout, and in each dtype."""
    for i, (name, branch) in enumerate(SMALL.items()):
        for j, layout in enumerate(LAYOUTS):
            dtype = dtypes[(i + j) % len(dtypes)]
            yield Check(f"layout {name} {layout} {dtype}", branch._replace(layout=layout), dtype, None)


def of_running(with_clusters: bool, dtypes: Iterable[str]) -> Iterator[Check]:
    """Every branch of batch and instance norm, with running statistics that are updated, and that are used."""
    for check in of_branches(with_clusters, dtypes):
        for mode in ("updates", "uses") if check.branch.norm in ("batch", "instance") else ():
            yield check._replace(name=f"{mode} running statistics, {check.name}", running=mode)


def of_stages(with_clusters: bool, dtypes: Iterable[str]) -> Iterator[Check]:
    """Every branch of the plan with something around it, each of `FORMS` in turn, among every second branch too."""
    names = tuple(name for name in FORMS if name != "modulated")  # tests/test_modulation.py has that
    for i, check in enumerate(of_branches(with_clusters, dtypes)):
        around = names[(i // 2 + i % 2 * 5) % len(names)]
        yield check._replace(name=f"{around} around {check.name}", around=around)
    given = [check for check in of_running(with_clusters, dtypes) if check.running == "uses"]
    for i, check in enumerate(given):
        around = names[i // 2 % len(names)]
        yield check._replace(name=f"{around} around what {check.name}", around=around)


def of_real_shapes(dtypes: Iterable[str]) -> Iterator[Check]:
    """Shapes near those of models, planned for the machine itself, with parameters of x's dtype."""
    for dtype in dtypes:
        for name, branch in REAL.items():
            yield Check(f"real {name} {dtype}", branch, dtype, None, dtype)


#: The kinds of checks, by name: each takes whether there are clusters, and dtypes.
KINDS: dict[str, Callable[[bool, Sequence[str]], Iterable[Check]]] = {
    "branches": of_branches,
    "layouts": lambda _clusters, dtypes: of_layouts(dtypes),
    "running": of_running,
    "stages": of_stages,
    "real": lambda _clusters, dtypes: of_real_shapes(dtypes),
}
