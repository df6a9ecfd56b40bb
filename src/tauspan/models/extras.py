"""Optional packages: imported where they are used, or named with the command that installs them."""

import importlib
from typing import Any

from tauspan.errors import MissingExtraError


def require_extra(package: str, extra: str, what: str) -> Any:
    """Import an optional package, or raise `MissingExtraError` with the command that installs it."""
    try:
        return importlib.import_module(package)
    except (ImportError, RuntimeError) as error:
        raise MissingExtraError(
            f"{what} needs {package} ({error}). Install it: pip install 'tauspan[{extra}]'."
        ) from error
