"""muP for a module of any architecture: learning rates and starts, parameter by parameter, from a module of a base width."""

import fnmatch
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from tauspan import models
from tauspan.core import params
from tauspan.core.arguments import checked
from tauspan.core.errors import MismatchError, ModelError, UsageError, nearest
from tauspan.core.report import Cell, Report, Table
from tauspan.core.results import Result

Role: TypeAlias = Literal["input", "hidden", "output", "fixed"]
Rule: TypeAlias = Literal["sgd", "adam"]
_OUT_FIRST = (nn.Linear, nn.Bilinear, nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase)
_OUT_FIRST += (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_IN_FIRST = (nn.Embedding, nn.EmbeddingBag, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class ParameterScale:
    """What muP wants of one parameter, against the base width.

    Args:
        name: the parameter's.
        role: `"input"` (its output units grow: input weights, embeddings, biases, gains), `"hidden"` (both sides grow),
            `"output"` (its input units grow: readouts) or `"fixed"` (neither).
        fan_in: input units over those of the base.
        fan_out: output units over those of the base.
    """

    name: str
    role: Role
    fan_in: float
    fan_out: float

    @property
    def sgd(self) -> float:
        """What multiplies the learning rate of SGD: fan_out / fan_in, of ratios to the base."""
        return self.fan_out / self.fan_in

    @property
    def adam(self) -> float:
        """What multiplies the learning rate of Adam and AdamW: 1 / fan_in."""
        return 1 / self.fan_in

    @property
    def std(self) -> float:
        """What multiplies the base's standard deviation at the start: 1/sqrt(fan_in), and 1/fan_in of a readout."""
        return self.fan_in ** (-1.0 if self.role == "output" else -0.5)


@dataclass(frozen=True, kw_only=True)
class Mup(Result):
    """What muP wants of each parameter of a module; `mup` makes it.

    Args:
        scales: of each parameter, in the module's order.
    """

    scales: tuple[ParameterScale, ...]

    def __repr__(self) -> str:
        counts = Counter(one.role for one in self.scales)
        return f"Mup({', '.join(f'{count} {role}' for role, count in counts.items())})"

    @checked
    def multipliers(self, rule: Rule = "adam") -> dict[str, float]:
        """What multiplies the learning rate, by name; parameters whose rate stays are left out, all of them at the base width.

        `Settings(lr_multipliers=...)` takes it: fine-tuning is done by AdamW.

        Args:
            rule: of the optimiser.
        """
        return {one.name: value for one in self.scales if (value := getattr(one, rule)) != 1}

    @checked
    def groups(
        self, model: nn.Module, lr: float, rule: Rule = "adam", *, weight_decay: float = 0.0
    ) -> list[dict[str, Any]]:
        """Parameter groups for an optimiser of torch, one for each multiplier: parameters that require a gradient.

        Args:
            model: the module that was given to `mup`, or another of the same shapes.
            lr: the learning rate at the base width.
            rule: `"adam"` also for AdamW, `"sgd"` also with momentum.
            weight_decay: of the optimiser; each group's is divided by its multiplier, so that the rate times the decay,
                by which weights shrink in a step, is the same at all widths.

        Raises:
            MismatchError: the module has other parameters.

        Example:
            >>> wide, base = nn.Linear(1, 64), nn.Linear(1, 16)
            >>> [(len(group["params"]), group["lr"]) for group in mup(wide, base).groups(wide, 0.1, "sgd")]
            [(2, 0.4)]
        """
        found: dict[float, dict[str, Any]] = {}
        for one, tensor in self._with(model):
            times = getattr(one, rule)
            if tensor.requires_grad:
                start = {"params": [], "lr": lr * times, "weight_decay": weight_decay / times}
                found.setdefault(times, start)["params"].append(tensor)
        return list(found.values())

    @checked
    @torch.no_grad()
    def rescale(self, model: nn.Module, base: nn.Module) -> None:
        """Give the parameters of a new module the start that muP wants: their root mean square becomes `std` times the base's.

        It writes into `model`; parameters that do not grow stay as they are, so that at the base width nothing changes. Do not
        rescale a pre-trained module: its weights are no start.

        Args:
            model: the module that was given to `mup`.
            base: the base, as it starts.

        Raises:
            MismatchError: a module has other parameters.
            ModelError: a parameter of `model` is 0 where that of the base is not.
        """
        origin = models.named_unique(models.core(base)[0])
        for one, tensor in self._with(model):
            if one.role == "fixed" or one.fan_in == one.fan_out == 1:
                continue
            if one.name not in origin:
                raise MismatchError(f"the base has no parameter {one.name!r}: give the base that `mup` saw.")
            wanted, own = one.std * _rms(origin[one.name]), _rms(tensor)
            if wanted and not own:
                raise ModelError(
                    f"parameter {one.name!r} is 0, and the base's has a root mean square of {wanted / one.std:.3g}: start "
                    "both in the same way."
                )
            if own:
                tensor.mul_(wanted / own)

    def _with(self, model: nn.Module) -> Iterator[tuple[ParameterScale, Tensor]]:
        known = models.named_unique(models.core(model)[0])
        mine = {one.name: one for one in self.scales}
        if set(known) != set(mine):
            strange = next(iter(sorted(set(known) ^ set(mine))))
            raise MismatchError(
                f"parameter {strange!r} is {'not ' if strange in mine else ''}in the module and "
                f"{'' if strange in mine else 'not '}in this muP: make it of the same module, mup(model, base)."
            )
        return ((mine[name], tensor) for name, tensor in known.items())

    def report(self) -> Report:
        """A row for each parameter."""
        rows: list[dict[str, Cell]] = [
            {"parameter": one.name, "role": one.role, "fan in": one.fan_in, "fan out": one.fan_out, "SGD": one.sgd,
             "Adam": one.adam, "std": one.std}
            for one in self.scales
        ]  # fmt: skip
        note = (
            "Fan in and out: over those of the base. SGD, Adam: multiply the learning rate. Std: multiplies the base's "
            "standard deviation at the start."
        )
        return Report("muP", [Table("Parameters", rows, note)], self.provenance)


@checked
def mup(model: nn.Module, base: nn.Module, *, fan_in: Mapping[str, int] | None = None) -> Mup:
    """Which learning rates and starts muP wants of each parameter, so that the best learning rate stays when width grows.

    With m_in and m_out, the input and output units of a parameter over those of the base:

    | role | grows | SGD | Adam | std at the start |
    |---|---|---|---|---|
    | input weight, embedding, bias, gain | out | m_out | 1 | 1 |
    | hidden weight | both | m_out / m_in | 1 / m_in | m_in^-1/2 |
    | readout | in | 1 / m_in | 1 / m_in | 1 / m_in |
    | anything else | neither | 1 | 1 | 1 |

    This is table 3 of Yang et al., "Tensor programs V" (2022): the form without multipliers in the forward, so that the module
    stays as it is. Where the size of attention heads grows, scores want to be divided by it and not by its root, which no
    learning rate gives.

    Args:
        model: a module, an `Encoder` or a `Classifier`.
        base: the same architecture at the base width; parameters are matched by name, and only shapes are read.
        fan_in: names or patterns of parameters, with the dimension that is their input: 1 of linear layers and convolutions,
            0 of embeddings and of transformers' `Conv1D`. Those that layers of torch hold need none.

    Raises:
        MismatchError: the modules have other parameters, or of another number of dimensions.
        ModelError: which dimension is the input is not known, or a tied parameter is an input and a readout at once.
        UsageError: `fan_in` names no parameter.

    Cost: none; modules on the meta device will do.

    Example:
        >>> def net(n):
        ...     return nn.Sequential(nn.Linear(3, n), nn.Tanh(), nn.Linear(n, n), nn.Tanh(), nn.Linear(n, 1))
        >>> found = mup(net(64), net(16))
        >>> found
        Mup(3 input, 1 hidden, 1 output, 1 fixed)
        >>> found.multipliers("adam")
        {'2.weight': 0.25, '4.weight': 0.25}
        >>> found.multipliers("sgd")
        {'0.weight': 4.0, '0.bias': 4.0, '2.bias': 4.0, '4.weight': 0.25}
        >>> mup(net(16), net(16)).multipliers("sgd")
        {}
    """
    inner, origin = models.core(model)[0], models.core(base)[0]
    wide, narrow = dict(inner.named_parameters()), dict(origin.named_parameters())
    for pattern in fan_in or {}:
        if not fnmatch.filter(wide, pattern):
            raise UsageError(f"fan_in: no parameter matches {pattern!r}. {nearest(pattern, wide)}")
    strange = sorted(set(wide) ^ set(narrow))
    if strange:
        raise MismatchError(
            f"parameter {strange[0]!r} is in the {'model' if strange[0] in wide else 'base'} alone: the base is the same "
            "architecture at another width, with equal depth."
        )
    owners = _owners(inner)
    scales = tuple(
        _scale(name, tensor.shape, narrow[name].shape, owners[id(tensor)], fan_in or {})
        for name, tensor in wide.items()
    )
    return Mup(scales=scales)


def _owners(module: nn.Module) -> dict[int, list[nn.Module]]:
    """The modules that hold each parameter, by its identity."""
    found: dict[int, list[nn.Module]] = {}
    for layer in module.modules():
        for tensor in layer.parameters(recurse=False):
            found.setdefault(id(tensor), []).append(layer)
    return found


def _scale(
    name: str, shape: torch.Size, base: torch.Size, owners: list[nn.Module], fan_in: Mapping[str, int]
) -> ParameterScale:
    if len(shape) != len(base) or any(
        (size == 0) != (other == 0) for size, other in zip(shape, base, strict=True)
    ):
        raise MismatchError(
            f"parameter {name!r} has the shape {tuple(shape)}, and {tuple(base)} in the base: the base is the same "
            "architecture at another width."
        )
    ratios = [size / other if other else 1.0 for size, other in zip(shape, base, strict=True)]
    grows = [place for place, ratio in enumerate(ratios) if ratio != 1]
    if not grows:
        return ParameterScale(name, "fixed", 1.0, 1.0)
    if len(shape) == 1:
        return ParameterScale(name, "input", 1.0, ratios[0])
    if len(grows) > 2:
        raise ModelError(
            f"parameter {name!r} grows in {len(grows)} dimensions, from {tuple(base)} to {tuple(shape)}: muP knows "
            "parameters with one input and one output that grow. Keep the others at the base's size."
        )
    inputs = _input_dimension(name, shape, ratios, owners, fan_in)
    m_in = ratios[inputs]
    m_out = math.prod(ratio for place, ratio in enumerate(ratios) if place != inputs)
    role: Role = "input" if inputs not in grows else "output" if len(grows) == 1 else "hidden"
    return ParameterScale(name, role, m_in, m_out)


def _input_dimension(
    name: str, shape: torch.Size, ratios: list[float], owners: list[nn.Module], fan_in: Mapping[str, int]
) -> int:
    """Which dimension of a parameter sums over the units below."""
    given = {place for pattern, place in fan_in.items() if fnmatch.fnmatchcase(name, pattern)}
    if given:
        if len(given) == 1 and (place := given.pop()) in (0, 1):
            return place
        raise UsageError(f"fan_in of {name!r}, of shape {tuple(shape)}: give one dimension, 0 or 1.")
    known = {_usual(layer) for layer in owners}
    if len(known) == 1 and (usual := known.pop()) is not None:
        return usual
    if len(owners) > 1:
        raise ModelError(
            f"parameter {name!r} is tied, and serves as an input and as a readout, which start at different scales under "
            f"muP. Untie it; or take it as an input, fan_in={{{name!r}: 0}}, and divide its logits by the growth of "
            "the width in the forward."
        )
    if ratios[0] == ratios[1]:  # both grow, or neither: either way the scales are the same
        return 1
    raise ModelError(
        f"parameter {name!r} of shape {tuple(shape)} belongs to {type(owners[0]).__name__}, and which dimension is its input "
        f"is not known: say fan_in={{{name!r}: 1}} if it is used as x @ W.T, 0 if as x @ W or as a table of vectors."
    )


def _usual(layer: nn.Module) -> int | None:
    if isinstance(layer, _OUT_FIRST):
        return 1
    # transformers' Conv1D keeps its weight transposed, and is recognised by what it has
    if isinstance(layer, _IN_FIRST) or (type(layer).__name__ == "Conv1D" and hasattr(layer, "nf")):
        return 0
    return None


def _rms(tensor: Tensor) -> float:
    params.require_finite({"": tensor}, "a parameter")
    return float(tensor.double().square().mean().sqrt())
