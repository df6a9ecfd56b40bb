"""May two vectors be added, and may a vector be used in the tangent space of a module?"""

from typing import TYPE_CHECKING

from torch import Tensor, nn

from tauspan import models
from tauspan.core import params
from tauspan.core.errors import BaseMismatchError, MismatchError, UsageError
from tauspan.core.params import Params

if TYPE_CHECKING:
    from tauspan.vector.task_vector import TaskVector


def require_compatible(first: "TaskVector", second: "TaskVector") -> None:
    """Raise unless both have the same base, regime, linearisation point and tensors.

    Raises:
        BaseMismatchError: different bases.
        MismatchError: another difference.
    """
    if first.base != second.base:
        raise BaseMismatchError(
            f"{first.label!r} starts from base {first.base[:12]} and {second.label!r} from {second.base[:12]}: "
            "displacements from different points do not add. Fine-tune both from one pre-trained model."
        )
    if first.regime != second.regime:
        raise MismatchError(
            f"{first.label!r} is a {first.regime} vector and {second.label!r} a {second.regime} one; they edit "
            "different functions. Fine-tune both in one regime, or say so: `vector.as_regime(...)`."
        )
    if first.space is not None and second.space is not None:
        first.space.require_same(second.space, repr(first.label), repr(second.label))
    elif first.space is not None or second.space is not None:
        small, whole = (first, second) if first.space is not None else (second, first)
        raise MismatchError(
            f"{small.label!r} holds the few numbers of a small space, and {whole.label!r} whole tensors. Make it whole "
            "first: `vector.dense(encoder)`."
        )
    points = (first.info.get("point"), second.info.get("point"))
    if first.regime == "linear" and None not in points and points[0] != points[1]:
        raise MismatchError(
            f"{first.label!r} was made at the linearisation point {points[0]!r} and {second.label!r} at {points[1]!r}; "
            "they edit different functions. Fine-tune both at one point, or say so: `vector.at_point(...)`."
        )
    params.require_same(first.deltas, second.deltas, repr(first.label), repr(second.label))


def on_feature_path(deltas: Params, module: nn.Module, label: str) -> dict[str, Tensor]:
    """The parameters on the path to the features among tensors with names in memory.

    Raises:
        UsageError: a buffer changes, which a tangent model keeps fixed.
    """
    inner, _ = models.core(module)
    known = models.named_unique(inner)
    buffers = set(models.state_of(module)) - set(known)
    for name in buffers & set(deltas):
        if bool(deltas[name].any()):
            raise UsageError(
                f"{label!r} moves the buffer {name!r}, and the tangent model is an expansion in parameters "
                "alone. Edit in the standard regime, or make the vector from models with the same buffers."
            )
    return {name: d for name, d in deltas.items() if name in known and models.on_path(module, name)}
