"""`open_task`: a data set by name, as a `Task`."""

from pathlib import Path

import torch

from tauspan.core.arguments import checked
from tauspan.core.errors import DataError, listed, nearest
from tauspan.tasks import Split, Task
from tauspan.tasks.data.catalog import DataSet, find_set
from tauspan.tasks.data.classes import aligned
from tauspan.tasks.data.source import from_folder, from_hub
from tauspan.tasks.split import held_out

OVERRIDE = "set.yaml"


@checked
def open_task(name: str | DataSet, root: str | Path | None = None, *, seed: int = 0) -> Task:
    """A data set as a task: its classes in the published order, its templates, its splits.

    Images stay encoded until they are accessed. If the data has no validation split of its own, min(10 %, 5000) of the
    training rows are held out for it, by a permutation that depends on the seed. `Task.extra` says where the rows come
    from: `dataset`, `title`, `seed`, `validation` (`own` or `held out of train`), `control_split` and `near`.

    Args:
        name: the name of a packaged data set (`catalog`), or a `DataSet`.
        root: a folder with one sub-folder per data set; None takes the hub. A `set.yaml` in the sub-folder stands for
            the packaged description: for other class names, columns or splits.
        seed: of the validation split.

    Raises:
        DataError: an unknown name, a missing split, another number of classes, a class of another name, a label that
            is none, damaged files.
        RecipeError: a `set.yaml` that is not as it should be, with the line.

    Example:
        >>> open_task("mnist", "/data")  # doctest: +SKIP
        Task('mnist', 10 classes, train 55000, validation 5000, test 10000)
    """
    dataset = find_set(name) if isinstance(name, str) else name
    if root is None:
        rows = from_hub(dataset)
    else:
        folder = _folder(Path(root), dataset.name)
        dataset = _override(dataset, folder)
        rows = from_folder(dataset, folder)
    names, places = aligned(dataset, rows.names, rows.where)
    splits = {
        split: Split(found.inputs, _relabelled(found.labels, places, f"{split} of {rows.where}"))
        for split, found in rows.splits.items()
    }
    _require_every_class(splits["train"], names, rows.where)
    own = "validation" in splits
    if not own:
        splits |= held_out(splits["train"], seed)
    extra = {
        "dataset": dataset.name, "title": dataset.title, "seed": seed,
        "validation": "own" if own else "held out of train", "control_split": dataset.control_split,
        "near": dataset.near,
    }  # fmt: skip
    return Task(dataset.name, names, splits, templates=dataset.templates, source=rows.where, extra=extra)


def _folder(root: Path, name: str) -> Path:
    if (root / name).is_dir():
        return root / name
    if not root.is_dir():
        raise DataError(f"there is no folder {root}, where the data sets should be.")
    there = [path.name for path in root.iterdir() if path.is_dir()]
    raise DataError(
        f"{root} has no folder {name!r}. {nearest(name, there) if there else 'It has no folders.'}"
    )


def _override(dataset: DataSet, folder: Path) -> DataSet:
    """The description in the data's own folder, if there is one."""
    if not (folder / OVERRIDE).is_file():
        return dataset
    found = DataSet.read(folder / OVERRIDE)
    if found.name != dataset.name:
        raise DataError(f"{folder / OVERRIDE} describes {found.name!r}, and {dataset.name!r} was asked for.")
    return found


def _relabelled(labels: torch.Tensor, places: list[int], where: str) -> torch.Tensor:
    outside = ((labels < 0) | (labels >= len(places))).nonzero().flatten()
    if len(outside):
        row = int(outside[0])
        raise DataError(
            f"{where}, row {row}: label {int(labels[row])} lies outside 0..{len(places) - 1} "
            f"({len(places)} classes)."
        )
    return torch.tensor(places, dtype=torch.long)[labels]


def _require_every_class(rows: Split, names: list[str], where: str) -> None:
    """Raise if a class has no training row, since the class list then does not belong to the data."""
    missing = sorted(set(range(len(names))) - set(rows.labels.tolist()))
    if missing:
        raise DataError(
            f"{where}: {len(missing)} of {len(names)} classes have no training row: "
            f"{listed(names[index] for index in missing)}. Is this the class list of these data?"
        )
