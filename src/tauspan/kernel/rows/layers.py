"""Rows of J layer by layer, as the factors they are made of: a layer's inputs and the outputs' sensitivities to it.

A parameter that is used twice has its uses written out and added, so cross terms are kept. Views of one parameter
that do not overlap (the three parts of attention's `in_proj_weight`) stay apart, as if each were a parameter.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from tauspan.core.errors import ModelError
from tauspan.kernel.rows.data import AnyBatch, rows_of
from tauspan.kernel.rows.jacobian import Jacobian
from tauspan.kernel.rows.pieces import (
    PART,
    Lookup,
    Piece,
    Pieces,
    Product,
    Written,
    pulled_back,
    rows_in,
    taken,
    written,
)
from tauspan.tangent.cache import factors
from tauspan.tangent.cache.operations import slots_of
from tauspan.tangent.cache.room import Room
from tauspan.tangent.cache.sensitivities import parted
from tauspan.tangent.cache.tape import Tape, record, run
from tauspan.tangent.engine import table
from tauspan.tangent.engine.check import scales, vanishing, wrong_gradient
from tauspan.tangent.engine.dual import Entry, NoRuleError, Slot, Trace
from tauspan.tangent.engine.precision import random_like

_KEPT = frozenset({"linear", "embedding", "conv1d", "conv2d", "conv3d", "addmm"})
_SMALL = 1 << 18  # entries of parameters whose rows of J are written out rather than recorded row by row
_EXACT = 1 << 24  # up to here float32 tells all whole numbers apart


@torch.enable_grad()  # the outputs that count are chosen inside the graph
def pieces(
    side: Jacobian,
    places: list[int],
    batch: AnyBatch,
    known: dict[Hashable, frozenset[int]],
    check: bool = True,
    views: bool = True,
) -> Pieces:
    """The Jacobian rows of one batch, by parameter; one forward pass and a backward pass for each output.

    Args:
        side: the model and the outputs that count.
        places: the rows' places on that side.
        batch: the rows.
        known: what was found of batches of one kind; see `factors.cell`.
        check: compare J^T g of the pieces with autograd's, tensor by tensor, at the cost of one more backward pass.
        views: keep disjoint views of a parameter apart; another batch may have others.

    Raises:
        NonFiniteError: a row's output is NaN or infinite.
        ModelError: the model's operations cannot be recorded, a layer does not have the batch's rows in their order, or
            the pieces do not add up to autograd's gradient.
    """
    tangent = side.tangent
    if check and tangent.verified(batch) != "onepass":
        raise ModelError(
            f"the model has no layer-wise kernel: the {tangent.engine!r} engine computes its tangents, not one "
            "pass. Use backend='contraction'."
        )
    trace = Trace(tangent.base, tangent.strict, tangent.told, keep=_KEPT)
    try:
        tape, _ = record(tangent.function(batch), tangent.theta0(), None, trace)
        side.require_finite(tape.value, places)
        found, probe = _sorted(tape, side.select.weights_of(places), known, check, views)
    except (NoRuleError, NotImplementedError) as error:
        raise ModelError(
            f"the model has no layer-wise kernel: {error}. Use backend='contraction'."
        ) from error
    if probe is not None:
        _require_gradients(found, *probe)
    return found


def belong(side: Jacobian, begin: int, numbers: list[int], batch: AnyBatch, found: Sequence[Pieces]) -> bool:
    """Whether rows of J that were recorded without their batch are those of the batch.

    Their sums with random weights are compared, by one forward and one backward pass of the whole batch.

    Args:
        side: the model and the outputs that count.
        begin: the place of the batch's first row on that side.
        numbers: which of its rows were recorded.
        batch: the whole batch.
        found: the rows, in one part or several.
    """
    graph = side.graph(batch, range(begin, begin + rows_of(batch)))
    select = side.select.weights_of([begin + number for number in numbers]).to(graph.value)
    weights = random_like(select[..., 0], 1)
    cotangent = torch.zeros_like(graph.value)
    cotangent.index_add_(0, torch.tensor(numbers), torch.einsum("no,noc->nc", weights, select))
    total: dict[str, Tensor] = {}
    low = 0
    for part in found:
        rows = rows_in(next(iter(part.values())))
        for name, piece in part.items():
            pulled = pulled_back(piece, weights[low : low + rows])
            if pulled.numel():
                total[name] = total[name] + pulled if name in total else pulled
        low += rows
    expected = graph.pull(cotangent)
    least = vanishing(graph.value * cotangent, side.tangent.theta0())
    return _fault(total, weights, expected, least) is None


def _require_gradients(found: Pieces, weights: Tensor, expected: dict[str, Tensor]) -> None:
    """Raise unless the pieces give autograd's own J^T g, whatever is between the layers."""
    fault = _fault({name: pulled_back(piece, weights) for name, piece in found.items()}, weights, expected)
    if fault:
        raise ModelError(f"the model has no layer-wise kernel: {fault}. Use backend='contraction'.")


def _fault(
    pulled: dict[str, Tensor], weights: Tensor, expected: dict[str, Tensor], least: float = 0.0
) -> str | None:
    """How J^T g of the pieces differs from autograd's, in words; None if it agrees. Missing parameters count as 0."""
    tolerance, noise = scales(weights, expected)
    noise = max(noise, least)
    mine = {name: torch.zeros_like(whole) for name, whole in expected.items()}
    parted: dict[str, float] = {}
    for name, gradient in pulled.items():
        owner, part, _ = name.partition(PART)
        if part:  # a view of the parameter: views do not overlap, so their squared norms add up
            parted[owner] = parted.get(owner, 0.0) + float(gradient.double().square().sum())
        elif gradient.numel():
            mine[name] = gradient.view_as(mine[name])
    fault = wrong_gradient(
        mine, {name: g for name, g in expected.items() if name not in parted}, tolerance, noise
    )
    for owner, square in parted.items():
        length = float(expected[owner].double().norm())
        if abs(square**0.5 - length) > max(tolerance * length, noise * expected[owner].numel() ** 0.5):
            fault = (
                f"its gradient of {owner!r} has length {square**0.5:.6g} and ordinary autograd's {length:.6g}"
            )
    return fault


def _sorted(
    tape: Tape, weights: Tensor, known: dict[Hashable, frozenset[int]], check: bool, views: bool
) -> tuple[Pieces, tuple[Tensor, dict[str, Tensor]] | None]:
    """The pieces of a tape, those of one parameter joined; with `check`, a random g and autograd's own J^T g."""
    value = torch.einsum("nc,noc->no", tape.value, weights.to(tape.value))
    selected = Tape(value, tape.points, tape.leaves, tape.entries, tape.result)
    cell = factors.cell(selected, Room([]), known, _SMALL, check)
    leaves = {slot: name for name, slot in cell.leaves.items()}
    found = _gathered(cell, leaves | (disjoint_views(cell) if views else {}))
    parted = {name.partition(PART)[0] for name in found if PART in name}
    if parted & found.keys():  # an operation that has no factors uses one of the views
        found, parted = _gathered(cell, leaves), set()
    rows, inner = value.shape
    result: Pieces = {}
    for name in [*found, *(name for name in tape.points if name not in found and name not in parted)]:
        several = found.get(name, [])
        if len(several) == 1:
            result[name] = several[0]
        elif several:
            result[name] = Written(torch.stack([written(piece) for piece in several]).sum(0))
        else:
            result[name] = Written(value.new_zeros(rows, inner, 0).detach())
    return dict(sorted(result.items())), cell.probe


def _gathered(cell: factors.FactorCell, names: dict[Slot, str]) -> dict[str, list[Piece]]:
    """The pieces of all parts by parameter."""
    found: dict[str, list[Piece]] = {}
    before = _Before(cell)
    for part in cell.parts:
        for name, piece in _of_part(part, names, before):
            found.setdefault(name, []).append(piece)
    return found


def disjoint_views(cell: factors.FactorCell) -> dict[Slot, str]:
    """Names for the views of parameters that layers use in place of the parameters, if no two views overlap."""
    if not cell.before:
        return {}
    places: dict[int, Tensor] = {
        slot: torch.arange(shape.numel(), dtype=torch.float32).view(shape)
        for slot, shape in ((slot, cell.shapes[name][0]) for name, slot in cell.leaves.items())
        if 0 < shape.numel() <= _EXACT
    }
    owners = {slot: {name} for name, slot in cell.leaves.items()}
    for entry in cell.before:
        read = slots_of(entry)
        made = [slot for slot in entry.outputs if slot is not None]
        owners |= {slot: set().union(*(owners[one] for one in read)) for slot in made}
        if entry.name in table.VIEWS and len(read) == 1 and read[0] in places:
            run(replace(entry, kinds=tuple(k and (k[0], torch.float32) for k in entry.kinds)), places)
    used = {slot for part in cell.parts for slot in _used(part)}
    found: dict[Slot, str] = {}
    for name, leaf in cell.leaves.items():
        mine = [slot for slot in used if name in owners[slot]]
        if not mine or leaf in mine or any(slot not in places for slot in mine):
            continue
        storage = places[leaf].untyped_storage().data_ptr()
        if any(places[slot].untyped_storage().data_ptr() != storage for slot in mine):  # a copy
            continue
        labels = {slot: _label(name, places[slot]) for slot in mine}
        parts = {labels[slot]: places[slot].flatten() for slot in mine}
        alike = all(torch.equal(places[slot].flatten(), parts[labels[slot]]) for slot in mine)
        if alike and len(torch.unique(torch.cat(list(parts.values())))) == sum(map(len, parts.values())):
            found |= labels
    return found


def _label(name: str, view: Tensor) -> str:
    """The name of a view, which says exactly which entries it has in which order."""
    return f"{name}{PART}{view.storage_offset()} {tuple(view.shape)} {view.stride()}"


def _used(part: factors.Dense | factors.Touch) -> list[Slot]:
    return [part.slot] if isinstance(part, factors.Dense) else slots_of(part.entry)


def _of_part(
    part: factors.Dense | factors.Touch, names: dict[Slot, str], before: "_Before"
) -> list[tuple[str, Piece]]:
    if isinstance(part, factors.Dense):
        if part.slot in names:
            return [(names[part.slot], Written(part.jacobian.tensor))]
        return before.pulled(part.slot, Written(part.jacobian.tensor))
    layer = _LAYERS.get(part.entry.name, _nothing)
    made = {slot: str(slot) for slot in slots_of(part.entry) if slot not in names}
    found: list[tuple[str, Piece]] = []
    for name, piece in layer(part.entry, part.sensitivity.tensor, names | made):
        slot = next((slot for slot, known in made.items() if known == name), None)
        found += [(name, piece)] if slot is None else before.pulled(slot, piece)
    return found or before.through(part)


def _nothing(entry: Entry, sensitivity: Tensor, names: dict[Slot, str]) -> list[tuple[str, Piece]]:
    return []


def _at(entry: Entry, place: int) -> Slot | None:
    """The slot of an argument that is a parameter."""
    inputs = entry.inputs
    found = inputs[place] if len(inputs) > place else None
    return found if isinstance(found, Slot) else None


def _linear(entry: Entry, sensitivity: Tensor, names: dict[Slot, str]) -> list[tuple[str, Piece]]:
    """The pieces of x W^T + b or, for `addmm`, of b + x W: whether W is transposed does not change inner products."""
    order = (1, 2, 0) if entry.name == "addmm" else (0, 1, 2)
    x, weight, bias = entry.arguments[order[0]], _at(entry, order[1]), _at(entry, order[2])
    if any(slot is not None and slot not in names for slot in (weight, bias)) or len(entry.arguments) > 3:
        return []
    if (
        _at(entry, order[0]) is not None
    ):  # the input depends on parameters alone, and so has a part of its own
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
    """The pieces of a convolution in two dimensions, as a linear layer over patches."""
    x, kernel, *rest = entry.arguments
    stride, padding, dilation, groups = [*rest[1:], *(1, 0, 1, 1)[len(rest[1:]) :]] if rest else (1, 0, 1, 1)
    weight, bias = _at(entry, 1), _at(entry, 2)
    if entry.name != "conv2d" or groups != 1 or isinstance(padding, str) or len(x) != len(sensitivity):
        return []
    if _at(entry, 0) is not None:
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


class _Before:
    """The operations on parameters alone, through which the rows of J of what they make are pulled to the parameters.

    Args:
        cell: whose operations they are.
    """

    def __init__(self, cell: factors.FactorCell) -> None:
        self._cell = cell

    @cached_property
    def _points(self) -> dict[str, Tensor]:
        """Displacements of the parameters, all zero: the operations' tangents are linear in them."""
        shapes = self._cell.shapes
        return {
            name: torch.zeros(shapes[name][0], dtype=shapes[name][1]).requires_grad_()
            for name in self._cell.leaves
        }

    @cached_property
    def _made(self) -> dict[int, Tensor]:
        """The displacements of parameters and of all that is made of them, by slot."""
        made: dict[int, Tensor] = {int(slot): self._points[name] for name, slot in self._cell.leaves.items()}
        with torch.enable_grad():
            for entry in self._cell.before:
                run(entry, made)
        return made

    def pulled(self, slot: Slot, piece: Piece) -> list[tuple[str, Piece]]:
        """The pieces of the parameters of which a tensor is made, from that of the tensor."""
        made = self._made[slot]
        return self._rows((made.flatten(), written(taken(piece, n))[0]) for n in range(rows_in(piece)))

    def through(self, part: factors.Touch) -> list[tuple[str, Piece]]:
        """The pieces of any operation on parameters and rows, for the parameters that it depends on."""
        at, g = dict(self._made), part.sensitivity.tensor
        with torch.enable_grad():
            run(part.entry, at)
            slot = next(slot for slot in part.entry.outputs if slot is not None)
            if slot not in at:  # the parameter gives a shape alone, as in expand_as
                return []
            y = parted(at[slot]).reshape(len(g), -1)
            return self._rows((y[n], rows) for n, rows in enumerate(g))

    def _rows(self, of: Iterable[tuple[Tensor, Tensor]]) -> list[tuple[str, Piece]]:
        """For each row a tensor and J's rows of it, pulled by backward passes through few operations."""
        found: dict[str, list[Tensor]] = {}
        for tensor, rows in of:
            gradients = torch.autograd.grad(
                tensor, list(self._points.values()), rows.to(tensor), retain_graph=True, allow_unused=True,
                is_grads_batched=True,
            )  # fmt: skip
            for name, gradient in zip(self._points, gradients, strict=True):
                if gradient is not None:
                    found.setdefault(name, []).append(gradient.reshape(len(rows), gradient[0].numel()))
        return [(name, Written(torch.stack(rows))) for name, rows in found.items()]
