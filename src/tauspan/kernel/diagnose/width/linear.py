"""The exact infinite-width limit of a linear net with one hidden layer: a net with d + c hidden units."""

import torch
from torch import Tensor, nn

from tauspan.core.arguments import checked
from tauspan.core.errors import UsageError


class LinearNet(nn.Module):
    """f(x) = V U x: a linear net with one hidden layer and no biases.

    Args:
        embedding: U, shape (units, d).
        readout: V, shape (c, units).

    Raises:
        UsageError: shapes that do not follow one another.

    Example:
        >>> LinearNet(torch.ones(4, 3), torch.ones(2, 4))(torch.ones(1, 3)).tolist()
        [[12.0, 12.0]]
    """

    @checked
    def __init__(self, embedding: Tensor, readout: Tensor) -> None:
        super().__init__()
        if embedding.ndim != 2 or readout.ndim != 2 or readout.shape[1] != embedding.shape[0]:
            raise UsageError(
                f"embedding of shape {tuple(embedding.shape)} and readout of shape {tuple(readout.shape)}: they must be "
                "(units, d) and (c, units)."
            )
        self.embedding = nn.Parameter(embedding.detach().clone())
        self.readout = nn.Parameter(readout.detach().clone())

    @property
    def units(self) -> int:
        """The number of hidden units."""
        return self.embedding.shape[0]

    def features(self, x: Tensor) -> Tensor:
        """U x of rows (N, d), shape (N, units)."""
        return x @ self.embedding.T

    def forward(self, x: Tensor) -> Tensor:
        """(N, d) to (N, c)."""
        return self.features(x) @ self.readout.T

    @checked
    def sample(self, width: int, seed: int = 0) -> "LinearNet":
        """A random net with `width` units whose limit this net is: Omega U / sqrt(width) and V Omega^T / sqrt(width).

        Omega ~ N(0, 1) has shape (width, units). The coupling survives training: each step of gradient descent on both
        nets keeps the form, with Omega^T Omega / width in the place of the identity, an error of order 1/sqrt(width). So
        a sample of a *trained* limit is a sample of trained wide nets.

        Args:
            width: n.
            seed: of Omega.

        Raises:
            UsageError: a width below 1.

        Example:
            >>> linear_limit(3, 2).sample(64).embedding.shape
            torch.Size([64, 3])
        """
        if width < 1:
            raise UsageError(f"width={width}: it must be at least 1.")
        generator = torch.Generator().manual_seed(seed)
        omega = torch.randn(width, self.units, generator=generator, dtype=torch.float64) / width**0.5
        omega = omega.to(self.embedding)
        return LinearNet(omega @ self.embedding.detach(), self.readout.detach() @ omega.T)


@checked
def linear_limit(
    inputs: int,
    outputs: int,
    *,
    input_std: float = 1.0,
    readout_std: float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> LinearNet:
    """The infinitely wide linear net f = V U x under muP, as a net with d + c units that is trained in its place.

    At width n, U ~ N(0, input_std^2 / n) and V ~ N(0, readout_std^2 / n). With the d + c independent columns of U and
    rows of V in a matrix Omega, U = Omega A / sqrt(n) and V = B Omega^T / sqrt(n), A = input_std [I_d; 0] and B =
    readout_std [0, I_c]. The gradients are Omega dA / sqrt(n) and dB Omega^T / sqrt(n), where products hold Omega^T Omega
    / n, which tends to I; so A and B take the steps of a net of their own at the same learning rate. It holds for every
    loss of the outputs and every optimiser that is linear in the gradients (SGD with momentum and decay, steps of MAML),
    and not for Adam. Yang and Hu, "Feature learning in infinite-width neural networks" (2021). Units of a std of 0 stay 0
    for ever and are left out: with `readout_std=0` the limit of CBOW's word vectors has as many units as words, and
    starts at the identity.

    Args:
        inputs: d.
        outputs: c.
        input_std: of sqrt(n) U.
        readout_std: of sqrt(n) V; with 0 the output starts at 0 at every width, else only in the limit.
        dtype: of both matrices.

    Returns:
        The net; `sample` draws nets of any width that tend to it.

    Raises:
        UsageError: a size below 1, a std below 0, or both 0, where no gradient ever starts.

    Example:
        >>> limit = linear_limit(3, 2)
        >>> limit.units, linear_limit(3, 2, readout_std=0).units
        (5, 3)
        >>> limit(torch.ones(1, 3).double()).tolist()
        [[0.0, 0.0]]
    """
    if min(inputs, outputs) < 1:
        raise UsageError(f"inputs={inputs}, outputs={outputs}: both must be at least 1.")
    if min(input_std, readout_std) < 0 or not max(input_std, readout_std) > 0:
        raise UsageError(
            f"input_std={input_std:g}, readout_std={readout_std:g}: they must be 0 or more, and one of them above 0, or "
            "no gradient ever starts: leave them at 1."
        )
    first = input_std * torch.eye(inputs, dtype=dtype) if input_std else torch.zeros(0, inputs, dtype=dtype)
    last = (
        readout_std * torch.eye(outputs, dtype=dtype) if readout_std else torch.zeros(outputs, 0, dtype=dtype)
    )
    units = first.shape[0] + last.shape[1]
    embedding, readout = torch.zeros(units, inputs, dtype=dtype), torch.zeros(outputs, units, dtype=dtype)
    embedding[: first.shape[0]] = first
    readout[:, first.shape[0] :] = last
    return LinearNet(embedding, readout)
