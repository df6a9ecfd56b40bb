"""`plan`: what a recipe has to do, and what of it is done already."""

from collections import Counter
from pathlib import Path

from tauspan.core.arguments import checked
from tauspan.core.report import Cell, Report, Table, noted, provenance
from tauspan.experiments.recipe import Recipe
from tauspan.experiments.run.courses import finetunings
from tauspan.experiments.run.jobs import evaluations
from tauspan.experiments.run.workshop import Workshop


@noted
@checked
def plan(recipe: Recipe, out: str | Path, *, device: str | None = None) -> Report:
    """The stages of a recipe: how many of each kind, and how many of them lie in `out`; nothing is trained or written.

    A fine-tuning counts as done if its vector lies there and was made with these settings, data and model. A stage that
    measures counts if its file lies there; whether it is out of date is known only when its vectors are.

    Args:
        recipe: what to do.
        out: the output folder.
        device: where the model would compute; it is loaded for its fingerprint.

    Returns:
        A `Report` with one row a kind of stage; `report.result` has the numbers `stages` and `done`.
    """
    shop = Workshop(recipe, Path(out), device=device)
    number: Counter[tuple[str, str]] = Counter()
    done: Counter[tuple[str, str]] = Counter()
    for vector in finetunings(recipe):
        number[vector.course, "fine-tune"] += 1
        done[vector.course, "fine-tune"] += shop.finished(vector)
    for stage in evaluations(shop):
        about = stage.about[-1]
        number[about, stage.kind] += 1
        done[about, stage.kind] += shop.stages.exists(stage.name)
    rows: list[dict[str, Cell]] = [
        {"regime": label, "stage": kind, "number": count, "done": done[label, kind]}
        for (label, kind), count in number.items()
    ]
    note = f"what is done lies in {out} and is not done again"
    facts = provenance(recipe=recipe.as_dict(), base=shop.pretrained.source)
    result = {"stages": number.total(), "done": done.total()}
    return Report(f"{recipe.title}: plan", [Table("Stages", rows, note)], facts, result=result)
