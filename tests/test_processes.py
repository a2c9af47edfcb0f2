"""Norms whose groups extend over processes: real ones, which talk by gloo, beside the whole tensor in float64."""

from functools import partial

import across_cases
import pytest
import torch
import worlds
from torch import nn

import normtriton as nt


@pytest.mark.parametrize("size", [2, 3, 4])
def test_parts_are_those_of_the_whole(size):
    """Every norm, sharded axis, layout and dtype, uneven and empty parts: results, gradients, statistics, same bits."""
    found = worlds.run(across_cases.everything, size)
    for case in found[0]:
        wrong, bits = zip(*(each[case] for each in found), strict=True)
        assert not any(wrong), f"{case}: {next(filter(None, wrong))}"
        assert len({*bits}) == 1, f"{case}: the processes differ"


@pytest.mark.parametrize("size", [2, 3])
def test_one_that_calls_with_something_else(size):
    """Shape or dtype, new or known: every process raises what differs, and the next call that agrees is computed."""
    odd, others = "rank 0 with", f"rank {', '.join(map(str, range(1, size)))} with"
    for said in worlds.run(across_cases.unlike, size):
        assert [bool(error) for error in said] == [True, False, True, False, True]
        for error, named in zip(said[::2], ("c 4", "torch.float64", "c 4"), strict=True):
            assert error.startswith("RuntimeError: process_group=: the processes did not call alike: ")
            assert odd in error and others in error and named in error
    for said in worlds.run(across_cases.known, size):
        assert said[:2] == ["", ""] and "did not call alike" in said[2] and "c 4" in said[2] and "c 6" in said[2]


@pytest.mark.parametrize("new", [True, False], ids=["new", "known"])
def test_one_that_dies(new):
    """The others raise within the group's timeout, and leave running statistics as they were."""
    first, dead, last = worlds.run(partial(across_cases.dying, new=new), 3)
    assert dead is None
    for said, error, seconds, unchanged in (first, last):
        assert not said and "Error" in error and seconds < 5 and unchanged
        assert not new or "rank 1 to call" in error


@pytest.mark.parametrize("size", [2, 3])
def test_a_started_call_waits_for_nobody(size):
    """Two tell before the first is heard, while another process has not begun."""
    for wrong, _ in worlds.run(partial(across_cases.outcome, across_cases.in_flight), size, timeout=10.0):
        assert not wrong, wrong


@pytest.mark.parametrize("dies", [True, False], ids=["dies", "differs"])
def test_one_that_leaves_a_started_call(dies):
    """What happens between start and finish is said by finish, which leaves running statistics as they were."""
    first, other, last = worlds.run(partial(across_cases.parting, dies=dies), 3)
    assert dies == (other is None)
    for step, said, unchanged in (first, last):
        assert (step, unchanged) == ("finish", True)
        assert dies or ("did not call alike" in said and "rank 1 with" in said)
    assert dies or (other[0] == "start" and "did not call alike" in other[1])


def test_sync_batch_norm_is_made_of_batch_norms_and_back():
    """The same parameters and buffers, each class and setting given back; of others a class that is asked for."""
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Sequential(nt.BatchNorm2d(3, activation="relu", momentum=0.3)).eval())
    model[0].qconfig = "a qconfig"
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    synced = nt.SyncBatchNorm.convert_sync_batchnorm(model)
    assert [type(m) for m in (synced[0], synced[1][0])] == [nt.SyncBatchNorm] * 2
    assert (synced[1][0].activation, synced[1][0].momentum, synced[0].qconfig) == ("relu", 0.3, "a qconfig")
    assert synced[0].training and not synced[1][0].training
    again = nt.SyncBatchNorm.revert_sync_batchnorm(nt.SyncBatchNorm.convert_sync_batchnorm(synced))
    assert [type(m) for m in (again[0], again[1][0])] == [nn.BatchNorm1d, nt.BatchNorm2d]
    assert again[1][0].activation == "relu"
    for key, t in {**dict(again.named_parameters()), **dict(again.named_buffers())}.items():
        assert t is tensors[key]
    revert = nt.SyncBatchNorm.revert_sync_batchnorm
    assert type(revert(nn.SyncBatchNorm(3))) is nt.BatchNorm2d
    assert type(revert(nt.SyncBatchNorm(3), otherwise=nn.BatchNorm3d)) is nn.BatchNorm3d


def test_sync_batch_norm_is_torchs():
    """State dicts go both ways, `convert` takes it, and without processes it is batch norm."""
    theirs, ours, x = nn.SyncBatchNorm(4), nt.SyncBatchNorm(4), torch.randn(3, 4, 5)
    assert isinstance(ours, nn.SyncBatchNorm)
    ours(x)
    theirs.load_state_dict(ours.state_dict())
    model = nn.Sequential(theirs)
    nt.convert(model)
    assert type(theirs) is nt.SyncBatchNorm
    plain = nn.BatchNorm1d(4)
    plain.load_state_dict(theirs.state_dict())
    for _ in range(2):
        torch.testing.assert_close(theirs(x), plain(x))
        torch.testing.assert_close(theirs.state_dict(), plain.state_dict())
        theirs.eval(), plain.eval()
    nt.restore(model)
    assert type(theirs) is nn.SyncBatchNorm
