"""`ParameterScale`: the role of a parameter in a net that grows, and what muP makes of it."""

import fnmatch
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import nn

from tauspan.core.errors import MismatchError, ModelError, UsageError

Role: TypeAlias = Literal["input", "hidden", "output", "fixed"]
_OUT_FIRST = (
    nn.Linear, nn.Bilinear, nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase, nn.Conv1d, nn.Conv2d, nn.Conv3d
)  # fmt: skip
_IN_FIRST = (nn.Embedding, nn.EmbeddingBag, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_VECTORS = re.compile(  # names of vectors that are no readouts, in any module
    "bias|embed|token|norm|scale|gain|gamma|beta|lambda", re.IGNORECASE
)


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
        return 1 / (self.fan_in if self.role == "output" else math.sqrt(self.fan_in))


def owners_of(module: nn.Module) -> dict[int, list[nn.Module]]:
    """The modules that hold each parameter, by its identity."""
    found: dict[int, list[nn.Module]] = {}
    for layer in module.modules():
        for tensor in layer.parameters(recurse=False):
            found.setdefault(id(tensor), []).append(layer)
    return found


def scale_of(
    name: str, shape: torch.Size, base: torch.Size, owners: list[nn.Module], fan_in: Mapping[str, int]
) -> ParameterScale:
    """The scale of one parameter, from its shapes and the modules that hold it; see `mup`.

    Raises:
        MismatchError: another number of dimensions.
        ModelError: more than two dimensions grow, or which one is the input is not known.
        UsageError: `fan_in` is neither 0 nor 1.
    """
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
        if _reads(name, shape, owners, fan_in):
            return ParameterScale(name, "output", ratios[0], 1.0)
        return ParameterScale(name, "input", 1.0, ratios[0])
    alone = math.prod(shape) == shape[grows[0]]  # a vector with dimensions of size 1 beside it
    if alone and _VECTORS.search(_last(name)) and _given(name, shape, fan_in) is None:
        return ParameterScale(name, "input", 1.0, ratios[grows[0]])
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


def _reads(name: str, shape: torch.Size, owners: list[nn.Module], fan_in: Mapping[str, int]) -> bool:
    """Whether a vector is a readout, x @ v, and not a bias, a gain or an embedding: it counts as a matrix (n, 1)."""
    given = _given(name, shape, fan_in)
    if given is not None:
        return given == 0
    last = _last(name)
    if _VECTORS.search(last) or (last.startswith("weight") and all(map(_scales, owners))):
        return False
    raise ModelError(
        f"parameter {name!r} of shape {tuple(shape)} belongs to {type(owners[0]).__name__}, and whether it is a readout "
        f"is not known: say fan_in={{{name!r}: 0}} if it is used as x @ v, 1 if it is a bias, a gain or an embedding."
    )


def _last(name: str) -> str:
    """The parameter's own name, without those of its modules."""
    return name.rpartition(".")[2]


def _scales(layer: nn.Module) -> bool:
    """Whether a vector `weight` of this layer is a gain: of torch's own layers, norms and layer scales."""
    homes = {kind.__module__ for kind in type(layer).__mro__} - {nn.Module.__module__}
    if any(home.startswith("torch.nn.modules.") and not home.endswith(".container") for home in homes):
        return True
    return (
        _usual(layer) is not None or re.search("norm|scale", type(layer).__name__, re.IGNORECASE) is not None
    )


def _given(name: str, shape: torch.Size, fan_in: Mapping[str, int]) -> int | None:
    """What the user says of this parameter."""
    given = {place for pattern, place in fan_in.items() if fnmatch.fnmatchcase(name, pattern)}
    if not given:
        return None
    if len(given) == 1 and (place := given.pop()) in (0, 1):
        return place
    raise UsageError(f"fan_in of {name!r}, of shape {tuple(shape)}: give one dimension, 0 or 1.")


def _input_dimension(
    name: str, shape: torch.Size, ratios: list[float], owners: list[nn.Module], fan_in: Mapping[str, int]
) -> int:
    """Which dimension of a parameter sums over the units below."""
    given = _given(name, shape, fan_in)
    if given is not None:
        return given
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
        f"parameter {name!r} of shape {tuple(shape)} belongs to {type(owners[0]).__name__}, and which dimension is its "
        f"input is not known: say fan_in={{{name!r}: 1}} if it is used as x @ W.T, 0 if as x @ W or as a table."
    )


def _usual(layer: nn.Module) -> int | None:
    if isinstance(layer, _OUT_FIRST):
        return 1
    # transformers' Conv1D keeps its weight transposed, and is recognised by what it has
    if isinstance(layer, _IN_FIRST) or (type(layer).__name__ == "Conv1D" and hasattr(layer, "nf")):
        return 0
    return None
