"""Damages files at random, the same way in every run."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def damaged(content: bytes, number: int, seed: int = 0) -> Iterator[bytes]:
    """`number` variants: cut off, bytes changed, a block of zeros, bytes lost in the middle, random bytes, empty."""
    rng = random.Random(seed)
    for i in range(number):
        data, start = bytearray(content), rng.randrange(len(content))
        if i % 5 == 0:
            data = data[:start] if i else data[:0]
        elif i % 5 in (1, 2):
            for _ in range(rng.randint(1, 8)):
                data[rng.randrange(len(data))] ^= rng.randint(1, 255)
        elif i % 5 == 3:
            data[start : start + 100] = bytes(min(100, len(data) - start)) if i % 2 else b""
        else:
            data = bytearray(rng.randbytes(rng.randint(1, 2000)))
        yield bytes(data)


def refusals(path: Path, number: int, read: Callable[[], Any], is_same: Callable[[Any], bool]) -> int:
    """How many damages of the file at `path` are refused by `read`, each by one line that names the file.

    What is not refused must be the same by `is_same`: a change of bytes that mean nothing.
    """
    whole, refused = path.read_bytes(), 0
    assert is_same(read())
    for content in damaged(whole, number):
        path.write_bytes(content)
        try:
            found = read()
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error) and len(str(error)) < 1000, error
            refused += 1
        else:
            assert is_same(found), "read as if nothing had happened"
    path.write_bytes(whole)
    return refused
