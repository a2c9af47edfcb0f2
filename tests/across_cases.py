"""What each process of a world computes of its part, beside the whole tensor in float64."""

import copy
import os
import runpy
import time
import traceback
from contextlib import contextmanager, redirect_stdout
from datetime import timedelta
from functools import partial
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from oracle import EPS32, close, reference
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.utils.checkpoint import checkpoint

import normtriton as nt
from normtriton.autograd import across
from normtriton.runtime import processes

#: Sizes of the parts of a dimension, by the number of processes: uneven, some empty, the first too.
UNEVEN = {2: (0.3, 0.7), 3: (0.0, 0.6, 0.4), 4: (0.5, 0.0, 0.2, 0.3)}


class Case(NamedTuple):
    """A norm whose groups extend over processes.

    Attributes:
        function: ours, of (x, weight, bias) and by keyword.
        oracle: keyword arguments of `oracle.reference`.
        shape: of the whole tensor.
        dim: the dimension that is spread over the processes.
        parameters: the shape of weight and bias; () for none.
        split: the dimension of the parameters that is spread with it, or None.
        flat: two dimensions that are one to the function: (first, last) of the tensor, and of the parameters.
        dtype, affine: of x and of the parameters.
        layout: memory format.
        mean: of x.
        running: whether there are running statistics.
        bias: whether there is one.
    """

    function: Any
    oracle: dict
    shape: tuple
    dim: int
    parameters: tuple = ()
    split: int | None = None
    flat: bool = False
    dtype: torch.dtype = torch.float32
    affine: torch.dtype = torch.float32
    layout: torch.memory_format = torch.contiguous_format
    mean: float = 1.0
    running: bool = False
    bias: bool = True


def by_words(axes, **given):
    """`normalize` in these words."""
    return lambda x, weight, bias, **more: nt.normalize(x, axes, **given, weight=weight, bias=bias, **more)


def batch(x, weight, bias, running=(None, None), **more):
    return nt.batch_norm(x, *running, weight, bias, True, 0.3, **more)


def instance(x, weight, bias, running=(None, None), **more):
    return nt.instance_norm(x, *running, weight, bias, True, 0.3, **more)


def group(x, weight, bias, **more):
    return nt.group_norm(x, 2, weight, bias, **more)


def layer(x, weight, bias, **more):
    return nt.layer_norm(x, (x.shape[-1],), weight, bias, **more)


def rms(x, weight, _bias, **more):
    return nt.rms_norm(x, (x.shape[-1],), weight, 1e-5, **more)


LAST = torch.channels_last
BATCH = {"dims": (0, 2, 3), "spread": (1, -1, 1, 1)}
SPACE = {"dims": (2, 3), "spread": (1, -1, 1, 1)}
GROUP = {"dims": (2, 3, 4), "spread": (1, 4, 1, 1), "split": (2, 2, 2, 6, 3)}
ROWS = {"dims": (-1,), "spread": (-1,)}
RMS = {"dims": (-1,), "spread": (-1,), "centered": False}
CASES = {
    "batch": Case(batch, BATCH, (6, 4, 3, 2), 0, (4,), running=True),
    "batch-last": Case(batch, BATCH, (6, 8, 3, 3), 0, (8,), layout=LAST, dtype=torch.bfloat16, running=True),
    "batch-rows": Case(batch, BATCH, (2, 3, 6, 5), 2, (3,), affine=torch.float64, running=True),
    "batch-double": Case(batch, BATCH, (6, 3, 2, 2), 0, (3,), dtype=torch.float64, affine=torch.float64, mean=1e6),
    "batch-mean": Case(batch, BATCH, (6, 3, 4, 4), 0, (3,), mean=1e4, running=True),
    "batch-plain": Case(batch, BATCH, (6, 3, 2, 2), 0),
    "instance": Case(instance, SPACE, (2, 3, 6, 4), 2, (3,), running=True),
    "instance-last": Case(instance, SPACE, (2, 8, 6, 4), 3, (8,), layout=LAST, running=True),
    "group": Case(group, GROUP, (2, 4, 6, 3), 2, (4,)),
    "group-last": Case(group, GROUP, (2, 4, 6, 3), 2, (4,), layout=LAST, dtype=torch.float16),
    "group-channels": Case(
        group,
        {"dims": (2, 3), "spread": (1, 2, 6, 1), "split": (2, 2, 6, 5)},
        (2, 2, 6, 5),
        2,
        (2, 6),
        split=1,
        flat=True,
    ),
    "layer": Case(layer, ROWS, (3, 4, 10), 2, (10,), split=0),
    "layer-half": Case(layer, ROWS, (5, 24), 1, (24,), split=0, dtype=torch.bfloat16),
    "rms": Case(rms, RMS, (3, 4, 10), 2, (10,), split=0, bias=False),
    "rms-half": Case(rms, RMS, (5, 24), 1, (24,), split=0, bias=False, dtype=torch.float16, affine=torch.float16),
    "channels": Case(
        by_words("n c h w", over="c", affine="c"),
        {"dims": (1,), "spread": (1, -1, 1, 1)},
        (2, 10, 3, 2),
        1,
        (10,),
        split=0,
    ),
    "adaptive": Case(
        by_words("b t d", over="d", affine="b d"),
        {"dims": (2,), "spread": (2, 1, -1)},
        (2, 3, 10),
        2,
        (2, 10),
        split=1,
    ),
    "everything": Case(by_words("n c d", over="n c d"), {"dims": (0, 1, 2), "spread": ()}, (6, 3, 4), 0),
}


def cuts(length, size):
    """Where the parts of a dimension begin and end."""
    bounds = [round(length * sum(UNEVEN[size][:i])) for i in range(size + 1)]
    return [slice(*ends) for ends in pairwise(bounds)]


def part(t, dim, rank, size):
    """A process's part of a dimension."""
    index = [slice(None)] * t.dim()
    index[dim] = cuts(t.shape[dim], size)[rank]
    return t[tuple(index)]


def digest(*tensors):
    """The bits of tensors."""
    every = (t.detach().reshape(-1).view(torch.uint8).numpy().tobytes() for t in tensors)
    return sha256(b"".join(every)).hexdigest()


def check(case, rank, size):
    """Compare this process's part of a case with the whole; the bits that all processes must share."""
    generator = torch.Generator().manual_seed(len(case.shape) + case.dim)
    made = partial(torch.randn, generator=generator, dtype=torch.float64)
    x, dy = (made(case.shape).add_(case.mean).to(case.dtype), made(case.shape).to(case.dtype))
    weight = bias = None
    if case.parameters:
        weight = made(case.parameters).to(case.affine)
        bias = made(case.parameters).to(case.affine) if case.bias else None
    want = reference(x, weight, bias, dy, **case.oracle)

    def own(t, dim):
        t = t if dim is None else part(t, dim, rank, size)
        return t.flatten(dim - 1, dim) if case.flat and dim is not None else t

    mine = own(x, case.dim).clone(memory_format=case.layout).requires_grad_()
    given = [None if p is None else own(p, case.split).clone().requires_grad_() for p in (weight, bias)]
    running = [torch.zeros(case.parameters), torch.ones(case.parameters)] if case.running else None
    more = {"running": running} if running else {}
    y = case.function(mine, *given, process_group=dist.group.WORLD, **more)
    _x, _weight, *statistics = y.grad_fn.saved_tensors
    there = [t for t in (mine, *given) if t is not None]
    dx, *rest = torch.autograd.grad(y, there, own(dy, case.dim).clone(memory_format=case.layout))
    rest = [*rest, None, None][:2]
    assert y.dtype == dx.dtype == case.dtype and y.shape == mine.shape
    if mine.numel():
        assert y.is_contiguous(memory_format=case.layout) and dx.is_contiguous(memory_format=case.layout)

    unit = 2.0**-53 if case.dtype == torch.float64 else EPS32
    slack = 4 + 4 * want.hardness
    compare = partial(close, unit=unit, slack=slack)
    compare(y, own(want.y, case.dim), scale=want.y.abs().max().item())
    compare(dx, own(want.dx, case.dim), scale=want.dx.abs().max().item())
    for got, expected in zip(rest, (want.dweight, want.dbias), strict=True):
        if got is None:
            continue
        assert got.dtype == case.affine
        if case.split is None:  # one of the summands
            total = got.double()
            dist.all_reduce(total)
            lost = torch.finfo(got.dtype).eps * expected.abs().max().item()
            close(total, expected, unit=unit, slack=slack + 8 + lost / unit / expected.abs().max().item())
        else:
            compare(got, own(expected, case.split), scale=expected.abs().max().item())
    if running:
        variance, mean = torch.var_mean(x.double(), case.oracle["dims"])
        for got, value, begin in zip(running, (mean, variance), (0.0, 1.0), strict=True):
            new = value.mean(0) if value.dim() > 1 else value
            close(got, 0.7 * begin + 0.3 * new, slack=slack)
    return digest(*(t for t in (*statistics, *(running or ())) if t is not None))


def twice(rank, size):
    """Two uses of one norm in a step, of which the second sees what the first made."""
    generator = torch.Generator().manual_seed(5)
    x, dy = (torch.randn(6, 3, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    weight = torch.randn(3, generator=generator, dtype=torch.float64)
    found = []
    for whole in (True, False):
        mine, dmine = (t if whole else part(t, 0, rank, size) for t in (x, dy))
        mine, w = mine.clone().requires_grad_(), weight.clone().requires_grad_()
        norm, options = (F.batch_norm, {}) if whole else (nt.batch_norm, {"process_group": dist.group.WORLD})
        statistics = [torch.zeros(3).double(), torch.ones(3).double()]
        y = mine
        for _ in range(2):
            y = torch.tanh(norm(y, *statistics, w, None, True, **options))
        dx, dw = torch.autograd.grad(y, (mine, w), dmine)
        if whole:
            dx = part(dx, 0, rank, size)
        else:
            dist.all_reduce(dw)
        found.append((dx, dw, *statistics))
    for got, want in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)
    return digest(*found[1][2:])


def derivatives(rank, size):
    """A gradient of a gradient, of x, weight, bias and dy."""
    generator = torch.Generator().manual_seed(6)
    x, dy, v = (torch.randn(6, 3, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    weight, bias = (torch.randn(3, generator=generator, dtype=torch.float64) for _ in range(2))
    found = []
    for whole in (True, False):
        spread = [t if whole else part(t, 0, rank, size) for t in (x, dy, v)]
        mine, dmine, vmine = (t.clone().requires_grad_() for t in spread)
        w, b = weight.clone().requires_grad_(), bias.clone().requires_grad_()
        norm, options = (F.batch_norm, {}) if whole else (nt.batch_norm, {"process_group": dist.group.WORLD})
        y = norm(mine, None, None, w, b, True, **options)
        dx, dw = torch.autograd.grad(y, (mine, w), dmine, create_graph=True)
        total = dw if whole else processes.summed(processes.processes("", dist.group.WORLD), dw)
        # every process has all of the second summand, whose gradients are added up
        gradients = torch.autograd.grad(
            (dx * vmine).sum() + total.square().sum() / (1 if whole else size), (mine, dmine, w)
        )
        gradients = [*gradients]
        if whole:
            gradients[:2] = (part(t, 0, rank, size) for t in gradients[:2])
        else:
            dist.all_reduce(gradients[2])
        found.append(gradients)
    for got, want in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    return ""


def alike(found, **tolerances):
    """Whether what was found of the own part is what the whole gives."""
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, equal_nan=True, **(tolerances or {"rtol": 1e-10, "atol": 1e-10}))


def surrounded(rank, size):
    """What stands around a norm, with every gradient; of batch norm, and of RMS norm whose weight is split."""
    generator = torch.Generator().manual_seed(7)
    made = partial(torch.randn, generator=generator, dtype=torch.float64)
    for name in ("batch", "rms"):
        shape, dim = ((6, 4, 3), 0) if name == "batch" else ((3, 4, 10), 2)
        full = {key: made(shape) for key in ("x", "residual", "skip", "gate")}
        own = {"weight": made(shape[1] if dim == 0 else shape[2])}
        masks = {}
        if dim == 0:
            own |= {"scale": made(1, 4, 1), "shift": made(4)}  # as they broadcast, and as the weight
            full["x"][0, 0] = torch.nan
            masks["mask"] = torch.ones(shape[0], 1, 1, dtype=torch.bool)
            masks["mask"][0] = False  # all of a small part
        dy, du = made(shape), made(shape)
        found = []
        for whole in (True, False):
            given = {key: t if whole else part(t, dim, rank, size) for key, t in full.items()}
            given |= {key: t if whole or dim == 0 else part(t, 0, rank, size) for key, t in own.items()}
            given = {key: t.clone().requires_grad_() for key, t in given.items()}
            more = {} if whole else {"process_group": dist.group.WORLD}
            words = {"over": "n s", "affine": "c"} if dim == 0 else {"over": "s", "affine": "s", "center": False}
            more |= {key: t if whole else part(t, dim, rank, size) for key, t in masks.items()}
            more |= {"activation": "silu", "offset": 1.0, "round_first": dim == 2, "gate_first": dim == 2}
            y, u = nt.normalize(given.pop("x"), "n c s", **words, **given, **more)
            there = [u, *given.values()][1:]
            dys = [t if whole else part(t, dim, rank, size) for t in (dy, du)]
            gradients = dict(zip(given, torch.autograd.grad((y, u), there, dys), strict=True))
            for key, t in gradients.items():
                if whole and (key in full or dim == 2):
                    gradients[key] = part(t, dim if key in full else 0, rank, size)
                elif not whole and key in own and dim == 0:
                    dist.all_reduce(t)
            found.append([*(part(t, dim, rank, size) if whole else t for t in (y, u)), *gradients.values()])
        alike(found)
    return ""


def network(rank, size):
    """Convolutions with `SyncBatchNorm` between them, in channels_last: a step, statistics, and evaluation."""
    torch.manual_seed(8)
    plain = nn.Sequential(
        nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4, momentum=None)
    ).double()
    synced = nt.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(plain))
    x, dy = (torch.randn(6, *shape).double() for shape in ((2, 5, 5), (4, 3, 3)))
    found = []
    for whole, net in ((True, plain), (False, synced)):
        mine, dmine = (t if whole else part(t, 0, rank, size) for t in (x, dy))
        y = net(mine.contiguous(memory_format=LAST))
        y.backward(dmine)
        gradients = [p.grad for p in net.parameters()]
        if not whole:
            for t in gradients:
                dist.all_reduce(t)
        with counted() as sent:
            after = net.eval()(mine)
        assert not sent
        found.append([part(t, 0, rank, size) if whole else t for t in (y, after)] + gradients + [*net.buffers()])
    alike(found)
    return digest(*synced.buffers())


@contextmanager
def counted():
    """The bytes that this process receives in each collective within."""
    sent, gather = [], processes._gather

    def counting(heard, told, **options):
        sent.append((heard.numel() - told.numel()) * told.itemsize)
        return gather(heard, told, **options)

    with patch.object(processes, "_gather", counting):
        yield sent


def collectives(_rank, size):
    """One forward and one backward, of as many bytes as `explain` says; none where no gradient asks for one."""
    x, weight, group = torch.randn(3, 4, 2), torch.randn(4).requires_grad_(), dist.group.WORLD
    for more, planes in (({}, (4, 2)), ({"center": False}, (2, 1))):
        call = partial(nt.normalize, axes="n c s", over="n s", affine="c", weight=weight, process_group=group, **more)
        with counted() as sent:
            y = call(x.clone().requires_grad_())
            y.backward(torch.ones_like(y))
        said = nt.explain(nt.normalize, x, **call.keywords)
        assert sent == [n * 4 * 4 * (size - 1) for n in planes] == [said.forward.wire, said.backward.wire]
        assert said.processes == size and f"{planes[0] * 16} bytes from each of {size - 1} other" in str(said)
        with counted() as sent:
            y = call(x)
            y.backward(torch.ones_like(y))
            with torch.no_grad():
                call(x)
        assert len(sent) == 2  # forward each
    with counted() as sent:
        nt.batch_norm(x, torch.zeros(4), torch.ones(4), process_group=group)
        nt.instance_norm(x, torch.zeros(4), torch.ones(4), use_input_stats=False, process_group=group)
        nothing = x[:0].clone().requires_grad_()  # no group at all
        nt.layer_norm(nothing, (2,), weight[:2], process_group=group).sum().backward()
        assert nothing.grad.shape == (0, 4, 2)
    assert not sent
    return ""


def watched(_rank, _size):
    """Under a checkpoint, which computes again, and under autocast."""
    x, group = torch.randn(4, 6), dist.group.WORLD
    norm = partial(nt.layer_norm, normalized_shape=(6,), process_group=group)
    found = []
    module = nt.LayerNorm(6, process_group=group)

    def in_two(x):
        return module.start(x).finish()

    for run in (norm, *(partial(checkpoint, each, use_reentrant=False) for each in (norm, in_two))):
        mine = x.clone().requires_grad_()
        y = run(mine)
        found.append((y, *torch.autograd.grad(y, mine, x.cos())))
    for other in found[1:]:
        alike((found[0], other), rtol=0, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        low = x.bfloat16()
        assert norm(low).dtype == F.layer_norm(low, (6,)).dtype
    return ""


def groups_of_processes(rank, size):
    """A mesh, a group of one, a group that this process is not in."""
    x = torch.randn(3, 4, 2)
    mesh = init_device_mesh("cpu", (size,))
    whole = nt.batch_norm(x, None, None, training=True, process_group=dist.group.WORLD)
    assert torch.equal(whole, nt.batch_norm(x, None, None, training=True, process_group=mesh))
    for module, function in (
        (nt.GroupNorm(2, 4, process_group=mesh), partial(nt.group_norm, num_groups=2)),
        (nt.RMSNorm(2, process_group=mesh), partial(nt.rms_norm, normalized_shape=(2,))),
        (nt.LayerNorm(4, dim=1, process_group=mesh), partial(nt.layer_norm, normalized_shape=(4,), dim=1)),
        (nt.InstanceNorm1d(4, process_group=mesh), nt.instance_norm),
    ):
        assert torch.equal(module(x), function(x, process_group=mesh))
    alone = [dist.new_group([r]) for r in range(size)]
    with counted() as sent:
        y = nt.batch_norm(x, None, None, training=True, process_group=alone[rank])
    assert not sent and torch.equal(y, nt.batch_norm(x, None, None, training=True))
    for group, error, said in (
        (alone[rank - 1], ValueError, "this process is not in process_group"),
        (init_device_mesh("cpu", (1, size)), ValueError, "a mesh of one dimension, not of 2"),
        ("all", TypeError, "a ProcessGroup or a DeviceMesh, not str"),
    ):
        with pytest.raises(error, match=said):
            nt.group_norm(x, 2, process_group=group)
    return ""


def nobody(_rank, _size):
    """No process has an element: statistics stay as they are."""
    x, running = torch.randn(0, 4, 2).requires_grad_(), [torch.zeros(4), torch.ones(4)]
    weight = torch.ones(4).requires_grad_()
    y = nt.batch_norm(x, *running, weight, training=True, process_group=dist.group.WORLD)
    dx, dweight = torch.autograd.grad(y, (x, weight), torch.zeros_like(y))
    assert y.shape == dx.shape == x.shape and not dweight.any()
    assert not running[0].any() and running[1].eq(1).all()
    return digest(*running)


def dtensors(_rank, size):
    """Sharded along what statistics are taken over, parameters sharded or not: a few numbers are told, no x."""
    line = init_device_mesh("cpu", (size,))
    cases = [
        (nt.layer_norm, ((10,),), (3, 4, 10), 10, line, [Shard(2)], [Replicate()]),
        (nt.layer_norm, ((10,),), (3, 4, 10), 10, line, [Shard(2)], [Shard(0)]),
        (partial(nt.layer_norm, dim=1), ((5,),), (3, 5, 4), 5, line, [Shard(1)], [Replicate()]),
        (nt.group_norm, (2,), (3, 4, 5), 4, line, [Shard(2)], [Replicate()]),
        (nt.instance_norm, (None, None), (3, 4, 5), 4, line, [Shard(2)], [Replicate()]),
        (
            partial(nt.batch_norm, training=True),
            (torch.zeros(4), torch.ones(4)),
            (5, 4, 3),
            4,
            line,
            [Shard(0)],
            [Replicate()],
        ),
        (partial(nt.layer_norm, activation="silu"), ((10,),), (3, 10), 10, line, [Shard(1)], [Shard(0)]),
    ]
    if size == 4:  # data and tensor parallel
        square, both = init_device_mesh("cpu", (2, 2)), [Shard(0), Shard(1)]
        cases.append((nt.layer_norm, ((10,),), (3, 10), 10, square, both, [Replicate(), Shard(0)]))
        cases.append((nt.layer_norm, ((10,),), (3, 10), 10, square, both, [Replicate(), Replicate()]))
    generator = torch.Generator().manual_seed(9)
    made = partial(torch.randn, generator=generator)
    for function, arguments, shape, channels, mesh, placements, own in cases:
        x, dy, weight, bias = made(shape), made(shape), made(channels), made(channels)
        found = []
        for whole in (True, False):

            def put(t, placements, mesh=mesh, whole=whole):
                return t.clone() if whole else distribute_tensor(t, mesh, placements)

            rest = [put(t, [Replicate()] * mesh.ndim) if isinstance(t, torch.Tensor) else t for t in arguments]
            given = [put(x, placements), *(put(p, own) for p in (weight, bias))]
            given = [t.requires_grad_() for t in given]
            with counted() as sent:
                y = function(given[0], *rest, *given[1:])
                gradients = torch.autograd.grad(y, given, put(dy, placements))
            assert whole or (len(sent) == 2 and y.placements == gradients[0].placements == tuple(placements))
            if not whole and own == [Shard(0)]:  # a split parameter has its own part's gradient, complete
                assert {g.placements for g in gradients[1:]} == {(Shard(0),)}
            results = [y, *gradients, *(t for t in rest if isinstance(t, torch.Tensor))]
            found.append([t.full_tensor() if isinstance(t, DTensor) else t for t in results])
        alike(found, rtol=1e-4, atol=1e-5)
    return ""


def compiled(rank, size):
    """One graph of a network, a gate and a split RMS norm: its results are those of a call by itself."""
    torch.manual_seed(10)
    plain = nn.Sequential(nn.Conv2d(2, 4, 1), nt.SyncBatchNorm(4, activation="relu"), nn.Flatten(2))
    x, gate = (torch.randn(size, 3, *shape)[rank] for shape in ((2, 3, 2), (4, 6)))
    found = []
    for net in (plain, copy.deepcopy(plain)):

        def run(x, gate, net=net):
            y = net(x)
            y = nt.instance_norm(y, gate=gate, process_group=dist.group.WORLD)
            return nt.rms_norm(y, (6,), gate[0, 0], process_group=dist.group.WORLD)

        way = run if net is plain else torch.compile(run, backend="aot_eager", fullgraph=True)
        with counted() as sent:
            y = way(x, gate)
            y.backward(y.detach().cos())
        assert len(sent) == 6
        found.append([y, *(p.grad for p in net.parameters()), *net.buffers()])
    alike(found, rtol=1e-5, atol=1e-5)

    norm = nt.SyncBatchNorm(2)

    def in_two(x):
        return norm.start(x).finish()

    with pytest.raises(NotImplementedError, match="compilers"):
        torch.compile(in_two, backend="aot_eager")(x)
    apart = torch.compiler.disable(in_two)
    with torch.no_grad():
        y = torch.compile(lambda x: apart(2.0 * x).sin(), backend="aot_eager")(x)
    assert torch.equal(y, norm(2.0 * x).sin())
    return ""


def masked(rank, size):
    """Running statistics of what a mask lets through, of which one process has nothing."""
    generator = torch.Generator().manual_seed(11)
    x = torch.randn(6, 3, 4, generator=generator, dtype=torch.float64)
    mask = torch.rand(6, 1, 4, generator=generator) > 0.4
    mask[cuts(6, size)[-1]] = False
    found = []
    for whole in (True, False):
        given = [t if whole else part(t, 0, rank, size) for t in (x, mask)]
        running = [torch.zeros(3).double(), torch.ones(3).double()]
        more = {} if whole else {"process_group": dist.group.WORLD}
        y = nt.batch_norm(given[0], *running, training=True, mask=given[1], **more)
        found.append([part(y, 0, rank, size) if whole else y, *running])
    alike(found)
    return digest(*found[1][1:])


#: Modules by their channels, the whole input, which dimension of it is spread, and the tensors that surround a call.
STARTED = {
    "batch": (partial(nt.SyncBatchNorm, activation="relu"), (6, 4, 3, 2), 0, ("residual", "skip")),
    "batch-averages": (partial(nt.SyncBatchNorm, momentum=None), (6, 4, 3), 0, ()),
    "instance": (partial(nt.InstanceNorm1d, affine=True, track_running_stats=True), (4, 6), 1, ("gate",)),
    "group": (partial(nt.GroupNorm, 2), (2, 4, 6), 2, ("scale", "shift")),
    "layer": (partial(nt.LayerNorm, dim=1), (2, 10, 3), 1, ()),
    "rms": (
        partial(nt.RMSNorm, offset=1.0, round_first=True, gate_first=True, activation="silu"),
        (3, 10),
        1,
        ("residual", "gate", "x_scale"),
    ),
}


def started(rank, size):
    """Calls that are started, two at once, beside calls in one piece: the same bits of all that comes out."""
    for kind, shape, dim, names in STARTED.values():
        made = partial(torch.randn, generator=torch.Generator().manual_seed(12))
        whole = [{name: made(4) if name in ("scale", "shift") else made(shape) for name in ("x", *names)} for _ in "ab"]
        parts = [{k: part(t, dim, rank, size) if t.dim() > 1 else t for k, t in each.items()} for each in whole]
        channels = parts[0]["x"].shape[dim] if 10 in shape else 4
        found = []
        for at_once in (False, True):
            module = kind(channels, process_group=dist.group.WORLD)
            given = [{name: t.clone().requires_grad_() for name, t in each.items()} for each in parts]
            calls = [(each["x"], {name: each[name] for name in names}) for each in given]
            if at_once:
                begun = [module.start(x, **around) for x, around in calls]
                results = [call.finish() for call in begun]
            else:
                results = [module(x, **around) for x, around in calls]
            results = [t for y in results for t in (y if isinstance(y, tuple) else (y,))]
            leaves = [*(t for each in given for t in each.values()), *module.parameters()]
            gradients = torch.autograd.grad(results, leaves, [t.detach().cos() for t in results])
            found.append([*results, *gradients, *module.buffers()])
        alike(found, rtol=0, atol=0)
    return ""


@contextmanager
def recorded():
    """The order in which calls tell, and hear, by the numbers of their groups."""
    order, gather, hear = [], processes._gather, processes.Processes._hear

    def telling(heard, told, **options):
        order.append(("tell", told.numel() // 4))
        return gather(heard, told, **options)

    def hearing(self, work, heard, *rest):
        order.append(("hear", heard[0].numel() // 4))
        return hear(self, work, heard, *rest)

    with patch.object(processes, "_gather", telling), patch.object(processes.Processes, "_hear", hearing):
        yield order


def in_flight(rank, size):
    """What two calls tell is on its way when the first is heard; finished in reverse, with the results of one piece.

    The last process starts when the others say that they have, which they would not if they waited for it.
    """
    few, many = nt.SyncBatchNorm(4), nt.SyncBatchNorm(6)
    a, b = torch.randn(3, 4, 2), torch.randn(3, 6, 2)
    for _ in range(2):  # then all know that these calls follow each other
        want = [few(a), many(b)]
    store = dist.distributed_c10d._get_default_store()
    if rank == size - 1:
        store.wait([f"{other} started" for other in range(size - 1)])
    with recorded() as order:
        first, second = few.start(a), many.start(b)
        store.set(f"{rank} started", "")
        assert order == [("tell", 4), ("tell", 6)]
        found = second.finish(), first.finish()
    assert order[2:] == [("hear", 6), ("hear", 4)]
    alike((found[::-1], want), rtol=0, atol=0)
    return ""


def begun(rank, size):
    """What becomes of a call between its start and its finish: left, finished twice, changed, switched, refused."""
    x, residual = torch.randn(3, 4, 2), torch.randn(3, 4, 2)
    norm = nt.SyncBatchNorm(4)
    kept = digest(*norm.buffers())
    left = norm.start(x, residual=residual)
    assert digest(*norm.buffers()) == kept
    y, _u = norm.start(x, residual=residual).finish()
    del left
    assert norm.num_batches_tracked == 1 and torch.equal(y, nt.SyncBatchNorm(4)(x + residual))

    call = norm.start(x)
    call.finish()
    with pytest.raises(RuntimeError, match="SyncBatchNorm: a started call is finished once, and this one is already"):
        call.finish()
    words = r"modified by an inplace operation: \[torch.FloatTensor \[3, 4, 2\]\] is at version 1; expected version 0"
    for changed, around in ((x.clone(), {}), (residual.clone(), {"residual": residual})):
        given = {"residual": changed} if around else {}
        call = norm.start(x if around else changed, **given)
        changed.add_(1.0)
        with pytest.raises(RuntimeError, match=words):
            call.finish()
    call = norm.start(x)
    with pytest.raises(RuntimeError, match="a call was started in training"):
        norm.eval(), call.finish()
    call = norm.start(x)
    with torch.no_grad():
        norm.weight.mul_(2.0)
    with pytest.raises(RuntimeError, match=r"inplace operation: \[torch.FloatTensor \[4\]\]"):
        call.finish()

    with counted() as sent:  # evaluation, no group, and one process alone
        alone = [dist.new_group([r]) for r in range(size)][rank]
        for module in (norm, nt.InstanceNorm1d(4, affine=True), nt.LayerNorm(2), nt.LayerNorm(4, dim=1)):
            assert torch.equal(module.start(x).finish(), module(x))
        for kind in (partial(nt.BatchNorm1d, 4, momentum=None), partial(nt.RMSNorm, 2)):
            module, other = (kind(process_group=alone) for _ in "ab")
            kept = digest(*module.buffers())
            call = module.start(x)
            assert digest(*module.buffers()) == kept
            alike(([call.finish(), *module.buffers()], [other(x), *other.buffers()]), rtol=0, atol=0)
    assert not sent

    norm.train()
    mask = torch.ones(3, 1, 2, dtype=torch.bool)
    with pytest.raises(NotImplementedError, match="a call with a mask has three collectives, and is not started"):
        norm.start(x, mask=mask)
    with pytest.raises(NotImplementedError, match="process_group= takes plain tensors"):
        torch.vmap(lambda t: norm.start(t).finish())(torch.randn(2, *x.shape))
    with pytest.raises(TypeError, match="unexpected keyword argument 'nothing'"):
        norm.start(x, nothing=x)
    handle = norm.register_forward_hook(lambda *_: None)
    with pytest.raises(NotImplementedError, match=r"SyncBatchNorm.start\(\): the module has hooks"):
        norm.start(x)
    handle.remove()

    rms, low = nt.RMSNorm(2, process_group=dist.group.WORLD), x.bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        want, call = rms(low), rms.start(low)
    with torch.no_grad():
        y = call.finish()
    assert y.requires_grad and y.dtype == want.dtype and torch.equal(y, want)
    return ""


EXTRA = {
    "started": started,
    "begun": begun,
    "masked": masked,
    "compiled": compiled,
    "dtensors": dtensors,
    "twice": twice,
    "derivatives": derivatives,
    "surrounded": surrounded,
    "network": network,
    "collectives": collectives,
    "watched": watched,
    "groups": groups_of_processes,
    "nobody": nobody,
}


#: The numbers of processes that slow ones are run with, where not with all.
SOME = {"compiled": (2,), "dtensors": (4,)}


def everything(rank, size):
    """What went wrong of every case, "" for nothing, and the bits that all processes share; by either route."""
    found = {}
    for route in ("kernels", "pytorch"):
        todo = {name: partial(check, case) for name, case in CASES.items()}
        todo |= {name: run for name, run in EXTRA.items() if size in SOME.get(name, (size,))}
        with patch.object(across, "has_kernels", across.has_kernels if route == "kernels" else lambda _: False):
            found |= {(route, name): outcome(run, rank, size) for name, run in todo.items()}
    return found


def outcome(run, rank, size):
    """What went wrong, and the bits of a case."""
    try:
        return "", run(rank, size)
    except Exception:  # noqa: BLE001  it is told to the test
        return traceback.format_exc(), ""


def attempt(*args, process_group=None, **kwargs):
    """What a call raises, in words; "" if nothing."""
    try:
        nt.batch_norm(*args, **kwargs, process_group=process_group or dist.group.WORLD)
    except RuntimeError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def unlike(rank, _size):
    """The first process calls with another shape or dtype, new to it or not; a call that agrees comes after each."""
    few, many = torch.randn(3, 4, 2), torch.randn(3, 6, 2)
    odd = rank == 0
    said = [attempt(few if odd else many, None, None, training=True)]
    said.append(attempt(few, None, None, training=True))
    said.append(attempt(few.double() if odd else few, None, None, training=True))
    said.append(attempt(few, None, None, training=True))
    said.append(attempt(few if odd else many, None, None, training=True))  # new to the others alone
    return said


def known(rank, _size):
    """Processes call with what all of them know, each with something else."""
    few, many = torch.randn(3, 4, 2), torch.randn(3, 6, 2)
    said = [attempt(t, None, None, training=True) for t in (few, many)]
    return [*said, attempt(few if rank == 0 else many, None, None, training=True)]


def dying(rank, size, new):
    """One process dies between two calls; how long the others wait, for what, and the statistics that they leave.

    Of a group with a timeout of its own.
    """
    group = dist.new_group([*range(size)], timeout=timedelta(seconds=3))
    running = [torch.zeros(4), torch.ones(4)]
    few = torch.randn(3, 4, 2)
    said = attempt(few, *running, training=True, process_group=group)
    if rank == 1:
        os._exit(1)
    before, start = digest(*running), time.monotonic()
    error = attempt(few.double() if new else few, *running, training=True, process_group=group)
    return said, error, time.monotonic() - start, before == digest(*running)


def parting(rank, size, dies):
    """One process dies, or starts another call, before the others finish theirs, which they know.

    Whether it was start or finish that raised, what, and whether running statistics are as they were.
    """
    group = dist.new_group([*range(size)], timeout=timedelta(seconds=3))
    few, many = (nt.SyncBatchNorm(channels, process_group=group) for channels in (4, 6))
    a, b = torch.randn(3, 4, 2), torch.randn(3, 6, 2)
    many(b), many(b)
    statistics = few.running_mean, few.running_var, many.running_mean, many.running_var
    before, step = digest(*statistics), "start"
    if dies and rank == 1:
        os._exit(1)
    try:
        call = few.start(a) if rank == 1 else many.start(b)
        step = "finish"
        call.finish()
    except RuntimeError as error:
        return step, f"{type(error).__name__}: {error}", before == digest(*statistics)
    return "", "", before == digest(*statistics)


def example(rank, size, name):
    """How far a program of examples/ for several processes is from one process."""
    with redirect_stdout(None):
        return runpy.run_path(str(Path(__file__).parent.parent / f"examples/{name}.py"))["train"](rank, size)
