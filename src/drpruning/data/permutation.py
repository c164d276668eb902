"""Orders that are computed, not stored: keyed hashes and keyed permutations of indices.

A shuffled list of all blocks would grow with the corpus, and so would the checkpoint that has to
hold it or a random generator's state. A permutation that is a function of (key, epoch, index) needs
no memory, can be entered anywhere, and is the same on every rank and after every restart.
"""

import hashlib
import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]

_ROUNDS = 6  # four make a Feistel network look random; two more since the halves are small
_ONE, _GOLDEN = np.uint64(1), np.uint64(0x9E3779B97F4A7C15)
_MIXERS = (
    (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)),
    (np.uint64(27), np.uint64(0x94D049BB133111EB)),
)
_LAST_SHIFT = np.uint64(31)


def key_of(*parts: int | str) -> int:
    """A 64-bit key that depends on every part and on their order."""
    text = "\x00".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def keyed_hash(
    key: int | np.uint64 | NDArray[np.uint64], values: NDArray[np.generic]
) -> NDArray[np.uint64]:
    """One pseudo-random 64-bit number for each value (the SplitMix64 generator, by position).

    Args:
        key: 64-bit key, for example from `key_of`, or an array of them.
        values: integers of any shape; taken modulo 2^64.

    Returns:
        uint64 of the shape of key and values broadcast together.
    """
    x = np.asarray((values.astype(np.uint64) + _ONE) * _GOLDEN + np.asarray(key, dtype=np.uint64))
    for shift, factor in _MIXERS:
        x ^= x >> shift
        x *= factor
    x ^= x >> _LAST_SHIFT
    return x


class KeyedPermutations:
    """Bijections on range(size) for several sizes, with a different one in each epoch.

    Only the indices asked for are computed, those of all sizes together. An index is written as
    (left, right) in a rectangle of about sqrt(size) on a side and goes through a Feistel network:
    each round adds a keyed hash of one half to the other, which can be undone whatever the hash is,
    so the network is a bijection on the rectangle. An image inside the rectangle but outside
    range(size) goes through the network again ("cycle walking", Black and Rogaway 2002): following
    a cycle of a bijection until it is back in range is a bijection on the range. The rectangle has
    at most 2 sqrt(size) + 1 surplus places, so this is rare.

    Args:
        sizes: number of elements of each, at least 1.
        keys: what each depends on: a number, a name, or several of these.

    Raises:
        ValueError: a size is below 1.
    """

    def __init__(self, sizes: Sequence[int], keys: Sequence[int | str | Sequence[int | str]]):
        if small := [size for size in sizes if size < 1]:
            raise ValueError(f"a permutation needs at least one element, got size {small[0]}")
        parts = [(key,) if isinstance(key, int | str) else tuple(key) for key in keys]
        own = [key_of(*part) for part in parts]
        rows = [math.isqrt(size - 1) + 1 for size in sizes]
        columns = [-(-size // row) for size, row in zip(sizes, rows, strict=True)]
        rounds = [[key_of(key, number) for key in own] for number in range(_ROUNDS)]
        self.sizes = np.array(sizes, dtype=np.int64)
        self._rows, self._columns = np.array(rows), np.array(columns)
        self._keys = np.array(rounds, dtype=np.uint64)

    def __call__(self, which: Indices, indices: Indices, epochs: Indices) -> Indices:
        """Map `indices` to their places in the permutation.

        Args:
            which: the position in `sizes` of each index's size, int64 [k].
            indices: int64 [k], each in [0, size).
            epochs: the epoch of each index, int64 [k].

        Returns:
            int64 [k], each in [0, size).

        Raises:
            IndexError: an index is outside its range.
        """
        sizes = self.sizes[which]
        if not ((indices >= 0) & (indices < sizes)).all():
            raise IndexError(f"indices must lie in [0, size), for the sizes {self.sizes.tolist()}")
        image = self._network(which, indices, epochs)
        while (outside := np.flatnonzero(image >= sizes)).size:
            again = self._network(which[outside], image[outside], epochs[outside])
            image[outside] = again
        return image

    def _network(self, which: Indices, indices: Indices, epochs: Indices) -> Indices:
        rows, columns = self._rows[which], self._columns[which]
        left, right = np.divmod(indices, columns)
        for number, round_keys in enumerate(self._keys):
            key = round_keys[which]
            sender, modulus = (right, rows) if number % 2 == 0 else (left, columns)
            hashed = keyed_hash(key, keyed_hash(key, epochs) ^ sender.astype(np.uint64))
            shift = (hashed % modulus.astype(np.uint64)).astype(np.int64)
            if number % 2 == 0:
                left = (left + shift) % modulus
            else:
                right = (right + shift) % modulus
        result: Indices = left * columns + right
        return result


def keyed_permutation(size: int, key: int | str | Sequence[int | str]) -> Callable[..., Indices]:
    """A pseudo-random bijection on range(size) that costs arithmetic and no memory.

    Args:
        size: number of elements, at least 1.
        key: a number, a name, or several of these; every key gives another permutation.

    Returns:
        A callable: int64 indices of any shape, and an epoch for all or for each -> int64 images.
    """
    permutations = KeyedPermutations([size], [key])

    def permuted(indices: NDArray[np.int64], epoch: int | Indices = 0) -> Indices:
        flat = np.asarray(indices, dtype=np.int64).reshape(-1)
        epochs = np.broadcast_to(np.asarray(epoch, dtype=np.int64), np.shape(indices)).reshape(-1)
        return permutations(np.zeros_like(flat), flat, epochs).reshape(np.shape(indices))

    return permuted
