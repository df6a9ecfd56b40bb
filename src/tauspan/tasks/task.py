"""`Task`: labelled inputs in three splits, from cards, files, tensors or the hub."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from tauspan import store
from tauspan.arguments import checked
from tauspan.errors import DataError, nearest
from tauspan.models import Head
from tauspan.models.sources import require_extra
from tauspan.tasks.readers import classes, labels_of, read_rows
from tauspan.tasks.split import SPLITS, Split, array_bytes, held_out, permutation

HeadFrom = Literal["auto", "prompts", "prototypes", "probe"]


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
        classes = len(self.label_names)
        self._check_head(classes)
        for split in SPLITS:
            if split not in self.splits or len(self.splits[split]) == 0:
                raise DataError(f"task {self.name!r} has no rows in its {split} split.")
            rows = self.splits[split]
            if rows.labels.ndim != 1 or rows.labels.dtype != torch.long:
                found = f"{str(rows.labels.dtype).removeprefix('torch.')} of shape {tuple(rows.labels.shape)}"
                raise DataError(f"{split} of {self.name!r}: labels are int64 of shape (N,), not {found}.")
            if len(rows.inputs) != len(rows.labels):
                raise DataError(
                    f"{split} of {self.name!r}: {len(rows.inputs)} inputs and {len(rows.labels)} labels."
                )
            outside = ((rows.labels < 0) | (rows.labels >= classes)).nonzero().flatten()
            if len(outside):
                row = int(outside[0])
                raise DataError(
                    f"{split} of task {self.name!r}, row {row}: label {int(rows.labels[row])} lies outside "
                    f"0..{classes - 1} ({classes} classes). Give one class name for every label value."
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
        return f"Task({self.name!r}, {len(self.label_names)} classes, {sizes})"

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
            splits[split] = read_rows(file, card["label_names"])
        return Task(
            card["name"], card["label_names"], splits, card.get("label_prompts", ()),
            card.get("suggested_max_tokens"), source=card.get("source", str(path)),
        )  # fmt: skip

    @staticmethod
    @checked
    def from_files(
        name: str,
        train: str | Path,
        test: str | Path,
        validation: str | Path | None = None,
        *,
        label_names: Sequence[str] | None = None,
        label_prompts: Sequence[str] = (),
        text: str = "text",
        label: str = "label",
        max_tokens: int | None = None,
    ) -> "Task":
        """CSV (also .gz) or parquet files, or image folders with one folder a class.

        Labels are class indices or class names. Without `validation`, min(10 %, 5000) of the training rows
        become it, drawn with seed 0, as the paper does. Without `label_names`, the sorted values of the
        training labels are the classes.
        """
        files = {"train": Path(train), "test": Path(test)} | (
            {"validation": Path(validation)} if validation else {}
        )
        if label_names is None:
            label_names = classes(files["train"], label)
        splits = {split: read_rows(file, label_names, text, label) for split, file in files.items()}
        return _with_validation(name, label_names, splits, label_prompts, max_tokens, str(train))

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
        label_prompts: Sequence[str] = (),
        max_tokens: int | None = None,
    ) -> "Task":
        """A data set by hub id or local directory, through the `datasets` library; no remote code is run."""
        datasets = require_extra("datasets", "data", f"the data set {source!r}")
        try:
            found = datasets.load_dataset(source, config, revision=revision)
        except Exception as error:  # the library raises many kinds: offline, unknown, gated, malformed
            raise DataError(f"the data set {source!r} could not be loaded: {error}") from error
        if (
            "train" not in found
            or text not in found["train"].column_names
            or label not in found["train"].column_names
        ):
            columns = {split: rows.column_names for split, rows in found.items()}
            raise DataError(
                f"{source!r} needs a train split with the columns {text!r} and {label!r}; it has {columns}."
            )
        feature = found["train"].features[label]
        indexed = getattr(feature, "names", None)  # else the values themselves are the names, numbers too
        names = indexed or [str(value) for value in sorted(set(found["train"][label]))]
        splits = {}
        for split, rows in found.items():
            if split in SPLITS:
                inputs = [item if isinstance(item, str) else np.asarray(item) for item in rows[text]]
                values = list(rows[label] if indexed else map(str, rows[label]))
                splits[split] = Split(inputs, labels_of(values, names, f"{source}:{split}"))
        return _with_validation(
            name or source.split("/")[-1], names, splits, label_prompts, max_tokens, source
        )

    @staticmethod
    @checked
    def from_tensors(
        name: str, label_names: Sequence[str], *, label_prompts: Sequence[str] = (), head: Head | None = None,
        **splits: tuple[Sequence[Any] | Tensor, Tensor],
    ) -> "Task":  # fmt: skip
        """Splits given as `train=(inputs, labels), validation=..., test=...`."""
        made = {
            key: Split(list(inputs), labels if labels.is_floating_point() else labels.long())
            for key, (inputs, labels) in splits.items()
        }
        return Task(name, label_names, made, label_prompts, head=head, source="tensors")


def _with_validation(
    name: str,
    names: Sequence[str],
    splits: dict[str, Split],
    prompts: Sequence[str],
    tokens: int | None,
    source: str,
) -> Task:
    if "validation" not in splits and len(splits.get("train", ())) > 1:
        splits |= held_out(splits["train"])
    return Task(name, names, splits, prompts, tokens, source=source)


def _sampled(rows: Split, count: int | None, key: str) -> Split:
    if count is None or count >= len(rows):
        return rows
    return rows.take(sorted(permutation(len(rows), key)[:count]))
