"""Random numbers that belong to an entry: the same for any split into blocks, any order and any number of threads."""

import hashlib

import numpy as np
import torch
from torch import Tensor

_KEPT = 24  # bits that float32 holds below 1


def uniform(key: tuple[object, ...], start: int, count: int) -> Tensor:
    """The numbers `start` to `start + count` of the stream named by `key`, in [0, 1), float32.

    The stream is PCG64-DXSM, seeded by the SHA-256 of the key; every 64 random bits give two numbers, and jumping to
    `start` takes a time that grows with its logarithm.

    Args:
        key: what the stream belongs to, for example (seed, tensor name, model).
        start: offset of the first number.
        count: how many.

    Example:
        >>> bool((uniform((0, "w", "a"), 5, 3) == uniform((0, "w", "a"), 0, 8)[5:]).all())
        True
    """
    digest = hashlib.sha256(repr(key).encode()).digest()
    bits = np.random.PCG64DXSM(int.from_bytes(digest, "little"))
    pair, skip = divmod(start, 2)
    bits.advance(pair)
    words = bits.random_raw((skip + count + 1) // 2).astype("<u8", copy=False).view("<u4")
    words = words[skip : skip + count]
    words >>= 32 - _KEPT
    numbers = words.view(np.int32).astype(
        np.float32
    )  # from int32: the processor converts signed words faster
    numbers *= np.float32(2.0**-_KEPT)
    return torch.from_numpy(numbers)
