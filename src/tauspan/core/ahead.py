"""Work done in advance: threads read and decode while something else computes."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Made = TypeVar("Made")


def in_threads(make: Callable[[Item], Made], items: Sequence[Item]) -> list[Made]:
    """`make` of every item, in order, in as many threads as torch computes with (`torch.get_num_threads`).

    Example:
        >>> in_threads(abs, [-1, 2, -3])
        [1, 2, 3]
    """
    threads = min(torch.get_num_threads(), len(items))
    if threads < 2:
        return [make(item) for item in items]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(make, items))


def ahead(make: Callable[[Item], Made], items: Iterable[Item], depth: int) -> Generator[Made]:
    """`make` of every item, in order, up to `depth` of them in advance; with 0 each is made on request.

    One thread makes them one after the other and ends with the iterator; an error of `make` is raised when its item is
    requested.

    Example:
        >>> list(ahead(abs, [-1, 2, -3], depth=2))
        [1, 2, 3]
    """
    if depth == 0:
        yield from map(make, items)
        return
    begun: deque[Future[Made]] = deque()
    with ThreadPoolExecutor(1) as pool:
        try:
            for item in items:
                begun.append(pool.submit(make, item))
                if len(begun) > depth:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            for one in begun:
                one.cancel()
