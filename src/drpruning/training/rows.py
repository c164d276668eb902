"""Rows of a global batch, and where they come from."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Rows of a global batch.

    Attributes:
        blocks: Token ids [B, T], on the device.
        names: Of the domains that `domains` points into.
        domains: Index of each row's domain [B].
        ids: Each row's block within its domain [B].
    """

    blocks: Tensor
    names: Sequence[str]
    domains: NDArray[np.int64]
    ids: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: slice) -> "Rows":
        return Rows(self.blocks[rows], self.names, self.domains[rows], self.ids[rows])
