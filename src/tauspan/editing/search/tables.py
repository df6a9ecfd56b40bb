"""The tables of a choice of coefficients."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tauspan.core.choices import EditRegime
from tauspan.core.report import Cell, Table
from tauspan.editing.model.kinds import model_kind
from tauspan.editing.search.bootstrap import Intervals
from tauspan.editing.search.box import Box
from tauspan.editing.search.solve import Solution
from tauspan.editing.search.unknowns import SHARED, Unknowns


@dataclass(frozen=True)
class Outcome:
    """What a regime's solver returns: values, loss, the loss along the shared grid, certificate and intervals."""

    values: tuple[float, ...]
    loss: float
    grid: Mapping[float, float]
    solution: Solution | None
    intervals: Intervals
    evaluations: int


def coefficient_table(free: Unknowns, found: Outcome, box: Box, regime: EditRegime) -> Table:
    """Each coefficient with its interval."""
    rows: list[dict[str, Cell]] = []
    labels = [(vector, group) for vector in free.directions.vectors for group in free.directions.groups]
    shared = free.names == (SHARED,)
    for place, (name, value) in enumerate(zip(free.names, found.values, strict=True)):
        task, group = ("all", "") if shared else labels[place]
        row: dict[str, Cell] = {"task": task}
        if len(free.directions.groups) > 1:
            row["group"] = group
        low, high = found.intervals.by_name.get(name, (None, None))
        ends = {float(box.lo[place]): "low", float(box.hi[place]): "high"}
        rows.append({**row, "coefficient": value, "low": low, "high": high, "on bound": ends.get(value, "")})
    note = f"low, high: 95 % percentile interval, refitted on {found.intervals.draws} resamples of the rows."
    if found.intervals.without_minimum:
        note += f" {found.intervals.without_minimum} of them are separable, have no finite minimum and count in none."
    if not found.intervals.by_name:
        note = (
            "No intervals: each refit would evaluate the model anew."
            if not model_kind(regime).tangent
            else "No intervals."
        )
    return Table("Coefficients", rows, note)


def accuracy_table(rows: Sequence[dict[str, Cell]], alpha: float, draws: int, metric: str) -> Table:
    """The rows under a note that says what their columns are."""
    note = f"shared grid: alpha = {alpha:g}, chosen by mean normalised {metric} as in the paper. "
    note += "solved: the coefficients above"
    note += f"; low, high: 95 % interval over {draws} resamples of the test rows." if draws else "."
    return Table(f"{metric[:1].upper()}{metric[1:]} on test", rows, note)


def optimum_table(found: Outcome) -> Table:
    """The loss at the optimum beside the best grid point, and how the optimum is known."""
    best = min(found.grid, key=lambda a: (found.grid[a], a))
    row: dict[str, Cell] = {
        "loss": found.loss, "best grid loss": found.grid[best], "at alpha": best, "evaluations": found.evaluations,
    }  # fmt: skip
    if found.solution is None:
        return Table(
            "Optimum", [row], "No certificate: not convex; the best of the points that were evaluated."
        )
    solution = found.solution
    row |= {"certified": solution.certified, "convex": solution.convex, "flat": solution.flat}
    row |= {"certificate": f"{solution.certificate:.1e}", "tolerance": f"{solution.tolerance:.0e}"}
    note = (
        "certificate: the Karush-Kuhn-Tucker (KKT) residual in the infinity norm; flat: how many dimensions change no "
        "prediction."
    )
    if not solution.convex:
        note += (
            " Not convex (in the outputs, or because the head normalises features): a stationary point, found from the "
            "best shared coefficient; nothing shows that no lower one exists."
        )
    if not solution.certified:
        note += (
            " The certificate is above its tolerance: the coefficients are the best found, not proven best."
        )
    return Table("Optimum", [row], note)
