"""What to hold addition against: one model trained on all tasks together, and attention-only fine-tuning."""

from collections.abc import Mapping, Sequence
from typing import Any

from tauspan.core.reading import Reading
from tauspan.core.report import Cell, Table
from tauspan.editing import evaluate
from tauspan.experiments.run.addition import added
from tauspan.experiments.run.courses import Finetuning
from tauspan.experiments.run.spread import in_words, listed_alphas, means, spread
from tauspan.experiments.run.workshop import Evaluation, Workshop
from tauspan.kernel.diagnose.rows import Findings
from tauspan.vector import TaskVector

_COLUMNS = ("zero shot", "single", "one model", "norm.", "alpha 1", "alpha 1 norm.")
_ROWS = Sequence[Mapping[str, Cell]]


def references(shop: Workshop) -> Findings:
    """The references that the recipe asks for, with addition's columns; nothing where it asks for none."""
    rows: list[dict[str, Cell]] = []
    found: dict[str, Any] = {}
    notes = [f"{in_words(shop.recipe.seeds)}; test split"]
    result: dict[str, Any] = {}
    for name in shop.recipe.references:
        if name == "joint":
            per_seed = [_joint(shop, seed) for seed in shop.recipe.seeds]
            notes.append(
                "joint: one ordinary model fine-tuned on all tasks' rows together, about as many as all single "
                "fine-tunings saw: the ceiling, without vectors or alpha; norm.: over single of the standard regime"
            )
        else:
            per_seed, alphas = _attention(shop)
            result["alpha"] = {name: alphas}
            notes.append(
                "attention: ordinary fine-tuning of the attention projections alone, then one model by the sum of the "
                f"vectors; alpha chosen on validation as in addition: {listed_alphas({name: alphas})}"
            )
        found[name] = {}
        for index, task in enumerate([*(task.name for task in shop.tasks), "mean"]):
            here = [one[index] for one in per_seed]
            rows.append({"reference": name, "task": task, **spread(here, _COLUMNS)})
            found[name][task] = means(here, _COLUMNS)
    if not rows:
        return Findings([], [], {})
    result["references"] = found
    return Findings([Table("References, test accuracy", rows, "; ".join(notes))], [], result)


def _attention(shop: Workshop) -> tuple[list[_ROWS], list[float]]:
    """Addition's rows of attention-only vectors under this table's names, and each seed's coefficient."""
    done = [added(shop, Evaluation("add", ("attention",), seed)) for seed in shop.recipe.seeds]
    renamed = {"one model": "added", "norm.": "added norm."}
    rows = [
        [{column: row[renamed.get(column, column)] for column in _COLUMNS} for row in one.tables[0].rows]
        for one in done
    ]
    return list(rows), [one.result["alpha"] for one in done]


def together(shop: Workshop, which: Evaluation) -> dict[str, Any]:
    """Each task's accuracy before and after the joint fine-tuning."""
    vector_of = Finetuning("joint", None, which.seed)
    folder = shop.finetune(vector_of)
    key = [shop.key_of(vector_of), "test", shop.recipe.max_tokens]

    def work() -> dict[str, Any]:
        reading = Reading(max_tokens=shop.recipe.max_tokens)
        before = evaluate(shop.encoder(which.seed), shop.tasks, reading=reading).accuracy
        vector = TaskVector.from_pretrained(folder)
        return {
            "before": before,
            "after": evaluate(shop.encoder(which.seed), shop.tasks, vector, reading=reading).accuracy,
        }

    return shop.stages.do("joint", "evaluate", which.name, key, work).content


def _joint(shop: Workshop, seed: int) -> _ROWS:
    """One model's accuracy on each task and their mean, beside the standard regime's single-task accuracies."""
    content = together(shop, Evaluation("evaluate", ("joint",), seed))
    single: Sequence[Mapping[str, Cell]] = []
    if "standard" in shop.recipe.regimes:
        single = added(shop, Evaluation("add", ("standard",), seed)).tables[0].rows
    rows: list[dict[str, Cell]] = []
    for place, task in enumerate(shop.tasks):
        own = float(single[place]["single"] or 0) if single else None
        after = content["after"][task.name]
        rows.append({
            "zero shot": content["before"][task.name], "single": own, "one model": after,
            "norm.": None if own is None else after / (own or 1.0), "alpha 1": None, "alpha 1 norm.": None,
        })  # fmt: skip
    return [*rows, dict(means(rows, _COLUMNS))]
