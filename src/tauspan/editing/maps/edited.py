"""Logits of edited models at any two coefficients: the ordinary model run anew, or sums of one tangent pass."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol, TypeAlias

from torch import Tensor

from tauspan.core.measure import progress
from tauspan.core.params import require_finite_rows
from tauspan.editing.edit import set_weights
from tauspan.editing.evaluate import outputs
from tauspan.editing.maps.asked import Pair
from tauspan.models import Classifier, Encoder, Head, working_copy
from tauspan.tangent import Linearized, linearize
from tauspan.tangent.contributions import Contributions, contributions
from tauspan.tasks import Task
from tauspan.tasks.batches import Batches
from tauspan.vector import TaskVector

At: TypeAlias = tuple[float, float]
Outputs: TypeAlias = Callable[[int, At], Tensor]


class Edited(Protocol):
    """The edited models of some tasks and their vectors."""

    def pair(self, pair: Pair) -> Outputs:
        """Logits (N, K) on the rows of either task of a pair, at a1 tau1 + a2 tau2."""

    def affine(self, task: Task) -> bool:
        """Whether the logits on this task's rows are affine in the coefficients."""


class Ordinary:
    """f(x; theta0 + a1 tau1 + a2 tau2) from one working copy, whose weights are set where they change."""

    def __init__(
        self, encoder: Encoder, vectors: Mapping[Task, TaskVector], heads: Mapping[Task, Head],
        prepared: Mapping[Task, Batches],
    ) -> None:  # fmt: skip
        self._encoder, self._vectors, self._heads, self._prepared = encoder, vectors, heads, prepared
        self._working = working_copy(encoder).eval()
        self._stands: tuple[Pair, At] | None = None

    def affine(self, task: Task) -> bool:
        """Never known to be."""
        return False

    def pair(self, pair: Pair) -> Outputs:
        """See `Edited`."""
        first, second = (self._vectors[task] for task in pair)

        def at(place: int, where: At) -> Tensor:
            if self._stands != (pair, where):
                set_weights(self._working, self._encoder, where[0] * first + where[1] * second, 1.0)
                self._stands = (pair, where)
            model = Classifier(self._working, self._heads[pair[place]])
            return outputs(model, self._prepared[pair[place]], what=_about(pair, place, where))

        return at


class Tangent:
    """f(x; theta0) + J(x) (a1 tau1 + a2 tau2) from one pass per task in all directions it needs."""

    def __init__(
        self, encoder: Encoder, vectors: Mapping[Task, TaskVector], heads: Mapping[Task, Head],
        prepared: Mapping[Task, Batches], directions: Mapping[Task, Sequence[Task]], split: str,
        point: Literal["encoder", "logits"] | None,
    ) -> None:  # fmt: skip
        self._passes: dict[Task, Contributions] = {}
        tangents: dict[
            tuple[str, ...], Linearized
        ] = {}  # by the tensors that move: all tasks share one check
        rows = sum(len(task.split(split)) for task in directions)
        with progress(f"tangents on {split}", rows) as advance:
            for task, others in directions.items():
                taus = {other.name: vectors[other] for other in others}
                names = tuple(vectors[task].deltas)
                if names not in tangents:
                    tangents[names] = linearize(encoder, list(names))
                tangent = tangents[names].under(heads[task], point or "logits")
                labels, about = task.split(split).labels, {"task": task.name, "split": split}
                self._passes[task] = contributions(
                    tangent, taus, prepared[task], labels, info=about, advance=advance
                )

    def affine(self, task: Task) -> bool:
        """Unless a head that normalises follows the linearisation point."""
        head = self._passes[task].head
        return head is None or not head.normalize

    def pair(self, pair: Pair) -> Outputs:
        """See `Edited`."""
        names = {task.name: [task.name] for task in pair}
        both = [self._passes[task].summed(names) for task in pair]
        return lambda place, where: both[place].logits(where)


def finite_logits(outputs: Outputs, pair: Pair, place: int, where: At) -> Tensor:
    """The logits at one point, none of them NaN or infinite."""
    found = outputs(place, where)
    require_finite_rows(found, _about(pair, place, where))
    return found


def _about(pair: Pair, place: int, where: At) -> str:
    """Which model's logits, on which rows."""
    at = f"{where[0]:g} x {pair[0].name!r} + {where[1]:g} x {pair[1].name!r}"
    return f"the logits of {pair[place].name!r} at {at} (a smaller grid may do)"
