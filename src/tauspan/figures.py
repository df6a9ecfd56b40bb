"""Pictures of a report: bars of accuracy per regime, accuracy against alpha."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tauspan import store
from tauspan.models.sources import require_extra
from tauspan.report import Report

_COLOURS = {"standard": "#9a6324", "posthoc": "#7f7f7f", "linear": "#1f5fa8"}


def draw(report: Report, folder: Path) -> list[Path]:
    """Write the report's figures as PNG and return their paths.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require_extra("matplotlib", "plot", "drawing figures")
    from matplotlib.figure import Figure

    written = []
    means = report.result.get("addition", {})
    if means:
        figure = Figure(figsize=(8, 3.4), layout="constrained", dpi=150)
        for axes, column, title in zip(
            figure.subplots(1, 2),
            ("added", "added norm."),
            ("absolute accuracy", "normalised accuracy"),
            strict=True,
        ):
            _bars(axes, means, column, title)
        figure.suptitle(
            f"One model for all tasks: the sum of their vectors ({report.result['seeds']})", fontsize=10
        )
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside lower center", ncols=len(labels), fontsize=7, frameon=False
        )
        written.append(_save(figure, folder / "addition.png"))
    groups: dict[str, list[dict[str, Any]]] = {}
    for series in report.series:
        groups.setdefault(str(series.get("group", series["kind"])), []).append(series)
    for group, members in groups.items():
        figure = Figure(figsize=(3.6 * len(members), 3.2), layout="constrained", dpi=150)
        panels = figure.subplots(1, len(members), sharey=True, squeeze=False)[0]
        for axes, series in zip(panels, members, strict=True):
            _curves(axes, series)
        panels[0].set_ylabel("validation accuracy", fontsize=8)
        panels[-1].legend(fontsize=6, frameon=False)
        written.append(_save(figure, folder / f"{group}.png"))
    return written


def _bars(axes: Any, means: dict[str, Any], column: str, title: str) -> None:
    """Grouped bars: tasks along the axis, one colour a regime; the single-task accuracy as a line over each."""
    tasks: Sequence[str] = list(next(iter(means.values())))
    width = 0.8 / len(means)
    for index, (regime, rows) in enumerate(means.items()):
        places = [place + (index - (len(means) - 1) / 2) * width for place in range(len(tasks))]
        axes.bar(places, [rows[t][column] for t in tasks], width * 0.92, color=_COLOURS[regime], label=regime)
        if column == "added":
            axes.hlines([rows[t]["single"] for t in tasks], [p - width / 2 for p in places],
                        [p + width / 2 for p in places], color="black", lw=0.8,
                        label="single task" if index == 0 else None)  # fmt: skip
    if column == "added":
        zero = next(iter(means.values()))
        axes.plot(
            range(len(tasks)),
            [zero[t]["zero shot"] for t in tasks],
            "o",
            ms=3,
            color="black",
            label="zero-shot",
        )
    axes.set_title(title, fontsize=9)
    axes.set_xticks(range(len(tasks)), [task.replace("_", "\n") for task in tasks], fontsize=6)
    axes.tick_params(axis="y", labelsize=7)
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)


def _curves(axes: Any, series: dict[str, Any]) -> None:
    """Accuracy against alpha, one line a task, the chosen alpha marked."""
    points = series["points"]
    for name in points[0]:
        if name not in ("alpha", "mean normalised"):
            axes.plot([p["alpha"] for p in points], [p[name] for p in points], lw=1.2, label=name)
    axes.axvline(series["best"], color="black", lw=0.7, ls=":")
    axes.set_title(f"{series['title']}\nchosen alpha {series['best']:g}", fontsize=8)
    axes.set_xlabel("alpha", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def _save(figure: Any, path: Path) -> Path:
    with store.atomic(path) as temporary:
        figure.savefig(temporary, format="png")
    return path
