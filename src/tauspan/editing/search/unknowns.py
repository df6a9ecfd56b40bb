"""`Unknowns`: which coefficients are chosen, and what each of them scales."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from tauspan.core.errors import UsageError, nearest
from tauspan.editing.model.directions import Directions, Groups, chosen_groups, layer_groups
from tauspan.models import Encoder
from tauspan.tangent.contributions import Contributions
from tauspan.vector import TaskVector

Per = Literal["shared", "task", "layer"]
SHARED = "shared"
PERS: tuple[Per, ...] = ("shared", "task", "layer")
GroupPatterns = Mapping[str, str | Sequence[str]]


@dataclass(frozen=True)
class Unknowns:
    """The coefficients to be chosen, and the directions that each of them scales.

    Args:
        directions: what they scale.
        scales: the directions of each coefficient.
        sign: -1 where vectors are subtracted.
    """

    directions: Directions
    scales: Groups
    sign: float = 1.0

    @property
    def names(self) -> tuple[str, ...]:
        """The coefficients, in the order of their values."""
        return tuple(self.scales)

    def at(self, values: Iterable[float]) -> dict[str, float]:
        """Coefficients of all directions from the values of the unknowns."""
        pairs = zip(self.scales.values(), values, strict=True)
        # 0.0 is added, so that no coefficient is -0.0
        return {direction: self.sign * float(value) + 0.0 for scaled, value in pairs for direction in scaled}

    def of(self, part: Contributions) -> Contributions:
        """Contributions with one direction for each coefficient."""
        summed = part.summed(self.scales)
        return summed if self.sign == 1 else replace(summed, tangents=self.sign * summed.tangents)


def unknowns(
    encoder: Encoder,
    vectors: Mapping[str, TaskVector],
    per: Per,
    groups: GroupPatterns | None = None,
    sign: float = 1.0,
) -> Unknowns:
    """One coefficient for all vectors, one for each, or one for each layer group of each.

    Raises:
        UsageError: an unknown `per`, or groups where none are used.
    """
    if per not in PERS:
        raise UsageError(f"per={per!r}. {nearest(str(per), PERS)}")
    if groups is not None and per != "layer":
        raise UsageError(f"groups belong to per='layer', and per is {per!r}.")
    names = list(next(iter(vectors.values())).deltas)
    directions = Directions.whole(vectors)
    if per == "layer":
        cut = layer_groups(encoder, names) if groups is None else chosen_groups(groups, names)
        directions = Directions(vectors, cut)
    if per == "shared":
        return Unknowns(directions, {SHARED: directions.names}, sign)
    return Unknowns(directions, {name: (name,) for name in directions.names}, sign)
