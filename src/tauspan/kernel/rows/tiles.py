"""Tiles: stretches of rows whose Jacobians are kept in memory as factors, as far as there is room."""

import logging
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Literal

from tauspan.core.computing import Check
from tauspan.core.errors import ModelError
from tauspan.kernel.rows.contract import CHUNK, Tile, bytes_of, joined
from tauspan.kernel.rows.data import AnyBatch, rows_of, size_of, taken
from tauspan.kernel.rows.jacobian import Jacobian
from tauspan.kernel.rows.layers import belong, pieces
from tauspan.kernel.rows.pieces import Pieces, Written
from tauspan.tangent.engine.check import RandomError

log = logging.getLogger(__name__)
Backend = Literal["auto", "contraction", "products", "structured"]
BACKENDS: tuple[Backend, ...] = ("auto", "contraction", "products", "structured")


class Tiles:
    """The Jacobians of rows, recorded once and kept as long as they fit into the room.

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
        self._views = True  # whether disjoint views of a parameter are pieces of their own
        self._belong: set[tuple[int, int]] = (
            set()
        )  # sides and rows that were compared with those of their batch
        self._together: set[int] = set()  # sides some of whose batches have rows that depend on one another
        self._known: dict[Hashable, frozenset[int]] = {}

    @property
    def chunk(self) -> int:
        """How many numbers of each side's matrices a product may write out at a time: a small part of the room."""
        return min(CHUNK, max(CHUNK // 16, self.room // 32))

    def length(self, side: Jacobian) -> int:
        """How many rows a tile has: as many as fit half of the room and one block of the kernel, for the widest batch."""
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

    def without_views(self) -> None:
        """From now on a parameter is one piece in every batch, and what was recorded is dropped."""
        self._views = False
        self.clear()

    def _make_room(self, size: int) -> None:
        while self._kept and sum(kept for _, kept in self._kept.values()) + size > self.room:
            self._kept.popitem(last=False)

    def _recorded(self, side: Jacobian, rows: Sequence[int]) -> list[Pieces]:
        while True:
            backend, found = self.backend, []
            for begin, numbers, batch in side.spans(rows):
                found += self._batch(side, begin, numbers, batch)
            if self.backend != backend:  # what came before has other pieces
                continue
            if self._views and any(part.keys() != found[0].keys() for part in found):
                self.without_views()
                continue
            return found

    def _batch(self, side: Jacobian, begin: int, numbers: list[int], batch: AnyBatch) -> list[Pieces]:
        """Jacobians of some rows of a batch by parameter, as layers' factors if the model's operations allow it.

        If they do not for several rows at once, the rows are recorded one by one; if they do not at all, written out.
        """
        places = [begin + number for number in numbers]
        if self.backend == "contraction" or side.together or id(side) in self._together:
            self.backend = "contraction"
            return self._written(side, begin, numbers, batch)
        if not (self._one_by_one and len(places) > 1):
            try:
                found = [self._pieces(side, places, taken(batch, numbers))]
            except ModelError as error:
                self._without(error, len(places))
                return self._batch(side, begin, numbers, batch)
            whole = numbers == list(range(rows_of(batch)))
            if whole or self._apart(side, begin, numbers, batch, found):
                return found
            return self._mixed(side, begin, numbers, batch)
        found = []
        for number, place in enumerate(places):
            try:
                found.append(self._pieces(side, [place], taken(batch, [numbers[number]])))
            except ModelError as error:
                self._without(error, 1)
                return self._written(side, begin, numbers, batch)
        if self._apart(side, begin, numbers, batch, found, always=True):
            return found
        return self._mixed(side, begin, numbers, batch)

    def _pieces(self, side: Jacobian, places: list[int], rows: AnyBatch) -> Pieces:
        return pieces(side, places, rows, self._known, self.check != "off", self._views)

    def _apart(
        self, side: Jacobian, begin: int, numbers: list[int], batch: AnyBatch, found: list[Pieces],
        always: bool = False,
    ) -> bool:  # fmt: skip
        """Whether rows recorded without their batch are those of the batch; `always` compares without checks too."""
        known = {(id(side), begin + number) for number in numbers}
        if rows_of(batch) == 1 or known <= self._belong:
            return True
        if (
            side.cut if self.check != "off" else not always
        ):  # what was cut was compared when the side was made
            return True
        if not belong(side, begin, numbers, batch, found):
            return False
        self._belong |= known
        return True

    def _mixed(self, side: Jacobian, begin: int, numbers: list[int], batch: AnyBatch) -> list[Pieces]:
        """The rows of J of whole batches, since some depend on others; an error where batches were cut here."""
        side.joined()
        self._together.add(id(side))
        self._by_rows()
        return self._written(side, begin, numbers, batch)

    def _without(self, error: ModelError, rows: int) -> None:
        """Go on with single rows or, if a single row failed, without layers' factors."""
        if isinstance(error, RandomError):  # a random module fails in every other way too
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

    def _written(self, side: Jacobian, begin: int, numbers: list[int], batch: AnyBatch) -> list[Pieces]:
        whole = side.joined() if id(side) in self._together and not side.together else side
        found: list[Pieces] = [
            {
                name: Written(rows.reshape(*rows.shape[:2], rows[0, 0].numel()))
                for name, rows in sorted(part.items())
            }
            for _, part in whole.dense_rows([begin + number for number in numbers])
        ]
        if whole.together or self._apart(side, begin, numbers, batch, found):
            return found
        return self._mixed(side, begin, numbers, batch)
