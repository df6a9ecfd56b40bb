"""`TangentKernel`: the kernel of the tangent model as one operator."""

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from tauspan import models
from tauspan.errors import UsageError, nearest
from tauspan.kernel.selector import Outputs
from tauspan.kernel.side import Data, Side
from tauspan.linear import linearize
from tauspan.linear.linearized import Point
from tauspan.params import Params
from tauspan.vector import TaskVector

Backend = Literal["auto", "contraction", "products", "structured"]
BACKENDS: tuple[Backend, ...] = ("auto", "contraction", "products", "structured")


class TangentKernel:
    """K = J(x) J(x2)^T, J = df/dtheta at theta0: the neural tangent kernel of a module between rows of data.

    Entry (n, o) of a side has the index n O + o. Numbers are float64, whatever the model's dtype.

    Args:
        module: any module that `linearize` takes.
        x: the rows of the left side: a batch as the module is called with, or a sequence of batches.
        x2: the rows of the right side; None takes x itself, which makes the kernel symmetric.
        params: the parameters whose tangents count, as in `linearize`.
        outputs: `"all"`, `"sum"`, `"trace"`, an output's number, `("signs", seed)` or weights (N, C); see `selector`.
        backend: how entries are computed; all give the same numbers.
        point: where the model is linearised.
        batch_size: rows of a batch, where x is one.

    Raises:
        UsageError, ModelError, NonFiniteError: an impossible choice, a model that cannot be linearised, NaN in the data.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> x = torch.eye(2)
        >>> bool(torch.equal(TangentKernel(layer, x).dense(), torch.eye(2, dtype=torch.float64)))
        True
    """

    def __init__(
        self,
        module: nn.Module,
        x: Data,
        x2: Data | None = None,
        params: str | Sequence[str] = "all",
        outputs: Outputs = "all",
        backend: Backend = "auto",
        *,
        point: Point | None = None,
        batch_size: int = 32,
    ) -> None:
        if backend not in BACKENDS:
            raise UsageError(f"backend={backend!r}. {nearest(str(backend), BACKENDS)}")
        if batch_size < 1:
            raise UsageError(f"batch_size={batch_size}: it must be at least 1.")
        self.tangent = linearize(module, params, point)
        self.backend = backend
        self.left = Side.of(self.tangent, x, batch_size, outputs)
        self.symmetric = x2 is None
        self.right = self.left if x2 is None else Side.of(self.tangent, x2, batch_size, outputs)

    @property
    def samples(self) -> int:
        """N, the rows of the left side."""
        return self.left.samples

    @property
    def outputs(self) -> int:
        """O, outputs of a row."""
        return self.left.select.outputs

    @property
    def shape(self) -> tuple[int, int]:
        """(N O, M O)."""
        return self.samples * self.outputs, self.right.samples * self.outputs

    def __repr__(self) -> str:
        module = type(models.core(self.tangent.base)[0]).__name__
        return f"TangentKernel({module}, {self.shape[0]} x {self.shape[1]}, {self.outputs} outputs a row)"

    def block(self, rows: Sequence[int], columns: Sequence[int]) -> Tensor:
        """The entries between some rows of the left side and some of the right, shape (n O, m O)."""
        total = torch.zeros(len(rows) * self.outputs, len(columns) * self.outputs, dtype=torch.float64)
        top = 0
        for places, left in self.left.jacobian(rows):
            begin = 0
            for others, right in self.right.jacobian(columns):
                found = contracted(left, right, self.left.select.traced)
                total[top : top + len(found), begin : begin + found.shape[1]] = found
                begin += len(others) * self.outputs
            top += len(places) * self.outputs
        return total

    def pullback(self, alpha: Tensor) -> dict[str, Tensor]:
        """J^T alpha for alpha of shape (N O), one backward pass over the left rows; float64."""
        return self.left.pull(alpha)

    def push(self, tau: Params | TaskVector) -> Tensor:
        """J tau, shape (N O), one pass over the left rows."""
        deltas = tau.deltas if isinstance(tau, TaskVector) else tau
        return self.left.push([deltas])[0]


def contracted(left: dict[str, Tensor], right: dict[str, Tensor], traced: bool) -> Tensor:
    """The sum over parameters of J J'^T for written-out rows, shape (n O, m O); the mean diagonal block if `traced`."""
    parts = []
    for name, a in left.items():
        b = right[name]
        if traced:
            parts.append(torch.einsum("noi,moi->nm", a.flatten(2), b.flatten(2)) / a.shape[1])
        else:
            parts.append(a.flatten(2).flatten(0, 1) @ b.flatten(2).flatten(0, 1).T)
    total: Tensor = sum(itertools.islice(parts, 1, None), parts[0])
    return total
