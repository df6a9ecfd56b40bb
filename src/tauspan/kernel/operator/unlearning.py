"""Fits in the tangent space whose rows leave (exact unlearning) and arrive (another task), without a refit."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from tauspan.core.errors import UsageError, listed
from tauspan.core.params import require_finite_rows
from tauspan.kernel.solvers.base import Kernel
from tauspan.kernel.solvers.estimates import require_ridge
from tauspan.kernel.solvers.solution import cholesky, matrix_of, require_symmetric, vector_for


@dataclass(frozen=True, eq=False)
class Factored:
    """K + ridge = L L^T, and z = L^-1 r: rows arrive without the targets of the old ones.

    Args:
        lower: L, shape (m, m).
        solved: z, shape (m,).
    """

    lower: Tensor
    solved: Tensor

    @cached_property
    def alpha(self) -> Tensor:
        """L^-T z."""
        found: Tensor = torch.linalg.solve_triangular(self.lower.T, self.solved[:, None], upper=True)
        return found[:, 0]

    @cached_property
    def inverse(self) -> Tensor:
        """G = (L L^T)^-1."""
        return torch.cholesky_inverse(self.lower)

    @property
    def kept(self) -> tuple[Tensor, ...]:
        """What it holds."""
        return self.lower, self.solved

    def factored(self) -> "Factored":
        """Itself."""
        return self


@dataclass(frozen=True, eq=False)
class Inverted:
    """G = (K + ridge)^-1 and alpha = G r. Rows can be removed from it, and it then holds nothing of them.

    Args:
        inverse: G, shape (m, m).
        alpha: shape (m,).
    """

    inverse: Tensor
    alpha: Tensor

    @property
    def kept(self) -> tuple[Tensor, ...]:
        """What it holds."""
        return self.inverse, self.alpha

    def factored(self) -> Factored:
        """The same system as a Cholesky factor, with the rounding errors of G."""
        lower = cholesky(torch.cholesky_inverse(cholesky(self.inverse, 0.0)), 0.0)
        return Factored(lower, lower.T @ self.alpha)


@dataclass(frozen=True, eq=False)
class RidgeFit:
    """A kernel ridge fit whose rows leave and arrive: alpha = (K + ridge)^-1 r over the rows that are there.

    Rows arrive in a Cholesky factor and leave from an inverse. So growing is as accurate as solving anew, about the
    condition number of K + ridge times the rounding of float64; a fit that rows have left, and that grows after that,
    about its square.

    Args:
        system: of the n rows that remain, with all their outputs.
        samples: which rows remain, in rising order; rows that arrive count on from the last one.
        total: N, all rows that ever were there.
        outputs: O.
        ridge: of the fit.

    Example:
        >>> from tauspan.kernel import DenseKernel
        >>> matrix = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
        >>> fit = RidgeFit.of(DenseKernel(matrix), torch.ones(2), 1.0)
        >>> fit.without([1]).alpha  # 1 / (2 + 1) for row 0
        tensor([0.3333, 0.0000], dtype=torch.float64)
        >>> first = RidgeFit.of(DenseKernel(matrix[:1, :1]), torch.ones(1), 1.0)
        >>> bool(torch.allclose(first.grown(matrix[1:, :1], matrix[1:, 1:], torch.ones(1)).alpha, fit.alpha))
        True
    """

    system: Factored | Inverted
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
            (N O)^3 / 3 FLOPs and two matrices of 8 (N O)^2 bytes.
        """
        require_ridge(ridge, zero=True)
        flat = vector_for(kernel, residual, "the residual y - f0")
        lower = cholesky(matrix_of(kernel), ridge)
        system = Factored(lower, _solved(lower, flat))
        return RidgeFit(system, tuple(range(kernel.samples)), kernel.samples, kernel.outputs, ridge)

    @property
    def inverse(self) -> Tensor:
        """G = (K + ridge)^-1 of the rows that remain, shape (n O, n O); (n O)^3 FLOPs, once."""
        return self.system.inverse

    @property
    def remaining(self) -> Tensor:
        """Alpha of the rows that remain, shape (n O)."""
        return self.system.alpha

    @property
    def alpha(self) -> Tensor:
        """The coefficients over all rows, 0 for removed ones: tau = J^T alpha, shape (N O).

        The change of tau is J^T times the difference of two fits' alpha.
        """
        found = torch.zeros(self.total * self.outputs, dtype=torch.float64)
        found[self._entries(self.samples)] = self.remaining
        return found

    @property
    def bytes(self) -> int:
        """What has to be kept: a matrix over the rows that remain, and a vector."""
        return sum(part.numel() * part.element_size() for part in self.system.kept)

    def _entries(self, samples: Sequence[int]) -> Tensor:
        return (torch.tensor(samples)[:, None] * self.outputs + torch.arange(self.outputs)).flatten()

    def without(self, forget: Sequence[int]) -> "RidgeFit":
        """The fit on all rows but some, which leave with all their outputs; up to rounding the same as a refit.

        With k the kept entries and d the removed ones, G' = G_kk - G_kd G_dd^-1 G_dk and alpha' = alpha_k - G_kd
        G_dd^-1 alpha_d.

        Args:
            forget: rows by their number.

        Raises:
            UsageError: no row, a row that is named twice, is not there (any more), or all rows.

        Cost:
            (n O)^2 d + d^3 FLOPs for d entries that leave, against (n O)^3 / 3 of a refit; the first time, and after rows
            have arrived, 2 (n O)^3 / 3 for G.
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
        system = Inverted((inverse + inverse.T) / 2, remaining)
        return RidgeFit(system, tuple(left), self.total, self.outputs, self.ridge)

    def grown(self, across: Tensor, own: Tensor, residual: Tensor) -> "RidgeFit":
        """The fit with more rows, such as those of another task; up to rounding the same as a refit.

        The factor of all rows is [L, 0; A, M] with A = K_no L^-T and M M^T = K_nn + ridge - A A^T, and z continues with
        M^-1 (r_n - A z), so that old targets are not needed.

        Args:
            across: K_no, shape (d, n O): new entries against those that are there, in the order of `samples`.
            own: K_nn, shape (d, d).
            residual: r_n = y - f0 of the new rows, d numbers.

        Raises:
            UsageError: other shapes, d no multiple of the outputs, `own` not symmetric, or a system that the new rows
                make singular.
            NonFiniteError: NaN or infinity.

        Cost:
            (n O)^2 d + n O d^2 + d^3 / 3 FLOPs, against (n O + d)^3 / 3 of a refit.
        """
        new, cross, flat = own.double(), across.double(), residual.double().flatten()
        here = len(self.remaining)
        wanted = ((len(flat), here), (len(flat), len(flat)))
        if (tuple(cross.shape), tuple(new.shape)) != wanted or not len(flat) or len(flat) % self.outputs:
            raise UsageError(
                f"rows that arrive have blocks of shape {tuple(across.shape)} and {tuple(own.shape)} and {len(flat)} "
                f"targets: give (d, {here}), (d, d) and d of them, d a multiple of {self.outputs}."
            )
        parts = {"the kernel of rows that arrive": new, "the kernel across": cross, "their residual": flat}
        for what, part in parts.items():
            require_finite_rows(part, what)
        require_symmetric(new, "the kernel of rows that arrive")
        old = self.system.factored()
        below = torch.linalg.solve_triangular(old.lower, cross.T, upper=False).T
        corner = cholesky(new - below @ below.T, self.ridge)
        lower = torch.cat(
            [torch.cat([old.lower, old.lower.new_zeros(here, len(flat))], 1), torch.cat([below, corner], 1)]
        )
        solved = torch.cat([old.solved, _solved(corner, flat - below @ old.solved)])
        arrived = len(flat) // self.outputs
        samples = (*self.samples, *range(self.total, self.total + arrived))
        return RidgeFit(Factored(lower, solved), samples, self.total + arrived, self.outputs, self.ridge)


def _solved(lower: Tensor, residual: Tensor) -> Tensor:
    """L^-1 r."""
    found: Tensor = torch.linalg.solve_triangular(lower, residual[:, None], upper=False)
    return found[:, 0]
