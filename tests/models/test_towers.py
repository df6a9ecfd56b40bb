"""Which features a loaded model gives: projections, four-dimensional outputs, towers, long texts; and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from helpers import checkpoints, zoo
from tauspan.core.errors import ModelError, NonFiniteError
from tauspan.models import Encoder, load_model
from tauspan.models.encoder import positions
from tauspan.models.extras import quiet
from tauspan.models.inputs import Inputs
from tauspan.models.trial import tried
from tauspan.models.vision import vision_features

TEXT = {"vocab_size": 64, "max_position_embeddings": 16, **zoo.SIZES}
ENDS = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
IMAGE = {"image_size": 32, "patch_size": 8, **zoo.SIZES}
SIDE = {"height": 32, "width": 32}
TEXTS = ["a good film", "bad", "the cat sat"]


def write(
    folder: Path, model: nn.Module, processor: str = "ViT", tokenizer: Any = None, **options: Any
) -> Path:
    """A directory of a model with its processor and tokenizer."""
    checkpoints.write_model(folder, zoo.stirred(model, scale=0.1).float())
    family = getattr(transformers, f"{processor}ImageProcessorPil")
    family(size=SIDE, **options).save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


def again(folder: Path, family: str) -> Any:
    """The model by transformers itself."""
    with quiet(transformers):
        return getattr(transformers, family).from_pretrained(folder).eval()


def pictures(count: int = 2) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8))


@torch.no_grad()
def features(encoder: Encoder, raw: Any = None) -> Tensor:
    return encoder(encoder.encode(pictures() if raw is None else raw))


# -- vision: what is taken of an output ----------------------------------------------------------------------


@torch.no_grad()
def test_the_projection_of_a_tower_that_was_saved_alone_is_kept(tmp_path: Path) -> None:
    config = transformers.CLIPVisionConfig(**IMAGE, projection_dim=5)
    home = write(tmp_path / "a", transformers.CLIPVisionModelWithProjection(config), "CLIP", crop_size=SIDE)
    encoder = load_model(home)
    batch = encoder.encode(pictures())
    expected = again(home, "CLIPVisionModelWithProjection")(pixel_values=batch).image_embeds
    torch.testing.assert_close(encoder(batch), expected)
    assert encoder(batch).shape == (2, 5)
    assert "the projected embedding" in repr(encoder)
    alone = write(tmp_path / "b", transformers.CLIPVisionModel(config), "CLIP", crop_size=SIDE)
    found = load_model(alone)
    torch.testing.assert_close(
        features(found), again(alone, "CLIPVisionModel")(pixel_values=batch).pooler_output
    )


@pytest.mark.parametrize(
    ("family", "field"), [("CLIPTextModel", "pooler_output"), ("CLIPTextModelWithProjection", "text_embeds")]
)
@torch.no_grad()
def test_a_text_tower_that_was_saved_alone_is_pooled_as_it_pools(
    family: str, field: str, tmp_path: Path
) -> None:
    config = transformers.CLIPTextConfig(**TEXT, **ENDS, projection_dim=5)
    home = write(tmp_path, getattr(transformers, family)(config), tokenizer=checkpoints.bert_tokenizer())
    encoder = load_model(home)
    batch = encoder.encode(TEXTS)
    torch.testing.assert_close(encoder(batch), getattr(again(home, family)(**batch), field))
    assert encoder.label_features is encoder.features


STAGES = {"hidden_sizes": [8, 8, 12, 16], "depths": [1] * 4}
POOLED: dict[str, tuple[Callable[[], nn.Module], Callable[[Any], Tensor]]] = {
    "SegFormer": (
        lambda: transformers.SegformerModel(
            transformers.SegformerConfig(**STAGES, num_attention_heads=[1, 1, 2, 2], sr_ratios=[1] * 4)
        ),
        lambda output: output.last_hidden_state.mean((2, 3)),
    ),
    "PoolFormer": (
        lambda: transformers.PoolFormerModel(transformers.PoolFormerConfig(**STAGES)),
        lambda output: output.last_hidden_state.mean((2, 3)),
    ),
    "SwiftFormer": (
        lambda: transformers.SwiftFormerModel(
            transformers.SwiftFormerConfig(image_size=32, embed_dims=[8, 8, 8, 12], depths=[1] * 4)
        ),
        lambda output: output.last_hidden_state.mean((2, 3)),
    ),
    "PvtV2": (
        lambda: transformers.PvtV2Model(
            transformers.PvtV2Config(image_size=32, **STAGES, num_attention_heads=[1, 1, 2, 2])
        ),
        lambda output: output.last_hidden_state.mean((2, 3)),
    ),
    "IJepa, without a class token": (
        lambda: transformers.IJepaModel(transformers.IJepaConfig(**IMAGE)),
        lambda output: output.last_hidden_state.mean(1),
    ),
    "ViTMSN, with one": (
        lambda: transformers.ViTMSNModel(transformers.ViTMSNConfig(**IMAGE)),
        lambda output: output.last_hidden_state[:, 0],
    ),
    "SigLIP's image side": (
        lambda: transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**IMAGE)),
        lambda output: output.pooler_output,
    ),
    "ResNet": (
        lambda: transformers.ResNetModel(
            transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1])
        ),
        lambda output: output.pooler_output[:, :, 0, 0],
    ),
}  # fmt: skip


@pytest.mark.thinned(2)
@pytest.mark.parametrize("kind", POOLED)
@torch.no_grad()
def test_one_vector_is_taken_of_every_form_of_output(kind: str, tmp_path: Path) -> None:
    make, expected = POOLED[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        home = write(tmp_path, make())
    encoder = load_model(home)
    output = encoder.backbone(pixel_values=encoder.encode(pictures()))
    torch.testing.assert_close(features(encoder), expected(output))
    assert features(encoder).ndim == 2


@torch.no_grad()
def test_a_segformer_is_pooled_as_its_own_classifier_pools_it(tmp_path: Path) -> None:
    config = transformers.SegformerConfig(**STAGES, num_attention_heads=[1, 1, 2, 2], sr_ratios=[1] * 4)
    home = write(tmp_path, transformers.SegformerForImageClassification(config))
    model, encoder = again(home, "SegformerForImageClassification"), load_model(home)
    logits = model(pixel_values=encoder.encode(pictures())).logits
    torch.testing.assert_close(model.classifier(features(encoder)), logits)


class Output(nn.Module):
    """A model whose states have a shape of our choice."""

    def __init__(self, shape: tuple[int, ...], **config: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
        self.config = transformers.PretrainedConfig(**config)

    def forward(self, pixel_values: Tensor) -> Any:
        return transformers.modeling_outputs.BaseModelOutput(
            self.weight.expand(len(pixel_values), *self.weight.shape)
        )


def test_channels_are_found_first_or_last_or_asked_for() -> None:
    batch = torch.zeros(2, 3, 4, 4)
    first, last = Output((6, 4, 5), hidden_size=6), Output((4, 5, 6), hidden_sizes=[3, 6])
    torch.testing.assert_close(vision_features(first, batch)[0], first.weight.mean((1, 2)))
    torch.testing.assert_close(vision_features(last, batch)[0], last.weight.mean((0, 1)))
    for unclear in (Output((6, 4, 6), hidden_size=6), Output((6, 4, 5), hidden_size=7), Output((6, 4, 5))):
        with pytest.raises(
            ModelError, match=r"does not say which axis holds the channels\. Wrap it in an Encoder"
        ):
            vision_features(unclear, batch)


# -- image-text models ---------------------------------------------------------------------------------------


def two(kind: str) -> tuple[nn.Module, str]:
    """A tiny model with an image and a text tower, and its processor's family."""
    text, image = {**TEXT, **ENDS}, dict(IMAGE)
    if kind == "siglip":
        return transformers.SiglipModel(
            transformers.SiglipConfig(text_config=text, vision_config=image)
        ), "Siglip"
    if kind == "chinese_clip":
        config = transformers.ChineseCLIPConfig(text_config=TEXT, vision_config=image, projection_dim=5)
        return transformers.ChineseCLIPModel(config), "ChineseCLIP"
    if kind == "metaclip_2":
        config = transformers.MetaClip2Config(text_config=text, vision_config=image, projection_dim=5)
        return transformers.MetaClip2Model(config), "CLIP"
    config = transformers.CLIPConfig(text_config=text, vision_config=image, projection_dim=5)
    return transformers.CLIPModel(config), "CLIP"


@pytest.mark.parametrize("kind", ["clip", "siglip", "chinese_clip", "metaclip_2"])
@torch.no_grad()
def test_image_text_models_give_the_image_side_and_heads_from_the_text_side(
    kind: str, tmp_path: Path
) -> None:
    model, processor = two(kind)
    crop = {} if kind == "siglip" else {"crop_size": SIDE}
    home = write(tmp_path, model, processor, checkpoints.bert_tokenizer(), **crop)
    encoder = load_model(home)
    own = again(home, type(model).__name__)
    tokenizer = checkpoints.bert_tokenizer()
    if kind == "siglip":  # trained on texts padded to the end, without a mask
        batch = {
            "input_ids": tokenizer(TEXTS, padding="max_length", max_length=16, return_tensors="pt")[
                "input_ids"
            ]
        }
    else:
        batch = dict(tokenizer(TEXTS, padding=True, return_tensors="pt"))
    both = own(
        pixel_values=encoder.encode(pictures()), **{k: v for k, v in batch.items() if k != "token_type_ids"}
    )
    torch.testing.assert_close(
        F.normalize(features(encoder), dim=-1), both.image_embeds, rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(encoder.embed_labels(TEXTS), both.text_embeds, rtol=1e-4, atol=1e-5)
    logits = encoder.logit_scale * F.normalize(features(encoder), dim=-1) @ encoder.embed_labels(TEXTS).T
    bias = own.logit_bias if kind == "siglip" else 0.0
    torch.testing.assert_close(logits + bias, both.logits_per_image, rtol=1e-4, atol=1e-4)
    moved = [name for name, _ in encoder.backbone.named_parameters() if name.startswith(encoder.prefixes)]
    batch = encoder.encode(pictures())
    with torch.enable_grad():
        encoder(batch).square().sum().backward()
    reached = [n for n, p in encoder.backbone.named_parameters() if p.grad is not None]
    assert set(reached) <= set(moved)
    assert not [name for name in moved if "text" in name]


def refused(kind: str) -> tuple[nn.Module, str]:
    """A model that reads two kinds of input or another one, and what is said of it."""
    text, image = {**TEXT, **ENDS}, dict(IMAGE)
    patches = {key: value for key, value in IMAGE.items() if key != "image_size"} | {"num_patches": 16}
    if kind == "siglip2":
        config = transformers.Siglip2Config(text_config=text, vision_config=patches)
        return transformers.Siglip2Model(config), "siglip2, whose configuration has parts for vision"
    if kind == "blip":
        config = transformers.BlipConfig(text_config=text, vision_config=image, projection_dim=5)
        return transformers.BlipModel(config), "blip, whose configuration has parts for vision"
    if kind == "llava":
        vision, words = (
            transformers.CLIPVisionConfig(**image),
            transformers.LlamaConfig(**{**TEXT, "vocab_size": 70}),
        )
        config = transformers.LlavaConfig(vision_config=vision, text_config=words, image_token_id=65)
        return transformers.LlavaForConditionalGeneration(
            config
        ), "llava, whose configuration has parts for vision"
    if kind == "whisper":
        config = transformers.WhisperConfig(
            vocab_size=64, d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=12, decoder_ffn_dim=12, pad_token_id=0, decoder_start_token_id=2,
            max_source_positions=16,
        )  # fmt: skip
        return transformers.WhisperModel(config), "WhisperModel, which reads input_features"
    if kind == "wav2vec2":
        config = transformers.Wav2Vec2Config(
            hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12, conv_dim=(8,),
            conv_stride=(2,), conv_kernel=(3,), num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
        )  # fmt: skip
        return transformers.Wav2Vec2Model(config), "Wav2Vec2Model, which reads input_values"
    if kind == "vilt":
        return transformers.ViltModel(
            transformers.ViltConfig(**{**TEXT, **image})
        ), "does not turn texts alone into"
    vision = transformers.Siglip2VisionConfig(**patches)
    return transformers.Siglip2VisionModel(vision), "does not turn images alone into features"


@pytest.mark.parametrize(
    "kind", ["siglip2", "blip", "llava", "whisper", "wav2vec2", "vilt", "siglip2's image side"]
)
def test_models_of_other_inputs_are_refused_with_a_sentence(kind: str, tmp_path: Path) -> None:
    model, said = refused(kind)
    home = write(tmp_path, model, tokenizer=checkpoints.bert_tokenizer())
    with pytest.raises(ModelError, match=said):
        load_model(home)


# -- randomness ----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_model_that_hides_parts_at_random_is_refused_and_its_encoder_alone_is_read(tmp_path: Path) -> None:
    home = write(tmp_path / "old", transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**IMAGE)))
    with pytest.raises(
        ModelError, match=r"transformers\.ViTModel\.from_pretrained\(OLD\)\.save_pretrained\(NEW\)"
    ):
        load_model(home)
    checkpoints.write_model(tmp_path / "new", again(home, "ViTModel"))  # as it says
    transformers.ViTImageProcessorPil(size=SIDE).save_pretrained(tmp_path / "new")
    encoder = load_model(tmp_path / "new")
    mae = again(home, "ViTMAEModel")
    mae.config.mask_ratio = 0.0
    batch = encoder.encode(pictures())
    states = encoder.backbone(pixel_values=batch).last_hidden_state
    torch.testing.assert_close(
        states[:, 0], mae(pixel_values=batch).last_hidden_state[:, 0], rtol=1e-4, atol=1e-5
    )


class Random(nn.Module):
    """Draws numbers in eval mode."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.linear, self.how = nn.Linear(3, 3), how

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        if self.how == "dropout":
            return F.dropout(y, 0.5)
        if self.how == "noise":
            return y + 0.01 * torch.randn_like(y)
        return y * F.gumbel_softmax(y, hard=True) if self.how == "gumbel" else y[:, torch.randperm(3)]


@pytest.mark.parametrize("how", ["dropout", "noise", "gumbel", "permutation"])
def test_features_that_differ_between_two_calls_are_refused(how: str) -> None:
    encoder = Encoder(nn.Sequential(nn.Flatten(), Random(how)).eval(), inputs=Inputs("image", size=1))
    before = torch.random.get_rng_state()
    with torch.random.fork_rng():
        torch.manual_seed(1)  # else a permutation may be the same one twice
        with pytest.raises(
            ModelError, match="other features for the same input at each call, so it draws random"
        ):
            tried(encoder)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_broken_weights_are_found_when_a_model_is_loaded(broken: float, tmp_path: Path) -> None:
    model = transformers.BertModel(transformers.BertConfig(**TEXT))
    with torch.no_grad():
        model.encoder.layer[0].output.dense.bias[0] = broken
    home = write(tmp_path, model, tokenizer=checkpoints.bert_tokenizer())
    with pytest.raises(NonFiniteError, match="hold NaN or infinity on a sample input"):
        load_model(home)


# -- long texts ----------------------------------------------------------------------------------------------

LONG = " ".join("abcdefghijklmnopqrstuvwxyz" * 2)
OFFSET = {**TEXT, "max_position_embeddings": 18, "pad_token_id": 1}
MODELS: dict[str, tuple[Callable[[], nn.Module], int | None]] = {
    "BERT": (lambda: transformers.BertModel(transformers.BertConfig(**TEXT)), 16),
    "RoBERTa": (lambda: transformers.RobertaModel(transformers.RobertaConfig(**OFFSET)), 16),
    "XLM-RoBERTa": (lambda: transformers.XLMRobertaModel(transformers.XLMRobertaConfig(**OFFSET)), 16),
    "CamemBERT": (lambda: transformers.CamembertModel(transformers.CamembertConfig(**OFFSET)), 16),
    "MPNet": (lambda: transformers.MPNetModel(transformers.MPNetConfig(**OFFSET)), 16),
    "Longformer": (
        lambda: transformers.LongformerModel(transformers.LongformerConfig(**OFFSET, attention_window=4)),
        16,
    ),
    "ESM": (
        lambda: transformers.EsmModel(
            transformers.EsmConfig(**OFFSET, mask_token_id=4, position_embedding_type="absolute")
        ),
        16,
    ),
    "DistilBERT": (
        lambda: transformers.DistilBertModel(
            transformers.DistilBertConfig(
                vocab_size=64, dim=8, n_layers=1, n_heads=2, hidden_dim=12, max_position_embeddings=16
            )
        ),
        16,
    ),
    "GPT-2": (lambda: zoo.gpt2_model(), 16),
    "XLNet": (
        lambda: transformers.XLNetModel(
            transformers.XLNetConfig(vocab_size=64, d_model=8, n_layer=1, n_head=2, d_inner=12)
        ),
        None,
    ),
    "BLOOM": (
        lambda: transformers.BloomModel(
            transformers.BloomConfig(vocab_size=64, hidden_size=8, n_layer=1, n_head=2)
        ),
        None,
    ),
}


@pytest.mark.thinned(4)
@pytest.mark.parametrize("limit", [None, 512, 10])
@pytest.mark.parametrize("kind", MODELS)
@torch.no_grad()
def test_rows_and_prompts_are_cut_where_the_model_ends(kind: str, limit: int | None, tmp_path: Path) -> None:
    make, most = MODELS[kind]
    tokenizer = checkpoints.bert_tokenizer()
    tokenizer.model_max_length = limit or 10**30
    home = write(tmp_path, make(), tokenizer=tokenizer)
    encoder = load_model(home)
    assert positions(encoder.backbone) == most
    everything = 54  # letters and the two ends
    cut = min(most or everything, limit or everything)
    rows = encoder.encode([LONG, "a"])
    assert rows["input_ids"].shape == (2, cut)
    assert features(encoder, [LONG]).isfinite().all()
    wanted = F.normalize(encoder(encoder.encode([LONG])), dim=-1)
    torch.testing.assert_close(encoder.embed_labels([LONG]), wanted)
    for asked in (5, 40):
        assert encoder.encode([LONG], max_tokens=asked)["input_ids"].shape[1] == min(
            asked, most or everything
        )
