"""The paper's two protocols: addition and negation, with one coefficient chosen on validation."""

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from tauspan import models
from tauspan.contributions import Batches, Contributions, contributions
from tauspan.edit import EditRegime, edit_regime, set_weights
from tauspan.errors import UsageError
from tauspan.evaluate import accuracy, batches, outputs
from tauspan.linear import linearize
from tauspan.measure import progress
from tauspan.models import Classifier, Encoder
from tauspan.report import Cell, Report, Table, provenance
from tauspan.tasks import Task, build_head
from tauspan.vector import TaskVector

PAPER_GRID = tuple(round(0.05 * step, 2) for step in range(21))
_WIDEST = 8.0
Grid = Literal["paper", "auto"] | Sequence[float]


class _Curves:
    """Accuracy along directions of weight space: logits at theta0 + alpha * direction, in any regime.

    In the tangent regimes one pass per split serves every alpha, because outputs are affine in it; the
    ordinary model is run anew at each alpha, its weights set in place on one working copy.
    """

    def __init__(
        self, encoder: Encoder, tasks: Sequence[Task], directions: Mapping[str, TaskVector], regime: EditRegime,
        point: Literal["encoder", "logits"] | None, batch_size: int, max_tokens: int | None, show_progress: bool,
    ) -> None:  # fmt: skip
        fingerprint = models.fingerprint_of(encoder)
        for vector in directions.values():
            vector.require_base(fingerprint)
        self.encoder, self.directions, self.regime, self.point = encoder, directions, regime, point
        self.batch_size, self.max_tokens, self.show = batch_size, max_tokens, show_progress
        self.heads = {task: build_head(task, encoder) for task in tasks}
        self._passes: dict[tuple[Task, str], Contributions] = {}
        self._prepared: dict[tuple[Task, str], Batches] = {}
        self._copy: Encoder | None = None
        self._at: tuple[str, float] | None = None

    def accuracy(self, task: Task, split: str, direction: str, alpha: float) -> float:
        """Accuracy of one task on one split at one point of one direction."""
        rows = task.split(split)
        if self.regime == "standard":
            logits = self._standard(task, split, direction, alpha)
        else:
            passed = self._passes[task, split]
            logits = passed.logits([alpha if name == direction else 0.0 for name in passed.names])
        return accuracy(logits, rows.labels)

    def prepare(self, needs: Mapping[Task, Sequence[str]], split: str) -> None:
        """Make the one pass per task that the tangent regimes need: which directions on which task."""
        if self.regime == "standard":
            return
        with progress(f"tangents on {split}", sum(len(t.split(split)) for t in needs), self.show) as advance:
            for task, names in needs.items():
                vectors = {name: self.directions[name] for name in names}
                tangent = linearize(
                    Classifier(self.encoder, self.heads[task]), list(vectors[names[0]].deltas), self.point
                )
                self._passes[task, split] = contributions(
                    tangent, vectors, self._batches(task, split), task.split(split).labels, advance=advance
                )

    def _batches(self, task: Task, split: str) -> Batches:
        """The split's batches; tokenised once, since the ordinary model reads them at every alpha."""
        if (task, split) not in self._prepared:
            tokens = task.max_tokens if self.max_tokens is None else self.max_tokens
            self._prepared[task, split] = batches(self.encoder, task.split(split), tokens, self.batch_size)
        return self._prepared[task, split]

    def _standard(self, task: Task, split: str, direction: str, alpha: float) -> Tensor:
        if self._copy is None:
            self._copy = copy.deepcopy(self.encoder).eval()
        if self._at != (direction, alpha):
            set_weights(self._copy, self.encoder, self.directions[direction], alpha)
            self._at = (direction, alpha)
        model = Classifier(self._copy, self.heads[task])
        with torch.inference_mode():
            return outputs(model, self._batches(task, split))


def _points(grid: Grid) -> tuple[float, ...]:
    if isinstance(grid, str) and grid not in ("paper", "auto"):
        raise UsageError(
            f"grid={grid!r}: 'paper' (21 points on [0, 1]), 'auto' (widened until the best point is "
            "interior) or a list of coefficients."
        )
    try:
        points = PAPER_GRID if isinstance(grid, str) else tuple(float(alpha) for alpha in grid)
    except (TypeError, ValueError):
        points = ()
    if not points or not all(map(math.isfinite, points)):
        raise UsageError(
            f"grid={grid!r}: it needs at least one coefficient, and each must be a finite number."
        )
    return points


def _widened(points: Sequence[float]) -> tuple[float, ...]:
    """The next stretch of the grid, half as long again in ten steps, never beyond the widest alpha."""
    top = max(points)
    step = max(top / 20, 0.05)
    return tuple(dict.fromkeys(min(round(top + step * k, 4), _WIDEST) for k in range(1, 11)))


At = Callable[[float], dict[str, float]]
Choice = Callable[[Mapping[float, Mapping[str, float]]], float]


class _Scores:
    """Values on a grid of alpha, the choice among them, and whether the grid had to grow."""

    def __init__(self) -> None:
        self.rows: dict[float, dict[str, float]] = {}
        self.widened = False

    def search(self, at: At, choose: Choice, grid: Grid, title: str, show: bool) -> float:
        """Evaluate the grid, an `"auto"` one until its best point is interior, and return the best alpha."""
        self._fill(_points(grid), at, title, show)
        best = choose(self.rows)
        while grid == "auto" and best == max(self.rows) and best < _WIDEST:
            self.widened = True
            self._fill(_widened(tuple(self.rows)), at, title, show)
            best = choose(self.rows)
        return best

    def _fill(self, points: Sequence[float], at: At, title: str, show: bool) -> None:
        with progress(title, len(points), show) as advance:
            for alpha in points:
                if alpha not in self.rows:
                    self.rows[alpha] = at(alpha)
                advance(1, f"alpha {alpha:g}")

    def remark(self, grid: Grid, best: float) -> str:
        """What a reader must know about the grid."""
        if best == max(self.rows):
            return "; the best point is the end of the grid" + ("" if grid == "auto" else ": try grid='auto'")
        return "; the grid was widened until the best point was interior" if self.widened else ""


def add(
    encoder: Encoder,
    vectors: Mapping[Task, TaskVector],
    regime: EditRegime | None = None,
    *,
    grid: Grid = "paper",
    point: Literal["encoder", "logits"] | None = None,
    batch_size: int = 64,
    max_tokens: int | None = None,
    show_progress: bool = True,
) -> Report:
    """Task addition: theta0 + alpha * sum_t tau_t with one shared alpha, as in the paper.

    alpha maximises the mean normalised accuracy on validation: a task's accuracy over the accuracy of its own
    vector alone (alpha 1) in the *same* regime. The test split is read once, after the choice. Absolute,
    normalised and single-task accuracy always stand together, because normalising rewards a regime whose single
    tasks are poor.

    Args:
        encoder: the pre-trained encoder.
        vectors: one vector per task.
        regime: `"standard"`, `"posthoc"` or `"linear"`; None takes the vectors' own.
        grid: `"paper"` (0, 0.05, ..., 1), `"auto"` (widened until the best point is interior, up to 8), or
            the coefficients themselves.
        point: where the tangent model is linearised.
        batch_size: rows per forward pass.
        max_tokens: where texts are cut; None takes each task's own value.
        show_progress: bars on a terminal.

    Returns:
        A `Report`: zero-shot, single-task, added (absolute, normalised) and alpha = 1, per task and mean.

    Cost:
        Standard: one evaluation per grid point and task. Tangent: one pass of two tangents per task and split.
    """
    if not vectors:
        raise UsageError("add needs at least one task and its vector.")
    tasks = list(vectors)
    chosen_regime = edit_regime(next(iter(vectors.values())), regime)
    total: TaskVector = sum(list(vectors.values())[1:], next(iter(vectors.values()))).named("sum")
    directions = {"sum": total, **{f"own {task.name}": vectors[task] for task in tasks}}
    curves = _Curves(encoder, tasks, directions, chosen_regime, point, batch_size, max_tokens, show_progress)
    needs = {task: ["sum", f"own {task.name}"] for task in tasks}

    curves.prepare(needs, "validation")
    single = {task: curves.accuracy(task, "validation", f"own {task.name}", 1.0) for task in tasks}
    scores = _Scores()

    def at(alpha: float) -> dict[str, float]:
        found = {t.name: curves.accuracy(t, "validation", "sum", alpha) for t in tasks}
        return {
            **found,
            "mean normalised": sum(found[t.name] / (single[t] or 1.0) for t in tasks) / len(tasks),
        }

    def choose(rows: Mapping[float, Mapping[str, float]]) -> float:
        return min(
            rows, key=lambda alpha: (-rows[alpha]["mean normalised"], alpha)
        )  # ties: the shortest edit

    best = scores.search(at, choose, grid, f"add, {chosen_regime}", show_progress)

    curves.prepare(needs, "test")
    rows = [_addition_row(curves, task, best) for task in tasks]
    means = {key: sum(float(row[key] or 0) for row in rows) / len(rows) for key in rows[0] if key != "task"}
    rows.append({"task": "mean", **means})
    note = f"alpha = {best:g}, chosen on validation by mean normalised accuracy"
    note += scores.remark(grid, best)
    result = {"alpha": best, "regime": chosen_regime, **means}
    series = [{"kind": "alpha", "title": f"addition, {chosen_regime}", "best": best,
               "points": [{"alpha": a, **scores.rows[a]} for a in sorted(scores.rows)]}]  # fmt: skip
    facts = _facts(encoder, vectors.values(), grid)
    return Report(
        f"Addition, {chosen_regime}", [Table(f"Addition, {chosen_regime}", rows, note)], facts, series, result
    )


def _addition_row(curves: _Curves, task: Task, alpha: float) -> dict[str, Cell]:
    """One task on the test split."""
    own = f"own {task.name}"
    single = curves.accuracy(task, "test", own, 1.0)
    added = curves.accuracy(task, "test", "sum", alpha)
    plain = curves.accuracy(task, "test", "sum", 1.0)
    return {
        "task": task.name,
        "zero shot": curves.accuracy(task, "test", "sum", 0.0),
        "single": single,
        "added": added,
        "added norm.": added / (single or 1.0),
        "alpha 1": plain,
        "alpha 1 norm.": plain / (single or 1.0),
    }


def negate(
    encoder: Encoder,
    task: Task,
    vector: TaskVector,
    controls: Sequence[Task],
    floor: float = 0.95,
    regime: EditRegime | None = None,
    *,
    grid: Grid = "paper",
    point: Literal["encoder", "logits"] | None = None,
    batch_size: int = 64,
    max_tokens: int | None = None,
    show_progress: bool = True,
) -> Report:
    """Task negation: theta0 - alpha * tau forgets a task while control tasks are kept, as in the paper.

    alpha minimises the target's accuracy on validation subject to mean control accuracy on validation
    >= floor * the pre-trained model's. The test split is read once, after the choice.

    Args:
        encoder: the pre-trained encoder.
        task: the target, to be forgotten.
        vector: the target's vector; it is negated here.
        controls: tasks to be kept; their mean accuracy is the control.
        floor: the share of control accuracy to keep.
        regime: `"standard"`, `"posthoc"` or `"linear"`; None takes the vector's own.
        grid: as for `add`.
        point: where the tangent model is linearised.
        batch_size: rows per forward pass.
        max_tokens: where texts are cut; None takes each task's own value.
        show_progress: bars on a terminal.

    Returns:
        A `Report` with target and control accuracy, pre-trained, at the chosen alpha and at alpha = 1.
    """
    if not controls or task.name in {control.name for control in controls}:
        raise UsageError(f"negating {task.name!r} needs control tasks other than itself.")
    if not 0 <= floor <= 1:
        raise UsageError(f"floor={floor}: it is the share of control accuracy to keep, between 0 and 1.")
    chosen_regime = edit_regime(vector, regime)
    tasks = [task, *controls]
    directions = {"negated": (-vector).named("negated")}
    curves = _Curves(encoder, tasks, directions, chosen_regime, point, batch_size, max_tokens, show_progress)
    needs = {one: ["negated"] for one in tasks}

    def at(alpha: float, split: str) -> dict[str, float]:
        control = [curves.accuracy(one, split, "negated", alpha) for one in controls]
        return {
            "target": curves.accuracy(task, split, "negated", alpha),
            "control": sum(control) / len(control),
        }

    curves.prepare(needs, "validation")
    scores = _Scores()
    scores.rows[0.0] = at(0.0, "validation")  # always allowed, also where a grid leaves it out
    least = floor * scores.rows[0.0]["control"]

    def choose(rows: Mapping[float, Mapping[str, float]]) -> float:
        kept = [alpha for alpha, row in rows.items() if row["control"] >= least]
        return min(kept, key=lambda alpha: (rows[alpha]["target"], alpha))  # ties: the shortest edit

    title = f"negate {task.name}, {chosen_regime}"
    best = scores.search(lambda alpha: at(alpha, "validation"), choose, grid, title, show_progress)

    curves.prepare(needs, "test")
    before = at(0.0, "test")
    rows: list[dict[str, Cell]] = []
    for label, alpha in (("pre-trained", 0.0), ("negated", best), ("alpha = 1", 1.0)):
        found = at(alpha, "test")
        share = found["control"] / (before["control"] or 1.0)
        rows.append({"row": label, "alpha": alpha, **found, "control kept": share})
    note = f"alpha = {best:g}: least target accuracy on validation with control >= {floor:g} of the pre-trained model's"
    note += scores.remark(grid, best)
    title = f"Negation of {task.name}, {chosen_regime}"
    result = {"alpha": best, "regime": chosen_regime, "before": before, **at(best, "test")}
    series = [{"kind": "alpha", "title": title, "best": best,
               "points": [{"alpha": a, **scores.rows[a]} for a in sorted(scores.rows)]}]  # fmt: skip
    return Report(title, [Table(title, rows, note)], _facts(encoder, [vector], grid), series, result)


def _facts(encoder: Encoder, vectors: Iterable[TaskVector], grid: Grid) -> dict[str, Any]:
    listed = list(vectors)
    return provenance(
        base=encoder.source,
        fingerprint=models.fingerprint_of(encoder),
        vectors=[vector.label for vector in listed],
        seeds=sorted({vector.info["seed"] for vector in listed if "seed" in vector.info}),
        grid=grid if isinstance(grid, str) else list(grid),
    )
