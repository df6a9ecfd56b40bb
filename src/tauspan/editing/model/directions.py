"""Directions of weight space with a coefficient each: whole task vectors, or their parts by layer group."""

import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from tauspan import models
from tauspan.core.arguments import checked
from tauspan.core.errors import UsageError, listed, nearest
from tauspan.tasks import Task
from tauspan.vector import TaskVector

WHOLE = "all"
Groups = Mapping[str, Sequence[str]]
Coefficients = Mapping[str, float | Mapping[str, float]]


@dataclass(frozen=True)
class Directions:
    """Task vectors by name, cut by the same groups of tensors; a direction is one group of one vector.

    Args:
        vectors: by name, over the same tensors of one base.
        groups: tensor names by group; they cover all tensors, each once. One group is the whole vector.
    """

    vectors: Mapping[str, TaskVector]
    groups: Groups

    @staticmethod
    def whole(vectors: Mapping[str, TaskVector]) -> "Directions":
        """One direction for each vector; none of no vectors."""
        first = next(iter(vectors.values()), None)
        return Directions(vectors, {WHOLE: () if first is None else tuple(first.deltas)})

    def __post_init__(self) -> None:
        vectors = list(self.vectors.values())
        for other in vectors[1:]:
            vectors[0].require_compatible(other)

    @property
    def names(self) -> tuple[str, ...]:
        """The directions as `VECTOR/GROUP`, or `VECTOR` where there is one group."""
        return tuple(name for vector in self.vectors for name in self.of(vector))

    def of(self, vector: str) -> tuple[str, ...]:
        """The directions that make up one vector."""
        return tuple(vector if len(self.groups) == 1 else f"{vector}/{group}" for group in self.groups)

    def nested(self, values: Mapping[str, float]) -> dict[str, Any]:
        """Coefficients by direction as coefficients by vector, and by group inside it where there are several."""
        if len(self.groups) == 1:
            return {vector: values[vector] for vector in self.vectors}
        return {
            vector: {group: values[name] for group, name in zip(self.groups, self.of(vector), strict=True)}
            for vector in self.vectors
        }

    def partial(self, name: str) -> TaskVector:
        """One direction as a vector: its tensors, and zeros (without memory of their own) elsewhere."""
        vector = next(vector for vector in self.vectors if name in self.of(vector))
        group = list(self.groups)[self.of(vector).index(name)]
        whole, kept = self.vectors[vector], set(self.groups[group])
        deltas = {
            key: delta if key in kept else torch.zeros((), dtype=delta.dtype).expand(delta.shape)
            for key, delta in whole.deltas.items()
        }
        return replace(whole, deltas=deltas, label=name)

    def combined(self, values: Mapping[str, float], label: str = "combination") -> TaskVector:
        """The sum over directions of coefficient times direction; what `values` leaves out counts as 0."""
        place = {key: index for index, group in enumerate(self.groups.values()) for key in group}
        used = [name for name in self.vectors if any(values.get(part) for part in self.of(name))]
        scaled = []
        for name in used or list(self.vectors)[:1]:
            scales = [values.get(part, 0.0) for part in self.of(name)]
            deltas = {key: delta * scales[place[key]] for key, delta in self.vectors[name].deltas.items()}
            scaled.append(replace(self.vectors[name], deltas=deltas))
        return sum(scaled[1:], scaled[0]).named(label)


def require_numbers(coefficients: Mapping[str, float]) -> None:
    """Raise unless every coefficient is a finite number.

    Raises:
        UsageError: one is NaN or infinite, or no number.
    """
    for name, value in coefficients.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise UsageError(f"the coefficient of {name!r} is {value!r}: a finite number is wanted.")


@checked
def combine(
    vectors: Mapping[Task, TaskVector], coefficients: Coefficients, groups: Groups | None = None
) -> TaskVector:
    """The task vector at chosen coefficients, sum_t a_t tau_t, to be saved or applied like any other.

    Args:
        vectors: one vector per task.
        coefficients: by task name, a number or, for layer groups, numbers by group; such as the `coefficients` of
            the result of `tauspan.coefficients`.
        groups: tensor names by group, where coefficients are per group.

    Raises:
        UsageError: a task has no coefficient, or the groups do not fit.

    Example:
        >>> from tauspan.tasks import Split
        >>> rows = {split: Split([0], torch.tensor([0])) for split in ("train", "validation", "test")}
        >>> tau = TaskVector({"w": torch.ones(2)}, base="b", regime="linear")
        >>> combine({Task("t", ["x"], rows): tau}, {"t": 0.5}).deltas["w"]
        tensor([0.5000, 0.5000])
    """
    return weighted_sum({task.name: vector for task, vector in vectors.items()}, coefficients, groups)


def weighted_sum(
    vectors: Mapping[str, TaskVector], coefficients: Coefficients, groups: Groups | None = None
) -> TaskVector:
    """`combine` of vectors by name."""
    if not vectors or set(vectors) != set(coefficients):
        raise UsageError(
            f"coefficients of {listed(coefficients)} for the vectors of {listed(vectors)}: each task needs one."
        )
    directions = Directions(vectors, groups) if groups else Directions.whole(vectors)
    values: dict[str, float] = {}
    for name, given in coefficients.items():
        parts = given if isinstance(given, Mapping) else dict.fromkeys(directions.groups, given)
        if set(parts) != set(directions.groups):
            raise UsageError(
                f"the coefficients of {name!r} are for the groups {listed(parts)}, and the vector is cut into "
                f"{listed(directions.groups)}. Pass `groups=result.groups`."
            )
        values |= {
            direction: parts[group]
            for direction, group in zip(directions.of(name), directions.groups, strict=True)
        }
    require_numbers(values)
    total = directions.combined(values, "combination")
    return replace(total, info={**total.info, "coefficients": coefficients})


def layer_groups(module: nn.Module, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The names of a module's tensors in files by layer: each block of its longest stack, and what lies beside it.

    Names outside the stack are grouped by their path up to where it leaves the stack's own path
    (`embeddings`, `pooler`).

    Example:
        >>> layer_groups(nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)), ["0.weight", "0.bias", "1.weight"])
        {'0': ('0.weight', '0.bias'), '1': ('1.weight',)}
    """
    inner, _ = models.core(module)
    inside = models.names_of(module).memory_of(names)
    try:
        stack = models.blocks(inner, list(inside.values()))[0].split(".")[:-1]
    except UsageError:  # no blocks: one group a layer
        stack = []
    groups: dict[str, tuple[str, ...]] = {}
    for name in names:
        path = inside[name].split(".")[:-1]
        shared = next((i for i, part in enumerate(stack) if path[i : i + 1] != [part]), len(stack))
        group = ".".join(path[: shared + 1]) or name
        groups[group] = (*groups.get(group, ()), name)
    return groups


def chosen_groups(
    groups: Mapping[str, str | Sequence[str]], names: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """Groups given by patterns of tensor names; what no pattern names is the group `rest`.

    Raises:
        UsageError: a pattern that matches nothing, or a tensor in two groups.
    """
    found: dict[str, tuple[str, ...]] = {}
    taken: dict[str, str] = {}
    for group, given in groups.items():
        for pattern in [given] if isinstance(given, str) else given:
            matched = fnmatch.filter(names, pattern)
            if not matched:
                raise UsageError(f"group {group!r}: no tensor matches {pattern!r}. {nearest(pattern, names)}")
            for name in matched:
                if taken.setdefault(name, group) != group:
                    raise UsageError(
                        f"tensor {name!r} is in the groups {taken[name]!r} and {group!r}; choose one."
                    )
        found[group] = tuple(name for name in names if taken.get(name) == group)
    rest = tuple(name for name in names if name not in taken)
    return {**found, "rest": rest} if rest else found
