"""DTensors: each process's part, and what becomes of the parameters' gradients, as from PyTorch's own functions."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812  the name everyone knows it by
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

import normtriton as nt

WORLD = 2
#: (function, arguments, shape of x, shape of the parameters)
CALLS = {
    "layer": ("layer_norm", ((8,),), (5, 3, 8), (8,)),
    "rms": ("rms_norm", ((8,),), (5, 3, 8), (8,)),
    "group": ("group_norm", (2,), (5, 4, 6), (4,)),
    "instance": ("instance_norm", (None, None), (5, 4, 6), (4,)),
}


@pytest.fixture(params=range(WORLD))
def mesh(request):
    """Two processes, of which this is one; nothing is sent."""
    dist.init_process_group("fake", rank=request.param, world_size=WORLD, store=FakeStore())
    yield init_device_mesh("cpu", (WORLD,))
    dist.destroy_process_group()


def shard(whole, mesh, dim):
    """A DTensor of which this process has its part: of 5 rows 3 or 2."""
    part = whole.chunk(WORLD, dim)[mesh.get_local_rank()].contiguous()
    return DTensor.from_local(part, mesh, [Shard(dim)], run_check=False, shape=whole.shape, stride=whole.stride())


def run(name, mesh, dim=0, module=nt):
    """(y, gradients) of a call whose x is sharded along a dimension; x; what PyTorch makes of this process's part."""
    function, arguments, shape, parameters = CALLS[name]
    generator = torch.Generator().manual_seed(0)
    x, dy = (torch.randn(shape, generator=generator) for _ in range(2))
    own = [torch.randn(parameters, generator=generator) for _ in range(1 if name == "rms" else 2)]
    sharded = [shard(x, mesh, dim), *(DTensor.from_local(t, mesh, [Replicate()], run_check=False) for t in own)]

    def call(module, inputs, dy):
        inputs = [t.detach().requires_grad_() for t in inputs]
        y = getattr(module, function)(inputs[0], *arguments, *inputs[1:])
        dy = dy.redistribute(placements=y.placements) if isinstance(dy, DTensor) else dy
        return y, torch.autograd.grad(y, inputs, dy)

    y, gradients = call(module, sharded, shard(dy, mesh, dim))
    part, dpart = (t.chunk(WORLD, dim)[mesh.get_local_rank()] for t in (x, dy))
    share, dshare = call(F, [part, *own], dpart)
    return y, gradients, x, (share, *dshare)


@pytest.mark.parametrize("name", CALLS)
def test_a_process_normalizes_its_part(name, mesh):
    """Whole groups, of an uneven share of the batch: what PyTorch makes of that share alone."""
    y, gradients, whole, share = run(name, mesh)
    assert y.placements == (Shard(0),)
    assert y.shape == whole.shape and y.stride() == whole.stride()
    assert [g.placements for g in gradients] == [(Shard(0),)] + [(Partial(),)] * (len(gradients) - 1)
    assert gradients[0].shape == whole.shape
    for ours, value in zip((y, *gradients), share, strict=True):
        torch.testing.assert_close(ours.to_local(), value)


def test_the_sequence_may_be_sharded(mesh):
    """As sequence parallelism does; layer norm's placements are PyTorch's."""
    y, gradients, _whole, share = run("layer", mesh, dim=1)
    torch.testing.assert_close(y.to_local(), share[0])
    wanted, expected, _whole, _share = run("layer", mesh, dim=1, module=F)
    assert y.placements == wanted.placements == (Shard(1),)
    assert [g.placements for g in gradients] == [g.placements for g in expected]


def test_what_is_needed_whole_is_gathered(mesh):
    """Channels of which some are a group, or that parameters alone vary along. Only the placements are of interest."""
    x = shard(torch.randn(5, 4, 8), mesh, 1)
    for y in (nt.group_norm(x, 2), nt.batch_norm(x, None, None, training=True), nt.instance_norm(x)):
        assert y.placements == (Replicate(),)
        assert y.shape == x.shape


def test_given_statistics_need_nobody(mesh):
    """In evaluation a batch norm is split along the batch, and along space."""
    mean, var = torch.randn(4), torch.rand(4) + 0.5
    own = [DTensor.from_local(t, mesh, [Replicate()], run_check=False) for t in (mean, var)]
    x = torch.randn(5, 4, 8)
    for dim in (0, 2):
        y = nt.batch_norm(shard(x, mesh, dim), *own)
        assert y.placements == (Shard(dim),)
        part = x.chunk(WORLD, dim)[mesh.get_local_rank()]
        torch.testing.assert_close(y.to_local(), F.batch_norm(part, mean, var))


def test_batch_norm_updates_its_statistics(mesh):
    """Replicated input and statistics: as of plain tensors."""
    x = torch.randn(4, 3, 5)
    mean, var = torch.zeros(3), torch.ones(3)
    own = [DTensor.from_local(t.clone(), mesh, [Replicate()], run_check=False) for t in (x, mean, var)]
    y = nt.batch_norm(*own, training=True)
    expected = F.batch_norm(x, mean, var, training=True)
    torch.testing.assert_close(y.to_local(), expected)
    for statistic, value in zip(own[1:], (mean, var), strict=True):
        torch.testing.assert_close(statistic.to_local(), value)


@pytest.mark.parametrize("counter", ["replicated", "plain"])
def test_a_module_counts_its_batches(counter, mesh):
    """The kernel counts, in the counter of this process."""
    ours, theirs, x = nt.BatchNorm1d(3), torch.nn.BatchNorm1d(3), torch.randn(4, 3, 5)
    for members in (ours._parameters, ours._buffers):
        for name, t in members.items():
            if counter == "replicated" or name != "num_batches_tracked":
                members[name] = DTensor.from_local(t.detach(), mesh, [Replicate()], run_check=False)
    for _ in range(2):
        y, expected = ours(DTensor.from_local(x, mesh, [Replicate()], run_check=False)), theirs(x)
    torch.testing.assert_close(y.to_local(), expected)
    for name, value in theirs._buffers.items():
        own = ours._buffers[name]
        torch.testing.assert_close(own.to_local() if isinstance(own, DTensor) else own, value)


def test_plain_parameters_are_refused(mesh):
    """By an error as PyTorch's."""
    x = shard(torch.randn(5, 3, 8), mesh, 0)
    for module in (F, nt):
        with pytest.raises(RuntimeError, match=r"mixed torch\.Tensor and DTensor"):
            module.layer_norm(x, (8,), torch.ones(8))


@pytest.mark.parametrize("place", range(4))
def test_a_plain_input_with_sharded_tensors_is_refused(mesh, place):
    """The other way round: weight, bias or a statistic alone is a DTensor."""
    others = [torch.zeros(3), torch.ones(3), torch.ones(3), torch.zeros(3)]
    others[place] = DTensor.from_local(others[place], mesh, [Replicate()], run_check=False)
    for module in (F, nt):
        with pytest.raises(RuntimeError, match=r"mixed torch\.Tensor and DTensor"):
            module.batch_norm(torch.randn(4, 3, 5), *others, training=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_bits_of_a_plain_call(mesh, dtype):
    """Replicated, with an eps and a momentum that no float32 holds."""
    x, mean, var = 1e-3 * torch.randn(4, 3, 5, dtype=dtype), torch.zeros(3, dtype=dtype), torch.ones(3, dtype=dtype)
    own = [DTensor.from_local(t.clone(), mesh, [Replicate()], run_check=False) for t in (x, mean, var)]
    more = {"training": True, "momentum": 0.1234567891234567, "eps": 1.2345678912345e-6}
    y, expected = nt.batch_norm(*own, **more), nt.batch_norm(x, mean, var, **more)
    for got, want in zip((y, *own[1:]), (expected, mean, var), strict=True):
        assert torch.equal(got.to_local(), want)
