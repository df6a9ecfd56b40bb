"""A picture of ways to make vectors: what each vector does alone, and what their sum does."""

import math
from collections.abc import Sequence
from typing import Any

from tauspan.core.figures.style import (
    FAINT,
    OWN,
    PLAIN,
    SMALL,
    Series,
    numbers,
    one_legend,
    plain,
    regime_colour,
)

_LINES = ("--", ":", "-.")


def ways(figure: Any, panels: Sequence[Any], members: Sequence[Series]) -> None:
    """A line for each way, from single vectors to their sum; single seeds are faint, references are upright lines."""
    for axes, series in zip(panels, members, strict=False):
        names = list(series["rows"])
        for place, (name, row) in enumerate(series["rows"].items()):
            colour = regime_colour(name.partition("-")[0], place=5)
            alone, added = _mean(row["single"]), _mean(row["sum"])
            axes.plot([alone, added], [place, place], color=colour, lw=1.4)
            axes.plot(alone, place, "o", ms=6, mfc="white", mec=colour)
            axes.plot(added, place, "o", ms=6, color=colour)
            axes.plot(numbers(row["sum"]), [place] * len(row["sum"]), "|", ms=9, color=colour, alpha=FAINT)
        axes.plot([], [], "o", ms=6, mfc="white", mec=OWN, label="single vectors")  # for the legend
        axes.plot([], [], "o", ms=6, color=OWN, label="their sum at 1")
        for style, (name, value) in zip(_LINES, series["references"].items(), strict=False):
            axes.axvline(value, color=OWN, lw=1, ls=style, label=name)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.grid(axis="x", lw=0.4, alpha=FAINT)
        plain(axes, series["title"], series["measure"], "way")
        axes.tick_params(axis="y", length=0, labelsize=PLAIN if len(names) < 10 else SMALL)
    one_legend(figure, panels, columns=5)


def _mean(values: Sequence[float | None]) -> float:
    found = [value for value in values if value is not None]
    return sum(found) / len(found) if found else math.nan
