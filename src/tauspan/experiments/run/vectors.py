"""The vectors that a recipe needs, known from the recipe alone."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from tauspan.core.choices import TRAINED_IN, EditRegime, Regime

if TYPE_CHECKING:
    from tauspan.experiments.run.recipe import Recipe

VectorKind: TypeAlias = Literal["standard", "linear", "attention", "joint"]


class Finetuning(NamedTuple):
    """One vector to be made: a regime or a reference, a task as the recipe names it (None: all), and a seed."""

    kind: VectorKind
    task: str | None
    seed: int

    @property
    def regime(self) -> Regime:
        """The regime of its fine-tuning."""
        return "linear" if self.kind == "linear" else "standard"

    def folder(self, task: str | None) -> str:
        """The name of its folder, for a task of this name."""
        return f"{self.kind}-{task or 'standard'}-seed{self.seed}"  # all tasks together train in the standard regime


def finetunings(recipe: "Recipe") -> list[Finetuning]:
    """Every vector that a recipe needs, each once."""
    return list(dict.fromkeys(which for part in recipe.parts for which in part.finetunings(recipe)))


def one_per_task(recipe: "Recipe", kind: VectorKind) -> Iterator[Finetuning]:
    """The vectors of a kind: one for each seed and task."""
    return (Finetuning(kind, name, seed) for seed in recipe.seeds for name in recipe.tasks)


def kind_of(regime: EditRegime) -> Regime:
    """The kind of vectors that a regime edits with: posthoc shares the standard ones."""
    return TRAINED_IN[regime]
