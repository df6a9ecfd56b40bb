"""Penalties of tau alone, which read no rows while training."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tauspan.core.arguments import checked
from tauspan.core.errors import BaseMismatchError, MismatchError, UsageError, listed
from tauspan.drift.factors import Factors, require_each_once
from tauspan.drift.measure import measured_drift, tangent_drift
from tauspan.drift.others import Others, require_apart, require_others
from tauspan.models import fingerprint_of
from tauspan.tasks import Task
from tauspan.train.penalty import Penalty, Term, Training


@checked
@dataclass(frozen=True, eq=False)
class Factored(Penalty):
    """Drift by curvature factors: weight / 2 times the mean over their tasks of tau^T G_s tau; training reads no rows.

    A set that is merged of n tasks counts n times, so that `Factored([merged([a, b]), c])` asks as much of each task.
    The weight is in units of exact drift, so it means the same for any length and width: with exact curvature this would
    be `Exact` in the tangent regime. How far it is from that is measured on the finished vector where `others` are given:
    `info["penalty"]["ratio"]` has, for each set, tau^T G tau over the mean of E |J_s tau|^2 over the set's tasks, on at
    most 64 rows of each. `"drift"` is how far the trained model's outputs moved on these rows. Where that is not J tau,
    which is in the ordinary regime and at the point `"encoder"`, `"tangent"` is E |J_s tau|^2.

    Args:
        factors: of the tasks whose rows are not to move, one set for each, or merged ones.
        weight: of the penalty beside the mean loss of the step.
        others: the tasks that the factors are of, each once, in any order, if the ratio is to be measured.

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
        count = sum(found.count for found in self.factors)
        if self.others and len(self.others) != count:
            raise UsageError(
                f"factors of {count} tasks and {len(self.others)} other tasks: give the tasks of each set, or none."
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
        require_apart(
            run.tasks, [said for found in self.factors for said in found.facts["tasks"]], "Factored"
        )
        for found in self.factors:
            if found.base != base:
                raise BaseMismatchError(
                    f"{found!r} are of the model {found.base[:12]}, and {base[:12]} is trained: compute them anew."
                )
            _require_fitting(found, run)
        if self.others:
            self._require_matched()
        total = sum(found.count for found in self.factors)

        def term(step: int) -> torch.Tensor:
            tau = run.tau()
            each = torch.stack([found.count * found.drift(tau) for found in self.factors])
            return self.weight / 2 * (each.sum() / total)

        return term

    def _require_matched(self) -> None:
        """Raise `UsageError` unless the other tasks are those of the factors, by the names that these say."""
        require_others(self.others)
        known = [name for found in self.factors for name in found.names]
        for task in self.others:
            if task.name not in known:
                raise UsageError(
                    f"0 sets of factors are of the other task {task.name!r}, among {listed(map(repr, self.factors))}: "
                    "give the tasks that they are of, or leave `others` out."
                )

    def measured(self, run: Training) -> Mapping[str, Any]:
        """Drift, and for each set the approximate over the exact one, on rows of the tasks that are known."""
        if not self.others:
            return {}
        others = Others(run.encoder, self.others, run.settings)
        moved = measured_drift(run, others)
        tangent = run.settings.regime == "linear" and run.settings.point in (None, "logits")
        exact = moved if tangent else tangent_drift(run, others)
        ratio = {}
        with torch.no_grad():
            tau = run.tau()
            for found in self.factors:
                mean = sum(exact[name] for name in found.names) / found.count
                ratio[", ".join(found.names)] = float(found.drift(tau)) / mean if mean else None
        return {"drift": moved, **({} if tangent else {"tangent": exact}), "ratio": ratio}


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
