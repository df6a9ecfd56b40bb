"""`adapter_config.json` of PEFT: what of it decides the displacement, and what is refused because it is no plain LoRA."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tauspan import store
from tauspan.core.errors import ModelError, StoreError

CONFIG = "adapter_config.json"
# Keys that do not affect a trained displacement: where the adapter goes, how it was trained, who wrote it.
_INERT = frozenset(
    (
        *("auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config"),
        "exclude_modules",
        *("inference_mode", "layers_pattern", "layers_to_transform", "loftq_config", "lora_dropout"),
        *("megatron_core", "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "revision"),
        *("runtime_config", "target_modules", "task_type"),
    )
)
_USED = frozenset(
    ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "bias")
)
# Initialisations that leave the base's weights as they are; all others subtract something from them.
_STARTS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
_LONGEST, _REPEATS = 1000, 4  # the most characters of a pattern, and repetitions among them
_NESTED = re.compile(r"\)[*+?{]")  # a repeated group: matching one can take for ever
_OFF: tuple[Any, ...] = (None, False, [], {}, "")


@dataclass(frozen=True)
class AdapterConfig:
    """The settings of a LoRA adapter that its displacement depends on.

    Args:
        file: the file that holds them.
        rank, alpha: r and lora_alpha, where no pattern fits.
        ranks, alphas: rank_pattern and alpha_pattern: by pattern of module names; the first that fits counts.
        stabilised: rsLoRA: the product is scaled by alpha / sqrt(r), otherwise by alpha / r.
        transposed: fan_in_fan_out: the layers store their weights transposed.
        content: the whole file.
    """

    file: Path
    rank: int
    alpha: float
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    stabilised: bool
    transposed: bool
    content: Mapping[str, Any]

    def scale(self, module: str, rank: int) -> float:
        """The factor of B A of one module, whose factors have that rank.

        Raises:
            StoreError: the file states another rank.
        """
        stated = _first(self.ranks, module, self.rank)
        if stated != rank:
            raise StoreError(
                f"{self.file} gives {module!r} the rank {stated}, and its factors have {rank}: settings and weights come "
                "from different saves. Copy or save both again."
            )
        alpha: float = _first(self.alphas, module, self.alpha)
        return alpha / math.sqrt(rank) if self.stabilised else alpha / rank


def read_config(directory: Path) -> AdapterConfig:
    """Read and check the settings of an adapter.

    Raises:
        ModelError: not LoRA, or a kind of LoRA whose displacement is not scale * B A; the message names the key.
        StoreError: not there, or a value of the wrong type.
    """
    file = directory / CONFIG
    content = store.read_json(file)
    if not isinstance(content, dict):
        raise StoreError(f"{file} is not a JSON object: save the adapter again.")
    return parse_config(content, file)


def parse_config(content: Mapping[str, Any], file: Path) -> AdapterConfig:
    """Check the settings of a file that was read; raises as `read_config`."""
    _require_plain(content, file)
    alphas = _pattern(content, "alpha_pattern", file, _number)
    ranks = _pattern(content, "rank_pattern", file, _whole)
    return AdapterConfig(
        file,
        _checked(content, "r", 8, file, _whole),
        _checked(content, "lora_alpha", 8, file, _number),
        ranks,
        alphas,
        _checked(content, "use_rslora", False, file, _flag),
        _checked(content, "fan_in_fan_out", False, file, _flag),
        content,
    )


def refused(what: str, directory: Path) -> ModelError:
    """The error for an adapter that is more than LoRA, with the remedy."""
    return ModelError(
        f"{what}, so its displacement is not scale * B A, and no exact sum of adapters exists. Merge it into its base "
        f"first: `PeftModel.from_pretrained(base, {str(directory)!r}).merge_and_unload().save_pretrained(DIR)`; then use "
        "DIR, or `tauspan vector diff BASE DIR`."
    )


def _require_plain(content: Mapping[str, Any], file: Path) -> None:
    kind = content.get("peft_type")
    if kind != "LORA":
        raise refused(f"{file} has peft_type={kind!r} and not 'LORA'", file.parent)
    start = content.get("init_lora_weights", True)
    if not any(start is known or (isinstance(start, str) and start == known) for known in _STARTS):
        raise refused(
            f"{file} has init_lora_weights={start!r}, which changes the base's weights", file.parent
        )
    for key, value in content.items():
        if key not in _INERT and key not in _USED and key != "init_lora_weights" and value not in _OFF:
            raise refused(f"{file} has {key}={value!r:.80}", file.parent)


def _checked(
    content: Mapping[str, Any], key: str, default: Any, file: Path, fits: Callable[[Any], bool]
) -> Any:
    value = content.get(key, default)
    if not fits(value):
        raise StoreError(
            f"{file} has {key}={value!r:.80}, and it must be {_WORDS[fits]}. Save the adapter again."
        )
    return value


def _pattern(
    content: Mapping[str, Any], key: str, file: Path, fits: Callable[[Any], bool]
) -> Mapping[str, Any]:
    entries = content.get(key) or {}
    if not isinstance(entries, dict):
        raise StoreError(f"{file} has {key}={entries!r:.80}, which is no mapping. Save the adapter again.")
    for pattern in entries:
        _checked(entries, pattern, None, file, fits)
        try:
            re.compile(pattern)
        except re.error as error:
            raise StoreError(
                f"{file} has the {key} {pattern!r:.80}, no regular expression: {error}."
            ) from error
        repeats = sum(map(pattern.count, "*+{"))
        if len(pattern) > _LONGEST or repeats > _REPEATS or _NESTED.search(pattern):
            raise StoreError(
                f"{file} has the {key} {pattern!r:.80}, which is too long, or repeats a group or too much: matching it "
                "could take for ever. Write the modules' names instead."
            )
    return entries


def _first(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value of the first pattern that matches the module's name, or its end after a dot; else the default."""
    fitting = (value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module))
    return next(fitting, default)


def _whole(value: Any) -> bool:
    return type(value) is int and value > 0


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _flag(value: Any) -> bool:
    return type(value) is bool


_WORDS: dict[Callable[[Any], bool], str] = {
    _whole: "a whole number above 0",
    _number: "a finite number",
    _flag: "true or false",
}
