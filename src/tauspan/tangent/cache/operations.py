"""Which operations of a tape depend on parameters alone, and in which parameters meet the batch."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tauspan.tangent.cache.tape import Tape
from tauspan.tangent.engine import table
from tauspan.tangent.engine.dual import Entry, Slot, mapped


def sorted_entries(
    tape: Tape, rows: int, apart: frozenset[int] = frozenset()
) -> tuple[list[Entry], list[Entry]]:
    """Operations on parameters alone, and operations on both parameters and the batch.

    Args:
        tape: the pass.
        rows: the number of rows of the batch.
        apart: indices on the tape of operations on parameters alone whose results have the shape of rows, but are none.

    Raises:
        NotImplementedError: an operation on both whose output is not one row for each input.
    """
    alone = set(tape.leaves.values())
    before, touches = [], []
    for index, entry in enumerate(tape.entries):
        slots = slots_of(entry)
        from_parameters = [slot for slot in slots if slot in alone]
        if not from_parameters:
            continue
        shape: Sequence[int] = () if entry.kinds[0] is None else entry.kinds[0][0]
        least = 2 if entry.name == "linear" else 1  # a layer applied to one vector gives features, not rows
        # (N, ...), or (N L, ...) where a layer flattens its input
        batched = len(shape) >= least and shape[0] > 0 and shape[0] % rows == 0
        # an operation with several outputs cannot be a factor; on parameters alone it comes before them
        early = entry.name in table.VIEWS or not batched or len(entry.outputs) > 1 or index in apart
        if len(from_parameters) == len(slots) and early:
            before.append(entry)
            alone |= {slot for slot in entry.outputs if slot is not None}
            continue
        if len(entry.outputs) != 1 or not batched:
            raise NotImplementedError(
                f"factors of {entry.name!r}, whose output is not one row for each input"
            )
        touches.append(_restricted(entry, frozenset(from_parameters)))
    return before, touches


def on_parameters_alone(tape: Tape, mixed: Sequence[Entry]) -> frozenset[int]:
    """The indices on the tape of those operations whose tangents depend on parameters alone."""
    outputs = {entry.outputs[0]: len(slots_of(entry)) for entry in mixed}
    return frozenset(
        index
        for index, entry in enumerate(tape.entries)
        if entry.outputs and entry.outputs[0] in outputs and len(slots_of(entry)) == outputs[entry.outputs[0]]
    )


def parameters_of(tape: Tape, entry: Entry) -> set[str]:
    """The names of the parameters that an operation on parameters alone depends on."""
    origins = {slot: earlier for earlier in tape.entries for slot in earlier.outputs if slot is not None}
    leaves = {slot: name for name, slot in tape.leaves.items()}
    names, stack = set(), slots_of(entry)
    while stack:
        slot = stack.pop()
        if slot in leaves:
            names.add(leaves[slot])
        elif slot in origins:
            stack += slots_of(origins[slot])
    return names


def _restricted(entry: Entry, slots: frozenset[Slot]) -> Entry:
    """The operation without the tangents of activations: only those of the given slots are kept."""

    def keep(item: Any) -> Any:
        return item if item in slots else None

    return replace(entry, inputs=mapped(entry.inputs, keep), named=mapped(entry.named, keep))


def slots_of(entry: Entry) -> list[Slot]:
    """The slots of the dual tensors among an operation's arguments."""
    slots: list[Slot] = []
    mapped((entry.inputs, entry.named), lambda item: slots.append(item) if isinstance(item, Slot) else None)
    return slots
