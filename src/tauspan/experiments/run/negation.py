"""Negation in every regime: one task forgotten, the controls kept."""

from typing import Any, cast

from tauspan import editing
from tauspan.core.choices import EditRegime
from tauspan.core.report import Cell, Report, Table
from tauspan.experiments.run.courses import course_of
from tauspan.experiments.run.spread import in_words, spread
from tauspan.experiments.run.workshop import Evaluation, Workshop
from tauspan.kernel.diagnose.rows import Findings
from tauspan.tasks import Task

_COLUMNS = ("alpha", "target", "control", "control kept")
_MODELS = ("pre-trained", "negated", "alpha = 1")


def negation(shop: Workshop) -> Findings:
    """Target and control accuracies of every regime and target; nothing where no target is named."""
    targets = targets_of(shop)
    if not targets:
        return Findings([], [], {})
    rows: list[dict[str, Cell]] = []
    series: list[dict[str, Any]] = []
    found: dict[str, Any] = {}
    for regime in shop.recipe.regimes:
        found[regime] = {}
        for target in targets:
            done = [
                negated(shop, Evaluation("negate", (target.name, regime), seed)) for seed in shop.recipe.seeds
            ]
            tables = [one.tables[0].rows for one in done]
            for place, model in enumerate(_MODELS):
                columns = spread([table[place] for table in tables], _COLUMNS)
                label = "random" if (model, shop.recipe.start) == ("pre-trained", "random") else model
                rows.append({"regime": regime, "target task": target.name, "model": label, **columns})
            found[regime][target.name] = [
                {model: {c: table[place][c] for c in _COLUMNS} for place, model in enumerate(_MODELS)}
                for table in tables
            ]
            series += [{**entry, "group": f"alpha-negation-{target.name}"} for entry in done[0].series]
    control = _control_in_words(shop)
    note = (
        f"{in_words(shop.recipe.seeds)}; test split; target and control: absolute accuracies; control: {control}; alpha: "
        f"least target accuracy with control kept >= {shop.recipe.negate.floor:g} on validation; control kept: over the "
        "first row's control"
    )
    result = {"negation": found, "negation_control": control}
    return Findings([Table("Negation, test accuracy", rows, note)], series, result)


def targets_of(shop: Workshop) -> list[Task]:
    """The tasks that are to be forgotten."""
    return [shop.task(name) for name in shop.recipe.tasks if name in shop.recipe.negate.targets]


def negated(shop: Workshop, which: Evaluation) -> Report:
    """The negation of one target's vector of one seed."""
    target = next(task for task in targets_of(shop) if task.name == which.about[0])
    regime = cast(EditRegime, which.about[1])
    vectors = shop.vectors(course_of(regime), which.seed)
    negate = shop.recipe.negate
    controls = [shop.task(name) for name in negate.controls] or [
        task for task in shop.tasks if task is not target
    ]

    def work() -> Report:
        return editing.negate(
            shop.encoder(which.seed), target, vectors[target], controls, negate.floor, regime,
            grid=shop.recipe.grid, reading=shop.reading,
        ).report()  # fmt: skip

    key = [*shop.key(vectors, regime, shop.shared()), negate.floor, target.name]
    if negate.controls:
        key.append([task.checksum() for task in controls])
    return shop.stages.report(regime, "negate", which.name, key, work)


def _control_in_words(shop: Workshop) -> str:
    """What the control accuracy is measured on."""
    names = shop.recipe.negate.controls
    if not names:
        return "mean of the other tasks"
    mean = "mean of " if len(names) > 1 else ""
    return mean + ", ".join(_named(shop.task(name)) for name in names)


def _named(task: Task) -> str:
    """A control with its source, which published splits it has, and how many rows speak for it."""
    facts = [task.extra.get("title") or task.source, task.extra.get("control_split")]
    rows = f"{len(task.split('validation'))} validation and {len(task.split('test'))} test rows"
    return f"{task.name} ({'; '.join([*(str(fact) for fact in facts if fact), rows])})"
