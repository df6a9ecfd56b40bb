"""Tiles: stretches of rows whose Jacobians are kept in memory as factors, as far as there is room."""

import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from tauspan.errors import ModelError
from tauspan.kernel.contract import CHUNK, Tile, bytes_of, joined
from tauspan.kernel.layers import pieces
from tauspan.kernel.pieces import Pieces, Written
from tauspan.kernel.side import Side, rows_of, size_of, taken
from tauspan.models import Batch

log = logging.getLogger(__name__)
Backend = Literal["auto", "contraction", "products", "structured"]
BACKENDS: tuple[Backend, ...] = ("auto", "contraction", "products", "structured")


class Tiles:
    """The Jacobians of some rows, recorded once as long as they fit.

    Args:
        room: the most bytes that recorded rows may take; one tile takes at most half of it.
        backend: `"contraction"` writes rows out one by one, `"structured"` keeps factors, anything else keeps factors
            where the model's operations allow it.
    """

    def __init__(self, room: int, backend: Backend) -> None:
        self.room, self.backend = room, backend
        self._kept: OrderedDict[tuple[int, int, int], tuple[Tile, int]] = OrderedDict()
        self._lengths: dict[int, int] = {}
        self._one_by_one = False
        self._checked: set[tuple[int, ...]] = set()

    @property
    def chunk(self) -> int:
        """Numbers of each side's matrices that a product may write out at a time: small beside the room."""
        return min(CHUNK, max(CHUNK // 16, self.room // 32))

    def length(self, side: Side) -> int:
        """Rows of a tile: what half of the room holds of the widest batch, and few enough for a block of the kernel."""
        if id(side) not in self._lengths:
            first = max(side.parts(), key=lambda part: size_of(part[1]) / rows_of(part[1]))[0][:2]
            tile = joined(self._recorded(side, first))
            by_factors = self.room // 2 // max(bytes_of(tile) // len(first), 1)
            by_block = (
                int((self.room / 64) ** 0.5) // side.select.inner
            )  # two copies of a block take a quarter
            self._lengths[id(side)] = max(1, min(side.samples, by_factors, by_block))
        return self._lengths[id(side)]

    def of(self, side: Side, rows: range) -> Tile:
        """The tile of a stretch of rows, recorded anew where it was dropped."""
        key = (id(side), rows.start, rows.stop)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key][0]
        self._make_room(self.room // 2)
        tile = joined(self._recorded(side, rows))
        size = bytes_of(tile)
        self._make_room(size)
        self._kept[key] = (tile, size)
        return tile

    def some(self, side: Side, rows: Sequence[int]) -> Tile:
        """The tile of any rows; it is not kept."""
        return joined(self._recorded(side, rows))

    def clear(self) -> None:
        """Drop everything."""
        self._kept.clear()

    def _make_room(self, size: int) -> None:
        while self._kept and sum(kept for _, kept in self._kept.values()) + size > self.room:
            self._kept.popitem(last=False)

    def _recorded(self, side: Side, rows: Sequence[int]) -> list[Pieces]:
        return [one for places, batch in side.parts(rows) for one in self._batch(side, places, batch)]

    def _batch(self, side: Side, places: list[int], batch: Batch) -> list[Pieces]:
        """A batch's Jacobians by parameter: as layers' factors where the model's operations allow it.

        Where they do not for several rows at once, row by row; where they do not at all, written out.
        """
        if self.backend != "contraction" and not (self._one_by_one and len(places) > 1):
            try:
                return [self._factors(side, places, batch)]
            except ModelError as error:
                log.info("%s", error)
                if len(places) > 1:
                    self._one_by_one = True
                elif self.backend == "structured":
                    raise
                else:
                    self.backend = "contraction"
                    self.clear()
        if self.backend != "contraction":
            singles = [taken(batch, [number]) for number in range(len(places))]
            pairs = zip(places, singles, strict=True)
            return [one for place, row in pairs for one in self._batch(side, [place], row)]
        return [
            {name: Written(rows.flatten(2)) for name, rows in sorted(written.items())}
            for _, written in side.jacobian(places)
        ]

    def _factors(self, side: Side, places: list[int], batch: Batch) -> Pieces:
        shapes = [batch.shape] if isinstance(batch, Tensor) else [value.shape for value in batch.values()]
        kind = (id(side), *(size for shape in shapes for size in (len(shape), *shape)))
        found = pieces(side, places, batch, kind not in self._checked)
        self._checked.add(kind)
        return found
