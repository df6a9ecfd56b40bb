"""Edited copies of modules that keep tensors between calls, or parameters in functions: none keeps an old weight."""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tauspan as ts
from helpers.kinds import MODULES, Kind, X, kind
from helpers.zoo import close, normal
from tauspan.core.errors import ModelError

LABELS = (X[:, 0] > 0).long()
TASK = ts.Task.from_tensors("t", ["a", "b"], train=(X, LABELS), validation=(X, LABELS), test=(X, LABELS))
MEMOS = [name for name in MODULES if name.startswith("memo")]


def moved(make: Callable[[], nn.Module]) -> nn.Module:
    """The same module with other weights, which nobody has called."""
    module = make()
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            parameter.add_(0.3 * normal(1, *parameter.shape, seed=number)[0].to(parameter))
    return module


def edited(module: Any, make: Callable[[], nn.Module]) -> Any:
    return ts.apply(module, ts.TaskVector.from_checkpoints(make(), moved(make)))


@pytest.mark.parametrize("name", MEMOS)
def test_what_the_library_itself_runs_leaves_no_old_weights_in_an_edited_model(name: str) -> None:
    make = MODULES[name]
    module = make()
    encoder = ts.load(module)
    for regime in ("standard", "linear"):
        ts.finetune(encoder, TASK, ts.Settings(regime, lr=0.01))
    ts.evaluate(
        encoder,
        [TASK],
    ).report()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = edited(encoder, make)
    assert close(found(X), moved(make)(X), 1e-6)


@pytest.mark.parametrize("name", ["memo, attribute", "memo, tuple", "memo, by shape"])
def test_tensors_that_the_users_call_has_left_are_told(name: str) -> None:
    module = MODULES[name]()
    with torch.no_grad():
        module(X)
    with pytest.warns(
        RuntimeWarning, match=r"Kind keeps tensors outside.*kept.*empty these places in the copy"
    ):
        found = edited(module, MODULES[name])
    found.kept = {} if name == "memo, by shape" else None
    assert close(found(X), moved(MODULES[name])(X), 1e-6)


def in_function(how: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        module = kind(lambda s, x: s.o(s.inner(x).tanh()))
        weight = module.a.weight

        def default(x: Tensor, weight: Tensor = weight) -> Tensor:
            return F.linear(x, weight)

        layer = module.a
        forms: dict[str, Any] = {
            "closure": lambda x: F.linear(x, weight),
            "default": default,
            "layer": lambda x: F.linear(x, layer.weight),
            "partial": functools.partial(F.linear, weight=weight),
            "method": functools.partial(nn.Linear.forward, layer),
        }
        module.inner = forms[how]
        return module

    return make


@pytest.mark.parametrize("how", ["closure", "default", "layer"])
def test_a_parameter_that_a_function_holds_cannot_be_edited_in_a_copy(how: str) -> None:
    module = in_function(how)()
    with pytest.raises(ModelError, match=r"a function at 'inner.*'a.weight'.*functools.partial"):
        edited(module, in_function(how))
    with pytest.raises(ModelError, match="a function at"):
        ts.finetune(ts.load(module), TASK, ts.Settings("standard"))
    assert all(parameter.grad is None for parameter in module.parameters())


@pytest.mark.parametrize("how", ["partial", "method"])
def test_a_partial_is_copied_with_its_module(how: str) -> None:
    assert close(edited(in_function(how)(), in_function(how))(X), moved(in_function(how))(X), 1e-6)


def test_a_hook_that_refers_to_its_module_is_no_part_of_the_copy() -> None:
    seen: list[Kind] = []

    def make() -> nn.Module:
        module = kind(lambda s, x: s.o(s.a(x)))
        module.a.register_forward_hook(lambda *_: seen.append(module))
        return module

    assert close(edited(make(), make)(X), moved(make)(X), 1e-6)


@pytest.mark.parametrize("view", [lambda w: w[:2], lambda w: w.T, lambda w: w.view(-1)])
def test_a_kept_view_of_a_parameter_is_refused_and_its_repair_works(view: Any) -> None:
    class Net(nn.Module):
        def __init__(self, kept: bool) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 4))
            self.kept = view(self.weight) if kept else None

        def forward(self, x: Tensor) -> Tensor:
            part = view(self.weight) if self.kept is None else self.kept
            return x * part.sum()

    x = torch.ones(2, 1)
    for kept in (True, False):
        net = Net(kept).eval()
        vector = ts.TaskVector({"weight": torch.ones(4, 4)}, ts.models.fingerprint_of(net), "standard", "tau")
        if kept:
            with pytest.raises(ModelError, match="keeps a view of the parameter 'weight' at 'kept'"):
                ts.apply(net, vector)
        else:
            assert torch.equal(ts.apply(net, vector)(x), 2 * net(x))
