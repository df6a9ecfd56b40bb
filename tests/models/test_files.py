"""Directories that are damaged, dangerous or absent, and directories that tauspan writes."""

import logging
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from helpers import checkpoints
from helpers.checkpoints import KINDS, Copy
from tauspan import store
from tauspan.core.errors import ModelError, PickleRefusedError, StoreError
from tauspan.models import Encoder, fingerprint_of, load_model, model_directory, save_model

homes = pytest.fixture(scope="module")(checkpoints.homes)
copy = pytest.fixture(checkpoints.copy)


# -- damaged or dangerous ------------------------------------------------------------------------------------


def test_weights_in_a_pickle_are_refused_unopened(copy: Copy) -> None:
    home = copy("bert")
    (home / "model.safetensors").unlink()
    (home / "pytorch_model.bin").write_bytes(b"never read")
    with pytest.raises(PickleRefusedError, match=r"pytorch_model\.bin is a pickle"):
        load_model(home)


def test_a_directory_without_any_weights_says_what_it_found(copy: Copy) -> None:
    home = copy("bert")
    (home / "model.safetensors").unlink()
    with pytest.raises(StoreError, match=r"no \.safetensors weights; found config\.json"):
        load_model(home)


@pytest.mark.parametrize("kept", [0, 5, 0.5, 0.99])
def test_weights_cut_short_are_refused(copy: Copy, kept: float) -> None:
    file = copy("bert") / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(kept if kept >= 1 else kept * len(content))])
    with pytest.raises(StoreError, match="not a whole safetensors file"):
        load_model(file.parent)


def test_a_missing_tensor_is_named_and_never_drawn_at_random(copy: Copy) -> None:
    file = copy("bert") / "model.safetensors"
    tensors = load_file(file)
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(
        StoreError, match=r"lacks 1 weights of BertModel \(encoder\.layer\.1\.output\.dense\.weight"
    ):
        load_model(file.parent)


def test_half_a_pooler_is_a_missing_tensor_too(copy: Copy) -> None:
    file = copy("vit") / "model.safetensors"
    tensors = load_file(file)
    del tensors["pooler.dense.bias"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(StoreError, match=r"lacks 1 weights of ViTModel \(pooler\.dense\.bias\)"):
        load_model(file.parent)


def test_a_tensor_of_another_shape_is_refused(copy: Copy) -> None:
    home = copy("bert")
    checkpoints.edit_json(home / "config.json", lambda config: config.update(intermediate_size=10))
    with pytest.raises(
        ModelError, match=r"'encoder.*' has shape \(12,\) in the files, and config.json makes it \(10,\)"
    ):
        load_model(home)


def test_a_directory_without_a_config_is_refused(copy: Copy) -> None:
    home = copy("bert")
    (home / "config.json").unlink()
    with pytest.raises(ModelError, match=r"has no config\.json"):
        load_model(home)


def test_a_config_without_a_model_type_points_to_the_other_libraries(copy: Copy) -> None:
    home = copy("bert")
    checkpoints.edit_json(home / "config.json", lambda config: config.pop("model_type"))
    with pytest.raises(ModelError, match=r"no `model_type`.*local-dir:"):
        load_model(home)


def test_a_model_type_that_transformers_does_not_know_is_a_model_error(copy: Copy) -> None:
    home = copy("bert")
    checkpoints.edit_json(home / "config.json", lambda config: config.update(model_type="bertt"))
    with pytest.raises(ModelError, match="could not load"):
        load_model(home)


def test_a_config_that_is_no_json_is_refused(copy: Copy) -> None:
    home = copy("bert")
    (home / "config.json").write_text("{")
    with pytest.raises(StoreError, match="cannot be read as JSON"):
        load_model(home)


def test_weights_for_other_libraries_beside_transformers_own_are_not_looked_at(copy: Copy) -> None:
    home = copy("clip")
    save_file({"other": torch.ones(1)}, home / "open_clip_model.safetensors")
    assert load_model(home).source == str(home)


# -- absent --------------------------------------------------------------------------------------------------


def test_a_file_is_no_model(homes: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match="is a file; a model is a directory"):
        load_model(homes["bert"] / "model.safetensors")


def test_a_pickle_given_as_a_model_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.pt"
    torch.save({}, file)
    with pytest.raises(PickleRefusedError):
        load_model(file)


def test_a_misspelt_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ModelError, match=r"no model 'minilmm'.*Did you mean 'minilm'"):
        load_model("minilmm")


@pytest.mark.parametrize("source", ["./nowhere", "/no/where", "~/model", "a/b/c", "nowhere"])
def test_what_cannot_be_an_id_is_never_looked_up(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: pytest.fail("the hub was asked"))
    with pytest.raises(ModelError, match="not a directory, and not an id"):
        load_model(source)


def test_an_id_that_cannot_be_fetched_is_an_error_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="'someone/some-model' is no local directory and could not"):
        load_model("someone/some-model", cache=tmp_path)


@pytest.mark.parametrize("revision", ["", "@v2"])
def test_an_id_in_the_hubs_cache_loads_offline(
    homes: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    commit, folder = "0" * 40, tmp_path / "models--someone--some-model"
    shutil.copytree(homes["bert"], folder / "snapshots" / commit)
    (folder / "refs").mkdir()
    (folder / "refs" / (revision[1:] or "main")).write_text(commit)
    encoder = load_model(f"someone/some-model{revision}", cache=tmp_path)
    assert fingerprint_of(encoder) == fingerprint_of(load_model(homes["bert"]))
    assert encoder.source == f"someone/some-model{revision}"


def test_only_safetensors_and_text_are_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    asked: dict[str, object] = {}
    monkeypatch.setattr(
        hub, "snapshot_download", lambda name, **options: asked.update(options) or str(tmp_path)
    )
    assert model_directory("someone/some-model@abc") == tmp_path
    assert asked["revision"] == "abc"
    assert not any(str(pattern).endswith(store.PICKLE_SUFFIXES) for pattern in asked["allow_patterns"])


# -- written -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_loads_in_transformers_without_a_word(
    kind: str, homes: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = load_model(homes[kind])
    with torch.no_grad():
        next(encoder.parameters()).add_(0.1)  # an edited model
    save_model(encoder, tmp_path / "out")
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)  # it does not propagate
    try:
        again = transformers.AutoModel.from_pretrained(tmp_path / "out").eval()
    finally:
        logger.removeHandler(caplog.handler)
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []
    loaded, own = again.state_dict(), encoder.backbone.state_dict()
    assert loaded.keys() == own.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in own.items())


def test_loading_and_saving_are_silent_and_leave_the_progress_bar_as_it_was(
    homes: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = transformers.utils.logging
    before = log.is_progress_bar_enabled(), log.get_verbosity()
    save_model(load_model(homes["bert"]), tmp_path / "out")
    assert capfd.readouterr() == ("", "")
    assert (log.is_progress_bar_enabled(), log.get_verbosity()) == before


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "clip"])
def test_the_tokenizer_is_saved_beside_the_model(kind: str, homes: dict[str, Path], tmp_path: Path) -> None:
    save_model(load_model(homes[kind]), tmp_path / "out")
    texts = ["a good film", "bad"]
    before, after = (
        transformers.AutoTokenizer.from_pretrained(path) for path in (homes[kind], tmp_path / "out")
    )
    assert before(texts)["input_ids"] == after(texts)["input_ids"]


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_saved_and_reloaded_encoder_is_the_same(kind: str, copy: Copy, tmp_path: Path) -> None:
    home = copy(kind)
    if kind == "bert":
        checkpoints.pooling(home, cls_token=True)
    encoder = load_model(home)
    save_model(encoder, tmp_path / "out")
    again = load_model(tmp_path / "out")
    batch = torch.randn(2, 3, 8, 8) if kind in ("vit", "clip") else encoder.encode(["a good film", "bad"])
    assert fingerprint_of(again) == fingerprint_of(encoder)
    torch.testing.assert_close(again(batch), encoder(batch), rtol=0, atol=1e-6)
    assert (again.inputs.size, again.inputs.mean) == (encoder.inputs.size, encoder.inputs.mean)
    assert again.features is encoder.features


def test_a_plain_module_is_saved_as_its_state_dict(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    save_model(Encoder(net), tmp_path / "out")
    saved = store.Checkpoint(tmp_path / "out").read()
    assert saved.keys() == net.state_dict().keys()
    assert all(torch.equal(saved[name], tensor) for name, tensor in net.state_dict().items())


def test_an_output_that_is_there_is_kept_unless_asked_for(tmp_path: Path) -> None:
    out = tmp_path / "out"
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    save_model(first, out)
    with pytest.raises(StoreError, match="already there"):
        save_model(second, out)
    assert torch.equal(store.Checkpoint(out)["weight"], first.weight)
    save_model(second, out, overwrite=True)
    assert torch.equal(store.Checkpoint(out)["weight"], second.weight)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_weights_of_the_source_are_never_copied_beside_the_new_ones(copy: Copy, tmp_path: Path) -> None:
    home = copy("bert")
    for name in ("run.py", ".secret.json", "model.safetensors.index.json.bak"):
        (home / name).write_text("{}")
    save_model(load_model(home), tmp_path / "out")
    found = {path.name for path in (tmp_path / "out").iterdir()}
    assert found == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
