"""Methods in the subspaces that the task matrices span: KnOTS and WUDI.

Both use a Gram matrix of the D_t = w_t tau_t, in float64: exact to working precision for float32 values, whose
singular values it resolves below their own rounding. Of float64 values it loses half the digits: singular values below
1e-7 of the largest, about, count as zero.
"""

import math
from typing import Any

import torch
from torch import Tensor

from tauspan.merge.methods.election import DENSITY, disjoint_mean, kept_ranks, trimmed
from tauspan.merge.methods.method import Block, Method, Option, Scope, added
from tauspan.merge.methods.spectral import MATRICES, deltas, eigen, is_matrix, matrix_sum, matrixwise, others
from tauspan.merge.methods.sums import SCALE, WEIGHT

# -- KnOTS -------------------------------------------------------------------------------------------------------


def _basis(block: Block) -> Tensor:
    """The left singular vectors of [D_1 .. D_T], shape (rows, R), R its rank."""
    gram = added(delta @ delta.mT for delta in map(Tensor.double, deltas(block)))
    longest = max(len(gram), block.values.numel() // len(gram))
    _, vectors = eigen(gram, block, longest)
    return vectors.to(block.values)


def _reach(scope: Scope) -> Tensor | None:
    """The smallest kept coordinate of each task in the whole model; None where each tensor has its own."""
    if scope.option("trim") == "tensor":
        return None

    def coordinates(block: Block) -> Tensor:
        keys = block.values.new_zeros(len(block.values), block.shape.numel())
        if is_matrix(block):
            basis = _basis(block)
            for key, delta in zip(keys, deltas(block), strict=True):
                found = (basis.mT @ delta).flatten()
                key[: len(found)] = found
        return keys

    def entries(block: Block) -> Tensor:
        count = _basis(block).shape[1] * block.shape[1:].numel() if is_matrix(block) else 0
        return torch.tensor(count, device=block.values.device)

    ranks = kept_ranks(scope.option("density"), int(scope.total(entries)))
    return scope.kth_largest(coordinates, ranks)


def knots(block: Block, reach: Tensor | None) -> Tensor:
    """Lambda U M: M the TIES merge of the coordinates C_t = U^T D_t, U s V^T the SVD of [D_1 .. D_T].

    Per task the largest coordinates are kept; of each coordinate the sign of the sum over tasks wins, and the mean of the
    kept ones with that sign is taken. A sum of exactly zero merges to zero.
    """
    return matrixwise(block, lambda block: _knots(block, reach))


def _knots(block: Block, reach: Tensor | None) -> Tensor:
    basis = _basis(block)
    smallest = _own_reach(block, basis) if reach is None else reach.to(block.values)
    columns = block.shape[1:].numel()
    width = -(-columns // len(block.models))  # of all tasks at once: as much as one task's matrix
    parts = []
    for start in range(0, columns, width):
        coordinates = torch.stack([basis.mT @ delta[:, start : start + width] for delta in deltas(block)])
        kept = trimmed(coordinates, smallest)
        parts.append(basis @ disjoint_mean(kept, kept.sum(0).sign()))
    return torch.cat(parts, 1)


def _own_reach(block: Block, basis: Tensor) -> Tensor:
    """The smallest kept coordinate of each task in this tensor."""
    count = basis.shape[1] * block.shape[1:].numel()
    reach = []
    for rank, delta in zip(kept_ranks(block.options["density"], count), deltas(block), strict=True):
        sizes = (basis.mT @ delta).abs().flatten()
        if 1 <= rank <= count:
            reach.append(sizes.kthvalue(count - rank + 1).values)
        else:  # none are kept, or all
            reach.append(sizes.new_tensor(math.inf if rank < 1 else 0.0))
    return torch.stack(reach)


# -- WUDI --------------------------------------------------------------------------------------------------------


def wudi(block: Block, _: Any) -> Tensor:
    """Lambda times the D that minimises sum_t |(D - D_t) D_t^T|^2 / |D_t|^2, in Frobenius norms.

    Its gradient is 2 (D G - R) with G = sum_t D_t^T D_t / |D_t|^2 and R = sum_t D_t D_t^T D_t / |D_t|^2.
    `solver="adam"` takes the authors' steps from sum_t D_t. `solver="exact"` is D = R G^+: of all minimisers the one of
    the least norm, and also the one nearest to sum_t D_t, because every D_t has its rows in the range of G. A task that
    did not move has no term.
    """
    return matrixwise(block, _wudi)


def _wudi(block: Block) -> Tensor:
    if block.options["solver"] == "exact":
        gram, right = _normal(block, torch.float64)
        values, vectors = eigen(gram, block, max(len(gram), block.values.numel() // len(gram)))
        return ((right @ vectors / values) @ vectors.mT).to(block.values)
    gram, right = _normal(block, block.values.dtype)
    merged = matrix_sum(block)
    optimiser = torch.optim.Adam([merged], lr=block.options["lr"])
    for _ in range(round(block.options["steps"])):
        merged.grad = 2 * (merged @ gram - right)
        optimiser.step()
    return merged.detach()


def _normal(block: Block, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """G of shape (columns, columns) and R of shape (rows, columns)."""
    columns = block.shape[1:].numel()
    gram = torch.zeros(columns, columns, dtype=dtype, device=block.values.device)
    right = torch.zeros(block.shape[0], columns, dtype=dtype, device=block.values.device)
    for delta in deltas(block):
        wide = delta.to(dtype)
        norm = wide.square().sum()
        if norm != 0:  # NaN is passed on, so that it is noticed
            own = wide.mT @ wide / norm
            gram += own
            right += wide @ own
    return gram, right


KNOTS = Method(
    "knots",
    "KnOTS: TIES in the basis of all vectors",
    "Stoica et al. 2025, arXiv:2410.19735",
    "lambda U ties(U^T w_1 tau_1 .. U^T w_T tau_T), of U s V^T = [w_1 tau_1 .. w_T tau_T]",
    knots,
    prepare=_reach,
    over="model",
    grain="tensor",
    options=(
        WEIGHT,
        SCALE,
        DENSITY,
        Option(
            "trim",
            "model",
            "the share is of the whole model (the authors'; up to five SVDs a tensor in place of one), or of each tensor",
            choices=("model", "tensor"),
        ),
        MATRICES,
        others("zero"),
    ),
    temporaries=56,  # eight models' coordinates; float64 eigenvectors of a tensor four times as high as it is wide
)
WUDI = Method(
    "wudi",
    "WUDI: least interference, data-free",
    "Cheng et al. 2025, arXiv:2503.08099",
    "lambda argmin_D sum_t |(D - w_t tau_t) (w_t tau_t)^T|^2 / |w_t tau_t|^2",
    wudi,
    grain="tensor",
    options=(
        WEIGHT,
        SCALE,
        Option("solver", "adam", "the authors' steps, or the minimum itself", choices=("adam", "exact")),
        Option("steps", 300, "of Adam", low=0),
        Option("lr", 1e-5, "of Adam: about how far an entry moves in a step", low=0.0),
        MATRICES,
        others("zero"),
    ),
    temporaries=48,  # float64 Gram and eigenvectors of a tensor four times as wide as it is high
)
