"""A tape: the recorded pass of one batch, with which J tau and J^T g need no further forward at theta0."""

import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tauspan.core.params import Params
from tauspan.tangent.cache.room import Held, Room
from tauspan.tangent.engine.dual import Dual, Entry, Slot, Trace, mapped
from tauspan.tangent.engine.reference import Function, open_attention
from tauspan.tangent.engine.rules import like


@dataclass(frozen=True)
class Tape:
    """The operations on the tangents of one batch, and the autograd graph of f.

    Attributes:
        value: f(x; theta0) with its autograd graph, of which `points` are the leaves.
        points: the trainable tensors of theta0 as leaves, by name.
        leaves: the slot of each parameter's tangent.
        entries: the operations on tangents, in order.
        result: the slot of the output's tangent; None if the output does not depend on the parameters.
    """

    value: Tensor
    points: Mapping[str, Tensor]
    leaves: Mapping[str, Slot]
    entries: tuple[Entry, ...]
    result: Slot | None

    def push(self, deltas: Params) -> Tensor:
        """J tau, by the recorded pushes alone; without a graph."""
        if self.result is None:
            return torch.zeros_like(self.value)
        at: dict[int, Any] = {
            slot: deltas[name].to(self.points[name].dtype) for name, slot in self.leaves.items()
        }
        with torch.no_grad():
            for place, entry in enumerate(self.entries):
                run(entry, at)
                for slot in self._last_uses.get(place, ()):
                    if slot != self.result:
                        at.pop(slot, None)
        found: Tensor = at[self.result]
        return found

    @cached_property
    def _last_uses(self) -> dict[int, list[Slot]]:
        return _last_uses(self.entries)

    def pull(self, gradient: Tensor) -> dict[str, Tensor]:
        """J^T g, by the backward of f's own graph, which is kept."""
        return gradients(self.value, self.points, gradient)


def run(entry: Entry, at: dict[int, Any]) -> None:
    """Run one operation of a tape: read its input tangents from `at`, and store the output's tangents there."""

    def known(item: Any) -> Any:
        return at.get(item) if isinstance(item, Slot) else item

    found = entry.push(*mapped(entry.inputs, known), **mapped(entry.named, known))
    outputs = found if len(entry.outputs) > 1 or isinstance(found, tuple | list) else (found,)
    for slot, tangent, kind in zip(entry.outputs, outputs, entry.kinds, strict=True):
        if slot is not None and kind is not None and tangent is not None:
            at[slot] = like(tangent, *kind)


def gradients(value: Tensor, points: Mapping[str, Tensor], gradient: Tensor) -> dict[str, Tensor]:
    """The vector-Jacobian product of a kept graph; zeros where the value does not depend on a leaf."""
    if not value.requires_grad:
        return {name: torch.zeros_like(point) for name, point in points.items()}
    found = torch.autograd.grad(
        value, list(points.values()), gradient.to(value.dtype), retain_graph=True, allow_unused=True
    )
    pairs = zip(points.items(), found, strict=True)
    return {name: torch.zeros_like(point) if g is None else g for (name, point), g in pairs}


def _last_uses(entries: tuple[Entry, ...]) -> dict[int, list[Slot]]:
    """The slots that each entry is the last to read."""
    last: dict[Slot, int] = {}

    def note(place: int) -> Callable[[Any], None]:
        def one(item: Any) -> None:
            if isinstance(item, Slot):
                last[item] = place

        return one

    for place, entry in enumerate(entries):
        mapped((entry.inputs, entry.named, entry.outputs), note(place))
    ends: dict[int, list[Slot]] = {}
    for slot, place in last.items():
        ends.setdefault(place, []).append(slot)
    return ends


def record(function: Function, theta0: Params, probe: Params | None, trace: Trace) -> tuple[Tape, Tensor]:
    """Run the module once at theta0 and record its tape.

    Args:
        function: the module as a function of its named parameters, at fixed inputs.
        theta0: the point.
        probe: a direction whose J probe is computed in the same pass, for checks; None saves half the work.
        trace: how to treat operations without a rule.

    Returns:
        The tape, and J probe by the one-pass engine; zeros without a probe.
    """
    trace.tape = []
    points = {name: theta.detach().requires_grad_() for name, theta in theta0.items()}
    duals = {
        name: Dual(point, () if probe is None else (probe[name].to(point.dtype),), trace)
        for name, point in points.items()
    }
    with torch.enable_grad(), open_attention():
        out = function(dict(duals))
    if not isinstance(out, Dual):
        return Tape(out.detach(), points, {}, (), None), torch.zeros_like(out)
    leaves = {name: dual.slot for name, dual in duals.items()}
    tangent = torch.zeros_like(out.primal) if probe is None else out.tangents[0]
    return Tape(out.primal, points, leaves, tuple(trace.tape), out.slot), tangent


def hold(entries: Sequence[Entry], room: Room) -> list[tuple[types.CellType, Any]]:
    """Move the tensors inside the pushes to the room; `release` puts them back after `Room.settle`.

    A push is a closure, and its tensors are in the closure's cells.
    """
    found: list[tuple[types.CellType, Any]] = []
    seen: set[int] = set()

    def visit(function: Any) -> None:
        for cell in getattr(function, "__closure__", None) or ():
            if id(cell) in seen:
                continue
            seen.add(id(cell))
            content = cell.cell_contents
            if isinstance(content, types.FunctionType):
                visit(content)
            elif isinstance(content, Tensor | tuple | list | dict):
                found.append(
                    (
                        cell,
                        mapped(content, lambda item: room.hold(item) if isinstance(item, Tensor) else item),
                    )
                )

    for entry in entries:
        visit(entry.push)
    return found


def release(held: Sequence[tuple[types.CellType, Any]]) -> None:
    """Put the room's tensors back into the closures of the pushes."""
    for cell, content in held:
        cell.cell_contents = mapped(content, lambda item: item.tensor if isinstance(item, Held) else item)
