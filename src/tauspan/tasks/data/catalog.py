"""The data sets of the paper and its extensions, each described by one small YAML file beside this one."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from tauspan.core.arguments import checked
from tauspan.core.errors import DataError, RecipeError, nearest
from tauspan.core.schema import Document

SETS = Path(__file__).parent / "sets"
EIGHT = ("cars", "dtd", "eurosat", "gtsrb", "mnist", "resisc45", "sun397", "svhn")
FOURTEEN = (*EIGHT, "cifar100", "stl10", "flowers102", "oxford_iiit_pet", "pcam", "fer2013")
TWENTY = (*FOURTEEN, "emnist", "cifar10", "food101", "fashion_mnist", "rendered_sst2", "kmnist")
CONTROL = "imagenet"


def _word(value: Any, place: str) -> str:
    """Check the name of a split or a folder: a single path component, which cannot lead elsewhere."""
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", value):
        raise RecipeError(
            f"{place} is {value!r}: a name of letters, digits, '_', '.' and '-' is needed, no path."
        )
    return value


def _optional_word(value: Any, place: str) -> str | None:
    return None if value is None else _word(value, place)


def _hub_id(value: Any, place: str) -> str:
    """Check that an id has the form OWNER/NAME, since `datasets` would read a local path too."""
    if not isinstance(value, str) or not re.fullmatch(r"[\w][\w.-]*/[\w][\w.-]*", value):
        raise RecipeError(f"{place} is {value!r}: a hub id has the form OWNER/NAME.")
    return value


@dataclass(frozen=True)
class Splits:
    """The names of the splits; without `validation`, part of train is held out."""

    train: str = field(default="train", metadata={"parse": _word})
    test: str = field(default="test", metadata={"parse": _word})
    validation: str | None = field(default=None, metadata={"parse": _optional_word})


@dataclass(frozen=True)
class Hub:
    """Where the hub has the data set: id, configuration, revision (null: the newest), and its names of the splits."""

    id: str = field(metadata={"parse": _hub_id})
    config: str | None = field(default=None, metadata={"parse": _optional_word})
    revision: str | None = None
    splits: Splits | None = None


@dataclass(frozen=True)
class Columns:
    """The columns of a table that hold the encoded image and the class."""

    image: str = "image"
    label: str = "label"


@dataclass(frozen=True)
class Sizes:
    """The number of rows of each split in the benchmark."""

    train: int
    validation: int
    test: int


@dataclass(frozen=True)
class DataSet:
    """A data set as a file describes it; `tauspan.tasks.data.open_task` makes a `Task` of it.

    Args:
        name, title: short, and for people.
        hub, columns, splits: where the rows are. Folders are called as `splits` says, splits at the hub as
            `hub.splits` says, which is the same unless given.
        classes: the K class names that go into the templates; null takes the data's own, '_' as a space.
        class_count: K.
        match: how the data's own classes find theirs in `classes`: by `name`, where only letters and digits count and
            numbers are places in the list; or by `order`.
        rename: own class name to the name in `classes`, where they differ.
        templates: sentences with one `{}` for a class name; the head averages over them.
        source: where names and templates are published.
        licence: the licence of the data.
        paper_epochs: fine-tuning epochs in the benchmark, about 2000 steps at batch 128; null for a control.
        sizes: rows of each split.
        download_gb: what the hub copy takes, about.
        near: the Hamming distance between 64-bit perceptual hashes up to which two images count as near-duplicates;
            null where distinct images look alike, such as digits, so that only equal pixels count.
        control_split: for a control: which published split is which; reports print it.
        note: what is known of this copy and what is not.
    """

    name: str = field(metadata={"parse": _word})
    title: str
    hub: Hub
    class_count: int
    templates: tuple[str, ...]
    source: str
    licence: str
    sizes: Sizes
    download_gb: float
    columns: Columns = field(default_factory=Columns)
    splits: Splits = field(default_factory=Splits)
    classes: tuple[str, ...] | None = None
    match: Literal["name", "order"] = "name"
    rename: Mapping[str, str] = field(default_factory=dict)
    paper_epochs: int | None = None
    near: int | None = None
    control_split: str | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if self.classes is not None and len(self.classes) != self.class_count:
            raise RecipeError(
                f"class_count is {self.class_count}, and classes has {len(self.classes)} names."
            )
        for template in self.templates:
            if template.count("{}") != 1 or re.search(r"[{}]", template.replace("{}", "")):
                raise RecipeError(f"the template {template!r} needs exactly one {{}}, for the class name.")
        for own, name in self.rename.items():
            if self.classes is not None and name not in self.classes:
                raise RecipeError(f"rename gives {own!r} the name {name!r}. {nearest(name, self.classes)}")
        if self.near is not None and not 0 <= self.near <= 8:
            raise RecipeError(f"near is {self.near}: a distance of 0 to 8 of 64 bits, or null.")

    @staticmethod
    def read(path: str | Path) -> "DataSet":
        """The data set that a YAML file describes.

        Raises:
            RecipeError: an unknown key, a wrong type, a split's name that is a path, ...; with the line.
            StoreError: no such file.
        """
        return Document.read(path).build(DataSet)


@cache
def catalog() -> Mapping[str, DataSet]:
    """The packaged data sets by name.

    Example:
        >>> catalog()["eurosat"].sizes
        Sizes(train=21600, validation=2700, test=2700)
    """
    found = (DataSet.read(file) for file in sorted(SETS.glob("*.yaml")))
    return MappingProxyType({dataset.name: dataset for dataset in found})


@checked
def find_set(name: str, also: Sequence[str] = ()) -> DataSet:
    """A packaged data set by name.

    Raises:
        DataError: there is none; the message has the nearest of them and of the names in `also`.
    """
    if name not in catalog():
        raise DataError(f"no data set {name!r}. {nearest(name, [*catalog(), *also])}")
    return catalog()[name]
