"""Activation checkpointing keeps less for the backward and gives the same numbers."""

import pytest
import torch
from torch import Tensor

from helpers import zoo
from helpers.zoo import at, direction
from tauspan.core.errors import ModelError, UsageError
from tauspan.tangent import Linearized, linearize

MODELS = ("bert", "gpt2", "llama", "vit", "clip", "torch_transformer")


def step(lin: Linearized, example: zoo.Example) -> tuple[Tensor, dict[str, Tensor], int]:
    """J tau, its gradient for fixed weights, and the numbers that autograd kept in between."""
    at(lin, direction(lin))
    lin.tangent(*example.args, **example.kwargs)  # the check, once
    kept = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        tangent = lin.tangent(*example.args, **example.kwargs)[1]
    (tangent * zoo.normal(*tangent.shape, seed=9)).sum().backward()
    gradients = {n: torch.zeros_like(tau) if tau.grad is None else tau.grad for n, tau in lin.tau.items()}
    return tangent.detach(), gradients, kept


@pytest.mark.thinned(4)
@pytest.mark.parametrize("choice", ["all", "attention", "last:1"])
@pytest.mark.parametrize("name", MODELS)
def test_the_numbers_are_the_same_and_less_is_kept(name: str, choice: str) -> None:
    example = zoo.ZOO[name].make()
    plain = step(linearize(example.model, choice), example)
    spared = step(linearize(example.model, choice, checkpointing=True), example)
    assert torch.equal(plain[0], spared[0])
    assert all(torch.equal(plain[1][key], spared[1][key]) for key in plain[1])
    assert spared[2] < 0.5 * plain[2]
    assert not any("forward" in module.__dict__ for module in example.model.modules())


def test_a_block_that_keeps_state_is_not_checkpointed_and_the_message_says_how_it_would_be() -> None:
    example = zoo.gpt2_lm()
    lin = linearize(example.model, checkpointing=True)
    with pytest.warns(RuntimeWarning, match="use_cache=False"):
        step(lin, example)
    assert lin.engine == "reference"
    with pytest.raises(ModelError, match="use_cache=False"):
        step(linearize(example.model, checkpointing=True, strict=True), example)
    repaired = linearize(example.model, checkpointing=True)
    step(repaired, zoo.Example(example.model, (), {**example.kwargs, "use_cache": False}))
    assert repaired.engine == "onepass"


def test_a_module_without_blocks_has_nothing_to_checkpoint() -> None:
    with pytest.raises(UsageError, match="no stack of blocks"):
        linearize(zoo.tied().model, checkpointing=True)
