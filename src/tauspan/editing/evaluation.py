"""`evaluate`: metric and loss of a model, edited or not, on tasks."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from tauspan.core.arguments import checked
from tauspan.core.choices import EditRegime, SplitName
from tauspan.core.errors import UsageError
from tauspan.core.measure import progress
from tauspan.core.processes import world
from tauspan.core.reading import Reading
from tauspan.core.report import Cell, Report, Table, noted, provenance
from tauspan.core.results import Result, mean_row
from tauspan.editing.model.directions import Directions
from tauspan.editing.model.edited import Coefs, EditedModel
from tauspan.editing.model.kinds import edited_model
from tauspan.editing.model.regime import edit_regime
from tauspan.editing.model.saved import facts
from tauspan.editing.search.bootstrap import DRAWS, Interval, bracketed, metric_intervals
from tauspan.models import Classifier, Encoder
from tauspan.objectives import Classification
from tauspan.tangent import Linearized
from tauspan.tasks import Task
from tauspan.tasks.assembly import told
from tauspan.vector import TaskVector

_INTERVALS = "95 %: over rows, the model fixed; another training may differ by more."


@dataclass(frozen=True)
class TaskScore:
    """One task.

    Args:
        task: its name, or `mean` for the mean over tasks.
        value: the metric; of classes accuracy, the share of rows whose largest logit is the label's.
        loss: the mean loss of a row; of classes cross-entropy in nats.
        rows: how many.
        metric: the metric's name.
        interval: 95 % for the metric, over such rows: of accuracy the exact one, of other metrics by resampling; None
            where it was not computed.
    """

    task: str
    value: float
    loss: float
    rows: int
    metric: str = Classification.metric
    interval: Interval | None = None

    @property
    def accuracy(self) -> float:
        """The accuracy.

        Raises:
            UsageError: the task is measured by another metric.
        """
        if self.metric != Classification.metric:
            raise UsageError(f"{self.task!r} is measured by {self.metric}: its number is `value`.")
        return self.value

    def cells(self) -> dict[str, Cell]:
        """The row of the table."""
        return {
            "task": self.task, self.metric: self.value, "95 %": bracketed(self.interval), "loss": self.loss,
            "rows": self.rows,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Evaluation(Result):
    """Metric and loss of a model on tasks.

    Args:
        label: which model.
        split: which rows.
        tasks: a score for each task.
        mean: the means over tasks, with the sum of rows; None without tasks, and for tasks of several metrics.
        note: what the tasks' readers left out.
    """

    label: str
    split: SplitName
    tasks: Sequence[TaskScore]
    mean: TaskScore | None
    note: str = field(default="", repr=False)

    @property
    def accuracy(self) -> dict[str, float]:
        """Accuracies by task name.

        Raises:
            UsageError: a task is measured by another metric; `metrics` holds those.
        """
        return {score.task: score.accuracy for score in self.tasks}

    @property
    def metrics(self) -> dict[str, float]:
        """The metric's value by task name."""
        return {score.task: score.value for score in self.tasks}

    def report(self) -> Report:
        """One table."""
        scores = [*self.tasks, *([self.mean] if self.mean is not None and len(self.tasks) > 1 else [])]
        means = {} if self.mean is None else {self.mean.metric: self.mean.value, "loss": self.mean.loss}
        note = " ".join(filter(None, [_INTERVALS if scores else "", self.note]))
        table = Table(self.label, [score.cells() for score in scores], note)
        names = list(dict.fromkeys(score.metric for score in self.tasks))
        values = {
            name: {score.task: score.value for score in self.tasks if score.metric == name} for name in names
        }
        result = {**(values or {Classification.metric: {}}), "mean": means}
        named = " and ".join(names or [Classification.metric])
        title = f"{named[:1].upper()}{named[1:]} on {self.split}"
        return Report(title, [table], dict(self.provenance), result=result, warnings=self.warnings)


@noted
@checked
def evaluate(
    encoder: Encoder | Linearized,
    tasks: Sequence[Task],
    vector: TaskVector | None = None,
    scale: float = 1.0,
    regime: EditRegime | None = None,
    split: SplitName = "test",
    *,
    reading: Reading = Reading(),
) -> Evaluation:
    """Metric and loss on each task, under its frozen head from the pre-trained encoder.

    Of classes these are accuracy and cross-entropy.

    Args:
        encoder: the pre-trained encoder, or an edited one that `apply` or `load` returned, whose heads are those of the
            pre-trained one that it was made from.
        tasks: what to evaluate on.
        vector: the edit; None evaluates the encoder as it is (zero-shot).
        scale: the coefficient alpha of the edit.
        regime: `"standard"`, `"posthoc"` (a standard vector in the tangent model) or `"linear"`; None takes
            the vector's own.
        split: which rows.
        reading: batches, where texts are cut, and the point of the tangent model; see `tauspan.Reading`.

    Returns:
        An `Evaluation`: a score for each task, their mean, and `accuracy` by task name. Several processes share the
        batches, and each returns the whole.

    Raises:
        UsageError: a vector for a tangent model, which has its own.
        MismatchError: several processes were started with different models, edits or data.
        NonFiniteError: a row's logits are NaN or infinite; it is never counted as a class.
    """
    if isinstance(encoder, Linearized):
        if vector is not None:
            raise UsageError(
                "`vector` (--vector) edits a pre-trained model, and this is an edited tangent model, which has its own: "
                "leave it out, or give the model that both start from."
            )
        reading = replace(reading, point=reading.point or encoder.head_point)
        vector = encoder.task_vector(encoder.label)
        encoder = base_encoder(encoder)
    if vector is None:
        chosen, label = None, _unedited(encoder)
        model = edited_model(encoder, Directions.whole({}), "standard", reading)
    else:
        chosen = edit_regime(vector, regime)
        label = f"{vector.label} x {scale:g}, {chosen}"
        model = edited_model(encoder, Directions.whole({vector.label: vector}), chosen, reading)
    edit = "none" if vector is None else f"{vector.norm():.17g} x {scale!r}, {chosen}"
    coefficients = {} if vector is None else {vector.label: scale}
    return measured_on(model, tasks, coefficients, split, label, edit, scale)


def measured_on(
    model: EditedModel, tasks: Sequence[Task], coefficients: Coefs, split: SplitName, label: str, edit: str,
    scale: float | None = None,
) -> Evaluation:  # fmt: skip
    """The scores of an edited model at some coefficients; `edit` must be the same text in all processes."""
    total = sum(len(task.split(split)) for task in tasks)
    scores: dict[Task, TaskScore] = {}
    by_row: dict[Task, Tensor] = {}
    with world() as processes, progress("evaluate", total, processes.first) as advance:
        if processes.size > 1:
            sums = " ".join(task.checksum()[:12] for task in tasks)
            compared = {
                "the base's fingerprint": model.fingerprint[:12],
                "the tasks' checksums": sums,
                "the edit": edit,
            }
            processes.require_same({**compared, "the split": split})
        for task in tasks:
            logits = model.logits(task, split, coefficients, advance)
            labels, by = model.targets(task, split), model.objective(task, coefficients)
            loss = float(by.losses(logits, labels).mean())
            by_row[task] = by.scores(logits, labels)
            scores[task] = TaskScore(task.name, by.value(logits, labels), loss, len(labels), by.metric)
    about = provenance(
        base=model.encoder.source, fingerprint=model.fingerprint, split=split,
        **({} if scale is None else {"scale": scale}), **facts(model.encoder),
    )  # fmt: skip
    each, whole = metric_intervals(by_row, DRAWS) if by_row else ({}, None)
    found = [replace(score, interval=each[task]) for task, score in scores.items()]
    kinds = {score.metric for score in found}
    mean = None
    if len(kinds) == 1:
        rows = sum(score.rows for score in found)
        mean = replace(mean_row(found), rows=rows, metric=kinds.pop(), interval=whole)
    return Evaluation(
        label=label, split=split, tasks=found, mean=mean, note=left_out(tasks), provenance=about
    )


def _unedited(encoder: Encoder) -> str:
    if encoder.origin is None:
        return "pre-trained"
    return f"edited: {encoder.edit}, heads of {encoder.origin.source}"


def left_out(tasks: Sequence[Task]) -> str:
    """What the tasks' readers left out, as words."""
    found = {task.name: task.extra["left_out"] for task in tasks if "left_out" in task.extra}
    return " ".join(f"Left out of {name}: {told(counts)}." for name, counts in found.items())


def base_encoder(tangent: Linearized) -> Encoder:
    """The encoder that a tangent model stands on."""
    base = tangent.base.encoder if isinstance(tangent.base, Classifier) else tangent.base
    if not isinstance(base, Encoder):
        raise UsageError(
            f"a linearised {type(base).__name__} has no encoder to read a task with; use tauspan.load."
        )
    return base
