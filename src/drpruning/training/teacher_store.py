"""The top tokens of teachers on disk, block by block, beside the blocks that they belong to.

Each domain's folder of prepared data has one file for it, with a record for each block: a checksum,
log-probabilities (float16) and token ids (int32). It is sparse: a block takes space once it is
written. A record counts if its checksum is that of its numbers, so that one which was cut off in
the middle, or which two runs wrote at one time, is computed again.

The files are read and written, not mapped into memory: on a full disk, writing to a map ends the
process (SIGBUS), where a write is an error that training survives.
"""

import hashlib
import json
import logging
import os
import weakref
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drpruning.common.errors import TrainingError
from drpruning.data import PreparedData
from drpruning.distillation import TopTokens

logger = logging.getLogger(__name__)

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
        self._is_full = False
        try:
            self._domains = {
                name: _Records(data.folder / name / f"teacher-{digest}.top", shape)
                for name, domain in data.domains.items()
                if len(domain.train)
            }
        except OSError as error:
            raise TrainingError(
                f"distill.cache: the top tokens cannot be kept in {error.filename or data.folder} "
                f"({error.strerror}); write cache: false, or make room"
            ) from error

    def read(self, domain: str, block: int) -> TopArrays | None:
        """What was kept of a block; None if nothing was."""
        return self._domains[domain].read(block)

    def write(self, domain: str, block: int, top: TopTokens) -> TopArrays:
        """Keep the top tokens [T, k] of a block, and return what reading it will give.

        Where the file system refuses, a warning says so once and nothing more is kept: the teacher
        is then asked again, which gives the same numbers.
        """
        values, ids = (tensor.cpu().numpy() for tensor in top)
        kept = values.astype(np.float16), ids.astype(np.int32)
        if not self._is_full:
            try:
                self._domains[domain].write(block, kept)
            except OSError as error:
                self._is_full = True
                logger.warning(
                    "distill.cache: %s: %s; no more top tokens are kept, and the teacher is run "
                    "for each block that is not there yet",
                    self._domains[domain].path,
                    error.strerror,
                )
        return kept


class _Records:
    """The file of one domain: block after block, each with its checksum first."""

    def __init__(self, path: Path, shape: tuple[int, int]) -> None:
        self.path, self._shape = path, shape
        self._numbers = shape[0] * shape[1]
        self._size = 4 + 6 * self._numbers
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        weakref.finalize(self, os.close, self._file)

    def read(self, block: int) -> TopArrays | None:
        try:
            record = os.pread(self._file, self._size, block * self._size)
        except OSError:  # a bad sector costs a pass of the teacher
            return None
        # What was never written is missing at the end of the file, and elsewhere zeros.
        if len(record) < self._size or record[:4] != _checksum(record[4:]):
            return None
        values = np.frombuffer(record, np.float16, self._numbers, 4)
        ids = np.frombuffer(record, np.int32, self._numbers, 4 + values.nbytes)
        return values.reshape(self._shape), ids.reshape(self._shape)

    def write(self, block: int, top: TopArrays) -> None:
        content = b"".join(array.tobytes() for array in top)
        record, place = _checksum(content) + content, block * self._size
        while record:  # a disk that is about to be full may take a part
            done = os.pwrite(self._file, record, place)
            record, place = record[done:], place + done


def _checksum(content: bytes) -> bytes:
    """CRC-32 as four bytes; never zeros, which stand for a block that is not there."""
    return (zlib.crc32(content) or 1).to_bytes(4, "little")
