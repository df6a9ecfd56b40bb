"""Tangent rules of elementwise functions and softmax.

Their Jacobians are symmetric, so torch's fused backward kernel of such a function is its tangent rule too.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tauspan.tangent.engine.fallback import by_forward_mode
from tauspan.tangent.engine.rules import Push, Rule, aten

# f'(x) from x and f(x).
DERIVATIVES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "exp": lambda x, y: y,
    "log": lambda x, y: x.reciprocal(),
    "sqrt": lambda x, y: 0.5 / y,
    "rsqrt": lambda x, y: -0.5 * y * y * y,
    "reciprocal": lambda x, y: -y * y,
    "square": lambda x, y: 2 * x,
    "sin": lambda x, y: x.cos(),
    "cos": lambda x, y: -x.sin(),
    "erf": lambda x, y: (-x * x).exp() * (2 / torch.pi**0.5),
    "abs": lambda x, y: x.sign(),
}


def derived(name: str) -> Rule:
    """The rule of a function in `DERIVATIVES`."""
    derivative = DERIVATIVES[name]

    def rule(func: Any, x: Tensor) -> tuple[Any, Push]:
        """Elementwise: f'(x) dx, with f' written down; `abs` of complex numbers by forward mode."""
        # the others are holomorphic: their complex derivative is the same
        if x.is_complex() and name == "abs":
            return by_forward_mode(func, x)
        value = func(x)
        return value, lambda dx: dx * derivative(x.detach(), value.detach())

    return rule


# torch's fused backward kernels, called (tangent, x, f(x)): f'(x) times the tangent.
KERNELS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "relu": lambda dx, x, y: aten.threshold_backward(dx, y, 0),
    "tanh": lambda dx, x, y: aten.tanh_backward(dx, y),
    "sigmoid": lambda dx, x, y: aten.sigmoid_backward(dx, y),
    "silu": lambda dx, x, y: aten.silu_backward(dx, x),
    "mish": lambda dx, x, y: aten.mish_backward(dx, x),
    "hardswish": lambda dx, x, y: aten.hardswish_backward(dx, x),
    "hardsigmoid": lambda dx, x, y: aten.hardsigmoid_backward(dx, x),
}


def kernel(name: str) -> Rule:
    """The rule of a function in `KERNELS`; an `inplace` option is ignored, so the input does not change."""
    fused = KERNELS[name]
    plain = {"relu": torch.relu, "tanh": torch.tanh, "sigmoid": torch.sigmoid}.get(name) or getattr(F, name)

    def rule(func: Any, x: Tensor, inplace: bool = False) -> tuple[Any, Push]:
        """Elementwise: f'(x) dx by torch's fused backward kernel of f; complex numbers by forward mode."""
        if inplace:
            raise NotImplementedError(f"{name} with inplace=True")
        if x.is_complex():
            return by_forward_mode(plain, x)
        value = plain(x)
        return value, lambda dx, *_: fused(dx.contiguous(), x.detach(), value.detach())

    return rule


def gelu(func: Any, x: Tensor, approximate: str = "none") -> tuple[Any, Push]:
    """GELU, exact or by tanh."""
    return func(x, approximate=approximate), lambda dx, *_: aten.gelu_backward(dx, x, approximate=approximate)


def softmax(
    func: Any, x: Tensor, dim: Any = None, third: Any = None, dtype: Any = None, _stacklevel: int = 3
) -> tuple[Any, Push]:
    """Softmax: y * (dx - sum(y * dx)), symmetric. The third argument is a dtype in torch and a level in F."""
    wanted = third if isinstance(third, torch.dtype) else dtype
    dim = _axis(x, dim)
    value = torch.softmax(x, dim, dtype=wanted)

    def push(dx: Tensor, *_: Any) -> Any:
        return aten._softmax_backward_data(dx.to(value.dtype), value, dim, value.dtype)

    return value, push


def _axis(x: Tensor, dim: int | None) -> int:
    """The axis that `nn.Softmax()` without one means: the first for 0, 1 or 3 axes, else the second."""
    if dim is not None:
        return dim
    return 0 if x.ndim in (0, 1, 3) else 1


def log_softmax(
    func: Any, x: Tensor, dim: Any = None, third: Any = None, dtype: Any = None, _stacklevel: int = 3
) -> tuple[Any, Push]:
    """Log-softmax: dx - sum(y * dx) with y the softmax."""
    wanted = third if isinstance(third, torch.dtype) else dtype
    dim = _axis(x, dim)
    value = torch.log_softmax(x, dim, dtype=wanted)

    def push(dx: Tensor, *_: Any) -> Any:
        return dx - (value.exp() * dx).sum(dim, keepdim=True)

    return value, push
