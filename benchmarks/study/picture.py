"""The picture of a study: what each model reaches against the number of steps."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.study.tables import (  # fmt: skip
    ADDED,
    BEFORE,
    EQUAL,
    FORGOTTEN,
    MATCHED,
    MEAN,
    PLAIN,
    SINGLE,
    ZERO_SHOT,
    Found,
    Read,
)

from tauspan import store
from tauspan.models.extras import require_extra

_COLOURS = {"standard": "#9a6324", "posthoc": "#7f7f7f", "linear": "#1f5fa8"}
_PANELS: tuple[tuple[str, Read, Read], ...] = (  # title, what is drawn, what the pre-trained model has
    ("single task", SINGLE, ZERO_SHOT),
    ("added, alpha chosen on validation", ADDED, ZERO_SHOT),
    ("added, alpha = 1", PLAIN, ZERO_SHOT),
    ("added, alpha = 1/T", MEAN, ZERO_SHOT),
    ("negation: target (lower is better)", FORGOTTEN, BEFORE),
    ("xi at equal alpha (lower is better)", EQUAL, lambda _: None),
    ("xi at matched drift (lower is better)", MATCHED, lambda _: None),
)


def draw(found: Sequence[Found], file: Path) -> None:
    """Write the picture as PNG: a panel for each question, a line for each model and number of rows.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require_extra("matplotlib", "plot", "drawing figures")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5.6), layout="constrained", dpi=150)
    panels = list(figure.subplots(2, 4).flat)
    lines = dict.fromkeys((str(one.variant), one.variant.regime, one.cell.rows) for one in found)
    counts = sorted({rows for _, _, rows in lines})
    several = len(counts) > 1
    for axes, (title, read, start) in zip(panels, _PANELS, strict=False):
        for variant, regime, rows in lines:
            members = [one for one in found if (str(one.variant), one.cell.rows) == (variant, rows)]
            label = f"{variant}, {rows} rows" if several else variant
            at_encoder = variant.endswith("encoder")
            style = {
                "color": _COLOURS[regime],
                "ls": "--" if at_encoder else "-",
                "marker": "s" if at_encoder else "o",
                "alpha": (1 + counts.index(rows)) / len(counts),  # the more rows, the stronger the line
            }
            _line(axes, members, read, label=label, **style)
        before = next((value for one in found if (value := start(one)) is not None), None)
        if before is not None:
            axes.axhline(before, color="black", lw=0.7, ls=":", label="pre-trained")
        axes.set_title(title, fontsize=9)
        axes.set_xscale("log")
        steps = sorted({one.cell.steps for one in found})
        axes.set_xticks(steps, [str(one) for one in steps])
        axes.minorticks_off()
        axes.set_xlabel("steps", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    _share(panels[:4], from_zero=False)
    _share(panels[4:5], from_zero=True)
    _share(panels[5:7], from_zero=True)
    panels[7].axis("off")
    handles, labels = panels[0].get_legend_handles_labels()
    seeds = [len({one.cell.seed for one in found if one.cell.steps == step}) for step in steps]
    counted = ", ".join(f"{count} at {step}" for step, count in zip(steps, seeds, strict=True))
    panels[7].legend(
        handles, labels, fontsize=8, frameon=False, loc="upper left", title=f"seeds, at most: {counted} steps",
        title_fontsize=8, alignment="left",
    )  # fmt: skip
    with store.atomic(file) as temporary:
        figure.savefig(temporary, format="png")


def _line(axes: Any, members: Sequence[Found], read: Read, **style: Any) -> None:
    """Means over seeds against steps, the seeds themselves as small points where there are several."""
    points: dict[int, list[float]] = {}
    for one in members:
        value = read(one)
        if value is not None:
            points.setdefault(one.cell.steps, []).append(value)
    places = sorted(points)
    if not places:
        return
    axes.plot(places, [statistics.fmean(points[place]) for place in places], ms=3.5, lw=1.4, **style)
    for place in places:
        if len(points[place]) > 1:
            faint = {key: style[key] for key in ("color", "alpha")}
            axes.plot([place] * len(points[place]), points[place], "_", ms=8, **faint)


def _share(panels: Sequence[Any], from_zero: bool) -> None:
    """One scale for panels that are to be compared, so that none of them magnifies a small difference."""
    limits = [axes.get_ylim() for axes in panels]
    low, high = min(one[0] for one in limits), max(one[1] for one in limits)
    for axes in panels:
        axes.set_ylim(0.0 if from_zero else low, high)
