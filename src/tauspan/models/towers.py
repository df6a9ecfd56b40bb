"""Image-text models: the features of each tower, and errors for models that read other pairs of inputs."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from tauspan.core.errors import ModelError
from tauspan.models.encoder import Batch, positions

# by type, for models whose image and text features are compared by cosine: the prefixes of the image tower's parameters
TOWERS: dict[str, tuple[str, ...]] = {
    "clip": ("vision_model.", "visual_projection."),
    "metaclip_2": ("vision_model.", "visual_projection."),
    "chinese_clip": ("vision_model.", "visual_projection."),
    "siglip": ("vision_model.",),
}
_WHOLE_LENGTH = {"siglip"}  # trained on texts padded to the model's full length, without a mask
_PARTS = ("vision_config", "audio_config", "speech_config", "qformer_config")


def require_one_kind(config: Mapping[str, Any], directory: Any) -> None:
    """Raise for models that read several kinds of input, except the image-text models in `TOWERS`."""
    kind = config["model_type"]
    parts = [name.removesuffix("_config") for name in _PARTS if isinstance(config.get(name), Mapping)]
    if parts and kind not in TOWERS:
        raise ModelError(
            f"{directory} is a {kind}, whose configuration has parts for {' and '.join(parts)} beside others. Read "
            f"are models of texts alone or images alone, and the image-text models {', '.join(TOWERS)}. Load the part "
            "that is meant with transformers, and pass a module that maps a batch to features."
        )


def image_features(model: nn.Module, batch: Batch) -> Tensor:
    """The projected image embedding, before its normalisation."""
    embed: Any = model.get_image_features
    return _embedding(embed(pixel_values=batch))


def text_features(model: nn.Module, batch: Batch) -> Tensor:
    """The projected text embedding, before its normalisation."""
    assert isinstance(batch, Mapping)  # noqa: S101 - tokenizers make mappings
    embed: Any = model.get_text_features
    return _embedding(embed(**batch))


def _embedding(output: Any) -> Tensor:
    found: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return found


def logit_scale(model: nn.Module) -> float:
    """The factor on cosine similarities; SigLIP's bias is left out, since it shifts the logits of all classes equally."""
    scale: Any = model.logit_scale
    return math.exp(scale.item())


@dataclass(frozen=True)
class WholeLength:
    """A tokenizer that pads every text to the model's full length and returns no attention mask."""

    tokenizer: Any
    length: int

    def __call__(self, texts: list[str], **_: Any) -> dict[str, Tensor]:
        """The token ids, shape (N, length), under `input_ids`."""
        made = self.tokenizer(
            texts, padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
        )
        return {"input_ids": made["input_ids"]}


def tokens_of(kind: str, model: nn.Module, tokenizer: Any) -> Callable[..., Any]:
    """The tokenizer, used as in the training of the text tower."""
    length = positions(model)
    return WholeLength(tokenizer, length) if kind in _WHOLE_LENGTH and length is not None else tokenizer
