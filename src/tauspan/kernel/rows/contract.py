"""Products of Jacobian rows that are kept as factors: the cheaper of two contractions for each layer.

For a linear layer with T positions, inputs A (T, a) and sensitivities G (T, b), a row's Jacobian in the
weight is G^T A and

    <G^T A, G'^T A'> = sum_{t,s} (A A'^T)_{ts} (G G'^T)_{ts},

so a kernel entry needs either the products over positions (2 T T' (a + b) operations) or the written-out matrices
(2 a b). Which is cheaper follows from the shapes of each layer alone, and is decided there.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from tauspan.core.errors import ModelError
from tauspan.kernel.rows.pieces import Lookup, Piece, Pieces, Product, Written, written
from tauspan.tangent.cache.room import Room

Tile: TypeAlias = dict[str, list[Piece]]
CHUNK = 1 << 24  # numbers that are written out at a time, for each of the two factors
PAIRS = 1 << 20  # products of two positions that are formed at a time, to stay in the cache
_LARGE = 1 << 18  # numbers of the second factor
_STRIP = 64  # rows of a symmetric product that are formed at a time
_ELEMENTWISE = 64  # an element-wise multiply-add takes as long as about so many inside a matrix product


class UnlikeError(ModelError):
    """Batches were recorded as pieces of different names."""


def joined(parts: Sequence[Pieces]) -> Tile:
    """The pieces of several batches as pieces of one stretch of rows.

    Batches are kept as they were recorded, since copying them would cost more than it saves; single rows are
    concatenated.
    """
    return {name: _few(part[name] for part in parts) for name in parts[0]}


def _few(pieces: Iterable[Piece]) -> list[Piece]:
    found: list[Piece] = []
    for group in _groups(pieces):
        found += [_one(group)] if all(len(_lead(piece)) == 1 for piece in group) else group
    return found


def _groups(pieces: Iterable[Piece]) -> list[list[Piece]]:
    """Runs of neighbouring pieces of one kind, which differ in their rows alone."""
    groups: list[list[Piece]] = []
    for piece in pieces:
        if groups and _kind(groups[-1][-1]) == _kind(piece):
            groups[-1].append(piece)
        else:
            groups.append([piece])
    return groups


def _kind(piece: Piece) -> tuple[Any, ...]:
    """What two pieces must have in common to be concatenated."""
    if isinstance(piece, Product):
        return Product, *piece.inputs.shape[1:], piece.turned
    return (
        (Lookup, piece.places.shape[1]) if isinstance(piece, Lookup) else (Written, piece.jacobian.shape[2])
    )


def _one(group: Sequence[Piece]) -> Piece:
    """Several pieces of one kind, concatenated along their rows."""
    first = group[0]
    if len(group) == 1:
        return first
    lead = torch.cat([_lead(piece) for piece in group])
    if isinstance(first, Written):
        return Written(lead)
    if isinstance(first, Lookup):
        return Lookup(
            torch.cat([piece.places for piece in group if isinstance(piece, Lookup)]), lead, first.size
        )
    inputs = torch.cat([piece.inputs for piece in group if isinstance(piece, Product)])
    return Product(inputs, lead, first.turned)


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


def product(left: Tile, right: Tile, traced: bool, chunk: int | None = None) -> Tensor:
    """J J'^T over all parameters, shape (n O, m O), summed in float64; the mean diagonal block if `traced`.

    For a tile with itself only the upper triangle is complete. At most `chunk` numbers of each side's matrices, or
    `CHUNK` without it, are written out at a time.

    Raises:
        UnlikeError: the two stretches were recorded as different pieces.
    """
    if left.keys() != right.keys():
        raise UnlikeError(
            "the model's batches go through different operations on the parameters, so that their rows have no common "
            "factors. Use backend='contraction'."
        )
    total: Tensor | None = None
    for name, pieces in left.items():
        found, inner = _gram(pieces, right[name], chunk), _lead(pieces[0]).shape[1]
        if traced:
            found = torch.einsum("nimi->nm", found.view(len(found) // inner, inner, -1, inner)) / inner
        total = found.double() if total is None else total.add_(found)
    assert total is not None  # noqa: S101 - a tangent model has parameters
    return total


def _lead(piece: Piece) -> Tensor:
    """The tensor of a piece that has a row for each (n, I)."""
    return piece.jacobian if isinstance(piece, Written) else piece.sensitivity


def _gram(left: Sequence[Piece], right: Sequence[Piece], chunk: int | None) -> Tensor:
    """J J'^T of one parameter, shape (n I, m I), in the pieces' dtype."""
    lefts = _groups(left)
    rights = lefts if left is right else _groups(right)
    heights, widths = ([sum(map(_height, group)) for group in side] for side in (lefts, rights))
    dtype = torch.promote_types(_lead(left[0]).dtype, _lead(right[0]).dtype)
    total = torch.zeros(sum(heights), sum(widths), dtype=dtype)
    for i, strip in enumerate(torch.split(total, heights)):
        for j, part in enumerate(torch.split(strip, widths, 1)):
            if left is not right or j >= i:
                _add(part, lefts[i], rights[j], chunk)
    return total


def _absent(piece: Piece) -> bool:
    """Whether the rows of a piece do not reach the parameter, for example because they went to another expert."""
    return isinstance(piece, Written) and piece.jacobian.shape[2] == 0


def _height(piece: Piece) -> int:
    """N I, the rows of J that a piece holds."""
    return _lead(piece).shape[:2].numel()


def _add(total: Tensor, left: list[Piece], right: list[Piece], chunk: int | None = None) -> None:
    """Add the products of two groups of pieces to `total`, shape (n I, m I)."""
    first, second = left[0], right[0]
    if _absent(first) or _absent(second):
        return
    if isinstance(first, Product) and isinstance(second, Product) and first.turned == second.turned:
        (inner, t, b), (others, s) = first.sensitivity.shape[1:], second.sensitivity.shape[1:3]
        n, m, a = len(total) // inner, total.shape[1] // others, first.inputs.shape[2]
        positions = t * s * (a + inner * others * (b + _ELEMENTWISE))
        matrices = inner * others * a * b + (inner * t * a * b) / m + (others * s * a * b) / n
        ours, theirs = cast(list[Product], left), cast(list[Product], right)
        if positions < matrices:
            _by_positions(total, ours, theirs)
        else:
            _by_matrices(total, ours, theirs, chunk)
    elif isinstance(first, Lookup) and isinstance(second, Lookup):
        _by_places(total, cast(Lookup, _one(left)), cast(Lookup, _one(right)))
    else:
        x = torch.cat([written(piece).flatten(0, 1).to(total) for piece in left])
        y = x if left is right else torch.cat([written(piece).flatten(0, 1).to(total) for piece in right])
        _outer(total, x, y)


def _outer(total: Tensor, x: Tensor, y: Tensor) -> None:
    """Add x y^T to `total`; of x x^T only from the diagonal on."""
    if x is not y:
        total += _times(x, y)
        return
    for low in range(0, len(x), _STRIP):
        total[low : low + _STRIP, low:] += _times(x[low : low + _STRIP], x[low:])


def _times(x: Tensor, y: Tensor) -> Tensor:
    """The product x y^T: large ones in float32 by oneDNN, twice as fast on AMD processors as MKL, which torch takes.

    oneDNN keeps memory for every shape that it has met, so small products go the ordinary way.
    """
    usable = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    large = y.numel() >= _LARGE and x.numel() > 0
    if usable and large and x.dtype == y.dtype == torch.float32 and x.device.type == "cpu":
        return F.linear(x.to_mkldnn(), y).to_dense()
    return x @ y.T


def _by_matrices(total: Tensor, left: list[Product], right: list[Product], chunk: int | None = None) -> None:
    """Add the products to `total`, from the written-out matrices G^T A, some of their rows at a time."""
    a, b = left[0].inputs.shape[2], left[0].sensitivity.shape[3]
    step = max(1, (chunk or CHUNK) // max(a * max(total.shape), 1))
    memory = total.new_empty(len(total), step * a)
    other = memory if left is right else total.new_empty(total.shape[1], step * a)
    for low in range(0, b, step):
        x = _written(left, low, min(low + step, b), memory)
        _outer(total, x, x if left is right else _written(right, low, min(low + step, b), other))


def _written(group: list[Product], low: int, high: int, memory: Tensor) -> Tensor:
    """Rows `low` to `high` of the matrices G^T A of all samples, in `memory`."""
    wide = (high - low) * group[0].inputs.shape[2]
    whole = memory.flatten()[: len(memory) * wide].view(-1, wide)
    for piece, part in zip(group, torch.split(whole, [_height(piece) for piece in group]), strict=True):
        piece.written(low, high, part)
    return whole


def _by_positions(total: Tensor, left: list[Product], right: list[Product]) -> None:
    """Add the products to `total`, from the products over positions, some rows with some rows at a time."""
    heights, widths = ([_height(piece) for piece in side] for side in (left, right))
    for i, strip in enumerate(torch.split(total, heights)):
        for j, part in enumerate(torch.split(strip, widths, 1)):
            if left is not right or j >= i:
                _over_positions(part, left[i], right[j])


def _over_positions(total: Tensor, left: Product, right: Product) -> None:
    (n, inner, t), (m, others, s) = left.sensitivity.shape[:3], right.sensitivity.shape[:3]
    whole = total.view(n, inner, m, others)
    edge = max(1, math.isqrt(PAIRS // (inner * t * others * s)))
    for low in range(0, n, edge):
        x, g = left.inputs[low : low + edge], left.sensitivity[low : low + edge]
        for begin in range(low if left is right else 0, m, edge):
            y, h = right.inputs[begin : begin + edge], right.sensitivity[begin : begin + edge]
            over_inputs = _times(x.flatten(0, 1), y.flatten(0, 1)).view(len(x), 1, t, len(y), 1, s)
            over_outputs = _times(g.flatten(0, 2), h.flatten(0, 2)).view(len(x), inner, t, len(y), others, s)
            whole[low : low + edge, :, begin : begin + edge] += over_outputs.mul_(over_inputs).sum((2, 5))


def _by_places(total: Tensor, left: Lookup, right: Lookup) -> None:
    """Add the products to `total`: a product of small matrices for each row of the table that both sides look up."""
    mine, theirs = _by_id(left), _by_id(right)
    for place in mine.keys() & theirs.keys():
        (rows, g), (columns, h) = mine[place], theirs[place]
        at = (_spread(rows, g.shape[1])[:, None], _spread(columns, h.shape[1])[None])
        total[at] += g.flatten(0, 1) @ h.flatten(0, 1).T


def _by_id(piece: Lookup) -> dict[int, tuple[Tensor, Tensor]]:
    """For each row of the table that is looked up: the samples that do so, and their sensitivities (k, I, d) to it."""
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
    step = max(1, CHUNK // 4 // max(a * n * inner, 1))
    parts = [piece.written(low, low + step).double().square().sum(2) for low in range(0, b, step)]
    return torch.stack(parts).sum(0)
