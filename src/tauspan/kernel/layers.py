"""Rows of J layer by layer, as the factors they are made of: a layer's inputs and the outputs' sensitivities to it.

For a linear layer with T positions, inputs A (T, a) and sensitivities G (T, b), a row's Jacobian in the
weight is G^T A and

    <G^T A, G'^T A'> = sum_{t,s} (A A'^T)_{ts} (G G'^T)_{ts},

so a kernel entry needs either the products over positions (2 T T' (a + b) operations) or the written-out matrices
(2 a b). Which is cheaper follows from the shapes of each layer alone, and is decided there. A parameter that is used
twice has its uses written out and added, so cross terms are kept.
"""

from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from tauspan import models
from tauspan.errors import ModelError
from tauspan.kernel.side import Side
from tauspan.linear import factors
from tauspan.linear.dual import Entry, NoRuleError, Slot, Trace
from tauspan.linear.room import Room
from tauspan.linear.tape import Tape, record, run
from tauspan.models import Batch

_KEPT = frozenset({"linear", "embedding", "conv1d", "conv2d", "conv3d", "addmm"})
_CHUNK = 1 << 25  # numbers of a written-out piece at a time


@dataclass(frozen=True)
class Product:
    """A weight's Jacobian rows G^T A: `inputs` (n, T, a) and `sensitivity` (n, I, T, b)."""

    inputs: Tensor
    sensitivity: Tensor
    turned: bool = False  # the weight is stored as (a, b)

    def written(self, low: int = 0, high: int | None = None) -> Tensor:
        """Rows `low` to `high` of G^T A, flattened: shape (n, I, (high - low) a)."""
        return torch.einsum("nitb,nta->niba", self.sensitivity[..., low:high], self.inputs).flatten(2)


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


def pieces(side: Side, places: list[int], batch: Batch) -> Pieces:
    """The Jacobian rows of one batch, by parameter; one forward pass, and one backward pass an output.

    Raises:
        ModelError: the model's operations cannot be recorded.
    """
    tangent = side.tangent
    theta0 = tangent.theta0()
    trace = Trace(tangent.base, tangent.strict, tangent._told, keep=_KEPT)
    still = {name: torch.zeros((), dtype=theta.dtype).expand(theta.shape) for name, theta in theta0.items()}
    try:
        with models.eval_mode(tangent.base):
            tape, _ = record(tangent.function(batch), theta0, still, trace)
        return _sorted(tape, side.select.of(places))
    except (NoRuleError, NotImplementedError) as error:
        raise ModelError(
            f"the model has no layer-wise kernel: {error}. Use backend='contraction'."
        ) from error


def _sorted(tape: Tape, weights: Tensor) -> Pieces:
    """The pieces of a tape, those of one parameter joined."""
    value = torch.einsum("nc,noc->no", tape.value, weights.to(tape.value))
    selected = Tape(value, tape.points, tape.leaves, tape.entries, tape.result)
    cell = factors.cell(selected, Room([]))
    found: dict[str, list[Piece]] = {name: [] for name in cell.leaves}
    names = {slot: name for name, slot in cell.leaves.items()}
    for part in cell.parts:
        for name, piece in _of_part(cell, part, names):
            found[name].append(piece)
    rows, inner = value.shape
    result: Pieces = {}
    for name in tape.points:
        several = found.get(name, [])
        if len(several) == 1:
            result[name] = several[0]
        elif several:
            result[name] = Written(torch.stack([_written(piece) for piece in several]).sum(0))
        else:
            result[name] = Written(value.new_zeros(rows, inner, 0).detach())
    return result


def _of_part(
    cell: factors.FactorCell, part: factors.Dense | factors.Touch, names: dict[Slot, str]
) -> list[tuple[str, Piece]]:
    if isinstance(part, factors.Dense) and part.slot in names:
        return [(names[part.slot], Written(part.jacobian.tensor))]
    if isinstance(part, factors.Touch):
        made = _LAYERS.get(part.entry.name, _nothing)(part.entry, part.sensitivity.tensor, names)
        if made:
            return made
    return _general(cell, part, names)


def _nothing(entry: Entry, sensitivity: Tensor, names: dict[Slot, str]) -> list[tuple[str, Piece]]:
    return []


def _at(entry: Entry, place: int) -> Slot | None:
    """The slot of an argument that is a parameter."""
    inputs = entry.inputs
    found = inputs[place] if len(inputs) > place else None
    return found if isinstance(found, Slot) else None


def _linear(entry: Entry, sensitivity: Tensor, names: dict[Slot, str]) -> list[tuple[str, Piece]]:
    """The map x W^T + b, or b + x W for `addmm`: which way round W lies does not change inner products."""
    order = (1, 2, 0) if entry.name == "addmm" else (0, 1, 2)
    x, weight, bias = entry.arguments[order[0]], _at(entry, order[1]), _at(entry, order[2])
    if any(slot is not None and slot not in names for slot in (weight, bias)) or len(entry.arguments) > 3:
        return []
    n, inner = sensitivity.shape[:2]
    matrix = entry.arguments[order[1]]
    wide = matrix.shape[1] if entry.name == "addmm" else matrix.shape[0]
    g = sensitivity.view(n, inner, -1, wide)
    found: list[tuple[str, Piece]] = []
    if weight is not None:
        a = x.reshape(n, -1, x.shape[-1])
        found.append((names[weight], Product(a, g, entry.name == "addmm")))
    if bias is not None:
        found.append((names[bias], Written(g.sum(2))))
    return found


def _lookup(entry: Entry, sensitivity: Tensor, names: dict[Slot, str]) -> list[tuple[str, Piece]]:
    slot, ids = _at(entry, 1), entry.arguments[0]
    padding = entry.arguments[2] if len(entry.arguments) > 2 else None
    if slot not in names or ids.dim() < 1 or len(ids) != len(sensitivity):
        return []
    n, inner = sensitivity.shape[:2]
    flat = ids.reshape(n, -1)
    g = sensitivity.view(n, inner, flat.shape[1], -1)
    if padding is not None:
        g = g * (flat != padding)[:, None, :, None]
    return [(names[slot], Lookup(flat, g, len(entry.arguments[1])))]


def _convolution(entry: Entry, sensitivity: Tensor, names: dict[Slot, str]) -> list[tuple[str, Piece]]:
    """A convolution in two dimensions as a linear layer over patches."""
    x, kernel, *rest = entry.arguments
    stride, padding, dilation, groups = [*rest[1:], *(1, 0, 1, 1)[len(rest[1:]) :]] if rest else (1, 0, 1, 1)
    weight, bias = _at(entry, 1), _at(entry, 2)
    if entry.name != "conv2d" or groups != 1 or isinstance(padding, str) or len(x) != len(sensitivity):
        return []
    if any(slot is not None and slot not in names for slot in (weight, bias)):
        return []
    n, inner = sensitivity.shape[:2]
    g = sensitivity.view(n, inner, len(kernel), -1).transpose(2, 3)
    found: list[tuple[str, Piece]] = []
    if weight is not None:
        patches = F.unfold(x, kernel.shape[2:], dilation=dilation, padding=padding, stride=stride)
        found.append((names[weight], Product(patches.transpose(1, 2), g)))
    if bias is not None:
        found.append((names[bias], Written(g.sum(2))))
    return found


_LAYERS = {"linear": _linear, "addmm": _linear, "embedding": _lookup, "conv2d": _convolution}


def _general(
    cell: factors.FactorCell, part: factors.Dense | factors.Touch, names: dict[Slot, str]
) -> list[tuple[str, Piece]]:
    """Any part, by a backward pass of its own few operations for each row and output; only its parameters' rows."""
    points = {
        slot: torch.zeros(cell.shapes[name][0], dtype=cell.shapes[name][1]).requires_grad_()
        for slot, name in names.items()
    }
    with torch.enable_grad():
        at: dict[int, Tensor] = {int(slot): point for slot, point in points.items()}
        for entry in cell.before:
            run(entry, at)
        if isinstance(part, factors.Dense):
            y = torch.einsum("ncp,p->nc", part.jacobian.tensor, at[part.slot].flatten())
            g = torch.eye(y.shape[1], dtype=y.dtype).expand(len(y), -1, -1)
        else:
            run(part.entry, at)
            g = part.sensitivity.tensor
            y = at[next(slot for slot in part.entry.outputs if slot is not None)].reshape(len(g), -1)
    rows: dict[Slot, list[Tensor]] = {}
    for n in range(g.shape[0]):
        for o in range(g.shape[1]):
            found = torch.autograd.grad(
                y[n], list(points.values()), g[n, o], retain_graph=True, allow_unused=True
            )
            for slot, gradient in zip(points, found, strict=True):
                if gradient is not None:
                    rows.setdefault(slot, []).append(gradient.flatten())
    return [(names[slot], Written(torch.stack(list_).view(*g.shape[:2], -1))) for slot, list_ in rows.items()]


# -- products of pieces ------------------------------------------------------------------------------------------


def _written(piece: Piece) -> Tensor:
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


def gram(left: Piece, right: Piece) -> Tensor:
    """J J'^T of one parameter, shape (n, I, m, I), in the pieces' dtype."""
    if isinstance(left, Product) and isinstance(right, Product):
        return _products(left, right)
    if isinstance(left, Lookup) and isinstance(right, Lookup):
        parts = []
        for row, ids in zip(
            left.sensitivity, left.places, strict=True
        ):  # the equality of places is sparse and small
            same = (ids[None, :, None] == right.places[:, None, :]).to(row)
            met = torch.einsum("mts,mpsd->mptd", same, right.sensitivity)
            parts.append(torch.einsum("otd,mptd->omp", row, met))
        return torch.stack(parts)
    a, b = _written(left), _written(right)  # also where a batch of one row was recorded in another way
    if not a.shape[2] or not b.shape[2]:
        return a.new_zeros(*a.shape[:2], *b.shape[:2])
    return torch.einsum("nip,mjp->nimj", a, b)


def _products(left: Product, right: Product) -> Tensor:
    """The cheaper of the two contractions, by the number of operations for a pair of rows."""
    n, inner, t, b = left.sensitivity.shape
    m, others, s, a = *right.sensitivity.shape[:3], left.inputs.shape[2]
    by_position = t * s * (a + inner * others * b)
    written = inner * others * a * b + (inner * t * a * b) / m + (others * s * a * b) / n
    if by_position < written:
        over_inputs = torch.einsum("nta,msa->ntms", left.inputs, right.inputs)
        over_outputs = torch.einsum("nitb,mjsb->nitmjs", left.sensitivity, right.sensitivity)
        return torch.einsum("ntms,nitmjs->nimj", over_inputs, over_outputs)
    total = left.inputs.new_zeros(n * inner, m * others)
    step = max(1, _CHUNK // max(a * max(n * inner, m * others), 1))
    for low in range(0, b, step):
        x = left.written(low, low + step).flatten(0, 1)
        y = x if right is left else right.written(low, low + step).flatten(0, 1)
        total.addmm_(x, y.T)
    return total.view(n, inner, m, others)


def product(left: Pieces, right: Pieces, traced: bool) -> Tensor:
    """J J'^T over all parameters, shape (n O, m O), summed in float64; the mean diagonal block if `traced`."""
    total: Tensor | None = None
    for name, piece in left.items():
        found = gram(piece, right[name]).double()
        total = found if total is None else total + found
    assert total is not None  # noqa: S101 - a tangent model has parameters
    if traced:
        return torch.einsum("nimi->nm", total) / total.shape[1]
    return total.flatten(0, 1).flatten(1, 2)
