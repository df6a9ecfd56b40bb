"""The error of two kernels with one output against the full kernel: the sum of logits, and the trace over outputs.

Both are N x M kernels k that approximate K by k (x) I. The sum takes k = (1/O) sum_{o,p} K_{(n,o)(m,p)} and costs as
little as one output; the trace, k = (1/O) sum_o K_{(n,o)(m,o)}, is the closest kernel of this form. At random weights
the distance of both falls as 1/sqrt(width). At trained weights outputs are correlated: measure it.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tauspan.core.errors import UsageError
from tauspan.core.report import Cell, Report, Table, provenance
from tauspan.core.results import Result
from tauspan.kernel.solvers.base import Kernel
from tauspan.kernel.solvers.estimates import Estimate, exactly, finite


@dataclass(frozen=True, kw_only=True)
class Reduction(Result):
    """The relative Frobenius distances |K - k (x) I| / |K| of kernels k with one output.

    Args:
        sum: k of the outputs' sum over sqrt(O), `outputs="sum"`.
        trace: k the mean of the diagonal blocks, `outputs="trace"`.
        samples: the rows of data that were measured, all columns of each.
        outputs: O.
    """

    sum: Estimate
    trace: Estimate
    samples: int
    outputs: int

    def report(self) -> Report:
        """The two distances as a table, with provenance."""
        rows: list[dict[str, Cell]] = [
            {"kernel": name, "distance": one.value, "standard error": one.standard_error, "exact": one.exact}
            for name, one in (("sum", self.sum), ("trace", self.trace))
        ]
        note = f"|K - k (x) I| / |K| in the Frobenius norm, {self.outputs} outputs, from {self.samples} rows of data."
        table = Table("Kernels with one output against the full one", rows, note)
        return Report("Reduced kernels", [table], dict(self.provenance))


def reduced(kernel: Kernel, rows: int | None = None, seed: int = 0) -> Reduction:
    """Measure what is lost by a kernel with one output in place of all.

    Args:
        kernel: the full kernel, `outputs="all"`; any two sets of rows.
        rows: measure so many rows of data, drawn without replacement; None takes all, which is exact. The standard
            error is that of a ratio of sums over drawn rows, to first order.
        seed: of the draw.

    Raises:
        UsageError: fewer than 2 rows or more than there are, a kernel that is zero on these rows.
        NonFiniteError: NaN in the kernel.

    Cost:
        The entries of the rows: all of the dense kernel, or rows * O * M * O.

    Example:
        >>> from tauspan.kernel import DenseKernel
        >>> both = torch.ones(2, 2, dtype=torch.float64)  # one row of data, two outputs that are always equal
        >>> found = reduced(DenseKernel(both, outputs=2))
        >>> round(found.sum.value, 3), round(found.trace.value, 3)
        (1.0, 0.707)
    """
    n, outputs = kernel.samples, kernel.outputs
    if rows is None:
        entries = kernel.dense()
    elif 2 <= rows <= n:
        chosen = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:rows].sort().values
        places = chosen[:, None] * outputs + torch.arange(outputs)
        entries = kernel.rows(places.flatten().tolist())
    else:
        raise UsageError(
            f"rows={rows} of a kernel with {n}: from 2, since a standard error needs several, to {n}; or None for all."
        )
    blocks = finite(entries, "the kernel's entries").view(-1, outputs, kernel.shape[1] // outputs, outputs)
    size = blocks.square().sum((1, 2, 3))
    if not float(size.sum()):
        raise UsageError("the kernel is zero on these rows: there is no relative distance to it.")
    mean = torch.einsum("nomp->nm", blocks) / outputs
    diagonal = torch.einsum("nomo->nm", blocks) / outputs
    share = 1 - len(blocks) / n  # of the rows that were not seen
    found = [_distance(_gap(blocks, one), size, share, rows is None) for one in (mean, diagonal)]
    return Reduction(
        sum=found[0], trace=found[1], samples=len(blocks), outputs=outputs, provenance=provenance()
    )


def _gap(blocks: Tensor, small: Tensor) -> Tensor:
    """|K - k (x) I|^2 for each of the rows of data, summed over outputs and columns; shape (n,)."""
    rest = blocks.clone()
    rest.diagonal(dim1=1, dim2=3).sub_(small[..., None])
    return rest.square().sum((1, 2, 3))


def _distance(gap: Tensor, size: Tensor, share: float, exact: bool) -> Estimate:
    ratio = float(gap.sum() / size.sum())
    value = math.sqrt(ratio)
    if exact:
        return exactly(value, "all entries")
    spread = float((gap - ratio * size).std()) * math.sqrt(share / len(gap)) / float(size.mean())
    return Estimate(value, False, "rows drawn at random", spread / (2 * value) if value else 0.0)
