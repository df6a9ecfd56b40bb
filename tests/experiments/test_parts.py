"""A part of a run is one class: a toy part, never heard of by the package, runs with workers, plans and pictures."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest

from helpers.run_numbers import in_turn
from helpers.small_runs import TASKS, reused
from tauspan.core.errors import RecipeError
from tauspan.core.report import Table
from tauspan.experiments import figures
from tauspan.experiments.reproduce import Changes
from tauspan.experiments.reproduce.experiment import Rates, experiment, with_changes
from tauspan.experiments.reproduce.rates import trials
from tauspan.experiments.run import (
    PARTS,
    Evaluation,
    Findings,
    Maps,
    Merging,
    Negation,
    Part,
    Recipe,
    jobs,
    plan,
    run,
)  # fmt: skip
from tauspan.experiments.run.context import RunContext
from tauspan.experiments.run.vectors import kind_of


@dataclasses.dataclass(frozen=True)
class Lengths(Part):
    """The norm of every vector of some tasks."""

    tasks: tuple[str, ...] = ()
    power: int = 1
    key: ClassVar[str] = "lengths"
    drawn: ClassVar[Mapping[str, figures.Picture]] = {
        "lengths": figures.Picture(figures.each(lambda axes, one: axes.plot(one["values"]), "norm"))
    }

    def __post_init__(self) -> None:
        if self.power < 1:
            raise RecipeError(f"lengths.power: {self.power}: it must be at least 1.")

    def check(self, recipe: Recipe) -> None:
        recipe.require_tasks("lengths.tasks", self.tasks)

    def for_tasks(self, tasks: Sequence[str]) -> Self:
        return dataclasses.replace(self, tasks=tuple(name for name in self.tasks if name in tasks))

    def evaluations(self, run: RunContext) -> list[Evaluation]:
        return [
            Evaluation("lengths", (regime,), seed)
            for regime in run.recipe.regimes
            for seed in run.recipe.seeds
        ]

    def measure(self, run: RunContext, which: Evaluation) -> dict[str, Any]:
        (regime,) = which.about
        vectors = run.vectors(kind_of(regime), which.seed)  # type: ignore[arg-type]
        chosen = {task.name: vector for task, vector in vectors.items() if task.name in self.tasks}

        def work() -> dict[str, Any]:
            return {name: vector.norm() ** self.power for name, vector in chosen.items()}

        key = run.key(vectors, regime, dataclasses.asdict(self))
        content: dict[str, Any] = run.stages.do(regime, "lengths", which.name, key, work).content
        return content

    def findings(self, run: RunContext) -> Findings:
        rows: list[dict[str, Any]] = [
            {"regime": which.about[0], "seed": which.seed, **self.measure(run, which)}
            for which in self.evaluations(run)
        ]
        values = [row[self.tasks[0]] for row in rows]
        series = [{"kind": "lengths", "title": "lengths", "values": values}]
        return Findings([Table("Lengths", rows)], series, {"lengths": values})


TEXT = "lengths: {tasks: [email_spam], power: 2}\n"


@pytest.fixture(scope="module")
def asked(recipe: Recipe) -> Recipe:
    """Read from a file like any other part."""
    short = dataclasses.replace(recipe, regimes=("linear",), seeds=(0,), grid=(0.0, 1.0), parts=())
    return Recipe.parse(short.to_yaml() + TEXT, "mine.yaml", parts=(*PARTS, Lengths))


def test_the_section_of_a_new_part_is_read_as_strictly_as_any_other(asked: Recipe) -> None:
    assert asked.part(Lengths) == Lengths(("email_spam",), 2)
    assert Recipe.parse(asked.to_yaml(), parts=(*PARTS, Lengths)) == asked
    for text, words in (
        (
            TEXT.replace("power: 2", "powers: 2"),
            "line 3: unknown key 'lengths.powers'. Did you mean 'power'?",
        ),
        (
            TEXT.replace("power: 2", "power: two"),
            "line 3: lengths.power is 'two', and must be a whole number",
        ),
        (TEXT.replace("power: 2", "power: 0"), "lengths.power: 0: it must be at least 1"),
        (
            TEXT.replace("email_spam", "email_spm"),
            "'email_spm' is not among the tasks. Did you mean 'email_spam'?",
        ),
    ):
        with pytest.raises(RecipeError) as caught:
            Recipe.parse(f"model: minilm\ntasks: [email_spam]\n{text}", "mine.yaml", parts=(*PARTS, Lengths))
        assert words in str(caught.value)
        assert "mine.yaml" in str(caught.value)
    with pytest.raises(RecipeError, match="unknown key 'lengths'"):
        Recipe.parse(f"model: minilm\ntasks: [email_spam]\n{TEXT}")


@pytest.mark.slow
def test_a_new_part_is_planned_run_by_workers_reported_and_drawn(
    asked: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    monkeypatch.setattr(jobs, "sweep", in_turn(done))
    stages = [(row["stage"], row["number"]) for row in plan(asked, tmp_path).tables[0].rows]
    assert stages == [("fine-tune", 2), ("add", 1), ("lengths", 1)]
    report = run(asked, tmp_path, workers=2)
    assert done[-1] == "lengths-linear-seed0"
    assert [table.title for table in report.tables] == [
        "1. Addition, test accuracy", "2. Lengths", "3. Cost",
    ]  # fmt: skip
    assert report.result["lengths"] == [report.tables[1].rows[0]["email_spam"]]
    assert report.result["lengths"][0] > 0
    assert {file.name for file in tmp_path.glob("*.png")} == {
        "addition.png", "alpha-addition.png", "lengths.png"
    }  # fmt: skip
    assert reused(run(asked, tmp_path))["linear", "lengths"] == (1, 1)


def test_a_reproduction_asks_the_new_part_for_fewer_tasks(asked: Recipe) -> None:
    both = asked.with_parts(Lengths(TASKS))
    changed = with_changes(both, experiment("text7"), Changes(tasks=TASKS[:1], rows=5))
    assert changed.part(Lengths) == Lengths(TASKS[:1])
    assert changed.tasks == TASKS[:1]


@pytest.mark.parametrize(
    "part", [Merging(("ties",), regimes=("posthoc",)), Maps("all"), Negation(("email_spam",)), None]
)
def test_learning_rates_are_tried_for_any_part(recipe: Recipe, part: Part | None, tmp_path: Path) -> None:
    parts = (Lengths(TASKS),) if part is None else (part,)
    whole = dataclasses.replace(recipe, regimes=("standard", "posthoc"), parts=parts)
    tried = trials(whole, Rates((1e-4, 2e-4), (1e-4,)), tmp_path)
    assert [(trial.regime, trial.rate) for trial in tried] == [("standard", 1e-4), ("standard", 2e-4)]
    assert {trial.recipe.regimes for trial in tried} == {("standard",)}
    assert {trial.recipe.finetune.lr_standard for trial in tried} == {1e-4, 2e-4}
