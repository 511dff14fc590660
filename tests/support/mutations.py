"""What a stranger, a bad disk or a half-done copy makes of a file: seeded changes of bytes and of JSON values."""

from __future__ import annotations

import copy
import json
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ODD: list[Any] = [
    None, True, False, 0, -1, 1, 7, 2**31, 2**63, -(2**70), 10**400, 0.5, 1e308, float("nan"), float("-inf"), "", "x",
    "9", "a\0b", "a\ud800b", "../../escaped", "/etc/passwd", "a" * 5000, [], {}, [[]], [None], {"": None}, [0] * 1000,
    {"__class__": "os.system"},
]  # fmt: skip
DEEP = "[" * 100_000 + "]" * 100_000


class Hang(BaseException):
    """Not an `Exception`, so that nobody catches it."""


@contextmanager
def answering(seconds: float) -> Iterator[None]:
    """Raises `Hang` if the block takes longer."""

    def late(*_: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def mutated_json(content: Any, rng: random.Random, deep: bool = True) -> str:
    """Return JSON text of `content` with one to three values changed, dropped, doubled or put elsewhere.

    Args:
        deep: also, seldom, what is nested more deeply than Python reads.
    """
    if rng.random() < 0.02 and deep:
        return DEEP
    content = copy.deepcopy(content)
    for _ in range(rng.randint(1, 3)):
        places = list(_places(content))
        if not places:
            break
        holder, key = rng.choice(places)
        act = rng.random()
        if act < 0.6:
            holder[key] = copy.deepcopy(rng.choice(ODD))
        elif act < 0.75:
            del holder[key]
        elif act < 0.9:
            holder[key] = copy.deepcopy(rng.choice(places)[0])
        elif isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        else:
            holder[f"{key}{rng.choice(['x', '', '2'])}"] = holder.pop(key)
    return json.dumps(content)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def mutated_bytes(content: bytes, rng: random.Random) -> bytes:
    """Return `content` with bits turned, a piece cut out, doubled, zeroed or put in, or its end gone."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at, count = rng.randrange(len(changed) + 1), rng.choice([1, 1, 2, 4, 8, 64])
        act = rng.randrange(6)
        if act == 0 and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif act == 1:
            del changed[at : at + count]
        elif act == 2:
            changed[at:at] = changed[at : at + count]
        elif act == 3:
            changed[at : at + count] = bytes(count)
        elif act == 4:
            changed[at:at] = rng.randbytes(count)
        elif rng.random() < 0.3:
            del changed[at:]
    return bytes(changed)
