"""Numbers of several seeds as one: their mean with its sample standard deviation, and their curves as one series."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from tauspan.core.report import Cell

Row = Mapping[str, Cell]


def spread(rows: Sequence[Row], columns: Sequence[str]) -> dict[str, Cell]:
    """Each column's mean and sample standard deviation over the rows, as text; of one row the value itself."""
    cells: dict[str, Cell] = {}
    for column in columns:
        values = _known(rows, column)
        if len(values) < 2:
            cells[column] = values[0] if values else None
        else:
            cells[column] = f"{statistics.fmean(values):.3f} ± {statistics.stdev(values):.3f}"
    return cells


def means(rows: Sequence[Row], columns: Sequence[str]) -> dict[str, float | None]:
    """Each column's mean over the rows; None where a row lacks the number."""
    known = {column: _known(rows, column) for column in columns}
    return {column: statistics.fmean(values) if values else None for column, values in known.items()}


def _known(rows: Sequence[Row], column: str) -> list[float]:
    """The numbers of a column; none of them where one is missing."""
    values = [float(value) for row in rows if (value := row[column]) is not None]
    return values if len(values) == len(rows) else []


def over_seeds(
    first: Row, names: Sequence[str], seeds: Sequence[Sequence[Row]], columns: Sequence[str]
) -> tuple[list[dict[str, Cell]], dict[str, dict[str, float | None]]]:
    """Rows of a table and means by name, from the rows that each seed has for these names.

    Args:
        first: the columns before the name.
        names: what the rows of a seed are about, in their order: tasks, then `"mean"`.
        seeds: the rows of each seed.
        columns: which columns of them.
    """
    by_name = {name: [rows[place] for rows in seeds] for place, name in enumerate(names)}
    table = [{**first, "task": name, **spread(rows, columns)} for name, rows in by_name.items()]
    return table, {name: means(rows, columns) for name, rows in by_name.items()}


def in_words(seeds: Sequence[int]) -> str:
    """What the seeds say of the spread, for a note.

    Example:
        >>> in_words([0]), in_words([0, 1])
        ('one seed (0): no spread is known', '2 seeds, mean ± standard deviation')
    """
    if len(seeds) == 1:
        return f"one seed ({seeds[0]}): no spread is known"
    return f"{len(seeds)} seeds, mean ± standard deviation"


def listed_alphas(alphas: Mapping[str, Sequence[float]]) -> str:
    """The chosen coefficients, seed by seed.

    Example:
        >>> listed_alphas({"standard": [0.3, 0.35], "linear": [1.0, 1.0]})
        'standard 0.3, 0.35; linear 1, 1'
    """
    return "; ".join(f"{name} {', '.join(f'{a:g}' for a in values)}" for name, values in alphas.items())


def one_series(series: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> dict[str, Any]:
    """The curves over alpha of several seeds as one series: the first seed's, with those of every seed in `seeds`.

    Args:
        series: of kind `alpha`, one for each seed.
        seeds: their numbers.
    """
    if len(series) == 1:
        return dict(series[0])
    runs = [
        {"seed": seed, "best": one["best"], "points": one["points"]}
        for seed, one in zip(seeds, series, strict=True)
    ]
    floors = [one["floor"] for one in series if one.get("floor") is not None]
    kept = {"floor": statistics.fmean(floors)} if floors else {}
    return {**series[0], **kept, "seeds": runs}


def stems(
    by_seed: Mapping[str, Mapping[str, Mapping[str, Sequence[float | None]]]],
    rows: Mapping[str, int],
    column: str,
) -> tuple[dict[str, dict[str, float]], str]:
    """How far each bar's number spreads, by regime and name, and what that is, in words.

    Of several seeds their sample standard deviation. Of one seed, for accuracies, the binomial standard error
    sqrt(p (1 - p) / n) over the test rows, and of the mean over tasks sqrt(sum of squares) / T; else nothing.

    Args:
        by_seed: by regime, name (tasks, then `"mean"`) and column a number for each seed.
        rows: how many test rows each task has; empty if that is not known, or the numbers are no accuracies.
        column: which numbers.

    Example:
        >>> stems({"linear": {"a": {"added": [0.5]}}}, {"a": 100}, "added")
        ({'linear': {'a': 0.05}}, '± standard error over test rows')
        >>> stems({"linear": {"a": {"added": [0.5, 0.7]}}}, {}, "added")[1]
        '± standard deviation over 2 seeds'
    """
    found: dict[str, dict[str, float]] = {}
    counts = set()
    for regime, names in by_seed.items():
        for name, columns in names.items():
            values = columns[column]
            counts.add(len(values))
            known = [value for value in values if value is not None]
            if len(known) == len(values) > 1:
                found.setdefault(regime, {})[name] = statistics.stdev(known)
            elif len(known) == len(values) == 1 and column == "added" and name in rows:
                found.setdefault(regime, {})[name] = math.sqrt(known[0] * (1 - known[0]) / rows[name])
        own = [value for name, value in found.get(regime, {}).items() if name in rows]
        if counts == {1} and "mean" in names and len(own) == len(names) - 1 > 0:
            found[regime]["mean"] = math.sqrt(sum(value**2 for value in own)) / len(own)
    number = max(counts, default=0)
    return (
        found,
        f"± standard deviation over {number} seeds" if number > 1 else "± standard error over test rows",
    )
