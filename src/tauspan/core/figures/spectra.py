"""Pictures of what kernels say: spectra, local energy, and how far the tangent model holds."""

from collections.abc import Mapping, Sequence
from typing import Any

from tauspan.core.figures.style import (
    CONTROL,
    HELD_OUT,
    OWN,
    REGIMES,
    SMALL,
    Series,
    first_column,
    last_column,
    line_styles,
    one_legend,
    plain,
)

_SHARE = "share of the labels"


def spectra(figure: Any, panels: Sequence[Any], members: Sequence[Series]) -> None:
    """Eigenvalues over their number, both logarithmic; on the right the share of the labels up to each of them."""
    rights = []
    for axes, series in zip(panels, members, strict=False):
        places = range(1, len(series["values"]) + 1)
        shown = [(place, value) for place, value in zip(places, series["values"], strict=True) if value > 0]
        axes.loglog(*zip(*shown, strict=True), ".", ms=5, color=OWN, label="eigenvalue")
        right = axes.twinx()
        right.plot(places, series["shares"], lw=1.6, color=CONTROL, label=_SHARE)
        right.set_ylim(0, 1.02)
        upward = "eigenvalue" if first_column(axes) else ""
        plain(axes, series["title"], "number of the eigenvalue", upward)
        plain(right, "", "", f"{_SHARE}, summed" if last_column(axes) or series is members[-1] else "")
        right.tick_params(labelsize=SMALL, colors=CONTROL)
        right.yaxis.label.set_color(CONTROL)
        right.spines["right"].set_visible(True)
        rights.append(right)
    one_legend(figure, [*panels, *rights])


def energies(axes: Any, series: Series) -> None:
    """Local energy of each row: histograms of the task's rows against control rows, in shares."""
    kinds = {
        "own rows": (series["support"], {"histtype": "stepfilled", "color": OWN, "alpha": 0.55}),
        "own, held out": (series["held_out"], {"histtype": "step", "color": HELD_OUT, "lw": 1.6, "ls": "--"}),
        "rows of other tasks": (series["control"], {"histtype": "step", "color": CONTROL, "lw": 1.6}),
    }
    top = max(max(values) for values, _ in kinds.values()) or 1.0
    edges = [top * step / 24 for step in range(25)]
    for label, (values, style) in kinds.items():
        axes.hist(values, edges, weights=[1 / len(values)] * len(values), label=label, **style)
    upward = "share of rows" if first_column(axes) else ""
    plain(axes, f"{series['title']}\nratio {series['ratio']:.3f}", "local energy of a row", upward)


def titled_common(members: Sequence[Series]) -> Mapping[str, Any]:
    """One style for each title."""
    return {"styles": line_styles(one["title"] for one in members)}


def linearity(figure: Any, panels: Sequence[Any], members: Sequence[Series]) -> None:
    """The linearisation's relative error along each vector, both logarithmic: slope 1 near 0."""
    axes = panels[0]
    _log_lines(axes, members, "scales", "relative")
    if axes.has_data():
        axes.axhline(0.1, color=HELD_OUT, lw=0.8, ls=":", label="10 %")
    else:
        axes.axhline(0.0, color=REGIMES["linear"], lw=1.6, label="no error above rounding")
    plain(
        axes,
        "The model against its linearisation",
        "s, multiple of the vector",
        r"$|f - f_{lin}|$ over $|s J \tau|$",
    )
    one_legend(figure, panels)


def widths(figure: Any, panels: Sequence[Any], members: Sequence[Series]) -> None:
    """How far each layer's features moved at each width, both logarithmic."""
    axes = panels[0]
    _log_lines(axes, members, "widths", "values")
    plain(axes, "Movement of features", "width n", f"RMS of $h_{{{members[0]['step']}}} - h_0$")
    one_legend(figure, panels)


def _log_lines(axes: Any, members: Sequence[Series], across: str, up: str) -> None:
    """A line for each series on logarithmic axes; values of 0 or None are left out."""
    for series in members:
        pairs = zip(series[across], series[up], strict=True)
        shown = [(x, y) for x, y in pairs if y]
        if shown:
            style = series["styles"][series["title"]]
            axes.loglog(*zip(*shown, strict=True), lw=1.6, ms=4, label=series["title"], **style)
