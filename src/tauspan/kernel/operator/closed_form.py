"""Task vectors in closed form: fine-tuning in the tangent space as one solve with the kernel of the training rows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from tauspan.core.arguments import checked
from tauspan.core.errors import DataError, MismatchError, ModelError, UsageError, nearest
from tauspan.core.measure import Cost, measured
from tauspan.core.params import require_finite
from tauspan.core.reading import Reading
from tauspan.kernel.approximate.lowrank import pivoted_cholesky
from tauspan.kernel.operator.tangent import TangentKernel
from tauspan.kernel.rows.selector import Outputs
from tauspan.kernel.rows.tiles import Backend
from tauspan.kernel.solvers.base import Kernel
from tauspan.kernel.solvers.cg import solve_cg
from tauspan.kernel.solvers.hinge import Margins, margins, one_vs_rest, solve_hinge
from tauspan.kernel.solvers.kernels import DenseKernel
from tauspan.kernel.solvers.newton import solve_cross_entropy
from tauspan.kernel.solvers.regression import RidgeChoice, choose_ridge, solve_ridge
from tauspan.kernel.solvers.solution import DENSE, DualSolution, matrix_of, vector_for
from tauspan.models import Classifier, Encoder
from tauspan.tangent import linearize
from tauspan.tangent.engine.check import far, rounding
from tauspan.tasks import Task, build_head
from tauspan.train.convex import labelled
from tauspan.vector import TaskVector

Loss = Literal["squared", "cross_entropy", "hinge"]
_RIDGE = 1e-3  # that of `fit`
_RANK = 200  # of the preconditioner, where the kernel is no matrix


@dataclass(frozen=True)
class ClosedForm:
    """A task vector in closed form, with the solution that it is made of.

    Args:
        vector: tau = J^T alpha, of regime `linear`; `info["solver"]` holds `solution.facts()`.
        solution: alpha, and the numbers that bound its error.
        kernel: the kernel of the training rows; its matrix is kept, unless conjugate gradients did without one.
        cost: seconds and memory of everything, kernel included.
        choice: how leave-one-out chose the ridge; None where it was given.
        margins: support set and robustness bounds of the hinge loss; None for other losses.
    """

    vector: TaskVector
    solution: DualSolution
    kernel: TangentKernel
    cost: Cost = field(default_factory=Cost)
    choice: RidgeChoice | None = None
    margins: Margins | None = None


@checked
def closed_form(
    encoder: Encoder | Classifier,
    task: Task,
    loss: Loss = "squared",
    ridge: float | Literal["loo"] | None = None,
    *,
    gap: float | None = None,
    grid: Sequence[float] | None = None,
    params: str | Sequence[str] = "all",
    reading: Reading = Reading(batch_size=32),
    backend: Backend = "auto",
    tolerance: float = 1e-8,
    max_steps: int = 1000,
) -> ClosedForm:
    """Fit tau in the tangent space through the kernel of the training rows, linearised at the logits.

    f = f0 + J tau over N rows and C classes. The losses are

    - `"squared"`: 1/2 sum |f - y|^2 + ridge/2 |tau|^2. The targets are one-hot and centred about the row's present mean
      logit: y = mean(f0) + gap (onehot - 1/C), since a shift of all logits decides nothing.
    - `"cross_entropy"`: mean CE(f, label) + ridge/2 |tau|^2, the loss of `tauspan.fit`.
    - `"hinge"`: mean max(0, 1 - s (f_1 - f_0)) + ridge/2 |tau|^2 for two classes, s = -1 or 1; for more, one against the
      rest on centred logits, summed over the classes.

    Only the squared loss is a sum over rows, so its ridge is N times that of a mean.

    Args:
        encoder: what `tauspan.load` returned, under the task's frozen head; or a `Classifier` of your own.
        task: rows, classes and head. All training rows enter: `task.subset(train=...)` takes fewer.
        loss: see above.
        ridge: a number, or `"loo"`: the least leave-one-out error of the squared loss. None is `"loo"` for it, 1e-3
            for the others.
        gap: target distance of the right logit from the others; None is the head's scale.
        grid: what `"loo"` chooses from; see `choose_ridge`.
        params: which parameters move.
        reading: batches, and where texts are cut; see `tauspan.Reading`.
        backend: of the kernel.
        tolerance: of iterative solvers: relative residual, gradient norm, or duality gap.
        max_steps: of iterative solvers.

    Returns:
        A `ClosedForm`; its `.vector` is an ordinary `TaskVector`.

    Raises:
        UsageError: an impossible setting, a singular system, or more than 20,000 rows x classes where the loss needs
            a matrix (squared with a number as ridge goes on by conjugate gradients).
        DataError: a task of one class.
        MismatchError: a classifier with another number of outputs than the task has classes.
        NonFiniteError: NaN or infinity in rows, logits or kernel.

    Cost:
        The kernel's matrix (see `TangentKernel`), the solver's (N C)^3, and one backward pass over the rows.

    Example:
        >>> import torch, tauspan as ts
        >>> x, y = torch.eye(4).repeat(4, 1), torch.arange(4).repeat(4) % 2
        >>> task = ts.Task.from_tensors("parity", ["even", "odd"], train=(x, y), validation=(x, y), test=(x, y))
        >>> fitted = closed_form(ts.load(torch.nn.Linear(4, 3)), task, ridge=0.1)
        >>> fitted.vector.regime, fitted.solution.exact
        ('linear', True)
    """
    reading.require_no_point("closed_form")
    strength = _strength(task, loss, ridge)
    classifier, encoder = _classifier(encoder, task, reading.max_tokens)
    with measured() as cost:
        parts = labelled(encoder, task.split("train"), task.tokens(reading.max_tokens), reading.batch_size)
        batches, labels = [batch for batch, _ in parts], torch.cat([part for _, part in parts])
        outputs: Outputs = "all"
        if loss == "hinge" and len(task.label_names) == 2:
            outputs = torch.tensor([[-1.0, 1.0]], dtype=torch.float64).expand(len(labels), 2)
        kernel = TangentKernel(classifier, batches, params=params, outputs=outputs, backend=backend)
        problem = _Problem(kernel, logits_at_base(kernel), labels, strength, tolerance, max_steps)
        if loss == "squared":
            answer = problem.squared(classifier.head.scale if gap is None else gap, grid)
        else:
            answer = problem.cross_entropy() if loss == "cross_entropy" else problem.hinge()
        facts = {"objective": loss, "rows": kernel.samples, **answer.facts, **answer.solution.facts()}
        vector = task_vector(kernel, answer.solution.alpha, task.name, {"task": task.name, "solver": facts})
        if kernel.check != "off":
            _require_certified(kernel, answer.solution.alpha, vector)
    return ClosedForm(vector, answer.solution, kernel, cost, answer.choice, answer.margins)


def task_vector(kernel: TangentKernel, alpha: Tensor, label: str, info: dict[str, Any]) -> TaskVector:
    """Tau = J^T alpha as a vector of regime `linear`, by one backward pass; alpha of any solver or path.

    Raises:
        NonFiniteError: tau holds NaN or infinity.
        UsageError: alpha of another length.
    """
    pulled = kernel.pullback(alpha)
    tangent = linearize(kernel.tangent.base, list(pulled), kernel.tangent.point)
    with torch.no_grad():
        for name, tau in tangent.tau.items():
            tau.copy_(pulled[name])
    require_finite(tangent.tau, f"J^T alpha of {label!r}")
    return tangent.task_vector(label, **info)


def _require_certified(kernel: TangentKernel, alpha: Tensor, vector: TaskVector) -> None:
    """Raise unless J tau of the vector equals K alpha, since the error bounds of the solver are about K alpha.

    Raises:
        ModelError: J tau is another one, so that the certificate says nothing of the vector.

    Cost:
        One pass over the rows; nothing where the kernel is no matrix, since K alpha is then J (J^T alpha) itself.
    """
    if not kernel.formed:
        return
    moved, wanted = kernel.push(vector), kernel.matvec(alpha)
    narrow = min(
        (theta.dtype for theta in kernel.tangent.theta0().values()), key=lambda d: -torch.finfo(d).eps
    )
    if far(moved, wanted, rounding(narrow)):
        raise ModelError(
            f"J tau of the closed form differs from K alpha by {float((moved - wanted).abs().max()):.3g} of "
            f"{float(wanted.abs().max()):.3g}, so its certificate does not hold. Take backend='contraction'."
        )


@torch.no_grad()
def logits_at_base(kernel: TangentKernel) -> Tensor:
    """f0 of the kernel's left rows through its selector of outputs, shape (N, O), float64."""
    parts = [
        torch.einsum(
            "nc,noc->no",
            kernel.tangent.function(batch).plain().double().cpu(),
            kernel.left.select.weights_of(places),
        )
        for places, batch in kernel.left.parts()
    ]
    return vector_for(kernel, torch.cat(parts), "the model's logits").view(-1, kernel.outputs)


def _strength(task: Task, loss: str, ridge: float | str | None) -> float | None:
    """The ridge as a number, None where leave-one-out chooses it."""
    if loss not in get_args(Loss):
        raise UsageError(f"loss={loss!r}. {nearest(str(loss), get_args(Loss))}")
    if len(task.label_names) < 2:
        raise DataError(f"task {task.name!r} has one class: there is nothing to tell apart.")
    if isinstance(ridge, str) and (ridge != "loo" or loss != "squared"):
        raise UsageError(
            f"ridge={ridge!r} with loss={loss!r}: give a number; 'loo' chooses for the squared loss."
        )
    if ridge is None or isinstance(ridge, str):
        return None if loss == "squared" else _RIDGE
    return float(ridge)


def _classifier(
    given: Encoder | Classifier, task: Task, max_tokens: int | None
) -> tuple[Classifier, Encoder]:
    if isinstance(given, Encoder):
        return Classifier(given, build_head(task, given, max_tokens=max_tokens)), given
    outputs = len(given.head.weight)
    if outputs != len(task.label_names):
        raise MismatchError(
            f"the classifier has {outputs} outputs and the task {task.name!r} {len(task.label_names)} classes: "
            "give the encoder alone, and the task's own head is built."
        )
    return given, given.encoder


class _Answer(NamedTuple):
    """The solution for one loss; `facts` are for provenance."""

    solution: DualSolution
    facts: dict[str, Any]
    choice: RidgeChoice | None = None
    margins: Margins | None = None


@dataclass(frozen=True)
class _Problem:
    """Kernel, f0 (N, O) and labels of the training rows, and how to solve."""

    kernel: TangentKernel
    start: Tensor
    labels: Tensor
    ridge: float | None
    tolerance: float
    max_steps: int

    def squared(self, gap: float, grid: Sequence[float] | None) -> _Answer:
        """Ridge regression on gap (onehot - 1/C) - (f0 - mean f0)."""
        if not (math.isfinite(gap) and gap > 0):
            raise UsageError(f"gap={gap}: it must be above 0.")
        classes = self.start.shape[1]
        targets = gap * (F.one_hot(self.labels, classes) - 1 / classes)
        residual = targets - self._centred_start()
        facts: dict[str, Any] = {"gap": gap}
        choice, ridge = None, self.ridge
        if ridge is None:
            choice = choose_ridge(self.kernel, residual, grid)
            ridge = choice.ridge
            facts["leave_one_out"] = {"grid": list(choice.grid), "errors": list(choice.errors)}
        if self.kernel.shape[0] <= DENSE:
            return _Answer(solve_ridge(self.kernel, residual, ridge), facts, choice)
        near = pivoted_cholesky(self.kernel, min(_RANK, self.kernel.shape[0])).kernel
        solution = solve_cg(
            self.kernel, residual, ridge, near, tolerance=self.tolerance, max_steps=self.max_steps
        )
        return _Answer(solution, facts, choice)

    def cross_entropy(self) -> _Answer:
        """The loss of `fit`, minimised by Newton's method."""
        solution = solve_cross_entropy(
            self.kernel, self.labels, cast(float, self.ridge), self.start,
            tolerance=self.tolerance, max_steps=self.max_steps,
        )  # fmt: skip
        return _Answer(solution, {})

    def hinge(self) -> _Answer:
        """The hinge loss of the difference of two logits or, for more classes, of each class's centred logit."""
        outputs = self.kernel.outputs
        kernel: Kernel = self.kernel
        start, signs = self.start, 2 * self.labels.double() - 1
        if outputs > 1:
            kernel = DenseKernel(_centred(matrix_of(kernel), outputs), outputs)
            start, signs = self._centred_start(), one_vs_rest(self.labels, outputs)
        solution = solve_hinge(
            kernel, signs, cast(float, self.ridge), start, tolerance=self.tolerance, max_steps=self.max_steps
        )
        bounds = margins(kernel, solution, signs, start)
        if outputs > 1:  # centring is its own transpose
            alpha = solution.alpha.view_as(start)
            solution = replace(solution, alpha=(alpha - alpha.mean(1, keepdim=True)).flatten())
        return _Answer(solution, {"support": len(bounds.support), "norm": bounds.norm}, margins=bounds)

    def _centred_start(self) -> Tensor:
        return self.start - self.start.mean(1, keepdim=True)


def _centred(matrix: Tensor, outputs: int) -> Tensor:
    """The kernel of each row's outputs less their mean."""
    cubes = matrix.view(len(matrix) // outputs, outputs, -1, outputs)
    left = cubes - cubes.mean(1, keepdim=True)
    return (left - left.mean(3, keepdim=True)).view_as(matrix)
