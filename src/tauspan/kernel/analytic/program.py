"""Infinite-width programs: the kernels of a net described by its layers, and the finite net of the same description."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tauspan.core.errors import MismatchError, NonFiniteError, UsageError
from tauspan.kernel.analytic.activation import Activation
from tauspan.kernel.analytic.batch import DRAWS
from tauspan.kernel.analytic.conv import Convolution
from tauspan.kernel.analytic.finite import Build, Chain, chained
from tauspan.kernel.analytic.layers import Act, Dense, Layer, flattened, windows
from tauspan.kernel.analytic.mixes import Pool
from tauspan.kernel.analytic.positions import Kind, Pair, inputs, still
from tauspan.kernel.analytic.recursion import Stack

_AT_ONCE = 2**21  # pairs of positions in one part; a layer's temporaries are a dozen times that


class Kernels(NamedTuple):
    """Both kernels of an infinitely wide net, (N, M) each.

    `nngp`: the covariance of an output. `ntk`: its tangent kernel.
    """

    nngp: Tensor
    ntk: Tensor


class Process(NamedTuple):
    """The covariance of an infinitely wide net's output, (N, N).

    `nngp`: the covariance. `error`: the standard error of its entries where they are means over draws, else zeros.
    """

    nngp: Tensor
    error: Tensor


@dataclass(frozen=True)
class Program:
    """A net given by its layers: its kernels at infinite width, and nets of any width that tend to them.

    Rows have positions: x is (N, T, d), or (N, d) for one position. Every layer's rule is a limit of the NTK
    parametrisation, in which weights are N(0, 1) and scales multiply (Yang 2019, arXiv 1902.04760). The last layer is a
    `Dense` that nothing else shares, which is what makes gradients independent of the weights they go back through
    (`mean_readout` says what is added where a readout has a mean).

    Args:
        layers: one after the other; `Residual` holds layers of its own. They leave one position (`Pool`, or taps).

    Raises:
        UsageError: no layers, a last layer that is no `Dense`, or a layer whose limit does not hold where it stands.

    Example:
        >>> from tauspan.kernel.analytic.joined import Recurrent
        >>> rnn = Program([Recurrent("erf", 1.2), Pool("last"), Dense()])
        >>> x = torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(0))
        >>> tuple(rnn.kernels(x).ntk.shape), tuple(rnn.network(2, width=16)(x.double()).shape)
        ((3, 3), (3, 1))
    """

    layers: Sequence[Layer]

    def __post_init__(self) -> None:
        if not self.layers or not isinstance(self.layers[-1], Dense):
            last = type(self.layers[-1]).__name__ if self.layers else "nothing"
            raise UsageError(f"a program ends with {last}: its last layer must be a Dense, the readout.")
        kind: Kind = "rows"
        for layer in self.layers:
            kind = layer.after(kind)

    def kernels(
        self,
        x: Tensor,
        x2: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        lengths2: Tensor | None = None,
    ) -> Kernels:
        """Both kernels between rows of x and of x2, float64.

        Args:
            x: rows (N, T, d) or (N, d); where a derivative is a surrogate, those that are predicted.
            x2: other rows (M, R, d), of any number of positions; those that are trained on. None takes x itself.
            lengths: how many positions of each row are no padding, integers (N) from 1 to T; None counts all.
            lengths2: the same of x2.

        Raises:
            UsageError: rows of the wrong shape, more than one position at the end, or a net with `BatchNorm`.
            MismatchError: layers for another number of positions.
            NonFiniteError: NaN or infinity in the rows, or in a kernel.

        Cost:
            Time O(N M T R) for each layer, times T in layers that mix positions. Memory for 2 million pairs of positions
            at once, or one pair of rows, a dozen times.

        Example:
            >>> net = Program([Dense(), Act("relu"), Dense()])
            >>> net.kernels(torch.eye(2)).nngp.diagonal()
            tensor([0.2500, 0.2500], dtype=torch.float64)
        """
        if any(layer.batched for layer in self.layers):
            raise UsageError(_BATCHED)
        if x2 is None and lengths2 is not None:
            raise UsageError("lengths2 without x2: lengths belong to x where it stands on both sides.")
        left = _rows("x", x, lengths)
        right = left if x2 is None else _rows("x2", x2, lengths2)
        if left[0].shape[2] != right[0].shape[2]:
            raise UsageError(
                f"x has {left[0].shape[2]} numbers a position and x2 has {right[0].shape[2]}: they must be the same."
            )
        half = x2 is None and all(layer.symmetric for layer in self.layers)
        side = max(1, int((_AT_ONCE / (left[0].shape[1] * right[0].shape[1])) ** 0.5))
        found = torch.zeros(2, len(left[0]), len(right[0]), dtype=torch.float64)
        for row in range(0, len(left[0]), side):
            for column in range(row if half else 0, len(right[0]), side):
                rows, columns = slice(row, row + side), slice(column, column + side)
                pair = inputs(left[0][rows], right[0][columns], left[1][rows], right[1][columns])
                found[:, rows, columns] = self._block(pair)
        if half:
            found = found.triu() + found.triu(1).mT
        elif x2 is None:
            found[0] = (found[0] + found[0].T) / 2
        return Kernels(_checked("nngp", found[0]), _checked("ntk", found[1]))

    def nngp(self, x: Tensor, *, lengths: Tensor | None = None) -> Process:
        """The covariance between rows of one batch, float64; of nets with `BatchNorm` too, where rows depend on others.

        Rows to be predicted belong to the batch: give them behind the rows to learn from, and cut the covariance for
        `posterior`. Where a layer draws points, it is the mean of eight draws of all layers, and the error is their
        standard deviation over sqrt(8).

        Args:
            x: rows (N, T, d) or (N, d), the whole batch.
            lengths: as in `kernels`.

        Raises:
            UsageError: rows of the wrong shape, more than one position at the end, or one row alone under `BatchNorm`.
            MismatchError: layers for another number of positions.
            NonFiniteError: NaN or infinity in the rows, or in the covariance.

        Cost:
            As `kernels`; with `BatchNorm` memory for all (N T)^2 pairs of positions, and its own time.

        Example:
            >>> from tauspan.kernel.analytic.batch import BatchNorm
            >>> x = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
            >>> found = Program([Dense(), BatchNorm("identity", eps=0.0), Dense()]).nngp(x)
            >>> round(float(found.nngp.trace()), 9), bool(found.error.any())  # units of variance 1 over the batch
            (3.0, False)
        """
        if not any(layer.batched for layer in self.layers):
            found = self.kernels(x, lengths=lengths).nngp
            return Process(found, torch.zeros_like(found))
        rows, present = _rows("x", x, lengths)
        pair = inputs(rows, rows, present, present)
        drawn = [Program([layer.redrawn(draw) for layer in self.layers]) for draw in range(1, DRAWS + 1)]
        if all(one is layer for one, layer in zip(drawn[0].layers, self.layers, strict=True)):
            found = _checked("nngp", self._block(pair)[0])
            return Process(found, torch.zeros_like(found))
        draws = torch.stack([_checked("nngp", one._block(pair)[0]) for one in drawn])
        return Process(draws.mean(0), draws.std(0) / DRAWS**0.5)

    def _block(self, pair: Pair) -> Tensor:
        for layer in self.layers:
            pair = layer.pair(pair)
        if pair.cross.shape[2:] != (1, 1):
            raise UsageError(_POSITIONS.format(max(pair.cross.shape[2:])))
        return torch.stack([pair.cross, pair.tangent])[..., 0, 0]

    def network(
        self,
        channels: int,
        outputs: int = 1,
        *,
        width: int,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
    ) -> "ProgramNet":
        """A net of the width given, whose kernels tend to those of the program, with error 1/sqrt(width).

        Args:
            channels: d of the rows.
            outputs: of the readout.
            width: units of every layer.
            seed: of all parameters.
            dtype: of all parameters.

        Raises:
            UsageError: a size below 1.

        Example:
            >>> net = Program([Dense(), Act("erf"), Dense()]).network(3, width=8)
            >>> [tuple(p.shape) for p in net.parameters()]
            [(8, 3), (1, 8)]
        """
        if min(channels, outputs, width) < 1:
            raise UsageError(
                f"channels={channels}, outputs={outputs}, width={width}: all must be at least 1."
            )
        generator = torch.Generator().manual_seed(seed)
        hidden, before = chained(self.layers[:-1], channels, Build(width, generator, dtype))
        readout, _ = self.layers[-1].module(before, Build(outputs, generator, dtype))
        return ProgramNet(hidden, readout)


class ProgramNet(nn.Module):
    """The finite net of a program.

    Args:
        hidden: all layers but the last.
        readout: the last.

    Example:
        >>> net = Program([Pool(), Dense()]).network(3, outputs=2, width=1)
        >>> tuple(net(torch.zeros(4, 5, 3).double(), torch.tensor([5, 1, 2, 3])).shape)
        (4, 2)
    """

    def __init__(self, hidden: Chain, readout: nn.Module) -> None:
        super().__init__()
        self.hidden, self.readout = hidden, readout

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Rows (N, T, d) or (N, d), and how many positions of each are no padding, to (N, outputs)."""
        s = x if x.dim() == 3 else x[:, None]
        present = _present(s, lengths)
        s = self.hidden(s, present)
        found: Tensor = self.readout(s, still(present, s.shape[1]))
        if found.shape[1] != 1:
            raise UsageError(_POSITIONS.format(found.shape[1]))
        return found[:, 0]


def stacked(
    *,
    depth: int = 1,
    activation: str | Activation = "relu",
    weight_std: float = 1.0,
    bias_std: float = 0.0,
    convolution: Convolution | None = None,
    size: tuple[int, int] = (1, 1),
) -> Program:
    """The program of `ntk`'s arguments: the same kernels and nets, with all pairs of positions.

    `ntk` keeps a pixel's pairs with itself alone where the readout flattens, so that it is the faster one for images.

    Args:
        depth: hidden layers.
        activation: as in `ntk`.
        weight_std: as in `ntk`.
        bias_std: as in `ntk`.
        convolution: as in `ntk`; rows are then images as (N, H W, C).
        size: (H, W) of the images.

    Raises:
        UsageError: as `ntk`.

    Example:
        >>> [type(layer).__name__ for layer in stacked(depth=2).layers]
        ['Dense', 'Act', 'Dense', 'Act', 'Dense']
    """
    stack = Stack(depth, activation, weight_std, bias_std, convolution)
    taps = None if convolution is None else windows(size, convolution)
    layers: list[Layer] = []
    for _ in range(stack.depth):
        layers += [Dense(weight_std, bias_std, taps), Act(activation)]
    if convolution is None:
        return Program([*layers, Dense(weight_std, bias_std)])
    if convolution.readout == "pool":
        return Program([*layers, Pool(), Dense(weight_std, bias_std)])
    return Program([*layers, Dense(weight_std, bias_std, flattened(size[0] * size[1]))])


_BATCHED = (
    "the net has a BatchNorm, so that each output depends on all rows of the batch. Its gradient runs through the "
    "batch's mean and variance. That part stays at any width, while that of Norm vanishes, and no rule for it is here. "
    "`Program.nngp` gives the covariance; for a tangent kernel put Norm in its place."
)
_POSITIONS = (
    "the program ends with {} positions: put a Pool before the readout, or give it taps=flattened(positions)."
)


def _rows(name: str, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """The rows as (N, T, d) in float64, and which positions are no padding."""
    if x.dim() not in (2, 3) or 0 in x.shape:
        raise UsageError(f"{name} has the shape {tuple(x.shape)}: give (N, T, d), or (N, d).")
    finite = torch.isfinite(x).flatten(1).all(1)
    if not bool(finite.all()):
        raise NonFiniteError(f"row {int((~finite).nonzero()[0])} of {name} holds NaN or infinity.")
    rows = x.double() if x.dim() == 3 else x.double()[:, None]
    return rows, _present(rows, lengths)


def _present(x: Tensor, lengths: Tensor | None) -> Tensor:
    if lengths is None:
        return torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    if lengths.shape != (len(x),) or lengths.is_floating_point():
        raise MismatchError(
            f"lengths of shape {tuple(lengths.shape)} and {lengths.dtype} for {len(x)} rows: give one integer a row."
        )
    if not 1 <= int(lengths.min()) <= int(lengths.max()) <= x.shape[1]:
        raise MismatchError(
            f"lengths from {int(lengths.min())} to {int(lengths.max())} for rows of {x.shape[1]} positions: each must be "
            "from 1 to that."
        )
    return torch.arange(x.shape[1], device=x.device) < lengths[:, None]


def _checked(name: str, kernel: Tensor) -> Tensor:
    if not bool(torch.isfinite(kernel).all()):
        row, column = (~torch.isfinite(kernel)).nonzero()[0].tolist()
        raise NonFiniteError(
            f"the {name} of row {row} with row {column} is not finite: scale the rows, lower weight_std, or give Norm an "
            "eps above 0."
        )
    return kernel
