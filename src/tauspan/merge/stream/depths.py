"""What a configuration says of layers, said of others: where layers are chosen, repeated or left out."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tauspan.core.errors import ModelError
from tauspan.merge.recipe.slices import Group, Stacked

# The lists of a configuration that are about single layers, in all architectures of transformers 5.
_OF_LAYERS = re.compile(
    r"layer|block|idxs$|^indexer_types$|^activation_sparsity_pattern$|^intermediate_size$"
)
_FLAGS = "no_rope_layers"  # which is 0 or 1 for each layer, also where two layers make it look like numbers of layers
_SHORT = (
    "attention_types",
    "attention_layers",
)  # GPT-Neo reads the first alone, which is the second in short


def say_of_layers(config: dict[str, Any], old: Sequence[int], depth: int, file: str) -> list[str]:
    """Change what a configuration says of single layers, in place, so that it holds for the new ones.

    Lists with an entry for each layer, and lists of numbers of layers, follow the layers.

    Args:
        config: the part of the configuration that counts the layers.
        old: the layer that each new one is made of.
        depth: how many layers there were.
        file: its name, for the notes.

    Returns:
        Notes about lists that seem to be of layers and could not follow.

    Example:
        >>> config = {"layer_types": ["full", "slow"], "mlp_only_layers": [1]}
        >>> say_of_layers(config, [0, 1, 1], 2, "config.json"), config
        ([], {'layer_types': ['full', 'slow', 'slow'], 'mlp_only_layers': [1, 2]})
    """
    notes = []
    for name, said in list(config.items()):
        if not isinstance(said, list) or not said or not _OF_LAYERS.search(name):
            continue
        moved = _of_new_layers(name, said, old, depth)
        if moved is None:
            notes.append(
                f"{file}: {name} has {len(said)} entries for {depth} layers and was left as it is: set it for the "
                f"{len(old)} new ones."
            )
        else:
            config[name] = moved
    short, long = _SHORT
    if short in config and len(config.get(long) or ()) == len(old):
        config[short] = [[config[long], 1]]
    return notes


def _of_new_layers(name: str, said: list[Any], old: Sequence[int], depth: int) -> list[Any] | None:
    """What a list of the configuration says of old layers, of the new ones; None where it is of something else.

    It has an entry for each layer, or names some layers by number.
    """
    numbers = all(type(one) is int and 0 <= one < depth for one in said) and len(set(said)) == len(said)
    if numbers and name != _FLAGS:
        return [place for place, one in enumerate(old) if one in said]
    return [said[one] for one in old] if len(said) == depth else None


def count_layers(
    config: dict[str, Any], places: Sequence[Sequence[str]], old: Sequence[int], depth: int, file: str
) -> list[str]:
    """Write the new number of layers into a configuration, in place, and what it says of each; notes, as `say_of_layers`.

    Args:
        config: the whole configuration.
        places: the keys that lead to each number of these layers; see `Towers.keys`.
        old: the layer that each new one is made of.
        depth: how many layers there were.
        file: its name, for the notes.
    """
    notes = []
    for *above, key in places:
        inner = config
        for step in above:
            inner = inner[step]
        inner[key] = len(old)
        if list(old) != list(range(depth)):
            notes += say_of_layers(inner, old, depth, file)
    return notes


def with_layers(config: Mapping[str, Any], stacked: Stacked, where: Path) -> tuple[dict[str, Any], list[str]]:
    """A configuration with the slices' layers, also in the parts of a composite model; and notes.

    Args:
        config: of the model whose configuration the result takes.
        stacked: the slices.
        where: that model, for errors.

    Raises:
        ModelError: the configuration has no number of these layers.
    """
    changed: dict[str, Any] = json.loads(json.dumps(config))
    notes: list[str] = []
    for group in (group for group in stacked.groups if group.layered):
        had = stacked.towers.stacks[group.stack]
        found = stacked.towers.keys(group.stack, config)
        if not found and group.count != had:
            raise ModelError(
                f"config.json of {where} does not say that {group.stack!r} has {had} layers, so the number of layers of "
                f"the slices, {group.count}, cannot be written. Merge it with `models` instead."
            )
        notes += count_layers(changed, found, _places(group, had), had, "config.json")
    return changed, notes


def _places(group: Group, had: int) -> list[int]:
    """The layers of the first source of every slice; those beyond the configuration's are taken for its last one."""
    places = (place for part in group.parts for place in range(*(part.sources[0].layer_range or ())))
    return [min(place, had - 1) for place in places]
