"""`Picture`: how series of one kind are drawn; `plotted`: the figures of some series."""

import base64
import html
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from tauspan.core.figures.style import LARGE, NARROW, WIDTH, Series, first_column, one_legend

Format: TypeAlias = Literal["png", "svg", "pdf"]
Drawing: TypeAlias = Callable[
    [Any, Sequence[Any], Sequence[Series]], None
]  # figure, its panels, a series for each
_DOTS = 200  # a inch: twice what a page shows, for fine screens


def in_rows(members: Sequence[Series]) -> tuple[int, int]:
    """Rows and columns of panels for a panel each, at most three side by side."""
    return math.ceil(len(members) / 3), min(3, len(members))


@dataclass(frozen=True)
class Picture:
    """How series of one kind are drawn: those of a group are the panels of one picture.

    Args:
        draw: draws on a figure of matplotlib and its panels, row by row; panels that stay empty are removed.
        grid: rows and columns of panels, at most three columns.
        height: of a row in inches; None for square panels.
        width: in inches; None takes a page's column, or less for one panel.
        share: whether panels have one vertical axis, or those of a row.
        layout: matplotlib's.
        common: what is found from all series of the kind in a report and laid over each, such as one colour scale.
    """

    draw: Drawing
    grid: Callable[[Sequence[Series]], tuple[int, int]] = in_rows
    height: float | None = 2.9
    width: float | None = None
    share: bool | Literal["row"] = True
    layout: Literal["constrained", "compressed"] = "constrained"
    common: Callable[[Sequence[Series]], Mapping[str, Any]] = lambda members: {}

    def figure(self, members: Sequence[Series]) -> Any:
        """The series of one group as a figure of matplotlib."""
        from matplotlib.figure import Figure

        rows, columns = self.grid(members)
        width = self.width or (WIDTH if columns > 1 else NARROW)
        square = (width - 1.4) / columns + (0.45 if rows == 1 else 0.75)
        height = square if self.height is None else self.height
        figure = Figure(figsize=(width, height * rows + 0.6), layout=self.layout, dpi=100)
        panels = list(figure.subplots(rows, columns, sharey=self.share, squeeze=False).flat)
        self.draw(figure, panels, members)
        for axes in panels:
            if not axes.has_data():
                axes.remove()
        caption = next((str(one["caption"]) for one in members if one.get("caption")), "")
        if caption:
            figure.suptitle(caption, fontsize=LARGE)
        return figure


def each(one: Callable[[Any, Series], None], upward: str = "", legend: bool = False) -> Drawing:
    """Draws each series on its own panel.

    Args:
        one: draws a series on a panel.
        upward: what the vertical axis measures.
        legend: whether there is one legend, below all panels.
    """

    def drawing(figure: Any, panels: Sequence[Any], members: Sequence[Series]) -> None:
        for axes, series in zip(panels, members, strict=False):
            one(axes, series)
            if upward and first_column(axes):
                axes.set_ylabel(upward)
        if legend:
            one_legend(figure, panels)

    return drawing


class Figures(Mapping[str, Any]):
    """Figures of matplotlib by the name of their picture; a notebook shows them all."""

    def __init__(self, figures: Mapping[str, Any]) -> None:
        self._figures = dict(figures)

    def __getitem__(self, name: str) -> Any:
        return self._figures[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._figures)

    def __len__(self) -> int:
        return len(self._figures)

    def __repr__(self) -> str:
        return f"Figures({', '.join(self._figures) or 'none'})"

    def _repr_html_(self) -> str:
        """All figures as pictures inside the page."""
        return "\n".join(_inline(name, figure) for name, figure in self._figures.items())


def _inline(name: str, figure: Any) -> str:
    data = base64.b64encode(rendered(figure, "png")).decode("ascii")
    return f'<img alt="{html.escape(name)}" style="max-width: 100%" src="data:image/png;base64,{data}">'


def plotted(series: Sequence[Series], kinds: Mapping[str, Picture]) -> Figures:
    """The figures of some series, one for each `group`, whose first series says how it is drawn.

    Args:
        series: each has a `kind` and, where several make one picture, a `group`.
        kinds: how to draw each kind.
    """
    common = {
        kind: kinds[kind].common([one for one in series if one["kind"] == kind])
        for kind in dict.fromkeys(str(one["kind"]) for one in series)
    }
    groups: dict[str, list[Series]] = {}
    for one in series:
        whole = {**one, **common[one["kind"]]}
        groups.setdefault(str(one.get("group", one["kind"])), []).append(whole)
    return Figures({group: kinds[members[0]["kind"]].figure(members) for group, members in groups.items()})


def rendered(figure: Any, form: Format) -> bytes:
    """A figure as a file's bytes, the same whenever it is drawn: no time, and no random names inside.

    Its panels are laid out by the first call and stay where they are.
    """
    from matplotlib import rc_context

    if figure.get_layout_engine() is not None and figure.get_layout_engine().get() != {}:
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
    dates = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    found = io.BytesIO()
    with rc_context({"svg.hashsalt": "tauspan", "svg.fonttype": "none", "pdf.fonttype": 42}):
        figure.savefig(found, format=form, dpi=_DOTS, metadata=dates[form])
    return found.getvalue()
