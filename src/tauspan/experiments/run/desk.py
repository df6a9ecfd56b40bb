"""The desk at the end of a run: a page of the first seed's vectors, beside the report."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

from tauspan.core.choices import EditRegime
from tauspan.core.errors import RecipeError
from tauspan.core.report import Table
from tauspan.experiments.run.part import Evaluation, Findings, Part
from tauspan.experiments.run.vectors import Finetuning, kind_of

if TYPE_CHECKING:
    from tauspan import editing
    from tauspan.experiments.run.context import RunContext
    from tauspan.experiments.run.recipe import Recipe

NAME = "desk.html"
_PREFERRED: Sequence[EditRegime] = ("linear", "posthoc", "standard")  # the first two are exact between points


@dataclasses.dataclass(frozen=True)
class Desk(Part):
    """A page with a slider for each of the first seed's vectors, `desk.html`; see `tauspan.desk`.

    In a file the section is `true`, or a mapping of the other fields.

    Args:
        write: whether a run writes the page.
        regime: how the vectors edit; None takes the first of linear, posthoc and standard that the recipe has.
        range: of every coefficient; it begins at 0 or below and ends at 1 or above.
        rows: at most so many rows of each split are on the page; None takes all.
        examples: also texts or thumbnails of the rows.
        exact: numbers as float32, which take twice the room.
    """

    write: bool = dataclasses.field(default=False, metadata={"hidden": True})
    regime: EditRegime | None = None
    range: tuple[float, ...] = (0.0, 1.0)
    rows: int | None = None
    examples: bool = True
    exact: bool = False
    key: ClassVar[str] = "desk"

    @classmethod
    def hint(cls) -> Any:
        """True or false, or a mapping."""
        return bool | cls

    @classmethod
    def of(cls, section: Any) -> "Desk":
        """From either."""
        return cls(write=section) if isinstance(section, bool) else dataclasses.replace(section, write=True)

    def section(self) -> Any:
        """A mapping of what is not the default; true or false where nothing is."""
        plain = dataclasses.asdict(self)
        changed = {
            field.name: plain[field.name]
            for field in dataclasses.fields(self)[1:]
            if plain[field.name] != field.default
        }
        return changed if changed and self.write else self.write

    def __post_init__(self) -> None:
        if len(self.range) != 2 or not self.range[0] <= 0 < 1 <= self.range[1]:
            raise RecipeError(
                f"desk.range: {list(self.range)}: two numbers, the first at most 0 and the second at least 1."
            )
        if self.rows is not None and self.rows < 1:
            raise RecipeError(f"desk.rows: {self.rows}: it must be at least 1.")

    def check(self, recipe: "Recipe") -> None:
        """The regime is one of the recipe's."""
        recipe.require_regimes("desk.regime", [self.regime] if self.regime else [])

    def fewer(self, rows: int) -> Self:
        """A page of at most so many rows."""
        return dataclasses.replace(self, rows=min(rows, self.rows or rows))

    def reads_all(self, run: "RunContext") -> list[tuple[EditRegime, int]]:
        """Those of the page."""
        return [(self.edits(run), run.recipe.seeds[0])]

    def evaluations(self, run: "RunContext") -> list[Evaluation]:
        """One page."""
        return [Evaluation("desk", (self.edits(run),), run.recipe.seeds[0])]

    def measure(self, run: "RunContext", which: Evaluation) -> dict[str, Any]:
        """What the page holds; it is written with it."""
        regime, file = cast(EditRegime, which.about[0]), run.out / NAME
        vectors = run.vectors(kind_of(regime), which.seed)

        def work() -> dict[str, Any]:
            from tauspan.core.processes import world

            page = self.page(run, regime, which.seed, run.recipe.title)
            with world() as processes:
                if processes.first:
                    page.save(file, overwrite=True)
            return {"bytes": page.size, "notes": list(page.notes), "rows": [dict(row) for row in page.tasks]}

        facts = {
            "title": run.recipe.title,
            "controls": [run.task(name).checksum() for name in run.recipe.controls],
        }
        key = run.key(vectors, regime, {**run.shared(), **dataclasses.asdict(self), **facts})
        content: dict[str, Any] = run.stages.do(regime, "desk", which.name, key, work, file).content
        return content

    def edits(self, run: "RunContext") -> EditRegime:
        """The regime of the page."""
        found = [regime for regime in _PREFERRED if regime in run.recipe.regimes]
        return found[0] if self.regime is None else self.regime

    def page(self, run: "RunContext", regime: EditRegime, seed: int, title: str | None) -> "editing.Desk":
        """The page of a run's vectors."""
        from tauspan.vector import FILE

        vectors = run.vectors(kind_of(regime), seed)
        names = dict(zip((task.name for task in run.tasks), run.recipe.tasks, strict=True))
        files: dict[str, str | Path] = {
            task.name: run.folder(Finetuning(kind_of(regime), names[task.name], seed)) / FILE
            for task in vectors
        }
        low, high = self.range
        return run.editor(kind_of(regime), regime, seed).desk(
            range=(low, high), rows=self.rows, examples=self.examples, exact=self.exact, title=title,
            controls=[run.task(name) for name in run.recipe.controls if run.task(name) not in vectors],
            files=files, seed=seed,
        )  # fmt: skip

    def findings(self, run: "RunContext") -> Findings:
        """What the page holds."""
        (which,) = self.evaluations(run)
        found = self.measure(run, which)
        note = " ".join(
            [f"{NAME}, {found['bytes'] / 1e6:.2f} MB, {which.about[0]}, seed {which.seed}.", *found["notes"]]
        )
        result = {"desk": {"file": NAME, "bytes": found["bytes"], "regime": which.about[0]}}
        return Findings([Table("The desk", found["rows"], note)], [], result)
