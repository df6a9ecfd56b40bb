"""Re-basin: orders that are known, on nets whose units change places, heads and gated layers included."""

import copy
import itertools

import pytest
import torch
import transformers
from torch import nn

from helpers import zoo
from tauspan.core.errors import UsageError
from tauspan.editing.rebasing.rebasin import Units, hidden_units, rebased
from tauspan.models import Encoder

WIDE = 4


def normal(module, seed=0):
    """Weights that are not those of an initialisation, so that no effect is tiny."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=draw, dtype=parameter.dtype))
    return module.eval()


def chain():
    return normal(
        nn.Sequential(
            nn.Linear(WIDE, 7), nn.Tanh(), nn.Linear(7, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, WIDE)
        ).double()
    )


def bert():
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=10
    )
    return normal(transformers.BertModel(config, add_pooling_layer=False))


def llama(heads=3, shared=3):
    config = transformers.LlamaConfig(
        vocab_size=20, hidden_size=12, num_hidden_layers=2, num_attention_heads=heads, num_key_value_heads=shared,
        intermediate_size=10,
    )  # fmt: skip
    return normal(transformers.LlamaModel(config))


TOKENS = {"input_ids": torch.arange(16).reshape(2, 8), "attention_mask": torch.ones(2, 8, dtype=torch.long)}
NETS = {
    "a chain": (chain, zoo.normal(3, WIDE, seed=1).double(), [7, 6]),
    "BERT": (bert, TOKENS, [3, 10] * 2),
    "Llama": (llama, TOKENS, [3, 10] * 2),
    "Llama with shared keys": (lambda: llama(6, 3), TOKENS, [3, 10] * 2),
    "Llama with one key": (lambda: llama(3, 1), TOKENS, [3, 10] * 2),
}


@pytest.fixture(params=NETS)
def case(request):
    build, batch, expected = NETS[request.param]
    return Encoder(build()), batch, expected


def shuffled(encoder, groups, seed=5):
    """A copy with all hidden units in other places, and what does the same to other tensors."""
    draw = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(units.count, generator=draw) for units in groups]

    def move(tensors):
        for units, order in zip(groups, orders, strict=True):
            tensors = units.reordered(tensors, order)
        return tensors

    other = copy.deepcopy(encoder)
    other.backbone.load_state_dict(move(dict(encoder.backbone.state_dict())), strict=True)
    return other, move


def test_the_groups_are_those_of_the_architecture(case):
    encoder, batch, expected = case
    groups = hidden_units(encoder, batch)
    assert [units.count for units in groups] == expected
    before = encoder(batch)
    other, _ = shuffled(encoder, groups)
    torch.testing.assert_close(other(batch), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_orders_are_found_again(case, noise):
    encoder, batch, _ = case
    other, move = shuffled(encoder, hidden_units(encoder, batch))
    draw = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in other.backbone.parameters():
            parameter.add_(noise * torch.randn(parameter.shape, generator=draw, dtype=parameter.dtype))
    deltas = {name: torch.randn(p.shape, generator=draw) for name, p in encoder.backbone.named_parameters()}
    found = rebased(deltas, encoder, other, batch)
    wanted = move(deltas)
    assert found.keys() == deltas.keys()
    for name, delta in found.items():
        assert torch.equal(delta, wanted[name])


def test_one_group_is_the_best_of_all_orders():
    old, new = (
        Encoder(normal(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)), s)) for s in (0, 1)
    )
    batch = zoo.normal(3, 3, seed=2).float()
    (units,) = hidden_units(old, batch)
    mine, theirs = (dict(one.backbone.named_parameters()) for one in (old, new))

    def near(order):
        moved = units.reordered(mine, torch.tensor(order))
        return sum(float((moved[name] * theirs[name]).sum().detach()) for name in moved)

    best = max(itertools.permutations(range(5)), key=near)
    found = rebased(mine, old, new, batch)
    for name, wanted in units.reordered(mine, torch.tensor(best)).items():
        assert torch.equal(found[name], wanted)


def test_units_that_cannot_move_are_not_groups():
    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(WIDE, WIDE), nn.Linear(WIDE, 2)

        def forward(self, x):
            return self.last(x + self.first(x))  # the units of `first` meet those of the input

    assert hidden_units(Encoder(normal(Skip())), zoo.normal(3, WIDE, seed=1).float()) == []


def test_nothing_is_left_changed():
    encoder = Encoder(chain())
    before = {name: value.clone() for name, value in encoder.backbone.state_dict().items()}
    groups = hidden_units(encoder, NETS["a chain"][1])
    assert isinstance(groups[0], Units)
    assert all(torch.equal(value, before[name]) for name, value in encoder.backbone.state_dict().items())
    assert all(not module._forward_hooks for module in encoder.backbone.modules())
    single = Encoder(normal(nn.Linear(3, 2)))
    with pytest.raises(UsageError, match="procrustes"):
        rebased({}, single, single, zoo.normal(2, 3, seed=0).float())
