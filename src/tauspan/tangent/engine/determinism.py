"""Does a module give the same output when it is called again, and is it left as it was?"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from tauspan.core.errors import ModelError, listed
from tauspan.tangent.engine.call import Call
from tauspan.tangent.engine.precision import far

_CALLS = 8  # how often a module that draws random numbers is called again


class RandomError(ModelError):
    """A module gives different outputs for the same inputs."""


def require_function(call: Call, value: Tensor) -> None:
    """Raise unless the module gives the same output again.

    Raises:
        RandomError: two calls in eval mode differ; it names the innermost layer that gave two outputs for equal inputs.

    Cost:
        One forward, or up to 8 where the module draws random numbers.
    """
    for _ in range(_CALLS):
        before = random_state()
        with torch.no_grad():
            again = call.again()
        if again.shape != value.shape or far(again, value, 1e-4):
            raise RandomError(
                f"{_random_layer(call)} gives another output when it is called again with the same inputs in eval mode, "
                "so f(x) is no function of x. Use layers that are deterministic in eval mode (`F.dropout` needs "
                "`training=self.training`), or pass the random numbers as an input."
            )
        if all(map(torch.equal, before, random_state())):
            return


def random_state() -> list[Tensor]:
    """The states of torch's random generators, and hashes of Python's and NumPy's."""
    others = [hash(random.getstate()), hash(np.random.get_state()[1].tobytes())]  # type: ignore[index]
    states = [torch.get_rng_state(), torch.tensor(others)]
    return [*states, torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else states  # type: ignore[no-untyped-call]


def require_unchanged(call: Call, value: Tensor) -> None:
    """Raise if the module gives another output after an engine has run it than before.

    Raises:
        RandomError: it gives another output each time.
        ModelError: the module kept a tensor of the engine's pass where `Intact` does not look.
    """
    again: Any = None
    try:
        with torch.no_grad():
            again = call.again()
        same = type(again) in (type(value), nn.Parameter) and not far(again, value, 1e-4)
    except Exception:  # a tensor of ours that the module kept can make it fail in any way
        same = False
    if not same:
        if type(again) is type(value):
            with torch.no_grad():
                first = call.plain()
            require_function(call, first)
        raise keeps_tensors(call.module)


def keeps_tensors(module: nn.Module) -> ModelError:
    """The error of a module that keeps tensors between calls, to be raised."""
    return ModelError(
        f"{type(module).__name__} keeps a tensor that it made from its parameters between calls, in a place outside its "
        "modules (a global, a class attribute, a cache of a function), so that later calls do not depend on them "
        "as they should. Keep it on the module itself, or make it anew in each call and empty that place."
    )


def versions_of(module: nn.Module) -> dict[str, int]:
    """How often each parameter was written to, by name."""
    return {name: parameter._version for name, parameter in module.named_parameters()}


def require_unwritten(module: nn.Module, before: Mapping[str, int]) -> None:
    """Raise if a call has written to the module's own parameters."""
    written = [name for name, version in versions_of(module).items() if version != before.get(name)]
    if written:
        raise ModelError(
            f"{type(module).__name__} writes to its own parameters when it is called ({listed(written)}), as layers do "
            "that set themselves from the first batch, and has now done so with rows of this one. Load it anew and "
            "call it once on a whole batch (`module(x)`); it can be linearised then, if it writes no more."
        )


def _random_layer(call: Call) -> str:
    """The first submodule to finish that gave different outputs for equal inputs."""
    names = {layer: name for name, layer in call.module.named_modules()}
    first = _seen(call)
    for _ in range(_CALLS):
        for (layer, inputs, outputs), (other, inputs_2, outputs_2) in zip(first, _seen(call), strict=False):
            if layer is not other:
                break
            if _equal(inputs, inputs_2) and not _equal(outputs, outputs_2):
                return f"{names[layer]!r} ({type(layer).__name__})" if names[layer] else type(layer).__name__
    return type(call.module).__name__


_Seen: TypeAlias = tuple[nn.Module, list[Tensor], list[Tensor]]


def _seen(call: Call) -> list[_Seen]:
    """Each submodule with its inputs and outputs, in the order in which the submodules finish."""
    seen: list[_Seen] = []
    with _watching(call.module, lambda *item: seen.append(item)), torch.no_grad():
        call.plain()
    return seen


@contextmanager
def _watching(module: nn.Module, note: Callable[[nn.Module, Any, Any], None]) -> Iterator[None]:
    hooks = [
        layer.register_forward_hook(
            lambda layer, args, kwargs, out: note(layer, _frozen((args, kwargs)), _frozen(out)),
            with_kwargs=True,
        )
        for layer in module.modules()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _frozen(item: Any) -> list[Tensor]:
    """Copies of the tensors in `item`: the module may change them later."""
    if isinstance(item, Tensor):
        return [item.detach().clone()]
    if isinstance(item, Mapping):
        return [tensor for part in item.values() for tensor in _frozen(part)]
    if isinstance(item, Sequence) and not isinstance(item, str):
        return [tensor for part in item for tensor in _frozen(part)]
    return []


def _equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(
        a.shape == b.shape and not far(a, b, 1e-6) for a, b in zip(first, second, strict=True)
    )
