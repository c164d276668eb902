"""Several datasets read in the order of a mixture, for any PyTorch `DataLoader`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch.utils.data import ConcatDataset, Sampler

from drpruning.common.errors import BadInput
from drpruning.data import Mixture, Segment


class DomainDataset(ConcatDataset[Any]):
    """The examples of all domains, one domain after the other.

    Its length is not the number of examples but `length`, the examples of one segment: that is
    what a trainer takes for an epoch. Indices reach over all examples.

    Args:
        domains: The examples of each domain; anything with a length and an index.
        length: Examples a segment.
    """

    def __init__(self, domains: Mapping[str, Sequence[Any]], length: int) -> None:
        super().__init__(list(domains.values()))  # type: ignore[arg-type]
        self.scheduled = False
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Any]:
        for index in range(self.cumulative_sizes[-1]):
            yield super().__getitem__(index)  # type: ignore[no-untyped-call]

    def __getitem__(self, index: int) -> Any:
        """The example at this place.

        Raises:
            BadInput: No sampler has been set that knows the ratio; without one, only the first
                examples of the first domains would be read.
        """
        if not self.scheduled:
            raise BadInput(
                "this training set is read without its callback: give callbacks=[callback] to "
                "the same Trainer as train_dataset=callback.train_dataset"
            )
        return super().__getitem__(index)  # type: ignore[no-untyped-call]


class SegmentSampler(Sampler[int]):
    """The examples of one segment in the order of a mixture, as indices into a `DomainDataset`.

    An iteration over it is one segment. It holds for every number of ranks and micro-batches:
    consecutive runs of `mixture.global_batch` indices are the global batches.

    Args:
        mixture: Says which examples are next; its domains are in the order of the dataset's.
        steps: Optimizer steps a segment.
    """

    def __init__(self, mixture: Mixture, steps: int) -> None:
        self.mixture, self.steps = mixture, steps
        sizes = np.array(list(mixture.sizes.values()), dtype=np.int64)
        self._offsets = np.cumsum(sizes) - sizes
        self._segment: Segment | None = None

    @property
    def segment(self) -> Segment:
        """The segment that iterations go through.

        Raises:
            BadInput: None has begun.
        """
        if self._segment is None:
            raise BadInput(
                "no segment has begun: call begin(ratio) before reading from the sampler"
            )
        return self._segment

    def begin(self, ratio: Mapping[str, float]) -> None:
        """Plan the next segment under this ratio; the mixture stays where it is."""
        self._segment = self.mixture.plan_segment(ratio, self.steps)

    def end(self) -> dict[str, float]:
        """Move the mixture past the segment; returns the share that each domain had in it."""
        segment = self.segment
        self.mixture.advance(segment)
        self._segment = None
        return segment.realised_share

    def __len__(self) -> int:
        return self.steps * self.mixture.global_batch

    def __iter__(self) -> Iterator[int]:
        segment = self.segment
        for step in range(len(segment)):
            domains, blocks = segment.batch(step)
            yield from (self._offsets[domains] + blocks).tolist()
