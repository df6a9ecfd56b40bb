"""How wrong an edit can be on rows like these: bounds of its error rate that hold with a given probability."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import brentq
from scipy.stats import beta
from torch import Tensor

from tauspan.core.choices import EditRegime, SplitName
from tauspan.core.errors import UsageError, listed
from tauspan.core.report import Cell, Report, Table
from tauspan.core.results import Result
from tauspan.editing.model.chosen import facts_of
from tauspan.editing.model.edited import EditedModel
from tauspan.tasks import Task

_LEAST_ROWS = 8  # Maurer's inequality
_WIDTHS = 33


@dataclass(frozen=True)
class CertifiedTask:
    """One task.

    Args:
        task: its name.
        rows: how many decided the bound.
        error: the share of them that the edit at its coefficients gets wrong.
        drawn: the expected share with coefficients drawn around them; equal to `error` where nothing is drawn.
        bound: with the certificate's probability, the error rate of drawn coefficients is at most this.
        chance: the error rate of guessing one class.
    """

    task: str
    rows: int
    error: float
    drawn: float
    bound: float
    chance: float

    def cells(self) -> dict[str, Cell]:
        """The row of the table."""
        return {
            "task": self.task, "rows": self.rows, "error": self.error, "drawn": self.drawn, "bound": self.bound,
            "chance": self.chance,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Certificate(Result):
    """Bounds of error rates on new rows that come from where these come from.

    Args:
        regime: of the edit.
        level: all bounds hold together with this probability, over the draw of the rows.
        coefficients: of the edit.
        width: the standard deviation of coefficients drawn around them; 0 where nothing is drawn.
        divergence: KL(drawn | prior), in nats.
        tasks: the bounds.
    """

    regime: EditRegime
    level: float
    coefficients: Mapping[str, float]
    width: float
    divergence: float
    tasks: Sequence[CertifiedTask]

    @property
    def verdict(self) -> str:
        """Whether every bound says something."""
        empty = [one.task for one in self.tasks if one.bound >= one.chance]
        if empty:
            return f"No better than guessing is certified for {listed(empty)}: give more rows."
        worst = max(self.tasks, key=lambda one: one.bound)
        return (
            f"All error rates are at most {worst.bound:.3f} ({worst.task}), with probability {self.level:g}."
        )

    def report(self) -> Report:
        """A row for each task."""
        how = (
            "fixed before the rows were read: exact binomial bounds"
            if not self.width
            else f"drawn around the coefficients with standard deviation {self.width:.3g}: PAC-Bayes bounds, KL "
            f"{self.divergence:.3g} nats"
        )
        note = f"{how}; all hold together with probability {self.level:g} over the draw of the rows"
        title = f"Certified error rates, {self.regime}"
        return Report(
            title,
            [Table(title, [one.cells() for one in self.tasks], note)],
            dict(self.provenance),
            verdict=self.verdict,
        )


def certified(
    model: EditedModel, tasks: Sequence[Task], coefficients: Mapping[str, float], prior: Mapping[str, float],
    spread: float, level: float, split: SplitName,
) -> Certificate:  # fmt: skip
    """The certificate of an edit; without a draw where the coefficients are those of the prior."""
    _require(model, tasks, coefficients != prior, split)
    confidence = (1 - level) / len(tasks)
    model.read({task: list(coefficients) for task in tasks}, split)
    errors = {task: 1 - model.metric(task, split, coefficients) for task in tasks}
    sizes = {task: len(task.split(split)) for task in tasks}
    if coefficients == prior:
        bounds = {task: fixed_bound(errors[task], sizes[task], confidence) for task in tasks}
        best = Drawn(0.0, 0.0, errors, bounds)
    else:
        margins = {task: margins_of(model, task, coefficients, split) for task in tasks}
        away = sum((coefficients[name] - prior[name]) ** 2 for name in coefficients)
        best = best_drawn(margins, len(coefficients), away, spread, confidence)
    rows = [
        CertifiedTask(
            task.name,
            sizes[task],
            errors[task],
            best.errors[task],
            best.bounds[task],
            1 - 1 / len(task.label_names),
        )
        for task in tasks
    ]
    facts = facts_of(model, [], level=level, split=split, prior=dict(prior), spread=spread)
    return Certificate(
        regime=model.regime, level=level, coefficients=dict(coefficients), width=best.width,
        divergence=best.divergence,
        tasks=rows, provenance=facts,
    )  # fmt: skip


def _require(model: EditedModel, tasks: Sequence[Task], searched: bool, split: str) -> None:
    other = [f"{task.name} ({task.objective.word})" for task in tasks if not task.classes]
    if other:
        raise UsageError(f"{listed(other)}: error rates are of tasks with classes.")
    if not searched:
        return
    bent = [task.name for task in tasks if not model.affine(task)]
    if model.regime == "standard" or bent:
        raise UsageError(
            f"regime {model.regime!r}: logits are not known to be affine in the coefficients, so drawn ones have no "
            "exact error. Certify coefficients that were fixed before these rows were read, with prior equal to them; or "
            "take a tangent regime at the point 'logits'."
        )
    few = [task.name for task in tasks if len(task.split(split)) < _LEAST_ROWS]
    if few:
        raise UsageError(
            f"{listed(few)}: fewer than {_LEAST_ROWS} rows in {split!r}: the bound needs that many."
        )


def margins_of(
    model: EditedModel, task: Task, coefficients: Mapping[str, float], split: str
) -> tuple[Tensor, Tensor]:
    """By row and wrong class, the margin at the coefficients, and the norm of its slope; shape (N, C - 1) each."""
    logits = model.logits(task, split, coefficients).double()
    start = model.logits(task, split, {}).double()
    slopes = torch.stack([model.logits(task, split, {name: 1.0}).double() - start for name in coefficients])
    labels = model.targets(task, split)
    wrong = torch.ones_like(logits, dtype=torch.bool).scatter_(1, labels[:, None], value=False)
    count = logits.shape[1] - 1
    margins = (logits.gather(1, labels[:, None]) - logits)[wrong].view(-1, count)
    at = labels[None, :, None].expand(len(slopes), -1, 1)
    apart = (slopes.gather(2, at) - slopes)[wrong.expand(len(slopes), -1, -1)].view(len(slopes), -1, count)
    return margins, apart.norm(dim=0)


@dataclass(frozen=True)
class Drawn:
    """How coefficients are drawn, their divergence from the prior, and by task their error and its bound."""

    width: float
    divergence: float
    errors: Mapping[Task, float]
    bounds: Mapping[Task, float]


def best_drawn(
    margins: Mapping[Task, tuple[Tensor, Tensor]], count: int, away: float, spread: float, confidence: float
) -> Drawn:
    """The width, of a grid up to `spread`, whose bounds have the least sum.

    Args:
        margins: by task, what `margins_of` gives.
        count: how many coefficients there are.
        away: their squared distance from the prior's.
        spread: the prior's standard deviation.
        confidence: the probability with which the bound of one task may be broken.
    """
    found = []
    for width in (spread * 10 ** (-3 + 3 * place / (_WIDTHS - 1)) for place in range(_WIDTHS)):
        gap = divergence_of(count, away, width, spread)
        errors = {task: drawn_error(*own, width) for task, own in margins.items()}
        bounds = {
            task: drawn_bound(errors[task], gap, len(own[0]), confidence) for task, own in margins.items()
        }
        found.append(Drawn(width, gap, errors, bounds))
    return min(found, key=lambda one: sum(one.bounds.values()))


def drawn_error(margins: Tensor, slopes: Tensor, width: float) -> float:
    """The expected share of wrong rows with coefficients from N(a, width^2); of more than two classes a bound of it.

    A margin is Gaussian with standard deviation width |slope|, so a wrong class wins with probability
    Phi(-margin / (width |slope|)); of several wrong classes the sum is an upper bound, at most 1.
    """
    scale = (width * slopes).clamp(min=1e-300)
    chances = torch.special.ndtr(-margins / scale)
    return float(chances.sum(1).clamp(max=1).mean())


def divergence_of(count: int, away: float, width: float, spread: float) -> float:
    """KL(N(a, width^2 I) | N(prior, spread^2 I)) in nats, `away` being |a - prior|^2."""
    ratio = (width / spread) ** 2
    return 0.5 * (count * (ratio - 1 - math.log(ratio)) + away / spread**2)


def drawn_bound(error: float, divergence: float, rows: int, confidence: float) -> float:
    """The largest rate R with kl(error | R) <= (KL + ln(2 sqrt(n) / confidence)) / n (Maurer 2004)."""
    return inverted(error, (divergence + math.log(2 * math.sqrt(rows) / confidence)) / rows)


def fixed_bound(error: float, rows: int, confidence: float) -> float:
    """The exact binomial upper bound (Clopper and Pearson) of the rate of a model that was fixed before."""
    wrong = round(error * rows)
    return 1.0 if wrong >= rows else float(beta.ppf(1 - confidence, wrong + 1, rows - wrong))


def inverted(error: float, budget: float) -> float:
    """The largest rate R in [error, 1] with kl(error | R) <= budget, for Bernoulli variables.

    Example:
        >>> round(inverted(0.1, 0.064), 3), inverted(1.0, 0.1)
        (0.239, 1.0)
    """
    if error >= 1:
        return 1.0

    def over(rate: float) -> float:
        known = error * math.log(error / rate) if error else 0.0
        return known + (1 - error) * math.log((1 - error) / (1 - rate)) - budget

    top = 1 - 1e-15
    return 1.0 if over(top) < 0 else float(brentq(over, max(error, 1e-15), top, xtol=1e-12))
