"""`disentanglement`: maps of the disentanglement error of pairs of tasks, at equal coefficients and at matched drift."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from tauspan.core.arguments import checked
from tauspan.core.errors import UsageError, nearest
from tauspan.core.measure import progress, underway
from tauspan.core.reading import Reading
from tauspan.core.report import Cell, Report, Table, noted, provenance
from tauspan.editing.edit import EditRegime, edit_regime, point_of
from tauspan.editing.maps.asked import (  # fmt: skip
    GRID,
    Axis,
    Pair,
    axes_of,
    pairs_of,
    require_box,
    require_rows,
    tasks_of,
    units_of,
)
from tauspan.editing.maps.drift import Drift
from tauspan.editing.maps.edited import Edited, Ordinary, Tangent, finite_logits
from tauspan.editing.maps.error import DISTANCES, Distance, distances, mean, numbers
from tauspan.models import Encoder
from tauspan.tasks import Task, build_head
from tauspan.tasks.batches import batches
from tauspan.vector import TaskVector, fitted


@noted
@checked
def disentanglement(
    encoder: Encoder,
    vectors: Mapping[Task, TaskVector],
    regime: EditRegime | None = None,
    *,
    pairs: Sequence[tuple[str, str]] | None = None,
    grid: Axis | tuple[Axis, Axis] = GRID,
    box: tuple[float, float] = (0.0, 1.0),
    drift: bool | float | Mapping[str, float] = False,
    distance: Distance = "argmax",
    split: Literal["train", "validation", "test"] = "test",
    reading: Reading = Reading(),
) -> Report:
    """The disentanglement error of pairs of tasks on a grid of coefficients (section 4 of arXiv 2305.12827).

    xi(a1, a2) = sum_{t = 1, 2} E_{x ~ mu_t} dist(f(x; theta0 + a_t tau_t), f(x; theta0 + a1 tau1 + a2 tau2)),
    each task's rows under its own head, all rows of the split. 0 says that neither vector disturbs the other's
    task; the largest value is 2. In the tangent regimes f is the tangent model.

    xi at equal coefficients is smaller for shorter vectors, whatever the regime. `drift` adds a second map of each
    pair that their lengths do not enter: its axes are the drift of each vector on its own task's rows,

    drift_t(a) = mean_x |c(f(x; theta0 + a tau_t)) - c(f(x; theta0))| / mean_x |c(f(x; theta0))|,

    c(.) the logits of a row less their mean. A point (u1, u2) of that map stands for the coefficients whose drifts are
    |u1| d1 and |u2| d2, with the signs of u1 and u2, where d1 and d2 are the units of drift. Regimes are compared at
    matched drift by giving each the same units: those that one of them had at alpha = 1.

    Args:
        encoder: the pre-trained encoder, or a re-initialised one (`tauspan.reinitialised`) with vectors from it.
        vectors: one vector per task, at least two.
        regime: `"standard"`, `"posthoc"` or `"linear"`; None takes the vectors' own.
        pairs: the tasks' names, two by two; None takes all pairs.
        grid: the coefficients in rising order, one sequence for both axes or one for each; multiples of the units
            of drift in the second map.
        box: the coefficients that are used for editing; xi is averaged over the grid points in [low, high]^2.
        drift: also the map at matched drift; its units are a number for all tasks, one by task name, or with True
            each vector's own drift at alpha = 1.
        distance: `"argmax"`, 1 where the predicted classes differ, as in the paper; `"probabilities"`, the
            total variation of the class probabilities, in [0, 1] as well.
        split: whose rows.
        reading: batches, where texts are cut, and the point of the tangent model; see `tauspan.Reading`.

    Returns:
        A `Report`: per pair the mean of xi over the box and over the grid, and xi(1, 1) where the grid has that
        point, each with its standard error over rows. `report.series` has one entry a map: `grid` (two lists),
        `xi` and `stderr` (a list of rows, one for each a1). With `drift` the rows say which axes they have,
        `report.result["drift"]` holds `at alpha 1` and `unit` by task and the second maps' numbers as `pairs`, and
        their series hold the coefficients behind the grid as `alphas`. A drift that no coefficient reaches leaves its
        points of the map empty (None), and a mean over a part that has such a point.

    Raises:
        UsageError: fewer than two tasks, a pair, grid, box, distance or unit of drift that does not exist or fit.
        BaseMismatchError: a vector starts from another model.
        DataError: a split has a single row, so that nothing is known of its spread.
        NonFiniteError: a model on the grid gives NaN or infinite outputs.

    Cost:
        Tangent: one pass per task in all directions it is paired in, then sums of its results; drift costs nothing
        more, since it is proportional to alpha. Standard: G1 * G2 forward passes over both tasks' rows per pair, and
        G1 + G2 over one's; twice that with `drift`, and about 6 over one's rows for every point of an axis, to find its
        coefficient. Memory: 8 bytes per grid point and row.

    Example:
        >>> import torch
        >>> from tauspan.models import Head, fingerprint_of
        >>> net = torch.nn.Linear(2, 2, bias=False)
        >>> model = Encoder(net)
        >>> def task(name, x):  # each task has an input of its own
        ...     rows = dict.fromkeys(["train", "validation", "test"], (torch.tensor(x), torch.tensor([0, 1])))
        ...     return Task.from_tensors(name, ["a", "b"], head=Head(torch.eye(2)), **rows)
        >>> def vector(column):
        ...     deltas = {"weight": torch.randn(2, 2) * torch.tensor(column)}
        ...     return TaskVector(deltas, fingerprint_of(net), "standard")
        >>> left, right = task("left", [[1.0, 0.0], [-1.0, 0.0]]), task("right", [[0.0, 1.0], [0.0, -1.0]])
        >>> found = disentanglement(model, {left: vector([1.0, 0.0]), right: vector([0.0, 1.0])})
        >>> found.result["pairs"][0]["grid"]
        0.0
    """
    tasks = tasks_of(vectors)
    chosen = edit_regime(next(iter(vectors.values())), regime)
    for vector in vectors.values():
        edit_regime(vector, chosen)
    vectors = fitted(vectors, encoder, tangent=chosen != "standard")
    couples = pairs_of(tasks, pairs)
    axes = axes_of(grid)
    require_box(box, axes)
    if distance not in DISTANCES:
        raise UsageError(f"unknown distance {distance!r}. {nearest(str(distance), DISTANCES)}")
    needed = list(dict.fromkeys(task for couple in couples for task in couple))
    require_rows(needed, split)
    units = units_of(drift, needed)
    with underway("heads"):
        heads = {task: build_head(task, encoder, max_tokens=reading.max_tokens) for task in needed}
    prepared = {
        task: batches(encoder, task.split(split), task.tokens(reading.max_tokens), reading.batch_size)
        for task in needed
    }
    edited: Edited
    if chosen == "standard":
        edited = Ordinary(encoder, vectors, heads, prepared)
    else:
        directions = {
            task: [t for t in needed if any({task, t} <= set(c) for c in couples)] for task in needed
        }
        at = point_of(list(vectors.values()), reading.point)
        edited = Tangent(encoder, vectors, heads, prepared, directions, split, at)

    maps = _Maps(edited, chosen, box, distance, named=units is not None)
    drifts = {} if units is None else _drifts(edited, couples)
    used = {name: unit or drifts[name](1.0) for name, unit in (units or {}).items()}
    readings = 1 if units is None else 2
    with progress(f"xi, {chosen}", readings * len(couples) * len(axes[0])) as advance:
        for couple in couples:
            maps.draw(couple, axes, axes, advance)
            if units is not None:
                both = tuple(
                    [drifts[task.name].coefficient(u * used[task.name]) for u in axis]
                    for task, axis in zip(couple, axes, strict=True)
                )
                maps.draw(couple, axes, (both[0], both[1]), advance, [used[task.name] for task in couple])
    note = (
        f"sum of both tasks' distances ({distance}), 0 to 2, on all rows of {split}; box [{box[0]:g}, {box[1]:g}] "
        "on both axes; s.e.: standard error over rows, the vectors fixed"
    )
    if any(row["box"] is None or row["grid"] is None for row in maps.rows):
        note += "; empty: a part with points whose drift a vector never reaches"
    facts = provenance(
        base=encoder.source, fingerprint=next(iter(vectors.values())).base,
        vectors=[vectors[task].label for task in needed],
        seeds=sorted({v.info["seed"] for v in vectors.values() if "seed" in v.info}),
        split=split, rows={task.name: len(task.split(split)) for task in needed},
    )  # fmt: skip
    result: dict[str, Any] = {
        "regime": chosen, "distance": distance, "box": list(box), "pairs": maps.found["alpha"],
    }  # fmt: skip
    title = f"Disentanglement error, {chosen}"
    tables = [Table(title, maps.rows, note)]
    if units is not None:
        own = {name: drifts[name](1.0) for name in used}
        result["drift"] = {"at alpha 1": own, "unit": used, "pairs": maps.found["drift"]}
        tables.append(_drift_table(f"Drift, {chosen}", drifts, used))
    return Report(title, tables, facts, maps.series, result)


class _Maps:
    """Maps as they are made: a row of the table, a series for the picture and the numbers of each."""

    def __init__(
        self, edited: Edited, regime: str, box: tuple[float, float], distance: Distance, named: bool
    ) -> None:
        self._edited, self._regime, self._box, self._distance = edited, regime, box, distance
        self._named = named
        self.rows: list[dict[str, Cell]] = []
        self.series: list[dict[str, Any]] = []
        self.found: dict[str, list[dict[str, Any]]] = {"alpha": [], "drift": []}

    def draw(
        self, pair: Pair, grid: tuple[Axis, Axis], alphas: tuple[Axis, Axis], advance: Callable[[int, str], None],
        units: Sequence[float] | None = None,
    ) -> None:  # fmt: skip
        """One map whose points are called `grid` and are made at the coefficients `alphas`."""
        apart = distances(self._edited.pair(pair), pair, alphas, DISTANCES[self._distance], advance)
        found = numbers(apart, grid, self._box)
        names = [task.name for task in pair]
        axes = "alpha" if units is None else "drift"
        reading = {"axes": "equal alpha" if units is None else "matched drift"} if self._named else {}
        self.rows.append({"regime": self._regime, "pair": " + ".join(names), **reading, **found})
        self.found[axes].append({"tasks": names, **found})
        xi, stderr = mean(apart)
        more: dict[str, Any] = {}
        if units is not None:
            more = {"axes": "drift", "unit": list(units), "alphas": [_known(axis) for axis in alphas]}
        self.series.append({
            "kind": "xi", "title": self._regime, "group": "-".join(["xi" if units is None else "xi-drift", *names]),
            "tasks": names, "box": list(self._box), "grid": [list(axis) for axis in grid],
            "xi": list(map(_known, xi.tolist())), "stderr": list(map(_known, stderr.tolist())), "mean": found["box"],
            "mean_stderr": found["box s.e."], "distance": self._distance, **more,
        })  # fmt: skip


def _known(values: Sequence[float]) -> list[float | None]:
    """Numbers for JSON, None where one is not known."""
    return [None if math.isnan(value) else value for value in values]


def _drifts(edited: Edited, couples: Sequence[Pair]) -> dict[str, Drift]:
    """Each task's own drift, read off the first pair that it is in."""
    found: dict[str, Drift] = {}
    for pair in couples:
        for place, task in enumerate(pair):
            if task.name not in found:
                found[task.name] = _drift(edited, pair, place)
    return found


def _drift(edited: Edited, pair: Pair, place: int) -> Drift:
    """The drift of one of a pair, the other's coefficient at 0."""
    both = edited.pair(pair)
    return Drift(
        pair[place].name,
        lambda a: finite_logits(both, pair, place, (a, 0.0) if place == 0 else (0.0, a)),
        edited.affine(pair[place]),
    )


def _drift_table(title: str, drifts: Mapping[str, Drift], units: Mapping[str, float]) -> Table:
    rows: list[dict[str, Cell]] = [
        {
            "task": name,
            "drift at alpha 1": drifts[name](1.0),
            "unit": unit,
            "alpha at the unit": _known([drifts[name].coefficient(unit)])[0],
        }
        for name, unit in units.items()
    ]
    note = "mean distance of a task's centred logits from the pre-trained ones over the mean size of these, its own rows"
    return Table(title, rows, note)
