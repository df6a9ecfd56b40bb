"""Files that appear complete or not at all (written under a temporary name, then renamed), and locks."""

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from tauspan.core.errors import StoreError, UsageError

LOCK = ".tauspan.lock"  # the file in a folder by which the folder is locked
_TEMPORARY = ".part"
_REPLACED = ".old"
_NO_LOCKS = {getattr(errno, name, None) for name in ("ENOLCK", "ENOSYS", "ENOTSUP", "EOPNOTSUPP")} - {None}


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
    """Lock a folder, by an empty file in it, or a file during the block; the system frees the lock when the process dies.

    A file that is locked holds nothing: some versions of `filelock` empty it. It stays where it is when the lock is
    freed. Two locks of one path exclude one another within a process too.

    Yields whether the lock was obtained: not while another holds it, nor where the file system has no locks. With `wait`
    it waits until other holders have released it.

    Raises:
        OSError: the lock's file cannot be made.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder, locked(Path(folder)) as mine, locked(Path(folder)) as again:
        ...     mine, again
        (True, False)
    """
    lock = FileLock(path / LOCK if path.is_dir() else path, thread_local=False)
    try:
        lock.acquire(timeout=-1 if wait else 0)
        free = True
    except (Timeout, NotImplementedError):
        free = False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        free = False
    try:
        yield free
    finally:
        lock.release()


def _remove_leftovers(path: Path) -> None:
    """Remove the temporary folders that killed processes left while they wrote this path.

    These are folders named as by `atomic` that hold something and are not locked; a running writer locks its folder
    before it writes there.
    """
    ours = re.compile(rf"\.{re.escape(path.name)}\.\w+{re.escape(_TEMPORARY)}")
    for folder in path.parent.iterdir():
        if not ours.fullmatch(folder.name) or folder.is_symlink() or not folder.is_dir():
            continue
        with suppress(OSError):
            if not _left_over(folder, path.name):  # a folder that stays gets no lock's file
                continue
            with locked(folder) as free:
                if free and _left_over(folder, path.name):
                    shutil.rmtree(folder)


def _left_over(folder: Path, name: str) -> bool:
    """Whether a temporary folder holds something that nobody misses.

    A folder with both the new and the replaced output is kept: the process ended between two renames, and this may be
    the only copy of the old output.
    """
    held = {entry.name for entry in folder.iterdir()} - {LOCK}
    return bool(held) and not {name, f"{name}{_REPLACED}"} <= held


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
    if not hasattr(os, "O_DIRECTORY"):  # Windows opens no folder
        return
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
