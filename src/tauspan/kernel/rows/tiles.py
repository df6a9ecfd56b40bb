"""Tiles: stretches of rows whose Jacobians are kept in memory as factors, as far as there is room."""

import logging
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Literal

import torch

from tauspan.core.computing import Check
from tauspan.core.errors import ModelError
from tauspan.kernel.rows.contract import CHUNK, Tile, bytes_of, joined
from tauspan.kernel.rows.data import AnyBatch, rows_of, size_of, taken
from tauspan.kernel.rows.jacobian import Jacobian
from tauspan.kernel.rows.layers import pieces
from tauspan.kernel.rows.pieces import Pieces, Written
from tauspan.tangent.engine.check import RandomError, far, rounding

log = logging.getLogger(__name__)
Backend = Literal["auto", "contraction", "products", "structured"]
BACKENDS: tuple[Backend, ...] = ("auto", "contraction", "products", "structured")


class Tiles:
    """The Jacobians of some rows, recorded once as long as they fit.

    Args:
        room: the most bytes that recorded rows may take; one tile takes at most half of it.
        backend: `"contraction"` writes rows out one by one, `"structured"` keeps factors, anything else keeps factors
            where the model's operations allow it.
        check: `"off"` trusts them.
    """

    def __init__(self, room: int, backend: Backend, check: Check = "auto") -> None:
        self.room, self.backend, self.check = room, backend, check
        self._kept: OrderedDict[tuple[int, int, int], tuple[Tile, int]] = OrderedDict()
        self._lengths: dict[int, int] = {}
        self._one_by_one = False
        self._together: set[int] = set()  # sides some of whose batches have rows that depend on one another
        self._known: dict[Hashable, frozenset[int]] = {}

    @property
    def chunk(self) -> int:
        """Numbers of each side's matrices that a product may write out at a time: small beside the room."""
        return min(CHUNK, max(CHUNK // 16, self.room // 32))

    def length(self, side: Jacobian) -> int:
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

    def tile(self, side: Jacobian, rows: range) -> Tile:
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

    def some(self, side: Jacobian, rows: Sequence[int]) -> Tile:
        """The tile of any rows; it is not kept."""
        return joined(self._recorded(side, rows))

    def clear(self) -> None:
        """Drop everything."""
        self._kept.clear()

    def _make_room(self, size: int) -> None:
        while self._kept and sum(kept for _, kept in self._kept.values()) + size > self.room:
            self._kept.popitem(last=False)

    def _recorded(self, side: Jacobian, rows: Sequence[int]) -> list[Pieces]:
        while True:
            backend, found = self.backend, []
            for begin, numbers, batch in side.spans(rows):
                places = [begin + number for number in numbers]
                found += self._batch(side, places, taken(batch, numbers))
            if self.backend == backend:  # else what came before has other pieces
                return found

    def _batch(self, side: Jacobian, places: list[int], batch: AnyBatch) -> list[Pieces]:
        """A batch's Jacobians by parameter: as layers' factors where the model's operations allow it.

        Where they do not for several rows at once, row by row; where they do not at all, written out.
        """
        if self.backend == "contraction" or side.together:
            self.backend = "contraction"
            return self._written(side, places)
        if not (self._one_by_one and len(places) > 1):
            try:
                return [pieces(side, places, batch, self._known, self.check != "off")[0]]
            except ModelError as error:
                self._without(error, len(places))
                return self._batch(side, places, batch)
        found, values = [], []
        for number, place in enumerate(places):
            try:
                piece, value = pieces(side, [place], taken(batch, [number]), self._known, self.check != "off")
            except ModelError as error:
                self._without(error, 1)
                return self._written(side, places)
            found.append(piece)
            values.append(value)
        with torch.no_grad():
            whole = side.tangent.function(batch)(side.tangent.theta0())
        if far(torch.cat(values), whole, rounding(whole.dtype)):
            side.joined()  # an error where batches were cut here
            self._together.add(id(side))
            self._by_rows()
            return self._written(side, places)
        return found

    def _without(self, error: ModelError, rows: int) -> None:
        """Go on without layers' factors, for one row at a time or at all."""
        if isinstance(error, RandomError):  # no other way makes a function of it
            raise error
        log.info("%s", error)
        if rows > 1:
            self._one_by_one = True
        elif self.backend == "structured":
            raise error
        else:
            self._by_rows()

    def _by_rows(self) -> None:
        self.backend = "contraction"
        self.clear()

    def _written(self, side: Jacobian, places: list[int]) -> list[Pieces]:
        whole = side.joined() if id(side) in self._together and not side.together else side
        return [
            {
                name: Written(rows.reshape(*rows.shape[:2], rows[0, 0].numel()))
                for name, rows in sorted(found.items())
            }
            for _, found in whole.dense_rows(places)
        ]
