"""Starts of low rank: a module whose matrices keep their leading singular values alone, and one of their norms."""

from collections.abc import Sequence
from typing import Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from tauspan import models
from tauspan.core.arguments import checked
from tauspan.core.errors import UsageError, nearest
from tauspan.kernel.diagnose.ranks import flat, matrices_of
from tauspan.models import Classifier, Encoder

Keep = Literal["frobenius", "spectral"]
AnyModule = TypeVar("AnyModule", bound=nn.Module)


@checked
def low_rank_start(
    module: AnyModule, rank: int, params: str | Sequence[str] = "all", keep: Keep = "frobenius"
) -> AnyModule:
    """A copy of a module whose matrices W = U S V^T are replaced by c U_r S_r V_r^T, of rank r and of the same norm.

    The start of Liu and others (ICLR 2024), who keep the Frobenius norm: c = |S| / |S_r|. That makes the spectral norm
    larger by c, which alone can change how a net learns; `keep="spectral"` is the control, with c = 1.

    Args:
        module: a plain module, an `Encoder` or a `Classifier`; it is not changed.
        rank: r; a matrix of a smaller rank stays as it is.
        params: which parameters, as for `linearize`; vectors among them stay as they are.
        keep: the norm that stays: `"frobenius"` or `"spectral"`.

    Raises:
        UsageError: a rank below 1, an unknown norm, no matrix among the parameters.
        NonFiniteError: NaN or infinity in a matrix.

    Cost:
        A copy of the module, and a singular value decomposition of each matrix in float64.

    Example:
        >>> layer = nn.Linear(4, 4)
        >>> low = low_rank_start(layer, 1)
        >>> int(torch.linalg.matrix_rank(low.weight)), torch.allclose(low.weight.norm(), layer.weight.norm())
        (1, True)
    """
    if rank < 1:
        raise UsageError(f"rank={rank}: at least 1.")
    if keep not in get_args(Keep):
        raise UsageError(f"keep={keep!r}. {nearest(str(keep), get_args(Keep))}")
    made = models.working_copy(module)
    with torch.no_grad():
        for _, matrix in matrices_of(made, params):
            matrix.copy_(_truncated(flat(matrix), rank, keep).view(matrix.shape))
    inner = made.encoder if isinstance(made, Classifier) else made
    if isinstance(inner, Encoder):
        inner.frozen, inner.origin, inner.edit = {}, None, ""  # its heads are made from its own features
        inner.source = f"{inner.source} with matrices of rank {rank}"
    return made


def _truncated(matrix: Tensor, rank: int, keep: Keep) -> Tensor:
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    some = values[:rank]
    factor = float(values.norm() / some.norm()) if keep == "frobenius" else 1.0
    found: Tensor = factor * (left[:, :rank] * some) @ right[:rank]
    return found
