"""`LayerMap`: which layers the new model's layers are made of; D, so that theta'_l = sum_m D[l, m] theta_m."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tauspan.core.arguments import checked
from tauspan.core.errors import MismatchError, UsageError
from tauspan.merge.recipe.towers import number
from tauspan.vector import TaskVector

_WORDS = "first:L, stages:N,N,..., interpolate:L, linear:L"


@dataclass(frozen=True)
class LayerMap:
    """D, one row a new layer: the old layers that it is made of, with their weights.

    Layers are mixed tensor by tensor. As the map is linear, a vector moves by the same D: if theta0 and theta move, so
    does theta - theta0.

    Args:
        rows: for each new layer, pairs of an old layer and its weight.
        depth: how many old layers there are.

    Raises:
        UsageError: a row that is empty, or names a layer that is not there.

    Example:
        >>> LayerMap.parse("stages:2,1", 2).rows
        (((0, 1.0),), ((0, 1.0),), ((1, 1.0),))
    """

    rows: tuple[tuple[tuple[int, float], ...], ...]
    depth: int

    def __post_init__(self) -> None:
        for layer, row in enumerate(self.rows):
            if not row or not all(0 <= one < self.depth for one, _ in row):
                raise UsageError(
                    f"new layer {layer} is made of {list(row)}, and the model has layers 0 to {self.depth - 1}. Name "
                    "these."
                )
        if not self.rows:
            raise UsageError(f"no layer is left of {self.depth}. Ask for at least one.")

    @staticmethod
    def parse(words: str, depth: int) -> "LayerMap":
        """The map that some words mean.

        - `first:L`: the first L layers.
        - `stages:N,N,...`: layer s of the model, N times each; for a model whose layers are the stages' shared ones
          (SWS, Xia et al., IJCAI 2024, arXiv:2404.16897).
        - `interpolate:L`: L layers on straight lines between the old ones, the first and the last as they are.
        - `linear:L`: B + (l / L) A, l = 0 .. L - 1, for a model of two layers that hold B and A (TLEG, Xia et al.,
          AAAI 2024, arXiv:2312.05614).

        Args:
            words: the map.
            depth: how many layers the model has.

        Raises:
            UsageError: other words, or more or fewer layers than they need.
        """
        kind, _, rest = words.partition(":")
        if kind not in _MADE or not re.fullmatch(r"[1-9]\d{0,3}(,[1-9]\d{0,3})*", rest):
            raise UsageError(
                f"the map of layers {words!r} is none of {_WORDS}, with numbers from 1 to 9999. Write one of them."
            )
        counts = [int(one) for one in rest.split(",")]
        if kind != "stages" and len(counts) > 1:
            raise UsageError(
                f"the map of layers {words!r}: {kind} takes one number. Write {kind}:{counts[0]}."
            )
        return LayerMap(tuple(_MADE[kind](counts, depth)), depth)

    @property
    def copies(self) -> bool:
        """Whether every new layer is an old one, bit for bit."""
        return all(len(row) == 1 and row[0][1] == 1 for row in self.rows)

    def matrix(self) -> Tensor:
        """D, float64 (new layers, old layers)."""
        made = torch.zeros(len(self.rows), self.depth, dtype=torch.float64)
        for layer, row in enumerate(self.rows):
            for one, weight in row:
                made[layer, one] += weight
        return made

    @staticmethod
    def rest(name: str, stack: str) -> str:
        """What follows the number of a layer in a tensor's name."""
        layer = number(name, stack)
        return name[len(stack) + len(str(layer)) :]

    @checked
    def vector(self, vector: TaskVector, base: str, stack: str) -> TaskVector:
        """A task vector of the old model as one of the new model, tau'_l = sum_m D[l, m] tau_m.

        Args:
            vector: of the old model; layers that it does not move count as 0.
            base: the new model's fingerprint.
            stack: the prefix of the layers' names, such as `encoder.layer.`.

        Raises:
            MismatchError: a vector of a small space of these layers.

        Example:
            >>> tau = TaskVector({"h.0.w": torch.ones(1), "h.1.w": 3 * torch.ones(1)}, "old", "standard")
            >>> LayerMap.parse("interpolate:3", 2).vector(tau, "new", "h.").deltas["h.1.w"]
            tensor([2.])
        """
        inside = {name: delta for name, delta in vector.deltas.items() if number(name, stack) is not None}
        if inside and vector.space is not None:
            raise MismatchError(
                f"{vector.label!r} holds the few numbers of the space {vector.space.word!r}, which other layers do not "
                "have. Make it whole: `tauspan vector dense BASE VECTOR -o OUT`."
            )
        deltas = {name: delta for name, delta in vector.deltas.items() if name not in inside}
        for layer, row in enumerate(self.rows):
            for rest in dict.fromkeys(self.rest(name, stack) for name in inside):
                own = [(f"{stack}{one}{rest}", weight) for one, weight in row]
                held = [(inside[name], weight) for name, weight in own if name in inside]
                if held:
                    deltas[f"{stack}{layer}{rest}"] = mixed(held)
        return replace(
            vector,
            deltas=deltas,
            base=base,
            info={**vector.info, "layers": [list(map(list, r)) for r in self.rows]},
        )


def mixed(parts: Sequence[tuple[Tensor, float]]) -> Tensor:
    """The weighted sum of some tensors, in float64, rounded once to the dtype of the first."""
    first, weight = parts[0]
    total = sum((one.double() * share for one, share in parts[1:]), first.double() * weight)
    return total.to(first.dtype)


def _first(counts: list[int], depth: int) -> list[tuple[tuple[int, float], ...]]:
    if counts[0] > depth:
        raise UsageError(
            f"first:{counts[0]} of {depth} layers: there are fewer. Take interpolate:{counts[0]}."
        )
    return [((layer, 1.0),) for layer in range(counts[0])]


def _stages(counts: list[int], depth: int) -> list[tuple[tuple[int, float], ...]]:
    if len(counts) != depth:
        raise UsageError(
            f"stages of {len(counts)} numbers for {depth} layers: give one number a layer, how often it stands, or take "
            f"the first ones before: first:{len(counts)}."
        )
    return [((stage, 1.0),) for stage, count in enumerate(counts) for _ in range(count)]


def _interpolated(counts: list[int], depth: int) -> list[tuple[tuple[int, float], ...]]:
    made: list[tuple[tuple[int, float], ...]] = []
    for layer in range(counts[0]):
        # in whole numbers, so that a layer that falls on an old one is that one, bit for bit
        low, part = divmod(layer * (depth - 1), max(counts[0] - 1, 1))
        weight = part / max(counts[0] - 1, 1)
        made.append(((low, 1.0),) if not part else ((low, 1 - weight), (low + 1, weight)))
    return made


def _linear(counts: list[int], depth: int) -> list[tuple[tuple[int, float], ...]]:
    if depth != 2:
        raise UsageError(
            f"linear:{counts[0]} needs a model of two layers that hold B and A, and this one has {depth}. To change the "
            f"depth of an ordinary model take interpolate:{counts[0]} or first:L."
        )
    return [((0, 1.0),) if not layer else ((0, 1.0), (1, layer / counts[0])) for layer in range(counts[0])]


_MADE = {"first": _first, "stages": _stages, "interpolate": _interpolated, "linear": _linear}
