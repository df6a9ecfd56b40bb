"""Pictures of trainings: a net beside its lazy path, over the steps."""

from collections.abc import Sequence
from typing import Any

from tauspan.core.figures.style import (
    CHOICE,
    CONTROL,
    HELD_OUT,
    OWN,
    REGIMES,
    Series,
    numbers,
    one_legend,
    plain,
)

# the net is trained as the standard regime is, the tangent model at its weights is post hoc, its own path is linear
_COLOURS = {"net": REGIMES["standard"], "tangent": REGIMES["posthoc"], "predicted": REGIMES["linear"]}
_WORDS = {
    "net": "net",
    "tangent": "tangent model, the net's weights",
    "predicted": "tangent model, its own descent",
}
_LINES = {"train": "-", "test": "--"}
_KERNEL = {"alignment": {"color": OWN}, "relative change": {"color": CONTROL, "ls": "-."}}


def trajectory_grid(members: Sequence[Series]) -> tuple[int, int]:
    """A row of three panels for each training, two where no kernel was looked at."""
    return len(members), 3 if any(one["kernel"] for one in members) else 2


def trajectories(figure: Any, panels: Sequence[Any], members: Sequence[Series]) -> None:
    """Losses, the distance between the net and its lazy paths, and the kernel; where the net leaves is shaded."""
    columns = trajectory_grid(members)[1]
    for place, series in enumerate(members):
        _losses(panels[place * columns], series)
        _errors(panels[place * columns + 1], series)
        if series["kernel"]:
            _kernel(panels[place * columns + 2], series)
        for axes in panels[place * columns : (place + 1) * columns]:
            if not axes.has_data():
                continue
            axes.set_xscale("symlog", linthresh=series["steps"][1])
            axes.set_xlim(0, series["steps"][-1])
            if series["between"]:
                axes.axvspan(
                    *series["between"], color=CHOICE, alpha=0.15, lw=0, label="leaves its linearisation"
                )
    one_legend(figure, panels, 3)


def _losses(axes: Any, series: Series) -> None:
    for name, values in series["losses"].items():
        path, on = name.split(", ")
        axes.plot(series["steps"], numbers(values), lw=1.5, color=_COLOURS[path], ls=_LINES[on],
                  label=f"{_WORDS[path]}, {on}")  # fmt: skip
    axes.set_yscale("log")
    plain(axes, series["title"], "step", "loss")


def _errors(axes: Any, series: Series) -> None:
    for name, values in series["errors"].items():
        path, on = name.split(", ")
        shown = [(step, error) for step, error in zip(series["steps"], values, strict=True) if error]
        if shown:
            axes.plot(
                *zip(*shown, strict=True), lw=1.5, marker=".", ms=3, color=_COLOURS[path], ls=_LINES[on]
            )
    axes.set_yscale("log")
    share = f"{100 * series['tolerance']:g} %"
    axes.axhline(series["tolerance"], color=HELD_OUT, lw=0.8, ls=":", label=share)
    plain(axes, "", "step", r"$|f - f_{lin}|$ over $|f - f_0|$")


def _kernel(axes: Any, series: Series) -> None:
    for name, values in series["kernel"].items():
        words = "kernel's alignment with the targets" if name == "alignment" else "kernel's relative change"
        axes.plot(series["steps"], numbers(values), lw=1.5, label=words, **_KERNEL[name])
    plain(axes, "", "step", "tangent kernel")
