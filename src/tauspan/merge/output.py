"""The files beside merged weights, as transformers expects them: configuration, tokenizer, preprocessing."""

import logging
import shutil
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch

from tauspan import store
from tauspan.errors import ModelError
from tauspan.merge.adapted import Sum, with_settings
from tauspan.merge.assembly import Assembly
from tauspan.merge.inputs import config_of, model_folder
from tauspan.merge.recipe import MergeRecipe
from tauspan.merge.settings import stacks
from tauspan.merge.slices import the_stack
from tauspan.models.hf import copies
from tauspan.saved import EDITED, REFERENCE, Reference

TOKENIZER = (
    "tokenizer*.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt",
    "merges.txt", "spiece.model", "*.bpe.model", "chat_template.*", "additional_chat_templates/*",
)  # fmt: skip
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_OTHERS = (
    "adapter_config.json",
    "trainer_state.json",
    "*_results.json",
)  # of the run that made a model, not of it

_LOG = logging.getLogger(__name__)


def finish(target: Path, recipe: MergeRecipe, assembly: Assembly, dtypes: Iterable[torch.dtype]) -> None:
    """Write what a transformers directory has beside its weights; nothing where the inputs are bare files.

    Configuration, generation configuration and preprocessing come from the base, else from the first model; the
    tokenizer and its chat template from `tokenizer_source`. Code and pickles are never copied.

    Args:
        target: the output's folder.
        recipe: the merge's.
        assembly: its sources.
        dtypes: of the output's floating-point tensors; where they are one, `config.json` says so.

    Raises:
        ModelError: slices of a model whose configuration has no number of layers.
    """
    folder = model_folder(assembly.home.path)
    if folder is None:
        return
    copies(folder, config=True)(target)
    _drop(target, _OTHERS)
    words = model_folder(assembly.tokenizer.path)
    if words is not None and words.resolve() != folder.resolve():
        _drop(target, TOKENIZER)
        for file in _matching(words, TOKENIZER):
            inner = target / file.relative_to(words)
            inner.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, inner)
    config = dict(config_of(assembly.home.path))
    if isinstance(assembly.home, Sum):
        config = with_settings(config, assembly.home.settings)
    if not config:
        return
    if config.get("auto_map"):
        _LOG.warning(
            "%s names Python code of its own (auto_map), which is not copied: whoever trusts it copies it by hand.",
            folder / "config.json",
        )
    kinds = set(dtypes)
    if len(kinds) == 1:
        config = _with_dtype(config, str(kinds.pop()).removeprefix("torch."))
    if recipe.slices:
        config |= _with_layers(config, recipe, assembly)
    store.write_json(target / "config.json", config)
    if recipe.base_model is not None and not recipe.slices:
        _refer(target, recipe, assembly)


def _refer(target: Path, recipe: MergeRecipe, assembly: Assembly) -> None:
    """Say whose frozen heads are the result's: those of the base, as of any edited model."""
    assert recipe.base_model is not None  # noqa: S101 - the caller has looked
    folder = None if assembly.base is None else model_folder(assembly.base.path)
    if folder is None:
        return
    if (folder / REFERENCE).is_file():  # the base was edited itself
        shutil.copyfile(folder / REFERENCE, target / REFERENCE)
        return
    known = (model.identity["base"] for model in assembly.models if "base" in model.identity)
    path = str(folder.resolve()) if Path(recipe.base_model).exists() else None
    edit = f"merged by {assembly.method.name}"
    Reference(EDITED, recipe.base_model, path, next(known, ""), edit=edit).write(target)


def _matching(folder: Path, patterns: Iterable[str]) -> list[Path]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return [file for file in files if any(fnmatch(str(file.relative_to(folder)), one) for one in patterns)]


def _drop(folder: Path, patterns: Iterable[str]) -> None:
    for file in _matching(folder, patterns):
        file.unlink()


def _with_dtype(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """The same with another dtype, as transformers 5 spells it, in the parts of a model of several too."""
    changed: dict[str, Any] = {}
    for key, value in config.items():
        if key in ("dtype", "torch_dtype"):
            continue
        part = isinstance(value, Mapping) and ("dtype" in value or "torch_dtype" in value)
        changed[key] = _with_dtype(value, dtype) if part else value
    return {**changed, "dtype": dtype}


def _with_layers(config: Mapping[str, Any], recipe: MergeRecipe, assembly: Assembly) -> dict[str, Any]:
    """What a configuration says of its layers, for the slices' layers."""
    had = len(stacks(assembly.home.tensors)[the_stack(assembly.home)])
    found = [key for key in _LAYERS if config.get(key) == had]
    if not found:
        raise ModelError(
            f"config.json of {assembly.home.path} has none of {', '.join(_LAYERS)} equal to its {had} layers, so the "
            "number of layers of the slices cannot be written. Merge it with `models` instead."
        )
    changed: dict[str, Any] = dict.fromkeys(found, sum(part.count for part in recipe.slices))
    kinds = config.get("layer_types")
    if isinstance(kinds, list) and len(kinds) == had:
        places = [i for part in recipe.slices for i in range(*part.sources[0].layer_range)]
        changed["layer_types"] = [kinds[place] if place < had else kinds[-1] for place in places]
    return changed
