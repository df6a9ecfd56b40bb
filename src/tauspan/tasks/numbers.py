"""Targets that are numbers: one for each output, from columns of a table, lists or tensors."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tauspan.core.errors import DataError
from tauspan.core.notices import tell
from tauspan.objectives import Objective, OwnLoss
from tauspan.objectives.objective import told as told_of
from tauspan.tasks.assembly import Gathered, told
from tauspan.tasks.images import Images
from tauspan.tasks.rows import UNLABELLED, Rows, fault_of, incomplete
from tauspan.tasks.split import Split

Found = Mapping[str, Sequence[Rows]]


def numbered(found: Mapping[str, Found], objective: Objective, clean: bool, what: str) -> Gathered:
    """The splits of a task whose rows have a number for each output.

    Args:
        found: by the name of the output, the rows of each split; the inputs are the same in all of them.
        objective: what the numbers are for.
        clean: drop rows without an input or a number, instead of raising.
        what: the task's name.

    Raises:
        DataError: a row without an input, or with something that is no finite number; it names file and row.
    """
    names, first = list(found), next(iter(found.values()))
    splits, left_out = {}, {}
    for split in first:
        inputs: list[Any] = []
        targets: list[list[float]] = []
        counts: Counter[str] = Counter()
        for part, rows in enumerate(first[split]):
            columns = [found[name][split][part] for name in names]
            if isinstance(rows.inputs, Images):
                raise _images(what)
            for row, item in enumerate(rows.inputs):
                numbers = [number_of(column, row) for column in columns]
                fault = fault_of(item) or (UNLABELLED if None in numbers else None)
                if fault is None:
                    inputs.append(item)
                    targets.append([number for number in numbers if number is not None])
                elif clean:
                    counts[fault] += 1
                else:
                    raise incomplete(rows, row, fault)
        values = torch.tensor(targets, dtype=torch.float64).view(-1, len(names))
        splits[split] = Split(inputs, narrow(values))
        if counts:
            left_out[split] = dict(counts)
    if left_out:
        tell(f"task {what!r} leaves out {told(left_out)}.")
    return Gathered(names, splits, left_out)


def narrow(values: Tensor) -> Tensor:
    """Float32 where it holds every number, as of labels 0 and 1; else float64."""
    narrow = values.float()
    return narrow if torch.equal(narrow.double(), values) else values


def number_of(rows: Rows, row: int) -> float | None:
    """A label as a finite number; None where there is none."""
    value = rows.labels[row]
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        if isinstance(value, str) and "_" in value:  # which Python reads as nothing
            raise ValueError(value)
        number = float(value)
    except (TypeError, ValueError):
        raise DataError(
            f"{rows.place(row)}: the target {value!r} is no number. Write one, with a point for decimals; classes by "
            "name "
            'are objective="classification".'
        ) from None
    if math.isnan(number):
        return None
    if math.isinf(number):
        raise DataError(f"{rows.place(row)}: the target is {value!r}, and a finite number is wanted.")
    return number


def _images(what: str) -> DataError:
    return DataError(
        f"task {what!r}: folders and tables of images have classes. Give images with numbers as "
        "`Task.from_tensors(..., objective=...)`."
    )


def tensor_targets(name: str, split: str, given: Any, objective: Objective) -> Split:
    """Inputs and targets of one split as they were given, targets of shape (N, O) or (N,) for one output.

    Raises:
        DataError: it is no pair, or the targets are no numbers.
    """
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise DataError(
            f"{split} of {name!r}: give a pair of inputs and targets, not {type(given).__name__}."
        )
    inputs, values = given
    try:
        targets = values.detach().cpu() if isinstance(values, Tensor) else torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{split} of {name!r}: its targets are no numbers ({error}): give a tensor or lists of floats, of shape "
            "(N, outputs)."
        ) from error
    if targets.is_complex() or not targets.ndim:
        raise DataError(
            f"{split} of {name!r}: its targets are {told_of(targets)}: give real numbers of shape (N, outputs)."
        )
    if not isinstance(objective, OwnLoss):  # whose targets are the user's own
        targets = narrow(targets.double())
        targets = targets[:, None] if targets.ndim == 1 else targets
    if (
        isinstance(inputs, str)
        or not hasattr(inputs, "__len__")
        or (isinstance(inputs, Tensor) and not inputs.ndim)
    ):
        raise DataError(
            f"{split} of {name!r}: its inputs are a {type(inputs).__name__}: give a list, or a tensor."
        )
    kept = inputs if isinstance(inputs, Images) else list(inputs)
    if len(kept) != len(targets):
        raise DataError(f"{split} of {name!r}: {len(kept)} inputs and {len(targets)} rows of targets.")
    return Split(kept, targets)
