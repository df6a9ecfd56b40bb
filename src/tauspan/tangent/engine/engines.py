"""The ways to compute f and J tau, in the order in which they are tried; all give the same numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from tauspan.core.computing import ENGINES
from tauspan.core.computing import Engine as Name
from tauspan.core.params import Params
from tauspan.tangent.engine import backward, onepass, reference
from tauspan.tangent.engine.call import Call
from tauspan.tangent.engine.checkpointing import checkpointed
from tauspan.tangent.engine.dual import Trace


class Engine(Protocol):
    """A way to compute f and J tau of a call."""

    @property
    def name(self) -> Name:
        """The engine's name in `linearize(engine=...)`."""

    @property
    def met(self) -> frozenset[str]:
        """Operations and parameters used in the last pass, if this engine can see them."""

    def jvp(self, call: Call, theta0: Params, tau: Params) -> tuple[Tensor, Tensor]:
        """`(f, J tau)`, differentiable in tau."""

    def jvps(self, call: Call, theta0: Params, taus: Sequence[Params]) -> tuple[Tensor, Tensor]:
        """`(f, [J tau_1, ..., J tau_T])`, without a graph."""


@dataclass
class OnePass:
    """Tangents beside the ordinary forward; see `tauspan.tangent.engine.onepass`.

    Args:
        base: the module, for names of submodules in messages.
        strict: raise where an operation has no tangent rule.
        blocks: blocks whose activations are computed again in the backward.
        told: operations without a rule for which a warning was given.
    """

    base: nn.Module
    strict: bool
    blocks: tuple[nn.Module, ...]
    told: set[str]
    name: Name = "onepass"
    met: frozenset[str] = frozenset()

    def jvp(self, call: Call, theta0: Params, tau: Params) -> tuple[Tensor, Tensor]:
        """`(f, J tau)`, differentiable once in tau."""
        trace = self._trace()
        with reference.open_attention(), checkpointed(self.blocks):
            found = onepass.jvp(call, theta0, tau, trace)
        self.met = _met(call, trace)
        return found

    def jvps(self, call: Call, theta0: Params, taus: Sequence[Params]) -> tuple[Tensor, Tensor]:
        """`(f, [J tau_1, ..., J tau_T])`, without a graph."""
        trace = self._trace()
        with reference.open_attention(), checkpointed(self.blocks):
            found = onepass.jvps(call, theta0, taus, trace)
        self.met = _met(call, trace)
        return found

    def _trace(self) -> Trace:
        return Trace(self.base, self.strict, self.told)


def _met(call: Call, trace: Trace) -> frozenset[str]:
    return frozenset(trace.met) | {f"parameter {name}" for name in call.used}


@dataclass(frozen=True)
class Reference:
    """`torch.func.jvp`; see `tauspan.tangent.engine.reference`."""

    name: Name = "reference"
    met: frozenset[str] = frozenset()

    def jvp(self, call: Call, theta0: Params, tau: Params) -> tuple[Tensor, Tensor]:
        """`(f, J tau)`, differentiable more than once in tau and in the inputs."""
        return reference.jvp(call, theta0, tau)

    def jvps(self, call: Call, theta0: Params, taus: Sequence[Params]) -> tuple[Tensor, Tensor]:
        """`(f, [J tau_1, ..., J tau_T])`, without a graph."""
        return reference.jvps(call, theta0, taus)


@dataclass(frozen=True)
class Backward:
    """Ordinary autograd; see `tauspan.tangent.engine.backward`.

    Args:
        singly: compute the gradient of each output separately, for operations that cannot be derived twice.
    """

    singly: bool = False
    name: Name = "backward"
    met: frozenset[str] = frozenset()

    def jvp(self, call: Call, theta0: Params, tau: Params) -> tuple[Tensor, Tensor]:
        """`(f, J tau)`, differentiable once in tau."""
        return backward.jvp(call, tau, self.singly)

    def jvps(self, call: Call, theta0: Params, taus: Sequence[Params]) -> tuple[Tensor, Tensor]:
        """`(f, [J tau_1, ..., J tau_T])`, without a graph."""
        with torch.no_grad():
            return backward.jvps(call, taus, self.singly)


def in_order(
    first: Name, base: nn.Module, strict: bool, blocks: tuple[nn.Module, ...], told: set[str]
) -> tuple[Engine, ...]:
    """The engines in the order in which they are tried, from `first` on."""
    every: tuple[Engine, ...] = (
        OnePass(base, strict, blocks, told),
        Reference(),
        Backward(),
        Backward(singly=True),
    )
    return every[ENGINES.index(first) :]
