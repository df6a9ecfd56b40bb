"""Bases of small spaces: for one tensor, the linear map from a few numbers delta to its displacement B delta."""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from tauspan.core.errors import MismatchError, NonFiniteError, UsageError, nearest

Kind: TypeAlias = Literal["rows", "rank-one", "tensors", "entries"]
Factors: TypeAlias = tuple[Tensor, ...]
# A user's own basis: tensors (k, *shape), (left, right) of rank-one directions, or a mask of the entries that move.
Given: TypeAlias = Tensor | tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Form:
    """How the displacement of one tensor follows from delta; the factors are kept apart, since a module holds them.

    A tensor is seen as a matrix M (m x n), the kernel of a convolution as (outputs, rest).

    - `"rows"`: M = delta A, factors (A,), A (r x n), delta (m x r): LoRA with a frozen A.
    - `"rank-one"`: M = L diag(delta) R, factors (L, R), L (m x r), R (r x n), delta (r): r directions l_i r_i^T.
    - `"tensors"`: sum_k delta_k E_k, factors (E,), E (k, *shape), delta (k).
    - `"entries"`: delta at k places of the tensor, 0 elsewhere, factors (places,), places (k) of the flat tensor.

    Args:
        kind: see above.
        shape: of the tensor.
        turned: the tensor is M transposed, as GPT-2 stores its weights.
    """

    kind: Kind
    shape: torch.Size
    turned: bool = False

    @property
    def thin(self) -> bool:
        """Whether the displacement is a product of thin matrices, which a layer need not form."""
        return self.kind in ("rows", "rank-one")

    @property
    def matrix(self) -> tuple[int, int]:
        """The shape of M: the outputs, and the rest."""
        rows, columns = self.shape[0], self.shape[1:].numel()
        return (columns, rows) if self.turned else (rows, columns)

    def small(self, factors: Factors) -> torch.Size:
        """The shape of delta."""
        rank = factors[-1].shape[0]
        return torch.Size([self.matrix[0], rank] if self.kind == "rows" else [rank])

    def dense(self, delta: Tensor, factors: Factors) -> Tensor:
        """B delta in the tensor's shape; differentiable in delta."""
        if self.kind == "tensors":
            return (delta @ factors[0].flatten(1)).view(self.shape)
        if self.kind == "entries":
            nothing = torch.zeros(self.shape.numel(), dtype=delta.dtype, device=delta.device)
            return nothing.scatter(0, factors[0], delta).view(self.shape)
        left = delta if self.kind == "rows" else factors[0] * delta
        matrix = left @ factors[-1]
        return matrix.T if self.turned else matrix.view(self.shape)

    def left(self, inner: Tensor, delta: Tensor, factors: Factors) -> Tensor:
        """The rest of M x for inner = R x, whose last axis has the r numbers; of thin forms alone."""
        if self.kind == "rows":
            return F.linear(inner, delta)
        return F.linear(inner * delta, factors[0])


@dataclass(frozen=True, eq=False)
class Basis:
    """A form with its factors.

    Args:
        form: how the displacement follows.
        factors: the frozen tensors.
    """

    form: Form
    factors: Factors

    @property
    def small(self) -> torch.Size:
        """The shape of delta."""
        return self.form.small(self.factors)

    def wide(self, delta: Tensor) -> Tensor:
        """B delta, formed in float64."""
        return self.form.dense(delta.detach().cpu().double(), tuple(_wide(factor) for factor in self.factors))

    def products(self, delta: Tensor) -> tuple[Tensor, Tensor] | None:
        """M as a product of thin matrices (m x r) and (r x n), float64; None for a basis that is not thin."""
        if not self.form.thin:
            return None
        wide = delta.detach().cpu().double()
        left = wide if self.form.kind == "rows" else self.factors[0].cpu().double() * wide
        return left, self.factors[-1].detach().cpu().double()

    def probe(self, name: str) -> float:
        """A number that tells this basis from others: a^T M b for numbers delta, a, b drawn by the tensor's name.

        It is the same for singular vectors of another sign, which make the same directions.
        """
        left, right = self.products(drawn(self.small, "delta", name)) or (
            torch.zeros(1, 1),
            torch.zeros(1, 1),
        )
        return float(
            drawn((len(left),), "left", name) @ left @ (right @ drawn((right.shape[1],), "right", name))
        )


def _wide(factor: Tensor) -> Tensor:
    """A factor in float64; places stay integers."""
    own = factor.detach().cpu()
    return own.double() if own.is_floating_point() else own


def drawn(shape: tuple[int, ...] | torch.Size, *key: object) -> Tensor:
    """Normal numbers in float64 that are decided by the key alone."""
    digest = hashlib.sha256("|".join(map(str, key)).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float64)


# -- bases that a word makes -----------------------------------------------------------------------------------


def _frozen_rows(name: str, matrix: Tensor, rank: int, seed: int) -> tuple[Kind, Factors]:
    """LoRA with a frozen A: orthonormal rows that span a random space, so that |B delta| = |delta|."""
    return "rows", (torch.linalg.qr(drawn((matrix.shape[1], rank), "lora", seed, name))[0].T,)


def _singular(name: str, matrix: Tensor, rank: int, seed: int) -> tuple[Kind, Factors]:
    """The leading r singular directions u_i v_i^T of the matrix itself (SVFit, arXiv 2409.05926)."""
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    return "rank-one", (left[:, :rank], right[:rank])


_Maker: TypeAlias = Callable[[str, Tensor, int, int], tuple[Kind, Factors]]
WORDS: Mapping[str, _Maker] = {"lora": _frozen_rows, "singular": _singular}


def parsed(word: str) -> tuple[str, int, int]:
    """The kind, the rank and the seed that a word such as `lora:8` or `lora:8:1` says.

    Raises:
        UsageError: no such word.
    """
    kind, _, rest = word.partition(":")
    if kind not in WORDS:
        raise UsageError(
            f"space={word!r}. {nearest(kind, WORDS)} A space is a kind and a rank: 'lora:8', 'singular:32'."
        )
    found = (
        re.fullmatch(r"([1-9]\d*)(?::(\d+))?", rest)
        if kind == "lora"
        else re.fullmatch(r"([1-9]\d*)()", rest)
    )
    if found is None:
        more = ", and perhaps a seed, 'lora:8:1'" if kind == "lora" else ""
        raise UsageError(
            f"space={word!r}: after {kind!r} comes its rank, from 1 on, such as '{kind}:8'{more}."
        )
    return kind, int(found[1]), int(found[2] or 0)


def spelt(word: str) -> str:
    """A word as it is written down: a seed of 0 is left out."""
    kind, rank, seed = parsed(word)
    return f"{kind}:{rank}:{seed}" if seed else f"{kind}:{rank}"


def made(word: str, name: str, tensor: Tensor, turned: bool) -> Basis:
    """The basis of one tensor that a word makes, computed in float64 and rounded once to the tensor's dtype.

    Raises:
        UsageError: a rank larger than the matrix has.
        NonFiniteError: the tensor holds NaN or infinity.
    """
    kind, rank, seed = parsed(word)
    form = Form("rows", tensor.shape, turned)
    most = min(form.matrix)
    if rank > most:
        rows, columns = form.matrix
        raise UsageError(
            f"space={word!r}: {name!r} is a matrix of {rows} x {columns}, whose rank is at most {most}. Take "
            f"'{kind}:{most}', or leave this tensor out of `params`."
        )
    wide = tensor.detach().cpu().double()
    if not bool(wide.isfinite().all()):
        raise NonFiniteError(
            f"{name!r} holds NaN or infinity, so it has no directions: load the weights again."
        )
    matrix = wide.T if turned else wide.flatten(1)
    own, factors = WORDS[kind](name, matrix, rank, seed)
    dtype = tensor.dtype
    return Basis(
        Form(own, tensor.shape, turned), tuple(f.to(dtype).contiguous().to(tensor.device) for f in factors)
    )


_FAR = 1e-2  # what rounding of a basis in half precision may be


def _require_orthonormal(name: str, parts: tuple[Tensor, ...]) -> None:
    """Raise unless |B delta| = |delta|.

    Raises:
        UsageError: the directions are not of length 1, or not at right angles.
    """
    wide = [part.detach().cpu().double() for part in parts]
    if len(parts) == 1:
        flat = wide[0].flatten(1)
        gram = flat @ flat.T
    else:  # <l_i r_i^T, l_j r_j^T> = <l_i, l_j> <r_i, r_j>
        gram = (wide[0].T @ wide[0]) * (wide[1] @ wide[1].T)
    off = float((gram - torch.eye(len(gram), dtype=gram.dtype)).abs().max())
    if off > _FAR:
        how = "`torch.linalg.qr(basis.flatten(1).T)[0].T.reshape(-1, *tensor.shape)`" if len(parts) == 1 else (
            "singular vectors, `torch.linalg.svd`, are"
        )  # fmt: skip
        raise UsageError(
            f"the basis of {name!r} is not orthonormal: an entry of its Gram matrix is off by {off:.3g}, so lengths, "
            f"weight decay and ridge would not mean what they mean for whole tensors. Make it so: {how}"
            f"{'' if len(parts) == 1 else ' such a pair'}."
        )


# -- a user's own ----------------------------------------------------------------------------------------------


def own(name: str, given: Given, tensor: Tensor, turned: bool) -> Basis:
    """A user's basis of one tensor.

    Args:
        name: of the tensor.
        given: tensors (k, *shape), a pair (left (m, r), right (r, n)) of directions l_i r_i^T, or a mask: booleans in
            the tensor's shape, True for each entry that moves.
        tensor: theta0.
        turned: the tensor is stored as (n, m).

    Raises:
        MismatchError: other shapes than the tensor's.
        NonFiniteError: NaN or infinity.
    """
    if isinstance(given, Tensor) and given.dtype == torch.bool:
        return _entries(name, given, tensor, turned)
    pair = isinstance(given, tuple)
    form = Form("rank-one" if pair else "tensors", tensor.shape, turned)
    parts = tuple(given) if isinstance(given, tuple) else (given,)
    if pair:
        if tensor.dim() < 2:
            raise MismatchError(
                f"{name!r} has shape {tuple(tensor.shape)}, which is no matrix, so a pair is no basis of it: give one "
                f"tensor of shape (k, {', '.join(map(str, tensor.shape))})."
            )
        rows, columns = form.matrix
        shapes = [tuple(part.shape) for part in parts]
        fits = len(parts) == 2 and all(part.dim() == 2 for part in parts)
        if not fits or (shapes[0][0], shapes[1][1]) != (rows, columns) or shapes[0][1] != shapes[1][0]:
            raise MismatchError(
                f"the basis of {name!r} has shapes {shapes}, and the tensor is a matrix of {rows} x {columns}: give "
                f"({rows}, r) and (r, {columns})."
            )
    elif parts[0].dim() != tensor.dim() + 1 or parts[0].shape[1:] != tensor.shape or not len(parts[0]):
        raise MismatchError(
            f"the basis of {name!r} has shape {tuple(parts[0].shape)}, and the tensor {tuple(tensor.shape)}: give one "
            f"tensor of shape (k, {', '.join(map(str, tensor.shape))})."
        )
    if not all(part.is_floating_point() for part in parts):
        raise UsageError(
            f"the basis of {name!r} has the dtype {', '.join(str(part.dtype) for part in parts)}: give floating-point "
            "numbers, `basis.float()`."
        )
    if not all(bool(part.isfinite().all()) for part in parts):
        raise NonFiniteError(f"the basis of {name!r} holds NaN or infinity: make it again.")
    _require_orthonormal(name, parts)
    return Basis(form, tuple(part.detach().to(tensor).contiguous() for part in parts))


def _entries(name: str, mask: Tensor, tensor: Tensor, turned: bool) -> Basis:
    """The basis of the entries that a mask picks.

    Raises:
        MismatchError: a mask of another shape.
        UsageError: a mask that picks nothing.
    """
    if mask.shape != tensor.shape:
        raise MismatchError(
            f"the mask of {name!r} has shape {tuple(mask.shape)}, and the tensor {tuple(tensor.shape)}: give one "
            "boolean for each entry."
        )
    places = mask.detach().flatten().nonzero().flatten().to(tensor.device)
    if not len(places):
        raise UsageError(f"the mask of {name!r} picks no entry: leave this tensor out.")
    return Basis(Form("entries", tensor.shape, turned), (places,))


def require_places(name: str, form: Form, factors: Factors) -> None:
    """Raise unless the places of a file are places of the tensor, each once.

    Raises:
        ValueError: they are not.
    """
    if form.kind == "entries":
        (places,) = factors
        fits = places.dtype == torch.int64 and places.dim() == 1 and len(places) > 0
        if (
            not fits
            or int(places[0]) < 0
            or int(places[-1]) >= form.shape.numel()
            or bool((places.diff() < 1).any())
        ):
            raise ValueError(f"the places of {name!r} are not rising numbers below {form.shape.numel()}")
