"""The training rows of one or several tasks as one sequence, and the rows of each step."""

import math
from collections.abc import Iterator, Sequence

from tauspan.core.processes import World
from tauspan.tasks import Task, permutation
from tauspan.train.settings import Settings

# rows of one forward pass: the task's number, and indices into its training split
Part = tuple[int, tuple[int, ...]]


class TrainingRows:
    """The rows of all tasks, numbered in the order of the tasks; an epoch has every row once.

    Each step draws from all tasks together, so the weight of a task is its number of rows. A forward pass has rows of
    one task only, because tasks differ in their heads and in where texts are cut.

    Args:
        together: all processes run the same number of forward passes, some of them without rows.
    """

    def __init__(
        self, tasks: Sequence[Task], settings: Settings, processes: World, together: bool = False
    ) -> None:
        self._sizes = [len(task.split("train")) for task in tasks]
        self._settings, self._processes, self._together = settings, processes, together
        self._step = settings.batch_size * settings.accumulation
        self.size = sum(self._sizes)
        self.per_epoch = math.ceil(self.size / self._step)
        self._order: tuple[int, list[int]] = (-1, [])  # the last epoch used, and its order of rows

    def step(self, epoch: int, place: int) -> tuple[list[Part], int]:
        """This process's forward passes of one step, and the number of rows of the step over all processes.

        With a cache, steps have the same rows as in the first epoch, and only the order of steps changes.
        """
        seed = self._settings.seed
        if self._settings.cache != "none" and epoch:
            epoch, place = 0, permutation(self.per_epoch, f"{seed}/{epoch}/steps")[place]
        if self._order[0] != epoch:
            self._order = epoch, permutation(self.size, f"{seed}/{epoch}")
        order = self._order[1][place * self._step : (place + 1) * self._step]
        return list(self._parts(order)), len(order)

    def _parts(self, order: Sequence[int]) -> Iterator[Part]:
        size, rank = self._processes.size, self._processes.rank
        for begin in range(0, len(order), self._settings.batch_size):
            batch = order[begin : begin + self._settings.batch_size]
            mine = self._by_task(batch[rank::size])
            yield from mine
            if self._together:
                most = max(len(self._by_task(batch[other::size])) for other in range(size))
                yield from [(0, ())] * (most - len(mine))

    def _by_task(self, rows: Sequence[int]) -> list[Part]:
        parts: list[Part] = []
        first = 0
        for task, size in enumerate(self._sizes):
            places = tuple(row - first for row in rows if first <= row < first + size)
            if places:
                parts.append((task, places))
            first += size
        return parts
