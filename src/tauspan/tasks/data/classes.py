"""Match the class names in the data to those of a `DataSet`."""

from collections.abc import Sequence

from tauspan.core.errors import DataError, listed, nearest
from tauspan.tasks.data.catalog import DataSet


def key(name: str) -> str:
    """The letters and digits of a class name in lower case, which are the same in different spellings.

    Example:
        >>> key("polka-dotted") == key("Polka_dotted")
        True
    """
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def aligned(dataset: DataSet, own: Sequence[str] | None, where: str) -> tuple[list[str], list[int]]:
    """The class names in the order of `dataset.classes`, and the index in them of each class of the data.

    The order does not depend on the copy of the data: alphabetical folders, numbers as names and shuffled class lists
    give the same labels.

    Args:
        dataset: gives the class names.
        own: the data's own class names in the order of its labels; None if its labels are numbers alone.
        where: the data, for errors.

    Raises:
        DataError: another number of classes, or a class that has no counterpart; with the nearest name.
    """
    wanted = list(dataset.classes or ())
    if own is None:
        if not wanted:
            raise DataError(
                f"{where} has numbers as labels and no class names, and {dataset.name!r} gives none. {_repair(dataset)}"
            )
        return wanted, list(range(len(wanted)))
    if len(own) != dataset.class_count:
        raise DataError(
            f"{where} has {len(own)} classes, and {dataset.name!r} has {dataset.class_count}: "
            f"{_missing(dataset, own)}. {_repair(dataset)}"
        )
    if not wanted:
        renamed = {key(name): new for name, new in dataset.rename.items()}
        return [renamed.get(key(name), name.replace("_", " ")) for name in own], list(range(len(own)))
    if dataset.match == "order":
        return wanted, list(range(len(own)))
    return wanted, _numbers(own, wanted) or _places(dataset, own, where)


def _numbers(own: Sequence[str], wanted: Sequence[str]) -> list[int] | None:
    """The indices of class names that are the numbers from 0 or from 1; None if they are not."""
    if not all(name.isdecimal() for name in own) or {key(name) for name in own} == {key(n) for n in wanted}:
        return None
    numbers = [int(name) for name in own]
    start = min(numbers)
    whole = start in (0, 1) and sorted(numbers) == list(range(start, start + len(own)))
    return [number - start for number in numbers] if whole else None


def _places(dataset: DataSet, own: Sequence[str], where: str) -> list[int]:
    wanted = {key(name): place for place, name in enumerate(dataset.classes or ())}
    renamed = {key(name): key(new) for name, new in dataset.rename.items()}
    places: list[int] = []
    for name in own:
        place = wanted.get(renamed.get(key(name), key(name)))
        if place is None:
            raise DataError(
                f"{where} has a class {name!r}, which {dataset.name!r} has not. "
                f"{nearest(name, dataset.classes or ())} {_repair(dataset)}"
            )
        if place in places:
            twice = own[places.index(place)]
            raise DataError(
                f"{where}: the classes {twice!r} and {name!r} are both {(dataset.classes or ())[place]!r} in "
                f"{dataset.name!r}. {_repair(dataset)}"
            )
        places.append(place)
    return places


def _missing(dataset: DataSet, own: Sequence[str]) -> str:
    """What one of the two lists has that the other lacks, in words."""
    renamed = {key(name): key(new) for name, new in dataset.rename.items()}
    here = {renamed.get(key(name), key(name)): name for name in own}
    there = {key(name): name for name in dataset.classes or ()}
    lacking = [name for spelled, name in there.items() if spelled not in here]
    unknown = [name for spelled, name in here.items() if there and spelled not in there]
    parts = ["missing " + listed(lacking)] if lacking else []
    parts += ["unknown " + listed(unknown)] if unknown else []
    return "; ".join(parts) or listed(own)


def _repair(dataset: DataSet) -> str:
    return (
        f"If these are the right data, put a set.yaml with other `classes` or `rename` into their folder: a copy of "
        f"the packaged {dataset.name}.yaml, changed."
    )
