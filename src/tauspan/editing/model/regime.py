"""Which regime an edit is made in, and where its tangent model is linearised."""

from collections.abc import Sequence

from tauspan.core.choices import EDIT_REGIMES, POINTS, TRAINED_IN, EditRegime, Point
from tauspan.core.errors import UsageError, nearest
from tauspan.vector import TaskVector


def edit_regime(vector: TaskVector, regime: str | None, allow: Sequence[str] = ()) -> EditRegime:
    """The regime to edit in: the vector's own unless another is named.

    Args:
        vector: the edit.
        regime: None for the vector's own.
        allow: `"regime"` takes a vector that was made for another one.

    Raises:
        UsageError: an unknown regime, or one that the vector was not made for.
    """
    chosen = vector.regime if regime is None else regime
    if chosen not in EDIT_REGIMES:
        raise UsageError(f"unknown regime {chosen!r}. {nearest(chosen, EDIT_REGIMES)}")
    fits = TRAINED_IN[chosen]
    if vector.regime != fits and "regime" not in allow:
        raise UsageError(
            f"{vector.label!r} is a {vector.regime} vector and the regime {chosen!r} takes a {fits} one. If you mean "
            f"it, declare the vector: `vector.as_regime({fits!r})`; `tauspan apply` takes `--allow regime`."
        )
    return chosen


def point_of(vectors: Sequence[TaskVector], asked: Point | None = None) -> Point:
    """Where the tangent model of a head is linearised: as asked, else where the vectors were made, else at the logits.

    Raises:
        UsageError: an unknown point, or vectors made at different ones.
    """
    if asked is not None:
        if asked not in POINTS:
            raise UsageError(f"unknown linearisation point {asked!r}. {nearest(str(asked), POINTS)}")
        return asked
    made = {
        str(v.info["point"]): v for v in vectors if v.regime == "linear" and v.info.get("point") in POINTS
    }
    if len(made) > 1:
        (first, one), (second, other) = list(made.items())[:2]
        raise UsageError(
            f"{one.label!r} was made at the linearisation point {first!r} and {other.label!r} at {second!r}: they edit "
            "different functions. Name the point that is meant: `point=` (--point)."
        )
    return "encoder" if "encoder" in made else "logits"
