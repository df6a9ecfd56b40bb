"""Points in weight space: read from modules, directories and files, named as in files, and compared in pairs."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Size, Tensor, nn

from tauspan import store
from tauspan.core.errors import MismatchError, MissingExtraError, ModelError
from tauspan.core.params import Params
from tauspan.models.home import names_of, stored_state
from tauspan.models.names import Names
from tauspan.models.select import core, movable, state_of
from tauspan.models.skeleton import directory_names, has_config
from tauspan.models.sources import checkpoint_of


@dataclass(frozen=True, eq=False)
class Point:
    """The named tensors of one model.

    Args:
        tensors: the floating-point tensors, by the names that its files have or would have.
        others: tensors of whole numbers, which edits copy unchanged.
        path: the names of the tensors on the path to the features; None if unknown.
        directory: the model's directory, if they were read from one.
    """

    tensors: Params
    path: frozenset[str] | None = None
    directory: Path | None = None
    others: Params = field(default_factory=dict)


def point_of(source: "str | Path | nn.Module | Params") -> Point:
    """The point of a module, a directory, an id, a safetensors file or a mapping of tensors.

    From directories and files every tensor is read; neither a tokenizer nor the model's class is needed.
    """
    if isinstance(source, nn.Module):
        chosen = names_of(source).files_of(movable(source))
        return Point(_floats(stored_state(source)), frozenset(chosen))
    if not isinstance(source, str | Path):
        return _parted(source)
    path = Path(source)
    if path.suffix in (".safetensors", ".json") or path.is_file():
        return _parted(store.Checkpoint(path).read())
    if path.is_dir() and not (path / "config.json").is_file():
        return _parted(store.Checkpoint(path).read())
    directory, checkpoint = checkpoint_of(source)
    return _parted(checkpoint.read(), directory)


def _parted(tensors: Params, directory: Path | None = None) -> Point:
    others = {name: tensor for name, tensor in tensors.items() if not tensor.is_floating_point()}
    return Point(_floats(tensors), None, directory, others)


def _floats(tensors: Params) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}


def differing(base: Point, tuned: Point) -> list[str]:
    """The names of integer tensors that differ between two points, except batch counters, which affect no output.

    Raises:
        ModelError: such a tensor holds codes of quantised weights.
    """
    shared = (
        name for name in base.others if name in tuned.others and not name.endswith("num_batches_tracked")
    )
    found = [name for name in shared if not torch.equal(base.others[name], tuned.others[name])]
    for name in found:
        if name.endswith("weight") and base.others[name].dim() > 1:
            raise ModelError(
                f"{name!r} holds whole numbers that differ: codes of quantised weights, whose difference means nothing. "
                "Take the original checkpoints, or dequantise them: `from_pretrained(dir).dequantize()`, then "
                "`save_pretrained`."
            )
    return found


@dataclass(frozen=True)
class Beyond:
    """Head tensors that only one of two checkpoints has, or that differ in shape; a displacement cannot hold them.

    Args:
        base: head tensors of the base.
        tuned: head tensors of the fine-tuned model.
    """

    base: tuple[str, ...] = ()
    tuned: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.base or self.tuned)


def aligned(base: Point, tuned: Point) -> tuple[Point, Point, Beyond]:
    """Two points of one model under the names of the base's files, and the head tensors that they do not share.

    If the names of two directories differ, because they were saved from other classes or by another version,
    transformers' own rules translate them. A tensor outside the backbone that only one point has, or that differs in
    shape (another number of labels), is reported as part of a head; other differences are left for the caller to refuse.
    """
    alike = _shapes(base) == _shapes(tuned)
    if alike or base.directory is None or tuned.directory is None:
        return base, tuned, Beyond()
    if not (has_config(base.directory) and has_config(tuned.directory)):
        return base, tuned, Beyond()
    one_class = _class_named(base.directory) == _class_named(tuned.directory)
    try:
        parts = ("architecture", "backbone") if one_class else ("backbone", "backbone")
        (ours, theirs), (inner, other) = [[_names(point, part) for point in (base, tuned)] for part in parts]
    except (MissingExtraError, ModelError):
        return base, tuned, Beyond()
    spelt = ours.to_files(theirs.to_memory(tuned.tensors))
    heads = ours.to_files(theirs.to_memory({name: tuned.tensors[name] for name in other.carried}))
    apart = {
        name for name, tensor in base.tensors.items() if name in spelt and spelt[name].shape != tensor.shape
    }
    only_base = tuple(name for name in base.tensors if name not in spelt or name in apart)
    only_tuned = tuple(name for name in spelt if name not in base.tensors or name in apart)
    if not set(only_base) <= set(inner.carried) or not set(only_tuned) <= set(heads):
        return base, replace(tuned, tensors=spelt), Beyond()
    kept = {name: tensor for name, tensor in base.tensors.items() if name not in only_base}
    return (
        replace(base, tensors=kept),
        replace(tuned, tensors={n: spelt[n] for n in kept}),
        Beyond(only_base, only_tuned),
    )


def _shapes(point: Point) -> dict[str, Size]:
    return {name: tensor.shape for name, tensor in point.tensors.items()}


def _names(point: Point, part: str) -> Names:
    assert point.directory is not None  # noqa: S101 - `aligned` checks it first
    return directory_names(point.directory, _shapes(point), part)


def _class_named(directory: Path) -> object:
    return store.read_json(directory / "config.json").get("architectures")


def in_memory(deltas: Params, module: nn.Module) -> dict[str, Tensor]:
    """A displacement by the names in a module instead of those in its files; names that fit the module are kept.

    A tensor that the module lacks and its files hold keeps its name in the files.

    Raises:
        MismatchError: a tensor that neither the module nor its files have, or one of another shape.
    """
    names, known = names_of(module), state_of(module)
    stored = names.shapes or {}
    spoken = set(deltas) <= set(known) and not set(deltas) <= set(stored)  # named as in memory, not in files
    made = dict(deltas) if names.plain or spoken else names.to_memory(deltas)
    shapes: Mapping[str, Size] = {name: tensor.shape for name, tensor in known.items()}
    for name, delta in made.items():
        shape = shapes.get(name, stored.get(name))
        if shape is None or shape != delta.shape:
            there = "is not there" if shape is None else f"has shape {tuple(shape)}"
            raise MismatchError(
                f"the vector moves {name!r}, shape {tuple(delta.shape)}, which {there} in "
                f"{type(core(module)[0]).__name__}. Tensors are matched by name: take the model that the vector was made "
                f"from.{_of_prefix(name)}"
            )
    return made


def _of_prefix(name: str) -> str:
    """Advice for the error where a vector moves a prefix that an encoder has not, or has by another feature map."""
    found = re.search(r"\.prefix_(?:(elu|taylor)|positive_(\d+)_(\d+))\.(?:z|kappa)$", name)
    if found is None:
        return ""
    phi, features, seed = found.groups()
    options = f"{phi!r}" if phi else f"'positive', features={features}, seed={seed}"
    return (
        f" It is a prefix of attention, which `tauspan.with_prefix(ENCODER, {options})` adds to that model."
    )
