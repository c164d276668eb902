"""What every rank must hold alike."""

from collections.abc import Mapping

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast


def agreed_ratio(ratio: Mapping[str, float]) -> dict[str, float]:
    """Rank 0's ratio, on every rank, to the bit."""
    state = PartialState()
    if state.num_processes == 1:
        return dict(ratio)
    shares = torch.tensor(list(ratio.values()), dtype=torch.float64, device=state.device)
    return dict(zip(ratio, broadcast(shares).tolist(), strict=True))


def on_any_rank(accelerator: Accelerator, here: bool) -> bool:  # noqa: FBT001 - an answer, not an option
    """Whether it is so on any rank; every rank calls this and gets the same answer."""
    if accelerator.num_processes == 1:
        return here
    flag = torch.tensor(float(here), device=accelerator.device)
    return bool(accelerator.reduce(flag).item())
