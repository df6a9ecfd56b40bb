"""The reference engine: `torch.func.jvp` over the functional module, readable in one screen.

Everything faster is tested against this. theta0 never requires grad, so that autograd through the jvp
differentiates the tangent path alone: a training step costs 5/3 of ordinary fine-tuning in matrix products,
against 3 when theta0 is left in the graph.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from tauspan.core.params import Params

Function: TypeAlias = Callable[[dict[str, Tensor]], Tensor]


@contextmanager
def open_attention() -> Iterator[None]:
    """Inside the block, `nn.MultiheadAttention` and `nn.TransformerEncoder` do not use their fused operation."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def forward_mode() -> Iterator[None]:
    """Inside the block, attention uses a kernel with a forward-mode rule, which fused kernels lack on every device.

    Only the forward needs this; the backward may run outside.
    """
    with open_attention(), sdpa_kernel(SDPBackend.MATH):
        yield


def jvp(function: Function, theta0: Params, tau: Params) -> tuple[Tensor, Tensor]:
    """`(f(theta0), J tau)`; differentiable in tau, in float32 or wider where theta0 is.

    Args:
        function: the module as a function of its named parameters, at fixed inputs.
        theta0: the point; none of its tensors requires grad.
        tau: the direction, same names and shapes.
    """
    direction = {name: delta.to(theta0[name].dtype) for name, delta in tau.items()}
    with forward_mode():
        pair: tuple[Tensor, Tensor] = torch.func.jvp(function, (dict(theta0),), (direction,))  # type: ignore[assignment]
    return pair


def jvps(function: Function, theta0: Params, taus: Sequence[Params]) -> tuple[Tensor, Tensor]:
    """`(f(theta0), [J tau_1, ..., J tau_T])` in one call that shares the primal; no gradient."""
    stacked = {name: torch.stack([tau[name].to(theta0[name].dtype) for tau in taus]) for name in taus[0]}

    def one(direction: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        pair: tuple[Tensor, Tensor] = torch.func.jvp(function, (dict(theta0),), (direction,))  # type: ignore[assignment]
        return pair

    with forward_mode(), torch.no_grad():
        # dropout counts as random for vmap even where it does nothing, as in eval mode
        dims: Any = (None, 0)
        pairs: tuple[Tensor, Tensor] = torch.func.vmap(one, out_dims=dims, randomness="same")(stacked)
    return pairs
