"""The splits of a data set: from a folder in one of four layouts, or from the hub."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tauspan.core.errors import DataError, listed, nearest
from tauspan.models.extras import require_extra
from tauspan.tasks import SPLITS, Split, Task
from tauspan.tasks.assembly import gathered
from tauspan.tasks.data.catalog import DataSet, Splits
from tauspan.tasks.folders import class_folders, require_inside
from tauspan.tasks.parquet import parquet_table
from tauspan.tasks.readers import image_rows, read_rows


@dataclass(frozen=True)
class SourceSplits:
    """Splits as read from a source: labels are indices into `names`, or arbitrary numbers if `names` is None."""

    splits: Mapping[str, Split]
    names: Sequence[str] | None
    where: str


def from_folder(dataset: DataSet, folder: Path) -> SourceSplits:
    """The splits in a folder.

    The folder holds a `card.json`; or parquet files as the hub has them (`train-00000-of-00001.parquet`, also in `data/`
    or in a folder with the configuration's name); or for each split a folder of images or of parquet files, or a file
    such as `train.parquet` or `train.npz`.

    Raises:
        DataError: a split is missing, a file is damaged, a link leads out of the folder.
    """
    if (folder / "card.json").is_file():
        task = Task.from_directory(folder)
        return SourceSplits(task.splits, task.label_names, str(folder))
    tables = _hub_layout(dataset, folder)
    if tables:
        return _from_tables({split: parquet_table(files) for split, files in tables.items()}, dataset, folder)
    found: dict[str, Path] = {}
    for split, name in _named(dataset.splits, folder).items():
        path = _split_path(folder, name)
        if path is not None:
            require_inside(path, folder.resolve())
            found[split] = path
    _require_splits(dataset, dataset.splits, found, folder)
    files = {split: _parquet_files(path) for split, path in found.items()}
    kinds = {split: "parquet" if files[split] else path.suffix or "images" for split, path in found.items()}
    if len(set(kinds.values())) > 1:
        told = ", ".join(f"{split}: {kind}" for split, kind in kinds.items())
        raise DataError(f"{folder} holds its splits in different forms ({told}): make them alike.")
    if files["train"]:
        return _from_tables({split: parquet_table(files[split]) for split in files}, dataset, folder)
    names = class_folders(found["train"]) if found["train"].is_dir() else None
    most = names or [str(number) for number in range(dataset.class_count)]
    made = gathered({split: read_rows(path) for split, path in found.items()}, most, what=dataset.name)
    return SourceSplits(made.splits, names, str(folder))


def from_hub(dataset: DataSet) -> SourceSplits:
    """The splits at the hub, through the `datasets` library; no remote code is run.

    Raises:
        DataError: the hub cannot be reached, or has no such data set, split or column.
    """
    hub, datasets = dataset.hub, require_extra("datasets", "data", f"the data set {dataset.name!r}")
    try:
        found = datasets.load_dataset(hub.id, hub.config, revision=hub.revision)
    except Exception as error:  # the library raises many kinds: offline, unknown, gated, malformed
        raise DataError(
            f"{dataset.name!r} could not be loaded from the hub ({hub.id}): {error}. With a copy of your own, give the "
            f"folder that holds {dataset.name}/train and {dataset.name}/test."
        ) from error
    asked = hub.splits or dataset.splits
    tables = {split: found[name] for split, name in _names(asked).items() if name in found}
    _require_splits(dataset, asked, tables, hub.id, list(found))
    return _from_tables(tables, dataset, hub.id)


def _names(splits: Splits) -> dict[str, str]:
    named = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    return {split: name for split, name in named.items() if name is not None}


def _named(splits: Splits, folder: Path) -> dict[str, str]:
    """The names of the splits in a folder; a split called `validation` is used even if none is asked for."""
    names = _names(splits)
    if "validation" not in names and "validation" not in names.values() and _split_path(folder, "validation"):
        names["validation"] = "validation"
    return names


def _split_path(folder: Path, name: str) -> Path | None:
    if (folder / name).is_dir():
        return folder / name
    files = (folder / f"{name}.parquet", folder / f"{name}.npz")
    return next((file for file in files if file.is_file()), None)


def _parquet_files(path: Path) -> list[Path]:
    """The parquet files at a split's path; none if it holds images."""
    if path.suffix == ".parquet":
        return [path]
    files = sorted(path.glob("*.parquet")) if path.is_dir() else []
    for file in files:
        require_inside(file, path.resolve())
    return files


def _hub_layout(dataset: DataSet, folder: Path) -> dict[str, list[Path]]:
    """The parquet files of each split as the hub lays them out; empty if there are none."""
    asked = dataset.hub.splits or dataset.splits
    places = [folder, folder / "data", *([folder / dataset.hub.config] if dataset.hub.config else [])]
    for place in places:
        found = {split: sorted(place.glob(f"{name}-*.parquet")) for split, name in _names(asked).items()}
        for file in (file for files in found.values() for file in files):
            require_inside(file, folder.resolve())
        if any(found.values()):
            there = {split: files for split, files in found.items() if files}
            _require_splits(dataset, asked, there, place)
            return there
    return {}


def _require_splits(
    dataset: DataSet, asked: Splits, found: Mapping[str, Any], where: Path | str, known: Sequence[str] = ()
) -> None:
    for split, name in _names(asked).items():
        if split not in found:
            there = known or (sorted(p.name for p in Path(where).iterdir()) if Path(where).is_dir() else [])
            raise DataError(
                f"{dataset.name!r} has no {split} split in {where}: {name!r} is not there, as a folder of images or "
                f"parquet files, {name}.parquet or {name}.npz. {where} has: {listed(there, 12) or 'nothing'}."
            )


def _from_tables(tables: Mapping[str, Any], dataset: DataSet, where: Path | str) -> SourceSplits:
    columns, splits, own = dataset.columns, {}, {}
    for split, table in tables.items():
        place = f"{where}:{split}"
        found = image_rows(table, columns.image, columns.label, place)
        labels, names = found.labels, found.names
        texts = sorted({value for value in labels if isinstance(value, str)}) if names is None else []
        own[split] = list(names) if names is not None else texts or None
        if split != "train" and texts and own["train"] is not None:
            own[split] = own["train"]  # a small split may lack a class; its values are looked up in train's
        splits[split] = Split(found.inputs, _numbered(labels, own[split], place))
    for split, names in own.items():
        if names != own["train"]:
            raise DataError(
                f"{where}: the {split} split has other class names than train: {listed(names or [])} against "
                f"{listed(own['train'] or [])}."
            )
    return SourceSplits(
        {split: splits[split] for split in SPLITS if split in splits}, own["train"], str(where)
    )


def _numbered(labels: Sequence[Any], names: Sequence[str] | None, where: str) -> torch.Tensor:
    """Labels as class indices: texts are looked up in `names`, and whole numbers are kept."""
    place = {name: index for index, name in enumerate(names or ())}
    numbers = []
    for row, value in enumerate(labels):
        number = place.get(value) if isinstance(value, str) else value
        if not isinstance(number, int):  # a bool is an int, as in data sets of two classes
            raise DataError(
                f"{where}, row {row}: the label {value!r} is no class. {nearest(str(value), place)}"
            )
        numbers.append(int(number))
    return torch.tensor(numbers, dtype=torch.long)
