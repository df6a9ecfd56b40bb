"""The tables of a study: one for each question, a row for each variant, number of rows and length."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from benchmarks.study.plan import Cell, Plan, Variant

from tauspan.core.report import Cell as Value
from tauspan.core.report import Table
from tauspan.experiments.run.spread import means, spread

Read: TypeAlias = Callable[["Found"], float | None]


@dataclass
class Found:
    """What was measured of one variant in one cell, by kind; kinds that are not done are missing."""

    cell: Cell
    variant: Variant
    rate: float
    numbers: dict[str, dict[str, Any]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        where = {"regime": self.variant.regime, "point": self.variant.point, **self.cell._asdict()}
        return {**where, "learning rate": self.rate, **self.numbers}

    def read(self, *path: str) -> float | None:
        """A number by its path; None where its kind is not done."""
        value: Any = self.numbers.get(path[0])
        for key in path[1:]:
            value = None if value is None else value[key]
        return None if value is None else float(value)

    def mean(self, kind: str, key: str, inner: str | None = None) -> float | None:
        """The mean of a list, or of a mapping's values, under a kind; None where one of them is not known."""
        if kind not in self.numbers:
            return None
        values = self.numbers[kind][key]
        values = list(values.values()) if isinstance(values, dict) else list(values)
        values = values if inner is None else [value[inner] for value in values]
        return None if None in values else statistics.fmean(values)


# what the picture and the tables read
ZERO_SHOT: Read = lambda one: one.read("addition", "zero shot")  # noqa: E731
SINGLE: Read = lambda one: one.read("addition", "single")  # noqa: E731
ADDED: Read = lambda one: one.read("addition", "added")  # noqa: E731
PLAIN: Read = lambda one: one.read("addition", "alpha 1")  # noqa: E731
MEAN: Read = lambda one: one.read("addition", "mean")  # noqa: E731
BEFORE: Read = lambda one: one.read("negation", "before", "target")  # noqa: E731
FORGOTTEN: Read = lambda one: one.read("negation", "target")  # noqa: E731
EQUAL: Read = lambda one: one.mean("interference", "pairs", "box")  # noqa: E731
MATCHED: Read = lambda one: one.mean("interference", "matched", "box")  # noqa: E731

_Rates: TypeAlias = Mapping[tuple[str, int, int], Mapping[float, float]]


def tables_of(
    plan: Plan, found: Sequence[Found], rates: _Rates, costs: Sequence[dict[str, Value]]
) -> list[Table]:
    """Every table for which there is a row."""
    groups: dict[tuple[int, int, Variant], list[Found]] = {}
    for one in found:
        groups.setdefault((one.cell.rows, one.cell.steps, one.variant), []).append(one)
    order = plan.variants()
    ranked = sorted(groups.items(), key=lambda item: (item[0][0], item[0][1], order.index(item[0][2])))
    made = dict(ranked)
    tables = [
        _rate_table(rates, plan), _addition_table(made, plan), _negation_table(made, plan), _xi_table(made, plan),
        _distance_table(made, plan), _against_table(made),
        Table("Cost", costs, "wall time; the machine may have been shared"),
    ]  # fmt: skip
    return [table for table in tables if table.rows]


Groups: TypeAlias = Mapping[tuple[int, int, Variant], Sequence[Found]]


def _where(rows: int, steps: int, variant: Variant, members: Sequence[Found]) -> dict[str, Value]:
    seeds = sorted({one.cell.seed for one in members})
    where: dict[str, Value] = {"rows": rows, "steps": steps, "model": str(variant)}
    return {**where, "seeds": " ".join(map(str, seeds))}


def _rows(groups: Groups, kind: str, columns: Mapping[str, Read]) -> list[dict[str, Value]]:
    """A row for each group that has numbers of a kind."""
    rows = []
    for (rows_, steps, variant), members in groups.items():
        done = [one for one in members if kind in one.numbers]
        if done:
            rows.append({**_where(rows_, steps, variant, done), **_spread(done, columns)})
    return rows


def _spread(members: Sequence[Found], columns: Mapping[str, Read]) -> dict[str, Value]:
    """Each number over the seeds."""
    return spread([{name: read(one) for name, read in columns.items()} for one in members], list(columns))


def _rate_table(rates: _Rates, plan: Plan) -> Table:
    rows: list[dict[str, Value]] = []
    for (variant, rows_, steps), tried in sorted(
        rates.items(), key=lambda item: (item[0][1], item[0][2], item[0][0])
    ):
        best = min(tried, key=lambda rate: (-tried[rate], rate))
        rows += [
            {"rows": rows_, "steps": steps, "model": variant, "learning rate": f"{rate:g}", "validation": accuracy,
             "chosen": rate == best}
            for rate, accuracy in tried.items()
        ]  # fmt: skip
    note = (
        f"mean single-task accuracy on {plan.validation} validation rows a task, seed {plan.seeds[0]}, one rate for all "
        "tasks, the smallest of equals; all rates at the shortest length, the chosen one and its neighbours at the next, "
        f"up to {plan.tune_to} steps; longer ones keep the last choice"
    )
    return Table("Learning rates", rows, note)


def _addition_table(groups: Groups, plan: Plan) -> Table:
    columns: dict[str, Read] = {
        "zero shot": ZERO_SHOT,
        "single": SINGLE,
        "alpha": lambda one: one.read("addition", "alpha"),
        "added": ADDED,
        "norm.": lambda one: one.read("addition", "added norm."),
        "alpha 1": PLAIN,
        "alpha 1 norm.": lambda one: one.read("addition", "alpha 1 norm."),
        "alpha 1/T": MEAN,
        f"norm. at {plan.grid[-1]:g}": _farthest,
    }
    error = _accuracy_error(groups, plan)
    note = (
        f"mean test accuracy over tasks; alpha by mean normalised accuracy on validation, from {plan.grid[0]:g} to "
        f"{plan.grid[-1]:g}; norm.: over the single-task accuracy of the same model, the last column on "
        f"validation at the largest alpha; {_seeds_in_words(groups)}"
    ) + (f"; standard error of one mean over test rows about {error:.3f}" if error else "")
    return Table("Single tasks and addition", _rows(groups, "addition", columns), note)


def _farthest(one: Found) -> float | None:
    """Normalised accuracy on validation at the largest alpha of the grid: whether there is a cliff."""
    if "addition" not in one.numbers:
        return None
    points = one.numbers["addition"]["series"][0]["points"]
    return float(max(points, key=lambda point: point["alpha"])["mean normalised"])


def _accuracy_error(groups: Groups, plan: Plan) -> float | None:
    """The binomial standard error of the first group's mean accuracy of single tasks over test rows."""
    for members in groups.values():
        if "addition" in members[0].numbers:
            tasks = [row for row in members[0].numbers["addition"]["tasks"] if row["task"] != "mean"]
            variance = sum(row["single"] * (1 - row["single"]) / plan.test for row in tasks)
            return math.sqrt(variance) / len(tasks)
    return None


def _negation_table(groups: Groups, plan: Plan) -> Table:
    columns: dict[str, Read] = {
        "target before": BEFORE,
        "alpha": lambda one: one.read("negation", "alpha"),
        "target": FORGOTTEN,
        "control": lambda one: one.read("negation", "control"),
        "control kept": _kept,
    }
    target = next(
        (one.numbers["negation"]["task"] for g in groups.values() for one in g if "negation" in one.numbers),
        "",
    )
    note = (
        f"target {target}, the other tasks are the controls; alpha forgets most on validation with control kept "
        f">= {plan.floor:g} there; test accuracy; {_seeds_in_words(groups)}"
    )
    return Table("Negation", _rows(groups, "negation", columns), note)


def _kept(one: Found) -> float | None:
    after, before = one.read("negation", "control"), one.read("negation", "before", "control")
    return None if after is None or not before else after / before


def _xi_table(groups: Groups, plan: Plan) -> Table:
    rows = []
    for (rows_, steps, variant), members in groups.items():
        done = [one for one in members if "interference" in one.numbers]
        for place, pair in enumerate(done[0].numbers["interference"]["pairs"] if done else []):
            cells: dict[str, Value] = {}
            for name, kind in (("equal alpha", "pairs"), ("matched drift", "matched")):
                numbers = [one.numbers["interference"][kind][place] for one in done]
                cells |= spread([{name: number["box"]} for number in numbers], [name])
                error = f"{name} s.e."
                cells |= means([{error: number["box s.e."]} for number in numbers], [error])
            where = _where(rows_, steps, variant, done)
            rows.append({**where, "pair": " + ".join(pair["tasks"]), **cells})
    note = (
        f"mean over [{plan.axis[0]:g}, {plan.axis[-1]:g}]^2, {len(plan.axis)} points an axis, {plan.map_rows} test rows "
        "a task; matched drift: axes in units of the drift that the ordinary vectors of the same line have at alpha 1, "
        "empty where a model reaches one of them at no coefficient; "
        f"s.e.: over rows of data, {_seeds_in_words(groups)}"
    )
    return Table("Disentanglement error", rows, note)


def _distance_table(groups: Groups, plan: Plan) -> Table:
    columns: dict[str, Read] = {
        "norm": lambda one: one.mean("geometry", "norms"),
        "cosine": lambda one: one.mean("geometry", "cosines"),
        "drift": lambda one: one.mean("interference", "at alpha 1"),
        "bend": lambda one: one.mean("curvature", "tasks", "relative"),
        "agreement": lambda one: one.mean("curvature", "tasks", "agreement"),
    }
    note = (
        "means over tasks and pairs; drift: movement of the centred logits on own rows at alpha 1 over their size; bend: "
        "|f - f_lin| / |f - f(theta0)| at the ordinary vectors, on own rows; agreement: rows where both name one "
        f"class; {_seeds_in_words(groups)}"
    )
    return Table("How far, and how straight", _rows(groups, "geometry", columns), note)


_AGAINST: dict[str, Read] = {
    "single": SINGLE, "added": ADDED, "alpha 1": PLAIN, "alpha 1/T": MEAN, "negation target": FORGOTTEN,
    "xi equal alpha": EQUAL, "xi matched drift": MATCHED,
}  # fmt: skip


def _against_table(groups: Groups) -> Table:
    """Each tangent variant less the ordinary model of the same cell."""
    rows = []
    for (rows_, steps, variant), members in groups.items():
        ordinary = {one.cell: one for one in groups.get((rows_, steps, Variant("standard", None)), ())}
        pairs = [(one, ordinary[one.cell]) for one in members if one.cell in ordinary]
        if variant.regime == "standard" or not pairs:
            continue
        less = [{name: _less(read(a), read(b)) for name, read in _AGAINST.items()} for a, b in pairs]
        cells = spread(less, list(_AGAINST))
        if all(value is None for value in cells.values()):
            continue  # begun, and nothing of it is measured yet
        rows.append({**_where(rows_, steps, variant, [one for one, _ in pairs]), **cells})
    note = (
        "the model's number less the ordinary model's of the same rows, steps and seed; better is above 0 for "
        f"accuracies, below 0 for the negation target and xi; {_seeds_in_words(groups)}"
    )
    return Table("Against ordinary fine-tuning", rows, note)


def _less(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second


def _seeds_in_words(groups: Groups) -> str:
    most = max((len({one.cell.seed for one in members}) for members in groups.values()), default=0)
    return (
        "mean ± standard deviation over seeds where there are several"
        if most > 1
        else "one seed: no spread is known"
    )
