"""Which outputs a kernel is about: all of them, one, or a weighted sum per row."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from tauspan.core.errors import NonFiniteError, UsageError, nearest

Outputs: TypeAlias = Literal["all", "contrast", "sum", "trace"] | int | tuple[Literal["signs"], int] | Tensor
_WORDS = ("all", "contrast", "sum", "trace")


@dataclass(frozen=True)
class Selector:
    """A linear map from a row's C outputs to the O that the kernel is about.

    Args:
        weights: shape (N, O, C), or (1, O, C) where all rows share it.
        traced: whether the kernel is the mean over the O diagonal blocks, so that it has one output per row.
    """

    weights: Tensor
    traced: bool = False

    @property
    def inner(self) -> int:
        """I, the outputs of which gradients are computed for each row."""
        return self.weights.shape[1]

    @property
    def outputs(self) -> int:
        """O, the outputs of the kernel per row."""
        return 1 if self.traced else self.inner

    def weights_of(self, places: list[int]) -> Tensor:
        """The weights of some rows, shape (n, O, C)."""
        if len(self.weights) == 1:
            return self.weights.expand(len(places), -1, -1)
        return self.weights[places]


def selector(outputs: Outputs, rows: int, classes: int) -> Selector:
    """The selector for N rows of C outputs.

    - `"all"`: every output.
    - `"sum"`: the sum of the outputs over sqrt(C). Its kernel approximates each diagonal block of the full one. A softmax
      does not change when all logits are shifted, so this direction does not decide any class.
    - `"contrast"`: every second output against the others, centred, with norm 1: for two classes the margin over sqrt(2),
      for more classes one of the C - 1 directions that decide a class.
    - `"trace"`: the mean of the diagonal blocks.
    - a number: that output alone.
    - `("signs", seed)`: one random sign per output, drawn anew for each row.
    - a tensor (N, C): the gradient of a loss, or any weights.

    Raises:
        UsageError: an unknown word, a class outside the range, or weights of another shape.
    """
    if isinstance(outputs, Tensor):
        if outputs.shape != (rows, classes):
            raise UsageError(
                f"outputs of shape {tuple(outputs.shape)} weigh {rows} rows of {classes} outputs: "
                f"give ({rows}, {classes})."
            )
        if not bool(torch.isfinite(outputs).all()):
            raise NonFiniteError(
                "the weights of the outputs hold NaN or infinity: check the loss they come from."
            )
        return Selector(outputs.double().unsqueeze(1))
    if isinstance(outputs, tuple):
        if len(outputs) != 2 or outputs[0] != "signs" or not isinstance(outputs[1], int):
            raise UsageError(f"outputs={outputs!r}: a pair is ('signs', seed) with a whole number as seed.")
        generator = torch.Generator().manual_seed(outputs[1])
        signs = torch.randint(0, 2, (rows, 1, classes), generator=generator) * 2 - 1
        return Selector(signs.double())
    if isinstance(outputs, int) and not isinstance(outputs, bool):
        if not 0 <= outputs < classes:
            raise UsageError(f"outputs={outputs}: the model has outputs 0 to {classes - 1}.")
        return Selector(torch.eye(classes, dtype=torch.float64)[[outputs]].unsqueeze(0))
    if outputs not in _WORDS:
        raise UsageError(
            f"outputs={outputs!r}: a word, an output's number, ('signs', seed) or weights. "
            f"{nearest(str(outputs), _WORDS)}"
        )
    if outputs == "sum":
        return Selector(torch.full((1, 1, classes), classes**-0.5, dtype=torch.float64))
    if outputs == "contrast" and classes > 1:
        weights = 1 - 2 * (torch.arange(classes, dtype=torch.float64) % 2)
        weights -= weights.mean()
        return Selector((weights / weights.norm()).view(1, 1, classes))
    return Selector(torch.eye(classes, dtype=torch.float64).unsqueeze(0), traced=outputs == "trace")
