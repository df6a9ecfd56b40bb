"""How trained tensors are distributed over processes: each process holds whole tensors, or a part (`sharded`)."""

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
    """The operations of the loop that involve all processes.

    Attributes:
        together: whether all processes must run the same number of forward passes, some of them without rows.
    """

    together: bool

    def exchange(self, parameters: Params, loss: Tensor) -> tuple[list[Tensor], Tensor]:
        """Sum gradients and loss over all processes; returns this process's gradients, and the norm over all."""

    def write(self, file: Path, parts: Mapping[str, tuple[str, Tensor]], metadata: Mapping[str, str]) -> None:
        """Write tensors to a file, each with the name of the parameter whose shape it has. All processes call this."""

    def part(self, whole: Tensor) -> Tensor:
        """The part of a whole tensor that this process holds."""

    def finished(self, trainee: Trainee, label: str, info: dict[str, Any], file: Path | None) -> TaskVector:
        """The task vector, in every process; written to `file` if that is given. All processes call this."""


class Whole:
    """Every process holds whole tensors."""

    together = False

    def __init__(self, processes: World) -> None:
        self.processes = processes

    def exchange(self, parameters: Params, loss: Tensor) -> tuple[list[Tensor], Tensor]:
        """Sum all gradients in one exchange; they are zeros for parameters that the features do not depend on."""
        for parameter in parameters.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in parameters.values() if p.grad is not None]
        self.processes.sum([*gradients, loss])
        return gradients, torch.nn.utils.get_total_norm(gradients)

    def write(self, file: Path, parts: Mapping[str, tuple[str, Tensor]], metadata: Mapping[str, str]) -> None:
        """Write the tensors, in the first process."""
        if self.processes.first:
            store.write_tensors(file, {key: tensor for key, (_, tensor) in parts.items()}, metadata)

    def part(self, whole: Tensor) -> Tensor:
        """The whole tensor."""
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
    """The trainee and its layout; with a single process tensors are whole.

    With `shard` the encoder's parameters are in shards inside the block, and are put back at its end. After an error
    they are lost, because processes that failed cannot gather them: load the encoder again.
    """
    if not shard or processes.size == 1:
        yield trainee(encoder, heads, settings), Whole(processes)
        return
    from tauspan.train.sharded import ShardedTrainee  # FSDP takes seconds to import

    apart = ShardedTrainee(encoder, heads, settings, processes)
    yield apart, apart
    apart.restore()
