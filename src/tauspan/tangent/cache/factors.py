"""Jacobian factors: J tau as a sum over the operations that use a parameter, without the network between them.

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
from tauspan.tangent.cache.operations import on_parameters_alone, parameters_of, slots_of, sorted_entries
from tauspan.tangent.cache.room import Held, Room
from tauspan.tangent.cache.sensitivities import Sensitivities, parted
from tauspan.tangent.cache.tape import Tape, gradients, run
from tauspan.tangent.engine.dual import Entry, Slot

# Operations whose output is, in each entry, a known number times an entry of the (broadcast) parameter.
_DIAGONAL = frozenset({"layer_norm", "rms_norm", "group_norm", "batch_norm", "add", "sub", "mul"})


@dataclass(frozen=True)
class Dense:
    """A small parameter's Jacobian written out: shape (N, C, entries of the parameter)."""

    slot: Slot
    jacobian: Held


@dataclass(frozen=True)
class Touch:
    """An operation that uses parameters, with dout_c/dy of shape (N, C, entries of y)."""

    entry: Entry
    sensitivity: Held


_WIDE = 4096  # from this width on, one product per row is faster on a CPU than a batched product


class _Contract(torch.autograd.Function):
    """sum_k S[n, c, k] t[n, k], differentiable in t; autograd's own backward would read S against its memory layout."""

    @staticmethod
    def forward(ctx: Any, sensitivity: Tensor, tangent: Tensor) -> Tensor:
        """The sum over k, shape (N, C)."""
        ctx.save_for_backward(sensitivity)
        if sensitivity.is_cuda or sensitivity.shape[-1] < _WIDE:
            return torch.bmm(sensitivity, tangent.unsqueeze(-1)).squeeze(-1)
        return torch.stack([torch.mv(*pair) for pair in zip(sensitivity, tangent, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        """The gradient in t, sum_c g[n, c] S[n, c, k], shape (N, K)."""
        (sensitivity,) = ctx.saved_tensors
        return None, torch.bmm(gradient.unsqueeze(1), sensitivity).squeeze(1)


@dataclass
class FactorCell:
    """The factors of one batch, and the few operations on parameters alone that come before them.

    Attributes:
        value: f(x; theta0), shape (N, C).
        leaves: the slot of each parameter.
        shapes: shape, dtype and device of each parameter.
        before: operations on parameters alone, such as a reshaping.
        parts: the factors.
        probe: a random g and autograd's own J^T g, for checks; None without checks.
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
        """Build the graph of tau -> J tau once; the map is linear, so every J^T g can use this graph."""
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
                tangents = dict(at)
                run(part.entry, tangents)
                slot = next(slot for slot in part.entry.outputs if slot is not None)
                if slot not in tangents:  # only the parameter's shape is used, as in expand_as
                    continue
                flat = parted(tangents[slot]).reshape(len(total), -1)
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
        known: results of the analysis for each kind of batch; it is filled here and used for later batches.
        most: the largest number of parameter entries in operations that come before all factors because the rows of their
            results are not those of the batch; None for no limit.
        check: compute `probe`, and check in each batch that rows are independent; else only in the first of a kind.

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
        before, touches = sorted_entries(tape, rows, apart)
        if tape.result is not None and any(tape.result in entry.outputs for entry in before):
            raise NotImplementedError("rows of the batch change places between the parameters and the output")
        sensitivities = Sensitivities(tape, [entry.values[0] for entry in touches], mixing)
        mixed = [entry for index, entry in enumerate(touches) if not sensitivities.by_rows(index)]
        if not mixed:
            break
        alone = on_parameters_alone(tape, mixed)
        used = {name for index in alone for name in parameters_of(tape, tape.entries[index])}
        if not alone or (most is not None and sum(shapes[name][0].numel() for name in used) > most):
            raise NotImplementedError(
                f"rows of the batch depend on one another, or change places, in {mixed[0].name!r}"
            )
        apart |= alone
    known[kind] = apart
    for entry in before:
        sizes |= {s: k[0] for s, k in zip(entry.outputs, entry.kinds, strict=True) if s is not None and k}
    parts: list[Dense | Touch] = []
    for index, entry in enumerate(touches):
        sensitivity = sensitivities.of(index)
        if sensitivity is not None:
            parts += _parts(entry, sensitivity, sizes, room)
    light = tuple(replace(entry, values=()) for entry in before)
    built = FactorCell(tape.value.detach(), dict(tape.leaves), shapes, light, tuple(parts))
    built.probe = (sensitivities.weights, sensitivities.pulled) if check else None
    return built


def _parts(
    entry: Entry, sensitivity: Tensor, sizes: Mapping[Slot, torch.Size], room: Room
) -> Sequence[Dense | Touch]:
    """The factors of one operation; the Jacobian of a diagonal one is written out, which is smaller."""
    slots = slots_of(entry)
    targets = {slot: _target(entry, sizes[slot], len(sensitivity)) for slot in slots}
    if entry.name not in _DIAGONAL or any(target is None for target in targets.values()):
        return [Touch(replace(entry, values=()), room.hold(sensitivity))]
    return [Dense(slot, room.hold(_written_out(entry, slot, sizes[slot], sensitivity))) for slot in slots]


def _target(entry: Entry, size: torch.Size, rows: int) -> list[int] | None:
    """A parameter's shape as it is broadcast against the output.

    None if the output is complex, or not one row for each input.
    """
    kind = entry.kinds[0]
    if kind is None or kind[0][0] != rows or kind[1].is_complex:
        return None
    width = len(kind[0])
    by_channel = entry.name in ("group_norm", "batch_norm")
    target = [1, *size, *[1] * (width - 2)] if by_channel else [*[1] * (width - len(size)), *size]
    return target if target[0] == 1 else None


def _written_out(entry: Entry, slot: Slot, size: torch.Size, sensitivity: Tensor) -> Tensor:
    """The Jacobian of a diagonal operation in one parameter, summed over the positions where it is used."""
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
    return summed.reshape(rows, outputs, -1)  # a parameter of one number has no axis
