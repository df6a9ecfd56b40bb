"""`Mixer`: what the server does with a run: evaluate a mix of its vectors, write one, and say how far the run is."""

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tauspan.core.choices import EditRegime, SplitName
from tauspan.core.errors import UsageError, nearest
from tauspan.editing import Editor, Evaluation, apply, save
from tauspan.editing.model.directions import weighted_sum
from tauspan.experiments.run.context import RunContext
from tauspan.experiments.run.finished import require_vectors
from tauspan.experiments.run.vectors import kind_of
from tauspan.store import require_free

SPLITS: tuple[SplitName, ...] = ("validation", "test")
KINDS = ("vector", "model")
LARGEST = 10.0  # the largest coefficient, in either direction
FOLDER = "mixes"
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")


@dataclass(frozen=True)
class Mix:
    """An edit, by the ids that the server gave out.

    Args:
        regime: one of the run's.
        seed: one of the run's.
        coefficients: by task; a task that is not named counts as 0.
    """

    regime: EditRegime
    seed: int
    coefficients: Mapping[str, float]


class Mixer:
    """A run's vectors behind the server. One question is answered at a time, because a model has one working copy.

    Args:
        run: the run.
        write: whether mixes may be written, into `mixes` in the run's folder.
    """

    def __init__(self, run: RunContext, write: bool = False) -> None:
        self.run, self.may_write = run, write
        self.tasks = [task.name for task in run.tasks]
        self._lock = threading.Lock()
        self._editor: tuple[tuple[EditRegime, int], Editor] | None = None

    def about(self) -> dict[str, Any]:
        """What the page shows before a question is asked."""
        recipe = self.run.recipe
        return {
            "title": recipe.title, "model": self.run.pretrained.source, "tasks": self.tasks,
            "regimes": list(recipe.regimes), "seeds": list(recipe.seeds), "splits": list(SPLITS),
            "largest": LARGEST, "write": self.may_write,
        }  # fmt: skip

    def mix(self, plain: Any, *more: str) -> Mix:
        """A mix out of parsed JSON.

        Args:
            plain: the parsed body.
            more: keys of the body that are not the mix's.

        Raises:
            UsageError: anything else than a mix of this run, with the key that is wrong.
        """
        known = ("regime", "seed", "coefficients", *more)
        if not isinstance(plain, Mapping):
            raise UsageError(f"the body is {_shown(plain)}: it must be an object with {', '.join(known)}.")
        for key in plain:
            if key not in known:
                raise UsageError(f"the body has {_shown(key)}. {nearest(str(key)[:80], list(known))}")
        regime, seed = plain.get("regime"), plain.get("seed")
        if regime not in self.run.recipe.regimes:
            raise UsageError(f"regime: {_shown(regime)}: one of {', '.join(self.run.recipe.regimes)}.")
        if type(seed) is not int or seed not in self.run.recipe.seeds:
            raise UsageError(f"seed: {_shown(seed)}: one of {', '.join(map(str, self.run.recipe.seeds))}.")
        return Mix(cast(EditRegime, regime), seed, self._numbers(plain.get("coefficients")))

    def evaluate(self, mix: Mix, split: str) -> list[dict[str, Any]]:
        """Accuracy and loss of each task at a mix, and their mean."""
        if split not in SPLITS:
            raise UsageError(f"split: {_shown(split)}: one of {', '.join(SPLITS)}.")
        with self._lock:
            found: Evaluation = self._asked(mix).evaluate(dict(mix.coefficients), split=split)
        rows = [*found.tasks, *([found.mean] if found.mean else [])]
        return [dict(row.cells()) for row in rows]

    def write(self, mix: Mix, kind: str, name: str) -> Path:
        """Write a mix into the run's folder, as a vector's folder or as a model; the path of what was written.

        Raises:
            UsageError: writing is not allowed, or the kind or name is none.
            StoreError: the name is taken.
        """
        if not self.may_write:
            raise UsageError("the server was started without --write, and writes nothing.")
        if kind not in KINDS:
            raise UsageError(f"kind: {_shown(kind)}: one of {', '.join(KINDS)}.")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise UsageError(
                f"name: {_shown(name)}: 1 to 64 small letters, digits and hyphens, not a hyphen first."
            )
        place = self.run.out / FOLDER / name
        with self._lock:
            require_free(place, False)
            editor = self._asked(mix)
            vectors = {task.name: vector for task, vector in editor.vectors.items()}
            chosen = weighted_sum(vectors, {name: mix.coefficients.get(name, 0.0) for name in vectors})
            if kind == "vector":
                chosen.save_pretrained(place)
            else:
                save(apply(editor.encoder, chosen, regime=mix.regime, point=editor.reading.point), place)
        return place

    def progress(self) -> dict[str, int]:
        """How many stages the run has, and how many of them are done; another process may be at work on them."""
        steps = self.run.steps().values()
        return {"stages": len(steps), "done": sum(step.finished() for step in steps)}

    # -- parts -----------------------------------------------------------------------------------------------

    def _numbers(self, plain: Any) -> dict[str, float]:
        if not isinstance(plain, Mapping):
            raise UsageError(f"coefficients: {_shown(plain)}: an object of numbers by task.")
        found = {}
        for name, value in plain.items():
            if name not in self.tasks:
                raise UsageError(
                    f"coefficients: there is no task {_shown(name)}. {nearest(str(name)[:80], self.tasks)}"
                )
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not abs(value) <= LARGEST:  # NaN is not, either
                raise UsageError(
                    f"coefficients: {name}: {_shown(value)}: a number between {-LARGEST:g} and {LARGEST:g}."
                )
            found[name] = float(value)
        return found

    def _asked(self, mix: Mix) -> Editor:
        """The editor of a regime and seed; the last one is kept."""
        key = (mix.regime, mix.seed)
        if self._editor is None or self._editor[0] != key:
            require_vectors(self.run, mix.regime, mix.seed)
            vectors = self.run.vectors(kind_of(mix.regime), mix.seed)
            editor = Editor(self.run.encoder(mix.seed), vectors, mix.regime, reading=self.run.reading)
            self._editor = key, editor
        return self._editor[1]


def _shown(value: Any) -> str:
    """What was given, in at most 60 characters."""
    text = repr(value) if isinstance(value, str | int | float | bool | None) else type(value).__name__
    return text if len(text) <= 60 else f"{text[:57]}..."
