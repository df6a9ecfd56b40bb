"""`discover`: rounds of training from one base, each on the rows that earlier rounds have right or wrong, as vectors."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from tauspan.core.arguments import checked
from tauspan.core.errors import UsageError
from tauspan.core.reading import Reading
from tauspan.core.records import LIVE
from tauspan.core.report import Cell, Report, Table, noted, provenance
from tauspan.core.results import Result
from tauspan.editing.model.directions import Directions
from tauspan.editing.model.kinds import edited_model
from tauspan.models import Encoder, fingerprint_of
from tauspan.tasks import Task
from tauspan.train import finetune
from tauspan.train.settings import Settings
from tauspan.train.weights import WorstGroup
from tauspan.vector import TaskVector, cosine_matrix

log = logging.getLogger(__name__)
_EARLY = 0.1  # the share of steps after which round 0 ends


@dataclass(frozen=True, kw_only=True)
class Discovered(Result):
    """Rounds of discovery on one task.

    Args:
        task: its name.
        vectors: by round, from `round 0`; all are of the base that was given, so any rule of `tauspan.merge` takes them.
        right: by round, which training rows it has right, shape (N,), bool.
        accuracy: by round, on validation rows.
    """

    task: str
    vectors: Mapping[str, TaskVector] = field(repr=False)
    right: Mapping[str, Tensor] = field(repr=False, metadata=LIVE)
    accuracy: Mapping[str, float]

    @property
    def groups(self) -> dict[str, list[int]]:
        """By name, the training rows that a round has right, or wrong; empty groups are left out."""
        found = {
            f"{name} {word}": (rows if word == "right" else ~rows).nonzero().flatten().tolist()
            for name, rows in self.right.items()
            for word in ("right", "wrong")
        }
        return {name: rows for name, rows in found.items() if rows}

    @property
    def verdict(self) -> str:
        """What round 1 has right of what round 0 has wrong."""
        if len(self.right) < 2:
            return "There is one round: nothing was found beside it."
        first, second = list(self.right.values())[:2]
        caught, kept = (float(second[rows].double().mean()) for rows in (~first, first))
        return (
            f"Round 1 has right {caught:.3f} of the rows that round 0 has wrong, and {kept:.3f} of those that it has "
            "right."
        )

    def report(self) -> Report:
        """Each round with its accuracies, on all rows and by group; then the cosines of the vectors."""
        groups = self.groups
        rows: list[dict[str, Cell]] = [
            {
                "round": name, "validation": self.accuracy[name], "training": float(right.double().mean()),
                **{group: float(right[places].double().mean()) for group, places in groups.items()},
            }
            for name, right in self.right.items()
        ]  # fmt: skip
        sizes = ", ".join(f"{name} {len(places)}" for name, places in groups.items())
        note = f"Accuracy on validation rows, on training rows, and on each group of training rows: {sizes}."
        cosines = cosine_matrix(list(self.vectors.values())).tolist()
        between: list[dict[str, Cell]] = [
            {"round": name, **dict(zip(self.vectors, row, strict=True))}
            for name, row in zip(self.vectors, cosines, strict=True)
        ]
        tables = [Table("Rounds", rows, note), Table("Cosines of the vectors", between)]
        return Report(
            f"Rounds of discovery on {self.task}", tables, dict(self.provenance),
            warnings=self.warnings, verdict=self.verdict,
        )  # fmt: skip


@checked
@noted
def discover(
    encoder: Encoder,
    task: Task,
    settings: Settings = Settings(),
    rounds: int = 2,
    *,
    first: Settings | None = None,
    rate: float = WorstGroup.rate,
) -> Discovered:
    """Vectors that use different features of the rows, one for each round.

    Round 0 is fine-tuning that is stopped early. The training rows are divided into those that it has right and those
    that it has wrong. Round k starts from the same base and minimises the largest mean loss of all groups that rounds 0
    to k - 1 made (`WorstGroup`), so that what those rounds used does not help it. This is the discovery of Zhang,
    Lopez-Paz and Bottou, "Rich Feature Construction for the Optimization-Generalization Dilemma", ICML 2022 (arXiv
    2203.15516). There each round is a new net, and one net is distilled from all; here each is a vector of one base,
    and vectors are merged.

    Args:
        encoder: what `tauspan.load` returned.
        task: of classes.
        settings: of rounds 1 and later, in either regime.
        rounds: how many, round 0 included.
        first: of round 0, in the same regime; None takes `settings` with a tenth of the steps.
        rate: of the groups' weights; see `WorstGroup`.

    Returns:
        A `Discovered`. Fewer rounds, with a warning, if a round has no row wrong: there is no new group then.

    Raises:
        UsageError: fewer than two rounds, a task without classes, or settings of two regimes.

    Cost:
        A fine-tuning and a pass over the training rows for each round.

    Example:
        >>> import torch, tauspan as ts
        >>> from tauspan.sequence import discover
        >>> x, y = torch.eye(4).repeat(4, 1), torch.arange(16) % 2
        >>> task = ts.Task.from_tensors("parity", ["even", "odd"], train=(x, y), validation=(x, y), test=(x, y))
        >>> found = discover(ts.load(torch.nn.Linear(4, 3)), task, ts.Settings("standard", epochs=10))
        >>> merged = ts.merge(list(found.vectors.values()), "ties")
        >>> list(found.vectors), merged.regime
        (['round 0', 'round 1'], 'standard')
    """
    steps = settings.steps(len(task.split("train")))
    early = first or replace(settings, max_steps=max(1, math.ceil(_EARLY * steps)))
    _require(task, rounds, settings, early)
    reading = Reading(batch_size=settings.batch_size, max_tokens=settings.max_tokens)
    vectors: dict[str, TaskVector] = {}
    right: dict[str, Tensor] = {}
    accuracy: dict[str, float] = {}
    for number in range(rounds):
        name = f"round {number}"
        groups = [
            rows.nonzero().flatten().tolist()
            for one in right.values()
            for rows in (one, ~one)
            if bool(rows.any())
        ]
        run = finetune(encoder, task, settings if number else early,
                       weights=WorstGroup(groups, rate) if number else None)  # fmt: skip
        vectors[name] = replace(run.task_vector, label=name)
        model = edited_model(encoder, Directions.whole({name: vectors[name]}), settings.regime, reading)
        right[name] = model.scores(task, "train", {name: 1.0}).bool()
        accuracy[name] = model.metric(task, "validation", {name: 1.0})
        if bool(right[name].all()) and number < rounds - 1:
            log.warning(
                "%s has no row of %s wrong: rounds after it would find nothing to do.", name, task.name
            )
            break
    return Discovered(
        task=task.name, vectors=vectors, right=right, accuracy=accuracy,
        provenance=provenance(base=fingerprint_of(encoder), seed=settings.seed, rate=rate,
                              settings=settings.as_dict(), first=early.as_dict()),
    )  # fmt: skip


def _require(task: Task, rounds: int, settings: Settings, first: Settings) -> None:
    """Raise unless there can be rounds."""
    if rounds < 2:
        raise UsageError(f"rounds={rounds}: round 0 is plain training, so discovery takes two or more.")
    if not task.classes:
        raise UsageError(
            f"task {task.name!r} is {task.objective.word}, and rows are right or wrong where they have classes."
        )
    if first.regime != settings.regime:
        raise UsageError(
            f"first is of the regime {first.regime!r}, and settings of {settings.regime!r}: vectors of two regimes do "
            "not add. Take one."
        )
