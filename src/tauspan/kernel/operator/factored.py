"""A tangent kernel of many outputs as a product of two small ones: rows times outputs."""

import torch

from tauspan.core.arguments import checked
from tauspan.core.errors import UsageError
from tauspan.kernel.operator.tangent import TangentKernel
from tauspan.kernel.solvers.kronecker import KroneckerKernel

_ROWS = 4


@checked
def kronecker(kernel: TangentKernel, rows: int = _ROWS) -> KroneckerKernel:
    """K about A (x) B: A is the kernel of one contrast of the outputs between all rows, B the mean block of some rows.

    Under a frozen head the outputs of a row differ in what they read of the same features, so how rows resemble one
    another is nearly the same for each pair of outputs. As preconditioner of `solve_cg` it takes the number of steps
    away from the number of outputs.

    Args:
        kernel: symmetric, of all outputs of a model, two or more.
        rows: how many rows B is the mean of, evenly spaced.

    Raises:
        UsageError: a kernel of one output, of chosen outputs, or between two sets of rows; no rows.
        NonFiniteError: NaN or infinity in an entry.

    Cost:
        The kernel of one output, and a block of `rows` rows with all outputs: (N + rows O) backward passes of a row in
        place of N O.

    Example:
        >>> from torch import nn
        >>> exact = TangentKernel(nn.Linear(3, 4), torch.eye(3))  # of a linear layer it is exact
        >>> bool(torch.allclose(kronecker(exact).dense(), exact.dense()))
        True
    """
    if rows < 1:
        raise UsageError(f"rows={rows}: the block of outputs is a mean over at least 1 row.")
    select = kernel.left.select
    whole = len(select.weights) == 1 and torch.equal(select.weights[0], torch.eye(select.weights.shape[2]))
    if not kernel.symmetric or kernel.traced or not whole or kernel.outputs < 2:
        raise UsageError(
            f"a product of rows and outputs needs one set of rows and all outputs, two or more, and this kernel is "
            f"{kernel!r}: build it without x2, with outputs='all'."
        )
    between = kernel.of_outputs("contrast").dense()
    some = torch.linspace(0, kernel.samples - 1, min(rows, kernel.samples)).round().long().tolist()
    blocks = kernel.block(some, some).view(len(some), kernel.outputs, len(some), kernel.outputs)
    own = blocks.diagonal(dim1=0, dim2=2).sum(-1)
    own = (own + own.T) / 2  # rounding of the model's dtype
    share = float(between.diagonal()[some].sum())
    return KroneckerKernel(between, own / share if share else own)
