"""Pictures of accuracies: bars for each task and regime, curves over alpha, and fronts."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from tauspan.core.figures.style import (
    CHOICE,
    CONTROL,
    FAINT,
    HELD_OUT,
    OWN,
    Series,
    broken,
    first_column,
    line_styles,
    numbers,
    one_legend,
    plain,
    regime_colour,
)

_CRITERION = "mean normalised"
_ROLES = {"target": {"color": OWN, "marker": "o"}, "control": {"color": CONTROL, "marker": "s"}}

# -- bars --------------------------------------------------------------------------------------------------------


def bars(figure: Any, panels: Sequence[Any], members: Sequence[Series]) -> None:
    """Grouped bars: tasks along the axis, a colour for each regime, stems where a spread is known."""
    for axes, series in zip(panels, members, strict=False):
        _bars(axes, series)
    one_legend(
        figure,
        panels[: len(members)],
        7 if len(members[0]["means"]) < 3 else 4,
        first=list(members[0]["means"]),
    )


def _bars(axes: Any, series: Series) -> None:
    """One panel; of absolute accuracies also what single tasks, no vector and joint training reach."""
    means, column, spread = series["means"], series["column"], series.get("spread") or {}
    tasks: Sequence[str] = list(next(iter(means.values())))
    width = 0.8 / len(means)
    for index, (regime, rows) in enumerate(means.items()):
        places = [place + (index - (len(means) - 1) / 2) * width for place in range(len(tasks))]
        heights = numbers(rows[t][column] for t in tasks)
        axes.bar(places, heights, width * 0.92, color=regime_colour(regime, index), label=regime)
        stems = numbers(spread.get(regime, {}).get(t) for t in tasks)
        if any(map(math.isfinite, stems)):
            axes.errorbar(places, heights, yerr=stems, fmt="none", ecolor=OWN, elinewidth=1, capsize=2.5,
                          label=series["spread_words"] if index == 0 else None)  # fmt: skip
        if column == "added":
            axes.hlines(numbers(rows[t]["single"] for t in tasks), [p - width * 0.46 for p in places],
                        [p + width * 0.46 for p in places], color=OWN, lw=1.2, ls=(0, (2, 1)),
                        label="single task" if index == 0 else None)  # fmt: skip
    if column == "added":
        zero = next(iter(means.values()))
        heights = numbers(zero[t]["zero shot"] for t in tasks)
        axes.plot(range(len(tasks)), heights, "o", ms=4.5, mec="white", mew=0.6, color=OWN, label="zero-shot")
    if series["joint"]:
        across = range(len(series["joint"]))
        axes.plot(
            across, numbers(series["joint"]), "x", ms=5.5, mew=1.5, color=CONTROL, label="joint training"
        )
    if "mean" in tasks and len(tasks) > 1:
        axes.axvline(tasks.index("mean") - 0.5, color=HELD_OUT, lw=0.7, ls=":")
    axes.set_xticks(range(len(tasks)), list(map(broken, tasks)))
    axes.set_xlim(-0.6, len(tasks) - 0.4)
    axes.set_ylim(bottom=0)
    plain(axes, across="task", upward=series["title"])


# -- curves over alpha -------------------------------------------------------------------------------------------


def alpha_grid(members: Sequence[Series]) -> tuple[int, int]:
    """Rows and columns of panels: a row for the criterion above one for accuracies, where there is a criterion."""
    rows, columns = math.ceil(len(members) / 3), min(3, len(members))
    return rows * (2 if _has_criterion(members) else 1), columns


def alpha_common(members: Sequence[Series]) -> Mapping[str, Any]:
    """One style for each task or method in all pictures of a report."""
    names = [name for one in members for name in _lines(one)]
    return {"styles": {**line_styles(name for name in names if name not in _ROLES), **_ROLES}}


def curves(figure: Any, panels: Sequence[Any], members: Sequence[Series]) -> None:
    """The criterion over alpha above the accuracies of each task: every seed faint, means strong, choices marked."""
    columns = min(3, len(members))
    both = _has_criterion(members)
    for place, series in enumerate(members):
        row, column = divmod(place, columns)
        top = panels[row * columns * (2 if both else 1) + column]
        if both:
            _criterion(top, series)
        below = panels[(2 * row + 1) * columns + column] if both else top
        _accuracies(below, series)
        if not both:
            plain(top, _titled(series))
    one_legend(figure, panels)


def _criterion(axes: Any, series: Series) -> None:
    """Mean normalised accuracy of every seed and of their mean, with each seed's choice."""
    runs = _runs(series)
    for place, run in enumerate(runs):
        points = run["points"]
        across, up = [p["alpha"] for p in points], numbers(p.get(_CRITERION) for p in points)
        if len(runs) > 1:
            axes.plot(across, up, lw=1, color=OWN, alpha=FAINT, label="one seed")
        at = dict(zip(across, up, strict=True))
        best = run["best"]
        axes.plot([best], [at.get(best, math.nan)], "*", ms=11, mec="white", mew=0.6, color=CHOICE, zorder=4,
                  label="chosen alpha")  # fmt: skip
        axes.axvline(best, color=CHOICE, lw=0.8, ls=":", alpha=1 if place == 0 else 0.6)
    across, up = _mean_line(runs, _CRITERION)
    axes.plot(across, up, lw=2, color=OWN, label="criterion" + (", mean of seeds" if len(runs) > 1 else ""))
    upward = "criterion:\nmean normalised accuracy" if first_column(axes) else ""
    plain(axes, _titled(series), "", upward)


def _accuracies(axes: Any, series: Series) -> None:
    """A line for each task or method: the mean over seeds, and every seed faint."""
    runs, styles = _runs(series), series["styles"]
    for name in _lines(series):
        style = styles[name]
        for run in runs if len(runs) > 1 else ():
            up = numbers(p.get(name) for p in run["points"])
            axes.plot([p["alpha"] for p in run["points"]], up, lw=0.8, color=style["color"], alpha=FAINT)
        across, means = _mean_line(runs, name)
        axes.plot(across, means, lw=1.6, ms=4, label=name, **style)
        best = (series.get("bests") or {}).get(name)
        if best is not None:
            height = dict(zip(across, means, strict=True)).get(best, math.nan)
            axes.plot([best], [height], "*", ms=11, mec="white", mew=0.6, color=style["color"], zorder=4)
    if series.get("bests"):
        axes.plot([], [], "*", ms=11, color=HELD_OUT, label="chosen alpha")
    for run in runs:
        if run["best"] is not None:
            axes.axvline(run["best"], color=CHOICE, lw=0.8, ls=":", label="chosen alpha")
    if series.get("floor") is not None:
        axes.axhline(series["floor"], color=CONTROL, lw=1, ls="--", label="floor of the control")
    upward = series.get("upward", "validation accuracy")
    plain(axes, "", "alpha", upward if first_column(axes) else "")


def _has_criterion(members: Sequence[Series]) -> bool:
    return all(_CRITERION in one["points"][0] for one in members)


def _lines(series: Series) -> list[str]:
    """The names of a series' lines, those that only some points have included."""
    found = dict.fromkeys(name for point in series["points"] for name in point)
    return [name for name in found if name not in ("alpha", _CRITERION)]


def _runs(series: Series) -> list[Mapping[str, Any]]:
    """What each seed found; a series without seeds is one run."""
    alone = {"best": series.get("best"), "points": series["points"]}
    return list(series.get("seeds") or [alone])


def _mean_line(runs: Sequence[Mapping[str, Any]], name: str) -> tuple[list[float], list[float]]:
    """The mean over seeds at each alpha that all of them have."""
    tables = [{p["alpha"]: p.get(name) for p in run["points"]} for run in runs]
    across = sorted(set.intersection(*(set(table) for table in tables)))
    values = [[table[alpha] for table in tables] for alpha in across]
    return across, [math.nan if None in one else statistics.fmean(one) for one in values]


def _titled(series: Series) -> str:
    """The title with what was chosen."""
    chosen = [run["best"] for run in _runs(series) if run["best"] is not None]
    words = f"\nchosen alpha {', '.join(f'{one:g}' for one in chosen)}" if chosen else ""
    return f"{series['title']}{words}"


# -- fronts ------------------------------------------------------------------------------------------------------


def front(axes: Any, series: Series) -> None:
    """Target against control accuracy: the front, the shared grid, the floor and the choice, on validation and test."""
    colour = regime_colour(series["title"])
    lines: tuple[tuple[Sequence[Mapping[str, float]], dict[str, Any], str], ...] = (
        (series["grid"], {"marker": "o", "ms": 4, "ls": "", "color": HELD_OUT}, "one shared alpha"),
        (series["points"], {"marker": ".", "lw": 1.6, "color": colour}, "the front"),
        ([series["best"]], {"marker": "*", "ms": 12, "ls": "", "color": CHOICE, "mec": "white"}, "chosen"),
    )
    for points, style, label in lines:
        axes.plot([p["control"] for p in points], [p["target"] for p in points], label=label, **style)
    axes.axvline(series["floor"], color=CONTROL, lw=1, ls="--", label="floor of the control")
    for one in series.get("tested", ()):
        around = {}
        for name, ends in (("xerr", one["control_interval"]), ("yerr", one["target_interval"])):
            value = one["control" if name == "xerr" else "target"]
            around[name] = None if ends is None else [[max(0, value - ends[0])], [max(0, ends[1] - value)]]
        axes.errorbar(one["control"], one["target"], fmt="D", ms=4, color=CHOICE, mfc="white", elinewidth=1,
                      capsize=2.5, label="chosen, on test, 95 % interval", **around)  # fmt: skip
    plain(axes, series["title"], "control accuracy (validation)", "target accuracy (lower forgets more)")
