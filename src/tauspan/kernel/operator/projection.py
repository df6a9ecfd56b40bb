"""Random projections of the rows of J to few dimensions, with the error that they will have.

S = J R / sqrt(q) with R of independent signs, shape (P, q), has E[S S^T] = J J^T = K, and to leading order in q

    E|S S^T - K|_F^2 = ((tr K)^2 + |K|_F^2) / q,

so that the relative error is sqrt((PR + 1) / q) with the participation rank PR = (tr K)^2 / |K|_F^2. The formula is
exact for normal entries; signs are below it by the share of single parameters in the kernel, 2 sum_p |J_p|^4 / q.
"""

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tauspan.core.errors import MismatchError, ModelError, UsageError
from tauspan.kernel.operator.tangent import TangentKernel
from tauspan.kernel.rows.pieces import Lookup, Piece, Product, Written
from tauspan.kernel.rows.tiles import Tiles
from tauspan.kernel.solvers.estimates import Estimate, finite, participation_rank
from tauspan.kernel.solvers.kernels import LowRankKernel

_WORDS = 4  # 64-bit numbers that Philox makes of one value of its counter
_CHUNK = 1 << 22  # signs, and entries of J, that are written out at a time


@dataclass(frozen=True, eq=False)
class Projection:
    """A sketch S of J, and the kernel S S^T that approximates J J^T.

    Args:
        kernel: S S^T, a kernel for every solver; `kernel.root` is S, shape (N O, q).
        error: the relative Frobenius error |S S^T - K| / |K| to expect, root mean square over seeds, with the standard
            error of the participation rank's estimate.
        participation: the participation rank of K.
        seed: of the signs.
        estimator: the kind of random entries.
        exact: False.
    """

    kernel: LowRankKernel
    error: Estimate
    participation: Estimate
    seed: int
    estimator: str = "signs"
    exact: bool = False

    @property
    def dimension(self) -> int:
        """The length q of the sketch of each row of J."""
        return self.kernel.rank

    def against(self, other: "Projection") -> Tensor:
        """S S'^T: the kernel between the rows of two projections of one model with one seed.

        Raises:
            MismatchError: the seeds or dimensions differ, so that the sketches have nothing in common.
        """
        if (self.seed, self.dimension) != (other.seed, other.dimension):
            raise MismatchError(
                f"projections with seeds {self.seed} and {other.seed} to {self.dimension} and {other.dimension} "
                "dimensions: project both with one seed to one dimension."
            )
        return self.kernel.root @ other.kernel.root.T


def project(
    kernel: TangentKernel,
    dimension: int | None = None,
    eps: float | None = None,
    seed: int = 0,
    *,
    probes: int | None = 32,
) -> Projection:
    """The rows of J projected to q dimensions by random signs.

    The sign of a parameter's entry depends on the seed, the parameter's name, the entry and q alone: neither batches
    nor rows nor the number of threads change it. A parameter that layers use in parts, as attention does its
    `in_proj_weight`, counts as so many parameters. Signs are made in blocks; no P x q matrix exists.

    Args:
        kernel: of one set of rows.
        dimension: q; or give `eps`.
        eps: the relative Frobenius error to expect, which chooses q = (PR + 1) / eps^2.
        seed: of the signs, and of the estimate of PR.
        probes: products with the kernel for that estimate; None takes the dense kernel.

    Raises:
        UsageError: neither or both of `dimension` and `eps`, one that is not above 0, a sketch that is longer than J's
            rows, a kernel between two sets of rows or of traces, which has no Jacobian.
        ModelError: batches that go through different operations on the parameters.
        NonFiniteError: NaN in the Jacobian.

    Cost:
        One pass over the Jacobian, 2 N O P q operations, P q signs for each batch of rows, and the probes' products.
        Memory: a batch's Jacobian in factors, 8 N O q bytes for the result.

    Example:
        >>> net = torch.nn.Linear(100, 1)
        >>> found = project(TangentKernel(net, torch.randn(4, 100)), dimension=50)
        >>> found.kernel.root.shape
        torch.Size([4, 50])
    """
    if (dimension is None) == (eps is None):
        raise UsageError(f"dimension={dimension}, eps={eps}: give one of them.")
    kernel.require_jacobian()
    if eps is not None and not (math.isfinite(eps) and eps > 0):
        raise UsageError(f"eps={eps}: a relative error is above 0.")
    if dimension is not None and not (isinstance(dimension, int) and dimension >= 1):
        raise UsageError(f"dimension={dimension}: give a whole number from 1 on.")
    participation = participation_rank(kernel, probes, seed)
    q = dimension if dimension is not None else math.ceil((participation.value + 1) / (eps or 1.0) ** 2)
    longest = sum(theta.numel() for theta in kernel.tangent.theta0().values())
    if not 1 <= q <= longest:
        raise UsageError(
            f"dimension={q}{'' if eps is None else f' for eps={eps}'}: choose from 1 to the {longest} parameters, "
            "beyond which a sketch is longer than the Jacobian's rows."
        )
    return Projection(
        LowRankKernel(_sketch(kernel, q, seed)), _expected(participation, q), participation, seed
    )


def _expected(participation: Estimate, q: int) -> Estimate:
    value = math.sqrt((participation.value + 1) / q)
    known = participation.standard_error
    spread = None if known is None else known / (2 * value * q)
    return Estimate(value, False, f"formula, participation rank by {participation.estimator}", spread)


def _sketch(kernel: TangentKernel, q: int, seed: int) -> Tensor:
    """S, shape (N O, q), a batch of rows at a time."""
    tiles = Tiles(0, kernel.backend)
    parts, names = [], None
    for places, _ in kernel.left.parts():
        tile = tiles.some(kernel.left, places)
        if names is not None and tile.keys() != names:
            raise ModelError(
                "the model's batches go through different operations on the parameters. Use backend='contraction'."
            )
        names = tile.keys()
        total = torch.zeros(len(places) * kernel.outputs, q, dtype=torch.float64)
        for name, pieces in tile.items():
            for part, piece in zip(torch.split(total, [_height(one) for one in pieces]), pieces, strict=True):
                _add(part, piece, name, seed)
        parts.append(total)
    return finite(torch.cat(parts), "the rows of J").div_(math.sqrt(q))


def _height(piece: Piece) -> int:
    lead = piece.jacobian if isinstance(piece, Written) else piece.sensitivity
    return lead.shape[0] * lead.shape[1]


def _add(total: Tensor, piece: Piece, name: str, seed: int) -> None:
    """Add one parameter's J R to `total`, shape (n I, q), some rows of the parameter at a time."""
    lines, width = _size(piece)
    step = max(1, _CHUNK // max(width * max(total.shape), 1))
    for low in range(0, lines, step):
        high = min(low + step, lines)
        if isinstance(piece, Lookup) and not bool(((piece.places >= low) & (piece.places < high)).any()):
            continue
        rows = _slab(piece, low, high).flatten(0, 1)
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        total += rows @ drawn(seed, name, low * width, rows.shape[1], total.shape[1]).to(rows)


def _size(piece: Piece) -> tuple[int, int]:
    """The shape of a parameter as a matrix whose rows can be written out separately."""
    if isinstance(piece, Written):
        return piece.jacobian.shape[2], 1
    if isinstance(piece, Lookup):
        return piece.size, piece.sensitivity.shape[3]
    a, b = piece.inputs.shape[2], piece.sensitivity.shape[3]
    return (a, b) if piece.turned else (b, a)


def _slab(piece: Piece, low: int, high: int) -> Tensor:
    """J's entries at some rows of a parameter, in the parameter's own order, shape (n, I, (high - low) width)."""
    if isinstance(piece, Written):
        return piece.jacobian[..., low:high]
    if isinstance(piece, Product):
        if piece.turned:
            return torch.einsum("nta,nitb->niab", piece.inputs[..., low:high], piece.sensitivity).flatten(2)
        return piece.written(low, high)
    n, inner, t, d = piece.sensitivity.shape
    # an additional last row collects the lookups outside `low` to `high`
    table = piece.sensitivity.new_zeros(n, inner, high - low + 1, d)
    inside = (piece.places >= low) & (piece.places < high)
    index = torch.where(inside, piece.places - low, high - low)[:, None, :, None].expand(n, inner, t, d)
    return table.scatter_add_(2, index, piece.sensitivity)[:, :, :-1].flatten(2)


def drawn(seed: int, name: str, start: int, count: int, q: int) -> Tensor:
    """The signs of a parameter's entries `start` to `start + count`, shape (count, q), +1 or -1 as int8.

    Philox is keyed by the SHA-256 of seed and name, and its counter by the entry, so any stretch is made alone.

    Example:
        >>> bool((drawn(0, "weight", 5, 2, 9) == drawn(0, "weight", 0, 7, 9)[5:]).all())
        True
    """
    digest = hashlib.sha256(repr((seed, name)).encode()).digest()
    bits = np.random.Philox(key=np.frombuffer(digest[:16], dtype="<u8"))
    counters = math.ceil(q / (64 * _WORDS))
    bits.advance(start * counters)
    words = bits.random_raw(count * counters * _WORDS).astype("<u8", copy=False)
    flat = np.unpackbits(words.view(np.uint8).reshape(count, -1), axis=1, count=q, bitorder="little")
    return torch.from_numpy(flat.view(np.int8)).mul_(2).sub_(1)
