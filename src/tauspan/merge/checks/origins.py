"""Whole models against each other: weights or displacements, configuration, base and regime."""

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from tauspan.core import params
from tauspan.core.errors import listed
from tauspan.merge.sources.inputs import Source, config_of, found
from tauspan.merge.sources.problems import Problem, Severity

_SPACES = {"point": "a model's weights", "delta": "a displacement"}


def spaces(base: Source | None, models: Sequence[Source]) -> Iterator[Problem]:
    """Whether weights and displacements meet only where there is a base."""
    if base is not None and base.kind != "point":
        yield Problem(
            "error",
            "spaces",
            None,
            base.label,
            base.path,
            f"the base {base.path} is a displacement, not a model. Name the pre-trained model as the base.",
        )
    first = models[0]
    other = next((model for model in models if model.kind != first.kind), None)
    if base is None and other is not None:
        yield Problem(
            "error",
            "spaces",
            None,
            other.label,
            other.path,
            f"{first.path} holds {_SPACES[first.kind]} and {other.path} {_SPACES[other.kind]}: they meet only at a base. "
            "Name it: `base_model`.",
        )


def architecture(reference: Source, model: Source) -> Iterator[Problem]:
    """Whether both configurations name one model type and one class."""
    ours, theirs = config_of(model.path), config_of(reference.path)
    rules: tuple[tuple[str, Severity, str], ...] = (
        ("model_type", "error", "the same names may mean other functions"),
        ("architectures", "warning", "one may have a head that the other lacks"),
    )
    for key, severity, meaning in rules:
        if ours.get(key) and theirs.get(key) and ours[key] != theirs[key]:
            yield Problem(
                severity,
                "architecture",
                None,
                model.label,
                model.path / "config.json" if model.path.is_dir() else model.path,
                f"{key} is {ours[key]!r} in {model.path} and {theirs[key]!r} in {reference.path}: {meaning}. Merge "
                "models of one architecture, saved from one class.",
            )


def vectors(displacements: Sequence[Source]) -> Iterator[Problem]:
    """Displacements among themselves; an adapter is zero beside the modules that it names."""
    saved = [vector for vector in displacements if "base" in vector.identity]
    for key, kind, rule in (
        (
            "base",
            "base",
            "displacements from different points do not add. Fine-tune both from one pre-trained model",
        ),
        ("regime", "regime", "they edit different functions. Fine-tune both in one regime"),
        ("point", "regime", "they edit different functions. Fine-tune both at one linearisation point"),
    ):
        for vector in saved[1:]:
            mine, theirs = vector.identity.get(key, ""), saved[0].identity.get(key, "")
            if mine != theirs and (key != "point" or (mine and theirs)):
                yield Problem(
                    "error",
                    kind,
                    None,
                    vector.label,
                    vector.path,
                    f"the {key} of {vector.path} is {mine[:12]} and of {saved[0].path} {theirs[:12]}: {rule}.",
                )
    names = dict.fromkeys(name for vector in saved for name in vector.tensors)
    for vector in saved:
        absent = [name for name in names if name not in vector.tensors]
        if absent:
            yield Problem(
                "error",
                "missing_tensors",
                absent[0],
                vector.label,
                vector.path,
                f"{vector.path} lacks {listed(map(repr, absent))}, which other vectors have. Choose the same parameters, "
                "or say that it does not move them: `vector.filled_like(other)`.",
            )


def made_for(base: Source | None, models: Sequence[Source]) -> Iterator[Problem]:
    """Whether adapters name the base that they are put on; a warning, since a copy of it has another name."""
    if base is None:
        return
    given = str(base.identity.get("path", base.path))
    known = {str(config_of(base.path).get("_name_or_path", "")), given.partition("@")[0], str(base.path)}
    ends = {name.rstrip("/").rpartition("/")[2] for name in known}
    for model in models:
        stated = model.identity.get("adapter", {}).get("base_model_name_or_path")
        if isinstance(stated, str) and stated and stated.rstrip("/").rpartition("/")[2] not in ends:
            yield Problem(
                "warning",
                "base",
                None,
                model.label,
                model.path,
                f"the adapter {model.path} was trained on {stated!r}, and the base is {given}: on other weights it is "
                "not what was trained. Name that model as the base, or go on if they are the same weights.",
            )


def tied(models: Sequence[Source]) -> Iterator[Problem]:
    """What adapters and sums with them do that may not be meant: both ends of a tie, parts of a pipeline left out."""
    for model in models:
        for kind, note in getattr(model, "notes", ()):
            yield Problem("warning", kind, None, model.label, model.path, f"{note}.")


class _Tensors(Mapping[str, Tensor]):
    """A source's tensors, each read when it is asked for, so that one at a time is in memory."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def __getitem__(self, name: str) -> Tensor:
        shape = found(self._source, name).shape
        return self._source.read(name, 0, shape.numel()).view(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._source.tensors)

    def __len__(self) -> int:
        return len(self._source.tensors)


def fingerprint_of(source: Source) -> str:
    """The content fingerprint of the stored tensors; reads all of them."""
    return params.fingerprint(_Tensors(source))


def fingerprints(base: Source, models: Sequence[Source]) -> Iterator[Problem]:
    """Whether the vectors start from this base, by content; reads all of the base."""
    saved = [model for model in models if "base" in model.identity]
    own = fingerprint_of(base) if saved else ""
    for vector in saved:
        if vector.identity["base"] != own:
            yield Problem(
                "error",
                "base",
                None,
                vector.label,
                vector.path,
                f"{vector.path} starts from base {vector.identity['base'][:12]}, and {base.path} is {own[:12]}. Take the "
                "model that it was made from, or re-label it: `vector.rebased(model)`.",
            )
