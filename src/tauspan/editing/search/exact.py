"""`Interval`: an accuracy with its exact confidence interval."""

from dataclasses import dataclass

from scipy.special import betaincinv

from tauspan.core.errors import UsageError

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A share of rows with the Clopper-Pearson interval of the probability behind it.

    Args:
        value: the share k / n.
        low: the probability p at which P(X >= k) = (1 - level) / 2 for X ~ Binomial(n, p); 0 for k = 0.
        high: the probability at which P(X <= k) = (1 - level) / 2; 1 for k = n.
    """

    value: float
    low: float
    high: float

    def record(self) -> dict[str, float]:
        """The interval as the page holds it."""
        return {"value": self.value, "low": self.low, "high": self.high}


def interval(correct: int, rows: int, level: float = LEVEL) -> Interval:
    """The Clopper-Pearson interval, which covers the true probability with at least this level, whatever it is.

    Its ends are quantiles of Beta(k, n - k + 1) and Beta(k + 1, n - k) (Clopper and Pearson, Biometrika 26, 1934).

    Args:
        correct: k, the rows that are right.
        rows: n.
        level: of confidence.

    Raises:
        UsageError: no rows, or more right ones than rows.

    Example:
        >>> found = interval(8, 10)
        >>> found.value, round(found.low, 4), round(found.high, 4)
        (0.8, 0.4439, 0.9748)
    """
    if not 0 <= correct <= rows or rows < 1:
        raise UsageError(
            f"{correct} right of {rows} rows: an interval needs rows, and at most all are right."
        )
    tail = (1 - level) / 2
    low = 0.0 if correct == 0 else float(betaincinv(correct, rows - correct + 1, tail))
    high = 1.0 if correct == rows else float(betaincinv(correct + 1, rows - correct, 1 - tail))
    return Interval(correct / rows, low, high)
