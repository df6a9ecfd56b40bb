"""Numbers of several seeds as one: their mean with its sample standard deviation."""

import statistics
from collections.abc import Mapping, Sequence

from tauspan.core.report import Cell


def spread(rows: Sequence[Mapping[str, Cell]], columns: Sequence[str]) -> dict[str, Cell]:
    """Each column's value, or its mean and sample standard deviation over the seeds; nothing where nothing is known."""
    cells: dict[str, Cell] = {}
    for column in columns:
        values = [float(value) for row in rows if (value := row[column]) is not None]
        if len(values) < len(rows):
            cells[column] = None
        else:
            mean = statistics.fmean(values)
            cells[column] = mean if len(values) == 1 else f"{mean:.3f} ± {statistics.stdev(values):.3f}"
    return cells


def means(rows: Sequence[Mapping[str, Cell]], columns: Sequence[str]) -> dict[str, float | None]:
    """Each column's mean over the seeds."""
    found: dict[str, float | None] = {}
    for column in columns:
        values = [float(value) for row in rows if (value := row[column]) is not None]
        found[column] = statistics.fmean(values) if len(values) == len(rows) else None
    return found


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
