"""Methods on the singular values of each weight matrix: TSV-M, Iso-C, Iso-CTS and truncation.

All see D_t = w_t tau_t of one matrix of shape (m, n); r = min(m, n). They agree with the authors' code where all D_t have
full rank. Directions without a singular value (of adapters, or of tensors that did not move) are left out here; the
authors' code takes whatever basis of them LAPACK returns, and so its answer depends on the machine and the order of
tasks. The authors also average CLIP's `text_projection`: a filter on the option `matrices` does.
"""

from typing import Any

import torch
from torch import Tensor

from tauspan.core.errors import UsageError
from tauspan.merge.methods.matrices import (
    MATRICES,
    deltas,
    is_matrix,
    matrix_sum,
    matrixwise,
    others,
    polar,
    support,
    svd,
)
from tauspan.merge.methods.method import Block, Method, Option
from tauspan.merge.methods.scope import Spec
from tauspan.merge.methods.sums import SCALE, WEIGHT


def tsv_m(block: Block, _: Any) -> Tensor:
    """Lambda P(U) S P(V)^T: the first r/T singular triplets of every D_t side by side, made orthogonal by P."""
    return matrixwise(block, _tsv_m)


def _tsv_m(block: Block) -> Tensor:
    rank = min(block.shape[0], block.shape[1:].numel())
    share = max(rank // len(block.models), 1)  # the authors' 0 would lose a small matrix whole
    return _joined([_leading(delta, share, block.name) for delta in deltas(block)], block.name)


def iso_c(block: Block, _: Any) -> Tensor:
    """Lambda mean(s) U V^T of sum_t D_t: a flat spectrum with the same nuclear norm."""
    return matrixwise(block, _iso_c)


def _iso_c(block: Block) -> Tensor:
    matrix = matrix_sum(block)
    u, s, vt = _leading(matrix, min(matrix.shape), block.name)
    return (u * _mean(s)) @ vt


def iso_cts(block: Block, _: Any) -> Tensor:
    """Lambda mean(s) P(U) P(V)^T: the leading directions of the sum, and per task the leading ones outside them."""
    return matrixwise(block, _iso_cts)


def _iso_cts(block: Block) -> Tensor:
    matrix = matrix_sum(block)
    rank, tasks = min(matrix.shape), len(block.models)
    own = round((rank - int(rank * block.options["common"])) / tasks)
    own = min(own, rank // tasks)  # rounding up must not take more than there is
    common = _leading(matrix, rank - tasks * own, block.name)
    parts = []
    for delta in deltas(block):
        outside = torch.addmm(delta, common[0], common[0].mT @ delta, alpha=-1)
        rounding = 10 * torch.linalg.matrix_norm(delta)  # what is left of a delta inside the common subspace
        parts.append(_leading(outside, own, block.name, rounding))
    u, s, vt = zip(*parts, common, strict=True)
    flat = _mean(torch.cat(s)).expand(sum(len(one) for one in s))
    return _joined([(torch.cat(u, 1), flat, torch.cat(vt))], block.name)


def truncated_svd(block: Block, _: Any) -> Tensor:
    """Lambda times the nearest matrix to sum_t D_t of the stated rank, or of the least rank within the stated error."""
    return matrixwise(block, _truncated)


def _truncated(block: Block) -> Tensor:
    rank, error = block.options["rank"], block.options["error"]
    matrix = matrix_sum(block)
    u, s, vt = svd(matrix, block.name)
    kept = kept_rank(s, rank, error)
    return matrix if kept == len(s) else (u[:, :kept] * s[:kept]) @ vt[:kept]


def _require_rank_or_error(spec: Spec, _: tuple[str, ...]) -> None:
    if is_matrix(spec) and spec.options["rank"] is None and spec.options["error"] is None:
        raise UsageError(
            f"the method 'svd' has neither 'rank' nor 'error' for {spec.name!r}: give the rank to keep, or the relative "
            "error to allow."
        )


def kept_rank(s: Tensor, rank: float | None = None, error: float | None = None) -> int:
    """How many singular values to keep, largest first.

    Args:
        s: singular values, shape (r,), falling.
        rank: at most so many, rounded to a whole number.
        error: as few as leave out at most this share of the Frobenius norm: sqrt(sum of dropped s_i^2 / sum of s_i^2).

    Example:
        >>> kept_rank(torch.tensor([4.0, 3.0, 0.0]), error=0.7), kept_rank(torch.tensor([4.0, 3.0, 0.0]), error=0.5)
        (1, 2)
    """
    kept = len(s) if rank is None else min(len(s), round(rank))
    if error is None:
        return kept
    tails = s.double().square().flip(0).cumsum(0).flip(0)  # tails[k]: what is left out when k are kept
    return min(kept, int((tails > error**2 * tails[:1]).sum()))


def _leading(
    matrix: Tensor, count: int, name: str, scale: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The first `count` singular triplets, or as many as there are; copies, so that the rest is freed."""
    u, s, vt = svd(matrix, name)
    count = min(count, support(s, max(matrix.shape), scale))
    return u[:, :count].clone(), s[:count].clone(), vt[:count].clone()


def _joined(parts: list[tuple[Tensor, Tensor, Tensor]], name: str) -> Tensor:
    """P(U) S P(V)^T of triplets side by side, P the nearest partial isometry."""
    u, s, vt = zip(*parts, strict=True)
    left = polar(torch.cat(u, 1), name) * torch.cat(s)
    return left @ polar(torch.cat(vt), name)


def _mean(s: Tensor) -> Tensor:
    return s.sum() / max(len(s), 1)


TSV_M = Method(
    "tsv_m",
    "Task singular vectors, merged",
    "Gargiulo et al. 2025, arXiv:2412.00081",
    "lambda P([U_1 .. U_T]) S P([V_1 .. V_T])^T, of each w_t tau_t its first r/T singular triplets",
    tsv_m,
    grain="tensor",
    options=(WEIGHT, SCALE, MATRICES, others("average")),
    temporaries=14,
)
ISO_C = Method(
    "iso_c",
    "Isotropic merging in the common subspace",
    "Marczak et al. 2025, arXiv:2502.04959",
    "lambda mean(s) U V^T, of U s V^T = sum_t w_t tau_t",
    iso_c,
    grain="tensor",
    options=(WEIGHT, SCALE, MATRICES, others("average")),
    temporaries=10,
)
ISO_CTS = Method(
    "iso_cts",
    "Isotropic merging in common and task-specific subspaces",
    "Marczak et al. 2025, arXiv:2502.04959",
    "lambda mean(s) P([U_1 .. U_T U_c]) P([V_1 .. V_T V_c])^T, c of the sum and t of w_t tau_t outside U_c",
    iso_cts,
    grain="tensor",
    options=(
        WEIGHT,
        SCALE,
        Option("common", 0.8, "share of the directions that the sum gives", low=0.0, high=1.0),
        MATRICES,
        others("average"),
    ),
    temporaries=24,
)
SVD = Method(
    "svd",
    "Truncated singular value decomposition",
    "Eckart and Young 1936, doi:10.1007/BF02288367",
    "lambda times the first k singular triplets of sum_t w_t tau_t",
    truncated_svd,
    require=_require_rank_or_error,
    grain="tensor",
    options=(
        WEIGHT,
        SCALE,
        Option("rank", None, "how many directions to keep at most, at least 1", low=1),
        Option("error", None, "share of each matrix's Frobenius norm that may be lost", low=0.0, high=1.0),
        MATRICES,
        others("sum"),
    ),
    temporaries=10,
)
