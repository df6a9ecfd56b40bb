"""Encoders from directories in transformers' format."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tauspan import store
from tauspan.core.errors import ModelError, StoreError, UsageError, listed
from tauspan.models import folders
from tauspan.models.dense import Behind, layers
from tauspan.models.encoder import Batch, Encoder, Inputs, positions
from tauspan.models.extras import quiet, require_extra
from tauspan.models.home import Home, home_of
from tauspan.models.language import States
from tauspan.models.languages import as_stored, language_kind, language_of
from tauspan.models.pooling import (
    last_token,
    mean_pooled,
    pooled_text,
    projected_text,
    reading_path,
    sentences,
)
from tauspan.models.processing import image_inputs
from tauspan.models.sources import weights_of
from tauspan.models.towers import (
    TOWERS,
    image_features,
    logit_scale,
    require_one_kind,
    text_features,
    tokens_of,
)
from tauspan.models.trial import sample_pictures, tried
from tauspan.models.vision import told, vision_features

_TEXT_SCALE = 20.0  # logits = 20 cos(z, w): the usual factor of sentence encoders
_MASKED = {"vit_mae": "ViTModel"}
_WORDS: dict[Any, str] = {
    pooled_text: "the text tower's pooled output",
    projected_text: "the projected text embedding",
}


def load(directory: Path, source: str, language: int | None = None) -> Encoder:
    """The encoder in a transformers directory: text (BERT, GPT-2, Llama, T5, ...), image-text (CLIP, ...) or vision.

    Texts are pooled, cut and given a prompt as the files of sentence-transformers say, if there are any; dense layers
    behind the pooling are frozen, as heads are. Otherwise the
    features are the last token's state for decoders, and the mean state over real tokens for encoders. A text tower gives
    its own pooled output, or its projection if the architecture has one. In an encoder-decoder model the encoder reads
    the text, and the decoder is not trained.

    Image-text models give their projected image embedding. Vision models give the first of these that they have: a
    projection, the pooled output, the class token, the mean over positions. Images are converted as by the model's own
    processor. `print(encoder)` shows which features were chosen.

    With `language` a language model is read: its features are the states of that many positions, and
    `Encoder.language` holds its token table.

    Raises:
        ModelError: the model reads audio or several kinds of input, pools in an unknown way, or draws random numbers.
    """
    transformers = require_extra("transformers", "transformers", f"loading {source!r}")
    if not (directory / "config.json").is_file():
        sentences(directory)  # raises an error that says where sentence-transformers keeps it
        raise ModelError(f"{directory} has no config.json: it is not a directory that transformers wrote.")
    weights = weights_of(directory)
    config = store.read_json(directory / "config.json")
    kind = config.get("model_type")
    if not kind:
        raise ModelError(
            f"{directory}/config.json has no `model_type`. For timm and open_clip write local-dir:{directory}."
        )
    require_one_kind(config, directory)
    _require_unmasked(kind, directory)
    if language is not None:
        return _language(transformers, config, directory, weights, source, language)
    model: Any = _pretrained(transformers, _family(transformers, config), directory)
    home = home_of(directory, weights, model)
    if kind in TOWERS:
        return tried(_towers(transformers, model, kind, directory, source, home))
    if model.main_input_name == "pixel_values":
        inputs, extras = image_inputs(directory), copies(directory)
        encoder = tried(Encoder(model, vision_features, inputs, source=source, save_extras=extras, home=home))
        encoder.pooling = told(model, encoder.encode(sample_pictures(encoder)))
        return encoder
    if model.main_input_name != "input_ids":
        raise ModelError(
            f"{source} is a {type(model).__name__}, which reads {model.main_input_name}; texts and images are read. "
            "Pass a module that maps tensors to features, and a task of tensors (`Task.from_tensors`)."
        )
    return tried(_text(transformers, model, kind, directory, source, home))


def _text(
    transformers: Any, model: Any, kind: str, directory: Path, source: str, home: Home | None
) -> Encoder:
    asked = sentences(directory)
    tokenizer = _tokenizer(transformers, directory, asked.lower)
    features = asked.pooling or _usual(model, kind)
    behind = layers(directory)
    if behind:
        features = Behind(features, behind)
    return Encoder(
        model,
        features,
        Inputs("text", tokens_of(kind, model, tokenizer), limit=asked.max_tokens, prompt=asked.prompt),
        source=source,
        label_features=features,
        logit_scale=_TEXT_SCALE,
        prefixes=reading_path(model),
        save_extras=copies(directory),
        pooling=_WORDS.get(features),
        home=home,
    )


def _language(
    transformers: Any, config: Mapping[str, Any], directory: Path, weights: Path, source: str, length: int
) -> Encoder:
    """A language model whose texts have at most `length` tokens."""
    if length < 2:
        raise UsageError(
            f"language={length}: a text of a language model has at least 2 tokens, one to predict."
        )
    of = language_kind(config, source)
    try:
        full = _pretrained(transformers, getattr(transformers, of.family), directory)
    except StoreError as error:
        if of.decoder:
            raise
        raise ModelError(  # an encoder, as most directories of BERT and its like are
            f"{source} is not the whole of {of.kind}: {error} Load it without `language`, or take a checkpoint that was "
            "saved with its head."
        ) from error
    most = positions(full)
    if most is not None and length > most:
        raise UsageError(
            f"language={length}, and {source} has positions for {most} tokens: say language={most}, or fewer."
        )
    inputs = Inputs("text", _tokenizer(transformers, directory), limit=length)
    model, language = language_of(full, of, inputs, length, source)
    home = home_of(directory, weights, model)
    encoder = Encoder(
        model, States(length, of.decoder), inputs, source=source, save_extras=copies(directory), home=home
    )
    encoder.language = language if home is None else as_stored(language, home.carried)
    return tried(encoder)


def _towers(
    transformers: Any, model: Any, kind: str, directory: Path, source: str, home: Home | None
) -> Encoder:
    tokenizer = tokens_of(kind, model, _tokenizer(transformers, directory))
    return Encoder(
        model,
        image_features,
        dataclasses.replace(image_inputs(directory), tokenizer=tokenizer),
        source=source,
        label_features=text_features,
        logit_scale=logit_scale(model),
        prefixes=TOWERS[kind],
        save_extras=copies(directory),
        pooling="the projected image embedding",
        home=home,
    )


def _usual(model: Any, kind: str) -> Callable[[nn.Module, Batch], Tensor]:
    """The default pooling of a text model, where no file gives one."""
    if type(model).__name__.endswith("WithProjection"):
        return projected_text
    if kind.endswith("_text_model"):
        return pooled_text
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    is_decoder = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not hasattr(model, "encoder")
    return last_token if is_decoder else mean_pooled


def _family(transformers: Any, config: Mapping[str, Any]) -> Any:
    """The transformers class for a directory: an encoder saved alone, a tower with its projection, or the base model."""
    architecture = str((config.get("architectures") or [""])[0])
    if architecture.endswith("WithProjection") and hasattr(transformers, architecture):
        return getattr(transformers, architecture)
    return (
        transformers.AutoModelForTextEncoding
        if architecture.endswith("EncoderModel")
        else transformers.AutoModel
    )


def _require_unmasked(kind: str, directory: Path) -> None:
    """Raise for models that mask random parts of an image at each call; their encoder without masks is another class."""
    if kind in _MASKED:
        raise ModelError(
            f"{directory} is a {kind}, which hides a random part of each image, so its features are random. Load its "
            f"encoder alone and save that: transformers.{_MASKED[kind]}.from_pretrained(OLD).save_pretrained(NEW)."
        )


def _pretrained(transformers: Any, family: Any, directory: Path) -> nn.Module:
    """The model in float32; missing weights or weights of another shape are an error, never random.

    Attention is fused if the model supports it, which is transformers' default; the option itself is not set because
    models without attention refuse it. A pooler that the checkpoint lacks is left out.
    """
    options: dict[str, Any] = {
        "local_files_only": True, "use_safetensors": True, "trust_remote_code": False, "dtype": torch.float32,
        "output_loading_info": True,
    }  # fmt: skip
    try:
        with quiet(transformers):
            model, info = family.from_pretrained(directory, **options)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        if "ignore_mismatched_sizes" in str(
            error
        ):  # transformers logs which tensors, and does not say it here
            raise ModelError(_mismatched(transformers, family, directory, options)) from error
        raise ModelError(f"transformers could not load {directory}: {error}") from error
    missing = set(info["missing_keys"])
    pooler = {name for name, _ in model.named_parameters() if name.startswith("pooler.")}
    if pooler and pooler <= missing:  # many checkpoints lack it, and transformers fills it at random
        model.pooler = None
        missing -= pooler
    if missing:
        raise StoreError(
            f"{directory} lacks {len(missing)} weights of {type(model).__name__} ({listed(sorted(missing))})."
        )
    result: nn.Module = model.eval()
    return result


def _mismatched(transformers: Any, family: Any, directory: Path, options: Mapping[str, Any]) -> str:
    """Which tensor of the files has another shape than the configuration says."""
    with quiet(transformers):
        _, info = family.from_pretrained(directory, **options, ignore_mismatched_sizes=True)
    name, stored, made = sorted(info["mismatched_keys"], key=lambda one: str(one[0]))[0]
    more = len(info["mismatched_keys"]) - 1
    return (
        f"{directory}: {name!r} has shape {tuple(stored)} in the files, and config.json makes it {tuple(made)}"
        f"{f', and {more} more do not fit' if more else ''}: the configuration is that of another model, or was "
        "edited. Put the config.json that belongs to the weights beside them."
    )


def _tokenizer(transformers: Any, directory: Path, lower: bool = False) -> Any:
    """The tokenizer, padding on the right; with `lower` texts are lower-cased, as sentence-transformers can require."""
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"{directory} has no usable tokenizer ({str(error).partition(chr(10))[0]}): put the files of the model's own "
            "beside the weights, such as tokenizer.json."
        ) from error
    if len(tokenizer) <= len(
        tokenizer.all_special_tokens
    ):  # without the files transformers makes an empty tokenizer
        raise ModelError(f"{directory} has no usable tokenizer: its vocabulary is empty. Add tokenizer.json.")
    if tokenizer.pad_token is None and tokenizer.eos_token is None:
        raise ModelError(
            f"the tokenizer in {directory} has neither a padding nor an end token, so texts of different "
            "lengths make no batch. Name a `pad_token` in its tokenizer_config.json."
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"  # on the left it would shift the positions of GPT-2 and its like
    if lower:
        _lower(tokenizer)
    return tokenizer


def _lower(tokenizer: Any) -> None:
    normalizers = require_extra("tokenizers.normalizers", "transformers", "lowering the case of texts")
    backend = tokenizer.backend_tokenizer
    before = [] if backend.normalizer is None else [backend.normalizer]
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *before])


def copies(directory: Path) -> Callable[[Any], None]:
    """A function that copies what a loader reads besides the model's weights: tokenizer, pooling and what follows it.

    `config.json` is not among them; it is written with the weights.
    """

    def copy(target: Path) -> None:
        files = [file for file in folders.beside(directory) if str(file) != folders.CONFIG]
        frozen = [file.relative_to(directory) for file in folders.parts(directory).values()]
        folders.copied(directory, target, [*files, *frozen])

    return copy
