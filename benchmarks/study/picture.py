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
from tauspan.experiments.figures import REGIMES
from tauspan.models.extras import require_extra

_XI = r"disentanglement error $\xi$"
_PANELS: tuple[
    tuple[str, str, Read, Read], ...
] = (  # title, its measure, what is drawn, what the pre-trained model has
    ("single task", "mean accuracy", SINGLE, ZERO_SHOT),
    ("added, alpha chosen", "mean accuracy", ADDED, ZERO_SHOT),
    ("added, alpha = 1", "mean accuracy", PLAIN, ZERO_SHOT),
    ("added, alpha = 1/T", "mean accuracy", MEAN, ZERO_SHOT),
    ("xi at equal alpha", _XI, EQUAL, lambda _: None),
    ("xi at matched drift", _XI, MATCHED, lambda _: None),
    ("negation", "target accuracy", FORGOTTEN, BEFORE),
)


def draw(found: Sequence[Found], file: Path) -> None:
    """Write the picture as PNG: a panel for each question, a line for each model and number of rows.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require_extra("matplotlib", "plot", "drawing figures")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.3, 8.2), layout="constrained")
    panels = list(figure.subplots(3, 3).flat)
    lines = dict.fromkeys((str(one.variant), one.variant.regime, one.cell.rows) for one in found)
    counts = sorted({rows for _, _, rows in lines})
    several = len(counts) > 1
    for axes, (title, measure, read, start) in zip(panels, _PANELS, strict=False):
        for variant, regime, rows in lines:
            members = [one for one in found if (str(one.variant), one.cell.rows) == (variant, rows)]
            label = f"{variant}, {rows} rows" if several else variant
            at_encoder = variant.endswith("encoder")
            style = {
                "color": REGIMES[regime],
                "ls": "--" if at_encoder else "-",
                "marker": "s" if at_encoder else "o",
                "alpha": (1 + counts.index(rows)) / len(counts),  # the more rows, the stronger the line
            }
            _line(axes, members, read, label=label, **style)
        before = next((value for one in found if (value := start(one)) is not None), None)
        if before is not None:
            axes.axhline(before, color="black", lw=0.9, ls=":", label="pre-trained")
        axes.set_title(title, fontsize=9)
        axes.set_xscale("log")
        steps = sorted({one.cell.steps for one in found})
        axes.set_xticks(steps, [str(one) for one in steps])
        axes.minorticks_off()
        axes.set_xlabel("steps", fontsize=9)
        axes.set_ylabel(
            measure if measure != "target accuracy" else "target accuracy (lower forgets)", fontsize=9
        )
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    _share(panels[:4], from_zero=False)
    _share(panels[4:6], from_zero=True)
    _share(panels[6:7], from_zero=True)
    for axes in panels[7:]:
        axes.axis("off")
    handles, labels = panels[0].get_legend_handles_labels()
    seeds = [len({one.cell.seed for one in found if one.cell.steps == step}) for step in steps]
    counted = ", ".join(f"{count} at {step}" for step, count in zip(steps, seeds, strict=True))
    legend = panels[7].legend(
        handles, labels, fontsize=8, frameon=False, loc="upper left", alignment="left", title_fontsize=8,
        title=f"seeds, at most: {counted} steps;\nstems: ± standard deviation over seeds",
    )  # fmt: skip
    legend.set_in_layout(False)  # it reaches into the empty panel beside it
    with store.atomic(file) as temporary:
        figure.savefig(temporary, format="png", dpi=200)


def _line(axes: Any, members: Sequence[Found], read: Read, **style: Any) -> None:
    """Means over seeds against steps, with stems of the standard deviation where there are several."""
    points: dict[int, list[float]] = {}
    for one in members:
        value = read(one)
        if value is not None:
            points.setdefault(one.cell.steps, []).append(value)
    places = sorted(points)
    if not places:
        return
    means = [statistics.fmean(points[place]) for place in places]
    stems = [statistics.stdev(points[place]) if len(points[place]) > 1 else 0.0 for place in places]
    axes.errorbar(places, means, yerr=stems, ms=4, lw=1.5, elinewidth=1, capsize=2, **style)


def _share(panels: Sequence[Any], from_zero: bool) -> None:
    """One scale for panels that are to be compared, so that none of them magnifies a small difference."""
    limits = [axes.get_ylim() for axes in panels]
    low, high = min(one[0] for one in limits), max(one[1] for one in limits)
    for axes in panels:
        axes.set_ylim(0.0 if from_zero else low, high)
