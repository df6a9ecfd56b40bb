"""PEFT's own models: of the parameters "all" takes those that PEFT trains, and a vector moves its adapter alone."""

from typing import Any

import pytest
import torch
import transformers

import tauspan
from helpers import checkpoints, zoo
from tauspan.models import Encoder, select
from tauspan.models.extras import quiet
from tauspan.tasks import Task
from tauspan.train import Settings

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning:peft")]  # its own advice
TEXTS = ["a good film", "bad", "the cat sat", "a b c"]
KINDS: dict[str, Any] = {
    "lora": lambda peft: peft.LoraConfig(r=2, target_modules=["query", "value"]),
    "lora, biases": lambda peft: peft.LoraConfig(r=2, target_modules=["query"], bias="all"),
    "lora, a whole module": lambda peft: peft.LoraConfig(
        r=2, target_modules=["query"], modules_to_save=["word_embeddings"]
    ),
    "dora": lambda peft: peft.LoraConfig(r=2, target_modules=["query"], use_dora=True),
    "rank-stabilised": lambda peft: peft.LoraConfig(r=4, target_modules=["query"], use_rslora=True),
    "ia3": lambda peft: peft.IA3Config(
        target_modules=["value", "intermediate.dense"], feedforward_modules=["intermediate.dense"]
    ),
    "loha": lambda peft: peft.LoHaConfig(r=2, target_modules=["query"]),
}


@pytest.fixture
def plain(tmp_path: Any) -> Encoder:
    found = tauspan.load(checkpoints.write(tmp_path / "bert", "bert"))
    assert isinstance(found, Encoder)
    return found


def wrapped(plain: Encoder, kind: str) -> Encoder:
    """The encoder with PEFT's model around its backbone, the adapter moved off its start, where it changes nothing."""
    peft = pytest.importorskip("peft", reason="peft is not installed: the extra `real`")
    with quiet(transformers):
        model = peft.get_peft_model(plain.backbone, KINDS[kind](peft))
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
    return Encoder(model, plain.features, plain.inputs).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_all_is_what_peft_trains(kind: str, plain: Encoder) -> None:
    encoder = wrapped(plain, kind)
    trains = [name for name, parameter in encoder.backbone.named_parameters() if parameter.requires_grad]
    count, _ = encoder.backbone.get_nb_trainable_parameters()
    assert list(select(encoder, "all")) == trains
    lin = tauspan.linearize(encoder)
    assert set(lin.tau) == set(trains)
    assert sum(tau.numel() for tau in lin.tau.values()) == count


@pytest.mark.filterwarnings("ignore:PeftModel cannot be carried through in one pass")  # LoHa's own backward
@pytest.mark.parametrize("kind", KINDS)
def test_its_tangent_is_that_of_autograd(kind: str, plain: Encoder) -> None:
    encoder = wrapped(plain, kind)
    batch = encoder.encode(TEXTS)
    lin = tauspan.linearize(encoder)
    probe = zoo.normal(*encoder(batch).shape).float()
    (lin(batch) * probe).sum().backward()
    (encoder(batch) * probe).sum().backward()
    for name, parameter in encoder.backbone.named_parameters():
        if parameter.requires_grad and parameter.grad is not None:
            torch.testing.assert_close(lin.tau[name].grad, parameter.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["lora", "dora", "ia3"])
@pytest.mark.parametrize("regime", ["standard", "linear"])
def test_fine_tuning_moves_the_adapter_alone(kind: str, regime: Any, plain: Encoder) -> None:
    encoder = wrapped(plain, kind)
    before = {name: tensor.clone() for name, tensor in encoder.backbone.state_dict().items()}
    rows = (TEXTS * 2, [0, 1, 0, 1] * 2)
    task = Task.from_tensors("t", ["no", "yes"], train=rows, validation=rows, test=rows)
    vector = tauspan.finetune(encoder, task, Settings(regime, epochs=2, batch_size=4, lr=1e-2)).task_vector
    assert vector.deltas.keys() == set(select(encoder, "all"))
    assert any(delta.any() for delta in vector.deltas.values())
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.backbone.state_dict().items())
    edited = tauspan.apply(encoder, vector)
    batch = encoder.encode(TEXTS)
    assert not torch.allclose(edited(batch), encoder(batch))
    if regime == "standard" and kind != "ia3":  # the edited adapter is merged by PEFT as any other
        assert isinstance(edited, Encoder)
        expected = edited(batch).detach()
        merged = Encoder(edited.backbone.merge_and_unload(), plain.features, plain.inputs).eval()
        torch.testing.assert_close(merged(batch), expected, rtol=1e-4, atol=1e-5)
