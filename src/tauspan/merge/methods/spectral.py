"""Methods that read a displacement as a matrix and work on its singular values: TSV-M, Iso-C, Iso-CTS and truncation.

All use D_t = w_t tau_t of one matrix of shape (m, n); r = min(m, n). They agree with the authors' code where all D_t have
full rank. Directions without a singular value (of adapters, or of tensors that did not move) are left out here; the
authors' code takes whatever basis of them LAPACK returns, and so its answer depends on the machine and the order of
tasks. The authors also average CLIP's `text_projection`: a filter on the option `matrices` does.
"""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

from tauspan.core.errors import NonFiniteError, UsageError
from tauspan.merge.methods.method import Block, Method, Option, Spec, added
from tauspan.merge.methods.sketch import sketched
from tauspan.merge.methods.sums import SCALE, WEIGHT

Factors = TypeVar("Factors", bound=tuple[Tensor, ...])

LOSS = Option(
    "loss",
    0.0,
    "0 decomposes each matrix whole; above it the leading directions come from a randomised sketch where it is certified "
    "that they lack at most this share of the squared norm of the best ones",
    low=0.0,
    high=0.5,
)
MATRICES = Option(
    "matrices",
    "2d",
    "tensors that are matrices: all of two dimensions; those inside numbered layers; with more dimensions too, "
    "as (shape[0], rest); none",
    choices=("2d", "layers", "flattened", "none"),
)


def others(default: str) -> Option:
    """The option for tensors that are no matrices, with the authors' default."""
    return Option(
        "others",
        default,
        "of tensors that are no matrices: the mean or sum of w_t tau_t, or zero, which leaves them at the base",
        choices=("average", "sum", "zero"),
    )


def matrixwise(block: Block, rule: Callable[[Block], Tensor]) -> Tensor:
    """Lambda times `rule(block)`, shape (rows, columns), for a matrix; what `others` says for any other tensor."""
    if is_matrix(block):
        merged = rule(block).reshape(block.shape)
    elif block.options["others"] == "zero":
        merged = torch.zeros_like(block.values[0])
    else:
        merged = total(block)
        merged = merged / len(block.models) if block.options["others"] == "average" else merged
    scale: float = block.options["scale"]
    return scale * merged


def is_matrix(of: Block | Spec) -> bool:
    """Whether the option `matrices` takes this tensor."""
    kind, dimensions = of.options["matrices"], len(of.shape)
    if kind == "flattened":
        return dimensions >= 2
    return dimensions == 2 and (kind == "2d" or (kind == "layers" and of.depth is not None))


def deltas(block: Block) -> Iterator[Tensor]:
    """D_t = w_t tau_t, one after the other, shape (rows, columns) each: never T copies at once."""
    for value, weight in zip(block.values, block.options["weight"], strict=True):
        matrix = value.reshape(block.shape[0], -1)
        yield matrix if weight == 1 else weight * matrix


def total(block: Block) -> Tensor:
    """The sum of w_t tau_t, in the tensor's own shape."""
    return added(weight * value for weight, value in zip(block.options["weight"], block.values, strict=True))


def matrix_sum(block: Block) -> Tensor:
    """The sum of all D_t, shape (rows, columns)."""
    return total(block).reshape(block.shape[0], -1)


def svd(matrix: Tensor, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """The thin SVD, U of shape (m, r), s (r,), V^T (r, n) with r = min(m, n).

    A wide matrix goes through its transpose: LAPACK takes 0.6 of the time there.

    Raises:
        NonFiniteError: it does not converge, which NaN and infinity bring about; the message has the name.
    """
    if matrix.shape[0] < matrix.shape[1]:
        v, s, ut = _converged(_thin, matrix.mT, name)
        return ut.mT, s, v.mT
    u, s, vt = _converged(_thin, matrix, name)
    return u, s, vt


def _thin(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    return u, s, vt


def _converged(decompose: Callable[[Tensor], Factors], matrix: Tensor, name: str) -> Factors:
    try:
        return decompose(matrix)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise NonFiniteError(
            f"the spectrum of {name!r} does not converge: {error} Look for NaN, infinity or numbers near the limit of "
            f"{matrix.dtype} in this tensor, and for large weights."
        ) from error


def support(s: Tensor, longest: int, scale: Tensor | None = None) -> int:
    """How many singular values, largest first, are above rounding: s_i > eps sqrt(longest) s_1.

    The customary threshold eps longest s_1 would drop directions that deltas of wide float32 layers do have.

    Args:
        s: singular values, shape (r,), falling.
        longest: the matrix's longer side.
        scale: in place of s_1, for what is left of a larger matrix.
    """
    if not s.numel():
        return 0
    largest = s[0] if scale is None else scale
    return int((s > torch.finfo(s.dtype).eps * longest**0.5 * largest).sum())


def polar(matrix: Tensor, name: str) -> Tensor:
    """The partial isometry U V^T of the SVD of singular vectors side by side: the nearest one to them.

    Vectors that are parallel up to rounding share one direction: singular values below eps^(2/3) of the largest count
    as zero, because the vectors themselves are less exact than eps. Null directions remain zero, because an arbitrary
    basis of them would depend on LAPACK and on the order of tasks.
    """
    u, s, vt = svd(matrix, name)
    rank = int((s > torch.finfo(s.dtype).eps ** (2 / 3) * s[:1]).sum())
    return u[:, :rank] @ vt[:rank]


def eigen(gram: Tensor, block: Block, longest: int) -> tuple[Tensor, Tensor]:
    """The eigenpairs of a float64 Gram matrix that are above rounding: values (k,), vectors (n, k).

    Args:
        gram: of matrices of the block's dtype, shape (n, n).
        block: its tensor, for the dtype and the name.
        longest: the longer side of what the Gram matrix is of.

    Raises:
        NonFiniteError: it does not converge; the message has the name.
    """
    values, vectors = _converged(torch.linalg.eigh, gram, block.name)
    rounding = max(torch.finfo(block.values.dtype).eps ** 2, torch.finfo(gram.dtype).eps) * longest
    kept = values > rounding * values[-1:]
    return values[kept], vectors[:, kept]


def tsv_m(block: Block, _: Any) -> Tensor:
    """Lambda P(U) S P(V)^T: the first r/T singular triplets of every D_t side by side, made orthogonal by P."""
    return matrixwise(block, _tsv_m)


def _tsv_m(block: Block) -> Tensor:
    rank = min(block.shape[0], block.shape[1:].numel())
    share = max(rank // len(block.models), 1)  # with the authors' 0 a small matrix would be lost
    loss: float = block.options["loss"]
    parts = [_leading(delta, share, block.name, loss=loss) for delta in deltas(block)]
    return _joined(parts, block.name)


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
    loss: float = block.options["loss"]
    common = _leading(matrix, rank - tasks * own, block.name, loss=loss)
    parts = []
    for delta in deltas(block):
        outside = torch.addmm(delta, common[0], common[0].mT @ delta, alpha=-1)
        rounding = 10 * torch.linalg.matrix_norm(delta)  # what is left of a delta inside the common subspace
        parts.append(_leading(outside, own, block.name, rounding, loss))
    u, s, vt = zip(*parts, common, strict=True)
    flat = _mean(torch.cat(s)).expand(sum(len(one) for one in s))
    return _joined([(torch.cat(u, 1), flat, torch.cat(vt))], block.name)


def truncated_svd(block: Block, _: Any) -> Tensor:
    """Lambda times the nearest matrix to sum_t D_t of the stated rank, or of the least rank within the stated error."""
    return matrixwise(block, _truncated)


def _truncated(block: Block) -> Tensor:
    rank, error = block.options["rank"], block.options["error"]
    matrix = matrix_sum(block)
    if rank is not None and error is None and block.options["loss"]:
        found = sketched(matrix, min(round(rank), *matrix.shape), block.options["loss"])
        if found is not None:
            return (found[0] * found[1]) @ found[2]
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
    matrix: Tensor, count: int, name: str, scale: Tensor | None = None, loss: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """The first `count` singular triplets, or as many as there are; copies, so that the rest is freed."""
    found = sketched(matrix, count, loss) if loss else None
    u, s, vt = svd(matrix, name) if found is None else found
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
    options=(WEIGHT, SCALE, LOSS, MATRICES, others("average")),
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
        LOSS,
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
        LOSS,
        MATRICES,
        others("sum"),
    ),
    temporaries=10,
)
