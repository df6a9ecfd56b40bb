"""Optional packages: importing them where they are used, with an error that names the install command."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tauspan.core.errors import MissingExtraError


def require_extra(package: str, extra: str, what: str) -> Any:
    """Import an optional package, or raise `MissingExtraError` with the command that installs it."""
    try:
        return importlib.import_module(package)
    except (ImportError, RuntimeError) as error:
        raise MissingExtraError(
            f"{what} needs {package} ({error}). Install it: pip install 'tauspan[{extra}]'."
        ) from error


@contextmanager
def quiet(transformers: Any) -> Iterator[None]:
    """Inside the block, transformers shows neither progress bars nor notices."""
    log = transformers.utils.logging
    had_bar, level = log.is_progress_bar_enabled(), log.get_verbosity()
    log.disable_progress_bar()
    log.set_verbosity_error()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if had_bar:
            log.enable_progress_bar()
