"""PEFT itself loads an adapter that was made of a vector of a small space, and gives its logits."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import tauspan as ts
from helpers import checkpoints, languages
from helpers.zoo import normal
from tauspan.merge import save_as_adapter
from tauspan.models import fingerprint_of
from tauspan.models.extras import quiet

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning:peft")]  # its own advice


@pytest.fixture
def peft() -> Any:
    return pytest.importorskip("peft", reason="peft is not installed: the extra `real`")


def vector(encoder: ts.Encoder, space: str, params: str) -> ts.TaskVector:
    small = ts.restrict(encoder, space, params)
    assert small.space is not None
    deltas = {
        f"{name}_delta": 0.3 * normal(*basis.small, seed=place).to(basis.factors[0].dtype)
        for place, (name, basis) in enumerate(small.space.bases.items())
    }
    return ts.TaskVector(deltas, fingerprint_of(encoder), "standard", "v", space=small.space)


@pytest.mark.parametrize("space", ["lora:2", "singular:3"])
@pytest.mark.parametrize(
    ("kind", "params"), [("bert", "encoder.layer.*"), ("gpt2", "*attn*"), ("vit", "all")]
)
def test_the_round_trip_of_encoders(peft: Any, tmp_path: Path, kind: str, params: str, space: str) -> None:
    base = checkpoints.write(tmp_path / kind, kind)
    encoder = ts.load(base).double()
    tau = vector(encoder, space, params)
    path = save_as_adapter(tau, encoder, tmp_path / "adapter")
    with quiet(transformers):
        model = transformers.AutoModel.from_pretrained(base).double().eval()
        plain = transformers.AutoModel.from_pretrained(base).double().eval()
        adapted = peft.PeftModel.from_pretrained(model, path).double().eval()
    edited = ts.apply(encoder, tau)
    plain.load_state_dict(edited.backbone.state_dict(), strict=False)
    if kind == "vit":
        inputs: dict[str, Any] = {"pixel_values": normal(2, 3, *(2 * [model.config.image_size]), seed=3)}
    else:
        inputs = {"input_ids": torch.tensor([[1, 5, 7, 2], [3, 8, 9, 4]])}
    with torch.no_grad():
        found, wanted = adapted(**inputs).last_hidden_state, plain(**inputs).last_hidden_state
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    back = ts.adapter_vector(path, str(base), dtype=torch.float64)
    for name, delta in tau.dense(encoder).deltas.items():
        torch.testing.assert_close(back.deltas[name], delta, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_round_trip_of_language_models(peft: Any, tmp_path: Path, kind: str) -> None:
    base = languages.write(tmp_path / kind, kind)
    encoder = ts.load(base, language=48).double()
    tau = vector(encoder, "lora:2", "all")
    path = save_as_adapter(tau, encoder, tmp_path / "adapter")
    with quiet(transformers):
        model = transformers.AutoModelForCausalLM.from_pretrained(base).double().eval()
        adapted = peft.PeftModel.from_pretrained(model, path).double().eval()
    ids = torch.tensor([[1, 5, 7, 2]])
    edited = ts.apply(encoder, tau)
    assert encoder.language is not None
    with torch.no_grad():
        states = edited.backbone(input_ids=ids).last_hidden_state
        wanted = states @ encoder.language.table.weight.double().T
        torch.testing.assert_close(adapted(input_ids=ids).logits, wanted, rtol=1e-10, atol=1e-10)
