"""Pictures of a report: accuracy per regime and against alpha, disentanglement maps, fronts, and what kernels say."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeAlias

from tauspan.core.report import Report

_COLOURS = {"standard": "#9a6324", "posthoc": "#7f7f7f", "linear": "#1f5fa8"}
Series: TypeAlias = Mapping[str, Any]


Drawing: TypeAlias = Callable[
    [Any, Sequence[Any], Sequence[Series]], None
]  # figure, its panels, a series for each


@dataclass(frozen=True)
class Picture:
    """How series of one kind are drawn: those of a group are the panels of one picture, side by side.

    Args:
        draw: draws on a figure of matplotlib and its panels.
        size: of the figure in inches.
        share: whether the panels have one vertical axis.
        layout: matplotlib's.
    """

    draw: Drawing
    size: Callable[[Sequence[Series]], tuple[float, float]] = lambda members: (3.6 * len(members), 3.2)
    share: bool = True
    layout: Literal["constrained", "compressed"] = "constrained"


def each(one: Callable[[Any, Series], None], upward: str = "", legend: bool = False) -> Drawing:
    """Draws each series on its own panel; `upward` is what the vertical axis measures."""

    def drawing(figure: Any, panels: Sequence[Any], members: Sequence[Series]) -> None:
        for axes, series in zip(panels, members, strict=True):
            one(axes, series)
        panels[0].set_ylabel(upward, fontsize=8)
        if legend:
            panels[-1].legend(fontsize=6, frameon=False)

    return drawing


def draw(
    report: Report, folder: Path, more: Sequence[Series] = (), kinds: Mapping[str, Picture] | None = None
) -> list[Path]:
    """Write the report's figures as PNG and return their paths.

    Args:
        report: its series are drawn, one picture for each `group`.
        folder: where the pictures go.
        more: series that are drawn before those of the report.
        kinds: how to draw more kinds of series.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    from tauspan.models.extras import require_extra

    require_extra("matplotlib", "plot", "drawing figures")
    from matplotlib.figure import Figure

    known = {**PICTURES, **(kinds or {})}
    groups: dict[str, list[Series]] = {}
    for series in [*more, *report.series]:
        groups.setdefault(str(series.get("group", series["kind"])), []).append(series)
    written = []
    for group, members in groups.items():
        picture = known[members[0]["kind"]]
        figure = Figure(figsize=picture.size(members), layout=picture.layout, dpi=150)
        panels = figure.subplots(1, len(members), sharey=picture.share, squeeze=False)[0]
        picture.draw(figure, panels, members)
        written.append(_save(figure, folder / f"{group}.png"))
    return written


def _bars(axes: Any, series: Series) -> None:
    """Grouped bars: tasks along the axis, one colour for each regime; of absolute accuracies also what others reach."""
    means, column = series["means"], series["column"]
    tasks: Sequence[str] = list(next(iter(means.values())))
    width = 0.8 / len(means)
    for index, (regime, rows) in enumerate(means.items()):
        places = [place + (index - (len(means) - 1) / 2) * width for place in range(len(tasks))]
        heights = _numbers(rows[t][column] for t in tasks)
        axes.bar(places, heights, width * 0.92, color=_COLOURS.get(regime, f"C{index}"), label=regime)
        if column == "added":
            axes.hlines(_numbers(rows[t]["single"] for t in tasks), [p - width / 2 for p in places],
                        [p + width / 2 for p in places], color="black", lw=0.8,
                        label="single task" if index == 0 else None)  # fmt: skip
    if column == "added":
        zero = next(iter(means.values()))
        heights = _numbers(zero[t]["zero shot"] for t in tasks)
        axes.plot(range(len(tasks)), heights, "o", ms=3, color="black", label="zero-shot")
    axes.set_title(series["title"], fontsize=9)
    axes.set_xticks(range(len(tasks)), [task.replace("_", "\n") for task in tasks], fontsize=6)
    axes.tick_params(axis="y", labelsize=7)
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    if series["joint"]:
        across = range(len(series["joint"]))
        axes.plot(
            across, _numbers(series["joint"]), "x", ms=4, mew=1, color="#c8361d", label="joint training"
        )


def _numbers(values: Iterable[float | None]) -> list[float]:
    """Numbers to draw: a missing one is NaN, which leaves its place empty."""
    return [math.nan if value is None else value for value in values]


def _pair_of_bars(figure: Any, panels: Sequence[Any], members: Sequence[Series]) -> None:
    """Bars with a caption, and one legend for both panels."""
    each(_bars)(figure, panels, members)
    figure.suptitle(members[0]["caption"], fontsize=10)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=7, frameon=False)


def _wide(members: Sequence[Series]) -> tuple[float, float]:
    """The size of the bars: as wide as their tasks need."""
    return max(8.0, 1.4 * len(next(iter(members[0]["means"].values())))), 3.4


def _curves(axes: Any, series: Series) -> None:
    """Accuracy against alpha, one line for each task, the chosen alpha marked."""
    points = series["points"]
    for name in points[0]:
        if name not in ("alpha", "mean normalised"):
            axes.plot([p["alpha"] for p in points], _numbers(p[name] for p in points), lw=1.2, label=name)
    axes.axvline(series["best"], color="black", lw=0.7, ls=":")
    axes.set_title(f"{series['title']}\nchosen alpha {series['best']:g}", fontsize=8)
    axes.set_xlabel("alpha", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def _front(axes: Any, series: Series) -> None:
    """Target against control accuracy on validation: the front, the shared grid, the floor and the choice."""
    for points, style, label in (
        (series["grid"], {"marker": "o", "ms": 3, "ls": "", "color": "#7f7f7f"}, "one shared alpha"),
        (series["points"], {"marker": ".", "lw": 1.2, "color": "#1f5fa8"}, "the front"),
        ([series["best"]], {"marker": "*", "ms": 11, "ls": "", "color": "#c8361d"}, "chosen"),
    ):
        axes.plot([p["control"] for p in points], [p["target"] for p in points], label=label, **style)
    axes.axvline(series["floor"], color="black", lw=0.7, ls=":", label="floor")
    axes.set_title(series["title"], fontsize=8)
    axes.set_xlabel("control accuracy", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.legend(fontsize=6, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def _maps(figure: Any, panels: Sequence[Any], members: Sequence[Series]) -> None:
    """The disentanglement error of one pair, a panel for each regime on one colour scale, the editing box drawn."""
    from matplotlib.patches import Rectangle

    known = (value for series in members for line in series["xi"] for value in line if value is not None)
    top = max(known, default=1.0) or 1.0
    first, second = members[0]["tasks"]
    for axes, series in zip(panels, members, strict=True):
        across, up = ([*_edges(axis)] for axis in series["grid"])
        values = [_numbers(line) for line in series["xi"]]
        lines = list(zip(*values, strict=True))  # pcolormesh wants one line per point of the upward axis
        mesh = axes.pcolormesh(across, up, lines, cmap="YlGnBu", vmin=0, vmax=top, rasterized=True)
        low, high = series["box"]
        side = high - low
        for colour, width in (("white", 3.2), ("#c8361d", 1.6)):
            axes.add_patch(
                Rectangle((low, low), side, side, fill=False, ec=colour, lw=width, joinstyle="miter")
            )
        axes.plot(0, 0, "+", color="black", ms=6, mew=1)
        mean = "not all of the box is reached"
        if series["mean"] is not None:
            mean = f"mean in the box {series['mean']:.3f} ± {series['mean_stderr']:.3f}"
        axes.set_title(f"{series['title']}\n{mean}", fontsize=9)
        axes.set_xlabel(_axis(series, 1, first), fontsize=8)
        axes.set_aspect("equal")
        axes.tick_params(labelsize=7, length=2)
        axes.spines[:].set_visible(False)
    panels[0].set_ylabel(_axis(members[0], 2, second), fontsize=8)
    bar = figure.colorbar(mesh, ax=list(panels), shrink=0.82, aspect=22, pad=0.02)
    bar.set_label(r"disentanglement error $\xi(\alpha_1, \alpha_2)$", fontsize=8)
    bar.ax.tick_params(labelsize=7, length=2)
    bar.outline.set_visible(False)


def _axis(series: Series, place: int, task: str) -> str:
    """What an axis of a map measures: a coefficient, or the drift that it makes."""
    return f"drift over its unit, {task}" if series.get("axes") == "drift" else rf"$\alpha_{place}$  {task}"


def _spectrum(axes: Any, series: Series) -> None:
    """Eigenvalues over their number, both logarithmic; and the share of the labels up to each of them."""
    places = range(1, len(series["values"]) + 1)
    shown = [(place, value) for place, value in zip(places, series["values"], strict=True) if value > 0]
    axes.loglog(*zip(*shown, strict=True), ".", ms=3, color=_COLOURS["linear"], label="eigenvalue")
    power = axes.twinx()
    power.plot(places, series["shares"], lw=1.2, color=_COLOURS["standard"], label="share of the labels")
    power.set_ylim(0, 1.02)
    power.tick_params(labelsize=6, colors=_COLOURS["standard"])
    axes.set_xlabel("eigenvalue's number; line: share of the labels", fontsize=7)
    _plain(axes, series["title"])


def _energy(axes: Any, series: Series) -> None:
    """Local energy of each row: histograms of the task's rows against control rows, in shares."""
    kinds = {"own rows": series["support"], "own, held out": series["held_out"], "control": series["control"]}
    top = max(max(values) for values in kinds.values()) or 1.0
    edges = [top * step / 24 for step in range(25)]
    for (label, values), colour in zip(kinds.items(), _COLOURS.values(), strict=True):
        axes.hist(
            values, edges, weights=[1 / len(values)] * len(values), alpha=0.6, color=colour, label=label
        )
    axes.set_xlabel("local energy", fontsize=8)
    axes.legend(fontsize=6, frameon=False)
    _plain(axes, f"{series['title']}\nratio {series['ratio']:.3f}")


def _heat(axes: Any, series: Series) -> None:
    """A task x task table as colours, with its numbers."""
    names, lines = series["tasks"], series["values"]
    values = [[math.nan if value is None else value for value in line] for line in lines]
    top = max((value for line in lines for value in line if value is not None), default=1.0) or 1.0
    axes.imshow(values, cmap="YlGnBu", vmin=0, vmax=top)
    for row, line in enumerate(lines):
        for column, value in enumerate(line):
            if value is not None:
                colour = "white" if value > 0.6 * top else "black"
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=6, color=colour)
    for ticks in (axes.set_xticks, axes.set_yticks):
        ticks(range(len(names)), [name.replace("_", "\n") for name in names], fontsize=5)
    axes.set_title(series["title"], fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _linearity(axes: Any, series: Series) -> None:
    """The linearisation's relative error along a vector, both logarithmic: a line of slope 1 near 0."""
    pairs = zip(series["scales"], series["relative"], strict=True)
    shown = [(s, error) for s, error in pairs if error]
    if shown:
        axes.loglog(*zip(*shown, strict=True), "o-", ms=3, lw=1.2, color=_COLOURS["linear"])
    axes.set_xlabel("s", fontsize=8)
    _plain(axes, series["title"])


def _plain(axes: Any, title: str) -> None:
    axes.set_title(title, fontsize=8)
    axes.tick_params(which="both", labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def _edges(points: Sequence[float]) -> list[float]:
    """Where the cells around grid points begin and end: half-way between neighbours."""
    middles = [(a + b) / 2 for a, b in pairwise(points)]
    ends = (middles[0], middles[-1]) if middles else (points[0] + 0.5, points[0] - 0.5)
    return [2 * points[0] - ends[0], *middles, 2 * points[-1] - ends[1]]


def _save(figure: Any, path: Path) -> Path:
    from tauspan import store

    with store.atomic(path) as temporary:
        figure.savefig(temporary, format="png")
    return path


PICTURES: Mapping[str, Picture] = {
    "bars": Picture(_pair_of_bars, _wide, share=False),
    "alpha": Picture(each(_curves, "validation accuracy", legend=True)),
    "front": Picture(each(_front, "target accuracy (lower forgets more)")),
    "xi": Picture(_maps, lambda members: (3.0 * len(members) + 1.2, 3.7), layout="compressed"),
    "spectrum": Picture(each(_spectrum, "eigenvalue")),
    "energy": Picture(each(_energy, "share of rows")),
    "heat": Picture(each(_heat), share=False, layout="compressed"),
    "linearity": Picture(each(_linearity, r"$|f - f_{lin}|$ over $|s J \tau|$")),
}
