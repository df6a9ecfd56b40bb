"""Files of statistics as merges read them: opened by their headers, and held against the models they belong to."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from tauspan.core.errors import MismatchError
from tauspan.merge.data.statistics_file import parse_header
from tauspan.merge.methods.method import Need
from tauspan.merge.sources.inputs import Files, Source, described
from tauspan.merge.sources.problems import Problem
from tauspan.store.headers import Stored, read_header
from tauspan.store.values import Access, Values


def open_statistics(path: str | Path, need: Need, *, access: Access = "pread") -> Files:
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
    return Files(facts["vector"], file, "delta", header.tensors, {}, identity, Values(access))


def unfit(
    need: Need, statistics: Sequence[Source], models: Sequence[Source], base: Source | None
) -> Iterator[Problem]:
    """What keeps statistics from being used: another base, regime, set of tensors or shape; by headers alone.

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
                yield Problem("error", fact, None, other.label, other.path, message)
    shapes = (base or models[0]).tensors
    for one in statistics:
        for name in dict.fromkeys([*first.tensors, *one.tensors]):
            wrong = _wrong(need, name, one.tensors, shapes)
            if wrong is not None:
                message = (
                    f"{one.path} {wrong}: it was gathered from another model. Gather the statistics anew."
                )
                yield Problem("error", "shape", name, one.label, one.path, message)
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
