"""A bounded pool of threads whose results come in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from tauspan.merge.methods.scope import OrderedMap

T = TypeVar("T")


@contextmanager
def ordered_pool(workers: int) -> Iterator[OrderedMap]:
    """An ordered `map` on so many threads; torch computes each operation on one of them while it is open.

    At most three items a worker are begun before their results are taken, so memory stays bounded. Leaving the
    context waits for what runs and drops what waits.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # before the threads start: each takes over what holds then
    pool = ThreadPoolExecutor(workers, "merge")

    def run(function: Callable[[Any], T], items: Iterable[Any]) -> Iterator[T]:
        waiting: deque[Future[T]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 3 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    try:
        yield run
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)
