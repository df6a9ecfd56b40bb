"""What the solvers minimise: a loss as a function of the coefficients, in float64 from cached contributions."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.func import jvp, vmap

from tauspan.core.errors import MismatchError, NonFiniteError, UsageError, listed
from tauspan.editing.model.outputs import Targets
from tauspan.editing.search.numbers import Vector, require_at_least
from tauspan.models import Head
from tauspan.objectives import Classification
from tauspan.objectives import Objective as Loss
from tauspan.tangent.contributions import Contributions
from tauspan.tangent.engine.forward_mode import load_rules

_ROUNDING = 1e-6  # the contributions' own, in float32


@dataclass(frozen=True)
class Term:
    """sum_n w_n l(f_n(a), y_n) over the rows of one task, f(a) = V + sum_t a_t J_t and then any head.

    Its gradient is sum_n w_n g_n^T df_n/da, g_n that of the row's loss in its outputs, and where f is affine in a, its
    Hessian is sum_n w_n J_n^T H_n J_n. It is positive semi-definite where the loss is convex: the term is convex.

    Args:
        value: V, shape (N, C), float64.
        tangents: J, shape (T, N, C), float64.
        targets: y.
        weights: w, shape (N,).
        head: the normalising head between outputs and logits; None where f is affine.
        loss: l.
    """

    value: Tensor
    tangents: Tensor
    targets: Tensor
    weights: Tensor
    head: Head | None = None
    loss: Loss = Classification()

    @property
    def convex(self) -> bool:
        """Whether the term is convex in the coefficients."""
        return self.head is None and self.loss.convex

    def _local(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, K) at a, and their derivatives (T, N, K)."""
        outputs = self.value + torch.tensordot(a, self.tangents, 1)
        if self.head is None:
            return outputs, self.tangents
        head = self.head
        load_rules()
        return head(outputs), vmap(lambda along: jvp(head, (outputs,), (along,))[1])(self.tangents)

    def value_and_gradient(self, a: Tensor) -> tuple[float, Tensor]:
        """The term at a, and its gradient of shape (T,)."""
        logits, along = self._local(a)
        losses, slopes = self.loss.with_gradients(logits, self.targets)
        value = float((self.weights * losses).sum())
        return value, torch.tensordot(along, self.weights[:, None] * slopes, 2)

    def hessian(self, a: Tensor) -> Tensor:
        """The exact Hessian, shape (T, T), of an affine term."""
        logits, along = self._local(a)
        curved = self.weights[:, None] * self.loss.curvature(logits, self.targets, along)
        found: Tensor = torch.tensordot(curved, along, ([1, 2], [1, 2]))
        return (found + found.T) / 2

    def scaled(self, factor: float) -> "Term":
        """The term times a factor."""
        return replace(self, weights=self.weights * factor)

    def reweighted(self, counts: Tensor) -> "Term":
        """The term over a resample of its rows that holds row n `counts[n]` times."""
        return replace(self, weights=self.weights * counts)


def term(part: Contributions, weight: float = 1.0, targets: Targets = "label") -> Term:
    """The mean loss over contributions' rows, times a weight.

    Args:
        part: the contributions.
        weight: the factor.
        targets: `"label"`: the rows' own. `"wrong"`: those of a model that has forgotten the task; of classes, the
            uniform distribution over the other classes, which gives logsumexp(f) minus the mean wrong logit.

    Raises:
        NonFiniteError: the contributions hold NaN or infinity.
        UsageError: no rows, or `"wrong"` for an objective that has no such targets.
    """
    part = part.double()
    if not len(part):
        raise UsageError("contributions without rows have no mean loss: give a split that has rows.")
    for what, tensor in (("outputs", part.value), ("tangents", part.tangents)):
        if not bool(torch.isfinite(tensor).all()):
            raise NonFiniteError(
                f"the {what} of the contributions of {listed(part.names)} hold NaN or infinity: the model or a vector "
                "is broken; check them with `tauspan vector verify`."
            )
    part = part.folded()
    classes = part.value.shape[-1] if part.head is None else len(part.head.weight)
    weights = torch.full((len(part),), weight / len(part), dtype=torch.float64)
    tangents = part.tangents if part.head else _seen(part.tangents, part.objective)
    of = part.labels if targets == "label" else part.objective.forgotten(part.labels, classes)
    return Term(part.value, tangents, of, weights, part.head, part.objective)


def _seen(tangents: Tensor, loss: Loss) -> Tensor:
    """Tangents without what the loss does not see; a direction that is nothing else is 0, not its rounding error."""
    seen = loss.seen(tangents)
    kept = seen.flatten(1).norm(dim=1) > _ROUNDING * tangents.flatten(1).norm(dim=1)
    visible: Tensor = seen * kept[:, None, None]
    return visible


@dataclass(frozen=True)
class Objective:
    """A sum of terms over the same T coefficients, plus ridge/2 |a - centre|^2; the l1 part is the solver's."""

    terms: Sequence[Term]
    names: tuple[str, ...]
    ridge: float
    centre: Tensor

    def used(self) -> list[tuple[Tensor, Tensor, Loss]]:
        """Tangents, targets and loss of each term, over the rows that have a weight."""
        kept = [one.weights > 0 for one in self.terms]
        return [
            (one.tangents[:, rows], one.targets[rows], one.loss)
            for one, rows in zip(self.terms, kept, strict=True)
        ]

    @property
    def convex(self) -> bool:
        """Whether every term is convex in the coefficients."""
        return all(one.convex for one in self.terms)

    def loss(self, a: Vector) -> float:
        """The terms alone, without ridge."""
        return sum(one.value_and_gradient(torch.as_tensor(a))[0] for one in self.terms)

    def value_and_gradient(self, a: Vector) -> tuple[float, Vector]:
        """The objective and its gradient."""
        point = torch.as_tensor(a)
        shift = point - self.centre
        value, gradient = self.ridge / 2 * float(shift @ shift), self.ridge * shift
        for one in self.terms:
            loss, along = one.value_and_gradient(point)
            value, gradient = value + loss, gradient + along
        return value, gradient.numpy()

    def gradient(self, a: Vector) -> Vector:
        """The gradient, shape (T,)."""
        return self.value_and_gradient(a)[1]

    def hessian(self, a: Vector) -> Vector:
        """The Hessian, shape (T, T), of a convex objective."""
        point = torch.as_tensor(a)
        total = self.ridge * torch.eye(len(point), dtype=torch.float64)
        for one in self.terms:
            total = total + one.hessian(point)
        return total.numpy()

    def reweighted(self, counts: Sequence[Tensor]) -> "Objective":
        """The objective over a resample of each term's rows."""
        terms = [one.reweighted(drawn) for one, drawn in zip(self.terms, counts, strict=True)]
        return replace(self, terms=terms)


def objective(
    parts: Sequence[Contributions],
    *,
    weights: Sequence[float] | None = None,
    ridge: float = 0.0,
    centre: Sequence[float] | None = None,
) -> Objective:
    """The weighted mean loss of several tasks that share their directions."""
    if not parts:
        raise UsageError("there is nothing to minimise: give the contributions of at least one task.")
    names = parts[0].names
    for part in parts:
        if part.names != names:
            raise MismatchError(
                f"the parts share their coefficients, so they must hold the same directions in one order: "
                f"{listed(names)} and {listed(part.names)}."
            )
    shares = [1.0 / len(parts)] * len(parts) if weights is None else list(weights)
    if len(shares) != len(parts) or not all(0 <= w < float("inf") for w in shares):
        raise UsageError(f"weights={shares}: one finite number >= 0 for each of the {len(parts)} parts.")
    require_at_least(0, ridge=ridge)
    middle = torch.as_tensor([0.0] * len(names) if centre is None else list(centre), dtype=torch.float64)
    if middle.shape != (len(names),) or not bool(torch.isfinite(middle).all()):
        raise UsageError(f"centre={centre}: one finite number for each of the {len(names)} directions.")
    terms = [term(part, weight) for part, weight in zip(parts, shares, strict=True)]
    return Objective(terms, names, ridge, middle)
