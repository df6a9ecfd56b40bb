"""Convex fitting: the tangent model's loss is convex in tau, so a solver finds the minimum, where the gradient is 0."""

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from tauspan.core.arguments import checked
from tauspan.core.choices import CacheKind
from tauspan.core.errors import NonFiniteError, UsageError, nearest
from tauspan.core.measure import measured, progress, underway
from tauspan.core.params import Params, require_finite, require_finite_rows
from tauspan.core.reading import Reading
from tauspan.core.recording import recording
from tauspan.models import Classifier, Encoder
from tauspan.objectives import Classification, Objective
from tauspan.tangent import Cache, Linearized, linearize
from tauspan.tasks import Split, Task, build_head
from tauspan.tasks.batches import encoded
from tauspan.train.finetuning import Finetuned
from tauspan.train.weights import checksum, counted

log = logging.getLogger(__name__)
Solver = Literal["lbfgs", "newton-cg"]
_IDLE = 20  # L-BFGS stops after this many iterations in a row without a smaller gradient norm


@checked
def fit(
    encoder: Encoder,
    task: Task,
    solver: Solver = "lbfgs",
    *,
    ridge: float = 1e-3,
    tolerance: float = 1e-4,
    max_steps: int = 200,
    params: str | Sequence[str] = "all",
    reading: Reading = Reading(batch_size=32),
    cache: CacheKind | Literal["auto"] = "auto",
    room: int | None = None,
    folder: str | Path | None = None,
    weights: Sequence[float] | Tensor | None = None,
) -> Finetuned:
    """Fit tau in the tangent space down to a given gradient norm, without a learning rate.

    Minimises mean_n l(f(x_n; theta0) + J(x_n) tau, y_n) + ridge/2 |tau|^2, l the loss of the task's objective, over all
    training rows, which is convex because the model is linearised at the logits; ridge pulls to the base and makes the
    minimum unique. With weights the mean is 1/N sum_n w_n l_n.

    Args:
        encoder: what `tauspan.load` returned.
        task: rows, classes and head.
        solver: `"lbfgs"` (torch, strong Wolfe line search, which compares losses and so stops near the square root
            of the machine precision), or `"newton-cg"` (scipy, exact Hessian products
            J^T (diag p - p p^T) J v + ridge v, in float64 outside the model).
        ridge: strength of the pull to the base, above 0.
        tolerance: stop when the Euclidean norm of the gradient is at most this.
        max_steps: stop after this many iterations; the history says whether the tolerance was met.
        params: which parameters move.
        reading: batch size (each step uses all rows), and where texts are cut; see `tauspan.Reading`.
        cache: what is kept of each batch; see `Linearized.cache`.
        room: the most bytes the cache may hold.
        folder: keep the cache in memory-mapped files there.
        weights: what each training row counts, 0 or more.

    Returns:
        A `Finetuned` whose last history entries are the final gradient norm and the validation accuracy;
        `task_vector.info["solver"]` holds the certificate.

    Raises:
        UsageError: an impossible setting, or a cache that does not fit.

    Cost:
        One pass over the training rows per function evaluation, two per Hessian product; with `"factors"` a pass
        costs less than half a forward.

    Example:
        >>> import torch, tauspan as ts
        >>> x, y = torch.eye(4).repeat(4, 1), torch.arange(4).repeat(4) % 2
        >>> task = ts.Task.from_tensors("parity", ["even", "odd"], train=(x, y), validation=(x, y), test=(x, y))
        >>> run = ts.fit(ts.load(torch.nn.Linear(4, 3)), task)
        >>> run.task_vector.info["solver"]["converged"]
        True
    """
    _check(solver, ridge, tolerance, max_steps)
    if not task.objective.convex:
        raise UsageError(
            f"the loss {task.objective.word} of {task.name!r} is not convex, and `fit` finds the minimum of a convex "
            "one: "
            "fine-tune in the linear regime."
        )
    reading.require_no_point("fit")
    counts = None if weights is None else counted(weights, len(task.split("train")))
    classifier = Classifier(encoder, build_head(task, encoder, max_tokens=reading.max_tokens))
    tangent = linearize(classifier, params, "logits")
    if encoder.language is not None:
        encoder.language.require_untrained(tangent.tau)
    tokens = task.tokens(reading.max_tokens)
    with recording(), measured() as cost, underway(f"fit of {task.name}"):
        parts = labelled(encoder, task.split("train"), tokens, reading.batch_size, task.objective)
        cached = tangent.cache([batch for batch, _ in parts], cache, room=room, folder=folder)
        bound = task.objective.bound(encoder.language)
        train = _Loss(tangent, cached, [labels for _, labels in parts], ridge, bound, counts)
        with progress(f"{task.name} ({solver})", max_steps) as advance:
            history = _SOLVERS[solver](train, tolerance, max_steps, advance)
        final = history[-1]
        if not final["gradient_norm"] <= tolerance:
            log.warning(
                "%s: gradient norm %g after %d steps, above tolerance %g; allow more steps or a larger ridge",
                task.name, final["gradient_norm"], final["step"], tolerance,
            )  # fmt: skip
        history.append(_validation(tangent, encoder, task, tokens, reading.batch_size))
    facts = {
        "name": solver, "ridge": ridge, "tolerance": tolerance, "steps": final["step"], "loss": final["loss"],
        "gradient_norm": final["gradient_norm"], "converged": final["gradient_norm"] <= tolerance,
    }  # fmt: skip
    if counts is not None:
        facts["weights"] = checksum(counts)
    return Finetuned(tangent.task_vector(task.name, task=task.name, solver=facts), history, cost)


def _check(solver: str, ridge: float, tolerance: float, max_steps: int) -> None:
    if solver not in get_args(Solver):
        raise UsageError(f"solver={solver!r}. {nearest(str(solver), get_args(Solver))}")
    for name, value in (("ridge", ridge), ("tolerance", tolerance)):
        if not 0 < value < math.inf:
            raise UsageError(
                f"{name}={value}: it must be above 0; without it the minimum may lie at infinity."
            )
    if max_steps < 1:
        raise UsageError(f"max_steps={max_steps}: it must be at least 1.")


Part = tuple[Any, Tensor]


def labelled(
    encoder: Encoder,
    rows: Split,
    max_tokens: int | None,
    batch_size: int,
    objective: Objective = Classification(),
) -> list[Part]:
    """Encoded batches with their targets."""
    parts = []
    for begin in range(0, len(rows), batch_size):
        part = rows.take(list(range(begin, min(begin + batch_size, len(rows)))))
        targets = objective.targets(part.inputs, part.labels, encoder.language, max_tokens)
        parts.append((encoded(encoder, part, objective, max_tokens), targets))
    return parts


class _Loss:
    """Mean loss of the tangent model plus ridge/2 |tau|^2, its gradient, and its Hessian products."""

    def __init__(
        self, tangent: Linearized, cached: Cache, labels: Sequence[Tensor], ridge: float, objective: Objective,
        weights: Tensor | None = None,
    ) -> None:  # fmt: skip
        device = next(iter(tangent.tau.values())).device
        self.tangent, self.ridge, self._cached = tangent, ridge, cached
        self._labels = [part.to(device) for part in labels]
        self._rows, self._objective = sum(map(len, labels)), objective
        sizes = [len(part) for part in labels]
        self._weights: Sequence[Tensor | None] = [None] * len(sizes)
        if weights is not None:
            self._weights = torch.split(weights.to(device), sizes)

    def backward(self) -> float:
        """The loss at the current tau; its gradient is accumulated in the parameters."""
        total = 0.0
        taus = list(self.tangent.tau.values())
        for tau in taus:
            tau.grad = tau.detach() * self.ridge
            total += 0.5 * self.ridge * float(tau.detach().double().square().sum())
        for batch, labels, weights in zip(self._cached, self._labels, self._weights, strict=True):
            logits = batch()
            loss = self._objective.total(logits, labels, weights) / self._rows
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
            if not math.isfinite(total):
                require_finite_rows(logits.detach(), "the logits of a batch of training rows")
        if not math.isfinite(total):
            raise NonFiniteError(
                f"the loss is {total}: the coefficients left the range of numbers. Raise the ridge."
            )
        return total

    def gradient(self) -> dict[str, Tensor]:
        """The gradient that `backward` computed."""
        found = {name: tau.grad for name, tau in self.tangent.tau.items() if tau.grad is not None}
        require_finite(found, "the gradient")
        return found

    @torch.no_grad()
    def outputs(self) -> list[Tensor]:
        """The outputs at the current tau, from which the Hessian is computed."""
        return [batch() for batch in self._cached]

    def hessian(self, outputs: Sequence[Tensor], direction: Params) -> dict[str, Tensor]:
        """The Hessian times v: sum_n J_n^T H_n J_n v / N + ridge v, H_n that of the row's loss in its outputs."""
        total = {name: delta * self.ridge for name, delta in direction.items()}
        for batch, at, labels, weights in zip(
            self._cached, outputs, self._labels, self._weights, strict=True
        ):
            moved = batch.cell.push(direction)
            curved = self._objective.curvature(at, labels, moved[None])[0] / self._rows
            curved = curved if weights is None else weights.to(curved)[:, None] * curved
            for name, part in batch.cell.pull(curved).items():
                total[name] += part
        return total


Advance = Callable[[int, str], None]


def _norm(tensors: Params) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors.values()))


def _lbfgs(loss: _Loss, tolerance: float, max_steps: int, advance: Advance) -> list[dict[str, Any]]:
    """Torch's L-BFGS, one iteration at a time."""
    optimiser = torch.optim.LBFGS(
        loss.tangent.parameters(), max_iter=1, max_eval=25, tolerance_grad=0.0, tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )  # fmt: skip
    history: list[dict[str, Any]] = []
    least, idle = math.inf, 0
    for step in range(1, max_steps + 1):
        optimiser.step(loss.backward)  # type: ignore[no-untyped-call]
        value, norm = loss.backward(), _norm(loss.gradient())
        history.append({"split": "train", "step": step, "loss": value, "gradient_norm": norm})
        advance(1, f"loss {value:.4f}, gradient {norm:.1e}")
        idle = 0 if norm < least else idle + 1
        least = min(norm, least)
        if norm <= tolerance or idle == _IDLE:  # at machine precision nothing improves any more
            break
    return history


def _newton_cg(loss: _Loss, tolerance: float, max_steps: int, advance: Advance) -> list[dict[str, Any]]:
    """Scipy's trust-region Newton with conjugate gradients, on all of tau as one float64 vector."""
    from scipy.optimize import minimize

    tau = loss.tangent.tau

    def flat(tensors: Params) -> Any:
        return np.concatenate([tensors[name].detach().double().cpu().numpy().ravel() for name in tau])

    def named(vector: Any) -> dict[str, Tensor]:
        sizes = [delta.numel() for delta in tau.values()]
        parts = torch.split(torch.from_numpy(np.ascontiguousarray(vector)), sizes)
        pairs = zip(tau.items(), parts, strict=True)
        return {name: part.view(delta.shape).to(delta) for (name, delta), part in pairs}

    def move(vector: Any) -> None:
        with torch.no_grad():
            for name, value in named(vector).items():
                tau[name].copy_(value)

    def value(vector: Any) -> tuple[float, Any]:
        move(vector)
        found = loss.backward()
        return found, flat(loss.gradient())

    def note(_: Any) -> None:
        advance(1, "")

    kept: dict[bytes, list[Tensor]] = {}

    def product(vector: Any, direction: Any) -> Any:
        key = vector.tobytes()
        if key not in kept:
            move(vector)
            kept.clear()
            kept[key] = loss.outputs()
        return flat(loss.hessian(kept[key], named(direction)))

    options = {"gtol": tolerance, "maxiter": max_steps}
    start = flat(tau)
    found = minimize(
        value, start, jac=True, hessp=product, method="trust-ncg", callback=note, options=options
    )
    move(found.x)
    last = {"split": "train", "step": int(found.nit), "loss": float(found.fun)}
    return [{**last, "gradient_norm": float(np.linalg.norm(found.jac))}]


_SOLVERS: dict[Solver, Callable[[_Loss, float, int, Advance], list[dict[str, Any]]]] = {
    "lbfgs": _lbfgs, "newton-cg": _newton_cg,
}  # fmt: skip


@torch.no_grad()
def _validation(
    tangent: Linearized, encoder: Encoder, task: Task, max_tokens: int | None, batch_size: int
) -> dict[str, Any]:
    rows = task.split("validation")
    parts = labelled(encoder, rows, max_tokens, batch_size, task.objective)
    logits = torch.cat([tangent(batch).cpu() for batch, _ in parts])
    require_finite_rows(logits, f"the logits of {task.name!r} on validation")
    objective, targets = task.objective.bound(encoder.language), torch.cat([part for _, part in parts])
    loss = float(objective.losses(logits, targets).mean())
    return {"split": "validation", "loss": loss, objective.metric: objective.value(logits, targets)}
