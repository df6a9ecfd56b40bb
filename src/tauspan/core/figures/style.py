"""What pictures share: one meaning for each colour, sizes that stay readable in a page, and plain axes."""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

Series: TypeAlias = Mapping[str, Any]

WIDTH = 8.3  # inches: a page's column of about 830 pixels at 100 a inch
NARROW = 5.0  # of a picture with one panel
SMALL, PLAIN, LARGE = 8.0, 9.0, 10.0  # points: numbers on axes; what axes measure and legends; titles

# Okabe and Ito's colours, which people with colour blindness tell apart; each regime has one, in every picture
REGIMES: Mapping[str, str] = {
    "standard": "#E69F00",
    "posthoc": "#009E73",
    "linear": "#0072B2",
    "attention": "#56B4E9",
}
# Tol's muted colours, for tasks and methods, in the order in which a report names them; their marks differ too
_TASKS = ("#332288", "#44AA99", "#CC6677", "#117733", "#88CCEE", "#AA4499", "#999933", "#DDCC77")
_MARKS = "osD^vP*X"
CHOICE = "#C8361D"  # what was chosen, and where edits are made
OWN, HELD_OUT, CONTROL = "#222222", "#8C8C8C", "#882255"  # rows of a task, its unseen rows, other tasks' rows
MAP = "YlGnBu"  # light is little; its lightness falls all the way
_LETTERS = 100  # of a title across a whole page
FAINT = 0.35  # the opacity of single seeds beside their mean


def regime_colour(label: str, place: int = 0) -> str:
    """The colour of the regime that ends a label, such as `pretrained: linear`; of another label one of the others.

    Args:
        label: names a regime, after a colon or comma if there is more.
        place: which of the other colours a label without a regime gets.
    """
    regime = label.replace(",", ":").rpartition(":")[2].strip()
    return REGIMES.get(regime, _TASKS[place % len(_TASKS)])


def line_styles(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """A colour and a mark for each name, in their order."""
    return {
        name: {"color": _TASKS[place % len(_TASKS)], "marker": _MARKS[place % len(_MARKS)]}
        for place, name in enumerate(dict.fromkeys(names))
    }


def numbers(values: Iterable[float | None]) -> list[float]:
    """Numbers to draw: a missing one is NaN, which leaves its place empty."""
    return [math.nan if value is None else value for value in values]


def broken(name: str) -> str:
    """A name on several lines, where it has underscores."""
    return name.replace("_", "\n")


def plain(axes: Any, title: str = "", across: str = "", upward: str = "") -> None:
    """Title, named axes and no frame; an empty text leaves what is there. A long title goes on a second line."""
    if title:
        room = _LETTERS // axes.get_subplotspec().get_gridspec().ncols
        lines = [textwrap.fill(line, room, break_long_words=False) for line in title.splitlines()]
        axes.set_title("\n".join(lines), fontsize=PLAIN)
    if across:
        axes.set_xlabel(across, fontsize=PLAIN)
    if upward:
        axes.set_ylabel(upward, fontsize=PLAIN)
    axes.tick_params(which="both", labelsize=SMALL)
    axes.spines[["top", "right"]].set_visible(False)


def first_column(axes: Any) -> bool:
    """Whether a panel stands at the left."""
    return bool(axes.get_subplotspec().is_first_col())


def last_column(axes: Any) -> bool:
    """Whether a panel stands at the right."""
    return bool(axes.get_subplotspec().is_last_col())


def one_legend(figure: Any, panels: Sequence[Any], columns: int = 4, first: Sequence[str] = ()) -> None:
    """One legend below all panels, each label once; those of `first` come first."""
    found: dict[str, Any] = dict.fromkeys(first)
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found[label] = found.get(label) or handle
    found = {label: handle for label, handle in found.items() if handle is not None}
    columns = columns if figure.get_figwidth() > NARROW else min(columns, 2)
    if found:
        figure.legend(
            list(found.values()), list(found), loc="outside lower center", ncols=min(columns, len(found)),
            fontsize=SMALL, frameon=False,
        )  # fmt: skip
