"""The tangent model by ordinary autograd alone, for modules without tangent rules or forward mode.

J^T g is the ordinary backward. J tau is the derivative in u of <J^T u, tau>, a backward through that backward; where
torch cannot derive an operation twice, each output's gradient is multiplied by tau. The module runs unchanged at its own
parameters, so this engine reaches every parameter that ordinary fine-tuning reaches.
"""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from tauspan.core.errors import ModelError
from tauspan.core.params import Params
from tauspan.core.recording import recording
from tauspan.tangent.engine.call import Call
from tauspan.tangent.engine.maps import applied, dense, ramp, turned
from tauspan.tangent.engine.reference import forward_mode

_ROWS = 4096  # the largest number of outputs whose gradients are computed one by one


class Graph:
    """f at one batch with its graph, as the linear maps J and J^T.

    Args:
        call: the module at the batch.
        singly: compute J tau from each output's gradient instead of a backward through the backward.
        twice: use operations whose backward can be derived again where torch has a choice, as for attention.

    Raises:
        UsageError: in inference mode, where autograd records nothing and every derivative would be 0.
    """

    def __init__(self, call: Call, singly: bool = False, twice: bool = False) -> None:
        self._call, self._singly = call, singly
        with recording(), call.training(), forward_mode() if twice else nullcontext():
            self.value = call.plain()

    def pull(self, gradient: Tensor, *, again: bool = False) -> dict[str, Tensor]:
        """J^T g; with `again` itself differentiable in g."""
        found = self.gradients(gradient, again=again)
        return {n: torch.zeros_like(self._call.parameters[n]) if g is None else g for n, g in found.items()}

    def gradients(self, gradient: Tensor, *, again: bool = False) -> dict[str, Tensor | None]:
        """J^T g, None where autograd does not reach a parameter.

        Raises:
            ModelError: an operation's own backward raises.
        """
        parameters = self._call.parameters
        if not self.value.requires_grad or not parameters:
            return dict.fromkeys(parameters)
        with self._call.training():
            try:
                found = torch.autograd.grad(
                    self.value, list(parameters.values()), gradient.to(self.value.dtype),
                    retain_graph=True, create_graph=again, allow_unused=True,
                )  # fmt: skip
            except Exception as error:  # a user's own backward may raise anything
                # torch's own errors are passed on, of memory or of a graph that was freed, but not a missing derivative
                if isinstance(error, RuntimeError) and "is not implemented" not in str(error):
                    raise
                raise ModelError(
                    f"ordinary autograd has no gradient of {type(self._call.module).__name__} in eval mode: "
                    f"{str(error).rstrip('.')}. What cannot be fine-tuned so has no tangents."
                ) from error
        return {n: None if g is None else dense(g) for n, g in zip(parameters, found, strict=True)}

    def push(self, deltas: Params) -> Tensor:
        """J tau, without a graph."""
        if not self.value.requires_grad:
            return torch.zeros_like(self.value)
        return self._each(deltas) if self._singly else self._twice(deltas)

    def _twice(self, deltas: Params) -> Tensor:
        with torch.enable_grad():
            u = ramp(self.value)
            pulled = self.gradients(u, again=True)
            return turned(list(pulled.values()), [deltas[name] for name in pulled], [u])[0]

    def _each(self, deltas: Params) -> Tensor:
        if self.value.numel() > _ROWS:
            raise ModelError(
                f"{type(self._call.module).__name__} has an operation that torch can derive neither forward nor twice, "
                f"so that J tau takes a backward pass for each of {self.value.numel()} outputs; at most {_ROWS} are "
                "formed. Pass fewer rows at a time."
            )
        unit, found = torch.zeros_like(self.value), []
        for place in range(self.value.numel()):
            unit.view(-1)[place] = 1
            pulled = self.pull(unit)
            found.append(sum((g * deltas[name].to(g)).sum() for name, g in pulled.items()))
            unit.view(-1)[place] = 0
        return torch.stack([torch.as_tensor(one) for one in found]).view_as(self.value)


def jvp(call: Call, tau: Params, singly: bool = False) -> tuple[Tensor, Tensor]:
    """`(f(theta0), J tau)`; differentiable once in tau."""
    graph = Graph(call, singly, twice=not singly)
    return graph.value.detach(), applied(graph, tau)


def jvps(call: Call, taus: Sequence[Params], singly: bool = False) -> tuple[Tensor, Tensor]:
    """`(f(theta0), [J tau_1, ..., J tau_T])`: one graph for all, no gradient."""
    graph = Graph(call, singly, twice=not singly)
    return graph.value.detach(), torch.stack([graph.push(tau) for tau in taus])
