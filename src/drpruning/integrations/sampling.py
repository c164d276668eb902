"""Several datasets read in the order of a mixture, for any PyTorch `DataLoader`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch.utils.data import ConcatDataset, Sampler

from drpruning.common.errors import BadInput
from drpruning.data import Mixture, Segment


class DomainDataset(ConcatDataset[Any]):
    """The examples of all domains, one domain after the other.

    Its length is not the number of examples but `length`, the number in one segment, because a
    trainer takes the length of its training set for an epoch. Indices reach all examples.

    Args:
        domains: The examples of each domain; anything with a length and an index.
        length: Examples per segment.
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
        """Return the example at this index.

        Raises:
            BadInput: No sampler that follows the ratio has been set. Without one, only the first
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

    One iteration over it is one segment. Consecutive runs of `mixture.global_batch` indices are the
    global batches, whatever the number of ranks and micro-batches.

    Args:
        mixture: Decides which examples are next; its domains are in the order of the dataset's.
        steps: Optimizer steps per segment.
    """

    def __init__(self, mixture: Mixture, steps: int) -> None:
        self.mixture, self.steps = mixture, steps
        sizes = np.array(list(mixture.sizes.values()), dtype=np.int64)
        self._offsets = np.cumsum(sizes) - sizes
        self._segment: Segment | None = None

    @property
    def segment(self) -> Segment:
        """The segment that an iteration goes through.

        Raises:
            BadInput: `begin` has not been called since the last segment ended.
        """
        if self._segment is None:
            raise BadInput(
                "no segment has begun: call begin(ratio) before reading from the sampler"
            )
        return self._segment

    def begin(self, ratio: Mapping[str, float]) -> None:
        """Plan the next segment under this ratio, without advancing the mixture."""
        self._segment = self.mixture.plan_segment(ratio, self.steps)

    def end(self) -> dict[str, float]:
        """Advance the mixture past the segment and return the share of each domain in it."""
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
