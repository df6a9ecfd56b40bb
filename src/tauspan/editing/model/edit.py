"""Editing a model: load it, apply a task vector to it, save what came out."""

from pathlib import Path
from typing import Literal, overload

from torch import nn

from tauspan import models, store
from tauspan.core.arguments import checked
from tauspan.core.choices import EditRegime, Point
from tauspan.core.errors import ModelError, UsageError
from tauspan.core.processes import own_device
from tauspan.editing.model.directions import require_numbers
from tauspan.editing.model.kinds import model_kind
from tauspan.editing.model.regime import edit_regime, point_of
from tauspan.editing.model.saved import (
    REFERENCE,
    TANGENT,
    Reference,
    edited_from,
    load_into,
    load_tangent,
    restore_edited,
    save_edited,
    save_tangent,
)
from tauspan.models import Classifier, Encoder
from tauspan.tangent import Linearized
from tauspan.vector import TaskVector


@overload
def load(source: Literal["minilm"] | nn.Module, device: str | None = None) -> Encoder: ...


@overload
def load(
    source: str | Path | nn.Module,
    device: str | None = None,
    *,
    base: str | Path | None = None,
    module: nn.Module | None = None,
) -> Encoder | Linearized: ...


@overload
def load(
    source: str | Path,
    device: str | None = None,
    *,
    base: str | Path | None = None,
    module: nn.Module | None = None,
    language: int | None,
) -> Encoder | Linearized: ...


@checked
def load(
    source: str | Path | nn.Module,
    device: str | None = None,
    *,
    base: str | Path | None = None,
    module: nn.Module | None = None,
    language: int | None = None,
) -> Encoder | Linearized:
    """A pre-trained model, or an edited one that `save` wrote.

    Args:
        source: `"minilm"` (the packaged encoder) or `"smollm2"` (a packaged language model), a GGUF file, a directory, a
            hub id such as `org/name@revision`, `hf-hub:org/name` or `local-dir:path` for timm and open_clip, or an
            `nn.Module`.
        device: where it goes, such as `"cuda"`, which in a process of a launcher is that process's own; None leaves it
            where it is, and what is read from files is on the CPU.
        base: of an edited model: where the pre-trained one is now, if it was moved.
        module: of a module of your own that `save` wrote: the module, or an `Encoder` around it, whose weights are not
            used for an ordinary model and are the base of a tangent one.
        language: read a language model of transformers (a decoder, a sequence-to-sequence or a masked one), for tasks of
            texts of at most so many tokens.

    Returns:
        An `Encoder` in eval mode; for the directory of an edited tangent model, the `Linearized` encoder with
        its vector loaded. Heads that were saved with it are kept in it.

    Raises:
        ModelError, PickleRefusedError, StoreError, MissingExtraError: each names the source and the repair.
        BaseMismatchError: the pre-trained model of a tangent model is not there any more.
        UsageError: the device is not there.

    Example:
        >>> import torch
        >>> load(torch.nn.Linear(4, 3)).source
        'Linear'
    """
    loaded = _loaded(source, None if base is None else str(base), module, language)
    if device is None:
        return loaded
    try:
        return loaded.to(own_device(device))
    except (RuntimeError, AssertionError) as error:  # torch raises both for a device that is not there
        raise UsageError(
            f"the device {device!r} cannot be used: {error} Name one that is there, or cpu."
        ) from error


def _loaded(
    source: str | Path | nn.Module, base: str | None, module: nn.Module | None, language: int | None
) -> Encoder | Linearized:
    if isinstance(source, nn.Module):
        return models.load_model(source, language=language)
    directory = Path(source)
    if (directory / REFERENCE).is_file() and Reference.read(directory).format == TANGENT:
        return load_tangent(directory, module if module is not None else base, language)
    if module is not None:
        return restore_edited(load_into(module, directory), directory, base)
    own = directory.is_dir() and (directory / "model.safetensors").is_file()
    if own and not any((directory / name).is_file() for name in ("config.json", "open_clip_config.json")):
        raise ModelError(
            f"{directory} has no config.json, so no library knows its class. If it is a module of your own that "
            f"`tauspan.save` wrote, give that: `tauspan.load({str(directory)!r}, module=MODULE)`."
        )
    return restore_edited(models.load_model(source, language=language), directory, base)


@checked
def apply(
    module: nn.Module,
    vector: TaskVector,
    scale: float = 1.0,
    *,
    regime: EditRegime | None = None,
    point: Point | None = None,
) -> nn.Module:
    """The module edited by `scale * vector`; the input is never changed.

    An edited encoder keeps the frozen heads of the one it was made from. In the tangent regimes an edited encoder gives
    the tangent features, and `evaluate`, `predict` and `Linearized.under` put a head on it at the vector's own
    linearisation point: under a head that normalises features, the tangent features do not decide the tangent logits.

    Args:
        module: the pre-trained module, `Encoder` or `Classifier` that the vector starts from.
        vector: one vector, or any sum of them.
        scale: the coefficient alpha.
        regime: `"standard"` gives f(x; theta0 + alpha tau) as an ordinary module of the same class;
            `"linear"` and `"posthoc"` give the tangent model f(x; theta0) + alpha J(x) tau. None takes the
            vector's own regime.
        point: where the tangent model of a `Classifier`, or of a head on an `Encoder`, is linearised; None takes the
            vector's own, else `"logits"`.

    Raises:
        BaseMismatchError: the vector starts from another model.
        MismatchError: it moves a tensor that the module and its files lack.
        UsageError: the scale is NaN or infinite.

    Example:
        >>> import torch
        >>> base, tuned = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
        >>> tau = TaskVector.from_checkpoints(base, tuned)
        >>> torch.allclose(apply(base, tau).weight, tuned.weight)
        True
    """
    require_numbers({vector.label: scale})
    kind = model_kind(edit_regime(vector, regime))
    module = models.unrestricted(module)  # so that an edited model is one of whole tensors
    return kind.applied(module, vector, scale, point_of([vector], point))


@checked
def save(edited: nn.Module, path: str | Path, *, overwrite: bool = False) -> None:
    """Write an edited model: an ordinary one for its own library, a tangent one as base reference and vector.

    An ordinary transformers model becomes a directory that transformers loads unchanged, with every tensor that its
    files had. A tangent model (`Linearized`) becomes `tauspan.json` (the base's id, place and fingerprint, and the
    linearisation point) beside `vector.safetensors`. With either go the frozen heads that the encoder keeps: those that
    it, or the pre-trained one it was made from, was evaluated with. `tauspan.load` reads both; a module of your own with
    `module=`.

    Raises:
        StoreError: the output is already there or cannot be written; nothing is left behind.
        UsageError: it would replace the pre-trained model that this one was edited from.
    """
    store.require_folder(path)
    store.require_apart(path, edited_from(edited))
    with store.atomic(path, overwrite=overwrite) as temporary:
        temporary.mkdir()
        if isinstance(edited, Linearized):
            save_tangent(edited, temporary)
        else:
            models.write_model(edited.encoder if isinstance(edited, Classifier) else edited, temporary)
            save_edited(edited, temporary)
