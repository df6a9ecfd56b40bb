"""Disentanglement error: how much two task vectors, added, disturb what each does alone."""

import copy
import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from tauspan import models
from tauspan.contributions import Batches, Contributions, contributions
from tauspan.edit import EditRegime, edit_regime, set_weights
from tauspan.errors import DataError, NonFiniteError, UsageError, nearest
from tauspan.evaluate import batches, outputs
from tauspan.linear import linearize
from tauspan.measure import progress
from tauspan.models import Classifier, Encoder, Head
from tauspan.report import Cell, Report, Table, provenance
from tauspan.tasks import Task, build_head
from tauspan.vector import TaskVector

GRID = tuple(round(0.2 * step - 2, 1) for step in range(21))
Axis = Sequence[float]
Distance = Literal["argmax", "probabilities"]
_At: TypeAlias = tuple[float, float]
_Pair: TypeAlias = tuple[Task, Task]
_Outputs: TypeAlias = Callable[[int, _At], Tensor]
_CLOSE = 1e-9  # 0.1 * 10 is 1 for whoever asks whether a grid reaches it


def disentanglement(
    encoder: Encoder,
    vectors: Mapping[Task, TaskVector],
    regime: EditRegime | None = None,
    *,
    pairs: Sequence[tuple[str, str]] | None = None,
    grid: Axis | tuple[Axis, Axis] = GRID,
    box: tuple[float, float] = (0.0, 1.0),
    distance: Distance = "argmax",
    split: Literal["train", "validation", "test"] = "test",
    point: Literal["encoder", "logits"] | None = None,
    batch_size: int = 64,
    max_tokens: int | None = None,
    show_progress: bool = True,
) -> Report:
    """The disentanglement error of pairs of tasks on a grid of coefficients (section 4 of arXiv 2305.12827).

    xi(a1, a2) = sum_{t = 1, 2} E_{x ~ mu_t} dist(f(x; theta0 + a_t tau_t), f(x; theta0 + a1 tau1 + a2 tau2)),
    each task's rows under its own head, all rows of the split. 0 says that neither vector disturbs the other's
    task; the largest value is 2. In the tangent regimes f is the tangent model.

    Args:
        encoder: the pre-trained encoder, or a re-initialised one (`tauspan.reinitialised`) with vectors from it.
        vectors: one vector per task, at least two.
        regime: `"standard"`, `"posthoc"` or `"linear"`; None takes the vectors' own.
        pairs: the tasks' names, two by two; None takes all pairs.
        grid: the coefficients in rising order, one sequence for both axes or one for each.
        box: the coefficients that are used for editing; xi is averaged over the grid points in [low, high]^2.
        distance: `"argmax"`, 1 where the predicted classes differ, as in the paper; `"probabilities"`, the
            total variation of the class probabilities, in [0, 1] as well.
        split: whose rows.
        point: where the tangent model is linearised.
        batch_size: rows per forward pass.
        max_tokens: where texts are cut; None takes each task's own value.
        show_progress: bars on a terminal.

    Returns:
        A `Report`: per pair the mean of xi over the box and over the grid, and xi(1, 1) where the grid has that
        point, each with its standard error over rows. `report.series` has one entry a pair: `grid` (two lists),
        `xi` and `stderr` (a list of rows, one for each a1).

    Raises:
        UsageError: fewer than two tasks, a pair, grid, box or distance that does not exist or fit.
        BaseMismatchError: a vector starts from another model.
        DataError: a split has a single row, so that nothing is known of its spread.
        NonFiniteError: a model on the grid gives NaN or infinite outputs.

    Cost:
        Tangent: one pass per task in all directions it is paired in, then sums of its results. Standard: G1 * G2
        forward passes over both tasks' rows per pair, and G1 + G2 over one's. Memory: 8 bytes per grid point and row.

    Example:
        >>> from tauspan.models import Head
        >>> net = torch.nn.Linear(2, 2, bias=False)
        >>> model = Encoder(net)
        >>> def task(name, x):  # each task has an input of its own
        ...     rows = dict.fromkeys(["train", "validation", "test"], (torch.tensor(x), torch.tensor([0, 1])))
        ...     return Task.from_tensors(name, ["a", "b"], head=Head(torch.eye(2)), **rows)
        >>> def vector(column):
        ...     deltas = {"weight": torch.randn(2, 2) * torch.tensor(column)}
        ...     return TaskVector(deltas, models.fingerprint_of(net), "standard")
        >>> left, right = task("left", [[1.0, 0.0], [-1.0, 0.0]]), task("right", [[0.0, 1.0], [0.0, -1.0]])
        >>> found = disentanglement(model, {left: vector([1.0, 0.0]), right: vector([0.0, 1.0])})
        >>> found.result["pairs"][0]["grid"]
        0.0
    """
    tasks = _tasks(vectors)
    chosen = edit_regime(next(iter(vectors.values())), regime)
    fingerprint = models.fingerprint_of(encoder)
    for vector in vectors.values():
        edit_regime(vector, chosen)
        vector.require_base(fingerprint)
    couples = _pairs(tasks, pairs)
    axes = _axes(grid)
    _require_box(box, axes)
    if distance not in _DISTANCES:
        raise UsageError(f"unknown distance {distance!r}. {nearest(str(distance), _DISTANCES)}")
    needed = list(dict.fromkeys(task for couple in couples for task in couple))
    for task in needed:
        if len(task.split(split)) < 2:
            raise DataError(
                f"{split} of task {task.name!r} has one row: a standard error needs at least two."
            )
    heads = {task: build_head(task, encoder, max_tokens=max_tokens) for task in needed}
    prepared = {
        task: batches(encoder, task.split(split), task.tokens(max_tokens), batch_size) for task in needed
    }

    if chosen == "standard":
        source = _ordinary(encoder, vectors, heads, prepared)
    else:
        directions = {
            task: [t for t in needed if any({task, t} <= set(c) for c in couples)] for task in needed
        }
        source = _tangent(encoder, vectors, heads, prepared, directions, split, point, show_progress)
    rows: list[dict[str, Cell]] = []
    series, numbers = [], []
    with progress(f"xi, {chosen}", len(couples) * len(axes[0]), show_progress) as advance:
        for couple in couples:
            distances = _distances(source(couple), couple, axes, _DISTANCES[distance], advance)
            names = [task.name for task in couple]
            found = _numbers(distances, axes, box)
            rows.append({"regime": chosen, "pair": " + ".join(names), **found})
            numbers.append({"tasks": names, **found})
            xi, stderr = _mean(distances)
            series.append({
                "kind": "xi", "title": chosen, "group": "-".join(["xi", *names]), "tasks": names, "box": list(box),
                "grid": [list(axis) for axis in axes], "xi": xi.tolist(), "stderr": stderr.tolist(),
                "mean": found["box"], "mean_stderr": found["box s.e."], "distance": distance,
            })  # fmt: skip
    note = (
        f"sum of both tasks' distances ({distance}), 0 to 2, on all rows of {split}; box [{box[0]:g}, {box[1]:g}] "
        "on both axes; s.e.: standard error over rows, the vectors fixed"
    )
    facts = provenance(
        base=encoder.source, fingerprint=fingerprint, vectors=[vectors[task].label for task in needed],
        seeds=sorted({v.info["seed"] for v in vectors.values() if "seed" in v.info}),
        split=split, rows={task.name: len(task.split(split)) for task in needed},
    )  # fmt: skip
    result = {"regime": chosen, "distance": distance, "box": list(box), "pairs": numbers}
    title = f"Disentanglement error, {chosen}"
    return Report(title, [Table(title, rows, note)], facts, series, result)


# -- what was asked for ----------------------------------------------------------------------------------------


def _tasks(vectors: Mapping[Task, TaskVector]) -> dict[str, Task]:
    tasks = {task.name: task for task in vectors}
    if len(tasks) < len(vectors):
        raise UsageError("two tasks have the same name; give each its own.")
    if len(tasks) < 2:
        raise UsageError(f"{len(tasks)} task(s) and vector(s): interference needs at least two.")
    return tasks


def _pairs(tasks: Mapping[str, Task], pairs: Sequence[tuple[str, str]] | None) -> list[_Pair]:
    if pairs is None:
        return list(itertools.combinations(tasks.values(), 2))
    found = []
    for pair in pairs:
        if isinstance(pair, str) or len(pair) != 2 or pair[0] == pair[1]:
            raise UsageError(f"the pair {pair!r} must name two different tasks.")
        for name in pair:
            if name not in tasks:
                raise UsageError(f"the pair {tuple(pair)} names no task {name!r}. {nearest(name, tasks)}")
        found.append((tasks[pair[0]], tasks[pair[1]]))
    if not found or len(set(map(frozenset, found))) < len(found):
        raise UsageError(f"pairs={list(pairs)}: it needs at least one pair and none twice.")
    return found


def _axes(grid: Axis | tuple[Axis, Axis]) -> tuple[Axis, Axis]:
    """The coefficients of both axes."""
    try:
        whole: list[Any] = list(grid)
        two = len(whole) == 2 and all(hasattr(axis, "__len__") for axis in whole)
        axes = [[float(a) for a in axis] for axis in (whole if two else (whole, whole))]
    except (TypeError, ValueError):
        axes = [[]]
    for axis in axes:
        rising = all(low < high for low, high in itertools.pairwise(axis))
        if not axis or not rising or not all(map(math.isfinite, axis)):
            raise UsageError(
                f"grid={grid!r}: it needs finite coefficients in rising order, one sequence for both axes or two."
            )
    return axes[0], axes[1]


def _inside(axis: Axis, box: tuple[float, float]) -> Tensor:
    values = torch.tensor(axis, dtype=torch.float64)
    return (values >= box[0] - _CLOSE) & (values <= box[1] + _CLOSE)


def _require_box(box: tuple[float, float], axes: tuple[Axis, Axis]) -> None:
    if len(box) != 2 or not box[0] <= box[1] or not all(map(math.isfinite, box)):
        raise UsageError(f"box={box!r}: it is (low, high), two finite numbers.")
    if not all(_inside(axis, box).any() for axis in axes):
        raise UsageError(
            f"box={box!r}: no point of the grid lies in it. Give the box you edit in, or a wider grid."
        )


# -- outputs of the edited models ------------------------------------------------------------------------------


def _ordinary(
    encoder: Encoder, vectors: Mapping[Task, TaskVector], heads: Mapping[Task, Head], prepared: Mapping[Task, Batches]
) -> Callable[[_Pair], _Outputs]:  # fmt: skip
    """Logits of f(x; theta0 + a1 tau1 + a2 tau2) from one working copy, whose weights are set where they change."""
    working = copy.deepcopy(encoder).eval()
    stands: list[Any] = [None]

    @functools.lru_cache(maxsize=2)
    def scaled(task: Task, coefficient: float) -> TaskVector:
        return coefficient * vectors[task]

    def source(pair: _Pair) -> _Outputs:
        def at(place: int, where: _At) -> Tensor:
            if stands[0] != (pair, where):
                edit = scaled(pair[0], where[0]) + scaled(pair[1], where[1])
                set_weights(working, encoder, edit, 1.0)
                stands[0] = (pair, where)
            return outputs(Classifier(working, heads[pair[place]]), prepared[pair[place]])

        return at

    return source


def _tangent(
    encoder: Encoder, vectors: Mapping[Task, TaskVector], heads: Mapping[Task, Head], prepared: Mapping[Task, Batches],
    directions: Mapping[Task, Sequence[Task]], split: str, point: Literal["encoder", "logits"] | None, show: bool,
) -> Callable[[_Pair], _Outputs]:  # fmt: skip
    """Logits of the tangent model at a1 tau1 + a2 tau2 from one pass per task in all directions it needs."""
    passes: dict[Task, Contributions] = {}
    with progress(
        f"tangents on {split}", sum(len(task.split(split)) for task in directions), show
    ) as advance:
        for task, others in directions.items():
            taus = {other.name: vectors[other] for other in others}
            tangent = linearize(Classifier(encoder, heads[task]), list(vectors[task].deltas), point)
            labels = task.split(split).labels
            passes[task] = contributions(tangent, taus, prepared[task], labels, advance=advance)

    def source(pair: _Pair) -> _Outputs:
        names = {task.name: [task.name] for task in pair}
        both = [passes[task].summed(names) for task in pair]
        return lambda place, where: both[place].logits(where)

    return source


# -- distances and their means ---------------------------------------------------------------------------------


def _classes_differ(first: Tensor, second: Tensor) -> Tensor:
    return (first.argmax(-1) != second.argmax(-1)).double()


def _total_variation(first: Tensor, second: Tensor) -> Tensor:
    return (first.double().softmax(-1) - second.double().softmax(-1)).abs().sum(-1) / 2


_DISTANCES = {"argmax": _classes_differ, "probabilities": _total_variation}


def _distances(
    edited: _Outputs,
    pair: _Pair,
    axes: tuple[Axis, Axis],
    dist: Callable[[Tensor, Tensor], Tensor],
    advance: Callable[[int, str], None],
) -> list[Tensor]:
    """For each task of a pair, the distance of each row at each grid point, shape (G1, G2, N_t), float64."""

    def logits(place: int, where: _At) -> Tensor:
        found = edited(place, where)
        if not found.isfinite().all():
            raise NonFiniteError(
                f"the model at {where[0]:g} x {pair[0].name!r} + {where[1]:g} x {pair[1].name!r} gives outputs that are "
                f"not finite on {pair[place].name!r}. Take a smaller grid."
            )
        return found

    alone = ({a: logits(0, (a, 0.0)) for a in axes[0]}, {a: logits(1, (0.0, a)) for a in axes[1]})
    rows = [len(next(iter(own.values()))) for own in alone]
    found = [torch.empty(len(axes[0]), len(axes[1]), count, dtype=torch.float64) for count in rows]
    for i, first in enumerate(axes[0]):
        for j, second in enumerate(axes[1]):
            where = (first, second)
            for place, own in enumerate(alone):
                single = own[where[place]]
                mixed = single if where[1 - place] == 0 else logits(place, where)
                found[place][i, j] = dist(single, mixed)
        advance(1, " + ".join(task.name for task in pair))
    return found


def _mean(distances: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The error and its standard error from distances of two independent samples of rows, the last axis."""
    xi = torch.stack([one.mean(-1) for one in distances]).sum(0)
    variance = torch.stack([one.var(-1) / one.shape[-1] for one in distances]).sum(0)
    return xi, variance.sqrt()


def _numbers(
    distances: Sequence[Tensor], axes: tuple[Axis, Axis], box: tuple[float, float]
) -> dict[str, Cell]:
    """Means over parts of the grid; rows are the sample, so each row is averaged over the points first."""
    first, second = (_inside(axis, box) for axis in axes)
    one = [[k for k, a in enumerate(axis) if abs(a - 1) < _CLOSE] for axis in axes]
    parts = {
        "box": [each[first][:, second].mean((0, 1)) for each in distances],
        "grid": [each.mean((0, 1)) for each in distances],
        "at (1, 1)": [each[one[0][0], one[1][0]] for each in distances] if all(one) else None,
    }
    found: dict[str, Cell] = {}
    for name, rows in parts.items():
        xi, stderr = (None, None) if rows is None else map(float, _mean(rows))
        found |= {name: xi, f"{name} s.e.": stderr}
    return found
