"""`Statistics`: statistics of a model on its data, for merging methods, as a safetensors file with its provenance."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from tauspan import store
from tauspan.core import params
from tauspan.core.arguments import checked
from tauspan.core.errors import BaseMismatchError, MismatchError, StoreError, UsageError, listed, nearest
from tauspan.core.params import Params
from tauspan.merge.methods.method import Need
from tauspan.merge.sources.opening import FileSource, described
from tauspan.merge.sources.problems import Problem, about
from tauspan.merge.sources.source import Source
from tauspan.store import Access, Stored, Values, read_header
from tauspan.vector import TaskVector

FORMAT = "tauspan-statistics/1"
Kind = Literal["fisher", "gram"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, eq=False)
class Statistics:
    """Statistics of one fine-tuned model on one task, by the names of the model's own tensors.

    Args:
        kind: `"fisher"`: the Fisher information's diagonal, shaped like each tensor; `"gram"`: the mean of x x^T over
            the inputs x of each linear layer, shape (columns, columns), under the name of the layer's weight.
        tensors: the statistics.
        base: content fingerprint of theta0.
        regime: the model they were gathered at: `"standard"`, `"posthoc"` or `"linear"`.
        vector: label of the task vector they belong to.
        task: name of the task.
        split: whose rows were read.
        rows: how many rows.
        info: further provenance.

    Raises:
        UsageError: an unknown kind.
        NonFiniteError: NaN or infinity.

    Example:
        >>> import torch
        >>> tensors = {"w": torch.ones(2)}
        >>> Statistics("fisher", tensors, "b", "standard", "tau", "news", "train", 64)
        Statistics(fisher of 'tau' on 64 train rows of 'news', 1 tensors)
    """

    kind: Kind
    tensors: Params
    base: str
    regime: str
    vector: str
    task: str
    split: str
    rows: int
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"statistics of kind {self.kind!r}. {nearest(str(self.kind), KINDS)}")
        params.require_finite(self.tensors, f"the {self.kind} statistics of {self.vector!r}")

    def __repr__(self) -> str:
        rows = f"{self.rows} {self.split} rows of {self.task!r}"
        return f"Statistics({self.kind} of {self.vector!r} on {rows}, {len(self.tensors)} tensors)"

    def require_base(self, fingerprint: str) -> None:
        """Raise `BaseMismatchError` unless they were gathered from an edit of the model with that fingerprint."""
        if self.base != fingerprint:
            raise BaseMismatchError(
                f"the {self.kind} statistics of {self.vector!r} on {self.task!r} were gathered from base "
                f"{self.base[:12]}, and {fingerprint[:12]} is merged. Gather them anew from that model."
            )

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write one safetensors file, tensors under the model's own names, so that merging can stream it.

        Raises:
            StoreError: the file is already there or cannot be written; nothing is left behind.
        """
        facts = {name: getattr(self, name) for name in _TEXTS}
        header = {"format": FORMAT, **facts, "rows": self.rows, "info": dict(self.info)}
        text = json.dumps(header, sort_keys=True)
        store.write_tensors(path, self.tensors, {"tauspan": text}, overwrite=overwrite)
        return Path(path)

    @staticmethod
    def from_file(path: str | Path, *, base: str | None = None, kind: Kind | None = None) -> "Statistics":
        """Read what `save` wrote, if it is what the caller needs.

        Args:
            path: the file.
            base: the fingerprint of the model that is merged.
            kind: what is needed.

        Raises:
            StoreError, PickleRefusedError: not a whole file of statistics.
            NonFiniteError: it holds NaN or infinity.
            BaseMismatchError: it was gathered from another model.
            MismatchError: it holds statistics of another kind.
        """
        checkpoint = store.Checkpoint(path)
        header = parse_header(checkpoint.metadata.get("tauspan"), Path(path))
        facts = {name: header[name] for name in _TEXTS}
        found = Statistics(tensors=checkpoint.read(), rows=header["rows"], info=header["info"], **facts)
        if kind is not None and found.kind != kind:
            raise MismatchError(f"{path} holds {found.kind!r} statistics, and {kind!r} ones are needed.")
        if base is not None:
            found.require_base(base)
        return found


_TEXTS = ("kind", "base", "regime", "vector", "task", "split")


def parse_header(text: str | None, file: Path) -> dict[str, Any]:
    """The checked header of a file of statistics."""
    if text is None:
        raise StoreError(
            f"{file} is a safetensors file without the header of statistics. Make one: `gather.fisher_information` "
            "or `gather.gram_matrices`, then `save`."
        )
    try:
        header = json.loads(text)
    except json.JSONDecodeError as error:
        raise StoreError(f"the header of {file} is not JSON: {error}.") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        found = header.get("format") if isinstance(header, dict) else header
        raise StoreError(f"{file} has format {found!r}; this version reads statistics of {FORMAT!r}.")
    fits = {name: isinstance(header.get(name), str) for name in _TEXTS}
    fits["kind"] = header.get("kind") in KINDS
    fits["rows"] = isinstance(header.get("rows"), int)
    fits["info"] = isinstance(header.get("info"), dict)
    for name, right in fits.items():
        if not right:
            raise StoreError(
                f"the header of {file} has {name}={header.get(name)!r}: gather the statistics anew."
            )
    result: dict[str, Any] = header
    return result


def holds_statistics(path: Path) -> bool:
    """Whether a path is a file that `Statistics.save` wrote, of this format or another; reads the header alone."""
    if not path.is_file() or path.suffix != ".safetensors":
        return False
    try:
        header = json.loads(read_header(path).metadata.get("tauspan", ""))
    except json.JSONDecodeError:
        return False
    return (
        isinstance(header, dict) and str(header.get("format")).partition("/")[0] == FORMAT.partition("/")[0]
    )


@checked
def statistics_of(
    vectors: Sequence[TaskVector], statistics: Sequence[Statistics]
) -> dict[Need, Sequence[Params]]:
    """Statistics, one for each vector and in the vectors' order, as `merge` takes them.

    Raises:
        UsageError: there is not one for each vector.
        BaseMismatchError: statistics of another base.
        MismatchError: several kinds or regimes, other tensors, or the statistics of another vector.

    Example:
        >>> import torch
        >>> from tauspan.merge import merge
        >>> a = TaskVector({"w": torch.tensor([4.0, 0.0])}, "b", "standard", "a")
        >>> b = TaskVector({"w": torch.tensor([0.0, 4.0])}, "b", "standard", "b")
        >>> sure = {"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([1.0, 3.0])}
        >>> known = [Statistics("fisher", {"w": sure[t]}, "b", "standard", t, t, "train", 9) for t in ("a", "b")]
        >>> merge([a, b], "fisher", statistics=statistics_of([a, b], known)).deltas["w"]
        tensor([3., 3.])
    """
    if len(vectors) != len(statistics) or not vectors:
        raise UsageError(
            f"{len(statistics)} statistics for {len(vectors)} vectors: each vector needs its own."
        )
    first = statistics[0]
    for vector, known in zip(vectors, statistics, strict=True):
        known.require_base(vector.base)
        if known.vector != vector.label:
            raise MismatchError(
                f"the vector {vector.label!r} meets the statistics of {known.vector!r}: give both in one order."
            )
        for what, mine, other in (
            ("kind", known.kind, first.kind), ("regime", known.regime, first.regime),
        ):  # fmt: skip
            if mine != other:
                raise MismatchError(
                    f"statistics of {known.vector!r} have {what} {mine!r}, those of {first.vector!r} {other!r}."
                )
        params.require_same(first.tensors, known.tensors, f"{first!r}", f"{known!r}")
        extra = [name for name in known.tensors if name not in vector.deltas]
        if extra:
            raise MismatchError(f"{known!r} knows {listed(extra)}, which {vector.label!r} does not hold.")
    return {first.kind: [known.tensors for known in statistics]}


def open_statistics(path: str | Path, need: Need, *, access: Access = "pread") -> FileSource:
    """Open what `Statistics.save` wrote; no values are read.

    Args:
        path: a safetensors file.
        need: the kind that the method asks for.
        access: see `Values`.

    Raises:
        StoreError, PickleRefusedError: not a whole file of statistics.
        MismatchError: it holds statistics of another kind.
    """
    file = Path(path)
    header = read_header(file)
    facts = parse_header(header.metadata.get("tauspan"), file)
    if facts["kind"] != need:
        raise MismatchError(
            f"{file} holds {facts['kind']!r} statistics, and the method needs {need!r} ones: name the file of those."
        )
    kept = ("base", "regime", "vector", "task", "split", "rows")
    identity = {**described(str(path), {file: header}), **{name: facts[name] for name in kept}}
    return FileSource(facts["vector"], file, "delta", header.tensors, {}, identity, Values(access))


def unfit(
    need: Need, statistics: Sequence[Source], models: Sequence[Source], base: Source | None
) -> Iterator[Problem]:
    """Problems of statistics: another base, regime, set of tensors or shape; decided by headers alone.

    The base's own content is not hashed, which would read all of it: statistics are compared with each other, and with
    the vectors that say which base they start from.
    """
    first = statistics[0]
    origins = [first, *(model for model in models if "base" in model.identity)]
    for other in [*statistics[1:], *origins[1:]]:
        for fact in ("base", "regime"):
            mine, theirs = other.identity[fact], first.identity[fact]
            if mine != theirs:
                message = (
                    f"the {fact} of {other.path} is {mine[:12]}, and the {need} statistics in {first.path} were gathered "
                    f"from {theirs[:12]}. Gather them anew from what is merged."
                )
                yield about(other, fact, message)
    shapes = (base or models[0]).tensors
    for one in statistics:
        for name in dict.fromkeys([*first.tensors, *one.tensors]):
            wrong = _wrong(need, name, one.tensors, shapes)
            if wrong is not None:
                message = (
                    f"{one.path} {wrong}: it was gathered from another model. Gather the statistics anew."
                )
                yield about(one, "shape", message, tensor=name)
                break


def _wrong(need: Need, name: str, own: Mapping[str, Stored], models: Mapping[str, Stored]) -> str | None:
    """What is wrong with one tensor of statistics; None if it is there and fits."""
    if name not in own:
        return f"lacks {name!r}, which the other statistics have"
    if name not in models:
        return f"knows {name!r}, which the models lack"
    shape = models[name].shape
    wanted = torch.Size([shape[-1], shape[-1]]) if need == "gram" and shape else shape
    if own[name].shape != wanted:
        return f"has {name!r} with shape {tuple(own[name].shape)}, and {tuple(wanted)} is wanted"
    return None
