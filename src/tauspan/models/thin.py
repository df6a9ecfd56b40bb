"""Layers whose tensors move in small spaces: the same class, in which a moved tensor reads as W + B delta.

A layer keeps its parameters under their names. Beside a tensor `weight` it has the parameter `weight_delta` and the
frozen factors `weight_basis0`, ... Whoever reads `layer.weight` gets W + B delta, so a module that reads the tensors of
its layers by itself (attention, fused paths) is right too. A linear layer or a convolution computes y = W x + L (R x)
with the thin factors instead, and never forms the displacement.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tauspan.core.errors import ModelError
from tauspan.models.bases import Basis, Factors, Form
from tauspan.models.reach import reached

DELTA = "_delta"
_FORMS = "small_forms"  # the attribute with the form of each moved tensor


def is_turned(layer: nn.Module) -> bool:
    """Whether a layer stores its weight as (inputs, outputs): transformers' `Conv1D`."""
    return any(
        kind.__name__ == "Conv1D" and "pytorch_utils" in kind.__module__ for kind in type(layer).__mro__
    )


def owners(inner: nn.Module, name: str) -> list[tuple[nn.Module, str]]:
    """The layers that hold a parameter, each with its name there; several for a tied one."""
    parameter = inner.get_parameter(name)
    return [
        (layer, leaf)
        for layer in inner.modules()
        for leaf, held in layer._parameters.items()
        if held is parameter
    ]


def place(inner: nn.Module, bases: Mapping[str, Basis]) -> None:
    """Let tensors of a module move in small spaces; every delta is 0.

    Raises:
        ModelError: the module keeps one of the tensors where layers are not asked for it.
    """
    held = {name: owners(inner, name) for name in bases}
    _require_read_by_name(inner, bases)
    for name, basis in bases.items():
        theta = inner.get_parameter(name)
        delta = nn.Parameter(torch.zeros(basis.small, dtype=theta.dtype, device=theta.device))
        for layer, leaf in held[name]:
            vars(layer).setdefault(_FORMS, {})[leaf] = basis.form
            layer.register_parameter(f"{leaf}{DELTA}", delta)
            for number, factor in enumerate(basis.factors):
                layer.register_buffer(f"{leaf}_basis{number}", factor)
    for layer in inner.modules():
        if _FORMS in vars(layer):
            layer.__class__ = _moving(type(layer), vars(layer)[_FORMS])


def lift(inner: nn.Module) -> None:
    """Undo `place`: the layers have their own classes again, and the tensors W + B delta."""
    merged: dict[Tensor, nn.Parameter] = {}  # a tied tensor stays one
    for layer in inner.modules():
        forms = vars(layer).get(_FORMS, {})
        for leaf in forms:
            theta, delta = layer._parameters[leaf], layer._parameters[f"{leaf}{DELTA}"]
            if theta is not None and delta is not None and bool(delta.any()):
                if theta not in merged:
                    merged[theta] = nn.Parameter(getattr(layer, leaf).detach(), theta.requires_grad)
                layer._parameters[leaf] = merged[theta]
            for name in extra_of(layer, leaf):
                layer._parameters.pop(name, None)
                layer._buffers.pop(name, None)
        if forms:
            del vars(layer)[_FORMS]
            layer.__class__ = vars(type(layer))["ordinary_class"]


def extra_of(layer: nn.Module, leaf: str) -> list[str]:
    """The names of delta and the factors beside one tensor of a layer."""
    own = [name for name in layer._buffers if name.startswith(f"{leaf}_basis")]
    return [f"{leaf}{DELTA}", *own]


def factors_of(layer: nn.Module, leaf: str) -> Factors:
    """The factors of one tensor."""
    return tuple(layer._buffers[name] for name in extra_of(layer, leaf)[1:])  # type: ignore[misc]


def _require_read_by_name(inner: nn.Module, bases: Mapping[str, Basis]) -> None:
    """Raise if a list, a dict or a closure of the module holds a tensor, which then reads as W there."""
    moved = {id(inner.get_parameter(name)): name for name in bases}
    registries = {id(layer._parameters) for layer in inner.modules()}
    for item, where, _ in reached(inner):
        inside: Iterator[Any] | list[Any]
        inside = (
            list(item.values())
            if isinstance(item, dict)
            else [item]
            if isinstance(item, Tensor)
            else list(item)
        )
        for tensor in inside:
            if id(item) not in registries and id(tensor) in moved:
                raise ModelError(
                    f"{type(inner).__name__} also keeps {moved[id(tensor)]!r} at {where or 'its own attributes'!r}, "
                    "where a small space cannot move it. Leave this tensor out of `params`, or take it from its layer "
                    "in the forward pass (`self.layer.weight`)."
                )


# -- classes ---------------------------------------------------------------------------------------------------


def _moving(kind: type[nn.Module], forms: Mapping[str, Form]) -> type[nn.Module]:
    """The layer's class, with moved tensors as properties, and a thin forward where there is one."""
    body: dict[str, Any] = {leaf: property(_moved(leaf)) for leaf in forms}
    thin = next((made for known, made in _THIN.items() if kind is known), None)
    if kind.__name__ == "Conv1D" and "pytorch_utils" in kind.__module__:
        thin = _conv1d
    if thin is not None and "weight" in forms and forms["weight"].thin:
        body["forward"] = thin
    body |= {"ordinary_class": kind, "__module__": kind.__module__, "__doc__": kind.__doc__}
    return type(kind.__name__, (kind,), body)


def _moved(leaf: str) -> Callable[[nn.Module], Tensor | None]:
    def read(layer: nn.Module) -> Tensor | None:
        theta, delta = layer._parameters[leaf], layer._parameters[f"{leaf}{DELTA}"]
        if theta is None or delta is None:
            return theta
        # no AttributeError may arise here, since a module would then answer with the parameter itself
        form: Form = vars(layer)[_FORMS][leaf]
        return theta + form.dense(delta, factors_of(layer, leaf))

    return read


def _parts(layer: Any) -> tuple[Tensor, Tensor, Tensor, Form, Factors]:
    """W, R and delta of a layer's weight, its form and factors."""
    factors = factors_of(layer, "weight")
    held = layer._parameters
    return held["weight"], factors[-1], held[f"weight{DELTA}"], vars(layer)[_FORMS]["weight"], factors


def _linear(self: Any, x: Tensor) -> Tensor:
    """Y = W x + b + L (R x)."""
    weight, right, delta, form, factors = _parts(self)
    return F.linear(x, weight, self.bias) + form.left(F.linear(x, right), delta, factors)


def _conv1d(self: Any, x: Tensor) -> Tensor:
    """The same for a layer that stores its weight transposed, computed as transformers does."""
    weight, right, delta, form, factors = _parts(self)
    plain = torch.addmm(self.bias, x.view(-1, x.size(-1)), weight).view(*x.shape[:-1], self.nf)
    return plain + form.left(F.linear(x, right), delta, factors)


def _convolution(self: Any, x: Tensor) -> Tensor:
    """A convolution with r kernels, then r numbers at each place to the outputs."""
    weight, right, delta, form, factors = _parts(self)
    if self.groups != 1:
        moved: Tensor = self._conv_forward(x, self.weight, self.bias)
        return moved
    inner = self._conv_forward(x, right.view(-1, *weight.shape[1:]), None)
    axis = 1 - weight.dim()  # of the channels, with or without a batch
    outer = form.left(inner.movedim(axis, -1), delta, factors).movedim(-1, axis)
    return self._conv_forward(x, weight, self.bias) + outer  # type: ignore[no-any-return]


_Forward: TypeAlias = Callable[[Any, Tensor], Tensor]
_THIN: Mapping[type[nn.Module], _Forward] = {
    nn.Linear: _linear,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Conv3d: _convolution,
}
