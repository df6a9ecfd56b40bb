"""`ChosenEdit`: the base of results that say which edit was chosen."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from tauspan.core.choices import EditRegime, Point
from tauspan.core.records import LIVE
from tauspan.core.report import provenance
from tauspan.core.results import Result
from tauspan.editing.model.directions import Coefficients, Groups, weighted_sum
from tauspan.editing.model.edit import apply
from tauspan.editing.model.edited import EditedModel
from tauspan.models import Encoder
from tauspan.vector import TaskVector


@dataclass(frozen=True, kw_only=True)
class ChosenEdit(Result):
    """An edit of an encoder with its coefficients, and what it was chosen for.

    Args:
        encoder: the pre-trained encoder.
        vectors: the task vectors by task name.
        regime: how they edit.
        point: where the tangent model is linearised.
        coefficients: by task name a number, or a number for each group of tensors.
        groups: the tensor names of each group; empty where coefficients are of whole vectors.
    """

    encoder: Encoder = field(repr=False, metadata=LIVE)
    vectors: Mapping[str, TaskVector] = field(repr=False, metadata=LIVE)
    regime: EditRegime
    point: Point
    coefficients: Coefficients
    groups: Groups = field(default_factory=dict, repr=False)

    @property
    def vector(self) -> TaskVector:
        """The chosen edit as one task vector, sum_t a_t tau_t."""
        return weighted_sum(self.vectors, self.coefficients, self.groups or None)

    def apply(self) -> nn.Module:
        """The edited encoder; see `tauspan.apply`."""
        return apply(self.encoder, self.vector, regime=self.regime, point=self.point)


def facts_of(model: EditedModel, vectors: Iterable[TaskVector], **more: Any) -> dict[str, Any]:
    """Where the numbers of a choice come from: base, vectors, seeds, versions."""
    listed = list(vectors)
    return provenance(
        base=model.encoder.source,
        fingerprint=model.fingerprint,
        vectors=[vector.label for vector in listed],
        seeds=sorted({vector.info["seed"] for vector in listed if "seed" in vector.info}),
        **more,
    )


def alpha_series(
    title: str, best: float, rows: Mapping[float, Mapping[str, float]], floor: float | None = None
) -> Sequence[dict[str, Any]]:
    """The curves over alpha of a search, for a figure; `floor` is the control accuracy that had to be kept."""
    points = [{"alpha": alpha, **rows[alpha]} for alpha in sorted(rows)]
    kept = {} if floor is None else {"floor": floor}
    return [{"kind": "alpha", "title": title, "best": best, "points": points, **kept}]
