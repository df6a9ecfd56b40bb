"""Negation in every regime: one task forgotten, the controls kept."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

from tauspan import editing
from tauspan.core.choices import EditRegime
from tauspan.core.errors import RecipeError
from tauspan.core.report import Table
from tauspan.experiments.run.part import Evaluation, Findings, Part, refuse_twice
from tauspan.experiments.run.spread import in_words, one_series, spread
from tauspan.experiments.run.vectors import kind_of

if TYPE_CHECKING:
    from tauspan.experiments.run.context import RunContext
    from tauspan.experiments.run.recipe import Recipe
    from tauspan.tasks import Task

_COLUMNS = ("alpha", "target", "control", "control kept")
_INTERVALS = ("target 95 %", "control 95 %")
_MODELS = ("pre-trained", "negated", "alpha = 1")


@dataclasses.dataclass(frozen=True)
class Negation(Part):
    """Which tasks are forgotten, and the share of control accuracy to keep.

    Args:
        targets: tasks to forget.
        floor: share of the mean control accuracy to keep on validation.
        controls: tasks that are only kept, never trained on; where none are named, the recipe's other tasks are.
    """

    targets: tuple[str, ...] = ()
    floor: float = 0.95
    controls: tuple[str, ...] = ()
    key: ClassVar[str] = "negate"

    def __post_init__(self) -> None:
        refuse_twice("negate.controls", self.controls)
        if not 0 <= self.floor <= 1:
            raise RecipeError(f"negate.floor: {self.floor}: it is a share, between 0 and 1.")

    def check(self, recipe: "Recipe") -> None:
        """Targets are tasks, and controls are other ones."""
        recipe.require_tasks("negate.targets", self.targets)
        for name in self.controls:
            if name in recipe.tasks:
                raise RecipeError(
                    f"negate.controls: {name!r} is among the tasks, and a control is never trained on: leave it out of "
                    "one of them."
                )
        if self.targets and not self.controls and len(recipe.tasks) < 2:
            raise RecipeError(
                "negate.targets: negation needs at least one other task as its control, or negate.controls."
            )

    def for_tasks(self, tasks: Sequence[str]) -> Self:
        """Only targets among these tasks."""
        return dataclasses.replace(self, targets=tuple(name for name in self.targets if name in tasks))

    def evaluations(self, run: "RunContext") -> list[Evaluation]:
        """One for each seed, regime and target."""
        return [
            Evaluation("negate", (target.name, regime), seed)
            for seed in run.recipe.seeds
            for regime in run.recipe.regimes
            for target in self._tasks(run)
        ]

    def measure(self, run: "RunContext", which: Evaluation) -> "editing.Negation":
        """The negation of one target's vector."""
        target = next(task for task in self._tasks(run) if task.name == which.about[0])
        regime = cast(EditRegime, which.about[1])
        vectors = run.vectors(kind_of(regime), which.seed)
        others = [task for task in run.tasks if task is not target]
        controls = [run.task(name) for name in self.controls] or others

        def work() -> "editing.Negation":
            editor = run.editor(kind_of(regime), regime, which.seed)
            return editor.negate(target, controls, self.floor, grid=run.recipe.grid)

        key = [*run.key(vectors, regime, run.shared()), self.floor, target.name]
        if self.controls:
            key.append([task.checksum() for task in controls])
        edited = run.edited(which.seed, {target: vectors[target]})
        return run.stages.result(editing.Negation, regime, "negate", which.name, key, work, **edited)

    def findings(self, run: "RunContext") -> Findings:
        """Target and control accuracies for each regime and target."""
        rows: list[dict[str, Any]] = []
        series: list[dict[str, Any]] = []
        found: dict[str, Any] = {regime: {} for regime in run.recipe.regimes}
        stages: dict[tuple[str, ...], list[editing.Negation]] = {}
        for which in self.evaluations(run):
            stages.setdefault(which.about, []).append(self.measure(run, which))
        for (target, regime), done in stages.items():
            tables = [one.cells() for one in done]
            for model in _MODELS:
                label = "random" if (model, run.recipe.start) == ("pre-trained", "random") else model
                columns = spread([table[model] for table in tables], _COLUMNS)
                around = {} if len(tables) > 1 else {name: tables[0][model][name] for name in _INTERVALS}
                rows.append({"regime": regime, "target task": target, "model": label, **columns, **around})
            found[regime][target] = [
                {model: {column: row[column] for column in _COLUMNS} for model, row in table.items()}
                for table in tables
            ]
            curves = [entry for one in done for entry in one.report().series]
            series.append({**one_series(curves, run.recipe.seeds), "group": f"alpha-negation-{target}"})
        control = self._control_in_words(run)
        note = (
            f"{in_words(run.recipe.seeds)}; test split; target and control: absolute {run.metrics}; control: {control}; "
            f"alpha: {'least' if run.metric == 'accuracy' else 'worst'} target {run.metric} with control kept >= "
            f"{self.floor:g} on validation; control kept: over the "
            "first row's control"
        )
        result = {"negation": found, "negation_control": control}
        return Findings([Table(f"Negation, test {run.metric}", rows, note)], series, result)

    def _tasks(self, run: "RunContext") -> "list[Task]":
        """The targets, in the recipe's order of tasks."""
        return [run.task(name) for name in run.recipe.tasks if name in self.targets]

    def _control_in_words(self, run: "RunContext") -> str:
        """What the control accuracy is measured on."""
        if not self.controls:
            return "mean of the other tasks"
        mean = "mean of " if len(self.controls) > 1 else ""
        return mean + ", ".join(_described(run.task(name)) for name in self.controls)


def _described(task: "Task") -> str:
    """A control with its source, which published splits it has, and its numbers of rows."""
    facts = [task.extra.get("title") or task.source, task.extra.get("control_split")]
    rows = f"{len(task.split('validation'))} validation and {len(task.split('test'))} test rows"
    return f"{task.name} ({'; '.join([*(str(fact) for fact in facts if fact), rows])})"
