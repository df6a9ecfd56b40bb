"""Methods by name: those of `METHODS`, and those of installed packages, by the entry-point group `tauspan.methods`.

A package says in its pyproject.toml which of its functions are methods, under which names:

```toml
[project.entry-points."tauspan.methods"]
median = "its_package.rules:median"
```

The function is one that `own_method` takes, or a `Method`. It is imported when its name is asked for, and not before.
"""

import functools
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import EntryPoint, entry_points

from tauspan.core.errors import UsageError, nearest
from tauspan.merge.engine.own import own_method
from tauspan.merge.methods import METHODS
from tauspan.merge.methods.method import Method

GROUP = "tauspan.methods"


def names() -> list[str]:
    """The names of all methods: those of `METHODS`, then those of installed packages; nothing is imported."""
    return [*METHODS, *dict.fromkeys(entry.name for entry in _entries())]


def named(name: str) -> Method:
    """The method of that name.

    Raises:
        UsageError: there is none; or a package gives it and it cannot be imported, is no method, or two packages have it.
    """
    if name in METHODS:
        return METHODS[name]
    found = [entry for entry in _entries() if entry.name == name]
    if not found:
        raise UsageError(f"no merging method {name!r}. {nearest(name, names())}")
    if len(found) > 1:
        both = " and ".join(origin(entry) for entry in found[:2])
        raise UsageError(
            f"the merging method {name!r} is given by {both}. Uninstall one of them, or name the function: "
            f"{found[0].value!r} (--code)."
        )
    return _loaded(found[0])


def installed() -> Iterator[tuple[EntryPoint, Method | UsageError]]:
    """The methods of installed packages; in the place of one that cannot be had, the error that says why."""
    for entry in _entries(hidden=True):
        try:
            if entry.name in METHODS:
                raise UsageError(
                    f"the merging method {entry.name!r} of {origin(entry)} is hidden by tauspan's own of that name. "
                    f"Name it otherwise in that package, or name the function: {entry.value!r} (--code)."
                )
            yield entry, named(entry.name)
        except UsageError as error:
            yield entry, error


def origin_of(method: str) -> dict[str, str] | None:
    """The package and version that gives a method by name; None for those of `METHODS` and code of one's own."""
    entry = next((entry for entry in _entries() if entry.name == method), None)
    if method in METHODS or entry is None:
        return None
    of = entry.dist
    known = {} if of is None else {"package": str(of.name), "version": str(of.version)}
    return {**known, "function": entry.value}


def origin(entry: EntryPoint) -> str:
    """The package that gives an entry point, with its version, and the function, in words."""
    of = "an unknown package" if entry.dist is None else f"{entry.dist.name} {entry.dist.version}"
    return f"{of} ({entry.value})"


def _entries(hidden: bool = False) -> list[EntryPoint]:
    """The entry points of the group, sorted; with `hidden` also those that have the name of a method of `METHODS`."""
    found = (entry for entry in entry_points(group=GROUP) if hidden or entry.name not in METHODS)
    return sorted(found, key=lambda entry: (entry.name, entry.value))


@functools.cache
def _loaded(entry: EntryPoint) -> Method:
    try:
        function = entry.load()
    except (Exception, SystemExit) as error:  # a module may fail in any way when it is first run
        raise UsageError(
            f"the merging method {entry.name!r} of {origin(entry)} cannot be imported ({type(error).__name__}: {error}). "
            "Repair or uninstall that package; other methods are not concerned."
        ) from error
    try:
        if not callable(function) and not isinstance(function, Method):
            raise UsageError(f"it is a {type(function).__name__}, and neither a function nor a `Method`.")
        return replace(own_method(function, entry.name), name=entry.name)
    except UsageError as error:
        raise UsageError(
            f"the merging method {entry.name!r} of {origin(entry)} is no method: {error} Repair or uninstall that "
            "package; other methods are not concerned."
        ) from error
