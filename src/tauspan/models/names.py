"""Names of tensors in files and in memory, and the translation between the two.

A checkpoint's *files* keep the names that the model had when it was published (`bert.encoder...`,
`model.layers.0.block_sparse_moe.experts.1.w2.weight`, `language_model.model.layers...`). A module *in memory* has the
names of today's code and of the class it was loaded as (`encoder...`, `layers.0.mlp.experts.down_proj`,
`model.language_model.layers...`). transformers translates by its own rules when it loads and saves, and these rules are
used here; task vectors and fingerprints use the names of files (docs/formats.md).

Every rule renames tensors, or moves entries without changing them (experts are stacked, projections joined), so that
displacements are translated exactly, in both directions, like weights.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Size, Tensor, nn

from tauspan.core.errors import MismatchError, ModelError, listed
from tauspan.core.params import Params


@dataclass(frozen=True, eq=False)
class Rearrangement:
    """Stored tensors whose entries are rearranged into tensors in memory: experts are stacked, projections joined.

    Args:
        rule: transformers' own `WeightConverter`; each call uses a copy, since a converter can be used once only.
        first: the first name in memory, from which the rule derives the others.
        sources: the stored names in the order in which the rule collects them, each with the pattern it matches.
        shapes: the shapes of the stored tensors.
        memory: what the rule may read of the module: its configuration, and shapes by name.
    """

    rule: Any
    first: str
    sources: tuple[tuple[str, str], ...]
    shapes: Mapping[str, Size]
    memory: "_Shapes"

    @cached_property
    def made(self) -> tuple[str, ...]:
        """The names of the tensors in memory that the rule makes."""
        return tuple(self({name: torch.empty(shape, device="meta") for name, shape in self.shapes.items()}))

    def __call__(self, stored: Params) -> dict[str, Tensor]:
        """The tensors in memory, from all of the stored tensors.

        Raises:
            ModelError: transformers' rule does not fit the model's configuration.
        """
        rule = copy.deepcopy(self.rule)
        for pattern, name in self.sources:
            rule.add_tensor(self.first, name, pattern, stored[name])
        try:
            made = rule.convert(self.first, model=self.memory, config=self.memory.config)
        except Exception as error:  # the rule is transformers' and may raise anything
            raise ModelError(
                f"transformers' own rule that makes {self.first!r} of the tensors in files does not fit this model "
                f"({error}), so transformers could not load it either: look at the numbers of heads in its configuration."
            ) from error
        return {name: one[0] if isinstance(one, list) else one for name, one in made.items()}

    def back(self, memory: Params) -> dict[str, Tensor]:
        """The stored tensors, from those in memory; missing ones count as zero.

        The rule is applied to tensors that hold the numbers of their entries, which shows where each entry goes.

        Raises:
            ModelError: the rule changes entries instead of only moving them.
        """
        numbers, start = {}, 0
        for name, shape in self.shapes.items():
            numbers[name] = torch.arange(start, start + shape.numel()).view(shape)
            start += shape.numel()
        places = self(numbers)
        like = next(iter(memory.values()))
        flat, seen = torch.zeros(start, dtype=like.dtype), torch.zeros(start, dtype=torch.bool)
        for name, place in places.items():
            seen[place.flatten()] = True
            if name in memory:
                flat[place.flatten()] = memory[name].detach().cpu().flatten()
        if not bool(seen.all()) or sum(place.numel() for place in places.values()) != start:
            raise ModelError(
                f"transformers does more than move entries between {listed(self.shapes)} and {listed(places)}, so "
                "displacements cannot be told by the names of the files. Save the model from memory with its own "
                "`save_pretrained`, and start from that directory."
            )
        parts = torch.split(flat, [shape.numel() for shape in self.shapes.values()])
        return {
            name: part.view(shape).clone()
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }


@dataclass(frozen=True)
class _Shapes:
    """A replacement for the module with only what a rule reads: the configuration, and shapes of parameters."""

    config: Any
    shapes: Mapping[str, Size]

    def get_parameter(self, name: str) -> Tensor:
        return torch.empty(self.shapes[name], device="meta")


@dataclass(frozen=True, eq=False)
class Names:
    """The names of one checkpoint's tensors in its files and in one module.

    Args:
        renamed: from stored names to names in memory, for tensors that are not rearranged; two stored tensors may be one
            tensor in memory.
        moved: the groups of tensors that are rearranged.
        shapes: the shapes of all stored tensors.
    """

    renamed: Mapping[str, str] = field(default_factory=dict)
    moved: tuple[Rearrangement, ...] = ()
    shapes: Mapping[str, Size] = field(default_factory=dict)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Names":
        return self

    @property
    def plain(self) -> bool:
        """Whether all known names are the same in files and in memory; names are then returned unchanged."""
        return not self.moved and all(stored == name for stored, name in self.renamed.items())

    @property
    def carried(self) -> tuple[str, ...]:
        """The stored tensors that the module lacks, such as a head."""
        inside = {name for one in self.moved for name in one.shapes}
        return tuple(name for name in self.shapes if name not in self.renamed and name not in inside)

    @property
    def in_memory(self) -> tuple[str, ...]:
        """The names in memory of all stored tensors."""
        moved = (name for group in self.moved for name in group.made)
        return tuple(dict.fromkeys([*self.renamed.values(), *moved]))

    def to_memory(self, stored: Params) -> dict[str, Tensor]:
        """The tensors by their names in memory instead of in files; unknown names are kept.

        Tensors missing from a rearranged group count as zero, which is right for displacements.

        Raises:
            MismatchError: two stored tensors are one in memory, and differ.
        """
        if self.plain:
            return dict(stored)
        groups = {name: group for group in self.moved for name in group.shapes}
        made: dict[str, Tensor] = {}
        done: set[int] = set()
        for name, tensor in stored.items():
            if name not in groups:
                self._put(made, self.renamed.get(name, name), tensor, name)
            elif id(groups[name]) not in done:
                group = groups[name]
                done.add(id(group))
                zeros = {
                    one: tensor.new_zeros(shape) for one, shape in group.shapes.items() if one not in stored
                }
                made |= group({one: stored[one] if one in stored else zeros[one] for one in group.shapes})
        return made

    def _put(self, made: dict[str, Tensor], name: str, tensor: Tensor, stored: str) -> None:
        if name in made and not torch.equal(made[name], tensor):
            others = [one for one, memory in self.renamed.items() if memory == name and one != stored]
            raise MismatchError(
                f"{stored!r} and {listed(others)} are one tensor in the module, and here they differ. Give both the same "
                "values, or load the model with `tie_word_embeddings=False`."
            )
        made[name] = tensor

    def to_files(self, memory: Params) -> dict[str, Tensor]:
        """The tensors by their names in files instead of in memory; unknown names are kept.

        Raises:
            ModelError: a rearrangement that cannot be undone.
        """
        if self.plain:
            return dict(memory)
        inside = {name: group for group in self.moved for name in group.made}
        stored: dict[str, list[str]] = {}
        for own, name in self.renamed.items():
            stored.setdefault(name, []).append(own)
        made: dict[str, Tensor] = {}
        done: set[int] = set()
        for name, tensor in memory.items():
            if name not in inside:
                made |= dict.fromkeys(stored.get(name, [name]), tensor)
            elif id(inside[name]) not in done:
                group = inside[name]
                done.add(id(group))
                made |= group.back(
                    {one: memory[one] for one, its in inside.items() if its is group and one in memory}
                )
        return made

    def to_files_shapes(self, memory: Params) -> dict[str, Size]:
        """The names and shapes that `to_files` would return; the tensors may be without values."""
        inside = {name: group for group in self.moved for name in group.made}
        made: dict[str, Size] = {}
        for name, tensor in memory.items():
            group = inside.get(name)
            made |= dict(group.shapes) if group else dict.fromkeys(self.files_of([name]), tensor.shape)
        return made

    def memory_of(self, stored: Iterable[str]) -> dict[str, str]:
        """The name in memory of each stored name: the first of several, or the stored name if the module lacks it."""
        first = {name: group.first for group in self.moved for name in group.shapes}
        return {name: self.renamed.get(name, first.get(name, name)) for name in stored}

    def files_of(self, names: Iterable[str]) -> tuple[str, ...]:
        """The stored names of some names in memory, each once, in order."""
        behind: dict[str, list[str]] = {}
        for stored, name in self.renamed.items():
            behind.setdefault(name, []).append(stored)
        for group in self.moved:
            for name in group.made:
                behind.setdefault(name, []).extend(group.shapes)
        return tuple(dict.fromkeys(stored for name in names for stored in behind.get(name, [name])))


def names_between(model: nn.Module, stored: Mapping[str, Size], *, ties: bool = True) -> Names:
    """The names of a checkpoint's tensors in a transformers model, by transformers' own rules.

    Args:
        model: loaded, or on the meta device.
        stored: names and shapes in the files.
        ties: whether a tied tensor has only its first name in memory; else each of its names.

    Raises:
        ModelError: a version of transformers whose rules cannot be read.
    """
    known = _canonical(model) if ties else {}
    shapes = {name: tensor.shape for name, tensor in model.state_dict(keep_vars=True).items()}
    renamed: dict[str, str] = {}
    groups: dict[str, list[tuple[str, str]]] = {}
    rules: dict[str, Any] = {}
    for name, target, pattern, rule in _spelt(model, stored, shapes):
        if rule is None:
            if target in shapes:
                renamed[name] = known.get(target, target)
        elif target in shapes:
            groups.setdefault(target, []).append((pattern, name))
            rules[target] = rule
    memory = _Shapes(getattr(model, "config", None), shapes)
    moved = tuple(
        Rearrangement(
            rules[first], first, tuple(sources), {name: stored[name] for _, name in sources}, memory
        )
        for first, sources in groups.items()
    )
    return Names(renamed, moved, dict(stored))


def _canonical(model: nn.Module) -> dict[str, str]:
    """From each name of a tied tensor to its first name."""
    first: dict[int, str] = {}
    every = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: first.setdefault(id(tensor), name) for name, tensor in every}


def _spelt(
    model: Any, stored: Mapping[str, Size], shapes: Mapping[str, Size]
) -> Sequence[tuple[str, str, str, Any]]:
    """Each stored name, its name in memory, and the pattern and rule that rearrange the tensor, or '' and None."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import (
            WeightConverter,
            WeightRenaming,
            dot_natural_key,
            rename_source_key,
        )

        rules = get_model_conversion_mapping(model)
        renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
        by_pattern = {pattern: rule for rule in converters for pattern in rule.source_patterns}
        prefix = model.base_model_prefix
        found = []
        for name in sorted(stored, key=dot_natural_key):  # the order in which transformers collects experts
            target, pattern = rename_source_key(name, renamings, converters, prefix, shapes)
            if target not in shapes and name in shapes:
                target, pattern = rename_source_key(name, [], [], prefix, shapes)
            found.append((name, target, pattern or "", None if pattern is None else by_pattern[pattern]))
    except (ImportError, AttributeError, TypeError) as error:
        import transformers

        raise ModelError(
            f"transformers {transformers.__version__} does not say how it renames tensors in the way that is known here "
            f"({error}). Install the version that tauspan is tested with: pip install 'transformers==5.23'."
        ) from error
    return found


def saved_names(model: Any) -> Names:
    """How names translate between a transformers model of unknown origin and the files that it would write."""
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError as error:
        raise ModelError(f"this transformers does not say how it saves tensors ({error}).") from error
    first = _canonical(model)
    inside = {
        name: torch.empty(tensor.shape, device="meta", dtype=tensor.dtype)
        for name, tensor in model.state_dict(keep_vars=True).items()
        if first.get(name, name) == name
    }
    written = revert_weight_conversion(model, inside)
    if set(written) == set(inside):
        return Names()
    return names_between(model, {name: tensor.shape for name, tensor in written.items()})
