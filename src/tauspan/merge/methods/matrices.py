"""What the methods on matrices share: which tensors are matrices, their SVD, and the polar factor."""

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from tauspan.core.errors import NonFiniteError
from tauspan.merge.methods.addition import added
from tauspan.merge.methods.method import Block, Option
from tauspan.merge.methods.scope import Spec

Factors = TypeVar("Factors", bound=tuple[Tensor, ...])

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
    """How many singular values, largest first, stand above rounding: s_i > eps sqrt(longest) s_1.

    The customary eps longest s_1 would drop directions that deltas of wide float32 layers do have.

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

    Vectors that say the same share one direction: singular values below eps^(2/3) of the largest count as zero, because
    the vectors themselves are less exact than eps. Null directions stay null, where an arbitrary basis of them would
    depend on LAPACK and on the order of tasks.
    """
    u, s, vt = svd(matrix, name)
    rank = int((s > torch.finfo(s.dtype).eps ** (2 / 3) * s[:1]).sum())
    return u[:, :rank] @ vt[:rank]


def eigen(gram: Tensor, block: Block, longest: int) -> tuple[Tensor, Tensor]:
    """The eigenpairs of a float64 Gram matrix that stand above rounding: values (k,), vectors (n, k).

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
