"""`kernel_report` and `diagnose`: all diagnostics of some tasks, or of tasks with their vectors, as one report."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

from tauspan import models
from tauspan.core.arguments import checked
from tauspan.core.errors import MismatchError, UsageError
from tauspan.core.measure import measured, progress
from tauspan.core.reading import Reading
from tauspan.core.report import Report, noted, provenance
from tauspan.kernel.diagnose.energy import Chosen
from tauspan.kernel.diagnose.kernels import pair_findings, spectrum_findings
from tauspan.kernel.diagnose.lazy import SCALES
from tauspan.kernel.diagnose.rows import Findings, Reduced, Rows, Settings, SplitName, rows_of_tasks
from tauspan.kernel.diagnose.vectors import energy_findings, interference_findings, path_findings
from tauspan.kernel.operator.interference import require_several
from tauspan.kernel.rows.tiles import Backend
from tauspan.models import Encoder
from tauspan.tasks import Task
from tauspan.vector import TaskVector, fitted

_Advance = Callable[[int, str], None]


@noted
@checked
def kernel_report(
    encoder: Encoder,
    tasks: Sequence[Task],
    *,
    rows: int = 64,
    split: SplitName = "train",
    outputs: Reduced = "contrast",
    params: str | Sequence[str] = "all",
    ridge: float | None = None,
    angles: int = 5,
    reading: Reading = Reading(batch_size=32),
    backend: Backend = "auto",
    seed: int = 0,
) -> Report:
    """What the tangent kernels of tasks say before any training: spectra, alignment with labels and between tasks.

    Args:
        encoder: the pre-trained encoder; each task is seen under its frozen head, linearised at the logits.
        tasks: one or more; between tasks, two or more.
        rows: at most so many of each task, drawn by a permutation keyed by `seed`.
        split: whose rows.
        outputs: one `"contrast"` of the logits, their `"sum"`, or `"all"` for few classes.
        params: the parameters whose tangents count.
        ridge: of the effective dimension; None takes each kernel's mean eigenvalue.
        angles: leading eigenvectors of each task whose tangent features are compared.
        reading: batches, and where texts are cut; see `tauspan.Reading`.
        backend: of the kernels.
        seed: of the draw.

    Returns:
        A `Report` with tables, the spectra and heat maps as series, and the numbers in `result`.

    Raises:
        UsageError: an impossible setting, no task, a task with one row, or one twice.
        NonFiniteError: NaN or infinity in the data or the kernel.

    Cost:
        The kernel of all rows of all tasks: see `TangentKernel`.

    Example:
        >>> import torch, tauspan as ts
        >>> x, y = torch.eye(4), torch.tensor([0, 1, 0, 1])
        >>> task = ts.Task.from_tensors("parity", ["even", "odd"], train=(x, y), validation=(x, y), test=(x, y))
        >>> [table.title for table in kernel_report(ts.load(torch.nn.Linear(4, 3)), [task]).tables]
        ['Spectrum', 'Alignment with the labels']
    """
    settings = Settings(rows, split, outputs, reading, backend, seed)
    with measured() as cost, progress("kernel", len(tasks) + 1) as advance:
        made = rows_of_tasks(encoder, tasks, params, settings)
        parts = [spectrum_findings(made, ridge, advance), pair_findings(made, angles, advance)]
    shown = params if isinstance(params, str) else list(params)
    return _report(
        "Tangent kernel",
        parts,
        encoder,
        made,
        settings,
        params=shown,
        seconds=cost.seconds,
        peak_mb=cost.peak_mb,
    )


@noted
@checked
def diagnose(
    encoder: Encoder,
    vectors: Mapping[Task, TaskVector],
    *,
    rows: int = 64,
    split: SplitName = "train",
    outputs: Reduced = "contrast",
    which: Chosen = 10,
    ridge: float | None = None,
    angles: int = 5,
    scales: Sequence[float] = SCALES,
    reading: Reading = Reading(batch_size=32),
    backend: Backend = "auto",
    seed: int = 0,
) -> Report:
    """Everything the tangent kernel says about tasks and their vectors.

    What `kernel_report` says, and local energy on the task's support against the other tasks' rows; curvature, linearity
    error and post-hoc gap along each vector; motion of the kernel from theta0 to theta0 + tau; interference and the
    accuracies it predicts.

    Args:
        encoder: the pre-trained encoder that the vectors start from.
        vectors: one vector a task, two or more, over the same parameters. Any regime: a linear vector is also read in
            the ordinary model, a standard one in its linearisation.
        rows: at most so many of each task.
        split: whose rows.
        outputs: of the kernels; what vectors do is measured on all logits.
        which: the eigenfunctions whose local energy is summed: the first so many (an int, or as many as there are), those
            with |c_r| above a share of the largest (a float), or a list of numbers from 0.
        ridge: of the effective dimension; None takes each kernel's mean eigenvalue.
        angles: leading eigenvectors of each task whose tangent features are compared.
        scales: s at which f(theta0 + s tau) is compared with its linearisation; 1 is added.
        reading: batches, and where texts are cut; see `tauspan.Reading`.
        backend: of the kernels.
        seed: of the draw.

    Raises:
        UsageError: one task only, an impossible setting, a vector that moves nothing.
        BaseMismatchError: a vector starts from another model.
        MismatchError: vectors over different parameters.
        NonFiniteError: NaN or infinity in vectors, data, kernels or edited models.

    Cost:
        For T tasks of N rows: the kernel of T N rows, T kernels of N rows against the other (T - 1) N, T kernels at
        edited models, and a few forward passes. One edited copy of the model at a time.

    Example:
        >>> import torch, tauspan as ts
        >>> encoder = ts.load(torch.nn.Linear(4, 3))
        >>> rows = dict.fromkeys(["train", "validation", "test"], (torch.eye(4), torch.tensor([0, 1, 0, 1])))
        >>> tasks = [ts.Task.from_tensors(name, ["even", "odd"], **rows) for name in ("a", "b")]
        >>> vectors = {task: ts.fit(encoder, task).task_vector for task in tasks}
        >>> report = diagnose(encoder, vectors)
        >>> [round(number, 3) for line in report.result["interference"] for number in line]  # one task twice
        [1.0, 1.0, 1.0, 1.0]
    """
    settings = Settings(rows, split, outputs, reading, backend, seed)
    names = [task.name for task in vectors]
    require_several(names)
    vectors = fitted(vectors, encoder, tangent=True)
    by_name = {task.name: vector for task, vector in vectors.items()}
    chosen = _parameters(vectors)
    with measured() as cost, progress("diagnose", 4 * len(vectors) + 2) as advance:
        made = rows_of_tasks(encoder, vectors, chosen, settings)
        parts = [
            spectrum_findings(made, ridge, advance),
            pair_findings(made, angles, advance),
            energy_findings(made, which, advance),
            path_findings(encoder, made, by_name, scales, advance),
            interference_findings(made, by_name, advance),
        ]
    labels = [vector.label for vector in vectors.values()]
    return _report(
        "Diagnostics",
        parts,
        encoder,
        made,
        settings,
        vectors=labels,
        seconds=cost.seconds,
        peak_mb=cost.peak_mb,
    )


def _parameters(vectors: Mapping[Task, TaskVector]) -> list[str]:
    """The tensors that all vectors hold; raises unless they hold the same."""
    first, *others = vectors.values()
    for vector in others:
        if vector.deltas.keys() != first.deltas.keys():
            raise MismatchError(
                f"the vectors {first.label!r} and {vector.label!r} hold {len(first.deltas)} and {len(vector.deltas)} "
                "tensors, not the same: their kernels would be about different parameters. Train both with one `params`."
            )
    if not first.deltas:
        raise UsageError(f"the vector {first.label!r} holds no tensor: there is nothing to diagnose.")
    return list(first.deltas)


def _report(
    title: str,
    parts: Sequence[Findings],
    encoder: Encoder,
    rows: Sequence[Rows],
    settings: Settings,
    **facts: object,
) -> Report:
    counts = {one.name: one.kernel.samples for one in rows}
    where = provenance(
        base=encoder.source,
        fingerprint=models.fingerprint_of(encoder),
        drawn=counts,
        **asdict(settings),
        **facts,
    )
    tables = [table for part in parts for table in part.tables]
    series = [one for part in parts for one in part.series]
    result: dict[str, object] = {}
    for part in parts:
        result |= part.result
    return Report(title, tables, where, series, result)
