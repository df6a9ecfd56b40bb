"""Classes that win nowhere in a box of coefficients, found exactly."""

import numpy as np
from numpy.typing import NDArray

from tauspan.editing.desk.packing import Array

_RIVALS = 16  # classes of a row that the others are compared with
_CHUNK = 1 << 22  # numbers at a time


def contenders(values: Array, low: float, high: float) -> NDArray[np.bool_]:
    """Which classes of each row may have the largest logit somewhere in the box; the others never have.

    Logits are affine in the coefficients, l_c(a) = v_0c + sum_k a_k v_kc, so the least value of l_d - l_c over the box
    [low, high]^K is delta_0 + sum_k min(low delta_k, high delta_k) with delta = v_d - v_c. Class c is out where that is
    above 0 for some d. Each class is compared with the 16 classes that lead at the middle of the box: what is out is out
    for certain, and a few more might be.

    Args:
        values: shape (N, K + 1, C).
        low: of every coefficient.
        high: of every coefficient.

    Returns:
        Shape (N, C).

    Cost:
        16 N K C.

    Example:
        >>> values = np.array([[[0.0, 2.0, 1.5], [0.0, 0.0, 1.0]]])  # one row, one vector, three classes
        >>> contenders(values, 0.0, 1.0).tolist()
        [[False, True, True]]
    """
    rows, terms, classes = values.shape
    kept = np.ones((rows, classes), bool)
    if classes < 2:
        return kept
    rivals = min(_RIVALS, classes)
    step = max(1, _CHUNK // (rivals * terms * classes))
    for begin in range(0, rows, step):
        part = values[begin : begin + step]
        middle = part[:, 0] + part[:, 1:].sum(1) * (low + high) / 2
        leading = np.argpartition(-middle, rivals - 1, axis=1)[:, :rivals]
        best = np.take_along_axis(part, leading[:, None, :], axis=2)
        ahead = best[:, :, :, None] - part[:, :, None, :]  # (n, K + 1, rivals, C)
        least = ahead[:, 0] + np.minimum(low * ahead[:, 1:], high * ahead[:, 1:]).sum(1)
        # float64 sums of such few terms are off by less than this
        noise = 1e-13 * (np.abs(part).max(axis=(1, 2)) * terms * max(1.0, abs(low), abs(high)))[:, None, None]
        kept[begin : begin + step] = ~(least > noise).any(1)
    return kept
