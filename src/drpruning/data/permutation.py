"""Orders that are computed, not stored: keyed hashes and keyed permutations of indices."""

import hashlib
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]

_ROUNDS = 6
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


class KeyedPermutation:
    """A bijection on range(size), one for each epoch; only the indices asked for are computed.

    An index is written as (left, right) in a rectangle of about sqrt(size) on a side and goes
    through a Feistel network whose rounds add a keyed hash of one half to the other; what lands in
    the rectangle but outside range(size) goes through again ("cycle walking", Black and Rogaway
    2002). The rectangle has at most 2 sqrt(size) + 1 surplus places, so that is rare.
    """

    def __init__(self, size: int, key: int) -> None:
        if size < 1:
            raise ValueError(f"a permutation needs at least one element, got size {size}")
        self.size = size
        self._keys = np.array([key_of(key, number) for number in range(_ROUNDS)], dtype=np.uint64)
        self._rows = math.isqrt(size - 1) + 1
        self._columns = -(-size // self._rows)

    def __call__(self, indices: Indices, epoch: int | Indices = 0) -> Indices:
        """The images of `indices`.

        Args:
            indices: int64 of any shape, each in [0, size).
            epoch: which of the permutations; a number, or one for each index.

        Returns:
            int64 of the same shape, each in [0, size).
        """
        indices = np.asarray(indices, dtype=np.int64)
        if indices.size and not (indices.min() >= 0 and indices.max() < self.size):
            raise IndexError(f"indices must lie in [0, {self.size})")
        image = indices.reshape(-1).copy()
        epochs = np.broadcast_to(np.asarray(epoch, dtype=np.int64), indices.shape).reshape(-1)
        different, which = np.unique(epochs, return_inverse=True)
        tweaks = keyed_hash(self._keys[:, None], different)
        pending = np.arange(image.size)
        while pending.size:
            own = tweaks if len(different) == 1 else tweaks[:, which[pending]]
            image[pending] = self._round_trip(image[pending], own)
            pending = pending[image[pending] >= self.size]
        return image.reshape(indices.shape)

    def _round_trip(self, indices: Indices, tweaks: NDArray[np.uint64]) -> Indices:
        """Once through the network; `tweaks` [rounds, 1 or k] come from the epochs."""
        left, right = np.divmod(indices, self._columns)
        for number, (key, tweak) in enumerate(zip(self._keys, tweaks, strict=True)):
            sender, modulus = (right, self._rows) if number % 2 == 0 else (left, self._columns)
            hashed = keyed_hash(key, sender.astype(np.uint64) ^ tweak)
            shift = (hashed % np.uint64(modulus)).astype(np.int64)
            if number % 2 == 0:
                left = (left + shift) % modulus
            else:
                right = (right + shift) % modulus
        result: Indices = left * self._columns + right
        return result


def keyed_permutation(size: int, key: int | str | Sequence[int | str]) -> KeyedPermutation:
    """A pseudo-random bijection on range(size) that costs arithmetic and no memory.

    Args:
        size: number of elements, at least 1.
        key: what it depends on: a number, a name, or several of these.

    Returns:
        A callable: int64 indices (and an epoch) -> int64 images.
    """
    parts = (key,) if isinstance(key, int | str) else tuple(key)
    return KeyedPermutation(size, key_of(*parts))
