"""What a recipe needs to be done: its fine-tunings, told from the recipe alone."""

from collections.abc import Iterator
from typing import Literal, NamedTuple, TypeAlias

from tauspan.experiments.recipe import Recipe

Course: TypeAlias = Literal["standard", "linear", "attention", "joint"]


class Finetuning(NamedTuple):
    """One vector to be made: a regime or a reference, a task as the recipe names it (None: all), and a seed."""

    course: Course
    task: str | None
    seed: int


def finetunings(recipe: Recipe) -> Iterator[Finetuning]:
    """Every vector that a recipe needs."""
    courses = [course_of(regime) for regime in recipe.regimes]
    courses += ["attention"] if "attention" in recipe.references else []
    for course in dict.fromkeys(courses):
        for seed in recipe.seeds:
            yield from (Finetuning(course, name, seed) for name in recipe.tasks)
    if "joint" in recipe.references:
        yield from (Finetuning("joint", None, seed) for seed in recipe.seeds)


def course_of(regime: Literal["standard", "posthoc", "linear"]) -> Course:
    """The fine-tuning whose vectors a regime edits with: posthoc shares the standard ones."""
    return "linear" if regime == "linear" else "standard"
