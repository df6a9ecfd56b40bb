"""`continual`: tasks one after another under several protocols, with what is learnt, forgotten and kept in memory."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tauspan.core.arguments import checked
from tauspan.core.choices import EditRegime, SplitName
from tauspan.core.errors import UsageError, listed, nearest
from tauspan.core.measure import measured, progress
from tauspan.core.reading import Reading
from tauspan.core.report import Cell, Report, Table, in_words, noted, provenance
from tauspan.core.results import Result, mean
from tauspan.editing.evaluation import evaluate
from tauspan.editing.model.directions import Directions
from tauspan.editing.model.kinds import edited_model
from tauspan.editing.model.regime import edit_regime
from tauspan.models import Encoder, fingerprint_of
from tauspan.sequence.course import Course, FeatureMap, Learned
from tauspan.sequence.options import Options
from tauspan.sequence.protocols import PROTOCOLS
from tauspan.tasks import Task
from tauspan.train.settings import Settings
from tauspan.vector import TaskVector


@dataclass(frozen=True)
class Run:
    """One protocol over the sequence.

    Args:
        protocol: its name in `PROTOCOLS`.
        accuracies: after each task, the accuracy on every task, in the order of the sequence.
        memory: bytes kept beside the pre-trained model after the last task, by what they are: weights, rows or the
            Gaussians of their classes, places of entries, a solved system.
        seconds: of learning, evaluation apart.
    """

    protocol: str
    accuracies: Sequence[Sequence[float]]
    memory: Mapping[str, int]
    seconds: float

    @property
    def average(self) -> float:
        """The mean accuracy over all tasks after the last one."""
        return sum(self.accuracies[-1]) / len(self.accuracies[-1])

    @property
    def learnt(self) -> float:
        """The mean accuracy on each task right after it was learnt."""
        return sum(row[place] for place, row in enumerate(self.accuracies)) / len(self.accuracies)

    @property
    def backward(self) -> float | None:
        """Backward transfer: the mean of the last accuracy less that right after the task; None of one task."""
        return mean(
            [last - self.accuracies[place][place] for place, last in enumerate(self.accuracies[-1][:-1])]
        )

    @property
    def forgetting(self) -> float | None:
        """The mean of the best accuracy since the task was learnt less the last one; None of one task."""
        return mean(
            [
                max(row[place] for row in self.accuracies[place:]) - last
                for place, last in enumerate(self.accuracies[-1][:-1])
            ]
        )

    @property
    def bytes(self) -> int:
        """Everything that is kept."""
        return sum(self.memory.values())


@dataclass(frozen=True, kw_only=True)
class Continual(Result):
    """Protocols side by side on one sequence of tasks.

    Args:
        order: the tasks' names, in the order in which they were learnt.
        runs: by protocol.
        start: the accuracy of the pre-trained model on each task.
        ridge: of closed forms in the tangent space of the weights; None where none was solved.
        shared: seconds for the kernel of the training rows, which several protocols solve with.
        seed: of the order and of whatever is drawn.
        split: whose accuracies these are.
    """

    order: tuple[str, ...]
    runs: Mapping[str, Run]
    start: Sequence[float]
    ridge: float | None
    shared: float = field(repr=False)
    seed: int | None
    split: SplitName

    def __repr__(self) -> str:
        return f"Continual({len(self.order)} tasks; {', '.join(f'{n} {r.average:.3f}' for n, r in self.runs.items())})"

    @property
    def verdict(self) -> str:
        """Which protocol ends with the best average, and what it keeps."""
        best = max(self.runs.values(), key=lambda run: run.average)
        lost = "" if best.forgetting is None else f", forgets {best.forgetting:.3f}"
        told = (
            f"{best.protocol} ends best: average accuracy {best.average:.3f} over {len(self.order)} tasks{lost}, and "
            f"keeps {in_words(best.bytes)}; the pre-trained model has {sum(self.start) / len(self.start):.3f}."
        )
        return f"{told} One order of the tasks: other seeds may rank protocols otherwise."

    def report(self) -> Report:
        """The protocols, then accuracies after the last task; curves are series."""
        rows: list[dict[str, Cell]] = [
            {
                "protocol": run.protocol, "average": run.average, "right after": run.learnt,
                "backward": run.backward, "forgetting": run.forgetting, "kept": in_words(run.bytes),
                "seconds": run.seconds,
            }
            for run in self.runs.values()
        ]  # fmt: skip
        last: list[dict[str, Cell]] = [
            {
                "task": name, "pre-trained": self.start[place],
                **{run.protocol: run.accuracies[-1][place] for run in self.runs.values()},
            }
            for place, name in enumerate(self.order)
        ]  # fmt: skip
        about = " ".join(f"{name}: {PROTOCOLS[name].about}." for name in self.runs)
        note = (
            f"Accuracy on {self.split}, mean over tasks after the last one; right after: on each task when it was "
            f"learnt; backward: last less right after; forgetting: best since less last. {about} One model serves all "
            "tasks: beyond its head, no protocol asks which task a row is of."
        )
        tables = [Table("Tasks one after another", rows, note), Table("After the last task", last)]
        result: dict[str, Any] = {
            "order": list(self.order),
            "runs": {
                name: {"accuracies": [list(row) for row in run.accuracies], "memory": dict(run.memory)}
                for name, run in self.runs.items()
            },
        }
        return Report(
            "Tasks one after another", tables, dict(self.provenance), result=result, warnings=self.warnings,
            verdict=self.verdict,
        )  # fmt: skip


@checked
@noted
def continual(
    encoder: Encoder,
    tasks: Sequence[Task],
    protocols: Sequence[str] = ("sequential", "sum", "superposed", "joint", "masked", "pseudo", "stored"),
    options: Options = Options(),
    *,
    seed: int | None = 0,
    settings: Settings = Settings("standard"),
    params: str | Sequence[str] = "all",
    split: SplitName = "test",
    reading: Reading = Reading(batch_size=32),
) -> Continual:
    """Learn tasks one after another, by several protocols, and measure all tasks after each.

    All protocols but `finetuned` are closed forms of the squared loss (see `closed_form`), so that they differ in what
    they keep and not in how well they were trained. `superposed` adds, for each task, the increment that minimises 1/2
    |J_t tau - r_t|^2 + 1/2 sum_s w_s |J_s tau|^2 + ridge/2 |tau|^2 over kept rows of earlier tasks s; with all rows kept
    it ends at the optimum of all tasks, as `joint` does.

    Args:
        encoder: what `tauspan.load` returned.
        tasks: two or more classification tasks; all training rows are used, `task.subset(train=...)` takes fewer.
        protocols: names of `PROTOCOLS`.
        options: of the protocols.
        seed: of the order of the tasks, and of what protocols draw; None keeps the order.
        settings: of `finetuned`, in the standard regime; its `params` are those of this call.
        params: which parameters move, but of `pseudo` and `stored`, which move features.
        split: the rows on which is measured.
        reading: batches, and where texts are cut.

    Raises:
        UsageError: one task, two of one name, tasks without classes, an unknown protocol, settings in the linear regime,
            or more rows x classes than a kernel is solved with.
        NonFiniteError: NaN or infinity in rows, logits or kernel.

    Cost:
        The kernel of all training rows, n = sum_t N_t C_t, and n^3 FLOPs, once for all protocols that need it; and T^2
        evaluations for each protocol.

    Example:
        >>> import torch, tauspan as ts
        >>> x, names = torch.eye(4).repeat(4, 1), ["no", "yes"]
        >>> def task(name, y):
        ...     return ts.Task.from_tensors(name, names, train=(x, y), validation=(x, y), test=(x, y))
        >>> tasks = [task("parity", torch.arange(16) % 2), task("half", torch.arange(16) % 4 // 2)]
        >>> found = continual(ts.load(torch.nn.Linear(4, 3)), tasks, ["sum", "joint"], Options(ridge=0.1))
        >>> found.runs["joint"].average, sorted(found.order)
        (1.0, ['half', 'parity'])
    """
    ordered = ordered_by(tasks, seed)
    _require(ordered, protocols, settings, reading)
    own = replace(settings, params=params if isinstance(params, str) else tuple(params))
    course = Course(encoder, ordered, options, own, params, reading, seed or 0)
    kernel = any(PROTOCOLS[name].kernel for name in protocols)
    with measured() as shared:
        ridge = course.ridge if kernel else None
    learned, seconds = dict[str, Learned](), dict[str, float]()
    with progress("tasks one after another", len(protocols)) as advance:
        for name in protocols:
            with measured() as cost:
                learned[name] = PROTOCOLS[name].learn(course)
            seconds[name] = cost.seconds
            advance(1, name)
    scores = _accuracies(course, learned, split)
    runs = {name: Run(name, scores[name], learned[name].memory, seconds[name]) for name in protocols}
    start = list(evaluate(encoder, ordered, split=split, reading=reading).accuracy.values())
    return Continual(
        order=tuple(task.name for task in ordered), runs=runs, start=start, ridge=ridge,
        shared=shared.seconds if kernel else 0.0, seed=seed, split=split,
        provenance=provenance(seed=seed, base=fingerprint_of(encoder), options=vars(options), params=repr(params)),
    )  # fmt: skip


def ordered_by(tasks: Sequence[Task], seed: int | None) -> list[Task]:
    """The tasks in the order of a seed, which depends on their names and not on how they were listed."""
    if seed is None:
        return list(tasks)
    listing = sorted(tasks, key=lambda task: task.name)
    return random.Random(seed).sample(listing, len(listing))


def _require(tasks: Sequence[Task], protocols: Sequence[str], settings: Settings, reading: Reading) -> None:
    """Raise unless the sequence can be learnt."""
    reading.require_no_point("continual")
    names = [task.name for task in tasks]
    if len(tasks) < 2:
        raise UsageError(f"{len(tasks)} task: one after another takes two or more.")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"several tasks are named {listed(twice)}: give each a name of its own.")
    for task in tasks:
        if not task.classes:
            raise UsageError(
                f"task {task.name!r} is {task.objective.word}, and sequences are of tasks with classes."
            )
    if not protocols:
        raise UsageError(f"no protocol: name some of {listed(PROTOCOLS, 20)}.")
    for name in protocols:
        if name not in PROTOCOLS:
            raise UsageError(f"there is no protocol {name!r}. {nearest(name, PROTOCOLS)}")
    if settings.regime != "standard":
        raise UsageError(
            f"settings of regime {settings.regime!r}: `finetuned` is ordinary fine-tuning, and `sequential` its "
            "counterpart in the tangent space. Take Settings('standard')."
        )


def _accuracies(
    course: Course, learned: Mapping[str, Learned], split: SplitName
) -> dict[str, list[list[float]]]:
    """By protocol, for each stage the accuracy on every task; vectors of one regime share their passes over the rows."""
    found: dict[str, list[list[float]]] = {name: [] for name in learned}
    maps: list[tuple[str, FeatureMap]] = []
    vectors: dict[EditRegime, list[tuple[str, TaskVector]]] = {}
    for name, protocol in learned.items():
        for stage in protocol.stages:
            if isinstance(stage, FeatureMap):
                maps.append((name, stage))
            else:
                vectors.setdefault(edit_regime(stage, None), []).append((name, stage))
    if maps:
        for (name, _), row in zip(maps, _mapped(course, [one for _, one in maps], split), strict=True):
            found[name].append(row)
    for regime, named in vectors.items():
        directions = Directions.whole({f"{place}": vector for place, (_, vector) in enumerate(named)})
        model = edited_model(course.encoder, directions, regime, course.reading, ahead=True)
        for place, (name, _) in enumerate(named):
            found[name].append([model.metric(task, split, {f"{place}": 1.0}) for task in course.tasks])
    return found


def _mapped(course: Course, maps: Sequence[FeatureMap], split: SplitName) -> list[list[float]]:
    """For each map the accuracy on every task, from features that are computed once."""
    columns = []
    for task in course.tasks:
        rows = task.split(split)
        z, (weight, bias) = course.features(task, rows), course.readout(task)
        classes = [((z + z @ one.matrix.T) @ weight.T + bias).argmax(1) for one in maps]
        columns.append([float((found == rows.labels).double().mean()) for found in classes])
    return [list(row) for row in zip(*columns, strict=True)]
