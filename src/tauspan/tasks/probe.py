"""Linear probing: a head fitted to frozen features, as the closed-vocabulary protocol asks for."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from tauspan.core.errors import NonFiniteError, listed
from tauspan.models import Head
from tauspan.objectives import Classification, Objective

log = logging.getLogger(__name__)
RIDGE = 1e-3
_MEMORY = 20  # pairs of steps that L-BFGS keeps; more than the usual ten, since features vary mostly in few directions


@dataclass(frozen=True)
class Probe:
    """A fitted head, the objective there, the Euclidean norm of the objective's gradient, and the number of steps."""

    head: Head
    loss: float
    gradient_norm: float
    steps: int


def probe(
    features: Tensor,
    labels: Tensor,
    classes: int,
    *,
    objective: Objective = Classification(),
    ridge: float = RIDGE,
    tolerance: float = 1e-6,
    max_steps: int = 2000,
) -> Probe:
    """Fit a head to features by a task's objective, by L-BFGS in float64; for classes, multinomial logistic regression.

    Minimises mean_n l(V (z_n - m) / s + c, y_n) + ridge/2 |V|^2 over V and c, l the loss of a row. Here m is the mean
    feature, and s is the square root of the variance of an entry, averaged over entries. Since s is a single number, the
    ridge has the same effect whatever the scale of the features. The bias c has no penalty. The objective is convex;
    starting from V = 0 and c = 0, the minimum that is reached has sum_k c_k = 0. The head returned reads z itself: W = V
    / s, b = c - W m.

    Args:
        features: shape (N, d).
        labels: the targets; of classes of shape (N,), int64 in 0..classes-1, and every class must have rows, else its
            bias falls without end.
        classes: K, the number of outputs.
        objective: whose loss.
        ridge: strength of the pull to zero.
        tolerance: end where the Euclidean norm of the gradient in (V, c) is at most this; of other objectives than
            classification, whose targets may have any unit, this times the norm at V = 0, c = 0 where that is above 1.
        max_steps: end after so many iterations, with a warning.

    Raises:
        NonFiniteError: a feature is NaN or infinite.

    Cost:
        N d numbers in float64, and 4 N d K operations a step; mostly some hundred steps.

    Example:
        >>> z = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
        >>> found = probe(z, torch.tensor([0, 1, 0, 1]), 2)
        >>> found.gradient_norm <= 1e-6, bool(found.head.weight[1] > found.head.weight[0])
        (True, True)
    """
    if not torch.isfinite(features).all():
        bad = int((~torch.isfinite(features)).any(-1).sum())
        raise NonFiniteError(
            f"{bad} of {len(features)} rows have a feature that is not finite, so no head can be fitted to them. Check "
            "the model's weights and inputs."
        )
    wide = features.double().cpu().numpy()
    middle = wide.mean(0)
    spread = math.sqrt(float(((wide - middle) ** 2).mean())) or 1.0
    rowwise, units = _losses(objective, labels.cpu(), classes), (wide - middle) / spread
    if objective != Classification():  # whose gradient has no unit
        slope = rowwise(np.zeros((len(units), classes)))[1]
        broken = np.flatnonzero(~np.isfinite(slope).all(-1)).tolist()
        if broken:
            raise NonFiniteError(
                f"the loss {objective.word} of the training rows {listed([str(row) for row in broken])} has a slope "
                "that is not finite, so no head can be fitted: look at their targets."
            )
        tolerance *= max(1.0, float(np.linalg.norm(slope.T @ units)), float(np.linalg.norm(slope.sum(0))))
    found = _minimum(units, rowwise, classes, ridge, tolerance, max_steps)
    if not found["norm"] <= tolerance:
        log.warning(
            "linear probing: gradient norm %g after %d steps, above tolerance %g; allow more steps or a larger ridge",
            found["norm"], found["steps"], tolerance,
        )  # fmt: skip
    weight = found["weight"] / spread
    bias = found["bias"] - weight @ middle
    head = Head(*(torch.from_numpy(part).to(features) for part in (weight, bias)))
    return Probe(head, found["loss"], found["norm"], found["steps"])


def _losses(objective: Objective, targets: Tensor, outputs: int) -> Callable[[Any], tuple[float, Any]]:
    """The mean loss of outputs (N, K), and its gradient in them, in NumPy's float64."""
    rows = len(targets)
    if objective == Classification():
        hot = np.eye(outputs)[targets.numpy()]

        def softmax(logits: Any) -> tuple[float, Any]:
            logits -= logits.max(1, keepdims=True)
            exponents = np.exp(logits)
            totals = exponents.sum(1, keepdims=True)
            loss = float(np.log(totals).mean() - (logits * hot).sum() / rows)
            return loss, (exponents / totals - hot) / rows

        return softmax
    wide = targets.double() if targets.is_floating_point() else targets

    def general(logits: Any) -> tuple[float, Any]:
        at = torch.from_numpy(logits)
        loss = float(objective.total(at, wide)) / rows
        return loss, objective.gradients(at, wide).numpy() / rows

    return general


def _minimum(
    units: Any, rowwise: Callable[[Any], tuple[float, Any]], classes: int, ridge: float, tolerance: float,
    max_steps: int,
) -> dict[str, Any]:  # fmt: skip
    """The minimum over V and c, held as one vector: V row by row, then c."""
    _, width = units.shape

    def split(vector: Any) -> tuple[Any, Any]:
        return vector[: classes * width].reshape(classes, width), vector[classes * width :]

    def value(vector: Any) -> tuple[float, Any]:
        weight, bias = split(vector)
        loss, residual = rowwise(units @ weight.T + bias)
        loss += float(ridge / 2 * (weight**2).sum())
        gradient = np.concatenate([(residual.T @ units + ridge * weight).ravel(), residual.sum(0)])
        return loss, gradient

    start = np.zeros(classes * (width + 1))
    options = {
        "gtol": tolerance / math.sqrt(len(start)),  # scipy bounds the largest entry of the gradient
        "ftol": 0.0, "maxiter": max_steps, "maxfun": 4 * max_steps, "maxcor": _MEMORY,
    }  # fmt: skip
    result = minimize(value, start, jac=True, method="L-BFGS-B", options=options)
    weight, bias = split(result.x)
    norm = float(np.linalg.norm(result.jac))
    return {"weight": weight, "bias": bias, "loss": float(result.fun), "norm": norm, "steps": int(result.nit)}
