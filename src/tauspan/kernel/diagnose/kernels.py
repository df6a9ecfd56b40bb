"""What the kernels of tasks say without any vector: spectra, alignment with labels, alignment between tasks."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from tauspan.core.errors import UsageError
from tauspan.core.report import Cell, Table
from tauspan.kernel.approximate.eigenpairs import EigenPairs
from tauspan.kernel.diagnose.alignment import (
    centred_alignment,
    cross_task_alignment,
    kernel_target_alignment,
    label_gradient_alignment,
    principal_angles,
)
from tauspan.kernel.diagnose.rows import Findings, Rows, cell, heat, matrix_table
from tauspan.kernel.diagnose.spectra import cumulative_power, effective_ranks
from tauspan.kernel.operator.union import UnionKernel
from tauspan.kernel.solvers.flow import Modes


def spectrum_findings(
    tasks: Sequence[Rows], ridge: float | None, advance: Callable[[int, str], None]
) -> Findings:
    """Effective ranks, power and alignment with the labels, a row a task."""
    ranks: list[dict[str, Cell]] = []
    aligned: list[dict[str, Cell]] = []
    series: list[dict[str, Any]] = []
    times: dict[str, Any] = {}
    for rows in tasks:
        kernel, targets = rows.kernel, rows.targets
        kernel.dense()
        advance(1, rows.name)
        found, power = effective_ranks(kernel, ridge), cumulative_power(kernel, targets)
        numbers = {
            "stable": found.stable, "participation": found.participation, "entropy": found.entropy,
            "dimension": found.dimension, "condition": found.condition, "decay": found.decay,
        }  # fmt: skip
        ranks.append({
            "task": rows.name, "rows": kernel.samples,
            **{name: None if one is None else cell(one.value) for name, one in numbers.items()},
            "lam 1": float(power.values[0]),
        })  # fmt: skip
        half = {"half at": power.half, "its lam": float(power.values[power.half - 1])}
        aligned.append({"task": rows.name, **_alignments(rows), **half})
        times[rows.name] = {
            "lr_max": found.lr_max.value, "learning_times": [cell(one) for one in power.times.tolist()],
        }  # fmt: skip
        common = {"title": rows.name, "values": power.values.tolist(), "shares": power.shares.tolist()}
        series.append({"kind": "spectrum", "group": "spectrum", **common})
    mean = "the mean eigenvalue" if ridge is None else f"{ridge:g}"
    note = (
        f"Effective ranks, exact on these rows; dimension: tr K (K + ridge)^-1, ridge {mean}; condition: empty where K "
        "is singular; decay: a of lam_i ~ i^-a. Gradient descent on the summed squared error needs lr < 2 / lam 1."
    )
    about = (
        "With one-hot labels less 1/C. KTA: <K, YY^T> / (|K||YY^T|); CKA: both centred; LGA: labels as same or other "
        "class, one output only, all parameters that train (published: the sum, weights alone); half at: smallest r "
        "whose leading eigenvectors hold half of |Y|^2, learned in time 1 / lam."
    )
    tables = [Table("Spectrum", ranks, note), Table("Alignment with the labels", aligned, about)]
    return Findings(tables, series, {"spectrum": ranks, "alignment": aligned, "learning": times})


def _alignments(rows: Rows) -> dict[str, Cell]:
    """KTA, CKA, LGA with its companions; empty where the rows have one class only."""
    several = len(set(rows.labels.tolist())) > 1
    found: dict[str, Cell] = {"KTA": kernel_target_alignment(rows.kernel, rows.targets).value}
    found["CKA"] = centred_alignment(rows.kernel, rows.targets).value if several else None
    if several and rows.kernel.outputs == 1:
        gradient = label_gradient_alignment(rows.kernel, rows.labels)
        found |= {"LGA": gradient.value.value, "mean K": gradient.mean, "norm K": gradient.norm}
    return found


def pair_findings(tasks: Sequence[Rows], angles: int, advance: Callable[[int, str], None]) -> Findings:
    """Cross-task alignment and principal angles for every pair; nothing for one task."""
    if angles < 1:
        raise UsageError(f"angles={angles}: compare at least one eigenvector of each task.")
    names = [rows.name for rows in tasks]
    if len(tasks) < 2:
        return Findings([], [], {})
    union = UnionKernel({rows.name: rows.kernel for rows in tasks})
    union.dense()
    advance(1, "between tasks")
    leading = {name: _leading(union, name, angles) for name in names}
    aligned = torch.ones(len(names), len(names), dtype=torch.float64)
    cosines = torch.ones_like(aligned)
    for i, first in enumerate(names):
        for j, second in enumerate(names[:i]):
            cross = union.block(first, second)
            value = cross_task_alignment(union.block(first, first), union.block(second, second), cross).value
            found = principal_angles(leading[first], leading[second], cross)
            aligned[i, j] = aligned[j, i] = value
            cosines[i, j] = cosines[j, i] = float(found.cos().square().mean())
    title, about = (
        "Cross-task alignment",
        "|K_st| / sqrt(|K_ss||K_tt|), Frobenius norms; exact on these rows.",
    )
    overlap = "Overlap of leading tangent features"
    meant = (
        f"Mean squared cosine of the principal angles between the {angles} leading eigenvectors of each task pulled back "
        "to J^T u (fewer where a kernel has a smaller rank): 1 for one subspace, 0 for orthogonal ones."
    )
    tables = [matrix_table(title, names, aligned, about), matrix_table(overlap, names, cosines, meant)]
    series = [heat(title, "alignment", names, aligned), heat(overlap, "alignment", names, cosines)]
    result = {"tasks": names, "cross_task_alignment": aligned.tolist(), "feature_overlap": cosines.tolist()}
    return Findings(tables, series, result)


def _leading(union: UnionKernel, task: str, count: int) -> EigenPairs:
    """At most so many leading eigenpairs, above rounding, from the matrix."""
    modes = Modes.of(union.own(task))
    values = modes.values.flip(0)
    floor = len(values) * torch.finfo(torch.float64).eps * float(values[0])
    keep = min(count, int((values > floor).sum()))
    return EigenPairs(
        values[:keep], modes.vectors.flip(1)[:, :keep], torch.zeros(keep), 0, True, "eigh of the matrix"
    )
