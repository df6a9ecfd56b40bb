"""Files that appear complete or not at all (written under a temporary name, then renamed), and locks."""

import fcntl
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from tauspan.core.errors import StoreError, UsageError

_TEMPORARY = ".part"
_REPLACED = ".old"


def require_free(path: Path, overwrite: bool) -> None:
    """Raise `StoreError` if `path` exists and `overwrite` is false."""
    if path.exists() and not overwrite:
        raise StoreError(f"{path} is already there. Choose another output, or say `overwrite` (--overwrite).")


def require_folder(out: str | Path) -> None:
    """Raise `UsageError` if the name of an output folder ends as a file of weights does: it would be read as a file."""
    if Path(out).suffix in (".safetensors", ".json"):
        raise UsageError(
            f"{out}: a model is written as a directory. Give its name, {Path(out).with_suffix('')}."
        )


def require_apart(out: str | Path, inputs: Iterable[str | Path | None]) -> None:
    """Raise if replacing `out` would remove an input. Inputs that are ids, not paths, are ignored.

    Raises:
        UsageError: `out` is an input or a folder that holds one; links are followed.
    """
    target = Path(out).resolve()
    for given in inputs:
        if given is None or not Path(given).exists():
            continue
        place = Path(given).resolve()
        if target == place or target in place.parents:
            raise UsageError(
                f"the output {out} {'is' if target == place else 'holds'} the input {given}, and nothing is written "
                "over what it is made from. Choose another output."
            )


@contextmanager
def atomic(path: str | Path, *, overwrite: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it is renamed to `path` after the block, or removed if the block raises.

    The block may create a file or a directory there. A directory replaces the older directory completely. Temporary
    folders that killed processes left behind while they wrote the same path are removed.

    Raises:
        StoreError: something is already there and `overwrite` is false, or writing failed (a full disk, a
            read-only directory); nothing is left behind then.
    """
    path = Path(path)
    require_free(path, overwrite)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=_TEMPORARY, dir=path.parent))
        with locked(temporary):
            inner = temporary / path.name
            yield inner
            publish(inner, path, overwrite=overwrite)
    except (OSError, SafetensorError) as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"{path} could not be written: {error}. Nothing was left behind.") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def publish(inner: Path, path: Path, *, overwrite: bool) -> None:
    """Rename a finished file or directory to its final name, on the same disk.

    Raises:
        StoreError: the path exists and `overwrite` is false; another process may have been faster.
    """
    require_free(path, overwrite)
    _settle(inner, inner.with_name(f"{path.name}.mode"))
    _move(inner, path, inner.with_name(f"{path.name}{_REPLACED}"))
    _flush_directory(path.parent)


@contextmanager
def locked(path: Path, wait: bool = False) -> Iterator[bool]:
    """Lock a folder or file during the block; the system frees the lock when the process dies.

    Yields whether the lock was obtained. With `wait` it waits until other holders have released it.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            free = True
        except OSError:  # another process holds it, or the file system has no locks
            free = False
        yield free
    finally:
        os.close(descriptor)


def _remove_leftovers(path: Path) -> None:
    """Remove the temporary folders that killed processes left while they wrote this path.

    These are folders named as by `atomic` that are neither empty nor locked; a running writer locks its folder before it
    writes there. A folder with both the new and the replaced output is kept: the process ended between two
    renames, and this may be the only copy of the old output.
    """
    ours = re.compile(rf"\.{re.escape(path.name)}\.\w+{re.escape(_TEMPORARY)}")
    for folder in path.parent.iterdir():
        if not ours.fullmatch(folder.name) or folder.is_symlink() or not folder.is_dir():
            continue
        with suppress(OSError), locked(folder) as free:
            held = {entry.name for entry in folder.iterdir()}
            if free and held and not {path.name, f"{path.name}{_REPLACED}"} <= held:
                shutil.rmtree(folder)


def _settle(path: Path, probe: Path) -> None:
    """Flush every file and give it the permissions of a new file; safetensors would let only the owner read it."""
    probe.touch()
    mode = probe.stat().st_mode
    inside = [path] if path.is_file() else path.rglob("*")
    for file in (entry for entry in inside if entry.is_file() and not entry.is_symlink()):
        file.chmod(mode)
        with file.open("rb") as handle:
            os.fsync(handle.fileno())


def _move(inner: Path, path: Path, old: Path) -> None:
    """Rename; an older directory is moved away first, and is moved back if the rename fails."""
    if not path.is_dir():
        inner.replace(path)
        return
    path.rename(old)
    try:
        inner.replace(path)
    finally:
        if not path.exists():
            old.rename(path)


def _flush_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: str | Path, text: str, *, overwrite: bool = True) -> None:
    """Write a text file atomically."""
    with atomic(path, overwrite=overwrite) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: Any, *, overwrite: bool = True) -> None:
    """Write a JSON file atomically, with keys in the order given."""
    write_text(
        path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", overwrite=overwrite
    )
