"""Short models that run deep: held to the models that surgery writes, to plain sums, and to finite differences."""

from pathlib import Path

import pytest
import torch
from torch import nn

import tauspan as ts
from helpers import vocabularies as made
from helpers import zoo
from tauspan.core.errors import MismatchError, ModelError, UsageError
from tauspan.surgery import TiedDepth, change_depth


class Stack(nn.Module):
    """tanh layers and a readout, float64."""

    def __init__(self, layers: int = 2, widths: tuple[int, ...] = (3, 3, 3)) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(3, width) for width in widths[:layers])
        self.readout = nn.Linear(3, 2)
        self.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return self.readout(x)


def test_each_layer_is_b_plus_a_share_of_a_and_both_are_trained() -> None:
    short, x = Stack(), zoo.normal(5, 3, seed=1).double()
    tied = TiedDepth(short, "linear:4")
    b, a = short.layers
    z = x
    for layer in range(4):
        z = torch.tanh(z @ (b.weight + layer / 4 * a.weight).T + b.bias + layer / 4 * a.bias)
    assert torch.allclose(tied(x), short.readout(z), rtol=0, atol=1e-14)
    own = torch.autograd.grad(short.readout(z).square().sum(), list(short.parameters()))
    tied(x).square().sum().backward()
    for found, wanted in zip(short.parameters(), own, strict=True):
        assert torch.allclose(found.grad, wanted, rtol=1e-12)
    assert [name for name, _ in tied.named_parameters()] == [
        f"short.{name}" for name, _ in short.named_parameters()
    ]
    assert list(tied.state_dict()) == [f"short.{name}" for name in short.state_dict()]


def test_it_is_an_ordinary_model_of_any_depth_afterwards() -> None:
    short, x = Stack(), zoo.normal(5, 3, seed=1).double()
    tied = TiedDepth(short, "linear:4").eval()
    deep = tied.to_depth("linear:7")
    assert len(deep.layers) == 7
    assert not deep.training
    assert torch.equal(deep.layers[0].weight, short.layers[0].weight)
    wanted = short.layers[0].weight + 3 / 7 * short.layers[1].weight
    assert torch.allclose(deep.layers[3].weight, wanted, rtol=0, atol=1e-15)
    assert torch.allclose(tied.to_depth("linear:4")(x), tied(x), rtol=0, atol=1e-14)
    before = short.layers[0].weight.clone()
    with torch.no_grad():
        deep.layers[0].weight.zero_()
    assert torch.equal(short.layers[0].weight, before)


def test_stages_share_their_layer() -> None:
    short, x = Stack(), zoo.normal(5, 3, seed=1).double()
    z = x
    for stage in (0, 0, 1, 1, 1):
        z = torch.tanh(short.layers[stage](z))
    assert torch.equal(TiedDepth(short, "stages:2,3")(x), short.readout(z))


@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_it_runs_as_the_model_that_surgery_writes(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from transformers import AutoModel

    words = made.word_pieces(60) if kind == "bert" else made.byte_level(60)
    folder = getattr(made, kind)(tmp_path / kind, words, layers=2)
    change_depth(folder, "linear:5", tmp_path / "deep")
    short, deep = (AutoModel.from_pretrained(place).eval() for place in (folder, tmp_path / "deep"))
    tied, tokens = TiedDepth(short, "linear:5").eval(), torch.tensor([[3, 5, 7, 9]])
    with torch.no_grad():
        plain, wanted = short(tokens).last_hidden_state, deep(tokens).last_hidden_state
    assert torch.allclose(tied(tokens).last_hidden_state, wanted, rtol=0, atol=1e-5)
    expanded = tied.to_depth("linear:5")
    assert expanded.config.num_hidden_layers == deep.config.num_hidden_layers == 5
    assert torch.allclose(expanded(tokens).last_hidden_state, wanted, rtol=0, atol=1e-5)
    assert float((plain - wanted).abs().max()) > 0.1


def test_the_tangent_space_of_the_short_model_is_linearised() -> None:
    tied, x = TiedDepth(Stack(), "linear:4").eval(), zoo.normal(5, 3, seed=1).double()
    tangent, step = ts.linearize(tied), 1e-5
    moved = [zoo.normal(*one.shape, seed=place).double() for place, one in enumerate(tied.parameters())]
    sides = []
    with torch.no_grad():
        for held, delta in zip(tangent.parameters(), moved, strict=True):
            held.copy_(delta)
        found = tangent(x) - tied(x)
        for sign in (1, -2):  # to theta + step, and from there to theta - step
            for held, delta in zip(tied.parameters(), moved, strict=True):
                held.add_(sign * step * delta)
            sides.append(tied(x))
    assert torch.allclose(found, (sides[0] - sides[1]) / (2 * step), rtol=1e-6, atol=1e-7)


def test_what_has_no_stack_of_equal_layers_is_refused() -> None:
    with pytest.raises(ModelError, match=r"Linear has no nn\.ModuleList, so no stack"):
        TiedDepth(nn.Linear(2, 2), "linear:3")
    with pytest.raises(ModelError, match="stack='blocks': Stack has layers"):
        TiedDepth(Stack(), "linear:3", "blocks")
    with pytest.raises(MismatchError, match="layers 0 and 1 of 'layers' differ in bias, weight"):
        TiedDepth(Stack(widths=(3, 4)), "linear:3")
    with pytest.raises(UsageError, match="needs a model of two layers"):
        TiedDepth(Stack(3), "linear:3")
