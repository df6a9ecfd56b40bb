"""`run`: a recipe from data to report, stage by stage; a finished stage is reused, never done twice."""

from typing import TYPE_CHECKING

from tauspan.core.lazy import loader
from tauspan.experiments.run.addition import Addition
from tauspan.experiments.run.desk import Desk
from tauspan.experiments.run.energy import Energies
from tauspan.experiments.run.maps import Maps
from tauspan.experiments.run.merging import Merging
from tauspan.experiments.run.negation import Negation
from tauspan.experiments.run.part import Evaluation, Findings, Part
from tauspan.experiments.run.parts import PARTS
from tauspan.experiments.run.recipe import Recipe, Rows, Training
from tauspan.experiments.run.references import References

if TYPE_CHECKING:
    from tauspan.experiments.run.runner import plan, run

__all__ = [
    "PARTS", "Addition", "Desk", "Energies", "Evaluation", "Findings", "Maps", "Merging", "Negation", "Part", "Recipe",
    "References", "Rows", "Training", "plan", "run",
]  # fmt: skip


__getattr__ = loader(
    globals(), {"plan": "runner", "run": "runner"}
)  # what runs a recipe needs torch; what reads one does not
