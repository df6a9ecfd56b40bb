"""How the trained tensors lie over the processes: each holds them whole, or each holds its part (`sharded`)."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from tauspan import store
from tauspan.core.params import Params
from tauspan.core.processes import World
from tauspan.models import Encoder, Head
from tauspan.train.settings import Settings
from tauspan.train.trainee import Trainee, trainee
from tauspan.vector import TaskVector


class Layout(Protocol):
    """What the loop asks of several processes.

    Attributes:
        together: whether every process must make as many forward passes as the others, with no rows if need be.
    """

    together: bool

    def exchange(self, parameters: Params, loss: Tensor) -> tuple[list[Tensor], Tensor]:
        """Sum gradients and loss over all processes; the gradients held here, and the norm of all of them."""

    def write(self, file: Path, parts: Mapping[str, tuple[str, Tensor]], metadata: Mapping[str, str]) -> None:
        """Write tensors once, each given with the name of the parameter it is shaped like. All processes call this."""

    def part(self, whole: Tensor) -> Tensor:
        """What this process holds of a whole tensor."""

    def finished(self, trainee: Trainee, label: str, info: dict[str, Any], file: Path | None) -> TaskVector:
        """What was learned, in every process; written once if there is a file. All processes call this."""


class Whole:
    """Every process holds every tensor whole."""

    together = False

    def __init__(self, processes: World) -> None:
        self.processes = processes

    def exchange(self, parameters: Params, loss: Tensor) -> tuple[list[Tensor], Tensor]:
        """One sum over all gradients; a parameter that the features do not depend on has zeros."""
        for parameter in parameters.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in parameters.values() if p.grad is not None]
        self.processes.sum([*gradients, loss])
        return gradients, torch.nn.utils.get_total_norm(gradients)

    def write(self, file: Path, parts: Mapping[str, tuple[str, Tensor]], metadata: Mapping[str, str]) -> None:
        """By the first process."""
        if self.processes.first:
            store.write_tensors(file, {key: tensor for key, (_, tensor) in parts.items()}, metadata)

    def part(self, whole: Tensor) -> Tensor:
        """All of it."""
        return whole

    def finished(self, trainee: Trainee, label: str, info: dict[str, Any], file: Path | None) -> TaskVector:
        """The trainee's vector, written by the first process."""
        vector = trainee.task_vector(label, info)
        if file is not None and self.processes.first:
            vector.save_pretrained(file, overwrite=True)
        return vector


@contextmanager
def laid_out(
    encoder: Encoder, heads: Sequence[Head], settings: Settings, processes: World, shard: bool
) -> Iterator[tuple[Trainee, Layout]]:
    """What trains, and how it lies over the processes; one process has nothing to share.

    With `shard` the encoder is taken apart inside and is whole again after a block that ended well. After an error it
    is lost, because processes that failed cannot gather: load it again.
    """
    if not shard or processes.size == 1:
        yield trainee(encoder, heads, settings), Whole(processes)
        return
    from tauspan.train.sharded import ShardedTrainee  # FSDP takes seconds to import

    apart = ShardedTrainee(encoder, heads, settings, processes)
    yield apart, apart
    apart.restore()
