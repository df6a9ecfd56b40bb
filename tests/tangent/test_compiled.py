"""A tangent model under `torch.compile`: one graph, the same numbers and gradients as without."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.zoo import ZOO, Example, all_close, at, classifier, direction, normal
from tauspan import linearize
from tauspan.tangent import Linearized

# Dynamo cannot trace lines with probes of slipcover, under which the normal set runs: it asks a process of its own.
slow = pytest.mark.slow
FAMILIES = ("conv", "bert", "llama", "clip")
MORE = ("mlp", "torch_transformer", "tied", "gpt2", "gpt2_lm", "llama_own_norm", "vit")
ALONE = """
import torch, tauspan as ts
from torch import nn
net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.GELU(), nn.Linear(4, 2)).double()
lin, x = ts.linearize(net), torch.randn(5, 3).double()
for tau in lin.parameters():
    nn.init.normal_(tau)
compiled, found = torch.compile(lin, backend="aot_eager", fullgraph=True), []
for called in (lin, compiled):
    lin.zero_grad()
    out = called(x)
    out.square().sum().backward()
    found.append([out.detach(), *(tau.grad.clone() for tau in lin.parameters())])
print(all(map(torch.equal, *found)), lin.engine)
"""


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def stepped(called: Callable[..., Tensor], lin: Linearized, example: Example) -> dict[str, Tensor]:
    """The output, and the gradient of a loss of it by tensor."""
    lin.zero_grad()
    out = called(*example.args, **example.kwargs)
    out.square().sum().backward()
    return {
        "output": out.detach(),
        **{name: tau.grad for name, tau in lin.tau.items() if tau.grad is not None},
    }


def both(lin: Linearized, example: Example, **how: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """As it is, and compiled into one graph."""
    plain = stepped(lin, lin, example)
    return plain, stepped(torch.compile(lin, fullgraph=True, **how), lin, example)


def test_one_graph_in_a_process_of_its_own() -> None:
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["True", "onepass"], done.stderr


@slow
@pytest.mark.parametrize("name", [*FAMILIES, *(pytest.param(name, marks=pytest.mark.long) for name in MORE)])
def test_one_graph_gives_the_same_bits(name: str) -> None:
    example = ZOO[name].make()
    lin = linearize(example.model)
    plain, compiled = both(at(lin, direction(lin)), example, backend="aot_eager")
    assert lin.engine == "onepass"
    assert plain.keys() == compiled.keys()
    assert len(plain) > 2
    assert all(torch.equal(compiled[key], found) for key, found in plain.items())


@slow
def test_another_size_is_another_graph() -> None:
    """What the rules do depends on sizes, so each is compiled anew."""
    example, lin = ZOO["mlp"].make(), linearize(ZOO["mlp"].make().model)
    compiled = torch.compile(at(lin, direction(lin)), backend="aot_eager", fullgraph=True)
    for rows in (3, 2):
        x = example.args[0][:rows]
        assert torch.equal(compiled(x), lin(x))


@slow
def test_tau_and_theta0_are_read_where_they_are() -> None:
    """An optimiser changes tau in place; a user may load other weights."""
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    lin, x = linearize(net), normal(5, 3)
    compiled = torch.compile(lin, backend="aot_eager", fullgraph=True)
    compiled(x)
    with torch.no_grad():
        for seed, tensor in enumerate([*lin.parameters(), *net.parameters()]):
            tensor.copy_(normal(*tensor.shape, seed=seed))
    assert torch.equal(compiled(x), lin(x))


@slow
def test_a_frozen_part_and_the_encoder_as_point() -> None:
    model = classifier(ZOO["bert"].make())
    for point in ("encoder", "logits"):
        lin = linearize(model, point=point, params="last:1")
        example = Example(model, ZOO["bert"].make().args)
        plain, compiled = both(at(lin, direction(lin)), example, backend="aot_eager")
        assert all(torch.equal(compiled[key], found) for key, found in plain.items()), point


@slow
def test_the_engine_that_was_found_for_a_module_is_compiled() -> None:
    """Here the one that was asked for."""
    example = ZOO["mlp"].make()
    lin = linearize(example.model, engine="reference")
    plain, compiled = both(at(lin, direction(lin)), example, backend="aot_eager")
    assert lin.engine == "reference"
    assert all_close(compiled, plain)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_compiled_to_machine_code() -> None:
    example = ZOO["bert"].make()
    lin = linearize(example.model)
    plain, compiled = both(at(lin, direction(lin)), example)
    assert all_close(compiled, plain)
