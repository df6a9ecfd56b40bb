"""The points that a page has buttons for, chosen on validation; who disturbs whom; and what forgetting a task costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tauspan.core.errors import UsageError
from tauspan.editing.maps.disturbance import disturbance
from tauspan.editing.model.edited import EditedModel
from tauspan.editing.model.tangent import TangentModel
from tauspan.editing.search.addition import addition
from tauspan.editing.search.choose import solved_coefficients
from tauspan.editing.search.grid import PAPER_GRID
from tauspan.editing.search.negation import negation
from tauspan.editing.search.pareto import traced_front
from tauspan.editing.search.unknowns import unknowns
from tauspan.tasks import Task
from tauspan.vector import TaskVector

_PRICES = 9  # of a front in one coefficient, beside the 21 points of the grid


@dataclass(frozen=True)
class Choice:
    """Coefficients that a page offers.

    Args:
        name: on its button.
        split: whose rows chose them; None where nothing did.
        coefficients: one for each vector.
        note: by what rule.
    """

    name: str
    split: str | None
    coefficients: tuple[float, ...]
    note: str

    def record(self) -> dict[str, Any]:
        """The choice as the page holds it."""
        return {
            "name": self.name,
            "split": self.split,
            "coefficients": list(self.coefficients),
            "note": self.note,
        }


@dataclass(frozen=True)
class Question:
    """What a page is about.

    Args:
        model: whose directions are the vectors, named after their tasks.
        vectors: one for each task.
        controls: further tasks, to be kept.
        low: of every coefficient, at most 0.
        high: of every coefficient, at least 1.
        floor: the share of control accuracy to keep.
        seed: of the rows that are drawn.
    """

    model: EditedModel
    vectors: Mapping[Task, TaskVector]
    controls: Sequence[Task]
    low: float
    high: float
    floor: float
    seed: int

    @property
    def tasks(self) -> list[Task]:
        """Those with a vector, then the controls."""
        return [*self.vectors, *self.controls]

    @property
    def negates(self) -> bool:
        """Whether coefficients reach below 0 and there is something to keep."""
        return self.low < 0 and len(self.tasks) > 1

    def alphas(self) -> list[float]:
        """The paper's grid as far as a vector may be subtracted."""
        return [alpha for alpha in PAPER_GRID if alpha <= -self.low]

    def at(self, values: Mapping[str, float]) -> tuple[float, ...]:
        """Coefficients by task name as a list, in the order of the vectors."""
        return tuple(float(values.get(task.name, 0.0)) for task in self.vectors)

    def sampled(self) -> list[tuple[float, ...]]:
        """The points where a model that is not affine is evaluated: shared alphas, single vectors and their negatives."""
        names = [task.name for task in self.vectors]
        points = [self.at(dict.fromkeys(names, alpha)) for alpha in PAPER_GRID]
        points += [self.at({name: 1.0}) for name in names]
        if self.negates:
            points += [self.at({name: -alpha}) for name in names for alpha in self.alphas()]
        return list(dict.fromkeys(points))

    # -- answers ---------------------------------------------------------------------------------------------

    def choices(self) -> list[Choice]:
        """Zero, all vectors whole, the paper's shared coefficient, the solver's optimum, and each task negated."""
        names = [task.name for task in self.vectors]
        whole = dict.fromkeys(names, 1.0)
        own = {task: {task.name: 1.0} for task in self.vectors}
        added = addition(self.model, self.vectors, whole, own, "paper")
        found = [
            Choice("zero", None, self.at({}), "the pre-trained model"),
            Choice("alpha = 1", None, self.at(whole), "the sum of all vectors"),
            Choice(
                "shared alpha", "validation", self.at(dict.fromkeys(names, added.alpha)),
                f"alpha = {added.alpha:g}: one coefficient on a grid, by mean normalised accuracy{added.remark}",
            ),
        ]  # fmt: skip
        if isinstance(self.model, TangentModel):
            found.append(self._solved())
        if self.negates:
            found += [self._negated(task) for task in self.vectors]
        return found

    def _solved(self) -> Choice:
        free = unknowns(self.model.encoder, {task.name: tau for task, tau in self.vectors.items()}, "task")
        solved = solved_coefficients(
            self.model, free, self.vectors, per="task", bounds=(self.low, self.high), ridge=0.0, l1=0.0,
            split="validation", bootstrap=0, seed=self.seed, tolerance=1e-8, max_evaluations=100,
        )  # fmt: skip
        certified = "" if solved.certificate is None else f", certificate {solved.certificate:.1e}"
        values = {name: value for name, value in solved.coefficients.items() if isinstance(value, float)}
        note = (
            f"a coefficient for each vector, by least mean cross-entropy: {solved.loss:.4f} nats{certified}"
        )
        return Choice("solver's optimum", "validation", self.at(values), note)

    def _negated(self, task: Task) -> Choice:
        others = [one for one in self.tasks if one is not task]
        negated = negation(
            self.model, task, self.vectors[task], {task.name: -1.0}, others, self.floor, self.alphas()
        )
        note = f"alpha = {negated.alpha:g}: least accuracy on {task.name} where the others keep {self.floor:g} of theirs"
        return Choice(f"negate {task.name}", "validation", self.at({task.name: 0.0 - negated.alpha}), note)

    def interference(self) -> tuple[dict[str, Any] | None, str]:
        """How far each vector moves the logits of each task on validation; None, and why, where that has no meaning."""
        try:
            found = disturbance(self.model, self.vectors, "validation")
        except UsageError as error:  # a model that gives every class of every row the same logit
            return None, f"There is no interference matrix: {error}"
        names = [task.name for task in self.vectors]
        note = "Each vector alone at 1: mean distance of centred logits from the pre-trained ones, over their size."
        values = [[found.drift[task][vector] for task in names] for vector in names]
        return {
            "title": "Drift of each task's logits under each vector", "note": note, "rows": names, "columns": names,
            "values": values,
        }, ""  # fmt: skip

    def front(self) -> dict[str, Any] | None:
        """Forgetting the first task against keeping the others, in the one coefficient of its vector.

        None where logits are not affine in it: the front is not convex then, and takes long.
        """
        if not (self.negates and all(map(self.model.affine, self.tasks))):
            return None
        task, *others = self.tasks
        free = unknowns(self.model.encoder, {task.name: self.vectors[task]}, "shared", sign=-1.0)
        traced = traced_front(
            self.model, free, task, self.vectors[task], others, per="shared", floor=self.floor,
            bounds=(0.0, -self.low), ridge=0.0, prices=_PRICES, bootstrap=0, seed=self.seed, tolerance=1e-8,
            max_evaluations=30,
        )  # fmt: skip
        spots = [spot for spot in (*traced.gridded, *traced.spots) if spot.values[0] <= -self.low]
        points = {
            self.at({task.name: 0.0 - spot.values[0]}): {"target": spot.target, "control": spot.control}
            for spot in spots
        }
        return {
            "target": task.name,
            "controls": [one.name for one in others],
            "note": f"On validation: the grid of alpha, and {len(traced.spots)} points of least loss at a price each.",
            "points": [{"coefficients": list(at), **accuracies} for at, accuracies in sorted(points.items())],
        }
