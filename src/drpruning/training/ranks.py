"""What every rank must hold alike."""

from collections.abc import Mapping

import torch
from accelerate import PartialState
from accelerate.utils import broadcast


def agreed_ratio(ratio: Mapping[str, float]) -> dict[str, float]:
    """Rank 0's ratio, on every rank, to the bit."""
    state = PartialState()
    if state.num_processes == 1:
        return dict(ratio)
    shares = torch.tensor(list(ratio.values()), dtype=torch.float64, device=state.device)
    return dict(zip(ratio, broadcast(shares).tolist(), strict=True))
