"""Pool a text model's states into one vector for each text, as sentence-transformers' files say if there are any."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from tauspan import store
from tauspan.core.errors import ModelError, listed
from tauspan.models.encoder import Batch

Pooling: TypeAlias = Callable[[nn.Module, Batch], Tensor]

_MODULES_FILE = "modules.json"  # in which sentence-transformers lists its layers
_POOLING_FOLDER = "1_Pooling"
_KNOWN = {"Transformer", "Pooling", "Dense", "Normalize"}
_OLDER = {
    "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max", "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}  # fmt: skip
_SETTINGS = [
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
]
_USUAL = {
    "method": "forward",
    "method_output_name": "last_hidden_state",
}  # how sentence-transformers calls a text model by default


def reader(model: Any) -> Any:
    """The module that reads the text: the encoder of an encoder-decoder model, else the model itself."""
    config = getattr(model, "config", None)
    return model.get_encoder() if getattr(config, "is_encoder_decoder", False) else model


def reading_path(model: nn.Module) -> tuple[str, ...]:
    """Name prefixes of the parameters of `reader(model)`; () if that is the whole model.

    A parameter that the encoder shares with the decoder may have its first name outside the encoder; that name is added.
    """
    reads = reader(model)
    if reads is model:
        return ()
    inside = next(f"{name}." for name, module in model.named_modules() if module is reads)
    own = {id(parameter) for parameter in reads.parameters()}
    shared = [name for name, p in model.named_parameters() if id(p) in own and not name.startswith(inside)]
    return (inside, *shared)


def hidden_states(model: nn.Module, batch: Batch) -> Tensor:
    """The last layer's states, shape (N, tokens, d); decoders keep no cache."""
    assert isinstance(batch, Mapping)  # noqa: S101 - text encoders always make mappings
    reads = reader(model)
    caches = reads is model and hasattr(getattr(model, "config", None), "use_cache")
    options = {"use_cache": False} if caches else {}
    states: Tensor = reads(**batch, **options).last_hidden_state
    return states


def _mask(batch: Batch) -> Tensor:
    """1 for a text's own tokens, 0 for padding, shape (N, tokens)."""
    assert isinstance(batch, Mapping)  # noqa: S101
    if "attention_mask" not in batch:
        raise ModelError(
            "the tokenizer gives no attention mask, so a text's tokens cannot be told from padding. Put `attention_mask` "
            "into its `model_input_names`."
        )
    return batch["attention_mask"]


def _mean(states: Tensor, mask: Tensor) -> Tensor:
    return (states * mask).sum(1) / mask.sum(1)


def _root_mean(states: Tensor, mask: Tensor) -> Tensor:
    return (states * mask).sum(1) / mask.sum(1).sqrt()


def _weighted_mean(states: Tensor, mask: Tensor) -> Tensor:
    weights = mask.cumsum(1) * mask
    return (states * weights).sum(1) / weights.sum(1)


def _max(states: Tensor, mask: Tensor) -> Tensor:
    largest: Tensor = states.masked_fill(mask == 0, float("-inf")).max(1).values
    return largest


def _first(states: Tensor, mask: Tensor) -> Tensor:
    return states[:, 0]


def _last(states: Tensor, mask: Tensor) -> Tensor:
    positions = torch.arange(mask.shape[1], device=mask.device).mul(mask.squeeze(-1)).argmax(1)
    return states[torch.arange(len(states), device=states.device), positions]


# by sentence-transformers' names: a function of states (N, tokens, d) and a mask (N, tokens, 1), and what it returns
POOLINGS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "cls": (_first, "the first token's state"),
    "max": (_max, "the largest value of each entry over tokens"),
    "mean": (_mean, "the mean state over tokens"),
    "mean_sqrt_len_tokens": (_root_mean, "the sum of states over the root of their number"),
    "weightedmean": (_weighted_mean, "the mean state over tokens, the n-th with weight n"),
    "lasttoken": (_last, "the last token's state"),
}


@dataclass(frozen=True)
class Pooled:
    """A text model's features: its last layer's states pooled over real tokens; several modes are concatenated.

    Args:
        modes: names of `POOLINGS`.

    Example:
        >>> str(Pooled(("cls", "mean")))
        "the first token's state, beside the mean state over tokens"
    """

    modes: tuple[str, ...]

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """Features of shape (N, number of modes times d)."""
        states = hidden_states(model, batch)
        mask = _mask(batch).unsqueeze(-1).to(states.dtype)
        parts = [POOLINGS[mode][0](states, mask) for mode in self.modes]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def __str__(self) -> str:
        return ", beside ".join(POOLINGS[mode][1] for mode in self.modes)


mean_pooled, first_token, last_token = Pooled(("mean",)), Pooled(("cls",)), Pooled(("lasttoken",))


def pooled_text(model: nn.Module, batch: Batch) -> Tensor:
    """The pooled output of a text tower, before any projection."""
    assert isinstance(batch, Mapping)  # noqa: S101
    found: Tensor = model(**batch).pooler_output
    return found


def projected_text(model: nn.Module, batch: Batch) -> Tensor:
    """The projected embedding of a text tower, before its normalisation."""
    assert isinstance(batch, Mapping)  # noqa: S101
    found: Tensor = model(**batch).text_embeds
    return found


# -- sentence-transformers' files ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Sentences:
    """What the files of sentence-transformers say about turning texts into features.

    Args:
        pooling: how it pools; None where no file says it.
        max_tokens: where it cuts texts; None leaves it to the tokenizer.
        lower: whether it lowers the case of texts.
        prompt: what it puts before every text.
    """

    pooling: Pooled | None = None
    max_tokens: int | None = None
    lower: bool = False
    prompt: str = ""


def sentences(directory: Path) -> Sentences:
    """What sentence-transformers would do with a directory, read off its files.

    Raises:
        ModelError: it would run a layer, or pool in a way, that is not known here: its features would be others.
    """
    modules = _modules(directory)
    pooling = directory / modules.get("Pooling", _POOLING_FOLDER) / "config.json"
    if "Pooling" in modules and not pooling.is_file():
        raise ModelError(
            f"{directory / _MODULES_FILE} lists a pooling, and {pooling} is not there, so it is not known what the "
            "features are. Get the whole model again, or save it with sentence-transformers."
        )
    pools, include = _pooling(pooling) if pooling.is_file() else (None, True)
    _require_width(pooling, directory)
    limit, lower = _transformer(directory)
    settings = _read(directory / "config_sentence_transformers.json")
    name = settings.get("default_prompt_name")
    prompt = str((settings.get("prompts") or {}).get(name, "")) if name else ""
    if prompt and not include:
        raise ModelError(
            f"{directory} puts {prompt!r} before every text and pools without it, which is not read here. Set "
            "`default_prompt_name` to null in config_sentence_transformers.json, or `include_prompt` to true in "
            f"{pooling}."
        )
    return Sentences(pools, limit, lower, prompt)


def _read(file: Path) -> dict[str, Any]:
    found = store.read_json(file) if file.is_file() else {}
    if not isinstance(found, dict):
        raise ModelError(f"{file} is no JSON object; save the model again with sentence-transformers.")
    return found


def _modules(directory: Path) -> dict[str, str]:
    """The folder of each layer that sentence-transformers stacks, by type; a type that is not supported is an error."""
    file = directory / _MODULES_FILE
    if not file.is_file():
        return {}
    found = {
        str(entry.get("type")).rpartition(".")[2]: str(entry.get("path")) for entry in store.read_json(file)
    }
    unknown = [kind for kind in found if kind not in _KNOWN]
    if unknown:
        raise ModelError(
            f"{file} asks for the layers {listed(unknown)}, which are not read from such a directory. Load "
            "it with sentence-transformers and pass a module that returns the features."
        )
    if found.get("Transformer"):
        raise ModelError(
            f"{file} keeps its transformer in {found['Transformer']!r}, as old versions of sentence-transformers did. "
            "Save the model again: SentenceTransformer(OLD).save(NEW)."
        )
    for path in found.values():
        if not (directory / path).resolve().is_relative_to(directory.resolve()):
            raise ModelError(f"{file} names the folder {path!r}, which leads out of {directory}.")
    return found


def _pooling(file: Path) -> tuple[Pooled, bool]:
    """The pooling that a file asks for, and whether prompts are pooled too.

    The file names the modes under one key, or in the older form has a boolean for each mode.
    """
    content = _read(file)
    chosen = content.get("pooling_mode")
    if (
        chosen is None
    ):  # the older form: its modes are concatenated in this order, and if none is set, the mean is taken
        on = [key for key, value in content.items() if key.startswith("pooling_mode_") and value]
        chosen = [mode for key, mode in _OLDER.items() if key in on] + [
            key for key in on if key not in _OLDER
        ]
        chosen = chosen or ["mean"]
    modes = (chosen,) if isinstance(chosen, str) else tuple(map(str, chosen))
    unknown = [mode for mode in modes if mode not in POOLINGS]
    if unknown or not modes:
        raise ModelError(
            f"{file} asks for the pooling {listed(unknown) or 'of no mode'}; known: {', '.join(POOLINGS)}."
        )
    single = {pooled.modes: pooled for pooled in (mean_pooled, first_token, last_token)}
    return single.get(modes, Pooled(modes)), content.get("include_prompt") is not False


def _require_width(pooling: Path, directory: Path) -> None:
    """Raise if the pooling is for states of another width than the model's."""
    content, model = _read(pooling), _read(directory / "config.json")
    said = content.get("word_embedding_dimension", content.get("embedding_dimension"))
    width = next((model[key] for key in ("hidden_size", "d_model", "dim", "n_embd") if key in model), None)
    if isinstance(said, int) and isinstance(width, int) and said != width:
        raise ModelError(
            f"{pooling} pools states of {said} numbers, and the model of {directory / 'config.json'} has {width}: the "
            "file is that of another model. Get the whole model again."
        )


def _transformer(directory: Path) -> tuple[int | None, bool]:
    """Where sentence-transformers cuts texts, and whether it lowers their case."""
    file = next((f for name in _SETTINGS if (f := directory / name).is_file()), directory / _SETTINGS[0])
    content = _read(file)
    task = content.get("transformer_task", "feature-extraction")
    text = (content.get("modality_config") or {}).get("text") or {}
    other = [task] if task != "feature-extraction" else []
    other += [text[key] for key, usual in _USUAL.items() if text.get(key, usual) != usual]
    if other:
        raise ModelError(
            f"{file} asks for {listed(map(str, other))}, which is not read from such a directory. Load it with "
            "sentence-transformers and pass a module that returns the features."
        )
    limit = content.get("max_seq_length")
    return limit if isinstance(limit, int) and limit > 0 else None, bool(content.get("do_lower_case"))
