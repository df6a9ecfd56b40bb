"""The picture of a study: what each model reaches against the number of steps."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tauspan import store
from tauspan.models.sources import require_extra
from tauspan.study.tables import ADDED, EQUAL, FORGOTTEN, MATCHED, MEAN, PLAIN, SINGLE, Found, Read

_COLOURS = {"standard": "#9a6324", "posthoc": "#7f7f7f", "linear": "#1f5fa8"}
_PANELS: tuple[tuple[str, Read], ...] = (
    ("single task", SINGLE),
    ("added, alpha chosen on validation", ADDED),
    ("added, alpha = 1", PLAIN),
    ("added, alpha = 1/T", MEAN),
    ("negation: target (lower is better)", FORGOTTEN),
    ("xi at equal alpha (lower is better)", EQUAL),
    ("xi at matched drift (lower is better)", MATCHED),
)


def draw(found: Sequence[Found], file: Path) -> None:
    """Write the picture as PNG: a panel a question, a line a model and number of rows.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require_extra("matplotlib", "plot", "drawing figures")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5.6), layout="constrained", dpi=150)
    panels = list(figure.subplots(2, 4).flat)
    lines = dict.fromkeys((str(one.variant), one.variant.regime, one.cell.rows) for one in found)
    several = len({rows for _, _, rows in lines}) > 1
    for axes, (title, read) in zip(panels, _PANELS, strict=False):
        for variant, regime, rows in lines:
            members = [one for one in found if (str(one.variant), one.cell.rows) == (variant, rows)]
            label = f"{variant}, {rows} rows" if several else variant
            style = {"color": _COLOURS[regime], "ls": "--" if variant.endswith("encoder") else "-"}
            _line(axes, members, read, label=label, **style)
        if read in (SINGLE, ADDED, PLAIN, MEAN):
            zero = next(
                (value for one in found if (value := one.read("addition", "zero shot")) is not None), None
            )
            if zero is not None:
                axes.axhline(zero, color="black", lw=0.7, ls=":", label="zero-shot")
        axes.set_title(title, fontsize=9)
        axes.set_xscale("log")
        steps = sorted({one.cell.steps for one in found})
        axes.set_xticks(steps, [str(one) for one in steps])
        axes.minorticks_off()
        axes.set_xlabel("steps", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[1:4]:
        axes.sharey(panels[0])
    panels[6].sharey(panels[5])
    panels[7].axis("off")
    handles, labels = panels[0].get_legend_handles_labels()
    seeds = [len({one.cell.seed for one in found if one.cell.steps == step}) for step in steps]
    counted = ", ".join(f"{count} at {step}" for step, count in zip(steps, seeds, strict=True))
    panels[7].legend(handles, labels, fontsize=8, frameon=False, loc="upper left", title=f"seeds: {counted} steps",
                     title_fontsize=8, alignment="left")  # fmt: skip
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
    axes.plot(
        places, [statistics.fmean(points[place]) for place in places], marker="o", ms=3.5, lw=1.4, **style
    )
    for place in places:
        if len(points[place]) > 1:
            axes.plot([place] * len(points[place]), points[place], "_", ms=8, color=style["color"])
