"""A LoRA adapter as a task vector of its base."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from tauspan import models
from tauspan.core import params
from tauspan.core.arguments import checked
from tauspan.core.errors import MismatchError, UsageError, listed, nearest
from tauspan.core.params import Params
from tauspan.core.report import versions
from tauspan.editing.model.edit_files import Base
from tauspan.merge.lora.adapters import Adapter, read_adapter
from tauspan.merge.sources.respelt import best_names
from tauspan.merge.sources.source import aliases_of, config_of, model_folder, spellings_in
from tauspan.models import Names
from tauspan.vector import TaskVector


@dataclass(frozen=True)
class _Start:
    """The base of a vector: its tensors by the names of its files, its fingerprint, and other names of the tensors."""

    tensors: Params
    fingerprint: str
    names: Names = field(default_factory=Names)
    aliases: Mapping[str, str] = field(default_factory=dict)

    @property
    def spellings(self) -> Mapping[str, str]:
        """The aliases that are older spellings of the same tensor."""
        return spellings_in(self.aliases)


@checked
def adapter_vector(
    path: str | Path,
    base: nn.Module | Params | str | Path,
    *,
    label: str | None = None,
    leave_out: Sequence[str] = (),
    dtype: torch.dtype = torch.float32,
) -> TaskVector:
    """The displacement of an adapter as a task vector of its base; exact also for biases and `modules_to_save`.

    Products and differences are formed in float64 and rounded once to `dtype`. The names are those of the base's files,
    translated from the names in memory that PEFT stores. A product on one of two tied tensors changes both, because
    they are one tensor, as in PEFT's `merge_and_unload`.

    Args:
        path: the adapter's directory.
        base: the model that the adapter was trained on: a directory, an id, a safetensors file or the index of its
            shards, a module, or its tensors by name.
        label: a short name; the directory's when None.
        leave_out: names of whole tensors, as the adapter spells them, or of modules that hold them, that are not wanted:
            for example a head, `["classifier"]`.
        dtype: of the vector.

    Returns:
        A `standard` vector over the tensors that the adapter changes.

    Raises:
        MismatchError: the adapter changes a tensor that the base lacks, or one of another shape, or unties embeddings.
        UsageError: `leave_out` names nothing that the adapter holds whole.

    Cost:
        One SHA-256 pass over the base; of its tensors, only those that the adapter holds whole are read into memory.

    Example:
        >>> import tempfile
        >>> from tauspan.merge.lora.adapters import save_adapter
        >>> from tauspan.merge.lora.lowrank import LowRank, Term
        >>> low = LowRank({"bert.q.weight": (Term(torch.ones(1, 3), torch.ones(2, 1), 0.5),)})
        >>> path = save_adapter(low, Path(tempfile.mkdtemp()) / "one")
        >>> adapter_vector(path, {"q.weight": torch.zeros(2, 3)}).deltas["q.weight"][0]
        tensor([0.5000, 0.5000, 0.5000])
    """
    adapter = read_adapter(path, label=label)
    whole = _wanted(adapter, leave_out)
    names = list(dict.fromkeys([*adapter.low.terms, *whole]))
    start = _start(base, names)
    spelt = _spelt_as(names, start, adapter)
    moved: dict[str, Tensor] = {}
    for name in adapter.low.terms:
        own = start.aliases.get(spelt[name], spelt[name])
        product = adapter.low.dense(name, torch.float64)
        _require_shape(adapter, name, product, start.tensors[own])
        moved[own] = moved[own] + product if own in moved else product
    for name, tensor in whole.items():
        own = _once(name, spelt, whole, start, adapter)
        _require_shape(adapter, name, tensor, start.tensors[own])
        if spelt[name] == own or name in adapter.low.terms:  # only one of two equal tied tensors
            change = tensor.double() - start.tensors[own].detach().cpu().double()
            moved[own] = moved[own] + change if own in moved else change
    deltas = {name: delta.to(dtype) for name, delta in moved.items()}
    params.require_finite(deltas, str(adapter.path))
    info = {
        "base_id": str(base) if isinstance(base, str | Path) else type(base).__name__,
        "adapter": str(adapter.path),
        "versions": versions(),
    }
    return TaskVector(deltas, start.fingerprint, "standard", adapter.low.label, info)


def _wanted(adapter: Adapter, leave_out: Sequence[str]) -> dict[str, Tensor]:
    """The whole tensors without those that are left out."""
    for unwanted in leave_out:
        if not any(name == unwanted or name.startswith(f"{unwanted}.") for name in adapter.replaced):
            raise UsageError(
                f"leave_out (--leave-out) has {unwanted!r}, and {adapter.path} holds no such tensor or module whole. "
                f"{nearest(unwanted, adapter.replaced)}"
            )
    cut = tuple(f"{unwanted}." for unwanted in leave_out)
    return {
        n: t for n, t in adapter.replaced.items() if n not in leave_out and not (cut and n.startswith(cut))
    }


def _start(base: nn.Module | Params | str | Path, names: Sequence[str]) -> _Start:
    if isinstance(base, nn.Module):
        tensors, spelt = models.stored_state(base), models.names_of(base)
        first: dict[int, str] = {}
        aliases = {}
        for name, tensor in models.core(base)[0].named_parameters(remove_duplicate=False):
            own = first.setdefault(id(tensor), name)
            if own != name:
                aliases[name] = spelt.files_of([own])[0]
        return _Start(tensors, params.fingerprint(tensors), spelt, aliases)
    if isinstance(base, Mapping):
        return _Start(base, params.fingerprint(base))
    files = Base(base)
    place = files.directory or Path(base)
    shapes = {name: shape for name, (_, shape) in files.kinds.items()}
    aliases = aliases_of(dict.fromkeys(shapes), files.checkpoint.metadata, config_of(place))  # type: ignore[arg-type]
    folder = model_folder(place)
    known = {*shapes, *aliases}
    found = None
    if not set(names) <= known and folder is not None and models.has_config(folder):
        found = best_names(names, shapes, folder, aliases)
    return _Start(files.tensors, files.fingerprint, found or Names(), aliases)


def _spelt_as(names: Sequence[str], start: _Start, adapter: Adapter) -> dict[str, str]:
    """Each name as the base's files spell it; for an older spelling, the name under which they store the tensor."""
    stored: dict[str, str] = {}
    for own, name in start.names.renamed.items():
        stored.setdefault(name, own)
    spelt = {name: stored.get(name, name) for name in names}
    known = {*start.tensors, *start.aliases}
    if not set(spelt.values()) <= known:
        again = _renamed(list(spelt.values()), known, adapter.path)
        spelt = {name: again[own] for name, own in spelt.items()}
    return {name: start.spellings.get(own, own) for name, own in spelt.items()}


def _once(
    name: str, spelt: Mapping[str, str], whole: Mapping[str, Tensor], start: _Start, adapter: Adapter
) -> str:
    """The stored tensor that a whole tensor replaces; raises if that would untie two names of one tensor."""
    own = start.aliases.get(spelt[name], spelt[name])
    names = {other for other, kept in start.aliases.items() if kept == own}
    tied = {other for other in names if other not in start.spellings} | {own}
    if len(tied) == 1 or name in adapter.low.terms:
        return own
    others = [tensor for other, tensor in whole.items() if spelt[other] in tied]
    if len(others) < 2 or any(not torch.equal(tensor, others[0]) for tensor in others):
        raise MismatchError(
            f"{adapter.path} holds {name!r} whole, which is tied to {listed(sorted(tied - {spelt[name]}))} in the base: "
            "the result has two tensors where the base has one, and no displacement says that. Merge "
            f"'BASE+{adapter.path}' to a model, which unties them."
        )
    return own


def _require_shape(adapter: Adapter, name: str, given: Tensor, theta0: Tensor) -> None:
    if given.shape == theta0.shape:
        return
    turned = given.shape == theta0.shape[::-1]
    grown = given.dim() == theta0.dim() > 0 and given.shape[1:] == theta0.shape[1:] and not turned
    more = (
        f". The vocabulary has grown, which no displacement holds: merge 'BASE+{adapter.path}' to a model."
        if grown
        else ", or correct fan_in_fan_out in its settings."
        if turned
        else "."
    )
    raise MismatchError(
        f"{adapter.path} changes {name!r} in the shape {tuple(given.shape)}, and the base has {tuple(theta0.shape)}. "
        f"Take the model that the adapter was trained on{more}"
    )


def _renamed(names: Sequence[str], point: Collection[str], path: Path) -> dict[str, str]:
    """Each name as the base spells it: the same, or with one prefix removed from all or put before all."""
    first = names[0] if names else ""
    changes = [("", "")]
    changes += [(first.removesuffix(own), "") for own in point if first.endswith("." + own)]
    changes += [("", own.removesuffix(first)) for own in point if own.endswith("." + first)]
    missing = {change: [name for name in names if _spelt(name, *change) not in point] for change in changes}
    fitting = [change for change, lacking in missing.items() if not lacking]
    if len(fitting) == 1 or ("", "") in fitting:
        return {name: _spelt(name, *fitting[0]) for name in names}
    least = min(missing.values(), key=len)
    raise MismatchError(
        f"{path} changes {listed(least or names)}, which the base {'lacks' if least else 'has several times'}. Take "
        "the model that the adapter was trained on, or name whole tensors that are not wanted, such as a head, in "
        "`leave_out` (--leave-out)."
    )


def _spelt(name: str, removed: str, added: str) -> str:
    return added + name.removeprefix(removed) if name.startswith(removed) else ""
