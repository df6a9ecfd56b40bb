"""NNGP and tangent kernels of infinitely wide nets: one recursion over layers, in float64."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tauspan.core.errors import NonFiniteError, UsageError
from tauspan.kernel.analytic.activation import Activation, find
from tauspan.kernel.analytic.conv import Convolution, Pairs

_AT_ONCE = 2**23  # covariances in one part; a layer's temporaries are a few times that


@dataclass(frozen=True)
class Stack:
    """A net of `depth` hidden layers and an affine readout, in the NTK parametrisation.

    h = weight_std W s(h_before) / sqrt(fan_in) + bias_std b, every W and b ~ N(0, 1). The fields are those of `ntk`.

    Raises:
        UsageError: depth below 1, or a standard deviation that is no scale.
    """

    depth: int = 1
    activation: str | Activation = "relu"
    weight_std: float = 1.0
    bias_std: float = 0.0
    convolution: Convolution | None = None

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise UsageError(f"depth={self.depth}: a net has at least one hidden layer.")
        if not 0 < self.weight_std < float("inf") or not 0 <= self.bias_std < float("inf"):
            raise UsageError(
                f"weight_std={self.weight_std}, bias_std={self.bias_std}: the first must be positive, the second at "
                "least 0, both finite."
            )
        find(self.activation)


def nngp(
    x: Tensor,
    x2: Tensor | None = None,
    *,
    depth: int = 1,
    activation: str | Activation = "relu",
    weight_std: float = 1.0,
    bias_std: float = 0.0,
    convolution: Convolution | None = None,
) -> Tensor:
    """The covariance of one output of an infinitely wide random net, shape (N, M), float64.

    S_1 = w^2 x.x'/d + b^2, S_{l+1} = w^2 E[s(u) s(v)] + b^2 with (u, v) ~ N(0, S_l); w = weight_std, b = bias_std. The
    result is S_{depth+1}. Arguments, errors and cost as in `ntk`.

    Example:
        >>> x = torch.eye(2, dtype=torch.float64)
        >>> nngp(x, activation="identity")
        tensor([[0.5000, 0.0000],
                [0.0000, 0.5000]], dtype=torch.float64)
    """
    return _kernel(x, x2, Stack(depth, activation, weight_std, bias_std, convolution), tangent=False)


def ntk(
    x: Tensor,
    x2: Tensor | None = None,
    *,
    depth: int = 1,
    activation: str | Activation = "relu",
    weight_std: float = 1.0,
    bias_std: float = 0.0,
    convolution: Convolution | None = None,
) -> Tensor:
    """The neural tangent kernel of an infinitely wide net, of one output, shape (N, M), float64.

    Theta_1 = S_1, Theta_{l+1} = S_{l+1} + w^2 Theta_l E[s'(u) s'(v)], with S of `nngp` (Jacot et al. 2018). The kernel
    between different outputs is 0. For a convolutional net, S and Theta are kept for pairs of pixels, and each layer
    averages them over its window (Arora et al. 2019). With a surrogate derivative (`"sign"`), x holds the rows that are
    predicted and x2 those that are trained on, and the kernel is not symmetric.

    Args:
        x: rows (N, d), or images (N, C, H, W) with `convolution`.
        x2: other rows; None takes x itself.
        depth: hidden layers, at least 1; a readout follows.
        activation: a name, or an `Activation`.
        weight_std: w.
        bias_std: b; 0 for a net without biases.
        convolution: convolutional layers instead of fully connected ones.

    Raises:
        UsageError: an unknown activation, an impossible choice, or rows of the wrong shape.
        NonFiniteError: NaN or infinity in the rows, or in the kernel (sign of a row of zeros has no derivative).

    Cost:
        O(N M (d + depth)), fully connected. O(N M depth A k^2) time with A = (H W)^2 pairs of pixels and a window of
        side k; A = H W where the readout flattens. Memory for 8 million pairs at once.

    Example:
        >>> ntk(torch.eye(2, dtype=torch.float64))  # 1/2 and 1/(4 pi): S_1 is 1/2 on the diagonal
        tensor([[0.5000, 0.0796],
                [0.0796, 0.5000]], dtype=torch.float64)
    """
    return _kernel(x, x2, Stack(depth, activation, weight_std, bias_std, convolution), tangent=True)


def _kernel(x: Tensor, x2: Tensor | None, stack: Stack, tangent: bool) -> Tensor:
    act = find(stack.activation)
    left = _pixels("x", x, stack.convolution)
    right = left if x2 is None else _pixels("x2", x2, stack.convolution)
    if x2 is not None and x.shape[1:] != x2.shape[1:]:
        raise UsageError(
            f"rows of shape {tuple(x.shape[1:])} in x and {tuple(x2.shape[1:])} in x2: they must be the same."
        )
    convolution = stack.convolution or Convolution(1, readout="flatten")  # a row is an image of one pixel
    height, width = x.shape[2:] if stack.convolution else (1, 1)
    convolution.require_fits(height, width)
    pairs = Pairs.of(height, width, convolution, every=convolution.readout == "pool")
    pixels = Pairs.of(height, width, convolution, every=False)
    size = max(1, _AT_ONCE // (len(right) * len(pairs.left)))
    parts = [_between(part, right, stack, act, pairs, pixels, tangent) for part in torch.split(left, size)]
    found = torch.cat(parts)
    if not bool(torch.isfinite(found).all()):
        row, column = (~torch.isfinite(found)).nonzero()[0].tolist()
        raise NonFiniteError(
            f"the {act.name} kernel of row {row} with row {column} is not finite: scale the rows, or drop rows of zeros."
        )
    return (found + found.T) / 2 if x2 is None and (act.symmetric or not tangent) else found


def _pixels(name: str, x: Tensor, convolution: Convolution | None) -> Tensor:
    """The rows as (N, P, C) in float64."""
    wanted = 2 if convolution is None else 4
    if x.dim() != wanted or 0 in x.shape:
        shape = "(N, d); images need convolution=Convolution()" if convolution is None else "(N, C, H, W)"
        raise UsageError(f"{name} has the shape {tuple(x.shape)}: give {shape}.")
    finite = torch.isfinite(x).flatten(1).all(1)
    if not bool(finite.all()):
        raise NonFiniteError(f"row {int((~finite).nonzero()[0])} of {name} holds NaN or infinity.")
    return x.double().unsqueeze(1) if convolution is None else x.double().flatten(2).transpose(1, 2)


def _between(
    x: Tensor, x2: Tensor, stack: Stack, act: Activation, pairs: Pairs, pixels: Pairs, tangent: bool
) -> Tensor:
    """The kernel between rows (n, P, C) and other rows (m, P, C), shape (n, m): Theta, or S without `tangent`."""
    w2, b2, channels = stack.weight_std**2, stack.bias_std**2, x.shape[2]
    # after an activation: the variance of every pixel, the covariance of every pair, and Theta's part from earlier layers
    own, others = x.square().sum(2) / channels, x2.square().sum(2) / channels
    after = torch.einsum("nac,mac->nma", x[:, pairs.left], x2[:, pairs.right]) / channels
    carried = torch.zeros_like(after)
    for _ in range(stack.depth):
        own, others = (w2 * pixels.window(one) + b2 for one in (own, others))
        cross = w2 * pairs.window(after) + b2
        u, v = own[:, None, pairs.left], others[None, :, pairs.right]
        after = act.dual(u, v, cross)
        if tangent:
            theta = cross + w2 * pairs.window(carried)
            carried = theta * act.dual_prime(u, v, cross)
        own, others = act.dual(own, own, own), act.dual(others, others, others)
    return w2 * (after + carried).mean(-1) + b2
