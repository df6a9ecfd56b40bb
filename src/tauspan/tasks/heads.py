"""The frozen head of a task: the user's own, label prompts, class prototypes, or a linear probe."""

import copy
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tauspan.core.arguments import checked
from tauspan.core.errors import DataError, UsageError
from tauspan.models import Encoder, Frozen, Head, eval_mode, fingerprint_of
from tauspan.models.encoder import Bare
from tauspan.models.frozen import key_of, reading
from tauspan.tasks.features import features_of
from tauspan.tasks.probe import RIDGE, probe
from tauspan.tasks.split import Split
from tauspan.tasks.task import Task


@checked
def build_head(task: Task, encoder: Encoder, *, shots: int = 10, max_tokens: int | None = None) -> Head:
    """The task's frozen head, built from the pre-trained encoder and used in all regimes.

    It is the user's own head if the task has one, else a head as `task.head_from` says:

    - `"prompts"`: CLIP's zero-shot head. With templates the weight of class k is w_k = m_k / |m_k|, where m_k is the
      mean over templates of e / |e| and e embeds the template with the class name in it; with `label_prompts` it is
      the unit embedding of the class's own prompt. Features are normalised too, the factor is `logit_scale`
      (exp(logit_scale) for CLIP), and there is no bias.
    - `"prototypes"`: the normalised mean of unit-norm features of the first `shots` training rows of each class, with
      the same factor.
    - `"probe"`: a linear head W z + b on the features as they are, fitted to all training rows (`tauspan.tasks.probe`).
      Both take the rows of `task.head_rows` where it is set.
    - `"outputs"`: none: the features themselves are the logits, or the numbers, one for each name of the task.
    - `"auto"`: prompts where the task has some and the encoder a text tower, else prototypes; a probe where the objective
      knows no classes.

    An edited encoder uses the heads of its pre-trained encoder (`Encoder.origin`): they are taken from `encoder.heads`,
    or built from the pre-trained encoder, never from the edited features.

    Args:
        task: the task of the head.
        encoder: the pre-trained encoder, or an edited one from `tauspan.apply` or `tauspan.load`.
        shots: training rows per class for prototypes.
        max_tokens: where the texts of training rows are cut (None takes the task's own value); use the same value for
            the rows that the head will read.

    Raises:
        DataError: a head or a list of prompts of another size than the classes, a class without training rows, or
            `"prompts"` for a task without any.
        UsageError: a head on a model that was loaded for texts.
        ModelError: `"prompts"` for an encoder without a text tower, or one that was trimmed too early.

    Cost:
        Prototypes: `shots` rows per class. Templates: classes times templates texts. A probe: all training rows. The last
        two are built once per encoder and task, and kept in `encoder.heads`.
    """
    if task.objective.headless:
        return Bare()
    if encoder.language is not None:
        raise UsageError(
            f"task {task.name!r} is {task.objective.word}, whose head reads one vector of a text, and {encoder.source} "
            f"was loaded for texts (language={encoder.language.table.length}), with states of every position: load it "
            "without `language` for this task."
        )
    tokens = task.tokens(max_tokens)
    facts = [] if task.head is not None else _made_of(task, encoder, shots, tokens)
    head = _own(task, task.head) if task.head is not None else _built(task, encoder, facts, tokens)
    kind = task.objective.word
    encoder.frozen[task.name] = Frozen(task.name, tuple(task.label_names), head, tokens, tuple(facts), kind)
    return head


def _made_of(task: Task, encoder: Encoder, shots: int, tokens: int | None) -> list[Any]:
    """What determines the head besides the encoder; the first entry says how it is built."""
    source = _source(task, encoder)
    if source == "outputs":
        return ["outputs", len(task.label_names)]
    if source == "prompts":
        return ["prompts", max(len(task.templates), 1), _prompts(task)]
    rows, classes = _rows(task), len(task.label_names)
    if source == "probe":
        kind = [] if task.classes else [repr(task.objective)]
        return ["probe", RIDGE, classes, tokens, rows.digest, *kind]
    read = [place for places in _first_rows(task, shots) for place in places]
    return ["prototypes", shots, classes, tokens, rows.take(read).digest]


def _built(task: Task, encoder: Encoder, facts: list[Any], tokens: int | None) -> Head:
    """The head built from the pre-trained encoder; it is kept if building takes long."""
    if facts[0] == "outputs":
        first = next(encoder.parameters(), None)
        return Head(torch.eye(facts[1]).to(first if first is not None else torch.zeros(())))
    origin = encoder.origin
    if origin is not None:
        key = key_of(origin.fingerprint, origin.reading, facts)
        shots = facts[1] if facts[0] == "prototypes" else 1
        return _kept(encoder, key, lambda: build_head(task, origin.encoder(), shots=shots, max_tokens=tokens))
    if facts[0] == "prototypes":
        return _cosine(encoder, _prototypes(task, encoder, facts[1], tokens))
    if facts[0] == "prompts" and not task.templates and encoder.label_features is encoder.features:
        return _prompted(task, encoder)  # encoding a few texts costs less than computing the key
    key = key_of(fingerprint_of(encoder), reading(encoder), facts)
    if facts[0] == "probe":
        return _kept(encoder, key, lambda: _probe(task, encoder, _rows(task), tokens))
    return _kept(encoder, key, lambda: _prompted(task, encoder))


def _prompted(task: Task, encoder: Encoder) -> Head:
    return _cosine(encoder, _averaged(encoder, _prompts(task), max(len(task.templates), 1)))


def _own(task: Task, head: Head) -> Head:
    if len(head.weight) != len(task.label_names):
        raise DataError(
            f"the head of task {task.name!r} has {len(head.weight)} outputs, the task {len(task.label_names)} "
            f"{'classes' if task.classes else 'names of outputs'}. Give it a row of weights for every name, in their "
            "order."
        )
    return head


def _source(task: Task, encoder: Encoder) -> Literal["prompts", "prototypes", "probe", "outputs"]:
    if task.head_from != "auto":
        return task.head_from
    if not task.classes:
        return "probe"
    described = bool(task.templates or task.label_prompts)
    return "prompts" if described and encoder.label_features is not None else "prototypes"


def _prompts(task: Task) -> list[str]:
    """The prompts of all classes, class by class: one for each template, or the class's own prompt."""
    if task.templates:
        return [template.replace("{}", name) for name in task.label_names for template in task.templates]
    if not task.label_prompts:
        raise DataError(
            f"task {task.name!r} has head_from='prompts', and neither templates nor label prompts. Give it "
            'some, or choose head_from="prototypes" or "probe".'
        )
    return list(task.label_prompts)


def _averaged(encoder: Encoder, prompts: list[str], templates: int) -> Tensor:
    """One unit vector per class, from the unit embeddings of its prompts, shape (K, d)."""
    with eval_mode(encoder):
        unit = encoder.embed_labels(prompts)
    if templates == 1:  # it has unit length already: dividing by its rounded length would only change bits
        return unit
    return F.normalize(unit.view(-1, templates, unit.shape[-1]).mean(1), dim=-1)


def _cosine(encoder: Encoder, weight: Tensor) -> Head:
    return Head(weight, scale=encoder.logit_scale, normalize=True)


def _kept(encoder: Encoder, key: str, build: Callable[[], Head]) -> Head:
    """A copy of the head with this key, on the encoder's device; it is built if the encoder does not have it yet."""
    if key not in encoder.heads:
        encoder.heads[key] = build()
    return copy.deepcopy(encoder.heads[key]).to(next(encoder.parameters()).device)


def _rows(task: Task) -> Split:
    """The labelled rows that prototypes and probes are made from."""
    return task.split("train") if task.head_rows is None else task.head_rows


def _first_rows(task: Task, shots: int) -> list[list[int]]:
    """The indices of the first `shots` training rows of each class.

    Raises:
        DataError: a class without one.
    """
    rows, found = _rows(task), []
    for index in range(len(task.label_names)):
        places: list[int] = (rows.labels == index).nonzero().flatten()[:shots].tolist()
        if not places:
            raise _empty(task, index, "to make a prototype from")
        found.append(places)
    return found


def _prototypes(task: Task, encoder: Encoder, shots: int, max_tokens: int | None) -> Tensor:
    rows, weights = _rows(task), []
    for places in _first_rows(task, shots):
        features = features_of(encoder, rows.take(places), max_tokens, len(places))
        weights.append(F.normalize(F.normalize(features, dim=-1).mean(0), dim=-1))
    return torch.stack(weights)


def _probe(task: Task, encoder: Encoder, rows: Split, max_tokens: int | None) -> Head:
    require_every_class(task, rows)
    features = features_of(encoder, rows, max_tokens)
    return probe(features, rows.labels, len(task.label_names), objective=task.objective).head


def require_every_class(task: Task, rows: Split) -> None:
    """Raise unless each class has a row that a probe can be fitted to."""
    if task.classes:
        counts = torch.bincount(rows.labels, minlength=len(task.label_names))
        if int(counts.min()) == 0:
            raise _empty(task, int(counts.argmin()), "to fit a probe to")


def _empty(task: Task, index: int, why: str) -> DataError:
    return DataError(
        f"class {task.label_names[index]!r} of task {task.name!r} has no training row {why}; the other "
        f"{len(task.label_names) - 1} classes share {len(task.splits['train'])}. Add rows of it, or leave the class "
        "out of the class names."
    )
