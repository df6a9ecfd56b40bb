"""Published numbers beside ours, each with how certain it is; they never replace a measurement."""

import dataclasses
import functools
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Literal

from tauspan.core.report import Cell, Table
from tauspan.core.schema import Document
from tauspan.experiments.reproduce.experiment import Measure

Certainty = Literal["code", "pub", "derived", "recall"]
MEANING = (
    "certainty: `pub` read in a publication or its repository, `code` read in code, `derived` computed from such, "
    "`recall` remembered from the paper and not confirmed"
)


@dataclasses.dataclass(frozen=True)
class Source:
    """One publication's numbers in percent: by model, regime and quantity (or task)."""

    source: str
    certainty: Certainty
    measure: Measure
    values: Mapping[str, Mapping[str, Mapping[str, float]]]
    paper: bool = False


@dataclasses.dataclass(frozen=True)
class Published:
    """The content of `published.yaml`."""

    sources: tuple[Source, ...]


@dataclasses.dataclass(frozen=True)
class Ours:
    """A number of a run: what it measures, its regime, its name in `published.yaml`, and the cell of the report."""

    measure: Measure
    regime: str
    quantity: str
    value: Cell


@functools.cache
def sources() -> tuple[Source, ...]:
    """All sources, the paper's own first."""
    found = Document.read(Path(__file__).parent / "published.yaml").build(Published).sources
    return tuple(sorted(found, key=lambda source: not source.paper))


def beside(
    ours: Sequence[Ours], model: str | None, only: Container[str] | None = None, note: str = ""
) -> Table:
    """A table of our numbers, with the published ones for the same model and quantity; empty cells without any.

    Args:
        ours: what a run found; fractions, or mean and spread as text.
        model: a name of `PRESETS`; None has no published numbers.
        only: the quantities that have a published counterpart; None: all.
        note: what keeps the two apart, for example fewer rows.

    Example:
        >>> table = beside([Ours("addition", "linear", "added", 0.7)], "ViT-B-32")
        >>> table.rows[0]["published"], table.rows[0]["certainty"]
        (0.765, 'recall')
    """
    rows: list[dict[str, Cell]] = []
    for one in ours:
        mine = {"measure": one.measure, "regime": one.regime, "quantity": one.quantity, "ours": one.value}
        others = [
            (source, source.values.get(model or "", {}).get(one.regime, {}).get(one.quantity))
            for source in sources()
            if source.measure == one.measure and (only is None or one.quantity in only)
        ]
        found = [(source, value) for source, value in others if value is not None]
        rows += [
            {
                **mine,
                "published": round(value / 100, 4),
                "certainty": source.certainty,
                "source": source.source,
            }
            for source, value in found
        ] or [{**mine, "published": None, "certainty": None, "source": None}]
    return Table("Ours beside published numbers", rows, "; ".join(filter(None, (MEANING, note))))
