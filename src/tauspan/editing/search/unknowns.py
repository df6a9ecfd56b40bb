"""`Unknowns`: which coefficients are chosen, and what each of them scales."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tauspan.core.errors import UsageError, nearest
from tauspan.editing.search.directions import Directions, Groups, chosen_groups, layer_groups
from tauspan.models import Encoder
from tauspan.vector import TaskVector

Per = Literal["shared", "task", "layer"]
SHARED = "shared"
PERS: tuple[Per, ...] = ("shared", "task", "layer")
GroupPatterns = Mapping[str, str | Sequence[str]]


@dataclass(frozen=True)
class Unknowns:
    """The coefficients to be chosen, and the directions that each of them scales."""

    directions: Directions
    scales: Groups

    @property
    def names(self) -> tuple[str, ...]:
        """The coefficients, in the order of their values."""
        return tuple(self.scales)

    def at(self, values: Iterable[float]) -> dict[str, float]:
        """Coefficients of all directions from the values of the unknowns."""
        pairs = zip(self.scales.values(), values, strict=True)
        return {direction: float(value) for scaled, value in pairs for direction in scaled}


def unknowns(
    encoder: Encoder, vectors: Mapping[str, TaskVector], per: Per, groups: GroupPatterns | None
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
        return Unknowns(directions, {SHARED: directions.names})
    return Unknowns(directions, {name: (name,) for name in directions.names})
