"""One pass of a module on dual tensors: its tape, and messages about operations without a tangent rule."""

import inspect
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from tauspan.core.errors import ModelError
from tauspan.tangent.engine.rules import Push


class NoRuleError(Exception):
    """An operation is not possible on dual tensors; the caller uses the reference engine instead."""


class Slot(int):
    """The number of a dual tensor's tangent on a tape."""


@dataclass(frozen=True)
class Entry:
    """One operation on a tape: how its output tangents follow from earlier ones.

    `inputs` and `named` have the structure of the operation's arguments, with a `Slot` for each dual tensor and None
    elsewhere; `outputs` holds the slot of each output, `kinds` its shape and dtype, and `values` the primal outputs
    while they are needed.
    """

    name: str
    push: Push
    inputs: Any
    named: Any
    outputs: tuple[Slot | None, ...]
    kinds: tuple[tuple[torch.Size, torch.dtype] | None, ...]
    values: tuple[Any, ...] = ()
    arguments: tuple[Any, ...] = ()


@dataclass
class Trace:
    """One pass of a module on dual tensors: how to treat missing rules, and the tape if one is recorded.

    `keep` names the operations whose primal arguments are stored on the tape, in the order of their rules; `met` names
    all operations of the pass.
    """

    module: nn.Module
    strict: bool = False
    told: set[str] = field(default_factory=set)
    tape: list[Entry] | None = None
    slots: int = 0
    keep: frozenset[str] = frozenset()
    met: set[str] = field(default_factory=set)

    def place(self) -> Slot:
        """A new slot on the tape."""
        self.slots += 1
        return Slot(self.slots - 1)

    def where(self) -> str:
        """The name of the submodule whose forward is running, for messages."""
        names = {id(module): name for name, module in self.module.named_modules()}
        frame = inspect.currentframe()
        while frame is not None:
            owner = frame.f_locals.get("self")
            if isinstance(owner, nn.Module) and names.get(id(owner)):
                return f"{names[id(owner)]!r} ({type(owner).__name__})"
            frame = frame.f_back
        return type(self.module).__name__

    def require_rule(self, name: str) -> None:
        """Raise if `strict` is set, since an operation has no rule."""
        if self.strict:
            raise ModelError(
                f"{self.where()} uses {name!r}, which has no tangent rule. Without strict=True torch's forward mode "
                "computes it, more slowly."
            )

    def tell(self, name: str, how: str) -> None:
        """Warn once per operation without a rule, with the way in which its tangent was computed."""
        if name not in self.told:
            self.told.add(name)
            warnings.warn(
                f"{self.where()} uses {name!r}, which has no tangent rule: {how} computes it, more slowly.",
                RuntimeWarning,
                stacklevel=2,
            )
