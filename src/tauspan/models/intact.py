"""Running a module so that it is unchanged afterwards: what a forward pass keeps in it is removed again."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from tauspan.models.reach import (
    Container,
    Remembering,
    containers,
    differ,
    items_of,
    put_back,
    remembering,
)

_Place: TypeAlias = tuple[dict[str, Tensor | None], str]  # a module's dict of buffers, and a name in it
_SINGLE = 64  # the most kept tensors that are tried one by one


@dataclass(frozen=True)
class Memo:
    """A tensor, or a tuple of them, that a module keeps from one call to the next, outside its parameters and buffers.

    Args:
        container: the dict, list or deque that holds it; an object's attributes are a dict too.
        key: its key or index there.
        where: the same as a path, for messages.
        gone: whether it is set aside by removing the entry; else it is replaced by None.
    """

    container: dict[Any, Any] | list[Any] | deque[Any]
    key: Any
    where: str
    gone: bool = False

    def present(self) -> bool:
        """Whether a tensor is there now."""
        if isinstance(self.container, dict):
            return _is_kept(self.container.get(self.key))
        return self.key < len(self.container) and _is_kept(self.container[self.key])

    def made_again(self, before: Sequence[int]) -> bool:
        """Whether the module has stored a tensor again, under this key or another (for inputs of another shape).

        Args:
            before: the ids of the container's items before.
        """
        if self.present():
            return True
        return self.gone and any(
            _is_kept(item) and id(item) not in before for item in items_of(self.container)
        )

    def set_aside(self) -> None:
        """Remove the tensor from its container, or replace it by None; see `gone`."""
        if self.gone and self.present():
            del self.container[self.key]
        else:
            self.container[self.key] = None


class Intact:
    """Runs a module without leaving anything of the run in it.

    Attributes, registered tensors, and the contents of dicts, lists, sets, deques and closures that belong to the module
    or to its submodules are compared by identity after a run and restored, also after an exception. Caches
    of `functools.lru_cache` on its methods and attributes are cleared before and after a run. Buffers that the first run
    writes to in place (statistics, counters) are replaced by copies during each run; other tensors that are
    written to in place are not restored.

    Args:
        module: the module.

    Attributes:
        memos: the kept tensors that are set aside during a run; see `look`.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> with Intact(net)():
        ...     net.kept = net.weight * 2
        >>> hasattr(net, "kept")
        False
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.memos: tuple[Memo, ...] = ()
        self._held: list[tuple[Container, Container]] = []  # each container with its contents
        self._remembering: tuple[Remembering, ...] = ()
        self._looked = self._fresh = False
        self._written: list[_Place] | None = None  # buffers that runs write to; None before the first run

    @contextmanager
    def __call__(self, memos: Sequence[Memo] | None = None) -> Iterator[None]:
        """Inside the block the module may be called; afterwards it is as before.

        Args:
            memos: the kept tensors to set aside; None for those of this object.
        """
        if not self._fresh:
            self._hold()
        held, self._fresh = self._held, False
        places = self._places() if self._written is None else self._written
        if torch.is_inference_mode_enabled():  # inference tensors do not count writes
            places = []
        try:
            self._forget()
            copies = _copied(places)
            for memo in reversed(self.memos if memos is None else memos):  # the last entry of a list first
                memo.set_aside()
            yield
            if not torch.is_inference_mode_enabled():
                self._written = [place for place, copy in copies if copy._version]
        finally:
            for container, before in held:
                if differ(container, before):
                    put_back(container, before)
            self._forget()

    def _hold(self) -> None:
        """Record what the module's containers hold, if that has changed."""
        if not self._held or any(differ(container, before) for container, before in self._held):
            self._held = [(container, container.copy()) for container, _, _ in containers(self.module)]
            self._remembering = tuple(remembering(self.module))
            self._looked = False

    def _places(self) -> list[_Place]:
        """The dict and the name of each buffer."""
        return [
            (part._buffers, name)
            for part in self.module.modules()
            for name, buffer in part._buffers.items()
            if buffer is not None and not buffer.requires_grad
        ]

    def _forget(self) -> None:
        for function in self._remembering:
            function.cache_clear()

    def look(self, run: Callable[[], Tensor]) -> None:
        """Find the memos again if the module has changed since the last time; a user may have called it.

        Args:
            run: calls the module on some rows and returns the output.
        """
        self._hold()
        if not self._looked:
            with torch.no_grad():
                self.find_memos(run)
            self._looked = True
        self._fresh = True

    def find_memos(self, run: Callable[[], Tensor]) -> None:
        """Find the kept tensors that the module computes again, with the same output, when they are removed.

        Such a tensor may have been computed from parameters in an earlier call (transformers' LeViT keeps its attention
        biases in eval mode). It then hides their derivative, or is out of date once parameters change.

        Args:
            run: calls the module on some rows and returns the output.

        Cost:
            Nothing for a module that keeps no such tensor; otherwise two short passes, or two for each kept tensor.
        """
        candidates, self.memos = self.kept(), ()
        if not candidates:
            return
        with self(()):
            wanted = run()
        removed = [replace(memo, gone=True) for memo in candidates]
        if self._makes_again(candidates, run, wanted):
            self.memos = tuple(candidates)
        elif self._makes_again(removed, run, wanted):
            self.memos = tuple(removed)
        elif len(candidates) <= _SINGLE:
            pairs = zip(candidates, removed, strict=True)
            found = (next((m for m in pair if self._makes_again([m], run, wanted)), None) for pair in pairs)
            self.memos = tuple(memo for memo in found if memo is not None)

    def _makes_again(self, memos: Sequence[Memo], run: Callable[[], Tensor], wanted: Tensor) -> bool:
        before = {id(memo.container): [id(item) for item in items_of(memo.container)] for memo in memos}
        try:
            with self(memos):
                found = run()
                refilled = all(memo.made_again(before[id(memo.container)]) for memo in memos)
        except Exception:  # the module cannot run without this tensor
            return False
        return (
            refilled and found.shape == wanted.shape and bool(torch.allclose(found, wanted, equal_nan=True))
        )

    def kept(self) -> list[Memo]:
        """Every tensor that the module keeps outside its parameters and the buffers that are saved with it."""
        registered = {id(tensor) for tensor in (*self.module.parameters(), *_saved_buffers(self.module))}
        attributes = {id(part._buffers) for part in self.module.modules()}  # treated like attributes
        found = []
        for container, where, of_object in containers(self.module):
            if of_object:
                attributes.add(id(container))
            if isinstance(container, set):
                continue
            items = container.items() if isinstance(container, dict) else enumerate(container)
            for key, value in items:
                if _is_kept(value) and id(value) not in registered:
                    gone = isinstance(container, dict) and id(container) not in attributes
                    found.append(Memo(container, key, f"{where}.{key}".lstrip("."), gone))
        return found


def _saved_buffers(module: nn.Module) -> Iterator[Tensor]:
    """The buffers that are saved with a module, and those of whole numbers, which are made from no parameter."""
    for part in module.modules():
        for name, buffer in part._buffers.items():
            if buffer is not None and (
                name not in part._non_persistent_buffers_set or not buffer.is_floating_point()
            ):
                yield buffer


def _copied(places: Sequence[_Place]) -> list[tuple[_Place, Tensor]]:
    """Replace buffers by copies, and return each place with its copy; a buffer in several places has one copy."""
    copies: dict[int, Tensor] = {}
    found: list[tuple[_Place, Tensor]] = []
    for registry, name in places:
        buffer = registry.get(name)
        if buffer is None:  # it was removed after the places were collected
            continue
        registry[name] = copies.setdefault(id(buffer), buffer.detach().clone())
        found.append(((registry, name), copies[id(buffer)]))
    return found


def _is_kept(item: Any) -> bool:
    """Whether this is a tensor, or a tuple that holds one."""
    return isinstance(item, Tensor) or (isinstance(item, tuple) and any(map(_is_kept, item)))
