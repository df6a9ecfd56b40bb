"""The questions of an `Editor`, each as a function that asks one."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tauspan.core.arguments import checked
from tauspan.core.choices import Distance, EditRegime, SplitName
from tauspan.core.errors import UsageError
from tauspan.core.reading import Reading
from tauspan.editing.desk.desk import Desk
from tauspan.editing.editor import Editor
from tauspan.editing.maps.asked import GRID, Axis, tasks_of
from tauspan.editing.maps.maps import Maps
from tauspan.editing.search.addition import Addition
from tauspan.editing.search.box import Bounds
from tauspan.editing.search.choose import SolvedCoefficients
from tauspan.editing.search.entropy import AdaMerged
from tauspan.editing.search.grid import Grid
from tauspan.editing.search.negation import Negation, require_controls
from tauspan.editing.search.pareto import Front
from tauspan.editing.search.unknowns import GroupPatterns, Per
from tauspan.models import Encoder
from tauspan.tasks import Task
from tauspan.vector import TaskVector


@checked
def add(
    encoder: Encoder,
    vectors: Mapping[Task, TaskVector],
    regime: EditRegime | None = None,
    *,
    grid: Grid = "paper",
    reading: Reading = Reading(),
) -> Addition:
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
        reading: batches, where texts are cut, and the point of the tangent model; see `tauspan.Reading`.

    Returns:
        An `Addition`: `alpha`, and accuracies on the test split for each task and their mean; `vector` is the chosen
        edit, `apply()` the edited encoder, `report()` the table.

    Cost:
        Standard: one evaluation per grid point and task. Tangent: one pass of two tangents per task and split.
    """
    return _alone("add", encoder, vectors, regime, reading).add(grid=grid)


@checked
def negate(
    encoder: Encoder,
    task: Task,
    vector: TaskVector,
    controls: Sequence[Task],
    floor: float = 0.95,
    regime: EditRegime | None = None,
    *,
    grid: Grid = "paper",
    reading: Reading = Reading(),
) -> Negation:
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
        reading: batches, where texts are cut, and the point of the tangent model; see `tauspan.Reading`.

    Returns:
        A `Negation`: `alpha`, and the accuracies on the test split of the pre-trained model, at the chosen alpha and at
        alpha = 1; its `coefficients` and its `vector` carry the minus sign.
    """
    require_controls(task, controls, floor)
    editor = _alone("negate", encoder, {task: vector}, regime, reading)
    return editor.negate(task, controls, floor, grid=grid)


@checked
def coefficients(
    encoder: Encoder,
    vectors: Mapping[Task, TaskVector],
    regime: EditRegime | None = None,
    *,
    per: Per = "task",
    groups: GroupPatterns | None = None,
    bounds: Bounds | None = (0.0, 1.0),
    ridge: float = 0.0,
    l1: float = 0.0,
    split: SplitName = "validation",  # test is refused, with the reason
    bootstrap: int = 200,
    seed: int = 0,
    tolerance: float = 1e-8,
    max_evaluations: int = 100,
    reading: Reading = Reading(),
) -> SolvedCoefficients:
    """One model for all tasks: theta0 + sum_t a_t tau_t with the coefficients that minimise validation loss.

    The mean over tasks of the mean cross-entropy on `split`, plus ridge/2 |a|^2 + l1 |a|_1, with lo <= a <= hi. In the
    tangent regimes the problem is convex in a and is solved from one pass over the data, with a certificate; a head that
    normalises features at `point="encoder"` makes it non-convex, and the search then starts from the best shared
    coefficient. In the standard regime every trial is an evaluation of the model, its weights set in place, and
    there is no certificate. The test split is read once, after the choice.

    Args:
        encoder: the pre-trained encoder.
        vectors: one vector per task.
        regime: `"standard"`, `"posthoc"` or `"linear"`; None takes the vectors' own.
        per: `"shared"`: one coefficient; `"task"`: one a vector; `"layer"`: one a layer group of a vector.
        groups: for `"layer"`, patterns of tensor names by group instead of the model's blocks.
        bounds: of every coefficient; None leaves them free, which needs rows that no combination separates.
        ridge: the pull of all coefficients to 0.
        l1: the pull of single coefficients to exactly 0.
        split: the rows to choose on.
        bootstrap: resamples behind each 95 % interval; 0 for none.
        seed: of the resamples.
        tolerance: what the certificate should reach.
        max_evaluations: of the standard regime, besides the 21 points of the shared grid.
        reading: batches, where texts are cut, and the point of the tangent model; see `tauspan.Reading`.

    Returns:
        A `SolvedCoefficients`: `coefficients`, their intervals and certificate (`outcome`), and the accuracies on test:
        zero-shot, single task, the paper's shared coefficient, the chosen ones.

    Raises:
        UsageError: no finite minimum, or an argument that does not fit.

    Cost:
        Tangent: one pass of as many tangents as there are directions, per task and split. Standard:
        21 + `max_evaluations` evaluations of all tasks.
    """
    return _alone("coefficients", encoder, vectors, regime, reading).coefficients(
        per=per, groups=groups, bounds=bounds, ridge=ridge, l1=l1, split=split, bootstrap=bootstrap, seed=seed,
        tolerance=tolerance, max_evaluations=max_evaluations,
    )  # fmt: skip


@checked
def front(
    encoder: Encoder,
    task: Task,
    vector: TaskVector,
    controls: Sequence[Task],
    floor: float = 0.95,
    regime: EditRegime | None = None,
    *,
    per: Per = "layer",
    groups: GroupPatterns | None = None,
    bounds: Bounds = (0.0, 1.0),
    ridge: float = 0.0,
    prices: int = 25,
    bootstrap: int = 200,
    seed: int = 0,
    tolerance: float = 1e-8,
    max_evaluations: int = 30,
    reading: Reading = Reading(),
) -> Front:
    """Task negation theta0 - sum_g a_g tau_g with the whole trade between forgetting and keeping.

    At each price c on a logarithmic grid from 1e-3 to 1e3, a minimises F(a) + c C(a) + ridge/2 |a|^2 within the bounds. C
    is the mean cross-entropy of the controls. F is the target's mean of logsumexp(f) minus the mean logit of its wrong
    classes, the cross-entropy to the uniform distribution over them. Both are convex in a in the tangent regimes, so
    the prices trace the whole front of (F, C), each point with a certificate. Among the front, refined where the
    floor is crossed, and the paper's shared grid, the point of least target accuracy on validation is chosen whose
    control accuracy is >= floor * the pre-trained model's; ties go to the shortest edit. So it is never worse on
    validation than the grid's choice. The test split is read once, after the choice.

    Args:
        encoder: the pre-trained encoder.
        task: the target, to be forgotten.
        vector: the target's vector; it is negated here.
        controls: tasks to be kept.
        floor: the share of control accuracy to keep.
        regime: `"standard"`, `"posthoc"` or `"linear"`; None takes the vector's own.
        per: `"shared"`: one coefficient; `"layer"`: one a layer group.
        groups: for `"layer"`, patterns of tensor names by group instead of the model's blocks.
        bounds: of every coefficient a_g.
        ridge: the pull to 0.
        prices: how many.
        bootstrap: resamples behind each 95 % interval; 0 for none.
        seed: of the resamples.
        tolerance: what each certificate should reach.
        max_evaluations: of the standard regime, per price.
        reading: batches, where texts are cut, and the point of the tangent model; see `tauspan.Reading`.

    Returns:
        A `Front`: every point (`spots`), the one that was `chosen`, and on test the pre-trained model, the paper's
        choice and the chosen edit; its `coefficients` and its `vector` carry the minus sign.

    Cost:
        Tangent: one pass of as many tangents as groups per task and split. Standard: about
        `prices * max_evaluations` evaluations.
    """
    require_controls(task, controls, floor)
    return _alone("front", encoder, {task: vector}, regime, reading).front(
        task, controls, floor, per=per, groups=groups, bounds=bounds, ridge=ridge, prices=prices, bootstrap=bootstrap,
        seed=seed, tolerance=tolerance, max_evaluations=max_evaluations,
    )  # fmt: skip


@checked
def adamerging(
    encoder: Encoder,
    vectors: Mapping[Task, TaskVector],
    regime: EditRegime | None = None,
    *,
    per: Per = "layer",
    groups: GroupPatterns | None = None,
    split: SplitName = "validation",
    steps: int = 500,
    lr: float = 1e-3,
    prior: float = 0.3,
    rows: int | None = 32,
    bounds: Bounds = (0.0, 1.0),
    seed: int = 0,
    reading: Reading = Reading(),
) -> AdaMerged:
    """AdaMerging (arXiv 2310.02575): theta0 + sum_t a_t tau_t with coefficients of least entropy, without labels.

    Adam minimises the mean over tasks of the mean entropy of the softmax, from all a = `prior`; a coefficient acts
    as clipped to `bounds`. In the tangent regimes logits are affine in a, so a step is a small contraction of what one
    pass over the rows gave; in the standard regime it is a forward and a backward, and
    dH/da_d = <dH/dtheta, direction_d>. Least entropy is not least loss: a model may be sure and wrong, and the
    objective is not convex, so there is no certificate. The test split's labels are read once, after the choice.

    Args:
        encoder: the pre-trained encoder.
        vectors: one vector per task.
        regime: `"standard"`, `"posthoc"` or `"linear"`; None takes the vectors' own.
        per: `"layer"`: a coefficient a layer group of each vector; `"task"`: one a vector; `"shared"`: one.
        groups: for `"layer"`, patterns of tensor names by group instead of the model's blocks. The authors give every
            tensor its own: `groups={name: name for name in vector.deltas}`.
        split: the rows whose entropy counts. The authors take the inputs of `"test"` itself.
        steps: of Adam.
        lr: its step size, with betas 0.9 and 0.999 and no weight decay.
        prior: where all coefficients start.
        rows: so many rows of each task a step, drawn anew by a permutation keyed by `seed` and the step; None takes all.
        bounds: of every coefficient.
        seed: of the draws.
        reading: batches, where texts are cut, and the point of the tangent model; see `tauspan.Reading`.

    Returns:
        An `AdaMerged`: `coefficients`, entropies before and after, and accuracies on test.

    Raises:
        UsageError: an argument that does not fit.
        NonFiniteError: the entropy became NaN: the model or a vector is broken.

    Cost:
        Tangent: one pass of as many tangents as there are directions, per task and split. Standard: `steps` times
        a forward and a backward of `rows` rows of every task.
    """
    return _alone("adamerging", encoder, vectors, regime, reading).adamerging(
        per=per,
        groups=groups,
        split=split,
        steps=steps,
        lr=lr,
        prior=prior,
        rows=rows,
        bounds=bounds,
        seed=seed,
    )


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
    distance: Distance | None = None,
    split: SplitName = "test",
    reading: Reading = Reading(),
) -> Maps:
    """The disentanglement error of pairs of tasks on a grid of coefficients (section 4 of arXiv 2305.12827).

    xi(a1, a2) = sum_{t = 1, 2} E_{x ~ mu_t} dist(f(x; theta0 + a_t tau_t), f(x; theta0 + a1 tau1 + a2 tau2)),
    each task's rows under its own head, all rows of the split. 0 says that neither vector disturbs the other's
    task; the largest value is 2. In the tangent regimes f is the tangent model.

    xi at equal coefficients is smaller for shorter vectors, whatever the regime. `drift` adds a second map of each
    pair that their lengths do not enter: its axes are the drift of each vector on its own task's rows,

    drift_t(a) = mean_x |c(f(x; theta0 + a tau_t)) - c(f(x; theta0))| / mean_x |c(f(x; theta0))|,

    c(.) the logits of a row less their mean. A point (u1, u2) of that map is at the coefficients whose drifts are
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
        distance: of two predictions; None takes the usual one of each task's objective. Of classes `"argmax"`, 1 where
            the predicted classes differ, as in the paper, or `"probabilities"`, the total variation of their
            probabilities, in [0, 1] as well. Of several labels `"labels"`, the share that differ, or `"probabilities"`,
            the mean difference of theirs. Of numbers `"difference"`, the root mean square over outputs, in their units.
            Of texts `"tokens"`, the share of target positions whose likeliest token differs; of preferences `"order"`,
            1 where another text is preferred; of embeddings `"cosine"`, the mean of 1 - cos.
        split: whose rows.
        reading: batches, where texts are cut, and the point of the tangent model; see `tauspan.Reading`.

    Returns:
        A `Maps`: for each pair a map (`pairs`) with xi, its standard error over rows, and its `means` over the box, over
        the grid and at (1, 1), where the grid has that point. With `drift` also the maps at matched drift
        (`drift_pairs`) with the coefficients behind their grid, and the units (`drifts`). A drift that no coefficient
        reaches leaves its points of the map empty (None), and a mean over a part that has such a point.

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
        >>> maps = disentanglement(model, {left: vector([1.0, 0.0]), right: vector([0.0, 1.0])})
        >>> maps.pairs[0].means["grid"]
        0.0
    """
    tasks_of(vectors)  # at least two, of different names
    editor = _alone("disentanglement", encoder, vectors, regime, reading)
    return editor.maps(pairs=pairs, grid=grid, box=box, drift=drift, distance=distance, split=split)


@checked
def desk(
    encoder: Encoder,
    vectors: Mapping[Task, TaskVector],
    path: str | Path | None = None,
    regime: EditRegime | None = None,
    *,
    range: tuple[float, float] = (0.0, 1.0),  # noqa: A002 - what it is called everywhere
    rows: int | None = None,
    examples: bool = True,
    exact: bool = False,
    title: str | None = None,
    controls: Sequence[Task] = (),
    floor: float = 0.95,
    files: Mapping[str, str | Path] = {},
    seed: int = 0,
    overwrite: bool = False,
    reading: Reading = Reading(),
) -> Desk:
    """The mixing desk: one HTML file with a slider for each vector, on which every accuracy follows exactly.

    In the tangent regimes the page holds of each row n the numbers v_nk of f(x_n; theta0) and J(x_n) tau_k: logits
    v_n0 + sum_k a_k v_nk are known at any coefficients. They are 16-bit integers with one scale s_n for each row: a
    difference of two logits is off by at most s_n (1 + sum_k |a_k|), and the page counts the rows whose lead is smaller.
    Of a head that normalises features at `point="encoder"` it holds W z_k and the inner products of the z_k, which are as
    exact. In the standard regime the model is evaluated at sampled points, and nothing is known between them.

    Beside the sliders are the points that other questions choose on validation: the paper's shared coefficient, the
    solver's optimum and, where `range` reaches below 0, each task negated. The test split is on the page, behind a
    button. Accuracies of the pre-trained model and of single vectors carry exact (Clopper-Pearson) 95 % intervals.

    Args:
        encoder: the pre-trained encoder.
        vectors: one vector per task.
        path: where the page is written; None only returns it.
        regime: `"standard"`, `"posthoc"` or `"linear"`; None takes the vectors' own.
        range: of every coefficient; it begins at 0 or below and ends at 1 or above.
        rows: at most so many rows of each split are on the page, drawn with the seed; None takes all. Coefficients are
            chosen on all rows.
        examples: also the texts of the rows, cut at 300 characters, or thumbnails of their pictures.
        exact: numbers as float32, which take twice the room.
        title: of the page; None makes one of the model and the regime.
        controls: further tasks without a vector, to be kept.
        floor: the share of a control's accuracy that it should keep.
        files: the vectors' files by task name, for the command lines and programs that the page offers.
        seed: of the rows that are drawn.
        overwrite: replace a file that is there.
        reading: batches, where texts are cut, and the point of the tangent model; see `tauspan.Reading`.

    Returns:
        A `Desk`: `html`, `save(path)`, `size` in bytes, `notes`. In a notebook it shows itself in a frame.

    Raises:
        UsageError: a range or number of rows that does not fit, or a page of more than 16 MB; the message says what
            `rows`, `range` and `examples` would give.
        StoreError: the file is there already.

    Cost:
        Tangent: one pass of as many tangents as there are vectors, per task and split. Standard: an evaluation of every
        task and split at each of 20 + K points, and at 20 K more where `range` reaches -1. Size: 8/3 (K + 1) C bytes a
        row; above 4 MB of numbers the classes of a row that win nowhere in the range are left out, which changes no
        prediction.

    Example:
        >>> import torch, tauspan as ts
        >>> x, y = torch.eye(4).repeat(4, 1), torch.arange(4).repeat(4)
        >>> rows = dict.fromkeys(["train", "validation", "test"], (x, y % 2))
        >>> task = ts.Task.from_tensors("parity", ["even", "odd"], **rows)
        >>> encoder = ts.load(torch.nn.Linear(4, 3))
        >>> tau = ts.finetune(encoder, task, ts.Settings(lr=0.1, epochs=5)).task_vector
        >>> page = ts.desk(encoder, {task: tau})
        >>> page.title, page.html.startswith("<!doctype html>")
        ('Linear: 1 task, linear', True)
    """
    if not vectors:
        raise UsageError("desk needs at least one task and its vector.")
    return Editor(encoder, vectors, regime, reading=reading).desk(
        path, range=range, rows=rows, examples=examples, exact=exact, title=title, controls=controls, floor=floor,
        files=files, seed=seed, overwrite=overwrite,
    )  # fmt: skip


def _alone(
    name: str,
    encoder: Encoder,
    vectors: Mapping[Task, TaskVector],
    regime: EditRegime | None,
    reading: Reading,
) -> Editor:
    """An editor for one question, which reads only what that one needs."""
    if not vectors:
        raise UsageError(f"{name} needs at least one task and its vector.")
    return Editor(encoder, vectors, regime, reading=reading, ahead=False)
