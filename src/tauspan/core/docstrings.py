"""What docstrings say of arguments: help texts of options and descriptions of schemas are made of it."""

import inspect
import re
from typing import Any


def documented(kind: Any) -> dict[str, str]:
    """The text under `Args:` for each argument of a class, in one line; its own docstring's, else that of its bases.

    Python 3.13 and later strip a docstring's indentation when they compile it, and earlier ones do not.

    Example:
        >>> from tauspan.core.reading import Reading
        >>> documented(Reading)["batch_size"]
        'rows per forward pass.'
    """
    found: dict[str, str] = {}
    for one in reversed(inspect.getmro(kind)):
        found |= _entries(inspect.cleandoc(vars(one).get("__doc__") or ""))
    return found


def _entries(text: str) -> dict[str, str]:
    section = text.partition("Args:\n")[2].partition("\n\n")[0]
    entries = re.findall(r"^    (\w+(?:, \w+)*): (.*(?:\n        .*)*)", section, re.MULTILINE)
    return {name: re.sub(r"\s+", " ", said) for names, said in entries for name in names.split(", ")}
