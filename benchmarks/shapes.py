"""The models that are measured: real shapes with random weights, and their inputs."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaModel,
)

from tauspan.models import Batch, Classifier, Encoder, Head
from tauspan.models.vision import vision_features

Attention = Literal["eager", "sdpa"]


@dataclass(frozen=True)
class Shape:
    """A transformer and its batch.

    Args:
        name: as tables show it.
        family: which architecture.
        layers: blocks.
        width: of the hidden states.
        heads: of attention.
        inner: width of the feed-forward layers.
        batch: rows.
        length: tokens of a row, or the side of an image in pixels.
        other: vocabulary of a text model, or the side of an image patch in pixels.
        groups: key and value heads of a decoder.
    """

    name: str
    family: Literal["bert", "clip", "llama"]
    layers: int
    width: int
    heads: int
    inner: int
    batch: int
    length: int
    other: int
    groups: int = 0

    def encoder(self, attention: Attention = "sdpa", seed: int = 0) -> Encoder:
        """The model in eval mode, the same weights for the same seed."""
        torch.manual_seed(seed)
        sizes = {
            "hidden_size": self.width, "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "intermediate_size": self.inner, "attn_implementation": attention,
        }  # fmt: skip
        made: nn.Module
        if self.family == "bert":
            made = BertModel(BertConfig(vocab_size=self.other, **sizes), add_pooling_layer=False)
            features = mean_state
        elif self.family == "clip":
            made = CLIPVisionModel(CLIPVisionConfig(image_size=self.length, patch_size=self.other, **sizes))
            features = vision_features
        else:
            made = LlamaModel(
                LlamaConfig(vocab_size=self.other, num_key_value_heads=self.groups, use_cache=False, **sizes)
            )
            features = last_state
        return Encoder(made.eval(), features, source=self.name)

    def classifier(self, classes: int = 4, attention: Attention = "sdpa", seed: int = 0) -> Classifier:
        """The model under a frozen random head."""
        encoder = self.encoder(attention, seed)
        return Classifier(encoder, Head(normal((classes, self.width), seed) / self.width**0.5))

    def inputs(self, rows: int | None = None, seed: int = 0) -> Tensor:
        """A batch: token ids of shape (N, length), or images of shape (N, 3, length, length)."""
        count = self.batch if rows is None else rows
        if self.family == "clip":
            return normal((count, 3, self.length, self.length), seed)
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(self.other, (count, self.length), generator=generator)


def normal(shape: tuple[int, ...], seed: int) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def mean_state(model: nn.Module, batch: Batch) -> Tensor:
    """The mean of the last layer's states; rows of one length need no mask."""
    states: Tensor = model(input_ids=batch).last_hidden_state
    return states.mean(1)


def last_state(model: nn.Module, batch: Batch) -> Tensor:
    """The last token's state."""
    states: Tensor = model(input_ids=batch, use_cache=False).last_hidden_state
    return states[:, -1]


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("minilm", "bert", 6, 384, 12, 1536, batch=32, length=64, other=30522),
        Shape("vit-b-32", "clip", 12, 768, 12, 3072, batch=16, length=224, other=32),
        Shape("vit-l-14", "clip", 24, 1024, 16, 4096, batch=32, length=224, other=14),
        Shape("decoder-1b", "llama", 16, 2048, 32, 8192, batch=8, length=256, other=128256, groups=8),
        # for trying out the benchmarks themselves
        Shape("tiny-text", "bert", 2, 16, 2, 32, batch=3, length=5, other=50),
        Shape("tiny-vision", "clip", 2, 16, 2, 32, batch=3, length=8, other=4),
        Shape("tiny-vision-deep", "clip", 4, 16, 2, 32, batch=3, length=8, other=4),
        Shape("tiny-decoder", "llama", 2, 16, 4, 32, batch=3, length=5, other=50, groups=2),
    )
}
DEFAULT = {"cpu": ("minilm", "vit-b-32"), "cuda": ("vit-b-32", "vit-l-14", "decoder-1b")}
