"""Task vectors in closed form: fine-tuning in the tangent space as one solve with the kernel of the training rows."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from tauspan.core.arguments import checked
from tauspan.core.errors import DataError, MismatchError, ModelError, UsageError, nearest
from tauspan.core.measure import Cost, measured
from tauspan.core.params import require_finite
from tauspan.core.reading import Reading
from tauspan.kernel.operator.losses import BYS, LOSSES, By, Loss, LossProblem
from tauspan.kernel.operator.tangent import TangentKernel
from tauspan.kernel.operator.union import UnionKernel
from tauspan.kernel.rows.selector import Outputs
from tauspan.kernel.rows.tiles import Backend
from tauspan.kernel.solvers.hinge import Margins
from tauspan.kernel.solvers.regression import RidgeChoice
from tauspan.kernel.solvers.solution import DualSolution, vector_for
from tauspan.models import Classifier, Encoder
from tauspan.objectives import Regression
from tauspan.tangent import linearize
from tauspan.tangent.engine.check import far, rounding
from tauspan.tasks import Task, build_head
from tauspan.train.convex import labelled
from tauspan.vector import TaskVector

log = logging.getLogger(__name__)
_SQUARED, _OTHER = 1e-4, 1e-8  # tolerances of iterative solvers


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
    loss: str | Loss = "squared",
    ridge: float | Literal["loo"] | None = None,
    *,
    gap: float | None = None,
    grid: Sequence[float] | None = None,
    params: str | Sequence[str] = "all",
    reading: Reading = Reading(batch_size=32),
    backend: Backend = "auto",
    by: By = "auto",
    tolerance: float | None = None,
    max_steps: int = 1000,
    weights: Sequence[float] | Tensor | None = None,
) -> ClosedForm:
    """Fit tau in the tangent space through the kernel of the training rows, linearised at the logits.

    f = f0 + J tau over N rows and C classes. The losses are

    - `"squared"`: 1/2 sum |f - y|^2 + ridge/2 |tau|^2. The targets are one-hot and centred about the row's present mean
      logit: y = mean(f0) + gap (onehot - 1/C), since a shift of all logits decides nothing.
    - `"cross_entropy"`: mean CE(f, label) + ridge/2 |tau|^2, the loss of `tauspan.fit`.
    - `"hinge"`: mean max(0, 1 - s (f_1 - f_0)) + ridge/2 |tau|^2 for two classes, s = -1 or 1; for more, one against the
      rest on centred logits, summed over the classes.

    Only the squared loss is a sum over rows, so its ridge is N times that of a mean. A regression task takes the squared
    loss with its own targets, y as they are; tasks of other objectives have no closed form.

    Args:
        encoder: what `tauspan.load` returned, under the task's frozen head; or a `Classifier` of your own.
        task: rows, classes and head. All training rows enter: `task.subset(train=...)` takes fewer.
        loss: see above; or one of your own, a `Loss`.
        ridge: a number, or `"loo"`: the least leave-one-out error of the squared loss. None is `"loo"` for it, 1e-3
            for the others.
        gap: target distance of the right logit from the others; None is the head's scale.
        grid: what `"loo"` chooses from; see `choose_ridge`.
        params: which parameters move.
        reading: batches, and where texts are cut; see `tauspan.Reading`.
        backend: of the kernel.
        by: what the squared loss is solved with. `"matrix"`: the whole kernel, exactly. `"products"`: conjugate
            gradients, preconditioned with `kronecker(kernel)`; each step is a backward pass and one of tangents over the
            rows, however many classes there are, and `"loo"` chooses on the preconditioner. `"auto"`: products from 8
            classes and 1,000 rows x classes, if 40 steps are enough, and where no matrix is possible.
        tolerance: of iterative solvers: relative residual, gradient norm, or duality gap. None is 1e-4 for the squared
            loss, whose `error_bound` says what is left, and 1e-8 for the others.
        max_steps: of iterative solvers.
        weights: what each training row counts in the squared loss, such as those of `design`; they are solved with the
            whole kernel. None counts all rows alike.

    Returns:
        A `ClosedForm`; its `.vector` is an ordinary `TaskVector`.

    Raises:
        UsageError: an impossible setting, a singular system, or more than 20,000 rows x classes where the loss needs
            a matrix (squared goes on by products).
        DataError: a task of one class.
        MismatchError: a classifier with another number of outputs than the task has classes.
        NonFiniteError: NaN or infinity in rows, logits or kernel.

    Cost:
        The kernel's matrix (see `TangentKernel`), the solver's (N C)^3, and one backward pass over the rows. By products:
        the kernel of one output, about 15 passes over the rows, and N^3 + C^3.

    Example:
        >>> import torch, tauspan as ts
        >>> x, y = torch.eye(4).repeat(4, 1), torch.arange(4).repeat(4) % 2
        >>> task = ts.Task.from_tensors("parity", ["even", "odd"], train=(x, y), validation=(x, y), test=(x, y))
        >>> fitted = closed_form(ts.load(torch.nn.Linear(4, 3)), task, ridge=0.1)
        >>> fitted.vector.regime, fitted.solution.exact
        ('linear', True)
    """
    reading.require_no_point("closed_form")
    name, chosen = _loss(loss)
    require_closed(task, name)
    strength = _strength(name, chosen, ridge)
    if weights is not None and name != "squared":
        raise UsageError(
            f"weights with loss={name!r}: only the squared loss takes weights. Take loss='squared'."
        )
    if by not in BYS:
        raise UsageError(f"by={by!r}. {nearest(str(by), BYS)}")
    aim = (_SQUARED if name == "squared" else _OTHER) if tolerance is None else tolerance
    with measured() as cost:
        problem = loss_problem(encoder, task, chosen.contrast, gap, params, reading, backend)
        kernel = problem.kernel
        answer = chosen.solve(
            replace(
                problem,
                ridge=strength,
                grid=grid,
                tolerance=aim,
                max_steps=max_steps,
                by=by,
                weights=None if weights is None else torch.as_tensor(weights, dtype=torch.float64),
            )
        )
        facts = {"objective": name, "rows": kernel.samples, **answer.facts, **answer.solution.facts()}
        vector = task_vector(kernel, answer.solution.alpha, task.name, {"task": task.name, "solver": facts})
        if kernel.check != "off":
            require_certified(kernel, [answer.solution.alpha], [vector])
    return ClosedForm(vector, answer.solution, kernel, cost, answer.choice, answer.margins)


def loss_problem(
    given: Encoder | Classifier,
    task: Task,
    contrast: bool = False,
    gap: float | None = None,
    params: str | Sequence[str] = "all",
    reading: Reading = Reading(batch_size=32),
    backend: Backend = "auto",
) -> LossProblem:
    """The kernel of a task's training rows with their targets; arguments as for `closed_form`.

    Args:
        given: an encoder, or a classifier.
        task: rows, classes and head.
        contrast: of two classes, take the difference of the logits alone.
        gap: of the targets.
        params: which parameters move.
        reading: batches and cuts.
        backend: of the kernel.
    """
    classifier, encoder = _classifier(given, task, reading.max_tokens)
    parts = labelled(encoder, task.split("train"), task.tokens(reading.max_tokens), reading.batch_size)
    batches, labels = [batch for batch, _ in parts], torch.cat([part for _, part in parts])
    outputs: Outputs = "all"
    if contrast and len(task.label_names) == 2:
        outputs = torch.tensor([[-1.0, 1.0]], dtype=torch.float64).expand(len(labels), 2)
    kernel = TangentKernel(classifier, batches, params=params, outputs=outputs, backend=backend)
    target = None if not task.classes else classifier.head.scale if gap is None else gap
    return LossProblem(kernel, logits_at_base(kernel), labels, gap=target)


def task_vector(
    kernel: TangentKernel | UnionKernel, alpha: Tensor, label: str, info: dict[str, Any]
) -> TaskVector:
    """Tau = J^T alpha as a vector of regime `linear`, by one backward pass; alpha of any solver or path.

    Raises:
        NonFiniteError: tau holds NaN or infinity.
        UsageError: alpha of another length.
    """
    return task_vectors(kernel, [alpha], [(label, info)])[0]


def task_vectors(
    kernel: TangentKernel | UnionKernel, alphas: Sequence[Tensor], named: Sequence[tuple[str, dict[str, Any]]]
) -> list[TaskVector]:
    """Several from one pass, with a label and the facts of each; see `task_vector`."""
    made = []
    for pulled, (label, info) in zip(kernel.pulled(torch.stack([*alphas], 1)), named, strict=True):
        tangent = linearize(kernel.tangent.base, list(pulled), kernel.tangent.point)
        with torch.no_grad():
            for name, tau in tangent.tau.items():
                tau.copy_(pulled[name])
        require_finite(tangent.tau, f"J^T alpha of {label!r}")
        made.append(tangent.task_vector(label, **info))
    return made


def require_certified(
    kernel: TangentKernel | UnionKernel, alphas: Sequence[Tensor], vectors: Sequence[TaskVector]
) -> None:
    """Raise unless J tau of each vector equals K alpha, since the error bounds of the solver are about K alpha.

    Entries of K are known to rounding of the model's dtype, so the two may differ by rounding of sum_j |K_ij| |alpha_j|.
    Where the terms of that sum cancel, this is much beside K alpha itself, and a warning says how much.

    Raises:
        ModelError: J tau is another one, so that the certificate says nothing of the vector.

    Cost:
        One pass over the rows; nothing where the kernel is no matrix, since K alpha is then J (J^T alpha) itself.
    """
    if not kernel.formed:
        return
    narrow = min(
        (theta.dtype for theta in kernel.tangent.theta0().values()), key=lambda d: -torch.finfo(d).eps
    )
    for alpha, vector, moved in zip(alphas, vectors, kernel.pushed(vectors), strict=True):
        _require_same(kernel, alpha, vector.label, moved, narrow)


def _require_same(
    kernel: TangentKernel | UnionKernel, alpha: Tensor, label: str, moved: Tensor, narrow: torch.dtype
) -> None:
    wanted = kernel.matvec(alpha)
    if not far(moved, wanted, rounding(narrow)):
        return
    gap, size = float((moved - wanted).abs().max()), float(wanted.abs().max())
    if not gap <= rounding(narrow) * float((kernel.dense().abs() @ alpha.abs()).max()):
        raise ModelError(
            f"J tau of the closed form differs from K alpha by {gap:.3g} of {size:.3g}, so its certificate does not "
            "hold. Take backend='contraction'."
        )
    words = str(narrow).removeprefix("torch.")
    log.warning(
        "%s: J tau differs from K alpha by %.2g of %.3g, because rows nearly contradict one another and %s has few "
        "digits: take a larger ridge, or load the model in float64",
        label, gap, size, words,
    )  # fmt: skip


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


def _loss(given: str | Loss) -> tuple[str, Loss]:
    """A loss with its name."""
    if isinstance(given, Loss):
        return given.solve.__name__, given
    if given not in LOSSES:
        raise UsageError(f"loss={given!r}. {nearest(given, LOSSES)}")
    return given, LOSSES[given]


def require_closed(task: Task, name: str) -> None:
    """Raise unless the loss of that name fits the task's objective, and there is something to fit.

    Raises:
        DataError: one class.
        UsageError: an objective without a closed form, or a loss that is not its own.
    """
    if task.classes:
        if len(task.label_names) < 2:
            raise DataError(f"task {task.name!r} has one class: there is nothing to tell apart.")
        return
    if not isinstance(task.objective, Regression):
        raise UsageError(
            f"task {task.name!r} is {task.objective.word}, and closed forms are for classes and regression: take "
            + (
                "`fit`, which minimises every convex objective."
                if task.objective.convex
                else "`finetune` in the linear regime, since its loss is not convex."
            )
        )
    if name != "squared":
        raise UsageError(
            f"loss={name!r} needs classes, and task {task.name!r} is regression: take 'squared'."
        )


def _strength(name: str, loss: Loss, ridge: float | str | None) -> float | None:
    """The ridge as a number, None where leave-one-out chooses it."""
    if isinstance(ridge, str) and (ridge != "loo" or loss.ridge is not None):
        raise UsageError(
            f"ridge={ridge!r} with loss={name!r}: give a number; 'loo' chooses for the squared loss."
        )
    return loss.ridge if ridge is None or isinstance(ridge, str) else float(ridge)


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
