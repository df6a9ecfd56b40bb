"""Task negation with one coefficient, as in the paper."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tauspan.core.errors import UsageError
from tauspan.core.report import Cell, Report, Table
from tauspan.editing.model.chosen import ChosenEdit, alpha_series, facts_of
from tauspan.editing.model.edited import Coefs, EditedModel
from tauspan.editing.search.addition import scaled
from tauspan.editing.search.bootstrap import DRAWS, Interval, bracketed, metric_intervals
from tauspan.editing.search.grid import Grid, Scores, named
from tauspan.editing.search.metrics import keeps, least_kept, require_one_objective
from tauspan.objectives import Classification
from tauspan.tasks import Task
from tauspan.vector import TaskVector


@dataclass(frozen=True)
class NegatedModel:
    """One model on the test split, by the tasks' metrics: accuracies as fractions, where rows have classes.

    Args:
        alpha: of theta0 - alpha * tau.
        target: metric of the task to be forgotten.
        control: mean metric of the control tasks.
        control_kept: `control` relative to that of the pre-trained model.
        target_interval: of `target`, 95 %: the exact one of an accuracy, else by resampling test rows.
        control_interval: of `control`.
    """

    alpha: float
    target: float
    control: float
    control_kept: float | None
    target_interval: Interval | None = None
    control_interval: Interval | None = None

    def cells(self, label: str) -> dict[str, Cell]:
        """The row of the table."""
        return {
            "row": label, "alpha": self.alpha, "target": self.target, "target 95 %": bracketed(self.target_interval),
            "control": self.control, "control 95 %": bracketed(self.control_interval), "control kept": self.control_kept,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Negation(ChosenEdit):
    """What `negate` chose, and its accuracies on the test split.

    Args:
        task: the target's name.
        alpha: the chosen coefficient of theta0 - alpha * tau.
        floor: the share of the control metric that had to be kept on validation.
        least: the worst control metric on validation that this means.
        pretrained: the model at alpha 0.
        negated: the model at the chosen alpha.
        at_one: the model at alpha 1.
        curve: target and control metric on validation, by alpha.
        remark: what a reader must know about the grid; empty where nothing.
        metrics: the names of the target's and of the controls' metric.
    """

    task: str
    alpha: float
    floor: float
    least: float
    pretrained: NegatedModel
    negated: NegatedModel
    at_one: NegatedModel
    curve: Mapping[float, Mapping[str, float]] = field(repr=False)
    remark: str = ""
    metrics: tuple[str, str] = (Classification.metric, Classification.metric)

    def cells(self) -> dict[str, dict[str, Cell]]:
        """The rows of the table by their labels."""
        labelled = {"pre-trained": self.pretrained, "negated": self.negated, "alpha = 1": self.at_one}
        return {label: model.cells(label) for label, model in labelled.items()}

    def report(self) -> Report:
        """One table, and the curve over alpha."""
        title = f"Negation of {self.task}, {self.regime}"
        target, control = self.metrics
        least = f"least target {target}" if target == Classification.metric else f"worst target {target}"
        kept = "control" if control == Classification.metric else f"control {control} as good as"
        note = f"alpha = {self.alpha:g}: {least} on validation with {kept} >= {self.floor:g} of the "
        note += f"pre-trained model's{self.remark}; 95 % intervals over test rows"
        table = Table(title, list(self.cells().values()), note)
        result = {
            "alpha": self.alpha, "regime": self.regime, "coefficients": dict(self.coefficients),
            "before": {"target": self.pretrained.target, "control": self.pretrained.control},
            "target": self.negated.target, "control": self.negated.control,
        }  # fmt: skip
        series = alpha_series(title, self.alpha, self.curve, self.least)
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
    of = controls[0].objective

    def at(alpha: float, split: str) -> dict[str, float]:
        edit = scaled(negated, alpha)
        control = [model.metric(one, split, edit) for one in controls]
        return {"target": model.metric(task, split, edit), "control": sum(control) / len(control)}

    needs = {one: list(negated) for one in (task, *controls)}
    model.read(needs, "validation")
    scores = Scores()
    scores.rows[0.0] = at(0.0, "validation")  # always allowed, also where a grid leaves it out
    least = least_kept(of, scores.rows[0.0]["control"], floor)

    def choose(rows: Mapping[float, Mapping[str, float]]) -> float:
        kept = [alpha for alpha, row in rows.items() if keeps(of, row["control"], least)]
        rank = task.objective.rank
        return min(kept, key=lambda alpha: (rank(rows[alpha]["target"]), alpha))  # ties: the shortest edit

    title = f"negate {task.name}, {model.regime}"
    alpha = scores.search(lambda alpha: at(alpha, "validation"), choose, grid, title)
    model.read(needs, "test")
    before = at(0.0, "test")["control"]

    def tested(alpha: float) -> NegatedModel:
        found, edit = at(alpha, "test"), scaled(negated, alpha)
        around, _ = metric_intervals({task: model.scores(task, "test", edit)}, DRAWS)
        each, mean = metric_intervals({one: model.scores(one, "test", edit) for one in controls}, DRAWS)
        control = mean if len(controls) > 1 else each[controls[0]]
        kept = of.compared(found["control"], before)
        return NegatedModel(
            alpha, **found, control_kept=kept, target_interval=around[task], control_interval=control
        )

    return Negation(
        encoder=model.encoder, vectors={task.name: vector}, regime=model.regime, point=model.point,
        coefficients={task.name: -alpha}, task=task.name, alpha=alpha, floor=floor, least=least,
        pretrained=tested(0.0), negated=tested(alpha), at_one=tested(1.0), curve=scores.rows,
        remark=scores.remark(grid, alpha), metrics=(task.objective.metric, of.metric),
        provenance=facts_of(model, [vector], grid=named(grid)),
    )  # fmt: skip


def require_controls(task: Task, controls: Sequence[Task], floor: float) -> None:
    """Raise unless a target, its controls and the share of their accuracy to keep make sense together."""
    if not controls or task.name in {control.name for control in controls}:
        raise UsageError(f"negating {task.name!r} needs control tasks other than itself.")
    require_one_objective(controls, "an edit keeps the mean metric of its controls")
    if not 0 <= floor <= 1:
        raise UsageError(f"floor={floor}: it is the share of control accuracy to keep, between 0 and 1.")
