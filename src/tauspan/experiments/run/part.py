"""`Part`: what a recipe can ask a run to measure. Each part is a class in a file of its own, and a row of `PARTS`."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

from tauspan.core.choices import EditRegime
from tauspan.core.errors import RecipeError
from tauspan.core.report import Table
from tauspan.experiments.figures import Picture
from tauspan.experiments.run.vectors import Finetuning

if TYPE_CHECKING:
    from tauspan.experiments.run.context import RunContext
    from tauspan.experiments.run.recipe import Recipe


class Evaluation(NamedTuple):
    """One stage that measures: its kind, what it is about (a regime, or a task and a regime), and a seed."""

    kind: str
    about: tuple[str, ...]
    seed: int

    @property
    def name(self) -> str:
        """The stage's name."""
        return "-".join([self.kind, *self.about, f"seed{self.seed}"])


@dataclasses.dataclass(frozen=True)
class Findings:
    """What a part adds to the report: tables, series for the figures, and numbers for programs."""

    tables: Sequence[Table] = ()
    series: Sequence[dict[str, Any]] = ()
    result: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Part(ABC):
    """One part of a run. Its fields are the keys of its section of the recipe, with their defaults.

    A part says which vectors and stages it needs, how each stage is made, and what the report shows of them. To add
    one, write such a class in a file of its own and add it to `PARTS`, or pass it to `Recipe.parse(..., parts=)`.
    A field is read as its annotation says; values that cannot be right raise `RecipeError` in `__post_init__`.
    """

    key: ClassVar[str] = ""  # its section in the recipe; "" if every run has the part
    vectorless: ClassVar[bool] = False  # whether it needs no vectors, and so no regimes
    drawn: ClassVar[Mapping[str, Picture]] = {}  # how to draw kinds of series that `figures` does not know

    @classmethod
    def hint(cls) -> Any:
        """The type of the section in a file: the part itself, as a mapping of its fields."""
        return cls

    @classmethod
    def of(cls, section: Any) -> "Part":
        """The part from a section of the type `hint()`."""
        part: Part = section
        return part

    def section(self) -> Any:
        """The section in plain values, as a file holds it."""
        return dataclasses.asdict(self)

    @property
    def asked(self) -> bool:
        """Whether the section asks for anything: its first field is not empty."""
        return all(bool(getattr(self, field.name)) for field in dataclasses.fields(self)[:1])

    @property
    def controls(self) -> Sequence[str]:
        """Tasks that it reads and that are never trained on."""
        return ()

    def check(self, recipe: "Recipe") -> None:
        """Raise `RecipeError` where the section does not fit the recipe: by default, where `regimes` names others."""
        recipe.require_regimes(f"{self.key}.regimes", getattr(self, "regimes", None) or ())

    def fewer(self, rows: int) -> Self:
        """The part with at most so many rows wherever it counts rows."""
        return self

    def for_tasks(self, tasks: Sequence[str]) -> Self:
        """The part without what it says of other tasks."""
        return self

    def finetunings(self, recipe: "Recipe") -> Iterable[Finetuning]:
        """The vectors that it needs."""
        return ()

    def reads_all(self, run: "RunContext") -> Iterable[tuple[EditRegime, int]]:
        """The regimes and seeds of which it reads every vector on every task; other parts then share what was read."""
        return ()

    @abstractmethod
    def evaluations(self, run: "RunContext") -> Iterable[Evaluation]:
        """The stages that it needs, in any order."""

    @abstractmethod
    def measure(self, run: "RunContext", which: Evaluation) -> Any:
        """The result of one of its stages, from its file if it is there."""

    @abstractmethod
    def findings(self, run: "RunContext") -> Findings:
        """Its tables, series and numbers; called only where `asked` and after all stages could be made."""

    def pictures(self, result: Mapping[str, Any]) -> Sequence[dict[str, Any]]:
        """More series to draw, made from the numbers of all parts."""
        return ()


def refuse_twice(key: str, values: Sequence[str]) -> None:
    """Raise `RecipeError` if a value is there twice."""
    if len(set(values)) < len(values):
        raise RecipeError(f"{key}: {list(values)}: none may stand twice.")


def laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Two mappings as one: below the same key, mappings are joined and anything else of `above` replaces.

    Example:
        >>> laid_over({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}})
        {'a': {'b': 1, 'c': 3}}
    """
    joined = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(joined.get(key), Mapping)
        joined[key] = laid_over(joined[key], value) if both else value
    return joined
