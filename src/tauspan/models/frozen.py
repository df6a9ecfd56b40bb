"""Frozen heads of an encoder: the pre-trained encoder they were made from, their files, and their predictions."""

import hashlib
import json
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from torch import Tensor

from tauspan import store
from tauspan.core.arguments import no_rows
from tauspan.core.errors import (
    ModelError,
    NonFiniteError,
    StoreError,
    TauspanError,
    UsageError,
    listed,
    nearest,
)
from tauspan.core.params import fingerprint
from tauspan.models.encoder import Batch, Encoder, Head
from tauspan.models.home import fingerprint_of
from tauspan.models.intact import Intact
from tauspan.models.select import eval_mode
from tauspan.models.sources import load_model
from tauspan.objectives import OBJECTIVES, Classification, Objective

FOLDER = "heads"
FORMAT = "tauspan-head/1"


@dataclass(frozen=True, eq=False)
class Frozen:
    """The frozen head of one task, with what is needed to name classes and to recognise the head.

    Args:
        task: the task's name.
        label_names: the K classes, in the order of the logits.
        head: features to logits.
        max_tokens: where texts are cut; None leaves it to the tokenizer.
        made_of: everything the head was made from besides the encoder, as JSON; empty for a head that the task brings.
        kind: the word of the task's objective, which says what the outputs mean.
    """

    task: str
    label_names: tuple[str, ...]
    head: Head
    max_tokens: int | None = None
    made_of: tuple[Any, ...] = ()
    kind: str = Classification.word


@dataclass(frozen=True)
class Prediction:
    """What a model says of one row.

    Args:
        label: the class with the largest probability; of several labels, those above one half, joined by commas.
        probabilities: the softmax of the logits, by class; of several labels, the sigmoid of each; else empty.
        values: of other objectives than these, the outputs by name.
    """

    label: str
    probabilities: Mapping[str, float]
    values: Mapping[str, float] = field(default_factory=dict)

    @property
    def probability(self) -> float:
        """The probability of the predicted class."""
        return self.probabilities[self.label]


class Origin:
    """The pre-trained encoder that an edited one was made from; the edited encoder uses its frozen heads.

    A head built from the edited encoder's features would be a different head.

    Args:
        source: the pre-trained encoder's id or path, as it was given.
        path: where its directory was, if it was one.
        fingerprint: the pre-trained encoder's fingerprint.
        reading: what else determines its heads: `Encoder.describe()` and its dtype.
        encoder: the encoder, while it is in memory; an encoder without files is always kept.
    """

    def __init__(
        self, source: str, path: str | None, fingerprint: str, reading: str, encoder: Encoder | None = None
    ) -> None:
        self.source, self.path, self.fingerprint, self.reading = source, path, fingerprint, reading
        lasting = encoder is not None and encoder.home is None
        self._kept = encoder if lasting else None
        self._seen = (lambda: None) if encoder is None or lasting else weakref.ref(encoder)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Origin":
        return self

    @staticmethod
    def of(encoder: Encoder) -> "Origin":
        """The origin for edits of an encoder: the encoder itself, or its origin if it was edited before."""
        if encoder.origin is not None:
            return encoder.origin
        path = None if encoder.home is None else str(encoder.home.directory.resolve())
        return Origin(encoder.source, path, fingerprint_of(encoder), reading(encoder), encoder)

    def encoder(self, language: int | None = None) -> Encoder:
        """The pre-trained encoder, from memory or loaded again.

        Args:
            language: as in `tauspan.load`, where it is to be read as a language model.

        Raises:
            ModelError: it no longer exists, or it has changed.
        """
        held = self._kept or self._seen()
        if held is not None and (language is None or held.language is not None):
            return held
        found, failed = base_of(self.source, self.path, self.fingerprint, language=language)
        if found is None:
            raise ModelError(
                f"this model was edited from {self.source!r} (fingerprint {self.fingerprint[:12]}), whose frozen heads "
                f"are its heads, and that model is not found: {failed}. Name its place: "
                "`tauspan.load(PATH, base=DIR)` (--base DIR)."
            )
        self._kept = found  # so that several heads load it once
        return found


def base_of(
    source: str, path: str | None, fingerprint: str, beside: Path | None = None, language: int | None = None
) -> tuple[Encoder | None, str]:
    """The encoder with a given fingerprint, loaded from where it was; else None, and a message about what is there now.

    Args:
        source: its id or path as it was given.
        path: its absolute path, if it is a directory.
        fingerprint: the expected fingerprint; empty if it was never computed.
        beside: a directory to which relative paths may refer.
        language: as in `tauspan.load`.
    """
    places = [source, *([path] if path else []), *([str(beside / source)] if beside is not None else [])]
    failed = []
    for place in dict.fromkeys(places):
        try:
            found = load_model(place, language=language)
        except TauspanError as error:
            failed.append(str(error))
            continue
        own = fingerprint_of(found)
        if own == fingerprint or not fingerprint:
            return found, ""
        failed.append(f"{place!r} has the fingerprint {own[:12]} now")
    return None, "; ".join(failed)


def reading(encoder: Encoder) -> str:
    """A text with what determines an encoder's heads besides its weights: its dtype and `Encoder.describe()`."""
    first = next(encoder.parameters(), None)
    return f"{None if first is None else first.dtype}|{encoder.describe()}"


def key_of(fingerprint: str, reading: str, made_of: Sequence[Any]) -> str:
    """A hash of an encoder and of everything else that one of its heads is made from."""
    return hashlib.sha256(json.dumps([fingerprint, reading, *made_of]).encode()).hexdigest()


# -- files ---------------------------------------------------------------------------------------------------


def save_heads(directory: Path, heads: Mapping[str, Frozen]) -> None:
    """Write each head as `heads/TASK.safetensors` in a directory."""
    for name, one in heads.items():
        facts = {
            "format": FORMAT, "task": one.task, "label_names": list(one.label_names), "scale": one.head.scale,
            "normalize": one.head.normalize, "max_tokens": one.max_tokens, "made_of": list(one.made_of),
        }  # fmt: skip
        tensors = {key: tensor for key, tensor in one.head.state_dict().items() if tensor is not None}
        if one.kind != Classification.word:
            facts["kind"] = one.kind
        facts["fingerprint"] = fingerprint(tensors)
        file = directory / FOLDER / f"{quote(name, safe=' ')}.safetensors"
        store.write_tensors(file, tensors, {"tauspan": json.dumps(facts)})


def read_heads(directory: Path) -> dict[str, Frozen]:
    """The heads in a directory by task.

    Raises:
        StoreError: a file that is not a head, or with other tensors than were saved for its task.
    """
    found = {}
    for file in sorted((directory / FOLDER).glob("*.safetensors")):
        checkpoint = store.Checkpoint(file)
        tensors = checkpoint.read()
        try:
            facts = json.loads(checkpoint.metadata["tauspan"])
            if facts["format"] != FORMAT or len(tensors["weight"]) != len(facts["label_names"]):
                raise ValueError(f"format {facts['format']!r}")
            if facts.get("fingerprint", own := fingerprint(tensors)) != own:
                raise ValueError("its tensors are not those that were saved for this task")
            head = Head(
                tensors["weight"],
                tensors.get("bias"),
                scale=float(facts["scale"]),
                normalize=bool(facts["normalize"]),
            )
            names = tuple(map(str, facts["label_names"]))
            kind = str(facts.get("kind", Classification.word))
            one = Frozen(str(facts["task"]), names, head, facts["max_tokens"], tuple(facts["made_of"]), kind)
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"{file} holds no head of this version ({FORMAT!r}): {error}.") from error
        found[one.task] = one
    return found


# -- predictions ---------------------------------------------------------------------------------------------


def chosen_head(heads: Mapping[str, Frozen], task: str | None, source: str) -> Frozen:
    """The head of a task, or the only head.

    Raises:
        UsageError: there is no head, none of that name, or several and no name is given.
    """
    if not heads:
        raise UsageError(
            f"{source} has no head that turns features into classes. Make one of a task: `tauspan.evaluate` and "
            "`tauspan.tasks.build_head` keep it in the encoder, `tauspan apply ... --task TASK` in the saved model, and "
            "`tauspan predict --task TASK` makes one where none is saved."
        )
    if task is None and len(heads) == 1:
        return next(iter(heads.values()))
    if task is None:
        raise UsageError(
            f"{source} has heads of {len(heads)} tasks ({listed(heads)}): name one (`task=`, --task)."
        )
    if task not in heads:
        raise UsageError(f"{source} has no head of the task {task!r}. {nearest(task, heads)}")
    return heads[task]


@torch.no_grad()
def predicted(
    encoder: Encoder, logits: Callable[[Batch], Tensor], rows: Sequence[Any], frozen: Frozen, batch_size: int
) -> list[Prediction]:
    """The class and the probabilities of each raw row, in the order of the rows.

    Raises:
        NonFiniteError: NaN or infinity in the logits of a row.
    """
    if batch_size < 1:
        raise UsageError(f"batch_size={batch_size}: it must be at least 1.")
    wrong = no_rows(rows)
    if wrong is not None:
        raise UsageError(f"predict reads a list of rows, and this is {wrong}.")
    found = []
    meaning = OBJECTIVES.get(frozen.kind, Objective)  # a loss of the user's has no row there
    with Intact(encoder.backbone)(), eval_mode(encoder):
        for start in range(0, len(rows), batch_size):
            some = rows[start : start + batch_size]
            values = logits(encoder.encode(some, frozen.max_tokens)).detach().cpu().double()
            for place, row in enumerate(values):
                if not bool(torch.isfinite(row).all()):
                    raise NonFiniteError(
                        f"the logits of row {start + place} hold NaN or infinity: it has nothing that the model reads, "
                        "or the weights are broken."
                    )
                found.append(Prediction(*meaning.said(row, frozen.label_names)))
    return found
