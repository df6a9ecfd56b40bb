"""muP for a module of any architecture: learning rates and starts of its parameters, from one of a base width."""

import fnmatch
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
from tauspan.kernel.diagnose.width.roles import ParameterScale, owners_of, scale_of

Rule: TypeAlias = Literal["sgd", "adam"]


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
        """What multiplies the learning rate, by name; a parameter whose rate stays is left out (at the base width, all).

        `Settings(lr_multipliers=...)` takes those of `"adam"`, since fine-tuning is done by AdamW.

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
        """Give a new module the start that muP wants: each parameter's root mean square becomes `std` times the base's.

        It writes into `model`. Parameters that do not grow stay as they are, so at the base width nothing changes. Do not
        rescale a pre-trained module: its weights are no start.

        Args:
            model: the module that was given to `mup`.
            base: the base, as it starts.

        Raises:
            MismatchError: a module has other parameters.
            ModelError: a parameter of `model` is 0 where that of the base is not.
            NonFiniteError: NaN or infinity in a parameter.
        """
        origin = models.named_unique(models.core(base)[0])
        for one, tensor in self._with(model):
            if one.role == "fixed" or one.fan_in == one.fan_out == 1:
                continue
            if one.name not in origin:
                raise MismatchError(f"the base has no parameter {one.name!r}: give the base that `mup` saw.")
            wanted, own = one.std * _rms(one.name, origin[one.name]), _rms(one.name, tensor)
            if wanted and not own:
                raise ModelError(
                    f"parameter {one.name!r} is 0, and the base's has a root mean square of {wanted / one.std:.3g}: "
                    "start both in the same way."
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
        return Report("muP", [Table("Parameters", rows, note)], dict(self.provenance))


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

    This is table 3 of Yang et al., "Tensor programs V" (2022), the form without multipliers in the forward, so that the
    module stays as it is. Where the size of attention heads grows, scores want to be divided by it and not by its root,
    which no learning rate gives.

    Args:
        model: a module, an `Encoder` or a `Classifier`.
        base: the same architecture at the base width; parameters are matched by name, and only shapes are read.
        fan_in: names or patterns of parameters, with the dimension that is their input: 1 where they are used as x @ W.T,
            0 as x @ W or as a table of vectors. A vector counts as a matrix (n, 1): 0 where it is a readout x @ v, 1 if
            it is a bias or a gain. None is needed for a `weight` of torch's layers, of norms and of layer scales, and for
            names that say so (bias, embed, token, norm, scale, gain, gamma, beta, lambda).

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
    owners = owners_of(inner)
    scales = tuple(
        scale_of(name, tensor.shape, narrow[name].shape, owners[id(tensor)], fan_in or {})
        for name, tensor in wide.items()
    )
    return Mup(scales=scales)


def _rms(name: str, tensor: Tensor) -> float:
    params.require_finite({name: tensor}, "a module to be rescaled")
    return float(tensor.double().square().mean().sqrt())
