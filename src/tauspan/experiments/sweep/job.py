"""`Job`: a named call of a function with JSON's values; checked before anything starts."""

import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tauspan.core.errors import UsageError
from tauspan.core.schema import shown
from tauspan.experiments.sweep.worker import function_of, plain

LONGEST_NAME = 200  # bytes; a file name has room for 255, and a suffix and a temporary name are added
_FUNCTION = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


@dataclass(frozen=True)
class Job:
    """A piece of work: `function(**arguments)`, in some process, at some time.

    Args:
        name: becomes the name of the result's file.
        function: `module:function`, importable by a fresh process; what it returns must be JSON's values too.
        arguments: by name; numbers, texts, lists, mappings, None. Tuples become lists.

    Raises:
        UsageError: a name that is no plain file name, a function spelt otherwise, or arguments that JSON lacks.
        NonFiniteError: NaN or infinity in the arguments.

    Example:
        >>> Job("mean", "statistics:fmean", {"data": (1, 2, 6)}).arguments
        {'data': [1, 2, 6]}
    """

    name: str
    function: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_name(self.name)
        if not isinstance(self.function, str) or not _FUNCTION.fullmatch(self.function):
            raise UsageError(f"job {self.name!r}: write 'module:function', not {shown(self.function)}.")
        if self.function.startswith("__main__:"):
            raise UsageError(
                f"job {self.name!r}: {self.function!r} is defined in the program itself, which workers do not run again. "
                "Move the function to a module of its own and name that."
            )
        if not isinstance(self.arguments, Mapping):
            raise UsageError(
                f"job {self.name!r}: arguments are a mapping of names to values, not {shown(self.arguments)}."
            )
        object.__setattr__(self, "arguments", plain(self.arguments, f"job {self.name!r}: arguments"))

    def require_callable(self) -> None:
        """Raise `UsageError` unless the function can be imported here and takes the arguments."""
        try:
            function = function_of(self.function)
        except UsageError as error:
            raise UsageError(f"job {self.name!r}: {error}") from error
        try:
            signature = inspect.signature(function)
        except ValueError:  # some functions written in C have no signature
            return
        try:
            signature.bind(**self.arguments)
        except TypeError as error:
            raise UsageError(
                f"job {self.name!r}: {self.function}{signature} does not fit the arguments "
                f"{shown(dict(self.arguments))}: {error}."
            ) from error


def _check_name(name: object) -> None:
    if not isinstance(name, str):
        raise UsageError(f"a job's name is a text, not {shown(name)}.")
    wrong = (
        "it is empty" if not name
        else "it begins with a point" if name.startswith(".")
        else "it holds a path separator" if set(name) & set("/\\")
        else "it holds a character that cannot be printed" if not name.isprintable()
        else f"it is longer than {LONGEST_NAME} bytes" if len(name.encode()) > LONGEST_NAME
        else None
    )  # fmt: skip
    if wrong:
        raise UsageError(f"the job name {shown(name)} cannot be a file's name: {wrong}.")


def require_distinct(jobs: Iterable[Job]) -> None:
    """Raise `UsageError` if two names are the same, or differ only in case, which some file systems ignore."""
    seen: dict[str, str] = {}
    for job in jobs:
        key = job.name.casefold()
        if key in seen:
            raise UsageError(
                f"two jobs would write the same file: {seen[key]!r} and {job.name!r}. Choose other names."
            )
        seen[key] = job.name
