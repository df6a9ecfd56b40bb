"""One call of a module, as a function of its parameters."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from tauspan import models
from tauspan.core.params import Params
from tauspan.models.at import At, unchecked
from tauspan.models.encoder import single_tensor
from tauspan.models.intact import Intact
from tauspan.tangent.engine.dual import custom_function
from tauspan.tangent.engine.reference import open_attention


@dataclass(frozen=True)
class Call:
    """A module at fixed inputs, up to the linearisation point.

    Args:
        module: the module that is called; it is unchanged afterwards, in its own mode.
        args: positional inputs.
        kwargs: keyword inputs.
        parameters: the trainable parameters, under the names that a task vector has for them.
        prefix: the prefix of those names in the module.
        intact: restores the module after a call.
        constants: tensors by name that replace other parameters and buffers of the module; see `At`.
        used: the trainable parameters that calls of this object have used.
    """

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    parameters: Mapping[str, Tensor]
    prefix: str
    intact: Intact
    constants: Mapping[str, Tensor] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)

    def __call__(self, theta: Params) -> Tensor:
        """f(theta); parameters that do not train are constant."""
        point = {self.prefix + name: tensor for name, tensor in theta.items()}
        with self.intact(), self._mode(), At(self.module, point, custom_function, self.constants) as at:
            found: Tensor = at.replaced(single_tensor(self.module(*self.args, **self.kwargs)))
        self.used.update(at.used)
        return found

    def plain(self) -> Tensor:
        """The output of an ordinary call at the module's own parameters, with autograd's graph."""
        with self.intact():
            return self.bare()

    def again(self) -> Tensor:
        """The output of a second call, which uses what the first call has left in the module."""
        with self.intact():
            self.bare()
            return self.bare()

    def bare(self) -> Tensor:
        """The output of an ordinary call; what the module keeps of the call is not removed."""
        with self._mode(), open_attention():  # the fused path refuses a frozen layer
            return single_tensor(self.module(*self.args, **self.kwargs))

    @contextmanager
    def _mode(self) -> Iterator[None]:
        """Inside the block, the module is in eval mode and compiled parts run uncompiled."""
        with models.eval_mode(self.module), _as_written(), unchecked():
            yield

    @contextmanager
    def training(self) -> Iterator[None]:
        """Inside the block, exactly the trainable parameters of the module require a gradient."""
        wanted = {id(parameter) for parameter in self.parameters.values()}
        before = [(parameter, parameter.requires_grad) for parameter in self.module.parameters()]
        try:
            for parameter, _ in before:
                parameter.requires_grad_(id(parameter) in wanted)
            yield
        finally:
            for parameter, flag in before:
                parameter.requires_grad_(flag)

    def fewer(self) -> "Call":
        """The same call with its first and last row only; the module may refuse them."""
        count = self.rows()
        return self if count is None or count <= 2 else self.some([0, count - 1])

    def sample(self) -> "Call":
        """The same call with its first and last row only, or with all rows if the module refuses those."""
        fewer = self.fewer()
        if fewer is self:
            return self
        try:
            with torch.no_grad():
                fewer.plain()
        except Exception:  # a module that refuses two rows may accept all
            return self
        return fewer

    def rows(self) -> int | None:
        """The number of rows: the first size, if all input tensors have the same one; else None."""
        sizes = {
            None if tensor.is_nested or tensor.ndim == 0 else tensor.shape[0]
            for tensor in leaves((self.args, self.kwargs))
            if isinstance(tensor, Tensor)
        }
        return sizes.pop() if len(sizes) == 1 else None

    def some(self, rows: list[int]) -> "Call":
        """The same call with only some rows of every input."""
        args, kwargs = _each((self.args, self.kwargs), lambda tensor: tensor[rows])
        return replace(self, args=args, kwargs=kwargs)


def _as_written() -> AbstractContextManager[Any]:
    """Inside the block, code that `torch.compile` has compiled runs uncompiled."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and the import takes seconds
        return nullcontext()
    try:
        stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
        return stance
    except RuntimeError:  # this code is itself being compiled
        return nullcontext()


def leaves(item: Any) -> list[Any]:
    """Everything in a call's inputs that is not a container, in order."""
    if isinstance(item, Mapping):
        return [leaf for part in item.values() for leaf in leaves(part)]
    if isinstance(item, tuple | list):
        return [leaf for part in item for leaf in leaves(part)]
    return [item]


def _each(item: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same nesting with `change` applied to each tensor."""
    if isinstance(item, Tensor):
        return change(item)
    if isinstance(item, Mapping):
        return {key: _each(part, change) for key, part in item.items()}
    if isinstance(item, tuple | list):
        parts = [_each(part, change) for part in item]
        return type(item)(*parts) if hasattr(item, "_fields") else type(item)(parts)
    return item
