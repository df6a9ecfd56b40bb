"""What task vectors do, by the tangent kernel: where they act, whether the tangent model holds, what they disturb."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tauspan.core.report import Cell, Table
from tauspan.editing.model.edit import apply
from tauspan.kernel.diagnose.alignment import kernel_change, kernel_distance
from tauspan.kernel.diagnose.energy import Chosen, Eigenfunctions, local_energy
from tauspan.kernel.diagnose.lazy import lazy_coefficient, linearity, posthoc_gap
from tauspan.kernel.diagnose.rows import Findings, Rows, cell, heat, matrix_table
from tauspan.kernel.operator.closed_form import logits_at_base
from tauspan.kernel.operator.interference import interference
from tauspan.kernel.rows.data import rows_of
from tauspan.kernel.solvers.estimates import Estimate
from tauspan.models import Encoder
from tauspan.vector import TaskVector

Advance = Callable[[int, str], None]


def energy_findings(tasks: Sequence[Rows], which: Chosen, advance: Advance) -> Findings:
    """Local energy of each task's eigenfunctions on its own rows against the rows of all others."""
    rows: list[dict[str, Cell]] = []
    series: list[dict[str, Any]] = []
    numbers: list[dict[str, Any]] = []
    for mine in tasks:
        control = [batch for other in tasks if other is not mine for batch in other.batches]
        cross = mine.kernel_with([*mine.held_out, *control]).dense()
        advance(1, f"energy of {mine.name}")
        chosen = which
        if isinstance(which, int) and not isinstance(which, bool):
            chosen = min(which, len(Eigenfunctions.of(mine.kernel).values)) if which > 0 else which
        found = local_energy(mine.kernel, cross, chosen, mine.targets)
        unseen = sum(map(rows_of, mine.held_out))
        off, held = (
            replace(found, control=found.control[unseen:]),
            replace(found, control=found.control[:unseen]),
        )
        rows.append({
            "task": mine.name, "first" if isinstance(which, int) else "chosen": len(found.chosen),
            "support": _spread(off.on_support), "held out": _spread(held.on_control),
            "control": _spread(off.on_control), "ratio": _spread(off.ratio),
        })  # fmt: skip
        series.append({
            "kind": "energy", "group": "energy", "title": mine.name, "support": off.support.tolist(),
            "held_out": held.control.tolist(), "control": off.control.tolist(), "ratio": off.ratio.value,
        })  # fmt: skip
        numbers.append({
            "task": mine.name, "chosen": list(found.chosen), "support": off.on_support.value,
            "held_out": held.on_control.value, "control": off.on_control.value, "ratio": off.ratio.value,
            "ratio_se": off.ratio.standard_error,
        })  # fmt: skip
    note = (
        "Sum of squared eigenfunctions of the task's kernel at theta0, mean over its own rows, over own rows of another "
        "split, and over the other tasks' rows under the same head; ± standard error over rows. Ratio: control over "
        "support; what the support fits by chance shows in held out."
    )
    return Findings([Table("Local energy", rows, note)], series, {"energy": numbers})


def _spread(one: Estimate) -> str:
    return f"{one.value:.3f} ± {one.standard_error:.3f}"


def path_findings(
    encoder: Encoder,
    tasks: Sequence[Rows],
    vectors: Mapping[str, TaskVector],
    scales: Sequence[float],
    advance: Advance,
) -> Findings:
    """Lazy or rich: curvature, linearity error along tau, post-hoc gap, and how far the kernel moves."""
    rows: list[dict[str, Cell]] = []
    gaps: list[dict[str, Cell]] = []
    moved_rows: list[dict[str, Cell]] = []
    series: list[dict[str, Any]] = []
    for mine in tasks:
        vector, tangent = vectors[mine.name], mine.kernel.tangent
        wanted = sorted({*map(float, scales), 1.0})
        path = linearity(tangent, vector, mine.batches, wanted)
        at_one = wanted.index(1.0)
        gap = posthoc_gap(path.start, path.tangent, path.moved[at_one], mine.labels)
        rows.append({
            "task": mine.name, "regime": vector.regime, "norm": vector.norm(),
            "q": lazy_coefficient(tangent, vector, mine.batches).value, "slope": cell(path.slope),
            "error at 1": cell(path.relative[at_one]),
        })  # fmt: skip
        gaps.append({
            "task": mine.name, "gap": gap.relative.value, "agreement": gap.agreement, "non-linear": gap.nonlinear,
            "linear": gap.linear, "advantage": gap.advantage,
        })  # fmt: skip
        series.append({
            "kind": "linearity", "group": "linearity", "title": mine.name, "scales": wanted,
            "relative": [cell(error) for error in path.relative],
        })  # fmt: skip
        advance(1, f"path of {mine.name}")
        edited = apply(encoder, vector.as_regime("standard"))
        after = mine.kernel_with(at=edited)  # type: ignore[arg-type]
        moved_rows.append({
            "task": mine.name, "distance": kernel_distance(mine.kernel, after).value,
            "relative change": kernel_change(mine.kernel, after).value,
        })  # fmt: skip
        advance(1, f"kernel after {mine.name}")
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
        Table("Lazy or rich", rows, note), Table("The model against its linearisation", gaps, meant),
        Table("Motion of the kernel", moved_rows, about),
    ]  # fmt: skip
    return Findings(tables, series, {"lazy": rows, "posthoc_gap": gaps, "motion": moved_rows})


def interference_findings(
    tasks: Sequence[Rows], vectors: Mapping[str, TaskVector], advance: Advance
) -> Findings:
    """J_t' tau_t on all pairs, per class, and the accuracies they predict."""
    names = [mine.name for mine in tasks]
    kernels = {mine.name: mine.kernel_with(outputs="all") for mine in tasks}
    found = interference(kernels, {name: vectors[name] for name in names})
    start = {name: logits_at_base(kernel) for name, kernel in kernels.items()}
    labels = {mine.name: mine.labels for mine in tasks}
    advance(1, "interference")
    predicted, classes = found.accuracies(start, labels), found.by_class(labels)
    table, title = found.table(), "Interference"
    note = (
        "Root mean square of the logits' change J tau on the rows of the line's task by the column's vector, over the "
        "change on the vector's own rows."
    )
    tables = [
        matrix_table(title, names, table, note),
        Table("Predicted accuracy of the tangent model at alpha 1", predicted, "On these rows."),
        Table("Interference by class", classes, "Root mean square change; over own: over that by the task's own vector."),
    ]  # fmt: skip
    lines = [[cell(value) for value in line] for line in table.tolist()]
    result = {"interference": lines, "predicted": predicted, "interference_by_class": classes}
    return Findings(tables, [heat(title, "interference", names, table)], result)
