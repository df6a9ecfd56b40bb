"""`Objective`: a loss of outputs and targets, row by row, with its derivatives, its metric and what is right of both."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from tauspan.core.errors import DataError, UsageError, nearest
from tauspan.core.params import require_finite_rows

Apart = Callable[[Tensor, Tensor], Tensor]  # of what two models predict (`Objective.predicted`), row by row


class Reads(Protocol):
    """What an objective may read of a language model."""

    @property
    def table(self) -> Any:
        """What makes logits of states."""

    def require_kind(self, word: str) -> None:
        """Raise unless the model has losses of this objective."""

    def chat(self, messages: Sequence[Mapping[str, str]]) -> Any:
        """A conversation as a text."""

    def targets(self, rows: Sequence[Any], max_tokens: int | None) -> Tensor:
        """The token that each state is to predict, shape (N, L); -100 where none counts."""


class Said(NamedTuple):
    """What a model says of one row: what there is none of is empty.

    Attributes:
        label: the classes that it predicts, joined by commas.
        probabilities: of each class.
        values: of each output that is no class.
    """

    label: str
    probabilities: Mapping[str, float]
    values: Mapping[str, float]


class Objective(ABC):
    """What a task is trained and measured by: losses l_n(f_n, y_n) of N rows of outputs f, shape (N, O), and targets y.

    A subclass states the losses and the metric; gradients and curvature follow by autograd, and a subclass that knows
    them in closed form writes them out. Everything is row by row: l_n depends on row n alone.

    Attributes:
        word: what cards, recipes and options call it.
        metric: the name of the metric.
        higher: whether more of it is better.
        convex: whether each loss is convex in the row's outputs. Then it is convex in every coefficient and in tau of a
            tangent model, whose outputs are affine in them.
        ratio: whether the metric is never negative, so that a ratio of two values means something.
        headless: whether outputs are read off the model's features without a frozen head.
        about: what the rows are, in a sentence, where they have no outputs to name.
        embeds: whether these features are embeddings, whose distances mean something.
        refers: how many numbers the losses read of what the pre-trained model gives of a row; see `reference`.
        columns: the columns of a table that a row is made of, where they are not a text and its labels.
        inputs: how many inputs a row is; more than one are a `Group`.
        distances: how far apart two models' outputs are, by name; the first is the usual one.
    """

    word: ClassVar[str]
    metric: ClassVar[str]
    higher: ClassVar[bool] = True
    convex: bool = True
    ratio: bool = True
    headless: ClassVar[bool] = False
    about: ClassVar[str] = ""
    embeds: ClassVar[bool] = False
    refers: ClassVar[int] = 0
    columns: ClassVar[tuple[str, ...]] = ()
    inputs: int = 1
    distances: ClassVar[Mapping[str, Apart]]

    # -- what an objective defines ---------------------------------------------------------------------------

    @abstractmethod
    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of each row, shape (N,), differentiable in the outputs."""

    @abstractmethod
    def scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What the metric is the mean of, for each row, shape (N,), float64."""

    @abstractmethod
    def fault(self, targets: Tensor, outputs: int) -> str | None:
        """What is wrong with targets for so many outputs, in words; None if nothing is."""

    def summary(self, mean: float) -> float:
        """The metric of a mean of scores."""
        return mean

    @classmethod
    def said(cls, outputs: Tensor, names: Sequence[str]) -> "Said":
        """What the outputs (O,) of one row mean, where output o is called names[o]."""
        return Said("", {}, dict(zip(names, outputs.tolist(), strict=True)))

    def forgotten(self, targets: Tensor, outputs: int) -> Tensor:
        """Targets of a model that has forgotten the task.

        Raises:
            UsageError: the objective has no such targets.
        """
        raise UsageError(
            f"{self.word} has no targets that mean a task is forgotten: `negate` moves away from what the vector "
            "learned, "
            "and needs none."
        )

    def bound(self, model: "Reads | None") -> "Objective":
        """The objective with what it reads of a model, such as a table of tokens."""
        return self

    def rows(self, inputs: Sequence[Any], labels: Tensor, model: "Reads | None") -> Sequence[Any]:
        """What the model reads, from the rows' inputs and labels; without more ado the inputs."""
        return inputs

    def targets(
        self, inputs: Sequence[Any], labels: Tensor, model: "Reads | None", max_tokens: int | None
    ) -> Tensor:
        """What the losses read, from the rows' inputs and labels; without more ado the labels."""
        return labels

    def predicted(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What distances compare, first axis N: without more ado the outputs."""
        return outputs

    def reference(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What the losses read of the pre-trained model's outputs, shape (N, R), if they refer to it.

        These numbers become the last columns of the targets.
        """
        return outputs.new_zeros(len(outputs), self.refers)

    # -- what follows ----------------------------------------------------------------------------------------

    def total(self, outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """The sum of the losses, or sum_n w_n l_n with `weights` (N,).

        A weight counts a row's loss, so its gradient and its curvature scale with it.
        """
        losses = self.losses(outputs, targets)
        return losses.sum() if weights is None else (weights.to(losses) * losses).sum()

    def gradients(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """dl_n / df_n, shape (N, O)."""
        with torch.inference_mode(False), torch.enable_grad():
            free = outputs.detach().clone().requires_grad_()
            return torch.autograd.grad(self.losses(free, targets).sum(), free)[0]

    def with_gradients(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The losses (N,) and their gradients (N, O), for objectives that make both at once cheaper."""
        return self.losses(outputs, targets), self.gradients(outputs, targets)

    def curvature(self, outputs: Tensor, targets: Tensor, along: Tensor) -> Tensor:
        """The Hessian of each row's loss in its outputs times directions of shape (T, N, O): shape (T, N, O)."""
        with torch.inference_mode(False), torch.enable_grad():
            free = outputs.detach().clone().requires_grad_()
            (slope,) = torch.autograd.grad(self.losses(free, targets).sum(), free, create_graph=True)
            if not slope.requires_grad:  # the loss is linear
                return torch.zeros_like(along)
            found = [
                torch.autograd.grad(slope, free, one, retain_graph=True, materialize_grads=True)[0]
                for one in along
            ]
        return torch.stack(found)

    def seen(self, outputs: Tensor) -> Tensor:
        """Outputs, or directions of them, without what neither loss nor metric sees."""
        return outputs

    def lifts(self, tangents: Tensor, targets: Tensor) -> Tensor | None:
        """What says whether the losses fall for ever: numbers (T, M), each linear in the direction.

        No row's loss rises along sum_t a_t tangents_t, however far, exactly where each number of a @ lifts is at least 0.
        None where that is not known; no numbers where a loss always rises.
        """
        return None

    def value(self, outputs: Tensor, targets: Tensor) -> float:
        """The metric of some rows.

        Raises:
            NonFiniteError: a row's outputs hold NaN or infinity: it has no prediction.
        """
        require_finite_rows(outputs, "the outputs")
        return self.summary(float(self.scores(outputs, targets).double().mean()))

    def compared(self, value: float, reference: float) -> float | None:
        """A value of the metric relative to another: above 1 is better; None where the ratio has no meaning.

        Raises:
            UsageError: a value is negative, and the metric was said not to be.
        """
        if not self.ratio:
            return None
        if min(value, reference) < 0:
            raise UsageError(
                f"the {self.metric} of {self.word} is {min(value, reference):.4g}, and a ratio of negative numbers says "
                "nothing: say ratio=False of the objective, and differences are compared."
            )
        above, below = (value, reference) if self.higher else (reference, value)
        return above / below if below else None

    def rank(self, value: float) -> float:
        """A number that is the greater the better the metric is."""
        return value if self.higher else -value

    def distance(self, name: str | None = None) -> tuple[str, Apart]:
        """A distance by its name; the usual one without.

        Raises:
            UsageError: there is no such distance.
        """
        if not self.distances:
            raise UsageError(
                f"no distance between two models is known of {self.word}: compare them by `evaluate`."
            )
        chosen = next(iter(self.distances)) if name is None else name
        if chosen not in self.distances:
            raise UsageError(f"distance={name!r} of {self.word}. {nearest(str(name), self.distances)}")
        return chosen, self.distances[chosen]

    def require(self, targets: Tensor, outputs: int, about: str) -> None:
        """Raise unless the targets are this objective's; `about` says whose they are.

        Raises:
            DataError: another dtype, shape or range.
        """
        fault = self.fault(targets, outputs)
        if fault is not None:
            raise DataError(f"{about}{', ' if fault.startswith('row ') else ': '}{fault}")


def told(targets: object) -> str:
    """The dtype and shape of targets, for errors."""
    if not isinstance(targets, Tensor):
        return f"a {type(targets).__name__}"
    return f"{str(targets.dtype).removeprefix('torch.')} of shape {tuple(targets.shape)}"


def numbers_fault(targets: Tensor, outputs: int) -> str | None:
    """What is wrong with targets that should be a finite number for each output."""
    if not isinstance(targets, Tensor) or not targets.is_floating_point() or targets.ndim != 2:
        return f"targets are floating-point numbers of shape (N, {outputs}), not {told(targets)}."
    if targets.shape[1] != outputs:
        return f"each row has {targets.shape[1]} targets, and the task {outputs} names of outputs. Give each a name."
    broken = (~targets.isfinite().all(-1)).nonzero().flatten().tolist()
    if broken:
        return f"row {broken[0]} has a target that is NaN or infinite. Take the row out, or write the number."
    return None
