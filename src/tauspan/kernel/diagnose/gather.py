"""`kernel_report` and `diagnose`: all diagnostics of some tasks, or of tasks with their vectors, as one result."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tauspan import models
from tauspan.core.arguments import checked
from tauspan.core.choices import SplitName
from tauspan.core.errors import MismatchError, UsageError
from tauspan.core.measure import measured, progress
from tauspan.core.reading import Reading
from tauspan.core.report import Report, noted, provenance
from tauspan.core.results import Result
from tauspan.kernel import Backend
from tauspan.kernel.diagnose import sections
from tauspan.kernel.diagnose.energy import Chosen
from tauspan.kernel.diagnose.kernels import Advance, TaskPairs, TaskSpectrum, task_pairs, task_spectrum
from tauspan.kernel.diagnose.lazy import SCALES
from tauspan.kernel.diagnose.rows import KernelOutputs, KernelSettings, TaskKernel, task_kernels
from tauspan.kernel.diagnose.vectors import (
    TaskEnergy,
    TaskInterference,
    TaskPath,
    task_energies,
    task_interference,
    task_paths,
)
from tauspan.kernel.diagnose.verdict import disturbance_in_words, kernels_in_words, reach_in_words
from tauspan.kernel.operator.interference import require_several
from tauspan.models import Encoder
from tauspan.tasks import Task
from tauspan.vector import TaskVector, fitted


@dataclass(frozen=True, kw_only=True, eq=False)
class Diagnosis(Result):
    """Diagnostics of tasks by their tangent kernels and, if vectors were given, of the tasks' vectors.

    Args:
        spectra: for each task: effective ranks, power and alignment with the labels.
        pairs: how close the tasks' tangent features are; None for one task.
        energies: for each task: where its eigenfunctions are large; empty without vectors.
        paths: for each task: how far the tangent model holds along its vector; empty without vectors.
        interference: what each vector does on each task's rows; None without vectors.
        ridge: of the effective dimension; None for each kernel's mean eigenvalue.
        counted: whether the eigenfunctions of `energies` are the first so many, and not a chosen set.
    """

    spectra: Sequence[TaskSpectrum]
    pairs: TaskPairs | None = None
    energies: Sequence[TaskEnergy] = ()
    paths: Sequence[TaskPath] = ()
    interference: TaskInterference | None = None
    ridge: float | None = None
    counted: bool = True

    def __repr__(self) -> str:
        names = ", ".join(one.task for one in self.spectra)
        return f"Diagnosis({names}{'; with their vectors' if self.interference else ''})"

    @property
    def verdict(self) -> str:
        """What the numbers say, first of all: which tasks disturb each other, and how far the tangent model carries.

        Without vectors: which tasks' features are alike, and where the labels lie. docs/verdicts.md has the rules.
        """
        if self.interference:
            return f"{disturbance_in_words(self.interference)} {reach_in_words(self.paths)}"
        return kernels_in_words(self.spectra, self.pairs)

    def report(self) -> Report:
        """The verdict, then all numbers as tables, with spectra, heat maps and histograms as series."""
        parts = [sections.spectra_section(self.spectra, self.ridge)]
        if self.pairs:
            parts.append(sections.pairs_section(self.pairs))
        if self.interference:
            parts.append(sections.energy_section(self.energies, self.counted))
            parts.append(sections.paths_section(self.paths))
            parts.append(sections.interference_section(self.interference))
        return Report(
            "Diagnostics" if self.interference else "Tangent kernel",
            [table for part in parts for table in part.tables],
            dict(self.provenance),
            [one for part in parts for one in part.series],
            {name: value for part in parts for name, value in part.result.items()},
            self.warnings,
            self.verdict,
        )


@noted
@checked
def kernel_report(
    encoder: Encoder,
    tasks: Sequence[Task],
    *,
    rows: int = 64,
    split: SplitName = "train",
    outputs: KernelOutputs = "contrast",
    params: str | Sequence[str] = "all",
    ridge: float | None = None,
    angles: int = 5,
    reading: Reading = Reading(batch_size=32),
    backend: Backend = "auto",
    seed: int = 0,
) -> Diagnosis:
    """Diagnose tasks before any training: kernel spectra, alignment with labels, and alignment between tasks.

    Args:
        encoder: the pre-trained encoder; each task is seen under its frozen head, linearised at the logits.
        tasks: one or more; between tasks, two or more.
        rows: at most so many of each task, drawn by a permutation keyed by `seed`.
        split: the split that they are drawn from.
        outputs: one `"contrast"` of the logits, their `"sum"`, or `"all"` for few classes.
        params: the parameters whose tangents count.
        ridge: of the effective dimension; None takes each kernel's mean eigenvalue.
        angles: leading eigenvectors of each task whose tangent features are compared.
        reading: batches, and where texts are cut; see `tauspan.Reading`.
        backend: of the kernels.
        seed: of the draw.

    Returns:
        A `Diagnosis` without the parts about vectors; `.report()` makes tables and series of it.

    Raises:
        UsageError: an impossible setting, no task, a task with one row, or one twice.
        NonFiniteError: NaN or infinity in the data or the kernel.

    Cost:
        The kernel of all rows of all tasks: see `TangentKernel`.

    Example:
        >>> import torch, tauspan as ts
        >>> x, y = torch.eye(4), torch.tensor([0, 1, 0, 1])
        >>> task = ts.Task.from_tensors("parity", ["even", "odd"], train=(x, y), validation=(x, y), test=(x, y))
        >>> (spectrum,) = kernel_report(ts.load(torch.nn.Linear(4, 3)), [task]).spectra
        >>> spectrum.task, spectrum.rows, 1 <= spectrum.ranks.stable.value <= 4
        ('parity', 4, True)
    """
    reading.require_no_point("kernel_report")
    settings = KernelSettings(rows, split, outputs, reading, backend, seed)
    with measured() as cost, progress("kernel", len(tasks) + 1) as advance:
        kernels = task_kernels(encoder, tasks, params, settings)
        spectra, pairs = _spectra(kernels, ridge, advance), task_pairs(kernels, angles, advance)
    facts = {"params": params if isinstance(params, str) else list(params), **vars(cost)}
    where = _provenance(encoder, kernels, settings, facts)
    return Diagnosis(spectra=spectra, pairs=pairs, ridge=ridge, provenance=where)


@noted
@checked
def diagnose(
    encoder: Encoder,
    vectors: Mapping[Task, TaskVector],
    *,
    rows: int = 64,
    split: SplitName = "train",
    outputs: KernelOutputs = "contrast",
    which: Chosen = 10,
    ridge: float | None = None,
    angles: int = 5,
    scales: Sequence[float] = SCALES,
    reading: Reading = Reading(batch_size=32),
    backend: Backend = "auto",
    seed: int = 0,
) -> Diagnosis:
    """All diagnostics of tasks and their vectors by the tangent kernel.

    These are the diagnostics of `kernel_report`; local energy on the task's support against the other tasks' rows;
    curvature, linearity error and post-hoc gap along each vector; the change of the kernel from theta0 to theta0 + tau;
    interference, and the accuracies that it predicts.

    Args:
        encoder: the pre-trained encoder that the vectors start from.
        vectors: one vector per task, two or more, over the same parameters. Any regime: a linear vector is also read in
            the ordinary model, a standard one in its linearisation.
        rows: at most so many of each task.
        split: the split that they are drawn from.
        outputs: of the kernels; what vectors do is measured on all logits.
        which: the eigenfunctions whose local energy is summed: the first so many (an int, or as many as there are), those
            with |c_r| above a share of the largest (a float), or a list of numbers from 0.
        ridge: of the effective dimension; None takes each kernel's mean eigenvalue.
        angles: leading eigenvectors of each task whose tangent features are compared.
        scales: s at which f(theta0 + s tau) is compared with its linearisation; 1 is added.
        reading: batches, and where texts are cut; see `tauspan.Reading`.
        backend: of the kernels.
        seed: of the draw.

    Returns:
        A `Diagnosis`; `.report()` makes tables and series of it.

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
        >>> diagnosis = diagnose(encoder, vectors)
        >>> diagnosis.interference.between.table().round(decimals=3).tolist()  # one task twice
        [[1.0, 1.0], [1.0, 1.0]]
    """
    reading.require_no_point("diagnose")
    settings = KernelSettings(rows, split, outputs, reading, backend, seed)
    names = [task.name for task in vectors]
    require_several(names)
    for task in vectors:
        if not task.classes:
            raise UsageError(
                f"`diagnose` counts predicted classes, and {task.name!r} is {task.objective.word}: take `kernel_report`; "
                "`Editor.interference` says how far each vector moves its outputs."
            )
    vectors = fitted(vectors, encoder, tangent=True)
    by_name = {task.name: vector for task, vector in vectors.items()}
    chosen = _parameters(vectors)
    with measured() as cost, progress("diagnose", 4 * len(vectors) + 2) as advance:
        kernels = task_kernels(encoder, vectors, chosen, settings)
        spectra, pairs = _spectra(kernels, ridge, advance), task_pairs(kernels, angles, advance)
        energies = task_energies(kernels, which, advance)
        paths = task_paths(encoder, kernels, by_name, scales, advance)
        between = task_interference(kernels, by_name, advance)
    facts = {"vectors": [vector.label for vector in vectors.values()], **vars(cost)}
    return Diagnosis(
        spectra=spectra, pairs=pairs, energies=energies, paths=paths, interference=between, ridge=ridge,
        counted=isinstance(which, int), provenance=_provenance(encoder, kernels, settings, facts),
    )  # fmt: skip


def _spectra(kernels: Sequence[TaskKernel], ridge: float | None, advance: Advance) -> list[TaskSpectrum]:
    spectra = []
    for task in kernels:
        task.kernel.dense()
        advance(1, task.name)
        spectra.append(task_spectrum(task, ridge))
    return spectra


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


def _provenance(
    encoder: Encoder, kernels: Sequence[TaskKernel], settings: KernelSettings, facts: Mapping[str, Any]
) -> dict[str, Any]:
    return provenance(
        base=encoder.source,
        fingerprint=models.fingerprint_of(encoder),
        drawn={task.name: task.kernel.samples for task in kernels},
        **asdict(settings),
        **facts,
    )
