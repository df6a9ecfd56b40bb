"""Rows as read from their source, before they are checked."""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tauspan.core.arguments import no_rows
from tauspan.core.errors import DataError, listed
from tauspan.models.pictures import is_picture
from tauspan.objectives.passages import Group
from tauspan.tasks.images import Images
from tauspan.tasks.labels import writable

NO_TEXT, UNLABELLED = "without a text", "without a label"
BROKEN, STRANGE = "with half a surrogate pair in the text", "whose input is neither a text nor numbers"


@dataclass(frozen=True)
class Rows:
    """Inputs and labels as read from one file, folder or table.

    Args:
        inputs: texts, arrays or `Images`.
        labels: names or numbers, as written in the source.
        where: the file or table, for errors.
        lines: the line of the file where each row begins; None without lines.
        names: class names given by the source; its labels are indices into them.
        left_out: counts of items in the source that are not rows.
        splits: the split of each row, if a column gives it.
    """

    inputs: Sequence[Any]
    labels: Sequence[Any]
    where: str
    lines: Sequence[int] | None = None
    names: Sequence[str] | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)
    splits: Sequence[Any] | None = None

    def place(self, row: int) -> str:
        """The name of a row for errors."""
        if isinstance(self.inputs, Images):
            return self.inputs.encoded.name(self.inputs.places[row])
        return f"{self.where}, row {row}" + ("" if self.lines is None else f" (line {self.lines[row]})")

    def take(self, rows: Sequence[int]) -> "Rows":
        """Some of the rows, in the order given."""
        inputs, lines = self.inputs, self.lines
        return Rows(
            inputs.take(rows) if isinstance(inputs, Images) else [inputs[row] for row in rows],
            [self.labels[row] for row in rows],
            self.where,
            None if lines is None else [lines[row] for row in rows],
            self.names,
            self.left_out,
        )


def fault_of(item: Any) -> str | None:
    """What is wrong with an input, in words: no text, a text that UTF-8 cannot write, no numbers; None if nothing is."""
    if isinstance(item, Group):
        return next(filter(None, map(fault_of, item)), None)
    if isinstance(item, str):
        if not item.strip():
            return NO_TEXT
        return None if item.isascii() or writable(item) else BROKEN
    if item is None or isinstance(item, Tensor):
        return NO_TEXT if item is None else None
    try:
        return None if is_picture(item) or np.asarray(item).dtype.kind in "biufc" else STRANGE
    except ValueError:  # lists of different lengths
        return STRANGE


def incomplete(rows: Rows, row: int, fault: str) -> DataError:
    """The error of a row that lacks something."""
    return DataError(
        f"{rows.place(row)} is a row {fault}. Complete it or take it out, or pass clean=True (--clean), which leaves "
        "such rows out and says how many."
    )


def tensor_rows(name: str, split: str, given: Any) -> Rows:
    """The rows of one split from a pair of inputs and labels; raises `DataError` if it is not such a pair."""
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise DataError(f"{split} of {name!r}: give a pair of inputs and labels, not {type(given).__name__}.")
    inputs, labels = given
    if isinstance(labels, Iterator):
        labels = list(labels)
    for what, value in (("inputs", inputs), ("labels", labels)):
        if isinstance(value, str | bytes | Mapping | Set) or not hasattr(value, "__len__"):
            raise DataError(
                f"{split} of {name!r}: its {what} are a {type(value).__name__} ({str(value)[:40]}): give a list, an "
                "array or a tensor with one entry for each row, in order."
            )
    inputs, labels = (np.asarray(one) if isinstance(one, memoryview) else one for one in (inputs, labels))
    shape = tuple(labels.shape) if hasattr(labels, "shape") else (len(labels),)
    kind = str(getattr(labels, "dtype", "")).removeprefix("torch.")
    if len(shape) != 1 or kind.startswith(("float", "bfloat", "complex", "q")):
        raise DataError(
            f"{split} of {name!r}: labels are int64 of shape (N,), not {kind or type(labels).__name__} of shape "
            f"{shape}. One whole number for each row is its class."
        )
    if hasattr(inputs, "columns") and hasattr(inputs, "iloc"):  # list(frame) gives the names of columns
        raise DataError(
            f"{split} of {name!r}: its inputs are a data frame with the columns "
            f"{listed(map(str, inputs.columns))}: give a column of texts (`frame['text'].tolist()`) or an array of "
            "numbers (`frame.to_numpy()`)."
        )
    where = f"{split} of {name!r}"
    wrong = no_rows(inputs)
    if wrong is not None:
        raise DataError(f"{where}: its inputs are {wrong}; each row needs the position of its label.")
    try:
        kept = inputs if isinstance(inputs, Images) else [plain(item) for item in plain(inputs)]
        labels = plain(labels) if isinstance(labels, Tensor) else labels  # a masked label stays missing
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    values = labels.tolist() if hasattr(labels, "tolist") else list(labels)
    if len(kept) != len(values):
        raise DataError(f"{split} of {name!r}: {len(kept)} inputs and {len(values)} labels.")
    return Rows(kept, values, where)


def plain(item: Any) -> Any:
    """A tensor or array in a form that can be stored: dense, detached from autograd, in this machine's byte order.

    Raises:
        DataError: it holds no numbers (`meta`), or a mask says which of them are not meant.
    """
    if isinstance(item, Tensor):
        return _dense(item.detach())
    if np.ma.is_masked(item):
        raise DataError(
            "a masked array hides some of its numbers, and no model reads a mask: write array.filled(0.0), with the "
            "number that represents them, or take these rows out."
        )
    if isinstance(item, np.ndarray | np.generic) and item.dtype.kind in "iufc" and not item.dtype.isnative:
        return item.astype(item.dtype.newbyteorder("="))
    return item


def _dense(item: Tensor) -> Any:
    """A tensor's values in a layout and dtype that NumPy has too: bfloat16 and float8 become float32."""
    if item.is_meta:
        raise DataError(
            f"a tensor of shape {tuple(item.shape)} on the device meta has no numbers: make it on the device cpu."
        )
    if item.is_nested:
        return list(item.unbind())
    if item.layout != torch.strided:
        item = item.to_dense()
    if item.is_quantized:
        return item.dequantize()
    item = item.resolve_conj().resolve_neg()
    return item.float() if item.dtype == torch.bfloat16 or "float8" in str(item.dtype) else item
