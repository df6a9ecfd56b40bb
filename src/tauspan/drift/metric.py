"""Merging in the metric of the function: a rule sees what a matrix does to the outputs, not its entries."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tauspan.core.arguments import checked
from tauspan.core.errors import BaseMismatchError, UsageError
from tauspan.drift.blocks import Kronecker
from tauspan.drift.factors import Factors, viewed
from tauspan.kernel.rows.pieces import PART
from tauspan.merge import merge
from tauspan.models import Encoder, fingerprint_of, names_of
from tauspan.vector import TaskVector

_Pair = tuple[Tensor, Tensor]


@checked
def merge_in_metric(
    encoder: Encoder,
    vectors: Sequence[TaskVector],
    factors: Factors,
    method: str = "iso_c",
    options: Mapping[str, Any] = {},
    *,
    damping: float = 1e-2,
    seed: int = 0,
) -> TaskVector:
    """Merge vectors by a rule that is applied to B^(1/2) dW A^(1/2) in the place of dW, and mapped back.

    A and B are the Kronecker factors of a layer, so |B^(1/2) dW A^(1/2)|^2 is about how far dW moves the outputs, and
    singular vectors of it are directions of the function. Isotropic merging then flattens what the update does, not
    its entries. Tensors without Kronecker factors are merged as they are. A rule that is linear in the vectors gives
    what it gives without factors.

    Args:
        encoder: the pre-trained encoder.
        vectors: to be merged; all move the same tensors.
        factors: of the rows that matter, such as `merged` ones of all tasks; of kind `expand` or `reduce`.
        method: a name of `tauspan.METHODS`.
        options: of the method.
        damping: what is added to A and B, relative to their mean eigenvalue; large, the metric is Euclidean.
        seed: of random methods.

    Raises:
        UsageError: no Kronecker factors, or a damping that is not above 0.
        BaseMismatchError: factors of another model.

    Cost:
        Two eigenvalue problems for each layer, four products for each matrix and vector, and the method.

    Example:
        >>> import torch, tauspan as ts
        >>> from tauspan.drift import factors, merge_in_metric
        >>> x, y = torch.eye(4).repeat(4, 1), torch.arange(4).repeat(4) % 2
        >>> task = ts.Task.from_tensors("parity", ["even", "odd"], train=(x, y), validation=(x, y), test=(x, y))
        >>> encoder = ts.load(torch.nn.Linear(4, 3))
        >>> tau = ts.closed_form(encoder, task, ridge=1.0).vector
        >>> merge_in_metric(encoder, [tau, 2 * tau], factors(encoder, task)).regime
        'linear'
    """
    if not 0 < damping < float("inf"):
        raise UsageError(f"damping={damping}: it must be above 0.")
    base = fingerprint_of(encoder)
    if factors.base != base:
        raise BaseMismatchError(
            f"{factors!r} are of the model {factors.base[:12]}, and the vectors of {base[:12]}."
        )
    blocks = {name: block for name, block in factors.blocks.items() if isinstance(block, Kronecker)}
    if not blocks:
        raise UsageError(f"{factors!r} has no Kronecker factors: those of kind 'expand' and 'reduce' have.")
    roots = {
        name: (_root(block.outputs, damping), _root(block.inputs, damping)) for name, block in blocks.items()
    }
    inside = [_mapped(one.fitted(encoder, tangent=True), {n: (b[0], a[0]) for n, (b, a) in roots.items()})
              for one in vectors]  # fmt: skip
    found = _mapped(
        merge(inside, method, options, seed=seed), {n: (b[1], a[1]) for n, (b, a) in roots.items()}
    )
    stored = names_of(encoder).to_files({name: delta.float() for name, delta in found.deltas.items()})
    return replace(found, deltas=stored, label=f"{method} in the metric")


def _root(matrix: Tensor, damping: float) -> _Pair:
    """The roots of M and of its inverse, M scaled to a mean eigenvalue of 1 and damped."""
    values, vectors = torch.linalg.eigh(matrix.double())
    mean = float(values.mean())
    values = (values.clamp(min=0) / mean if mean > 0 else torch.zeros_like(values)) + damping
    return (vectors * values.sqrt()) @ vectors.T, (vectors / values.sqrt()) @ vectors.T


def _mapped(vector: TaskVector, roots: Mapping[str, _Pair]) -> TaskVector:
    """The vector with each matrix M in the place of L M R."""
    deltas = {name: delta.double().contiguous().clone() for name, delta in vector.deltas.items()}
    for name, (left, right) in roots.items():
        owner = name.partition(PART)[0]
        if owner not in deltas:
            continue
        view = viewed(name, deltas[owner])
        matrix = view.reshape(len(left), len(right))
        view.copy_((left @ matrix @ right).view_as(view))
    return replace(vector, deltas=deltas)
