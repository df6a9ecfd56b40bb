"""`Result`: what a function measured or chose, as named fields; tables and figures are made from it."""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

from tauspan.core.errors import MissingExtraError
from tauspan.core.report import Cell, Report

if TYPE_CHECKING:
    import pandas
    from _typeshed import DataclassInstance

    from tauspan.core.figures import Figures


@dataclass(frozen=True, kw_only=True)
class Result(ABC):
    """The base class of results: frozen, with named fields. A number that is not known is None, never 0.

    Args:
        provenance: where the numbers come from: versions, fingerprints, seeds.
        warnings: warnings of the work, and what a lenient option allowed, one sentence each.
    """

    provenance: Mapping[str, Any] = field(default_factory=dict, repr=False)
    warnings: Sequence[str] = field(default=(), repr=False)

    @abstractmethod
    def report(self) -> Report:
        """The numbers as tables and series for people, files and figures."""

    def rows(self) -> Sequence[Mapping[str, Cell]]:
        """The rows of the main table."""
        return self.report().tables[0].rows

    def plot(self) -> "Figures":
        """The figures of `report()`, by name; in a notebook they are shown. See `Report.plot`."""
        return self.report().plot()

    def to_pandas(self) -> "pandas.DataFrame":
        """The main table as a data frame.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        try:
            pandas = importlib.import_module("pandas")
        except ImportError:
            raise MissingExtraError("a data frame needs pandas: pip install pandas.") from None
        return pandas.DataFrame([dict(row) for row in self.rows()])

    def __str__(self) -> str:
        return self.report().to_markdown()

    def _repr_markdown_(self) -> str:
        return self.report().to_markdown()


def mean(numbers: Sequence[float | None]) -> float | None:
    """The mean; None if a number is missing or there are none.

    Example:
        >>> mean([0.5, 1.0]), mean([0.5, None]), mean([])
        (0.75, None, None)
    """
    known = [number for number in numbers if number is not None]
    return sum(known) / len(known) if known and len(known) == len(numbers) else None


R = TypeVar("R", bound="DataclassInstance")


def mean_row(rows: Sequence[R]) -> R:
    """The row `mean` of several: numbers are averaged (`mean`), texts become `"mean"`, anything else None.

    Example:
        >>> @dataclass(frozen=True)
        ... class Row:
        ...     task: str
        ...     accuracy: float
        >>> mean_row([Row("a", 0.5), Row("b", 1.0)]).accuracy
        0.75
    """
    averaged: dict[str, Any] = {}
    for one in fields(rows[0]):
        values = [getattr(row, one.name) for row in rows]
        if all(isinstance(value, str) for value in values):
            averaged[one.name] = "mean"
        else:
            numbers = all(value is None or isinstance(value, int | float) for value in values)
            averaged[one.name] = mean(values) if numbers else None
    return replace(rows[0], **averaged)


def ratio(part: float | None, whole: float | None) -> float | None:
    """The ratio part / whole; None if one of them is missing or the whole is 0.

    Example:
        >>> ratio(0.5, 0.8), ratio(0.5, 0.0), ratio(None, 1.0)
        (0.625, None, None)
    """
    return None if part is None or not whole else part / whole
