"""The meaning of labels: one rule for all file formats."""

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

from tauspan.core.errors import DataError, UsageError, listed, nearest

Meaning = Literal["auto", "names", "from_0", "from_1"]

NO_LABEL = "-1"  # what many data sets write where a row has no label
_MOST_CLASSES = 100_000  # a stray identifier in the label column must not fill the memory
_WHOLE = re.compile(r"(-?(?:0|[1-9][0-9]*))(?:\.0*)?")
_NUMBER = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_TRUTHS = {"false": 0, "true": 1}
_INFINITE = re.compile(r"[-+]?inf(?:inity)?", re.IGNORECASE)
_NO_NUMBER = {
    "nan",
    "-nan",
    "+nan",
    "none",
    "null",
    "na",
    "n/a",
    "<na>",
}  # what writers of tables put where a number is missing


class UnknownLabelError(DataError):
    """A label that is not a class, with its text and the reason; the caller adds the row."""

    def __init__(self, text: str, why: str) -> None:
        super().__init__(f"{text!r} {why}")
        self.text = text


def require_meaning(meaning: str) -> None:
    """Raise unless `meaning` is one of the ways to read labels."""
    if meaning not in get_args(Meaning):
        raise UsageError(f"labels={meaning!r}. {nearest(str(meaning), get_args(Meaning))}")


def written(value: Any) -> str | None:
    """A label as text, so that 1, 1.0 and "1" are one label in every format; None where there is none.

    Raises:
        DataError: a list, a mapping or bytes: a row has one class.

    Example:
        >>> [written(value) for value in (1, 1.0, "1", True, float("nan"), " ")]
        ['1', '1', '1', 'True', None, None]
    """
    if isinstance(value, str):
        return value if trimmed(value) else None
    if value is None or type(value).__name__ in ("NAType", "NaTType"):  # pandas' missing values
        return None
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a scalar of NumPy or torch
        value = value.item()
    if isinstance(value, float):
        if math.isinf(value):
            raise DataError(f"the label {value} is infinite, and no class.")
        return None if math.isnan(value) else str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, list | tuple | set | Mapping | bytes) or hasattr(value, "__array__"):
        raise DataError(
            f"the label {str(value)[:60]} is a {type(value).__name__}, and a row has one class: a number or a text. "
            "Data with several labels a row are not read; make a task of each label."
        )
    return str(value)


def trimmed(text: str) -> str:
    """A label without white space and invisible characters (zero width, byte order marks) around it."""
    first, last = 0, len(text)
    while first < last and _unseen(text[first]):
        first += 1
    while last > first and _unseen(text[last - 1]):
        last -= 1
    return text[first:last]


def _unseen(character: str) -> bool:
    return character.isspace() or unicodedata.category(character) in ("Cf", "Cc")


def numbers_alike(texts: Iterable[str]) -> dict[str, str | None]:
    """The common form of labels that are all whole numbers; empty if some label is not.

    In a column of whole numbers with gaps, many programs write 1 as 1.0 and a gap as nan; both are undone here.

    Raises:
        DataError: numbers, and an infinite one among them.

    Example:
        >>> numbers_alike(["1.0", "2", "nan"])
        {'1.0': '1', '2': '2', 'nan': None}
        >>> numbers_alike(["1.0", "2.5"])
        {}
    """
    texts = list(texts)
    infinite = next((text for text in texts if _INFINITE.fullmatch(text)), None)
    numbers = [text for text in texts if not _INFINITE.fullmatch(text) and text.casefold() not in _NO_NUMBER]
    if infinite is not None and all(map(_NUMBER.fullmatch, numbers)):
        raise DataError(
            f"the label {infinite} is infinite, and no class. If it is the name of one, give all names as `label_names` "
            "(--label-names)."
        )
    found: dict[str, str | None] = {}
    for text in texts:
        whole = _WHOLE.fullmatch(text)
        if whole is None and text.casefold() not in _NO_NUMBER:
            return {}
        found[text] = None if whole is None else str(int(whole[1]))
    return found if any(found.values()) else {}


def class_names(labels: Iterable[str], where: str) -> list[str]:
    """The classes that labels imply: the distinct labels, sorted; whole numbers are sorted by value.

    Raises:
        DataError: numbers that are not whole, or very many classes.

    Example:
        >>> class_names(["10", "2", "2"], "a.csv")
        ['2', '10']
    """
    names = set(labels)
    if len(names) > _MOST_CLASSES:
        raise DataError(
            f"{where} has {len(names):,} different labels: is that the column of the classes? If it is, give "
            "`label_names` (--label-names)."
        )
    if names and all(_WHOLE.fullmatch(name) for name in names):
        return sorted(names, key=lambda name: int(name.partition(".")[0]))
    if names and all(_NUMBER.fullmatch(name) for name in names):
        raise DataError(
            f"{where} has numbers as labels that are not whole ({listed(sorted(names))}): this reads classes, and no "
            "measurements. If they are the names of classes, give them as `label_names` "
            "(--label-names)."
        )
    return sorted(names)


def places(labels: Sequence[str], names: Sequence[str], meaning: Meaning = "auto") -> dict[str, int]:
    """The class index of each distinct label, by one rule for all rows of a task.

    All labels are names of classes, or all are whole numbers (`False` and `True` count as 0 and 1). If both readings are
    possible and differ, or if no label is 0, the caller has to choose the meaning.

    Args:
        labels: the distinct labels of all splits, as `written` gives them.
        names: the K classes.
        meaning: `"names"`, `"from_0"` (indices 0 to K-1), `"from_1"` (1 to K), or `"auto"`.

    Raises:
        UnknownLabelError: a label is no class, or means two.

    Example:
        >>> places(["5", "1"], ["1", "2", "5"]), places(["1", "0"], ["no", "yes"])
        ({'5': 2, '1': 0}, {'1': 1, '0': 0})
    """
    require_meaning(meaning)
    by_name, by_number = _by_name(labels, names), _by_number(labels, names, meaning)
    if meaning != "auto":
        return _whole(by_name if meaning == "names" else by_number, labels, names, meaning)
    named, numbered = len(by_name) == len(labels), len(by_number) == len(labels)
    if named and numbered and by_name != by_number:
        text = next(text for text in labels if by_name[text] != by_number[text])
        raise UnknownLabelError(
            text,
            f"is the name of class {by_name[text]}, and as an index it is class {by_number[text]} "
            f"({names[by_number[text]]!r}). "
            'Say which is meant: labels="names" or labels="from_0".',
        )
    if not named and not numbered and {*by_name, *by_number} == set(labels):
        text = next(text for text in labels if text not in by_name)
        raise UnknownLabelError(
            text,
            f"is an index, and {next(iter(by_name))!r} is the name of a class: write all labels as one of the two.",
        )
    if named or not numbered:
        return _whole(by_name if named or len(by_name) > len(by_number) else by_number, labels, names, "auto")
    if labels and not any(by_number[text] == 0 for text in labels):
        text = min(labels, key=by_number.__getitem__)
        raise UnknownLabelError(
            text,
            f"is the smallest label, and labels that are numbers count from 0, so class 0 ({names[0]!r}) has no row. Say "
            'labels="from_1" (--labels from_1) if they count from 1, or labels="from_0" if that class has no rows.',
        )
    return by_number


def _by_name(labels: Sequence[str], names: Sequence[str]) -> dict[str, int]:
    known = {name: place for place, name in enumerate(names)}
    for place, name in enumerate(names):  # the label 1 means a class called 1.0, and true a class called True
        whole = _WHOLE.fullmatch(name)
        known.setdefault(str(int(whole[1])) if whole else name, place)
        if name.casefold() in _TRUTHS:
            known.setdefault(name.casefold(), place)
    found = {}
    for text in labels:
        other = text.casefold() if text.casefold() in _TRUTHS else text
        if text in known or other in known:
            found[text] = known[text] if text in known else known[other]
    return found


def _by_number(labels: Sequence[str], names: Sequence[str], meaning: Meaning) -> dict[str, int]:
    start = 1 if meaning == "from_1" else 0
    truths = not any(name.casefold() in _TRUTHS for name in names)
    numbers = {text: number for text in labels if (number := _number(text, truths)) is not None}
    return {text: number - start for text, number in numbers.items() if 0 <= number - start < len(names)}


def _number(text: str, truths: bool = True) -> int | None:
    whole = _WHOLE.fullmatch(text)
    return int(whole[1]) if whole else _TRUTHS.get(text.casefold()) if truths else None


def _whole(
    found: dict[str, int], labels: Sequence[str], names: Sequence[str], meaning: Meaning
) -> dict[str, int]:
    """The mapping, if it has every label; else an error."""
    for text in labels:
        if text not in found:
            raise UnknownLabelError(text, _why(text, labels, names, meaning))
    return found


def _why(text: str, labels: Sequence[str], names: Sequence[str], meaning: Meaning) -> str:
    count, number = len(names), _number(text)
    start = 1 if meaning == "from_1" else 0
    if number is None or meaning == "names":
        kinds = "no class" if meaning == "names" else "neither a class index nor a class"
        return f"is {kinds}. {nearest(text, names)}"
    hint = ""
    numbers = [one for label in labels if (one := _number(label)) is not None]
    if len(numbers) == len(labels) and (min(numbers), max(numbers)) == (1, count) and start == 0:
        hint = (
            f' The labels run from 1 to {count}: say labels="from_1" (--labels from_1) if 1 is {names[0]!r}.'
        )
    classes = f"{count} classes: {listed(names)}"
    return f"is no class: label {number} lies outside {start}..{count - 1 + start} ({classes}).{hint}"


def require_names(names: Sequence[Any], task: str) -> None:
    """Raise unless class names are distinct texts that files can hold.

    Raises:
        DataError: an empty name, one that is no text or cannot be written in UTF-8, or two that look alike.
    """
    seen: dict[str, int] = {}
    for place, name in enumerate(names):
        if not isinstance(name, str):
            raise DataError(
                f"class {place} of task {task!r} is called {name!r}, a {type(name).__name__}: write {str(name)!r}."
            )
        if not name.strip() or not writable(name):
            what = "has no name" if not name.strip() else f"is called {name!r}, which UTF-8 cannot write"
            raise DataError(f"class {place} of task {task!r} {what}. Give every class a name of its own.")
        spelled = unicodedata.normalize("NFC", trimmed(name))
        if spelled.casefold() in _TRUTHS:  # spreadsheets write TRUE where programs write True
            spelled = spelled.casefold()
        if spelled in seen:
            first = seen[spelled]
            raise DataError(
                f"task {task!r} has two classes of one name: {names[first]!r} (class {first}) and {name!r} (class "
                f"{place}). Give every class a name of its own."
            )
        seen[spelled] = place


def writable(text: str) -> bool:
    """Whether a text can be written in UTF-8; half of a surrogate pair alone cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
