"""`PARTS`: what a recipe can ask for, in the order of the report's tables."""

from tauspan.experiments.run.addition import Addition
from tauspan.experiments.run.desk import Desk
from tauspan.experiments.run.energy import Energies
from tauspan.experiments.run.made import Made
from tauspan.experiments.run.maps import Maps
from tauspan.experiments.run.merging import Merging
from tauspan.experiments.run.negation import Negation
from tauspan.experiments.run.part import Part
from tauspan.experiments.run.references import References

PARTS: tuple[type[Part], ...] = (Addition, References, Negation, Maps, Energies, Merging, Made, Desk)
