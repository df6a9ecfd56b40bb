"""How large a page may be, and what makes it smaller."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tauspan.core.errors import UsageError
from tauspan.core.report import in_words
from tauspan.editing.desk.held import Contributed, Held

LARGE = 4_000_000  # bytes of numbers above which classes that cannot win are dropped
MOST = 16_000_000  # bytes of a page
_SAFE = 0.97  # of the limit, since texts do not compress evenly
_BASE64 = 4 / 3


@dataclass(frozen=True)
class Parts:
    """What makes up the size of a page.

    Args:
        size: of the whole page, in bytes.
        held: of every task and split.
        texts: bytes of the examples.
        low: of every coefficient.
        high: of every coefficient.
        exact: whether numbers are float32.
    """

    size: int
    held: Sequence[Held]
    texts: int
    low: float
    high: float
    exact: bool

    def require_small(self, most: int = MOST) -> None:
        """Raise unless the page is small enough.

        Raises:
            UsageError: it names each option that makes it smaller, and the size that it would give.
        """
        if self.size <= most:
            return
        raise UsageError(
            f"the page would take {in_words(self.size)}, and a browser opens {in_words(most)} at once: "
            f"{'; '.join(self._repairs(most))}."
        )

    def _repairs(self, most: int) -> list[str]:
        longest = max(map(len, self.held))
        rows = self._rows(longest, most * _SAFE)
        found = [f"rows={rows} (--rows {rows}) would give about {in_words(self._with_rows(rows))}"]
        if (self.low, self.high) != (0.0, 1.0):
            size = self._with(lambda one: one.pruned(0.0, 1.0))
            found.append(f"range=(0.0, 1.0) (--range 0 1) {in_words(size)}")
        else:
            found.append("range= (--range) is at its least already")
        if self.exact:
            size = self._with(lambda one: replace(one, exact=False))
            found.append(f"exact=False (no --exact) {in_words(size)}")
        if self.texts:
            found.append(f"examples=False (--no-examples) {in_words(self.size - self.texts)}")
        return found

    def _rows(self, longest: int, most: float) -> int:
        """The largest number of rows that is small enough, at least 1."""
        low, high = 1, longest
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._with_rows(middle) <= most else (low, middle - 1)
        return low

    def _with_rows(self, rows: int) -> int:
        numbers = sum(one.nbytes for one in self.held)
        left = sum(one.nbytes * min(1.0, rows / len(one)) for one in self.held)
        shares = [min(1.0, rows / len(one)) for one in self.held]
        texts = self.texts * (1 - sum(shares) / len(shares))
        return int(self.size - _BASE64 * (numbers - left) - texts)

    def _with(self, change: Callable[[Contributed], Held]) -> int:
        """The size with other numbers."""
        changed = [change(one) if isinstance(one, Contributed) else one for one in self.held]
        return int(
            self.size
            + _BASE64 * sum(new.nbytes - old.nbytes for new, old in zip(changed, self.held, strict=True))
        )
