"""Pictures of two axes and a colour: maps of the disentanglement error, and tables of task against task."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from tauspan.core.figures.style import (
    CHOICE,
    MAP,
    PLAIN,
    SMALL,
    Series,
    broken,
    first_column,
    numbers,
    plain,
)


def map_common(members: Sequence[Series]) -> Mapping[str, Any]:
    """The largest error of all maps of a report: the end of their one colour scale."""
    known = (value for series in members for line in series["xi"] for value in line if value is not None)
    return {"top": max(known, default=1.0) or 1.0}


def maps(figure: Any, panels: Sequence[Any], members: Sequence[Series]) -> None:
    """The disentanglement error of one pair, a panel for each regime, the editing box drawn."""
    first, second = members[0]["tasks"]
    for axes, series in zip(panels, members, strict=False):
        mesh = _map(axes, series)
        mean = "not all of the box is reached"
        if series["mean"] is not None:
            mean = f"mean in the box {series['mean']:.3f} ± {series['mean_stderr']:.3f}"
        upward = _axis(series, 2, second) if first_column(axes) else ""
        plain(axes, f"{series['title']}\n{mean}", _axis(series, 1, first), upward)
        axes.spines[:].set_visible(False)
    used = [axes for axes in panels if axes.has_data()]
    bar = figure.colorbar(mesh, ax=used, shrink=0.85, aspect=28, pad=0.02)
    _named(bar, r"disentanglement error $\xi(\alpha_1, \alpha_2)$")
    if any(value is None for series in members for line in series["xi"] for value in line):
        figure.supxlabel("white: a drift that a vector never reaches", fontsize=SMALL)


def _map(axes: Any, series: Series) -> Any:
    from matplotlib.patches import Rectangle

    across, up = ([*_edges(axis)] for axis in series["grid"])
    values = [numbers(line) for line in series["xi"]]
    lines = list(zip(*values, strict=True))  # pcolormesh wants one line per point of the upward axis
    mesh = axes.pcolormesh(across, up, lines, cmap=MAP, vmin=0, vmax=series["top"], rasterized=True)
    low, high = series["box"]
    for colour, width in (("white", 3.2), (CHOICE, 1.6)):
        axes.add_patch(
            Rectangle((low, low), high - low, high - low, fill=False, ec=colour, lw=width, joinstyle="miter")
        )
    axes.plot(0, 0, "+", color="black", ms=6, mew=1)
    axes.set_aspect("equal")
    return mesh


def _axis(series: Series, place: int, task: str) -> str:
    """What an axis of a map measures: a coefficient, or the drift that it makes."""
    return f"drift over its unit,\n{task}" if series.get("axes") == "drift" else rf"$\alpha_{place}$, {task}"


def _edges(points: Sequence[float]) -> list[float]:
    """Where the cells around grid points begin and end: half-way between neighbours."""
    middles = [(a + b) / 2 for a, b in pairwise(points)]
    ends = (middles[0], middles[-1]) if middles else (points[0] + 0.5, points[0] - 0.5)
    return [2 * points[0] - ends[0], *middles, 2 * points[-1] - ends[1]]


def tables(figure: Any, panels: Sequence[Any], members: Sequence[Series]) -> None:
    """Tables of task against task as colours with their numbers, each with its own named scale."""
    for axes, series in zip(panels, members, strict=False):
        names, lines = series["tasks"], series["values"]
        values = [[math.nan if value is None else value for value in line] for line in lines]
        top = max((value for line in lines for value in line if value is not None), default=1.0) or 1.0
        image = axes.imshow(values, cmap=MAP, vmin=0, vmax=top)
        for row, line in enumerate(lines):
            for column, value in enumerate(line):
                if value is not None:
                    colour = "white" if value > 0.6 * top else "black"
                    axes.text(
                        column, row, f"{value:.2f}", ha="center", va="center", fontsize=SMALL, color=colour
                    )
        axes.set_xticks(range(len(names)), list(map(broken, names)), rotation=45 if len(names) > 4 else 0)
        axes.set_yticks(range(len(names)), list(map(broken, names)))
        plain(axes, series["title"], series.get("across", "task"), series.get("upward", "task"))
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.04)
        _named(bar, series.get("measure", series["title"]))


def _named(bar: Any, what: str) -> None:
    bar.set_label(what, fontsize=PLAIN)
    bar.ax.tick_params(labelsize=SMALL, length=2)
    bar.outline.set_visible(False)
