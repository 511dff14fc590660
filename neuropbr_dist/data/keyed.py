"""Random choices that depend on a key alone: the same on every rank, in every worker, after every resume.

A key is text that says what is drawn for whom: `f"{seed} {epoch} {sample} cameras"`.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b

import numpy as np


def number(key: str, bits: int = 64) -> int:
    """Return a whole number of [0, 2^bits), at most 512 of them, in multiples of 8."""
    return int.from_bytes(blake2b(key.encode(), digest_size=bits // 8).digest(), "big")


def uniforms(key: str) -> Iterator[float]:
    """Yield numbers in [0, 1), without end."""
    block = 0
    while True:
        digest = blake2b(f"{key} {block}".encode(), digest_size=64).digest()
        yield from (int.from_bytes(digest[i : i + 8], "big") / 2**64 for i in range(0, 64, 8))
        block += 1


def generator(key: str) -> np.random.Generator:
    """Return a generator for what takes many numbers, such as a scene."""
    return np.random.Generator(np.random.PCG64(number(key, 128)))
