"""What the blocks below the first edited one give: computed once for each batch, since no coefficient changes it."""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tauspan import models
from tauspan.core.errors import ModelError
from tauspan.models import Batch, Classifier
from tauspan.models.at import At
from tauspan.tangent.cache.features import below, skipping, watched
from tauspan.tangent.cache.room import free_memory
from tauspan.tangent.engine.dual import mapped

_CHECKS = 3  # runs of the first batch that are compared with whole ones, bit for bit
_SHARE = 4  # a quarter of the free memory may hold outputs


class Below:
    """Runs an edited model, whose blocks below the first edited one run once for each batch.

    That the edited parameters do not enter those blocks is seen on the first batch, and that the rest of the model reads
    nothing else of them is checked by runs whose outputs must have the same bits. If it is not so, the model runs whole.

    Args:
        edited: the model whose weights are set anew for each choice of coefficients.
        moved: the names of the parameters that some direction moves.
    """

    def __init__(self, edited: nn.Module, moved: Collection[str]) -> None:
        self._inner, _ = models.core(edited)
        held = models.state_of(edited)
        self._moved = [name for name in moved if name in held]  # the others are in files alone
        try:
            self._skipped = below(self._inner, self._moved)
        except ModelError:  # no stack of blocks, or its first block is edited
            self._skipped = []
        self._kept: dict[int, tuple[Batch, Any]] = {}  # the batch itself, so that its id stays its own
        self._room, self._checks, self._looked = free_memory() // _SHARE, _CHECKS, False
        self._parts: bool | None = (
            None  # whether some rows of an output stand for themselves; None: not compared yet
        )

    def __bool__(self) -> bool:
        return bool(self._skipped)

    def __call__(self, model: Classifier, batch: Batch) -> Tensor:
        """The logits of `model`, which is the edited model under a head; from what is kept of the batch, if it is."""
        if not self._skipped:
            return _run(model, batch)
        if id(batch) not in self._kept:
            return self._first(model, batch)
        if self._checks and batch is next(iter(self._kept.values()))[0]:
            self._checks -= 1
            return self._compared(model, batch)
        return self._short(model, batch)

    def part(self, model: Classifier, batch: Batch, rows: Sequence[int]) -> Tensor:
        """The logits of some rows of a batch; from what is kept of the batch, if it is.

        The first such run is compared with one of the same rows that runs all blocks.
        """
        if id(batch) not in self._kept or self._parts is False:
            return of_rows(model, batch, rows)
        with skipping(self._skipped, _taken(self._kept[id(batch)][1], rows)):
            found = of_rows(model, batch, rows)
        if self._parts is None:
            whole = of_rows(model, batch, rows)
            self._parts = bool(torch.allclose(found, whole, rtol=1e-3, atol=1e-4 * float(whole.abs().max())))
            return whole
        return found

    def _short(self, model: Classifier, batch: Batch) -> Tensor:
        with skipping(self._skipped, self._kept[id(batch)][1]):
            return _run(model, batch)

    def _compared(self, model: Classifier, batch: Batch) -> Tensor:
        """A whole run; if the short one raises, or differs in a bit, all later ones are whole too."""
        try:  # before the whole run, which may leave in the module what this one lacks
            short = self._short(model, batch)
        except Exception:  # what the module raises where its blocks did not run
            short = None
        whole = _run(model, batch)
        if short is None or not short.equal(whole):
            self._skipped = []
            self._kept.clear()
        return whole

    def _first(self, model: Classifier, batch: Batch) -> Tensor:
        """A whole run, of which the output below is kept as long as there is room."""
        if not self._looked:
            self._looked = True
            if self._reads_moved(model, batch):
                self._skipped = []
                return _run(model, batch)
        with watched(self._skipped[-1]) as caught:
            whole = _run(model, batch)
        size = _bytes(caught)
        if len(caught) == 1 and size <= self._room:
            self._room -= size
            self._kept[id(batch)] = batch, caught[0]
        return whole

    def _reads_moved(self, model: Classifier, batch: Batch) -> bool:
        """Whether the blocks below, or what runs before them, read an edited parameter."""
        known = dict(self._inner.named_parameters())
        if not known.keys() >= set(self._moved):  # a buffer, or another name of a tied parameter
            return True
        with (
            At(self._inner, {name: known[name] for name in self._moved}) as at,
            watched(self._skipped[-1], lambda _: bool(at.used)) as read,
        ):
            model(batch)
        return read != [False]


def _run(model: nn.Module, batch: Batch) -> Tensor:
    found: Tensor = model(batch)
    return found


def of_rows(model: nn.Module, batch: Batch, rows: Sequence[int]) -> Tensor:
    """What a model gives for some rows of a batch."""
    return _run(model, _taken(batch, rows))


def _taken(item: Any, rows: Sequence[int]) -> Any:
    """Some rows of whatever a batch or a block's output is made of."""
    return mapped(item, lambda part: part[list(rows)] if isinstance(part, Tensor) else part)


def _bytes(item: Any) -> int:
    """Of all tensors in a block's output."""
    sizes: list[int] = []
    mapped(item, lambda part: sizes.append(part.nbytes) if isinstance(part, Tensor) else part)
    return sum(sizes)
