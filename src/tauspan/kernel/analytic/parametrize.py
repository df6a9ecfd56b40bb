"""Finite nets in the NTK parametrisation; as their width grows, their kernels tend to the analytic ones."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tauspan.core.errors import UsageError
from tauspan.kernel.analytic.activation import Activation, find
from tauspan.kernel.analytic.conv import Convolution
from tauspan.kernel.analytic.recursion import Stack


class NTKLinear(nn.Module):
    """weight_std W x / sqrt(fan_in) + bias_std b, every W and b ~ N(0, 1).

    Args:
        inputs: fan_in.
        outputs: the rows of W.
        weight_std: the scale of the weights' part.
        bias_std: the scale of the biases' part; 0 makes none.
        generator: draws the numbers.
        dtype: of the parameters.

    Example:
        >>> NTKLinear(3, 2, generator=torch.Generator().manual_seed(0))(torch.zeros(1, 3).double()).tolist()
        [[0.0, 0.0]]
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        weight_std: float = 1.0,
        bias_std: float = 0.0,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, generator=generator, dtype=dtype))
        biases = torch.randn(outputs, generator=generator, dtype=dtype) if bias_std else None
        self.bias = None if biases is None else nn.Parameter(biases)
        self.scale, self.bias_std = weight_std / inputs**0.5, bias_std

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs)."""
        found: Tensor = F.linear(x, self.weight) * self.scale
        return found if self.bias is None else torch.add(found, self.bias, alpha=self.bias_std)


class NTKConv2d(nn.Module):
    """`NTKLinear` for a convolution of stride 1 that keeps the image's size: fan_in is C k^2.

    Example:
        >>> layer = NTKConv2d(3, 8, Convolution(), generator=torch.Generator().manual_seed(0))
        >>> tuple(layer(torch.zeros(1, 3, 4, 4).double()).shape)
        (1, 8, 4, 4)
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        convolution: Convolution,
        weight_std: float = 1.0,
        bias_std: float = 0.0,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        side = convolution.kernel_size
        self.weight = nn.Parameter(torch.randn(outputs, inputs, side, side, generator=generator, dtype=dtype))
        biases = torch.randn(outputs, 1, 1, generator=generator, dtype=dtype) if bias_std else None
        self.bias = None if biases is None else nn.Parameter(biases)
        self.scale, self.bias_std = weight_std / (inputs * side**2) ** 0.5, bias_std
        self.border = [side // 2] * 4
        self.mode = "circular" if convolution.padding == "circular" else "constant"

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H, W)."""
        found: Tensor = F.conv2d(F.pad(x, self.border, mode=self.mode), self.weight) * self.scale
        return found if self.bias is None else torch.add(found, self.bias, alpha=self.bias_std)


class _Elementwise(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class _Pool(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def network(
    shape: int | tuple[int, int, int],
    outputs: int = 1,
    *,
    width: int,
    depth: int = 1,
    activation: str | Activation = "relu",
    weight_std: float = 1.0,
    bias_std: float = 0.0,
    convolution: Convolution | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> nn.Sequential:
    """A net of the width given, whose kernels tend to `nngp` and `ntk` of the same arguments, with error 1/sqrt(width).

    Args:
        shape: d of the rows, or (C, H, W) of the images with `convolution`.
        outputs: of the readout.
        width: units or channels of every hidden layer.
        depth: hidden layers.
        activation: a name, or an `Activation`.
        weight_std: the scale of every layer's weights.
        bias_std: the scale of every layer's biases; 0 makes none.
        convolution: convolutional layers instead of fully connected ones.
        seed: of all parameters.
        dtype: of all parameters.

    Raises:
        UsageError: an impossible choice, or a shape that does not go with the kind of net.

    Example:
        >>> net = network(3, width=8, depth=2, activation="erf")
        >>> [tuple(p.shape) for p in net.parameters()]
        [(8, 3), (8, 8), (1, 8)]
    """
    stack = Stack(depth, activation, weight_std, bias_std, convolution)
    if isinstance(shape, int) != (convolution is None):
        wanted = "d, an integer" if convolution is None else "(C, H, W)"
        raise UsageError(f"shape={shape!r} with convolution={convolution}: give {wanted}.")
    if min(width, outputs, *([shape] if isinstance(shape, int) else shape)) < 1:
        raise UsageError(f"shape={shape}, width={width}, outputs={outputs}: all must be at least 1.")
    generator = torch.Generator().manual_seed(seed)
    size = shape if isinstance(shape, int) else shape[0]
    layers: list[nn.Module] = []
    for _ in range(stack.depth):
        layer = (
            NTKLinear(size, width, weight_std, bias_std, generator=generator, dtype=dtype)
            if convolution is None
            else NTKConv2d(size, width, convolution, weight_std, bias_std, generator=generator, dtype=dtype)
        )
        layers += [layer, _Elementwise(find(activation).function)]
        size = width
    if convolution is not None and not isinstance(shape, int):
        convolution.require_fits(shape[1], shape[2])
        pooled = convolution.readout == "pool"
        layers.append(_Pool() if pooled else nn.Flatten())
        size = width if pooled else width * shape[1] * shape[2]
    layers.append(NTKLinear(size, outputs, weight_std, bias_std, generator=generator, dtype=dtype))
    return nn.Sequential(*layers)
