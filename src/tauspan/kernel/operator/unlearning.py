"""Exact unlearning: the fit in the tangent space without some of its rows, by a downdate and not by a refit."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tauspan.core.errors import UsageError, listed
from tauspan.kernel.solvers.base import Kernel
from tauspan.kernel.solvers.estimates import require_ridge
from tauspan.kernel.solvers.solution import cholesky, matrix_of, vector_for


@dataclass(frozen=True, eq=False)
class RidgeFit:
    """A kernel ridge fit whose rows can be removed: G = (K + ridge)^-1 and alpha = G r over the remaining rows.

    Args:
        inverse: G, shape (n O, n O) for n remaining rows.
        remaining: alpha of the remaining rows, shape (n O).
        samples: which of the first fit's rows remain, in rising order.
        total: N, the first fit's rows.
        outputs: O.
        ridge: of the fit.

    Example:
        >>> from tauspan.kernel import DenseKernel
        >>> matrix = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
        >>> fit = RidgeFit.of(DenseKernel(matrix), torch.ones(2), 1.0)
        >>> fit.without([1]).alpha  # 1 / (2 + 1) for row 0
        tensor([0.3333, 0.0000], dtype=torch.float64)
    """

    inverse: Tensor
    remaining: Tensor
    samples: tuple[int, ...]
    total: int
    outputs: int
    ridge: float

    @staticmethod
    def of(kernel: Kernel, residual: Tensor, ridge: float) -> "RidgeFit":
        """The fit on all rows.

        Args:
            kernel: symmetric, over the training rows.
            residual: r = y - f0, shape (N O) or (N, O).
            ridge: above 0, or 0 where K itself can be inverted.

        Raises:
            UsageError: a singular system, another shape, or a negative ridge.
            NonFiniteError: NaN or infinity in the kernel or the residual.

        Cost:
            (N O)^3 FLOPs and two matrices of 8 (N O)^2 bytes.
        """
        require_ridge(ridge, zero=True)
        flat = vector_for(kernel, residual, "the residual y - f0")
        inverse = torch.cholesky_inverse(cholesky(matrix_of(kernel), ridge))
        return RidgeFit(
            inverse, inverse @ flat, tuple(range(kernel.samples)), kernel.samples, kernel.outputs, ridge
        )

    @property
    def alpha(self) -> Tensor:
        """The coefficients over all rows of the first fit, 0 for removed rows: tau = J^T alpha, shape (N O).

        The change of tau is J^T times the difference of two fits' alpha.
        """
        found = torch.zeros(self.total * self.outputs, dtype=torch.float64)
        found[self._entries(self.samples)] = self.remaining
        return found

    def _entries(self, samples: Sequence[int]) -> Tensor:
        return (torch.tensor(samples)[:, None] * self.outputs + torch.arange(self.outputs)).flatten()

    def without(self, forget: Sequence[int]) -> "RidgeFit":
        """The fit on all rows but some, which leave with all their outputs; up to rounding the same as a refit.

        With k the kept entries and d the removed ones, G' = G_kk - G_kd G_dd^-1 G_dk and alpha' = alpha_k - G_kd
        G_dd^-1 alpha_d.

        Args:
            forget: rows by their number in the first fit.

        Raises:
            UsageError: no row, a row that is named twice, is not there (any more), or all rows.

        Cost:
            (n O)^2 d + d^3 FLOPs for d entries that leave, against (n O)^3 / 3 of a refit.
        """
        gone = set(forget)
        if not gone or len(gone) < len(forget):
            raise UsageError(f"forget={list(forget)}: name at least one row, and none twice.")
        absent = sorted(gone - set(self.samples))
        if absent:
            raise UsageError(
                f"rows {listed(map(str, absent))} are not in this fit, which has {len(self.samples)} of the rows "
                f"0 to {self.total - 1}."
            )
        if len(gone) == len(self.samples):
            raise UsageError(
                "all rows would leave: a fit without rows is tau = 0; keep at least one, or use the base."
            )
        places = {sample: number for number, sample in enumerate(self.samples)}
        left = [sample for sample in self.samples if sample not in gone]
        kept, dropped = (self._entries([places[one] for one in some]) for some in (left, sorted(gone)))
        across = self.inverse[kept][:, dropped]
        solved = torch.linalg.solve(self.inverse[dropped][:, dropped], across.T).T  # G_kd G_dd^-1
        inverse = self.inverse[kept][:, kept] - solved @ across.T
        remaining = self.remaining[kept] - solved @ self.remaining[dropped]
        return RidgeFit(
            (inverse + inverse.T) / 2, remaining, tuple(left), self.total, self.outputs, self.ridge
        )
