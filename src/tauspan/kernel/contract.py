"""Products of Jacobian rows that are kept as factors: the cheaper of two contractions for each layer.

For a linear layer with T positions, inputs A (T, a) and sensitivities G (T, b), a row's Jacobian in the
weight is G^T A and

    <G^T A, G'^T A'> = sum_{t,s} (A A'^T)_{ts} (G G'^T)_{ts},

so a kernel entry needs either the products over positions (2 T T' (a + b) operations) or the written-out matrices
(2 a b). Which is cheaper follows from the shapes of each layer alone, and is decided there.
"""

import math
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from tauspan.errors import ModelError
from tauspan.kernel.pieces import Lookup, Piece, Pieces, Product, Written, written
from tauspan.linear.room import Room

Tile: TypeAlias = dict[str, list[Piece]]
CHUNK = 1 << 22  # numbers that are written out at a time, for each of the two factors
_STRIP = 64  # rows of a symmetric product that are formed at a time
_ELEMENTWISE = 16  # an element-wise multiply-add takes as long as about so many inside a matrix product


def joined(parts: list[Pieces]) -> Tile:
    """The pieces of several batches as those of one stretch of rows; takes them out of `parts`.

    Batches of equal length become one tensor, so that products are of large matrices.
    """
    tile: Tile = {}
    inputs: dict[tuple[int, ...], Tensor] = {}  # an input that several layers read is kept once
    for name in list(parts[0]):
        groups: list[list[Piece]] = []
        for part in parts:
            piece = part.pop(name)
            if groups and _alike(groups[-1][-1], piece):
                groups[-1].append(piece)
            else:
                groups.append([piece])
        tile[name] = [_one(group, inputs) for group in groups]
    return tile


def _alike(first: Piece, second: Piece) -> bool:
    if isinstance(first, Written) and isinstance(second, Written):
        return first.jacobian.shape[2] == second.jacobian.shape[2]
    if isinstance(first, Product) and isinstance(second, Product):
        return first.inputs.shape[1:] == second.inputs.shape[1:] and first.turned == second.turned
    if isinstance(first, Lookup) and isinstance(second, Lookup):
        return first.places.shape[1] == second.places.shape[1]
    return False


def _one(group: Sequence[Piece], inputs: dict[tuple[int, ...], Tensor]) -> Piece:
    first = group[0]
    if len(group) == 1:
        return first
    if isinstance(first, Written):
        return Written(torch.cat([piece.jacobian for piece in group if isinstance(piece, Written)]))
    if isinstance(first, Lookup):
        several = [piece for piece in group if isinstance(piece, Lookup)]
        places = torch.cat([piece.places for piece in several])
        return Lookup(places, torch.cat([piece.sensitivity for piece in several]), first.size)
    products = [piece for piece in group if isinstance(piece, Product)]
    key = tuple(piece.inputs.data_ptr() for piece in products)
    if key not in inputs:
        inputs[key] = torch.cat([piece.inputs for piece in products])
    return Product(inputs[key], torch.cat([piece.sensitivity for piece in products]), first.turned)


def bytes_of(tile: Tile) -> int:
    """Bytes of a tile's tensors, each memory once."""
    room = Room(())
    for pieces in tile.values():
        for piece in pieces:
            for tensor in vars(piece).values():
                if isinstance(tensor, Tensor):
                    room.hold(tensor)
    return room.bytes()


# -- J J'^T ------------------------------------------------------------------------------------------------------


def product(left: Tile, right: Tile, traced: bool) -> Tensor:
    """J J'^T over all parameters, shape (n O, m O), summed in float64; the mean diagonal block if `traced`.

    Of a tile with itself only the upper triangle counts; what lies below it is not complete.

    Raises:
        ModelError: the two stretches were recorded as different pieces.
    """
    if left.keys() != right.keys():
        raise ModelError(
            "the model's batches go through different operations on the parameters, so that their rows have no common "
            "factors. Use backend='contraction'."
        )
    total: Tensor | None = None
    for name, pieces in left.items():
        found, inner = _gram(pieces, right[name]), _lead(pieces[0]).shape[1]
        if traced:
            found = torch.einsum("nimi->nm", found.view(len(found) // inner, inner, -1, inner)) / inner
        total = found.double() if total is None else total.add_(found)
    assert total is not None  # noqa: S101 - a tangent model has parameters
    return total


def _lead(piece: Piece) -> Tensor:
    """The tensor of a piece that has a row for each (n, I)."""
    return piece.jacobian if isinstance(piece, Written) else piece.sensitivity


def _gram(left: Sequence[Piece], right: Sequence[Piece]) -> Tensor:
    """J J'^T of one parameter, shape (n I, m I), in the pieces' dtype."""
    heights, widths = ([_lead(piece).shape[:2].numel() for piece in side] for side in (left, right))
    dtype = torch.promote_types(_lead(left[0]).dtype, _lead(right[0]).dtype)
    total = torch.zeros(sum(heights), sum(widths), dtype=dtype)
    for i, strip in enumerate(torch.split(total, heights)):
        for j, part in enumerate(torch.split(strip, widths, 1)):
            if left is not right or j >= i:
                _add(part, left[i], right[j])
    return total


def _add(total: Tensor, left: Piece, right: Piece) -> None:
    """Add one pair of pieces' products to `total`, shape (n I, m I)."""
    if isinstance(left, Product) and isinstance(right, Product) and left.turned == right.turned:
        (n, inner, t, b), (m, others, s, _) = left.sensitivity.shape, right.sensitivity.shape
        a = left.inputs.shape[2]
        positions = t * s * (a + inner * others * (b + _ELEMENTWISE))
        matrices = inner * others * a * b + (inner * t * a * b) / m + (others * s * a * b) / n
        (_by_positions if positions < matrices else _by_matrices)(total, left, right)
    elif isinstance(left, Lookup) and isinstance(right, Lookup):
        _by_places(total, left, right)
    else:
        x = written(left).flatten(0, 1).to(total)
        _outer(total, x, x if left is right else written(right).flatten(0, 1).to(total))


def _outer(total: Tensor, x: Tensor, y: Tensor) -> None:
    """Add x y^T to `total`; of x x^T only from the diagonal on."""
    if x is not y:
        total.addmm_(x, y.T)
        return
    for low in range(0, len(x), _STRIP):
        total[low : low + _STRIP, low:].addmm_(x[low : low + _STRIP], x[low:].T)


def _by_matrices(total: Tensor, left: Product, right: Product) -> None:
    """From the written-out matrices G^T A, some of their rows at a time."""
    a, b = left.inputs.shape[2], left.sensitivity.shape[3]
    step = max(1, CHUNK // max(a * max(total.shape), 1))
    for low in range(0, b, step):
        x = left.written(low, low + step).flatten(0, 1)
        _outer(total, x, x if left is right else right.written(low, low + step).flatten(0, 1))


def _by_positions(total: Tensor, left: Product, right: Product) -> None:
    """From the products over positions, some rows with some rows at a time."""
    (n, inner, t), (m, others, s) = left.sensitivity.shape[:3], right.sensitivity.shape[:3]
    whole = total.view(n, inner, m, others)
    edge = max(1, math.isqrt(CHUNK // (inner * t * others * s)))
    for low in range(0, n, edge):
        x, g = left.inputs[low : low + edge], left.sensitivity[low : low + edge]
        for begin in range(low if left is right else 0, m, edge):
            y, h = right.inputs[begin : begin + edge], right.sensitivity[begin : begin + edge]
            over_inputs = (x.flatten(0, 1) @ y.flatten(0, 1).T).view(len(x), 1, t, len(y), 1, s)
            over_outputs = (g.flatten(0, 2) @ h.flatten(0, 2).T).view(len(x), inner, t, len(y), others, s)
            whole[low : low + edge, :, begin : begin + edge] += over_outputs.mul_(over_inputs).sum((2, 5))


def _by_places(total: Tensor, left: Lookup, right: Lookup) -> None:
    """From the rows of the table that both sides look up: for each of them a product of small matrices."""
    mine, theirs = _by_id(left), _by_id(right)
    for place in mine.keys() & theirs.keys():
        (rows, g), (columns, h) = mine[place], theirs[place]
        at = (_spread(rows, g.shape[1])[:, None], _spread(columns, h.shape[1])[None])
        total[at] += g.flatten(0, 1) @ h.flatten(0, 1).T


def _by_id(piece: Lookup) -> dict[int, tuple[Tensor, Tensor]]:
    """For each row of the table that is looked up: which samples do, and their sensitivities (k, I, d) to it."""
    ids, samples, summed = coalesced(piece)
    found, counts = torch.unique_consecutive(ids, return_counts=True)
    sizes = counts.tolist()
    pairs = zip(torch.split(samples, sizes), torch.split(summed, sizes), strict=True)
    return dict(zip(found.tolist(), pairs, strict=True))


def coalesced(piece: Lookup) -> tuple[Tensor, Tensor, Tensor]:
    """Table rows and samples, each pair once, sorted by table row; and the sum of its sensitivities, (k, I, d)."""
    n, inner, _, d = piece.sensitivity.shape
    keys, where = torch.unique((piece.places * n + torch.arange(n)[:, None]).flatten(), return_inverse=True)
    summed = piece.sensitivity.new_zeros(len(keys), inner, d)
    summed.index_add_(0, where, piece.sensitivity.transpose(1, 2).flatten(0, 1))
    return keys // n, keys % n, summed


def _spread(rows: Tensor, inner: int) -> Tensor:
    """The indices n I + i of some samples."""
    return (rows[:, None] * inner + torch.arange(inner)).flatten()


# -- the diagonal ------------------------------------------------------------------------------------------------


def squares(tile: Tile) -> Tensor:
    """The squared norms of J's rows, shape (n, I), summed in float64."""
    return torch.stack([torch.cat([_squares(piece) for piece in pieces]) for pieces in tile.values()]).sum(0)


def _squares(piece: Piece) -> Tensor:
    if isinstance(piece, Lookup):
        _, samples, summed = coalesced(piece)
        found = torch.zeros(piece.sensitivity.shape[:2], dtype=torch.float64)
        return found.index_add_(0, samples, summed.double().square().sum(2))
    if isinstance(piece, Written):
        return piece.jacobian.double().square().sum(2)
    n, inner, t, b = piece.sensitivity.shape
    a = piece.inputs.shape[2]
    if t * (a + inner * (b + _ELEMENTWISE)) < inner * a * b:
        over_inputs = piece.inputs @ piece.inputs.mT
        over_outputs = piece.sensitivity @ piece.sensitivity.mT
        return torch.einsum("nts,nits->ni", over_inputs, over_outputs).double()
    step = max(1, CHUNK // max(a * n * inner, 1))
    parts = [piece.written(low, low + step).double().square().sum(2) for low in range(0, b, step)]
    return torch.stack(parts).sum(0)
