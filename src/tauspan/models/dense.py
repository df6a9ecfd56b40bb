"""Layers of sentence-transformers behind the pooling: frozen maps of the pooled vector."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tauspan import store
from tauspan.core import params
from tauspan.core.errors import ModelError, StoreError
from tauspan.models import folders
from tauspan.models.encoder import Batch

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear.Identity": lambda z: z, "activation.Tanh": torch.tanh, "activation.ReLU": F.relu,
    "activation.GELU": F.gelu, "activation.SiLU": F.silu, "activation.Sigmoid": torch.sigmoid,
}  # fmt: skip
_USUAL = "torch.nn.modules.activation.Tanh"  # where the file says nothing
_INSIDE = "sentence_embedding"  # what the layer reads and writes


@dataclass(frozen=True, eq=False)
class Dense:
    """z -> a(W z + b), and beside it z or R z where the layer has a residual.

    Args:
        tensors: W as `linear.weight`, b as `linear.bias`, R as `residual.weight`.
        activation: a, as sentence-transformers names it.
        residual: whether there is one.
    """

    tensors: params.Params
    activation: str
    residual: bool

    def __call__(self, z: Tensor) -> Tensor:
        """Vectors of shape (N, outputs)."""
        weight, bias, beside = (
            None if tensor is None else tensor.to(z.device, z.dtype)
            for tensor in map(self.tensors.get, ("linear.weight", "linear.bias", "residual.weight"))
        )
        assert weight is not None  # noqa: S101 - `layers` read it
        made = _ACTIVATIONS[_short(self.activation)](F.linear(z, weight, bias))
        if not self.residual:
            return made
        return made + (z if beside is None else F.linear(z, beside))

    def __repr__(self) -> str:
        """By its values, so that heads that were made behind other layers are told apart."""
        return f"Dense({params.fingerprint(self.tensors)[:12]}, {self.activation}, residual={self.residual})"


def unit(z: Tensor) -> Tensor:
    """Vectors of length 1."""
    return F.normalize(z, dim=-1)


@dataclass(frozen=True, eq=False)
class Behind:
    """Features that frozen layers make of pooled ones.

    Args:
        pooled: reads the pooled vector off the model.
        layers: what follows, in order.
    """

    pooled: Callable[[nn.Module, Batch], Tensor]
    layers: tuple[Callable[[Tensor], Tensor], ...]

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """Features of shape (N, outputs of the last layer)."""
        z = self.pooled(model, batch)
        for layer in self.layers:
            z = layer(z)
        return z

    def __repr__(self) -> str:
        named = ["unit" if layer is unit else repr(layer) for layer in self.layers]
        pooled = getattr(self.pooled, "__qualname__", None) or repr(self.pooled)
        return f"Behind({pooled}, {', '.join(named)})"

    def __str__(self) -> str:
        count = sum(isinstance(layer, Dense) for layer in self.layers)
        pooled = getattr(self.pooled, "__name__", None) or str(self.pooled)
        return f"{pooled}, through {count} frozen dense layer{'' if count == 1 else 's'}"


def layers(directory: Path) -> tuple[Callable[[Tensor], Tensor], ...]:
    """The layers behind the pooling that `modules.json` lists, up to the last dense one.

    A norm at the end is left to the heads, as it is where there is no dense layer.

    Raises:
        ModelError: a layer reads something else than the pooled vector, or has an activation that is not known here.
        PickleRefusedError, StoreError: its weights are a pickle, or not there.
    """
    listed, weights = folders.modules(directory), folders.parts(directory)
    found: list[Callable[[Tensor], Tensor]] = []
    for one in listed:
        if one.kind == "Dense":
            found.append(_dense(directory / one.path, weights.get(one.path)))
        elif one.kind == "Normalize":
            _require_inside(directory / one.path / "config.json")
            found.append(unit)
    _require_chain(found, directory)
    while found and found[-1] is unit:
        found.pop()
    return tuple(found)


def _require_chain(found: list[Callable[[Tensor], Tensor]], directory: Path) -> None:
    """Raise if a dense layer does not read what the one before it gives."""
    dense = [layer for layer in found if isinstance(layer, Dense)]
    for before, after in itertools.pairwise(dense):
        gives, reads = before.tensors["linear.weight"].shape[0], after.tensors["linear.weight"].shape[1]
        if gives != reads:
            raise ModelError(
                f"{directory}: a dense layer behind the pooling gives {gives} numbers, and the next one reads {reads}: "
                "their files are of different models. Get the whole model again."
            )


def _dense(folder: Path, weights: Path | None) -> Dense:
    config = _require_inside(folder / "config.json")
    activation = str(config.get("activation_function", _USUAL))
    if _short(activation) not in _ACTIVATIONS or not activation.startswith("torch.nn."):
        known = ", ".join(name.partition(".")[2] for name in _ACTIVATIONS)
        raise ModelError(
            f"{folder}/config.json asks for the activation {activation!r}, and layers behind the pooling have one of "
            f"torch's {known}. Load the model with sentence-transformers and pass a module that returns the features."
        )
    if weights is None:
        raise StoreError(
            f"{folder} has no model.safetensors: save the model with sentence-transformers again."
        )
    tensors = store.Checkpoint(weights).read()
    residual = bool(config.get("use_residual"))
    wanted = {"linear.weight"} | ({"linear.bias"} if config.get("bias", True) else set())
    if not wanted <= set(tensors):
        raise StoreError(f"{weights} lacks {', '.join(sorted(wanted - set(tensors)))}: get the file again.")
    return Dense(tensors, activation, residual)


def _require_inside(file: Path) -> dict[str, Any]:
    """The configuration of a layer that reads and writes the pooled vector."""
    found = store.read_json(file) if file.is_file() else {}
    content: dict[str, Any] = found if isinstance(found, dict) else {}
    for key in ("module_input_name", "module_output_name"):
        if content.get(key) not in (None, _INSIDE):
            raise ModelError(
                f"{file} has {key}={content[key]!r}, and layers behind the pooling are read that take and give "
                f"{_INSIDE!r}. Load the model with sentence-transformers and pass a module that returns the features."
            )
    return content


def _short(activation: str) -> str:
    """`activation.Tanh` of `torch.nn.modules.activation.Tanh`."""
    return ".".join(activation.split(".")[-2:])
