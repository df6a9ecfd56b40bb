"""Run a module with parameters other than its own, without changing the module."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import CheckpointFunction

# Carries out `function.apply(*args)` in another way, or returns NotImplemented to leave it as it is.
Custom: TypeAlias = Callable[[type[torch.autograd.Function], Callable[..., Any], tuple[Any, ...]], Any]
_active: ContextVar[tuple["At | None", ...]] = ContextVar("tauspan_at", default=())


class At(TorchFunctionMode):
    """Inside the block, every operation that reads a parameter of the module gets the tensor from `point` instead.

    Parameters are recognised by object identity, wherever the module keeps them: under several names, in a list, in a
    dict or in a closure. `torch.func.functional_call` replaces attributes of the module instead. It misses parameters
    in lists, dicts and closures, and after the call it leaves its tensors in a submodule that has two names.

    Args:
        module: the module with the parameters.
        point: tensors by parameter name. A tied parameter has one entry, under any of its names; every parameter without
            an entry is constant.
        custom: what to do with a `torch.autograd.Function`, which torch does not let a mode see.
        constants: tensors by name that replace other parameters and buffers; a compiler gives its own.

    Attributes:
        used: the names of `point` that some operation has read.
    """

    def __init__(
        self,
        module: nn.Module,
        point: Mapping[str, Tensor],
        custom: Custom | None = None,
        constants: Mapping[str, Tensor] = {},
    ) -> None:
        super().__init__()
        known: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
        # the parameters themselves are stored too, since an id is valid only while its object exists
        self._kept = [parameter for parameter in known.values() if parameter is not None]
        self._others = {id(parameter): parameter.detach() for parameter in self._kept}
        if constants:
            held = held_by(module)
            self._kept += held.values()
            self._others |= {id(held[name]): tensor for name, tensor in constants.items()}
        self._others |= {id(known[name]): tensor for name, tensor in point.items()}
        self._names = {id(known[name]): name for name in point}
        self._custom = custom
        self.used: set[str] = set()

    def __enter__(self) -> "At":
        self._watching = _watched(self)
        self._watching.__enter__()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._watching.__exit__(*error)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation with each parameter replaced by its tensor in `point`."""
        return func(*self.replaced(args), **(self.replaced(kwargs) if kwargs else {}))

    def replaced(self, item: Any) -> Any:
        """The item with its parameters replaced, also in nested tuples, lists and dicts; other parts are not copied."""
        if isinstance(item, Tensor):
            return self._other(item)
        kind = type(item)
        if kind is tuple or kind is list:
            parts = [self.replaced(part) for part in item]
            same = all(new is old for new, old in zip(parts, item, strict=True))
            return item if same else kind(parts)
        if kind is dict:
            named = {key: self.replaced(part) for key, part in item.items()}
            return item if all(named[key] is item[key] for key in item) else named
        return item

    def _other(self, tensor: Tensor) -> Tensor:
        found = self._others.get(id(tensor))
        if found is None:
            # a parameter that the module uses but does not list is a constant, and must not collect a gradient
            return tensor.detach() if isinstance(tensor, nn.Parameter) else tensor
        name = self._names.get(id(tensor))
        if name is not None:
            self.used.add(name)
        return found

    def _applied(
        self, function: type[torch.autograd.Function], apply: Callable[..., Any], args: tuple[Any, ...]
    ) -> Any:
        args = self.replaced(args)
        if self._custom is not None:
            found = self._custom(function, apply, args)
            if found is not NotImplemented:
                return found
        return apply(*args)


def held_by(module: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers by name, tied ones once."""
    return dict([*module.named_parameters(), *module.named_buffers()])


def current() -> At | None:
    """The innermost active `At` of this thread; None if there is none, or if `unchecked` is the innermost block."""
    active = _active.get()
    return active[-1] if active else None


def call_at(
    module: nn.Module, point: Mapping[str, Tensor], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """The module's output with the parameters in `point`; parameters without an entry are constants.

    Args:
        module: any module; it is not changed.
        point: tensors by parameter name.
        args: what to call it with.
        kwargs: keyword inputs.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> call_at(layer, {"weight": torch.ones(1, 2)}, [torch.ones(2)], {})
        tensor([2.])
    """
    with At(module, point) as at:
        return at.replaced(module(*args, **kwargs))


# -- autograd functions, which a TorchFunctionMode does not see -----------------------------------------------------

_lock = threading.Lock()
_watchers = 0
_original: Any = torch.autograd.Function.__dict__["apply"]


def _apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
    plain: Callable[..., Any] = _original.__get__(None, cls)
    active = _active.get()
    if not active or kwargs:
        return plain(*args, **kwargs)
    if (
        cls is CheckpointFunction
    ):  # its forward records no graph, so torch cannot differentiate it in chosen tensors alone
        run, _preserve, *rest = args
        return run(*rest)
    return plain(*args) if active[-1] is None else active[-1]._applied(cls, plain, args)


@contextmanager
def unchecked() -> Iterator[None]:
    """Inside the block, `checkpoint(use_reentrant=True)` keeps activations: equal values, and a graph for autograd."""
    with _watched(None):
        yield


@contextmanager
def _watched(at: At | None) -> Iterator[None]:
    """Inside the block, `Function.apply` in this thread goes through `at`; with None only checkpoints change."""
    global _watchers
    with _lock:
        _watchers += 1
        if _watchers == 1:
            torch.autograd.Function.apply = classmethod(_apply)  # type: ignore[assignment, method-assign]
    token = _active.set((*_active.get(), at))
    try:
        yield
    finally:
        _active.reset(token)
        with _lock:
            _watchers -= 1
            if _watchers == 0:
                torch.autograd.Function.apply = _original  # type: ignore[method-assign]
