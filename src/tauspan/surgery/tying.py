"""`TiedDepth`: a short model that runs, and trains, with more layers than it has: theta_l = sum_m D[l, m] theta_m."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tauspan.core.arguments import checked
from tauspan.core.errors import MismatchError, ModelError, listed
from tauspan.surgery.depth import LayerMap


class TiedDepth(nn.Module):
    """A short model with the depth of another one; its own few layers are the only ones that train.

    Layer l of the stack that runs has the tensors theta_l = sum_m D[l, m] theta_m of the short model's layers. With
    `"linear:L"` and a model of two layers, B and A, that is B + (l / L) A (TLEG, arXiv:2312.05614), with
    `"stages:N,N,..."` a layer that is shared by each stage (SWS, arXiv:2404.16897). All else is the short model's.
    Gradients reach the short model, so an optimiser of `parameters()` trains it, and `short.state_dict()` is what is
    kept. It is then a start of any depth: `to_depth(words)` in memory, `change_depth` for a directory.

    Args:
        short: the model whose parameters train; it is shared and not changed.
        words: D, as `LayerMap.parse` reads it.
        stack: the name of its `nn.ModuleList` of layers; None where there is one.

    Raises:
        ModelError: no such list, or several.
        MismatchError: layers of different tensors.
        UsageError: other words, or a map that does not fit the number of layers.

    Cost:
        Each pass that of the deep model, and L sums of layers; memory for them, and for no other weights.

    Example:
        >>> class Stack(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layers = nn.ModuleList(nn.Linear(1, 1, bias=False) for _ in range(2))
        ...     def forward(self, x):
        ...         for layer in self.layers:
        ...             x = layer(x)
        ...         return x
        >>> short = Stack()
        >>> for layer, value in zip(short.layers, (2.0, 3.0)):
        ...     _ = nn.init.constant_(layer.weight, value)
        >>> tied = TiedDepth(short, "linear:3")
        >>> tied(torch.ones(1, 1)).item(), [one.weight.item() for one in tied.to_depth("linear:3").layers]
        (24.0, [2.0, 3.0, 4.0])
    """

    @checked
    def __init__(self, short: nn.Module, words: str, stack: str | None = None) -> None:
        super().__init__()
        self.short = short
        self.stack = _stack(short, stack)
        layers = short.get_submodule(self.stack)
        _require_alike(self.stack, layers)
        self.layers = LayerMap.parse(words, len(list(layers.children())))
        made = _deepened(short, self.stack, self.layers)
        for owner in made.modules():
            for name, held in owner._parameters.items():
                if held is not None:  # only the places are used; tied ones are filled by their own names
                    owner._parameters[name] = nn.Parameter(held.new_empty(0), requires_grad=False)
        self._running = (made,)  # in a tuple, so that its empty parameters are none of this module's

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the deep model gives."""
        return torch.func.functional_call(self._running[0], self.mixed(), args, kwargs, tie_weights=False)

    def mixed(self) -> dict[str, Tensor]:
        """All parameters of the deep model by name, as functions of those of the short one."""
        own = dict(self.short.named_parameters(remove_duplicate=False))
        prefix = self.stack + "."
        found: dict[str, Tensor] = {name: one for name, one in own.items() if not name.startswith(prefix)}
        first = f"{prefix}0."
        for rest in [name.removeprefix(first) for name in own if name.startswith(first)]:
            for layer, row in enumerate(self.layers.rows):
                parts = [
                    own[f"{prefix}{one}.{rest}"] * weight if weight != 1 else own[f"{prefix}{one}.{rest}"]
                    for one, weight in row
                ]
                found[f"{prefix}{layer}.{rest}"] = sum(parts[1:], parts[0])
        return found

    def to_depth(self, words: str) -> nn.Module:
        """An ordinary model of another depth with weights of its own, a start for training.

        Args:
            words: D, for the short model's layers.

        Raises:
            UsageError: as for the class.
        """
        other = TiedDepth(self.short, words, self.stack)
        made = _deepened(self.short, self.stack, other.layers)
        with torch.no_grad():
            values = other.mixed()
            for name, held in made.named_parameters():
                held.copy_(values[name])
        return made.train(self.training)

    def train(self, mode: bool = True) -> "TiedDepth":
        """As of any module; the layers that run follow."""
        super().train(mode)
        self._running[0].train(mode)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "TiedDepth":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._running[0]._apply(fn, recurse)  # type: ignore[no-untyped-call]  # its buffers move too
        return self


def _stack(model: nn.Module, wanted: str | None) -> str:
    """The name of the list of layers."""
    lists: list[str] = [
        name for name, one in model.named_modules() if isinstance(one, nn.ModuleList) and len(one)
    ]
    outer = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    found = [name for name in outer if wanted in (None, name)]
    if not outer:
        raise ModelError(
            f"{type(model).__name__} has no nn.ModuleList, so no stack of layers. Give a model that keeps them in one."
        )
    if len(found) != 1:
        raise ModelError(
            f"stack={wanted!r}: {type(model).__name__} has {listed(outer)}. Name one of these lists."
        )
    return found[0]


def _require_alike(stack: str, layers: nn.Module) -> None:
    shapes = [
        {name: tuple(one.shape) for name, one in layer.named_parameters()} for layer in layers.children()
    ]
    for place, other in enumerate(shapes):
        if other != shapes[0]:
            apart = sorted(
                name for name in shapes[0].keys() | other if shapes[0].get(name) != other.get(name)
            )
            raise MismatchError(
                f"layers 0 and {place} of {stack!r} differ in {listed(apart)}, so they cannot be mixed. Give a stack of "
                "equal layers."
            )


def _deepened(short: nn.Module, stack: str, layers: LayerMap) -> nn.Module:
    """A copy with as many layers as the map has, whose tensors are still those of single old layers."""
    made = copy.deepcopy(short)
    old = made.get_submodule(stack)
    new = nn.ModuleList(copy.deepcopy(old.get_submodule(str(row[0][0]))) for row in layers.rows)
    for place, layer in enumerate(new):
        for part in layer.modules():
            if isinstance(getattr(part, "layer_idx", None), int):  # where transformers keep keys and values
                vars(part)["layer_idx"] = place
    made.set_submodule(stack, new)
    config = getattr(made, "config", None)
    for key in ("num_hidden_layers", "n_layer", "num_layers"):
        if getattr(config, key, None) == layers.depth:
            setattr(config, key, len(layers.rows))
    return made
