"""`Inputs`: how raw texts, images and tensors become a batch."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tauspan.core.ahead import in_threads
from tauspan.core.errors import DataError, ModelError, UsageError
from tauspan.models.crop import random_box
from tauspan.models.extras import require_extra
from tauspan.models.pictures import is_picture, rgb

Modality = Literal["text", "image", "tensor"]
Interpolation = Literal["nearest-exact", "bilinear", "bicubic"]
Centre = Literal["transformers", "torchvision"]
Batch: TypeAlias = Tensor | Mapping[str, Tensor]
_PILLOW: dict[Interpolation, int] = {"nearest-exact": 0, "bilinear": 2, "bicubic": 3}  # Pillow's own numbers
_NO_LIMIT = 10**6  # a tokenizer that was saved without a limit reports one above this number


@dataclass(frozen=True)
class Inputs:
    """How raw task inputs become a batch: a tokenizer for text; resizing, cropping and statistics for images.

    Args:
        modality: `"text"`, `"image"` or `"tensor"`.
        tokenizer: called on a list of texts; only for text and for the prompts of an image model.
        size: side of the centre crop that the model reads, in pixels.
        mean: per channel, of pixels in [0, 1].
        std: per channel.
        resize: before the crop; a number is the shorter side (proportions are kept), a pair is height and width.
            None takes `size` as the shorter side.
        interpolation: `"bicubic"`, `"bilinear"` or `"nearest-exact"`, each as Pillow does it.
        centre: on which side a central crop has the odd pixel: as in `"transformers"` or in `"torchvision"`.
        processor: the model's own conversion of a picture (uint8 of shape (H, W, 3)) to its input, instead of all this;
            see `tauspan.models.processing`.
        limit: where texts are cut by default; None takes the tokenizer's own limit.
        prompt: a text put before every text.
    """

    modality: Modality = "tensor"
    tokenizer: Any = None
    size: int = 224
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    resize: int | tuple[int, int] | None = None
    interpolation: Interpolation = "bicubic"
    centre: Centre = "transformers"
    processor: Callable[[Any], Tensor] | None = None
    limit: int | None = None
    prompt: str = ""

    def encode(
        self,
        raw: Sequence[Any],
        max_tokens: int | None = None,
        crops: Sequence[random.Random] | None = None,
        positions: int | None = None,
    ) -> Batch:
        """A batch from raw inputs; texts are cut at `max_tokens` (at most `positions`) and padded to the longest.

        Images are Pillow images, or arrays of shape (H, W), (H, W, C) or (C, H, W) with one or three channels that hold
        bytes or floats in [0, 1]. Their sizes may differ; the batch has shape (N, 3, size, size). `crops` holds a source
        of random numbers for each image: a random part of the image (`tauspan.models.crop`) is then resized to that size.

        Raises:
            DataError: the inputs are not of this encoder's modality, tensors differ in shape, or a text has no token.
        """
        if self.modality == "image":
            return self._images(raw, crops)
        raw = list(raw)
        if self.modality == "text":
            if not all(isinstance(text, str) for text in raw):
                raise DataError(
                    f"this encoder reads text, and the task holds {type(raw[0]).__name__} inputs."
                )
            tokens = self.tokens([self.prompt + text for text in raw], max_tokens, positions)
            require_tokens(tokens, raw)
            return tokens
        if any(isinstance(item, str) for item in raw):
            raise self._text()
        try:
            tensors = [torch.as_tensor(item) for item in raw]
        except (
            TypeError,
            ValueError,
        ) as error:  # an array of a type that torch lacks, rows of unequal length
            raise DataError(
                f"a row cannot be a tensor: {error} Give arrays of float32 or int64, all of one shape."
            ) from error
        for row, tensor in enumerate(tensors):
            if tensor.shape != tensors[0].shape:
                raise DataError(
                    f"input 0 of a batch has shape {tuple(tensors[0].shape)} and input {row} has "
                    f"{tuple(tensor.shape)}: tensors are read as they are. Make all rows of one shape, or wrap the "
                    "model in an Encoder with Inputs('image'), which resizes images."
                )
        return torch.stack(tensors)

    def tokens(
        self, texts: Sequence[str], max_tokens: int | None, positions: int | None, *, spans: bool = False,
        targets: bool = False, marked: bool = False,
    ) -> dict[str, Tensor]:  # fmt: skip
        """The tokenizer's tensors for texts, cut at `max_tokens` or else the usual limit, and at most at `positions`.

        With `spans` also `offset_mapping`, the characters of each token. `targets` are what a decoder writes, which some
        tokenizers read in another language; texts that are `marked` have their special tokens.
        """
        if max_tokens is not None and (type(max_tokens) is not int or max_tokens < 1):
            raise UsageError(f"max_tokens={max_tokens!r}: it must be a whole number, at least 1.")
        own = getattr(self.tokenizer, "model_max_length", None)
        usual = self.limit or (own if isinstance(own, int) and own < _NO_LIMIT else None)
        allowed = [most for most in (max_tokens or usual, positions) if most is not None]
        given = {"text_target": list(texts)} if targets else {}
        made = self.tokenizer(
            *([] if targets else [list(texts)]), **given, padding=True, truncation=bool(allowed),
            max_length=min(allowed, default=None), return_tensors="pt", add_special_tokens=not marked,
            **({"return_offsets_mapping": True} if spans else {}),
        )  # fmt: skip
        return {name: tensor for name, tensor in made.items() if isinstance(tensor, Tensor)}

    @property
    def ahead(self) -> int:
        """The number of batches that are worth preparing in advance, since images take long to decode."""
        return 2 if self.modality == "image" else 0

    def _text(self) -> DataError:
        return DataError(f"this encoder reads {self.modality} inputs, and the task holds text.")

    def _images(self, raw: Sequence[Any], crops: Sequence[random.Random] | None) -> Tensor:
        """A batch of images, read by several threads; each is accessed once, since every access may decode it."""

        def read(place: int) -> Tensor:
            image = raw[place]
            if isinstance(image, str):
                raise self._text()
            return self.pixels(image, None if crops is None else crops[place])

        return torch.stack(in_threads(read, range(len(raw))))

    def describe(self) -> str:
        """What determines the batch besides the raw inputs and the tokenizer, in one line."""
        if self.processor is not None:
            return repr((self.modality, self.processor))
        facts: tuple[Any, ...] = (
            self.modality,
            self.size,
            self.resize,
            self.interpolation,
            self.mean,
            self.std,
        )
        if self.centre != "transformers":
            facts = (*facts, self.centre)
        if self.limit is not None or self.prompt:
            return repr((self.modality, self.limit, self.prompt))
        return repr(facts if self.modality == "image" else self.modality)

    def told(self) -> str:
        """What the inputs are, in words, for `print(encoder)`."""
        if self.modality == "text":
            cut = "" if self.limit is None else f", cut at {self.limit} tokens"
            return f"text{cut}{f', after {self.prompt!r}' if self.prompt else ''}"
        if self.modality == "tensor":
            return "tensors"
        if self.processor is not None:
            return "images, by the model's own processor"
        return f"images of {self.size} x {self.size} pixels"

    def pixels(self, raw: Any, draw: random.Random | None = None) -> Tensor:
        """One image, resized, cropped at the centre or at random, and normalised."""
        found = rgb(raw, "an image") if is_picture(raw) else raw
        if isinstance(found, np.ndarray) and not found.flags.writeable:
            found = found.copy()  # torch warns about arrays that are not writeable
        image = torch.as_tensor(found)
        shape = tuple(image.shape)
        if image.ndim == 2:
            image = image.unsqueeze(-1)
        if image.ndim == 3 and (image.shape[0] not in (1, 3) or image.shape[-1] in (1, 3)):
            image = image.permute(2, 0, 1)
        if image.ndim != 3 or image.shape[0] not in (1, 3) or 0 in shape:
            raise DataError(
                f"an image has shape {shape}: it must be (H, W), (H, W, C) or (C, H, W) with one or three channels."
            )
        _require_scale(image)
        if self.processor is not None:
            if draw is not None:
                raise DataError(
                    'random parts of images are not made by a model\'s own processor: augment="none".'
                )
            return self.processor(image.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())
        pixels = self._central(image) if draw is None else self._anywhere(image, draw)
        scaled = pixels.float().div(255.0 if image.dtype == torch.uint8 else 1.0)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        return (scaled - mean) / std

    def _central(self, pixels: Tensor) -> Tensor:
        """The image resized, then cropped at the centre, as in evaluation."""
        height, width = pixels.shape[1:]
        wanted = self.size if self.resize is None else self.resize
        if isinstance(wanted, int):
            shorter = min(height, width)
            wanted = (wanted * height // shorter, wanted * width // shorter)
        pixels = self._resized(pixels, wanted)
        top, left = (_begin(side - self.size, self.centre) for side in wanted)
        bottom, right = wanted[0] - self.size - top, wanted[1] - self.size - left
        # a negative border crops; where the image is smaller than the crop, the border is black
        return F.pad(pixels, (-left, -right, -top, -bottom))

    def _anywhere(self, pixels: Tensor, draw: random.Random) -> Tensor:
        """A random part of the image, resized."""
        box = random_box(pixels.shape[1], pixels.shape[2], draw)
        part = pixels[:, box.top : box.top + box.height, box.left : box.left + box.width]
        return self._resized(part, (self.size, self.size))

    def _resized(self, pixels: Tensor, wanted: tuple[int, int]) -> Tensor:
        """Resize pixels: bytes with Pillow, which rounds after each direction; floats in [0, 1] with torch."""
        if tuple(pixels.shape[1:]) == tuple(wanted):
            return pixels
        if pixels.dtype == torch.uint8:
            return _by_pillow(pixels, wanted, self.interpolation)
        smooth = self.interpolation != "nearest-exact"
        exact = pixels.float()[None]
        resized = F.interpolate(exact, size=wanted, mode=self.interpolation, antialias=smooth)[0]
        return resized.clamp(0, 1)


def _require_scale(image: Tensor) -> None:
    """Raise unless pixels are bytes, or floats in [0, 1]."""
    if image.dtype == torch.uint8:
        return
    kind = str(image.dtype).removeprefix("torch.")
    if not image.is_floating_point():
        raise DataError(f"an image has {kind} values: give bytes (uint8, 0 to 255) or floats in [0, 1].")
    low, high = (float(bound) for bound in image.aminmax())
    if not (low >= 0 and high <= 1):  # NaN fails both comparisons
        raise DataError(
            f"an image has {kind} values from {low:g} to {high:g}: floats lie in [0, 1]. Divide by the largest value "
            "there is, or give bytes (uint8, 0 to 255)."
        )


def _begin(over: int, centre: Centre) -> int:
    """The first pixel of a central crop, from the number of pixels to remove; negative if a border is added."""
    if centre == "transformers":
        return over // 2
    return -(-over // 2) if over < 0 else round(over / 2)  # torchvision's rule: round half to even


def _by_pillow(pixels: Tensor, wanted: tuple[int, int], interpolation: Interpolation) -> Tensor:
    """Resize bytes of shape (1 or 3, H, W) to (height, width), bit for bit as image processors that use Pillow do."""
    image = require_extra("PIL.Image", "data", "resizing an image")
    grey = len(pixels) == 1
    array = (pixels[0] if grey else pixels.permute(1, 2, 0)).contiguous().numpy()
    resized = image.fromarray(array).resize(wanted[::-1], _PILLOW[interpolation])
    made = torch.from_numpy(np.array(resized))
    return made[None] if grey else made.permute(2, 0, 1)


_STRANGE = 8  # unknown tokens in some rows, from which on something is wrong


def require_known(ids: Tensor, words: int, tokenizer: Any) -> None:
    """Raise if a token is none of the model's, which has so many `words`.

    Raises:
        ModelError: the tokenizer is that of another model.
    """
    most = int(ids.max()) if ids.numel() else 0
    if most >= words:
        raise ModelError(
            f"the tokenizer, of {len(tokenizer)} tokens, gives the token {most}, and the model knows {words}: it is that "
            "of another model. Put the tokenizer's files that belong to the weights beside them."
        )


def require_words(ids: Tensor, tokenizer: Any) -> None:
    """Raise if nearly every token of these rows is the one for unknown words."""
    unknown, special = getattr(tokenizer, "unk_token_id", None), getattr(tokenizer, "all_special_ids", None)
    others = [
        getattr(tokenizer, f"{kind}_token_id", None) for kind in ("pad", "eos", "bos", "cls", "sep", "mask")
    ]
    if unknown is None or not special or unknown in others:
        return
    strange = int((ids == unknown).sum())
    if strange < _STRANGE:
        return
    words = ~torch.isin(ids, torch.tensor([one for one in special if one != unknown], device=ids.device))
    if strange > 0.95 * int(words.sum()):
        raise ModelError(
            f"{strange} of {int(words.sum())} tokens of these rows are the tokenizer's {tokenizer.unk_token!r}: it does "
            "not know their words, so their features mean nothing. Put the tokenizer's files that belong to the "
            "weights beside them, or take rows in a language that the model reads."
        )


def require_tokens(tokens: Mapping[str, Tensor], texts: Sequence[str]) -> None:
    """Raise if a text has no token: its feature would be that of padding."""
    ids, mask = tokens.get("input_ids"), tokens.get("attention_mask")
    if ids is None or (ids.numel() and mask is None):
        return
    counts = ids.new_zeros(len(texts)) if mask is None or not ids.numel() else mask.sum(-1)
    empty = (counts == 0).nonzero().flatten().tolist()
    if empty:
        raise DataError(
            f"input {empty[0]} of {len(texts)}, {texts[empty[0]][:40]!r}, has no token for this model's tokenizer, so "
            "it has no features. Leave such texts out."
        )
