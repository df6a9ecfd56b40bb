"""A finished run's folder, opened again for a question that its recipe did not ask."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tauspan.core.choices import EditRegime
from tauspan.core.errors import StoreError
from tauspan.experiments.run.context import RunContext
from tauspan.experiments.run.parts import PARTS
from tauspan.experiments.run.recipe import Recipe
from tauspan.experiments.run.vectors import Finetuning, kind_of
from tauspan.store import read_json

REPORT = "report.json"


def is_run(folder: str | Path) -> bool:
    """Whether a path is the folder of a finished run."""
    return (Path(folder) / REPORT).is_file() and (Path(folder) / "stages").is_dir()


def finished_run(folder: str | Path, device: str | None = None) -> RunContext:
    """The context of a run, with the recipe that its report holds; nothing is made anew.

    Args:
        folder: where it wrote.
        device: where the model computes.

    Raises:
        StoreError: no report is there, or one of something else.
        RecipeError: the recipe has what this version does not know.
    """
    place = Path(folder)
    if not is_run(place):
        raise StoreError(f"{place} is not the folder of a finished run: {REPORT} and stages/ are not there.")
    report = read_json(place / REPORT)
    plain: Any = report.get("provenance", {}).get("recipe") if isinstance(report, Mapping) else None
    if not isinstance(plain, Mapping):
        raise StoreError(f"{place / REPORT} holds no recipe: it is the report of something else than a run.")
    known = {*(field.name for field in dataclasses.fields(Recipe)), *(part.key for part in PARTS)}
    kept = {
        key: value for key, value in plain.items() if key in known
    }  # parts of the user's own are left out
    return RunContext(
        Recipe.parse(yaml.safe_dump(json.loads(json.dumps(kept))), str(place / REPORT)), place, device
    )


def require_vectors(run: RunContext, regime: EditRegime, seed: int) -> None:
    """Raise `StoreError` unless a run has the vectors that a regime edits with."""
    for name in run.recipe.tasks:
        which = Finetuning(kind_of(regime), name, seed)
        if not run.finished(which):
            raise StoreError(
                f"the run {run.out} has no finished vector {run.folder(which).name}: take a regime and a seed of its "
                "recipe, or carry the recipe out again into this folder."
            )
