"""The linear map tau -> J tau as an autograd function, from any way to compute J tau and J^T g."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from tauspan.core.errors import ModelError
from tauspan.core.params import Params


class LinearMap(Protocol):
    """J at fixed inputs."""

    def push(self, deltas: Params) -> Tensor:
        """J tau, without a graph."""

    def pull(self, gradient: Tensor) -> dict[str, Tensor]:
        """J^T g."""


def applied(j: LinearMap, tau: Mapping[str, Tensor]) -> Tensor:
    """J tau, differentiable once in tau."""
    found: Tensor = _Apply.apply(j, tuple(tau), *tau.values())  # type: ignore[no-untyped-call]
    return found


class _Apply(torch.autograd.Function):
    """J tau, with J^T g as its gradient in tau."""

    @staticmethod
    def forward(ctx: Any, j: LinearMap, names: tuple[str, ...], *taus: Tensor) -> Tensor:
        """J tau."""
        ctx.j, ctx.names, ctx.taus = j, names, taus
        return j.push(dict(zip(names, taus, strict=True)))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        """J^T g."""
        found = ctx.j.pull(gradient)
        return None, None, *(once(found[name], tau) for name, tau in zip(ctx.names, ctx.taus, strict=True))


class _Once(torch.autograd.Function):
    """J^T g, which must not be derived again: that would give the curvature of f, which the tangent model lacks.

    tau is an input, so that a second derivative in tau raises the error too.
    """

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, tau: Tensor) -> Tensor:
        """The gradient as it is."""
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        """Raise: there is no second derivative."""
        raise ModelError(
            "the gradient of this tangent model cannot be derived again. "
            "For second derivatives use linearize(..., engine='reference')."
        )


def once(gradient: Tensor, tau: Tensor) -> Tensor:
    """A gradient for tau, dense and in tau's dtype, that raises if it is derived again."""
    found = dense(gradient).to(tau.dtype)
    if not torch.is_grad_enabled():
        return found
    guarded: Tensor = _Once.apply(found, tau)  # type: ignore[no-untyped-call]
    return guarded


def dense(gradient: Tensor) -> Tensor:
    """A gradient as an ordinary tensor; `nn.Embedding(sparse=True)` gives sparse ones."""
    return gradient if gradient.layout == torch.strided else gradient.to_dense()


def nodes_of(tensor: Tensor) -> list[Any]:
    """The nodes of a tensor's graph."""
    stack: list[Any] = [tensor.grad_fn]
    seen: dict[Any, None] = {}
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen[node] = None
        stack += [after for after, _ in node.next_functions]
    return list(seen)


def dtypes_of(nodes: Sequence[Any]) -> set[torch.dtype]:
    """The dtypes used in a graph: float64 modules may use float32 inside."""
    return {output.dtype for node in nodes for output in getattr(node, "_input_metadata", ())}


def ramp(tensor: Tensor) -> Tensor:
    """A leaf of the tensor's shape with no entry equal to 0, of both signs: a softmax cancels a constant."""
    numbers = torch.linspace(1, 2, max(tensor.numel(), 1), dtype=torch.float64, device=tensor.device)
    numbers[1::2] *= -1
    return numbers[: tensor.numel()].view(tensor.shape).to(tensor.dtype).requires_grad_()


def turned(pulled: Sequence[Tensor | None], deltas: Sequence[Tensor], us: Sequence[Tensor]) -> list[Tensor]:
    """J v from J^T u, which is linear in u: the derivative of <J^T u, v> in u.

    Args:
        pulled: J^T u with its graph for each input; None where there is no dependence.
        deltas: v for each input.
        us: u for each output, from `ramp`.

    Raises:
        NotImplementedError: a backward that cannot be derived, because it is not recorded in the graph.
    """
    graded = [(g, v.to(g)) for g, v in zip(pulled, deltas, strict=True) if g is not None]
    terms = [(g * v).sum() for g, v in graded if g.requires_grad]
    found: Sequence[Tensor | None] = [None] * len(us)
    graph = any(v.requires_grad for v in deltas)  # J v is linear in v, and may be derived in it
    if terms:
        found = torch.autograd.grad(torch.stack(terms).sum(), us, allow_unused=True, create_graph=graph)
    turned_round = [
        torch.zeros_like(u) if v is None else v if graph else v.detach()
        for u, v in zip(us, found, strict=True)
    ]
    # <J v, u> = <J^T u, v>, unless some backward is not recorded in the graph
    products = [(g.detach() * v.detach()).double() for g, v in graded]
    expected = sum(float(product.sum()) for product in products)
    again = [(v.detach() * u.detach()).double() for v, u in zip(turned_round, us, strict=True)]
    moved = sum(float(product.sum()) for product in again)
    # either side may cancel: J^T u of a softmax is small for a u that is nearly constant
    scale = sum(float(product.abs().sum()) for product in (*products, *again))
    dtypes = {u.dtype for u in us} | {
        dtype for g in pulled if g is not None for dtype in dtypes_of(nodes_of(g))
    }
    precision = max((torch.finfo(dtype).eps for dtype in dtypes if dtype.is_floating_point), default=0.0)
    if not abs(moved - expected) <= 64 * precision * scale:
        raise NotImplementedError("its backward cannot be derived")
    return turned_round
