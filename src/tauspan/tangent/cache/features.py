"""Cached features: if only late blocks train, the blocks below them run once per batch."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tauspan import models
from tauspan.core.errors import ModelError, UsageError
from tauspan.core.params import Params
from tauspan.tangent.cache.room import Held, Room
from tauspan.tangent.cache.tape import gradients
from tauspan.tangent.engine.checkpointing import replaced
from tauspan.tangent.engine.dual import mapped

if TYPE_CHECKING:
    from tauspan.tangent.taylor import Linearized


class FeatureCell:
    """One batch with the output of the last block before the first block that trains."""

    def __init__(self, linearized: "Linearized", batch: Any, skipped: list[nn.Module], kept: Any) -> None:
        self._linearized, self._batch, self._skipped, self._kept = linearized, batch, skipped, kept

    def settle(self) -> None:
        """Use the tensors at the location to which the room has moved them, in memory or in a mapped file."""
        self._kept = mapped(self._kept, lambda item: item.tensor if isinstance(item, Held) else item)

    def tangent(self) -> tuple[Tensor, Tensor]:
        """`(f, J tau)`, differentiable in tau; only the trained blocks run."""
        with skipping(self._skipped, self._kept):
            args, kwargs = self._linearized.inputs_of(self._batch)
            return self._linearized.tangent(*args, **kwargs)

    def push(self, deltas: Params) -> Tensor:
        """J tau."""
        with skipping(self._skipped, self._kept):
            args, kwargs = self._linearized.inputs_of(self._batch)
            return self._linearized.tangent(*args, vectors=[deltas], **kwargs)[1][0]

    def pull(self, gradient: Tensor) -> dict[str, Tensor]:
        """J^T g."""
        with torch.enable_grad():
            tangent = self.tangent()[1]
        return gradients(tangent, self._linearized.tau, gradient)


@contextmanager
def skipping(skipped: list[nn.Module], output: Any) -> Iterator[None]:
    """Inside the block, these modules return a stored output instead of running."""
    with replaced({block: lambda *_, **__: output for block in skipped}):
        yield


@contextmanager
def watched(block: nn.Module, look: Callable[[Any], Any] = lambda output: output) -> Iterator[list[Any]]:
    """Inside the block, a list that gets what `look` gives of each output of the module."""
    seen: list[Any] = []
    hook = block.register_forward_hook(lambda _, __, output: seen.append(look(output)))
    try:
        yield seen
    finally:
        hook.remove()


def cell(linearized: "Linearized", batch: Any, folder: Path | None) -> tuple[FeatureCell, int]:
    """One batch's cell and the bytes it holds.

    Raises:
        ModelError: there are no blocks before the first block that trains.
    """
    skipped = below(models.core(linearized.base)[0], list(linearized.tau))
    call = linearized.function(batch)  # looking for tensors that the module keeps may run it
    with watched(skipped[-1]) as caught, torch.no_grad():
        call(linearized.theta0())
    if len(caught) != 1:
        raise ModelError(f"the model runs its block {len(caught)} times, so its output cannot stand for it.")
    room = Room([*linearized.base.parameters(), *linearized.base.buffers()], folder)
    kept = mapped(caught[0], lambda item: room.hold(item) if isinstance(item, Tensor) else item)
    made = FeatureCell(linearized, batch, skipped, kept)
    held = room.settle()
    made.settle()
    return made, held


def below(inner: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    """The blocks of the longest stack before the first block that holds one of the named parameters.

    Raises:
        ModelError: there are none.
    """
    try:
        prefix, stack = models.blocks(inner, names)
    except UsageError as error:
        raise ModelError(f"{error} There is nothing to cache as features.") from error
    trained = [
        place for place, name in enumerate(stack) if any(n.startswith(f"{prefix}{name}.") for n in names)
    ]
    if not trained or trained[0] == 0:
        raise ModelError(
            f"{type(inner).__name__} has no block below the first that trains, so there is nothing to cache as features; "
            "choose `last:k`, or another kind of cache."
        )
    return list(stack.values())[: trained[0]]
