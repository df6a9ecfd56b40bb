"""The one-pass engine: the ordinary graph at theta0, tangents beside it, and one plain backward.

The forward runs the module once on dual tensors (`tauspan.tangent.engine.dual`). Autograd records the ordinary graph at
theta0, whose vector-Jacobian product is exactly the gradient J^T g of the tangent model, so the backward is that of
ordinary fine-tuning: a training step costs 5/3 of one in matrix products, and attention stays fused in value and
backward.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tauspan.core.params import Params
from tauspan.tangent.engine.dual import Dual, Trace
from tauspan.tangent.engine.maps import once
from tauspan.tangent.engine.reference import Function


class _Anchor(torch.autograd.Function):
    """theta0, with the gradient that arrives at it passed on to tau."""

    @staticmethod
    def forward(ctx: Any, theta: Tensor, tau: Tensor) -> Tensor:
        """theta0 as a tensor of the graph."""
        ctx.tau = tau
        return theta.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        """J^T g."""
        return None, once(gradient, ctx.tau)


class _Attach(torch.autograd.Function):
    """J tau, with the gradient that arrives at it passed on to the graph of f."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, tangent: Tensor) -> Tensor:
        """The tangent as a tensor of f's graph."""
        return tangent.view_as(tangent)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """g, to where f's own gradient starts."""
        return gradient, None


def started(theta: Tensor, tau: Tensor, trace: Trace, tracked: bool) -> Dual:
    """theta0 with the direction tau; if `tracked`, the gradient that arrives at it goes to tau."""
    start = _Anchor.apply(theta, tau) if tracked else theta  # type: ignore[no-untyped-call]
    return Dual(start, (tau.detach().to(theta.dtype),), trace)


def parted(out: Tensor, tracked: bool) -> tuple[Tensor, Tensor]:
    """`(f, J tau)` from a module's dual output; if `tracked`, the gradient of J tau goes to the graph of f."""
    if not isinstance(out, Dual):
        return out.detach(), torch.zeros_like(out)
    value, tangent = out.primal, out.tangents[0]
    attached: Tensor = _Attach.apply(value, tangent) if tracked else tangent  # type: ignore[no-untyped-call]
    return value.detach(), attached


def jvp(function: Function, theta0: Params, tau: Params, trace: Trace) -> tuple[Tensor, Tensor]:
    """`(f(theta0), J tau)`; differentiable once in tau.

    Args:
        function: the module as a function of its named parameters, at fixed inputs that do not require grad.
        theta0: the point; none of its tensors requires grad.
        tau: the direction, same names and shapes.
        trace: what to do about operations without a rule.
    """
    tracked = torch.is_grad_enabled() and any(delta.requires_grad for delta in tau.values())
    point: dict[str, Tensor] = {n: started(theta, tau[n], trace, tracked) for n, theta in theta0.items()}
    with (
        torch.enable_grad()
    ):  # nothing requires grad unless tracked; a no_grad of the module's own is seen by Dual
        out = function(point)
    return parted(out, tracked)


def jvps(function: Function, theta0: Params, taus: Sequence[Params], trace: Trace) -> tuple[Tensor, Tensor]:
    """`(f(theta0), [J tau_1, ..., J tau_T])`: one pass for f, T tangents beside it, no gradient."""
    point: dict[str, Tensor] = {
        name: Dual(theta, [tau[name].detach().to(theta.dtype) for tau in taus], trace)
        for name, theta in theta0.items()
    }
    with torch.enable_grad():
        out = function(point)
    if not isinstance(out, Dual):
        return out.detach(), torch.zeros(len(taus), *out.shape, dtype=out.dtype, device=out.device)
    return out.primal.detach(), torch.stack(out.tangents)


def depends_on_inputs(inputs: Any) -> bool:
    """Whether some input requires grad: then the derivative of J tau in the inputs is wanted."""
    if isinstance(inputs, Tensor):
        return inputs.requires_grad
    if isinstance(inputs, dict):
        return any(map(depends_on_inputs, inputs.values()))
    return isinstance(inputs, list | tuple) and any(map(depends_on_inputs, inputs))
