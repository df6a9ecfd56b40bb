"""Penalties of tau alone, which read no rows while training."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tauspan.core.arguments import checked
from tauspan.core.errors import BaseMismatchError, MismatchError, UsageError, listed
from tauspan.drift.factors import Factors, require_each_once
from tauspan.drift.measure import measured_drift
from tauspan.drift.others import Others, require_others
from tauspan.models import fingerprint_of
from tauspan.tasks import Task
from tauspan.train.penalty import Penalty, Term, Training


@checked
@dataclass(frozen=True, eq=False)
class Factored(Penalty):
    """Drift by curvature factors: weight / 2 times the mean over their tasks of tau^T G_s tau; training reads no rows.

    A set that is merged of n tasks counts n times, so that `Factored([merged([a, b]), c])` asks as much of each task.
    The weight is in units of exact drift, so it means the same for any length and width: with exact curvature this would
    be `Exact`. How far it is from that is measured on the finished vector where `others` are given: the approximate value
    over the exact one is in the vector's `info["penalty"]["ratio"]`.

    Args:
        factors: of the tasks whose rows are not to move, one set for each, or a merged one.
        weight: of the penalty beside the mean loss of the step.
        others: the tasks that the factors are of, in any order, if the ratio is to be measured.

    Cost:
        Two products of the size of each weight for each set of factors, whatever the rows.

    Example:
        >>> import torch, tauspan as ts
        >>> from tauspan.drift import Factored, factors
        >>> x, y = torch.eye(4).repeat(4, 1), torch.arange(4).repeat(4)
        >>> parity, half = [
        ...     ts.Task.from_tensors(name, ["no", "yes"], train=(x, y), validation=(x, y), test=(x, y))
        ...     for name, y in [("parity", y % 2), ("half", y // 2)]
        ... ]
        >>> encoder = ts.load(torch.nn.Linear(4, 3))
        >>> penalty = Factored([factors(encoder, half)], weight=0.1, others=[half])
        >>> sorted(ts.finetune(encoder, parity, penalty=penalty).task_vector.info["penalty"]["ratio"])
        ['half']
    """

    factors: Sequence[Factors]
    weight: float = 1.0
    others: Sequence[Task] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.weight < float("inf"):
            raise UsageError(f"weight={self.weight}: it must be 0 or more.")
        if not self.factors:
            raise UsageError(
                "no factors are given: `tauspan.drift.factors(encoder, task)` computes those of a task."
            )
        require_each_once(self.factors)
        if self.others and len(self.others) != len(self.factors):
            raise UsageError(
                f"{len(self.factors)} sets of factors and {len(self.others)} other tasks: give the task of each set, or "
                "none."
            )

    def facts(self) -> Mapping[str, Any]:
        """The weight, and what the factors are of."""
        sums = [
            hashlib.sha256(repr([(name, float(one.double().sum())) for name, block in found.blocks.items()
                                 for one in block.tensors().values()]).encode()).hexdigest()[:16]
            for found in self.factors
        ]  # fmt: skip
        counts = [found.count for found in self.factors]
        counted = {} if len(set(counts)) == 1 else {"counts": counts}
        return {
            "kind": type(self).__name__, "weight": self.weight, "factors": [dict(found.facts) for found in self.factors],
            "checksums": sums, **counted,
        }  # fmt: skip

    def begun(self, run: Training) -> Term:
        """The same function at each step."""
        base = fingerprint_of(run.encoder)
        for found in self.factors:
            if found.base != base:
                raise BaseMismatchError(
                    f"{found!r} are of the model {found.base[:12]}, and {base[:12]} is trained: compute them anew."
                )
            _require_fitting(found, run)
        if self.others:
            self._matched()
        total = sum(found.count for found in self.factors)

        def term(step: int) -> torch.Tensor:
            tau = run.tau()
            each = torch.stack([found.count * found.drift(tau) for found in self.factors])
            return self.weight / 2 * (each.sum() / total)

        return term

    def _matched(self) -> list[Factors]:
        """The factors of each of the other tasks, by the names that they say.

        Raises:
            UsageError: a task that no set of factors, or more than one, is of, or two tasks of one name.
        """
        require_others(self.others)
        matched = []
        for task in self.others:
            own = [
                one for one in self.factors if {said["name"] for said in one.facts["tasks"]} == {task.name}
            ]
            if len(own) != 1:
                raise UsageError(
                    f"{len(own)} sets of factors are of the other task {task.name!r} alone, among "
                    f"{listed(map(repr, self.factors))}: give one for each of the other tasks, or leave `others` out."
                )
            matched += own
        return matched

    def measured(self, run: Training) -> Mapping[str, Any]:
        """Exact drift, and the approximate over it, on rows of each task that is known."""
        if not self.others:
            return {}
        exact = measured_drift(run, Others(run.encoder, self.others, run.settings))
        with torch.no_grad():
            tau = run.tau()
            near = [float(found.drift(tau)) for found in self._matched()]
        pairs = zip(exact.items(), near, strict=True)
        return {
            "drift": exact,
            "ratio": {name: one / value if value else None for (name, value), one in pairs},
        }


def _require_fitting(found: Factors, run: Training) -> None:
    """Raise `MismatchError` if the factors are of other parameters than those that the run moves."""
    try:
        found.drift(run.tau())
    except (MismatchError, RuntimeError) as error:  # another rank has the same names
        space = run.encoder.space
        if space is None:
            raise
        word = "..." if space.word == "own" else repr(space.word)
        raise MismatchError(
            f"{found!r} are of {listed(found.blocks, 3)}, and the run moves {listed(run.tau(), 3)}, in the space "
            f"{str(space)!r}: compute them of that encoder, `tauspan.restrict(encoder, {word})`."
        ) from error


@checked
@dataclass(frozen=True, eq=False)
class Orthogonal(Penalty):
    """Equal singular values: weight times the mean over matrices of |dW^T dW - c I| (OrthoReg, arXiv 2604.17078).

    It needs no data, and is no drift: it spreads an update over many directions. The published code takes the norm, not
    its square, with c = 1, which makes updates long; c small keeps them short. Look at the accuracy of the single vector
    too. The smaller of dW^T dW and dW dW^T is taken.

    Args:
        weight: of the penalty.
        scale: c, the square of the wanted singular values.
        squared: the square of the norm, as the paper writes it.

    Cost:
        A product of the smaller side squared times the larger for each matrix.
    """

    weight: float = 1.0
    scale: float = 1.0
    squared: bool = False

    def __post_init__(self) -> None:
        if not (0 <= self.weight < float("inf") and 0 <= self.scale < float("inf")):
            raise UsageError(f"weight={self.weight}, scale={self.scale}: both must be 0 or more.")

    def facts(self) -> Mapping[str, Any]:
        """The settings."""
        return {
            "kind": type(self).__name__,
            "weight": self.weight,
            "scale": self.scale,
            "squared": self.squared,
        }

    def begun(self, run: Training) -> Term:
        """The same function at each step."""
        if not any(delta.dim() == 2 for delta in run.tau().values()):
            raise UsageError("no parameter that moves is a matrix: choose others by `params`.")

        def term(step: int) -> torch.Tensor:
            parts = []
            for delta in run.tau().values():
                if delta.dim() == 2:
                    gram = delta @ delta.T if delta.shape[0] <= delta.shape[1] else delta.T @ delta
                    rest = gram - self.scale * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
                    square = rest.square().sum()
                    parts.append(square if self.squared else square.clamp(min=1e-24).sqrt())
            return self.weight * torch.stack(parts).mean()

        return term
