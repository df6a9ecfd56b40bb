"""Not CLIP alone: classifiers of images, an encoder-decoder and decoders load, train one step, and are linearised."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn

from helpers import checkpoints, zoo
from helpers.runs import REGIMES, trained
from tauspan.core.errors import MismatchError
from tauspan.editing.model.edit import apply, load
from tauspan.models import (
    Classifier,
    Encoder,
    fingerprint_of,
    load_model,
    names_of,
    save_model,
    select,
    trimmed,
)
from tauspan.models.pooling import mean_pooled
from tauspan.tangent import linearize
from tauspan.tasks import Task, build_head
from tauspan.train import Settings

TEXTS = ["a b c d", "e f", "g a b", "h", "i j k a b c", "l m"]
SIDE = {"vit": 8, "convnext": 16}


def t5_model(kind: Any = transformers.T5ForConditionalGeneration) -> nn.Module:
    """The feed-forward layers of the first T5, and few and near buckets, so that several are used."""
    return kind(
        transformers.T5Config(
            vocab_size=64, d_model=8, d_kv=4, d_ff=12, num_layers=2, num_heads=2, relative_attention_num_buckets=6,
            relative_attention_max_distance=6,
        )
    )  # fmt: skip


def convnext_model() -> nn.Module:
    config = transformers.ConvNextConfig(
        hidden_sizes=[4, 6], depths=[1, 2], num_stages=2, patch_size=2, image_size=16, num_labels=3,
        layer_scale_init_value=0.5,
    )  # fmt: skip
    return transformers.ConvNextForImageClassification(config)


def vit_model() -> nn.Module:
    config = transformers.ViTConfig(**zoo.IMAGE, **zoo.SIZES, num_labels=3)
    return transformers.ViTForImageClassification(config)


def t5_tokenizer() -> Any:
    pieces = [
        "<pad>",
        "</s>",
        "<unk>",
        "▁",
        *checkpoints.LETTERS,
        *(f"▁{letter}" for letter in checkpoints.LETTERS),
    ]
    return transformers.T5Tokenizer(
        vocab=[(piece, -float(place)) for place, piece in enumerate(pieces)], extra_ids=0
    )


MODELS: dict[str, Callable[[], nn.Module]] = {
    "vit": vit_model, "convnext": convnext_model, "t5": t5_model,
    "gpt2": zoo.gpt2_model, "llama": zoo.llama_model, "clip": zoo.clip_model,
}  # fmt: skip


def write(folder: Path, kind: str) -> Path:
    if kind in checkpoints.KINDS and kind != "vit":
        return checkpoints.write(folder, kind)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = zoo.stirred(MODELS[kind](), scale=0.1).float()
    checkpoints.write_model(folder, model)
    if kind in SIDE:
        square = {"height": SIDE[kind], "width": SIDE[kind]}
        checkpoints.image_settings(folder, {"shortest_edge": SIDE[kind]} if kind == "convnext" else square)
    else:
        t5_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {kind: write(root / kind, kind) for kind in MODELS}


def images(count: int = 6, side: int = 8) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8))


def task(encoder: Encoder) -> Task:
    """Six rows in three classes that the encoder reads, under a linear probe."""
    inputs = TEXTS if encoder.inputs.modality == "text" else images()
    rows = (inputs, torch.tensor([0, 1, 2, 0, 1, 2]))
    made = Task.from_tensors("rows", ["a", "b", "c"], train=rows, validation=rows, test=rows)
    return dataclasses.replace(made, head_from="probe")


# -- every kind ----------------------------------------------------------------------------------------------


@pytest.mark.thinned(4)
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("regime", REGIMES)
def test_one_step_under_a_probe_moves_the_path_to_the_features_and_lowers_the_loss(
    kind: str, regime: Any, homes: dict[str, Path]
) -> None:
    encoder = load_model(homes[kind])
    rows, lr = task(encoder), 1e-5
    settings = Settings(regime, batch_size=6, lr=lr, warmup=0)
    vector = trained(settings, rows, encoder).task_vector
    assert tuple(vector.deltas) == names_of(encoder).files_of(select(encoder))
    moved = [name for name, delta in vector.deltas.items() if delta.abs().max() > 0]
    assert len(moved) > 0.8 * len(vector.deltas)
    head, inputs = build_head(rows, encoder), rows.split("train").inputs
    classifier, batch = Classifier(encoder, head), encoder.encode(inputs)
    labels = rows.split("train").labels
    with torch.no_grad():
        losses = [
            float(nn.functional.cross_entropy(model(batch), labels))
            for model in (classifier, apply(classifier, vector))
        ]
    assert losses[1] < losses[0]


def wide(batch: Any) -> Any:
    if isinstance(batch, Tensor):
        return batch.double()
    return batch


@pytest.mark.parametrize("kind", MODELS)
def test_the_engine_gives_what_forward_mode_gives(kind: str, homes: dict[str, Path]) -> None:
    encoder = load_model(homes[kind]).double()
    zoo.stirred(encoder, scale=0.2)  # normalisation weights and position biases off their special start
    rows = task(encoder)
    inputs = encoder.encode(rows.split("train").inputs)
    batch = wide(inputs)
    width = int(encoder(batch).shape[-1])
    head = zoo.Head(zoo.normal(3, width, seed=5), zoo.normal(3, seed=6)).double()
    fast, slow = (linearize(Classifier(encoder, head), engine=engine) for engine in ("onepass", "reference"))
    found = []
    for lin in (fast, slow):
        zoo.at(lin, zoo.direction(lin))
        value, tangent = lin.tangent(batch)
        gradient = torch.autograd.grad((value + tangent).square().sum(), list(lin.tau.values()))
        found.append((value.detach(), tangent.detach(), dict(zip(lin.tau, gradient, strict=True))))
    assert fast.engine == "onepass"
    # Llama's and T5's norms go through float32 inside, each engine in its own order
    digits = 1e-6 if kind in ("llama", "t5") else 1e-10
    assert zoo.close(found[0][0], found[1][0], 1e-12)
    assert zoo.close(found[0][1], found[1][1], digits)
    assert zoo.all_close(found[0][2], found[1][2], digits)


# -- encoder and decoder -------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_encoder_of_an_encoder_decoder_reads_the_text(homes: dict[str, Path]) -> None:
    model = transformers.T5EncoderModel.from_pretrained(homes["t5"]).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(homes["t5"])
    expected = [
        model(**tokenizer([text], return_tensors="pt")).last_hidden_state[0].mean(0) for text in TEXTS
    ]
    encoder = load_model(homes["t5"])
    found = encoder(encoder.encode(TEXTS))  # padded, which position biases and the mean must not see
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-5, atol=1e-6)
    assert encoder.features is mean_pooled


def test_the_decoder_does_not_train_and_can_be_trimmed(homes: dict[str, Path]) -> None:
    encoder = load_model(homes["t5"])
    names, known = select(encoder), dict(encoder.backbone.named_parameters())
    assert set(names) == {name for name in known if not name.startswith("decoder.")}
    assert "shared.weight" in names
    small = trimmed(encoder)
    assert [name for name, _ in small.backbone.named_parameters()] == list(names)
    assert fingerprint_of(small) == fingerprint_of(encoder)
    prompts = ["a b", "c"]  # the encoder embeds prompts too, and stays
    assert torch.equal(small.embed_labels(prompts), encoder.embed_labels(prompts))


def test_an_edited_encoder_decoder_is_saved_whole(homes: dict[str, Path], tmp_path: Path) -> None:
    encoder = load_model(homes["t5"])
    vector = trained(Settings("standard", batch_size=6), task(encoder), encoder).task_vector
    edited = apply(encoder, vector)
    save_model(edited, tmp_path / "edited")
    again = load_model(tmp_path / "edited")
    assert fingerprint_of(again) == fingerprint_of(edited)
    assert torch.equal(again(again.encode(TEXTS)), edited(edited.encode(TEXTS)))
    whole = transformers.T5Model.from_pretrained(tmp_path / "edited")
    decoder = whole.decoder.final_layer_norm.weight
    assert torch.equal(decoder, encoder.backbone.decoder.final_layer_norm.weight)


@torch.no_grad()
def test_an_encoder_that_was_saved_alone_gives_the_same_features(
    homes: dict[str, Path], tmp_path: Path
) -> None:
    alone = transformers.T5EncoderModel.from_pretrained(homes["t5"])
    checkpoints.write_model(tmp_path, alone)
    t5_tokenizer().save_pretrained(tmp_path)
    first, second = load_model(homes["t5"]), load_model(tmp_path)
    assert type(second.backbone) is transformers.T5EncoderModel
    assert select(second) == select(first)
    assert torch.equal(second(second.encode(TEXTS)), first(first.encode(TEXTS)))


# -- images --------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_convnext_gives_the_features_below_its_classifier(homes: dict[str, Path]) -> None:
    model = transformers.ConvNextForImageClassification.from_pretrained(homes["convnext"]).eval()
    encoder = load_model(homes["convnext"])
    batch = encoder.encode(images())
    torch.testing.assert_close(model.classifier(encoder(batch)), model(batch).logits, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_vit_classifier_gives_the_features_below_its_classifier(homes: dict[str, Path]) -> None:
    model = transformers.ViTForImageClassification.from_pretrained(homes["vit"]).eval()
    encoder = load_model(homes["vit"])
    batch = encoder.encode(images())
    torch.testing.assert_close(model.classifier(encoder(batch)), model(batch).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(16, 16), (33, 20), (20, 45)])
@pytest.mark.parametrize("side", [16, 384])
def test_convnexts_share_of_the_side_is_cropped_as_its_processor_does(
    side: int, shape: tuple[int, int], homes: dict[str, Path], tmp_path: Path
) -> None:
    encoder_home = Path(tmp_path / "convnext")
    checkpoints.write_model(encoder_home, convnext_model())
    processor = transformers.ConvNextImageProcessorPil(
        size={"shortest_edge": side}, crop_pct=0.875, image_mean=checkpoints.MEAN, image_std=checkpoints.STD
    )
    processor.save_pretrained(encoder_home)
    y, x, channel = np.mgrid[: shape[0], : shape[1], :3]
    smooth = (127.5 + 120 * np.sin(y / 7 + channel) * np.cos(x / 5 - channel)).astype(np.uint8)
    expected = torch.from_numpy(np.stack(processor([smooth])["pixel_values"]))
    found = load_model(encoder_home).encode([smooth])
    torch.testing.assert_close(found, expected, rtol=0, atol=2.5 / 255 / min(checkpoints.STD))


@pytest.mark.parametrize(("patch", "size", "width"), [(32, 64, 8), (16, 64, 8), (14, 56, 12)])
def test_clips_of_every_patch_size_have_one_set_of_names(
    patch: int, size: int, width: int, homes: dict[str, Path], tmp_path: Path
) -> None:
    """The shapes that tell ViT-B/32, B/16 and L/14 apart, at toy width."""
    text = {**zoo.TEXT, **zoo.SIZES, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    vision = {**zoo.SIZES, "image_size": size, "patch_size": patch, "hidden_size": width}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=6)
    checkpoints.write_model(tmp_path / "clip", zoo.stirred(transformers.CLIPModel(config), scale=0.1).float())
    checkpoints.clip_tokenizer().save_pretrained(tmp_path / "clip")
    checkpoints.image_settings(
        tmp_path / "clip", {"shortest_edge": size}, crop_size=size, do_center_crop=True
    )
    encoder = load_model(tmp_path / "clip")
    rows = (images(side=size), torch.tensor([0, 1, 0, 1, 0, 1]))
    made = Task.from_tensors("rows", ["a", "b"], train=rows, validation=rows, test=rows)
    templated = dataclasses.replace(made, templates=["a {}", "{} b"])
    assert build_head(templated, encoder).weight.shape == (2, 6)
    assert select(encoder) == select(load_model(homes["clip"]))
    vector = trained(Settings("linear", batch_size=6), templated, trimmed(encoder)).task_vector
    assert vector.base == fingerprint_of(encoder)


@pytest.mark.parametrize("kind", ["float64", "float16", ">f4", "sparse", "with a graph", "bfloat16"])
def test_rows_of_floats_are_read_in_the_models_dtype(kind: str) -> None:
    x = np.random.default_rng(0).normal(size=(24, 3)).astype("f4")
    tensor = torch.tensor(x)
    given: Any = {
        "sparse": tensor.to_sparse(), "with a graph": tensor.clone().requires_grad_(), "bfloat16": tensor.bfloat16(),
    }.get(kind)  # fmt: skip
    rows = (x.astype(kind) if given is None else given, np.arange(24) % 2)
    head = build_head(Task.from_tensors("t", ["a", "b"], train=rows), load(nn.Linear(3, 4)))
    assert head.weight.dtype == torch.float32


@pytest.mark.parametrize("kind", ["i8", "?", "u8", "c8"])
def test_rows_that_the_model_does_not_take_are_refused_with_their_dtype(kind: str) -> None:
    x = np.random.default_rng(0).normal(size=(24, 3)).astype(kind)
    task = Task.from_tensors("t", ["a", "b"], train=(x, np.arange(24) % 2))
    with pytest.raises(MismatchError, match=r"a batch of shape .* and dtype torch\.\w+"):
        build_head(task, load(nn.Linear(3, 4)))
