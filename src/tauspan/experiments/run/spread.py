"""Numbers of several seeds as one: their mean with its sample standard deviation."""

import statistics
from collections.abc import Mapping, Sequence

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
