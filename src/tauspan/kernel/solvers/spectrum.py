"""The Cholesky factor of a kernel matrix, with errors that say what is wrong."""

import math

import torch
from torch import Tensor

from tauspan.core.errors import NonFiniteError, UsageError


def factor(matrix: Tensor, ridge: float) -> Tensor:
    """The Cholesky factor L of K + ridge I.

    Raises:
        UsageError: a negative ridge, or a matrix singular to working precision.
        NonFiniteError: NaN in the matrix.
    """
    if not (ridge >= 0 and math.isfinite(ridge)):
        raise UsageError(f"ridge={ridge}: it must be a finite number, at least 0.")
    if not bool(torch.isfinite(matrix).all()):
        raise NonFiniteError("the kernel holds NaN or infinity: check the model's weights and the data.")
    moved = matrix.clone()
    moved.diagonal().add_(ridge)
    factored = torch.linalg.cholesky_ex(moved)
    lower: Tensor = factored.L
    failed = int(factored.info)
    scale = float(matrix.diagonal().max())
    least = float(lower.diagonal().square().min()) if not failed else 0.0
    if failed or least <= len(matrix) * torch.finfo(matrix.dtype).eps * scale:
        raise UsageError(
            f"the kernel of {len(matrix)} rows and ridge={ridge:g} is singular to working precision: a row is there "
            f"twice, or there are more rows than parameters. Give a ridge, say {1e-6 * scale:.1g} (1e-6 of the largest "
            "diagonal entry)."
        )
    return lower
