"""Numbers that describe a displacement, tensor by tensor."""

from typing import Any

import torch

from tauspan.core import params
from tauspan.core.params import Params


def rows_of(deltas: Params) -> list[dict[str, Any]]:
    """One row per tensor: shape, dtype, norm, root mean square, largest value, share of |tau|^2."""
    whole = params.norm(deltas) ** 2 or 1.0
    rows: list[dict[str, Any]] = []
    for name, delta in deltas.items():
        size = float(torch.linalg.vector_norm(delta, dtype=torch.float64))
        rows.append(
            {
                "tensor": name,
                "shape": "x".join(map(str, delta.shape)) or "scalar",
                "dtype": str(delta.dtype).removeprefix("torch."),
                "norm": size,
                "rms": size / max(delta.numel(), 1) ** 0.5,
                "largest": float(delta.abs().max()) if delta.numel() else 0.0,
                "share": size**2 / whole,
            }
        )
    return rows
