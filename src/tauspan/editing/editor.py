"""`Editor`: one place where questions about edits of an encoder are asked, and what one reading of the data gave."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from tauspan.core.arguments import checked
from tauspan.core.choices import Distance, EditRegime, Guidance, SplitName
from tauspan.core.errors import DataError, UsageError, listed, nearest
from tauspan.core.reading import Reading
from tauspan.core.report import noted
from tauspan.editing.desk.choices import Question
from tauspan.editing.desk.desk import Desk, made
from tauspan.editing.evaluation import Evaluation, measured_on
from tauspan.editing.maps.asked import GRID, Axis
from tauspan.editing.maps.disturbance import Disturbance, disturbance
from tauspan.editing.maps.factorisation import Factorisation, factorisation
from tauspan.editing.maps.maps import Maps, drawn, wanted
from tauspan.editing.model.directions import Directions
from tauspan.editing.model.regime import edit_regime
from tauspan.editing.model.several import EditedModels
from tauspan.editing.model.tangent import TangentModel
from tauspan.editing.search.addition import Addition, addition
from tauspan.editing.search.box import Bounds
from tauspan.editing.search.certificate import Certificate, certified
from tauspan.editing.search.choose import SolvedCoefficients, solved_coefficients
from tauspan.editing.search.comparison import EditComparison, compared
from tauspan.editing.search.entropy import AdaMerged, least_entropy
from tauspan.editing.search.forecast import Forecast, forecast
from tauspan.editing.search.grid import Grid
from tauspan.editing.search.guide import guide_of
from tauspan.editing.search.negation import Negation, negation, require_controls
from tauspan.editing.search.numbers import require_at_least
from tauspan.editing.search.pareto import Front, traced_front
from tauspan.editing.search.subsets import Subsets, subsets
from tauspan.editing.search.unknowns import GroupPatterns, Per, unknowns
from tauspan.editing.search.untangle import Untangled, require_several, untangled
from tauspan.models import Encoder
from tauspan.store import require_free
from tauspan.tasks import Task
from tauspan.vector import TaskVector, meeting


class Editor:
    """An encoder, its tasks and their vectors, of which every question about edits is asked.

    In the tangent regimes the outputs of all edits are affine in their coefficients, so one pass over the rows of a task
    and split answers every question about whole vectors; it is made when a question first needs it. Questions about
    layers (`per="layer"`) need a pass of their own. In the standard regime each choice of coefficients runs the model.

    Args:
        encoder: the pre-trained encoder.
        vectors: one vector per task.
        regime: `"standard"`, `"posthoc"` or `"linear"`; None takes the vectors' own.
        reading: batches, where texts are cut, and the point of the tangent model; see `tauspan.Reading`.
        ahead: read every vector on every task; False reads what a question needs, which is less for a single one.

    Raises:
        UsageError: no vector, or a regime that the vectors were not made for.
        DataError: two tasks of one name.
        MismatchError: vectors that edit different functions or move different tensors.
        BaseMismatchError: a vector starts from another model.

    Example:
        >>> import torch, tauspan as ts
        >>> x, y = torch.eye(4).repeat(4, 1), torch.arange(4).repeat(4)
        >>> tasks = [
        ...     ts.Task.from_tensors(name, ["no", "yes"], train=(x, y), validation=(x, y), test=(x, y))
        ...     for name, y in [("parity", y % 2), ("half", y // 2)]
        ... ]
        >>> encoder, settings = ts.load(torch.nn.Linear(4, 3)), ts.Settings(lr=0.1, epochs=5)
        >>> editor = ts.Editor(encoder, {t: ts.finetune(encoder, t, settings).task_vector for t in tasks})
        >>> added = editor.add()
        >>> added.mean.task, sorted(added.coefficients), added.vector.label
        ('mean', ['half', 'parity'], 'combination')
    """

    @checked
    def __init__(
        self,
        encoder: Encoder,
        vectors: Mapping[Task, TaskVector],
        regime: EditRegime | None = None,
        *,
        reading: Reading = Reading(),
        ahead: bool = True,
    ) -> None:
        if not vectors:
            raise UsageError("an editor needs at least one task and its vector.")
        self.vectors = meeting(vectors, encoder)
        named = {task.name: vector for task, vector in self.vectors.items()}
        if len(named) < len(vectors):
            raise DataError("two of the tasks have one name; give each its own.")
        self.encoder, self.reading, self.ahead = encoder, reading, ahead
        self.regime = edit_regime(next(iter(named.values())), regime)
        Directions.whole(named)  # raises for vectors that cannot be added
        for vector in named.values():
            edit_regime(vector, self.regime)
        self._models = EditedModels(encoder, named, self.regime, reading, ahead)

    def __repr__(self) -> str:
        return f"Editor({self.encoder.source}, {self.regime}: {listed(self._models.named)})"

    # -- questions -------------------------------------------------------------------------------------------

    @noted
    @checked
    def add(self, *, grid: Grid = "paper", guided: bool | Guidance = False) -> Addition:
        """Add all vectors with one shared coefficient; see `tauspan.add`.

        Args:
            grid: as for `tauspan.add`.
            guided: in the standard regime, what chooses alpha in place of an evaluation at each point of the grid. What
                is printed for the test rows is the ordinary model's own in each case.
                `"tangent"` or True: the tangent model of the same vectors, from one pass over the validation rows.
                `"curved"`: the same with a term in alpha^2, so that it meets the ordinary model at alpha = 1; one more
                evaluation of the sum and of each vector.
                `"checked"`: the ordinary model itself, at the point that `"curved"` proposes and its neighbours on the
                grid, as far as they are better. It is the grid's choice where accuracy over alpha has one peak.
                `"rows"`: the ordinary model at every fourth point, and between two of them on the rows alone whose class
                changes. It is the grid's choice unless a row's class changes and changes back between two such points.

        Raises:
            UsageError: `guided` in a tangent regime, where every coefficient comes from one pass already; a curved guide
                for tasks without logits.
        """
        tasks = list(self.vectors)
        named = self._models.named
        directions, whole = Directions.whole(named), dict.fromkeys(named, 1.0)
        own = {task: {task.name: 1.0} for task in tasks}
        if not self.ahead:  # the sum as one direction, and each vector alone
            first, *others = named.values()
            each = {f"own {name}": vector for name, vector in named.items()}
            directions, whole = (
                Directions.whole({"sum": sum(others, first).named("sum"), **each}),
                {"sum": 1.0},
            )
            own = {task: {f"own {task.name}": 1.0} for task in tasks}
        model = self._models.of(directions, tasks)
        guide = guide_of(self._models, model, tasks, guided, whole, grid) if guided else None
        return addition(model, self.vectors, whole, own, grid, guide, guided == "checked")

    @noted
    @checked
    def negate(
        self,
        task: Task | str,
        controls: Sequence[Task | str] | None = None,
        floor: float = 0.95,
        *,
        grid: Grid = "paper",
    ) -> Negation:
        """Subtract the vector of a task with one coefficient; see `tauspan.negate`.

        Args:
            task: the target, or its name.
            controls: tasks to be kept, or names of tasks that have a vector; None takes all other tasks.
            floor: the share of control accuracy to keep.
            grid: as for `add`.
        """
        target, kept = self._target(task, controls)
        require_controls(target, kept, floor)
        model = self._models.whole([target, *kept])
        negated = {target.name: -1.0}
        return negation(model, target, self.vectors[target], negated, kept, floor, grid)

    @noted
    @checked
    def coefficients(
        self,
        *,
        per: Per = "task",
        groups: GroupPatterns | None = None,
        bounds: Bounds | None = (0.0, 1.0),
        ridge: float = 0.0,
        l1: float = 0.0,
        split: SplitName = "validation",
        bootstrap: int = 200,
        seed: int = 0,
        tolerance: float = 1e-8,
        max_evaluations: int = 100,
    ) -> SolvedCoefficients:
        """The coefficients that minimise validation loss; see `tauspan.coefficients`."""
        if split not in ("train", "validation"):
            raise UsageError(
                f"split={split!r}: coefficients are chosen on 'train' or 'validation', never on test rows."
            )
        require_at_least(0, ridge=ridge, bootstrap=bootstrap)
        require_at_least(1, max_evaluations=max_evaluations)
        free = unknowns(self.encoder, self._models.named, per, groups)
        model = self._models.parts(free.directions, list(self.vectors))
        return solved_coefficients(
            model, free, self.vectors, per=per, bounds=bounds, ridge=ridge, l1=l1,
            split=split, bootstrap=bootstrap, seed=seed, tolerance=tolerance, max_evaluations=max_evaluations,
        )  # fmt: skip

    @noted
    @checked
    def subsets(self, *, floor: float = 0.98, bootstrap: int = 1000, seed: int = 0) -> Subsets:
        """Which of the vectors to add at coefficient 1, and what each is worth to each task.

        All 2^T subsets are measured on validation rows. The best has the highest mean accuracy over all tasks among
        those in which every added task keeps `floor` of its own vector's accuracy; of equals, the smaller. It is measured
        on test rows beside the sum of all, in pairs of rows. The worth of a vector to a task is its Shapley value: what
        it adds to the task's accuracy, averaged over all orders in which the vectors could be added.

        Args:
            floor: the share to keep, from 0.
            bootstrap: resamples behind each 95 % interval; 0 for none.
            seed: of the resamples.

        Raises:
            UsageError: one vector, or more than 12; tasks without classes.

        Cost:
            In the tangent regimes one pass, then a contraction for each subset. In the standard regime 2^T evaluations.
        """
        require_at_least(0, floor=floor, bootstrap=bootstrap)
        return subsets(self._models.whole(list(self.vectors)), self.vectors, floor, bootstrap, seed)

    @noted
    @checked
    def forecast(
        self, *, measured: int = 10, level: float = 0.9, split: SplitName = "validation", seed: int = 0
    ) -> Forecast:
        """Before ordinary vectors are added: what will each take from the tasks of the others?

        The guess for a task and a vector that is added to its own comes from one tangent pass: the metric of
        f(x; theta0 + tau_own) + J(x) tau_added, less that of f(x; theta0 + tau_own). Some pairs are measured with the
        ordinary model; they correct the guesses (a line, and the residuals around it as intervals), and each of them is
        forecast from the others alone, which says how often forecasts are right here.

        Args:
            measured: how many pairs are evaluated, at least 2; a pair gives two changes, one for each of its tasks.
            level: of the intervals.
            split: whose rows; labels are read.
            seed: of the pairs that are drawn.

        Raises:
            UsageError: a tangent regime, where one pass gives every sum exactly; fewer than 3 vectors; tasks of several
                metrics, or without logits.

        Cost:
            A pass of T tangents over each task's rows, an evaluation of each vector on its own task, and one evaluation
            of each task of a measured pair; T (T - 1) evaluations would measure all pairs.
        """
        return forecast(self._models, self.vectors, measured, level, split, seed)

    @noted
    @checked
    def certify(
        self,
        coefficients: float | Mapping[str, float] = 1.0,
        *,
        prior: float | Mapping[str, float] = 1.0,
        spread: float = 0.3,
        level: float = 0.95,
        split: SplitName = "validation",
    ) -> Certificate:
        """Bound the error rate of an edit on new rows, from the rows of a split on which it may have been chosen.

        Coefficients that were fixed before the rows were read (`prior` equal to them, such as 1 for vectors that were
        made to be added) get the exact binomial bound, in every regime. Chosen ones get a PAC-Bayes bound, which pays for
        the choice: with N(prior, spread^2) before, and N(coefficients, width^2) after the rows were read, the error rate
        R of drawn coefficients satisfies kl(r | R) <= (KL + ln(2 sqrt(n) T / (1 - level))) / n for all T tasks together.
        r is exact for two classes, since logits are affine and so margins Gaussian; of more classes it is an upper bound.
        The width is the one with the best bounds, which costs nothing: the inequality holds for all at once.

        Args:
            coefficients: a number for all vectors, or numbers by task name; what is not named counts as 0.
            prior: where they would have been without these rows; never chosen on them.
            spread: how far from there they were thought to be; never chosen on these rows.
            level: the probability with which all bounds hold.
            split: whose rows.

        Raises:
            UsageError: chosen coefficients in a regime whose logits are not affine; tasks without classes; too few rows.
        """
        if not 0 < level < 1:
            raise UsageError(f"level={level}: a probability between 0 and 1.")
        if not 0 < spread < float("inf"):
            raise UsageError(f"spread={spread}: it must be above 0.")
        tasks, at, before = (
            list(self.vectors),
            self._models.numbers(coefficients),
            self._models.numbers(prior),
        )
        return certified(self._models.whole(tasks), tasks, at, before, spread, level, split)

    @noted
    @checked
    def untangle(
        self,
        *,
        per: Per = "task",
        groups: GroupPatterns | None = None,
        weight: float = 1.0,
        ridge: float = 1e-3,
        split: SplitName = "validation",
    ) -> Untangled:
        """New vectors from the given ones, each of which keeps its own task and moves the others less, in closed form.

        The vectors may have been made by anybody. Each new one is a combination of all given ones (or of their layers)
        whose change of logits on its own task's inputs is that of the given one and on the others' inputs is 0, in least
        squares: c_s = (G_s + weight sum_{t != s} G_t + mu)^-1 G_s e_s, with G_t the Gram matrix of the changes J tau_u.
        It is `superpose` restricted to the span of the given vectors. Ordinary vectors are read in the tangent model.

        Args:
            per: a coefficient for each given vector (`"task"`), or for each layer of it (`"layer"`).
            groups: patterns of tensor names by group, in place of layers.
            weight: what the others' inputs count.
            ridge: of the solve, relative to the mean of the diagonal.
            split: whose inputs are read; labels are not.

        Returns:
            An `Untangled`; `Editor(encoder, result.vectors)` adds them.

        Cost:
            One pass over the split with T (or T times layers) tangents, and a solve of that size for each task.
        """
        if per not in ("task", "layer"):
            raise UsageError(f"per={per!r}: vectors are combined by 'task' or 'layer'.")
        require_at_least(0, weight=weight, ridge=ridge)
        require_several(self.vectors)
        free = unknowns(self.encoder, self._models.named, per, groups)
        model = self._models.tangent(free.directions, list(self.vectors))
        how = "groups" if groups is not None else per
        return untangled(
            cast(TangentModel, model), free, self.vectors, self.regime, how, weight, ridge, split
        )

    @noted
    @checked
    def front(
        self,
        task: Task | str,
        controls: Sequence[Task | str] | None = None,
        floor: float = 0.95,
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
    ) -> Front:
        """The whole trade between forgetting a task and keeping the controls; see `tauspan.front`."""
        target, kept = self._target(task, controls)
        require_controls(target, kept, floor)
        require_at_least(0, ridge=ridge, bootstrap=bootstrap)
        require_at_least(1, max_evaluations=max_evaluations)
        require_at_least(2, prices=prices)
        if per not in ("shared", "layer"):
            raise UsageError(f"per={per!r}: one vector has 'shared' or 'layer' coefficients.")
        vector = self.vectors[target]
        free = unknowns(self.encoder, {target.name: vector}, per, groups, sign=-1.0)
        return traced_front(
            self._models.parts(free.directions, [target, *kept]), free, target, vector, kept, per=per, floor=floor,
            bounds=bounds, ridge=ridge, prices=prices, bootstrap=bootstrap, seed=seed, tolerance=tolerance,
            max_evaluations=max_evaluations,
        )  # fmt: skip

    @noted
    @checked
    def adamerging(
        self,
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
    ) -> AdaMerged:
        """Coefficients of least prediction entropy, without labels; see `tauspan.adamerging`."""
        require_at_least(1, steps=steps, rows=1 if rows is None else rows)
        require_at_least(0, lr=lr)
        for task in self.vectors:
            task.split(split)  # says which there are
        free = unknowns(self.encoder, self._models.named, per, groups)
        return least_entropy(
            self._models.parts(free.directions, list(self.vectors)), free, self.vectors, per=per, split=split,
            steps=steps, lr=lr, prior=prior, rows=rows, bounds=bounds, seed=seed,
        )  # fmt: skip

    @noted
    @checked
    def maps(
        self,
        *,
        pairs: Sequence[tuple[str, str]] | None = None,
        grid: Axis | tuple[Axis, Axis] = GRID,
        box: tuple[float, float] = (0.0, 1.0),
        drift: bool | float | Mapping[str, float] = False,
        distance: Distance | None = None,
        split: SplitName = "test",
    ) -> Maps:
        """Maps of the disentanglement error of pairs of tasks; see `tauspan.disentanglement`."""
        asked = wanted(self.vectors, pairs, grid, box, drift, distance, split)
        return drawn(self._models.whole([]), self.vectors, asked)

    @noted
    @checked
    def interference(self, *, split: SplitName = "test") -> Disturbance:
        """How far each vector alone moves the logits of each task."""
        tasks = list(self.vectors)
        return disturbance(self._models.whole(tasks), self.vectors, split)

    @noted
    @checked
    def factorise(
        self, *, tasks: Sequence[Task] | None = None, scale: float = 1.0, split: SplitName = "test"
    ) -> Factorisation:
        """Do the vectors add on outputs? Their main effects over all 2^T subsets, on the rows of each task.

        z_S(x) = f(x; theta0 + scale sum_{s in S} tau_s) is compared with m(x) + sum_s (1[s in S] - 1/2) v_s(x), where
        v_s(x) is the mean of z with s less that without: R^2 = 1 - |residual|^2 / |z - m|^2 over subsets, rows and
        outputs. It is 1 where the regime is affine at the logits, and says of ordinary edits what xi says of pairs.
        Factorised representations are those of Uselis et al. (2026), with vectors as their concepts. Disentangled vectors
        also have an own share near 1: the other vectors do nothing here.

        Args:
            tasks: a group of the editor's tasks, of whose vectors the subsets are; None takes all.
            scale: the coefficient of each vector of a subset.
            split: whose rows; labels are not read.

        Raises:
            UsageError: one vector, or more than 12; a task that has no vector; nothing moves.

        Cost:
            In the tangent regimes one pass, then a contraction for each subset. In the standard regime 2^T evaluations.
        """
        chosen = self.vectors if tasks is None else [self._target(task, [])[0] for task in tasks]
        group = {task: self.vectors[task] for task in chosen}
        return factorisation(self._models.whole(list(group)), group, scale, split)

    @noted
    @checked
    def evaluate(
        self,
        coefficients: float | Mapping[str, float] = 1.0,
        *,
        tasks: Sequence[Task] | None = None,
        split: SplitName = "test",
    ) -> Evaluation:
        """Accuracy and loss at theta0 + sum_t a_t tau_t.

        Args:
            coefficients: a number for all vectors, or numbers by task name; what is not named counts as 0.
            tasks: where it is measured; None takes the tasks of the vectors.
            split: which rows.
        """
        given = self._models.given(coefficients)
        measured = list(self.vectors) if tasks is None else list(tasks)
        text = " + ".join(f"{value:g} x {name}" for name, value in given.items() if value) or "pre-trained"
        edit = f"{self.regime}: " + " ".join(
            f"{value!r} x {self._models.named[name].norm():.17g}" for name, value in given.items()
        )
        label = f"{text}, {self.regime}"
        return measured_on(self._models.whole(measured), measured, given, split, label, edit)

    @noted
    @checked
    def compare(
        self,
        first: float | Mapping[str, float],
        second: float | Mapping[str, float],
        *,
        tasks: Sequence[Task] | None = None,
        split: SplitName = "test",
        bootstrap: int = 1000,
        seed: int = 0,
    ) -> EditComparison:
        """Two edits on the same rows: differences with 95 % intervals in pairs of rows, and McNemar's exact test.

        Args:
            first: a number for all vectors, or numbers by task name; what is not named counts as 0.
            second: the same of the other edit.
            tasks: where they are compared; None takes the tasks of the vectors.
            split: which rows.
            bootstrap: resamples behind each interval; 0 for none.
            seed: of the resamples.
        """
        require_at_least(0, bootstrap=bootstrap)
        asked = list(self.vectors) if tasks is None else list(tasks)
        one, two = self._models.numbers(first), self._models.numbers(second)
        return compared(self._models.whole(asked), asked, one, two, split, bootstrap, seed)

    @noted
    @checked
    def desk(
        self,
        path: str | Path | None = None,
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
    ) -> Desk:
        """A page on which coefficients are moved and every accuracy follows; see `tauspan.desk`."""
        if path is not None:
            require_free(Path(path), overwrite)
        model = self._models.whole([*self.vectors, *controls])
        question = Question(model, self.vectors, list(controls), *range, floor, seed)
        page = made(question, rows=rows, examples=examples, exact=exact, title=title, files=files)
        if path is not None:
            page.save(path, overwrite=overwrite)
        return page

    def _target(self, task: Task | str, controls: Sequence[Task | str] | None) -> tuple[Task, list[Task]]:
        by_name = {one.name: one for one in self.vectors}
        target = by_name.get(task) if isinstance(task, str) else task
        if target is None or target not in self.vectors:
            name = task if isinstance(task, str) else task.name
            raise UsageError(f"there is no vector of the task {name!r}. {nearest(name, list(by_name))}")
        if controls is None:
            return target, [one for one in self.vectors if one is not target]
        return target, [one if isinstance(one, Task) else self._named(one) for one in controls]

    def _named(self, name: str) -> Task:
        found = next((one for one in self.vectors if one.name == name), None)
        if found is None:
            raise UsageError(
                f"controls name no task {name!r} of these vectors. "
                f"{nearest(name, [one.name for one in self.vectors])} Another task is given as it is."
            )
        return found
