"""Several processes as one: gradients are summed over them, files are written by the first.

Works under `torchrun` and `accelerate launch`, which both set RANK and WORLD_SIZE. Gradients are summed here instead
of being averaged by DistributedDataParallel, so that each row has the same weight on one process and on many, also in
a last batch that does not divide evenly.
"""

import functools
import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from tauspan.core.errors import MismatchError
from tauspan.core.launch import launch

_GROUPS = itertools.count()  # numbers the groups; every process makes the same groups in the same order


@dataclass(frozen=True)
class World:
    """The position of this process among all processes."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes; one exchange per dtype, on the first tensor's device."""
        if self.size == 1:
            return
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            same = [tensor for tensor in tensors if tensor.dtype == dtype]
            flat = torch.cat([tensor.flatten().to(tensors[0].device) for tensor in same])
            dist.all_reduce(flat)
            for tensor, part in zip(same, torch.split(flat, [t.numel() for t in same]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def require_same(self, facts: Mapping[str, str]) -> None:
        """Raise the same `MismatchError` in every process unless all of them hold the same facts."""
        if self.size == 1:
            return
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, dict(facts))
        differing = []
        for name, value in gathered[0].items():
            rank = next((rank for rank, other in enumerate(gathered) if other[name] != value), 0)
            if rank:
                differing.append(f"{name} ({value} in process 0, {gathered[rank][name]} in process {rank})")
        if differing:
            raise MismatchError(
                f"the {self.size} processes of one run disagree about {'; '.join(differing)}. Start all of them with "
                "the same settings, model and data."
            )

    def gathered(self, mine: Sequence[Any]) -> list[Any]:
        """The items of all processes, in the order of their ranks; tensors among them must be on the CPU."""
        if self.size == 1:
            return list(mine)
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, list(mine))
        return [item for items in found for item in items]

    def wait(self) -> None:
        """Wait until every process has called this."""
        if self.size > 1:
            dist.barrier()


def own_device(name: str) -> str:
    """The device of this process: `"cuda"` becomes its own GPU under a launcher, other names stay."""
    local = launch().local
    return f"cuda:{local}" if name == "cuda" and local is not None else name


@functools.cache
def _rendezvous() -> tuple[Store, int]:
    """The launcher's store and this process's rank, computed once: only one store can listen on a port."""
    store, rank, _ = next(rendezvous("env://"))
    return store, rank


@contextmanager
def world() -> Iterator[World]:
    """The group of processes launched together; it ends with the block. Without a launcher it holds one process.

    Each group has its own prefix in the store, so that a second group does not read the addresses of the first.
    """
    here = launch()
    if here.size == 1:
        yield World()
        return
    ours, hook = not dist.is_initialized(), sys.excepthook
    if ours:
        store, rank = _rendezvous()
        prefix = PrefixStore(f"tauspan/{next(_GROUPS)}", store)
        backend = "gloo"
        if torch.cuda.is_available():
            backend = "cpu:gloo,cuda:nccl"
            if here.local is not None:
                torch.cuda.set_device(own_device("cuda"))
        dist.init_process_group(backend, store=prefix, rank=rank, world_size=here.size)
    try:
        yield World(dist.get_rank(), dist.get_world_size())
    finally:
        if ours:
            dist.destroy_process_group()
            sys.excepthook = hook  # every group wraps it once more, to name the rank
