"""Class Gaussians of features: a few numbers from which rows are drawn in place of rows that are not kept."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tauspan.core.arguments import checked
from tauspan.core.errors import DataError, UsageError
from tauspan.core.params import require_finite_rows
from tauspan.sequence.options import Covariance


@dataclass(frozen=True, eq=False)
class ClassGaussians:
    """The mean and the covariance of the features of each class.

    Args:
        means: shape (K, d), float64.
        spreads: variances (K, d), or covariances (K, d, d).
        counts: how many rows each class had; of a class without any nothing is drawn.

    Example:
        >>> z = torch.tensor([[0.0, 1.0], [2.0, 1.0], [5.0, 5.0]])
        >>> found = ClassGaussians.of(z, torch.tensor([0, 0, 1]), 2)
        >>> found.means.tolist(), found.spreads.tolist(), found.bytes
        ([[1.0, 1.0], [5.0, 5.0]], [[2.0, 0.0], [0.0, 0.0]], 80)
    """

    means: Tensor
    spreads: Tensor
    counts: tuple[int, ...]

    @staticmethod
    @checked
    def of(
        features: Tensor, labels: Tensor, classes: int, covariance: Covariance = "diagonal"
    ) -> "ClassGaussians":
        """Those of some rows.

        Args:
            features: shape (N, d).
            labels: shape (N,), from 0 to K - 1.
            classes: K.
            covariance: `"full"` keeps K d^2 numbers, `"diagonal"` K d.

        Raises:
            DataError: no row, labels that do not number the rows' classes, or numbers that are not finite.
        """
        if (
            not len(features)
            or len(labels) != len(features)
            or not bool(((labels >= 0) & (labels < classes)).all())
        ):
            raise DataError(
                f"{len(labels)} labels of {classes} classes for {len(features)} rows: give one for each row, from 0 to "
                f"{max(classes - 1, 0)}."
            )
        require_finite_rows(features, "the features")
        means, spreads, counts = [], [], []
        for label in range(classes):
            rows = features[labels == label].double().cpu()
            mean = rows.sum(0) / max(len(rows), 1)
            centred = rows - mean
            products = centred.T @ centred if covariance == "full" else centred.square().sum(0)
            means.append(mean)
            spreads.append(products / max(len(rows) - 1, 1))
            counts.append(len(rows))
        return ClassGaussians(torch.stack(means), torch.stack(spreads), tuple(counts))

    @property
    def bytes(self) -> int:
        """What is kept: means, spreads and counts."""
        return 8 * (self.means.numel() + self.spreads.numel() + len(self.counts))

    def draw(self, rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        """So many rows of each class that had some: features (at most K rows, d) in float64, and their labels.

        Raises:
            UsageError: no rows.

        Cost:
            K d^3 for full covariances.
        """
        if rows < 1:
            raise UsageError(f"rows={rows} of each class: draw at least 1.")
        count, width = self.means.shape
        noise = torch.randn(
            count, rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
        if self.spreads.dim() == 2:
            noise = noise * self.spreads.sqrt()[:, None]
        else:  # a root that exists for singular covariances too
            values, vectors = torch.linalg.eigh(self.spreads)
            noise = (noise * values.clamp(min=0).sqrt()[:, None]) @ vectors.mT
        known = torch.tensor(self.counts) > 0
        drawn = (self.means[:, None] + noise)[known].flatten(0, 1)
        return drawn, torch.arange(count)[known].repeat_interleave(rows)
