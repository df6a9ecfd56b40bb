"""Which parameters a choice picks, by name, on the architectures that people use."""

import contextlib
from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from torch import nn

from helpers import zoo
from helpers.zoo import Example
from tauspan.core.errors import UsageError
from tauspan.models import Encoder, core, eval_mode, fingerprint_of, select, state_of

ENCODERS = [zoo.bert, zoo.gpt2, zoo.llama, zoo.vit, zoo.clip]


def names(example: Example) -> list[str]:
    return [name for name, _ in core(example.model)[0].named_parameters()]


@pytest.mark.parametrize("make", [zoo.bert, zoo.gpt2, zoo.llama, zoo.vit])
def test_all_is_every_parameter_in_order(make: Callable[[], Example]) -> None:
    assert list(select(make().model)) == names(make())


def test_all_of_clip_is_its_image_side() -> None:
    chosen = select(zoo.clip().model)
    assert {name.split(".")[0] for name in chosen} == {"vision_model", "visual_projection"}
    assert not any(name.startswith(("text", "logit_scale")) for name in chosen)


@pytest.mark.parametrize(
    ("make", "per_layer", "example"),
    [
        (zoo.bert, 8, "encoder.layer.0.attention.self.query.weight"),
        (zoo.gpt2, 4, "h.0.attn.c_attn.weight"),
        (zoo.llama, 4, "layers.1.self_attn.o_proj.weight"),
        (zoo.vit, 8, None),
        (zoo.clip, 8, "vision_model.encoder.layers.0.self_attn.q_proj.bias"),
    ],
)
def test_attention_is_the_projections_of_each_layer_without_norms(
    make: Callable[[], Example], per_layer: int, example: str | None
) -> None:
    chosen = select(make().model, "attention")
    assert len(chosen) == 2 * per_layer
    assert not any("norm" in name.lower() or "mlp" in name or ".ln_" in name for name in chosen)
    assert example is None or example in chosen


def test_attention_of_torchs_own_layers_has_their_joint_projection() -> None:
    chosen = select(zoo.torch_transformer().model, "attention")
    layer = ["in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"]
    assert chosen[:4] == tuple(f"encoder.layers.0.self_attn.{name}" for name in layer)


@pytest.mark.parametrize("make", ENCODERS)
def test_last_k_is_the_last_blocks_of_the_stack(make: Callable[[], Example]) -> None:
    model = make().model
    last, both = select(model, "last:1"), select(model, "last:2")
    assert all(".1." in name for name in last)
    assert set(both) == set(last) | {name.replace(".1.", ".0.", 1) for name in last}


def test_last_k_follows_the_names_of_a_named_stack() -> None:
    net = nn.Sequential(OrderedDict(first=nn.Linear(2, 2), second=nn.Linear(2, 2)))
    assert select(net, "last:1") == ("second.weight", "second.bias")


@pytest.mark.parametrize("choice", ["last:0", "last:3", "last:-1", "last:x", "last:"])
def test_a_number_of_blocks_out_of_range_names_the_range(choice: str) -> None:
    with pytest.raises(UsageError, match=r"k must lie between 1 and 2, the blocks of 'encoder\.layer'"):
        select(zoo.bert().model, choice)


def test_last_k_of_a_model_without_a_stack_is_refused() -> None:
    with pytest.raises(UsageError, match="needs a stack of blocks"):
        select(nn.Linear(2, 2), "last:1")


def test_a_pattern_and_a_list_keep_the_modules_order() -> None:
    model = zoo.mlp().model
    assert select(model, "*.bias") == ("0.bias", "2.bias", "4.bias")
    assert select(model, ["4.*", "0.weight"]) == ("0.weight", "4.weight", "4.bias")


def test_each_pattern_of_a_list_must_pick_something() -> None:
    with pytest.raises(UsageError, match=r"no parameter matches '9\.\*'"):
        select(zoo.mlp().model, ["0.*", "9.*"])


def test_a_pattern_stays_on_the_path_to_the_features() -> None:
    chosen = select(zoo.clip().model, "*bias")
    assert chosen
    assert all(name.startswith("vision_model.") for name in chosen)
    with pytest.raises(UsageError, match="no parameter matches"):
        select(zoo.clip().model, "text_model.*")


def test_attention_of_a_model_that_has_none_is_refused() -> None:
    with pytest.raises(UsageError, match="'attention' picks no parameter of Sequential"):
        select(zoo.mlp().model, "attention")


def test_whole_numbers_are_never_trainable() -> None:
    net = nn.Linear(2, 2)
    net.codes = nn.Parameter(torch.arange(3), requires_grad=False)
    assert select(net, "all") == select(net, "*") == ("weight", "bias")


def test_the_point_is_parameters_and_the_buffers_that_are_saved() -> None:
    net = nn.BatchNorm1d(2)
    net.register_buffer("scratch", torch.ones(1), persistent=False)
    assert set(state_of(net)) == {"weight", "bias", "running_mean", "running_var"}
    assert not any(tensor.requires_grad for tensor in state_of(net).values())


def test_an_encoder_has_the_fingerprint_of_its_backbone() -> None:
    example = zoo.conv()
    before = fingerprint_of(example.model)
    assert fingerprint_of(Encoder(example.model)) == fingerprint_of(zoo.classifier(example)) == before
    example.model[1].running_mean += 1
    assert fingerprint_of(example.model) != before


def test_eval_mode_gives_each_layer_its_own_mode_back() -> None:
    net = zoo.conv().model.train()
    net[1].eval()
    modes = [layer.training for layer in net.modules()]
    with contextlib.suppress(KeyError), eval_mode(net):
        assert not any(layer.training for layer in net.modules())
        raise KeyError
    assert [layer.training for layer in net.modules()] == modes
