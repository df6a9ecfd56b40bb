"""One way of a comparison with one seed: what is tried, the vectors, and what they do."""

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tauspan.core.choices import Regime
from tauspan.core.measure import progress
from tauspan.experiments.made.outcome import Asked, outcome, validated
from tauspan.experiments.made.ways import WAYS, Making, Vectors
from tauspan.experiments.run.part import Evaluation
from tauspan.experiments.run.vectors import Finetuning
from tauspan.train import Settings
from tauspan.vector import FILE, TaskVector

if TYPE_CHECKING:
    from tauspan.experiments.run.context import RunContext
    from tauspan.experiments.run.made import Made


@dataclasses.dataclass(frozen=True)
class Work:
    """One way with one seed.

    Args:
        made: what is compared.
        run: where.
        name: of the way.
        seed: of the vectors.
    """

    made: "Made"
    run: "RunContext"
    name: str
    seed: int

    def found(self) -> dict[str, Any]:
        """What it gives, from its file if it is there, and under `cost` what that took.

        Where nothing depends on the seed, that is the first seed's.
        """
        recipe, made = self.run.recipe, self.made
        drawn = WAYS[self.name].seeded or bool(self._rules) or recipe.start == "random"
        if self.seed != self._first and not drawn:
            return self._other(self.name, self._first).found()
        facts = dataclasses.asdict(made) | {
            "ways": None,
            "merged": None,
            "rules": self._rules,
            "weights": self._values,
        }
        key = [
            self.name, facts, recipe.as_dict()["finetune"], self.run.shared(), self.run.base(self.seed),
            [task.checksum() for task in self.run.tasks],
        ]  # fmt: skip
        stage = self.run.stages.do(
            self.name, "made", Evaluation("made", (self.name,), self.seed).name, key, self._do,
            self._folder(self.run.tasks[-1].name) / FILE,
        )  # fmt: skip
        return {**stage.content, "cost": stage.cost}

    def _other(self, name: str, seed: int) -> "Work":
        return Work(self.made, self.run, name, seed)

    @property
    def _first(self) -> int:
        """The seed with which rates and weights are chosen."""
        return self.run.recipe.seeds[0]

    @property
    def _rules(self) -> tuple[str, ...]:
        return self.made.rules if self.made.merged is None or self.name in self.made.merged else ()

    @property
    def _values(self) -> tuple[float | None, ...]:
        """What is tried."""
        way, made = WAYS[self.name], self.made
        if way.tries == "rate":
            return made.rates.get(self.name) or way.values or made.rates.get(way.regime) or (None,)
        return made.weights.get(self.name, way.values) or (None,)

    def _folder(self, task: str) -> Path:
        return self.run.out / "vectors" / f"made-{self.name}-{task}-seed{self.seed}"

    def _do(self) -> dict[str, Any]:
        """Make the vectors, at what is chosen for the way, and measure them."""
        way, given, reading = WAYS[self.name], self._making(), self.run.reading
        for needed in way.needs:  # so that the seconds are the way's own
            self._other(needed, self.seed).found()
        value, vectors, seconds, tried = self._chosen(given)
        for task, vector in vectors.items():
            vector.save_pretrained(self._folder(task.name) / FILE, overwrite=True)
        merged = (
            {} if way.together else {rule: given.merged(rule, vectors, self.seed) for rule in self._rules}
        )
        asked = Asked(self.made.grid, self.made.xi, self.made.xi_rows, self.made.floor)
        ratios = [one for vector in vectors.values() for one in _ratios(vector)]
        return {
            "value": value, "tried": tried, "seconds": seconds,
            "ratio": sum(ratios) / len(ratios) if ratios else None,
            **outcome(given.encoder, vectors, merged, way.regime, reading, asked),
        }  # fmt: skip

    def _chosen(self, given: Making) -> tuple[float | None, Vectors, float, dict[str, Mapping[str, float]]]:
        """What is best on validation rows with the first seed: its value, vectors and seconds, and all scores."""
        way, values = WAYS[self.name], self._values
        if self.seed != self._first:
            values = (self._other(self.name, self._first).found()["value"],)
        tried: dict[str, Mapping[str, float]] = {}
        best: tuple[float, float | None, Vectors, float] | None = None
        with progress(f"{self.name}, seed {self.seed}", len(values)) as advance:
            for value in values:
                begun = time.perf_counter()
                vectors = way.make(given, value)
                seconds, score = time.perf_counter() - begun, 0.0
                if len(values) > 1:
                    found = validated(given.encoder, vectors, way.regime, self.run.reading)
                    tried[f"{value:g}"] = found
                    score = found["single" if way.tries == "rate" else "sum"]
                if best is None or score > best[0]:
                    best = score, value, vectors, seconds
                advance(1, "" if value is None else f"{way.tries} {value:g}")
        assert best is not None  # noqa: S101 - there is at least one value
        return *best[1:], tried

    def _making(self) -> Making:
        """What a way is given."""
        recipe = self.run.recipe

        def settings(regime: Regime, rate: float | None) -> Settings:
            changes: dict[str, Any] = {}
            tuned = recipe.finetune
            if regime == "linear" and tuned.augment == "none" and not tuned.checkpointing:
                changes["cache"] = "auto"
            source = WAYS[self.name].rate_from(regime)
            if rate is None and source is not None:
                rate = self._other(source, self._first).found()["value"]
            if rate is not None:
                changes["lr"] = rate
            return recipe.settings(Finetuning(regime, None, self.seed), **changes)

        def joint(regime: Regime, rate: float | None) -> Settings:
            chosen = self.run.settings(Finetuning("joint", None, self.seed))
            return dataclasses.replace(
                settings(regime, rate), epochs=chosen.epochs, max_steps=chosen.max_steps
            )

        def others(name: str) -> Vectors:
            other = self._other(name, self.seed)
            other.found()
            return {
                task: TaskVector.from_pretrained(other._folder(task.name) / FILE) for task in self.run.tasks
            }

        return Making(
            self.run.encoder(self.seed),
            self.run.tasks,
            settings,
            joint,
            self.made.ridge,
            others,
            self.made.reference_rows(self.run),
            {},
        )


def _ratios(vector: TaskVector) -> list[float]:
    """Approximate over exact drift of a vector, for each other task, where its penalty measured that."""
    found = (vector.info.get("penalty") or {}).get("ratio") or {}
    return [value for value in found.values() if value is not None]
