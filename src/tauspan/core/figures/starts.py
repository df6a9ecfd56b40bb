"""Pictures of starts: what is predicted or measured of each, over one scale, over a grid of two, or one by one."""

import math
from collections.abc import Sequence
from typing import Any

from tauspan.core.figures.style import CHOICE, MAP, OWN, PLAIN, SMALL, Series, numbers, one_legend, plain

_CHOSEN = "chosen by the forecast"


def starts(figure: Any, panels: Sequence[Any], members: Sequence[Series]) -> None:
    """A curve over one scale, colours over a whole grid of two, dots otherwise; errors are on a logarithmic scale."""
    for axes, series in zip(panels, members, strict=False):
        grid = _grid(series)
        if grid is not None:
            _coloured(figure, axes, series, *grid)
        elif len(series["names"]) == 1:
            _curve(axes, series)
        else:
            _dots(axes, series)
    one_legend(figure, [axes for axes in panels if axes.has_data()])


def _best(series: Series) -> Any:
    """The chosen point."""
    return next(
        one for one in series["points"] if all(one[name] == value for name, value in series["chosen"].items())
    )


def _curve(axes: Any, series: Series) -> None:
    (name,), best = series["names"], _best(series)
    points = sorted(series["points"], key=lambda one: one[name])
    errors = [one["error"] or 0.0 for one in points]
    across, up = [one[name] for one in points], numbers(one["value"] for one in points)
    axes.errorbar(across, up, errors, fmt="o-", ms=4, lw=1.4, capsize=2, color=OWN)
    axes.plot(best[name], best["value"], "*", ms=12, color=CHOICE, label=_CHOSEN)
    axes.set_yscale("log")
    if min(across) > 0 and max(across) > 20 * min(across):
        axes.set_xscale("log")
    plain(axes, series["title"], name, series["measure"])


def _grid(series: Series) -> tuple[list[float], list[float]] | None:
    """The values of both scales, where all of their combinations are there."""
    if len(series["names"]) != 2:
        return None
    first, second = (sorted({one[name] for one in series["points"]}) for name in series["names"])
    whole = len(first) > 1 and len(second) > 1 and len(series["points"]) == len(first) * len(second)
    return (first, second) if whole else None


def _coloured(figure: Any, axes: Any, series: Series, first: list[float], second: list[float]) -> None:
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Rectangle

    (across, up), best = series["names"], _best(series)
    found = {(one[across], one[up]): one["value"] for one in series["points"]}
    values = [numbers(found[(a, b)] for a in first) for b in second]
    known = [value for line in values for value in line if value > 0 and math.isfinite(value)]
    scale = LogNorm(min(known), max(known)) if known and min(known) < max(known) else None
    image = axes.imshow(values, cmap=MAP, norm=scale, origin="lower", aspect="auto")
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            if math.isfinite(value):
                dark = scale is not None and value > 0 and float(scale(value)) > 0.6
                colour = "white" if dark else "black"
                axes.text(column, row, _short(value), ha="center", va="center", fontsize=SMALL, color=colour)
    axes.set_xticks(range(len(first)), [f"{value:g}" for value in first])
    axes.set_yticks(range(len(second)), [f"{value:g}" for value in second])
    place = (first.index(best[across]), second.index(best[up]))
    corner = (place[0] - 0.5, place[1] - 0.5)
    axes.add_patch(Rectangle(corner, 1, 1, fill=False, ec=CHOICE, lw=2.4, joinstyle="miter"))
    axes.plot([], [], "s", ms=8, mfc="none", mec=CHOICE, mew=1.8, label=_CHOSEN)  # for the legend
    plain(axes, series["title"], across, up)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.04)
    bar.set_label(series["measure"], fontsize=PLAIN)
    bar.ax.tick_params(which="both", labelsize=SMALL, length=2)
    bar.outline.set_visible(False)


def _short(value: float) -> str:
    """Two digits, in as few letters as possible."""
    return f"{value:.2g}" if 0.01 <= value < 1000 else f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")


def _dots(axes: Any, series: Series) -> None:
    points, best = [one for one in series["points"] if one["value"] is not None], _best(series)
    labels = [", ".join(f"{one[name]:g}" for name in series["names"]) for one in points]
    places, values = range(len(points)), [one["value"] for one in points]
    axes.errorbar(
        values, places, xerr=[one["error"] or 0.0 for one in points], fmt="o", ms=4, capsize=2, color=OWN
    )
    axes.plot(best["value"], points.index(best), "*", ms=12, color=CHOICE, label=_CHOSEN)
    axes.set_xscale("log")
    axes.set_yticks(places, labels)
    plain(axes, series["title"], series["measure"], ", ".join(series["names"]))
