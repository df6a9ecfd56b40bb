"""Which rows of an unlabelled pool to label: draws from the leading eigenfunctions of its kernel, weighted least squares.

Nouy and Michel, "Weighted least-squares approximation with determinantal point processes" (arXiv 2312.14057), for the
uniform measure over the rows of a pool.
"""

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from tauspan import store
from tauspan.core.arguments import checked
from tauspan.core.errors import UsageError, nearest
from tauspan.core.report import Cell, Report, Table, provenance
from tauspan.core.results import Result
from tauspan.kernel.approximate.lowrank import projection_draw
from tauspan.kernel.solvers.base import Kernel
from tauspan.kernel.solvers.eigenpairs import eigenpairs, require_rank
from tauspan.kernel.solvers.estimates import EPSILON

_TRIES = 100
Draw = Callable[[Tensor, int, torch.Generator], list[int]]


def _leverage(vectors: Tensor, count: int, generator: torch.Generator) -> list[int]:
    """Independent draws, row i with probability |V_i|^2 / m."""
    scores = vectors.square().sum(1)
    drawn: list[int] = torch.multinomial(scores, count, replacement=True, generator=generator).tolist()
    return drawn


def _uniform(vectors: Tensor, count: int, generator: torch.Generator) -> list[int]:
    """Different rows, all alike: the baseline."""
    drawn: list[int] = torch.randperm(len(vectors), generator=generator)[:count].tolist()
    return drawn


def _dpp(vectors: Tensor, count: int, generator: torch.Generator) -> list[int]:
    """One projection process, in an order without meaning."""
    rows = projection_draw(vectors, generator)
    order = torch.randperm(len(rows), generator=generator).tolist()
    return [rows[place] for place in order]


def _volume(vectors: Tensor, count: int, generator: torch.Generator) -> list[int]:
    """A projection process and, beside it, independent draws: density proportional to det G times that of the latter."""
    rows = _dpp(vectors, count, generator)
    return [*rows, *_leverage(vectors, count - len(rows), generator)] if count > len(rows) else rows


def _repeated(vectors: Tensor, count: int, generator: torch.Generator) -> list[int]:
    """Independent projection processes, of the last one as many rows as are still wanted, drawn from it at random."""
    found: list[int] = []
    while len(found) < count:
        found += _dpp(vectors, count, generator)
    return found[:count]


DRAWS: dict[str, Draw] = {
    "leverage": _leverage, "dpp": _dpp, "volume": _volume, "repeated-dpp": _repeated, "uniform": _uniform,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class Design(Result):
    """Which rows to label, what each counts in the fit, and how well they determine the leading eigenfunctions.

    With phi_j = sqrt(N) v_j, orthonormal over the pool, the weighted Gram matrix is G = (1/n) sum_k w_k phi(x_k)
    phi(x_k)^T; its expectation is the identity. What labels miss by e(x_k), be it noise or a part outside the span, moves
    the coefficients of weighted least squares by at most sqrt((1/n) sum_k w_k e(x_k)^2 / lambda_min(G)).

    Args:
        chosen: different rows of the pool, in rising order.
        weights: what each counts: w(x) = m / (N |V_x|^2) times how often it was drawn; 1 with `"uniform"`.
        method: how they were drawn.
        functions: m.
        draws: n; rows that were drawn twice are labelled once.
        pool: N.
        explained: the share of tr K that the m eigenvalues hold.
        gram: G, shape (m, m).
        tries: how many designs were drawn until one was good enough.
        seed: of the draws.

    Example:
        >>> from tauspan.kernel import DenseKernel
        >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
        >>> found = design(DenseKernel(x @ x.T), 2, "dpp")
        >>> 2 in found.chosen, found.chosen[0] in (0, 1), round(found.least, 3)
        (True, True, 1.0)
    """

    chosen: tuple[int, ...]
    weights: tuple[float, ...]
    method: str
    functions: int
    draws: int
    pool: int
    explained: float
    gram: Tensor = field(repr=False)
    tries: int = 1
    seed: int = 0

    def __repr__(self) -> str:
        return (
            f"Design({self.method}, {len(self.chosen)} of {self.pool} rows for {self.functions} functions, "
            f"least eigenvalue {self.least:.3g}, condition {self.condition:.3g})"
        )

    @cached_property
    def _spectrum(self) -> Tensor:
        values: Tensor = torch.linalg.eigvalsh(self.gram)
        return values

    @property
    def least(self) -> float:
        """lambda_min(G): 1 is as good as the whole pool, 0 leaves a function undetermined."""
        return max(float(self._spectrum[0]), 0.0)

    @property
    def condition(self) -> float:
        """lambda_max(G) / lambda_min(G); infinite where a function is undetermined."""
        least, most = self.least, float(self._spectrum[-1])
        return most / least if least > len(self.gram) * EPSILON * most else math.inf

    @property
    def verdict(self) -> str:
        """What the certificate says, in a sentence."""
        what = f"{len(self.chosen)} of {self.pool} rows"
        if math.isinf(self.condition):
            return (
                f"{what} leave some combination of the {self.functions} leading eigenfunctions undetermined: "
                "take more labels, or fewer functions."
            )
        return (
            f"{what} determine the {self.functions} leading eigenfunctions, which hold {self.explained:.0%} of the "
            f"kernel's trace: condition number {self.condition:.3g}, least eigenvalue {self.least:.3g} of 1."
        )

    def report(self) -> Report:
        """The verdict, the certificate, and the rows with their weights."""
        facts: dict[str, Cell] = {
            "method": self.method, "labels": len(self.chosen), "draws": self.draws, "functions": self.functions,
            "explained": self.explained, "least eigenvalue": self.least,
            "condition": None if math.isinf(self.condition) else self.condition, "tries": self.tries,
        }  # fmt: skip
        listed: list[dict[str, Cell]] = [
            {"row": row, "weight": weight} for row, weight in zip(self.chosen, self.weights, strict=True)
        ]
        note = "least eigenvalue and condition: of the weighted Gram matrix of the eigenfunctions; the whole pool has 1."
        tables = [Table("Certificate", [facts], note), Table("Rows to label", listed, "Rows count from 0.")]
        result = {**facts, "rows": list(self.chosen), "weights": list(self.weights)}
        return Report(
            "Which rows to label", tables, dict(self.provenance), result=result, verdict=self.verdict
        )

    def save(
        self, path: str | Path, *, told: Mapping[str, Sequence[str]] | None = None, overwrite: bool = False
    ) -> Path:
        """Write rows and weights: a table with the columns `row` and `weight` to .csv, the whole report to .json.

        Args:
            path: the file.
            told: further columns of the table by name, with a value for each row of the pool, such as its text.
            overwrite: replace what is there.

        Raises:
            UsageError: another suffix.
            StoreError: the file is there already, or cannot be written; nothing is left behind.
        """
        file = Path(path)
        require_suffix(file)
        if file.suffix == ".json":
            store.write_text(file, self.report().to_json(), overwrite=overwrite)
        else:
            told, text = told or {}, io.StringIO()
            table = csv.writer(text, lineterminator="\n")
            table.writerow(["row", "weight", *told])
            for row, weight in zip(self.chosen, self.weights, strict=True):
                table.writerow([row, repr(weight), *(values[row] for values in told.values())])
            store.write_text(file, text.getvalue(), overwrite=overwrite)
        return file


def require_suffix(file: Path) -> None:
    """Raise `UsageError` unless `Design.save` writes such a file."""
    if file.suffix not in (".csv", ".json"):
        raise UsageError(
            f"{file}: rows are written as .csv or .json. Name it {file.with_suffix('.csv').name}."
        )


@checked
def design(
    kernel: Kernel,
    labels: int,
    method: str = "volume",
    *,
    functions: int | None = None,
    least: float = 0.0,
    seed: int = 0,
) -> Design:
    """Choose rows to label so that weighted least squares finds the leading eigenfunctions' coefficients well.

    Let V (N, m) hold the leading eigenvectors, and l_i = |V_i|^2 the leverage scores. Each method draws a row with
    probability l_i / m, if it is looked at alone, so that with weights m / (N l_i) the Gram matrix has the identity as
    expectation:

    - `"leverage"`: independent draws; n of about m log m are needed (`enough`).
    - `"dpp"`: n = m rows from the projection determinantal process of V, which are never redundant.
    - `"volume"`: m rows of that process and n - m independent ones, whose joint density is proportional to det G; the
      fit is then unbiased for the projection onto the eigenfunctions.
    - `"repeated-dpp"`: independent projection processes.
    - `"uniform"`: n different rows, all alike, of weight 1: the baseline.

    Args:
        kernel: of the pool, one output for each row: `TangentKernel(..., outputs="trace")`, or `"sum"`.
        labels: n, the most rows to label; rows that are drawn twice are labelled once.
        method: see above; `DRAWS` lists them.
        functions: m; None takes half of the labels, and with `"dpp"` all.
        least: draw again until lambda_min(G) is at least this, as far as a hundred tries go. Above 0, the Gram matrix is
            only nearly unbiased.
        seed: of the draws.

    Raises:
        UsageError: no labels, more than rows, more functions than labels or than the kernel has; a kernel of several
            outputs; an unknown method; `least` outside [0, 1), or not reached.
        NonFiniteError: NaN in the kernel.

    Cost:
        That of `eigenpairs`, which is least where the matrix is there (`kernel.dense()`); then O(N m^2) for each try.
    """
    count = _functions(kernel, labels, method, functions)
    if not 0 <= least < 1:
        raise UsageError(f"least={least}: from 0 to below 1, the value of the whole pool.")
    pairs = eigenpairs(kernel, count, seed=seed)
    rank = int((pairs.values > kernel.samples * EPSILON * pairs.values[0].clamp(min=0)).sum())
    if rank < count:
        raise UsageError(f"functions={count}: the kernel has rank {rank}. Take functions={rank} or fewer.")
    generator, best = torch.Generator().manual_seed(seed), 0.0
    for tried in range(1, _TRIES + 1):
        weights = _weighed(pairs.vectors, DRAWS[method](pairs.vectors, labels, generator), method)
        gram = _gram(pairs.vectors, weights, labels)
        found = float(torch.linalg.eigvalsh(gram)[0])
        if found >= least or not least:
            return Design(
                chosen=tuple(weights), weights=tuple(weights.values()), method=method, functions=count, draws=labels,
                pool=kernel.samples, explained=float(pairs.values.sum()) / float(kernel.diag().sum()), gram=gram,
                tries=tried, seed=seed, provenance=provenance(seed=seed, method=method),
            )  # fmt: skip
        best = max(best, found)
    raise UsageError(
        f"least={least}: the best of {_TRIES} designs of {labels} labels has {best:.3g}. Take more labels, fewer than "
        f"{count} functions, or another method than {method!r}."
    )


def _functions(kernel: Kernel, labels: int, method: str, functions: int | None) -> int:
    """How many eigenfunctions, after everything was checked that needs no kernel entry."""
    if kernel.outputs != 1:
        raise UsageError(
            f"{kernel!r} has {kernel.outputs} outputs for each row, and a row is labelled with all of them: make the "
            "kernel with outputs='trace' or 'sum'."
        )
    if method not in DRAWS:
        raise UsageError(f"method={method!r}. {nearest(method, DRAWS)}")
    if not 1 <= labels <= kernel.samples:
        raise UsageError(f"labels={labels} of a pool of {kernel.samples} rows: choose 1 to {kernel.samples}.")
    count = functions if functions is not None else labels if method == "dpp" else max(labels // 2, 1)
    if not 1 <= count <= labels:
        raise UsageError(f"functions={count} from {labels} labels: choose 1 to {labels}.")
    if method == "dpp" and count != labels:
        raise UsageError(
            f"functions={count} with method='dpp', which draws as many rows as there are functions: leave it out, or "
            "take 'volume' or 'repeated-dpp'."
        )
    require_rank(kernel, count)
    return count


def _weighed(vectors: Tensor, drawn: list[int], method: str) -> dict[int, float]:
    """The weights of the different rows, in rising order."""
    size, count = vectors.shape
    scores = vectors.square().sum(1)
    return {
        row: drawn.count(row) * (1.0 if method == "uniform" else count / (size * float(scores[row])))
        for row in sorted(set(drawn))
    }


def _gram(vectors: Tensor, weights: dict[int, float], draws: int) -> Tensor:
    chosen = vectors[list(weights)]
    counted = torch.tensor(list(weights.values()), dtype=vectors.dtype)
    gram: Tensor = len(vectors) / draws * (chosen.T * counted) @ chosen
    return gram


def enough(functions: int, delta: float = 0.5, chance: float = 0.1) -> int:
    """How many independent draws by leverage suffice for |G - I| <= delta, with probability 1 - chance.

    n >= m log(2 m / chance) / d, d = (1 + delta) log(1 + delta) - delta: a matrix Chernoff bound, which is sufficient and
    seldom needed.

    Raises:
        UsageError: no function, or a number outside (0, 1).

    Example:
        >>> enough(10)
        490
    """
    if functions < 1 or not 0 < delta < 1 or not 0 < chance < 1:
        raise UsageError(
            f"functions={functions}, delta={delta}, chance={chance}: at least 1, and between 0 and 1."
        )
    rate = (1 + delta) * math.log1p(delta) - delta
    return math.ceil(functions * math.log(2 * functions / chance) / rate)
