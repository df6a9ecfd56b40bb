"""Images that stay encoded until they are accessed."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from tauspan.core.errors import DataError
from tauspan.models.extras import require_extra
from tauspan.models.pictures import rgb

# the formats that Pillow may open: its readers of vector formats start other programs
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF", "PPM")


class Encoded(Protocol):
    """The encoded bytes of some images, and the name of each for errors."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes:
        """The bytes of one image."""
        ...

    def name(self, index: int) -> str:
        """The origin of one image: a file, or a table and a row."""
        ...


@dataclass(frozen=True)
class Files:
    """Image files below a folder; only short names are stored, since there may be millions."""

    folder: Path
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> bytes:
        """The bytes of one file."""
        try:
            return (self.folder / self.names[index]).read_bytes()
        except OSError as error:
            raise DataError(f"{self.name(index)} cannot be read: {error.strerror or error}.") from error

    def name(self, index: int) -> str:
        """The file's path, with unprintable bytes escaped."""
        return str(self.folder / self.names[index]).encode(errors="backslashreplace").decode()


@dataclass(frozen=True)
class Column:
    """A column of images in a table of the `datasets` library, which keeps it in a mapped file.

    Args:
        table: a table of the `datasets` library.
        column: the images.
        where: the table, for errors.
        inside: a folder whose files a cell may name instead of holding bytes; None follows no path.
    """

    table: Any
    column: str
    where: str
    inside: Path | None = None

    def __len__(self) -> int:
        return len(self.table)

    def read(self, index: int) -> bytes:
        """The bytes of one cell; a path in a cell is read only if it is inside the folder of the table."""
        cell = self.table[index][self.column]
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        path = cell.get("path") if isinstance(cell, dict) and data is None else None
        if path and self.inside is not None and Path(path).resolve().is_relative_to(self.inside):
            return Files(Path(path).parent, [Path(path).name]).read(0)
        if not isinstance(data, bytes):
            raise DataError(
                f"{self.name(index)}: {self.column!r} holds no encoded image, as bytes or as a struct with `bytes`. "
                "Write the table with its images embedded, as `Dataset.push_to_hub` does."
            )
        return data

    def name(self, index: int) -> str:
        """The table and the row."""
        return f"{self.where}, row {index}"


class Images(Sequence[NDArray[np.uint8]]):
    """A sequence of images that are decoded on access, and not kept.

    An item is RGB, uint8 of shape (H, W, 3); a slice or `take` is another such sequence over the same bytes.
    Memory: what `encoded` keeps, which is a name per file and nothing per row of a mapped table.

    Args:
        encoded: the images' bytes.
        places: which of them, in order; None takes all.

    Raises:
        DataError: on access, where the bytes are no image, are damaged, hold more pixels than Pillow's limit
            against decompression bombs, or hold 16-bit or float pixels; it names the file or the row.

    Example:
        >>> Images(Files(Path("birds"), ["0.png", "1.png"]))[1:]
        Images(1)
    """

    def __init__(self, encoded: Encoded, places: Sequence[int] | None = None) -> None:
        self.encoded = encoded
        self.places = range(len(encoded)) if places is None else places

    def __repr__(self) -> str:
        return f"Images({len(self)})"

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> NDArray[np.uint8]: ...

    @overload
    def __getitem__(self, index: slice) -> "Images": ...

    def __getitem__(self, index: int | slice) -> "NDArray[np.uint8] | Images":
        if isinstance(index, slice):
            return Images(self.encoded, list(self.places[index]))
        place = self.places[index]
        return decoded(self.encoded.read(place), self.encoded.name(place))

    def take(self, indices: Sequence[int]) -> "Images":
        """The images with the given indices, still encoded."""
        return Images(self.encoded, [self.places[index] for index in indices])

    def contents(self) -> Iterator[bytes]:
        """The encoded bytes of each image, in order, for checksums."""
        return (self.encoded.read(place) for place in self.places)


def decoded(data: bytes, name: str) -> NDArray[np.uint8]:
    """The pixels of an encoded image as RGB, uint8 of shape (H, W, 3), as `tauspan.models.pictures.rgb` makes them.

    Raises:
        DataError: the bytes are no image of a format that is read, are damaged or too large, or hold 16-bit or float
            pixels, whose scale is not said.
    """
    image = require_extra("PIL.Image", "data", f"decoding {name}")
    try:
        with image.open(io.BytesIO(data), formats=_FORMATS) as picture:
            pixels = picture.width * picture.height
            if image.MAX_IMAGE_PIXELS is not None and pixels > image.MAX_IMAGE_PIXELS:
                raise DataError(
                    f"{name} says that it has {pixels:,} pixels, more than the {image.MAX_IMAGE_PIXELS:,} that are "
                    "decoded: it may be a decompression bomb. Remove it, or scale it down with a tool that you trust."
                )
            return rgb(picture, name)
    except DataError:
        raise
    except Exception as error:  # Pillow's readers raise many kinds on damaged bytes
        raise DataError(f"{name} cannot be read as an image: {error}") from error
