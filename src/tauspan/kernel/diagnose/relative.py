"""How far an edit moves a row among its anchors: a drift of features that can be compared over models."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tauspan.core.arguments import checked
from tauspan.core.choices import SplitName
from tauspan.core.errors import UsageError
from tauspan.core.reading import Reading
from tauspan.core.report import Cell, Report, Table, provenance
from tauspan.core.results import Result
from tauspan.kernel import Estimate
from tauspan.kernel.solvers.estimates import standard_error
from tauspan.models import Encoder
from tauspan.tangent import Linearized
from tauspan.tasks import Split, Task, relative_features
from tauspan.tasks.features import features_of
from tauspan.tasks.relative import anchor_rows


@dataclass(frozen=True, kw_only=True, eq=False)
class RelativeDrift(Result):
    """How far relative representations r(x), the cosines of a row with anchors, are from one model to another.

    Args:
        first: the model before.
        second: the model after.
        task: whose rows.
        by_row: the mean over anchors of |r_first - r_second|, shape (N); between 0 and 2.
        apart: the mean over anchors of the distance of two different rows in the first model, mean |r(x) - r(x')|.
        anchors: how many.
    """

    first: str
    second: str
    task: str
    by_row: Tensor
    apart: float
    anchors: int

    def __repr__(self) -> str:
        return f"RelativeDrift({self.task!r}: {self.drift.value:.3g}, {self.share.value:.3g} of the distance of rows)"

    @property
    def drift(self) -> Estimate:
        """The mean over rows, with its standard error over them; the anchors are fixed."""
        return Estimate(float(self.by_row.mean()), True, "exact on these rows", standard_error(self.by_row))

    @property
    def share(self) -> Estimate:
        """The drift over `apart`: at 1 a row has moved as far as two rows are from one another."""
        found = self.drift
        error = None if found.standard_error is None else found.standard_error / self.apart
        return Estimate(found.value / self.apart, True, found.estimator, error)

    @property
    def verdict(self) -> str:
        """The drift in the units of the distance of rows."""
        return (
            f"From {self.first} to {self.second} a row of {self.task} moves by {self.share.value:.1%} of the distance "
            "between two rows, as its anchors see it."
        )

    def report(self) -> Report:
        """One row."""
        row: dict[str, Cell] = {
            "rows of": self.task, "drift": self.drift.value, "s.e.": self.drift.standard_error,
            "largest": float(self.by_row.max()), "rows apart": self.apart, "drift / apart": self.share.value,
        }  # fmt: skip
        title = f"Relative drift, {self.first} to {self.second}"
        note = f"mean |difference of cosines| with {self.anchors} anchors, over {len(self.by_row)} rows"
        return Report(
            title,
            [Table(title, [row], note)],
            dict(self.provenance),
            warnings=self.warnings,
            verdict=self.verdict,
        )


@checked
def relative_drift(
    first: Encoder | Linearized,
    second: Encoder | Linearized,
    task: Task,
    *,
    anchors: int | Split = 64,
    split: SplitName = "test",
    seed: int = 0,
    reading: Reading = Reading(),
) -> RelativeDrift:
    """Mean |r_first - r_second| over rows and anchors, r(x)_j = cos(z(x), z(a_j)) with both by the same model.

    The anchors move with the model, so that an edit that turns or scales all features has no drift, and models of
    other widths can be compared. That is its use and its limit: a frozen head does see a rotation. Where all cosines of
    a model are near 1 its drift is small whatever happens; `share` divides by how far two rows are apart.

    Args:
        first: a model, usually the pre-trained one.
        second: another one, usually an edit of it (`tauspan.apply`), of any regime.
        task: whose rows.
        anchors: at most so many training rows, drawn by `seed`, or rows of your own.
        split: which rows are compared.
        seed: of the draw.
        reading: batches, and where texts are cut.

    Raises:
        UsageError: fewer than 2 anchors or rows, rows that the first model cannot tell apart.
        MismatchError, ModelError, NonFiniteError: as of the models' own features.

    Cost:
        Forward passes of both models over rows and anchors.

    Example:
        >>> import tauspan as ts
        >>> x, y = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 2
        >>> task = ts.Task.from_tensors("parity", ["even", "odd"], train=(x, y), validation=(x, y), test=(x, y))
        >>> base, twice = torch.nn.Linear(4, 3, bias=False), torch.nn.Linear(4, 3, bias=False)
        >>> with torch.no_grad():
        ...     twice.weight.copy_(2 * base.weight).shape
        torch.Size([3, 4])
        >>> round(relative_drift(ts.load(base), ts.load(twice), task).drift.value, 6)
        0.0
    """
    reading.require_no_point("relative_drift")
    chosen, rows = (
        anchors if isinstance(anchors, Split) else anchor_rows(task, anchors, seed),
        task.split(split),
    )
    if len(chosen) < 2 or len(rows) < 2:
        raise UsageError(f"{len(chosen)} anchors and {len(rows)} rows: give at least 2 of each.")
    tokens = task.tokens(reading.max_tokens)

    def seen(model: Encoder | Linearized) -> Tensor:
        encoder = model if isinstance(model, Encoder) else _encoder_of(model)
        of_rows, of_anchors = (
            features_of(encoder, some, tokens, reading.batch_size, through=model).double().cpu()
            for some in (rows, chosen)
        )
        return relative_features(of_rows, of_anchors)

    before, after = seen(first), seen(second)
    apart = _apart(before)
    if not apart > 1e-6:
        raise UsageError(
            f"rows of task {task.name!r} have the same cosines in {_name(first)}: it cannot tell them apart, and no "
            "drift can be compared with their distance."
        )
    return RelativeDrift(
        first=_name(first), second=_name(second), task=task.name, by_row=(before - after).abs().mean(1), apart=apart,
        anchors=len(chosen), provenance=provenance(split=split, seed=seed),
    )  # fmt: skip


def _encoder_of(model: Linearized) -> Encoder:
    base: nn.Module = model.base
    if not isinstance(base, Encoder):
        raise UsageError(
            f"the tangent model is of {type(base).__name__}, and features are those of an `Encoder`: give that of one."
        )
    return base


def _name(model: Encoder | Linearized) -> str:
    if isinstance(model, Linearized):
        return model.label
    return model.edit or model.source


def _apart(r: Tensor) -> float:
    """Mean |r_n - r_m| over pairs of different rows and over anchors, from sorted columns, shape (N, k)."""
    count = len(r)
    weights = 2 * torch.arange(count, dtype=torch.float64) - count + 1
    return float((weights @ r.sort(0).values).mean() * 2 / (count * (count - 1)))
