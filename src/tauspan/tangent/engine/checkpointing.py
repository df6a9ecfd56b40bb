"""Activation checkpointing: a block's activations are dropped and computed anew in the backward, exactly."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tauspan.core.errors import ModelError
from tauspan.models.at import At, current
from tauspan.tangent.engine.dual import Dual, NoRuleError, custom_function, mapped


class Shell(nn.Module):
    """Runs a block's own forward instead of its replacement."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block
        self._own = block.forward  # of its class, or what somebody has put before it

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The block's forward as it was when this was made."""
        return self._own(*args, **kwargs)


@contextmanager
def checkpointed(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Inside the block, these modules keep only their inputs for the backward.

    The second forward of a block runs at the parameters of the first one and carries no tangents.
    """
    with replaced({block: _standing_in(block) for block in blocks}):
        yield


@contextmanager
def replaced(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Inside the block, each of these modules has another forward; `Shell` still runs the original."""
    with ExitStack() as stack:
        for block, forward in forwards.items():
            own = block.__dict__.get("forward")  # one that somebody else has put there
            block.forward = forward
            stack.callback(_put_back, block, own)
        yield


def _put_back(block: nn.Module, own: Callable[..., Any] | None) -> None:
    if own is None:
        block.__dict__.pop("forward", None)
    else:
        block.__dict__["forward"] = own


def _standing_in(block: nn.Module) -> Callable[..., Any]:
    shell = Shell(block)

    def forward(*args: Any, **kwargs: Any) -> Any:
        active = current()
        if not torch.is_grad_enabled():
            return shell.forward(*args, **kwargs)
        if active is None:  # the module at its own parameters, without tangents
            return checkpoint(shell.forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
        point = {name: active.replaced(parameter) for name, parameter in block.named_parameters()}
        given = [(args, kwargs)]  # with tangents, for the first forward alone
        bare = mapped((args, kwargs), _without_tangents)

        def run() -> Any:
            try:
                if given:
                    positional, named = given.pop()
                    return shell.forward(*positional, **named)
                with At(block, mapped(point, _without_tangents), custom_function):
                    return shell.forward(*bare[0], **bare[1])
            except NoRuleError as error:
                raise ModelError(
                    f"{type(block).__name__} cannot be checkpointed: {error}, so its second forward differs "
                    "from its first. If that is a key-value cache, call the model with use_cache=False."
                ) from error

        return checkpoint(run, use_reentrant=False, preserve_rng_state=False)

    return forward


def _without_tangents(item: Any) -> Any:
    return Dual(item.primal, (), item.run) if isinstance(item, Dual) else item
