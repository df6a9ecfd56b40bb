"""Packages whose names are loaded on first use, so that importing them stays light."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def loader(namespace: dict[str, Any], homes: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package.

    Args:
        namespace: the package's `globals()`, where a name is kept once it was loaded.
        homes: the module of each name, relative to the package.
    """
    package = namespace["__name__"]

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        namespace[name] = getattr(importlib.import_module(f"{package}.{homes[name]}"), name)
        return namespace[name]

    return load
