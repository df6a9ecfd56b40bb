"""One source against the reference, by headers: names, ties, shapes, dtypes and integer buffers."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch

from tauspan.core.errors import listed
from tauspan.merge.recipe.slices import LayerView
from tauspan.merge.sources.problems import Problem, about
from tauspan.merge.sources.source import Source, computed, counts, of_the_run, same_values
from tauspan.merge.sources.vocabulary import Aligned
from tauspan.store import Stored

_WRAPPERS = {"module.": "DistributedDataParallel", "_orig_mod.": "torch.compile"}
_SMALL = 1 << 16  # entries of an integer buffer that is compared by value
_ROWS = ("embed", "wte", "lm_head", "shared", "decoder", "projector", "embed_out")  # rows are tokens


def compared(reference: Source, other: Source) -> Iterator[Problem]:
    """All problems of `other` against `reference`; a displacement need not change every tensor."""
    if reference.kind == "point":
        yield from _named(reference, other)
    yield from _contents(reference, other)


def _named(reference: Source, other: Source) -> Iterator[Problem]:
    inner = other.inner if isinstance(other, Aligned) else other
    beyond = inner.beyond if isinstance(inner, LayerView) else ()
    missing = [name for name in reference.tensors if name not in other.tensors and name not in beyond]
    extra = [name for name in other.tensors if name not in reference.tensors]
    yield from _aside(reference, other, missing, extra)
    missing = [name for name in missing if not _is_aside(reference.tensors[name])]
    extra = [name for name in extra if not _is_aside(other.tensors[name])]
    prefix, adds = _prefix(missing, extra)
    if prefix:
        yield _prefixed(reference, other, prefix, adds, extra if adds else missing)
        renamed = {name.removeprefix(prefix) if adds else prefix + name for name in extra}
        missing = [name for name in missing if name not in renamed]
        back = {prefix + name if adds else name.removeprefix(prefix) for name in reference.tensors}
        extra = [name for name in extra if name not in back]
    yield from _names(reference, other, missing, extra)


def _is_aside(stored: Stored) -> bool:
    return computed(stored) or of_the_run(stored.name)


def _aside(
    reference: Source, other: Source, missing: Sequence[str], extra: Sequence[str]
) -> Iterator[Problem]:
    """Warnings of tensors that only one side stores and that no merge uses."""
    for names, has, lacks, then in (
        (missing, reference, other, "the result keeps {}"),
        (extra, other, reference, "the result leaves {} out"),
    ):
        stored = [has.tensors[name] for name in names]
        for found, what in (
            ([one.name for one in stored if computed(one)], "which the model computes again when it is made"),
            ([one.name for one in stored if of_the_run(one.name)], "which belongs to the training run"),
        ):
            if found and (has is other or lacks.kind == "point"):
                yield about(
                    other, "constants",
                    f"{where(has, found[0])} has {_count(found)}, {what} and {lacks.path} lacks: "
                    f"{then.format('them' if len(found) > 1 else 'it')}.",
                    severity="warning", tensor=found[0], file=where(has, found[0]),
                )  # fmt: skip


def _prefix(missing: Sequence[str], extra: Sequence[str]) -> tuple[str, bool]:
    """The prefix that most of the names on one side have in addition, and whether that side is `extra`."""
    for longer, shorter, adds in ((extra, missing, True), (missing, extra, False)):
        wanted, votes = set(shorter), Counter[str]()
        for name in longer:
            parts = name.split(".")
            for cut in range(1, len(parts)):
                if ".".join(parts[cut:]) in wanted:
                    votes[".".join(parts[:cut]) + "."] += 1
        prefix, count = votes.most_common(1)[0] if votes else ("", 0)
        if 2 * count > min(len(missing), len(extra)):
            return prefix, adds
    return "", True


def _prefixed(reference: Source, other: Source, prefix: str, adds: bool, names: Sequence[str]) -> Problem:
    name = next(name for name in names if name.startswith(prefix))
    has, lacks = (other, reference) if adds else (reference, other)
    wrapper = _WRAPPERS.get(prefix)
    renamed = f"n.removeprefix({prefix!r})" if adds else f"{prefix!r} + n"
    repair = (
        f"{wrapper} put it there: save the module inside the wrapper."
        if wrapper
        else "Save both from one class, for example the one that `architectures` of config.json names, or rename the "
        f"tensors {_renaming(other, renamed)}."
    )
    return about(
        other, "prefix",
        f"names differ by the prefix {prefix!r}: {name!r} in {has.path} is {name.removeprefix(prefix)!r} in "
        f"{lacks.path}. {repair}",
        tensor=name, file=where(other, name),
    )  # fmt: skip


def _renaming(source: Source, renamed: str) -> str:
    """Python code that writes a copy of a source under other names; a vector remains a vector, with its header."""
    place, files = str(source.path), {str(stored.file) for stored in source.tensors.values()}
    if source.kind == "delta":
        return (
            f"(`import tauspan`): `tauspan.TaskVector.from_pretrained({place!r}).renamed(lambda n: {renamed})"
            ".save_pretrained('renamed.safetensors')`"
        )
    if len(files) == 1:
        tensors = f"load_file({files.pop()!r})"
        return (
            "(safetensors.torch has both functions): "
            f"`save_file({{{renamed}: t for n, t in {tensors}.items()}}, 'renamed.safetensors')`"
        )
    tensors = f"Checkpoint({place!r}).read()"
    return (
        "(tauspan.store has both names): "
        f"`write_tensors('renamed.safetensors', {{{renamed}: t for n, t in {tensors}.items()}})`"
    )


def where(source: Source, name: str) -> Path:
    """The file of a tensor, or the source's path if it has none of that name."""
    stored = source.tensors.get(source.aliases.get(name, name))
    return stored.file if stored else source.path


def _names(
    reference: Source, other: Source, missing: Sequence[str], extra: Sequence[str]
) -> Iterator[Problem]:
    # a tied tensor that each file stores under another of its names: still the same tensor
    same = {name for name in missing if other.aliases.get(name) in extra}
    same |= {other.aliases[name] for name in same}
    same |= {name for name in extra if reference.aliases.get(name) in missing}
    same |= {reference.aliases[name] for name in same if name in extra and name in reference.aliases}
    lacked = [name for name in missing if name in other.aliases and name not in same]
    copied = [name for name in extra if name in reference.aliases and name not in same]
    for names, tied, apart in ((lacked, other, reference), (copied, reference, other)):
        copies = [name for name in names if _repeats(apart, name, tied.aliases[name])]
        if copies:
            yield about(
                other, "tied",
                f"{_count(copies)} in {where(apart, copies[0])} is a copy of {tied.aliases[copies[0]]!r}, bit for bit, "
                f"and tied to it in {tied.path}: "
                + ("the result stores it too." if apart is reference else "the result does not store it."),
                severity="warning", tensor=copies[0], file=where(apart, copies[0]),
            )  # fmt: skip
        names = [name for name in names if name not in copies]
        if names:
            name = names[0]
            yield about(
                other, "tied",
                f"{_count(names)} in {where(apart, name)}, and tied to {tied.aliases[name]!r} in {tied.path}: the tie "
                "holds on one side only. Save both with the same `tie_word_embeddings`.",
                tensor=name, file=where(apart, name),
            )  # fmt: skip
    absent = [name for name in missing if name not in lacked and name not in same]
    if absent and other.kind == "point":
        yield about(
            other, "missing_tensors",
            f"{other.path} lacks {_count(absent)} of {reference.path}. Merge models of one architecture, saved whole.",
            tensor=absent[0],
        )  # fmt: skip
    over = [name for name in extra if name not in copied and name not in same]
    if over:
        yield about(
            other, "extra_tensors",
            f"{where(other, over[0])} has {_count(over)}, which {reference.path} lacks. Save both from one class "
            "(a task's head belongs to the task and is not merged).",
            tensor=over[0], file=where(other, over[0]),
        )  # fmt: skip


def _repeats(source: Source, name: str, kept: str) -> bool:
    """Whether a source stores one tensor twice; values are read up to the first difference."""
    one, two = source.tensors[name], source.tensors.get(kept)
    if two is None or (one.shape, one.dtype) != (two.shape, two.dtype):
        return False
    return same_values(source, name, source, kept)


def _count(names: Sequence[str]) -> str:
    """The first name, and how many others have the same problem."""
    rest = names[1:]
    return f"tensor {names[0]!r}" + (f" and {len(rest)} more ({listed(rest, 3)})" if rest else "")


def _contents(reference: Source, other: Source) -> Iterator[Problem]:
    shared = [
        (reference.tensors[name], mine)
        for name, mine in other.tensors.items()
        if name in reference.tensors and not computed(reference.tensors[name])
    ]
    shapes = [(a, b) for a, b in shared if a.shape != b.shape]
    rows = [pair for pair in shapes if _rows_differ(*pair)]
    yield from _shapes(reference, other, [pair for pair in shapes if pair not in rows])
    if rows:
        a, b = rows[0]
        most = max(a.shape[0], b.shape[0])
        yield about(
            other, "vocabulary",
            f"{_count([b.name for _, b in rows])} has {b.shape[0]} rows in {b.file} and {a.shape[0]} in {a.file}: the "
            "vocabularies differ. Align them by token with `tokenizer_source`: base, union or a model; or give both the "
            f"same tokens: `model.resize_token_embeddings({most})` with one tokenizer, then `save_pretrained`.",
            tensor=b.name, file=b.file,
        )  # fmt: skip
    if other.kind == "point" and reference.kind == "point":
        alike = [(a, b) for a, b in shared if a.shape == b.shape]
        yield from _dtypes(other, alike)
        yield from _buffers(reference, other, alike)


def _rows_differ(a: Stored, b: Stored) -> bool:
    tokens = any(part in a.name for part in _ROWS)
    return tokens and len(a.shape) == len(b.shape) and len(a.shape) > 0 and a.shape[1:] == b.shape[1:]


def _shapes(reference: Source, other: Source, pairs: Sequence[tuple[Stored, Stored]]) -> Iterator[Problem]:
    if pairs:
        a, b = pairs[0]
        yield about(
            other, "shape",
            f"{_count([b.name for _, b in pairs])} has shape {tuple(b.shape)} in {b.file} and {tuple(a.shape)} in "
            f"{a.file}. Merge models of one size and architecture.",
            tensor=b.name, file=b.file,
        )  # fmt: skip


def _dtypes(other: Source, pairs: Iterable[tuple[Stored, Stored]]) -> Iterator[Problem]:
    kinds: dict[tuple[bool, str, str], list[tuple[Stored, Stored]]] = {}
    for a, b in pairs:
        if a.dtype != b.dtype:
            # numbers can be rounded to another dtype, codes and masks cannot
            rounded = a.dtype.is_floating_point and b.dtype.is_floating_point
            kinds.setdefault((rounded, _short(b.dtype), _short(a.dtype)), []).append((a, b))
    for (rounded, mine, theirs), found in kinds.items():
        a, b = found[0]
        yield about(
            other, "dtypes",
            f"{_count([b.name for _, b in found])} is {mine} in {b.file} and {theirs} in {a.file}. "
            + (
                "The arithmetic is the same; a narrower dtype has already rounded its weights."
                if rounded
                else "Save both in one dtype."
            ),
            severity="warning" if rounded else "error", tensor=b.name, file=b.file,
        )  # fmt: skip


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _buffers(reference: Source, other: Source, pairs: Iterable[tuple[Stored, Stored]]) -> Iterator[Problem]:
    """Problems of integer tensors: they are copied, never averaged, so they must be equal, except for counters.

    Only tensors of at most 65,536 entries are compared, since their values are read here.
    """
    differ: dict[bool, list[tuple[Stored, Stored, str]]] = {}
    for a, b in pairs:
        size = a.shape.numel()
        if a.dtype != b.dtype or a.dtype.is_floating_point or a.dtype.is_complex or not 0 < size <= _SMALL:
            continue
        mine, theirs = (source.read(a.name, 0, size).numpy() for source in (other, reference))
        if (mine != theirs).any():
            at = int((mine != theirs).argmax())
            found = f"entry {at} is {mine[at].item()} in {b.file} and {theirs[at].item()} in {a.file}"
            differ.setdefault(counts(a), []).append((a, b, found))
    for counters, found_ in differ.items():
        a, b, what = found_[0]
        names = _count([two.name for _, two, _ in found_])
        if counters:
            yield about(
                other, "buffers",
                f"{names} counts batches and differs ({what}): the result has those of {reference.path}. Running "
                "statistics are merged like weights; a pass over data in training mode makes them the merged "
                "model's own.",
                severity="warning", tensor=b.name, file=b.file,
            )  # fmt: skip
        else:
            yield about(
                other, "buffers",
                f"the {_short(b.dtype)} {names} differs: {what}. Whole numbers are copied, not averaged: save one of "
                "them in both.",
                tensor=b.name, file=b.file,
            )  # fmt: skip
