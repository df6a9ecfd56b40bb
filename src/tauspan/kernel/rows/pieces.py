"""The forms in which rows of J are kept, one parameter at a time."""

from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

PART = "#"  # "name#...": a view of the parameter, with its entries and their order


@dataclass(frozen=True)
class Product:
    """A weight's Jacobian rows G^T A: `inputs` (n, T, a) and `sensitivity` (n, I, T, b)."""

    inputs: Tensor
    sensitivity: Tensor
    turned: bool = False  # the weight is stored as (a, b)

    def written(self, low: int = 0, high: int | None = None, memory: Tensor | None = None) -> Tensor:
        """Rows `low` to `high` of G^T A, flattened: shape (n, I, (high - low) a); written into `memory` if given."""
        g = self.sensitivity[..., low:high].mT
        (n, inner, b, _), a = g.shape, self.inputs.shape[2]
        out = None if memory is None else memory.view(n, inner * b, a)
        # one product for each row: all its outputs have the same inputs
        return torch.bmm(g.reshape(n, inner * b, -1), self.inputs, out=out).view(n, inner, b * a)


@dataclass(frozen=True)
class Written:
    """Jacobian rows written out, shape (n, I, P)."""

    jacobian: Tensor


@dataclass(frozen=True)
class Lookup:
    """An embedding's Jacobian rows: sensitivities (n, I, T, d) at the rows `places` (n, T) of a table of `size` rows."""

    places: Tensor
    sensitivity: Tensor
    size: int


Piece: TypeAlias = Product | Written | Lookup
Pieces: TypeAlias = dict[str, Piece]


def rows_in(piece: Piece) -> int:
    """How many rows of data a piece has."""
    return len(piece.jacobian if isinstance(piece, Written) else piece.sensitivity)


def taken(piece: Piece, row: int) -> Piece:
    """The piece of one row of data."""
    if isinstance(piece, Written):
        return Written(piece.jacobian[row : row + 1])
    if isinstance(piece, Product):
        return replace(
            piece, inputs=piece.inputs[row : row + 1], sensitivity=piece.sensitivity[row : row + 1]
        )
    return replace(piece, places=piece.places[row : row + 1], sensitivity=piece.sensitivity[row : row + 1])


def written(piece: Piece) -> Tensor:
    """Any piece written out in the parameter's own order of entries, shape (n, I, P)."""
    if isinstance(piece, Written):
        return piece.jacobian
    if isinstance(piece, Product):
        flat = piece.written()
        if piece.turned:
            return flat.view(*flat.shape[:2], -1, piece.inputs.shape[2]).transpose(2, 3).flatten(2)
        return flat
    n, inner, t, d = piece.sensitivity.shape
    table = piece.sensitivity.new_zeros(n, inner, piece.size, d)
    index = piece.places[:, None, :, None].expand(n, inner, t, d)
    return table.scatter_add_(2, index, piece.sensitivity).flatten(2)


def pulled_back(piece: Piece, weights: Tensor) -> Tensor:
    """J^T g for weights g of shape (n, I), in the parameter's own order of entries, shape (P,)."""
    if isinstance(piece, Written):
        return torch.einsum("ni,nip->p", weights.to(piece.jacobian), piece.jacobian)
    g = torch.einsum("ni,nitd->ntd", weights.to(piece.sensitivity), piece.sensitivity)
    if isinstance(piece, Product):
        matrix = torch.einsum("ntb,nta->ba", g, piece.inputs.to(g))
        return (matrix.T if piece.turned else matrix).flatten()
    table = g.new_zeros(piece.size, g.shape[2])
    return table.index_add_(0, piece.places.flatten(), g.flatten(0, 1)).flatten()
