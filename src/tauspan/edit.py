"""Editing a model: load it, apply a task vector to it, save what came out."""

import copy
from pathlib import Path
from typing import Literal, TypeAlias

from torch import nn

from tauspan import models, store
from tauspan.arguments import checked
from tauspan.errors import BaseMismatchError, StoreError, UsageError, nearest
from tauspan.linear import Linearized, linearize
from tauspan.models import Classifier, Encoder
from tauspan.processes import own_device
from tauspan.vector import FILE, TaskVector

EditRegime: TypeAlias = Literal["standard", "posthoc", "linear"]
REGIMES: tuple[EditRegime, ...] = ("standard", "posthoc", "linear")
FORMAT = "tauspan-tangent/1"
_REFERENCE = "tauspan.json"


@checked
def load(source: str | Path | nn.Module, device: str | None = None) -> Encoder | Linearized:
    """A pre-trained model, or an edited one that `save` wrote.

    Args:
        source: `"minilm"` (the packaged encoder), a directory, a hub id such as `org/name@revision`,
            `hf-hub:org/name` or `local-dir:path` for timm and open_clip, or an `nn.Module`.
        device: where it goes, such as `"cuda"`, which in a process of a launcher is that process's own; None leaves it
            where it is, and what is read from files is on the CPU.

    Returns:
        An `Encoder` in eval mode; for the directory of an edited tangent model, the `Linearized` encoder with
        its vector loaded.

    Raises:
        ModelError, PickleRefusedError, StoreError, MissingExtraError: each names the source and the repair.
        UsageError: the device is not there.

    Example:
        >>> import torch
        >>> load(torch.nn.Linear(4, 3)).source
        'Linear'
    """
    if isinstance(source, str | Path) and (Path(source) / _REFERENCE).is_file():
        loaded: Encoder | Linearized = _load_tangent(Path(source))
    else:
        loaded = models.load_model(source)
    if device is None:
        return loaded
    try:
        return loaded.to(own_device(device))
    except (RuntimeError, AssertionError) as error:  # torch raises both for a device that is not there
        raise UsageError(
            f"the device {device!r} cannot be used: {error} Name one that is there, or cpu."
        ) from error


def edit_regime(vector: TaskVector, regime: str | None) -> EditRegime:
    """The regime to edit in: the vector's own unless another is named.

    Raises:
        UsageError: an unknown regime, or one that the vector was not made for.
    """
    chosen = vector.regime if regime is None else regime
    if chosen not in REGIMES:
        raise UsageError(f"unknown regime {chosen!r}. {nearest(chosen, REGIMES)}")
    fits = "linear" if chosen == "linear" else "standard"
    if vector.regime != fits:
        raise UsageError(
            f"{vector.label!r} is a {vector.regime} vector and the regime {chosen!r} takes a {fits} one. If you mean "
            f"it, declare the vector: `vector.as_regime({fits!r})`."
        )
    return chosen


@checked
def apply(
    module: nn.Module, vector: TaskVector, scale: float = 1.0, *, regime: EditRegime | None = None
) -> nn.Module:
    """The module edited by `scale * vector`; the input is never changed.

    Args:
        module: the pre-trained module, `Encoder` or `Classifier` that the vector starts from.
        vector: one vector, or any sum of them.
        scale: the coefficient alpha.
        regime: `"standard"` gives f(x; theta0 + alpha tau) as an ordinary module of the same class;
            `"linear"` and `"posthoc"` give the tangent model f(x; theta0) + alpha J(x) tau. None takes the
            vector's own regime.

    Raises:
        BaseMismatchError: the vector starts from another model.

    Example:
        >>> import torch
        >>> base, tuned = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
        >>> tau = TaskVector.from_checkpoints(base, tuned)
        >>> torch.allclose(apply(base, tau).weight, tuned.weight)
        True
    """
    if edit_regime(vector, regime) != "standard":
        tangent = linearize(module, list(vector.deltas))
        tangent.load_task_vector(vector * scale)
        return tangent
    vector.require_base(models.fingerprint_of(module))
    edited = copy.deepcopy(module)
    set_weights(edited, module, vector, scale)
    return edited


def set_weights(edited: nn.Module, base: nn.Module, vector: TaskVector, scale: float) -> None:
    """Set a copy's weights to theta0 + scale * tau in place; `base` is only read."""
    origin = models.state_of(base)
    for name, tensor in models.state_of(edited).items():
        if name in vector.deltas:
            tensor.copy_(vector.moved(name, origin[name], scale))


@checked
def save(edited: nn.Module, path: str | Path, *, overwrite: bool = False) -> None:
    """Write an edited model: an ordinary one for its own library, a tangent one as base reference and vector.

    An ordinary transformers model becomes a directory that transformers loads unchanged. A tangent model
    (`Linearized`) becomes `tauspan.json` (the base's id and fingerprint) beside
    `vector.safetensors`; `tauspan.load` reads it.

    Raises:
        StoreError: the output is already there or cannot be written; nothing is left behind.
    """
    if isinstance(edited, Classifier):
        edited = edited.encoder
    if not isinstance(edited, Linearized):
        models.save_model(edited, path, overwrite=overwrite)
        return
    vector = edited.task_vector()
    reference = {"format": FORMAT, "base": vector.info["base_id"], "fingerprint": vector.base}
    with store.atomic(path, overwrite=overwrite) as temporary:
        temporary.mkdir()
        store.write_json(temporary / _REFERENCE, reference)
        vector.save_pretrained(temporary / FILE)


def _load_tangent(directory: Path) -> Linearized:
    reference = store.read_json(directory / _REFERENCE)
    if not isinstance(reference, dict) or reference.get("format") != FORMAT or "base" not in reference:
        raise StoreError(f"{directory / _REFERENCE} is not a reference of this version ({FORMAT!r}).")
    vector = TaskVector.from_pretrained(directory / FILE)
    base = models.load_model(reference["base"])
    if models.fingerprint_of(base) != vector.base:
        raise BaseMismatchError(
            f"{directory} was made from {reference['base']!r} with fingerprint {vector.base[:12]}, and the model of that "
            f"name is {models.fingerprint_of(base)[:12]} now. Restore the model it was made from."
        )
    tangent = linearize(base, list(vector.deltas))
    tangent.load_task_vector(vector)
    return tangent
