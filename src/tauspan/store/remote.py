"""Models behind a URL (`s3://`, `gs://`, `https://`, whatever fsspec knows): read by ranges, or downloaded whole.

A model that is merged is read once, block by block, so its weights need not be stored here. Its small files are
downloaded into a folder; of each file of weights the folder holds the header alone, and a list beside it says where the
values are. Such a file is shorter than its header says, so any other program that reads it fails instead of seeing
wrong numbers.
"""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from tauspan.core.errors import StoreError
from tauspan.core.measure import progress
from tauspan.store.places import atomic, write_json
from tauspan.store.tensors import LONGEST_HEADER

ELSEWHERE = ".elsewhere.json"  # in a folder: which of its files hold a header alone, and where the rest is
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_SMALL = 64 << 20  # files up to here are downloaded whole
_PREFIX = 8


@dataclass(frozen=True)
class Remote:
    """A file of weights whose values are behind a URL.

    Args:
        url: where.
        nbytes: its size.
    """

    url: str
    nbytes: int

    def read(self, start: int, stop: int) -> bytes:
        """The bytes from `start` to `stop`, in one request.

        Raises:
            StoreError: they cannot be read, or are fewer.
        """
        with _told(self.url):
            system, path = opened(self.url)
            found: bytes = system.cat_file(path, start=start, end=stop)
        if len(found) != stop - start:
            raise StoreError(
                f"{self.url} gave {len(found):,} bytes in place of {stop - start:,} from byte {start:,}: it was "
                "replaced or cut short while it was read. Begin again."
            )
        return found


def is_url(name: str) -> bool:
    """Whether a model's name is a URL."""
    return _URL.match(name) is not None


def remote(file: Path) -> Remote | None:
    """Where the values of a file of weights are, if it holds its header alone."""
    listed = file.parent / ELSEWHERE
    if not listed.is_file():
        return None
    facts = _list(listed, listed.stat().st_mtime_ns).get(file.name)
    return None if facts is None else Remote(facts["url"], facts["nbytes"])


@lru_cache(maxsize=64)
def _list(file: Path, changed: int) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads(file.read_text("utf-8"))
    return found


def opened(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it.

    Raises:
        StoreError: fsspec is missing, or the package that it needs for this kind of URL.
    """
    try:
        import fsspec  # comes with torch
    except ImportError as error:
        raise StoreError(f"{url} is read by fsspec, which is not installed: pip install fsspec.") from error
    try:
        system, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:  # a package that is missing, or no such kind
        raise StoreError(f"{url} cannot be opened: {error}.") from error
    return system, str(path)


@contextmanager
def _told(url: str) -> Iterator[None]:
    try:
        yield
    except StoreError:
        raise
    except Exception as error:  # each file system raises its own kinds
        words = str(error) or type(error).__name__
        raise StoreError(
            f"{url} cannot be read: {words}. Check the address, the network and your rights; a merge that was "
            "interrupted goes on with the same command."
        ) from error


def fetched(url: str, whole: bool, cache: str | Path | None = None) -> Path:
    """The folder, or file, of a model behind a URL; asked again, only what has changed is read again.

    Args:
        url: a folder or a file.
        whole: download weights too; otherwise only their headers, for `Values`.
        cache: the folder for it; None takes `tauspan` in the hub's own folder (`HF_HOME`), or in `~/.cache`.

    Raises:
        StoreError: nothing there, no rights, no network, or names that lead out of the folder.
    """
    with _told(url):
        system, root = opened(url)
        found = _listing(system, root, url)
    key = hashlib.sha256(json.dumps([url, whole, found], sort_keys=True).encode()).hexdigest()[:24]
    name = PurePosixPath(root.rstrip("/")).name or "model"
    alone = list(found) == [""]
    folder = _cache(cache) / f"url-{key}"
    if not folder.is_dir():
        with atomic(folder, overwrite=False) as temporary:
            temporary.mkdir()
            inner = temporary if alone else temporary / name
            with progress(f"fetching {name}", len(found)) as advance:
                for relative, facts in found.items():
                    there = url if alone else f"{url}/{relative}"
                    _fill(inner / (relative or name), system, facts, whole, there)
                    advance(1, relative)
    return folder / name


def _listing(system: Any, root: str, url: str) -> dict[str, dict[str, Any]]:
    """By path relative to the root, the path, size and version of each file."""
    if system.isfile(root):
        return {"": _facts(system.info(root))}
    found = {}
    start = root.rstrip("/") + "/"
    for path, info in sorted(system.find(root, detail=True).items()):
        relative = str(path)[len(start) :] if str(path).startswith(start) else str(path)
        parts = PurePosixPath(relative).parts
        if not parts or ".." in parts or relative.startswith("/"):
            raise StoreError(f"{url} lists {path!r}, which lies outside of it.")
        if not any(part.startswith(".") for part in parts):
            found[relative] = _facts(info)
    if not found:
        raise StoreError(f"{url} holds no files, or does not exist.")
    return found


def _facts(info: Mapping[str, Any]) -> dict[str, Any]:
    versions = (info.get(key) for key in ("ETag", "etag", "md5Hash", "mtime", "LastModified", "created"))
    version = next((str(value) for value in versions if value), None)
    return {"path": str(info["name"]), "nbytes": int(info["size"] or 0), "version": version}


def _fill(file: Path, system: Any, facts: Mapping[str, Any], whole: bool, url: str) -> None:
    """Download a file, or write the header of a large one of weights and where its values are."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if whole or facts["nbytes"] <= _SMALL:
        with _told(url):
            system.get_file(facts["path"], str(file))
        return
    if file.suffix != ".safetensors":  # a large file of anything else is of no use to a merge
        return
    with _told(url):
        head = system.cat_file(facts["path"], start=0, end=_PREFIX)
        length = int.from_bytes(head, "little")
        text = system.cat_file(facts["path"], start=_PREFIX, end=_PREFIX + min(length, LONGEST_HEADER))
    file.write_bytes(head + text)
    listed = file.parent / ELSEWHERE
    known = json.loads(listed.read_text("utf-8")) if listed.is_file() else {}
    write_json(listed, known | {file.name: {"url": url, "nbytes": facts["nbytes"]}})


def _cache(given: str | Path | None) -> Path:
    if given is not None:
        return Path(given)
    home = os.environ.get("HF_HOME")
    place = Path(home) / "tauspan" if home else Path.home() / ".cache" / "huggingface" / "tauspan"
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.mkdtemp(prefix="tauspan-"))
    return place
