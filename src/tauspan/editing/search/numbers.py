"""What the solvers share about numbers: their vector type, and the one check of an argument."""

import math
from typing import Any, TypeAlias

import numpy as np

from tauspan.core.errors import UsageError

Vector: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"


def require_at_least(least: float, **given: float) -> None:
    """Raise `UsageError` for the first argument that is not a finite number of at least `least`."""
    for name, value in given.items():
        if not least <= value < math.inf:
            raise UsageError(f"{name}={value}: it must be a finite number >= {least:g}.")
