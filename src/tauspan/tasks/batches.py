"""The rows of a split as batches that an encoder reads."""

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from tauspan.core.ahead import ahead
from tauspan.core.errors import UsageError
from tauspan.models import Batch, Encoder
from tauspan.models.inputs import require_words
from tauspan.objectives import Classification, Objective
from tauspan.objectives.passages import Group
from tauspan.tasks import Split

Batches: TypeAlias = Sequence[tuple[list[int], Batch]]


def encoded(
    encoder: Encoder, rows: Split, objective: Objective, max_tokens: int | None,
    crops: Sequence[random.Random] | None = None,
) -> Batch:  # fmt: skip
    """What an encoder reads of rows for an objective; see `Encoder.encode`.

    Raises:
        ModelError: the tokenizer knows none of the words.
    """
    batch = encoder.encode(objective.rows(rows.inputs, rows.labels, encoder.language), max_tokens, crops)
    if encoder.inputs.modality == "text" and isinstance(batch, Mapping) and "input_ids" in batch:
        require_words(batch["input_ids"], encoder.inputs.tokenizer)
    return batch


class Prepared(Sequence[tuple[list[int], Batch]]):
    """Batches with the indices of their rows, encoded on access.

    Encoded texts and tensors are kept for a second pass; images are not, since those of one split may not fit into
    memory. While a batch is used, the images of the next ones are decoded.
    """

    def __init__(
        self, encoder: Encoder, rows: Split, places: Sequence[list[int]], max_tokens: int | None, objective: Objective
    ) -> None:  # fmt: skip
        self._encoder, self._rows, self._places, self._max_tokens = encoder, rows, places, max_tokens
        self._objective = objective
        self._kept: dict[int, Batch] = {}

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(len(self)))]
        places = self._places[number]
        batch = self._kept.get(number)
        if batch is None:
            batch = encoded(self._encoder, self._rows.take(places), self._objective, self._max_tokens)
            if self._encoder.inputs.modality != "image":
                self._kept[number] = batch
        return places, batch

    def __iter__(self) -> Iterator[tuple[list[int], Batch]]:
        return self.share(0, 1)

    def share(self, first: int, step: int) -> Iterator[tuple[list[int], Batch]]:
        """Every `step`-th batch, beginning with batch number `first`."""
        return ahead(self.__getitem__, range(first, len(self), step), self._encoder.inputs.ahead)


def batches(
    encoder: Encoder, rows: Split, max_tokens: int | None, batch_size: int, objective: Objective = Classification()
) -> Prepared:  # fmt: skip
    """The rows in batches of similar length (for less padding), with their indices in the split."""
    for name, value in (("batch_size", batch_size), ("max_tokens", max_tokens)):
        if value is not None and value < 1:
            raise UsageError(f"{name}={value}: it must be at least 1.")
    lengths = [0] * len(rows)
    if encoder.inputs.modality == "text":
        lengths = list(map(_length, rows.inputs))
    order = sorted(range(len(rows)), key=lengths.__getitem__)
    places = [order[begin : begin + batch_size] for begin in range(0, len(order), batch_size)]
    return Prepared(encoder, rows, places, max_tokens, objective)


def _length(item: Any) -> int:
    """The characters of a text, or of the longest of a group."""
    if isinstance(item, Group):
        return max(map(_length, item))
    return len(item) if isinstance(item, str) else 0
