"""What is found at each point of a training: the net, its lazy paths, and its kernel."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from tauspan.core.errors import DataError, UsageError
from tauspan.core.params import Params, norm, require_finite_rows
from tauspan.core.results import ratio
from tauspan.kernel import Outputs, TangentKernel
from tauspan.kernel.diagnose.alignment import centred_alignment
from tauspan.kernel.diagnose.departure import Departure, departure
from tauspan.kernel.diagnose.lazy_path import GradientDescent, LazyPath, drawn
from tauspan.kernel.diagnose.motion import kernel_change, kernel_distance
from tauspan.kernel.diagnose.standing import Standing
from tauspan.kernel.operator.interference import accuracy, rms
from tauspan.kernel.rows.data import AnyBatch, Data, batches_of, rows_of, taken
from tauspan.objectives import Classification, Objective, Regression

log = logging.getLogger(__name__)
PathName: TypeAlias = Literal["net", "tangent", "predicted"]
RowsName: TypeAlias = Literal["train", "test"]
_ROUNDING = 64  # the rounding error of a network's outputs, in units in the last place


class PathScore(NamedTuple):
    """What a path reaches at one step on some rows.

    Attributes:
        loss: the mean over the rows; of squared losses 1/2 |f - y|².
        accuracy: the share of rows that are named right; None where the targets are no classes.
        apart: |f_t - g_t| / |f_t - f_0| of a path g over all rows and outputs; None for the net itself, and where the
            net's outputs have not moved beyond rounding.
    """

    loss: float
    accuracy: float | None
    apart: float | None


@dataclass(frozen=True)
class PathPoint:
    """One point of a training.

    Args:
        step: its number.
        moved: |theta_t - theta_0| / |theta_0| over the moving parameters; None where theta_0 is 0.
        scores: by rows and path: `"net"` is f(theta_t); `"tangent"` f_0 + J (theta_t - theta_0); `"predicted"` the closed
            form of gradient descent.
        distance: of the kernel from the start's; see `kernel_distance`. None, as the next two, without kernels.
        change: |K_t - K_0| / |K_0|.
        alignment: of the kernel with the targets; see `centred_alignment`. None also where these are all equal.
    """

    step: int
    moved: float | None
    scores: Mapping[RowsName, Mapping[PathName, PathScore]]
    distance: float | None = None
    change: float | None = None
    alignment: float | None = None


@dataclass(frozen=True, eq=False)
class Side:
    """Rows with their targets and what the start gives of them."""

    name: RowsName
    batches: Sequence[AnyBatch]
    targets: Tensor
    start: Tensor

    @staticmethod
    def of(
        standing: Standing, name: RowsName, x: Data, targets: Tensor, loss: Objective, batch_size: int
    ) -> "Side":
        """The rows as batches, with the outputs of the start; errors as `trajectory` says."""
        batches, _ = batches_of(standing.tangent.base, x, batch_size)
        start = standing.outputs(batches, standing.tangent.theta0())
        if start.dim() != 2 or len(start) != len(targets):
            raise DataError(
                f"{len(targets)} targets of the {name} rows, and the model gives outputs of shape {tuple(start.shape)}: "
                "it takes a vector and a target for each row. Wrap a module that gives more (`.flatten(1)`), or one "
                "number (`.unsqueeze(1)`)."
            )
        loss.require(targets, start.shape[1], f"the targets of the {name} rows")
        return Side(name, batches, targets.cpu(), start)


class Walk:
    """What is found at one point after the other."""

    def __init__(self, standing: Standing, sides: Mapping[RowsName, Side], loss: Objective) -> None:
        self._standing, self._sides, self._loss = standing, sides, loss
        self.points: list[PathPoint] = []
        self.watched = 0
        self._errors: dict[tuple[PathName, RowsName], list[Tensor]] = {}
        self._sizes: dict[RowsName, list[Tensor]] = {name: [] for name in sides}
        self._lazy: LazyPath | None = None
        self._cross: dict[RowsName, Tensor] = {}
        self._first: TangentKernel | None = None

    def predict(self, descent: GradientDescent) -> None:
        """Also follow the closed form of gradient descent."""
        if not isinstance(self._loss, Regression):
            raise UsageError(
                f"descent= with the loss {self._loss.word}: the closed form is that of a squared loss, with numbers as "
                "targets. Leave `descent` out: the tangent model at the net's own weights is there for every loss."
            )
        train = self._sides["train"]
        self._lazy = LazyPath(self._standing, train.batches, train.start, train.targets, descent)
        if "test" in self._sides:
            self._cross["test"] = self._lazy.cross(self._sides["test"].batches)

    def watch(self, rows: int | None, outputs: Outputs | None, seed: int) -> None:
        """Also look at the kernel of some training rows."""
        train = self._sides["train"]
        sizes = [rows_of(batch) for batch in train.batches]
        places = drawn(train.batches, sizes, sum(sizes) if rows is None else rows, seed)
        self._batches = [
            taken(batch, some) for batch, some in zip(train.batches, places, strict=True) if some
        ]
        begins = [sum(sizes[:number]) for number in range(len(sizes))]
        chosen = [begin + row for begin, some in zip(begins, places, strict=True) for row in some]
        wanted, classes = train.targets[chosen], not train.targets.is_floating_point()
        self._wanted = _centred(wanted, train.start.shape[1])
        self._varied = bool((wanted != wanted[0]).any())
        if not self._varied:
            log.warning("the targets of the kernel's rows are all equal, so there is no alignment with them")
        self._outputs: Outputs = outputs if outputs is not None else "contrast" if classes else "all"
        self._first = self._standing.kernel(self._batches, self._outputs)
        self.watched = len(chosen)

    def visit(self, step: int, point: Params) -> None:
        """Look at one more point; the first is the start."""
        tau = self._standing.displacement(point)
        moved = ratio(norm(tau), self._standing.norm)
        scores = {name: self._scores(side, step, point, tau) for name, side in self._sides.items()}
        self.points.append(PathPoint(step, moved, scores, *self._kernels(point)))

    def _scores(self, side: Side, step: int, point: Params, tau: Params) -> dict[PathName, PathScore]:
        net = self._standing.outputs(side.batches, point)
        require_finite_rows(net, f"the outputs on the {side.name} rows at step {step}")
        floor = _ROUNDING * self._standing.precision * max(rms(side.start), rms(net))
        size = (net - side.start).square().sum(1)
        size = size if float(size.mean()) > floor**2 * net.shape[1] else torch.zeros_like(size)
        self._sizes[side.name].append(size)
        paths: dict[PathName, Tensor] = {"tangent": self._standing.linear(side.batches, tau)}
        if self._lazy is not None:
            alpha = self._lazy.coefficients(step - self.points[0].step if self.points else 0)
            paths["predicted"] = self._lazy.outputs(alpha, side.start, self._cross.get(side.name))
        found: dict[PathName, PathScore] = {"net": self._score(net, side.targets, None)}
        for name, path in paths.items():
            error = (net - path).square().sum(1)
            self._errors.setdefault((name, side.name), []).append(error)
            apart = ratio(float(error.sum().sqrt()), float(size.sum().sqrt()))
            found[name] = self._score(path, side.targets, apart)
        return found

    def _score(self, outputs: Tensor, targets: Tensor, apart: float | None) -> PathScore:
        loss = float(self._loss.losses(outputs, targets).double().mean())
        right = (
            accuracy(outputs, targets)
            if isinstance(self._loss, Classification) and targets.dim() == 1
            else None
        )
        return PathScore(loss, right, apart)

    def _kernels(self, point: Params) -> tuple[float | None, float | None, float | None]:
        if self._first is None:
            return None, None, None
        now = self._standing.kernel(self._batches, self._outputs, point) if self.points else self._first
        aligned = centred_alignment(now, self._wanted).value if self._varied else None
        if now is self._first:
            return 0.0, 0.0, aligned
        return kernel_distance(self._first, now).value, kernel_change(self._first, now).value, aligned

    def departures(
        self, tolerance: float, draws: int, seed: int
    ) -> dict[tuple[PathName, RowsName], Departure]:
        """When the net leaves each path on each kind of rows."""
        steps = [point.step for point in self.points]
        return {
            (path, on): departure(
                steps, torch.stack(errors), torch.stack(self._sizes[on]), tolerance, draws=draws, seed=seed
            )
            for (path, on), errors in self._errors.items()
        }


def _centred(targets: Tensor, outputs: int) -> Tensor:
    """One-hot classes less 1/C, or the numbers themselves."""
    if targets.is_floating_point():
        return targets.double()
    return F.one_hot(targets, outputs).double() - 1 / outputs
