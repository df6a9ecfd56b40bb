"""A model with an adapter's displacement added, as PEFT's `merge_and_unload` makes it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tauspan.core.errors import MismatchError, MissingExtraError, ModelError, StoreError, listed
from tauspan.merge.lora.adapters import Products
from tauspan.merge.sources.respelt import respelt
from tauspan.merge.sources.source import Kind, Source, config_of, model_folder, spellings_in
from tauspan.models import has_config
from tauspan.models.names import names_between, saved_names
from tauspan.models.skeleton import skeleton
from tauspan.store import Stored


@dataclass(frozen=True, eq=False)
class SumSource:
    """A model with a displacement added: theta = theta0 + tau, a point.

    `tensors` are the model's own, with the shapes and the names of what an adapter stores whole. Where the displacement
    changes a tensor, `read` gives the unrounded sum in float32 (float64 for float64 weights), wider than the stored
    dtype.

    Args:
        model: theta0.
        adapter: what is added, under the model's names.
        label: a short name.
        tensors: by name.
        aliases: tied names that are not stored.
        wholes: tensors that take the place of the model's, before products are added.
        origins: the model's tensor behind a name, where it is another: an output embedding that is not tied any more.
        products: by name, the displacement's tensors that are added to it.
        settings: what of the model's configuration changes with it.
        notes: what may not be meant, each as a kind of problem and a sentence.
    """

    model: Source
    adapter: Source
    label: str
    tensors: Mapping[str, Stored]
    aliases: Mapping[str, str]
    wholes: Mapping[str, Tensor] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict)
    products: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[tuple[str, str], ...] = ()
    kind: Kind = "point"

    @property
    def path(self) -> Path:
        """The path of the model."""
        return self.model.path

    @property
    def identity(self) -> Mapping[str, Any]:
        """The identities of model and adapter."""
        parts = {"model": self.model.identity, "adapter": self.adapter.identity}
        return {"path": "+".join(part["path"] for part in parts.values()), **parts}

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """The entries `start` to `stop` of the flattened sum."""
        own = self.aliases.get(name, name)
        if own not in self.tensors:
            raise StoreError(f"{self.path} has no tensor {name!r}; it has {listed(self.tensors)}.")
        whole = self.wholes.get(own)
        point = (
            self.model.read(self.origins.get(own, own), start, stop)
            if whole is None
            else whole.flatten()[start:stop]
        )
        for product in self.products.get(own, ()):
            wide = torch.promote_types(point.dtype, torch.float32)
            point = point.to(wide) + self.adapter.read(product, start, stop).to(wide)
        return point

    def close(self) -> None:
        """Close the files of the model and of the displacement."""
        self.model.close()
        self.adapter.close()


def adapted(model: Source, change: Source, label: str) -> SumSource:
    """The model with a displacement added, under the names of the model's files.

    Whole tensors of an adapter (biases, norms, `modules_to_save`, embeddings of a grown vocabulary) take the place of
    the model's. Tied embeddings are as in `merge_and_unload` of PEFT: a product on either is added to the one tensor that
    both are; a tensor stored whole for one of them alone unties them, and the configuration says so.

    Raises:
        MismatchError: it changes a tensor that the model lacks, or one of another shape.
    """
    change = respelt(change, model)
    spelt = spellings_in(model.aliases)
    given = change.wholes if isinstance(change, Products) else {}
    wholes = {spelt.get(name, name): tensor for name, tensor in given.items()}
    tied = {
        alias: kept for alias, kept in model.aliases.items() if kept in model.tensors and alias not in spelt
    }
    products: dict[str, list[str]] = {}
    for name in change.tensors:
        products.setdefault(tied.get(name, name), []).append(name)
    under = {name: wholes.pop(name) for name in list(wholes) if name in change.tensors}  # `base_layer`
    origins = _untied(model, tied, wholes)
    aliases = {name: kept for name, kept in model.aliases.items() if kept not in origins.values()}
    notes = list(change.notes) if isinstance(change, Products) else []
    for name, tensor in under.items():
        wholes.setdefault(tied.get(name, name) if name in aliases else name, tensor)
    for alias, kept in tied.items():
        if alias in aliases and kept in products:
            notes.append(
                (
                    "tied",
                    f"{alias!r} and {kept!r} are one tensor in {model.path}, and the adapter {change.path} changes "
                    "one of them: both move, as in PEFT's `merge_and_unload`; while it was trained, only one did",
                )
            )
    tensors = _tensors(model, change, wholes, origins)
    for name, part in ((name, part) for name, parts in products.items() for part in parts):
        own = tensors.get(name)
        _require(own is not None and own.shape == change.tensors[part].shape, change, model, part, own)
    return SumSource(
        model, change, label, tensors, aliases, wholes, origins, {n: tuple(p) for n, p in products.items()},
        _settings(model, tensors, untied=bool(origins)), tuple(notes),
    )  # fmt: skip


def _untied(model: Source, tied: Mapping[str, str], wholes: dict[str, Tensor]) -> dict[str, str]:
    """The names that get a tensor of their own, each with the name that it was tied to.

    A tensor that stays tied is kept once in `wholes`.
    """
    origins: dict[str, str] = {}
    for kept in dict.fromkeys(tied.values()):
        names = [alias for alias, own in tied.items() if own == kept]
        given = {name: wholes[name] for name in (*names, kept) if name in wholes}
        if not given:
            continue
        first = next(iter(given.values()))
        alike = all(torch.equal(first, other) for other in given.values())
        if kept in given and len(given) > 1 and alike:
            for name in names:
                wholes.pop(name, None)
            continue
        origins |= dict.fromkeys(_written(model, names, kept, given), kept)
    return origins


def _written(model: Source, names: Sequence[str], kept: str, given: Mapping[str, Tensor]) -> list[str]:
    """Of a tied tensor's other names, those under which transformers would store it if it were not tied."""
    folder = model_folder(model.path)
    chosen = [name for name in names if name in given] or [names[-1]]
    if folder is None or not has_config(folder):
        return chosen
    shapes = {name: stored.shape for name, stored in model.tensors.items()}
    try:
        module = skeleton(folder)
        inside = names_between(module, {**shapes, **dict.fromkeys(names, shapes[kept])}, ties=False).renamed
        saved = saved_names(module)
    except (ModelError, MissingExtraError):
        return chosen
    found: dict[str, str] = {}
    for name in (one for one in names if one in inside):
        memory = inside[name]
        better = name in given or (name in saved.files_of([memory]) and found.get(memory) not in given)
        if memory not in found or better:
            found[memory] = name
    return list(found.values())


def _tensors(
    model: Source, change: Source, wholes: Mapping[str, Tensor], origins: Mapping[str, str]
) -> dict[str, Stored]:
    """The model's tensors, with those that are not tied any more, in the shapes of what is stored whole."""
    tensors = dict(model.tensors)
    for name, kept in origins.items():
        tensors[name] = replace(model.tensors[kept], name=name)
    for name, whole in wholes.items():
        own = tensors.get(name)
        rows = own is not None and _grown(name, own, whole, model)
        _require(own is not None and (own.shape == whole.shape or rows), change, model, name, own, whole)
        assert own is not None  # noqa: S101 - `_require` has looked
        size = whole.numel() * own.dtype.itemsize
        tensors[name] = replace(own, shape=whole.shape, nbytes=size)
    return tensors


def _grown(name: str, own: Stored, whole: Tensor, model: Source) -> bool:
    """Whether `whole` is an embedding of another number of tokens than the model's."""
    rows = _vocabulary(model)
    return (
        rows is not None
        and own.shape[:1] == (rows,)
        and own.shape[1:] == whole.shape[1:]
        and own.shape != whole.shape
    )


def _vocabulary(model: Source) -> int | None:
    config = config_of(model.path)
    text = config.get("text_config")
    found = (text or {}).get("vocab_size") if isinstance(text, Mapping) else None
    rows = config.get("vocab_size", found)
    return rows if isinstance(rows, int) else None


def _settings(model: Source, tensors: Mapping[str, Stored], untied: bool) -> dict[str, Any]:
    """What the configuration must say of the tensors as they are now."""
    changed: dict[str, Any] = {"tie_word_embeddings": False} if untied else {}
    rows = _vocabulary(model)
    sizes = {
        stored.shape[0]
        for name, stored in tensors.items()
        if name in model.tensors and stored.shape != model.tensors[name].shape
    }
    if rows is not None and len(sizes) == 1:
        changed["vocab_size"] = sizes.pop()
    return changed


def with_settings(config: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with changed settings, in its text part too where that states them."""
    changed = {
        **config,
        **{key: value for key, value in settings.items() if key in config or key.startswith("tie")},
    }
    text = config.get("text_config")
    if isinstance(text, Mapping):
        changed["text_config"] = {**text, **settings}
    return changed


def _require(
    fits: bool, change: Source, model: Source, name: str, own: Stored | None, whole: Tensor | None = None
) -> None:
    """Raise unless the model has the tensor in that shape."""
    if fits:
        return
    shape = tuple(change.tensors[name].shape if whole is None else whole.shape)
    if own is None and whole is not None:
        head = name.rpartition(".")[0] or name
        raise MismatchError(
            f"the adapter {change.path} holds {name!r} whole, which {model.path} lacks: a head that was trained for its "
            "task. Merge the rest without it: "
            f"`tauspan vector from-adapter {model.path} {change.path} --leave-out {head} -o FILE.safetensors`, and that "
            "vector onto the base."
        )
    there = "is not there" if own is None else f"has shape {tuple(own.shape)}"
    raise MismatchError(
        f"the adapter {change.path} changes {name!r}, shape {shape}, which {there} in {model.path}: the adapter was made "
        "for another model. Take that one."
    )
