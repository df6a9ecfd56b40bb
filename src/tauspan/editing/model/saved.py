"""What an edited model keeps beside its weights when it is saved: where it came from, and its frozen heads."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model as fill
from torch import nn

from tauspan import models, store
from tauspan.core.errors import BaseMismatchError, ModelError, StoreError
from tauspan.models import Classifier, Encoder, Frozen, Head, Origin
from tauspan.models.frozen import base_of, key_of, read_heads, reading, save_heads
from tauspan.tangent import Linearized, linearize
from tauspan.vector import FILE, TaskVector

REFERENCE = "tauspan.json"
TANGENT = "tauspan-tangent/1"  # a vector, and where its base is
EDITED = "tauspan-edited/1"  # an ordinary model's weights, and where its heads come from
_FORMATS = (TANGENT, EDITED)


@dataclass(frozen=True)
class Reference:
    """What `tauspan.json` says.

    Args:
        format: `TANGENT` or `EDITED`.
        base: the pre-trained model's id or path as it was given; of a module of one's own, its class.
        path: the absolute path of its directory, if it was one.
        fingerprint: its own.
        point: where the tangent model of a head is linearised; None for an ordinary model.
        reading: what else decides its heads; empty for a module without an encoder.
        edit: how the model was made of it, in words.
    """

    format: str
    base: str
    path: str | None
    fingerprint: str
    point: str | None = None
    reading: str = ""
    edit: str = ""

    def write(self, directory: Path) -> None:
        """Into `tauspan.json` of a directory."""
        store.write_json(directory / REFERENCE, {key: value for key, value in vars(self).items() if value})

    @staticmethod
    def read(directory: Path) -> "Reference":
        """From a directory.

        Raises:
            StoreError: not a reference of this version.
        """
        content = store.read_json(directory / REFERENCE)
        wrong = (
            not isinstance(content, dict) or content.get("format") not in _FORMATS or "base" not in content
        )
        if wrong:
            raise StoreError(
                f"{directory / REFERENCE} is not a reference of this version ({' or '.join(map(repr, _FORMATS))})."
            )
        texts = {key: content.get(key) for key in Reference.__dataclass_fields__}
        for key, value in texts.items():
            if not isinstance(value, str | None):
                raise StoreError(f"{directory / REFERENCE} has {key}={value!r:.80}, which is no text.")
        return Reference(
            str(texts["format"]), str(texts["base"]), texts["path"], texts["fingerprint"] or "", texts["point"],
            texts["reading"] or "", texts["edit"] or "",
        )  # fmt: skip

    @property
    def origin(self) -> Origin:
        """The pre-trained encoder that it names."""
        return Origin(self.base, self.path, self.fingerprint, self.reading)


def of_origin(origin: Origin, form: str, point: str | None, edit: str) -> Reference:
    """The reference of a model that was edited from an encoder."""
    return Reference(form, origin.source, origin.path, origin.fingerprint, point, origin.reading, edit)


# -- ordinary models -----------------------------------------------------------------------------------------


def save_edited(edited: nn.Module, directory: Path) -> None:
    """Beside the weights: the reference to what an encoder was edited from, and the heads that it keeps."""
    encoder = models.encoder_in(edited)
    if encoder is None:
        return
    if encoder.origin is not None:
        of_origin(encoder.origin, EDITED, None, encoder.edit).write(directory)
    save_heads(directory, _heads(edited))


def edited_from(edited: nn.Module) -> list[str | Path | None]:
    """The directories of pre-trained models that an edited one refers to when it is saved."""
    encoder = models.encoder_in(edited.base if isinstance(edited, Linearized) else edited)
    if encoder is None:
        return []
    home = encoder.home.directory if isinstance(edited, Linearized) and encoder.home is not None else None
    return [home, None if encoder.origin is None else encoder.origin.path]


def _heads(edited: nn.Module) -> dict[str, Frozen]:
    """The heads that an encoder keeps, and the one that a classifier has on it: `head`, unless it is one of them."""
    encoder = models.encoder_in(edited)
    kept = {} if encoder is None else dict(encoder.frozen)
    if isinstance(edited, Classifier):
        own = edited.head
        if not any(_same(own, one.head) for one in kept.values()):
            kept["head"] = Frozen("head", tuple(map(str, range(len(own.weight)))), own)
    return kept


def _same(one: Head, other: Head) -> bool:
    plain = (one.scale, one.normalize) == (other.scale, other.normalize)
    mine, theirs = one.state_dict(), other.state_dict()
    return (
        plain
        and mine.keys() == theirs.keys()
        and all(torch.equal(t.cpu(), theirs[n].cpu()) for n, t in mine.items())
    )


def restore_edited(encoder: Encoder, directory: Path, base: str | None = None) -> Encoder:
    """The encoder of a directory with the heads that were saved there, and with where others come from."""
    heads = read_heads(directory)
    encoder.frozen |= heads
    if (directory / REFERENCE).is_file():
        reference = Reference.read(directory)
        encoder.edit = reference.edit
        encoder.origin = reference.origin if base is None else _elsewhere(reference, base, directory)
        for one in heads.values():
            if one.made_of:
                key = key_of(encoder.origin.fingerprint, encoder.origin.reading, list(one.made_of))
                encoder.heads[key] = one.head
    return encoder


def _elsewhere(reference: Reference, base: str, directory: Path) -> Origin:
    found = _base(reference, base, directory)
    return Origin(base, str(Path(base).resolve()), reference.fingerprint, reference.reading, found)


# -- tangent models ------------------------------------------------------------------------------------------


def save_tangent(edited: Linearized, directory: Path) -> None:
    """The vector, the reference to its base, its linearisation point, and the heads that the base keeps."""
    vector = edited.task_vector(edited.label)
    base = models.encoder_in(edited.base)
    if base is not None:
        models.require_storable(base)
    point = str(vector.info["point"])
    if base is None:
        name = type(edited.base).__name__
        reference = Reference(TANGENT, name, None, vector.base, point)
    else:
        path = None if base.home is None else str(base.home.directory.resolve())
        reference = Reference(TANGENT, base.source, path, vector.base, point, reading(base), edited.label)
        save_heads(directory, _heads(edited.base))
    reference.write(directory)
    vector.save_pretrained(directory / FILE)


def load_tangent(
    directory: Path, base: str | nn.Module | None = None, language: int | None = None
) -> Linearized:
    """The tangent model of a directory, on the base that it names or the one that is given.

    Raises:
        BaseMismatchError, ModelError: the base is not there any more, or is another model now.
    """
    reference = Reference.read(directory)
    vector = TaskVector.from_pretrained(directory / FILE)
    encoder = models.load_model(base) if isinstance(base, nn.Module) else _base(reference, base, directory)
    if language is not None:
        encoder = models.load_model(encoder.source, language=language)
    encoder.frozen |= read_heads(directory)
    tangent = linearize(encoder, list(vector.fitted(encoder, tangent=True).deltas))
    tangent.load_task_vector(vector)
    # older files named no point, and their heads were put on at the logits
    tangent.head_point = "encoder" if reference.point == "encoder" else "logits"
    return tangent


def _base(reference: Reference, base: str | None, directory: Path) -> Encoder:
    """The pre-trained encoder, from the place that is named or from those where it was."""
    if base is not None:
        found, failed = base_of(base, None, reference.fingerprint)
    else:
        found, failed = base_of(reference.base, reference.path, reference.fingerprint, directory)
    if found is None:
        raise BaseMismatchError(
            f"{directory} was made from {reference.base!r} with fingerprint {reference.fingerprint[:12]}, and that model "
            f"is not found: {failed}. Restore the model it was made from, or name its place: "
            f"`tauspan.load({str(directory)!r}, base=DIR)` (--base DIR); give a module of your own as `module=`."
        )
    return found


# -- modules of one's own ------------------------------------------------------------------------------------


def load_into(module: nn.Module, directory: Path) -> Encoder:
    """A copy of a module with the weights of a directory that `save` wrote; the module itself is not changed.

    Raises:
        ModelError: other tensors than the module's, or of other shapes.
    """
    encoder = models.working_copy(models.load_model(module))
    names = models.names_of(encoder)
    try:
        if names.plain:
            fill(encoder.backbone, str(models.weights_of(directory)))
        else:
            _, checkpoint = models.checkpoint_of(directory)
            inside = {name: names.renamed.get(name, name) for name in names.carried}
            given = names.to_memory(checkpoint.read())
            encoder.backbone.load_state_dict({n: t for n, t in given.items() if n not in inside}, strict=True)
    except (RuntimeError, StoreError) as error:
        raise ModelError(
            f"{directory} does not fit {type(encoder.backbone).__name__}: {error}. Give the module that was saved."
        ) from error
    return encoder


def facts(encoder: Encoder) -> dict[str, Any]:
    """What a report says of an edited encoder's heads."""
    return {} if encoder.origin is None else {"heads of": encoder.origin.source}
