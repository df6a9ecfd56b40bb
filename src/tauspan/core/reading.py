"""`Reading`: how a model runs over the rows of tasks."""

from dataclasses import dataclass

from tauspan.core.arguments import checked
from tauspan.core.choices import POINTS, Point
from tauspan.core.errors import UsageError, nearest


@checked
@dataclass(frozen=True)
class Reading:
    """How a model runs over the rows of tasks, for every function that reads them.

    Args:
        batch_size: rows per forward pass.
        max_tokens: where texts are cut; None takes each task's own value.
        point: what is linearised in the tangent regimes: `"encoder"` (without the head), or `"logits"` (encoder and head
            together). None takes the point of the vectors, else `"logits"`.

    Raises:
        UsageError: a number below 1, or an unknown point.

    Example:
        >>> Reading(batch_size=8)
        Reading(batch_size=8, max_tokens=None, point=None)
    """

    batch_size: int = 64
    max_tokens: int | None = None
    point: Point | None = None

    def __post_init__(self) -> None:
        for name, value in (("batch_size", self.batch_size), ("max_tokens", self.max_tokens)):
            optional = name == "max_tokens" and value is None
            if not optional and not (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
                raise UsageError(f"{name}={value!r}: it must be a whole number, at least 1.")
        if self.point not in (None, *POINTS):
            raise UsageError(f"point={self.point!r}. {nearest(str(self.point), POINTS)}")

    def require_no_point(self, function: str) -> None:
        """Raise `UsageError` if a point is given to a function that linearises at the logits alone."""
        if self.point is not None:
            raise UsageError(
                f"point={self.point!r}: {function} linearises encoder and head together. Leave `point` out of `Reading`."
            )
