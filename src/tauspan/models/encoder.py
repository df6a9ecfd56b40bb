"""`Encoder` (inputs to features), `Head` (features to logits, frozen) and `Classifier` (both)."""

import copy
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tauspan.ahead import in_threads
from tauspan.errors import DataError, MismatchError, ModelError
from tauspan.models.crop import random_box

if TYPE_CHECKING:
    from tauspan.models.frozen import Frozen, Origin, Prediction
    from tauspan.models.home import Home

Modality = Literal["text", "image", "tensor"]
Interpolation = Literal["nearest-exact", "bilinear", "bicubic"]
Batch: TypeAlias = Tensor | Mapping[str, Tensor]
_PROMPTS = 256  # that go through a text tower at once


@dataclass(frozen=True)
class Inputs:
    """How raw task inputs become a batch: a tokenizer for text; resizing, cropping and statistics for images.

    Args:
        modality: `"text"`, `"image"` or `"tensor"`.
        tokenizer: called on a list of texts; only for text and for the prompts of an image model.
        size: side in pixels of the centre crop that the model reads.
        mean: per channel, of pixels in [0, 1].
        std: per channel.
        resize: before the crop; a number is the shorter side (proportions are kept), a pair is height and width.
            None takes `size` as the shorter side.
        interpolation: `"bicubic"`, `"bilinear"` or `"nearest-exact"`, each as Pillow does it.
    """

    modality: Modality = "tensor"
    tokenizer: Any = None
    size: int = 224
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    resize: int | tuple[int, int] | None = None
    interpolation: Interpolation = "bicubic"

    def encode(
        self, raw: Sequence[Any], max_tokens: int | None = None, crops: Sequence[random.Random] | None = None
    ) -> Batch:
        """A batch from raw inputs; texts are cut at `max_tokens` and padded to the longest.

        Images are (H, W), (H, W, C) or (C, H, W) with one or three channels, bytes or floats in [0, 1], each of
        its own size; they become (N, 3, size, size). With `crops`, a source of random numbers for each image, a random
        part of it (`tauspan.models.crop`) is resized to that square; nothing else is read of them.

        Raises:
            DataError: the inputs are not of this encoder's modality, or tensors differ in shape.
        """
        if self.modality == "image":
            return self._images(raw, crops)
        raw = list(raw)
        if self.modality == "text":
            if not all(isinstance(text, str) for text in raw):
                raise DataError(
                    f"this encoder reads text, and the task holds {type(raw[0]).__name__} inputs."
                )
            tokens = self.tokenizer(
                raw, padding=True, truncation=True, max_length=max_tokens, return_tensors="pt"
            )
            return {name: tensor for name, tensor in tokens.items() if isinstance(tensor, Tensor)}
        if any(isinstance(item, str) for item in raw):
            raise self._text()
        tensors = [torch.as_tensor(item) for item in raw]
        for row, tensor in enumerate(tensors):
            if tensor.shape != tensors[0].shape:
                raise DataError(
                    f"input 0 of a batch has shape {tuple(tensors[0].shape)} and input {row} has "
                    f"{tuple(tensor.shape)}: tensors are read as they are. Make all rows of one shape, or wrap the "
                    "model in an Encoder with Inputs('image'), which resizes images."
                )
        return torch.stack(tensors)

    @property
    def ahead(self) -> int:
        """How many batches are worth preparing before they are asked for: images take long to decode."""
        return 2 if self.modality == "image" else 0

    def _text(self) -> DataError:
        return DataError(f"this encoder reads {self.modality} inputs, and the task holds text.")

    def _images(self, raw: Sequence[Any], crops: Sequence[random.Random] | None) -> Tensor:
        """Each image looked at once, since a lazy sequence decodes it whenever it is; several at a time."""

        def pixels(place: int) -> Tensor:
            image = raw[place]
            if isinstance(image, str):
                raise self._text()
            return self._pixels(torch.as_tensor(image), None if crops is None else crops[place])

        return torch.stack(in_threads(pixels, range(len(raw))))

    def describe(self) -> str:
        """What decides the batch besides the raw inputs and the tokenizer, as one line."""
        facts = (self.modality, self.size, self.resize, self.interpolation, self.mean, self.std)
        return repr(facts if self.modality == "image" else self.modality)

    def _pixels(self, image: Tensor, draw: random.Random | None) -> Tensor:
        """One image, resized, cropped at the centre or at random, and normalised."""
        shape = tuple(image.shape)
        if image.ndim == 2:
            image = image.unsqueeze(-1)
        if image.ndim == 3 and (image.shape[0] not in (1, 3) or image.shape[-1] in (1, 3)):
            image = image.permute(2, 0, 1)
        if image.ndim != 3 or image.shape[0] not in (1, 3) or 0 in shape:
            raise DataError(
                f"an image has shape {shape}: it must be (H, W), (H, W, C) or (C, H, W) with one or three channels."
            )
        scale = 255.0 if image.dtype == torch.uint8 else 1.0
        pixels = image.float().div(scale).expand(3, -1, -1)
        pixels = self._central(pixels) if draw is None else self._anywhere(pixels, draw)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        return (pixels - mean) / std

    def _central(self, pixels: Tensor) -> Tensor:
        """Resized, then cropped at the centre: what evaluation reads."""
        height, width = pixels.shape[1:]
        wanted = self.size if self.resize is None else self.resize
        if isinstance(wanted, int):
            shorter = min(height, width)
            wanted = (wanted * height // shorter, wanted * width // shorter)
        pixels = self._resized(pixels, wanted)
        top, left = ((side - self.size) // 2 for side in wanted)
        bottom, right = wanted[0] - self.size - top, wanted[1] - self.size - left
        # a negative border crops; where the image is smaller than the crop, the border is black
        return F.pad(pixels, (-left, -right, -top, -bottom))

    def _anywhere(self, pixels: Tensor, draw: random.Random) -> Tensor:
        """A random part, resized."""
        box = random_box(pixels.shape[1], pixels.shape[2], draw)
        part = pixels[:, box.top : box.top + box.height, box.left : box.left + box.width]
        return self._resized(part, (self.size, self.size))

    def _resized(self, pixels: Tensor, wanted: tuple[int, int]) -> Tensor:
        smooth = self.interpolation != "nearest-exact"
        resized = F.interpolate(pixels[None], size=wanted, mode=self.interpolation, antialias=smooth)[0]
        return resized.clamp(0, 1)


@dataclass(frozen=True)
class Whole:
    """What a trimmed encoder was part of: the whole's fingerprint, and the part's own at that time."""

    fingerprint: str
    part: str


class Encoder(nn.Module):
    """A pre-trained model as a map from a batch to features of shape (N, d), before any normalisation.

    Args:
        backbone: the model itself; task vectors carry *its* parameter names.
        features: reads the features off the backbone: `features(backbone, batch) -> (N, d)`.
        inputs: how raw task inputs become a batch.
        source: where the model came from (a directory, a hub id), for provenance.
        label_features: embeds label prompts for a zero-shot head, `label_features(backbone, batch) -> (K, d)`;
            None where there is no text tower.
        logit_scale: the factor on cosine similarities in a zero-shot head (20 for sentence encoders,
            exp(logit_scale) for CLIP).
        prefixes: parameter-name prefixes that lie on the path to the features; () means all.
        save_extras: writes what else belongs into a saved directory (tokenizer, pooling), or None.
        home: the files that the backbone came from, with all that it lacks of them; None where it came from none.

    Attributes:
        heads: frozen heads that took long to build, by what they are made of; kept by `tauspan.tasks.build_head`.
        frozen: the frozen head of each task that one was built for, by the task's name; what `predict` uses and
            `tauspan.save` writes.
        origin: of an edited encoder, the pre-trained one that its heads are made from; else None.
        edit: how it was edited, in words.
        whole: what this is a part of, if `trimmed` made it; else None.
    """

    def __init__(
        self,
        backbone: nn.Module,
        features: Callable[[nn.Module, Batch], Tensor] | None = None,
        inputs: Inputs | None = None,
        *,
        source: str = "",
        label_features: Callable[[nn.Module, Batch], Tensor] | None = None,
        logit_scale: float = 20.0,
        prefixes: tuple[str, ...] = (),
        save_extras: Callable[[Any], None] | None = None,
        home: "Home | None" = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.training = backbone.training  # in the mode of what it wraps
        self.features = features or call
        self.inputs = inputs or Inputs()
        self.source = source or type(backbone).__name__
        self.label_features = label_features
        self.logit_scale = logit_scale
        self.prefixes = prefixes
        self.save_extras = save_extras
        self.home = home
        self.heads: dict[str, Head] = {}
        self.frozen: dict[str, Frozen] = {}
        self.origin: Origin | None = None
        self.edit = ""
        self.whole: Whole | None = None

    def forward(self, batch: Batch) -> Tensor:
        """Features of shape (N, d)."""
        return self.features(self.backbone, batch)

    def predict(
        self, rows: Sequence[Any], task: str | None = None, *, batch_size: int = 64
    ) -> "list[Prediction]":
        """Classes and their probabilities, under a frozen head that this encoder keeps.

        Args:
            rows: raw texts, images or tensors.
            task: whose head; may be left out if there is only one.
            batch_size: rows per forward pass.

        Raises:
            UsageError: no head, or several and no task named.
            NonFiniteError: NaN or infinity in the logits of a row.

        Example:
            >>> from tauspan.models.frozen import Frozen
            >>> encoder = Encoder(nn.Linear(2, 2, bias=False).eval())
            >>> encoder.frozen["sides"] = Frozen("sides", ("left", "right"), Head(torch.eye(2)))
            >>> list(encoder.predict([torch.ones(2)])[0].probabilities)
            ['left', 'right']
        """
        from tauspan.models.frozen import chosen_head, predicted

        frozen = chosen_head(self.frozen, task, self.source)
        first = next(self.backbone.parameters(), None)
        head = frozen.head if first is None else copy.deepcopy(frozen.head).to(first.device)
        return predicted(self, Classifier(self, head), rows, frozen, batch_size)

    def describe(self) -> str:
        """What decides features and heads besides the weights: pooling, label tower, logit scale, preprocessing.

        Functions count by name, so that two processes, and a run that is resumed, say the same.
        """
        towers = f"{_named(self.features)}|{_named(self.label_features)}"
        return f"{towers}|{self.logit_scale!r}|{self.inputs.describe()}"

    def encode(
        self, raw: Sequence[Any], max_tokens: int | None = None, crops: Sequence[random.Random] | None = None
    ) -> Batch:
        """A batch on the backbone's device from raw texts, images or tensors; see `Inputs.encode`."""
        first = next(self.backbone.parameters(), None)
        batch = self.inputs.encode(raw, max_tokens, crops)
        return batch if first is None else to_device(batch, first.device)

    @torch.no_grad()
    def embed_labels(self, prompts: Sequence[str]) -> Tensor:
        """Unit-norm features of label prompts, shape (K, d); a prompt is cut where the text tower ends, as CLIP does."""
        if self.label_features is None:
            raise ModelError(
                f"{self.source} has no text tower to embed prompts with: take class prototypes, a linear probe "
                '(`head_from="prototypes"` or `"probe"`), or a head of your own.'
            )
        if self.whole is not None and self.label_features is not self.features:
            raise ModelError(
                f"{self.source} was trimmed and has no text tower any more, and this task's head was not built before. "
                "Call `build_head` for every task on the whole encoder, then `trimmed`."
            )
        device = next(self.backbone.parameters()).device
        parts, most = [], _longest(self.backbone, self.inputs.tokenizer)
        for begin in range(0, len(prompts), _PROMPTS):
            some = list(prompts[begin : begin + _PROMPTS])
            tokens = self.inputs.tokenizer(
                some, padding=True, truncation=True, max_length=most, return_tensors="pt"
            )
            batch = to_device(dict(tokens), device)
            parts.append(F.normalize(self.label_features(self.backbone, batch).detach(), dim=-1))
        return torch.cat(parts)


def _longest(backbone: nn.Module, tokenizer: Any) -> int | None:
    """The most tokens of a prompt where the tokenizer, saved without its limit, would pass more than has positions."""
    config = getattr(backbone, "config", None)
    positions: int | None = getattr(getattr(config, "text_config", config), "max_position_embeddings", None)
    limit = getattr(tokenizer, "model_max_length", 0)
    return positions if positions is not None and limit > positions else None


def _named(function: Any) -> str:
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def call(module: nn.Module, batch: Batch) -> Tensor:
    """The module applied to its batch, reduced to one tensor; see `single_tensor`."""
    return single_tensor(module(**batch) if isinstance(batch, Mapping) else module(batch))


OUTPUT_FIELDS = ("logits", "image_embeds", "text_embeds", "pooler_output", "last_hidden_state")


def single_tensor(output: Any) -> Tensor:
    """The one tensor that a model's output stands for: itself, or the first of `OUTPUT_FIELDS` it has.

    Raises:
        ModelError: no such tensor; wrap the model so that it returns one.
    """
    if isinstance(output, Tensor):
        return output
    for name in OUTPUT_FIELDS:
        value = getattr(output, name, None)
        if isinstance(value, Tensor):
            return value
    raise ModelError(
        f"the model returned {type(output).__name__}, which is no tensor and has none of "
        f"{', '.join(OUTPUT_FIELDS)}. Wrap it in a module that returns one tensor."
    )


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with every tensor on `device`."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    return {name: tensor.to(device) for name, tensor in batch.items()}


class Head(nn.Module):
    """A frozen linear map from features to logits: scale * (z / |z|) W^T + b.

    Args:
        weight: shape (K, d).
        bias: shape (K,), or None.
        scale: factor on the logits.
        normalize: divide features by their length first, as CLIP's zero-shot head does.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self, weight: Tensor, bias: Tensor | None = None, *, scale: float = 1.0, normalize: bool = False
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight.detach().clone())
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self.scale = scale
        self.normalize = normalize

    def forward(self, features: Tensor) -> Tensor:
        """Logits of shape (N, K) from features of shape (N, d)."""
        if features.shape[-1] != self.weight.shape[-1]:
            raise MismatchError(
                f"the head reads {self.weight.shape[-1]} features and the encoder gives {features.shape[-1]}."
            )
        unit = F.normalize(features, dim=-1) if self.normalize else features
        bias = None if self.bias is None else self.bias.to(unit.dtype)
        return F.linear(unit * self.scale, self.weight.to(unit.dtype), bias)


class Classifier(nn.Module):
    """An encoder under a frozen head; linearised at the encoder's output or at the logits."""

    def __init__(self, encoder: Encoder, head: Head) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, batch: Batch) -> Tensor:
        """Logits of shape (N, K)."""
        logits: Tensor = self.head(self.encoder(batch))
        return logits
