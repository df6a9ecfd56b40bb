"""Is an engine right for this module and these inputs? Every answer that claims to be exact is checked here.

An engine is compared with ordinary autograd on the module itself: its output y, and G = J^T g for a random g. The
engine must give the same y, the same J^T g for each parameter tensor, and a J tau with <g, J tau> = <G, tau>. The
direction tau is scaled so that each tensor contributes equally to that sum: a wrong term in a small tensor cannot
hide behind a large one.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tauspan.core.errors import NonFiniteError
from tauspan.core.params import Params, broken_rows
from tauspan.tangent.engine import backward
from tauspan.tangent.engine.call import Call, leaves
from tauspan.tangent.engine.determinism import (
    RandomError,
    keeps_tensors,
    random_state,
    require_function,
    require_unchanged,
    require_unwritten,
    versions_of,
)
from tauspan.tangent.engine.engines import Engine
from tauspan.tangent.engine.maps import dtypes_of, nodes_of
from tauspan.tangent.engine.precision import (
    PERIOD,
    far,
    inner,
    narrowest,
    norm,
    random_like,
    rms,
    rounding,
    scales,
    vanishing,
    wrong_gradient,
)
from tauspan.tangent.engine.table import moves

__all__ = [
    "Measure",
    "RandomError",
    "far",
    "reason",
    "require_finite_rows",
    "require_function",
    "require_unchanged",
    "rounding",
    "scales",
    "vanishing",
    "verify",
    "wrong_gradient",
]

_EXACT = 4  # each gradient is exact to this many units in the last place of the largest one


@dataclass(frozen=True)
class Measure:
    """The output and gradients of one call by ordinary autograd.

    Args:
        call: the module at its inputs.
        value: the output y.
        weights: g, random and of y's shape.
        pulled: G = J^T g by parameter; zeros for parameters that autograd does not reach.
        reached: the parameters that autograd reaches.
        strangers: other tensors that autograd reaches: neither trainable parameters nor inputs.
        tolerance: the largest relative difference that counts as rounding.
        noise: a gradient whose root mean square is below this is rounding.
        least: the root mean square that rounding leaves in gradients that are exactly 0 (of a constant output, say).
        largest: the largest root mean square of a gradient.
        precision: the machine epsilon of the narrowest dtype used between inputs and y.
        draws: whether the module drew random numbers.
    """

    call: Call
    value: Tensor
    weights: Tensor
    pulled: Mapping[str, Tensor]
    reached: frozenset[str]
    strangers: tuple[Tensor, ...]
    tolerance: float
    noise: float
    least: float
    largest: float
    precision: float
    draws: bool

    @staticmethod
    def of(call: Call) -> "Measure":
        """Run the module forward and backward once, unchanged.

        Raises:
            NonFiniteError: the output holds NaN or infinity.
            ModelError: the output still depends on the graph of an earlier call, the module writes to its own
                parameters, or its backward raises.
        """
        before, versions = random_state(), versions_of(call.module)
        graph = backward.Graph(call)
        require_unwritten(call.module, versions)
        draws = not all(map(torch.equal, before, random_state()))
        value = graph.value.detach()
        require_finite_rows(value, call.module)
        weights = random_like(value, 1)
        nodes = nodes_of(graph.value)
        strangers, within = tuple(_strangers(nodes, call)), narrowest(list(dtypes_of(nodes)))
        try:
            gradients = graph.gradients(weights)
        except RuntimeError as error:
            if "second time" not in str(error):
                raise
            raise keeps_tensors(call.module) from error
        reached = frozenset(name for name, g in gradients.items() if g is not None)
        pulled = {
            n: torch.zeros_like(call.parameters[n]) if g is None else g.detach() for n, g in gradients.items()
        }
        tolerance, noise = scales(value, pulled, within)
        least = vanishing(value * weights, call.parameters)
        largest = max((rms(g) for g in pulled.values()), default=0.0)
        return Measure(
            call, value, weights, pulled, reached, strangers, tolerance, max(noise, least), least, largest,
            float(torch.finfo(within).eps), draws,
        )  # fmt: skip

    def direction(self) -> dict[str, Tensor]:
        """Tau with <G_p, tau_p> of about 1 for each tensor p: half of it along G_p, half random.

        Where G_p is only rounding (for a key's bias, say), tau_p is as long as for the largest gradient, so that a
        J tau_p other than 0 is noticed and rounding is not. Entries with a gradient of exactly 0 stay 0: that of an
        embedding's padding row is 0 by convention, although f depends on it.
        """
        tau = {}
        for number, (name, g) in enumerate(self.pulled.items()):
            wide = torch.promote_types(g.dtype, torch.float32)
            if name not in self.reached:
                tau[name] = random_like(g, number).to(wide)
                continue
            root, length = math.sqrt(g.numel()), norm(g)
            if length <= self.least * root:
                tau[name] = torch.zeros_like(g, dtype=wide)
                continue
            length = length if length > self.noise * root else max(self.largest, self.noise) * root
            tau[name] = g.to(wide) / length**2
            if (
                g.numel() <= PERIOD
            ):  # for a large tensor the direction of G alone will do, and takes less time
                rest = random_like(g, number).to(wide).mul_(g != 0)
                tau[name].add_(rest, alpha=1 / (norm(rest) * length))
        return tau

    def fault(self, value: Tensor, tangent: Tensor, tau: Params, pulled: Params) -> str | None:
        """What is wrong with an engine's f, J tau and J^T g, in words; None if they are right."""
        if value.shape != self.value.shape or far(value, self.value, self.tolerance):
            return "its output differs from the module's own"
        wrong = wrong_gradient(pulled, self.pulled, self.tolerance, self.noise)
        if wrong:
            return wrong
        shares = [inner(g, tau[name]) for name, g in self.pulled.items()]
        product = inner(tangent, self.weights)
        scale = max(math.hypot(*shares), 1.0 if any(shares) else 0.0)
        miss = abs(product - sum(shares))
        if scale == 0.0:
            return (
                None
                if not bool(tangent.any())
                else "it has a tangent where ordinary autograd has no gradient"
            )
        if not miss <= self.tolerance * scale * max(len(shares), 1) ** 0.5 + self._rounding(tau):
            own = sum(shares)
            return f"its J tau is wrong: <g, J tau> is {product:.6g} and ordinary autograd's <J^T g, tau> {own:.6g}"
        return None

    def _rounding(self, tau: Params) -> float:
        """The error of <G, tau> by rounding: the absolute error of each gradient is that of the largest one."""
        lengths = (norm(tau[name]) * math.sqrt(g.numel()) for name, g in self.pulled.items())
        return _EXACT * self.precision * self.largest * math.hypot(*lengths)


def verify(engine: Engine, measure: Measure, theta0: Params) -> str | None:
    """What is wrong with an engine on one call, in words; None if it is right.

    Cost:
        One training step of the engine on that call.
    """
    tau = {name: delta.requires_grad_() for name, delta in measure.direction().items()}
    try:
        with torch.enable_grad():
            value, tangent = engine.jvp(measure.call, theta0, tau)
            pulled = _pulled(tangent, tau, measure.weights)
    except (torch.OutOfMemoryError, NonFiniteError):
        raise
    except Exception as error:  # the module itself has just run, so the engine cannot compute it
        return reason(error)
    return measure.fault(value, tangent.detach(), {n: t.detach() for n, t in tau.items()}, pulled)


def _pulled(tangent: Tensor, tau: Mapping[str, Tensor], weights: Tensor) -> dict[str, Tensor]:
    if not tangent.requires_grad:
        return {name: torch.zeros_like(delta) for name, delta in tau.items()}
    pulled = torch.autograd.grad(tangent, list(tau.values()), weights.to(tangent.dtype), allow_unused=True)
    return {n: torch.zeros_like(t) if g is None else g for (n, t), g in zip(tau.items(), pulled, strict=True)}


def reason(error: Exception) -> str:
    """The first line of an error's message, or its type if it has none."""
    text = str(error).strip().partition("\n")[0].rstrip(".")
    return text if text else type(error).__name__


def _strangers(nodes: Sequence[Any], call: Call) -> Iterator[Tensor]:
    """The leaves of a graph that are neither trainable parameters nor inputs."""
    known = {id(tensor) for tensor in (*call.parameters.values(), *leaves((call.args, call.kwargs)))}
    variables = (getattr(node, "variable", None) for node in nodes)
    return (leaf for leaf in variables if leaf is not None and id(leaf) not in known)


def require_finite_rows(value: Tensor, module: nn.Module, places: Sequence[int] | None = None) -> None:
    """Raise if an output holds NaN or infinity.

    Args:
        value: outputs, one row each.
        module: for the message.
        places: where the rows are in the user's data, if not in this batch alone.

    Raises:
        NonFiniteError: with the rows, and with a parameter or buffer that holds such a number.
    """
    if bool(torch.isfinite(value.detach()).all()):
        return
    rows = broken_rows(value.detach()) if value.ndim else []
    every = value.ndim > 0 and len(rows) == len(value) > 1
    if places is not None:
        rows = [places[row] for row in rows]
    if every:
        where = " in every row"
    else:
        where = f" in row {rows[0]}" if rows else ""
        where += f" and {len(rows) - 1} more" if rows[1:] else ""
    named = (*module.named_parameters(), *module.named_buffers())
    broken = next((n for n, t in named if moves(t) and not bool(torch.isfinite(t).all())), None)
    cause = (
        f"{broken!r} holds it already: load the weights again"
        if broken
        else "no weight does, so look at that row's inputs (an empty text has a mean over no tokens), or leave it out"
    )
    whole = "batch" if places is None else "data"
    raise NonFiniteError(
        f"the output of {type(module).__name__} holds NaN or infinity{where} of the {whole}; {cause}."
    )
