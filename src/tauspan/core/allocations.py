"""How many bytes of tensors a piece of work holds, operation by operation, counted where torch dispatches them."""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_ALIKE = (torch.ops.aten.zeros_like.default, torch.ops.aten.clone.default)


@dataclass(frozen=True)
class Event:
    """The state after one operation.

    Args:
        name: of the operation.
        bytes: of the tensors that were made inside the block and are still there.
        kept: bytes that were given away by then, and that a real run keeps; see `Allocations.keep`.
    """

    name: str
    bytes: int
    kept: int


@dataclass
class Phase:
    """A named part of the work and its events."""

    name: str
    events: list[Event] = field(default_factory=list)


class Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors that operations make inside the block, until they are freed.

    Every operation is seen, those of a backward pass too. What a kernel takes and gives back while it runs is not.
    Memory that was there before does not count, whatever views of it are made.

    Attributes:
        phases: what happened, in order; `phase` begins the next one.

    Example:
        >>> with Allocations() as taken:
        ...     x = torch.ones(1000)
        ...     y = (x * 2 + 1).sum()
        >>> max(event.bytes for event in taken.phases[0].events)
        12000
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.phases = [Phase("")]
        self._known: dict[
            int, Any
        ] = {}  # a weak reference to each piece of memory that was seen, by its identity
        self._now = self._kept = 0

    def phase(self, name: str) -> None:
        """Begin a part of the work."""
        self.phases.append(Phase(name))

    def keep(self, size: int) -> None:
        """Count bytes that are freed now, and that the work which this stands for keeps."""
        self._kept += size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count what it made."""
        for leaf in tree_leaves((args, kwargs)):
            self._see(leaf, made=False)
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            self._see(leaf, made=True)
        self.phases[-1].events.append(Event(func.__name__, self._now, self._kept))
        return out

    def _see(self, leaf: Any, made: bool) -> None:
        if not isinstance(leaf, Tensor) or leaf.layout != torch.strided:
            return
        storage = leaf.untyped_storage()
        key = id(storage)
        if key in self._known:
            return
        size = storage.nbytes() if made else 0

        def freed(_: Any) -> None:
            self._known.pop(key, None)
            self._now -= size

        self._known[key] = weakref.ref(storage, freed)
        self._now += size


class StandIns(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside the block, zeros made like a tensor are one zero in memory, and a copy of a tensor is the tensor itself.

    What is made in this way has the right shapes and takes no memory. It must not be written to.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, or return a stand-in of what it would make."""
        if func not in _ALIKE:
            return func(*args, **(kwargs or {}))
        like: Tensor = args[0]
        if func is torch.ops.aten.clone.default:
            return like.detach()
        dtype = (kwargs or {}).get("dtype") or like.dtype
        return torch.zeros((), dtype=dtype, device=like.device).expand(like.shape)


def scaled(few: Sequence[Phase], more: Sequence[Phase], sizes: tuple[int, int], rows: int) -> list[Event]:
    """The events of a pass over many rows, from those over few: what an operation takes is affine in the rows.

    The most that is held at any time is a maximum of affine functions, which is none: so each event is scaled for
    itself. A phase in which the two passes made other operations is scaled as one event, by its highest state.

    Args:
        few: the phases of a pass over `sizes[0]` rows.
        more: those over `sizes[1]` rows.
        sizes: both numbers of rows.
        rows: of the pass that is wanted.
    """
    found: list[Event] = []
    for one, other in zip(few, more, strict=True):
        pairs = zip(one.events, other.events, strict=False)
        if [e.name for e in one.events] != [e.name for e in other.events]:
            pairs = zip([_highest(one)], [_highest(other)], strict=True)
        found += [Event(a.name, _affine(a.bytes, b.bytes, sizes, rows), b.kept) for a, b in pairs]
    return found


def _highest(phase: Phase) -> Event:
    return max(phase.events, key=lambda e: e.bytes + e.kept, default=Event("", 0, 0))


def _affine(few: int, more: int, sizes: tuple[int, int], rows: int) -> int:
    """The value at `rows` of the line through two points; that of the first where both are one."""
    first, second = sizes
    return few if first == second else round(few + (more - few) * (rows - first) / (second - first))
