"""`trajectory`: a training beside its lazy path, point by point, and the step at which it leaves it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from torch import Tensor, nn

from tauspan.core.arguments import checked
from tauspan.core.errors import UsageError
from tauspan.core.measure import measured, underway
from tauspan.core.params import Params, norm
from tauspan.core.report import Report, noted, provenance
from tauspan.core.results import Result
from tauspan.kernel import Outputs
from tauspan.kernel.diagnose import path_sections
from tauspan.kernel.diagnose.departure import Departure
from tauspan.kernel.diagnose.lazy_path import GradientDescent
from tauspan.kernel.diagnose.standing import Standing
from tauspan.kernel.diagnose.verdict import CARRIES
from tauspan.kernel.diagnose.walk import PathName, PathPoint, RowsName, Side, Walk
from tauspan.kernel.rows.data import Data
from tauspan.models.select import Selection
from tauspan.objectives import Classification, Objective, Regression
from tauspan.tangent import Linearized


@dataclass(frozen=True, kw_only=True, eq=False)
class Trajectory(Result):
    """A training beside its lazy path.

    Args:
        points: in the order of steps; the first is the start.
        departures: by path and rows: when the net leaves it.
        counts: of training rows, of test rows, and of rows of the kernels.
        loss: the loss's name.
    """

    points: Sequence[PathPoint]
    departures: Mapping[tuple[PathName, RowsName], Departure]
    counts: tuple[int, int, int]
    loss: str

    @property
    def leaves(self) -> Departure:
        """When the net leaves its linearisation at its own weights, on the training rows."""
        return self.departures["tangent", "train"]

    def __repr__(self) -> str:
        step = self.leaves.step
        left = "does not leave its linearisation" if step is None else f"leaves it at step {step:.3g}"
        return f"Trajectory({len(self.points)} points to step {self.points[-1].step}, {left})"

    @property
    def verdict(self) -> str:
        """Until which step the tangent model carries; docs/verdicts.md has the rules."""
        return path_sections.departure_in_words(self.leaves, self.departures.get(("predicted", "train")))

    def report(self) -> Report:
        """The verdict, a table of losses, one of the kernel's motion, one of departures, and a picture of all three."""
        found = path_sections.trajectory_section(self.points, self.departures, self.counts)
        return Report(
            "Trajectory", found.tables, dict(self.provenance), found.series, found.result, self.warnings, self.verdict
        )  # fmt: skip


@noted
@checked
def trajectory(
    model: nn.Module,
    points: Iterable[tuple[int, Params]],
    x: Data,
    targets: Tensor,
    *,
    test: tuple[Data, Tensor] | None = None,
    descent: GradientDescent | None = None,
    objective: Objective | None = None,
    params: Selection = "all",
    rows: int | None = 64,
    outputs: Outputs | None = None,
    tolerance: float = CARRIES,
    draws: int = 1000,
    batch_size: int = 32,
    seed: int = 0,
) -> Trajectory:
    """Follow a training beside its linearisation at the start, and say at which step it leaves it.

    Two lazy paths are compared with the net f_t = f(x; theta_t). The tangent model at the net's own weights,
    f_0 + J (theta_t - theta_0), is defined for every loss and optimiser: it is the net to first order. The predicted
    path, f_0 + K K^-1 (1 - (1 - eta K)^t) (y - f_0) (Lee et al. 2019, arXiv 1902.06720, in discrete time), is what
    full-batch gradient descent on a squared loss would do if the kernel K of the start never moved. It needs no weights
    but those of the start, and says also what the tangent model would have learned instead. Of other losses and of
    momentum or Adam there is no such closed form, and `descent` is left out.

    Args:
        model: the module, at whatever parameters, called in eval mode; or its linearisation, whose theta0 is then the
            start.
        points: (step, tensors by name) with rising steps, such as `(100, model.state_dict())`, or a `Recorder`; read one
            at a time. The first is the start, unless `model` is a linearisation.
        x: the training rows: a batch, a list of batches, a data set or a loader without labels.
        targets: classes, shape (N,), int64; or numbers, shape (N, O).
        test: other rows and their targets.
        descent: how the net was trained, if that was full-batch gradient descent on a squared loss from the start on.
        objective: the loss; None takes cross-entropy for classes and the squared loss for numbers.
        params: the parameters that move, as in `tauspan.linearize`.
        rows: at most so many training rows for the kernels of all points, drawn by a permutation keyed by `seed`; None
            takes all, 0 leaves kernels out.
        outputs: of these kernels; None is one contrast of classes, or all numbers.
        tolerance: the ratio |f_t - g_t| / |f_t - f_0| beyond which the net has left a path g.
        draws: of the bootstrap over rows.
        batch_size: rows per batch, where x is one tensor.
        seed: of the drawn rows and of the bootstrap.

    Returns:
        A `Trajectory`; `.verdict` says it in a sentence, `.report()` makes tables and a picture.

    Raises:
        UsageError: no point besides the start, steps that do not rise, a descent that diverges or has another loss.
        MismatchError: points of another model; a tensor moved that is not among `params`.
        DataError: targets that do not fit the rows.
        NonFiniteError: NaN or infinity in a point or in its outputs.

    Cost:
        For each point about 4 forward passes over all rows and the kernel of `rows`; with `descent` once the kernel of
        all training rows and outputs, its eigenvectors, and the kernel between test and training rows. Two copies of
        the model, and one point at a time.

    Example:
        >>> import torch
        >>> net, x, y = nn.Linear(2, 1).double(), torch.eye(2).double(), torch.tensor([[1.0], [0.0]]).double()
        >>> points = [(0, {name: p.detach().clone() for name, p in net.named_parameters()})]
        >>> for step in (1, 2):
        ...     loss = (net(x) - y).square().mean()
        ...     net.zero_grad()
        ...     loss.backward()
        ...     with torch.no_grad():
        ...         for p in net.parameters():
        ...             p -= 0.1 * p.grad
        ...     points.append((step, {name: p.detach().clone() for name, p in net.named_parameters()}))
        >>> found = trajectory(net, points, x, y, descent=GradientDescent(0.1))  # this net is affine in its parameters
        >>> found.leaves.step, found.points[-1].scores["train"]["predicted"].apart < 1e-12
        (None, True)
    """
    if rows is not None and (rows < 0 or rows == 1):
        raise UsageError(f"rows={rows}: a kernel says something about 2 rows or more; 0 leaves it out.")
    with measured() as cost, underway("trajectory") as advance:
        numbered = _rising(points)
        standing, coming = _started(model, numbered, params)
        loss = objective or (Regression() if targets.is_floating_point() else Classification())
        sides: dict[RowsName, Side] = {"train": Side.of(standing, "train", x, targets, loss, batch_size)}
        if test is not None:
            sides["test"] = Side.of(standing, "test", *test, loss, batch_size)
        walk = Walk(standing, sides, loss)
        if descent is not None:
            walk.predict(descent)
        if rows != 0:
            walk.watch(rows, outputs, seed)
        for step, point in coming:
            walk.visit(step, standing.at(point, step))
            advance(1, f"step {step}")
    if len(walk.points) < 2:
        raise UsageError(
            f"one point only, step {walk.points[0].step}: give later ones too, with the start first."
        )
    facts = {"descent": None if descent is None else asdict(descent), "tolerance": tolerance, "seed": seed,
             "draws": draws, "steps": [point.step for point in walk.points], **vars(cost)}  # fmt: skip
    return Trajectory(
        points=walk.points, departures=walk.departures(tolerance, draws, seed), loss=loss.word,
        counts=(len(sides["train"].start), len(sides["test"].start) if test else 0, walk.watched),
        provenance=provenance(**facts),
    )  # fmt: skip


def _rising(points: Iterable[tuple[int, Params]]) -> Iterator[tuple[int, Params]]:
    last = None
    for step, point in points:
        if last is not None and step <= last:
            raise UsageError(
                f"step {step} comes after step {last}: points are read in the order of their steps. Sort them by number, "
                "`sorted(points, key=lambda point: point[0])`; by name checkpoint-1000 comes before checkpoint-200."
            )
        last = step
        yield step, point


def _started(
    model: nn.Module, numbered: Iterator[tuple[int, Params]], choice: Selection
) -> tuple[Standing, Iterator[tuple[int, Params]]]:
    """The model at its start, and all points from the start on."""
    first = next(numbered, None)
    if first is None:
        raise UsageError(
            "no points: give (step, tensors by name), the start first, or a Recorder that kept some."
        )
    if not isinstance(model, Linearized):
        return Standing(model, first[1], choice), _chained(first, numbered)
    start = model.theta0()
    standing = Standing(model, start, choice)
    if first[0] > 0:
        return standing, _chained((0, start), _chained(first, numbered))
    if norm(standing.displacement(standing.at(first[1], 0))):
        raise UsageError(
            "the point at step 0 is not theta0 of the tangent model. If the points are tau of a tangent training, there "
            "is nothing to compare: a tangent model never leaves itself. Else give the module in place of its "
            "linearisation."
        )
    return standing, _chained(first, numbered)


def _chained(first: tuple[int, Params], others: Iterator[tuple[int, Params]]) -> Iterator[tuple[int, Params]]:
    yield first
    yield from others
