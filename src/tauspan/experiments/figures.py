"""Pictures of a report as files, and how each kind of series is drawn.

`Report.plot` and `Result.plot` give the figures themselves. `draw` writes them as PNG, SVG or PDF. A kind of series that
is not in `PICTURES` is drawn by a `Picture` of yours:

    >>> from tauspan.core.report import Report
    >>> kinds = {"lengths": Picture(each(lambda axes, one: axes.plot(one["values"]), "norm"))}
    >>> report = Report("mine", [], series=[{"kind": "lengths", "values": [1.0, 2.0]}])
    >>> report.plot(kinds)
    Figures(lengths)
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from tauspan.core.errors import UsageError, nearest
from tauspan.core.figures import PICTURES, REGIMES, Drawing, Figures, Format, Picture, Series, each, rendered
from tauspan.core.report import Report

FORMATS: tuple[Format, ...] = ("png", "svg", "pdf")

__all__ = [
    "FORMATS", "PICTURES", "REGIMES", "Drawing", "Figures", "Format", "Picture", "Series", "draw", "each",
]  # fmt: skip


def draw(
    report: Report, folder: str | Path, kinds: Mapping[str, Picture] | None = None,
    formats: Sequence[Format] = FORMATS,
) -> list[Path]:  # fmt: skip
    """Write the report's figures and return their paths, in the order of the series.

    Files are the same to the byte whenever they are drawn by one version of matplotlib. Letters of SVG and PDF are text.

    Args:
        report: its series are drawn, one picture for each `group`.
        folder: where the pictures go: `GROUP.png`, `GROUP.svg`, `GROUP.pdf`.
        kinds: how to draw more kinds of series.
        formats: which of `"png"`, `"svg"` and `"pdf"`.

    Raises:
        MissingExtraError: matplotlib is not installed.
        UsageError: a series of a kind that nothing draws, or an unknown format.

    Cost: about a third of a second for each picture and format.

    Example:
        >>> import tempfile
        >>> curve = [{"alpha": 0.0, "a": 0.5}, {"alpha": 1.0, "a": 0.75}]
        >>> series = [{"kind": "alpha", "title": "addition", "best": 1.0, "points": curve}]
        >>> made = draw(Report("demo", [], series=series), tempfile.mkdtemp(), formats=("png", "svg"))
        >>> [path.name for path in made]
        ['alpha.png', 'alpha.svg']
    """
    for form in formats:
        if form not in get_args(Format):
            raise UsageError(f"formats={list(formats)}: {form!r} is unknown. {nearest(str(form), FORMATS)}")
    figures = report.plot(kinds)
    return [
        _save(figure, Path(folder) / f"{name}.{form}") for name, figure in figures.items() for form in formats
    ]


def _save(figure: Any, path: Path) -> Path:
    from tauspan import store  # which needs torch, and a list of recipes does not

    form: Any = path.suffix[1:]
    with store.atomic(path) as temporary:
        temporary.write_bytes(rendered(figure, form))
    return path
