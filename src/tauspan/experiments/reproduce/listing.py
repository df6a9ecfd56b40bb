"""What can be reproduced, without torch."""

from tauspan.core.report import Cell
from tauspan.experiments.reproduce.experiment import experiment, names, recipes
from tauspan.experiments.run.courses import finetunings


def listing() -> list[dict[str, Cell]]:
    """One row for each experiment: what it reproduces, where it stands in the paper, its trainings, what it needs."""
    rows: list[dict[str, Cell]] = []
    for name in names():
        found, made = experiment(name), recipes(name)
        number = sum(len(list(finetunings(recipe))) for recipe in made.values())
        rows.append({
            "name": name, "what": found.title, "in the paper": found.where, "trainings": number, "needs": found.needs,
        })  # fmt: skip
    return rows
