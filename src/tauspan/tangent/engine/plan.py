"""Which engine computes a module's tangents: the first one that passes the check on inputs of that kind."""

import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tauspan import models
from tauspan.core.computing import Check
from tauspan.core.computing import Engine as Name
from tauspan.core.errors import ModelError
from tauspan.core.params import Params
from tauspan.tangent.engine import check
from tauspan.tangent.engine.call import Call, leaves
from tauspan.tangent.engine.engines import Engine, in_order
from tauspan.tangent.engine.trace import NoRuleError

_Result = TypeVar("_Result")
_WAYS = {
    "onepass": "in one pass",
    "reference": "by torch.func.jvp",
    "backward": "by a backward through its backward",
}
_INSTEAD = {
    "reference": "The reference engine (torch.func.jvp) computes its tangents instead",
    "backward": "Ordinary backward passes compute its tangents instead",
}


class Plan:
    """The engines of one module in the order in which they are tried, and the engine chosen for each kind of call.

    A kind is everything about the inputs that may change what the module computes: dtypes, devices, which sizes are
    equal, one or zero, their order of magnitude, and arguments that are not tensors. The first call of a kind is checked
    on two of its rows, or on all if the module does not accept two. A call with an operation that was not met before is
    checked on all rows.

    Args:
        base: the module, for messages.
        first: the engine that is tried first.
        strict: raise instead of trying another engine.
        blocks: blocks whose activations are computed again in the backward.
        check: with `"off"`, another engine is tried only when one raises.
        told: operations without a rule for which a warning was given.
    """

    def __init__(
        self,
        base: nn.Module,
        first: Name,
        strict: bool,
        blocks: tuple[nn.Module, ...],
        check: Check,
        told: set[str],
    ) -> None:
        self._base, self._strict, self.check = base, strict, check
        self._engines = in_order(first, base, strict, blocks, told)
        self._chosen: dict[Hashable, Engine] = {}
        self._met: set[str] = set()
        self._said: set[str] = set()
        self._begun = False
        self.engine: Name = first

    def engine_for(self, call: Call, theta0: Params) -> Engine:
        """The engine for a call; the first call of a kind is checked."""
        kind = _kind(call)
        return self._chosen.get(kind) or self._choose(call, theta0, kind, self._engines)

    def traced(self, call: Call, theta0: Params, tau: Params) -> tuple[Tensor, Tensor]:
        """`(f, J tau)` for a compiler's tensors, which have no numbers to check: by the engine of the last pass.

        An engine that cannot follow the module leaves it to the next one.
        """
        last = next(engine for engine in self._engines if engine.name == self.engine)
        *tried, final = self._from(last)
        for engine in tried:
            try:
                return engine.jvp(call, theta0, tau)
            except NoRuleError:
                continue
        return final.jvp(call, theta0, tau)

    def run(self, call: Call, theta0: Params, go: Callable[[Engine], _Result]) -> _Result:
        """The result of `go` with the engine for a call.

        Raises:
            ModelError: the module is random in eval mode, or every engine fails; the module's own errors are passed on.
        """
        kind, engine = _kind(call), self.engine_for(call, theta0)
        while True:
            try:
                result = go(engine)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                engine = self._after(engine, error, call, theta0, kind)
                continue
            if self.check == "off" or engine.met <= self._met:
                return result
            chosen = self._choose(call, theta0, kind, self._from(engine), whole=True)
            if chosen is engine:
                return result
            engine = chosen

    def _from(self, engine: Engine) -> tuple[Engine, ...]:
        return self._engines[next(n for n, other in enumerate(self._engines) if other is engine) :]

    def _after(self, engine: Engine, error: Exception, call: Call, theta0: Params, kind: Hashable) -> Engine:
        """The engine that replaces one that raised; raises the error if it is the module's own."""
        with torch.no_grad():
            call.plain()  # raises the module's own error for such inputs
        rest = self._from(engine)[1:]
        if not rest or (self._strict and engine is self._engines[0]):
            raise self._refusal([(engine, check.reason(error))]) from error
        return self._choose(call, theta0, kind, rest, whole=True, failed=[(engine, check.reason(error))])

    def _choose(
        self, call: Call, theta0: Params, kind: Hashable, engines: Sequence[Engine], *,
        whole: bool = False, failed: Sequence[tuple[Engine, str]] = (),
    ) -> Engine:  # fmt: skip
        if self.check == "off":
            return self._take(kind, engines[0], failed)
        device = next(
            (leaf.device for leaf in leaves((call.args, call.kwargs)) if isinstance(leaf, Tensor)), None
        )
        with torch.random.fork_rng([device] if device is not None and device.type == "cuda" else []):
            return self._checked(call, theta0, kind, engines, whole, list(failed))

    def _checked(
        self, call: Call, theta0: Params, kind: Hashable, engines: Sequence[Engine], whole: bool,
        failures: list[tuple[Engine, str]],
    ) -> Engine:  # fmt: skip
        measure, begun = self._measured(call, whole), self._begun
        if not begun and measure.draws:
            check.require_function(measure.call, measure.value)
        for engine in engines:
            fault = check.verify(engine, measure, theta0)
            if fault is None:
                if not begun:
                    check.require_unchanged(measure.call, measure.value)
                    self._tell_strangers(measure)
                    self._begun = True
                self._met |= engine.met
                return self._take(kind, engine, failures)
            if not begun:  # a random module fails every check
                check.require_function(measure.call, measure.value)
            failures.append((engine, fault))
            if self._strict:
                break
        raise self._refusal(failures)

    def _measured(self, call: Call, whole: bool) -> check.Measure:
        """The result of ordinary autograd for two rows of a call, or for all."""
        fewer = call if whole else call.fewer()
        if fewer is not call:
            try:
                return self._measured(fewer, True)
            except torch.OutOfMemoryError:
                raise
            except Exception:  # a module that refuses two rows may accept all
                return self._measured(call, True)
        return check.Measure.of(call)

    def _tell_strangers(self, measure: check.Measure) -> None:
        if measure.strangers:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in measure.strangers[:3])
            warnings.warn(
                f"{self._name} computes with {len(measure.strangers)} tensors that require a gradient and that "
                f"`named_parameters()` does not list (shapes {shapes}): they are constants here, as they are for an "
                "optimiser. Register them (`nn.Parameter` as an attribute, `nn.ParameterList`) if they should move.",
                RuntimeWarning,
                stacklevel=7,
            )

    @property
    def _name(self) -> str:
        return type(models.core(self._base)[0]).__name__

    def _take(self, kind: Hashable, engine: Engine, failures: Sequence[tuple[Engine, str]]) -> Engine:
        self._chosen[kind], self.engine = engine, engine.name
        if failures and engine.name not in self._said:
            self._said.add(engine.name)
            checked = "" if self.check == "off" else ", checked against ordinary autograd on this batch"
            warnings.warn(
                f"{self._failed(failures)}. {_INSTEAD[engine.name]}{checked}.", RuntimeWarning, stacklevel=6
            )
        return engine

    def _refusal(self, failures: Sequence[tuple[Engine, str]]) -> ModelError:
        rest = (
            "Without strict=True another engine is tried"
            if self._strict
            else "Name the parameters that should move (params=[...]) and leave out those it names"
        )
        return ModelError(f"{self._failed(failures)}. {rest}.")

    def _failed(self, failures: Sequence[tuple[Engine, str]]) -> str:
        parts = [f"{_WAYS[engine.name]}: {fault.rstrip('.')}" for engine, fault in failures]
        return f"{self._name} cannot be carried through {'; nor '.join(dict.fromkeys(parts))}"


def _kind(call: Call) -> Hashable:
    numbers: dict[int, int] = {0: 0, 1: 1}
    parts: list[Hashable] = []
    total = 0
    for leaf in leaves((call.args, call.kwargs)):
        if not isinstance(leaf, Tensor):
            parts.append(repr(leaf) if isinstance(leaf, _SIMPLE) else type(leaf).__qualname__)
        elif leaf.is_nested:
            parts.append(("nested", leaf.dtype, leaf.device))
        else:
            total += leaf.numel()
            shape = tuple(numbers.setdefault(size, len(numbers)) for size in leaf.shape)
            parts.append((leaf.dtype, leaf.device, leaf.layout, shape))
    return (
        *parts,
        total.bit_length() // 2,
        _form(getattr(call.module, "head", None)),
        torch.is_autocast_enabled("cpu"),
        torch.is_autocast_enabled("cuda"),
    )


def _form(head: Any) -> Hashable:
    """The structure of a frozen head, without its numbers; other heads are compared by identity."""
    if type(head) is models.Head:
        return head.normalize, head.bias is None, head.weight.dtype
    return id(head)


_SIMPLE = (str, int, float, bool, type(None), torch.dtype)
