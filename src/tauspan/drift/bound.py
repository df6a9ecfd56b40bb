"""How far a vector can move rows that were never read: a bound from a few landmark rows and the tangent kernel."""

import random
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from tauspan.core.arguments import checked
from tauspan.core.choices import SplitName
from tauspan.core.errors import UsageError
from tauspan.core.reading import Reading
from tauspan.core.records import LIVE
from tauspan.core.report import Cell, Report, Table, noted, provenance
from tauspan.core.results import Result
from tauspan.drift.others import require_others
from tauspan.kernel import TangentKernel, pivoted_cholesky
from tauspan.models import Batch, Classifier, Encoder
from tauspan.tasks import Split, Task, build_head
from tauspan.train.convex import labelled
from tauspan.vector import TaskVector

_ROUNDING = 1e-5  # of k(x, x): what a kernel of a model in single precision is known to
_JITTER = 1e-7  # of the mean diagonal; any value gives a valid bound


@dataclass(frozen=True, kw_only=True)
class DriftBound(Result):
    """A bound of |J(x) tau| for each row, and what it is.

    Args:
        task: under whose head rows are read.
        vector: the vector's label.
        landmarks: how many entries (a row under one output) were read of the vector.
        norm: |tau|, over the tensors that the logits depend on.
        rest: the norm of what the landmarks do not see of tau.
        bound: by row, the bound.
        actual: by row, |J(x) tau|.
    """

    task: str
    vector: str
    landmarks: int
    norm: float
    rest: float
    bound: Tensor = field(repr=False, metadata=LIVE)
    actual: Tensor = field(repr=False, metadata=LIVE)

    @property
    def violations(self) -> int:
        """Rows that move farther than their bound: 0, or something is wrong."""
        return int((self.actual > self.bound).sum())

    @property
    def looseness(self) -> float:
        """The median over the rows that move of bound over actual; 1 where no row moves and none could, else infinite."""
        moving = self.actual > 0
        if not bool(moving.any()):
            return float("inf") if bool((self.bound > 0).any()) else 1.0
        return float((self.bound[moving] / self.actual[moving]).median())

    def report(self) -> Report:
        """One row: how large the bounds are, and how loose."""
        quantiles = torch.tensor([0.5, 0.95], dtype=torch.float64)
        bounds, moved = self.bound.quantile(quantiles).tolist(), self.actual.quantile(quantiles).tolist()
        loose = self.looseness
        cells: dict[str, Cell] = {
            "rows": len(self.bound), "landmarks": self.landmarks, "bound, median": bounds[0], "95 %": bounds[1],
            "moved, median": moved[0], "95 % moved": moved[1], "largest bound": float(self.bound.max()),
            "looseness": loose if loose < float("inf") else None, "violations": self.violations,
        }  # fmt: skip
        title = f"How far {self.vector} can move rows of {self.task}"
        note = (
            f"|J(x) tau| of all logits; tau has norm {self.norm:.3g}, of which the landmarks do not see {self.rest:.3g}; "
            "looseness: median of bound over actual, where rows move"
        )
        return Report(title, [Table(title, [cells], note)], dict(self.provenance))


@noted
@checked
def drift_bound(
    encoder: Encoder,
    vector: TaskVector,
    task: Task,
    landmarks: int = 64,
    *,
    choose: Literal["pivoted", "random"] = "pivoted",
    split: SplitName = "test",
    seed: int = 0,
    reading: Reading = Reading(batch_size=32),
) -> DriftBound:
    """Bound how far a vector moves the rows of a split, from landmarks among the training rows. Labels are not read.

    With d = J_L tau on the landmark entries L, weights w = K_LL^-1 k(L, x) and beta = K_LL^-1 d, each output moves by at
    most |k(x, L) beta| + |rho| p(x): rho is what the landmarks do not see of tau, |rho|^2 = |tau|^2 - d^T K_LL^-1 d, and
    p(x)^2 = k(x, x) - k(x, L) K_LL^-1 k(L, x) is the power function of the kernel (Wendland, Scattered Data
    Approximation, ch. 11). Outputs are joined by their squares. The bound holds for any row, also for one that is not
    here yet, once its kernel with the landmarks is known. It holds for the tangent model.

    K_LL is inverted with a small ridge. The formulas above are then no longer the shortest, so those that hold for any
    weights are evaluated; rounding of the kernel is added.

    Args:
        encoder: the pre-trained encoder.
        vector: of any regime, read in the tangent model.
        task: whose rows are read, under its head.
        landmarks: how many entries, each a training row under one output.
        choose: `"pivoted"`, entries that leave least of the kernel unexplained, or `"random"`.
        split: whose rows are bounded.
        seed: of the choice.
        reading: batches, and where texts are cut.

    Raises:
        UsageError: no landmark, a task without logits, or a reading with a point.

    Cost:
        The kernel of `landmarks` rows with all training rows for the choice, and with the rows of the split.

    Example:
        >>> import torch, tauspan as ts
        >>> x, y = torch.randn(32, 4, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 2
        >>> task = ts.Task.from_tensors("parity", ["even", "odd"], train=(x, y), validation=(x, y), test=(x, y))
        >>> encoder = ts.load(torch.nn.Linear(4, 3))
        >>> found = drift_bound(encoder, ts.closed_form(encoder, task, ridge=1.0).vector, task, 6)
        >>> found.violations, found.looseness >= 1
        (0, True)
    """
    require_others([task])
    reading.require_no_point("drift_bound")
    if landmarks < 1:
        raise UsageError(f"landmarks={landmarks}: it must be at least 1.")
    tau = vector.fitted(encoder, tangent=True).deltas
    classifier = Classifier(encoder, build_head(task, encoder, max_tokens=reading.max_tokens))

    def read(rows: Split) -> list[Batch]:
        cut = task.tokens(reading.max_tokens)
        return [batch for batch, _ in labelled(encoder, rows, cut, reading.batch_size, task.objective)]

    def kernel(rows: Split, columns: Split | None = None) -> TangentKernel:
        others = None if columns is None else read(columns)
        return TangentKernel(classifier, read(rows), others, params=list(tau))

    train, unseen = task.split("train"), task.split(split)
    candidates = kernel(train)
    entries = chosen_entries(candidates, landmarks, choose, seed)
    outputs = candidates.outputs
    samples = sorted({entry // outputs for entry in entries})
    places = [samples.index(entry // outputs) * outputs + entry % outputs for entry in entries]
    inner = candidates.rows(entries)[:, entries]
    seen = candidates.push(tau)[entries]
    cross = kernel(unseen, train.take(samples)).dense()[:, places]
    own = kernel(unseen)
    norm = sum(float(delta.double().square().sum()) for delta in tau.values())
    bound, rest = bounds_of(inner, seen, cross, own.diag(), norm)
    actual = own.push(tau).view(-1, outputs).norm(dim=1)
    facts = {"landmarks": landmarks, "choose": choose, "split": split, "seed": seed, "base": vector.base}
    return DriftBound(
        task=task.name, vector=vector.label, landmarks=len(entries), norm=norm**0.5, rest=rest,
        bound=bound.view(-1, outputs).norm(dim=1), actual=actual, provenance=provenance(**facts),
    )  # fmt: skip


def chosen_entries(kernel: TangentKernel, count: int, choose: str, seed: int) -> list[int]:
    """The landmark entries, in rising order."""
    size = kernel.shape[0]
    if choose == "random":
        return sorted(random.Random(seed).sample(range(size), min(count, size)))
    return sorted(pivoted_cholesky(kernel, min(count, size), seed, tolerance=1e-6).landmarks)


def bounds_of(
    inner: Tensor, seen: Tensor, cross: Tensor, diagonal: Tensor, norm: float
) -> tuple[Tensor, float]:
    """The bound of each entry, and |rho|; valid whatever the weights are.

    For any w and beta, with rho = tau - J_L^T beta:
    J tau = w^T d + (k(x, L) - w^T K) beta + (J - w^T J_L) rho.
    """
    ridge = _JITTER * float(inner.diagonal().mean())
    factor = torch.linalg.cholesky(inner + ridge * torch.eye(len(inner), dtype=inner.dtype))
    beta = torch.cholesky_solve(seen[:, None], factor)[:, 0]
    weights = torch.cholesky_solve(cross.T, factor).T
    known = weights @ seen + (cross - weights @ inner) @ beta
    power = diagonal - 2 * (weights * cross).sum(1) + ((weights @ inner) * weights).sum(1)
    power = (power.clamp(min=0) + _ROUNDING * diagonal).sqrt()
    rest = max(norm - 2 * float(beta @ seen) + float(beta @ inner @ beta), 0.0) + _ROUNDING * norm
    return known.abs() + rest**0.5 * power, rest**0.5
