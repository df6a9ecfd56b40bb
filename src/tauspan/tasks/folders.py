"""Folders of images: one folder for each class."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tauspan.core.errors import DataError, listed
from tauspan.tasks.images import Files, Images
from tauspan.tasks.labels import class_names
from tauspan.tasks.rows import Rows
from tauspan.tasks.split import SPLITS

_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".pjpeg", ".bmp", ".dib", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm",
    ".pbm", ".pnm", ".apng",
)  # fmt: skip
_UNREAD = (  # image formats that are not decoded here
    ".avif", ".heic", ".heif", ".svg", ".jp2", ".j2k", ".jxl", ".tga", ".ico", ".psd", ".dng", ".cr2", ".nef", ".exr",
    ".hdr", ".dcm", ".eps", ".pcx",
)  # fmt: skip
_FOREIGN = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found", "__pycache__")
_SPLIT_NAMES = {*SPLITS, "val", "valid", "dev"}
HIDDEN, OTHER_FORMAT = "images in hidden folders", "images of a format that is not read"


def image_folder(folder: Path) -> Rows:
    """The images below a folder, at any depth; the first subfolder on an image's path is its class.

    Ignored are hidden files and folders, and those that operating systems and editors add (`.ipynb_checkpoints`,
    `__MACOSX`, `Thumbs.db`). `left_out` counts the images among them, and images in formats that are not read.

    Raises:
        DataError: images outside of any class, a class without images, folders named like splits, or a link that leads
            out of the folder.
    """
    inside = folder.resolve()
    files: list[str] = []
    labels: list[str] = []
    left_out: Counter[str] = Counter()
    for name in class_folders(folder):
        found = sorted(_below(folder / name, inside, left_out, {inside}))
        if not found:
            raise DataError(
                f"{folder / name} holds no image, so it is no class. Remove it, or put its images there; read are "
                f"{listed(_SUFFIXES, 20)}."
            )
        files += [f"{name}/{file}" for file in found]
        labels += [name] * len(found)
    for entry in folder.iterdir():
        if _is_foreign(entry.name) and entry.is_dir():
            left_out[HIDDEN] += sum(1 for _ in _images_below(entry))
    return Rows(
        Images(Files(folder, files)), labels, str(folder), left_out={k: v for k, v in left_out.items() if v}
    )


def class_folders(folder: Path) -> list[str]:
    """The names of the class folders, in the order of classes.

    Raises:
        DataError: no class folder, images beside the folders, or folders named like splits.
    """
    names, loose = [], []
    for entry in folder.iterdir():
        if _is_foreign(entry.name):
            continue
        if entry.is_dir():
            names.append(entry.name)
        elif entry.suffix.lower() in _SUFFIXES:
            loose.append(entry.name)
    if loose:
        raise DataError(
            f"{folder} holds {len(loose)} images outside of any class's folder ({listed(sorted(loose))}). Put each "
            "into the folder of its class."
        )
    if not names:
        raise DataError(f"{folder} holds neither a table nor folders of images, one for each class.")
    if {name.lower() for name in names} <= _SPLIT_NAMES:
        raise DataError(
            f"the folders of {folder} are splits ({listed(sorted(names))}), and no classes. Give the folder of each "
            f"split, such as {folder / sorted(names)[-1]}."
        )
    return class_names(names, str(folder))


def _is_foreign(name: str) -> bool:
    return name.startswith(".") or name in _FOREIGN


def _below(
    folder: Path, inside: Path, left_out: Counter[str], above: set[Path], prefix: str = ""
) -> Iterator[str]:
    """The image files below a class's folder, as paths relative to it; a link that leads out of the data is an error."""
    if folder.is_symlink():
        require_inside(folder, inside)
    real = folder.resolve()
    if real in above:
        raise DataError(f"{folder} is a link to a folder that it lies in: remove it.")
    with os.scandir(folder) as entries:
        for entry in entries:
            path = Path(entry.path)
            if _is_foreign(entry.name):
                left_out[HIDDEN] += sum(1 for _ in _images_below(path)) if entry.is_dir() else 0
            elif entry.is_dir():
                yield from _below(path, inside, left_out, above | {real}, f"{prefix}{entry.name}/")
            elif path.suffix.lower() in _SUFFIXES:
                if entry.is_symlink() or folder.is_symlink():
                    require_inside(path, inside)
                if entry.is_file():
                    yield prefix + entry.name
            elif path.suffix.lower() in _UNREAD:
                left_out[OTHER_FORMAT] += 1


def _images_below(folder: Path) -> Iterator[str]:
    for _, _, names in os.walk(folder):
        yield from (name for name in names if Path(name).suffix.lower() in _SUFFIXES and name[0] != ".")


def require_inside(file: Path, folder: Path) -> None:
    """Raise if a path leads out of a folder, through links or dots; `folder` is resolved."""
    if not file.resolve().is_relative_to(folder):
        raise DataError(
            f"{file} leads out of {folder}, to {file.resolve()}: put a copy of the file there instead of the link."
        )
