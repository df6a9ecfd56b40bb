"""Tables and picture of the study, from each method's numbers by seed."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.unlearning.measures import interval
from benchmarks.unlearning.plan import Plan

from tauspan.core.report import Cell, Table
from tauspan.experiments.figures import Picture, Series
from tauspan.experiments.run.spread import spread

Found = Mapping[str, Mapping[int, Mapping[str, Any]]]  # method, seed, numbers
_KNOWN = {"probability": "probability", "truth": "truth", "recall": "ROUGE-L"}


def tables_of(found: Found, plan: Plan) -> list[Table]:
    """A table for forgotten people, for their traces, for kept people, and for English."""
    seeds = sorted({seed for by in found.values() for seed in by})
    drawn = f"mean and 95 % interval, bootstrap over people and seeds ({', '.join(map(str, seeds))})"
    if len(seeds) == 1:
        drawn = (
            f"mean and 95 % interval, bootstrap over people; one seed ({seeds[0]}): its spread is not known"
        )
    known = (
        "probability of the answer, normalised by length; truth: max(0, 1 - truth ratio); ROUGE-L: recall of "
        "the greedy answer"
    )
    return [
        Table(
            f"Forgotten people ({plan.forgotten} of {plan.people})",
            [_row(name, by, "forgotten", _KNOWN) for name, by in found.items()],
            f"as close to gold as possible; {known}; {drawn}",
        ),
        Table(
            "Traces of forgotten people",
            [
                {**_row(name, by, "forgotten", {"membership": "membership", "distance": "distance to gold"}),
                 **spread([{"quality": one["quality"]} for one in by.values()], ["quality"])}
                for name, by in found.items()
            ],
            "membership: area under the ROC curve of loss against people never seen, 0.5 leaves no trace; distance: "
            "total variation of next tokens to gold, its floor is the row of gold in another order; quality: p of "
            "TOFU's test "
            f"that truth ratios are those of gold, mean ± standard deviation over seeds; the others: {drawn}",
        ),
        Table(
            "Kept people",
            [_row(name, by, "kept", _KNOWN) for name, by in found.items()],
            f"as high as learned; {drawn}",
        ),
        Table(
            "English, and what was chosen",
            [
                {"method": name, "perplexity": told([one["english"] for one in by.values()], math.exp, 1),
                 **_row(name, by, "kept", {"distance": "kept people to gold"}), "chosen": chosen(by)}
                for name, by in found.items()
            ],
            f"perplexity of {plan.english} held-out texts; chosen on rephrased questions: most perplexity of forgotten "
            f"people with that of kept ones at most 1 / {plan.floor:g} of what it was; {drawn}",
        ),
    ]  # fmt: skip


def _row(name: str, by: Mapping[int, Any], group: str, columns: Mapping[str, str]) -> dict[str, Cell]:
    cells: dict[str, Cell] = {"method": name}
    for measure, title in columns.items():
        cells[title] = told([one[group][measure] for one in by.values()])
    return cells


def told(groups: Sequence[Sequence[float]], scale: Callable[[float], float] = float, digits: int = 2) -> str:
    """The mean of numbers by seed with its interval, in words."""
    mean, low, high = (scale(one) for one in interval(groups))
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def chosen(by: Mapping[int, Any]) -> str:
    """What was chosen with the seeds."""
    return ", ".join(dict.fromkeys(one["chosen"] for one in by.values() if one["chosen"]))


# -- the picture ---------------------------------------------------------------------------------------------


def trade(found: Found) -> list[Series]:
    """What is still known of forgotten people against what is known of kept ones, a point for each method."""
    points = []
    for name, by in found.items():
        gone, kept = (
            interval([one[group]["probability"] for one in by.values()]) for group in ("forgotten", "kept")
        )
        points.append({"method": name, "forgotten": list(gone), "kept": list(kept)})
    return [{"kind": "trade", "title": "probability of answers", "group": "trade", "points": points}]


def _drawn(axes: Any, series: Series) -> None:
    marks = "ospXDv^P*"
    for place, one in enumerate(series["points"]):
        (x, *across), (y, *upward) = one["kept"], one["forgotten"]
        axes.errorbar(
            x, y, xerr=_stems(x, across), yerr=_stems(y, upward), fmt=marks[place % len(marks)], ms=6, elinewidth=0.8,
            label=one["method"],
        )  # fmt: skip
    axes.set_xlabel("kept people")
    axes.set_ylabel("forgotten people")
    axes.set_title(series["title"], fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))


def _stems(mean: float, ends: Sequence[float]) -> list[list[float]]:
    return [[max(mean - ends[0], 0.0)], [max(ends[1] - mean, 0.0)]]


def _panel(figure: Any, panels: Sequence[Any], members: Sequence[Series]) -> None:
    for axes, series in zip(panels, members, strict=False):
        _drawn(axes, series)


PICTURES = {"trade": Picture(_panel, height=3.6, width=8.3)}
