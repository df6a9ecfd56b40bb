"""Tables, series and numbers of a report, made of the results of diagnostics."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from tauspan.core.report import Cell, Table
from tauspan.kernel import Estimate
from tauspan.kernel.diagnose.kernels import TaskPairs, TaskSpectrum
from tauspan.kernel.diagnose.lazy import Linearity
from tauspan.kernel.diagnose.rows import Findings
from tauspan.kernel.diagnose.vectors import TaskEnergy, TaskInterference, TaskPath
from tauspan.kernel.diagnose.verdict import disturbances
from tauspan.kernel.operator.interference import finite_or_none

Row = dict[str, Cell]
_ROOM = 66  # characters for names of tasks in a table of all pairs


def spectra_section(spectra: Sequence[TaskSpectrum], ridge: float | None) -> Findings:
    """Effective ranks, and alignment with the labels; a row per task."""
    series: list[dict[str, Any]] = [
        {
            "kind": "spectrum", "group": "spectrum", "title": one.task, "values": one.power.values.tolist(),
            "shares": one.power.shares.tolist(),
        }
        for one in spectra
    ]  # fmt: skip
    times = {
        one.task: {"lr_max": one.ranks.lr_max.value, "learning_times": _finite(one.power.times.tolist())}
        for one in spectra
    }
    mean = "the mean eigenvalue" if ridge is None else f"{ridge:g}"
    note = (
        f"Effective ranks, exact on these rows; dimension: tr K (K + ridge)^-1, ridge {mean}; condition: empty where K "
        "is singular; decay: a of lam_i ~ i^-a. Gradient descent on the summed squared error needs lr < 2 / lam 1."
    )
    about = (
        "With one-hot labels Y less 1/C. KTA, kernel-target alignment: <K, YY^T> / (|K||YY^T|); CKA, centred kernel "
        "alignment: both centred; LGA, label-gradient alignment: labels as same or other class, one output only, all "
        "parameters that train (published: the sum, weights alone); half at: smallest r whose leading eigenvectors hold "
        "half of |Y|^2, learned in time 1 / lam."
    )
    ranks, aligned = list(map(_ranks, spectra)), list(map(_aligned, spectra))
    tables = [Table("Spectrum", ranks, note), Table("Alignment with the labels", aligned, about)]
    return Findings(tables, series, {"spectrum": ranks, "alignment": aligned, "learning": times})


def _ranks(one: TaskSpectrum) -> Row:
    ranks = one.ranks
    numbers = {
        "stable": ranks.stable, "participation": ranks.participation, "entropy": ranks.entropy,
        "dimension": ranks.dimension, "condition": ranks.condition, "decay": ranks.decay,
    }  # fmt: skip
    cells = {
        name: None if number is None else finite_or_none(number.value) for name, number in numbers.items()
    }
    return {"task": one.task, "rows": one.rows, **cells, "lam 1": float(one.power.values[0])}


def _aligned(one: TaskSpectrum) -> Row:
    centred, gradient, power = one.centred_alignment, one.label_alignment, one.power
    row: Row = {
        "task": one.task,
        "KTA": one.target_alignment.value,
        "CKA": centred.value if centred else None,
    }
    if gradient:
        row |= {"LGA": gradient.value.value, "mean K": gradient.mean, "norm K": gradient.norm}
    return {**row, "half at": power.half, "its lam": float(power.values[power.half - 1])}


def pairs_section(pairs: TaskPairs) -> Findings:
    """Alignment between tasks, and overlap of their leading features."""
    title, overlap = "Cross-task alignment", "Overlap of leading tangent features"
    about = "|K_st| / sqrt(|K_ss||K_tt|), Frobenius norms; exact on these rows."
    meant = (
        f"Mean squared cosine of the principal angles between the {pairs.leading} leading eigenvectors of each task "
        "pulled back to J^T u (fewer where a kernel has a smaller rank): 1 for one subspace, 0 for orthogonal ones."
    )
    both = ((title, pairs.alignment, about), (overlap, pairs.overlap, meant))
    tables = [_matrix_table(name, pairs.tasks, values, note) for name, values, note in both]
    measures = (r"$|K_{st}|$ over $\sqrt{|K_{ss}||K_{tt}|}$", "mean squared cosine")
    series = [
        _heat(name, "alignment", pairs.tasks, values, measure)
        for (name, values, _), measure in zip(both, measures, strict=True)
    ]
    result = {
        "tasks": list(pairs.tasks), "cross_task_alignment": pairs.alignment.tolist(),
        "feature_overlap": pairs.overlap.tolist(),
    }  # fmt: skip
    return Findings(tables, series, result)


def energy_section(energies: Sequence[TaskEnergy], counted: bool) -> Findings:
    """Local energy, a row per task; `counted` says whether the eigenfunctions are the leading ones or a chosen set."""
    rows: list[Row] = [
        {
            "task": one.task, "first" if counted else "chosen": len(one.own.chosen),
            "support": _spread(one.own.on_support), "held out": _spread(one.held_out.on_control),
            "control": _spread(one.own.on_control), "ratio": _spread(one.own.ratio),
        }
        for one in energies
    ]  # fmt: skip
    note = (
        "Sum of squared eigenfunctions of the task's kernel at theta0, mean over its own rows, over own rows of another "
        "split, and over the other tasks' rows under the same head; ± standard error over rows. Ratio: control over "
        "support; what the support fits by chance shows in held out."
    )
    series, facts = [one.series() for one in energies], [one.facts() for one in energies]
    return Findings([Table("Local energy", rows, note)], series, {"energy": facts})


def _spread(one: Estimate) -> str:
    return f"{one.value:.3f}" + ("" if one.standard_error is None else f" ± {one.standard_error:.3f}")


def linearity_series(title: str, path: Linearity) -> dict[str, Any]:
    """The errors of the tangent model along a vector, for a picture."""
    return {
        "kind": "linearity", "group": "linearity", "title": title, "scales": list(path.scales),
        "relative": _finite(path.relative),
    }  # fmt: skip


def paths_section(paths: Sequence[TaskPath]) -> Findings:
    """Lazy or rich, the post-hoc gap, and motion of the kernel; a row per task."""
    lazy: list[Row] = [
        {
            "task": one.task, "regime": one.regime, "norm": one.norm, "q": one.curvature.value,
            "slope": one.path.slope, "error at 1": _finite(one.path.relative)[one.path.scales.index(1.0)],
        }
        for one in paths
    ]  # fmt: skip
    gaps: list[Row] = [
        {
            "task": one.task, "gap": one.gap.relative.value, "agreement": one.gap.agreement,
            "non-linear": one.gap.nonlinear, "linear": one.gap.linear, "advantage": one.gap.advantage,
        }
        for one in paths
    ]  # fmt: skip
    motion: list[Row] = [
        {"task": one.task, "distance": one.distance.value, "relative change": one.change.value}
        for one in paths
    ]
    series = [linearity_series(one.task, one.path) for one in paths]
    note = (
        "q: |d2f/ds2| / (2 |J tau|) at theta0, small is lazy; slope of log |f - f_lin| in log s, 2 for small s; error "
        "at 1: over |J tau|."
    )
    meant = (
        "|f(theta0 + tau) - f_lin| / |f(theta0 + tau) - f(theta0)|; accuracies at alpha 1 on these rows, advantage: "
        "non-linear less linear."
    )
    about = (
        "From theta0 to theta0 + tau: distance 1 - <K, K'> / (|K||K'|), and |K' - K| / |K|. The tangent model "
        "assumes 0."
    )
    tables = [
        Table("Lazy or rich", lazy, note), Table("The model against its linearisation", gaps, meant),
        Table("Motion of the kernel", motion, about),
    ]  # fmt: skip
    return Findings(tables, series, {"lazy": lazy, "posthoc_gap": gaps, "motion": motion})


def interference_section(one: TaskInterference) -> Findings:
    """The table of all pairs, the predicted accuracies, and the changes by class."""
    names, table, title = one.between.tasks, one.between.table(), "Interference"
    note = (
        "Root mean square of the logits' change J tau on the rows of the line's task by the column's vector, over the "
        "change on the vector's own rows."
    )
    predicted: list[Row] = [
        {
            "on": row.on, "base": row.base, "alone": row.alone,
            **{f"with {by}": row.with_other.get(by) for by in names}, "all": row.together,
        }
        for row in one.accuracies
    ]  # fmt: skip
    lines, columns = _numbered(names)
    shown: list[Row] = [
        {
            "on": lines[row.on], "base": row.base, "alone": row.alone,
            **{f"with {columns[by]}": row.with_other.get(by) for by in names}, "all": row.together,
        }
        for row in one.accuracies
    ]  # fmt: skip
    about = "On these rows; base: without any vector, alone: with its own, with: with another task's too."
    classes: list[Row] = [
        {"on": row.on, "by": row.by, "class": row.label, "change": row.change, "over own": row.over_own}
        for row in one.by_class
    ]
    tables = [
        _matrix_table(title, names, table, note),
        Table("Predicted accuracy of the tangent model at alpha 1", shown, about),
        Table("Interference by class", classes, "Root mean square change; over own: over that by the task's own vector."),
    ]  # fmt: skip
    found = list(map(_finite, table.tolist()))
    disturbed = [vars(pair) for pair in disturbances(one)]
    result = {
        "interference": found, "predicted": predicted, "interference_by_class": classes, "disturbed": disturbed,
    }  # fmt: skip
    heat = _heat(title, "interference", names, table, r"change $J\tau$ over that on the vector's own rows")
    return Findings(tables, [{**heat, "across": "vector of", "upward": "rows of"}], result)


def _finite(values: Iterable[float | None]) -> list[float | None]:
    """Numbers for JSON, None where one is missing or not finite."""
    return [None if value is None else finite_or_none(value) for value in values]


def _matrix_table(title: str, names: Sequence[str], values: Tensor, note: str) -> Table:
    """A row and a column for each task; long names stand in the rows alone, and columns have their numbers."""
    lines, columns = _numbered(names)
    cells = [
        {"": lines[name], **dict(zip(columns.values(), _finite(line), strict=True))}
        for name, line in zip(names, values.tolist(), strict=True)
    ]
    return Table(title, cells, note)


def _numbered(names: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """What lines and columns are called: the names, or numbers where columns of names need more than a terminal has."""
    if max(map(len, names)) + sum(len(name) + 2 for name in names) <= _ROOM:
        return dict(zip(names, names, strict=True)), dict(zip(names, names, strict=True))
    return (
        {name: f"{number} {name}" for number, name in enumerate(names, 1)},
        {name: str(number) for number, name in enumerate(names, 1)},
    )


def _heat(title: str, group: str, names: Sequence[str], values: Tensor, measure: str) -> dict[str, Any]:
    lines = list(map(_finite, values.tolist()))
    return {
        "kind": "heat", "group": group, "title": title, "tasks": list(names), "values": lines, "measure": measure,
    }  # fmt: skip
