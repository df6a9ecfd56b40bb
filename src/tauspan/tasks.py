"""`Task`: labelled inputs in three splits, read from cards, CSV, parquet, image folders or the hub; and heads.

Rows are never repaired: a label outside the range, an empty split or a wrong checksum is an error that names
the row or the file.
"""

import csv
import gzip
import hashlib
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tauspan import store
from tauspan.errors import DataError, nearest
from tauspan.models import Encoder, Head, eval_mode
from tauspan.models.sources import require_extra

SPLITS = ("train", "validation", "test")
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


@dataclass(frozen=True, eq=False)
class Split:
    """Raw inputs (texts, arrays) and labels of shape (N,), class indices from 0."""

    inputs: Sequence[Any]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Sequence[int]) -> "Split":
        """The rows at the given places, in that order."""
        return Split(
            [self.inputs[i] for i in indices], self.labels[torch.as_tensor(indices, dtype=torch.long)]
        )


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

    def __post_init__(self) -> None:
        classes = len(self.label_names)
        if self.label_prompts and len(self.label_prompts) != classes:
            raise DataError(
                f"task {self.name!r} has {classes} classes and {len(self.label_prompts)} label prompts."
            )
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
                    f"0..{classes - 1} ({classes} classes)."
                )

    def __repr__(self) -> str:
        sizes = ", ".join(f"{split} {len(self.splits[split])}" for split in SPLITS)
        return f"Task({self.name!r}, {len(self.label_names)} classes, {sizes})"

    def split(self, name: str) -> Split:
        """The rows of one split."""
        if name not in self.splits:
            raise DataError(f"task {self.name!r} has no split {name!r}. {nearest(name, self.splits)}")
        return self.splits[name]

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
        """A hash of everything that training and evaluation read from this task."""
        texts = (self.name, list(self.label_names), list(self.label_prompts), self.max_tokens)
        digest = hashlib.sha256(repr(texts).encode())
        for name in SPLITS:
            rows = self.splits[name]
            for item in rows.inputs:
                digest.update(item.encode() if isinstance(item, str) else _bytes(np.asarray(item)))
                digest.update(b"\0")
            digest.update(rows.labels.numpy().tobytes())
        if self.head is not None:
            digest.update(f"{self.head.scale}|{self.head.normalize}|".encode())
            for name, tensor in self.head.state_dict().items():
                digest.update(name.encode() + _bytes(tensor.double().cpu().numpy()))
        return digest.hexdigest()

    # -- readers ---------------------------------------------------------------------------------------------

    @staticmethod
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
            label_names = _classes(files["train"], label)
        splits = {split: read_rows(file, label_names, text, label) for split, file in files.items()}
        return _with_validation(name, label_names, splits, label_prompts, max_tokens, str(train))

    @staticmethod
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
                splits[split] = Split(inputs, _labels(values, names, f"{source}:{split}"))
        return _with_validation(
            name or source.split("/")[-1], names, splits, label_prompts, max_tokens, source
        )

    @staticmethod
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


def read_rows(file: Path, names: Sequence[str], text: str = "text", label: str = "label") -> Split:
    """The rows of one CSV, parquet or npz file, or of an image folder."""
    if file.is_dir():
        return _image_folder(file, names)
    if not file.is_file():
        raise DataError(f"{file} does not exist.")
    if file.suffix == ".npz":
        return _npz(file, names)
    columns = _parquet(file) if file.suffix == ".parquet" else _csv(file)
    for column in (text, label):
        if column not in columns:
            raise DataError(f"{file} has no column {column!r}; it has {', '.join(columns) or 'none'}.")
    for row, value in enumerate(columns[text]):
        if value is None:
            raise DataError(f"{file}, row {row}: the column {text!r} is empty.")
    return Split(columns[text], _labels(columns[label], names, str(file)))


def _bytes(array: Any) -> bytes:
    return f"{array.dtype}|{array.shape}|".encode() + bytes(array.tobytes())


def _npz(file: Path, names: Sequence[str]) -> Split:
    try:
        with file.open("rb") as handle, np.load(handle, allow_pickle=False) as arrays:
            return Split(list(arrays["image"]), _labels(arrays["label"].tolist(), names, str(file)))
    except DataError:
        raise
    except (OSError, EOFError, TypeError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{file} cannot be read as npz with `image` and `label`: {error}") from error


def _csv(file: Path) -> dict[str, list[Any]]:
    opened = gzip.open if file.suffix == ".gz" else open
    try:
        with opened(file, "rt", newline="", encoding="utf-8-sig") as handle:  # Excel writes the mark
            reader = csv.reader(handle, strict=True)
            header = next(reader, [])
            rows = [(row, reader.line_num) for row in reader]
    except (OSError, EOFError, UnicodeDecodeError, csv.Error, zlib.error) as error:
        raise DataError(f"{file} cannot be read as CSV: {error}") from error
    for row, line in rows:
        if len(row) != len(header):
            raise DataError(f"{file}, line {line}: {len(row)} fields, the header has {len(header)}.")
    return {column: [row[place] for row, _ in rows] for place, column in enumerate(header)}


def _parquet(file: Path) -> dict[str, list[Any]]:
    parquet = require_extra("pyarrow.parquet", "data", f"reading {file}")
    try:
        table = parquet.read_table(file)
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read as parquet: {error}") from error
    columns: dict[str, list[Any]] = table.to_pydict()
    return columns


def _image_folder(folder: Path, names: Sequence[str]) -> Split:
    image = require_extra("PIL.Image", "data", f"reading the images in {folder}")
    for found in _classes(folder, ""):
        if found not in names:
            raise DataError(f"{folder / found} is the folder of no class. {nearest(found, names)}")
    inputs, labels = [], []
    for index, name in enumerate(names):
        for file in sorted((folder / name).glob("*")):
            if file.suffix.lower() in _IMAGE_SUFFIXES:
                try:
                    with image.open(file) as picture:
                        inputs.append(np.asarray(picture.convert("RGB")))
                except OSError as error:
                    raise DataError(f"{file} cannot be read as an image: {error}") from error
                labels.append(index)
    return Split(inputs, torch.tensor(labels, dtype=torch.long))


def _classes(file: Path, label: str) -> list[str]:
    if file.is_dir():
        return sorted(folder.name for folder in file.iterdir() if folder.is_dir())
    columns = _parquet(file) if file.suffix == ".parquet" else _csv(file)
    values = {str(value) for value in columns.get(label, [])}
    if values and all(value.isdecimal() for value in values):
        return [str(index) for index in range(max(map(int, values)) + 1)]
    return sorted(values)


def _labels(values: Sequence[Any], names: Sequence[str], where: str) -> Tensor:
    place = {name: index for index, name in enumerate(names)}
    labels = []
    for row, value in enumerate(values):
        if isinstance(value, str) and value in place:
            labels.append(place[value])
        elif str(value).removeprefix("-").isdecimal():
            labels.append(int(value))
        else:
            raise DataError(
                f"{where}, row {row}: {value!r} is neither a class index nor a class. {nearest(str(value), names)}"
            )
    return torch.tensor(labels, dtype=torch.long)


def _with_validation(
    name: str,
    names: Sequence[str],
    splits: dict[str, Split],
    prompts: Sequence[str],
    tokens: int | None,
    source: str,
) -> Task:
    if "validation" not in splits and len(splits.get("train", ())) > 1:
        rows = splits["train"]
        order = permutation(len(rows), "0/validation")
        held = min(max(len(rows) // 10, 1), 5000)
        splits |= {"validation": rows.take(order[:held]), "train": rows.take(order[held:])}
    return Task(name, names, splits, prompts, tokens, source=source)


def permutation(size: int, key: str) -> list[int]:
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big")
    order: list[int] = torch.randperm(size, generator=torch.Generator().manual_seed(seed)).tolist()
    return order


def _sampled(rows: Split, count: int | None, key: str) -> Split:
    if count is None or count >= len(rows):
        return rows
    return rows.take(sorted(permutation(len(rows), key)[:count]))


def build_head(task: Task, encoder: Encoder, *, shots: int = 10) -> Head:
    """The task's frozen head, built from the pre-trained encoder.

    The user's own head if the task has one; else label prompts where the encoder has a text tower (CLIP's
    zero-shot head: unit-norm prompt features as weights, `logit_scale` as factor, features normalised); else
    class prototypes, the normalised mean of unit-norm features of the first `shots` training rows per class.
    """
    if task.head is not None:
        if len(task.head.weight) != len(task.label_names):
            raise DataError(
                f"the head of task {task.name!r} has {len(task.head.weight)} outputs, the task "
                f"{len(task.label_names)} classes."
            )
        return task.head
    with eval_mode(encoder), torch.no_grad():
        if task.label_prompts and encoder.label_features is not None:
            weight = encoder.embed_labels(task.label_prompts)
        else:
            weight = _prototypes(task, encoder, shots)
    return Head(weight, scale=encoder.logit_scale, normalize=True)


def _prototypes(task: Task, encoder: Encoder, shots: int) -> Tensor:
    rows = task.splits["train"]
    weights = []
    for index, name in enumerate(task.label_names):
        places = (rows.labels == index).nonzero().flatten()[:shots].tolist()
        if not places:
            raise DataError(
                f"class {name!r} of task {task.name!r} has no training row to make a prototype from."
            )
        features = encoder(encoder.encode(rows.take(places).inputs, task.max_tokens))
        weights.append(F.normalize(F.normalize(features, dim=-1).mean(0), dim=-1))
    return torch.stack(weights)
