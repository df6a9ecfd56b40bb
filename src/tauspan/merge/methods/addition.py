"""Sums over models that do not depend on how tensors are cut into blocks.

`Tensor.sum(0)` adds five or more rows in another order near the end of a block than inside it, so its last bit moves with
the blocks. Here models are added one after the other, entry by entry, and one term is alive at a time.
"""

from collections.abc import Iterable

from torch import Tensor


def added(terms: Iterable[Tensor]) -> Tensor:
    """The sum of at least one tensor, in their order; the first may be a view and is not written to.

    A term 1 v beside terms 0 w is v bit for bit.

    Example:
        >>> import torch
        >>> added(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        tensor([4., 6.])
    """
    rest = iter(terms)
    total = next(rest).clone()
    for term in rest:
        total += term
    return total
