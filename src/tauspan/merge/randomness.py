"""Random numbers that belong to an entry: the same for any split into blocks, any order and any number of threads."""

import hashlib

import numpy as np
import torch
from torch import Tensor

_PER_COUNTER = 4  # 64-bit numbers that Philox makes of one value of its counter


def uniform(key: tuple[object, ...], start: int, count: int) -> Tensor:
    """The numbers `start` to `start + count` of the stream named by `key`, in [0, 1), float32.

    Args:
        key: what the stream belongs to, for example (seed, tensor name, model).
        start: offset of the first number.
        count: how many.

    Example:
        >>> bool((uniform((0, "w", "a"), 5, 3) == uniform((0, "w", "a"), 0, 8)[5:]).all())
        True
    """
    digest = hashlib.sha256(repr(key).encode()).digest()
    words = np.frombuffer(digest[:16], dtype=np.uint64)
    whole, skip = divmod(start, 2 * _PER_COUNTER)  # each 64-bit number gives two of 32 bits
    bits = np.random.Philox(key=words)
    bits.advance(whole)
    raw = bits.random_raw((skip + count + 1) // 2).view(np.uint32)[skip : skip + count]
    # 24 bits are what float32 holds below 1
    return torch.from_numpy((raw >> 8).astype(np.float32) * np.float32(2**-24))
