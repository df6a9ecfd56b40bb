"""What to compare addition with: one model trained on all tasks together, and attention-only fine-tuning."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from tauspan import editing
from tauspan.core.reading import Reading
from tauspan.core.report import Table
from tauspan.core.results import ratio
from tauspan.experiments.run.addition import add, added, rows_of
from tauspan.experiments.run.part import Evaluation, Findings, Part, refuse_twice
from tauspan.experiments.run.spread import Row, in_words, listed_alphas, means, over_seeds
from tauspan.experiments.run.vectors import Finetuning, one_per_task

if TYPE_CHECKING:
    from tauspan.experiments.run.context import RunContext
    from tauspan.experiments.run.recipe import Recipe
    from tauspan.vector import TaskVector

Reference: TypeAlias = Literal["joint", "attention"]
_COLUMNS = ("zero shot", "single", "one model", "norm.", "alpha 1", "alpha 1 norm.")
_AS_ADDED = {"one model": "added", "norm.": "added norm."}  # the names of addition's columns
_NOTES = {
    "joint": "joint: one ordinary model fine-tuned on all tasks' rows together, about as many as all single "
    "fine-tunings saw: the ceiling, without vectors or alpha; norm.: over single of the standard regime",
    "attention": "attention: ordinary fine-tuning of the attention projections alone, then one model by the sum of the "
    "vectors; alpha chosen on validation as in addition: ",
}


@dataclasses.dataclass(frozen=True)
class References(Part):
    """The references of a run: `"joint"`, `"attention"` or both. In a file the section is the list of names."""

    names: tuple[Reference, ...] = ()
    key: ClassVar[str] = "references"

    @classmethod
    def hint(cls) -> Any:
        """A list of names."""
        return tuple[Reference, ...]

    @classmethod
    def of(cls, section: Any) -> "References":
        """From the list."""
        return cls(section)

    def section(self) -> list[str]:
        """The names."""
        return list(self.names)

    def __post_init__(self) -> None:
        refuse_twice(self.key, self.names)

    def finetunings(self, recipe: "Recipe") -> Iterator[Finetuning]:
        """Vectors of attention alone, and one vector of all tasks together."""
        if "attention" in self.names:
            yield from one_per_task(recipe, "attention")
        if "joint" in self.names:
            yield from (Finetuning("joint", None, seed) for seed in recipe.seeds)

    def evaluations(self, run: "RunContext") -> list[Evaluation]:
        """One for each reference and seed."""
        return [_stage(name, seed) for name in self.names for seed in run.recipe.seeds]

    def measure(self, run: "RunContext", which: Evaluation) -> Any:
        """The addition of attention-only vectors, or accuracies around the joint fine-tuning."""
        return add(run, which) if which.kind == "add" else _joint(run, which)

    def findings(self, run: "RunContext") -> Findings:
        """The references in columns like those of addition."""
        rows: list[dict[str, Any]] = []
        notes = [f"{in_words(run.recipe.seeds)}; test split"]
        result: dict[str, Any] = {"references": {}}
        for name in self.names:
            done = [self.measure(run, _stage(name, seed)) for seed in run.recipe.seeds]
            note = _NOTES[name]
            seeds: list[Sequence[Row]]
            if name == "attention":
                result["alpha"] = {name: [one.alpha for one in done]}
                note += listed_alphas(result["alpha"])
                seeds = [
                    [{column: row[_AS_ADDED.get(column, column)] for column in _COLUMNS} for row in rows_of(one)]
                    for one in done
                ]  # fmt: skip
            else:
                seeds = [
                    _beside_single(run, seed, one) for seed, one in zip(run.recipe.seeds, done, strict=True)
                ]
            more, result["references"][name] = over_seeds({"reference": name}, run.names, seeds, _COLUMNS)
            rows += more
            notes.append(note)
        return Findings([Table(f"References, test {run.metric}", rows, "; ".join(notes))], [], result)


def _stage(name: Reference, seed: int) -> Evaluation:
    return Evaluation("evaluate", (name,), seed) if name == "joint" else added(name, seed)


def _joint(run: "RunContext", which: Evaluation) -> dict[str, Any]:
    """Each task's accuracy before and after the joint fine-tuning."""
    from tauspan.vector import TaskVector

    made = Finetuning("joint", None, which.seed)
    folder = run.finetune(made)
    reading = Reading(max_tokens=run.recipe.max_tokens)

    def accuracy(vector: "TaskVector | None") -> Any:
        return editing.evaluate(run.encoder(which.seed), run.tasks, vector, reading=reading).metrics

    def work() -> dict[str, Any]:
        return {"before": accuracy(None), "after": accuracy(TaskVector.from_pretrained(folder))}

    key = [run.key_of(made), "test", run.recipe.max_tokens]
    found: dict[str, Any] = run.stages.do("joint", "evaluate", which.name, key, work).content
    return found


def _beside_single(run: "RunContext", seed: int, found: dict[str, Any]) -> Sequence[Row]:
    """The joint model's accuracies and their mean, beside the single-task accuracies of the standard regime."""
    singles: list[Any] = [None] * len(run.tasks)
    if "standard" in run.recipe.regimes:
        singles = [row.single for row in add(run, added("standard", seed)).tasks]
    rows: list[Row] = []
    for task, single in zip(run.tasks, singles, strict=False):
        after = found["after"][task.name]
        rows.append({
            "zero shot": found["before"][task.name], "single": single, "one model": after,
            "norm.": ratio(after, single), "alpha 1": None, "alpha 1 norm.": None,
        })  # fmt: skip
    return [*rows, dict(means(rows, _COLUMNS))]
