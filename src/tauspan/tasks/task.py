"""`Task`: labelled inputs in three splits, from cards, files, tensors or the hub."""

import hashlib
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from tauspan import store
from tauspan.core.arguments import checked, described
from tauspan.core.choices import HeadFrom
from tauspan.core.errors import DataError, nearest
from tauspan.models import Head
from tauspan.tasks.assembly import Gathered, gathered, told
from tauspan.tasks.hub import hub_rows
from tauspan.tasks.images import Images
from tauspan.tasks.labels import Meaning, require_names
from tauspan.tasks.readers import Reading, by_split, read_rows, require_apart
from tauspan.tasks.rows import fault_of, tensor_rows
from tauspan.tasks.split import SPLITS, Split, array_bytes, completed, permutation
from tauspan.tasks.tables import Dialect, Quotes
from tauspan.tasks.writing import write_directory


@dataclass(frozen=True, eq=False)
class Task:
    """A classification task: name, classes, splits, and what its frozen head is built from.

    Args:
        name: short and unique among the tasks of a run.
        label_names: the K classes; a label is an index into them.
        splits: `train`, `validation` and `test`.
        label_prompts: one sentence per class for a zero-shot head; empty where there is no text.
        max_tokens: where texts are cut; None leaves it to the tokenizer.
        head: a frozen head of your own, used instead of a built one.
        source: where the rows came from, for provenance.
        templates: prompts with `{}` where a class name goes in, such as `"a photo of a {}."`; each class's weight is
            the mean over them. Instead of `label_prompts`.
        head_from: what the head is built from: `"prompts"`, `"prototypes"`, `"probe"`, or `"auto"`; see
            `tauspan.tasks.build_head`.

    Example:
        >>> rows = Split(["a", "b"], torch.tensor([0, 1]))
        >>> Task("ab", ["x", "y"], {"train": rows, "validation": rows, "test": rows})
        Task('ab', 2 classes, train 2, validation 2, test 2)
    """

    name: str
    label_names: Sequence[str]
    splits: Mapping[str, Split]
    label_prompts: Sequence[str] = ()
    max_tokens: int | None = None
    head: Head | None = None
    source: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    templates: Sequence[str] = ()
    head_from: HeadFrom = "auto"

    def __post_init__(self) -> None:
        for what in ("label_names", "label_prompts", "templates"):
            given = getattr(self, what)
            if isinstance(given, str | bytes | Mapping | Set) or not hasattr(given, "__getitem__"):
                raise DataError(
                    f"task {self.name!r}: {what} is {described(given)}, and a list of texts is wanted, since a label is "
                    "the place of its class in it: put them into a list, in order."
                )
        require_names(self.label_names, self.name)
        classes = len(self.label_names)
        self._check_head(classes)
        self._check_tokens()
        for split in SPLITS:
            if split not in self.splits or len(self.splits[split]) == 0:
                raise DataError(f"task {self.name!r} has no rows in its {split} split.")
            self._check_rows(split, self.splits[split], classes)

    def _check_rows(self, split: str, rows: Split, classes: int) -> None:
        labels = rows.labels
        if not isinstance(labels, Tensor) or labels.ndim != 1 or labels.dtype != torch.long:
            kind = str(getattr(labels, "dtype", type(labels).__name__)).removeprefix("torch.")
            found = f"{kind} of shape {tuple(getattr(labels, 'shape', (len(labels),)))}"
            raise DataError(
                f"{split} of {self.name!r}: labels are int64 of shape (N,), not {found}. `Task.from_tensors` makes them "
                "of lists and arrays."
            )
        if len(rows.inputs) != len(labels):
            raise DataError(f"{split} of {self.name!r}: {len(rows.inputs)} inputs and {len(labels)} labels.")
        outside = ((labels < 0) | (labels >= classes)).nonzero().flatten()
        if len(outside):
            row = int(outside[0])
            raise DataError(
                f"{split} of task {self.name!r}, row {row}: label {int(labels[row])} lies outside "
                f"0..{classes - 1} ({classes} classes). Give one class name for every label value."
            )
        for row, item in enumerate(() if isinstance(rows.inputs, Images | Tensor) else rows.inputs):
            fault = fault_of(item)
            if fault is not None:
                raise DataError(
                    f"{split} of task {self.name!r}, row {row}, is a row {fault}: take it out; `Task.from_files`, "
                    "`from_hub` and `from_tensors` do so with clean=True."
                )

    def _check_tokens(self) -> None:
        most = self.max_tokens
        if most is not None and (type(most) is not int or most < 1):
            raise DataError(
                f"task {self.name!r} cuts texts at {most!r} tokens: give a whole number, at least 1 (`max_tokens`, in a "
                "card `suggested_max_tokens`), or leave it out."
            )

    def _check_head(self, classes: int) -> None:
        if self.label_prompts and len(self.label_prompts) != classes:
            raise DataError(
                f"task {self.name!r} has {classes} classes and {len(self.label_prompts)} label prompts. Give one "
                "prompt a class, in the order of the class names."
            )
        for template in self.templates:
            if template.count("{}") != 1:
                raise DataError(
                    f"template {template!r} of task {self.name!r} has {template.count('{}')} places for a class name. "
                    "Write {} once, where the name goes."
                )
        if self.templates and self.label_prompts:
            raise DataError(
                f"task {self.name!r} has {len(self.templates)} templates and {len(self.label_prompts)} label prompts, "
                "which are two descriptions of one head. Keep one of them."
            )
        if self.head_from not in get_args(HeadFrom):
            raise DataError(
                f"task {self.name!r} has head_from={self.head_from!r}. {nearest(self.head_from, get_args(HeadFrom))}"
            )
        if self.head is not None and self.head_from != "auto":
            raise DataError(
                f"task {self.name!r} has a head of its own and head_from={self.head_from!r}. Set head=None to have one "
                'built, or head_from="auto" to keep yours.'
            )

    def __repr__(self) -> str:
        sizes = ", ".join(f"{split} {len(self.splits[split])}" for split in SPLITS)
        out = self.extra.get("left_out")
        return f"Task({self.name!r}, {len(self.label_names)} classes, {sizes}{f'; left out: {told(out)}' if out else ''})"

    def split(self, name: str) -> Split:
        """The rows of one split."""
        if name not in self.splits:
            raise DataError(f"task {self.name!r} has no split {name!r}. {nearest(name, self.splits)}")
        return self.splits[name]

    def tokens(self, asked: int | None) -> int | None:
        """Where texts of this task are cut: as asked for, else the task's own value."""
        return self.max_tokens if asked is None else asked

    @checked
    def subset(
        self,
        *,
        train: int | None = None,
        validation: int | None = None,
        test: int | None = None,
        seed: int = 0,
    ) -> "Task":
        """At most so many rows of each split, drawn by a permutation keyed by the seed and the split's name."""
        wanted = {"train": train, "validation": validation, "test": test}
        for split, count in wanted.items():
            if count is not None and count < 1:
                raise DataError(f"{split}={count}: a subset of task {self.name!r} needs at least one row.")
        splits = {
            name: _sampled(rows, wanted.get(name), f"{seed}/{name}") for name, rows in self.splits.items()
        }
        return replace(self, splits=splits)

    def checksum(self) -> str:
        """A hash of everything that training and evaluation read from this task, made once: rows do not change."""
        return self._checksum

    @cached_property
    def _checksum(self) -> str:
        texts = (self.name, list(self.label_names), list(self.label_prompts), self.max_tokens)
        digest = hashlib.sha256(repr(texts).encode())
        if self.templates:  # what has its default leaves the sum of older tasks as it was
            digest.update(repr(("templates", list(self.templates))).encode())
        if self.head_from != "auto":
            digest.update(repr(("head_from", self.head_from)).encode())
        for name in SPLITS:
            rows = self.splits[name]
            for content in rows.contents():
                digest.update(content + b"\0")
            digest.update(rows.labels.numpy().tobytes())
        if self.head is not None:
            digest.update(f"{self.head.scale}|{self.head.normalize}|".encode())
            for name, tensor in self.head.state_dict().items():
                digest.update(name.encode() + array_bytes(tensor.double().cpu().numpy()))
        return digest.hexdigest()

    # -- readers ---------------------------------------------------------------------------------------------

    @staticmethod
    @checked
    def from_directory(path: str | Path) -> "Task":
        """A directory with `card.json` (names, prompts, files, SHA-256 sums) and csv(.gz), parquet or npz files.

        Raises:
            DataError: a checksum differs, a column is missing, a label is outside its range.
        """
        path = Path(path)
        card = store.read_json(path / "card.json")
        for key in ("name", "label_names", "splits"):
            if key not in card:
                raise DataError(f"{path / 'card.json'} lacks {key!r}.")
        splits = {}
        for split, entry in card["splits"].items():
            for key in ("file", "sha256"):
                if key not in entry:
                    raise DataError(f"{path / 'card.json'} lacks {key!r} of its split {split!r}.")
            file = path / Path(entry["file"]).name
            if not file.is_file():
                raise DataError(f"{path / 'card.json'} names {file.name!r}, which is not there.")
            found = hashlib.sha256(file.read_bytes()).hexdigest()
            if found != entry["sha256"]:
                raise DataError(
                    f"{file} has SHA-256 {found[:12]}, its card says {entry['sha256'][:12]}: it was changed."
                )
            splits[split] = read_rows(file)
        made = gathered(splits, card["label_names"], card.get("labels", "auto"), what=card["name"])
        about = {
            key: card[key] for key in ("seed", "test", "validation") if isinstance(card.get(key), str | int)
        }
        return Task(
            card["name"], made.names, made.splits, card.get("label_prompts", ()),
            card.get("suggested_max_tokens"), source=card.get("source", str(path)), extra=about,
        )  # fmt: skip

    @staticmethod
    @checked
    def from_files(
        name: str,
        train: str | Path,
        test: str | Path | None = None,
        validation: str | Path | None = None,
        *,
        split: str | None = None,
        label_names: Sequence[Any] | None = None,
        label_prompts: Sequence[str] = (),
        text: str = "text",
        label: str = "label",
        labels: Meaning = "auto",
        clean: bool = False,
        encoding: str | None = None,
        delimiter: str | None = None,
        quotes: Quotes = "doubled",
        max_tokens: int | None = None,
        seed: int = 0,
    ) -> "Task":
        """CSV, TSV, JSON, JSON Lines, parquet or npz files (text ones also as .gz), or folders of images by class.

        A folder of tables is one split in several files. The file forms and what is read of them:
        `docs/formats.md`. Labels have one meaning in all of them, see `tauspan.tasks.labels.places`: 1, 1.0 and "1"
        are one label; without `label_names` the sorted labels of the training rows are the classes; with them a label
        is a class name, or counts from 0.

        Without `validation`, min(10 %, 5000) of the training rows become it, drawn with the seed, as the paper does.
        Without `test` and `split`, 20 % of the rows of `train` become test rows before that, drawn in the same way.

        Args:
            name: of the task.
            train: a file or folder.
            test: another one.
            validation: another one.
            split: instead of `test` and `validation`, the column of `train` that says train, validation (val, valid,
                dev) or test of each row.
            label_names: the classes, in order.
            label_prompts: one sentence for each class.
            text: the column of texts, or of images in parquet files.
            label: the column of labels.
            labels: `"names"`, `"from_0"` or `"from_1"` where `"auto"` says that it cannot tell.
            clean: leave rows without text or label out, and spaces around labels; a warning counts them, and
                `Task.extra["left_out"]` keeps the counts.
            encoding: of a file of lines; None takes a byte order mark's, else UTF-8.
            delimiter: of CSV; None takes that of comma, semicolon, tab and bar which the first line has.
            quotes: `"doubled"`, `"escaped"` (by a backslash) or `"none"`.
            max_tokens: where texts are cut.
            seed: of the rows that are held out.

        Raises:
            DataError: with the file and the row or line: a missing column, a row without text or label, a label that
                is no class, a damaged file.
        """
        reading = Reading(text, label, split, Dialect(encoding, delimiter, quotes))
        files = {"train": Path(train)}
        files |= {
            key: Path(file) for key, file in (("validation", validation), ("test", test)) if file is not None
        }
        require_apart(name, files, split)
        found = (
            by_split(files["train"], reading)
            if split
            else {s: read_rows(f, reading) for s, f in files.items()}
        )
        made = gathered(found, label_names, labels, clean, name)
        return _task(name, made, label_prompts, max_tokens, str(train), seed, test=split is None)

    @staticmethod
    @checked
    def from_hub(
        source: str,
        *,
        name: str | None = None,
        text: str = "text",
        label: str = "label",
        config: str | None = None,
        revision: str | None = None,
        train: str = "train",
        test: str = "test",
        validation: str | None = None,
        label_names: Sequence[Any] | None = None,
        labels: Meaning = "auto",
        clean: bool = False,
        label_prompts: Sequence[str] = (),
        max_tokens: int | None = None,
        seed: int = 0,
    ) -> "Task":
        """A data set by hub id or local directory, through the `datasets` library; no remote code is run.

        A directory may also be what `save_to_disk` wrote: of a `DatasetDict` its splits, of a `Dataset` only `train`.

        `train`, `test` and `validation` name its splits; without `validation`, the split of that name is taken if it is
        free, else rows of train are held out. Hidden test splits have no labels: `test="validation"` takes the other.
        Labels, `clean` and `seed` as for `from_files`; images stay encoded until they are looked at.

        Raises:
            DataError: the data set cannot be loaded, a split or column is missing, a row has no text or label.
        """
        splits = {"train": train, "test": test, "validation": validation}
        found = hub_rows(source, text, label, config, revision, splits)
        name = name or source.rstrip("/").split("/")[-1]
        made = gathered(found, label_names, labels, clean, name)
        return _task(name, made, label_prompts, max_tokens, source, seed, test=False)

    @staticmethod
    @checked
    def from_tensors(
        name: str, label_names: Sequence[Any], *, label_prompts: Sequence[str] = (), head: Head | None = None,
        labels: Meaning = "auto", clean: bool = False, seed: int = 0,
        **splits: tuple[Sequence[Any] | Tensor, Sequence[Any] | Tensor],
    ) -> "Task":  # fmt: skip
        """Splits given as `train=(inputs, labels), validation=..., test=...`.

        Labels are a tensor or array of whole numbers, or a list of numbers or names, with the meaning they have in
        files; so has `clean`. Without `validation` or `test`, rows of train are held out as by `from_files`.

        Example:
            >>> rows = (["a", "b"], [1, 0])
            >>> Task.from_tensors("ab", ["x", "y"], train=rows, validation=rows, test=(["c"], [1]))
            Task('ab', 2 classes, train 2, validation 2, test 1)
        """
        unknown = next((key for key in splits if key not in SPLITS), None)
        if unknown is not None:
            raise DataError(f"task {name!r} is given a split {unknown!r}. {nearest(unknown, SPLITS)}")
        rows = {key: [tensor_rows(name, key, given)] for key, given in splits.items()}
        made = gathered(rows, list(label_names), labels, clean, what=name)
        return replace(_task(name, made, label_prompts, None, "tensors", seed, test=True), head=head)

    def to_directory(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write a task of texts as a directory that `from_directory` reads: `card.json` with checksums, CSV files.

        Raises:
            DataError: the inputs are no texts, or the task has a head of its own.
            StoreError: the directory is there already or cannot be written; nothing is left behind.
        """
        return write_directory(self, Path(path), overwrite)


def _task(
    name: str, made: Gathered, prompts: Sequence[str], tokens: int | None, source: str, seed: int, test: bool
) -> Task:
    """The task of what was gathered; `extra` says what was held out and what was left out."""
    splits, extra = completed(made.splits, seed, test)
    if made.left_out:
        extra["left_out"] = made.left_out
    return Task(name, made.names, splits, prompts, tokens, source=source, extra=extra)


def _sampled(rows: Split, count: int | None, key: str) -> Split:
    if count is None or count >= len(rows):
        return rows
    return rows.take(sorted(permutation(len(rows), key)[:count]))
