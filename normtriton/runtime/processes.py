"""What processes that share groups of elements tell each other, by `torch.distributed`.

A process tells a few numbers a group, all at once, and hears those of all others. Nothing is reduced on the way:
processes that have heard the same numbers compute the same bits.
"""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary, ref

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor

# PyTorch may have been built without them
c10d: Any = getattr(dist, "distributed_c10d", None)

#: How long a process waits for the others before it looks whether they called with something else.
PATIENCE = timedelta(seconds=1)

#: Called so since torch 2.13, which warns of the old name.
_gather: Any = getattr(dist, "all_gather_single", None) or getattr(dist, "all_gather_into_tensor", None)


def wire_bytes(planes: int, groups: int, size: int, processes: int) -> int:
    """Bytes that a process receives in one exchange: ``planes`` numbers a group, of ``size`` bytes, from each other."""
    return planes * groups * size * (processes - 1)


class Processes:
    """The processes of one group, and what they have agreed on.

    Attributes:
        name: of the group.
        size, rank: how many they are, and which of them this is.
    """

    def __init__(self, group: Any) -> None:
        """Ask `torch.distributed` for them."""
        self.name, self.size, self.rank = group.group_name, dist.get_world_size(group), dist.get_rank(group)
        self._group = ref(group)  # whose entry in a dictionary of weak keys this is
        self._store: Any = c10d.PrefixStore("normtriton", c10d._get_process_group_store(group))
        options = getattr(group._get_backend(group._device_types[0]), "options", None)  # a fake one has none
        self._timeout: timedelta = self._store.timeout if options is None else options._timeout
        self._known: set[tuple[str | None, str]] = set()
        self._last: str | None = None
        self._calls = 0

    def agree(self, signature: str) -> None:
        """Compare what this process is about to compute with the others, the first time after what it computed last.

        By the store, not by a collective: a process for which it is not the first time is not here, but waits for what
        the others tell.

        Raises:
            RuntimeError: another process has called with another signature.
            torch.distributed.DistStoreError: another process has not called in time.
        """
        self._calls += 1
        step, self._last = (self._last, signature), None
        if step not in self._known:
            self._post(self._calls, signature)
            missing = self._wait(self._calls, self._timeout)
            self._compare(self._calls, signature)
            if missing:
                raise dist.DistStoreError(
                    f"process_group=: rank {self.rank} waited {self._timeout.total_seconds():g} s for rank "
                    f"{', '.join(map(str, missing))} to call with {signature}"
                )
            self._known.add(step)
        self._last = signature

    def gather(self, told: Tensor) -> Tensor:
        """What every process tells, (processes, *told).

        Raises:
            RuntimeError: as `torch.distributed` has it.
        """
        return self.tell(told)()

    def tell(self, told: Tensor, signature: str | None = None) -> Callable[[], Tensor]:
        """Send to the others; what is returned waits for what every process tells, (processes, *told).

        ``signature`` is what they last agreed on, of a call that the others may not have made. Waiting raises what
        `torch.distributed` does, or a RuntimeError: another process has called with another signature.
        """
        heard = told.new_empty((self.size, *told.shape))
        if heard.numel() == 0:
            return lambda: heard
        work = _gather(heard.view(-1), told.view(-1), group=self._group(), async_op=True)
        return partial(self._hear, work, heard, self._calls, signature)

    def _hear(self, work: Any, heard: Tensor, call: int, signature: str | None) -> Tensor:
        if signature is None or heard.is_cuda:  # there the host does not wait
            work.wait()
            return heard
        posted = False
        while not self._arrived(work, call, signature):
            posted = posted or self._post(call, signature)
            self._compare(call, signature)
        if posted:
            self._store.delete_key(self._key(call, self.rank))
        return heard

    def _arrived(self, work: Any, call: int, signature: str) -> bool:
        """Whether a collective has ended within the patience of a process."""
        try:
            work.wait(PATIENCE)
        except RuntimeError:
            if work.is_completed():  # it failed, and the others may be about to find out
                self._last = None
                self._post(call, signature)
                self._wait(call, PATIENCE)
                self._compare(call, signature)
                raise
            return False
        return True

    def _key(self, call: int, rank: int) -> str:
        return f"{call}/{rank}"

    def _post(self, call: int, signature: str) -> bool:
        """Say what this process has called with."""
        self._store.set(self._key(call, self.rank), signature)
        return True

    def _wait(self, call: int, patience: timedelta) -> list[int]:
        """The ranks that have not said so in time."""
        end, missing = monotonic() + patience.total_seconds(), list(range(self.size))
        while missing and monotonic() < end:
            missing = [rank for rank in missing if not self._store.check([self._key(call, rank)])]
            sleep(0.002 if missing else 0)
        return missing

    def _compare(self, call: int, signature: str) -> None:
        """Raise what differs, as far as the others have said."""
        said = {r: signature if r == self.rank else self._said(call, r) for r in range(self.size)}
        if len({*said.values()} - {None}) > 1:
            calls = "; ".join(f"rank {rank} with {what}" for rank, what in _runs(said))
            raise RuntimeError(f"process_group=: the processes did not call alike: {calls}")

    def _said(self, call: int, rank: int) -> str | None:
        key = self._key(call, rank)
        return self._store.get(key).decode() if self._store.check([key]) else None


def _runs(said: dict[int, str | None]) -> Iterable[tuple[str, str]]:
    """Each signature with the ranks that said it."""
    for what in dict.fromkeys(said.values()):
        if what is not None:
            yield ", ".join(str(rank) for rank, other in said.items() if other == what), what


_known: WeakKeyDictionary[Any, Processes] = WeakKeyDictionary()


def processes(function: str, group: Any) -> Processes:
    """The processes of a ``process_group`` as callers give it.

    Raises:
        TypeError: neither a ProcessGroup nor a DeviceMesh.
        ValueError: a mesh of more than one dimension, or a group that this process is not in.
    """
    found = _known.get(group) if isinstance(group, dist.ProcessGroup) else None
    if found is None:
        if isinstance(group, DeviceMesh):
            if group.ndim != 1:
                raise ValueError(f"{function}(): process_group is a mesh of one dimension, not of {group.ndim}")
            return processes(function, group.get_group())
        if not isinstance(group, dist.ProcessGroup):
            if group is dist.GroupMember.NON_GROUP_MEMBER:
                raise ValueError(f"{function}(): this process is not in process_group")
            raise TypeError(
                f"{function}(): process_group is a ProcessGroup or a DeviceMesh, not {type(group).__name__}"
            )
        found = _known[group] = Processes(group)
    return found


class Named(NamedTuple):
    """Processes as a compiler knows them while it traces: by the name of their group, and how many they are."""

    name: str
    size: int


def traced(function: str, group: Any) -> Named:
    """`processes`, for a compiler."""
    found = processes(function, group)
    return Named(found.name, found.size)


traced._dynamo_marked_constant = True  # type: ignore[attr-defined]  # it is computed while it is traced, and remembered


def named(name: str) -> Processes:
    """The processes of the group of this name."""
    return processes("normalize", c10d._resolve_process_group(name))


class Summed(torch.autograd.Function):
    """The sum over all processes, which can be differentiated as often as wanted: the gradients are summed too."""

    @staticmethod
    def forward(ctx: Any, among: Processes, own: Tensor) -> Tensor:
        ctx.among = among
        return among.gather(own.contiguous()).sum(0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, summed(ctx.among, gradient)


def summed(among: Processes, own: Tensor) -> Tensor:
    """`Summed`."""
    return Summed.apply(among, own)  # type: ignore[no-any-return, no-untyped-call]  # autograd has no types
