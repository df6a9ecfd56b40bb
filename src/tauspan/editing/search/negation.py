"""Task negation with one coefficient, as in the paper."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tauspan.core.errors import UsageError
from tauspan.core.report import Cell, Report, Table
from tauspan.core.results import ratio
from tauspan.editing.model.chosen import ChosenEdit, alpha_series, facts_of
from tauspan.editing.model.edited import Coefs, EditedModel
from tauspan.editing.search.addition import scaled
from tauspan.editing.search.grid import Grid, Scores, named
from tauspan.tasks import Task
from tauspan.vector import TaskVector


@dataclass(frozen=True)
class NegatedModel:
    """One model on the test split; accuracies as fractions.

    Args:
        alpha: of theta0 - alpha * tau.
        target: accuracy on the task to be forgotten.
        control: mean accuracy on the control tasks.
        control_kept: `control` over that of the pre-trained model.
    """

    alpha: float
    target: float
    control: float
    control_kept: float | None

    def cells(self, label: str) -> dict[str, Cell]:
        """The row of the table."""
        return {
            "row": label, "alpha": self.alpha, "target": self.target, "control": self.control,
            "control kept": self.control_kept,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Negation(ChosenEdit):
    """What `negate` chose, and its accuracies on the test split.

    Args:
        task: the target's name.
        alpha: the chosen coefficient of theta0 - alpha * tau.
        floor: the share of control accuracy that had to be kept on validation.
        pretrained: the model at alpha 0.
        negated: the model at the chosen alpha.
        at_one: the model at alpha 1.
        curve: target and control accuracy on validation, by alpha.
        remark: what a reader must know about the grid; empty where nothing.
    """

    task: str
    alpha: float
    floor: float
    pretrained: NegatedModel
    negated: NegatedModel
    at_one: NegatedModel
    curve: Mapping[float, Mapping[str, float]] = field(repr=False)
    remark: str = ""

    def cells(self) -> dict[str, dict[str, Cell]]:
        """The rows of the table by their labels."""
        labelled = {"pre-trained": self.pretrained, "negated": self.negated, "alpha = 1": self.at_one}
        return {label: model.cells(label) for label, model in labelled.items()}

    def report(self) -> Report:
        """One table, and the curve over alpha."""
        title = f"Negation of {self.task}, {self.regime}"
        note = f"alpha = {self.alpha:g}: least target accuracy on validation with control >= {self.floor:g} of the "
        note += f"pre-trained model's{self.remark}"
        table = Table(title, list(self.cells().values()), note)
        result = {
            "alpha": self.alpha, "regime": self.regime, "coefficients": dict(self.coefficients),
            "before": {"target": self.pretrained.target, "control": self.pretrained.control},
            "target": self.negated.target, "control": self.negated.control,
        }  # fmt: skip
        least = self.floor * self.curve[0.0]["control"] if 0.0 in self.curve else None
        series = alpha_series(title, self.alpha, self.curve, least)
        return Report(title, [table], dict(self.provenance), series, result, self.warnings)


def negation(
    model: EditedModel, task: Task, vector: TaskVector, negated: Coefs, controls: Sequence[Task], floor: float,
    grid: Grid,
) -> Negation:  # fmt: skip
    """theta0 + alpha * negated, alpha by the target's accuracy on validation where the controls are kept.

    Args:
        model: the edited model.
        task: the target.
        vector: its own vector.
        negated: the coefficients of minus its vector.
        controls: tasks to be kept.
        floor: the share of their mean accuracy to keep.
        grid: the candidates.
    """
    require_controls(task, controls, floor)

    def at(alpha: float, split: str) -> dict[str, float]:
        edit = scaled(negated, alpha)
        control = [model.accuracy(one, split, edit) for one in controls]
        return {"target": model.accuracy(task, split, edit), "control": sum(control) / len(control)}

    needs = {one: list(negated) for one in (task, *controls)}
    model.read(needs, "validation")
    scores = Scores()
    scores.rows[0.0] = at(0.0, "validation")  # always allowed, also where a grid leaves it out
    least = floor * scores.rows[0.0]["control"]

    def choose(rows: Mapping[float, Mapping[str, float]]) -> float:
        kept = [alpha for alpha, row in rows.items() if row["control"] >= least]
        return min(kept, key=lambda alpha: (rows[alpha]["target"], alpha))  # ties: the shortest edit

    title = f"negate {task.name}, {model.regime}"
    alpha = scores.search(lambda alpha: at(alpha, "validation"), choose, grid, title)
    model.read(needs, "test")
    before = at(0.0, "test")["control"]

    def tested(alpha: float) -> NegatedModel:
        accuracies = at(alpha, "test")
        return NegatedModel(alpha, **accuracies, control_kept=ratio(accuracies["control"], before))

    return Negation(
        encoder=model.encoder, vectors={task.name: vector}, regime=model.regime, point=model.point,
        coefficients={task.name: -alpha}, task=task.name, alpha=alpha, floor=floor,
        pretrained=tested(0.0), negated=tested(alpha), at_one=tested(1.0), curve=scores.rows,
        remark=scores.remark(grid, alpha), provenance=facts_of(model, [vector], grid=named(grid)),
    )  # fmt: skip


def require_controls(task: Task, controls: Sequence[Task], floor: float) -> None:
    """Raise unless a target, its controls and the share of their accuracy to keep make sense together."""
    if not controls or task.name in {control.name for control in controls}:
        raise UsageError(f"negating {task.name!r} needs control tasks other than itself.")
    if not 0 <= floor <= 1:
        raise UsageError(f"floor={floor}: it is the share of control accuracy to keep, between 0 and 1.")
