"""The files that a model came from: their tensors that the module lacks, and writing an edited model in their form."""

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Size, Tensor, nn

from tauspan import store
from tauspan.core import params
from tauspan.core.errors import ModelError, StoreError
from tauspan.core.params import Params
from tauspan.models.encoder import Classifier, Encoder
from tauspan.models.names import Names, names_between, saved_names
from tauspan.models.select import core, state_of

CONFIG = "config.json"
Kinds = Mapping[str, tuple[torch.dtype, Size]]


@dataclass(frozen=True, eq=False)
class Home:
    """The files of an encoder's weights, and the tensors in them that the module lacks.

    Args:
        directory: the directory with configuration and weights.
        names: the translation of names between the files and the module.
        carried: tensors that the module lacks (a head, old buffers) and tensors of whole numbers, by their names in the
            files; they are saved again with the model.
        unstored: fingerprints, when loaded, of tensors that no file holds because the model's library computes them;
            such a tensor is saved if it was changed.
    """

    directory: Path
    names: Names
    carried: Params = field(default_factory=dict)
    unstored: Mapping[str, str] = field(default_factory=dict)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Home":
        return self  # immutable, so it can be shared

    def stored(self, memory: Params) -> dict[str, Tensor]:
        """All tensors of the checkpoint as it would be written, by their names in the files, given those in memory."""
        inside = set(self.names.in_memory)
        made = self.names.to_files({name: tensor for name, tensor in memory.items() if name in inside})
        whole = {name: made[name] if name in made else self.carried[name] for name in self.names.shapes}
        changed = (
            name for name, was in self.unstored.items() if params.fingerprint({name: memory[name]}) != was
        )
        return whole | {name: memory[name] for name in changed}

    def moved(self, deltas: Params, scale: float) -> "Home":
        """The same home with `scale * deltas` added to the carried tensors that `deltas` has, in float32 or wider."""
        moved = {
            name: params.moved(tensor, deltas[name], scale)
            for name, tensor in self.carried.items()
            if name in deltas
        }
        return replace(self, carried={**self.carried, **moved})

    def write(self, target: Path, memory: Params) -> None:
        """Write weights and configuration like the original files, with the tensors that the module lacks.

        Raises:
            ModelError: the module no longer has the shapes of its files.
        """
        whole = self.stored(memory)
        for name, shape in self.names.shapes.items():
            if whole[name].shape != shape:
                raise ModelError(
                    f"{name!r} has shape {tuple(whole[name].shape)} now and {tuple(shape)} in {self.directory}, whose "
                    "configuration does not fit it any more. Save the module with its own `save_pretrained`."
                )
        write_checkpoint(
            target, self.directory, {n: (t.dtype, t.shape) for n, t in whole.items()}, whole.values()
        )


def write_checkpoint(target: Path, source: Path, kinds: Kinds, tensors: Iterable[Tensor]) -> None:
    """Write weights into a directory, with the configuration of another directory adjusted to their dtype.

    Args:
        target: the directory to write into.
        source: the directory from which `config.json` is taken, if it has one.
        kinds: dtype and shape of each tensor.
        tensors: the tensors in that order; only one is in memory at a time.
    """
    store.stream_shards(target, kinds, tensors)
    if (source / CONFIG).is_file():
        config = store.read_json(source / CONFIG)
        if not isinstance(config, dict):
            raise StoreError(f"{source / CONFIG} is not a JSON object; save the model's configuration again.")
        floats = [dtype for dtype, _ in kinds.values() if dtype.is_floating_point]
        widest = max(floats, key=lambda dtype: dtype.itemsize, default=torch.float32)
        store.write_json(target / CONFIG, with_dtype(config, widest) if "model_type" in config else config)


def with_dtype(config: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """A configuration with another dtype, as transformers 5 writes it, also in the parts of a composite model."""
    changed: dict[str, Any] = {}
    for key, value in config.items():
        if key not in ("dtype", "torch_dtype"):
            part = isinstance(value, Mapping) and ("dtype" in value or "torch_dtype" in value)
            changed[key] = with_dtype(value, dtype) if part else value
    return {**changed, "dtype": str(dtype).removeprefix("torch.")}


def home_of(directory: Path, weights: Path, model: nn.Module) -> Home | None:
    """The home of a transformers model that was just loaded from a directory.

    None if the module's values differ from those in the files, because its library changes values while it loads;
    such a model is saved by its library.
    """
    checkpoint = store.Checkpoint(weights)
    kinds = checkpoint.kinds()
    names = names_between(model, {name: shape for name, (_, shape) in kinds.items()})
    memory = state_of(model)
    names = _with_copies(names, checkpoint, memory, model)
    if not _fits(names, checkpoint, memory):
        return None
    inside = set(names.in_memory)
    unstored = {name: params.fingerprint({name: t}) for name, t in memory.items() if name not in inside}
    return Home(directory, names, checkpoint.read(_beyond(names, memory)), unstored)


def same_names(directory: Path, weights: Path, model: nn.Module) -> Home:
    """The home of a model whose tensors have the same names in files and in memory; other tensors there are carried."""
    checkpoint = store.Checkpoint(weights)
    shapes = {name: shape for name, (_, shape) in checkpoint.kinds().items()}
    inside = set(state_of(model)) & set(shapes)
    names = Names({name: name for name in shapes if name in inside}, (), shapes)
    return Home(directory, names, checkpoint.read(names.carried))


def _beyond(names: Names, memory: Params) -> list[str]:
    """The carried tensors: those that the module lacks, and those of whole numbers, which no edit changes."""
    whole = (stored for stored, name in names.renamed.items() if name not in memory)
    return [*names.carried, *whole]


def _with_copies(names: Names, checkpoint: store.Checkpoint, memory: Params, model: Any) -> Names:
    """The names, in which each carried tensor that equals the tied embedding counts as another stored copy of it."""
    config = getattr(model, "config", None)
    text = config.get_text_config() if config is not None and hasattr(config, "get_text_config") else config
    if not getattr(text, "tie_word_embeddings", False):
        return names
    embedding = model.get_input_embeddings().weight if hasattr(model, "get_input_embeddings") else None
    name = next(
        (
            name
            for name, tensor in memory.items()
            if embedding is not None and tensor.data_ptr() == embedding.data_ptr()
        ),
        None,
    )
    if embedding is None or name is None:
        return names
    copies = {
        stored: name
        for stored in names.carried
        if names.shapes[stored] == embedding.shape
        and torch.equal(checkpoint[stored].to(embedding), embedding)
    }
    return replace(names, renamed={**names.renamed, **copies}) if copies else names


def _fits(names: Names, checkpoint: store.Checkpoint, memory: Params) -> bool:
    """Whether the module has the stored values; checks the first row of renamed tensors, and one group for each rule."""
    for stored, name in names.renamed.items():
        if name not in memory:
            continue  # not floating point
        first, own = checkpoint.first(stored), memory[name]
        if own.shape != names.shapes[stored] or not torch.equal(first.to(own), own[:1] if own.dim() else own):
            return False
    for group in {id(one.rule): one for one in names.moved}.values():
        made = group(checkpoint.read(group.shapes))
        if any(not torch.equal(tensor.to(memory[name]), memory[name]) for name, tensor in made.items()):
            return False
    return True


def encoder_in(module: nn.Module) -> Encoder | None:
    """The encoder that a module is or contains, or None."""
    inside = module.encoder if isinstance(module, Classifier) else module
    return inside if isinstance(inside, Encoder) else None


def names_of(module: nn.Module) -> Names:
    """How names translate between a module and files: those it came from, else those that its library would write."""
    encoder = encoder_in(module)
    if encoder is not None and encoder.home is not None:
        return encoder.home.names
    inner, _ = core(module)
    transformers = sys.modules.get("transformers")  # a transformers model cannot exist without this import
    if transformers is not None and isinstance(inner, transformers.PreTrainedModel):
        return saved_names(inner)
    return Names()


def stored_state(module: nn.Module) -> dict[str, Tensor]:
    """All tensors of a model as files hold them: under the names of the files, with those that the module lacks.

    Of what an encoder got beside its files, there is what moves it, unless all of that is 0.
    """
    encoder, state = encoder_in(module), own_state(module)
    if encoder is not None and encoder.home is not None and encoder.whole is None:
        return encoder.home.stored(state) | {name: state[name] for name in _small(encoder) if name in state}
    return names_of(module).to_files(state)


def _small(encoder: Encoder) -> tuple[str, ...]:
    """The parameters that move an encoder and that its files lack: of its space, and of a prefix."""
    space = () if encoder.space is None else encoder.space.small
    return space if encoder.added is None else (*space, *encoder.added.names)


def own_state(module: nn.Module) -> dict[str, Tensor]:
    """The state of a module without what its encoder got beside its files, unless that moves it."""
    encoder, state = encoder_in(module), state_of(module)
    if encoder is None or (encoder.space is None and encoder.added is None):
        return state
    small = _small(encoder)
    beside = {*small, *(() if encoder.space is None else encoder.space.beside(encoder.backbone))}
    moved = any(bool(state[name].any()) for name in small)
    return {n: t for n, t in state.items() if n not in beside or (moved and n in small)}


def fingerprint_of(module: nn.Module) -> str:
    """The content fingerprint of a module's core and of everything in its files; saving and loading does not change it.

    It is the fingerprint of the files themselves. A trimmed encoder has that of the whole one until its weights change.
    """
    encoder = encoder_in(module)
    whole = None if encoder is None else encoder.whole
    if whole is None:
        return params.fingerprint(stored_state(module))
    found = params.fingerprint(own_state(module))
    return found if found != whole.part else whole.fingerprint
