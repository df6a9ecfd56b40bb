"""`LowRank`: displacements as sums of products of thin matrices, with exact algebra."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from tauspan.core.errors import MismatchError, NonFiniteError, UsageError

FactorLayout: TypeAlias = Literal["linear", "transposed", "embedding", "convolution"]

# Products are formed in pieces of so many rows, counted from the first row of the matrix: the same sizes however a
# tensor is read, and so the same bits.
_ROWS = 32


@dataclass(frozen=True, eq=False)
class Term:
    """One product `scale * b a`, laid out as LoRA stores it and as the weight needs it.

    Args:
        a: shape (r, inputs), or (r, channels, *kernel) of a convolution; (r, rows) of an embedding.
        b: shape (outputs, r), or (outputs, r, 1, ...) of a convolution; (columns, r) of an embedding.
        scale: the factor of the product.
        layout: where the product goes: the weight is b a, or (b a)^T for a layer that stores its weight transposed
            and for an embedding.
    """

    a: Tensor
    b: Tensor
    scale: float
    layout: FactorLayout = "linear"

    @property
    def rank(self) -> int:
        """R, the inner size of the product."""
        return self.a.shape[0]

    @property
    def shape(self) -> torch.Size:
        """The shape of the weight."""
        if self.layout == "convolution":
            return torch.Size([self.b.shape[0], *self.a.shape[1:]])
        outputs, inputs = self.b.shape[0], self.a.shape[1]
        return torch.Size([outputs, inputs] if self.layout == "linear" else [inputs, outputs])

    @property
    def left(self) -> Tensor:
        """The factor with the weight's rows, shape (rows, r), without the scale; a view."""
        return self.a.T if self.layout in ("transposed", "embedding") else self.b.flatten(1)

    @property
    def right(self) -> Tensor:
        """The factor with the weight's columns, shape (r, columns); a view."""
        return self.b.T if self.layout in ("transposed", "embedding") else self.a.flatten(1)


@dataclass(frozen=True, eq=False)
class LowRank:
    """A displacement that is, tensor by tensor, sum_i scale_i B_i A_i.

    A sum keeps the terms of both sides, and a factor multiplies the scales: no value is rounded, and A and B of
    different adapters are never added. The rank of a sum is the sum of the ranks, until `truncated` cuts it.

    Args:
        terms: by tensor name, at least one term; all terms of a tensor have one shape and one layout.
        label: a short name for tables and errors.
        lost: by tensor name, the Frobenius norm of what a truncation cut off; empty where nothing was cut.

    Example:
        >>> one = LowRank({"w": (Term(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [0.0]]), 0.5),)})
        >>> (one - 2 * one).dense("w")
        tensor([[-1.5000, -3.0000],
                [ 0.0000,  0.0000]])
    """

    terms: Mapping[str, tuple[Term, ...]]
    label: str = "low rank"
    lost: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        ranks = [self.rank(name) for name in self.terms]
        return f"LowRank({self.label}, {len(ranks)} matrices, ranks {min(ranks, default=0)} to {max(ranks, default=0)})"

    __repr__ = __str__

    # -- algebra ---------------------------------------------------------------------------------------------

    def __add__(self, other: object) -> "LowRank":
        if not isinstance(other, LowRank):
            return NotImplemented
        terms = dict(self.terms)
        for name, more in other.terms.items():
            if name in terms:
                _require_alike(name, terms[name][0], more[0], self.label, other.label)
            terms[name] = terms.get(name, ()) + more
        return LowRank(terms, f"({self.label} + {other.label})", _added(self.lost, other.lost))

    def __radd__(self, other: object) -> "LowRank":
        return self if isinstance(other, int) and other == 0 else NotImplemented  # the start of `sum`

    def __sub__(self, other: object) -> "LowRank":
        return self + -other if isinstance(other, LowRank) else NotImplemented

    def __mul__(self, factor: object) -> "LowRank":
        if not isinstance(factor, int | float):
            return NotImplemented
        if not math.isfinite(factor):
            raise UsageError(f"{self.label!r} times {factor}: the factor must be a finite number.")
        terms = {
            name: tuple(replace(term, scale=term.scale * factor) for term in own)
            for name, own in self.terms.items()
        }
        lost = {name: abs(factor) * norm for name, norm in self.lost.items()}
        return LowRank(terms, f"{factor:g} {self.label}", lost)

    __rmul__ = __mul__

    def __neg__(self) -> "LowRank":
        return replace(self * -1.0, label=f"-{self.label}")

    # -- values ----------------------------------------------------------------------------------------------

    def rank(self, name: str) -> int:
        """The inner size of one tensor's product: an upper bound of the matrix's rank."""
        return sum(term.rank for term in self.terms[name])

    def shape(self, name: str) -> torch.Size:
        """The shape of one tensor."""
        return self.terms[name][0].shape

    def block(self, name: str, start: int, stop: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """The entries `start` to `stop` of one flattened tensor, shape (stop - start,).

        Products are formed in float64 and rounded once to `dtype`. The values do not depend on how a tensor is cut
        into blocks. Cost: 2 r multiplications per entry, and memory for the rows that the block touches.
        """
        terms = self.terms[name]
        right = torch.cat([term.right.double() for term in terms])
        columns = right.shape[1]
        if start >= stop:
            return torch.empty(0, dtype=dtype)
        first, last = start // columns // _ROWS * _ROWS, -(-stop // columns)
        parts = []
        for row in range(first, last, _ROWS):
            left = [term.scale * term.left[row : row + _ROWS].double() for term in terms]
            parts.append((torch.cat(left, 1) @ right).to(dtype).flatten())
        return torch.cat(parts)[start - first * columns : stop - first * columns]

    def dense(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """One whole tensor, as the sum of its products."""
        shape = self.shape(name)
        return self.block(name, 0, shape.numel(), dtype).view(shape)

    def norm(self) -> float:
        """The Frobenius norm over all tensors, from the factors; float64."""
        return math.sqrt(sum(float(_core(own)[1].square().sum()) for own in self.terms.values()))

    # -- other ranks -----------------------------------------------------------------------------------------

    def joined(self, name: str) -> Term:
        """One tensor as a single term: factors side by side.

        Several terms with one scale keep their bits; else the scales go into B, rounded once (float32 or wider).
        """
        own = self.terms[name]
        if len(own) == 1:
            return own[0]
        scales = {term.scale for term in own}
        a = torch.cat([term.a for term in own])
        if len(scales) == 1:
            return Term(a, torch.cat([term.b for term in own], 1), own[0].scale, own[0].layout)
        b = torch.cat([(term.b.double() * term.scale).to(_wide(term.b)) for term in own], 1)
        return Term(a, b, 1.0, own[0].layout)

    def truncated(self, rank: int, dtype: torch.dtype = torch.float32) -> "LowRank":
        """The best approximation of that rank, tensor by tensor; `lost` says what it leaves out.

        Thin QR of both factors, then the SVD of the small core: B A = Q_B (R_B R_A^T) Q_A^T. Tensors of that rank or a
        lower one are kept as they are. Float64, then factors sqrt(sigma) u and sqrt(sigma) v in `dtype`.
        Cost: O((m + n) r^2 + r^3) for an m x n matrix of rank r; the m x n matrix is never formed.

        Raises:
            UsageError: a rank below 1.
        """
        _require_rank(rank)
        terms, lost = dict(self.terms), dict(self.lost)
        for name, own in self.terms.items():
            if self.rank(name) > rank:
                outer, core, inner = _core(own)
                left, sigma, right = torch.linalg.svd(core, full_matrices=False)
                terms[name] = (_balanced(outer @ left, sigma, right @ inner.T, rank, dtype, own[0]),)
                lost[name] = lost.get(name, 0.0) + float(torch.linalg.vector_norm(sigma[rank:]))
        return LowRank(terms, self.label, lost)


def from_dense(
    displacements: Iterable[tuple[str, Tensor]],
    rank: int,
    *,
    like: Mapping[str, FactorLayout] | None = None,
    label: str = "low rank",
    dtype: torch.dtype = torch.float32,
) -> tuple[LowRank, dict[str, float]]:
    """The best approximation of a dense displacement by matrices of a stated rank, by SVD.

    Args:
        displacements: names and tensors, taken one by one; matrices, or kernels of convolutions, which are seen as
            (outputs, rest).
        rank: the most singular values kept for a tensor.
        like: layouts by name, where a tensor is not a linear layer's or a convolution's.
        label: of the result.
        dtype: of the factors.

    Returns:
        The approximation, and by name the Frobenius norm of what it leaves out. A tensor that is all zeros is left out.
        Cost: O(m n min(m, n)) for each m x n matrix, in float32 (float64 for float64 tensors).

    Raises:
        UsageError: a rank below 1, or a tensor with fewer than two dimensions that is not zero.
        NonFiniteError: NaN or infinity.

    Example:
        >>> low, lost = from_dense([("w", torch.diag(torch.tensor([3.0, 1.0])))], rank=1)
        >>> round(lost["w"], 5), low.rank("w")
        (1.0, 1)
    """
    _require_rank(rank)
    terms: dict[str, tuple[Term, ...]] = {}
    lost: dict[str, float] = {}
    for name, tensor in displacements:
        if not bool(torch.isfinite(tensor).all()):
            raise NonFiniteError(f"tensor {name!r} of {label!r} holds NaN or infinity: merge it again.")
        if not bool(tensor.any()):
            continue
        if tensor.dim() < 2:
            raise UsageError(
                f"tensor {name!r} of {label!r} has shape {tuple(tensor.shape)}: an adapter holds matrices only. Write a "
                "vector or a model instead (`output: vector`), or leave such tensors out by a weight of 0: "
                f"`weight: [{{filter: {_part(name)}, value: 0}}, {{value: 1}}]`."
            )
        layout = (like or {}).get(name, "linear" if tensor.dim() == 2 else "convolution")
        matrix = tensor.flatten(1).to(_wide(tensor))
        left, sigma, right = torch.linalg.svd(matrix, full_matrices=False)
        kept = min(rank, len(sigma))
        terms[name] = (_balanced(left, sigma, right, kept, dtype, (layout, tensor.shape)),)
        lost[name] = float(torch.linalg.vector_norm(sigma[kept:].double()))
    return LowRank(terms, label, lost), lost


def _part(name: str) -> str:
    """A part of a tensor's name that others of its kind have too."""
    module, _, kind = name.rpartition(".")
    return kind if kind == "bias" else "norm" if "norm" in module else module.rpartition(".")[2] or name


def _balanced(
    left: Tensor,
    sigma: Tensor,
    right: Tensor,
    rank: int,
    dtype: torch.dtype,
    like: Term | tuple[FactorLayout, torch.Size],
) -> Term:
    """Singular values shared evenly by both factors, laid out as the weight needs it."""
    layout, shape = (like.layout, like.shape) if isinstance(like, Term) else like
    root = sigma[:rank].sqrt()
    rows, columns = (left[:, :rank] * root).to(dtype), (right[:rank] * root[:, None]).to(dtype)
    if layout in ("transposed", "embedding"):
        return Term(rows.T.contiguous(), columns.T.contiguous(), 1.0, layout)
    if layout == "convolution":
        kernel = shape[2:]
        return Term(
            columns.reshape(rank, *shape[1:]), rows.reshape(*rows.shape, *[1] * len(kernel)), 1.0, layout
        )
    return Term(columns.contiguous(), rows.contiguous(), 1.0, layout)


def _core(own: tuple[Term, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Q_left, R_left R_right^T and Q_right of the product: its singular values are those of the core."""
    left = torch.cat([term.scale * term.left.double() for term in own], 1)
    right = torch.cat([term.right.double() for term in own])
    outer, upper = torch.linalg.qr(left)
    inner, other = torch.linalg.qr(right.T)
    return outer, upper @ other.T, inner


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _added(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    """Bounds of what truncations cut off from a sum: the norm of a sum is at most the sum of the norms."""
    return {name: first.get(name, 0.0) + second.get(name, 0.0) for name in {**first, **second}}


def _require_rank(rank: int) -> None:
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise UsageError(f"rank is {rank!r}, and must be a whole number of at least 1.")


def _require_alike(name: str, first: Term, second: Term, first_name: str, second_name: str) -> None:
    if first.shape != second.shape or first.layout != second.layout:
        raise MismatchError(
            f"tensor {name!r} is {first.layout} with shape {tuple(first.shape)} in {first_name!r} and {second.layout} "
            f"with shape {tuple(second.shape)} in {second_name!r}. Adapters add up only over one base model."
        )
