"""Copy a module so that the copy can take other weights, and list tensors kept outside its parameters and buffers."""

import copy
from collections import deque
from collections.abc import Sequence
from typing import Any, TypeVar

from torch import Tensor, nn

from tauspan.core.errors import ModelError
from tauspan.models.intact import Intact, Memo
from tauspan.models.reach import reached

_AnyModule = TypeVar("_AnyModule", bound=nn.Module)


def working_copy(module: _AnyModule, shared: dict[int, Any] | None = None) -> _AnyModule:
    """A deep copy that can take other weights: tensors computed from the module's current weights are left out.

    By convention a module that keeps such tensors in eval mode drops them in `train()`, so this calls `train()` on the
    copy's layers and then restores their modes. Tensors with an autograd graph are dropped too.

    Args:
        module: what is copied.
        shared: by the id of an object in the module, what the copy has in its place instead of a copy of it.

    Raises:
        ModelError: the module keeps a function that holds one of its parameters, which the copy would still use; or it
            keeps a view of a parameter, which the copy would lack.
    """
    intact = Intact(module)
    kept = [memo for memo in intact.kept() if _was_made(memo.container[memo.key])]
    _require_no_views(module, kept)
    with intact(kept):
        made = copy.deepcopy(module, dict(shared or {}))
    _require_own(made, module)
    modes = [(layer, layer.training) for layer in made.modules()]
    for layer, mode in modes:
        if not mode and type(layer).train is not nn.Module.train:
            layer.train(True)
    for layer, mode in modes:
        layer.training = mode
    return made


def _require_no_views(module: nn.Module, kept: Sequence[Memo]) -> None:
    """Raise if a kept tensor is a view of a parameter, since no forward pass computes it again."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    for memo in kept:
        base = getattr(memo.container[memo.key], "_base", None)
        if id(base) in names:
            raise ModelError(
                f"{type(module).__name__} keeps a view of the parameter {names[id(base)]!r} at {memo.where!r}, which a "
                "copy with other weights would lack. Take it from the parameter in the forward pass "
                "(`self.weight[:2]` where it is used)."
            )


def kept_outside(module: nn.Module) -> list[str]:
    """The paths of floating-point tensors that a module keeps outside its parameters and buffers."""
    buffers = {id(buffer) for buffer in module.buffers()}
    found = [(memo.where, memo.container[memo.key]) for memo in Intact(module).kept()]
    return [where for where, item in found if id(item) not in buffers and _has_fractions(item)]


def _has_fractions(item: Any) -> bool:
    if isinstance(item, tuple):
        return any(map(_has_fractions, item))
    return isinstance(item, Tensor) and item.is_floating_point() and not isinstance(item, nn.Parameter)


def _require_own(made: nn.Module, module: nn.Module) -> None:
    """Raise if a copy still reaches parameters of the module that it was made from."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    for item, where, _ in reached(made):
        inside = (
            item.values() if isinstance(item, dict) else item if isinstance(item, list | deque) else (item,)
        )
        for tensor in inside:
            if isinstance(tensor, Tensor) and id(tensor) in names:
                raise ModelError(
                    f"{type(module).__name__} keeps a function at {where.removesuffix('.')!r} that holds the parameter "
                    f"{names[id(tensor)]!r} (a closure or a default), and a copy with other weights would go on to use "
                    f"this one. {_own_way(module)}"
                )


def _own_way(module: nn.Module) -> str:
    """Advice for the error about a function that a copy shares with the module."""
    if any(hasattr(part, "_hf_hook") for part in module.modules()):
        return (
            "accelerate put it there, to spread the model over devices: have the whole model on one of them, and take "
            "its hooks off, `accelerate.hooks.remove_hook_from_submodules(MODEL)`."
        )
    return (
        "Take it from the module when it is called (`self.layer.weight`), or keep it in a `functools.partial` or a list, "
        "which are copied with the module."
    )


def _was_made(item: Any) -> bool:
    """Whether a kept tensor has an autograd graph, which shows that it was computed from other tensors."""
    return (
        any(map(_was_made, item)) if isinstance(item, tuple) else getattr(item, "grad_fn", None) is not None
    )
