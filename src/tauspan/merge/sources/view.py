"""A source seen through another: what both kinds of such views pass on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tauspan.merge.sources.inputs import Kind, Source


class View:
    """Passes on what a source says of itself; a subclass shows other tensors.

    Attributes:
        inner: the source.
    """

    inner: Source

    @property
    def label(self) -> str:
        """The source's."""
        return self.inner.label

    @property
    def path(self) -> Path:
        """The source's."""
        return self.inner.path

    @property
    def kind(self) -> Kind:
        """The source's."""
        return self.inner.kind

    @property
    def identity(self) -> Mapping[str, Any]:
        """The source's."""
        return self.inner.identity

    def close(self) -> None:
        """Let go of the files."""
        self.inner.close()
