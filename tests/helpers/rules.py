"""Calls that a tangent rule is tested on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


def normal(*shape: int, seed: int = 1) -> Tensor:
    """As `zoo.normal`, and numbers too."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@dataclass(frozen=True)
class Case:
    """A call whose tensor arguments all move; `row` is the entry of the tables that it is about."""

    row: str
    call: Callable[..., Any]
    inputs: tuple[Tensor, ...]
    strided: bool = True  # whether it takes tensors that are not contiguous
    digits: float = 1e-12


def case(row: str, call: Callable[..., Any], *shapes: Any, **options: Any) -> Case:
    """Inputs are drawn by shape; a tensor is taken as it is."""
    drawn = (s if isinstance(s, Tensor) else normal(*s, seed=20 + place) for place, s in enumerate(shapes))
    return Case(row, call, tuple(drawn), **options)
