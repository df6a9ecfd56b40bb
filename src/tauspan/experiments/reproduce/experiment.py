"""`Experiment`: a table or figure of the paper as a file of `recipes/`, and the recipes of `tauspan.run` for it."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

from tauspan.core.arguments import checked
from tauspan.core.errors import RecipeError, UsageError, nearest
from tauspan.core.report import Cell
from tauspan.core.schema import Document
from tauspan.core.strict_yaml import dumped
from tauspan.experiments.reproduce.presets import PRESETS
from tauspan.experiments.run import Recipe
from tauspan.experiments.run.part import laid_over
from tauspan.experiments.run.vectors import finetunings

Measure: TypeAlias = Literal["addition", "negation", "single-task"]
Plain: TypeAlias = dict[str, Any]
_HERE = Path(__file__).parent
_OWN = ("like", "what", "rates")  # keys of a variant that a recipe does not have


def _anything(**default: Plain) -> Any:
    """A field that accepts any keys and values; they are checked later, as those of a `Recipe`."""
    return dataclasses.field(
        default_factory=lambda: dict(default), metadata={"parse": lambda value, _: value}
    )


@dataclasses.dataclass(frozen=True)
class Rates:
    """For each regime the learning rates that are tried; `tasks`, if empty, means all tasks of the recipe."""

    standard: tuple[float, ...]
    linear: tuple[float, ...]
    tasks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("standard", "linear"):
            rates = getattr(self, name)
            if not rates or len(set(rates)) < len(rates) or not all(rate > 0 for rate in rates):
                raise RecipeError(f"rates.{name}: {list(rates)}: it needs rates above 0, none twice.")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A table or figure of the paper, as a file of `recipes/` describes it.

    Args:
        title: of the report.
        reproduces: what is measured, in a sentence.
        where: the table or figure of the paper.
        needs: what must be fetched.
        model: the default: a name of `PRESETS`, or what `tauspan.load` takes.
        variants: `paper` and `corrected`; each is a recipe's keys, after `like`, another variant of `variants/`.
        recipe: the keys of `tauspan.experiments.run.Recipe` that all parts and variants share.
        parts: recipes that are carried out one after the other, each with keys of its own.
        measures: what of it is compared with published numbers.
        default: the variant that is taken unless another is named.
        seeds: how many, unless another number is asked for.
    """

    title: str
    reproduces: str
    where: str
    needs: str
    model: str
    variants: Mapping[str, Any] = _anything()
    recipe: Mapping[str, Any] = _anything()
    parts: Mapping[str, Any] = _anything(main={})
    measures: tuple[Measure, ...] = ()
    default: str = "paper"
    seeds: int = 1


@dataclasses.dataclass(frozen=True)
class Changes:
    """What a user asks for that differs from a recipe; None or empty leaves it as it is.

    Args:
        model: a name of `PRESETS`, a directory, or any source of `tauspan.load`.
        seeds: the seeds of the vectors.
        data: folder with one sub-folder per data set.
        rows: at most so many rows of each split, of each map and of each kernel.
        max_steps: end every fine-tuning after so many steps.
        tasks: only these of the experiment's tasks.
    """

    model: str | None = None
    seeds: tuple[int, ...] = ()
    data: str | None = None
    rows: int | None = None
    max_steps: int | None = None
    tasks: tuple[str, ...] = ()


def names() -> tuple[str, ...]:
    """The experiments, sorted by name."""
    return tuple(sorted(path.stem for path in (_HERE / "recipes").glob("*.yaml")))


@checked
def experiment(name: str) -> Experiment:
    """Read the experiment of that name.

    Raises:
        UsageError: there is none; the message names the nearest.

    Example:
        >>> experiment("addition").where
        'Table 1'
    """
    if name not in names():
        raise UsageError(f"nothing to reproduce by the name {name!r}. {nearest(name, names())}")
    return Document.read(_HERE / "recipes" / f"{name}.yaml").build(Experiment)


def variant(found: Experiment, name: str | None) -> tuple[str, Plain, Rates | None]:
    """A variant's description, the keys of a recipe that it sets, and the learning rates to choose among."""
    name = name or found.default
    if name not in found.variants:
        raise UsageError(f"no variant {name!r}. {nearest(name, found.variants)}")
    whole = _followed(dict(found.variants[name]))
    listed = whole.get("rates")
    rates = Document(dumped(listed), f"rates of {name}").build(Rates) if listed else None
    return str(whole["what"]), {key: value for key, value in whole.items() if key not in _OWN}, rates


def _followed(keys: Plain) -> Plain:
    """A variant's keys, merged over those of the variant that its key `like` names."""
    if "like" not in keys:
        return keys
    below = Document.read(_HERE / "variants" / f"{keys['like']}.yaml").plain
    return laid_over(_followed(below), {key: value for key, value in keys.items() if key != "like"})


@checked
def recipes(name: str, variant_name: str | None = None, changes: Changes | None = None) -> dict[str, Recipe]:
    """The recipes of an experiment's parts, as `tauspan run` takes them.

    Args:
        name: of the experiment.
        variant_name: `"paper"`, `"corrected"`; None takes the experiment's default.
        changes: what differs from the files.

    Raises:
        UsageError: an unknown experiment, variant or task.
        RecipeError: a recipe that does not hold together, for example a pair of maps with a single task.

    Example:
        >>> made = recipes("addition", changes=Changes(model="ViT-L-14", seeds=(0, 1)))["main"]
        >>> made.finetune.batch_size, made.finetune.accumulation, made.seeds
        (64, 2, (0, 1))
    """
    found, changes = experiment(name), changes or Changes()
    _, keys, _ = variant(found, variant_name)
    made = {}
    for part, own in found.parts.items():
        whole = laid_over(laid_over(found.recipe, keys), own)
        tuned = whole.get("finetune", {})  # a variant lists the epochs of all the paper's tasks
        epochs = {
            task: count for task, count in tuned.get("epochs_by_task", {}).items() if task in whole["tasks"]
        }
        whole["finetune"] = {**tuned, "epochs_by_task": epochs}
        title = found.title if len(found.parts) == 1 else f"{found.title}: {part}"
        text = dumped({"title": title, "model": found.model, **whole})
        made[part] = with_changes(Recipe.parse(text, f"{name}, {part}"), found, changes)
    return made


def with_changes(recipe: Recipe, found: Experiment, changes: Changes) -> Recipe:
    """A recipe with the user's changes, for the user's model or else the experiment's."""
    model = changes.model or found.model
    tasks = changes.tasks or recipe.tasks
    for name in tasks:
        if name not in recipe.tasks:
            raise UsageError(f"--tasks: {name!r} is not among its tasks. {nearest(name, recipe.tasks)}")
    preset = PRESETS.get(model)
    tuned: Plain = {}
    if preset is not None:
        tuned |= {"batch_size": preset.batch_size, "accumulation": preset.accumulation}
    if changes.max_steps is not None:
        tuned["max_steps"] = changes.max_steps
    rows, parts = recipe.rows, tuple(part.for_tasks(tasks) for part in recipe.parts)
    if changes.rows is not None:
        rows, parts = rows.fewer(changes.rows), tuple(part.fewer(changes.rows) for part in parts)
    return dataclasses.replace(
        recipe, model=preset.source if preset else model, tasks=tasks, rows=rows, parts=parts, data=changes.data,
        seeds=changes.seeds or tuple(range(found.seeds)),
        finetune=dataclasses.replace(recipe.finetune.for_tasks(tasks), **tuned),
    )  # fmt: skip


def listing() -> list[dict[str, Cell]]:
    """One row for each experiment: what it reproduces, where it is in the paper, its trainings, what it needs."""
    rows: list[dict[str, Cell]] = []
    for name in names():
        found, made = experiment(name), recipes(name)
        number = sum(len(finetunings(recipe)) for recipe in made.values())
        rows.append({
            "name": name, "what": found.title, "in the paper": found.where, "trainings": number, "needs": found.needs,
        })  # fmt: skip
    return rows
