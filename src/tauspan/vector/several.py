"""Functions of several task vectors."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from tauspan import models
from tauspan.core.arguments import checked
from tauspan.vector.task_vector import TaskVector

Key = TypeVar("Key")


def fitted(
    vectors: Mapping[Key, TaskVector], module: nn.Module, *, tangent: bool = False
) -> dict[Key, TaskVector]:
    """`TaskVector.fitted` of several vectors; the module's fingerprint is computed once."""
    base = models.fingerprint_of(module)
    return {key: vector.fitted(module, tangent=tangent, base=base) for key, vector in vectors.items()}


def confined(encoder: models.Encoder, vectors: Iterable[TaskVector]) -> models.Encoder:
    """The encoder in the space of the vectors, if all live in one and it is in none; else the encoder itself.

    Small vectors then stay small, and their tangents cost as little.
    """
    spaces = {None if vector.space is None else vector.space.key: vector.space for vector in vectors}
    space = next(iter(spaces.values()), None)
    if len(spaces) != 1 or space is None or encoder.space is not None:
        return encoder
    return models.restrict(encoder, space)


def meeting(vectors: Mapping[Key, TaskVector], encoder: models.Encoder) -> dict[Key, TaskVector]:
    """The vectors as they are added: whole, with the same tensors, where they live in several spaces of the encoder.

    A tensor that one space moves and another does not has a displacement of 0 there. Vectors of one space, or of
    none, are returned as they are.
    """
    spaces = {None if vector.space is None else vector.space.key for vector in vectors.values()}
    if len(spaces) < 2 or encoder.space is not None:
        return dict(vectors)
    whole = {key: vector.dense(encoder) for key, vector in vectors.items()}
    zeros = {name: torch.zeros_like(delta) for one in whole.values() for name, delta in one.deltas.items()}
    return {
        key: replace(one, deltas={**zeros, **one.deltas}) if vectors[key].space else one
        for key, one in whole.items()
    }


@checked
def cosine_matrix(vectors: Sequence[TaskVector]) -> Tensor:
    """Cosines <tau_i, tau_j> / (|tau_i| |tau_j|), shape (T, T); 0 where a vector is zero.

    Example:
        >>> a = TaskVector({"w": torch.tensor([1.0, 0.0])}, "b", "standard")
        >>> b = TaskVector({"w": torch.tensor([1.0, 1.0])}, "b", "standard")
        >>> cosine_matrix([a, b])[0, 1].item()  # doctest: +ELLIPSIS
        0.707...
    """
    norms = [vector.norm() for vector in vectors]
    matrix = torch.zeros(len(vectors), len(vectors), dtype=torch.float64)
    for i, first in enumerate(vectors):
        for j, second in enumerate(vectors[: i + 1]):
            scale = norms[i] * norms[j]
            matrix[i, j] = matrix[j, i] = first.dot(second) / scale if scale else 0.0
    return matrix
