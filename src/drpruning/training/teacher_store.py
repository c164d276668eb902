"""The top tokens of teachers on disk, block by block, beside the blocks that they belong to.

Each domain's folder of prepared data has three files for it: log-probabilities (float16), token
ids, and a checksum for each block. They are sparse: a block takes space once it is written. A block
is there if its checksum is that of its numbers, so that one which was cut off in the middle is
computed again.
"""

import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drpruning.common.errors import TrainingError
from drpruning.data import PreparedData
from drpruning.distillation import TopTokens

TopArrays = tuple[NDArray[np.float16], NDArray[np.int32]]
"""Log-probabilities and token ids of a block, both [T, k]."""


class TopTokenStore:
    """The top tokens of one mix of teachers, for the training blocks of prepared data."""

    def __init__(self, data: PreparedData, made_of: Any, top_k: int) -> None:
        """Open the files, or make them.

        Args:
            data: The blocks.
            made_of: JSON values that differ between mixes of teachers.
            top_k: Tokens that are kept of each distribution.

        Raises:
            TrainingError: The file system refuses.
        """
        key = json.dumps([made_of, top_k, data.fingerprint], sort_keys=True)
        digest = hashlib.blake2b(key.encode(), digest_size=8).hexdigest()
        shape = (data.sequence_length, top_k)
        try:
            self._domains = {
                name: _DomainFiles(data.folder / name / f"teacher-{digest}", len(d.train), shape)
                for name, d in data.domains.items()
                if len(d.train)
            }
        except OSError as error:
            raise TrainingError(
                f"distill.cache: the top tokens cannot be kept in {error.filename or data.folder} "
                f"({error.strerror}); write cache: false, or make room"
            ) from error

    def read(self, domain: str, block: int) -> TopArrays | None:
        """What was kept of a block; None if nothing was."""
        return self._domains[domain].read(block)

    def write(self, domain: str, block: int, top: TopTokens) -> None:
        """Keep the top tokens [T, k] of a block."""
        values, ids = (tensor.cpu().numpy() for tensor in top)
        self._domains[domain].write(block, values.astype(np.float16), ids.astype(np.int32))


class _DomainFiles:
    """Memory maps of one domain: values and ids [blocks, T, k], checksums [blocks]."""

    def __init__(self, path: Path, blocks: int, shape: tuple[int, int]) -> None:
        self._values = _sparse_map(path.with_suffix(".values"), np.float16, (blocks, *shape))
        self._ids = _sparse_map(path.with_suffix(".ids"), np.int32, (blocks, *shape))
        self._checksums = _sparse_map(path.with_suffix(".checksums"), np.uint32, (blocks,))

    def read(self, block: int) -> TopArrays | None:
        if not self._checksums[block]:
            return None
        values, ids = np.array(self._values[block]), np.array(self._ids[block])
        return (values, ids) if _checksum(values, ids) == self._checksums[block] else None

    def write(self, block: int, values: NDArray[np.float16], ids: NDArray[np.int32]) -> None:
        self._values[block], self._ids[block] = values, ids
        self._checksums[block] = _checksum(values, ids)


def _sparse_map(path: Path, dtype: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    """A memory map that can be written; several processes may open it at one time."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    with path.open("ab") as file:
        if file.tell() < size:
            file.truncate(size)  # longer: the new part reads as zeros and takes no space
    return np.memmap(path, dtype=dtype, mode="r+", shape=shape)


def _checksum(values: NDArray[np.float16], ids: NDArray[np.int32]) -> int:
    """CRC-32 of a block's numbers; never 0, which stands for a block that is not there."""
    return zlib.crc32(ids.tobytes(), zlib.crc32(values.tobytes())) or 1
