"""Jacobian factors: J tau as a sum over the operations that meet a parameter, without the network between them.

Where a parameter p enters an operation with output y, its part of J tau is <dout_c/dy, push(tau_p)> for each output c:
the first factor and everything inside `push` (a layer's input) depend on theta0 alone. A linear layer costs one matrix
product forward and one backward; attention, norms and activations cost nothing.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tauspan.core.params import Params
from tauspan.tangent.cache.room import Held, Room
from tauspan.tangent.cache.tape import Tape, gradients, run
from tauspan.tangent.engine import table
from tauspan.tangent.engine.dual import Entry, Slot, mapped
from tauspan.tangent.engine.maps import dense
from tauspan.tangent.engine.precision import noise, rounding

# Operations whose output is, in each entry, a known number times an entry of the (broadcast) parameter.
_DIAGONAL = frozenset({"layer_norm", "rms_norm", "group_norm", "batch_norm", "add", "sub", "mul"})


@dataclass(frozen=True)
class Dense:
    """A small parameter's Jacobian written out: shape (N, C, entries of the parameter)."""

    slot: Slot
    jacobian: Held


@dataclass(frozen=True)
class Touch:
    """An operation that meets parameters, with dout_c/dy of shape (N, C, entries of y) for each row."""

    entry: Entry
    sensitivity: Held


_WIDE = 4096  # from here on a product per row reads memory faster on a CPU than one batched product


class _Contract(torch.autograd.Function):
    """sum_k S[n, c, k] t[n, k], differentiable in t; autograd's own backward reads S against its layout."""

    @staticmethod
    def forward(ctx: Any, sensitivity: Tensor, tangent: Tensor) -> Tensor:
        """Shape (N, C)."""
        ctx.save_for_backward(sensitivity)
        if sensitivity.is_cuda or sensitivity.shape[-1] < _WIDE:
            return torch.bmm(sensitivity, tangent.unsqueeze(-1)).squeeze(-1)
        return torch.stack([torch.mv(*pair) for pair in zip(sensitivity, tangent, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        """sum_c g[n, c] S[n, c, k]."""
        (sensitivity,) = ctx.saved_tensors
        return None, torch.bmm(gradient.unsqueeze(1), sensitivity).squeeze(1)


@dataclass
class FactorCell:
    """One batch: the few operations on parameters alone, then the factors.

    Attributes:
        value: f(x; theta0), shape (N, C).
        leaves: the place of each parameter.
        shapes: name to shape and dtype.
        before: operations that reshape parameters before they meet the batch.
        parts: the factors.
        probe: a random g and autograd's own J^T g, for checks; None if the cell was made without.
    """

    value: Tensor
    leaves: dict[str, Slot]
    shapes: dict[str, tuple[torch.Size, torch.dtype, torch.device]]
    before: tuple[Entry, ...]
    parts: tuple[Dense | Touch, ...]
    probe: tuple[Tensor, dict[str, Tensor]] | None = None
    _points: dict[str, Tensor] = field(default_factory=dict)
    _output: Tensor | None = None

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All operations whose pushes are kept."""
        return (*self.before, *(part.entry for part in self.parts if isinstance(part, Touch)))

    def connect(self) -> None:
        """Build the graph of tau -> J tau once; it is linear, so it serves J^T g for good."""
        self._points = {
            name: torch.zeros((), dtype=dtype, device=device).expand(shape).requires_grad_()
            for name, (shape, dtype, device) in self.shapes.items()
        }
        with torch.enable_grad():
            self._output = self._contract(self._points)

    def push(self, deltas: Params) -> Tensor:
        """J tau."""
        with torch.no_grad():
            return self._contract({name: deltas[name].to(kind[1]) for name, kind in self.shapes.items()})

    def pull(self, gradient: Tensor) -> dict[str, Tensor]:
        """J^T g."""
        assert self._output is not None  # noqa: S101 - `connect` came first
        return gradients(self._output, self._points, gradient)

    def _contract(self, deltas: Params) -> Tensor:
        at: dict[int, Any] = {slot: deltas[name] for name, slot in self.leaves.items()}
        for entry in self.before:
            run(entry, at)
        total = torch.zeros_like(self.value)
        for part in self.parts:
            if isinstance(part, Dense):
                jacobian = part.jacobian.tensor  # of the operation's dtype, which need not be the parameter's
                total = total + jacobian @ at[part.slot].flatten().to(jacobian.dtype)
            else:
                moved = dict(at)
                run(part.entry, moved)
                slot = next(slot for slot in part.entry.outputs if slot is not None)
                if slot not in moved:  # the parameter gives a shape alone, as in expand_as
                    continue
                flat = moved[slot].reshape(len(total), -1)
                total = total + _Contract.apply(part.sensitivity.tensor, flat)  # type: ignore[no-untyped-call]
        return total


def cell(
    tape: Tape,
    room: Room,
    known: dict[Hashable, frozenset[int]] | None = None,
    most: int | None = None,
    check: bool = True,
) -> FactorCell:
    """The factors of one recorded batch.

    Args:
        tape: the batch's pass.
        room: what keeps the tensors.
        known: filled with what was found of batches of one kind, so that it need not be found again.
        most: entries of parameters whose operations may come before all factors, because the rows of what they give are
            not those of the batch; None for any number.
        check: take `probe`, and look in each batch whether rows stay apart; without, only in the first of a kind.

    Raises:
        NotImplementedError: an operation on parameters with several outputs, or whose rows are not those of the batch.
    """
    if tape.value.ndim != 2:
        raise NotImplementedError(
            f"factors of outputs of shape {tuple(tape.value.shape)}; one row each is wanted"
        )
    rows = len(tape.value)
    shapes = {name: (point.shape, point.dtype, point.device) for name, point in tape.points.items()}
    sizes = {slot: shapes[name][0] for name, slot in tape.leaves.items()}
    known = {} if known is None else known
    kind = (tape.value.shape, *((entry.name, entry.kinds) for entry in tape.entries))
    apart = known.get(kind, frozenset())
    mixing: Literal["all", "rows", "none"] = "all" if check else "none" if kind in known else "rows"
    while True:
        before, touches = _sorted_entries(tape, rows, apart)
        if tape.result is not None and any(tape.result in entry.outputs for entry in before):
            raise NotImplementedError("rows of the batch change places between the parameters and the output")
        found = _Sensitivities(tape, [entry.values[0] for entry in touches], mixing)
        mixed = [entry for place, entry in enumerate(touches) if not found.by_rows(place)]
        if not mixed:
            break
        alone = _alone(tape, mixed)
        met = {name for place in alone for name in _parameters(tape, tape.entries[place])}
        if not alone or (most is not None and sum(shapes[name][0].numel() for name in met) > most):
            raise NotImplementedError(
                f"rows of the batch depend on one another, or change places, in {mixed[0].name!r}"
            )
        apart |= alone
    known[kind] = apart
    for entry in before:
        sizes |= {s: k[0] for s, k in zip(entry.outputs, entry.kinds, strict=True) if s is not None and k}
    parts: list[Dense | Touch] = []
    for place, entry in enumerate(touches):
        sensitivity = found.of(place)
        if sensitivity is not None:
            parts += _parts(entry, sensitivity, sizes, room)
    kept = tuple(replace(entry, values=()) for entry in before)
    made = FactorCell(tape.value.detach(), dict(tape.leaves), shapes, kept, tuple(parts))
    made.probe = (found.weights, found.pulled) if check else None
    return made


class _Sensitivities:
    """The derivatives of a batch's outputs in what some operations give, row by row, and whether they are that.

    One backward pass gives the derivatives of the sum over rows of an output, which are those of each row where every
    slice of an operation's result belongs to one row. The rows have random signs in that sum; one more pass, with
    random weights of rows and outputs, tells whether it is so: then it equals the weighted slices.

    Args:
        tape: the batch's pass.
        results: what the operations give.
        mixing: what the pass with random weights is for: `"all"` (rows, and the gradient of each parameter in
            `pulled`), `"rows"`, or `"none"`, no such pass.
    """

    def __init__(self, tape: Tape, results: list[Tensor], mixing: Literal["all", "rows", "none"]) -> None:
        value = tape.value
        generator = torch.Generator().manual_seed(0)
        signs = torch.randint(0, 2, value.shape, generator=generator) * 2 - 1
        self._signs = signs.to(value)
        self.weights = torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value)
        self._columns: list[tuple[Tensor | None, ...]] = []
        self.pulled = {name: torch.zeros_like(point) for name, point in tape.points.items()}
        self._mixed: tuple[Tensor | None, ...] = (None,) * len(results)
        self._noise = 0.0
        if not value.requires_grad:
            return
        if results:
            for c in range(value.shape[1]):
                self._columns.append(_derived(value[:, c] * self._signs[:, c], results))
        inputs = [*results, *(tape.points.values() if mixing == "all" else ())]
        if mixing == "none" or not inputs:
            return
        found = _derived(value * self.weights, inputs)
        self._mixed = found[: len(results)]
        for name, gradient in zip(tape.points, found[len(results) :], strict=mixing == "all"):
            if gradient is not None:
                self.pulled[name] = dense(gradient)
        self._noise = max(
            (float(g.abs().max()) for g in self._mixed if g is not None and g.numel()), default=0.0
        )

    def of(self, place: int) -> Tensor | None:
        """Shape (N, C, entries of a slice); None where no output depends on that result."""
        slices = [column[place] for column in self._columns]
        if not slices or slices[0] is None:
            return None
        rows = len(self._signs)
        flat = [
            g.reshape(rows, 1, -1) * self._signs[:, c].view(rows, 1, 1)
            for c, g in enumerate(slices)
            if g is not None
        ]
        return flat[0] if len(flat) == 1 else torch.cat(flat, 1)

    def by_rows(self, place: int) -> bool:
        """Whether each slice belongs to one row."""
        rows, mixed = len(self._signs), self._mixed[place]
        if rows == 1 or mixed is None:
            return True
        sensitivity = self.of(place)
        assert sensitivity is not None  # noqa: S101 - both come from one graph
        expected = torch.einsum("nck,nc->nk", sensitivity, self.weights)
        gap = float((expected - mixed.reshape(rows, -1)).abs().max())
        dtype = mixed.dtype
        return gap <= max(rounding(dtype) * float(mixed.abs().max()), noise(dtype) * self._noise)


def _derived(weighted: Tensor, inputs: list[Tensor]) -> tuple[Tensor | None, ...]:
    return torch.autograd.grad(weighted.sum(), inputs, retain_graph=True, allow_unused=True)


def _sorted_entries(
    tape: Tape, rows: int, apart: frozenset[int] = frozenset()
) -> tuple[list[Entry], list[Entry]]:
    """Operations on parameters alone, and those where parameters meet the batch.

    Args:
        tape: the pass.
        rows: of the batch.
        apart: places on the tape of operations on parameters alone whose results look like rows, and are not.
    """
    alone = set(tape.leaves.values())
    before, touches = [], []
    for place, entry in enumerate(tape.entries):
        slots = _slots(entry)
        mine = [slot for slot in slots if slot in alone]
        if not mine:
            continue
        shape: Sequence[int] = () if entry.kinds[0] is None else entry.kinds[0][0]
        least = 2 if entry.name == "linear" else 1  # a layer of one vector gives features, and no rows
        # (N, ...), or (N L, ...) where a layer flattens its input
        batched = len(shape) >= least and shape[0] > 0 and shape[0] % rows == 0
        if len(mine) == len(slots) and (entry.name in table.VIEWS or not batched or place in apart):
            before.append(entry)
            alone |= {slot for slot in entry.outputs if slot is not None}
            continue
        if len(entry.outputs) != 1 or not batched:
            raise NotImplementedError(
                f"factors of {entry.name!r}, whose output is not one row for each input"
            )
        touches.append(_restricted(entry, frozenset(mine)))
    return before, touches


def _alone(tape: Tape, mixed: Sequence[Entry]) -> frozenset[int]:
    """The places of those operations that depend on parameters alone, as far as tangents go."""
    outputs = {entry.outputs[0]: len(_slots(entry)) for entry in mixed}
    return frozenset(
        place
        for place, entry in enumerate(tape.entries)
        if entry.outputs and entry.outputs[0] in outputs and len(_slots(entry)) == outputs[entry.outputs[0]]
    )


def _parameters(tape: Tape, entry: Entry) -> set[str]:
    """The parameters that an operation on parameters alone goes back to."""
    made = {slot: earlier for earlier in tape.entries for slot in earlier.outputs if slot is not None}
    leaves = {slot: name for name, slot in tape.leaves.items()}
    found, stack = set(), _slots(entry)
    while stack:
        slot = stack.pop()
        if slot in leaves:
            found.add(leaves[slot])
        elif slot in made:
            stack += _slots(made[slot])
    return found


def _restricted(entry: Entry, mine: frozenset[Slot]) -> Entry:
    """The operation with the tangents of activations left out."""

    def keep(item: Any) -> Any:
        return item if item in mine else None

    return replace(entry, inputs=mapped(entry.inputs, keep), named=mapped(entry.named, keep))


def _slots(entry: Entry) -> list[Slot]:
    found: list[Slot] = []
    mapped((entry.inputs, entry.named), lambda item: found.append(item) if isinstance(item, Slot) else None)
    return found


def _parts(
    entry: Entry, sensitivity: Tensor, sizes: Mapping[Slot, torch.Size], room: Room
) -> Sequence[Dense | Touch]:
    """One operation's factors; a diagonal one is written out, which is smaller and needs no input."""
    slots = _slots(entry)
    targets = {slot: _target(entry, sizes[slot], len(sensitivity)) for slot in slots}
    if entry.name not in _DIAGONAL or any(target is None for target in targets.values()):
        return [Touch(replace(entry, values=()), room.hold(sensitivity))]
    return [Dense(slot, room.hold(_written_out(entry, slot, sizes[slot], sensitivity))) for slot in slots]


def _target(entry: Entry, size: torch.Size, rows: int) -> list[int] | None:
    """A parameter's shape as it is broadcast against the output; None if that is not one row for each input."""
    kind = entry.kinds[0]
    if kind is None or kind[0][0] != rows:
        return None
    width = len(kind[0])
    by_channel = entry.name in ("group_norm", "batch_norm")
    target = [1, *size, *[1] * (width - 2)] if by_channel else [*[1] * (width - len(size)), *size]
    return target if target[0] == 1 else None


def _written_out(entry: Entry, slot: Slot, size: torch.Size, sensitivity: Tensor) -> Tensor:
    """The Jacobian of a diagonal operation in one parameter, summed over the places the parameter is used at."""
    rows, outputs = sensitivity.shape[:2]
    target = _target(entry, size, rows) or []
    at: dict[int, Any] = {slot: torch.ones(size, dtype=sensitivity.dtype, device=sensitivity.device)}
    with torch.no_grad():
        run(entry, at)
    output = next(slot for slot in entry.outputs if slot is not None)
    unit = at[output].unsqueeze(1)
    product = sensitivity.view(rows, outputs, *unit.shape[2:]) * unit
    axes = [axis + 1 for axis in range(1, len(target)) if target[axis] == 1]
    summed: Tensor = product.sum(axes) if axes else product
    return summed.reshape(rows, outputs, -1)  # a parameter of one number leaves no axis of its own
